# ruff: noqa: ASYNC110  time is simulated: looking costs none
"""A host: a disk, a clock, an address, and the node that runs on it, put together as the daemon
puts it together (repl_broker/node.py), with the doors left out: clients call the broker.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from repl_broker.access import Access
from repl_broker.certificates import Certificates
from repl_broker.config import Address, Config
from repl_broker.node import Node, Seams
from repl_broker.storage import SqliteStorage
from repl_broker.writer import Done
from tests.world.disk import SimDisk

if TYPE_CHECKING:
    from tests.world.world import World

__all__ = ["Clock", "Life", "Machine", "SimulatedWriter"]

EPOCH_MS: Final = 1_800_000_000_000
QUICK_SECONDS: Final = 0.001  # a disk below this is written in place


class Clock:
    """A clock of day, which goes wrong, runs at a pace of its own, and jumps."""

    def __init__(self) -> None:
        self.rate = 1.0
        self.ahead_ms = 0.0

    def __call__(self) -> int:
        return int(EPOCH_MS + trio.current_time() * 1000 * self.rate + self.ahead_ms)


class SimulatedWriter:
    """The writer's thread: one job after the other, each at one moment of the time it takes."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._jobs: deque[tuple[Callable[[], None], Done]] = deque()
        self._began: float | None = None
        self._changed = trio.Event()
        self._is_over = False  # no job will be run any more

    @property
    def is_quick(self) -> bool:
        machine = self._life.machine
        return machine.disk.mean_seconds < QUICK_SECONDS and self._began is None and not self._jobs

    @property
    def busy_seconds(self) -> float:
        return 0.0 if self._began is None else trio.current_time() - self._began

    def submit(self, job: Callable[[], None], done: Done, *, quick: bool = False) -> None:
        if quick and self.is_quick:
            done(self._run(job))
            return
        self._jobs.append((job, done))
        self._changed.set()

    def _run(self, job: Callable[[], None]) -> Exception | None:
        try:
            self._life.machine.at_disk(self._life, job)
        except Exception as error:  # noqa: BLE001  who submitted it decides
            return error
        return None

    async def run(self) -> None:
        try:
            await self._run_jobs()
        finally:
            self._is_over = True

    async def _run_jobs(self) -> None:
        chance = self._life.machine.chance
        while True:
            while not self._jobs:
                self._changed = trio.Event()
                await self._changed.wait()
            self._began = trio.current_time()
            seconds = self._life.machine.disk.delay_seconds()
            before = seconds * chance.random()
            await trio.sleep(before)
            job, done = self._jobs[0]
            error = self._run(job)
            await trio.sleep(seconds - before)  # it is on the disk, and nobody knows yet
            if self._life.was_killed:
                return
            self._jobs.popleft()
            self._began = None
            if not self._life.is_over:
                done(error)
            self._changed.set()

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            while self._jobs and not self._is_over and not self._life.was_killed:
                await trio.sleep(0.001)


class Life:
    """One run of the node's process."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine = machine
        self.number = number
        self.node: Node | None = None
        self.is_serving = False
        self.is_over = False
        self.was_killed = False
        self.scope = trio.CancelScope()
        self.stop = trio.Event()
        self.calls: dict[trio.CancelScope, None] = {}  # of clients
        self.writer = SimulatedWriter(self)
        self.failure: BaseException | None = None

    @property
    def name(self) -> str:
        return self.machine.name


class Machine:
    """``start``, ``kill`` and ``stop`` a node here; its disk outlives it."""

    def __init__(self, world: World, number: int, config: Config) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number}"
        self.address = ("127.0.0.1", 20_000 + number)
        self.chance = random.Random(f"machine {number} {world.schedule.seed}")
        self.mounts = ExitStack()
        self.disk = SimDisk(self.chance, name=self.name)
        self.clock = Clock()
        self.config = config
        self.life: Life | None = None
        self.lives = 0
        self.may_fail = False  # its disk was told to: then the node may end by itself
        self.fails_until = 0.0  # because it was full
        self.lost_data = False  # … and that has happened
        self.may_lose = False  # its disk lied: then the node ends, and is replaced
        self.was_removed = False  # the node has left, as it was told to
        self.has_power = True
        self.power_fails = False  # when the disk stops in the middle of an operation
        self.bootstraps = number == 1
        self.is_replaced = False  # it is removed, emptied, and to join again

    @property
    def is_serving(self) -> bool:
        return self.life is not None and self.life.is_serving

    @property
    def leads(self) -> bool:
        node = self.life.node if self.life is not None else None
        return node is not None and node.replica.leads

    def is_member(self) -> bool:
        """Whether its node knows that it is one."""
        life = self.life
        if life is None or life.node is None:
            return False
        return self.name in life.node.replica.committed_membership.voters

    # --- the disk ---

    def mount(self) -> None:
        self.mounts.enter_context(self.disk.mounted())

    def wipe(self) -> None:
        """Another disk takes its place, with nothing on it."""
        self.mounts.close()
        self.may_lose = self.lost_data = False
        self.disk = SimDisk(self.chance, name=self.name, mean_seconds=self.disk.mean_seconds)
        self.mount()

    def at_disk(self, life: Life, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        finally:
            if self.disk.is_down and self.life is life:  # it was to end within this call
                self.kill(power=self.power_fails)

    def kill_within(self, operations: int, *, power: bool) -> None:
        """In the middle of what is written next, unless nothing is."""
        if self.life is not None:
            self.power_fails = power
            self.disk.stop_in(operations, "crash" if power else "kill")

    async def in_thread(self, life: Life, call: Callable[..., Any], *arguments: Any) -> Any:
        """As a worker thread does it: a wait that nothing cancels."""
        with trio.CancelScope(shield=True):
            await trio.sleep(self.chance.random() * 0.002)
            if not life.was_killed:
                result = self.at_disk(life, call, *arguments)
                await trio.sleep(self.chance.random() * 0.002)
        if life.was_killed:
            await trio.sleep_forever()  # who asked for it is no more
        return result

    # --- the process ---

    def start(self) -> None:
        assert self.life is None
        self.lives += 1
        self.has_power = True
        self.disk.start()
        self.life = Life(self, self.lives)
        self.world.note("start", self.name, self.lives)
        self.world.spawn(self._live, self.life)

    def kill(self, *, power: bool) -> None:
        """End it without ceremony; with ``power``, that of the whole host fails."""
        self.world.note("kill", self.name, power)
        life = self.life
        if power and self.has_power:
            self.has_power = False
            self.world.network.power_fails(self.name)
        if life is None:
            return
        if not self.disk.is_down:
            (self.disk.crash if power else self.disk.kill)()
        life.was_killed = True
        if life.node is not None:
            life.node.storage._failed = "the process is dead"
        self._end(life)

    def stop(self) -> None:
        """SIGTERM."""
        if self.life is not None:
            self.world.note("stop", self.name)
            self.life.stop.set()

    def _end(self, life: Life) -> None:
        life.is_over, life.is_serving = True, False
        if self.life is life:
            self.life = None
        if self.has_power:
            self.world.network.process_dies(self.name)
        life.scope.cancel()
        for scope in [*life.calls]:
            scope.cancel()

    async def _live(self, life: Life) -> None:
        if self.name in self.world.network.dark:
            self.world.network.power_returns(self.name)
        error: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.writer.run)
            try:
                with life.scope:
                    await self._serve(life)
            except BaseException as raised:
                error = raised
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                if isinstance(error, trio.Cancelled):
                    raise
            nursery.cancel_scope.cancel()
        if not life.was_killed:
            life.failure = error
            self._end(life)
            self.world.ended(self, life)

    async def _serve(self, life: Life) -> None:
        config = replace(self.config, node=replace(self.config.node, data_dir=self.disk.path))
        storage = self.at_disk(life, SqliteStorage, self.disk.path, self.name)
        seams = Seams(
            self.clock,
            partial(self.in_thread, life),
            life.writer,
            random.Random(f"{self.name} {life.number} {self.world.schedule.seed}"),
        )
        node = Node(config, storage, Access(config), Certificates(config), seams=seams)
        life.node = node
        self.world.truth.watch(life, node)
        try:
            await node.load(bootstrap=self.bootstraps)
            listener: Any = self.world.network.listen(self.name, self.address)
            http: Any = _Http(self.address[1] + 10_000)
            await node.connect([http], [listener] if node.clustered else [])
            self.world.truth.loaded(life, node)
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run, partial(self._part, node))
                life.is_serving = True
                await self._until_stopped(life, node)
                await self._drain(life, node)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await node.close()
                self.at_disk(life, storage.close)

    async def _part(self, node: Node) -> None:
        node.broker.draining = True
        node.hub.close()

    async def _until_stopped(self, life: Life, node: Node) -> None:
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, life.stop)
            nursery.start_soon(wait, node.replica.removed)

    async def _drain(self, life: Life, node: Node) -> None:
        """As the daemon does it, between the signal and the end."""
        if node.replica.removed.is_set():
            self.was_removed = True
            self.world.note("left", self.name)
        await node.replica.hand_over()
        node.broker.draining = True
        await node.replica.drain(5)
        node.hub.close()
        with trio.move_on_after(1):
            while life.calls:
                await trio.sleep(0.01)
        life.is_serving = False


class _Http:
    """Where HTTP would be listened to."""

    def __init__(self, port: int) -> None:
        self.socket = self
        self._port = port

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self._port


def make_config(number: int, addresses: list[tuple[str, int]], base: Config) -> Config:
    host, port = addresses[number - 1]
    return replace(
        base,
        node=replace(base.node, id=f"n{number}"),
        raft=replace(base.raft, bind=Address(host, port)),
        cluster=replace(base.cluster, join=tuple(Address(*each) for each in addresses)),
    )
