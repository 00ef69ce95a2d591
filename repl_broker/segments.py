"""Where each sequence number's data is: in which entry of the log, and how much of that lives.

A row is an entry that gave sequence numbers: the first one, its time, how many
live. Rows are in log order, so both entries and sequence numbers ascend. They lie in
blocks, and what no message lives of any more is cut out of one block at a time: so
nothing takes longer because there are many.

This is part of the state machine. A *capture* (capture.py) is told before a block changes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Final, NamedTuple, Protocol

from repl_broker.message import SEQUENCE_MAX

__all__ = ["COLUMNS", "Block", "Place", "Segments"]

COLUMNS: Final = 6
BLOCK_ROWS: Final = 1024
SPARSE_RATIO: Final = 4  # an entry is rewritten when so much of it is dead …
SPARSE_BYTES_MIN: Final = 4096  # … and that much is to be won


class Place(NamedTuple):
    """Where a message's data is, and when it came."""

    entry: int
    ordinal: int  # which of the entry's messages, from 0
    time_ms: int


class Watcher(Protocol):
    """It has to see each block as it was when the watch began."""

    def before_block(self, block: Block) -> None: ...


class Block:
    """Some rows, column by column."""

    __slots__ = (
        "captured",
        "dead",
        "entries",
        "first_seqs",
        "live",
        "live_bytes",
        "published",
        "stored_bytes",
        "times",
    )

    def __init__(self, columns: Sequence[bytes] = (b"",) * COLUMNS) -> None:
        self.entries = _unpack("Q", columns[0])
        self.first_seqs = _unpack("Q", columns[1])
        self.times = _unpack("Q", columns[2])
        self.live = _unpack("I", columns[3])  # messages of the entry that are retained
        self.live_bytes = _unpack("Q", columns[4])  # … and the size of their data
        self.stored_bytes = _unpack("Q", columns[5])  # … and of all that the entry still has
        # For the rare entry of which some messages were refused (an unknown topic)
        # or were repeats: the ordinals of those that were published.
        self.published: dict[int, tuple[int, ...]] = {}
        self.dead = 0  # rows
        self.captured = 0  # by which capture it was seen

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def columns(self) -> tuple[array[int], ...]:
        return (
            self.entries,
            self.first_seqs,
            self.times,
            self.live,
            self.live_bytes,
            self.stored_bytes,
        )

    def pack(self) -> list[bytes]:
        """The rows that are not dead, column by column."""
        if not self.dead:
            return [column.tobytes() for column in self.columns]
        live = self.live
        return [array(c.typecode, compress(c, live)).tobytes() for c in self.columns]

    def copy(self) -> Block:
        """The same rows, which stay as they are now."""
        block = Block()
        block.take(column[:] for column in self.columns)
        block.published, block.dead = self.published.copy(), self.dead
        return block

    def take(self, columns: Iterable[array[int]]) -> None:
        """Have these rows, of which none is dead."""
        (
            self.entries,
            self.first_seqs,
            self.times,
            self.live,
            self.live_bytes,
            self.stored_bytes,
        ) = columns
        self.dead = 0

    def thin(self) -> None:
        """Cut out the dead rows."""
        live = self.live
        self.take([array(c.typecode, compress(c, live)) for c in self.columns])

    def join(self, other: Block) -> None:
        """Have the rows of the block that follows, too."""
        for column, more in zip(self.columns, other.columns, strict=True):
            column.extend(more)
        self.published |= other.published


class Segments:
    """All rows. ``sparse`` are entries that should be rewritten without their dead."""

    __slots__ = ("_blocks", "_firsts", "rows", "sparse", "watcher")

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        self.sparse: set[int] = set()
        self.rows = 0  # that are not dead
        self._blocks: list[Block] = []
        self._firsts: list[int] = []  # the first sequence number of each

    @classmethod
    def load(
        cls, columns: Sequence[bytes], published: Iterable[tuple[int, tuple[int, ...]]]
    ) -> Segments:
        """What a snapshot has."""
        segments = cls()
        wide = [memoryview(each) for each in columns]
        sizes = [len(each) // (len(columns[0]) // 8 or 1) for each in columns]
        for row in range(0, len(columns[0]) // 8, BLOCK_ROWS):
            end = row + BLOCK_ROWS
            cut = [c[row * n : end * n].tobytes() for c, n in zip(wide, sizes, strict=True)]
            block = Block(cut)
            segments._blocks.append(block)
            segments._firsts.append(block.first_seqs[0])
            segments.rows += len(block)
        for entry, ordinals in published:
            found = segments._find(entry)
            if found is not None:
                found[0].published[entry] = ordinals
        return segments

    @property
    def blocks(self) -> list[Block]:
        """All there are, in order, as a list of its own."""
        return self._blocks[:]

    # --- what happens ---

    def add(self, entry: int, first_seq: int, time_ms: int, count: int, size: int) -> None:
        """``count`` messages of ``size`` bytes got the sequence numbers from ``first_seq`` on."""
        block = self._blocks[-1] if self._blocks else None
        if block is None or block.entries[-1] != entry:
            if block is None or len(block.entries) >= BLOCK_ROWS:
                block = self._begin(first_seq)
            elif self.watcher is not None:
                self.watcher.before_block(block)
            block.entries.append(entry)
            block.first_seqs.append(first_seq)
            block.times.append(time_ms)
            block.live.append(0)
            block.live_bytes.append(0)
            block.stored_bytes.append(0)
            self.rows += 1
        elif not block.live[-1]:  # all that it had is deleted by the same entry
            block.dead -= 1
            self.rows += 1
        block.live[-1] += count
        block.live_bytes[-1] += size
        block.stored_bytes[-1] += size

    def _begin(self, first_seq: int) -> Block:
        block = Block()
        self._blocks.append(block)
        self._firsts.append(first_seq)
        if len(self._blocks) > 1:
            self._tidy(len(self._blocks) - 2)
        return block

    def holds(self, entry: int) -> bool:
        """Whether the newest entry, ``entry``, has a message that is retained."""
        block = self._blocks[-1] if self._blocks else None
        return block is not None and block.entries[-1] == entry and block.live[-1] > 0

    def publish_only(self, entry: int, ordinals: tuple[int, ...]) -> None:
        """Of the newest entry's messages only these were published."""
        if self.holds(entry):
            self._blocks[-1].published[entry] = ordinals

    def release(self, sequences: array[int], sizes: array[int]) -> list[int]:
        """Messages, in order, are trimmed. Gives the entries of which they were the last."""
        dead: list[int] = []
        start, end, firsts = 0, len(sequences), self._firsts
        while start < end:
            at = bisect_right(firsts, sequences[start]) - 1
            block = self._blocks[at]
            if self.watcher is not None:
                self.watcher.before_block(block)
            row = bisect_right(block.first_seqs, sequences[start]) - 1
            stop = start + 1
            if stop < end:
                if row + 1 < len(block.first_seqs):
                    stop = bisect_left(sequences, block.first_seqs[row + 1], start)
                else:
                    is_last = at + 1 == len(firsts)
                    stop = end if is_last else bisect_left(sequences, firsts[at + 1], start)
            size = sizes[start] if stop == start + 1 else sum(sizes[start:stop])
            block.live[row] -= stop - start
            block.live_bytes[row] -= size
            start = stop
            if not block.live[row]:
                dead.append(block.entries[row])
                self._die(at, dead[-1])
            elif block.live_bytes[row] * SPARSE_RATIO + SPARSE_BYTES_MIN < block.stored_bytes[row]:
                block.stored_bytes[row] = block.live_bytes[row]
                self.sparse.add(block.entries[row])
        return dead

    def _die(self, at: int, entry: int) -> None:
        block = self._blocks[at]
        self.rows -= 1
        block.dead += 1
        block.published.pop(entry, None)
        if at + 1 < len(self._blocks):  # the newest may go on
            self._tidy(at)

    def _tidy(self, at: int) -> None:
        """Cut the dead rows out of a block that is not the newest, if they are half of it."""
        block = self._blocks[at]
        if block.dead * 2 <= len(block):
            return
        block.thin()  # packed, it is the same as before
        before = self._blocks[at - 1] if at else None
        if before is not None and len(before) + len(block) <= BLOCK_ROWS:
            if self.watcher is not None:
                self.watcher.before_block(before)
            before.join(block)
        elif len(block):
            self._firsts[at] = block.first_seqs[0]
            return
        del self._blocks[at], self._firsts[at]

    # --- reading ---

    def first_seq_since(self, time_ms: int) -> int:
        """The first sequence number that was given at ``time_ms`` or later."""
        at = bisect_left(self._blocks, time_ms, key=lambda block: block.times[-1])
        if at == len(self._blocks):
            return SEQUENCE_MAX
        block = self._blocks[at]
        return block.first_seqs[bisect_left(block.times, time_ms)]

    def time_of(self, seq: int) -> int:
        """When the message was published; it is retained."""
        block = self._blocks[bisect_right(self._firsts, seq) - 1]
        return block.times[bisect_right(block.first_seqs, seq) - 1]

    def place(self, seq: int) -> Place:
        """Where the message is; it is retained."""
        block = self._blocks[bisect_right(self._firsts, seq) - 1]
        row = bisect_right(block.first_seqs, seq) - 1
        entry, ordinal = block.entries[row], seq - block.first_seqs[row]
        published = block.published.get(entry)
        return Place(entry, ordinal if published is None else published[ordinal], block.times[row])

    def published(self, entry: int, count: int) -> tuple[int, Sequence[int]] | None:
        """The first sequence number of the entry's, and which of its ``count`` messages have
        one; None if all is dead."""
        found = self._find(entry)
        if found is None:
            return None
        block, row = found
        return block.first_seqs[row], block.published.get(entry, range(count))

    def live_entries(self) -> list[int]:
        """Entries of which some message is retained, in order."""
        return [e for block in self._blocks for e in compress(block.entries, block.live)]

    def _find(self, entry: int) -> tuple[Block, int] | None:
        at = bisect_left(self._blocks, entry, key=lambda block: block.entries[-1])
        if at == len(self._blocks):
            return None
        block = self._blocks[at]
        row = bisect_left(block.entries, entry)
        return (block, row) if block.entries[row] == entry else None


def _unpack(typecode: str, data: bytes) -> array[int]:
    values = array(typecode)
    values.frombytes(data)
    return values
