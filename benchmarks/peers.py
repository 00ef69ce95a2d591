"""Servers that are measured: each a process of its own on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import BenchmarkError

__all__ = ["HYPERCORN", "OURS", "PEERS", "SQLITE", "Peer", "Server"]

OURS = "repl-broker"
HYPERCORN = "bare ASGI on Hypercorn"
SQLITE = "SQLite alone"

START_SECONDS_MAX = 20
STOP_SECONDS_MAX = 10
REST_SECONDS_MAX = 10


@dataclass(frozen=True, slots=True)
class Server:
    """A running peer."""

    port: int
    pid: int

    def rest(self, pause_seconds: float) -> None:
        """Wait until it has dealt with the leaving of the last run's clients.

        That is when it takes no more than a tick of CPU in ``pause_seconds``.
        """
        deadline = time.monotonic() + REST_SECONDS_MAX
        before = self._cpu_ticks()
        while time.monotonic() < deadline:
            time.sleep(pause_seconds)
            if (ticks := self._cpu_ticks()) - before <= 1:
                return
            before = ticks

    def _cpu_ticks(self) -> int:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that can be started; ``command`` gives its arguments from port and folder."""

    name: str
    command: Callable[[int, Path], list[str]]

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Server]:
        """Started in a fresh folder below ``folder``; stopped and removed at the end."""
        with tempfile.TemporaryDirectory(dir=folder, prefix="peer-") as own:
            port = _free_port()
            log = Path(own) / "log"
            with log.open("wb") as output:
                command = [sys.executable, "-m", *self.command(port, Path(own))]
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_quiet()
                )
            try:
                self._wait(process, port, log)
                yield Server(port, process.pid)
            finally:
                _stop(process)

    def _wait(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.02)
        said = log.read_text(errors="replace").strip()[-500:]
        raise BenchmarkError(
            f"{self.name} does not listen on port {port}: {said or 'it is silent'}"
        )


def _ours(port: int, folder: Path) -> list[str]:
    address = f"127.0.0.1:{port}"
    data = str(folder / "data")
    return ["repl_broker", "serve", "--http", address, "--data-dir", data, "--log-level", "warning"]


def _bare(port: int, folder: Path) -> list[str]:
    return ["benchmarks.bare", str(port)]


PEERS = (Peer(OURS, _ours), Peer(HYPERCORN, _bare))


def _quiet() -> dict[str, str]:
    """The environment, less what would configure our server or watch it."""
    root = str(Path(__file__).parent.parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("REPL_BROKER_", "COV"))}
    return {**kept, "PYTHONPATH": root}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
