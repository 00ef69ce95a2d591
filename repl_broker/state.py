"""The replicated state machine: what every node computes alike from the same log.

It decides what exists (topics, retained messages, remembered idempotency keys)
and in which order messages come (``seq``). It holds no message's data: that
stays in the log's entries, and the state knows which entry has it. So a
message's bytes reach the disk once, and history is read from the log:

    topic ── sequences, sizes            what a topic retains, oldest first
    segments ── first seq, entry, time   where a sequence number's data is

An entry whose last message is trimmed is *dead*: once a snapshot covers it,
the log may drop it.

Everything here is deterministic. Time comes in the entry and never runs
backwards; the settings that matter come by a ``Configure`` command. Nothing is
read from a clock, a random source, the environment or a local file.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from repl_broker.capture import (
    SNAPSHOT_FORMAT,
    WITH_CLIENTS,
    WITH_LEVEL,
    WITH_REVOCATIONS,
    Capture,
)
from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    DeleteTopics,
    Expire,
    KeepTopics,
    Numbered,
    Publish,
    RaiseLevel,
    Retention,
    RevokeTokens,
    Settings,
)
from repl_broker.expiry import Expiry
from repl_broker.levels import FIRST, TWO_CLOCKS
from repl_broker.message import SEQUENCE_MAX, FilterSet, Message, TopicDeleted
from repl_broker.names import Names
from repl_broker.patience import ENDLESS, Patience
from repl_broker.payers import Part, Payers
from repl_broker.remembered import Remembered, RememberedKeys
from repl_broker.scan import Scan
from repl_broker.segments import Segments
from repl_broker.senders import Senders
from repl_broker.timeline import Gone, Timeline
from repl_broker.untracked import untrack
from repl_broker.wire import unpack_settings

__all__ = [
    "ALL_DEFAULT",
    "MESSAGE_OVERHEAD_BYTES",
    "Applied",
    "BrokerState",
    "Location",
    "Outcome",
    "OwnRetention",
    "Published",
    "Refused",
    "Repeated",
    "Revocation",
    "Revoked",
    "Topic",
    "TopicChanged",
    "TopicsDeleted",
]

MESSAGE_OVERHEAD_BYTES: Final = 64  # of the store and of memory, beside a message's data
TOMBSTONES_MAX: Final = 1000  # deleted topics remembered by name
REVOCATIONS_MAX: Final = 100_000  # subjects whose tokens were revoked; about 20 MB
CLOCKS_APART_MS: Final = 60_000  # by which two clocks may differ that are both taken for right
ALL_STEPS: Final = 1 << 60
EXPIRY_STEPS_OF_TOPIC: Final = 8  # as much work as so many messages of it


# --- what applying gives --------------------------------------------------------------


class Published(msgspec.Struct, frozen=True):
    """The messages have the ``count`` sequence numbers from ``first_seq`` on."""

    first_seq: int
    count: int
    time_ms: int
    replayed: bool = False  # the idempotency key was known: nothing was published now


class TopicChanged(NamedTuple):
    """The topic exists as asked."""

    created: bool


class TopicsDeleted(NamedTuple):
    """This many of the topics were there, and are gone."""

    topics: int


class Refused(NamedTuple):
    """The command changed nothing; ``code`` is one of errors.PROBLEMS."""

    code: str
    detail: str


class Repeated(NamedTuple):
    """A command of this number was carried out before: nothing was done now."""


class Revoked(NamedTuple):
    """Tokens of the subject that were issued before ``time_ms`` are refused from now on."""

    subject: str
    time_ms: int


class Revocation(NamedTuple):
    """Of a subject's tokens that were issued before ``time_ms``."""

    time_ms: int
    until_ms: int  # then it is forgotten


REPEATED: Final = Repeated()
Outcome = Published | TopicChanged | TopicDeleted | TopicsDeleted | Refused | Revoked | Repeated


class Applied(NamedTuple):
    """What one entry did: an outcome a command, and what subscribers are to be told."""

    outcomes: list[Outcome]
    events: list[Message | TopicDeleted]
    revoked: tuple[str, ...] = ()  # whose tokens were
    numbered: tuple[tuple[Numbered, int], ...] = ()  # each with which of the outcomes is its own


class Location(NamedTuple):
    """Where in the log a message's data is."""

    seq: int
    topic: str
    size: int  # of its data, in bytes
    time_ms: int
    entry: int  # the entry's index
    ordinal: int  # which of the entry's messages, from 0


# Messages, seconds, bytes, and how long it may be idle (0: for ever).
OwnRetention = tuple[int | None, int | None, int | None, int | None]
ALL_DEFAULT: Final[OwnRetention] = (None, None, None, None)


# --- a topic ----------------------------------------------------------------------------


class Sight(NamedTuple):
    """What this node saw of a topic's last use, in seconds of its own steady clock."""

    used_index: int  # the entry of that use
    after: float  # it was later than this; minus infinity: how long ago is not known
    before: float  # … and earlier than this


class Holding:
    """What counts for a client's shares: the topics that it created, and what is retained for it.

    A message counts for the client that published it; in entries from before
    ``Shares.of_publishers``, for the one that created its topic, whoever published.
    """

    __slots__ = ("bytes", "topics")

    def __init__(self) -> None:
        self.topics = 0
        self.bytes = 0  # MESSAGE_OVERHEAD_BYTES for each message included


class Topic:
    """A topic's settings and the sequence numbers and sizes of what it retains."""

    __slots__ = (
        "_head",
        "_sequences",
        "_sizes",
        "born_seq",
        "bytes",
        "captured",
        "client",
        "created_ms",
        "dropped",
        "lost_at",
        "lost_version",
        "name",
        "oldest_ms",
        "own",
        "payers",
        "place",
        "retention",
        "sight",
        "trimmed_seq",
        "used_index",
    )

    def __init__(
        self, name: str, own: OwnRetention, default: Retention, created_ms: int, born_seq: int
    ) -> None:
        self.name = name
        self.client = ""  # that created it, and has shares
        self.payers: Payers | None = None  # None: all its messages count for ``client``
        # The entry that last published to it, set it or said that it is followed; holds only
        # while it may not idle for ever.
        self.used_index = 0
        self.sight: Sight | None = None  # of that; local, for idle.py
        self.own = own  # what the topic says itself; None stands for the default
        self.retention = default
        self.follow(default)
        self.created_ms = created_ms
        self.born_seq = born_seq  # the last sequence number given before it was created
        self.trimmed_seq = 0  # the highest sequence number that is no longer retained
        self.bytes = 0  # of data retained
        self.dropped = 0  # how many messages were trimmed since it was loaded; local
        self.oldest_ms = 0  # when the oldest retained message was published
        self.captured = 0  # by which capture it was seen; local
        self.place = 0  # in the timeline, as are the next two; local
        self.lost_version = 0  # of its last loss; 0: there was none
        self.lost_at = 0  # the sequence number that had been given then
        self._sequences = array("Q")
        self._sizes = array("I")
        self._head = 0  # everything before it is trimmed, and cut off now and then
        for each in (self, self._sequences, self._sizes):
            untrack(each)

    def __len__(self) -> int:
        return len(self._sequences) - self._head

    def follow(self, default: Retention) -> None:
        """Take ``default`` for what the topic does not say itself."""
        if self.own == ALL_DEFAULT:
            self.retention = default
            return
        messages, seconds, size, idle_seconds = self.own
        self.retention = Retention(
            default.messages if messages is None else messages,
            default.seconds if seconds is None else seconds,
            default.bytes if size is None else size,
            default.idle_seconds if idle_seconds is None else idle_seconds or None,
        )

    @property
    def due_ms(self) -> int | None:
        """Its oldest message is too old once it is later than this; None if there is none."""
        return self.oldest_ms + self.retention.seconds * 1000 if len(self) else None

    @property
    def first_seq(self) -> int | None:
        """The oldest retained sequence number."""
        return self._sequences[self._head] if len(self) else None

    @property
    def last_seq(self) -> int | None:
        """The newest retained sequence number."""
        sequences = self._sequences
        return sequences[-1] if len(sequences) > self._head else None

    @property
    def published(self) -> int:
        """How many messages it got, from a beginning that differs from node to node."""
        return self.dropped + len(self)

    def seq_before_last(self, count: int) -> int:
        """A cursor from which its newest ``count`` messages follow, or all it has; else 0."""
        retained = len(self)
        return self._sequences[-min(count, retained)] - 1 if retained else 0

    def after(self, seq: int) -> tuple[int, int] | None:
        """Sequence number and size of the first message that it retains above ``seq``."""
        row = bisect_right(self._sequences, seq, self._head)
        return (self._sequences[row], self._sizes[row]) if row < len(self._sequences) else None

    def retains(self, seq: int) -> bool:
        """Whether the message ``seq`` is in this topic's history."""
        row = bisect_left(self._sequences, seq, self._head)
        return row < len(self._sequences) and self._sequences[row] == seq

    def size_of(self, seq: int) -> int | None:
        """The size of the message ``seq``; None if it is not in this topic's history."""
        row = bisect_left(self._sequences, seq, self._head)
        if row < len(self._sequences) and self._sequences[row] == seq:
            return self._sizes[row]
        return None

    def sequences(self) -> array[int]:
        """Those of all that it retains."""
        return self._sequences[self._head :]

    def between(self, first: int, last: int) -> Sequence[int]:
        """Those that it retains from ``first`` to ``last``."""
        low = bisect_left(self._sequences, first, self._head)
        return self._sequences[low : bisect_right(self._sequences, last, low)]

    def charge(self, seq: int, payer: str) -> None:
        """What is appended from ``seq`` on counts for ``payer``."""
        if self.payers is None:
            if payer == self.client:
                return
            self.payers = Payers()
            if self.first_seq is not None:
                self.payers.append(self.first_seq, self.client)
        self.payers.append(seq, payer)

    def parts(self, sequences: array[int], sizes: array[int]) -> Iterable[Part]:
        """For whom its oldest messages count, which these are; all that do for somebody."""
        if self.payers is not None:
            return (part for part in self.payers.parts(sequences, sizes) if part.client)
        return (Part(self.client, len(sizes), sum(sizes)),) if self.client and sizes else ()

    def append(self, seq: int, size: int) -> None:
        self._sequences.append(seq)
        self._sizes.append(size)
        self.bytes += size

    def extend(self, seq: int, sizes: Sequence[int]) -> None:
        """Messages of these sizes are its own, from the sequence number ``seq`` on."""
        self._sequences.extend(range(seq, seq + len(sizes)))
        self._sizes.extend(sizes)
        self.bytes += sum(sizes)

    def is_beyond(self, oldest_ms: int) -> bool:
        """Whether it retains too many messages or bytes, or one that is older than that."""
        limits = self.retention
        return (
            len(self._sequences) - self._head > limits.messages
            or self.bytes > limits.bytes
            or self.oldest_ms < oldest_ms
        )

    def count_below(self, seq: int) -> int:
        """How many of its messages come before ``seq``."""
        return bisect_left(self._sequences, seq, self._head) - self._head

    def count_of_bytes(self, size: int) -> int:
        """How many of its oldest messages make up ``size`` bytes; never all of them."""
        for count, row in enumerate(range(self._head, len(self._sequences) - 1)):
            if size <= 0:
                return count
            size -= self._sizes[row]
        return len(self) - 1

    def oldest(self, count: int) -> tuple[array[int], array[int]]:
        """Sequence numbers and sizes of the ``count`` oldest."""
        start, end = self._head, self._head + count
        return self._sequences[start:end], self._sizes[start:end]

    def drop_oldest(self, count: int) -> tuple[array[int], array[int]]:
        """Sequence numbers and sizes of the ``count`` oldest, which are trimmed now."""
        end = self._head + count
        sequences, sizes = self.oldest(count)
        self.bytes -= sum(sizes)
        self.dropped += count
        self.trimmed_seq = sequences[-1]
        self._head = end
        if end == len(self._sequences) or (end > 1024 and end * 2 > len(self._sequences)):
            del self._sequences[:end]
            del self._sizes[:end]
            self._head = 0
        return sequences, sizes

    def cut_payers(self) -> None:
        """Its oldest messages have been dropped."""
        first_seq = self.first_seq
        if first_seq is None:
            self.payers = None
            return
        assert self.payers is not None
        self.payers.cut(first_seq)
        if len(self.payers) == 1 and self.payers.last == self.client:
            self.payers = None

    def to_wire(self) -> tuple[Any, ...]:
        idles = self.retention.idle_seconds is not None
        later: tuple[Any, ...] = ()
        if self.client or idles or self.payers is not None:
            later = (self.client, self.used_index if idles else 0)
        if self.payers is not None:
            later += (self.payers.to_wire(),)
        return (
            self.name,
            self.own if self.own[3] is not None else self.own[:3],
            self.created_ms,
            self.born_seq,
            self.trimmed_seq,
            self.oldest_ms,
            self._sequences[self._head :].tobytes(),
            self._sizes[self._head :].tobytes(),
            *later,
        )

    @classmethod
    def from_wire(cls, fields: tuple[Any, ...], default: Retention) -> Topic:
        name, own, created_ms, born_seq, trimmed_seq, oldest_ms, sequences, sizes = fields[:8]
        topic = cls(name, own if len(own) > 3 else (*own, None), default, created_ms, born_seq)
        if fields[8:]:
            topic.client, topic.used_index = fields[8:10]
        if fields[10:]:
            topic.payers = Payers.from_wire(fields[10])
        topic.trimmed_seq, topic.oldest_ms = trimmed_seq, oldest_ms
        topic._sequences.frombytes(sequences)
        topic._sizes.frombytes(sizes)
        topic.bytes = sum(topic._sizes)
        return topic


# --- the state machine ------------------------------------------------------------------------


class BrokerState:
    """Topics, retained messages and remembered keys, as of ``applied_index``.

    ``apply`` is called once for each log entry, in order. Nothing else changes
    the state. Invariants: ``seq`` grows by one a message, without holes; a
    topic's sequence numbers ascend; ``time_ms`` never falls.
    """

    def __init__(self) -> None:
        self.applied_index = 0
        self.seq = 0  # the last sequence number given
        self.time_ms = 0  # the newest entry's time
        self.settings = Settings(True, Retention(10_000, 86_400, 64 << 20), 100_000, 86_400)
        self.topics: dict[str, Topic] = {}
        self.names = Names()  # of topics
        self.retained_messages = 0  # of all topics; these two follow from them
        self.retained_bytes = 0  # … of data
        self.timeline = Timeline()  # this follows from them, too, as does …
        self._expiry = Expiry(self._due_ms)  # … when they are to be looked at
        self.generation = 0  # one more when a snapshot takes its place; local to a node
        self.segments = Segments()
        self._dead: list[int] = []  # entries that died since take_dead(); local
        self._revoked: list[str] = []  # by the entry that is being applied; local
        # Of the last entry, what neither publishes nor numbers, and what became of it; local.
        self.changes: list[tuple[Command, Outcome]] = []
        self._keys = RememberedKeys()
        # By client, of all that have anything; this follows from the topics, as does …
        self._holdings: dict[str, Holding] = {}
        self.idle_topics: dict[str, Topic] = {}  # … which of them may not idle for ever
        # Topics that were deleted: when, and the newest sequence number lost by it.
        # The oldest are folded into the floor: below it, losses are not known by name.
        self.tombstones: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.tombstone_floor = 0
        # By subject, in the order in which they came.
        self.revocations: dict[str, Revocation] = {}
        self.level = FIRST  # which commands may be proposed
        self.senders = Senders()
        self._repeated: list[bool] = []  # of the entry's next commands, the last first; local
        self._capture: Capture | None = None  # what is to be told before anything changes; local
        self._captures = 0  # so far

    # --- applying ---

    def apply(self, index: int, time_ms: int, commands: Sequence[Command]) -> Applied:
        """Carry out one entry's commands in order.

        A command that is refused leaves no trace but its outcome.
        """
        assert index > self.applied_index, "entries are applied once, in order"
        self.applied_index = index
        self.time_ms = max(self.time_ms, time_ms)
        outcomes: list[Outcome] = []
        events: list[Message | TopicDeleted] = []
        ordinals: list[int] = []  # of the messages that were published
        numbered: list[tuple[Numbered, int]] = []
        changes = self.changes = []
        offered = 0
        for command in commands:
            if self._repeated and self._repeated.pop():
                outcome: Outcome = REPEATED
            else:
                outcome = _HANDLERS[type(command)](self, command, events)
            outcomes.append(outcome)
            if isinstance(command, Numbered):
                numbered.append((command, len(outcomes) - 1))
            elif isinstance(command, Publish):
                end = offered + len(command.data)
                if isinstance(outcome, Published) and not outcome.replayed:
                    ordinals.extend(range(offered, end))
                offered = end
            else:
                changes.append((command, outcome))
        if ordinals and len(ordinals) != offered:
            self.segments.publish_only(index, tuple(ordinals))
        for name in dict.fromkeys([event.topic for event in events]):  # in an order all share
            topic = self.topics.get(name)
            if topic is not None:
                self._trim(topic)
        if not self.segments.holds(index):
            self._dead.append(index)
        self._repeated.clear()
        if self._revoked or numbered:
            revoked, self._revoked = tuple(self._revoked), []
            return Applied(outcomes, events, revoked, tuple(numbered))
        return Applied(outcomes, events)

    def _publish(self, command: Publish, events: list[Message | TopicDeleted]) -> Outcome:
        if command.key is not None:
            self._forget_keys()
            known = self._keys.get(command.owner, command.key)
            if known is not None:
                if known.digest != command.digest:
                    return Refused(
                        "idempotency_key_reused",
                        f"The idempotency key {command.key!r} was used for another request; "
                        "use a new key for a new request.",
                    )
                return Published(known.first_seq, known.messages, known.time_ms, replayed=True)
        data, client = command.data, command.client
        names = (command.topics,) if isinstance(command.topics, str) else command.topics
        if not self.settings.auto_create:
            for name in names:
                if name not in self.topics:
                    return _topic_not_found(name)
        elif self._is_crowded(names):
            return self._too_many_topics()
        if client and (refused := self._beyond_share(client, command.topics, data)) is not None:
            return refused
        first_seq = self.seq + 1
        payer = client if self.settings.shares.of_publishers else None
        if isinstance(command.topics, str):
            self._append(command.topics, data, events, client, payer)
        else:
            self._append_each(command.topics, data, events, client, payer)
        if command.key is not None:
            known = Remembered(command.digest, first_seq, len(data), self.time_ms, client)
            self._keys.add(command.owner, command.key, known)
            self._keys.bound_client(client, self.settings.shares.idempotency_keys)
            self._keys.bound(self.settings.idempotency_keys)
        return Published(first_seq, len(data), self.time_ms)

    def _append(
        self,
        name: str,
        data: tuple[bytes, ...],
        events: list[Message | TopicDeleted],
        client: str,
        payer: str | None,
    ) -> None:
        """Publish to one topic. ``payer`` None: they count for whoever created it."""
        seq, time_ms, size = self.seq + 1, self.time_ms, sum(map(len, data))
        topic = self._used(name, client, payer, seq, size + MESSAGE_OVERHEAD_BYTES * len(data))
        self.segments.add(self.applied_index, seq, time_ms, len(data), size)
        if len(data) == 1:
            topic.append(seq, size)
            events.append(Message(seq, name, time_ms, data[0]))
        else:
            topic.extend(seq, [*map(len, data)])
            events += [Message(at, name, time_ms, body) for at, body in enumerate(data, seq)]
        self.timeline.publish(topic, seq, len(data))
        self.seq += len(data)
        self.retained_messages += len(data)
        self.retained_bytes += size

    def _append_each(
        self,
        names: Sequence[str],
        data: tuple[bytes, ...],
        events: list[Message | TopicDeleted],
        client: str,
        payer: str | None,
    ) -> None:
        """The same as ``_append`` for one after the other, of which there may be thousands."""
        if not data:
            return
        seq, time_ms, places = self.seq, self.time_ms, array("I")
        for name, body in zip(names, data, strict=True):
            seq += 1
            size = len(body)
            topic = self._used(name, client, payer, seq, size + MESSAGE_OVERHEAD_BYTES)
            topic.append(seq, size)
            places.append(topic.place)
            events.append(Message(seq, name, time_ms, body))
            self.seq = seq  # which a topic that is new next begins behind
        first_seq, size = seq + 1 - len(data), sum(map(len, data))
        self.segments.add(self.applied_index, first_seq, time_ms, len(data), size)
        self.timeline.publish_each(first_seq, places)
        self.retained_messages += len(data)
        self.retained_bytes += size

    def _used(self, name: str, client: str, payer: str | None, seq: int, stored: int) -> Topic:
        """The topic, a new one if need be, to which messages are about to be appended.

        They begin at ``seq``, and ``stored`` bytes count for whoever pays for them.
        """
        topic = self.topics.get(name)
        if topic is None:
            topic = self._add_topic(name, ALL_DEFAULT, client)
        elif self._capture is not None:
            self._capture.before_topic(topic)
        if topic.last_seq is None:
            topic.oldest_ms = self.time_ms
            self._expiry.note(name, self.time_ms + topic.retention.seconds * 1000)
        topic.used_index = self.applied_index
        if payer is None:
            payer = topic.client
        if payer != topic.client or topic.payers is not None:
            topic.charge(seq, payer)
        if payer:
            self._holding(payer).bytes += stored
        return topic

    def _forget_keys(self) -> None:
        self._keys.forget_before(self.time_ms - self.settings.idempotency_seconds * 1000)

    def _create_topic(self, command: CreateTopic, events: list[Message | TopicDeleted]) -> Outcome:
        own = (command.messages, command.seconds, command.bytes, command.idle_seconds)
        topic = self.topics.get(command.name)
        if topic is None:
            if self._is_crowded((command.name,)):
                return self._too_many_topics()
            client = command.client
            if client and (refused := self._beyond_share(client, command.name, ())) is not None:
                return refused
            self._add_topic(command.name, own, client)
            return TopicChanged(created=True)
        if not command.replace:
            return Refused(
                "topic_exists",
                f"The topic {command.name!r} exists already; "
                "PUT /v1/topics/{topic} changes its settings.",
            )
        self._tell(topic)
        topic.own = own
        topic.follow(self.settings.retention)
        topic.used_index = self.applied_index
        self._note_idle(topic)
        self._trim(topic)
        self._note_due(topic)
        return TopicChanged(created=False)

    def _delete_topic(self, command: DeleteTopic, events: list[Message | TopicDeleted]) -> Outcome:
        topic = self.topics.get(command.name)
        return _topic_not_found(command.name) if topic is None else self._remove(topic, events)

    def _delete_topics(
        self, command: DeleteTopics, events: list[Message | TopicDeleted]
    ) -> Outcome:
        count = 0
        used_indexes = command.used or (None,) * len(command.names)
        for name, used in zip(command.names, used_indexes, strict=True):
            topic = self.topics.get(name) if used is None else self.idle_topics.get(name)
            if topic is not None and used in (None, topic.used_index):
                self._remove(topic, events)
                count += 1
        return TopicsDeleted(count)

    def _keep_topics(self, command: KeepTopics, events: list[Message | TopicDeleted]) -> Outcome:
        for name in command.names:
            if name in self.idle_topics:
                self._tell(self.idle_topics[name])
                self.idle_topics[name].used_index = self.applied_index
        return TopicChanged(created=False)

    def _remove(self, topic: Topic, events: list[Message | TopicDeleted]) -> TopicDeleted:
        name = topic.name
        self._tell(topic)
        del self.topics[name]
        self.names.remove(name)
        if self._capture is not None:
            self._capture.deleted(name)
        self.idle_topics.pop(name, None)
        self._drop_oldest(topic, len(topic))
        self._expiry.forget(name)
        if topic.client:
            self._give_back(topic.client, 1, 0)
        self.timeline.end(topic)
        self.tombstones[name] = (self.seq, topic.trimmed_seq)
        if len(self.tombstones) > TOMBSTONES_MAX:
            forgotten, (_, lost_seq) = self.tombstones.popitem(last=False)
            self.timeline.forget(forgotten)
            self.tombstone_floor = max(self.tombstone_floor, lost_seq)
        deleted = TopicDeleted(name, self.seq)
        events.append(deleted)
        return deleted

    def _configure(self, command: Configure, events: list[Message | TopicDeleted]) -> Outcome:
        before, self.settings = self.settings.retention, command.settings
        idle_changes = before.idle_seconds != self.settings.retention.idle_seconds
        for topic in self._by_name():
            if idle_changes:
                self._tell(topic)
            idle_seconds = topic.retention.idle_seconds
            topic.follow(self.settings.retention)
            if topic.retention.idle_seconds != idle_seconds:
                topic.used_index = self.applied_index
            self._note_idle(topic)
            self._trim(topic)
            self._note_due(topic)
        self._forget_keys()
        self._keys.bound_clients(self.settings.shares.idempotency_keys)
        self._keys.bound(self.settings.idempotency_keys)
        return TopicChanged(created=False)

    def _expire(self, command: Expire, events: list[Message | TopicDeleted]) -> Outcome:
        if not command.steps_max:  # as old logs have it: whatever is beyond any limit
            for topic in self._by_name():
                self._trim(topic)
        room = command.steps_max
        while room > 0 and (due := self._expiry.first()) and due.time_ms < self.time_ms:
            topic = self.topics[due.name]
            oldest_ms = self.time_ms - topic.retention.seconds * 1000
            count = topic.count_below(self.segments.first_seq_since(oldest_ms))
            assert count, "its oldest message is too old"
            count = min(count, room)
            self._drop_oldest(topic, count)
            room -= EXPIRY_STEPS_OF_TOPIC + count
        self._forget_keys()
        self._forget_revocations()
        return TopicChanged(created=False)

    def _numbered(self, command: Numbered, events: list[Message | TopicDeleted]) -> Outcome:
        first = self.senders.take(command.sender, command.run, command.floor, command.numbers)
        self._repeated = [not is_first for is_first in reversed(first)]
        return TopicChanged(created=False)

    def _raise_level(self, command: RaiseLevel, events: list[Message | TopicDeleted]) -> Outcome:
        self.level = max(self.level, command.level)
        return TopicChanged(created=False)

    def _is_crowded(self, names: Sequence[str]) -> bool:
        """Whether topics of ``names`` are new, and too many."""
        room = self.settings.topics - len(self.topics)
        if not self.settings.topics or len(names) <= room:
            return False
        new = {name for name in names if name not in self.topics}
        return bool(new) and len(new) > room

    def _too_many_topics(self) -> Refused:
        return Refused(
            "too_many_topics",
            f"There are {len(self.topics):,} topics, of all clients, and "
            f"{self.settings.topics:,} is the most ([limits] topics). Delete some, let them go "
            "when they are idle (retention.idle_seconds), or raise topics.",
        )

    def _beyond_share(
        self, client: str, topics: str | tuple[str, ...], data: tuple[bytes, ...]
    ) -> Refused | None:
        """Why ``client`` may not have this, by shares; None if it may.

        It is decided here, of all that is done in one order: a look before the log would let
        many pass at once.
        """
        shares, holding = self.settings.shares, self._holdings.get(client)
        names = (topics,) if isinstance(topics, str) else topics
        held = 0 if holding is None else holding.topics
        if shares.topics and held + len(names) > shares.topics:
            new = {name for name in names if name not in self.topics}
            if new and held + len(new) > shares.topics:
                return _too_many_of_client(client, held, len(new), shares.topics)
        size = sum(map(len, data)) + MESSAGE_OVERHEAD_BYTES * len(data)
        if not shares.storage_bytes or self._stored_bytes + size <= shares.storage_bytes:
            return None  # nobody can have more than there is
        added = {client: size} if shares.of_publishers else self._by_creator(client, topics, data)
        for payer, more in added.items():
            held = self._holdings[payer].bytes if payer in self._holdings else 0
            if payer and more and held + more > shares.storage_bytes:
                whose = client if payer == client else ""
                return _too_much_of_client(whose, held, more, shares.storage_bytes)
        return None

    @property
    def _stored_bytes(self) -> int:
        return self.retained_bytes + MESSAGE_OVERHEAD_BYTES * self.retained_messages

    def _by_creator(
        self, client: str, topics: str | tuple[str, ...], data: tuple[bytes, ...]
    ) -> dict[str, int]:
        """What ``client`` publishes, as it counted before it counted for whoever publishes."""
        added: dict[str, int] = {}  # by client; "" has no share
        names = (topics,) * len(data) if isinstance(topics, str) else topics
        for name, body in zip(names, data, strict=True):
            payer = self.topics[name].client if name in self.topics else client
            added[payer] = added.get(payer, 0) + len(body) + MESSAGE_OVERHEAD_BYTES
        return added

    def _holding(self, client: str) -> Holding:
        """What counts for ``client``, which is about to be more."""
        holding = self._holdings.get(client)
        if holding is None:
            holding = self._holdings[client] = Holding()
        return holding

    def _hold(self, topic: Topic) -> None:
        """Count a topic from a snapshot, and what it holds, for those for whom they count."""
        if topic.client:
            self._holding(topic.client).topics += 1
        for client, messages, size in topic.parts(*topic.oldest(len(topic))):
            self._holding(client).bytes += size + MESSAGE_OVERHEAD_BYTES * messages

    def _give_back(self, client: str, topics: int, size: int) -> None:
        """Topics, or messages, are gone that counted for ``client``."""
        holding = self._holdings[client]
        holding.topics -= topics
        holding.bytes -= size
        if not holding.topics and not holding.bytes:
            del self._holdings[client]

    def _uncharge(self, topic: Topic, sequences: array[int], sizes: array[int]) -> None:
        """The topic's oldest messages, which these were, have been dropped."""
        payers = topic.payers
        if payers is None or len(sizes) == 1:
            client = topic.client if payers is None else payers.first
            if client:
                size = sum(sizes) + MESSAGE_OVERHEAD_BYTES * len(sizes)
                self._give_back(client, 0, size)
        else:
            for client, messages, size in topic.parts(sequences, sizes):
                self._give_back(client, 0, size + MESSAGE_OVERHEAD_BYTES * messages)
        if payers is not None:
            topic.cut_payers()

    def _due_ms(self, name: str) -> int | None:
        topic = self.topics.get(name)
        return None if topic is None else topic.due_ms

    def _note_due(self, topic: Topic) -> None:
        due_ms = topic.due_ms
        if due_ms is not None:
            self._expiry.note(topic.name, due_ms)

    def _note_idle(self, topic: Topic) -> None:
        if topic.retention.idle_seconds is None:
            self.idle_topics.pop(topic.name, None)
        else:
            self.idle_topics[topic.name] = topic

    def _by_name(self) -> list[Topic]:
        """All topics, in an order that all nodes share: it may matter which is trimmed first."""
        return [self.topics[name] for name in self.names]

    def _revoke_tokens(
        self, command: RevokeTokens, events: list[Message | TopicDeleted]
    ) -> Outcome:
        """A clock that is ahead for a while must not lock anyone out until that time has come.

        So of two times that are far apart the earlier counts, and one that was far ahead of now
        is given up. If they are near each other, what refuses more tokens counts.
        """
        self._forget_revocations()
        is_new = command.subject not in self.revocations
        if is_new and len(self.revocations) >= REVOCATIONS_MAX and not self._forget_oldest():
            return Refused(
                "rate_limited",
                f"The tokens of {REVOCATIONS_MAX:,} subjects are revoked already, and no more are "
                "remembered; the oldest are forgotten when no token of theirs can be valid.",
            )
        now_ms = self.time_ms
        before = self.revocations.pop(command.subject, Revocation(0, 0))
        until_ms = max(before.until_ms, now_ms + command.keep_seconds * 1000)
        if command.asked_ms:
            if now_ms > command.asked_ms + CLOCKS_APART_MS:
                now_ms = command.asked_ms
            if before.time_ms <= now_ms + CLOCKS_APART_MS:
                now_ms = max(now_ms, before.time_ms)
        self.revocations[command.subject] = Revocation(now_ms, until_ms)
        self._revoked.append(command.subject)
        return Revoked(command.subject, now_ms)

    def _forget_oldest(self) -> bool:
        """Make room for one more revocation, if one is over."""
        for subject, known in self.revocations.items():
            if known.until_ms < self.time_ms:
                del self.revocations[subject]
                return True
        return False

    def _forget_revocations(self) -> None:
        """Not by the time alone: one clock that was ahead for a moment would do it for good."""
        if self.revocations and self.level < TWO_CLOCKS:
            over = [s for s, known in self.revocations.items() if known.until_ms < self.time_ms]
            for subject in over:
                del self.revocations[subject]

    def _add_topic(self, name: str, own: OwnRetention, client: str = "") -> Topic:
        topic = Topic(name, own, self.settings.retention, self.time_ms, self.seq)
        topic.used_index = self.applied_index
        self.topics[name] = topic
        if self._capture is not None:
            self._capture.created(topic)
        if client:
            topic.client = client
            self._holding(client).topics += 1
        self._note_idle(topic)
        tombstone = self.tombstones.pop(name, None)
        if tombstone is not None:
            topic.trimmed_seq = tombstone[1]
        self.names.add(name)
        self.timeline.begin(topic)
        return topic

    def _trim(self, topic: Topic) -> None:
        limits, segments = topic.retention, self.segments
        oldest_ms = self.time_ms - limits.seconds * 1000
        if not topic.is_beyond(oldest_ms):
            return
        count = max(0, len(topic) - limits.messages)
        if topic.bytes > limits.bytes:
            count = max(count, topic.count_of_bytes(topic.bytes - limits.bytes))
        if topic.oldest_ms < oldest_ms:
            count = max(count, topic.count_below(segments.first_seq_since(oldest_ms)))
        self._drop_oldest(topic, count)

    def _drop_oldest(self, topic: Topic, count: int) -> None:
        if not count:
            return
        segments = self.segments
        if self._capture is not None:
            self._capture.before_topic(topic)
        sequences, sizes = topic.drop_oldest(count)
        self.timeline.trim(topic, sequences, self.seq)
        size = sum(sizes)
        self.retained_messages -= count
        self.retained_bytes -= size
        if topic.client or topic.payers is not None:
            self._uncharge(topic, sequences, sizes)
        for entry in segments.release(sequences, sizes):
            if entry != self.applied_index:  # apply() sees to its own
                self._dead.append(entry)
        first_seq = topic.first_seq
        if first_seq is not None:
            topic.oldest_ms = segments.time_of(first_seq)

    # --- reading ---

    def matching(self, filters: FilterSet) -> list[Topic]:
        """The topics that exist now and belong to ``filters``; long, if they have patterns."""
        if not filters.patterns:
            return [self.topics[name] for name in filters.exact if name in self.topics]
        names = self.names.find("", [[filters.compiled]], len(self.topics) + 1, ALL_STEPS).names
        return [self.topics[name] for name in names]

    def losses(self, filters: FilterSet, after: int) -> dict[str, int]:
        """By topic, the highest sequence number above ``after`` that can no longer be had.

        The name ``""`` stands for topics that were deleted so long ago that they
        are not known by name any more. It may stand there without a loss; all
        else is exact. It looks at all topics; ``find_loss`` does so in pieces.
        """
        topics = self.matching(filters)
        lost = {t.name: t.trimmed_seq for t in topics if t.trimmed_seq > after}
        for name, _, lost_seq in self._deleted_since(after):
            if lost_seq > after and filters.matches(name):
                lost[name] = lost_seq
        if self.tombstone_floor > after and (
            filters.patterns
            or len(topics) < len(filters.exact)
            or any(t.born_seq > after for t in topics)
        ):
            lost[""] = self.tombstone_floor
        return lost

    def lost_seq(self, filters: FilterSet, after: int) -> int:
        """The highest of ``losses``, or 0."""
        return max(self.losses(filters, after).values(), default=0)

    def scan(self, filters: FilterSet, after: int, limit: int) -> list[Location]:
        """Where the first ``limit`` retained messages above ``after`` are, in order."""
        found: list[Location] = []
        scan = Scan(self, filters, after)
        while len(found) < limit and scan.position < self.seq:
            found += scan.take(ENDLESS, limit - len(found))
        return found

    def find_loss(
        self, filters: FilterSet, after: int, version: int, turn: Patience
    ) -> tuple[int, bool]:
        """Whether something of ``filters`` above ``after`` was lost later than ``version``.

        Versions are the timeline's. Returns how far it has looked: less than to the newest
        if it has found something, or the turn was over. A loss may be told without one for
        topics that were deleted so long ago that they are not known by name any more.
        """
        timeline = self.timeline
        newest = timeline.look()
        if version >= newest:
            return newest, False
        topics, gone = self.topics, timeline.gone
        exact = [topics[n] if n in topics else gone.get(n) for n in filters.exact]
        if timeline.floor.newest(after) > version and (
            filters.patterns or any(t is None or t.born_seq > after for t in exact)
        ):
            return newest, True  # of a topic, or of its life before, that is not known by name
        if filters.patterns:
            return timeline.find_loss(filters, after, version, turn)
        lost = (t for t in exact if t is not None and t.trimmed_seq > after)
        return newest, any(topic.lost_version > version for topic in lost)

    def deletions(
        self, filters: FilterSet, after: int, upto: int = SEQUENCE_MAX
    ) -> list[TopicDeleted]:
        """Topics of ``filters`` that were deleted at a position from ``after`` to ``upto``."""
        found = [
            TopicDeleted(name, position)
            for name, position, _ in self._deleted_since(after)
            if position <= upto and filters.matches(name)
        ]
        return found[::-1]

    def _deleted_since(self, position_min: int) -> Iterator[tuple[str, int, int]]:
        # Newest first. A topic lost nothing above the position at which it was deleted.
        for name, (position, lost_seq) in reversed(self.tombstones.items()):
            if position < position_min:
                return
            yield name, position, lost_seq

    def locate(self, seq: int, topic: str, size: int) -> Location:
        entry, ordinal, time_ms = self.segments.place(seq)
        return Location(seq, topic, size, time_ms, entry, ordinal)

    def expiry_due(self, now_ms: int) -> bool:
        """Whether an ``Expire`` command at ``now_ms`` would trim anything."""
        due = self._expiry.first()
        if due is not None and due.time_ms < now_ms:
            return True
        first = next(iter(self.revocations.values()), None)
        if first is not None and first.until_ms < now_ms and self.level < TWO_CLOCKS:
            return True
        oldest_ms = self._keys.oldest_ms
        return (
            oldest_ms is not None and oldest_ms < now_ms - self.settings.idempotency_seconds * 1000
        )

    # --- the log's garbage ---

    @property
    def entries(self) -> int:
        """How many log entries history is kept in."""
        return self.segments.rows

    @property
    def has_dead(self) -> bool:
        """Whether a snapshot now would let entries go, or parts of them."""
        return bool(self._dead or self.segments.sparse)

    def take_dead(self, upto: int) -> list[int]:
        """Entries up to ``upto`` of which nothing is retained, since the last call."""
        if upto >= self.applied_index:
            dead, self._dead = self._dead, []
            return dead
        dead = [entry for entry in self._dead if entry <= upto]
        self._dead = [entry for entry in self._dead if entry > upto]
        return dead

    def take_sparse(self, upto: int) -> list[int]:
        """Entries up to ``upto`` that are mostly dead, since the last call."""
        sparse = {entry for entry in self.segments.sparse if entry <= upto}
        self.segments.sparse -= sparse
        return sorted(sparse)

    def dead_ordinals(self, entry: int, commands: Sequence[Command]) -> set[int]:
        """Which of the messages that ``entry`` carries, from 0, no topic retains."""
        names = [
            name
            for command in commands
            if isinstance(command, Publish)
            for name in (
                (command.topics,) * len(command.data)
                if isinstance(command.topics, str)
                else command.topics
            )
        ]
        found = self.segments.published(entry, len(names))
        if found is None:
            return set()
        first_seq, published = found
        seqs = enumerate(published, first_seq)
        live = {
            ordinal
            for seq, ordinal in seqs
            if names[ordinal] in self.topics and self.topics[names[ordinal]].retains(seq)
        }
        return set(range(len(names))) - live

    def live_entries(self) -> list[int]:
        """Entries of which some message is retained, in order."""
        return self.segments.live_entries()

    # --- snapshots ---

    def capture(self) -> Capture:
        """What ``snapshot`` would give now, to be made in pieces. One at a time."""
        assert self._capture is None, "the capture before has ended"
        self._captures += 1
        self._capture = Capture(self, self._captures, self._end_capture)
        self.segments.watcher = self._capture
        return self._capture

    def _end_capture(self) -> None:
        self._capture = self.segments.watcher = None

    def _tell(self, topic: Topic) -> None:
        """It is about to change."""
        if self._capture is not None:
            self._capture.before_topic(topic)

    def keys_to_wire(self) -> list[tuple[Any, ...]]:
        """The idempotency keys, oldest first."""
        return self._keys.to_wire()

    def snapshot(self) -> bytes:
        """The whole state as bytes, in one go; equal states give equal bytes.

        Also while a capture goes on in pieces, which it does not disturb.
        """
        capture = Capture(self, None)
        try:
            while capture.piece(ENDLESS):
                pass
            return b"".join(capture.parts())
        finally:
            capture.end()

    @classmethod
    def restore(cls, snapshot: bytes) -> BrokerState:
        """The state that ``snapshot()`` gave. Raises ValueError for another format."""
        fields = msgpack.unpackb(snapshot, use_list=False, strict_map_key=False)
        if fields[0] not in (SNAPSHOT_FORMAT, WITH_REVOCATIONS, WITH_CLIENTS, WITH_LEVEL):
            raise ValueError(
                f"the snapshot has format {fields[0]}; this version reads {SNAPSHOT_FORMAT} to "
                f"{WITH_LEVEL}"
            )
        (
            _,
            state_index,
            seq,
            time_ms,
            packed_settings,
            topics,
            columns,
            published,
            keys,
            tombstones,
            floor,
            *last,
        ) = fields
        state = cls()
        state.applied_index, state.seq, state.time_ms = state_index, seq, time_ms
        settings = unpack_settings(packed_settings)
        if settings is None:
            raise ValueError("the snapshot holds settings that this version does not know")
        state.settings = settings
        default = settings.retention
        state.topics = {f[0]: Topic.from_wire(f, default) for f in topics}
        state.names = Names(state.topics)
        for topic in state.topics.values():
            state._note_idle(topic)
            state._note_due(topic)
            state._hold(topic)
        state.retained_messages = sum(map(len, state.topics.values()))
        state.retained_bytes = sum(topic.bytes for topic in state.topics.values())
        state.segments = Segments.load(columns, published)
        state._keys = RememberedKeys.from_wire(keys)
        state.tombstones = OrderedDict((name, (p, lost)) for name, p, lost in tombstones)
        state.tombstone_floor = floor
        gone = [Gone(name, *when) for name, when in state.tombstones.items()]
        state.timeline.load(list(state.topics.values()), gone, floor, seq)
        state.revocations = {
            subject: Revocation(*known) for found in last[:1] for subject, *known in found
        }
        if fields[0] >= WITH_LEVEL:
            state.level, state.senders = last[1], Senders.from_wire(last[2])
        return state

    def digest(self) -> str:
        """A fingerprint: nodes that applied the same log have the same one."""
        return hashlib.blake2b(self.snapshot(), digest_size=16).hexdigest()


_HANDLERS: Final[
    dict[type, Callable[[BrokerState, Any, list[Message | TopicDeleted]], Outcome]]
] = {
    Publish: BrokerState._publish,
    CreateTopic: BrokerState._create_topic,
    DeleteTopic: BrokerState._delete_topic,
    DeleteTopics: BrokerState._delete_topics,
    KeepTopics: BrokerState._keep_topics,
    Configure: BrokerState._configure,
    Expire: BrokerState._expire,
    RevokeTokens: BrokerState._revoke_tokens,
    Numbered: BrokerState._numbered,
    RaiseLevel: BrokerState._raise_level,
}


def _topic_not_found(name: str) -> Refused:
    return Refused(
        "topic_not_found",
        f"The topic {name!r} does not exist; create it with PUT /v1/topics/{name}.",
    )


def _too_many_of_client(client: str, held: int, new: int, most: int) -> Refused:
    return Refused(
        "too_many_topics",
        f"It is the share of one client, {client!r}, that is used up, not all topics that there "
        f"may be: a client's share is {most:,} topics ([limits] topics_per_client); it has created "
        f"{held:,}, and asks for {new:,} more. Delete some, let them go when they are idle "
        "(retention.idle_seconds), or raise topics_per_client.",
    )


def _too_much_of_client(client: str, held: int, added: int, most: int) -> Refused:
    """``client`` is who is told, or "" where it is somebody else's share."""
    whose = f"of one client, {client!r}," if client else "of the client that created the topic"
    return Refused(
        "storage_full",
        f"It is the share {whose} that is full, not the store: a client's share is {most:,} bytes "
        "of messages ([limits] storage_bytes_per_client); those that are kept for it take "
        f"{held:,}, and these would take {added:,} more. There is room again when some are too "
        "old, or topics that it published to are trimmed or deleted; else raise "
        "storage_bytes_per_client.",
    )
