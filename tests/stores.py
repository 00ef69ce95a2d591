"""Data directories as a node of a cluster leaves them, written without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from repl_broker.command import Publish, Retention, Settings
from repl_broker.message import FilterSet
from repl_broker.raft.log import (
    Entry,
    EntryKind,
    HardState,
    Member,
    Membership,
    Snapshot,
    WriteBatch,
)
from repl_broker.replica import Replica
from repl_broker.state import BrokerState
from repl_broker.storage import SqliteStorage
from repl_broker.wire import decode_entry, encode_command, encode_entry

START_MS = 1_800_000_000_000
SETTINGS = Settings(True, Retention(10_000, 86_400, 64 << 20), 100_000, 86_400)


def member(number: int, *, voter: bool = True) -> Member:
    """``n2`` at 10.0.0.2, whose data has the incarnation 2222…"""
    return Member(
        f"n{number}",
        f"10.0.0.{number}:4081",
        f"http://10.0.0.{number}:4080",
        voter,
        f"{number}" * 16,
    )


THREE = Membership(tuple(member(n) for n in (1, 2, 3)))


def message(index: int, data: bytes, key: str | None = None, term: int = 1) -> Entry:
    command = Publish("chat", (data,), key, b"digest" if key else b"")
    return Entry(
        index, term, EntryKind.DATA, encode_entry(START_MS + index, [encode_command(command)])
    )


def log_of(count: int, membership: Membership | None, term: int = 1) -> list[Entry]:
    """A membership, if there is one, then a leader's first entry and ``count`` messages."""
    entries = []
    if membership is not None:
        entries.append(Entry(1, term, EntryKind.MEMBERSHIP, membership.encode()))
    entries.append(Entry(len(entries) + 1, term, EntryKind.NO_OP, b""))
    start = len(entries) + 1
    entries += [message(start + i, b"%d" % i, f"k{i}", term) for i in range(count)]
    return entries


def snapshot_of(entries: list[Entry], index: int, membership: Membership | None) -> Snapshot:
    state = BrokerState()
    for entry in entries[:index]:
        is_data = entry.kind is EntryKind.DATA
        state.apply(entry.index, *(decode_entry(entry.data) if is_data else (0, [])))
    encoded = membership.encode() if membership else b""
    return Snapshot(index, entries[index - 1].term, state.snapshot(), encoded)


def make_store(
    folder: Path,
    *,
    node_id: str = "n1",
    messages: int = 10,
    membership: Membership | None = THREE,
    snapshot_at: int | None = 6,
    hard_state: HardState = HardState(3, "n2"),  # noqa: B008  (it is frozen)
    more: list[Entry] | None = None,
) -> SqliteStorage:
    """An open store whose snapshot covers a part of its log, none of which is dropped."""
    storage = SqliteStorage(folder, node_id)
    entries = log_of(messages, membership) + (more or [])
    storage.write(WriteBatch(tuple(entries), hard_state))
    if snapshot_at is not None:
        storage.save_snapshot(snapshot_of(entries, snapshot_at, membership))
    return storage


async def in_place(
    call: Callable[..., Any], *arguments: Any, limiter: trio.CapacityLimiter | None = None
) -> Any:
    """Instead of a thread."""
    return call(*arguments)


async def serve_once(
    folder: Path, node_id: str, *publishes: Publish
) -> tuple[list[bytes], list[Any]]:
    """Start the node's replica, publish, and read: the messages of ``chat``, and the outcomes."""
    storage = SqliteStorage(folder, node_id)
    replica = Replica(storage, SETTINGS, now_ms=lambda: START_MS + 1000, in_thread=in_place)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                await nursery.start(replica.run)
                outcomes = [await replica.propose(command) for command in publishes]
                locations = replica.state.scan(FilterSet(["chat"]), 0, 1_000_000)
                found = [m.data for m in await replica.fetch(locations)]
                nursery.cancel_scope.cancel()
    finally:
        await replica.close()
        storage.close()
    return found, outcomes
