"""From figures to the table: conditions, medians, ratios to etcd."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles

from benchmarks.cluster.etcd import Etcd
from benchmarks.cluster.jetstream import IN_FLIGHT
from benchmarks.cluster.nodes import Cluster
from benchmarks.cluster.suite import PEERS, Found, Scale, rows_in_order
from benchmarks.cluster.trials import FAILOVER, HAND_OVER, QUIET
from benchmarks.figures import (
    Row,
    count,
    generator_bound,
    markdown,
    median_of,
    number,
    ratio,
    spread,
    values,
)
from benchmarks.report import machine

__all__ = ["as_json", "as_table", "conditions"]

BASE = Etcd.name


def conditions(
    scale: Scale, rounds: int, folder: Path, peers: Sequence[type[Cluster]]
) -> dict[str, str]:
    """What has to be known to compare the figures with others."""
    versions = dict.fromkeys(peer.version() for peer in peers)
    return {
        **machine(folder),
        "versions": ", ".join(filter(None, versions)) + f", Python {platform.python_version()}",
        "values": f"{scale.value_bytes} bytes; in batches {scale.batch_message_bytes}",
        "runs": f"median of {rounds}, {scale.seconds:g} s each, peers in turn",
        "trials": f"{scale.trials} of each kind",
    }


def as_table(found: Found) -> str:
    """The table as Markdown. Each ratio is that of the column on its left to etcd."""
    peers = _peers(found)
    heading = ["", *(cell for peer in peers for cell in _with_ratio(peer, peer, "ratio")), "spread"]
    lines = [heading, *_rate_lines(found, peers), *_trial_lines(found, peers)]
    return "\n".join([markdown(lines), "", *_notes(found)])


def _peers(found: Found) -> list[str]:
    """Those that gave anything, in a fixed order."""
    gave = {figure.peer for figure in found.figures} | {trial.peer for trial in found.trials}
    return [peer.name for peer in PEERS.values() if peer.name in gave]


def _with_ratio(peer: str, cell: str, to_base: str) -> list[str]:
    return [cell] if peer == BASE else [cell, to_base]


def _rate_lines(found: Found, peers: Sequence[str]) -> Iterator[list[str]]:
    for row in rows_in_order(found.figures):
        bound = " *" if generator_bound(row, found.figures) else ""
        medians = {peer: median_of(row, peer, found.figures) for peer in peers}
        cells = _cells(medians, {peer: _ratio_of(row, peer, found) for peer in peers})
        yield [f"{row.name}, {row.unit}{bound}", *cells, f"{spread(row, peers, found.figures):.0%}"]


def _trial_lines(found: Found, peers: Sequence[str]) -> Iterator[list[str]]:
    for row in (FAILOVER, HAND_OVER, QUIET):
        gave = {peer: _values(row, peer, found) for peer in peers}
        if any(gave.values()):
            for name in ("p50", "p99", "max"):
                of_peers = {peer: statistics(gave[peer]).get(name) for peer in peers}
                base = of_peers.get(BASE)
                cells = _cells(of_peers, {peer: ratio(of_peers[peer], base) for peer in peers})
                yield [f"{row.name}, {name}, {row.unit}", *cells, ""]


def _cells(of_peers: dict[str, float | None], ratios: dict[str, str]) -> list[str]:
    return [
        cell
        for peer, value in of_peers.items()
        for cell in _with_ratio(peer, number(value), ratios[peer])
    ]


def _ratio_of(row: Row, peer: str, found: Found) -> str:
    """The median of the rounds' ratios: within a round, what else the machine did was alike."""
    both = zip(values(row, peer, found.figures), values(row, BASE, found.figures), strict=False)
    ratios = [value / base for value, base in both if base]
    return ratio(median(ratios), 1.0) if ratios else ""


def _values(row: Row, peer: str, found: Found) -> list[float]:
    return [trial.value for trial in found.trials if trial.row == row and trial.peer == peer]


def statistics(gave: Sequence[float]) -> dict[str, float]:
    """Of trials. The 99th percentile lies between the two largest unless there are over 100."""
    if not gave:
        return {}
    p99 = quantiles(gave, n=100, method="inclusive")[98] if len(gave) > 1 else gave[0]
    return {"p50": median(gave), "p99": p99, "max": max(gave)}


def _notes(found: Found) -> Iterator[str]:
    yield f"Ratio: to {BASE} in the same round, and of those the median; of trials, as they stand."
    yield "JetStream acknowledges before it syncs to the disk."
    yield f"Batches: JetStream has none; it had {IN_FLIGHT} publishes in flight instead."
    yield "Spread: of the rounds, (largest - smallest) / median, the greatest of the peers."
    if shares := [figure.generator for figure in found.figures if figure.generator]:
        yield f"The load generator took {min(shares):.2f} to {max(shares):.2f} of a core."
    for peer, times in found.repeated.items():
        yield f"{peer}: {count(times, 'run')} done again, as leadership moved or the run failed."
    if any(generator_bound(row, found.figures) for row in rows_in_order(found.figures)):
        yield "*: the load generator took most of a core; the servers may be able to do more."


def as_json(found: Found) -> Iterator[str]:
    """A line for each row and peer, with the value of each round or trial."""
    for row in rows_in_order(found.figures):
        for peer in _peers(found):
            if gave := values(row, peer, found.figures):
                yield _line(row, peer, {"value": median(gave), "rounds": gave})
    for row in (FAILOVER, HAND_OVER, QUIET):
        for peer in _peers(found):
            if gave := _values(row, peer, found):
                yield _line(row, peer, {**statistics(gave), "trials": gave})


def _line(row: Row, peer: str, found: dict[str, float | list[float]]) -> str:
    rounded = {
        name: [round(each, 3) for each in value] if isinstance(value, list) else round(value, 3)
        for name, value in found.items()
    }
    return json.dumps(
        {"benchmark": row.name, "unit": row.unit, "peer": peer, **rounded}, ensure_ascii=False
    )
