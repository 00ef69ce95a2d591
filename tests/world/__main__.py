# ruff: noqa: T201  it is for people at a terminal
"""Run seeds of the simulation of whole nodes; show each that fails, and how it can be shorter."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from itertools import count, islice

from tests.world.mutations import MUTATIONS, put_back
from tests.world.shrink import shrink
from tests.world.weather import CLIMATES, climate_of, draw
from tests.world.world import Result, run

AHEAD = 4  # seeds that wait, a process


def run_seed(seed: int, mutation: str | None = None) -> Result:
    """A failure of the simulation itself is one that is told as such."""
    with nullcontext() if mutation is None else put_back(mutation):
        try:
            return run(draw(seed))
        except Exception:  # noqa: BLE001  it is told as such
            text = f"the simulation itself failed: {traceback.format_exc()}"
            return Result(seed, text, "", 0.0, 0, 0, [])


def results(seeds: Iterator[int], jobs: int, mutation: str | None) -> Iterator[Result]:
    if jobs == 1:
        yield from (run_seed(seed, mutation) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run_seed, s, mutation) for s in islice(seeds, jobs * AHEAD)}
        while waiting:
            done = next(as_completed(waiting))
            waiting.discard(done)
            waiting |= {pool.submit(run_seed, seed, mutation) for seed in islice(seeds, 1)}
            try:
                yield done.result()
            except GeneratorExit:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def explain(result: Result, mutation: str | None, seconds: float) -> None:
    print(f"seed {result.seed} FAILED: {result.violation}", flush=True)
    if result.violation is not None and "simulation itself" in result.violation:
        return
    with nullcontext() if mutation is None else put_back(mutation):
        schedule, found = shrink(draw(result.seed), seconds)
    print(f"the shortest found that fails: {found}\n{schedule}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.world", description=__doc__)
    parser.add_argument("--seeds", type=int, help="how many; 100 without --minutes")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--climate", choices=sorted({*CLIMATES}), help="only seeds that have it")
    parser.add_argument("--minutes", type=float, help="for how long")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--shrink", type=float, default=60, help="seconds to make a schedule short")
    parser.add_argument("--trace", action="store_true", help="show the end of what happened")
    parser.add_argument("--twice", action="store_true", help="and compare the two runs of a seed")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="until it is found")
    return parser.parse_args()


def main() -> int:
    options = parse()
    climates = [options.climate] if options.climate else CLIMATES
    seeds = (seed for seed in count(options.seed) if climate_of(seed) in climates)
    if options.seeds is not None or options.minutes is None:
        seeds = islice(seeds, options.seeds or 100)
    began, ran, failed = time.monotonic(), 0, []
    for result in results(seeds, options.jobs, options.mutation):
        ran += 1
        if options.trace:
            print("\n".join(result.trace))
        if options.twice and run_seed(result.seed, options.mutation).digest != result.digest:
            print(f"seed {result.seed} FAILED: its two runs differ")
            failed.append(result.seed)
        if result.violation is not None:
            failed.append(result.seed)
            if options.mutation is not None:
                print(
                    f"{options.mutation}: found after {ran} seeds, by {result.seed}: "
                    f"{result.violation}"
                )
                return 0
            explain(result, options.mutation, options.shrink)
        if options.minutes is not None and time.monotonic() - began > options.minutes * 60:
            break
    took = time.monotonic() - began
    print(f"{ran} seeds from {options.seed} on, {took:.0f} s, failed: {sorted(failed) or 'none'}")
    return 1 if failed or options.mutation is not None else 0


if __name__ == "__main__":
    sys.exit(main())
