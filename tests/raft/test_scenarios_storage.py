"""RAFT.md, scenarios 25 to 29: what a power loss, a death and a failing disk leave behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest

from repl_broker import journal
from repl_broker.raft.core import Loss, Receive, Role
from repl_broker.raft.log import Entry, EntryKind, HardState, WriteBatch
from repl_broker.raft.rpc import (
    Append,
    AppendReply,
    Commit,
    Heartbeat,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
)
from repl_broker.storage import SqliteStorage
from tests.raft.cluster import Cluster, accepted, entries_of
from tests.raft.power_loss import (
    DEADLY,
    NAMES,
    SMALL,
    WAL_HEAD_BYTES,
    Found,
    Image,
    expected,
    found,
    image,
    live,
    put,
    torn,
)
from tests.raft.seccomp import MACHINE_IS_KNOWN

ROOT: Final = Path(__file__).parents[2]
Images = dict[str, list[Image]]  # by the step: before it, in between, and after it
GO_ON_EVERY: Final = 9  # states: to go on in each would take long

needs_seccomp = pytest.mark.skipif(
    not MACHINE_IS_KNOWN, reason="the numbers of this machine's system calls are not known"
)


def recover(files: Image, folder: Path) -> Found:
    """What a node finds that starts from these files."""
    storage = SqliteStorage(put(files, folder), "n1")
    try:
        return found(storage)
    finally:
        storage.close()


@pytest.fixture(scope="module", autouse=True)
def small_journal() -> Iterator[None]:
    """Or each of the many starts would write a large one."""
    with patch.object(journal, "JOURNAL_BYTES", SMALL):
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, small_journal: None) -> Images:
    """The store's files, for each step of its life."""
    return dict(zip(NAMES, live(tmp_path_factory.mktemp("life")), strict=True))


@pytest.fixture(scope="module")
def states() -> list[Found]:
    """What is to be found there."""
    return expected()


# --- power loss ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_power_loss_in_any_write_leaves_all_of_it_or_nothing(
    name: str, images: Images, states: list[Found], tmp_path: Path
) -> None:
    """RAFT.md scenarios 1, 2, 25: append, truncation, vote, snapshot; any sector may be lost."""
    number = NAMES.index(name)
    allowed = states[number : number + 2]
    tried = 0
    for files in torn(*images[name]):
        assert recover(files, tmp_path) in allowed
        tried += 1
    assert tried > 10


@pytest.mark.parametrize("name", NAMES)
def test_what_was_reported_written_is_there_after_a_power_loss(
    name: str, images: Images, states: list[Found], tmp_path: Path
) -> None:
    """RAFT.md scenarios 24, 25: the files as they are when the call returns hold all of it."""
    number = NAMES.index(name)
    assert recover(images[name][-1], tmp_path) == states[number + 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_store_that_has_recovered_goes_on(name: str, images: Images, tmp_path: Path) -> None:
    """RAFT.md scenario 25: and the next power loss takes nothing, either."""
    for files in list(torn(*images[name]))[::GO_ON_EVERY]:
        storage = SqliteStorage(put(files, tmp_path / "first"), "n1")
        before = storage.load()
        storage.write(WriteBatch(hard_state=HardState(9, "n9")))
        after = recover(image(tmp_path / "first"), tmp_path / "second").loaded
        storage.close()
        assert after.hard_state == HardState(9, "n9")
        assert (after.snapshot, after.entries) == (before.snapshot, before.entries)


@needs_seccomp
def test_a_process_that_dies_in_a_write_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    """RAFT.md scenarios 1, 25: the kernel kills it at each of its writes, and at the fsync."""
    command = [sys.executable, "-m", "tests.raft.power_loss", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    states = expected(DEADLY)
    for number, step in enumerate(DEADLY):
        folders = list((tmp_path / step.name).iterdir())
        survivors = [folder for folder in folders if (folder / "done").exists()]
        writes = [folder for folder in folders if folder.name != "barrier"]
        assert [folder.name for folder in survivors] == [str(len(writes) - 1)], (
            "it dies at each write and at the barrier, and lives when there is no write left"
        )
        assert len(writes) > 1
        for folder in folders:
            storage = SqliteStorage(folder, "n1")
            assert found(storage) in states[number + (folder in survivors) : number + 2]
            storage.close()


@needs_seccomp
def test_a_new_log_has_its_header_on_disk_before_its_frames(tmp_path: Path) -> None:
    """RAFT.md scenario 25: what ``torn`` and ``wal.py`` rely on. Killed at the first barrier."""
    script = """
        import sys
        from pathlib import Path
        from repl_broker.raft.log import HardState, WriteBatch
        from repl_broker.storage import SqliteStorage
        from tests.raft import seccomp
        storage = SqliteStorage(Path(sys.argv[1]), "n1")
        storage.write(WriteBatch(hard_state=HardState(1, "n1")))
        storage.tidy()
        (Path(sys.argv[1]) / "before").write_bytes(Path(sys.argv[1], "broker.db-wal").read_bytes())
        seccomp.kill_at_sync()
        storage.write(WriteBatch(hard_state=HardState(2, "n2")))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGSYS
    before, after = ((tmp_path / name).read_bytes() for name in ("before", "broker.db-wal"))
    assert before[:WAL_HEAD_BYTES] != after[:WAL_HEAD_BYTES]
    assert before[WAL_HEAD_BYTES:] == after[WAL_HEAD_BYTES:]
    assert recover(image(tmp_path), tmp_path / "copy").loaded.hard_state == HardState(1, "n1")


# --- a term and its entries ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["an append of a new term", "two batches at once", "an append after a restart"]
)
def test_no_entry_is_on_disk_before_its_term_is(name: str, images: Images, tmp_path: Path) -> None:
    """RAFT.md scenario 28: both are in one transaction, so no power loss parts them."""
    for files in torn(*images[name]):
        loaded = recover(files, tmp_path).loaded
        assert max(entry.term for entry in loaded.entries or entries_of([0])) <= (
            loaded.hard_state.term
        )


def append(terms: list[int], *, prev: tuple[int, int] = (0, 0), sender: str = "n1") -> Append:
    return Append(
        sender=sender,
        receiver="n2",
        term=terms[-1],
        prev_index=prev[0],
        prev_term=prev[1],
        entries=tuple(entries_of(terms, prev[0] + 1)),
        commit=0,
    )


def test_a_follower_writes_a_new_term_with_its_entries() -> None:
    """RAFT.md scenario 28: one batch, which the store writes whole or not at all."""
    cluster = Cluster()
    effects = cluster.receive(append([1, 3]))
    assert effects.persist == WriteBatch(tuple(entries_of([1, 3])), HardState(3))


def test_a_leader_writes_its_term_before_its_entries() -> None:
    """RAFT.md scenario 28: it has voted for itself before it can append."""
    cluster = Cluster()
    cluster.slow = {"n1"}
    written: list[WriteBatch] = []
    cluster.now = 1.1
    cluster.step("n1")
    for _ in range(3):
        written += [batch for _, batch in cluster.unwritten["n1"]]
        cluster.persist("n1")
        cluster.deliver()
    assert cluster["n1"].role is Role.LEADER
    no_op = Entry(1, 1, EntryKind.NO_OP, b"")
    assert written == [WriteBatch(hard_state=HardState(1, "n1")), WriteBatch((no_op,))]


# --- truncation ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES[NAMES.index("a truncation") + 1 :])
def test_truncated_entries_never_come_back(name: str, images: Images, tmp_path: Path) -> None:
    """RAFT.md scenario 29: whatever is lost later; 4 to 8 of the terms 1 and 2 are gone."""
    for files in torn(*images[name]):
        loaded = recover(files, tmp_path).loaded
        assert [e for e in loaded.entries if e.index >= 4 and e.term <= 2] == []


def test_the_names_of_new_files_are_on_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 29: a file whose directory was not synced may be gone after a crash."""
    folder = tmp_path / "data"
    synced: list[set[str]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            synced.append({path.name for path in folder.iterdir()})
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    SqliteStorage(folder, "n1").close()
    assert len(synced) == 1
    assert synced[0] >= {"broker.db", "broker.db-wal", "broker.journal"}


def test_the_names_of_new_folders_are_on_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 29: a power loss could take the whole store with them."""
    synced: list[tuple[Path, list[str]]] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            synced.append((path, sorted(entry.name for entry in path.iterdir())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.chdir(tmp_path)
    for start, made in ((tmp_path, "a/b/c"), (Path(), "d/e/f")):
        SqliteStorage(start / made, "n1").close()
        first, second, _ = Path(made).parts
        assert (tmp_path / first / second, [Path(made).name]) in synced
        assert (tmp_path / first, [second]) in synced
        assert any(path == tmp_path and first in names for path, names in synced)
    synced.clear()
    SqliteStorage(tmp_path / "a/b/c", "n1").close()
    assert {path for path, _ in synced} == {tmp_path / "a/b/c"}, "no folder was made"


def test_what_a_killed_process_left_is_on_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAFT.md scenario 25: it died between the write and the barrier; then it may be lost yet."""
    storage = SqliteStorage(tmp_path / "first", "n1")
    storage.write(WriteBatch(hard_state=HardState(7, "n2")))
    folder = put(image(tmp_path / "first"), tmp_path / "second")
    storage.close()
    log = (folder / "broker.db-wal").stat()
    synced: list[bool] = []
    fsync, connect = os.fsync, sqlite3.connect

    def watch(descriptor: int) -> None:
        synced.append(os.path.samestat(os.fstat(descriptor), log))
        fsync(descriptor)

    def check(*arguments: Any, **options: Any) -> sqlite3.Connection:
        assert synced == [True]
        return connect(*arguments, **options)

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(sqlite3, "connect", check)
    storage = SqliteStorage(folder, "n1")
    assert storage.load().hard_state == HardState(7, "n2")
    storage.close()


# --- a disk that fails --------------------------------------------------------------------

FAILING = """
    import errno, sys
    from pathlib import Path
    from repl_broker.errors import StorageError
    from repl_broker.raft.log import HardState, Snapshot, WriteBatch
    from repl_broker.storage import SqliteStorage
    from tests.raft import seccomp
    from tests.raft.power_loss import entries

    acts = {
        "vote": lambda: storage.write(WriteBatch(hard_state=HardState(2, "n2"))),
        "append": lambda: storage.write(WriteBatch(entries(2, 5, 1))),
        "large append": lambda: storage.write(WriteBatch(entries(2, 5, 1, 30_000))),
        "truncation": lambda: storage.write(WriteBatch(entries(1, 1, 2), HardState(2), 1)),
        "snapshot": lambda: storage.save_snapshot(Snapshot(1, 1, b"state")),
        "install": lambda: storage.install(),
        "checkpoint": lambda: storage.tidy(),
    }
    folder, error, calls, act = sys.argv[1:]
    storage = SqliteStorage(Path(folder), "n1")
    storage.write(WriteBatch(entries(1, 1, 1), HardState(1, "n1")))
    seccomp.fail(getattr(errno, error), *calls.split())
    for again in (act, *acts):
        try:
            acts[again]()
        except StorageError as refusal:
            print(refusal)
        else:
            sys.exit(f"{again} should have been refused")
"""


@needs_seccomp
@pytest.mark.parametrize(
    ("error", "calls", "act"),
    [
        (error, calls, act)
        for error, calls in (
            ("EIO", "fsync fdatasync"),
            ("EIO", "pwrite64"),
            ("ENOSPC", "pwrite64"),
        )
        for act in ("vote", "append", "large append", "truncation", "snapshot", "checkpoint")
        # The journal needs no fsync: its write returns when all is on the disk, or fails.
        if (calls, act) != ("fsync fdatasync", "append")
    ],
)
def test_after_a_failed_write_the_store_refuses_everything(
    act: str, error: str, calls: str, tmp_path: Path
) -> None:
    """RAFT.md scenario 27: nothing is reported written, then or later; what was, is there."""
    command = [sys.executable, "-c", textwrap.dedent(FAILING), str(tmp_path), error, calls, act]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (told,) = set(done.stdout.splitlines())
    assert "failed to write" in told
    storage = SqliteStorage(tmp_path, "n1")
    loaded = storage.load()
    storage.close()
    # The write that failed may be there or not; nobody heard of it.
    assert loaded.hard_state in (HardState(1, "n1"), HardState(2, "n2"), HardState(2))
    assert [entry.index for entry in loaded.entries] in ([1], [1, 2, 3, 4, 5], [])


def pass_time(cluster: Cluster, name: str) -> None:
    """Nothing comes in, and no write ends."""
    for _ in range(50):
        cluster.now += 0.1
        cluster.step(name)


def test_a_vote_whose_write_failed_is_never_given() -> None:
    """RAFT.md scenario 27: the driver does not report the write, so the core has nothing to say."""
    cluster = Cluster()
    cluster.slow = {"n1"}
    request = Vote(sender="n2", receiver="n1", term=1, last_index=0, last_term=0, transfer=False)
    for _ in range(3):
        cluster.receive(request)
    pass_time(cluster, "n1")
    assert cluster.fly(VoteReply) == []


def test_an_append_whose_write_failed_is_never_acknowledged() -> None:
    """RAFT.md scenario 27: not when it comes again, not with the next one."""
    cluster = Cluster()
    cluster.slow = {"n2"}
    for rpc in (append([1]), append([1], prev=(1, 1)), append([1])):
        effects = cluster["n2"].step(cluster.now, [Receive(rpc)])
        assert effects.send == []
    pass_time(cluster, "n2")
    assert cluster.fly(AppendReply) == []


@pytest.mark.parametrize("news", ["heartbeat", "commit"])
def test_who_is_told_of_a_commit_beyond_its_log_has_lost_what_it_acknowledged(news: str) -> None:
    """RAFT.md scenario 27: its disk has lied; its leader knows."""
    cluster = Cluster()
    cluster.elect("n1")
    for _ in range(3):
        cluster.propose("n1")
    cluster.deliver()
    assert cluster["n2"].log.last_index == 4
    cluster.disks["n2"].write(WriteBatch(truncate_from=3))
    cluster.start("n2")
    heartbeat = Heartbeat(sender="n1", receiver="n2", term=1, commit=4, round=1)
    commit = Commit(sender="n1", receiver="n2", term=1, index=4)
    effects = cluster.receive(heartbeat if news == "heartbeat" else commit)
    assert effects.loss == Loss(acknowledged=4, last_index=2)


def test_whose_log_is_being_replaced_has_lost_nothing() -> None:
    """RAFT.md scenario 27: the leader may know that the snapshot has come."""
    cluster = Cluster(logs={"n1": [1] * 5}, terms={"n2": 1})
    cluster.elect("n1", "n1", "n3")
    cluster.compact("n1", 5)
    effects = cluster.receive(cluster.snapshot("n1", "n2"))
    assert effects.restore is not None
    rpc = Heartbeat(sender="n1", receiver="n2", term=cluster["n1"].term, commit=5, round=1)
    assert cluster.receive(rpc).loss is None
    assert cluster.install("n2", effects.restore).loss is None


def test_a_candidate_whose_write_failed_asks_nobody_and_has_not_voted() -> None:
    """RAFT.md scenario 27: even a vote that it never asked for does not make it leader."""
    cluster = Cluster()
    cluster.slow = {"n1"}
    cluster.now = 2.0
    cluster.step("n1")
    cluster.receive(PreVoteReply(sender="n2", receiver="n1", term=1, granted=True))
    assert cluster["n1"].role is Role.CANDIDATE
    cluster.receive(VoteReply(sender="n2", receiver="n1", term=1, granted=True))
    assert cluster["n1"].role is Role.CANDIDATE
    cluster.fly(PreVote)
    pass_time(cluster, "n1")
    assert cluster.flying == [], "it asks for no votes, and does not stand again"


@pytest.mark.parametrize("size", [1, 3])
def test_a_leader_whose_write_failed_does_not_count_itself(size: int) -> None:
    """RAFT.md scenarios 24, 27: alone it commits nothing, and with one other nothing, either."""
    cluster = Cluster(size)
    cluster.elect("n1")
    cluster.slow = {"n1"}
    cluster.propose("n1")
    cluster.fly(Append)
    if size == 3:
        reply = accepted(1, term=1)
        cluster.receive(reply)
    pass_time(cluster, "n1")
    assert cluster["n1"].committed_index == 1
