"""backup, restore and cluster recover, over real data directories of real nodes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from repl_broker.storage import SqliteStorage
from tests.cli.conftest import Run
from tests.process.node import Broken, Client, Node, Stream
from tests.stores import make_store


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The folder of n1, one of three, with ten messages; it is stopped."""
    make_store(tmp_path / "data").close()
    return tmp_path / "data"


def identity_of(folder: Path) -> tuple[str, str]:
    storage = SqliteStorage(folder, None)
    storage.close()
    return storage.identity.cluster_id, storage.identity.epoch


# --- backup and restore ---


def test_backup_says_what_it_saved(run: Run, used: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.db"
    result = run("backup", str(file), "--data-dir", str(used))
    assert (result.exit_code, result.stderr) == (0, "")
    cluster_id, epoch = identity_of(used)
    size = file.stat().st_size
    assert result.stdout.splitlines() == [
        f"saved {used} to {file}: {size:,} bytes, checked",
        "node         n1",
        f"cluster id   {cluster_id}",
        f"epoch        {epoch}",
        "index        12",
        "seq          10",
        "entries      12",
    ]
    again = run("backup", str(file), "--data-dir", str(used), "--force", "--json")
    saved = json.loads(again.stdout)
    assert saved.pop("time").endswith("Z")
    assert saved == {
        "file": str(file),
        "node": "n1",
        "cluster_id": cluster_id,
        "epoch": epoch,
        "term": 3,
        "index": 12,
        "seq": 10,
        "entries": 12,
        "bytes": size,
    }


def test_the_data_directory_comes_from_option_environment_or_file(
    run: Run, used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'[node]\ndata_dir = "{used}"\n')
    assert run("backup", str(tmp_path / "1.db"), "--config", str(config)).exit_code == 0
    monkeypatch.setenv("REPL_BROKER_NODE_DATA_DIR", str(used))
    assert run("backup", str(tmp_path / "2.db")).exit_code == 0
    result = run("backup", str(tmp_path / "3.db"), "--data-dir", str(tmp_path / "none"))
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: there is no store in the data directory '{tmp_path}/none'; "
        "name the node's own with --data-dir or --config\n",
    )


def test_an_existing_file_is_one_line_and_stays(run: Run, used: Path, tmp_path: Path) -> None:
    (tmp_path / "b.db").write_text("precious")
    result = run("backup", str(tmp_path / "b.db"), "--data-dir", str(used))
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: '{tmp_path}/b.db' exists already; name another file, or use --force\n",
    )
    assert (tmp_path / "b.db").read_text() == "precious"


def test_restore_says_what_it_made_and_how_to_start_it(
    run: Run, used: Path, tmp_path: Path
) -> None:
    file, folder = tmp_path / "b.db", tmp_path / "new"
    run("backup", str(file), "--data-dir", str(used))
    result = run("restore", str(file), "--data-dir", str(folder), "--node-id", "n7")
    assert (result.exit_code, result.stderr) == (0, "")
    cluster_id, epoch = identity_of(folder)
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"made {folder} of {file}, a backup of 20")
    assert lines[1:] == [
        "node         n7",
        f"cluster id   {cluster_id}",
        f"epoch        {epoch}",
        "index        13",
        "seq          10",
        f"start it: repl-broker serve --data-dir {folder} --node-id n7",
    ]


def test_restore_speaks_json(run: Run, used: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "b.db", tmp_path / "new"
    run("backup", str(file), "--data-dir", str(used))
    made = json.loads(run("restore", str(file), "--data-dir", str(folder), "--json").stdout)
    assert made["data_dir"] == str(folder)
    assert made["how"] == "restore"
    assert (made["old"]["cluster_id"], made["old"]["epoch"]) == identity_of(used)
    assert (made["new"]["cluster_id"], made["new"]["epoch"]) == identity_of(folder)


def test_a_damaged_backup_is_one_line_and_leaves_nothing(
    run: Run, used: Path, tmp_path: Path
) -> None:
    file, folder = tmp_path / "b.db", tmp_path / "new"
    run("backup", str(file), "--data-dir", str(used))
    file.write_bytes(file.read_bytes()[:-5000])
    result = run("restore", str(file), "--data-dir", str(folder))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: the backup '{file}' ")
    assert result.stderr.endswith("; use another backup\n")
    assert result.stderr.count("\n") == 1
    assert not folder.exists()


def test_restore_wants_a_data_directory(run: Run, tmp_path: Path) -> None:
    result = run("restore", str(tmp_path / "b.db"))
    assert result.exit_code == 2
    assert "--data-dir" in result.stderr


# --- with a real node ---


class Load(threading.Thread):
    """Publishes numbers one after the other until it is told to stop."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node
        self.acknowledged = 0
        self.enough = threading.Event()
        self.stopping = threading.Event()

    def run(self) -> None:
        with Client(self.node) as client:
            while not self.stopping.is_set():
                try:
                    answer = client.publish("chat", b"%d" % self.acknowledged)
                except Broken:
                    return
                assert answer.status == 201
                self.acknowledged += 1
                if self.acknowledged >= 500:
                    self.enough.set()


@pytest.mark.process
def test_a_backup_under_load_has_all_that_was_acknowledged_before_it_began(
    run: Run, tmp_path: Path
) -> None:
    file, folder = tmp_path / "b.db", tmp_path / "new"
    with Node(tmp_path / "data", raft_snapshot_entries=100) as node:
        node.start()
        epoch = node.get("/v1/cluster")["epoch"]
        load = Load(node)
        load.start()
        assert load.enough.wait(30)
        before = load.acknowledged
        result = run("backup", str(file), "--data-dir", str(node.data_dir), "--json")
        after = load.acknowledged
        load.stopping.set()
        load.join()
        assert result.exit_code == 0, result.stderr
        assert before <= json.loads(result.stdout)["seq"] <= after + 1
        assert sorted(p.name for p in node.data_dir.iterdir()) == [
            "broker.db",
            "broker.db-shm",
            "broker.db-wal",
            "broker.journal",
            "last-backup",
            "lock",
        ]
        assert len(node.history("chat")) == load.acknowledged, "the node goes on"
        assert node.stop() == 0
    assert run("restore", str(file), "--data-dir", str(folder)).exit_code == 0
    with Node(folder) as restored:
        restored.start()
        found = [message["data"] for message in restored.history("chat")]
        assert found == list(range(len(found)))
        assert len(found) >= before
        new = restored.get("/v1/cluster")["epoch"]
        assert restored.publish("chat", "on") == f"{new}-{len(found) + 1}"
        with Stream(restored, "chat", last_id=f"{epoch}-{before}") as stream:
            gap = next(block for block in stream if block.event == "gap")
        assert '"reason":"unknown_epoch"' in gap.fields["data"]


# --- cluster recover ---


def test_recover_shows_what_it_found_and_asks(run: Run, used: Path) -> None:
    cluster_id, epoch = identity_of(used)
    result = run("cluster", "recover", "--data-dir", str(used), stdin=b"n1\n")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines[:11] == [
        "node           n1",
        f"cluster id     {cluster_id}",
        f"epoch          {epoch}",
        "term           3",
        "last term      1",
        "last index     12",
        "",
        "MEMBER           ROLE     RAFT",
        "n1               voter    10.0.0.1:4081  (this node)",
        "n2               voter    10.0.0.2:4081",
        "n3               voter    10.0.0.3:4081",
    ]
    assert "Lost is what the others acknowledged and n1 does not have" in result.stderr
    assert "The other nodes must never be started with their data again." in result.stderr
    assert lines[-1] == "Type the node's id (n1) to go on: "
    new_id, new_epoch = identity_of(used)
    assert new_id != cluster_id
    assert result.stdout.splitlines()[0] == (
        "recovered: n1 is the only member from index 13 of term 4 on; "
        f"cluster id {new_id}, epoch {new_epoch}."
    )


@pytest.mark.parametrize(
    ("stdin", "status", "words"),
    [
        (b"n2\n", 1, "error: the node is 'n1', not 'n2'; nothing was changed\n"),
        (b"yes\n", 1, "error: the node is 'n1', not 'yes'; nothing was changed\n"),
        (b"\n", 1, "error: the node is 'n1', not ''; nothing was changed\n"),
        (b"", 2, "error: nothing was answered; give --yes to go on without being asked"),
    ],
)
def test_without_the_nodes_id_nothing_is_changed(
    run: Run, used: Path, stdin: bytes, status: int, words: str
) -> None:
    before = identity_of(used)
    result = run("cluster", "recover", "--data-dir", str(used), stdin=stdin)
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in result.stderr
    assert identity_of(used) == before


def test_recover_speaks_json_and_can_be_done_twice(run: Run, used: Path) -> None:
    arguments = ("cluster", "recover", "--data-dir", str(used), "--json")
    first = run(*arguments, "--yes")
    assert (first.exit_code, first.stderr) == (0, "")
    record = json.loads(first.stdout)
    assert record["how"] == "recover"
    assert [m["id"] for m in record["old"]["members"]] == ["n1", "n2", "n3"]
    assert [m["id"] for m in record["new"]["members"]] == ["n1"]
    second = run(*arguments, stdin=b"n1\n")
    assert "MEMBER" in second.stderr, "what is for people is not in the way of the JSON"
    assert json.loads(second.stdout)["old"] == record["new"]


@pytest.mark.process
def test_a_running_node_is_not_recovered(run: Run, tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        node.start()
        arguments = ("cluster", "recover", "--data-dir", str(node.data_dir), "--yes")
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"in use by a running node (process {node.process.pid})" in result.stderr
        assert "stop it first" in result.stderr
        assert "--http" not in result.stderr, "the command has no such option"
        node.publish("chat", 1)
        assert node.stop() == 0
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            "error: node 'n1' is not part of a cluster: it runs alone, and has no majority to "
            "lose; start it with 'repl-broker serve'\n"
        )
