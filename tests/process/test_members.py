"""A cluster of real nodes: how it begins, who comes and goes, and restarts one by one."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner

from repl_broker.cli import main
from tests.process.member import NAMES, Member, Rounds, cluster_of, followers_of, leader_of
from tests.process.node import JSON, Answer, Client, Stream, free_port, polls

pytestmark = pytest.mark.process

CLUSTER_KEYS: Final = {
    "cluster_id", "epoch", "node", "mode", "term", "leader", "commit_index", "applied_index",
    "feature_level", "clock_skew_seconds_max", "change_pending", "change", "ready", "reasons",
    "members",
}  # fmt: skip
MEMBER_KEYS: Final = {
    "id", "role", "raft_address", "http_url", "match_index", "lag", "reachable",
    "feature_level", "clock_skew_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Member]]:
    """Three that vote; each test leaves them so."""
    folder = tmp_path_factory.mktemp("cluster")
    secret = folder / "cluster.secret"
    secret.write_text("5f1d7a52c9a14d03b7a6d4f2d20c9b8e\n")
    secret.chmod(0o600)
    with cluster_of(folder, secret=secret, topics_retention_messages=1_000_000) as running:
        running[0].publish("order", "first")  # whichever test comes first in this process
        assert all(len(node.history("order")) == 1 for node in running)
        yield running


def secret_of(node: Member) -> Path:
    path = node.keys["cluster_secret_file"]
    assert isinstance(path, Path)
    return path


def change(node: Member, method: str, path: str, body: object = None) -> Answer:
    with Client(node) as client:
        if body is None:
            return client.request(method, path)
        return client.request(method, path, json.dumps(body).encode(), Content_Type=JSON)


def ready(node: Member) -> Answer:
    with Client(node) as client:
        return client.request("GET", "/readyz")


# --- how it begins ---


def test_two_nodes_that_join_one_get_their_votes_by_themselves(nodes: list[Member]) -> None:
    for node in nodes:
        found = node.cluster()
        assert found.keys() == CLUSTER_KEYS
        assert (found["node"], found["mode"]) == (node.name, "cluster")
        assert all(member.keys() == MEMBER_KEYS for member in found["members"])
        assert [member["id"] for member in found["members"]] == [*NAMES]
        assert all(member["reachable"] for member in found["members"])
    records = [{k: m[k] for k in nodes[0].record} for m in found["members"]]
    assert records == [node.record for node in nodes]


def test_all_nodes_agree_on_the_cluster(nodes: list[Member]) -> None:
    leader_of(nodes)
    names = ("cluster_id", "epoch", "term", "leader")
    seen = {tuple(node.cluster()[name] for name in names) for node in nodes}
    assert len(seen) == 1


def test_the_lag_of_a_member_passes(nodes: list[Member]) -> None:
    for node in nodes:
        node.publish("lag", 1)
        for _ in polls("no member to lag"):
            members = node.cluster()["members"]
            if all(member["lag"] == 0 for member in members):
                break
        assert len({member["match_index"] for member in members}) == 1


def test_what_is_published_through_any_node_streams_from_all_in_one_order(
    nodes: list[Member],
) -> None:
    """Promise 1."""
    streams = [Stream(node, "order", after="latest") for node in nodes]
    blocks = [iter(stream) for stream in streams]
    for each in blocks:
        assert next(block for block in each if block.event == "subscribed")
    ids = [nodes[number % 3].publish("order", number) for number in range(9)]
    for each in blocks:
        messages = [next(each) for _ in ids]
        messages = [block.message for block in messages if block.is_message]
        assert [message["data"] for message in messages] == [*range(9)]
        assert [message["id"] for message in messages] == ids
    for stream in streams:
        stream.close()
    assert all(node.history("order") == nodes[0].history("order") for node in nodes)


def metric(node: Member, name: str) -> float:
    with Client(node) as client:
        text = client.request("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"repl_broker_{name} ")]
    return float(line.split()[1])


def test_the_metrics_tell_who_leads_and_who_is_connected(nodes: list[Member]) -> None:
    leader = leader_of(nodes)
    assert [metric(node, "is_leader") for node in nodes] == [node is leader for node in nodes]
    for node in nodes:
        assert metric(node, "peers_connected") == 2
        assert metric(node, "peer_sent_bytes_total") > 0
        assert metric(node, "elections_total") >= 1
        assert metric(node, "commit_index") >= metric(node, "applied_index") > 0
        assert metric(node, "peer_handshakes_refused_total") == 0
        assert metric(node, "peer_garbage_total") == 0


# --- restarts ---


def test_a_rolling_restart_disturbs_only_who_uses_the_node_that_goes(nodes: list[Member]) -> None:
    """The leader hands over first; --bootstrap and --join are harmless on a member."""
    cluster_id = nodes[0].cluster()["cluster_id"]
    handed_over = []
    with Rounds(nodes, "rolling") as rounds:
        for node in [*followers_of(nodes), leader_of(nodes)]:
            rounds.wait_more()
            since = len(node.log_text())
            assert node.stop() == 0
            node.start()
            rounds.wait_more()
            lost, errors = rounds.forget_errors()
            assert lost <= {node.name}
            assert errors <= {(node.name, "shutting_down")}
            handed_over.append("handed over" in node.log_text()[since:])
    assert handed_over == [False, False, True]
    for node in nodes:
        node.wait_votes(*NAMES)
        assert node.cluster()["cluster_id"] == cluster_id
        rounds.check_kept(node.history("rolling"))


def test_a_leader_that_is_killed_is_followed_by_another(nodes: list[Member]) -> None:
    old = leader_of(nodes)
    others = [node for node in nodes if node is not old]
    with Rounds(nodes, "killed") as rounds:
        rounds.wait_more()
        old.kill()
        new = leader_of(others)
        rounds.wait_more()
        old.start()
        rounds.wait_more()
    assert new is not old
    assert {name for name, _ in rounds.errors} <= {node.name for node in others}, rounds.errors
    assert {code for _, code in rounds.errors} <= {"outcome_unknown"}
    for node in nodes:
        node.wait_votes(*NAMES)
        rounds.check_kept(node.history("killed"))


def test_leadership_moves_by_command(nodes: list[Member]) -> None:
    """And nobody who publishes notices."""
    old, new = leader_of(nodes), followers_of(nodes)[0]
    with Rounds(nodes, "moved") as rounds:
        rounds.wait_more()
        for target, through in ((new, new), (old, new)):
            result = CliRunner().invoke(
                main, ["cluster", "transfer", target.name, "--url", through.url]
            )
            assert result.exit_code == 0, result.stderr
            assert result.stdout == (
                f"handing the leadership to {target.name}; 'cluster status' shows how far it is\n"
            )
            for _ in polls(f"{target.name} to lead"):
                if leader_of(nodes) is target:
                    break
            rounds.wait_more()
    assert not rounds.lost
    assert not rounds.errors
    rounds.check_kept(nodes[0].history("moved"))


def test_a_node_that_comes_back_at_another_address_tells_the_members(nodes: list[Member]) -> None:
    node, other = followers_of(nodes)
    assert node.stop() == 0
    node.move()
    node.start()
    for each in nodes:
        for _ in polls("all to know where it is"):
            if node.raft in {m["raft_address"] for m in each.cluster()["members"]}:
                break
    leader_of(nodes).kill()  # so that the two must reach each other
    assert leader_of([node, other]).publish("moved", "without the third")
    next(each for each in nodes if not each.runs).start()
    for each in nodes:
        each.wait_votes(*NAMES)


# --- coming and going ---


def test_a_node_is_added_and_removed_and_joins_again(nodes: list[Member]) -> None:
    """One life after the other of the node n4."""
    follower = followers_of(nodes)[0]
    folder = nodes[0].data_dir.parent
    nowhere = f"127.0.0.1:{free_port()}"
    with Member(folder, "n4", "--join", nowhere, secret=secret_of(nodes[0])) as node:
        node.spawn()
        check_that_it_waits(node)
        check_added(node, through=follower)
        check_removed(node, through=follower)
        follower.wait_votes(*NAMES)
        check_not_let_in_again(node)

        shutil.rmtree(node.data_dir)  # as the line says
        node.options = ("--join", nowhere, "--join", follower.raft)
        node.start()
        follower.wait_votes(*NAMES, "n4")

        answer = change(follower, "POST", "/v1/cluster/leader", {"id": "n4"})
        assert answer.status == 202
        assert leader_of([*nodes, node]) is node
        check_removed(node, through=node)
        follower.wait_votes(*NAMES)
    assert leader_of(nodes) in nodes
    for each in nodes:
        each.wait_votes(*NAMES)


def check_that_it_waits(node: Member) -> None:
    """It runs, and is not ready."""
    node.wait_log("cannot join yet")
    answer = ready(node)
    assert (answer.status, answer.json["code"]) == (503, "no_leader")
    with Client(node) as client:
        assert client.request("GET", "/healthz").status == 200
        answer = client.request("GET", "/v1/events?topic=chat")
        assert (answer.status, answer.json["code"]) == (503, "no_leader")
    assert node.cluster()["mode"] == "cluster"


def check_added(node: Member, *, through: Member) -> None:
    answer = change(through, "POST", "/v1/cluster/members", node.record)
    assert answer.status == 202, answer
    assert answer.headers["location"] == "/v1/cluster"
    assert answer.json.keys() == CLUSTER_KEYS
    assert node.name in {member["id"] for member in answer.json["members"]}
    for each in (through, node):
        each.wait_votes(*NAMES, node.name)
    node.wait_ready()
    assert node.history("order") == through.history("order")
    assert change(through, "POST", "/v1/cluster/members", node.record).status == 202, "it is one"


def check_removed(node: Member, *, through: Member) -> None:
    """It says so, and ends by itself."""
    since = len(node.log_text())
    answer = change(through, "DELETE", f"/v1/cluster/members/{node.name}")
    assert answer.status == 202, answer
    assert answer.headers["location"] == "/v1/cluster"
    assert node.wait() == 0
    assert "this node was removed from its cluster; it stops" in node.log_text()[since:]


def check_not_let_in_again(node: Member) -> None:
    since = len(node.log_text())
    node.spawn()
    assert node.wait() == 0
    said = node.log_text()[since:]
    assert "node 'n4' was removed from the cluster; to join again it needs an empty data" in said
    assert "this node was removed from its cluster; it stops" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("is_away", [False, True], ids=["while it runs", "while it is away"])
def test_a_founder_that_was_removed_says_so_and_stops_however_it_is_started(
    tmp_path: Path, is_away: bool
) -> None:
    """With an exit code by which a service manager leaves it down."""
    with cluster_of(tmp_path) as nodes:
        founder, *others = nodes
        founder.publish("order", "first")
        if is_away:
            assert founder.stop() == 0
            leader_of(others)
            assert change(others[0], "DELETE", f"/v1/cluster/members/{founder.name}").status == 202
        else:
            check_removed(founder, through=others[0])
        for options in ((), ("--join", others[0].raft), ("--bootstrap",)):
            founder.options = options
            since = len(founder.log_text())
            founder.spawn()
            assert founder.wait() == 0
            said = founder.log_text()[since:]
            assert "this node was removed from its cluster; it stops" in said
            assert "Traceback" not in said


def test_a_single_node_with_messages_becomes_a_cluster_that_has_them(tmp_path: Path) -> None:
    with Member(tmp_path, "s1") as first, Member(tmp_path, "s2", "--join", first.raft) as second:
        first.start()
        before = [first.publish("chat", number) for number in range(3)]
        was = first.cluster()
        assert was["mode"] == "single"
        assert first.stop() == 0

        first.options = ("--bootstrap",)
        first.start()
        second.start()
        for node in (first, second):
            node.wait_votes("s1", "s2")
            found = node.cluster()
            assert (found["cluster_id"], found["epoch"]) == (was["cluster_id"], was["epoch"])
            assert [message["id"] for message in node.history("chat")] == before
        with Stream(second, "chat", last_id=before[0]) as stream:
            second.publish("chat", "more")
            messages = (block.message for block in stream if block.is_message)
            assert [next(messages)["data"] for _ in range(3)] == [1, 2, "more"]


def members_of(node: Member) -> list[dict[str, Any]]:
    """Without what moves."""
    moving = ("match_index", "lag", "reachable", "role", "feature_level", "clock_skew_seconds")
    return [
        {k: v for k, v in member.items() if k not in moving} for member in node.cluster()["members"]
    ]


def test_a_node_that_lost_its_data_is_refused_under_its_old_id(nodes: list[Member]) -> None:
    """And with its data it is let in again."""
    node = followers_of(nodes)[0]
    before = members_of(nodes[0])
    aside = node.data_dir.with_name("aside")
    leader = leader_of(nodes)
    node.kill()
    node.data_dir.rename(aside)
    options, node.options = node.options, ("--join", leader.raft)
    since, since_leader = len(node.log_text()), len(leader.log_text())
    node.spawn()
    assert node.wait() == 1
    error = node.log_text()[since:].splitlines()[-1]
    assert error.startswith("error: cannot join the cluster through")
    assert f"repl-broker cluster remove {node.name}" in error
    assert f"did not add node={node.name}" in leader.log_text()[since_leader:]
    assert members_of(leader) == before

    check_another_cluster(node, leader)
    assert members_of(leader) == before
    shutil.rmtree(node.data_dir)
    aside.rename(node.data_dir)
    node.options = options
    node.start()
    for each in nodes:
        each.wait_votes(*NAMES)


def check_another_cluster(node: Member, member: Member) -> None:
    """It founds one if it is told to, with nobody to ask; and serves nobody once the members
    of its old one tell it: they dial it, as they did before."""
    since = len(node.log_text())
    node.options = ("--bootstrap",)
    node.spawn()
    node.wait_log("takes no writes and is not ready: it founded a cluster while", since)
    member.wait_log(f"node '{node.name}' has lost its data")
    with Client(node) as client:
        answer = client.request("GET", "/readyz")
        assert (answer.status, answer.json["code"]) == (503, "no_leader")
        for words in ("has lost its data", f"cluster remove {node.name}", "--join"):
            assert words in answer.json["detail"]
        refused = client.publish("chat", b"1")
        assert (refused.status, refused.json["detail"]) == (503, answer.json["detail"])
        assert client.request("GET", "/v1/events?topic=chat").status == 503
        assert client.request("GET", "/healthz").status == 200
    assert node.cluster()["cluster_id"] != member.cluster()["cluster_id"]
    assert node.stop() == 0
    member.publish("chat", "undisturbed")
    folder = str(node.data_dir)
    done = CliRunner().invoke(main, ["cluster", "recover", "--data-dir", folder, "--yes"])
    assert done.exit_code == 0, done.stderr
    since = len(node.log_text())
    node.start()  # of its own now: that is sure
    node.wait_log("has lost its data", since)
    node.publish("chat", "of its own")
    assert ready(node).status == 200
    assert node.stop() == 0


# --- what answers at join ---


@contextmanager
def in_its_place(what: str, node: Member, folder: Path) -> Iterator[None]:
    """At the address of a member that is down."""
    if what in ("nobody", "silence"):
        host, _, port = node.raft.partition(":")
        with closing(socket.create_server((host, int(port)))) as listener:
            if what == "nobody":
                listener.close()
            yield
        return
    secret = secret_of(node)
    if what == "another secret":
        secret = folder / "secret"
        secret.write_text("another secret, of another cluster")
        secret.chmod(0o600)
    name = node.name if what == "its own wiped self" else "x1"
    with Member(folder, name, "--bootstrap", secret=secret) as other:
        other.raft = other.keys["raft_bind"] = node.raft
        other.start()
        yield
        assert other.stop() == 0


def join_at(node: Member, address: str) -> None:
    """Ask at that address, and no other, from the next start on."""
    options = zip(("", *node.options), node.options, strict=False)
    node.options = tuple(address if before == "--join" else each for before, each in options)
    assert address in node.options


@pytest.mark.parametrize(
    "what", ["another cluster", "another secret", "its own wiped self", "silence", "nobody"]
)
def test_members_are_a_majority_whatever_answers_at_join(
    nodes: list[Member], tmp_path: Path, what: str
) -> None:
    """The second of three to start was refused at the address of the first, and ended."""
    first, *others = nodes
    for node in others:
        join_at(node, first.raft)  # it may have moved since
    for node in nodes:
        node.stop()
    since = {node.name: len(node.log_text()) for node in others}
    with in_its_place(what, first, tmp_path):
        others[0].spawn()
        others[0].wait_log("waits for a majority of its cluster", since[others[0].name])
        others[1].start()
        others[0].wait_ready()
        assert leader_of(others) in others
        others[0].publish("start", what)
    for node in others:
        said = node.log_text()[since[node.name] :]
        assert said.count("waits for a majority of its cluster") <= 3, said
        assert said.count("refused by peer") <= 3, said
    first.start()
    for node in nodes:
        node.wait_votes(*NAMES)
    assert first.history("start") == others[0].history("start")
