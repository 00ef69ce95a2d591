"""The event stream: beginning, order, resuming, gaps, the end (DESIGN section 4)."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx_sse
import pytest
import trio

from tests.contract.client import (
    NDJSON,
    Node,
    Stream,
    check_problem,
    read_answer,
    request_bytes,
)
from tests.contract.conftest import Launch, over_all_front_ends

pytestmark = over_all_front_ends


def next_epoch(identity: str) -> str:
    """The same position in another cluster."""
    epoch, _, seq = identity.partition("-")
    return f"{int(epoch, 16) ^ 1:08x}-{seq}"


def heartbeat(identity: str) -> dict[str, str]:
    return {"id": identity, "event": "heartbeat", "data": f'{{"position":"{identity}"}}'}


def moved(identity: str, by: int) -> str:
    epoch, _, seq = identity.partition("-")
    return f"{epoch}-{int(seq) + by}"


# --- beginning --------------------------------------------------------------------------


async def test_a_stream_begins_with_retry_and_subscribed(node: Node) -> None:
    identity = (await node.publish("other", 1))[0]
    async with node.events("chat", "orders.>", "chat") as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-cache, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["x-content-type-options"] == "nosniff"
        expected = f'{{"topics":["chat","orders.>"],"node":"n1","position":"{identity}"}}'
        block = f"retry: 2000\nid: {identity}\nevent: subscribed\ndata: {expected}"
        assert await stream.block() == block.encode()


async def test_messages_come_as_unnamed_events_with_one_data_line(node: Node) -> None:
    async with node.events("chat") as stream:
        await stream.subscribed()
        await node.publish_raw("other", b"0")
        identity = await node.publish_raw("chat", b'{"text":"a\\nb", "text": 1.0}')
        match = re.fullmatch(
            rb'id: (.+)\ndata: \{"id":"(.+)","topic":"chat","time":"(.+)","data":(.+)\}',
            await stream.block(),
        )
        assert match is not None
        assert match[1].decode() == match[2].decode() == identity
        assert match[4] == b'{"text":"a\\nb","text":1.0}'


async def test_a_topic_that_does_not_exist_yet_can_be_followed(node: Node) -> None:
    async with node.events("later") as stream:
        await stream.subscribed()
        check_problem(await node.client.get("/v1/topics/later"), 404, "topic_not_found")
        await node.publish("later", "here")
        assert await stream.data(1) == ["here"]


async def test_patterns_follow_what_they_match_and_nothing_else(node: Node) -> None:
    published = ["a", "a.b", "a.b.c", "b", "b.c", "x.b.c", "a.c"]
    wanted = {
        ("a.*",): ["a.b", "a.c"],
        ("a.>",): ["a.b", "a.b.c", "a.c"],
        (">",): published,
        ("*.b.*",): ["a.b.c", "x.b.c"],
        ("a", "*.c"): ["a", "b.c", "a.c"],
        ("a.b", "a.*", "a.>"): ["a.b", "a.b.c", "a.c"],  # none twice
    }
    for filters, topics in wanted.items():
        async with node.events(*filters, after="latest") as stream:
            await stream.subscribed()
            for topic in published:
                await node.publish(topic, topic)
            assert await stream.data(len(topics)) == topics
            await node.publish("a.c" if ("a.c" in topics) else topics[-1], "end")
            assert await stream.data(1) == ["end"]


async def test_every_stream_sees_the_same_order(node: Node) -> None:
    """Many publishers at once; streams of one topic, of several and of a pattern."""
    topics, count = ("a", "b", "c"), 10

    async def publish(topic: str) -> None:
        for number in range(count):
            await node.publish(topic, number)

    async with (
        node.events(*topics) as first,
        node.events(">") as second,
        node.events("b") as third,
    ):
        for stream in (first, second, third):
            await stream.subscribed()
        async with trio.open_nursery() as nursery:
            for topic in topics:
                nursery.start_soon(publish, topic)
        messages = await first.messages(3 * count)
        assert await second.messages(3 * count) == messages
        assert await third.messages(count) == [m for m in messages if m["topic"] == "b"]
    numbers = [int(message["id"].partition("-")[2]) for message in messages]
    assert numbers == list(range(1, 3 * count + 1))


async def test_head_says_what_get_would_and_starts_no_stream(node: Node) -> None:
    with trio.fail_after(5):
        async with await node.connect() as tcp_stream:
            await tcp_stream.send_all(request_bytes("HEAD", "/v1/events?topic=chat"))
            answer = await read_answer(tcp_stream, body=False)
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["content-type"] == "text/event-stream"
            await tcp_stream.send_all(request_bytes("HEAD", "/v1/events?topic=a..b"))
            assert (await read_answer(tcp_stream, body=False)).status == 400
    await node.publish("chat", 1)
    assert (await node.client.get("/v1/topics/chat")).json()["subscribers"] == 0


async def test_another_client_library_reads_the_stream(node: Node) -> None:
    """httpx-sse, which has its own idea of the format."""
    ids = await node.publish("chat", {"n": 1}, "é")

    def read() -> list[httpx_sse.ServerSentEvent]:
        found = []
        url = f"{node.url}/v1/events?topic=chat&after=earliest"
        with httpx.Client(trust_env=False, timeout=5) as client:
            with httpx_sse.connect_sse(client, "GET", url) as source:
                for event in source.iter_sse():
                    found.append(event)
                    if len(found) == 3:
                        return found
        raise AssertionError("the stream ended")

    events = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    assert [event.event for event in events] == ["subscribed", "message", "message"]
    assert [event.id for event in events[1:]] == ids
    assert [event.json()["data"] for event in events[1:]] == [{"n": 1}, "é"]


# --- resuming ---------------------------------------------------------------------------


async def test_earliest_replays_what_is_retained_and_goes_live(node: Node) -> None:
    ids = await node.publish("chat", 1, 2)
    async with node.events("chat", after="earliest") as stream:
        assert (await stream.subscribed())["position"] == moved(ids[0], -1)
        assert await stream.data(2) == [1, 2]
        await node.publish("chat", 3)
        assert await stream.data(1) == [3]


async def test_after_an_id_only_later_messages_come(node: Node) -> None:
    ids = await node.publish("chat", 1, 2, 3)
    async with node.events("chat", after=ids[0]) as stream:
        assert (await stream.subscribed())["position"] == ids[0]
        assert await stream.data(2) == [2, 3]


async def test_last_event_id_wins_over_after(node: Node) -> None:
    ids = await node.publish("chat", 1, 2, 3)
    for after in ("earliest", "latest", ids[0]):
        async with node.events("chat", after=after, last=ids[1]) as stream:
            assert (await stream.subscribed())["position"] == ids[1]
            assert await stream.data(1) == [3]
    response = await node.client.get(
        "/v1/events?topic=chat&after=nonsense", headers={"Last-Event-ID": ids[1]}
    )
    check_problem(response, 400, "invalid_event_id", "nonsense")


@pytest.mark.parametrize(
    "name",
    [
        "lastEventId",  # event-source-polyfill, reconnecting-eventsource
        "lastEventID",  # Mercure
        *("last_event_id", "Last-Event-ID", "Last-Event-Id", "last-event-id", "evs_last_event_id"),
    ],
)
async def test_a_library_may_send_its_cursor_in_the_query(node: Node, name: str) -> None:
    ids = await node.publish("chat", 1, 2, 3)

    async def begin(query: str, last: str | None = None) -> list[int]:
        async with node.asked(f"/v1/events?topic=chat{query}", last) as stream:
            await stream.subscribed()
            await node.publish("chat", 0)
            found: list[int] = []
            while 0 not in found:
                found += await stream.data(1)
        await node.client.delete("/v1/topics/chat")
        ids[:] = await node.publish("chat", 1, 2, 3)
        return found

    assert await begin(f"&{name}={ids[0]}") == [2, 3, 0]
    # Behind what the page's author wrote, and what is older; a browser's own is newest of all.
    assert await begin(f"&after=earliest&{name}={ids[1]}") == [3, 0]
    assert await begin(f"&{name}={ids[1]}&after=earliest") == [3, 0]
    assert await begin(f"&{name}={ids[0]}&lastEventId={ids[1]}") == [3, 0]
    assert await begin(f"&{name}={ids[0]}&{name}={ids[1]}") == [3, 0]
    assert await begin(f"&{name}={ids[0]}", last=ids[2]) == [0]
    assert await begin(f"&after={ids[1]}&{name}=") == [3, 0]
    response = await node.client.get(f"/v1/events?topic=chat&after=earliest&{name}=17")
    check_problem(response, 400, "invalid_event_id", "17")


async def test_what_caches_and_service_workers_add_changes_nothing(node: Node) -> None:
    await node.publish("chat", 1)
    added = "_=1712&ngsw-bypass=true"
    async with node.asked(f"/v1/events?{added}&topic=chat&after=earliest&{added}") as stream:
        await stream.subscribed()
        assert await stream.data(1) == [1]
    for path in ("/v1/topics", "/v1/topics/chat", "/v1/topics/chat/messages", "/v1/cluster"):
        response = await node.client.get(f"{path}?{added}")
        assert response.status_code == 200, path
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/client.js"):
        assert (await node.client.get(f"{path}?{added}")).status_code == 200, path
    response = await node.client.post(f"/v1/topics/chat/messages?{added}", json=2)
    assert response.status_code == 201


async def test_an_empty_last_event_id_is_none(node: Node) -> None:
    await node.publish("chat", 1)
    async with node.events("chat", after="earliest", last="") as stream:
        await stream.subscribed()
        assert await stream.data(1) == [1]


async def test_the_id_of_subscribed_resumes_without_loss(node: Node) -> None:
    """A client that saw no message before the connection broke misses none."""
    async with node.events("chat") as stream:
        position = (await stream.subscribed())["position"]
    await node.publish("chat", 1)
    await node.publish("other", 0)
    await node.publish("chat", 2)
    async with node.events("chat", last=position) as stream:
        await stream.subscribed()
        assert await stream.data(2) == [1, 2]


async def test_resuming_at_every_place_continues_the_same_sequence(node: Node) -> None:
    for number in range(12):
        await node.publish(f"t.{number % 3}", number)
    async with node.events("t.*", after="earliest") as stream:
        position = (await stream.subscribed())["position"]
        whole = await stream.messages(12)
    places = [position, *(message["id"] for message in whole)]
    for number, place in enumerate(places):
        async with node.events("t.*", last=place) as stream:
            await stream.subscribed()
            assert await stream.messages(12 - number) == whole[number:]


async def test_a_stream_can_be_resumed_after_a_restart(launch: Launch) -> None:
    async with launch() as node:
        ids = await node.publish("chat", 1, 2, 3)
    async with launch() as node:
        await node.publish("chat", 4)
        async with node.events("chat", last=ids[0]) as stream:
            await stream.subscribed()
            assert await stream.data(3) == [2, 3, 4]


async def test_a_long_replay_is_complete(node: Node) -> None:
    """Longer than a page, a chunk and the memory's tail."""
    lines = [json.dumps({"n": number, "pad": "x" * 100}) for number in range(3000)]
    body = "\n".join(lines).encode()
    response = await node.client.post("/v1/topics/chat/messages", content=body, headers=NDJSON)
    assert response.status_code == 201
    async with node.events("chat", after="earliest") as stream:
        await stream.subscribed()
        assert [data["n"] for data in await stream.data(3000)] == list(range(3000))


# --- gaps -------------------------------------------------------------------------------


async def gap(stream: Stream) -> dict[str, Any]:
    event = await stream.event()
    assert event["event"] == "gap", event
    data: dict[str, Any] = json.loads(event["data"])
    return data


async def test_trimmed_history_is_told_as_a_gap_before_the_rest(node: Node) -> None:
    await node.client.put("/v1/topics/chat", json={"retention": {"messages": 2}})
    ids = await node.publish("chat", 1, 2, 3, 4, 5)
    async with node.events("chat", last=ids[0]) as stream:
        assert (await stream.subscribed())["position"] == ids[0]
        assert await gap(stream) == {
            "after": ids[0],
            "first_available": ids[3],
            "reason": "retention",
        }
        assert await stream.data(2) == [4, 5]
    async with node.events("chat", last=ids[2]) as stream:  # nothing lost after this one
        await stream.subscribed()
        assert await stream.data(2) == [4, 5]


async def test_the_id_of_a_gap_resumes_behind_it(node: Node) -> None:
    await node.client.put("/v1/topics/chat", json={"retention": {"messages": 1}})
    ids = await node.publish("chat", 1, 2, 3)
    async with node.events("chat", last=ids[0]) as stream:
        await stream.subscribed()
        event = await stream.event()
        assert event["event"] == "gap"
    async with node.events("chat", last=event["id"]) as stream:
        await stream.subscribed()
        assert await stream.data(1) == [3]


async def test_an_id_of_another_cluster_is_told_as_a_gap(node: Node) -> None:
    ids = await node.publish("chat", 1, 2)
    foreign = next_epoch(ids[1])
    async with node.events("chat", last=foreign) as stream:
        await stream.subscribed()
        assert await gap(stream) == {
            "after": foreign,
            "first_available": ids[0],
            "reason": "unknown_epoch",
        }
        assert await stream.data(2) == [1, 2]


async def test_an_id_of_the_future_is_told_as_a_gap(node: Node) -> None:
    ids = await node.publish("chat", 1)
    future = moved(ids[0], 1000)
    async with node.events("chat", last=future) as stream:
        await stream.subscribed()
        found = await gap(stream)
        assert (found["after"], found["reason"]) == (future, "ahead")
        await node.publish("chat", 2)
        assert await stream.data(1) == [2]


async def test_a_gap_with_nothing_retained_has_no_first(node: Node) -> None:
    async with node.events("chat", last="00000000-7") as stream:
        await stream.subscribed()
        found = await gap(stream)
    if found["reason"] == "unknown_epoch":  # unless the epoch is 00000000
        assert found == {
            "after": "00000000-7",
            "first_available": None,
            "reason": "unknown_epoch",
        }


# --- while it runs ----------------------------------------------------------------------


async def test_a_deleted_topic_is_told_and_the_stream_stays(node: Node) -> None:
    async with node.events("chat", "other") as stream:
        await stream.subscribed()
        await node.publish("chat", 1)
        await node.client.delete("/v1/topics/chat")
        await node.publish("chat", 2)
        await node.publish("other", 3)
        assert await stream.data(1) == [1]
        event = await stream.event()
        assert (event["event"], json.loads(event["data"])) == ("topic-deleted", {"topic": "chat"})
        assert await stream.data(2) == [2, 3]


async def test_silence_is_broken_by_heartbeats_that_move_the_cursor(launch: Launch) -> None:
    async with launch(limits={"heartbeat_seconds": 1}) as node, node.events("chat") as stream:
        position = (await stream.subscribed())["position"]
        assert await stream.event() == heartbeat(position)
        identity = (await node.publish("other", 1))[0]
        assert await stream.event() == heartbeat(identity)
        await node.publish("chat", 2)
        assert await stream.data(1) == [2]


async def test_the_subscribers_of_a_topic_are_counted(node: Node) -> None:
    await node.publish("chat", 0)

    async def subscribers() -> int:
        count: int = (await node.client.get("/v1/topics/chat")).json()["subscribers"]
        return count

    assert await subscribers() == 0
    async with node.events("chat") as first, node.events("*", ">") as second:
        await first.subscribed()
        await second.subscribed()
        assert await subscribers() == 2
    with trio.fail_after(5):
        while await subscribers():  # until the node has seen both leave
            pass


async def test_a_client_that_leaves_in_silence_is_noticed_at_once(node: Node) -> None:
    """Not with the next message, or heartbeat: those may be 15 seconds away."""
    await node.publish("chat", 0)
    async with node.events("chat") as stream:
        await stream.subscribed()
    with trio.fail_after(2):
        while (await node.client.get("/v1/topics/chat")).json()["subscribers"]:
            pass


async def test_a_stalled_reader_holds_back_nobody_and_catches_up(launch: Launch) -> None:
    """8 MB go by while one stream does not read."""
    async with (
        launch(limits={"tail_bytes": 100_000, "write_timeout_seconds": 60}) as node,
        node.events("chat") as stalled,
        node.events("chat") as reader,
    ):
        await stalled.subscribed()
        await reader.subscribed()
        for number in range(8):
            await node.publish("chat", {"n": number, "pad": "x" * 1_000_000})
            assert [data["n"] for data in await reader.data(1)] == [number]
        assert [data["n"] for data in await stalled.data(8)] == list(range(8))


async def test_streams_opened_while_publishing_miss_nothing(node: Node) -> None:
    count, streams = 100, 20

    async def follow() -> None:
        async with node.events("chat") as stream:
            position = (await stream.subscribed())["position"]
            seen = int(position.partition("-")[2])
            assert await stream.data(count - seen) == list(range(seen, count))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            if number % (count // streams) == 0:
                nursery.start_soon(follow)
            await node.publish("chat", number)


# --- the end ----------------------------------------------------------------------------


@pytest.fixture
async def streams(node: Node) -> AsyncIterator[list[Stream]]:
    async with node.events("chat") as first, node.events("chat") as second:
        for stream in (first, second):
            await stream.subscribed()
        yield [first, second]


async def test_a_shutdown_ends_streams_with_a_retry_of_their_own(
    node: Node, streams: list[Stream]
) -> None:
    await node.publish("chat", 1)
    node.stop()
    for stream in streams:
        assert await stream.data(1) == [1]
        (last,) = await stream.end()
        match = re.fullmatch(
            rb'retry: (\d+)\nevent: goodbye\ndata: {"reason":"shutting_down"}', last
        )
        assert match is not None
        assert 2000 <= int(match[1]) < 7000


async def test_what_was_acknowledged_before_a_shutdown_is_delivered(launch: Launch) -> None:
    acknowledged: list[str] = []
    async with launch() as node, node.events("chat") as stream:
        await stream.subscribed()
        for number in range(20):
            acknowledged += await node.publish("chat", number)
        node.stop()
        blocks = await stream.end()
    assert [block.split(b"\n")[0] for block in blocks[:-1]] == [
        f"id: {identity}".encode() for identity in acknowledged
    ]
    async with launch() as node:
        assert await node.data("chat") == list(range(20))
