"""Peers under TLS: what they say goes through it, and who has no right certificate gets nothing."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from repl_broker.certificates import Certificates, PeerContexts
from repl_broker.raft.log import Entry, EntryKind
from repl_broker.raft.rpc import Append, Rpc
from repl_broker.transport import (
    PeerRefusedError,
    PeerUnreachableError,
    _Link,
)
from tests.authority import DAY, LOOPBACK, NOW, peer_config, write
from tests.test_transport import KNOCK, Node, connected, heartbeat, packed, running

AUTHORITY = trustme.CA()


def contexts(
    *names: str, authority: trustme.CA = AUTHORITY, trusted: trustme.CA = AUTHORITY, **more: Any
) -> PeerContexts:
    """As a node makes them, without its own look at them: a hostile peer takes none."""
    leaf = authority.issue_cert(*(names or (LOOPBACK,)), **more)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        leaf.configure_cert(context)
        trusted.configure_trust(context)
    server.verify_mode = ssl.CERT_REQUIRED
    der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
    return PeerContexts(server, client, der)


OURS = contexts()


def secured(node_id: str, tls: PeerContexts = OURS, **more: Any) -> Node:
    return Node(node_id, tls=lambda: tls, **more)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


# --- between peers ---


async def test_rpcs_and_requests_go_through_in_order_and_whole() -> None:
    a, b = secured("a"), secured("b")
    async with running(a, b):
        assert await a.transport.call("b", "ask", [1, b"2"], seconds=10) == ("a", "ask", (1, b"2"))
        entries = tuple(Entry(i, 1, EntryKind.DATA, b"x" * 100_000) for i in range(1, 21))
        append = Append(
            sender="a", receiver="b", term=1, prev_index=0, prev_term=0, entries=entries, commit=0
        )
        sent: list[Rpc] = []
        for number in range(100):
            sent += [append] if number % 25 == 0 else [heartbeat("a", "b", number)]
            a.transport.send(sent[-1])
            if number % 3 == 0:
                a.transport.flush()
        a.transport.flush()
        assert await b.wait_heard(len(sent)) == sent
        b.transport.send(heartbeat("b", "a"))
        b.transport.flush()
        assert await a.wait_heard(1) == [heartbeat("b", "a")]


async def test_whoever_listens_at_an_address_can_be_asked() -> None:
    """So a newcomer joins."""
    a, b = secured("a"), secured("b")
    async with running(b):
        answer = await a.transport.call_address(b.address, "join", "me", seconds=10)
        assert answer == ("a", "join", "me")


async def test_a_lost_connection_is_told_and_made_again() -> None:
    a, b = secured("a"), secured("b")
    async with running(a):
        async with running(b):
            a.transport.set_peers({"b": b.address})
            await connected(a, "b")
        await a.lost.wait()
        again = secured("b")
        async with running(again):
            a.transport.set_peers({"b": again.address})
            assert await a.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)


class Wire:
    """Between a dialer and an acceptor: all that passes is recorded, by direction."""

    def __init__(self) -> None:
        self.dialer, self._a = memory_stream_pair()
        self._b, self.acceptor = memory_stream_pair()
        self.to_acceptor = bytearray()
        self.to_dialer = bytearray()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, self._a, self._b, self.to_acceptor)
            nursery.start_soon(self._pass, self._b, self._a, self.to_dialer)

    async def _pass(
        self, source: trio.StapledStream, sink: trio.StapledStream, record: bytearray
    ) -> None:
        while data := await source.receive_some():
            record.extend(data)
            await sink.send_all(data)


async def talked(a: Node, b: Node) -> Wire:
    """What passes while ``a`` dials ``b``, proves itself, and says a word."""
    wire = Wire()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.run)
            nursery.start_soon(b.transport.serve, wire.acceptor)
            link = _Link(a.transport, "b", (LOOPBACK, 1))
            nursery.start_soon(link.talk, wire.dialer)
            assert await link.call("ask", "a word in the clear", 5) is not None
            nursery.cancel_scope.cancel()
    return wire


async def test_nothing_of_what_is_said_can_be_read_on_the_wire() -> None:
    said = (b"a word in the clear", b"incarnation of a", b"hello", b"welcome", b"knock")
    plain = await talked(Node("a"), Node("b"))
    secret = await talked(secured("a"), secured("b"))
    for words in said:
        assert words in plain.to_acceptor + plain.to_dialer
        assert words not in secret.to_acceptor + secret.to_dialer


# --- who has no right certificate ---


async def refused(a: Node, b: Node, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """What ``a``, which dials ``b``, is told, and what both log."""
    caplog.set_level(logging.WARNING)
    async with running(b):
        a.transport.set_peers({"b": b.address})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.transport.run, [])
            with pytest.raises(PeerRefusedError) as told:
                await a.transport.call("b", "ask", 1, seconds=10)
            with pytest.raises(PeerRefusedError):
                await a.transport.call_address(b.address, "join", "me", seconds=10)
            a.transport.send(heartbeat("a", "b"))
            a.transport.flush()
            seen = b.transport.statistics
            await until(lambda: seen().refused + seen().garbage >= 2)
            nursery.cancel_scope.cancel()
    assert b.heard == []
    assert not b.transport._inbound
    return str(told.value), warnings_of(caplog)


async def test_a_dialer_with_a_certificate_of_another_ca_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = contexts(authority=trustme.CA())
    told, logged = await refused(secured("a", other), secured("b"), caplog)
    assert "refuses this node by TLS (TLSV1_ALERT_UNKNOWN_CA); see its log" in told
    assert "peer refused peer=unknown address=127.0.0.1" in logged
    assert "the certificate of the dialer is refused: " in logged
    assert "must be signed by a CA of tls_ca" in logged


async def test_a_dialer_whose_certificate_has_expired_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    expired = contexts(not_after=NOW - DAY)
    told, logged = await refused(secured("a", expired), secured("b"), caplog)
    assert "CERTIFICATE_EXPIRED" in told
    assert "the certificate of the dialer is refused: certificate has expired; renew it" in logged


async def test_a_dialer_without_a_certificate_is_refused(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    b = secured("b", Certificates(peer_config(write(tmp_path, AUTHORITY))).peers())
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(client)
    told, logged = await refused(secured("a", OURS._replace(client=client)), b, caplog)
    assert "TLSV13_ALERT_CERTIFICATE_REQUIRED" in told
    assert "the dialer shows no certificate; give it [raft] tls_certificate and tls_key" in logged


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (contexts(authority=trustme.CA()), "must be signed by a CA of tls_ca"),
        (contexts(not_after=NOW - DAY), "certificate has expired; renew it"),
        (contexts("n7.example"), "it is not valid for '127.0.0.1'; issue it with that name"),
    ],
    ids=["another CA", "expired", "another host"],
)
async def test_an_acceptor_without_a_right_certificate_is_told_nothing(
    theirs: PeerContexts, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And the dialer knows why; the acceptor does, too, by an alert."""
    a, b = secured("a"), secured("b", theirs)
    told, logged = await refused(a, b, caplog)
    assert told.startswith("the certificate of the acceptor is refused: ")
    assert reason in told
    assert f"refused by peer=b reason='{told}'" in logged.replace('"', "'")
    assert "peer refused peer=unknown address=127.0.0.1 reason=" in logged
    assert "the dialer refuses this node by TLS" in logged


async def test_one_without_tls_is_refused_by_those_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, logged = await refused(Node("a"), secured("b"), caplog)
    remedy = "set [raft] tls_certificate, tls_key and tls_ca on every node, or on none"
    assert told == f"the other speaks TLS; {remedy}"
    assert "peer sent garbage peer=unknown address=127.0.0.1 error='the dialer speaks no" in logged
    assert remedy in logged


async def test_one_with_tls_is_refused_by_those_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, logged = await refused(secured("a"), Node("b"), caplog)
    remedy = "set [raft] tls_certificate, tls_key and tls_ca on every node, or on none"
    assert told == f"the acceptor speaks no TLS; {remedy}"
    assert f"reason='the other speaks TLS; {remedy}'" in logged


async def test_the_secret_is_asked_for_behind_the_certificate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told, _ = await refused(secured("a", secret=b"another"), secured("b"), caplog)
    assert "the secrets of node 'a' and of the node at 127.0.0.1:" in told


async def test_without_a_certificate_not_a_byte_of_the_node_is_seen(tmp_path: Path) -> None:
    """Whoever just goes on behind the handshake gets an alert, and the end."""
    b = secured("b", Certificates(peer_config(write(tmp_path, AUTHORITY))).peers())
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(client)
    async with running(b):
        stream = await trio.open_tcp_stream(*b.address)
        async with trio.SSLStream(stream, client, server_hostname=LOOPBACK) as tls:
            await tls.do_handshake()
            await tls.send_all(packed(KNOCK))
            with pytest.raises(trio.BrokenResourceError) as broken:
                await tls.receive_some()
            assert "CERTIFICATE_REQUIRED" in str(broken.value.__cause__)
        await until(lambda: b.transport.statistics().refused == 1)


# --- strangers ---


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        packed(KNOCK),
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\xff\xff",
        b"\xff" * 5000,
    ],
)
async def test_garbage_instead_of_tls_ends_its_connection_and_is_counted(garbage: bytes) -> None:
    node = secured("a", handshake_seconds=0.3)
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            await theirs.send_all(garbage)
            while await theirs.receive_some():
                pass
            await theirs.aclose()
    found = node.transport.statistics()
    assert found.garbage + found.refused == 1
    assert node.heard == []


@given(st.binary(max_size=300))
async def test_no_garbage_is_more_than_its_connections_end(garbage: bytes) -> None:
    node = secured("a")
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            await theirs.send_all(garbage)
            await theirs.send_eof()
            with suppress(trio.BrokenResourceError):
                while await theirs.receive_some():
                    pass
    assert node.heard == []


async def test_a_stranger_who_says_nothing_is_let_go() -> None:
    node = secured("a", handshake_seconds=0.05)
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        await node.transport.serve(ours)
        assert await theirs.receive_some() == b""
    assert node.transport.statistics().refused == 1


async def test_one_who_stops_behind_the_tls_handshake_is_let_go() -> None:
    node = secured("a", handshake_seconds=0.3)
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            tls = trio.SSLStream(theirs, OURS.client, server_hostname=LOOPBACK)
            await tls.do_handshake()
            with suppress(trio.BrokenResourceError):
                assert await tls.receive_some() == b""
    assert node.transport.statistics().refused == 1


async def test_strangers_at_the_door_are_bounded() -> None:
    """Before the TLS handshake as behind it: the oldest make room."""
    node = secured("a", strangers_max=3)
    async with running(node):
        streams = [await trio.open_tcp_stream(*node.address) for _ in range(10)]
        await until(lambda: node.transport.statistics().refused == 7)
        assert len(node.transport._strangers) == 3
        peer = secured("b")
        async with running(peer):
            peer.transport.set_peers({"a": node.address})
            await connected(peer, "a")
        for stream in streams:
            await stream.aclose()


async def test_an_acceptor_that_says_nothing_is_given_up() -> None:
    a = secured("a", handshake_seconds=0.05)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        address = listener.socket.getsockname()[:2]
        with trio.fail_after(1), pytest.raises(PeerUnreachableError, match="did not answer"):
            await a.transport.call_address(address, "join", "me", seconds=60)


# --- what was recorded, and who stands in the middle ---


@pytest.mark.parametrize("make", [Node, secured], ids=["plain", "TLS"])
async def test_what_a_dialer_said_gets_nothing_when_it_is_said_again(
    make: Callable[..., Node],
) -> None:
    """Whole, and cut off after each frame or record."""
    a, b = make("a"), make("b")
    recorded = bytes((await talked(a, b)).to_acceptor)
    b = make("b", handshake_seconds=0.3)
    ours, theirs = memory_stream_pair()
    said = b""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.transport.serve, ours)
            with suppress(trio.BrokenResourceError):
                await theirs.send_all(recorded)
                while data := await theirs.receive_some():
                    said += data
            await theirs.aclose()
    assert b.heard == []
    assert b"accepted" not in said
    found = b.transport.statistics()
    assert found.garbage + found.refused == 1


@pytest.mark.parametrize("make", [Node, secured], ids=["plain", "TLS"])
async def test_what_an_acceptor_said_gets_nothing_when_it_is_said_again(
    make: Callable[..., Node],
) -> None:
    a, b = make("a"), make("b")
    recorded = bytes((await talked(a, b)).to_dialer)
    a = make("a")
    wire = Wire()
    link = _Link(a.transport, "b", (LOOPBACK, 1))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_try, link, wire.dialer)
            await wire._a.receive_some()
            await wire._a.send_all(recorded)
            with pytest.raises((PeerRefusedError, PeerUnreachableError)):
                await link.call("ask", 1, 0.5)
            nursery.cancel_scope.cancel()
    assert not link.connected


async def _try(link: _Link, stream: trio.StapledStream) -> None:
    """As _Link does by itself, over ``stream``."""
    with suppress(trio.BrokenResourceError, ValueError):
        try:
            await link.talk(stream)
        except PeerRefusedError as error:
            link.refusal = error
            link._settled.set()


async def test_one_in_the_middle_with_a_good_certificate_passes_no_proof_on() -> None:
    """It has a certificate of the same CA for the same host, and not the secret."""
    a, b, middle = secured("a"), secured("b"), contexts()
    to_a, a_end = memory_stream_pair()
    to_b, b_end = memory_stream_pair()

    async def relay(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some():
                await sink.send_all(data)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.transport.serve, b_end)
            link = _Link(a.transport, "b", (LOOPBACK, 1))
            nursery.start_soon(_try, link, a_end)
            dialled = trio.SSLStream(to_a, middle.server, server_side=True)
            dials = trio.SSLStream(to_b, middle.client, server_hostname=LOOPBACK)
            await dialled.do_handshake()
            await dials.do_handshake()
            nursery.start_soon(relay, dialled, dials)
            nursery.start_soon(relay, dials, dialled)
            with pytest.raises(PeerRefusedError, match="the secrets of node 'a' and"):
                await link.call("ask", 1, 5)
            nursery.cancel_scope.cancel()
    assert not b.heard


# --- new certificates ---


async def test_new_certificates_are_for_new_connections_and_cut_none(tmp_path: Path) -> None:
    """Here even of another CA: those who are connected stay so."""
    config = peer_config(write(tmp_path, AUTHORITY))
    certificates = [Certificates(config), Certificates(config)]
    a, b = (Node(n, tls=c.peers) for n, c in zip("ab", certificates, strict=True))
    async with running(a, b):
        await connected(a, "b")
        await connected(b, "a")
        write(tmp_path, trustme.CA())
        for each in certificates:
            each.reload(config)
        assert await a.transport.call("b", "ask", 1, seconds=5) == ("a", "ask", 1)
        a.transport.send(heartbeat("a", "b"))
        a.transport.flush()
        await b.wait_heard(1)
        assert a.unreachable == b.unreachable == []
        stranger = secured("c")  # of the CA of before
        with pytest.raises(PeerRefusedError, match="certificate"):
            await stranger.transport.call_address(b.address, "join", "me", seconds=5)
        newcomer = Node("c", tls=certificates[0].peers)
        assert await newcomer.transport.call_address(b.address, "join", "me", seconds=5)


async def test_a_large_frame_is_encrypted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it at once would keep heartbeats to other peers waiting."""
    sizes: list[int] = []
    send_all = trio.StapledStream.send_all

    async def note(stream: Any, data: bytes) -> None:
        sizes.append(len(data))
        await send_all(stream, data)

    monkeypatch.setattr(trio.StapledStream, "send_all", note)
    a, b = secured("a"), secured("b")
    ours, theirs = memory_stream_pair()
    link = _Link(a.transport, "b", (LOOPBACK, 1))
    large = b"x" * (3 << 20)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.transport.serve, theirs)
            nursery.start_soon(link.talk, ours)
            assert await link.call("ask", large, 5) == ("a", "ask", large)
            nursery.cancel_scope.cancel()
    assert sum(sizes) > 2 * len(large)
    assert max(sizes) < 300_000
