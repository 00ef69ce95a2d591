"""A minute of whole nodes under simulation, and that it is the simulation that it says it is."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count, islice

import pytest

from tests.world.mutations import MUTATIONS, put_back
from tests.world.weather import CLIMATES, climate_of, draw
from tests.world.world import run

SEEDS = int(os.environ.get("REPL_BROKER_TEST_WORLD_SEEDS", "2"))  # of each climate
FIRST = int(os.environ.get("REPL_BROKER_TEST_WORLD_SEED", "0"))


@pytest.mark.parametrize("climate", sorted(CLIMATES))
def test_whole_nodes_lose_double_and_reorder_nothing_in_any_weather(climate: str) -> None:
    """``python -m tests.world --seeds 3000 --jobs 2`` runs more, and shows what goes wrong."""
    for seed in islice((seed for seed in count(FIRST) if climate_of(seed) == climate), SEEDS):
        result = run(draw(seed))
        assert result.violation is None, f"python -m tests.world --seeds 1 --seed {seed}"


def test_a_seed_is_one_run_whatever_hashes_and_other_processes_do() -> None:
    digests = {run(draw(3)).digest}
    for hash_seed in ("1", "2"):
        script = (
            "from tests.world.weather import draw\n"
            "from tests.world.world import run\n"
            "run(draw(4))\n"
            "print(run(draw(3)).digest)\n"
        )
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "climate", "says"),
    [
        ("follower-reads-by-itself", "handover", "stale"),
        ("repeats-carried-out", "handover", "kept 2 times"),
        ("snapshot-in-one-go", "large-state", "leaders changed"),
    ],
)
def test_a_fault_that_is_put_back_is_found(name: str, climate: str, says: str) -> None:
    """Some that take a few seeds; ``python -m tests.world.mutations`` takes all."""
    seeds = islice((seed for seed in count() if climate_of(seed) == climate), 6)
    with put_back(name):
        found = next(filter(None, (run(draw(seed)).violation for seed in seeds)), "")
    assert says in found


def test_any_few_seeds_in_a_row_have_every_climate() -> None:
    assert {climate_of(seed) for seed in range(100, 100 + len(CLIMATES))} == {*CLIMATES}


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_fault_can_be_put_back(name: str) -> None:
    """The words that it replaces are there."""
    with put_back(name):
        pass
