"""Topics: create, change, list, show, delete (DESIGN section 4)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from repl_broker import idle
from tests.contract.client import JSON, NDJSON, Node, check_problem
from tests.contract.conftest import Launch

DEFAULTS = {"messages": 10_000, "seconds": 86_400, "bytes": 67_108_864, "idle_seconds": None}


async def test_post_creates_a_topic_and_says_where_it_is(node: Node) -> None:
    response = await node.client.post("/v1/topics", json={"name": "orders.eu"})
    assert response.status_code == 201
    assert response.headers["location"] == "/v1/topics/orders.eu"
    topic = response.json()
    created_at = topic.pop("created_at")
    assert topic == {
        "name": "orders.eu",
        "retention": DEFAULTS,
        "messages": 0,
        "bytes": 0,
        "first_id": None,
        "last_id": None,
        "subscribers": 0,
    }
    shown = await node.client.get(response.headers["location"])
    assert (shown.status_code, shown.json()) == (200, topic | {"created_at": created_at})


async def test_post_of_a_topic_that_exists_is_a_conflict(node: Node) -> None:
    body = {"name": "chat", "retention": {"messages": 5}}
    assert (await node.client.post("/v1/topics", json=body)).status_code == 201
    again = await node.client.post("/v1/topics", json={"name": "chat"})
    check_problem(again, 409, "topic_exists", "chat")
    topic = (await node.client.get("/v1/topics/chat")).json()
    assert topic["retention"] == DEFAULTS | {"messages": 5}


async def test_put_creates_then_changes_and_is_idempotent(node: Node) -> None:
    settings = {"retention": {"messages": 2, "seconds": 60}}
    created = await node.client.put("/v1/topics/chat", json=settings)
    assert created.status_code == 201
    assert created.headers["location"] == "/v1/topics/chat"
    again = await node.client.put("/v1/topics/chat", json=settings)
    assert (again.status_code, again.json()) == (200, created.json())
    assert again.json()["retention"] == DEFAULTS | settings["retention"]
    changed = await node.client.put("/v1/topics/chat", json={})
    assert (changed.status_code, changed.json()["retention"]) == (200, DEFAULTS)


async def test_put_without_a_body_takes_the_defaults(node: Node) -> None:
    created = await node.client.put("/v1/topics/chat")
    assert (created.status_code, created.json()["retention"]) == (201, DEFAULTS)


async def test_put_of_stricter_settings_trims_history_at_once(node: Node) -> None:
    ids = await node.publish("chat", 1, 2, 3)
    response = await node.client.put("/v1/topics/chat", json={"retention": {"messages": 2}})
    topic = response.json()
    assert (topic["messages"], topic["first_id"], topic["last_id"]) == (2, ids[1], ids[2])
    assert await node.data("chat") == [2, 3]


async def test_show_counts_messages_bytes_and_ids(node: Node) -> None:
    ids = await node.publish("chat", {"a": 1}, "é")
    topic = (await node.client.get("/v1/topics/chat")).json()
    size = len(b'{"a":1}') + len(b'"\\u00e9"')
    assert (topic["messages"], topic["bytes"]) == (2, size)
    assert (topic["first_id"], topic["last_id"]) == (ids[0], ids[1])


async def test_topics_are_listed_in_the_order_of_their_names_page_by_page(node: Node) -> None:
    names = ["b", "a.x", "a", "c.d.e", "B", "a-"]
    for name in names:
        await node.publish(name, 0)
    listed: list[str] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = (await node.client.get("/v1/topics", params=params)).json()
        assert len(page["topics"]) <= 2
        listed += [topic["name"] for topic in page["topics"]]
        if page["next"] is None:
            break
        assert page["next"] == listed[-1]
        params["after"] = page["next"]
    assert listed == sorted(names)


async def test_an_exactly_full_last_page_has_no_next(node: Node) -> None:
    await node.publish("a", 0)
    await node.publish("b", 0)
    page = (await node.client.get("/v1/topics", params={"limit": 2})).json()
    assert ([topic["name"] for topic in page["topics"]], page["next"]) == (["a", "b"], None)


@pytest.mark.parametrize(
    ("match", "names"),
    [
        ("orders.*", ["orders.eu", "orders.us"]),
        ("orders.>", ["orders.eu", "orders.eu.42", "orders.us"]),
        (">", ["chat", "orders.eu", "orders.eu.42", "orders.us"]),
        ("*.eu.>", ["orders.eu.42"]),
        ("chat", ["chat"]),
        ("nothing", []),
    ],
)
async def test_match_lists_what_the_filter_matches(
    node: Node, match: str, names: list[str]
) -> None:
    for name in ("chat", "orders.eu", "orders.us", "orders.eu.42"):
        await node.publish(name, 0)
    page = (await node.client.get("/v1/topics", params={"match": match})).json()
    assert [topic["name"] for topic in page["topics"]] == names


async def test_delete_removes_the_topic_and_its_history(node: Node) -> None:
    await node.publish("chat", 1, 2)
    response = await node.client.delete("/v1/topics/chat")
    assert (response.status_code, response.content) == (204, b"")
    assert "content-type" not in response.headers
    check_problem(await node.client.get("/v1/topics/chat"), 404, "topic_not_found", "chat")
    check_problem(await node.client.get("/v1/topics/chat/messages"), 404, "topic_not_found")
    check_problem(await node.client.delete("/v1/topics/chat"), 404, "topic_not_found")
    await node.publish("chat", 3)
    assert await node.data("chat") == [3]


async def test_without_auto_create_an_unknown_topic_is_not_found(launch: Launch) -> None:
    async with launch(topics={"auto_create": False}) as node:
        post = node.client.post
        one = await post("/v1/topics/chat/messages", content=b"1", headers=JSON)
        check_problem(one, 404, "topic_not_found", "chat")
        batch = await post("/v1/topics/chat/messages", content=b"1\n2\n", headers=NDJSON)
        check_problem(batch, 404, "topic_not_found")
        await node.client.put("/v1/topics/known")
        lines = b'{"topic":"known","data":1}\n{"topic":"chat","data":2}\n'
        many = await post("/v1/messages", content=lines, headers=NDJSON)
        check_problem(many, 404, "topic_not_found", "chat")
        assert await node.data("known") == []
        events = await node.client.get("/v1/events", params={"topic": ["known", "chat"]})
        check_problem(events, 404, "topic_not_found", "chat")
        async with node.events("known", "*") as stream:  # a pattern waits for what comes
            assert (await stream.subscribed())["topics"] == ["*", "known"]


async def test_retention_ranges_end_where_they_are_said_to(node: Node) -> None:
    for name, least, most in (
        ("messages", 1, 1_000_000_000),
        ("seconds", 1, 315_360_000),
        ("bytes", 1, 2**40),
    ):
        for value, status in ((least, 201), (most, 201), (least - 1, 400), (most + 1, 400)):
            response = await node.client.put(
                f"/v1/topics/{name}-{value}", json={"retention": {name: value}}
            )
            assert response.status_code == status, response.text
            if status == 400:
                check_problem(response, 400, "invalid_parameter", f"retention.{name}", str(most))


# --- many at once -------------------------------------------------------------------------


async def test_delete_removes_what_the_filter_matches_and_says_how_many(node: Node) -> None:
    for name in ("jobs.1", "jobs.2", "jobs.a.b", "jobs", "other"):
        await node.publish(name, 1)
    async with node.events(">") as stream:
        await stream.subscribed()
        gone = await node.client.delete("/v1/topics", params={"match": "jobs.>"})
        assert (gone.status_code, gone.json()) == (200, {"count": 3})
        told = [await stream.event() for _ in range(3)]
    assert [(e["event"], json.loads(e["data"])["topic"]) for e in told] == [
        ("topic-deleted", name) for name in ("jobs.1", "jobs.2", "jobs.a.b")
    ]
    left = (await node.client.get("/v1/topics")).json()["topics"]
    assert [topic["name"] for topic in left] == ["jobs", "other"]
    again = await node.client.delete("/v1/topics", params={"match": "jobs.>"})
    assert again.json() == {"count": 0}
    everything = await node.client.delete("/v1/topics", params={"match": ">"})
    assert everything.json() == {"count": 2}


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [
        ("", "invalid_parameter", "'match' is missing"),
        ("?match=", "invalid_filter", ""),
        ("?match=jobs..a", "invalid_filter", "jobs..a"),
        ("?match=a&match=b", "invalid_parameter", "more than once"),
        ("?topic=a", "invalid_parameter", "'topic'"),
    ],
)
async def test_delete_without_a_filter_deletes_nothing(
    node: Node, query: str, code: str, words: str
) -> None:
    await node.publish("chat", 1)
    check_problem(await node.client.delete(f"/v1/topics{query}"), 400, code, words)
    assert await node.data("chat") == [1]


async def test_many_topics_are_deleted_in_several_entries(node: Node) -> None:
    lines = b"".join(b'{"topic":"jobs.%d","data":1}\n' % number for number in range(2500))
    many = await node.client.post("/v1/messages", content=lines, headers=NDJSON)
    assert many.status_code == 201
    before = (await node.client.get("/v1/cluster")).json()["applied_index"]
    gone = await node.client.delete("/v1/topics", params={"match": "jobs.*"})
    assert gone.json() == {"count": 2500}
    assert (await node.client.get("/v1/cluster")).json()["applied_index"] == before + 3


# --- topics that are idle -----------------------------------------------------------------


async def test_a_topic_says_how_long_it_may_be_idle(node: Node) -> None:
    created = await node.client.put("/v1/topics/job", json={"retention": {"idle_seconds": 60}})
    assert created.json()["retention"] == DEFAULTS | {"idle_seconds": 60}
    for given in (0, None):
        body = {"retention": {"idle_seconds": given}}
        changed = await node.client.put("/v1/topics/job", json=body)
        assert (changed.status_code, changed.json()["retention"]) == (200, DEFAULTS)
    posted = await node.client.post(
        "/v1/topics", json={"name": "visitor", "retention": {"idle_seconds": 5, "messages": 3}}
    )
    assert posted.json()["retention"] == DEFAULTS | {"idle_seconds": 5, "messages": 3}


@pytest.mark.parametrize("given", [-1, 1.5, "60", True, 3650 * 86_400 + 1])
async def test_an_idle_time_that_is_none_is_refused(node: Node, given: object) -> None:
    body = {"retention": {"idle_seconds": given}}
    refused = await node.client.put("/v1/topics/job", json=body)
    check_problem(refused, 400, "invalid_parameter", "retention.idle_seconds")


async def test_a_topic_that_nobody_uses_is_gone_by_itself(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time that passes; the rest of it is in tests/test_idle.py."""
    monkeypatch.setattr(idle, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(idle, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(idle, "HOLD_SECONDS", 0)
    await node.client.put("/v1/topics/job", json={"retention": {"idle_seconds": 1}})
    await node.publish("job", 1)
    await node.publish("stays", 2)
    while True:
        if (await node.client.get("/v1/topics/job")).status_code == 404:
            break
        await trio.sleep(0.05)
    assert await node.data("stays") == [2]
