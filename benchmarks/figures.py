"""What the rounds gave, and how it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

__all__ = [
    "Figure",
    "Row",
    "count",
    "generator_bound",
    "markdown",
    "median_of",
    "number",
    "ratio",
    "shares",
    "spread",
    "values",
]

GENERATOR_SHARE_MAX = 0.9  # of a core; above it the generator may have been the limit


class Row(NamedTuple):
    """One line of the table."""

    name: str
    unit: str


class Figure(NamedTuple):
    """One value that one round gave."""

    row: Row
    peer: str
    value: float
    generator: float  # the share of a core that the load generator took; it must not be the limit


def values(row: Row, peer: str, figures: Sequence[Figure]) -> list[float]:
    """What a peer's rounds gave, in their order."""
    return [f.value for f in figures if f.row == row and f.peer == peer]


def median_of(row: Row, peer: str, figures: Sequence[Figure]) -> float | None:
    """None if the row is not for this peer."""
    found = values(row, peer, figures)
    return median(found) if found else None


def spread(row: Row, peers: Sequence[str], figures: Sequence[Figure]) -> float:
    """Of the rounds, (largest - smallest) / median: the greatest of the peers."""
    return max(_spread(values(row, peer, figures)) for peer in peers)


def _spread(found: Sequence[float]) -> float:
    middle = median(found) if found else 0.0
    return (max(found) - min(found)) / middle if middle else 0.0


def generator_bound(row: Row, figures: Sequence[Figure], peer: str | None = None) -> bool:
    """Whether the load generator may have been the limit, for this peer or for any."""
    return any(
        f.generator > GENERATOR_SHARE_MAX
        for f in figures
        if f.row == row and peer in (None, f.peer)
    )


def shares(row: Row, peer: str, figures: Sequence[Figure]) -> list[float]:
    """Of a core, what the load generator took in each round."""
    return [f.generator for f in figures if f.row == row and f.peer == peer]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of a heading and the lines after it. All but the first column hold numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join(
        f"| {cells[0]:<{widths[0]}} | "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
        + " |"
        for cells in (lines[0], rule, *lines[1:])
    )


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(value: float | None, base: float | None) -> str:
    """``value`` to ``base``; nothing if there is not both."""
    if value is None or not base:
        return ""
    found = value / base
    return f"{found:.2f}" if found >= 0.1 else f"{found:.2g}"


def count(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
