"""The thread that writes: one job at a time, in the order in which they came.

A write is an fsync, and must not stop the event loop. Handing it to a thread of
its own and hearing of its end by a callback costs less than a task that waits
for a worker of Trio's, and a commit waits for nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

import trio

__all__ = ["Done", "ThreadWriter", "Writer"]

Done = Callable[[Exception | None], None]


class Writer(Protocol):
    """Runs jobs, in order, beside the event loop."""

    def submit(self, job: Callable[[], None], done: Done) -> None:
        """Run ``job``; then call ``done`` in the event loop, with what it raised. ``done``
        must not raise."""
        ...

    async def close(self) -> None:
        """Wait until every job that was submitted has run."""
        ...


class ThreadWriter:
    """A thread, from the first job until ``close``."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], None], Done] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None], done: Done) -> None:
        if self._thread is None:
            token = trio.lowlevel.current_trio_token()
            self._thread = threading.Thread(target=self._run, args=(token,), name="writer")
            self._thread.daemon = True
            self._thread.start()
        self._jobs.put((job, done))

    def _run(self, token: trio.lowlevel.TrioToken) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            error: Exception | None = None
            try:
                job()
            except Exception as raised:  # noqa: BLE001  who submitted it decides
                error = raised
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done, error)

    async def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._thread.join)
            self._thread = None
