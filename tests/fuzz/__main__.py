# ruff: noqa: T201
"""``python -m tests.fuzz NAME --seconds N``: one target for long; without a name, which there are.

Where atheris is installed (``pip install 'repl-broker[fuzz]'``), libFuzzer looks
which branches of ours each input takes, and keeps those that take new ones in
``build/fuzz/NAME``; a run goes on from there. Otherwise Hypothesis draws inputs as
the suite does, at random. What fails is written down as a file, which this takes in
the place of a target's inputs: ``python -m tests.fuzz NAME FILE``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings

SECONDS_MAX_EACH = 10  # of one input; then it is reported as a hang
MEMORY_MB_MAX = 2048
INPUT_BYTES_MAX = 4096
NOT_GUIDED = ("http_door",)  # atheris 2.3 dies of a signal in code of Quart's or Hypercorn's


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("name", nargs="?")
    parser.add_argument("file", nargs="?", type=Path, help="run this one input")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--plain", action="store_true", help="without atheris")
    given_ = parser.parse_args()
    atheris = None if given_.plain or given_.file or given_.name in NOT_GUIDED else find_atheris()
    targets = instrumented(atheris)
    if given_.name not in targets:
        print(*targets, sep="\n")
        sys.exit(0 if given_.name is None else 2)
    target = targets[given_.name]
    if given_.file is not None:
        target.run(given_.file.read_bytes())
        print(f"{given_.file} is taken as it should be")
    elif atheris is None:
        without_guidance(target, given_.seconds)
    else:
        guided(atheris, target, given_.seconds)


def find_atheris() -> Any:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: inputs are drawn at random", file=sys.stderr)
        return None


def instrumented(atheris: Any) -> Any:
    """The targets, with our modules instrumented if there is something to look at them."""
    if atheris is None:
        return importlib.import_module("tests.fuzz.targets").TARGETS
    with atheris.instrument_imports(include=["repl_broker"]):
        return importlib.import_module("tests.fuzz.targets").TARGETS


def guided(atheris: Any, target: Any, seconds: int) -> None:
    folder = Path("build", "fuzz", target.name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    arguments = [
        "tests.fuzz", str(folder), f"-max_total_time={seconds}", f"-timeout={SECONDS_MAX_EACH}",
        f"-rss_limit_mb={MEMORY_MB_MAX}", f"-max_len={INPUT_BYTES_MAX}", "-print_final_stats=1",
        f"-artifact_prefix={folder.parent / target.name}-",
    ]  # fmt: skip
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()


def without_guidance(target: Any, seconds: int) -> None:
    from tests.fuzz.inputs import inputs_of

    ends, count = time.monotonic() + seconds, 0

    @settings(max_examples=200, deadline=None, database=None, derandomize=False,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs_of(target))
    def run(data: bytes) -> None:
        nonlocal count
        if time.monotonic() < ends:
            count += 1
            target.run(data)

    while time.monotonic() < ends:
        run()
    print(f"{target.name}: {count:,} inputs in {seconds} s, and nothing was found")


if __name__ == "__main__":
    main()
