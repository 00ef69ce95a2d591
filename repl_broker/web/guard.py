"""What a route needs, asked of ``Access`` before the route is.

The broker decides, with each call (broker.py); what is refused here is refused early,
before a body is read. Every route has a Right, which it names when it is added: one
without is answered 500, whoever asks. The API's are in RIGHTS. Some can only be judged
once more is known than the path, which the broker does. Publishes and event streams
that do without Quart bring the same Asking to the same broker (publishing.py, streams.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio

from repl_broker.access import Access, Asking, Credentials, Identity
from repl_broker.admission import address_key
from repl_broker.errors import RequestError
from repl_broker.trace import current_client

__all__ = ["GUARD", "RIGHTS", "Guard", "Right", "address_here", "asking", "credentials"]

GUARD: Final = "repl_broker.guard"  # where an application keeps it
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
    ("DELETE", "/v1/topics"): Right.ADMIN,
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


class Guard:
    """Adds the routes of an application, and knows what each of them needs."""

    def __init__(self, app: QuartTrio, access: Access) -> None:
        self._app = app
        self._access = access
        self._rights: dict[str, Right] = {}  # by endpoint
        app.before_request(self._decide)
        app.extensions[GUARD] = self

    def route(self, method: str, rule: str, right: Right, view: View) -> None:
        """``view`` answers ``method`` of ``rule``, for those who have the right."""
        endpoint = f"{method} {rule}".replace(".", "-")
        self._rights[endpoint] = right
        self._app.add_url_rule(
            rule, endpoint, view, methods=[method], provide_automatic_options=False
        )

    async def _decide(self) -> None:
        rule = request.url_rule
        if rule is None:  # 404 or 405, which are for everyone
            return
        right = self._rights.get(rule.endpoint)
        if right is None:
            raise RuntimeError(f"nobody has decided who may ask for {rule.rule}")
        # A stream's query may have a token, which its view reads.
        if self._access.is_open or right in (Right.OPEN, Right.STREAM):
            return
        identity = self._access.identify(credentials(), write=request.method not in _READS)
        _check(self._access, right, identity, (request.view_args or {}).get("topic", ""))


def _check(access: Access, right: Right, found: Identity, topic: str) -> None:
    match right:
        case Right.PUBLISH:
            access.check_publish(found, (topic,))
        case Right.SUBSCRIBE:
            access.check_subscribe(found, (topic,))
        case Right.SEE:
            access.check_see(found, topic)
        case Right.LIST | Right.EACH:  # the broker asks for the rest
            access.check_known(found)
        case _:
            access.check_admin(found)


def asking() -> Asking:
    """Who the request under way says that it is; a token in its query is events.py's to add."""
    return Asking(credentials(), address_here())


def address_here() -> str:
    """In whose share the request under way counts, as far as there is no token."""
    return current_client() or address_key(request.remote_addr or "")


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
