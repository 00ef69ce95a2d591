"""One stream: a cursor that moves through the log, then along the live tail.

    start ── behind the tail ⇄ level with it ── end
              reads the log      takes from its channel

A stream is *level* when it has a place in its channel's tail; whatever is
published from then on reaches it from there. One whose cursor is older, or that
was too slow for the tail, reads on from the log until it is level. Finding the
log read out and joining the tail is one synchronous step, so nothing falls
between the two and nothing comes twice.

Iterating gives the whole stream, as the web application sends it. The fan-out
(fanout.py) needs a Subscription only until it is level, and another one when a
reader has fallen behind its tail: ``open``, ``find_place``, ``read_log``.

What the log can no longer give is told by ``event: gap`` before anything that
comes after it. The id of each event is the cursor that a client resumes from:
``subscribed`` repeats the cursor that the client came with, so a connection
that breaks there loses nothing, and the gap is told again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final, Protocol

import trio
from msgspec.json import encode as encode_json

from repl_broker import sse
from repl_broker.errors import RequestError
from repl_broker.hub import Batch, Channel, Hub, Place, deleted_frame, mark, message_frame
from repl_broker.message import Cursor, FilterSet, Message, TopicDeleted, event_id
from repl_broker.replica import Replica
from repl_broker.state import BrokerState, Location, Scan

__all__ = ["CHUNK_BYTES_MAX", "Lease", "Subscription", "farewell", "token_expired"]

RETRY_MS: Final = 2000
AHEAD_SECONDS: Final = 15  # a cursor that this node has not reached is waited for
DRAIN_RETRY_MS_MAX: Final = 5000  # of the jitter that spreads reconnects
CHUNK_BYTES_MAX: Final = 64 << 10  # a single message may be larger
PAGE_MESSAGES_MAX: Final = 256


class Lease(Protocol):
    """A stream's right to go on (access.Lease). ``ends_at`` is by Trio's clock."""

    @property
    def ends_at(self) -> float: ...

    def begin(self, dismiss: Callable[[str], None]) -> None:
        """The stream begins; ``dismiss`` is called, with the reason, if it must end early."""

    def end(self) -> None:
        """There is no stream any more."""


class Subscription:
    """The bytes of one event stream. Use as ``async with``; then iterate.

    ``after`` is a cursor, ``"earliest"`` or ``"latest"``. Ends when the node
    drains, and when its ``lease`` does; None is what a stream has that nothing can end.
    Memory: one chunk, whatever the client's speed.
    """

    __slots__ = (
        "_after", "_before", "_channel", "_ended", "_filters", "_heartbeat_seconds", "_hub",
        "_losses_version", "_prelude", "_reason", "_replica", "_resuming", "_scan", "_scope",
        "_seq", "_told_deletions", "_told_losses", "ahead", "lease", "place",
    )  # fmt: skip

    def __init__(
        self,
        replica: Replica,
        hub: Hub,
        filters: FilterSet,
        after: Cursor | str,
        heartbeat_seconds: float,
        lease: Lease | None,
    ) -> None:
        self.lease = lease  # whoever serves the stream begins and ends it
        self.ahead: Cursor | None = None  # where the client is, and this node is not yet
        self.place: Place | None = None  # in the channel's tail, when level
        self._replica = replica
        self._hub = hub
        self._filters = filters
        self._after = after
        self._heartbeat_seconds = heartbeat_seconds
        self._channel: Channel | None = None
        self._seq = 0  # everything up to here was sent, or told to be lost
        self._told_losses: dict[str, int] = {}  # by topic, up to where
        self._told_deletions: frozenset[TopicDeleted] = frozenset()  # at the position of _seq
        self._before = Place(0, 0)  # where it was before the page that was read last
        self._losses_version = -1  # of the state, when it was last asked for losses
        self._scan: Scan | None = None  # of the log, while it is read
        self._resuming = isinstance(after, Cursor)  # what was removed meanwhile is in the log
        self._ended = False
        self._prelude: Iterator[bytes] = iter(())
        self._scope = trio.CancelScope()  # of the wait for what comes next
        self._reason = "expired"  # why its lease ends

    @classmethod
    def behind(cls, replica: Replica, hub: Hub, channel: Channel, place: Place) -> Subscription:
        """A stream of ``channel`` that got as far as ``place``, which its tail has dropped."""
        cursor = Cursor(hub.epoch, place.seq)
        stream = cls(replica, hub, channel.filters, cursor, 0, None)  # its reader has the lease
        stream._channel = channel
        stream._resuming = False
        stream._leave_tail(place)
        return stream

    def open(self) -> tuple[Channel, list[bytes]]:
        """Join the channel, which whoever calls leaves in the end; how the stream begins.

        ``latest`` is now, not when the first bytes are sent.
        """
        self._channel = self._hub.join(self._filters)
        return self._channel, list(self._begin())

    def leave(self) -> None:
        """Leave the channel, if it was joined."""
        if self._channel is not None:
            self._hub.leave(self._channel)
            self._channel = None

    async def __aenter__(self) -> Subscription:
        _, beginning = self.open()
        self._prelude = iter(beginning)
        if self.lease is not None:
            self._scope.deadline = self.lease.ends_at
            self.lease.begin(self._dismiss)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.lease is not None:
            self.lease.end()
        self.leave()

    def _dismiss(self, reason: str) -> None:
        self._reason = reason
        self._scope.cancel()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes to send: whole events. Raises StopAsyncIteration at the end."""
        if self._ended:
            raise StopAsyncIteration
        if self.lease is None:
            return await self._next()
        if not self._scope.cancel_called:
            self._scope = trio.CancelScope(deadline=self.lease.ends_at)  # each is entered once
            with self._scope:
                return await self._next()
        self._ended = True
        return token_expired(self._reason)

    async def _next(self) -> bytes:
        channel, hub = self._require_channel(), self._hub
        for chunk in self._prelude:
            await trio.lowlevel.checkpoint()
            return chunk
        if self.ahead is not None:
            told = await self._reach(self.ahead)
            if told:
                return told
        while True:
            if hub.closing:
                self._ended = True
                return farewell()
            self.find_place()
            if self.place is None:
                async with self._replica.log_readers:
                    page = await self.read_log()
                if page:
                    return page if isinstance(page, bytes) else self._delivered(page).data
            elif self.place.offset < channel.end:
                batch = hub.take(channel, self.place.offset, CHUNK_BYTES_MAX)
                if batch is not None:
                    self.place = batch.place(self.place)
                    await trio.lowlevel.checkpoint()
                    return self._delivered(batch).data
                self._leave_tail(self.place)  # too slow for it: back to the log
            else:
                if self.place.seq < hub.position:
                    self.place = Place(self.place.offset, hub.position)
                with trio.move_on_after(self._heartbeat_seconds) as silence:
                    await channel.wait()
                # A message may have come in the same moment: its id must not go before it.
                if silence.cancelled_caught and self.place.offset == channel.end:
                    return sse.heartbeat(self._id(hub.position))

    def _delivered(self, batch: Batch) -> Batch:
        self._hub.delivered(len(batch))
        return batch

    def find_place(self) -> None:
        """See whether the tail reaches back to where the stream is."""
        if self.place is None and not self._resuming:
            channel, told = self._require_channel(), self._told_deletions
            offset = channel.offset_after(self._seq, told)
            if offset is not None:
                self.place = Place(offset, self._seq, tuple(told))
                self._scan = None  # what it has left comes from the tail now

    def _leave_tail(self, place: Place) -> None:
        self.place = None
        self._seq = place.seq
        self._told_deletions = frozenset(place.told)

    # --- beginning ---

    def _begin(self) -> Iterator[bytes]:
        state, epoch = self._state, self._hub.epoch
        after = self._after
        if isinstance(after, Cursor):
            yield self._subscribed(after)
            if after.epoch != epoch:
                self._told_losses = state.losses(self._filters, 0)
                yield self._gap("unknown_epoch", self._go_to_first(0))
            elif after.seq > state.seq:
                self.ahead = after
            else:
                self._seq = after.seq
        else:
            if after == "earliest":
                self._told_losses = state.losses(self._filters, 0)
                self._go_to_first(0)
            else:
                self._seq = state.seq
                told = state.deletions(self._filters, state.seq)
                self.place = Place(self._require_channel().end, state.seq, tuple(told))
            yield self._subscribed(Cursor(epoch, self._seq))

    async def _reach(self, cursor: Cursor) -> bytes | None:
        """Wait until this node is where the client is; a gap if no node is."""
        with trio.move_on_after(AHEAD_SECONDS):
            while self._state.seq < cursor.seq and not self._hub.closing:
                try:
                    await self._replica.read_barrier()
                except RequestError:
                    continue  # no leader tells, for now
                break  # all that was ever acknowledged is here
        return self.reached(cursor)

    def reached(self, cursor: Cursor) -> bytes | None:
        """Go on, from where this node is if it is not at ``cursor``: the gap then."""
        self.ahead = None
        self._seq = min(cursor.seq, self._state.seq)
        return self._gap("ahead", None) if self._seq < cursor.seq else None

    def _subscribed(self, position: Cursor) -> bytes:
        data = {
            "topics": sorted(self._filters.filters),
            "node": self._replica.node_id,
            "position": str(position),
        }
        return sse.event("subscribed", str(position), encode_json(data), RETRY_MS)

    def _gap(self, reason: str, first: Location | None) -> bytes:
        """Tell of a loss between the client's cursor and ``_seq``, where the stream goes on."""
        data = {
            "after": str(self._after),
            "first_available": None if first is None else self._id(first.seq),
            "reason": reason,
        }
        self._hub.told_gap()
        return sse.event("gap", self._id(self._seq), encode_json(data))

    def _go_to_first(self, seq: int) -> Location | None:
        """Go on just before the first message above ``seq`` that is still there, and give it."""
        found = self._state.scan(self._filters, seq, 1)
        self._seq = found[0].seq - 1 if found else self._state.seq
        return found[0] if found else None

    # --- the log ---

    async def read_log(self) -> Batch | bytes | None:
        """What comes next in the log: a page, or what is lost. None: look again, perhaps level.

        Whoever calls has taken one of ``Replica.log_readers``.
        """
        state = self._state
        self._resuming = False
        if state.losses_version != self._losses_version:
            self._losses_version = state.losses_version
            told = self._tell_losses()
            if told:
                return told
        page, upto = self._next_page()
        deletions = self._deletions(self._seq, upto)
        if not page and not deletions and upto == state.seq:
            # Read out, and nothing can be appended in between: level.
            self._move(upto)
            self.place = Place(self._require_channel().end, upto, tuple(self._told_deletions))
            self._scan = None
            self._told_losses.clear()
            return None
        messages = await self._replica.fetch(page)
        if len(messages) < len(page):  # trimmed while it was read: look again from there
            self._scan = None
            if not messages:
                return None
            upto = messages[-1].seq
            deletions = [d for d in deletions if d.position <= upto]
        self._before = Place(0, self._seq, tuple(self._told_deletions))
        self._move(upto, deletions)
        return self._in_order(messages, deletions)

    def go_back(self, page: Batch, count: int) -> None:
        """Of the page that was read last, only ``count`` events were sent: go on behind those."""
        self._scan = None  # a reader that waits costs a cursor, and no more
        if count < len(page):
            self._leave_tail(page.place(self._before, count))

    def _tell_losses(self) -> bytes | None:
        """A gap, if some topic has lost more than was told, and what was deleted with it."""
        losses = self._state.losses(self._filters, self._seq)
        told, self._told_losses = self._told_losses, losses
        if all(lost <= told.get(name, 0) for name, lost in losses.items()):
            return None
        self._scan = None
        epoch, after = self._hub.epoch, self._seq
        self._after = Cursor(epoch, after)
        first = self._go_to_first(after)
        deletions = self._deletions(after, self._seq)
        self._move(self._seq, deletions)
        # The cursor has moved on past where these happened, and must not go back.
        frames = (deleted_frame(epoch, d._replace(position=self._seq)) for d in deletions)
        return b"".join((self._gap("retention", first), *frames))

    def _next_page(self) -> tuple[list[Location], int]:
        """Where the next messages are, and the position behind them."""
        scan = self._scan or Scan(self._state, self._filters, self._seq)
        page = scan.take(PAGE_MESSAGES_MAX, CHUNK_BYTES_MAX)
        self._scan = None if scan.is_over else scan
        return page, scan.upto if scan.is_over else page[-1].seq if page else self._seq

    def _deletions(self, after: int, upto: int) -> list[TopicDeleted]:
        """Removals from position ``after`` to ``upto`` that were not told yet, in order."""
        deletions = self._state.deletions(self._filters, after)
        return [d for d in deletions if d.position <= upto and d not in self._told_deletions]

    def _move(self, seq: int, deletions: Sequence[TopicDeleted] = ()) -> None:
        # Removals before the cursor are not asked for again.
        told = self._told_deletions.union(deletions)
        self._seq = seq
        self._told_deletions = frozenset(d for d in told if d.position >= seq)

    def _in_order(self, messages: Sequence[Message], deletions: Sequence[TopicDeleted]) -> Batch:
        epoch = self._hub.epoch
        events: list[bytes] = []
        marks: list[int] = []
        removals: list[tuple[int, TopicDeleted]] = []
        waiting = list(deletions)
        for message in (*messages, None):
            while waiting and (message is None or waiting[0].position < message.seq):
                deleted = waiting.pop(0)
                removals.append((len(events), deleted))
                events.append(deleted_frame(epoch, deleted))
                marks.append(mark(deleted.position, removal=True))
            if message is not None:
                events.append(message_frame(epoch, message))
                marks.append(mark(message.seq))
        return Batch(events, marks, removals)

    def _require_channel(self) -> Channel:
        assert self._channel is not None, "use 'async with', or open"
        return self._channel

    @property
    def _state(self) -> BrokerState:
        return self._replica.state

    def _id(self, seq: int) -> str:
        return event_id(self._hub.epoch, seq)


def farewell() -> bytes:
    """How a stream ends when the node drains: come back, but not all in one moment.

    It has no id: a reader that lags has not had what the node has, and comes back
    with the id of what it did have.
    """
    retry_ms = RETRY_MS + random.randrange(DRAIN_RETRY_MS_MAX)  # noqa: S311  # nosec B311  # jitter
    return sse.notice("goodbye", b'{"reason":"shutting_down"}', retry_ms)


def token_expired(reason: str) -> bytes:
    """How a stream ends whose lease does; ``reason`` is ``expired``, ``revoked`` or ``changed``.

    It has no id: the client's cursor stays where it is, and it comes back with that.
    """
    return sse.notice("token-expired", encode_json({"reason": reason}))
