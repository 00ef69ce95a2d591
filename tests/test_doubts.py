"""What is warned of in a configuration: values that are allowed and hardly meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from repl_broker.config import Config, load, replace_values
from repl_broker.doubts import doubts


def with_proxies(*networks: str) -> list[str]:
    return doubts(replace_values(Config(), {"http.trusted_proxies": networks}))


def test_the_defaults_and_the_example_are_beyond_doubt() -> None:
    assert doubts(Config()) == []
    assert doubts(load(Path(__file__).parents[1] / "cluster.toml.example")) == []


@pytest.mark.parametrize(
    ("networks", "named"),
    [
        (("0.0.0.0/0",), "0.0.0.0/0, every IPv4 address:"),
        (("::/0",), "::/0, every IPv6 address:"),
        (("10.0.0.1", "0.0.0.0/0"), "0.0.0.0/0, every IPv4 address:"),
        (("0.0.0.0/1", "128.0.0.0/1"), "0.0.0.0/0, every IPv4 address:"),
        (("64.0.0.0/7",), "64.0.0.0/7, a large part of all IPv4 addresses:"),
        (("2000::/3",), "2000::/3, a large part of all IPv6 addresses:"),
    ],
)
def test_a_network_of_proxies_in_which_clients_are_is_warned_of(
    networks: tuple[str, ...], named: str
) -> None:
    (found,) = with_proxies(*networks)
    assert found.startswith(f"http.trusted_proxies has {named}")
    assert found.endswith("name the addresses of the proxies alone")


def test_each_family_of_addresses_has_its_own_warning() -> None:
    assert len(with_proxies("0.0.0.0/0", "::/0")) == 2


def test_the_networks_of_organisations_are_no_doubt() -> None:
    assert with_proxies("127.0.0.1", "10.0.0.0/8", "172.16.0.0/12", "fc00::/7", "::1") == []


SHARES = (
    ("topics_per_client", "topics"),
    ("storage_bytes_per_client", "storage_bytes"),
    ("idempotency_keys_per_client", "idempotency_keys"),
    ("streams_per_client", "connections"),
    ("connections_per_address", "connections"),
)


@pytest.mark.parametrize(("share", "total"), SHARES)
@pytest.mark.parametrize(
    ("own", "whole", "is_doubted"),
    [(5001, 5000, True), (5000, 5000, True), (4999, 5000, False), (0, 5000, False)],
)
def test_a_share_that_is_all_there_is_is_warned_of_with_both_values(
    share: str, total: str, own: int, whole: int, is_doubted: bool
) -> None:
    config = replace_values(Config(), {f"limits.{share}": own, f"limits.{total}": whole})
    found = doubts(config)
    if not is_doubted:
        assert found == []
        return
    (line,) = found
    assert f"limits.{share} is {own:,}, " in line
    assert f" limits.{total} (5,000): " in line
    assert line.endswith(f"set it lower, or raise limits.{total}")


def test_nothing_is_above_a_total_without_a_limit() -> None:
    limits = replace(Config().limits, topics=0, topics_per_client=10**6)
    assert doubts(replace(Config(), limits=limits)) == []


def test_every_share_of_a_client_is_looked_at() -> None:
    fields = {each for each in Config().limits.__dataclass_fields__ if "_per_" in each}
    rates = {each for each in fields if each.endswith("_per_second")}  # they have no total
    assert fields - rates == {share for share, _ in SHARES}
