"""The access log: a line a request, without what may be secret."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import NoReturn, cast

import pytest
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from repl_broker.config import Config
from repl_broker.web.access import AccessLog
from repl_broker.web.app import create_app
from tests.nodes import Node, configured
from tests.web.doors import publish, serving
from tests.web.test_door import connect
from tests.web.test_streams import get


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "repl_broker.web.access")
    return caplog


@pytest.mark.parametrize("on", [True, False])
async def test_a_request_is_logged_if_asked_for(
    node: Node, log: pytest.LogCaptureFixture, on: bool
) -> None:
    config = Config()
    config = replace(config, http=replace(config.http, access_log=on))
    app = create_app(node.broker, config, {})
    await app.test_client().get("/v1/topics/a%20b?token=secret")
    lines = [record.getMessage() for record in log.records]
    if not on:
        assert lines == []
        return
    (line,) = lines
    assert "secret" not in line
    assert re.fullmatch(
        r"request method=GET path=\S+ status=400 seconds=\d\.\d{4} peer=\S+ client=\S+", line
    )


async def test_a_client_that_leaves_before_the_answer_has_no_status(
    log: pytest.LogCaptureFixture,
) -> None:
    async def never(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await trio.sleep_forever()

    scope = {"type": "http", "method": "GET", "raw_path": b"/v1/events", "client": None}
    with trio.move_on_after(0):
        await AccessLog(never)(cast(Scope, scope), _receive, _send)
    (line,) = (record.getMessage() for record in log.records)
    assert "status=- " in line
    assert line.endswith("peer=unknown client=unknown")


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_line_has_the_client_that_a_trusted_proxy_names_on_every_way(
    log: pytest.LogCaptureFixture, trusted: bool
) -> None:
    """Publishes, streams and refusals in place, and what Quart answers."""
    http: dict[str, object] = {"access_log": True}
    if trusted:
        http["trusted_proxies"] = ("127.0.0.1",)
    forwarded = "X-Forwarded-For: 6.6.6.6, 192.0.2.7"
    async with serving(config=configured(http=http)) as served, connect(served.door) as client:
        for request in (
            publish(b"1", forwarded),
            publish(b"{", forwarded),
            get("/v1/topics", forwarded),
            get("/v1/events?topic=a..b", forwarded),
        ):
            await client.send(request)
            await client.receive_answer()
        await client.send(get("/v1/events?topic=chat", forwarded))
        await client._read_until(b"event: subscribed")
        served.door.stop(grace_seconds=0.05)
        with pytest.raises(trio.BrokenResourceError):
            await client.stream.receive_some()
    lines = [record.getMessage() for record in log.records]
    assert len(lines) == 5
    for line in lines:
        assert re.search(r" peer=127\.0\.0\.1:\d+ ", line), line
        assert line.endswith(f" client={'192.0.2.7' if trusted else '127.0.0.1'}"), line


async def test_what_is_not_http_passes() -> None:
    seen = []

    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        seen.append(scope["type"])

    await AccessLog(app)(cast(Scope, {"type": "lifespan"}), _receive, _send)
    assert seen == ["lifespan"]


async def _receive() -> NoReturn:
    raise AssertionError


async def _send(message: object) -> None:
    raise AssertionError
