"""A node of a cluster that lost its majority becomes the whole of a new one."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from repl_broker.command import Publish
from repl_broker.errors import ConfigError, StorageError, StoreLockedError
from repl_broker.founding import (
    DISOWNED,
    FOUNDINGS,
    Rebuilt,
    Recovery,
    former_addresses,
    found,
    rebuilt_of,
    standing_of,
)
from repl_broker.raft.core import Core, CoreOptions, Persisted, Role
from repl_broker.raft.log import Entry, EntryKind, HardState, Member, Membership, SnapshotMark
from repl_broker.state import Published
from repl_broker.storage import SqliteStorage
from tests.stores import START_MS, THREE, make_store, member, serve_once


def recover(folder: Path) -> dict[str, object]:
    with Recovery(folder) as recovery:
        return recovery.carry_out(START_MS)


def reopened(folder: Path, node_id: str = "n1") -> SqliteStorage:
    storage = SqliteStorage(folder, node_id)
    storage.close()  # what is read below was read at opening
    return storage


def newest_entry(folder: Path) -> tuple[HardState, Entry]:
    storage = SqliteStorage(folder, "n1")
    loaded = storage.load()
    storage.close()
    return loaded.hard_state, loaded.entries[-1]


@pytest.fixture
def survivor(tmp_path: Path) -> Path:
    """The folder of n1, one of three, with ten messages."""
    folder = tmp_path / "data"
    make_store(folder).close()
    return folder


# --- what it does to the store ---


def test_the_node_is_the_only_voter_from_a_new_term_on(survivor: Path) -> None:
    identity = reopened(survivor).identity
    recover(survivor)
    hard_state, entry = newest_entry(survivor)
    assert hard_state == HardState(4, None), "the store had seen term 3"
    assert (entry.index, entry.term, entry.kind) == (13, 4, EntryKind.MEMBERSHIP)
    me = replace(member(1), incarnation=identity.incarnation)
    assert Membership.decode(entry.data) == Membership((me,), ("2" * 16, "3" * 16))


def test_a_log_that_is_of_a_higher_term_than_the_hard_state_counts(tmp_path: Path) -> None:
    more = [Entry(13, 8, EntryKind.NO_OP, b"")]
    make_store(tmp_path / "data", more=more, hard_state=HardState(7, None)).close()
    recover(tmp_path / "data")
    hard_state, entry = newest_entry(tmp_path / "data")
    assert (hard_state.term, entry.term, entry.index) == (9, 9, 14)


def test_cluster_id_and_epoch_are_new_and_the_rest_of_the_identity_stays(survivor: Path) -> None:
    old = reopened(survivor).identity
    recover(survivor)
    new = reopened(survivor).identity
    assert new.cluster_id != old.cluster_id
    assert new.epoch != old.epoch
    assert replace(new, cluster_id=old.cluster_id, epoch=old.epoch) == old


def test_the_store_keeps_a_record_of_every_recovery(survivor: Path) -> None:
    old = reopened(survivor).identity
    first = recover(survivor)
    second = recover(survivor)
    storage = SqliteStorage(survivor, "n1")
    assert storage.note(FOUNDINGS) == [first, second]
    storage.close()
    assert first["how"] == "recover"
    assert first["time"] == "2027-01-15T08:00:00.000Z"
    was, now = first["old"], first["new"]
    assert isinstance(was, dict)
    assert (was["cluster_id"], was["epoch"]) == (old.cluster_id, old.epoch)
    assert (was["last_index"], was["last_term"], was["term"]) == (12, 1, 3)
    assert [(m["id"], m["role"]) for m in was["members"]] == [(f"n{n}", "voter") for n in (1, 2, 3)]
    assert second["old"] == now


def test_what_a_peer_was_sending_is_forgotten(tmp_path: Path) -> None:
    storage = make_store(tmp_path / "data")
    loaded = storage.load()
    assert loaded.snapshot is not None
    storage.begin_install(loaded.snapshot)
    storage.stage(loaded.entries)
    storage.close()
    recover(tmp_path / "data")
    connection = sqlite3.connect(tmp_path / "data" / "broker.db")
    for table in ("staged_log", "staged_snapshot"):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    connection.close()


def test_a_learner_that_is_left_becomes_a_voter(tmp_path: Path) -> None:
    membership = THREE.with_member(member(4, voter=False))
    make_store(tmp_path / "data", node_id="n4", membership=membership).close()
    recover(tmp_path / "data")
    storage = SqliteStorage(tmp_path / "data", "n4")
    found = Membership.decode(storage.load().entries[-1].data)
    storage.close()
    assert found.voters == {"n4"}


def test_looking_changes_nothing(survivor: Path) -> None:
    storage = SqliteStorage(survivor, "n1")
    before = (storage.identity, storage.load())
    storage.close()
    with Recovery(survivor) as recovery:
        assert recovery.standing.last_index == 12
        assert recovery.standing.membership == THREE
    storage = SqliteStorage(survivor, "n1")
    assert (storage.identity, storage.load(), storage.note(FOUNDINGS)) == (*before, None)
    storage.close()


# --- what follows from it ---


@pytest.mark.parametrize("snapshot_at", [None, 6, 12])
def test_a_core_over_the_recovered_store_leads_and_commits_everything(
    tmp_path: Path, snapshot_at: int | None
) -> None:
    make_store(tmp_path / "data", snapshot_at=snapshot_at).close()
    recover(tmp_path / "data")
    storage = SqliteStorage(tmp_path / "data", "n1")
    loaded = storage.load()
    storage.close()
    mark = SnapshotMark()
    if loaded.snapshot is not None:
        membership = Membership.decode(loaded.snapshot.membership)
        mark = SnapshotMark(loaded.snapshot.index, loaded.snapshot.term, membership)
    core = Core(
        "n1",
        CoreOptions(),
        random.Random(1),
        0.0,
        hard_state=loaded.hard_state,
        mark=mark,
        entries=loaded.entries,
    )
    committed, events = [], []
    for _ in range(5):
        effects = core.step(0.0, events)
        committed += effects.committed
        events = [Persisted(effects.persist_number)] if effects.persist else []
    assert core.role is Role.LEADER
    assert core.progress.keys() == {"n1"}, "the others are not spoken to any more"
    assert [e.index for e in committed] == list(range((snapshot_at or 0) + 1, 15))


async def test_a_recovered_node_has_every_message_and_takes_more(survivor: Path) -> None:
    recover(survivor)
    found, outcomes = await serve_once(survivor, "n1", Publish("chat", (b"new",), None, b""))
    assert found == [b"%d" % i for i in range(10)] + [b"new"]
    assert isinstance(outcomes[0], Published)
    assert outcomes[0].first_seq == 11


async def test_keys_of_before_are_still_recognised(survivor: Path) -> None:
    recover(survivor)
    _, outcomes = await serve_once(survivor, "n1", Publish("chat", (b"3",), "k3", b"digest"))
    assert [(o.first_seq, o.replayed) for o in outcomes] == [(4, True)]


async def test_a_node_that_ran_after_a_recovery_can_be_recovered_again(survivor: Path) -> None:
    recover(survivor)
    await serve_once(survivor, "n1", Publish("chat", (b"new",), None, b""))
    recover(survivor)
    found, _ = await serve_once(survivor, "n1")
    assert found[-1] == b"new"


def test_a_store_that_takes_no_part_is_made_a_cluster_of_its_own_whatever_lives(
    survivor: Path,
) -> None:
    """Restoring or recovering it again gave the same: the old addresses were asked again."""
    storage = SqliteStorage(survivor, "n1")
    alone = Membership((Member("n1", "", "", voter=True),))  # as a restored one, before it served
    standing = standing_of(storage.identity, storage.load())
    found(storage, standing, storage.identity, alone, how="restore", now_ms=START_MS)
    storage.close()
    with pytest.raises(ConfigError, match="it runs alone"):
        Recovery(survivor)
    storage = SqliteStorage(survivor, "n1")
    storage.write_notes({DISOWNED: "the cluster lives"})
    storage.close()
    with Recovery(survivor) as recovery:
        recovery.carry_out(START_MS, apart=True)
    storage = SqliteStorage(survivor, "n1")
    assert storage.note(DISOWNED) is None
    foundings = storage.note(FOUNDINGS)
    storage.close()
    assert rebuilt_of(foundings, member(1)) == Rebuilt(14, True, ())


def test_what_a_record_says_of_before_there_was_a_choice_still_counts() -> None:
    old = {"members": [{"id": f"n{n}", "raft_address": f"n{n}:4081"} for n in (1, 2)]}
    me = replace(member(1), raft_address="n1:4081")
    record: dict[str, object] = {"old": old, "new": {"last_index": 13}}
    assert rebuilt_of([record], me) == Rebuilt(13, False, ("n2:4081",))
    assert rebuilt_of([record | {"apart": True}], me) == Rebuilt(13, True, ())
    assert rebuilt_of(None, me) is None


# --- who is refused ---


@pytest.mark.parametrize(
    "membership", [None, Membership((Member("n1", "", "", voter=True),))], ids=["none", "alone"]
)
def test_a_node_that_never_was_in_a_cluster_is_refused(
    tmp_path: Path, membership: Membership | None
) -> None:
    make_store(tmp_path / "data", membership=membership).close()
    with pytest.raises(ConfigError, match="not part of a cluster: it runs alone"):
        Recovery(tmp_path / "data")
    SqliteStorage(tmp_path / "data", "n1").close()  # the lock is free again


def test_a_node_that_has_joined_and_got_nothing_yet_is_refused(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "data", "n4")
    storage.adopt("c" * 32, "0badcafe")
    storage.close()
    with pytest.raises(ConfigError, match="has nothing of its log yet"):
        Recovery(tmp_path / "data")


def test_a_node_that_was_removed_is_refused(tmp_path: Path) -> None:
    removed = Entry(13, 1, EntryKind.MEMBERSHIP, THREE.without("n1").encode())
    make_store(tmp_path / "data", more=[removed]).close()
    with pytest.raises(ConfigError, match=r"no member of its cluster any more \(members: n2, n3\)"):
        Recovery(tmp_path / "data")


def test_a_node_that_runs_is_refused(tmp_path: Path) -> None:
    storage = make_store(tmp_path / "data")
    with pytest.raises(StoreLockedError, match="in use by a running node"):
        Recovery(tmp_path / "data")
    storage.close()


def test_a_folder_without_a_store_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no store in the data directory"):
        Recovery(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_is_refused(survivor: Path) -> None:
    connection = sqlite3.connect(survivor / "broker.db")
    with connection:
        connection.execute("UPDATE log SET data = x'00' WHERE idx = 9")
    connection.close()
    with pytest.raises(StorageError, match="entry 9"):
        Recovery(survivor)


def test_a_recovery_that_fails_to_write_changes_nothing(
    survivor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = reopened(survivor).identity

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with Recovery(survivor) as recovery:
        monkeypatch.setattr(SqliteStorage, "_put_notes", full)
        with pytest.raises(StorageError, match="failed to write: database or disk is full"):
            recovery.carry_out(START_MS)
    assert reopened(survivor).identity == before
    assert newest_entry(survivor)[1].index == 12


def test_the_others_are_asked_at_their_addresses_only_by_a_store_that_is_at_home() -> None:
    """A backup that is tried out elsewhere leaves the living cluster alone, and serves."""
    old = {"members": [{"id": f"n{n}", "raft_address": f"n{n}:4081"} for n in (1, 2, 3)]}
    foundings = [{"old": {"members": []}}, {"old": old}]
    me = replace(member(1), raft_address="n1:4081")
    assert former_addresses(foundings, me) == ["n2:4081", "n3:4081"]
    assert former_addresses(foundings, replace(me, raft_address="staging:4081")) == []
    assert former_addresses(foundings, replace(me, id="n9")) == []
    assert former_addresses(None, me) == []
