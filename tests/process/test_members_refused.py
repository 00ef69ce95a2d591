"""Who is not let into a cluster, and what is not done to it.

Each time: a clear answer on both sides, and the cluster as it was. A node that
is refused says why in one line and exits with 1; the member has it in its log.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
from click.testing import CliRunner

from repl_broker.cli import main
from repl_broker.handshake import STRANGER
from tests.process.member import Member, Rounds, cluster_of, followers_of, leader_of
from tests.process.node import JSON, WAIT_SECONDS_MAX, Answer, Client, free_port, polls

pytestmark = pytest.mark.process

NAMES: Final = ("n1", "n2")
SECRET: Final = "5f1d7a52c9a14d03b7a6d4f2d20c9b8e\n"
QUICK_SECONDS_MAX: Final = 3.0


@dataclass(frozen=True)
class Scene:
    """``nodes`` are the cluster; ``stranger`` leads one of its own, with the same secret;
    ``open`` another one, without a secret."""

    folder: Path
    secret: Path
    nodes: list[Member]
    stranger: Member
    open: Member

    @property
    def leader(self) -> Member:
        return leader_of(self.nodes)

    @property
    def follower(self) -> Member:
        return followers_of(self.nodes)[0]

    def state(self) -> dict[str, Any]:
        """What a refused change must leave as it is."""
        found = self.leader.cluster()
        for name in ("node", "applied_index"):
            del found[name]
        for member in found["members"]:
            for name in ("match_index", "lag", "reachable", "feature_level", "clock_skew_seconds"):
                del member[name]
        return found


def write_secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("refused")
    secret = write_secret(folder / "cluster.secret", SECRET)
    stranger = Member(folder, "s1", "--bootstrap", secret=secret)
    alone = Member(folder, "o1", "--bootstrap")
    with ExitStack() as opened:
        for node in (stranger, alone):
            opened.enter_context(node).spawn()
        nodes = opened.enter_context(cluster_of(folder, names=NAMES, secret=secret))
        for node in (stranger, alone):
            node.wait_ready()
        nodes[0].publish("chat", "first")
        yield Scene(folder, secret, nodes, stranger, alone)


@pytest.fixture(autouse=True)
def as_it_was(scene: Scene) -> Iterator[None]:
    """Whatever the test tries, the cluster is as it was, and serves."""
    before = scene.state()
    yield
    after = scene.state()
    assert {**after, "commit_index": 0} == {**before, "commit_index": 0}
    for node in scene.nodes:
        node.publish("chat", "undisturbed")


# --- nodes that want to join ---


def refused(node: Member) -> str:
    """What a node says that is not let in."""
    since = len(node.log_text())
    with node:
        node.spawn()
        assert node.wait() == 1
    lines = node.log_text()[since:].splitlines()
    assert "Traceback" not in "".join(lines)
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert error == lines[-1]
    assert "a bug" not in error
    return error


def marks(*nodes: Member) -> list[tuple[Member, int]]:
    return [(node, len(node.log_text())) for node in nodes]


def warned(text: str, since: list[tuple[Member, int]]) -> bool:
    """Whether one of them warned of it."""
    for node, start in since:
        for line in node.log_text()[start:].splitlines():
            entry = json.loads(line)
            if entry["level"] == "warning" and text in entry["message"]:
                return True
    return False


def test_a_node_with_another_secret(scene: Scene, tmp_path: Path) -> None:
    since = marks(*scene.nodes)
    secret = write_secret(tmp_path / "secret", "another secret, of another cluster")
    error = refused(Member(tmp_path, "n4", "--join", scene.leader.raft, secret=secret))
    assert f"cannot join the cluster through {scene.leader.raft}" in error
    assert "differ; check [cluster] secret_file" in error
    assert warned("it does not know this cluster's secret", since)


def test_a_node_without_a_secret(scene: Scene, tmp_path: Path) -> None:
    since = marks(*scene.nodes)
    error = refused(Member(tmp_path, "n4", "--join", scene.follower.raft))
    assert "differ; check [cluster] secret_file" in error
    assert warned("it does not know this cluster's secret", since)


def test_a_node_with_a_secret_where_there_is_none(scene: Scene, tmp_path: Path) -> None:
    since = marks(scene.open)
    error = refused(Member(tmp_path, "n4", "--join", scene.open.raft, secret=scene.secret))
    assert "differ; check [cluster] secret_file" in error
    assert warned("it does not know this cluster's secret", since)
    assert [member["id"] for member in scene.open.cluster()["members"]] == ["o1"]


def test_a_node_with_the_id_of_a_member(scene: Scene, tmp_path: Path) -> None:
    since = marks(*scene.nodes)
    leader, follower = scene.leader, scene.follower
    error = refused(Member(tmp_path, follower.name, "--join", leader.raft, secret=scene.secret))
    assert "with other data" in error
    assert f"repl-broker cluster remove {follower.name}" in error
    assert warned(f"did not add node={follower.name}", since)


def test_a_node_with_the_id_of_the_member_that_it_asks(scene: Scene, tmp_path: Path) -> None:
    since = marks(*scene.nodes)
    leader = scene.leader
    error = refused(Member(tmp_path, leader.name, "--join", leader.raft, secret=scene.secret))
    assert f"this node has the id '{leader.name}' itself; each node needs its own" in error
    assert warned("each node needs its own", since)


def test_a_node_of_another_cluster(scene: Scene, tmp_path: Path) -> None:
    """--join on a member is harmless: it stays with its own."""
    with Member(tmp_path, "s2", "--join", scene.stranger.raft, secret=scene.secret) as node:
        node.start()
        scene.stranger.wait_votes("s1", "s2")
        assert node.stop() == 0
        node.options = ("--join", scene.leader.raft)
        node.start()
        assert node.cluster()["cluster_id"] == scene.stranger.cluster()["cluster_id"]
        assert change(scene.stranger, "DELETE", "/v1/cluster/members/s2").status == 202
        assert node.wait() == 0


# --- nodes that do not even start ---


def test_a_secret_that_is_too_short(tmp_path: Path) -> None:
    secret = write_secret(tmp_path / "secret", "short")
    error = refused(Member(tmp_path, "n4", "--bootstrap", secret=secret))
    assert "has 5 bytes; wanted 32 to 4,096" in error


def test_a_secret_that_is_not_there(tmp_path: Path) -> None:
    error = refused(Member(tmp_path, "n4", "--bootstrap", secret=tmp_path / "none"))
    assert "cluster.secret_file: cannot read" in error
    assert "No such file" in error


def test_raft_beyond_this_machine_without_a_secret(tmp_path: Path) -> None:
    node = Member(tmp_path, "n4", "--bootstrap")
    node.keys["raft_bind"] = f"0.0.0.0:{free_port()}"
    error = refused(node)
    assert "which other machines may reach: [cluster] secret_file is needed" in error


def test_raft_on_every_address_without_one_to_be_reached_by(scene: Scene, tmp_path: Path) -> None:
    node = Member(tmp_path, "n4", "--bootstrap", secret=scene.secret)
    node.keys["raft_bind"] = f"0.0.0.0:{free_port()}"
    assert "[raft] advertise is needed" in refused(node)


def test_a_single_node_with_data_that_is_to_join(scene: Scene, tmp_path: Path) -> None:
    """It says so before anything is lost."""
    with Member(tmp_path, "n4", secret=scene.secret) as node:
        node.start()
        node.publish("chat", "precious")
        assert node.stop() == 0
        node.options = ("--join", scene.leader.raft)
        error = refused(node)
        assert "holds the data of a single node, which joining a cluster would lose" in error
        node.options = ()
        node.start()
        assert [message["data"] for message in node.history("chat")] == ["precious"]


# --- requests ---


def change(node: Member, method: str, path: str, body: object = None) -> Answer:
    with Client(node) as client:
        if body is None:
            return client.request(method, path)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.request(method, path, data, Content_Type=JSON)


def check_problem(answer: Answer, status: int, code: str, *words: str) -> None:
    assert (answer.status, answer.json["code"]) == (status, code), answer
    assert answer.headers["content-type"] == "application/problem+json"
    for word in words:
        assert word in answer.json["detail"], answer.json["detail"]


@pytest.fixture(params=["leader", "follower"])
def node(request: pytest.FixtureRequest, scene: Scene) -> Member:
    """One that leads, and one that has the leader carry it out."""
    found = scene.leader if request.param == "leader" else scene.follower
    assert isinstance(found, Member)
    return found


def test_a_node_that_nobody_runs_is_not_added(scene: Scene, node: Member) -> None:
    nobody = Member(scene.folder, "n9")
    with Client(node, QUICK_SECONDS_MAX) as client:
        body = json.dumps(nobody.record).encode()
        answer = client.request("POST", "/v1/cluster/members", body, Content_Type=JSON)
    check_problem(answer, 409, "member_unreachable", nobody.raft, "--join")


def test_an_address_at_which_something_else_listens_is_not_added(
    scene: Scene, node: Member
) -> None:
    """Its own HTTP port, which answers, but not as a peer."""
    record = {**Member(scene.folder, "n9").record, "raft_address": f"127.0.0.1:{node.port}"}
    with Client(node, QUICK_SECONDS_MAX) as client:
        body = json.dumps(record).encode()
        answer = client.request("POST", "/v1/cluster/members", body, Content_Type=JSON)
    check_problem(answer, 409, "member_unreachable", str(node.port))


def test_a_node_whose_id_is_another_is_not_added(scene: Scene, node: Member) -> None:
    record = {**scene.follower.record, "id": "n9"}
    answer = change(node, "POST", "/v1/cluster/members", record)
    check_problem(answer, 400, "invalid_parameter", f"is '{scene.follower.name}', not 'n9'")


def test_a_node_of_another_cluster_is_not_added(scene: Scene, node: Member) -> None:
    before = scene.stranger.cluster()["members"]
    answer = change(node, "POST", "/v1/cluster/members", scene.stranger.record)
    theirs = scene.stranger.cluster()
    check_problem(
        answer, 409, "member_unreachable", "'s1' belongs to the cluster", theirs["cluster_id"]
    )
    assert theirs["members"] == before
    assert warned("belongs to the cluster", [(scene.stranger, 0)])


def test_a_node_with_another_secret_is_not_added(scene: Scene, node: Member) -> None:
    answer = change(node, "POST", "/v1/cluster/members", scene.open.record)
    check_problem(answer, 409, "member_unreachable", "secret_file")
    assert [member["id"] for member in scene.open.cluster()["members"]] == ["o1"]


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "words"),
    [
        ("DELETE", "members/n9", None, "member_not_found", "it has n1, n2"),
        ("POST", "leader", {"id": "n9"}, "member_not_found", "it has n1, n2"),
    ],
)
def test_a_member_that_is_unknown(
    node: Member, method: str, path: str, body: object, code: str, words: str
) -> None:
    check_problem(change(node, method, f"/v1/cluster/{path}", body), 404, code, words)


def test_the_last_voter_is_not_removed(scene: Scene) -> None:
    answer = change(scene.stranger, "DELETE", "/v1/cluster/members/s1")
    check_problem(answer, 409, "last_voter", "Add another node first")
    scene.stranger.publish("chat", "it leads on")


RECORD: Final = {"id": "n9", "raft_address": "127.0.0.1:9", "http_url": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("path", "body", "code", "word"),
    [
        ("members", b"{", "invalid_json", ""),
        ("members", b"[]", "invalid_parameter", "object"),
        ("members", {"id": "n9"}, "invalid_parameter", "raft_address"),
        ("members", {**RECORD, "voter": True}, "invalid_parameter", "voter"),
        ("members", {**RECORD, "id": "n 9"}, "invalid_parameter", "id"),
        ("members", {**RECORD, "id": 9}, "invalid_parameter", "id"),
        ("members", {**RECORD, "raft_address": "nowhere"}, "invalid_parameter", "nowhere"),
        ("members", {**RECORD, "raft_address": "h:70000"}, "invalid_parameter", "70000"),
        ("members", {**RECORD, "http_url": "ftp://h"}, "invalid_parameter", "ftp"),
        ("leader", {}, "invalid_parameter", "id"),
        ("leader", {"id": None}, "invalid_parameter", "id"),
        ("leader", {"id": "n1", "now": True}, "invalid_parameter", "now"),
    ],
)
def test_a_body_that_is_malformed(
    scene: Scene, path: str, body: object, code: str, word: str
) -> None:
    check_problem(change(scene.follower, "POST", f"/v1/cluster/{path}", body), 400, code, word)


# --- the command line ---


def run(node: Member, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["cluster", *arguments, "--url", node.url])


def test_the_status_for_people(scene: Scene) -> None:
    result = run(scene.follower, "status")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines[2:6] if " " in line)
    assert (shown["node"], shown["mode"]) == (scene.follower.name, "cluster")
    assert lines[-3].split()[:3] == ["MEMBER", "ROLE", "RAFT"]
    rows = [line.split() for line in lines[-2:]]
    roles = scene.leader.roles()
    for node, row in zip(scene.nodes, rows, strict=True):
        assert row[:4] == [node.name, roles[node.name], node.raft, node.url]
        assert row[6] == "yes"


def test_the_status_for_programs(scene: Scene) -> None:
    result = run(scene.follower, "status", "--json")
    found = json.loads(result.stdout)
    assert [member["id"] for member in found["members"]] == [*NAMES]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("remove", "n9"), "The member does not exist: The cluster has no member 'n9'; it has"),
        (("transfer", "n9"), "[member_not_found]"),
        (
            ("add", "n9", "--raft", "127.0.0.1:9", "--http", "http://127.0.0.1:9"),
            "gets no answer at 127.0.0.1:9. Start the node there with --join",
        ),
    ],
)
def test_a_command_that_is_refused_says_why_in_a_line(
    scene: Scene, arguments: tuple[str, ...], words: str
) -> None:
    for more in ((), ("--json",)):
        result = run(scene.follower, *arguments, *more)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert words in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "n9"),
        ("add", "n9", "--raft", "nowhere", "--http", "http://h"),
        ("add", "n9", "--raft", "h:1", "--http", "h"),
        ("remove", "n 9"),
        ("transfer",),
    ],
)
def test_a_command_that_cannot_be_meant_is_wrong_usage(
    scene: Scene, arguments: tuple[str, ...]
) -> None:
    result = run(scene.follower, *arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


# --- strangers at the Raft port ---


def frame(value: Any) -> bytes:
    body: bytes = msgpack.packb(value)
    return struct.pack(">I", len(body)) + body


KNOCK: Final = ("knock", 2)
OLD_HELLO: Final = ("hello", 1, 1, "", "n9", "i" * 16, bytes(32))  # of protocol 1


def send(node: Member, data: bytes, *, read: bool = True) -> bytes:
    """Send bytes to its Raft port; what it says until it hangs up."""
    host, _, port = node.raft.partition(":")
    with closing(socket.create_connection((host, int(port)), WAIT_SECONDS_MAX)) as peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        found = b""
        while read and (more := peer.recv(1 << 16)):
            found += more
        return found


def metric(node: Member, name: str) -> float:
    with Client(node) as client:
        text = client.request("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"repl_broker_{name} ")]
    return float(line.split()[1])


GARBAGE: Final[dict[str, Callable[[], bytes]]] = {
    "HTTP": lambda: b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n",
    "a frame of 4 GiB": lambda: b"\xff\xff\xff\xff" + bytes(1000),
    "a frame over the limit before the handshake": lambda: struct.pack(">I", 5000) + bytes(5000),
    "no msgpack": lambda: struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
    "another word": lambda: frame(("good day", 1)),
    "a knock of other types": lambda: frame(("knock", "2")),
    "half a knock": lambda: frame(KNOCK)[:-1],
    "an answer of other types": lambda: frame(KNOCK) + frame(("answer", None, 5)),
    "a bare number": lambda: frame(1),
    "nested without end": lambda: struct.pack(">I", 4000) + b"\x91" * 4000,
}


@pytest.mark.parametrize("kind", list(GARBAGE))
def test_garbage_at_the_raft_port_is_dropped_and_counted(
    scene: Scene, node: Member, kind: str
) -> None:
    before = metric(node, "peer_garbage_total")
    send(node, GARBAGE[kind](), read=False)
    for _ in polls("it to be counted"):
        if metric(node, "peer_garbage_total") > before:
            break
    assert metric(node, "peers_connected") == 1


def test_a_stranger_learns_nothing_but_that_he_is_one(scene: Scene, node: Member) -> None:
    """Of whichever way: no name, no cluster, no version, and no proof to guess the secret by."""
    tries = (
        frame(OLD_HELLO),
        frame(("knock", 9)),
        frame(KNOCK) + frame(("answer", bytes(32), bytes(32))) + frame((1, 1, "who", None)),
    )
    before = metric(node, "peer_handshakes_refused_total")
    identity = node.cluster()
    for words in tries:
        said = send(node, words)
        for name in ("cluster_id", "node"):
            assert identity[name].encode() not in said
        frames = []
        while said:
            size = struct.unpack(">I", said[:4])[0]
            frames.append(msgpack.unpackb(said[4 : 4 + size]))
            said = said[4 + size :]
        (kind, reason) = frames.pop()
        assert (kind, reason) == ("refused", STRANGER)
        assert [(kind, len(nonce)) for kind, nonce in frames] in ([], [("challenge", 32)])
    assert metric(node, "peer_handshakes_refused_total") == before + len(tries)
    for reason in ("an older protocol", "a newer protocol", "does not know this cluster's secret"):
        assert warned(reason, [(node, 0)]), "each once, however often it comes"


def test_a_crowd_of_strangers_disturbs_nobody(scene: Scene) -> None:
    """More than are let through the door at a time, silent or noisy, while it serves."""
    with ExitStack() as opened, Rounds(scene.nodes, "crowd") as rounds:
        for number in range(150):
            host, _, port = scene.nodes[number % 2].raft.partition(":")
            peer = opened.enter_context(closing(socket.create_connection((host, int(port)))))
            if number % 3:
                peer.sendall(bytes([number]) * number)
        rounds.wait_more(100)
    assert not rounds.lost
    assert not rounds.errors
    for node in scene.nodes:
        rounds.check_kept(node.history("crowd"))
        assert metric(node, "peers_connected") == 1
