"""The event stream: Server-Sent Events, for as long as the client stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Final

from quart import Response, request
from quart.wrappers.response import ResponseBody

from repl_broker.access import Asking
from repl_broker.broker import Broker
from repl_broker.errors import RequestError
from repl_broker.message import parse_event_id
from repl_broker.subscription import Subscription
from repl_broker.web.guard import asking
from repl_broker.web.parameters import TOKEN_NAME, Query, read_query

__all__ = ["CURSOR_NAMES", "PATH", "QUERY_CURSOR", "QUERY_TOKEN", "Events", "open_subscription"]

PATH: Final = "/v1/events"
QUERY_TOKEN: Final = TOKEN_NAME
EVENT_STREAM: Final = "text/event-stream"
LAST_EVENT_ID: Final = "Last-Event-ID"
# Under which clients that cannot set a header send it: event-source-polyfill and
# reconnecting-eventsource; Mercure's (lastEventID); what many write themselves, some servers'
# guides tell them to, and older polyfills do.
QUERY_CURSOR: Final = "lastEventId"
CURSOR_NAMES: Final = ("lasteventid", "last_event_id", "last-event-id", "evs_last_event_id")
_ALSO: Final = dict.fromkeys(CURSOR_NAMES, QUERY_CURSOR)
_WORDS: Final = frozenset({"earliest", "latest"})


class Events:
    """``/v1/events``."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def stream(self) -> Response:
        """Open a stream; for HEAD, only say whether it could be opened."""
        given = request.headers.getlist(LAST_EVENT_ID)
        subscription = open_subscription(self._broker, request.query_string, given, asking())
        if request.method == "HEAD":
            if subscription.lease is not None:
                subscription.lease.end()
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

    It is no generator, because a generator must not be left by cancellation.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return await self._subscription.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._subscription.__aexit__(exc_type, exc_value, tb)


def open_subscription(
    broker: Broker, query_string: bytes, given: Sequence[str], asking: Asking
) -> Subscription:
    """The stream that a request asks for; both ways of answering ask here.

    ``given`` are the Last-Event-ID headers. Raises what ``Broker.subscribe`` does, and
    ``invalid_parameter``.
    """
    query = read_events_query(query_string, with_token=broker.access.allow_query_token)
    if given_token := query.get(QUERY_TOKEN):
        credentials = asking.credentials._replace(query_token=given_token[0])
        asking = asking._replace(credentials=credentials)
    return broker.subscribe(asking, query.get("topic", ()), read_after(query, given))


def read_events_query(query_string: bytes, *, with_token: bool) -> Query:
    """What a stream is asked for with. Raises ``invalid_parameter``."""
    known = ("topic", "after", QUERY_CURSOR, *((QUERY_TOKEN,) if with_token else ()))
    return read_query(query_string, known, ("topic", QUERY_CURSOR), _ALSO)


def read_after(query: Query, given: Sequence[str]) -> str:
    """Where the stream begins, by what was written last.

    A page's author wrote ``after``. A library that reconnects adds its cursor, behind what
    is there: behind its author's, or behind that of a library that is built on it. A browser
    that reconnects by itself asks for the same URL again, and has ``given`` a header.

    Raises ``invalid_event_id``, ``invalid_parameter``.
    """
    if len(given) > 1:
        raise RequestError("invalid_parameter", f"{LAST_EVENT_ID} is given twice; give it once.")
    written = [*query.get("after", ["latest"]), *filter(None, query.get(QUERY_CURSOR, ()))]
    for after in written:
        if after not in _WORDS:
            parse_event_id(after)
    return next(filter(None, given), written[-1])
