"""Peers: the handshake, frames, and what strangers and broken lines can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import memory_stream_pair

from repl_broker.errors import ReplBrokerError
from repl_broker.raft.log import Entry, EntryKind
from repl_broker.raft.rpc import Append, Heartbeat, Rpc
from repl_broker.transport import (
    Me,
    PeerRefusedError,
    PeerUnreachableError,
    Transport,
    TransportOptions,
    _Link,
)

CLUSTER = "c" * 32
SECRET = b"a secret of this cluster"


def heartbeat(sender: str, receiver: str, number: int = 1) -> Heartbeat:
    return Heartbeat(sender=sender, receiver=receiver, term=1, commit=0, round=number)


class Node:
    """One end: what it heard, and how it answers."""

    def __init__(
        self, node_id: str, secret: bytes = SECRET, objection: str | None = None, **options: Any
    ) -> None:
        self.heard: list[Rpc] = []
        self.unreachable: list[str] = []
        self.news = trio.Event()
        self.lost = trio.Event()
        self.transport = Transport(
            Me(CLUSTER, node_id, f"incarnation of {node_id}"),
            secret,
            on_rpc=self.hear,
            on_request=self.answer,
            admit=lambda peer, incarnation, cluster: objection,
            on_unreachable=self.lose,
            options=TransportOptions(**{"retry_seconds_max": 0.05, **options}),
        )
        self.address = ("127.0.0.1", 0)

    def hear(self, rpc: Rpc) -> None:
        self.heard.append(rpc)
        self.news.set()

    def lose(self, peer: str) -> None:
        self.unreachable.append(peer)
        self.lost.set()

    async def answer(self, peer: str, name: str, argument: Any) -> Any:
        if name == "fail":
            raise ReplBrokerError(f"{argument} cannot be done")
        if name == "hang":
            await trio.sleep_forever()
        return (peer, name, argument)

    async def wait_heard(self, count: int) -> list[Rpc]:
        while len(self.heard) < count:
            self.news = trio.Event()
            await self.news.wait()
        return self.heard


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """Nodes that listen on loopback and dial each other."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                node.address = listeners[0].socket.getsockname()[:2]
                await nursery.start(node.transport.run, listeners)
            for node in nodes:
                peers = {n.transport.me.node_id: n.address for n in nodes if n is not node}
                node.transport.set_peers(peers)
            yield
            nursery.cancel_scope.cancel()


async def connected(node: Node, peer: str) -> None:
    await node.transport.call(peer, "ping", None, seconds=10)


# --- between peers ---


async def test_rpcs_arrive_in_order_and_whole() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        await connected(a, "b")
        entries = tuple(Entry(i, 1, EntryKind.DATA, b"x" * 100_000) for i in range(1, 21))
        append = Append(
            sender="a", receiver="b", term=1, prev_index=0, prev_term=0, entries=entries, commit=0
        )
        sent: list[Rpc] = [append, *(heartbeat("a", "b", i) for i in range(200))]
        for rpc in sent:
            a.transport.send(rpc)
        assert await b.wait_heard(len(sent)) == sent


async def test_a_request_gets_its_reply_or_its_refusal() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        assert await a.transport.call("b", "ask", [1, b"2"], seconds=10) == (
            "a", "ask", (1, b"2"),
        )  # fmt: skip
        with pytest.raises(PeerRefusedError, match="7 cannot be done"):
            await a.transport.call("b", "fail", 7, seconds=10)


async def test_a_request_that_is_not_answered_in_time_is_given_up() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        await connected(a, "b")
        with pytest.raises(PeerUnreachableError, match=r"b did not answer in 0.05 s"):
            await a.transport.call("b", "hang", None, seconds=0.05)
        assert await a.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)


async def test_whoever_listens_at_an_address_can_be_asked() -> None:
    a, b = Node("a"), Node("b")
    async with running(b):
        answer = await a.transport.call_address(b.address, "join", "me", seconds=10)
        assert answer == ("a", "join", "me")


async def test_nobody_at_an_address_is_told_in_time() -> None:
    a = Node("a")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()[:2]
    await listener.aclose()
    with pytest.raises(PeerUnreachableError, match="did not answer"):
        await a.transport.call_address(address, "join", "me", seconds=0.1)


async def test_a_lost_connection_is_told_and_made_again() -> None:
    a, b = Node("a"), Node("b")
    async with running(a):
        async with running(b):
            a.transport.set_peers({"b": b.address})
            await connected(a, "b")
            port = b.address[1]
        await a.lost.wait()
        assert a.unreachable == ["b"]
        with pytest.raises(PeerUnreachableError):
            await a.transport.call("b", "ask", 1, seconds=0.05)
        a.transport.send(heartbeat("a", "b"))
        assert a.transport.statistics().dropped == 1
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
            await nursery.start(Node("b").transport.run, listeners)
            assert await a.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)
            nursery.cancel_scope.cancel()


async def test_what_finds_no_room_is_dropped_and_counted() -> None:
    a, b = Node("a", queue_bytes_max=100), Node("b")
    async with running(a, b):
        await connected(a, "b")
        for _ in range(50):
            a.transport.send(heartbeat("a", "b"))
        assert a.transport.statistics().dropped > 30


# --- strangers ---


@pytest.mark.parametrize(("ours", "theirs"), [(SECRET, b"another"), (b"another", SECRET)])
async def test_a_peer_without_the_secret_gets_nothing(ours: bytes, theirs: bytes) -> None:
    a, b = Node("a", secret=ours), Node("b", secret=theirs)
    async with running(a, b):
        with pytest.raises(PeerRefusedError, match="secret"):
            await a.transport.call("b", "ask", 1, seconds=10)
        assert not b.heard


async def test_a_peer_that_is_not_admitted_is_told_why() -> None:
    a, b = Node("a"), Node("b", objection="node 'a' was removed")
    async with running(a, b):
        with pytest.raises(PeerRefusedError, match="node 'a' was removed"):
            await a.transport.call("b", "ask", 1, seconds=10)
        assert b.transport.statistics().refused >= 1


async def test_another_node_at_a_peers_address_is_refused() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        a.transport.set_peers({"c": b.address})
        with pytest.raises(PeerRefusedError, match="is node 'b', not 'c'"):
            await a.transport.call("c", "ask", 1, seconds=10)


def packed(frame: object) -> bytes:
    body: bytes = msgpack.packb(frame)
    return len(body).to_bytes(4, "big") + body


def hello(**changes: Any) -> tuple[Any, ...]:
    words = {
        "kind": "hello",
        "min": 1,
        "max": 1,
        "cluster": CLUSTER,
        "node": "x",
        "incarnation": "i",
        "nonce": bytes(range(32)),
    }
    return tuple({**words, **changes}.values())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        packed("hello"),
        packed(("hello", 1)),
        packed(("proof", b"")),
        packed(hello(min="1")),
        packed(hello(nonce=5)),
        packed(hello())[:-3],
        b"",
    ],
)
async def test_garbage_ends_its_connection_and_nothing_else(garbage: bytes) -> None:
    """RAFT.md scenario 49: the decoder survives garbage."""
    node = Node("a")
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            await theirs.send_all(garbage)
            await theirs.send_eof()
            while await theirs.receive_some():
                pass
    assert not node.heard


async def test_another_protocol_version_is_told_what_to_do() -> None:
    node = Node("a")
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            await theirs.send_all(packed(hello(min=7, max=9)))
            answer = msgpack.unpackb((await theirs.receive_some())[4:])
    assert answer[0] == "refused"
    assert "speaks protocol 1 to 1, the other 7 to 9; upgrade the older one" in answer[1]


async def test_a_stranger_who_says_nothing_is_let_go() -> None:
    node = Node("a", handshake_seconds=0.05)
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        await node.transport.serve(ours)
        assert await theirs.receive_some() == b""
    assert node.transport.statistics().refused == 1


async def test_a_recorded_handshake_proves_nothing() -> None:
    """The acceptor's nonce is new each time, so a dialer's old proof is worth nothing."""
    recorded = bytearray()
    a, b = Node("a"), Node("b")
    dialer_end, wire_a = memory_stream_pair()
    wire_b, acceptor_end = memory_stream_pair()

    async def record(source: trio.StapledStream, sink: trio.StapledStream) -> None:
        while data := await source.receive_some():
            recorded.extend(data)
            await sink.send_all(data)

    async def relay(source: trio.StapledStream, sink: trio.StapledStream) -> None:
        while data := await source.receive_some():
            await sink.send_all(data)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.transport.serve, acceptor_end)
            nursery.start_soon(record, wire_a, wire_b)
            nursery.start_soon(relay, wire_b, wire_a)
            link = _Link(a.transport, "b", ("", 0))
            nursery.start_soon(link.talk, dialer_end)
            await link.call("ask", 1, 5)
            link.put((0, b""))
            nursery.cancel_scope.cancel()
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.transport.serve, ours)
            await theirs.send_all(bytes(recorded))
            said = b""
            while data := await theirs.receive_some():
                said += data
    assert b"the secret is not this cluster's" in said
    assert not b.heard


async def test_an_rpc_in_another_nodes_name_ends_the_connection() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        await connected(a, "b")
        a.transport.send(heartbeat("c", "b"))
        await a.lost.wait()
        assert b.transport.statistics().garbage == 1
        assert b.heard == []


async def test_strangers_at_the_door_are_bounded() -> None:
    node = Node("a", strangers_max=3)
    async with running(node):
        streams = [await trio.open_tcp_stream(*node.address) for _ in range(10)]
        ended = 0
        for stream in streams[3:]:
            with trio.move_on_after(5):
                try:
                    ended += await stream.receive_some() == b""
                except trio.BrokenResourceError:
                    ended += 1
        assert ended == 7
        for stream in streams:
            await stream.aclose()
