"""What is measured, and how one round of it goes.

A round is two groups, each on servers that were just started: the first with
subscribers, the second with publishers only. Within a group the peers take
turns, and the one that begins changes with the round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commits import rows_per_second
from benchmarks.figures import Figure, Row, count
from benchmarks.load import Generator, Load
from benchmarks.peers import PEERS, SQLITE
from benchmarks.processes import Process, rest

__all__ = ["Scale", "measure", "rows_in_order"]

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
    subscribers: tuple[int, ...] = (1, 100, 1000)
    in_flight: int = 16
    latency_subscribers: int = 100
    latency_rate: float = 100.0
    latency_seconds: float = 5.0
    idle_subscribers: int = 1000
    warm_requests: int = 300
    rest_seconds: float = 0.2  # between runs, at least

    @classmethod
    def quick(cls) -> Scale:
        return cls(seconds=0.5, latency_seconds=1.5, warm_requests=100)


@dataclass(frozen=True, slots=True)
class _Bench:
    """The means of a run: a generator, a server, and how much."""

    generator: Generator
    server: Process
    scale: Scale

    def load(self, **load: float) -> dict[str, float]:
        asked = {
            "seconds": self.scale.seconds,
            "requests": self.scale.requests,
            "message_bytes": self.scale.message_bytes,
            **load,
        }
        figures = self.generator.run(self.server.port, [self.server.pid], Load(**asked))  # type: ignore[arg-type]
        rest([self.server], self.scale.rest_seconds)
        return figures


Part = Iterator[tuple[Row, float, float]]


def measure(
    scale: Scale, rounds: int, folder: Path, progress: Shown = lambda what: None
) -> list[Figure]:
    """Every figure of every round. Raises BenchmarkError."""
    generator = Generator(folder)
    figures: list[Figure] = []
    for number in range(rounds):
        for what, group in (("subscribers", _subscribed), ("publishers", _published)):
            for peer in PEERS if number % 2 == 0 else PEERS[::-1]:
                progress(f"round {number + 1} of {rounds}: {what}, {peer.name}")
                with peer.running(folder) as server:
                    bench = _Bench(generator, server, scale)
                    bench.load(subscribers=4, publishers=4, requests=scale.warm_requests)
                    for row, value, share in group(bench):
                        figures.append(Figure(row, peer.name, value, share))
        progress(f"round {number + 1} of {rounds}: {SQLITE}")
        figures += _committed(scale, folder)
    return figures


def _subscribed(bench: _Bench) -> Part:
    scale = bench.scale
    idle = scale.idle_subscribers
    found = bench.load(subscribers=idle, publishers=0)
    grown = found["rss_after_kb"] - found["rss_before_kb"]
    yield Row(f"memory a subscriber, {idle:,} of them", "KB"), grown / idle, 0.0
    yield Row("subscriptions begun", "/s"), idle / found["subscribe_seconds"], 0.0
    for subscribers in scale.subscribers:
        yield from _delivered(bench, subscribers, 1, "")
    yield from _delivered(
        bench, scale.subscribers[-1], scale.in_flight, f", {scale.in_flight} publishers"
    )
    yield from _latency(bench)


def _delivered(bench: _Bench, subscribers: int, publishers: int, more: str) -> Part:
    found = bench.load(subscribers=subscribers, publishers=publishers)
    to = f"to {count(subscribers, 'subscriber')}{more}"
    share = found["load_cpu_s"] / found["elapsed_s"]
    yield Row(f"deliveries {to}", "/s"), found["deliveries_per_s"], share
    cpu_us = found["server_cpu_s"] * 1e6 / found["deliveries"]
    yield Row(f"CPU a delivery {to}", "µs"), cpu_us, share


def _latency(bench: _Bench) -> Part:
    scale = bench.scale
    found = bench.load(
        subscribers=scale.latency_subscribers,
        publishers=16,
        rate=scale.latency_rate,
        seconds=scale.latency_seconds,
    )
    how = f"{scale.latency_rate:g} publishes/s to {scale.latency_subscribers} subscribers"
    for quantile in ("p50", "p99"):
        yield Row(f"publish to delivery, {quantile}, {how}", "ms"), found[f"{quantile}_ms"], 0.0


def _published(bench: _Bench) -> Part:
    scale = bench.scale
    for connections in scale.connections:
        found = bench.load(publishers=connections)
        share = found["load_cpu_s"] / found["elapsed_s"]
        at = count(connections, "connection")
        yield _publishes(connections), found["answers_per_s"], share
        yield Row(f"CPU a publish, {at}", "µs"), _cpu_us(found, "answered"), share
    for size in scale.batches:
        found = bench.load(publishers=scale.batch_connections, batch=size)
        share = found["load_cpu_s"] / found["elapsed_s"]
        yield Row(f"messages in batches of {size:,}", "/s"), found["messages_per_s"], share


def _committed(scale: Scale, folder: Path) -> Iterator[Figure]:
    """Rows a second stand beside the publishes of as many connections."""
    for rows in scale.connections:
        value = rows_per_second(folder, rows, scale.message_bytes, scale.seconds / 2)
        yield Figure(_publishes(rows), SQLITE, value, 0.0)


def _publishes(connections: int) -> Row:
    return Row(f"publishes, {count(connections, 'connection')}", "/s")


def _cpu_us(found: dict[str, float], what: str) -> float:
    return found["server_cpu_s"] * 1e6 / found[what]


def rows_in_order(figures: Sequence[Figure]) -> list[Row]:
    """Each row once: publishing first, then deliveries, then what they cost."""
    return sorted(dict.fromkeys(figure.row for figure in figures), key=_rank)


def _rank(row: Row) -> int:
    order = ("publishes", "messages", "CPU a publish", "deliveries", "CPU a delivery")
    return next((i for i, word in enumerate(order) if row.name.startswith(word)), len(order))
