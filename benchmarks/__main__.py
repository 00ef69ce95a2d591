"""``python -m benchmarks``: measure, and print one table; or another of OTHERS."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import access, churn, hostile, stalled, turns
from benchmarks import replace as replacing
from benchmarks.command import add_options, allow_files, end_in_order, named, progress
from benchmarks.load import BenchmarkError
from benchmarks.peers import PEERS, Peer
from benchmarks.report import OtherWork, as_json, as_table, conditions
from benchmarks.suite import Found, Scale, measure

OTHERS = {
    "stalled": stalled.main,
    "churn": churn.main,
    "hostile": hostile.main,
    "access": access.main,
    "replace": replacing.main,
    "turns": turns.main,
}
GENERATOR_FILES = 600  # that are open beside the subscribers': publishers, and room to spare


def main(arguments: Sequence[str]) -> int:
    end_in_order()
    if arguments and arguments[0] in OTHERS:
        return OTHERS[arguments[0]](arguments[1:])
    options = _options(arguments)
    allow_files()
    scale, left_out = _fitting(_scale(options))
    peers = list(_installed(options.peers, left_out))
    rounds = options.rounds or (1 if options.quick else 3)
    try:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
            folder = Path(name)
            about = conditions(scale, rounds, folder, peers, left_out)
            others = OtherWork()
            began = time.monotonic()
            found = measure(scale, rounds, folder, peers, progress)
            progress("")
            about["took"] = f"{time.monotonic() - began:.0f} s"
            about["other work"] = str(others)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    _print(found, scale, about, options.json)
    for peer, why in found.failed.items():
        print(f"benchmarks: {peer} failed: {why}", file=sys.stderr)
    return 1 if found.failed else 0


def _scale(options: argparse.Namespace) -> Scale:
    scale = Scale.quick() if options.quick else Scale()
    return replace(
        scale,
        delivered_bytes=options.delivered_bytes or scale.delivered_bytes,
        subscribers=options.subscribers or scale.subscribers,
    )


def _fitting(scale: Scale) -> tuple[Scale, list[str]]:
    """Without the numbers of subscribers for which this machine has no files; and which."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - GENERATOR_FILES
    fitting = tuple(amount for amount in scale.subscribers if amount <= most)
    if fitting == scale.subscribers:
        return scale, []
    lacking = ", ".join(f"{n:,}" for n in scale.subscribers if n > most)
    why = f"{lacking} subscribers (only {most + GENERATOR_FILES:,} files may be open: ulimit -Hn)"
    return replace(scale, subscribers=fitting), [why]


def _installed(peers: Sequence[Peer], left_out: list[str]) -> Iterator[Peer]:
    for peer in peers:
        if peer.version() is not None:
            yield peer
        else:
            left_out.append(f"{peer.name} (not installed; on Debian: {peer.install})")
            print(f"benchmarks: left out: {left_out[-1]}", file=sys.stderr)


def _print(found: Found, scale: Scale, about: dict[str, str], as_lines: bool) -> None:
    if as_lines:
        print(json.dumps({"conditions": about}, ensure_ascii=False))
        print(*as_json(found), sep="\n")
    else:
        print(*(f"{what}: {how}" for what, how in about.items()), sep="\n")
        print(f"\n{as_table(found, scale)}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure a node, and three of them, beside Nchan, Redis, NATS, bare ASGI on "
        "Hypercorn, and SQLite alone.",
        epilog="python -m benchmarks stalled: readers that stop reading, among those that go on. "
        "python -m benchmarks churn: readers that come and vanish. "
        "python -m benchmarks hostile: slow clients, and a flood. "
        "python -m benchmarks access: what tokens and TLS cost. "
        "python -m benchmarks replace: a node that is replaced under load. "
        "python -m benchmarks turns: how long a snapshot keeps the event loop. Each has --help.",
    )
    add_options(parser)
    parser.add_argument(
        "--peers",
        type=lambda text: named(text, PEERS),
        default=list(PEERS.values()),
        help=f"some of {','.join(PEERS)} (default: all)",
    )
    parser.add_argument(
        "--subscribers", type=_amounts, help="how many (default: 100,1000,8000,18000)"
    )
    parser.add_argument(
        "--delivered-bytes", type=_bytes, help="of a message that subscribers get (default: 64)"
    )
    return parser.parse_args(arguments)


def _amounts(text: str) -> tuple[int, ...]:
    amounts = tuple(int(part) for part in text.split(","))
    if not all(1 <= amount <= 18_900 for amount in amounts):
        raise argparse.ArgumentTypeError("each 1 to 18900")
    return amounts


def _bytes(text: str) -> int:
    amount = int(text)
    if not 64 <= amount <= 1 << 20:
        raise argparse.ArgumentTypeError("64 to 1048576")
    return amount


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
