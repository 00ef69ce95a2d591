"""Cross-origin requests (Fetch standard): what lets a web page read the node's answers.

Only origins that the configuration lists are answered, by name, or all of them
with ``*``. Credentials (cookies) are never allowed: a token travels in a header. So
a page may send whatever header fields it likes; a preflight allows those that it
asks for, because libraries add their own (``X-Requested-With``, ``baggage``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio

from repl_broker.web.head import head_end

__all__ = ["allowed_headers", "origin_in", "permission", "register"]

# Allowed without being asked for; what a preflight asks for comes on top.
ALLOWED_HEADERS: Final = (
    "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, traceparent, tracestate"
)
EXPOSED_HEADERS: Final = "Idempotent-Replayed, Location, Retry-After, X-Request-Id"
MAX_AGE_SECONDS: Final = 600  # for which a browser need not ask again
ASKED_CHARACTERS_MAX: Final = 1024  # of the names of header fields that a page may ask for
ASKED: Final = "Access-Control-Request-Headers"
_ORIGIN: Final = re.compile(rb"\norigin:[ \t]*+([!-~]{1,300})[ \t]*+(?=\r\n)", re.IGNORECASE)
_NAMES: Final = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+|[ \t]*,[ \t]*)*+")


def register(app: QuartTrio, origins: Callable[[], Collection[str]]) -> None:
    """Allow ``origins`` to read what ``app`` answers; with none, pages of this node only.

    They are asked for at each answer, because they may change while the node serves.
    """

    async def allow(response: Response) -> Response:
        headers = permission(origins(), request.headers.get("Origin", ""))
        response.headers.update(headers)
        if "Access-Control-Allow-Origin" not in headers:
            return response
        if request.method == "OPTIONS" and "Allow" in response.headers:
            asked = ", ".join(request.headers.getlist(ASKED))
            response.headers["Access-Control-Allow-Methods"] = response.headers["Allow"]
            response.headers["Access-Control-Allow-Headers"] = allowed_headers(asked)
            response.headers["Access-Control-Max-Age"] = str(MAX_AGE_SECONDS)
            response.vary.add(ASKED)
        return response

    app.after_request(allow)


def allowed_headers(asked: str) -> str:
    """What a preflight allows that asks for these names; those it allows anyway if they are none.

    Nothing is reflected but names of header fields, and not too many.
    """
    if len(asked) > ASKED_CHARACTERS_MAX or _NAMES.fullmatch(asked) is None:
        return ALLOWED_HEADERS
    known = {name.lower() for name in ALLOWED_HEADERS.split(", ")}
    names = dict.fromkeys(name.strip(" \t") for name in asked.lower().split(","))
    return ", ".join([ALLOWED_HEADERS, *(name for name in names if name and name not in known)])


def origin_in(data: bytes) -> str:
    """Of the page that asks with the head that ``data`` begins with, which may be any; or "".

    For answers to what is no whole request: it is not judged by this, and only lets a page read.
    """
    found = _ORIGIN.findall(data[: head_end(data) or len(data)])
    return found[0].decode("ascii") if len(found) == 1 else ""


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
