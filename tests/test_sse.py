"""The event stream's bytes, read back as WHATWG HTML 9.2 says that a browser does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl_broker import sse
from repl_broker.message import JsonLimits, Message, compact_json

EVENT_ID = "9f3a1c2b-5000"


@dataclass(frozen=True)
class Event:
    """What an ``EventSource`` dispatches."""

    type: str
    data: str
    last_event_id: str


@dataclass
class EventSource:
    """The parser of WHATWG HTML 9.2.6, with the standard's own names for its buffers."""

    reconnection_time: int | None = None
    last_event_id: str = ""
    events: list[Event] = field(default_factory=list)
    data: str = ""
    event_type: str = ""
    id_buffer: str = ""

    def feed(self, stream: bytes) -> EventSource:
        text = stream.decode().removeprefix("\ufeff")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines[:-1]:  # an unfinished line is discarded at the end of the stream
            if line == "":
                self.dispatch()
            elif not line.startswith(":"):
                name, _, value = line.partition(":")
                self.process(name, value.removeprefix(" "))
        return self

    def process(self, name: str, value: str) -> None:
        if name == "event":
            self.event_type = value
        elif name == "data":
            self.data += value + "\n"
        elif name == "id" and "\0" not in value:
            self.id_buffer = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.reconnection_time = int(value)

    def dispatch(self) -> None:
        self.last_event_id = self.id_buffer
        if self.data:
            data = self.data.removesuffix("\n")
            self.events.append(Event(self.event_type or "message", data, self.last_event_id))
        self.data = self.event_type = ""


def test_retry_sets_the_reconnection_time_and_fires_nothing() -> None:
    assert sse.retry(2000) == b"retry: 2000\n\n"
    source = EventSource().feed(sse.retry(2000))
    assert (source.reconnection_time, source.events) == (2000, [])


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


def test_a_heartbeat_fires_nothing_yet_moves_the_cursor() -> None:
    """9.2.6: dispatch sets the last event id before it looks whether there is data."""
    assert sse.heartbeat(EVENT_ID) == b"id: 9f3a1c2b-5000\n\n"
    source = EventSource().feed(sse.heartbeat(EVENT_ID))
    assert (source.events, source.last_event_id) == ([], EVENT_ID)


def test_the_name_of_one_event_does_not_stick_to_the_next() -> None:
    source = EventSource().feed(
        sse.event("gap", "e-1", b"{}") + sse.heartbeat("e-2") + sse.message_event("e-3", b"{}")
    )
    assert [(e.type, e.last_event_id) for e in source.events] == [
        ("gap", "e-1"),
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
    stream = sse.retry(1)
    for seq, text in enumerate(texts, 1):
        message = Message(seq, "chat", 0, compact_json(text.encode(), limits))
        stream += sse.message_event(f"e-{seq}", message.to_json("e"))
    events = EventSource().feed(stream).events
    assert [(e.type, e.last_event_id) for e in events] == [
        ("message", f"e-{seq}") for seq in range(1, len(texts) + 1)
    ]
    assert [json.loads(e.data)["data"] for e in events] == [json.loads(text) for text in texts]
