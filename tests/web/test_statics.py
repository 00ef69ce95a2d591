"""Folders of static files below a path: the demo's pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from quart_trio import QuartTrio

from repl_broker.config import Config
from repl_broker.web.app import create_app
from tests.nodes import Node


@pytest.fixture
async def app(node: Node, tmp_path: Path) -> QuartTrio:
    folder = tmp_path / "chat"
    (folder / "sub").mkdir(parents=True)
    (folder / "index.html").write_text("<p>é</p>", encoding="utf-8")
    (folder / "chat.js").write_text("1", encoding="utf-8")
    (folder / "style.css").write_text("p{}", encoding="utf-8")
    (folder / "data.bin").write_bytes(b"\0")
    (folder / ".hidden").write_text("hidden", encoding="utf-8")
    (folder / "sub" / "a b.txt").write_text("sub", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (folder / "out").symlink_to(tmp_path / "secret.txt")
    (folder / "in").symlink_to(folder / "chat.js")
    return create_app(node.broker, Config(), {"/chat": folder})


@pytest.mark.parametrize(
    ("path", "content_type", "data"),
    [
        ("/chat/", "text/html; charset=utf-8", "<p>é</p>".encode()),
        ("/chat/index.html", "text/html; charset=utf-8", "<p>é</p>".encode()),
        ("/chat/chat.js", "text/javascript; charset=utf-8", b"1"),
        ("/chat/chat.js?v=2", "text/javascript; charset=utf-8", b"1"),
        ("/chat/style.css", "text/css; charset=utf-8", b"p{}"),
        ("/chat/data.bin", "application/octet-stream", b"\0"),
        ("/chat/sub/a%20b.txt", "text/plain; charset=utf-8", b"sub"),
        ("/chat/in", "text/javascript; charset=utf-8", b"1"),
    ],
)
async def test_files_are_served_with_their_type(
    app: QuartTrio, path: str, content_type: str, data: bytes
) -> None:
    response = await app.test_client().get(path)
    assert (response.status_code, await response.get_data()) == (200, data)
    assert response.headers["content-type"] == content_type
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_the_page_needs_the_slash_for_its_links(app: QuartTrio) -> None:
    response = await app.test_client().get("/chat?room=a%20b")
    assert response.status_code == 308
    assert response.headers["location"] == "/chat/?room=a%20b"


async def test_a_file_that_the_client_has_is_not_sent_again(app: QuartTrio) -> None:
    first = await app.test_client().get("/chat/chat.js")
    headers = {"If-None-Match": first.headers["etag"]}
    again = await app.test_client().get("/chat/chat.js", headers=headers)
    assert (again.status_code, await again.get_data()) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/chat/../secret.txt", "/chat/%2e%2e/secret.txt", "/chat/..%2fsecret.txt",
        "/chat/sub/../../secret.txt", "/chat//secret.txt", "/chat/%2fetc/passwd",
        "/chat/..%5csecret.txt", "/chat/out", "/chat/.hidden", "/chat/sub", "/chat/sub/",
        "/chat/nothing", "/chat/a%00b", "/chat/" + "x" * 5000, "/chatter/", "/chat/chat.js/",
        "/chat/%ed%a0%80",
    ],
)  # fmt: skip
async def test_nothing_else_is_reached(app: QuartTrio, path: str) -> None:
    response = await app.test_client().get(path)
    assert response.status_code == 404
    text = await response.get_data(as_text=True)
    assert "secret" not in text.replace("secret.txt", "")


async def test_files_are_only_read(app: QuartTrio) -> None:
    response = await app.test_client().post("/chat/chat.js")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
