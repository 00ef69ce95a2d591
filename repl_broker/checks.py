"""Bodies that take long to check: beside the event loop, one at a time, clients in turn.

Checking a mebibyte of JSON takes up to some tens of milliseconds, and threads of
one interpreter share it: forty at once would leave the event loop a fortieth of
the time. So there is one thread for all of them, and a queue before it in which
each client has one body at most; the client's others wait behind that one. A batch is
checked some lines at a time: between two pieces the loop goes on alone, and others' bodies
have their turns.

Small bodies are checked in place, which costs less than the way to a thread and back, and
so is the beginning of a batch of small lines, which is all of most. How
long one takes does not follow from its size alone, and there may be one on each of a
thousand connections: once those of a moment have taken long together, others queue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Final, TypeVar

import trio

from repl_broker.message import Steps

__all__ = ["IN_PLACE_BYTES_MAX", "Checks"]

T = TypeVar("T")

IN_PLACE_BYTES_MAX: Final = 32 << 10  # the dearest of these takes some milliseconds
TINY_BYTES: Final = 1024  # not worth a look at the clock
MOMENT_SECONDS: Final = 0.05
IN_PLACE_SECONDS_MAX: Final = 0.02  # of a moment, in place
PIECE_SECONDS: Final = 0.002  # of a batch, in place and then in the thread
AT_ONCE: Final = 1  # more would share one interpreter, and take it from the event loop


class Checks:
    """The queue of a node. ``clock`` tells how long those in place take, in seconds."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._turn = trio.CapacityLimiter(AT_ONCE)
        self._lines: dict[str, trio.Lock] = {}  # of clients that have a body here
        self._clock = clock
        self._moment_ends = 0.0
        self._in_place_seconds = 0.0  # of this moment

    @property
    def waiting(self) -> int:
        """Bodies that are queued or being checked."""
        lines = self._lines.values()
        return sum(1 + line.statistics().tasks_waiting for line in lines)

    async def run(self, check: Callable[[bytes], T], body: bytes, client: str) -> T:
        """What ``check(body)`` gives or raises. ``client`` is the one whose body it is.

        Cancelling takes it out of the queue; a check that has begun is waited for.
        """
        if len(body) <= TINY_BYTES:
            return check(body)
        if len(body) <= IN_PLACE_BYTES_MAX and self._has_time():
            return self._timed(partial(check, body))
        async with self._line(client):
            return await trio.to_thread.run_sync(check, body, limiter=self._turn)

    async def run_steps(self, steps: Steps[T], body: bytes, client: str) -> T:
        """What ``steps``, which check ``body``, give or raise. They are taken in pieces."""
        result: list[T] = []
        if _has_short_lines(body) and self._has_time():
            result = self._timed(partial(_piece, steps, self._clock))
        if result:
            return result[0]
        async with self._line(client):
            while not result:
                result = await trio.to_thread.run_sync(_piece, steps, limiter=self._turn)
        return result[0]

    def _has_time(self) -> bool:
        now = self._clock()
        if now >= self._moment_ends:
            self._moment_ends = now + MOMENT_SECONDS
            self._in_place_seconds = 0.0
        return self._in_place_seconds < IN_PLACE_SECONDS_MAX

    def _timed(self, check: Callable[[], T]) -> T:
        began = self._clock()
        try:
            return check()
        finally:
            self._in_place_seconds += self._clock() - began

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


def _piece(steps: Steps[T], clock: Callable[[], float] = perf_counter) -> list[T]:
    """Take some. The result, once there is one."""
    ends_at = clock() + PIECE_SECONDS
    try:
        while clock() < ends_at:
            next(steps)
    except StopIteration as ended:
        return [ended.value]
    return []
