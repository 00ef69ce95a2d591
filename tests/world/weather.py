"""What goes wrong in a run, drawn from its seed: a list of events, each with a chance of its own.

A schedule can be made shorter: whatever is taken out, the rest stays what it was.

Every other seed has mixed weather: a subset of all events, on nodes that differ. Faults that
need several things to come together are rare in it, so the seeds between have *climates*, one
after the other: each is a place where such things are common. Which one a seed has is its
remainder by the length of ``CLIMATES``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from repl_broker.config import Config

__all__ = ["CLIMATES", "EVENTS", "Event", "Schedule", "climate_of", "draw"]

DAY_MS: Final = 86_400_000
CALM: Final = ("narrow",)


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
    tail_bytes: int = 16 << 20  # in memory, for streams
    window_bytes_max: int = 8 << 20  # of entries on their way to a node
    row_bytes_max: int = 4 << 10  # of a snapshot that is not in parts
    busy: bool = False  # writers hardly pause
    retention_seconds: int | None = None  # if nothing else was asked for; None: the default
    step_seconds: float = 0.0  # of the processor, for a step of a snapshot: 0 if it is small

    @property
    def is_calm(self) -> bool:
        """Nothing goes wrong but that lines are narrow, which is no reason for another leader."""
        return self.size > 1 and all(event.kind in CALM for event in self.events)

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
                retention=replace(
                    config.topics.retention,
                    messages=self.retention_messages,
                    seconds=self.retention_seconds or config.topics.retention.seconds,
                ),
            ),
            limits=replace(
                config.limits,
                idempotency_seconds=self.idempotency_seconds,
                heartbeat_seconds=3,
                tail_bytes=self.tail_bytes,
                disk_free_bytes=self.disk_free_bytes,
            ),
        )

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}, {climate_of(self.seed)}: {self.size} nodes, {self.seconds:.1f} s, "
            f"clients {self.clients}, streams {self.streams}, "
            f"snapshot_entries {self.snapshot_entries}, retention {self.retention_messages}, "
            f"disks {self.paces}, latency {self.latency:g}, {self.bytes_per_second:g} B/s"
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
    "lose": (0, lambda d: d.make("lose", seconds=1)),
    "depose": (0, lambda d: d.make("depose", d.size, seconds=2)),
    "leave-behind": (0, lambda d: d.make("leave-behind", seconds=1)),
}


def draw(seed: int) -> Schedule:
    chance = random.Random(f"weather {seed}")
    return _CLIMATES[climate_of(seed)](seed, chance)


def climate_of(seed: int) -> str:
    return CLIMATES[seed % len(CLIMATES)]


def _events(
    seed: int,
    chance: random.Random,
    size: int,
    seconds: float,
    *,
    kinds: list[str],
    pause: float,
    victim: int = 0,
) -> tuple[Event, ...]:
    """Of these kinds, one each ``pause`` on average."""
    weights = [EVENTS[kind][0] or 1 for kind in kinds]
    events: list[Event] = []
    at = chance.expovariate(1 / pause)
    while at < seconds:
        kind = chance.choices(kinds, weights)[0]
        own = random.Random(f"{seed} {len(events)} {kind}")
        events.append(EVENTS[kind][1](_Drawing(own, size, round(at, 3), victim)))
        at += chance.expovariate(1 / pause)
    return tuple(events)


def _mixed(seed: int, chance: random.Random) -> Schedule:
    size = chance.choices([3, 5, 1], [14, 2, 2])[0]
    seconds = chance.uniform(6, 14)
    kinds = [kind for kind in EVENTS if EVENTS[kind][0] and chance.random() < 0.6] or ["kill"]
    victim = chance.randint(1, size) if chance.random() < 0.5 else 0
    pause = chance.choice([0.4, 0.8, 1.6])
    pace = chance.choice([0.0003, 0.002, 0.01])
    return Schedule(
        seed=seed,
        size=size,
        seconds=seconds,
        events=_events(seed, chance, size, seconds, kinds=kinds, pause=pause, victim=victim),
        clients=tuple(range(chance.randint(2, 6))),
        streams=tuple(range(chance.randint(1, 4))),
        snapshot_entries=chance.choice([5, 10, 30, 100]),
        retention_messages=chance.choice([1, 3, 10, 50, 1000]),
        idempotency_seconds=chance.choice([60, 86_400]),
        paces=tuple(pace * chance.choice([1, 1, 1, 10, 60]) for _ in range(size)),
        latency=chance.choice([0.0005, 0.003, 0.02]),
        bytes_per_second=chance.choice([1e9, 1e7, 1e6]),
        drift=tuple(chance.choice([0, 0, 0.01, -0.01, 0.2]) for _ in range(size)),
        large=chance.random() < 0.3,
        disk_free_bytes=chance.choice([0, 200_000]),
        log_bytes_kept=chance.choice([2 << 10, 2 << 10, 32 << 10]),
        row_bytes_max=chance.choice([4 << 10, 1 << 20]),
        tail_bytes=chance.choice([16 << 20, 2000]),
    )


def _calm(seed: int, chance: random.Random) -> Schedule:
    """Lines are narrow, messages large, snapshots long: nobody loses the lead for that."""
    mixed = _mixed(seed, chance)
    size = max(mixed.size, 3)
    events = _events(seed, chance, size, mixed.seconds, kinds=["narrow"], pause=0.8)
    return replace(
        mixed,
        size=size,
        events=events,
        paces=(chance.choice([0.0003, 0.002, 0.01]),) * size,
        drift=(0.0,) * size,
        large=True,
    )


def _large_state(seed: int, chance: random.Random) -> Schedule:
    """Each step of a snapshot takes as long as if much were retained; nobody loses the lead."""
    calm = _calm(seed, chance)
    return replace(
        calm,
        events=(),
        clients=tuple(range(chance.randint(3, 5))),
        snapshot_entries=chance.choice([30, 60]),
        retention_messages=1000,
        large=False,
        bytes_per_second=1e9,
        busy=True,
        step_seconds=0.08,
    )


def _lying(seed: int, chance: random.Random) -> Schedule:
    """A disk loses what it says that it has; nothing else, as few others have it, too."""
    mixed = _mixed(seed, chance)
    size = max(mixed.size, 3)
    events = _events(seed, chance, size, mixed.seconds, kinds=["lie"], pause=3)
    return replace(mixed, size=size, events=events, paces=(0.002,) * size, drift=(0.0,) * size)


def _slow_disk(seed: int, chance: random.Random) -> Schedule:
    """One disk is much slower than the others, and its node is killed again and again."""
    size, seconds = 3, chance.uniform(6, 10)
    slow = chance.randint(1, size)
    events = []
    at = chance.uniform(0.5, 2)
    while at < seconds:
        kind = chance.choice(["kill", "kill", "power"])
        operations = chance.choice([0, 0, 0, 1, 2, 3])
        events.append(Event(round(at, 3), kind, (slow,), chance.uniform(0.02, 0.2), operations))
        at += chance.uniform(0.6, 2.5)
    paces = [0.0003] * size
    paces[slow - 1] = chance.choice([0.03, 0.1, 0.2])
    return replace(
        _mixed(seed, chance),
        size=size,
        seconds=seconds,
        events=tuple(events),
        clients=tuple(range(chance.randint(3, 4))),
        snapshot_entries=chance.choice([10, 20]),  # taken while others wait, not one by one
        retention_messages=chance.choice([3, 10, 30]),
        paces=tuple(paces),
        latency=0.0005,
        bytes_per_second=1e9,
        drift=(0.0,) * size,
        disk_free_bytes=0,
        log_bytes_kept=1 << 20,
        row_bytes_max=1 << 20,
        tail_bytes=chance.choice([16 << 20, 300]),
        busy=True,
    )


def _behind(seed: int, chance: random.Random) -> Schedule:
    """A node is left behind again and again, gets snapshots, and streams read there meanwhile."""
    size, seconds = 3, chance.uniform(8, 14)
    late = chance.randint(1, size)
    events = []
    at = chance.uniform(0.3, 1)
    while at < seconds - 1:
        kind = chance.choices(["leave-behind", "cut", "kill", "depose"], [8, 3, 2, 1])[0]
        length = chance.uniform(0.4, 1.5)
        events.append(Event(round(at, 3), kind, (late,), length))
        at += length + chance.uniform(0.4, 3)
    paces = [0.0003] * size
    paces[late - 1] = chance.choice([0.002, 0.02, 0.05, 0.15])
    return replace(
        _mixed(seed, chance),
        size=size,
        seconds=seconds,
        events=tuple(events),
        clients=tuple(range(chance.randint(3, 5))),
        streams=tuple(range(chance.randint(4, 6))),
        snapshot_entries=chance.choice([5, 5, 10]),
        retention_messages=chance.choice([1, 3, 10]),
        paces=tuple(paces),
        latency=0.0005,
        bytes_per_second=1e9,
        drift=(0.0,) * size,
        disk_free_bytes=0,
        large=False,
        log_bytes_kept=2 << 10,
        tail_bytes=chance.choice([16 << 20, 300]),
        busy=True,
    )


def _flood(seed: int, chance: random.Random) -> Schedule:
    """A node comes back while as much is published as its disk can take."""
    size, seconds = 3, chance.uniform(8, 12)
    late = chance.randint(1, size)
    paces = [0.0003] * size
    paces[late - 1] = chance.choice([0.03, 0.05])
    return replace(
        _mixed(seed, chance),
        size=size,
        seconds=seconds,
        events=(Event(0.2, "leave-behind", (late,), chance.uniform(1.5, 2.5)),),
        clients=tuple(range(chance.randint(3, 4))),
        streams=(0,),
        snapshot_entries=chance.choice([10, 30]),
        retention_messages=chance.choice([30, 50]),
        paces=tuple(paces),
        latency=0.0005,
        bytes_per_second=1e9,
        drift=(0.0,) * size,
        disk_free_bytes=0,
        large=False,
        log_bytes_kept=4 << 10,
        window_bytes_max=4 << 10,
        busy=True,
    )


def _handover(seed: int, chance: random.Random) -> Schedule:
    """Leaders go while much is under way."""
    mixed = _mixed(seed, chance)
    size = max(mixed.size, 3)
    kinds = ["depose", "depose", "transfer", "break", "one-way", "far"]
    return replace(
        mixed,
        size=size,
        events=_events(seed, chance, size, mixed.seconds, kinds=kinds, pause=0.8),
        clients=tuple(range(chance.randint(4, 7))),
        paces=tuple(chance.choice([0.002, 0.01, 0.03]) for _ in range(size)),
        drift=(0.0,) * size,
        latency=chance.choice([0.003, 0.02, 0.05]),
        disk_free_bytes=0,
        log_bytes_kept=32 << 10,
        busy=True,
    )


def _lost_disk(seed: int, chance: random.Random) -> Schedule:
    """A member comes back with nothing, before anybody has removed it. In every other one what
    there is grows old, and has come in another order to whom it came by a snapshot."""
    mixed = _mixed(seed, chance)
    size = max(mixed.size, 3)
    kinds = ["lose", "lose", "lose", "transfer", "break"]
    events = _events(seed, chance, size, mixed.seconds, kinds=kinds, pause=1.2)
    if seed // len(CLIMATES) % 2:
        entries = chance.choice([5, 10, 30])
        mixed = replace(
            mixed, snapshot_entries=entries, retention_messages=1000, retention_seconds=1
        )
    return replace(
        mixed,
        size=size,
        events=events,
        paces=(chance.choice([0.0003, 0.002, 0.01]),) * size,
        drift=(0.0,) * size,
    )


_CLIMATES: Final[dict[str, Callable[[int, random.Random], Schedule]]] = {
    "mixed": _mixed,
    "calm": _calm,
    "large-state": _large_state,
    "lying": _lying,
    "slow-disk": _slow_disk,
    "behind": _behind,
    "flood": _flood,
    "handover": _handover,
    "lost-disk": _lost_disk,
}
_SPECIAL: Final = (
    "slow-disk",
    "behind",
    "handover",
    "calm",
    "flood",
    "lying",
    "lost-disk",
    "large-state",
)
CLIMATES: Final = tuple(name for special in _SPECIAL for name in ("mixed", special))
