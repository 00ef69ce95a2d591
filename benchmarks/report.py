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

from benchmarks.figures import (
    Figure,
    Row,
    generator_bound,
    markdown,
    median_of,
    number,
    ratio,
    spread,
    values,
)
from benchmarks.peers import HYPERCORN, OURS, SQLITE
from benchmarks.suite import Scale, rows_in_order

__all__ = ["OtherWork", "as_json", "as_table", "conditions", "file_system", "machine"]


def conditions(scale: Scale, rounds: int, folder: Path) -> dict[str, str]:
    """What has to be known to compare the figures with others."""
    packages = ("trio", "hypercorn", "quart")
    return {
        **machine(folder),
        "Python": f"{platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + f", SQLite {sqlite3.sqlite_version}",
        "messages": f"{scale.message_bytes} bytes of JSON",
        "runs": f"median of {rounds}, {scale.seconds:g} s each "
        f"(latency: {scale.latency_seconds:g} s), peers in turn",
        "batches": f"over {scale.batch_connections} connections",
    }


def machine(folder: Path) -> dict[str, str]:
    """What it runs on, and what holds ``folder``."""
    return {
        "machine": f"{os.cpu_count()} cores ({_processor()}), shared with the load generator",
        "system": f"Linux {platform.release()}, {file_system(folder)} file system",
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
    lines = [["", OURS, HYPERCORN, "ratio", SQLITE, "ratio", "spread"]]
    lines += [[_name(row, figures), *_cells(row, figures)] for row in rows_in_order(figures)]
    return "\n".join([markdown(lines), "", *_notes(figures)])


def _notes(figures: Sequence[Figure]) -> Iterator[str]:
    yield "SQLite alone: rows a second, in commits of as many rows as there are connections."
    yield "Spread: of the rounds, (largest - smallest) / median, the greatest of the peers."
    if any(generator_bound(row, figures) for row in rows_in_order(figures)):
        yield "*: the load generator took most of a core; the server may be able to do more."


def _name(row: Row, figures: Sequence[Figure]) -> str:
    return f"{row.name}, {row.unit}{' *' if generator_bound(row, figures) else ''}"


def _cells(row: Row, figures: Sequence[Figure]) -> Iterator[str]:
    ours = median_of(row, OURS, figures)
    yield number(ours)
    for peer in (HYPERCORN, SQLITE):
        theirs = median_of(row, peer, figures)
        yield number(theirs)
        yield ratio(ours, theirs)
    yield f"{spread(row, (OURS, HYPERCORN, SQLITE), figures):.0%}"


def as_json(figures: Sequence[Figure]) -> Iterator[str]:
    """A line for each row and peer, with the value of each round."""
    for row in rows_in_order(figures):
        ours = median_of(row, OURS, figures)
        for peer in (OURS, HYPERCORN, SQLITE):
            value = median_of(row, peer, figures)
            if value is not None:
                yield json.dumps(
                    {
                        "benchmark": row.name,
                        "unit": row.unit,
                        "peer": peer,
                        "value": round(value, 3),
                        "ratio": round(ours / value, 4) if ours is not None and value else None,
                        "rounds": [round(v, 3) for v in values(row, peer, figures)],
                    },
                    ensure_ascii=False,
                )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """The type of the file system that holds ``folder``: on tmpfs an fsync costs nothing."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, found, *_ = line.split()
        if folder.resolve().is_relative_to(where) and len(where) >= len(best):
            best, kind = where, found
    return kind
