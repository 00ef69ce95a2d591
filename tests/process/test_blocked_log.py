"""A node whose standard error is a pipe that nobody reads: it serves, and it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.node import LEASH, WAIT_SECONDS_MAX, Client, Node, environment, polls

pytestmark = pytest.mark.process

REQUESTS = 1000  # each with its line, of some 4 KB: beyond the pipe and what may wait
PATH = "/" + 4000 * "x"
STOP_SECONDS_MAX = 10.0  # what goes before the end, and the wait for the last lines


class DeafNode(Node):
    """Its standard error is a pipe, whose reading end is ``log_fd``."""

    def spawn(self) -> None:
        self.log_fd, writing = os.pipe()
        command = [*LEASH, sys.executable, "-m", "repl_broker", "serve"]
        command += ["--data-dir", str(self.data_dir), "--http", f"{self.address}:{self.port}"]
        self._process = subprocess.Popen(
            [*command, *self.options], stderr=writing, env=environment(**self.keys)
        )
        os.close(writing)

    def read_until(self, text: str) -> str:
        found = b""
        while text.encode() not in found:
            data = os.read(self.log_fd, 1 << 16)
            assert data, "the node has closed its log"
            found += data
        return found.decode()

    def read_to_end(self) -> str:
        with os.fdopen(os.dup(self.log_fd)) as file:
            return file.read()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[DeafNode]:
    made = DeafNode(tmp_path / "data", http_access_log="true", limits_shutdown_seconds=1)
    with made:
        made.start()
        yield made
    os.close(made.log_fd)


def fill(node: Node, requests: int = REQUESTS) -> None:
    """More lines than there is room for."""
    with Client(node) as client:
        for _ in range(requests):
            assert client.request("GET", PATH).status == 404


def test_a_node_answers_although_nobody_reads_its_log_and_says_later_what_was_lost(
    node: DeafNode,
) -> None:
    fill(node)
    assert node.publish("news", 1)  # it is not only alive
    with Client(node) as client:
        text = client.request("GET", "/metrics").body.decode()
    (line,) = [each for each in text.splitlines() if each.startswith("repl_broker_log_lines_lost")]
    assert float(line.split()[1]) > 0
    lost = node.read_until("lines of the log were lost")
    notice = json.loads(next(each for each in lost.splitlines() if "were lost" in each))
    assert notice["lines"] >= float(line.split()[1])
    assert node.stop() == 0
    assert '"stopped node=' in node.read_to_end()


def test_a_node_stops_in_time_although_nobody_reads_its_log(node: DeafNode) -> None:
    fill(node, 100)  # some 400 KB: the pipe is full
    started = time.monotonic()
    assert node.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < STOP_SECONDS_MAX


def test_a_node_that_fails_ends_although_nobody_reads_why(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(writing, True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broker.db").write_bytes(b"no database" * 1000)
    command = [*LEASH, sys.executable, "-m", "repl_broker", "serve"]
    with subprocess.Popen(
        [*command, "--data-dir", str(tmp_path / "data"), "--http", "127.0.0.1:0"],
        stderr=writing,
        env=environment(),
    ) as process:
        try:
            assert process.wait(WAIT_SECONDS_MAX) == 1
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)


def test_the_reason_of_an_end_is_the_last_line(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with Node(folder) as node:
        node.start()
        with Node(folder) as second:
            second.spawn()
            assert second.wait() == 1
            for _ in polls("the last line"):
                if second.log_text().splitlines()[-1].startswith("error: "):
                    break
