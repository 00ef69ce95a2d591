"""Damage within SQLite's write-ahead log, told from a torn tail.

    header │ frame … commit │ frame … commit │ frame …
                  ✗ damage           ▲       └ continues its checksum

SQLite takes the first frame that does not fit for the end of the log, and drops
it with all that is behind it. That is right for a transaction that a power loss
cut short, and wrong for a bit that flipped: what is behind it was acknowledged.

Each commit is on disk before the next transaction begins (``synchronous=FULL``).
So a commit with a frame behind it that carries the header's salts and continues
its checksum was on disk, and so was all before it: every frame there must fit.
Frames that were left behind, of an older log or of a torn transaction that was
written over, prove nothing: they have other salts, or continue another checksum.

What cannot be told: damage to the last transaction, or to what parts it from the
one before, looks like a torn tail. https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import os
from array import array
from struct import Struct, iter_unpack, pack
from typing import BinaryIO, Final

__all__ = ["is_damaged"]

# All numbers are stored most significant byte first. The sums are of the words in the
# order of the machine that made the log.
HEADER: Final = Struct(">8I")  # magic, version, page size, sequence, salts, sums
FRAME: Final = Struct(">6I")  # page, size of the database after a commit or 0, salts, sums
LITTLE: Final = 0x377F0682  # the magic where words are summed least significant byte first
BIG: Final = 0x377F0683
SECTOR_BYTES: Final = 512  # the least that a disk writes whole
BATCH_FRAMES: Final = 128
WORD: Final = 0xFFFF_FFFF

Sums = tuple[int, ...]  # two words


def is_damaged(file: BinaryIO) -> bool:
    """Whether SQLite would drop of this log what was on disk as a whole."""
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        return False
    if not _is_header(head):  # it is on disk before the first frame is written
        return any(piece.strip(b"\0") for piece in iter(lambda: file.read(1 << 20), b""))
    log = _Log(file, head)
    last = _last_certain(log)
    return not all(
        _fit(log, first, min(BATCH_FRAMES, last + 1 - first))
        for first in range(1, last + 1, BATCH_FRAMES)
    )


class _Log:
    """Access to the frames, which count from 1."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        magic, _, page_bytes, _, *rest = HEADER.unpack(head)
        self.is_big = magic == BIG
        self.salts = tuple(rest[:2])
        self.frame_bytes: int = FRAME.size + page_bytes
        self._file = file
        self._first_sums = tuple(rest[2:])
        self.count = (file.seek(0, os.SEEK_END) - HEADER.size) // self.frame_bytes

    def frames(self, first: int, count: int) -> bytes:
        return self._read(first, count * self.frame_bytes)

    def head(self, number: int) -> tuple[int, ...]:
        return FRAME.unpack(self._read(number, FRAME.size))

    def sums(self, number: int) -> Sums:
        """What this frame has for its sums; the first goes on from those of the header."""
        return self.head(number)[4:] if number else self._first_sums

    def sum(self, frame: bytes, seed: Sums) -> Sums:
        return _sum(frame[:8] + frame[FRAME.size :], seed, self.is_big)

    def place(self, number: int) -> int:
        return HEADER.size + (number - 1) * self.frame_bytes

    def _read(self, number: int, size: int) -> bytes:
        self._file.seek(self.place(number))
        return self._file.read(size)


def _is_header(head: bytes) -> bool:
    magic, *_, sum_1, sum_2 = HEADER.unpack(head)
    return magic in (LITTLE, BIG) and _sum(head[:24], (0, 0), magic == BIG) == (sum_1, sum_2)


def _sum(data: bytes, seed: Sums, is_big: bool) -> Sums:
    a, b = seed
    for x, y in iter_unpack(">II" if is_big else "<II", data):
        a = (a + b + x) & WORD
        b = (a + b + y) & WORD
    return a, b


def _last_certain(log: _Log) -> int:
    """The last commit that was on disk when a frame behind it was written; 0 if there is none."""
    behind = log.head(log.count) if log.count else ()
    for number in range(log.count - 1, 0, -1):
        head = log.head(number)
        if head[1] and behind[2:4] == log.salts and _goes_on(log, number):
            return number
        behind = head
    return 0


def _goes_on(log: _Log, number: int) -> bool:
    """Whether the next frame continues the sums of this one: as they should be, or as stored.

    What is stored counts only if one sector has the whole head: a torn one may have
    an older frame's commit and its own sums.
    """
    frame, behind = log.frames(number, 1), log.frames(number + 1, 1)
    wanted = log.sums(number + 1)
    if log.sum(behind, log.sum(frame, log.sums(number - 1))) == wanted:
        return True
    start = log.place(number)
    is_torn = start // SECTOR_BYTES != (start + FRAME.size - 1) // SECTOR_BYTES
    return not is_torn and log.sum(behind, log.sums(number)) == wanted


def _fit(log: _Log, first: int, count: int) -> bool:
    """Whether these frames have the header's salts and the sums of what is in them.

    A sum starts with the one that is stored before it, so all can be made side
    by side, each in 64 bits of a long number, which is several times as fast.
    """
    frames = log.frames(first, count)
    heads = [FRAME.unpack_from(frames, at) for at in range(0, len(frames), log.frame_bytes)]
    if len(heads) != count or any(head[2:4] != log.salts for head in heads):
        return False
    seeds = [log.sums(first - 1), *(head[4:] for head in heads[:-1])]
    a, b = (_side_by_side([seed[i] for seed in seeds]) for i in (0, 1))
    low = _side_by_side([WORD] * count)
    words = array("I", frames)
    if log.is_big:
        words.byteswap()
    pairs = array("Q", words.tobytes())
    stride = log.frame_bytes // pairs.itemsize
    for column in (0, *range(FRAME.size // pairs.itemsize, stride)):
        pair = int.from_bytes(pairs[column::stride].tobytes(), "little")
        a = (a + b + (pair & low)) & low
        b = (a + b + (pair >> 32 & low)) & low
    return [a, b] == [_side_by_side([head[i] for head in heads]) for i in (4, 5)]


def _side_by_side(words: list[int]) -> int:
    return int.from_bytes(pack(f"<{len(words)}Q", *words), "little")
