"""The contract's second HTTP client: Python's own ``http.client``, below httpx's methods.

It writes requests of its own kind: head and body apart, ``Accept-Encoding: identity``, no
``Accept``; it keeps a connection for the next request, and parses answers by other code.
"""

from __future__ import annotations

import http.client
from collections.abc import AsyncIterable, AsyncIterator

import httpx
import trio

__all__ = ["StandardLibrary"]

# httpx sets these by itself; http.client has its own ideas.
_LEFT_OUT = frozenset({"accept", "accept-encoding", "connection", "user-agent"})


class StandardLibrary(httpx.AsyncBaseTransport):
    """Sends requests by ``http.client``, in a thread, over as many connections as are needed."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._idle: list[http.client.HTTPConnection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await _whole(request.stream)
        with trio.CancelScope(shield=True):  # the time-out ends it
            return await trio.to_thread.run_sync(self._exchange, request, body)

    async def aclose(self) -> None:
        for connection in self._idle:
            connection.close()

    def _exchange(self, request: httpx.Request, body: bytes) -> httpx.Response:
        target = request.url.raw_path.decode("ascii")
        # A kept connection may have been closed by the other side meanwhile; a new one not.
        while True:
            is_new = not self._idle
            connection = self._connect(request.url) if is_new else self._idle.pop()
            try:
                return self._exchange_over(connection, request, target, body)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_new:
                    raise httpx.ReadError(str(error), request=request) from error

    def _connect(self, url: httpx.URL) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(url.host, url.port, timeout=self._timeout_seconds)

    def _exchange_over(
        self,
        connection: http.client.HTTPConnection,
        request: httpx.Request,
        target: str,
        body: bytes,
    ) -> httpx.Response:
        connection.putrequest(request.method, target, skip_host=True)
        for name, value in request.headers.raw:
            if name.lower().decode() not in _LEFT_OUT:
                connection.putheader(name.decode("latin-1"), value)
        chunked = request.headers.get("transfer-encoding") == "chunked"
        connection.endheaders(body or None, encode_chunked=chunked)
        answer = connection.getresponse()
        content = answer.read()
        response = httpx.Response(
            answer.status,
            headers=[(k.encode("latin-1"), v.encode("latin-1")) for k, v in answer.getheaders()],
            content=content,
            request=request,
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": answer.reason.encode()},
        )
        if answer.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return response


async def _whole(stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> bytes:
    assert isinstance(stream, AsyncIterable)
    parts: AsyncIterator[bytes] = aiter(stream)
    return b"".join([part async for part in parts])
