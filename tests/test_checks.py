"""Long bodies are checked one at a time, and no client keeps the others waiting."""

from __future__ import annotations

import threading
import time

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repl_broker.checks import (
    IN_PLACE_BYTES_MAX,
    IN_PLACE_PART,
    OWED_SECONDS_MAX,
    PIECE_SECONDS,
    Checks,
)
from repl_broker.message import (
    QUICK,
    SLOW,
    JsonLimits,
    Steps,
    json_steps,
    ndjson_steps,
    topic_ndjson_steps,
)

LONG = b"x" * (IN_PLACE_BYTES_MAX + 1)
SHORT = b"x" * IN_PLACE_BYTES_MAX


def in_thread(name: str, done: list[str], gate: threading.Event) -> Steps[str]:
    gate.wait(10)
    done.append(name)
    return name
    yield QUICK


async def test_a_short_body_is_checked_in_place_even_while_long_ones_wait() -> None:
    checks, gate, done = Checks(), threading.Event(), list[str]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checks.run, in_thread("long", done, gate), LONG, "a")
        await wait_all_tasks_blocked()
        threads = set[int]()
        await checks.run(steps(1, Clock(), 0, threads), SHORT, "a")
        assert threads == {threading.get_ident()}
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

    def refused() -> Steps[None]:
        yield QUICK
        raise ValueError("no")

    for body in (SHORT, LONG):
        with pytest.raises(ValueError, match="no"):
            await checks.run(refused(), body, "a")
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
        yield QUICK
    return count


async def test_a_batch_is_begun_in_place_and_what_takes_long_of_it_goes_to_the_thread() -> None:
    clock, here = Clock(), threading.get_ident()
    checks, where = Checks(clock), list[bool]()

    def long() -> Steps[int]:
        for _ in range(4):
            where.append(threading.get_ident() == here)
            clock.now += PIECE_SECONDS / 2
            yield QUICK
        return 4

    lines = b"x\n" * IN_PLACE_BYTES_MAX
    assert await checks.run(long(), lines, "a") == 4
    assert where == [True, True, False, False]
    threads = set[int]()
    assert await checks.run(steps(3, clock, 0, threads), lines, "a") == 3
    assert threads == {here}, "most are over before"


async def test_what_says_that_it_takes_long_does_so_in_the_thread() -> None:
    here, where = threading.get_ident(), list[bool]()

    def surprising() -> Steps[int]:
        for next_one in (QUICK, SLOW, QUICK):
            where.append(threading.get_ident() == here)
            yield next_one
        return 3

    assert await Checks().run(surprising(), SHORT, "a") == 3
    assert where == [True, True, False]


async def test_a_batch_with_a_line_that_takes_long_by_itself_is_not_begun_in_place() -> None:
    for before, after in ((b"", b""), (b"1\n" * 9, b""), (b"1\n" * IN_PLACE_BYTES_MAX, b"\n1")):
        threads = set[int]()
        body = before + LONG + after
        assert await Checks().run(steps(3, Clock(), 0, threads), body, "a") == 3
        assert threading.get_ident() not in threads


async def test_whatever_one_takes_all_that_are_in_place_have_a_part_of_the_time() -> None:
    """One that took longer than a period of reckoning once ended it, and the next began anew."""
    for one_takes in (0.001, 0.03, 0.3):
        clock, here, in_place = Clock(), threading.get_ident(), 0.0
        checks = Checks(clock)
        for _ in range(2000):
            threads = set[int]()
            began = clock.now
            await checks.run(steps(1, clock, one_takes, threads), SHORT, "a")
            if threads == {here}:
                in_place += one_takes
            else:
                clock.now = began + 0.0005  # the loop goes on
        most = clock.now * IN_PLACE_PART + OWED_SECONDS_MAX + one_takes
        assert in_place <= most, one_takes
        assert in_place > most / 2, one_takes


LIMITS = JsonLimits(1 << 20, 10_000, 128)
SURROGATE = b'"\\ud800"'


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(json_steps(b"[" + SURROGATE + b' ,"" ' * 6000 + b"]", LIMITS), id="value"),
        pytest.param(json_steps(b"[" * 30_000, LIMITS), id="brackets"),
        pytest.param(json_steps(b"[1,]", LIMITS), id="wrong"),
        pytest.param(ndjson_steps(b"1\n" + SURROGATE, LIMITS), id="line"),
        pytest.param(ndjson_steps(b'"\xc3\xa9"\n' + SURROGATE, LIMITS), id="line-beyond-ascii"),
        pytest.param(ndjson_steps(b"1\n" + b"[" * 200, LIMITS), id="line-of-brackets"),
        pytest.param(
            topic_ndjson_steps(b'{"topic":"a","data":' + SURROGATE + b"}", LIMITS), id="topic"
        ),
    ],
)
def test_what_one_look_is_not_enough_for_says_so_before(check: Steps[object]) -> None:
    assert next(check) is SLOW


async def test_a_long_batch_is_checked_in_pieces_between_which_others_have_their_turns() -> None:
    checks, order = Checks(), list[str]()

    def long() -> Steps[str]:
        for _ in range(3):
            order.append("long")
            time.sleep(PIECE_SECONDS)  # so that each step is a piece
            yield QUICK
        return "done"

    def short() -> Steps[None]:
        order.append("short")
        return
        yield QUICK

    async with trio.open_nursery() as nursery:
        nursery.start_soon(checks.run, long(), LONG, "a")
        await wait_all_tasks_blocked()
        nursery.start_soon(checks.run, short(), LONG, "b")
    assert sorted(order) == ["long"] * 3 + ["short"]
    assert order[-1] == "long", "the other one had to wait for one piece, not for all"
