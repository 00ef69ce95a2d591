"""The turns of the event loop are measured from one wait to the next."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.lowlevel

from repl_broker.loop_turns import LONG_SECONDS, WINDOW_SECONDS, LoopTurns


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def turn(turns: LoopTurns, time: Time, seconds: float) -> None:
    turns.after_io_wait(0)
    time.now += seconds
    turns.before_io_wait(0)


def test_the_longest_of_the_last_minutes_is_told_and_then_forgotten() -> None:
    time = Time()
    turns = LoopTurns(time)
    turns.before_io_wait(0)  # it was added in the middle of a turn
    assert turns.statistics().longest_seconds == 0
    for seconds in (0.25, 0.125, 0.001953125):
        turn(turns, time, seconds)
    assert turns.statistics().longest_seconds == 0.25
    assert turns.statistics().turns.seconds == 0.376953125
    assert sum(turns.statistics().turns.buckets) == 3
    time.now += WINDOW_SECONDS
    turn(turns, time, 0.0625)
    assert turns.statistics().longest_seconds == 0.25, "of this window or the one before"
    time.now += WINDOW_SECONDS
    assert turns.statistics().longest_seconds == 0.0625
    time.now += 3 * WINDOW_SECONDS
    assert turns.statistics().longest_seconds == 0


def test_a_turn_that_holds_up_everybody_is_one_line_in_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = Time()
    turns = LoopTurns(time)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            turn(turns, time, LONG_SECONDS)
        assert [record.args for record in caplog.records] == [(LONG_SECONDS,)]
        time.now += WINDOW_SECONDS
        turn(turns, time, 2 * LONG_SECONDS)
        assert len(caplog.records) == 2


async def test_it_measures_the_loop_that_it_is_added_to() -> None:
    time = Time()
    turns = LoopTurns(time)
    trio.lowlevel.add_instrument(turns)
    try:
        await trio.lowlevel.checkpoint()
        time.now += 0.5
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    finally:
        trio.lowlevel.remove_instrument(turns)
    assert turns.statistics().longest_seconds == 0.5
