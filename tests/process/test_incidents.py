"""What somebody on call reads: each incident is played, and told by the logs of the nodes alone.

Real processes, with logs as JSON. ``told`` looks for a line by what it has to name, not by its
words alone: who is concerned, why, and what to do.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.process.node import JSON, Client, Node, free_port, polls
from tests.signing import SECRET, token

pytestmark = pytest.mark.process

ADMIN: Final = {"Authorization": "Bearer " + token(admin=True, sub="alice")}
NARROW: Final = {"Authorization": "Bearer " + token(("news",), sub="bob")}
TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"


class Member(Node):
    """Of a cluster with tokens."""

    def __init__(self, folder: Path, name: str, secret: Path, *, join: int | None = None) -> None:
        self.name = name
        self.raft = free_port()
        options = ["--node-id", name, "--raft", f"127.0.0.1:{self.raft}"]
        options += ["--bootstrap"] if join is None else ["--join", f"127.0.0.1:{join}"]
        keys = {"auth_mode": "jwt", "auth_secret_file": secret}
        super().__init__(folder / name, options=options, **keys)
        self._seen = 0

    def ask(self, method: str, path: str, value: object = None, **headers: str) -> int:
        body = None if value is None else json.dumps(value).encode()
        typed = {} if value is None else {"Content_Type": JSON}
        with Client(self) as client:
            return client.request(method, path, body, **{**ADMIN, **typed, **headers}).status

    def why_not_ready(self, **headers: str) -> dict[str, Any]:
        """What /readyz answers to whoever sends these."""
        with Client(self) as client:
            answer = client.request("GET", "/readyz", **headers)
        assert answer.status == 503
        found: dict[str, Any] = json.loads(answer.body)
        return found

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged since ``turn_page``."""
        text = self.log_text().splitlines()[self._seen :]
        return [json.loads(line) for line in text if line.startswith("{")]

    def turn_page(self) -> None:
        self._seen = len(self.log_text().splitlines())

    def told(self, words: str, **members: object) -> dict[str, Any]:
        """The first line with these words and members, once it is there."""
        for _ in polls(lambda: f"{words!r} {members} in {self.lines()}"):
            for line in self.lines():
                if words in line["message"] and all(line.get(k) == v for k, v in members.items()):
                    return line
        raise AssertionError("polls raises")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    return file


@pytest.fixture
def three(tmp_path: Path, secret: Path) -> Iterator[list[Member]]:
    first = Member(tmp_path, "n1", secret)
    members = [first, *(Member(tmp_path, name, secret, join=first.raft) for name in ("n2", "n3"))]
    with members[0], members[1], members[2]:
        for member in members:
            member.start()
        for member in members:
            for name in ("n2", "n3"):
                member.told("member is a voter now", id=name)
        for member in members:
            member.turn_page()
        yield members


def test_a_cluster_that_begins_names_its_leader_and_whoever_comes(three: list[Member]) -> None:
    for member in three:
        member._seen = 0
    assert three[0].told("leads term=")["voters"] == "n1", "and does not follow itself"
    for member in three[1:]:
        assert member.told("follows leader=n1")["term"] >= 1
        member.told("connected peer=n1")
        member.told("member added", id="n3", role="learner")
    three[0].told("added on request of its own", node="n2")
    three[0].told("connected peer=n2", address=f"127.0.0.1:{three[1].raft}")


def test_a_follower_that_is_killed_is_named_with_the_reason_by_every_other(
    three: list[Member],
) -> None:
    three[2].kill()
    for member in three[:2]:
        lost = member.told("lost peer=n3")
        assert lost["address"] == f"127.0.0.1:{three[2].raft}"
        assert lost["reason"]
        assert "that node's log" in lost["remedy"]
        unreached = member.told("does not reach peer=n3")
        assert "Connection refused" in unreached["reason"]
        assert "[raft] advertise" in unreached["remedy"]
    three[2].start()
    for member in three[:2]:
        member.told("connected peer=n3")
        assert not [x for x in member.lines() if "lost its leader" in x["message"]]


def test_a_majority_that_is_lost_names_who_is_missing_and_that_it_is_back(
    three: list[Member],
) -> None:
    three[1].kill()
    three[2].kill()
    stepped = three[0].told("does not lead any more")
    assert "nothing was heard of n2, n3, and 2 of 3 voters have to" in stepped["reason"]
    assert "start them" in stepped["remedy"]
    not_ready = three[0].told("not ready", code="no_leader")
    assert "Not reached: n2, n3; 2 of 3 voters have to meet." in not_ready["reason"]
    assert "majority of the voters" in not_ready["remedy"]
    for headers in ({}, NARROW):
        found = three[0].why_not_ready(**headers)
        assert found["code"] == "no_leader"
        assert not re.search(r"\bn[123]\b|voters|127\.0", json.dumps(found))
    assert "Not reached: n2, n3; 2 of 3 voters" in three[0].why_not_ready(**ADMIN)["detail"]
    three[1].start()
    three[0].told("ready again")
    (next_line,) = [x for x in three[0].lines() if x["message"].startswith(("leads", "follows"))]
    assert next_line["term"] > stepped["term"]


def test_a_leader_that_dies_is_named_with_the_next(three: list[Member]) -> None:
    three[0].kill()
    for member in three[1:]:
        lost = member.told("lost its leader=n1")
        assert lost["reason"]
        assert "majority" in lost["remedy"]
    for _ in polls("one of two to lead"):
        leads = [m for m in three[1:] if any("leads term=" in x["message"] for x in m.lines())]
        if leads:
            break
    (leader,) = leads
    (follower,) = {*three[1:]} - {leader}
    assert follower.told(f"follows leader={leader.name}")["term"]


def test_what_an_administrator_changes_is_told_by_whom_there_and_what_everywhere(
    three: list[Member],
) -> None:
    asked = three[1]
    trace = {"Traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    assert asked.ask("POST", "/v1/topics", {"name": "orders"}, **trace) == 201
    assert asked.ask("PUT", "/v1/topics/orders", {"retention": {"messages": 5}}, **trace) == 200
    assert asked.ask("POST", "/v1/topics", {"name": "orders"}, **trace) == 409
    assert asked.ask("DELETE", "/v1/topics/orders", **trace) == 204
    assert asked.ask("DELETE", "/v1/topics?match=none.>", **trace) == 200
    assert asked.ask("DELETE", "/v1/tokens/mallory", **trace) == 204
    assert asked.ask("POST", "/v1/cluster/leader", {"id": "n2"}, **trace) == 202
    assert asked.ask("DELETE", "/v1/cluster/members/n3", **trace) == 202
    by = {"subject": "alice", "address": "127.0.0.1", "request_id": TRACE}
    for action, target, outcome in (
        ("topic.create", "orders", "done"),
        ("topic.set", "orders", "done"),
        ("topic.create", "orders", "topic_exists"),
        ("topic.delete", "orders", "done"),
        ("topic.delete_matching", "none.>", "done"),
        ("tokens.revoke", "mallory", "done"),
        ("leader.move", "n2", "done"),
        ("member.remove", "n3", "done"),
    ):
        line = asked.told("audit", action=action, target=target, outcome=outcome)
        assert {name: line.get(name) for name in by} == by
        assert line["logger"] == "repl_broker.audit"
    for member in three[:2]:
        member.told("topic created", topic="orders")
        member.told("topic set", topic="orders")
        member.told("topic deleted", topic="orders")
        member.told("tokens revoked", subject="mallory")
        member.told("member removed", id="n3", voters="n1+n2")
    three[0].told("follows leader=n2")
    three[1].told("leads term=")
    assert three[2].wait() == 0
    assert "this node was removed from its cluster" in three[2].log_text()
    # What was told is not told again by a start.
    three[0].stop()
    three[0].turn_page()
    three[0].start()
    assert not [x for x in three[0].lines() if "topic created" in x["message"]]


def test_whoever_tries_a_change_without_the_right_to_it_is_named(
    tmp_path: Path, secret: Path
) -> None:
    with Member(tmp_path, "n1", secret) as node:
        node.start()
        assert node.ask("PUT", "/v1/topics/orders") == 201
        assert node.ask("DELETE", "/v1/topics/orders", **NARROW) == 403
        assert node.ask("DELETE", "/v1/topics?match=%3E", **NARROW) == 403
        assert node.ask("DELETE", "/v1/cluster/members/n1?force=true", **NARROW) == 403
        assert node.ask("POST", "/v1/cluster/leader", {"id": "n2"}, **NARROW) == 403
        assert node.ask("DELETE", "/v1/cluster/members/n9?force=true") == 404
        for action, target, forced in (
            ("topic.delete", "orders", None),
            ("topic.delete_matching", ">", None),
            ("member.remove", "n1", True),
            ("leader.move", "unread", None),
        ):
            line = node.told("audit", action=action, target=target, outcome="forbidden")
            assert (line["subject"], line["address"]) == ("bob", "127.0.0.1")
            assert line.get("forced") is forced
        line = node.told("audit", target="n9", outcome="member_not_found", subject="alice")
        assert line["forced"] is True
        for _ in range(30):
            assert node.ask("DELETE", "/v1/topics/orders", Authorization="Bearer x") == 401
        node.ask("DELETE", "/v1/topics/last", **NARROW)
        node.told("audit", target="last", outcome="forbidden")
        lines = node.lines()
        assert sum(line.get("outcome") == "unauthenticated" for line in lines) == 10


def test_a_join_that_waits_is_told_once_by_both(tmp_path: Path, secret: Path) -> None:
    """The leader does not reach the newcomer at the address that it gives for itself."""
    first = Member(tmp_path, "n1", secret)
    second = Member(tmp_path, "n2", secret, join=first.raft)
    nowhere = f"127.0.0.1:{free_port()}"
    second.keys = {**second.keys, "raft_advertise": nowhere}
    with first, second:
        first.start()
        second.spawn()
        waits, began = second.told("cannot join yet"), time.monotonic()
        assert nowhere in waits["reason"]
        assert "the same secret" in waits["remedy"]
        refused = first.told("did not add", node="n2", address=nowhere)
        assert refused["code"] == "member_unreachable"
        for _ in polls("it to be asked again and again"):
            if time.monotonic() > began + 6:  # once a second
                break
        assert sum("cannot join yet" in x["message"] for x in second.lines()) == 1
        assert sum("did not add" in x["message"] for x in first.lines()) == 1


def test_a_limit_that_refuses_somebody_is_told_with_what_to_raise(tmp_path: Path) -> None:
    with Node(tmp_path / "data", limits_message_bytes=1000) as node:
        node.start()
        with Client(node) as client:
            for _ in range(5):
                assert client.publish("chat", b'"' + 2000 * b"x" + b'"').status == 413
        for _ in polls("the line"):
            lines = [json.loads(x) for x in node.log_text().splitlines() if "a limit is" in x]
            if lines:
                break
        assert lines[0]["code"] == "message_too_large"
        assert lines[0]["refused"] >= 1
        assert lines[0]["remedy"] == "[limits] message_bytes = 1000"
        assert len(lines) == 1


def test_other_settings_are_told_with_what_they_were(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[topics.retention]\nmessages = 100\n")
    with Node(tmp_path / "data", options=("--config", str(file))) as node:
        node.start()
        file.write_text("[topics.retention]\nmessages = 50\n")
        node.process.send_signal(1)
        for _ in polls("the line"):
            lines = [json.loads(x) for x in node.log_text().splitlines() if x.startswith("{")]
            found = [x for x in lines if x["message"].startswith("setting changed")]
            if found and any(x.get("action") == "configuration.reload" for x in lines):
                break
        (line,) = [x for x in found if x["was"] == 100]
        assert (line["key"], line["value"]) == ("topics.retention.messages", 50)
