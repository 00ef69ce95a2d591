# ruff: noqa: T201
"""Send very many requests to nodes that ask for tokens; any leak, change or refusal is told.

./dev run python -m tests.access_requests --requests 100000 --seed 1
./dev run python -m tests.access_requests --seed 1 --only 4711
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.access_requests.world import Fault, run

TOLD_REQUESTS = 10_000  # between two signs of life


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--only", type=int, help="the number of a single request")
    options = parser.parse_args()
    numbers = range(options.requests)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            judge = trio.run(run, options.seed, numbers, Path(folder), _tell)
        except Fault as fault:
            print(fault)
            print(f"again: python -m tests.access_requests --seed {options.seed} --only NUMBER")
            return 1
    seconds = time.monotonic() - began
    print(f"{len(numbers)} requests in {seconds:.0f} s: no leak, no change, no refusal of a right")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(judge.kinds.items())))
    print(
        f"{judge.marks} times a topic's messages in an answer or a stream; "
        f"{len(judge.must_appear)} data acknowledged; {judge.trouble} answers of 503 or the like"
    )
    return 0


def _tell(number: int) -> None:
    if number and number % TOLD_REQUESTS == 0:
        print(f"{number} …", flush=True)


if __name__ == "__main__":
    sys.exit(main())
