"""How long the event loop is busy before it looks again for what has come.

That is the time by which anybody's request may be late because of somebody
else's: a *turn* is from one wait for sockets and deadlines to the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Final, NamedTuple

import trio

from repl_broker.histogram import Durations, Histogram

__all__ = ["LoopTurns", "TurnStatistics"]

log = logging.getLogger(__name__)

WINDOW_SECONDS: Final = 60.0
LONG_SECONDS: Final = 0.5  # a turn of this length is worth a line in the log, once a window


class TurnStatistics(NamedTuple):
    turns: Durations
    longest_seconds: float  # of the last one to two minutes


class LoopTurns(trio.abc.Instrument):
    """Measures the turns of the loop that it is added to. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._began: float | None = None
        self._turns = Histogram()
        self._window_ends = clock() + WINDOW_SECONDS
        self._longest = self._longest_before = 0.0  # in this window, and in the one before
        self._is_told = False

    def after_io_wait(self, timeout: float) -> None:
        self._began = self._clock()

    def before_io_wait(self, timeout: float) -> None:
        if self._began is None:
            return
        now = self._clock()
        seconds = now - self._began
        self._turns.observe(seconds)
        if now >= self._window_ends:
            self._turn_window(now)
        if seconds > self._longest:
            self._longest = seconds
            if seconds >= LONG_SECONDS and not self._is_told:
                self._is_told = True
                log.warning("the event loop was busy: every request waited seconds=%.3f", seconds)

    def _turn_window(self, now: float) -> None:
        is_next = now < self._window_ends + WINDOW_SECONDS
        self._longest_before = self._longest if is_next else 0.0
        self._longest = 0.0
        self._is_told = False
        self._window_ends = now + WINDOW_SECONDS

    def statistics(self) -> TurnStatistics:
        """As of the last turn that has ended."""
        if self._clock() >= self._window_ends:
            self._turn_window(self._clock())
        return TurnStatistics(self._turns.durations(), max(self._longest, self._longest_before))
