"""No route without a decision who may ask for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from quart import Response
from quart_trio import QuartTrio

from repl_broker.config import Config
from repl_broker.web.app import create_app
from repl_broker.web.guard import GUARD, RIGHTS, Right
from repl_broker.web.ui import PATH
from tests.nodes import configured, running_node
from tests.signing import SECRET

# Whoever asks: what the node says of itself, and the files of its pages.
OPEN: Final = {
    "/healthz", "/readyz", "/openapi.json", "/docs", "/client.js", "/client.d.ts",
    "/ui", "/ui/", "/ui/<path:name>", "/chat", "/chat/", "/chat/<path:name>",
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Config:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    return configured(auth={"mode": "jwt", "secret_file": secret})


def routes(app: QuartTrio) -> Iterator[tuple[str, str, str]]:
    """Method, rule, and a path that it matches."""
    for rule in app.url_map.iter_rules():
        path = rule.rule
        for name in rule.arguments:
            path = path.replace(f"<path:{name}>", "x").replace(f"<{name}>", "x")
        for method in sorted((rule.methods or set()) - {"OPTIONS"}):
            yield method, rule.rule, path


async def test_whoever_has_no_token_and_no_grant_gets_nothing_but_what_is_open(
    config: Config, tmp_path: Path
) -> None:
    async with running_node(config=config) as node:
        app = create_app(node.broker, config, {"/chat": tmp_path})
        asked = list(routes(app))
        assert {rule for _, rule, _ in asked} >= OPEN
        for method, rule, path in asked:
            query = "?topic=x" if rule == "/v1/events" else ""
            answer = await app.test_client().open(path + query, method=method)
            refused = answer.status_code == 401
            assert refused == (rule not in OPEN), (method, rule, answer.status_code)
    assert len(asked) > len(RIGHTS)
    assert ("GET", f"{PATH}/feed", f"{PATH}/feed") in asked


@pytest.mark.parametrize("tokens", [True, False])
async def test_a_route_that_nobody_has_decided_on_is_an_error(
    config: Config, caplog: pytest.LogCaptureFixture, tokens: bool
) -> None:
    async def view() -> Response:
        return Response("secret")

    config = config if tokens else Config()
    async with running_node(config=config) as node:
        app = create_app(node.broker, config, {})
        app.add_url_rule("/new", "new", view)
        app.extensions[GUARD].route("GET", "/known", Right.OPEN, view)
        with caplog.at_level(logging.ERROR):
            answer = await app.test_client().get("/new")
        assert answer.status_code == 500
        assert b"secret" not in await answer.get_data()
        assert "nobody has decided who may ask for /new" in caplog.text
        assert (await app.test_client().get("/known")).status_code == 200
