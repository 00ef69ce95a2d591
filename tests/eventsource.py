"""Event streams, read as a browser reads them, and held to what common clients can read.

    EventSource    the algorithm of WHATWG HTML 9.2.6, with the standard's names for its buffers
    blocks         each block as its fields; AssertionError for one that a node must not send

No code is shared with what it tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

EVENT_NAMES: Final = frozenset(
    {"subscribed", "heartbeat", "gap", "topic-deleted", "token-expired", "goodbye"}
)
FEED_NAMES: Final = frozenset({"hello", "past", "sample"})  # of the dashboard
FIELDS: Final = ("retry", "id", "event", "data")  # in this order, each once at most


@dataclass(frozen=True)
class Event:
    """What an ``EventSource`` dispatches."""

    type: str
    data: str
    last_event_id: str


@dataclass
class EventSource:
    """The parser of WHATWG HTML 9.2.6."""

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


def blocks(stream: bytes, names: frozenset[str] = EVENT_NAMES) -> list[dict[str, str]]:
    """Whole blocks as mappings of field to value. Each must be an event, with data that is JSON."""
    *texts, rest = stream.decode().split("\n\n")
    assert rest == "", "a stream is made of whole blocks"
    found = [_fields(text, names) for text in texts]
    events = EventSource().feed(stream).events
    assert [(e.type, e.data) for e in events] == [
        (block.get("event", "message"), block["data"]) for block in found
    ]
    return found


def _fields(text: str, names: frozenset[str]) -> dict[str, str]:
    pairs = [line.split(": ", 1) for line in text.split("\n")]
    assert all(len(pair) == 2 for pair in pairs), f"each line is a field with a value: {text!r}"
    fields = dict(pairs)
    assert [name for name, _ in pairs] == [name for name in FIELDS if name in fields], text
    assert fields.get("data"), f"no block is without data: {text!r}"
    data = json.loads(fields["data"])
    if "event" in fields:
        assert fields["event"] in names, f"no reader knows this event: {text!r}"
    else:
        assert data["id"] == fields["id"], f"a message has its own id: {text!r}"
    assert fields.get("retry", "1").isdigit()
    return fields
