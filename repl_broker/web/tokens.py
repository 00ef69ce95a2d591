"""Revoking tokens."""

from __future__ import annotations

from quart import Response, request
from werkzeug.routing import BaseConverter

from repl_broker.broker import Broker
from repl_broker.web.answers import empty_answer
from repl_broker.web.guard import asking
from repl_broker.web.parameters import read_query

__all__ = ["SubjectConverter", "Tokens"]


class SubjectConverter(BaseConverter):
    """All of the path that is left: a ``sub`` may have slashes, at its beginning as well."""

    regex = "(?s:.+)"
    part_isolating = False


class Tokens:
    """``/v1/tokens/{sub}``."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def revoke(self, sub: str) -> Response:
        """End the subject's streams on every node, and refuse its tokens issued before now."""
        read_query(request.query_string, ())
        await self._broker.revoke_tokens(asking(), sub)
        return empty_answer(204)
