"""One configuration for all hosts: the same list of members, and --bootstrap kept on the first."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from tests.process.member import Member


def test_hosts_share_a_list_and_the_first_founds_no_second_cluster(tmp_path: Path) -> None:
    """RAFT.md scenario 41: nor when it has lost its data."""
    nodes = [Member(tmp_path, "n1", "--bootstrap"), Member(tmp_path, "n2"), Member(tmp_path, "n3")]
    for node in nodes:
        node.keys["cluster_join"] = ",".join(each.raft for each in nodes)
    with ExitStack() as opened:
        for node in reversed(nodes):  # who joins may be there before there is a cluster
            opened.enter_context(node)
            node.spawn()
        for node in nodes:
            node.wait_ready()
            node.wait_votes("n1", "n2", "n3")
        first = nodes[0]
        before = nodes[1].cluster()["cluster_id"]
        assert first.stop() == 0
        first.start()
        first.wait_votes("n1", "n2", "n3")

        first.kill()
        shutil.rmtree(first.data_dir)
        first.spawn()
        assert first.wait() == 1
        log = first.log_text()
        assert "does not bootstrap: there is a cluster" in log
        assert "repl-broker cluster remove n1" in log.splitlines()[-1]
        assert nodes[1].cluster()["cluster_id"] == before
        assert nodes[1].roles().keys() == {"n1", "n2", "n3"}
