"""The cluster benchmark runs, and what it prints adds up. No figure here means anything."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster.etcd import Etcd
from benchmarks.cluster.jetstream import JetStream
from benchmarks.cluster.nodes import Cluster, wait_until
from benchmarks.cluster.ours import Single, Three
from benchmarks.cluster.publisher import Publisher
from benchmarks.cluster.report import as_json, as_table, conditions, statistics
from benchmarks.cluster.suite import Found, Scale, measure
from benchmarks.cluster.trials import FAILOVER, HAND_OVER, QUIET, Trial, longest_gap
from benchmarks.figures import Figure, Row
from benchmarks.load import BenchmarkError, Post
from benchmarks.processes import Process, free_ports

TINY = Scale(
    seconds=0.15,
    requests=200,
    connections=(1, 3),
    batch=5,
    batch_connections=2,
    trials=1,
    warm_requests=10,
    rest_seconds=0.02,
)
POST = Post("/publish", '{"a":1}')

needs_tools = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"),
    reason="the load generator needs Linux and a C compiler",
)


@pytest.mark.process
@needs_tools
@pytest.mark.parametrize("peer", [Single, Three, Etcd, JetStream])
def test_every_peer_gives_plausible_figures_and_leaves_nothing(
    peer: type[Cluster], tmp_path: Path
) -> None:
    if peer.version() is None:
        pytest.skip(peer.install())

    found = measure(TINY, 1, tmp_path, [peer])

    assert found.failed == {}
    rows = {figure.row.name: figure.value for figure in found.figures}
    assert ("messages in batches of 5, 2 connections" in rows) == (peer is not Etcd)
    has_followers = peer in (Etcd, Three)
    assert ("publishes through a follower, 3 connections" in rows) == has_followers
    assert rows["publishes, 3 connections"] > 1
    assert 0 < rows["publish p50, 1 connection"] <= rows["publish p99, 1 connection"]
    for trial in found.trials:
        assert 0 < trial.value < 30_000, trial
    tried = {trial.row for trial in found.trials}
    assert tried == ({FAILOVER, HAND_OVER, QUIET} if has_followers else set())
    assert list(tmp_path.iterdir()) == [tmp_path / "load"]


@pytest.mark.process
@needs_tools
def test_peers_are_up_together_and_take_turns_at_each_row(tmp_path: Path) -> None:
    class Other(Single):
        name = "other"

    said: list[str] = []
    found = measure(TINY, 2, tmp_path, [Single, Other], said.append)

    assert found.failed == {}
    one, other = Single.name, "other"
    at = "publishes, 1 connection"
    assert [line for line in said if at in line or "starting" in line] == [
        f"round 1 of 2: starting {one}",
        f"round 1 of 2: starting {other}",
        f"round 1 of 2: {at}, {one}",
        f"round 1 of 2: {at}, {other}",
        f"round 2 of 2: starting {other}",
        f"round 2 of 2: starting {one}",
        f"round 2 of 2: {at}, {other}",
        f"round 2 of 2: {at}, {one}",
    ]


@needs_tools
def test_a_peer_that_fails_is_named_and_left_out(tmp_path: Path) -> None:
    class Broken(Single):
        name = "broken"

        def _node(self, index: int, raft: int, port: int) -> Process:
            return Process("broken n1", ["false"], port, self.folder / "log")

    found = measure(TINY, 2, tmp_path, [Broken])
    assert list(found.failed) == ["broken"]
    assert "broken n1 does not listen" in found.failed["broken"]


def test_three_nodes_of_ours_are_ready_when_all_vote_and_name_one_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaders, roles = ["n2", "n2", None], ["voter", "leader", "learner"]

    def ask(port: int, path: str, body: object = None) -> Any:
        index = [node.port for node in cluster.nodes].index(port)
        members = [{"id": f"n{i}", "role": role} for i, role in enumerate(roles, 1)]
        return "" if path == "/readyz" else {"leader": leaders[index], "members": members}

    cluster = Three(tmp_path)
    monkeypatch.setattr("benchmarks.cluster.ours.ask", ask)
    assert not cluster.ready(0)
    with pytest.raises(BenchmarkError, match="do not agree on a leader"):
        cluster.leader()
    leaders[2], roles[2] = "n2", "voter"
    assert cluster.ready(0)
    assert cluster.leader() == 1


@contextmanager
def server(status: str) -> Iterator[int]:
    """Answers every request with ``status``."""
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}".encode()

    def serve(connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                connection.sendall(answer)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_publisher_goes_on_to_the_next_node_and_stays_there() -> None:
    (nobody,) = free_ports(1)
    with server("503 Service Unavailable") as refuses, server("201 Created") as serves:
        with Publisher([nobody, refuses, serves], POST) as publisher:
            first = publisher.wait_answer(0.0, 5)
            later = publisher.wait_answer(time.monotonic(), 5)
    ports = [attempt.port for attempt in publisher.attempts]
    assert ports[:3] == [nobody, refuses, serves]
    assert set(ports[2:]) == {serves}
    assert first.ended <= later.begun
    assert publisher.answers()[0] == first.ended


def test_a_publisher_gives_up_what_is_not_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with Publisher([silent.getsockname()[1]], POST) as publisher:
            with pytest.raises(BenchmarkError, match=r"within 0\.3 s; at last: .*timed out"):
                publisher.wait_answer(0.0, 0.3)
    assert not any(attempt.ok for attempt in publisher.attempts)


def test_the_longest_gap_counts_from_the_answer_before() -> None:
    moments = [0.0, 5.0, 6.0, 8.0, 9.0]
    assert longest_gap(moments, 0.0) == 5.0
    assert longest_gap(moments, 5.0) == 2.0
    assert longest_gap(moments, 9.0) == 0.0
    assert longest_gap([], 0.0) == 0.0


def test_waiting_says_what_was_waited_for_and_what_was_said() -> None:
    def refuse() -> None:
        raise BenchmarkError("no leader")

    with pytest.raises(BenchmarkError, match=r"it is not ready after 0\.05 s: no leader"):
        wait_until("it is not ready", refuse, 0.05)


def test_the_statistics_of_trials() -> None:
    assert statistics([]) == {}
    assert statistics([7.0]) == {"p50": 7.0, "p99": 7.0, "max": 7.0}
    found = statistics([float(value) for value in range(101)])
    assert found == {"p50": 50.0, "p99": 99.0, "max": 100.0}


def test_the_table_has_a_column_for_each_peer_that_gave_anything() -> None:
    row = Row("publishes, 1 connection", "/s")
    found = Found(
        [Figure(row, Etcd.name, value, 0.1) for value in (100.0, 200.0, 300.0)]
        + [Figure(row, Three.name, value, 0.2) for value in (120.0, 480.0, 390.0)],
        [Trial(FAILOVER, Etcd.name, value) for value in (1000.0, 2000.0)],
    )
    heading, rule, rates, p50 = as_table(found).splitlines()[:4]
    assert [_cells(line) for line in (heading, rates, p50)] == [
        ["", "etcd ×3", "repl-broker ×3", "ratio", "spread"],
        ["publishes, 1 connection, /s", "200", "390", "1.30", "100%"],
        ["leader killed: time to the next success, p50, ms", "1,500", "", "", ""],
    ]
    assert len(heading) == len(rule) == len(rates) == len(p50)
    assert "The load generator took 0.10 to 0.20 of a core." in as_table(found)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line[1:-1].split("|")]


def test_the_lines_of_json_hold_every_round_and_trial() -> None:
    row = Row("publishes, 1 connection", "/s")
    found = Found(
        [Figure(row, Etcd.name, value, 0.1) for value in (1.0, 2.0)],
        [Trial(QUIET, Etcd.name, 6.0)],
    )
    assert [json.loads(line) for line in as_json(found)] == [
        {
            "benchmark": row.name,
            "unit": "/s",
            "peer": "etcd ×3",
            "value": 1.5,
            "rounds": [1.0, 2.0],
        },
        {
            "benchmark": QUIET.name,
            "unit": "ms",
            "peer": "etcd ×3",
            "p50": 6.0,
            "p99": 6.0,
            "max": 6.0,
            "trials": [6.0],
        },
    ]


def test_the_conditions_name_the_versions_once(tmp_path: Path) -> None:
    found = conditions(Scale(), 3, tmp_path, [Three, Single])
    assert found["versions"].count("repl-broker") == 1
    assert "unknown" not in found["system"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "--quick"),
        (["--peers", "kafka"], 2, "'kafka' is none of etcd, jetstream, cluster, single"),
        (["--trials", "1001"], 2, "0 to 1000"),
    ],
)
def test_the_command_explains_itself(arguments: list[str], status: int, said: str) -> None:
    command = [sys.executable, "-m", "benchmarks.cluster", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == status
    assert said in " ".join((done.stdout + done.stderr).split())
