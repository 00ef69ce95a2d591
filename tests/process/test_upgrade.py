"""Two versions side by side: an upgrade node by node, a step back, and one that is too late."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from repl_broker.levels import FIRST, NEWEST
from tests.process.member import NAMES, Member, Rounds, cluster_of, followers_of, leader_of
from tests.process.node import LEASH, Client, polls

pytestmark = pytest.mark.process

OLDER: Final = ("env", f"PYTHONPATH={Path(__file__).parent / 'older'}")


def restart(node: Member, *, older: bool) -> None:
    assert node.stop() == 0
    node.prefix = (*OLDER, *LEASH) if older else LEASH
    node.start()
    node.wait_votes(*NAMES)


def levels_of(node: Member) -> tuple[int, list[int | None]]:
    """The cluster's, and those of its members."""
    found = node.cluster()
    return found["feature_level"], [member["feature_level"] for member in found["members"]]


def test_a_cluster_is_upgraded_node_by_node_and_each_step_can_be_taken_back(tmp_path: Path) -> None:
    with cluster_of(tmp_path, prefix=OLDER) as nodes:
        with Rounds(nodes, "upgrade") as rounds:
            assert levels_of(nodes[0]) == (FIRST, [FIRST] * 3)
            one, other = followers_of(nodes)
            restart(one, older=False)
            restart(one, older=True)  # it was not good; back
            rounds.wait_more()
            for node in (one, other):
                restart(node, older=False)
                rounds.wait_more()
            last = leader_of(nodes)
            rounds.wait_more()
            assert {levels_of(node)[0] for node in nodes} == {FIRST}
            restart(last, older=False)
            for _ in polls("the level to rise"):
                if all(levels_of(node) == (NEWEST, [NEWEST] * 3) for node in nodes):
                    break
            rounds.wait_more()
            _, errors = rounds.forget_errors()
            assert {code for _, code in errors} <= {"shutting_down", "no_leader"}
        for node in nodes:
            rounds.check_kept(node.history("upgrade"))

        assert last.stop() == 0
        last.prefix = (*OLDER, *LEASH)
        since = len(last.log_text())
        last.spawn()
        last.wait_log("install a newer one there", since)
        assert f"the cluster has feature level {NEWEST}" in last.log_text()[since:]
        with Client(last) as client:
            assert client.request("GET", "/readyz").status == 503
        assert "Traceback" not in last.log_text()[since:]
