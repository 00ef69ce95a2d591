"""The idempotency keys that are remembered, and whose go when there are too many.

A key belongs to the *owner* who used it: another's key of the same name is
another key. Each counts for a *client*, whose oldest go when it has more than its
share. If there are too many of all, the oldest of the client with the most go: so
nobody's keys push out those of a client that has few.

Part of the state machine: the same calls give the same keys on every node.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

__all__ = ["Remembered", "RememberedKeys"]

_Place = tuple[str, str]  # owner and key
_Row = tuple[Any, ...]  # key, digest, first_seq, messages, time_ms; owner and client, if any
TIME: Final = 4
OWNER: Final = 5
CLIENT: Final = 6


class Remembered(NamedTuple):
    """What was published with a key: the answer of a repeat."""

    digest: bytes
    first_seq: int
    messages: int
    time_ms: int
    client: str = ""


class RememberedKeys:
    """Times never fall from one ``add`` to the next.

    Each is kept as its row in a snapshot: a plain tuple, which costs Python's collector nothing.
    """

    def __init__(self) -> None:
        self._known: dict[_Place, _Row] = {}  # oldest first
        self._order: deque[_Row] = deque()  # the same, and some that are forgotten already
        self._of: dict[str, deque[_Place]] = {}  # those of each client, oldest first
        # (-count, client), with entries that are out of date; None until there are too many.
        self._most: list[tuple[int, str]] | None = None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, owner: str, key: str) -> Remembered | None:
        row = self._known.get((owner, key))
        return None if row is None else Remembered(*row[1:5], *row[6:])

    def add(self, owner: str, key: str, remembered: Remembered) -> None:
        """Remember a key that is not."""
        *known, client = remembered
        row = (key, *known, *((owner, client) if owner or client else ()))
        place = owner, key
        self._known[place] = row
        self._order.append(row)
        keys = self._of.get(client)
        if keys is None:
            keys = self._of[client] = deque()
        keys.append(place)
        self._note(client, len(keys))

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest was used."""
        oldest = self._oldest()
        return None if oldest is None else oldest[TIME]

    def forget_before(self, time_ms: int) -> None:
        """Forget those that were used before ``time_ms``."""
        while (oldest := self._oldest()) is not None and oldest[TIME] < time_ms:
            self._forget_oldest(oldest[CLIENT] if len(oldest) > CLIENT else "")

    def bound_client(self, client: str, share: int) -> None:
        """Forget what ``client`` has beyond its share; "" has none, and 0 is no limit."""
        if share and client:
            while len(self._of.get(client, ())) > share:
                self._forget_oldest(client)

    def bound_clients(self, share: int) -> None:
        """The same for all of them."""
        for client in [*self._of]:
            self.bound_client(client, share)

    def bound(self, most: int) -> None:
        """Forget what there is beyond ``most``: the oldest of whoever has the most."""
        while len(self._known) > most:
            self._forget_oldest(self._largest())

    def to_wire(self) -> list[_Row]:
        return [*self._known.values()]

    @classmethod
    def from_wire(cls, rows: Iterable[tuple[Any, ...]]) -> RememberedKeys:
        keys = cls()
        for key, digest, first_seq, count, time_ms, *whose in rows:
            owner, client = whose or ("", "")
            keys.add(owner, key, Remembered(digest, first_seq, count, time_ms, client))
        return keys

    def _oldest(self) -> _Row | None:
        order, known = self._order, self._known
        while order:
            row = order[0]
            owner = row[OWNER] if len(row) > OWNER else ""
            if known.get((owner, row[0])) is row:
                return row
            order.popleft()
        return None

    def _forget_oldest(self, client: str) -> None:
        keys = self._of[client]
        del self._known[keys.popleft()]
        if keys:
            self._note(client, len(keys))
        else:
            del self._of[client]
        if len(self._order) > 2 * len(self._known) + 64:
            self._order = deque(self._known.values())

    def _note(self, client: str, count: int) -> None:
        if self._most is not None:
            heapq.heappush(self._most, (-count, client))
            if len(self._most) > 4 * len(self._of) + 64:
                self._most = None  # most of it is out of date; it is made anew when it is needed

    def _largest(self) -> str:
        """The client with the most keys; of several, the first by name."""
        if len(self._of) == 1:
            return next(iter(self._of))
        most = self._most
        if most is None:
            most = self._most = [(-len(keys), client) for client, keys in self._of.items()]
            heapq.heapify(most)
        while True:
            count, client = most[0]
            if len(self._of.get(client, ())) == -count:
                return client
            heapq.heappop(most)
