"""Traces of a real node: they arrive at a collector, and nothing depends on one being there."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.process.node import WAIT_SECONDS_MAX, Node, free_port
from tests.process.test_start_failures import refusal_with

pytestmark = pytest.mark.process

Requests = queue.Queue[tuple[str, ExportTraceServiceRequest]]


@contextmanager
def collector() -> Iterator[tuple[str, Requests]]:
    """Its URL, and what it gets: path and content."""
    requests: Requests = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.put((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent at once, not every five seconds."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_collector_gets_the_spans_of_a_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    with collector() as (url, requests):
        keys = {} if by_variable else {"tracing_endpoint": url}
        if by_variable:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with Node(tmp_path / "data", **keys) as node:
            node.start()
            node.publish("chat", "1")
            names: set[str] = set()
            while not {"publish", "propose", "commit"} <= names:
                path, content = requests.get(timeout=WAIT_SECONDS_MAX)
                assert path == "/v1/traces"
                (resource,) = content.resource_spans
                about = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert (about["service.name"], about["service.instance.id"]) == (
                    "repl-broker",
                    "n1",
                )
                names |= {span.name for scope in resource.scope_spans for span in scope.spans}
            assert node.stop() == 0


def test_with_the_collector_away_the_node_publishes_and_stops(tmp_path: Path) -> None:
    with Node(tmp_path / "data", tracing_endpoint=f"http://127.0.0.1:{free_port()}") as node:
        node.start()
        for number in range(50):
            node.publish("chat", str(number))
        node.publish("chat", "last")
        assert node.stop() == 0
        log = node.log_text()
    assert "Traceback" not in log
    assert log.count("traces are lost") <= 1
    assert "urllib3" not in log


def test_without_the_extra_a_node_that_is_to_trace_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent" / "opentelemetry"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('no opentelemetry')\n")
    paths = [str(absent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    file = tmp_path / "cluster.toml"
    file.write_text('[tracing]\nendpoint = "http://127.0.0.1:4318"\n')
    line = refusal_with(tmp_path / "data", "--config", str(file))
    assert "[tracing] endpoint" in line
    assert 'pip install "repl-broker[otel]"' in line
    assert not (tmp_path / "data").exists()
    with Node(tmp_path / "data") as node:  # nothing asks for traces
        node.start()
        assert node.stop() == 0


def test_opentelemetry_is_not_loaded_unless_it_is_asked_for() -> None:
    script = "import sys, repl_broker.daemon; print('opentelemetry' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "False\n"
