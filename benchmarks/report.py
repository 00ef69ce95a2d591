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
    shares,
    spread,
    values,
)
from benchmarks.peers import HYPERCORN, OURS, PEERS, SQLITE, Peer
from benchmarks.suite import Found, Scale, rows_in_order

__all__ = ["OtherWork", "as_json", "as_table", "conditions", "file_system", "machine"]

NOTHING = "–"


def conditions(
    scale: Scale, rounds: int, folder: Path, peers: Sequence[Peer], left_out: Sequence[str] = ()
) -> dict[str, str]:
    """What has to be known to compare the figures with others."""
    packages = ("trio", "hypercorn", "quart")
    versions = dict.fromkeys(peer.version() for peer in peers)
    about = {
        **machine(folder),
        "Python": f"{platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + f", SQLite {sqlite3.sqlite_version}",
        "peers": ", ".join(filter(None, versions)),
        "messages": f"{scale.delivered_bytes} bytes of JSON to subscribers, "
        f"{scale.message_bytes} where there are none",
        "runs": f"median of {rounds}, {scale.seconds:g} s each "
        f"(latency: {scale.latency_seconds:g} s), peers in turn",
        "publishers": "one, which waits for each answer, where nothing else is said; latency over "
        f"{scale.latency_connections} connections, batches over {scale.batch_connections}",
    }
    return about | ({"left out": "; ".join(left_out)} if left_out else {})


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


def as_table(found: Found, scale: Scale) -> str:
    """The table as Markdown. In brackets: ours to the peer of that column."""
    figures, peers = found.figures, columns(found)
    lines = [["", *peers, "spread"]]
    for row in rows_in_order(figures):
        cells = [_cell(row, peer, figures) for peer in peers]
        name = f"{row.name}, {row.unit}" if row.unit else row.name
        lines.append([name, *cells, f"{spread(row, peers, figures):.0%}"])
    return "\n".join([markdown(lines), "", *_notes(found, scale)])


def columns(found: Found) -> list[str]:
    """The peers that gave anything, in a fixed order."""
    gave = {figure.peer for figure in found.figures}
    return [name for name in (*(peer.name for peer in PEERS.values()), SQLITE) if name in gave]


def _cell(row: Row, peer: str, figures: Sequence[Figure]) -> str:
    value = median_of(row, peer, figures)
    if value is None:
        return NOTHING
    if not row.unit:
        return number(value)
    bound = " *" if generator_bound(row, figures, peer) else ""
    own = ratio(median_of(row, OURS, figures), value) if peer != OURS else ""
    return f"{number(value)}{bound}" + (f" ({own})" if own else "")


def _notes(found: Found, scale: Scale) -> Iterator[str]:
    figures, peers = found.figures, columns(found)
    if OURS in peers:
        yield f"In brackets: {OURS}'s figure to that peer's, in this run."
    yield "Spread: of the rounds, (largest - smallest) / median, the greatest of the peers."
    if SQLITE in peers:
        yield f"{SQLITE}: rows a second, in commits of as many rows as there are connections."
    yield f"{NOTHING}: not measured. Batches are ours; {HYPERCORN} only reads their bytes."
    if HYPERCORN in peers:
        cap = PEERS["hypercorn"].subscribers_max
        yield (
            f"{HYPERCORN} is measured up to {cap:,} subscribers: a delivery takes it about 0.1 ms, "
            f"so that each message to more would take seconds, and {scale.latency_rate:g} "
            f"publishes/s to {scale.crowd:,} are more than it can do."
        )
    if given := [figure.generator for figure in figures if figure.generator]:
        yield f"The load generator took {min(given):.2f} to {max(given):.2f} of a core."
    if any(generator_bound(row, figures) for row in rows_in_order(figures)):
        yield "*: there it took most of one in some round; the server may be able to do more."
    for peer, why in found.failed.items():
        yield f"{peer} failed, and is in no round after that: {why}"


def as_json(found: Found) -> Iterator[str]:
    """A line for each row and peer, with the value of each round."""
    figures = found.figures
    for row in rows_in_order(figures):
        ours = median_of(row, OURS, figures)
        for peer in columns(found):
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
                        "generator": [round(v, 3) for v in shares(row, peer, figures)],
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
