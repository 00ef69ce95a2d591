"""What a configuration allows and hardly anybody means: it is warned of, not refused.

There are places where each is right, behind a firewall or for a while; and a node that
ran with one yesterday is to start with it today.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from repl_broker.config import Config

__all__ = ["doubts"]

# Of a network of proxies. No organisation's own network is larger than 10.0.0.0/8, or fc00::/7.
PREFIX_MIN: Final = {4: 8, 6: 7}


def doubts(config: Config) -> list[str]:
    """One line each, which names the values and what to do."""
    return [*_proxies(config), *_shares(config)]


def _proxies(config: Config) -> Iterator[str]:
    given = [*map(ipaddress.ip_network, config.http.trusted_proxies)]
    # Two halves are the whole.
    whole: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
        *ipaddress.collapse_addresses(n for n in given if isinstance(n, ipaddress.IPv4Network)),
        *ipaddress.collapse_addresses(n for n in given if isinstance(n, ipaddress.IPv6Network)),
    ]
    for network in whole:
        if network.prefixlen < PREFIX_MIN[network.version]:
            words = "every IPv" if not network.prefixlen else "a large part of all IPv"
            yield (
                f"http.trusted_proxies has {network}, {words}{network.version} "
                f"address{'' if not network.prefixlen else 'es'}: whoever connects from there is "
                "taken for a proxy, and says itself, by X-Forwarded-For, whose share and rate its "
                "requests count in; name the addresses of the proxies alone"
            )


def _shares(config: Config) -> Iterator[str]:
    limits = config.limits
    for share, own, total, whole in (
        ("topics_per_client", limits.topics_per_client, "topics", limits.topics),
        (
            *("storage_bytes_per_client", limits.storage_bytes_per_client),
            *("storage_bytes", limits.storage_bytes),
        ),
        (
            *("idempotency_keys_per_client", limits.idempotency_keys_per_client),
            *("idempotency_keys", limits.idempotency_keys),
        ),
        ("streams_per_client", limits.streams_per_client, "connections", limits.connections),
        (
            *("connections_per_address", limits.connections_per_address),
            *("connections", limits.connections),
        ),
    ):
        if own and whole and own >= whole:  # 0: no limit, which is what the key is for
            than = "more than" if own > whole else "all of"
            yield (
                f"limits.{share} is {own:,}, {than} limits.{total} ({whole:,}): one client alone "
                f"can use up what there is for all; set it lower, or raise limits.{total}"
            )
