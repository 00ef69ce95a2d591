"""How much memory a node needs: what its limits come to, and what it keeps of each thing.

    always       the process, caches of a fixed size, and for a moment what is on its way
    at most      what clients can have it hold, each bounded by a key of [limits]
    by content   what grows with topics, messages and keys; limits bound it, too

"At most" is seldom reached: it takes every client to be slow, or hostile, at one moment.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from repl_broker.config import Config

__all__ = ["MiB", "Part", "content_bytes", "memory_bytes", "parts"]

MiB: Final = 1 << 20

# Measured; see docs/how-to/size-memory.md.
PROCESS_BYTES: Final = 64 * MiB  # Python with all that is loaded
CONNECTION_BYTES: Final = 20_000  # that has asked for anything but a publish or a stream
TOPIC_BYTES: Final = 1024
KEY_BYTES: Final = 800  # an idempotency key that is remembered, with its outcome
MESSAGE_BYTES: Final = 18  # that is retained: 12, and what its tables have to spare
ENTRY_BYTES: Final = 44  # of the log; a publish that comes alone is one

# What is bounded by a constant elsewhere.
RECENT_BYTES: Final = 32 * MiB  # entries that were written or read last (history.py)
MARKS_BYTES: Final = 16 * MiB  # what streams share about losses (timeline.py)
PENDING_BYTES: Final = 64 * MiB  # proposals that wait for the disk (replica.py)
PEERS_BYTES: Final = 256 * MiB  # entries for a member that is sent a snapshot (sending.py)


class Part(NamedTuple):
    """``key`` is what bounds it, "" where nothing does that can be set."""

    what: str
    bytes: int
    key: str = ""


def parts(config: Config) -> tuple[Part, ...]:
    """All but what is retained, each at its most."""
    limits = config.limits
    clustered = bool(config.cluster.join) or config.cluster.secret_file is not None
    return (
        Part("the process", PROCESS_BYTES),
        Part("entries written or read last", RECENT_BYTES),
        Part("what streams share about losses", MARKS_BYTES),
        Part("publishes that wait for the disk", PENDING_BYTES),
        *((Part("entries for members that are behind", PEERS_BYTES),) if clustered else ()),
        Part("bodies of publishes under way", limits.requests_bytes, "limits.requests_bytes"),
        Part("readers that do not read", limits.streams_bytes, "limits.streams_bytes"),
        Part("recent messages for live streams", limits.tail_bytes, "limits.tail_bytes"),
        Part("connections", limits.connections * CONNECTION_BYTES, "limits.connections"),
        Part("idempotency keys", limits.idempotency_keys * KEY_BYTES, "limits.idempotency_keys"),
    )


def memory_bytes(config: Config) -> int:
    """The sum of ``parts``."""
    return sum(part.bytes for part in parts(config))


def content_bytes(*, topics: int, messages: int, entries: int) -> int:
    """What is needed beside, for what is retained. Messages themselves are on the disk."""
    return topics * TOPIC_BYTES + messages * MESSAGE_BYTES + entries * ENTRY_BYTES
