"""What a node keeps on disk: its identity, the log, the newest snapshot.

One protocol, two stores: SQLite for nodes, memory for simulations. The methods
block, so the replica calls them in a thread, one writer at a time; reading may
go on beside a write.

In the SQLite store a write is one transaction in WAL mode with
``synchronous=FULL``, or, if it only adds a few entries, one record of a journal
that is moved into SQLite later, many at a time (``journal.py``). Either way it
is on the disk when ``write`` returns. After any error nothing may be
acknowledged that is not already: the store then refuses everything (what a
failed fsync left behind is unknown). Every row has a checksum of its own, so
that bit rot is told from a torn tail, which SQLite drops by itself. It would
take damage within its write-ahead log for such a tail, so that is looked
through before SQLite sees it (``wal.py``).

The log outlives its compaction: an entry that a snapshot covers stays as long
as the state machine retains a message of it, since history is read from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import math
import os
import secrets
import sqlite3
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from zlib import crc32

from repl_broker.errors import ConfigError, ReplBrokerError, StorageError, StoreLockedError
from repl_broker.files import make_file, make_folder, sync, tighten
from repl_broker.forgotten import Forgotten, drop_forgotten, has_table
from repl_broker.journal import FIRST_SHAPE, SALT_BYTES, Journal, Shape, shape
from repl_broker.parts import count_of, head, parts_in, parts_of
from repl_broker.raft.log import Entry, EntryKind, HardState, Snapshot, WriteBatch
from repl_broker.wal import is_damaged

__all__ = [
    "JOURNAL_NAME",
    "PAGE_BYTES",
    "STORE_NAME",
    "Identity",
    "Loaded",
    "MemoryStorage",
    "SqliteStorage",
    "Storage",
    "StoreCopy",
    "Sums",
    "copy_store",
    "hold",
    "require_store",
    "sums_of",
]

log = logging.getLogger(__name__)

STORE_NAME: Final = "broker.db"  # of the database, in the data directory
JOURNAL_NAME: Final = "broker.journal"
LOCK_NAME: Final = "lock"
FORMAT: Final = 2  # 1 had no journal
PARTS_FORMAT: Final = 3  # … and the state is in parts: only while it is too large for a row
# Of a database that is made now; one that is there keeps what it has. An entry of some megabytes
# is written, and checkpointed, page by page: in SQLite's own 4096 bytes that takes twice as long.
PAGE_BYTES: Final = 16 << 10
WAL_BYTES_MAX: Final = 64 << 20  # the writer itself then waits for a whole checkpoint
BUSY_MS: Final = 5000  # for which another program's lock on the file is waited for
REWRITE_BYTES: Final = 1 << 20  # of a write-ahead log at a time
COPY_STEPS: Final = 100  # of SQLite, between two chances for a copy to be interrupted
COPY_ATTEMPTS: Final = 5  # to read a journal that a node writes at the same time
GAPS_MAX: Final = 5000  # between entries that are kept, looked through at a time
META_KEYS: Final = (  # that have a checksum together; the others are notes
    "format",
    "cluster_id",
    "epoch",
    "node_id",
    "incarnation",
    "adopted",
    "term",
    "vote",
)
REMEDY: Final = (
    "if others of its cluster run, 'repl-broker cluster rejoin' has them send theirs; else restore "
    "it from a backup, or start with an empty data directory"
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this store belongs to; drawn once, when it is made."""

    cluster_id: str  # 32 hexadecimal digits
    epoch: str  # 8 hexadecimal digits: the first part of every event id
    node_id: str
    incarnation: str  # 16 hexadecimal digits: a node that lost its data has another one
    adopted: bool = False  # by a cluster that was there before the node

    @classmethod
    def draw(cls, node_id: str) -> Identity:
        token = secrets.token_hex
        return cls(token(16), token(4), node_id, token(8))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a node finds when it starts."""

    hard_state: HardState
    snapshot: Snapshot | None
    entries: list[Entry]  # above the snapshot, without holes


class Sums(NamedTuple):
    """The checksums of a snapshot. Those of a large state take longer than to write a part."""

    data: int
    whole: int


class Storage(Protocol):
    """What the replica asks of a store. Every method may raise StorageError."""

    @property
    def identity(self) -> Identity: ...

    def load(self) -> Loaded:
        """What was durable when the node last stopped, however it stopped."""
        ...

    def write(self, *batches: WriteBatch) -> None:
        """Make them durable, in order, all or none; they are on disk when this returns."""
        ...

    def is_quick(self, *batches: WriteBatch) -> bool:
        """Whether ``write`` will take no longer than the disk does for one small write."""
        ...

    def read(self, indexes: Sequence[int]) -> dict[int, bytes]:
        """The data of those of the entries that are there."""
        ...

    def missing(self, indexes: Sequence[int]) -> int | None:
        """The first of these entries (ascending) that is not there; None if all are."""
        ...

    def damaged(self, fault: str) -> StorageError:
        """The error to raise for what cannot be in a sound store."""
        ...

    def unreadable(self, why: str) -> StorageError:
        """The error to raise for what another version may have written."""
        ...

    def save_part(self, number: int, data: bytes) -> None:
        """Save a part of the state that is saved next; ``number`` counts from 0."""
        ...

    def save_snapshot(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        """Replace the snapshot; it is on disk when this returns.

        Parts of a large state that were saved before are not written again.
        """
        ...

    def history(self, after: int, upto: int, bytes_max: int) -> list[Entry]:
        """Entries above ``after`` and not above ``upto``, in order, at least one if there is
        one, of at most so much data: what goes with a snapshot to a peer."""
        ...

    def stage_part(self, number: int, data: bytes) -> None:
        """Stage a part of the state that is staged next; ``number`` counts from 0."""
        ...

    def begin_install(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        """Stage a snapshot that a peer sends; what was staged before is forgotten."""
        ...

    def renew_install(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        """Stage a newer snapshot; the entries that were staged before belong to it, too."""
        ...

    def stage(self, entries: Sequence[Entry]) -> None:
        """Stage entries that the staged snapshot covers."""
        ...

    def unstage(self) -> None:
        """Forget what is staged, if anything is. What it took is to be discarded."""
        ...

    def install(self) -> None:
        """Put what is staged in the place of the log and the snapshot, at once or not at all.

        It takes no longer for a large log than for a small one. What the old one took is to
        be discarded.
        """
        ...

    @property
    def has_forgotten(self) -> bool:
        """Whether there is something to be discarded."""
        ...

    def discard(self, bytes_max: int) -> bool:
        """Remove about this much of what was forgotten; whether there may be more."""
        ...

    def adopt(self, cluster_id: str, epoch: str) -> None:
        """Belong to this cluster from now on; only a store without entries may."""
        ...

    def note(self, name: str) -> Any:
        """What was noted under this name, beside all else; or None."""
        ...

    def write_notes(self, notes: Mapping[str, object]) -> None:
        """They are on disk when this returns. A note that is None goes."""
        ...

    def drop(self, indexes: Sequence[int], bytes_max: float = math.inf) -> int:
        """Remove entries that a snapshot covers and nothing needs: of these (ascending), the first
        of at most this many bytes, and one at least. Of how many that is done."""
        ...

    def drop_others(
        self,
        upto: int,
        keep: Sequence[int],
        after: int,
        entries_max: int,
        bytes_max: float = math.inf,
    ) -> int:
        """Remove entries above ``after`` and up to ``upto`` but those in ``keep`` (ascending),
        at most this many, of at most this many bytes, and one at least; up to where that is
        done."""
        ...

    def replace(self, entries: Mapping[int, bytes]) -> None:
        """Give entries that a snapshot covers other data."""
        ...

    def tidy(self) -> None:
        """Housekeeping that may run beside a write; called now and then."""
        ...

    def free_bytes(self) -> int:
        """By how much it may grow, as far as is known: the disk's free space, and what it has
        to spare within its own files, or will have once that is discarded."""
        ...

    @property
    def bytes(self) -> int:
        """Size on disk."""
        ...

    def close(self) -> None: ...


class MemoryStorage:
    """A store that lasts as long as the object: for tests and simulations."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.entries: dict[int, Entry] = {}
        self.hard_state = HardState()
        self.snapshot: Snapshot | None = None
        self.staged: tuple[Snapshot, dict[int, Entry]] | None = None
        self.notes: dict[str, object] = {}

    def load(self) -> Loaded:
        start = self.snapshot.index if self.snapshot else 0
        entries = [self.entries[i] for i in sorted(self.entries) if i > start]
        return Loaded(self.hard_state, self.snapshot, entries)

    def write(self, *batches: WriteBatch) -> None:
        for batch in batches:
            if batch.truncate_from is not None:
                for index in [i for i in self.entries if i >= batch.truncate_from]:
                    del self.entries[index]
            self.entries.update((entry.index, entry) for entry in batch.entries)
            self.hard_state = batch.hard_state or self.hard_state

    def is_quick(self, *batches: WriteBatch) -> bool:
        return True

    def read(self, indexes: Sequence[int]) -> dict[int, bytes]:
        return {i: self.entries[i].data for i in indexes if i in self.entries}

    def missing(self, indexes: Sequence[int]) -> int | None:
        return next((index for index in indexes if index not in self.entries), None)

    def damaged(self, fault: str) -> StorageError:
        return StorageError(f"the store in memory is damaged: {fault}")

    def unreadable(self, why: str) -> StorageError:
        return StorageError(f"the store in memory cannot be read by this version: {why}")

    def save_part(self, number: int, data: bytes) -> None:
        pass

    def save_snapshot(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        self.snapshot = snapshot

    def history(self, after: int, upto: int, bytes_max: int) -> list[Entry]:
        rows = (self.entries[i] for i in sorted(self.entries) if after < i <= upto)
        return _first_bytes(rows, bytes_max)

    def stage_part(self, number: int, data: bytes) -> None:
        pass

    def begin_install(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        self.staged = (snapshot, {})

    def renew_install(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        assert self.staged is not None
        self.staged = (snapshot, self.staged[1])

    def stage(self, entries: Sequence[Entry]) -> None:
        assert self.staged is not None
        self.staged[1].update((entry.index, entry) for entry in entries)

    def unstage(self) -> None:
        self.staged = None

    def install(self) -> None:
        assert self.staged is not None
        self.snapshot, self.entries = self.staged
        self.staged = None

    @property
    def has_forgotten(self) -> bool:
        return False

    def discard(self, bytes_max: int) -> bool:
        return False

    def adopt(self, cluster_id: str, epoch: str) -> None:
        old = self.identity
        self.identity = Identity(cluster_id, epoch, old.node_id, old.incarnation, adopted=True)

    def drop(self, indexes: Sequence[int], bytes_max: float = math.inf) -> int:
        found = [(i, len(self.entries[i].data)) for i in indexes if i in self.entries]
        done = _first_of(indexes, found, bytes_max)
        for index in indexes[:done]:
            self.entries.pop(index, None)
        return done

    def drop_others(
        self,
        upto: int,
        keep: Sequence[int],
        after: int,
        entries_max: int,
        bytes_max: float = math.inf,
    ) -> int:
        kept = set(keep)
        others = [i for i in sorted(self.entries) if after < i <= upto and i not in kept]
        done = self.drop(others[:entries_max], bytes_max) if others else 0
        return others[done - 1] if len(others) > done else upto

    def replace(self, entries: Mapping[int, bytes]) -> None:
        for index, data in entries.items():
            old = self.entries[index]
            self.entries[index] = Entry(index, old.term, old.kind, data)

    def note(self, name: str) -> Any:
        return self.notes.get(name)

    def write_notes(self, notes: Mapping[str, object]) -> None:
        self.notes.update(notes)

    def tidy(self) -> None:
        pass

    def free_bytes(self) -> int:
        return 1 << 60

    @property
    def bytes(self) -> int:
        return sum(len(entry.data) for entry in self.entries.values())

    def close(self) -> None:
        pass


_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE log (idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, kind INTEGER NOT NULL,
                  data BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), idx INTEGER NOT NULL,
                       term INTEGER NOT NULL, data BLOB NOT NULL, membership BLOB NOT NULL,
                       checksum INTEGER NOT NULL);
CREATE TABLE staged_log (idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, kind INTEGER NOT NULL,
                         data BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE staged_snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), idx INTEGER NOT NULL,
                              term INTEGER NOT NULL, data BLOB NOT NULL,
                              membership BLOB NOT NULL, checksum INTEGER NOT NULL);
"""


_ROW: Final = "(?, ?, ?, ?, ?)"
_INSERT: Final = f"INSERT INTO log VALUES {_ROW}"  # noqa: S608  # nosec B608  # of constants
_INSERT_MANY: Final = 64  # rows by one statement: between two, another thread may take its time
_INSERT_ROWS: Final = f"INSERT INTO log VALUES {', '.join([_ROW] * _INSERT_MANY)}"  # noqa: S608  # nosec B608
_CREATE: Final = {text.split()[2]: text for text in _SCHEMA.split(";\n") if text.strip()}
_PARTS: Final = ("snapshot_part", "staged_snapshot_part")  # there if the state is in parts
_UNSTAGED_BYTES: Final = "unstaged_bytes"  # the note of what all else took before the staging
_FORGOTTEN_BYTES: Final = "forgotten_bytes"  # the note of what is put aside
_LOOKED_FOR: Final = 10_000  # entries by one statement
_SALT: Final = "journal"  # the key in meta: which of the journal's records count
_SHAPE: Final = "journal_shape"  # and what reading them rests on, with the salt that it is said of


class SqliteStorage:
    """The store of a real node: one SQLite database in the data directory.

    Opening it takes a lock that lasts until ``close`` or the end of the
    process. Raises ConfigError for a directory that cannot be used, is another
    node's, or was written by a newer version; StoreLockedError when a running
    node has it; StorageError when it is damaged.

    Without a ``node_id`` it is opened as whoever's it is, and must be there.
    ``called`` and ``remedy`` are for messages, where ``folder`` says nothing to
    those who read them.
    """

    _journal_mode = "WAL"

    def __init__(
        self,
        folder: Path,
        node_id: str | None,
        *,
        called: str | None = None,
        remedy: str = REMEDY,
    ) -> None:
        self._folder = folder
        self._path = folder / STORE_NAME
        self._called = called or f"the store {str(self._path)!r}"
        self._where = called or f"the data directory {str(folder)!r}"
        self._remedy = remedy
        self._failed: str | None = None
        self._is_offline = node_id is None  # a command, and no node that is to run
        if node_id is None:
            require_store(folder)
        self._wal_bytes_max = WAL_BYTES_MAX
        self._closing = contextlib.ExitStack()
        self._journal: Journal | None = None
        # What is in the journal alone, by index, in order. It grows in place, for threads that
        # read; what is moved goes with the whole dictionary, which they may still hold.
        self._pending: dict[int, Entry] = {}
        self._read_lock = threading.Lock()
        # Of parts that are saved ahead, by table: how many bytes, and their checksum.
        self._prepared: dict[str, tuple[int, int]] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self._closing.close)
            self._prepare_folder()
            self._lock()
            self._keep_from_others()
            with self._damage_told():
                _check_wal(self._path, self._called, self._remedy)
                self._writer = self._connect()
                self._reader = self._connect()
                self._tidier = self._connect()
                self.identity = self._identify(node_id)
                self._forgotten = Forgotten(self._writer, int(self.note(_FORGOTTEN_BYTES) or 0))
                self._open_journal()
            undo.pop_all()

    # --- opening ---

    def _prepare_folder(self) -> None:
        try:
            make_folder(self._folder)
            probe = self._folder / f".probe-{os.getpid()}"
            make_file(probe)
            probe.unlink()
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ConfigError:
        remedy = (
            "run this as the node's user, or as root"
            if self._is_offline
            else "choose another with --data-dir or give this user the right to write there"
        )
        return ConfigError(
            f"the data directory {str(self._folder)!r} cannot be written: "
            f"{error.strerror or error}; {remedy}"
        )

    def _lock(self) -> None:
        try:
            lock = hold(self._folder, to_serve=not self._is_offline)
        except OSError as error:  # another user's, from an earlier run
            raise self._unwritable(error) from None
        self._closing.callback(os.close, lock)

    def _keep_from_others(self) -> None:
        """The store's files are for this user alone: SQLite gives those that it makes beside the
        database the same mode. Those of a version that left that to the umask are tightened."""
        beside = (f"{STORE_NAME}-wal", f"{STORE_NAME}-shm", f"{STORE_NAME}-journal")
        names = (STORE_NAME, *beside, JOURNAL_NAME, LOCK_NAME)
        try:
            make_file(self._path)
            was_open = tighten(self._folder / name for name in names)
        except PermissionError:
            log.warning(
                "others may read the store, and this user cannot change that folder=%r remedy=%r",
                str(self._folder),
                "chmod 600 its files",
            )
        except OSError as error:
            raise self._unwritable(error) from None
        else:
            if was_open:
                files = ",".join(path.name for path in was_open)
                log.warning("others could read the store; not any more files=%r", files)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._closing.callback(connection.close)
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_mode={self._journal_mode}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        connection.execute("PRAGMA wal_autocheckpoint=0")  # tidy() does it, off the commit path
        # Debian's SQLite overwrites what is deleted, so that dropping a gigabyte writes one: on a
        # disk that is nearly full that is its end. FAST does so only where it costs no write.
        connection.execute("PRAGMA secure_delete=FAST")
        return connection

    def _identify(self, node_id: str | None) -> Identity:
        if not _is_store(self._writer):
            if node_id is None:
                raise ConfigError(f"{self._called} was not made by repl-broker")
            identity = Identity.draw(node_id)
            with self._transaction(self._writer):
                for statement in _statements(_SCHEMA):
                    self._writer.execute(statement)
                self._put_meta(
                    format=FORMAT,
                    cluster_id=identity.cluster_id,
                    epoch=identity.epoch,
                    node_id=node_id,
                    incarnation=identity.incarnation,
                    term=0,
                    vote=None,
                )
                _put_salt(self._writer, b"")
            return identity
        meta = self._meta()
        missing = {"format", "cluster_id", "epoch", "node_id", "term", "vote"} - meta.keys()
        self._check(not missing, f"its identity (without {', '.join(sorted(missing))})")
        self._check(isinstance(meta["format"], int) and meta["format"] > 0, "its format")
        where = self._where
        if meta["format"] > PARTS_FORMAT:
            raise ConfigError(
                f"{where} was written by a newer repl-broker (format {meta['format']}, this one "
                f"reads up to {PARTS_FORMAT}); use that version, or another data directory"
            )
        self._check_meta(meta)
        if meta["node_id"] != node_id and node_id is not None:
            raise ConfigError(
                f"{where} belongs to node {meta['node_id']!r}, not to {node_id!r}; "
                f"start with --node-id {meta['node_id']}, or choose another with --data-dir"
            )
        return Identity(
            meta["cluster_id"],
            meta["epoch"],
            meta["node_id"],
            meta["incarnation"],
            bool(meta.get("adopted")),
        )

    def _open_journal(self) -> None:
        """Move what the last node to run left in the journal into SQLite, and begin it anew."""
        path = self._folder / JOURNAL_NAME
        try:
            salt, old_shape = _journal(self._writer, self._where)
            if salt:
                entries = Journal.read(path, salt, old_shape)
                self._pending = {entry.index: entry for entry in entries}
        except ValueError as error:
            raise self._damaged(f"its journal ({error})") from None
        try:
            if salt and old_shape != shape():  # the file is made anew: nothing may be in it then
                with self._transaction(self._writer):
                    self._move_pending(b"")
                self._pending, salt = {}, b""
            if not salt:
                Journal.make(path)
                sync(self._folder)  # the files' names must last, too
            with self._transaction(self._writer):
                salt = self._move_pending(secrets.token_bytes(SALT_BYTES))
                if self._meta()["format"] < FORMAT:
                    self._put_meta(format=FORMAT)
            self._pending = {}
            self._journal = Journal(path, salt)
            self._closing.callback(self._journal.close)
        except sqlite3.IntegrityError:
            raise self._damaged("its journal (it has entries that are not new)") from None
        except (sqlite3.OperationalError, OSError) as error:
            raise self._write_failed(error) from None

    def _move_pending(self, salt: bytes) -> bytes:
        """Within a transaction: the entries, and the salt of the journal without them."""
        _insert(self._writer, list(self._pending.values()))
        _put_salt(self._writer, salt)
        return salt

    def _end_journal(self) -> None:
        """A store that is closed is one file. Raises StorageError, OSError."""
        with self._writing() as writer:
            _put_salt(writer, b"")
        (self._folder / JOURNAL_NAME).unlink()

    @contextlib.contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except ReplBrokerError:
            raise
        except Exception as error:  # noqa: BLE001  a damaged schema has errors of every kind
            what = str(error) or type(error).__name__
            raise StorageError(f"{self._called} cannot be read: {what}; {self._remedy}") from None

    def _meta(self) -> dict[str, Any]:
        return dict(self._writer.execute("SELECT key, value FROM meta"))

    def _check_meta(self, meta: Mapping[str, Any]) -> None:
        """A store of before there was a checksum gets one with its next term or vote."""
        is_sound = "checksum" not in meta or meta["checksum"] == _meta_checksum(meta)
        self._check(is_sound, "its identity, term or vote")

    # --- the protocol ---

    def load(self) -> Loaded:
        with self._damage_told():
            meta = self._meta()
            self._check_meta(meta)
            row = self._writer.execute(
                "SELECT idx, term, data, membership, checksum FROM snapshot"
            ).fetchone()
            snapshot = None
            if row is not None:
                snapshot = self._sound_snapshot(self._whole(row))
            start = snapshot.index if snapshot else 0
            entries: list[Entry] = []
            rows = self._writer.execute(
                "SELECT idx, term, kind, data, checksum FROM log WHERE idx > ? ORDER BY idx",
                (start,),
            )
            with contextlib.closing(rows):
                for row in rows:
                    entry = self._sound_entry(row)
                    is_next = entry.index == start + len(entries) + 1
                    self._check(is_next, f"what should precede entry {entry.index}")
                    entries.append(entry)
            entries += self._pending.values()
        return Loaded(HardState(meta["term"], meta["vote"]), snapshot, entries)

    def _whole(self, row: tuple[int, int, bytes, bytes, int]) -> tuple[int, int, bytes, bytes, int]:
        """With the state itself, if that is in parts."""
        try:
            count = parts_in(row[2]) if isinstance(row[2], bytes) else None
        except (ValueError, KeyError, TypeError):
            raise self._damaged(f"the snapshot at {row[0]}") from None
        if count is None:
            return row
        parts = "SELECT data FROM snapshot_part WHERE number < ? ORDER BY number"
        found = [part for (part,) in self._writer.execute(parts, (count,))]
        self._check(all(isinstance(part, bytes) for part in found), f"the snapshot at {row[0]}")
        return row[0], row[1], b"".join(found), row[3], row[4]

    def _sound_snapshot(self, row: tuple[int, int, bytes, bytes, int]) -> Snapshot:
        with contextlib.suppress(TypeError):
            snapshot = Snapshot(*row[:4])
            if _snapshot_checksum(snapshot) == row[4]:
                return snapshot
        raise self._damaged(f"the snapshot at {row[0]}")

    def _check(self, sound: bool, what: str) -> None:
        if not sound:
            raise self._damaged(what)

    def _damaged(self, what: str) -> StorageError:
        return _damage(self._called, what, self._remedy)

    def write(self, *batches: WriteBatch) -> None:
        if self._failed is not None:
            raise StorageError(self._failed)
        if entries := self._for_journal(batches):
            self._write_journal(entries)
            return
        with self._writing() as writer:
            for batch in batches:
                self._put(writer, batch)

    def is_quick(self, *batches: WriteBatch) -> bool:
        return bool(self._for_journal(batches))

    def _for_journal(self, batches: Sequence[WriteBatch]) -> list[Entry]:
        """What these would write there; nothing if they are to be a transaction of SQLite's."""
        if self._journal is None or not all(batch.only_adds for batch in batches):
            return []
        entries = [entry for batch in batches for entry in batch.entries]
        return entries if self._journal.takes(entries) else []

    def _write_journal(self, entries: Sequence[Entry]) -> None:
        assert self._journal is not None
        try:
            self._journal.append(entries)
            self._pending.update((entry.index, entry) for entry in entries)
        except BaseException as error:  # as in _failing, which costs more than this
            failure = self._write_failed(error)
            if isinstance(error, Exception):
                raise failure from error
            raise

    def _put(self, writer: sqlite3.Connection, batch: WriteBatch) -> None:
        if batch.truncate_from is not None:
            writer.execute("DELETE FROM log WHERE idx >= ?", (batch.truncate_from,))
        _insert(writer, batch.entries)
        if batch.hard_state is not None:
            self._put_meta(term=batch.hard_state.term, vote=batch.hard_state.vote)

    def read(self, indexes: Sequence[int]) -> dict[int, bytes]:
        pending = self._pending  # before SQLite is asked: what is moved meanwhile is still in it
        found = {}
        with self._reading():
            for index in indexes:
                if index in pending:
                    found[index] = pending[index].data
                    continue
                row = self._reader.execute(
                    "SELECT term, kind, data, checksum FROM log WHERE idx = ?", (index,)
                ).fetchone()
                if row is not None:
                    found[index] = self._sound_entry((index, *row)).data
        return found

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """All that is read meanwhile is of one moment: of one log, whatever is installed."""
        with self._read_lock, self._damage_told():
            self._reader.execute("BEGIN")
            try:
                yield
            finally:
                self._reader.execute("COMMIT")

    def missing(self, indexes: Sequence[int]) -> int | None:
        pending = self._pending
        with self._reading():
            for start in range(0, len(indexes), _LOOKED_FOR):
                wanted = indexes[start : start + _LOOKED_FOR]
                rows = self._reader.execute(
                    "SELECT idx FROM log WHERE idx BETWEEN ? AND ?", (wanted[0], wanted[-1])
                )
                there = {index for (index,) in rows}
                lost = (i for i in wanted if i not in there and i not in pending)
                if (first := next(lost, None)) is not None:
                    return first
        return None

    def damaged(self, fault: str) -> StorageError:
        return StorageError(f"{self._called} is damaged: {fault}; {self._remedy}")

    def unreadable(self, why: str) -> StorageError:
        return StorageError(
            f"{self._called} cannot be read by this version: {why}; if a newer one wrote it, start "
            f"that one; else {self._remedy}"
        )

    def save_part(self, number: int, data: bytes) -> None:
        with self._writing() as writer:
            self._put_part(writer, "snapshot", number, data)

    def save_snapshot(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        with self._writing() as writer:
            self._put_snapshot(writer, "snapshot", snapshot, sums)

    def _put_snapshot(
        self, writer: sqlite3.Connection, table: str, snapshot: Snapshot, sums: Sums | None
    ) -> None:
        """In one row, or in parts: in its place at once with the last of them."""
        parts, data = f"{table}_part", snapshot.data
        sums = sums or sums_of(snapshot)
        self._put_aside(parts)
        if count := count_of(data):
            if self._prepared.pop(table, None) != (len(data), sums.data):
                for number, part in enumerate(parts_of(data)):
                    self._put_part(writer, table, number, part)
                del self._prepared[table]
            writer.execute(f"ALTER TABLE {parts}_new RENAME TO {parts}")
            data = head(count)
        else:
            self._put_aside(f"{parts}_new")  # of a state that was given up
        row = (snapshot.index, snapshot.term, data, snapshot.membership)
        writer.execute(
            f"REPLACE INTO {table} VALUES (1, ?, ?, ?, ?, ?)",  # noqa: S608  # nosec B608
            (*row, sums.whole),
        )
        self._note_format(writer)

    def _put_part(self, writer: sqlite3.Connection, table: str, number: int, data: bytes) -> None:
        new = f"{table}_part_new"
        if number == 0:
            self._put_aside(new)
            writer.execute(f"CREATE TABLE {new} (number INTEGER PRIMARY KEY, data BLOB NOT NULL)")
            self._prepared[table] = (0, 0)
        writer.execute(f"INSERT INTO {new} VALUES (?, ?)", (number, data))  # noqa: S608  # nosec B608
        size, checksum = self._prepared[table]
        self._prepared[table] = (size + len(data), crc32(data, checksum))

    def _note_format(self, writer: sqlite3.Connection) -> None:
        """Versions that do not know of parts read what has none."""
        has_parts = any(has_table(writer, parts) for parts in _PARTS)
        wanted = PARTS_FORMAT if has_parts else FORMAT
        if self._meta()["format"] != wanted:
            self._put_meta(format=wanted)

    def _put_aside(self, table: str, size: int = 0) -> None:
        """Within a transaction: it is to be discarded, and is not there any more."""
        before = self._forgotten.bytes
        self._forgotten.put_aside(table, size)
        if before != self._forgotten.bytes:
            self._note_forgotten()

    def _note_forgotten(self) -> None:
        self._put_notes(self._writer, {_FORGOTTEN_BYTES: self._forgotten.bytes or None})

    def history(self, after: int, upto: int, bytes_max: int) -> list[Entry]:
        pending = list(self._pending.values())
        with self._read_lock, self._damage_told():
            rows = self._reader.execute(
                "SELECT idx, term, kind, data, checksum FROM log "
                "WHERE idx > ? AND idx <= ? ORDER BY idx",
                (after, upto),
            )
            try:
                return _first_bytes(
                    _with(pending, map(self._sound_entry, rows), after, upto), bytes_max
                )
            finally:
                rows.close()

    def _sound_entry(self, row: tuple[int, int, int, bytes, int]) -> Entry:
        with contextlib.suppress(TypeError, ValueError):  # a flipped bit can change a type
            entry = Entry(row[0], row[1], EntryKind(row[2]), row[3])
            if _checksum(entry) == row[4]:
                return entry
        raise self._damaged(f"entry {row[0]}")

    def stage_part(self, number: int, data: bytes) -> None:
        with self._writing() as writer:
            self._put_part(writer, "staged_snapshot", number, data)

    def begin_install(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        with self._writing() as writer:
            self._forget_staged_log(writer)
            self._put_notes(writer, {_UNSTAGED_BYTES: self._forgotten.used_bytes})
            self._put_snapshot(writer, "staged_snapshot", snapshot, sums)

    def renew_install(self, snapshot: Snapshot, sums: Sums | None = None) -> None:
        with self._writing() as writer:
            self._put_snapshot(writer, "staged_snapshot", snapshot, sums)

    def stage(self, entries: Sequence[Entry]) -> None:
        with self._writing() as writer:
            writer.executemany("REPLACE INTO staged_log VALUES (?, ?, ?, ?, ?)", _rows(entries))

    def unstage(self) -> None:
        with self._writing() as writer:
            if self._is_staged():
                self._forget_staged(writer)

    def _is_staged(self) -> bool:
        rows = "SELECT EXISTS (SELECT 1 FROM staged_snapshot), EXISTS (SELECT 1 FROM staged_log)"
        parts = ("staged_snapshot_part", "staged_snapshot_part_new")
        return any(self._writer.execute(rows).fetchone()) or any(
            has_table(self._writer, table) for table in parts
        )

    def _forget_staged(self, writer: sqlite3.Connection) -> None:
        self._forget_staged_log(writer)
        self._prepared.pop("staged_snapshot", None)
        for parts in ("staged_snapshot_part", "staged_snapshot_part_new"):
            self._put_aside(parts)
        writer.execute("DELETE FROM staged_snapshot")
        self._note_format(writer)

    def _forget_staged_log(self, writer: sqlite3.Connection) -> None:
        if writer.execute("SELECT EXISTS (SELECT 1 FROM staged_log)").fetchone()[0]:
            used = self._forgotten.used_bytes
            before = self._noted(_UNSTAGED_BYTES, self._writer)
            self._put_aside("staged_log", used - before if isinstance(before, int) else 0)
            writer.execute(_CREATE["staged_log"])

    def install(self) -> None:
        with self._writing() as writer:
            before = self._noted(_UNSTAGED_BYTES, self._writer)  # the log's, most of all
            self._put_aside("log", before if isinstance(before, int) else 0)
            for table in ("snapshot", "snapshot_part", "snapshot_part_new"):
                self._put_aside(table)
            for table in ("log", "snapshot", "snapshot_part"):
                if has_table(writer, f"staged_{table}"):
                    writer.execute(f"ALTER TABLE staged_{table} RENAME TO {table}")
            for table in ("staged_log", "staged_snapshot"):
                writer.execute(_CREATE[table])
            self._note_format(writer)

    @property
    def has_forgotten(self) -> bool:
        return not self._forgotten.is_empty

    def discard(self, bytes_max: int) -> bool:
        with self._writing():
            if self._forgotten.is_empty:
                return False
            more = self._forgotten.remove(bytes_max)
            self._note_forgotten()
            return more

    def adopt(self, cluster_id: str, epoch: str) -> None:
        with self._writing():
            self._put_meta(cluster_id=cluster_id, epoch=epoch, adopted=1)
        old = self.identity
        self.identity = Identity(cluster_id, epoch, old.node_id, old.incarnation, adopted=True)

    def drop(self, indexes: Sequence[int], bytes_max: float = math.inf) -> int:
        sizes = "SELECT idx, length(data) FROM log WHERE idx BETWEEN ? AND ? ORDER BY idx"
        with self._writing() as writer:
            found: list[tuple[int, int]] = []  # sizes are in the heads of the rows
            for each in _ranges(indexes):
                found += writer.execute(sizes, each)
            done = _first_of(indexes, found, bytes_max)
            writer.executemany("DELETE FROM log WHERE idx BETWEEN ? AND ?", _ranges(indexes[:done]))
        return done

    def drop_others(
        self,
        upto: int,
        keep: Sequence[int],
        after: int,
        entries_max: int,
        bytes_max: float = math.inf,
    ) -> int:
        kept = keep[bisect_right(keep, after) : bisect_right(keep, upto)]
        bounds = [after, *kept[:GAPS_MAX]]
        done = upto if len(kept) <= GAPS_MAX else bounds[-1]
        bounds.append(done + 1)
        rows = "SELECT idx, length(data) FROM log WHERE idx BETWEEN ? AND ? ORDER BY idx LIMIT ?"
        found: list[tuple[int, int]] = []
        with self._writing() as writer:
            for a, b in pairwise(bounds):
                if b - a > 1:
                    room = (a + 1, b - 1, entries_max - len(found))
                    found += writer.execute(rows, room)
                if len(found) >= entries_max:
                    done = found[-1][0]
                    break
            others = [index for index, _ in found]
            count = _first_of(others, found, bytes_max)
            if count < len(others):
                done = others[count - 1]
            ranges = _ranges(others[:count])
            writer.executemany("DELETE FROM log WHERE idx BETWEEN ? AND ?", ranges)
        return done

    def replace(self, entries: Mapping[int, bytes]) -> None:
        with self._writing() as writer:
            for index, data in entries.items():
                row = writer.execute(
                    "SELECT term, kind FROM log WHERE idx = ?", (index,)
                ).fetchone()
                if row is not None:
                    entry = Entry(index, row[0], EntryKind(row[1]), data)
                    writer.execute(
                        "UPDATE log SET data = ?, checksum = ? WHERE idx = ?",
                        (data, _checksum(entry), index),
                    )

    def tidy(self) -> None:
        """Move what the write-ahead log holds into the database, beside the writer."""
        if self._failed is not None:
            raise StorageError(self._failed)
        with self._failing():
            self._tidier.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def free_bytes(self) -> int:
        if self._failed is not None:
            return 0
        disk = os.statvfs(self._folder)
        try:
            with self._read_lock:
                (pages,) = self._reader.execute("PRAGMA freelist_count").fetchone()
                (page_bytes,) = self._reader.execute("PRAGMA page_size").fetchone()
        except sqlite3.Error:
            pages = page_bytes = 0  # it is being closed, or busy; the next look tells
        free: int = disk.f_bavail * disk.f_frsize + pages * page_bytes
        return free + self._forgotten.bytes

    @property
    def bytes(self) -> int:
        files = (self._path, Path(f"{self._path}-wal"), self._folder / JOURNAL_NAME)
        return sum(map(_size, files))

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error, OSError, StorageError):  # the next start does it
            if self._failed is None:
                if self._journal is not None:
                    self._end_journal()
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._closing.close()

    # --- offline ---

    def check_file(self) -> None:
        """Raise StorageError unless the whole file is as SQLite builds it. Reads all of it."""
        with self._damage_told():
            (found,) = self._reader.execute("PRAGMA quick_check(1)").fetchone()
            self._check(found == "ok", f"its structure ({found.splitlines()[-1]})")
            found = self._reader.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
            tables = {sql.replace('"', "") for (sql,) in found}  # a name that was changed has them
            self._check(set(_statements(_SCHEMA)) <= tables, "its schema")

    def note(self, name: str) -> Any:
        """What was noted under this name, for people and for programs; or None."""
        return self._noted(name, self._reader)

    def _noted(self, name: str, connection: sqlite3.Connection) -> Any:
        with self._damage_told():
            row = connection.execute("SELECT value FROM meta WHERE key = ?", (name,)).fetchone()
        try:
            return None if row is None else json.loads(row[0])
        except (TypeError, ValueError):
            raise self._damaged(f"its note {name!r}") from None

    def write_notes(self, notes: Mapping[str, object]) -> None:
        """A note that is None goes."""
        with self._writing() as writer:
            self._put_notes(writer, notes)

    def _put_notes(self, writer: sqlite3.Connection, notes: Mapping[str, object]) -> None:
        for name, value in notes.items():
            if value is None:
                writer.execute("DELETE FROM meta WHERE key = ?", (name,))
            else:
                self._put_meta(**{name: json.dumps(value)})

    def found_cluster(
        self, identity: Identity, batch: WriteBatch, notes: Mapping[str, object]
    ) -> None:
        """Become a node of a new cluster with this log, and note it; all at once."""
        with self._writing() as writer:
            self._put(writer, batch)
            self._put_notes(writer, notes)
            self._put_meta(
                cluster_id=identity.cluster_id,
                epoch=identity.epoch,
                node_id=identity.node_id,
                incarnation=identity.incarnation,
                adopted=int(identity.adopted),
            )
            self._forget_staged(writer)  # of a cluster that is no more
        self.identity = identity

    # --- writing ---

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if self._failed is not None:
            raise StorageError(self._failed)
        salt = None
        with self._failing():
            with self._transaction(self._writer):
                if self._pending:  # what comes may change it
                    salt = self._move_pending(secrets.token_bytes(SALT_BYTES))
                yield self._writer
            if salt is not None and self._journal is not None:
                self._journal.begin_anew(salt)
                self._pending = {}
            self._bound_wal()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """An error of whatever kind is the end of the store: what it left behind is unknown."""
        try:
            yield
        except BaseException as error:
            failure = self._write_failed(error)
            if isinstance(error, Exception):
                raise failure from error
            raise  # it is not about the store: somebody ends the program

    def _write_failed(self, error: BaseException) -> StorageError:
        """Refuse everything from now on. Returns the error to raise."""
        if isinstance(error, StorageError):
            self._failed = str(error)  # what it found before it wrote
            return error
        what = str(error) or type(error).__name__
        self._failed = (
            f"{self._called} failed to write: {what}; nothing more is "
            "acknowledged. Check the disk and its free space, then start the node again"
        )
        return StorageError(self._failed)

    def _bound_wal(self) -> None:
        """Truncate a large write-ahead log, unless a reader of the file is in the way."""
        size = _size(Path(f"{self._path}-wal"))
        if size <= self._wal_bytes_max:
            return
        self._writer.execute("PRAGMA busy_timeout=0")
        (busy, _, _) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._writer.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        self._wal_bytes_max = size + WAL_BYTES_MAX if busy else WAL_BYTES_MAX

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _put_meta(self, **values: int | str | None) -> None:
        self._check_meta(self._meta())  # or a new checksum would hide what is damaged
        replace = "REPLACE INTO meta VALUES (?, ?)"
        self._writer.executemany(replace, values.items())
        self._writer.execute(replace, ("checksum", _meta_checksum(self._meta())))


class StoreCopy(SqliteStorage):
    """A copy of a store in a folder that nobody else knows: one file, before and after.

    So it takes no lock, and no write-ahead log, neither of which every file
    system that is good for backups has.
    """

    _journal_mode = "DELETE"

    def __init__(self, folder: Path, called: str, remedy: str = REMEDY) -> None:
        super().__init__(folder, None, called=called, remedy=remedy)

    def check_file(self) -> None:
        """Also that its last page is whole, which SQLite reads as if zeros followed."""
        super().check_file()
        with self._damage_told():
            (pages,) = self._reader.execute("PRAGMA page_count").fetchone()
            (page_bytes,) = self._reader.execute("PRAGMA page_size").fetchone()
        size = self._path.stat().st_size
        self._check(size >= pages * page_bytes, f"its end (it is {size} bytes long)")

    def _prepare_folder(self) -> None:
        pass

    def _lock(self) -> None:
        pass

    def _keep_from_others(self) -> None:
        pass

    def _open_journal(self) -> None:
        try:
            salt, _ = _journal(self._writer, self._where)
        except ValueError as error:
            raise self._damaged(f"its journal ({error})") from None
        if salt:  # it was copied by other means
            raise StorageError(
                f"{self._called} was copied from a node that ran or was killed, without "
                f"{JOURNAL_NAME!r}, which has the newest entries; {self._remedy}"
            )


def copy_store(folder: Path, target: Path) -> None:
    """Copy the store as it is at this moment, beside a node that runs or with none.

    ``target`` must not exist, or be empty; it becomes one file without slack,
    not synced. The node writes on meanwhile, and its write-ahead log is not cut
    short before the end. Raises ConfigError where there is no store, or one with a
    journal of a newer version, StorageError for a damaged write-ahead log, and
    sqlite3.Error; a signal that raises becomes
    KeyboardInterrupt.
    """
    require_store(folder)
    source = folder / STORE_NAME
    _check_wal_at_rest(folder)
    # Not read-only: the last to close a file is to remove its write-ahead log.
    name = f"{source.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(name, uri=True, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        connection.set_progress_handler(lambda: 0, COPY_STEPS)  # signals are looked at there
        # First: what the node moves meanwhile is then in the copy, and has another salt there.
        salt, entries = _read_journal(folder, connection)
        try:
            connection.execute("VACUUM INTO ?", (str(target),))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise KeyboardInterrupt from None
            raise
    _settle_copy(target, salt, entries)


def _read_journal(folder: Path, connection: sqlite3.Connection) -> tuple[bytes, list[Entry]]:
    """Its salt, and what is in it, beside a node that writes on and may begin it anew."""
    for attempt in range(1, COPY_ATTEMPTS + 1):
        try:
            salt, found = _journal(connection, f"the data directory {str(folder)!r}")
            return salt, Journal.read(folder / JOURNAL_NAME, salt, found) if salt else []
        except ValueError as error:
            if attempt == COPY_ATTEMPTS:
                called = f"the store {str(folder / STORE_NAME)!r}"
                raise _damage(called, f"its journal ({error})", REMEDY) from None
    raise AssertionError


def _settle_copy(copy: Path, salt: bytes, entries: Sequence[Entry]) -> None:
    """Put into it what was in the journal alone: it goes without one."""
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        copied, _ = _journal(connection, f"the copy {str(copy)!r}")
        if copied:
            connection.execute("BEGIN")
            if copied == salt:  # or all was moved meanwhile
                _insert(connection, entries)
            _put_salt(connection, b"")
            had_more = drop_forgotten(connection)
            connection.execute("COMMIT")
            if had_more:
                connection.execute("VACUUM")


def _is_store(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
    return found is not None


def _journal(connection: sqlite3.Connection, where: str) -> tuple[bytes, Shape]:
    """The salt of the journal's records that count, empty without a journal, and its shape.

    Raises ValueError for what is damaged, ConfigError for a shape of another version.
    """
    meta = {}
    if _is_store(connection):
        meta = dict(connection.execute("SELECT key, value FROM meta"))
    if _SALT not in meta and meta.get("format") not in (FORMAT, PARTS_FORMAT):
        return b"", FIRST_SHAPE
    salt, _, checksum = str(meta.get(_SALT)).partition(" ")
    if checksum != _salt_checksum(salt):
        raise ValueError("its salt")
    found = _shape(meta.get(_SHAPE), salt)
    if salt and not (found.is_known and len(salt) == 2 * SALT_BYTES):
        raise ConfigError(
            f"{where} has entries in a journal of another version, which this one cannot read "
            f"({found}; a salt of {len(salt) // 2} bytes); start the node with the version that "
            "wrote it and stop it again, which moves them into the database, or stay with that one"
        )
    return bytes.fromhex(salt), found


def _shape(row: object, salt: str) -> Shape:
    """As it was written down. Raises ValueError for what is damaged."""
    if row is None:
        return FIRST_SHAPE
    words, _, checksum = str(row).rpartition(" ")
    if checksum != _salt_checksum(words):
        raise ValueError("its shape")
    written_for, form, file_bytes, block_bytes, kind = words.split(" ")
    if written_for != salt:  # a version that does not know this row has been here
        return FIRST_SHAPE
    return Shape(int(form), int(file_bytes), int(block_bytes), kind)


def _put_salt(connection: sqlite3.Connection, salt: bytes) -> None:
    """Within a transaction: of a journal of this version's shape. Without one there is none."""
    words = " ".join(map(str, (salt.hex(), *shape())))
    rows = [
        (key, f"{said} {_salt_checksum(said)}")
        for key, said in ((_SALT, salt.hex()), (_SHAPE, words))
    ]
    connection.executemany("REPLACE INTO meta VALUES (?, ?)", rows)


def _salt_checksum(salt: str) -> str:
    return f"{crc32(salt.encode()):08x}"


def hold(folder: Path, *, to_serve: bool = False) -> int:
    """The lock of the store there, until it is closed; ``to_serve``: for a node that is to run,
    which may also go elsewhere. Raises StoreLockedError, OSError."""
    lock = _open_lock(folder)
    if not _take(lock):
        holder = ""
        with contextlib.suppress(OSError):
            holder = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        by = f" (process {holder})" if holder.isdigit() else ""
        remedy = (
            "stop that one first, or give this one a directory and a port of its own, by "
            "--data-dir DIRECTORY --http HOST:PORT"
            if to_serve
            else "stop it first (a service: systemctl stop repl-broker), and run this again"
        )
        raise StoreLockedError(
            f"the data directory {str(folder)!r} is in use by a running node{by}; {remedy}"
        )
    with contextlib.suppress(OSError):  # it is for people; a full disk may start, too
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def require_store(folder: Path) -> None:
    """Raises ConfigError where there is none."""
    where = f"the data directory {str(folder)!r}"
    try:
        is_there = (folder / STORE_NAME).is_file()
    except OSError as error:
        raise _unreadable(folder, error) from None
    if not is_there:
        raise ConfigError(
            f"there is no store in {where}; name the node's own with --data-dir or --config"
        )


def _check_wal(store: Path, called: str, remedy: str) -> None:
    """Before SQLite sees it: SQLite would drop what is behind the damage, and then remove it."""
    name = Path(f"{store}-wal")
    with contextlib.suppress(FileNotFoundError), name.open("r+b", buffering=0) as file:
        if is_damaged(file):
            raise _damage(called, "its write-ahead log", remedy)
        # One that was killed, or whose disk failed, may have left a commit in memory only. Now
        # it counts. After a sync that failed no other writes what is not written anew.
        _write_anew(file)
        os.fsync(file.fileno())


def _write_anew(file: io.FileIO) -> None:
    """All of it, over itself."""
    at = 0
    while piece := os.pread(file.fileno(), REWRITE_BYTES, at):
        written = os.pwrite(file.fileno(), piece, at)
        if written == 0:
            raise OSError(f"nothing was written at byte {at}")
        at += written


def _check_wal_at_rest(folder: Path) -> None:
    """As a node does when it starts. Of one that runs the log is in use, and was looked at."""
    try:
        lock = _open_lock(folder)
    except OSError as error:
        raise _unreadable(folder, error) from None
    try:
        if _take(lock):
            _check_wal(folder / STORE_NAME, f"the store {str(folder / STORE_NAME)!r}", REMEDY)
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    make_file(folder / LOCK_NAME)
    return os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _damage(called: str, what: str, remedy: str) -> StorageError:
    return StorageError(f"{called} is damaged: {what} is not what was written; {remedy}")


def _unreadable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the data directory {str(folder)!r} cannot be read: {error.strerror or error}; "
        "run this as the node's user"
    )


def _statements(script: str) -> list[str]:
    return [statement.strip() for statement in script.split(";") if statement.strip()]


def _checksum(entry: Entry) -> int:
    head = b"%d %d %d " % (entry.index, entry.term, entry.kind)
    return crc32(entry.data, crc32(head))


def _meta_checksum(meta: Mapping[str, Any]) -> int:
    values = [meta.get(key) for key in META_KEYS]
    return crc32(json.dumps(values, default=repr).encode())  # a flipped bit can change a type


def sums_of(snapshot: Snapshot) -> Sums:
    return Sums(crc32(snapshot.data), _snapshot_checksum(snapshot))


def _snapshot_checksum(snapshot: Snapshot) -> int:
    head = b"%d %d %b " % (snapshot.index, snapshot.term, snapshot.membership)
    return crc32(snapshot.data, crc32(head))


def _rows(entries: Iterable[Entry]) -> list[tuple[int, int, int, bytes, int]]:
    return [(e.index, e.term, int(e.kind), e.data, _checksum(e)) for e in entries]


def _first_bytes(entries: Iterable[Entry], bytes_max: int) -> list[Entry]:
    taken: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.data)
        if taken and size > bytes_max:
            break
        taken.append(entry)
    return taken


def _first_of(indexes: Sequence[int], found: Sequence[tuple[int, int]], bytes_max: float) -> int:
    """How many of ``indexes`` (ascending) go at once. ``found`` are those that are there, with
    their sizes: the first of at most this many bytes, and one at least."""
    size = 0
    for count, (index, each) in enumerate(found):
        size += each
        if count and size > bytes_max:
            return bisect_left(indexes, index)
    return len(indexes)


def _insert(writer: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    rows = _rows(entries)
    start = 0
    while len(rows) - start >= _INSERT_MANY:
        many = rows[start : start + _INSERT_MANY]
        writer.execute(_INSERT_ROWS, [value for row in many for value in row])
        start += _INSERT_MANY
    writer.executemany(_INSERT, rows[start:])


def _with(
    pending: Sequence[Entry], stored: Iterable[Entry], after: int, upto: int
) -> Iterator[Entry]:
    """The stored entries, then those pending ones that come behind them."""
    last = after
    for entry in stored:
        last = entry.index
        yield entry
    for entry in pending:
        if last < entry.index <= upto:
            yield entry


def _ranges(indexes: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for index in sorted(indexes):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    return ranges


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
