"""Backups: consistent, checked, whole or not there; restored as another cluster."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repl_broker import backup as module
from repl_broker import storage as storage_module
from repl_broker.backup import NOTE_NAME, SEAL, backed_up_at, backup, check, restore
from repl_broker.command import Publish
from repl_broker.errors import ConfigError, ReplBrokerError, StorageError
from repl_broker.founding import FOUNDINGS, Recovery, rebuilt_of
from repl_broker.journal import Shape
from repl_broker.raft.log import (
    Entry,
    EntryKind,
    HardState,
    Member,
    Membership,
    Snapshot,
    WriteBatch,
)
from repl_broker.storage import SqliteStorage, StoreCopy
from tests.stores import START_MS, make_store, message, serve_once


def save(folder: Path, file: Path, *, force: bool = False) -> dict[str, Any]:
    return backup(folder, file, force=force, now_ms=START_MS)


def put_back(file: Path, folder: Path, node_id: str | None = None) -> dict[str, Any]:
    return restore(file, folder, node_id, now_ms=START_MS + 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def change(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(statement)
    connection.close()


def everything(file: Path) -> tuple[Any, ...]:
    """All rows of a database, but the notes."""
    connection = sqlite3.connect(file)
    rows = [
        connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
        for table in ("log", "snapshot")
    ]
    connection.close()
    return tuple(rows)


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The folder of n1, one of three, with ten messages; it is stopped."""
    make_store(tmp_path / "data").close()
    return tmp_path / "data"


@pytest.fixture
def file(used: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    file = tmp_path / "saved" / "backup.db"
    file.parent.mkdir()
    save(used, file)
    return file


# --- backup ---


def test_a_backup_says_what_it_saved(used: Path, tmp_path: Path) -> None:
    storage = SqliteStorage(used, "n1")
    identity = storage.identity
    storage.close()
    file = tmp_path / "b.db"
    assert save(used, file) == {
        "file": str(file),
        "node": "n1",
        "cluster_id": identity.cluster_id,
        "epoch": identity.epoch,
        "term": 3,
        "index": 12,
        "seq": 10,
        "entries": 12,
        "time": "2027-01-15T08:00:00.000Z",
        "bytes": file.stat().st_size,
    }


def test_a_backup_has_every_row_of_the_store_and_is_one_private_file(
    used: Path, file: Path
) -> None:
    assert everything(file) == everything(used / "broker.db")
    assert names(file.parent) == ["backup.db"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_stopped_node_has_the_files_that_it_had(used: Path, tmp_path: Path) -> None:
    before = names(used)
    save(used, tmp_path / "b.db")
    assert before == ["broker.db", "lock"]
    assert names(used) == sorted([*before, NOTE_NAME])


def test_a_store_knows_when_it_was_saved_last_and_one_that_was_restored_never_was(
    used: Path, tmp_path: Path
) -> None:
    assert backed_up_at(used) == 0
    save(used, tmp_path / "b.db")
    assert backed_up_at(used) == START_MS / 1000
    backup(used, tmp_path / "b.db", force=True, now_ms=START_MS + 5000)
    assert backed_up_at(used) == START_MS / 1000 + 5
    with pytest.raises(ConfigError):
        backup(used, tmp_path / "none" / "b.db", force=True, now_ms=START_MS + 9000)
    assert backed_up_at(used) == START_MS / 1000 + 5, "what has failed is none"
    put_back(tmp_path / "b.db", tmp_path / "new")
    assert backed_up_at(tmp_path / "new") == 0
    assert stat.S_IMODE((used / NOTE_NAME).stat().st_mode) == 0o600
    for damage in (b"", b"x" * 100, b"\xff"):
        (used / NOTE_NAME).write_bytes(damage)
        assert backed_up_at(used) == 0


def test_a_backup_that_cannot_be_noted_is_one_all_the_same(
    used: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (used / NOTE_NAME).mkdir()  # for root, too, nothing can be written there
    (used / NOTE_NAME / "x").touch()
    assert save(used, tmp_path / "b.db")["seq"] == 10
    assert "the backup is not noted" in caplog.text
    assert [name for name in names(used) if "partial" in name] == []


def test_a_node_that_was_killed_is_saved_with_what_is_in_its_write_ahead_log(
    tmp_path: Path,
) -> None:
    storage = make_store(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "killed")  # as a power cut leaves it
    storage.close()
    assert (tmp_path / "killed" / "broker.db-wal").stat().st_size
    assert save(tmp_path / "killed", tmp_path / "b.db")["seq"] == 10


def test_a_running_node_writes_on_beside_a_backup_and_keeps_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has what was there when it began, whatever is written meanwhile."""
    storage = make_store(tmp_path / "data")
    before = names(tmp_path / "data")
    real = module.check

    def check_slowly(*arguments: Any) -> Any:
        storage.write(WriteBatch((message(13, b"later"),)))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "check", check_slowly)
        assert save(tmp_path / "data", tmp_path / "b.db")["seq"] == 10
    assert names(tmp_path / "data") == sorted([*before, NOTE_NAME])
    assert len(storage.load().entries) == 7
    storage.write(WriteBatch((message(14, b"last"),)))
    storage.close()
    assert save(tmp_path / "data", tmp_path / "c.db")["seq"] == 12


def pending(folder: Path) -> SqliteStorage:
    """A store whose newest two messages, of twelve, are in the journal alone."""
    storage = make_store(folder)
    for index in (13, 14):
        storage.write(WriteBatch((message(index, b"new"),)))
    assert [*storage._pending] == [13, 14]
    return storage


def same_as(file: Path, storage: SqliteStorage) -> bool:
    """Whether a backup has what the store has, and is whole without a journal."""
    (file.parent / "check").mkdir()
    shutil.copy(file, file.parent / "check" / "broker.db")
    with contextlib.closing(StoreCopy(file.parent / "check", "the copy")) as copy:
        found, wanted = copy.load(), storage.load()
    shutil.rmtree(file.parent / "check")
    return found == wanted


def test_a_backup_beside_a_running_node_has_what_is_in_its_journal_alone(tmp_path: Path) -> None:
    storage = pending(tmp_path / "data")
    made = save(tmp_path / "data", tmp_path / "b.db")
    assert (made["seq"], made["index"]) == (12, 14)
    assert same_as(tmp_path / "b.db", storage)
    assert [*storage._pending] == [13, 14], "the node's journal is left alone"
    storage.write(WriteBatch((message(15, b"later"),)))
    storage.close()
    put_back(tmp_path / "b.db", tmp_path / "new")
    storage = SqliteStorage(tmp_path / "new", "n1")
    assert [e.index for e in storage.load().entries] == [*range(7, 16)], "and the founding"
    storage.close()


def test_a_killed_node_is_saved_with_what_is_in_its_journal(tmp_path: Path) -> None:
    storage = pending(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "killed")
    save(tmp_path / "killed", tmp_path / "b.db")
    assert same_as(tmp_path / "b.db", storage)
    storage.close()


Act = Callable[[SqliteStorage], None]


def move(storage: SqliteStorage) -> None:
    storage.write(WriteBatch(hard_state=HardState(3, "n2")))


def move_and_go_on(storage: SqliteStorage) -> None:
    move(storage)
    storage.write(WriteBatch((message(15, b"later"),)))


def truncate(storage: SqliteStorage) -> None:
    storage.write(WriteBatch((message(14, b"other", term=4),), HardState(4), 14))


def append(storage: SqliteStorage) -> None:
    storage.write(WriteBatch((message(15, b"later"),)))


def restart(storage: SqliteStorage) -> None:
    storage.close()
    storage.__init__(storage._folder, "n1")  # type: ignore[misc]
    append(storage)


@pytest.mark.parametrize("act", [move, move_and_go_on, truncate, append, restart])
@pytest.mark.parametrize("moment", ["salt", "journal", "copy"])
def test_what_a_node_writes_while_it_is_saved_makes_no_backup_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Act, moment: str
) -> None:
    """After the salt was read, after the journal was, or after the database was."""
    storage = pending(tmp_path / "data")
    allowed = [storage.load().entries]
    acted: list[bool] = []

    def once() -> None:
        if not acted:
            acted.append(True)
            act(storage)
            allowed.append(storage.load().entries)

    name = {"salt": "_journal", "journal": "_read_journal", "copy": "_settle_copy"}[moment]
    real = getattr(storage_module, name)

    def interposed(*arguments: Any) -> Any:
        if moment == "copy":
            once()
        found = real(*arguments)
        once()
        return found

    monkeypatch.setattr(storage_module, name, interposed)
    made = save(tmp_path / "data", tmp_path / "b.db")
    monkeypatch.undo()
    assert acted
    (tmp_path / "check").mkdir()
    shutil.copy(tmp_path / "b.db", tmp_path / "check" / "broker.db")
    with contextlib.closing(StoreCopy(tmp_path / "check", "the copy")) as copy:
        found = copy.load().entries
    # Where it was begun anew in between, the copy is of the moment when it was.
    moved = allowed[0] if act in (move, move_and_go_on, restart) else []
    assert found in (*allowed, moved)
    assert made["index"] == found[-1].index
    storage.close()


def test_a_journal_that_is_begun_anew_again_and_again_is_read_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is of the old salt is written over, from its beginning on: that is no damage."""
    storage = pending(tmp_path / "data")
    times = iter(range(15, 15 + 4))
    real = storage_module._journal

    def salt(connection: sqlite3.Connection, where: str) -> tuple[bytes, Shape]:
        found = real(connection, where)
        if (index := next(times, None)) is not None:
            move(storage)
            storage.write(WriteBatch((message(index, b"new"),)))
        return found

    monkeypatch.setattr(storage_module, "_journal", salt)
    assert save(tmp_path / "data", tmp_path / "b.db")["index"] >= 14
    storage.close()


def test_a_database_that_was_copied_without_its_journal_is_refused(tmp_path: Path) -> None:
    """It lacks what was acknowledged last, and nothing else would tell."""
    storage = pending(tmp_path / "data")
    storage.tidy()
    storage.tidy()
    shutil.copy(tmp_path / "data" / "broker.db", tmp_path / "copy.db")
    storage.close()
    with pytest.raises(StorageError, match=r"without 'broker\.journal', which has the newest"):
        put_back(tmp_path / "copy.db", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_new_store_can_be_saved_and_restored(tmp_path: Path) -> None:
    SqliteStorage(tmp_path / "data", "n1").close()
    saved = save(tmp_path / "data", tmp_path / "b.db")
    assert (saved["index"], saved["seq"], saved["entries"]) == (0, 0, 0)
    assert put_back(tmp_path / "b.db", tmp_path / "new")["new"]["last_index"] == 1


def test_an_existing_file_is_replaced_only_when_asked(used: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.db"
    file.write_text("precious")
    with pytest.raises(ConfigError, match="exists already; name another file, or use --force"):
        save(used, file)
    assert file.read_text() == "precious"
    save(used, file, force=True)
    assert everything(file) == everything(used / "broker.db")
    assert names(tmp_path) == ["b.db", "data"]


def test_a_file_that_appears_meanwhile_is_not_replaced(
    used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b.db"
    real = module.copy_store

    def copy(folder: Path, target: Path) -> None:
        real(folder, target)
        file.write_text("precious")

    monkeypatch.setattr(module, "copy_store", copy)
    with pytest.raises(ConfigError, match="exists already"):
        save(used, file)
    assert file.read_text() == "precious"
    assert names(tmp_path) == ["b.db", "data"]


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_system_without_links_will_do(
    used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    def link(*_: object) -> None:
        if taken:
            (tmp_path / "b.db").write_text("precious")
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    if taken:
        with pytest.raises(ConfigError, match="exists already"):
            save(used, tmp_path / "b.db")
        assert (tmp_path / "b.db").read_text() == "precious"
    else:
        save(used, tmp_path / "b.db")
        assert everything(tmp_path / "b.db") == everything(used / "broker.db")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("data/b.db", "is in the data directory"),
        ("data/broker.db", "is in the data directory"),
        ("none/b.db", "there is no folder"),
        (".", "is a folder; name a file in it"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    used: Path, tmp_path: Path, target: str, words: str
) -> None:
    before = names(used)
    with pytest.raises(ConfigError, match=words):
        save(used, tmp_path / target, force=True)
    assert names(used) == before


def test_a_directory_without_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none"):
        with pytest.raises(ConfigError, match=f"no store in the data directory '.*{folder}'"):
            save(tmp_path / folder, tmp_path / "b.db")
    assert names(tmp_path) == ["empty"]
    assert names(tmp_path / "empty") == []


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    change(tmp_path / "data" / "broker.db", "CREATE TABLE t (x)")
    with pytest.raises(ConfigError, match=r"broker\.db' was not made by repl-broker"):
        save(tmp_path / "data", tmp_path / "b.db")
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE log SET data = x'00' WHERE idx = 4", "entry 4 is not what was written"),
        ("UPDATE log SET data = x'00' WHERE idx = 9", "entry 9 is not what was written"),
        ("UPDATE log SET kind = 77 WHERE idx = 9", "entry 9 is not what was written"),
        ("UPDATE log SET data = 'text' WHERE idx = 9", "entry 9 is not what was written"),
        ("DELETE FROM log WHERE idx = 4", "entry 4, of which messages are retained, is not there"),
        ("DELETE FROM log WHERE idx = 9", "what should precede entry 10"),
        ("UPDATE snapshot SET data = x'00'", "the snapshot at 6 is not what was written"),
        ("UPDATE snapshot SET data = 'text'", "the snapshot at 6 is not what was written"),
    ],
)
def test_a_store_that_is_damaged_is_not_saved(
    used: Path, tmp_path: Path, statement: str, words: str
) -> None:
    change(used / "broker.db", statement)
    with pytest.raises(StorageError, match=rf"the store '.*/data/broker\.db' is damaged: {words}"):
        save(used, tmp_path / "b.db")
    assert names(tmp_path) == ["data"]


def test_a_store_that_sqlite_cannot_read_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broker.db").write_bytes(b"hello" * 1000)
    with pytest.raises(StorageError, match=r"cannot be saved to .*: file is not a database"):
        save(tmp_path / "data", tmp_path / "b.db")
    assert names(tmp_path) == ["data"]


def test_a_disk_that_is_full_leaves_nothing(
    used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"cannot be saved to .*: No space left on device"):
        save(used, tmp_path / "b.db")
    assert names(tmp_path) == ["data"]


def test_an_interrupt_ends_a_long_copy_and_leaves_nothing(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "data", "n1")
    storage.write(WriteBatch(tuple(message(i, b"1") for i in range(1, 2000))))
    storage.close()

    class Connection(sqlite3.Connection):
        def set_progress_handler(self, handler: Any, n: int) -> None:
            def interrupted() -> int:
                raise KeyboardInterrupt

            super().set_progress_handler(interrupted, n)

    real = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{"factory": Connection, **k}))
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "data", tmp_path / "b.db")
    assert names(tmp_path) == ["data"]


# --- restore ---


def test_a_restored_store_is_the_only_node_of_a_new_cluster(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    made = put_back(file, folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert names(folder) == ["broker.db"]
    storage = SqliteStorage(folder, "n1")
    loaded = storage.load()
    newest = loaded.entries[-1]
    assert (newest.index, newest.term, newest.kind) == (13, 4, EntryKind.MEMBERSHIP)
    assert Membership.decode(newest.data) == Membership((Member("n1", "", "", voter=True),))
    assert loaded.hard_state == HardState(4, None)
    assert storage.note(SEAL) is None
    (record,) = storage.note(FOUNDINGS)
    old, new = record["old"], record["new"]
    assert (new["cluster_id"], new["epoch"]) == (
        storage.identity.cluster_id,
        storage.identity.epoch,
    )
    for drawn in ("cluster_id", "epoch"):
        assert old[drawn] != new[drawn]
    assert old["members"][0]["incarnation"] != storage.identity.incarnation
    storage.close()
    assert made == {
        "data_dir": str(folder),
        "made_at": "2027-01-15T08:00:00.000Z",
        "seq": 10,
        **record,
    }


async def test_a_restored_node_has_every_message_and_takes_more(file: Path, tmp_path: Path) -> None:
    put_back(file, tmp_path / "new", "n9")
    found, outcomes = await serve_once(
        tmp_path / "new",
        "n9",
        Publish("chat", (b"7",), "k7", b"digest"),
        Publish("chat", (b"new",), None, b""),
    )
    assert found == [b"%d" % i for i in range(10)] + [b"new"]
    assert [(o.first_seq, o.replayed) for o in outcomes] == [(8, True), (11, False)]


async def test_a_restored_store_can_be_saved_again(file: Path, tmp_path: Path) -> None:
    put_back(file, tmp_path / "new")
    await serve_once(tmp_path / "new", "n1", Publish("chat", (b"new",), None, b""))
    assert save(tmp_path / "new", tmp_path / "again.db")["seq"] == 11
    put_back(tmp_path / "again.db", tmp_path / "newer")
    found, _ = await serve_once(tmp_path / "newer", "n1")
    assert found[-1] == b"new"
    storage = SqliteStorage(tmp_path / "newer", "n1")
    assert [record["how"] for record in storage.note(FOUNDINGS)] == ["restore", "restore"]
    storage.close()


def test_restoring_twice_gives_two_clusters(file: Path, tmp_path: Path) -> None:
    one, two = (put_back(file, tmp_path / name)["new"] for name in ("one", "two"))
    assert one["cluster_id"] != two["cluster_id"]
    assert one["epoch"] != two["epoch"]


def test_a_restored_store_remembers_that_it_is_to_serve_beside_the_others(
    file: Path, tmp_path: Path
) -> None:
    for name, apart in (("beside", True), ("asks", False)):
        made = restore(file, tmp_path / name, None, now_ms=START_MS + 1, apart=apart)
        assert made.get("apart", False) is apart
        storage = SqliteStorage(tmp_path / name, None)
        rebuilt = rebuilt_of(storage.note(FOUNDINGS), Member("n1", "n1:4081", "", voter=True))
        storage.close()
        assert rebuilt is not None
        assert rebuilt.apart is apart


def test_an_empty_folder_will_do_and_another_will_not(file: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    put_back(file, tmp_path / "new")
    before = (tmp_path / "new" / "broker.db").read_bytes()
    with pytest.raises(ConfigError, match=r"'.*new' is not empty"):
        put_back(file, tmp_path / "new")
    assert (tmp_path / "new" / "broker.db").read_bytes() == before
    with pytest.raises(ConfigError, match=r"'.*backup\.db' is not a folder"):
        put_back(file, file)


def test_a_store_that_appears_meanwhile_is_not_replaced(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.check

    def check_and_start(storage: SqliteStorage, called: str) -> Any:
        (tmp_path / "new" / "broker.db").write_text("precious")
        return real(storage, called)

    monkeypatch.setattr(module, "check", check_and_start)
    with pytest.raises(ConfigError, match="exists already"):
        put_back(file, tmp_path / "new")
    assert (tmp_path / "new" / "broker.db").read_text() == "precious"


async def test_a_copy_that_was_made_by_other_means_can_be_restored(
    used: Path, tmp_path: Path
) -> None:
    """A stopped node's file as it is: it has no seal, and its header asks for a WAL."""
    shutil.copy(used / "broker.db", tmp_path / "copy.db")
    made = put_back(tmp_path / "copy.db", tmp_path / "new")
    assert (made["made_at"], made["seq"]) == (None, 10)
    assert names(tmp_path / "new") == ["broker.db"]
    found, _ = await serve_once(tmp_path / "new", "n1")
    assert len(found) == 10


def test_a_file_that_is_not_whole_without_another_is_refused(tmp_path: Path) -> None:
    storage = make_store(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"not whole without 'broker\.db-wal' beside it"):
        put_back(tmp_path / "data" / "broker.db", tmp_path / "new")
    storage.close()
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE log SET data = x'00' WHERE idx = 4", "entry 4 is not what was written"),
        ("UPDATE log SET term = 2 WHERE idx = 12", "entry 12 is not what was written"),
        ("DELETE FROM log WHERE idx = 4", "entry 4, of which messages are retained, is not there"),
        ("DELETE FROM log WHERE idx = 1", "its entries is not what was saved"),
        ("DELETE FROM log WHERE idx = 12", "its index is not what was saved"),
        ("UPDATE snapshot SET data = x'00'", "the snapshot at 6 is not what was written"),
        ("UPDATE meta SET value = 'n2' WHERE key = 'node_id'", "its identity, term or vote is not"),
        ("UPDATE meta SET value = 9 WHERE key = 'term'", "its identity, term or vote is not"),
        (
            "UPDATE meta SET (key, value) = (iif(key = 'term', 'term', 'gone'), 9) "
            "WHERE key IN ('term', 'checksum')",
            "its term is not what was saved",
        ),
        ("UPDATE meta SET value = '{' WHERE key = 'backup'", "its note 'backup' is not"),
        ("UPDATE meta SET value = '1' WHERE key = 'backup'", "is not what was saved"),
        ("UPDATE meta SET value = 'x' WHERE key = 'format'", "its format is not"),
        ("DELETE FROM meta WHERE key = 'vote'", r"its identity \(without vote\)"),
    ],
)
def test_a_damaged_backup_is_refused_and_nothing_is_left(
    file: Path, tmp_path: Path, statement: str, words: str
) -> None:
    change(file, statement)
    with pytest.raises(StorageError, match=rf"the backup '.*/backup\.db' is damaged: .*{words}"):
        put_back(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError):
        put_back(file, tmp_path / "empty")
    assert names(tmp_path / "empty") == []


def put_back_or_refuse(file: Path, folder: Path, rows: tuple[Any, ...]) -> bool:
    """Whether it was refused, and left nothing; otherwise it has the same ``rows``."""
    told = None
    try:
        put_back(file, folder)
    except ReplBrokerError as error:
        told = str(error)
    if told is not None:
        assert "backup.db'" in told
        assert ".partial" not in told
        assert not folder.exists()
        return True
    log, snapshot = everything(folder / "broker.db")
    assert (log[:-1], snapshot) == rows, "but for the new membership"
    shutil.rmtree(folder)
    return False


def test_a_truncated_backup_is_refused_at_every_length(file: Path, tmp_path: Path) -> None:
    """Even if it lacks but zeros at the end, which SQLite takes for granted."""
    whole, rows = file.read_bytes(), everything(file)
    for length in {*range(0, len(whole), 512), len(whole) - 1}:
        file.write_bytes(whole[:length])
        assert put_back_or_refuse(file, tmp_path / "new", rows)


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_found_or_changes_nothing(file: Path, tmp_path: Path, seed: int) -> None:
    """Wherever it is: in an entry, the identity, SQLite's own structures, or between them."""
    chance = random.Random(seed)
    whole, rows = file.read_bytes(), everything(file)
    in_use = [place for place, byte in enumerate(whole) if byte]  # most of its pages is empty
    refused = 0
    for each in range(50):
        damaged = bytearray(whole)
        place = chance.choice(in_use) if each % 2 else chance.randrange(len(whole))
        damaged[place] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        refused += put_back_or_refuse(file, tmp_path / "new", rows)
    assert refused


def test_a_backup_of_a_newer_version_is_refused(file: Path, used: Path, tmp_path: Path) -> None:
    change(file, "UPDATE meta SET value = 99 WHERE key = 'format'")
    with pytest.raises(ConfigError, match=r"backup\.db' was written by a newer repl-broker"):
        put_back(file, tmp_path / "new")
    unknown = Entry(13, 3, EntryKind.DATA, b"\x92\x01\x91\x63")  # a command numbered 99
    storage = SqliteStorage(used, "n1")
    storage.write(WriteBatch((unknown,)))
    storage.close()
    with pytest.raises(StorageError, match=r"cannot be read by this version: .* kind 99"):
        save(used, tmp_path / "b.db")


@pytest.mark.parametrize("content", [b"", b"hello" * 1000])
def test_a_file_that_is_no_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "b.db"
    file.write_bytes(content)
    with pytest.raises(ReplBrokerError, match=r"the backup '.*/b\.db'"):
        put_back(file, tmp_path / "new")
    with pytest.raises(ConfigError, match="there is no file"):
        put_back(tmp_path / "none", tmp_path / "new")
    assert names(tmp_path) == ["b.db"]


# --- permissions ---


@pytest.fixture
def nobody() -> Iterator[Callable[[], None]]:
    """Root may read anything: from its call on, the test is not root."""
    user = os.geteuid()
    yield lambda: os.seteuid(65534) if user == 0 else None
    os.seteuid(user)


def test_what_may_not_be_read_or_written_is_told_in_a_line(
    used: Path, file: Path, tmp_path: Path, nobody: Callable[[], None]
) -> None:
    used.chmod(0)
    file.chmod(0)
    (tmp_path / "closed").mkdir(mode=0o500)
    nobody()
    with pytest.raises(ConfigError, match="cannot be read: Permission denied; run this as"):
        Recovery(used)
    with pytest.raises(ReplBrokerError, match="Permission denied"):
        save(used, tmp_path / "b.db")
    with pytest.raises(ReplBrokerError, match="Permission denied"):
        save(used, tmp_path / "closed" / "b.db")
    with pytest.raises(StorageError, match=r"cannot be restored to .*: Permission denied"):
        put_back(file, tmp_path / "closed" / "new")


# --- checking ---


def test_history_that_was_dropped_for_good_is_not_missed(tmp_path: Path) -> None:
    storage = make_store(tmp_path / "data")
    storage.drop([1, 2])  # nothing in them is retained
    assert check(storage, "the store").entries == 10
    storage.drop([3])
    with pytest.raises(StorageError, match="entry 3, of which messages are retained, is not there"):
        check(storage, "the store")
    storage.close()


def test_a_snapshot_of_another_format_is_not_taken_for_damage(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path, "n1")
    storage.save_snapshot(Snapshot(5, 1, b"\x91\x63"))
    with pytest.raises(StorageError, match=r"cannot be read by this version: .* format 99"):
        check(storage, "the store")
    storage.close()


def test_a_copy_is_one_file_while_it_is_written_to(file: Path) -> None:
    work = file.parent
    file.rename(work / "broker.db")
    storage = StoreCopy(work, "the copy")
    storage.write_notes({"x": [1]})
    assert storage.note("x") == [1]
    assert names(work) == ["broker.db"]
    storage.close()
