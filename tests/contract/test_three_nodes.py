"""A cluster of three holds to the same contract, whichever of its nodes is asked.

The tests of SAME are those of a single node. Here each request, and each
stream, goes to the next node: what one has acknowledged, the others must show.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio
from jsonschema_rs import is_valid

from repl_broker import daemon
from repl_broker.config import Address, Config
from tests.contract import (
    test_events,
    test_history,
    test_idempotency,
    test_publish,
    test_topics,
)
from tests.contract.client import JSON, NDJSON, Node, check_problem
from tests.nodes import configured

SIZE: Final = 3
SECONDS_MAX: Final = 60  # three nodes share the processor with whatever else runs


class NextNode(httpx.AsyncBaseTransport):
    """Sends each request to the next of the nodes."""

    def __init__(self, nodes: list[Node]) -> None:
        self._transport = httpx.AsyncHTTPTransport()
        self._urls = itertools.cycle(httpx.URL(node.url) for node in nodes)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = next(self._urls)
        request.url = request.url.copy_with(host=url.host, port=url.port)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


@dataclass(frozen=True)
class AnyNode(Node):
    """All of them, as if they were one."""

    connects: itertools.cycle[Node]

    async def connect(self) -> trio.SocketStream:
        return await next(self.connects).connect()


@dataclass(frozen=True)
class Three:
    """The nodes, and which of them led first."""

    nodes: list[Node]

    @property
    def leader(self) -> Node:
        return self.nodes[0]

    @property
    def followers(self) -> list[Node]:
        return self.nodes[1:]


def config_of(
    folder: Path, name: str, join: tuple[Address, ...], **sections: dict[str, Any]
) -> Config:
    anywhere = Address("127.0.0.1", 0)
    config = configured(Config(), **sections)
    config = configured(
        config, http={"bind": anywhere, "drain_seconds": 0}, raft={"bind": anywhere}
    )
    config = replace(config, node=replace(config.node, id=name, data_dir=folder / name))
    return replace(config, cluster=replace(config.cluster, join=join))


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    async with three_nodes(tmp_path) as running:
        yield running


@asynccontextmanager
async def three_nodes(
    tmp_path: Path, headers: dict[str, str] | None = None, **sections: dict[str, Any]
) -> AsyncIterator[Three]:
    """The first founds a cluster, and the others join it. Clients send ``headers``."""
    join: tuple[Address, ...] = ()
    nodes = []
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery, AsyncExitStack() as opened:
            for number in range(1, SIZE + 1):
                stop = trio.Event()
                config = config_of(tmp_path, f"n{number}", join, **sections)
                start = partial(daemon.serve, config, stop, bootstrap=not join)
                running = await nursery.start(start)
                client = await opened.enter_async_context(
                    httpx.AsyncClient(
                        base_url=running.url,
                        timeout=SECONDS_MAX,
                        trust_env=False,
                        headers=headers,
                    )
                )
                nodes.append(Node(running.url, client, stop.set))
                members = (await cluster(nodes[0]))["members"]
                join = (Address.parse(members[0]["raft_address"]),)
            for node in nodes:
                await all_vote(node)
            yield Three(nodes)
            nursery.cancel_scope.cancel()  # stopping all, the leader would wait for a successor


async def cluster(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = (await node.client.get("/v1/cluster")).json()
    return found


async def all_vote(node: Node) -> None:
    """Until it is ready, and knows that all do."""
    while True:
        roles = sorted(member["role"] for member in (await cluster(node))["members"])
        ready = (await node.client.get("/readyz")).status_code
        if (roles, ready) == (["leader", *["voter"] * (SIZE - 1)], 200):
            return
        await trio.sleep(0.02)


# --- as one -----------------------------------------------------------------------------

SAME: Final[tuple[Callable[..., Awaitable[None]], ...]] = (
    test_publish.test_a_batch_is_kept_whole_and_in_order,
    test_publish.test_a_batch_over_topics_keeps_its_order,
    test_idempotency.test_repeats_at_the_same_time_publish_once,
    test_topics.test_post_of_a_topic_that_exists_is_a_conflict,
    test_topics.test_put_creates_then_changes_and_is_idempotent,
    test_topics.test_put_of_stricter_settings_trims_history_at_once,
    test_topics.test_topics_are_listed_in_the_order_of_their_names_page_by_page,
    test_topics.test_delete_removes_the_topic_and_its_history,
    test_history.test_a_gap_is_told,
    test_events.test_messages_come_as_unnamed_events_with_one_data_line,
    test_events.test_every_stream_sees_the_same_order,
    test_events.test_resuming_at_every_place_continues_the_same_sequence,
    test_events.test_trimmed_history_is_told_as_a_gap_before_the_rest,
    test_events.test_an_id_of_another_cluster_is_told_as_a_gap,
    test_events.test_a_deleted_topic_is_told_and_the_stream_stays,
    test_events.test_streams_opened_while_publishing_miss_nothing,
)


@pytest.mark.parametrize("test", SAME, ids=lambda test: test.__name__.removeprefix("test_"))
async def test_as_on_a_single_node(three: Three, test: Callable[..., Awaitable[None]]) -> None:
    transport = NextNode(three.nodes)
    async with httpx.AsyncClient(
        base_url=three.leader.url, timeout=SECONDS_MAX, transport=transport
    ) as client:
        await test(AnyNode(three.leader.url, client, lambda: None, itertools.cycle(three.nodes)))


# --- one after the other ----------------------------------------------------------------


async def test_what_one_node_acknowledged_every_other_shows_at_once(three: Three) -> None:
    for number in range(30):
        through = three.nodes[number % SIZE]
        await through.publish("chat", number)
        for node in three.nodes:
            assert (await node.data("chat"))[-1] == number


@pytest.mark.parametrize("path", ["/v1/topics/chat/messages", "/v1/messages"])
async def test_a_repeat_through_another_node_has_the_answer_of_the_first(
    three: Three, path: str
) -> None:
    """Promise 5."""
    first, *others = [*three.followers, three.leader]
    bodies = [b'{"topic":"chat","data":%d}' % number for number in (1, 2)]
    headers = NDJSON | {"Idempotency-Key": "k1"}
    answer = await first.client.post(path, content=bodies[0], headers=headers)
    assert (answer.status_code, "idempotent-replayed" in answer.headers) == (201, False)
    for node in (*others, first):
        again = await node.client.post(path, content=bodies[0], headers=headers)
        assert (again.status_code, again.content) == (201, answer.content)
        assert again.headers["idempotent-replayed"] == "true"
        other = await node.client.post(path, content=bodies[1], headers=headers)
        check_problem(other, 422, "idempotency_key_reused")
    assert len(await first.data("chat")) == 1


async def test_a_topic_is_the_same_on_all_nodes(three: Three) -> None:
    first, second, third = three.nodes
    created = await second.client.post(
        "/v1/topics", json={"name": "small", "retention": {"messages": 2}}
    )
    assert created.status_code == 201
    for number in range(4):
        await third.publish("small", number)
    shown = [(await node.client.get("/v1/topics/small")).json() for node in three.nodes]
    assert shown[0] == shown[1] == shown[2]
    assert (shown[0]["messages"], shown[0]["created_at"]) == (2, created.json()["created_at"])
    listed = [(await node.client.get("/v1/topics")).json() for node in three.nodes]
    assert listed == [{"topics": [shown[0]], "next": None}] * SIZE
    assert (await first.client.delete("/v1/topics/small")).status_code == 204
    for node in three.nodes:
        check_problem(await node.client.get("/v1/topics/small"), 404, "topic_not_found")
        again = await node.client.delete("/v1/topics/small")
        check_problem(again, 404, "topic_not_found")


async def test_a_stream_goes_on_at_another_node_where_it_stopped(three: Three) -> None:
    """Promise 3, from node to node, for several topics."""
    ids = [(await three.leader.publish(f"t{number % 2}", number))[0] for number in range(9)]
    last = None
    got: list[Any] = []
    for node in itertools.chain(three.followers, three.nodes):
        after = "earliest" if last is None else None
        async with node.events("t0", "t1", after=after, last=last) as stream:
            begun = await stream.subscribed()
            assert last is None or begun["position"] == last
            messages = await stream.messages(2 if len(got) < 8 else 1)
            last = messages[-1]["id"]
            got += messages
    assert [message["data"] for message in got] == [*range(9)]
    assert [message["id"] for message in got] == ids


async def test_an_id_is_good_on_every_node_at_the_moment_it_is_given(three: Three) -> None:
    """The node waits until it has got there, and tells of no gap."""
    for number in range(10):
        (identity,) = await three.leader.publish("chat", number)
        node = three.followers[number % 2]
        async with node.events("chat", last=identity) as stream:
            await stream.subscribed()
            await three.leader.publish("chat", "next")
            assert await stream.data(1) == ["next"]


async def test_every_node_shows_the_cluster(three: Three) -> None:
    document = (await three.leader.client.get("/openapi.json")).json()
    described = {"$ref": "#/components/schemas/Cluster", "components": document["components"]}
    seen = [await cluster(node) for node in three.nodes]
    assert all(is_valid(described, each) for each in seen)
    assert [each.pop("node") for each in seen] == ["n1", "n2", "n3"]
    for each in seen:
        assert each["mode"] == "cluster"
        roles = [member["role"] for member in each["members"]]
        assert roles == ["leader", "voter", "voter"]
        assert all(member["reachable"] for member in each["members"])
    assert len({each["cluster_id"] for each in seen}) == 1


async def test_a_leader_that_goes_hands_over_and_no_client_of_the_others_notices(
    three: Three,
) -> None:
    first, second = three.followers
    async with second.events("chat") as stream:
        await stream.subscribed()
        await first.publish("chat", "before")
        three.leader.stop()
        for number in range(20):
            response = await first.client.post(
                "/v1/topics/chat/messages", json=number, headers=JSON
            )
            assert response.status_code == 201, response.text
        assert await stream.data(21) == ["before", *range(20)]
    found = await cluster(first)
    assert found["leader"] in {"n2", "n3"}
