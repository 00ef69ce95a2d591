"""A node whose store is damaged says so at its start, and one command has it join anew."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click import ClickException
from click.testing import CliRunner, Result

from repl_broker.aside import Aside
from repl_broker.cli import main
from repl_broker.cli.cluster import leave
from repl_broker.errors import ReplBrokerError
from repl_broker.storage import STORE_NAME, SqliteStorage
from tests.process.member import NAMES, Member, cluster_of, followers_of, leader_of
from tests.process.node import Node, polls

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Member]]:
    folder = tmp_path_factory.mktemp("rejoin")
    with cluster_of(folder) as running:
        for number in range(60):
            running[0].publish("order", number)
        yield running


def rejoin(data_dir: Path, url: str, *options: str) -> Result:
    arguments = ["cluster", "rejoin", "--data-dir", str(data_dir), "--url", url, *options]
    return CliRunner().invoke(main, arguments)


def refused(result: Result) -> str:
    """What was said; nothing was done."""
    assert result.exit_code != 0
    error = result.exception
    return str(error) if isinstance(error, ReplBrokerError) else result.output


def damage(folder: Path) -> None:
    with sqlite3.connect(folder / STORE_NAME) as connection:
        newest = "DELETE FROM log WHERE idx = (SELECT max(idx) - 1 FROM log)"
        assert connection.execute(newest).rowcount == 1
    connection.close()


def messages(node: Node) -> list[Any]:
    return [message["data"] for message in node.history("order")]


def wait_unreachable(node: Member, gone: str) -> None:
    for _ in polls(f"{gone} to be missed"):
        found = {m["id"]: m["reachable"] for m in node.cluster()["members"]}
        if found[gone] is False:
            return


def test_a_damaged_node_joins_anew_by_one_command(nodes: list[Member]) -> None:
    node = next(each for each in followers_of(nodes) if "--bootstrap" not in each.options)
    others = [each for each in nodes if each is not node]
    said = refused(rejoin(node.data_dir, others[0].url, "--yes"))
    assert "is in use by a running node" in said
    assert "stop it first" in said
    assert "--http" not in said, "the command has no such option"
    node.kill()
    # What a store of this node's version says, once what the kill left is settled.
    SqliteStorage(node.data_dir, node.name).close()
    damage(node.data_dir)
    since = len(node.log_text())
    node.spawn()
    assert node.wait() == 1
    line = node.log_text()[since:].splitlines()[-1]
    assert "is damaged" in line
    assert "'repl-broker cluster rejoin'" in line

    wait_unreachable(others[0], node.name)
    assert "must be confirmed" in refused(rejoin(node.data_dir, others[0].url))
    result = rejoin(node.data_dir, others[0].url, "--yes", "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    answer = json.loads(result.output)
    assert answer["node"] == node.name
    assert sorted(answer["join"]) == sorted(each.raft for each in others)
    aside = Path(answer["aside"])
    assert (aside / STORE_NAME).is_file()
    assert aside.parent == node.data_dir
    assert not (node.data_dir / STORE_NAME).exists()
    assert node.name not in others[1].roles()

    node.options = ("--join", answer["join"][0])
    node.start()
    for each in nodes:
        each.wait_votes(*NAMES)
    assert messages(node) == [*range(60)]
    node.publish("order", 60)
    assert messages(others[0]) == [*range(61)]


def test_who_is_reached_is_not_taken_out(nodes: list[Member], tmp_path: Path) -> None:
    """Another directory of the same name, or a clone: its node goes well."""
    node, other = followers_of(nodes)
    copy = tmp_path / "copy"
    copy.mkdir()
    store = (node.data_dir / STORE_NAME).read_bytes()
    (copy / STORE_NAME).write_bytes(store)
    own = other.cluster()["cluster_id"]  # which the file alone may be too young to say
    options = ("--yes", "--node-id", node.name, "--cluster-id", own)
    said = refused(rejoin(copy, other.url, *options))
    assert f"reaches a node {node.name!r} that runs" in said
    assert (copy / STORE_NAME).read_bytes() == store
    assert node.name in other.roles()


def test_a_store_that_cannot_say_whose_it_is_is_asked_about(
    nodes: list[Member], tmp_path: Path
) -> None:
    """No default decides which member goes."""
    (tmp_path / STORE_NAME).write_bytes(b"nothing of this is a database")
    said = refused(rejoin(tmp_path, nodes[0].url, "--yes"))
    assert "cannot say of which node it is; name it with --node-id" in said
    said = refused(rejoin(tmp_path, nodes[0].url, "--yes", "--node-id", "n9"))
    assert "cannot say of which cluster it is; name it with --cluster-id" in said
    of_another = ("--yes", "--node-id", "n9", "--cluster-id", "0" * 32)
    assert "name a node of its own with --url" in refused(
        rejoin(tmp_path, nodes[0].url, *of_another)
    )
    assert (tmp_path / STORE_NAME).exists()
    own = nodes[0].cluster()["cluster_id"]
    mistyped = ("--yes", "--node-id", "n9", "--cluster-id", own)
    said = refused(rejoin(tmp_path, nodes[0].url, *mistyped))
    assert "no member 'n9'; --node-id is one of n1, n2, n3" in said
    assert (tmp_path / STORE_NAME).exists()


def test_a_store_is_kept_while_too_few_others_run(nodes: list[Member]) -> None:
    """Without it the two others are the cluster: one alone could never agree that it goes."""
    leader = leader_of(nodes)
    away, node = followers_of(nodes)
    away.kill()
    node.kill()
    wait_unreachable(leader, away.name)
    wait_unreachable(leader, node.name)
    said = refused(rejoin(node.data_dir, leader.url, "--yes"))
    assert "there are 2 voters, of which 2 must be reached, and 1 are" in said
    assert f"start {away.name} first" in said
    assert (node.data_dir / STORE_NAME).exists()
    assert leader.roles().keys() == {*NAMES}
    for each in (away, node):
        each.start()
    for each in nodes:
        each.wait_votes(*NAMES)


def test_a_young_store_of_a_killed_node_says_whose_it_is(tmp_path: Path) -> None:
    """All that it has is in the write-ahead log, which stays as it is."""
    storage = SqliteStorage(tmp_path / "runs", "n2")
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "runs", killed)
    wal = (killed / f"{STORE_NAME}-wal").read_bytes()
    assert wal
    with Aside(killed) as aside:
        assert (aside.node_id, aside.cluster_id) == ("n2", storage.identity.cluster_id)
    assert (killed / f"{STORE_NAME}-wal").read_bytes() == wal
    storage.close()


class Answers:
    """A client for which each look at the cluster finds the next of these, the last for ever."""

    url = "http://n1"

    def __init__(self, *found: dict[str, Any]) -> None:
        self._found = list(found)
        self.deleted = 0

    def call(self, method: str, path: str) -> dict[str, Any]:
        if method == "DELETE":
            self.deleted += 1
            return {}
        return self._found.pop(0) if len(self._found) > 1 else self._found[0]


def members(*names: str, away: tuple[str, ...] = (), pending: bool = False) -> dict[str, Any]:
    found = [{"id": n, "role": "voter", "reachable": n not in away} for n in names]
    return {"members": found, "change_pending": pending}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is turned on by who sleeps."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    return now


def test_a_removal_that_is_only_appended_is_waited_for(slept: list[float]) -> None:
    whole = members(*NAMES, away=("n3",))
    appended = members("n1", "n2", pending=True)
    client = Answers(whole, whole, appended, appended, members("n1", "n2"))
    leave(client, "n3")
    assert client.deleted == 1
    for never in (appended, {"members": appended["members"]}):  # or a version that does not say
        with pytest.raises(ClickException, match="did not say within 30 s that the removal"):
            leave(Answers(whole, whole, never), "n3")


def test_who_goes_down_while_it_is_looked_is_seen(slept: list[float]) -> None:
    """A node that was killed just now may be taken for reachable, for a moment."""
    client = Answers(members(*NAMES, away=("n3",)), members(*NAMES, away=("n2", "n3")))
    with pytest.raises(ClickException, match="start n2 first"):
        leave(client, "n3")
    assert client.deleted == 0
    assert slept[0] >= 2


def test_only_its_own_cluster_can_give_it_what_it_had(nodes: list[Member], tmp_path: Path) -> None:
    SqliteStorage(tmp_path / "other", "n2").close()
    said = refused(rejoin(tmp_path / "other", nodes[0].url, "--yes"))
    assert "name a node of its own with --url" in said
    said = refused(rejoin(tmp_path / "other", nodes[0].url, "--yes", "--node-id", "n3"))
    assert "is of node 'n2', not 'n3'" in said
    said = refused(rejoin(tmp_path / "empty", nodes[0].url, "--yes"))
    assert "there is no store" in said
    with Node(tmp_path / "single") as single:
        single.start()
        said = refused(rejoin(tmp_path / "other", f"http://127.0.0.1:{single.port}", "--yes"))
        assert "runs alone, and is no cluster" in said
