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
    Expire,
    Publish,
    Retention,
    Settings,
)
from repl_broker.message import FilterSet
from repl_broker.patience import ENDLESS, Looks
from repl_broker.scan import Scan
from repl_broker.state import TOMBSTONES_MAX, BrokerState, Topic
from repl_broker.timeline import FREE_MIN
from tests.nodes import read_in_pieces

NAMES = ["a", "a.b", "a.c", "b", "b.b.c", "c-d"]
FILTERS = [["a"], ["a", "none"], [">"], ["*"], ["a.>", "b"], ["*.b", "b.>"], ["none.>"]]


def applied(state: BrokerState, *commands: Command) -> None:
    state.apply(state.applied_index + 1, 1, commands)


class World:
    """A state, and what a list of all that was ever lost knows: whose, and in which step."""

    def __init__(self, chance: random.Random, remembered: int) -> None:
        self.chance = chance
        self.remembered = remembered  # topics that are gone
        self.state = BrokerState()
        self.step = 0
        self.owner: dict[int, str] = {}
        self.lost: dict[int, int] = {}  # by sequence number, when
        self.born: dict[str, int] = {}  # by name, of topics that are there or remembered
        self.gone: dict[str, int] = {}  # … of those remembered, where they were deleted
        self.nameless: set[int] = set()  # lost by topics that are not remembered

    def apply(self, *commands: Command) -> None:
        for command in commands:
            self.step += 1
            before, seq = {*self.state.topics}, self.state.seq
            applied(self.state, command)
            topics = self.state.topics
            if isinstance(command, Publish) and isinstance(command.topics, str):
                self.owner |= dict.fromkeys(range(seq + 1, self.state.seq + 1), command.topics)
            held = {s for topic in topics.values() for s in topic.sequences()}
            self.lost |= dict.fromkeys({*self.owner} - {*self.lost} - held, self.step)
            for name in {*topics} - before:
                self.born[name] = seq
                self.gone.pop(name, None)
            for name in before - {*topics}:
                self.gone[name] = self.state.seq
            while len(self.gone) > self.remembered:
                name = next(iter(self.gone))
                del self.gone[name], self.born[name]
                self.nameless |= {s for s in self.lost if self.owner[s] == name}

    def forget_some(self) -> None:
        """More topics are deleted, which lose nothing."""
        for number in range(self.chance.randrange(self.remembered + 2)):
            self.apply(CreateTopic(f"e.{number}"), DeleteTopic(f"e.{number}"))

    def anything(self) -> None:
        """Something that may happen to topics."""
        chance, name = self.chance, self.chance.choice(NAMES)
        match chance.randrange(10):
            case 0:
                self.apply(CreateTopic(name, chance.choice([1, 3, 1000]), replace=True))
            case 1 | 2 if name in self.state.topics:
                self.apply(DeleteTopic(name))
            case 3 if self.remembered < 1000:
                self.forget_some()
            case _:
                self.apply(Publish(name, (b"x",) * chance.choice([1, 1, 2, 9])))

    def restart(self) -> None:
        self.state = BrokerState.restore(self.state.snapshot())
        self.born |= self.gone  # it is not known any more when they began

    def must_tell(self, filters: FilterSet, after: int, knows: int) -> bool:
        """Whether a message of ``filters`` above ``after`` was lost after the step ``knows``."""
        return any(
            seq > after and step > knows and filters.matches(self.owner[seq])
            for seq, step in self.lost.items()
        )

    def may_tell(self, filters: FilterSet, after: int, knows: int) -> bool:
        """… or some message was of which nobody knows that it is not of ``filters``."""
        if self.must_tell(filters, after, knows):
            return True
        is_open = any(self.born.get(name, self.state.seq + 1) > after for name in filters.exact)
        return bool(filters.patterns or is_open) and any(
            seq > after and self.lost[seq] > knows for seq in self.nameless
        )


class Reader:
    """A stream's way: a cursor, and up to which step it knows what is lost."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = world.chance
        self.state = world.state
        self.filters = FilterSet(self.chance.choice(FILTERS))
        self.seq = self.chance.randrange(self.state.seq + 1)
        self.version = self.knows = -1
        self.scan: Scan | None = None

    def look(self) -> None:
        """A piece: either a loss, or what is next."""
        turn = Looks(self.chance.choice([1, 2, 9]))
        if self.is_told_all(turn):
            self.read_on(turn)

    def is_told_all(self, turn: Looks) -> bool:
        """Look for a loss; whether there is none that it does not know of."""
        asked = self.filters, self.seq, self.knows
        self.version, found = self.state.find_loss(self.filters, self.seq, self.version, turn)
        if found:
            assert self.world.may_tell(*asked)
            assert self.state.losses(self.filters, self.seq)
            self.version, self.knows = self.state.timeline.look(), self.world.step
            return False
        if self.version < self.state.timeline.version:
            return False  # it has not looked at all
        assert not self.world.must_tell(*asked), "a loss that is passed over in silence"
        self.knows = self.world.step
        return True

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
        remembered = chance.choice([1, 2, 3, 1000])
        patch.setattr("repl_broker.state.TOMBSTONES_MAX", remembered)
        patch.setattr("repl_broker.timeline.FREE_MIN", 0)
        patch.setattr("repl_broker.timeline.PIECE_MATCHES", 1)
        patch.setattr("repl_broker.scan.PIECE_MATCHES", 1)
        world = World(chance, remembered)
        world.apply(Configure(Settings(True, Retention(6, 1000, 1000), 9, 9)))
        readers: list[Reader] = []
        for _ in range(chance.randrange(60)):
            if chance.random() < 0.5:
                world.anything()
            elif chance.random() < 0.3:
                readers.append(Reader(world))
            elif readers:
                chance.choice(readers).look()
        if chance.random() < 0.3:
            world.restart()
            readers = [Reader(world) for _ in FILTERS]
        for reader in readers:
            for _ in range(500):
                reader.look()
                if chance.random() < 0.02:
                    world.anything()
                state = world.state
                if reader.seq == state.seq and reader.version == state.timeline.version:
                    break
            else:
                raise AssertionError("it never gets level")


@given(st.integers(0, 2**32))
@settings(max_examples=4 * settings().max_examples)
def test_losses_of_topics_that_are_forgotten_in_any_order_are_told(seed: int) -> None:
    """Readers that are midway, while topics go, and are not remembered any more."""
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        remembered = chance.choice([1, 2, 3])
        patch.setattr("repl_broker.state.TOMBSTONES_MAX", remembered)
        patch.setattr("repl_broker.timeline.FREE_MIN", 0)
        patch.setattr("repl_broker.timeline.PIECE_MATCHES", 1)
        world = World(chance, remembered)
        readers: list[Reader] = []
        for _ in range(chance.choice([1, 2])):
            for name in chance.sample(NAMES, len(NAMES)):
                world.apply(Publish(name, (b"x",) * chance.choice([1, 2])))
            readers += [Reader(world) for _ in range(6)]
            for name in chance.sample(NAMES, chance.randrange(len(NAMES) + 1)):
                if chance.random() < 0.8:
                    world.apply(DeleteTopic(name))
                if chance.random() < 0.6:
                    world.forget_some()
                for reader in readers:
                    if chance.random() < 0.5:
                        reader.is_told_all(Looks(chance.choice([1, 9])))
        for reader in readers:
            while not reader.is_told_all(Looks(9)):
                pass


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


def test_of_topics_that_are_gone_their_names_are_kept_and_not_their_histories() -> None:
    state = BrokerState()
    for number in range(3 * TOMBSTONES_MAX):
        applied(state, Publish(f"go.{number}", (b"1",) * 3), DeleteTopic(f"go.{number}"))
    applied(state, Publish("stay", (b"1",)))
    state = BrokerState.restore(state.snapshot())
    applied(state, Publish("go.0", (b"1",)), DeleteTopic("go.0"))
    kept = state.timeline.topics
    assert [topic.name for topic in kept if isinstance(topic, Topic)] == ["stay"]
    assert len({id(topic) for topic in kept}) <= TOMBSTONES_MAX + 2
    assert not {*map(type, state.timeline.gone.values())} & {Topic}


def test_a_history_that_is_empty_takes_no_room() -> None:
    state = BrokerState()
    applied(state, Publish("t", (b"1",) * 1000))
    state.apply(2, 10**12, [Expire(5000)])
    assert state.retained_messages == 0
    topic = state.topics["t"]
    assert len(topic._sequences) == len(topic._sizes) == 0
    applied(state, Publish("t", (b"1",)))
    assert [*topic.sequences()] == [1001]


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
