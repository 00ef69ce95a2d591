"""For those who run the node: is it alive, does it serve, what does it count."""

from __future__ import annotations

from quart import Response, request

from repl_broker.broker import Broker
from repl_broker.errors import RequestError
from repl_broker.web.answers import json_answer
from repl_broker.web.parameters import read_query

__all__ = ["Operations"]


class Operations:
    """``/healthz``, ``/readyz`` and ``/metrics``."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def health(self) -> Response:
        """The process is alive, and answers."""
        read_query(request.query_string, ())
        return json_answer({"status": "ok"})

    async def ready(self) -> Response:
        """Requests are served: send them here."""
        read_query(request.query_string, ())
        if not self._broker.ready:
            raise RequestError("shutting_down", "The node is shutting down; use another.")
        return json_answer({"status": "ok"})
