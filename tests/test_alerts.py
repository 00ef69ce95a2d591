"""Each alert rule rings in a real Prometheus: at series that are sick, and at a real node.

Time is a sixtieth of what the rules say: what they look at over five minutes are five
seconds here, and a minute to wait for is one second. Prometheus asks each second.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.process.node import JSON, LEASH, Client, Node, free_port
from tests.required import need_program
from tests.test_monitoring import ALERTS, HEALTHY, RULES, SICK

pytestmark = pytest.mark.process

SCRAPE: Final = "1s"
SIXTIETH: Final = {"h": ("m", 1), "m": ("s", 1), "s": ("ms", 1000 / 60)}
ALERTS_SECONDS_MAX: Final = 45  # the slowest rule takes 20; the machine may be busy
PROGRAM: Final = (sys.executable, "-m", "repl_broker")
# Those of promtool are of 1970.
TIMES: Final = {
    "repl_broker_last_backup_timestamp_seconds",
    "repl_broker_certificate_expiry_timestamp_seconds",
}


def quickened(rules: dict[str, Any]) -> dict[str, Any]:
    """The rules, sixty times as quick, for jobs of any name."""

    def sixtieth(found: re.Match[str]) -> str:
        unit, times = SIXTIETH[found[2]]
        return f"{int(int(found[1]) * times)}{unit}"

    changed: dict[str, Any] = json.loads(json.dumps(rules))
    for group in changed["groups"]:
        group["interval"] = SCRAPE
        for rule in group["rules"]:
            expression = re.sub(r'job="repl-broker"', 'job=~"repl-broker.*"', rule["expr"])
            rule["expr"] = re.sub(r"(?<=\[)(\d+)([hms])(?=\])", sixtieth, expression)
            if "for" in rule:
                rule["for"] = re.sub(r"(\d+)([hms])", sixtieth, rule["for"])
    return changed


def text_of(series: dict[str, str], instance: str, seconds: float) -> str:
    """What a node of these series tells, so long after the start; minutes go by as seconds do
    there, and what is counted a minute is counted a minute here, so that rates are the same."""
    lines = []
    for name, values in series.items():
        if f'instance="{instance}"' not in name or name.startswith("up{"):
            continue
        metric, labels = re.fullmatch(r"(\w+)\{(.*)\}", name).groups()  # type: ignore[union-attr]
        kept = [each for each in labels.split(", ") if not re.match("job=|instance=", each)]
        lines.append(f"{metric}{{{','.join(kept)}}} {value_of(metric, values, seconds)}")
    return "\n".join([*lines, ""])


def value_of(metric: str, values: str, seconds: float) -> float:
    first, *more = values.split()
    if more:  # it is another from then on
        assert len(more) == 1
        first = more[0] if seconds > 10 else first
    begin, step = re.fullmatch(r"(-?[\d.]+)(?:\+(\d+))?x\d+", first).groups()  # type: ignore[union-attr]
    value = float(begin) + float(step or 0) * seconds / 60
    return value + time.time() if metric in TIMES else value


class Tellers:
    """Serves ``/metrics`` of nodes that do not exist: ``/ALERT/INSTANCE``."""

    def __init__(self) -> None:
        began = time.monotonic()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                alert, instance = self.path.strip("/").split("/")
                series = HEALTHY | SICK.get(alert, {})
                seconds = time.monotonic() - began
                is_down = alert == "ReplBrokerDown" and instance == "n1"
                body = text_of(series, instance, seconds).encode()
                self.send_response(500 if is_down else 200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_request(self, *_: object) -> None:
                """Not on the tests' standard error."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]


@contextmanager
def tellers() -> Iterator[Tellers]:
    found = Tellers()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        thread.join()
        found.server.server_close()


def scrape(job: str, *targets: tuple[str, str, str]) -> dict[str, Any]:
    """``targets``: instance, address, path."""
    relabel = [
        {"source_labels": ["path"], "target_label": "__metrics_path__"},
        {"regex": "path", "action": "labeldrop"},
    ]
    groups = [
        {"targets": [address], "labels": {"instance": instance, "path": path}}
        for instance, address, path in targets
    ]
    return {"job_name": job, "static_configs": groups, "relabel_configs": relabel}


class Prometheus:
    """A server that runs."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def firing(self) -> set[tuple[str, str]]:
        """Job and alert of each that fires."""
        return {
            (alert["labels"]["job"], alert["labels"]["alertname"])
            for alert in self._get("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def errors(self) -> list[str]:
        """Of rules that could not be asked, or whose words could not be written."""
        rules = [rule for group in self._get("rules")["groups"] for rule in group["rules"]]
        return [rule["lastError"] for rule in rules if rule.get("lastError")]

    def wait(self, fits: Callable[[set[tuple[str, str]]], bool], what: str) -> None:
        end = time.monotonic() + ALERTS_SECONDS_MAX
        while True:
            try:
                firing = self.firing()
            except OSError:  # it begins
                firing = set()
            if fits(firing):
                return
            assert time.monotonic() < end, f"{what}: {sorted(firing)} {self.errors()}"
            time.sleep(0.2)


@contextmanager
def prometheus(folder: Path, *jobs: dict[str, Any]) -> Iterator[Prometheus]:
    path, port = need_program("prometheus"), free_port()
    (folder / "alerts.yml").write_text(yaml.safe_dump(quickened(ALERTS)))
    configuration = {
        "global": {
            "scrape_interval": SCRAPE,
            "scrape_timeout": SCRAPE,
            "evaluation_interval": SCRAPE,
        },
        "rule_files": ["alerts.yml"],
        "scrape_configs": [*jobs],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = [
        *LEASH, path, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    with process:
        try:
            yield Prometheus(port)
        finally:
            process.kill()


def test_each_rule_rings_in_a_real_prometheus_at_what_it_is_for_and_alone(tmp_path: Path) -> None:
    with tellers() as there:
        address = f"127.0.0.1:{there.port}"
        jobs = [
            scrape(
                f"repl-broker-{alert}",
                *((instance, address, f"/{alert}/{instance}") for instance in ("n1", "n2")),
            )
            for alert in ("healthy", *SICK)
        ]
        with prometheus(tmp_path, *jobs) as found:
            wanted = {(f"repl-broker-{rule['alert']}", rule["alert"]) for rule in RULES}
            rang: set[tuple[str, str]] = set()

            def all_ring(firing: set[tuple[str, str]]) -> bool:
                rang.update(firing)  # some end by themselves
                return wanted <= rang

            found.wait(all_ring, "not all ring")
            assert rang - wanted - BESIDE == set()
            assert found.errors() == []


# What goes with another: of a node that is down nothing is known.
BESIDE: Final = {
    ("repl-broker-ReplBrokerDown", other) for other in ("ReplBrokerNoLeader", "ReplBrokerBackupOld")
}


def test_a_real_node_that_is_full_not_saved_and_then_gone_rings(tmp_path: Path) -> None:
    (tmp_path / "prometheus").mkdir()
    with Node(tmp_path / "data", limits_storage_bytes=4000, limits_topics=1) as node:
        node.start()
        job = scrape("repl-broker", ("n1", f"127.0.0.1:{node.port}", "/metrics"))
        with prometheus(tmp_path / "prometheus", job) as found, Client(node) as client:

            def wait(*alerts: str, gone: bool = False) -> None:
                named = {("repl-broker", alert) for alert in alerts}
                found.wait(
                    lambda firing: named.isdisjoint(firing) if gone else named <= firing,
                    f"{alerts}{' to end' if gone else ''}",
                )

            wait("ReplBrokerBackupOld")
            assert client.publish("chat", b'"' + b"x" * 3500 + b'"').status == 201
            wait("ReplBrokerStoreFills")
            assert client.publish("chat", b'"' + b"x" * 800 + b'"').status in (201, 507)
            assert client.publish("chat", b'"' + b"x" * 800 + b'"').status == 507
            refused = client.request("PUT", "/v1/topics/other", b"{}", Content_Type=JSON)
            assert refused.json["code"] == "too_many_topics"
            wait("ReplBrokerLimitReached")
            wait("ReplBrokerStoreFull", "ReplBrokerSomeErrors")
            command = ["backup", "--data-dir", str(node.data_dir), str(tmp_path / "backup.db")]
            subprocess.run([*PROGRAM, *command], check=True, capture_output=True)
            wait("ReplBrokerBackupOld", gone=True)
            assert client.request("DELETE", "/v1/topics/chat").status == 204
            wait("ReplBrokerStoreFull", "ReplBrokerStoreFills", gone=True)
            node.kill()
            wait("ReplBrokerDown")
