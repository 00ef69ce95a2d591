"""How long something takes, counted in buckets, for Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

__all__ = ["BOUNDS_SECONDS", "Durations", "Histogram"]

BOUNDS_SECONDS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip


class Durations(NamedTuple):
    """What a Histogram has counted at one moment."""

    seconds: float  # the sum
    buckets: tuple[int, ...]  # one for each of BOUNDS_SECONDS, and one above


class Histogram:
    """Counts durations. Only one thread at a time may ``observe``."""

    __slots__ = ("_buckets", "_seconds")

    def __init__(self) -> None:
        self._seconds = 0.0
        self._buckets = [0] * (len(BOUNDS_SECONDS) + 1)

    def observe(self, seconds: float) -> None:
        self._seconds += seconds
        self._buckets[bisect_left(BOUNDS_SECONDS, seconds)] += 1

    def durations(self) -> Durations:
        return Durations(self._seconds, tuple(self._buckets))
