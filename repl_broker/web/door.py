"""The door: accepts connections, speaks HTTP/1.1, runs the web application.

Hypercorn's own accept loop lets any exception of one connection end the whole
process, and six requests that need no password raise one (ECOSYSTEM section 1).
A daemon that carries consensus cannot stand on that, so the loop and what
Hypercorn calls ``TCPServer`` are written here, around its HTTP/1.1 protocol:

    Door         accepts, counts, caps, stops; one nursery holds every connection
    Publisher    one client, as long as it only publishes: answered in place (publisher.py)
    Streams      event streams: opened in place, then the socket is the fan-out's (streams.py)
    Connection   one client: a task that reads, and one task per request that runs the app
    _Protocol    Hypercorn's HTTP/1.1 state machine, less HTTP/2 and WebSocket
    Transport    the TCP socket (tcp.py), on which a write without progress is a broken one

Three rules keep it standing:

1. Whatever escapes a connection ends that connection, is logged in one line and
   counted. ``Cancelled`` alone passes.
2. Every wait has a limit from DoorOptions, except the application's own.
3. What the protocol reports of itself (idle, closed) is taken note of without a
   checkpoint. Quart cancels a request as soon as it is told that the response
   has ended, that is, from inside these reports: an ``await`` in them would be
   where the keep-alive timer gets lost.

HTTP/2 is refused, WebSocket too: neither Hypercorn's ``ProtocolWrapper`` nor its
``WSStream`` is ever reached. HTTP/2 belongs to a proxy in front of the node.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import re
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, cast
from urllib.parse import urlsplit

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    Scope,
    TaskGroup,
)

from repl_broker.certificates import alert_of
from repl_broker.errors import PROBLEMS, ConfigError
from repl_broker.fanout import BEHIND
from repl_broker.stalled import Stalled
from repl_broker.trace import CURRENT, Request, current_id
from repl_broker.web import cors
from repl_broker.web.access import request_of
from repl_broker.web.base import Base
from repl_broker.web.body import ASK_FOR_BODY, body_is_late
from repl_broker.web.chunks import Chunks
from repl_broker.web.counts import Counted
from repl_broker.web.crowd import Crowd
from repl_broker.web.head import (
    FIELDS_MAX,
    begins_in_place,
    coming_bytes,
    forwarded_in,
    has_too_many_fields,
    head_end,
    is_plain,
)
from repl_broker.web.publisher import Patience, Publisher, Rest
from repl_broker.web.publishing import Publishing
from repl_broker.web.streams import Streams
from repl_broker.web.tcp import READ_BYTES, Discards, Linger, Transport, discard, prepare

__all__ = ["QUART_ONLY", "Door", "DoorOptions", "DoorStatistics", "open_listeners"]

logger = logging.getLogger(__name__)

QUART_ONLY: Final = "REPL_BROKER_TEST_QUART_ONLY"  # an environment variable, for tests
# What a client may send ahead while its earlier request is being answered.
_READ_AHEAD_BYTES_MAX: Final = 64 * 1024
# A body up to this is waited for before the application begins.
_GATHERED_BYTES_MAX: Final = 16 * 1024
# Body parts, of READ_BYTES at most, that wait for the application.
_INBOX_PARTS_MAX: Final = 4
FREE_PORT_ATTEMPTS: Final = 10  # to find a port that is free for every address of a host
_ACCEPT_RETRY_SECONDS: Final = 0.1
_LOOK_SECONDS_MIN: Final = 0.1  # between two looks through all Publishers for those that are late
_GIVEN_UP_TOGETHER_MAX: Final = 8  # of those, until others have a turn
# Accepting takes this part of the time at most, so that it holds up no good reader, but so many
# come in at a time all the same.
_ACCEPT_SHARE: Final = 0.1
_ACCEPTED_TOGETHER_MIN: Final = 10
_ACCEPTED_LAST_MAX: Final = 1024  # as many as the kernel holds for a listener (daemon.BACKLOG)
_ACCEPT_SECONDS_MAX: Final = 0.003  # at a time
_EVERY_IPV4: Final = (socket.AF_INET, "0.0.0.0")  # noqa: S104  # nosec B104  # where asked for
_AUTHORITY: Final = re.compile(rb"[^/?#]*+")
_READING: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})  # methods
# What h11 says of requests that it cannot parse, and what we do.
_COMPLAINTS: Final = {
    "Missing mandatory Host: header": "The Host field is missing; HTTP/1.1 requires it (RFC 9112).",
    "Found multiple Host: headers": "The Host field is given more than once; give it once.",
}
# Failures to accept that lie closer together than this are one burst, logged once.
_ACCEPT_BURST_SECONDS: Final = 10.0
_RETRY_AFTER_SECONDS: Final = (3, 8)
_ENDED_FOR_ONE_MAX: Final = 2  # others, for one that comes: more than one after a lower limit
_STALLED_BYTES_MAX: Final = 256 << 20  # where no fan-out says


@dataclass(frozen=True, slots=True)
class DoorOptions:
    """The limits of a door; each ends one connection and nothing else."""

    connections_max: int = 10_000
    """Open connections; the next one has another's place (crowd.py), or is answered 429."""
    connections_per_address: int = 0
    """… of one client address, or /64 network of IPv6, but a trusted proxy's; 0: any number."""
    settled_seconds: float = 1.0
    """For which a connection must have rested before another can have its place."""
    refusals_max: int = 128
    """Connections being answered 429 at one time; beyond it they are closed unanswered."""
    backlog: int = 1024
    """Connections that the kernel keeps until they are accepted."""
    header_bytes_max: int = 64 * 1024
    """An incomplete request line with its header; beyond it, 431."""
    header_timeout_seconds: float = 10.0
    """From a request's first byte (or from accept) until its header is complete; then 408."""
    body_timeout_seconds: float = 10.0
    """From the header until a body is complete that is short enough to be waited for; then 408."""
    idle_timeout_seconds: float = 95.0
    """Between a response and the first byte of the next request.

    Longer than those who keep connections do (Go 90 s; ALB and nginx 60 s), so that they are
    the ones who close: a request that meets a close is lost, or sent twice.
    """
    write_timeout_seconds: float = 10.0
    """For which a write may make no progress at all; then the connection is reset.

    Event streams are exempt: a reader that stalls costs its cursor, not its
    connection, and is served from the log when it reads again (DESIGN section 2).
    """
    tls_handshake_timeout_seconds: float = 10.0
    """From accept until TLS is established."""
    linger_timeout_seconds: float = 2.0
    """A client that has its answer, and still sends, is read from until it pauses for so long, …"""
    linger_total_seconds: float = 20.0
    """… or this is over: else a reset makes its kernel throw the answer away."""
    linger_bytes_max: int = 64 * 1024 * 1024
    """How much of it is discarded."""
    answer_in_place: bool = field(default_factory=lambda: QUART_ONLY not in os.environ)
    """Publishes and event streams do without Quart. Off for tests only: answers are the same."""

    def patience(self, discards: Discards) -> Patience:
        """The limits that concern a Publisher."""
        return Patience(
            self.header_timeout_seconds,
            self.idle_timeout_seconds,
            self.header_bytes_max,
            self.linger,
            discards,
        )

    @property
    def linger(self) -> Linger:
        """The limits of what is read in vain."""
        return Linger(self.linger_bytes_max, self.linger_timeout_seconds, self.linger_total_seconds)


@dataclass(frozen=True, slots=True)
class DoorStatistics:
    """What a door has done so far. accepted = refused + connections + those that ended."""

    connections: int
    """Open now."""
    accepted: int
    """Accepted since the start, the refused ones included."""
    refused: int
    """Turned away because ``connections_max`` was reached."""
    failed: int
    """Ended by an exception, of the application's or of the protocol's."""
    lagging: int = 0
    """Event streams that are behind: they wait to be writable, or for the log."""
    unsent_bytes: int = 0
    """What is held for those that are not writable."""
    dead: int = 0
    """Event streams that were ended since the client's kernel had vanished."""
    requests: tuple[tuple[Counted, int], ...] = ()
    """How many were answered in place, by route and status."""
    connections_max: int = 0
    """How many are taken."""
    refused_by_address: int = 0
    """Of the refused, those that were too many of one address."""
    stalled_bytes: int = 0
    """Held for streams whose clients do not read on; what they share counts once."""
    cut_off: int = 0
    """Event streams that were ended since that was too much."""
    made_room: int = 0
    """Connections that were ended since others were to have their places."""
    behind_max: int = 0
    """Messages that one event stream has not been sent yet."""
    behind: tuple[int, ...] = (0,) * len(BEHIND)
    """Event streams with so many or more, for each of BEHIND."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """An answer that the door gives by itself (RFC 9457)."""

    status: int
    code: str
    title: str
    detail: str

    @classmethod
    def known(cls, code: str, detail: str) -> _Problem:
        status, title = PROBLEMS[code]
        return cls(status, code, title, detail)

    def headers(self, base: str) -> list[tuple[bytes, bytes]]:
        """As those of problems that others tell (shell.py), less the date and the close."""
        request_id = current_id() or Request().id  # without one no request has been read
        return [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(self.body(base))),
            (b"cache-control", b"no-store"),
            (b"x-request-id", request_id.encode("ascii")),
            (b"x-content-type-options", b"nosniff"),
        ]

    def body(self, base: str) -> bytes:
        """``base`` is the path below which the client sees the node."""
        fields = {
            "type": f"{base}/docs#{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        return json.dumps(fields, separators=(",", ":")).encode()


def _is_event_stream(response: Response) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in response.headers
    )


def _malformed(detail: str) -> _Problem:
    return _Problem(400, "malformed_request", "The request is not valid HTTP/1.1", detail)


_Fields = list[tuple[bytes, bytes]]  # of a header


class _ClientGoneError(OSError):
    """What an application gets from ``send`` once nobody can read it (ASGI 2.4: an OSError)."""


class _RefusedError(Exception):
    """A request that the door answers by itself, and closes the connection on."""

    def __init__(self, problem: _Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Door:
    """Accepts on ``listeners`` and runs ``app`` for each request, until stopped.

    Ordinary publishes are answered by ``publishing`` instead, if it is given, and
    event streams are opened by ``streams``, whose fan-out runs as long as the door. With
    an ``ssl_context`` every connection is TLS, with the context that this gives when
    the connection begins, and all of it the app's. The door owns the listeners and closes
    them. It sends no lifespan events: starting and stopping the application is
    the caller's. What it refuses by itself it counts in ``refusals``, by code; pages of
    ``origins`` can read it (cors.py).
    """

    def __init__(
        self,
        app: ASGIFramework,
        listeners: Sequence[trio.SocketListener],
        options: DoorOptions,
        *,
        publishing: Publishing | None = None,
        streams: Streams | None = None,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
        refusals: Counter[str] | None = None,
        base: Base | None = None,
        origins: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.app = app
        self._origins = origins
        self.base = base or Base()
        self.options = options
        self.ssl_context = ssl_context
        self.addresses = tuple(_address(one.socket.getsockname()) for one in listeners)
        self.stopping = False
        self.leaving = False  # each answer says that it is the last of its connection
        self.hypercorn_config = _hypercorn_config(options)
        self._listeners = tuple(listeners)
        for listener in listeners:
            prepare(listener.socket)  # what it accepts inherits that
        in_place = options.answer_in_place and ssl_context is None
        self._publishing = publishing if in_place else None
        self._streams = streams if in_place else None
        self._fanout = None if self._streams is None else self._streams.fanout
        self.stalled = Stalled(_STALLED_BYTES_MAX) if streams is None else streams.fanout.stalled
        self.refusals = Counter() if refusals is None else refusals
        self.some_together = trio.CapacityLimiter(_GIVEN_UP_TOGETHER_MAX)
        """For what would hold up good clients if it was done for all together."""
        self.discards = Discards()
        """What is read in vain of all clients."""
        self.beginning = trio.StrictFIFOLock()
        """An application begins on one request in each turn of the event loop: on all that have
        come in one moment together it would hold up the publishes beside them."""
        self._life = trio.CancelScope()
        self._clients: trio.Nursery | None = None
        self._open: set[Connection | Publisher] = set()
        self._crowd = Crowd()
        self._made_room = 0
        self._refused_by_address = 0
        self._refusals = 0
        self._accepted = 0
        self._refused = 0
        self._failed = 0
        self._accept_failed_at = -_ACCEPT_BURST_SECONDS

    def take_options(self, options: DoorOptions) -> None:
        """Hold connections that come from now on to other limits."""
        self.options = options
        self.hypercorn_config = _hypercorn_config(options)

    @property
    def port(self) -> int:
        """The TCP port of the first listener: the kernel's choice if 0 was asked for."""
        address = self.addresses[0]
        assert address is not None, "the listener is not a TCP one"
        return address[1]

    def takes_back(self, data: bytes | bytearray) -> bool:
        """Whether the request that begins with ``data`` is better answered in place."""
        return self._publishing is not None and begins_in_place(bytes(data))

    @property
    def connections(self) -> int:
        """Open connections, those being refused not counted."""
        return len(self._open) + (0 if self._fanout is None else len(self._fanout))

    def statistics(self) -> DoorStatistics:
        """Counts at this moment, for metrics."""
        in_place = (self._publishing, self._streams)
        requests = tuple(each for part in in_place if part for each in part.requests.items())
        failed, lagging, unsent_bytes, dead = self._failed, 0, 0, 0
        behind_max, behind = 0, (0,) * len(BEHIND)
        if self._fanout is not None:
            found = self._fanout.statistics()
            _, lagging, unsent_bytes, dead, streams_failed, behind_max, behind = found
            failed += streams_failed
        return DoorStatistics(
            self.connections,
            self._accepted,
            self._refused,
            failed,
            lagging,
            unsent_bytes,
            dead,
            requests,
            self.options.connections_max,
            self._refused_by_address,
            self.stalled.bytes,
            self.stalled.ended,
            self._made_room,
            behind_max,
            behind,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve. Returns after ``stop``, when the last connection has ended or been aborted.

        Call it once. Cancelling it aborts every connection at once.
        """
        with self._life:
            try:
                async with trio.open_nursery() as beside:
                    if self._publishing is not None:
                        beside.start_soon(self._watch, self._publishing)
                    if self._fanout is not None:
                        await beside.start(self._fanout.run)
                    async with trio.open_nursery() as nursery:
                        self._clients = nursery
                        for listener in self._listeners:
                            nursery.start_soon(self._accept, listener, nursery)
                        task_status.started()
                    if self._fanout is not None:
                        await self._fanout.wait_empty()
                    beside.cancel_scope.cancel()
            finally:
                self._close_listeners()

    def leave(self) -> None:
        """Serve on, and have clients go elsewhere: each answer says that it is the last.

        Whoever keeps connections for later does not use one then that ``stop`` closes.
        """
        self.leaving = True
        for client in self._open:
            if isinstance(client, Publisher):
                client.leave()

    def stop(self, grace_seconds: float) -> None:
        """Let nobody in any more, and let those inside finish for ``grace_seconds``.

        Who is connected already, and waits to be accepted, is inside: the kernel would reset
        what they have sent. Idle connections close at once. One with a request under way
        closes after its response, which says ``Connection: close`` if its header is not out
        yet. What is left when the time is over is cancelled and reset. Event
        streams are busy until the application ends them, so it should. A second
        call can shorten the time, not extend it.
        """
        self.stopping = True
        if self._clients is not None:
            for listener in self._listeners:
                self._admit_last(listener, self._clients)
        self._close_listeners()
        for client in list(self._open):
            client.close_if_idle()
        self._life.deadline = min(self._life.deadline, trio.current_time() + grace_seconds)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.socket.close()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        if listener.socket.fileno() < 0:  # stopped before it ran
            return
        at_once = socket.socket(fileno=listener.socket.fileno())  # the same one
        ended = perf_counter()
        try:
            while True:
                try:
                    stream = await listener.accept()
                except trio.ClosedResourceError:
                    if self.stopping:
                        return
                    raise
                except OSError as error:
                    # Out of file descriptors or memory, most likely. The connection
                    # stays in the backlog, so accept would fail again right away.
                    self._log_accept_failure(error)
                    await trio.sleep(_ACCEPT_RETRY_SECONDS)
                else:
                    began = perf_counter()
                    seconds = min((began - ended) * _ACCEPT_SHARE, _ACCEPT_SECONDS_MAX)
                    self._admit(stream.socket, nursery)
                    self._admit_waiting(at_once, nursery, began + seconds)
                    ended = perf_counter()
        finally:
            at_once.detach()

    def _admit_waiting(self, listener: socket.socket, nursery: trio.Nursery, until: float) -> None:
        """Those who came together come in together: to wait for each costs as much as it does."""
        with suppress(OSError):  # nobody is left; what else it may be shows when one is waited for
            count = 1
            while count < _ACCEPTED_TOGETHER_MIN or perf_counter() < until:
                accepted, _ = listener.accept()
                self._admit(trio.socket.from_stdlib_socket(accepted), nursery)
                count += 1

    def _admit_last(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Those who wait to be accepted when the listener is about to close."""
        if listener.socket.fileno() < 0:  # a second stop
            return
        at_once = socket.socket(fileno=listener.socket.fileno())
        try:
            with suppress(OSError):  # nobody is left
                for _ in range(_ACCEPTED_LAST_MAX):
                    accepted, _ = at_once.accept()
                    self._admit(trio.socket.from_stdlib_socket(accepted), nursery)
        finally:
            at_once.detach()

    def _log_accept_failure(self, error: OSError) -> None:
        now = trio.current_time()
        if now - self._accept_failed_at >= _ACCEPT_BURST_SECONDS:
            logger.error(
                "cannot accept connections for now error=%r connections=%d retry_seconds=%s",
                error.strerror or str(error),
                self.connections,
                _ACCEPT_RETRY_SECONDS,
            )
        self._accept_failed_at = now

    def _admit(self, tcp_socket: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        self._accepted += 1
        peer = _peer_address(tcp_socket)
        if peer is None:  # nobody is there: what it has sent would count for nobody
            tcp_socket.close()
            return
        transport = Transport(tcp_socket, peer, self.options.write_timeout_seconds)
        refusal = self._objection(transport)
        if refusal is None:
            client = self._receive(transport)
            if not self._opens_stream(client):
                self._let_in(client)
                nursery.start_soon(self._serve, client)
            return
        self._refused += 1
        self.refusals[refusal.code] += 1
        if self._refusals < self.options.refusals_max:
            self._refusals += 1
            nursery.start_soon(self._refuse, transport, refusal)
        else:
            transport.abort()

    def _objection(self, transport: Transport) -> _Problem | None:
        """Why a connection is not taken; None if it is, and counts from now on."""
        options, host = self.options, transport.peer[0]
        proxies = self.base.proxies
        address, trusted = proxies.key(host), proxies.trusts(host)
        most = 0 if trusted else options.connections_per_address
        if most and self._crowd.of(address) >= most:
            self._refused_by_address += 1
            return _too_many_connections(
                f"The node serves {most} connections of one address at a time "
                "([limits] connections_per_address); close some."
            )
        if not self._has_room(address, trusted=trusted):
            return _too_many_connections(
                f"The node serves {options.connections_max} connections at a time "
                "([limits] connections), and no other address has more than this one of those that "
                "could be ended for it; close some, or try another node, or later."
            )
        transport.place = self._crowd.enter(address, trusted=trusted)
        return None

    def _has_room(self, address: str, *, trusted: bool) -> bool:
        """For one more from there; somebody else may have lost a place."""
        options = self.options
        for _ in range(_ENDED_FOR_ONE_MAX):
            if len(self._crowd) < options.connections_max:
                return True
            now = trio.current_time()
            if not self._crowd.make_room(address, now, options.settled_seconds, trusted=trusted):
                return False
            self._made_room += 1
        return len(self._crowd) < options.connections_max

    def _let_in(self, client: Connection | Publisher) -> None:
        self._open.add(client)
        if (place := client.transport.place) is not None:
            place.guest = client
            if place.is_given_up:
                client.finish()

    def _receive(self, transport: Transport, data: bytes = b"") -> Connection | Publisher:
        if self._publishing is None:
            return Connection(self, transport)
        transport.write_timeout_seconds = self.options.write_timeout_seconds  # no stream any more
        peer = _host_port(transport.peer)
        publisher = Publisher(
            transport,
            self._publishing,
            self._streams,
            self.options.patience(self.discards),
            peer,
            data,
        )
        if self.leaving:
            publisher.leave()
        if self.stopping:
            publisher.close_if_idle()  # which this one is not, but it is to know
        return publisher

    def _opens_stream(self, client: Connection | Publisher) -> bool:
        """Whether it needs no task: it has asked for a stream, and got it; or it has failed."""
        if isinstance(client, Connection):
            return False
        before = CURRENT.set(client.request)
        try:
            return client.opens_stream()
        except Exception as failure:  # noqa: BLE001  rule 1: it ends here, logged
            self.note_failure("connection failed peer=%s", (client.peer,), failure)
            client.transport.abort()
            return True
        finally:
            CURRENT.reset(before)

    async def _serve(self, client: Connection | Publisher) -> None:
        try:
            while (rest := await client.run()) is not None:
                self._open.remove(client)
                if isinstance(client, Publisher):
                    client = Connection(self, client.transport, rest)
                else:
                    client = self._receive(client.transport, rest.data)
                self._let_in(client)
        except* Exception as failure:  # noqa: BLE001  rule 1: it ends here, logged
            self.note_failure("connection failed peer=%s", (client.peer,), failure)
        finally:
            self._open.discard(client)
            client.transport.abort()

    async def _watch(self, publishing: Publishing) -> None:
        """Give up on the clients of Publishers that keep us waiting for too long.

        A wait that begins later than this looks is not over before the shortest
        of all limits is. Thousands of slow clients must not have it look all the
        time, nor end together at the cost of others: so each limit is late by
        _LOOK_SECONDS_MIN at most.
        """
        while True:
            options = self.options
            shortest = min(
                options.header_timeout_seconds,
                options.idle_timeout_seconds,
                publishing.body_seconds,
            )
            now = trio.current_time()
            nearest = now + shortest
            late = []
            for client in self._open:
                if isinstance(client, Publisher) and client.due < nearest:
                    if client.due <= now:
                        late.append(client)
                    else:
                        nearest = client.due
            for count, client in enumerate(late, 1):
                if client.due <= now:  # still
                    client.give_up()
                if not count % _GIVEN_UP_TOGETHER_MAX:
                    await trio.lowlevel.checkpoint()
            await trio.sleep_until(max(nearest, now + _LOOK_SECONDS_MIN))

    def note_failure(self, text: str, whom: tuple[str, ...], failure: BaseException) -> None:
        """Count and log, in one line, an exception that ended a connection. ``text`` has a
        place for each of ``whom``."""
        self._failed += 1
        first = next(_leaves(failure))
        reason = " ".join(f"{type(first).__name__}: {first}".split())
        logger.error(f"{text} error=%r", *whom, reason)
        logger.debug(text, *whom, exc_info=failure)

    async def _refuse(self, transport: Transport, problem: _Problem) -> None:
        """Answer 429 and read on for a moment, lest a reset overtakes the answer."""
        try:
            with trio.move_on_after(self.options.linger_timeout_seconds):
                stream: trio.abc.Stream = transport
                if self.ssl_context is not None:
                    stream = _server_side(transport, self.ssl_context())
                permission = self.permission(await self._asked_by(stream))
                await stream.send_all(_refusal(problem, self.base.path, permission))
                if stream is transport:
                    transport.send_eof()
                await discard(stream, self.options.linger, self.discards)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it did not wait for the answer
        finally:
            transport.close()
            self._refusals -= 1

    def permission(self, origin: str) -> _Fields:
        """What lets a page of ``origin`` read an answer, if it may."""
        fields = cors.permission(self._origins(), origin).items()
        return [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in fields]

    async def _asked_by(self, stream: trio.abc.Stream) -> str:
        """The origin of a request that is not taken; it is waited for only if it matters."""
        origins = self._origins()
        if not origins or "*" in origins:
            return ""
        data = b""
        with trio.move_on_after(self.options.linger_timeout_seconds / 2):
            while not head_end(data) and len(data) < self.options.header_bytes_max:
                more = await stream.receive_some(READ_BYTES)
                if not more:
                    break
                data += more
        return cors.origin_in(data)


class Connection:
    """One client: reads its requests, runs the application for each, and ends alone.

    The task of ``run`` reads; it alone closes. An application runs in a task of
    its own beside it, so that a client that leaves is noticed at once. A
    half-closed connection counts as left: on a stream that only the server
    writes to there is no other sign.
    """

    def __init__(self, door: Door, transport: Transport, rest: Rest | None = None) -> None:
        """``rest`` is what has been read already, on a connection that began elsewhere."""
        self._door = door
        self._options = door.options
        self._rest = rest
        self.transport = transport
        self._stream: trio.abc.Stream = transport
        self._write_lock = trio.Lock()
        # Its deadline is the one that now applies to what the client sends.
        self._reading = trio.CancelScope()
        self._requests: trio.Nursery
        # A request is under way: from its complete header to the end of its response.
        self._busy = False
        # Some of the next request is here: the header's time is running.
        self._begun = True
        # Nothing more is to be read, or to be written by an application.
        self._over = False
        # … since the client left, or will not take what is written.
        self._gone = False
        self._is_stream = False  # what is being answered is an event stream
        self._gathers = False  # a body is waited for
        self._says_no = False  # an answer of the door's own is on its way, and is the last
        self._finishing = False  # no request is wanted after that which is under way
        self._only_reads = False  # what is being answered changes nothing
        self.peer = _host_port(transport.peer)
        self._made: _Protocol | None = None
        self._rested_at = trio.current_time()

    @property
    def _protocol(self) -> _Protocol:
        """Made when it is needed: many clients never say as much."""
        if self._made is None:
            self._made = _Protocol(
                self,
                self._door.hypercorn_config,
                is_tls=self._door.ssl_context is not None,
                client=self.transport.peer,
                server=_address(self.transport.socket.getsockname()),
            )
        return self._made

    @property
    def stopping(self) -> bool:
        """No further request is wanted."""
        return self._door.stopping or self._finishing

    @property
    def leaving(self) -> bool:
        """An answer that begins now is the last, and is to say so."""
        return self._door.leaving or self.stopping

    async def run(self) -> Rest | None:
        """Serve the client until either side has enough, or an exception.

        Returns what is another's to serve, if it is; else the connection is
        closed. The caller resets what an exception leaves.
        """
        rest = None
        async with trio.open_nursery() as self._requests:
            with self._reading:
                rest = await self._read()
            if rest is None:
                await self._part()
        return rest

    def close_if_idle(self) -> None:
        """Close now, unless a request is under way or has begun to arrive."""
        if not (self._busy or self._input_pending or self.transport.has_come):
            self._end()

    def finish(self) -> None:
        """Close after the request that is under way."""
        self._finishing = True
        self.close_if_idle()

    @property
    def rests_since(self) -> float | None:
        if self._busy or self._over or self._input_pending or self.transport.has_come:
            return None
        return self._rested_at

    @property
    def waits_for_client(self) -> bool:
        if not self._busy or self._over or self._is_stream or self.transport.sending:
            return True
        return self._made is not None and self._made.awaits_body

    @property
    def only_reads(self) -> bool:
        return self._busy and self._only_reads

    def cut_off(self) -> None:
        """Reset it: its place is for another."""
        self._break_off()

    def note_refusal(self, code: str) -> None:
        """Count what the door refuses by itself."""
        self._door.refusals[code] += 1

    def permission(self, origin: str) -> _Fields:
        """What lets a page of ``origin`` read an answer, if it may."""
        return self._door.permission(origin)

    @property
    def base(self) -> Base:
        """Tells below which path the client sees the node."""
        return self._door.base

    def request_of(self, event: h11.Request) -> Request:
        """What the log and the answer are to know of it."""
        return request_of(event.headers, self.base, self.transport.peer[0])

    def begins(self, event: h11.Request) -> None:
        """The head of a request has come: until it is answered the place is its client's."""
        self._only_reads = event.method in _READING
        place = self.transport.place
        if place is not None and place.proxied:
            place.count_for(self.request_of(event).client)

    def lend(self, data: bytes) -> None:
        """As ``begins``, of a request that is not read further than this, nor will be."""
        place, host = self.transport.place, self.transport.peer[0]
        if place is not None and place.is_nobodys:
            place.count_for(self.base.proxies.client(forwarded_in(data), host))

    @contextmanager
    def saying_no(self) -> Iterator[None]:
        """Meanwhile an application that has not answered yet does not, and nothing is closed."""
        self._says_no = True
        try:
            yield
        finally:
            self._says_no = False

    def allow_stalls(self, allowed: bool) -> None:
        """Whether the client may leave the response that now begins unread for a while."""
        self._is_stream = allowed
        limit = math.inf if allowed else self._options.write_timeout_seconds
        self.transport.write_timeout_seconds = limit

    async def read_ahead(self) -> None:
        """Watch the client while its request is being answered; runs until cancelled.

        It only runs when more bytes have come behind the request. What comes is
        kept for later, up to _READ_AHEAD_BYTES_MAX; then reading pauses.

        Raises _ClientGoneError (or a stream's own error) when the client leaves.
        """
        ahead_bytes = 0
        while ahead_bytes < _READ_AHEAD_BYTES_MAX:
            data = await self._receive(READ_BYTES)
            if not data:
                raise _ClientGoneError("the client has closed the connection")
            ahead_bytes += len(data)
            self._protocol.keep(data)
        await trio.sleep_forever()

    async def protocol_send(self, event: Event) -> None:
        """Take what the protocol has for the client, or has to say of itself."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            if not self._says_no:
                self._end()
        elif isinstance(event, Updated):
            self._set_busy(not event.idle)

    async def spawn_app(
        self,
        app: AppWrapper,
        config: HypercornConfig,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start the application on a request (Hypercorn's ``TaskGroup``); return its inbox."""
        inbox = _Inbox()
        scope["state"][ASK_FOR_BODY] = self._protocol.ask_for_body
        self._requests.start_soon(self._run_app, scope, inbox, send)
        return inbox.put

    async def _read(self) -> Rest | None:
        """Feed the protocol. Ends with the client; cancelled when we have enough.

        A publish that comes while nothing is under way is not fed, but returned.
        """
        try:
            self._limit(self._options.tls_handshake_timeout_seconds)
            if self._door.ssl_context is not None:
                self._stream = _server_side(self.transport, self._door.ssl_context())
                await _shake_hands(self._stream)
            self._limit(self._options.header_timeout_seconds)
            if self._rest is not None:
                self._reading.deadline = self._rest.header_due
            while data := await self._receive(self._read_bytes()):
                if not self._busy and not self._begun:
                    self._begun = True
                    self._limit(self._options.header_timeout_seconds)
                    if self._door.takes_back(data):
                        return Rest(bytes(data), self._reading.deadline)
                if not self._busy and (self._made is None or not self._made.input_pending):
                    data = await self._gather(bytes(data))
                    if not data:
                        return None
                await self._protocol.handle(RawData(bytes(data)))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            logger.debug("client left peer=%s error=%r", self.peer, error)
        self._lose()
        return None

    async def _gather(self, data: bytes) -> bytes:
        """The request that begins with ``data``, with its body if that is short; b"" if it is late.

        While a client takes its time nothing is begun for it, which would cost
        many times as much.
        """
        missing = coming_bytes(data)
        if not 0 < missing <= _GATHERED_BYTES_MAX:
            return data
        self.lend(data)
        size = len(data) + missing
        self._reading.deadline = math.inf
        self._gathers = True
        with trio.move_on_after(self._options.body_timeout_seconds) as patience:
            while len(data) < size:
                if self._stream is self.transport:  # under TLS it is records that come
                    self.transport.wake_at(size - len(data))
                if not (more := await self._receive(READ_BYTES)):
                    raise trio.BrokenResourceError("the client has left within a request")
                data += more
        self.transport.wake_at(1)
        if patience.cancelled_caught:
            async with self._door.some_together:  # those that came together must not end together
                await trio.lowlevel.checkpoint()
            await self._protocol.refuse_unread(
                data,
                _Problem.known("request_timeout", body_is_late(self._options.body_timeout_seconds)),
            )
            return b""
        self._gathers = False
        return data

    async def _receive(self, bytes_max: int) -> bytes | bytearray:
        """What the client sent next: first the rest that came with the connection."""
        if self._rest is None:
            return await self._stream.receive_some(bytes_max)
        data, header_due = self._rest
        self._rest = Rest(data[bytes_max:], header_due) if len(data) > bytes_max else None
        return data[:bytes_max]

    @property
    def _input_pending(self) -> bool:
        if self._rest is not None or self._gathers:
            return True
        return self._made is not None and self._made.input_pending

    def _read_bytes(self) -> int:
        return READ_BYTES if self._busy else self._options.header_bytes_max

    def _limit(self, seconds: float) -> None:
        self._reading.deadline = trio.current_time() + seconds

    def _set_busy(self, busy: bool) -> None:
        """Note that a request begins or a response has ended. No checkpoint: see rule 3."""
        self._busy = busy
        if busy:
            self._reading.deadline = float("inf")
            return
        self._begun = self._input_pending
        self._rested_at, self._is_stream = trio.current_time(), False
        if (place := self.transport.place) is not None:
            place.count_for()
            place.rest()
        options = self._options
        self._limit(options.header_timeout_seconds if self._begun else options.idle_timeout_seconds)

    def _end(self) -> None:
        """Have the reading task close the connection. No checkpoint: see rule 3."""
        self._over = True
        self._reading.cancel()

    def _lose(self) -> None:
        """As _end, with nobody there to say good-bye to."""
        if not self._over:
            self._gone = True
            self._end()

    def _break_off(self) -> None:
        """Reset: what is on its way to the client is of no use to it any more."""
        self._lose()
        self.transport.abort()

    async def _write(self, data: bytes) -> None:
        """Send all of ``data``.

        Data that are not sent whole, be it that the caller was cancelled, leave
        the peer with half a chunk: nothing can follow them, the connection ends.

        Raises _ClientGoneError.
        """
        if not data:
            return
        if self._is_stream:
            self._door.stalled.hold(self, data, Connection._break_off)
        try:
            async with self._write_lock:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break_off()
            raise _ClientGoneError("the client does not take what is sent") from error
        except BaseException:
            self._break_off()
            raise
        finally:
            self._door.stalled.release(self)

    async def _run_app(
        self,
        scope: Scope,
        inbox: _Inbox,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> None:
        async def send_unless_over(message: ASGISendEvent) -> None:
            if self._over or self._says_no:
                # A checkpoint, or an application that ignores the error spins.
                await trio.lowlevel.checkpoint()
                raise _ClientGoneError("the connection has ended")
            await send(message)

        try:
            async with self._door.beginning:
                await trio.lowlevel.checkpoint()
            await self._door.app(scope, inbox.receive, send_unless_over)
        except* _ClientGoneError:
            pass
        except* Exception as failure:  # noqa: BLE001  rule 1: it ends here, logged
            # The path as it was sent (h11 lets visible ASCII in only), less the
            # query, which may hold a token.
            assert scope["type"] == "http"
            whom = (self.peer, scope["method"], scope["raw_path"].decode("ascii"))
            text = "application failed peer=%s method=%s path=%s"
            self._door.note_failure(text, whom, failure)
        finally:
            inbox.close()
        if not inbox.disconnected and not self._over:
            # It failed, or returned, with the response missing or half sent.
            with suppress(_ClientGoneError):
                await self._protocol.refuse(
                    _Problem.known("internal_error", "The log of the node tells what failed.")
                )

    async def _part(self) -> None:
        """Close, so that the client still gets what was sent to it."""
        try:
            if not self._over and self._input_pending:
                await self._protocol.refuse(
                    _Problem.known(
                        "request_timeout",
                        "The header of the request was not complete within "
                        f"{self._options.header_timeout_seconds:g} seconds.",
                    )
                )
            self._over = True
            if self._made is not None:
                await self._made.handle(Closed())
            if self._gone:
                self.transport.close()
                return
            if self._input_pending:
                await self._linger()
            await self._stream.aclose()
        except (
            OSError,
            trio.BrokenResourceError,
            trio.BusyResourceError,
            trio.ClosedResourceError,
        ) as error:
            logger.debug("client left at the end peer=%s error=%r", self.peer, error)

    async def _linger(self) -> None:
        """Read and discard for a while (RFC 9112 section 9.6).

        Closing a socket that has unread data resets the connection, and a reset
        makes the client's kernel throw away the answer that it has not read.
        """
        if self._stream is self.transport:
            self.transport.send_eof()
        await discard(self._stream, self._options.linger, self._door.discards)


class _Protocol(H11Protocol):
    """HTTP/1.1 and nothing else, with answers for what it refuses."""

    def __init__(
        self,
        owner: Connection,
        config: HypercornConfig,
        *,
        is_tls: bool,
        client: tuple[str, int],
        server: tuple[str, int] | None,
    ) -> None:
        super().__init__(
            ASGIWrapper(_no_app),
            config,
            WorkerContext(None),
            cast(TaskGroup, owner),  # spawn_app is all that is used of it
            ConnectionState({}),
            is_tls,
            client,
            server,
            owner.protocol_send,
        )
        self.connection = _StrictHttp(
            h11.SERVER, max_incomplete_event_size=config.h11_max_incomplete_size
        )
        self.connection.head_bytes_max = config.h11_max_incomplete_size
        self.can_read = _Gate(owner)
        self._owner = owner
        self._is_head = False

    @property
    def input_pending(self) -> bool:
        """The client has sent, or owes us, something that has not been read."""
        http = self._http
        resting = http.their_state in {h11.IDLE, h11.DONE, h11.MUST_CLOSE}
        return not resting or http.trailing_data[0] != b""

    @property
    def awaits_body(self) -> bool:
        """The rest of the body of the request under way is the client's to send."""
        return self._http.their_state is h11.SEND_BODY

    def keep(self, data: bytes | bytearray) -> None:
        """Hold bytes of a later request until its turn comes."""
        self._http.receive_data(bytes(data))

    async def handle(self, event: Event) -> None:
        try:
            await super().handle(event)
        except _RefusedError as refused:
            await self.refuse(refused.problem)

    async def stream_send(self, event: StreamEvent) -> None:
        # Say it when this response will be the last: at a stop, and when it
        # comes before the end of the request (413), which is not waited for.
        if isinstance(event, Response) and event.status_code >= 200:
            self._owner.allow_stalls(_is_event_stream(event))
            last = self._owner.leaving or self._http.their_state is h11.SEND_BODY
            if last:
                headers = [*event.headers, (b"connection", b"close")]
                event = Response(STREAM_ID, headers, event.status_code)
        await super().stream_send(event)

    async def refuse(self, problem: _Problem) -> None:
        """Answer with ``problem`` if no answer has begun, and close."""
        http = self._http
        if http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self._owner.note_refusal(problem.code)
            date = self.config.response_headers("h11")
            request = CURRENT.get()
            base = self._owner.base.path if request is None else request.base
            self._owner.lend(http.begun or http.trailing_data[0])
            origin = http.origin or cors.origin_in(http.trailing_data[0])
            permission = self._owner.permission(origin)
            headers = [*problem.headers(base), *permission, *date, (b"connection", b"close")]
            answer = http.send(h11.Response(status_code=problem.status, headers=headers))
            if not self._is_head:
                answer += http.send(h11.Data(data=problem.body(base)))
            answer += http.send(h11.EndOfMessage())
            with self._owner.saying_no():
                await self.send(RawData(answer))
        await self.send(Closed())

    async def refuse_unread(self, data: bytes, problem: _Problem) -> None:
        """Answer with ``problem`` the request that ``data`` begins with; it is not to begin.

        Its head is read all the same: it says which request this is, and what an answer may have.
        """
        self._http.receive_data(data)
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            await self._send_error_response(error.error_status_hint)
            return
        if isinstance(event, h11.Request):
            CURRENT.set(self._owner.request_of(event))
            self._is_head = event.method == b"HEAD"
        await self.refuse(problem)

    @property
    def _http(self) -> _StrictHttp:
        assert isinstance(self.connection, _StrictHttp), "WebSocket was let in"
        return self.connection

    async def ask_for_body(self) -> None:
        """Send 100 Continue, if the client waits for it."""
        if self._http.awaits_continue:
            fields = self.config.response_headers("h11")
            with suppress(_ClientGoneError):  # whoever waits for the body is told
                await self._send_h11_event(
                    h11.InformationalResponse(status_code=100, headers=fields)
                )

    async def _check_protocol(self, event: h11.Request) -> None:
        """Refuse what the application is not to see; called before it is started."""
        self._is_head = event.method == b"HEAD"
        self._owner.begins(event)
        problem = _objection(event)
        if problem is not None:
            CURRENT.set(self._owner.request_of(event))
            raise _RefusedError(problem)

    async def _create_stream(self, request: h11.Request) -> None:
        """Start the application, which sees every target in origin form."""
        if not request.target.startswith(b"/"):
            request = h11.Request(
                method=request.method,
                headers=request.headers.raw_items(),
                target=_split(request.target)[1],
                http_version=request.http_version,
            )
        try:
            await super()._create_stream(request)
        except Exception as error:
            logger.error("a request cannot be read error=%r", repr(error))
            raise _RefusedError(_malformed("The request cannot be read.")) from error

    async def _send_error_response(self, status_code: int) -> None:
        """Answer what h11 could not parse."""
        await self.refuse(self._parse_problem(status_code))

    def _parse_problem(self, status_code: int) -> _Problem:
        if status_code == 431:
            return _Problem(
                431,
                "headers_too_large",
                "The request header is too large",
                f"The head of a request has at most {self.config.h11_max_incomplete_size} bytes "
                f"([limits] header_bytes) and {FIELDS_MAX} fields.",
            )
        if status_code == 501:
            return _Problem(
                501,
                "transfer_coding_not_implemented",
                "The transfer coding is not implemented",
                "Use Transfer-Encoding: chunked, or Content-Length.",
            )
        return _malformed(
            _COMPLAINTS.get(
                self._http.complaint, "What was sent cannot be parsed as a request (RFC 9112)."
            )
        )

    async def _maybe_recycle(self) -> None:
        self._is_head = False  # of the next request nothing is known
        self._http.origin = ""
        if self._owner.stopping:
            await self._close_stream()
            await self.send(Closed())
        else:
            await super()._maybe_recycle()


class _StrictHttp(h11.Connection):
    """h11, less what it is lenient about and request smuggling uses (head.py, chunks.py).

    It takes a bare LF for the end of a line, unfolds lines, lets a length be
    given twice, and trailers follow a body. Nobody here reads those. What follows
    a request that says ``Connection: close`` is no error, but is not looked at
    (RFC 9112 section 9.6); a first piece of it is kept, as a sign that it is there.

    It would have 100 Continue sent as soon as a head is there. Here the application
    says when it wants the body: what it refuses by the head, it refuses at once.
    """

    head_bytes_max = 0
    origin = ""
    """Of the page that asks, as far as a head has been read or was refused."""
    complaint = ""  # of what could not be parsed
    begun = b""  # a request that could not be parsed, with its head
    _chunks: Chunks | None = None  # of the body that is being read, if it has any

    @property
    def they_are_waiting_for_100_continue(self) -> bool:
        """Never, as far as Hypercorn is concerned."""
        return False

    @property
    def awaits_continue(self) -> bool:
        """The client waits with its body until it is asked for it."""
        return bool(super().they_are_waiting_for_100_continue)

    def receive_data(self, data: bytes) -> None:
        if self._chunks is not None and data:
            data = self._chunks.take(data)
            if not data:  # which would say that no more comes
                return
        if self.their_state is not h11.MUST_CLOSE or not self.trailing_data[0]:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Raises h11.RemoteProtocolError, and nothing else."""
        begun = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        try:
            event = self._next_event(begun)
        except h11.RemoteProtocolError as error:
            self.complaint = str(error)
            self.begun = begun
            self.origin = self.origin or cors.origin_in(begun)
            raise
        if isinstance(event, h11.Request):
            origins = [value for name, value in event.headers if name == b"origin"]
            self.origin = origins[0].decode("latin-1") if len(origins) == 1 else ""
        return event

    def _next_event(self, begun: bytes) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE:
            self._check_head(begun)
        elif self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA
        try:
            event = super().next_event()
        except h11.RemoteProtocolError:
            raise
        except Exception as error:
            logger.error("a request cannot be parsed error=%r", repr(error))
            raise h11.RemoteProtocolError("the request cannot be parsed") from error
        if isinstance(event, h11.Request) and _is_chunked(event):
            self._chunks = Chunks()
            buffer = self._receive_buffer
            body = buffer.maybe_extract_at_most(len(buffer))
            buffer += self._chunks.take(bytes(body or b""))
        if self._chunks is not None:
            if not self._chunks.sound:
                raise h11.RemoteProtocolError("the chunks have a form that can be read in two ways")
            if isinstance(event, h11.EndOfMessage):
                self._chunks = None
        return event

    def _check_head(self, data: bytes) -> None:
        end = head_end(data)
        if end > self.head_bytes_max:  # h11 only counts what is not complete yet
            raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
        if end and has_too_many_fields(data[:end]):
            raise h11.RemoteProtocolError("the head has too many fields", error_status_hint=431)
        if end and not is_plain(data[:end]):
            raise h11.RemoteProtocolError("the head has a form that can be read in two ways")


def _is_chunked(request: h11.Request) -> bool:
    return any(name == b"transfer-encoding" for name, _ in request.headers)


def _objection(request: h11.Request) -> _Problem | None:
    """Why the door refuses a request, if it does."""
    if request.http_version not in {b"1.0", b"1.1"}:  # with PRI, an HTTP/2 client
        return _Problem.known(
            "http_version_not_supported",
            "This server speaks HTTP/1.1; put a proxy in front of it for HTTP/2.",
        )
    if request.method != request.method.upper():
        # Hypercorn and Werkzeug would take it for the one in capitals, which a proxy that
        # judges methods does not (RFC 9110 section 9.1).
        method = request.method.decode("ascii")
        return _Problem.known(
            "method_not_implemented",
            f"{method[:64]!r} is not a method here: names of methods are case-sensitive; use "
            f"{method[:64].upper()!r}.",
        )
    if (problem := _target_objection(request)) is not None:
        return problem
    names = {name for name, _ in request.headers}
    if any(name == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers):
        return _malformed("WebSocket is not spoken here; use Server-Sent Events.")
    if b"content-length" in names and b"transfer-encoding" in names:
        # A proxy may go by the other of the two (RFC 9112 section 11.2, smuggling).
        return _malformed("Content-Length and Transfer-Encoding exclude each other.")
    if b"transfer-encoding" in names and request.http_version == b"1.0":
        return _malformed("HTTP/1.0 knows no Transfer-Encoding.")  # RFC 9112 section 6.1
    return None


def _target_objection(request: h11.Request) -> _Problem | None:
    """What is wrong with the target: only origin and absolute form are served (RFC 9112 3.2)."""
    target = request.target
    if target.startswith(b"/"):
        # To some what begins with two is a path, to others a host.
        is_target = not target.startswith(b"//") and _is_url(target)
        return None if is_target else _malformed("The target of the request is no path and no URL.")
    if not target.lower().startswith((b"http://", b"https://")):
        return _malformed("The target of the request must begin with a slash.")
    authority, path = _split(target)
    if not _is_url(target) or path.startswith(b"//"):
        return _malformed("The target of the request is no path and no URL.")
    if [authority.lower()] != [value.lower() for name, value in request.headers if name == b"host"]:
        # Whoever goes by the one and whoever goes by the other serve different hosts.
        return _malformed("The target of the request is of another host than Host says.")
    return None


def _is_url(target: bytes) -> bool:
    try:
        urlsplit(target)
    except ValueError:
        return False
    return True


def _split(target: bytes) -> tuple[bytes, bytes]:
    """The authority of a target in absolute form, and the rest: its origin form."""
    rest = target[target.index(b"//") + 2 :]
    found = _AUTHORITY.match(rest)
    authority = b"" if found is None else found[0]
    path = rest[len(authority) :]
    return authority, path if path.startswith(b"/") else b"/" + path


class _Gate:
    """Hypercorn's event for "the next request may be read now".

    Hypercorn waits on it with the rest of the client's bytes in hand, and would
    not notice that the client leaves. This one reads ahead while it waits.
    """

    def __init__(self, owner: Connection) -> None:
        self._owner = owner
        self._is_open = False
        self._waiting = trio.CancelScope()

    async def clear(self) -> None:
        self._is_open = False

    async def set(self) -> None:
        self._is_open = True
        self._waiting.cancel()

    async def wait(self) -> None:
        if not self._is_open:
            with trio.CancelScope() as self._waiting:
                await self._owner.read_ahead()

    def is_set(self) -> bool:
        return self._is_open


class _Inbox:
    """What an application receives: a few parts of the body, then the disconnect.

    Hypercorn's own is a channel that the disconnect has to queue in, so that an
    application that does not read its body blocks the end of its response.
    """

    def __init__(self) -> None:
        self._parts_in, self._parts_out = trio.open_memory_channel[ASGIReceiveEvent](
            _INBOX_PARTS_MAX
        )
        self.disconnected = False

    async def put(self, event: ASGIReceiveEvent) -> None:
        """Add an event; waits while the inbox is full of parts that nobody takes."""
        if event["type"] == "http.disconnect":
            self.disconnected = True
            self._parts_in.close()
            return
        # Not if the application has returned, or the response has ended.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._parts_in.send(event)

    async def receive(self) -> ASGIReceiveEvent:
        """Take the next event; after the disconnect, the disconnect for ever."""
        try:
            return await self._parts_out.receive()
        except trio.EndOfChannel:
            return {"type": "http.disconnect"}

    def close(self) -> None:
        """The application reads no more."""
        self._parts_out.close()


async def open_listeners(host: str, port: int, backlog: int) -> list[trio.SocketListener]:
    """Listen on every address of ``host``, on the same port; 0 takes any free one.

    A name's address that this machine does not have (``::1`` in a container
    without IPv6) is passed over if another one works. ``::`` is every address of both
    families, and of IPv4 alone on a machine without IPv6.

    Raises ConfigError: the address is in use, forbidden, or not of this machine.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(
            f"cannot listen on {_host_port((host, port))}: a port is 0 to 65535; choose another"
        )
    attempts = 1 if port else FREE_PORT_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return await _listen_everywhere(host, port, backlog)
        except (OSError, UnicodeError) as error:
            # The port that was free for the first address may be taken for the next.
            if attempts and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                continue
            reason = _reason(error)
            raise ConfigError(f"cannot listen on {_host_port((host, port))}: {reason}") from error


async def _listen_everywhere(host: str, port: int, backlog: int) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    absent: OSError | None = None
    try:
        addresses = await _resolve(host, port)
        if (socket.AF_INET6, "::") in addresses:
            # Two sockets rather than one of both: so IPv4 peers keep their addresses.
            addresses = [*dict.fromkeys([*addresses, _EVERY_IPV4])]
        for family, address in addresses:
            try:
                listeners.append(await _listen(family, address, port, backlog))
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                absent = error
            else:
                port = listeners[0].socket.getsockname()[1]
        if not listeners:
            raise absent or OSError(errno.EADDRNOTAVAIL, "no address")
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def _resolve(host: str, port: int) -> list[tuple[int, str]]:
    """Family and numeric address of each of the host's addresses, none twice."""
    found = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


async def _listen(family: int, address: str, port: int, backlog: int) -> trio.SocketListener:
    tcp_socket = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            tcp_socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await tcp_socket.bind((address, port))
        tcp_socket.listen(backlog)
    except BaseException:
        tcp_socket.close()
        raise
    return trio.SocketListener(tcp_socket)


def _reason(error: OSError | UnicodeError) -> str:
    """Why an address cannot be listened on, and what to do."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "the host does not resolve; give an IP address, such as 127.0.0.1 or 0.0.0.0"
    if error.errno == errno.EADDRINUSE:
        return "another program listens there; stop it, or choose another port"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "permission denied; choose a port above 1023, or grant CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have the address; choose one that it has, or 0.0.0.0"
    return f"{error.strerror or error}; choose another address"


def _hypercorn_config(options: DoorOptions) -> HypercornConfig:
    """Hypercorn's settings, such that it prints and logs nothing of its own accord."""
    config = HypercornConfig()
    config.errorlog = logger  # with a logger given, it adds no handler
    config.accesslog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = options.header_bytes_max
    config.keep_alive_max_requests = sys.maxsize
    return config


def _server_side(transport: Transport, context: ssl.SSLContext) -> trio.SSLStream[trio.abc.Stream]:
    return trio.SSLStream(transport, context, server_side=True)


async def _shake_hands(stream: trio.SSLStream[trio.abc.Stream]) -> None:
    """Raises BrokenResourceError, when the client has been told why."""
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError:
        await stream.transport_stream.send_all(alert_of(stream))
        raise


def _too_many_connections(detail: str) -> _Problem:
    return _Problem.known("too_many_connections", detail)


def _refusal(problem: _Problem, base: str, permission: _Fields) -> bytes:
    """The answer to a connection that is not taken. Not all are to come back at one moment."""
    seconds = random.randint(*_RETRY_AFTER_SECONDS)  # noqa: S311  # nosec B311  # jitter
    head = [b"HTTP/1.1 429 Too Many Requests", b"retry-after: %d" % seconds]
    head += [name + b": " + value for name, value in (*problem.headers(base), *permission)]
    return b"\r\n".join([*head, b"connection: close", b"", problem.body(base)])


async def _no_app(*_: object) -> None:
    raise AssertionError("applications are run by Connection.spawn_app alone")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, depth first."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _peer_address(tcp_socket: trio.socket.SocketType) -> tuple[str, int] | None:
    try:
        return _address(tcp_socket.getpeername())
    except OSError:  # it has left already
        return None


def _address(name: object) -> tuple[str, int] | None:
    """Host and port of an IPv4 or IPv6 socket name; None for another family."""
    if isinstance(name, tuple) and len(name) >= 2:
        return str(name[0]), int(name[1])
    return None


def _host_port(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
