"""A client of its own process that publishes small messages, and how long each of them waited.

``python -m benchmarks.victim PORT ADDRESS TOKEN [anew]`` publishes until its stdin ends, then
writes the waits to stdout as one JSON array of seconds. With ``anew`` each publish has a
connection of its own, which counts as part of the wait. A process of its own, because what
is measured must not wait for the interpreter that attacks.

Without arguments it is a server that answers whatever it gets at once, and writes its port
to stdout. What the same client waits for that one is the machine's part of all waits: the
time in which others have its processors.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.load import BenchmarkError

__all__ = ["Echo", "Victim"]

PAUSE_SECONDS = 0.004
WAIT_SECONDS_MAX = 30


class Victim:
    """Publishes from ``start`` to ``stop``, which gives the waits in seconds."""

    def __init__(self, port: int, address: str, token: str, *, anew: bool = False) -> None:
        self._command = [sys.executable, "-m", "benchmarks.victim", str(port), address, token]
        self._command += ["anew"] if anew else []
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip

    def stop(self) -> list[float]:
        assert self._process is not None, "it was started"
        said, _ = self._process.communicate("")
        if self._process.returncode or not said:
            raise BenchmarkError("a publish of the other client was refused, or had no answer")
        waits: list[float] = json.loads(said)
        return waits


class Echo:
    """A server beside the node, from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.victim"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        assert self._process is not None, "it was started"
        self._process.communicate("")


def _echo() -> None:
    """Answer one client after the other, until stdin ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            client, _ = listener.accept()
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while client.recv(4096):
                    client.sendall(b"HTTP/1.1 201 \r\n\r\n")


def _publish(port: int, address: str, token: str, *, anew: bool) -> list[float]:
    request = (
        f"POST /v1/topics/other.one/messages HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        "Content-Length: 1\r\n\r\n1"
    ).encode()
    waits = []
    connection = None
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        began = time.perf_counter()
        if connection is None:
            connection = socket.create_connection(
                ("127.0.0.1", port), WAIT_SECONDS_MAX, (address, 0)
            )
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request)
        answer = connection.recv(4096)
        if not answer.startswith(b"HTTP/1.1 201 "):
            sys.exit(f"{answer!r}")
        waits.append(time.perf_counter() - began)
        if anew:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return waits


if __name__ == "__main__":
    if len(sys.argv) == 1:
        _echo()
    else:
        port, address, token = int(sys.argv[1]), sys.argv[2], sys.argv[3]
        print(json.dumps(_publish(port, address, token, anew="anew" in sys.argv[4:])))
