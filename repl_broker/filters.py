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

``Leaps`` lets names be found without looking at all of them (names.py): it says where
the next one could be. In the order of code points ``-`` comes before ``.``, so a topic
``a-b`` lies between ``a`` and ``a.b``; what is wanted next at a position is therefore a
token, if a filter ends with it, or the token and a dot, if one goes on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["AFTER_ALL", "Filters", "Leaps", "Stretch", "compiled"]

AFTER_ALL: Final = "~"  # comes after every name
KEYS_MAX: Final = 20_000  # remembered by one search
COMPILED_SIZE_MAX: Final = 200_000  # tokens of all filters that are remembered, compiled


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


# What is compiled is much larger than its text, and there are streams without number: the
# newest are kept, and others are compiled again when they are needed.
_compiled: OrderedDict[frozenset[str], Filters] = OrderedDict()
_compiled_size = 0


def compiled(filters: frozenset[str]) -> Filters:
    """``Filters`` of these, remembered for a while."""
    global _compiled_size
    known = _compiled.get(filters)
    if known is not None:
        _compiled.move_to_end(filters)
        return known
    made = _compiled[filters] = Filters(filters)
    _compiled_size += made.size
    while _compiled_size > COMPILED_SIZE_MAX and len(_compiled) > 1:
        _compiled_size -= _compiled.popitem(last=False)[1].size
    return made


class Stretch(NamedTuple):
    """From a name on: none before ``start`` matches. If that is the name, all before ``end`` do."""

    start: str
    end: str


class Leaps:
    """One search through names, in order, for those that the filters match."""

    __slots__ = ("_all", "_ends", "_keys", "_keys_count", "_positions")

    def __init__(self, filters: Filters) -> None:
        self._all = filters._all
        self._ends = filters._ends
        self._positions = filters._positions
        # By position and the filters that are left: what may come there, in order.
        self._keys: dict[tuple[int, int], list[str]] = {}
        self._keys_count = 0

    def seek(self, name: str) -> Stretch | None:
        """Where topics match from ``name`` on; None if there can be none."""
        alive, tokens = self._all, name.split(".")
        before: list[int] = []  # which filters are left, before each token
        for position, part in zip(self._positions, tokens, strict=False):
            if alive & position.rest:
                depth = len(before)
                return Stretch(name, ".".join(tokens[:depth]) + "/" if depth else AFTER_ALL)
            before.append(alive)
            alive &= position.named.get(part, position.star)
            if not alive:
                break
        if len(before) == len(tokens) and alive & self._ends.get(len(tokens), 0):
            return Stretch(name, name + "\0")
        start = self._following(name, tokens, before)
        return None if start is None else Stretch(start, start)

    def _following(self, name: str, tokens: list[str], before: list[int]) -> str | None:
        """The least name above ``name``, which does not match, that could match or lead there."""
        for depth in reversed(range(len(before))):
            if before[depth] & self._positions[depth].star:  # any token, so the one that is next
                if len(tokens) == depth + 1:
                    return name + "\0"
                return ".".join(tokens[: depth + 1]) + "/"
            keys = self._keys_at(depth, before[depth])
            at = bisect_right(keys, ".".join(tokens[depth:]))
            if at < len(keys):
                return ".".join((*tokens[:depth], keys[at]))
        return None

    def _keys_at(self, depth: int, alive: int) -> list[str]:
        """The tokens that the filters ``alive`` name here, with a dot where one goes on."""
        known = self._keys.get((depth, alive))
        if known is not None:
            return known
        ends, keys = self._ends.get(depth + 1, 0), []
        for part, mask in self._positions[depth].named.items():
            if wanted := mask & alive:
                if wanted & ends:
                    keys.append(part)
                if wanted & ~ends:
                    keys.append(part + ".")
        keys.sort()
        if self._keys_count > KEYS_MAX:
            self._keys.clear()
            self._keys_count = 0
        self._keys[depth, alive] = keys
        self._keys_count += len(keys) + 1
        return keys
