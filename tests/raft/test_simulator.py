"""The simulated cluster, from a few hundred seeds; and that it finds known bugs.

More: ``python -m tests.raft.simulator --seeds 0-9999``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from repl_broker.raft.core import Core, Propose, Role
from tests.raft.mutations import MUTATIONS, Mutation, put_back, seeds_needed
from tests.raft.simulator import CALM, CHANGING, OPTIONS, Simulator, Violation

SEEDS = 200  # drawn sizes, all that can go wrong at once
SEEDS_OF_A_SIZE = 10
CHUNK = 20
SEEDS_OF_A_MUTATION = 60  # beyond the one that is known to show it

CAUGHT = tuple(mutation for mutation in MUTATIONS if mutation.seed is not None)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_a_cluster_stands_whatever_happens_and_converges(first: int) -> None:
    """RAFT.md, end of section 1. A failure prints its seed and the last steps."""
    for seed in range(first, first + CHUNK):
        Simulator(seed).run()


@pytest.mark.parametrize("nodes", [1, 3, 5, 7])
def test_clusters_of_each_size_stand(nodes: int) -> None:
    for seed in range(100_000, 100_000 + SEEDS_OF_A_SIZE):
        Simulator(seed, nodes).run()


@pytest.mark.parametrize("nodes", [3, 4])
def test_clusters_stand_changes_of_members_under_new_leaders(nodes: int) -> None:
    """RAFT.md scenarios 37, 39: each new leader is asked for a change, and cut off."""
    for seed in (*range(SEEDS_OF_A_SIZE), 318):
        Simulator(seed, nodes, weather=CHANGING).run()


def test_the_same_seed_gives_the_same_run() -> None:
    """Or a failure could not be looked at."""
    runs = []
    for _ in range(2):
        simulator = Simulator(7, 3)
        simulator.run()
        runs.append((simulator.steps, simulator.time, simulator.oracle.committed))
    assert runs[0] == runs[1]


def test_in_fine_weather_one_leader_serves_everything() -> None:
    """The simulator itself does no harm: all that is proposed to the leader is kept."""
    simulator = Simulator(1, 3, weather=CALM)
    simulator.run_until(5.0)
    leader = simulator.the_leader()
    assert leader is not None
    for token in range(1, 101):
        simulator.post(leader, leader.life, Propose(token, b"%d" % token))
        simulator.run_until(simulator.time + 0.01)
    simulator.run_until(simulator.time + 1.0)
    assert sorted(simulator.oracle.acknowledged) == list(range(1, 101))
    assert len(simulator.oracle.leaders) == 1


def test_a_leader_is_elected_within_a_few_timeouts_of_a_crash() -> None:
    """RAFT.md section 3: the failover that users see."""
    simulator = Simulator(3, 5, weather=CALM)
    simulator.run_until(5.0)
    crashed = 0
    while crashed < 20:
        leader = simulator.the_leader()
        assert leader is not None
        simulator.crash(leader, "test")
        simulator.run_until(simulator.time + 4 * OPTIONS.election_timeout_seconds)
        crashed += 1
        simulator.run_until(simulator.time + 2.0)
        (term,) = {
            node.core.term
            for node in simulator.nodes.values()
            if node.core is not None and node.core.role is Role.LEADER
        }
        assert term <= crashed + 2


@pytest.mark.parametrize("seed", range(5))
def test_another_leads_within_a_few_timeouts_of_a_disk_that_hangs(seed: int) -> None:
    """RAFT.md scenario 48: and its leader takes and commits what is proposed."""
    simulator = Simulator(seed, 3, weather=CALM)
    simulator.run_until(5.0)
    stalled = simulator.the_leader()
    assert stalled is not None
    stalled.disk_stalled_until = math.inf
    simulator.propose_to(stalled)
    simulator.run_until(simulator.time + 6 * OPTIONS.election_timeout_seconds)
    leader = simulator.the_leader()
    assert leader is not None
    assert leader is not stalled
    token = simulator.propose_to(leader)
    simulator.run_until(simulator.time + 0.5)
    assert token in simulator.oracle.acknowledged


@pytest.mark.parametrize("mutation", CAUGHT, ids=lambda mutation: mutation.name)
def test_a_known_bug_is_caught(mutation: Mutation) -> None:
    """RAFT.md section 2. When a change of the simulator moves the seeds, run
    ``python -m tests.raft.mutations`` and write down the new ones."""
    assert mutation.seed is not None
    seeds = (mutation.seed, *range(SEEDS_OF_A_MUTATION))
    assert seeds_needed(mutation, seeds) is not None


def test_a_bug_is_put_back_only_for_a_while() -> None:
    with put_back(MUTATIONS[0]):
        pass
    Simulator(0, 3).run()


def test_a_failure_names_its_seed_and_what_came_before() -> None:
    class Sleeps(Core):
        """Never wakes of itself, and so never elects."""

        def _campaign(self) -> None:
            self._restart_election_timer()

    with pytest.raises(Violation, match=r"seed 5, .*no convergence: not one leader") as caught:
        Simulator(5, 3, core_class=Sleeps, weather=replace(CALM, blow_every=math.inf)).run()
    assert "n1 follower term 0" in str(caught.value)
