"""What is due next, against a look at all; and that trimming it in pieces comes to the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    Expire,
    Publish,
    Retention,
    Settings,
)
from repl_broker.expiry import Expiry
from repl_broker.state import EXPIRY_STEPS_OF_TOPIC, BrokerState

NAMES = [f"t{number}" for number in range(6)]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.integers(0, 9)), max_size=60))
@settings(max_examples=4 * settings().max_examples)
def test_what_is_due_first_is_found_though_only_earlier_times_are_noted(
    changes: list[tuple[str, int | None]],
) -> None:
    due: dict[str, int] = {}
    expiry = Expiry(due.get)
    for name, time_ms in changes:
        before = due.pop(name, None)
        if time_ms is not None:
            due[name] = time_ms
            if before is None or time_ms < before:
                expiry.note(name, time_ms)
        if len(changes) % 3:
            assert expiry.first() == min(((at, n) for n, at in due.items()), default=None)
    assert expiry.first() == min(((at, n) for n, at in due.items()), default=None)
    assert len(expiry._noted) <= len(NAMES)


class Node:
    """A state, and the same from a snapshot now and then."""

    def __init__(self) -> None:
        self.state = BrokerState()
        self.time_ms = 1
        self.apply(Configure(Settings(True, Retention(1000, 10, 10_000), 9, 9)))

    def apply(self, *commands: Command) -> None:
        self.state.apply(self.state.applied_index + 1, self.time_ms, commands)

    def is_due(self) -> bool:
        """By a look at all topics."""
        return any(
            len(topic) and topic.oldest_ms + topic.retention.seconds * 1000 < self.time_ms
            for topic in self.state.topics.values()
        )


def anything(chance: random.Random) -> Command:
    name = chance.choice(NAMES)
    match chance.randrange(9):
        case 0:
            return CreateTopic(name, seconds=chance.choice([1, 5, 20, None]), replace=True)
        case 1:
            return DeleteTopic(name)
        case 2:
            retention = Retention(1000, chance.choice([3, 10]), 10_000)
            return Configure(Settings(True, retention, 9, 9))
        case 3:
            return Expire(chance.choice([0, 1, 9, 30]))
        case _:
            return Publish(name, (b"x",) * chance.choice([1, 3, 9]))


@given(st.integers(0, 2**32))
@settings(max_examples=2 * settings().max_examples)
def test_nodes_that_came_there_in_other_ways_trim_the_same(seed: int) -> None:
    chance = random.Random(seed)
    node, other = Node(), Node()
    for _ in range(chance.randrange(80)):
        node.time_ms = other.time_ms = node.time_ms + chance.choice([0, 1, 700, 4000])
        command = anything(chance)
        node.apply(command)
        other.apply(command)
        if command == Expire():
            assert not node.is_due()
        if chance.random() < 0.2:
            other.state = BrokerState.restore(other.state.snapshot())
        assert node.state.expiry_due(node.time_ms) == node.is_due()
    pieces = 0
    whole = BrokerState.restore(node.state.snapshot())
    while node.is_due():
        assert node.state.expiry_due(node.time_ms)
        for each in (node, other):
            each.apply(Expire(5))
        pieces += 1
        assert pieces < 1000
    whole.apply(whole.applied_index + 1, node.time_ms, [Expire()])
    assert node.state.snapshot() == other.state.snapshot()
    histories = [
        {name: [*topic.sequences()] for name, topic in state.topics.items()}
        for state in (node.state, whole)
    ]
    assert histories[0] == histories[1]
    assert pieces == 0 or whole.retained_messages == node.state.retained_messages


def test_one_entry_trims_no_more_than_it_may() -> None:
    node = Node()
    node.apply(*(Publish(name, (b"x",) * 100) for name in NAMES))
    node.time_ms = 60_000
    left, entries = 600, 0
    while node.state.expiry_due(node.time_ms):
        node.apply(Expire(50))
        entries += 1
        assert left - 50 <= node.state.retained_messages < left
        left = node.state.retained_messages
    assert left == 0
    assert entries == pytest.approx(600 / 50, abs=1 + 6 * EXPIRY_STEPS_OF_TOPIC / 50)


def test_nothing_is_looked_at_that_is_not_due() -> None:
    looks: list[str] = []
    due = {f"t{number}": number for number in range(100_000)}

    def due_ms(name: str) -> int:
        looks.append(name)
        return due[name]

    expiry = Expiry(due_ms)
    for name, time_ms in due.items():
        expiry.note(name, time_ms)
    for _ in range(1000):
        assert expiry.first() == (0, "t0")
    assert set(looks) == {"t0"}
    due |= {f"t{number}": 1_000_000 + number for number in range(10)}
    assert expiry.first() == (10, "t10")
    assert len(looks) == 1011
