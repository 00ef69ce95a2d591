"""Event streams as sockets: what the node writes to, with nothing running for each of them.

A *reader* is a file descriptor, its channel and its place there. Who opened its
stream (web/streams.py) has answered the request and let go of the socket. Five
tasks serve all readers together:

    flush     what was published goes to every reader that is level, in one write each
    listen    one epoll set: who has left, who sends something, who can be written to again
    log       a few workers give pages of the log to readers that are behind, in turn
    reach     cursors that this node has not reached yet are waited for together
    tend      heartbeats, and readers that have vanished, by one wheel of times

                     ┌────── log read out ─────┐
                     ▼                         │
    adopt ──────▶  LEVEL ──would block──▶ STALLED ──the tail has dropped it──▶ QUEUED
      │              ▲                         │                                 │  ▲
      │              └──── level again ────────┘ ◀───────── would block ─────────┘  │
      └── behind the tail, or AHEAD of this node ───────────────────────────────────┘

A reader that does not read costs its place, and what is left of the one event
that was being sent. That is why each event is a chunk of its own: a write that
ends early is cut behind the event in which it ended, and what follows stays in
the tail or in the log.

All that is told to a reader goes through here synchronously: between looking at
its place and moving it there is no checkpoint. Where a task pauses among many
readers, each may meanwhile have left, stalled or caught up, so it is looked at
again: by the identity of its place.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Final, NamedTuple, TypeVar

import trio

from repl_broker import sse
from repl_broker.errors import RequestError
from repl_broker.hub import Batch, Channel, Hub, Place
from repl_broker.message import event_id
from repl_broker.replica import Replica
from repl_broker.stalled import Stalled
from repl_broker.subscription import (
    AHEAD_SECONDS,
    CHUNK_BYTES_MAX,
    REACH_AGAIN_SECONDS,
    Lease,
    Subscription,
    farewell,
    token_expired,
)

__all__ = ["BEHIND", "Fanout", "FanoutOptions", "FanoutStatistics", "Reader"]

log = logging.getLogger(__name__)

T = TypeVar("T")

TURN_SECONDS: Final = 0.001  # of writing, until others (publishes, heartbeats) have a turn
TURN_SECONDS_MAX: Final = 0.02  # of it, where others take as long for theirs
TURN_READERS: Final = 16  # between two looks at the clock
EVENTS_MAX: Final = 64  # of the epoll set, in one turn
ADVANCE_BATCHES_MAX: Final = 4  # for one reader that catches up along the tail, in one turn
BEHIND: Final = (1, 100, 10_000)  # messages
LOG_WORKERS: Final = 4
REACH_SECONDS_MIN: Final = 1.0  # for one question to the cluster
IGNORED_BYTES_MAX: Final = 64 * 1024  # of what a reader sends; then it is not read any more
READ_BYTES: Final = 16 * 1024
PROBES_MIN: Final = 2  # unanswered, of a closed window: one may be under way, or lost
ANSWER_SECONDS: Final = 2.0  # that a kernel at least has to acknowledge what it got
TICK_SECONDS: Final = 0.25  # of the wheel: everything in it is late by this at most
PARTING_SECONDS: Final = 2.0  # for the last words to one whose token has expired
CHECKS: Final = 3  # for signs of life within ``dead_reader_seconds``

_GONE: Final = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
# Of struct tcp_info: probes, unacked, last_data_sent and last_ack_recv (ms).
_TCP_INFO: Final = struct.Struct("3xB20xI16xI8xI")
_GET_TCP_INFO: Final = (socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
# SO_LINGER on, with no time: close sends a reset and the kernel keeps nothing.
_RESET_ON_CLOSE: Final = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

# States of a reader.
LEVEL: Final = 0  # it has had what there is, or the flush that is due brings it
STALLED: Final = 1  # waits until it can be written to
QUEUED: Final = 2  # waits for a page of the log, or is being given one
AHEAD: Final = 3  # comes from a node that is further than this one
PARTING: Final = 4  # has been told to go; waits until it can be written to
ENDED: Final = 5


class FanoutOptions(NamedTuple):
    heartbeat_seconds: float
    """Of silence of a stream, until it gets a heartbeat."""
    dead_reader_seconds: float
    """For which a reader's kernel may acknowledge nothing of what was sent to it."""
    stalled_bytes_max: int = 256 << 20
    """Held for readers that do not read on; beyond it those that have not for longest are ended."""


class FanoutStatistics(NamedTuple):
    readers: int
    lagging: int  # of them wait to be writable, or for the log
    unsent_bytes: int  # begun to be sent to readers that stalled; shared ones count each time
    dead: int  # were dropped because they acknowledged nothing
    failed: int  # were dropped because an error of the node ended them
    behind_max: int  # messages that one of them has not been sent yet
    behind: tuple[int, ...]  # readers with so many or more, for each of BEHIND


class Reader:
    """One socket. ``place`` is behind what was begun to be sent, ``rest`` what is left of that."""

    __slots__ = (
        "asked_at", "channel", "ends_at", "fd", "ignored_bytes", "place", "rest", "rest_at",
        "state", "subscription", "wrote_at",
    )  # fmt: skip

    def __init__(
        self, fd: int, channel: Channel, subscription: Subscription, now: float, ends_at: float
    ) -> None:
        self.fd = fd
        self.channel = channel
        self.subscription: Subscription | None = subscription  # while it reads the log
        self.place = _NOWHERE
        self.state = QUEUED
        self.rest = b""
        self.rest_at = 0  # so much of it was sent
        self.wrote_at = now  # to it alone; what its channel got counts as well
        self.asked_at = math.inf  # since when something is known not to be acknowledged
        self.ignored_bytes = 0
        self.ends_at = ends_at  # when its token does; then, when it must be gone


_NOWHERE: Final = Place(-1, 0)


class Fanout:
    """All readers of a node. ``run`` serves them; ``adopt`` adds one."""

    def __init__(self, replica: Replica, hub: Hub, options: FanoutOptions) -> None:
        self._replica = replica
        self._hub = hub
        self.stalled = Stalled(options.stalled_bytes_max)
        self.take_options(options)
        self._epoll = select.epoll()
        self._readers: list[Reader | None] = []  # by file descriptor
        self.on_flushed: Callable[[Batch, int], None] | None = None
        """Called with what was written to readers that were level, and to how many."""
        self._count = 0
        self._dead = 0
        self._failed = 0
        self._leases: dict[Reader, Lease] = {}  # of those that have one
        self._when_ended: dict[Reader, Callable[[], None]] = {}
        self._queue: deque[Reader] = deque()
        self._ahead: dict[Reader, float] = {}  # until when each waits
        self._wheel: dict[int, list[Reader]] = {}  # by tick; each reader is in it once
        self._queued = trio.lowlevel.ParkingLot()
        self._went_ahead = trio.lowlevel.ParkingLot()
        self._wheel_begins = trio.lowlevel.ParkingLot()
        self._emptied = trio.lowlevel.ParkingLot()
        self._turns = _Turns()  # of flushing

    def take_options(self, options: FanoutOptions) -> None:
        """Tend readers by these from now on; each when it is next looked at."""
        self._options = options
        self.stalled.bytes_max = options.stalled_bytes_max
        self._period = min(
            options.heartbeat_seconds, max(options.dead_reader_seconds / CHECKS, TICK_SECONDS)
        )

    def __len__(self) -> int:
        """Readers there are."""
        return self._count

    def statistics(self) -> FanoutStatistics:
        """Looks through all readers."""
        lagging = unsent_bytes = 0
        behind = []
        for reader in self._all():
            lagging += reader.state in (STALLED, QUEUED)
            unsent_bytes += len(reader.rest) - reader.rest_at
            if messages := self._behind(reader):
                behind.append(messages)
        return FanoutStatistics(
            self._count,
            lagging,
            unsent_bytes,
            self._dead,
            self._failed,
            max(behind, default=0),
            tuple(sum(messages >= least for messages in behind) for least in BEHIND),
        )

    def _behind(self, reader: Reader) -> int:
        """How many messages it has not been sent. One that reads the log cannot tell which of
        those since its cursor are for it; then all count."""
        if reader.state in (AHEAD, PARTING):
            return 0
        if (subscription := reader.subscription) is not None:
            return max(0, self._hub.position - subscription.position)
        if reader.place.offset >= reader.channel.base:
            return reader.channel.end - reader.place.offset
        return max(0, self._hub.position - reader.place.seq)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then every reader that is left is reset. Call it once."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush_always)
                nursery.start_soon(self._listen)
                nursery.start_soon(self._tend)
                nursery.start_soon(self._reach)
                nursery.start_soon(self._dismiss_always)
                for _ in range(LOG_WORKERS):
                    nursery.start_soon(self._read_log)
                task_status.started()
        finally:
            self.cut()
            self._epoll.close()

    def adopt(
        self,
        fd: int,
        subscription: Subscription,
        head: bytes = b"",
        ended: Callable[[], None] | None = None,
    ) -> Reader:
        """Serve ``subscription`` to the non-blocking socket ``fd``, which is the fan-out's now.

        ``head`` goes before everything; ``ended`` is called when the reader is gone.
        The reader is ended when the subscription's lease does. Raises an OSError if the
        kernel watches no more sockets; then the socket is closed, and ``ended`` called.
        """
        lease = subscription.lease
        ends_at = math.inf if lease is None else lease.ends_at
        try:
            channel, beginning = subscription.open()
            reader = Reader(fd, channel, subscription, trio.current_time(), ends_at)
            self._epoll.register(fd, _mask(reader))
        except BaseException:
            subscription.leave()
            if lease is not None:
                lease.end()
            _close(fd, reset=True)
            if ended is not None:
                ended()
            raise
        if fd >= len(self._readers):
            self._readers.extend([None] * (fd + 1 - len(self._readers)))
        self._readers[fd] = reader
        self._count += 1
        if ended is not None:
            self._when_ended[reader] = ended
        if lease is not None:
            self._leases[reader] = lease
        self._turn(reader, min(reader.wrote_at + self._period, ends_at))
        if self._send(reader, head + b"".join(map(sse.chunk, beginning))):
            self._go_on(reader)
        if lease is not None and reader.state != ENDED:
            lease.begin(partial(self.dismiss, reader))
        return reader

    def dismiss(self, reader: Reader, reason: str) -> None:
        """Its token does not count any more: tell it so, and end it."""
        try:
            self._dismiss(reader, reason)
        except Exception as error:  # noqa: BLE001  it ends here, logged
            self._fail(reader, error)

    def shed(self, reader: Reader) -> None:
        """Its place is for another: tell it to come back, and end it. Nothing if it has ended."""
        try:
            self._say_goodbye(reader, farewell("making_room"))
        except Exception as error:  # noqa: BLE001  it ends here, logged
            self._fail(reader, error)

    async def dismiss_in_turn(self, seconds: float) -> None:
        """Tell each reader that is there now to come back, one after the other over this time.

        One that does not read is left to the end of the node.
        """
        began, readers = trio.current_time(), list(self._all())
        for number, reader in enumerate(readers):
            await trio.sleep_until(began + seconds * number / len(readers))
            try:
                if not reader.rest:
                    self._say_goodbye(reader, farewell(in_turn=True))
            except Exception as error:  # noqa: BLE001  it ends here, logged
                self._fail(reader, error)

    async def wait_empty(self) -> None:
        """Until there is no reader."""
        while self._count:
            await self._emptied.park()

    def cut(self) -> None:
        """Reset every reader."""
        for reader in self._all():
            self._end(reader, reset=True)

    def _all(self) -> Iterator[Reader]:
        return (reader for reader in list(self._readers) if reader is not None)

    async def _dismiss_always(self) -> None:
        """Whenever the hub says so, tell all that are there to go elsewhere."""
        seen = self._hub.dismissals
        while True:
            await self._hub.wait_dismissed(seen)
            seen, why = self._hub.dismissals, self._hub.dismissed_for
            turns = _Turns()
            for reader in self._all():
                try:
                    self._say_goodbye(reader, farewell(why, self._position_of(reader)))
                except Exception as error:  # noqa: BLE001  it ends here, logged
                    self._fail(reader, error)
                await turns.give()

    def _position_of(self, reader: Reader) -> str | None:
        """Where the node is, for a reader that has had all that it has."""
        if reader.state != LEVEL or reader.place.offset != reader.channel.end:
            return None
        return event_id(self._hub.epoch, self._hub.position)

    # --- flush ---

    async def _flush_always(self) -> None:
        while dirty := await self._hub.wait_dirty():
            self._turns.begin()  # one for all channels: there may be thousands
            for channel in dirty:
                try:
                    await self._flush(channel)
                except Exception as error:  # noqa: BLE001  it ends here, logged
                    for reader in list(channel.level):
                        self._fail(reader, error)
        turns = _Turns()
        for reader in self._all():
            if not reader.rest:  # else it is told when it has had that
                self._part(reader)
            await turns.give()

    async def _flush(self, channel: Channel) -> None:
        """Bring every level reader of ``channel`` to its end, as it is then."""
        while channel.level and channel.place.offset < channel.end:
            start = channel.place
            batch = channel.take(start.offset, CHUNK_BYTES_MAX)
            if batch is None:
                self._leave_tail(channel)
                continue
            channel.place = after = batch.place(start)
            channel.flushed_at = trio.current_time()
            for reader in await self._write_to_all(channel, batch, start, after):
                self._flush_apart(reader, channel, batch, start, after)

    async def _write_to_all(
        self, channel: Channel, batch: Batch, start: Place, after: Place
    ) -> list[Reader]:
        """Write ``batch`` to those at ``start``. Returns readers that were elsewhere, or left."""
        write, chunks = os.write, batch.chunks
        size, begun = len(chunks), 0
        readers, elsewhere = list(channel.level), []
        turns = self._turns
        for first in range(0, len(readers), TURN_READERS):
            for reader in readers[first : first + TURN_READERS]:
                if reader.place is not start:
                    elsewhere.append(reader)
                    continue
                try:
                    sent_bytes = write(reader.fd, chunks)
                except BlockingIOError:
                    sent_bytes = 0
                except OSError:
                    self._end(reader)
                    continue
                if sent_bytes == size:
                    reader.place = after
                    begun += 1
                else:
                    self._stall(reader, batch, sent_bytes)
            await turns.give()
        self._hub.delivered(begun * len(batch))
        if self.on_flushed is not None:
            self.on_flushed(batch, begun)
        return elsewhere

    def _flush_apart(
        self, reader: Reader, channel: Channel, batch: Batch, start: Place, after: Place
    ) -> None:
        """For one that became level at another moment than the rest, perhaps during this flush."""
        if reader.state != LEVEL:
            return
        if reader.place.offset >= after.offset:
            self._share_place(reader)
            return
        own: Batch | None = batch
        if reader.place.offset != start.offset:
            own = channel.take(reader.place.offset, CHUNK_BYTES_MAX, after.offset)
        if own is None:
            self._fall_behind(reader)
        elif self._send_batch(reader, own):
            self._share_place(reader)

    def _leave_tail(self, channel: Channel) -> None:
        """The tail has lost what comes next: whoever wants it reads the log."""
        for reader in list(channel.level):
            if reader.place.offset < channel.base:
                self._fall_behind(reader)
        # The next flush begins with the hindmost of those that are left.
        channel.place = min((reader.place for reader in channel.level), default=channel.place)

    # --- one reader ---

    def _send(self, reader: Reader, data: bytes) -> bool:
        """Write; False if it could not take all of it, which it waits for then, or has ended."""
        try:
            sent_bytes = os.write(reader.fd, data)
        except BlockingIOError:
            sent_bytes = 0
        except OSError:
            self._end(reader)
            return False
        reader.wrote_at = trio.current_time()
        if sent_bytes == len(data):
            return True
        reader.rest, reader.rest_at = data, sent_bytes
        self._set_state(reader, PARTING if reader.state == PARTING else STALLED)
        self.stalled.hold(reader, data, self._cut_off)
        return False

    def _send_batch(self, reader: Reader, batch: Batch) -> bool:
        """As ``_send``, for what comes at its place."""
        chunks = batch.chunks
        try:
            sent_bytes = os.write(reader.fd, chunks)
        except BlockingIOError:
            sent_bytes = 0
        except OSError:
            self._end(reader)
            return False
        reader.wrote_at = trio.current_time()
        if sent_bytes < len(chunks):
            self._stall(reader, batch, sent_bytes)
            return False
        self._hub.delivered(len(batch))
        if reader.subscription is None:
            reader.place = batch.place(reader.place)
        return True

    def _stall(self, reader: Reader, batch: Batch, sent_bytes: int) -> None:
        """It took no more than ``sent_bytes`` of the chunks of ``batch``."""
        count, reader.rest, reader.rest_at = batch.cut(sent_bytes)
        self._hub.delivered(count)
        if reader.subscription is None:
            reader.place = batch.place(reader.place, count)
        else:
            reader.subscription.go_back(batch, count)
        self._set_state(reader, STALLED)
        if reader.rest:
            self.stalled.hold(reader, reader.rest, self._cut_off)

    def _go_on(self, reader: Reader) -> None:
        """It may be writable: the rest first, then what comes next."""
        if reader.rest:
            try:
                with memoryview(reader.rest) as rest:
                    reader.rest_at += os.write(reader.fd, rest[reader.rest_at :])
            except BlockingIOError:
                return
            except OSError:
                self._end(reader)
                return
            if reader.rest_at < len(reader.rest):
                return
            self.stalled.release(reader)
            reader.rest, reader.rest_at = b"", 0
            reader.wrote_at = trio.current_time()
        if reader.state == PARTING:
            self._end(reader)
        elif self._hub.closing:
            self._part(reader)
        elif reader.subscription is not None:
            self._resume(reader, reader.subscription)
        else:
            self._advance(reader)

    def _resume(self, reader: Reader, subscription: Subscription) -> None:
        """It has a cursor: into the tail, if that reaches back so far, else into the log."""
        if subscription.ahead is not None:
            self._set_state(reader, AHEAD)
            self._ahead[reader] = trio.current_time() + AHEAD_SECONDS
            self._went_ahead.unpark_all()
            return
        subscription.find_place()
        if subscription.place is None:
            self._set_state(reader, QUEUED)
            self._queue.append(reader)
            self._queued.unpark()
            return
        reader.place, reader.subscription = subscription.place, None
        self._advance(reader)

    def _advance(self, reader: Reader) -> None:
        """Along the tail, as far as it reads, until it is level."""
        channel = reader.channel
        for _ in range(ADVANCE_BATCHES_MAX):
            offset = reader.place.offset
            if offset == channel.end:
                self._set_state(reader, LEVEL)
                self._share_place(reader)
                channel.level[reader] = None
                return
            batch = self._hub.take(channel, offset, CHUNK_BYTES_MAX)
            if batch is None:
                self._fall_behind(reader)
                return
            if not self._send_batch(reader, batch):
                return
        self._set_state(reader, STALLED)  # others have their turn; it goes on at once

    def _fall_behind(self, reader: Reader) -> None:
        """What it wants next is not in the tail any more."""
        reader.channel.level.pop(reader, None)
        reader.subscription = Subscription.behind(
            self._replica, self._hub, reader.channel, reader.place
        )
        self._resume(reader, reader.subscription)

    def _share_place(self, reader: Reader) -> None:
        """Readers that have had the same share the object, so that a flush need not compare."""
        channel = reader.channel
        if not channel.level:
            channel.place = reader.place
        elif reader.place.offset == channel.place.offset and not reader.place.told:
            reader.place = channel.place

    def _set_state(self, reader: Reader, state: int) -> None:
        before = _mask(reader)
        if reader.state == LEVEL and state != LEVEL:
            reader.channel.level.pop(reader, None)
        reader.state = state
        if (after := _mask(reader)) != before:
            self._epoll.modify(reader.fd, after)

    def _part(self, reader: Reader, words: bytes | None = None) -> None:
        """Tell it when to come back, or ``words``, and that this is the end."""
        if reader.state in (PARTING, ENDED):
            return
        reader.subscription = None
        reader.place = _NOWHERE  # a flush that has paused passes it over
        self._ahead.pop(reader, None)
        self._set_state(reader, PARTING)
        if self._send(reader, sse.chunk(words or farewell()) + sse.LAST_CHUNK):
            self._end(reader)

    def _dismiss(self, reader: Reader, reason: str) -> None:
        """Its token is worth nothing any more."""
        self._say_goodbye(reader, token_expired(reason))

    def _say_goodbye(self, reader: Reader, words: bytes) -> None:
        """One that cannot be told at once is cut off."""
        if reader.rest:
            self._end(reader, reset=True)
            return
        self._part(reader, words)
        if reader.state == PARTING:
            reader.ends_at = trio.current_time() + PARTING_SECONDS

    def _end(self, reader: Reader, *, reset: bool = False) -> None:
        """Close and forget it. ``reset``: drop what is still on its way to it, too."""
        if reader.state == ENDED:
            return
        channel, fd = reader.channel, reader.fd
        channel.level.pop(reader, None)
        self._ahead.pop(reader, None)
        self._readers[fd] = None
        self._count -= 1
        reader.state, reader.fd = ENDED, -1
        reader.place, reader.subscription, reader.rest = _NOWHERE, None, b""
        self.stalled.release(reader)
        _close(fd, reset=reset)  # which takes it out of the epoll set
        self._hub.leave(channel)
        if lease := self._leases.pop(reader, None):
            lease.end()
        if ended := self._when_ended.pop(reader, None):
            ended()
        if not self._count:
            self._emptied.unpark_all()

    def _cut_off(self, reader: Reader) -> None:
        """Too much is held for all of them, and it is the one that has stalled for longest."""
        log.debug("reader is ended: too much is held for those that do not read")
        self._end(reader, reset=True)

    def _fail(self, reader: Reader, error: Exception) -> None:
        """An error of ours ends one stream."""
        self._failed += 1
        log.error("event stream failed error=%r", error)
        log.debug("event stream failed", exc_info=error)
        self._end(reader, reset=True)

    # --- listen ---

    async def _listen(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, event in self._epoll.poll(0, EVENTS_MAX):
                reader = self._readers[fd]
                if reader is None:
                    continue  # ended by what came before it in this list
                try:
                    self._on_event(reader, event)
                except Exception as error:  # noqa: BLE001  it ends here, logged
                    self._fail(reader, error)

    def _on_event(self, reader: Reader, event: int) -> None:
        if event & _GONE:
            self._end(reader)
            return
        if event & select.EPOLLIN:
            self._ignore(reader)
        if event & select.EPOLLOUT and reader.state in (STALLED, PARTING):
            self._go_on(reader)

    def _ignore(self, reader: Reader) -> None:
        """Read what a client sends that should only listen; after a while, do not even that."""
        try:
            data = os.read(reader.fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(reader)
            return
        before = _mask(reader)
        reader.ignored_bytes += len(data)
        if (after := _mask(reader)) != before:
            self._epoll.modify(reader.fd, after)

    # --- the log ---

    async def _read_log(self) -> None:
        """One worker: a page for the first in the queue, which then goes to its end."""
        while True:
            while not self._queue:
                await self._queued.park()
            reader = self._queue.popleft()
            subscription = reader.subscription
            if reader.state != QUEUED or subscription is None:
                continue  # it has left, or was told to
            try:
                async with self._replica.log_readers:
                    page = await subscription.read_log()
                if reader.state == QUEUED:
                    self._give(reader, subscription, page)
            except Exception as error:  # noqa: BLE001  it ends here, logged
                self._fail(reader, error)

    def _give(self, reader: Reader, subscription: Subscription, page: Batch | bytes | None) -> None:
        if isinstance(page, bytes):
            taken = self._send(reader, sse.chunk(page))
        else:
            taken = page is None or self._send_batch(reader, page)
        if taken:
            self._resume(reader, subscription)

    async def _reach(self) -> None:
        """Readers that come from a node that is further: wait until this one is there, too."""
        while True:
            while not self._ahead:
                await self._went_ahead.park()
            asking = list(self._ahead)
            now = trio.current_time()
            answered = False
            with trio.move_on_at(max(self._ahead[asking[0]], now + REACH_SECONDS_MIN)):
                try:
                    await self._replica.read_barrier()
                    answered = True  # all that was ever acknowledged is here
                except RequestError:  # no leader tells, for now
                    await trio.sleep(REACH_AGAIN_SECONDS)
            for reader in asking:
                due = self._ahead.get(reader)
                if due is not None and (answered or due <= trio.current_time()):
                    self._reached(reader)

    def _reached(self, reader: Reader) -> None:
        del self._ahead[reader]
        subscription = reader.subscription
        assert subscription is not None
        assert subscription.ahead is not None
        gap = subscription.reached(subscription.ahead)
        if gap is None or self._send(reader, sse.chunk(gap)):
            self._resume(reader, subscription)

    # --- tend ---

    def _turn(self, reader: Reader, due: float) -> None:
        """Look after it at ``due``."""
        tick = math.ceil(due / TICK_SECONDS)
        readers = self._wheel.get(tick)
        if readers is None:
            self._wheel[tick] = [reader]
            self._wheel_begins.unpark_all()
        else:
            readers.append(reader)

    async def _tend(self) -> None:
        while True:
            while not self._wheel:
                await self._wheel_begins.park()
            tick = min(self._wheel)
            await trio.sleep_until(tick * TICK_SECONDS)
            await self._tend_all(self._wheel.pop(tick))

    async def _tend_all(self, readers: Sequence[Reader]) -> None:
        turns = _Turns()
        for reader in readers:
            if reader.state != ENDED:
                try:
                    self._tend_one(reader, trio.current_time())
                except Exception as error:  # noqa: BLE001  it ends here, logged
                    self._fail(reader, error)
            await turns.give()

    def _tend_one(self, reader: Reader, now: float) -> None:
        if now >= reader.ends_at:
            self._dismiss(reader, "expired")
            if reader.state != ENDED:
                self._turn(reader, reader.ends_at)
            return
        age = self._silent_seconds(reader, now)
        if age >= self._options.dead_reader_seconds:
            self._dead += 1
            log.debug("reader is dead seconds=%.0f", age)
            self._end(reader, reset=True)
            return
        channel = reader.channel
        due = min(now + self._period, reader.ends_at)
        if reader.state == LEVEL and reader.place.offset == channel.end:
            wrote_at = reader.wrote_at
            if reader.place is channel.place:
                wrote_at = max(wrote_at, channel.flushed_at)
            if now - wrote_at >= self._options.heartbeat_seconds:
                self._beat(reader)
                wrote_at = reader.wrote_at = now
            due = min(due, wrote_at + self._options.heartbeat_seconds)
        if reader.asked_at < math.inf:
            due = min(due, now + max(self._options.dead_reader_seconds - age, ANSWER_SECONDS))
        self._turn(reader, max(due, now + TICK_SECONDS))

    def _beat(self, reader: Reader) -> None:
        """A heartbeat. It has had all there is, so its cursor may move to where the node is."""
        position = event_id(self._hub.epoch, self._hub.position)
        self._send(reader, sse.chunk(sse.heartbeat(position)))

    def _silent_seconds(self, reader: Reader, now: float) -> float:
        """For how long its kernel has owed us a sign of life; 0 if it owes none.

        What is sent, or a probe of a closed window, is answered at once by the
        kernel of any client that is there, whether its program reads or not. But
        the probes of a reader that has not read for long lie two minutes apart,
        and one of them may be lost. So a silence counts if it has lasted since an
        earlier look, and what was sent into it after that look had time to be answered.
        """
        silence = find_silence(reader.fd)
        if silence is None:
            reader.asked_at = math.inf
        elif reader.asked_at == math.inf or silence.seconds < now - reader.asked_at:
            reader.asked_at = now  # this is the first look, or it has answered since
        elif now - reader.asked_at > silence.asked_seconds + TICK_SECONDS > ANSWER_SECONDS:
            return silence.seconds
        return 0


class _Turns:
    """Lets other tasks run when this one has had its time: about as long as they had before.

    So whoever keeps the node busy, slow clients for one, cannot have more than
    half of it while there is something to write.
    """

    def __init__(self) -> None:
        self._seconds = TURN_SECONDS
        self._due = perf_counter() + TURN_SECONDS

    def begin(self) -> None:
        """There is something to write; nothing has been written yet."""
        self._due = perf_counter() + self._seconds

    async def give(self) -> None:
        given = perf_counter()
        if given > self._due:
            await trio.lowlevel.checkpoint()
            now = perf_counter()
            self._seconds = min(max(now - given, TURN_SECONDS), TURN_SECONDS_MAX)
            self._due = now + self._seconds


def _mask(reader: Reader) -> int:
    """What the epoll set is to tell of it."""
    mask: int = select.EPOLLRDHUP
    if reader.ignored_bytes < IGNORED_BYTES_MAX:
        mask |= select.EPOLLIN
    if reader.state in (STALLED, PARTING):
        mask |= select.EPOLLOUT
    return mask


class Silence(NamedTuple):
    """The peer of a TCP socket has not answered what was sent to it last."""

    seconds: float  # since it was heard of
    asked_seconds: float  # since something was sent


def find_silence(fd: int) -> Silence | None:
    """What the kernel knows. None: no answer is owed."""
    try:
        outgoing = fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))  # not sent, or not acknowledged
        if not any(outgoing):
            return None
        info = _borrowed(fd, lambda tcp: tcp.getsockopt(*_GET_TCP_INFO))
        probes, unacked, sent_ms, heard_ms = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return None  # no TCP socket, or not for long
    if probes >= PROBES_MIN:
        return Silence(heard_ms / 1000, ANSWER_SECONDS)  # when is not told; by the next look
    return Silence(heard_ms / 1000, sent_ms / 1000) if unacked and sent_ms < heard_ms else None


def _close(fd: int, *, reset: bool) -> None:
    with suppress(OSError):
        if reset:
            _borrowed(fd, lambda tcp: tcp.setsockopt(*_RESET_ON_CLOSE))
    with suppress(OSError):
        os.close(fd)


def _borrowed(fd: int, call: Callable[[socket.socket], T]) -> T:
    """Call with a socket object for a moment: none is kept for a reader."""
    tcp = socket.socket(fileno=fd)
    try:
        return call(tcp)
    finally:
        tcp.detach()
