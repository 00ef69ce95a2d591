"""What /metrics tells is what docs/reference/metrics.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from repl_broker.backup import NOTE_NAME
from repl_broker.histogram import BOUNDS_SECONDS, Histogram
from repl_broker.proposals import COMMIT_BUCKETS_SECONDS
from repl_broker.web.door import DoorStatistics
from repl_broker.web.metrics import render, with_registry
from tests.nodes import ANYONE, Node, configured
from tests.web.doors import publish, serving
from tests.web.test_door import Client, connect
from tests.web.test_streams import get

NDJSON = "application/x-ndjson"

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


async def test_the_last_backup_is_told_and_no_restart_forgets_it(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(node={"data_dir": tmp_path})
    monkeypatch.setattr(node.broker, "_config", config)

    def told() -> str:
        (line,) = re.findall(
            r"^repl_broker_last_backup_timestamp_seconds (\S+)$",
            render(with_registry(node.broker)).decode(),
            re.MULTILINE,
        )
        return str(line)

    assert told() == "0.0"
    (tmp_path / NOTE_NAME).write_text("1764000000123\n")
    assert float(told()) == 1764000000.123


async def test_the_histogram_is_cumulative_and_complete(node: Node) -> None:
    for number in range(5):
        await node.broker.publish(ANYONE, "chat", b"%d" % number)
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


async def _metrics(client: Client) -> dict[tuple[str, str, str], float]:
    """How often each was answered: method, route, status."""
    text = (await client.get("/metrics")).body.decode()
    (family,) = (
        f for f in text_string_to_metric_families(text) if f.name == "repl_broker_http_requests"
    )
    assert len({tuple(sorted(s.labels.items())) for s in family.samples}) == len(family.samples)
    return {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value for s in family.samples
    }


PUBLISH = "/v1/topics/{topic}/messages"


@pytest.mark.parametrize("in_place", [True, False])
async def test_requests_are_counted_alike_both_ways(in_place: bool) -> None:
    async with serving(in_place=in_place) as served, connect(served.door) as client:
        lines = publish(b'{"topic":"a","data":1}', path="/v1/messages", media_type=NDJSON)
        for request in (publish(b"1"), publish(b"2"), publish(b"{"), lines):
            await client.send(request)
            await client.receive_answer()
        await client.send(get("/v1/events?topic=a..b"))
        assert (await client.receive_answer()).status == 400
        async with connect(served.door) as other:
            await other.send(get("/v1/events?topic=chat"))
            await other._read_until(b"event: subscribed")
            assert await _metrics(client) == {
                ("POST", PUBLISH, "201"): 2,
                ("POST", PUBLISH, "400"): 1,
                ("POST", "/v1/messages", "201"): 1,
                ("GET", "/v1/events", "400"): 1,
                ("GET", "/v1/events", "200"): 1,
            }
        assert (await _metrics(client))["GET", "/metrics", "200"] == 1


async def test_strangers_cannot_make_up_series() -> None:
    async with serving() as served, connect(served.door) as client:
        for number in range(20):
            await client.send(get(f"/x{number}").replace(b"GET", b"M%d" % number))
            await client.send(get(f"/v1/topics/t{number}"))
            assert (await client.receive_answer()).status == 404
            assert (await client.receive_answer()).status == 404
        assert await _metrics(client) == {
            ("other", "other", "404"): 20,
            ("GET", "/v1/topics/{topic}", "404"): 20,
        }


async def test_writes_to_the_disk_are_timed(node: Node) -> None:
    before = node.broker.statistics().replica.writes
    for number in range(5):
        await node.broker.publish(ANYONE, "chat", b"%d" % number)
    replica = node.broker.statistics().replica
    assert replica.writes > before
    assert sum(replica.store_writes.buckets) == replica.writes
    assert replica.store_writes.seconds > 0
    text = render(with_registry(node.broker)).decode()
    assert f"repl_broker_store_write_seconds_count {float(replica.writes)}\n" in text


async def test_the_turns_of_the_loop_are_told(node: Node) -> None:
    turns = node.broker.turns
    turns.after_io_wait(0)
    turns.before_io_wait(0)
    text = render(with_registry(node.broker)).decode()
    longest = turns.statistics().longest_seconds
    assert longest > 0
    assert f"repl_broker_loop_turn_longest_seconds {longest}\n" in text
    assert "repl_broker_loop_turn_seconds_count 1.0\n" in text


async def test_a_gap_that_a_stream_is_told_of_is_counted(node: Node) -> None:
    await node.broker.publish(ANYONE, "chat", b"1")
    async with node.broker.subscribe(ANYONE, ["chat"], f"{node.broker.epoch}-900") as stream:
        with trio.fail_after(30):
            async for chunk in stream:
                if b"event: gap" in chunk:
                    break
    assert "repl_broker_gaps_total 1.0\n" in render(with_registry(node.broker)).decode()


def test_a_histogram_counts_each_duration_once() -> None:
    histogram = Histogram()
    for seconds in (0.0, BOUNDS_SECONDS[0], BOUNDS_SECONDS[0] + 1e-9, 1e9):
        histogram.observe(seconds)
    buckets = [0] * (len(BOUNDS_SECONDS) + 1)
    buckets[0], buckets[1], buckets[-1] = 2, 1, 1
    assert histogram.durations() == (sum((2 * BOUNDS_SECONDS[0], 1e-9, 1e9)), tuple(buckets))
