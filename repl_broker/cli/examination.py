"""What a doctor does: everything that a page and a backend do, by the same URL, and watched.

    connect ─ TLS ─ is it a node? ─ ready? ─ clock
      ─ a stream opens ─ canaries are published ─ they arrive, in order
      ─ a second stream resumes after the first canary ─ it is left in silence
      ─ CORS ─ cluster ─ versions ─ metrics

Each step tells its findings as soon as it has them. A step without which nothing
else makes sense raises _OverError, and the rest is told as untested.

Everything has a deadline; with Trio, so that a test can have a clock of its own.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
import urllib.request
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import trio

from repl_broker import __version__
from repl_broker.cli.client import trust_of
from repl_broker.cli.eventstream import Event, EventReader, EventTooLargeError
from repl_broker.cli.findings import (
    CERTIFICATE_DAYS_MIN,
    Finding,
    judge_clock,
    judge_clocks,
    judge_cluster,
    judge_commits,
    judge_descriptors,
    judge_files,
    judge_headers,
    judge_latency,
    judge_turns,
    judge_versions,
    ok,
    parse_time,
    percentile,
    problem,
    read_metrics,
    skew_seconds_max,
    untested,
    warning,
)
from repl_broker.readiness import REMEDIES

__all__ = ["Examination", "Orders"]

BODY_BYTES_MAX: Final = 8 << 20  # of an answer; /openapi.json and /metrics are far below
LATE_SECONDS_MAX: Final = 1.0  # from the answer to a publish until the event is there
HEARTBEAT_SECONDS: Final = 15
TOPIC: Final = "_doctor"
# What is to remain of an examination: a few of the canaries, until nobody has looked for an hour.
TOPIC_RETENTION: Final = {"messages": 100, "seconds": 3600, "idle_seconds": 3600}
# A node without a leader waits for one itself, for 5 s, before it refuses a write with a reason.
WRITE_SECONDS: Final = 5.0
NOT_READY_REMEDIES: Final = {**REMEDIES, "shutting_down": "nothing, if it is meant to stop"}
MEMBERS_MAX: Final = 16  # asked for their versions
LOCAL: Final = ("localhost", "127.0.0.1", "::1")

BUFFERING: Final = (
    "switch buffering off for text/event-stream (nginx: proxy_buffering off, and no "
    "proxy_ignore_headers X-Accel-Buffering); see docs/how-to/run-behind-a-proxy.md"
)
COMPRESSION: Final = (
    "switch compression off for /v1/events (nginx: leave text/event-stream out of gzip_types; "
    "Caddy: encode @plain gzip with '@plain not path /v1/events'); the node says no-transform"
)


@dataclass(frozen=True, slots=True)
class Orders:
    """What to examine, and how thoroughly."""

    url: str  # without a slash at the end
    topic: str = TOPIC
    token: str | None = field(default=None, repr=False)
    origin: str | None = None
    idle_seconds: float = 2.0
    patience_seconds: float = 5.0  # for each answer and each event
    canaries: int = 20


class _OverError(Exception):
    """Nothing more can be examined; what stands in the way has been told."""


class _StreamEndedError(Exception):
    """The stream is over; the message says how."""


class Examination:
    """One examination. ``tell`` gets each finding; ``run`` returns when all are told."""

    def __init__(
        self,
        orders: Orders,
        tell: Callable[[Finding], object],
        *,
        trust: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.orders = orders
        self.tell = tell
        self.now = now
        parts = urlsplit(orders.url)
        self.scheme, self.host = parts.scheme, parts.hostname or ""
        self.port = parts.port or (443 if self.scheme == "https" else 80)
        self.is_local = self.host in LOCAL
        self.trust = trust
        if trust is None and self.scheme == "https":
            self.trust = trust_of(orders.url)
        self.nonce = uuid.uuid4().hex
        self.round_trip = 0.0
        self.skew_seconds_max = skew_seconds_max({})

    def client(self, token: str | None) -> httpx.AsyncClient:
        headers = {"User-Agent": f"repl-broker/{__version__}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return httpx.AsyncClient(  # nosec B113  # each call has a deadline of its own
            headers=headers,
            timeout=None,  # noqa: S113
            trust_env=not self.is_local,
            verify=self.trust or False,
        )

    async def run(self) -> None:
        """Examine. Raises nothing that a server can cause."""
        async with self.client(self.orders.token) as self.http:
            try:
                await self.connection()
                await self.node()
                before = await self.cluster()
                self.skew_seconds_max = skew_seconds_max(before)
                self.clock()
                try:
                    await self.stream_and_canaries()
                except _OverError as over:  # what follows asks for no leader
                    self.tell(untested("delivery", f"not looked at any further: {over}"))
                await self.cors()
                await self.members(before)
                await self.metrics()
            except _OverError as over:
                self.tell(untested("the-rest", f"not looked at: {over}"))

    # --- the way there ---

    async def connection(self) -> None:
        """A connection of our own, to see names, certificates and protocols."""
        if not self.is_local and uses_proxy(self.scheme, self.host):
            self.tell(
                untested(
                    "connect",
                    "this machine's settings (HTTPS_PROXY, HTTP_PROXY) lead through a proxy: name, "
                    "certificate and HTTP/2 are not looked at by themselves",
                    "set NO_PROXY to look at the direct way",
                )
            )
            return
        started = trio.current_time()
        stream = await self.dial()
        took = trio.current_time() - started
        self.tell(ok("connect", f"{self.host}:{self.port} answers in {took * 1000:.1f} ms"))
        try:
            if self.scheme == "https":
                await self.handshake(stream)
            else:
                self.tell(six_connections("http:// is always HTTP/1.1 in a browser"))
        finally:
            await trio.aclose_forcefully(stream)

    async def dial(self) -> trio.SocketStream:
        where = f"{self.host}:{self.port}"
        remedy = "is the node, or the proxy, running there, and is the URL right?"
        try:
            with trio.fail_after(self.orders.patience_seconds):
                return await trio.open_tcp_stream(self.host, self.port)
        except socket.gaierror as error:
            found = f"the name {self.host!r} cannot be resolved: {error.strerror}"
            remedy = "check the URL and the DNS entry"
        except trio.TooSlowError:
            seconds = self.orders.patience_seconds
            found = f"{where} does not answer within {seconds:g} s"
            remedy = (
                "a firewall drops packets, or the host is away: check its rules and its address"
            )
        except (OSError, UnicodeError) as error:
            found = f"no connection to {where}: {reason(error)}"
        self.tell(problem("connect", found, remedy))
        raise _OverError("there is no connection")

    async def handshake(self, stream: trio.SocketStream) -> None:
        assert self.trust is not None
        # A context of its own: what is offered here must not be what httpx offers.
        self.trust.set_alpn_protocols(["h2", "http/1.1"])
        tls = trio.SSLStream(stream, self.trust, server_hostname=self.host)
        try:
            with trio.fail_after(self.orders.patience_seconds):
                await tls.do_handshake()
        except trio.TooSlowError:
            self.tell(problem("tls", "the TLS handshake stands still", PLAIN_PORT))
            raise _OverError("TLS fails") from None
        except trio.BrokenResourceError as error:
            self.tell(tls_problem(error.__cause__ or error, self.host))
            raise _OverError("TLS fails") from None
        finally:
            self.trust.set_alpn_protocols(["http/1.1"])
        self.tell(judge_certificate(tls.getpeercert(), tls.version(), self.now()))
        if tls.selected_alpn_protocol() == "h2":
            self.tell(ok("http2", "HTTP/2 is offered: streams of many tabs share a connection"))
        else:
            self.tell(six_connections("the server does not offer HTTP/2"))

    # --- what is there ---

    async def node(self) -> None:
        """That it is a node, that it is ready, what time it is there."""
        sent = self.now()
        response = await self.get("/healthz")
        received = self.now()
        found = object_of(response)
        if response.status_code != 200 or found.get("status") != "ok":
            self.tell(not_a_node(response))
            raise _OverError("no node answers")
        self.tell(ok("node", f"a node answers at {self.orders.url}"))
        self.date = response.headers.get("date"), sent, received
        ready = await self.get("/readyz")
        if ready.status_code == 200:
            self.tell(ok("ready", "the node serves requests"))
        else:
            self.tell(
                problem(
                    "ready",
                    f"/readyz answers {ready.status_code}: {reasons(ready)}",
                    remedy_of(ready),
                )
            )
        self.round_trip = await self.round_trips()

    def clock(self) -> None:
        date, sent, received = self.date
        try:
            there = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            self.tell(untested("clock", "the answers have no Date that can be read"))
            return
        # A Date has no fractions: it is half a second behind on average.
        ahead, uncertain = there + 0.5 - (sent + received) / 2, 0.5 + (received - sent) / 2
        self.tell(
            judge_clock("the clock of who answers (Date)", ahead, uncertain, self.skew_seconds_max)
        )

    async def round_trips(self) -> float:
        took = []
        for _ in range(5):
            started = trio.current_time()
            await self.get("/healthz")
            took.append(trio.current_time() - started)
        return percentile(took, 0.5)

    async def cluster(self) -> dict[str, Any]:
        """``GET /v1/cluster``; empty if it may not be seen."""
        response = await self.get("/v1/cluster")
        return object_of(response) if response.status_code == 200 else {}

    # --- streams ---

    async def stream_and_canaries(self) -> None:
        await self.make_topic()
        async with self.first_stream() as stream:
            ids = await self.publish()
            if stream is not None and ids:
                await self.canaries_arrive(stream, ids)
        if stream is None:
            self.tell(untested("resume", "there is no stream to resume"))
            self.tell(untested("idle", "there is no stream to leave in silence"))
        elif len(ids) < 2:
            self.tell(untested("resume", "nothing is there to resume after"))
            self.tell(untested("idle", "no stream was resumed"))
        else:
            await self.resume(ids)

    @asynccontextmanager
    async def first_stream(self) -> AsyncIterator[_Stream | None]:
        """A stream as a browser opens it; None if none comes through."""
        async with self.stream() as stream:
            if stream is not None and await self.has_begun(stream):
                self.look_at(stream)
                yield stream
                return
        if stream is None or stream.coding:
            async with self.stream({"Accept-Encoding": "identity"}) as plain:
                if plain is not None and await self.has_begun(plain):
                    self.tell(
                        problem(
                            "compression",
                            "the stream is held back when a browser offers to take gzip, and comes "
                            "at once without that",
                            COMPRESSION,
                        )
                    )
                    yield plain
                    return
        self.tell(
            problem(
                "buffering",
                f"no 'subscribed' came within {self.orders.patience_seconds:g} s, though the node "
                "sends it at once: something between here and the node gathers the answer before "
                "it passes it on",
                BUFFERING,
            )
        )
        yield None

    @asynccontextmanager
    async def stream(
        self, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[_Stream | None]:
        """An open stream; None if not even the head of an answer came in time."""
        sent = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "gzip, deflate",
            **(headers or {}),
        }
        if self.orders.origin is not None:
            sent["Origin"] = self.orders.origin
        request = self.http.build_request(
            "GET", f"{self.orders.url}/v1/events", params={"topic": self.orders.topic}, headers=sent
        )
        response = None
        with trio.move_on_after(self.orders.patience_seconds):
            response = await self.sent(request, stream=True)
        if response is None:
            yield None
            return
        try:
            if response.status_code != 200 or media_type(response) != "text/event-stream":
                await self.refuse_stream(response)
            stream = _Stream(response)
            try:
                yield stream
            finally:
                await stream.leave()
        finally:
            with trio.CancelScope(shield=True):
                await response.aclose()

    async def refuse_stream(self, response: httpx.Response) -> None:
        with trio.move_on_after(self.orders.patience_seconds), suppress(httpx.HTTPError):
            response = await read(response)
        if "problem+json" in media_type(response):
            found = f"the stream is refused with {response.status_code}: {detail(response)}"
            self.tell(problem("stream", found, hint(response)))
        else:
            self.tell(not_a_node(response))
        raise _OverError("there is no stream")

    async def has_begun(self, stream: _Stream) -> bool:
        try:
            while (event := await stream.next(self.orders.patience_seconds)) is not None:
                if event.name == "subscribed":
                    return True
        except _StreamEndedError as error:
            self.tell(
                problem("stream", f"the stream ended at once: {error}", "look at the node's log")
            )
            raise _OverError("there is no stream") from None
        return False

    def look_at(self, stream: _Stream) -> None:
        self.tell(ok("buffering", "the stream begins at once"))
        if stream.coding:
            self.tell(
                warning(
                    "compression",
                    f"the stream is compressed ({stream.coding}): it costs a compressor for each "
                    "reader, and proxies that do so tend to hold events back",
                    COMPRESSION,
                )
            )
        else:
            self.tell(ok("compression", "the stream is not compressed"))
        for finding in judge_headers(stream.headers):
            self.tell(finding)

    # --- canaries ---

    async def make_topic(self) -> None:
        """Have the doctor's own topic keep little, and go by itself.

        Whoever may not do that has it made by the first publish, as one of another name is: what
        is published there later is not the doctor's, and is kept as the operator wants it.
        """
        if self.orders.topic == TOPIC:
            wanted = {"name": TOPIC, "retention": TOPIC_RETENTION}
            # One that is there stays as it is.
            await self.ask("POST", "/v1/topics", more_seconds=WRITE_SECONDS, json=wanted)

    async def publish(self) -> list[str]:
        """Publish the canaries, one after the other; their event ids."""
        ids: list[str] = []
        took: list[float] = []
        for number in range(self.orders.canaries):
            sent, started = self.now(), trio.current_time()
            response = await self.publish_one(number)
            took.append(trio.current_time() - started)
            found = object_of(response)
            if response.status_code != 201 or not isinstance(found.get("id"), str):
                self.tell(refused_publish(response))
                return ids
            ids.append(found["id"])
            if number == 0:
                self.message_clock(found.get("time"), sent)
        self.tell(ok("publish", f"{len(ids)} canaries were published to {self.orders.topic}"))
        self.tell(judge_latency(took, self.round_trip))
        return ids

    async def publish_one(self, number: int) -> httpx.Response:
        return await self.ask(
            "POST",
            f"/v1/topics/{self.orders.topic}/messages",
            more_seconds=WRITE_SECONDS,
            content=json.dumps({"canary": self.nonce, "number": number}).encode(),
            headers={
                "Content-Type": "application/json",
                "Idempotency-Key": f"{self.nonce}-{number}",
            },
        )

    def message_clock(self, text: object, sent: float) -> None:
        there = parse_time(text)
        if there is not None:
            received = self.now()
            ahead, uncertain = there - (sent + received) / 2, (received - sent) / 2
            self.tell(
                judge_clock(
                    "the leader's clock (a message's time)", ahead, uncertain, self.skew_seconds_max
                )
            )

    async def canaries_arrive(self, stream: _Stream, ids: list[str]) -> None:
        started = trio.current_time()
        came = await self.wait_for(stream, ids[-1])
        took = trio.current_time() - started
        missing = [each for each in ids if each not in came]
        if missing:
            self.tell(
                problem(
                    "delivery",
                    f"{len(missing)} of {len(ids)} canaries that were acknowledged did not come on "
                    f"the stream within {self.orders.patience_seconds:g} s",
                    BUFFERING,
                )
            )
        elif took > LATE_SECONDS_MAX:
            found = f"the canaries came {took:.1f} s after they were acknowledged"
            self.tell(warning("delivery", found, BUFFERING))
        elif [each for each in came if each in ids] != ids:
            self.tell(
                problem(
                    "delivery",
                    "the canaries came twice, or in another order than they were published",
                    "something between here and the node repeats answers: take it out",
                )
            )
        else:
            self.tell(ok("delivery", f"all {len(ids)} canaries came, in order"))

    async def wait_for(self, stream: _Stream, last: str) -> list[str]:
        """The ids of the messages that come, until ``last`` or the end of patience."""
        came: list[str] = []
        with suppress(_StreamEndedError):
            while last not in came[-1:]:
                event = await stream.next(self.orders.patience_seconds)
                if event is None:
                    break
                if event.name == "message" and event.data:
                    came.append(event.id)
        return came

    async def resume(self, ids: list[str]) -> None:
        """A second stream, after the first canary; then it is left in silence."""
        async with self.stream({"Last-Event-ID": ids[0]}) as stream:
            if stream is None or not await self.has_begun(stream):
                self.tell(problem("resume", "a stream that resumes did not begin", BUFFERING))
                return
            if stream.cursor != ids[0]:
                self.tell(
                    problem(
                        "resume",
                        f"a stream that was to go on after {ids[0]} begins at {stream.cursor}: the "
                        "Last-Event-ID is lost on the way, and with it whatever is published while "
                        "a reader is away",
                        "let the proxy pass the request header field Last-Event-ID on",
                    )
                )
            else:
                came = await self.wait_for(stream, ids[-1])
                if [each for each in came if each in ids] == ids[1:]:
                    self.tell(ok("resume", "a stream goes on exactly after its Last-Event-ID"))
                else:
                    self.tell(
                        problem(
                            "resume",
                            f"after {ids[0]} were to come {len(ids) - 1} canaries, and came "
                            f"{len([each for each in came if each in ids])}",
                            "compare with a node that is asked directly",
                        )
                    )
                    return
            await self.idle(stream)

    async def idle(self, stream: _Stream) -> None:
        """Say nothing for a while, and see whether the stream stays."""
        wanted = self.orders.idle_seconds
        started = last = trio.current_time()
        heartbeats = 0
        try:
            while (left := started + wanted - trio.current_time()) > 0:
                event = await stream.next(left)
                heartbeats += event is not None and event.name == "heartbeat"
                last = trio.current_time() if event is not None else last
        except _StreamEndedError as error:
            silence = trio.current_time() - last
            self.tell(
                problem(
                    "idle",
                    f"the stream was cut after {silence:.1f} s of silence ({error}); the node "
                    f"breaks silence every {HEARTBEAT_SECONDS} s",
                    "raise the time-out for silence to 60 s (nginx: proxy_read_timeout; HAProxy: "
                    "timeout server), or lower [limits] heartbeat_seconds",
                )
            )
            return
        self.tell(judge_idle(wanted, heartbeats))

    # --- pages of other origins ---

    async def cors(self) -> None:
        """Whether a page of ``origin`` may read, and publish."""
        origin = self.orders.origin
        if origin is None:
            return
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        }
        path = f"/v1/topics/{self.orders.topic}/messages"
        preflight = await self.ask("OPTIONS", path, headers=asked)
        actual = await self.ask("GET", "/v1/cluster", headers={"Origin": origin})
        for what, response in (("reads", actual), ("asks before it publishes", preflight)):
            objection = cors_objection(response, origin)
            if objection:
                self.tell(
                    problem(
                        "cors",
                        f"a page of {origin} that {what} is refused by its browser: {objection}",
                        "list the origin in [http] cors_origins, and let the proxy neither add nor "
                        "remove Access-Control fields",
                    )
                )
                return
        self.tell(ok("cors", f"pages of {origin} may read and publish"))

    # --- the nodes ---

    async def members(self, before: Mapping[str, Any]) -> None:
        after = await self.cluster()
        if not after:
            self.tell(untested("cluster", "GET /v1/cluster is not answered", TOKEN))
            return
        for finding in (*judge_cluster(before, after), *judge_clocks(after)):
            self.tell(finding)
        versions = {}
        here = await self.get("/openapi.json")
        if version := version_of(here):
            versions[str(after.get("node"))] = version
        silent = []
        found = after.get("members")
        for member in (found if isinstance(found, list) else [])[:MEMBERS_MAX]:
            if isinstance(member, dict) and str(member.get("id")) not in versions:
                version = await self.version_at(str(member.get("http_url")))
                if version:
                    versions[str(member["id"])] = version
                else:
                    silent.append(str(member.get("id")))
        if versions:
            self.tell(judge_versions(versions, __version__))
        if silent:
            self.tell(
                untested(
                    "versions",
                    f"not asked for the version: {', '.join(silent)}; their http_url is not "
                    "reached from here",
                )
            )

    async def version_at(self, url: str) -> str | None:
        """What another node says that it is. It never gets the token."""
        if urlsplit(url).scheme not in ("http", "https"):
            return None
        async with self.client(None) as http:
            with (
                trio.move_on_after(min(2.0, self.orders.patience_seconds)),
                suppress(httpx.HTTPError, httpx.InvalidURL, UnicodeError),
            ):
                request = http.build_request("GET", f"{url.rstrip('/')}/openapi.json")
                return version_of(await read(await http.send(request, stream=True)))
        return None

    async def metrics(self) -> None:
        response = await self.get("/metrics")
        if response.status_code != 200 or "text/plain" not in media_type(response):
            for check in ("descriptors", "disk", "loop", "files"):
                found = f"/metrics answers {response.status_code}"
                self.tell(untested(check, found, TOKEN))
            return
        counted = read_metrics(response.text)
        self.tell(judge_descriptors(counted))
        self.tell(judge_commits(counted))
        self.tell(judge_turns(counted))
        self.tell(judge_files(counted, self.now()))

    # --- requests ---

    async def get(self, path: str) -> httpx.Response:
        return await self.ask("GET", path)

    async def ask(
        self, method: str, path: str, *, more_seconds: float = 0, **request: Any
    ) -> httpx.Response:
        """A whole answer. Raises _OverError, when that is told, where none comes."""
        built = self.http.build_request(method, self.orders.url + path, **request)
        seconds = self.orders.patience_seconds + more_seconds
        with trio.move_on_after(seconds):
            return await self.sent(built)
        self.tell(
            problem(
                "node",
                f"{method} {path} is not answered within {seconds:g} s",
                "look at the node's log and its load, and at the proxy's",
            )
        )
        raise _OverError("the node does not answer")

    async def sent(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            response = await self.http.send(request, stream=True)
            return response if stream else await read(response)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            self.tell(
                problem(
                    "node",
                    f"{request.method} {request.url.path} breaks the connection: {reason(error)}",
                    "is it HTTP or HTTPS that is spoken there? look at the proxy's log",
                )
            )
            raise _OverError("the connection breaks") from None


class _Stream:
    """An event stream's events, one at a time."""

    def __init__(self, response: httpx.Response) -> None:
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        self.coding = "" if coding == "identity" else coding
        self._reader = EventReader()
        self._response = response
        self._chunks = response.aiter_bytes()
        self._events: deque[Event] = deque()
        self._ends: str | None = None
        self.cursor = ""  # the id as of the last event that was given

    async def next(self, seconds: float) -> Event | None:
        """The next event; None if none comes in time, after which there is no other.

        Raises _StreamEndedError.
        """
        with trio.move_on_after(seconds):
            while not self._events:
                if self._ends is not None:
                    raise _StreamEndedError(self._ends)
                await self._receive()
            event = self._events.popleft()
            self.cursor = event.id
            return event
        self._ends = "it was left"
        return None

    async def leave(self) -> None:
        """Hang up."""
        with trio.CancelScope(shield=True):
            await hang_up(self._response)
            # To its end, which is here: an abandoned generator of httpcore's is a warning.
            with suppress(httpx.HTTPError):
                async for _ in self._chunks:
                    pass

    async def _receive(self) -> None:
        try:
            self._events += self._reader.feed(await anext(self._chunks))
        except StopAsyncIteration:
            self._ends = "the node says farewell" if self._reader.farewell else "its end came"
        except (httpx.HTTPError, EventTooLargeError) as error:
            self._ends = reason(error)


# --- words --------------------------------------------------------------------------------

TOKEN: Final = "an administrator's --token may see it"  # noqa: S105  no secret
PLAIN_PORT: Final = "is it http:// that is spoken on this port? check the URL and the certificate"


def six_connections(why: str) -> Finding:
    return warning(
        "http2",
        f"{why}: a browser opens six connections to it at most, and each tab with a stream of its "
        "own holds one, so the seventh tab hangs",
        "put a proxy with HTTP/2 in front, or use the TypeScript client, whose tabs share one "
        "stream",
    )


def tls_problem(error: BaseException, host: str) -> Finding:
    if isinstance(error, ssl.SSLCertVerificationError):
        match error.verify_code:
            case 10:
                return problem("tls", "the certificate has expired", "renew it, and reload")
            case 9:
                found = "the certificate is not valid yet"
                return problem("tls", found, "check this machine's clock and the certificate")
            case 62 | 64:
                found = f"the certificate is not for {host!r}: {error.verify_message}"
                return problem("tls", found, "use a name that it has, or get one for this name")
        return problem(
            "tls",
            f"the certificate is not trusted: {error.verify_message}",
            "let the server send the whole chain; for a private authority set SSL_CERT_FILE",
        )
    return problem("tls", f"the TLS handshake fails: {reason(error)}", PLAIN_PORT)


def judge_certificate(
    certificate: Mapping[str, Any] | None, version: str | None, now: float
) -> Finding:
    ends = str((certificate or {}).get("notAfter", ""))
    try:
        days = (ssl.cert_time_to_seconds(ends) - now) / 86400
    except ValueError:
        return ok("tls", f"{version}, and the certificate is trusted")
    until = datetime.fromtimestamp(now + days * 86400, UTC).date().isoformat()
    if days < CERTIFICATE_DAYS_MIN:
        return warning("tls", f"the certificate ends in {days:.0f} days ({until})", "renew it")
    return ok("tls", f"{version}; the certificate is trusted, until {until}")


def judge_idle(seconds: float, heartbeats: int) -> Finding:
    if heartbeats:
        beats = f"{heartbeats} heartbeat{'' if heartbeats == 1 else 's'}"
        found = f"the stream stays open through {seconds:g} s with {beats}"
        return ok("idle", found)
    if seconds > HEARTBEAT_SECONDS + LATE_SECONDS_MAX:
        return warning(
            "idle",
            f"no heartbeat came in {seconds:g} s of silence, where one is due after "
            f"{HEARTBEAT_SECONDS} s",
            "unless [limits] heartbeat_seconds is longer, something swallows them: " + BUFFERING,
        )
    return untested(
        "idle",
        f"the stream stays open through {seconds:g} s of silence; time-outs that are longer are "
        "not tested",
        f"--idle {2 * HEARTBEAT_SECONDS} waits for a heartbeat, which comes after "
        f"{HEARTBEAT_SECONDS} s",
    )


def not_a_node(response: httpx.Response) -> Finding:
    status, kind = response.status_code, media_type(response) or "no media type"
    if response.is_redirect:
        where = response.headers.get("location", "")[:200]
        return problem("node", f"the answer is a redirect to {where!r}", "use that URL")
    if object_of(response).get("code") == "unknown_host":
        remedy = "name it in the node's [http] public_url, or list it in [http] hosts"
        return problem(
            "node",
            f"the node is asked by a name that it does not serve: {detail(response)}",
            remedy,
        )
    if status in (502, 503, 504):
        found = f"a proxy answers {status}: it does not reach the node"
        return problem("node", found, "see that the node runs, and where the proxy looks for it")
    if status in (401, 403, 407):
        found = f"access is refused with {status} ({kind})"
        return problem("node", found, "give a --token, or ask who runs the proxy")
    return problem(
        "node",
        f"what answers is not a repl-broker node: {status} with {kind}",
        "is the URL right, with the path under which the proxy has the node?",
    )


def refused_publish(response: httpx.Response) -> Finding:
    if "problem+json" in media_type(response):
        found = f"the publish is refused with {response.status_code}: {detail(response)}"
        return problem("publish", found, hint(response))
    found = f"the publish is answered {response.status_code} with {media_type(response) or 'none'}"
    remedy = "a proxy refuses it: look which methods and bodies it lets through"
    return problem("publish", found, remedy)


def hint(response: httpx.Response) -> str:
    match object_of(response).get("code"):
        case "unauthenticated" | "forbidden":
            return "give a --token that may publish and subscribe to the topic"
        case "topic_not_found":
            return "create the topic ([topics] auto_create is off), or name another with --topic"
        case "rate_limited" | "too_many_connections":
            return "wait, or raise the limit that is named"
        case "no_leader":
            return (
                "see what the ready check says, that a majority of the nodes runs, and that they "
                "reach each other"
            )
    return "the answer says what to do"


def cors_objection(response: httpx.Response, origin: str) -> str:
    allowed = response.headers.get_list("access-control-allow-origin")
    if not allowed:
        return "there is no Access-Control-Allow-Origin"
    if len(allowed) > 1:
        return f"Access-Control-Allow-Origin is there {len(allowed)} times"
    if allowed[0] not in ("*", origin):
        return f"Access-Control-Allow-Origin is {allowed[0][:100]!r}"
    if response.request.method != "OPTIONS":
        return ""
    if not response.is_success:
        return f"the preflight is answered {response.status_code}"
    methods = response.headers.get("access-control-allow-methods", "").upper()
    return "" if "POST" in methods or "*" in methods else "the preflight does not allow POST"


# --- answers ------------------------------------------------------------------------------


async def hang_up(response: httpx.Response) -> None:
    """Close the connection below: whatever is read from it next fails."""
    await response.extensions["network_stream"].aclose()


async def read(response: httpx.Response) -> httpx.Response:
    """The whole answer; the connection is given back. Raises HTTPError, also if it is too long."""
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                await hang_up(response)
    finally:
        with trio.CancelScope(shield=True):
            await response.aclose()
    # The coding is undone already.
    headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() != "content-encoding"]
    return httpx.Response(
        response.status_code, headers=headers, content=bytes(body), request=response.request
    )


def object_of(response: httpx.Response) -> dict[str, Any]:
    try:
        found = json.loads(response.content)
    except (ValueError, RecursionError, httpx.ResponseNotRead):
        return {}
    return found if isinstance(found, dict) else {}


def detail(response: httpx.Response) -> str:
    found = object_of(response)
    text = f"{found.get('detail', response.reason_phrase)} [{found.get('code', '?')}]"
    return text[:500]


def reasons(response: httpx.Response) -> str:
    """Why a node is not ready: all that it says."""
    found = object_of(response).get("reasons")
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return detail(response)
    shown = (f"{each.get('detail', '')} [{each.get('code', '?')}]" for each in found)
    return " ".join(shown)[:1000] or detail(response)


def remedy_of(response: httpx.Response) -> str:
    """Of a node that is not ready, for each of its reasons."""
    found = object_of(response).get("reasons")
    each_of = found if isinstance(found, list) else []
    codes = [str(each.get("code")) for each in each_of if isinstance(each, dict)]
    known = [NOT_READY_REMEDIES[code] for code in codes if code in NOT_READY_REMEDIES]
    return "; ".join(known) or "look at the node's log and the cluster"


def media_type(response: httpx.Response) -> str:
    value: str = response.headers.get("Content-Type", "")
    return value.partition(";")[0].strip().lower()


def version_of(response: httpx.Response) -> str | None:
    info = object_of(response).get("info")
    version = info.get("version") if isinstance(info, dict) else None
    return version[:64] if isinstance(version, str) else None


def reason(error: BaseException) -> str:
    """The innermost words of an error."""
    while isinstance(error.__cause__, BaseException) and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def uses_proxy(scheme: str, host: str) -> bool:
    """Whether the environment sends requests for ``host`` through a proxy."""
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
