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

__all__ = ["Counted", "RequestCounts"]

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER: Final = "other"


class Counted(NamedTuple):
    """Requests that are counted together."""

    method: str
    route: str
    status: int


class RequestCounts:
    """Counts of the requests that one part of the node has answered."""

    def __init__(self) -> None:
        self._counts: dict[Counted | tuple[str, str, int], int] = {}

    def add(self, what: Counted | tuple[str, str, int]) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1

    def items(self) -> Iterable[tuple[Counted, int]]:
        return [(Counted(*what), count) for what, count in self._counts.items()]

    def register(self, app: QuartTrio) -> None:
        """Count what ``app`` answers."""

        async def count(response: Response) -> Response:
            method = request.method if request.method in METHODS else OTHER
            self.add((method, _route(), response.status_code))
            return response

        app.after_request(count)


def _route() -> str:
    """As the reference writes it: ``/v1/topics/{topic}``."""
    rule = request.url_rule
    return OTHER if rule is None else re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
