"""The cluster as a single node shows it, and refuses to change it."""

from __future__ import annotations

import re

import pytest

from repl_broker.levels import NEWEST
from tests.contract.client import Node, check_problem


async def test_a_single_node_is_a_cluster_of_one(node: Node) -> None:
    (identity,) = await node.publish("chat", 1)
    cluster = (await node.client.get("/v1/cluster")).json()
    (member,) = cluster.pop("members")
    assert re.fullmatch("[0-9a-f]{32}", cluster.pop("cluster_id"))
    assert cluster.pop("term") >= 1
    commit_index = cluster.pop("commit_index")
    assert cluster == {
        "epoch": identity.partition("-")[0],
        "node": "n1",
        "mode": "single",
        "leader": "n1",
        "applied_index": commit_index,
        "feature_level": NEWEST,
        "clock_skew_seconds_max": 5,
        "change_pending": False,
        "change": None,
        "ready": True,
        "reasons": [],
    }
    assert member.pop("raft_address")
    assert member.pop("http_url").startswith("http://")
    assert member == {
        "id": "n1",
        "role": "leader",
        "match_index": commit_index,
        "lag": 0,
        "reachable": True,
        "feature_level": NEWEST,
        "clock_skew_seconds": 0.0,
    }


async def test_a_single_node_has_no_members_to_change(node: Node) -> None:
    client = node.client
    member = {"id": "n2", "raft_address": "10.0.0.2:4081", "http_url": "http://10.0.0.2:4080"}
    added = await client.post("/v1/cluster/members", json=member)
    check_problem(added, 409, "single_node")
    check_problem(await client.delete("/v1/cluster/members/n2"), 409, "single_node")
    forced = await client.delete("/v1/cluster/members/n2?force=true")
    check_problem(forced, 409, "single_node")
    moved = await client.post("/v1/cluster/leader", json={"id": "n2"})
    check_problem(moved, 409, "single_node")


async def test_a_malformed_member_is_refused_as_such(node: Node) -> None:
    response = await node.client.delete("/v1/cluster/members/n%202")
    check_problem(response, 400, "invalid_parameter", "id")


@pytest.mark.parametrize("value", ["", "1", "True", "yes", "true&force=true"])
async def test_a_removal_is_forced_by_true_alone(node: Node, value: str) -> None:
    response = await node.client.delete(f"/v1/cluster/members/n2?force={value}")
    check_problem(response, 400, "invalid_parameter", "force")
