"""What a route needs, asked of ``Access`` before the route is.

Every route of the API has a Right, in RIGHTS. Some can only be judged once more
is known than the path: their views ask for the rest, with ``who``. Publishes and
event streams that do without Quart ask the same Access with the same Credentials
(publishing.py, streams.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from functools import wraps
from typing import Any, Final

from quart import Response, g, request

from repl_broker.access import EVERYONE, Access, Credentials, Identity
from repl_broker.errors import RequestError

__all__ = ["RIGHTS", "Right", "credentials", "guarded", "who"]

View = Callable[..., Awaitable[Response]]
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class Right(Enum):
    """What a request needs. The value is what the description says of it."""

    OPEN = "Open to everyone."
    LIST = "Lists the topics that a `publish` or `subscribe` filter matches; with `admin`, all."
    PUBLISH = "Needs a `publish` filter that matches the topic."
    EACH = "Needs `publish` filters that match each of the topics."
    SUBSCRIBE = "Needs a `subscribe` filter that matches the topic."
    STREAM = "Needs, for each filter asked for, a `subscribe` filter that covers all of it."
    SEE = "Needs a `publish` or `subscribe` filter that matches the topic."
    ADMIN = "Needs `admin`."


# All of the API; the dashboard's feed, which is no part of it, needs ADMIN (ui.py).
RIGHTS: Final[Mapping[tuple[str, str], Right]] = {
    ("GET", "/v1/topics"): Right.LIST,
    ("POST", "/v1/topics"): Right.ADMIN,
    ("GET", "/v1/topics/{topic}"): Right.SEE,
    ("PUT", "/v1/topics/{topic}"): Right.ADMIN,
    ("DELETE", "/v1/topics/{topic}"): Right.ADMIN,
    ("POST", "/v1/topics/{topic}/messages"): Right.PUBLISH,
    ("GET", "/v1/topics/{topic}/messages"): Right.SUBSCRIBE,
    ("POST", "/v1/messages"): Right.EACH,
    ("GET", "/v1/events"): Right.STREAM,
    ("DELETE", "/v1/tokens/{sub}"): Right.ADMIN,
    ("GET", "/v1/cluster"): Right.ADMIN,
    ("POST", "/v1/cluster/members"): Right.ADMIN,
    ("DELETE", "/v1/cluster/members/{member}"): Right.ADMIN,
    ("POST", "/v1/cluster/leader"): Right.ADMIN,
    ("GET", "/healthz"): Right.OPEN,
    ("GET", "/readyz"): Right.OPEN,
    ("GET", "/metrics"): Right.ADMIN,
    ("GET", "/openapi.json"): Right.OPEN,
    ("GET", "/docs"): Right.OPEN,
    ("GET", "/client.js"): Right.OPEN,
    ("GET", "/client.d.ts"): Right.OPEN,
}


def guarded(access: Access, right: Right, view: View) -> View:
    """``view``, for those who have the right."""
    if right in (Right.OPEN, Right.STREAM):  # a stream's query may have a token: events.py
        return view

    @wraps(view)
    async def checked(**arguments: Any) -> Response:
        if not access.is_open:
            g.who = found = access.identify(credentials(), write=request.method not in _READS)
            _check(access, right, found, arguments.get("topic", ""))
        return await view(**arguments)

    return checked


def _check(access: Access, right: Right, found: Identity, topic: str) -> None:
    match right:
        case Right.PUBLISH:
            access.check_publish(found, (topic,))
        case Right.SUBSCRIBE:
            access.check_subscribe(found, (topic,))
        case Right.SEE:
            access.check_see(found, topic)
        case Right.ADMIN:
            access.check_admin(found)
        case _:  # the view asks for the rest
            access.check_known(found)


def who() -> Identity:
    """Who asks, in a view that is guarded."""
    found: Identity = g.get("who", EVERYONE)
    return found


def credentials() -> Credentials:
    """Those of the request under way."""
    headers = request.headers
    given = headers.getlist("Authorization")
    if len(given) > 1:
        raise RequestError("invalid_parameter", "Authorization is given twice; give it once.")
    return Credentials(
        given[0].strip() if given else "",
        "; ".join(headers.getlist("Cookie")),
        headers.get("Origin", ""),
        headers.get("Host", ""),
    )
