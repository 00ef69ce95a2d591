"""What the contract's tests do to a node, over HTTP and over bare sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import h11
import httpx
import trio

from tests.eventsource import blocks

WAIT_SECONDS_MAX: Final = 5
JSON: Final = {"Content-Type": "application/json"}
NDJSON: Final = {"Content-Type": "application/x-ndjson"}


@dataclass(frozen=True)
class Node:
    """A node that runs. ``stop`` asks it to shut down, as SIGTERM does."""

    url: str
    client: httpx.AsyncClient
    stop: Callable[[], None]

    # --- publishing and reading ---

    async def publish(self, topic: str, *values: object) -> list[str]:
        """Publish each value; their event ids."""
        return [await self.publish_raw(topic, json.dumps(value).encode()) for value in values]

    async def publish_raw(self, topic: str, body: bytes) -> str:
        """Publish the bytes of a JSON value; its event id."""
        response = await self.client.post(
            f"/v1/topics/{topic}/messages", content=body, headers=JSON
        )
        assert response.status_code == 201, response.text
        identity: str = response.json()["id"]
        return identity

    async def history(self, topic: str, **params: str | int) -> dict[str, Any]:
        """A page of history."""
        response = await self.client.get(f"/v1/topics/{topic}/messages", params=params)
        assert response.status_code == 200, response.text
        page: dict[str, Any] = response.json()
        return page

    async def data(self, topic: str) -> list[Any]:
        """The data of a topic's messages; none if there is no such topic."""
        response = await self.client.get(f"/v1/topics/{topic}/messages", params={"limit": 1000})
        return [message["data"] for message in response.json().get("messages", [])]

    @asynccontextmanager
    async def events(
        self, *topics: str, after: str | None = None, last: str | None = None
    ) -> AsyncIterator[Stream]:
        """An event stream, whose ``subscribed`` event is still to be read."""
        params = [("topic", topic) for topic in topics]
        params += [] if after is None else [("after", after)]
        async with self.asked(f"/v1/events?{urlencode(params)}", last) as stream:
            yield stream

    @asynccontextmanager
    async def asked(self, target: str, last: str | None = None) -> AsyncIterator[Stream]:
        """The event stream of a target as it stands."""
        headers = [] if last is None else [f"Last-Event-ID: {last}"]
        async with await self.connect() as tcp_stream:
            await tcp_stream.send_all(request_bytes("GET", target, headers))
            stream = Stream(tcp_stream)
            await stream.open()
            yield stream

    # --- bare sockets ---

    async def connect(self) -> trio.SocketStream:
        """A TCP connection to the node."""
        url = urlsplit(self.url)
        assert url.hostname is not None
        assert url.port is not None
        return await trio.open_tcp_stream(url.hostname, url.port)

    async def send(self, request: bytes) -> RawAnswer:
        """Send bytes, as they are, and read the one answer to them."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            async with await self.connect() as stream:
                await stream.send_all(request)
                return await read_answer(stream)


class Stream:
    """The blocks of an event stream, one at a time, as bytes."""

    def __init__(self, tcp_stream: trio.SocketStream) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._tcp_stream = tcp_stream
        self._http = h11.Connection(h11.CLIENT)
        self._http.send(h11.Request(method="GET", target="/", headers=[("Host", "node")]))
        self._http.send(h11.EndOfMessage())
        self._read = b""

    async def open(self) -> None:
        """Read the head of the answer."""
        response = await self._http_event()
        assert isinstance(response, h11.Response)
        self.status = response.status_code
        self.headers = {name.decode(): value.decode() for name, value in response.headers}

    async def block(self) -> bytes:
        """The next block, without the blank line. Raises StopAsyncIteration at the end."""
        while b"\n\n" not in self._read:
            event = await self._http_event()
            if isinstance(event, h11.EndOfMessage):
                assert not self._read, f"the stream ended within a block: {self._read!r}"
                raise StopAsyncIteration
            assert isinstance(event, h11.Data)
            self._read += event.data
        block, _, self._read = self._read.partition(b"\n\n")
        return block

    async def _http_event(self) -> object:
        with trio.fail_after(WAIT_SECONDS_MAX):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._tcp_stream.receive_some())
        return event

    async def event(self) -> dict[str, str]:
        """The next block, as fields; it must be sound."""
        (fields,) = blocks(await self.block() + b"\n\n")
        return fields

    async def subscribed(self) -> dict[str, Any]:
        """Read the beginning of the stream; the data of its ``subscribed`` event."""
        event = await self.event()
        assert (event["event"], event["retry"]) == ("subscribed", "2000")
        data: dict[str, Any] = json.loads(event["data"])
        assert event["id"] == data["position"]
        return data

    async def messages(self, count: int) -> list[dict[str, Any]]:
        """The next ``count`` blocks, which must be messages."""
        found = []
        for _ in range(count):
            event = await self.event()
            assert event.keys() == {"id", "data"}, event
            message: dict[str, Any] = json.loads(event["data"])
            assert message["id"] == event["id"]
            found.append(message)
        return found

    async def data(self, count: int) -> list[Any]:
        """The data of the next ``count`` messages."""
        return [message["data"] for message in await self.messages(count)]

    async def end(self) -> list[bytes]:
        """The blocks up to the end of the stream, which must be near."""
        blocks = []
        while True:
            try:
                blocks.append(await self.block())
            except StopAsyncIteration:
                return blocks


@dataclass(frozen=True)
class RawAnswer:
    """An answer as it came: header names in lower case, a body of a known length."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def read_answer(stream: trio.abc.ReceiveStream, *, body: bool = True) -> RawAnswer:
    """The next answer on a connection; ``body`` is False for that to HEAD."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = await stream.receive_some()
        assert data, f"the node closed after {received!r}"
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    while body and len(rest) < int(headers.get("content-length", 0)):
        data = await stream.receive_some()
        assert data, "the node closed within a body"
        rest += data
    return RawAnswer(int(status_line.split()[1]), headers, rest)


def request_bytes(
    method: str, target: str, headers: Sequence[str] = (), body: bytes = b""
) -> bytes:
    """A request as bytes; nothing is added but a Host."""
    head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *headers, "", ""])
    return head.encode("latin-1") + body


def check_problem(
    response: httpx.Response | RawAnswer, status: int, code: str, *words: str
) -> dict[str, Any]:
    """The response must be this problem, and its detail must have these words in it."""
    found = response.status if isinstance(response, RawAnswer) else response.status_code
    problem: dict[str, Any] = response.json()
    assert (found, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.keys() >= {"type", "title", "status", "detail", "code"}
    assert problem["status"] == status
    assert problem["type"] in {f"/docs#{code}", "about:blank"}  # the door has no page
    for word in words:
        assert word in problem["detail"], problem["detail"]
    if status in {429, 503}:
        assert int(response.headers["retry-after"]) > 0
    return problem
