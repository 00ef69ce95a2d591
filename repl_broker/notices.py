"""Lines in the log that strangers cause: each seldom, few for each client, and few in all."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

__all__ = ["Notices"]

SECONDS: Final = 60.0  # between two lines that say the same
CLIENT_LINES_MAX: Final = 3  # of one kind in that time, for each client, whatever they say
LINES_MAX: Final = 30  # and for all clients together
# What a line of these is marked with: it is one of few, and is not joined with others (logs.py).
SELDOM: Final = {"seldom": True}


class _Kind:
    """The lines of one message: what has been written, for whom, and what was left out."""

    def __init__(self) -> None:
        self.written: Counter[tuple[object, ...]] = Counter()  # how often it was to be, by values
        self.clients: Counter[str] = Counter()
        self.left_out = 0
        self.example: tuple[object, ...] = ()


class Notices:
    """Writes a line if it has not just been written. ``now`` is in seconds, of any clock.

    One that is still to be written when the time is over says how often it was not (``again``).
    A client (admission.address_key) that causes many lines leaves the others theirs. How many
    were left out is told when the time is over, before the next line, and one of them, by chance:
    behind a proxy all clients may be one, and then what somebody needs to see is seen so.
    """

    def __init__(
        self,
        now: Callable[[], float] = trio.current_time,
        chance: Callable[[int], int] = random.randrange,
    ) -> None:
        self._now = now
        self._chance = chance
        self._since = -math.inf
        self._kinds: dict[str, _Kind] = {}  # by the message
        self._again: dict[tuple[str, tuple[object, ...]], int] = {}  # of the time before

    def warn(self, log: logging.Logger, client: str, message: str, *values: object) -> None:
        """Write ``message`` of ``values``, or count it. The messages are ours: they are few."""
        now = self._now()
        if now - self._since >= SECONDS:
            self._since = now
            self._tell(log)
        kind = self._kinds.setdefault(message, _Kind())
        if values in kind.written:
            kind.written[values] += 1
            return
        if kind.clients[client] >= CLIENT_LINES_MAX or len(kind.written) >= LINES_MAX:
            kind.left_out += 1
            if self._chance(kind.left_out) == 0:  # so that each has the same chance
                kind.example = values
            return
        kind.clients[client] += 1
        kind.written[values] = 1
        again = self._again.pop((message, values), 0)
        log.warning(message, *values, extra=SELDOM | {"again": again} if again else SELDOM)

    def _tell(self, log: logging.Logger) -> None:
        self._again = {
            (message, values): times - 1
            for message, kind in self._kinds.items()
            for values, times in kind.written.items()
            if times > 1
        }
        for message, kind in self._kinds.items():
            if kind.left_out:
                what = "not written in the last minute: lines=%d like=%r"
                log.warning(what, kind.left_out, message % kind.example, extra=SELDOM)
        self._kinds.clear()
