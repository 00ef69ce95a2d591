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
from repl_broker.expiry import Due, Expiry
from repl_broker.state import EXPIRY_STEPS_OF_TOPIC, BrokerState

NAMES = [f"t{number}" for number in range(6)]


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.integers(0, 9)), max_size=60),
    st.randoms(use_true_random=False),
)
@settings(max_examples=4 * settings().max_examples)
def test_what_is_due_first_is_found_though_only_earlier_times_are_noted(
    changes: list[tuple[str, int | None]], chance: random.Random
) -> None:
    due: dict[str, int] = {}
    expiry = Expiry(due.get)
    for name, time_ms in changes:
        before = due.pop(name, None)
        if time_ms is None and chance.random() < 0.5:  # deleted, or only empty
            expiry.forget(name)
        elif time_ms is not None:
            due[name] = time_ms
            if before is None or time_ms < before:
                expiry.note(name, time_ms)
        if len(changes) % 3:
            assert expiry.first() == min(((at, n) for n, at in due.items()), default=None)
    assert expiry.first() == min(((at, n) for n, at in due.items()), default=None)
    assert len(expiry._noted) <= len(NAMES)


def test_topics_that_are_gone_are_not_kept_until_their_time() -> None:
    state = BrokerState()
    for number in range(2000):
        name = f"job.{number}"
        state.apply(state.applied_index + 1, 1, [Publish(name, (b"1",)), Publish("kept", (b"1",))])
        state.apply(state.applied_index + 1, 1, [DeleteTopic(name)])
    assert len(state._expiry._noted) == 1
    assert len(state._expiry._heap) < 100
    assert state._expiry.first() == Due(1 + 86_400_000, "kept")


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


class OldTopic:
    """What a topic holds: sequence number, time and size of each message."""

    def __init__(self, own: tuple[int | None, ...]) -> None:
        self.own = own
        self.held: list[tuple[int, int, int]] = []

    def trim(self, default: Retention, now_ms: int) -> None:
        messages, seconds, size = (
            said or given
            for said, given in zip(
                self.own, (default.messages, default.seconds, default.bytes), strict=True
            )
        )
        while self.held and (
            len(self.held) > messages
            or self.held[0][1] < now_ms - seconds * 1000
            or (len(self.held) > 1 and sum(held[2] for held in self.held) > size)
        ):
            del self.held[0]


def old_entry(
    topics: dict[str, OldTopic], default: Retention, seq: int, now_ms: int, entry: list[Command]
) -> tuple[Retention, int]:
    """What the first version did with an entry: all limits of all topics, at each Expire."""
    published = set()
    for command in entry:
        match command:
            case Publish(str(name), data):
                topic = topics.setdefault(name, OldTopic((None,) * 3))
                topic.held += [(seq + n, now_ms, len(body)) for n, body in enumerate(data, 1)]
                seq += len(data)
                published.add(name)
            case CreateTopic(name, messages, seconds, size):
                topics.setdefault(name, OldTopic(())).own = (messages, seconds, size)
                topics[name].trim(default, now_ms)
            case DeleteTopic(name):
                topics.pop(name, None)
            case Configure(new):
                default = new.retention
                for topic in topics.values():
                    topic.trim(default, now_ms)
            case Expire():
                for topic in topics.values():
                    topic.trim(default, now_ms)
    for name in published & {*topics}:
        topics[name].trim(default, now_ms)
    return default, seq


OWN = st.sampled_from([None, 1, 2, 5])
OLD_NAMES = st.sampled_from(NAMES[:3])
OLD_RETENTIONS = st.builds(
    Retention, st.sampled_from([1, 2, 9]), st.sampled_from([1, 9]), st.sampled_from([1, 4, 99])
)
OLD_PUBLISHES = st.builds(
    Publish, OLD_NAMES, st.lists(st.sampled_from([b"", b"1", b"333"]), min_size=1).map(tuple)
)
OLD_WIDENINGS = st.builds(CreateTopic, OLD_NAMES, OWN, OWN, OWN, st.just(True)) | st.builds(
    lambda retention: Configure(Settings(True, retention, 9, 9)), OLD_RETENTIONS
)
OLD_ENTRIES = st.lists(
    st.one_of(OLD_PUBLISHES, OLD_WIDENINGS, st.builds(DeleteTopic, OLD_NAMES), st.just(Expire())),
    max_size=5,
) | st.tuples(OLD_PUBLISHES, st.just(Expire()), OLD_WIDENINGS).map(list)


@given(st.lists(st.tuples(st.sampled_from([0, 700, 4000]), OLD_ENTRIES), max_size=8))
@settings(max_examples=4 * settings().max_examples)
def test_an_old_log_gives_the_state_that_it_gave(log: list[tuple[int, list[Command]]]) -> None:
    state = BrokerState()
    default, seq, now_ms = state.settings.retention, 0, 1
    topics: dict[str, OldTopic] = {}
    for passed_ms, entry in log:
        now_ms += passed_ms
        state.apply(state.applied_index + 1, now_ms, entry)
        default, seq = old_entry(topics, default, seq, now_ms, entry)
        assert state.seq == seq
        assert {name: [*topic.sequences()] for name, topic in state.topics.items()} == {
            name: [held[0] for held in topic.held] for name, topic in topics.items()
        }
        if passed_ms:
            state = BrokerState.restore(state.snapshot())


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
