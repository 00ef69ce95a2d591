"""From the applied log to this node's streams: a channel a filter set, read by cursor.

Streams with the same filters share one *channel*; for the commonest, a single
topic, that is the topic's channel. Applying an entry appends each message, once
encoded, to the tails of the channels that it matches. A stream holds no queue:
it has a place in its channel's tail and takes from there what it can send.

    Channel    a tail, and the sockets that have had all of it (fanout.py)
    Batch      events that follow each other: one write sends them
    Place      how far a stream has come

Tails are bounded together (``tail_bytes_max``): the oldest event of the whole
hub goes first. A stream whose place is gone was slow; it reads on from the log
(subscription.py), and delays no one.

Everything here is synchronous, but for waiting: appending and joining cannot
interleave, so a stream that is level with the log misses nothing and sees
nothing twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import trio
from msgspec.json import encode as encode_json

from repl_broker import sse
from repl_broker.message import FilterSet, Message, TopicDeleted, event_id
from repl_broker.routes import Routes, is_plain

if TYPE_CHECKING:
    from repl_broker.fanout import Reader

__all__ = ["Batch", "Channel", "Hub", "HubStatistics", "Place"]

APPENDS_MAX: Final = 20_000  # to tails, for one entry; beyond it streams read it from the log
LOOKS_MAX: Final = 8_000  # for the routes of one entry's topics, some 0.5 µs each; beyond it, too
ODD_LOOKS_MAX: Final = 1_000  # … for patterns that are not plain
FRAME_OVERHEAD_BYTES: Final = 128  # of an event in a tail, beside its own bytes
DROPPED_MIN: Final = 64  # places of dropped events at the front of a tail, until they are cleared


class Place(NamedTuple):
    """How far a stream has come. Streams that have had the same share one object.

    Everything up to ``seq`` was sent, and of the removals at that very position
    those that were ``told``. ``offset`` is what it takes next from its channel.
    """

    offset: int
    seq: int
    told: tuple[TopicDeleted, ...] = ()


class Batch:
    """Events in the order of the log, from a tail or from the log itself.

    ``marks`` says where each stands in that order; ``removals`` has those that
    tell of a topic's removal, by their number in the batch.
    """

    __slots__ = ("_chunks", "_data", "_pieces", "events", "marks", "removals")

    def __init__(
        self,
        events: list[bytes],
        marks: list[int],
        removals: Sequence[tuple[int, TopicDeleted]] = (),
    ) -> None:
        self.events = events
        self.marks = marks
        self.removals = removals
        self._data: bytes | None = None
        self._pieces: list[bytes] | None = None
        self._chunks: bytes | None = None

    def __len__(self) -> int:
        return len(self.events)

    @property
    def data(self) -> bytes:
        """All of it, for whoever frames it."""
        if self._data is None:
            self._data = b"".join(self.events)
        return self._data

    @property
    def chunks(self) -> bytes:
        """All of it as HTTP/1.1 sends it: a chunk an event, so that it can be cut anywhere."""
        if self._chunks is None:
            self._pieces = [sse.chunk(event) for event in self.events]
            self._chunks = b"".join(self._pieces)
        return self._chunks

    def cut(self, sent_bytes: int) -> tuple[int, bytes, int]:
        """What a write of ``chunks`` has begun that ended early.

        The number of events, the last of them if it is not whole, and how much of it was sent.
        """
        assert self._pieces is not None, "it was sent, so there are chunks"
        for number, piece in enumerate(self._pieces):
            if sent_bytes <= 0:
                return number, b"", 0
            if sent_bytes < len(piece):
                return number + 1, piece, sent_bytes
            sent_bytes -= len(piece)
        return len(self), b"", 0

    def place(self, before: Place, count: int | None = None) -> Place:
        """Where a stream is that was at ``before`` and got ``count`` of them; all, if None."""
        count = len(self) if count is None else count
        if not count:
            return before
        seq = self.marks[count - 1] // 2
        told = [d for number, d in self.removals if number < count and d.position == seq]
        if before.told and before.seq == seq:
            told[:0] = before.told
        return Place(before.offset + count, seq, tuple(told))


class HubStatistics(NamedTuple):
    subscribers: int
    channels: int
    tail_bytes: int
    deliveries: int  # messages handed to streams
    gaps: int  # streams were told of


class Channel:
    """The newest events of one filter set, in order."""

    __slots__ = (
        "_base", "_complete_after", "_dropped", "_events", "_lot", "_marks", "_removals", "filters",
        "flushed_at", "level", "place", "subscribers",
    )  # fmt: skip

    def __init__(self, filters: FilterSet, position: int) -> None:
        self.filters = filters
        self.subscribers = 0
        # Sockets that have had everything up to ``place``, or more; fanout.py keeps these three.
        self.level: dict[Reader, None] = {}
        self.place = Place(0, position)
        self.flushed_at = 0.0
        # Everything later is in the tail; a removal at this very position may have been before.
        self._complete_after = mark(position, removal=True)
        self._events: list[bytes] = []
        self._marks: list[int] = []  # where each stands in the order
        self._dropped = 0  # of them, at the front, are gone
        self._removals: list[tuple[int, TopicDeleted]] = []  # by their offsets
        self._base = 0  # the offset of the first event that is there
        self._lot: trio.lowlevel.ParkingLot | None = None  # few channels have anyone who waits

    @property
    def end(self) -> int:
        """The offset of the next event to come."""
        return self._base + len(self._events) - self._dropped

    @property
    def base(self) -> int:
        """The offset of the first event that is there."""
        return self._base

    def offset_after(self, seq: int, told: Collection[TopicDeleted] = ()) -> int | None:
        """Where a stream goes on that has had everything up to ``seq``, if the tail reaches.

        Of removals at that position, it has had those that are ``told``.
        """
        if mark(seq) < self._complete_after:
            return None
        offset = self._base + bisect_right(self._marks, mark(seq), self._dropped) - self._dropped
        if told:
            here = {deleted for _, deleted in self._removals if deleted.position == seq}
            if here.issubset(told):
                return offset + sum(d.position == seq for _, d in self._removals)
            if not here.isdisjoint(told):
                return None  # one lies before another that was told: the log knows which
        return offset

    def take(self, offset: int, bytes_max: int, upto: int | None = None) -> Batch | None:
        """Events from ``offset`` on, at least one, none from ``upto`` on.

        None if the tail begins after ``offset``.
        """
        if offset < self._base:
            return None
        start = offset - self._base + self._dropped
        stop = len(self._events) if upto is None else upto - self._base + self._dropped
        assert start < stop, "there is something to take"
        size, end = len(self._events[start]), start + 1
        while end < stop and (size := size + len(self._events[end])) <= bytes_max:
            end += 1
        removals = [
            (at - offset, deleted)
            for at, deleted in self._removals
            if 0 <= at - offset < end - start
        ]
        return Batch(self._events[start:end], self._marks[start:end], removals)

    async def wait(self) -> None:
        """Until something is appended, or the hub closes."""
        if self._lot is None:
            self._lot = trio.lowlevel.ParkingLot()
        await self._lot.park()

    def wake(self) -> None:
        if self._lot is not None:
            self._lot.unpark_all()

    def append(self, at: int, event: bytes, deleted: TopicDeleted | None = None) -> None:
        if deleted is not None:
            self._removals.append((self.end, deleted))
        self._events.append(event)
        self._marks.append(at)

    def drop_oldest(self) -> int:
        """Returns the bytes that it freed."""
        freed_bytes = len(self._events[self._dropped])
        self._complete_after = self._marks[self._dropped]
        self._events[self._dropped] = b""
        self._dropped += 1
        self._base += 1
        if self._dropped >= max(DROPPED_MIN, len(self._events) // 2):
            self._clear_dropped()
        while self._removals and self._removals[0][0] < self._base:
            self._removals.pop(0)
        return freed_bytes

    def clear(self) -> int:
        """Drop all. Returns the bytes that it freed."""
        freed_bytes = sum(map(len, self._events))
        self._base += len(self)
        self._complete_after = self._marks[-1]
        self._dropped = len(self._events)
        self._clear_dropped()
        self._removals.clear()
        return freed_bytes

    def _clear_dropped(self) -> None:
        del self._events[: self._dropped]
        del self._marks[: self._dropped]
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._events) - self._dropped

    def skip(self, position: int) -> None:
        """Leave out what was just published, up to ``position``: its streams read the log."""
        assert not len(self)
        self._base += 1  # so that a stream that was level notices
        self._complete_after = mark(position, removal=True)


class Hub:
    """This node's channels and their streams."""

    def __init__(self, epoch: str, tail_bytes_max: int) -> None:
        self.epoch = epoch
        self.position = 0  # the last sequence number that was published to the hub
        self.closing = False
        self.dismissals = 0  # how often all streams were told to go elsewhere …
        self.dismissed_for = ""  # … and why, the last time
        self._tail_bytes_max = tail_bytes_max
        self._tail_bytes = 0
        self._frames = 0  # in all tails
        self._order: deque[Channel] = deque()  # whose frame is oldest, next oldest …
        self._channels: dict[FilterSet, Channel] = {}
        self._exact: dict[str, set[Channel]] = {}
        # Channels with patterns. Whoever has odd ones cannot make routing dear for the others.
        self._plain: Routes[Channel] = Routes(_has_exactly, LOOKS_MAX)
        self._odd: Routes[Channel] = Routes(_has_exactly, ODD_LOOKS_MAX)
        self._asked: tuple[Routes[Channel], ...] = ()  # those of them that have anyone
        self._subscribers = 0
        self._deliveries = 0
        self._gaps = 0
        self._taken: tuple[Channel, int, int, int, Batch | None] | None = None
        self._dirty: dict[Channel, None] = {}  # sockets are level with it, and something came
        self._flusher = trio.lowlevel.ParkingLot()
        self._dismissed = trio.lowlevel.ParkingLot()

    # --- streams ---

    def join(self, filters: FilterSet) -> Channel:
        """The channel of ``filters`` for one more stream; ``leave`` gives it back."""
        channel = self._channels.get(filters)
        if channel is None:
            channel = self._channels[filters] = Channel(filters, self.position)
            for topic in filters.exact:
                self._exact.setdefault(topic, set()).add(channel)
            if filters.patterns:
                self._routes_of(filters).add(channel, filters.patterns)
                self._ask()
        channel.subscribers += 1
        self._subscribers += 1
        return channel

    def leave(self, channel: Channel) -> None:
        channel.subscribers -= 1
        self._subscribers -= 1
        if channel.subscribers:
            return
        del self._channels[channel.filters]
        for topic in channel.filters.exact:
            self._exact[topic].discard(channel)
            if not self._exact[topic]:
                del self._exact[topic]
        if channel.filters.patterns:
            self._routes_of(channel.filters).remove(channel, channel.filters.patterns)
            self._ask()
        self._clear(channel)
        self._taken = None
        self._dirty.pop(channel, None)

    def take(self, channel: Channel, offset: int, bytes_max: int) -> Batch | None:
        """``channel.take``, remembered: streams that are at one place take the same bytes."""
        key = (channel, offset, channel.end, bytes_max)
        if self._taken is None or self._taken[:4] != key:
            self._taken = (*key, channel.take(offset, bytes_max))
        return self._taken[4]

    def delivered(self, events: int) -> None:
        """Count what was handed to streams."""
        self._deliveries += events

    def told_gap(self) -> None:
        """Count a gap that a stream is told of."""
        self._gaps += 1

    async def wait_dirty(self) -> list[Channel]:
        """Channels with something new for the sockets that are level; none once it closes."""
        while not self._dirty and not self.closing:
            await self._flusher.park()
        dirty = list(self._dirty)
        self._dirty.clear()
        return dirty

    def _wake(self, channels: Iterable[Channel]) -> None:
        for channel in channels:
            channel.wake()
            if channel.level:
                self._dirty[channel] = None
        if self._dirty:
            self._flusher.unpark_all()

    def subscribers(self, topic: str) -> int:
        """Streams on this node that follow ``topic``.

        While there are too many odd patterns to ask about, those who have them are left out.
        """
        follow = list(self._exact.get(topic, ()))
        for routes in self._asked:
            follow += routes.route(topic)
            routes.renew()
        return sum(channel.subscribers for channel in follow)

    # --- the log ---

    def publish(self, events: Sequence[Message | TopicDeleted], position: int) -> None:
        """Tell the streams what an entry did. ``position`` is the last sequence number given."""
        if not self._channels:
            self.position = position
            return
        woken: set[Channel] = set()
        behind: set[Channel] = set()  # of them find no room for all they should get
        room = APPENDS_MAX
        left_out: set[str] = set()  # topics of what finds no room
        asked = self._asked
        for event in events:
            topic = event.topic
            if topic in left_out:
                continue
            route: Collection[Channel] = self._exact.get(topic, ())
            for routes in asked:
                route = [*route, *routes.route(topic)]
            room -= len(route)
            if room < 0:
                left_out.add(topic)
                behind.update(route)
            elif route:
                at, frame = self._encode(event)
                deleted = event if isinstance(event, TopicDeleted) else None
                for channel in route:
                    channel.append(at, frame, deleted)
                    self._order.append(channel)
                    self._tail_bytes += len(frame) + FRAME_OVERHEAD_BYTES
                    self._frames += 1
                woken.update(route)
        for routes in asked:
            if routes.is_used:
                if routes.is_lost:
                    behind |= routes.owners
                routes.renew()
        if behind:
            self._skip(behind, position)
            woken |= behind
        self.position = position
        self._trim()
        self._wake(woken)

    def _skip(self, channels: Iterable[Channel], position: int) -> None:
        for channel in channels:
            self._clear(channel)
            channel.skip(position)

    def _clear(self, channel: Channel) -> None:
        """Forget what is in its tail."""
        if len(channel):
            frames = len(channel)
            self._frames -= frames
            self._tail_bytes -= channel.clear() + frames * FRAME_OVERHEAD_BYTES
        if len(self._order) > 64 + 2 * self._frames:
            self._tidy_order()

    def _tidy_order(self) -> None:
        """Of each channel, as many places as it has frames: the newest."""
        frames: dict[Channel, int] = {}
        order: deque[Channel] = deque()
        for channel in reversed(self._order):
            left = frames.get(channel, len(channel))
            if left:
                frames[channel] = left - 1
                order.appendleft(channel)
        self._order = order

    def jump(self, position: int) -> None:
        """The log was replaced up to ``position``: every stream reads on from there itself."""
        self._skip(self._channels.values(), position)
        self.position = position
        self._wake(self._channels.values())

    def close(self) -> None:
        """Wake every stream, to say good-bye; none will wait again."""
        self.closing = True
        self._wake(self._channels.values())
        self._flusher.unpark_all()

    def dismiss(self, reason: str) -> None:
        """End every stream there is: its reader goes to another node, or comes back."""
        self.dismissals += 1
        self.dismissed_for = reason
        self._wake(self._channels.values())
        self._dismissed.unpark_all()

    async def wait_dismissed(self, dismissals: int) -> None:
        """Until streams have been told to go more often than that."""
        while self.dismissals <= dismissals:
            await self._dismissed.park()

    def statistics(self) -> HubStatistics:
        return HubStatistics(
            self._subscribers,
            len(self._channels),
            self._tail_bytes,
            self._deliveries,
            self._gaps,
        )

    def _routes_of(self, filters: FilterSet) -> Routes[Channel]:
        return self._plain if all(map(is_plain, filters.patterns)) else self._odd

    def _ask(self) -> None:
        self._asked = tuple(routes for routes in (self._plain, self._odd) if routes.owners)

    def _encode(self, event: Message | TopicDeleted) -> tuple[int, bytes]:
        if isinstance(event, Message):
            return mark(event.seq), message_frame(self.epoch, event)
        return mark(event.position, removal=True), deleted_frame(self.epoch, event)

    def bound_tails(self, bytes_max: int) -> None:
        """Keep at most this many bytes of recent messages from now on."""
        self._tail_bytes_max = bytes_max
        self._trim()

    def _trim(self) -> None:
        while self._tail_bytes > self._tail_bytes_max:
            channel = self._order.popleft()
            if len(channel):  # it may have been left since
                self._drop_oldest(channel)

    def _drop_oldest(self, channel: Channel) -> None:
        self._tail_bytes -= channel.drop_oldest() + FRAME_OVERHEAD_BYTES
        self._frames -= 1


def _has_exactly(channel: Channel, topic: str) -> bool:
    """Then the channel is found by the topic, whatever its patterns match."""
    return topic in channel.filters.exact


def mark(seq: int, *, removal: bool = False) -> int:
    """The order within a tail: a topic's removal comes behind the message at its position."""
    return 2 * seq + removal


def message_frame(epoch: str, message: Message) -> bytes:
    """A message as the stream sends it."""
    return sse.message_event(event_id(epoch, message.seq), message.to_json(epoch))


def deleted_frame(epoch: str, deleted: TopicDeleted) -> bytes:
    """A topic's removal as the stream sends it."""
    data = encode_json({"topic": deleted.topic})
    return sse.event("topic-deleted", event_id(epoch, deleted.position), data)
