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

from repl_broker import __version__, logs
from repl_broker.backup import backed_up_at
from repl_broker.broker import Broker, Statistics
from repl_broker.config import LimitsConfig
from repl_broker.errors import PROBLEMS
from repl_broker.fanout import BEHIND
from repl_broker.histogram import BOUNDS_SECONDS, Durations
from repl_broker.web.counts import Counted, RequestCounts
from repl_broker.web.door import DoorStatistics

__all__ = ["CONTENT_TYPE", "METRICS", "REFUSED", "NodeMetric", "render", "with_registry"]

# The classic text format; every Prometheus since 0.0.4 reads it.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "repl_broker_"


class Reading(NamedTuple):
    """What is known at one moment."""

    node: Statistics
    door: DoorStatistics
    ready: bool
    requests: tuple[tuple[Counted, int], ...] = ()
    limits: LimitsConfig = LimitsConfig()
    backed_up_at: float = 0


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
        "gaps",
        "counter",
        "Gaps that event streams were told of: the reader came too late for a topic's retention, "
        "or with an id of another cluster.",
        lambda now: now.node.hub.gaps,
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
    NodeMetric(
        "retained_bytes",
        "gauge",
        "All messages that are retained, each with 64 bytes more; [limits] storage_bytes bounds "
        "it.",
        lambda now: now.node.room.stored_bytes,
    ),
    NodeMetric(
        "disk_free_bytes",
        "gauge",
        "By how much the store may grow: the disk's free space, and pages to spare in the store; "
        "[limits] disk_free_bytes is to stay free.",
        lambda now: now.node.room.disk_free_bytes,
    ),
    NodeMetric(
        "retained_limit_bytes",
        "gauge",
        "[limits] storage_bytes: how much may be retained; 0: no limit.",
        lambda now: now.limits.storage_bytes,
    ),
    NodeMetric(
        "disk_free_limit_bytes",
        "gauge",
        "[limits] disk_free_bytes: what is to stay free; 0: no limit.",
        lambda now: now.limits.disk_free_bytes,
    ),
    NodeMetric(
        "store_full",
        "gauge",
        "1 while publishes are refused since this node's store, the leader's or a majority's is "
        "full; else 0.",
        lambda now: float(now.node.room.is_full),
    ),
    NodeMetric(
        "store_fullness_ratio",
        "gauge",
        "How much of the room for the store is taken, 0 to 1: of [limits] storage_bytes, or of the "
        "disk down to disk_free_bytes, whichever is nearer to its end. From 0.85 on the log warns; "
        "at 1 publishes are refused.",
        lambda now: now.node.room.fullness,
    ),
    NodeMetric(
        "storage_refusals",
        "counter",
        "Publishes that were refused since a store was full, those of peers included.",
        lambda now: now.node.room.refused,
    ),
    NodeMetric(
        "last_backup_timestamp_seconds",
        "gauge",
        "When the last backup of this node's store began, in Unix time; 0 if there was none. Of a "
        "cluster one node's is enough: `max by (job)`.",
        lambda now: now.backed_up_at,
    ),
    NodeMetric(
        "publishes_under_way",
        "gauge",
        "Publish requests that wait for the disk; [limits] publishes_under_way bounds them.",
        lambda now: now.node.admission.publishes_under_way,
    ),
    NodeMetric(
        "requests_bytes",
        "gauge",
        "Memory for the bodies of publish requests under way; [limits] requests_bytes bounds it.",
        lambda now: now.node.admission.requests_bytes,
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
        "peer_connections_second_secret",
        "gauge",
        "Connections between nodes, of both directions, that were proved by another than the first "
        "secret of [cluster] secret_file. A secret may be dropped once this is 0 on every node.",
        lambda now: now.node.peers.second_secret,
    ),
    NodeMetric(
        "reload_problems",
        "gauge",
        "What was wrong the last time that the configuration, certificates, secrets and keys were "
        "read again: for each of these, what was in force before still is, so that a secret which "
        "was taken out of such a file is still accepted. A file with keys for tokens counts once, "
        "until it is read well, with or without a reload; the rest counts until the next reload. 0 "
        "when all is well; the log says what it is.",
        lambda now: now.node.files.problems,
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
        "connections_refused_by_address",
        "counter",
        "Of the refused, those that were more than [limits] connections_per_address.",
        lambda now: now.door.refused_by_address,
    ),
    NodeMetric(
        "connections_ended_for_others",
        "counter",
        "Connections that were ended since all were taken, and others were to have their places.",
        lambda now: now.door.made_room,
    ),
    NodeMetric(
        "connections_max",
        "gauge",
        "How many connections are taken: [limits] connections, or fewer if the process may not "
        "open that many files.",
        lambda now: now.door.connections_max,
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
        "subscriber_lag_messages_max",
        "gauge",
        "How many messages the event stream that is furthest behind has not been sent yet. While "
        "it "
        "reads the log, those of all topics since its cursor. Streams under TLS are not counted "
        "here.",
        lambda now: now.door.behind_max,
    ),
    NodeMetric(
        "unsent_bytes",
        "gauge",
        "What is left of the events that were being sent when their clients stopped reading.",
        lambda now: now.door.unsent_bytes,
    ),
    NodeMetric(
        "stalled_bytes",
        "gauge",
        "Memory for what has begun to be sent to clients that do not read on; what they share "
        "counts once. [limits] streams_bytes bounds it.",
        lambda now: now.door.stalled_bytes,
    ),
    NodeMetric(
        "stalled_subscribers_ended",
        "counter",
        "Event streams that were ended since that was more than [limits] streams_bytes.",
        lambda now: now.door.cut_off,
    ),
    NodeMetric(
        "dead_subscribers",
        "counter",
        "Event streams that were ended since the client's machine acknowledged nothing for "
        "[limits] dead_reader_seconds.",
        lambda now: now.door.dead,
    ),
    NodeMetric(
        "loop_turn_longest_seconds",
        "gauge",
        "The longest time in the last one to two minutes for which the node was busy and looked at "
        "no request; others waited meanwhile.",
        lambda now: now.node.turns.longest_seconds,
    ),
    NodeMetric(
        "log_lines_lost",
        "counter",
        "Lines of the log that were not written, because nobody took them: a pipe that is not "
        "read, a disk that hangs. The node does not wait for its log.",
        lambda now: logs.lost_lines(),
    ),
    NodeMetric(
        "trace_spans_sent",
        "counter",
        "Spans that the collector of [tracing] has taken.",
        lambda now: now.node.spans.sent,
    ),
    NodeMetric(
        "trace_spans_lost",
        "counter",
        "Spans that it has not taken; nothing else is lost with them.",
        lambda now: now.node.spans.lost,
    ),
)
REQUESTS: Final = (
    f"{PREFIX}http_requests_total",
    "Requests that were answered, event streams when they begin. A path that is no route counts "
    "as `other`.",
)
MEMBER_LAG: Final = (
    f"{PREFIX}member_lag_entries",
    "Entries of the log that another member is not known to have. Only the leader knows.",
)
MEMBER_REACHABLE: Final = (
    f"{PREFIX}member_reachable",
    "1 if another member has answered within an election timeout, else 0. Only the leader knows.",
)
MEMBER_CLOCK: Final = (
    f"{PREFIX}member_clock_skew_seconds",
    "By how much another member's clock is ahead of this node's; negative: behind. Left out while "
    "it is not known.",
)
OWN_CLOCK: Final = (
    f"{PREFIX}clock_skew_seconds",
    "By how much this node's clock is ahead of what a majority of the members has; negative: "
    "behind. Left out while no majority agrees, and on a single node.",
)
CLOCK_MAX: Final = (
    f"{PREFIX}clock_skew_limit_seconds",
    "How far apart two clocks may be that this node takes for right ([cluster] "
    "clock_skew_seconds_max).",
)
SUBSCRIBERS_BEHIND: Final = (
    f"{PREFIX}subscribers_behind",
    "Event streams that have not been sent this many messages or more, counted as for "
    "subscriber_lag_messages_max.",
)
CERTIFICATE: Final = (
    f"{PREFIX}certificate_expiry_timestamp_seconds",
    "When the first of the certificates ends that a file holds, in seconds since 1970, by the key "
    "of the configuration that names the file: `http.tls_certificate`, `raft.tls_certificate`, "
    "`raft.tls_ca`.",
)
REFUSED: Final = (
    f"{PREFIX}refused",
    "Requests that were answered with a problem, by its code: every limit that was reached.",
)
COMMIT_SECONDS: Final = (
    f"{PREFIX}commit_seconds",
    "From the moment a write is handed to the log until it is durable and applied.",
)
STORE_WRITE_SECONDS: Final = (
    f"{PREFIX}store_write_seconds",
    "A write of the log to this node's disk, fsync included.",
)
LOOP_TURN_SECONDS: Final = (
    f"{PREFIX}loop_turn_seconds",
    "For how long the node was busy between two looks at its sockets.",
)
HISTOGRAMS: Final = (COMMIT_SECONDS, STORE_WRITE_SECONDS, LOOP_TURN_SECONDS)
MEMBERS: Final = (MEMBER_LAG, MEMBER_REACHABLE, MEMBER_CLOCK)
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
        replica = now.node.replica
        commits = Durations(replica.commit_seconds, replica.commit_buckets)
        yield _histogram(COMMIT_SECONDS, commits)
        yield _histogram(STORE_WRITE_SECONDS, replica.store_writes)
        yield _histogram(LOOP_TURN_SECONDS, now.node.turns.turns)
        yield _requests(now)
        yield _behind(now)
        yield from _members(now.node)
        yield from _clocks(now.node)
        yield _certificates(now.node)
        refused = CounterMetricFamily(*REFUSED, labels=("code",))
        for code in PROBLEMS:  # a fixed number, all from the start
            refused.add_metric((code,), now.node.refusals.get(code, 0))
        yield refused
        info = GaugeMetricFamily(*BUILD_INFO, labels=("version", "node"))
        info.add_metric((__version__, self._node_id), 1)
        yield info


def _histogram(about: tuple[str, str], durations: Durations) -> Metric:
    bounds = [*map(str, BOUNDS_SECONDS), "+Inf"]
    family = HistogramMetricFamily(*about)
    buckets = list(zip(bounds, map(float, accumulate(durations.buckets)), strict=True))
    family.add_metric((), buckets, durations.seconds)
    return family


def _requests(now: Reading) -> Metric:
    counts: dict[Counted, int] = {}
    for what, count in (*now.door.requests, *now.requests):
        counts[what] = counts.get(what, 0) + count
    family = CounterMetricFamily(*REQUESTS, labels=Counted._fields)
    for what, count in sorted(counts.items()):
        family.add_metric([str(value) for value in what], count)
    return family


def _behind(now: Reading) -> Metric:
    family = GaugeMetricFamily(*SUBSCRIBERS_BEHIND, labels=("messages",))
    for least, count in zip(BEHIND, now.door.behind, strict=True):
        family.add_metric((str(least),), count)
    return family


def _members(node: Statistics) -> Iterator[Metric]:
    lag = GaugeMetricFamily(*MEMBER_LAG, labels=("member",))
    reachable = GaugeMetricFamily(*MEMBER_REACHABLE, labels=("member",))
    for member in node.members:
        lag.add_metric((member.id,), member.lag)
        reachable.add_metric((member.id,), float(member.reachable))
    yield lag
    yield reachable


def _clocks(node: Statistics) -> Iterator[Metric]:
    members = GaugeMetricFamily(*MEMBER_CLOCK, labels=("member",))
    for member, seconds in node.clocks.members:
        members.add_metric((member,), seconds)
    yield members
    own = GaugeMetricFamily(*OWN_CLOCK)
    if node.clocks.own is not None:
        own.add_metric((), node.clocks.own)
    yield own
    yield GaugeMetricFamily(*CLOCK_MAX, value=node.clocks.seconds_max)


def _certificates(node: Statistics) -> Metric:
    family = GaugeMetricFamily(*CERTIFICATE, labels=("certificate",))
    for expiry in node.files.certificates:
        family.add_metric((expiry.key,), expiry.ends_at)
    return family


def with_registry(
    broker: Broker,
    door: Callable[[], DoorStatistics] | None = None,
    requests: RequestCounts | None = None,
) -> CollectorRegistry:
    """A registry of the node's own: a second node in the process has another.

    ``requests`` are those that the application answers; the door tells of its own.
    """
    none = DoorStatistics(0, 0, 0, 0)
    registry = CollectorRegistry(auto_describe=False)

    def read() -> Reading:
        answered = tuple(requests.items()) if requests else ()
        return Reading(
            broker.statistics(),
            door() if door else none,
            broker.ready,
            answered,
            broker.config.limits,
            backed_up_at(broker.config.node.data_dir),
        )

    registry.register(_NodeCollector(read, broker.node_id))
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The text that Prometheus scrapes."""
    return generate_latest(registry)
