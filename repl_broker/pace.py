"""The pace of large entries: one at a time, and small ones have their turn between.

A command that is larger than what is joined into one entry keeps each disk of a cluster busy
for as long as a hundred small writes. If the next began as soon as it is on the leader's own
disk, the slowest of the disks that a commit needs would have one behind the other, and a
small entry behind all of these. So none begins before the one before it is applied; and
if small ones came meanwhile, they have the disks for themselves for as long as it took,
which is when checkpoints are made, too.
"""

from __future__ import annotations

from math import inf
from typing import Final

__all__ = ["PAUSE_SECONDS_MAX", "Pace"]

PAUSE_SECONDS_MAX: Final = 1.0


class Pace:
    """When the next large entry may begin."""

    def __init__(self) -> None:
        self.index = 0  # of the one that is under way; 0 without one
        self.next_at = -inf
        self._term = 0
        self._began = 0.0

    def began(self, index: int, term: int, now: float) -> None:
        """A large entry has this place in the log."""
        self.index, self._term, self._began = index, term, now

    def ended(self, now: float, *, pauses: bool) -> None:
        """It is applied, or another entry in its place. ``pauses``: small ones came meanwhile."""
        self.index = 0
        if pauses:
            self.next_at = now + min(now - self._began, PAUSE_SECONDS_MAX)

    def allows(self, term: int, now: float) -> bool:
        """Whether another may begin. One of an older term may never be applied."""
        return now >= self.next_at and (not self.index or self._term != term)
