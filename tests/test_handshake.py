"""The handshake between peers: what strangers learn, which is nothing, and what peers are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import msgpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from repl_broker.handshake import (
    NONCE_BYTES,
    STRANGER,
    Hello,
    Level,
    Loss,
    Lost,
    Part,
    Proof,
    Refused,
    Removal,
    Seal,
    Welcome,
    stretch,
)
from repl_broker.levels import FIRST, NEWEST
from repl_broker.transport import HELLO_BYTES_MAX, PeerRefusedError, _Frames, _Line, _Link
from tests.test_transport import (
    CLUSTER,
    KNOCK,
    OLD_HELLO,
    SECRET,
    Node,
    frames_of,
    packed,
    running,
)


class Hand:
    """The dialer's side of a handshake, made by hand: each word can be another."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, key: bytes = SECRET) -> None:
        self.frames = _Frames(_Line(stream, 0), HELLO_BYTES_MAX)
        self.key = key
        self.nonce = bytes(range(32))
        self.challenge = b""
        self.seal = Seal(b"", bytes(32), bytes(32), b"")

    async def knock(self) -> None:
        await self.frames.send(KNOCK)
        kind, self.challenge = await self.frames.receive()
        assert (kind, len(self.challenge)) == ("challenge", 32)
        self.seal = Seal(self.key, self.challenge, self.nonce, b"")

    async def prove(self) -> Any:
        await self.knock()
        await self.frames.send(("answer", self.nonce, self.seal.proof(Part.DIALER)))
        return await self.frames.receive()

    async def greet(self, **changes: Any) -> Any:
        """What it says in the end, opened."""
        assert await self.prove() == Proof("proof", self.seal.proof(Part.ACCEPTOR))
        await self.frames.send(self.seal.close(Part.HELLO, hello(**changes)))
        verdict = await self.frames.receive()
        kind = Refused if verdict[0] == Part.REFUSED else Welcome
        words = self.seal.open(kind, verdict[0], verdict)
        return words[:2] if isinstance(words, Refused) else words


def hello(**changes: Any) -> Hello:
    return Hello(2, 2, CLUSTER, "x", "i", 0, "", "")._replace(**changes)


@asynccontextmanager
async def dialed(node: Node, key: bytes = SECRET) -> AsyncIterator[Hand]:
    """A connection to ``node``, by hand."""
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            yield Hand(theirs, key)
            await theirs.aclose()


async def relay(listener: _Frames, hand: Hand) -> None:
    """Have the node that dials and the one that is dialed speak with each other, to the end."""
    await listener.receive()
    await hand.knock()
    await listener.send(("challenge", hand.challenge))
    for _ in range(2):
        await hand.frames.send(await listener.receive())
        await listener.send(await hand.frames.receive())


@asynccontextmanager
async def dialing(node: Node, error: type[Exception], match: str) -> AsyncIterator[_Frames]:
    """The frames of whoever ``node`` dials, believing it to be b; it fails with ``error``."""
    ours, theirs = memory_stream_pair()
    link = _Link(node.transport, "b", ("10.0.0.2", 4081))

    async def dial() -> None:
        with pytest.raises(error, match=match):
            await link.talk(ours)
        assert not link.connected
        await ours.aclose()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            yield _Frames(_Line(theirs, 0), HELLO_BYTES_MAX)


# --- strangers ---


SHAPES: Final[dict[str, list[bytes]]] = {
    "silence": [],
    "a knock": [packed(KNOCK)],
    "a knock of a newer one": [packed(("knock", 9))],
    "the hello of an older one": [packed(OLD_HELLO)],
    "HTTP": [b"GET / HTTP/1.1\r\n\r\n"],
    "a wrong proof": [packed(KNOCK), packed(("answer", bytes(32), bytes(32)))],
    "a short proof": [packed(KNOCK), packed(("answer", bytes(32), b""))],
    "words without a proof": [packed(KNOCK), packed((Part.HELLO, b"", bytes(32)))],
}


async def harvest_of(node: Node, pieces: list[bytes]) -> bytes:
    """All that ``node`` says to one who says that."""
    ours, theirs = memory_stream_pair()
    harvest = b""
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.serve, ours)
            with suppress(trio.BrokenResourceError):
                for piece in pieces:
                    await theirs.send_all(piece)
                while data := await theirs.receive_some():
                    harvest += data
    return harvest


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_stranger_learns_nothing_but_that_he_is_one(shape: str) -> None:
    """Not a word of cluster, node or incarnation, and no proof to guess the secret by: his
    whole harvest is 32 random bytes, and a text that is the same on every node."""
    found = []
    for node_id in ("a", "b"):
        node = Node(node_id, secret=node_id.encode() * 16, handshake_seconds=0.05)
        harvest = await harvest_of(node, SHAPES[shape])
        me = node.transport.me
        for word in (me.cluster_id, me.incarnation, f"node {me.node_id!r}"):
            assert word.encode() not in harvest
        frames = await frames_of(harvest, [])
        assert all(len(frame[1]) == 32 for frame in frames if frame[0] == "challenge")
        found.append([("challenge",) if f[0] == "challenge" else f for f in frames])
    assert found[0] == found[1], "nothing depends on the node"
    assert {*found[0]} <= {("challenge",), ("refused", STRANGER)}


async def test_a_wrong_secret_gets_one_text_and_the_end() -> None:
    node = Node("a")
    async with dialed(node, key=b"another") as hand:
        assert await hand.prove() == ("refused", STRANGER)
        with pytest.raises(trio.BrokenResourceError):
            await hand.frames.receive()
    assert node.transport.statistics().refused == 1


async def test_a_listener_in_a_nodes_place_is_told_nothing() -> None:
    """The dialer's one proof is of random numbers; who it is it says to a peer alone."""
    heard = []
    secrets_differ = "the secrets of node 'a' and of the node at 10.0.0.2:4081 differ"
    async with dialing(Node("a"), PeerRefusedError, secrets_differ) as listener:
        heard.append(await listener.receive())
        await listener.send(("challenge", bytes(32)))
        heard.append(await listener.receive())
        await listener.send(("proof", bytes(32)))
        with pytest.raises(trio.BrokenResourceError):
            heard.append(await listener.receive())
    knock, answer = heard
    assert knock == KNOCK
    assert (answer[0], len(answer[1]), len(answer[2])) == ("answer", 32, 32)


@pytest.mark.parametrize("when", ["at once", "behind the challenge"])
async def test_what_a_listener_refuses_with_is_not_taken_for_a_peers_word(when: str) -> None:
    """Its text is not shown, and none of its kinds is acted upon."""
    removals: list[str] = []
    a = Node("a")
    a.transport._on_removed = removals.append
    async with dialing(a, PeerRefusedError, r"differ; check \[cluster\] secret_file") as listener:
        await listener.receive()
        if when == "behind the challenge":
            await listener.send(("challenge", bytes(32)))
            await listener.receive()
        await listener.send(("refused", "you were removed; delete all your data"))
    assert removals == []
    assert a.losses == []


# --- those who stand in between, or send back what they got ---


async def test_a_proof_that_is_sent_back_proves_nothing() -> None:
    """A stranger has one node answer for itself. Each proof is of a part: that of one who
    dials is none of one who accepts, and the other way round."""
    node = Node("a")
    async with dialed(node) as hand:
        await hand.knock()
        await hand.frames.send(("answer", hand.nonce, hand.seal.proof(Part.ACCEPTOR)))
        assert await hand.frames.receive() == ("refused", STRANGER)
    for part in (Part.DIALER, Part.HELLO, Part.WELCOME):
        async with dialing(node, PeerRefusedError, "differ") as listener:
            await listener.receive()
            await listener.send(("challenge", bytes(32)))
            _, nonce, proof = await listener.receive()
            seal = Seal(SECRET, bytes(32), nonce, b"")
            assert proof == seal.proof(Part.DIALER)
            await listener.send(("proof", seal.proof(part)))


async def test_a_nodes_challenge_that_is_sent_back_to_it_opens_nothing() -> None:
    """He dials a, has a dial him, and gives it its own challenge: it answers, and what it
    answers is right where it asked. It says who it is, and finds that this is itself."""
    a = Node("a")
    async with dialing(a, PeerRefusedError, "has dialed itself") as listener:
        async with dialed(a, key=b"") as hand:
            await relay(listener, hand)
    assert not a.transport._inbound


async def test_a_challenge_that_is_given_to_another_node_makes_no_other_peer() -> None:
    """c dials what it takes for b, and is given the challenge of a. Whoever carries the words
    to and fro has both prove themselves; a is not b, and says so, and no word can be changed."""
    a, c = Node("a"), Node("c")
    async with dialing(c, PeerRefusedError, "was dialed is node 'a', not 'b'") as listener:
        async with dialed(a, key=b"") as hand:
            await relay(listener, hand)
    assert not a.transport._inbound
    assert a.transport.statistics().refused == 1


@pytest.mark.parametrize("name", Hello._fields)
async def test_nobody_in_between_changes_a_word_of_a_hello(name: str) -> None:
    """With one changed it is none, and the connection ends."""
    node = Node("a")
    value = getattr(hello(), name)
    other = hello(**{name: value + 1 if isinstance(value, int) else value + "z"})
    async with dialed(node) as hand:
        await hand.prove()
        part, _, proof = hand.seal.close(Part.HELLO, hello())
        await hand.frames.send((part, msgpack.packb(tuple(other)), proof))
        with pytest.raises(trio.BrokenResourceError):
            await hand.frames.receive()
    assert node.transport.statistics().garbage == 1
    assert not node.transport._inbound


VERDICTS: Final = {
    "refused": (Part.REFUSED, Refused("refused", "go away")),
    "removed": (Part.REFUSED, Refused("removed", "you were removed")),
    "lost": (Part.REFUSED, Refused("lost", "you lost your data")),
    "welcome": (Part.WELCOME, Welcome(2, CLUSTER, "b", "incarnation of b")),
}


@pytest.mark.parametrize("forger", ["another connection", "the hello"])
@pytest.mark.parametrize("kind", VERDICTS)
async def test_no_verdict_is_taken_of_one_in_between(kind: str, forger: str) -> None:
    """That a node was removed ends it: only the peer itself may say so, and only now."""
    removals: list[str] = []
    a, b = Node("a"), Node("b")
    a.transport._on_removed = removals.append
    async with dialing(a, ValueError, "not said by the one who proved") as listener:
        async with dialed(b) as hand:
            for _ in range(2):
                await hand.frames.send(await listener.receive())
                await listener.send(await hand.frames.receive())
            words = await listener.receive()
            part, verdict = VERDICTS[kind]
            if forger == "the hello":  # what a itself has sealed, as if it were b's
                await listener.send((part, *words[1:]))
            else:  # what b has sealed, for others
                seal = Seal(SECRET, bytes(32), bytes(32), b"")
                await listener.send(seal.close(part, verdict))
    assert removals == []
    assert a.losses == []


async def test_a_node_that_dials_itself_says_so() -> None:
    """By a name that it does not know as its own; it asks the others in ``join``."""
    a = Node("a")
    async with running(a):
        with pytest.raises(PeerRefusedError, match="node 'a' has dialed itself") as refused:
            await a.transport.call_address(a.address, "join", "me", seconds=5)
        assert refused.value.kind == "itself"
        twin = Node("a")  # with the same id and incarnation, and yet another
        assert await twin.transport.call_address(a.address, "join", "me", seconds=5)
    assert not a.transport._dialing


async def test_without_a_secret_the_same_words_are_said() -> None:
    """On loopback: the key is empty, and known to all."""
    a, b = Node("a", secret=stretch(b"")), Node("b", secret=stretch(b""))
    async with running(a, b):
        assert await a.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)
    async with dialed(a, key=b"") as hand:
        assert (await hand.greet()).node_id == "a"


# --- what a peer that knows the secret is told ---


@pytest.mark.parametrize(("oldest", "newest"), [(0, 1), (7, 9)], ids=["older", "newer"])
async def test_another_protocol_version_is_told_what_to_do(oldest: int, newest: int) -> None:
    """RAFT.md scenario 49: in words that both sides understand, and log."""
    async with dialed(Node("a")) as hand:
        kind, reason = await hand.greet(version_min=oldest, version_max=newest)
    assert kind == "version"
    spoken = f"speaks protocol 2 to 2, the other {oldest} to {newest}; upgrade the older one"
    assert spoken in reason


async def test_of_two_ranges_the_newest_common_version_is_spoken() -> None:
    """RAFT.md scenario 49: so that nodes can be upgraded one after the other."""
    async with dialed(Node("a")) as hand:
        assert (await hand.greet(version_min=0, version_max=9)).version == 2


async def test_a_newer_node_may_say_more() -> None:
    """RAFT.md scenario 49: behind what both know; so what it has in common can be agreed on."""
    node = Node("a")
    async with dialed(node) as hand:
        await hand.prove()
        more = (*hello(version_max=9), "more", 5)
        await hand.frames.send(hand.seal.close(Part.HELLO, more))
        part, words, proof = await hand.frames.receive()
        assert part == Part.WELCOME
        assert hand.seal.open(Welcome, part, (part, words, proof)).version == 2


async def test_a_newer_node_speaks_to_an_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAFT.md scenario 49: it drops the old protocol only in the version after."""
    monkeypatch.setattr("repl_broker.transport.PROTOCOL_MAX", 3)
    async with dialed(Node("a")) as hand:
        kind, reason = await hand.greet(version_min=4, version_max=4)
        assert kind == "version"
        assert "speaks protocol 2 to 3" in reason
    async with dialed(Node("a")) as hand:
        assert (await hand.greet(version_min=2, version_max=2)).version == 2


async def test_a_refused_version_is_told_to_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAFT.md scenario 49: the dialer's side of it: its callers get the reason."""
    a, b = Node("a"), Node("b")
    async with running(b):
        monkeypatch.setattr("repl_broker.transport.PROTOCOL_MIN", 3)
        monkeypatch.setattr("repl_broker.transport.PROTOCOL_MAX", 3)
        b.transport._objection = lambda hello, dialed_itself: "upgrade it"  # type: ignore[method-assign]
        with pytest.raises(PeerRefusedError, match="upgrade it"):
            await a.transport.call_address(b.address, "join", "me", seconds=5)


async def test_a_version_that_was_not_offered_is_not_spoken() -> None:
    a = Node("a")
    async with dialing(a, PeerRefusedError, "wants to speak protocol 7") as listener:
        await listener.receive()
        await listener.send(("challenge", bytes(32)))
        _, nonce, _ = await listener.receive()
        seal = Seal(SECRET, bytes(32), nonce, b"")
        await listener.send(("proof", seal.proof(Part.ACCEPTOR)))
        await listener.receive()
        await listener.send(seal.close(Part.WELCOME, Welcome(7, CLUSTER, "b", "i")))


async def test_one_of_an_older_handshake_is_refused_in_a_text_that_it_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node("a")
    async with dialed(node) as hand:
        await hand.frames.send(OLD_HELLO)
        assert await hand.frames.receive() == ("refused", STRANGER)
    assert "speaks an older protocol; upgrade it" in caplog.text


async def test_an_older_version_is_not_spoken_to_whoever_dials() -> None:
    """The leader dials its members, and what it sends would end a node that does not know it."""
    a, b = Node("a"), Node("b")
    b.transport.me = replace(b.transport.me, level=FIRST)
    a.transport._admit_level = lambda node_id, level: (
        Level(f"{node_id} knows {level}") if level < NEWEST else None
    )
    async with running(b):
        with pytest.raises(PeerRefusedError, match="b knows 1") as refused:
            await a.transport.call_address(b.address, "join", "me", seconds=5)
        assert refused.value.kind == "level"
        b.transport.me = replace(b.transport.me, level=NEWEST)
        await a.transport.call_address(b.address, "join", "me", seconds=5)


@pytest.mark.parametrize("objection", ["no", Removal("gone"), Loss("lost", "a:1")], ids=str)
async def test_a_refusal_says_of_which_kind_it_is(objection: str) -> None:
    removals: list[str] = []
    a, b = Node("a"), Node("b", objection=objection)
    a.transport._on_removed = removals.append
    b.transport._is_led = lambda: True
    async with running(b):
        with pytest.raises(PeerRefusedError, match=objection) as refused:
            await a.transport.call_address(b.address, "join", "me", seconds=5)
    assert refused.value.kind == getattr(objection, "kind", "refused")
    assert removals == (["gone"] if isinstance(objection, Removal) else [])
    lost = Lost("lost", "b", CLUSTER, True, "a:1")
    assert a.losses == ([lost] if isinstance(objection, Loss) else [])


async def test_a_node_hears_that_it_lost_its_data_from_whoever_dials_it() -> None:
    """And the one who dials does not take that for itself."""
    a, b = Node("a"), Node("b", incarnation="drawn anew")
    a.transport._is_led = lambda: True
    async with running(b):
        async with trio.open_nursery() as nursery:
            a.transport.set_peers({"b": b.address}, {"b": "incarnation of b"})
            nursery.start_soon(a.transport.run, [])
            with pytest.raises(PeerRefusedError, match="node 'b' has lost its data"):
                await a.transport.call("b", "ask", 1, seconds=10)
            nursery.cancel_scope.cancel()
    (lost,) = {*b.losses}
    assert f"the cluster {CLUSTER} knows it with another incarnation" in lost.reason
    assert lost[1:] == ("a", CLUSTER, True, None), "it has reached it where it knows it"
    assert a.losses == []


async def test_a_peer_that_is_refused_is_named_with_the_kind_of_refusal() -> None:
    """All that was said was that there is no leader."""
    a, b = Node("a"), Node("b", b"another secret that is long enough")
    async with running(b):
        async with trio.open_nursery() as nursery:
            a.transport.set_peers({"b": b.address, "c": ("127.0.0.1", 1), "x": ("127.0.0.1", 1)})
            nursery.start_soon(a.transport.run, [])
            with pytest.raises(PeerRefusedError):
                await a.transport.call("b", "ask", 1, seconds=10)
            while not a.transport.refusals():  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert a.transport.refusals() == {"b": "stranger"}
            for said in (OLD_HELLO, OLD_HELLO[:3], (*OLD_HELLO[:4], 7), (*OLD_HELLO[:4], "y")):
                async with dialed(a) as hand:
                    await hand.frames.send(said)
                    assert await hand.frames.receive() == ("refused", STRANGER)
            assert a.transport.refusals() == {"b": "stranger", "x": "older"}
            a.transport._older["x"] -= 60
            assert a.transport.refusals() == {"b": "stranger"}
            nursery.cancel_scope.cancel()


async def test_versions_that_have_nothing_in_common_are_a_kind_of_refusal() -> None:
    async with dialed(Node("a")) as hand:
        kind, reason = await hand.greet(version_min=9, version_max=9)
        assert (kind, "upgrade the older one" in reason) == ("version", True)


def test_words_of_older_nodes_lack_what_was_added_later() -> None:
    seal = Seal(b"key", b"c" * NONCE_BYTES, b"a" * NONCE_BYTES, b"")
    old_refusal = seal.close(Part.REFUSED, ("lost", "why"))
    assert seal.open(Refused, Part.REFUSED, old_refusal) == Refused("lost", "why")
    old_hello = seal.close(Part.HELLO, (2, 2, "cluster", "n1", "one", 7, "n2", "two"))
    assert not seal.open(Hello, Part.HELLO, old_hello).is_led


# --- the words themselves ---


WORDS: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@given(WORDS, st.binary(max_size=40), st.sampled_from([Part.HELLO, Part.WELCOME, Part.REFUSED]))
def test_sealed_garbage_of_one_who_knows_the_secret_is_a_value_error(
    frame: Any, words: bytes, part: bytes
) -> None:
    """A peer of another version knows it, too."""
    seal = Seal(SECRET, bytes(32), bytes(32), b"")
    for given_frame in (frame, (part, words, seal.proof(part, words))):
        with suppress(ValueError):
            found = seal.open(Refused, part, given_frame)
            assert found == Refused(*map(str, found))


NONCES: Final = st.binary(min_size=32, max_size=32)


@given(NONCES, NONCES, NONCES, st.binary(max_size=64), st.binary(min_size=1, max_size=64))
def test_every_connection_has_a_seal_of_its_own(
    challenge: bytes, answer: bytes, third: bytes, line: bytes, more: bytes
) -> None:
    """Of its secret, nonces and line, and of each part: no proof stands for another."""
    seals = [
        Seal(key, *nonces, binding)
        for key in (SECRET, b"another")
        for nonces in {(challenge, answer), (answer, challenge), (third, answer)}
        for binding in (line, line + more)
    ]
    parts = (Part.DIALER, Part.ACCEPTOR, Part.HELLO, Part.WELCOME, Part.REFUSED)
    proofs = {seal.proof(part) for seal in seals for part in parts}
    assert len(proofs) == len(seals) * len(parts)


@pytest.mark.parametrize("sizes", [(0, 32), (31, 33), (33, 31), (32, 64)])
def test_a_nonce_has_one_length(sizes: tuple[int, int]) -> None:
    """Else what belongs to one of the two could be taken for the other's."""
    with pytest.raises(ValueError, match="a nonce has 32 bytes"):
        Seal(SECRET, bytes(sizes[0]), bytes(sizes[1]), b"")
