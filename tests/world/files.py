"""Files in memory that know what of them is on the disk.

    written ──▶ the page cache ──sync──▶ the disk
                 survives kill()          survives crash()

Of what was written, cut short, made, renamed or removed since the last sync of that
file (or folder) a power loss leaves any subset, in the order in which it was done, and
of each write any of its sectors. What nothing told to be synced may still be there.

Everything raises OSError, as the system's calls do; system_calls.py and sqlite_vfs.py
are what a program sees of it.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["MOUNTED", "ROOT", "Fault", "Node", "OpenFile", "SimFiles", "Stop", "disk_of"]

ROOT = "/dev/null/"  # nothing can be there: what is not routed to a disk fails at once
SECTOR_BYTES = 512
PAGE_BYTES = 4096
SURVIVAL = (0.0, 0.1, 0.5, 0.9, 1.0)  # of what was not synced, one of them drawn for each file
TORN = 0.3  # of the writes that survive
ENTIRE_BYTES = 1 << 40  # of a disk without a limit

Fault = Literal["write", "sync", "read"]
Stop = Literal["crash", "kill"]

MOUNTED: dict[str, SimFiles] = {}  # by name


def disk_of(path: object) -> SimFiles | None:
    """The disk that this is on, if it is one of memory; raises ENOENT where none is mounted."""
    if not isinstance(path, str):
        path = os.fsdecode(os.fspath(path))  # type: ignore[call-overload]
    if not path.startswith(ROOT):
        return None
    disk = MOUNTED.get(path[len(ROOT) :].partition("/")[0])
    if disk is None:
        raise _error(errno.ENOENT, path)
    return disk


@dataclass(slots=True)
class Change:
    """Of the bytes of a file: a write at ``at``, or a new size of it if there is no data."""

    at: int
    data: bytes | None
    is_durable: bool = False
    is_stuck: bool = False  # its sync failed: it is clean in the page cache, and no sync writes it

    def apply(self, data: bytearray) -> None:
        if self.data is None:
            _resize(data, self.at)
            return
        if len(data) < self.at:
            _resize(data, self.at)
        data[self.at : self.at + len(self.data)] = self.data


@dataclass(slots=True)
class Rename:
    """Of the names in a folder: ``old`` becomes ``new``. Without the one it is made, without the
    other it goes."""

    folder: str
    old: str | None
    new: str | None
    node: Node
    is_durable: bool = False
    is_stuck: bool = False

    def apply(self, names: dict[str, Node]) -> None:
        if self.old is not None:
            if names.get(self.old) is not self.node:
                return  # its making was lost
            del names[self.old]
        if self.new is not None:
            names[self.new] = self.node


@dataclass(slots=True, eq=False)
class Node:
    """A file or a folder, whatever its name."""

    mode: int
    number: int
    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)  # since, in order
    opened: int = 0
    locked_by: object = None  # flock
    shared: Any = None  # what SQLite's connections share beside it (sqlite_vfs.py)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def change(self, change: Change) -> None:
        change.apply(self.data)
        self.changes.append(change)
        self._settle()

    def synced(self) -> None:
        for change in self.changes:
            change.is_durable = change.is_durable or not change.is_stuck
        self._settle()

    def _settle(self) -> None:
        while self.changes and self.changes[0].is_durable:
            self.changes.pop(0).apply(self.durable)

    def lose_power(self, chance: random.Random) -> None:
        keep = chance.choice(SURVIVAL)
        for change in self.changes:
            if change.is_durable:
                change.apply(self.durable)
            elif chance.random() >= keep:
                if change.data is not None and chance.random() < 0.2:  # the new size alone
                    _resize(self.durable, max(len(self.durable), change.at + len(change.data)))
            elif change.data is not None and chance.random() < TORN:
                for piece in _sectors(change):
                    if chance.random() < 0.5:
                        piece.apply(self.durable)
            else:
                change.apply(self.durable)
        self.changes = []
        self.data = bytearray(self.durable)

    def forget(self) -> None:
        """What died with the process."""
        self.opened = 0
        self.locked_by = self.shared = None


@dataclass(slots=True, eq=False)
class OpenFile:
    """What a process has of a file; it dies with the process."""

    disk: SimFiles
    node: Node
    flags: int
    path: str
    life: int
    at: int = 0

    @property
    def is_alive(self) -> bool:
        return self.life == self.disk.life

    def _check(self) -> None:
        if not self.is_alive:
            raise OSError(errno.EIO, "the process that had it open is dead", self.path)

    def read(self, count: int, at: int) -> bytes:
        self._check()
        self.disk.moment("read")
        return bytes(self.node.data[at : at + count])

    def write(self, data: bytes, at: int) -> int:
        """How many were written: fewer where the disk is full then."""
        self._check()
        disk, node = self.disk, self.node
        with disk.lock:
            room = max(len(node.data) - at, 0) + disk.room()
            if room < len(data):
                data = data[: max(room // PAGE_BYTES * PAGE_BYTES, len(node.data) - at, 0)]
                if not data:
                    raise _error(errno.ENOSPC, self.path)
            is_durable = bool(self.flags & os.O_DSYNC) and not disk.loses_syncs
            change = Change(at, data, is_durable)
            disk.moment("write", lambda part: node.change(Change(at, part(data))))
            node.change(change)
        return len(data)

    def resize(self, size: int) -> None:
        self._check()
        with self.disk.lock:
            if size - len(self.node.data) > self.disk.room():
                raise _error(errno.ENOSPC, self.path)
            self.disk.moment("write", lambda part: self.node.change(Change(size, None)))
            self.node.change(Change(size, None))

    def sync(self) -> None:
        self._check()
        with self.disk.lock:
            self.disk.sync(self.path, self.node)

    def close(self) -> None:
        if self.is_alive:
            if self.node.locked_by is self:
                self.node.locked_by = None
            self.node.opened -= 1
            self.disk.forget_removed()


Part = Callable[[bytes], bytes]


class SimFiles:
    """The names and files of one disk, and what can befall it."""

    def __init__(self, chance: random.Random, name: str) -> None:
        self.path = Path(ROOT + name)
        self.life = 0  # goes up with each process that dies
        self.lock = threading.RLock()  # of all that changes: SQLite may be called by threads
        self.limit_bytes: int | None = None
        self.loses_syncs = False  # they succeed, and a crash loses what they were for
        self.has_direct_writes = True
        self.operations = 0  # that changed something, or would have
        self.is_down = False  # since a stop of ``stop_in``
        self._chance = chance
        self._numbers = 2
        self._failing: list[tuple[int, Fault]] = []
        self._stop: tuple[int, Stop] | None = None
        root = Node(stat.S_IFDIR | 0o700, 1)
        self._names: dict[str, Node] = {str(self.path): root}
        self._durable_names = dict(self._names)
        self._renames: list[Rename] = []
        self._removed: list[Node] = []  # but open

    # --- what can befall it ---

    def fail_once(self, fault: Fault) -> None:
        """The next of these fails with EIO. A write may have got a part of its data there."""
        self.fail_in(1, fault)

    def fail_in(self, operations: int, fault: Fault) -> None:
        """The first of these that is not before so many operations; 1 is the next one."""
        self._failing.append((self.operations + operations, fault))

    def forgive(self) -> None:
        """What was to fail or to stop, and has not yet, does not."""
        self._failing.clear()
        self._stop = None

    def stop_in(self, operations: int, how: Stop) -> None:
        """Within so many operations: what is under way is there in part, and all behind it fails
        until ``start``. 1 is the next one."""
        self._stop = (operations, how)

    def start(self) -> None:
        """After a stop: another process may use it. No stop or failure is to come any more."""
        self.is_down = False
        self._stop = None
        self._failing.clear()

    @property
    def has_fault(self) -> bool:
        """Whether one is to come, or the disk is full, or down."""
        return bool(self._failing or self._stop or self.is_down or self.limit_bytes is not None)

    def kill(self) -> None:
        """The process ends: what was written stays, what was open or locked does not."""
        with self.lock:
            self.life += 1
            self._failing.clear()
            self._stop = None
            for node in self._all():
                node.forget()
            self._removed = []

    def crash(self) -> None:
        """The power goes: of what was not synced any part is there."""
        with self.lock:
            self.kill()
            names = self._durable_names
            keep = self._chance.choice(SURVIVAL)
            for rename in self._renames:
                if rename.is_durable or self._chance.random() < keep:
                    rename.apply(names)
            for path in sorted(names, key=len):
                if path != str(self.path) and _folder(path) not in names:
                    del names[path]
            self._renames = []
            self._names = dict(names)
            for path in sorted(names):
                names[path].lose_power(self._chance)

    @property
    def used_bytes(self) -> int:
        shared = (node.shared.bytes for node in self._all() if node.shared is not None)
        return sum(len(node.data) for node in self._all()) + sum(shared)

    def room(self) -> int:
        if self.limit_bytes is None:
            return ENTIRE_BYTES
        return max(self.limit_bytes - self.used_bytes, 0)

    def _all(self) -> Iterator[Node]:
        yield from self._names.values()
        yield from self._removed

    def moment(self, fault: Fault, partly: Callable[[Part], object] | None = None) -> None:
        """Something is about to be done; ``partly`` does it in part."""
        if self.is_down:
            raise OSError(errno.EIO, "the node is dead")
        if fault != "read":
            self.operations += 1
            if self._stop is not None:
                left, how = self._stop
                self._stop = (left - 1, how)
                if left <= 1:
                    self._stop_now(how, partly)
        number = self.operations + (fault == "read")  # which counts as the next one
        due = [f for f in self._failing if f[1] == fault and f[0] <= number]
        if due:
            self._failing.remove(due[0])
            if partly is not None and self._chance.random() < 0.5:
                partly(self._first_part)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _stop_now(self, how: Stop, partly: Callable[[Part], object] | None) -> None:
        if how == "crash":
            if partly is not None:
                partly(bytes)
            self.crash()
        else:
            if partly is not None and self._chance.random() < 0.5:
                partly(self._first_part)
            self.kill()
        self.is_down = True
        raise OSError(errno.EIO, "the node is dead")

    def _first_part(self, data: bytes) -> bytes:
        pages = -(-len(data) // PAGE_BYTES)
        return data[: self._chance.randint(0, pages) * PAGE_BYTES]

    def sync(self, path: str, node: Node) -> None:
        """A file's bytes, or the names in a folder."""
        changes: list[Change] | list[Rename] = node.changes
        if node.is_folder:
            changes = [rename for rename in self._renames if rename.folder == path]
        try:
            self.moment("sync")
        except OSError:
            if not self.is_down:  # or nobody synced
                for change in changes:
                    change.is_stuck = not change.is_durable
            raise
        if self.loses_syncs:
            return
        if not node.is_folder:
            node.synced()
        for change in changes:
            change.is_durable = change.is_durable or not change.is_stuck
        while self._renames and self._renames[0].is_durable:
            self._renames.pop(0).apply(self._durable_names)

    def sync_folder_of(self, path: str) -> None:
        folder = _folder(path)
        with self.lock:
            self.sync(folder, self.node(folder))

    # --- names ---

    def find(self, path: str) -> Node | None:
        if self.is_down:
            raise OSError(errno.EIO, "the node is dead")
        return self._names.get(path)

    def node(self, path: str) -> Node:
        node = self.find(path)
        if node is None:
            raise _error(errno.ENOENT, path)
        return node

    def open(self, path: str, flags: int, mode: int = 0o777) -> OpenFile:
        with self.lock:
            node = self.find(path)
            if flags & os.O_DIRECT and not self.has_direct_writes:
                raise _error(errno.EINVAL, path)
            if node is None:
                if not flags & os.O_CREAT:
                    raise _error(errno.ENOENT, path)
                node = self._make(path, stat.S_IFREG | mode)
            elif flags & os.O_CREAT and flags & os.O_EXCL:
                raise _error(errno.EEXIST, path)
            if node.is_folder and flags & (os.O_WRONLY | os.O_RDWR):
                raise _error(errno.EISDIR, path)
            opened = OpenFile(self, node, flags, path, self.life)
            if flags & os.O_TRUNC and node.data:
                opened.resize(0)
            node.opened += 1
        return opened

    def _make(self, path: str, mode: int) -> Node:
        if not self.node(_folder(path)).is_folder:
            raise _error(errno.ENOTDIR, path)
        self._numbers += 1
        node = Node(mode, self._numbers)
        self._rename(None, path, node)
        return node

    def _rename(self, old: str | None, new: str | None, node: Node) -> None:
        def do(part: Part) -> None:
            rename = Rename(_folder(new or old or ""), old, new, node)
            rename.apply(self._names)
            self._renames.append(rename)

        self.moment("write", do)
        do(bytes)

    def make_folder(self, path: str, mode: int) -> None:
        with self.lock:
            if self.find(path) is not None:
                raise _error(errno.EEXIST, path)
            self._make(path, stat.S_IFDIR | mode)

    def remove(self, path: str) -> None:
        with self.lock:
            node = self.node(path)
            if node.is_folder and self.listing(path):
                raise _error(errno.ENOTEMPTY, path)
            self._rename(path, None, node)
            self._removed.append(node)
            self.forget_removed()

    def rename(self, old: str, new: str) -> None:
        with self.lock:
            node, over = self.node(old), self.find(new)
            if node.is_folder:
                raise NotImplementedError("folders keep their names")
            self._rename(old, new, node)
            if over is not None and over is not node:
                self._removed.append(over)
                self.forget_removed()

    def listing(self, folder: str) -> list[str]:
        return sorted(
            os.path.basename(path)
            for path in self._names
            if _folder(path) == folder and path != str(self.path)
        )

    def forget_removed(self) -> None:
        self._removed = [node for node in self._removed if node.opened]

    def about(self, node: Node) -> os.stat_result:
        uid, gid, size = os.geteuid(), os.getegid(), len(node.data)
        return os.stat_result((node.mode, node.number, 0, 1, uid, gid, size, 0, 0, 0))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _resize(data: bytearray, size: int) -> None:
    if size <= len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _sectors(change: Change) -> Iterator[Change]:
    assert change.data is not None
    at, end = change.at, change.at + len(change.data)
    while at < end:
        upto = min((at // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
        yield Change(at, change.data[at - change.at : upto - change.at])
        at = upto


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)  # of the class that fits the number
