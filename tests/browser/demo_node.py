"""A real ``repl-broker demo`` in its own process, and a real Chromium to look at it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

START_SECONDS_MAX = 15
STOP_SECONDS_MAX = 10
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def find_browser() -> str | None:
    """What the variable CHROMIUM names, or a Chromium of the PATH."""
    wanted = os.environ.get("CHROMIUM")
    return shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, BROWSERS)), None)


class DemoNode:
    """``repl-broker demo``, which can be killed and started again on its port."""

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.chat_url = f"{self.url}/chat/"
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []

    def __enter__(self) -> DemoNode:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._end(signal.SIGTERM)

    @property
    def origins(self) -> list[str]:
        """All that a page of it may ask."""
        return [self.url]

    def start(self) -> None:
        """Start it, and return once it answers requests."""
        assert self._process is None
        command = [
            *(sys.executable, "-m", "repl_broker", "demo", "--log-level", "info"),
            *("--http", f"127.0.0.1:{self.port}", "--data-dir", str(self.data_dir)),
        ]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        serving = threading.Event()
        self._lines = []
        self._reader = threading.Thread(target=self._read, args=(self._process, serving))
        self._reader.start()
        if not serving.wait(START_SECONDS_MAX) or self._process.poll() is not None:
            self.kill()
            raise RuntimeError("the node does not start:\n" + "".join(self._lines))

    def kill(self) -> None:
        """As a power cut would: SIGKILL, in the middle of whatever it does."""
        self._end(signal.SIGKILL)

    def get(self, path: str) -> Any:
        """The JSON of a GET."""
        with urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def history(self, topic: str) -> list[dict[str, Any]]:
        """All the messages of a topic, page by page."""
        messages: list[dict[str, Any]] = []
        after: str | None = "earliest"
        while after is not None:
            page = self.get(f"/v1/topics/{topic}/messages?after={after}&limit=100")
            messages += page["messages"]
            after = page["next"]
        return messages

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self._reader is not None
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._process = None

    def _read(self, process: subprocess.Popen[str], serving: threading.Event) -> None:
        # The node says when it answers; to read on keeps its pipe from filling up.
        assert process.stderr is not None
        for line in process.stderr:
            self._lines.append(line)
            if "serving" in line:
                serving.set()
        serving.set()


def free_port() -> int:
    """A port below those that the system hands out.

    While the node is down the pages go on connecting to it. With a port of that
    range, one of those connections may get the same port and connect to itself.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
