"""From the applied log to this node's streams: a channel a filter set, read by cursor.

Streams with the same filters share one *channel*; for the commonest, a single
topic, that is the topic's channel. Applying an entry appends each message, once
encoded, to the tails of the channels that it matches. A stream holds no queue:
it has an offset into its channel's tail and takes from there what it can send.

Tails are bounded together (``tail_bytes_max``): the oldest frame of the whole
hub goes first. A stream whose offset is gone was slow; it reads on from the log
(subscription.py), and delays no one.

Everything here is synchronous, but for ``Channel.wait``: appending and joining
cannot interleave, so a stream that is level with the log misses nothing and
sees nothing twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

import trio
from msgspec.json import encode as encode_json

from repl_broker import sse
from repl_broker.message import FilterSet, Message, TopicDeleted, event_id

__all__ = ["Batch", "Channel", "Hub", "HubStatistics"]

APPENDS_MAX: Final = 50_000  # to tails, for one entry; beyond it streams read it from the log
ROUTES_MAX: Final = 1_000_000  # channels in all remembered routes of topics
FRAME_OVERHEAD_BYTES: Final = 128  # of a frame in a tail, beside its own bytes


class Batch(NamedTuple):
    """Frames taken from a tail, joined: one write sends them."""

    data: bytes
    frames: int
    offset: int  # where to take from next
    seq: int  # the position after them


class HubStatistics(NamedTuple):
    subscribers: int
    channels: int
    tail_bytes: int
    deliveries: int  # messages handed to streams


class Channel:
    """The newest frames of one filter set, in order."""

    __slots__ = ("_base", "_complete_after", "_frames", "_lot", "_marks", "filters", "subscribers")

    def __init__(self, filters: FilterSet, position: int) -> None:
        self.filters = filters
        self.subscribers = 0
        self._complete_after = _mark(position)  # everything later is in the tail
        self._frames: deque[bytes] = deque()
        self._marks: deque[int] = deque()  # where each stands in the order
        self._base = 0  # the offset of the first frame
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def end(self) -> int:
        """The offset of the next frame to come."""
        return self._base + len(self._frames)

    def offset_after(self, seq: int) -> int | None:
        """Where a stream that has seen everything up to ``seq`` goes on, if the tail reaches."""
        if _mark(seq) < self._complete_after:
            return None
        return self._base + bisect_right(self._marks, _mark(seq))

    def take(self, offset: int, bytes_max: int) -> Batch | None:
        """Frames from ``offset`` on, at least one; None if the tail begins after it."""
        start = offset - self._base
        if start < 0:
            return None
        assert start < len(self._frames), "there is something to take"
        taken: list[bytes] = []
        size = 0
        for number in range(start, len(self._frames)):
            frame = self._frames[number]
            size += len(frame)
            if taken and size > bytes_max:
                break
            taken.append(frame)
        seq = self._marks[start + len(taken) - 1] // 2
        return Batch(b"".join(taken), len(taken), offset + len(taken), seq)

    async def wait(self) -> None:
        """Until something is appended, or the hub closes."""
        await self._lot.park()

    def wake(self) -> None:
        self._lot.unpark_all()

    def append(self, mark: int, frame: bytes) -> None:
        self._frames.append(frame)
        self._marks.append(mark)

    def drop_oldest(self) -> int:
        """Returns the bytes that it freed."""
        self._base += 1
        self._complete_after = self._marks.popleft()
        return len(self._frames.popleft())

    def __len__(self) -> int:
        return len(self._frames)

    def skip(self, position: int) -> None:
        """Leave out what was just published, up to ``position``: its streams read the log."""
        assert not self._frames
        self._base += 1  # so that a stream that was level notices
        self._complete_after = _mark(position, removal=True)


class Hub:
    """This node's channels and their streams."""

    def __init__(self, epoch: str, tail_bytes_max: int) -> None:
        self.epoch = epoch
        self.position = 0  # the last sequence number that was published to the hub
        self.closing = False
        self._tail_bytes_max = tail_bytes_max
        self._tail_bytes = 0
        self._frames = 0  # in all tails
        self._order: deque[Channel] = deque()  # whose frame is oldest, next oldest …
        self._channels: dict[FilterSet, Channel] = {}
        self._exact: dict[str, set[Channel]] = {}
        self._patterns: set[Channel] = set()
        self._pattern_routes: dict[str, list[Channel]] = {}  # a topic's, as far as known
        self._routes = 0  # channels in them, and one for each
        self._subscribers = 0
        self._deliveries = 0
        self._taken: tuple[Channel, int, int, int, Batch | None] | None = None

    # --- streams ---

    def join(self, filters: FilterSet) -> Channel:
        """The channel of ``filters`` for one more stream; ``leave`` gives it back."""
        channel = self._channels.get(filters)
        if channel is None:
            channel = self._channels[filters] = Channel(filters, self.position)
            for topic in filters.exact:
                self._exact.setdefault(topic, set()).add(channel)
            if filters.patterns:
                self._patterns.add(channel)
                self._forget_routes()
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
            self._patterns.discard(channel)
            self._forget_routes()
        while len(channel):
            self._drop_oldest(channel)
        if len(self._order) > 64 + 2 * self._frames:
            self._order = deque(c for c in self._order if c.subscribers)
        self._taken = None

    def take(self, channel: Channel, offset: int, bytes_max: int) -> Batch | None:
        """``channel.take``, remembered: streams that are level take the same bytes object."""
        key = (channel, offset, channel.end, bytes_max)
        if self._taken is None or self._taken[:4] != key:
            self._taken = (*key, channel.take(offset, bytes_max))
        batch = self._taken[4]
        if batch is not None:
            self._deliveries += batch.frames
        return batch

    def delivered(self, messages: int) -> None:
        """Count messages that a stream took from the log."""
        self._deliveries += messages

    def subscribers(self, topic: str) -> int:
        """Streams on this node that follow ``topic``."""
        return sum(channel.subscribers for channel in self._route(topic))

    # --- the log ---

    def publish(self, events: Sequence[Message | TopicDeleted], position: int) -> None:
        """Tell the streams what an entry did. ``position`` is the last sequence number given."""
        woken: set[Channel] = set()
        room = APPENDS_MAX
        left_out: set[str] = set()  # topics of what finds no room
        for event in events:
            if event.topic in left_out:
                continue
            route = self._route(event.topic)
            room -= len(route)
            if room < 0:
                left_out.add(event.topic)
                woken.update(route)
            elif route:
                mark, frame = self._encode(event)
                for channel in route:
                    channel.append(mark, frame)
                    self._order.append(channel)
                    self._tail_bytes += len(frame) + FRAME_OVERHEAD_BYTES
                    self._frames += 1
                woken.update(route)
        if left_out:
            self._skip(woken, position)
        self.position = position
        self._trim()
        for channel in woken:
            channel.wake()

    def _skip(self, channels: Iterable[Channel], position: int) -> None:
        for channel in channels:
            while len(channel):
                self._drop_oldest(channel)
            channel.skip(position)

    def jump(self, position: int) -> None:
        """The log was replaced up to ``position``: every stream reads on from there itself."""
        self._skip(self._channels.values(), position)
        self.position = position
        for channel in self._channels.values():
            channel.wake()

    def close(self) -> None:
        """Wake every stream, to say good-bye; none will wait again."""
        self.closing = True
        for channel in self._channels.values():
            channel.wake()

    def statistics(self) -> HubStatistics:
        return HubStatistics(
            self._subscribers, len(self._channels), self._tail_bytes, self._deliveries
        )

    def _route(self, topic: str) -> Collection[Channel]:
        exact = self._exact.get(topic, ())
        if not self._patterns:
            return exact
        if topic not in self._pattern_routes:
            if self._routes > ROUTES_MAX:
                self._forget_routes()
            # A set of filters with both kinds is found by its exact ones above.
            route = [
                c
                for c in self._patterns
                if topic not in c.filters.exact and c.filters.matches(topic)
            ]
            self._pattern_routes[topic] = route
            self._routes += 1 + len(route)
        return [*exact, *self._pattern_routes[topic]]

    def _forget_routes(self) -> None:
        self._pattern_routes.clear()
        self._routes = 0

    def _encode(self, event: Message | TopicDeleted) -> tuple[int, bytes]:
        if isinstance(event, Message):
            return _mark(event.seq), message_frame(self.epoch, event)
        return _mark(event.position, removal=True), deleted_frame(self.epoch, event)

    def _trim(self) -> None:
        while self._tail_bytes > self._tail_bytes_max:
            channel = self._order.popleft()
            if len(channel):  # it may have been left since
                self._drop_oldest(channel)

    def _drop_oldest(self, channel: Channel) -> None:
        self._tail_bytes -= channel.drop_oldest() + FRAME_OVERHEAD_BYTES
        self._frames -= 1


def _mark(seq: int, *, removal: bool = False) -> int:
    """The order within a tail: a topic's removal comes behind the message at its position."""
    return 2 * seq + removal


def message_frame(epoch: str, message: Message) -> bytes:
    """A message as the stream sends it."""
    return sse.message_event(event_id(epoch, message.seq), message.to_json(epoch))


def deleted_frame(epoch: str, deleted: TopicDeleted) -> bytes:
    """A topic's removal as the stream sends it."""
    data = encode_json({"topic": deleted.topic})
    return sse.event("topic-deleted", event_id(epoch, deleted.position), data)
