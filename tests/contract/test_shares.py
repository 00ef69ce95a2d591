"""What one client may have of what all need, and whose idempotency keys are whose."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.contract.client import JSON, NDJSON, Node, check_problem, read_answer, request_bytes
from tests.contract.conftest import Launch, over_all_front_ends
from tests.contract.test_three_nodes import three_nodes
from tests.signing import SECRET, bearer, token

pytestmark = over_all_front_ends

EVE = bearer(token(("m.>", "shared"), ("m.>", "shared"), sub="eve"))
ANN = bearer(token((">",), (">",), sub="ann"))
ROOT = bearer(token(admin=True, sub="root"))


def tokens(tmp_path: Path) -> dict[str, Any]:
    secret = tmp_path / "token.secret"
    secret.write_bytes(SECRET)
    return {"mode": "jwt", "secret_file": secret}


@asynccontextmanager
async def shared(launch: Launch, tmp_path: Path, **limits: Any) -> AsyncIterator[Node]:
    async with launch(auth=tokens(tmp_path), limits=limits) as node:
        yield node


async def publish(
    node: Node, who: dict[str, str], topic: str, body: bytes = b"1", key: str = ""
) -> Any:
    headers = JSON | who | ({"Idempotency-Key": key} if key else {})
    return await node.client.post(f"/v1/topics/{topic}/messages", content=body, headers=headers)


def lines(*topics: str) -> bytes:
    return b"".join(b'{"topic":"%s","data":1}\n' % topic.encode() for topic in topics)


async def test_one_client_cannot_take_all_topics(launch: Launch, tmp_path: Path) -> None:
    """By default, as the operator gets it, but for the size of a batch."""
    async with shared(launch, tmp_path, batch_messages=100_000) as node:
        body = lines(*(f"m.{number}" for number in range(99_999)))
        refused = await node.client.post("/v1/messages", content=body, headers=NDJSON | EVE)
        check_problem(refused, 409, "too_many_topics", "share is 50,000 topics")
        assert "topics_per_client" in refused.json()["detail"]
        assert (await node.client.get("/v1/topics", headers=ROOT)).json()["topics"] == []
        assert (await publish(node, EVE, "m.1")).status_code == 201
        assert (await publish(node, ANN, "new")).status_code == 201


async def test_an_administrator_has_no_share_and_sees_to_it_that_others_have_room(
    launch: Launch, tmp_path: Path
) -> None:
    async with shared(launch, tmp_path, topics_per_client=2) as node:
        for name in ("m.1", "m.2"):
            assert (await publish(node, EVE, name)).status_code == 201
        check_problem(await publish(node, EVE, "m.3"), 409, "too_many_topics")
        for number in range(4):
            path = f"/v1/topics/root.{number}"
            assert (await node.client.put(path, headers=ROOT)).status_code == 201
        gone = await node.client.delete("/v1/topics?match=m.>", headers=ROOT)
        assert (gone.status_code, gone.json()) == (200, {"count": 2})
        assert (await publish(node, EVE, "m.3")).status_code == 201


async def test_one_client_cannot_take_all_of_the_store(launch: Launch, tmp_path: Path) -> None:
    async with shared(launch, tmp_path, storage_bytes_per_client=1000) as node:
        body = json.dumps("x" * 400).encode()
        assert (await publish(node, EVE, "m.1", body)).status_code == 201
        assert (await publish(node, EVE, "m.2", body)).status_code == 201
        refused = await publish(node, EVE, "m.1", body)
        check_problem(refused, 507, "storage_full", "share is 1,000 bytes")
        assert refused.headers["retry-after"]
        assert (await publish(node, ANN, "other", body)).status_code == 201
        assert (await publish(node, ROOT, "m.1", body)).status_code == 201


async def test_a_topic_of_an_administrators_is_no_way_around_a_share(
    launch: Launch, tmp_path: Path
) -> None:
    async with shared(launch, tmp_path, storage_bytes_per_client=1000) as node:
        body = json.dumps("x" * 400).encode()
        assert (await node.client.put("/v1/topics/shared", headers=ROOT)).status_code == 201
        for _ in range(2):
            assert (await publish(node, EVE, "shared", body)).status_code == 201
        refused = await publish(node, EVE, "shared", body)
        check_problem(refused, 507, "storage_full", "share is 1,000 bytes of messages")
        assert "[limits] storage_bytes_per_client" in refused.json()["detail"]
        batch = lines("m.1") + b'{"topic":"shared","data":%b}\n' % body
        many = await node.client.post("/v1/messages", content=batch, headers=NDJSON | EVE)
        check_problem(many, 507, "storage_full")
        missing = await node.client.get("/v1/topics/m.1", headers=ROOT)
        check_problem(missing, 404, "topic_not_found")
        for who in (ANN, ROOT, ROOT, ROOT):  # it is not full for others
            assert (await publish(node, who, "shared", body)).status_code == 201
        gone = await node.client.delete("/v1/topics/shared", headers=ROOT)
        assert gone.status_code == 204
        assert (await publish(node, EVE, "shared", body)).status_code == 201


async def test_a_refusal_says_whose_share_is_used_up_what_is_used_and_what_makes_room(
    launch: Launch, tmp_path: Path
) -> None:
    body = json.dumps("x" * 400).encode()
    share = {"topics_per_client": 2, "storage_bytes_per_client": 1000, "streams_per_client": 1}
    async with shared(launch, tmp_path, **share) as node:
        for topic in ("m.1", "m.2"):
            assert (await publish(node, EVE, topic, body)).status_code == 201
        mine = "the share of one client, 'token eve', that is "
        words = (mine, "is 2 topics ([limits] topics_per_client)", "created 2", "raise topics_per_")
        topics = check_problem(await publish(node, EVE, "m.3"), 409, "too_many_topics", *words)
        assert "or of this one" in topics["title"]
        words = (mine, "full, not the store", "is 1,000 bytes", "take 932", "466 more", "too old")
        full = check_problem(await publish(node, EVE, "m.1", body), 507, "storage_full", *words)
        assert "the client's share" in full["title"]
        _, connection = await opened(node, EVE)
        refused = await node.client.get("/v1/events?topic=m.1", headers=EVE)
        words = (mine, "is 1 ([limits] streams_per_client)", "1 open", "raise streams_per_client")
        streams = check_problem(refused, 429, "too_many_streams", *words)
        assert "share" in streams["title"]
        await connection.aclose()


async def test_a_refusal_says_that_it_is_the_limit_of_all_that_is_reached(
    launch: Launch, tmp_path: Path
) -> None:
    limits = {"topics": 2, "topics_per_client": 0}
    async with shared(launch, tmp_path, **limits) as node:
        for topic in ("m.1", "m.2"):
            assert (await publish(node, EVE, topic)).status_code == 201
        words = ("2 topics, of all clients, and 2 is the most ([limits] topics)", "raise topics")
        check_problem(await publish(node, ANN, "x"), 409, "too_many_topics", *words)
    limits = {"storage_bytes": 100, "storage_bytes_per_client": 0}
    async with shared(launch, tmp_path, **limits) as node:
        words = (
            "The store is full",
            "of all clients, take 130 bytes",
            "100 is the most",
            "below 95 ",
        )
        check_problem(await publish(node, ANN, "x"), 507, "storage_full", *words)


async def test_nobody_uses_up_the_share_of_a_neighbour_by_publishing_to_its_topic(
    launch: Launch, tmp_path: Path
) -> None:
    async with shared(launch, tmp_path, storage_bytes_per_client=1000) as node:
        body = json.dumps("x" * 400).encode()
        assert (await publish(node, ANN, "shared")).status_code == 201  # the topic is Ann's
        for _ in range(2):
            assert (await publish(node, EVE, "shared", body)).status_code == 201
        check_problem(await publish(node, EVE, "shared", body), 507, "storage_full")
        for topic in ("shared", "other"):
            assert (await publish(node, ANN, topic, body)).status_code == 201
        check_problem(await publish(node, ANN, "other", body), 507, "storage_full")


async def test_half_of_the_store_is_the_share_that_nobody_has_set(
    launch: Launch, tmp_path: Path
) -> None:
    async with shared(launch, tmp_path, storage_bytes=1001) as node:
        big = json.dumps("x" * 435).encode()
        assert (await publish(node, EVE, "m.1", big)).status_code == 201
        check_problem(await publish(node, EVE, "m.1"), 507, "storage_full", "share is 501 bytes")
        assert (await publish(node, ANN, "m.2")).status_code == 201


async def test_keys_belong_to_the_subject_that_used_them(launch: Launch, tmp_path: Path) -> None:
    async with shared(launch, tmp_path) as node:
        first = await publish(node, EVE, "shared", b'"eve"', "order-2")
        other = await publish(node, ANN, "shared", b'"ann"', "order-2")
        assert (first.status_code, other.status_code) == (201, 201)
        same = await publish(node, ROOT, "shared", b'"eve"', "order-2")
        assert same.json()["id"] not in (first.json()["id"], other.json()["id"])
        assert "idempotent-replayed" not in same.headers
        for who, answer, body in ((EVE, first, b'"eve"'), (ANN, other, b'"ann"')):
            again = await publish(node, who, "shared", body, "order-2")
            assert (again.json(), again.headers["idempotent-replayed"]) == (answer.json(), "true")
        changed = await publish(node, EVE, "shared", b'"changed"', "order-2")
        check_problem(changed, 422, "idempotency_key_reused")


async def test_nobodys_keys_push_out_anothers(launch: Launch, tmp_path: Path) -> None:
    async with shared(launch, tmp_path, idempotency_keys=8) as node:
        first = await publish(node, ANN, "shared", b"1", "keep")
        for number in range(20):
            assert (await publish(node, EVE, "shared", b"2", f"k{number}")).status_code == 201
        again = await publish(node, ANN, "shared", b"1", "keep")
        assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")


async def test_without_tokens_a_retry_from_another_address_is_recognised(
    launch: Launch, tmp_path: Path
) -> None:
    async with launch() as node:
        first = await publish(node, {}, "chat", b"1", "k")
        head = request_bytes(
            "POST",
            "/v1/topics/chat/messages",
            ["Content-Type: application/json", "Idempotency-Key: k", "Content-Length: 1"],
        )
        port = int(node.url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2") as tcp:
            await tcp.send_all(head + b"1")
            again = await read_answer(tcp)
        assert (again.status, again.json()) == (201, first.json())


async def test_without_tokens_shares_are_by_address_and_only_if_they_are_set(
    launch: Launch, tmp_path: Path
) -> None:
    async with launch(limits={"topics_per_client": 1}) as node:
        assert (await publish(node, {}, "a")).status_code == 201
        check_problem(await publish(node, {}, "b"), 409, "too_many_topics")
        check_problem(await node.client.put("/v1/topics/b"), 409, "too_many_topics")
        assert (await node.client.delete("/v1/topics?match=>")).json() == {"count": 1}
        assert (await node.client.put("/v1/topics/b")).status_code == 201


# --- streams ---


async def opened(node: Node, who: dict[str, str], *, method: str = "GET") -> tuple[int, Any]:
    """The status of the answer, and the connection."""
    connection = await node.connect()
    fields = [f"{name}: {value}" for name, value in who.items()]
    await connection.send_all(request_bytes(method, "/v1/events?topic=m.1", fields))
    data = b""
    while b"\r\n\r\n" not in data:
        received = await connection.receive_some(65536)
        assert received, f"the connection ended after {data!r}"
        data += received
    return int(data.split(b" ")[1]), connection


async def until_there_is_room(node: Node, who: dict[str, str], count: int) -> None:
    """Until the client may open that many streams; they are closed again."""
    with trio.fail_after(5):
        while True:
            async with AsyncExitStack() as stack:
                statuses = []
                for _ in range(count):
                    status, connection = await opened(node, who)
                    stack.push_async_callback(connection.aclose)
                    statuses.append(status)
            if statuses == [200] * count:
                return
            await trio.sleep(0.02)


async def test_streams_are_shared_and_each_end_gives_one_back(
    launch: Launch, tmp_path: Path
) -> None:
    async with shared(launch, tmp_path, streams_per_client=3) as node:
        for _ in range(3):
            async with AsyncExitStack() as stack:
                for _ in range(3):
                    status, connection = await opened(node, EVE)
                    assert status == 200
                    stack.push_async_callback(connection.aclose)
                refused = await node.client.get("/v1/events?topic=m.1", headers=EVE)
                check_problem(refused, 429, "too_many_streams", "on this node is 3 ")
                assert refused.headers["retry-after"]
                status, other = await opened(node, ANN)
                assert status == 200
                await other.aclose()
                status, other = await opened(node, ROOT)
                assert status == 200
                await other.aclose()
            await until_there_is_room(node, EVE, 3)


async def test_what_opens_no_stream_takes_no_seat(launch: Launch, tmp_path: Path) -> None:
    """Refused ones, HEAD, and those whose client leaves at once."""
    async with shared(launch, tmp_path, streams_per_client=2) as node:
        for _ in range(4):
            for query in ("topic=other", "topic=m.1&after=nonsense", "topic=m..1", ""):
                answer = await node.client.get(f"/v1/events?{query}", headers=EVE)
                assert answer.status_code in (400, 403)
            head = await node.client.head("/v1/events?topic=m.1", headers=EVE)
            assert head.status_code == 200
        for _ in range(8):
            connection = await node.connect()
            fields = [f"{name}: {value}" for name, value in EVE.items()]
            await connection.send_all(request_bytes("GET", "/v1/events?topic=m.1", fields))
            await connection.aclose()
        await until_there_is_room(node, EVE, 2)


async def test_many_that_open_in_one_moment_get_no_more_than_the_share(
    launch: Launch, tmp_path: Path
) -> None:
    async with shared(launch, tmp_path, streams_per_client=3) as node:
        statuses: list[int] = []
        all_open = trio.Event()

        async def open_one() -> None:
            status, connection = await opened(node, EVE)
            statuses.append(status)
            if len(statuses) == 20:
                all_open.set()
            await all_open.wait()
            await connection.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(open_one)
        assert sorted(statuses) == [200] * 3 + [429] * 17
        await until_there_is_room(node, EVE, 3)


async def test_a_stream_that_ends_with_its_token_gives_its_seat_back(
    launch: Launch, tmp_path: Path
) -> None:
    async with shared(launch, tmp_path, streams_per_client=1) as node:
        status, connection = await opened(node, EVE)
        assert status == 200
        revoked = await node.client.delete("/v1/tokens/eve", headers=ROOT)
        assert revoked.status_code == 204
        async with connection:
            data = b""
            with trio.fail_after(5):
                while b"token-expired" not in data:
                    data += await connection.receive_some(65536)
        issued_at = int(time.time()) + 2  # within the leeway, and after the revocation
        anew = bearer(token(("m.>",), ("m.>",), sub="eve", iat=issued_at))
        await until_there_is_room(node, anew, 1)


# --- a cluster ---


async def test_shares_hold_over_all_nodes(tmp_path: Path, launch: Launch) -> None:
    limits = {"topics_per_client": 2, "idempotency_keys": 8}
    async with three_nodes(tmp_path, ROOT, auth=tokens(tmp_path), limits=limits) as three:
        first, second, third = three.nodes
        assert (await publish(second, EVE, "m.1", b"1", "k")).status_code == 201
        assert (await publish(third, EVE, "m.2")).status_code == 201
        for node in three.nodes:
            check_problem(await publish(node, EVE, "m.3"), 409, "too_many_topics")
            assert "idempotent-replayed" in (await publish(node, EVE, "m.1", b"1", "k")).headers
            assert (await publish(node, ANN, "x")).status_code == 201
        gone = await second.client.delete("/v1/topics?match=>", headers=ROOT)
        assert gone.json() == {"count": 3}
        assert (await publish(first, EVE, "m.3")).status_code == 201


async def test_bytes_count_for_who_publishes_whichever_node_takes_them(
    tmp_path: Path, launch: Launch
) -> None:
    limits = {"storage_bytes_per_client": 1000}
    async with three_nodes(tmp_path, ROOT, auth=tokens(tmp_path), limits=limits) as three:
        body = json.dumps("x" * 200).encode()
        with trio.fail_after(10):  # the rule begins when all members are known to have it
            status, long = 507, json.dumps("x" * 910).encode()
            while status == 507:  # Ann's share has no room for it
                assert (await publish(three.nodes[0], ANN, "m.1")).status_code == 201
                status = (await publish(three.nodes[0], EVE, "m.1", long)).status_code
                gone = await three.nodes[0].client.delete("/v1/topics/m.1", headers=ROOT)
                assert gone.status_code == 204
        assert (await publish(three.nodes[0], ANN, "shared")).status_code == 201
        for node in three.nodes:
            assert (await publish(node, EVE, "shared", body)).status_code == 201
        for node in three.nodes:
            check_problem(await publish(node, EVE, "shared", body), 507, "storage_full")
            assert (await publish(node, ANN, "shared", body)).status_code == 201
