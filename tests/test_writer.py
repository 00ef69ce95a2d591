"""The thread that writes: order, errors, and its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import trio

from repl_broker.writer import ThreadWriter


class Jobs:
    """What is given to a writer, and what is heard of it."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.heard: list[tuple[int, Exception | None]] = []
        self.threads: set[int] = set()
        self.news = trio.Event()

    def submit(self, writer: ThreadWriter, number: int, job: Callable[[], None]) -> None:
        def run() -> None:
            self.threads.add(threading.get_ident())
            self.ran.append(number)
            job()

        writer.submit(run, partial(self.done, number))

    def done(self, number: int, error: Exception | None) -> None:
        assert trio.lowlevel.current_trio_token() is not None, "it is called in the event loop"
        self.heard.append((number, error))
        self.news.set()

    async def wait_heard(self, count: int) -> None:
        with trio.fail_after(5):
            while len(self.heard) < count:
                self.news = trio.Event()
                await self.news.wait()


def nothing() -> None:
    pass


async def test_jobs_run_one_at_a_time_in_their_order_and_in_another_thread() -> None:
    writer, jobs = ThreadWriter(), Jobs()
    for number in range(100):
        jobs.submit(writer, number, nothing)
    await jobs.wait_heard(100)
    await writer.close()
    assert jobs.ran == [*range(100)]
    assert jobs.heard == [(number, None) for number in range(100)]
    assert len(jobs.threads) == 1
    assert threading.get_ident() not in jobs.threads


async def test_a_job_that_waits_does_not_stop_the_event_loop() -> None:
    writer, jobs = ThreadWriter(), Jobs()
    go_on = threading.Event()
    jobs.submit(writer, 1, lambda: _waited(go_on))
    await trio.lowlevel.checkpoint()
    assert jobs.heard == []
    go_on.set()
    await jobs.wait_heard(1)
    await writer.close()


async def test_an_error_reaches_who_submitted_the_job_and_the_next_one_runs() -> None:
    """What may follow a failed write is not the writer's to say."""
    writer, jobs = ThreadWriter(), Jobs()
    full = OSError(28, "No space left on device")

    def fail() -> None:
        raise full

    jobs.submit(writer, 1, fail)
    jobs.submit(writer, 2, nothing)
    await jobs.wait_heard(2)
    await writer.close()
    assert jobs.heard == [(1, full), (2, None)]


async def test_closing_waits_for_every_job_that_was_submitted() -> None:
    """Even when the node is cancelled: a write that has begun is not left to itself."""
    writer, jobs = ThreadWriter(), Jobs()
    go_on = threading.Event()
    jobs.submit(writer, 1, lambda: _waited(go_on))
    jobs.submit(writer, 2, nothing)
    closed = trio.Event()

    async def close() -> None:
        await writer.close()
        closed.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            assert not closed.is_set()
            go_on.set()
    assert jobs.ran == [1, 2]
    assert not [t for t in threading.enumerate() if t.ident in jobs.threads]


async def test_a_writer_that_was_never_used_is_closed_at_once() -> None:
    before = threading.active_count()
    with trio.fail_after(1):
        await ThreadWriter().close()
    assert threading.active_count() == before


async def test_a_writer_that_was_closed_can_be_used_again() -> None:
    writer, jobs = ThreadWriter(), Jobs()
    for number in range(2):
        jobs.submit(writer, number, nothing)
        await writer.close()
        await writer.close()
    assert jobs.ran == [0, 1]


def _waited(event: threading.Event) -> None:
    assert event.wait(5)
