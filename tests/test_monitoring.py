"""examples/monitoring: what it asks of Prometheus nodes tell, and alerts ring when they are due."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from repl_broker.broker import MemberStatistics
from repl_broker.certificates import Certificates, Expiry
from repl_broker.clocks import Clocks, ClockStatistics
from repl_broker.config import Config
from repl_broker.web.counts import RequestCounts
from repl_broker.web.metrics import render, with_registry
from tests.nodes import ANYONE, Node, running_node
from tests.required import need_program

FOLDER = Path(__file__).parents[1] / "examples" / "monitoring"
REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "metrics.md"
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
OF_PROMETHEUS = {"up"}
# What Prometheus adds to each series, and what a histogram has.
LABELS = {"job", "instance", "le"}


def expressions() -> Iterator[tuple[str, str]]:
    """What is asked of Prometheus, with where."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in SHOWN:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, _ = variable["query"]["query"].removeprefix("label_values(").rsplit(",", 1)
            yield variable["name"], metric


def metrics_in(expression: str) -> set[str]:
    """The names that are no function, keyword, label or string."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right) \([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    names = set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", re.sub(r"\[[^\]]*\]", "", bare)))
    return names - {"or", "and", "unless", "by", "sum", "min", "max"}


async def told(node: Node) -> dict[str, set[str]]:
    """Every series that a node can have, with its labels: one that leads others."""
    requests = RequestCounts()
    requests.add("GET", "/metrics", 200)
    broker = node.broker
    members = (MemberStatistics("n2", 0, reachable=True),)
    broker._followers = lambda last_index: members  # type: ignore[method-assign]
    clocks = Clocks(node.replica, node.clock, 5)
    clocks.statistics = lambda: ClockStatistics(5, 0.1, (("n2", 0.2),))  # type: ignore[method-assign]
    broker.clocks = clocks
    broker.certificates = Certificates(Config())
    broker.certificates.expiries = (Expiry("raft.tls_ca", Path("ca.pem"), "1", "CN=ca", 0.0, 1.0),)
    text = render(with_registry(broker, None, requests)).decode()
    return {
        sample.name: {*sample.labels}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_each_metric_that_is_asked_for_is_one_that_nodes_tell() -> None:
    async with running_node() as node:
        known = await told(node)
    asked = {where: metrics_in(expression) for where, expression in expressions()}
    assert all(asked.values())
    assert len(asked) > 30
    unknown = {(w, n) for w, names in asked.items() for n in names - OF_PROMETHEUS - {*known}}
    assert unknown == set()


async def test_each_label_that_is_asked_for_is_one_of_a_metric_there() -> None:
    async with running_node() as node:
        known = await told(node)
    shown = [(p["title"], t["expr"], t["legendFormat"]) for p in SHOWN for t in p["targets"]]
    shown += [(r["alert"], r["expr"], json.dumps(r["annotations"])) for r in RULES]
    for where, expression, text in shown:
        asked = set(re.findall(r"(\w+)=~?\"", expression))
        asked |= {
            each.strip()
            for found in re.findall(r"by \(([^)]*)\)", expression)
            for each in found.split(",")
        }
        asked |= set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text))
        asked |= set(re.findall(r"\$labels\.(\w+)", text))
        has = LABELS.union(*(known.get(name, set()) for name in metrics_in(expression)))
        assert asked <= has, where


def test_the_reader_of_expressions_reads_them() -> None:
    found = metrics_in('histogram_quantile(0.9, sum by (le, x) (rate(a_b{c="d e"}[5m]))) > f or g')
    assert found == {"a_b", "f", "g"}
    assert metrics_in("min by (x) (a) > on (y) group_left () b") == {"a", "b"}


@pytest.mark.parametrize(
    "metric",
    [
        "publishes_total", "messages_total", "deliveries_total", "commit_seconds_bucket",
        "store_write_seconds_bucket", "lag_entries", "member_lag_entries", "elections_total",
        "is_leader", "subscribers", "lagging_subscribers", "store_bytes", "http_requests_total",
        "connections_refused_total", "gaps_total", "peers_connected", "pending_proposals",
    ],
)  # fmt: skip
def test_the_dashboard_shows_it(metric: str) -> None:
    shown = {name for p in SHOWN for target in p["targets"] for name in metrics_in(target["expr"])}
    assert f"repl_broker_{metric}" in shown


def test_panels_have_a_place_of_their_own_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(panel["description"] and panel["targets"] for panel in SHOWN)


def promtool(*arguments: str, stdin: str = "") -> str:
    """What it prints; it must find nothing wrong."""
    path = need_program("promtool")
    ended = subprocess.run(
        [path, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    assert f"{len(RULES)} rules found" in promtool(
        "check", "config", str(FOLDER / "prometheus.yml")
    )


def test_prometheus_reads_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{n}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for n, target in enumerate(t for panel in SHOWN for t in panel["targets"])
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


async def test_prometheus_finds_nothing_to_mend_in_what_a_node_tells() -> None:
    async with running_node() as node:
        await node.broker.publish(ANYONE, "chat", b"1")
        requests = RequestCounts()
        requests.add("GET", "/metrics", 200)
        text = render(with_registry(node.broker, None, requests)).decode()
    assert promtool("check", "metrics", stdin=text) == ""


# What each alert rings at: series over an hour, a value a minute. The rest is healthy.

NODE = 'job="repl-broker", instance="n1"'
OTHER = 'job="repl-broker", instance="n2"'
QUICK, SLOW, ALL = 'le="0.01"', 'le="5.0"', 'le="+Inf"'
CERTIFICATE = (
    f'repl_broker_certificate_expiry_timestamp_seconds{{{NODE}, certificate="raft.tls_ca"}}'
)
HEALTHY = {
    f"up{{{NODE}}}": "1x60",
    f"repl_broker_ready{{{NODE}}}": "1x60",
    f"repl_broker_is_leader{{{NODE}}}": "1x60",
    f"repl_broker_is_leader{{{OTHER}}}": "0x60",
    f'repl_broker_member_reachable{{{NODE}, member="n2"}}': "1x60",
    f'repl_broker_member_lag_entries{{{NODE}, member="n2"}}': "3x60",
    f'repl_broker_member_clock_skew_seconds{{{NODE}, member="n2"}}': "-0.2x60",
    f'repl_broker_member_clock_skew_seconds{{{OTHER}, member="n3"}}': "0.1x60",
    f'repl_broker_member_clock_skew_seconds{{{NODE}, member="n3"}}': "86400x60",  # its own clock
    f"repl_broker_clock_skew_limit_seconds{{{NODE}}}": "5x60",
    f"repl_broker_clock_skew_limit_seconds{{{OTHER}}}": "5x60",
    f"repl_broker_term{{{NODE}}}": "7x60",
    f'repl_broker_http_requests_total{{{NODE}, method="GET", route="/", status="200"}}': "0+600x60",
    f'repl_broker_http_requests_total{{{NODE}, method="GET", route="/", status="429"}}': "0+3x60",
    f'repl_broker_http_requests_total{{{NODE}, method="GET", route="/", status="503"}}': "0+1x60",
    f"repl_broker_connections_refused_total{{{NODE}}}": "0x60",
    f"repl_broker_connections_failed_total{{{NODE}}}": "0x60",
    f'repl_broker_refused_total{{{NODE}, code="internal_error"}}': "3x60",
    f'repl_broker_refused_total{{{NODE}, code="overloaded"}}': "9x60",
    f'repl_broker_refused_total{{{NODE}, code="rate_limited"}}': "0+3x60",
    f'repl_broker_refused_total{{{NODE}, code="too_many_streams"}}': "9x60",
    f"repl_broker_peers_connected{{{NODE}}}": "1x60",
    f"repl_broker_peers_connected{{{OTHER}}}": "1x60",
    f"repl_broker_pending_proposals{{{NODE}}}": "3x60",
    f"repl_broker_store_full{{{NODE}}}": "0x60",
    f"repl_broker_retained_bytes{{{NODE}}}": "8000x60",
    f"repl_broker_retained_limit_bytes{{{NODE}}}": "10000x60",
    f"repl_broker_retained_bytes{{{OTHER}}}": "8000x60",
    f"repl_broker_retained_limit_bytes{{{OTHER}}}": "0x60",  # no limit
    f"repl_broker_disk_free_bytes{{{NODE}}}": "700x60",
    f"repl_broker_disk_free_limit_bytes{{{NODE}}}": "256x60",
    f"repl_broker_disk_free_bytes{{{OTHER}}}": "1x60",
    f"repl_broker_disk_free_limit_bytes{{{OTHER}}}": "0x60",  # no limit
    f"repl_broker_last_backup_timestamp_seconds{{{NODE}}}": "-86400x60",  # it is 1970
    f"repl_broker_last_backup_timestamp_seconds{{{OTHER}}}": "-8640000x60",
    f"repl_broker_connections{{{NODE}}}": "100x60",
    f"repl_broker_connections_max{{{NODE}}}": "1000x60",
    f"repl_broker_subscriber_lag_messages_max{{{NODE}}}": "2000x60",
    f"process_open_fds{{{NODE}}}": "100x60",
    f"process_max_fds{{{NODE}}}": "1000x60",
    f"repl_broker_gaps_total{{{NODE}}}": "5x60",
    CERTIFICATE: f"{90 * 86400}x60",  # the time begins at 0 here
    f"repl_broker_reload_problems{{{NODE}}}": "0x60",
    f"repl_broker_peer_handshakes_refused_total{{{NODE}}}": "2x60",
    f"repl_broker_peer_garbage_total{{{NODE}}}": "1x60",
    f"repl_broker_loop_turn_longest_seconds{{{NODE}}}": "0.02x60",
    **{
        f"repl_broker_{name}_seconds_bucket{{{NODE}, {le}}}": "0+100x60"
        for name in ("commit", "store_write")
        for le in (QUICK, SLOW, ALL)
    },
}
SICK = {
    "ReplBrokerDown": {f"up{{{NODE}}}": "0x60"},
    "ReplBrokerNotReady": {f"repl_broker_ready{{{NODE}}}": "0x60"},
    "ReplBrokerNoLeader": {f"repl_broker_is_leader{{{NODE}}}": "0x60"},
    "ReplBrokerTwoLeaders": {f"repl_broker_is_leader{{{OTHER}}}": "1x60"},
    "ReplBrokerMemberUnreachable": {f'repl_broker_member_reachable{{{NODE}, member="n2"}}': "0x60"},
    "ReplBrokerMemberLags": {f'repl_broker_member_lag_entries{{{NODE}, member="n2"}}': "20000x60"},
    "ReplBrokerClockOff": {
        f'repl_broker_member_clock_skew_seconds{{{NODE}, member="n2"}}': "-86400x60"
    },
    "ReplBrokerLeaderMoves": {f"repl_broker_term{{{NODE}}}": "0+1x60"},
    "ReplBrokerSlowCommits": {f"repl_broker_commit_seconds_bucket{{{NODE}, {QUICK}}}": "0+50x60"},
    "ReplBrokerSlowDisk": {f"repl_broker_store_write_seconds_bucket{{{NODE}, {QUICK}}}": "0+50x60"},
    "ReplBrokerBusy": {f"repl_broker_loop_turn_longest_seconds{{{NODE}}}": "0.4x60"},
    "ReplBrokerErrors": {
        f'repl_broker_http_requests_total{{{NODE}, method="GET", route="/", status="503"}}': (
            "0+60x60"
        )
    },
    "ReplBrokerRefusals": {
        f'repl_broker_http_requests_total{{{NODE}, method="GET", route="/", status="429"}}': (
            "0+12x60"  # a fifth a second
        )
    },
    "ReplBrokerConnectionsRefused": {f"repl_broker_connections_refused_total{{{NODE}}}": "0+1x60"},
    "ReplBrokerPeersMissing": {f"repl_broker_peers_connected{{{OTHER}}}": "0x60"},
    "ReplBrokerWritesWait": {f"repl_broker_pending_proposals{{{NODE}}}": "300x60"},
    "ReplBrokerOverloaded": {f'repl_broker_refused_total{{{NODE}, code="overloaded"}}': "0+1x60"},
    "ReplBrokerStoreFull": {f"repl_broker_store_full{{{NODE}}}": "1x60"},
    "ReplBrokerStoreFills": {f"repl_broker_retained_bytes{{{NODE}}}": "9000x60"},
    "ReplBrokerBackupOld": {
        f"repl_broker_last_backup_timestamp_seconds{{{NODE}}}": "-200000x60",
    },
    "ReplBrokerSomeErrors": {
        f'repl_broker_refused_total{{{NODE}, code="internal_error"}}': "3x50 4x10"
    },
    "ReplBrokerLimitReached": {
        f'repl_broker_refused_total{{{NODE}, code="too_many_streams"}}': "9x50 10x10"
    },
    "ReplBrokerConnectionsFill": {f"repl_broker_connections{{{NODE}}}": "900x60"},
    "ReplBrokerReadersBehind": {f"repl_broker_subscriber_lag_messages_max{{{NODE}}}": "20000x60"},
    "ReplBrokerFewDescriptors": {f"process_open_fds{{{NODE}}}": "900x60"},
    "ReplBrokerReadersLoseMessages": {f"repl_broker_gaps_total{{{NODE}}}": "0+1x60"},
    "ReplBrokerStrangerAtRaftPort": {f"repl_broker_peer_garbage_total{{{NODE}}}": "0+1x60"},
    "ReplBrokerCertificateEnds": {CERTIFICATE: f"{29 * 86400}x60"},
    "ReplBrokerCertificateEndsSoon": {CERTIFICATE: f"{6 * 86400}x60"},
    "ReplBrokerReloadFailed": {f"repl_broker_reload_problems{{{NODE}}}": "1x60"},
    "ReplBrokerConnectionsFail": {f"repl_broker_connections_failed_total{{{NODE}}}": "0+1x60"},
}


def test_every_alert_has_a_case() -> None:
    assert {rule["alert"] for rule in RULES} == {*SICK}
    assert all(series in HEALTHY for sick in SICK.values() for series in sick)


def rings(series: dict[str, str], tmp_path: Path) -> set[str]:
    """The alerts that Prometheus fires after an hour of ``series``."""
    query = "count by (alertname) (ALERTS{alertstate='firing'})"
    test = {
        "rule_files": [str(FOLDER / "alerts.yml")],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": v} for name, v in series.items()],
                "promql_expr_test": [{"expr": query, "eval_time": "59m", "exp_samples": []}],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    ended = subprocess.run(
        [need_program("promtool"), "test", "rules", str(file)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    told = ended.stdout + ended.stderr
    fired = set(re.findall(r'alertname="(\w+)"', told))
    assert (ended.returncode == 0) == (not fired), told
    return fired


def test_a_healthy_cluster_rings_nothing(tmp_path: Path) -> None:
    assert rings(HEALTHY, tmp_path) == set()


def test_clocks_may_be_as_far_apart_as_the_nodes_are_told(tmp_path: Path) -> None:
    skew = f'repl_broker_member_clock_skew_seconds{{{NODE}, member="n2"}}'
    bounds = [f"repl_broker_clock_skew_limit_seconds{{{each}}}" for each in (NODE, OTHER)]
    loose, strict = dict.fromkeys(bounds, "30x60"), dict.fromkeys(bounds, "1x60")
    assert rings(HEALTHY | {skew: "20x60"} | loose, tmp_path) == set()
    assert rings(HEALTHY | {skew: "-2x60"} | strict, tmp_path) == {"ReplBrokerClockOff"}


def test_a_disk_that_fills_rings_as_well(tmp_path: Path) -> None:
    nearly_full = {f"repl_broker_disk_free_bytes{{{NODE}}}": "500x60"}
    assert rings(HEALTHY | nearly_full, tmp_path) == {"ReplBrokerStoreFills"}


def test_whatever_the_reference_calls_worth_an_alert_has_a_rule() -> None:
    """Each of its points, not each of the metrics that a point names."""
    _, _, text = REFERENCE.read_text().partition("## Worth an alert")
    points = re.findall(r"^- (.*)$", text, re.MULTILINE)
    assert len(points) > 20
    asked = set().union(*(metrics_in(rule["expr"]) for rule in RULES))
    for point in points:
        named = set(re.findall(r"(?:repl_broker|process)_\w+", point))
        assert named & asked, f"no rule rings at: {point}"
    named = set(re.findall(r"(?:repl_broker|process)_\w+", text))
    assert asked - OF_PROMETHEUS <= named, "and the reference has all that rules ring at"


@pytest.mark.parametrize("alert", SICK)
def test_an_alert_rings_at_what_it_is_for_and_alone(alert: str, tmp_path: Path) -> None:
    assert rings(HEALTHY | SICK[alert], tmp_path) == {alert}
