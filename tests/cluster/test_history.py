"""The checker of histories: it passes good ones, and catches each kind of bad one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cluster.history import (
    ACKNOWLEDGED,
    REFUSED,
    UNKNOWN,
    Attempt,
    Event,
    Gap,
    Heartbeat,
    History,
    Message,
    Other,
    Reader,
    Subscribed,
    different_digests,
    violations,
)

EPOCH = "00c0ffee"
ANY = "any"  # a topic that keeps all
FEW = "few"  # a topic that keeps two messages


def at(seq: int) -> str:
    return f"{EPOCH}-{seq}"


def message(seq: int, payload: str = "", topic: str = ANY) -> Message:
    return Message(at(seq), topic, payload or f"p{seq}")


def attempt(
    seq: int,
    outcome: str = ACKNOWLEDGED,
    topic: str = ANY,
    payload: str = "",
    key: str | None = None,
) -> Attempt:
    """What would become ``message(seq)``, published at that second."""
    told = at(seq) if outcome == ACKNOWLEDGED else None
    return Attempt("n1", topic, payload or f"p{seq}", key, seq, seq + 0.5, outcome, told)


def reader(*events: Event, topics: frozenset[str] = frozenset({ANY})) -> Reader:
    return Reader("reader 1", topics, [Subscribed("n1", at(0)), *events])


def good(count: int = 4) -> History:
    """Messages 1 to ``count``, published one after the other, on three nodes, read by one."""
    messages = [message(seq) for seq in range(1, count + 1)]
    return History(
        [attempt(m.seq) for m in messages],
        [reader(*messages)],
        {name: list(messages) for name in ("n1", "n2", "n3")},
    )


def test_a_good_history_passes() -> None:
    assert violations(good()) == []
    assert violations(History()) == []
    good().check()


def test_what_is_unknown_may_be_kept_or_not() -> None:
    history = good()
    history.attempts[1] = attempt(2, UNKNOWN)
    assert violations(history) == []
    history.attempts.append(attempt(9, UNKNOWN))
    assert violations(history) == []


def test_an_acknowledged_message_that_a_node_does_not_keep_is_found() -> None:
    history = good()
    del history.nodes["n2"][2]
    assert violations(history) == [
        "n2 does not keep the acknowledged message 'p3' (any, 00c0ffee-3)"
    ]


def test_an_acknowledged_message_that_nobody_keeps_is_found() -> None:
    history = good()
    history.attempts.append(attempt(5))
    assert [line.split()[0] for line in violations(history)] == ["n1", "n2", "n3"]


def test_a_message_of_unknown_outcome_that_only_one_node_keeps_is_found() -> None:
    history = good()
    history.attempts.append(attempt(5, UNKNOWN))
    history.nodes["n1"].append(message(5))
    assert violations(history) == [
        f"{name} does not keep the published message 'p5' (any, 00c0ffee-5)"
        for name in ("n2", "n3")
    ]


def test_a_message_that_was_read_and_then_lost_is_found() -> None:
    history = good()
    history.attempts.append(attempt(5, UNKNOWN))
    history.readers[0].events.append(message(5))
    assert len(violations(history)) == 3


def test_a_message_that_a_reader_did_not_get_is_found() -> None:
    history = good()
    del history.readers[0].events[2]
    assert violations(history) == [
        "reader 1 was not told of the acknowledged message 'p2' (any, 00c0ffee-2) "
        "before 'p3' (any, 00c0ffee-3)"
    ]


def test_a_message_that_a_heartbeat_passes_over_is_found() -> None:
    history = good()
    history.readers = [reader(message(1), Heartbeat(at(3)))]
    assert len(violations(history)) == 2
    history.readers = [reader(message(1), Heartbeat(at(1)))]
    assert violations(history) == [], "it has not read past the others"


def test_a_reader_from_the_latest_on_need_not_get_what_came_before() -> None:
    history = good()
    history.readers[0].events[:3] = [Subscribed("n3", at(2))]
    assert violations(history) == []


def test_a_message_under_two_ids_is_found() -> None:
    history = good()
    for messages in history.nodes.values():
        messages.append(message(5, "p2"))
    assert "one message, two ids: 'p2' (any, 00c0ffee-2) and 'p2' (any, 00c0ffee-5)" in violations(
        history
    )


def test_a_repeat_that_was_told_another_id_is_found() -> None:
    history = good()
    history.attempts.append(replace(attempt(4), id=at(5), key="k"))
    assert "one message, two ids: 'p4' (any, 00c0ffee-4) and 'p4' (any, 00c0ffee-5)" in violations(
        history
    )


def test_a_message_twice_in_one_reader_is_found() -> None:
    history = good()
    history.readers[0].events.append(message(4))
    assert violations(history) == ["reader 1 got 'p4' (any, 00c0ffee-4) twice"]


def test_messages_out_of_order_in_one_reader_are_found() -> None:
    history = good()
    events = history.readers[0].events
    events[2], events[3] = events[3], events[2]
    (missed, late) = violations(history)
    assert "was not told of" in missed
    assert late == "reader 1 got 'p2' (any, 00c0ffee-2) out of order, after 3"


def test_messages_out_of_order_in_a_nodes_history_are_found() -> None:
    history = good()
    history.nodes["n3"].reverse()
    assert "n3's history: 'p3' (any, 00c0ffee-3) comes after 'p4' (any, 00c0ffee-4)" in violations(
        history
    )


@pytest.mark.parametrize("where", ["n2", "reader"])
def test_two_messages_under_one_id_are_found(where: str) -> None:
    history = good()
    history.attempts.append(attempt(9, UNKNOWN))
    other = message(2, "p9")
    if where == "n2":
        history.nodes["n2"][1] = other
        source = "n2's history"
    else:
        history.readers[0].events[2] = other
        source = "what reader 1 read"
    (line,) = violations(history)
    assert line == (
        f"one id, two messages: 'p2' (any, 00c0ffee-2) in n1's history, "
        f"'p9' (any, 00c0ffee-2) in {source}"
    )


def test_an_acknowledgement_with_the_id_of_another_message_is_found() -> None:
    history = good()
    history.attempts[3] = replace(history.attempts[3], id=at(3))
    assert "'p4' (any, 00c0ffee-3) in an acknowledgement of n1" in violations(history)[0]


def test_a_message_in_another_topic_is_found() -> None:
    history = good()
    history.readers[0].events[1] = message(1, topic="other")
    assert "one id, two messages" in violations(history)[0]


def test_a_second_epoch_is_found() -> None:
    history = good()
    history.nodes["n1"][0] = Message("deadbeef-1", ANY, "p1")
    assert violations(history) == ["ids of more than one epoch: 00c0ffee, deadbeef"]


def test_what_nobody_has_published_is_found() -> None:
    history = good()
    for messages in history.nodes.values():
        messages.append(message(5))
    assert violations(history) == ["nobody has published 'p5' (any, 00c0ffee-5)"]


def test_a_refused_message_that_shows_up_is_found() -> None:
    history = good()
    history.attempts[3] = attempt(4, REFUSED)
    assert violations(history) == ["refused, but kept: 'p4' (any, 00c0ffee-4)"]


@pytest.mark.parametrize("outcome", [ACKNOWLEDGED, UNKNOWN])
def test_a_refused_message_may_show_up_if_its_key_was_repeated(outcome: str) -> None:
    history = good()
    history.attempts[3:] = [attempt(4, REFUSED, key="k"), attempt(4, outcome, key="k")]
    assert violations(history) == []


def test_a_message_before_one_that_was_acknowledged_before_it_began_is_found() -> None:
    history = good()
    history.attempts[1] = replace(history.attempts[1], start=10, end=11)
    assert violations(history) == [
        "against the clock: 'p2' (any, 00c0ffee-2) began after 'p4' (any, 00c0ffee-4) "
        "was acknowledged"
    ]


def test_what_was_published_at_the_same_time_has_either_order() -> None:
    history = good()
    history.attempts = [replace(one, start=1, end=9) for one in reversed(history.attempts)]
    assert violations(history) == []


def test_the_clock_of_a_repeated_message_runs_from_its_first_attempt_that_was_not_refused() -> None:
    history = good()
    repeat = replace(attempt(2, key="k"), start=10, end=11)
    history.attempts[1:2] = [attempt(2, UNKNOWN, key="k"), repeat]
    assert violations(history) == []
    history.attempts[1] = attempt(2, REFUSED, key="k")
    assert "against the clock" in violations(history)[0]


# --- readers that come back, and gaps ----------------------------------------------------------


def test_a_reader_may_come_back_where_it_was() -> None:
    history = good()
    history.readers[0].events.insert(3, Subscribed("n2", at(2)))
    assert violations(history) == []


@pytest.mark.parametrize("position", [1, 3])
def test_a_reader_that_is_put_elsewhere_is_found(position: int) -> None:
    history = good()
    history.readers[0].events.insert(3, Subscribed("n2", at(position)))
    assert f"reader 1 came back to n2 with 2, and was put at {position}" in violations(history)


def test_a_stream_that_begins_without_saying_where_is_found() -> None:
    history = good()
    del history.readers[0].events[0]
    assert "before the stream began" in violations(history)[0]


def test_a_heartbeat_that_goes_back_is_found() -> None:
    history = good()
    history.readers[0].events.append(Heartbeat(at(3)))
    assert violations(history) == ["reader 1 got a heartbeat out of order, after 4"]


def test_a_block_that_nobody_caused_is_found() -> None:
    history = good()
    history.readers[0].events.append(Other("event: topic-deleted"))
    assert violations(history) == ["reader 1 got a block that nobody caused: event: topic-deleted"]


def test_a_message_of_a_topic_that_is_not_read_is_found() -> None:
    history = good()
    history.readers[0].topics = frozenset({"other"})
    assert len(violations(history)) == 4


def trimmed() -> History:
    """1, 3, 5, 7, 9 are in a topic that keeps two; 2, 4, 6, 8, 10 in one that keeps all."""
    topics = [FEW if seq % 2 else ANY for seq in range(11)]
    messages = [message(seq, topic=topics[seq]) for seq in range(1, 11)]
    kept = [m for m in messages if m.topic == ANY or m.seq >= 7]
    return History(
        [attempt(m.seq, topic=m.topic) for m in messages],
        [reader(*messages, topics=frozenset({ANY, FEW}))],
        {"n1": kept, "n2": kept},
        {FEW: 2},
    )


def without(history: History, *seqs: int) -> list[Event]:
    return [
        event
        for event in history.readers[0].events
        if not (isinstance(event, Message) and event.seq in seqs)
    ]


def test_what_is_older_than_the_retention_need_not_be_kept() -> None:
    assert violations(trimmed()) == []


def test_what_is_within_the_retention_must_be_kept() -> None:
    history = trimmed()
    history.nodes["n2"] = [m for m in history.nodes["n2"] if m.seq != 7]
    assert violations(history) == [
        "n2 does not keep the acknowledged message 'p7' (few, 00c0ffee-7)"
    ]


def test_a_reader_that_is_told_of_a_gap_may_miss_what_was_trimmed() -> None:
    history = trimmed()
    history.readers[0].events = without(history, 3, 5)
    assert len(violations(history)) == 2, "it was not told"
    history.readers[0].events.insert(2, Gap(at(1), at(1), "retention"))
    assert violations(history) == []


def test_a_gap_excuses_nothing_in_a_topic_that_keeps_all() -> None:
    history = trimmed()
    history.readers[0].events = without(history, 3, 4, 5)
    history.readers[0].events.insert(3, Gap(at(5), at(2), "retention"))
    assert violations(history) == [
        "reader 1 was not told of the acknowledged message 'p4' (any, 00c0ffee-4) before a gap"
    ]


def test_a_gap_excuses_nothing_after_the_next_message_of_the_topic() -> None:
    history = trimmed()
    history.readers[0].events = without(history, 3, 7)
    history.readers[0].events.insert(3, Gap(at(3), at(2), "retention"))
    assert violations(history) == [
        "reader 1 was not told of the acknowledged message 'p7' (few, 00c0ffee-7) "
        "before 'p8' (any, 00c0ffee-8)"
    ]


def test_a_gap_excuses_nothing_before_it() -> None:
    history = trimmed()
    history.readers[0].events = without(history, 3, 5)
    history.readers[0].events.insert(4, Gap(at(4), at(4), "retention"))
    assert violations(history) == [
        "reader 1 was not told of the acknowledged message 'p3' (few, 00c0ffee-3) "
        "before 'p4' (any, 00c0ffee-4)"
    ]


def test_a_gap_where_nothing_is_trimmed_is_found() -> None:
    history = good()
    history.readers[0].events.insert(3, Gap(at(2), at(2), "retention"))
    assert "that nothing explains" in violations(history)[0]


def test_a_gap_of_another_epoch_is_found() -> None:
    history = trimmed()
    history.readers[0].events.insert(3, Gap(at(2), at(2), "unknown_epoch"))
    assert "that nothing explains" in violations(history)[0]


def test_a_reader_that_is_told_that_it_is_ahead_gets_again_what_is_behind() -> None:
    history = good()
    history.readers[0].events[4:] = [
        Subscribed("n3", at(3)),
        Gap(at(1), at(3), "ahead"),
        *(message(seq) for seq in (2, 3, 4)),
    ]
    assert violations(history) == []
    del history.readers[0].events[-2]
    assert len(violations(history)) == 1


def test_a_reader_that_is_told_that_it_is_ahead_but_is_not_is_found() -> None:
    history = good()
    history.readers[0].events.append(Gap(at(4), at(4), "ahead"))
    assert violations(history) == ["reader 1 was told that it is ahead, at 4, of 4"]


# --- showing -----------------------------------------------------------------------------------


def test_a_failure_shows_some_violations_and_counts_the_others() -> None:
    history = good(40)
    history.nodes["n1"].clear()
    with pytest.raises(AssertionError) as failure:
        history.check()
    lines = str(failure.value).splitlines()
    assert lines[0].startswith("n1 does not keep the acknowledged message 'p1'")
    assert lines[20].startswith("… and 20 more")


def test_a_history_says_what_it_holds() -> None:
    assert str(good()) == (
        "4 attempts (4 acknowledged, 0 refused, 0 unknown); 4 messages kept; "
        "1 readers got 4 over 1 streams with 0 gaps"
    )


def test_digests_are_compared_between_nodes_that_are_level() -> None:
    assert different_digests({"n1": (5, "a"), "n2": (5, "a"), "n3": (4, "b")}) == []
    assert different_digests({"n1": (5, "a"), "n2": (5, "b"), "n3": (4, "b")}) == [
        "n1 and n2 have applied 5 entries, and their digests differ"
    ]
