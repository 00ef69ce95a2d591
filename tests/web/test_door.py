"""The door over real loopback sockets: no request brings it down, none outstays its limit.

The applications here are plain ASGI (so that the door is tested, not Quart) but for
a few that need Quart-Trio's way of cancelling a request. Every test runs under a
time limit, and waits for events, never for time.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import h11
import pytest
import trio
import trio.testing
import trustme
from hpack import Encoder
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame
from quart import Response, request
from quart_trio import QuartTrio

from repl_broker.certificates import ALPN
from repl_broker.errors import ConfigError
from repl_broker.web import door as door_module
from repl_broker.web.body import ASK_FOR_BODY
from repl_broker.web.door import Connection, Door, DoorOptions, DoorStatistics, open_listeners
from repl_broker.web.tcp import prepare

TEST_SECONDS_MAX = 5
MIB = 1024 * 1024
GET_HELLO = b"GET /hello HTTP/1.1\r\nhost: [::1]\r\n\r\n"


# The applications.


class App:
    """Plain ASGI: a path a behaviour, and an event for each thing a test waits for."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.release = trio.Event()
        self.disconnected = trio.Event()
        self.raised: list[BaseException] = []
        self.handlers: dict[str, Handler] = {
            "/hello": self.hello,
            "/echo": self.echo,
            "/hold": self.hold,
            "/stream": self.stream,
            "/endless": self.endless,
            "/impatient": self.impatient,
            "/crash": self.crash,
            "/crash-midway": self.crash_midway,
            "/nothing": self.nothing,
            "/unread": self.unread,
        }

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        assert scope["type"] == "http"
        self.ask_for_body = scope["state"][ASK_FOR_BODY]
        await self.handlers[scope["path"]](receive, send)

    async def hello(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await answer(send, b"hello")

    async def echo(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await self.ask_for_body()
        body = b""
        more = True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            more = message["more_body"]
        await answer(send, body)

    async def hold(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer once released."""
        self.entered.set()
        await self.release.wait()
        await answer(send, b"held")

    async def stream(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """A silent event stream: ends when the client leaves."""
        await start(send)
        await send({"type": "http.response.body", "body": b": hi\n\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        assert (await receive())["type"] == "http.disconnect"  # for ever
        self.disconnected.set()

    async def endless(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Send without end, whether anyone reads or not, and swallow every OSError but the last."""
        await start(send)
        self.entered.set()
        while len(self.raised) < 3:
            try:
                await send({"type": "http.response.body", "body": b"x" * MIB, "more_body": True})
            except OSError as error:
                self.raised.append(error)
        self.disconnected.set()

    async def impatient(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Give up on a slow reader by itself."""
        await start(send)
        with trio.move_on_after(0.05):
            await send({"type": "http.response.body", "body": b"x" * 64 * MIB, "more_body": True})
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b"tail", "more_body": False})
        self.disconnected.set()

    async def crash(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async with trio.open_nursery():
            raise ValueError("boom\nand a second line")

    async def crash_midway(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await start(send)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ValueError("boom")

    async def nothing(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Return without an answer."""

    async def unread(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer without having read the body, once much of it is here."""
        await trio.testing.wait_all_tasks_blocked()
        await answer(send, b"too much", status=413)


Handler = Callable[[ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]


async def start(send: ASGISendCallable) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def answer(send: ASGISendCallable, body: bytes, *, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def quart_app(body_bytes_max: int = MIB) -> QuartTrio:
    app = QuartTrio(__name__)
    app.config["MAX_CONTENT_LENGTH"] = body_bytes_max

    @app.route("/hello")
    async def hello() -> str:
        return "hello"

    @app.post("/echo")
    async def echo() -> bytes:
        return await request.get_data()

    return app


# The door and a client of it.


@asynccontextmanager
async def open_door(
    app: ASGIFramework,
    *,
    ssl_context: ssl.SSLContext | None = None,
    listeners: list[trio.SocketListener] | None = None,
    **limits: float,
) -> AsyncIterator[Door]:
    """A running door; at the end it must stop by itself, with nobody cut off late."""
    with trio.fail_after(TEST_SECONDS_MAX):
        listeners = listeners or await open_listeners("127.0.0.1", 0, 16)
        give = None if ssl_context is None else lambda: ssl_context
        door = Door(app, listeners, DoorOptions(**limits), ssl_context=give)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            await nursery.start(door.run)
            yield door
            door.stop(grace_seconds=0.5)
        assert door.connections == 0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The problem's code; the other members are checked on the way."""
        assert self.headers["content-type"] == "application/problem+json"
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem.keys() == {"type", "title", "status", "detail", "code"}
        return str(problem["code"])


class Client:
    """Sends bytes as they are, and reads answers one by one."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive_answer(self) -> Answer:
        head, self.buffer = (await self._read_until(b"\r\n\r\n")).split(b"\r\n\r\n", 1)
        status_line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in lines)}
        status = int(status_line.split()[1])
        if status == 100:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = await self._receive_chunks()
        else:
            body = await self._take(int(headers["content-length"]))
        return Answer(status, headers, body)

    async def receive_end(self) -> bytes:
        """What is left until the server closes the connection, in an orderly way."""
        while data := await self.stream.receive_some():
            self.buffer += data
        rest, self.buffer = self.buffer, b""
        return rest

    async def receive_end_or_reset(self) -> None:
        with suppress(trio.BrokenResourceError):
            await self.receive_end()

    async def get(self, path: str) -> Answer:
        await self.send(f"GET {path} HTTP/1.1\r\nhost: [::1]\r\n\r\n".encode())
        return await self.receive_answer()

    async def _receive_chunks(self) -> bytes:
        body = b""
        while True:
            size, self.buffer = (await self._read_until(b"\r\n")).split(b"\r\n", 1)
            chunk = await self._take(int(size, 16) + 2)
            if chunk == b"\r\n":
                return body
            body += chunk[:-2]

    async def _read_until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            await self._read_more()
        return self.buffer

    async def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._read_more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    async def _read_more(self) -> None:
        data = await self.stream.receive_some()
        assert data, f"the server closed after {self.buffer!r}"
        self.buffer += data


@asynccontextmanager
async def connect(
    door: Door, *, receive_buffer_bytes: int | None = None, source: str = "127.0.0.1"
) -> AsyncIterator[Client]:
    tcp_socket = trio.socket.socket()
    await tcp_socket.bind((source, 0))
    if receive_buffer_bytes is not None:
        tcp_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    await tcp_socket.connect(("127.0.0.1", door.port))
    async with trio.SocketStream(tcp_socket) as stream:
        yield Client(stream)


def reset(client: Client) -> None:
    assert isinstance(client.stream, trio.SocketStream)
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.stream.socket.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let everyone else run until the condition holds (the test's time limit bounds it)."""
    while not condition():
        await trio.lowlevel.checkpoint()


async def assert_serves(door: Door) -> None:
    async with connect(door) as client:
        assert (await client.get("/hello")).body == b"hello"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# The six requests that end stock Hypercorn.


def http2(*frames: Frame) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def http2_headers(*fields: tuple[bytes, bytes], flags: tuple[str, ...] = ("END_STREAM",)) -> Frame:
    frame = HeadersFrame(1, Encoder().encode(fields, huffman=False))
    frame.flags.add("END_HEADERS")
    for flag in flags:
        frame.flags.add(flag)
    return frame


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2(SettingsFrame(0))
METHOD, PATH, SCHEME, AUTHORITY = (
    (b":method", b"GET"),
    (b":path", b"/hello"),
    (b":scheme", b"http"),
    (b":authority", b"door"),
)
CRASHERS = {
    "http2_data_after_the_response": [
        PREFACE + http2(http2_headers((b":method", b"POST"), PATH, SCHEME, AUTHORITY, flags=())),
        http2(DataFrame(1, b"late")),
    ],
    "http2_path_not_ascii": [
        PREFACE + http2(http2_headers(METHOD, (b":path", b"/\xff"), SCHEME, AUTHORITY))
    ],
    "http2_method_not_ascii": [
        PREFACE + http2(http2_headers((b":method", b"G\xcbT"), PATH, SCHEME, AUTHORITY))
    ],
    "http2_connect_without_path": [
        PREFACE + http2(http2_headers((b":method", b"CONNECT"), AUTHORITY))
    ],
    "h2c_upgrade_with_bad_settings": [
        b"GET /hello HTTP/1.1\r\nhost: [::1]\r\nconnection: upgrade, http2-settings\r\n"
        b"upgrade: h2c\r\nhttp2-settings: A\r\n\r\n"
    ],
    "byte_after_websocket_upgrade": [
        b"GET /hello HTTP/1.1\r\nhost: [::1]\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"\x00",
    ],
}


@pytest.mark.parametrize("parts", CRASHERS.values(), ids=CRASHERS.keys())
async def test_door_survives_the_requests_that_end_stock_hypercorn(parts: list[bytes]) -> None:
    """ECOSYSTEM section 1: six unauthenticated triggers."""
    async with open_door(App()) as door:
        async with connect(door) as client:
            with suppress(trio.BrokenResourceError):
                for part in parts:
                    await client.send(part)
                    await trio.testing.wait_all_tasks_blocked()
        await assert_serves(door)
        assert door.statistics().failed == 0


async def test_http2_with_prior_knowledge_is_refused() -> None:
    """RFC 9113 section 3.3; DESIGN section 8: HTTP/2 belongs to the proxy in front."""
    async with open_door(App()) as door, connect(door) as client:
        await client.send(PREFACE)
        refusal = await client.receive_answer()
        assert (refusal.status, refusal.code) == (505, "http_version_not_supported")
        assert await client.receive_end() == b""


async def test_h2c_upgrade_is_answered_in_http11() -> None:
    """RFC 9110 section 7.8: a server may ignore an Upgrade."""
    async with open_door(App()) as door, connect(door) as client:
        await client.send(CRASHERS["h2c_upgrade_with_bad_settings"][0])
        assert (await client.receive_answer()).body == b"hello"
        assert (await client.get("/hello")).body == b"hello"


async def test_websocket_upgrade_is_refused() -> None:
    """RFC 6455 section 4.2.2: any answer but 101 says no."""
    async with open_door(App()) as door, connect(door) as client:
        await client.send(CRASHERS["byte_after_websocket_upgrade"][0])
        refusal = await client.receive_answer()
        assert (refusal.status, refusal.code) == (400, "malformed_request")
        assert "WebSocket" in json.loads(refusal.body)["detail"]


# Failures stay inside their connection.


@pytest.mark.parametrize("path", ["/crash", "/nothing"])
async def test_application_that_fails_before_its_answer_is_a_500(path: str) -> None:
    async with open_door(App()) as door:
        async with connect(door) as client:
            failure = await client.get(path)
            assert (failure.status, failure.code) == (500, "internal_error")
            assert failure.headers["connection"] == "close"
            assert await client.receive_end() == b""
        await assert_serves(door)
        assert door.statistics().failed == (1 if path == "/crash" else 0)


async def test_application_failure_is_one_line_and_a_traceback_at_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger=door_module.__name__)
    async with open_door(App()) as door, connect(door) as client:
        await client.send(b"GET /crash?token=secret HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await client.receive_answer()
    (error,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    (debug,) = [record for record in caplog.records if record.exc_info]
    assert re.fullmatch(
        r"application failed peer=127.0.0.1:\d+ method=GET path=/crash "
        r"error='ValueError: boom and a second line'",
        error.getMessage(),
    )
    assert debug.levelno == logging.DEBUG
    assert "secret" not in caplog.text


async def test_application_that_fails_midway_leaves_its_response_unfinished() -> None:
    """RFC 9112 section 8: without the last chunk the client knows that it is incomplete."""
    async with open_door(App()) as door:
        async with connect(door) as client:
            await client.send(b"GET /crash-midway HTTP/1.1\r\nhost: [::1]\r\n\r\n")
            rest = await client.receive_end()
            assert rest.endswith(b"5\r\nbegun\r\n")
        await assert_serves(door)


async def test_failure_of_the_protocol_ends_its_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hypercorn #228, reverted: an exception of one connection ended the server."""

    async def fail(*_: object) -> None:
        raise KeyError("a bug\nof hypercorn")

    async with open_door(App()) as door:
        async with connect(door) as client:
            with monkeypatch.context() as patch:
                patch.setattr(door_module._Protocol, "handle", fail)
                await client.send(GET_HELLO)
                await client.receive_end_or_reset()
        await assert_serves(door)
        await until(lambda: door.connections == 0)
        assert door.statistics() == DoorStatistics(0, 2, 0, failed=1, connections_max=10_000)
    assert "connection failed peer=127.0.0.1:" in caplog.text
    assert "Traceback" not in caplog.text


async def test_nothing_is_printed_and_no_handler_added(capfd: pytest.CaptureFixture[str]) -> None:
    """ECOSYSTEM section 1: unless given a logger, Hypercorn adds handlers of its own."""
    async with open_door(App()) as door, connect(door) as client:
        await client.get("/crash")
    assert logging.getLogger("hypercorn.error").handlers == []
    assert logging.getLogger("hypercorn.access").handlers == []
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# Ordinary HTTP/1.1.


async def test_connection_serves_many_requests() -> None:
    """RFC 9112 section 9.3."""
    async with open_door(App()) as door, connect(door) as client:
        for _ in range(20):
            hello = await client.get("/hello")
            assert (hello.status, hello.body) == (200, b"hello")
            assert "server" not in hello.headers
            assert "connection" not in hello.headers
        assert door.statistics().accepted == 1


class _Turns(trio.abc.Instrument):
    """Counts the turns of the event loop."""

    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_requests_that_come_together_begin_one_in_a_turn_of_the_loop() -> None:
    """So many of them are no single long turn, for which a publish beside them would wait."""
    app, turns, began = App(), _Turns(), list[int]()
    hello = app.handlers["/hello"]

    async def noted(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        began.append(turns.number)
        await hello(receive, send)

    app.handlers["/hello"] = noted
    async with open_door(app) as door, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(door)) for _ in range(20)]
        trio.lowlevel.add_instrument(turns)
        stack.callback(trio.lowlevel.remove_instrument, turns)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.send, GET_HELLO)
        for client in clients:
            assert (await client.receive_answer()).body == b"hello"
    assert len(set(began)) == len(began) == 20


async def test_pipelined_requests_are_answered_in_order() -> None:
    """RFC 9112 section 9.3.2."""
    app = App()
    async with open_door(app) as door, connect(door) as client:
        await client.send(b"GET /hold HTTP/1.1\r\nhost: [::1]\r\n\r\n" + GET_HELLO[:10])
        await app.entered.wait()
        await client.send(GET_HELLO[10:] + GET_HELLO)
        app.release.set()
        bodies = [(await client.receive_answer()).body for _ in range(3)]
        assert bodies == [b"held", b"hello", b"hello"]


async def test_reading_ahead_is_bounded() -> None:
    """What is pipelined behind a request that takes its time is not all taken into memory."""
    app = App()
    async with (
        open_door(app) as door,
        connect(door) as client,
        trio.open_nursery() as nursery,
    ):
        await client.send(b"GET /hold HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await app.entered.wait()
        nursery.start_soon(client.send, GET_HELLO * (16 * MIB // len(GET_HELLO)))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks, "the door took it all"
        app.release.set()
        nursery.cancel_scope.cancel()


async def test_expect_100_continue_is_honoured() -> None:
    """RFC 9110 section 10.1.1."""
    async with open_door(App()) as door, connect(door) as client:
        await client.send(
            b"POST /echo HTTP/1.1\r\nhost: [::1]\r\n"
            b"content-length: 4\r\nexpect: 100-continue\r\n\r\n"
        )
        assert (await client.receive_answer()).status == 100
        await client.send(b"body")
        assert (await client.receive_answer()).body == b"body"


@pytest.mark.parametrize("path", ["/hello", "/unread"])
async def test_nobody_is_told_to_continue_with_a_body_that_is_not_wanted(path: str) -> None:
    async with open_door(App()) as door, connect(door) as client:
        await client.send(
            f"POST {path} HTTP/1.1\r\nhost: [::1]\r\n"
            "content-length: 4\r\nexpect: 100-continue\r\n\r\n".encode()
        )
        answer = await client.receive_answer()
        assert answer.status == (200 if path == "/hello" else 413)
        assert answer.headers["connection"] == "close"  # the body may come, or may not
        assert await client.receive_end() == b""


async def test_who_does_not_wait_is_not_told_to_continue() -> None:
    async with open_door(App()) as door, connect(door) as client:
        await client.send(
            b"POST /echo HTTP/1.1\r\nhost: [::1]\r\n"
            b"content-length: 4\r\nexpect: 100-continue\r\n\r\nbody"
        )
        assert (await client.receive_answer()).body == b"body"


async def test_chunked_body_is_read() -> None:
    """RFC 9112 section 7.1."""
    async with open_door(App()) as door, connect(door) as client:
        await client.send(
            b"POST /echo HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel"
        )
        await client.send(b"lo\r\n7\r\n, world\r\n0\r\n\r\n")
        assert (await client.receive_answer()).body == b"hello, world"


async def test_large_body_reaches_the_application_whole() -> None:
    async with open_door(App()) as door, connect(door) as client:
        await client.send(b"POST /echo HTTP/1.1\r\nhost: [::1]\r\ncontent-length: 3145728\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"abc" * MIB)
            echo = await client.receive_answer()
        assert echo.body == b"abc" * MIB


async def test_a_target_in_absolute_form_is_read_as_one_in_origin_form() -> None:
    """RFC 9112 section 3.2.2; a scheme may be written in any letters."""
    async with open_door(App()) as door, connect(door) as client:
        for target in ("http://door/hello", "HTTPS://DOOR/hello", "http://Door/hello?x=//y"):
            await client.send(f"GET {target} HTTP/1.1\r\nhost: dOOr\r\n\r\n".encode())
            assert (await client.receive_answer()).body == b"hello"


@pytest.mark.parametrize("method", ["GET", "HEAD", "CONNECT", "PRIX"])
@pytest.mark.parametrize("offer", ["h2c", "TLS/1.2", "x"])
async def test_an_offer_to_upgrade_is_not_taken(method: str, offer: str) -> None:
    """RFC 9110 section 7.8: the answer is what it would have been, and the next one follows."""
    head = f"{method} /hello HTTP/1.1\r\nhost: [::1]\r\nconnection: upgrade\r\nupgrade: {offer}\r\n"
    async with open_door(App()) as door, connect(door) as client:
        if method in ("HEAD", "CONNECT"):  # an answer to these has no body, or is no answer
            await client.send(f"{head}connection: close\r\n\r\n".encode())
            assert (await client.receive_end()).startswith(b"HTTP/1.1 200")
            return
        for _ in range(2):
            await client.send(f"{head}\r\n".encode())
            assert (await client.receive_answer()).body == b"hello"
        assert door.statistics().failed == 0


@pytest.mark.parametrize("place", ["next_event", "_create_stream"])
async def test_what_no_parser_should_raise_is_a_400_and_a_line(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("what a library says\nin two lines")

    owner = h11.Connection if place == "next_event" else H11Protocol
    monkeypatch.setattr(owner, place, fail)
    async with open_door(App()) as door, connect(door) as client:
        await client.send(GET_HELLO)
        answer = await client.receive_answer()
        assert (answer.status, answer.code) == (400, "malformed_request")
        assert await client.receive_end() == b""
        assert door.statistics().failed == 0
    (line,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert "what a library says" in line
    assert "\n" not in line


# Requests that are refused.

MALFORMED = "malformed_request"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "malformed_request"),
        (b"GET /hello\r\n\r\n", 400, "malformed_request"),
        (b"GET /hello HTTP/1.1\r\n\r\n", 400, "malformed_request"),  # no Host
        (b"CONNECT door:80 HTTP/1.1\r\nhost: [::1]\r\n\r\n", 400, "malformed_request"),
        (b"GET ?x HTTP/1.1\r\nhost: [::1]\r\n\r\n", 400, "malformed_request"),
        (
            b"POST /echo HTTP/1.1\r\nhost: [::1]\r\ncontent-length: 5\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "malformed_request",
        ),
        (
            b"POST /echo HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: gzip\r\n\r\n",
            501,
            "transfer_coding_not_implemented",
        ),
        (b"GET /hello HTTP/3.0\r\nhost: [::1]\r\n\r\n", 505, "http_version_not_supported"),
        (b"get /hello HTTP/1.1\r\nhost: [::1]\r\n\r\n", 501, "method_not_implemented"),
        (b"CONNECT /hello HTTP/1.1\r\nhost: [::1]\r\nupgrade: websocket\r\n\r\n", 400, MALFORMED),
        (b"GET http://other/hello HTTP/1.1\r\nhost: [::1]\r\n\r\n", 400, MALFORMED),
        (b"GET http://door//hello HTTP/1.1\r\nhost: [::1]\r\n\r\n", 400, MALFORMED),
        (b"GET http:/hello HTTP/1.1\r\nhost: [::1]\r\n\r\n", 400, MALFORMED),
        (
            b"GET /hello HTTP/1.1\r\nhost: [::1]\r\nupgrade: websocket\r\nupgrade: h2c\r\n\r\n",
            400,
            MALFORMED,
        ),
        (
            b"GET /hello HTTP/1.1\r\nhost: [::1]\r\nx: " + b"x" * 3000,
            431,
            "headers_too_large",
        ),
    ],
)
async def test_bad_request_is_answered_with_a_problem_and_a_close(
    data: bytes, status: int, code: str
) -> None:
    """RFC 9112 section 2.2; RFC 9457."""
    async with open_door(App(), header_bytes_max=1024) as door:
        async with connect(door) as client:
            await client.send(data)
            refusal = await client.receive_answer()
            assert (refusal.status, refusal.code) == (status, code)
            assert refusal.headers["connection"] == "close"
            assert await client.receive_end() == b""
        await assert_serves(door)
        assert door.statistics().failed == 0


async def test_refusal_of_a_head_request_has_no_body() -> None:
    """RFC 9110 section 9.3.2."""
    async with open_door(App()) as door, connect(door) as client:
        await client.send(
            b"HEAD /hello HTTP/1.1\r\nhost: [::1]\r\n"
            b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
        )
        head, body = (await client.receive_end()).split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert body == b""


async def test_broken_chunk_tells_the_application_that_the_client_is_gone() -> None:
    app = App()
    async with open_door(app) as door, connect(door) as client:
        await client.send(
            b"POST /stream HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        await client._read_until(b": hi\n\n")
        await client.send(b"5\r\nhello\r\nno number\r\n")
        await app.disconnected.wait()
        await client.receive_end_or_reset()


# Clients that leave.


@pytest.mark.parametrize("behind", [b"", b"\r\n", GET_HELLO, b"upgrade"])
@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
async def test_client_that_leaves_a_silent_stream_is_noticed_at_once(
    how: str, behind: bytes
) -> None:
    """ECOSYSTEM section 1, also with bytes behind the request, where stock Hypercorn is blind."""
    app = App()
    upgrade = b"connection: upgrade\r\nupgrade: other\r\n" if behind == b"upgrade" else b""
    async with open_door(app) as door, connect(door) as client:
        await client.send(b"GET /stream HTTP/1.1\r\nhost: [::1]\r\n" + upgrade + b"\r\n")
        await client._read_until(b": hi\n\n")
        await client.send(behind.removeprefix(b"upgrade"))
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(client.stream, trio.SocketStream)
        if how == "close":
            await client.stream.aclose()
        elif how == "half-close":
            await client.stream.send_eof()
        else:
            reset(client)
        await app.disconnected.wait()
        await until(lambda: door.connections == 0)


async def test_client_that_leaves_an_idle_connection_is_noticed_at_once() -> None:
    """ECOSYSTEM section 1: stock Hypercorn holds the descriptor until its keep-alive ends."""
    async with open_door(App()) as door:
        async with connect(door) as client:
            await client.get("/hello")
            assert door.connections == 1
        await until(lambda: door.connections == 0)


async def test_application_that_ignores_the_disconnect_gets_an_oserror() -> None:
    """ASGI specification 2.4, "Disconnected Client"."""
    app = App()
    async with open_door(app) as door, connect(door) as client:
        await client.send(b"GET /endless HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await app.entered.wait()
        reset(client)
        await app.disconnected.wait()
        assert len(app.raised) == 3
        await until(lambda: door.connections == 0)
        assert door.statistics().failed == 0


# Time limits.


async def test_header_that_does_not_end_is_a_408() -> None:
    async with open_door(App(), header_timeout_seconds=0.05) as door, connect(door) as client:
        await client.send(GET_HELLO[:-2])
        refusal = await client.receive_answer()
        assert (refusal.status, refusal.code) == (408, "request_timeout")


async def test_connection_that_never_asks_is_closed_without_a_word() -> None:
    """Browsers connect ahead of need, and do not expect an answer to no question."""
    async with open_door(App(), header_timeout_seconds=0.05) as door, connect(door) as client:
        assert await client.receive_end() == b""


async def test_later_header_has_its_time_limit_too() -> None:
    async with (
        open_door(App(), header_timeout_seconds=0.05) as door,
        connect(door) as client,
    ):
        await client.get("/hello")
        await client.send(GET_HELLO[:5])
        assert (await client.receive_answer()).code == "request_timeout"
        await client.receive_end()
        await client.stream.aclose()
        async with connect(door) as second:
            await second.send(GET_HELLO + GET_HELLO[:5])
            assert (await second.receive_answer()).body == b"hello"
            assert (await second.receive_answer()).code == "request_timeout"


@pytest.mark.parametrize("app", [App, quart_app])
async def test_idle_connection_is_closed_after_several_requests(
    app: Callable[[], ASGIFramework],
) -> None:
    """ECOSYSTEM section 1: with Quart-Trio on stock Hypercorn the timer is lost after one."""
    async with open_door(app(), idle_timeout_seconds=0.05) as door, connect(door) as client:
        for _ in range(3):
            assert (await client.get("/hello")).body == b"hello"
        assert await client.receive_end() == b""


async def test_time_limits_of_reading_do_not_touch_a_response_under_way() -> None:
    app = App()
    async with (
        open_door(app, idle_timeout_seconds=0.01, header_timeout_seconds=0.01) as door,
        connect(door) as client,
    ):
        await client.send(b"GET /hold HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await app.entered.wait()
        with trio.move_on_after(0.05):
            await client.stream.receive_some()  # nothing comes: the limits pass
        app.release.set()
        assert (await client.receive_answer()).body == b"held"


async def test_stalled_reader_is_reset_after_the_write_timeout() -> None:
    """ECOSYSTEM section 1: stock Hypercorn waits for it for ever."""
    app = App()
    async with (
        open_door(app, write_timeout_seconds=0.1) as door,
        connect(door, receive_buffer_bytes=4096) as client,
    ):
        await client.send(b"GET /endless HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await app.disconnected.wait()
        await until(lambda: door.connections == 0)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_end()


@pytest.mark.parametrize("target", [b"//hello", b"///hello", b"http://[", b"http://[::1/hello"])
async def test_target_that_is_ambiguous_or_no_url_is_a_400(target: bytes) -> None:
    async with open_door(App()) as door, connect(door) as client:
        await client.send(b"GET " + target + b" HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        assert (await client.receive_answer()).status == 400
        assert door.statistics().failed == 0


async def test_event_stream_that_is_left_unread_for_longer_is_not_reset() -> None:
    """DESIGN section 2, promise 6: a slow reader costs a cursor, not its connection."""
    body = b"x" * 8 * MIB
    sent = trio.Event()

    async def stream(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
        sent.set()

    async with (
        open_door(stream, write_timeout_seconds=0.05) as door,
        connect(door, receive_buffer_bytes=4096) as client,
    ):
        await client.send(GET_HELLO)
        with trio.move_on_after(0.3):  # the stall itself
            await sent.wait()
        assert not sent.is_set()
        # With so small a window the rest would take seconds on some machines.
        assert isinstance(client.stream, trio.SocketStream)
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        assert (await client.receive_answer()).body == body
        await sent.wait()


async def test_slow_reader_that_makes_progress_is_not_reset() -> None:
    """The write timeout is for no progress at all, not for the whole of a large response."""
    body = b"x" * 8 * MIB

    async def large(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await answer(send, body)

    async with (
        open_door(large, write_timeout_seconds=0.1) as door,
        connect(door, receive_buffer_bytes=64 * 1024) as client,
    ):
        await client.send(GET_HELLO)
        began_at = trio.current_time()
        received_bytes = 0
        while received_bytes < len(body):
            received_bytes += len(await client.stream.receive_some(256 * 1024))
            await trio.sleep(0.005)  # the slowness itself; nothing is waited for
        assert trio.current_time() - began_at > 0.1


async def test_application_that_gives_up_a_write_ends_the_connection() -> None:
    """Half a chunk is on the wire: what follows must not be taken for its other half."""
    app = App()
    async with (
        open_door(app) as door,
        connect(door, receive_buffer_bytes=4096) as client,
    ):
        await client.send(b"GET /impatient HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await app.disconnected.wait()
        with suppress(trio.BrokenResourceError):
            assert b"tail" not in await client.receive_end()
        await until(lambda: door.connections == 0)
        assert door.statistics().failed == 0


# Answers that come before the request has ended.


def send_first_read_later(port: int, head: bytes, body: bytes) -> bytes:
    """A simple client: it has no eyes until all is said."""
    with socket.create_connection(("127.0.0.1", port), timeout=TEST_SECONDS_MAX) as plain:
        plain.sendall(head + body)
        received = b""
        while data := plain.recv(65536):
            received += data
        return received


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_413_reaches_a_client_that_sends_all_before_it_reads(framing: str) -> None:
    """RFC 9112 section 9.6: a close with unread data resets, and the answer is lost."""
    body = b"x" * 10 * MIB
    field = b"content-length: %d" % len(body)
    if framing == "chunked":
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        field = b"transfer-encoding: chunked"
    head = b"POST /echo HTTP/1.1\r\nhost: [::1]\r\n" + field + b"\r\n\r\n"
    async with open_door(quart_app()) as door:
        received = await trio.to_thread.run_sync(send_first_read_later, door.port, head, body)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in received.lower()
        await assert_serves(door)


async def test_application_need_not_read_the_body_to_end_its_response() -> None:
    """On stock Hypercorn the disconnect queues behind the body, and the response never ends."""
    body = b"x" * 10 * MIB
    head = b"POST /unread HTTP/1.1\r\nhost: [::1]\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with open_door(App()) as door:
        received = await trio.to_thread.run_sync(send_first_read_later, door.port, head, body)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert received.endswith(b"too much")


@pytest.mark.parametrize(
    "limits",
    [{"linger_timeout_seconds": 0.05}, {"linger_total_seconds": 0.05}, {"linger_bytes_max": 1}],
    ids=["a pause", "time", "bytes"],
)
async def test_lingering_is_bounded(limits: dict[str, float]) -> None:
    async with open_door(App(), **limits) as door, connect(door) as client:
        await client.send(
            b"POST /unread HTTP/1.1\r\nhost: [::1]\r\ncontent-length: 50000\r\n\r\n..."
        )
        assert (await client.receive_answer()).status == 413
        await client.send(b"...")
        await until(lambda: door.connections == 0)


# Too many connections, too few descriptors.


async def test_connection_beyond_the_cap_is_answered_429() -> None:
    """DESIGN section 4: 429 too_many_connections with Retry-After."""
    async with open_door(App(), connections_max=1) as door:
        async with connect(door) as first:
            assert (await first.get("/hello")).status == 200
            async with connect(door) as second:
                refusal = await second.get("/hello")
                assert (refusal.status, refusal.code) == (429, "too_many_connections")
                assert int(refusal.headers["retry-after"]) > 0
                assert refusal.headers["connection"] == "close"
                assert await second.receive_end() == b""
            assert (await first.get("/hello")).status == 200
        await until(lambda: door.connections == 0)
        await assert_serves(door)
        assert door.statistics().accepted == 3
        assert door.statistics().refused == 1


async def connect_and_receive(port: int) -> bytes:
    with trio.socket.socket() as tcp_socket:
        await tcp_socket.connect(("127.0.0.1", port))  # may see the reset already
        return await tcp_socket.recv(1)


async def test_refusals_are_bounded_in_number() -> None:
    async with open_door(App(), connections_max=0, refusals_max=1) as door:
        async with connect(door) as answered:
            assert (await answered.receive_answer()).status == 429
            with pytest.raises(ConnectionResetError):
                await connect_and_receive(door.port)
        await until(lambda: door._refusals == 0)
        async with connect(door) as third:
            assert (await third.receive_answer()).status == 429
        assert door.statistics() == DoorStatistics(connections=0, accepted=3, refused=3, failed=0)


async def test_refusals_are_bounded_in_time() -> None:
    async with (
        open_door(App(), connections_max=0, linger_timeout_seconds=0.05) as door,
        connect(door) as client,
    ):
        assert (await client.receive_answer()).status == 429
        await until(lambda: door._refusals == 0)


class ExhaustedListener:
    """A listener whose accept fails, as with no descriptor left, before it works again."""

    def __init__(self, listener: trio.SocketListener, failures: int) -> None:
        self.listener = listener
        self.socket = listener.socket
        self.failures = failures

    async def accept(self) -> trio.SocketStream:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await self.listener.accept()


async def test_running_out_of_descriptors_is_survived_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ECOSYSTEM section 1: a traceback per try, ten times a second."""
    monkeypatch.setattr(door_module, "_ACCEPT_RETRY_SECONDS", 0.01)
    (listener,) = await open_listeners("127.0.0.1", 0, 16)
    exhausted = ExhaustedListener(listener, failures=5)
    async with open_door(App(), listeners=[exhausted]) as door:  # type: ignore[list-item]
        await assert_serves(door)
        assert exhausted.failures == 0
    (record,) = caplog.records
    assert "Too many open files" in record.getMessage()
    assert record.exc_info is None


async def test_connections_that_wait_together_are_let_in_together() -> None:
    """Each of them as one that comes alone: its options of TCP, its answer, its place in line."""
    (listener,) = await open_listeners("127.0.0.1", 0, 128)
    prepare(listener.socket)
    address = listener.socket.getsockname()
    waiting = [socket.create_connection(address) for _ in range(70)]
    try:
        async with open_door(App(), listeners=[listener]) as door:
            await until(lambda: door.connections == 70)
            for client in door._open:
                for option in (socket.TCP_NODELAY, socket.TCP_NOTSENT_LOWAT, socket.TCP_KEEPIDLE):
                    value = client.transport.socket.getsockopt(socket.IPPROTO_TCP, option)
                    assert value == listener.socket.getsockopt(socket.IPPROTO_TCP, option) > 0
            for each in waiting:
                each.sendall(b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                answer = await trio.to_thread.run_sync(each.recv, 4096)
                assert answer.startswith(b"HTTP/1.1 200")
    finally:
        for each in waiting:
            each.close()


# Stopping.


async def test_stop_closes_idle_connections_at_once() -> None:
    async with open_door(App()) as door, connect(door) as idle, connect(door) as new:
        await idle.get("/hello")
        await until(lambda: door.connections == 2)
        door.stop(grace_seconds=60)
        assert await idle.receive_end() == b""
        assert await new.receive_end() == b""
        await until(lambda: door.connections == 0)


async def test_stop_lets_a_request_finish_and_says_close() -> None:
    app = App()
    async with open_door(app) as door, connect(door) as busy, connect(door) as begun:
        await busy.send(b"GET /hold HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await begun.send(GET_HELLO[:10])
        await app.entered.wait()
        await until(lambda: all(c._busy or c._protocol.input_pending for c in door._open))
        door.stop(grace_seconds=60)
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", door.port)
        await begun.send(GET_HELLO[10:])
        app.release.set()
        for client, body in (busy, b"held"), (begun, b"hello"):
            last = await client.receive_answer()
            assert (last.body, last.headers["connection"]) == (body, "close")
            assert await client.receive_end() == b""


async def test_stop_closes_after_a_response_whose_header_is_out() -> None:
    began, release = trio.Event(), trio.Event()

    async def slow(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await start(send)
        began.set()
        await release.wait()
        await send({"type": "http.response.body", "body": b"end", "more_body": False})

    async with open_door(slow) as door, connect(door) as client:
        await client.send(GET_HELLO)
        await began.wait()
        door.stop(grace_seconds=60)
        release.set()
        assert (await client.receive_answer()).body == b"end"
        assert await client.receive_end() == b""


async def test_stop_returns_as_soon_as_a_quart_stream_has_ended() -> None:
    """ECOSYSTEM section 1: on stock Hypercorn Quart-Trio cancels the close, 3 s pass."""
    app, ending = quart_app(), trio.Event()

    @app.route("/events")
    async def events() -> Response:
        async def stream() -> AsyncIterator[bytes]:
            yield b": hi\n\n"
            await ending.wait()
            yield b"retry: 2000\n\n"

        response = Response(stream(), mimetype="text/event-stream")
        response.timeout = None
        return response

    async with open_door(app) as door, connect(door) as client:
        await client.send(b"GET /events HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await client._read_until(b": hi\n\n")
        door.stop(grace_seconds=60)
        ending.set()
        assert (await client.receive_answer()).body == b": hi\n\nretry: 2000\n\n"
        assert await client.receive_end() == b""
        await until(lambda: door.connections == 0)


@pytest.mark.parametrize("path", [b"/endless", b"/stream", b"/hold"])
async def test_stop_aborts_what_is_left_after_the_grace(path: bytes) -> None:
    """ECOSYSTEM section 1: a stalled reader hangs stock Hypercorn's shutdown until it leaves."""
    app = App()
    door = Door(app, await open_listeners("127.0.0.1", 0, 16), DoorOptions())
    with trio.fail_after(TEST_SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            await nursery.start(door.run)
            async with connect(door, receive_buffer_bytes=4096) as client:
                await client.send(b"GET " + path + b" HTTP/1.1\r\nhost: [::1]\r\n\r\n")
                await until(lambda: door.connections == 1)
                await trio.testing.wait_all_tasks_blocked()
                stopped_at = trio.current_time()
                door.stop(grace_seconds=60)
                door.stop(grace_seconds=0.1)
                await until(lambda: not nursery.child_tasks)
                assert 0.1 <= trio.current_time() - stopped_at < 1
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_end()


async def test_door_stopped_before_it_runs_returns_at_once() -> None:
    door = Door(App(), await open_listeners("127.0.0.1", 0, 16), DoorOptions())
    with trio.fail_after(TEST_SECONDS_MAX):
        door.stop(grace_seconds=60)
        await door.run()


async def test_cancelling_the_door_aborts_everything_and_is_not_swallowed() -> None:
    app = App()
    door = Door(app, await open_listeners("127.0.0.1", 0, 16), DoorOptions())
    with trio.fail_after(TEST_SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            await nursery.start(door.run)
            async with connect(door) as client:
                await client.send(b"GET /hold HTTP/1.1\r\nhost: [::1]\r\n\r\n")
                await app.entered.wait()
                nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
    assert door.connections == 0
    assert door.statistics().failed == 0
    assert not app.release.is_set()


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols([*ALPN])
    authority.issue_cert("localhost").configure_cert(context)
    return context


@asynccontextmanager
async def connect_tls(door: Door, authority: trustme.CA) -> AsyncIterator[Client]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    tcp_stream = await trio.open_tcp_stream("127.0.0.1", door.port)
    stream = trio.SSLStream(tcp_stream, context, server_hostname="localhost")
    async with stream:
        yield Client(stream)


async def test_tls_serves_http11_only(
    authority: trustme.CA, server_context: ssl.SSLContext
) -> None:
    """RFC 7301: of h2 and http/1.1 the door picks the latter; its close is a TLS close."""
    async with (
        open_door(quart_app(), ssl_context=server_context) as door,
        connect_tls(door, authority) as client,
    ):
        for _ in range(2):
            assert (await client.get("/hello")).body == b"hello"
        assert isinstance(client.stream, trio.SSLStream)
        assert client.stream.selected_alpn_protocol() == "http/1.1"
        door.stop(grace_seconds=60)
        assert await client.receive_end() == b""


async def test_other_limits_are_for_those_who_come_from_now_on() -> None:
    async with open_door(quart_app(), connections_max=2) as door, connect(door) as inside:
        assert (await inside.get("/hello")).body == b"hello"
        door.take_options(DoorOptions(connections_max=1, header_bytes_max=2000))
        async with connect(door) as late:
            assert (await late.receive_answer()).status == 429
        door.take_options(DoorOptions(connections_max=2, header_bytes_max=2000))
        async with connect(door) as wordy:
            await wordy.send(b"GET /hello HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 4000)
            assert (await wordy.receive_answer()).status == 431
        assert (await inside.get("/hello")).body == b"hello"


async def test_tls_handshake_is_bounded(
    authority: trustme.CA, server_context: ssl.SSLContext
) -> None:
    async with open_door(
        App(), ssl_context=server_context, tls_handshake_timeout_seconds=0.1
    ) as door:
        async with connect(door) as silent:
            assert await silent.receive_end() == b""
        async with connect(door) as plain:
            await plain.send(GET_HELLO)
            await plain.receive_end_or_reset()
        async with connect_tls(door, authority) as client:
            assert (await client.get("/hello")).body == b"hello"
        assert door.statistics().failed == 0


async def test_stop_does_not_wait_for_a_tls_handshake(server_context: ssl.SSLContext) -> None:
    async with open_door(App(), ssl_context=server_context) as door, connect(door) as client:
        await until(lambda: door.connections == 1)
        door.stop(grace_seconds=60)
        assert await client.receive_end() == b""


async def test_tls_client_that_sends_first_gets_its_413(
    authority: trustme.CA, server_context: ssl.SSLContext
) -> None:
    body = b"x" * 4 * MIB
    async with (
        open_door(quart_app(), ssl_context=server_context) as door,
        connect_tls(door, authority) as client,
    ):
        head = b"POST /echo HTTP/1.1\r\nhost: [::1]\r\ncontent-length: %d\r\n\r\n" % len(body)
        await client.send(head + body)
        assert (await client.receive_answer()).status == 413


class HoldsBack(trio.abc.SendStream):
    """The last bytes of everything that is sent come later than the rest."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data[:-5])
        await trio.testing.wait_all_tasks_blocked()
        await self._stream.send_all(data[-5:])

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_tls_body_in_a_record_that_comes_in_two_pieces_is_not_late(
    authority: trustme.CA, server_context: ssl.SSLContext
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with open_door(App(), ssl_context=server_context, body_timeout_seconds=1) as door:
        tcp_stream = await trio.open_tcp_stream("127.0.0.1", door.port)
        pieces = trio.StapledStream(HoldsBack(tcp_stream), tcp_stream)
        async with trio.SSLStream(pieces, context, server_hostname="localhost") as stream:
            client = Client(stream)
            await client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            await client.send(b"x" * 100)
            assert (await client.receive_answer()).body == b"x" * 100


async def test_tls_connection_beyond_the_cap_is_answered_429(
    authority: trustme.CA, server_context: ssl.SSLContext
) -> None:
    async with (
        open_door(App(), ssl_context=server_context, connections_max=0) as door,
        connect_tls(door, authority) as client,
    ):
        assert (await client.get("/hello")).code == "too_many_connections"


async def test_tls_reader_that_stalls_is_cut_at_the_write_timeout_and_at_stop(
    authority: trustme.CA, server_context: ssl.SSLContext
) -> None:
    app = App()
    async with (
        open_door(app, ssl_context=server_context, write_timeout_seconds=0.1) as door,
        connect_tls(door, authority) as client,
    ):
        await client.send(b"GET /endless HTTP/1.1\r\nhost: [::1]\r\n\r\n")
        await app.disconnected.wait()
        await until(lambda: door.connections == 0)


# Listening.


async def test_port_zero_is_one_free_port_on_every_address_of_the_host() -> None:
    listeners = await open_listeners("localhost", 0, 16)
    door = Door(App(), listeners, DoorOptions())
    assert {address[1] for address in door.addresses if address} == {door.port}
    assert door.port > 0
    door.stop(0)


def families(listeners: list[trio.SocketListener]) -> list[tuple[int, str]]:
    return [(each.socket.family, each.socket.getsockname()[0]) for each in listeners]


V4, V6 = (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")
needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "expected"),
    [("::", [V6, V4]), ("0::0", [V6, V4]), ("0.0.0.0", [V4]), ("::1", [(V6[0], "::1")])],
)
async def test_every_address_of_ipv6_is_every_one_of_ipv4_as_well(
    host: str, expected: list[tuple[int, str]]
) -> None:
    listeners = await open_listeners(host, 0, 16)
    assert families(listeners) == expected
    async with open_door(App(), listeners=listeners) as door:
        for family, address in expected:
            local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
            with trio.socket.socket(family) as client:
                await client.connect((local, door.port))
                await client.send(GET_HELLO)
                assert (await client.recv(1000)).startswith(b"HTTP/1.1 200")
            assert door.statistics().failed == 0


@needs_ipv6
async def test_a_client_of_ipv4_keeps_its_address_where_both_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Limits and logs go by it, not by one of IPv6 that is made of it."""
    listeners = await open_listeners("::", 0, 16)
    async with open_door(App(), listeners=listeners) as door, connect(door) as client:
        await client.get("/crash")
    assert "peer=127.0.0.1:" in caplog.text


@needs_ipv6
async def test_a_free_port_is_free_for_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the kernel finds for the first may be somebody's for the second."""
    listen, taken = door_module._listen, list[int]()

    async def once_taken(family: int, address: str, port: int, backlog: int) -> trio.SocketListener:
        if port and not taken:
            taken.append(port)
            raise OSError(errno.EADDRINUSE, "taken")
        return await listen(family, address, port, backlog)

    monkeypatch.setattr(door_module, "_listen", once_taken)
    listeners = await open_listeners("::", 0, 16)
    assert len(taken) == 1
    assert families(listeners) == [V6, V4]
    Door(App(), listeners, DoorOptions()).stop(0)


@pytest.mark.parametrize("error", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_without_ipv6_every_address_is_that_of_ipv4(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = trio.socket.socket

    def without(family: int, kind: int) -> trio.socket.SocketType:
        if family == socket.AF_INET6:
            raise OSError(error, "not here")
        return make(family, kind)

    monkeypatch.setattr(trio.socket, "socket", without)
    listeners = await open_listeners("::", 0, 16)
    assert families(listeners) == [V4]
    Door(App(), listeners, DoorOptions()).stop(0)
    with pytest.raises(ConfigError, match=r"\[::1\]"):
        await open_listeners("::1", 0, 16)


async def test_address_in_use_is_a_config_error_of_one_line() -> None:
    (listener,) = await open_listeners("127.0.0.1", 0, 16)
    port = listener.socket.getsockname()[1]
    with pytest.raises(ConfigError) as caught:
        await open_listeners("127.0.0.1", port, 16)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: another program listens there; "
        "stop it, or choose another port"
    )
    await listener.aclose()


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", 65536, "a port is 0 to 65535"),
        ("192.0.2.1", 0, "does not have the address"),  # RFC 5737: nobody has it
        ("no such host", 0, "does not resolve"),
        ("x" * 300, 0, "does not resolve"),
    ],
)
async def test_unusable_address_is_a_config_error_that_names_it(
    host: str, port: int, reason: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        await open_listeners(host, port, 16)
    assert str(caught.value).startswith(f"cannot listen on {host}:{port}: ")
    assert "\n" not in str(caught.value)


async def test_forbidden_port_is_a_config_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests may run as root, to whom no port is forbidden: hence the stand-in."""

    async def forbidden(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(door_module, "_listen", forbidden)
    with pytest.raises(ConfigError, match=r"127.0.0.1:80: permission denied; choose a port above"):
        await open_listeners("127.0.0.1", 80, 16)


async def test_first_address_is_released_when_the_second_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def two(*_: object) -> list[tuple[int, str]]:
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.1")]

    opened: list[trio.SocketListener] = []
    listen = door_module._listen

    async def remember(*args: object) -> trio.SocketListener:
        opened.append(await partial(listen, *args)())
        return opened[-1]

    monkeypatch.setattr(door_module, "_resolve", two)
    monkeypatch.setattr(door_module, "_listen", remember)
    with pytest.raises(ConfigError, match="another program listens there"):
        await open_listeners("127.0.0.1", 0, 16)
    assert {one.socket.fileno() for one in opened} == {-1}


@pytest.mark.parametrize("answers_late", [True, False], ids=["answers", "fails"])
async def test_while_the_door_says_no_the_application_says_nothing_more(
    answers_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, said_no, tried = trio.Event(), trio.Event(), trio.Event()
    write = Connection._write

    async def write_late(connection: Connection, data: bytes) -> None:
        said_no.set()
        await tried.wait()
        await write(connection, data)

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        begun.set()
        await said_no.wait()
        try:
            assert answers_late
            await send({"type": "http.response.start", "status": 415, "headers": []})  # type: ignore[typeddict-item]
            await send({"type": "http.response.body", "body": b"no", "more_body": False})
        finally:
            await trio.lowlevel.checkpoint()
            tried.set()

    monkeypatch.setattr(Connection, "_write", write_late)
    async with open_door(app) as door, connect(door) as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked\r\n\r\n")
        await begun.wait()
        await client.send(b"5\nx")
        answer = await client.receive_answer()
        assert (answer.status, answer.code) == (400, "malformed_request")
        assert await client.receive_end() == b""
        assert door.statistics().failed == (0 if answers_late else 1)


async def test_a_bad_chunk_does_not_end_the_answer_that_an_application_failed_to_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, said_no = trio.Event(), trio.Event()
    write = Connection._write

    async def write_late(connection: Connection, data: bytes) -> None:
        said_no.set()
        chunks = connection._protocol._http._chunks
        assert chunks is not None
        await until(lambda: not chunks.sound)
        await write(connection, data)

    async def app(*_: object) -> None:
        begun.set()
        raise ZeroDivisionError

    monkeypatch.setattr(Connection, "_write", write_late)
    async with open_door(app) as door, connect(door) as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: [::1]\r\ntransfer-encoding: chunked\r\n\r\n")
        await said_no.wait()
        await client.send(b"5\nx")
        answer = await client.receive_answer()
        assert (answer.status, answer.code) == (500, "internal_error")
        assert await client.receive_end() == b""
