"""From a topic to those who follow it by patterns, without asking each of them.

Patterns of one *shape* have as many tokens, and wildcards at the same places:
``orders.*.paid`` and ``users.*.seen``. A topic can match one pattern of each shape
alone: itself, with wildcards put where the shape has them. So finding all that
match takes one look into a dict for each shape, which are few, however many
patterns there are.

    topic       orders.eu.paid
    shapes      3 tokens, * at 1      orders.*.paid      ── a key of the dict?
                1 token, then >       orders.>           ── a key of the dict?

A stranger can have patterns of as many shapes as there are ways to put stars
between 127 tokens. What that costs is known before it is begun, so whoever asks
says how many looks it may take, and goes another way if it takes more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

__all__ = ["Routes", "is_plain"]

PLAIN_TOKENS_MAX: Final = 8
PLAIN_STARS_MAX: Final = 2
TOKENS_A_LOOK: Final = 16  # of a long topic; a key of this many counts as one more look
REMEMBERED_MAX: Final = 500_000  # owners in all remembered routes, and one for each

Owner = TypeVar("Owner")
Shape = tuple[int, tuple[int, ...]]  # how many tokens before a ">" or the end, and where stars are


def is_plain(pattern: str) -> bool:
    """Whether it is of one of the 128 shapes at most that a topic can match, if all are plain."""
    return pattern.count(".") < PLAIN_TOKENS_MAX and pattern.count("*") <= PLAIN_STARS_MAX


class Routes(Generic[Owner]):
    """The owners of patterns. Routes that were found are remembered until patterns change.

    What is found from one ``renew`` to the next takes ``looks_max`` looks at most.
    ``leave_out`` says whether an owner gets a topic in some other way.
    """

    __slots__ = (
        "_fixed", "_known", "_known_size", "_leave_out", "_looks_left", "_looks_max", "_one",
        "_open", "_others", "_version", "is_lost", "is_used", "owners",
    )  # fmt: skip

    def __init__(self, leave_out: Callable[[Owner, str], bool], looks_max: int) -> None:
        self.owners: set[Owner] = set()
        self.is_used = False  # some looks were
        self.is_lost = False  # they did not suffice, so that not all who should be are found
        self._looks_max = self._looks_left = looks_max
        self._leave_out = leave_out
        self._one: dict[str, Owner] = {}  # by pattern; most have one owner
        self._others: dict[str, set[Owner]] = {}
        # By the number of tokens before the end or the ">": the shapes there, and how many
        # patterns have each.
        self._fixed: dict[int, dict[tuple[int, ...], int]] = {}
        self._open: dict[int, dict[tuple[int, ...], int]] = {}
        self._version = 0  # of the patterns
        # By topic: for which version, and who.
        self._known: OrderedDict[str, tuple[int, tuple[Owner, ...]]] = OrderedDict()
        self._known_size = 0

    def add(self, owner: Owner, patterns: Iterable[str]) -> None:
        """It has none here yet."""
        self.owners.add(owner)
        self._version += 1
        for pattern in patterns:
            if pattern in self._one:
                self._others.setdefault(pattern, set()).add(owner)
                continue
            self._one[pattern] = owner
            shapes, (length, stars) = self._shapes(pattern)
            group = shapes.setdefault(length, {})
            group[stars] = group.get(stars, 0) + 1

    def remove(self, owner: Owner, patterns: Iterable[str]) -> None:
        """The same that were added."""
        self.owners.remove(owner)
        self._version += 1
        for pattern in patterns:
            others = self._others.get(pattern)
            if others is not None:
                if self._one[pattern] == owner:
                    self._one[pattern] = others.pop()
                else:
                    others.remove(owner)
                if not others:
                    del self._others[pattern]
                continue
            del self._one[pattern]
            shapes, (length, stars) = self._shapes(pattern)
            group = shapes[length]
            group[stars] -= 1
            if not group[stars]:
                del group[stars]
                if not group:
                    del shapes[length]

    def _shapes(self, pattern: str) -> tuple[dict[int, dict[tuple[int, ...], int]], Shape]:
        tokens = pattern.split(".")
        is_open = tokens[-1] == ">"
        stars = tuple(at for at, part in enumerate(tokens) if part == "*") if "*" in pattern else ()
        return (self._open if is_open else self._fixed), (len(tokens) - is_open, stars)

    def renew(self) -> None:
        """All looks may be taken again."""
        self.is_used = self.is_lost = False
        self._looks_left = self._looks_max

    def route(self, topic: str) -> tuple[Owner, ...]:
        """All whose patterns match ``topic``, each once; nobody that is not known, once it is lost.

        Those that are to be left out are not among them.
        """
        known = self._known.get(topic)
        if known is not None and known[0] == self._version:
            return known[1]
        if not self._one:
            return ()
        self.is_used = True
        if not self.is_lost:
            self._looks_left -= 1 + self.looks(topic)
            self.is_lost = self._looks_left < 0
        return () if self.is_lost else self._find(topic)

    def looks(self, topic: str) -> int:
        """What finding its owners takes."""
        length = topic.count(".") + 1
        shapes = len(self._fixed.get(length, ()))
        for least, group in self._open.items():
            if least < length:
                shapes += len(group)
        return shapes * (1 + length // TOKENS_A_LOOK)

    def _find(self, topic: str) -> tuple[Owner, ...]:
        tokens = topic.split(".")
        found: dict[Owner, None] = {}
        for stars in self._fixed.get(len(tokens), ()):
            self._collect(_masked(tokens, len(tokens), stars), found)
        for least, group in self._open.items():
            if least < len(tokens):
                for stars in group:
                    start = _masked(tokens, least, stars)
                    self._collect(start + ".>" if least else ">", found)
        owners = tuple(owner for owner in found if not self._leave_out(owner, topic))
        self._remember(topic, owners)
        return owners

    def _collect(self, pattern: str, found: dict[Owner, None]) -> None:
        owner = self._one.get(pattern)
        if owner is not None:
            found[owner] = None
            if pattern in self._others:
                found.update(dict.fromkeys(self._others[pattern]))

    def _remember(self, topic: str, owners: tuple[Owner, ...]) -> None:
        known = self._known
        before = known.pop(topic, None)
        if before is not None:
            self._known_size -= 1 + len(before[1])
        known[topic] = self._version, owners
        self._known_size += 1 + len(owners)
        while self._known_size > REMEMBERED_MAX and len(known) > 1:
            self._known_size -= 1 + len(known.popitem(last=False)[1][1])


def _masked(tokens: Sequence[str], length: int, stars: Iterable[int]) -> str:
    parts = list(tokens[:length])
    for at in stars:
        parts[at] = "*"
    return ".".join(parts)
