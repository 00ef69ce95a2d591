"""A client that publishes or subscribes: its requests are answered where they arrive.

    Door ── Publisher ── Publishing, Streams ── Broker
              │   ▲           └── a stream's socket ──▶ Fanout
     anything │   │ a publish or a stream, when nothing else is under way
         else ▼   │
            Connection ── Hypercorn's protocol, Quart

One task reads, publishes, writes, and reads again. It takes a request only when
the whole of its head is there and is an ordinary publish in the strict form, or
asks for an event stream (head.py); with that, the socket is the fan-out's and
the task ends. At the first that is not, it stops before it and gives back every
byte from there on, so that Connection begins at a request's first byte. That one
gives the connection back in the same way. The two never share a request, and no
byte of a body is ever taken for one.

Waiting costs one system call when there is something to read, and an answer is
one plain write. Deadlines are numbers, not cancel scopes: ``due`` says until
when the client may keep us waiting, and the door looks through all of them when
the nearest is over. It gives up only on a client that is waited for, never on a
publish that is under way.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import Final, NamedTuple, NoReturn

import trio

from repl_broker.trace import CURRENT, Request
from repl_broker.web.head import (
    EVENTS_BEGINS,
    HEAD_ENDS,
    EventsHead,
    PublishHead,
    forwarded_in,
    head_end,
    read_head,
)
from repl_broker.web.publishing import Publishing
from repl_broker.web.shell import Answer
from repl_broker.web.streams import Streams
from repl_broker.web.tcp import READ_BYTES, Discards, Linger, Transport, discard

__all__ = ["Patience", "Publisher", "Rest"]

LARGE_READ_BYTES: Final = 256 << 10  # of a body, at a time: each costs a turn of the event loop
SHORT_HEAD_BYTES: Final = 4096  # of a stream that may be opened before there is a task for it


class Patience(NamedTuple):
    """How long a client may take, and how much it may send in vain; see DoorOptions."""

    header_seconds: float
    idle_seconds: float
    header_bytes_max: int
    linger: Linger
    discards: Discards


class Rest(NamedTuple):
    """What another is to go on with: bytes that begin with a request, and its time."""

    data: bytes
    header_due: float  # by Trio's clock: until then its head must be complete


class _OverError(Exception):
    """The client has left, or nothing more is wanted of it."""


class Publisher:
    """One connection, for as long as nothing but publishes comes. Made when it is accepted.

    ``due`` is infinite while the node, not the client, is the one to act.
    """

    def __init__(
        self,
        transport: Transport,
        publishing: Publishing,
        streams: Streams | None,
        patience: Patience,
        peer: str,
        data: bytes = b"",
    ) -> None:
        """``data`` is what has been read already, on a connection that comes back."""
        self.due = math.inf
        self.transport = transport
        self.peer = peer
        self._stopping = False
        self._leaves = False  # the next answer is to say that it is the last here
        self._fd = transport.socket.fileno()  # nobody closes it while this task runs
        self._publishing = publishing
        self._streams = streams
        self._patience = patience
        self._data = data  # read, from …
        self._at = 0  # … here on not yet used
        self._began: float | None = trio.current_time()  # the present request; see _head_due
        self._head: PublishHead | None = None  # of the request whose body is awaited
        self._refused: tuple[EventsHead, Answer] | None = None  # what is still to be answered
        self.request = Request(base=publishing.base.path)
        self._own_client = publishing.base.proxies.client(None, transport.peer[0])
        self._rested_at = trio.current_time()  # the last time that it began to wait for a request
        self._cut = False
        self._lent = False  # its place is that of a client of a proxy, for the present request
        self._opens = False  # a stream, when it is its turn
        self._lingers = False  # all is said, and what the client still sends is read in vain
        self._life = trio.CancelScope()

    def opens_stream(self) -> bool:
        """Open the stream that the client may have asked for already, as readers do.

        True: the socket is the fan-out's, and there is nothing to run. So most
        streams do without a task. Call it before ``run``, or not at all.
        """
        self._data = self._receive_now()
        if not self._data.startswith(EVENTS_BEGINS):
            return False
        end = self._data.find(HEAD_ENDS)
        head = None if not 0 <= end <= SHORT_HEAD_BYTES else self._take_head(end)
        if not isinstance(head, EventsHead):
            return False
        self._begin(head)
        assert self._streams is not None, "else none is read"
        refused = self._streams.open(head, self.transport, self.peer, self.request.client)
        if refused is None:
            return True
        self._refused = head, refused
        return False

    async def run(self) -> Rest | None:
        """Serve. The rest, if there is any, is another's to serve; else the connection is closed,
        or has become a reader of the fan-out's.

        When cancelled, the caller resets the connection.
        """
        CURRENT.set(self.request)
        rest = await self._run()
        CURRENT.set(None)  # not after an error: the line that tells of it is that request's
        return rest

    async def _run(self) -> Rest | None:
        try:
            with self._life:
                return await self._serve()
            self.due = math.inf
            if self._cut:
                self.transport.abort()
            else:
                await self._give_up()
        except _OverError:
            pass
        self.transport.close()
        return None

    def give_up(self) -> None:
        """The client is not waited for any longer. Only while ``due`` is finite."""
        self._life.cancel()

    def close_if_idle(self) -> None:
        """Close now, unless a request is under way or has begun to arrive; then after it."""
        self._stopping = self._leaves = True
        if self.due < math.inf and not self._pending() and not self.transport.has_come:
            self.give_up()

    def leave(self) -> None:
        """Have the next answer be the last, and say so; wait for a request as ever."""
        self._leaves = True

    def finish(self) -> None:
        """Close after the request that is under way."""
        self.close_if_idle()

    @property
    def rests_since(self) -> float | None:
        if self.due == math.inf or self._pending() or self.transport.has_come:
            return None
        return self._rested_at

    @property
    def waits_for_client(self) -> bool:
        return self.due < math.inf or self.transport.sending or self._lingers

    @property
    def only_reads(self) -> bool:
        return self._opens

    def cut_off(self) -> None:
        """Reset it: its place is for another. Only while it waits for its client, or reads."""
        if self.due < math.inf or self._opens:
            self._cut = True
            self._life.cancel()
        if self.due == math.inf:
            self.transport.abort()

    def _pending(self) -> bool:
        return self._head is not None or self._at < len(self._data)

    async def _serve(self) -> Rest | None:
        if self._refused is not None:
            await self._refuse(*self._refused)
        elif not self._data:
            self._data = self._receive_now() or await self._receive(self._head_due())
        while True:
            head = await self._read_head()
            if head is None:
                return self._rest()
            if isinstance(head, EventsHead):
                refused = await self._open(head)
                if refused is None:
                    return None
                await self._refuse(head, refused)
            else:
                self._begin(head)
                answer, follows = await self._publish(head)
                last = head.close or self._leaves or not follows
                await self._write(self._publishing.encode(head, answer, last=last))
                await self._go_on(last=last)

    def _begin(self, head: PublishHead | EventsHead) -> None:
        client = self._client_of(head)
        base = self._publishing.base
        path = (
            base.of(head.prefix, self.transport.peer[0]) if head.prefix is not None else base.path
        )
        self.request.begin(head.traceparent, path, client)
        if head.forwarded is not None:
            self._lend(client)

    def _lend(self, client: str) -> None:
        """The place is ``client``'s, until the request is answered."""
        place = self.transport.place
        if place is not None and place.proxied:
            place.count_for(client)
            self._lent = True

    def _client_of(self, head: PublishHead | EventsHead) -> str:
        if head.forwarded is None:
            return self._own_client
        return self._publishing.base.proxies.client(head.forwarded, self.transport.peer[0])

    async def _open(self, head: EventsHead) -> Answer | None:
        assert self._streams is not None, "else none is read"
        self._begin(head)
        self._opens = True
        refused = await self._streams.open_in_turn(
            head, self.transport, self.peer, self.request.client
        )
        self._opens = False
        return refused

    async def _refuse(self, head: EventsHead, refused: Answer) -> None:
        """Answer that there is no stream. One bad request after another takes turns."""
        assert self._streams is not None, "else none is read"
        last = head.close or self._leaves
        await trio.lowlevel.checkpoint()
        await self._write(self._streams.encode(head, refused, last=last))
        await self._go_on(last=last)

    async def _go_on(self, *, last: bool) -> None:
        """A request has been answered."""
        if last:
            await self._part()
        if self._lent:
            self._lent = False
            if self.transport.place is not None:
                self.transport.place.count_for()
        if self._at == len(self._data):
            await self._await_next()
        self._began = None

    async def _publish(self, head: PublishHead) -> tuple[Answer, bool]:
        """The answer, and whether another request may follow: not if the body was not read."""
        client = self.request.client
        share = self._publishing.share(head, client)
        refused = self._publishing.hold(head, self.peer, share)
        if refused is not None:
            await trio.lowlevel.checkpoint()
            return refused, self._skip_body(head)
        try:
            body = await self._read_body(head)
            return await self._publishing.answer(head, body, self.peer, client), True
        finally:
            self._publishing.release(head, share)

    def _skip_body(self, head: PublishHead) -> bool:
        """Pass over the body, if all of it is here."""
        if self._at + head.length <= len(self._data):
            self._at += head.length
            return True
        self._head = head
        return False

    async def _await_next(self) -> None:
        if self._stopping:
            raise _OverError
        self._rested_at = now = trio.current_time()
        if self.transport.place is not None:
            self.transport.place.rest()
        self._data, self._at = await self._receive(now + self._patience.idle_seconds), 0

    async def _read_head(self) -> PublishHead | EventsHead | None:
        """The next request; None when it is not one to be answered here."""
        while (end := self._data.find(HEAD_ENDS, self._at)) < 0:
            unfinished = self._data[self._at :]
            if len(unfinished) > self._patience.header_bytes_max:
                return None
            if unfinished[:1] < b"!" or head_end(unfinished):
                return None  # it is no request, or ends as none should: that is said at once
            # No reader ends a head here with one more byte, unless a line has just ended.
            self.transport.wake_at(1 if unfinished.endswith((b"\r", b"\n")) else 2)
            await self._read(self._head_due())
        self.transport.wake_at(1)
        return self._take_head(end)

    def _take_head(self, end: int) -> PublishHead | EventsHead | None:
        """The request whose HEAD_ENDS is at ``end``; None when it is not to be answered here."""
        end += len(HEAD_ENDS)
        if end - self._at > self._patience.header_bytes_max:
            return None
        head = read_head(self._data[self._at : end])
        if head is None:
            return None
        if isinstance(head, EventsHead):
            if self._streams is None or not self._streams.admits(head, self._client_of(head)):
                return None
        elif not self._publishing.admits(head):
            return None
        self._at = end
        return head

    async def _read_body(self, head: PublishHead) -> bytes:
        end = self._at + head.length
        if end <= len(self._data):
            body = self._data[self._at : end]
            self._at = end
            return body
        self._head = head
        received = await self._complete(head.length)
        self._head = None
        # What came with the last of it, behind the body, is the next request's. The body
        # itself is not kept twice: it was counted once.
        self._data, self._at = received[head.length :], 0
        return received[: head.length]

    async def _complete(self, size: int) -> bytes:
        """What comes from here on, once it is ``size`` bytes of a body, or more."""
        due = trio.current_time() + self._publishing.body_seconds
        received = bytearray(self._data[self._at :])
        while len(received) < size:
            missing = size - len(received)
            self.transport.wake_at(missing)
            received += await self._receive(due, min(max(READ_BYTES, missing), LARGE_READ_BYTES))
        self.transport.wake_at(1)
        return bytes(received)

    async def _read(self, due: float) -> None:
        """Add to what is not yet used."""
        data = await self._receive(due)
        self._data, self._at = self._data[self._at :] + data, 0

    def _receive_now(self) -> bytes:
        """What has come already: a client sends as soon as it is connected, as a rule."""
        with suppress(OSError):  # nothing, or receiving will tell
            return os.read(self._fd, READ_BYTES)
        return b""

    async def _receive(self, due: float, bytes_max: int = READ_BYTES) -> bytes:
        """What the client sends next, if it comes before ``due``. Raises _OverError."""
        while True:
            self.due = due
            await trio.lowlevel.wait_readable(self._fd)
            if self._life.cancel_called:
                await trio.lowlevel.checkpoint()  # both came at once: it is over
            self.due = math.inf
            try:
                data = os.read(self._fd, bytes_max)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _OverError from error
            if not data:
                raise _OverError
            return data

    async def _write(self, answer: bytes) -> None:
        try:
            sent_bytes = os.write(self._fd, answer)
        except BlockingIOError:
            sent_bytes = 0
        except OSError as error:
            raise _OverError from error
        if sent_bytes < len(answer):
            try:
                await self.transport.send_all(answer[sent_bytes:])
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _OverError from error

    def _rest(self) -> Rest:
        self.transport.wake_at(1)
        return Rest(self._data[self._at :], self._head_due())

    def _head_due(self) -> float:
        """Until when the head may take. Asked first when the first bytes have come."""
        if self._began is None:
            self._began = trio.current_time()
        return self._began + self._patience.header_seconds

    async def _give_up(self) -> None:
        """The client has kept us waiting for too long, or the node stops while it is idle."""
        self.transport.wake_at(1)
        if self._head is not None:
            answer = self._publishing.late(self._head, self.peer)
            await self._write(self._publishing.encode(self._head, answer, last=True))
        elif self._pending():
            self.request.begin(None, self._publishing.base.path)
            data = self._data[self._at :]
            forwarded = forwarded_in(data)
            self._lend(self._publishing.base.proxies.client(forwarded, self.transport.peer[0]))
            await self._write(self._publishing.late_head(self._patience.header_seconds, data))
        await self._part()

    async def _part(self) -> NoReturn:
        """Close, so that the client still gets what was sent to it."""
        if self._pending():
            with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                self.transport.send_eof()
                self._lingers = True
                await discard(self.transport, self._patience.linger, self._patience.discards)
        raise _OverError
