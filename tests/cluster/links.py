"""Large batches over slow and long links: who leads stays the same.

    python -m tests.cluster.links --mbit 30 --seconds 60
    python -m tests.cluster.links --delay-ms 200 --seconds 60

Three nodes, each on a host of its own; what a host sends to the others is throttled (tc
tbf), or late by a proxy. Batches of BATCH_BYTES are published again and again, through the
leader and then through a follower as well. Needs root for a throttled link.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.cluster.cluster import Cluster
from tests.cluster.hosts import Loopback, Namespaces, Network
from tests.process.node import NDJSON, Client, Node

NAMES: Final = ("n1", "n2", "n3")
BATCH_BYTES: Final = 8 << 20
MESSAGES: Final = 16  # of a batch
BATCH: Final = b"\n".join(
    json.dumps("x" * (BATCH_BYTES // MESSAGES - 16)).encode() for _ in range(MESSAGES)
)
ANSWER_SECONDS_MAX: Final = 60
LOOK_SECONDS: Final = 0.2
KEEP_FEW: Final[Mapping[str, object]] = {
    "topics_retention_messages": 2 * MESSAGES,
    "limits_disk_free_bytes": 0,
}


@dataclass(slots=True)
class Seen:
    """While the batches were published."""

    answers: Counter[int] = field(default_factory=Counter)  # by status
    reigns: set[tuple[int, str]] = field(default_factory=set)  # terms and leaders, of all nodes

    def __str__(self) -> str:
        return f"answers {dict(self.answers)}; terms and leaders {sorted(self.reigns)}"


@contextmanager
def cluster_over(
    folder: Path, *, mbit: int | None = None, delay_ms: int | None = None
) -> Iterator[Cluster]:
    """Three nodes at work, then the link becomes what it is to be."""
    network: Network = Namespaces(NAMES) if mbit else Loopback(NAMES, proxied=True)
    with network, Cluster(network, folder, **KEEP_FEW) as cluster:
        cluster.start()
        if mbit:
            network.throttle(mbit)
        if delay_ms:
            network.delay(delay_ms)
        yield cluster


def publish_large(cluster: Cluster, *, leader: bool, seconds: float, streams: int = 2) -> Seen:
    """Through the leader, or through a follower. Returns when all is answered."""
    name = cluster.leader_name()
    node = cluster.nodes[name if leader else cluster.others(name)[0]]
    seen = Seen()
    ended = threading.Event()
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(streams + 1) as threads:
        looking = threads.submit(_look, cluster, seen, ended)
        publishing = [threads.submit(_publish, node, seen, end) for _ in range(streams)]
        try:
            for each in publishing:
                each.result()
        finally:
            ended.set()
        looking.result()
    return seen


def _publish(node: Node, seen: Seen, end: float) -> None:
    with Client(node, ANSWER_SECONDS_MAX) as client:
        while time.monotonic() < end:
            answer = client.request("POST", "/v1/topics/a/messages", BATCH, Content_Type=NDJSON)
            seen.answers[answer.status] += 1
            if answer.status != 201:
                time.sleep(LOOK_SECONDS)


def _look(cluster: Cluster, seen: Seen, ended: threading.Event) -> None:
    """Ask every node again and again who leads."""
    while not ended.wait(LOOK_SECONDS):
        for view in cluster.views().values():
            seen.reigns.add((view["term"], str(view["leader"])))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.links")
    parser.add_argument("--mbit", type=int)
    parser.add_argument("--delay-ms", type=int)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster_over(Path(folder), mbit=options.mbit, delay_ms=options.delay_ms) as cluster,
    ):
        for leader in (True, False):
            began = time.monotonic()
            seen = publish_large(cluster, leader=leader, seconds=options.seconds)
            through = "the leader" if leader else "a follower"
            print(f"through {through}, {time.monotonic() - began:.0f} s: {seen}")  # noqa: T201


if __name__ == "__main__":
    main()
