"""Publishing twice is safe (DESIGN section 2, promise 5)."""

from __future__ import annotations

import httpx
import pytest
import trio

from tests.contract.client import JSON, NDJSON, Node, check_problem
from tests.contract.conftest import Launch, over_all_front_ends

pytestmark = over_all_front_ends

REQUESTS = {
    "one": ("/v1/topics/chat/messages", b'{"n": 1}', JSON),
    "batch": ("/v1/topics/chat/messages", b"1\n2\n", NDJSON),
    "many": ("/v1/messages", b'{"topic":"chat","data":1}\n{"topic":"b","data":2}\n', NDJSON),
}


async def post(node: Node, kind: str, key: str, body: bytes | None = None) -> httpx.Response:
    path, usual, headers = REQUESTS[kind]
    return await node.client.post(
        path, content=usual if body is None else body, headers=headers | {"Idempotency-Key": key}
    )


@pytest.mark.parametrize("kind", list(REQUESTS))
async def test_a_repeat_has_the_effect_and_the_answer_of_the_first(node: Node, kind: str) -> None:
    first = await post(node, kind, "k1")
    assert first.status_code == 201
    assert "idempotent-replayed" not in first.headers
    kept = await node.history("chat")
    for _ in range(2):
        again = await post(node, kind, "k1")
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotent-replayed"] == "true"
    assert await node.history("chat") == kept
    other = await post(node, kind, "k2")
    assert other.status_code == 201
    assert other.content != first.content


async def test_white_space_makes_no_other_request(node: Node) -> None:
    first = await post(node, "one", "k", b'{"n":1}')
    again = await post(node, "one", "k", b' { "n" : 1 } ')
    assert again.json() == first.json()


@pytest.mark.parametrize(
    ("kind", "body"), [("one", b'{"n": 2}'), ("batch", b'{"n":1}\n2\n'), ("many", None)]
)
async def test_the_same_key_for_another_request_is_refused(
    node: Node, kind: str, body: bytes | None
) -> None:
    first = await post(node, "one", "k")
    assert first.status_code == 201
    check_problem(await post(node, kind, "k", body), 422, "idempotency_key_reused", "'k'")
    assert await node.data("chat") == [{"n": 1}]
    other_topic = await node.client.post(
        "/v1/topics/other/messages",
        content=b'{"n": 1}',
        headers=JSON | {"Idempotency-Key": "k"},
    )
    check_problem(other_topic, 422, "idempotency_key_reused")


async def test_repeats_at_the_same_time_publish_once(node: Node) -> None:
    answers: list[httpx.Response] = []

    async def publish() -> None:
        answers.append(await post(node, "one", "k"))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(publish)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert replayed.count(None) == 1
    assert await node.data("chat") == [{"n": 1}]


async def test_a_repeat_is_recognised_after_a_restart(launch: Launch) -> None:
    async with launch() as node:
        first = await post(node, "batch", "k")
    async with launch() as node:
        again = await post(node, "batch", "k")
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        assert await node.data("chat") == [1, 2]


async def test_a_refused_request_does_not_use_up_its_key(node: Node) -> None:
    check_problem(await post(node, "one", "k", b"{"), 400, "invalid_json")
    assert (await post(node, "one", "k", b"{}")).status_code == 201


async def test_as_many_keys_are_remembered_as_configured(launch: Launch) -> None:
    async with launch(limits={"idempotency_keys": 2}) as node:
        for key in ("a", "b", "c"):
            await post(node, "one", key)
        assert (await post(node, "one", "c")).headers["idempotent-replayed"] == "true"
        assert (await post(node, "one", "b")).headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in (await post(node, "one", "a")).headers


@pytest.mark.parametrize("key", ["x", "~" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a,b"])
async def test_any_visible_ascii_is_a_key(node: Node, key: str) -> None:
    assert (await post(node, "one", key)).status_code == 201
    assert (await post(node, "one", key)).headers["idempotent-replayed"] == "true"
