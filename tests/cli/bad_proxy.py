"""A reverse proxy before a node, over real TCP, that does what proxies should not.

One request a connection. Each wrong is a field; without any, it is a good proxy.
"""

from __future__ import annotations

import re
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

Change = Callable[[bytes], bytes]


def same(data: bytes) -> bytes:
    return data


def without(name: str) -> Change:
    """Take a header field out of a head."""
    return lambda head: re.sub(rf"(?i)\r\n{name}:[^\r]*".encode(), b"", head)


def with_field(line: str) -> Change:
    """Put a header field into a head, in the place of any of its name."""
    name = line.partition(":")[0]
    return lambda head: without(name)(head).replace(
        b"\r\n\r\n", b"\r\n%b\r\n\r\n" % line.encode(), 1
    )


@dataclass
class Wrongs:
    """What this proxy does."""

    request: Change = same  # to heads of requests
    response: Change = same  # to heads of answers
    only_streams: bool = False  # ``response`` is done to event streams alone
    instead: bytes | None = None  # the answer to everything
    holds_heads: bool = False  # streams do not even begin
    holds_after: bytes | None = None  # a stream is held back behind this
    compresses: str = ""  # "flushing" or "holding", for who takes gzip
    cuts_after_silence_seconds: float = float("inf")


@asynccontextmanager
async def bad_proxy(
    upstream: int, wrongs: Wrongs, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A running proxy before the node on port ``upstream``; its own port."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = listener.socket.getsockname()[1]

        async def serve(stream: trio.SocketStream) -> None:
            try:
                await _serve(stream if tls is None else await _secure(stream, tls))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                await trio.aclose_forcefully(stream)

        async def _serve(stream: trio.abc.Stream) -> None:
            async with trio.open_nursery() as connection:
                head, rest = await read_head(stream)
                if not head:
                    return
                connection.start_soon(_until_gone, stream, head, rest, connection)

        async def _until_gone(
            stream: trio.abc.Stream, head: bytes, rest: bytes, connection: trio.Nursery
        ) -> None:
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            while length and len(rest) < int(length[1]):
                rest += await stream.receive_some()
            connection.start_soon(_cancel_when_gone, stream, connection)
            if wrongs.instead is not None:
                await stream.send_all(wrongs.instead)
            else:
                await relay(stream, upstream, head, rest, wrongs)
            await stream.aclose()
            connection.cancel_scope.cancel()

        nursery.start_soon(partial(trio.serve_listeners, serve, [listener]))
        yield port
        nursery.cancel_scope.cancel()


async def _secure(
    stream: trio.SocketStream, tls: ssl.SSLContext
) -> trio.SSLStream[trio.abc.Stream]:
    secured: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(
        stream, tls, server_side=True, https_compatible=True
    )
    await secured.do_handshake()
    return secured


async def _cancel_when_gone(stream: trio.abc.Stream, connection: trio.Nursery) -> None:
    try:
        while await stream.receive_some():
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    connection.cancel_scope.cancel()


async def read_head(stream: trio.abc.Stream) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            return b"", b""
        data += more
    head, end, rest = data.partition(b"\r\n\r\n")
    return head + end, rest


async def relay(
    client: trio.abc.Stream, upstream: int, head: bytes, body: bytes, wrongs: Wrongs
) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", upstream) as node:
        await node.send_all(with_field("Connection: close")(wrongs.request(head)) + body)
        answer, rest = await read_head(node)
        is_stream = b"text/event-stream" in answer
        if is_stream or not wrongs.only_streams:
            answer = wrongs.response(answer)
        if not is_stream:
            await client.send_all(answer + rest)
            async for data in node:
                await client.send_all(data)
            return
        if wrongs.holds_heads:
            await trio.sleep_forever()
        takes_gzip = b"gzip" in head
        if wrongs.compresses and takes_gzip:
            answer = without("Transfer-Encoding")(answer)
            answer = with_field("Content-Encoding: gzip")(answer)
            await client.send_all(answer)
            await compress(client, node, rest, wrongs.compresses == "flushing")
        else:
            await client.send_all(answer)
            await pass_on(client, node, rest, wrongs)


async def pass_on(
    client: trio.abc.Stream, node: trio.abc.Stream, data: bytes, wrongs: Wrongs
) -> None:
    while True:
        if wrongs.holds_after is not None and wrongs.holds_after in data:
            kept = data.index(wrongs.holds_after) + len(wrongs.holds_after)
            await client.send_all(data[:kept])
            await trio.sleep_forever()
        await client.send_all(data)
        with trio.move_on_after(wrongs.cuts_after_silence_seconds):
            data = bytes(await node.receive_some())
            if data:
                continue
        return


async def compress(
    client: trio.abc.Stream, node: trio.abc.Stream, data: bytes, flushing: bool
) -> None:
    compressor = zlib.compressobj(wbits=31)
    while True:
        while match := re.match(rb"([0-9a-f]+)\r\n", data):
            size, start = int(match[1], 16), match.end()
            if not size or len(data) < start + size + 2:
                break
            out = compressor.compress(data[start : start + size])
            if flushing:
                out += compressor.flush(zlib.Z_SYNC_FLUSH)
            await client.send_all(out)
            data = data[start + size + 2 :]
        more = await node.receive_some()
        if not more:
            return
        data += more
