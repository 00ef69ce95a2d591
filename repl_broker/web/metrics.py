"""``/metrics``: what the node counts, for Prometheus.

Every metric of ours is one line of METRICS; docs/reference/metrics.md is made
from it. They are read when asked for, so counting costs nothing here, and
none has a label per topic, so there is a fixed number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from repl_broker import __version__
from repl_broker.broker import Broker, Statistics
from repl_broker.proposals import COMMIT_BUCKETS_SECONDS
from repl_broker.web.door import DoorStatistics

__all__ = ["CONTENT_TYPE", "METRICS", "NodeMetric", "render", "with_registry"]

# The classic text format; every Prometheus since 0.0.4 reads it.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "repl_broker_"


class Reading(NamedTuple):
    """What is known at one moment."""

    node: Statistics
    door: DoorStatistics
    ready: bool


class NodeMetric(NamedTuple):
    """``name`` has neither the prefix nor a counter's ``_total``."""

    name: str
    kind: str  # "counter" or "gauge"
    meaning: str
    read: Callable[[Reading], float]

    @property
    def full_name(self) -> str:
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


METRICS: Final = (
    NodeMetric(
        "publishes",
        "counter",
        "Publish requests that were acknowledged; recognised repeats do not count.",
        lambda now: now.node.publishes,
    ),
    NodeMetric(
        "messages",
        "counter",
        "Messages that were published through this node.",
        lambda now: now.node.messages,
    ),
    NodeMetric(
        "deliveries",
        "counter",
        "Messages handed to event streams: one message to ten streams counts ten.",
        lambda now: now.node.hub.deliveries,
    ),
    NodeMetric(
        "subscribers",
        "gauge",
        "Event streams that are open on this node.",
        lambda now: now.node.hub.subscribers,
    ),
    NodeMetric(
        "channels",
        "gauge",
        "Different sets of filters among the open streams.",
        lambda now: now.node.hub.channels,
    ),
    NodeMetric(
        "tail_bytes",
        "gauge",
        "Memory that holds recent messages for live streams; [limits] tail_bytes bounds it.",
        lambda now: now.node.hub.tail_bytes,
    ),
    NodeMetric("topics", "gauge", "Topics that exist.", lambda now: now.node.topics),
    NodeMetric(
        "sequence_number",
        "gauge",
        "The sequence number of the newest message of the cluster that is applied here.",
        lambda now: now.node.seq,
    ),
    NodeMetric(
        "term", "gauge", "The current Raft term; it grows.", lambda now: now.node.replica.term
    ),
    NodeMetric(
        "is_leader",
        "gauge",
        "1 on the node that leads, else 0; a single node leads itself. The sum over a cluster is "
        "1, but for the moments of an election.",
        lambda now: float(now.node.replica.leads),
    ),
    NodeMetric(
        "elections",
        "counter",
        "Leaders that this node came to know. Many mean a slow disk or network, or an election "
        "timeout that is too short.",
        lambda now: now.node.replica.elections,
    ),
    NodeMetric(
        "last_index",
        "gauge",
        "The index of the last entry of this node's log.",
        lambda now: now.node.replica.last_index,
    ),
    NodeMetric(
        "commit_index",
        "gauge",
        "The index of the last entry that this node knows to be on the disks of a majority.",
        lambda now: now.node.replica.commit_index,
    ),
    NodeMetric(
        "applied_index",
        "gauge",
        "The index of the last entry that is applied to the state.",
        lambda now: now.node.replica.applied_index,
    ),
    NodeMetric(
        "lag_entries",
        "gauge",
        "Entries in the log that are not applied yet: last_index less applied_index.",
        lambda now: now.node.replica.last_index - now.node.replica.applied_index,
    ),
    NodeMetric(
        "snapshot_index",
        "gauge",
        "The index up to which the last snapshot reaches.",
        lambda now: now.node.replica.snapshot_index,
    ),
    NodeMetric(
        "snapshots_sent",
        "counter",
        "Snapshots that were sent to a node that lagged too far for the log, or was new.",
        lambda now: now.node.replica.snapshots_sent,
    ),
    NodeMetric(
        "snapshots_received",
        "counter",
        "Snapshots of the leader that took the place of this node's log.",
        lambda now: now.node.replica.snapshots_received,
    ),
    NodeMetric(
        "pending_proposals",
        "gauge",
        "Writes that wait for the disk, or are being written.",
        lambda now: now.node.replica.pending,
    ),
    NodeMetric(
        "commands",
        "counter",
        "Writes of all kinds that were committed.",
        lambda now: now.node.replica.commands,
    ),
    NodeMetric(
        "store_writes",
        "counter",
        "Transactions of the store, each with one fsync. Commands over store writes is how many "
        "share one.",
        lambda now: now.node.replica.writes,
    ),
    NodeMetric(
        "store_bytes",
        "gauge",
        "The size of the store on the disk; measured from time to time.",
        lambda now: now.node.replica.store_bytes,
    ),
    NodeMetric("ready", "gauge", "1 if /readyz answers 200, else 0.", lambda now: float(now.ready)),
    NodeMetric(
        "peers_connected",
        "gauge",
        "Other nodes to which this one has a connection; on a healthy cluster of three, 2.",
        lambda now: now.node.peers.connected,
    ),
    NodeMetric(
        "peer_handshakes_refused",
        "counter",
        "Connections of peers that were turned away: another secret, cluster or version, a node "
        "that was removed, or silence. The log has each kind once.",
        lambda now: now.node.peers.refused,
    ),
    NodeMetric(
        "peer_garbage",
        "counter",
        "Connections of peers that were ended since what came was not of our protocol.",
        lambda now: now.node.peers.garbage,
    ),
    NodeMetric(
        "peer_rpcs_dropped",
        "counter",
        "RPCs that were not sent: no connection, or no room. Raft sends again what matters.",
        lambda now: now.node.peers.dropped,
    ),
    NodeMetric(
        "peer_sent_bytes",
        "counter",
        "What was sent to peers.",
        lambda now: now.node.peers.sent_bytes,
    ),
    NodeMetric(
        "connections",
        "gauge",
        "Open HTTP connections; [limits] connections bounds them.",
        lambda now: now.door.connections,
    ),
    NodeMetric(
        "connections_accepted",
        "counter",
        "Connections that were accepted, the refused ones included.",
        lambda now: now.door.accepted,
    ),
    NodeMetric(
        "connections_refused",
        "counter",
        "Connections that were turned away since there were too many.",
        lambda now: now.door.refused,
    ),
    NodeMetric(
        "connections_failed",
        "counter",
        "Connections that an error of the node ended; the log has each.",
        lambda now: now.door.failed,
    ),
    NodeMetric(
        "lagging_subscribers",
        "gauge",
        "Event streams that are behind: the client does not read, or the log is being read for it. "
        "They delay no one. Streams under TLS are not counted here.",
        lambda now: now.door.lagging,
    ),
    NodeMetric(
        "unsent_bytes",
        "gauge",
        "What is left of the events that were being sent when their clients stopped reading.",
        lambda now: now.door.unsent_bytes,
    ),
    NodeMetric(
        "dead_subscribers",
        "counter",
        "Event streams that were ended since the client's machine acknowledged nothing for "
        "[limits] dead_reader_seconds.",
        lambda now: now.door.dead,
    ),
    NodeMetric(
        "requests_unauthenticated",
        "counter",
        "Requests that were refused with 401: the token was missing where one is needed, or not "
        "valid.",
        lambda now: now.node.refusals.unauthenticated,
    ),
    NodeMetric(
        "requests_forbidden",
        "counter",
        "Requests that were refused with 403: the token is valid, and does not allow them.",
        lambda now: now.node.refusals.forbidden,
    ),
)
COMMIT_SECONDS: Final = (
    f"{PREFIX}commit_seconds",
    "From the moment a write is handed to the log until it is durable and applied.",
)
BUILD_INFO: Final = (f"{PREFIX}build_info", "Always 1; the labels tell version and node.")


class _NodeCollector(Collector):
    def __init__(self, read: Callable[[], Reading], node_id: str) -> None:
        self._read = read
        self._node_id = node_id

    def collect(self) -> Iterator[Metric]:
        now = self._read()
        for metric in METRICS:
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            yield family(PREFIX + metric.name, metric.meaning, value=metric.read(now))
        yield _commit_seconds(now.node)
        info = GaugeMetricFamily(*BUILD_INFO, labels=("version", "node"))
        info.add_metric((__version__, self._node_id), 1)
        yield info


def _commit_seconds(node: Statistics) -> Metric:
    bounds = [*map(str, COMMIT_BUCKETS_SECONDS), "+Inf"]
    counts = accumulate(node.replica.commit_buckets)
    family = HistogramMetricFamily(*COMMIT_SECONDS)
    buckets = list(zip(bounds, map(float, counts), strict=True))
    family.add_metric((), buckets, node.replica.commit_seconds)
    return family


def with_registry(
    broker: Broker, door: Callable[[], DoorStatistics] | None = None
) -> CollectorRegistry:
    """A registry of the node's own: a second node in the process has another."""
    none = DoorStatistics(0, 0, 0, 0)
    registry = CollectorRegistry(auto_describe=False)

    def read() -> Reading:
        return Reading(broker.statistics(), door() if door else none, broker.ready)

    registry.register(_NodeCollector(read, broker.node_id))
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The text that Prometheus scrapes."""
    return generate_latest(registry)
