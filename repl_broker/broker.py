"""What every door calls: publish, subscribe, topics, history, members.

Each call says who is ``Asking``. Here, and nowhere else, is decided what that one may do,
on the values that are then used, and at what rate: doors may refuse earlier, never allow.
The broker checks what comes in, turns it into a command or a view of the state,
and knows nothing of HTTP. What it refuses, it refuses with a RequestError
before anything is changed.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeVar

import msgspec

from repl_broker.access import Access, Asking, Caller, Identity, Lease
from repl_broker.admission import Admission, AdmissionStatistics
from repl_broker.audit import audited
from repl_broker.certificates import Certificates, Expiry
from repl_broker.checks import TINY_BYTES, Checks
from repl_broker.clocks import Clocks, ClockStatistics
from repl_broker.command import (
    Command,
    CreateTopic,
    DeleteTopic,
    DeleteTopics,
    Publish,
    Retention,
    RevokeTokens,
    Settings,
    Shares,
)
from repl_broker.config import Config, client_shares
from repl_broker.errors import NOTHING_CHANGED, RequestError
from repl_broker.filters import Filters
from repl_broker.hub import Hub, HubStatistics
from repl_broker.idle import Batch, IdleTopics
from repl_broker.levels import TWO_CLOCKS
from repl_broker.loop_turns import LoopTurns, TurnStatistics
from repl_broker.members import Members, MemberView
from repl_broker.message import (
    Cursor,
    FilterSet,
    JsonLimits,
    Message,
    check_topic,
    compact_json,
    event_id,
    json_steps,
    ndjson_steps,
    parse_event_id,
    time_text,
    topic_ndjson_steps,
)
from repl_broker.names import above
from repl_broker.notices import Notices
from repl_broker.reached import Reached
from repl_broker.readiness import NotReadyError, Readiness, Reason
from repl_broker.reload import Reloader
from repl_broker.replica import Replica, ReplicaStatistics, disowned_error
from repl_broker.room import Room, RoomStatistics
from repl_broker.seats import Seat, Seats
from repl_broker.state import (
    BrokerState,
    Outcome,
    Published,
    Refused,
    Topic,
    TopicChanged,
    TopicsDeleted,
)
from repl_broker.subscription import Subscription
from repl_broker.tokens import SUBJECT, is_subject
from repl_broker.transport import TransportStatistics
from repl_broker.turnstile import Turn, Turnstile

__all__ = ["Broker", "HistoryPage", "Receipt", "Statistics", "TopicPage", "TopicView"]

T = TypeVar("T")

PIECE_TOPICS: Final = 32  # between two looks at the clock, in a list of topics
TOPICS_A_STEP: Final = 16  # of a batch, whose grants are looked at in one go
HISTORY_BYTES_MAX: Final = 1 << 20  # of data in one page of history
NO_ROOM_KNOWN: Final = RoomStatistics(0, 0, is_full=False, refused=0)
NO_PEERS: Final = TransportStatistics(0, 0, 0, 0, 0)  # a single node has none
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Receipt(msgspec.Struct, frozen=True):
    """What a publisher gets: the messages are kept, and these are their places."""

    first_id: str
    last_id: str
    count: int
    time: str
    replayed: bool  # the idempotency key was known; this is the answer of the first request


@dataclass(frozen=True, slots=True)
class TopicView:
    """A topic as the API shows it."""

    name: str
    retention: Retention
    messages: int
    bytes: int
    first_id: str | None
    last_id: str | None
    created_at: str
    subscribers: int  # streams on this node


@dataclass(frozen=True, slots=True)
class TopicPage:
    topics: list[TopicView]
    next: str | None  # the ``after`` of the next page; None at the end


@dataclass(frozen=True, slots=True)
class HistoryPage:
    messages: list[Message]
    next: str | None  # the ``after`` of the next page; None at the end
    gap: bool  # messages between ``after`` and the first of these are no longer there


class MemberStatistics(NamedTuple):
    """Another member, as the leader sees it."""

    id: str
    lag: int  # entries of the leader's log that it is not known to have
    reachable: bool


class SpanStatistics(NamedTuple):
    """Spans of traces (tracing.py)."""

    sent: int = 0
    lost: int = 0


class FileStatistics(NamedTuple):
    """Files that are read again while the node serves."""

    problems: int = 0  # of the last time
    certificates: tuple[Expiry, ...] = ()


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the start."""

    publishes: int  # requests
    messages: int
    seq: int
    topics: int
    replica: ReplicaStatistics
    hub: HubStatistics
    peers: TransportStatistics
    members: tuple[MemberStatistics, ...]  # the others; only the leader knows of them
    spans: SpanStatistics
    admission: AdmissionStatistics
    room: RoomStatistics
    refusals: Mapping[str, int]  # requests, by code
    turns: TurnStatistics
    clocks: ClockStatistics
    files: FileStatistics


class Broker:
    """The node's services. Methods that wait may be cancelled; what was proposed still happens."""

    def __init__(
        self,
        replica: Replica,
        hub: Hub,
        config: Config,
        members: Members | None = None,
        room: Room | None = None,
        access: Access | None = None,
    ) -> None:
        self.access: Final = Access(config) if access is None else access
        self.notices: Final = Notices()  # of what strangers do
        self.access.follow(lambda: replica.state.revocations)
        self.admission = Admission(config.limits)
        self.turns: Final = LoopTurns()  # of the event loop that it is added to
        self.refusals: Counter[str] = Counter()  # by code; whoever tells a client so counts it
        self.reached: Final = Reached(self.refusals, lambda: self.config.limits)
        self._replica = replica
        self._room = room  # None: the store never is full
        self._members = members  # None in single-node mode, as is …
        self.clock_skew_seconds_max = config.cluster.clock_skew_seconds_max
        self.clocks: Clocks | None = None  # … this, set by whoever puts the node together …
        self.certificates: Certificates | None = None  # … these …
        self.reloader: Reloader | None = None  # … and this
        self._hub = hub
        self.readiness: Final = Readiness(replica, hub, members, room)
        self._config = config
        self._limits = _json_limits(config)
        self._shares = client_shares(config)
        self._has_shares = any(self._shares)
        self._seats = Seats()
        self.idle = IdleTopics(replica, hub)
        self._checks = Checks()
        self._propose: Callable[[Command], Awaitable[Outcome]] = replica.propose
        self._publishes = 0
        self._messages = 0
        self.leaving = False  # serves on for a while, and is not ready
        self.draining = False
        self.http_url = config.http.public_url or f"http://{config.http.bind}"

    def reload(self, config: Config) -> None:
        """Hold what comes from now on to another configuration."""
        self._config = config
        self._limits = _json_limits(config)
        self._shares = client_shares(config)
        self._has_shares = any(self._shares)
        self.admission.reload(config.limits)
        if self._room is not None:
            self._room.reload(config.limits)

    @property
    def config(self) -> Config:
        """What is in force now."""
        return self._config

    @staticmethod
    def settings(config: Config) -> Settings:
        """What of the configuration every node of a cluster must share."""
        r, shares = config.topics.retention, client_shares(config)
        # Where there are no clients with shares, nothing is to be told apart.
        of_publishers = config.auth.mode == "jwt" or any(shares)
        return Settings(
            config.topics.auto_create,
            Retention(r.messages, r.seconds, r.bytes, r.idle_seconds or None),
            config.limits.idempotency_keys,
            config.limits.idempotency_seconds,
            config.limits.topics,
            Shares(shares.topics, shares.storage_bytes, shares.idempotency_keys, of_publishers),
        )

    @property
    def epoch(self) -> str:
        return self._replica.epoch

    @property
    def node_id(self) -> str:
        return self._replica.node_id

    @property
    def state(self) -> BrokerState:
        """What this node has applied; to look at, and nothing else."""
        return self._replica.state

    @property
    def leadership(self) -> tuple[int, str | None]:
        """The term and who leads in it, as far as this node knows."""
        return self._replica.term, self._replica.leader

    @property
    def turnstile(self) -> Turnstile:
        """The gate for long work of requests."""
        return self._replica.turnstile

    def subscribers(self, topic: str) -> int:
        """Streams on this node that follow ``topic``."""
        return self._hub.subscribers(topic)

    # --- publishing ---

    async def publish(
        self, asking: Asking, topic: str, body: bytes, key: str | None = None
    ) -> Receipt:
        """Publish one message: ``body`` is its JSON value.

        With ``key``, a repeat of the same request has the effect and the answer
        of the first. Raises ``unauthenticated``, ``forbidden``, ``invalid_topic``,
        ``invalid_json``, ``message_too_large``, ``invalid_parameter``,
        ``topic_not_found``, ``too_many_topics``, ``idempotency_key_reused``,
        ``rate_limited``, ``overloaded``, ``storage_full``, ``shutting_down``,
        ``outcome_unknown``.
        """
        caller, topic = self._publisher(asking, topic)
        limits = self._limits
        if len(body) <= TINY_BYTES:
            value = compact_json(body, limits)
        else:
            value = await self._checks.run(json_steps(body, limits), body, caller.client)
        return await self._publish(caller, "message", topic, (value,), key)

    async def publish_batch(
        self, asking: Asking, topic: str, body: bytes, key: str | None = None
    ) -> Receipt:
        """Publish the lines of ``body`` (NDJSON), all or none, with no message between them."""
        caller, topic = self._publisher(asking, topic)
        steps = ndjson_steps(body, self._limits)
        data = tuple(await self._checks.run(steps, body, caller.client))
        return await self._publish(caller, "batch", topic, data, key)

    async def publish_many(self, asking: Asking, body: bytes, key: str | None = None) -> Receipt:
        """Publish NDJSON lines ``{"topic":…,"data":…}``, all or none, in this order."""
        caller = self.access.caller(asking, write=True)
        self.access.check_known(caller.identity)
        self.admission.check_publish(caller.client)
        steps = topic_ndjson_steps(body, self._limits)
        pairs = await self._checks.run(steps, body, caller.client)
        topics, data = zip(*pairs, strict=True)
        await self._check_topics(caller, [*dict.fromkeys(topics)])
        return await self._publish(caller, "topics", topics, data, key)

    async def _check_topics(self, caller: Caller, topics: Sequence[str]) -> None:
        """May it publish to all of these? Many are looked at in pieces."""
        position = 0

        def piece(turn: Turn) -> bool:
            nonlocal position
            while position < len(topics) and not turn.is_over:
                following = topics[position : position + TOPICS_A_STEP]
                self.access.check_publish(caller.identity, following)
                position += TOPICS_A_STEP
            return position < len(topics)

        if caller.identity.admin or len(topics) <= TOPICS_A_STEP:
            self.access.check_publish(caller.identity, topics)
            return
        while await self._replica.turnstile.give(piece):
            pass

    def _publisher(self, asking: Asking, topic: str) -> tuple[Caller, str]:
        """Who asks, and the topic, which that one may publish to, once more now."""
        caller = self.access.caller(asking, write=True)
        topic = check_topic(topic)
        self.access.check_publish(caller.identity, (topic,))
        self.admission.check_publish(caller.client)
        return caller, topic

    def _sharer(self, caller: Caller) -> str:
        """The client whose shares this counts for; "" for one that may have all it wants.

        Where there are no tokens everyone is an administrator, and addresses have
        shares only if the configuration says so: this node's, or the leader's.
        """
        if self.access.is_open and (
            self._has_shares or self._replica.state.settings.shares.has_limits
        ):
            return caller.client
        return caller.share

    async def _publish(
        self,
        caller: Caller,
        form: str,
        topics: str | tuple[str, ...],
        data: tuple[bytes, ...],
        key: str | None,
    ) -> Receipt:
        client = self._sharer(caller)
        if key is None:
            command = Publish(topics, data, client=client)
        else:
            digest = _digest(form, topics, data)
            command = Publish(topics, data, _check_key(key), digest, caller.owner, client)
        share = caller.share
        self.admission.begin_publish(share)
        try:
            if self._room is not None:
                self._room.check(sum(map(len, data)))
            outcome = _accepted(await self._propose(command))
        finally:
            self.admission.end_publish(share)
        assert isinstance(outcome, Published)
        if not outcome.replayed:
            self._publishes += 1
            self._messages += outcome.count
        epoch, first_seq, count = self._replica.epoch, outcome.first_seq, outcome.count
        first_id = event_id(epoch, first_seq)
        last_id = first_id if count == 1 else event_id(epoch, first_seq + count - 1)
        return Receipt(first_id, last_id, count, time_text(outcome.time_ms), outcome.replayed)

    # --- topics ---

    async def create_topic(
        self,
        asking: Asking,
        name: str,
        *,
        messages: int | None = None,
        seconds: int | None = None,
        bytes: int | None = None,  # noqa: A002
        idle_seconds: int | None = None,
        replace: bool = False,
    ) -> tuple[TopicView, bool]:
        """Create a topic, or with ``replace`` change one; None stands for the default.

        ``idle_seconds`` 0 is for ever. Returns the topic and whether it is new. Raises
        ``unauthenticated``, ``forbidden``, ``invalid_topic``, ``topic_exists``,
        ``too_many_topics``.
        """
        own = messages, seconds, bytes, idle_seconds
        with self._change(asking, "topic.set" if replace else "topic.create", name) as caller:
            client = self._sharer(caller)
            command = CreateTopic(
                check_topic(name), messages, seconds, bytes, replace, idle_seconds, client
            )
            outcome = _accepted(await self._replica.propose(command))
        assert isinstance(outcome, TopicChanged)
        topic = self._replica.state.topics.get(name)
        if topic is None:  # it is, and was deleted again since
            topic = Topic(
                name,
                own,
                self._replica.state.settings.retention,
                self._replica.state.time_ms,
                0,
            )
        return self._view(topic), outcome.created

    async def delete_topic(self, asking: Asking, name: str) -> None:
        """Remove a topic and its history.

        Raises ``unauthenticated``, ``forbidden``, ``invalid_topic``, ``topic_not_found``.
        """
        with self._change(asking, "topic.delete", name):
            _accepted(await self._replica.propose(DeleteTopic(check_topic(name))))

    async def delete_topics(self, asking: Asking, match: str) -> int:
        """Remove the topics that match the filter, and their history; returns how many.

        They go in the order of their names, many in one entry. If that breaks off, what is
        gone stays gone: the error then has their ``count``. Raises ``unauthenticated``,
        ``forbidden``, ``invalid_filter``, ``no_leader``, ``shutting_down``, ``outcome_unknown``.
        """
        with self._change(asking, "topic.delete_matching", match):
            return await self._delete_topics(match)

    async def _delete_topics(self, match: str) -> int:
        filters, count = FilterSet([match]), 0
        try:
            await self._replica.read_barrier()
            at: str | None = ""
            while at is not None:
                batch = Batch()
                while at is not None and not batch.is_full:
                    look = partial(self._find_deletable, batch, at, filters)
                    at = await self._replica.turnstile.give(look)
                if batch.names:
                    outcome = await self._replica.propose(DeleteTopics(tuple(batch.names)))
                    assert isinstance(outcome, TopicsDeleted)
                    count += outcome.topics
        except RequestError as error:
            error.extra["count"] = count
            if count:
                gone = "1 topic was" if count == 1 else f"{count:,} topics were"
                error.detail = error.detail.replace(NOTHING_CHANGED, "") + (
                    f" Before that {gone} deleted, for good; ask again for the rest."
                )
            raise
        return count

    def _find_deletable(self, batch: Batch, at: str, filters: FilterSet, turn: Turn) -> str | None:
        """Fill ``batch`` with topics from the name ``at`` on. Returns where to go on."""
        state, wanted = self._replica.state, [(filters.compiled,)]
        following: str | None = at
        while following is not None and not turn.is_over:
            names, following, _ = state.names.find(following, wanted, PIECE_TOPICS, PIECE_TOPICS)
            for name in names:
                batch.add(state.topics[name])
                if batch.is_full:
                    return above(name)
        return following

    async def topic(self, asking: Asking, name: str) -> TopicView:
        """Raises ``unauthenticated``, ``forbidden``, ``invalid_topic``, ``topic_not_found``,
        ``rate_limited``, ``no_leader``."""
        caller = self.access.caller(asking, write=False)
        name = check_topic(name)
        self.access.check_see(caller.identity, name)
        self.admission.check_read(caller.client)
        await self._replica.read_barrier()
        return self._view(self._topic(name))

    async def topics(
        self, asking: Asking, *, limit: int, after: str = "", match: str | None = None
    ) -> TopicPage:
        """Topics in the order of their names, those above ``after`` that the filter matches.

        Only those that the one who asks may know of. Raises ``unauthenticated``,
        ``invalid_filter``, ``rate_limited``, ``no_leader``.
        """
        caller = self.access.caller(asking, write=False)
        identity = caller.identity
        self.access.check_known(identity)
        self.admission.check_read(caller.client)
        filters = None if match is None else FilterSet([match])
        await self._replica.read_barrier()
        page: list[TopicView] = []
        at: str | None = above(after)
        while at is not None and len(page) <= limit:  # one more says that there is more
            look = partial(self._find_topics, page, limit + 1, at, filters, identity)
            at = await self._replica.turnstile.give(look)
        more = len(page) > limit
        return TopicPage(page[:limit], page[limit - 1].name if more else None)

    def _find_topics(
        self,
        page: list[TopicView],
        limit: int,
        at: str | None,
        filters: FilterSet | None,
        identity: Identity,
        turn: Turn,
    ) -> str | None:
        """Fill ``page`` with topics from the name ``at`` on. Returns where to go on."""
        wanted: list[tuple[Filters, ...]] = [] if filters is None else [(filters.compiled,)]
        if not identity.admin:
            wanted.append(identity.sees)
        state = self._replica.state
        while at is not None and len(page) < limit and not turn.is_over:
            room = min(limit - len(page), PIECE_TOPICS)
            names, at, _ = state.names.find(at, wanted, room, PIECE_TOPICS)
            page += [self._view(state.topics[name]) for name in names]
        return at

    def _topic(self, name: str) -> Topic:
        topic = self._replica.state.topics.get(name)
        if topic is None:
            raise RequestError(
                "topic_not_found",
                f"The topic {name!r} does not exist; create it with PUT /v1/topics/{name}, "
                "or publish to it if [topics] auto_create is on.",
            )
        return topic

    def _view(self, topic: Topic) -> TopicView:
        first, last = topic.first_seq, topic.last_seq
        return TopicView(
            topic.name,
            topic.retention,
            len(topic),
            topic.bytes,
            None if first is None else event_id(self.epoch, first),
            None if last is None else event_id(self.epoch, last),
            time_text(topic.created_ms),
            self._hub.subscribers(topic.name),
        )

    # --- reading ---

    async def history(
        self, asking: Asking, name: str, *, after: str = "earliest", limit: int
    ) -> HistoryPage:
        """Retained messages above ``after``, oldest first; a page may end early, at 1 MiB.

        Raises ``unauthenticated``, ``forbidden``, ``invalid_topic``, ``topic_not_found``,
        ``invalid_event_id``, ``rate_limited``, ``no_leader``.
        """
        caller = self.access.caller(asking, write=False)
        filters = FilterSet([check_topic(name)])
        self.access.check_subscribe(caller.identity, filters.filters)
        self.admission.check_read(caller.client)
        cursor = self._cursor(after)
        await self._replica.read_barrier()
        while True:
            state = self._replica.state
            self._topic(name)
            known = isinstance(cursor, Cursor) and cursor.epoch == self.epoch
            if isinstance(cursor, Cursor):
                seq = cursor.seq if known else 0
                gap = not known or cursor.seq > state.seq or state.lost_seq(filters, seq) > 0
            else:
                seq, gap = (0 if cursor == "earliest" else state.seq), False
            page = state.scan(filters, seq, limit + 1)
            size, count = 0, 0
            for at in page[:limit]:
                size += at.size
                if count and size > HISTORY_BYTES_MAX:
                    break
                count += 1
            messages = await self._replica.fetch(page[:count])
            if messages or not count:
                break  # else all of it was trimmed while it was read: look again
        more = len(messages) < len(page)
        return HistoryPage(messages, event_id(self.epoch, messages[-1].seq) if more else None, gap)

    def subscribe(
        self, asking: Asking, filters: Iterable[str], after: str = "latest"
    ) -> Subscription:
        """A stream of the filters' messages above ``after``, live from then on.

        It ends when its lease does. Raises ``unauthenticated``, ``forbidden``,
        ``invalid_filter``, ``invalid_event_id``, ``topic_not_found`` (with auto_create off,
        for a filter that names a topic), ``rate_limited``, ``too_many_streams``,
        ``shutting_down``.
        """
        if self.draining:
            raise RequestError("shutting_down", "The node is shutting down; use another.")
        caller = self.access.caller(asking, write=False)
        wanted = FilterSet(filters)
        self.access.check_subscribe(caller.identity, wanted.filters)
        self.admission.check_subscribe(caller.client)
        if self._members is not None and not self._replica.adopted and not self._members.has_joined:
            raise RequestError("no_leader", "The node has not joined its cluster yet.")
        if self._replica.disowned is not None:
            raise disowned_error(self._replica.disowned)
        if not self._replica.state.settings.auto_create:
            for name in sorted(wanted.exact):
                self._topic(name)
        cursor = self._cursor(after)
        lease = self._lease(caller, wanted)  # and nothing is refused below
        self.idle.opened(wanted.filters)
        return Subscription(
            self._replica,
            self._hub,
            wanted,
            cursor,
            self._config.limits.heartbeat_seconds,
            lease,
        )

    def _lease(self, caller: Caller, wanted: FilterSet) -> Lease | Seat | None:
        """What a stream has for as long as there is one: its right, and its place in a share."""
        lease, most = self.access.lease(caller.identity, wanted), self._shares.streams
        # Of streams those have a share who read, each at its address, and not all with one token.
        client = caller.client if most and self._sharer(caller) else ""
        return self._seats.take(client, most, lease) if client else lease

    def _cursor(self, text: str) -> Cursor | str:
        return text if text in ("earliest", "latest") else parse_event_id(text)

    # --- tokens ---

    async def revoke_tokens(self, asking: Asking, subject: str) -> None:
        """Refuse the subject's tokens that were issued before now, and end its streams.

        Raises ``unauthenticated``, ``forbidden``, ``invalid_parameter``, ``rate_limited``.
        """
        with self._change(asking, "tokens.revoke", subject):
            if not is_subject(subject):
                raise RequestError("invalid_parameter", f"A token's sub is {SUBJECT}.")
            replica, keep_seconds = self._replica, self.access.keep_seconds
            await replica.allow(TWO_CLOCKS)
            asked_ms = (replica.certain_ms() or 0) if replica.state.level >= TWO_CLOCKS else 0
            _accepted(await replica.propose(RevokeTokens(subject, keep_seconds, asked_ms)))

    # --- the node ---

    def inspect(self, asking: Asking) -> Lease | None:
        """Whether that one may look at the node's figures, and for how long.

        None: for as long as it likes, because there are no tokens. Raises
        ``unauthenticated``, ``forbidden``.
        """
        caller = self.access.caller(asking, write=False)
        self.access.check_admin(caller.identity)
        return self.access.lease(caller.identity, None)

    @contextmanager
    def _change(
        self, asking: Asking, action: str, target: str, *, forced: bool = False
    ) -> Iterator[Caller]:
        """Around a change that an administrator asks for: the log has who asks, and for what."""
        with audited(action, target, asking.address, forced=forced) as change:
            caller = self.access.caller(asking, write=True)
            change.subject = caller.identity.name
            self.access.check_admin(caller.identity)
            yield caller
            if action == "member.remove" and self._waits_to_remove(target):
                change.outcome = "pending"

    def _waits_to_remove(self, node_id: str) -> bool:
        """Whether a removal was begun, and too few answer to commit it."""
        pending = self._members.pending_change() if self._members is not None else None
        return pending is not None and node_id in pending.leaves and bool(pending.waits_for)

    async def cluster(self, asking: Asking) -> dict[str, object]:
        """The cluster as this node sees it. Raises ``unauthenticated``, ``forbidden``."""
        self.inspect(asking)
        return await self.describe_cluster()

    async def describe_cluster(self) -> dict[str, object]:
        """The cluster as this node sees it, as the API shows it.

        For the node itself: it asks for no right.
        """
        replica = self._replica.statistics()
        members = [self._single()] if self._members is None else await self._members.view()
        # With no pause in between: it is about the members as they are shown.
        change_pending = self._replica.change_pending
        change = self._members.pending_change() if self._members is not None else None
        return {
            "cluster_id": self._replica.cluster_id,
            "epoch": self.epoch,
            "node": self.node_id,
            "mode": "single" if self._members is None else "cluster",
            "term": replica.term,
            "leader": self._replica.leader,
            "commit_index": replica.commit_index,
            "applied_index": replica.applied_index,
            # A single node may write all that it knows, and its log says so only once it has: a
            # store that founds a cluster begins with what it needs, and rises to what all know.
            "feature_level": self._replica.level_max
            if self._members is None
            else self._replica.state.level,
            "clock_skew_seconds_max": self.clock_skew_seconds_max,
            "change_pending": change_pending,
            "change": msgspec.to_builtins(change),
            "ready": self.ready,
            "reasons": [reason._asdict() for reason in self.reasons()],
            "members": [member._asdict() for member in members],
        }

    def _single(self) -> MemberView:
        raft_address = str(self._config.raft.advertise or self._config.raft.bind)
        last_index = self._replica.statistics().last_index
        return MemberView(
            self.node_id,
            "leader",
            raft_address,
            self.http_url,
            last_index,
            0,
            reachable=True,
            feature_level=self._replica.level_max,
            clock_skew_seconds=0.0,
        )

    async def add_member(
        self, asking: Asking, node_id: str, raft_address: str, http_url: str
    ) -> None:
        """Add a node as a learner; it gets its vote when it has caught up.

        Raises ``unauthenticated``, ``forbidden``, ``single_node``, ``member_exists``,
        ``member_unreachable``, ``membership_change_in_progress``, ``invalid_parameter``,
        ``no_leader``.
        """
        with self._change(asking, "member.add", f"{node_id} at {raft_address}"):
            await self._require_members().add(node_id, raft_address, http_url)

    async def remove_member(self, asking: Asking, node_id: str, *, forced: bool = False) -> None:
        """Remove a member; a leader hands over first.

        Raises ``unauthenticated``, ``forbidden``, ``single_node``, ``member_not_found``,
        ``last_voter``, ``no_majority`` unless ``forced``, ``membership_change_in_progress``,
        ``no_leader``.
        """
        with self._change(asking, "member.remove", node_id, forced=forced):
            await self._require_members().remove(node_id, forced=forced)

    async def move_leader(self, asking: Asking, node_id: str) -> None:
        """Have ``node_id`` lead. Raises ``unauthenticated``, ``forbidden``, ``single_node``,
        ``member_not_found``, ``not_a_voter``, ``member_unreachable``, ``clock_off``,
        ``membership_change_in_progress``, ``no_leader``."""
        with self._change(asking, "leader.move", node_id):
            await self._require_members().transfer(node_id)

    def _require_members(self) -> Members:
        if self._members is None:
            raise RequestError(
                "single_node",
                "This node runs by itself. Started with --bootstrap it is the first member of a "
                "cluster, which others can join.",
            )
        return self._members

    def check_ready(self) -> None:
        """Raises NotReadyError with all the reasons, ``shutting_down`` first."""
        if found := self.reasons():
            leaves = self.leaving and not self.draining
            raise NotReadyError(found, **({"reason": "draining"} if leaves else {}))

    def reasons(self) -> list[Reason]:
        """Why requests should not come here; empty if they should."""
        stopping = self._stopping()
        return [*([stopping] if stopping else []), *self.readiness.reasons()]

    def _stopping(self) -> Reason | None:
        if self.draining:
            return Reason("shutting_down", "The node is shutting down; use another.")
        if self.leaving:
            detail = "The node stops soon, and serves until then; use another."
            return Reason("shutting_down", detail)
        return None

    @property
    def ready(self) -> bool:
        """Whether requests should come here: ``check_ready`` raises nothing."""
        return not self.reasons()

    def statistics(self) -> Statistics:
        state, replica = self._replica.state, self._replica.statistics()
        return Statistics(
            self._publishes,
            self._messages,
            state.seq,
            len(state.topics),
            replica,
            self._hub.statistics(),
            self._members.statistics() if self._members else NO_PEERS,
            self._followers(replica.last_index),
            self._spans(),
            self.admission.statistics(),
            self._room.statistics() if self._room else NO_ROOM_KNOWN,
            self.refusals,
            self.turns.statistics(),
            self.clocks.statistics()
            if self.clocks
            else ClockStatistics(self.clock_skew_seconds_max),
            self._files(),
        )

    def _files(self) -> FileStatistics:
        problems = self.access.problems + (self.reloader.problems if self.reloader else 0)
        return FileStatistics(problems, self.certificates.expiries if self.certificates else ())

    def _followers(self, last_index: int) -> tuple[MemberStatistics, ...]:
        return tuple(
            MemberStatistics(peer, max(0, last_index - known.match_index), known.reachable)
            for peer, known in sorted(self._replica.progress().items())
            if peer != self.node_id
        )

    def _spans(self) -> SpanStatistics:
        return SpanStatistics()


def _json_limits(config: Config) -> JsonLimits:
    limits = config.limits
    return JsonLimits(limits.message_bytes, limits.batch_messages, limits.json_depth)


def _accepted(outcome: Outcome) -> Outcome:
    if isinstance(outcome, Refused):
        raise RequestError(outcome.code, outcome.detail)
    return outcome


def _check_key(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        shown = repr(key) if len(key) <= 64 else f"{key[:64]!r}… ({len(key):,} characters)"
        raise RequestError(
            "invalid_parameter",
            f"The Idempotency-Key {shown} is not valid: use 1 to 255 visible ASCII characters, for "
            "instance a UUID.",
        )
    return key


def _digest(form: str, topics: str | tuple[str, ...], data: tuple[bytes, ...]) -> bytes:
    """Tells requests apart: the form counts, because the answers differ in shape."""
    digest = hashlib.blake2b(form.encode(), digest_size=16)
    for part in (topics,) if isinstance(topics, str) else topics:
        digest.update(b"%d:%b" % (len(part), part.encode()))
    for body in data:
        digest.update(b"%d:%b" % (len(body), body))
    return digest.digest()
