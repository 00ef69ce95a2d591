"""The state machine: tables for every command and refusal, then a model to compare with.

``Node`` below is a state and the log that it was fed, encoded as the store has
it: what a test reads as history comes out of the log's bytes, as it does for
subscribers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import msgpack
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from repl_broker import segments as segments_module
from repl_broker import state as state_module
from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    DeleteTopics,
    Expire,
    KeepTopics,
    Publish,
    RaiseLevel,
    Retention,
    RevokeTokens,
    Settings,
    Shares,
)
from repl_broker.levels import TWO_CLOCKS
from repl_broker.message import FilterSet, Message, TopicDeleted
from repl_broker.patience import ENDLESS
from repl_broker.scan import Scan
from repl_broker.state import (
    ALL_DEFAULT,
    MESSAGE_OVERHEAD_BYTES,
    Applied,
    BrokerState,
    Location,
    Outcome,
    OwnRetention,
    Published,
    Refused,
    Revocation,
    Revoked,
    Topic,
    TopicChanged,
    TopicsDeleted,
)
from repl_broker.wire import decode_entry, decode_messages, encode_command, encode_entry
from tests.snapshot_in_one_go import in_one_go

ALL = FilterSet([">"])
WIDE = Retention(messages=1000, seconds=1000, bytes=100_000)
HOUR_MS = 3_600_000


def encoded(time_ms: int, commands: list[Command]) -> bytes:
    return encode_entry(time_ms, [encode_command(command) for command in commands])


def configured(
    auto_create: bool = True, retention: Retention = WIDE, keys: int = 100, seconds: int = 100
) -> Configure:
    return Configure(Settings(auto_create, retention, keys, seconds))


@dataclass
class Node:
    """A state and its log."""

    state: BrokerState = field(default_factory=BrokerState)
    log: dict[int, bytes] = field(default_factory=dict)

    def apply(self, *commands: Command, at: int = 0) -> Applied:
        """Append an entry at ``at`` milliseconds and apply it."""
        index = self.state.applied_index + 1
        self.log[index] = encoded(at, list(commands))
        return self.state.apply(index, *decode_entry(self.log[index]))

    def do(self, command: Command, at: int = 0) -> Outcome:
        """Apply an entry of one command, and give its outcome."""
        [outcome] = self.apply(command, at=at).outcomes
        return outcome

    def publish(self, topic: str, *data: bytes, at: int = 0) -> Outcome:
        return self.do(Publish(topic, data), at)

    def history(self, *filters: str, after: int = 0, limit: int = 10_000) -> list[Any]:
        """Sequence number and data of what is retained, read from the log."""
        found = self.state.scan(FilterSet(filters or [">"]), after, limit)
        return [(where.seq, self.read(where)) for where in found]

    def read(self, where: Location) -> bytes:
        data = decode_messages(self.log[where.entry])[where.ordinal]
        assert where.size == len(data)
        return data


@pytest.fixture
def node() -> Node:
    """A node with an entry that sets WIDE retention."""
    node = Node()
    node.apply(configured())
    return node


# --- publishing ---------------------------------------------------------------------------


def test_publishing_gives_numbers_from_1_without_holes(node: Node) -> None:
    assert node.publish("a", b"1", b"2", at=5) == Published(1, 2, 5)
    assert node.publish("b", b"3", at=6) == Published(3, 1, 6)
    assert node.history() == [(1, b"1"), (2, b"2"), (3, b"3")]
    assert node.history("a") == [(1, b"1"), (2, b"2")]
    assert node.history(after=1, limit=1) == [(2, b"2")]


def test_publishing_tells_subscribers_of_every_message_in_order(node: Node) -> None:
    applied = node.apply(Publish("a", (b"1", b"2")), Publish(("b", "a"), (b"3", b"4")), at=7)
    assert applied == Applied(
        outcomes=[Published(1, 2, 7), Published(3, 2, 7)],
        events=[
            Message(1, "a", 7, b"1"),
            Message(2, "a", 7, b"2"),
            Message(3, "b", 7, b"3"),
            Message(4, "a", 7, b"4"),
        ],
    )


def test_a_location_says_all_but_the_data(node: Node) -> None:
    node.apply(Publish(("b", "a"), (b"one", b"twotwo")), at=7)
    assert node.state.scan(FilterSet(["a", "b"]), 0, 10) == [
        Location(seq=1, topic="b", size=3, time_ms=7, entry=2, ordinal=0),
        Location(seq=2, topic="a", size=6, time_ms=7, entry=2, ordinal=1),
    ]


def test_publishing_creates_the_topic_with_the_default_retention(node: Node) -> None:
    node.publish("a", b"1")
    assert node.publish("b", b"2", at=9) == Published(2, 1, 9)
    topic = node.state.topics["b"]
    assert (topic.retention, topic.created_ms, topic.born_seq) == (WIDE, 9, 1)
    assert (len(topic), topic.bytes, topic.first_seq, topic.last_seq) == (1, 1, 2, 2)


@pytest.mark.parametrize("topics", ["new", ("old", "new"), ("new", "old")])
def test_without_auto_create_an_unknown_topic_refuses_the_whole_batch(
    node: Node, topics: str | tuple[str, ...]
) -> None:
    node.apply(configured(auto_create=False), CreateTopic("old"))
    outcome = node.do(Publish(topics, (b"1", b"2"), "key"))
    assert isinstance(outcome, Refused)
    assert outcome.code == "topic_not_found"
    assert "'new'" in outcome.detail
    assert (node.state.seq, list(node.state.topics)) == (0, ["old"])
    assert node.do(Publish("old", (b"1",), "key")) == Published(1, 1, 0)


def test_a_refused_command_does_not_touch_its_neighbours(node: Node) -> None:
    node.apply(configured(auto_create=False), CreateTopic("a"))
    applied = node.apply(
        Publish("a", (b"1",)), Publish("b", (b"no",) * 3), DeleteTopic("b"), Publish("a", (b"2",))
    )
    assert [type(outcome) for outcome in applied.outcomes] == [
        Published,
        Refused,
        Refused,
        Published,
    ]
    assert applied.events == [Message(1, "a", 0, b"1"), Message(2, "a", 0, b"2")]
    assert node.history("a") == [(1, b"1"), (2, b"2")]
    assert [where.ordinal for where in node.state.scan(ALL, 0, 10)] == [0, 4]


def test_time_never_runs_backwards(node: Node) -> None:
    node.publish("a", b"1", at=1000)
    assert node.publish("a", b"2", at=400) == Published(2, 1, 1000)
    assert [where.time_ms for where in node.state.scan(ALL, 0, 10)] == [1000, 1000]


def test_an_entry_is_applied_once(node: Node) -> None:
    with pytest.raises(AssertionError):
        node.state.apply(node.state.applied_index, 0, [])


def test_indexes_may_leave_holes_for_entries_that_are_no_commands(node: Node) -> None:
    """Raft's no-ops and membership changes are entries too."""
    node.state.apply(100, 0, [Publish("a", (b"1",))])
    assert [where.entry for where in node.state.scan(ALL, 0, 10)] == [100]


# --- topics -------------------------------------------------------------------------------


def test_a_topic_is_created_with_what_it_says_and_defaults_for_the_rest(node: Node) -> None:
    assert node.do(CreateTopic("a", messages=5), at=3) == TopicChanged(created=True)
    topic = node.state.topics["a"]
    assert topic.retention == Retention(5, WIDE.seconds, WIDE.bytes)
    assert (topic.created_ms, len(topic), topic.first_seq, topic.last_seq) == (3, 0, None, None)


def test_creating_a_topic_that_exists_is_refused_and_changes_nothing(node: Node) -> None:
    node.publish("a", b"1", b"2")
    outcome = node.do(CreateTopic("a", messages=1))
    assert isinstance(outcome, Refused)
    assert outcome.code == "topic_exists"
    assert node.state.topics["a"].retention == WIDE
    assert len(node.history("a")) == 2


def test_replacing_changes_the_settings_and_trims_at_once(node: Node) -> None:
    assert node.do(CreateTopic("a", messages=9, replace=True)) == TopicChanged(created=True)
    node.publish("a", b"1", b"2", b"3")
    assert node.do(CreateTopic("a", messages=2, replace=True)) == TopicChanged(created=False)
    assert node.history("a") == [(2, b"2"), (3, b"3")]
    node.do(CreateTopic("a", seconds=7, replace=True))
    assert node.state.topics["a"].retention == Retention(WIDE.messages, 7, WIDE.bytes)


def test_deleting_removes_topic_and_history_and_tells_subscribers(node: Node) -> None:
    node.publish("a", b"1")
    node.publish("b", b"2")
    deleted = TopicDeleted("a", position=2)
    assert node.apply(DeleteTopic("a")) == Applied([deleted], [deleted])
    assert list(node.state.topics) == list(node.state.names) == ["b"]
    assert node.history() == [(2, b"2")]


def test_deleting_an_unknown_topic_is_refused(node: Node) -> None:
    outcome = node.do(DeleteTopic("a"))
    assert isinstance(outcome, Refused)
    assert outcome.code == "topic_not_found"
    assert node.state.deletions(ALL, -1) == []


def test_publish_delete_publish_in_one_entry_keeps_the_last(node: Node) -> None:
    applied = node.apply(Publish("a", (b"1", b"2")), DeleteTopic("a"), Publish("a", (b"3",)), at=4)
    assert applied == Applied(
        [Published(1, 2, 4), TopicDeleted("a", 2), Published(3, 1, 4)],
        [
            Message(1, "a", 4, b"1"),
            Message(2, "a", 4, b"2"),
            TopicDeleted("a", 2),
            Message(3, "a", 4, b"3"),
        ],
    )
    assert node.history("a") == [(3, b"3")]
    assert node.state.lost_seq(ALL, 0) == 2
    assert node.state.live_entries() == [2]
    assert node.state.take_dead(2) == [1]
    node.do(DeleteTopic("a"))
    assert node.state.take_dead(3) == [2, 3]


def test_publish_delete_in_one_entry_leaves_a_dead_entry(node: Node) -> None:
    node.apply(Publish("a", (b"1",)), DeleteTopic("a"))
    assert node.state.live_entries() == []
    assert node.state.take_dead(2) == [1, 2]
    assert node.state.take_dead(2) == []


def test_configuring_changes_what_topics_do_not_say_themselves(node: Node) -> None:
    node.do(CreateTopic("own", messages=2))
    node.publish("own", b"1", b"2")
    node.publish("a", b"3", b"4")
    assert node.do(configured(retention=Retention(1, 60, 1000))) == TopicChanged(created=False)
    node.publish("b", b"5", b"6")
    assert node.history() == [(1, b"1"), (2, b"2"), (4, b"4"), (6, b"6")]
    assert node.state.topics["own"].retention == Retention(2, 60, 1000)


@pytest.mark.parametrize(("filters", "near"), [(["a", "b", "c", "d"], 0), ([">"], 0), ([">"], 99)])
def test_a_scan_over_many_topics_stays_right_while_the_state_goes_on(
    node: Node, filters: list[str], near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repl_broker.scan.NEAR_MESSAGES", near)
    for name in ("a", "b", "c", "a", "b", "c"):
        node.publish(name, b"1")
    scan = Scan(node.state, FilterSet(filters), 0)
    assert [at.seq for at in scan.take(ENDLESS, 2)] == [1, 2]
    assert scan.position == 2
    node.do(CreateTopic("a", messages=1, replace=True))
    node.publish("a", b"1")  # trims 4
    node.do(DeleteTopic("b"))
    node.publish("d", b"1")
    found = scan.take(ENDLESS, 9)
    if scan.position < node.state.seq:
        found += scan.take(ENDLESS, 9)
    assert [at.seq for at in found] == [3, 6, 7, 8], "what is gone is left out, what is new comes"
    assert scan.position == node.state.seq


def test_losses_are_told_topic_by_topic(node: Node) -> None:
    node.do(CreateTopic("a", messages=1))
    node.do(CreateTopic("b", messages=2))
    node.publish("b", b"1", b"2")
    node.publish("a", b"3", b"4", b"5")
    assert node.state.losses(ALL, 0) == {"a": 4}
    version = node.state.timeline.look()
    node.publish("b", b"6")
    assert node.state.timeline.version > version
    assert node.state.losses(ALL, 0) == {"a": 4, "b": 1}
    assert node.state.losses(ALL, 1) == {"a": 4}
    node.do(DeleteTopic("b"))
    assert node.state.losses(ALL, 1) == {"a": 4, "b": 6}
    assert node.state.losses(FilterSet(["b"]), 6) == {}


def test_names_are_kept_in_code_point_order(node: Node) -> None:
    names = ["B", "a", "a-b", "a.b", "a.z"]
    for name in reversed(names):
        node.publish(name, "1")
    assert list(node.state.names) == names
    node.apply(DeleteTopic("a.b"))
    assert list(node.state.names) == ["B", "a", "a-b", "a.z"]


def test_matching_follows_topics_that_come_and_go(node: Node) -> None:
    """What matches a pattern is remembered; the memory must not outlive a change."""

    def matching(*filters: str) -> list[str]:
        return sorted(topic.name for topic in node.state.matching(FilterSet(filters)))

    assert matching("a.*") == []
    node.apply(CreateTopic("a.b"), CreateTopic("a"))
    assert matching("a.*") == matching("a.*") == ["a.b"]
    assert matching("a.*", "a") == ["a", "a.b"]
    assert matching("a", "missing") == ["a"]
    node.apply(DeleteTopic("a.b"))
    assert matching("a.*") == []
    node.apply(CreateTopic("a.c"))
    assert matching("a.*") == ["a.c"]
    for number in range(1100):  # more sets than are remembered
        assert matching(f"a.*.{number}") == []
    assert matching("a.*") == ["a.c"]


# --- retention ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(1000, 1000, 1000), [1, 2, 3, 4, 5]),
        (Retention(2, 1000, 1000), [4, 5]),
        (Retention(1, 1000, 1000), [5]),
        (Retention(1000, 1000, 30), [3, 4, 5]),
        (Retention(1000, 1000, 29), [4, 5]),
        (Retention(1000, 1000, 1), [5]),  # the newest is kept whatever its size
        (Retention(1000, 2, 1000), [3, 4, 5]),
        (Retention(1000, 1, 1000), [4, 5]),
        (Retention(3, 1, 20), [4, 5]),
        (Retention(2, 3, 30), [4, 5]),
        (Retention(4, 3, 10), [5]),
    ],
)
def test_whichever_limit_is_reached_first_trims(retention: Retention, kept: list[int]) -> None:
    """Five messages of 10 bytes, a second apart: after so many seconds one is still kept."""
    node = Node()
    node.apply(configured(retention=retention))
    for number in range(1, 6):
        node.publish("a", b"%010d" % number, at=number * 1000)
    assert node.history("a") == [(number, b"%010d" % number) for number in kept]
    topic = node.state.topics["a"]
    assert (len(topic), topic.bytes) == (len(kept), 10 * len(kept))
    assert (topic.first_seq, topic.last_seq) == (kept[0], 5)
    assert topic.trimmed_seq == kept[0] - 1


def test_a_batch_larger_than_the_history_reaches_subscribers_whole(node: Node) -> None:
    node.do(CreateTopic("a", messages=2))
    applied = node.apply(Publish("a", (b"1", b"2", b"3", b"4")))
    assert [event.data for event in applied.events if isinstance(event, Message)] == [
        b"1",
        b"2",
        b"3",
        b"4",
    ]
    assert node.history("a") == [(3, b"3"), (4, b"4")]


def test_a_message_larger_than_the_limit_is_kept_until_the_next(node: Node) -> None:
    node.do(CreateTopic("a", bytes=5))
    node.publish("a", b"1")
    node.publish("a", b"2" * 100)
    assert node.history("a") == [(2, b"2" * 100)]
    node.publish("a", b"3")
    assert node.history("a") == [(3, b"3")]


def test_empty_messages_count_as_messages(node: Node) -> None:
    """A command line may publish an empty line's data as nothing at all."""
    node.do(CreateTopic("a", messages=2, bytes=1))
    node.publish("a", b"", b"", b"")
    assert node.history("a") == [(2, b""), (3, b"")]


def test_what_is_too_old_goes_with_the_next_message_or_with_expire(node: Node) -> None:
    for name in ("a", "b", "c"):
        node.do(CreateTopic(name, seconds=10))
        node.publish(name, b"old", at=1000)
    node.publish("b", b"newer", at=2000)
    node.publish("a", b"new", at=11_001)
    assert node.history() == [(2, b"old"), (3, b"old"), (4, b"newer"), (5, b"new")]
    assert node.do(Expire(), at=11_001) == TopicChanged(created=False)
    assert node.history() == [(4, b"newer"), (5, b"new")]
    node.do(Expire(), at=HOUR_MS)
    assert node.history() == []
    assert {len(topic) for topic in node.state.topics.values()} == {0}
    assert node.state.lost_seq(ALL, 0) == 5


def test_expiry_is_due_exactly_when_it_would_trim(node: Node) -> None:
    assert not node.state.expiry_due(HOUR_MS)
    node.do(CreateTopic("a", seconds=10))
    node.publish("a", b"1", at=1000)
    node.publish("a", b"2", at=3000)
    assert not node.state.expiry_due(11_000)
    assert node.state.expiry_due(11_001)
    node.do(Expire(), at=11_001)
    assert not node.state.expiry_due(13_000)
    assert node.state.expiry_due(13_001)


def test_expiry_is_due_for_idempotency_keys_too(node: Node) -> None:
    node.apply(configured(retention=Retention(9, 10**9, 9), seconds=100))
    node.do(Publish("a", (b"1",), "key"), at=1000)
    assert not node.state.expiry_due(101_000)
    assert node.state.expiry_due(101_001)
    node.do(Expire(), at=101_001)
    assert not node.state.expiry_due(HOUR_MS)


def test_a_long_history_is_trimmed_as_it_goes(node: Node) -> None:
    """The arrays behind a topic are cut now and then; what is read must not notice."""
    node.do(CreateTopic("a", messages=10))
    for start in range(0, 5000, 100):
        node.publish("a", *(b"%d" % number for number in range(start, start + 100)))
        last = start + 100
        assert node.history("a", after=last - 3) == [
            (seq, b"%d" % (seq - 1)) for seq in range(last - 2, last + 1)
        ]
        assert len(node.history("a")) == 10
    assert node.state.topics["a"].trimmed_seq == 4990
    restored = BrokerState.restore(node.state.snapshot())
    assert restored.digest() == node.state.digest()


# --- idempotency --------------------------------------------------------------------------


def test_a_repeat_has_the_answer_of_the_first_and_publishes_nothing(node: Node) -> None:
    command = Publish("a", (b"1", b"2"), "key", b"digest")
    assert node.do(command, at=5) == Published(1, 2, 5)
    node.publish("a", b"3", at=6)
    assert node.apply(command, at=7) == Applied([Published(1, 2, 5, replayed=True)], [])
    assert node.history() == [(1, b"1"), (2, b"2"), (3, b"3")]


def test_a_repeat_in_the_same_entry_is_one_too(node: Node) -> None:
    command = Publish("a", (b"1", b"2"), "key", b"digest")
    applied = node.apply(command, command, Publish("b", (b"3",)))
    assert applied.outcomes == [
        Published(1, 2, 0),
        Published(1, 2, 0, replayed=True),
        Published(3, 1, 0),
    ]
    assert node.history() == [(1, b"1"), (2, b"2"), (3, b"3")]
    assert [where.ordinal for where in node.state.scan(ALL, 0, 9)] == [0, 1, 4]


def test_a_repeat_has_the_answer_even_if_the_topic_is_gone(node: Node) -> None:
    command = Publish("a", (b"1",), "key", b"digest")
    node.do(command)
    node.do(DeleteTopic("a"))
    node.apply(configured(auto_create=False))
    assert node.do(command) == Published(1, 1, 0, replayed=True)
    assert not node.state.topics


def test_a_key_with_another_digest_is_refused_and_publishes_nothing(node: Node) -> None:
    node.do(Publish("a", (b"1",), "key", b"one"))
    outcome = node.do(Publish("a", (b"2",), "key", b"other"))
    assert isinstance(outcome, Refused)
    assert outcome.code == "idempotency_key_reused"
    assert "'key'" in outcome.detail
    assert node.history() == [(1, b"1")]
    assert node.do(Publish("a", (b"1",), "key", b"one")) == Published(1, 1, 0, replayed=True)


def test_keys_are_forgotten_by_count_oldest_first(node: Node) -> None:
    node.apply(configured(keys=2))
    for number, key in enumerate(("k1", "k2", "k3")):
        assert node.do(Publish("a", (b"1",), key)) == Published(number + 1, 1, 0)
    assert node.do(Publish("a", (b"1",), "k2")) == Published(2, 1, 0, replayed=True)
    assert node.do(Publish("a", (b"1",), "k3")) == Published(3, 1, 0, replayed=True)
    assert node.do(Publish("a", (b"1",), "k1")) == Published(4, 1, 0)
    assert node.do(Publish("a", (b"1",), "k2")) == Published(5, 1, 0)


def test_keys_are_forgotten_by_age(node: Node) -> None:
    node.apply(configured(seconds=10))
    command = Publish("a", (b"1",), "key")
    assert node.do(command, at=1000) == Published(1, 1, 1000)
    assert node.do(command, at=11_000) == Published(1, 1, 1000, replayed=True)
    assert node.do(command, at=11_001) == Published(2, 1, 11_001)
    assert node.do(command, at=11_002) == Published(2, 1, 11_001, replayed=True)


def test_a_smaller_bound_forgets_at_once(node: Node) -> None:
    for key in ("k1", "k2"):
        node.do(Publish("a", (b"1",), key))
    node.apply(configured(keys=1), configured(keys=100))
    assert node.do(Publish("a", (b"1",), "k2")) == Published(2, 1, 0, replayed=True)
    assert node.do(Publish("a", (b"1",), "k1")) == Published(3, 1, 0)
    node.apply(configured(keys=0))
    assert node.do(Publish("a", (b"1",), "k1")) == Published(4, 1, 0)
    assert node.do(Publish("a", (b"1",), "k1")) == Published(5, 1, 0)


def test_a_refused_publish_uses_up_no_key(node: Node) -> None:
    node.apply(configured(auto_create=False))
    command = Publish("a", (b"1",), "key")
    assert isinstance(node.do(command), Refused)
    node.do(CreateTopic("a"))
    assert node.do(command) == Published(1, 1, 0)


def test_keys_survive_a_snapshot_in_their_order(node: Node) -> None:
    node.apply(configured(keys=2))
    node.do(Publish("a", (b"1",), "k1", b"d"), at=3)
    node.do(Publish("a", (b"1", b"2"), "k2", b"d"), at=4)
    node.state = BrokerState.restore(node.state.snapshot())
    assert node.do(Publish("a", (b"1",), "k1", b"d"), at=5) == Published(1, 1, 3, replayed=True)
    assert isinstance(node.do(Publish("a", (b"1",), "k2", b"other")), Refused)
    node.do(Publish("a", (b"3",), "k3", b"d"))
    assert node.do(Publish("a", (b"1",), "k1", b"d"), at=5) == Published(5, 1, 5)


# --- what a cursor has lost ---------------------------------------------------------------


def test_a_cursor_below_what_was_trimmed_has_lost_it(node: Node) -> None:
    node.do(CreateTopic("a", messages=2))
    node.publish("a", b"1", b"2", b"3", b"4")
    node.publish("b", b"5")
    for filters in (["a"], ["a", "b"], ["*"], ["a", "missing"]):
        lost = [node.state.lost_seq(FilterSet(filters), after) for after in range(6)]
        assert lost == [2, 2, 0, 0, 0, 0]
    assert node.state.lost_seq(FilterSet(["b", "missing"]), 0) == 0


def test_a_cursor_below_a_deleted_topics_last_message_has_lost_it(node: Node) -> None:
    node.publish("a", b"1", b"2")
    node.publish("b", b"3", b"4")
    node.do(DeleteTopic("a"))
    for filters in (["a"], ["a", "b"], [">"]):
        assert [node.state.lost_seq(FilterSet(filters), after) for after in range(5)] == [
            2,
            2,
            0,
            0,
            0,
        ]
    assert node.state.lost_seq(FilterSet(["b"]), 0) == 0


def test_a_topic_that_is_created_again_knows_what_its_former_life_lost(node: Node) -> None:
    node.publish("a", b"1", b"2")
    node.do(DeleteTopic("a"))
    node.publish("a", b"3")
    assert [node.state.lost_seq(FilterSet(["a"]), after) for after in range(4)] == [2, 2, 0, 0]
    node.do(DeleteTopic("a"))
    node.do(CreateTopic("a"))
    assert [node.state.lost_seq(FilterSet(["a"]), after) for after in range(4)] == [3, 3, 3, 0]


def test_deletions_are_told_in_order_to_cursors_not_above_them(node: Node) -> None:
    for name in ("a", "b", "c"):
        node.publish(name, b"1")
    node.apply(DeleteTopic("b"), Publish("d", (b"4",)), DeleteTopic("a"), DeleteTopic("c"))
    in_order = [TopicDeleted("b", 3), TopicDeleted("a", 4), TopicDeleted("c", 4)]
    assert node.state.deletions(ALL, 0) == in_order
    assert node.state.deletions(ALL, 2) == in_order
    assert node.state.deletions(ALL, 3) == in_order, "one at the cursor may not have been heard of"
    assert node.state.deletions(ALL, 4) == in_order[1:]
    assert node.state.deletions(ALL, 5) == []
    assert node.state.deletions(FilterSet(["c", "b"]), 0) == [in_order[0], in_order[2]]
    assert node.state.deletions(FilterSet(["d", "x.*"]), 0) == []


def test_the_deletion_of_a_topic_that_exists_again_is_not_told(node: Node) -> None:
    node.publish("a", b"1")
    node.apply(DeleteTopic("a"), CreateTopic("a"))
    assert node.state.deletions(ALL, 0) == []
    node.publish("b", b"2")
    node.apply(DeleteTopic("a"))
    assert node.state.deletions(ALL, 0) == [TopicDeleted("a", 2)]


def test_forgotten_deletions_are_a_loss_to_all_who_may_have_had_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 4: never a silent loss; so when in doubt, a loss."""
    monkeypatch.setattr(state_module, "TOMBSTONES_MAX", 1)
    node.publish("kept", b"1")
    node.publish("a", b"2")
    node.publish("b", b"3")
    node.apply(DeleteTopic("a"), DeleteTopic("b"))  # "a" is forgotten
    assert node.state.deletions(ALL, 0) == [TopicDeleted("b", 3)]
    node.publish("new", b"4")

    def lost(*filters: str) -> list[int]:
        return [node.state.lost_seq(FilterSet(filters), after) for after in range(5)]

    assert lost("a") == [2, 2, 0, 0, 0]
    assert lost("b") == [3, 3, 3, 0, 0]
    assert lost(">") == [3, 3, 3, 0, 0]
    assert lost("kept") == [0, 0, 0, 0, 0]  # it has existed since before the cursor
    assert lost("kept", "a") == [2, 2, 0, 0, 0]
    assert lost("new") == [2, 2, 0, 0, 0]  # it may be a forgotten topic, created again
    assert lost("never") == [2, 2, 0, 0, 0]
    node.publish("a", b"5")
    assert lost("a") == [2, 2, 0, 0, 0]
    node.state = BrokerState.restore(node.state.snapshot())
    assert lost("a") == [2, 2, 0, 0, 0]
    assert lost("kept") == [0, 0, 0, 0, 0]


def test_a_topic_deleted_anew_is_remembered_as_the_newest(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "TOMBSTONES_MAX", 2)
    for name in ("a", "b", "a", "c"):
        node.do(CreateTopic(name))
        node.publish(name, b"1")
        node.do(DeleteTopic(name))
    assert node.state.deletions(ALL, 0) == [TopicDeleted("a", 3), TopicDeleted("c", 4)]
    assert node.state.lost_seq(FilterSet(["a"]), 0) == 3


# --- the log's garbage --------------------------------------------------------------------


def test_an_entry_is_dead_when_its_last_message_is_trimmed(node: Node) -> None:
    node.apply(CreateTopic("a", messages=1), CreateTopic("b", messages=1))
    node.apply(Publish(("a", "b"), (b"1", b"2")))
    assert node.state.take_dead(3) == [1, 2]
    node.publish("a", b"3")
    assert node.state.live_entries() == [3, 4]
    assert node.state.take_dead(4) == []
    node.publish("b", b"4")
    assert node.state.live_entries() == [4, 5]
    assert node.state.take_dead(2) == []
    assert node.state.take_dead(5) == [3]
    assert node.history() == [(3, b"3"), (4, b"4")]


def test_dead_entries_beyond_the_snapshot_are_kept_for_later(node: Node) -> None:
    for _ in range(3):
        node.do(Expire())
    assert node.state.take_dead(2) == [1, 2]
    assert node.state.take_dead(2) == []
    assert node.state.take_dead(4) == [3, 4]


def test_locations_hold_once_dead_rows_are_tidied_away(node: Node) -> None:
    node.apply(CreateTopic("a", messages=2), CreateTopic("b"))
    for number in range(20):
        command = Publish("a", (b"%d" % number,), f"key{number}")
        node.apply(command, command, Publish("b" if number % 7 == 0 else "a", (b"x",)))
        node.state.take_dead(node.state.applied_index)
    assert node.history("b") == [(seq, b"x") for seq in (2, 16, 30)]
    assert node.history("a") == [(39, b"19"), (40, b"x")]
    assert node.state.entries <= 2 * len(node.state.live_entries())
    assert len(node.state.live_entries()) == 4


def test_an_entry_that_is_mostly_dead_is_given_once_for_rewriting(node: Node) -> None:
    node.do(CreateTopic("a", messages=4))
    node.apply(Publish("a", (b"x" * 10_000, b"y" * 10)), Publish("b", (b"z" * 1000,)))
    node.publish("a", b"1", b"2")
    assert node.state.take_sparse(10) == []
    node.publish("a", b"3")  # trims the 10,000 bytes: 1010 of 11,010 are left
    assert node.state.take_sparse(2) == []
    assert node.state.take_sparse(5) == [3]
    assert node.state.take_sparse(5) == []
    commands = decode_entry(node.log[3])[1]
    assert node.state.dead_ordinals(3, commands) == {0}
    node.publish("a", b"4")  # 1000 of the 1010 that are left: not worth it
    assert node.state.take_sparse(6) == []
    assert node.state.dead_ordinals(3, commands) == {0, 1}


def test_little_garbage_is_not_worth_rewriting(node: Node) -> None:
    node.do(CreateTopic("a", messages=1))
    node.publish("a", b"x" * 4000, b"y")
    assert node.state.take_sparse(3) == []
    assert node.state.dead_ordinals(3, decode_entry(node.log[3])[1]) == {0}


def test_dead_ordinals_count_what_was_refused_or_a_repeat_as_dead(node: Node) -> None:
    node.apply(configured(auto_create=False), CreateTopic("a"), CreateTopic("b", messages=1))
    repeat = Publish("a", (b"1",), "key")
    node.apply(
        Publish("missing", (b"0",)),
        repeat,
        repeat,
        Publish(("b", "a", "b"), (b"3", b"4", b"5")),
        DeleteTopic("missing"),
    )
    commands = decode_entry(node.log[3])[1]
    assert node.state.dead_ordinals(3, commands) == {0, 2, 3}
    node.do(DeleteTopic("a"))
    assert node.state.dead_ordinals(3, commands) == {0, 1, 2, 3, 4}
    assert node.state.dead_ordinals(2, decode_entry(node.log[2])[1]) == set()


# --- snapshots ----------------------------------------------------------------------------


def test_a_new_state_restores_to_a_new_state() -> None:
    state = BrokerState()
    assert BrokerState.restore(state.snapshot()).digest() == state.digest()


def test_a_restored_state_has_everything(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "TOMBSTONES_MAX", 1)
    node.apply(CreateTopic("z", 1, 2, 3), Publish(("z", "a.b", "z"), (b"1", b"2", b"3")), at=9)
    key = Publish("a.b", (b"4",), "key", b"d")
    node.apply(key, key, Publish("c", (b"5",)), at=10)
    node.apply(DeleteTopic("c"), Publish("d", (b"6",)), DeleteTopic("d"))
    restored = BrokerState.restore(node.state.snapshot())
    assert restored.snapshot() == node.state.snapshot()
    assert restored.settings == node.state.settings
    assert (restored.applied_index, restored.seq, restored.time_ms) == (4, 6, 10)
    assert list(restored.names) == ["a.b", "z"]
    assert restored.scan(ALL, 0, 10) == node.state.scan(ALL, 0, 10)
    assert restored.live_entries() == node.state.live_entries() == [2, 3]
    assert restored.deletions(ALL, 0) == [TopicDeleted("d", 6)]
    assert restored.lost_seq(FilterSet(["c"]), 0) == 5
    for name, topic in node.state.topics.items():
        other = restored.topics[name]
        for attribute in ("retention", "created_ms", "born_seq", "trimmed_seq", "bytes"):
            assert getattr(other, attribute) == getattr(topic, attribute)


def test_a_snapshot_does_not_tell_when_dead_rows_were_cut_out(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When that is depends on where a node's blocks begin; digests must not differ for it."""
    monkeypatch.setattr(segments_module, "BLOCK_ROWS", 2)
    node.apply(configured(auto_create=False), CreateTopic("a", messages=1))
    other = BrokerState.restore(node.state.snapshot())
    for number in range(9):
        commands = [Publish("missing", (b"no",)), Publish("a", (b"1", b"2"))]
        node.apply(*commands)
        other.apply(node.state.applied_index, 0, commands)
        if number == 4:
            other = BrokerState.restore(other.snapshot())
    assert node.state.snapshot() == other.snapshot() == in_one_go(node.state)
    assert BrokerState.restore(other.snapshot()).snapshot() == other.snapshot()


def test_a_snapshot_of_another_format_is_refused_with_both_numbers() -> None:
    fields = msgpack.unpackb(BrokerState().snapshot())
    fields[0] = 99
    with pytest.raises(ValueError, match="format 99; this version reads 1 to 4"):
        BrokerState.restore(msgpack.packb(fields))


def test_different_states_have_different_digests(node: Node) -> None:
    digests = {node.state.digest()}
    for command in (
        CreateTopic("a"),
        Publish("a", (b"1",)),
        Publish("a", (b"1",), "key"),
        DeleteTopic("a"),
        configured(keys=1),
        Expire(),
    ):
        node.do(command)
        digests.add(node.state.digest())
    assert len(digests) == 7


# --- the model ----------------------------------------------------------------------------


@dataclass
class Stored:
    """A message that was published, as the model has it: nothing is ever removed."""

    message: Message
    entry: int
    ordinal: int
    payer: str  # for whom it counts
    retained: bool = True

    @property
    def bytes(self) -> int:
        return MESSAGE_OVERHEAD_BYTES + len(self.message.data)


@dataclass
class ModelTopic:
    own: OwnRetention
    retention: Retention
    client: str
    used: int
    messages: list[Stored] = field(default_factory=list)

    def follow(self, default: Retention) -> None:
        messages, seconds, size, idle = self.own
        self.retention = Retention(
            messages or default.messages,
            seconds or default.seconds,
            size or default.bytes,
            (default.idle_seconds if idle is None else idle) or None,
        )

    def trim(self, now_ms: int) -> None:
        limits = self.retention
        while self.messages and (
            len(self.messages) > limits.messages
            or (
                sum(len(s.message.data) for s in self.messages) > limits.bytes and self.messages[1:]
            )
            or self.messages[0].message.time_ms < now_ms - limits.seconds * 1000
        ):
            self.messages.pop(0).retained = False


@dataclass
class Model:
    """The same rules, written for plainness: lists, and no thought of cost."""

    tombstones_max: int
    settings: Settings = WIDE  # type: ignore[assignment]  # the first entry configures
    index: int = 0
    time_ms: int = 0
    topics: dict[str, ModelTopic] = field(default_factory=dict)
    published: list[Stored] = field(default_factory=list)
    keys: list[tuple[Publish, Published]] = field(default_factory=list)
    deleted: list[TopicDeleted] = field(default_factory=list)
    floor: int = 0  # cursors from here on are never told of a loss that was none

    def apply(self, time_ms: int, commands: list[Command]) -> Applied:
        self.index += 1
        self.time_ms = max(self.time_ms, time_ms)
        applied = Applied([], [])
        ordinal = 0
        for command in commands:
            match command:
                case Publish():
                    outcome = self.publish(command, ordinal, applied.events)
                    ordinal += len(command.data)
                case CreateTopic():
                    outcome = self.create(command)
                case DeleteTopic(name):
                    outcome = self.delete(name, applied.events)
                case DeleteTopics(names, None):
                    gone = [
                        self.delete(name, applied.events) for name in names if name in self.topics
                    ]
                    outcome = TopicsDeleted(len(gone))
                case DeleteTopics(names, used):
                    gone = [
                        self.delete(name, applied.events)
                        for name, index in zip(names, used, strict=True)
                        if name in self.topics
                        and self.topics[name].retention.idle_seconds is not None
                        and self.topics[name].used == index
                    ]
                    outcome = TopicsDeleted(len(gone))
                case KeepTopics(names):
                    for name in {*names} & {*self.topics}:
                        self.topics[name].used = self.index
                    outcome = TopicChanged(False)
                case Configure(new):
                    self.settings = new
                    for topic in self.topics.values():
                        before = topic.retention.idle_seconds
                        topic.follow(new.retention)
                        if topic.retention.idle_seconds != before:
                            topic.used = self.index
                        topic.trim(self.time_ms)
                    self.forget_keys()
                    outcome = TopicChanged(False)
                case Expire():
                    for topic in self.topics.values():
                        topic.trim(self.time_ms)
                    self.forget_keys()
                    outcome = TopicChanged(False)
            applied.outcomes.append(outcome)
        for event in applied.events:
            if event.topic in self.topics:
                self.topics[event.topic].trim(self.time_ms)
        return applied

    def publish(self, command: Publish, ordinal: int, events: list[Any]) -> Outcome:
        if command.key is not None:
            self.forget_keys()
            for known, first in self.keys:
                if (known.owner, known.key) != (command.owner, command.key):
                    continue
                if known.digest != command.digest:
                    return Refused("idempotency_key_reused", "")
                return Published(first.first_seq, first.count, first.time_ms, True)
        names = command.topics
        if isinstance(names, str):
            names = (names,) * len(command.data)
        if not self.settings.auto_create and not set(names) <= set(self.topics):
            return Refused("topic_not_found", "")
        if refused := self.beyond_share(command.client, names, command.data):
            return refused
        outcome = Published(len(self.published) + 1, len(names), self.time_ms)
        for number, (name, data) in enumerate(zip(names, command.data, strict=True)):
            message = Message(len(self.published) + 1, name, self.time_ms, data)
            if name not in self.topics:
                self.add(name, command.client)
            payer = self.payer(name, command.client)
            stored = Stored(message, self.index, ordinal + number, payer)
            self.topics[name].used = self.index
            self.topics[name].messages.append(stored)
            self.published.append(stored)
            events.append(message)
        if command.key is not None:
            self.keys.append((command, outcome))
            self.forget_keys()
        return outcome

    def beyond_share(
        self, client: str, names: tuple[str, ...], data: tuple[bytes, ...] = ()
    ) -> Refused | None:
        """What would be created and kept, were it so, compared with the shares."""
        shares = self.settings.shares
        if not client:
            return None
        owners = dict.fromkeys(names, client) | {n: t.client for n, t in self.topics.items()}
        has_new = not set(names) <= set(self.topics)
        if shares.topics and has_new and [*owners.values()].count(client) > shares.topics:
            return Refused("too_many_topics", "")
        paying = [self.payer(name, client) for name in names]
        kept = dict.fromkeys(paying, 0)
        for stored in self.retained():
            kept[stored.payer] = kept.get(stored.payer, 0) + stored.bytes
        for payer, body in zip(paying, data, strict=False):
            kept[payer] += MESSAGE_OVERHEAD_BYTES + len(body)
        beyond = {p for p in paying if p and kept[p] > shares.storage_bytes}
        return Refused("storage_full", "") if data and shares.storage_bytes and beyond else None

    def payer(self, name: str, client: str) -> str:
        """For whom a message counts that ``client`` publishes to the topic."""
        if self.settings.shares.of_publishers or name not in self.topics:
            return client
        return self.topics[name].client

    def retained(self) -> Iterator[Stored]:
        return (stored for topic in self.topics.values() for stored in topic.messages)

    def add(self, name: str, client: str, own: OwnRetention = ALL_DEFAULT) -> None:
        self.topics[name] = ModelTopic(own, self.settings.retention, client, self.index)
        self.topics[name].follow(self.settings.retention)
        self.deleted = [deleted for deleted in self.deleted if deleted.topic != name]

    def create(self, command: CreateTopic) -> Outcome:
        own = (command.messages, command.seconds, command.bytes, command.idle_seconds)
        topic = self.topics.get(command.name)
        if topic is None:
            if refused := self.beyond_share(command.client, (command.name,)):
                return refused
            self.add(command.name, command.client, own)
            return TopicChanged(True)
        if not command.replace:
            return Refused("topic_exists", "")
        topic.own = own
        topic.used = self.index
        topic.follow(self.settings.retention)
        topic.trim(self.time_ms)
        return TopicChanged(False)

    def delete(self, name: str, events: list[Any]) -> Outcome:
        if name not in self.topics:
            return Refused("topic_not_found", "")
        for stored in self.topics.pop(name).messages:
            stored.retained = False
        outcome = TopicDeleted(name, len(self.published))
        events.append(outcome)
        self.deleted.append(outcome)
        for forgotten in self.deleted[: -self.tombstones_max]:
            self.floor = max(self.floor, self.lost_seq(FilterSet([forgotten.topic]), 0))
        self.deleted = self.deleted[-self.tombstones_max :]
        return outcome

    def forget_keys(self) -> None:
        oldest_ms = self.time_ms - self.settings.idempotency_seconds * 1000
        self.keys = [known for known in self.keys if known[1].time_ms >= oldest_ms]
        for client in {known.client for known, _ in self.keys} - {""}:
            while self.settings.shares.idempotency_keys < self.count_keys(client):
                if not self.settings.shares.idempotency_keys:
                    break
                self.forget_oldest_key(client)
        while len(self.keys) > self.settings.idempotency_keys:
            clients = sorted({known.client for known, _ in self.keys})
            self.forget_oldest_key(max(clients, key=self.count_keys))

    def count_keys(self, client: str) -> int:
        return sum(known.client == client for known, _ in self.keys)

    def forget_oldest_key(self, client: str) -> None:
        self.keys.remove(next(each for each in self.keys if each[0].client == client))

    def following(self, filters: FilterSet, after: int) -> Iterator[Stored]:
        return (s for s in self.published[after:] if filters.matches(s.message.topic))

    def lost_seq(self, filters: FilterSet, after: int) -> int:
        lost = [s.message.seq for s in self.following(filters, after) if not s.retained]
        return max(lost, default=0)

    def scan(self, filters: FilterSet, after: int) -> list[Location]:
        return [
            Location(m.seq, m.topic, len(m.data), m.time_ms, s.entry, s.ordinal)
            for s in self.following(filters, after)
            if s.retained
            for m in [s.message]
        ]

    def live_entries(self) -> list[int]:
        return sorted({s.entry for s in self.published if s.retained})


NAMES = st.sampled_from(["a", "b", "a.a", "a.b", "b.a.a"])
DATA = st.sampled_from([b"1", b"22", b"333", b"4" * 9])
FILTER_SETS = [FilterSet(f) for f in (["a"], ["a", "b"], ["a.*", "b"], ["*.>"], [">"], ["c"])]
RETENTIONS = st.builds(
    Retention, st.sampled_from([1, 2, 5]), st.sampled_from([1, 3, 9]), st.sampled_from([1, 9, 30]),
    st.sampled_from([None, None, 1, 5]),
)  # fmt: skip
SHARES = st.just(Shares()) | st.builds(
    Shares,
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0, 70, 300]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
)
SETTINGS = st.builds(
    Settings, st.booleans() | st.just(True), RETENTIONS, st.sampled_from([0, 1, 2, 9]),
    st.sampled_from([1, 4]), st.just(0), SHARES,
)  # fmt: skip
CLIENTS = st.sampled_from(["", "ann", "bob", "eve"])


def batch_of(pairs: list[tuple[str, bytes]], client: str) -> Publish:
    return Publish(tuple(n for n, _ in pairs), tuple(d for _, d in pairs), client=client)


NAME_LISTS = st.lists(NAMES, max_size=4).map(tuple)
BATCHES = st.lists(DATA, min_size=1, max_size=4).map(tuple)
PUBLISHES = st.builds(
    Publish,
    NAMES,
    BATCHES,
    st.sampled_from([None, None, "k1", "k2", "k3"]),
    st.sampled_from([b"", b"", b"d"]),
    CLIENTS,
    CLIENTS,
) | st.builds(
    batch_of,
    st.lists(st.tuples(NAMES, DATA), min_size=1, max_size=4),
    CLIENTS,
)
COMMANDS = st.one_of(
    PUBLISHES,
    PUBLISHES,
    PUBLISHES,
    st.builds(
        CreateTopic,
        NAMES,
        st.sampled_from([None, 1, 3]),
        st.sampled_from([None, 1, 5]),
        st.sampled_from([None, 1, 12]),
        st.booleans(),
        st.sampled_from([None, 0, 1, 5]),
        CLIENTS,
    ),
    st.builds(DeleteTopic, NAMES),
    st.builds(DeleteTopics, NAME_LISTS),
    NAME_LISTS.flatmap(
        lambda names: st.tuples(*[st.integers(1, 30)] * len(names)).map(
            lambda used: DeleteTopics(names, used)
        )
    ),
    st.builds(KeepTopics, NAME_LISTS),
    st.builds(Configure, SETTINGS),
    st.just(Expire()),
)
TIMES = st.sampled_from([-1000, 0, 0, 500, 1000, 4000])


def steps_of(commands: st.SearchStrategy[Command]) -> st.SearchStrategy[list[Any]]:
    entries = st.tuples(TIMES, st.lists(commands, max_size=5))
    return st.lists(
        st.one_of(
            entries,
            entries,
            entries,
            st.tuples(st.just("collect"), st.integers(0, 3)),
            st.tuples(st.just("restore"), st.none()),
            st.tuples(st.just("read"), st.integers(1, 5)),
        ),
        max_size=25,
    )


STEPS = steps_of(COMMANDS)

# Chance finds little where many things must come together, so these are drawn by themselves.
KEYED = st.builds(
    Publish,
    st.just("a"),
    st.just((b"1",)),
    st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6"]),
    st.sampled_from([b"", b"", b"", b"d"]),
    CLIENTS,
    CLIENTS,
)
KEYED_SETTINGS = st.builds(
    Settings, st.just(True), RETENTIONS, st.integers(3, 6), st.just(100), st.just(0),
    st.builds(Shares, idempotency_keys=st.integers(0, 3)),
)  # fmt: skip
KEYED_STEPS = st.tuples(
    KEYED_SETTINGS, steps_of(st.one_of(KEYED, KEYED, KEYED, KEYED_SETTINGS.map(Configure)))
)
SHARED_SETTINGS = st.builds(
    Settings, st.just(True), st.just(Retention(2, 9, 1000)), st.just(0), st.just(100), st.just(0),
    st.builds(
        Shares, st.integers(0, 3), st.sampled_from([0, 70, 140, 280]), st.just(0), st.booleans()
    ),
)  # fmt: skip
SHARED_STEPS = st.tuples(
    SHARED_SETTINGS,
    steps_of(
        st.one_of(
            st.builds(
                batch_of,
                st.lists(st.tuples(NAMES, DATA), min_size=1, max_size=4),
                CLIENTS,
            ),
            st.builds(Publish, NAMES, BATCHES, client=CLIENTS),
            st.builds(CreateTopic, NAMES, st.sampled_from([None, 1]), client=CLIENTS),
            st.builds(DeleteTopics, NAME_LISTS),
            st.just(Expire()),
            SHARED_SETTINGS.map(Configure),
        )
    ),
)


@dataclass
class Reader:
    """A subscriber that comes now and then, and goes on from its cursor."""

    filters: FilterSet
    cursor: int = 0
    seen: list[int] = field(default_factory=list)
    told: set[int] = field(default_factory=set)  # sequence numbers it knows that it may miss

    def read(self, state: BrokerState, limit: int) -> None:
        lost = state.lost_seq(self.filters, self.cursor)
        assert lost == 0 or lost > self.cursor
        self.told.update(range(self.cursor + 1, lost + 1))
        found = [where.seq for where in state.scan(self.filters, self.cursor, limit)]
        self.seen += found
        self.cursor = found[-1] if len(found) == limit else state.seq


class Comparison:
    """A state, its twin that lives through restarts, and the model, fed alike."""

    def __init__(self, tombstones_max: int) -> None:
        self.node, self.twin = Node(), BrokerState()
        self.model = Model(tombstones_max)
        self.readers = [Reader(filters) for filters in FILTER_SETS]
        self.collected: set[int] = set()  # entries given by take_dead

    def apply(self, time_ms: int, commands: list[Command]) -> None:
        expected = self.model.apply(time_ms, commands)
        applied = self.node.apply(*commands, at=time_ms)
        assert list(map(told, applied.outcomes)) == list(map(told, expected.outcomes))
        assert applied.events == expected.events
        index = self.node.state.applied_index
        assert self.twin.apply(index, time_ms, commands) == applied
        self.check()

    def collect(self, behind: int) -> None:
        upto = max(self.model.index - behind, 0)
        live = set(self.model.live_entries())
        dead = self.node.state.take_dead(upto)
        assert len(dead) == len(set(dead))
        assert set(dead) == set(range(1, upto + 1)) - live - self.collected
        self.collected.update(dead)
        self.check()

    def restore(self) -> None:
        """After a restart the twin has only its snapshot; the log's reader asks what lives."""
        self.twin = BrokerState.restore(in_one_go(self.twin))
        self.check()

    def read(self, limit: int) -> None:
        for reader in self.readers:
            reader.read(self.node.state, limit)

    def check(self) -> None:
        state, model = self.node.state, self.model
        assert (state.seq, state.time_ms) == (len(model.published), model.time_ms)
        assert state.live_entries() == model.live_entries()
        assert list(state.names) == sorted(model.topics)
        for name, expected in model.topics.items():
            topic = state.topics[name]
            seqs = [s.message.seq for s in expected.messages]
            assert list(after_each(topic)) == seqs
            assert topic.retention == expected.retention
            idles = expected.retention.idle_seconds is not None
            assert (name in state.idle_topics) == idles
            assert not idles or topic.used_index == expected.used
            assert (len(topic), topic.bytes) == (
                len(seqs),
                sum(len(s.message.data) for s in expected.messages),
            )
            assert (topic.first_seq, topic.last_seq) == (
                (seqs[0], seqs[-1]) if seqs else (None, None)
            )
        assert in_one_go(self.twin) == in_one_go(state)
        self.check_holdings()
        for after in {0, state.seq // 2, state.seq}:
            self.check_cursor(after)

    def check_holdings(self) -> None:
        """What is counted as things come and go is what there is."""
        topics, kept = self.model.topics.values(), [*self.model.retained()]
        expected = {
            client: (
                sum(t.client == client for t in topics),
                sum(s.bytes for s in kept if s.payer == client),
            )
            for client in {*(t.client for t in topics), *(s.payer for s in kept)} - {""}
        }
        for state in (self.node.state, self.twin):
            held = {c: (h.topics, h.bytes) for c, h in state._holdings.items()}
            assert held == expected
            assert {*state.idle_topics} == {
                name for name, t in self.model.topics.items() if t.retention.idle_seconds
            }

    def check_cursor(self, after: int) -> None:
        model = self.model
        for filters in FILTER_SETS:
            expected = model.scan(filters, after)
            deletions = [
                deleted
                for deleted in model.deleted
                if deleted.position >= after and filters.matches(deleted.topic)
            ]
            for state in (self.node.state, self.twin):
                assert state.scan(filters, after, 1000) == expected
                assert state.scan(filters, after, 2) == expected[:2]
                assert state.deletions(filters, after) == deletions
                lost, really = state.lost_seq(filters, after), model.lost_seq(filters, after)
                assert lost == really or (lost > really and lost == model.floor > after)

    def finish(self) -> None:
        """Everything once more, at every cursor and to the byte."""
        state, model = self.node.state, self.model
        for after in range(state.seq + 1):
            self.check_cursor(after)
        for where in state.scan(ALL, 0, 10_000):
            assert self.node.read(where) == model.published[where.seq - 1].message.data
        for entry in model.live_entries():
            commands = decode_entry(self.node.log[entry])[1]
            offered = len(decode_messages(self.node.log[entry]))
            live = {s.ordinal for s in model.published if s.entry == entry and s.retained}
            assert state.dead_ordinals(entry, commands) == set(range(offered)) - live
        self.read(10_000)
        for reader in self.readers:
            assert reader.seen == sorted(set(reader.seen))
            wanted = {s.message.seq for s in model.following(reader.filters, 0)}
            assert set(reader.seen) <= wanted <= set(reader.seen) | reader.told
        self.collect(0)
        assert state.snapshot() == in_one_go(state)


def after_each(topic: Topic) -> Iterator[int]:
    seq = 0
    while (found := topic.after(seq)) is not None:
        seq = found[0]
        yield seq


def told(outcome: Outcome) -> object:
    """An outcome without the words that the model does not have."""
    return outcome.code if isinstance(outcome, Refused) else outcome


def compare(
    tombstones_max: int, first: Settings, steps: list[tuple[Any, Any]], block_rows: int = 3
) -> None:
    with (
        patch.object(state_module, "TOMBSTONES_MAX", tombstones_max),
        patch.object(segments_module, "SPARSE_BYTES_MIN", 3),
        patch.object(segments_module, "BLOCK_ROWS", block_rows),
    ):
        comparison = Comparison(tombstones_max)
        comparison.apply(0, [Configure(first)])
        now_ms = 10_000
        for kind, argument in steps:
            match kind:
                case "collect":
                    comparison.collect(argument)
                case "restore":
                    comparison.restore()
                case "read":
                    comparison.read(argument)
                case _:
                    now_ms += kind
                    comparison.apply(now_ms, argument)
        note(f"{comparison.model}")
        comparison.finish()


@given(st.sampled_from([1, 2, 1000]), SETTINGS, STEPS, st.sampled_from([1, 2, 3, 1024]))
@settings(max_examples=2 * settings().max_examples)
def test_the_state_does_what_the_model_does(
    tombstones_max: int, first: Settings, steps: list[tuple[Any, Any]], block_rows: int
) -> None:
    """Random entries, restarts, collections and readers."""
    compare(tombstones_max, first, steps, block_rows)


@given(KEYED_STEPS)
def test_the_state_remembers_the_keys_that_the_model_remembers(
    drawn: tuple[Settings, list[tuple[Any, Any]]],
) -> None:
    compare(1000, *drawn)


@given(SHARED_STEPS)
def test_the_state_refuses_what_is_beyond_a_share_as_the_model_does(
    drawn: tuple[Settings, list[tuple[Any, Any]]],
) -> None:
    compare(1000, *drawn)


# --- the most topics ---


def crowded(*names: str, topics: int = 2) -> BrokerState:
    state = BrokerState()
    settings = replace(state.settings, topics=topics)
    state.apply(1, HOUR_MS, [Configure(settings), *map(CreateTopic, names)])
    return state


@pytest.mark.parametrize(
    "command",
    [
        Publish("c", (b"1",)),
        Publish(("a", "c"), (b"1", b"2")),
        Publish(("c", "c"), (b"1", b"2"), "key", b"digest"),
        CreateTopic("c"),
        CreateTopic("c", replace=True),
    ],
)
def test_a_topic_too_many_is_refused_and_leaves_no_trace(command: Command) -> None:
    state = crowded("a", "b")
    (outcome,) = state.apply(2, HOUR_MS, [command]).outcomes
    assert isinstance(outcome, Refused)
    assert outcome.code == "too_many_topics"
    assert "2 topics, of all clients" in outcome.detail
    assert "([limits] topics)" in outcome.detail
    assert (state.seq, sorted(state.topics), state.retained_messages) == (0, ["a", "b"], 0)
    again = crowded("a", "b")
    again.apply(2, HOUR_MS, [])
    assert again.digest() == state.digest()


def test_topics_that_are_there_go_on_and_one_that_goes_makes_room() -> None:
    state = crowded("a", "b")
    outcomes = state.apply(
        2,
        HOUR_MS,
        [
            Publish(("a", "b", "a"), (b"1", b"2", b"3")),
            CreateTopic("a", messages=5, replace=True),
            DeleteTopic("b"),
            Publish("c", (b"4",)),
            Publish("d", (b"5",)),
        ],
    ).outcomes
    assert [isinstance(outcome, Refused) for outcome in outcomes] == [False] * 4 + [True]
    assert sorted(state.topics) == ["a", "c"]


def test_a_lower_limit_removes_nothing_and_zero_is_none() -> None:
    state = crowded("a", "b")
    lower = replace(state.settings, topics=1)
    state.apply(2, HOUR_MS, [Configure(lower), Publish("a", (b"1",)), Publish("b", (b"2",))])
    assert state.seq == 2
    state.apply(3, HOUR_MS, [Configure(replace(lower, topics=0)), Publish("c", (b"3",))])
    assert sorted(state.topics) == ["a", "b", "c"]


def test_the_limit_on_topics_is_part_of_the_snapshot() -> None:
    state = crowded("a", topics=7)
    again = BrokerState.restore(state.snapshot())
    assert again.settings == state.settings
    assert again.settings.topics == 7
    assert BrokerState.restore(crowded(topics=0).snapshot()).settings.topics == 0


# --- shares ---


def sharing(**shares: int) -> Node:
    node = Node()
    node.apply(
        Configure(
            Settings(
                True, WIDE, idempotency_keys=4, idempotency_seconds=100, shares=Shares(**shares)
            )
        )
    )
    return node


def refusal(outcome: Outcome) -> Refused:
    assert isinstance(outcome, Refused)
    return outcome


def test_a_batch_over_topics_is_as_its_messages_one_after_the_other() -> None:
    """Topics that are there, new, new within the batch and named twice; as ``ann``'s and not."""
    names = ("old", "a", "b", "a", "old", "c", "b")
    data = tuple(b"%d" % 10**n for n in range(len(names)))
    together, alone = sharing(topics=9), sharing(topics=9)
    for node, batch in (
        (together, [Publish(names, data, client="ann")]),
        (alone, [Publish(n, (d,), client="ann") for n, d in zip(names, data, strict=True)]),
    ):
        node.apply(CreateTopic("old", 1, client="bob"), Publish("old", (b"1",)))
        applied = node.apply(*batch)
        assert [(e.seq, e.topic, e.data) for e in applied.events if isinstance(e, Message)] == [
            (seq, name, body) for seq, (name, body) in enumerate(zip(names, data, strict=True), 2)
        ]
    assert together.state.digest() == alone.state.digest()
    assert together.state.retained_bytes == alone.state.retained_bytes
    scans = [Scan(node.state, ALL, 0).take(ENDLESS, 99) for node in (together, alone)]
    assert [(at.seq, at.topic) for at in scans[0]] == [(at.seq, at.topic) for at in scans[1]]
    held = [
        {client: (h.topics, h.bytes) for client, h in node.state._holdings.items()}
        for node in (together, alone)
    ]
    assert held[0] == held[1]
    assert held[0]["ann"][0] == 3


def test_one_batch_of_a_client_takes_no_more_than_its_share_of_topics() -> None:
    node = sharing(topics=3)
    names = ("m.1", "m.2", "m.3", "m.4")
    before = node.state.digest()
    refused = refusal(node.do(Publish(names, (b"1",) * 4, client="eve")))
    assert refused.code == "too_many_topics"
    assert "4 more" in refused.detail
    assert "share is 3 topics ([limits] topics_per_client)" in refused.detail
    assert node.state.topics == {}
    node.do(Publish(names[:3], (b"1",) * 3, client="eve"))
    assert refusal(node.do(CreateTopic("m.4", client="eve"))).code == "too_many_topics"
    assert len(node.state.topics) == 3
    assert node.do(Publish("new", (b"1",), client="ann")) == Published(4, 1, 0)
    assert node.do(Publish("other", (b"1",))) == Published(5, 1, 0), "an administrator has no share"
    assert before != node.state.digest()


def test_topics_count_for_whoever_created_them_until_they_are_deleted() -> None:
    node = sharing(topics=1)
    node.apply(Publish("a", (b"1",), client="ann"), CreateTopic("a", 5, replace=True, client="bob"))
    assert refusal(node.do(Publish("b", (b"1",), client="ann"))).code == "too_many_topics"
    assert isinstance(node.do(Publish(("a", "b"), (b"1", b"2"), client="bob")), Published)
    node.apply(DeleteTopic("a"), Publish("c", (b"1",), client="ann"))
    assert sorted(node.state.topics) == ["b", "c"]


def test_a_message_counts_for_whoever_published_it_and_trimming_gives_it_back() -> None:
    node = sharing(storage_bytes=3 * (MESSAGE_OVERHEAD_BYTES + 10), of_publishers=True)
    node.apply(CreateTopic("ann's", client="ann"), CreateTopic("all", 4))
    assert isinstance(node.do(Publish("ann's", (b"x" * 10,) * 3, client="bob")), Published)
    for topic in ("ann's", "all", "new"):
        refused = refusal(node.do(Publish(topic, (b"x",), client="bob")))
        assert refused.code == "storage_full"
        assert "share is 222 bytes of messages" in refused.detail
        assert "([limits] storage_bytes_per_client)" in refused.detail
        assert "kept for it take 222, and these would take 65 more" in refused.detail
        assert "the share of one client, 'bob'," in refused.detail
        assert "raise storage_bytes_per_client" in refused.detail
    assert isinstance(node.do(Publish("ann's", (b"x" * 10,) * 2, client="ann")), Published)
    both = Publish(("ann's", "all"), (b"x" * 10,) * 2, client="ann")
    assert refusal(node.do(both)).code == "storage_full"
    assert len(node.state.topics["all"]) == 0, "all or none"
    assert isinstance(node.do(Publish("ann's", (b"x" * 999,))), Published), "nobody's"
    node.do(CreateTopic("ann's", messages=3, replace=True))
    assert isinstance(node.do(Publish("all", (b"x" * 10,) * 3, client="bob")), Published)
    node.do(Publish("all", (b"y",) * 3))
    assert isinstance(node.do(Publish("all", (b"x" * 10,) * 2, client="bob")), Published)


def test_what_was_published_before_it_counted_for_publishers_counts_for_the_creator_still() -> None:
    """By whichever entry a node was restored, and whatever it had counted before."""
    old, new = Shares(0, 300), Shares(0, 300, 0, True)

    def using(shares: Shares) -> Configure:
        return Configure(Settings(True, WIDE, 4, 100, shares=shares))

    entries: list[list[Command]] = [
        [using(old), CreateTopic("ann's", client="ann"), CreateTopic("all")],
        [Publish(("ann's", "all"), (b"1", b"2"), client="bob"), Publish("ann's", (b"3",))],
        [using(new)],
        [Publish(("ann's", "all"), (b"4", b"5"), client="bob"), Publish("ann's", (b"6",))],
        [Publish("ann's", (b"7",), client="ann"), Publish("all", (b"8",), client="eve")],
    ]
    states = [BrokerState()]
    for index, commands in enumerate(entries, 1):
        for state in states:
            state.apply(index, 0, commands)
        states.append(BrokerState.restore(states[0].snapshot()))
    size = MESSAGE_OVERHEAD_BYTES + 1
    for state in states:
        held = {client: (h.topics, h.bytes) for client, h in state._holdings.items()}
        assert held == {"ann": (1, 3 * size), "bob": (0, 2 * size), "eve": (0, size)}
    assert len({state.digest() for state in states}) == 1
    for state in states:
        state.apply(6, 0, [DeleteTopic("ann's"), DeleteTopic("all")])
        assert state._holdings == {}


def test_a_message_costs_nothing_to_tell_apart_while_one_client_publishes(node: Node) -> None:
    node.do(Configure(Settings(True, WIDE, 4, 100, shares=Shares(of_publishers=True))))
    node.apply(CreateTopic("ann's", client="ann"), CreateTopic("all"))
    for _ in range(9):
        node.apply(Publish("ann's", (b"1",), client="ann"), Publish("all", (b"1",)))
    assert [topic.payers for topic in node.state.topics.values()] == [None, None]
    for _ in range(9):
        node.do(Publish("all", (b"1",), client="bob"))
    payers = node.state.topics["all"].payers
    assert payers is not None
    assert len(payers) == 2, "what was nobody's, and bob's"
    node.do(CreateTopic("all", 1, replace=True))
    node.do(Publish("all", (b"1",)))
    assert node.state.topics["all"].payers is None


def test_another_owners_key_is_another_key(node: Node) -> None:
    assert node.do(Publish("a", (b"1",), "order-2", b"d", "bob", "bob")) == Published(1, 1, 0)
    assert node.do(Publish("a", (b"2",), "order-2", b"e", "ann", "ann")) == Published(2, 1, 0)
    for _ in range(2):
        again = node.do(Publish("a", (b"1",), "order-2", b"d", "bob", "bob"))
        assert again == Published(1, 1, 0, replayed=True)
        node.state = BrokerState.restore(node.state.snapshot())


def test_a_clients_keys_push_out_its_own_first() -> None:
    node = sharing(idempotency_keys=2)
    keep = Publish("a", (b"1",), "keep", b"d", "ann", "ann")
    node.do(keep)
    for number in range(9):
        node.do(Publish("a", (b"1",), f"k{number}", b"d", "eve", "eve"))
    assert node.do(keep) == Published(1, 1, 0, replayed=True)
    assert node.do(Publish("a", (b"1",), "k7", b"d", "eve", "eve")) == Published(9, 1, 0, True)
    assert node.do(Publish("a", (b"1",), "k6", b"d", "eve", "eve")) == Published(11, 1, 0)


def test_when_there_are_too_many_keys_those_of_whoever_has_most_go() -> None:
    node = sharing()
    keep = Publish("a", (b"1",), "keep", b"d", "ann", "ann")
    node.do(keep)
    for client in ("eve", "eva", "eve", "eva", "eve", "eva"):
        node.do(Publish("a", (b"1",), f"k{node.state.seq}", b"d", client, client))
    assert node.do(keep) == Published(1, 1, 0, replayed=True)


def test_what_is_trimmed_is_accounted_for_alike_after_a_restart(node: Node) -> None:
    """Which topic is trimmed first decides what of an entry is worth rewriting."""
    node.apply(CreateTopic("z", seconds=1), CreateTopic("a", seconds=1), CreateTopic("kept"))
    sizes = {"z": 36_000, "a": 3000, "kept": 1}
    node.apply(Publish(tuple(sizes), tuple(b"x" * size for size in sizes.values())))
    other = BrokerState.restore(node.state.snapshot())
    for state in (node.state, other):
        state.apply(4, 5000, [Expire()])
    assert other.digest() == node.state.digest()


# --- topics that are idle ---


def test_a_topic_that_was_idle_is_removed_with_what_it_holds(node: Node) -> None:
    node.apply(CreateTopic("job", idle_seconds=10), Publish("job", (b"1",)), at=5000)
    used = node.state.topics["job"].used_index
    assert used == node.state.applied_index
    assert node.do(DeleteTopics(("job",), (used + 1,))) == TopicsDeleted(0)
    applied = node.apply(DeleteTopics(("job", "missing"), (used, used)))
    assert applied == Applied([TopicsDeleted(1)], [TopicDeleted("job", 1)])
    assert node.history() == []
    assert node.state.idle_topics == {}


@pytest.mark.parametrize(
    "use",
    [
        Publish("job", (b"1",)),
        CreateTopic("job", idle_seconds=10, replace=True),
        KeepTopics(("missing", "job")),
        configured(retention=replace(WIDE, idle_seconds=20)),
    ],
)
@pytest.mark.parametrize("at", [0, 1000, 10**12], ids=["back", "the same", "ahead"])
def test_a_topic_that_is_used_is_not_idle_whatever_the_clocks_say(
    node: Node, use: Command, at: int
) -> None:
    idling = configured(retention=replace(WIDE, idle_seconds=10))
    node.apply(idling, CreateTopic("job"), at=1000)
    created = node.state.applied_index
    node.do(use, at=at)
    node.state = BrokerState.restore(node.state.snapshot())
    assert node.do(DeleteTopics(("job",), (created,)), at=10**13) == TopicsDeleted(0)
    assert node.do(DeleteTopics(("job",), (created + 1,)), at=0) == TopicsDeleted(1)


def test_a_topic_that_may_idle_for_ever_is_never_removed_for_that(node: Node) -> None:
    node.do(CreateTopic("a"), at=1000)
    used = node.state.topics["a"].used_index
    assert node.do(DeleteTopics(("a",), (used,)), at=9000) == TopicsDeleted(0)
    assert node.do(DeleteTopics(("a",)), at=9000) == TopicsDeleted(1)


def test_a_default_of_idle_time_begins_when_it_is_set_and_a_topic_may_leave_it_out(
    node: Node,
) -> None:
    node.apply(CreateTopic("a"), CreateTopic("own", idle_seconds=0), at=1000)
    idling = replace(WIDE, idle_seconds=10)
    begins = node.state.applied_index + 1
    for at in (60_000, 65_000):  # the same again changes nothing
        node.do(configured(retention=idling), at=at)
    assert {name: t.used_index for name, t in node.state.idle_topics.items()} == {"a": begins}
    assert node.state.topics["own"].retention.idle_seconds is None
    node.do(configured(retention=WIDE), at=66_000)
    assert node.state.idle_topics == {}


# --- revoked tokens -----------------------------------------------------------------------

YEAR_MS = 365 * 86_400_000


def test_a_revocation_is_of_the_entrys_time_and_is_told(node: Node) -> None:
    applied = node.apply(RevokeTokens("ann", 10), at=5000)
    assert applied == Applied([Revoked("ann", 5000)], [], ("ann",))
    assert node.state.revocations == {"ann": Revocation(5000, 15_000)}
    assert node.apply(Publish("a", (b"1",)), at=6000).revoked == ()


def test_a_later_revocation_takes_the_place_of_the_first(node: Node) -> None:
    for at, subject, keep_seconds in ((1000, "ann", 50), (2000, "bob", 10), (3000, "ann", 10)):
        node.apply(RevokeTokens(subject, keep_seconds), at=at)
    assert [*node.state.revocations.items()] == [
        ("bob", Revocation(2000, 12_000)),
        ("ann", Revocation(3000, 51_000)),  # what was promised first holds
    ]


def test_a_revocation_is_forgotten_when_no_token_can_be_as_old(node: Node) -> None:
    node.apply(RevokeTokens("ann", 10), at=1000)
    node.apply(RevokeTokens("bob", 10), at=2000)
    assert not node.state.expiry_due(11_000)
    assert node.state.expiry_due(11_001)
    node.apply(Expire(), at=11_001)
    assert node.state.revocations.keys() == {"bob"}
    node.apply(RevokeTokens("eve", 10), at=12_001)
    assert node.state.revocations.keys() == {"eve"}


def test_only_so_many_subjects_are_revoked(node: Node) -> None:
    with patch.object(state_module, "REVOCATIONS_MAX", 2):
        for subject in ("ann", "bob", "ann"):
            node.apply(RevokeTokens(subject, 10), at=1000)
        outcome = node.apply(RevokeTokens("eve", 10), at=1000).outcomes[0]
        assert isinstance(outcome, Refused)
        assert outcome.code == "rate_limited"
        assert node.state.revocations.keys() == {"ann", "bob"}
        node.apply(RevokeTokens("eve", 10), at=11_001)  # the others are forgotten
        assert node.state.revocations.keys() == {"eve"}


def test_a_clock_that_is_far_ahead_for_a_moment_makes_no_revocation_forgotten(node: Node) -> None:
    node.do(RaiseLevel(TWO_CLOCKS), at=1000)
    node.apply(RevokeTokens("ann", 10, 1000), at=1000)
    node.apply(Publish("a", (b"1",)), at=YEAR_MS)
    node.apply(Expire(100), at=YEAR_MS)
    node.apply(RevokeTokens("bob", 10, YEAR_MS), at=YEAR_MS)
    assert node.state.revocations.keys() == {"ann", "bob"}
    assert not node.state.expiry_due(2 * YEAR_MS) or len(node.state.topics)
    node.apply(Expire(100), at=2 * YEAR_MS)
    assert not node.state.expiry_due(2 * YEAR_MS)
    assert node.state.revocations.keys() == {"ann", "bob"}


def test_room_for_another_revocation_is_made_by_the_oldest_that_is_over(node: Node) -> None:
    node.do(RaiseLevel(TWO_CLOCKS), at=1000)
    with patch.object(state_module, "REVOCATIONS_MAX", 3):
        for subject, keep_seconds in (("long", 1000), ("ann", 10), ("bob", 10)):
            node.apply(RevokeTokens(subject, keep_seconds, 1000), at=1000)
        outcome = node.apply(RevokeTokens("eve", 10, 2000), at=2000).outcomes[0]
        assert isinstance(outcome, Refused)
        assert node.state.revocations.keys() == {"long", "ann", "bob"}
        node.apply(RevokeTokens("bob", 10, 11_001), at=11_001)  # which needs no more room
        assert node.state.revocations.keys() == {"long", "ann", "bob"}
        node.apply(RevokeTokens("eve", 10, 11_001), at=11_001)
        assert node.state.revocations.keys() == {"long", "bob", "eve"}


@pytest.mark.parametrize(
    ("asked", "at", "counts"),
    [
        (100_000, 100_000, 100_000),
        (100_000, 101_000, 101_000),  # clocks that agree: what refuses more
        (101_000, 100_000, 100_000),
        (100_000, YEAR_MS, 100_000),  # the leader's is far ahead
        (YEAR_MS, 100_000, 100_000),  # … or that of the node that was asked
        (0, YEAR_MS, YEAR_MS),  # as nodes of an older version ask
    ],
)
def test_of_two_clocks_that_are_far_apart_the_earlier_counts_for_a_revocation(
    node: Node, asked: int, at: int, counts: int
) -> None:
    outcome = node.apply(RevokeTokens("ann", 10, asked), at=at).outcomes[0]
    assert outcome == Revoked("ann", counts)
    assert node.state.revocations["ann"] == Revocation(counts, at + 10_000)


def test_a_revocation_that_was_dated_far_ahead_is_replaced_by_a_later_one(node: Node) -> None:
    node.apply(RevokeTokens("ann", 10, YEAR_MS), at=YEAR_MS)
    node.apply(RevokeTokens("ann", 10, 100_000), at=YEAR_MS + 1000)
    assert node.state.revocations["ann"].time_ms == 100_000


def test_a_revocation_takes_back_nothing_that_one_before_it_refuses(node: Node) -> None:
    """Two nodes were asked one after the other, and the second's clock is a little behind."""
    node.apply(RevokeTokens("ann", 10, 100_000), at=YEAR_MS)
    node.apply(RevokeTokens("ann", 10, 99_000), at=YEAR_MS)
    assert node.state.revocations["ann"].time_ms == 100_000


def test_revocations_survive_a_snapshot_and_leave_none_behind(node: Node) -> None:
    without = node.state.snapshot()
    assert msgpack.unpackb(without)[0] == 1  # as before there were any
    node.apply(RevokeTokens("bob", 10), at=1000)
    node.apply(RevokeTokens("ann", 10), at=2000)
    restored = BrokerState.restore(node.state.snapshot())
    assert [*restored.revocations.items()] == [*node.state.revocations.items()]
    assert restored.digest() == node.state.digest()
    node.apply(Expire(), at=60_000)
    assert msgpack.unpackb(node.state.snapshot())[0] == 1
    assert BrokerState.restore(node.state.snapshot()).revocations == {}


def test_states_stay_equal_where_one_was_restored_and_then_much_expires() -> None:
    """What is trimmed first must not depend on the order in which topics came to be there."""
    state = BrokerState()
    names = [f"t{number * 7 % 20:02}" for number in range(20)]
    for index, name in enumerate(names, 1):
        state.apply(index, 1000, [CreateTopic(name, seconds=10)])
    for index, name in enumerate(reversed(names), 21):
        state.apply(index, 2000 + index % 3, [Publish(name, (b"1", b"2", b"3"))])
    copy = BrokerState.restore(state.snapshot())
    for index in range(41, 81):
        time_ms = 12_000 + 50 * (index - 41)
        for each in (state, copy):
            each.apply(index, time_ms, [Expire(7)])
        assert copy.digest() == state.digest(), f"at entry {index}"
        if index == 50:
            copy = BrokerState.restore(state.snapshot())
    assert state.retained_messages == 0
