"""What a restart must not change: topics, retention, history, keys, and the epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.process.node import JSON, Client, Node, Stream

pytestmark = pytest.mark.process

RETENTION = {"messages": 3, "seconds": 3600, "bytes": 5000, "idle_seconds": None}
SMALL = json.dumps({"name": "small", "retention": RETENTION}).encode()


@pytest.fixture(params=["stop", "kill"])
def restart(request: pytest.FixtureRequest) -> Callable[[Node], None]:
    def restart(node: Node) -> None:
        if request.param == "kill":
            node.kill()
        else:
            assert node.stop() == 0
        node.start()

    return restart


def test_topics_retention_history_and_the_epoch_stay(
    restart: Callable[[Node], None], tmp_path: Path
) -> None:
    with Node(tmp_path / "data") as node:
        node.start()
        with Client(node) as client:
            body = (
                b'{"name": "small", "retention": {"messages": 3, "seconds": 3600, "bytes": 5000}}'
            )
            assert client.request("POST", "/v1/topics", body, Content_Type=JSON).status == 201
            for name in ("gone", "empty"):
                path = f"/v1/topics/{name}"
                assert client.request("PUT", path, b"{}", Content_Type=JSON).status == 201
            assert client.request("DELETE", "/v1/topics/gone").status == 204
        for number in range(5):
            node.publish("small", number)
            node.publish("default", number)
        topics, history, epoch = contents(node)
        restart(node)
        assert contents(node) == (topics, history, epoch)
        restart(node)  # once more, from what the first one wrote
        assert contents(node) == (topics, history, epoch)

        assert [topic["name"] for topic in topics] == ["default", "empty", "small"]
        assert topics[2]["retention"] == RETENTION
        assert [message["data"] for message in history["small"]] == [2, 3, 4]
        assert node.publish("small", 5) == f"{epoch}-11", "numbers go on without a hole"
        assert [message["data"] for message in node.history("small")] == [3, 4, 5]
        check_gap(node, f"{epoch}-1")


def contents(node: Node) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]], str]:
    """Topics as they are listed, the history of each, and the epoch."""
    topics = node.get("/v1/topics")["topics"]
    history = {topic["name"]: node.history(topic["name"]) for topic in topics}
    return topics, history, node.get("/v1/cluster")["epoch"]


def check_gap(node: Node, after: str) -> None:
    """What was trimmed before the restart is told to be lost after it."""
    with Stream(node, "small", last_id=after) as stream:
        gap = next(block for block in stream if block.event == "gap")
    assert '"reason":"retention"' in gap.fields["data"]


def test_a_repeat_after_a_restart_has_the_answer_of_the_first(
    restart: Callable[[Node], None], tmp_path: Path
) -> None:
    with Node(tmp_path / "data") as node:
        node.start()
        with Client(node) as client:
            first = client.publish("chat", b'"once"', Idempotency_Key="k1")
        restart(node)
        with Client(node) as client:
            again = client.publish("chat", b'"once"', Idempotency_Key="k1")
            other = client.publish("chat", b'"other"', Idempotency_Key="k1")
        assert (first.status, again.status, again.body) == (201, 201, first.body)
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")
        assert [message["data"] for message in node.history("chat")] == ["once"]


def test_defaults_that_were_changed_hold_from_the_restart_on(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        node.start()
        with Client(node) as client:
            assert client.request("POST", "/v1/topics", SMALL, Content_Type=JSON).status == 201
        assert node.stop() == 0
        node.keys = {"topics_retention_messages": 2}
        node.start()
        for number in range(4):
            node.publish("new", number)
            node.publish("small", number)
        assert [message["data"] for message in node.history("new")] == [2, 3]
        assert [message["data"] for message in node.history("small")] == [1, 2, 3]
        assert node.get("/v1/topics/small")["retention"] == RETENTION, "which it says itself"
