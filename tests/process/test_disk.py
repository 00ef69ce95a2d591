"""The bad disk of disk.c: each of its faults reaches the store, through SQLite and the journal."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from repl_broker.storage import SqliteStorage
from tests.process.disk import BadDisk, compiled
from tests.process.node import WAIT_SECONDS_MAX
from tests.required import need_program

pytestmark = pytest.mark.process

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("disk"), need_program("cc", "gcc", "clang"))


@pytest.fixture
def disk(library: Path, tmp_path: Path) -> BadDisk:
    """Of a store that has entries 1 to 3: in SQLite the first, in the journal the others."""
    made = BadDisk(library, tmp_path, tmp_path / "data")
    assert live(made, "put(1)", "vote(1)", "put(2)", "put(3)") == ""
    return made


PRELUDE: Final = """
import os, sys
from pathlib import Path
from repl_broker.raft.log import Entry, EntryKind, HardState, WriteBatch
from repl_broker.storage import SqliteStorage
from tests.process.disk import Control

store = SqliteStorage(Path(sys.argv[1]), "n1")
disk = Control(Path(os.environ["DISK_CONTROL"]))

def put(index, size=10):
    entry = Entry(index, 1, EntryKind.DATA, bytes(size))
    store.write(WriteBatch((entry,), None, None))

def vote(term):
    store.write(WriteBatch((), HardState(term, "n1"), None))
"""
JOURNAL: Final = "put(4)"
SQLITE: Final = "put(4, 1 << 20)"
either = pytest.mark.parametrize("step", [JOURNAL, SQLITE], ids=["journal", "sqlite"])


class Unlucky(random.Random):
    """By which all is lost that may be."""

    def random(self) -> float:
        return 0.0


def live(disk: BadDisk, *steps: str) -> str:
    """Open the store, do this, and be killed; what it said, if it came to another end."""
    script = "\n".join((PRELUDE, *steps, "os.kill(os.getpid(), 9)"))
    done = subprocess.run(
        [*disk.prefix, sys.executable, "-c", script, str(disk.data_dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == (1 if done.stderr else -signal.SIGKILL), done
    return done.stderr


def found(disk: BadDisk) -> tuple[list[int], int]:
    """The indexes of the log, and the term, as the next start finds them."""
    with closing(SqliteStorage(disk.data_dir, "n1")) as store:
        store.check_file()
        loaded = store.load()
    return [entry.index for entry in loaded.entries], loaded.hard_state.term


def test_a_healthy_disk_changes_nothing_and_sees_every_file_of_a_store(disk: BadDisk) -> None:
    names = {write.name for write in disk.writes()}

    assert {"broker.db", "broker.db-wal", "broker.journal"} <= names
    assert disk.lose_unsynced(random.Random(1)) == 0, "a store syncs what it has written"
    assert found(disk) == ([1, 2, 3], 1)
    assert disk.seen[2:] == (0, 0, 0, 0)


@either
def test_a_slow_disk_takes_its_time_at_each_sync(disk: BadDisk, step: str) -> None:
    before = disk.seen

    assert live(disk, "disk.set(slow_us=1000)", step) == ""

    syncs = disk.seen.syncs - before.syncs
    assert syncs >= 1
    assert disk.seen.slept_us >= 2 * 250, "before a sync, and after it"
    assert found(disk) == ([1, 2, 3, 4], 1)


@either
def test_what_was_not_synced_is_lost_with_the_power(disk: BadDisk, step: str) -> None:
    disk.forget()
    live(disk, "disk.set(fail_sync_in=1)", f"try: {step}\nexcept Exception: pass")

    assert disk.lose_unsynced(Unlucky()) > 0

    assert found(disk)[0] == [1, 2, 3]


@either
def test_a_disk_that_lies_loses_what_it_has_synced(disk: BadDisk, step: str) -> None:
    live(disk)  # the journal is moved at the start
    disk.forget()

    assert live(disk, "disk.set(lies=1)", "vote(2)", step) == "", "it is told that all is well"

    assert disk.seen.lied >= 2
    assert disk.lose_newest(1000) > 0
    assert found(disk) == ([1, 2, 3], 1)


def test_of_a_disk_that_lies_the_newest_may_be_lost_alone(disk: BadDisk) -> None:
    disk.forget()
    live(disk, "disk.set(lies=1)", "put(4)", "import time; time.sleep(0.2)", "put(5)")

    assert disk.lose_newest(0.1) == 1

    assert found(disk) == ([1, 2, 3, 4], 1)


def test_writes_behind_a_lost_one_may_be_kept(disk: BadDisk) -> None:
    data = disk.data_dir / "broker.journal"
    before = data.read_bytes()
    disk.forget()
    live(disk, "disk.set(lies=1)", "put(4)", "put(5)")
    after = data.read_bytes()

    seen = set()
    for seed in range(20):
        data.write_bytes(after)
        with keeping(disk):
            disk.lose_unsynced(random.Random(seed))
        seen.add(data.read_bytes())

    assert {before, after} < seen
    assert len(seen) == 4, "each by itself as well"


@either
@pytest.mark.parametrize("overwrites", [0, 1], ids=["what grows", "all"])
def test_a_full_disk_refuses_what_needs_room_and_takes_it_later(
    disk: BadDisk, step: str, overwrites: int
) -> None:
    said = live(disk, f"disk.set(room=100, overwrites={overwrites})", step)

    grows = overwrites or step == SQLITE  # the journal is as long as it will ever be
    assert ("StorageError" in said) == bool(grows), said
    assert bool(disk.seen.refused) == bool(grows)
    disk.heal()
    assert found(disk) == ([1, 2, 3] if grows else [1, 2, 3, 4], 1)


@either
@pytest.mark.parametrize("call", ["fail_write_in", "fail_sync_in"])
def test_a_disk_that_fails_once_has_the_store_refuse_all(
    disk: BadDisk, step: str, call: str
) -> None:
    said = live(disk, f"disk.set({call}=1)", f"try: {step}\nexcept Exception: put(9)")

    assert disk.seen.failed == 1
    assert "nothing more is acknowledged" in said
    assert found(disk)[0] in ([1, 2, 3], [1, 2, 3, 4]), "what failed may be there"


@contextmanager
def keeping(disk: BadDisk) -> Iterator[None]:
    """What can be taken back can be so again."""
    log = disk.undo.read_bytes()
    yield
    disk.undo.write_bytes(log)
