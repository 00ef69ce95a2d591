"""How many requests were answered, by route and status, for the metrics.

The number of series is bounded whatever strangers send: a path that is no route
and a method that is none of ours count as ``other``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from quart import Response, request
from quart_trio import QuartTrio

__all__ = ["Count", "Counted", "RequestCounts"]

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER: Final = "other"


class Counted(NamedTuple):
    """Requests that are counted together."""

    method: str
    route: str
    status: int


class Count:
    """Of requests that are counted together."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class RequestCounts:
    """Counts of the requests that one part of the node has answered."""

    def __init__(self) -> None:
        self._counts: dict[Counted, Count] = {}

    def of(self, method: str, route: str, status: int) -> Count:
        """To be kept and counted up, where looking it up each time would cost too much."""
        return self._counts.setdefault(Counted(method, route, status), Count())

    def add(self, method: str, route: str, status: int) -> None:
        self.of(method, route, status).number += 1

    def items(self) -> Iterable[tuple[Counted, int]]:
        return [(what, count.number) for what, count in self._counts.items() if count.number]

    def register(self, app: QuartTrio) -> None:
        """Count what ``app`` answers."""

        async def count(response: Response) -> Response:
            method = request.method if request.method in METHODS else OTHER
            self.add(method, _route(), response.status_code)
            return response

        app.after_request(count)


def _route() -> str:
    """As the reference writes it: ``/v1/topics/{topic}``."""
    rule = request.url_rule
    return OTHER if rule is None else re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
