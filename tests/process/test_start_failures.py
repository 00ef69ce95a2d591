"""A node that cannot start says why in one line, and exits with 1."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgpack
import pytest

from repl_broker.raft.log import Entry, EntryKind, Snapshot, WriteBatch
from repl_broker.state import BrokerState
from repl_broker.storage import SqliteStorage
from tests.process.node import Node, serve

pytestmark = pytest.mark.process

ANY_PORT = ("--http", "127.0.0.1:0")


def refusal(*options: str, prefix: Sequence[str] = (), **keys: object) -> str:
    """What a node that must not start says."""
    ended = serve(*options, prefix=prefix, **keys)
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: "), line
    assert "a bug" not in line, line
    return line


def refusal_with(data_dir: Path, *options: str, prefix: Sequence[str] = ()) -> str:
    return refusal("--data-dir", str(data_dir), *ANY_PORT, *options, prefix=prefix)


def refusal_of(tmp_path: Path, toml: str) -> str:
    """What is said of a configuration file."""
    file = tmp_path / "cluster.toml"
    file.write_text(toml)
    line = refusal("--config", str(file), "--data-dir", str(tmp_path / "data"), *ANY_PORT)
    assert "cluster.toml" in line
    assert not (tmp_path / "data").exists(), "nothing is made before all is understood"
    return line


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The data directory of a node that ran, has a message, and was stopped."""
    with Node(tmp_path / "data") as node:
        node.start()
        node.publish("chat", "kept")
        assert node.stop() == 0
    return node.data_dir


# --- what is already taken ---


def test_a_port_in_use(tmp_path: Path) -> None:
    with Node(tmp_path / "first") as node:
        node.start()
        address = f"127.0.0.1:{node.port}"
        line = refusal("--data-dir", str(tmp_path / "second"), "--http", address)
        assert address in line
        assert "another program listens there" in line
        assert "--http HOST:PORT" in line
        assert not (tmp_path / "second").exists(), "nothing is left behind"
        raft = ("--raft", address, "--http", "127.0.0.1:0", "--bootstrap")
        line = refusal("--data-dir", str(tmp_path / "second"), *raft)
        assert "--raft HOST:PORT" in line
        assert not (tmp_path / "second").exists()
        node.publish("chat", "undisturbed")


def test_a_data_directory_that_a_running_node_holds(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        node.start()
        line = refusal_with(node.data_dir)
        assert f"in use by a running node (process {node.process.pid})" in line
        assert "--data-dir DIRECTORY --http HOST:PORT" in line  # either alone leads to the other
        node.publish("chat", "undisturbed")


def test_a_data_directory_is_free_again_after_a_kill(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        node.start()
        node.kill()
        node.start()


# --- the data directory ---


def test_a_data_directory_that_is_not_writable(tmp_path: Path) -> None:
    prefix: Sequence[str] = ()
    if os.geteuid() == 0:  # whom no mode stops, but for the capability
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and there is no setpriv to take that away")
        prefix = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", "--")
    folder = tmp_path / "data"
    folder.mkdir(mode=0o500)
    line = refusal_with(folder, prefix=prefix)
    assert "cannot be written: Permission denied" in line


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("precious")
    assert "cannot be written" in refusal_with(file)
    assert file.read_text() == "precious"


def test_a_data_directory_of_another_node(stopped: Path) -> None:
    line = refusal_with(stopped, "--node-id", "n2")
    assert "belongs to node 'n1', not to 'n2'" in line


def test_a_data_directory_of_a_newer_format(stopped: Path) -> None:
    change(stopped, "UPDATE meta SET value = 99 WHERE key = 'format'")
    assert "written by a newer repl-broker (format 99" in refusal_with(stopped)


# --- damage ---


def test_a_store_that_is_no_database(stopped: Path) -> None:
    (stopped / "broker.db").write_bytes(b"not a database, but long enough to be one " * 100)
    assert "file is not a database" in refusal_with(stopped)


def test_a_store_that_is_cut_short(stopped: Path) -> None:
    database = stopped / "broker.db"
    os.truncate(database, database.stat().st_size // 2)
    assert "cannot be read" in refusal_with(stopped)


def test_a_store_with_a_bit_that_has_flipped(stopped: Path) -> None:
    """SQLite does not notice; the checksum of the entry does."""
    database = stopped / "broker.db"
    content = database.read_bytes()
    assert content.count(b'"kept"') == 1
    database.write_bytes(content.replace(b'"kept"', b'"kepu"'))
    assert "damaged: entry" in refusal_with(stopped)


def test_a_store_that_lacks_an_entry(stopped: Path) -> None:
    change(stopped, "DELETE FROM log WHERE idx = 1")
    assert "damaged: what should precede entry 2" in refusal_with(stopped)


def test_a_store_without_its_identity(stopped: Path) -> None:
    change(stopped, "DELETE FROM meta WHERE key = 'epoch'")
    assert "damaged: its identity (without epoch)" in refusal_with(stopped)


def test_a_store_whose_members_cannot_be_read(stopped: Path) -> None:
    """As they were written, says the checksum; so by another version."""
    storage = SqliteStorage(stopped, "n1")
    last = storage.load().entries[-1]
    nobody = Entry(last.index + 1, last.term, EntryKind.MEMBERSHIP, b"nobody")
    storage.write(WriteBatch((nobody,)))
    storage.close()
    assert "the log's members cannot be read (not a membership" in refusal_with(stopped)


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (Snapshot(1, 1, msgpack.packb([0])), "the snapshot has format 0; this version reads"),
        (
            Snapshot(1, 1, BrokerState().snapshot(), b"nobody"),
            "the snapshot's members cannot be read (not a membership",
        ),
    ],
    ids=["format", "members"],
)
def test_a_store_with_a_snapshot_of_another_version(
    stopped: Path, snapshot: Snapshot, words: str
) -> None:
    storage = SqliteStorage(stopped, "n1")
    storage.save_snapshot(snapshot)
    storage.close()
    line = refusal_with(stopped)
    assert words in line
    assert "restore it from a backup" in line


def test_a_store_whose_vote_has_rotted(stopped: Path) -> None:
    change(stopped, "UPDATE meta SET value = 'n3' WHERE key = 'vote'")
    assert "damaged: its identity, term or vote" in refusal_with(stopped)


def test_a_write_ahead_log_with_a_bit_that_has_flipped(tmp_path: Path) -> None:
    """SQLite would take it for a torn tail, and drop what was acknowledged behind it."""
    with Node(tmp_path / "data") as node:
        node.start()
        for number in range(5):
            node.publish("chat", f"{number}")
        node.kill()
    log = node.data_dir / "broker.db-wal"
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    for _ in range(2):
        assert "damaged: its write-ahead log" in refusal_with(node.data_dir)


def test_a_journal_that_is_damaged(tmp_path: Path) -> None:
    """What was acknowledged last is in it alone; a start without it would lose that."""
    with Node(tmp_path / "data") as node:
        node.start()
        for number in range(5):
            node.publish("chat", f"{number}")
        node.kill()
    journal = node.data_dir / "broker.journal"
    content = journal.read_bytes()
    journal.write_bytes(content[:30] + bytes([content[30] ^ 1]) + content[31:])
    for _ in range(2):
        assert "damaged: its journal (a record before the last" in refusal_with(node.data_dir)
    journal.unlink()
    assert "damaged: its journal (it is not there)" in refusal_with(node.data_dir)
    journal.write_bytes(content)
    with Node(node.data_dir) as node:
        node.start()
        assert [message["data"] for message in node.history("chat")] == list("01234")


def change(data_dir: Path, statement: str) -> None:
    database = sqlite3.connect(data_dir / "broker.db")
    try:
        with database:
            assert database.execute(statement).rowcount == 1
    finally:
        database.close()


# --- the configuration ---


def test_a_key_that_does_not_exist(tmp_path: Path) -> None:
    line = refusal_of(tmp_path, "[limits]\nmessage_byte = 1000\n")
    assert "unknown key limits.message_byte;" in line
    assert "did you mean limits.message_bytes?" in line


def test_a_value_of_the_wrong_type(tmp_path: Path) -> None:
    line = refusal_of(tmp_path, '[topics]\nauto_create = "yes"\n')
    assert "topics.auto_create" in line


def test_a_value_with_a_unit_of_something_else(tmp_path: Path) -> None:
    line = refusal_of(tmp_path, '[limits]\nmessage_bytes = "10 s"\n')
    assert "limits.message_bytes" in line


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    assert "cluster.toml:1:8: not valid TOML" in refusal_of(tmp_path, "[limits\n")


def test_a_configuration_file_that_is_not_there(tmp_path: Path) -> None:
    assert "nowhere.toml" in refusal("--config", str(tmp_path / "nowhere.toml"))


def test_a_variable_that_does_not_exist(tmp_path: Path) -> None:
    line = refusal("--data-dir", str(tmp_path / "data"), *ANY_PORT, limits_message_byte=1)
    assert "did you mean REPL_BROKER_LIMITS_MESSAGE_BYTES?" in line
