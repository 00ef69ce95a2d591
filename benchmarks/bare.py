"""The baseline: what Hypercorn on Trio does with the least of an application.

A POST is read, handed to every stream and answered 201; a GET is an event
stream from a channel of its own. Nothing is stored, checked, ordered or resumed.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

streams: set[trio.MemorySendChannel[bytes]] = set()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            await send({"type": (await receive())["type"] + ".complete"})
    await (publish if scope["method"] == "POST" else stream)(receive, send)


async def publish(receive: Any, send: Any) -> None:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    event = b"data: %b\n\n" % b"".join(parts)
    for channel in list(streams):
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await channel.send(event)  # waits for the slowest: its memory is bounded
    answer = b'{"id":"00000000-1","topic":"bench","time":"2026-01-01T00:00:00.000Z"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def stream(receive: Any, send: Any) -> None:
    channel, events = trio.open_memory_channel[bytes](1000)
    async with channel, events, trio.open_nursery() as nursery:
        nursery.start_soon(leave, receive, nursery.cancel_scope)
        streams.add(channel)
        try:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            event = b"event: subscribed\ndata: {}\n\n"
            while True:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                event = await events.receive()
        finally:
            streams.discard(channel)


async def leave(receive: Any, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def main() -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.keep_alive_max_requests = sys.maxsize  # by default it hangs up after 1,000
    trio.run(serve, app, config)


if __name__ == "__main__":
    main()
