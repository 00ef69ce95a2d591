"""When snapshots are taken, what waits for what, and what is then not done."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from repl_broker.command import CreateTopic, Publish
from repl_broker.raft.log import Entry, EntryKind
from repl_broker.state import BrokerState
from repl_broker.taking import Mark, Taker
from repl_broker.upkeep import Upkeep
from repl_broker.wire import encode_command, encode_entry
from tests.nodes import Disk, queue_of
from tests.snapshot_in_one_go import in_one_go


async def at_once(call: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return call(*arguments)


class Node:
    def __init__(self) -> None:
        self.state = BrokerState()
        self.disk = Disk()
        self.taker = Taker(lambda: self.state, self.mark, at_once)
        queue = queue_of(self.disk)
        queue.loaded(1000)
        self.upkeep = Upkeep(queue, state=lambda: self.state, taker=self.taker, snapshot_entries=2)

    def mark(self) -> Mark:
        return Mark(self.state.applied_index, 7, b"members")

    def apply(self, count: int) -> None:
        for _ in range(count):
            index = self.state.applied_index + 1
            self.state.apply(index, index, [CreateTopic(f"t{index}"), Publish("a", (b"1",))])

    def apply_entry(self, *commands: Publish) -> None:
        """On the disk as well; each topic retains one message."""
        index = self.state.applied_index + 1
        names = [command.topics for command in commands if isinstance(command.topics, str)]
        new = [CreateTopic(name, messages=1) for name in names if name not in self.state.topics]
        data = encode_entry(index, [*map(encode_command, (*new, *commands))])
        self.disk.entries[index] = Entry(index, 7, EntryKind.DATA, data)
        self.state.apply(index, index, [*new, *commands])
        self.upkeep.wrote(len(data))
        self.upkeep.applied()

    def publish(self, topic: str, count: int) -> None:
        for _ in range(count):
            self.apply_entry(Publish(topic, (b"1",)))

    @property
    def kept(self) -> list[int]:
        return [*self.disk.entries]

    @property
    def saved(self) -> int:
        return self.disk.snapshot.index if self.disk.snapshot else 0


async def test_a_snapshot_is_of_the_moment_at_which_it_began() -> None:
    node = Node()
    node.apply(300)
    expected, live = in_one_go(node.state), node.state.live_entries()
    async with node.taker.one:
        begun = node.taker.begin()
        node.apply(50)
        taken = await begun.finish()
    assert (taken.snapshot.data, taken.live) == (expected, array("Q", live))
    assert (taken.snapshot.index, taken.snapshot.term) == (300, 7)
    assert in_one_go(node.state) == node.state.snapshot()


async def test_one_that_is_cancelled_is_not_in_the_way_of_the_next() -> None:
    node = Node()
    node.apply(3)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with node.taker.one:
            await node.taker.begin().finish()
    async with node.taker.one:
        taken = await node.taker.begin().finish()
    assert taken.snapshot.data == in_one_go(node.state)


async def test_nothing_is_dropped_that_has_come_to_be_held_while_it_waited(
    autojump_clock: MockClock,
) -> None:
    """It goes to a peer then."""
    node = Node()
    node.publish("a", 5)
    async with trio.open_nursery() as nursery:
        await node.taker.one.acquire()
        nursery.start_soon(node.upkeep.run)
        node.upkeep.applied()
        await trio.testing.wait_all_tasks_blocked()
        with node.upkeep.held():
            node.taker.one.release()
            await trio.sleep(10)
            assert node.kept == [1, 2, 3, 4, 5]
        await trio.sleep(10)
        assert node.kept == [5]
        nursery.cancel_scope.cancel()


async def test_snapshots_are_saved_while_something_is_held_and_nothing_goes_until_then(
    autojump_clock: MockClock,
) -> None:
    """A copy of all there is may take many minutes to send: a start after a crash would have had
    all to read, and to keep in memory, that was published meanwhile."""
    node = Node()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.upkeep.run)
        node.publish("a", 2)
        await trio.sleep(1)
        with node.upkeep.held():
            node.publish("a", 4)
            await trio.sleep(1)
            assert node.saved == 6
            with node.upkeep.held():
                node.publish("a", 2)
                await trio.sleep(1)
            assert (node.saved, node.kept) == (8, [2, 3, 4, 5, 6, 7, 8]), "by one still"
        await trio.sleep(1)
        assert node.kept == [8]
        nursery.cancel_scope.cancel()


async def test_the_store_is_tidied_while_a_snapshot_is_made(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries come meanwhile, and a write waits for a checkpoint of what has gathered."""
    monkeypatch.setattr("repl_broker.upkeep.TIDY_BYTES", 50)
    node = Node()
    tidied: list[int] = []
    monkeypatch.setattr(node.disk, "tidy", lambda: tidied.append(node.saved))
    async with trio.open_nursery() as nursery:
        await node.taker.one.acquire()
        nursery.start_soon(node.upkeep.run)
        nursery.start_soon(node.upkeep.tidy)
        for _ in range(3):
            node.publish("a", 10)
            await trio.sleep(1)
        assert tidied == [0, 0, 0]
        node.taker.one.release()
        await trio.sleep(1)
        assert {*tidied[3:]} == {30}, "and what the snapshot took"
        nursery.cancel_scope.cancel()


async def test_large_entries_that_are_mostly_dead_are_thinned_one_at_a_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write waits for one of them, and only one is in memory."""
    monkeypatch.setattr("repl_broker.upkeep.REWRITE_BYTES", 10_000)
    node = Node()
    thinned: list[list[int]] = []
    replace = node.disk.replace

    def note(entries: Mapping[int, bytes]) -> None:
        thinned.append([*entries])
        replace(entries)

    monkeypatch.setattr(node.disk, "replace", note)
    large, small = (b"x" * 10_000,), (b"x" * 5_000,)
    for number, data in enumerate((large, large, small, small)):
        node.apply_entry(Publish("a", data), Publish(f"b{number}", (b"1",)))
    node.apply_entry(Publish("a", (b"1",)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.upkeep.run)
        node.upkeep.applied()
        await trio.sleep(1)
        assert thinned == [[1], [2], [3, 4]]
        nursery.cancel_scope.cancel()


async def test_a_mostly_dead_entry_is_thinned_once_nothing_is_held_unless_it_has_gone(
    autojump_clock: MockClock,
) -> None:
    node = Node()
    large = b"x" * 10_000
    async with trio.open_nursery() as nursery:
        node.apply_entry(Publish("a", (large,)), Publish("b", (b"1",)))
        node.apply_entry(Publish("a", (large,)), Publish("c", (b"1",)))
        node.publish("a", 1)
        nursery.start_soon(node.upkeep.run)
        while not node.upkeep._dead_ordinals:
            await trio.lowlevel.checkpoint()
        with node.upkeep.held():
            await trio.sleep(1)
            assert node.disk.bytes > 2 * len(large), "nothing is written anew"
            node.publish("c", 2)  # so that the second entry dies
            await trio.sleep(1)
            assert node.saved == 5
        await trio.sleep(1)
        assert node.kept == [1, 3, 5]
        assert node.disk.bytes < len(large)
        nursery.cancel_scope.cancel()
