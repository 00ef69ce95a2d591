"""A limit that refuses somebody is told at once, and then once a minute with a count."""

from __future__ import annotations

import logging

import pytest

from repl_broker.errors import PROBLEMS
from repl_broker.reached import AGAIN_SECONDS, LIMITS, Reached


def test_a_limit_is_told_at_once_and_then_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    counts = {"rate_limited": 0, "not_found": 0}
    reached = Reached(counts)
    for second in range(150):
        counts["rate_limited"] += 10 if 10 <= second < 80 else 0
        counts["not_found"] += 1
        reached.look(float(second))
    records = [r for r in caplog.records if r.levelno == logging.WARNING]
    told = [(r.args[0], r.args[1], r.args[2]) for r in records if isinstance(r.args, tuple)]
    assert told == [
        ("rate_limited", 10, 10),
        ("rate_limited", 10 * int(AGAIN_SECONDS), 610),
        ("rate_limited", 90, 700),
    ]
    assert all("[limits] publishes_per_second" in r.getMessage() for r in records)


def test_each_limit_is_a_code_of_a_refusal() -> None:
    assert set(LIMITS) < set(PROBLEMS)
