"""Which hosts a node serves: what a request may name in ``Host``.

A web page may ask any name that leads to this machine, and a name's owner decides
where it leads. So a page of ``evil.example`` can have that name point to 127.0.0.1,
and talk to a node there as if it was its own server: same origin, no CORS (DNS
rebinding). What gives it away is the ``Host`` that its browser sends. So a node
serves, whoever asks for whatever,

    localhost, *.localhost      nobody can have them lead elsewhere (RFC 6761 6.3)
    an IP address               it is not looked up, so nobody can have it lead elsewhere
    its own names               of [http] public_url and bind, and of what its peers are told
    [http] hosts                what the operator lists, or "*" for all

and no other, unless ``[auth] mode = "jwt"``, no hosts are listed, and nothing is granted to
whoever has no token: then a page from nowhere has none, and its cookies are those of another
name.

A name counts with any port, because it is the name that leads somewhere, and tunnels
and proxies change ports; a listed ``host:port`` counts with that port alone.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from repl_broker.config import Config, read_host
from repl_broker.errors import RequestError

__all__ = ["Host", "Hosts", "parse_host"]

ANY: Final = "*"
LOOPBACK_NAME: Final = "localhost"
DEFAULT_PORTS: Final = (80, 443)
KNOWN_MAX: Final = 1024  # fields that are remembered
FIELD_MAX: Final = 300  # characters; no name in DNS is longer than 253
SHOWN_MAX: Final = 100  # characters of a name that is not served


class Host(NamedTuple):
    """Where a request says that it goes. The name is in lower case, an IPv6 address in brackets."""

    name: str
    port: int | None  # None: the default one of a scheme that is not known here

    @property
    def ports(self) -> tuple[int, ...]:
        """Those that may be meant."""
        return DEFAULT_PORTS if self.port is None else (self.port,)

    @property
    def is_address(self) -> bool:
        """An IP address in its one usual form; ``127.1`` and ``0x7f.0.0.1`` are none."""
        text = self.name
        try:
            if text.startswith("["):
                ipaddress.IPv6Address(text[1:-1])
            else:
                ipaddress.IPv4Address(text)
        except ValueError:
            return False
        return True


def parse_host(text: str) -> Host | None:
    """Read a ``Host`` field, or the authority of a URL; None if it is neither."""
    found = read_host(text) if len(text) <= FIELD_MAX else None
    return None if found is None else Host(*found)


class Hosts:
    """The hosts that a node with this configuration serves."""

    def __init__(self, config: Config) -> None:
        http = config.http
        auth = config.auth
        # A page whose name was pointed here has no token; but it needs none for what anyone may do.
        needs_token = auth.mode == "jwt" and not (
            auth.anonymous.publish or auth.anonymous.subscribe
        )
        self._any = ANY in http.hosts or (needs_token and not http.hosts)
        self._own = {Host(name, None) for name in _own_names(config)}  # None: with any port
        for name, port in filter(None, map(read_host, http.hosts)):
            self._own.add(Host(_less_root(name), port))
        self._has_public = http.public_url is not None
        self._served: dict[str, Host | None] = {}

    def served(self, text: str) -> Host | None:
        """The host that a ``Host`` field names, if the node serves it."""
        try:
            return self._served[text]
        except KeyError:
            pass
        if len(text) > FIELD_MAX:
            return None
        if len(self._served) >= KNOWN_MAX:
            self._served.clear()
        host = parse_host(text)
        found = host if host is not None and self._serves(host) else None
        self._served[text] = found
        return found

    def unknown(self, text: str) -> RequestError:
        """What is told of a ``Host`` field with which nothing is served."""
        shown = text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."
        host = parse_host(text)
        if host is None:
            detail = f"Host is {shown!r}; it must name one host, with a port or without."
            return RequestError("malformed_request", detail)
        detail = f"This node does not serve the host {shown!r}. {self._remedy(host)}"
        return RequestError("unknown_host", detail)

    def _remedy(self, host: Host) -> str:
        name = _less_root(host.name)
        listed = sorted(str(own.port) for own in self._own if own.name == name)
        if listed:
            return (
                f"[http] hosts of its configuration lists that name with port {', '.join(listed)} "
                "alone. If any port should do, list the name without one."
            )
        if (address := _usual(name)) is not None:
            return f"An IP address is served in its usual form: ask {address}."
        also = "" if self._has_public else " or, if it is that of a proxy, set [http] public_url"
        return f"If it should, list it in [http] hosts of its configuration{also}."

    def _serves(self, host: Host) -> bool:
        if self._any or host.is_address:
            return True
        name = _less_root(host.name)
        return (
            name == LOOPBACK_NAME
            or name.endswith(f".{LOOPBACK_NAME}")
            or Host(name, None) in self._own
            # Who asks for a default port does not name it.
            or any(Host(name, port) in self._own for port in host.ports)
        )


def _usual(name: str) -> str | None:
    """The IPv4 address that many read ``127.1`` or ``0x7f.0.0.1`` as; None of a name."""
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except (OSError, UnicodeError):
        return None


def _own_names(config: Config) -> Iterator[str]:
    """Names by which the operator, or a peer, may send clients here."""
    http = config.http
    yield _less_root(http.bind.host.lower())
    if config.raft.advertise is not None:  # where ``bind`` is every address: see own_record
        yield _less_root(config.raft.advertise.host.lower())
    if http.public_url is not None:
        yield _less_root(urlsplit(http.public_url).hostname or "")


def _less_root(name: str) -> str:
    """Without the dot that ends a name which is whole."""
    return name.removesuffix(".")
