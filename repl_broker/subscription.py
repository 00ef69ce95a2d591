"""One stream: a cursor that moves through the log, then along the live tail.

    start ── behind the tail ⇄ level with it ── end
              reads the log      takes from its channel

A stream is *level* when it has an offset into its channel's tail; whatever is
published from then on reaches it from there. One whose cursor is older, or that
was too slow for the tail, reads on from the log until it is level. Finding the
log read out and joining the tail is one synchronous step, so nothing falls
between the two and nothing comes twice.

What the log can no longer give is told by ``event: gap`` before anything that
comes after it. The id of each event is the cursor that a client resumes from:
``subscribed`` repeats the cursor that the client came with, so a connection
that breaks there loses nothing, and the gap is told again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final

import trio
from msgspec.json import encode as encode_json

from repl_broker import sse
from repl_broker.errors import RequestError
from repl_broker.hub import Channel, Hub, deleted_frame, message_frame
from repl_broker.message import Cursor, FilterSet, Message, TopicDeleted, event_id
from repl_broker.replica import Replica
from repl_broker.state import BrokerState, Location, Scan

__all__ = ["Subscription"]

RETRY_MS: Final = 2000
AHEAD_SECONDS: Final = 15  # a cursor that this node has not reached is waited for
DRAIN_RETRY_MS_MAX: Final = 5000  # of the jitter that spreads reconnects
CHUNK_BYTES_MAX: Final = 64 << 10  # a single message may be larger
PAGE_MESSAGES_MAX: Final = 256


class Subscription:
    """The bytes of one event stream. Use as ``async with``; then iterate.

    ``after`` is a cursor, ``"earliest"`` or ``"latest"``. Ends when the node
    drains. Memory: one chunk, whatever the client's speed.
    """

    def __init__(
        self,
        replica: Replica,
        hub: Hub,
        filters: FilterSet,
        after: Cursor | str,
        heartbeat_seconds: float,
    ) -> None:
        self._replica = replica
        self._hub = hub
        self._filters = filters
        self._after = after
        self._heartbeat_seconds = heartbeat_seconds
        self._channel: Channel | None = None
        self._seq = 0  # everything up to here was sent, or told to be lost
        self._told_losses: dict[str, int] = {}  # by topic, up to where
        self._told_deletions: set[TopicDeleted] = set()
        self._losses_version = -1  # of the state, when it was last asked for losses
        self._scan: Scan | None = None  # of the log, while it is read
        self._offset: int | None = None  # into the channel's tail, when level
        self._resuming = isinstance(after, Cursor)  # what was removed meanwhile is in the log
        self._ahead: Cursor | None = None  # where the client is, and this node is not yet
        self._ended = False
        self._prelude: Iterator[bytes] = iter(())

    async def __aenter__(self) -> Subscription:
        self._channel = self._hub.join(self._filters)
        self._prelude = iter(list(self._begin()))  # 'latest' is now, not at the first read
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            self._hub.leave(self._channel)
            self._channel = None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes to send: whole events. Raises StopAsyncIteration at the end."""
        assert self._channel is not None, "use 'async with'"
        for chunk in self._prelude:
            await trio.lowlevel.checkpoint()
            return chunk
        if self._ended:
            raise StopAsyncIteration
        if self._ahead is not None:
            told = await self._reach(self._ahead)
            if told:
                return told
        while True:
            if self._hub.closing:
                self._ended = True
                return sse.retry(RETRY_MS + random.randrange(DRAIN_RETRY_MS_MAX))  # noqa: S311
            if self._offset is None and not self._resuming:
                self._offset = self._channel.offset_after(self._seq)
                if self._offset is not None:
                    self._scan = None  # what it has left comes from the tail now
            if self._offset is None:
                async with self._replica.log_readers:
                    page = await self._read_log()
                if page:
                    return page
            elif self._offset < self._channel.end:
                batch = self._hub.take(self._channel, self._offset, CHUNK_BYTES_MAX)
                if batch is not None:
                    self._offset = batch.offset
                    self._seq = batch.seq
                    await trio.lowlevel.checkpoint()
                    return batch.data
                self._offset = None  # too slow for the tail: back to the log
            else:
                self._seq = self._hub.position
                with trio.move_on_after(self._heartbeat_seconds) as silence:
                    await self._channel.wait()
                # A message may have come in the same moment: its id must not go before it.
                if silence.cancelled_caught and self._offset == self._channel.end:
                    return sse.heartbeat(self._id(self._hub.position))

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
                self._ahead = after
            else:
                self._seq = after.seq
        else:
            if after == "earliest":
                self._told_losses = state.losses(self._filters, 0)
                self._go_to_first(0)
            else:
                self._seq = state.seq
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
        self._ahead = None
        self._seq = min(cursor.seq, self._state.seq)
        return self._gap("ahead", None) if self._seq < cursor.seq else None

    def _subscribed(self, position: Cursor) -> bytes:
        data = {
            "topics": sorted(self._filters.filters),
            "node": self._replica.node_id,
            "position": str(position),
        }
        return sse.retry(RETRY_MS) + sse.event("subscribed", str(position), encode_json(data))

    def _gap(self, reason: str, first: Location | None) -> bytes:
        """Tell of a loss between the client's cursor and ``_seq``, where the stream goes on."""
        data = {
            "after": str(self._after),
            "first_available": None if first is None else self._id(first.seq),
            "reason": reason,
        }
        return sse.event("gap", self._id(self._seq), encode_json(data))

    def _go_to_first(self, seq: int) -> Location | None:
        """Go on just before the first message above ``seq`` that is still there, and give it."""
        found = self._state.scan(self._filters, seq, 1)
        self._seq = found[0].seq - 1 if found else self._state.seq
        return found[0] if found else None

    # --- the log ---

    async def _read_log(self) -> bytes | None:
        """The next bytes from the log; None when it may be read out."""
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
            self._seq = upto
            self._offset = self._require_channel().end
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
        self._hub.delivered(len(messages))
        self._seq = upto
        self._note_told(deletions)
        return b"".join(self._in_order(messages, deletions))

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
        self._note_told(deletions)
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

    def _note_told(self, deletions: Sequence[TopicDeleted]) -> None:
        # Those before the cursor are not asked for again.
        told = self._told_deletions.union(deletions)
        self._told_deletions = {d for d in told if d.position >= self._seq}

    def _in_order(
        self, messages: Sequence[Message], deletions: Sequence[TopicDeleted]
    ) -> Iterator[bytes]:
        epoch = self._hub.epoch
        waiting = list(deletions)
        for message in messages:
            while waiting and waiting[0].position < message.seq:
                yield deleted_frame(epoch, waiting.pop(0))
            yield message_frame(epoch, message)
        for deleted in waiting:
            yield deleted_frame(epoch, deleted)

    def _require_channel(self) -> Channel:
        assert self._channel is not None
        return self._channel

    @property
    def _state(self) -> BrokerState:
        return self._replica.state

    def _id(self, seq: int) -> str:
        return event_id(self._hub.epoch, seq)
