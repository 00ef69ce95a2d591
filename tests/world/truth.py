"""What the nodes applied, and what therefore may be. Every check of a run is made here.

Each node is watched as it applies: at one index all must apply the same bytes of the same
term, and be in the same state after it. What was applied first is the *truth*; a model of a
few lines says what of it retention keeps. Clients' tales (clients.py) are held against it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zlib import crc32

import trio

from repl_broker import proposals
from repl_broker.command import CreateTopic
from repl_broker.message import FilterSet, Message, TopicDeleted
from repl_broker.node import Node
from repl_broker.raft.core import Role
from repl_broker.raft.log import EntryKind
from repl_broker.state import Applied, BrokerState, Published, TopicChanged
from repl_broker.wire import decode_entry

if TYPE_CHECKING:
    from tests.world.machine import Life

__all__ = ["Truth", "ViolationError"]

DIGEST_EVERY: Final = 8  # entries
SNAPSHOTS_MAX: Final = 6  # to one follower in one term: one after the other brings nobody level


class ViolationError(Exception):
    """What must not be was seen."""


class Sent(NamedTuple):
    """A message of the truth."""

    seq: int
    topic: str
    payload: str
    index: int
    time_ms: int
    size: int


@dataclass
class Kept:
    """A topic by the model: what retention leaves of it."""

    messages_max: int
    bytes_max: int
    seconds: int
    sent: deque[Sent] = field(default_factory=deque)
    bytes: int = 0


class Truth:
    """``note`` is called with what happened, for the trace."""

    def __init__(self, note: Any, idempotency_seconds: int) -> None:
        self.note = note
        self.idempotency_seconds = idempotency_seconds
        self.entries: dict[int, tuple[int, int]] = {}  # term, checksum
        self.after: dict[int, tuple[Any, ...]] = {}  # by index: what the state then was like
        self.digests: dict[int, str] = {}
        self.leaders: dict[int, str] = {}  # by term
        self.sent: list[Sent] = []  # by seq - 1
        self.deleted: dict[str, list[tuple[int, int]]] = {}  # by topic: position, index
        self.settings: dict[str, list[tuple[int, int]]] = {}  # by topic: index, number (bytes)
        self.gone: dict[int, int] = {}  # by seq: the index that removed it
        self.aged: set[int] = set()  # of these, for their age
        self.topics: dict[str, Kept] = {}
        self.places: dict[str, list[int]] = {}  # by payload
        self.snapshots: dict[tuple[Any, ...], int] = {}  # by leader, its life, peer and term: sent
        self.index = 0
        self.by_topic: dict[str, list[int]] = {}

    # --- watching ---

    def watch(self, life: Life, node: Node) -> None:
        replica: Any = node.replica
        told: list[Applied] = []
        tell, restored, notice, apply = (
            replica._on_applied,
            replica._on_restored,
            replica._notice_changes,
            replica._apply,
        )

        def on_applied(applied: Any) -> None:
            told[:] = [applied]
            tell(applied)

        def on_restored() -> None:
            self._compare(life, replica.state, "installed a snapshot")
            restored()

        def notice_changes(_: Any) -> None:
            notice()
            if replica.role is Role.LEADER:
                self._leads(life, replica.term)

        def apply_entry(_: Any, entry: Any) -> None:
            apply(entry)
            self._applied(life, entry, replica.state, told[0])
            kept = sum(len(outcomes) for _, outcomes in replica._proposals._recent.values())
            if kept > proposals.RECENT_OUTCOMES_MAX:
                raise ViolationError(f"{life.name} keeps {kept} outcomes in memory")

        async def send_snapshot(peer: str) -> None:
            key, before = (life.name, life.number, peer, replica.term), sender.sent
            await send(peer)
            self.snapshots[key] = count = self.snapshots.get(key, 0) + sender.sent - before
            if count > SNAPSHOTS_MAX:
                raise ViolationError(f"{life.name} has sent {count} snapshots to {peer} in a term")

        sender = replica._sender
        send, sender.send = sender.send, send_snapshot
        replica._on_applied = on_applied
        replica._on_restored = on_restored
        replica._notice_changes = MethodType(notice_changes, replica)
        replica._apply = MethodType(apply_entry, replica)

    def loaded(self, life: Life, node: Node) -> None:
        """A store was opened: what it says must be what was."""
        state = node.replica.state
        self._compare(life, state, "started")
        log = node.replica._core.log
        terms = [log.term(i) for i in range(log.compacted_index, log.last_index + 1)]
        found = [term for term in terms if term is not None]
        if found != sorted(found):
            raise ViolationError(f"{life.name}: the terms in its log fall: {found}")

    def _leads(self, life: Life, term: int) -> None:
        leader = self.leaders.setdefault(term, life.name)
        if leader != life.name:
            raise ViolationError(f"two leaders of term {term}: {leader} and {life.name}")

    def _applied(self, life: Life, entry: Any, state: BrokerState, applied: Applied) -> None:
        found = (entry.term, crc32(entry.data))
        known = self.entries.setdefault(entry.index, found)
        if known != found:
            raise ViolationError(
                f"{life.name} applied another entry {entry.index} than was applied before: "
                f"term and checksum {found}, not {known}"
            )
        if entry.index > self.index:
            self._grow(entry, state, applied)
        self._compare(life, state, "applied")
        self.note("applied", life.name, entry.index, entry.term)

    def _grow(self, entry: Any, state: BrokerState, applied: Applied) -> None:
        self.index = entry.index
        self.after[entry.index] = _look(state)
        if entry.kind is not EntryKind.DATA:
            return
        _, commands = decode_entry(entry.data)
        events = deque(applied.events)
        for command, outcome in zip(commands, applied.outcomes, strict=True):
            if isinstance(command, CreateTopic) and isinstance(outcome, TopicChanged):
                self._set(command, state)
            elif isinstance(outcome, Published) and not outcome.replayed:
                for _ in range(outcome.count):
                    self._send(events.popleft(), state)
            elif isinstance(outcome, TopicDeleted):
                self._delete(events.popleft())
        if events:
            raise ViolationError(f"events at {entry.index} are of no command: {events}")
        self._check_kept(state)

    def _set(self, command: CreateTopic, state: BrokerState) -> None:
        """Settings have a number of their own in ``bytes``: it is seen which are in force."""
        assert command.bytes, "clients give a number"
        number, name = command.bytes, command.name
        history = self.settings.setdefault(name, [])
        if any(known == number for _, known in history):
            topic = state.topics.get(name)
            if topic is None or topic.retention.bytes != number:
                return  # a repeat that was passed over
            if history[-1][1] == number and name in self.topics:
                return  # … or that changes nothing
            raise ViolationError(
                f"settings {number} of {name!r} are in force again at {self.index}, after "
                f"others, or after the topic was deleted: {history[-3:]}"
            )
        history.append((self.index, number))
        kept = self.topics.setdefault(name, Kept(1, 1, 1))
        default = state.settings.retention
        kept.messages_max = command.messages or default.messages
        kept.bytes_max, kept.seconds = number, command.seconds or default.seconds
        self._trim(kept)

    def _send(self, event: Message | TopicDeleted, state: BrokerState) -> None:
        if not isinstance(event, Message) or event.seq != len(self.sent) + 1:
            raise ViolationError(f"{event} came after message {len(self.sent)}")
        payload = event.data.split(b" ", 1)[0].strip(b'"').decode()
        sent = Sent(event.seq, event.topic, payload, self.index, event.time_ms, len(event.data))
        self.sent.append(sent)
        self.places.setdefault(payload, []).append(event.seq)
        self.by_topic.setdefault(event.topic, []).append(event.seq)
        kept = self.topics.get(event.topic)
        if kept is None:
            default = state.settings.retention
            kept = self.topics[event.topic] = Kept(default.messages, default.bytes, default.seconds)
        kept.sent.append(sent)
        kept.bytes += sent.size

    def _delete(self, event: Message | TopicDeleted) -> None:
        if not isinstance(event, TopicDeleted) or event.topic not in self.topics:
            raise ViolationError(f"{event} at {self.index} is of a topic that there is not")
        self.deleted.setdefault(event.topic, []).append((event.position, self.index))
        for sent in self.topics.pop(event.topic).sent:
            self.gone[sent.seq] = self.index

    def _check_kept(self, state: BrokerState) -> None:
        """What retention by number and size keeps is there, but for what has grown too old."""
        if self.topics.keys() != state.topics.keys():
            strange = sorted(self.topics.keys() ^ state.topics.keys())
            raise ViolationError(f"topics at {self.index} are not the model's: {strange}")
        for name, kept in self.topics.items():
            self._trim(kept)
            topic = state.topics[name]
            first, count = topic.first_seq, len(topic)
            while kept.sent and count < len(kept.sent):
                oldest = kept.sent[0]
                if state.time_ms - oldest.time_ms < kept.seconds * 1000:
                    raise ViolationError(
                        f"message {oldest.seq} of {name!r} is gone at {self.index}, and "
                        f"retention keeps it: {kept.messages_max} messages, {count} there"
                    )
                self.aged.add(oldest.seq)
                self._drop(kept)
            if count != len(kept.sent) or (kept.sent and kept.sent[0].seq != first):
                raise ViolationError(
                    f"{name!r} has {count} messages from {first} at {self.index}, and should "
                    f"have {len(kept.sent)} from {kept.sent[0].seq if kept.sent else None}"
                )

    def _trim(self, kept: Kept) -> None:
        while len(kept.sent) > 1 and (
            len(kept.sent) > kept.messages_max or kept.bytes > kept.bytes_max
        ):
            self._drop(kept)

    def _drop(self, kept: Kept) -> None:
        oldest = kept.sent.popleft()
        kept.bytes -= oldest.size
        self.gone[oldest.seq] = self.index

    def _compare(self, life: Life, state: BrokerState, how: str) -> None:
        index = state.applied_index
        if not index:
            return
        known, found = self.after.get(index), _look(state)
        if known is not None and known != found:
            raise ViolationError(f"{life.name} {how}: at {index} it has {found}, not {known}")
        if known is None and how == "started":
            raise ViolationError(f"{life.name} {how} at {index}, which nobody has applied")
        is_free = state._capture is None  # there is one at a time, and a digest is one
        if is_free and (index % DIGEST_EVERY == 0 or how != "applied"):
            digest = state.digest()
            other = self.digests.setdefault(index, digest)
            if other != digest:
                raise ViolationError(f"{life.name} {how}: the digest at {index} is another one")

    # --- questions ---

    def matching(self, filters: FilterSet, after: int, upto: int) -> Iterable[Sent]:
        """Messages above ``after``, up to ``upto``."""
        for seq in range(after + 1, min(upto, len(self.sent)) + 1):
            sent = self.sent[seq - 1]
            if filters.matches(sent.topic):
                yield sent

    def is_gone(self, seq: int, index: int) -> bool:
        """Whether retention or a removal had removed it when ``index`` was applied."""
        return self.gone.get(seq, 1 << 60) <= index

    def times_forgotten(self, places: list[int]) -> int:
        """How often the key of what is at ``places`` had grown too old, by the log's time, when
        it came again. Who asks once is not to be kept twice for that."""
        times = [self.sent[seq - 1].time_ms for seq in places]
        old = self.idempotency_seconds * 1000
        return sum(later - earlier >= old for earlier, later in pairwise(times))

    def may_be_out_of_sight(self, sent: Sent) -> bool:
        """Whether it went without a newer one in its place."""
        return sent.seq in self.aged or any(
            index >= sent.index for _, index in self.deleted.get(sent.topic, ())
        )

    def between(self, topic: str, first: int, last: int) -> list[int]:
        seqs = self.by_topic.get(topic, [])
        return seqs[bisect_left(seqs, first) : bisect_right(seqs, last)]


def _look(state: BrokerState) -> tuple[Any, ...]:
    return (
        state.seq,
        state.time_ms,
        len(state.topics),
        state.retained_messages,
        state.retained_bytes,
    )


def now() -> float:
    return round(trio.current_time(), 6)
