"""A disk that is slow, lies, is full or fails once, for one node.

    disk = BadDisk(compiled(folder), folder, node.data_dir)
    node.prefix = (*disk.prefix, *node.prefix)
    disk.set(slow_us=30_000)        # at any time
    node.kill()
    disk.lose_unsynced(random)      # as if the power had failed as well

disk.c stands between the node and libc. It keeps what is written over, so that
what a disk would not have after a power loss can be taken back: what was not
synced, in any subset (``lose_unsynced``), or, of a disk that lies, the newest
writes whatever was said about them (``lose_newest``).
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("disk.c")
CONTROL_BYTES: Final = 4096
COMPILE_SECONDS_MAX: Final = 30
NUMBERS: Final = (  # of struct control in disk.c, in that order
    "slow_us",
    "lies",
    "room",
    "overwrites",
    "fail_write_in",
    "fail_sync_in",
    "keeps",
    "writes",
    "syncs",
    "slept_us",
    "lied",
    "refused",
    "failed",
)
HEALTHY: Final = {"slow_us": 0, "lies": 0, "room": -1, "fail_write_in": 0, "fail_sync_in": 0}

_NUMBER: Final = struct.Struct("=q")
_HEAD: Final = struct.Struct("=qqqqq32s")  # struct record
_WRITE, _TRUNCATE, _SYNC = 1, 2, 3


def compiled(folder: Path, compiler: str = "cc") -> Path:
    """The library. Raises CalledProcessError if it is not C."""
    library = folder / "disk.so"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [*command, "-o", library, SOURCE, "-ldl", "-lpthread"],
        check=True,
        timeout=COMPILE_SECONDS_MAX,
    )
    return library


class Seen(NamedTuple):
    """What has happened since the disk was made."""

    writes: int
    syncs: int
    slept_us: int
    lied: int
    refused: int
    failed: int


@dataclass(frozen=True, slots=True)
class Write:
    """One that was made, and what it wrote over."""

    kind: int
    seconds: float  # monotonic
    name: str
    offset: int
    length_before: int  # of the file
    before: bytes


class Control:
    """The page of numbers that a disk looks at, and counts on."""

    def __init__(self, path: Path) -> None:
        """It must be there, of CONTROL_BYTES."""
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), CONTROL_BYTES)

    def set(self, **numbers: int) -> None:
        for name, value in numbers.items():
            _NUMBER.pack_into(self._page, 8 * NUMBERS.index(name), value)

    @property
    def seen(self) -> Seen:
        found = [_NUMBER.unpack_from(self._page, 8 * NUMBERS.index(n))[0] for n in Seen._fields]
        return Seen(*found)


class BadDisk:
    """Healthy, until it is told otherwise. ``folder`` is for what belongs to the disk itself."""

    def __init__(self, library: Path, folder: Path, data_dir: Path) -> None:
        self.data_dir = data_dir
        path = folder / f"{data_dir.name}.disk"
        path.write_bytes(bytes(CONTROL_BYTES))
        self.undo = Path(f"{path}.undo")
        self._control = Control(path)
        self.set(**HEALTHY, keeps=1)
        self.prefix = (  # what a command is run by, to have this disk
            "env",
            f"LD_PRELOAD={library}",
            f"DISK_FOLDER={data_dir}",
            f"DISK_CONTROL={path}",
        )

    def set(self, **numbers: int) -> None:
        """Those of NUMBERS that come before the counts."""
        self._control.set(**numbers)

    def heal(self) -> None:
        self.set(**HEALTHY)

    @property
    def seen(self) -> Seen:
        return self._control.seen

    # --- after the process has ended ---

    def forget(self) -> None:
        """What was written is there for good."""
        if self.undo.exists():
            os.truncate(self.undo, 0)

    def lose_unsynced(self, choice: random.Random) -> int:
        """Of all that was not synced, each write with even odds; how many are gone."""
        writes = self.writes()
        synced = {write.name: place for place, write in enumerate(writes) if write.kind == _SYNC}
        lost = {
            place
            for place, write in enumerate(writes)
            if place > synced.get(write.name, -1) and choice.random() < 0.5
        }
        return self._lose(writes, lost)

    def lose_newest(self, seconds: float) -> int:
        """All of the last so many seconds, whatever was said of it; how many are gone."""
        writes = self.writes()
        end = writes[-1].seconds - seconds if writes else 0.0
        return self._lose(writes, {n for n, write in enumerate(writes) if write.seconds > end})

    def writes(self) -> list[Write]:
        """All since ``forget``, with the marks of syncs between them."""
        data = self.undo.read_bytes() if self.undo.exists() else b""
        return list(_parse(data))

    def _lose(self, writes: list[Write], lost: set[int]) -> int:
        """Take back all from the first that is lost, then do again what is not."""
        again: list[Callable[[], None]] = []
        places = [place for place in lost if writes[place].kind != _SYNC]
        for place in range(len(writes) - 1, min(places, default=len(writes)) - 1, -1):
            write = writes[place]
            if write.kind != _SYNC:
                repeat = self._take_back(write)
                if place not in lost:
                    again.append(repeat)
        for repeat in reversed(again):
            repeat()
        self.forget()
        return len(places)

    def _take_back(self, write: Write) -> Callable[[], None]:
        """Returns what does it again."""
        path = self.data_dir / write.name
        if not path.exists():  # it was removed since, which lasts
            return lambda: None
        with path.open("r+b") as file:
            length = os.fstat(file.fileno()).st_size
            if write.kind == _TRUNCATE:
                after, target = b"", write.offset
            else:
                file.seek(write.offset)
                # What came behind is taken back by now: to its end, or as long as it is known.
                grew = length > write.length_before
                after, target = file.read(-1 if grew else len(write.before)), length
            file.truncate(write.length_before)
            file.seek(write.offset)
            file.write(write.before)

        def repeat() -> None:
            with path.open("r+b") as file:
                if write.kind == _TRUNCATE:
                    file.truncate(target)
                file.seek(write.offset)
                file.write(after)

        return repeat


def _parse(data: bytes) -> Iterator[Write]:
    """Without a record that a kill has cut short: what it was to precede was not written."""
    at = 0
    while at + _HEAD.size <= len(data):
        kind, time_ns, offset, length, size, name = _HEAD.unpack_from(data, at)
        at += _HEAD.size + size
        if at > len(data):
            return
        before = data[at - size : at]
        yield Write(kind, time_ns / 1e9, name.rstrip(b"\0").decode(), offset, length, before)
