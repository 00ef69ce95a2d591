"""The access log: a line a request, when it has ended."""

from __future__ import annotations

import logging

import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)

__all__ = ["AccessLog"]

log = logging.getLogger(__name__)


class AccessLog:
    """ASGI around ``app``. The query is left out, since it may hold a token.

    An event stream's line comes when the stream ends. ``status=-`` is a client
    that left before the answer began.
    """

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status, started = "-", trio.current_time()

        async def send_noted(message: ASGISendEvent) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            peer = scope.get("client")
            log.info(
                "request method=%s path=%s status=%s seconds=%.4f peer=%s",
                scope["method"],
                scope["raw_path"].decode("ascii"),
                status,
                trio.current_time() - started,
                f"{peer[0]}:{peer[1]}" if peer else "unknown",
            )
        return None
