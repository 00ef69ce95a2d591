"""The thread that writes: order, errors, its end, and when it is passed by."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
import trio

from repl_broker.writer import ThreadWriter


class Jobs:
    """What is given to a writer, and what is heard of it."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.heard: list[tuple[int, Exception | None]] = []
        self.threads: set[int] = set()
        self.news = trio.Event()

    def submit(
        self, writer: ThreadWriter, number: int, job: Callable[[], None], *, quick: bool = False
    ) -> None:
        def run() -> None:
            self.threads.add(threading.get_ident())
            self.ran.append(number)
            job()

        writer.submit(run, partial(self.done, number), quick=quick)

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


class Disk:
    """Time that passes in the jobs only."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds  # that a job takes
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def write(self) -> None:
        self.now += self.seconds


QUICK, SLOW, STALL = 0.000_2, 0.002, 0.05  # seconds of a job


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


async def test_a_job_that_hangs_shows_by_how_long_it_takes() -> None:
    disk = Disk(seconds=0.0)
    writer, jobs = ThreadWriter(disk), Jobs()
    assert writer.busy_seconds == 0
    began, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        _waited(go_on)

    jobs.submit(writer, 1, hang)
    await trio.to_thread.run_sync(began.wait)
    disk.now += 7.0
    assert writer.busy_seconds == 7.0
    go_on.set()
    await jobs.wait_heard(1)
    assert writer.busy_seconds == 0
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


# --- in place ---


async def quick_writer(disk: Disk, jobs: Jobs) -> ThreadWriter:
    """A writer that knows its disk to be quick. Its jobs so far are forgotten."""
    writer = ThreadWriter(disk)
    for number in range(200):
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number + 1)
        if writer.is_quick:
            break
    assert writer.is_quick
    jobs.__init__()  # type: ignore[misc]
    return writer


def in_place(jobs: Jobs) -> bool:
    """Whether all jobs since the last call ran in the event loop; or none did."""
    threads, jobs.threads = jobs.threads, set()
    assert len(threads) == 1
    return threads == {threading.get_ident()}


async def test_a_writer_that_knows_nothing_of_its_disk_uses_its_thread() -> None:
    disk, jobs = Disk(QUICK), Jobs()
    writer = ThreadWriter(disk)
    assert not writer.is_quick
    for number in range(10):
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number + 1)
    assert not in_place(jobs)
    await writer.close()


async def test_a_quick_job_of_a_quick_disk_is_done_when_submit_returns() -> None:
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    for number in range(1000):
        jobs.submit(writer, number, disk.write, quick=True)
        assert jobs.heard[-1] == (number, None)
    assert in_place(jobs)
    await writer.close()


async def test_a_job_that_is_not_quick_never_runs_in_place() -> None:
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    jobs.submit(writer, 0, disk.write)
    await jobs.wait_heard(1)
    assert not in_place(jobs)
    await writer.close()


async def test_a_quick_job_waits_its_turn_behind_others() -> None:
    """It may rest on what they write, and the store takes one writer at a time."""
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    go_on = threading.Event()
    jobs.submit(writer, 0, lambda: _waited(go_on))
    assert not writer.is_quick
    jobs.submit(writer, 1, disk.write, quick=True)
    assert jobs.heard == []
    go_on.set()
    await jobs.wait_heard(2)
    assert jobs.heard == [(0, None), (1, None)]
    assert writer.is_quick, "all that was under way is over"
    await writer.close()


async def test_after_a_stall_the_next_jobs_go_to_the_thread_until_the_disk_is_quick() -> None:
    """It held up the whole node once; one more is not risked."""
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    disk.seconds = STALL
    jobs.submit(writer, 0, disk.write, quick=True)
    assert in_place(jobs)
    disk.seconds = QUICK
    for number in range(1, 11):
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number + 1)
    assert not in_place(jobs)
    for number in range(11, 21):
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number + 1)
    jobs.threads.clear()
    jobs.submit(writer, 21, disk.write, quick=True)
    assert in_place(jobs)
    await writer.close()


@pytest.mark.parametrize("seconds", [0.009, STALL])
async def test_a_disk_that_was_slow_for_long_is_written_to_in_place_soon_again(
    seconds: float,
) -> None:
    """How slow it was, and for how long, says nothing once it is quick."""
    disk, jobs = Disk(seconds), Jobs()
    writer = ThreadWriter(disk)
    for number in range(200):
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number + 1)
    disk.seconds = QUICK
    for number in range(200, 220):
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number + 1)
    jobs.threads.clear()
    jobs.submit(writer, 220, disk.write, quick=True)
    assert in_place(jobs)
    await writer.close()


async def stalls_in_place(jobs_each: int, count: int) -> int:
    """How many of ``count`` stalls, one every ``jobs_each`` jobs, hold up the event loop."""
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    found = 0
    for number in range(1, count * jobs_each + 1):
        disk.seconds = QUICK if number % jobs_each else STALL
        found += writer.is_quick and number % jobs_each == 0
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number)
    await writer.close()
    return found


async def test_a_disk_that_stalls_again_and_again_gets_its_jobs_in_the_thread() -> None:
    """Each stall would hold up the node; one that stalls hardly ever is worth it."""
    assert await stalls_in_place(10, 20) == 1
    assert await stalls_in_place(50, 20) == 3
    assert await stalls_in_place(300, 5) == 5


async def test_stalls_of_long_ago_count_no_more() -> None:
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    number = 0

    async def submit(count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            jobs.submit(writer, number, disk.write, quick=True)
            await jobs.wait_heard(number)

    async def detour_after_a_stall() -> int:
        disk.seconds = STALL
        await submit(1)
        disk.seconds = QUICK
        before = number
        while not writer.is_quick:
            await submit(1)
        return number - before

    assert [await detour_after_a_stall() for _ in range(6)] == [15, 30, 60, 120, 240, 240]
    await submit(2 * 100)
    assert await detour_after_a_stall() == 60
    await submit(20 * 100)
    assert await detour_after_a_stall() == 15
    await writer.close()


@pytest.mark.parametrize("seconds", [QUICK / 10, QUICK])
async def test_how_quick_a_disk_was_says_nothing_when_it_is_slow(seconds: float) -> None:
    disk, jobs = Disk(seconds), Jobs()
    writer = await quick_writer(disk, jobs)
    for number in range(300):
        jobs.submit(writer, number, disk.write, quick=True)
    jobs.threads.clear()
    disk.seconds = SLOW
    for number in range(300, 320):
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number + 1)
    assert len(jobs.threads) == 2
    assert not writer.is_quick
    await writer.close()


async def test_a_disk_that_grows_slow_gets_its_jobs_in_the_thread() -> None:
    """Half of them take more than is allowed; one that does is no reason yet."""
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    disk.seconds = SLOW
    jobs.submit(writer, 0, disk.write, quick=True)
    disk.seconds = QUICK
    jobs.submit(writer, 1, disk.write, quick=True)
    jobs.submit(writer, 2, disk.write, quick=True)
    assert in_place(jobs)
    disk.seconds = SLOW
    for number in range(3, 60):
        jobs.submit(writer, number, disk.write, quick=True)
        await jobs.wait_heard(number + 1)
    jobs.threads.clear()
    jobs.submit(writer, 60, disk.write, quick=True)
    await jobs.wait_heard(61)
    assert not in_place(jobs)
    await writer.close()


async def test_what_jobs_that_are_not_quick_take_says_nothing_of_the_others() -> None:
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    disk.seconds = STALL
    for number in range(10):
        jobs.submit(writer, number, disk.write)
    await jobs.wait_heard(10)
    assert writer.is_quick
    await writer.close()


async def test_an_error_in_place_reaches_who_submitted_the_job() -> None:
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    full = OSError(28, "No space left on device")

    def fail() -> None:
        raise full

    jobs.submit(writer, 0, fail, quick=True)
    jobs.submit(writer, 1, disk.write, quick=True)
    assert jobs.heard == [(0, full), (1, None)]
    await writer.close()


async def test_a_job_may_be_submitted_when_one_in_place_is_done() -> None:
    disk, jobs = Disk(QUICK), Jobs()
    writer = await quick_writer(disk, jobs)
    heard: list[int] = []

    def done(number: int, error: Exception | None) -> None:
        heard.append(number)
        if number < 3:
            writer.submit(disk.write, partial(done, number + 1), quick=True)

    writer.submit(disk.write, partial(done, 0), quick=True)
    assert heard == [0, 1, 2, 3]
    await writer.close()


def _waited(event: threading.Event) -> None:
    assert event.wait(5)
