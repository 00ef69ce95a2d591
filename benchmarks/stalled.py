"""``python -m benchmarks stalled``: many readers, of which some stop reading.

Runs without and with stalled readers take turns, each on a node that was just
started: as many readers go on in both. What is compared is how late messages
come to those, and the most memory that the node took. In the end the stalled
ones read again. The load generator holds every reader, the stalled ones too, to
each message, by its number and by its id.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.command import add_options, allow_files, progress
from benchmarks.figures import markdown, number
from benchmarks.load import BenchmarkError, Generator, Load
from benchmarks.node import single_node
from benchmarks.processes import Process, free_ports
from benchmarks.report import OtherWork, machine

__all__ = ["MEMORY_MB_MAX", "Plan", "Run", "as_table", "main", "measure", "verdicts"]

MEMORY_MB_MAX = 64  # more than without stalled readers
KEEP_ALL = {"topics.retention": {"messages": 1_000_000, "bytes": 1 << 40}}
PUBLISHERS = 4  # in turn


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked for."""

    subscribers: int = 18_000  # the stalled ones included
    stalled: int = 1000
    rate: float = 3.0
    seconds: float = 20.0
    message_bytes: int = 3072  # so that much more is published than the kernel holds

    @classmethod
    def quick(cls) -> Plan:
        return cls(subscribers=1800, stalled=100, rate=20.0, seconds=5.0)


class Run(NamedTuple):
    """What one run gave."""

    stalled: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    memory_mb: float  # by which the node grew at most, from before there were readers
    published_kb: float  # for each reader
    held_kb: float  # of that, by the kernel for each stalled reader, when it read again
    catch_up_seconds: float


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    allow_files()
    plan = _plan(options)
    rounds = options.rounds or (1 if options.quick else 2)
    try:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
            about = machine(Path(name))
            others = OtherWork()
            runs = measure(plan, rounds, Path(name), progress)
            progress("")
            about["other work"] = str(others)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    _print(plan, runs, about, options.json)
    return 0 if all(good for good, _ in verdicts(runs)) else 1


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks stalled",
        description="Measure a node with readers that stop reading, beside one without them. "
        "Exit status: 1 if a message is missing or the node takes too much memory.",
    )
    add_options(parser, "rounds of a run without and a run with stalled readers (default: 2)")
    parser.add_argument("--subscribers", type=int, help="in all (default: 18000)")
    parser.add_argument("--stalled", type=int, help="of them (default: 1000)")
    parser.add_argument("--rate", type=float, help="of publishes a second (default: 3)")
    parser.add_argument("--seconds", type=float, help="of publishing, a run (default: 20)")
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace) -> Plan:
    plan = Plan.quick() if options.quick else Plan()
    plan = Plan(
        options.subscribers or plan.subscribers,
        options.stalled or plan.stalled,
        options.rate or plan.rate,
        options.seconds or plan.seconds,
    )
    if not 0 < plan.stalled < plan.subscribers:
        raise SystemExit("benchmarks: --stalled must be at least 1, and fewer than --subscribers")
    return plan


def measure(
    plan: Plan, rounds: int, folder: Path, progress: Callable[[str], None] = lambda what: None
) -> list[Run]:
    """Without, with, without, with… Raises BenchmarkError if a reader lacks a message."""
    generator = Generator(folder)
    runs: list[Run] = []
    for number_ in range(rounds):
        for stalled in (0, plan.stalled):
            progress(f"round {number_ + 1} of {rounds}: {stalled} stalled")
            runs.append(_run(generator, plan, stalled, folder))
    return runs


def _run(generator: Generator, plan: Plan, stalled: int, folder: Path) -> Run:
    load = Load(
        subscribers=plan.subscribers - plan.stalled + stalled,
        stalled=stalled,
        publishers=PUBLISHERS,
        rate=plan.rate,
        seconds=plan.seconds,
        message_bytes=plan.message_bytes,
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix="stalled-") as own:
        (port,) = free_ports(1)
        process = Process(
            "repl-broker", single_node(port, Path(own), KEEP_ALL), port, Path(own) / "log"
        )
        try:
            process.start()
            generator.run(port, process.pids, Load(subscribers=4, requests=100))  # warm
            found = generator.run(port, process.pids, load)
        finally:
            process.stop()
    return Run(
        stalled,
        found["p50_ms"],
        found["p99_ms"],
        found["max_ms"],
        (found["rss_max_kb"] - found["rss_before_kb"]) / 1024,
        found["messages"] * plan.message_bytes / 1024,
        found["kernel_bytes"] / 1024 / stalled if stalled else 0.0,
        found["catch_up_s"],
    )


def verdicts(runs: Sequence[Run]) -> Iterator[tuple[bool, str]]:
    """Each with whether it is good."""
    without = [run for run in runs if not run.stalled]
    with_them = [run for run in runs if run.stalled]
    base, other = (median(run.p99_ms for run in group) for group in (without, with_them))
    yield True, f"p99 of the readers that go on: {number(base)} ms without, {number(other)} ms with"
    grown = median(r.memory_mb for r in with_them) - median(r.memory_mb for r in without)
    within = grown <= MEMORY_MB_MAX
    yield within, f"memory: {grown:+.1f} MB with them ({MEMORY_MB_MAX} MB are allowed)"
    behind = min(run.published_kb - run.held_kb for run in with_them)
    yield (
        behind > 0,
        f"each stalled reader was at least {number(behind)} KB behind what the kernel held for it",
    )
    yield True, "every reader, the stalled ones too, got every message, once and in order"


def as_table(plan: Plan, runs: Sequence[Run]) -> str:
    lines = [["run", "p50, ms", "p99, ms", "max, ms", "memory, MB", "held, KB", "catching up, s"]]
    for run in runs:
        name = f"{plan.subscribers - plan.stalled:,} readers"
        name += f" and {run.stalled:,} stalled" if run.stalled else ""
        cells = [run.p50_ms, run.p99_ms, run.max_ms, run.memory_mb]
        late = [run.held_kb, run.catch_up_seconds] if run.stalled else [None, None]
        lines.append([name, *(number(cell) for cell in (*cells, *late))])
    notes = (
        "Memory: the most by which the node grew. Held: by the kernel, for each stalled reader.",
        f"{plan.rate:g} publishes/s of {plan.message_bytes:,} bytes for {plan.seconds:g} s.",
    )
    return "\n".join([markdown(lines), "", *notes])


def _print(plan: Plan, runs: Sequence[Run], about: dict[str, str], as_lines: bool) -> None:
    if as_lines:
        print(json.dumps({"conditions": about}, ensure_ascii=False))
        print(*(json.dumps(run._asdict()) for run in runs), sep="\n")
        return
    print(*(f"{what}: {how}" for what, how in about.items()), sep="\n")
    print(f"\n{as_table(plan, runs)}\n")
    print(*(f"{'ok' if good else 'NOT OK'}: {what}" for good, what in verdicts(runs)), sep="\n")
