"""Publishing: one message, a batch, a batch over several topics."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from tests.contract.client import JSON, NDJSON, Node, check_problem, request_bytes
from tests.contract.conftest import Launch, over_all_front_ends

pytestmark = over_all_front_ends


async def test_publishing_one_message_answers_with_its_place(node: Node) -> None:
    response = await node.client.post("/v1/topics/chat/messages", content=b"1", headers=JSON)
    assert response.status_code == 201
    answer = response.json()
    assert answer.keys() == {"id", "topic", "time"}
    assert re.fullmatch(r"[0-9a-f]{8}-1", answer["id"])
    assert answer["topic"] == "chat"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer["time"])
    assert (await node.history("chat"))["messages"] == [answer | {"data": 1}]


async def test_a_batch_is_kept_whole_and_in_order(node: Node) -> None:
    body = b'{"n":1}\n\n  \r\n"two"\n[3]'
    response = await node.client.post("/v1/topics/chat/messages", content=body, headers=NDJSON)
    assert response.status_code == 201
    page = await node.history("chat")
    ids = [message["id"] for message in page["messages"]]
    expected = {"topic": "chat", "count": 3, "first_id": ids[0], "last_id": ids[2]}
    assert response.json() == expected
    assert [message["data"] for message in page["messages"]] == [{"n": 1}, "two", [3]]


async def test_a_batch_over_topics_keeps_its_order(node: Node) -> None:
    body = b'{"topic":"a","data":1}\n{"data":{"x":[2]},"topic":"b.c"}\n{"topic":"a","data":null}\n'
    async with node.events(">") as stream:
        await stream.subscribed()
        response = await node.client.post("/v1/messages", content=body, headers=NDJSON)
        assert response.status_code == 201
        messages = await stream.messages(3)
    ids = [message["id"] for message in messages]
    assert response.json() == {"count": 3, "first_id": ids[0], "last_id": ids[2]}
    assert [(m["topic"], m["data"]) for m in messages] == [
        ("a", 1), ("b.c", {"x": [2]}), ("a", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("published", "kept"),
    [
        (b'{"a":1,"a":2}', b'{"a":1,"a":2}'),
        (b'{ "b" : 1.50 ,\n "a":1E400 }', b'{"b":1.50,"a":1E400}'),
        (b'"\\u00e9 \\/ \xc3\xa9"', b'"\\u00e9 \\/ \xc3\xa9"'),
        (b"123456789012345678901234567890.10", b"123456789012345678901234567890.10"),
        (b'"\\ud800"', b'"\\ud800"'),
        (b'["a b\\n", -0, 1e2]', b'["a b\\n",-0,1e2]'),
        (b" null ", b"null"),
    ],
    ids=["duplicate keys", "numbers", "escapes", "long number", "lone surrogate", "space", "null"],
)
async def test_data_is_kept_byte_for_byte(node: Node, published: bytes, kept: bytes) -> None:
    """Insignificant white space aside: in the stream, in history, and from a batch."""
    async with node.events("chat") as stream:
        await stream.subscribed()
        identity = await node.publish_raw("chat", published)
        block = await stream.block()
    id_line, data_line = block.split(b"\n")
    assert id_line == b"id: " + identity.encode()
    assert data_line.startswith(b'data: {"id":"%b","topic":"chat","time":"' % identity.encode())
    assert data_line.endswith(b'Z","data":%b}' % kept)
    history = await node.client.get("/v1/topics/chat/messages")
    message = data_line.removeprefix(b"data: ")
    assert history.content == b'{"messages":[%b],"next":null,"gap":false}' % message


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "Application/JSON ; Charset=UTF8",
        "application/json; profile=x",
    ],
)
async def test_media_type_parameters_are_accepted(node: Node, content_type: str) -> None:
    response = await node.client.post(
        "/v1/topics/chat/messages", content=b"1", headers={"Content-Type": content_type}
    )
    assert response.status_code == 201


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "missing"),
        ({"Content-Type": ""}, "missing"),
        ({"Content-Type": "text/plain"}, "'text/plain'"),
        ({"Content-Type": "application/jsonx"}, "application/x-ndjson"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "application/json"),
        ({"Content-Type": "application/json; charset=latin-1"}, "latin-1"),
        ({"Content-Type": "application/x-ndjson; charset=utf-16"}, "utf-16"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "gzip"),
    ],
)
async def test_other_media_types_are_refused(
    node: Node, headers: dict[str, str], words: str
) -> None:
    response = await node.client.post("/v1/topics/chat/messages", content=b"1", headers=headers)
    check_problem(response, 415, "unsupported_media_type", words)
    assert await node.data("chat") == []


async def test_a_batch_over_topics_must_be_ndjson(node: Node) -> None:
    response = await node.client.post("/v1/messages", content=b"{}", headers=JSON)
    check_problem(response, 415, "unsupported_media_type", "application/x-ndjson")


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/v1/topics", "text/plain"), ("/v1/topics", ""), ("/v1/cluster/leader", "text/json")],
)
async def test_other_bodies_must_be_json(node: Node, path: str, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await node.client.post(path, content=b"{}", headers=headers)
    check_problem(response, 415, "unsupported_media_type")
    put = await node.client.put("/v1/topics/chat", content=b"{}", headers=headers)
    check_problem(put, 415, "unsupported_media_type")


@pytest.mark.parametrize("header", ["Content-Length: 101", "Content-Length: 1000000000000"])
async def test_a_message_over_the_limit_is_refused_before_it_is_sent(
    launch: Launch, header: str
) -> None:
    """The length alone is enough: not one byte of the body is sent here."""
    async with launch(limits={"message_bytes": 100}) as node:
        request = request_bytes(
            "POST", "/v1/topics/chat/messages", ["Content-Type: application/json", header]
        )
        problem = check_problem(await node.send(request), 413, "message_too_large", "100 bytes")
        assert problem["limit"] == 100
        assert await node.data("chat") == []


async def test_a_chunked_message_over_the_limit_is_refused_while_it_is_sent(
    launch: Launch,
) -> None:
    """The last chunk never comes; the answer does."""
    async with launch(limits={"message_bytes": 100}) as node:
        request = request_bytes(
            "POST",
            "/v1/topics/chat/messages",
            ["Content-Type: application/json", "Transfer-Encoding: chunked"],
            b"32\r\n%b\r\n" % (b"1" * 50) * 3,
        )
        check_problem(await node.send(request), 413, "message_too_large", "100 bytes")
        assert await node.data("chat") == []


@pytest.mark.parametrize("path", ["/v1/topics/chat/messages", "/v1/messages"])
async def test_a_batch_over_the_limit_is_refused_before_and_while_it_is_sent(
    launch: Launch, path: str
) -> None:
    limits = {"message_bytes": 100, "batch_bytes": 200}
    async with launch(limits=limits) as node:
        told = ["Content-Type: application/x-ndjson", "Content-Length: 201"]
        answer = await node.send(request_bytes("POST", path, told))
        assert check_problem(answer, 413, "batch_too_large", "200 bytes")["limit"] == 200
        chunked = ["Content-Type: application/x-ndjson", "Transfer-Encoding: chunked"]
        chunks = b"32\r\n%b\r\n" % (b"1\n" * 25) * 5
        answer = await node.send(request_bytes("POST", path, chunked, chunks))
        check_problem(answer, 413, "batch_too_large", "200 bytes")
        assert await node.data("chat") == []


async def test_bodies_of_exactly_the_limit_are_taken(launch: Launch) -> None:
    limits = {"message_bytes": 100, "batch_bytes": 202}
    async with launch(limits=limits) as node:
        message = b'"' + b"x" * 98 + b'"'
        await node.publish_raw("chat", message)
        response = await node.client.post(
            "/v1/topics/chat/messages", content=(message + b"\n") * 2, headers=NDJSON
        )
        assert response.status_code == 201

        async def parts() -> AsyncIterator[bytes]:
            yield message[:50]
            yield message[50:]

        response = await node.client.post("/v1/topics/chat/messages", content=parts(), headers=JSON)
        assert response.status_code == 201
        assert await node.data("chat") == ["x" * 98] * 4


async def test_a_large_message_in_a_batch_and_too_many_of_them_are_refused(
    launch: Launch,
) -> None:
    limits = {"message_bytes": 10, "batch_bytes": 1000, "batch_messages": 3}
    async with launch(limits=limits) as node:
        post = node.client.post
        large = await post(
            "/v1/topics/chat/messages", content=b'1\n2\n"123456789"\n', headers=NDJSON
        )
        check_problem(large, 413, "message_too_large", "line 3", "10 bytes")
        large = await post(
            "/v1/messages", content=b'{"topic":"chat","data":"123456789"}', headers=NDJSON
        )
        check_problem(large, 413, "message_too_large", "10 bytes")
        many = await post("/v1/topics/chat/messages", content=b"1\n" * 4, headers=NDJSON)
        assert check_problem(many, 413, "batch_too_large", "3 messages")["limit"] == 3
        assert await node.data("chat") == []


async def test_other_bodies_have_a_limit_too(node: Node) -> None:
    request = request_bytes(
        "POST", "/v1/topics", ["Content-Type: application/json", "Content-Length: 65537"]
    )
    check_problem(await node.send(request), 413, "message_too_large", "65536")


async def test_a_body_that_does_not_arrive_in_time_is_given_up(launch: Launch) -> None:
    async with launch(limits={"body_timeout_seconds": 1}) as node:
        headers = ["Content-Type: application/json", "Content-Length: 10"]
        request = request_bytes("POST", "/v1/topics/chat/messages", headers, b"123")
        check_problem(await node.send(request), 408, "request_timeout", "1 seconds")
        assert await node.data("chat") == []


@pytest.mark.parametrize(
    "sent",
    [
        request_bytes(
            "POST",
            "/v1/topics/chat/messages",
            ["Content-Type: application/json", "Content-Length: 10"],
            b"12345",
        ),
        request_bytes(
            "POST",
            "/v1/topics/chat/messages",
            ["Content-Type: application/x-ndjson", "Transfer-Encoding: chunked"],
            b"2\r\n1\n\r\n",
        ),
    ],
    ids=["with a length", "chunked"],
)
async def test_a_client_that_leaves_within_its_body_has_published_nothing(
    node: Node, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stream = await node.connect()
    await stream.send_all(sent)
    await stream.send_eof()
    assert await stream.receive_some() == b""  # the node has noticed
    await stream.aclose()
    assert await node.data("chat") == []
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


async def test_a_body_on_a_get_is_dropped(node: Node) -> None:
    headers = ["Content-Length: 100000", "Connection: close"]
    answer = await node.send(request_bytes("GET", "/healthz", headers, b"x" * 100_000))
    assert answer.status == 200
