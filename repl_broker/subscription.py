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
from enum import Enum, auto
from types import TracebackType
from typing import Final, NamedTuple, Protocol

import trio
from msgspec.json import encode as encode_json

from repl_broker import sse
from repl_broker.errors import RequestError
from repl_broker.hub import Batch, Channel, Hub, Place, deleted_frame, mark, message_frame
from repl_broker.message import Cursor, FilterSet, Message, TopicDeleted, event_id
from repl_broker.patience import Looks, Patience
from repl_broker.replica import Replica
from repl_broker.scan import Scan
from repl_broker.state import BrokerState, Location

__all__ = ["CHUNK_BYTES_MAX", "Lease", "Subscription", "farewell", "token_expired"]

RETRY_MS: Final = 2000
AHEAD_SECONDS: Final = 15  # a cursor that this node has not reached is waited for
REACH_AGAIN_SECONDS: Final = 0.1  # until it is asked once more how far the cluster is
DRAIN_RETRY_MS_MAX: Final = 5000  # of the jitter that spreads reconnects
TURN_RETRY_MS: Final = 500  # where they are told one after the other; and the jitter
CHUNK_BYTES_MAX: Final = 64 << 10  # a single message may be larger
PAGE_MESSAGES_MAX: Final = 256
SHORT_FILTERS: Final = 512  # characters of patterns, which are worth a look at what they match
LOOKS_AT_ONCE: Final = 4  # steps that are tried before there is a queue for them


class Lease(Protocol):
    """A stream's right to go on (access.Lease). ``ends_at`` is by Trio's clock."""

    @property
    def ends_at(self) -> float: ...

    def begin(self, dismiss: Callable[[str], None]) -> None:
        """The stream begins; ``dismiss`` is called, with the reason, if it must end early."""

    def end(self) -> None:
        """There is no stream any more."""


class _Page(NamedTuple):
    """What was found in the log, up to a position."""

    locations: list[Location]
    deletions: list[TopicDeleted]
    upto: int


class _More(Enum):
    """A piece of reading is done, with nothing to tell, and there is more to do."""

    MORE = auto()


_MORE: Final = _More.MORE


class Subscription:
    """The bytes of one event stream. Use as ``async with``; then iterate.

    ``after`` is a cursor, ``"earliest"`` or ``"latest"``. Ends when the node
    drains, and when its ``lease`` does; None is what a stream has that nothing can end.
    Memory: one chunk, whatever the client's speed.
    """

    __slots__ = (
        "_after", "_before", "_channel", "_dismissals", "_ended", "_filters", "_gap_reason",
        "_generation", "_heartbeat_seconds", "_hub", "_losses_version", "_prelude", "_reason",
        "_replica", "_resuming", "_scan", "_scope", "_seeks_first", "_seq", "_told_deletions",
        "ahead", "lease", "place",
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
        self._told_deletions: frozenset[TopicDeleted] = frozenset()  # at the position of _seq
        self._before = Place(0, 0)  # where it was before the page that was read last
        self._generation = replica.state.generation  # of the state that the next are of
        self._losses_version = -1  # losses up to it were looked at
        self._gap_reason: str | None = None  # a gap is to be told, before anything else
        self._scan: Scan | None = None  # of the log, while it is read
        self._seeks_first = False  # the first that is retained, to tell where it begins
        self._resuming = isinstance(after, Cursor)  # what was removed meanwhile is in the log
        self._ended = False
        self._dismissals = hub.dismissals  # when it began
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

    @property
    def position(self) -> int:
        """Everything up to here was sent, or told to be lost."""
        return self._seq if self.place is None else self.place.seq

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
            if hub.dismissals != self._dismissals:
                self._ended = True
                return farewell(hub.dismissed_for, self._position())
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

    def _position(self) -> str | None:
        """Where the node is, if the stream has had all that there is."""
        is_level = self.place is not None and self.place.offset == self._require_channel().end
        return self._id(self._hub.position) if is_level else None

    def _delivered(self, batch: Batch) -> Batch:
        self._hub.delivered(len(batch))
        return batch

    def find_place(self) -> None:
        """See whether the tail reaches back to where the stream is."""
        is_reading = self._resuming or self._seeks_first or self._gap_reason is not None
        if self.place is None and not is_reading:
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
                self._gap_reason = "unknown_epoch"
            elif after.seq > state.seq:
                self.ahead = after
            else:
                self._seq = after.seq
        else:
            if after == "earliest":
                self._seeks_first = True
                if not self._is_short or not self._seek_first(Looks(LOOKS_AT_ONCE)):
                    # Where exactly it begins takes a while to find, and is told then.
                    first = state.timeline.first_seq
                    yield self._subscribed(Cursor(epoch, state.seq if first is None else first - 1))
                    return
            else:
                self._seq = state.seq
                told = state.deletions(self._filters, state.seq)
                self.place = Place(self._require_channel().end, state.seq, tuple(told))
            yield self._subscribed(Cursor(epoch, self._seq))

    @property
    def _is_short(self) -> bool:
        """Whether a look at what the filters match takes next to no time."""
        filters = self._filters
        return not filters.patterns or sum(map(len, filters.filters)) <= SHORT_FILTERS

    def _seek_first(self, turn: Patience) -> bool:
        """Go to just before the first message of these filters; whether that is found.

        A cursor further back would lie before what they lost, and whoever resumed from it
        would be told of a gap.
        """
        state = self._state
        scan = self._scan = self._scan or Scan(state, self._filters, 0)
        found = scan.take(turn, 1)
        if not found and scan.position < state.seq:
            return False
        self._seq = found[0].seq - 1 if found else state.seq
        self._scan, self._seeks_first = None, False
        self._losses_version = state.timeline.look()  # what is lost was not asked for
        return True

    async def _reach(self, cursor: Cursor) -> bytes | None:
        """Wait until this node is where the client is; a gap if no node is."""
        with trio.move_on_after(AHEAD_SECONDS):
            while self._state.seq < cursor.seq and not self._hub.closing:
                try:
                    await self._replica.read_barrier()
                except RequestError:  # no leader tells, for now
                    await trio.sleep(REACH_AGAIN_SECONDS)
                    continue
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

    # --- the log ---

    async def read_log(self) -> Batch | bytes | None:
        """What comes next in the log: a page, or what is lost. None: look again, perhaps level.

        Whoever calls has taken one of ``Replica.log_readers``. What is long is done in
        pieces, one for each call, so that other streams have their turn in between.
        """
        found = self._look(Looks(LOOKS_AT_ONCE))
        if isinstance(found, _More):
            found = await self._replica.turnstile.give(self._look)
        if not isinstance(found, _Page):
            return found if isinstance(found, bytes) else None
        page, deletions, upto = found
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

    def _look(self, turn: Patience) -> _Page | bytes | _More | None:
        """A piece of reading: what comes next, a gap, or that there is more to do. None: level.

        That nothing was lost, what comes, and that nothing more comes are one step.
        """
        state = self._state
        if self._generation != state.generation:
            self._generation, self._losses_version, self._scan = state.generation, -1, None
        if self._seeks_first:
            found = self._seek_first(turn)
            return sse.heartbeat(self._id(self._seq)) if found else _MORE
        if self._gap_reason is None:
            self._losses_version, is_lost = state.find_loss(
                self._filters, self._seq, self._losses_version, turn
            )
            if is_lost:
                self._gap_reason, self._scan = "retention", None
                self._after = Cursor(self._hub.epoch, self._seq)
            elif self._losses_version < state.timeline.version:
                return _MORE
        return self._read_on(turn) if self._gap_reason is None else self._tell_gap(turn)

    def _tell_gap(self, turn: Patience) -> bytes | _More:
        """The gap, once it is found where the stream goes on, and what was deleted in it."""
        state, reason = self._state, self._gap_reason
        assert reason is not None
        scan = self._scan = self._scan or Scan(state, self._filters, self._seq)
        found = scan.take(turn, 1)
        if not found and scan.position < state.seq:
            return _MORE
        after, self._seq = self._seq, found[0].seq - 1 if found else state.seq
        self._gap_reason = self._scan = None
        self._losses_version = state.timeline.look()  # all of them are told with this one
        gap = self._gap(reason, found[0] if found else None)
        if reason != "retention":
            return gap
        deletions = self._deletions(after, self._seq)
        self._move(self._seq, deletions)
        # The cursor has moved on past where these happened, and must not go back.
        frames = (deleted_frame(self._hub.epoch, d._replace(position=self._seq)) for d in deletions)
        return b"".join((gap, *frames))

    def _read_on(self, turn: Patience) -> _Page | _More | None:
        """Where the next messages are; nothing was lost that is not told."""
        state = self._state
        scan = self._scan = self._scan or Scan(state, self._filters, self._seq)
        page = scan.take(turn, PAGE_MESSAGES_MAX, CHUNK_BYTES_MAX)
        upto = scan.position
        deletions = self._deletions(self._seq, upto)
        self._resuming = False
        if page or deletions:
            return _Page(page, deletions, upto)
        self._move(upto)
        if upto < state.seq:
            return _MORE
        # Read out, and nothing can be appended in between: level.
        self.place = Place(self._require_channel().end, upto, tuple(self._told_deletions))
        self._scan = None
        return None

    def go_back(self, page: Batch, count: int) -> None:
        """Of the page that was read last, only ``count`` events were sent: go on behind those."""
        self._scan = None  # a reader that waits costs a cursor, and no more
        if count < len(page):
            self._leave_tail(page.place(self._before, count))

    def _deletions(self, after: int, upto: int) -> list[TopicDeleted]:
        """Removals from position ``after`` to ``upto`` that were not told yet, in order."""
        deletions = self._state.deletions(self._filters, after, upto)
        return [d for d in deletions if d not in self._told_deletions]

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


def farewell(
    reason: str = "shutting_down", position: str | None = None, *, in_turn: bool = False
) -> bytes:
    """How a stream ends when the node stops: come back, but not all in one moment.

    Or, ``making_room``, when another client is to have its place; or why nothing new would
    come from this node (readiness.py). Those that are told ``in_turn`` do not come together,
    and need not wait for long.

    ``position`` is where the node is, for a reader that has had all that it has: it gets that
    before, as a heartbeat. The farewell has no id, so one that lags comes back with the id of
    what it did have.
    """
    least, spread = (TURN_RETRY_MS, TURN_RETRY_MS) if in_turn else (RETRY_MS, DRAIN_RETRY_MS_MAX)
    retry_ms = least + random.randrange(spread)  # noqa: S311  # nosec B311  # jitter
    words = sse.notice("goodbye", encode_json({"reason": reason}), retry_ms)
    return words if position is None else sse.heartbeat(position) + words


def token_expired(reason: str) -> bytes:
    """How a stream ends whose lease does; ``reason`` is ``expired``, ``revoked`` or ``changed``.

    It has no id: the client's cursor stays where it is, and it comes back with that.
    """
    return sse.notice("token-expired", encode_json({"reason": reason}))
