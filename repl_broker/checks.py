"""Bodies that take long to check: beside the event loop, one at a time, clients in turn.

Checking a mebibyte of JSON takes up to some tens of milliseconds, and threads of
one interpreter share it: forty at once would leave the event loop a fortieth of
the time. So there is one thread for all of them, and a queue before it in which
each client has one body at most; the client's others wait behind that one. Small
bodies are checked in place, which costs less than the way to a thread and back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio

__all__ = ["IN_PLACE_BYTES_MAX", "Checks"]

T = TypeVar("T")

IN_PLACE_BYTES_MAX: Final = 32 << 10  # the dearest of these takes about a millisecond
AT_ONCE: Final = 1  # more would share one interpreter, and take it from the event loop


class Checks:
    """The queue of a node."""

    def __init__(self) -> None:
        self._turn = trio.CapacityLimiter(AT_ONCE)
        self._lines: dict[str, trio.Lock] = {}  # of clients that have a body here

    @property
    def waiting(self) -> int:
        """Bodies that are queued or being checked."""
        lines = self._lines.values()
        return sum(1 + line.statistics().tasks_waiting for line in lines)

    async def run(self, check: Callable[[bytes], T], body: bytes, client: str) -> T:
        """What ``check(body)`` gives or raises. ``client`` is the one whose body it is.

        Cancelling takes it out of the queue; a check that has begun is waited for.
        """
        if len(body) <= IN_PLACE_BYTES_MAX:
            return check(body)
        line = self._lines.setdefault(client, trio.Lock())
        try:
            async with line:
                return await trio.to_thread.run_sync(check, body, limiter=self._turn)
        finally:
            if not line.locked() and self._lines.get(client) is line:
                del self._lines[client]
