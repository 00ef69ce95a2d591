"""What a document of the node's may load and do, and that nobody may frame it (CSP level 3).

A page brings a policy of its own, as strict as it can be. A document that has none
gets LOCKED, under which nothing runs and nothing is loaded: what a browser would show
as one is told by its type, and every type that is not known to be inert counts.
"""

from __future__ import annotations

from typing import Final

from quart import Response

__all__ = ["EXAMPLE", "LOCKED", "protect"]

LOCKED: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Of the examples: nothing but their own files, and other nodes on this machine.
EXAMPLE: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self' http://127.0.0.1:* http://localhost:*; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
# What a browser shows as text, or not at all, because it is told not to guess (nosniff).
INERT: Final = frozenset(
    {
        *("application/json", "application/problem+json", "text/event-stream", "text/plain"),
        *("application/octet-stream", "application/typescript", "text/javascript", "text/css"),
        *("image/png", "image/jpeg", "image/webp", "image/x-icon", "font/woff2"),
        *("application/wasm", "application/manifest+json"),
    }
)
_DOCUMENT: Final = {
    "Content-Security-Policy": LOCKED,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


async def protect(response: Response) -> Response:
    """Add what is missing; called with each answer."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    if (response.mimetype or "") not in INERT and "Content-Type" in response.headers:
        for name, value in _DOCUMENT.items():
            response.headers.setdefault(name, value)
    return response
