"""Whose share a request counts in that a proxy has passed on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl_broker.config import Config
from repl_broker.web.proxies import Proxies
from tests.web.doors import publish, serving
from tests.web.test_door import connect
from tests.web.test_limits import answers

PROXIES = Proxies(("10.0.0.0/8", "127.0.0.1", "2001:db8:1::/48"))


@pytest.mark.parametrize(
    ("host", "forwarded", "client"),
    [
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "192.0.2.7:4711", "192.0.2.7"),
        ("::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "2001:db8:2::1", "2001:db8:2::/64"),
        ("10.0.0.1", "[2001:db8:2::1]:4711", "2001:db8:2::/64"),
        ("2001:db8:1::5", "192.0.2.7", "192.0.2.7"),
        # The last that is none of the proxies': what stands before it is the client's own words.
        ("10.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "198.51.100.1, 192.0.2.7 ,\t10.0.0.9,10.0.0.8", "192.0.2.7"),
        ("10.0.0.1", "nonsense, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "1,2," * 5000 + "192.0.2.7", "192.0.2.7"),
        # Nobody is named who is no proxy, or it cannot be read: the proxy's own share.
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7, unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7, _hidden, 10.0.0.9", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7,", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.9", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7" + ", 10.0.0.9" * 40, "10.0.0.1"),
        ("10.0.0.1", "192.0.2.07", "10.0.0.1"),
        # From others it means nothing.
        ("192.0.2.1", "192.0.2.7", "192.0.2.1"),
        ("2001:db8:2::5", "192.0.2.7", "2001:db8:2::/64"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxys(
    host: str, forwarded: str | None, client: str
) -> None:
    assert PROXIES.client(forwarded, host) == client


def test_a_proxys_neighbours_in_its_network_are_neither_trusted_nor_of_its_row() -> None:
    proxies = Proxies(("2001:db8:1::9",))
    assert proxies.key("2001:db8:1::9") == "2001:db8:1::9"
    assert proxies.client(None, "2001:db8:1::9") == "2001:db8:1::9"
    assert proxies.key("2001:db8:1::bad") == "2001:db8:1::/64"
    assert proxies.client("192.0.2.7", "2001:db8:1::bad") == "2001:db8:1::/64"
    assert Proxies(("10.0.0.1",)).key("::ffff:10.0.0.1") == "10.0.0.1"


def test_without_trusted_proxies_every_request_counts_for_where_it_comes_from() -> None:
    assert Proxies().client("192.0.2.7", "127.0.0.1") == "127.0.0.1"
    assert not Proxies().trusts("127.0.0.1")


@pytest.mark.parametrize("in_place", [True, False], ids=["door", "Quart"])
async def test_a_rate_is_a_clients_behind_a_trusted_proxy_and_nobody_elses(in_place: bool) -> None:
    config = Config()
    config = replace(
        config,
        http=replace(config.http, trusted_proxies=("127.0.0.1",)),
        limits=replace(config.limits, publishes_per_second=1, publish_burst=1),
    )
    ann = ("X-Forwarded-For: 192.0.2.1",)
    spoofed = ("X-Forwarded-For: 192.0.2.3", "X-Forwarded-For: 192.0.2.1")
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as proxy:
        assert await answers(proxy, publish(b"1", *ann)) == [(201, "")]
        assert await answers(proxy, publish(b"1", *spoofed)) == [(429, "rate_limited")]
        assert await answers(proxy, publish(b"1", "X-Forwarded-For: 192.0.2.2")) == [(201, "")]
        async with connect(served.door, source="127.0.0.2") as direct:
            assert await answers(direct, publish(b"1", *ann)) == [(201, "")]
            assert await answers(direct, publish(b"1", "X-Forwarded-For: 192.0.2.9")) == [
                (429, "rate_limited")
            ]
