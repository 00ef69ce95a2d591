"""The benchmarks run, and what they print adds up. Tiny counts: no figure here means anything."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.figures import Figure, Row
from benchmarks.load import BenchmarkError, Generator, Load
from benchmarks.peers import HYPERCORN, OURS, SQLITE
from benchmarks.report import OtherWork, as_json, as_table, conditions
from benchmarks.suite import Scale, measure

TINY = Scale(
    seconds=0.15,
    requests=200,
    connections=(1, 3),
    batches=(5,),
    batch_connections=2,
    subscribers=(1, 5),
    in_flight=2,
    latency_subscribers=3,
    latency_rate=50,
    latency_seconds=0.2,
    idle_subscribers=20,
    warm_requests=10,
    rest_seconds=0.02,
)

needs_tools = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"),
    reason="the load generator needs Linux and a C compiler",
)


@pytest.mark.process
@needs_tools
def test_every_benchmark_gives_a_plausible_row_for_each_peer(tmp_path: Path) -> None:
    figures = measure(TINY, 1, tmp_path)

    peers: dict[str, set[str]] = {}
    for figure in figures:
        peers.setdefault(figure.row.name, set()).add(figure.peer)
    assert {name: found - {SQLITE} for name, found in peers.items()} == {
        name: {OURS, HYPERCORN}
        for name in (
            "publishes, 1 connection",
            "publishes, 3 connections",
            "CPU a publish, 1 connection",
            "CPU a publish, 3 connections",
            "messages in batches of 5",
            "deliveries to 1 subscriber",
            "deliveries to 5 subscribers",
            "deliveries to 5 subscribers, 2 publishers",
            "CPU a delivery to 1 subscriber",
            "CPU a delivery to 5 subscribers",
            "CPU a delivery to 5 subscribers, 2 publishers",
            "publish to delivery, p50, 50 publishes/s to 3 subscribers",
            "publish to delivery, p99, 50 publishes/s to 3 subscribers",
            "memory a subscriber, 20 of them",
            "subscriptions begun",
        )
    }
    assert {name for name, found in peers.items() if SQLITE in found} == {
        "publishes, 1 connection",
        "publishes, 3 connections",
    }
    for figure in figures:
        assert 0 <= figure.value < 10_000_000, figure
        if figure.row.unit == "/s":
            assert figure.value > 1, figure
    assert list(tmp_path.iterdir()) == [tmp_path / "load"], "servers leave nothing behind"


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


def test_the_table_shows_medians_ratios_and_spread() -> None:
    row = Row("publishes, 1 connection", "/s")
    figures = [Figure(row, OURS, value, 0.5) for value in (300.0, 100.0, 200.0)]
    figures += [Figure(row, HYPERCORN, value, 0.95) for value in (400.0, 400.0, 400.0)]
    heading, rule, line = as_table(figures).splitlines()[:3]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "publishes, 1 connection, /s *",
        "200",
        "400",
        "0.50",
        "",
        "",
        "100%",
    ]
    assert len(heading) == len(rule) == len(line)
    assert [json.loads(found) for found in as_json(figures)][1] == {
        "benchmark": "publishes, 1 connection",
        "unit": "/s",
        "peer": HYPERCORN,
        "value": 400.0,
        "ratio": 0.5,
        "rounds": [400.0, 400.0, 400.0],
    }


def test_the_conditions_name_the_file_system_and_the_versions(tmp_path: Path) -> None:
    found = conditions(Scale(), 3, tmp_path)
    assert "unknown" not in found["system"]
    assert "trio" in found["Python"]


def test_the_work_of_others_is_a_share_of_the_cores() -> None:
    assert re.fullmatch(r"took \d+\.\d\d of \d+ cores, on average", str(OtherWork()))


def test_the_command_explains_itself() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--quick" in done.stdout
