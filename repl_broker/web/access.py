"""Who asks: the request's id, and the access log, a line a request when it has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)

from repl_broker.trace import CURRENT, Request, current_client
from repl_broker.web.base import FORWARDED_PREFIX, Base
from repl_broker.web.proxies import FORWARDED_FOR

__all__ = ["AccessLog", "Identified", "note", "request_of"]

log = logging.getLogger(__name__)


def request_of(headers: Iterable[tuple[bytes, bytes]], base: Base, host: str) -> Request:
    """The request from ``host`` with these header fields, their names in lower case."""
    given: dict[bytes, list[bytes]] = {b"traceparent": [], FORWARDED_PREFIX: []}
    forwarded: list[bytes] = []
    for name, value in headers:
        if name in given:
            given[name].append(value)
        elif name == FORWARDED_FOR:
            forwarded.append(value)
    traceparent, prefix = (
        values[0].decode("latin-1") if len(values) == 1 else None for values in given.values()
    )
    hops = b",".join(forwarded).decode("latin-1") if forwarded else None
    return Request(traceparent, base.of(prefix, host), base.proxies.client(hops, host))


class Identified:
    """ASGI around ``app``: what it logs, it logs of this request. Each has a task of its own."""

    def __init__(self, app: ASGIFramework, base: Base) -> None:
        self._app = app
        self._base = base

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] == "http":
            client = scope.get("client")
            CURRENT.set(request_of(scope["headers"], self._base, client[0] if client else ""))
        await self._app(scope, receive, send)


class AccessLog:
    """ASGI around ``app``. The query is left out, because it may hold a token.

    An event stream's line comes when the stream ends. ``status=-`` is a client
    that left before the answer began. It is written as long as ``on`` is set.
    """

    def __init__(self, app: ASGIFramework, *, on: bool = True) -> None:
        self._app = app
        self.on = on

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "http" or not self.on:
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
            path = scope["raw_path"].decode("ascii")
            note(scope["method"], path, status, started, f"{peer[0]}:{peer[1]}" if peer else "")
        return None


def note(
    method: str,
    path: str,
    status: str,
    started: float,
    peer: str,
    *,
    request_id: str = "",
    client: str = "",
) -> None:
    """Write the line of a request that began at ``started``, by Trio's clock.

    ``peer`` is where the connection is from, and the client whose share it counted in: they
    differ behind a trusted proxy. ``request_id`` and ``client`` are for a request that is not
    answered in this task any more.
    """
    seconds = trio.current_time() - started
    log.info(
        "request method=%s path=%s status=%s seconds=%.4f peer=%s client=%s",
        method,
        path,
        status,
        seconds,
        peer or "unknown",
        client or current_client() or "unknown",
        extra={"request_id": request_id} if request_id else None,
    )
