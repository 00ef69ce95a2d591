# ruff: noqa: ASYNC110  time is simulated: looking costs none
"""One run: a cluster is formed, the weather is bad, it clears up, and all is compared.

Then every node is ended, by a signal or by a power failure, and started again: it must say
what it said before.
"""

from __future__ import annotations

import hashlib
import logging
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio

from repl_broker.errors import ConfigError, RequestError, StorageError
from repl_broker.forgotten import FORGOTTEN
from tests.world import events
from tests.world.clients import ANYONE, TOPICS, Follower, Writer
from tests.world.machine import Life, Machine, make_config
from tests.world.network import Network
from tests.world.seams import deterministic, world_clock
from tests.world.truth import Truth, ViolationError
from tests.world.weather import Schedule

__all__ = ["Result", "World", "run"]

FORM_SECONDS: Final = 60
HEAL_SECONDS: Final = 120  # until all is level again, with nothing wrong any more
TRACE_LINES: Final = 400
PROCESSOR_SECONDS: Final = 30  # for a run, which takes one or two


@dataclass
class Result:
    """``violation`` is None for a run in which all was as it must be."""

    seed: int
    violation: str | None
    digest: str
    seconds: float  # simulated
    applied: int
    messages: int
    trace: list[str]


class World:
    """Machines, a network, clients, and what goes wrong."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._hash = hashlib.blake2b(digest_size=16)
        self._trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.network = Network(schedule.seed)
        self.truth = Truth(self.note, schedule.idempotency_seconds)
        addresses = [("127.0.0.1", 20_000 + n) for n in range(1, schedule.size + 1)]
        base = schedule.config()
        self.machines = [
            Machine(self, n, make_config(n, addresses, base)) for n in range(1, schedule.size + 1)
        ]
        for machine in self.machines:
            self.network.hosts[machine.address] = machine.name
            machine.disk.mean_seconds = schedule.paces[machine.number - 1]
            machine.clock.rate = 1 + schedule.drift[machine.number - 1]
        for one in self.machines:
            for other in self.machines:
                line = self.network.line(one.name, other.name)
                line.latency, line.jitter = schedule.latency, schedule.latency
                line.bytes_per_second = schedule.bytes_per_second
        self.writers = [Writer(self, number) for number in schedule.clients]
        self.followers = [Follower(self, number) for number in schedule.streams]
        self.acknowledged: dict[str, int] = {}  # by topic: the newest seq that somebody was told
        self.settings_acknowledged: dict[str, list[tuple[float, float, int]]] = {}
        self.numbers = 0
        self.is_stormy = True
        self.weather_ends = 0.0
        self.first_term = 0
        self._nursery: trio.Nursery | None = None
        self.violation: ViolationError | None = None

    # --- what others use ---

    def note(self, *what: object) -> None:
        line = f"{trio.current_time():10.5f} {' '.join(map(str, what))}"
        self._hash.update(line.encode())
        self._trace.append(line)

    def spawn(self, task: Callable[..., Any], *arguments: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, *arguments)

    def ended(self, machine: Machine, life: Life) -> None:
        """A node has come to its end; by itself, unless it was stopped."""
        error = life.failure
        self.note("ended", machine.name, repr(error))
        if error is None:
            if not machine.was_removed and not life.stop.is_set():
                self.fail(f"{machine.name} ended by itself")
            return
        if isinstance(error, ViolationError):
            self.violation = self.violation or error
            self.cancel()
        elif self._was_told_to_fail(machine) and self._says_so(error):
            machine.may_fail = False
            self.spawn(self._start_later, machine, 0.5)
        elif machine.lost_data and isinstance(error, StorageError):
            pass  # somebody has started it again before it was replaced
        elif machine.may_lose and isinstance(error, StorageError):
            events.replace_lost(self, machine)
        elif isinstance(error, ConfigError) and machine.is_replaced:
            self.spawn(self._start_later, machine, 0.5)
        else:
            self.fail(f"{machine.name} ended by itself: {type(error).__name__}: {error}")

    def _was_told_to_fail(self, machine: Machine) -> bool:
        """Its disk was full, or failed."""
        return machine.may_fail or trio.current_time() < machine.fails_until

    def _says_so(self, error: BaseException) -> bool:
        return isinstance(error, StorageError | ConfigError) and "damaged" not in str(error)

    def fail(self, text: str) -> None:
        self.violation = self.violation or ViolationError(text)
        self.cancel()

    def cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # --- a run ---

    async def run(self) -> None:
        for machine in self.machines:
            machine.mount()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.network.run)
                await self._form()
                await self._storm()
                await self._heal()
                await self._compare()
                await self._start_again()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            found = group.subgroup(ViolationError)
            if found is None:
                raise
            error: BaseException = found
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert isinstance(error, ViolationError)
            self.violation = self.violation or error
        finally:
            for machine in self.machines:
                machine.mounts.close()

    async def _form(self) -> None:
        """n1 founds, the others join."""
        for machine in self.machines:
            machine.start()
            await trio.sleep(0.2)
        await self.until(self._is_level, FORM_SECONDS, "the cluster to form")
        self.note("formed")
        self.first_term = max(self.truth.leaders)

    async def _storm(self) -> None:
        began = trio.current_time()
        self.weather_ends = began + self.schedule.seconds
        for writer in self.writers:
            self.spawn(self._client, writer)
        for follower in self.followers:
            self.spawn(follower.run)
        for event in self.schedule.events:
            await trio.sleep_until(began + event.at)
            self.note("weather", event)
            events.carry_out(self, event)
        await trio.sleep_until(self.weather_ends)

    async def _client(self, writer: Writer) -> None:
        await writer.run()
        writer.is_done = True

    async def _start_later(self, machine: Machine, seconds: float) -> None:
        await trio.sleep(seconds)
        if machine.life is None:
            machine.start()

    async def _heal(self) -> None:
        self.is_stormy = False
        self.note("heals")
        events.heal(self)
        await self.until(lambda: all(w.is_done for w in self.writers), HEAL_SECONDS, "the clients")
        await self._probe()
        await self.until(self._is_level, HEAL_SECONDS, "all nodes to be level")
        await self.until(
            lambda: all(f.is_level(self.truth) for f in self.followers),
            HEAL_SECONDS,
            "the streams to be level",
        )

    async def _probe(self) -> None:
        """Each node takes a publish, once all is well."""
        for machine in self.machines:
            with trio.move_on_after(HEAL_SECONDS):
                await self._publish_at(machine)
                continue
            raise ViolationError(
                f"{machine.name} takes no publishes, and all is well: {self._standing()}"
            )

    async def _publish_at(self, machine: Machine) -> None:
        body, key = f'"probe-{machine.name} "'.encode(), f"probe-{machine.name}"
        while True:
            life = machine.life
            if life is not None and life.is_serving and life.node is not None:
                with trio.CancelScope() as scope:
                    life.calls[scope] = None
                    try:
                        await life.node.broker.publish(ANYONE, "a", body, key)
                    except RequestError as error:
                        self.note("probe", machine.name, error.code)
                    else:
                        return
                    finally:
                        life.calls.pop(scope, None)
            await trio.sleep(0.3)

    def _is_level(self) -> bool:
        """All nodes that are to be members are voters, have one leader, and the same log."""
        nodes = [m.life.node for m in self.machines if m.life and m.life.node and m.is_serving]
        if len(nodes) < len(self.machines):
            return False
        names = {machine.name for machine in self.machines}
        statistics = [node.replica.statistics() for node in nodes]
        indexes = {each for s in statistics for each in (s.applied_index, s.last_index)}
        leaders = {node.replica.leader for node in nodes}
        is_settled = all(node.replica.committed_membership.voters == names for node in nodes)
        return len(indexes) == 1 and len(leaders) == 1 and None not in leaders and is_settled

    async def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        with trio.move_on_after(seconds):
            while not condition():
                await trio.sleep(0.05)
            return
        raise ViolationError(f"waited {seconds} s, with all well, for {what}: {self._standing()}")

    def _standing(self) -> str:
        texts = []
        for machine in self.machines:
            life = machine.life
            if life is None or life.node is None or not machine.is_serving:
                texts.append(f"{machine.name} does not serve")
                continue
            r = life.node.replica
            s = r.statistics()
            members = r.committed_membership
            texts.append(
                f"{machine.name} {r.role.name.lower()} term {s.term} leader {r.leader} last "
                f"{s.last_index} commit {s.commit_index} applied {s.applied_index} snapshot "
                f"{s.snapshot_index} voters {sorted(members.voters)} of {sorted(members.ids)}"
            )
        for follower in self.followers:
            if not follower.is_level(self.truth):
                texts.append(f"{follower.name} at {follower.position} of {len(self.truth.sent)}")
        return "; ".join(texts)

    async def _compare(self) -> None:
        digests = {machine.name: await self._digest(machine) for machine in self.machines}
        if len(set(digests.values())) > 1:
            raise ViolationError(f"digests differ: {digests}")
        for writer in self.writers:
            writer.check(self.truth)
        for follower in self.followers:
            follower.check(self.truth)
        if self.schedule.is_calm and max(self.truth.leaders) > self.first_term:
            raise ViolationError(f"leaders changed while nothing was wrong: {self.truth.leaders}")
        await self._read_all()
        await self.until(lambda: not self._staged(), HEAL_SECONDS, "what is staged to be cleared")

    async def _digest(self, machine: Machine) -> str:
        assert machine.life is not None
        assert machine.life.node is not None
        replica = machine.life.node.replica
        # A snapshot that is being made is the one that there may be at a time.
        await self.until(lambda: replica.state._capture is None, HEAL_SECONDS, "a snapshot")
        return replica.state.digest()

    def _staged(self) -> list[str]:
        """What nodes have of snapshots that nobody sends any more, and of logs that are no more."""
        found = []
        for machine in self.machines:
            assert machine.life is not None
            assert machine.life.node is not None
            reader = machine.life.node.storage._reader
            names = reader.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (name,) in names:
                if name.startswith(("staged_", FORGOTTEN)):
                    (count,) = reader.execute(f"SELECT count(*) FROM {name}").fetchone()
                    found += [f"{machine.name} {name}"] * bool(count)
        return found

    async def _read_all(self) -> None:
        """Every node gives every message that is retained, as it was published."""
        for machine in self.machines:
            for topic in TOPICS:
                while True:
                    index = self.truth.index
                    found = await self._read_topic(machine, topic)
                    if index == self.truth.index:
                        break  # else something may have expired meanwhile
                kept = self.truth.topics.get(topic)
                wanted = [(sent.seq, sent.payload) for sent in kept.sent] if kept else []
                if found != wanted:
                    raise ViolationError(
                        f"{machine.name} has {len(found)} messages of {topic!r}, and should have "
                        f"{len(wanted)}: {sorted(set(found) ^ set(wanted))[:5]}"
                    )

    async def _read_topic(self, machine: Machine, topic: str) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        after: str | None = "earliest"
        while after is not None:
            assert machine.life is not None
            assert machine.life.node is not None
            broker = machine.life.node.broker
            try:
                page = await broker.history(ANYONE, topic, after=after, limit=500)
            except RequestError as error:
                if error.code == "topic_not_found":
                    break
                raise ViolationError(f"{machine.name}: history: {error.code}") from None
            except StorageError as error:
                raise ViolationError(f"{machine.name}: history: {error}") from None
            found += [(m.seq, m.data.split(b" ", 1)[0].strip(b'"').decode()) for m in page.messages]
            after = page.next
        return found

    async def _start_again(self) -> None:
        self.note("all end")
        for machine in self.machines:
            if machine.chance.random() < 0.5:
                machine.stop()
                with trio.move_on_after(10):
                    while machine.life is not None:
                        await trio.sleep(0.01)
            if machine.life is not None:
                machine.kill(power=machine.chance.random() < 0.7)
        for machine in self.machines:
            if machine.life is None:  # else it ended by itself, and is back already
                machine.start()
        await self.until(self._is_level, HEAL_SECONDS, "all nodes to be level after the start")
        await self._read_all()


class StandsStillError(Exception):
    """Something goes round and round, and time does not go on."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Raise StandsStillError when the processor has been at it for too long."""

    def end(*_: object) -> None:
        raise StandsStillError(f"for {PROCESSOR_SECONDS} s of the processor's time")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, PROCESSOR_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _silence() -> Iterator[None]:
    """No lines of the log; other tests in the process get theirs."""
    logger = logging.getLogger("repl_broker")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def run(schedule: Schedule) -> Result:
    """Raises what is no violation: a fault of the simulation itself."""
    seams = deterministic(schedule)
    with _silence(), _bounded(), seams, events.dialled() as network_of:
        world = World(schedule)
        network_of.append(world.network)
        clock: Any = world_clock()
        trio.run(world.run, clock=clock, strict_exception_groups=True)
    violation = world.violation
    world._hash.update(repr(violation).encode())
    return Result(
        schedule.seed,
        None if violation is None else str(violation),
        world._hash.hexdigest(),
        clock.now,
        world.truth.index,
        len(world.truth.sent),
        list(world._trace),
    )
