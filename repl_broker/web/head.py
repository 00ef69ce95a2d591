"""The head of a request, read strictly. Pure.

Two questions are answered here, about the bytes up to the blank line:

    is_plain    is it HTTP/1.1 in the one form that nobody reads in two ways?
    read_head   is it a publish, or a stream, that can be answered in place, and which?

Request smuggling (RFC 9112 section 11.2) lives on forms that two parsers read
differently: a bare LF, a folded line, a length given twice. h11 and llhttp are
each lenient somewhere, so neither is asked about those: a regular expression
goes over the raw bytes first. What is not plain is refused by the door on every
route. What is plain but neither of those is not an error: Quart judges it.

Either is read by llhttp, after that check. Its header fields are a short list:
those that do not concern the answer are passed over, and one that would change
how the request is framed or answered (``Expect``, ``Transfer-Encoding``, a
second ``Origin``) leaves the request to Quart. An offer to upgrade is not taken
(RFC 9110 section 7.8), so it concerns nothing, unless it is one of WebSocket,
which the door refuses.
"""

from __future__ import annotations

import logging
import re
from typing import Final, NamedTuple

import httptools

from repl_broker.access import Credentials
from repl_broker.web.base import FORWARDED_PREFIX
from repl_broker.web.proxies import FORWARDED_FOR

__all__ = ["EVENTS_BEGINS", "FIELDS_MAX", "HEAD_ENDS", "EventsHead", "PublishHead"]
__all__ += ["begins_in_place", "coming_bytes", "forwarded_in", "has_too_many_fields", "head_end"]
__all__ += ["is_plain", "read_head"]

logger = logging.getLogger(__name__)

FIELDS_MAX: Final = 256  # of a head; browsers send some twenty
HEAD_ENDS: Final = b"\r\n\r\n"
PUBLISH_BEGINS: Final = b"POST /v1/"
EVENTS_BEGINS: Final = b"GET /v1/events"
_CACHED_BYTES_MAX: Final = 1024  # of a head that is remembered
_CACHED_HEADS_MAX: Final = 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# No control character in a value but the tab; CRLF at every end; no folded line.
_PLAIN = re.compile(
    rb"[^\x00-\x1f\x7f]++\r\n(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
)
# RFC 9112 section 6.3 lets equal lengths pass as one. Not here.
_LENGTH = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)
_PUBLISH_PATH = re.compile(rb"POST /v1/(?:messages|topics/[^ /]*/messages)[ ?]")
_ON_DEMAND = re.compile(rb"\r\n(?:transfer-encoding|expect):", re.IGNORECASE)
_BLANK_LINE = re.compile(rb"\n\r?\n")
_REQUEST_LINE = re.compile(
    rb"POST (/v1/(?:messages|topics/([A-Za-z0-9_.\-]{1,255})/messages)) HTTP/1\.1\r\n"
)
# The characters that a query needs no escape for (RFC 3986 3.4).
_EVENTS_LINE = re.compile(
    rb"GET (/v1/events(?:\?([A-Za-z0-9_.~%!$&'()*+,;=:@/?\-]*))?) HTTP/1\.1\r\n"
)
# In the form in which every client writes it (W3C Trace Context 3.2); others are read as well.
_TRACEPARENT_BEGINS: Final = b"\r\ntraceparent:"
_TRACEPARENT = re.compile(rb"\r\ntraceparent:[ \t]*([0-9a-f-]{55})(?=\r\n)")
_DIGITS = re.compile(rb"[0-9]{1,15}")
_MEDIA_TYPE = re.compile(
    rb"application/(?:(json)|x-ndjson)(?:[ \t]*;[ \t]*charset=(?:utf-?8|\"utf-?8\"))?",
    re.IGNORECASE,
)
# Each of these alone says that the request is not an ordinary one.
_UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"content-encoding", b"te", b"trailer"})


class PublishHead(NamedTuple):
    """A publish, as far as its head tells."""

    target: str
    topic: str | None  # None: over several topics, ``POST /v1/messages``
    batch: bool  # NDJSON
    length: int  # of the body, in bytes
    key: str | None  # Idempotency-Key
    origin: str  # of the web page that asks; "" if none does
    close: bool  # the client wants no further answer
    credentials: Credentials
    traceparent: str | None = None  # as it came; trace.py reads it
    prefix: str | None = None  # X-Forwarded-Prefix; base.py reads it
    forwarded: str | None = None  # X-Forwarded-For; proxies.py reads it


def head_end(data: bytes) -> int:
    """Where the head that ``data`` begins with ends, lenient readers included; 0: not yet."""
    blank = _BLANK_LINE.search(data)
    return 0 if blank is None else blank.end()


def forwarded_in(head: bytes) -> str | None:
    """What all X-Forwarded-For of the head say that this begins with; None if it has none."""
    lines = _FORWARDED.findall(head, 0, head_end(head) or len(head))
    return b",".join(lines).decode("latin-1") if lines else None


def is_plain(head: bytes) -> bool:
    """Whether a whole head has the strict form, and no more than one length.

    The request line is only held to visible characters: its parser knows more.
    """
    if _PLAIN.fullmatch(head) is None:
        return False
    lengths = _LENGTH.findall(head)
    return len(lengths) < 2 and not (lengths and b"," in lengths[0])


class EventsHead(NamedTuple):
    """A request for an event stream, as far as its head tells."""

    query: bytes
    last_event_id: str | None
    origin: str
    close: bool
    credentials: Credentials
    traceparent: str | None = None
    prefix: str | None = None
    forwarded: str | None = None


Head = PublishHead | EventsHead


def coming_bytes(data: bytes) -> int:
    """How much of the body is missing that the whole head in ``data`` announces.

    0 if nothing is, or no more than this is known: the head is not whole, or not plain,
    or the body comes in chunks, or when it is asked for; and for a publish, whose length
    is judged before its body comes.
    """
    if _PUBLISH_PATH.match(data):
        return 0
    end = data.find(HEAD_ENDS) + len(HEAD_ENDS)
    head = data[:end]
    length = _LENGTH.search(head)
    if length is None or not is_plain(head) or _ON_DEMAND.search(head) is not None:
        return 0
    digits = _DIGITS.fullmatch(length[1].strip(b" \t"))
    return 0 if digits is None else max(0, end + int(digits[0]) - len(data))


def has_too_many_fields(head: bytes) -> bool:
    """Whether a whole head has more fields than are read: short ones cost as much as long ones."""
    return head.count(b"\n") > FIELDS_MAX + 2  # the request line, and the blank one


def read_head(head: bytes) -> Head | None:
    """The publish or stream that a whole head asks for; None for whatever else, and in doubt.

    A client that publishes all the time sends the same head all the time, so
    short ones are remembered. Nothing is raised: what cannot be read here, for
    whatever reason, is not for here.
    """
    known = _known.get(head) if len(head) <= _CACHED_BYTES_MAX else None
    if known is not None:
        return known
    try:
        return _look_at(head)
    except Exception as error:  # noqa: BLE001  it is left to Quart, and logged
        logger.error("a head was not read in place error=%r", repr(error))
        return None


def _look_at(head: bytes) -> Head | None:
    if has_too_many_fields(head):
        return None
    # A traceparent is another one in each request: the head without it may be known.
    traced = _TRACEPARENT.search(head) if _TRACEPARENT_BEGINS in head else None
    if traced is not None:
        head = head[: traced.start()] + head[traced.end() :]
    read: Head | None
    if head.startswith(EVENTS_BEGINS):
        read = _read_events(head)
    else:
        read = _known.get(head) or _remember(head)
    if traced is None or read is None:
        return read
    once = read.traceparent is None  # given twice: neither counts
    return read._replace(traceparent=traced[1].decode("ascii") if once else None)


def _remember(head: bytes) -> PublishHead | None:
    read = _read_publish(head)
    if read is not None and len(head) <= _CACHED_BYTES_MAX:
        if len(_known) >= _CACHED_HEADS_MAX:
            _known.clear()
        _known[head] = read
    return read


def begins_in_place(data: bytes) -> bool:
    """Whether these are a whole head of either kind, and perhaps more."""
    if not data.startswith((PUBLISH_BEGINS, EVENTS_BEGINS)):
        return False
    return read_head(data[: data.find(HEAD_ENDS) + len(HEAD_ENDS)]) is not None


def _read_publish(head: bytes) -> PublishHead | None:
    line = _REQUEST_LINE.match(head)
    fields = None if line is None else _read_fields(head, b"POST", line[1])
    return None if line is None or fields is None else fields.publish(line[2])


def _read_events(head: bytes) -> EventsHead | None:
    line = _EVENTS_LINE.match(head)
    fields = None if line is None else _read_fields(head, b"GET", line[1])
    return None if line is None or fields is None else fields.events(line[2] or b"")


def _read_fields(head: bytes, method: bytes, target: bytes) -> _Fields | None:
    """The header fields, if httptools agrees that this is the request."""
    if not is_plain(head):
        return None
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # no error, though raised: the head has been read, and offers an upgrade
    except httptools.HttpParserError:  # all others, those of callbacks included
        return None
    agreed = (fields.target, parser.get_method(), parser.get_http_version())
    return fields if agreed == (target, method, "1.1") else None


_FORWARDED = re.compile(rb"\nx-forwarded-for:([^\r\n]*+)(?=[\r\n])", re.IGNORECASE)
_known: dict[bytes, PublishHead] = {}  # heads that were read


class _Fields:
    """What httptools calls with the parts of one head."""

    def __init__(self) -> None:
        self.target = b""
        self._fields: dict[bytes, bytes] = {}
        self._repeated: set[bytes] = set()

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        name, value = name.lower(), value.strip(b" \t")
        if name in self._fields:
            self._repeated.add(name)
            if name == FORWARDED_FOR:  # a list, which may go on in further lines
                value = self._fields[name] + b"," + value
        self._fields[name] = value

    def publish(self, topic: bytes | None) -> PublishHead | None:
        fields = self._fields
        media_type = _MEDIA_TYPE.fullmatch(fields.get(b"content-type", b""))
        length = _DIGITS.fullmatch(fields.get(b"content-length", b""))
        if media_type is None or length is None or not self._is_ordinary():
            return None
        is_json = media_type[1] is not None
        if topic is None and is_json:
            return None  # 415, which is Quart's to say
        if b"sec-fetch-site" in fields and not fields.get(b"origin"):
            return None  # a browser that does not name the page
        return PublishHead(
            self.target.decode("ascii"),
            None if topic is None else topic.decode("ascii"),
            not is_json,
            int(length[0]),
            self._text(b"idempotency-key"),
            self._text(b"origin") or "",
            self._says_close(),
            self._credentials(),
            self._once(b"traceparent"),
            self._once(FORWARDED_PREFIX),
            self._text(FORWARDED_FOR),
        )

    def events(self, query: bytes) -> EventsHead | None:
        if b"content-length" in self._fields or not self._is_ordinary():
            return None
        return EventsHead(
            query,
            self._text(b"last-event-id"),
            self._text(b"origin") or "",
            self._says_close(),
            self._credentials(),
            self._once(b"traceparent"),
            self._once(FORWARDED_PREFIX),
            self._text(FORWARDED_FOR),
        )

    def _credentials(self) -> Credentials:
        names = (b"authorization", b"cookie", b"origin", b"host")
        return Credentials(*(self._text(name) or "" for name in names))

    def _is_ordinary(self) -> bool:
        return (
            b"host" in self._fields
            and self._repeated.isdisjoint(_ONCE)
            and _UNUSUAL.isdisjoint(self._fields)
            and b"websocket" not in self._fields.get(b"upgrade", b"").lower()
        )

    def _says_close(self) -> bool:
        # Of the options that a client may list (RFC 9110 section 7.6.1) it alone concerns us.
        options = self._fields.get(b"connection", b"").lower().split(b",")
        return any(option.strip(b" \t") == b"close" for option in options)

    def _text(self, name: bytes) -> str | None:
        value = self._fields.get(name)
        return None if value is None else value.decode("latin-1")

    def _once(self, name: bytes) -> str | None:
        return None if name in self._repeated else self._text(name)


_ONCE = frozenset(
    {b"host", b"content-type", b"content-length", b"connection", b"idempotency-key", b"origin"}
    | {b"last-event-id", b"authorization", b"cookie", b"upgrade"}
)
