"""What goes wrong in a run, drawn from its seed: a list of events, each with a chance of its own.

A schedule can be made shorter: whatever is taken out, the rest stays what it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from repl_broker.config import Config

__all__ = ["EVENTS", "Event", "Schedule", "draw"]

DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class Event:
    """At ``at`` seconds ``kind`` happens to the hosts of these numbers."""

    at: float
    kind: str
    hosts: tuple[int, ...]
    seconds: float = 1.0
    value: float = 0.0

    def __str__(self) -> str:
        names = ",".join(f"n{number}" for number in self.hosts)
        return f"{self.at:6.2f} {self.kind} {names} {self.seconds:.2f} s {self.value:g}".rstrip()


@dataclass(frozen=True)
class Schedule:
    """One run. ``clients`` and ``streams`` are the seeds of those that take part."""

    seed: int
    size: int
    seconds: float
    events: tuple[Event, ...]
    clients: tuple[int, ...]
    streams: tuple[int, ...]
    snapshot_entries: int
    retention_messages: int
    idempotency_seconds: int
    paces: tuple[float, ...]  # of the hosts' disks: seconds a synced job
    latency: float
    bytes_per_second: float
    drift: tuple[float, ...]
    large: bool  # messages now and then
    disk_free_bytes: int
    log_bytes_kept: int = 2 << 10  # in memory, for followers that lag
    election_timeout_ms: int = 1000

    @property
    def is_calm(self) -> bool:
        """Nothing goes wrong but that lines are narrow, which is no reason for another leader."""
        return self.size > 1 and all(event.kind == "narrow" for event in self.events)

    def config(self) -> Config:
        config = Config()
        return replace(
            config,
            raft=replace(
                config.raft,
                election_timeout_ms=self.election_timeout_ms,
                heartbeat_interval_ms=self.election_timeout_ms // 5,
                snapshot_entries=self.snapshot_entries,
            ),
            topics=replace(
                config.topics,
                retention=replace(config.topics.retention, messages=self.retention_messages),
            ),
            limits=replace(
                config.limits,
                idempotency_seconds=self.idempotency_seconds,
                heartbeat_seconds=3,
                disk_free_bytes=self.disk_free_bytes,
            ),
        )

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.size} nodes, {self.seconds:.1f} s, clients {self.clients}, "
            f"streams {self.streams}, snapshot_entries {self.snapshot_entries}, retention "
            f"{self.retention_messages}, disks {self.paces}, latency {self.latency:g}, "
            f"{self.bytes_per_second:g} B/s"
        ]
        return "\n".join([*lines, *(f"  {event}" for event in self.events)])


@dataclass
class _Drawing:
    chance: random.Random
    size: int
    at: float
    victim: int  # to which most happens; 0: to all alike

    def hosts(self, count: int = 1) -> tuple[int, ...]:
        hosts = self.chance.sample(range(1, self.size + 1), min(count, self.size))
        if self.victim and self.victim not in hosts and self.chance.random() < 0.6:
            hosts[0] = self.victim
        return tuple(hosts)

    def make(self, kind: str, count: int = 1, seconds: float = 1.0, value: float = 0.0) -> Event:
        length = 0.05 + self.chance.expovariate(1) * seconds
        return Event(self.at, kind, self.hosts(count), min(length, 6 * seconds), value)


def _operations(drawing: _Drawing) -> float:
    """0: at once. Else in the middle of one of so many that are to come."""
    return drawing.chance.choice([0, 0, 1, 2, 3, 5, 10, 20, 40])


def _jump(drawing: _Drawing) -> Event:
    chance = drawing.chance
    size = chance.choice([200, 5_000, 90_000, DAY_MS, 2 * DAY_MS, 365 * DAY_MS])
    return drawing.make("jump", value=chance.choice([-1, 1]) * size)


EVENTS: Final[dict[str, tuple[int, Callable[[_Drawing], Event]]]] = {
    "kill": (10, lambda d: d.make("kill", seconds=1.5, value=_operations(d))),
    "power": (8, lambda d: d.make("power", seconds=1.5, value=_operations(d))),
    "blackout": (2, lambda d: d.make("blackout", d.size, seconds=0.5)),
    "most": (3, lambda d: d.make("power", d.size // 2 + 1, seconds=1, value=_operations(d))),
    "stop": (4, lambda d: d.make("stop", seconds=1)),
    "cut": (8, lambda d: d.make("cut", seconds=2)),
    "one-way": (6, lambda d: d.make("one-way", 2, seconds=2)),
    "pair": (5, lambda d: d.make("pair", 2, seconds=2)),
    "break": (8, lambda d: d.make("break", 2)),
    "slow": (8, lambda d: d.make("slow", seconds=2, value=d.chance.choice([0.03, 0.2, 1, 3]))),
    "fail": (3, lambda d: d.make("fail", value=d.chance.randrange(3))),
    "full": (3, lambda d: d.make("full", seconds=3, value=d.chance.choice([0, 9e3, 9e4, 3e5]))),
    "narrow": (4, lambda d: d.make("narrow", 2, seconds=2, value=d.chance.choice([2e4, 2e5]))),
    "far": (3, lambda d: d.make("far", 2, seconds=2, value=d.chance.choice([0.05, 0.3]))),
    "jump": (5, _jump),
    "transfer": (5, lambda d: d.make("transfer")),
    "replace": (3, lambda d: d.make("replace", seconds=1)),
    "lie": (0, lambda d: d.make("lie", d.size, seconds=1)),
}


def draw(seed: int, *, seconds: float | None = None) -> Schedule:
    chance = random.Random(f"weather {seed}")
    size = chance.choices([3, 5, 1], [14, 2, 2])[0]
    seconds = seconds or chance.uniform(6, 14)
    pause_times = 1.0
    kinds = [kind for kind in EVENTS if EVENTS[kind][0] and chance.random() < 0.6] or ["kill"]
    fate = chance.random() if size > 1 else 1
    is_calm = fate < 0.06
    if is_calm:
        kinds = ["narrow"]
    slow = chance.randint(1, size) if 0.12 <= fate < 0.22 else 0  # its disk, and it is killed
    if slow:
        kinds, pause_times = ["kill", "power", "break"], 0.5
    elif 0.06 <= fate < 0.12:  # nothing else: few others have what it acknowledged
        kinds, pause_times = ["lie"], 4
    weights = [EVENTS[kind][0] or 1 for kind in kinds]
    events = []
    victim = slow or (chance.randint(1, size) if chance.random() < 0.5 else 0)
    at, pause = 0.0, chance.choice([0.4, 0.8, 1.6]) * pause_times
    while True:
        at += chance.expovariate(1 / pause)
        if at > seconds:
            break
        kind = chance.choices(kinds, weights)[0]
        own = random.Random(f"{seed} {len(events)} {kind}")
        events.append(EVENTS[kind][1](_Drawing(own, size, round(at, 3), victim)))
    pace = chance.choice([0.0003, 0.002, 0.01])
    paces = [pace * (1 if is_calm else chance.choice([1, 1, 1, 10, 60])) for _ in range(size)]
    if slow:
        paces = [0.0003] * size
        paces[slow - 1] = chance.choice([0.1, 0.3, 1])
    return Schedule(
        seed=seed,
        size=size,
        seconds=seconds,
        events=tuple(events),
        clients=tuple(range(chance.randint(2, 6) + 2 * bool(slow))),
        streams=tuple(range(chance.randint(1, 4))),
        snapshot_entries=5 if slow else chance.choice([5, 10, 30, 100]),
        retention_messages=chance.choice([1, 3, 10, 50, 1000]),
        idempotency_seconds=chance.choice([60, 86_400]),
        paces=tuple(paces),
        latency=chance.choice([0.0005, 0.003, 0.02]),
        bytes_per_second=chance.choice([1e9, 1e7, 1e6]),
        drift=tuple(chance.choice([0, 0, 0.01, -0.01, 0.2]) for _ in range(size)),
        large=is_calm or chance.random() < 0.3,
        disk_free_bytes=chance.choice([0, 200_000]),
        log_bytes_kept=1 << 20 if slow else chance.choice([2 << 10, 2 << 10, 32 << 10]),
    )
