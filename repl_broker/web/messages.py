"""Publishing, and reading back what is retained."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from quart import Response, request

from repl_broker.admission import Bodies
from repl_broker.broker import Broker, Receipt
from repl_broker.errors import RequestError
from repl_broker.web.answers import JSON, answer, json_answer
from repl_broker.web.body import NDJSON, BodyLimits, check_media_type, read_body
from repl_broker.web.guard import asking
from repl_broker.web.parameters import read_limit, read_query

__all__ = ["Messages", "receipt_content"]

IDEMPOTENCY_KEY: Final = "Idempotency-Key"


class Messages:
    """``/v1/topics/{topic}/messages`` and ``/v1/messages``."""

    def __init__(self, broker: Broker, limits: BodyLimits) -> None:
        self._broker = broker
        self._limits = limits

    async def publish(self, topic: str) -> Response:
        """One message (JSON), or an atomic batch of them (NDJSON)."""
        read_query(request.query_string, ())
        is_batch = check_media_type(JSON, NDJSON) == NDJSON
        publish = self._broker.publish_batch if is_batch else self._broker.publish
        with self._bodies() as held:
            body = await read_body(self._limits.batch if is_batch else self._limits.message, held)
            receipt = await publish(asking(), topic, body, idempotency_key())
        return _accepted(receipt, topic, batch=is_batch)

    async def publish_many(self) -> Response:
        """An atomic batch over several topics (NDJSON)."""
        read_query(request.query_string, ())
        check_media_type(NDJSON)
        with self._bodies() as held:
            body = await read_body(self._limits.batch, held)
            receipt = await self._broker.publish_many(asking(), body, idempotency_key())
        return _accepted(receipt, None, batch=True)

    def _bodies(self) -> AbstractContextManager[Bodies]:
        return self._broker.admission.bodies(self._broker.access.share(asking()))

    async def history(self, topic: str) -> Response:
        """Retained messages, oldest first, a page at a time."""
        query = read_query(request.query_string, ("after", "limit"))
        after = query.get("after", ["earliest"])[0]
        page = await self._broker.history(asking(), topic, after=after, limit=read_limit(query))
        # Messages are spliced in as they are: they must not be decoded.
        messages = b",".join(message.to_json(self._broker.epoch) for message in page.messages)
        following = b"null" if page.next is None else b'"%b"' % page.next.encode()
        gap = b"true" if page.gap else b"false"
        return answer(b'{"messages":[%b],"next":%b,"gap":%b}' % (messages, following, gap), JSON)


def idempotency_key() -> str | None:
    """The request's Idempotency-Key. Raises ``invalid_parameter`` if it has several."""
    keys = request.headers.getlist(IDEMPOTENCY_KEY)
    if len(keys) > 1:
        raise RequestError("invalid_parameter", f"{IDEMPOTENCY_KEY} is given twice; give it once.")
    return keys[0] if keys else None


def receipt_content(receipt: Receipt, topic: str | None, *, batch: bool) -> dict[str, int | str]:
    """The members of a publish's answer; ``topic`` is None if there are several."""
    if not batch:
        assert topic is not None
        return {"id": receipt.first_id, "topic": topic, "time": receipt.time}
    places: dict[str, int | str] = {
        "count": receipt.count,
        "first_id": receipt.first_id,
        "last_id": receipt.last_id,
    }
    return places if topic is None else {"topic": topic, **places}


def _accepted(receipt: Receipt, topic: str | None, *, batch: bool) -> Response:
    headers = {"Idempotent-Replayed": "true"} if receipt.replayed else None
    return json_answer(receipt_content(receipt, topic, batch=batch), 201, headers)
