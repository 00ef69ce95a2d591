"""The publishers to copy from try again what may help, under one key, and give up on the rest.

They meet a server that answers as it is told: what a node or a proxy says in trouble.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest

from tests.process.node import WAIT_SECONDS_MAX
from tests.required import need_modules, need_program

pytestmark = pytest.mark.process

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
PUBLISHERS: Final = {
    "python": [sys.executable, "-c", "from broker import publish; publish('orders', 1)"],
    "node": ["node", str(EXAMPLES / "node" / "publish.mjs"), "orders", "1"],
    "cron": [str(EXAMPLES / "cron" / "report-disks")],
}
every_publisher = pytest.mark.parametrize("name", list(PUBLISHERS))


@dataclass
class Trouble:
    """A server that gives these answers, one after the other: status and ``Retry-After``."""

    answers: list[tuple[int, str]]
    url: str = ""
    keys: list[str] = field(default_factory=list)


@contextmanager
def trouble(*answers: tuple[int, str]) -> Iterator[Trouble]:
    state = Trouble(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            state.keys.append(self.headers["Idempotency-Key"])
            status, retry_after = state.answers.pop(0)
            body = json.dumps({"code": "as_told", "status": status}).encode()
            self.send_response(status)
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()
        thread.join()


def publish(name: str, url: str) -> subprocess.CompletedProcess[str]:
    need_modules("httpx")
    command: Sequence[str] = PUBLISHERS[name]
    if name != "python":
        need_program({"node": "node", "cron": "curl"}[name])
    return subprocess.run(
        command,
        env=os.environ
        | {"REPL_BROKER_URL": url, "PYTHONPATH": str(EXAMPLES / "publish-on-commit")},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


@every_publisher
@pytest.mark.parametrize("status", [429, 503, 504, 502, 500, 408])
def test_what_may_help_is_tried_again_under_the_same_key(name: str, status: int) -> None:
    with trouble((status, "0"), (201, "")) as server:
        done = publish(name, server.url)
        assert done.returncode == 0, done.stderr
        assert len(server.keys) == 2
        assert len(set(server.keys)) == 1
        assert len(server.keys[0]) == 36


@every_publisher
def test_what_cannot_help_is_not_tried_again_and_the_words_are_shown(name: str) -> None:
    with trouble((413, "")) as server:
        done = publish(name, server.url)
        assert done.returncode == 1
        assert "as_told" in done.stderr
        assert len(server.keys) == 1


@pytest.mark.parametrize("name", ["python", "node"])
@pytest.mark.parametrize("retry_after", ["3600", "Wed, 21 Oct 2026 07:28:00 GMT", "soon"])
def test_a_retry_after_is_heeded_as_far_as_patience_goes(name: str, retry_after: str) -> None:
    """An hour is longer than anybody waits; what is not a number of seconds is not heeded."""
    with trouble((503, retry_after), (201, "")) as server:
        done = publish(name, server.url)
        assert done.returncode == (1 if retry_after == "3600" else 0), done.stderr
        assert len(server.keys) == (1 if retry_after == "3600" else 2)
