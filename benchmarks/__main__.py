"""``python -m benchmarks``: measure, and print one table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.command import add_options, allow_files, progress
from benchmarks.load import BenchmarkError
from benchmarks.report import OtherWork, as_json, as_table, conditions
from benchmarks.suite import Scale, measure


def main() -> int:
    options = _options()
    scale = Scale.quick() if options.quick else Scale()
    rounds = options.rounds or (1 if options.quick else 3)
    allow_files()
    try:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
            folder = Path(name)
            about = conditions(scale, rounds, folder)
            others = OtherWork()
            began = time.monotonic()
            figures = measure(scale, rounds, folder, progress)
            progress("")
            about["took"] = f"{time.monotonic() - began:.0f} s"
            about["other work"] = str(others)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"conditions": about}, ensure_ascii=False))
        print(*as_json(figures), sep="\n")
    else:
        print(*(f"{what}: {how}" for what, how in about.items()), sep="\n")
        print(f"\n{as_table(figures)}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure a node beside bare ASGI on Hypercorn, and beside SQLite alone.",
    )
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
