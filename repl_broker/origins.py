"""Which web pages may read a node's answers, and write: origins (RFC 6454).

A browser says with ``Origin`` which page a request comes from, with each that writes
and with each to another origin; no page can change that. What is no browser, says none.

    read    an origin of [http] cors_origins; a page of the node's own needs no leave
    write   … or one of the node's own: of [http] public_url, or of the host that is asked

``*`` in cors_origins is all pages, but not for a request that the cookie speaks for,
because a browser adds that by itself. An origin that is not named (``null``: a
sandboxed frame, a file) is one of those all, and nobody's else.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from repl_broker.config import Config, is_origin
from repl_broker.hosts import Host, parse_host

__all__ = ["COOKIE", "Origins"]

COOKIE: Final = "repl_broker_token"
ANY: Final = "*"
NAMELESS: Final = "null"  # the origin of a page that has none
SHOWN_MAX: Final = 100  # characters of an origin that is refused
ORIGIN_MAX: Final = 320  # characters
KNOWN_MAX: Final = 1024  # pairs of an origin and a host that are remembered
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ORIGIN: Final = re.compile("(https?)://(.+)", re.IGNORECASE)


class Origins:
    """The origins that a node with this configuration knows."""

    def __init__(self, config: Config) -> None:
        self.configured: Final = config.http.cors_origins
        self._any = ANY in config.http.cors_origins
        self._listed = frozenset(config.http.cors_origins) - {ANY}
        self._public = _public_origin(config)
        # A proxy before the node may end TLS: then it is not known how a page was loaded.
        self._is_tls = config.http.tls_certificate is not None
        self._own: dict[tuple[str, Host | None], bool] = {}

    def may_read(self, origin: str) -> bool:
        """Whether pages of ``origin``, which is another than the node's own, may read answers."""
        return self._any or origin in self._listed

    def may_write(self, origin: str, host: Host | None, *, by_cookie: bool) -> bool:
        """Whether pages of ``origin`` may write to ``host``, which is one that the node serves.

        ``by_cookie``: it is the cookie that says what the request may do.
        """
        if origin in self._listed or (self._any and not by_cookie):
            return True
        return self.is_own(origin, host)

    def is_own(self, origin: str, host: Host | None) -> bool:
        """Whether it is the origin of this node's pages, as they are loaded from ``host``."""
        if len(origin) > ORIGIN_MAX:
            return False
        known = self._own.get((origin, host))
        if known is None:
            if len(self._own) >= KNOWN_MAX:
                self._own.clear()
            known = self._own[origin, host] = self._compare(origin, host)
        return known

    def scheme(self, host: Host) -> str:
        """By which clients come to ``host``, as far as is known here."""
        if self._public is not None and host.name == self._public[1]:
            return self._public[0]
        return "https" if self._is_tls else "http"

    def foreign_page(self, origin: str, host: Host | None, *, by_cookie: bool = False) -> str:
        """What is told of an origin whose pages may not write."""
        shown = origin if len(origin) <= SHOWN_MAX else f"{origin[: SHOWN_MAX - 3]}..."
        whence = f"a page of {shown!r}" if origin else "no page that is named (Origin)"
        writes = f"A write with the cookie {COOKIE}" if by_cookie else "A write"
        remedy = self.remedy(origin, host, by_cookie=by_cookie)
        return (
            f"{writes} must come from a page of this node, or of an origin in [http] cors_origins "
            f"of the configuration; this one is from {whence}. {remedy[0].upper()}{remedy[1:]}."
        )

    def remedy(self, origin: str, host: Host | None, *, by_cookie: bool = False) -> str:
        """What to do so that pages of ``origin`` may; what was just tried has not helped."""
        if not origin:
            header = " or send the token in Authorization" if by_cookie else ""
            return f"have the browser say which page it is, by Origin,{header}".rstrip(",")
        if origin == NAMELESS:
            return (
                "serve the page over HTTP: a file, or a frame with the attribute sandbox, has no "
                "origin that could be listed"
            )
        if not is_origin(origin) or origin == ANY:
            return (
                "serve the page over HTTP, as [http] cors_origins lists none but http and https "
                "origins, as browsers write them"
            )
        page = urlsplit(origin)
        if self._public is not None and self._public[1] == parse_name(page.netloc):
            return (
                "open the page by the URL in [http] public_url, or list it in [http] cors_origins"
            )
        if host is not None and host.name == parse_name(page.netloc):
            return (
                "list it in [http] cors_origins; or, if it is the node's own page behind a proxy, "
                "set [http] public_url, and have the proxy pass Host on with its port"
            )
        if by_cookie and self._any:
            return "list it by name in [http] cors_origins: for the cookie, * does not count"
        return "list it in [http] cors_origins"

    def _compare(self, origin: str, host: Host | None) -> bool:
        found = _ORIGIN.fullmatch(origin)
        page = None if found is None else _place(found[1].lower(), found[2])
        if page is None:
            return False
        if page == self._public:
            return True
        if host is None or (self._is_tls and page[0] != "https"):
            return False
        if self._public is not None:
            # By a proxy that passes the public host on, with its port or without, it is the
            # public origin that pages have, and no other that differs in scheme or port.
            _, name, port = self._public
            if host.name == name and host.port in (None, port):
                return False
        return page == _place(page[0], host)


def parse_name(authority: str) -> str:
    host = parse_host(authority)
    return "" if host is None else host.name


def _place(scheme: str, authority: str | Host) -> tuple[str, str, int] | None:
    """Scheme, host and port of an origin; the port is named, whichever it is."""
    host = parse_host(authority) if isinstance(authority, str) else authority
    return None if host is None else (scheme, host.name, host.port or DEFAULT_PORTS[scheme])


def _public_origin(config: Config) -> tuple[str, str, int] | None:
    if config.http.public_url is None:
        return None
    url = urlsplit(config.http.public_url)
    return _place(url.scheme, url.netloc)
