"""Topics' names in the order of their code points, found by filters without a look at each.

Names lie in one sorted list. A search asks its filters from where on a name could
match (``Leaps.seek``) and the list for the first name there, in turns, so it
costs what it finds, and what wildcards make it look at: not what there is.

A search is done in pieces of a given number of steps. Between two of them nothing is
kept but a place, so names may come and go meanwhile: each that is there all the time is
found once, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from sortedcontainers import SortedList

from repl_broker.filters import AFTER_ALL, Filters, Leaps, Stretch

__all__ = ["Found", "Names", "Wanted", "above"]

STEP_NAMES: Final = 64  # of a stretch that matches as a whole; this many are one step


Wanted = Sequence[Sequence[Filters]]
"""Of each of these a set of filters matches: what is asked for, say, and what may be seen."""


class Found(NamedTuple):
    """What a piece of a search gave: names in order, and where the next one begins."""

    names: list[str]
    at: str | None  # None: there are no more
    steps: int  # that it took


def above(name: str) -> str:
    """Where a search begins that leaves out ``name`` and what comes before it."""
    return name + "\0" if name else ""


class Names:
    """A set of topics' names, in order."""

    __slots__ = ("_sorted",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._sorted = SortedList(names)

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[str]:
        names: Iterator[str] = iter(self._sorted)
        return names

    def irange(self, at: str) -> Iterator[str]:
        """Those from ``at`` on. Not to be gone on with when any has come or gone."""
        names: Iterator[str] = self._sorted.irange(at)
        return names

    def add(self, name: str) -> None:
        """It is not there yet."""
        self._sorted.add(name)

    def remove(self, name: str) -> None:
        """It is there."""
        self._sorted.remove(name)

    def find(self, at: str, wanted: Wanted, limit: int, steps_max: int) -> Found:
        """Names from ``at`` on that are ``wanted``: ``limit`` at most, at least 1.

        ``steps_max`` bounds the work; so a piece may end early, and even empty.
        """
        searches = [[Leaps(filters) for filters in sets] for sets in wanted]
        names: list[str] = []
        steps = 0
        while steps < steps_max:
            steps += 1
            name = next(self.irange(at), None)
            if name is None:
                return Found(names, None, steps)
            end = AFTER_ALL
            for search in searches:
                stretch = _seek(search, name)
                if stretch is None:
                    return Found(names, None, steps)
                if stretch.start != name:
                    at = stretch.start
                    break
                end = min(end, stretch.end)
            else:
                room = min(limit - len(names), STEP_NAMES * (steps_max - steps + 1))
                taken = list(islice(self._sorted.irange(name, end, (True, False)), room))
                names += taken
                steps += (len(taken) - 1) // STEP_NAMES
                at = end if len(taken) < room else above(names[-1])
                if len(names) == limit:
                    return Found(names, at, steps)
        return Found(names, at, steps)


def _seek(searches: Sequence[Leaps], name: str) -> Stretch | None:
    """Where one of these matches, from ``name`` on."""
    start: str | None = None
    end = ""
    for search in searches:
        stretch = search.seek(name)
        if stretch is None:
            continue
        if stretch.start == name:
            end = max(end, stretch.end)
        if start is None or stretch.start < start:
            start = stretch.start
    return None if start is None else Stretch(start, end)
