"""When the manager is told what, with a replica that can be made to hang."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repl_broker import service as module
from repl_broker.config import Config, load
from repl_broker.reload import Hook, Reloader
from repl_broker.service import Service
from repl_broker.systemd import Manager

INTERVAL = 10.0  # seconds that the manager waits for a sign of life


class Replica:
    """Alive, unless told otherwise."""

    def __init__(self) -> None:
        self.writing_seconds = 0.0
        self.drives = True

    async def prove_alive(self) -> None:
        if not self.drives:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()


class Ear:
    """The manager's end of the wire."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every line since the last time."""
        found: list[str] = []
        while True:
            try:
                found += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return found

    def count(self, line: str) -> int:
        return self.heard().count(line)


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    made = Ear(tmp_path / "notify")
    yield made
    made.socket.close()


@pytest.fixture
def service(ear: Ear) -> Iterator[Service]:
    made = Service(Manager(ear.path, INTERVAL))
    yield made
    made.manager.close()


def test_a_drain_asks_for_the_time_that_it_takes(ear: Ear, service: Service) -> None:
    service.stopping()
    service.extend_stop(300)  # more than the unit's TimeoutStopSec=
    assert ear.heard()[2:] == ["EXTEND_TIMEOUT_USEC=360000000", "STATUS=draining for 300 s"]


async def test_signs_of_life_come_twice_in_each_interval(
    ear: Ear, service: Service, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run, Replica())
        await trio.sleep(1)
        assert ear.count("WATCHDOG=1") == 1
        for _ in range(20):  # one by one: the kernel's queue is short
            await trio.sleep(INTERVAL)
            assert ear.count("WATCHDOG=1") == 2
        nursery.cancel_scope.cancel()


async def test_a_write_that_hangs_ends_the_signs_of_life(
    ear: Ear, service: Service, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run, replica)
        await trio.sleep(1)
        ear.heard()
        replica.writing_seconds = INTERVAL - 0.1  # slow, not stuck
        await trio.sleep(INTERVAL / 2)
        assert ear.count("WATCHDOG=1") == 1
        replica.writing_seconds = INTERVAL
        await trio.sleep(5 * INTERVAL)
        assert ear.count("WATCHDOG=1") == 0
        (line,) = [record.getMessage() for record in caplog.records]
        assert "the disk has been at one write for 10.0 seconds" in line
        replica.writing_seconds = 0.0
        await trio.sleep(INTERVAL)
        assert ear.count("WATCHDOG=1") == 2
        nursery.cancel_scope.cancel()


async def test_a_driving_task_that_hangs_ends_the_signs_of_life(
    ear: Ear, service: Service, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    replica = Replica()
    replica.drives = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run, replica)
        await trio.sleep(5 * INTERVAL)
        assert ear.count("WATCHDOG=1") == 0
        assert "does not come round" in caplog.text
        nursery.cancel_scope.cancel()


async def test_without_a_watchdog_there_are_no_signs_of_life(
    ear: Ear, autojump_clock: MockClock
) -> None:
    service = Service(Manager(ear.path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run, Replica())
        await trio.sleep(100)
        assert ear.count("WATCHDOG=1") == 0
        nursery.cancel_scope.cancel()
    service.manager.close()


async def test_without_a_manager_there_is_nothing_to_run(autojump_clock: MockClock) -> None:
    service = Service()
    with trio.fail_after(1):
        await service.extend_start()
        await service.ready(lambda: "well")
        await service.run(Replica())
        await service.reload()
        service.stopping()


async def test_the_status_is_told_when_it_changes_and_not_more_often_than_that(
    ear: Ear, service: Service, autojump_clock: MockClock
) -> None:
    streams = 0
    await service.ready(lambda: f"{streams} streams")
    assert ear.heard() == ["READY=1", "STATUS=0 streams"]
    service.manager.watchdog_seconds = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run, Replica())
        await trio.sleep(60)
        ear.heard()
        for streams in range(1, 1001):  # noqa: B007  the status reads it
            await trio.sleep(0.01)
        assert len(ear.heard()) <= 10 / module.STATUS_SECONDS + 1
        await trio.sleep(60)
        assert ear.heard() in (["STATUS=1000 streams"], [])
        nursery.cancel_scope.cancel()


async def test_a_long_start_asks_for_more_time_until_it_serves(
    ear: Ear, service: Service, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.extend_start)
        await trio.sleep(99)
        assert ear.count("EXTEND_TIMEOUT_USEC=60000000") == 5
        await service.ready(lambda: "well")
        await wait_all_tasks_blocked()
        ear.heard()
        await trio.sleep(1000)
        assert ear.heard() == []


async def test_a_start_that_hangs_does_not_ask_for_ever(
    ear: Ear, service: Service, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.extend_start)
        await trio.sleep(module.EXTEND_SECONDS_MAX - 1)
        ear.heard()
        await trio.sleep(10_000)
        assert ear.heard() == []


async def test_a_manager_that_is_busy_hears_of_it_a_moment_later(
    ear: Ear, service: Service, autojump_clock: MockClock
) -> None:
    while service.manager.tell("WATCHDOG=1"):
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.ready, lambda: "well")
        await wait_all_tasks_blocked()
        ear.heard()
        await trio.sleep(1)
    assert ear.heard() == ["READY=1", "STATUS=well"]


async def test_a_reload_is_told_before_and_after(ear: Ear, autojump_clock: MockClock) -> None:
    order: list[str] = []

    def read() -> Config:
        order.extend(ear.heard())
        return load(options={"log.level": "debug", "node.id": "n9"})

    reloader = Reloader(Config(), read)
    reloader.hooks = [Hook("log", ("log.*",), lambda config: order.append("applied"))]
    service = Service(Manager(ear.path), reloader)
    await service.ready(lambda: "well")
    ear.heard()
    await service.reload()
    order.extend(ear.heard())
    first, time, status, *rest = order
    assert (first, status) == ("RELOADING=1", "STATUS=reading the configuration")
    assert time.startswith("MONOTONIC_USEC=")
    assert rest == [
        "applied",
        "READY=1",
        "STATUS=well; applied log.level; restart for node.id",
    ]
    service.manager.close()


async def test_a_node_that_stops_says_so_once_and_reloads_no_more(
    ear: Ear, autojump_clock: MockClock
) -> None:
    def read() -> Config:
        raise AssertionError("nothing is read")

    service = Service(Manager(ear.path), Reloader(Config(), read))
    service.stopping()
    service.stopping()
    await service.reload()
    assert ear.heard() == ["STOPPING=1", "STATUS=stopping"]
    service.manager.close()
