"""One node, twice: a restored backup beside its cluster, a cloned data directory, one directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from repl_broker.cli import main
from tests.process.member import NAMES, Member, cluster_of, leader_of
from tests.process.node import Broken, Client, polls, serve

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Member]]:
    folder = tmp_path_factory.mktemp("twice")
    with cluster_of(folder) as running:
        for number in range(20):
            running[0].publish("order", number)
        yield running


def wait_unready(node: Member, words: str) -> None:
    """Until it answers, and says why it is not ready."""
    for _ in polls(lambda: f"{words!r} of {node.name}: {node.log_text()[-3000:]}"):
        with suppress(*Broken), Client(node, 5) as client:
            answer = client.request("GET", "/readyz")
            if answer.status == 503 and words in answer.json["detail"]:
                return


def test_a_backup_that_is_restored_where_bootstrap_is_kept_does_not_serve_beside_the_cluster(
    nodes: list[Member], tmp_path: Path
) -> None:
    backup = tmp_path / "backup.db"
    n1, n2, _ = nodes
    made = CliRunner().invoke(main, ["backup", str(backup), "--data-dir", str(n1.data_dir)])
    assert made.exit_code == 0, made.output
    n1.stop()
    kept = tmp_path / "kept"
    shutil.move(n1.data_dir, kept)
    restored = ["restore", str(backup), "--data-dir", str(n1.data_dir), "--node-id", "n1"]
    assert CliRunner().invoke(main, restored).exit_code == 0
    n1.options = ("--bootstrap",)
    n1.keys["cluster_join"] = ",".join(node.raft for node in nodes)
    n1.spawn()
    wait_unready(n1, "its store was restored or recovered, and the cluster")
    assert "hears its leader" in n1.log_text()
    assert leader_of(nodes[1:]).publish("order", "in the real one")
    n1.stop()
    recovered = ["cluster", "recover", "--apart", "--yes", "--data-dir", str(n1.data_dir)]
    assert CliRunner().invoke(main, recovered).exit_code == 0
    n1.spawn()  # a cluster of its own
    n1.wait_ready()
    assert n1.publish("order", "apart")
    n1.stop()
    shutil.rmtree(n1.data_dir)
    shutil.move(kept, n1.data_dir)
    n1.spawn()
    n1.wait_ready()
    n1.wait_votes(*NAMES)
    assert n2.roles().keys() == {*NAMES}


def test_a_cloned_data_directory_is_refused_by_the_others_and_all_of_them_say_so(
    nodes: list[Member], tmp_path: Path
) -> None:
    follower = next(node for node in nodes if node is not leader_of(nodes))
    follower.stop()
    clone = Member(tmp_path, follower.name)
    shutil.copytree(follower.data_dir, clone.data_dir)
    follower.spawn()
    follower.wait_ready()
    others = [node for node in nodes if node is not follower]
    for other in others:  # it is connected to both
        for _ in polls("the follower to be connected"):
            if any(
                each["id"] == follower.name and each["feature_level"] is not None
                for each in other.cluster()["members"]
            ):
                break
    with clone:
        clone.keys["raft_advertise"] = clone.raft
        clone.keys["cluster_join"] = ",".join(node.raft for node in nodes)  # it asks by address
        clone.spawn()
        wait_unready(clone, f"Node '{follower.name}' runs twice")
        clone.wait_log(f"refused by peer={others[0].name} reason=")
        follower.wait_log("told by peer=")
        assert "runs twice" in follower.log_text()
        others[0].wait_log("runs twice, with copies of one data directory: at 127.0.0.1")
        follower.wait_ready()
        assert follower.publish("order", "through the first")
        assert clone.runs
        assert not any(f"address={clone.raft}" in node.log_text() for node in nodes), "moved to it"
    for node in nodes:
        node.wait_ready()


def test_one_directory_is_opened_by_one_process_and_the_other_is_told_which(
    nodes: list[Member],
) -> None:
    node = nodes[0]
    found = serve("--data-dir", str(node.data_dir), "--http", "127.0.0.1:0")
    assert found.returncode == 1
    assert f"(process {node.process.pid})" in found.stderr
