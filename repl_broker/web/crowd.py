"""Who has the places of a door, by address, and which of them goes when all are taken.

A place costs its holder nothing, so one address could have them all. Therefore a
newcomer that finds none free gets that of somebody else, of whoever has most, and in
this order:

1. a connection that rests: no request is under way on it, none has begun to arrive, and
   it has been so for longest. HTTP lets both sides close such a one at any time;
2. only of an address that has more than the newcomer would have: a connection that waits
   for its client (for the rest of a request, or to take an answer), its latest stream, or
   a connection on which the node is at work at what changes nothing. What may change
   something is never cut off: such a connection ends with its answer, and until then is
   one of a few that are above the number.

Neither is taken from an address that has less than the newcomer's. A trusted proxy is
many clients, and has a row of its own: what waits for it is never cut off. A request that
comes through it, and a stream, has its place as its client's, from its head until all of
its answer is sent. Time is the caller's; each step of the search is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Protocol

__all__ = ["Crowd", "Guest", "Place"]

# A flood of newcomers must not cost more than it is worth: so many addresses are asked for a
# place, from the one that has most on, …
ADDRESSES_MAX: Final = 4
LOOKS_MAX: Final = 32  # … and so many connections of each; the next newcomer goes on there
# Of the most that an address has, this part makes one crowded as well.
_CROWDED_PART: Final = 8
LEAVING_MAX: Final = 32  # connections that still have their answer to get, and no place any more
# What a client may have that is not ended for a newcomer who comes through a proxy: for
# nobody knows yet whose place it will be.
_SPARED: Final = 8


class Guest(Protocol):
    """A connection, for whoever wants its place."""

    @property
    def rests_since(self) -> float | None:
        """None while a request is under way, or has begun to arrive."""

    @property
    def waits_for_client(self) -> bool:
        """The client, not the node, is to act; or what it reads has no end."""

    @property
    def only_reads(self) -> bool:
        """What the node is at work at for it can be broken off, and asked for again."""

    def close_if_idle(self) -> None: ...

    def cut_off(self) -> None:
        """Reset it."""

    def finish(self) -> None:
        """Answer the request that is under way, and close then."""


class Place:
    """One connection's, from when it is accepted until it ends. ``leave`` again: nothing."""

    __slots__ = ("_crowd", "_end_stream", "_home", "_left", "address", "guest", "proxied")

    def __init__(self, crowd: Crowd, address: str, *, proxied: bool = False) -> None:
        self._crowd: Crowd | None = crowd
        self._left: Crowd | None = None  # … but what had it still has its answer to get
        self._home = address
        self._end_stream: Callable[[], None] | None = None
        self.address = address
        self.guest: Guest | None = None
        self.proxied: Final = proxied  # a trusted proxy's, whose clients are others

    @property
    def is_nobodys(self) -> bool:
        """It counts as the proxy's, not as a client's."""
        return self.proxied and self.address == self._home

    @property
    def is_given_up(self) -> bool:
        """What had it is to end with the answer that it is still to get."""
        return self._left is not None

    def rest(self) -> None:
        """A request has been answered: of its address's it is the one that rests least."""
        if self._crowd is not None:
            self._crowd.rest(self)

    def count_for(self, client: str = "") -> None:
        """It is ``client``'s place from now on; "": its own address's again."""
        if self._crowd is not None and (client or self._home) != self.address:
            self._crowd.move(self, client or self._home)

    def become_stream(self, end: Callable[[], None]) -> None:
        """``end`` ends it; it is no connection with requests any more."""
        if self._crowd is not None:
            self._crowd.turn_to_stream(self)
            self.guest, self._end_stream = None, end

    def leave(self) -> None:
        crowd, self._crowd = self._crowd, None
        if crowd is not None:
            crowd.remove(self)
        if self._left is not None:
            self._left.leaving.pop(self, None)
            self._left = None
        self.guest = self._end_stream = None

    def finish(self) -> None:
        """Leave it to somebody else; what the node is at work at comes to its end."""
        guest, self._left = self.guest, self._crowd
        if self._crowd is not None and guest is not None:
            self._crowd.remove(self)
            self._crowd.leaving[self] = None
            self._crowd = None
            guest.finish()

    def give_up(self, *, cut: bool) -> None:
        """Leave it to somebody else."""
        guest, end_stream = self.guest, self._end_stream
        self.leave()
        if end_stream is not None:
            end_stream()
        elif guest is not None and cut:
            guest.cut_off()
        elif guest is not None:
            guest.close_if_idle()


class _Row:
    """The places of one address."""

    __slots__ = ("connections", "streams", "trusted")

    def __init__(self, *, trusted: bool) -> None:
        self.trusted: Final = trusted  # a proxy's
        self.connections: OrderedDict[Place, None] = OrderedDict()  # who rests longest first
        self.streams: dict[Place, None] = {}  # the latest last

    def __len__(self) -> int:
        return len(self.connections) + len(self.streams)

    def resting(self, now: float, settled_seconds: float) -> Place | None:
        """The one that rests for longest, if it has for so long."""
        for place in list(islice(self.connections, LOOKS_MAX)):
            since = None if place.guest is None else place.guest.rests_since
            if since is None:
                self.connections.move_to_end(place)
            elif now - since < settled_seconds:
                return None
            else:
                return place
        return None

    def cuttable(self) -> Place | None:
        """One that waits for its client, the latest stream, or one that only reads."""
        reads: Place | None = None
        for place in list(islice(self.connections, LOOKS_MAX)):
            if place.guest is not None and place.guest.waits_for_client:
                return place
            if reads is None and place.guest is not None and place.guest.only_reads:
                reads = place
            self.connections.move_to_end(place)
        return next(reversed(self.streams), reads)

    def working(self) -> Place | None:
        """One whose request is to be answered first, where none is ``cuttable``."""
        for place in islice(self.connections, LOOKS_MAX):
            if place.guest is not None:
                return place
        return None


class Crowd:
    """All places that are taken."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        # Addresses, by how many they have; proxies apart, which would hide the others.
        self._by_count: dict[int, dict[str, None]] = {}
        self._proxies_by_count: dict[int, dict[str, None]] = {}
        self._count = 0
        self.leaving: dict[Place, None] = {}

    def __len__(self) -> int:
        return self._count

    def of(self, address: str) -> int:
        """How many places it has."""
        row = self._rows.get(address)
        return 0 if row is None else len(row)

    def counts(self) -> dict[str, int]:
        """By address."""
        return {address: len(row) for address, row in self._rows.items()}

    def enter(self, address: str, *, trusted: bool = False) -> Place:
        """``trusted``: it is a proxy's, and then ``address`` is nobody else's."""
        place = Place(self, address, proxied=trusted)
        row = self._row(place)
        row.connections[place] = None
        self._counted(row, address, len(row) - 1)
        return place

    def make_room(
        self, newcomer: str, now: float, settled_seconds: float, *, trusted: bool = False
    ) -> bool:
        """End one for ``newcomer``, if that is fair. Only those go as resting that have
        rested for ``settled_seconds``: of others a request may be on its way."""
        own = self.of(newcomer)
        if trusted:
            own = max(_SPARED, self._count // (2 * len(self._rows)) if self._rows else 0)
        asked = {address: None for most in (self._by_count, self._proxies_by_count)
                 for address in islice(_most_first(most), ADDRESSES_MAX)
                 if self.of(address) > own}  # fmt: skip
        if newcomer in self._rows:
            asked[newcomer] = None
        rows = sorted((self._rows[address] for address in asked), key=len, reverse=True)
        resting: Place | None = None
        for row in rows:
            found = row.resting(now, settled_seconds)
            if found is not None and len(row) * _CROWDED_PART >= len(rows[0]):
                found.give_up(cut=False)
                return True
            resting = resting or found
        for row in rows:
            if row.trusted or len(row) <= own + 1:
                continue
            if (place := row.cuttable()) is not None:
                place.give_up(cut=True)
                return True
            if (place := row.working()) is not None and self._may_leave():
                place.finish()
                return True
        if resting is not None:
            resting.give_up(cut=False)
        return resting is not None

    def _may_leave(self) -> bool:
        """Whether one more may go on without a place. Who only has to take his answer need not."""
        if len(self.leaving) >= LEAVING_MAX:
            for place in list(self.leaving):
                if place.guest is not None and place.guest.waits_for_client:
                    place.give_up(cut=True)
                    break
        return len(self.leaving) < LEAVING_MAX

    # --- for Place ---

    def rest(self, place: Place) -> None:
        self._rows[place.address].connections.move_to_end(place)

    def turn_to_stream(self, place: Place) -> None:
        row = self._rows[place.address]
        del row.connections[place]
        row.streams[place] = None

    def move(self, place: Place, address: str) -> None:
        is_stream = self._take_out(place)
        place.address = address
        row = self._row(place)
        (row.streams if is_stream else row.connections)[place] = None
        self._counted(row, address, len(row) - 1)

    def remove(self, place: Place) -> None:
        self._take_out(place)

    def _take_out(self, place: Place) -> bool:
        """Whether it was among the streams."""
        row = self._rows[place.address]
        is_stream = place in row.streams
        del (row.streams if is_stream else row.connections)[place]
        self._counted(row, place.address, len(row) + 1)
        if not len(row):
            del self._rows[place.address]
        return is_stream

    def _row(self, place: Place) -> _Row:
        row = self._rows.get(place.address)
        if row is None:
            row = self._rows[place.address] = _Row(trusted=place.is_nobodys)
        return row

    def _counted(self, row: _Row, address: str, before: int) -> None:
        after = len(row)
        self._count += after - before
        by_count = self._proxies_by_count if row.trusted else self._by_count
        if before:
            among = by_count[before]
            del among[address]
            if not among:
                del by_count[before]
        if after:
            by_count.setdefault(after, {})[address] = None


def _most_first(by_count: dict[int, dict[str, None]]) -> Iterator[str]:
    """Addresses; there are few different counts: of n places, less than 2 √n."""
    for count in sorted(by_count, reverse=True):
        yield from by_count[count]
