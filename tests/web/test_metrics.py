"""What /metrics tells is what docs/reference/metrics.md says."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from repl_broker.proposals import COMMIT_BUCKETS_SECONDS
from repl_broker.web.door import DoorStatistics
from repl_broker.web.metrics import render, with_registry
from tests.nodes import Node

ROOT = Path(__file__).parents[2]


async def test_the_metrics_and_their_reference_agree(node: Node) -> None:
    text = render(with_registry(node.broker)).decode()
    told = set(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.M))
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    written = set(re.findall(r"^\| `(\w+)` \| (\w+) \|", page, flags=re.M))
    assert told == written


async def test_names_have_the_prefix_and_their_unit_last(node: Node) -> None:
    families = list(text_string_to_metric_families(render(with_registry(node.broker)).decode()))
    for family in families:
        assert family.name.startswith(("repl_broker_", "process_"))
        assert family.documentation
        for unit in ("bytes", "seconds"):
            if f"_{unit}" in family.name:
                assert family.name.endswith(f"_{unit}")


async def test_the_histogram_is_cumulative_and_complete(node: Node) -> None:
    for number in range(5):
        await node.broker.publish("chat", b"%d" % number)
    (family,) = (
        f
        for f in text_string_to_metric_families(render(with_registry(node.broker)).decode())
        if f.name == "repl_broker_commit_seconds"
    )
    buckets = [s for s in family.samples if s.name.endswith("_bucket")]
    bounds = [float(s.labels["le"]) for s in buckets]
    assert bounds == [*COMMIT_BUCKETS_SECONDS, float("inf")]
    counts = [s.value for s in buckets]
    assert counts == sorted(counts)
    (count,) = (s.value for s in family.samples if s.name.endswith("_count"))
    assert counts[-1] == count == node.broker.statistics().replica.commands


async def test_connections_come_from_the_door(node: Node) -> None:
    text = render(with_registry(node.broker, lambda: DoorStatistics(1, 20, 300, 4000))).decode()
    assert "repl_broker_connections 1.0\n" in text
    assert "repl_broker_connections_accepted_total 20.0\n" in text
    assert "repl_broker_connections_refused_total 300.0\n" in text
    assert "repl_broker_connections_failed_total 4000.0\n" in text


async def test_two_nodes_in_a_process_do_not_mix(node: Node) -> None:
    first, second = with_registry(node.broker), with_registry(node.broker)
    assert render(first) is not None
    assert render(second) is not None
