"""The event streams that a client has open on this node, and how many it may have.

A stream takes its *seat* when it is decided that it may open, not when it begins:
else many that open in one moment would all pass. The seat goes where the stream's
lease goes, and both end together; a stream that never begins gives its seat back
when nothing refers to it any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

from repl_broker.errors import RequestError

__all__ = ["Seat", "Seats"]

RETRY_SECONDS: Final = 5  # a stream that ends makes room; nobody knows when


class Lease(Protocol):
    """access.Lease."""

    @property
    def ends_at(self) -> float: ...

    def begin(self, dismiss: Callable[[str], None]) -> None: ...

    def end(self) -> None: ...


class Seats:
    """Counts streams by client."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def __len__(self) -> int:
        """Clients that have a stream."""
        return len(self._taken)

    def take(self, client: str, most: int, lease: Lease | None) -> Seat:
        """A seat for one stream more, which has ``lease``. Raises ``too_many_streams``."""
        taken = self._taken.get(client, 0)
        if taken >= most:
            raise RequestError(
                "too_many_streams",
                f"It is the share of one client, {client!r}, that is used up: a client's share of "
                f"event streams on this node is {most:,} ([limits] streams_per_client), and it has "
                f"{taken:,} open. Close some, follow several topics in one, or raise "
                "streams_per_client.",
                retry_after=RETRY_SECONDS,
            )
        self._taken[client] = taken + 1
        return Seat(self, client, lease)

    def give_back(self, client: str) -> None:
        taken = self._taken[client] - 1
        if taken:
            self._taken[client] = taken
        else:
            del self._taken[client]


class Seat:
    """A stream's, with its lease, whose methods it has: see subscription.Lease."""

    __slots__ = ("_client", "_lease", "_seats")

    def __init__(self, seats: Seats, client: str, lease: Lease | None) -> None:
        self._seats: Seats | None = seats
        self._client = client
        self._lease = lease

    @property
    def ends_at(self) -> float:
        return math.inf if self._lease is None else self._lease.ends_at

    def begin(self, dismiss: Callable[[str], None]) -> None:
        if self._lease is not None:
            self._lease.begin(dismiss)

    def end(self) -> None:
        """There is no stream any more, or will be none. Again: nothing."""
        seats, self._seats = self._seats, None
        if seats is not None:
            seats.give_back(self._client)
        if self._lease is not None:
            self._lease.end()

    def __del__(self) -> None:
        seats, self._seats = self._seats, None
        if seats is not None:
            seats.give_back(self._client)
