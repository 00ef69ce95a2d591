"""What most of some clocks agree on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

__all__ = ["middle"]


def middle(offsets: Sequence[float], bound: float) -> tuple[float, int]:
    """That of them which most of them are near to, and how many are."""

    def near(offset: float) -> int:
        return sum(abs(each - offset) <= bound for each in offsets)

    if not offsets:
        return 0.0, 0
    median = median_low(offsets)
    best = min(sorted(offsets), key=lambda each: (-near(each), abs(each - median)))
    return best, near(best)
