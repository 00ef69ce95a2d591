"""Files that are for the node's user alone, whatever the umask says."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from repl_broker.backup import NOTE_NAME, _note_backup, backup, restore
from repl_broker.cli import main
from repl_broker.cli.demo import temporary_folder
from repl_broker.cli.stage.layout import lay_out
from repl_broker.config import Address, Config, exposed, load
from repl_broker.files import exposure, make_file, make_folder, tighten, write_file
from repl_broker.founding import Recovery
from repl_broker.memory import memory_bytes
from repl_broker.raft.log import HardState, WriteBatch
from repl_broker.storage import SqliteStorage
from tests.nodes import configured
from tests.process.node import Node
from tests.stores import THREE, log_of, make_store, snapshot_of

OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture(autouse=True, params=[0o000, 0o022], ids=["umask 000", "umask 022"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def opened(*folders: Path) -> list[str]:
    """What below these folders others may read or change."""
    below = (path for folder in folders for path in folder.rglob("*"))
    return [f"{path} {mode(path):o}" for path in below if mode(path) & OTHERS]


@pytest.mark.parametrize("how", ["new", "there with 0755"])
def test_nothing_that_is_made_is_for_others(tmp_path: Path, how: str) -> None:
    """A node that publishes and takes snapshots, its backup, a restored and a recovered one."""
    tmp_path.chmod(0o755)
    data, restored, saved = tmp_path / "a" / "data", tmp_path / "b" / "data", tmp_path / "backups"
    saved.mkdir(0o700)
    if how != "new":
        for folder in (data, restored):
            folder.mkdir(0o755, parents=True)
            folder.chmod(0o755)
    storage = SqliteStorage(data, "n1")
    entries = log_of(200, THREE)
    for entry in entries:
        storage.write(WriteBatch((entry,), HardState(1, "n1")))
    storage.save_snapshot(snapshot_of(entries, 100, THREE))
    storage.tidy()
    assert (data / "broker.db-wal").exists()
    assert opened(data) == []
    now_ms = 1_800_000_000_000
    made = [saved / "one.db", saved / "two.db"]
    backup(data, made[0], force=False, now_ms=now_ms)
    made[1].touch(0o666)
    backup(data, made[1], force=True, now_ms=now_ms)
    restore(made[0], restored, "n2", now_ms=now_ms)
    storage.close()
    with Recovery(data) as recovery:
        recovery.carry_out(now_ms)
        assert opened(data) == []
    SqliteStorage(restored, "n2").close()
    there = [] if how == "new" else [f"{folder} 755" for folder in (data, restored)]
    assert set(opened(tmp_path)) <= {*there, f"{tmp_path}/a {mode(tmp_path / 'a'):o}",
                                     f"{tmp_path}/b {mode(tmp_path / 'b'):o}"}  # fmt: skip
    if how == "new":
        assert [mode(tmp_path / name) for name in ("a", "a/data", "b", "b/data")] == [0o700] * 4
    assert opened(data, restored, saved) == []


@pytest.mark.process
def test_a_node_that_serves_keeps_what_it_writes_to_itself(tmp_path: Path) -> None:
    data, saved = tmp_path / "data", tmp_path / "saved.db"
    data.mkdir(0o755)
    data.chmod(0o755)
    with Node(data, raft_snapshot_entries=100) as node:
        node.start()
        for number in range(300):
            node.publish("chat", number)
        result = CliRunner().invoke(main, ["backup", str(saved), "--data-dir", str(data)])
        assert result.exit_code == 0, result.output
        assert {"broker.db", "broker.db-wal", "broker.journal", "lock"} <= {
            path.name for path in data.iterdir()
        }
        assert opened(data) == []
        assert mode(saved) == 0o600
        assert node.stop() == 0
    assert opened(data) == []


def test_a_store_that_others_may_read_is_tightened_and_said_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    SqliteStorage(tmp_path, "n1").close()
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    for file in files:
        file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        SqliteStorage(tmp_path, "n1").close()
        SqliteStorage(tmp_path, "n1").close()
    [line] = caplog.messages
    assert line.startswith("others could read the store; not any more files=")
    assert opened(tmp_path) == []


def test_a_store_of_another_user_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    SqliteStorage(tmp_path, "n1").close()
    (tmp_path / "broker.db").chmod(0o666)

    def refuse(path: Path, wanted: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with caplog.at_level(logging.WARNING):
        SqliteStorage(tmp_path, "n1").close()
    assert "others may read the store, and this user cannot change that" in caplog.text


def test_sqlite_gives_what_it_makes_beside_a_database_the_mode_of_that(tmp_path: Path) -> None:
    """What the store relies on."""
    file = tmp_path / "any.db"
    assert make_file(file)
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    assert {path.name for path in tmp_path.iterdir()} == {"any.db", "any.db-wal", "any.db-shm"}
    assert opened(tmp_path) == []
    connection.close()


def test_a_demo_of_several_nodes_keeps_its_files_to_itself(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "demo"
    layout = lay_out(folder, 3, Address("127.0.0.1", 0))
    layout.write("info")
    (folder / "n1.toml").chmod(0o644)
    layout.write("info")
    assert {path.name for path in folder.iterdir()} >= {"secret", "n1.toml", "demo.json"}
    assert opened(tmp_path) == []


def test_a_demos_folder_that_others_may_write_to_is_tightened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = temporary_folder(4080)
    folder.chmod(0o777)
    assert temporary_folder(4080) == folder
    assert mode(folder) == 0o700


def test_units_can_be_read_by_all_and_changed_by_their_owner_alone(tmp_path: Path) -> None:
    program = tmp_path / "repl-broker"
    command = ["systemd", "install", "--write", "--directory", str(tmp_path), "--program"]
    changed = tmp_path / "repl-broker.service"
    for _ in range(2):
        result = CliRunner().invoke(main, [*command, "/opt/x/repl-broker", "--force"])
        assert result.exit_code == 0, result.output
        units = [path for path in tmp_path.iterdir() if path != program]
        assert {mode(path) for path in units} == {0o644}
        changed.write_text("# changed\n")
        changed.chmod(0o666)


def test_a_file_that_is_there_is_not_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert make_file(file)
    write_file(file, "text")
    assert not make_file(file)
    assert file.read_text() == "text"
    file.chmod(0o664)
    assert tighten((file, tmp_path / "absent")) == [file]
    assert tighten((file,)) == []


def test_a_folder_cannot_be_made_where_a_file_is(tmp_path: Path) -> None:
    make_file(tmp_path / "file")
    with pytest.raises(OSError, match="exists"):
        make_folder(tmp_path / "file")


# --- secrets that others keep ------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "own", "words"),
    [
        (0o600, True, ""),
        (0o400, True, ""),
        (0o604, True, "everyone may read"),
        (0o644, False, "everyone may read"),  # as Kubernetes mounts them
        (0o602, True, "everyone may change"),
        (0o660, False, "its group may change"),
        (0o640, True, "its group may read"),
        (0o440, False, ""),  # as systemd's credentials are, and fsGroup of Kubernetes has them
    ],
)
def test_who_else_can_reach_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, own: bool, words: str
) -> None:
    file = tmp_path / "secret"
    make_file(file)
    file.chmod(bits)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + (not own))
    assert exposure(file) == words
    link = tmp_path / "link"
    link.symlink_to(file)  # as Kubernetes has them
    assert exposure(link) == words
    assert exposure(tmp_path / "absent") == ""


def test_every_file_with_a_secret_is_looked_at(tmp_path: Path) -> None:
    """What is new and has a secret belongs here, too."""
    file = tmp_path / "secret"
    file.touch()
    file.chmod(0o604)
    names = ("auth.secret_file", "cluster.secret_file", "http.tls_key", "raft.tls_key")
    for name in names:
        section, _, key = name.partition(".")
        [warning] = exposed(configured(**{section: {key: file}}))
        assert warning.startswith(f"{name}: everyone may read {file}, and so be anyone; chmod 6")
    file.chmod(0o640)
    assert len(exposed(configured(http={"tls_key": file}))) == 0  # Debian's group ssl-cert
    assert len(exposed(configured(auth={"secret_file": file}))) == 1
    assert exposed(Config()) == []


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o777, "everyone may change"),
        (0o1777, "everyone may change"),
        (0o2775, "its group may change"),
        (0o770, "its group may change"),
        (0o755, ""),  # its files are for nobody else all the same
        (0o700, ""),
    ],
)
def test_a_data_directory_that_others_may_write_to_is_warned_of(
    tmp_path: Path, mode: int, words: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(mode)
    warning = f"node.data_dir: {words} {folder}, put another store in its place, and end the node; "
    expected = [warning + f"chmod go-w {folder}"] if words else []
    assert exposed(configured(node={"data_dir": folder})) == expected
    assert exposed(configured(node={"data_dir": tmp_path / "absent"})) == []


def test_config_check_warns_of_secrets_that_others_reach(tmp_path: Path) -> None:
    secret, file = tmp_path / "token.secret", tmp_path / "n.toml"
    secret.write_text("x" * 64)
    secret.chmod(0o644)
    file.write_text(f'[auth]\nmode = "jwt"\nsecret_file = "{secret}"\n')
    result = CliRunner().invoke(main, ["config", "check", str(file)])
    assert result.exit_code == 0
    assert result.stderr == (
        f"warning: auth.secret_file: everyone may read {secret}, and so be anyone; "
        f"chmod 600 {secret}\n"
    )
    secret.chmod(0o600)
    assert CliRunner().invoke(main, ["config", "check", str(file)]).stderr == ""


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("section", ['auth]\nmode = "jwt"', "cluster]"])
def test_config_check_says_how_many_secrets_there_are(
    tmp_path: Path, section: str, count: int
) -> None:
    secret, file = tmp_path / "secret", tmp_path / "n.toml"
    write_file(secret, "\n---\n".join([f"{n}f1d7a92b3c" * 4 for n in range(count)]) + "\n")
    file.write_text(f'[{section}\nsecret_file = "{secret}"\n')
    key, words = f"{section.partition(']')[0]}.secret_file", ("1 secret", "2 secrets")[count - 1]
    result = CliRunner().invoke(main, ["config", "check", str(file)])
    assert result.output.startswith(f"{file}: no problems\n{key}: {words}\nmemory: ")
    result = CliRunner().invoke(main, ["config", "check", "--json", str(file)])
    found = json.loads(result.output)
    assert found["secrets"] == {key: count}
    assert found["memory_bytes"] == memory_bytes(load(file))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[auth]\nmode = "jwt"\nsecret_file = "{}"\n', "wanted at least 32"),
        ('[auth]\nmode = "jwt"\njwks_file = "{}"\n', "is not JSON"),
        ('[cluster]\nsecret_file = "{}"\n', "wanted 32 to"),
    ],
)
def test_config_check_finds_what_a_node_would_refuse_of_keys(
    tmp_path: Path, text: str, words: str
) -> None:
    key, file = tmp_path / "key", tmp_path / "n.toml"
    write_file(key, "short")
    file.write_text(text.format(key))
    result = CliRunner().invoke(main, ["config", "check", str(file)])
    assert result.exit_code == 1
    assert words in result.stderr


class Root:
    """As root, in folders of another user: what is given to that one, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: dict[str, tuple[int, int]] = {}
        self._about = os.fstat
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "fstat", self._fstat)
        monkeypatch.setattr(os, "fchown", self._fchown)

    def _fstat(self, descriptor: int) -> os.stat_result:
        about = self._about(descriptor)
        if not stat.S_ISDIR(about.st_mode) or path_of(descriptor).name.endswith(".partial"):
            return about  # a working folder is root's own
        return os.stat_result((about.st_mode, *about[1:4], 61234, 61235, *about[6:10]))

    def _fchown(self, descriptor: int, user: int, group: int) -> None:
        self.given[path_of(descriptor).name] = (user, group)


def path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def test_a_file_that_root_makes_is_the_folders_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """'cluster recover' by root, in the folder of a service with a user of its own."""
    root = Root(monkeypatch)
    assert make_file(tmp_path / "by-root")
    assert root.given == {"by-root": (61234, 61235)}
    monkeypatch.setattr(os, "geteuid", lambda: 61234)
    assert make_file(tmp_path / "by-the-owner")
    assert not make_file(tmp_path / "by-root")
    assert len(root.given) == 1


def test_what_root_saves_and_restores_is_the_folders_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the node could not read when it was saved, or its own store."""
    data, file = tmp_path / "data", tmp_path / "backup.db"
    make_store(data).close()
    root = Root(monkeypatch)
    backup(data, file, force=False, now_ms=1)
    owner = (61234, 61235)
    assert [name for name in root.given if name.startswith(".last-backup.")] != []
    assert set(root.given.values()) == {owner}
    assert root.given.pop("broker.db") == owner
    (tmp_path / "new").mkdir()
    restore(file, tmp_path / "new", None, now_ms=2)
    assert root.given["broker.db"] == owner


def real_root_saves(folder: Path) -> list[int]:
    data = folder / "data"
    make_store(data).close()
    os.chown(data, 65534, 65534)
    backup(data, folder / "b.db", force=False, now_ms=1)
    (folder / "new").mkdir()
    os.chown(folder / "new", 65534, 65534)
    restore(folder / "b.db", folder / "new", None, now_ms=2)
    return [path.stat().st_uid for path in (data / NOTE_NAME, folder / "new" / "broker.db")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_what_root_has_saved_and_restored_can_be_read_by_the_node(tmp_path: Path) -> None:
    assert real_root_saves(tmp_path) == [65534, 65534]


@pytest.mark.parametrize("how", ["a link", "a hard link", "a folder's link"])
def test_what_is_written_goes_through_no_link_that_is_there(tmp_path: Path, how: str) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    folder.mkdir()
    victim.write_text("as it was")
    victim.chmod(0o644)
    if how == "a link":
        (folder / "file").symlink_to(victim)
    elif how == "a hard link":
        (folder / "file").hardlink_to(victim)
    else:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"  # which is meant: a data directory may be one
    write_file(folder / "file", "text")
    assert (victim.read_text(), mode(victim)) == ("as it was", 0o644)
    assert (folder / "file").read_text() == "text"
    assert mode(folder / "file") == 0o600
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.mark.parametrize("what", ["a note of a backup", "a file"])
def test_what_is_written_goes_through_no_link_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The folder's owner, who is not root, is quicker than root."""
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    folder.mkdir()
    victim.write_text("as it was")
    really_open, swapped = os.open, []

    def open_and_swap(path: str | Path, flags: int, *args: int, **keys: int) -> int:
        descriptor = really_open(path, flags, *args, **keys)
        if flags & os.O_EXCL:
            made = path_of(descriptor)
            made.unlink()
            made.symlink_to(victim)
            swapped.append(made)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_swap)
    if what == "a file":
        write_file(folder / "file", "text")
    else:
        _note_backup(folder, 1)
    assert swapped
    assert victim.read_text() == "as it was"
