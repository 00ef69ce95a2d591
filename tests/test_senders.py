"""Numbered commands: the first of a number is carried out, whatever comes in between."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from repl_broker.command import (
    Command,
    CreateTopic,
    DeleteTopic,
    Numbered,
    Publish,
    RaiseLevel,
)
from repl_broker.levels import FIRST, NUMBERED
from repl_broker.message import Message
from repl_broker.senders import SENDERS_MAX, Senders
from repl_broker.state import REPEATED, Applied, BrokerState, Published, TopicChanged
from repl_broker.wire import decode_entry, encode_command, encode_entry


class Model:
    """All that ever came, of one sender."""

    def __init__(self) -> None:
        self.run = self.floor = 0
        self.seen: set[int] = set()

    def take(self, run: int, floor: int, numbers: Sequence[int]) -> list[bool]:
        if run > self.run:
            self.run, self.floor, self.seen = run, 0, set()
        if run < self.run:
            return [False] * len(numbers)
        self.floor = max(self.floor, floor)
        first = []
        for number in numbers:
            first.append(number >= self.floor and number not in self.seen)
            self.seen.add(number)
        return first


@pytest.mark.parametrize("seed", range(20))
def test_the_first_of_each_number_is_taken_and_no_other(seed: int) -> None:
    chance = random.Random(seed)
    senders, models = Senders(), {name: Model() for name in ("n1", "n2")}
    base, run = 1, 1
    for _ in range(500):
        base += chance.randrange(4)
        run += chance.random() < 0.01
        if chance.random() < 0.05:
            senders = Senders.from_wire(senders.to_wire())
        name = chance.choice(["n1", "n2"])
        floor = max(1, base - chance.randrange(20))  # of earlier ones, which come late
        numbers = [floor + chance.randrange(30) for _ in range(chance.randrange(5))]
        said_run = max(1, run - (chance.random() < 0.1))
        taken = senders.take(name, said_run, floor, numbers)
        assert taken == models[name].take(said_run, floor, numbers)


def test_numbers_in_order_take_one_range_and_below_the_floor_none() -> None:
    senders = Senders()
    for number in range(1, 10_000):
        assert senders.take("n1", 1, 1, [number]) == [True]
    assert senders.to_wire() == [("n1", 1, 1, [1], [10_000])]
    assert senders.take("n1", 1, 10_001, []) == []
    assert senders.to_wire() == [("n1", 1, 10_001, [], [])]


def test_of_too_many_senders_the_one_goes_that_was_silent_for_longest() -> None:
    senders = Senders()
    for node in range(SENDERS_MAX):
        senders.take(f"n{node}", 1, 1, [1])
    senders.take("n0", 1, 1, [2])
    senders.take("new", 1, 1, [1])
    assert len(senders) == SENDERS_MAX
    assert senders.take("n0", 1, 1, [1, 2]) == [False, False]
    assert senders.take("n1", 1, 1, [1]) == [True]


# --- in the state machine ---


def applied(state: BrokerState, *commands: Command) -> Applied:
    """As every node applies them: from the entry's bytes."""
    entry = encode_entry(1000, [*map(encode_command, commands)])
    return state.apply(state.applied_index + 1, *decode_entry(entry))


def numbers(*given: int) -> Numbered:
    return Numbered("n1", 1, 1, given)


def test_a_repeated_put_undoes_nothing() -> None:
    """Its first answer was lost; another client has set the topic, and published, since."""
    state = BrokerState()
    put = CreateTopic("chat", messages=2, replace=True)
    applied(state, numbers(1), put)
    applied(state, CreateTopic("chat", messages=1000, replace=True))
    for _ in range(5):
        applied(state, Publish("chat", (b"1",)))
    found = applied(state, numbers(1), put)
    assert found.outcomes[1:] == [REPEATED]
    assert len(state.topics["chat"]) == 5


def test_a_repeated_removal_removes_nothing_that_came_later() -> None:
    state = BrokerState()
    applied(state, Publish("chat", (b"1",)))
    applied(state, numbers(1), DeleteTopic("chat"))
    applied(state, Publish("chat", (b"2",)))
    assert applied(state, numbers(1), DeleteTopic("chat")).outcomes[1:] == [REPEATED]
    assert len(state.topics["chat"]) == 1


def test_only_what_was_not_carried_out_before_is_and_the_numbers_end_with_their_commands() -> None:
    state = BrokerState()
    publish = Publish("chat", (b"1",))
    applied(state, numbers(2), publish)
    found = applied(state, publish, numbers(1, 2, 3), publish, publish, publish, publish)
    first_of = [o.first_seq if isinstance(o, Published) else o for o in found.outcomes]
    assert first_of == [2, TopicChanged(created=False), 3, REPEATED, 4, 5]
    assert found.numbered == ((numbers(1, 2, 3), 1),)
    assert [e.seq for e in found.events if isinstance(e, Message)] == [2, 3, 4, 5]
    assert state.dead_ordinals(2, [publish, numbers(1), *[publish] * 4]) == {2}
    assert [state.segments.place(seq)[:2] for seq in (2, 3, 4, 5)] == [(2, n) for n in (0, 1, 3, 4)]


def test_numbers_without_their_commands_say_nothing_of_the_next_entry() -> None:
    state = BrokerState()
    publish = Publish("chat", (b"1",))
    applied(state, numbers(1, 2), publish, publish)
    applied(state, numbers(1, 2))
    assert isinstance(applied(state, publish).outcomes[0], Published)


def test_what_was_carried_out_is_in_a_snapshot_with_the_level() -> None:
    state = BrokerState()
    applied(state, RaiseLevel(NUMBERED))
    applied(state, numbers(1), CreateTopic("chat"))
    restored = BrokerState.restore(state.snapshot())
    assert restored.level == NUMBERED
    assert restored.digest() == state.digest()
    assert applied(restored, numbers(1), CreateTopic("other")).outcomes[1:] == [REPEATED]
    assert "other" not in restored.topics


def test_a_level_never_falls() -> None:
    state = BrokerState()
    assert state.level == FIRST
    applied(state, RaiseLevel(NUMBERED), RaiseLevel(FIRST))
    assert state.level == NUMBERED
