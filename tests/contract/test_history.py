"""Reading back what is retained: order, pages, gaps."""

from __future__ import annotations

import pytest

from tests.contract.client import NDJSON, Node, check_problem
from tests.contract.conftest import Launch
from tests.contract.test_events import moved, next_epoch


async def test_history_is_oldest_first_and_begins_at_the_earliest(node: Node) -> None:
    await node.publish("other", 0)
    ids = await node.publish("chat", 1, {"b": [2]})
    page = await node.history("chat")
    assert [m["id"] for m in page["messages"]] == ids
    assert [m["data"] for m in page["messages"]] == [1, {"b": [2]}]
    assert {m["topic"] for m in page["messages"]} == {"chat"}
    assert (page["next"], page["gap"]) == (None, False)


@pytest.mark.parametrize("limit", [1, 3, 4, 12, 1000])
async def test_pages_give_every_message_once(node: Node, limit: int) -> None:
    for number in range(12):
        await node.publish(f"t{number % 2}", number)
    found: list[int] = []
    after, pages = "earliest", 0
    while True:
        page = await node.history("t0", after=after, limit=limit)
        assert len(page["messages"]) <= limit
        assert page["gap"] is False
        found += [message["data"] for message in page["messages"]]
        pages += 1
        if page["next"] is None:
            break
        after = page["next"]
        assert after == page["messages"][-1]["id"]
    assert found == [0, 2, 4, 6, 8, 10]
    assert pages == -(-6 // limit)


async def test_a_page_has_100_messages_unless_told(node: Node) -> None:
    body = b"\n".join(b"%d" % number for number in range(1100))
    await node.client.post("/v1/topics/chat/messages", content=body, headers=NDJSON)
    assert len((await node.history("chat"))["messages"]) == 100
    page = await node.history("chat", limit=1000)
    assert [m["data"] for m in page["messages"]] == list(range(1000))
    rest = await node.history("chat", limit=1000, after=page["next"])
    assert [m["data"] for m in rest["messages"]] == list(range(1000, 1100))


async def test_a_page_ends_early_when_it_grows_too_large(node: Node) -> None:
    for number in range(10):
        await node.publish("chat", f"{number}" + "x" * 300_000)
    sizes = []
    after = "earliest"
    while after is not None:
        page = await node.history("chat", limit=1000, after=after)
        sizes.append(len(page["messages"]))
        after = page["next"]
    assert sizes == [3, 3, 3, 1]


async def test_latest_and_the_last_id_give_nothing(node: Node) -> None:
    ids = await node.publish("chat", 1, 2)
    for after in ("latest", ids[1]):
        page = await node.history("chat", after=after)
        assert page == {"messages": [], "next": None, "gap": False}


async def test_a_gap_is_told(node: Node) -> None:
    await node.client.put("/v1/topics/chat", json={"retention": {"messages": 2}})
    ids = await node.publish("chat", 1, 2, 3, 4)
    trimmed = await node.history("chat", after=ids[0])
    assert ([m["data"] for m in trimmed["messages"]], trimmed["gap"]) == ([3, 4], True)
    level = await node.history("chat", after=ids[1])
    assert ([m["data"] for m in level["messages"]], level["gap"]) == ([3, 4], False)
    foreign = await node.history("chat", after=next_epoch(ids[2]))
    assert ([m["data"] for m in foreign["messages"]], foreign["gap"]) == ([3, 4], True)
    future = await node.history("chat", after=moved(ids[3], 100))
    assert (future["messages"], future["gap"]) == ([], True)


async def test_history_survives_a_restart(launch: Launch) -> None:
    async with launch() as node:
        ids = await node.publish("chat", 1, 2)
        before = await node.history("chat")
    async with launch() as node:
        assert await node.history("chat") == before
        assert [m["id"] for m in before["messages"]] == ids
        (identity,) = await node.publish("chat", 3)
        assert identity == moved(ids[1], 1)


async def test_the_history_of_an_unknown_topic_is_not_found(node: Node) -> None:
    check_problem(await node.client.get("/v1/topics/chat/messages"), 404, "topic_not_found")
