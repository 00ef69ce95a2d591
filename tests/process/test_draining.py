"""SIGTERM to a node that drains: what it tells balancers, and what it still serves."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.process.member import cluster_of, followers_of, leader_of
from tests.process.node import Answer, Broken, Client, Node, Stream, polls

pytestmark = pytest.mark.process

LONG: Final = 120  # seconds that no test waits for
QUICK_SECONDS_MAX: Final = 20


def draining(node: Node) -> Answer:
    """What /readyz says, once it is no 200 any more."""
    for _ in polls("the node to drain"):
        with Client(node) as client:
            answer = client.request("GET", "/readyz")
        if answer.status != 200:
            return answer
    raise AssertionError


def test_a_node_that_drains_is_not_ready_and_serves_until_a_second_signal(tmp_path: Path) -> None:
    with Node(tmp_path / "data", http_drain_seconds=LONG) as node:
        node.start()
        with Client(node) as client, Stream(node, "chat") as stream:
            assert client.publish("chat", b"0").status == 201
            node.process.send_signal(signal.SIGTERM)
            answer = draining(node)
            assert answer.status == 503
            assert (answer.json["code"], answer.json["reason"]) == ("shutting_down", "draining")
            assert [each["code"] for each in answer.json["reasons"]] == ["shutting_down"]
            assert node.get("/v1/cluster")["reasons"] == answer.json["reasons"]
            assert answer.headers["retry-after"]
            published = client.publish("chat", b"1")
            assert (published.status, published.headers["connection"]) == (201, "close")
            with Stream(node, "chat", after="earliest") as late:
                found = (block.message["data"] for block in late if block.is_message)
                assert [next(found), next(found)] == [0, 1]
            with Client(node) as other:
                assert b"repl_broker_ready 0.0" in other.request("GET", "/metrics").body
                assert other.request("GET", "/healthz").status == 200
            began = time.monotonic()
            assert node.stop() == 0
            assert time.monotonic() - began < QUICK_SECONDS_MAX
            blocks = [*stream]
            assert [b.message["data"] for b in blocks if b.is_message] == [0, 1]
            assert blocks[-1].event == "goodbye"
        log = node.log_text()
        assert "draining: not ready, serving on" in log
        assert log.count('"message":"stopping signal=SIGTERM') == 2


def test_sigint_does_not_drain(tmp_path: Path) -> None:
    """Somebody sits before it."""
    with Node(tmp_path / "data", http_drain_seconds=LONG) as node:
        node.start()
        began = time.monotonic()
        assert node.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < QUICK_SECONDS_MAX


def test_a_leader_that_drains_leads_no_more_and_passes_publishes_on(tmp_path: Path) -> None:
    with cluster_of(tmp_path, http_drain_seconds=LONG) as nodes:
        leader = leader_of(nodes)
        others = followers_of(nodes)
        leader.process.send_signal(signal.SIGTERM)
        draining(leader)
        for _ in polls("another to lead"):
            if others[0].cluster()["leader"] in {other.name for other in others}:
                break
        with Client(leader) as client:
            for _ in polls("it to know"):
                if client.publish("chat", b"1").status == 201:
                    break
        assert others[0].history("chat")
        assert leader.stop() == 0
        for node in others:
            with suppress(*Broken):
                node.process.send_signal(signal.SIGINT)


def test_what_waits_for_a_leader_when_a_node_stops_is_answered(tmp_path: Path) -> None:
    """A request waits longer for a leader than a node waits for its requests when it stops."""
    with cluster_of(tmp_path, ("n1", "n2"), http_drain_seconds=0) as nodes:
        leader = leader_of(nodes)
        (other,) = followers_of(nodes)
        leader.kill()
        answers: list[object] = []

        def ask(method: str, body: bytes | None) -> None:
            try:
                with Client(other, 20) as client:
                    headers = {"Content_Type": "application/json"} if body else {}
                    answer = client.request(method, "/v1/topics/chat/messages", body, **headers)
                    answers.append((answer.status, answer.json["code"]))
            except Broken as error:
                answers.append(error)

        asked = [("POST", b"1"), ("POST", b"2"), ("GET", None)]
        threads = [threading.Thread(target=ask, args=each) for each in asked]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert other.stop() == 0
        for thread in threads:
            thread.join()
        told = {(503, "shutting_down"), (503, "no_leader"), (504, "outcome_unknown")}
        assert len(answers) == len(asked)
        assert {*answers} <= told, answers
