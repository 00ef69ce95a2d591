"""What is measured, and how one round of it goes.

A round is some groups of runs, each on servers that were just started: one for
each number of subscribers, one for the crowd that reads while much is
published, one for publishers only. Within a group the peers take turns, and the
one that begins changes with the round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.commits import rows_per_second
from benchmarks.figures import Figure, Row, count
from benchmarks.load import BenchmarkError, Generator, Load
from benchmarks.peers import SQLITE, Peer, Server
from benchmarks.processes import rest

__all__ = ["Found", "Scale", "measure", "rows_in_order"]

STEADY_TRIES = 3
SUBSCRIBING_TRIES = 5  # of a second or less each
IDLE_TICKS_MAX = 1  # of CPU between runs, for each process
CLUSTER_IDLE_TICKS_MAX = 2  # followers and heartbeats never rest

Shown = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is asked for. Every run is bounded by ``seconds`` and by ``requests``."""

    seconds: float = 2.0
    requests: int = 1_000_000
    message_bytes: int = 200
    connections: tuple[int, ...] = (1, 16, 64)
    batches: tuple[int, ...] = (100, 1000)
    batch_connections: int = 4
    delivered_bytes: int = 64  # of a message that subscribers get
    subscribers: tuple[int, ...] = (100, 1000, 8000, 18_000)
    many: int = 1000  # subscribers; from there on their memory and their coming are measured
    in_step: tuple[int, ...] = (1000, 8000)  # of subscribers: so many also one message at a time
    crowd: int = 1000  # subscribers
    in_flight: int = 64
    latency_rate: float = 100.0
    latency_seconds: float = 5.0
    latency_connections: int = 16
    warm_requests: int = 300
    rest_seconds: float = 0.2  # between runs, at least

    @classmethod
    def quick(cls) -> Scale:
        return cls(seconds=0.5, latency_seconds=1.5, warm_requests=100)


@dataclass(slots=True)
class Found:
    """What came out of the rounds. ``failed`` says why a peer is in no more of them."""

    figures: list[Figure] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Bench:
    """The means of a run: a generator, a server of a peer, and how much."""

    generator: Generator
    peer: Peer
    server: Server
    scale: Scale

    def load(self, **load: float) -> dict[str, float]:
        """One run. If another node leads at its end than at its beginning, it is done again."""
        for _ in range(STEADY_TRIES):
            port = self.server.find_port()
            found = self._run(port, load)
            if self.server.find_port() == port:
                return found
        raise BenchmarkError(f"leadership moved in each of {STEADY_TRIES} runs")

    def _run(self, port: int, load: dict[str, float]) -> dict[str, float]:
        asked: dict[str, float] = {
            "seconds": self.scale.seconds,
            "requests": self.scale.requests,
            "message_bytes": self.scale.message_bytes,
            **load,
        }
        loads = Load(**asked, protocol=self.peer.protocol)  # type: ignore[arg-type]
        found = self.generator.run(port, self.server.pids, loads)
        amount = len(self.server.processes)
        ticks = IDLE_TICKS_MAX if amount == 1 else CLUSTER_IDLE_TICKS_MAX * amount
        rest(self.server.processes, self.scale.rest_seconds, ticks)
        return found


Part = Iterator[tuple[Row, float, float]]


def measure(
    scale: Scale,
    rounds: int,
    folder: Path,
    peers: Sequence[Peer],
    progress: Shown = lambda what: None,
) -> Found:
    """Every figure of every round. A peer that fails is left out from then on."""
    generator = Generator(folder)
    found = Found()
    for number in range(rounds):
        for what, group in _groups(scale):
            for peer in _rotated(peers, number):
                if peer.name not in found.failed:
                    progress(f"round {number + 1} of {rounds}: {what}, {peer.name}")
                    _try(generator, peer, scale, folder, group, found)
        progress(f"round {number + 1} of {rounds}: {SQLITE}")
        found.figures += _committed(scale, folder)
    return found


def _groups(scale: Scale) -> Iterator[tuple[str, Callable[[_Bench], Part]]]:
    for amount in scale.subscribers:
        yield f"{amount:,} subscribers", partial(_subscribed, amount)
    yield "a crowd", _crowded
    yield "publishers", _published


def _rotated(peers: Sequence[Peer], number: int) -> list[Peer]:
    first = number % len(peers) if peers else 0
    return [*peers[first:], *peers[:first]]


def _try(
    generator: Generator,
    peer: Peer,
    scale: Scale,
    folder: Path,
    group: Callable[[_Bench], Part],
    found: Found,
) -> None:
    try:
        with peer.running(folder) as server:
            bench = _Bench(generator, peer, server, scale)
            bench.load(subscribers=4, publishers=4, requests=scale.warm_requests)
            for row, value, share in group(bench):
                found.figures.append(Figure(row, peer.name, value, share))
    except BenchmarkError as error:
        found.failed[peer.name] = str(error)


def _subscribed(amount: int, bench: _Bench) -> Part:
    """One publisher, which waits for each answer."""
    if amount > bench.peer.subscribers_max:
        return
    found = bench.load(subscribers=amount, message_bytes=bench.scale.delivered_bytes)
    to = f"to {count(amount, 'subscriber')}"
    yield from _delivered(found, to)
    if amount >= bench.scale.many:
        grown = found["rss_after_kb"] - found["rss_before_kb"]
        yield Row(f"memory a subscriber, {amount:,} of them", "KB"), grown / amount, 0.0
        yield Row(f"subscriptions begun, {amount:,} of them", "/s"), _begun(amount, found, bench), 0
    if amount in bench.scale.in_step:
        size = bench.scale.delivered_bytes
        found = bench.load(subscribers=amount, message_bytes=size, in_step=True)
        yield from _delivered(found, f"{to}, one message at a time")


def _begun(amount: int, found: dict[str, float], bench: _Bench) -> float:
    """Subscriptions a second; where they are few, and it is over in a moment, several times."""
    seconds = [found["subscribe_seconds"]]
    if amount == bench.scale.many:
        for _ in range(SUBSCRIBING_TRIES - 1):
            found = bench.load(subscribers=amount, requests=1)
            seconds.append(found["subscribe_seconds"])
    return amount / median(seconds)


def _delivered(found: dict[str, float], to: str) -> Part:
    share = _share(found)
    yield Row(f"deliveries {to}", "/s"), found["deliveries_per_s"], share
    cpu_us = found["server_cpu_s"] * 1e6 / found["deliveries"]
    yield Row(f"CPU a delivery {to}", "µs"), cpu_us, share
    yield Row(f"messages in one read, {to}", ""), found["deliveries"] / found["reads"], share


def _crowded(bench: _Bench) -> Part:
    """Many publishes in flight, and then a steady rate of them."""
    if not bench.peer.takes_crowds:
        return
    scale = bench.scale
    found = bench.load(
        subscribers=scale.crowd, publishers=scale.in_flight, message_bytes=scale.delivered_bytes
    )
    to = f"to {count(scale.crowd, 'subscriber')}"
    yield from _delivered(found, f"{to}, {scale.in_flight} publishes in flight")
    found = bench.load(
        subscribers=scale.crowd,
        publishers=scale.latency_connections,
        rate=scale.latency_rate,
        seconds=scale.latency_seconds,
        message_bytes=scale.delivered_bytes,
    )
    how = f"{scale.latency_rate:g} publishes/s {to}"
    for quantile in ("p50", "p99", "max"):
        row = Row(f"publish to delivery, {quantile}, {how}", "ms")
        yield row, found[f"{quantile}_ms"], _share(found)


def _published(bench: _Bench) -> Part:
    scale = bench.scale
    for connections in scale.connections:
        found = bench.load(publishers=connections)
        at = count(connections, "connection")
        yield _publishes(connections), found["answers_per_s"], _share(found)
        cpu_us = found["server_cpu_s"] * 1e6 / found["answered"]
        yield Row(f"CPU a publish, {at}", "µs"), cpu_us, _share(found)
    for size in scale.batches if bench.peer.takes_batches else ():
        found = bench.load(publishers=scale.batch_connections, batch=size)
        yield Row(f"messages in batches of {size:,}", "/s"), found["messages_per_s"], _share(found)


def _committed(scale: Scale, folder: Path) -> Iterator[Figure]:
    """Rows a second stand beside the publishes of as many connections."""
    for rows in scale.connections:
        value = rows_per_second(folder, rows, scale.message_bytes, scale.seconds / 2)
        yield Figure(_publishes(rows), SQLITE, value, 0.0)


def _publishes(connections: int) -> Row:
    return Row(f"publishes, {count(connections, 'connection')}", "/s")


def _share(found: dict[str, float]) -> float:
    return found["load_cpu_s"] / found["elapsed_s"]


def rows_in_order(figures: Sequence[Figure]) -> list[Row]:
    """Each row once: deliveries first, then what they take, then publishing."""
    return sorted(dict.fromkeys(figure.row for figure in figures), key=_rank)


def _rank(row: Row) -> int:
    order = (
        "deliveries",
        "publish to delivery",
        "CPU a delivery",
        "messages in one read",
        "memory",
        "subscriptions",
        "publishes",
        "messages in batches",
        "CPU a publish",
    )
    return next(place for place, word in enumerate(order) if row.name.startswith(word))
