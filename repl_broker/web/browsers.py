"""What a web page may ask of a node, whatever else it may do: asked of each request, first.

A page can have its visitor's browser send requests to any host. Two header fields
tell what a page cannot choose: ``Host``, by which name it has come here (hosts.py),
and ``Origin``, which page it is (origins.py). A request is refused

    421 unknown_host   if the node does not serve that host
    403 forbidden      if it would write, or asks whether it may, and its page may not

and there is a line in the log, because neither a browser nor a page says much. A page
that may not read is answered all the same, without the fields that would let it.

Both ways through the door ask here. In place a request is only let in
(``admits_write``, ``admits_read``); what is not is left to Quart, which says why.
"""

from __future__ import annotations

import logging
from typing import Final

from quart import Response, g, request
from quart_trio import QuartTrio

from repl_broker.access import COOKIE, Access, Credentials
from repl_broker.admission import address_key
from repl_broker.errors import RequestError
from repl_broker.hosts import Host
from repl_broker.notices import Notices

__all__ = ["admits_read", "admits_write", "is_preflight", "register"]

log = logging.getLogger(__name__)

READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# What Sec-Fetch-Site says of a page of the node's own, and of a person who typed the URL.
_OWN_SITE: Final = frozenset({"same-origin", "none"})
READABLE: Final = "Access-Control-Allow-Origin"
SHOWN_MAX: Final = 100  # characters of an origin


def admits_write(access: Access, given: Credentials) -> bool:
    """Whether a publish, as its head tells, may be answered in place."""
    host = access.hosts.served(given.host)
    if host is None:
        return False
    origin = given.origin
    return not origin or access.origins.may_write(origin, host, by_cookie=_by_cookie(given))


def admits_read(access: Access, given: Credentials, notices: Notices, client: str) -> bool:
    """The same of a stream, whose page may be one that cannot read it: that is logged."""
    host = access.hosts.served(given.host)
    if host is None:
        return False
    if given.origin and not _may_read(access, given.origin, host):
        _note_reader(notices, client, access, given.origin, host)
    return True


def register(app: QuartTrio, access: Access, notices: Notices) -> None:
    """Have ``app`` refuse what a page may not ask for, before anything else is looked at."""

    async def check() -> None:
        try:
            g.host = _check_host(access)
        except RequestError as error:
            what = "refused a host that is not served reason=%r"
            notices.warn(log, _client(), what, error.detail)
            raise
        try:
            _check_origin(access, g.host)
        except RequestError as error:
            origin = request.headers.get("Origin", "")[:SHOWN_MAX]
            what = "refused a page of another origin origin=%r reason=%r"
            notices.warn(log, _client(), what, origin, error.detail)
            raise
        g.let_in = True

    async def note(response: Response) -> Response:
        origin = request.headers.get("Origin", "")
        unreadable = READABLE not in response.headers and g.get("let_in")
        if origin and unreadable and not access.origins.is_own(origin, g.host):
            _note_reader(notices, _client(), access, origin, g.host)
        return response

    app.before_request(check)
    app.after_request(note)


def _check_host(access: Access) -> Host | None:
    """The host that is asked; None if none is named, as HTTP/1.0 allows and no browser does.

    Raises ``unknown_host``, ``malformed_request``.
    """
    named = request.headers.getlist("Host")  # more than one, the door has refused
    if request.http_version == "1.0" and named == [""]:
        return None
    host = None
    for text in named:
        host = access.hosts.served(text)
        if host is None:
            raise access.hosts.unknown(text)
    return host


def _check_origin(access: Access, host: Host | None) -> None:
    """Raises ``forbidden``, ``malformed_request``."""
    headers = request.headers
    origins = headers.getlist("Origin")
    if len(origins) > 1:
        raise RequestError("malformed_request", "Origin is given twice; give it once.")
    origin = origins[0] if origins else ""
    if request.method == "OPTIONS":
        if is_preflight() and not access.origins.may_read(origin):
            raise RequestError(
                "forbidden", access.origins.foreign_page(origin, host), reason="origin"
            )
    elif request.method not in READS:
        cookies = "; ".join(headers.getlist("Cookie"))
        given = Credentials(headers.get("Authorization", ""), cookies, origin)
        _check_write(access, given, host)


def _check_write(access: Access, given: Credentials, host: Host | None) -> None:
    origin, by_cookie = given.origin, _by_cookie(given)
    if origin:
        allowed = access.origins.may_write(origin, host, by_cookie=by_cookie)
    else:  # no page; but one whose browser was made to leave the origin out is none of ours
        allowed = request.headers.get("Sec-Fetch-Site", "none").strip() in _OWN_SITE
    if not allowed:
        detail = access.origins.foreign_page(origin, host, by_cookie=by_cookie)
        raise RequestError("forbidden", detail, reason="origin")


def is_preflight() -> bool:
    """A browser asks what a page of another origin may do (Fetch 3.3.5)."""
    headers = request.headers
    return "Origin" in headers and "Access-Control-Request-Method" in headers


def _by_cookie(given: Credentials) -> bool:
    return COOKIE in given.cookie and not given.authorization


def _may_read(access: Access, origin: str, host: Host) -> bool:
    return access.origins.may_read(origin) or access.origins.is_own(origin, host)


def _client() -> str:
    return address_key(request.remote_addr or "")


def _note_reader(
    notices: Notices, client: str, access: Access, origin: str, host: Host | None
) -> None:
    what = "a page of another origin cannot read answers origin=%r remedy=%r"
    notices.warn(log, client, what, origin[:SHOWN_MAX], access.origins.remedy(origin, host))
