"""Below a path: what the node says of itself begins with it, on both ways and from the door."""

from __future__ import annotations

import json
import re
from typing import Final

import pytest

from repl_broker.config import HttpConfig, is_base_path
from repl_broker.web.base import Base
from tests.nodes import configured
from tests.web.doors import publish, serving
from tests.web.test_door import Client, connect
from tests.web.test_streams import get

BOTH_WAYS: Final = pytest.mark.parametrize("in_place", [True, False])
LOCAL: Final = ("127.0.0.1",)
NDJSON: Final = "application/x-ndjson"

PATHS: Final = ["/a", "/realtime/v2", "/~x/A-b_c.d", "/a%20b", "/" + "a" * 255]
NO_PATHS: Final = [
    "a", "//", "///", "/a//", "//evil.example", "/a//b", "/a/../b", "/..", "/.", "/a/%2e%2E",
    "/a b", "/a\t", "/a\x7f", "/a?b", "/a#b", "/a\\b", "/\\evil.example", "http://evil.example",
    "/a:b@c", "/é", "/%", "/%g0", "/a%2fb", "/<script>", '/"', "/a,/b", "/a;b", "/" + "a" * 256,
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_from_a_proxy_that_is_trusted(path: str) -> None:
    http = HttpConfig(public_url="https://x.example/own/", trusted_proxies=("10.0.0.0/8", "::1"))
    base = Base(http)
    assert base.of(None, "10.1.2.3") == base.path == "/own"
    for host in ("10.1.2.3", "::1", "::ffff:10.1.2.3"):
        assert base.of(path, host) == base.of(f"{path}/", host) == path
    for host in ("11.0.0.1", "::2", "127.0.0.1", "unknown", ""):
        assert base.of(path, host) == "/own"
    assert Base(HttpConfig()).of(path, "127.0.0.1") == "", "nobody is trusted unless told"
    assert is_base_path(path)


@pytest.mark.parametrize("text", NO_PATHS)
def test_what_is_no_path_changes_nothing(text: str) -> None:
    http = HttpConfig(public_url="https://x.example/own", trusted_proxies=LOCAL)
    assert Base(http).of(text, "127.0.0.1") == "/own"
    assert not is_base_path(text)


@pytest.mark.parametrize("text", ["", "/"])
def test_no_path_is_the_root(text: str) -> None:
    http = HttpConfig(public_url="https://x.example/own", trusted_proxies=LOCAL)
    assert Base(http).of(text, "127.0.0.1") == ""


TRACE: Final = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ASKED: Final = {
    "a publish that is refused": publish(b"{"),
    "another, with a trace": publish(b"{", TRACE),
    "a batch that is refused": publish(
        b"{", path="/v1/messages", media_type="application/x-ndjson"
    ),
    "a publish of another type": publish(b"1", media_type="text/plain"),
    "a stream that is refused": get("/v1/events?topic=a..b"),
    "a page that is not there": get("/nowhere"),
    "a method that is not there": get("/v1/topics").replace(b"GET", b"PATCH"),
    "a method that is none": get("/v1/topics").replace(b"GET", b"get"),
    "what the door refuses": get("/v1/topics", "Connection: Upgrade", "Upgrade: websocket"),
    "a topic that is made": publish(b'{"name":"a"}', path="/v1/topics"),
    "a topic that is put": publish(b"{}", path="/v1/topics/b").replace(b"POST", b"PUT"),
    "the dashboard": get("/ui"),
    "the dashboard with a query": get("/ui?a=b"),
    "the description": get("/openapi.json"),
}


async def own_references(client: Client, request: bytes) -> list[str]:
    """The references in an answer to what the node itself has."""
    await client.send(request)
    answer = await client.receive_answer()
    found = [answer.headers["location"]] if "location" in answer.headers else []
    if answer.headers.get("content-type", "").endswith("json"):
        content = json.loads(answer.body)
        found += [content["type"]] if "type" in content else []
        found += [each["url"] for each in content.get("servers", ())]
    return found


@BOTH_WAYS
@pytest.mark.parametrize("request_bytes", ASKED.values(), ids=ASKED.keys())
@pytest.mark.parametrize(
    ("public_url", "trusted", "fields", "base"),
    [
        (None, (), (), ""),
        (None, (), ("X-Forwarded-Prefix: /below",), ""),
        (None, LOCAL, (), ""),
        (None, LOCAL, ("X-Forwarded-Prefix: /below",), "/below"),
        (None, ("10.0.0.0/8",), ("X-Forwarded-Prefix: /below",), ""),
        ("https://x.example/own/", (), ("x-forwarded-prefix: /below",), "/own"),
        ("https://x.example/own/", LOCAL, (), "/own"),
        ("https://x.example/own/", LOCAL, ("X-FORWARDED-PREFIX:/below/",), "/below"),
        ("https://x.example/own/", LOCAL, ("X-Forwarded-Prefix: /",), ""),
        ("https://x.example/own", LOCAL, ("X-Forwarded-Prefix: //evil.example",), "/own"),
        ("https://x.example/own", LOCAL, ("X-Forwarded-Prefix: /a",) * 2, "/own"),
    ],
)  # fmt: skip
async def test_what_the_node_says_of_itself_stays_below_its_path(
    public_url: str | None,
    trusted: tuple[str, ...],
    fields: tuple[str, ...],
    base: str,
    request_bytes: bytes,
    in_place: bool,
) -> None:
    config = configured(
        http={"hosts": ("node", "door"), "public_url": public_url, "trusted_proxies": trusted}
    )
    line, rest = request_bytes.split(b"\r\n", 1)
    more = b"".join(each.encode() + b"\r\n" for each in fields)
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        (found,) = await own_references(client, line + b"\r\n" + more + rest)
    assert re.match(rf"{re.escape(base)}/(?:docs#|v1/topics/|ui/|$)", found) or found == base


@BOTH_WAYS
async def test_what_comes_before_any_request_stays_below_the_path_of_the_public_url(
    in_place: bool,
) -> None:
    config = configured(http={"hosts": ("node", "door"), "public_url": "https://x.example/own/"})
    limits = {"header_timeout_seconds": 0.02}
    async with serving(in_place=in_place, config=config, **limits) as served:
        for begun, code in (
            (b"GARBAGE\r\n\r\n", "malformed_request"),
            (b"GET /v1/topics HTTP/1.1\r\nX", "request_timeout"),
        ):
            async with connect(served.door) as client:
                assert await own_references(client, begun) == [f"/own/docs#{code}"]
    async with serving(in_place=in_place, config=config, connections_max=0) as served:
        async with connect(served.door) as client:
            assert await own_references(client, b"") == ["/own/docs#too_many_connections"]


@BOTH_WAYS
async def test_a_base_is_of_its_request_alone(in_place: bool) -> None:
    """One connection, as a proxy keeps them, has requests for several paths."""
    config = configured(http={"hosts": ("node", "door"), "trusted_proxies": LOCAL})
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        for base in ("/a", "", "/b", ""):
            fields = (f"X-Forwarded-Prefix: {base}",) if base else ()
            for request in (publish(b"{", *fields), get("/v1/events?topic=a..b", *fields)):
                assert (await own_references(client, request))[0].startswith(f"{base}/docs#")


@pytest.mark.parametrize(
    ("public_url", "host", "fields", "url"),
    [
        (None, "127.0.0.1:4099", (), "http://127.0.0.1:4099"),
        (None, "[::1]:80", ("X-Forwarded-Prefix: /below",), "http://[::1]:80/below"),
        ("https://x.example/own/", "x.example", (), "https://x.example/own"),
        ("https://x.example/own/", "localhost:1", (), "http://localhost:1/own"),
    ],
)
async def test_the_examples_of_the_page_lead_to_where_it_was_asked_for(
    public_url: str | None, host: str, fields: tuple[str, ...], url: str
) -> None:
    config = configured(http={"public_url": public_url, "trusted_proxies": LOCAL})
    async with serving(config=config) as served, connect(served.door) as client:
        lines = ("GET /docs HTTP/1.1", f"Host: {host}", *fields, "", "")
        await client.send("\r\n".join(lines).encode())
        page = (await client.receive_answer()).body.decode()
    assert f"curl {url}/openapi.json" in page
    assert "127.0.0.1:4080" not in page


async def test_what_is_not_there_is_told_with_where_the_description_is() -> None:
    config = configured(http={"public_url": "https://x.example/own/"})
    async with serving(config=config) as served, connect(served.door) as client:
        detail = json.loads((await client.get("/nowhere")).body)["detail"]
    assert detail.endswith("; /own/docs and /own/openapi.json list what there is.")


async def test_links_of_pages_are_relative() -> None:
    async with serving() as served, connect(served.door) as client:
        for path in ("/docs", "/ui/"):
            page = (await client.get(path)).body.decode()
            links = re.findall(r'(?:href|src)="([^"]*)"', page)
            assert links
            assert [each for each in links if each.startswith("/")] == []
