"""How two nodes find out that they know the same secret: words and proofs, without I/O.

    dialer                                     acceptor
      Knock                               ──▶
      ◀──  Challenge  nonce
      Answer  nonce, proof                ──▶
      ◀──  Proof  proof                             or the refusal that every stranger gets
      Hello  versions, who, for whom      ──▶
      ◀──  Welcome  version, who                    or Refused with a reason

The one who dials proves first: a stranger learns that he is one, and has no proof
to guess the secret by. Neither side says who it is before the other has proved
that it knows the secret. What follows is *sealed*: its own proof goes with it.

Every proof is an HMAC-SHA256 under a key of this connection alone, which is made
of the secret, both nonces and, under TLS, both certificates (RFC 5929 section 4
has the idea); and it covers the prover's part. So one that was recorded proves
nothing later, none can be sent back to its maker, and no word of a handshake can
be put into another.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final, NamedTuple, TypeVar

import msgpack
import msgspec

from repl_broker.levels import FIRST

__all__ = [
    "HANDSHAKE",
    "NONCE_BYTES",
    "PROTOCOL_MAX",
    "PROTOCOL_MIN",
    "STRANGER",
    "Answer",
    "Challenge",
    "Hello",
    "Itself",
    "Knock",
    "Level",
    "Loss",
    "Lost",
    "Objection",
    "Part",
    "Proof",
    "Refused",
    "Removal",
    "Seal",
    "Twin",
    "Version",
    "Welcome",
    "lost_its_data",
    "stretch",
    "words_of",
]

HANDSHAKE: Final = 2  # the form of the handshake; what is said after it has versions of its own
PROTOCOL_MIN: Final = 2
PROTOCOL_MAX: Final = 2
NONCE_BYTES: Final = 32
# What each guess at a secret costs whoever has a proof to try it on: about 0.1 s and 32 MiB.
_SCRYPT: Final = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20, "dklen": 32}
_SALT: Final = b"repl-broker peers 2"
# All that is said to one who does not prove the secret, whatever the reason.
STRANGER: Final = (
    "the secret or the version of this node is not the other's; compare [cluster] secret_file and "
    "'repl-broker version' on both"
)

N = TypeVar("N", bound=tuple[Any, ...])


class Objection(str):
    """What speaks against a peer that knows the secret."""

    __slots__ = ()
    kind = "refused"


class Removal(Objection):
    """For good: the node was removed from the cluster."""

    __slots__ = ()
    kind = "removed"


class Loss(Objection):
    """The cluster has a member of the node's name, with other data: it lost them."""

    __slots__ = ("member_at",)
    kind = "lost"
    member_at: str  # the address at which that cluster has it

    def __new__(cls, text: str, member_at: str = "") -> Loss:
        loss = super().__new__(cls, text)
        loss.member_at = member_at
        return loss


class Version(Objection):
    """The two have no version of the protocol in common."""

    __slots__ = ()
    kind = "version"


class Level(Objection):
    """The cluster has a feature level that the version of that node does not know."""

    __slots__ = ()
    kind = "level"


class Twin(Objection):
    """Another process is connected under the node's name, with the same data."""

    __slots__ = ()
    kind = "twin"


class Itself(Objection):
    """The node has dialled itself."""

    __slots__ = ()
    kind = "itself"


class Knock(NamedTuple):
    kind: str
    version: int  # HANDSHAKE


class Challenge(NamedTuple):
    kind: str
    nonce: bytes


class Answer(NamedTuple):
    kind: str
    nonce: bytes
    proof: bytes


class Proof(NamedTuple):
    kind: str
    proof: bytes


class Refused(NamedTuple):
    """In the clear it is the first two; older nodes know, and say, no more than these."""

    kind: str
    reason: str
    node_id: str = ""
    cluster_id: str = ""
    is_led: bool = False
    member_at: str = ""  # of a Loss


class Hello(NamedTuple):
    version_min: int
    version_max: int
    cluster_id: str  # empty: of none yet
    node_id: str
    incarnation: str
    commit_index: int  # up to which it knows the log, and that it was a member there; else 0
    peer_id: str  # whom it means to reach; empty: whoever is there
    peer_incarnation: str  # … as far as it knows
    is_led: bool = False  # whether a leader, and so a majority, is there; older nodes say no
    level: int = FIRST  # the highest feature level that it has
    process: str = ""  # drawn when it was started; older nodes have none
    answers: bool = False  # whether it says that it is there, if it is asked; and it asks, too


class Welcome(NamedTuple):
    version: int
    cluster_id: str
    node_id: str
    incarnation: str
    level: int = FIRST
    process: str = ""  # drawn when it was started; older nodes do not say


class Lost(NamedTuple):
    """A node of another cluster knows this one as a member, with other data."""

    reason: str
    node_id: str = ""  # of the one who says so; empty if it is too old to say
    cluster_id: str = ""
    is_led: bool = False  # whether a majority of that cluster is there
    member_at: str | None = None  # where it knows this node; None: it has reached this node there


def lost_its_data(node_id: str, cluster_id: str) -> str:
    """Of a node whose incarnation is not the one that the cluster knows."""
    return (
        f"node {node_id!r} has lost its data (the cluster {cluster_id} knows it with another "
        "incarnation); save what it acknowledged since with 'repl-broker backup', remove it there "
        f"(repl-broker cluster remove {node_id}), and let it join again with --join, without "
        "--bootstrap, and with an empty data directory"
    )


class Part:
    """Who proves what: no proof of one stands for another."""

    DIALER: Final = b"dialer"
    ACCEPTOR: Final = b"acceptor"
    HELLO: Final = b"hello"
    WELCOME: Final = b"welcome"
    REFUSED: Final = b"refused"


def stretch(secret: bytes) -> bytes:
    """The key that is used in the place of ``secret``, so that guessing it is dear.

    It takes about 0.1 s of the processor, and 32 MiB meanwhile. Without a secret
    there is nothing to guess.
    """
    return hashlib.scrypt(secret, salt=_SALT, **_SCRYPT) if secret else b""


def words_of(kind: type[N], name: str, frame: Any) -> N:
    """``frame`` as words that are in the clear. Raises ValueError for others."""
    try:
        words: N = msgspec.convert(frame, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    if words[0] != name:
        raise ValueError(f"{words[0][:64]!r} where {name!r} was to come")
    return words


class Seal:
    """The proofs of one connection."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes, challenge: bytes, answer: bytes, binding: bytes) -> None:
        """``challenge`` and ``answer`` are the nonces; ``binding`` is of the line. Raises
        ValueError for a nonce that is none."""
        if not len(challenge) == len(answer) == NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
        # The nonces have one length, so that no two connections have the same words here.
        self._key = hmac.digest(key, b"connection" + challenge + answer + binding, "sha256")

    def proof(self, part: bytes, words: bytes = b"") -> bytes:
        return hmac.digest(self._key, part + b"\0" + words, "sha256")

    def is_proof(self, proof: bytes, part: bytes, words: bytes = b"") -> bool:
        return hmac.compare_digest(proof, self.proof(part, words))

    def close(self, part: bytes, words: tuple[Any, ...]) -> tuple[bytes, bytes, bytes]:
        """A frame with ``words``, and the proof that they were said here."""
        packed: bytes = msgpack.packb(tuple(words))
        return part, packed, self.proof(part, packed)

    def open(self, kind: type[N], part: bytes, frame: Any) -> N:
        """The words of ``frame``. Raises ValueError, for a wrong proof before anything is read."""
        try:
            found, packed, proof = msgspec.convert(frame, tuple[bytes, bytes, bytes])
            if found != part or not self.is_proof(proof, part, packed):
                raise ValueError("words that were not said by the one who proved himself")
            said = msgpack.unpackb(packed, use_list=False)
            if isinstance(said, tuple):  # a newer version has its own words behind these
                said = said[: len(kind.__annotations__)]
            words: N = msgspec.convert(said, kind)
        except (ValueError, msgpack.UnpackException) as error:  # of msgspec, too
            raise ValueError(f"no words of a handshake: {error}") from None
        return words
