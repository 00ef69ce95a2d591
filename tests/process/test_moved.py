"""All members of a cluster have other addresses at once, as containers have after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.process.member import NAMES, Member, cluster_of
from tests.process.node import polls

pytestmark = pytest.mark.process


def stop_all(nodes: Sequence[Member]) -> None:
    for node in nodes:
        node.stop()


def start_all(nodes: Sequence[Member], join: Sequence[str]) -> None:
    for node in nodes:
        node.options = ()
        node.keys["cluster_join"] = ",".join(join)
        node.spawn()
    for node in nodes:
        node.wait_ready()
        node.wait_votes(*NAMES)


def wait_records(nodes: Sequence[Member]) -> None:
    """Until each has told the others where it is now: one change at a time."""
    wanted = {each.name: each.raft for each in nodes}
    for node in nodes:
        for _ in polls(lambda: f"the new addresses: {node.cluster()['members']}"):  # noqa: B023
            if {each["id"]: each["raft_address"] for each in node.cluster()["members"]} == wanted:
                break


def test_a_cluster_whose_addresses_all_changed_at_once_meets_again_by_join(
    tmp_path: Path,
) -> None:
    with cluster_of(tmp_path) as nodes:
        nodes[0].publish("order", "before")
        stop_all(nodes)
        for node in nodes:
            node.move()
        start_all(nodes, [node.raft for node in nodes[:2]])
        nodes[2].publish("order", "after")
        assert [each["data"] for each in nodes[1].history("order")] == ["before", "after"]
        wait_records(nodes)
        # And each has the address of another: who is behind it is asked, not taken for granted.
        stop_all(nodes)
        addresses = [node.raft for node in nodes]
        for node, address in zip(nodes, addresses[1:] + addresses[:1], strict=True):
            node.raft = node.keys["raft_bind"] = address
        start_all(nodes, addresses)
        nodes[1].publish("order", "swapped")
        assert [each["data"] for each in nodes[0].history("order")][-1] == "swapped"
        wait_records(nodes)
