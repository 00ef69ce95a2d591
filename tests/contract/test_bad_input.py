"""What is malformed gets a clear error and changes nothing (DESIGN section 2, promise 7)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.contract.client import JSON, NDJSON, Node, check_problem, request_bytes
from tests.contract.conftest import Launch, over_all_front_ends

pytestmark = over_all_front_ends

# body, line, column, a word of the detail
BAD_JSON = [
    (b'{"a" 1}', 1, 6, "':'"),
    (b'{"a": [1, 2', 1, 12, "','"),
    (b'"abc', 1, 1, "unterminated"),
    (b"", 1, 1, "expecting value"),
    (b"  \n ", 2, 2, "expecting value"),
    (b"[1,]", 1, 4, ""),
    (b'{"a":1}\n{"b":2}', 2, 1, "extra data"),
    (b'{\n "a": nul\n}', 2, 7, ""),
    (b'["\xc3\xa9\xc3\xa9", x]', 1, 8, ""),
    (b'["\xff"]', 1, 3, "0xff"),
    (b'["a\xc3"]', 1, 4, "0xc3"),
    (b"[NaN]", 1, 2, "NaN"),
    (b"[Infinity]", 1, 2, "Infinity"),
    (b"-Infinity", 1, 1, "Infinity"),
    (b"\xef\xbb\xbf1", 1, 1, ""),
    (b'["\x01"]', 1, 3, ""),
    (b"01", 1, 2, ""),
    (b"[1]//", 1, 4, ""),
    (b"'a'", 1, 1, ""),
]


@pytest.mark.parametrize(("body", "line", "column", "word"), BAD_JSON)
async def test_a_body_that_is_not_json_is_refused_with_its_place(
    node: Node, body: bytes, line: int, column: int, word: str
) -> None:
    response = await node.client.post("/v1/topics/chat/messages", content=body, headers=JSON)
    problem = check_problem(response, 400, "invalid_json", f"Line {line}, column {column}", word)
    assert (problem["line"], problem["column"]) == (line, column)
    assert await node.data("chat") == []


@pytest.mark.parametrize(
    "body",
    [b"[" * 513 + b"]" * 513, b"[" * 100_000, b'{"a":' * 600 + b"1" + b"}" * 600],
    ids=["just too deep", "truncated too", "objects"],
)
async def test_json_that_is_nested_too_deep_is_refused(node: Node, body: bytes) -> None:
    response = await node.client.post("/v1/topics/chat/messages", content=body, headers=JSON)
    problem = check_problem(response, 400, "invalid_json", "512 levels")
    assert problem["line"] == 1


async def test_json_of_just_the_allowed_depth_is_taken(node: Node) -> None:
    await node.publish_raw("chat", b"[" * 512 + b"]" * 512)


@pytest.mark.parametrize(
    ("body", "line", "column"),
    [
        (b"1\n2\n{", 3, 2),
        (b"1\r\n\r\nx", 3, 1),
        (b"1\n[2\n3]\n", 2, 3),
        (b'1\n"\xff"\n', 2, 2),
        (b"\n\n", 1, 1),
    ],
)
async def test_a_batch_with_a_bad_line_is_refused_whole(
    node: Node, body: bytes, line: int, column: int
) -> None:
    response = await node.client.post("/v1/topics/chat/messages", content=body, headers=NDJSON)
    problem = check_problem(response, 400, "invalid_json")
    assert (problem["line"], problem["column"]) == (line, column)
    check_problem(await node.client.get("/v1/topics/chat"), 404, "topic_not_found")


@pytest.mark.parametrize(
    ("last", "code", "line"),
    [
        (b'{"topic":"b","data":', "invalid_json", 2),
        (b'{"topic":"b"}', "invalid_json", 2),
        (b'{"data":1}', "invalid_json", 2),
        (b'{"topic":"b","data":1,"x":2}', "invalid_json", 2),
        (b'{"topic":1,"data":1}', "invalid_json", 2),
        (b"[1]", "invalid_json", 2),
        (b'{"topic":"b..c","data":1}', "invalid_topic", None),
        (b'{"topic":"b.*","data":1}', "invalid_topic", None),
        (b'{"topic":"b\\u00e9","data":1}', "invalid_topic", None),
        (b'{"topic":"b\\ud800","data":1}', "invalid_json", 2),
    ],
)
async def test_a_batch_over_topics_with_a_bad_last_line_is_refused_whole(
    node: Node, last: bytes, code: str, line: int | None
) -> None:
    body = b'{"topic":"a","data":1}\n' + last
    response = await node.client.post("/v1/messages", content=body, headers=NDJSON)
    assert check_problem(response, 400, code).get("line") == line
    assert (await node.client.get("/v1/topics")).json()["topics"] == []


@pytest.mark.parametrize(
    "segment",
    ["a..b", ".a", "a.", "a b", "a%2Ab", "*", ">", "a.>", "%C3%A9", "%FF", "a%00", "x" * 256,
     "a%0Ab", "a,b", "~"],
)  # fmt: skip
async def test_what_is_no_topic_name_is_refused_everywhere(node: Node, segment: str) -> None:
    path = f"/v1/topics/{segment}"
    client = node.client
    publish = await client.post(f"{path}/messages", content=b"1", headers=JSON)
    for response in (
        publish,
        await client.post(f"{path}/messages", content=b"1\n", headers=NDJSON),
        await client.get(f"{path}/messages"),
        await client.get(path),
        await client.put(path, json={}),
        await client.delete(path),
    ):
        check_problem(response, 400, "invalid_topic")


async def test_a_topic_name_of_255_characters_is_taken(node: Node) -> None:
    name = "x" * 255
    await node.publish(name, 1)
    assert await node.data(name) == [1]


@pytest.mark.parametrize(
    "topic", ["", "a..b", "a.>.b", "a*", "*a", "a.>x", ">>", "a b", "é", "x" * 256, ".>"]
)
async def test_what_is_no_filter_is_refused(node: Node, topic: str) -> None:
    for path, name in (("/v1/events", "topic"), ("/v1/topics", "match")):
        response = await node.client.get(path, params={name: topic})
        check_problem(response, 400, "invalid_filter")


async def test_a_stream_has_1_to_128_filters(node: Node) -> None:
    check_problem(await node.client.get("/v1/events"), 400, "invalid_filter", "at least one")
    filters = [f"t{number}" for number in range(129)]
    response = await node.client.get("/v1/events", params={"topic": filters})
    check_problem(response, 400, "invalid_filter", "129", "128")
    async with node.events(*filters[:128]) as stream:
        assert (await stream.subscribed())["topics"] == sorted(filters[:128])


GARBAGE_IDS = [
    "", "5", "x-1", "9f3a1c2b", "9f3a1c2b-", "9f3a1c2b-01", "9F3A1C2B-1", "9f3a1c2b-1 ",
    "9f3a1c2b--1", "9f3a1c2b-1.5", "9f3a1c2b-99999999999999999999", "Latest", "9f3a1c2-1",
    "9f3a1c2b-9223372036854775808",
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE_IDS)
async def test_what_is_no_event_id_is_refused(node: Node, garbage: str) -> None:
    await node.publish("chat", 1)
    for path in ("/v1/topics/chat/messages", "/v1/events?topic=chat"):
        response = await node.client.get(path, params=_merged(path, after=garbage))
        check_problem(response, 400, "invalid_event_id")
    if garbage.strip() != garbage or not garbage:  # a header's value has no space around it
        return
    response = await node.client.get("/v1/events?topic=chat", headers={"Last-Event-ID": garbage})
    check_problem(response, 400, "invalid_event_id")


def _merged(path: str, **params: str) -> dict[str, str]:
    return params | ({"topic": "chat"} if "events" in path else {})


ROUTES = [
    ("DELETE", "/v1/tokens/ann"),
    ("GET", "/v1/topics"),
    ("POST", "/v1/topics"),
    ("GET", "/v1/topics/chat"),
    ("PUT", "/v1/topics/chat"),
    ("DELETE", "/v1/topics"),
    ("DELETE", "/v1/topics/chat"),
    ("POST", "/v1/topics/chat/messages"),
    ("GET", "/v1/topics/chat/messages"),
    ("POST", "/v1/messages"),
    ("GET", "/v1/events"),
    ("GET", "/v1/cluster"),
    ("POST", "/v1/cluster/members"),
    ("DELETE", "/v1/cluster/members/n2"),
    ("POST", "/v1/cluster/leader"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/client.js"),
    ("GET", "/client.d.ts"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_unknown_query_parameters_are_refused_by_name(
    node: Node, method: str, path: str
) -> None:
    await node.publish("chat", 1)
    response = await node.client.request(
        method, path, params={"aftr": "x"}, content=b"1", headers=JSON
    )
    check_problem(response, 400, "invalid_parameter", "'aftr'")
    assert await node.data("chat") == [1]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limt=1", ("'limt'", "'limit'")),
        ("Limit=1", ("'Limit'", "'limit'")),
        ("last_event_id=9f3a1c2b-1", ("'last_event_id'",)),
        ("limit=1&limit=1", ("'limit'", "more than once")),
        ("after=latest&after=latest", ("'after'", "more than once")),
        ("limit=0", ("'limit'", "1 to 1000")),
        ("limit=1001", ("'limit'", "1 to 1000")),
        ("limit=-1", ("1 to 1000",)),
        ("limit=1.5", ("1 to 1000",)),
        ("limit=", ("1 to 1000",)),
        ("limit", ("1 to 1000",)),
        ("limit=%D9%A1", ("1 to 1000",)),
        ("limit=" + "9" * 5000, ("1 to 1000",)),
        ("aft%FF=1", ("UTF-8",)),
    ],
)
async def test_wrong_query_parameters_are_refused(
    node: Node, query: str, words: tuple[str, ...]
) -> None:
    await node.publish("chat", 1)
    response = await node.client.get(f"/v1/topics/chat/messages?{query}")
    check_problem(response, 400, "invalid_parameter", *words)


async def test_the_stream_knows_no_other_parameters(node: Node) -> None:
    response = await node.client.get("/v1/events?topic=chat&cursor=9f3a1c2b-1")
    check_problem(response, 400, "invalid_parameter", "'cursor'", "lastEventId")
    response = await node.client.get("/v1/events?topic[]=chat")
    check_problem(response, 400, "invalid_parameter", "'topic[]'", "nearest known one is 'topic'")
    response = await node.client.get("/v1/topics/chat/messages?lastEventId=9f3a1c2b-1")
    check_problem(response, 400, "invalid_parameter", "'lastEventId'")
    response = await node.client.get("/v1/events?topic=chat&after=latest&after=earliest")
    check_problem(response, 400, "invalid_parameter", "'after'")
    headers = [("Last-Event-ID", "9f3a1c2b-1"), ("Last-Event-ID", "9f3a1c2b-2")]
    response = await node.client.get("/v1/events?topic=chat", headers=headers)
    check_problem(response, 400, "invalid_parameter", "Last-Event-ID")


@pytest.mark.parametrize("query", ["", "&", "&&limit=5&", "limit=5"])
async def test_empty_parts_of_a_query_do_not_count(node: Node, query: str) -> None:
    assert (await node.client.get(f"/v1/topics?{query}")).status_code == 200


# method, path, body, words of the detail
BAD_BODIES: list[tuple[str, str, bytes, tuple[str, ...]]] = [
    ("POST", "/v1/topics", b"{}", ("'name'", "missing")),
    ("POST", "/v1/topics", b"[]", ("an array", "object")),
    ("POST", "/v1/topics", b"null", ("null", "object")),
    ("POST", "/v1/topics", b'{"name":1}', ("'name'", "a number")),
    ("POST", "/v1/topics", b'{"name":"a","retentoin":{}}', ("'retentoin'", "'retention'")),
    ("POST", "/v1/topics", b'{"name":"a","name":"a"}', ("'name'", "more than once")),
    ("POST", "/v1/topics", b'{"name":"a","retention":5}', ("'retention'", "object")),
    ("POST", "/v1/topics", b'{"name":"a","retention":null}', ("'retention'", "object")),
    ("POST", "/v1/topics", b'{"name":"a","\\ud800":1}', ("ud800",)),
    ("PUT", "/v1/topics/a", b'{"name":"a"}', ("'name'", "Known: retention")),
    ("PUT", "/v1/topics/a", b'{"retention":{"message":5}}', ("'message'", "'messages'")),
    ("PUT", "/v1/topics/a", b'{"retention":{"messages":"5"}}', ("retention.messages", "a string")),
    ("PUT", "/v1/topics/a", b'{"retention":{"messages":true}}', ("a boolean",)),
    ("PUT", "/v1/topics/a", b'{"retention":{"messages":1.5}}', ("whole number",)),
    ("PUT", "/v1/topics/a", b'{"retention":{"messages":null}}', ("null",)),
    ("PUT", "/v1/topics/a", b'{"retention":{"seconds":' + b"9" * 6000 + b"}}", ("315360000",)),
    ("PUT", "/v1/topics/a", b'{"retention":{"bytes":1e400}}', ("whole number",)),
    ("PUT", "/v1/topics/a", b'{"retention":{"bytes":-1}}', ("1 to 1099511627776",)),
    ("POST", "/v1/cluster/members", b'{"id":"n2"}', ("'raft_address'", "missing")),
    ("POST", "/v1/cluster/members",
     b'{"id":"n2","raft_adress":"h:1","http_url":"http://h"}', ("'raft_adress'", "'raft_address'")),
    ("POST", "/v1/cluster/members",
     b'{"id":"n2","raft_address":"h","http_url":"http://h"}', ("HOST:PORT",)),
    ("POST", "/v1/cluster/members",
     b'{"id":"n2","raft_address":"h:1","http_url":"ftp://h"}', ("http://",)),
    ("POST", "/v1/cluster/members",
     b'{"id":"n 2","raft_address":"h:1","http_url":"http://h"}', ("id",)),
    ("POST", "/v1/cluster/leader", b'{"id":""}', ("id",)),
    ("POST", "/v1/cluster/leader", b'{"node":"n2"}', ("'node'", "Known: id")),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "words"), BAD_BODIES)
async def test_wrong_members_of_a_body_are_refused_by_name(
    node: Node, method: str, path: str, body: bytes, words: tuple[str, ...]
) -> None:
    response = await node.client.request(method, path, content=body, headers=JSON)
    check_problem(response, 400, "invalid_parameter", *words)
    assert (await node.client.get("/v1/topics")).json()["topics"] == []


@pytest.mark.parametrize("body", [b'{"name":"a"', b"", b"\xff", b'{"name":NaN}', b"[" * 40])
async def test_settings_that_are_not_json_are_refused_with_their_place(
    node: Node, body: bytes
) -> None:
    response = await node.client.post("/v1/topics", content=body, headers=JSON)
    problem = check_problem(response, 400, "invalid_json")
    assert problem["line"] == 1
    assert problem["column"] >= 1


async def test_bad_names_in_bodies_and_lists_are_refused(node: Node) -> None:
    response = await node.client.post("/v1/topics", json={"name": "a..b"})
    check_problem(response, 400, "invalid_topic", "'a..b'")
    response = await node.client.get("/v1/topics", params={"after": "a..b"})
    check_problem(response, 400, "invalid_topic", "'a..b'")


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
async def test_a_malformed_idempotency_key_is_refused(node: Node, key: str) -> None:
    request = request_bytes(
        "POST",
        "/v1/topics/chat/messages",
        ["Content-Type: application/json", "Content-Length: 1", f"Idempotency-Key: {key}"],
        b"1",
    )
    check_problem(await node.send(request), 400, "invalid_parameter", "Idempotency-Key")
    assert await node.data("chat") == []


async def test_two_idempotency_keys_are_refused(node: Node) -> None:
    headers = [*JSON.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    response = await node.client.post("/v1/topics/a/messages", content=b"1", headers=headers)
    check_problem(response, 400, "invalid_parameter", "Idempotency-Key")


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v2/topics", "/v1/topics/", "/v1/topics//messages",
     "/v1/topics/chat/", "/v1/topics/a%2Fb", "/v1/topics/a/b", "/docs/", "/static/x",
     "/v1/../v1/topics", "/%ff"],
)  # fmt: skip
async def test_an_unknown_path_is_not_found(node: Node, path: str) -> None:
    answer = await node.send(request_bytes("GET", path))
    check_problem(answer, 404, "not_found")


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_wrong_method_is_refused_with_the_right_ones(
    node: Node, method: str, path: str
) -> None:
    response = await node.client.request("PATCH", path)
    check_problem(response, 405, "method_not_allowed", "PATCH", method)
    allowed = response.headers["allow"].split(", ")
    assert method in allowed
    assert "OPTIONS" in allowed
    assert ("HEAD" in allowed) == ("GET" in allowed)
    options = await node.client.request("OPTIONS", path)
    assert (options.status_code, options.headers["allow"]) == (204, ", ".join(allowed))
    assert options.content == b""


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "PURGE"])
async def test_a_strange_method_is_refused(node: Node, method: str) -> None:
    answer = await node.send(request_bytes(method, "/v1/topics"))
    check_problem(answer, 405, "method_not_allowed")


@pytest.mark.parametrize(
    "request_line",
    [b"GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n", b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"],
)
async def test_what_is_not_http_is_refused(node: Node, request_line: bytes) -> None:
    check_problem(await node.send(request_line), 400, "malformed_request")


@pytest.mark.parametrize(
    ("fields", "words"),
    [("", "Host field is missing"), ("Host: a\r\nHost: b\r\n", "more than once")],
)
async def test_it_is_said_what_is_wrong_with_host(node: Node, fields: str, words: str) -> None:
    answer = await node.send(f"GET /healthz HTTP/1.1\r\n{fields}\r\n".encode())
    check_problem(answer, 400, "malformed_request", words)


async def test_a_long_idempotency_key_is_shown_in_part(node: Node) -> None:
    headers = {**JSON, "Idempotency-Key": "k" * 300}
    response = await node.client.post("/v1/topics/chat/messages", content=b"1", headers=headers)
    check_problem(response, 400, "invalid_parameter", f"'{'k' * 64}'… (300 characters)")


@pytest.mark.parametrize(
    "host", ["user@localhost", "a,b", "é", "x:99999", "a..b", ".", "", "[::1", "xn--a:x"]
)
async def test_a_host_that_is_none_is_refused(launch: Launch, host: str) -> None:
    async with launch(http={"hosts": ("*",)}) as node:
        request = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")
        check_problem(await node.send(request), 400, "malformed_request", "Host")


@pytest.mark.parametrize(
    "host", ["my_broker:4080", "[::1]:4080", "xn--a", "a" * 63, f"{'a' * 63}.b:1", "a-"]
)
async def test_any_host_that_is_listed_may_be_asked_for(launch: Launch, host: str) -> None:
    """Names with an underscore are common in container networks."""
    request = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for hosts in (("*",), (host,)):
        async with launch(http={"hosts": hosts}) as node:
            assert (await node.send(request)).status == 200
    async with launch() as node:
        if host.startswith("["):
            assert (await node.send(request)).status == 200
        else:
            check_problem(await node.send(request), 421, "unknown_host", repr(host), "[http] hosts")


async def test_headers_over_the_limit_are_refused(launch: Launch) -> None:
    async with launch(limits={"header_bytes": 1024}) as node:
        answer = await node.send(request_bytes("GET", "/healthz", [f"X: {'x' * 5000}"]))
        check_problem(answer, 431, "headers_too_large", "1024")


async def test_a_head_of_many_fields_is_refused_on_every_route(node: Node) -> None:
    for method, path in (("GET", "/healthz"), ("GET", "/v1/events?topic=a")):
        good = await node.send(request_bytes(method, "/healthz", ["a: b"] * 200))
        assert good.status == 200
        bad = await node.send(request_bytes(method, path, ["a: b"] * 300))
        check_problem(bad, 431, "headers_too_large", "256 fields")
    fields = ["a: b"] * 300 + ["Content-Type: application/json", "Content-Length: 1"]
    publish = request_bytes("POST", "/v1/topics/a/messages", fields, b"1")
    check_problem(await node.send(publish), 431, "headers_too_large", "256 fields")


async def test_a_transfer_coding_that_is_not_known_is_refused(node: Node) -> None:
    request = request_bytes("POST", "/v1/messages", ["Transfer-Encoding: gzip, chunked"])
    check_problem(await node.send(request), 501, "transfer_coding_not_implemented")


async def test_http_2_is_refused(node: Node) -> None:
    answer = await node.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    check_problem(answer, 505, "http_version_not_supported")


async def test_one_connection_too_many_is_refused(launch: Launch) -> None:
    async with launch(limits={"connections": 1}) as node:
        assert (await node.client.get("/healthz")).status_code == 200  # and it stays open
        answer = await node.send(request_bytes("GET", "/healthz"))
        check_problem(answer, 429, "too_many_connections")


async def test_every_route_is_among_these(node: Node) -> None:
    """ROUTES is what the node says of itself."""
    document: dict[str, Any] = (await node.client.get("/openapi.json")).json()
    examples = {"{topic}": "chat", "{member}": "n2", "{sub}": "ann"}
    described = {
        (method.upper(), re.sub(r"{\w+}", lambda found: examples[found[0]], path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert described == set(ROUTES)
