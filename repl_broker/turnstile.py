"""One gate for all long work of requests and streams, so that it holds up nobody else.

Whatever grows with what a node holds, and may take longer than a few
milliseconds, is done in *pieces*:

    def piece(turn: Turn) -> bool:
        while there_is_more and not turn.is_over:
            ...  # a step: some 0.2 ms at most
        return there_is_more

    while await turnstile.give(piece):
        pass

A piece is a plain function, so nothing happens while it runs: what it sees of the
state belongs together. Between two pieces the state may change, so a piece begins
from a place (a name, a sequence number) and keeps no iterator.

Pieces of all requests and streams take turns, one at a time, in the order in
which they came. After each, everything else that is ready to run does so; and once
they have had the loop for a while they leave it alone for as long. So however much
long work there is, it gets half of the loop at most, and whoever does something
short waits for one piece at each of its steps, not for one of everybody's.

What is short in most cases should try for a few steps first, and come here only if
that was not enough: here it has to queue.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final, TypeVar

import trio

__all__ = ["PIECE_SECONDS", "Turn", "Turnstile"]

T = TypeVar("T")

PIECE_SECONDS: Final = 0.002
REST_SECONDS_MIN: Final = 0.001  # of work, until it is worth a rest
REST_SECONDS_MAX: Final = 0.05  # after a piece that has taken much too long


class Turn:
    """The time of one piece. It is not over at the first look: each piece does one step."""

    __slots__ = ("_clock", "_ends_at", "_has_begun")

    def __init__(self, clock: Callable[[], float], ends_at: float) -> None:
        self._clock = clock
        self._ends_at = ends_at
        self._has_begun = False

    @property
    def is_over(self) -> bool:
        if not self._has_begun:
            self._has_begun = True
            return False
        return self._clock() >= self._ends_at


class Turnstile:
    """Lets pieces through one by one. ``clock`` tells how long they take, in seconds."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._gate = trio.StrictFIFOLock()
        self._worked_seconds = 0.0  # since the last rest

    async def give(self, piece: Callable[[Turn], T]) -> T:
        """Run ``piece`` when its turn has come, and give what it returns. A checkpoint."""
        async with self._gate:
            if self._worked_seconds >= REST_SECONDS_MIN:
                rest_seconds = min(self._worked_seconds, REST_SECONDS_MAX)
                self._worked_seconds = 0.0
                await trio.sleep(rest_seconds)
            began = self._clock()
            try:
                return piece(Turn(self._clock, began + PIECE_SECONDS))
            finally:
                self._worked_seconds += self._clock() - began
