"""The event stream (DESIGN section 4): Server-Sent Events, for as long as the client stays."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final

from quart import Response, request
from quart.wrappers.response import ResponseBody

from repl_broker.broker import Broker
from repl_broker.errors import RequestError
from repl_broker.message import parse_event_id
from repl_broker.subscription import Subscription
from repl_broker.web.messages import client
from repl_broker.web.parameters import Query, read_query

__all__ = ["PATH", "Events", "read_after", "read_events_query"]

PATH: Final = "/v1/events"
EVENT_STREAM: Final = "text/event-stream"
LAST_EVENT_ID: Final = "Last-Event-ID"
_WORDS: Final = frozenset({"earliest", "latest"})


class Events:
    """``/v1/events``."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def stream(self) -> Response:
        """Open a stream; for HEAD, only say whether it could be opened."""
        query = read_events_query(request.query_string)
        after = read_after(query, request.headers.getlist(LAST_EVENT_ID))
        subscription = self._broker.subscribe(query.get("topic", ()), after, client())
        if request.method == "HEAD":
            response = Response(b"", content_type=EVENT_STREAM)
            del response.headers["Content-Length"]
        else:
            response = Response(_EventStream(subscription), content_type=EVENT_STREAM)
        # no-transform and X-Accel-Buffering keep proxies from holding events back.
        response.headers["Cache-Control"] = "no-cache, no-transform"
        response.headers["X-Accel-Buffering"] = "no"
        response.timeout = None
        return response


class _EventStream(ResponseBody):
    """A Subscription as Quart streams it: entered when the answer begins, left with the client.

    It is no generator, since a generator must not be left by cancellation.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def __aenter__(self) -> Subscription:
        return await self._subscription.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._subscription.__aexit__(exc_type, exc_value, tb)


def read_events_query(query_string: bytes) -> Query:
    """What a stream is asked for with. Raises ``invalid_parameter``."""
    return read_query(query_string, ("topic", "after"), repeated=("topic",))


def read_after(query: Query, given: Sequence[str]) -> str:
    """Where the stream begins: a browser that reconnects has ``given`` a header, which wins.

    Raises ``invalid_event_id``, ``invalid_parameter``.
    """
    after = query.get("after", ["latest"])[0]
    if after not in _WORDS:
        parse_event_id(after)
    if len(given) > 1:
        raise RequestError("invalid_parameter", f"{LAST_EVENT_ID} is given twice; give it once.")
    return given[0] if given and given[0] else after
