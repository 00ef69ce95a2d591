"""Many filters at once, compiled: does one of them cover this?

    filters    a.*   b.c   a.>            position   0         1
                                          a          1 0 1
                                          b          0 1 0
                                          c                    0 1 0
                                          any token  0 0 0     1 0 0
                                          the rest   0 0 0     0 0 1

For each position of a token there is a mask of the filters that take it there: a bit for
each filter. Walking along what is asked for keeps those that took every token so far, so
that it costs one step for each of its tokens, whatever the filters are, and not their
number times their length. A filter that starts with a thousand others costs no more than
one that starts with none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["Filters"]


class _Position:
    """Which filters take what at one place; ``star`` and ``named`` have those with ``*``, too."""

    __slots__ = ("named", "rest", "star")

    def __init__(self) -> None:
        self.named: dict[str, int] = {}
        self.star = 0
        self.rest = 0  # a last ``>``: whatever comes


class Filters:
    """A set of filters, each a topic or a pattern. Frozen; equal ones compare equal."""

    __slots__ = ("_all", "_covered", "_ends", "_positions", "filters", "size")

    def __init__(self, filters: Iterable[str]) -> None:
        self.filters: Final = frozenset(filters)
        self.size = 0  # of it in memory: tokens of all filters
        self._covered: str | None = None  # the last one: who publishes does so again and again
        self._all = (1 << len(self.filters)) - 1
        self._positions: list[_Position] = []
        self._ends: dict[int, int] = {}  # by number of tokens: those that have no more
        for number, text in enumerate(self.filters):
            self._add(1 << number, text.split("."))
        for position in self._positions:
            for token in position.named:
                position.named[token] |= position.star

    def _add(self, bit: int, tokens: list[str]) -> None:
        self.size += len(tokens)
        while len(self._positions) < len(tokens):
            self._positions.append(_Position())
        for position, part in zip(self._positions, tokens, strict=False):
            if part == ">":
                position.rest |= bit
                return
            if part == "*":
                position.star |= bit
            else:
                position.named[part] = position.named.get(part, 0) | bit
        self._ends[len(tokens)] = self._ends.get(len(tokens), 0) | bit

    def covers(self, wanted: str) -> bool:
        """Whether one of them matches every topic that ``wanted``, a topic or filter, can match."""
        if wanted == self._covered or wanted in self.filters:
            return True
        if self._walk(wanted.split(".")):
            self._covered = wanted
            return True
        return False

    def _walk(self, tokens: list[str]) -> bool:
        alive = self._all
        # Without a position for a token, there is no filter that is as long.
        for position, part in zip(self._positions, tokens):  # noqa: B905  it takes time
            if alive & position.rest:
                return True
            if part == ">":
                return False
            alive &= position.named.get(part, position.star)
            if not alive:
                return False
        return bool(alive & self._ends.get(len(tokens), 0))

    def __bool__(self) -> bool:
        return bool(self.filters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filters) and self.filters == other.filters

    def __hash__(self) -> int:
        return hash(self.filters)

    def __repr__(self) -> str:
        return f"Filters({sorted(self.filters)})"
