"""Things in the order of a number that only grows: whose each number is, and which are gone.

Numbers are appended in ascending order and released in any. What is left is kept in
blocks, which say how many of theirs live. A block of which most is released is
written anew without that, one at each release at most, so that no release takes long;
one of which all is released goes. So it takes room for what lives, however
high the numbers are, and going on from any number costs a look into a list.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import Final

__all__ = ["Order"]

BLOCK_NUMBERS: Final = 1024
SPARSE_RATIO: Final = 4  # a block is written anew when so much of it is released
WINDOW_NUMBERS: Final = 1 << 22  # that are loaded at once
DENSE_RATIO: Final = 8  # so much room is taken for each number, rather than sorting pairs
NOBODY: Final = 0xFFFF_FFFF  # is no owner


class _Block:
    __slots__ = ("first", "is_due", "live", "mark", "owners", "written")

    def __init__(self, first: int, owners: array[int], mark: int) -> None:
        self.first = first
        self.owners = owners
        self.written: array[int] | None = None  # the numbers, once some are missing
        self.live = len(owners)
        self.mark = mark
        self.is_due = False  # to be written anew

    @property
    def numbers(self) -> Sequence[int]:
        if self.written is None:
            return range(self.first, self.first + len(self.owners))
        return self.written


class Order:
    """``held(owner, first, last)`` are the numbers that an owner still has in that range."""

    __slots__ = ("_blocks", "_due", "_firsts", "_held", "_newest", "_next", "_room")

    def __init__(self, held: Callable[[int, int, int], Sequence[int]]) -> None:
        self._held = held
        self._blocks: list[_Block] = []
        self._firsts: list[int] = []  # the first number of each block
        self._due: list[_Block] = []
        # The block that is appended to, the number that it would take, and how many more.
        self._newest: _Block | None = None
        self._next = self._room = 0

    def __len__(self) -> int:
        """How many live."""
        return sum(block.live for block in self._blocks)

    def append(self, number: int, owner: int, count: int = 1, mark: int = 0) -> None:
        """The ``count`` numbers from ``number`` on are ``owner``'s. ``mark`` never falls."""
        while count > 0:
            block = self._block(number, mark)
            if count == 1:
                part = 1
                block.owners.append(owner)
            else:
                part = min(count, self._room)
                block.owners.extend((owner,) * part)
            block.live += part
            number += part
            count -= part
            self._next = number
            self._room -= part

    def append_each(self, number: int, owners: array[int], mark: int = 0) -> None:
        """The numbers from ``number`` on are these owners', one each."""
        start = 0
        while start < len(owners):
            block = self._block(number + start, mark)
            part = owners[start : start + self._room]
            block.owners += part
            block.live += len(part)
            start += len(part)
            self._next = number + start
            self._room -= len(part)

    def _block(self, number: int, mark: int) -> _Block:
        """The one that ``number`` is to be appended to; it has room."""
        block = self._newest
        if block is None or number != self._next or not self._room:
            block = self._newest = _Block(number, array("I"), mark)
            self._blocks.append(block)
            self._firsts.append(number)
            self._next, self._room = number, BLOCK_NUMBERS
        block.mark = mark
        return block

    def release(self, numbers: Sequence[int]) -> None:
        """These, in ascending order, are nobody's any more; each was appended."""
        start, end, firsts = 0, len(numbers), self._firsts
        while start < end:
            at = bisect_right(firsts, numbers[start]) - 1
            stop = start + 1
            if stop < end:
                is_last = at + 1 == len(firsts)
                stop = end if is_last else bisect_left(numbers, firsts[at + 1], start)
            block = self._blocks[at]
            block.live -= stop - start
            start = stop
            if not block.live:
                self._drop(at)
            elif (
                block.live * SPARSE_RATIO < len(block.owners)
                and not block.is_due
                and block is not self._newest
            ):
                block.is_due = True
                self._due.append(block)
        if self._due:
            self._write_anew(self._due.pop())

    def _drop(self, at: int) -> None:
        if self._blocks[at] is self._newest:
            self._newest = None
        del self._blocks[at], self._firsts[at]

    def _write_anew(self, block: _Block) -> None:
        block.is_due = False
        if not block.live:
            return
        at = bisect_right(self._firsts, block.first) - 1
        first, last = block.numbers[0], block.numbers[-1]
        held = [(owner, self._held(owner, first, last)) for owner in {*block.owners}]
        numbers, owners = _in_order([(owner, has) for owner, has in held if has])
        assert len(numbers) == block.live, "what was not released lives"
        before = self._blocks[at - 1] if at else None
        if (
            before is not None
            and before.written is not None
            and len(before.owners) + len(numbers) <= BLOCK_NUMBERS
        ):
            before.written += numbers
            before.owners += owners
            before.live += block.live
            before.mark = block.mark
            block.live = 0
            self._drop(at)
            return
        block.first, block.written, block.owners = numbers[0], numbers, owners
        self._firsts[at] = block.first

    def load(self, held: Iterable[tuple[int, Sequence[int]]], mark: int = 0) -> None:
        """Owners and all the numbers that each has, when nothing was appended yet."""
        assert not self._blocks
        windows: dict[int, list[tuple[int, Sequence[int]]]] = {}
        for owner, numbers in held:
            start = 0
            while start < len(numbers):
                window = numbers[start] // WINDOW_NUMBERS
                end = len(numbers)
                if numbers[-1] // WINDOW_NUMBERS != window:
                    end = bisect_left(numbers, (window + 1) * WINDOW_NUMBERS, start)
                windows.setdefault(window, []).append((owner, numbers[start:end]))
                start = end
        for window in sorted(windows):
            numbers, owners = _in_order(windows.pop(window))
            for start in range(0, len(numbers), BLOCK_NUMBERS):
                part = numbers[start : start + BLOCK_NUMBERS]
                block = _Block(part[0], owners[start : start + BLOCK_NUMBERS], mark)
                if part[-1] - part[0] >= len(part):
                    block.written = part
                self._blocks.append(block)
                self._firsts.append(block.first)

    def runs(self, after: int, mark_min: int = -1) -> Iterator[tuple[Sequence[int], array[int]]]:
        """Numbers above ``after`` in order, and their owners, BLOCK_NUMBERS at most at a time.

        Some may have been released. What was appended with a mark up to ``mark_min`` may
        be passed over. Not to be gone on with when anything was changed.
        """
        for at in range(max(bisect_right(self._firsts, after) - 1, 0), len(self._blocks)):
            block = self._blocks[at]
            if block.mark <= mark_min:
                continue
            numbers = block.numbers
            low = bisect_right(numbers, after)
            if low < len(numbers):
                yield numbers[low:], block.owners[low:]


def _in_order(held: list[tuple[int, Sequence[int]]]) -> tuple[array[int], array[int]]:
    """All the numbers of some owners in order, and whose each is; there are some."""
    first = min(numbers[0] for _, numbers in held)
    span = max(numbers[-1] for _, numbers in held) - first + 1
    total = sum(len(numbers) for _, numbers in held)
    if span > total * DENSE_RATIO:
        pairs = sorted(number << 32 | owner for owner, numbers in held for number in numbers)
        return array("Q", (p >> 32 for p in pairs)), array("I", (p & NOBODY for p in pairs))
    room = array("I", (NOBODY,)) * span
    for owner, numbers in held:
        at, count = numbers[0] - first, len(numbers)
        if numbers[-1] - numbers[0] < count:
            room[at : at + count] = array("I", (owner,)) * count
        else:
            for number in numbers:
                room[number - first] = owner
    every = range(first, first + span)
    if total == span:
        return array("Q", every), room
    return (
        array("Q", compress(every, map(NOBODY.__ne__, room))),
        array("I", filter(NOBODY.__ne__, room)),
    )
