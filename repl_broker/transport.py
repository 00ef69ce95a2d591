"""Between peers: msgpack frames over Trio TCP streams, after a handshake that proves both sides.

Each node dials each peer: what it has to say goes over its own connection, and
what it hears comes over the peer's. A connection begins with the handshake of
handshake.py; then come

    from the dialer      RPCs and requests; that it is there, if it is asked
    from the acceptor    replies to the requests, and RPCs to one whom it cannot dial yet;
                         the question whether the dialer is there

Whoever fails is counted, and disturbs nobody. One who does not prove the secret
learns nothing; one who does gets a reason. Strangers are bounded in number (of
an address and in all), in bytes and in time.

With ``tls`` all of this goes through TLS, in which both sides show a certificate
of the cluster's CA, and the acceptor one that has the host that was dialled. The
proofs then cover both certificates as well: who stands in the middle with
another certificate, however good, cannot pass them on.

A frame is four bytes of length, most significant first, and a msgpack array.
All that waits when the writer is free goes out in one send. A cut leaves TCP
open in silence, so every wait has a deadline and unacknowledged data a limit
(TCP_USER_TIMEOUT). What stands between the two may acknowledge for one who has gone;
so a dialer asks now and then whether the acceptor is there, and either of the two
leaves who says nothing for long.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
import re
import secrets
import socket
import ssl
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import msgpack
import msgspec
import trio

from repl_broker.admission import address_key
from repl_broker.certificates import PeerContexts, alert_of, explain
from repl_broker.errors import ReplBrokerError
from repl_broker.handshake import (
    HANDSHAKE,
    NONCE_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    STRANGER,
    Answer,
    Challenge,
    Hello,
    Itself,
    Knock,
    Loss,
    Lost,
    Objection,
    Part,
    Proof,
    Refused,
    Removal,
    Seal,
    Twin,
    Version,
    Welcome,
    lost_its_data,
    words_of,
)
from repl_broker.levels import FIRST, NEWEST
from repl_broker.raft.codec import PARTS_BYTES, bin_head, decode_rpc, encode_parts, encode_rpc
from repl_broker.raft.rpc import Append, Commit, Heartbeat, Rpc, SnapshotReceived

__all__ = [
    "Me",
    "PeerRefusedError",
    "PeerUnreachableError",
    "Transport",
    "TransportOptions",
    "TransportStatistics",
]

log = logging.getLogger(__name__)

_ENCODE: Final = msgspec.msgpack.Encoder().encode  # what msgpack.packb gives, but sooner

STRANGER_BYTES_MAX: Final = 256  # of a frame of one who has not proved the secret
HELLO_BYTES_MAX: Final = 4096  # … who has, before the handshake is done
READ_BYTES: Final = 256 << 10
PART_SECONDS: Final = 0.05  # of a frame that is still coming, until more of it is told of …
PART_BYTES: Final = 64 << 10  # … and how much: a trickle keeps nobody in office
KEEPALIVE_SECONDS: Final = 10  # of silence, until the kernel asks whether the other end is there
REASONS_MAX: Final = 5  # why one peer is not reached, in one outage, that are logged
LOST_REMEDY: Final = "see that node's log; it is dialled again and again"
REACH_REMEDY: Final = "see that it runs, and that its [raft] advertise is reached from here"
REASON_CHARACTERS_MAX: Final = 300  # of what a stranger says that is logged
PIECE_BYTES: Final = 256 << 10  # encrypted at a time; others have their turn in between
PLAIN_PIECE_BYTES: Final = 2 << 20  # the same of what is not: the kernel copies it in a millisecond
# That the kernel takes beside what is on its way. Trio has it take 16 KiB, for what may be thought
# better of; of a frame that has begun all is sent, and a large one would take 40 turns and more.
UNSENT_BYTES: Final = 1 << 20
RENEWAL_SECONDS: Final = 5.0  # for answers, until a connection is made anew with another secret
PARTING_SECONDS: Final = 1.0  # for the other to take what TLS has against it
# RFC 8446 section 6: alert, fatal, protocol_version. For who speaks TLS where none is wanted.
NO_TLS_HERE: Final = b"\x15\x03\x03\x00\x02\x02\x46"
ADDRESSES_MAX: Final = 4  # of one name that are tried
NAME: Final = re.compile(r"[\w.-]{1,64}")  # what stands in the log as it is
OLDER_SECONDS: Final = 30  # that a peer is taken for one of an older version
LEADERS: Final = (Append, Commit, Heartbeat, SnapshotReceived)  # what only a leader says
THERE: Final = "there"  # what a dialer asks now and then: whether the other process is there
NOTICE: Final = 0  # the number of a refusal of no request: it is for the log
NOTICES_MAX: Final = 16  # different ones of a peer that are logged
WARNED_MAX: Final = 100  # different warnings about peers; then they are given anew


class PeerUnreachableError(ReplBrokerError):
    """The peer did not answer; whether it heard is not known, if ``sent``."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class PeerRefusedError(ReplBrokerError):
    """The peer will not talk to this node, or not do what was asked, and says why.

    ``kind`` is that of the objection (handshake.py); "stranger" if one of the two
    does not know the other's secret. ``about`` is what a peer that does says of itself.
    """

    def __init__(
        self, message: str, *, kind: str = "refused", about: Refused | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.about = about


@dataclass(frozen=True, slots=True)
class Me:
    """Who this node is. ``incarnation`` is drawn with the data directory: a node that
    lost its data is another one, whatever its id (RethinkDB#5289)."""

    cluster_id: str  # empty while the node asks to join one
    node_id: str
    incarnation: str
    level: int = NEWEST  # the highest feature level that it has


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Limits; each ends one connection and nothing else."""

    frame_bytes_max: int = 320 << 20  # the largest batch that can be configured, and room
    queue_bytes_max: int = 64 << 20  # a peer; beyond it RPCs are dropped, as on a lossy line
    connect_seconds: float = 1.0
    handshake_seconds: float = 5.0
    silence_ms: int = 3000  # how long sent data may stay unacknowledged
    retry_seconds_min: float = 0.05
    retry_seconds_max: float = 0.5
    strangers_max: int = 64  # connections whose handshake is not done
    strangers_per_address: int = 16  # … of one address, or /64 network of IPv6
    requests_max: int = 256  # under way at one time, a peer
    ask_seconds: float = 10.0  # from one question whether the other is there to the next
    absence_seconds: float = 30.0  # without an answer, or a word, until the other is left


class TransportStatistics(NamedTuple):
    """Counters since the start."""

    connected: int  # links that are up now
    refused: int  # handshakes that failed, ours as acceptor
    garbage: int  # frames that were none
    dropped: int  # RPCs that found no room or no connection
    sent_bytes: int
    second_secret: int = 0  # connections, of both directions, that do not rest on the first


_RPC: Final = 0
_REQUEST: Final = 1
_REPLY: Final = 2
_REFUSAL: Final = 3
_QUESTION: Final = 4  # whether the dialer is there, with a nonce …
_PRESENCE: Final = 5  # … and that it is, with the same

OnRpc = Callable[[Rpc], None]
OnRequest = Callable[[str, str, Any], Awaitable[Any]]
Admit = Callable[[Hello], str | None]  # what speaks against who says that


class Transport:
    """This node's connections to its peers.

    ``on_rpc`` gets each RPC, from a peer that proved itself and is the sender
    it names. ``on_request`` answers a request of a peer, or of a *guest*, who
    belongs to no cluster yet and whose name is empty; a ReplBrokerError that it
    raises becomes the caller's PeerRefusedError. ``admit`` says what speaks
    against a peer that knows the secret, or None; ``admit_level`` what does against
    the version of one, whichever of the two has dialled. ``on_removed`` is told when a
    peer says that this node was removed, ``on_lost`` when one of another cluster knows
    it with other data; ``on_part`` is told now and then of whom a long frame is still
    coming; ``on_received`` is called when all RPCs that had arrived were given to
    ``on_rpc``. ``known_index`` gives up to where this node knows the log, and that
    it is a member there, and ``is_led`` whether it hears a leader. ``may_lead`` says of a
    peer of another incarnation than the known one whether that may be news: then it is
    heard as a leader, and as nothing else. ``keys`` are the cluster's secrets, stretched
    (handshake.py): the first proves this node to others, and each is accepted from them.
    ``tls`` gives the contexts of a connection that begins; without it nothing is
    encrypted.
    """

    def __init__(
        self,
        me: Me,
        keys: Sequence[bytes],
        *,
        on_rpc: OnRpc,
        on_request: OnRequest,
        admit: Admit,
        admit_level: Callable[[str, int], Objection | None],
        on_part: Callable[[str], None] = lambda peer: None,
        on_unreachable: Callable[[str], None] = lambda peer: None,
        on_removed: Callable[[str], None] = lambda reason: None,
        on_lost: Callable[[Lost], None] = lambda lost: None,
        on_received: Callable[[], None] = lambda: None,
        known_index: Callable[[], int] = lambda: 0,
        is_led: Callable[[], bool] = lambda: False,
        may_lead: Callable[[str, str], bool] = lambda peer, incarnation: False,
        tls: Callable[[], PeerContexts] | None = None,
        options: TransportOptions | None = None,
    ) -> None:
        self.me = me
        self.options = options or TransportOptions()
        self._keys = tuple(keys)
        self._on_rpc = on_rpc
        self._on_request = on_request
        self._admit = admit
        self._admit_level = admit_level
        self._on_part = on_part
        self._on_unreachable = on_unreachable
        self._on_removed = on_removed
        self._on_lost = on_lost
        self._known_index = known_index
        self._is_led = is_led
        self._may_lead = may_lead
        self._on_received = on_received
        self._tls = tls
        self._links: dict[str, _Link] = {}
        self._incarnations: dict[str, str] = {}
        self._inbound: dict[str, _Outbox] = {}  # of connections that peers dialled …
        self._accepted: set[_Outbox] = set()  # … and of all that were dialled
        self._process = secrets.token_hex(8)  # two with one data directory differ in it
        self._had_twin = False
        self._dialing: set[bytes] = set()  # nonces of handshakes that this node has begun
        self._dirty: set[_Outbox] = set()  # to be flushed
        self._nursery: trio.Nursery | None = None
        self._strangers: dict[_Frames, _Stranger] = {}  # handshakes, the oldest first
        self._warned: set[tuple[str, str, str]] = set()
        self._older: dict[str, float] = {}  # peers of protocol 1, and when they dialled
        self._refused = 0
        self._garbage = 0
        self._dropped = 0
        self._sent_bytes = 0

    async def run(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and dial until cancelled. Closes the listeners."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for link in self._links.values():
                    nursery.start_soon(link.run)
                for listener in listeners:
                    nursery.start_soon(self._accept, listener, nursery)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for listener in listeners:
                listener.socket.close()

    def set_peers(
        self,
        addresses: Mapping[str, tuple[str, int]],
        incarnations: Mapping[str, str] | None = None,
    ) -> None:
        """Dial exactly these, by node id; links to others are closed.

        A node whose incarnation differs from what is known of it is refused, and
        what it has opened or accepted before is closed.
        """
        self._incarnations = dict(incarnations or {})
        for node_id, outbox in [*self._inbound.items()]:
            gone = node_id in self._links and node_id not in addresses
            if gone or self._is_shut_out(node_id, outbox.incarnation):
                del self._inbound[node_id]  # nothing is sent over it from now on
                outbox.life.cancel()  # it may come back, to be told why not
        for node_id in self._links.keys() - addresses.keys():
            self._links.pop(node_id).close()
        for node_id, address in addresses.items():
            link = self._links.get(node_id)
            if link is not None:
                if link.address == address and not self._is_fenced(node_id, link.incarnation):
                    continue
                link.close()
            link = self._links[node_id] = _Link(self, node_id, address)
            if self._nursery is not None:
                self._nursery.start_soon(link.run)

    def take_keys(self, keys: Sequence[bytes]) -> None:
        """Prove by, and accept, these from now on.

        Connections that rest on another than the first are made anew, once what was asked
        over them is answered; those that were dialled with a key that is not accepted any
        more end now.
        """
        self._keys = tuple(keys)
        for link in self._links.values():
            link.renew()
        cut = [outbox for outbox in self._accepted if outbox.key not in self._keys]
        for outbox in cut:
            outbox.life.cancel()
        if cut:
            text = "peers come anew: the secret that they knew is not accepted any more count=%d"
            log.warning(text, len(cut))

    def _is_fenced(self, node_id: str, incarnation: str) -> bool:
        """Whether the node of that name is known to be another; of guests nothing is known."""
        known = self._incarnations.get(node_id)
        return bool(known and incarnation and known != incarnation)

    def send(self, rpc: Rpc) -> None:
        """Send with the next ``flush``, if there is a connection and room; otherwise it is
        lost, as on any network."""
        link = self._links.get(rpc.receiver)
        outbox = link.outbox if link is not None and link.connected else None
        # Who dialled this node hears it, too: a newcomer knows nobody's address yet.
        outbox = outbox or self._inbound.get(rpc.receiver)
        if outbox is None or not outbox.put_rpc(rpc):
            self._dropped += 1
        else:
            self._dirty.add(outbox)

    def flush(self) -> None:
        """Send what ``send`` has queued: one write a peer."""
        for outbox in self._dirty:
            outbox.flush()
        self._dirty.clear()

    async def call(self, peer: str, name: str, argument: Any, *, seconds: float) -> Any:
        """Ask a known peer, and wait for its answer.

        Raises PeerUnreachableError, PeerRefusedError.
        """
        link = self._links.get(peer)
        if link is None:
            raise PeerUnreachableError(f"node {peer!r} is not a peer of this one", sent=False)
        return await link.call(name, argument, seconds)

    async def call_address(
        self, address: tuple[str, int], name: str, argument: Any, *, seconds: float
    ) -> Any:
        """Ask whoever listens at ``address``, over a connection for this one question.

        It is tried once: raises as ``call`` does, and at once if nobody is there.
        """
        return (await self.meet(address, name, argument, seconds=seconds))[0]

    async def meet(
        self,
        address: tuple[str, int],
        name: str,
        argument: Any,
        *,
        seconds: float,
        who: tuple[str, str] | None = None,
    ) -> tuple[Any, int, str]:
        """As ``call_address``; the answer, and the feature level and the process of who gave it.

        Nothing is asked of another than ``who``, a node's id and incarnation.
        """
        link = _Link(self, "", address, who)
        async with _one_error(), trio.open_nursery() as nursery:
            nursery.start_soon(link.run_once)
            try:
                return await link.call(name, argument, seconds), link.level, link.process
            finally:
                nursery.cancel_scope.cancel()

    def is_connected(self, peer: str) -> bool:
        link = self._links.get(peer)
        return link is not None and link.connected

    def level_of(self, peer: str) -> int | None:
        """The highest feature level that a peer has; None for one that is not connected."""
        link, inbound = self._links.get(peer), self._inbound.get(peer)
        if link is not None and link.connected:
            return link.level
        return None if inbound is None else inbound.level

    def refusals(self) -> dict[str, str]:
        """The peers that cannot be talked to because they refuse this node, or it them: of which
        kind that is (handshake.py), or "older"."""
        apart = {peer: link for peer, link in self._links.items() if not link.connected}
        found = {p: str(link.refusal_kind) for p, link in apart.items() if link.refusal_kind}
        recent = trio.current_time() - OLDER_SECONDS
        return found | {p: "older" for p in apart if self._older.get(p, -math.inf) > recent}

    @property
    def has_twin(self) -> bool:
        """Whether a peer refuses this process because another is connected as this node.

        One that says so is enough: the other process has answered it. If peers keep
        different ones, neither process is ready.
        """
        return any(
            not link.connected and link.refusal_kind == Twin.kind for link in self._links.values()
        )

    @property
    def had_twin(self) -> bool:
        """Whether a peer has said so, over any connection, since this process was started."""
        return self._had_twin

    def is_heard(self, peer: str) -> bool:
        """Whether a peer has dialled this node, and that connection is there."""
        return peer in self._inbound

    def statistics(self) -> TransportStatistics:
        keys = [outbox.key for outbox in self._accepted]
        keys += [link.key for link in self._links.values() if link.connected]
        return TransportStatistics(
            sum(link.connected for link in self._links.values()),
            self._refused,
            self._garbage,
            self._dropped,
            self._sent_bytes,
            sum(key != self._keys[0] for key in keys),
        )

    # --- accepting ---

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                log.error("cannot accept peers for now error=%r", str(error))
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self.serve, stream)

    async def serve(self, stream: trio.abc.HalfCloseableStream) -> None:
        """One connection of a peer, from its handshake to its end. Raises nothing."""
        try:
            with self._line(stream, None) as line:
                await self._serve(_Frames(line, STRANGER_BYTES_MAX))
        except OSError as error:  # no file descriptor is left
            log.error("cannot serve a peer for now error=%r", str(error))
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _line(self, stream: trio.abc.HalfCloseableStream, host: str | None) -> _Line:
        """A line over ``stream``; ``host`` is whom this node dialled, None if it was dialled."""
        tls = None if self._tls is None else _Tls(stream, self._tls(), host)
        return _Line(stream, self.options.silence_ms, tls)

    async def _serve(self, frames: _Frames) -> None:
        try:
            with trio.fail_after(self.options.handshake_seconds) as patience:
                hello, key = await self._meet(frames, patience)
            frames.bytes_max = self.options.frame_bytes_max
            await self._listen(hello, frames, key)
        except (PeerRefusedError, trio.TooSlowError) as error:
            self._refused += 1
            reason = str(error) or "it said too little"
            text = "peer refused peer=%s address=%s reason=%r"
            self._warn(text, frames.peer, frames.address, reason)
        except (ValueError, msgspec.ValidationError) as error:
            self._garbage += 1
            where = frames.peer, frames.address
            self._warn("peer sent garbage peer=%s address=%s error=%r", *where, str(error))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("peer left peer=%s address=%s", frames.peer, frames.address)
        except Exception:
            # An error of ours ends this connection, and nothing else.
            self._garbage += 1
            log.exception("failed to serve peer=%s address=%s", frames.peer, frames.address)

    async def _meet(self, frames: _Frames, patience: trio.CancelScope) -> tuple[Hello, bytes]:
        """Who it is, and the key by which it has proved that, within a bound of time and of
        strangers."""
        stranger = _Stranger(patience, address_key(_remote_address(frames.line.stream)))
        self._make_room(stranger.address)
        self._strangers[frames] = stranger
        try:
            await frames.line.secure()
            return await self._welcome(frames)
        except _SpeaksTlsError:
            await _part(frames.line.stream, NO_TLS_HERE, lingers=True)
            raise
        finally:
            self._strangers.pop(frames, None)

    def _make_room(self, address: str) -> None:
        """For one more stranger from there: the oldest of that address goes if it has its
        share; the oldest of the address that has the most, if there are too many in all."""
        counts = Counter(stranger.address for stranger in self._strangers.values())
        if counts[address] >= self.options.strangers_per_address:
            crowd = address
        elif len(self._strangers) >= self.options.strangers_max:
            crowd = max(counts, key=counts.__getitem__)
        else:
            return
        oldest = next(f for f, stranger in self._strangers.items() if stranger.address == crowd)
        self._strangers.pop(oldest).patience.cancel()

    def _warn(self, text: str, peer: str, address: str, reason: str) -> None:
        """Once for each peer and reason: who is refused comes back again and again."""
        line = (peer, address, reason)
        level = logging.DEBUG if line in self._warned else logging.WARNING
        if len(self._warned) >= WARNED_MAX:
            self._warned.clear()
        self._warned.add(line)
        log.log(level, text, peer, address, reason[:REASON_CHARACTERS_MAX])

    async def _welcome(self, frames: _Frames) -> tuple[Hello, bytes]:
        """What a peer says of itself that knows a secret, and is admitted; and its key."""
        frame = await frames.receive()
        if isinstance(frame, tuple) and frame[:1] == ("hello",):  # of protocol 1
            self._note_older(frame)
            await self._refuse_stranger(frames, "it speaks an older protocol; upgrade it")
        if words_of(Knock, "knock", frame).version != HANDSHAKE:
            await self._refuse_stranger(frames, "it speaks a newer protocol; upgrade this node")
        nonce = secrets.token_bytes(NONCE_BYTES)
        await frames.send(Challenge("challenge", nonce))
        answer = words_of(Answer, "answer", await frames.receive())
        key = self._key_of(nonce, answer, frames.line.binding)
        if key is None:
            await self._refuse_stranger(
                frames, "it does not know this cluster's secret; check [cluster] secret_file there"
            )
        seal = Seal(key, nonce, answer.nonce, frames.line.binding)
        frames.bytes_max = HELLO_BYTES_MAX
        await frames.send(Proof("proof", seal.proof(Part.ACCEPTOR)))
        hello = seal.open(Hello, Part.HELLO, await frames.receive())
        frames.name(hello.node_id)
        objection = self._objection(hello, dialed_itself=answer.nonce in self._dialing)
        if objection is None:
            objection = await self._find_twin(hello, frames.address)
        if objection is not None:
            kind = objection.kind if isinstance(objection, Objection) else Objection.kind
            me, at = self.me, objection.member_at if isinstance(objection, Loss) else ""
            about = (me.node_id, me.cluster_id, self._is_led(), at)
            await frames.send(seal.close(Part.REFUSED, Refused(kind, str(objection), *about)))
            raise PeerRefusedError(objection, kind=kind)
        version = min(hello.version_max, PROTOCOL_MAX)
        welcome = Welcome(version, *_fields(self.me), self.me.level, self._process)
        await frames.send(seal.close(Part.WELCOME, welcome))
        return hello, key

    def _key_of(self, nonce: bytes, answer: Answer, binding: bytes) -> bytes | None:
        """The one that a stranger proves to know, of those that are accepted."""
        for key in self._keys:
            if Seal(key, nonce, answer.nonce, binding).is_proof(answer.proof, Part.DIALER):
                return key
        return None

    async def _find_twin(self, hello: Hello, address: str) -> Twin | None:
        """Whether another process lives that is connected as the same node.

        Only its own answer shows that: the connection of one that is gone may stay, where
        something between the two keeps it. Who gives none in time, as one that is stopped,
        gives way, and is the second when it comes again. Older versions cannot answer.
        """
        inbound = self._inbound.get(hello.node_id)
        if inbound is None or inbound.incarnation != hello.incarnation:
            return None  # of one that lost its data others say so
        return await self.find_twin(hello.node_id, hello.process, address)

    async def find_twin(self, node_id: str, process: str, address: str) -> Twin | None:
        """As ``_find_twin``, of the process that is at ``address``."""
        inbound = self._inbound.get(node_id)
        if inbound is None or not (process and inbound.process and inbound.answers):
            return None
        if inbound.process == process or not await inbound.is_alive(self._answer_seconds):
            return None
        twin = Twin(
            f"node {node_id!r} runs twice, with copies of one data directory: at "
            f"{inbound.address} and, since later, at {address}; stop one of the two, and let it "
            "join with an id of its own and an empty data directory"
        )
        inbound.notify(twin)
        return twin

    @property
    def _answer_seconds(self) -> float:
        """How long an answer is waited for, within a handshake."""
        return min(self.options.silence_ms / 1000, self.options.handshake_seconds / 2)

    def _note_older(self, frame: tuple[Any, ...]) -> None:
        """Of one that says it is a peer. It proves nothing; no more than that is believed."""
        said = frame[4] if len(frame) > 4 else None
        if isinstance(said, str) and said in self._links:
            self._older[said] = trio.current_time()

    async def _refuse_stranger(self, frames: _Frames, reason: str) -> NoReturn:
        """The reason is for this node's log alone."""
        await frames.send(("refused", STRANGER))
        raise PeerRefusedError(reason)

    def _objection(self, hello: Hello, *, dialed_itself: bool) -> str | None:
        """What speaks against a peer that knows the secret."""
        me = self.me
        if dialed_itself:
            return Itself(f"node {me.node_id!r} has dialed itself")
        if hello.version_max < PROTOCOL_MIN or hello.version_min > PROTOCOL_MAX:
            return Version(
                f"node {me.node_id!r} speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, the "
                f"other {hello.version_min} to {hello.version_max}; upgrade the older one"
            )
        if hello.peer_id not in ("", me.node_id):
            return f"the one who was dialed is node {me.node_id!r}, not {hello.peer_id!r}"
        if hello.peer_incarnation not in ("", me.incarnation):
            lost = lost_its_data(me.node_id, hello.cluster_id)
            if hello.cluster_id:
                self._on_lost(Lost(lost, hello.node_id, hello.cluster_id, hello.is_led))
            return lost
        return self._admit(hello)

    async def _listen(self, hello: Hello, frames: _Frames, key: bytes) -> None:
        peer = hello.node_id if hello.cluster_id else ""  # a guest has no name
        self._check_fence(peer, hello.incarnation)  # the welcome had to wait for the line
        if key not in self._keys:  # it was dropped during the handshake
            raise PeerRefusedError("the secret that it knows is not accepted any more")
        under_way = trio.CapacityLimiter(self.options.requests_max)
        outbox = _Outbox(self, frames.line, hello.incarnation, hello.level, key)
        outbox.process, outbox.address = hello.process, frames.address
        outbox.answers = hello.answers
        async with _one_error(), trio.open_nursery() as nursery:
            outbox.life = nursery.cancel_scope
            self._accepted.add(outbox)
            nursery.start_soon(outbox.run)
            if hello.answers:  # and asks: it is never silent for long
                options = self.options
                nursery.start_soon(frames.watch, options.ask_seconds + options.absence_seconds)
            if peer and hello.peer_id:  # else it only asks who is there, beside its connection
                if peer in self._inbound:
                    self._inbound[peer].life.cancel()  # it dialled anew: that one is half open
                self._inbound[peer] = outbox
            try:
                while await frames.more():
                    while (frame := frames.take()) is not None:
                        match frame:
                            case (0, bytes(data)):
                                self._take_rpc(peer, hello.incarnation, data)
                            case (1, int(number), "there", _):
                                outbox.put((_REPLY, number, None))
                                outbox.flush()
                            case (1, int(number), str(name), argument):
                                self._check_fence(peer, hello.incarnation)
                                if not under_way.available_tokens:  # heartbeats come behind it
                                    outbox.put((_REFUSAL, number, "too much is asked at a time"))
                                    outbox.flush()
                                    continue
                                turn = object()
                                await under_way.acquire_on_behalf_of(turn)
                                ask = ((under_way, turn), number, name, argument)
                                nursery.start_soon(self._answer, peer, outbox, *ask)
                            case (5, bytes(nonce)):
                                outbox.take_presence(nonce)
                            case _:
                                raise ValueError("a frame of no known kind")
                    if peer and frames.has_more_of_one():
                        self._take_part(peer, hello.incarnation)
                    self._on_received()
            finally:
                outbox.end()
                self._accepted.discard(outbox)
                if self._inbound.get(peer) is outbox:
                    del self._inbound[peer]
            nursery.cancel_scope.cancel()

    def _is_shut_out(self, peer: str, incarnation: str) -> bool:
        """Whether nothing is taken from it. Whoever was away knows members that were replaced
        since, and has to hear of that from a leader which may be one of them."""
        return self._is_fenced(peer, incarnation) and not self._may_lead(peer, incarnation)

    def _check_fence(self, peer: str, incarnation: str) -> None:
        """Raise PeerRefusedError if another has come under its name meanwhile."""
        if self._is_shut_out(peer, incarnation):
            raise PeerRefusedError(lost_its_data(peer, self.me.cluster_id))

    def _take_part(self, peer: str, incarnation: str) -> None:
        self._check_fence(peer, incarnation)
        self._on_part(peer)

    def _take_rpc(self, peer: str, incarnation: str, data: bytes) -> None:
        self._check_fence(peer, incarnation)
        rpc = decode_rpc(data)
        if not peer or rpc.sender != peer or rpc.receiver != self.me.node_id:
            raise ValueError(f"an RPC of {rpc.sender!r} to {rpc.receiver!r}")
        # What one says of its log, or asks votes for, would count as of the known one.
        if isinstance(rpc, LEADERS) or not self._is_fenced(peer, incarnation):
            self._on_rpc(rpc)

    async def _answer(
        self,
        peer: str,
        outbox: _Outbox,
        held: tuple[trio.CapacityLimiter, object],
        number: int,
        name: str,
        argument: Any,
    ) -> None:
        try:
            try:
                reply = (_REPLY, number, await self._on_request(peer, name, argument))
            except ReplBrokerError as error:
                reply = (_REFUSAL, number, str(error))
            outbox.put(reply)
            outbox.flush()
        finally:
            under_way, turn = held
            under_way.release_on_behalf_of(turn)


class _Stranger(NamedTuple):
    """One whose handshake is not done."""

    patience: trio.CancelScope
    address: str


class _Line:
    """A connection that was made: a stream, and its socket where it has one.

    To wait for the socket and then to read or write it at once saves the turns of
    the event loop, and the calls of the kernel, that the stream's own methods take.
    TLS goes through the stream.
    """

    def __init__(
        self, stream: trio.abc.HalfCloseableStream, silence_ms: int, tls: _Tls | None = None
    ) -> None:
        self.stream = stream
        self._tls = tls
        self._socket: socket.socket | None = None
        if isinstance(stream, trio.SocketStream):
            _bound_silence(stream, silence_ms)
        if isinstance(stream, trio.SocketStream) and tls is None:
            self._socket = socket.socket(fileno=os.dup(stream.socket.fileno()))
            self._socket.setblocking(False)

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    @property
    def binding(self) -> bytes:
        """What a proof covers of the line itself; nothing without TLS."""
        return b"" if self._tls is None else self._tls.binding

    async def secure(self) -> None:
        """Before anything is said: TLS, if this line is to have it. Raises as _Tls does."""
        if self._tls is not None:
            await self._tls.secure()

    async def send(self, data: bytes | memoryview) -> None:
        await (self._tls or self.stream).send_all(data)

    def try_send(self, data: bytes | memoryview) -> int:
        """Send what the kernel takes now; how much that was. Errors show when receiving."""
        if self._socket is None:
            return 0
        try:
            return self._socket.send(data)
        except OSError:  # nothing fits, or the connection broke
            return 0

    async def send_some(self, data: memoryview) -> int:
        """Send a piece of it, as much as goes at once; how much that was. A checkpoint.

        The kernel is given all that it takes: with a turn of the event loop for each small
        part, a large frame would take many turns, and the peer's disk would wait for them.
        """
        if self._socket is None:
            piece = data[:PIECE_BYTES]
            await self.send(piece)
            return len(piece)
        while True:
            await trio.lowlevel.wait_writable(self._socket)
            try:
                return self._socket.send(data[:PLAIN_PIECE_BYTES])
            except (BlockingIOError, InterruptedError):
                continue

    async def receive(self, bytes_max: int) -> bytes:
        """What has come, at least a byte; nothing at the end."""
        if self._tls is not None:
            return await self._tls.receive_some(bytes_max)
        if self._socket is None:
            return bytes(await self.stream.receive_some(bytes_max))
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(bytes_max)
            except (BlockingIOError, InterruptedError):
                continue


_ENDS: Final = (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError)


class _SpeaksTlsError(PeerRefusedError):
    """The other speaks TLS, and this node does not."""


class _Tls:
    """TLS on one connection, with both sides' certificates.

    What OpenSSL finds amiss until the first words have come is said with a remedy:
    as PeerRefusedError, or ValueError for what is no TLS. In TLS 1.3 the dialer is
    told of what the acceptor has against it only then.
    """

    def __init__(
        self, stream: trio.abc.HalfCloseableStream, contexts: PeerContexts, host: str | None
    ) -> None:
        self.binding = b""
        self._below = stream
        self._contexts = contexts
        self._accepts = host is None
        self._has_heard = False
        self._stream = trio.SSLStream(
            stream,
            contexts.server if self._accepts else contexts.client,
            server_hostname=host,
            server_side=self._accepts,
            https_compatible=True,  # frames have their lengths: an end within one is noticed
        )

    async def secure(self) -> None:
        try:
            with self._explained():
                await self._stream.do_handshake()
        except (PeerRefusedError, ValueError):
            words = alert_of(self._stream) or NO_TLS_HERE
            await _part(self._below, words, lingers=self._accepts)
            raise
        other = self._stream.getpeercert(binary_form=True)
        assert other is not None, "both sides have to show one"
        sides = (self._contexts.certificate, other)
        server, client = sides if self._accepts else sides[::-1]
        self.binding = hashlib.sha256(server).digest() + hashlib.sha256(client).digest()

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, bytes_max: int) -> bytes:
        if self._has_heard:
            return bytes(await self._stream.receive_some(bytes_max))
        with self._explained():
            data = bytes(await self._stream.receive_some(bytes_max))
        self._has_heard = True
        return data

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            if not isinstance(cause, ssl.SSLError) or isinstance(cause, _ENDS):
                raise
            raise self._explanation(cause) from None

    def _explanation(self, error: ssl.SSLError) -> Exception:
        reason, other = explain(error), "the dialer" if self._accepts else "the acceptor"
        if isinstance(error, ssl.SSLCertVerificationError):
            return PeerRefusedError(f"the certificate of {other} is refused: {reason}")
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return PeerRefusedError(
                f"{other} shows no certificate; give it [raft] tls_certificate and tls_key"
            )
        if reason == "TLSV1_ALERT_PROTOCOL_VERSION":
            return PeerRefusedError(
                f"{other} speaks no TLS; set [raft] tls_certificate, tls_key and tls_ca on every "
                "node, or on none"
            )
        if "_ALERT_" in reason:
            return PeerRefusedError(f"{other} refuses this node by TLS ({reason}); see its log")
        kind = ValueError if self._accepts else PeerRefusedError
        return kind(
            f"{other} speaks no TLS ({reason}); set [raft] tls_certificate, tls_key and tls_ca on "
            "every node, or on none"
        )


class _Outbox:
    """Frames that wait to be sent over one connection; all that waits goes at once."""

    def __init__(
        self,
        transport: Transport,
        line: _Line | None = None,
        incarnation: str = "",
        level: int | None = None,
        key: bytes = b"",
    ) -> None:
        self.incarnation = incarnation  # of the other end, where that dialed
        self.level = level  # … the highest feature level that it has
        self.key = key  # … and by which it proved itself
        self.process = self.address = ""  # … which process that is, and whence it dialed
        self.answers = False  # … and whether it says that it is there, if it is asked
        self._asked: dict[bytes, trio.Event] = {}  # nonces of what it has not answered
        self._transport = transport
        self._line = line  # None while there is no connection
        self._queue: deque[bytes | memoryview] = deque()
        self._queue_bytes = 0
        self.put_bytes = 0  # since there is this connection, and of them …
        self.gone_bytes = 0  # … what the kernel has taken
        self.on_gone: Callable[[], None] = lambda: None  # more of what did not go at once
        self._sending = False
        self._work = trio.Event()
        self.life = trio.CancelScope()  # of the connection, where it was accepted

    def put(self, frame: tuple[Any, ...]) -> bool:
        """Queue a frame, for ``flush``; False if there is no room."""
        if self._queue_bytes > self._transport.options.queue_bytes_max:
            return False
        data = _frame(frame)
        self._queue.append(data)
        self._queue_bytes += len(data)
        self.put_bytes += len(data)
        return True

    def put_rpc(self, rpc: Rpc) -> bool:
        """The same of an RPC. The data of a large entry is not copied before all goes out."""
        if type(rpc) is not Append or len(rpc.entries) != 1:
            return self.put((_RPC, encode_rpc(rpc)))
        if len(rpc.entries[0].data) <= PARTS_BYTES:
            return self.put((_RPC, encode_rpc(rpc)))
        if self._queue_bytes > self._transport.options.queue_bytes_max:
            return False
        parts = _rpc_frame(encode_parts(rpc))
        size = sum(map(len, parts))
        self._queue += parts
        self._queue_bytes += size
        self.put_bytes += size
        return True

    def notify(self, text: str) -> None:
        """Have the other end log it."""
        self.put((_REFUSAL, NOTICE, str(text)))
        self.flush()

    async def is_alive(self, seconds: float) -> bool:
        """Whether the process at the other end says in time that it is there."""
        nonce, settled = secrets.token_bytes(NONCE_BYTES), trio.Event()
        self._asked[nonce] = settled
        try:
            self.put((_QUESTION, nonce))
            self.flush()
            with trio.move_on_after(seconds):
                await settled.wait()
            return nonce not in self._asked
        finally:
            self._asked.pop(nonce, None)

    def take_presence(self, nonce: bytes) -> None:
        """What the other end has answered."""
        settled = self._asked.pop(nonce, None)
        if settled is not None:
            settled.set()

    def end(self) -> None:
        """The connection is over: nothing is answered any more."""
        for settled in self._asked.values():
            settled.set()

    def connect(self, line: _Line | None) -> None:
        """Send over ``line`` from now on; what was queued for another is gone."""
        self._line = line
        self._queue.clear()
        self._queue_bytes = self.put_bytes = self.gone_bytes = 0
        self._sending = False

    def flush(self) -> None:
        """Send what is queued, as far as that goes at once; the rest goes when it can."""
        if self._sending or self._line is None or not self._queue:
            return
        data = self._take()
        sent = self._line.try_send(data)
        self._transport._sent_bytes += sent
        self.gone_bytes += sent
        if sent < len(data):
            self._queue.appendleft(memoryview(data)[sent:])
            self._queue_bytes += len(data) - sent
            self._sending = True
            self._work.set()

    def _take(self) -> bytes | memoryview:
        data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
        self._queue.clear()
        self._queue_bytes = 0
        return data

    async def run(self) -> None:
        """Send what did not go at once."""
        line = self._line
        assert line is not None
        while True:
            while self._queue and self._sending:
                data = memoryview(self._take())
                while data:
                    sent = await line.send_some(data)
                    data = data[sent:]
                    self._transport._sent_bytes += sent
                    self.gone_bytes += sent
                    self.on_gone()
            self._sending = False
            self._work = trio.Event()
            await self._work.wait()


class _Link:
    """This node's own connection to one peer: dialled, proved, and dialled again."""

    def __init__(
        self,
        transport: Transport,
        peer: str,
        address: tuple[str, int],
        who: tuple[str, str] | None = None,
    ) -> None:
        self.address = address
        self._who = who  # it may be no peer yet, and is to be nobody else
        self.connected = False
        self.incarnation = ""  # of the peer, the last time; and its feature level
        self.level = FIRST
        self.process = ""  # … and which process it is
        self.refusal: PeerRefusedError | None = None  # why the peer would not talk, the last time
        self.refusal_kind: str | None = None  # of the last attempt, if it ended by a refusal
        self._transport = transport
        self._peer = peer  # empty: whoever listens there
        self._life = trio.CancelScope()
        self.outbox = _Outbox(transport)
        self.outbox.on_gone = self._bear_with_calls
        self._settled = trio.Event()  # connected, refused, or given up
        self._key_number = 0  # of the transport's keys, by which the next attempt is made …
        self.key = b""  # … and that of this one
        self._attempt = trio.CancelScope()
        self._failure = ""  # why there was no connection, the last time
        self._said: set[str] = set()  # in the log, of this outage
        self._is_over = False  # given up: it is not dialled again
        self._calls: dict[int, _Call] = {}
        self._notices: set[str] = set()  # that were logged
        self._number = 0

    def close(self) -> None:
        self._life.cancel()

    def renew(self) -> None:
        """The transport has other keys: dial anew if another than this one is the first.

        What is asked from now on waits for the new connection; what was asked before has a
        while to be answered.
        """
        self._key_number = 0
        if not self.connected:
            self._attempt.cancel()
        elif self.key != self._transport._keys[0] and self._settled.is_set():
            self._settled = trio.Event()
            self._attempt.deadline = trio.current_time() + RENEWAL_SECONDS
            self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        """End a connection that is to be made anew, once nobody waits for an answer."""
        if self.connected and not self._settled.is_set() and not self._calls:
            self._attempt.cancel()

    async def call(self, name: str, argument: Any, seconds: float) -> Any:
        call = _Call(seconds)
        sent = False
        with call.patience:
            settled = None
            while settled is not self._settled:  # another, if it was lost or is made anew meanwhile
                settled = self._settled
                await settled.wait()
            if self.refusal is not None and not self.connected:
                refusal = self.refusal
                raise PeerRefusedError(str(refusal), kind=refusal.kind, about=refusal.about)
            if self._is_over and not self.connected:
                text = f"{self._where} did not answer{self._failure}"
                raise PeerUnreachableError(text, sent=False)
            self._number += 1
            number = self._number
            self._calls[number] = call
            try:
                sent = self.connected and self.outbox.put((_REQUEST, number, name, argument))
                call.end_bytes = self.outbox.put_bytes
                self.outbox.flush()
                if sent:
                    await call.done.wait()
            finally:
                self._calls.pop(number, None)
                self._leave_if_idle()
        if call.refusal is not None:
            raise PeerRefusedError(call.refusal)
        if not call.done.is_set() or call.lost:
            raise PeerUnreachableError(f"{self._where} did not answer in {seconds:g} s", sent=sent)
        return call.reply

    def _bear_with_calls(self) -> None:
        """Those that are on their way wait from now on: on a slow link a large one takes longer
        than its answer may."""
        now = trio.current_time()
        for call in self._calls.values():
            if call.end_bytes > self.outbox.gone_bytes:
                call.patience.deadline = now + call.seconds

    @property
    def _where(self) -> str:
        return self._peer or self._there

    @property
    def _there(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    async def run(self) -> None:
        """Connect, and whenever the connection ends connect again, until closed."""
        options = self._transport.options
        wait = options.retry_seconds_min
        with self._life:
            while True:
                began = trio.current_time()
                await self._try()
                if trio.current_time() - began > options.retry_seconds_max:
                    wait = options.retry_seconds_min
                await trio.sleep(random.uniform(0, wait))  # noqa: S311  # nosec B311  # full jitter
                wait = min(2 * wait, options.retry_seconds_max)

    async def run_once(self) -> None:
        """Connect; when that fails, or the connection ends, let go whoever waits."""
        await self._try()
        if self._key_number:  # not with the first key; there is another
            await self._try()
        self._is_over = True
        self._settled.set()

    async def _try(self) -> None:
        """One connection, from dialling to its end."""
        refusal_kind = None
        try:
            with trio.CancelScope() as self._attempt:
                await self._connect_and_talk()
        except PeerRefusedError as error:
            if self._tries_another_key(error):
                return
            refusal_kind = error.kind
            if self._peer and str(self.refusal) != str(error):  # else who asked is told
                log.error("refused by peer=%s reason=%r", self._where, str(error))
            self.refusal = error
            self._settled.set()
            if self.connected:
                self._say_gone(str(error))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("no connection peer=%s error=%r", self._where, str(error))
            self._say_gone(_words_of(error))
            self._failure = f": {error.strerror or error}" if isinstance(error, OSError) else ""
        except trio.TooSlowError:
            log.debug("no handshake in time peer=%s", self._where)
            self._say_gone("it did not prove itself in time")
        except (ValueError, msgspec.ValidationError) as error:
            where = self._where, self.address[0]
            text = "no peer answers there peer=%s address=%s error=%r"
            self._transport._warn(text, *where, str(error))
        finally:
            self.refusal_kind = refusal_kind
            self._disconnect()

    def _say_gone(self, reason: str) -> None:
        """Once for each reason in an outage: it is dialled again and again."""
        if not self._peer or self._life.cancel_called:
            return
        if self.connected:
            log.warning(
                "lost peer=%s address=%s reason=%r remedy=%r",
                self._peer,
                self._there,
                reason,
                LOST_REMEDY,
            )
        elif reason not in self._said:
            if len(self._said) >= REASONS_MAX:
                return
            self._said.add(reason)
            log.warning(
                "does not reach peer=%s address=%s reason=%r remedy=%r",
                self._peer,
                self._there,
                reason,
                REACH_REMEDY,
            )

    def _tries_another_key(self, error: PeerRefusedError) -> bool:
        """Whether the next attempt proves another of the keys, which the peer may know."""
        if error.kind != "stranger":
            return False
        self._key_number = (self._key_number + 1) % len(self._transport._keys)
        if not self._key_number:
            return False
        text = "does not know the first secret; the second is tried peer=%s address=%s reason=%r"
        self._transport._warn(text, self._where, self.address[0], str(error))
        return True

    async def _connect_and_talk(self) -> None:
        async with await self._dial() as stream:
            await self.talk(stream)

    async def _dial(self) -> trio.SocketStream:
        """A connection to the address, whose name is looked up anew each time: the hosts of
        containers move. Raises OSError.

        A lookup has the time that the resolver takes: one that was given up would go on in
        a thread, beside the next.
        """
        host, port = self.address
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        error: OSError | None = None
        for _, _, _, _, address in found[:ADDRESSES_MAX]:
            try:
                with trio.fail_after(self._transport.options.connect_seconds):
                    return await trio.open_tcp_stream(str(address[0]), port)
            except OSError as failure:
                error = failure
            except trio.TooSlowError:
                error = TimeoutError(f"no answer from {address[0]}:{port}")
        raise error or OSError(f"{host!r} has no address")

    async def talk(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Prove each other over ``stream``, then send what is queued, and take replies."""
        with self._transport._line(stream, self.address[0]) as line:
            await self._talk(_Frames(line, HELLO_BYTES_MAX))

    async def _talk(self, frames: _Frames) -> None:
        options = self._transport.options
        with trio.fail_after(options.handshake_seconds):
            await frames.line.secure()
            await self._greet(frames)
        if self.key not in self._transport._keys:
            raise trio.BrokenResourceError("the secret was changed meanwhile")
        frames.bytes_max = options.frame_bytes_max
        self.refusal = None
        self.outbox.connect(frames.line)
        self.connected = True
        self._settled.set()
        if self._peer:
            log.info("connected peer=%s address=%s", self._peer, self._there)
        self._said.clear()
        async with _one_error(), trio.open_nursery() as nursery:
            nursery.start_soon(self.outbox.run)
            nursery.start_soon(self._ask_now_and_then)
            await self._take_replies(frames)
            nursery.cancel_scope.cancel()
        self._say_gone("it has closed the connection")

    async def _ask_now_and_then(self) -> None:
        """Whether the other process is there: until it is not, which ends the connection.

        A version that does not know the question refuses it, and is there.
        """
        options = self._transport.options
        while True:
            await trio.sleep(options.ask_seconds)
            try:
                with suppress(PeerRefusedError):
                    await self.call(THERE, None, options.absence_seconds)
            except PeerUnreachableError as error:
                if not error.sent:  # so much waits that there was no room for the question
                    continue
                text = f"it has not answered for {options.absence_seconds:g} s"
                raise trio.BrokenResourceError(text) from None

    async def _greet(self, frames: _Frames) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        dialing = self._transport._dialing
        dialing.add(nonce)
        try:
            await self._prove_and_ask(frames, nonce)
        finally:
            dialing.discard(nonce)

    async def _prove_and_ask(self, frames: _Frames, nonce: bytes) -> None:
        transport = self._transport
        await frames.send(Knock("knock", HANDSHAKE))
        frame = await frames.receive()
        if isinstance(frame, tuple) and frame[:1] == ("refused",):
            raise self._secrets_differ()
        challenge = words_of(Challenge, "challenge", frame)
        self.key = transport._keys[self._key_number % len(transport._keys)]
        seal = Seal(self.key, challenge.nonce, nonce, frames.line.binding)
        await frames.send(Answer("answer", nonce, seal.proof(Part.DIALER)))
        frame = await frames.receive()
        if isinstance(frame, tuple) and frame[:1] == ("refused",):
            raise self._secrets_differ()  # whatever it says: it has proved nothing
        if not seal.is_proof(words_of(Proof, "proof", frame).proof, Part.ACCEPTOR):
            raise self._secrets_differ()
        known = transport._incarnations.get(self._peer, "")
        hello = Hello(
            PROTOCOL_MIN,
            PROTOCOL_MAX,
            *_fields(transport.me),
            transport._known_index(),
            self._peer,
            known,
            transport._is_led(),
            transport.me.level,
            transport._process,
            answers=True,
        )
        await frames.send(seal.close(Part.HELLO, hello))
        verdict = await frames.receive()
        if isinstance(verdict, tuple) and verdict[:1] == (Part.REFUSED,):
            self._take_refusal(seal.open(Refused, Part.REFUSED, verdict))
        welcome = seal.open(Welcome, Part.WELCOME, verdict)
        self._check(welcome, known)
        self.incarnation, self.level = welcome.incarnation, welcome.level
        self.process = welcome.process

    def _take_refusal(self, refused: Refused) -> NoReturn:
        if refused.kind == Removal.kind:
            self._transport._on_removed(refused.reason)
        if refused.kind == Twin.kind:
            self._transport._had_twin = True
        if refused.kind == Loss.kind:
            self._transport._on_lost(Lost(*refused[1:]))
        raise PeerRefusedError(refused.reason, kind=refused.kind, about=refused)

    def _secrets_differ(self) -> PeerRefusedError:
        where = f"{self.address[0]}:{self.address[1]}"
        return PeerRefusedError(
            f"the secrets of node {self._transport.me.node_id!r} and of the node at {where} "
            "differ; check [cluster] secret_file on both, and that both are of one version",
            kind="stranger",
        )

    def _check(self, welcome: Welcome, known: str) -> None:
        """That it is whom this node means, as the other has found, too."""
        where = f"{self.address[0]}:{self.address[1]}"
        if not PROTOCOL_MIN <= welcome.version <= PROTOCOL_MAX:
            text = f"{where} wants to speak protocol {welcome.version}"
            raise PeerRefusedError(text, kind=Version.kind)
        if self._peer and welcome.node_id != self._peer:
            raise PeerRefusedError(f"{where} is node {welcome.node_id!r}, not {self._peer!r}")
        known = self._transport._incarnations.get(self._peer, known)  # it may be news
        if known and welcome.incarnation != known:
            raise PeerRefusedError(lost_its_data(self._peer, self._transport.me.cluster_id))
        if self._who not in (None, (welcome.node_id, welcome.incarnation)):
            raise PeerRefusedError(f"{where} is another node by now, {welcome.node_id!r}")
        objection = self._transport._admit_level(welcome.node_id, welcome.level)
        if objection is not None:
            raise PeerRefusedError(objection, kind=objection.kind)

    def _note(self, notice: str) -> None:
        if notice not in self._notices and len(self._notices) < NOTICES_MAX:
            self._notices.add(notice)
            log.error("told by peer=%s what=%r", self._where, notice[:REASON_CHARACTERS_MAX])

    async def _take_replies(self, frames: _Frames) -> None:
        while await frames.more():
            while (frame := frames.take()) is not None:
                match frame:
                    case (0, bytes(data)):
                        self._transport._take_rpc(self._peer, self.incarnation, data)
                    case (2, int(number), reply):
                        if number in self._calls:
                            self._calls[number].answer(reply)
                    case (4, bytes(nonce)):
                        self.outbox.put((_PRESENCE, nonce))
                        self.outbox.flush()
                    case (3, 0, str(notice)):
                        self._note(notice)
                    case (3, int(number), str(refusal)):
                        if number in self._calls:
                            self._calls[number].refuse(refusal)
                    case _:
                        raise ValueError("a reply of no known kind")
            if frames.has_more_of_one():
                self._transport._take_part(self._peer, self.incarnation)
            self._transport._on_received()

    def _disconnect(self) -> None:
        was, self.connected = self.connected, False
        if was and self._settled.is_set():
            self._settled = trio.Event()
        self.outbox.connect(None)
        for call in self._calls.values():
            call.lose()
        if was:
            self._transport._on_unreachable(self._peer)


class _Call:
    """A request that waits for its reply."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.patience = trio.move_on_after(seconds)
        self.end_bytes = 0  # of what was put before it, and itself
        self.done = trio.Event()
        self.reply: Any = None
        self.refusal: str | None = None
        self.lost = False

    def answer(self, reply: Any) -> None:
        self.reply = reply
        self.done.set()

    def refuse(self, refusal: str) -> None:
        self.refusal = refusal
        self.done.set()

    def lose(self) -> None:
        self.lost = True
        self.done.set()


class _Frames:
    """Frames over a line, none longer than ``bytes_max``."""

    def __init__(self, line: _Line, bytes_max: int) -> None:
        self.line = line
        self.bytes_max = bytes_max
        self.peer, self.address = "unknown", _remote_address(line.stream)  # for the log
        self._received = bytearray()
        self._part_at = math.inf  # when more of a frame was told of, or it began to come …
        self._part_bytes = 0  # … and how much of it was there then
        self._pieces = 0  # that have come

    def name(self, node_id: str) -> None:
        """Who the other says that it is, proved or not."""
        self.peer = node_id if NAME.fullmatch(node_id) else repr(node_id[:64])

    async def send(self, frame: tuple[Any, ...]) -> None:
        """For the handshake, when nobody else sends."""
        await self.line.send(_frame(frame))

    async def receive(self) -> Any:
        """The next frame. Raises PeerUnreachable's cause: BrokenResourceError at the end."""
        while (frame := self.take()) is None:
            if not await self.more():
                raise trio.BrokenResourceError("the peer has closed the connection")
        return frame

    async def more(self) -> bool:
        """Wait until something comes; False at an end between frames. Raises ValueError at an
        end within one."""
        # A stranger has no more of it held than a frame may have.
        data = await self.line.receive(min(READ_BYTES, 4 + self.bytes_max))
        if not data and self._received:
            raise ValueError("the connection ended within a frame")
        self._received += data
        self._pieces += 1
        return bool(data)

    async def watch(self, seconds: float) -> None:
        """Until nothing has come for that long: raises BrokenResourceError."""
        pieces = -1
        while pieces != self._pieces:
            pieces = self._pieces
            await trio.sleep(seconds)
        raise trio.BrokenResourceError(f"it has said nothing for {seconds:g} s")

    def has_more_of_one(self) -> bool:
        """Whether so much more of a frame has come, and not all of it, that it is worth telling:
        never for one that comes at once."""
        held = len(self._received)
        if not held:
            return False
        now = trio.current_time()
        if self._part_at == math.inf:
            self._part_at, self._part_bytes = now, held
        if now - self._part_at < PART_SECONDS or held - self._part_bytes < PART_BYTES:
            return False
        self._part_at, self._part_bytes = now, held
        return True

    def take(self) -> Any:
        """The next frame, if all of it is here, or None. Raises ValueError for garbage."""
        received = self._received
        if len(received) < 4:
            return None
        if received.startswith((b"\x16\x03", b"\x15\x03")):  # TLS; no length is so large
            raise _SpeaksTlsError(
                "the other speaks TLS; set [raft] tls_certificate, tls_key and tls_ca on every "
                "node, or on none"
            )
        size = int.from_bytes(received[:4], "big")
        if size > self.bytes_max:
            raise ValueError(f"a frame of {size} bytes; the limit is {self.bytes_max}")
        end = 4 + size
        if len(received) < end:
            return None
        try:
            if size > PARTS_BYTES:  # it is not copied first, which for a small one is quicker
                with memoryview(received) as whole, whole[4:end] as body:
                    frame = msgpack.unpackb(body, use_list=False, raw=False)
            else:
                frame = msgpack.unpackb(bytes(received[4:end]), use_list=False, raw=False)
        except (ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"not msgpack: {error}") from None
        del received[:end]
        self._part_at = math.inf
        if frame is None:
            raise ValueError("a frame of no known kind")
        return frame


@asynccontextmanager
async def _one_error() -> AsyncIterator[None]:
    """What went wrong in a nursery, without the group around it; Cancelled is left alone."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, Exception) or group.subgroup(trio.Cancelled):
            raise
        raise error from None


async def _part(stream: trio.abc.HalfCloseableStream, words: bytes, *, lingers: bool) -> None:
    """Tell the other why it is refused by TLS.

    Who ``lingers`` reads on: what is not read makes a reset of the end, which may
    overtake the words; and a node that hears nothing may take it that nobody is there.
    """
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(PARTING_SECONDS):
        await stream.send_all(words)
        await stream.send_eof()
        while lingers and await stream.receive_some(HELLO_BYTES_MAX):
            pass


def _words_of(error: BaseException) -> str:
    """Why a connection broke, or never was."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):  # one for each address of a name
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        return cause.strerror or str(cause) or type(cause).__name__
    return str(cause) or "the connection broke"


def _frame(frame: tuple[Any, ...]) -> bytes:
    body = _ENCODE(frame)
    return len(body).to_bytes(4, "big") + body


def _rpc_frame(parts: Sequence[bytes]) -> list[bytes]:
    """``_frame`` of a large RPC, in parts."""
    size = sum(map(len, parts))
    head = _ENCODE((_RPC, b"")).removesuffix(b"\xc4\x00") + bin_head(size)
    return [(len(head) + size).to_bytes(4, "big") + head, *parts]


def _fields(me: Me) -> tuple[str, str, str]:
    return me.cluster_id, me.node_id, me.incarnation


def _remote_address(stream: trio.abc.Stream) -> str:
    """Without the port, which differs each time."""
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            return str(stream.socket.getpeername()[0])
    return "unknown"


def _bound_silence(stream: trio.abc.Stream, silence_ms: int) -> None:
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
