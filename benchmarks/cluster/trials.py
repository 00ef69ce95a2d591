"""What a publisher notices when the leader is killed, or hands over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

from benchmarks.cluster.nodes import PostCluster, wait_until
from benchmarks.cluster.publisher import Publisher
from benchmarks.figures import Row

__all__ = ["FAILOVER", "HAND_OVER", "QUIET", "Trial", "fail_over", "hand_over", "longest_gap"]

FAILOVER = Row("leader killed: time to the next success", "ms")
HAND_OVER = Row("leadership handed over: longest gap between successes", "ms")
QUIET = Row("nothing happens: longest gap between successes", "ms")

VALUE_BYTES = 256
FAILOVER_SECONDS_MAX = 30
HAND_OVER_SECONDS_MAX = 10
WARM_SECONDS = 0.3
PHASE_SECONDS_MAX = 0.2  # of a random wait, so that no trial meets the same heartbeat
WATCH_SECONDS = 0.5


class Trial(NamedTuple):
    """What one trial gave."""

    row: Row
    peer: str
    value: float


def fail_over(cluster: PostCluster, random: Random) -> Trial:
    """Kill the leader, and start it again when a publish has succeeded without it."""
    leader = cluster.wait_leader()
    with _publisher(cluster, [*_others(cluster, leader), leader]) as publisher:
        _warm(publisher, random)
        killed = cluster.nodes[leader].kill()
        first = publisher.wait_answer(killed, FAILOVER_SECONDS_MAX)
    cluster.nodes[leader].start()
    cluster.wait_ready()
    return Trial(FAILOVER, cluster.name, (first.ended - killed) * 1e3)


def hand_over(cluster: PostCluster, random: Random) -> Iterator[Trial]:
    """Hand leadership to another node, while the third is published through."""
    leader = cluster.wait_leader()
    target, third = random.sample(_others(cluster, leader), 2)
    with _publisher(cluster, [third, target, leader]) as publisher:
        _warm(publisher, random)
        began = time.monotonic()
        time.sleep(WATCH_SECONDS)
        asked = time.monotonic()
        cluster.ask_hand_over(leader, target)
        wait_until(
            f"{cluster.name} does not hand over",
            lambda: cluster.leader() == target or None,
            HAND_OVER_SECONDS_MAX,
        )
        publisher.wait_answer(time.monotonic(), HAND_OVER_SECONDS_MAX)
        time.sleep(WATCH_SECONDS)
    answers = publisher.answers()
    before = [moment for moment in answers if moment <= asked]
    yield Trial(QUIET, cluster.name, longest_gap(before, began) * 1e3)
    yield Trial(HAND_OVER, cluster.name, longest_gap(answers, asked) * 1e3)


def longest_gap(moments: Sequence[float], since: float) -> float:
    """The longest time between two successive moments of which the later is after ``since``."""
    return max(
        (later - earlier for earlier, later in pairwise(moments) if later > since), default=0.0
    )


def _publisher(cluster: PostCluster, order: Sequence[int]) -> Publisher:
    return Publisher([cluster.nodes[index].port for index in order], cluster.post(VALUE_BYTES))


def _warm(publisher: Publisher, random: Random) -> None:
    time.sleep(WARM_SECONDS + random.uniform(0, PHASE_SECONDS_MAX))
    publisher.wait_answer(time.monotonic(), HAND_OVER_SECONDS_MAX)


def _others(cluster: PostCluster, leader: int) -> list[int]:
    """The nodes after ``leader``, around."""
    return [(leader + step) % cluster.size for step in range(1, cluster.size)]
