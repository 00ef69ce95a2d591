"""One file that has all of a store: how it is made beside a running node, and restored.

    backup    the store ─ copy in one read transaction ─▶ check ─▶ seal ─▶ sync ─▶ FILE
    restore   FILE ─ copy ─▶ check, and against the seal ─▶ found a cluster ─▶ sync ─▶ the store

Both work in a folder of their own beside what they make, which is put in place
in one step at the end: a FILE or a store that has its name is whole. To check
is to do what a node does when it starts, and to read the retained history
below the snapshot, too.

The seal is a note in the copy of what was found in it, so that a restore
notices what has no checksum: entries missing at the end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from repl_broker.errors import ConfigError, StorageError
from repl_broker.files import give_to_owner, make_file, make_folder, sync, write_file
from repl_broker.founding import Standing, found, standing_of
from repl_broker.message import time_text
from repl_broker.raft.log import EntryKind, Member, Membership
from repl_broker.soundness import load_sound
from repl_broker.state import BrokerState
from repl_broker.storage import (
    STORE_NAME,
    Identity,
    Loaded,
    SqliteStorage,
    StoreCopy,
    copy_store,
)
from repl_broker.wire import decode_entry

__all__ = ["SEAL", "Contents", "backed_up_at", "backup", "check", "restore"]

log = logging.getLogger(__name__)

SEAL: Final = "backup"  # the note in a copy
NOTE_NAME: Final = "last-backup"  # in the data directory: when it was made, in milliseconds
NOTE_BYTES_MAX: Final = 32
PIECE_BYTES: Final = 1 << 20  # of history, checked at a time


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a store, all of which was found sound."""

    standing: Standing
    entries: int  # with those below the snapshot, of which something is retained
    seq: int  # of the newest message, once all entries are applied

    def as_json(self) -> dict[str, Any]:
        """For people, and for the seal."""
        identity = self.standing.identity
        return {
            "node": identity.node_id,
            "cluster_id": identity.cluster_id,
            "epoch": identity.epoch,
            "term": self.standing.term,
            "index": self.standing.last_index,
            "seq": self.seq,
            "entries": self.entries,
        }


# --- checking -----------------------------------------------------------------------------


def check(storage: SqliteStorage, called: str) -> Contents:
    """Load all of it, as a node does at its start, and the history below the snapshot.

    Raises StorageError for what is damaged, missing or cannot be read by this version.
    """
    loaded, state = load_sound(storage)
    try:
        standing = standing_of(storage.identity, loaded)
        below = _check_history(storage, state)
        _apply(state, loaded)
    except (StorageError, OSError, sqlite3.Error):
        raise
    except Exception as error:  # noqa: BLE001
        # A file that somebody else has made can have a sound checksum over anything: what then
        # goes wrong, in whatever way, is the file's fault.
        raise StorageError(
            f"{called} cannot be read by this version: {str(error) or type(error).__name__}"
        ) from None
    return Contents(standing, below + len(loaded.entries), state.seq)


def _check_history(storage: SqliteStorage, state: BrokerState) -> int:
    """Read the entries that the snapshot covers, and count them."""
    count, after = 0, 0
    while piece := storage.history(after, state.applied_index, PIECE_BYTES):
        count, after = count + len(piece), piece[-1].index
    return count


def _apply(state: BrokerState, loaded: Loaded) -> None:
    for entry in loaded.entries:
        is_data = entry.kind is EntryKind.DATA
        state.apply(entry.index, *(decode_entry(entry.data) if is_data else (0, [])))


# --- backup ---------------------------------------------------------------------------------


def backup(folder: Path, file: Path, *, force: bool, now_ms: int) -> dict[str, Any]:
    """Copy the store in ``folder`` to ``file``, whether its node runs or not; what was saved.

    Raises ConfigError where one of the two cannot be used, StorageError where the
    copy fails or is not sound. Nothing is then left, and what ``file`` was stays.
    """
    called = f"the store {str(folder / STORE_NAME)!r}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_told(f"{called} cannot be saved to {str(file)!r}"))
        _check_target(folder, file, force)
        copy = stack.enter_context(_working(file)) / STORE_NAME
        make_file(copy)
        copy_store(folder, copy)
        with contextlib.closing(StoreCopy(copy.parent, called)) as storage:
            seal = {**check(storage, called).as_json(), "time": time_text(now_ms)}
            storage.write_notes({SEAL: seal})
        sync(copy)
        size = copy.stat().st_size
        _put_in_place(copy, file, force)
    _note_backup(folder, now_ms)
    return {"file": str(file), **seal, "bytes": size}


def backed_up_at(folder: Path) -> float:
    """When the last backup of the store in ``folder`` began, in Unix time; 0 if none is known."""
    try:
        return int((folder / NOTE_NAME).read_bytes()[:NOTE_BYTES_MAX]) / 1000
    except (OSError, ValueError):
        return 0


def _note_backup(folder: Path, began_ms: int) -> None:
    """For the node to tell; a backup is none the worse where this cannot be written."""
    note = folder / NOTE_NAME
    try:
        write_file(note, f"{began_ms}\n")
    except OSError as error:
        log.warning(
            "the backup is not noted, so the node does not know of it file=%r error=%r",
            str(note),
            error.strerror or str(error),
        )


def _check_target(folder: Path, file: Path, force: bool) -> None:
    if file.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{str(file)!r} is in the data directory {str(folder)!r}; save the backup elsewhere"
        )
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {str(file.parent)!r} to save the backup in")
    if file.is_dir():
        raise ConfigError(f"{str(file)!r} is a folder; name a file in it")
    if os.path.lexists(file) and not force:
        raise _exists(file)


def _exists(file: Path) -> ConfigError:
    return ConfigError(f"{str(file)!r} exists already; name another file, or use --force")


# --- restore --------------------------------------------------------------------------------


def restore(
    file: Path, folder: Path, node_id: str | None, *, now_ms: int, apart: bool = False
) -> dict[str, Any]:
    """Make a data directory of a backup, of a cluster of its own; what became of it.

    The node is ``node_id``, or the one of the backup. If ``apart``, it serves even where
    the cluster of the backup lives. Raises ConfigError where one
    of the two paths cannot be used, StorageError for a backup that is not sound.
    Nothing is then left in ``folder``.
    """
    called = f"the backup {str(file)!r}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_told(f"{called} cannot be restored to {str(folder)!r}"))
        _check_backup(file)
        stack.enter_context(_new_folder(folder))
        copy = stack.enter_context(_working(folder / STORE_NAME)) / STORE_NAME
        make_file(copy)
        shutil.copyfile(file, copy)  # which keeps the mode of what is there
        with contextlib.closing(StoreCopy(copy.parent, called, "use another backup")) as storage:
            storage.check_file()
            contents = check(storage, called)
            made_at = _check_seal(storage, contents, called)
            record = _found_alone(storage, contents.standing, node_id, now_ms, apart)
        sync(copy)
        _put_in_place(copy, folder / STORE_NAME, force=False)
        sync(folder.parent)
    return {"data_dir": str(folder), "made_at": made_at, "seq": contents.seq, **record}


def _check_backup(file: Path) -> None:
    if not file.is_file():
        raise ConfigError(f"there is no file {str(file)!r}")
    log = file.with_name(f"{file.name}-wal")
    if log.exists() and log.stat().st_size:
        raise ConfigError(
            f"{str(file)!r} is not whole without {log.name!r} beside it, so it is no backup but "
            "the store of a data directory; make a backup of that with 'repl-broker backup'"
        )


def _check_seal(storage: SqliteStorage, contents: Contents, called: str) -> str | None:
    """When the backup was made; None for one that was made by other means, and has no seal."""
    seal = storage.note(SEAL)
    if seal is None:
        return None
    for name, found_now in contents.as_json().items():
        if not isinstance(seal, dict) or seal.get(name) != found_now:
            raise StorageError(
                f"{called} is damaged: its {name} is not what was saved; use another backup"
            )
    return str(seal.get("time"))


def _found_alone(
    storage: SqliteStorage, old: Standing, node_id: str | None, now_ms: int, apart: bool
) -> dict[str, Any]:
    identity = Identity.draw(node_id or old.identity.node_id)
    alone = Membership((Member(identity.node_id, "", "", voter=True),))  # as of a single node
    what: dict[str, Any] = {"how": "restore", "now_ms": now_ms, "apart": apart}
    return found(storage, old, identity, alone, notes={SEAL: None}, **what)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make it, or find it empty; it is as before if anything fails."""
    is_new = not folder.exists()
    if is_new:
        make_folder(folder)
    elif not folder.is_dir() or any(folder.iterdir()):
        what = "is not empty" if folder.is_dir() else "is not a folder"
        raise ConfigError(f"{str(folder)!r} {what}; name a new one with --data-dir")
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


# --- files ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what has failed, where the system or SQLite only says why."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}") from None
    except sqlite3.Error as error:
        raise StorageError(f"{what}: {error}") from None


@contextlib.contextmanager
def _working(target: Path) -> Iterator[Path]:
    """A folder beside ``target``, for this user only; it goes, with what is in it."""
    with TemporaryDirectory(
        prefix=f".{target.name}.", suffix=".partial", dir=target.parent
    ) as name:
        yield Path(name)


def _put_in_place(copy: Path, target: Path, force: bool) -> None:
    """Give the file its name, at once. Raises ConfigError for a name that is taken.

    Where root has made it, it is the folder's owner's: the working folder was root's.
    """
    give_to_owner(copy, target.parent)
    if force:
        copy.replace(target)
    else:
        try:
            os.link(copy, target)
        except FileExistsError:
            raise _exists(target) from None
        except OSError:  # the file system has no links
            if os.path.lexists(target):
                raise _exists(target) from None
            copy.replace(target)
    sync(target.parent)
