"""For which client each message of a topic counts, where it is not the same for all of them.

Messages that count for the same client and follow each other in the topic are one *run*:
two numbers, where it begins and for whom it counts. So a message costs nothing as long as
the same client publishes, and a step where another one does.

Clients have numbers of the topic's own, in the order in which they came. That order is part of
the state machine: it is the same on each node, after a restart too, so that a snapshot copies
the runs as they are.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from repl_broker.untracked import untrack

__all__ = ["Part", "Payers"]

CLIENTS_SPARE: Final = 8  # of whom no message is left, before they are looked for
HEAD_MAX: Final = 1024  # runs that are over, before they are cut off


class Part(NamedTuple):
    """Some messages, and for whom they count; "" for nobody."""

    client: str
    messages: int
    bytes: int  # of data


class Payers:
    """The runs of one topic, oldest first."""

    __slots__ = ("_clients", "_head", "_numbers", "_numbers_of", "_starts")

    def __init__(self) -> None:
        self._clients: list[str] = []  # by number
        self._numbers_of: dict[str, int] = {}
        self._starts = array("Q")  # the first sequence number of each run
        self._numbers = array("I")  # … and its client
        self._head = 0  # everything before it is over, and cut off now and then
        for each in (self, self._clients, self._starts, self._numbers):
            untrack(each)

    def __len__(self) -> int:
        return len(self._starts) - self._head

    @property
    def first(self) -> str:
        """For whom the oldest run counts; there is one."""
        return self._clients[self._numbers[self._head]]

    @property
    def last(self) -> str:
        """For whom the newest run counts; there is one."""
        return self._clients[self._numbers[-1]]

    def append(self, seq: int, client: str) -> None:
        """The topic's messages from ``seq`` on count for ``client``."""
        number, numbers = self._numbers_of.get(client), self._numbers
        if number is not None:
            if numbers[-1] != number:
                self._starts.append(seq)
                numbers.append(number)
            return
        self._starts.append(seq)
        numbers.append(len(self._clients))
        self._numbers_of[client] = len(self._clients)
        self._clients.append(client)
        self._tidy()

    def parts(self, sequences: Sequence[int], sizes: Sequence[int]) -> Iterator[Part]:
        """For whom these count: the oldest that the topic retains, all that there are of them."""
        at, run, last = 0, self._head, len(self._starts) - 1
        while at < len(sequences):
            end = len(sequences)
            if run < last:
                end = bisect_left(sequences, self._starts[run + 1], at)
            if end > at:
                yield Part(self._clients[self._numbers[run]], end - at, sum(sizes[at:end]))
            at, run = end, run + 1

    def cut(self, first_seq: int) -> None:
        """Messages before ``first_seq``, which the topic retains, have gone."""
        head, starts = self._head, self._starts
        while head + 1 < len(starts) and starts[head + 1] <= first_seq:
            head += 1
        if head > HEAD_MAX and head * 2 > len(starts):
            del starts[:head], self._numbers[:head]
            head = 0
        self._head = head
        self._tidy()

    def _tidy(self) -> None:
        """Forget clients of whom nothing is left, if they are many.

        It depends on the number of runs and of clients alone, which are the same on every node.
        """
        if len(self._clients) <= 2 * len(self) + CLIENTS_SPARE:
            return
        del self._starts[: self._head], self._numbers[: self._head]
        self._head = 0
        numbers = {old: new for new, old in enumerate(dict.fromkeys(self._numbers))}
        self._name([self._clients[old] for old in numbers])
        self._numbers[:] = array("I", map(numbers.__getitem__, self._numbers))

    def _name(self, clients: list[str]) -> None:
        self._clients[:] = clients
        self._numbers_of = {client: number for number, client in enumerate(clients)}

    def to_wire(self) -> tuple[Any, ...]:
        head = self._head
        return (
            tuple(self._clients),
            self._starts[head:].tobytes(),
            self._numbers[head:].tobytes(),
        )

    @classmethod
    def from_wire(cls, fields: tuple[Any, ...]) -> Payers:
        payers = cls()
        clients, starts, numbers = fields
        payers._name([*clients])
        payers._starts.frombytes(starts)
        payers._numbers.frombytes(numbers)
        return payers
