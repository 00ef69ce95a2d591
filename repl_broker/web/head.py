"""The head of a request, read strictly. Pure.

Two questions are answered here, about the bytes up to the blank line:

    is_plain       is it HTTP/1.1 in the one form that nobody reads in two ways?
    read_publish   is it a publish that can be answered in place, and which?

Request smuggling (RFC 9112 section 11.2) lives on forms that two parsers read
differently: a bare LF, a folded line, a length given twice. h11 and llhttp are
each lenient somewhere, so neither is asked about those: a regular expression
goes over the raw bytes first. What is not plain is refused by the door on every
route. What is plain but no ordinary publish is not an error: Quart judges it.

A publish is read by llhttp, after that check. Its header fields are a short
list: those that do not concern the answer are passed over, and one that would
change how the request is framed or answered (``Expect``, ``Transfer-Encoding``,
a second ``Origin``) leaves the request to Quart.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

import httptools

__all__ = ["HEAD_ENDS", "PublishHead", "begins_with_publish", "head_end", "is_plain"]
__all__ += ["may_become_publish", "read_publish"]

HEAD_ENDS: Final = b"\r\n\r\n"
PUBLISH_BEGINS: Final = b"POST /v1/"
_CACHED_BYTES_MAX: Final = 1024  # of a head that is remembered
_CACHED_HEADS_MAX: Final = 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# No control character in a value but the tab; CRLF at every end; no folded line.
_PLAIN = re.compile(
    rb"[^\x00-\x1f\x7f]++\r\n(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
)
# RFC 9112 section 6.3 lets equal lengths pass as one. Not here.
_LENGTH = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)
_BLANK_LINE = re.compile(rb"\n\r?\n")
_REQUEST_LINE = re.compile(
    rb"POST (/v1/(?:messages|topics/([A-Za-z0-9_.\-]{1,255})/messages)) HTTP/1\.1\r\n"
)
_DIGITS = re.compile(rb"[0-9]{1,15}")
_MEDIA_TYPE = re.compile(
    rb"application/(?:(json)|x-ndjson)(?:[ \t]*;[ \t]*charset=(?:utf-?8|\"utf-?8\"))?",
    re.IGNORECASE,
)
# Each of these alone says that the request is not an ordinary one.
_UNUSUAL = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"content-encoding", b"te", b"trailer"}
)


class PublishHead(NamedTuple):
    """A publish, as far as its head tells."""

    target: str
    topic: str | None  # None: over several topics, ``POST /v1/messages``
    batch: bool  # NDJSON
    length: int  # of the body, in bytes
    key: str | None  # Idempotency-Key
    origin: str  # of the web page that asks; "" if none does
    close: bool  # the client wants no further answer


def head_end(data: bytes) -> int:
    """Where the head that ``data`` begins with ends, lenient readers included; 0: not yet."""
    blank = _BLANK_LINE.search(data)
    return 0 if blank is None else blank.end()


def is_plain(head: bytes) -> bool:
    """Whether a whole head has the strict form, and no more than one length.

    The request line is only held to visible characters: its parser knows more.
    """
    if _PLAIN.fullmatch(head) is None:
        return False
    lengths = _LENGTH.findall(head)
    return len(lengths) < 2 and not (lengths and b"," in lengths[0])


def may_become_publish(data: bytes) -> bool:
    """Whether an unfinished head may still turn out to be a publish in the strict form."""
    begins = data.startswith(PUBLISH_BEGINS) or PUBLISH_BEGINS.startswith(data)
    return begins and data.count(b"\n") == data.count(b"\r\n")


def read_publish(head: bytes) -> PublishHead | None:
    """The publish that a whole head asks for; None for whatever else, and in doubt.

    A client that publishes all the time sends the same head all the time, so
    short ones are remembered.
    """
    return _recall(head) if len(head) <= _CACHED_BYTES_MAX else _read(head)


def begins_with_publish(data: bytes) -> bool:
    """Whether these are the whole head of a publish, and perhaps more."""
    end = data.find(HEAD_ENDS) + len(HEAD_ENDS)
    return data.startswith(PUBLISH_BEGINS) and read_publish(data[:end]) is not None


def _read(head: bytes) -> PublishHead | None:
    line = _REQUEST_LINE.match(head)
    if line is None or not is_plain(head):
        return None
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(head)
    except httptools.HttpParserError:
        return None
    target, topic = line[1], line[2]
    agreed = (fields.target, parser.get_method(), parser.get_http_version())
    return fields.publish(topic) if agreed == (target, b"POST", "1.1") else None


_recall = lru_cache(_CACHED_HEADS_MAX)(_read)


class _Fields:
    """What httptools calls with the parts of one head."""

    def __init__(self) -> None:
        self.target = b""
        self._fields: dict[bytes, bytes] = {}
        self._repeated: set[bytes] = set()

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in self._fields:
            self._repeated.add(name)
        self._fields[name] = value.strip(b" \t")

    def publish(self, topic: bytes | None) -> PublishHead | None:
        fields = self._fields
        media_type = _MEDIA_TYPE.fullmatch(fields.get(b"content-type", b""))
        length = _DIGITS.fullmatch(fields.get(b"content-length", b""))
        connection = fields.get(b"connection", b"keep-alive").lower()
        if (
            media_type is None
            or length is None
            or connection not in (b"keep-alive", b"close")
            or b"host" not in fields
            or not self._repeated.isdisjoint(_ONCE)
            or not _UNUSUAL.isdisjoint(fields)
        ):
            return None
        is_json = media_type[1] is not None
        if topic is None and is_json:
            return None  # 415, which is Quart's to say
        key = fields.get(b"idempotency-key")
        return PublishHead(
            self.target.decode("ascii"),
            None if topic is None else topic.decode("ascii"),
            not is_json,
            int(length[0]),
            None if key is None else key.decode("latin-1"),
            fields.get(b"origin", b"").decode("latin-1"),
            connection == b"close",
        )


_ONCE = frozenset(
    {b"host", b"content-type", b"content-length", b"connection", b"idempotency-key", b"origin"}
)
