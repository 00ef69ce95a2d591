"""The dashboard's feed over real TCP: how it ends, and that it lets go."""

from __future__ import annotations

import pytest

from repl_broker.web.ui import FEEDS_MAX
from tests.contract.client import Node, Stream, request_bytes


async def open_feed(stream: Stream) -> None:
    await stream.open()
    assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
    while not (await stream.block()).startswith(b"id: 1\nevent: sample\n"):
        pass


async def read_out(stream: Stream) -> None:
    while True:
        await stream.block()


async def test_a_feed_ends_in_good_order_when_the_node_shuts_down(node: Node) -> None:
    async with await node.connect() as tcp_stream:
        await tcp_stream.send_all(request_bytes("GET", "/ui/feed", []))
        stream = Stream(tcp_stream)
        await open_feed(stream)
        node.stop()
        with pytest.raises(StopAsyncIteration):
            await read_out(stream)


async def test_who_leaves_makes_room_for_others(node: Node) -> None:
    for _ in range(2 * FEEDS_MAX):
        async with await node.connect() as tcp_stream:
            await tcp_stream.send_all(request_bytes("GET", "/ui/feed", []))
            stream = Stream(tcp_stream)
            await stream.open()
            assert stream.status == 200
            await stream.block()
