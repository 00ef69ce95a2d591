"""Lines in the log that strangers cause."""

from __future__ import annotations

import logging
import random

import pytest
import trio
import trio.testing

from repl_broker.logs import Joined
from repl_broker.notices import CLIENT_LINES_MAX, LINES_MAX, SECONDS, Notices

log = logging.getLogger("tests.notices")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [each.getMessage() for each in caplog.records]
    caplog.clear()
    return found


def test_a_line_is_written_once_and_again_when_its_time_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    notices = Notices(lambda: now)
    for client in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        notices.warn(log, client, "refused origin=%r", "a")
    now = SECONDS - 1
    notices.warn(log, "10.0.0.1", "refused origin=%r", "a")
    notices.warn(log, "10.0.0.1", "refused host=%r", "a")
    assert lines(caplog) == ["refused origin='a'", "refused host='a'"]
    now = SECONDS
    notices.warn(log, "10.0.0.1", "refused origin=%r", "a")
    assert [getattr(each, "again", 0) for each in caplog.records] == [3], "how often it was not"
    assert lines(caplog) == ["refused origin='a'"]


async def test_a_client_that_makes_up_names_leaves_the_others_their_lines(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    notices = Notices(chance=lambda among: among - 1)  # the first that is left out, it is
    for minute in range(3):
        for number in range(1000):
            notices.warn(log, "203.0.113.7", "refused origin=%r", f"{minute}-{number}")
        notices.warn(log, "10.0.0.1", "refused origin=%r", "https://app.example")
        notices.warn(log, "10.0.0.1", "refused host=%r", "a")
        found = lines(caplog)
        if minute:
            told = f"not written in the last minute: lines={1000 - CLIENT_LINES_MAX} like="
            assert found.pop(0) == f"{told}\"refused origin='{minute - 1}-{CLIENT_LINES_MAX}'\""
        assert found == [
            *(f"refused origin='{minute}-{number}'" for number in range(CLIENT_LINES_MAX)),
            "refused origin='https://app.example'",
            "refused host='a'",
        ]
        await trio.sleep(SECONDS)


def test_lines_of_one_kind_are_few_in_all_whoever_causes_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notices = Notices(lambda: 0.0)
    for number in range(10_000):
        notices.warn(log, str(number), "refused origin=%r", str(number))
    notices.warn(log, "a", "refused host=%r", "a")
    found = lines(caplog)
    assert len(found) == LINES_MAX + 1
    assert found[-1] == "refused host='a'"
    kinds = notices._kinds.values()
    assert all(max(len(each.written), len(each.clients)) <= LINES_MAX for each in kinds)


def test_each_that_is_left_out_is_the_example_with_the_same_chance(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So that a page which asks on and on is seen behind a proxy, where all clients are one."""
    now = 0.0
    notices = Notices(lambda: now, random.Random(1).randrange)
    seen = 0
    for _ in range(200):
        for number in range(CLIENT_LINES_MAX + 9):
            notices.warn(log, "10.0.0.1", "refused origin=%r", str(number))
        notices.warn(log, "10.0.0.1", "refused origin=%r", "https://app.example")
        now += SECONDS
        seen += sum("app.example" in each for each in lines(caplog))
    assert 5 <= seen <= 60


def test_the_lines_are_few_and_so_none_is_joined_with_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notices = Notices(lambda: 0.0)
    for number in range(LINES_MAX):
        notices.warn(log, str(number), "refused origin=%r", str(number))
    joined = Joined(lambda: 0.0)
    assert [joined(each) for each in caplog.records] == [True] * LINES_MAX
