"""Publishing without Quart: from a request's parts to the bytes of its answer.

Same requests, same answers as ``messages.Messages``: what may be published is
the Broker's to say, and the members of answers and problems come from the same
functions. Only the shell differs (shell.py).
"""

from __future__ import annotations

from typing import Final

import trio
from msgspec.json import encode as encode_json

from repl_broker.access import Asking
from repl_broker.broker import Broker, Receipt
from repl_broker.config import Config
from repl_broker.errors import RequestError
from repl_broker.web import access
from repl_broker.web.base import Base
from repl_broker.web.body import BodyLimit, BodyLimits, late
from repl_broker.web.browsers import admits_write
from repl_broker.web.cors import origin_in
from repl_broker.web.counts import RequestCounts
from repl_broker.web.head import PublishHead
from repl_broker.web.messages import receipt_content
from repl_broker.web.problems import note_failure
from repl_broker.web.shell import Answer, Shell, refusal

__all__ = ["Publishing"]

_JSON: Final = b"application/json"
# Routes, as they are counted.
_ONE_TOPIC: Final = "/v1/topics/{topic}/messages"
_TOPICS: Final = "/v1/messages"
_REPLAYED: Final = b"idempotent-replayed: true\r\n"


class Publishing:
    """Answers the publishes of all connections of a node."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self._broker = broker
        self._access = broker.access
        self._limits = BodyLimits(config.limits)
        self._shell = Shell(config.http.cors_origins)
        self._log_access = config.http.access_log
        self.base: Final = Base(config.http)
        self.requests: Final = RequestCounts()
        self._published = self.requests.of("POST", _ONE_TOPIC, 201)
        self._batches = self.requests.of("POST", _TOPICS, 201)

    def reload(self, config: Config) -> None:
        """Hold requests that come from now on to another configuration."""
        self._limits.take(config.limits)
        self._shell.origins = config.http.cors_origins
        self._log_access = config.http.access_log

    @property
    def body_seconds(self) -> float:
        """For which a body may take to arrive."""
        return self._limits.message.seconds

    def limit(self, head: PublishHead) -> BodyLimit:
        """How long the body of this publish may be, and take."""
        return self._limits.batch if head.batch else self._limits.message

    def admits(self, head: PublishHead) -> bool:
        """Whether it is short enough, and looks allowed, as its head tells; else Quart says so."""
        if head.length > self.limit(head).bytes_max:
            return False
        access = self._access
        if not admits_write(access, head.credentials):
            return False
        return access.is_open or access.admits(head.credentials, head.topic)

    async def answer(self, head: PublishHead, body: bytes, peer: str, client: str) -> Answer:
        """Publish, and tell what became of it. It counts in the share of ``client``."""
        started = trio.current_time() if self._log_access else 0.0
        try:
            receipt = await self._publish(head, body, Asking(head.credentials, client))
        except RequestError as error:
            # A checkpoint: a client that sends one bad request after another takes turns.
            await trio.lowlevel.checkpoint()
            answer = self._refuse(error)
        except Exception as error:  # noqa: BLE001  it is logged, and the client told
            detail = note_failure("POST", head.target, error)
            answer = self._refuse(RequestError("internal_error", detail))
        else:
            content = encode_json(receipt_content(receipt, head.topic, batch=head.batch))
            answer = Answer(201, _JSON, _REPLAYED if receipt.replayed else b"", content)
        if answer.status == 201:
            (self._batches if head.topic is None else self._published).number += 1
        else:
            self.requests.add("POST", _route(head), answer.status)
        if self._log_access:
            access.note("POST", head.target, str(answer.status), started, peer)
        return answer

    def share(self, head: PublishHead, client: str) -> str:
        """In whose share of memory its body counts."""
        return self._access.share(Asking(head.credentials, client))

    def hold(self, head: PublishHead, peer: str, share: str) -> Answer | None:
        """Take memory for the body, until ``release``; or say why there is none."""
        try:
            self._broker.admission.hold(head.length, share)
        except RequestError as error:
            answer = self._refuse(error)
            if self._log_access:
                access.note("POST", head.target, str(answer.status), trio.current_time(), peer)
            return answer
        return None

    def release(self, head: PublishHead, share: str) -> None:
        """The request is answered."""
        self._broker.admission.release(head.length, share)

    def late(self, head: PublishHead, peer: str) -> Answer:
        """The answer when the body does not arrive in time."""
        answer = self._refuse(late(self.limit(head)))
        self.requests.add("POST", _route(head), answer.status)
        if self._log_access:
            started = trio.current_time() - self.body_seconds
            access.note("POST", head.target, str(answer.status), started, peer)
        return answer

    def late_head(self, seconds: float, data: bytes) -> bytes:
        """What is sent when not even the head arrives in time, of which ``data`` has come."""
        error = RequestError(
            "request_timeout",
            f"The header of the request was not complete within {seconds:g} seconds.",
        )
        return self._shell.encode(self._refuse(error), origin_in(data), last=True)

    def encode(self, head: PublishHead, answer: Answer, *, last: bool) -> bytes:
        """The answer as it is sent; ``last`` announces that the connection ends."""
        return self._shell.encode(answer, head.origin, last=last)

    def _refuse(self, error: RequestError) -> Answer:
        return refusal(error, self._broker.refusals)

    async def _publish(self, head: PublishHead, body: bytes, asking: Asking) -> Receipt:
        if head.topic is None:
            return await self._broker.publish_many(asking, body, head.key)
        if head.batch:
            return await self._broker.publish_batch(asking, head.topic, body, head.key)
        return await self._broker.publish(asking, head.topic, body, head.key)


def _route(head: PublishHead) -> str:
    return _TOPICS if head.topic is None else _ONE_TOPIC
