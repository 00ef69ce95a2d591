"""Long work takes turns, and leaves half of the loop to the rest."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from repl_broker.turnstile import PIECE_SECONDS, REST_SECONDS_MAX, Turn, Turnstile


class Clock:
    """Of the work: it moves when a step is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def work(turnstile: Turnstile, clock: Clock, name: str, pieces: int, done: list[str]) -> None:
    def piece(turn: Turn) -> None:
        while not turn.is_over:
            clock.now += 0.0005
        done.append(name)

    for _ in range(pieces):
        await turnstile.give(piece)


async def test_pieces_of_all_take_turns(clock: Clock, autojump_clock: MockClock) -> None:
    turnstile, done = Turnstile(clock), list[str]()
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(work, turnstile, clock, name, 4, done)
    assert {frozenset(done[at : at + 3]) for at in range(0, 12, 3)} == {frozenset("abc")}


async def test_long_work_of_many_leaves_the_loop_alone_half_of_the_time(
    clock: Clock, autojump_clock: MockClock
) -> None:
    turnstile, done = Turnstile(clock), list[str]()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(work, turnstile, clock, str(number), 5, done)
    rested = trio.current_time() - began
    assert clock.now == pytest.approx(200 * PIECE_SECONDS)
    assert rested == pytest.approx(199 * PIECE_SECONDS), "all pieces but the first waited"


async def test_others_run_between_any_two_pieces(clock: Clock, autojump_clock: MockClock) -> None:
    turnstile, done = Turnstile(clock), list[str]()

    async def other() -> None:
        while done.count("long") < 20:
            done.append("other")
            await trio.sleep(PIECE_SECONDS / 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(20):
            nursery.start_soon(work, turnstile, clock, "long", 1, done)
    assert "long long" not in " ".join(done)


async def test_short_pieces_do_not_rest_each_time(clock: Clock, autojump_clock: MockClock) -> None:
    turnstile = Turnstile(clock)

    def short(turn: Turn) -> None:
        clock.now += 0.0001

    for _ in range(10):
        await turnstile.give(short)
    assert trio.current_time() == 0
    for _ in range(10):
        await turnstile.give(short)
    assert trio.current_time() == pytest.approx(0.001)


async def test_a_piece_that_fails_or_takes_much_too_long_leaves_the_gate_open(
    clock: Clock, autojump_clock: MockClock
) -> None:
    turnstile = Turnstile(clock)

    def fail(turn: Turn) -> None:
        clock.now += 100
        raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        await turnstile.give(fail)
    assert await turnstile.give(lambda turn: turn.is_over) is False
    assert trio.current_time() == pytest.approx(REST_SECONDS_MAX)


async def test_who_leaves_while_it_waits_takes_no_turn(
    clock: Clock, autojump_clock: MockClock
) -> None:
    turnstile, done = Turnstile(clock), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, turnstile, clock, "a", 2, done)
        with trio.move_on_after(PIECE_SECONDS / 2):
            await work(turnstile, clock, "gone", 9, done)
    assert done.count("gone") <= 1
    assert done.count("a") == 2
    await turnstile.give(lambda turn: None)
