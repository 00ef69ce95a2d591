"""A node's disk: the one way to its store, and the order in which things reach it.

    decided ──▶ queue ──▶ writer: one job at a time ──▶ durable up to ``durable``
                  │
                  └ log · snapshot · entries dropped or rewritten · a peer's snapshot · notes

What was decided first is on the disk first, so a crash between any two jobs leaves
what there was at some moment. In particular:

- An entry is applied when a majority has it, which may be before this disk does. A
  snapshot of the state is behind the log that it covers, since there is no other way.
- What a job was decided for may be gone when its turn comes. A snapshot that takes
  the place of the log begins another *generation*: jobs of an older one are not run.
- Batches of the log that wait behind one another are written as one.

Reading goes beside the queue, but never past what waits in it. When a peer's snapshot
takes the place of the log, store and memory change at two moments; ``settled`` has
readers wait for the second, and tells by the generation that there was one.

An error of any kind is the disk's last: what it left behind is unknown, so nothing
runs after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final

import trio

from repl_broker.errors import StorageError
from repl_broker.histogram import Durations, Histogram
from repl_broker.parts import count_of, parts_of
from repl_broker.raft.log import Entry, Snapshot, WriteBatch
from repl_broker.storage import Identity, Storage, Sums, sums_of
from repl_broker.writer import Done, Writer

__all__ = ["Disk", "InThread"]

DISCARD_BYTES: Final = 2 << 20  # removed in one transaction: a commit waits for no more
DROP_ENTRIES_MAX: Final = 2000  # the same, of entries

InThread = Callable[..., Awaitable[Any]]


class _Job:
    """Something that waits for its turn, by itself."""

    __slots__ = ("call", "done", "is_off")

    def __init__(
        self,
        call: Callable[[], object],
        done: Done = lambda error: None,
        is_off: Callable[[], bool] = lambda: False,
    ) -> None:
        self.call = call
        self.done = done
        self.is_off = is_off  # asked in the event loop, when its turn has come


_Write = tuple[int, WriteBatch]  # the number by which it is reported


class Disk:
    """The queue before a store. All but ``writer`` and ``in_thread`` run in the event loop.

    ``on_durable`` is told the number of the newest log write that is on the disk, and how
    many bytes of entries came with it; ``on_idle`` is called behind that, once the next job
    is under way; ``on_failed`` once, with the error that is the end.
    """

    def __init__(
        self,
        storage: Storage,
        writer: Writer,
        in_thread: InThread,
        *,
        on_durable: Callable[[int, int], None] = lambda number, size: None,
        on_idle: Callable[[], None] = lambda: None,
        on_failed: Callable[[StorageError], None] = lambda error: None,
    ) -> None:
        self.writer = writer
        self.identity: Identity = storage.identity
        self.generation = 0  # of the log
        self.asked = self.durable = 0  # log writes, by number: the last one that …
        self.durable_index = 0  # where the log on the disk ends
        self.failure: StorageError | None = None
        self.writes = 0  # transactions of the log
        self._storage = storage
        self._in_thread = in_thread
        self._on_durable = on_durable
        self._on_idle = on_idle
        self._on_failed = on_failed
        self._queue: deque[_Write | _Job] = deque()
        self._current: Sequence[_Write] | _Job | None = None
        self._advancing = self._ended = False
        self._installs = 0  # that wait or run
        self._is_discarding = False
        self._moved = trio.lowlevel.ParkingLot()  # woken when ``durable`` or the generation is
        self._seconds = Histogram()

    # --- what it is ---

    @property
    def store_bytes(self) -> int:
        return self._storage.bytes

    @property
    def write_seconds(self) -> Durations:
        """Of the transactions of the log, fsync included."""
        return self._seconds.durations()

    @property
    def is_quick(self) -> bool:
        """Whether a small write of the log would be done in place now."""
        return self._current is None and self.writer.is_quick

    @property
    def is_installing(self) -> bool:
        """Whether a peer's snapshot is about to take the place of the log."""
        return self._installs > 0

    @property
    def busy_seconds(self) -> float:
        """For how long it has been at its present job; 0 without one."""
        return self.writer.busy_seconds

    # --- the queue ---

    def append(self, number: int, batch: WriteBatch) -> None:
        """Have a write of the log made durable."""
        self.asked = number
        self._queue.append((number, batch))
        self._advance()

    async def written(self) -> None:
        """Until all of the log that was asked for so far is on this disk."""
        number = self.asked
        self._require_sound()
        while self.durable < number:
            await self._moved.park()
            self._require_sound()

    async def save_snapshot(self, snapshot: Snapshot, generation: int) -> None:
        """Save the state of ``generation``, behind the log that it covers."""
        sums = await self._sums(snapshot)
        for number, part in enumerate(parts_of(snapshot.data)):
            await self._run(partial(self._storage.save_part, number, part), generation)
        await self._run(partial(self._save, snapshot, sums), generation)
        self.discard()  # the parts of the one before; this one may be too small to have any

    async def _sums(self, snapshot: Snapshot) -> Sums | None:
        """Of one that is in parts: made beside the writer, since a large state has much to sum."""
        if not count_of(snapshot.data):
            return None
        sums: Sums = await self._in_thread(sums_of, snapshot)
        return sums

    def _save(self, snapshot: Snapshot, sums: Sums | None) -> None:
        if snapshot.index > self.durable_index:
            raise StorageError(
                f"a snapshot of entry {snapshot.index} was to be saved over a log that ends at "
                f"{self.durable_index}; this is a fault of repl-broker: please report it"
            )
        self._storage.save_snapshot(snapshot, sums)

    async def drop(self, indexes: Sequence[int], generation: int) -> None:
        """Remove these entries (ascending), piece by piece."""
        start = 0

        def piece() -> None:
            nonlocal start
            some = indexes[start : start + DROP_ENTRIES_MAX]
            start += self._storage.drop(some, DISCARD_BYTES)

        while start < len(indexes) and generation == self.generation:
            await self._run(piece, generation)

    async def drop_others(self, upto: int, keep: Sequence[int], generation: int) -> None:
        """Remove every entry up to ``upto`` but those in ``keep`` (ascending), piece by piece."""
        after = 0

        def piece() -> None:
            nonlocal after
            after = self._storage.drop_others(upto, keep, after, DROP_ENTRIES_MAX, DISCARD_BYTES)

        while True:
            await self._run(piece, generation)
            if after >= upto or generation != self.generation:
                break

    async def replace(self, entries: Mapping[int, bytes], generation: int) -> None:
        await self._run(partial(self._storage.replace, entries), generation)

    async def adopt(self, cluster_id: str, epoch: str, switch: Callable[[], None]) -> None:
        """Belong to that cluster. ``switch`` says so in memory, in the step in which ``identity``
        does: whoever asked for it may have gone."""

        def belong() -> None:
            self.identity = self._storage.identity
            switch()

        await self._run(partial(self._storage.adopt, cluster_id, epoch), switch=belong)

    def note(self, name: str, value: object) -> None:
        """Have it written; nobody waits for that."""
        self._add(partial(self._storage.write_notes, {name: value}))

    async def noted(self, name: str, value: object) -> None:
        """Have it written, and wait until it is."""
        await self._run(partial(self._storage.write_notes, {name: value}))

    # --- a peer's snapshot ---

    async def begin_install(self, snapshot: Snapshot) -> None:
        """Stage it, in the place of what was staged before."""
        sums = await self._stage_parts(snapshot)
        await self._run(partial(self._storage.begin_install, snapshot, sums))
        self.discard()

    async def renew_install(self, snapshot: Snapshot) -> None:
        """Stage it in the place of an older one, whose entries belong to it, too."""
        sums = await self._stage_parts(snapshot)
        await self._run(partial(self._storage.renew_install, snapshot, sums))
        self.discard()

    async def _stage_parts(self, snapshot: Snapshot) -> Sums | None:
        sums = await self._sums(snapshot)
        for number, part in enumerate(parts_of(snapshot.data)):
            await self._run(partial(self._storage.stage_part, number, part))
        return sums

    async def stage(self, entries: Sequence[Entry]) -> None:
        await self._run(partial(self._storage.stage, entries))

    def unstage(self) -> None:
        """Clear what is staged."""
        self._add(self._storage.unstage, lambda error: self.discard())

    def discard(self) -> None:
        """Remove what was put aside, in pieces behind whatever waits."""
        if self._is_discarding or self.failure is not None or not self._storage.has_forgotten:
            return
        self._is_discarding = True
        more = False

        def piece() -> None:
            nonlocal more
            more = self._storage.discard(DISCARD_BYTES)

        def done(error: Exception | None) -> None:
            if more and error is None:
                self._add(piece, done)
            else:
                self._is_discarding = False

        self._add(piece, done)

    def install(self, index: int, switch: Callable[[], None]) -> None:
        """Put what is staged, a snapshot at ``index``, in the place of the log.

        ``switch`` does the same in memory. No reader gets between the two (``settled``).
        """
        self._installs += 1

        def done(error: Exception | None) -> None:
            self._installs -= 1
            if error is None:
                self.generation += 1
                self.durable_index = index
                switch()
                self.discard()
            self._moved.unpark_all()

        self._add(self._storage.install, done)

    async def settled(self) -> int:
        """The generation of the log, which is that of the state: not while they change."""
        while self._installs:
            await self._moved.park()
        self._require_sound()
        return self.generation

    # --- reading ---

    async def load(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Before anything is written: what ``call(storage, …)`` finds."""
        return await self._in_thread(call, self._storage, *arguments)

    def loaded(self, last_index: int) -> None:
        """The log on the disk ends there."""
        self.durable_index = last_index

    async def read(self, indexes: Sequence[int]) -> dict[int, bytes]:
        """The data of those of these applied entries that are there."""
        if indexes and max(indexes) >= self._waits_from():
            await self.written()
        found: dict[int, bytes] = await self._in_thread(self._storage.read, indexes)
        return found

    async def history(self, after: int, upto: int, bytes_max: int) -> list[Entry]:
        """What goes with a snapshot to a peer, of what is applied."""
        if upto >= self._waits_from():
            await self.written()
        found: list[Entry] = await self._in_thread(self._storage.history, after, upto, bytes_max)
        return found

    def _waits_from(self) -> float:
        """The first entry that is not as it will be: it, or what is in its place, waits."""
        waiting = [item for item in self._queue if isinstance(item, tuple)]
        if self._current is not None and not isinstance(self._current, _Job):
            waiting += self._current
        return min((_first(batch) for _, batch in waiting), default=float("inf"))

    async def tidy(self) -> None:
        """Checkpoint the store, beside the writer: commits do not wait for that."""
        self._require_sound()
        try:
            await self._in_thread(self._storage.tidy)
        except Exception as error:
            raise self._fail(error) from error

    # --- the end ---

    def end(self) -> None:
        """Begin nothing any more; what is under way may still be."""
        self._ended = True
        self._moved.unpark_all()

    async def close(self) -> None:
        """Wait for what is under way. The store can be closed then."""
        self.end()
        await self.writer.close()

    # --- turns ---

    async def _run(
        self,
        call: Callable[[], object],
        generation: int | None = None,
        switch: Callable[[], None] = lambda: None,
    ) -> None:
        """Have it done, in its turn, then call ``switch``. Cancelling stops the wait alone."""
        finished = trio.Event()
        failure: Exception | None = None

        def done(error: Exception | None) -> None:
            nonlocal failure
            failure = error
            if error is None:
                switch()
            finished.set()

        def is_off() -> bool:
            return generation is not None and generation != self.generation

        self._require_sound()
        self._add(call, done, is_off)
        await finished.wait()
        if failure is not None:
            raise failure

    def _add(
        self,
        call: Callable[[], object],
        done: Done = lambda error: None,
        is_off: Callable[[], bool] = lambda: False,
    ) -> None:
        self._queue.append(_Job(call, done, is_off))
        self._advance()

    def _advance(self) -> None:
        """Begin what is next. Some jobs are done when they have begun: hence the loop."""
        if self._advancing:
            return
        self._advancing = True
        while self._queue and self._current is None and not self._ended and not self.failure:
            item = self._queue.popleft()
            if isinstance(item, _Job):
                self._begin(item)
            else:
                self._write(item)
        self._advancing = False

    def _begin(self, job: _Job) -> None:
        if job.is_off():
            job.done(None)
            return

        def done(error: Exception | None) -> None:
            self._current = None
            self._finish(job, error)
            self._advance()

        self._current = job
        self.writer.submit(lambda: _call(job.call), done)

    def _finish(self, job: _Job, error: Exception | None) -> None:
        if error is not None:
            job.done(self._fail(error))
            return
        try:
            job.done(None)
        except Exception as raised:  # noqa: BLE001  half of a change is none
            self._fail(raised)

    def _write(self, first: _Write) -> None:
        due = [first]
        while self._queue and isinstance(self._queue[0], tuple):
            due.append(self._queue.popleft())  # type: ignore[arg-type]
        batches = [batch for _, batch in due]

        def write() -> None:
            began = perf_counter()
            self._storage.write(*batches)
            self._seconds.observe(perf_counter() - began)

        def done(error: Exception | None) -> None:
            self._current = None
            if error is not None:
                self._fail(error)
                return
            self.writes += 1
            size = 0
            for batch in batches:
                if batch.entries:
                    self.durable_index = batch.entries[-1].index
                    size += sum(len(entry.data) for entry in batch.entries)
                elif batch.truncate_from is not None:
                    self.durable_index = batch.truncate_from - 1
            self.durable = due[-1][0]
            self._moved.unpark_all()
            self._on_durable(self.durable, size)
            self._advance()
            self._on_idle()

        self._current = due
        self.writer.submit(write, done, quick=self._storage.is_quick(*batches))

    def _require_sound(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _fail(self, error: Exception) -> StorageError:
        """Nothing runs any more. Returns what is told of it."""
        if self.failure is None:
            self.failure = _told(error)
            self._on_failed(self.failure)
            waiting = [item for item in self._queue if isinstance(item, _Job)]
            self._queue.clear()
            for job in waiting:
                job.done(self.failure)
            self._moved.unpark_all()
        return self.failure


def _call(call: Callable[[], object]) -> None:
    call()


def _first(batch: WriteBatch) -> float:
    """The first entry that it touches."""
    if batch.truncate_from is not None:
        return batch.truncate_from
    return batch.entries[0].index if batch.entries else float("inf")


def _told(error: Exception) -> StorageError:
    if isinstance(error, StorageError):
        return error
    told = StorageError(
        f"the store could not do what it was asked: {type(error).__name__}: {error}; nothing more "
        "is acknowledged. Check the machine's memory and disk, then start the node again"
    )
    told.__cause__ = error
    return told
