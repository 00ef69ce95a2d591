"""What is measured, and how one round of it goes.

A round is two groups, each on clusters that were just started. Publishes: the
clusters of all peers are up at the same time, and take turns at each row, so that
a machine that is slower for a minute is slower for all of them. Trials: a peer
after the other. Who begins changes with the round.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

from benchmarks.cluster.etcd import Etcd
from benchmarks.cluster.jetstream import JetStream
from benchmarks.cluster.nodes import Cluster, PostCluster
from benchmarks.cluster.ours import Single, Three
from benchmarks.cluster.trials import Trial, fail_over, hand_over
from benchmarks.figures import Figure, Row, count
from benchmarks.load import BenchmarkError, Generator, Load
from benchmarks.processes import rest

__all__ = ["PEERS", "Found", "Scale", "measure", "rows_in_order"]

PEERS: dict[str, type[Cluster]] = {
    "etcd": Etcd,
    "jetstream": JetStream,
    "cluster": Three,
    "single": Single,
}
STEADY_TRIES = 3
IDLE_TICKS_MAX = 6  # of CPU between runs: followers and heartbeats never rest
SEED = 1

T = TypeVar("T")

Shown = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is asked for. Every run is bounded by ``seconds`` and by ``requests``."""

    seconds: float = 2.0
    requests: int = 1_000_000
    value_bytes: int = 256
    connections: tuple[int, ...] = (1, 16, 64)
    batch: int = 1000
    batch_connections: int = 4
    batch_message_bytes: int = 150
    trials: int = 30
    warm_requests: int = 300
    rest_seconds: float = 0.2  # between runs, at least

    @classmethod
    def quick(cls) -> Scale:
        return cls(seconds=0.5, trials=5, warm_requests=100)


@dataclass(slots=True)
class Found:
    """What came out of the rounds.

    ``repeated`` counts runs and hand-overs that were done again, since another node came
    to lead meanwhile; ``failed`` says why a peer is in no more rounds.
    """

    figures: list[Figure] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    repeated: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)


def measure(
    scale: Scale,
    rounds: int,
    folder: Path,
    peers: Sequence[type[Cluster]],
    progress: Shown = lambda what: None,
) -> Found:
    """Every figure of every round. A peer that fails is left out from then on."""
    found = Found()
    bench = _Bench(scale, Generator(folder), folder, Random(SEED), found)
    for number in range(rounds):
        share = scale.trials * (number + 1) // rounds - scale.trials * number // rounds
        order = _rotated(peers, number)
        said = f"round {number + 1} of {rounds}"
        bench.publishes(order, lambda what, said=said: progress(f"{said}: {what}"))  # type: ignore[misc]
        for peer in filter(_has_trials, order):
            progress(f"{said}: trials, {peer.name}")
            bench.attempt(peer, partial(bench.trials, peer, share))
    return found


def _rotated(peers: Sequence[type[Cluster]], number: int) -> list[type[Cluster]]:
    first = number % len(peers) if peers else 0
    return [*peers[first:], *peers[:first]]


def _has_trials(peer: type[Cluster]) -> bool:
    return issubclass(peer, PostCluster) and peer.size > 1


@dataclass(frozen=True, slots=True)
class _Bench:
    """The means of a round: how much, a generator, a place, and chance."""

    scale: Scale
    generator: Generator
    folder: Path
    random: Random
    found: Found

    def publishes(self, peers: Sequence[type[Cluster]], progress: Shown) -> None:
        """Every row, all peers in turn at each."""
        with contextlib.ExitStack() as stack:
            clusters: list[Cluster] = []

            def start(peer: type[Cluster]) -> None:
                clusters.append(stack.enter_context(self._running(peer)))

            def run(row: Callable[[Cluster], Iterable[Figure]], cluster: Cluster) -> None:
                self.found.figures += row(cluster)

            for peer in peers:
                progress(f"starting {peer.name}")
                self.attempt(peer, partial(start, peer))
            for what, row in self._rows():
                for cluster in clusters:
                    progress(f"{what}, {cluster.name}")
                    self.attempt(type(cluster), partial(run, row, cluster))

    def _rows(self) -> Iterator[tuple[str, Callable[[Cluster], Iterable[Figure]]]]:
        yield "warming up", self._warm
        for connections in self.scale.connections:
            at = count(connections, "connection")
            yield f"publishes, {at}", partial(self._at_leader, connections=connections)
        for connections in self.scale.connections:
            at = count(connections, "connection")
            follower = partial(self._at_follower, connections=connections)
            yield f"publishes through a follower, {at}", follower
        yield "batches", self._in_batches

    def attempt(self, peer: type[Cluster], run: Callable[[], None]) -> None:
        """A peer that fails is left out from then on."""
        if peer.name not in self.found.failed:
            try:
                run()
            except BenchmarkError as error:
                self.found.failed[peer.name] = str(error)

    def trials(self, peer: type[Cluster], amount: int) -> None:
        if not amount:
            return
        with self._running(peer) as cluster:
            assert isinstance(cluster, PostCluster)
            for _ in range(amount):
                self.found.trials += self._steady(
                    cluster, lambda: list(hand_over(cluster, self.random))
                )
            for _ in range(amount):
                self.found.trials.append(fail_over(cluster, self.random))

    @contextlib.contextmanager
    def _running(self, peer: type[Cluster]) -> Iterator[Cluster]:
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="cluster-") as own:
            with peer(Path(own)) as cluster:
                yield cluster

    def _load(self, connections: int) -> Load:
        scale = self.scale
        return Load(
            publishers=connections,
            message_bytes=scale.value_bytes,
            seconds=scale.seconds,
            requests=scale.requests,
        )

    def _warm(self, cluster: Cluster) -> Iterator[Figure]:
        warm = replace(self._load(4), requests=self.scale.warm_requests)
        self._run(cluster, 0, cluster.publishes(warm))
        return iter(())

    def _at_leader(self, cluster: Cluster, connections: int) -> Iterator[Figure]:
        found = self._run(cluster, 0, cluster.publishes(self._load(connections)))
        at = count(connections, "connection")
        yield from _rates(cluster, found, "", at)
        cpu_us = found["server_cpu_s"] * 1e6 / found["answered"]
        yield Figure(Row(f"CPU a publish, all nodes, {at}", "µs"), cluster.name, cpu_us, 0.0)

    def _at_follower(self, cluster: Cluster, connections: int) -> Iterator[Figure]:
        if _has_trials(type(cluster)):
            found = self._run(cluster, 1, cluster.publishes(self._load(connections)))
            at = count(connections, "connection")
            yield from _rates(cluster, found, " through a follower", at)

    def _in_batches(self, cluster: Cluster) -> Iterator[Figure]:
        scale = self.scale
        one = self._load(scale.batch_connections)
        many = replace(one, batch=scale.batch, message_bytes=scale.batch_message_bytes)
        if (load := cluster.batches(many)) is None:
            return
        found = self._run(cluster, 0, load)
        over = count(scale.batch_connections, "connection")
        row = Row(f"messages in batches of {scale.batch:,}, {over}", "/s")
        yield Figure(row, cluster.name, found["messages_per_s"], _share(found))

    def _run(self, cluster: Cluster, after: int, load: Load) -> dict[str, float]:
        """Load the node that is ``after`` the leader. Another leader at the end is an error."""

        def run() -> dict[str, float]:
            leader = cluster.wait_leader()
            node = cluster.nodes[(leader + after) % cluster.size]
            pids = [each.pid for each in cluster.nodes]
            found = self.generator.run(node.port, pids, load)
            rest(cluster.nodes, self.scale.rest_seconds, IDLE_TICKS_MAX)
            if cluster.wait_leader() != leader:
                raise BenchmarkError("another node leads than at the beginning")
            return found

        return self._steady(cluster, run)

    def _steady(self, cluster: Cluster, attempt: Callable[[], T]) -> T:
        """Leadership may move on a machine this small: try again then, a few times."""
        for _ in range(STEADY_TRIES - 1):
            try:
                return attempt()
            except BenchmarkError:
                self.found.repeated[cluster.name] += 1
        return attempt()


def _rates(cluster: Cluster, found: dict[str, float], how: str, at: str) -> Iterator[Figure]:
    share = _share(found)
    yield Figure(Row(f"publishes{how}, {at}", "/s"), cluster.name, found["answers_per_s"], share)
    for quantile in ("p50", "p99"):
        value = found[f"answer_{quantile}_ms"]
        yield Figure(Row(f"publish {quantile}{how}, {at}", "ms"), cluster.name, value, share)


def _share(found: dict[str, float]) -> float:
    return found["load_cpu_s"] / found["elapsed_s"]


def rows_in_order(figures: Sequence[Figure]) -> list[Row]:
    """Each row once: rates first, then latencies, then what they cost."""
    return sorted(dict.fromkeys(figure.row for figure in figures), key=_rank)


def _rank(row: Row) -> tuple[int, bool]:
    order = ("publishes,", "publishes", "messages", "publish", "CPU")
    place = next(i for i, word in enumerate(order) if row.name.startswith(word))
    return place, "follower" in row.name
