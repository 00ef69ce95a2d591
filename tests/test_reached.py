"""A limit that refuses somebody is told at once, and then once a minute with a count."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

import pytest

from repl_broker.config import Config
from repl_broker.errors import PROBLEMS
from repl_broker.reached import AGAIN_SECONDS, LIMITS, Reached
from tests.nodes import configured


class Kind(NamedTuple):
    """What a line says: whether now or before, how many were refused, and between which seconds."""

    verb: object
    refused: object
    ever: object
    since: object
    until: object


def told(
    caplog: pytest.LogCaptureFixture, refused_in: Collection[int], seconds: int, **limits: int
) -> tuple[list[Kind], list[str]]:
    counts, clock = {"rate_limited": 0, "not_found": 0}, [0.0]
    config = configured(limits=limits)
    reached = Reached(counts, lambda: config.limits, lambda: clock[0])
    for second in range(seconds):
        counts["rate_limited"] += 10 if second in refused_in else 0
        counts["not_found"] += 1
        clock[0] = float(second)
        reached.look(1000.0 + second)
    records = [r for r in caplog.records if r.levelno == logging.WARNING]
    found = []
    for record in records:
        assert isinstance(record.args, tuple)
        code, refused, ever, since, until, _ = record.args
        verb = record.getMessage().split()[2]
        assert code == "rate_limited"
        found.append(Kind(verb, refused, ever, str(since)[-9:-1], str(until)[-9:-1]))
    return found, [r.getMessage() for r in records]


def test_a_limit_is_told_at_once_and_then_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    found, lines = told(caplog, range(10, 80), 150, publishes_per_second=5)
    assert AGAIN_SECONDS == 60
    assert found == [
        Kind("is", 10, 10, "00:00:10", "00:00:10"),
        Kind("is", 600, 610, "00:00:11", "00:01:10"),
        Kind("was", 90, 700, "00:01:11", "00:01:19"),
    ]
    assert lines[0].startswith("a limit is reached code=rate_limited refused=10 ")


def test_what_is_over_is_told_as_that_and_what_comes_later_begins_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found, lines = told(caplog, {3, 5, 200, 201}, 300)
    assert found == [
        Kind("is", 10, 10, "00:00:03", "00:00:03"),
        Kind("was", 10, 20, "00:00:05", "00:00:05"),
        Kind("is", 10, 30, "00:03:20", "00:03:20"),
        Kind("was", 10, 40, "00:03:21", "00:03:21"),
    ]
    assert lines[1].startswith("a limit was reached ")


def test_the_limits_that_are_set_are_named_with_their_values(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, (line,) = told(caplog, {1}, 5, publishes_per_second=5, reads_per_second=7)
    assert "remedy='[limits] publishes_per_second = 5, reads_per_second = 7'" in line
    for keys, _ in LIMITS.values():
        assert all(hasattr(Config().limits, key) for key in keys)


def test_each_limit_is_a_code_of_a_refusal() -> None:
    assert set(LIMITS) < set(PROBLEMS)
