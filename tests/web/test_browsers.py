"""Which requests of web pages are served: every Host with every Origin, both ways, held to a model.

The model says of each pair what is answered; the node must say the same in place and
through Quart, and what it refuses must have changed nothing, and shown nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from repl_broker.config import Address, AnonymousConfig, Config, is_origin
from repl_broker.hosts import Hosts
from repl_broker.origins import Origins
from repl_broker.web import cors
from tests.nodes import configured
from tests.signing import SECRET, claims, hs256
from tests.web.doors import serving
from tests.web.test_door import Answer, Client, connect

PAGE: Final = "https://app.example"

# Whoever asks: names that nobody can have lead elsewhere.
ALWAYS: Final = (
    *("localhost", "localhost:4080", "LocalHost:80", "localhost.", "a.localhost:1", "[::1]"),
    *("127.0.0.1:4080", "127.9.9.9", "[::1]:4080", "[0:0:0:0:0:0:0:1]", "203.0.113.7:4080"),
    *("[2001:db8::7]:1", "0.0.0.0:4080", "[fe80::1%25eth0]:4080", "localhost:"),
)
PUBLIC: Final = ("broker.example", "BROKER.example:443", "broker.example:8443", "broker.example.")
LISTED: Final = ("listed.example", "listed.example:9", "Listed.example.:80", "my_broker:9")
PORTED: Final = ("ported.example:9", "https.example", "https.example:443")
# Of nobody that the node knows; some of them look like somebody.
OTHERS: Final = (
    *("evil.example:4080", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("xlocalhost", "broker.example.evil.test", "xbroker.example", "ported.example"),
    *("ported.example:90", "127.1", "0x7f.0.0.1", "2130706433", "0177.0.0.1", "n1"),
    *("https.example:80", "xn--a", "a" * 63 + ".example"),
)
MALFORMED: Final = (
    *("", ":4080", "user@localhost", "localhost:99999", "localhost:x", "localhost:-1", "[::1"),
    *("[localhost]", "localhost,evil.example", "localhost/", "evil.example#localhost"),
    *("http://localhost", "local host", "localhost\tevil.example", "\xe9", "localhost?", "*"),
    *("localhost..", ".", ".localhost", "evil..localhost", "a" * 64, "a." * 150 + "localhost"),
)
ORIGINS: Final = (
    *("", "null", "*", PAGE, f"{PAGE}:443", "https://app.example.evil.test", "http://app.example"),
    *("http://evil.example:4080", "http://localhost:4080", "http://127.0.0.1:4080"),
    *("https://broker.example", "http://broker.example", "https://broker.example:8443"),
    *("https://[::1]:4080", "file://", "http://", "https://localhost:4080, https://evil.example"),
)
PAIRS: Final = tuple(
    (host, origin)
    for host in (*ALWAYS, *PUBLIC, *LISTED, *PORTED, *OTHERS, *MALFORMED)
    for origin in dict.fromkeys((*ORIGINS, f"http://{host}", f"https://{host.lower()}"))
)

# What is configured, and which hosts that adds.
HTTP: Final[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "as it is": ({}, ()),
    "public": ({"public_url": "https://broker.example/x"}, PUBLIC),
    "public, another port": ({"public_url": "https://broker.example:8443"}, PUBLIC),
    "bound": ({"bind": Address("broker.example", 1)}, PUBLIC),
    "listed": (
        {
            "hosts": ("listed.example", "MY_broker", "ported.example:9", "https.example:443"),
            "cors_origins": (PAGE,),
        },
        (*LISTED, *PORTED),
    ),
    "any": ({"hosts": ("*",), "cors_origins": ("*",)}, (*PUBLIC, *LISTED, *PORTED, *OTHERS)),
}


def place(url: str) -> tuple[str, str, str] | None:
    found = re.fullmatch(r"(https?)://(\[.+\]|[^:/, ]+):?(\d*)", url)
    return found and (found[1], found[2].lower(), found[3] or {"http": "80"}.get(found[1], "443"))


def model(config: Config, more: tuple[str, ...], host: str, origin: str, method: str) -> int:
    """The status that a request gets; 0 for any that is no refusal."""
    if host in MALFORMED:
        return 400
    needs_token = config.auth.mode == "jwt" and not config.auth.anonymous.publish
    if needs_token and not config.http.hosts:
        more = (*PUBLIC, *LISTED, *PORTED, *OTHERS)
    if host not in (*ALWAYS, *more):
        return 421
    listed, public = config.http.cors_origins, config.http.public_url
    if method == "GET" or not origin or origin in set(listed) - {"*"} or "*" in listed:
        return 0
    page = place(origin)
    if page is None:
        return 403
    if public is not None:
        outside = place(public.removesuffix("/x"))
        if page == outside:
            return 0
        if outside in (place(f"https://{host}"), place(f"https://{host.rstrip(':')}:8443")):
            return 403  # the public host: it has one origin
    return 0 if page == place(f"{page[0]}://{host}") else 403


def asked(method: str, host: str, *fields: str, target: str = "/v1/topics/chat/messages") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields]
    body = b""
    if method in ("POST", "PUT"):
        body = b'"kept"' if method == "POST" else b"{}"
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def answer_to(client: Client, request: bytes) -> Answer:
    await client.send(request)
    return await client.receive_answer()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("in_place", [True, False], ids=["door", "Quart"])
@pytest.mark.parametrize("mode", ["none", "jwt", "jwt, and what anyone may do"])
@pytest.mark.parametrize("name", HTTP)
async def test_every_host_with_every_origin_is_answered_as_the_model_says(
    name: str, mode: str, in_place: bool, secret: Path
) -> None:
    http, more = HTTP[name]
    config = configured(http=http)
    token: tuple[str, ...] = ()
    if mode != "none":
        anonymous = AnonymousConfig(publish=("wall",) if mode != "jwt" else ())
        config = configured(
            config, auth={"mode": "jwt", "secret_file": secret, "anonymous": anonymous}
        )
        token = (f"Authorization: Bearer {hs256(claims(repl_broker={'admin': True}))}",)
    published = refused = 0
    async with serving(in_place=in_place, config=config, seconds_max=60) as served:
        async with connect(served.door) as client:
            assert (await answer_to(client, asked("POST", "[::1]", *token))).status == 201
            # Each pair is tried under several of the configurations.
            for count, (host, origin) in enumerate(PAIRS[[*HTTP].index(name) :: len(HTTP)]):
                fields = (*token, *([f"Origin: {origin}"] if origin else []))
                # The other methods go one way, so a share of the pairs is enough for them.
                for method in ("POST", "GET", "PUT", "DELETE")[: 4 if not count % 7 else 1]:
                    target = "/v1/topics/chat/messages" if method != "PUT" else "/v1/topics/chat"
                    if method == "DELETE":
                        target = "/v1/topics/none"
                    found = await answer_to(client, asked(method, host, *fields, target=target))
                    expected = model(config, more, host, origin, method)
                    case = (method, host, origin, found.body)
                    assert (found.status if found.status in (400, 403, 421) else 0) == expected, (
                        case
                    )
                    if expected:
                        assert b"kept" not in found.body, case
                        code = {400: "malformed_request", 421: "unknown_host", 403: "forbidden"}
                        assert json.loads(found.body)["code"] == code[expected], case
                    published += method == "POST" and not expected
                    refused += method == "POST" and expected > 0
            shown = await answer_to(client, asked("GET", "[::1]", *token, target="/v1/topics/chat"))
            assert json.loads(shown.body)["messages"] == published + 1
            # What is refused goes to Quart, and nothing else does, in place.
            to_quart = served.asked.count("POST /v1/topics/chat/messages")
            assert to_quart == refused + (0 if in_place else published + 1)


both_ways: Final = pytest.mark.parametrize("in_place", [True, False], ids=["door", "Quart"])


@both_ways
async def test_a_page_whose_name_leads_here_gets_nothing_and_changes_nothing(
    in_place: bool,
) -> None:
    """DNS rebinding: for its browser this node is the page's own server."""
    evil = ("evil.example:4080", "Origin: http://evil.example:4080")
    async with serving(in_place=in_place) as served, connect(served.door) as client:
        assert (await answer_to(client, asked("POST", "[::1]"))).status == 201
        for method, target in (
            *(("GET", path) for path in ("/v1/topics", "/v1/topics/chat", "/v1/cluster")),
            ("GET", "/v1/topics/chat/messages"),
            ("GET", "/v1/events?topic=chat&after=earliest"),
            *(("GET", path) for path in ("/ui/", "/ui/feed", "/docs", "/openapi.json", "/metrics")),
            *(("GET", path) for path in ("/client.js", "/healthz", "/readyz", "/nowhere")),
            ("POST", "/v1/topics/chat/messages"),
            ("PUT", "/v1/topics/other"),
            ("DELETE", "/v1/topics/chat"),
            ("DELETE", "/v1/tokens/ann"),
            ("OPTIONS", "/v1/topics"),
        ):
            for given in (evil, evil[:1]):
                found = await answer_to(client, asked(method, *given, target=target))
                assert (found.status, json.loads(found.body)["code"]) == (421, "unknown_host"), (
                    target
                )
                assert b"'evil.example:4080'" in found.body
                assert b"[http] hosts" in found.body
        assert [*served.node.replica.state.topics] == ["chat"]
        assert served.node.broker.refusals["unknown_host"] == 38


@both_ways
async def test_a_target_with_a_host_names_the_one_that_host_does(in_place: bool) -> None:
    """So there is one host to judge, whichever of the two somebody goes by (RFC 9112 3.2.2)."""
    cases = {
        ("http://localhost/v1/topics", "localhost"): 200,
        ("http://localhost/v1/topics", "[::1]"): 400,
        ("http://evil.example/v1/topics", "evil.example"): 421,
        ("http://evil.example/v1/topics", "localhost"): 400,
        ("http://localhost/v1/topics", "evil.example"): 400,
        ("http://user@localhost/v1/topics", "localhost"): 400,
        ("http://user@localhost/v1/topics", "user@localhost"): 400,
        ("http:///v1/topics", "localhost"): 400,
        ("http:///v1/topics", ""): 400,
    }
    async with serving(in_place=in_place) as served:
        for (target, host), status in cases.items():
            async with connect(served.door) as client:
                found = await answer_to(client, asked("GET", host, target=target))
                assert found.status == status, (target, host)


@both_ways
async def test_http_1_0_may_name_no_host_as_probes_do(in_place: bool) -> None:
    async with serving(in_place=in_place) as served:
        for fields, status in ((b"", 200), (b"Host:\r\n", 200), (b"Host: evil.example\r\n", 421)):
            async with connect(served.door) as client:
                await client.send(b"GET /readyz HTTP/1.0\r\n" + fields + b"\r\n")
                assert (await client.receive_answer()).status == status
        async with connect(served.door) as client:
            await client.send(b"GET /readyz HTTP/1.1\r\n\r\n")
            assert (await client.receive_answer()).status == 400
        # Whoever names no host has no origin of its own here.
        async with connect(served.door) as client:
            request = asked("PUT", "", "Origin: http://", target="/v1/topics/chat")
            await client.send(request.replace(b"1.1", b"1.0").replace(b"Host: \r\n", b""))
            assert (await client.receive_answer()).status == 403


@both_ways
async def test_a_browser_that_leaves_the_origin_out_of_a_write_must_be_a_page_of_the_nodes_own(
    in_place: bool,
) -> None:
    async with serving(in_place=in_place) as served, connect(served.door) as client:
        for site, status in (
            *(("same-origin", 201), ("none", 201), ("cross-site", 403), ("same-site", 403)),
            *(("", 403), ("anything", 403)),
        ):
            found = await answer_to(client, asked("POST", "[::1]", f"Sec-Fetch-Site: {site}"))
            assert found.status == status, site


@both_ways
async def test_an_origin_that_is_given_twice_is_refused(in_place: bool) -> None:
    async with serving(in_place=in_place) as served, connect(served.door) as client:
        origins = ("Origin: http://[::1]", "Origin: http://[::1]")
        for method in ("GET", "POST"):
            assert (await answer_to(client, asked(method, "[::1]", *origins))).status == 400


@both_ways
async def test_all_pages_may_write_but_not_with_the_cookie(in_place: bool, secret: Path) -> None:
    http = {"cors_origins": ("*", PAGE)}
    config = configured(http=http, auth={"mode": "jwt", "secret_file": secret})
    given = hs256(claims(repl_broker={"publish": [">"]}))
    cookie, bearer = f"Cookie: repl_broker_token={given}", f"Authorization: Bearer {given}"
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        for origin, by_cookie in (
            *((PAGE, 201), ("http://node", 201), ("https://node", 201), ("", 403)),
            *(("null", 403), ("*", 403), ("https://other.example", 403), ("https://node:1", 403)),
        ):
            page = (f"Origin: {origin}",) if origin else ()
            found = await answer_to(client, asked("POST", "node", *page, cookie))
            assert found.status == by_cookie, origin
            if by_cookie == 403:
                assert json.loads(found.body)["reason"] == "origin"
                assert "www-authenticate" not in found.headers  # another token would not help
            assert (await answer_to(client, asked("POST", "node", *page, bearer))).status == 201
            # The header says what the request may do, not the cookie beside it.
            found = await answer_to(client, asked("POST", "node", *page, bearer, cookie))
            assert found.status == 201


# What the door answers by itself: after how much of a request, and the status.
JSON: Final = b"Content-Type: application/json\r\n"
BROKEN: Final = {
    "a bare LF": (b"GET /v1/topics HTTP/1.1\r\nHost: [::1]\r\n%b\r\nX: a\nY: b\r\n\r\n", 400),
    "no HTTP": (b"GET /v1/topics HTTP/x\r\nHost: [::1]\r\n%b\r\n\r\n", 400),
    "two lengths": (
        b"POST /v1/topics/t/messages HTTP/1.1\r\nHost: [::1]\r\n%b\r\n"
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        400,
    ),
    "WebSocket": (
        b"GET /v1/events HTTP/1.1\r\nHost: [::1]\r\n%b\r\n"
        b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        400,
    ),
    "too long a head": (
        b"GET /v1/events?topic=t HTTP/1.1\r\nHost: [::1]\r\n%b\r\nX: " + b"x" * 3000 + b"\r\n\r\n",
        431,
    ),
    "a coding": (
        b"POST /v1/messages HTTP/1.1\r\nHost: [::1]\r\n%b\r\nTransfer-Encoding: gzip\r\n\r\n",
        501,
    ),
    "another version": (b"GET /v1/topics HTTP/3.0\r\nHost: [::1]\r\n%b\r\n\r\n", 505),
    "half a head": (b"GET /v1/events?topic=t HTTP/1.1\r\nHost: [::1]\r\n%b\r\nX: ", 408),
    "half a head elsewhere": (b"GET /v1/topics HTTP/1.1\r\nHost: [::1]\r\n%b\r\nX: ", 408),
    "half a body": (
        b"POST /v1/topics/t/messages HTTP/1.1\r\nHost: [::1]\r\n%b\r\n"
        + JSON
        + b"Content-Length: 9\r\n\r\n1",
        408,
    ),
    "half a body elsewhere": (
        b"PUT /v1/topics/t HTTP/1.1\r\nHost: [::1]\r\n%b\r\n"
        + JSON
        + b"Content-Length: 9\r\n\r\n{",
        408,
    ),
    "too long a body": (
        b"POST /v1/topics/t/messages HTTP/1.1\r\nHost: [::1]\r\n%b\r\n"
        + JSON
        + b"Content-Length: 99999\r\n\r\n",
        413,
    ),
    "nobody's host": (b"GET /v1/topics HTTP/1.1\r\nHost: evil.example\r\n%b\r\n\r\n", 421),
}


@both_ways
@pytest.mark.parametrize("origins", [(PAGE,), ("*",)], ids=["listed", "any"])
@pytest.mark.parametrize("name", BROKEN)
async def test_a_page_that_may_read_can_read_what_the_door_answers_by_itself(
    name: str, origins: tuple[str, ...], in_place: bool
) -> None:
    begun, status = BROKEN[name]
    limits = {"body_timeout_seconds": 0.1, "message_bytes": 1000}
    config = configured(http={"cors_origins": origins}, limits=limits)
    late: dict[str, float] = {"header_timeout_seconds": 0.1, "header_bytes_max": 2000}
    async with serving(in_place=in_place, config=config, **late) as served:
        for origin in (PAGE, "https://other.example"):
            readable = "*" in origins or origin == PAGE
            if not readable and begun.startswith((b"POST", b"PUT")) and status in (408, 413):
                continue  # such a page is refused before its body is waited for
            async with connect(served.door) as client:
                await client.send(begun % b"Origin: %b" % origin.encode())
                found = await client.receive_answer()
            assert found.status == status
            allowed = ("*" if "*" in origins else origin) if readable else None
            assert found.headers.get("access-control-allow-origin") == allowed, origin
            exposed = found.headers.get("access-control-expose-headers", "")
            assert ("Retry-After" in exposed) == readable
            assert found.headers.get("vary") == (None if "*" in origins else "Origin")


@both_ways
@pytest.mark.parametrize("origins", [(PAGE,), ("*",), ()], ids=["listed", "any", "none"])
async def test_a_page_can_read_when_to_come_back(origins: tuple[str, ...], in_place: bool) -> None:
    config = configured(http={"cors_origins": origins})
    late: dict[str, float] = {"connections_max": 0, "linger_timeout_seconds": 0.2}
    async with serving(in_place=in_place, config=config, **late) as served:
        for sent in (b"", b"GET / HT", asked("POST", "[::1]", f"Origin: {PAGE}")):
            async with connect(served.door) as client:
                await client.send(sent)
                found = await client.receive_answer()
            assert (found.status, "retry-after" in found.headers) == (429, True)
            allowed = "*" if "*" in origins else PAGE if origins and b"Origin" in sent else None
            assert found.headers.get("access-control-allow-origin") == allowed


def test_an_origin_is_only_looked_for_in_a_head() -> None:
    for data, origin in (
        (b"GET / HTTP/1.1\r\norigin:\t" + PAGE.encode() + b" \r\nX: ", PAGE),
        (b"GET / HTTP/1.1\r\nOrigin: a\r\n\r\n\r\nOrigin: b\r\n", "a"),
        (b"GET / HTTP/1.1\r\nX: a\r\n\r\n\r\nOrigin: b\r\n", ""),
        (b"GET / HTTP/1.1\r\nOrigin: a\r\nOrigin: a\r\n", ""),
        (b"GET / HTTP/1.1\r\nOrigin: a", ""),
        (b"GET / HTTP/1.1\r\nOrigin: a b\r\n", ""),
        (b"Origin: a\r\n", ""),
    ):
        assert cors.origin_in(data) == origin, data


@both_ways
async def test_what_is_refused_to_a_page_is_a_line_in_the_log_that_says_what_to_do(
    in_place: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(http={"cors_origins": (PAGE,)})
    other = "https://other.example"
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:

        async def told(*fields: str, method: str = "GET", host: str = "[::1]") -> list[str]:
            caplog.clear()
            for _ in range(3):  # it is one line all the same
                await answer_to(client, asked(method, host, *fields))
            return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]

        assert await told() == await told(f"Origin: {PAGE}") == []
        assert await told("Origin: http://[::1]", method="POST") == []
        (line,) = await told(f"Origin: {other}")
        assert repr(other) in line
        assert "[http] cors_origins" in line
        (line,) = await told(f"Origin: {other}", method="POST")
        assert repr(other) in line
        assert "[http] cors_origins" in line
        (line,) = await told(host="evil.example:4080")
        assert "evil.example:4080" in line
        assert "[http] hosts" in line
        preflight = ("Origin: https://third.example", "Access-Control-Request-Method: POST")
        (line,) = await told(*preflight, method="OPTIONS")
        assert "'https://third.example'" in line
        # However many there are, and however long; the lines above were this client's others.
        lines = [await told(f"Origin: https://{'x' * 500}{n}.example") for n in range(3)]
        assert sum(map(len, lines)) == 1
        assert len(lines[0][0]) < 400
        lines = [await told(f"Origin: https://{n}.example") for n in range(50)]
        assert sum(map(len, lines)) == 1


# Of what is refused: configuration, host and origin, and words of the remedy. None is "list it"
# where that would be refused, or changes nothing.
REMEDIES: Final[dict[str, tuple[dict[str, Any], str, str, str]]] = {
    "a file": ({}, "[::1]", "null", "A file, or a frame"),
    "a file, though all may": ({"cors_origins": ("*",)}, "[::1]", "null", "a file, or a frame"),
    "an extension": ({}, "[::1]", "chrome-extension://abc", "none but http and https"),
    "the word for all": ({}, "[::1]", "*", "none but http and https"),
    "a default port": ({}, "[::1]", "https://a.example:443", "none but http and https"),
    "a page": ({}, "[::1]", PAGE, "List it in [http] cors_origins"),
    "a page, though all may": ({"cors_origins": ("*",)}, "[::1]", PAGE, "List it by name"),
    "its own by TLS": ({}, "localhost:1", "https://localhost:2", "set [http] public_url"),
    "not as the public URL has it": (
        {"public_url": "https://broker.example"},
        "broker.example",
        "http://broker.example",
        "Open the page by the URL in [http] public_url",
    ),
    "no page": ({}, "[::1]", "", "Have the browser say which page it is"),
    "a host": ({}, "evil.example", "", "list it in [http] hosts"),
    "a proxy's host": ({}, "evil.example", "", "set [http] public_url"),
    "a listed host's port": ({"hosts": ("a.example:9",)}, "a.example:8", "", "port 9 alone"),
    "half an address": ({}, "127.1", "", "ask 127.0.0.1"),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_a_remedy_is_one_that_helps_in_the_case(name: str) -> None:
    http, text, origin, words = REMEDIES[name]
    config = configured(http=http)
    hosts, origins = Hosts(config), Origins(config)
    host = hosts.served(text)
    if host is None:
        told = hosts.unknown(text).detail
    else:
        assert not origins.may_write(origin, host, by_cookie=True)
        told = origins.foreign_page(origin, host, by_cookie=True)
    assert words.lower() in told.lower()
    if "list it" in told.lower() and host is not None:  # then that is possible, and helps
        assert is_origin(origin)
        listed = Origins(configured(config, http={"cors_origins": (origin,)}))
        assert listed.may_write(origin, host, by_cookie=True)


async def test_a_stream_that_its_page_cannot_read_is_told_of_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as served:
        for _ in range(2):
            async with connect(served.door) as client:
                target = "/v1/events?topic=chat"
                await client.send(asked("GET", "[::1]", "Origin: https://a.example", target=target))
                await client.stream.receive_some()
        assert served.asked == []
    (line,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "'https://a.example'" in line
    assert "[http] cors_origins" in line
