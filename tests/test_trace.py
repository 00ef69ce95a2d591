"""Which request a line is of: what a stranger's traceparent may say, and who has which."""

from __future__ import annotations

import re

import pytest
import trio

from repl_broker.trace import CURRENT, Parent, Request, apart, current_id, read_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-ff", True),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"01-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
    ],
)
def test_a_valid_traceparent_is_read(text: str, sampled: bool) -> None:
    assert read_traceparent(text) == Parent(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        TRACE,
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01.",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE[:-1]}\u0660-{SPAN}-01",
        f"00-{TRACE[:-5]}\r\n{{x}}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01" + "-" + "a" * 500,
    ],
)
def test_any_other_counts_as_none(text: str) -> None:
    assert read_traceparent(text) is None
    assert re.fullmatch("[0-9a-f]{32}", Request(text).id)
    assert Request(text).id != TRACE


def test_a_request_keeps_its_id_and_the_next_one_has_another() -> None:
    request = Request()
    first = request.id
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert request.id == first
    request.begin(f"00-{TRACE}-{SPAN}-01")
    assert request.id == TRACE
    request.begin(None)
    assert request.id not in (first, TRACE)


async def test_what_runs_apart_belongs_to_no_request_nor_do_its_tasks() -> None:
    seen: dict[str, str] = {}

    async def note(name: str) -> None:
        seen[name] = current_id()

    token = CURRENT.set(Request(f"00-{TRACE}-{SPAN}-01"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, "task")
        apart(nursery.start_soon, note, "task apart")
        seen["apart"] = apart(current_id)
        seen["here"] = current_id()
    CURRENT.reset(token)
    assert seen == {"task": TRACE, "task apart": "", "apart": "", "here": TRACE}
    assert current_id() == ""
