"""The event stream's bytes, read back as WHATWG HTML 9.2 says that a browser does."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from repl_broker import sse
from repl_broker.command import CreateTopic
from repl_broker.message import JsonLimits, Message, compact_json
from repl_broker.subscription import Subscription
from repl_broker.web.openapi import EVENT_NAMES as EVENT_NAMES_OF_THE_REFERENCE
from tests.eventsource import EVENT_NAMES, Event, EventSource, blocks
from tests.nodes import ANYONE, EPOCH
from tests.test_fanout import SMALL_BUFFER, SMALL_TAIL, Client, Scene, scene

EVENT_ID = "9f3a1c2b-5000"


def test_a_message_fires_onmessage_and_moves_the_cursor() -> None:
    data = b'{"id":"9f3a1c2b-5000","data":1}'
    block = sse.message_event(EVENT_ID, data)
    assert block == b'id: 9f3a1c2b-5000\ndata: {"id":"9f3a1c2b-5000","data":1}\n\n'
    source = EventSource().feed(block)
    assert source.events == [Event("message", data.decode(), EVENT_ID)]
    assert source.last_event_id == EVENT_ID


@pytest.mark.parametrize("name", ["subscribed", "gap", "topic-deleted"])
def test_a_named_event_fires_its_name_and_moves_the_cursor(name: str) -> None:
    block = sse.event(name, EVENT_ID, b'{"after":null}')
    assert block == b'id: 9f3a1c2b-5000\nevent: %b\ndata: {"after":null}\n\n' % name.encode()
    source = EventSource().feed(block)
    assert source.events == [Event(name, '{"after":null}', EVENT_ID)]
    assert source.last_event_id == EVENT_ID


def test_a_reconnection_time_comes_in_an_event_and_in_this_order() -> None:
    block = sse.event("subscribed", EVENT_ID, b'{"node":"n1"}', 2000)
    assert block == b'retry: 2000\nid: 9f3a1c2b-5000\nevent: subscribed\ndata: {"node":"n1"}\n\n'
    source = EventSource().feed(block)
    assert source.reconnection_time == 2000
    assert source.events == [Event("subscribed", '{"node":"n1"}', EVENT_ID)]


def test_a_notice_fires_its_name_and_leaves_the_cursor() -> None:
    block = sse.notice("goodbye", b'{"reason":"shutting_down"}', 4321)
    assert block == b'retry: 4321\nevent: goodbye\ndata: {"reason":"shutting_down"}\n\n'
    source = EventSource().feed(sse.message_event(EVENT_ID, b"1") + block)
    assert source.events[1] == Event("goodbye", '{"reason":"shutting_down"}', EVENT_ID)
    assert (source.last_event_id, source.reconnection_time) == (EVENT_ID, 4321)


def test_a_heartbeat_fires_its_name_and_moves_the_cursor() -> None:
    """With data: a block that has only an id is legal, and misread by clients in wide use."""
    block = sse.heartbeat(EVENT_ID)
    data = f'{{"position":"{EVENT_ID}"}}'
    assert block.decode() == f"id: {EVENT_ID}\nevent: heartbeat\ndata: {data}\n\n"
    source = EventSource().feed(block)
    assert source.events == [Event("heartbeat", data, EVENT_ID)]
    assert source.last_event_id == EVENT_ID


def test_the_name_of_one_event_does_not_stick_to_the_next() -> None:
    source = EventSource().feed(
        sse.event("gap", "e-1", b"{}") + sse.heartbeat("e-2") + sse.message_event("e-3", b"{}")
    )
    assert [(e.type, e.last_event_id) for e in source.events] == [
        ("gap", "e-1"),
        ("heartbeat", "e-2"),
        ("message", "e-3"),
    ]


def test_a_block_that_is_cut_off_neither_fires_nor_moves_the_cursor() -> None:
    """A connection that breaks in mid-event resumes before that event."""
    first, second = sse.message_event("e-1", b"1"), sse.message_event("e-2", b"2")
    for length in range(len(second)):
        source = EventSource().feed(first + second[:length])
        assert (len(source.events), source.last_event_id) == (1, "e-1")


JSON_TEXTS = st.recursive(
    st.none() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=5,
).flatmap(
    lambda value: st.sampled_from(
        [json.dumps(value, indent=2, ensure_ascii=False), json.dumps(value)]
    )
)


@given(st.lists(JSON_TEXTS, max_size=5))
def test_any_published_value_is_one_event_with_that_value(texts: list[str]) -> None:
    """Line breaks within values, U+2028 and the like, colons and NULs break no event."""
    limits = JsonLimits(message_bytes=1 << 20, batch_messages=1, depth=64)
    stream = b""
    for seq, text in enumerate(texts, 1):
        message = Message(seq, "chat", 0, compact_json(text.encode(), limits))
        stream += sse.message_event(f"e-{seq}", message.to_json("e"))
    assert len(blocks(stream)) == len(texts)
    events = EventSource().feed(stream).events
    assert [(e.type, e.last_event_id) for e in events] == [
        ("message", f"e-{seq}") for seq in range(1, len(texts) + 1)
    ]
    assert [json.loads(e.data)["data"] for e in events] == [json.loads(text) for text in texts]


# --- all that a stream sends ------------------------------------------------------------


def test_no_stream_of_any_history_has_a_block_that_common_clients_cannot_read() -> None:
    """Over sockets and through the web application; to their ends, of all kinds."""
    seen: set[str] = set()
    for seed in range(40):
        chance = random.Random(seed)
        streams: list[bytes] = trio.run(_history, chance, clock=MockClock(autojump_threshold=0))
        for stream in streams:
            found = blocks(stream)
            assert [block.get("event") for block in found[:1]] == ["subscribed"], seed
            assert all(
                ("retry" in b) == (b.get("event") in {"subscribed", "goodbye"}) for b in found
            )
            assert all(
                ("id" in b) != (b.get("event") in {"token-expired", "goodbye"}) for b in found
            )
            seen.update(block.get("event", "message") for block in found)
    assert seen == EVENT_NAMES | {"message"}, "the histories have everything in them"


def test_the_reference_knows_every_event() -> None:
    assert set(EVENT_NAMES_OF_THE_REFERENCE) == EVENT_NAMES


async def _history(chance: random.Random) -> list[bytes]:
    """What the streams of one node sent that is published to, and drains in the end."""
    async with scene(SMALL_TAIL) as there, trio.open_nursery() as nursery:
        clients: list[Client] = []
        others: list[bytearray] = []
        leave: list[Callable[[], None]] = []

        def join() -> None:
            subscription = _subscribed(chance, there)
            if chance.random() < 0.5:
                others.append(bytearray())
                nursery.start_soon(_read_out, subscription, others[-1])
                return
            theirs, ours = socket.socketpair()
            if chance.random() < 0.3:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
            theirs.setblocking(False)
            reader = there.fan.adopt(theirs.detach(), subscription)
            there.clients.append(Client(ours))
            clients.append(there.clients[-1])
            reason = chance.choice(["expired", "revoked"])
            leave.append(lambda: there.fan.dismiss(reader, reason))

        for _ in range(chance.randrange(5, 40)):
            await _happen(chance, there)
            if chance.random() < 0.3:
                join()
            if leave and chance.random() < 0.1:
                leave.pop(chance.randrange(len(leave)))()
            for client in chance.sample(clients, len(clients) // 2):
                client.receive(chance.choice([100, 1 << 20]))
        there.node.hub.close()
        for client in clients:
            await there.drain(client)
        await there.fan.wait_empty()
    return [b"".join(client.chunks) for client in clients] + [bytes(other) for other in others]


def _subscribed(chance: random.Random, there: Scene) -> Subscription:
    filters = chance.choice([["a"], ["a", "b"], [">"], ["c.*"]])
    seq = there.node.replica.state.seq
    cursors = ["latest", "earliest", f"deadbeef-{seq}", f"{EPOCH}-{seq + 3}"]
    cursors += [f"{EPOCH}-{chance.randrange(seq + 1)}"] * 3
    return there.node.broker.subscribe(ANYONE, filters, chance.choice(cursors))


async def _read_out(subscription: Subscription, into: bytearray) -> None:
    async with subscription as stream:
        async for data in stream:
            into += data


async def _happen(chance: random.Random, there: Scene) -> None:
    topic = chance.choice(["a", "b", "c.d"])
    match chance.randrange(8):
        case 0:
            keep = CreateTopic(topic, messages=chance.choice([1, 5, 1000]), replace=True)
            await there.node.replica.propose(keep)
        case 1 if topic in there.node.replica.state.topics:
            await there.node.broker.delete_topic(ANYONE, topic)
        case 2:
            await trio.sleep(16)  # silence
        case _:
            await there.publish(topic, *["x\n" * chance.randrange(100)] * chance.choice([1, 1, 30]))
