"""Files and folders that are for the node's user alone, whatever the umask says.

A file is made with its mode, before anything is in it: one that is tightened afterwards was open
for a moment, and what was opened then stays so.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

__all__ = [
    "exposure",
    "give_to_owner",
    "make_file",
    "make_folder",
    "openness",
    "sync",
    "tighten",
    "write_file",
]

PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def make_file(path: Path) -> bool:
    """Make an empty file for this user only, if there is none; whether it was made.

    Root makes it for the folder's owner, as SQLite does with its own: else a node with a user of
    its own could not read what a command left beside its store that root had to run.
    """
    with _opened(path.parent) as folder:
        try:
            made = _make(path.name, folder)
        except FileExistsError:
            return False
        os.close(made)
    return True


def write_file(path: Path, text: str) -> None:
    """Write a file for this user only, or root for the folder's owner, at once in the place of
    what is there.

    The owner of the folder can put links at any name in it at any moment: so nothing is opened
    by its name that was not made by the same call, and the folder is looked up once.
    """
    aside = f".{path.name}.{secrets.token_hex(8)}.partial"
    with _opened(path.parent) as folder:
        made = _make(aside, folder)
        try:
            with open(made, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside, dir_fd=folder)
            raise


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make(name: str, folder: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    made = os.open(name, flags, PRIVATE_FILE, dir_fd=folder)
    try:
        _give(made, folder)
    except BaseException:
        os.close(made)
        raise
    return made


def _give(descriptor: int, folder: int) -> None:
    """Have root's file belong to the owner of the folder."""
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        if owner.st_uid not in (0, os.fstat(descriptor).st_uid):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def give_to_owner(path: Path, folder: Path) -> None:
    """Have root's file belong to the owner of the folder that it will be in."""
    with _opened(folder) as opened:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _give(file, opened)
        finally:
            os.close(file)


def make_folder(folder: Path) -> None:
    """With its parents, for this user only. The names of what was made are on disk then."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)  # which is an error where a file is
    for path in missing:
        sync(path.parent)


def tighten(paths: Iterable[Path]) -> list[Path]:
    """Take from others what they may do with those of the files that are there; which they were.

    Raises PermissionError for a file of another user.
    """
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & OTHERS:
                path.chmod(mode & ~OTHERS)
                found.append(path)
    return found


def exposure(path: Path, *, group_may_read: bool = False) -> str:
    """Who else may read or change a file with a secret; "" for nobody but those who are meant.

    A group that may read is meant where that is how this user can read the file, too: it belongs
    to another user then, as systemd's credentials and mounted secrets do.
    """
    try:
        about = path.stat()
    except OSError:
        return ""
    for bits, words in (
        (stat.S_IWOTH, "everyone may change"),
        (stat.S_IWGRP, "its group may change"),
        (stat.S_IROTH, "everyone may read"),
    ):
        if about.st_mode & bits:
            return words
    if about.st_mode & stat.S_IRGRP and about.st_uid == os.geteuid() and not group_may_read:
        return "its group may read"
    return ""


def openness(folder: Path) -> str:
    """Who else may put files into a folder, and take them out of it; "" for nobody."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return ""
    if mode & stat.S_IWOTH:
        return "everyone may change"
    return "its group may change" if mode & stat.S_IWGRP else ""


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
