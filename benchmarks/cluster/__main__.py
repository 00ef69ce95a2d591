"""``python -m benchmarks.cluster``: measure, and print one table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.cluster.nodes import Cluster
from benchmarks.cluster.report import as_json, as_table, conditions
from benchmarks.cluster.suite import PEERS, Found, Scale, measure
from benchmarks.command import add_options, allow_files, end_in_order, named, progress
from benchmarks.load import BenchmarkError
from benchmarks.report import OtherWork, file_system


def main() -> int:
    options = _options()
    scale = Scale.quick() if options.quick else Scale()
    if options.trials is not None:
        scale = replace(scale, trials=options.trials)
    rounds = options.rounds or (1 if options.quick else 3)
    peers = [peer for peer in options.peers if _is_there(peer)]
    allow_files()
    end_in_order()
    try:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
            found, about = _measure(scale, rounds, Path(name), peers)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    _print(found, about, options.json)
    for peer, why in found.failed.items():
        print(f"benchmarks: {peer} failed: {why}", file=sys.stderr)
    return 1 if found.failed else 0


def _measure(
    scale: Scale, rounds: int, folder: Path, peers: list[type[Cluster]]
) -> tuple[Found, dict[str, str]]:
    if (kind := file_system(folder)) in ("tmpfs", "ramfs"):
        raise BenchmarkError(
            f"{folder.parent} is in memory ({kind}), where syncing costs nothing; "
            "name a folder on a disk with --dir"
        )
    about = conditions(scale, rounds, folder, peers)
    others, began = OtherWork(), time.monotonic()
    found = measure(scale, rounds, folder, peers, progress)
    progress("")
    about["took"] = f"{time.monotonic() - began:.0f} s"
    about["other work"] = str(others)
    return found, about


def _print(found: Found, about: dict[str, str], as_lines: bool) -> None:
    if as_lines:
        print(json.dumps({"conditions": about}, ensure_ascii=False))
        print(*as_json(found), sep="\n")
    else:
        print(*(f"{what}: {how}" for what, how in about.items()), sep="\n")
        print(f"\n{as_table(found)}")


def _is_there(peer: type[Cluster]) -> bool:
    if peer.version() is None:
        print(f"benchmarks: {peer.name} is left out: {peer.install()}", file=sys.stderr)
        return False
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster",
        description="Measure a cluster of three beside etcd and NATS JetStream.",
    )
    add_options(parser)
    parser.add_argument(
        "--trials", type=_trials, help="how often to kill a leader (default: 30; quick: 5)"
    )
    parser.add_argument(
        "--peers",
        type=lambda text: named(text, PEERS),
        default=list(PEERS.values()),
        help=f"some of {','.join(PEERS)} (default: all)",
    )
    return parser.parse_args()


def _trials(text: str) -> int:
    trials = int(text)
    if not 0 <= trials <= 1000:
        raise argparse.ArgumentTypeError("0 to 1000")
    return trials


if __name__ == "__main__":
    sys.exit(main())
