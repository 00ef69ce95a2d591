"""Topics: create, change, list, show, delete."""

from __future__ import annotations

from typing import Final

from quart import Response, request

from repl_broker.broker import Broker, TopicView
from repl_broker.config import Whole, keys
from repl_broker.errors import RequestError
from repl_broker.message import check_topic
from repl_broker.web.answers import JSON, empty_answer, json_answer
from repl_broker.web.base import base_here
from repl_broker.web.body import BodyLimits, check_media_type, read_body
from repl_broker.web.guard import asking
from repl_broker.web.parameters import (
    check_members,
    read_integer,
    read_limit,
    read_object,
    read_query,
    read_text,
)

__all__ = ["RETENTION_RANGES", "Topics"]


def _range(name: str) -> tuple[int, int]:
    kind = keys()[f"topics.retention.{name}"].kind
    assert isinstance(kind, Whole)
    return kind.minimum, kind.maximum


# What a topic may be set to is what the configuration may say: least and most.
RETENTION_RANGES: Final = {
    name: _range(name) for name in ("messages", "seconds", "bytes", "idle_seconds")
}


_UNITS: Final = {
    "messages": "messages",
    "seconds": "seconds",
    "bytes": "bytes",
    "idle_seconds": "seconds",
}


class Topics:
    """``/v1/topics`` and ``/v1/topics/{topic}``."""

    def __init__(self, broker: Broker, limits: BodyLimits) -> None:
        self._broker = broker
        self._limits = limits

    async def list(self) -> Response:
        """A page of topics, in the order of their names: those that the request may know of."""
        query = read_query(request.query_string, ("limit", "after", "match"))
        after = check_topic(query["after"][0]) if "after" in query else ""
        match = query["match"][0] if "match" in query else None
        return json_answer(
            await self._broker.topics(asking(), limit=read_limit(query), after=after, match=match)
        )

    async def create(self) -> Response:
        """Create a topic that is not there yet."""
        read_query(request.query_string, ())
        check_media_type(JSON)
        found = read_object(await read_body(self._limits.object))
        check_members(found, ("name", "retention"))
        name = check_topic(read_text(found, "name"))
        topic, _ = await self._create(name, found, replace=False)
        return json_answer(topic, 201, {"Location": f"{base_here()}/v1/topics/{name}"})

    async def put(self, topic: str) -> Response:
        """Create a topic, or set the one that is there; no body stands for the defaults."""
        read_query(request.query_string, ())
        if request.headers.get("Content-Type") or request.content_length:
            check_media_type(JSON)
        body = await read_body(self._limits.object)
        if body:
            check_media_type(JSON)
        found = read_object(body or b"{}")
        check_members(found, ("retention",))
        view, created = await self._create(topic, found, replace=True)
        if created:
            return json_answer(view, 201, {"Location": f"{base_here()}/v1/topics/{topic}"})
        return json_answer(view)

    async def show(self, topic: str) -> Response:
        """Settings, counts, first and last id, subscribers on this node."""
        read_query(request.query_string, ())
        return json_answer(await self._broker.topic(asking(), topic))

    async def delete(self, topic: str) -> Response:
        """Remove a topic and its history."""
        read_query(request.query_string, ())
        await self._broker.delete_topic(asking(), topic)
        return empty_answer(204)

    async def delete_matching(self) -> Response:
        """Remove the topics that a filter matches; without one, nothing."""
        query = read_query(request.query_string, ("match",))
        if "match" not in query:
            raise RequestError(
                "invalid_parameter",
                "The query parameter 'match' is missing: name the topics to delete by a filter, as "
                "in match=jobs.>, or match=> for all of them.",
            )
        return json_answer({"count": await self._broker.delete_topics(asking(), query["match"][0])})

    async def _create(
        self, name: str, found: dict[str, object], *, replace: bool
    ) -> tuple[TopicView, bool]:
        given = _retention(found)
        numbers = {
            key: read_integer(given, key, least, most, "retention", f"of {_UNITS[key]}")
            for key, (least, most) in RETENTION_RANGES.items()
        }
        return await self._broker.create_topic(
            asking(),
            name,
            messages=numbers["messages"],
            seconds=numbers["seconds"],
            bytes=numbers["bytes"],
            idle_seconds=numbers["idle_seconds"],
            replace=replace,
        )


def _retention(found: dict[str, object]) -> dict[str, object]:
    given = found.get("retention", {})
    if not isinstance(given, dict):
        raise RequestError("invalid_parameter", "The member 'retention' must be an object.")
    check_members(given, tuple(RETENTION_RANGES), "retention")
    if given.get("idle_seconds", 0) is None:  # as it is shown: for ever
        return given | {"idle_seconds": 0}
    return given
