"""Below which path clients see the node, and so where its own references lead.

A proxy may show a node below a path: ``/realtime/docs`` is then ``/docs`` here. What
the node says of itself (``Location``, a problem's ``type``, a redirect, the server in its
description) must begin with that path, or it leads to whatever else the host has. The
path is that of ``[http] public_url``, or what ``X-Forwarded-Prefix`` says, if one of
``[http] trusted_proxies`` has sent it. From anybody else the field means nothing: what
it says would stand in answers that a cache may keep for others.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from repl_broker.config import HttpConfig, is_base_path
from repl_broker.trace import CURRENT
from repl_broker.web.proxies import Proxies

__all__ = ["FORWARDED_PREFIX", "Base", "base_here"]

FORWARDED_PREFIX: Final = b"x-forwarded-prefix"


class Base:
    """Tells for each request the path that comes before those of the node: ``/realtime``, or ""."""

    def __init__(self, http: HttpConfig | None = None) -> None:
        http = http or HttpConfig()
        self.path: Final = urlsplit(http.public_url or "").path.removesuffix("/")
        self.proxies: Final = Proxies(http.trusted_proxies)

    def of(self, given: str | None, host: str) -> str:
        """For a request from ``host``, of which the one field says what is ``given``."""
        if given is None or not self.proxies.trusts(host):
            return self.path
        path = given.removesuffix("/")
        return path if is_base_path(path) else self.path


def base_here() -> str:
    """The path before those of the node, for the request that is being answered here."""
    request = CURRENT.get()
    return "" if request is None else request.base
