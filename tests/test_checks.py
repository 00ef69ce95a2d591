"""Long bodies are checked one at a time, and no client keeps the others waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repl_broker.checks import IN_PLACE_BYTES_MAX, Checks

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
