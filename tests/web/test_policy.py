"""Every document that a node serves says what it may load, and that nobody may frame it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from quart import Response
from quart_trio import QuartTrio

from repl_broker.config import Config
from repl_broker.web import policy, statics, ui
from repl_broker.web.app import create_app
from repl_broker.web.client import FOLDER as CLIENT
from repl_broker.web.guard import GUARD, Right
from tests.nodes import Node
from tests.test_docs import ROOT

CHAT = ROOT / "examples" / "chat"
FOLDERS = {"/ui": ui.FOLDER, "/chat": CHAT, "/client": CLIENT}
# Types of documents in which scripts run, or which hold others that do.
ACTIVE = (
    *("text/html", "application/xhtml+xml", "image/svg+xml", "text/xml", "application/xml"),
    *("application/pdf", "multipart/x-mixed-replace", "application/mathml+xml", "x/unknown"),
)


@pytest.fixture
async def app(node: Node) -> QuartTrio:
    return create_app(node.broker, Config(), {"/chat": CHAT})


def check(response: Response, what: str) -> bool:
    """Whether it is a document; one must be locked in."""
    headers = response.headers
    assert headers["X-Content-Type-Options"] == "nosniff", what
    if response.status_code == 308:  # it has no type; Quart's client of tests makes one up
        return False
    if headers["Content-Type"].partition(";")[0] in policy.INERT:
        return False
    assert "Content-Security-Policy" in headers, what
    parts = [each.strip() for each in headers["Content-Security-Policy"].split(";")]
    for needed in ("default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
        assert needed in parts, what
    assert not [each for each in parts if "unsafe" in each or each.endswith(" *")], what
    assert headers["X-Frame-Options"] == "DENY", what
    assert headers["Referrer-Policy"] == "no-referrer", what
    return True


def paths(app: QuartTrio) -> Iterator[str]:
    for rule in app.url_map.iter_rules():
        if not rule.arguments:
            yield rule.rule
    for path, folder in FOLDERS.items():
        yield from (f"{path}/{each.relative_to(folder)}" for each in folder.rglob("*"))
    yield from ("/nowhere", "/chat/nowhere", "/ui/nowhere", "/", "/favicon.ico")


async def test_every_document_of_every_route_and_folder_is_locked_in(app: QuartTrio) -> None:
    found = set()
    for path in paths(app):
        if path != "/v1/events":
            for method in ("HEAD", "GET") if path != "/ui/feed" else ("HEAD",):
                response = await app.test_client().open(
                    path, method=method, headers={"Host": "localhost"}
                )
                if check(response, path):
                    found.add(path)
    assert found >= {"/docs", "/ui/", "/ui/index.html", "/ui/icon.svg", "/chat/", "/chat/icon.svg"}


@pytest.mark.parametrize("media_type", ACTIVE)
async def test_a_document_that_brings_no_policy_may_do_nothing(
    app: QuartTrio, media_type: str
) -> None:
    async def view() -> Response:
        return Response(b"<script>alert(1)</script>", content_type=f"{media_type}; charset=utf-8")

    app.extensions[GUARD].route("GET", "/new", Right.OPEN, view)
    response = await app.test_client().get("/new", headers={"Host": "localhost"})
    assert check(response, media_type)
    assert response.headers["Content-Security-Policy"] == policy.LOCKED


def test_no_type_in_which_scripts_run_counts_as_inert() -> None:
    assert policy.INERT.isdisjoint(ACTIVE)
    known = {each.partition(";")[0] for each in statics.CONTENT_TYPES.values()}
    assert known - policy.INERT == {"text/html", "image/svg+xml"}
