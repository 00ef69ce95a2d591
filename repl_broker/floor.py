"""Losses that are known by number only: how new the newest is above any sequence number.

Each loss has a sequence number and a version: when it happened. A loss tells nobody
anything new if another has a higher number and a higher version. What is left are
steps: the higher the number, the lower the version.

    version  9 ───┐
             7    └──────┐
             2           └──────────┐
    number        3      5          8

There are STEPS_MAX at most; of more, the two oldest become one that stands for both.
So a reader that has not looked for long may be told of a loss that it knows of, or
that lies before its cursor. No loss is passed over.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

__all__ = ["Floor"]

STEPS_MAX: Final = 1000


class Floor:
    """Where losses go when nobody knows any more whose they were."""

    __slots__ = ("_numbers", "_versions")

    def __init__(self) -> None:
        self._numbers: list[int] = []  # ascending
        self._versions: list[int] = []  # descending

    def add(self, number: int, version: int) -> None:
        """A loss up to ``number`` that happened at ``version``, later or earlier than others."""
        numbers, versions = self._numbers, self._versions
        at = bisect_left(numbers, number)
        if at < len(numbers) and versions[at] >= version:
            return
        end = bisect_right(numbers, number, at)
        start = at
        while start and versions[start - 1] <= version:
            start -= 1
        numbers[start:end], versions[start:end] = (number,), (version,)
        if len(numbers) > STEPS_MAX:
            del numbers[-2], versions[-1]

    def newest(self, after: int) -> int:
        """The version of the newest loss above ``after``; -1 if there is none."""
        at = bisect_right(self._numbers, after)
        return self._versions[at] if at < len(self._versions) else -1
