"""Answers that Quart does not write: a status line and header fields around the content.

The same fields as Quart's answers have, in the same order, joined with the body
so that one ``send`` is enough.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from typing import Final
from wsgiref.handlers import format_date_time

import msgspec

from repl_broker.errors import RequestError
from repl_broker.trace import current_id
from repl_broker.web import cors
from repl_broker.web.problems import PROBLEM_JSON, challenge, problem_content, retry_after

__all__ = ["Answer", "Shell", "refusal"]

_PROBLEM: Final = PROBLEM_JSON.encode()
_CLOSE: Final = b"connection: close\r\n"


class Answer(msgspec.Struct, frozen=True):
    """What a client is told."""

    status: int
    media_type: bytes
    fields: bytes  # of the header, beside those that every answer has; each with its CRLF
    content: bytes


class Shell:
    """Writes answers for pages of ``origins``, and for whoever is no page."""

    def __init__(self, origins: Collection[str]) -> None:
        self.origins = origins
        self._date_second = 0
        self._date = b""

    def encode(self, answer: Answer, origin: str, *, last: bool) -> bytes:
        """The answer as it is sent; ``last`` announces that the connection ends."""
        content = answer.content
        return (
            b"HTTP/1.1 %d \r\ncontent-type: %b\r\ncontent-length: %d\r\ncache-control: no-store\r\n"
            b"%b%bx-content-type-options: nosniff\r\ndate: %b\r\n%b\r\n%b"
            % (
                answer.status,
                answer.media_type,
                len(content),
                answer.fields,
                self._permission(origin),
                self._now(),
                _CLOSE if last else b"",
                content,
            )
        )

    def stream_head(self, origin: str, *, last: bool) -> bytes:
        """What goes before an event stream, which is sent in chunks."""
        return (
            b"HTTP/1.1 200 \r\ncontent-type: text/event-stream\r\n"
            b"cache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"
            b"%bx-content-type-options: nosniff\r\ndate: %b\r\nTransfer-Encoding: chunked\r\n%b\r\n"
            % (self._permission(origin), self._now(), _CLOSE if last else b"")
        )

    def _permission(self, origin: str) -> bytes:
        if not self.origins:
            return b""
        fields = cors.permission(self.origins, origin).items()
        return "".join(f"{name.lower()}: {value}\r\n" for name, value in fields).encode("latin-1")

    def _now(self) -> bytes:
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = format_date_time(second).encode("ascii")
        return self._date


def refusal(error: RequestError, refusals: Counter[str]) -> Answer:
    """The problem that tells of ``error``; it is counted in ``refusals``."""
    refusals[error.code] += 1
    status, content = problem_content(error.code, error.detail, error.extra)
    fields = b""
    if asked := challenge(error.code, error.extra):
        fields += b"www-authenticate: %b\r\n" % asked.encode("ascii")
    if (seconds := retry_after(status, error.retry_after)) is not None:
        fields += b"retry-after: %d\r\n" % seconds
    fields += b"x-request-id: %b\r\n" % current_id().encode("ascii")
    return Answer(status, _PROBLEM, fields, content)
