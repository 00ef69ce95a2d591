"""``/client.js`` and its types: what pages without a build step import."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from quart_trio import QuartTrio

import repl_broker

ROOT = Path(repl_broker.__file__).parent.parent
FOLDER = ROOT / "repl_broker" / "web" / "javascript"
SIZE_MAX = 8 * 1024  # gzipped


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("client.js", "text/javascript; charset=utf-8"),
        ("client.d.ts", "application/typescript; charset=utf-8"),
    ],
)
async def test_the_files_are_served_to_pages_of_any_origin(
    app: QuartTrio, name: str, content_type: str
) -> None:
    client = app.test_client()
    response = await client.get(f"/{name}", headers={"Origin": "https://app.example"})
    assert response.status_code == 200
    assert await response.get_data() == (FOLDER / name).read_bytes()
    assert response.headers["content-type"] == content_type
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"


async def test_a_browser_that_has_the_module_does_not_get_it_again(app: QuartTrio) -> None:
    client = app.test_client()
    first = await client.get("/client.js")
    again = await client.get("/client.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, await again.get_data()) == (304, b"")
    assert again.headers["access-control-allow-origin"] == "*"


async def test_the_module_says_where_its_types_are(app: QuartTrio) -> None:
    """Deno reads this header."""
    response = await app.test_client().get("/client.js")
    assert response.headers["x-typescript-types"] == "./client.d.ts"


def test_the_client_is_under_eight_kibibytes_gzipped() -> None:
    assert len(gzip.compress((FOLDER / "client.js").read_bytes(), 9)) < SIZE_MAX


def test_the_client_asks_nobody_but_the_broker() -> None:
    """There is no URL in it."""
    assert b"://" not in (FOLDER / "client.js").read_bytes()
