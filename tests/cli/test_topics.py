"""Topics and the cluster: what is asked of the node, and what is shown."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_broker import EPOCH, FakeBroker, answer, problem
from tests.process.node import environment

TOPIC: dict[str, Any] = {
    "name": "chat",
    "retention": {"messages": 10000, "seconds": 86400, "bytes": 67108864},
    "messages": 1234,
    "bytes": 56789,
    "first_id": f"{EPOCH}-1",
    "last_id": f"{EPOCH}-1234",
    "created_at": "2026-11-23T04:00:00.123Z",
    "subscribers": 2,
}

CLUSTER: dict[str, Any] = {
    "cluster_id": "c-1",
    "epoch": EPOCH,
    "node": "n1",
    "mode": "single",
    "term": 3,
    "leader": None,
    "commit_index": 7,
    "applied_index": 7,
    "feature_level": 2,
    "clock_skew_seconds_max": 5,
    "change_pending": False,
    "change": None,
    "ready": True,
    "reasons": [],
    "members": [
        {
            "id": "n1",
            "role": "leader",
            "raft_address": "127.0.0.1:4081",
            "http_url": None,
            "match_index": 7,
            "lag": 0,
            "reachable": True,
            "feature_level": 2,
            "clock_skew_seconds": 0.0,
        }
    ],
}


def test_list_pages_through_everything(run: Run, broker: FakeBroker) -> None:
    broker.steps = [
        answer(200, {"topics": [{**TOPIC, "name": "a"}, {**TOPIC, "name": "b"}], "next": "b"}),
        answer(200, {"topics": [{**TOPIC, "name": "c" * 30, "last_id": None}], "next": None}),
    ]
    result = run("topics", "list", "--match", "*", "--url", broker.url)
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["TOPIC", "MESSAGES", "BYTES", "SUBSCRIBERS", "LAST", "ID"],
        ["a", "1,234", "56,789", "2", f"{EPOCH}-1234"],
        ["b", "1,234", "56,789", "2", f"{EPOCH}-1234"],
        ["c" * 30, "1,234", "56,789", "2", "-"],
    ]
    assert [request.query for request in broker.seen] == [
        {"match": ["*"]},
        {"match": ["*"], "after": ["b"]},
    ]


def test_list_prints_a_json_line_a_topic(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, {"topics": [TOPIC, TOPIC], "next": None})]
    result = run("topics", "list", "--json", "--url", broker.url)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [TOPIC, TOPIC]


def test_list_of_nothing_prints_nothing(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, {"topics": [], "next": None})]
    result = run("topics", "list", "--url", broker.url)
    assert (result.exit_code, result.output) == (0, "")


def test_create_sends_only_what_was_given(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(201, TOPIC), answer(201, TOPIC)]
    result = run("topics", "create", "chat", "--url", broker.url)
    assert result.stdout == (
        "created chat: keeps 10,000 messages, 86,400 s, 67,108,864 bytes, whichever comes first\n"
    )
    options = ["--retention-seconds", "24h", "--retention-bytes", "1 MiB"]
    run("topics", "create", "chat", *options, "--url", broker.url)
    assert [(r.method, r.path, json.loads(r.body)) for r in broker.seen] == [
        ("POST", "/v1/topics", {"name": "chat"}),
        (
            "POST",
            "/v1/topics",
            {"name": "chat", "retention": {"seconds": 86400, "bytes": 1048576}},
        ),
    ]


def test_create_or_change_is_a_put(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, TOPIC)]
    result = run(
        "topics",
        "create",
        "chat",
        "--or-change",
        "--retention-messages=5",
        "--json",
        "--url",
        broker.url,
    )
    assert json.loads(result.stdout) == TOPIC
    request = broker.seen[0]
    assert (request.method, request.path) == ("PUT", "/v1/topics/chat")
    assert json.loads(request.body) == {"retention": {"messages": 5}}


def test_show_is_for_people_or_json(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, TOPIC), answer(200, TOPIC), answer(200, {"name": "chat"})]
    assert run("topics", "show", "chat", "--url", broker.url).stdout.splitlines() == [
        "topic        chat",
        "messages     1,234",
        "bytes        56,789",
        f"first id     {EPOCH}-1",
        f"last id      {EPOCH}-1234",
        "created      2026-11-23T04:00:00.123Z",
        "subscribers  2 (on this node)",
        "keeps        10,000 messages, 86,400 s, 67,108,864 bytes, whichever comes first",
    ]
    assert json.loads(run("topics", "show", "chat", "--json", "--url", broker.url).stdout) == TOPIC
    assert run("topics", "show", "chat", "--url", broker.url).exit_code == 0


def test_delete_says_what_it_did(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(204, None), answer(204, None)]
    result = run("topics", "delete", "chat", "--yes", "--url", broker.url)
    assert result.stdout == "deleted chat\n"
    as_json = run("topics", "delete", "chat", "--yes", "--json", "--url", broker.url)
    assert json.loads(as_json.stdout) == {"deleted": "chat"}
    assert [(r.method, r.path) for r in broker.seen] == [("DELETE", "/v1/topics/chat")] * 2


def test_many_are_deleted_by_a_filter(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, {"count": count}) for count in (1234, 0, 1)]
    delete = ("topics", "delete", "--yes", "--url", broker.url)
    assert run(*delete, "--match", "jobs.>").stdout == "deleted 1,234 topics that match jobs.>\n"
    as_json = run(*delete, "--match", ">", "--json")
    assert json.loads(as_json.stdout) == {"match": ">", "count": 0}
    assert run(*delete, "--match", "a").stdout == "deleted 1 topic that matches a\n"
    assert [(r.method, r.path) for r in broker.seen] == [("DELETE", "/v1/topics")] * 3
    assert [r.query for r in broker.seen] == [{"match": [m]} for m in ("jobs.>", ">", "a")]


def test_what_was_deleted_before_it_broke_off_is_said(run: Run, broker: FakeBroker) -> None:
    broker.steps = [problem("outcome_unknown", "Topics that were deleted before that: 2,000.")]
    result = run("topics", "delete", "--match", "jobs.>", "--yes", "--url", broker.url)
    assert result.exit_code == 1
    assert "deleted before that: 2,000" in result.stderr


@pytest.mark.parametrize("what", [["chat"], ["--match", "jobs.>"], ["--match", ">", "--json"]])
@pytest.mark.parametrize("stdin", [b"", b"y\n", b"yes\n"])
def test_nothing_is_deleted_where_nobody_can_be_asked(
    run: Run, broker: FakeBroker, what: list[str], stdin: bytes
) -> None:
    result = run("topics", "delete", *what, "--url", broker.url, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give --yes" in result.stderr
    assert broker.seen == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("typed", "status"), [(b"y\n", 0), (b"YES\n", 0), (b"\n", 1), (b"n\n", 1), (b"\x04", 2)]
)
@pytest.mark.parametrize("what", [["chat"], ["--match", "jobs.>"]])
def test_a_terminal_is_asked_wherever_the_output_goes(
    broker: FakeBroker, tmp_path: Path, what: list[str], typed: bytes, status: int
) -> None:
    two = answer(200, {"topics": [{"name": "jobs.1"}, {"name": "jobs.2"}], "next": "jobs.2"})
    one = answer(200, {"topics": [{"name": "jobs.3"}], "next": None})
    many = what != ["chat"]
    broker.steps = [two, one, answer(200, {"count": 3})] if many else [answer(204, None)]
    ours, theirs = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "repl_broker", "topics", "delete", *what, "--url", broker.url],
            stdin=theirs, stdout=out, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
    os.close(theirs)
    assert process.stderr is not None
    try:
        said = b""
        while not said.endswith(b"[y/N]: ") and (more := process.stderr.read(1)):
            said += more
        asked = b"Delete 3 topics that match jobs.>, and all" if many else b"Delete chat and its"
        assert asked in said
        assert all(request.method == "GET" for request in broker.seen), "it waits"
        os.write(ours, typed)
        process.stderr.read()
        assert process.wait(30) == status
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(ours)
    deleted = [request.method for request in broker.seen].count("DELETE")
    assert deleted == (status == 0)
    assert ((tmp_path / "out").read_bytes() == b"") == (status != 0), "no question in the output"


@pytest.mark.parametrize(
    "arguments", [[], ["chat", "--match", "a"], ["--match", ""], ["--match", "a..b"]]
)
def test_what_to_delete_is_a_topic_or_a_filter(
    run: Run, broker: FakeBroker, arguments: list[str]
) -> None:
    result = run("topics", "delete", *arguments, "--url", broker.url)
    assert result.exit_code in (1, 2)
    assert result.stderr
    assert broker.seen == []


def test_a_topic_is_created_that_goes_when_it_is_idle(run: Run, broker: FakeBroker) -> None:
    retention = {**TOPIC["retention"], "idle_seconds": 3600}
    broker.steps = [answer(201, {**TOPIC, "retention": retention})]
    result = run("topics", "create", "chat", "--idle-seconds", "1h", "--url", broker.url)
    assert json.loads(broker.seen[0].body)["retention"] == {"idle_seconds": 3600}
    assert result.stdout.endswith("whichever comes first; deleted when unused for 3,600 s\n")


def test_status_shows_the_cluster(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, CLUSTER), answer(200, CLUSTER)]
    result = run("cluster", "status", "--url", broker.url)
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["cluster", "id", "c-1"],
        ["epoch", EPOCH],
        ["node", "n1"],
        ["mode", "single"],
        ["term", "3"],
        ["leader", "-"],
        ["commit", "index", "7"],
        ["applied", "index", "7"],
        ["feature", "level", "2"],
        ["change", "pending", "no"],
        ["ready", "yes"],
        [],
        ["MEMBER", "ROLE", "RAFT", "HTTP", "MATCH", "LAG", "REACHABLE", "LEVEL", "CLOCK"],
        ["n1", "leader", "127.0.0.1:4081", "-", "7", "0", "yes", "2", "0.0"],
    ]
    as_json = run("cluster", "status", "--json", "--url", broker.url)
    assert json.loads(as_json.stdout) == CLUSTER


def test_status_shows_why_a_node_is_not_ready(run: Run, broker: FakeBroker) -> None:
    reasons = [
        {"code": "behind", "detail": "The node is behind."},
        {"code": "no_room", "detail": "The disk\x1b[2J is full."},
    ]
    broker.steps = [answer(200, CLUSTER | {"ready": False, "reasons": reasons})]
    lines = [
        line.strip() for line in run("cluster", "status", "--url", broker.url).stdout.split("\n")
    ]
    at = lines.index("ready          no")
    assert lines[at + 1] == "The node is behind. [behind]"
    assert lines[at + 2].endswith("is full. [no_room]")
    assert "\x1b" not in lines[at + 2]


def test_status_shows_for_whom_a_change_waits(run: Run, broker: FakeBroker) -> None:
    change = {"joins": [], "promotes": [], "leaves": ["n2"], "voters": ["n1", "n3"], "needed": 2}
    stuck = {**CLUSTER, "change_pending": True, "change": {**change, "waits_for": ["n3"]}}
    broker.steps = [answer(200, stuck), answer(200, {**CLUSTER, "change": {"of": "another"}})]
    text = run("cluster", "status", "--url", broker.url).stdout
    assert "The removal of n2 is not known to be committed: 2 of 2 voters must agree" in text
    assert "Start n3" in text
    assert "committed" not in run("cluster", "status", "--url", broker.url).stdout


def test_a_removal_is_forced_only_if_that_is_asked_for(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(202, CLUSTER), answer(202, CLUSTER)]
    for force in ([], ["--force"]):
        run("cluster", "remove", "n2", *force, "--url", broker.url)
    assert [request.query for request in broker.seen] == [{}, {"force": ["true"]}]


def test_what_the_node_cannot_know_of_a_member_is_shown_as_such(
    run: Run, broker: FakeBroker
) -> None:
    unknown = {"match_index": None, "lag": None, "reachable": False}
    unknown |= {"feature_level": None, "clock_skew_seconds": None}
    members = [{**CLUSTER["members"][0], "role": "voter", **unknown}]
    broker.steps = [answer(200, {**CLUSTER, "mode": "cluster", "members": members})]
    result = run("cluster", "status", "--url", broker.url)
    row = result.stdout.splitlines()[-1].split()
    assert row == ["n1", "voter", "127.0.0.1:4081", "-", "-", "-", "no", "-", "-"]


CHANGES = [
    (
        ["add", "n2", "--raft", "10.0.0.2:4081", "--http", "http://10.0.0.2:4080"],
        ("POST", "/v1/cluster/members"),
        {"id": "n2", "raft_address": "10.0.0.2:4081", "http_url": "http://10.0.0.2:4080"},
    ),
    (["remove", "n2"], ("DELETE", "/v1/cluster/members/n2"), None),
    (["transfer", "n2"], ("POST", "/v1/cluster/leader"), {"id": "n2"}),
]


@pytest.mark.parametrize(("arguments", "call", "body"), CHANGES)
def test_a_single_nodes_refusal_of_a_change_is_shown(
    run: Run, broker: FakeBroker, arguments: list[str], call: tuple[str, str], body: object
) -> None:
    broker.steps = [problem("single_node", "This node is alone."), answer(202, {"ok": True})]
    result = run("cluster", *arguments, "--url", broker.url)
    assert result.exit_code == 1
    assert result.stderr == (
        "error: The node runs in single-node mode: This node is alone. [single_node]\n"
    )
    request = broker.seen[0]
    assert (request.method, request.path) == call
    assert (json.loads(request.body) if request.body else None) == body
    assert "cluster status" in run("cluster", *arguments, "--url", broker.url).stdout


def test_list_survives_an_answer_of_another_shape(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, {"topics": None, "next": "x"})]
    assert run("topics", "list", "--url", broker.url).exit_code == 0
