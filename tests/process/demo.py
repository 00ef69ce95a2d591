"""``repl-broker demo --nodes 3`` as its users run it, and its control as its page calls it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

from tests.process.node import LEASH, WAIT_SECONDS_MAX, Node, environment, polls

LINK: Final = re.compile(r"^  (n\d)  (http://127\.0\.0\.1:(\d+)/chat/#demo=(\d+)\.([\w-]+))", re.M)


class Demo:
    """The supervisor's process; ``with`` it. Port 0: free ones."""

    def __init__(self, folder: Path, *options: str, http: str = "127.0.0.1:0") -> None:
        self.folder = folder
        self.said = ""
        self.links: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}  # places to ask; their processes are the supervisor's
        self.control = 0
        self.token = ""
        self._command = [*LEASH, sys.executable, "-m", "repl_broker", "demo", "--nodes", "3"]
        self._command += ["--data-dir", str(folder), "--http", http, *options]
        self._pids: set[int] = set()
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start it, and return once it says where to look."""
        self.spawn()
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,))
        self._reader.start()
        assert ready.wait(2 * WAIT_SECONDS_MAX), f"not ready; it said: {self.said}"
        assert "Ctrl-C" in self.said, f"it ended, and said: {self.said}"
        for name, link, port, control, token in LINK.findall(self.said):
            self.links[name] = link
            node = self.nodes[name] = Node(self.folder / name)
            node.port = int(port)
            self.control, self.token = int(control), token
        self._pids |= {*self.children()}

    def spawn(self) -> None:
        """Start it, and return at once."""
        self.said = ""
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )

    def _read(self, ready: threading.Event) -> None:
        with self.process:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.said += line
                if "Ctrl-C" in line:
                    ready.set()
        ready.set()

    def ask(
        self, method: str, path: str, *, token: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON of an answer of the control."""
        connection = http.client.HTTPConnection("127.0.0.1", self.control, timeout=10)
        given = {"Authorization": f"Bearer {self.token if token is None else token}", **headers}
        try:
            connection.request(method, path, headers=given)
            with connection.getresponse() as response:
                return response.status, json.load(response)
        finally:
            connection.close()

    def state(self) -> dict[str, Any]:
        status, state = self.ask("GET", "/state")
        assert status == 200, state
        found: dict[str, Any] = state
        return found

    def wait(self, what: str, until: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Until its state is so. The state then."""
        seen = [self.state()]
        for _ in polls(lambda: f"{what}: {seen[-1]}"):
            seen.append(self.state())
            if until(seen[-1]):
                return seen[-1]
        raise AssertionError

    def children(self) -> Iterator[int]:
        """The process ids of its nodes."""
        self._pids |= {*children_of(self.process.pid)}
        yield from children_of(self.process.pid)

    def end(self, number: signal.Signals) -> int:
        """Send the signal, and wait until it and every node that it ever had is gone."""
        self._pids |= {*self.children()}
        self.process.send_signal(number)
        status = self.process.wait(WAIT_SECONDS_MAX)
        for _ in polls(lambda: f"the nodes to end: {self.alive()}"):
            if not self.alive():
                break
        return status

    def alive(self) -> list[int]:
        """Which of its nodes are there still."""
        return [pid for pid in self._pids if is_alive(pid)]

    def __enter__(self) -> Demo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self._pids |= {*self.children()}
            self.process.kill()
            self.process.wait()
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        if self._reader is not None:
            self._reader.join()


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended, and that nobody has waited for, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
