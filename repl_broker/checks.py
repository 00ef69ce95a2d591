"""Bodies that take long to check: beside the event loop, one at a time, clients in turn.

Checking a mebibyte of JSON takes up to some tens of milliseconds, and threads of
one interpreter share it: forty at once would leave the event loop a fortieth of
the time. So there is one thread for all of them, and a queue before it in which
each client has one body at most; the client's others wait behind that one. A batch is
checked some lines at a time: between two pieces the loop goes on alone, and others' bodies
have their turns.

Small bodies are checked in place, which costs less than the way to a thread and back, and
so is the beginning of a batch of small lines, which is all of most: as far as one look at each
is enough. How long more looks take does not follow from the size, so they are all in the
thread. And as there may be a body on each of a thousand connections, those in place have
a part of the time; what they take beyond it is owed, and others queue until it is made up for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Final, TypeVar

import trio

from repl_broker.message import Steps

__all__ = ["IN_PLACE_BYTES_MAX", "TINY_BYTES", "Checks"]

T = TypeVar("T")

IN_PLACE_BYTES_MAX: Final = 32 << 10  # one look at this much takes some tenths of a millisecond
IN_PLACE_PART: Final = 0.4  # of the time, at most …
OWED_SECONDS_MAX: Final = 0.05  # … but for what takes as long as this to make up for
TINY_BYTES: Final = 1024  # a value of so much is not worth a look at the clock
PIECE_SECONDS: Final = 0.002  # of a batch, in place and then in the thread
AT_ONCE: Final = 1  # more would share one interpreter, and take it from the event loop


class Checks:
    """The queue of a node. ``clock`` tells how long those in place take, in seconds."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._turn = trio.CapacityLimiter(AT_ONCE)
        self._lines: dict[str, trio.Lock] = {}  # of clients that have a body here
        self._clock = clock
        self._paid_at = 0.0  # when all that was done in place is made up for

    @property
    def waiting(self) -> int:
        """Bodies that are queued or being checked."""
        lines = self._lines.values()
        return sum(1 + line.statistics().tasks_waiting for line in lines)

    async def run(self, steps: Steps[T], body: bytes, client: str) -> T:
        """What ``steps``, which check ``body``, give or raise: a line of it in each, at most, and
        all of it if it is one value. ``client`` is the one whose body it is.

        Cancelling takes it out of the queue; a piece that has begun is waited for.
        """
        result: list[T] = []
        if len(body) <= IN_PLACE_BYTES_MAX or _has_short_lines(body):
            result = self._begin(steps)
        if result:
            return result[0]
        async with self._line(client):
            while not result:
                result = await trio.to_thread.run_sync(
                    _piece, steps, self._clock, limiter=self._turn
                )
        return result[0]

    def _begin(self, steps: Steps[T]) -> list[T]:
        """Take what may be taken in place. The result, if that is all."""
        began = self._clock()
        if self._paid_at > began + OWED_SECONDS_MAX:
            return []
        try:
            return _piece(steps, self._clock, slow=False)
        finally:
            now = self._clock()
            self._paid_at = max(self._paid_at, began) + (now - began) / IN_PLACE_PART

    @asynccontextmanager
    async def _line(self, client: str) -> AsyncIterator[None]:
        """Be the client's only one."""
        line = self._lines.setdefault(client, trio.Lock())
        try:
            async with line:
                yield
        finally:
            if not line.locked() and self._lines.get(client) is line:
                del self._lines[client]


def _has_short_lines(body: bytes) -> bool:
    """Whether no step of it is longer than what is checked in place."""
    start = 0
    while len(body) - start > IN_PLACE_BYTES_MAX:
        start = body.rfind(b"\n", start, start + IN_PLACE_BYTES_MAX) + 1
        if not start:
            return False
    return True


def _piece(steps: Steps[T], clock: Callable[[], float], *, slow: bool = True) -> list[T]:
    """Take some. The result, once there is one. Without ``slow`` no step that takes long."""
    ends_at = clock() + PIECE_SECONDS
    try:
        while clock() < ends_at:
            if next(steps) and not slow:
                break
    except StopIteration as ended:
        return [ended.value]
    return []
