"""The cluster as this node sees it, and changes of who is in it."""

from __future__ import annotations

from typing import Final

from quart import Response, request

from repl_broker.broker import Broker
from repl_broker.config import NAME, URL, Address, HostPort, RefusedError
from repl_broker.errors import RequestError
from repl_broker.web.answers import JSON, json_answer
from repl_broker.web.base import base_here
from repl_broker.web.body import BodyLimits, check_media_type, read_body
from repl_broker.web.guard import asking
from repl_broker.web.parameters import (
    check_members,
    read_object,
    read_query,
    read_switch,
    read_text,
)

__all__ = ["Cluster"]

_MEMBER: Final = ("id", "raft_address", "http_url")


class Cluster:
    """``/v1/cluster`` and what is below it."""

    def __init__(self, broker: Broker, limits: BodyLimits) -> None:
        self._broker = broker
        self._limits = limits

    async def show(self) -> Response:
        """Who is there, who leads, how far each one is."""
        read_query(request.query_string, ())
        return json_answer(await self._broker.cluster(asking()))

    async def add_member(self) -> Response:
        """Add a node, as a learner that is promoted when it has caught up."""
        found = await self._body(_MEMBER)
        node_id = _check_id(read_text(found, "id"))
        try:
            address = HostPort().read(read_text(found, "raft_address"))
            assert isinstance(address, Address)
            http_url = URL.read(read_text(found, "http_url"))
        except RefusedError as error:
            raise RequestError("invalid_parameter", f"The member is not valid: {error}.") from None
        await self._broker.add_member(asking(), node_id, str(address), http_url)
        return await self._accepted()

    async def remove_member(self, member: str) -> Response:
        """Remove a node from the cluster."""
        query = read_query(request.query_string, ("force",))
        forced = read_switch(query, "force")
        await self._broker.remove_member(asking(), _check_id(member), forced=forced)
        return await self._accepted()

    async def move_leader(self) -> Response:
        """Hand leadership over to another voter."""
        found = await self._body(("id",))
        await self._broker.move_leader(asking(), _check_id(read_text(found, "id")))
        return await self._accepted()

    async def _accepted(self) -> Response:
        """It is under way; the same object under ``/v1/cluster`` tells when it is done."""
        return json_answer(
            await self._broker.cluster(asking()), 202, {"Location": f"{base_here()}/v1/cluster"}
        )

    async def _body(self, known: tuple[str, ...]) -> dict[str, object]:
        read_query(request.query_string, ())
        check_media_type(JSON)
        found = read_object(await read_body(self._limits.object))
        check_members(found, known)
        return found


def _check_id(text: str) -> str:
    if not NAME.accepts(text):
        raise RequestError("invalid_parameter", f"A member's id is {NAME.wanted}.")
    return text
