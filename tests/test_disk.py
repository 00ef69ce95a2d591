"""The one way to a store: its order, what is not run any more, and its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repl_broker.disk import DISCARD_BYTES, Disk
from repl_broker.errors import StorageError
from repl_broker.parts import ROW_BYTES_MAX, parts_of
from repl_broker.raft.log import Entry, EntryKind, HardState, Snapshot, WriteBatch
from repl_broker.storage import Sums, sums_of
from tests import nodes
from tests.nodes import Gate


def entry(index: int, term: int = 1) -> Entry:
    return Entry(index, term, EntryKind.DATA, b"entry %d of %d" % (index, term))


def snapshot(index: int) -> Snapshot:
    return Snapshot(index, 1, b"state")


class Store(nodes.Disk):
    """Keeps account of what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []

    def write(self, *batches: WriteBatch) -> None:
        self.did.append(f"write {[[e.index for e in batch.entries] for batch in batches]}")
        super().write(*batches)

    def save_snapshot(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        self.did.append(f"snapshot {snapshot.index}")
        super().save_snapshot(snapshot)

    def drop(self, indexes: Sequence[int], bytes_max: float = math.inf) -> int:
        self.did.append(f"drop {indexes}")
        return super().drop(indexes, bytes_max)

    def install(self) -> None:
        self.did.append("install")
        super().install()


class Queue:
    """A disk whose writer can be kept waiting."""

    def __init__(self) -> None:
        self.store = Store()
        self.gate = Gate()
        self.told: list[str] = []
        self.disk = Disk(
            self.store,
            self.gate,
            self.at_once,
            on_durable=lambda number, size: self.told.append(f"durable {number}: {size}"),
            on_failed=lambda error: self.told.append(f"failed: {error}"),
        )
        self.number = 0

    async def at_once(self, call: object, *arguments: object) -> object:
        assert callable(call)
        await trio.lowlevel.checkpoint()
        return call(*arguments)

    def append(self, *indexes: int, term: int = 1, truncate_from: int | None = None) -> None:
        self.number += 1
        entries = tuple(entry(index, term) for index in indexes)
        self.disk.append(self.number, WriteBatch(entries, None, truncate_from))

    async def stage(self, index: int) -> None:
        await self.disk.begin_install(snapshot(index))
        await self.disk.stage([entry(index)])


async def test_what_was_decided_first_is_done_first(autojump_clock: MockClock) -> None:
    queue = Queue()
    queue.append(1)
    queue.gate.shut()
    async with trio.open_nursery() as nursery:
        queue.append(2)
        queue.append(3)
        queue.append(4)
        nursery.start_soon(queue.disk.save_snapshot, snapshot(4), 0)
        await wait_all_tasks_blocked()
        queue.append(5)
        queue.append(6)
        nursery.start_soon(queue.disk.drop, [1], 0)
        await wait_all_tasks_blocked()
        assert (queue.disk.asked, queue.disk.durable, queue.disk.durable_index) == (6, 1, 1)
        queue.gate.open()
    assert queue.store.did == [
        "write [[1]]",
        "write [[2]]",
        "write [[3], [4]]",
        "snapshot 4",
        "write [[5], [6]]",
        "drop [1]",
    ]
    assert queue.told == ["durable 1: 12", "durable 2: 12", "durable 4: 24", "durable 6: 24"]
    assert (queue.disk.asked, queue.disk.durable, queue.disk.durable_index) == (6, 6, 6)


async def test_no_snapshot_is_saved_over_a_log_that_does_not_reach_it(
    autojump_clock: MockClock,
) -> None:
    """Whoever asks: it would refer to what a crash leaves nowhere."""
    queue = Queue()
    queue.append(1, 2, 3)
    queue.append(truncate_from=3)
    with pytest.raises(StorageError, match="entry 3 was to be saved over a log that ends at 2"):
        await queue.disk.save_snapshot(snapshot(3), 0)
    assert queue.store.snapshot is None
    with pytest.raises(StorageError, match="entry 3"):
        await queue.disk.save_snapshot(snapshot(2), 0)


async def test_what_was_planned_for_the_log_before_is_not_run(autojump_clock: MockClock) -> None:
    queue = Queue()
    queue.append(1, 2, 3)
    await queue.stage(9)
    queue.gate.shut()
    async with trio.open_nursery() as nursery:
        queue.disk.install(9, lambda: queue.told.append("switched"))
        nursery.start_soon(queue.disk.save_snapshot, snapshot(3), 0)
        nursery.start_soon(queue.disk.drop, [1, 2], 0)
        nursery.start_soon(queue.disk.replace, {3: b""}, 0)
        nursery.start_soon(queue.disk.drop_others, 3, [3], 0)
        await wait_all_tasks_blocked()
        assert queue.disk.is_installing
        queue.gate.open()
    assert queue.store.did == ["write [[1, 2, 3]]", "install"]
    assert queue.store.snapshot == snapshot(9)
    assert [*queue.store.entries] == [9]
    assert queue.told[-1] == "switched"
    assert (queue.disk.generation, queue.disk.durable_index) == (1, 9)
    await queue.disk.drop([9], 1)
    assert queue.store.did[-1] == "drop [9]"


async def test_a_write_waits_for_one_large_entry_that_is_dropped_and_not_for_all(
    autojump_clock: MockClock,
) -> None:
    queue = Queue()
    large = b"x" * (DISCARD_BYTES // 2 + 1)
    entries = tuple(Entry(i, 1, EntryKind.DATA, large) for i in (1, 2, 3, 4, 5, 6))
    queue.disk.append(1, WriteBatch(entries))
    queue.store.did.clear()
    queue.gate.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.disk.drop, [1, 2], 0)
        await wait_all_tasks_blocked()
        queue.append(7)
        queue.gate.open()
    assert queue.store.did == ["drop [1, 2]", "write [[7]]", "drop [2]"]
    queue.store.did.clear()
    queue.gate.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.disk.drop_others, 5, [5], 0)
        await wait_all_tasks_blocked()
        queue.append(8)
        queue.gate.open()
    assert queue.store.did == ["drop [3, 4]", "write [[8]]", "drop [4]"]
    assert [*queue.store.entries] == [5, 6, 7, 8]


async def test_a_write_waits_for_one_part_of_a_state_and_its_sums_are_made_beside(
    autojump_clock: MockClock,
) -> None:
    class Summed(Store):
        def save_part(self, number: int, data: bytes) -> None:
            self.did.append(f"part {number}: {len(data)}")

        def save_snapshot(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
            assert sums == sums_of(snapshot), "it would be summed while a write waits"
            super().save_snapshot(snapshot)

    queue = Queue()
    store = queue.store = queue.disk._storage = Summed()
    queue.append(1)
    large = Snapshot(1, 1, b"x" * (ROW_BYTES_MAX + 1))
    queue.gate.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.disk.save_snapshot, large, 0)
        await wait_all_tasks_blocked()
        queue.append(2)
        queue.gate.open()
    parts = [f"part {number}: {len(part)}" for number, part in enumerate(parts_of(large.data))]
    assert store.did[1:] == [parts[0], "write [[2]]", *parts[1:], "snapshot 1"]
    assert len(parts) > 1


async def test_memory_and_store_switch_in_one_moment_for_who_asks_whether_they_did(
    autojump_clock: MockClock,
) -> None:
    queue = Queue()
    state = "old"
    seen: list[tuple[int, str]] = []

    def switch() -> None:
        nonlocal state
        state = "new"

    async def look() -> None:
        seen.append((await queue.disk.settled(), state))

    await look()
    await queue.stage(9)
    queue.gate.shut()
    async with trio.open_nursery() as nursery:
        queue.disk.install(9, switch)
        for _ in range(3):
            nursery.start_soon(look)
        await wait_all_tasks_blocked()
        assert len(seen) == 1
        queue.gate.open()
    assert seen == [(0, "old"), *[(1, "new")] * 3]


async def test_an_entry_that_another_is_about_to_replace_is_not_read(
    autojump_clock: MockClock,
) -> None:
    """What is applied may wait for this disk, which still has what was never committed."""
    queue = Queue()
    queue.append(1, 2, 3)
    queue.gate.shut()
    queue.append(2, 3, term=2, truncate_from=2)
    queue.append(4, term=2)
    found: list[object] = []

    async def read(*indexes: int) -> None:
        found.append(await queue.disk.read(indexes))

    async def history() -> None:
        found.append([e.term for e in await queue.disk.history(0, 3, 1 << 20)])

    await read(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 1, 3)
        await wait_all_tasks_blocked()
        nursery.start_soon(history)
        await wait_all_tasks_blocked()
        assert found == [{1: b"entry 1 of 1"}]
        queue.gate.open()
    assert {1: b"entry 1 of 1", 3: b"entry 3 of 2"} in found
    assert [1, 2, 2] in found


KINDS = [
    OSError(28, "No space left on device"),
    StorageError("the disk is gone"),
    MemoryError(),
    ValueError("embedded null character"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    OverflowError("too large"),
    RuntimeError("a mistake of ours"),
]


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["write", "save_snapshot", "tidy", "begin_install", "install"])
async def test_an_error_of_any_kind_is_the_end(
    autojump_clock: MockClock, place: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue()
    disk = queue.disk
    queue.append(1)
    await queue.stage(1)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(queue.store, place, fail)
    match place:
        case "write":
            queue.append(2)
        case "install":
            disk.install(1, lambda: queue.told.append("switched"))
        case _:
            asks = {
                "save_snapshot": partial(disk.save_snapshot, snapshot(1), 0),
                "tidy": disk.tidy,
                "begin_install": partial(disk.begin_install, snapshot(1)),
            }
            with pytest.raises(StorageError):
                await asks[place]()
    failed = [told for told in queue.told if told.startswith("failed")]
    assert len(failed) == 1
    assert "\n" not in failed[0]
    assert str(error) in failed[0]
    assert isinstance(error, StorageError) or type(error).__name__ in failed[0]
    assert "switched" not in queue.told
    monkeypatch.undo()
    queue.append(3)
    for ask in (partial(disk.drop, [1], 0), disk.tidy, disk.written, disk.settled):
        with pytest.raises(StorageError):
            await ask()
    assert queue.store.did == ["write [[1]]"], "nothing runs any more"


async def test_who_waits_for_their_turn_hear_of_the_end(autojump_clock: MockClock) -> None:
    queue = Queue()
    queue.gate.shut()
    queue.store.error = MemoryError()
    told: list[str] = []

    async def drop() -> None:
        with pytest.raises(StorageError, match="MemoryError"):
            await queue.disk.drop([1], 0)
        told.append("drop")

    async def wait() -> None:
        with pytest.raises(StorageError, match="MemoryError"):
            await queue.disk.written()
        told.append("written")

    async with trio.open_nursery() as nursery:
        queue.append(1)
        nursery.start_soon(drop)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        queue.gate.open()
    assert sorted(told) == ["drop", "written"]


async def test_a_switch_that_fails_half_way_is_the_end(autojump_clock: MockClock) -> None:
    queue = Queue()
    await queue.stage(9)

    def switch() -> None:
        raise LookupError("nobody is told")

    queue.disk.install(9, switch)
    assert queue.told == [f"failed: {queue.disk.failure}"]
    assert "LookupError: nobody is told" in queue.told[0]


async def test_nothing_is_begun_after_the_end_was_asked_for(autojump_clock: MockClock) -> None:
    queue = Queue()
    queue.gate.shut()
    queue.append(1)
    queue.append(2)
    queue.disk.end()
    queue.gate.open()
    await queue.disk.close()
    assert queue.store.did == ["write [[1]]"]


async def test_many_jobs_that_are_done_at_once_need_no_deep_stack(
    autojump_clock: MockClock,
) -> None:
    queue = Queue()
    queue.gate.shut()
    for number in range(5000):
        queue.disk.note("number", number)
    queue.gate.open()
    assert queue.store.notes == {"number": 4999}


async def test_what_was_put_aside_is_removed_in_pieces_behind_what_waits(
    autojump_clock: MockClock,
) -> None:
    class Slowly(Store):
        left = 3
        has_forgotten = True

        def discard(self, bytes_max: int) -> bool:
            assert bytes_max == DISCARD_BYTES
            self.did.append("discard")
            self.left -= 1
            return self.left > 0

    queue = Queue()
    store = queue.store = queue.disk._storage = Slowly()
    await queue.stage(9)
    assert store.did == ["discard"] * 3, "what was staged before"
    store.did.clear()
    store.left = 3
    queue.gate.shut()
    queue.disk.install(9, lambda: None)
    queue.append(10)
    queue.disk.discard()
    queue.disk.discard()
    queue.append(11)
    queue.gate.open()
    await wait_all_tasks_blocked()
    assert store.did[:2] == ["install", "write [[10]]"]
    assert store.did[2:] == ["discard", "write [[11]]", "discard", "discard"], "one at a time"


async def test_the_parts_of_the_snapshot_before_go_also_when_the_next_has_none(
    autojump_clock: MockClock,
) -> None:
    class Shrinking(Store):
        has_forgotten = False

        def save_snapshot(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
            super().save_snapshot(snapshot)
            self.has_forgotten = True  # there was a larger one, in parts

        def discard(self, bytes_max: int) -> bool:
            self.has_forgotten = False
            return False

    queue = Queue()
    store = queue.store = queue.disk._storage = Shrinking()
    queue.append(1)
    await queue.disk.save_snapshot(snapshot(1), 0)
    await wait_all_tasks_blocked()
    assert not store.has_forgotten


async def test_removing_what_was_put_aside_ends_with_the_disk(autojump_clock: MockClock) -> None:
    class Failing(Store):
        has_forgotten = True

        def discard(self, bytes_max: int) -> bool:
            raise OSError("no")

    queue = Queue()
    queue.store = queue.disk._storage = Failing()
    queue.disk.discard()
    await wait_all_tasks_blocked()
    assert len(queue.told) == 1
    assert queue.told[0].startswith("failed: ")
    queue.disk.discard()
    assert len(queue.told) == 1


async def test_a_hard_state_alone_is_no_place_in_the_log(autojump_clock: MockClock) -> None:
    queue = Queue()
    queue.append(1, 2)
    queue.disk.append(2, WriteBatch((), HardState(2, "n1")))
    assert (queue.disk.durable, queue.disk.durable_index) == (2, 2)
    assert await queue.disk.read([2]) == {2: b"entry 2 of 1"}
