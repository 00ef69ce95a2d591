"""For those who run the node and those who write for it: health, metrics, descriptions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from html import escape
from typing import Final

from msgspec.json import encode as encode_json
from quart import Response, g, request

from repl_broker.broker import Broker
from repl_broker.errors import RequestError
from repl_broker.readiness import NotReadyError
from repl_broker.web import metrics, openapi, page
from repl_broker.web.answers import JSON, answer, json_answer
from repl_broker.web.base import base_here
from repl_broker.web.counts import RequestCounts
from repl_broker.web.door import DoorStatistics
from repl_broker.web.guard import asking
from repl_broker.web.parameters import read_query

__all__ = ["Operations"]

HTML: Final = "text/html; charset=utf-8"
_EXAMPLE: Final = openapi.EXAMPLE_URL.encode()


class Operations:
    """``/healthz``, ``/readyz``, ``/metrics``, ``/openapi.json`` and ``/docs``."""

    def __init__(
        self, broker: Broker, door: Callable[[], DoorStatistics] | None, requests: RequestCounts
    ) -> None:
        """``requests`` counts those that the application answers; the door counts its own."""
        self._broker = broker
        self._registry = metrics.with_registry(broker, door, requests)
        self._page = _page()

    async def health(self) -> Response:
        """The process is alive, and answers."""
        read_query(request.query_string, ())
        return json_answer({"status": "ok"})

    async def ready(self) -> Response:
        """Requests are served: send them here. Why not is told whole to administrators alone."""
        read_query(request.query_string, ())
        try:
            self._broker.check_ready()
        except NotReadyError as error:
            raise (error if self._may_inspect() else error.in_general()) from None
        return json_answer({"status": "ok"})

    def _may_inspect(self) -> bool:
        try:
            self._broker.inspect(asking())
        except RequestError:
            return False
        return True

    async def metrics(self) -> Response:
        """What Prometheus scrapes."""
        read_query(request.query_string, ())
        self._broker.inspect(asking())
        return answer(metrics.render(self._registry), metrics.CONTENT_TYPE)

    async def openapi(self) -> Response:
        """The description, for programs."""
        read_query(request.query_string, ())
        return answer(_description(base_here()), JSON, headers={"Cache-Control": "no-cache"})

    async def docs(self) -> Response:
        """The description, for people."""
        read_query(request.query_string, ())
        headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": page.CONTENT_SECURITY_POLICY,
            "Referrer-Policy": "no-referrer",
        }
        return answer(self._page.replace(_EXAMPLE, self._asked_url()), HTML, headers=headers)

    def _asked_url(self) -> bytes:
        """By which this page was asked for, in HTML; it leads to the node, as far as is known."""
        host = g.host  # it is served: its text is what a host may have, and no more
        if host is None:
            return _EXAMPLE
        url = f"{self._broker.access.origins.scheme(host)}://{request.headers['Host']}{base_here()}"
        return escape(url).encode("ascii", "xmlcharrefreplace")


# All nodes have the same.


@lru_cache(maxsize=16)  # who has trusted proxies may have a few
def _description(base: str) -> bytes:
    """The description for programs that see the node below this path."""
    return encode_json(openapi.document(base))


@cache
def _page() -> bytes:
    """The one for people. Its links are relative."""
    return page.render(openapi.document())
