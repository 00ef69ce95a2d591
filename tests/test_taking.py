"""When snapshots are taken, what waits for what, and what is then not done."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from repl_broker.command import CreateTopic, Publish
from repl_broker.state import BrokerState
from repl_broker.taking import Mark, Taker
from repl_broker.upkeep import Upkeep
from tests.nodes import Disk, queue_of
from tests.snapshot_in_one_go import in_one_go

pytestmark = pytest.mark.usefixtures("autojump_clock")


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


async def test_nothing_is_compacted_that_has_come_to_be_held_while_it_waited() -> None:
    """A snapshot from the leader is put in the state's place then, or one goes to a peer."""
    node = Node()
    node.apply(5)
    async with trio.open_nursery() as nursery:
        await node.taker.one.acquire()
        nursery.start_soon(node.upkeep.run)
        node.upkeep.applied()
        await trio.testing.wait_all_tasks_blocked()
        with node.upkeep.held():
            node.taker.one.release()
            await trio.sleep(10)
            assert node.upkeep.snapshot_index == 0
        await trio.sleep(10)
        assert node.upkeep.snapshot_index == 5
        nursery.cancel_scope.cancel()
