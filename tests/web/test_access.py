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
from tests.nodes import Node


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
    assert re.fullmatch(r"request method=GET path=\S+ status=400 seconds=\d\.\d{4} peer=\S+", line)


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
    assert "peer=unknown" in line


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
