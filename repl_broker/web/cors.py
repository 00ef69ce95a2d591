"""Cross-origin requests (Fetch standard): which web pages may read the node's answers.

Only origins that the configuration lists are answered, by name, or all of them
with ``*``. Credentials (cookies) are never allowed: a token travels in a header.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio

__all__ = ["permission", "register"]

ALLOWED_HEADERS: Final = (
    "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, traceparent, tracestate"
)
EXPOSED_HEADERS: Final = "Idempotent-Replayed, Location, Retry-After, X-Request-Id"
MAX_AGE_SECONDS: Final = 600  # for which a browser need not ask again


def register(app: QuartTrio, origins: Callable[[], Collection[str]]) -> None:
    """Allow ``origins`` to read what ``app`` answers; with none, pages of this node only.

    They are asked for at each answer, since they may change while the node serves.
    """

    async def allow(response: Response) -> Response:
        headers = permission(origins(), request.headers.get("Origin", ""))
        response.headers.update(headers)
        if "Access-Control-Allow-Origin" not in headers:
            return response
        if request.method == "OPTIONS" and "Allow" in response.headers:
            response.headers["Access-Control-Allow-Methods"] = response.headers["Allow"]
            response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
            response.headers["Access-Control-Max-Age"] = str(MAX_AGE_SECONDS)
        return response

    app.after_request(allow)


def permission(origins: Collection[str], origin: str) -> dict[str, str]:
    """The header fields of an answer to a page of ``origin`` ("" if it does not say)."""
    if not origins:
        return {}
    if "*" in origins:
        return _readable_by("*")
    differs = {"Vary": "Origin"}  # a cache must know
    return differs | _readable_by(origin) if origin in origins else differs


def _readable_by(allowed: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": allowed,
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    }
