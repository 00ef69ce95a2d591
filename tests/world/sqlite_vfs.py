"""SQLite's own way to files (its VFS), led to a disk of memory.

SQLite runs unchanged above it: it locks, shares its index of the write-ahead log between
connections, syncs and recovers as it does on a real disk. https://www.sqlite.org/vfs.html
Paths of no such disk go to the VFS that was the default before.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import errno
import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from typing import Any

from tests.world.files import ROOT, Node, OpenFile, SimFiles, disk_of

__all__ = ["led"]

OK, BUSY, FULL, CANTOPEN, NOTFOUND = 0, 5, 13, 14, 12
READ, SHORT_READ, WRITE, FSYNC, TRUNCATE, FSTAT = 266, 522, 778, 1034, 1546, 1802
LOCK, DELETE, DELETE_NOENT, ACCESS = 3850, 2570, 5898, 3338
SHMSIZE, SHMLOCK, SHMMAP = 4874, 5130, 5386
OPEN_READWRITE, OPEN_CREATE, OPEN_DELETE, OPEN_EXCLUSIVE = 0x2, 0x4, 0x8, 0x10
OPEN_OF_JOURNALS = 0x800 | 0x4000 | 0x80000  # main and super journal, write-ahead log
NONE, SHARED, RESERVED, PENDING, EXCLUSIVE = range(5)
SHM_UNLOCK, SHM_SHARED = 1, 4
SECTOR_BYTES = 4096  # as SQLite says of every file on Unix
POWERSAFE_OVERWRITE = 0x1000  # a write harms nothing beside it; so here, and SQLite's own default
PATH_BYTES_MAX = 512


class IoMethods(Structure):
    _fields_ = (("version", c_int), *((f"method_{n}", c_void_p) for n in range(16)))


class File(Structure):
    _fields_ = (("methods", c_void_p),)


class Vfs(Structure):
    _fields_ = (
        ("version", c_int),
        ("file_bytes", c_int),
        ("path_bytes_max", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        *((name, c_void_p) for name in ("open", "delete", "access", "full_path")),
        *((name, c_void_p) for name in ("dl_open", "dl_error", "dl_sym", "dl_close")),
        *((name, c_void_p) for name in ("randomness", "sleep", "time", "last_error", "time_ms")),
        *((name, c_void_p) for name in ("set_call", "get_call", "next_call")),
    )


class Shared:
    """What the connections to one file share in memory: the index of the write-ahead log."""

    def __init__(self) -> None:
        self.regions: list[Any] = []
        self.handles: list[Handle] = []

    @property
    def bytes(self) -> int:
        return sum(map(len, self.regions))


class Handle:
    """What one connection has of one file."""

    def __init__(self, file: OpenFile, flags: int) -> None:
        self.file = file
        self.removes = bool(flags & OPEN_DELETE)
        # With its first sync; as on Unix, whether or not this one made it.
        self.syncs_folder = bool(flags & OPEN_CREATE and flags & OPEN_OF_JOURNALS)
        self.level = NONE
        self.shared: Shared | None = None
        self.regions: list[Any] = []  # SQLite looks into them without asking
        self.shared_mask = self.exclusive_mask = 0

    @property
    def others(self) -> list[Handle]:
        """That have locks on the same file, in processes that live."""
        return [h for h in _locking.get(self.file.node, ()) if h is not self and h.file.is_alive]


_handles: dict[int, Handle] = {}  # by the address of SQLite's own
_locking: dict[Node, list[Handle]] = {}
_kept: list[Any] = []  # what SQLite points to, for ever
_chance: list[Any] = []  # of the run, for SQLite's salts


def _library() -> ctypes.CDLL:
    """The SQLite that the interpreter's module uses: that one, and no other of the machine."""
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        library.sqlite3_libversion.restype = c_char_p
        found = library.sqlite3_libversion().decode()
        library.sqlite3_vfs_find.restype = POINTER(Vfs)
        library.sqlite3_vfs_register.argtypes = [POINTER(Vfs), c_int]
    except AttributeError:
        raise RuntimeError(
            f"{_sqlite3.__name__} of {sys.executable} has SQLite within it and does not show its "
            "sqlite3_vfs_register, so no disk of memory can be put beneath it; use an interpreter "
            "that is linked with the system's libsqlite3, as Debian's is"
        ) from None
    if found != sqlite3.sqlite_version:
        raise RuntimeError(f"found SQLite {found}, where Python uses {sqlite3.sqlite_version}")
    return library


def _guarded(code: int) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """What is raised becomes the code: ctypes would print it, and say that all is well."""

    def wrap(call: Callable[..., int]) -> Callable[..., int]:
        def guarded(*arguments: Any) -> int:
            try:
                return call(*arguments)
            except OSError as error:
                return FULL if error.errno == errno.ENOSPC else code
            except BaseException as error:  # noqa: BLE001  # nobody above could take it
                _mistakes.append(error)
                return code

        return guarded

    return wrap


_mistakes: list[BaseException] = []  # of this module: the end of ``led`` raises them


# --- of files ---


@_guarded(OK)
def _close(at: int) -> int:
    handle = _handles.pop(at)
    _shm_unmap_of(handle)
    node, file = handle.file.node, handle.file
    locking = _locking[node]
    locking.remove(handle)
    if not locking:
        del _locking[node]
    if handle.removes and file.is_alive:
        file.disk.remove(file.path)
    file.close()
    return OK


@_guarded(READ)
def _read(at: int, buffer: int, count: int, offset: int) -> int:
    data = _handles[at].file.read(count, offset)
    ctypes.memmove(buffer, data, len(data))
    if len(data) == count:
        return OK
    ctypes.memset(buffer + len(data), 0, count - len(data))
    return SHORT_READ


@_guarded(WRITE)
def _write(at: int, buffer: int, count: int, offset: int) -> int:
    written = _handles[at].file.write(ctypes.string_at(buffer, count), offset)
    return OK if written == count else FULL


@_guarded(TRUNCATE)
def _truncate(at: int, size: int) -> int:
    _handles[at].file.resize(size)
    return OK


@_guarded(FSYNC)
def _sync(at: int, flags: int) -> int:
    handle = _handles[at]
    handle.file.sync()
    if handle.syncs_folder:
        handle.file.disk.sync_folder_of(handle.file.path)
        handle.syncs_folder = False
    return OK


@_guarded(FSTAT)
def _file_size(at: int, size: Any) -> int:
    handle = _handles[at]
    _alive(handle)
    size[0] = len(handle.file.node.data)
    return OK


def _alive(handle: Handle) -> SimFiles:
    disk = handle.file.disk
    if not handle.file.is_alive or disk.is_down:
        raise OSError(errno.EIO, "the process that had it open is dead")
    return disk


@_guarded(LOCK)
def _lock(at: int, level: int) -> int:
    handle = _handles[at]
    with _alive(handle).lock:
        if handle.level >= level:
            return OK
        highest = max((other.level for other in handle.others), default=NONE)
        if highest >= (PENDING if level == SHARED else RESERVED):
            return BUSY
        if level == EXCLUSIVE and highest >= SHARED:
            handle.level = PENDING
            return BUSY
        handle.level = level
        return OK


@_guarded(OK)
def _unlock(at: int, level: int) -> int:
    handle = _handles[at]
    handle.level = min(handle.level, level)
    return OK


@_guarded(LOCK)
def _check_reserved(at: int, result: Any) -> int:
    handle = _handles[at]
    result[0] = any(other.level >= RESERVED for other in [handle, *handle.others])
    return OK


def _control(at: int, operation: int, argument: int) -> int:
    return NOTFOUND


def _sector_size(at: int) -> int:
    return SECTOR_BYTES


def _characteristics(at: int) -> int:
    return POWERSAFE_OVERWRITE


@_guarded(SHMMAP)
def _shm_map(at: int, region: int, size: int, extend: int, result: Any) -> int:
    handle = _handles[at]
    result[0] = None
    disk = _alive(handle)
    with disk.lock:
        shared = handle.file.node.shared
        if handle.shared is None:
            shared = handle.file.node.shared = shared or Shared()
            handle.shared = shared
            shared.handles.append(handle)
        while len(shared.regions) <= region:
            if not extend:
                return OK
            if disk.room() < size:
                return SHMSIZE
            shared.regions.append(ctypes.create_string_buffer(size))
        handle.regions = list(shared.regions)
        result[0] = ctypes.addressof(shared.regions[region])
    return OK


@_guarded(SHMLOCK)
def _shm_lock(at: int, offset: int, count: int, flags: int) -> int:
    handle = _handles[at]
    mask = ((1 << count) - 1) << offset
    if flags & SHM_UNLOCK:
        handle.shared_mask &= ~mask
        handle.exclusive_mask &= ~mask
        return OK
    with _alive(handle).lock:
        assert handle.shared is not None
        others = [other for other in handle.shared.handles if other is not handle]
        if any(other.exclusive_mask & mask for other in others):
            return BUSY
        if flags & SHM_SHARED:
            handle.shared_mask |= mask
        elif any(other.shared_mask & mask for other in others):
            return BUSY
        else:
            handle.exclusive_mask |= mask
    return OK


def _shm_barrier(at: int) -> None:
    pass  # a call into Python is one


@_guarded(OK)
def _shm_unmap(at: int, delete: int) -> int:
    _shm_unmap_of(_handles[at])
    return OK


def _shm_unmap_of(handle: Handle) -> None:
    shared, node = handle.shared, handle.file.node
    handle.shared = None
    if shared is not None:
        shared.handles.remove(handle)
        if not shared.handles and node.shared is shared:
            node.shared = None


# --- of paths ---


def _with_real(real: Any, name: str, kind: Any, sim: Callable[..., int]) -> Callable[..., int]:
    call = kind(getattr(real.contents, name))
    here = ctypes.addressof(real.contents)

    def led(vfs: int, path: int | None, *arguments: Any) -> int:
        if path is not None:
            text = os.fsdecode(ctypes.string_at(path))
            if text.startswith(ROOT):
                return sim(text, *arguments)
        return int(call(here, path, *arguments))

    return led


@_guarded(CANTOPEN)
def _open(path: str, at: int, flags: int, result: Any) -> int:
    File.from_address(at).methods = None  # so that SQLite does not close what is not open
    disk = disk_of(path)
    assert disk is not None
    how = os.O_RDWR if flags & OPEN_READWRITE else os.O_RDONLY
    how |= os.O_CREAT if flags & OPEN_CREATE else 0
    how |= os.O_EXCL if flags & OPEN_EXCLUSIVE else 0
    handle = Handle(disk.open(path, how, 0o600), flags)
    _handles[at] = handle
    _locking.setdefault(handle.file.node, []).append(handle)
    File.from_address(at).methods = ctypes.addressof(_methods)
    if result:
        result[0] = flags
    return OK


@_guarded(DELETE)
def _delete(path: str, syncs: int) -> int:
    disk = disk_of(path)
    assert disk is not None
    if disk.find(path) is None:
        return DELETE_NOENT
    disk.remove(path)
    if syncs:
        disk.sync_folder_of(path)
    return OK


@_guarded(ACCESS)
def _access(path: str, flags: int, result: Any) -> int:
    disk = disk_of(path)
    node = disk.find(path) if disk is not None else None
    # As on Unix: a file without anything in it is none, if that is the question.
    result[0] = node is not None and bool(flags or node.data or stat.S_ISDIR(node.mode))
    return OK


@_guarded(CANTOPEN)
def _full_path(path: str, size: int, result: int) -> int:
    name = os.fsencode(path) + b"\0"
    if len(name) > size:
        return CANTOPEN
    ctypes.memmove(result, name, len(name))
    return OK


def _randomness(vfs: int, count: int, buffer: int) -> int:
    drawn = _chance[-1].randbytes(count) if _chance else os.urandom(count)
    ctypes.memmove(buffer, drawn, count)
    return count


# --- put together ---

_int_pointer, _int64_pointer, _pointer_pointer = POINTER(c_int), POINTER(c_int64), POINTER(c_void_p)
_METHODS: tuple[tuple[Any, Callable[..., Any]], ...] = (
    (CFUNCTYPE(c_int, c_void_p), _close),
    (CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64), _read),
    (CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64), _write),
    (CFUNCTYPE(c_int, c_void_p, c_int64), _truncate),
    (CFUNCTYPE(c_int, c_void_p, c_int), _sync),
    (CFUNCTYPE(c_int, c_void_p, _int64_pointer), _file_size),
    (CFUNCTYPE(c_int, c_void_p, c_int), _lock),
    (CFUNCTYPE(c_int, c_void_p, c_int), _unlock),
    (CFUNCTYPE(c_int, c_void_p, _int_pointer), _check_reserved),
    (CFUNCTYPE(c_int, c_void_p, c_int, c_void_p), _control),
    (CFUNCTYPE(c_int, c_void_p), _sector_size),
    (CFUNCTYPE(c_int, c_void_p), _characteristics),
    (CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, _pointer_pointer), _shm_map),
    (CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int), _shm_lock),
    (CFUNCTYPE(None, c_void_p), _shm_barrier),
    (CFUNCTYPE(c_int, c_void_p, c_int), _shm_unmap),
)
_CALLS: tuple[tuple[str, Any, Callable[..., int]], ...] = (
    ("open", CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, _int_pointer), _open),
    ("delete", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int), _delete),
    ("access", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, _int_pointer), _access),
    ("full_path", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_void_p), _full_path),
)
_methods = IoMethods(version=2)


def _pointer(kind: Any, call: Callable[..., Any]) -> int | None:
    function = kind(call)
    _kept.append(function)
    return ctypes.cast(function, c_void_p).value


def _register() -> tuple[ctypes.CDLL, Any, Vfs]:
    """The library, its own VFS, and ours, which then stays: connections point to it."""
    library = _library()
    real = library.sqlite3_vfs_find(None)
    for number, (kind, call) in enumerate(_METHODS):
        setattr(_methods, f"method_{number}", _pointer(kind, call))
    vfs = Vfs(version=2, name=b"repl-broker-tests", path_bytes_max=PATH_BYTES_MAX)
    vfs.file_bytes = max(real.contents.file_bytes, ctypes.sizeof(File))
    for name, kind, call in _CALLS:
        setattr(vfs, name, _pointer(kind, _with_real(real, name, kind, call)))
    # These look at no path, nor at whose they are.
    for name in ("dl_open", "dl_error", "dl_sym", "dl_close"):
        setattr(vfs, name, getattr(real.contents, name))
    for name in ("sleep", "time", "last_error", "time_ms"):
        setattr(vfs, name, getattr(real.contents, name))
    vfs.randomness = _pointer(CFUNCTYPE(c_int, c_void_p, c_int, c_void_p), _randomness)
    return library, real, vfs


_registered: list[tuple[ctypes.CDLL, Any, Vfs]] = []


@contextlib.contextmanager
def led(chance: Any) -> Iterator[None]:
    """While this lasts, SQLite opens such paths on their disks, and draws from this."""
    if not _registered:
        _registered.append(_register())
    library, real, vfs = _registered[0]
    library.sqlite3_vfs_register(ctypes.byref(vfs), 1)
    _chance.append(chance)
    library.sqlite3_randomness(0, None)  # it draws a seed anew
    try:
        yield
    finally:
        _chance.pop()
        library.sqlite3_randomness(0, None)
        library.sqlite3_vfs_register(real, 1)
    if _mistakes:
        mistakes = list(_mistakes)
        _mistakes.clear()
        raise mistakes[0]
