"""The thread that writes: one job at a time, in the order in which they came.

A write is an fsync, and must not stop the event loop. Handing it to a thread of
its own and hearing of its end by a callback costs less than a task that waits
for a worker of Trio's, and a commit waits for nothing else.

Two changes of threads still take as long as a small write does on a disk that
keeps its cache when the power fails, and cost a quarter of the CPU of a publish.
So a job that is said to be *quick* is run in place, on the event loop, as long as
half of those before it took less than ``IN_PLACE_SECONDS_MAX``.

One that stalls holds up the whole node; if that takes long, the others of a
cluster elect another leader. So after a stall the next jobs make a *detour* by
the thread, until so many in a row did not stall: fifteen at first, since a disk
that others use as well stalls now and then, and to keep away from it for long
costs more than the stall did. After each detour the next is twice as long, after
each hundred jobs without a stall half as long: a disk that stalls at every
fiftieth write gets its writes in the thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from time import perf_counter
from typing import Final, Protocol

import trio

__all__ = ["Done", "ThreadWriter", "Writer"]

IN_PLACE_SECONDS_MAX: Final = 0.001  # the median of quick jobs, to be run in place
MEDIAN_SECONDS_MIN: Final = IN_PLACE_SECONDS_MAX / 2  # no estimate is better, or worse:
MEDIAN_SECONDS_MAX: Final = IN_PLACE_SECONDS_MAX * 2  # the bound is some fifteen steps away
STEP: Final = 1.05  # by which each quick job moves the estimate of the median
STALL_SECONDS: Final = 0.01  # what takes longer is a stall
DETOUR_JOBS_MIN: Final = 15
DETOUR_JOBS_MAX: Final = 16 * DETOUR_JOBS_MIN
CALM_JOBS: Final = 100  # without a stall, to halve the next detour

Done = Callable[[Exception | None], None]


class Writer(Protocol):
    """Runs jobs, in order, beside the event loop or quickly in it."""

    @property
    def is_quick(self) -> bool:
        """Whether a quick job would be run in place now."""
        ...

    @property
    def busy_seconds(self) -> float:
        """For how long the present job has been running beside the event loop; 0 without one."""
        ...

    def submit(self, job: Callable[[], None], done: Done, *, quick: bool = False) -> None:
        """Run ``job``; then call ``done`` in the event loop, with what it raised: before this
        returns, if it was run in place. ``done`` must not raise."""
        ...

    async def close(self) -> None:
        """Wait until every job that was submitted has run."""
        ...


class ThreadWriter:
    """A thread, from the first job until ``close``. ``clock`` gives seconds: what a job took."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._jobs: SimpleQueue[tuple[Callable[[], None], Done, bool] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._under_way = 0  # jobs in the thread, or on their way there and back
        self._job_began: float | None = None  # of the job in the thread, by ``clock``
        self._median_seconds = MEDIAN_SECONDS_MAX  # of quick jobs; nothing is known of the disk yet
        self._detour = 0  # so many quick jobs are still to be run in the thread, if none stalls
        self._detour_jobs = DETOUR_JOBS_MIN  # at the next stall
        self._calm = 0  # quick jobs without a stall, up to CALM_JOBS

    @property
    def is_quick(self) -> bool:
        is_quick = not self._detour and self._median_seconds < IN_PLACE_SECONDS_MAX
        return is_quick and not self._under_way

    @property
    def busy_seconds(self) -> float:
        began = self._job_began
        return 0.0 if began is None else self._clock() - began

    def submit(self, job: Callable[[], None], done: Done, *, quick: bool = False) -> None:
        if quick and self.is_quick:
            done(self._run(job, quick))
            return
        if self._thread is None:
            token = trio.lowlevel.current_trio_token()
            self._thread = threading.Thread(target=self._work, args=(token,), name="writer")
            self._thread.daemon = True
            self._thread.start()
        self._under_way += 1
        self._jobs.put((job, done, quick))

    def _work(self, token: trio.lowlevel.TrioToken) -> None:
        while (item := self._jobs.get()) is not None:
            job, done, quick = item
            self._job_began = self._clock()
            error = self._run(job, quick)
            self._job_began = None
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._tell, done, error)

    def _tell(self, done: Done, error: Exception | None) -> None:
        self._under_way -= 1
        done(error)

    def _run(self, job: Callable[[], None], quick: bool) -> Exception | None:
        began = self._clock()
        try:
            job()
        except Exception as raised:  # noqa: BLE001  who submitted it decides
            return raised
        if quick:
            self._took(self._clock() - began)
        return None

    def _took(self, seconds: float) -> None:
        if seconds > self._median_seconds:
            self._median_seconds = min(self._median_seconds * STEP, MEDIAN_SECONDS_MAX)
        else:
            self._median_seconds = max(self._median_seconds / STEP, MEDIAN_SECONDS_MIN)
        if seconds > STALL_SECONDS:
            self._detour = self._detour_jobs
            self._calm = 0
        elif self._detour:
            self._detour -= 1
            if not self._detour:
                self._detour_jobs = min(2 * self._detour_jobs, DETOUR_JOBS_MAX)
        else:
            self._calm += 1
            if self._calm == CALM_JOBS:
                self._calm = 0
                self._detour_jobs = max(self._detour_jobs // 2, DETOUR_JOBS_MIN)

    async def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._thread.join)
            self._thread = None
