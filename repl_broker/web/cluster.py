"""The cluster as this node sees it, and changes of who is in it."""

from __future__ import annotations

from typing import Final, NoReturn

from quart import Response, request

from repl_broker.broker import Broker
from repl_broker.config import NAME, URL, Address, HostPort, RefusedError
from repl_broker.errors import RequestError
from repl_broker.web.answers import JSON, json_answer
from repl_broker.web.body import BodyLimits, check_media_type, read_body
from repl_broker.web.parameters import check_members, read_object, read_query, read_text

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
        return json_answer(self._broker.cluster())

    async def add_member(self) -> Response:
        """Add a node, as a learner that is promoted when it has caught up."""
        found = await self._body(_MEMBER)
        _check_id(read_text(found, "id"))
        try:
            address = HostPort().read(read_text(found, "raft_address"))
            assert isinstance(address, Address)
            URL.read(read_text(found, "http_url"))
        except RefusedError as error:
            raise RequestError("invalid_parameter", f"The member is not valid: {error}.") from None
        _single_node()

    async def remove_member(self, member: str) -> Response:
        """Remove a node from the cluster."""
        read_query(request.query_string, ())
        _check_id(member)
        _single_node()

    async def move_leader(self) -> Response:
        """Hand leadership over to another voter."""
        found = await self._body(("id",))
        _check_id(read_text(found, "id"))
        _single_node()

    async def _body(self, known: tuple[str, ...]) -> dict[str, object]:
        read_query(request.query_string, ())
        check_media_type(JSON)
        found = read_object(await read_body(self._limits.object))
        check_members(found, known)
        return found


def _check_id(text: str) -> None:
    if not NAME.accepts(text):
        raise RequestError("invalid_parameter", f"A member's id is {NAME.wanted}.")


def _single_node() -> NoReturn:
    raise RequestError(
        "single_node", "This node runs by itself; a cluster is what has members to change."
    )
