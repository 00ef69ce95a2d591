"""Each change that is refused has its line in the audit, whoever refuses it and when."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from quart_trio import QuartTrio

from repl_broker import logs
from repl_broker.config import Config, LogConfig
from repl_broker.web.app import create_app
from repl_broker.web.guard import GUARD, Right
from repl_broker.web.refused import ACTIONS
from tests.nodes import configured, running_node
from tests.signing import SECRET, bearer, token

TARGETS: Final = {"topic": "orders", "subject:sub": "mallory", "member": "n3"}
NARROW: Final = bearer(token(("news",), sub="bob"))
ADMIN: Final = bearer(token(admin=True, sub="alice"))


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    made = io.StringIO()
    logs.configure(LogConfig(format="json"), made)
    yield made
    logging.captureWarnings(False)
    logging.getLogger(logs.AUDIT).setLevel(logging.NOTSET)
    root.handlers[:], root.level, logging.raiseExceptions = before


@pytest.fixture
def config(tmp_path: Path) -> Config:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    return configured(auth={"mode": "jwt", "secret_file": secret})


def audit(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines since the last time."""
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    stream.seek(0)
    stream.truncate()
    return [line for line in lines if line["logger"] == logs.AUDIT]


def path_of(rule: str) -> tuple[str, str]:
    """A path of the rule, and what it names."""
    for name, value in TARGETS.items():
        if f"<{name}>" in rule:
            return rule.replace(f"<{name}>", value), value
    return rule, ""


async def code_of(
    app: QuartTrio, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> str:
    typed = {"Content-Type": "application/json"} if body else {}
    asked = app.test_client().open(path, method=method, headers=headers | typed, data=body)
    found = await (await asked).get_json()
    return str(found["code"])


async def test_the_audit_is_about_each_route_by_which_an_administrator_changes_something(
    config: Config,
) -> None:
    async with running_node(config=config) as node:
        app = create_app(node.broker, config, {})
        rights = app.extensions[GUARD]._rights
        writes = {
            (method, rule.rule)
            for rule in app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
            if rights[rule.endpoint] is Right.ADMIN
        }
    assert writes == ACTIONS.keys()


@pytest.mark.parametrize(
    ("headers", "subject", "code"),
    [
        (NARROW, "bob", "forbidden"),
        ({}, "anyone", "unauthenticated"),
        (bearer("forged"), "unknown", "unauthenticated"),
        (ADMIN | {"Origin": "https://evil.example"}, "alice", "forbidden"),
        (ADMIN | {"Authorization": "Basic x"}, "unknown", "unauthenticated"),
    ],
)
async def test_whoever_may_not_change_a_thing_has_a_line_for_each_try(
    config: Config, stream: io.StringIO, headers: dict[str, str], subject: str, code: str
) -> None:
    async with running_node(config=config) as node:
        app = create_app(node.broker, config, {})
        for (method, rule), action in ACTIONS.items():
            path, target = path_of(rule)
            trace = {"Traceparent": f"00-{'ab' * 16}-00f067aa0ba902b7-01"}
            assert await code_of(app, method, path, headers | trace) == code, rule
            (line,) = audit(stream)
            wanted = target or ("unread" if method == "POST" else "")
            names = ("action", "target", "subject", "outcome", "request_id")
            assert tuple(line[name] for name in names) == (
                *(action, wanted, subject, code, "ab" * 16),
            )
            assert line["address"] != "unknown"
            assert line["level"] == "warning"


async def test_a_line_tells_the_filter_and_that_it_was_forced(
    config: Config, stream: io.StringIO
) -> None:
    async with running_node(config=config) as node:
        app = create_app(node.broker, config, {})
        await code_of(app, "DELETE", "/v1/topics?match=orders.>", NARROW)
        assert audit(stream)[0]["target"] == "orders.>"
        for headers, subject, outcome in (
            (NARROW, "bob", "forbidden"),
            (ADMIN, "alice", "single_node"),
        ):
            path = "/v1/cluster/members/n3"
            assert await code_of(app, "DELETE", f"{path}?force=true", headers) == outcome
            (line,) = audit(stream)
            assert (line["target"], line["subject"], line["forced"]) == ("n3", subject, True)
            assert "forced=True" in line["message"]
            assert await code_of(app, "DELETE", path, headers) == outcome
            assert "forced" not in audit(stream)[0]


async def test_what_cannot_be_read_has_a_line_and_what_the_broker_tells_has_one_only(
    config: Config, stream: io.StringIO
) -> None:
    async with running_node(config=config) as node:
        app = create_app(node.broker, config, {})
        for method, path, body, code in (
            ("DELETE", "/v1/topics", b"", "invalid_parameter"),
            ("DELETE", "/v1/topics/orders?x=1", b"", "invalid_parameter"),
            ("DELETE", "/v1/cluster/members/n3?force=yes", b"", "invalid_parameter"),
            ("POST", "/v1/topics", b"{", "invalid_json"),
            ("POST", "/v1/cluster/leader", b'{"id":"n2"}', "single_node"),
            ("DELETE", "/v1/topics/orders", b"", "topic_not_found"),
        ):
            assert await code_of(app, method, path, ADMIN, body) == code
            (line,) = audit(stream)
            assert (line["subject"], line["outcome"]) == ("alice", code)
        client = app.test_client()
        assert (await client.put("/v1/topics/orders", headers=ADMIN)).status_code == 201
        (line,) = audit(stream)
        assert (line["action"], line["outcome"]) == ("topic.set", "done")
        for path in ("/v1/nowhere", "/v1/cluster", "/v1/topics/orders"):
            await client.get(path)
        await client.post("/v1/topics/orders/messages", headers=NARROW)
        assert audit(stream) == [], "which are no changes that it is about"


async def test_a_stranger_cannot_fill_the_log_nor_hide_what_others_try(
    config: Config, stream: io.StringIO
) -> None:
    async with running_node(config=config) as node:
        app = create_app(node.broker, config, {})
        for number in range(100):
            await code_of(app, "DELETE", f"/v1/topics/t{number}", {})
        assert len(audit(stream)) == 10
        assert await code_of(app, "DELETE", "/v1/topics/orders", NARROW) == "forbidden"
        (line,) = audit(stream)
        assert (line["subject"], line["target"]) == ("bob", "orders")
