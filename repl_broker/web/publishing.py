"""Publishing without Quart: from a request's parts to the bytes of its answer.

Same requests, same answers as ``messages.Messages``: what may be published is
the Broker's to say, and the members of answers and problems come from the same
functions. Only the shell differs: a status line and some header fields, joined
with the body, so that one ``send`` is enough.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple
from wsgiref.handlers import format_date_time

import trio
from msgspec.json import encode as encode_json

from repl_broker.broker import Broker, Receipt
from repl_broker.config import Config
from repl_broker.errors import RequestError
from repl_broker.web import access, cors
from repl_broker.web.body import BodyLimit, BodyLimits, late
from repl_broker.web.head import PublishHead
from repl_broker.web.messages import receipt_content
from repl_broker.web.problems import (
    PROBLEM_JSON,
    RETRIED,
    RETRY_AFTER_SECONDS,
    note_failure,
    problem_content,
)

__all__ = ["Answer", "Publishing"]

_PROBLEM: Final = PROBLEM_JSON.encode()
_JSON: Final = b"application/json"
_REPLAYED: Final = b"idempotent-replayed: true\r\n"
_RETRY_AFTER: Final = b"retry-after: %d\r\n" % RETRY_AFTER_SECONDS
_CLOSE: Final = b"connection: close\r\n"


class Answer(NamedTuple):
    """What a client is told."""

    status: int
    media_type: bytes
    fields: bytes  # of the header, beside those that every answer has; each with its CRLF
    content: bytes


class Publishing:
    """Answers the publishes of all connections of a node."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self._broker = broker
        self._limits = BodyLimits.of(config.limits)
        self._origins = config.http.cors_origins
        self._log_access = config.http.access_log
        self._date_second = 0
        self._date = b""

    @property
    def body_seconds(self) -> float:
        """For which a body may take to arrive."""
        return self._limits.message.seconds

    def limit(self, head: PublishHead) -> BodyLimit:
        """How long the body of this publish may be, and take."""
        return self._limits.batch if head.batch else self._limits.message

    async def answer(self, head: PublishHead, body: bytes, peer: str) -> Answer:
        """Publish, and tell what became of it."""
        started = trio.current_time() if self._log_access else 0.0
        try:
            receipt = await self._publish(head, body)
        except RequestError as error:
            # A checkpoint: a client that sends one bad request after another takes turns.
            await trio.lowlevel.checkpoint()
            answer = _refusal(error)
        except Exception as error:  # noqa: BLE001  it is logged, and the client told
            detail = note_failure("POST", head.target, error)
            answer = _refusal(RequestError("internal_error", detail))
        else:
            content = encode_json(receipt_content(receipt, head.topic, batch=head.batch))
            answer = Answer(201, _JSON, _REPLAYED if receipt.replayed else b"", content)
        if self._log_access:
            access.note("POST", head.target, str(answer.status), started, peer)
        return answer

    def late(self, head: PublishHead, peer: str) -> Answer:
        """The answer when the body does not arrive in time."""
        answer = _refusal(late(self.limit(head)))
        if self._log_access:
            started = trio.current_time() - self.body_seconds
            access.note("POST", head.target, str(answer.status), started, peer)
        return answer

    def encode(self, head: PublishHead, answer: Answer, *, last: bool) -> bytes:
        """The answer as it is sent; ``last`` announces that the connection ends."""
        fields = answer.fields
        if self._origins:
            for name, value in cors.permission(self._origins, head.origin).items():
                fields += f"{name.lower()}: {value}\r\n".encode("latin-1")
        close = _CLOSE if last else b""
        content = answer.content
        return (
            b"HTTP/1.1 %d \r\ncontent-type: %b\r\ncontent-length: %d\r\ncache-control: no-store\r\n"
            b"%bx-content-type-options: nosniff\r\ndate: %b\r\n%b\r\n%b"
            % (answer.status, answer.media_type, len(content), fields, self._now(), close, content)
        )

    async def _publish(self, head: PublishHead, body: bytes) -> Receipt:
        if head.topic is None:
            return await self._broker.publish_many(body, head.key)
        if head.batch:
            return await self._broker.publish_batch(head.topic, body, head.key)
        return await self._broker.publish(head.topic, body, head.key)

    def _now(self) -> bytes:
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = format_date_time(second).encode("ascii")
        return self._date


def _refusal(error: RequestError) -> Answer:
    status, content = problem_content(error.code, error.detail, error.extra)
    return Answer(status, _PROBLEM, _RETRY_AFTER if status in RETRIED else b"", content)
