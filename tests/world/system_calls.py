"""The system's calls about files, led to a disk of memory where the path or the descriptor is
one of its own, and to the system where it is not.

Whatever a program calls goes through ``os``, ``io.open`` or ``fcntl.flock`` (as pathlib does),
so nothing in it needs to know. What is not led here fails: there is nothing below such a path.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import fcntl
import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from tests.world.files import OpenFile, SimFiles, disk_of

__all__ = ["led"]

DIRECT_BYTES = 512  # what writes past the page cache are aligned to

_numbers = itertools.count(1 << 28)  # no process has so many descriptors
_open: dict[int, OpenFile] = {}


def _of(descriptor: int) -> OpenFile:
    found = _open.get(descriptor)
    if found is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return found


# --- by path ---


def _os_open(disk: SimFiles, path: str, flags: int, mode: int = 0o777) -> int:
    opened = disk.open(path, flags, mode)
    number = next(_numbers)
    _open[number] = opened
    return number


def _stat(disk: SimFiles, path: str, *, follow_symlinks: bool = True) -> os.stat_result:
    return disk.about(disk.node(path))


def _chmod(disk: SimFiles, path: str, mode: int, *, follow_symlinks: bool = True) -> None:
    node = disk.node(path)
    node.mode = stat.S_IFMT(node.mode) | mode


def _mkdir(disk: SimFiles, path: str, mode: int = 0o777) -> None:
    disk.make_folder(path, mode)


def _access(disk: SimFiles, path: str, mode: int) -> bool:
    return disk.find(path) is not None


def _truncate(disk: SimFiles, path: str, size: int) -> None:
    with contextlib.closing(disk.open(path, os.O_WRONLY)) as opened:
        opened.resize(size)


def _statvfs(disk: SimFiles, path: str) -> os.statvfs_result:
    disk.node(path)
    free = disk.room() // 4096
    return os.statvfs_result((4096, 4096, free + disk.used_bytes // 4096, free, free, *[0] * 5))


def _replace(disk: SimFiles, old: str, new: Any) -> None:
    disk.rename(old, os.fspath(new))


BY_PATH: dict[str, Callable[..., Any]] = {
    "open": _os_open,
    "stat": _stat,
    "lstat": _stat,
    "chmod": _chmod,
    "mkdir": _mkdir,
    "unlink": SimFiles.remove,
    "remove": SimFiles.remove,
    "rmdir": SimFiles.remove,
    "rename": _replace,
    "replace": _replace,
    "listdir": SimFiles.listing,
    "access": _access,
    "truncate": _truncate,
    "statvfs": _statvfs,
}


# --- by descriptor ---


def _close(descriptor: int) -> None:
    _of(descriptor).close()
    del _open[descriptor]


def _pread(descriptor: int, count: int, at: int) -> bytes:
    return _of(descriptor).read(count, at)


def _pwrite(descriptor: int, data: Any, at: int) -> int:
    opened = _of(descriptor)
    if opened.flags & os.O_DIRECT:
        place = ctypes.addressof(ctypes.c_char.from_buffer(data))
        if any(number % DIRECT_BYTES for number in (place, len(data), at)):
            raise OSError(errno.EINVAL, "not aligned, as direct writes are to be")
    return opened.write(bytes(data), at)


def _read(descriptor: int, count: int) -> bytes:
    opened = _of(descriptor)
    data = opened.read(count, opened.at)
    opened.at += len(data)
    return data


def _write(descriptor: int, data: Any) -> int:
    opened = _of(descriptor)
    if opened.flags & os.O_APPEND:
        opened.at = len(opened.node.data)
    written = opened.write(bytes(data), opened.at)
    opened.at += written
    return written


def _lseek(descriptor: int, offset: int, whence: int) -> int:
    opened = _of(descriptor)
    starts = {os.SEEK_SET: 0, os.SEEK_CUR: opened.at, os.SEEK_END: len(opened.node.data)}
    opened.at = starts[whence] + offset
    return opened.at


def _fsync(descriptor: int) -> None:
    _of(descriptor).sync()


def _ftruncate(descriptor: int, size: int) -> None:
    _of(descriptor).resize(size)


def _fallocate(descriptor: int, at: int, size: int) -> None:
    opened = _of(descriptor)
    if at + size > len(opened.node.data):
        opened.resize(at + size)


def _fstat(descriptor: int) -> os.stat_result:
    opened = _of(descriptor)
    return opened.disk.about(opened.node)


def _fchmod(descriptor: int, mode: int) -> None:
    node = _of(descriptor).node
    node.mode = stat.S_IFMT(node.mode) | mode


def _fstatvfs(descriptor: int) -> os.statvfs_result:
    opened = _of(descriptor)
    return _statvfs(opened.disk, opened.path)


def _flock(descriptor: int, operation: int) -> None:
    """Of one process: exclusive or not at all, and nobody waits."""
    opened = _of(descriptor)
    node = opened.node
    if operation & fcntl.LOCK_UN:
        if node.locked_by is opened:
            node.locked_by = None
    elif node.locked_by not in (None, opened):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    else:
        node.locked_by = opened


BY_DESCRIPTOR: dict[str, Callable[..., Any]] = {
    "close": _close,
    "pread": _pread,
    "pwrite": _pwrite,
    "read": _read,
    "write": _write,
    "lseek": _lseek,
    "fsync": _fsync,
    "fdatasync": _fsync,
    "ftruncate": _ftruncate,
    "truncate": _ftruncate,
    "posix_fallocate": _fallocate,
    "fstat": _fstat,
    "stat": _fstat,
    "fchmod": _fchmod,
    "chmod": _fchmod,
    "statvfs": _fstatvfs,
    "fstatvfs": _fstatvfs,
}


class _Raw(io.RawIOBase):
    """What ``open`` gives for a file on such a disk."""

    def __init__(self, descriptor: int, mode: str, closes: bool) -> None:
        super().__init__()
        self._descriptor, self._mode, self._closes = descriptor, mode, closes

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return "r" in self._mode or "+" in self._mode

    def writable(self) -> bool:
        return self._mode.strip("rbt") != ""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return _lseek(self._descriptor, offset, whence)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        _ftruncate(self._descriptor, size)
        return size

    def readinto(self, buffer: Any) -> int:
        data = _read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        return _write(self._descriptor, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._closes:
                _close(self._descriptor)


FLAGS = {
    "r": os.O_RDONLY,
    "r+": os.O_RDWR,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}


def _io_open(
    disk: SimFiles | None,
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
) -> Any:
    if disk is not None:
        flags = FLAGS[mode.replace("b", "").replace("t", "")]
        file = _os_open(disk, os.fsdecode(file), flags, 0o666)
    raw = _Raw(file, mode, closefd)
    if buffering == 0:
        return raw
    buffered = io.BufferedRandom if "+" in mode else io.BufferedWriter
    binary = buffered(raw) if raw.writable() else io.BufferedReader(raw)
    return binary if "b" in mode else io.TextIOWrapper(binary, encoding or "utf-8", errors, newline)


def _below(
    target: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Whole paths for names in a folder that is given by its descriptor."""
    if (folder := _open.get(options.get("dir_fd", options.get("src_dir_fd")))) is not None:
        options = dict(options)
        options.pop("dir_fd", None)
        options.pop("src_dir_fd", None)
        target = f"{folder.path}/{target}"
    if (folder := _open.get(options.get("dst_dir_fd"))) is not None:
        options = {name: value for name, value in options.items() if name != "dst_dir_fd"}
        arguments = (f"{folder.path}/{arguments[0]}", *arguments[1:])
    return target, arguments, options


def _leading(module: Any, name: str, by_path: Any, by_descriptor: Any) -> Callable[..., Any]:
    real = getattr(module, name)

    def call(target: Any, *arguments: Any, **options: Any) -> Any:
        target, arguments, options = _below(target, arguments, options)
        if isinstance(target, int):
            if target in _open and by_descriptor is not None:
                return by_descriptor(target, *arguments, **options)
        elif by_path is not None and (disk := disk_of(target)) is not None:
            return by_path(disk, os.fsdecode(target), *arguments, **options)
        return real(target, *arguments, **options)

    return call


def _leading_open(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(file: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(file, int):
            if file in _open:
                return _io_open(None, file, *arguments, **options)
        elif (disk := disk_of(file)) is not None:
            return _io_open(disk, file, *arguments, **options)
        return real(file, *arguments, **options)

    return call


@contextlib.contextmanager
def led() -> Iterator[None]:
    """While this lasts, calls about such paths go to their disks."""
    new: list[tuple[Any, str, Callable[..., Any]]] = [
        (os, name, _leading(os, name, BY_PATH.get(name), BY_DESCRIPTOR.get(name)))
        for name in sorted({*BY_PATH, *BY_DESCRIPTOR})
    ]
    new.append((fcntl, "flock", _leading(fcntl, "flock", None, _flock)))
    new += [(module, "open", _leading_open(module.open)) for module in (io, builtins)]
    old = [(module, name, getattr(module, name)) for module, name, _ in new]
    try:
        for module, name, call in new:
            setattr(module, name, call)
        yield
    finally:
        for module, name, call in old:
            setattr(module, name, call)
