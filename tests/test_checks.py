"""Long bodies are checked one at a time, and no client keeps the others waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repl_broker.checks import (
    IN_PLACE_BYTES_MAX,
    IN_PLACE_SECONDS_MAX,
    MOMENT_SECONDS,
    PIECE_SECONDS,
    TINY_BYTES,
    Checks,
)
from repl_broker.message import Steps

LONG = b"x" * (IN_PLACE_BYTES_MAX + 1)


def in_thread(name: str, done: list[str], gate: threading.Event) -> Callable[[bytes], str]:
    def check(body: bytes) -> str:
        gate.wait(10)
        done.append(name)
        return name

    return check


async def test_a_short_body_is_checked_in_place_even_while_long_ones_wait() -> None:
    checks, gate, done = Checks(), threading.Event(), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checks.run, in_thread("long", done, gate), LONG, "a")
        await wait_all_tasks_blocked()
        here = threading.get_ident()
        assert await checks.run(lambda body: threading.get_ident(), b"1", "a") == here
        assert done == []
        gate.set()
    assert done == ["long"]


async def test_clients_take_turns_however_many_bodies_one_of_them_sends() -> None:
    checks, gate, done = Checks(), threading.Event(), list[str]()
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(checks.run, in_thread(f"a{number}", done, gate), LONG, "a")
        await wait_all_tasks_blocked()
        nursery.start_soon(checks.run, in_thread("b", done, gate), LONG, "b")
        nursery.start_soon(checks.run, in_thread("c", done, gate), LONG, "c")
        await wait_all_tasks_blocked()
        assert checks.waiting == 7
        gate.set()
    assert sorted(done) == ["a0", "a1", "a2", "a3", "a4", "b", "c"]
    assert set(done[1:3]) == {"b", "c"}, done
    assert checks.waiting == 0


async def test_what_a_check_raises_or_a_cancelled_one_leaves_no_line_behind() -> None:
    checks, gate, done = Checks(), threading.Event(), list[str]()

    def refuse(body: bytes) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await checks.run(refuse, LONG, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checks.run, in_thread("a", done, gate), LONG, "a")
        await wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await checks.run(in_thread("never", done, gate), LONG, "a")
        with trio.move_on_after(0):
            await checks.run(in_thread("never", done, gate), LONG, "b")
        assert checks.waiting == 1
        gate.set()
    assert (done, checks.waiting, checks._lines) == (["a"], 0, {})


class Clock:
    """Time that passes by as much as is asked for."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(count: int, clock: Clock, seconds: float, threads: set[int]) -> Steps[int]:
    for _ in range(count):
        threads.add(threading.get_ident())
        clock.now += seconds
        yield
    return count


async def test_a_batch_is_begun_in_place_and_what_takes_long_of_it_goes_to_the_thread() -> None:
    clock, here = Clock(), threading.get_ident()
    checks, where = Checks(clock), list[bool]()

    def slow() -> Steps[int]:
        for _ in range(4):
            where.append(threading.get_ident() == here)
            clock.now += PIECE_SECONDS / 2
            yield
        return 4

    lines = b"x\n" * IN_PLACE_BYTES_MAX
    assert await checks.run_steps(slow(), lines, "a") == 4
    assert where == [True, True, False, False]
    threads = set[int]()
    assert await checks.run_steps(steps(3, clock, 0, threads), lines, "a") == 3
    assert threads == {here}, "most are over before"


async def test_a_batch_with_a_line_that_takes_long_by_itself_is_not_begun_in_place() -> None:
    for before, after in ((b"", b""), (b"1\n" * 9, b""), (b"1\n" * IN_PLACE_BYTES_MAX, b"\n1")):
        threads = set[int]()
        body = before + LONG + after
        assert await Checks().run_steps(steps(3, Clock(), 0, threads), body, "a") == 3
        assert threading.get_ident() not in threads


async def test_small_bodies_queue_once_those_of_a_moment_have_taken_long_together() -> None:
    clock, here = Clock(), threading.get_ident()
    checks = Checks(clock)
    small = b"x" * (TINY_BYTES + 1)

    def check(body: bytes) -> bool:
        clock.now += IN_PLACE_SECONDS_MAX / 2
        return threading.get_ident() == here

    assert [await checks.run(check, small, str(n)) for n in range(4)] == [True, True, False, False]
    threads = set[int]()
    assert await checks.run_steps(steps(2, clock, 0, threads), small, "a") == 2
    assert here not in threads
    assert await checks.run(check, b"1", "a"), "what is tiny takes no time"
    clock.now += MOMENT_SECONDS
    assert await checks.run(check, small, "a")


async def test_a_long_batch_is_checked_in_pieces_between_which_others_have_their_turns() -> None:
    checks, order = Checks(), list[str]()

    def long() -> Steps[str]:
        for _ in range(3):
            order.append("long")
            time.sleep(PIECE_SECONDS)  # so that each step is a piece
            yield
        return "done"

    def short(body: bytes) -> None:
        order.append("short")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(checks.run_steps, long(), LONG, "a")
        await wait_all_tasks_blocked()
        nursery.start_soon(checks.run, short, LONG, "b")
    assert sorted(order) == ["long"] * 3 + ["short"]
    assert order[-1] == "long", "the other one had to wait for one piece, not for all"


async def test_what_a_step_raises_is_raised_and_leaves_no_line_behind() -> None:
    def refused() -> Steps[None]:
        yield
        raise ValueError("no")

    checks = Checks()
    for body in (b"1", LONG):
        with pytest.raises(ValueError, match="no"):
            await checks.run_steps(refused(), body, "a")
    assert (checks.waiting, checks._lines) == (0, {})
