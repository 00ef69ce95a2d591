"""Reading Server-Sent Events (WHATWG HTML 9.2.6). Pure: bytes in, events out."""

from __future__ import annotations

from typing import Final, NamedTuple

from repl_broker.errors import ReplBrokerError

__all__ = ["Event", "EventReader", "EventTooLargeError"]

EVENT_BYTES_MAX: Final = 128 * 1024 * 1024
BOM: Final = b"\xef\xbb\xbf"  # left out at the beginning, and nowhere else


class EventTooLargeError(ReplBrokerError):
    """The stream sends an event without end."""


class Event(NamedTuple):
    """A dispatched block. A node sends none without data."""

    name: str  # "message" where the stream names none
    id: str  # the last event id as of this block, "" before there is one
    data: bytes


class EventReader:
    """Feed it what arrives; it gives the blocks that are complete.

    ``retry_ms`` is the last reconnection time that the server named. ``farewell``
    tells whether the last event was ``goodbye``: a server that drains says so, with
    a time of this client's own.
    """

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.farewell = False
        self.id = ""
        self._pending = bytearray()
        self._name = ""
        self._data: list[bytes] = []
        self._seen = False  # a field of the block under way
        self._started = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that ``chunk`` completes. Raises EventTooLargeError."""
        # What is pending holds no end of a line but perhaps a last CR, whose LF may be to come.
        # So a long line in small pieces is not searched from its beginning with each of them.
        start = max(0, len(self._pending) - 1)
        self._pending += chunk
        if not self._started:
            if len(self._pending) < len(BOM) and BOM.startswith(self._pending):
                return []
            self._started = True
            self._pending = self._pending.removeprefix(BOM)
            start = 0
        end = max(self._pending.rfind(b"\n", start), self._pending.rfind(b"\r", start, -1)) + 1
        if len(self._pending) - end > EVENT_BYTES_MAX:
            raise EventTooLargeError(
                f"the stream has an event of more than {EVENT_BYTES_MAX:,} bytes"
            )
        complete = bytes(self._pending[:end])
        del self._pending[:end]
        events = []
        for line in complete.splitlines():
            if line:
                self._field(line)
            elif self._seen:
                events.extend(self._dispatch())
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._name = value.decode(errors="replace")
            case b"id" if b"\0" not in value:
                self.id = value.decode(errors="replace")
            case b"retry" if value.isdigit() and len(value) < 10:
                self.retry_ms = int(value)
                return
            case _:  # a comment, or a field of a later standard
                return
        self._seen = True

    def _dispatch(self) -> list[Event]:
        event = Event(self._name or "message", self.id, b"\n".join(self._data))
        self._name, self._data, self._seen = "", [], False
        self.farewell = event.name == "goodbye"
        return [event]
