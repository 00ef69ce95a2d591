"""The state as it is at one moment, as bytes, made in pieces while the state goes on.

    capture = state.capture()       the moment
    while capture.piece(turn):      any number of entries may be applied in between
        ...
    b"".join(capture.parts())       what the state was at that moment

What has not been packed is kept as it was before it changes: a topic's row, or a copy
of a block of segments. So a change costs one row more, once, and the work is bounded
however much is published meanwhile.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgspec

from repl_broker.levels import FIRST
from repl_broker.names import above
from repl_broker.patience import Patience
from repl_broker.segments import COLUMNS, Block
from repl_broker.wire import pack_settings

if TYPE_CHECKING:
    from repl_broker.state import BrokerState, Topic

__all__ = ["SNAPSHOT_FORMAT", "WITH_CLIENTS", "WITH_LEVEL", "WITH_REVOCATIONS", "Capture"]

SNAPSHOT_FORMAT: Final = 1
WITH_REVOCATIONS: Final = 2  # the same, and a last field; written only where there are any
WITH_CLIENTS: Final = 3  # longer rows and settings, where topics or keys have owners, or may idle
WITH_LEVEL: Final = 4  # two more fields: the level, where it is not the first, and senders

STEP_TOPICS: Final = 32  # between two looks at the clock
STEP_ROWS: Final = 256

_ENCODE: Final = msgspec.msgpack.Encoder().encode  # the bytes of msgpack.packb


class Capture:
    """The state tells it before anything changes. ``end`` when it is not needed.

    ``number``: the mark on what it has seen, of one that is told, of which there is one at a time.
    None: it is made in one go, marks nothing, and disturbs no other.
    """

    def __init__(
        self, state: BrokerState, number: int | None, release: Callable[[], None] = lambda: None
    ) -> None:
        self.index: Final = state.applied_index
        self._number = number
        self._release = release
        self._state = state
        self._settings = pack_settings(state.settings)
        self._clocks = (state.applied_index, state.seq, state.time_ms)
        self._keys = state.keys_to_wire()
        self._tombstones = _ENCODE([(n, *when) for n, when in state.tombstones.items()])
        self._floor = _ENCODE(state.tombstone_floor)
        self._revocations = [*state.revocations.items()]
        self._level = state.level
        self._senders = _ENCODE(state.senders.to_wire())
        self._topics_total = len(state.topics)
        self._topics: dict[str, tuple[Any, ...]] = {}  # as they were, of those that have changed
        self._gone: list[str] = []  # a heap: names of topics that were deleted meanwhile
        self._blocks = state.segments.blocks
        self._copies: dict[Block, Block] = {}  # as they were
        self._is_wide = len(self._settings) > 5 or len(self._settings[1]) > 3
        self._is_complete = False
        # What is made.
        self._rows: list[bytes] = []  # of topics
        self._columns: list[list[bytes]] = [[] for _ in range(COLUMNS)]
        self._published: list[bytes] = []
        self._published_total = 0
        self._key_rows: list[bytes] = []
        self._revoked_rows: list[bytes] = []
        self._steps: Generator[None, None, None] = self._work()

    # --- before something changes ---

    def before_topic(self, topic: Topic) -> None:
        """It is about to change, or to go."""
        assert self._number is not None
        if topic.captured != self._number:
            topic.captured = self._number
            self._topics[topic.name] = topic.to_wire()

    def deleted(self, name: str) -> None:
        """The topic is not found by its name any more; ``before_topic`` was told."""
        if name in self._topics:
            heapq.heappush(self._gone, name)

    def created(self, topic: Topic) -> None:
        """It was not there at the moment."""
        assert self._number is not None
        topic.captured = self._number

    def before_block(self, block: Block) -> None:
        """It is about to change."""
        assert self._number is not None
        if block.captured != self._number:
            block.captured = self._number
            self._copies[block] = block.copy()

    # --- pieces ---

    def piece(self, turn: Patience) -> bool:
        """Do some of it. Whether there is more."""
        return any(turn.is_over for _ in self._steps)

    def end(self) -> None:
        """The state need not tell any more. Also if it is given up."""
        self._release()
        self._steps.close()
        for each in (self._topics, self._copies):
            each.clear()
        for parts in (
            self._rows,
            self._published,
            self._key_rows,
            self._revoked_rows,
            self._blocks,
        ):
            parts.clear()
        self._columns.clear()

    def _work(self) -> Generator[None, None, None]:
        yield from self._pack_topics()
        yield from self._pack_blocks()
        for start in range(0, len(self._keys), STEP_ROWS):
            rows = self._keys[start : start + STEP_ROWS]
            self._is_wide = self._is_wide or any(len(row) > 5 for row in rows)
            self._key_rows.append(_rows(rows))
            yield
        for start in range(0, len(self._revocations), STEP_ROWS):
            revoked = self._revocations[start : start + STEP_ROWS]
            self._revoked_rows.append(_rows([(subject, *known) for subject, known in revoked]))
            yield
        self._is_complete = True

    def _pack_topics(self) -> Generator[None, None, None]:
        state, at, packed = self._state, "", 0
        while True:
            names = [*islice(state.names.irange(at), STEP_TOPICS)]
            rows: list[tuple[Any, ...]] = []
            for name in names:
                self._take_gone(rows, name)
                row = self._topics.pop(name, None)
                if row is None:
                    topic = state.topics[name]
                    if topic.captured == self._number:
                        continue  # it was not there
                    row = topic.to_wire()
                    if self._number is not None:
                        topic.captured = self._number
                rows.append(row)
            is_last = len(names) < STEP_TOPICS
            if is_last:
                self._take_gone(rows, None)
            if rows:
                self._is_wide = self._is_wide or any(
                    len(row) > 8 or len(row[1]) > 3 for row in rows
                )
                self._rows.append(_rows(rows))
                packed += len(rows)
            if is_last:
                break
            at = above(names[-1])
            yield
        assert packed == self._topics_total, "each topic that was there is packed, and no other"

    def _take_gone(self, rows: list[tuple[Any, ...]], before: str | None) -> None:
        """Topics that were deleted, up to where ``before`` comes; None: all."""
        gone = self._gone
        while gone and (before is None or gone[0] < before):
            row = self._topics.pop(heapq.heappop(gone), None)
            if row is not None:  # else it was created anew, and met under its name
                rows.append(row)

    def _pack_blocks(self) -> Generator[None, None, None]:
        for block in self._blocks:
            seen = self._copies.pop(block, block)
            if self._number is not None:
                block.captured = self._number
            for column, data in zip(self._columns, seen.pack(), strict=True):
                column.append(data)
            if seen.published:
                self._published.append(_rows(sorted(seen.published.items())))
                self._published_total += len(seen.published)
            yield

    # --- the whole ---

    def live_entries(self) -> array[int]:
        """Entries of which some message was retained, in order."""
        entries = array("Q")
        for part in self._columns[0]:
            entries.frombytes(part)
        return entries

    def parts(self) -> list[bytes]:
        """The snapshot, to be joined: a large copy, which can be made in a thread."""
        assert self._is_complete
        packer = msgpack.Packer()
        head = packer.pack_array_header
        has_level = self._level > FIRST
        has_revocations = has_level or bool(self._revocations)
        if has_level:
            version = WITH_LEVEL
        elif self._is_wide:
            version = WITH_CLIENTS
        else:
            version = WITH_REVOCATIONS if self._revocations else SNAPSHOT_FORMAT
        parts: list[bytes] = [
            head(11 + has_revocations + 2 * has_level),
            *map(_ENCODE, (version, *self._clocks, self._settings)),
            head(self._topics_total),
            *self._rows,
            head(COLUMNS),
        ]
        for column in self._columns:
            parts += (_binary_head(sum(map(len, column))), *column)
        parts += (head(self._published_total), *self._published)
        parts += (head(len(self._keys)), *self._key_rows)
        parts += (self._tombstones, self._floor)
        if has_revocations:
            parts += (head(len(self._revocations)), *self._revoked_rows)
        if has_level:
            parts += (_ENCODE(self._level), self._senders)
        return parts


def _rows(rows: Sequence[Any]) -> bytes:
    """One behind the other, without the head of an array of them."""
    return _ENCODE(rows)[1 if len(rows) < 16 else 3 :]


def _binary_head(size: int) -> bytes:
    """What msgpack has before this many bytes."""
    if size < 1 << 8:
        return b"\xc4" + size.to_bytes(1, "big")
    if size < 1 << 16:
        return b"\xc5" + size.to_bytes(2, "big")
    return b"\xc6" + size.to_bytes(4, "big")
