"""What may be asked of the state machine. Each command is one entry, or part of one.

A command holds all that its effect depends on, besides the state and the
entry's time: applying it reads no clock and no local setting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

__all__ = [
    "Command",
    "Configure",
    "CreateTopic",
    "DeleteTopic",
    "DeleteTopics",
    "Expire",
    "KeepTopics",
    "Numbered",
    "Publish",
    "RaiseLevel",
    "Retention",
    "RevokeTokens",
    "Settings",
    "Shares",
]


@dataclass(frozen=True, slots=True)
class Retention:
    """How much history a topic keeps; whichever limit is reached first trims it."""

    messages: int  # at least 1
    seconds: int  # at least 1
    bytes: int  # of data, at least 1; the newest message is kept whatever its size
    idle_seconds: int | None = None  # unused for this long, the topic goes; None: it stays


@dataclass(frozen=True, slots=True)
class Shares:
    """The most that belongs to one client, of what all need; 0: no limit."""

    topics: int = 0  # that it created
    storage_bytes: int = 0  # of its messages, MESSAGE_OVERHEAD_BYTES for each included
    idempotency_keys: int = 0
    # A message counts for whoever publishes it. Not so in logs from before there was a choice:
    # there it counts for whoever created its topic, and those that were published then still do.
    of_publishers: bool = False

    @property
    def has_limits(self) -> bool:
        return bool(self.topics or self.storage_bytes or self.idempotency_keys)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that all nodes must share, because they decide what a command does."""

    auto_create: bool
    retention: Retention  # of topics that do not say otherwise
    idempotency_keys: int  # remembered at most
    idempotency_seconds: int  # … and how long
    topics: int = 0  # at most; 0: as many as are asked for
    shares: Shares = Shares()

    def after(self, before: Settings) -> Settings:
        """These, where ``before`` are in force: what counts for publishers goes on to."""
        if self.shares.of_publishers or not before.shares.of_publishers:
            return self
        return replace(self, shares=replace(self.shares, of_publishers=True))


class Publish(msgspec.Struct, frozen=True):
    """Publish messages, all or none.

    ``topics`` is one topic for all of ``data``, or one for each. ``digest``
    tells apart two requests of ``owner`` that use the same idempotency ``key``.
    ``client`` has the shares that it counts for; "" has all it wants.
    """

    topics: str | tuple[str, ...]
    data: tuple[bytes, ...]
    key: str | None = None
    digest: bytes = b""
    owner: str = ""  # … of the key; another's key is another key
    client: str = ""


class CreateTopic(msgspec.Struct, frozen=True):
    """Create a topic; ``None`` stands for the default. With ``replace``, change one that exists.

    A new one counts for the shares of ``client``, as with Publish.
    """

    name: str
    messages: int | None = None
    seconds: int | None = None
    bytes: int | None = None
    replace: bool = False
    idle_seconds: int | None = None  # 0: it stays, whatever the default is
    client: str = ""


class DeleteTopic(msgspec.Struct, frozen=True):
    """Remove a topic and its history."""

    name: str


class DeleteTopics(msgspec.Struct, frozen=True):
    """Remove those of the topics that there are, and their history.

    With ``used``, one for each, they are idle: only those go whose last use is still in
    that entry.
    """

    names: tuple[str, ...]
    used: tuple[int, ...] | None = None


class KeepTopics(msgspec.Struct, frozen=True):
    """Streams follow these topics: the time for which they may be idle begins anew."""

    names: tuple[str, ...]


class Configure(msgspec.Struct, frozen=True):
    """Set the shared settings; the leader proposes it when its own file says otherwise."""

    settings: Settings


class Expire(msgspec.Struct, frozen=True):
    """Trim what has grown too old by the entry's time, in topics that nobody publishes to.

    What is due first goes first. ``steps_max`` bounds the work, so that there may be more
    to trim. 0: all of it, and all that is beyond any other limit, as entries of old logs
    have it. That looks at every topic, and is not proposed any more.
    """

    steps_max: int = 0


class RevokeTokens(msgspec.Struct, frozen=True):
    """Refuse the tokens of ``subject`` that were issued before the entry's time.

    That is remembered for ``keep_seconds``; a token that lives longer is refused anyway.
    ``asked_ms`` is what the node that was asked took for the time, and counts if the entry
    is dated far ahead of it; 0: it does not say.
    """

    subject: str
    keep_seconds: int
    asked_ms: int = 0


class Numbered(msgspec.Struct, frozen=True):
    """The next ``len(numbers)`` commands were sent on by a node, and have these numbers.

    ``sender`` is the node's incarnation, ``run`` counts its starts; below ``floor`` it
    repeats nothing. Each is carried out once (senders.py).
    """

    sender: str
    run: int
    floor: int
    numbers: tuple[int, ...]


class RaiseLevel(msgspec.Struct, frozen=True):
    """All members know what is of ``level``: it may be proposed from now on (levels.py)."""

    level: int


Command = (
    Publish
    | CreateTopic
    | DeleteTopic
    | Configure
    | Expire
    | RevokeTokens
    | DeleteTopics
    | KeepTopics
    | Numbered
    | RaiseLevel
)
