"""Server-Sent Events as bytes (WHATWG HTML 9.2). Pure.

Every text written here has no CR or LF in it: JSON values are kept without
line breaks (message.py), ids and topics have none by their syntax. So each
event has exactly one ``data:`` line.
"""

from __future__ import annotations

__all__ = ["LAST_CHUNK", "chunk", "event", "heartbeat", "message_event", "notice", "retry"]

LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """A piece of a body as HTTP/1.1 frames it when its length is not known (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def retry(milliseconds: int) -> bytes:
    """Tell the client how long to wait before it reconnects."""
    return b"retry: %d\n\n" % milliseconds


def message_event(event_id: str, message_json: bytes) -> bytes:
    """An unnamed event, for which ``onmessage`` fires."""
    return b"id: %b\ndata: %b\n\n" % (event_id.encode(), message_json)


def event(name: str, event_id: str, data_json: bytes) -> bytes:
    """A named event; its id moves the client's cursor."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id.encode(), name.encode(), data_json)


def notice(name: str, data_json: bytes) -> bytes:
    """A named event without an id; the client's cursor stays where it is."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data_json)


def heartbeat(event_id: str) -> bytes:
    """A block without data: no event fires, yet the client's cursor moves to ``event_id``."""
    return b"id: %b\n\n" % event_id.encode()
