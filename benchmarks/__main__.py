"""``python -m benchmarks``: measure, and print one table."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.load import BenchmarkError
from benchmarks.report import OtherWork, as_json, as_table, conditions
from benchmarks.suite import Scale, measure


def main() -> int:
    options = _options()
    scale = Scale.quick() if options.quick else Scale()
    rounds = options.rounds or (1 if options.quick else 3)
    _allow_files()
    try:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
            folder = Path(name)
            about = conditions(scale, rounds, folder)
            others = OtherWork()
            began = time.monotonic()
            figures = measure(scale, rounds, folder, _progress)
            _progress("")
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
    parser.add_argument("--rounds", type=_rounds, help="of which the median is taken (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one short round: a rough idea")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    parser.add_argument("--dir", type=Path, help="where to store; it should be a real disk")
    return parser.parse_args()


def _rounds(text: str) -> int:
    rounds = int(text)
    if not 1 <= rounds <= 99:
        raise argparse.ArgumentTypeError("1 to 99")
    return rounds


def _allow_files() -> None:
    """As many open files as this user may have, for the servers, which inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
    elif what:
        print(what, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
