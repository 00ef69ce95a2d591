"""Reading on from a cursor: what comes, and what was lost, in pieces, against looking at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl_broker import timeline as timeline_module
from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    Publish,
    Retention,
    Settings,
)
from repl_broker.message import FilterSet
from repl_broker.patience import ENDLESS, Looks
from repl_broker.scan import Scan
from repl_broker.state import BrokerState
from repl_broker.timeline import FREE_MIN
from tests.nodes import read_in_pieces

NAMES = ["a", "a.b", "a.c", "b", "b.b.c", "c-d"]
FILTERS = [["a"], ["a", "none"], [">"], ["*"], ["a.>", "b"], ["*.b", "b.>"], ["none.>"]]


def applied(state: BrokerState, *commands: Command) -> None:
    state.apply(state.applied_index + 1, 1, commands)


def anything(chance: random.Random, state: BrokerState) -> None:
    """Something that may happen to topics."""
    name = chance.choice(NAMES)
    match chance.randrange(8):
        case 0:
            applied(state, CreateTopic(name, chance.choice([1, 3, 1000]), replace=True))
        case 1 if name in state.topics:
            applied(state, DeleteTopic(name))
        case _:
            applied(state, Publish(name, (b"x",) * chance.choice([1, 1, 2, 9])))


class Reader:
    """A stream's way: a cursor, and what it was told is lost, by looking at all topics."""

    def __init__(self, chance: random.Random, state: BrokerState) -> None:
        self.chance = chance
        self.state = state
        self.filters = FilterSet(chance.choice(FILTERS))
        self.seq = chance.randrange(state.seq + 1)
        self.version = -1
        self.told: dict[str, int] = {}
        self.scan: Scan | None = None

    def look(self) -> None:
        """A piece: either a loss, or what is next."""
        losses = self.state.losses(self.filters, self.seq)
        is_new = any(lost > self.told.get(name, 0) for name, lost in losses.items())
        turn = Looks(self.chance.choice([1, 2, 9]))
        self.version, found = self.state.find_loss(self.filters, self.seq, self.version, turn)
        if found:
            assert is_new
            self.told, self.version = losses, self.state.timeline.look()
            return
        if self.version < self.state.timeline.version:
            return  # it has not looked at all
        assert not is_new
        self.read_on(turn)

    def read_on(self, turn: Looks) -> None:
        if self.scan is None or self.chance.random() < 0.2:
            self.scan = Scan(self.state, self.filters, self.seq)
        limit = self.chance.choice([1, 3, 100])
        taken = [at.seq for at in self.scan.take(turn, limit)]
        assert len(taken) <= limit
        after, self.seq = self.seq, self.scan.position
        assert after <= self.seq <= self.state.seq
        assert taken == sorted(
            seq
            for topic in self.state.matching(self.filters)
            for seq in topic.sequences()
            if after < seq <= self.seq
        )


@given(st.integers(0, 2**32))
@settings(max_examples=4 * settings().max_examples)
def test_readers_get_what_is_there_and_hear_of_what_was_lost(seed: int) -> None:
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        read_in_pieces(patch, chance)
        patch.setattr("repl_broker.state.TOMBSTONES_MAX", chance.choice([1, 1000]))
        patch.setattr("repl_broker.timeline.FREE_MIN", 0)
        patch.setattr("repl_broker.timeline.PIECE_MATCHES", 1)
        patch.setattr("repl_broker.scan.PIECE_MATCHES", 1)
        state = BrokerState()
        applied(state, Configure(Settings(True, Retention(6, 1000, 1000), 9, 9)))
        readers: list[Reader] = []
        for _ in range(chance.randrange(60)):
            if chance.random() < 0.5:
                anything(chance, state)
            elif chance.random() < 0.3:
                readers.append(Reader(chance, state))
            elif readers:
                chance.choice(readers).look()
        if chance.random() < 0.3:
            state = BrokerState.restore(state.snapshot())
            readers = [Reader(chance, state) for _ in FILTERS]
        for reader in readers:
            for _ in range(500):
                reader.look()
                if reader.seq == state.seq and reader.version == state.timeline.version:
                    break
            else:
                raise AssertionError("it never gets level")


def test_a_place_is_given_away_only_once_nothing_is_known_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("repl_broker.state.TOMBSTONES_MAX", 1)
    state = BrokerState()
    pattern = FilterSet(["keep.*"])
    for number in range(10 * FREE_MIN):
        applied(state, Publish(f"go.{number}", (b"1",)), DeleteTopic(f"go.{number}"))
        if number % 100 == 0:
            applied(state, Publish(f"keep.{number}", (b"1",)))
            assert len(state.scan(pattern, 0, 10**6)) == number // 100 + 1
    assert len(state.timeline.topics) < 4 * FREE_MIN


def test_marks_are_bounded_for_all_filters_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_module, "MARKS_BYTES_MAX", 1000)
    state = BrokerState()
    applied(state, *(Publish(f"t.{number}", (b"1",)) for number in range(300)))
    for number in range(50):
        assert len(state.scan(FilterSet([f"t.{number}", "t.*"]), 0, 1000)) == 300
        assert len(state.scan(FilterSet([f"*.{number}"]), 0, 1000)) == 1
    timeline = state.timeline
    assert timeline._marks_bytes == sum(map(len, timeline._marks.values())) <= 1000


@pytest.fixture(scope="module")
def crowd() -> BrokerState:
    """A hundred thousand topics of ten messages, of which nine are retained: a million in all."""
    state = BrokerState()
    applied(state, Configure(Settings(True, Retention(9, 1000, 1000), 9, 9)))
    names = [f"{'ab'[number % 2]}.{number:06}.x" for number in range(100_000)]
    for _ in range(10):
        applied(state, Publish(tuple(names), (b"1",) * len(names)))
    assert state.retained_messages == 900_000
    return state


class Count:
    """Patience that counts the looks, and ends a piece after so many."""

    def __init__(self, each: int) -> None:
        self.each = each
        self.looks = 0
        self.left = each

    @property
    def is_over(self) -> bool:
        self.looks += 1
        self.left -= 1
        return self.left < 0

    def begin(self) -> Count:
        self.left = self.each
        return self


@pytest.mark.parametrize(
    ("filters", "messages", "looks_max"),
    [
        (["a.>"], 450_000, 100_000),
        (["b.*.x", "b.000001.>"], 450_000, 100_000),
        (["*.000007.x"], 9, 15_000),
        (["a.*.none"], 0, 15_000),
        (["a.000002.x"], 9, 0),
        (["a.00000.>", "a.000002.>"], 9, 20),
    ],
)
def test_a_stream_from_the_beginning_looks_at_each_topic_and_message_once(
    crowd: BrokerState, filters: list[str], messages: int, looks_max: int
) -> None:
    count = Count(each=5)
    scan = Scan(crowd, FilterSet(filters), 0)
    found = 0
    while scan.position < crowd.seq:
        piece = scan.take(count.begin(), 256)
        assert count.left >= -1, "it ends when the piece is over"
        assert scan._heap is None or len(scan._heap) <= 256
        found += len(piece)
    assert found == messages
    assert count.looks <= looks_max


def test_losses_since_a_recent_cursor_take_few_looks_however_many_topics_there_are(
    crowd: BrokerState,
) -> None:
    pattern, count = FilterSet(["*.none.>"]), Count(each=10**9)
    version, found = crowd.find_loss(pattern, crowd.seq, -1, count)
    assert (version, found) == (crowd.timeline.version, False)
    assert count.looks <= 1
    version, found = crowd.find_loss(pattern, 0, -1, count)
    assert (version, found) == (crowd.timeline.version, False)
    assert count.looks <= 100_000 / 16 + 300
    before = count.looks
    applied(crowd, Publish("b.000001.x", (b"1",)))
    assert crowd.find_loss(pattern, 0, version, count) == (version + 1, False)
    assert crowd.find_loss(FilterSet(["b.*.x"]), 0, version, count)[1]
    assert count.looks <= before + 2
    assert crowd.find_loss(pattern, 0, version + 1, ENDLESS) == (version + 1, False)
