"""What publishers, readers and nodes have seen, and the proof that the promises hold.

    Attempt   one request of a publisher, and what came of it
    Reader    all blocks of one reader's streams, over every reconnection
    nodes     what each node keeps in the end, when all have converged

The checker is pure. It first collects what is known of every sequence number (the
*truth*: from the nodes, the readers and the acknowledgements), then holds each
to it. Each thing that is wrong is one line; no line means that DESIGN section 2
held.

Payloads are unique: whoever publishes one under a key may repeat it, and nobody
else publishes it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

ACKNOWLEDGED: Final = "acknowledged"  # 201: it is kept, at the id that was told
REFUSED: Final = "refused"  # 4xx, 503, nobody there: it is not kept
UNKNOWN: Final = "unknown"  # 504, a broken connection, no answer in time

SHOWN_MAX: Final = 20  # violations in a failure's message


@dataclass(frozen=True, slots=True)
class Attempt:
    """One publish, sent once. ``start`` and ``end`` are of one monotonic clock, in seconds."""

    node: str
    topic: str
    payload: str
    key: str | None
    start: float
    end: float
    outcome: str
    id: str | None = None  # what a 201 told


@dataclass(frozen=True, slots=True)
class Message:
    """As a node keeps it, or as a reader got it."""

    id: str
    topic: str
    payload: str

    @property
    def seq(self) -> int:
        return sequence(self.id)


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A stream began; ``position`` is the cursor that the reader came with, or got."""

    node: str
    position: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    id: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A loss, told. The stream goes on at ``id``."""

    id: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class Other:
    """A block that nobody has caused."""

    text: str


Event = Message | Subscribed | Heartbeat | Gap | Other


@dataclass(slots=True)
class Reader:
    """``topics`` are names, not patterns: all that its filters match."""

    name: str
    topics: frozenset[str]
    events: list[Event] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        return [event for event in self.events if isinstance(event, Message)]


@dataclass(slots=True)
class History:
    """``retained`` has the topics that keep only so many messages; the others keep all."""

    attempts: list[Attempt] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    nodes: dict[str, list[Message]] = field(default_factory=dict)
    retained: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Raise AssertionError if a promise was broken."""
        found = violations(self)
        more = f"\n… and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
        assert not found, "\n".join(found[:SHOWN_MAX]) + more

    def __str__(self) -> str:
        outcomes = [attempt.outcome for attempt in self.attempts]
        counts = ", ".join(f"{outcomes.count(o)} {o}" for o in (ACKNOWLEDGED, REFUSED, UNKNOWN))
        read = sum(len(reader.messages) for reader in self.readers)
        events = [event for reader in self.readers for event in reader.events]
        streams = sum(isinstance(event, Subscribed) for event in events)
        gaps = sum(isinstance(event, Gap) for event in events)
        kept = max(map(len, self.nodes.values()), default=0)
        return (
            f"{len(outcomes)} attempts ({counts}); {kept} messages kept; "
            f"{len(self.readers)} readers got {read} over {streams} streams with {gaps} gaps"
        )


def sequence(event_id: str) -> int:
    """The ``seq`` of an event id."""
    return int(event_id.rpartition("-")[2])


def violations(history: History) -> list[str]:
    """Everything that is wrong, one line each."""
    truth = Truth(history)
    return [
        *truth.conflicts,
        *_two_epochs(history),
        *_two_ids(truth),
        *_from_nowhere(history, truth),
        *_refused_but_kept(history, truth),
        *_against_the_clock(history, truth),
        *_disorder(history),
        *_not_kept(history, truth),
        *(line for reader in history.readers for line in _Reading(reader, history, truth).check()),
    ]


class Truth:
    """What all that was seen says together: a message for each sequence number."""

    def __init__(self, history: History) -> None:
        self.messages: dict[int, Message] = {}
        self.conflicts: list[str] = []
        self.acknowledged: set[str] = set()  # payloads
        self._source: dict[int, str] = {}
        for source, message in _sightings(history):
            self._see(source, message)
        for attempt in history.attempts:
            if attempt.outcome == ACKNOWLEDGED:
                assert attempt.id is not None, attempt
                self.acknowledged.add(attempt.payload)
                told = Message(attempt.id, attempt.topic, attempt.payload)
                self._see(f"an acknowledgement of {attempt.node}", told)
        self.by_topic: dict[str, list[Message]] = {}
        for _, message in sorted(self.messages.items()):
            self.by_topic.setdefault(message.topic, []).append(message)

    def _see(self, source: str, message: Message) -> None:
        known = self.messages.setdefault(message.seq, message)
        first = self._source.setdefault(message.seq, source)
        if (known.topic, known.payload) != (message.topic, message.payload):
            self.conflicts.append(
                f"one id, two messages: {_show(known)} in {first}, {_show(message)} in {source}"
            )

    def of(self, topics: Iterable[str]) -> list[Message]:
        """In order."""
        found = [m for topic in topics for m in self.by_topic.get(topic, ())]
        return sorted(found, key=lambda message: message.seq)

    def show(self, message: Message) -> str:
        kind = ACKNOWLEDGED if message.payload in self.acknowledged else "published"
        return f"{kind} message {_show(message)}"


def _sightings(history: History) -> Iterator[tuple[str, Message]]:
    for node, messages in history.nodes.items():
        for message in messages:
            yield f"{node}'s history", message
    for reader in history.readers:
        for message in reader.messages:
            yield f"what {reader.name} read", message


def _show(message: Message) -> str:
    return f"{message.payload[:40]!r} ({message.topic}, {message.id})"


# --- what was published ------------------------------------------------------------------------


def _two_epochs(history: History) -> Iterator[str]:
    """One cluster draws one epoch, for good."""
    ids = [message.id for _, message in _sightings(history)]
    ids += [attempt.id for attempt in history.attempts if attempt.id is not None]
    epochs = sorted({event_id.rpartition("-")[0] for event_id in ids})
    if len(epochs) > 1:
        yield f"ids of more than one epoch: {', '.join(epochs)}"


def _two_ids(truth: Truth) -> Iterator[str]:
    first: dict[str, Message] = {}
    for _, message in sorted(truth.messages.items()):
        known = first.setdefault(message.payload, message)
        if known is not message:
            yield f"one message, two ids: {_show(known)} and {_show(message)}"


def _from_nowhere(history: History, truth: Truth) -> Iterator[str]:
    published = {(attempt.topic, attempt.payload) for attempt in history.attempts}
    for message in truth.messages.values():
        if (message.topic, message.payload) not in published:
            yield f"nobody has published {_show(message)}"


def _refused_but_kept(history: History, truth: Truth) -> Iterator[str]:
    """A refusal is definite, unless the same was sent another time and not refused."""
    fates: dict[str, set[str]] = {}
    for attempt in history.attempts:
        fates.setdefault(attempt.payload, set()).add(attempt.outcome)
    for message in truth.messages.values():
        if fates.get(message.payload) == {REFUSED}:
            yield f"refused, but kept: {_show(message)}"


def _against_the_clock(history: History, truth: Truth) -> Iterator[str]:
    """What began after another was acknowledged comes after it."""
    begun: dict[str, float] = {}
    done: dict[str, float] = {}
    for attempt in history.attempts:
        if attempt.outcome != REFUSED:
            begun[attempt.payload] = min(attempt.start, begun.get(attempt.payload, attempt.start))
        if attempt.outcome == ACKNOWLEDGED:
            done[attempt.payload] = min(attempt.end, done.get(attempt.payload, attempt.end))
    messages = [m for m in truth.messages.values() if m.payload in begun]
    ended = sorted((m for m in messages if m.payload in done), key=lambda m: done[m.payload])
    newest: Message | None = None  # of those that were acknowledged before this one began
    place = 0
    for message in sorted(messages, key=lambda m: begun[m.payload]):
        while place < len(ended) and done[ended[place].payload] < begun[message.payload]:
            if newest is None or ended[place].seq > newest.seq:
                newest = ended[place]
            place += 1
        if newest is not None and message.seq < newest.seq:
            yield (
                f"against the clock: {_show(message)} began after {_show(newest)} was acknowledged"
            )


# --- what nodes keep ---------------------------------------------------------------------------


def _disorder(history: History) -> Iterator[str]:
    for node, messages in history.nodes.items():
        last: dict[str, Message] = {}
        for message in messages:
            before = last.get(message.topic)
            if before is not None and message.seq <= before.seq:
                yield f"{node}'s history: {_show(message)} comes after {_show(before)}"
            last[message.topic] = message


def _not_kept(history: History, truth: Truth) -> Iterator[str]:
    """Every node keeps all, but for what is older than a topic's retention."""
    for node, messages in history.nodes.items():
        kept = {message.seq for message in messages}
        for topic, published in truth.by_topic.items():
            for message in published[-history.retained.get(topic, len(published)) :]:
                if message.seq not in kept:
                    yield f"{node} does not keep the {truth.show(message)}"


# --- what readers got --------------------------------------------------------------------------


class _Reading:
    """Follows one reader's cursor: up to there it got everything, or was told.

    After a gap by retention, each topic that is trimmed may miss messages up to
    the next one of it that comes: what is trimmed is the oldest. After a gap
    "ahead" the reader is at an earlier position and gets again what is behind.
    """

    def __init__(self, reader: Reader, history: History, truth: Truth) -> None:
        self._reader = reader
        self._truth = truth
        self._trimmed = reader.topics & history.retained.keys()
        self._excused: set[str] = set()  # topics with a gap
        self._expected = truth.of(reader.topics)
        self._seqs = [message.seq for message in self._expected]
        self._seen: set[int] = set()  # since it was last set back
        self._cursor: int | None = None
        self._found: list[str] = []

    def check(self) -> Sequence[str]:
        for event in self._reader.events:
            match event:
                case Subscribed():
                    self._subscribed(event)
                case Message():
                    self._message(event)
                case Heartbeat():
                    self._advance(sequence(event.id), "a heartbeat")
                case Gap():
                    self._gap(event)
                case Other():
                    self._say(f"got a block that nobody caused: {event.text}")
        return self._found

    def _say(self, text: str) -> None:
        self._found.append(f"{self._reader.name} {text}")

    def _subscribed(self, event: Subscribed) -> None:
        position = sequence(event.position)
        if self._cursor is not None and position != self._cursor:
            self._say(f"came back to {event.node} with {self._cursor}, and was put at {position}")
        self._cursor = position

    def _message(self, message: Message) -> None:
        if message.topic not in self._reader.topics:
            self._say(f"got {_show(message)} of a topic that it does not read")
        elif message.seq in self._seen:
            self._say(f"got {_show(message)} twice")
        else:
            self._seen.add(message.seq)
            self._advance(message.seq - 1, _show(message))
            self._excused.discard(message.topic)
            self._cursor = max(message.seq, self._cursor or 0)

    def _gap(self, gap: Gap) -> None:
        position = sequence(gap.id)
        if gap.reason == "ahead":
            if self._cursor is not None and position >= self._cursor:
                self._say(f"was told that it is ahead, at {self._cursor}, of {position}")
            self._cursor, self._seen = position, set()
        elif gap.reason == "retention" and self._trimmed:
            self._advance(sequence(gap.after), "a gap")
            self._excused = set(self._trimmed)
            self._advance(position, "a gap")
        else:
            self._say(f"was told of a gap that nothing explains: {gap}")

    def _advance(self, upto: int, what: str) -> None:
        """The stream says that there is nothing else up to here."""
        if self._cursor is None:
            self._say(f"got {what} before the stream began")
            self._cursor = upto
        if upto < self._cursor:
            self._say(f"got {what} out of order, after {self._cursor}")
            return
        start, end = bisect_right(self._seqs, self._cursor), bisect_right(self._seqs, upto)
        for message in self._expected[start:end]:
            if message.topic not in self._excused:
                self._say(f"was not told of the {self._truth.show(message)} before {what}")
        self._cursor = upto


# --- whole clusters ----------------------------------------------------------------------------


def different_digests(stopped: Mapping[str, tuple[int, str]]) -> list[str]:
    """Nodes (by name: applied index, digest of the state) that are level, and yet differ."""
    by_index: dict[int, dict[str, str]] = {}
    for node, (index, digest) in sorted(stopped.items()):
        by_index.setdefault(index, {})[node] = digest
    return [
        f"{one} and {other} have applied {index} entries, and their digests differ"
        for index, digests in sorted(by_index.items())
        for one, other in pairwise(digests)
        if digests[one] != digests[other]
    ]
