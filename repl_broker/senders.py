"""Which of the commands that nodes sent on to the leader were carried out.

A node that hears no answer sends its command again, and both may get into the log. So
each has a *number*, given by its *sender* (Raft dissertation, section 6.3, calls this a
session), and the state machine carries out the first of a number, and no other. What
came in between does not matter, nor does any clock.

A sender says with each of its numbers below which one it will never repeat any: its
*floor*. Below it, all count as carried out, and nothing is kept of them. A node that
starts anew is a sender of a higher *run* (the count of its starts, and chance, so that two
processes never share one); what comes late from an earlier run is not
carried out, because nobody waits for it.

Part of the state machine: the same calls give the same answers on every node.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final

__all__ = ["Senders"]

SENDERS_MAX: Final = 64  # nodes; the one that has been silent for longest is forgotten first


class _Sender:
    """The numbers of one run that were carried out, from its floor on, as ranges."""

    __slots__ = ("ends", "floor", "run", "starts")

    def __init__(self, run: int, floor: int) -> None:
        self.run = run
        self.floor = floor
        self.starts: list[int] = []
        self.ends: list[int] = []  # … exclusive; between two ranges there is a gap

    def rise(self, floor: int) -> None:
        """Keep nothing below ``floor``."""
        if floor <= self.floor:
            return
        self.floor = floor
        over = bisect_right(self.ends, floor)
        del self.starts[:over], self.ends[:over]
        if self.starts and self.starts[0] < floor:
            self.starts[0] = floor

    def take(self, number: int) -> bool:
        """Whether it is the first of its number."""
        starts, ends = self.starts, self.ends
        if number < self.floor:
            return False
        if ends and number == ends[-1]:  # in order, as nearly all come
            ends[-1] += 1
            return True
        row = bisect_right(starts, number)  # the ranges before it begin at or below the number
        if row and number < ends[row - 1]:
            return False
        joins_left = row > 0 and ends[row - 1] == number
        joins_right = row < len(starts) and starts[row] == number + 1
        if joins_left and joins_right:
            ends[row - 1] = ends[row]
            del starts[row], ends[row]
        elif joins_left:
            ends[row - 1] += 1
        elif joins_right:
            starts[row] = number
        else:
            starts.insert(row, number)
            ends.insert(row, number + 1)
        return True


class Senders:
    """All senders that are known, the one that was heard last at the end."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Sender] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def run_of(self, name: str) -> int:
        """The newest run of the sender; 0 if none is known."""
        sender = self._known.get(name)
        return 0 if sender is None else sender.run

    def take(self, name: str, run: int, floor: int, numbers: Sequence[int]) -> list[bool]:
        """For each of ``numbers``, whether it is the first; it counts as carried out then."""
        sender = self._known.get(name)
        if sender is None or run > sender.run:
            sender = self._known[name] = _Sender(run, floor)
        elif run < sender.run:
            return [False] * len(numbers)
        self._known.move_to_end(name)
        if len(self._known) > SENDERS_MAX:
            self._known.popitem(last=False)
        sender.rise(floor)
        return [sender.take(number) for number in numbers]

    def to_wire(self) -> list[tuple[Any, ...]]:
        return [(n, s.run, s.floor, s.starts, s.ends) for n, s in self._known.items()]

    @classmethod
    def from_wire(cls, rows: Iterable[tuple[Any, ...]]) -> Senders:
        senders = cls()
        for name, run, floor, starts, ends in rows:
            sender = senders._known[name] = _Sender(run, floor)
            sender.starts, sender.ends = [*starts], [*ends]
        return senders
