"""Real nodes on real hosts, through faults: what was promised holds.

Publishers and readers run on every host all the time (workload.py). Then all is
healed, and the checker (history.py) looks at what everybody has seen. The short
form has three hosts and each fault once. The long form has five, and also draws
faults from a seed; a repeat by its seed has the same faults in the same order,
not at the same moments:

    REPL_BROKER_TEST_CLUSTER=long REPL_BROKER_TEST_ROUNDS=50 REPL_BROKER_TEST_SEED=abc \\
        pytest -s -o faulthandler_timeout=0 tests/cluster/test_faults.py

REPL_BROKER_TEST_HOSTS=loopback does without root, and without loss.
"""

from __future__ import annotations

import os
import secrets
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import pytest

from tests.cluster import scene
from tests.cluster.hosts import kind, why_no_namespaces
from tests.cluster.scene import (
    Scene,
    cut_from_one,
    cut_off,
    deafened,
    full,
    killed,
    late,
    losing,
    muted,
    paused,
)
from tests.process.node import polls

pytestmark = pytest.mark.process

LONG: Final = os.environ.get("REPL_BROKER_TEST_CLUSTER") == "long"
ROUNDS: Final = int(os.environ.get("REPL_BROKER_TEST_ROUNDS", "20"))
SEED: Final = os.environ.get("REPL_BROKER_TEST_SEED") or secrets.token_hex(4)
NAMES: Final = ("n1", "n2", "n3", "n4", "n5")[: 5 if LONG else 3]


def cluster(
    folder: Path, *, proxied: bool = False, disks: bool = False
) -> AbstractContextManager[Scene]:
    """All is healed, and the promises are checked, when it is left."""
    return scene.scene(folder, NAMES, SEED, proxied=proxied, disks=disks)


def test_promises_hold_while_leaders_die_or_stand_still_and_all_die_at_once(tmp_path: Path) -> None:
    with cluster(tmp_path) as now:
        for fault in (killed, paused):
            now.suffer(fault, now.cluster.leader_name())
        now.kill_all()


def test_promises_hold_while_leaders_are_cut_off_both_ways_one_way_and_from_one(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path) as now:
        for fault in (cut_off, deafened, muted, cut_from_one):
            now.suffer(fault, now.cluster.leader_name())


def test_promises_hold_while_packets_are_lost(tmp_path: Path) -> None:
    if not kind().can_lose:
        pytest.skip(f"packets cannot be lost here: {why_no_namespaces() or 'loopback was chosen'}")
    with cluster(tmp_path) as now:
        now.suffer(losing, now.cluster.leader_name())


def test_promises_hold_while_everything_between_hosts_is_late(tmp_path: Path) -> None:
    with cluster(tmp_path, proxied=True) as now:
        now.suffer(late, now.cluster.leader_name())
        with late(now, now.cluster.leader_name()):
            now.suffer(killed, now.cluster.leader_name())


def test_promises_hold_while_the_leaders_disk_is_full(tmp_path: Path) -> None:
    with cluster(tmp_path, disks=True) as now:
        now.suffer(full, now.cluster.leader_name())


def test_a_follower_that_was_down_for_long_comes_back_by_snapshot(tmp_path: Path) -> None:
    with cluster(tmp_path) as now:
        name = now.cluster.others(now.cluster.leader_name())[0]
        with killed(now, name):
            before = len(now.cluster.nodes[name].log_text())
            now.compact_past(name)
        for _ in polls("a snapshot to be installed"):
            if "installed a snapshot" in now.cluster.nodes[name].log_text()[before:]:
                break
        now.check_goes_on()


if LONG:

    @pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxied"])
    def test_promises_hold_over_faults_drawn_from_a_seed(proxied: bool, tmp_path: Path) -> None:
        with cluster(tmp_path, proxied=proxied, disks=True) as now:
            for number in range(ROUNDS):
                now.suffer_at_random(number)
