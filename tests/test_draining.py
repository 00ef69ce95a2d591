"""How long a node serves on before it stops, and what ends that sooner."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from repl_broker.config import HttpConfig
from repl_broker.draining import DRAIN_SECONDS, drain, drain_seconds
from repl_broker.raft.log import Member, Membership


class Replica:
    """One that leads, and hands over when it is asked to."""

    def __init__(self, members: int = 3) -> None:
        named = [Member(f"n{n}", "", "", voter=True) for n in range(members)]
        self.membership = Membership(tuple(named))
        self.removed = trio.Event()
        self.ready = True
        self.done: list[tuple[str, float]] = []

    def decline(self, *, declines: bool) -> None:
        assert declines
        self.note("declines")

    async def hand_over(self) -> None:
        self.note("hands over")
        await trio.sleep(0.5)

    def note(self, what: str) -> None:
        self.done.append((what, trio.current_time()))


class Fanout:
    """Whose readers take the time that is given."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def __len__(self) -> int:
        return 3

    async def dismiss_in_turn(self, seconds: float) -> None:
        self._replica.note(f"dismisses for {seconds:g}")
        await trio.sleep(seconds * 0.8)


async def drained(replica: Any, seconds: float, *ends: tuple[float, trio.Event]) -> float:
    """How long it took."""
    hurry = trio.Event()

    async def end(at: float, event: trio.Event) -> None:
        await trio.sleep(at)
        event.set()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for at, event in ends:
            nursery.start_soon(end, at, event)
        await drain(replica, Fanout(replica), seconds, hurry)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    return trio.current_time() - began


async def test_a_leader_hands_over_first_and_streams_go_in_the_second_half(
    autojump_clock: MockClock,
) -> None:
    replica = Replica()
    assert await drained(replica, 10) == 10
    began = replica.done[0][1]
    assert [(what, at - began) for what, at in replica.done] == [
        ("declines", 0), ("hands over", 0), ("dismisses for 5", 5),
    ]  # fmt: skip


async def test_it_ends_when_somebody_is_in_a_hurry(autojump_clock: MockClock) -> None:
    replica, hurry = Replica(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, replica, Fanout(replica), 300, hurry)
        await trio.sleep(1)
        hurry.set()
        began = trio.current_time()
    assert trio.current_time() == began


async def test_it_ends_when_the_node_is_removed(autojump_clock: MockClock) -> None:
    replica = Replica()
    assert await drained(replica, 300, (7, replica.removed)) == 7


@pytest.mark.parametrize(
    ("members", "wanted", "seconds"),
    [(3, None, DRAIN_SECONDS), (1, None, 0), (3, 0, 0), (3, 20, 20), (1, 20, 20)],
)
def test_by_default_it_serves_on_where_there_are_others_to_go_to(
    members: int, wanted: int | None, seconds: int
) -> None:
    replica: Any = Replica(members)
    assert drain_seconds(HttpConfig(drain_seconds=wanted), replica) == seconds


def test_one_that_is_not_ready_or_was_removed_does_not_wait_for_anybody() -> None:
    for change in ("not ready", "removed"):
        replica: Any = Replica()
        if change == "removed":
            replica.removed.set()
        replica.ready = change != "not ready"
        assert drain_seconds(HttpConfig(drain_seconds=20), replica) == 0
