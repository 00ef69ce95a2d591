"""Lines in the log that strangers cause: each seldom, and all of them together few."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

import trio

__all__ = ["Notices"]

SECONDS: Final = 60.0  # between two lines that say the same
LINES_MAX: Final = 10  # of one kind in that time, whatever they say


class Notices:
    """Writes a line if it has not just been written. ``now`` is in seconds, of any clock.

    What was left out is told when the time is over, with the next line.
    """

    def __init__(self, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._since = -math.inf
        self._written: dict[str, set[tuple[object, ...]]] = {}
        self._left_out = 0

    def warn(self, log: logging.Logger, message: str, *values: object) -> None:
        """Write ``message`` of ``values``, or count it. The messages are ours: they are few."""
        now = self._now()
        if now - self._since >= SECONDS:
            left_out, self._left_out, self._since = self._left_out, 0, now
            self._written.clear()
            if left_out:
                log.warning("more lines of such kinds were left out lines=%d", left_out)
        written = self._written.setdefault(message, set())
        if values in written or len(written) >= LINES_MAX:
            self._left_out += 1
            return
        written.add(values)
        log.warning(message, *values)
