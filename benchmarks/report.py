"""From figures to the table: conditions, medians, ratios."""

from __future__ import annotations

import json
import os
import platform
import resource
import sqlite3
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.peers import HYPERCORN, OURS, SQLITE
from benchmarks.suite import Figure, Row, Scale, rows_in_order

__all__ = ["OtherWork", "as_json", "as_table", "conditions"]

GENERATOR_SHARE_MAX = 0.9  # of a core; above it the generator may have been the limit


def conditions(scale: Scale, rounds: int, folder: Path) -> dict[str, str]:
    """What has to be known to compare the figures with others."""
    packages = ("trio", "hypercorn", "quart")
    return {
        "machine": f"{os.cpu_count()} cores ({_processor()}), shared with the load generator",
        "system": f"Linux {platform.release()}, {_file_system(folder)} file system",
        "Python": f"{platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + f", SQLite {sqlite3.sqlite_version}",
        "messages": f"{scale.message_bytes} bytes of JSON",
        "runs": f"median of {rounds}, {scale.seconds:g} s each "
        f"(latency: {scale.latency_seconds:g} s), peers in turn",
        "batches": f"over {scale.batch_connections} connections",
    }


class OtherWork:
    """How busy the machine was with anything else: what disturbs the figures.

    The servers count as ours once they have ended, so ask when all of them have.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def __str__(self) -> str:
        elapsed = time.monotonic() - self._since
        other = _busy_seconds() - self._busy - (_own_seconds() - self._own)
        return f"took {max(other, 0.0) / elapsed:.2f} of {os.cpu_count()} cores, on average"


def _busy_seconds() -> float:
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # less idle, iowait


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def as_table(figures: Sequence[Figure]) -> str:
    """The table as Markdown. ``ratio`` is ours to the peer on its left."""
    lines = [("", OURS, HYPERCORN, "ratio", SQLITE, "ratio", "spread")]
    for row in rows_in_order(figures):
        lines.append((_name(row, figures), *_cells(row, figures)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    text = [
        f"| {cells[0]:<{widths[0]}} | "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
        + " |"
        for cells in (lines[0], rule, *lines[1:])
    ]
    return "\n".join([*text, "", *_notes(figures)])


def _notes(figures: Sequence[Figure]) -> Iterator[str]:
    yield "SQLite alone: rows a second, in commits of as many rows as there are connections."
    yield "Spread: of the rounds, (largest - smallest) / median, the greatest of the peers."
    if any(_generator_bound(row, figures) for row in rows_in_order(figures)):
        yield "*: the load generator took most of a core; the server may be able to do more."


def _name(row: Row, figures: Sequence[Figure]) -> str:
    return f"{row.name}, {row.unit}{' *' if _generator_bound(row, figures) else ''}"


def _cells(row: Row, figures: Sequence[Figure]) -> Iterator[str]:
    ours = _median(row, OURS, figures)
    yield _number(ours)
    for peer in (HYPERCORN, SQLITE):
        theirs = _median(row, peer, figures)
        yield _number(theirs)
        yield "" if ours is None or not theirs else _ratio(ours / theirs)
    spread = max(_spread(row, peer, figures) for peer in (OURS, HYPERCORN, SQLITE))
    yield f"{spread:.0%}"


def _values(row: Row, peer: str, figures: Sequence[Figure]) -> list[float]:
    return [f.value for f in figures if f.row == row and f.peer == peer]


def _median(row: Row, peer: str, figures: Sequence[Figure]) -> float | None:
    values = _values(row, peer, figures)
    return median(values) if values else None


def _spread(row: Row, peer: str, figures: Sequence[Figure]) -> float:
    values = _values(row, peer, figures)
    middle = median(values) if values else 0.0
    return (max(values) - min(values)) / middle if middle else 0.0


def _generator_bound(row: Row, figures: Sequence[Figure]) -> bool:
    return any(f.generator > GENERATOR_SHARE_MAX for f in figures if f.row == row)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def as_json(figures: Sequence[Figure]) -> Iterator[str]:
    """A line for each row and peer, with the value of each round."""
    for row in rows_in_order(figures):
        ours = _median(row, OURS, figures)
        for peer in (OURS, HYPERCORN, SQLITE):
            value = _median(row, peer, figures)
            if value is not None:
                yield json.dumps(
                    {
                        "benchmark": row.name,
                        "unit": row.unit,
                        "peer": peer,
                        "value": round(value, 3),
                        "ratio": round(ours / value, 4) if ours is not None and value else None,
                        "rounds": [round(v, 3) for v in _values(row, peer, figures)],
                    },
                    ensure_ascii=False,
                )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(folder: Path) -> str:
    """The type of the file system that holds ``folder``: on tmpfs an fsync costs nothing."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, found, *_ = line.split()
        if folder.resolve().is_relative_to(where) and len(where) >= len(best):
            best, kind = where, found
    return kind
