"""Lines in the log that strangers cause."""

from __future__ import annotations

import logging

import pytest

from repl_broker.notices import LINES_MAX, SECONDS, Notices

log = logging.getLogger("tests.notices")


def test_a_line_is_written_once_and_again_when_its_time_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    notices = Notices(lambda: now)
    for _ in range(3):
        notices.warn(log, "refused origin=%r", "a")
    now = SECONDS - 1
    notices.warn(log, "refused origin=%r", "a")
    notices.warn(log, "refused host=%r", "a")
    assert [each.getMessage() for each in caplog.records] == [
        "refused origin='a'",
        "refused host='a'",
    ]
    caplog.clear()
    now = SECONDS
    notices.warn(log, "refused origin=%r", "a")
    assert [each.getMessage() for each in caplog.records] == [
        "more lines of such kinds were left out lines=3",
        "refused origin='a'",
    ]


def test_lines_of_one_kind_are_few_and_leave_room_for_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notices = Notices(lambda: 0.0)
    for number in range(1000):
        notices.warn(log, "refused origin=%r", str(number))
    notices.warn(log, "refused host=%r", "a")
    assert len(caplog.records) == LINES_MAX + 1
    assert caplog.records[-1].getMessage() == "refused host='a'"
