"""Peers: the handshake, frames, and what strangers and broken lines can do."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import msgpack
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from trio.testing import memory_stream_pair

from repl_broker import transport as transport_module
from repl_broker.certificates import PeerContexts
from repl_broker.errors import ReplBrokerError
from repl_broker.handshake import STRANGER, Hello, Lost
from repl_broker.raft.codec import encode_rpc
from repl_broker.raft.log import NUMBER_MAX, Entry, EntryKind
from repl_broker.raft.rpc import Append, AppendReply, Heartbeat, Rpc, VoteReply
from repl_broker.transport import (
    HELLO_BYTES_MAX,
    STRANGER_BYTES_MAX,
    Admit,
    Me,
    PeerRefusedError,
    PeerUnreachableError,
    Transport,
    TransportOptions,
    _Frames,
    _Line,
    _Link,
)

CLUSTER = "c" * 32
SECRET = b"a secret of this cluster"


def heartbeat(sender: str, receiver: str, number: int = 1) -> Heartbeat:
    return Heartbeat(sender=sender, receiver=receiver, term=1, commit=0, round=number)


class Node:
    """One end: what it heard, and how it answers."""

    def __init__(
        self,
        node_id: str,
        secret: bytes | list[bytes] = SECRET,
        objection: str | None = None,
        *,
        incarnation: str | None = None,
        admit: Admit | None = None,
        tls: Callable[[], PeerContexts] | None = None,
        **options: Any,
    ) -> None:
        self.heard: list[Rpc] = []
        self.parts: list[str] = []
        self.unreachable: list[str] = []
        self.losses: list[Lost] = []
        self.news = trio.Event()
        self.lost = trio.Event()
        self.transport = Transport(
            Me(CLUSTER, node_id, incarnation or f"incarnation of {node_id}"),
            [secret] if isinstance(secret, bytes) else secret,
            on_rpc=self.hear,
            on_request=self.answer,
            admit=admit or (lambda hello: objection),
            admit_level=lambda node_id, level: None,
            on_lost=self.losses.append,
            on_part=self.parts.append,
            on_unreachable=self.lose,
            tls=tls,
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
            a.transport.flush()
        assert await b.wait_heard(len(sent)) == sent


async def test_large_entries_arrive_whole_among_others() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        await connected(a, "b")
        sent: list[Rpc] = []
        for number in range(1, 5):
            entry = Entry(number, 1, EntryKind.DATA, bytes([number]) * (3 << 20))
            of_one = {"sender": "a", "receiver": "b", "term": 1, "commit": 0}
            before = {"prev_index": number - 1, "prev_term": int(number > 1)}
            sent += [Append(**of_one, **before, entries=(entry,)), heartbeat("a", "b", number)]
        for rpc in sent:
            a.transport.send(rpc)
        a.transport.flush()
        assert await b.wait_heard(len(sent)) == sent


async def test_the_kernel_is_offered_much_more_of_a_large_frame_than_one_turn_encrypts() -> None:
    """With a turn of the event loop for each small part, a large entry takes many turns."""
    offered: list[int] = []

    class Kernel:
        """Takes some of what it is offered, like a socket's buffer."""

        def fileno(self) -> int:
            return there.fileno()

        def send(self, data: memoryview) -> int:
            offered.append(len(data))
            return 1000

    here, there = trio.socket.socketpair()
    with here, there:
        line = _Line(trio.SocketStream(here), 3000)
        with line:
            assert line._socket is not None
            line._socket.close()
            line._socket = cast(Any, Kernel())
            assert await line.send_some(memoryview(bytes(1 << 20))) == 1000
            line._socket = None
    assert offered == [1 << 20]


async def test_the_kernel_takes_a_mebibyte_of_what_is_not_on_its_way_yet() -> None:
    """Trio would have it take 16 KiB, and the frame wait for a turn with each."""
    async with running(a := Node("a"), b := Node("b")):
        await connected(a, "b")
        lines = [a.transport._links["b"].outbox._line, b.transport._inbound["a"]._line]
        for line in lines:
            assert line is not None
            assert isinstance(line.stream, trio.SocketStream)
            unsent = line.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert unsent == 1 << 20


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
    with trio.fail_after(1), pytest.raises(PeerUnreachableError, match="did not answer") as told:
        await a.transport.call_address(address, "join", "me", seconds=60)
    assert not told.value.sent


async def test_one_who_accepts_and_says_nothing_is_given_up() -> None:
    a = Node("a", handshake_seconds=0.05)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        address = listener.socket.getsockname()[:2]
        with trio.fail_after(1), pytest.raises(PeerUnreachableError, match="did not answer"):
            await a.transport.call_address(address, "join", "me", seconds=60)


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
        a.transport.flush()
        assert a.transport.statistics().dropped == 1
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
            await nursery.start(Node("b").transport.run, listeners)
            assert await a.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)
            nursery.cancel_scope.cancel()


async def test_requests_that_wait_keep_no_heartbeat_waiting() -> None:
    """RAFT.md scenario 9: as many as may be under way kept all behind them from being read."""
    a, b = Node("a"), Node("b", requests_max=4)
    refusals: list[str] = []

    async def hang() -> None:
        try:
            await a.transport.call("b", "hang", None, seconds=30)
        except PeerRefusedError as error:
            refusals.append(str(error))

    async with running(a, b):
        await connected(a, "b")
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(hang)
            await trio.testing.wait_all_tasks_blocked()
            a.transport.send(heartbeat("a", "b"))
            a.transport.flush()
            with trio.fail_after(2):
                assert await b.wait_heard(1) == [heartbeat("a", "b")]
                while len(refusals) < 2:
                    await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert refusals == ["too much is asked at a time"] * 2


async def test_requests_that_were_answered_make_room_for_more() -> None:
    a, b = Node("a"), Node("b", requests_max=4)
    async with running(a, b):
        for number in range(20):
            assert await a.transport.call("b", "ask", number, seconds=10) == ("a", "ask", number)


async def test_who_dials_anew_takes_the_place_of_its_old_connection() -> None:
    """The old one is half open: what is sent over it is lost until the kernel gives it up."""
    a, b = Node("a"), Node("b")
    hello_of = _Link(a.transport, "b", ("", 0))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            ends = []
            for _ in range(2):
                ours, theirs = memory_stream_pair()
                nursery.start_soon(b.transport.serve, ours)
                await hello_of._greet(_Frames(_Line(theirs, 0), HELLO_BYTES_MAX))
                await trio.testing.wait_all_tasks_blocked()
                ends.append(theirs)
            assert await ends[0].receive_some() == b"", "it was ended"
            b.transport.send(heartbeat("b", "a"))
            b.transport.flush()
            assert await ends[1].receive_some() != b""
            nursery.cancel_scope.cancel()


async def test_a_question_by_address_leaves_the_connection_between_two_members_alone() -> None:
    """A leader looks who a newcomer is while it sends it a snapshot, and a member looks around.
    What was under way was lost, and the answers went to one who could not place them."""
    a, b = Node("a"), Node("b")
    replies: list[Any] = []

    async def slow(peer: str, name: str, argument: Any) -> Any:
        await asked_by_address.wait()
        return name

    async def call() -> None:
        replies.append(await a.transport.call("b", "slow", None, seconds=10))

    asked_by_address = trio.Event()
    async with running(a, b):
        b.transport.set_peers({})  # a newcomer: it answers over what a has dialled
        await connected(a, "b")
        answer, b.transport._on_request = b.transport._on_request, slow
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            b.transport._on_request = answer
            for number in range(3):
                found = await a.transport.call_address(b.address, "who", number, seconds=10)
                assert found == ("a", "who", number)
                b.transport.send(heartbeat("b", "a", number))
                b.transport.flush()
                await a.wait_heard(number + 1)
            asked_by_address.set()
        assert replies == ["slow"]
        assert "b" not in a.unreachable
        assert a.transport.statistics().garbage == 0


async def test_what_finds_no_room_is_dropped_and_counted() -> None:
    a, b = Node("a", queue_bytes_max=100), Node("b")
    async with running(a, b):
        await connected(a, "b")
        for _ in range(50):  # before anything of it can go
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


async def test_secrets_that_differ_are_told_on_both_sides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, however often the other comes back."""
    a, b = Node("a", secret=SECRET), Node("b", secret=b"another")
    async with running(b):
        for _ in range(3):
            with pytest.raises(PeerRefusedError, match="the secrets of node 'a' and of the node"):
                await a.transport.call_address(b.address, "join", "me", seconds=10)
        while b.transport.statistics().refused < 3:  # noqa: ASYNC110
            await trio.sleep(0.01)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "peer refused peer=unknown address=127.0.0.1" in warning
    assert "secret_file" in warning


async def test_a_peer_that_is_not_admitted_is_told_why() -> None:
    """RAFT.md scenarios 40, 41: a removed one, say."""
    a, b = Node("a"), Node("b", objection="node 'a' was removed")
    async with running(a, b):
        with pytest.raises(PeerRefusedError, match="node 'a' was removed"):
            await a.transport.call("b", "ask", 1, seconds=10)
        assert b.transport.statistics().refused >= 1


async def test_a_node_that_lost_its_data_is_not_admitted_under_its_old_id() -> None:
    """RAFT.md scenario 41; RethinkDB#5289: the id is the same, the incarnation is not."""
    known = {"a": "incarnation of a"}

    def admit(hello: Hello) -> str | None:
        known_one = known.get(hello.node_id) == hello.incarnation
        return None if known_one else f"{hello.node_id!r} has lost its data"

    a, b = Node("a"), Node("b", admit=admit)
    async with running(a, b):
        assert await a.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)
    wiped, b = Node("a", incarnation="drawn anew"), Node("b", admit=admit)
    async with running(wiped, b):
        with pytest.raises(PeerRefusedError, match="'a' has lost its data"):
            await wiped.transport.call("b", "ask", 1, seconds=10)
        wiped.transport.send(heartbeat("a", "b"))
        wiped.transport.flush()
        assert b.heard == []


async def test_another_node_at_a_peers_address_is_refused() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        a.transport.set_peers({"c": b.address})
        with pytest.raises(PeerRefusedError, match="is node 'b', not 'c'"):
            await a.transport.call("c", "ask", 1, seconds=10)


def packed(frame: object) -> bytes:
    body: bytes = msgpack.packb(frame)
    return len(body).to_bytes(4, "big") + body


KNOCK: Final = ("knock", 2)
OLD_HELLO: Final = ("hello", 1, 1, CLUSTER, "x", "i", bytes(range(32)))  # of protocol 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc1",
        packed("knock"),
        packed(("knock",)),
        packed(("knock", "2")),
        packed(("knock", 2.5)),
        packed(("proof", b"")),
        packed(KNOCK)[:-1],
        packed(KNOCK) + packed(("answer", bytes(31), bytes(32))),
        packed(KNOCK) + packed(("answer", bytes(32), 5)),
        packed(KNOCK) + packed(("answer", bytes(32), b""))[:-1],
        packed(KNOCK) + packed(KNOCK),
        packed(("knock", 2, bytes(STRANGER_BYTES_MAX))),
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


class Pieces(trio.abc.HalfCloseableStream):
    """A stream that gives what it has in pieces of these sizes."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data = data
        self._sizes = sizes

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        size = self._sizes.pop() if self._sizes else len(self._data)
        piece, self._data = self._data[:size], self._data[size:]
        return piece

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise NotImplementedError

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


async def frames_of(data: bytes, sizes: list[int]) -> list[Any]:
    frames = _Frames(_Line(Pieces(data, sizes), 0), HELLO_BYTES_MAX)
    found = []
    while await frames.more():
        while (frame := frames.take()) is not None:
            found.append(frame)
    return found


SIZES = st.lists(st.integers(1, 20), max_size=30)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5).map(tuple),
    max_leaves=10,
)
FRAMES = st.lists(st.lists(VALUES, max_size=5).map(tuple), max_size=5)


@given(FRAMES, SIZES)
async def test_frames_arrive_whole_however_they_are_cut(
    frames: list[tuple[Any, ...]], sizes: list[int]
) -> None:
    """RAFT.md scenario 49."""
    assert await frames_of(b"".join(map(packed, frames)), sizes) == frames


@given(st.binary(max_size=80) | FRAMES.map(lambda f: b"".join(map(packed, f))), SIZES, st.data())
@settings(max_examples=3 * settings().max_examples, deadline=None)
@example(b"\x16\x03garbage", [], None)
async def test_garbage_gives_frames_or_one_error(
    stream: bytes, sizes: list[int], draw: st.DataObject | None
) -> None:
    """RAFT.md scenario 49: the connection ends then; no other error comes out."""
    garbage = bytearray(stream)
    for _ in range(draw.draw(st.integers(0, 3)) if draw else 0):
        if garbage:
            garbage[draw.draw(st.integers(0, len(garbage) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(ValueError, transport_module._SpeaksTlsError):
        await frames_of(bytes(garbage), sizes)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), VALUES, st.text(max_size=3), VALUES)
        | st.tuples(st.integers(0, 4), VALUES),
        max_size=4,
    )
)
@settings(deadline=None)
async def test_garbage_of_a_peer_that_proved_itself_ends_its_connection_only(
    frames: list[tuple[Any, ...]],
) -> None:
    """RAFT.md scenario 49: a peer of another version knows the secret, too."""
    node, peer = Node("a"), Node("b")
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            await _Link(peer.transport, "a", ("", 0))._greet(
                _Frames(_Line(theirs, 0), HELLO_BYTES_MAX)
            )
            await theirs.send_all(b"".join(map(packed, frames)))
            await theirs.send_eof()
            with suppress(trio.BrokenResourceError):
                while await theirs.receive_some():
                    pass


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
            link.outbox.put((0, b""))
            link.outbox.flush()
            nursery.cancel_scope.cancel()
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.transport.serve, ours)
            await theirs.send_all(bytes(recorded))
            said = b""
            while data := await theirs.receive_some():
                said += data
    assert STRANGER.encode() in said
    assert not b.heard


async def test_an_rpc_in_another_nodes_name_ends_the_connection() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        await connected(a, "b")
        a.transport.send(heartbeat("c", "b"))
        a.transport.flush()
        await a.lost.wait()
        assert b.transport.statistics().garbage == 1
        assert b.heard == []


@pytest.mark.parametrize("number", [-1, NUMBER_MAX + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("name", ["term", "commit", "round"])
async def test_a_number_that_no_store_takes_ends_the_connection(name: str, number: int) -> None:
    """RAFT.md scenario 49: such a term ended the node, or could not be counted on from."""
    a, b = Node("a"), Node("b")
    numbers: dict[str, Any] = {name: number}
    async with running(a, b):
        await connected(a, "b")
        a.transport.send(replace(heartbeat("a", "b"), **numbers))
        a.transport.flush()
        await a.lost.wait()
        assert b.transport.statistics().garbage == 1
        assert b.heard == []


@pytest.mark.parametrize(
    "entries",
    [
        (Entry(2, 1, EntryKind.NO_OP, b""),),
        (Entry(1, 2, EntryKind.NO_OP, b""), Entry(2, 1, EntryKind.NO_OP, b"")),
        (Entry(1, 1, EntryKind.MEMBERSHIP, b"nobody"),),
    ],
    ids=["a hole", "a term that falls", "no membership"],
)
async def test_an_append_that_no_leader_sends_ends_the_connection(
    entries: tuple[Entry, ...],
) -> None:
    """RAFT.md scenario 49: and not the node; what is sound comes through afterwards."""
    a, b = Node("a"), Node("b")
    async with running(a, b):
        await connected(a, "b")
        a.transport.send(
            Append(
                sender="a",
                receiver="b",
                term=2,
                prev_index=0,
                prev_term=0,
                entries=entries,
                commit=0,
            )
        )
        a.transport.flush()
        await a.lost.wait()
        assert b.transport.statistics().garbage == 1
        assert b.heard == []
        await connected(a, "b")
        a.transport.send(heartbeat("a", "b"))
        a.transport.flush()
        assert await b.wait_heard(1) == [heartbeat("a", "b")]


async def test_strangers_who_come_again_and_again_keep_no_peer_out() -> None:
    """More of them than are let wait, each of whom makes the oldest go."""
    node, peer = Node("a", strangers_max=8), Node("b")
    stop = trio.Event()

    async def stranger() -> None:
        while not stop.is_set():
            with suppress(OSError, trio.BrokenResourceError):
                async with await trio.open_tcp_stream(*node.address) as stream:
                    await stream.receive_some(1)
            await trio.sleep(0.01)

    async with running(node):
        async with trio.open_nursery() as strangers:
            for _ in range(16):
                strangers.start_soon(stranger)
            while len(node.transport._strangers) < 8:  # noqa: ASYNC110
                await trio.sleep(0.01)
            async with running(peer):
                peer.transport.set_peers({"a": node.address})
                await connected(peer, "a")
            stop.set()
            while strangers.child_tasks:
                for waiting in [*node.transport._strangers.values()]:
                    waiting.patience.cancel()
                await trio.sleep(0.01)


async def test_without_a_file_descriptor_left_the_node_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And serves its peers again when there is one."""
    node, peer = Node("a"), Node("b")

    def full(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async with running(node):
        with monkeypatch.context() as patch:
            patch.setattr("repl_broker.transport.os.dup", full)
            async with await trio.open_tcp_stream(*node.address) as stream:
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
        async with running(peer):
            peer.transport.set_peers({"a": node.address})
            await connected(peer, "a")


async def test_strangers_at_the_door_are_bounded() -> None:
    """The oldest make room: who comes back from a restart is not kept out by the silent."""
    node = Node("a", strangers_max=3)
    async with running(node):
        streams = [await trio.open_tcp_stream(*node.address) for _ in range(10)]
        ended = 0
        for stream in streams[:7]:
            with trio.move_on_after(5):
                try:
                    ended += await stream.receive_some() == b""
                except trio.BrokenResourceError:
                    ended += 1
        assert ended == 7
        for stream in streams:
            await stream.aclose()


async def stranger_from(host: str, node: Node) -> trio.SocketStream:
    """Connected from an address of its own, silent."""
    sock = trio.socket.socket()
    await sock.bind((host, 0))
    await sock.connect(node.address)
    return trio.SocketStream(sock)


async def test_strangers_of_one_address_push_out_none_of_another() -> None:
    """However many they are: they have a share, and the oldest of them makes room."""
    node, peer = Node("a", strangers_max=8, strangers_per_address=4), Node("b")
    async with running(node):
        waiting = [await stranger_from(f"127.0.0.{n}", node) for n in (2, 3, 4)]
        crowd = [await stranger_from("127.0.0.9", node) for _ in range(40)]
        while node.transport.statistics().refused < 36:  # noqa: ASYNC110
            await trio.sleep(0.01)
        addresses = [stranger.address for stranger in node.transport._strangers.values()]
        assert sorted(addresses) == ["127.0.0.2", "127.0.0.3", "127.0.0.4", *["127.0.0.9"] * 4]
        async with running(peer):
            peer.transport.set_peers({"a": node.address})
            await connected(peer, "a")
        for stream in (*waiting, *crowd):
            await stream.aclose()


async def test_of_too_many_strangers_the_address_with_the_most_makes_room() -> None:
    node = Node("a", strangers_max=8, strangers_per_address=6)
    async with running(node):
        first = [await stranger_from("127.0.0.2", node) for _ in range(2)]
        crowd = [await stranger_from("127.0.0.9", node) for _ in range(6)]
        others = [await stranger_from(f"127.0.0.{n}", node) for n in (3, 4, 5)]
        while node.transport.statistics().refused < 3:  # noqa: ASYNC110
            await trio.sleep(0.01)
        addresses = [stranger.address for stranger in node.transport._strangers.values()]
        assert addresses.count("127.0.0.9") == 3
        assert addresses.count("127.0.0.2") == 2
        for stream in (*first, *crowd, *others):
            await stream.aclose()


async def test_strangers_use_up_no_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    """Each has two at most while it waits, and none when it has gone."""
    node = Node("a", strangers_max=6)
    descriptors = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    async with running(node):
        before = descriptors()
        for _ in range(100):
            stream = await trio.open_tcp_stream(*node.address)
            await stream.send_all(packed(KNOCK))
            await stream.receive_some()
            crowd = descriptors() - before
            assert crowd <= 1 + 2 * 7, "one may be on its way out"
            await trio.aclose_forcefully(stream)
        while node.transport._strangers:  # noqa: ASYNC110
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert descriptors() <= before


@pytest.mark.parametrize("size", [STRANGER_BYTES_MAX + 1, 1 << 20, 0x7FFFFFFF])
async def test_of_a_stranger_few_bytes_are_held(size: int) -> None:
    """A frame that says it is longer ends the connection, and no more of it is read at once."""
    node = Node("a")
    asked: list[int] = []
    ours, theirs = memory_stream_pair()
    receive = ours.receive_some

    async def receive_some(bytes_max: int | None = None) -> bytes:
        asked.append(bytes_max or 1 << 30)
        return bytes(await receive(bytes_max))

    ours.receive_some = receive_some
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            await theirs.send_all(size.to_bytes(4, "big") + bytes(1000))
            assert await theirs.receive_some() == b""
    assert max(asked) <= 4 + STRANGER_BYTES_MAX
    assert node.transport.statistics().garbage == 1


# --- frames that take long ---


@asynccontextmanager
async def met(node: Node, peer: str) -> AsyncIterator[trio.abc.HalfCloseableStream]:
    """A connection over which the peer is known to the node, and can say what it likes."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.transport.serve, ours)
        link = _Link(Node(peer).transport, node.transport.me.node_id, ("", 0))
        await link._greet(_Frames(_Line(theirs, 0), HELLO_BYTES_MAX))
        yield theirs
        nursery.cancel_scope.cancel()


async def drip(stream: trio.abc.SendStream, data: bytes, piece: int, seconds: float) -> None:
    for start in range(0, len(data), piece):
        await stream.send_all(data[start : start + piece])
        await trio.sleep(seconds)


@pytest.mark.parametrize(
    ("piece", "seconds", "told"),
    [
        (40_000, 0.03, 14),  # each time when 50 ms are over, and 64 KiB have come
        (80_000, 1.0, 14),
        (4000, 0.02, 17),  # 200 KB/s: as often as 64 KiB have come
        (1_200_000, 10.0, 0),  # as a whole
        (120_000, 0.001, 0),  # it comes at once, as far as anybody can tell
    ],
)
async def test_of_whom_a_long_frame_is_coming_is_told_as_it_goes_on(
    autojump_clock: trio.testing.MockClock, piece: int, seconds: float, told: int
) -> None:
    node = Node("a")
    frame = packed((0, encode_rpc(heartbeat("b", "a")) + bytes(1_160_000)))
    async with met(node, "b") as stream:
        await drip(stream, frame[:-1], piece, seconds)
        assert abs(len(node.parts) - told) <= 1, len(node.parts)
        assert {*node.parts} <= {"b"}
        assert node.heard == []


async def test_a_trickle_is_no_sign_of_life(autojump_clock: trio.testing.MockClock) -> None:
    node = Node("a")
    async with met(node, "b") as stream:
        await drip(stream, packed((0, bytes(80_000)))[:60_000], 40, 0.1)
        assert node.parts == []


async def test_what_has_come_of_a_frame_says_nothing_of_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    node = Node("a")
    frame = packed((0, encode_rpc(heartbeat("b", "a"))))
    async with met(node, "b") as stream:
        for _ in range(100):
            await drip(stream, frame[:-1], 10_000, 0.03)
            await stream.send_all(frame[-1:])
        await trio.testing.wait_all_tasks_blocked()
        assert len(node.heard) == 100
        assert node.parts == []


async def test_parts_of_what_a_guest_says_are_of_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    node, guest = Node("a"), Node("b")
    guest.transport.me = Me("", "b", "incarnation of b")
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.transport.serve, ours)
        link = _Link(guest.transport, "a", ("", 0))
        await link._greet(_Frames(_Line(theirs, 0), HELLO_BYTES_MAX))
        await drip(theirs, packed((1, 1, "ask", bytes(100_000)))[:-1], 10_000, 0.1)
        nursery.cancel_scope.cancel()
    assert node.parts == []


async def test_parts_of_a_reply_are_told_of_as_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    node = Node("a")
    ours, theirs = memory_stream_pair()
    link = _Link(node.transport, "b", ("", 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link._take_replies, _Frames(_Line(ours, 0), 1 << 20))
        await drip(theirs, packed((2, 1, bytes(400_000)))[:-1], 80_000, 0.1)
        nursery.cancel_scope.cancel()
    assert node.parts == ["b"] * 4


class Narrow(trio.abc.HalfCloseableStream):
    """A stream over which bytes take their time."""

    def __init__(self, below: trio.abc.HalfCloseableStream, bytes_per_second: float) -> None:
        self._below = below
        self._bytes_per_second = bytes_per_second

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep(len(data) / self._bytes_per_second)
        await self._below.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._below.receive_some(max_bytes))

    async def wait_send_all_might_not_block(self) -> None:
        await self._below.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._below.send_eof()

    async def aclose(self) -> None:
        await self._below.aclose()


@asynccontextmanager
async def narrowly_linked(node: Node, peer: Node, rate: float) -> AsyncIterator[None]:
    """What the node sends to the peer takes its time."""
    node_id = peer.transport.me.node_id
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.transport.serve, theirs)
        link = node.transport._links[node_id] = _Link(node.transport, node_id, ("", 0))
        nursery.start_soon(link.talk, Narrow(ours, rate))
        yield
        nursery.cancel_scope.cancel()


async def test_a_large_request_has_as_long_as_it_takes_to_send_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    a, b = Node("a"), Node("b")
    async with narrowly_linked(a, b, 1 << 20):
        began = trio.current_time()
        _, _, argument = await a.transport.call("b", "ask", bytes(8 << 20), seconds=2)
        assert len(argument) == 8 << 20
        assert trio.current_time() - began > 8


async def test_a_request_that_gets_no_further_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    a, b = Node("a"), Node("b")
    async with narrowly_linked(a, b, 1 << 10):
        await connected(a, "b")
        began = trio.current_time()
        with pytest.raises(PeerUnreachableError, match="did not answer"):
            await a.transport.call("b", "ask", bytes(8 << 20), seconds=2)
        assert trio.current_time() - began < 3


async def test_what_was_sent_waits_no_longer_because_others_are_on_their_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    a, b = Node("a"), Node("b")
    async with narrowly_linked(a, b, 1 << 20), trio.open_nursery() as nursery:
        await connected(a, "b")
        began = trio.current_time()

        async def hang() -> None:
            with pytest.raises(PeerUnreachableError, match="did not answer"):
                await a.transport.call("b", "hang", None, seconds=2)
            assert trio.current_time() - began < 3

        nursery.start_soon(hang)
        await trio.testing.wait_all_tasks_blocked()
        await a.transport.call("b", "ask", bytes(8 << 20), seconds=2)


# --- a node that another has taken the place of ---


async def test_what_a_removed_node_says_counts_no_more_once_another_has_its_name() -> None:
    """Over the connection that it has open: an RPC of its was taken for one of the other."""
    old, b = Node("a", incarnation="old"), Node("b")
    async with running(old, b):
        b.transport.set_peers({"a": old.address}, {"a": "old"})
        await connected(old, "b")
        await connected(b, "a")
        b.transport.set_peers({"a": ("127.0.0.1", 9)}, {"a": "new"})
        b.transport.send(heartbeat("b", "a"))  # for the new one, which has not come yet
        old.transport.send(heartbeat("a", "b"))
        for node in (b, old):
            node.transport.flush()
        await old.lost.wait()
        assert old.heard == []
        assert b.heard == []
        assert b.transport.statistics().refused == 0, "it was ended before it said anything"
        assert "a" not in b.transport._inbound
        assert not b.transport.is_connected("a")


async def test_an_rpc_of_a_removed_node_that_has_come_already_counts_no_more() -> None:
    """It is in the same read as what made the other known."""
    old, b = Node("a", incarnation="old"), Node("b")

    def learn(rpc: Rpc) -> None:
        b.hear(rpc)
        b.transport._incarnations = {"a": "new"}

    b.transport._on_rpc = learn
    async with running(old, b):
        await connected(old, "b")
        for number in range(5):
            old.transport.send(heartbeat("a", "b", number))
        old.transport.flush()
        await old.lost.wait()
    assert b.heard == [heartbeat("a", "b", 0)]


async def test_a_question_of_a_removed_node_is_not_answered_once_another_has_its_name() -> None:
    """Also over a connection by address, which is nobody's."""
    old, b = Node("a", incarnation="old"), Node("b")
    async with running(b):
        link = _Link(old.transport, "", b.address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run_once)
            assert await link.call("ask", 1, 10) == ("a", "ask", 1)
            b.transport.set_peers({"a": ("127.0.0.1", 9)}, {"a": "new"})
            with pytest.raises(PeerUnreachableError):
                await link.call("ask", 2, 10)
        assert b.transport.statistics().refused == 1


async def test_a_connection_to_a_removed_node_is_not_that_to_its_successor() -> None:
    """Both at one address: what is dialed is looked at, not only where."""
    b, old = Node("b"), Node("a", incarnation="old")
    async with running(b, old):
        b.transport.set_peers({"a": old.address}, {"a": "old"})
        await connected(b, "a")
        b.transport.set_peers({"a": old.address}, {"a": "old"})
        assert b.transport.is_connected("a"), "nothing has changed"
        b.transport.set_peers({"a": old.address}, {"a": "new"})
        assert not b.transport.is_connected("a")
        with pytest.raises(PeerRefusedError, match="node 'a' has lost its data"):
            await b.transport.call("a", "ask", 1, seconds=10)


async def test_who_becomes_known_as_another_during_its_handshake_is_not_talked_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In either direction: what was known when it began is not what counts at its end."""
    old, b = Node("a", incarnation="old"), Node("b")
    check, welcome = _Link._check, Transport._welcome

    def learn_and_check(link: _Link, said: Any, known: str) -> None:
        if link._transport is b.transport:
            b.transport._incarnations = {"a": "new"}
        check(link, said, known)

    async def welcome_and_learn(transport: Transport, frames: Any) -> Any:
        hello = await welcome(transport, frames)
        if transport is b.transport:
            b.transport._incarnations = {"a": "new"}
        return hello

    monkeypatch.setattr(_Link, "_check", learn_and_check)
    monkeypatch.setattr(Transport, "_welcome", welcome_and_learn)
    async with running(old, b):
        with pytest.raises(PeerRefusedError, match="node 'a' has lost its data"):
            await b.transport.call("a", "ask", 1, seconds=10)
        b.transport.send(heartbeat("b", "a"))
        b.transport.flush()
        assert b.transport._inbound == {}
        assert not b.transport.is_connected("a")
        await trio.testing.wait_all_tasks_blocked()
        assert old.heard == []


@pytest.mark.parametrize("who", [("b", "another's"), ("c", "incarnation of b")])
async def test_nothing_is_asked_of_another_node_than_the_one_that_was_met(
    who: tuple[str, str],
) -> None:
    """One that was started meanwhile where a newcomer was: it is not taken in for that one."""
    a, b = Node("a"), Node("b")
    asked: list[str] = []
    answer = b.answer

    async def note(peer: str, name: str, argument: Any) -> Any:
        asked.append(name)
        return await answer(peer, name, argument)

    b.transport._on_request = note
    async with running(b):
        with pytest.raises(PeerRefusedError, match="is another node by now, 'b'"):
            await a.transport.meet(b.address, "invite", None, seconds=10, who=who)
        assert asked == []
        met = ("b", "incarnation of b")
        reply, *_ = await a.transport.meet(b.address, "invite", None, seconds=10, who=met)
        assert reply == ("a", "invite", None)


# --- a replaced member ---


async def test_of_who_may_have_replaced_a_member_only_what_a_leader_says_is_heard() -> None:
    """Its votes and acknowledgements would count as those of the data that the other lost."""
    anew, b = Node("a", incarnation="anew"), Node("b")
    b.transport._incarnations = {"a": "old"}
    b.transport._may_lead = lambda peer, incarnation: incarnation == "anew"
    async with running(anew):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(b.transport.run, listeners)
            address = listeners[0].socket.getsockname()[:2]
            anew.transport.set_peers({"b": address})
            await connected(anew, "b")
            reply = AppendReply(
                sender="a", receiver="b", term=1, accepted=True, index=9, hint_index=0, hint_term=0
            )
            vote = VoteReply(sender="a", receiver="b", term=1, granted=True)
            for rpc in (reply, vote, heartbeat("a", "b")):
                anew.transport.send(rpc)
            anew.transport.flush()
            assert await b.wait_heard(1) == [heartbeat("a", "b")]
            await connected(anew, "b")
            assert b.heard == [heartbeat("a", "b")]
            nursery.cancel_scope.cancel()


# --- two secrets at a time ---

OLD, NEW = SECRET, b"the secret that comes after it"


class Asker:
    """Asks a peer again and again, until its ``with`` ends; any failure is an error."""

    def __init__(self, node: Node, peer: str) -> None:
        self._node, self._peer = node, peer
        self.answered = 0

    async def run(self) -> None:
        while True:
            answer = await self._node.transport.call(self._peer, "ask", self.answered, seconds=10)
            assert answer[2] == self.answered
            self.answered += 1

    async def more(self, count: int = 20) -> None:
        wanted = self.answered + count
        while self.answered < wanted:  # noqa: ASYNC110
            await trio.sleep(0.001)


async def rest_on_first(*nodes: Node) -> None:
    while any(node.transport.statistics().second_secret for node in nodes):  # noqa: ASYNC110
        await trio.sleep(0.001)


async def test_a_secret_is_replaced_in_three_steps_and_no_request_fails() -> None:
    """Node by node, while each asks each other; whatever the order of the nodes is."""
    nodes = [Node(name) for name in "abc"]
    async with running(*nodes), trio.open_nursery() as nursery:
        askers = [Asker(n, p.transport.me.node_id) for n in nodes for p in nodes if n is not p]
        for asker in askers:
            nursery.start_soon(asker.run)
        for keys, order in (([OLD, NEW], "abc"), ([NEW, OLD], "cab"), ([NEW], "bca")):
            for name in order:
                next(n for n in nodes if n.transport.me.node_id == name).transport.take_keys(keys)
                for asker in askers:
                    await asker.more()
            await rest_on_first(*nodes)
        assert [node.transport.statistics().refused for node in nodes] == [0, 0, 0]
        stranger = Node("d", OLD)
        with pytest.raises(PeerRefusedError, match="the secrets of node 'd'"):
            await stranger.transport.call_address(nodes[0].address, "who", None, seconds=10)
        nursery.cancel_scope.cancel()


async def test_what_was_asked_before_a_secret_changes_is_answered_before_the_connection_ends() -> (
    None
):
    a, b = Node("a", [OLD, NEW]), Node("b", [OLD, NEW])
    begun, go_on = trio.Event(), trio.Event()

    async def answer(peer: str, name: str, argument: Any) -> str:
        if name == "slow":
            begun.set()
            await go_on.wait()
        return name

    async with running(a, b), trio.open_nursery() as nursery:
        b.transport._on_request = answer
        await connected(a, "b")
        answers: list[str] = []

        async def ask(name: str) -> None:
            answers.append(await a.transport.call("b", name, None, seconds=10))

        nursery.start_soon(ask, "slow")
        await begun.wait()
        a.transport.take_keys([NEW, OLD])
        nursery.start_soon(ask, "later")
        await trio.testing.wait_all_tasks_blocked()
        assert a.unreachable == [], "the connection of before is there for its answer"
        go_on.set()
        await a.lost.wait()
        while len(answers) < 2:  # noqa: ASYNC110
            await trio.sleep(0.001)
        assert answers == ["slow", "later"]
        assert a.transport._links["b"].key == NEW


async def test_who_knows_only_a_secret_that_is_dropped_is_cut_off() -> None:
    a, b = Node("a", OLD), Node("b", [NEW, OLD])
    async with running(a, b):
        await connected(a, "b")
        assert b.transport.statistics().second_secret > 0
        b.transport.take_keys([NEW])
        await a.lost.wait()
        with pytest.raises(PeerRefusedError, match="differ"):
            await a.transport.call("b", "ask", 1, seconds=10)
        assert a.transport.refusals() == {"b": "stranger"}


async def test_a_guest_whose_secret_is_dropped_is_cut_off() -> None:
    b = Node("b", [NEW, OLD])
    guest = Node("a", OLD)
    guest.transport.me = Me("", "a", "incarnation of a")
    async with running(b), trio.open_nursery() as nursery:
        failed = trio.Event()

        async def ask() -> None:
            with pytest.raises(PeerUnreachableError):
                await guest.transport.call_address(b.address, "hang", None, seconds=10)
            failed.set()

        nursery.start_soon(ask)
        while not b.transport._accepted:  # noqa: ASYNC110
            await trio.sleep(0.001)
        b.transport.take_keys([NEW])
        await failed.wait()


async def test_a_secret_that_is_dropped_in_the_middle_of_a_handshake_lets_nobody_in() -> None:
    b = Node("b", [NEW, OLD])

    def drop(hello: Hello) -> None:
        b.transport.take_keys([NEW])

    b.transport._admit = drop
    a = Node("a", OLD)
    async with running(b):
        with pytest.raises(PeerUnreachableError):
            await a.transport.call_address(b.address, "ask", 1, seconds=10)
        assert b.transport.statistics().refused == 1


@pytest.mark.parametrize("known", [OLD, NEW])
async def test_a_peer_that_knows_only_one_of_the_two_is_reached_by_that(known: bytes) -> None:
    """Of a change that was begun at the wrong end: the node that has both falls back."""
    a, b = Node("a", [NEW, OLD]), Node("b", known)
    async with running(a, b):
        await connected(a, "b")
        await connected(b, "a")
        assert a.transport.refusals() == {}
        answer = await a.transport.call_address(b.address, "ask", 1, seconds=10)
        assert answer == ("a", "ask", 1)


async def test_two_that_have_no_secret_in_common_refuse_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = Node("a", [NEW, OLD]), Node("b", b"a secret of another cluster")
    async with running(a, b):
        with pytest.raises(PeerRefusedError, match="the secrets of node 'a'"):
            await a.transport.call("b", "ask", 1, seconds=10)
        with pytest.raises(PeerRefusedError, match="the secrets of node 'a'"):
            await a.transport.call_address(b.address, "ask", 1, seconds=10)
    assert "does not know the first secret; the second is tried peer=b" in caplog.text
