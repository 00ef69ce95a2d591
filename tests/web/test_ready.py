"""What /readyz tells of a node that is not ready, and to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from repl_broker.config import Config
from repl_broker.readiness import IN_GENERAL, REMEDIES
from repl_broker.web.app import create_app
from tests.nodes import configured, running_node
from tests.signing import SECRET, bearer, token

NARROW: Final = bearer(token(("news",), sub="bob"))
ADMIN: Final = bearer(token(admin=True, sub="alice"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    return configured(auth={"mode": "jwt", "secret_file": secret})


def test_each_reason_has_a_general_text() -> None:
    assert IN_GENERAL.keys() == REMEDIES.keys()


@pytest.mark.parametrize(
    ("headers", "whole"),
    [(ADMIN, True), (NARROW, False), ({}, False), (bearer("forged"), False)],
)
async def test_only_an_administrator_hears_why_a_node_is_not_ready_in_particular(
    config: Config, headers: dict[str, str], whole: bool
) -> None:
    async with running_node(config=config) as node:
        node.replica.disowned = "n7 of 10.1.2.3 says that it has 12,345 bytes"
        node.replica._is_copy = True
        app = create_app(node.broker, config, {})
        answer = await app.test_client().get("/readyz", headers=headers)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        found = await answer.get_json()
        assert found["code"] == "older_copy"
        assert [each["code"] for each in found["reasons"]] == ["older_copy", "no_leader"]
        text = await answer.get_data(as_text=True)
        own = repr(node.replica.node_id)[1:-1]
        assert whole == ("12,345" in text) == ("n7" in text) == (f"node '{own}'" in text)
        assert whole != (IN_GENERAL["older_copy"] in found["detail"])


async def test_without_tokens_everyone_hears_why_a_node_is_not_ready() -> None:
    async with running_node() as node:
        node.replica.disowned = "n7 says so"
        app = create_app(node.broker, Config(), {})
        found = await (await app.test_client().get("/readyz")).get_json()
        assert "n7 says so" in found["detail"]
        node.broker.leaving = True
        found = await (await app.test_client().get("/readyz")).get_json()
        assert (found["code"], found["reason"]) == ("shutting_down", "draining")


@pytest.mark.parametrize(("headers", "whole"), [(ADMIN, True), ({}, False)])
async def test_a_node_that_stops_says_so_first_and_gives_all_other_reasons(
    config: Config, headers: dict[str, str], whole: bool
) -> None:
    async with running_node(config=config) as node:
        node.replica.disowned = "n7 says so"
        for flag in ("leaving", "draining"):
            setattr(node.broker, flag, True)
            client = create_app(node.broker, config, {}).test_client()
            found = await (await client.get("/readyz", headers=headers)).get_json()
            assert [each["code"] for each in found["reasons"]] == ["shutting_down", "no_leader"]
            assert (found["code"], found["detail"]) == tuple(found["reasons"][0].values())
            assert ("n7" in str(found)) == whole
            assert found.get("reason") == ("draining" if flag == "leaving" else None)
            shown = await node.broker.describe_cluster()
            assert [each["code"] for each in shown["reasons"]] == ["shutting_down", "no_leader"]
