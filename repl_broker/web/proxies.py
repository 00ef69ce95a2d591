"""Whose request it is that a proxy passes on: by ``X-Forwarded-For``, from those alone
that ``[http] trusted_proxies`` names.

Shares and rates without a token are an address's. Behind a proxy all connections come
from its own, and each proxy writes behind what is there where the connection to *it* came
from. So the field is read from its end on, as far as proxies that are trusted have
written it: the first address that is none of theirs is the client's. What stands before
that is whatever the client liked to send. Where nothing can be read, or nobody else is
named, the request counts as the proxy's own: a share that it has with others, never
one that nobody else has.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from repl_broker.admission import address_key

__all__ = ["FORWARDED_FOR", "Proxies"]

FORWARDED_FOR: Final = b"x-forwarded-for"
_HOPS_MAX: Final = 32  # that are read
# Some proxies write the port as well: 192.0.2.1:4711, [2001:db8::1]:4711.
_ELEMENT = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15}))(?::[0-9]{1,5})?")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """Those that are trusted."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._networks = tuple(map(ipaddress.ip_network, networks))
        self._trusts = lru_cache(1024)(self._find)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, host: str) -> bool:
        """Whether a connection from there is a proxy's."""
        return bool(self._networks) and self._trusts(host)

    def key(self, host: str) -> str:
        """Whose a connection from ``host`` is: its ``address_key``; a proxy's is its own, for its
        neighbours in a network are not trusted with it."""
        address = _read(host.partition("%")[0]) if self.trusts(host) else None
        return address_key(host) if address is None else str(address)

    def client(self, forwarded: str | None, host: str) -> str:
        """The client (``key``) of a request from ``host``; ``forwarded`` is what all its
        X-Forwarded-For say, joined by commas in their order."""
        if not self.trusts(host):
            return address_key(host)
        if forwarded is None:
            return self.key(host)
        elements = forwarded.rsplit(",", _HOPS_MAX)
        for element in reversed(elements[-_HOPS_MAX:]):
            address = _read(element.strip(" \t"))
            if address is None:
                break
            if not self._trusts(str(address)):
                return address_key(str(address))
        return self.key(host)

    def _find(self, host: str) -> bool:
        address = _read(host.partition("%")[0])
        return address is not None and any(address in network for network in self._networks)


def _read(text: str) -> _Address | None:
    found = _ELEMENT.fullmatch(text)
    try:
        address = ipaddress.ip_address(text if found is None else found[1] or found[2])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address  # of a socket that serves both families
    return address
