"""The benchmarks run, and what they print adds up. Tiny counts: no figure here means anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__, access, attacks, hostile, network, shares, stalled, turns
from benchmarks import replace as replacing
from benchmarks.churn import Found as Churned
from benchmarks.churn import Holding, as_lines, is_settled, leaks
from benchmarks.figures import Figure, Row
from benchmarks.load import BenchmarkError, Generator, Load
from benchmarks.node import connections_max, single_node
from benchmarks.peers import HYPERCORN, NATS, NCHAN, OURS, PEERS, REDIS, SQLITE, THREE, Peer
from benchmarks.processes import Process, free_ports
from benchmarks.report import OtherWork, as_json, as_table, conditions
from benchmarks.suite import Found, Scale, measure
from repl_broker.message import check_topic, is_filter

TINY = Scale(
    seconds=0.15,
    requests=200,
    connections=(1, 3),
    batches=(5,),
    batch_connections=2,
    subscribers=(5, 20),
    many=20,
    in_step=(5,),
    crowd=10,
    in_flight=4,
    latency_rate=50,
    latency_seconds=0.2,
    latency_connections=2,
    warm_requests=10,
    rest_seconds=0.02,
)
PUBLISHED = {
    "publishes, 1 connection",
    "publishes, 3 connections",
    "CPU a publish, 1 connection",
    "CPU a publish, 3 connections",
}
BATCHED = {"messages in batches of 5"}
FEW = {
    f"{what} to 5 subscribers{how}"
    for what in ("deliveries", "CPU a delivery", "messages in one read,")
    for how in ("", ", one message at a time")
}
MANY = {
    "deliveries to 20 subscribers",
    "CPU a delivery to 20 subscribers",
    "messages in one read, to 20 subscribers",
    "memory a subscriber, 20 of them",
    "subscriptions begun, 20 of them",
}
CROWDED = {
    "deliveries to 10 subscribers, 4 publishes in flight",
    "CPU a delivery to 10 subscribers, 4 publishes in flight",
    "messages in one read, to 10 subscribers, 4 publishes in flight",
    "publish to delivery, p50, 50 publishes/s to 10 subscribers",
    "publish to delivery, p99, 50 publishes/s to 10 subscribers",
    "publish to delivery, max, 50 publishes/s to 10 subscribers",
}
EXPECTED = {
    "ours": PUBLISHED | BATCHED | FEW | MANY | CROWDED,
    "cluster": PUBLISHED | BATCHED | FEW | MANY | CROWDED,
    "nchan": PUBLISHED | FEW | MANY | CROWDED,
    "redis": PUBLISHED | FEW | MANY | CROWDED,
    "nats": PUBLISHED | FEW | MANY | CROWDED,
    "hypercorn": PUBLISHED | BATCHED | FEW,
}

needs_tools = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"),
    reason="the load generator needs Linux and a C compiler",
)


@pytest.mark.process
@needs_tools
@pytest.mark.parametrize("name", PEERS)
def test_every_peer_gives_plausible_figures_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    peer = PEERS[name]
    if peer.version() is None:
        pytest.skip(f"{peer.name} is not installed: {peer.install}")

    if name == "hypercorn":
        peer = replace(peer, subscribers_max=10)  # its own is beyond what is tried here
    found = measure(TINY, 1, tmp_path, [peer])

    assert found.failed == {}
    rows = {figure.row.name for figure in found.figures if figure.peer == peer.name}
    assert rows == EXPECTED[name]
    assert {figure.row.name for figure in found.figures if figure.peer == SQLITE} == {
        "publishes, 1 connection",
        "publishes, 3 connections",
    }
    for figure in found.figures:
        assert 0 <= figure.value < 100_000_000 or figure.row.unit == "KB", figure
        if figure.row.unit == "/s":
            assert figure.value > 1, figure
        if "one message at a time" in figure.row.name and not figure.row.unit:
            assert figure.value == 1, "nothing is joined when each message is waited for"
    assert list(tmp_path.iterdir()) == [tmp_path / "load"], "servers leave nothing behind"


@needs_tools
def test_a_peer_that_fails_is_named_and_left_out(tmp_path: Path) -> None:
    from benchmarks.peers import _alone

    run = _alone("broken", lambda port, folder: ["false"])
    broken = Peer("broken", "redis", lambda: "broken 1", "", run)
    found = measure(replace(TINY, seconds=0.01), 2, tmp_path, [broken])
    assert list(found.failed) == ["broken"]
    assert "broken does not listen" in found.failed["broken"]
    assert "broken failed, and is in no round after that: " in as_table(found, TINY)


@needs_tools
def test_a_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="Connection refused"):
        Generator(tmp_path).run(1, [], Load(requests=1))


def test_without_a_compiler_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="no C compiler"):
        Generator(tmp_path)


def test_a_peer_that_is_not_installed_is_left_out_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    left_out: list[str] = []
    kept = list(__main__._installed(list(PEERS.values()), left_out))
    assert [peer.name for peer in kept] == [OURS, THREE, HYPERCORN]
    assert left_out == [
        "Nchan (not installed; on Debian: apt-get install nginx-light libnginx-mod-nchan)",
        "Redis (not installed; on Debian: apt-get install redis-server)",
        "NATS (not installed; on Debian: apt-get install nats-server)",
    ]
    assert capsys.readouterr().err.count("left out") == 3
    about = conditions(Scale(), 3, tmp_path, kept, left_out)
    assert about["left out"] == "; ".join(left_out)


def test_subscribers_for_whom_there_are_no_files_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (8600, 8600))
    scale, left_out = __main__._fitting(Scale())
    assert scale.subscribers == (100, 1000, 8000)
    assert left_out == ["18,000 subscribers (only 8,600 files may be open: ulimit -Hn)"]
    assert connections_max() == 8100


def test_our_node_is_configured_by_a_file(tmp_path: Path) -> None:
    single_node(4080, tmp_path / "n1", {"limits": {"heartbeat_seconds": 9}, "raft": {"a": 1}})
    assert (tmp_path / "n1" / "node.toml").read_text().splitlines() == [
        "[limits]",
        f"connections = {connections_max()}",
        "heartbeat_seconds = 9",
        "[raft]",
        "a = 1",
    ]


def test_ports_of_servers_are_not_those_that_the_kernel_gives_to_clients() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(10_000 <= port < 32_000 for port in ports)


def test_a_process_counts_those_that_it_has_started(tmp_path: Path) -> None:
    """nginx works in a child of the process that was started."""
    (port,) = free_ports(1)
    script = (
        "import socket, subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"listener = socket.create_server(('127.0.0.1', {port}))\n"
        "child.wait()\n"
    )
    process = Process("parent", [sys.executable, "-c", script], port, tmp_path / "log")
    process.start()
    try:
        own, child = process.pids
        assert (own, Path(f"/proc/{child}/comm").read_text()) == (process.pid, "sleep\n")
        assert process.cpu_ticks() >= 0
    finally:
        for pid in reversed(process.pids):
            os.kill(pid, 9)
        process.stop()


# --- the table ---

ROW = Row("publishes, 1 connection", "/s")


def figures() -> list[Figure]:
    found = [Figure(ROW, OURS, value, 0.5) for value in (300.0, 100.0, 200.0)]
    found += [Figure(ROW, REDIS, value, 0.95) for value in (400.0, 400.0, 400.0)]
    found += [Figure(ROW, SQLITE, 1000.0, 0.0)]
    found += [Figure(Row("deliveries to 100 subscribers", "/s"), OURS, 5000.0, 0.1)]
    found += [Figure(Row("messages in one read, to 100 subscribers", ""), OURS, 1.5, 0.1)]
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_shows_medians_ratios_bounds_and_spread() -> None:
    lines = as_table(Found(figures()), Scale()).splitlines()
    assert [cells(line) for line in lines[:1] + lines[2:5]] == [
        ["", OURS, REDIS, SQLITE, "spread"],
        ["deliveries to 100 subscribers, /s", "5,000", "–", "–", "0%"],
        ["messages in one read, to 100 subscribers", "1.5", "–", "–", "0%"],
        ["publishes, 1 connection, /s", "200", "400 * (0.50)", "1,000 (0.20)", "100%"],
    ]
    assert len(set(map(len, lines[:5]))) == 1
    notes = "\n".join(lines[5:])
    assert "The load generator took 0.10 to 0.95 of a core." in notes
    assert "*: there it took most of one" in notes
    assert HYPERCORN in notes
    assert "measured up to" not in notes, "it is not in the table"


def test_the_lines_of_json_hold_every_round() -> None:
    found = [json.loads(line) for line in as_json(Found(figures()))]
    assert found[3] == {
        "benchmark": "publishes, 1 connection",
        "unit": "/s",
        "peer": REDIS,
        "value": 400.0,
        "ratio": 0.5,
        "rounds": [400.0, 400.0, 400.0],
        "generator": [0.95, 0.95, 0.95],
    }


def test_a_table_with_the_baseline_says_why_it_has_dashes() -> None:
    row = Row("deliveries to 100 subscribers", "/s")
    found = Found([Figure(row, OURS, 50.0, 0.1), Figure(row, HYPERCORN, 10.0, 0.1)])
    assert f"{HYPERCORN} is measured up to 1,000 subscribers" in as_table(found, Scale())


def test_the_conditions_name_the_file_system_and_the_versions(tmp_path: Path) -> None:
    peers = [peer for peer in PEERS.values() if peer.version() is not None]
    found = conditions(Scale(), 3, tmp_path, peers)
    assert "unknown" not in found["system"]
    assert "trio" in found["Python"]
    assert found["peers"].count("repl-broker") == 1
    assert "left out" not in found
    names = {NCHAN: "nginx", REDIS: "Redis", NATS: "nats-server"}
    for peer in peers:
        assert names.get(peer.name, "Hypercorn") in found["peers"]


def test_the_work_of_others_is_a_share_of_the_cores() -> None:
    assert re.fullmatch(r"took \d+\.\d\d of \d+ cores, on average", str(OtherWork()))


# --- stalled readers ---

QUIET = stalled.Run(0, 10.0, 20.0, 30.0, 5.0, 100.0, 0.0, 0.0)
STALLED = stalled.Run(1000, 10.0, 21.0, 31.0, 9.0, 100.0, 40.0, 1.5)


@pytest.mark.process
@needs_tools
def test_stalled_readers_are_behind_the_kernel_and_get_everything(tmp_path: Path) -> None:
    plan = stalled.Plan(subscribers=6, stalled=2, rate=50, seconds=0.5, message_bytes=30_000)
    runs = stalled.measure(plan, 1, tmp_path)
    assert [run.stalled for run in runs] == [0, 2]
    assert runs[1].held_kb > 1
    assert [good for good, _ in stalled.verdicts(runs)] == [True] * 4
    assert list(tmp_path.iterdir()) == [tmp_path / "load"]


def test_the_stalled_run_is_shown_and_judged() -> None:
    lines = stalled.as_table(stalled.Plan(), [QUIET, STALLED]).splitlines()
    assert cells(lines[2]) == ["17,000 readers", "10", "20", "30", "5", "", ""]
    assert cells(lines[3])[0] == "17,000 readers and 1,000 stalled"
    assert cells(lines[3])[1:] == ["10", "21", "31", "9", "40", "1.5"]
    assert list(stalled.verdicts([QUIET, STALLED])) == [
        (True, "p99 of the readers that go on: 20 ms without, 21 ms with"),
        (True, "memory: +4.0 MB with them (64 MB are allowed)"),
        (True, "each stalled reader was at least 60 KB behind what the kernel held for it"),
        (True, "every reader, the stalled ones too, got every message, once and in order"),
    ]


def test_a_node_is_replaced_under_load_in_two_steps_that_keep_their_folder(tmp_path: Path) -> None:
    plan = replacing.Plan(gib=0.1, rate=40, message_bytes=4000, warm_seconds=0.2)
    said: list[str] = []
    replacing.fill(tmp_path, plan, said.append)
    replacing.fill(tmp_path, plan, said.append)  # it has all of it
    found = replacing.replace(tmp_path, plan, said.append)
    assert (found.snapshots, found.failed) == (1, 0)
    assert found.published > 0
    assert found.sent_mib > 90
    assert 0 < found.level_seconds < 60
    lines = replacing.as_lines(plan, found)
    assert any(line.startswith("sent its history peer=n3") for line in lines), lines


def test_one_step_of_replacing_needs_a_folder() -> None:
    with pytest.raises(SystemExit):
        replacing.main(["fill"])


def test_how_long_a_snapshot_keeps_the_loop_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--messages", "2000", "--topics", "50", "--keys", "100", "--deleted", "10"]
    turns.main([*few, "--rounds", "1"])
    said = capsys.readouterr().out
    assert said.startswith("2,000 messages in 2,000 entries, 50 topics, 100 keys: a snapshot of ")
    assert "longest turn of the loop: " in said


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (STALLED._replace(memory_mb=70.0), "memory: +65.0 MB"),
        (STALLED._replace(held_kb=100.0), "at least 0 KB behind"),
    ],
)
def test_too_much_memory_and_readers_that_did_not_stall_are_not_ok(
    run: stalled.Run, said: str
) -> None:
    (bad,) = [what for good, what in stalled.verdicts([QUIET, run]) if not good]
    assert bad.startswith(said) or said in bad


# --- readers that come and vanish ---

BEFORE = Holding(20, 50.0, 0, 0, 2, 0)
CHURNED = Churned(
    {"reset": 500, "end": 490, "silence": 10},
    2500,
    80,
    2.0,
    5.5,
    BEFORE,
    BEFORE,
    BEFORE,
    [50.0, 50.5],
)


def test_a_node_that_let_go_of_all_readers_leaks_nothing() -> None:
    assert list(leaks(CHURNED)) == []
    assert list(as_lines(CHURNED)) == [
        "readers: 1,000 (500 by reset, 490 by end, 10 by silence), 500 a second",
        "messages: 2,500 read, all in order, of 80 published",
        "settled: 5.5 s after the last had vanished",
        "open files: 20 before, 20 at the peak of memory, 20 after",
        "memory, MB: 50.0 before, 50.0 at the peak of memory, 50.0 after",
        "memory on the way, MB: 50.0 50.5",
        "left: 0 streams, 0 channels",
    ]


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"files": 21}, "1 files are open that were not before"),
        ({"subscribers": 3}, "3 subscribers are left, and no reader is"),
        ({"channels": 2}, "2 channels are left, and no reader is"),
        ({"connections": 4}, "2 connections are left of readers"),
        ({"connections_failed_total": 1}, "1 connections were ended by errors of the node"),
        ({"rss_mb": 83.0}, "the node has grown by 33.0 MB"),
    ],
)
def test_whatever_a_node_keeps_of_readers_is_a_leak(left: dict[str, Any], said: str) -> None:
    after = replace(BEFORE, **left)
    (leak,) = leaks(replace(CHURNED, after=after))
    assert leak.startswith(said)


def test_a_node_has_settled_when_only_those_who_ask_are_left() -> None:
    assert is_settled(BEFORE, None)
    assert is_settled(BEFORE, BEFORE)
    for left in ({"files": 21}, {"subscribers": 1}, {"channels": 1}, {"connections": 3}):
        assert not is_settled(replace(BEFORE, **left), BEFORE)


@pytest.mark.process
@pytest.mark.skipif(bool(network.why_not()), reason=network.why_not() or "-")
def test_a_silenced_client_is_heard_no_more() -> None:
    """In a network of its own, which another process enters, since it stays there."""
    script = (
        "import socket\n"
        "from benchmarks.network import enter_own_network, silence\n"
        "assert enter_own_network() == ''\n"
        "listener = socket.create_server(('127.0.0.1', 4080))\n"
        "pairs = []\n"
        "for address in ('127.0.0.2', '127.0.0.3'):\n"
        "    client = socket.create_connection(('127.0.0.1', 4080), source_address=(address, 0))\n"
        "    pairs.append((client, listener.accept()[0]))\n"
        "silence(['127.0.0.2'])\n"
        "for client, _ in pairs:\n"
        "    client.send(b'x')\n"
        "assert pairs[1][1].recv(1) == b'x'\n"
        "try:\n"
        "    pairs[0][1].recv(1, socket.MSG_DONTWAIT)\n"
        "except BlockingIOError:\n"
        "    print('silent')\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("silent\n", "")


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "--quick"),
        (
            ["--peers", "kafka"],
            2,
            "'kafka' is none of ours, cluster, nchan, redis,",
        ),
        (["--subscribers", "100,20000"], 2, "each 1 to 18900"),
        (["stalled", "--help"], 0, "--stalled"),
        (["churn", "--help"], 0, "--count"),
        (["hostile", "--help"], 0, "--slow"),
        (["hostile", "--slow", "0"], 2, "1 to 10000"),
        (["hostile", "--parts", "fire"], 2, "none of slow, flood, shares"),
        (["churn", "--count", "0"], 2, "1 to 10000000"),
    ],
)
def test_the_command_explains_itself(arguments: list[str], status: int, said: str) -> None:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == status
    assert said in " ".join((done.stdout + done.stderr).split())


# --- slow clients, and a flood ---


def test_slow_clients_and_a_flood_are_measured_and_shown(tmp_path: Path) -> None:
    plan = hostile.Plan(readers=5, slow=20, seconds=0.5, connections=40, times=2, flood_seconds=0.5)
    runs = hostile.measure_slow(plan, tmp_path)
    assert [count for count, _, _ in runs] == [0, 20]
    flood = hostile.measure_flood(plan, tmp_path)
    assert flood.answers[201] > 0
    assert set(flood.answers) <= {201, 503}
    assert flood.broken == 0
    assert "20 slow clients" in hostile.slow_text(plan, runs)
    assert "| 201 " in hostile.flood_text(plan, flood)


# --- attacks ---


def test_every_pair_of_limits_is_at_its_maximum_in_some_attack() -> None:
    together = [attacks.FULL | attack.at_most for attack in attacks.ATTACKS]
    for attack in attacks.ATTACKS:
        assert attack.at_most <= set(attacks.LIMITS), attack.name
    for pair in combinations(attacks.LIMITS, 2):
        assert any(all_at_most.issuperset(pair) for all_at_most in together), pair


def test_names_and_patterns_of_attacks_are_as_long_as_they_may_be() -> None:
    names = {attacks.long_name(number) for number in range(1000)}
    assert len(names) == 1000
    assert {(len(name), len(name.split("."))) for name in names} == {(253, 127)}
    for number in range(300):
        assert check_topic(attacks.long_name(number))
        assert is_filter(attacks.long_filter(number))
        assert is_filter(attacks.long_grant(number))


@pytest.mark.process
def test_attacks_are_run_and_shown(tmp_path: Path) -> None:
    full = attacks.Full(
        topics=200, streams=3, filters=4, grants=8, connections=3, places=40, seconds=0.3
    )
    founds = attacks.measure_one(full, tmp_path / "one", lambda what: None)
    names = ["nothing", *(a.name for a in attacks.ATTACKS), attacks.CROWD]
    assert [found.name for found in founds] == names
    assert founds[-1].answers["ended"]  # places were taken from it, and the other had none refused
    for found in founds:
        assert found.waits, found.name
        assert not {"500", "broken"} & {*found.answers}, found
        assert found.machine or found.name == attacks.CROWD, found.name
    assert "batches of 8 MB" in attacks.as_text(founds)


@pytest.mark.process
def test_of_each_share_one_client_gets_half_and_another_its_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("TOPICS", 20), ("BYTES", 1 << 20), ("KEYS", 20), ("CONNECTIONS", 20)):
        monkeypatch.setattr(shares, name, most)
    founds = shares.measure(tmp_path / "shares")
    assert [found.got for found in founds] == [10, 8 * len(shares.LARGE), 10, 10]
    assert [found.refused for found in founds] == [
        "409 too_many_topics",
        "507 storage_full",
        "its own oldest go",
        "429 too_many_streams",
    ]
    assert "507 storage_full" in shares.as_text(founds)


@pytest.mark.process
def test_attacks_at_a_leader_are_run(tmp_path: Path) -> None:
    full = attacks.Full(topics=50, streams=2, filters=2, grants=4, connections=2, seconds=0.3)
    only = [attacks.ATTACKS[0].name]
    founds = attacks.measure_three(full, tmp_path, lambda what: None, only)
    assert [found.name for found in founds] == ["nothing", *only]


@pytest.mark.process
def test_what_access_costs_is_measured_in_every_way(tmp_path: Path) -> None:
    found = access.measure(tmp_path, access.Plan(publishers=2, subscribers=2, seconds=0.3))
    assert [*found] == ["neither", "tokens", "TLS", "both"]
    for each in found.values():
        assert each.publishes_per_second > 0
        assert each.publish_cpu_us >= 0
