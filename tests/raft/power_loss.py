"""What a store goes through in its life, and what a power loss can leave of its files.

``LIFE`` is a list of steps. Between two barriers (an fsync, or the end of a
write into the journal) a disk may have written any of the sectors that were
given to it, in any order, whole; so ``torn`` gives what a step began with and
some of the sectors that it changed: each prefix in the order of the file, and
subsets at random.

    python -m tests.raft.power_loss FOLDER

lives a part of it again and again, in processes that the kernel kills each at
another call, and leaves their folders in FOLDER/STEP.
"""

from __future__ import annotations

import os
import random
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Final
from unittest.mock import patch

from repl_broker import journal
from repl_broker.raft.log import Entry, EntryKind, HardState, Snapshot, WriteBatch
from repl_broker.storage import Identity, Loaded, MemoryStorage, SqliteStorage, Storage
from tests.raft import seccomp

SECTOR_BYTES: Final = 512
PREFIXES_MAX: Final = 40  # of one step
SUBSETS: Final = 12
INDEXES: Final = range(1, 40)
DATABASE: Final = "broker.db"
WAL: Final = "broker.db-wal"
JOURNAL: Final = "broker.journal"
SMALL: Final = 128 << 10  # a journal that is written again and again
PAGE_BYTES: Final = 4096  # SQLite's; in its write-ahead log each has a head
WAL_HEAD_BYTES: Final = 32
FRAME_HEAD_BYTES: Final = 24

Image = dict[str, bytes]  # the files, by name


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    act: Callable[[Storage], None]
    in_journal: bool = False  # it writes nothing else


@dataclass(frozen=True, slots=True)
class Found:
    """All that a store gives back."""

    loaded: Loaded
    history: dict[int, bytes]


def entries(first: int, last: int, term: int, size: int = 3000) -> tuple[Entry, ...]:
    return tuple(
        Entry(i, term, EntryKind.DATA, (b"%d/%d " % (i, term)).ljust(size, b"."))
        for i in range(first, last + 1)
    )


def write(*batches: WriteBatch) -> Callable[[Storage], None]:
    return lambda storage: storage.write(*batches)


LIFE: Final = (
    Step("a vote", write(WriteBatch(hard_state=HardState(1, "n2")))),
    Step("an append", write(WriteBatch(entries(1, 5, 1))), in_journal=True),
    Step("an append of a new term", write(WriteBatch(entries(6, 8, 2), HardState(2)))),
    Step("a truncation", write(WriteBatch(entries(4, 5, 3), HardState(3, "n1"), 4))),
    Step("a checkpoint", lambda storage: storage.tidy()),
    Step("a vote over an old log", write(WriteBatch(hard_state=HardState(4, "n3")))),
    Step(
        "two batches at once",
        write(WriteBatch(entries(6, 6, 4)), WriteBatch(entries(5, 7, 5), HardState(5), 5)),
    ),
    Step("a snapshot", lambda s: s.save_snapshot(Snapshot(5, 5, b"state" * 2000, b"members"))),
    Step("dropping", lambda s: s.drop([1, 2])),
    Step("rewriting", lambda s: s.replace({3: b"short"})),
    Step("a newer snapshot", lambda s: s.save_snapshot(Snapshot(6, 5, b"newer" * 2500))),
    Step("the begin of an install", lambda s: s.begin_install(Snapshot(20, 5, b"theirs" * 2000))),
    Step("staging", lambda s: s.stage(entries(11, 13, 5))),
    Step("a renewal", lambda s: s.renew_install(Snapshot(20, 5, b"theirs" * 2000))),
    Step("an install", lambda s: s.install()),
    Step("removing some of the old log", lambda s: s.discard(4000)),
    Step("removing more", lambda s: s.discard(4000)),
    Step("staging in vain", lambda s: s.begin_install(Snapshot(20, 5, b"other" * 2000))),
    Step("giving it up", lambda s: s.unstage()),
    Step("removing all", lambda s: s.discard(1 << 20)),
    Step("a stop", lambda s: s.close()),
    Step("a start", lambda s: None),
    Step("an append after a restart", write(WriteBatch(entries(21, 24, 6), HardState(6)))),
    Step("a small append", write(WriteBatch(entries(25, 25, 6, 100))), in_journal=True),
    Step(
        "two batches in one record",
        write(WriteBatch(entries(26, 26, 6)), WriteBatch(entries(27, 29, 6))),
        in_journal=True,
    ),
    Step("a start after a kill", lambda s: None),
    Step("an append over an old record", write(WriteBatch(entries(30, 33, 6))), in_journal=True),
    Step("a truncation in the journal", write(WriteBatch(entries(32, 32, 7), HardState(7), 32))),
    Step(
        "a small append over an old record",
        write(WriteBatch(entries(33, 33, 7, 100))),
        in_journal=True,
    ),
    Step("a large append behind it", write(WriteBatch(entries(34, 34, 7, 70_000)))),
    Step("one more", write(WriteBatch(entries(35, 35, 7))), in_journal=True),
    Step("a stop with something in the journal", lambda s: s.close()),
)
NAMES: Final = tuple(step.name for step in LIFE)


def found(storage: Storage) -> Found:
    return Found(storage.load(), storage.read(INDEXES))


def expected(life: Sequence[Step] = LIFE) -> list[Found]:
    """What is to be found before the first step, and after each: what memory would keep."""
    memory = MemoryStorage(Identity.draw("n1"))
    states = [found(memory)]
    for step in life:
        step.act(memory)
        states.append(found(memory))
    return states


# --- what a power loss leaves -------------------------------------------------------------


def image(folder: Path) -> Image:
    """Without the lock, and without the index of the log, which is memory and not disk."""
    paths = (folder / DATABASE, folder / WAL, folder / JOURNAL)
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def put(files: Image, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def live(folder: Path) -> list[list[Image]]:
    """For each step the files before it and after it, and between two files that it writes."""
    storage = SqliteStorage(folder, "n1")
    moments = []
    for step in LIFE:
        before = image(folder)
        between: list[Image] = []
        if step.name.startswith("a stop"):
            _watch_checkpoint(storage, folder, between)
        step.act(storage)
        if step.name == "a start after a kill":
            storage.close()
            folder = put(before, folder / "killed")
        if step.name.startswith("a start"):
            storage = SqliteStorage(folder, "n1")
        moments.append([before, *between, image(folder)])
    return moments


def _watch_checkpoint(storage: SqliteStorage, folder: Path, between: list[Image]) -> None:
    """All is in the write-ahead log then, and goes into the database."""

    def watch(statement: str) -> None:
        if "wal_checkpoint" in statement:
            between.append(image(folder))

    storage._writer.set_trace_callback(watch)


def torn(*moments: Image) -> Iterator[Image]:
    """All that can be there when the power goes in a step that has these moments."""
    for before, after in pairwise(moments):
        if JOURNAL in after and before.get(JOURNAL) != after[JOURNAL]:
            yield from _mixed_in(JOURNAL, before, after)
            before = {**before, JOURNAL: after[JOURNAL]}
        if before != after:
            yield from _torn_database(before, after)
        yield after


def _torn_database(before: Image, after: Image) -> Iterator[Image]:
    """A checkpoint changes the database from a write-ahead log that is on disk, and
    touches that only when the database is on disk. A log that starts anew has its
    header on disk before a frame is written. The journal goes at the end.
    """
    if before[DATABASE] == after[DATABASE]:
        old, new = before.get(WAL, b""), after[WAL]
        started = new[:WAL_HEAD_BYTES] + old[WAL_HEAD_BYTES:]
        if started != old:
            yield before
        yield from _mixed_in(WAL, {**before, WAL: started}, after)
        return
    yield from _mixed_in(DATABASE, before, after)
    moved = {**before, DATABASE: after[DATABASE]}
    if WAL in after:
        yield from _mixed_in(WAL, moved, after)
    else:
        yield moved
        yield {**moved, WAL: b""}


def _mixed_in(name: str, before: Image, after: Image) -> Iterator[Image]:
    for content in _mixed(before.get(name, b""), after.get(name, b"")):
        yield {**before, name: content}


def _mixed(before: bytes, after: bytes) -> Iterator[bytes]:
    sectors = range(0, len(after), SECTOR_BYTES)
    changed = [at for at in sectors if before[at:][:SECTOR_BYTES] != after[at:][:SECTOR_BYTES]]
    stride = max(1, len(changed) // PREFIXES_MAX)
    for some in (*range(0, len(changed), stride), len(changed)):
        yield _with_sectors(before, after, changed[:some])
    draw = random.Random(len(changed))
    for _ in range(SUBSETS):
        yield _with_sectors(before, after, [at for at in changed if draw.random() < 0.7])


def _with_sectors(before: bytes, after: bytes, sectors: list[int]) -> bytes:
    mixed = bytearray(before)
    for at in sectors:
        sector = after[at : at + SECTOR_BYTES]
        if len(mixed) < at:
            mixed.extend(bytes(at - len(mixed)))  # never written: zeros
        mixed[at : at + len(sector)] = sector
    return bytes(mixed)


# --- a process that is killed -------------------------------------------------------------

# Those that append to the write-ahead log or to the journal: where they write is known
# beforehand.
DEADLY: Final = (*LIFE[:4], LIFE[NAMES.index("a snapshot")])


def die_everywhere(folder: Path) -> None:
    """Each step of ``DEADLY`` once for each write of it, and once for its barrier."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, step in enumerate(DEADLY):
        deaths = folder / step.name
        if not step.in_journal:  # where the write itself is the barrier
            _die(deaths / "barrier", number, lambda storage, folder: seccomp.kill_at_sync())
        for place in count():
            if not _die(deaths / str(place), number, partial(_kill_at_write, place, step)):
                break


def _die(folder: Path, number: int, arm: Callable[[SqliteStorage, Path], None]) -> bool:
    """Live up to the step, and try to die in it. False if it was done nonetheless."""
    child = os.fork()
    if child == 0:
        storage = SqliteStorage(folder, "n1")
        for step in DEADLY[:number]:
            step.act(storage)
        arm(storage, folder)
        DEADLY[number].act(storage)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        (folder / "done").touch()
    return os.WIFSIGNALED(status)


def _kill_at_write(place: int, step: Step, storage: SqliteStorage, folder: Path) -> None:
    if step.in_journal:
        assert storage._journal is not None
        seccomp.kill_at_write(storage._journal._at + place * journal.RECORD_BYTES_MAX)
        return
    frames, part = divmod(place, 2)
    at = (folder / WAL).stat().st_size + frames * (FRAME_HEAD_BYTES + PAGE_BYTES)
    seccomp.kill_at_write(at + part * FRAME_HEAD_BYTES)


if __name__ == "__main__":
    with patch.object(journal, "JOURNAL_BYTES", SMALL):
        die_everywhere(Path(sys.argv[1]))
