"""Whether a store is whole: looked at when a node starts, before anything rests on it.

    snapshot ──▶ state ──▶ live entries: each is there      below the snapshot
       └▶ index, term ──▶ log: each entry follows the one before, no term falls,
                          none is newer than the term that the node acknowledged

A checksum tells that a row is what was written. This tells that no row is missing, and
that all of them belong together: what a node says of its log when it votes, and what
it serves as history, is then what was agreed on. It costs what reading the state and
counting its entries does; their data is looked at when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from repl_broker.raft.log import Entry, Membership, Snapshot
from repl_broker.state import BrokerState
from repl_broker.storage import Loaded, Storage

__all__ = ["load_sound", "restored"]


def load_sound(storage: Storage) -> tuple[Loaded, BrokerState]:
    """What the store holds, and the state of its snapshot. Blocks. Raises StorageError."""
    loaded, state = storage.load(), BrokerState()
    if loaded.snapshot is not None:
        try:
            state = restored(loaded.snapshot)
        except ValueError as error:
            raise storage.unreadable(str(error)) from None
    fault = _fault_of(loaded)
    if fault is None and (missing := storage.missing(state.live_entries())) is not None:
        fault = f"entry {missing}, of which messages are retained, is not there"
    if fault is not None:
        raise storage.damaged(fault)
    return loaded, state


def restored(snapshot: Snapshot) -> BrokerState:
    """The state that a snapshot holds. Raises ValueError for another one, or none at all."""
    try:
        if snapshot.membership:
            Membership.decode(snapshot.membership)
    except ValueError as error:
        raise ValueError(f"the snapshot's members cannot be read ({error})") from None
    try:
        state = BrokerState.restore(snapshot.data)
        live = state.live_entries()
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001  bytes of somebody else's can fail in any way
        what = str(error) or type(error).__name__
        raise ValueError(f"the snapshot is none of this version: {what}") from None
    if state.applied_index != snapshot.index:
        raise ValueError(f"the snapshot at {snapshot.index} has the state at {state.applied_index}")
    if live and live[-1] > snapshot.index:
        raise ValueError(f"the snapshot at {snapshot.index} refers to entry {live[-1]}")
    return state


def _fault_of(loaded: Loaded) -> str | None:
    index, term = 0, 0
    if loaded.snapshot is not None:
        index, term = loaded.snapshot.index, loaded.snapshot.term
    return _fault_in(loaded.entries, index, term, loaded.hard_state.term)


def _fault_in(entries: Sequence[Entry], index: int, term: int, newest_term: int) -> str | None:
    """What does not fit behind the entry at ``index``, of ``term``."""
    for entry in entries:
        if entry.index != index + 1:
            return f"entry {entry.index} stands behind entry {index}"
        if entry.term < term:
            return f"entry {entry.index}, of term {entry.term}, stands behind one of term {term}"
        index, term = entry.index, entry.term
    if term > newest_term:
        return f"its term is {newest_term}, and that of entry {index} is {term}"
    return None
