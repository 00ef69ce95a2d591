"""Server-Sent Events as bytes (WHATWG HTML 9.2). Pure.

Every text written here has no CR or LF in it: JSON values are kept without
line breaks (message.py), ids and topics have none by their syntax. So each
event has exactly one ``data:`` line.

There is no block without data, and no comment. Both are legal, and clients in
wide use misread them: they hand on an empty event, which is no JSON.
"""

from __future__ import annotations

__all__ = ["LAST_CHUNK", "chunk", "event", "heartbeat", "message_event", "notice"]

LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """A piece of a body as HTTP/1.1 frames it when its length is not known (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def message_event(event_id: str, message_json: bytes) -> bytes:
    """An unnamed event, for which ``onmessage`` fires."""
    return b"id: %b\ndata: %b\n\n" % (event_id.encode(), message_json)


def event(name: str, event_id: str, data_json: bytes, retry_ms: int | None = None) -> bytes:
    """A named event; its id moves the client's cursor.

    ``retry_ms`` tells the client how long to wait before it reconnects.
    """
    return b"%bid: %b\n%b" % (_retry(retry_ms), event_id.encode(), notice(name, data_json))


def notice(name: str, data_json: bytes, retry_ms: int | None = None) -> bytes:
    """A named event without an id; the client's cursor stays where it is."""
    return b"%bevent: %b\ndata: %b\n\n" % (_retry(retry_ms), name.encode(), data_json)


def heartbeat(event_id: str) -> bytes:
    """A sign of life, which moves the client's cursor to ``event_id``."""
    return event("heartbeat", event_id, b'{"position":"%b"}' % event_id.encode())


def _retry(milliseconds: int | None) -> bytes:
    return b"" if milliseconds is None else b"retry: %d\n" % milliseconds
