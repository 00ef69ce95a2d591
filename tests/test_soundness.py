"""A store that is not whole does not start, and says what is wrong and where."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from repl_broker.errors import StorageError
from repl_broker.raft.log import Entry, HardState, Snapshot, WriteBatch
from repl_broker.soundness import load_sound, restored
from repl_broker.state import BrokerState
from repl_broker.storage import STORE_NAME, SqliteStorage, _checksum, _snapshot_checksum
from tests.stores import THREE, log_of, make_store, message, snapshot_of

LAST = 12  # of the log that ``make_store`` makes: a membership, a leader's first, 10 messages
SNAPSHOT = 6  # … and of its snapshot


def test_a_store_as_a_node_leaves_it_is_sound(tmp_path: Path) -> None:
    storage = make_store(tmp_path)
    loaded, state = load_sound(storage)
    assert state.applied_index == SNAPSHOT
    assert [e.index for e in loaded.entries] == [*range(SNAPSHOT + 1, LAST + 1)]
    storage.close()


def rows(folder: Path, statement: str, *values: object) -> None:
    """As if something had changed the file that knows of checksums."""
    with sqlite3.connect(folder / STORE_NAME) as connection:
        assert connection.execute(statement, values).rowcount > 0
    connection.close()


def without(index: int) -> Callable[[Path], None]:
    return lambda folder: rows(folder, "DELETE FROM log WHERE idx = ?", index)


def of_term(index: int, term: int) -> Callable[[Path], None]:
    """The entry is one of another leader's."""

    def change(folder: Path) -> None:
        storage = SqliteStorage(folder, "n1")
        data = storage.read([index])[index]
        storage.close()
        with_term = message(index, b"?", term=term)
        changed = Entry(index, term, with_term.kind, data)
        rows(
            folder,
            "UPDATE log SET term = ?, kind = ?, checksum = ? WHERE idx = ?",
            *(term, int(changed.kind), _checksum(changed), index),
        )

    return change


def with_snapshot(change: Callable[[Snapshot], Snapshot]) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        found = snapshot_of(log_of(10, THREE), SNAPSHOT, THREE)
        rows(folder, "DELETE FROM snapshot")
        new = change(found)
        row = (new.index, new.term, new.data, new.membership, _snapshot_checksum(new))
        rows(folder, "INSERT INTO snapshot VALUES (1, ?, ?, ?, ?, ?)", *row)

    return put


def with_hard_state(term: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        storage = SqliteStorage(folder, "n1")
        with storage._writing():
            storage._put_meta(term=term, vote=None)
        storage.close()

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (without(7), "what should precede entry 8"),
        (without(9), "what should precede entry 10"),
        (without(3), "entry 3, of which messages are retained, is not there"),
        (without(5), "entry 5, of which messages are retained"),
        (without(6), "entry 6, of which messages are retained"),
        (of_term(7, 2), "entry 8, of term 1, stands behind one of term 2"),
        (of_term(7, 0), "entry 7, of term 0, stands behind one of term 1"),
        (of_term(12, 4), "its term is 3, and that of entry 12 is 4"),
        (with_hard_state(0), "its term is 0, and that of entry 12 is 1"),
        (
            with_snapshot(lambda s: replace(s, index=5)),
            "the snapshot at 5 has the state at 6",
        ),
        (
            with_snapshot(lambda s: replace(s, index=9)),
            "the snapshot at 9 has the state at 6",
        ),
        (
            with_snapshot(lambda s: replace(s, term=2)),
            "entry 7, of term 1, stands behind one of term 2",
        ),
        (with_snapshot(lambda s: replace(s, data=s.data[:-1])), "cannot be read by this version"),
        (with_snapshot(lambda s: replace(s, data=b"")), "cannot be read by this version"),
        (with_snapshot(lambda s: replace(s, data=b"\x90")), "cannot be read by this version"),
        (with_snapshot(lambda s: replace(s, data=b"\xc0")), "the snapshot is none of this version"),
        (with_snapshot(lambda s: replace(s, membership=b"\xc0")), "cannot be read by this version"),
        (
            # Saved ahead of the log that it covers, as a crash left it.
            lambda folder: rows(folder, "DELETE FROM log WHERE idx > 4"),
            "entry 5, of which messages are retained",
        ),
    ],
)
def test_what_is_not_whole_is_told(
    tmp_path: Path, change: Callable[[Path], None], what: str
) -> None:
    make_store(tmp_path).close()
    change(tmp_path)
    storage = SqliteStorage(tmp_path, "n1")
    with pytest.raises(StorageError, match=what) as told:
        load_sound(storage)
    storage.close()
    assert str(told.value).startswith(f"the store '{tmp_path}/broker.db' ")
    assert "\n" not in str(told.value)


def test_what_nothing_is_retained_of_need_not_be_there(tmp_path: Path) -> None:
    storage = make_store(tmp_path)
    storage.drop([1, 2])  # a membership, and a leader's first
    assert load_sound(storage)[1].live_entries() == [3, 4, 5, 6]
    storage.close()


def test_the_first_of_many_that_are_missing_is_found_in_both_places_of_an_entry(
    tmp_path: Path,
) -> None:
    """Some of the newest are in the journal alone."""
    storage = make_store(tmp_path, snapshot_at=None, hard_state=HardState(3, None))
    assert storage.missing([]) is None
    assert storage.missing([*range(1, 13)]) is None
    storage.drop([4, 5, 9])
    assert storage.missing([*range(1, 13)]) == 4
    assert storage.missing([5, 6]) == 5
    assert storage.missing([6, 7, 8, 10, 12]) is None
    assert storage.missing([6, 7, 8, 9, 12]) == 9
    storage.write(WriteBatch((message(13, b"new", term=3),)))
    assert storage._pending
    assert storage.missing([10, 12, 13]) is None
    assert storage.missing([12, 13, 14]) == 14
    storage.close()


def test_a_state_that_refers_beyond_its_place_is_told() -> None:
    """Whoever made the bytes: nothing but ValueError comes out."""
    found = snapshot_of(log_of(3, None), 3, None)
    assert restored(found).applied_index == 3
    for at in range(len(found.data)):
        for flipped in (found.data[at] ^ 0x80, found.data[at] ^ 1):
            data = found.data[:at] + bytes([flipped]) + found.data[at + 1 :]
            try:
                state = restored(replace(found, data=data))
            except ValueError:
                continue
            assert isinstance(state, BrokerState)
            assert state.applied_index == 3
