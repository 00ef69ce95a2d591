"""A whole node over HTTPS: streams, publishes, and new certificates while they go on."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trio
import trustme

from repl_broker import daemon
from repl_broker.config import Address
from repl_broker.daemon import Running
from repl_broker.errors import ConfigError
from tests.authority import DAY, LOOPBACK, NOW, http_config, write

TEST_SECONDS_MAX = 15


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A node with the files that ``write`` has made in ``tmp_path``."""
    files = {"tls_certificate": tmp_path / "node.pem", "tls_key": tmp_path / "node.key"}
    config = http_config(files)
    config = replace(
        config,
        node=replace(config.node, data_dir=tmp_path / "data"),
        http=replace(config.http, bind=Address(LOOPBACK, 0)),
    )
    stop = trio.Event()
    with trio.fail_after(TEST_SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(partial(daemon.serve, config, stop))
            stop.set()


def client_of(node: Running, authority: trustme.CA) -> httpx.AsyncClient:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return httpx.AsyncClient(base_url=node.url, verify=trust, trust_env=False)


async def stream_of(
    node: Running, authority: trustme.CA, topic: str
) -> trio.SSLStream[trio.abc.Stream]:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    tcp = await trio.open_tcp_stream(LOOPBACK, urlsplit(node.url).port or 0)
    stream: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(tcp, trust, server_hostname=LOOPBACK)
    await stream.send_all(
        b"GET /v1/events?topic=%b HTTP/1.1\r\nHost: [::1]\r\n\r\n" % topic.encode()
    )
    return stream


async def read_until(stream: trio.SSLStream[trio.abc.Stream], text: str) -> None:
    found = b""
    while text.encode() not in found:
        data = await stream.receive_some()
        assert data, "the stream has ended"
        found += data


async def test_a_stream_goes_on_over_new_certificates_and_over_bad_ones(tmp_path: Path) -> None:
    """It was begun under the first; the second is of another CA, the third of no use."""
    first, second = trustme.CA(), trustme.CA()
    config = http_config(write(tmp_path, first))
    async with running(tmp_path) as node, await stream_of(node, first, "t") as stream:
        assert node.url.startswith("https://")
        await read_until(stream, "event: subscribed")
        write(tmp_path, second)
        node.certificates.reload(config)
        with pytest.raises(httpx.ConnectError):  # it trusts the first CA alone
            async with client_of(node, first) as late:
                await late.get("/readyz")
        for number in range(2):
            async with client_of(node, second) as publisher:
                answer = await publisher.post("/v1/topics/t/messages", json=number)
            assert answer.status_code == 201
            await read_until(stream, f"id: {answer.json()['id']}\n")
            write(tmp_path, second, not_after=NOW - DAY)
            with pytest.raises(ConfigError, match="has expired; renew it"):
                node.certificates.reload(config)


@pytest.mark.parametrize("version", ["--tls-max 1.1", "--tls-max 1.0"])
async def test_a_node_refuses_old_versions_and_plain_http(tmp_path: Path, version: str) -> None:
    """By curl, which offers nothing newer and, at its lowest security level, all ciphers."""
    authority = trustme.CA()
    write(tmp_path, authority)
    async with running(tmp_path) as node:
        old = ["curl", "-sS", "-k", *version.split(), "--ciphers", "ALL:@SECLEVEL=0", node.url]
        done = await trio.run_process(old, check=False, capture_stderr=True)
        assert done.returncode == 35, "the handshake failed"
        assert b"alert protocol version" in done.stderr.lower()
        stream = await trio.open_tcp_stream(LOOPBACK, urlsplit(node.url).port or 0)
        async with stream:
            await stream.send_all(b"GET /readyz HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert b"HTTP" not in await stream.receive_some()
        async with client_of(node, authority) as client:
            assert (await client.get("/readyz")).status_code == 200


async def test_a_node_does_not_start_with_a_certificate_of_no_use(tmp_path: Path) -> None:
    write(tmp_path, trustme.CA(), not_after=NOW - DAY)
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="certificate has expired; renew")):
        async with running(tmp_path):
            raise AssertionError("it started")
