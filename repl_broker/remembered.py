"""The idempotency keys that are remembered, and whose go when there are too many.

A key belongs to the *owner* who used it: another's key of the same name is
another key. Each counts for a *client*, whose oldest go when it has more than its
share. If there are too many of all, the oldest of the client with the most go: so
nobody's keys push out those of a client that has few.

Part of the state machine: the same calls give the same keys on every node.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Remembered", "RememberedKeys"]

_Place = tuple[str, str]  # owner and key


class Remembered(NamedTuple):
    """What was published with a key: the answer of a repeat."""

    digest: bytes
    first_seq: int
    messages: int
    time_ms: int
    client: str = ""


class RememberedKeys:
    """Times never fall from one ``add`` to the next."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Place, Remembered] = OrderedDict()  # oldest first, as …
        self._of: dict[str, deque[_Place]] = {}  # … those of each client
        # (-count, client), with entries that are out of date; None until there are too many.
        self._most: list[tuple[int, str]] | None = None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, owner: str, key: str) -> Remembered | None:
        return self._known.get((owner, key))

    def add(self, owner: str, key: str, remembered: Remembered) -> None:
        """Remember a key that is not."""
        place = owner, key
        self._known[place] = remembered
        keys = self._of.get(remembered.client)
        if keys is None:
            keys = self._of[remembered.client] = deque()
        keys.append(place)
        self._note(remembered.client, len(keys))

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest was used."""
        return next(iter(self._known.values())).time_ms if self._known else None

    def forget_before(self, time_ms: int) -> None:
        """Forget those that were used before ``time_ms``."""
        while self._known:
            oldest = next(iter(self._known.values()))
            if oldest.time_ms >= time_ms:
                return
            self._forget_oldest(oldest.client)

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

    def to_wire(self) -> list[tuple[Any, ...]]:
        return [
            (key, *known[:4], *((owner, known.client) if owner or known.client else ()))
            for (owner, key), known in self._known.items()
        ]

    @classmethod
    def from_wire(cls, rows: Iterable[tuple[Any, ...]]) -> RememberedKeys:
        keys = cls()
        for key, digest, first_seq, count, time_ms, *whose in rows:
            owner, client = whose or ("", "")
            keys.add(owner, key, Remembered(digest, first_seq, count, time_ms, client))
        return keys

    def _forget_oldest(self, client: str) -> None:
        keys = self._of[client]
        del self._known[keys.popleft()]
        if keys:
            self._note(client, len(keys))
        else:
            del self._of[client]

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
