"""Channels: tails read by offset, bounded together, joined and left without a trace."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repl_broker.hub import FRAME_OVERHEAD_BYTES, Channel, Hub, message_frame
from repl_broker.message import FilterSet, Message, TopicDeleted
from tests.nodes import EPOCH, events


def message(seq: int, topic: str = "chat", data: bytes = b"1") -> Message:
    return Message(seq, topic, 1_800_000_000_000, data)


def hub_with(*filters: str, tail_bytes_max: int = 1_000_000) -> tuple[Hub, Channel]:
    hub = Hub(EPOCH, tail_bytes_max)
    return hub, hub.join(FilterSet(filters))


def publish(hub: Hub, *messages: Message) -> None:
    hub.publish(messages, messages[-1].seq)


def taken(hub: Hub, channel: Channel, offset: int = 0, bytes_max: int = 1 << 20) -> list[str]:
    batch = hub.take(channel, offset, bytes_max)
    assert batch is not None
    return [event["id"] for event in events([batch.data])]


def test_a_channel_gets_the_messages_of_its_filters_in_order() -> None:
    hub, channel = hub_with("chat", "orders.*")
    publish(hub, message(1), message(2, "orders.eu"), message(3, "other"), message(4, "orders.a.b"))
    publish(hub, message(5))
    assert taken(hub, channel) == [f"{EPOCH}-1", f"{EPOCH}-2", f"{EPOCH}-5"]


def test_a_message_that_two_filters_match_comes_once() -> None:
    hub, channel = hub_with("chat", "*", ">")
    publish(hub, message(1))
    assert taken(hub, channel) == [f"{EPOCH}-1"]


def test_streams_with_equal_filters_share_a_channel_and_the_bytes() -> None:
    hub, channel = hub_with("a", "b")
    assert hub.join(FilterSet(["b", "a"])) is channel
    publish(hub, message(1, "a"), message(2, "b"))
    first, second = hub.take(channel, 0, 1000), hub.take(channel, 0, 1000)
    assert first is not None
    assert second is not None
    assert first.data is second.data


def test_a_message_that_nobody_follows_is_not_even_encoded() -> None:
    hub, channel = hub_with("chat")
    publish(hub, message(1, "other"))
    assert len(channel) == 0
    assert hub.position == 1


def test_take_gives_at_most_so_many_bytes_but_at_least_a_frame() -> None:
    hub, channel = hub_with("chat")
    publish(hub, *(message(i) for i in range(1, 6)))
    size = len(message_frame(EPOCH, message(1)))
    assert taken(hub, channel, 0, 2 * size) == [f"{EPOCH}-1", f"{EPOCH}-2"]
    assert taken(hub, channel, 2, 1) == [f"{EPOCH}-3"]


def test_a_tighter_bound_drops_at_once_what_is_beyond_it() -> None:
    hub, _ = hub_with("a")
    publish(hub, *(message(seq, "a") for seq in range(1, 11)))
    before = hub.statistics().tail_bytes
    hub.bound_tails(before // 2)
    assert 0 < hub.statistics().tail_bytes <= before // 2


def test_the_tails_are_bounded_together_and_the_oldest_frame_goes_first() -> None:
    size = len(message_frame(EPOCH, message(1, "a"))) + FRAME_OVERHEAD_BYTES
    hub, a = hub_with("a", tail_bytes_max=4 * size)
    b = hub.join(FilterSet(["b"]))
    publish(hub, message(1, "a"), message(2, "b"), message(3, "a"), message(4, "b"))
    publish(hub, message(5, "b"))
    assert hub.statistics().tail_bytes <= 4 * size
    assert hub.take(a, 0, 1000) is None, "its first frame is gone"
    assert taken(hub, a, 1) == [f"{EPOCH}-3"]
    assert taken(hub, b) == [f"{EPOCH}-2", f"{EPOCH}-4", f"{EPOCH}-5"]


def test_a_cursor_finds_its_place_only_in_a_tail_that_is_complete_after_it() -> None:
    size = len(message_frame(EPOCH, message(11))) + FRAME_OVERHEAD_BYTES
    hub = Hub(EPOCH, 3 * size)
    hub.position = 10
    channel = hub.join(FilterSet(["chat"]))
    assert channel.offset_after(9) is None, "messages before it joined are not in the tail"
    publish(hub, message(11), message(13), message(14))
    assert [channel.offset_after(s) for s in (11, 12, 13, 14, 99)] == [1, 1, 2, 3, 3]
    assert channel.offset_after(10) is None, "a removal at 10 may have been before"
    publish(hub, message(15))
    assert [channel.offset_after(s) for s in (10, 11)] == [None, 1]


def test_a_removed_topic_is_told_in_its_place() -> None:
    hub, channel = hub_with("chat")
    hub.publish([message(1), TopicDeleted("chat", 1), message(2)], 2)
    batch = hub.take(channel, 0, 1000)
    assert batch is not None
    assert [(e["id"], e.get("event")) for e in events([batch.data])] == [
        (f"{EPOCH}-1", None),
        (f"{EPOCH}-1", "topic-deleted"),
        (f"{EPOCH}-2", None),
    ]


def test_a_stream_that_was_told_of_removals_finds_its_place_behind_those() -> None:
    """They have the position of the message before them."""
    hub, channel = hub_with("*")
    first, second, later = (TopicDeleted(name, 1) for name in "abc")
    hub.publish([message(1), first, second, message(2)], 2)
    assert channel.offset_after(1) == 1
    assert channel.offset_after(1, {first, second}) == 3
    assert channel.offset_after(1, {first, second, later}) == 3
    assert channel.offset_after(1, {later}) == 1
    assert channel.offset_after(1, {second}) is None, "the log knows what of this is still to tell"


def test_leaving_frees_everything() -> None:
    hub, channel = hub_with("chat", ">")
    second = hub.join(channel.filters)
    publish(hub, *(message(i) for i in range(1, 100)))
    hub.leave(channel)
    assert hub.statistics().tail_bytes > 0, "someone is still there"
    hub.leave(second)
    assert hub.statistics()[:3] == (0, 0, 0)
    publish(hub, message(100))
    assert hub.statistics().tail_bytes == 0


def test_coming_and_going_leaves_nothing_behind() -> None:
    hub = Hub(EPOCH, 1_000_000)
    for seq in range(1, 5000):
        channel = hub.join(FilterSet([f"topic-{seq % 7}", "x.>"]))
        publish(hub, message(seq, f"topic-{seq % 7}"))
        hub.leave(channel)
    assert len(hub._order) < 200
    assert not hub._exact
    assert not hub._asked
    assert hub.statistics().tail_bytes == 0


def test_subscribers_of_a_topic_are_counted_through_patterns() -> None:
    hub, _ = hub_with("chat")
    hub.join(FilterSet(["chat"]))
    pattern = hub.join(FilterSet(["*"]))
    assert hub.subscribers("chat") == 3
    assert hub.subscribers("other") == 1
    hub.leave(pattern)
    assert hub.subscribers("chat") == 2
    assert hub.subscribers("other") == 0


async def test_publishing_wakes_those_who_wait_for_it_alone() -> None:
    hub, channel = hub_with("chat")
    other = hub.join(FilterSet(["other"]))
    woken = []

    async def wait(name: str, channel: Channel) -> None:
        await channel.wait()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "chat", channel)
        nursery.start_soon(wait, "chat too", channel)
        nursery.start_soon(wait, "other", other)
        await wait_all_tasks_blocked()
        publish(hub, message(1))
        await wait_all_tasks_blocked()
        assert sorted(woken) == ["chat", "chat too"]
        hub.close()
        await wait_all_tasks_blocked()
        assert "other" in woken


def test_what_finds_no_room_is_left_out_once_for_all_of_an_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The work for a huge entry is bounded, not only the memory."""
    monkeypatch.setattr("repl_broker.hub.APPENDS_MAX", 10)
    skipped: list[int] = []
    monkeypatch.setattr(Channel, "skip", lambda channel, position: skipped.append(position))
    hub, _ = hub_with("chat")
    hub.join(FilterSet(["chat", "other"]))
    publish(hub, *(message(i) for i in range(1, 1001)))
    assert skipped == [1000, 1000], "each channel once, at the end"


def test_deliveries_are_counted() -> None:
    hub, _ = hub_with("chat")
    hub.delivered(2)
    hub.delivered(5)
    assert hub.statistics().deliveries == 7


ODD = [f"{'*.' * length}a" for length in range(8, 40)]  # with more stars than a plain pattern has


def skips(monkeypatch: pytest.MonkeyPatch) -> list[Channel]:
    """The channels whose streams have to read the log, as they are told so."""
    skipped: list[Channel] = []
    skip = Channel.skip

    def noted(channel: Channel, position: int) -> None:
        skipped.append(channel)
        skip(channel, position)

    monkeypatch.setattr(Channel, "skip", noted)
    return skipped


def test_streams_of_patterns_read_the_log_when_finding_them_would_take_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("repl_broker.hub.LOOKS_MAX", 50)
    skipped = skips(monkeypatch)
    hub, exact = hub_with("t.3")
    patterns = [hub.join(FilterSet([f"{kind}.*"])) for kind in "tuv"]
    publish(hub, *(message(seq, f"t.{seq}") for seq in range(1, 101)))
    assert set(skipped) == set(patterns)
    assert len(skipped) == 3, "each once, and not those who follow a topic by its name"
    assert taken(hub, exact) == [f"{EPOCH}-3"]
    for channel in patterns:
        assert channel.offset_after(99) is None, "the log has what is missing"
        assert hub.take(channel, channel.end - 1, 1000) is None
    publish(hub, message(101, "t.101"))
    assert len(skipped) == 3
    assert taken(hub, patterns[0], patterns[0].end - 1) == [f"{EPOCH}-101"]
    assert patterns[0].offset_after(100) is None, "a removal at 100 may have been before"
    assert patterns[0].offset_after(101) == patterns[0].end


def test_odd_patterns_hold_up_only_those_who_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl_broker.hub.ODD_LOOKS_MAX", 20)
    skipped = skips(monkeypatch)
    hub, plain = hub_with("*.>")
    stranger, also = hub.join(FilterSet(ODD)), hub.join(FilterSet(["a.*.*.*.x", "chat"]))
    long = ".".join("a" * 20)
    for seq in range(1, 11):
        publish(hub, message(seq, long))
    assert set(skipped) == set()
    more = [f"{'*.' * length}>" for length in range(2, 40)]
    other = hub.join(FilterSet(more))
    for seq in range(11, 21):
        publish(hub, message(seq, long))
    assert set(skipped) == {stranger, also, other}
    assert len(taken(hub, plain)) == 20
    skipped.clear()
    hub.leave(other)
    publish(hub, message(21, long), message(22))
    assert not skipped
    assert taken(hub, also, also.end - 1) == [f"{EPOCH}-22"]


def test_places_in_the_order_of_dropping_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl_broker.hub.LOOKS_MAX", 3)
    skipped = skips(monkeypatch)
    hub, channel = hub_with("t.*")
    quiet = hub.join(FilterSet(["quiet"]))
    publish(hub, message(1, "quiet"), message(2, "quiet"))
    for seq in range(3, 3000, 3):
        publish(hub, message(seq, "t.1"), *(message(seq + n, f"u.{seq + n}") for n in (1, 2)))
    assert len(skipped) == 999
    assert len(hub._order) < 200
    hub.bound_tails(1)
    assert (len(channel), len(quiet), hub.statistics().tail_bytes) == (0, 0, 0)
