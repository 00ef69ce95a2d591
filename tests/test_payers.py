"""For whom each message of a topic counts, against a list with a name for each."""

from __future__ import annotations

from array import array
from itertools import groupby
from random import Random

import pytest

from repl_broker import payers as payers_module
from repl_broker.payers import CLIENTS_SPARE, Part, Payers


class Messages:
    """A topic's messages, each with its payer; sizes tell them apart."""

    def __init__(self) -> None:
        self.payers = Payers()
        self.kept: list[tuple[int, int, str]] = []
        self.seq = 0

    def publish(self, count: int, client: str) -> None:
        self.payers.append(self.seq + 1, client)
        for _ in range(count):
            self.seq += 1
            self.kept.append((self.seq, self.seq % 97, client))

    def trim(self, count: int) -> None:
        """All but one at the most: a topic that is empty has no payers."""
        del self.kept[: min(count, len(self.kept) - 1)]
        self.payers.cut(self.kept[0][0])

    def parts(self, count: int) -> list[Part]:
        oldest = self.kept[:count]
        sequences, sizes = (array("Q", column) for column in [*zip(*oldest, strict=True)][:2])
        return [*self.payers.parts(sequences, sizes)]


def expected(kept: list[tuple[int, int, str]]) -> list[Part]:
    runs = [(client, [*run]) for client, run in groupby(kept, lambda each: each[2])]
    return [Part(client, len(run), sum(size for _, size, _ in run)) for client, run in runs]


@pytest.mark.parametrize("seed", range(40))
def test_each_message_counts_for_one_and_a_restart_changes_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payers_module, "HEAD_MAX", 3)
    chance, messages = Random(seed), Messages()
    messages.publish(1, "ann")
    for number in range(300):
        # Some come back all the time, and others never.
        client = chance.choice(["", "ann", "bob", f"passer-by {number}"])
        messages.seq += chance.choice([0, 0, 7])  # other topics' messages
        if chance.random() < 0.6:
            messages.publish(chance.randint(1, 4), client)
        else:
            messages.trim(chance.choice([1, 1, 2, 40]))
        for count in {1, len(messages.kept) // 2 or 1, len(messages.kept)}:
            assert messages.parts(count) == expected(messages.kept[:count])
        runs = expected(messages.kept)
        assert len(messages.payers) == len(runs)
        assert messages.payers.last == runs[-1].client
        wire = messages.payers.to_wire()
        assert len(wire[0]) <= 2 * len(runs) + CLIENTS_SPARE
        again = Payers.from_wire(wire)
        assert again.to_wire() == wire
        if chance.random() < 0.1:  # and the one that was restored goes on alike
            lived, messages.payers = messages.payers, again
            messages.publish(1, client := f"new {number}")
            lived.append(messages.seq, client)
            messages.trim(2)
            lived.cut(messages.kept[0][0])
            assert messages.payers.to_wire() == lived.to_wire()


def test_what_is_over_is_not_kept() -> None:
    messages = Messages()
    for number in range(20_000):
        messages.publish(1, f"client {number}")
        if number > 10:
            messages.trim(1)
    assert len(messages.payers) < 20
    names, starts, numbers = messages.payers.to_wire()
    assert (len(names) < 50, len(starts), len(numbers)) == (True, 8 * 11, 4 * 11)
    assert len(messages.payers._starts) < 4096
