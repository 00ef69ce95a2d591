"""Servers as processes on loopback, each started here and ended by its id."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import BenchmarkError

__all__ = ["Process", "free_ports", "rest"]

START_SECONDS_MAX = 20
STOP_SECONDS_MAX = 10
REST_SECONDS_MAX = 10
SERVER_PORTS = (10_000, 32_000)


class Process:
    """A server that listens on ``port`` once it is started. It can be killed and started again."""

    def __init__(self, name: str, command: Sequence[str], port: int, log: Path) -> None:
        self.name = name
        self.port = port
        self._command = list(command)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def launched(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it is not started"
        return self._process.pid

    def start(self) -> None:
        """Return when it listens. Raises BenchmarkError with its last words if it does not."""
        self.launch()
        deadline = time.monotonic() + START_SECONDS_MAX
        while self._alive() and time.monotonic() < deadline:
            if self.listens():
                return
            time.sleep(0.02)
        said = self._log.read_text(errors="replace").strip()[-500:]
        raise BenchmarkError(
            f"{self.name} does not listen on port {self.port}: {said or 'it is silent'}"
        )

    def launch(self) -> None:
        """Start it, and do not wait."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_quiet()
            )

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> float:
        """End it as a crash would. Returns when that was: a moment of time.monotonic."""
        assert self._process is not None, "it is not started"
        self._process.send_signal(signal.SIGKILL)
        moment = time.monotonic()
        self._process.wait()
        return moment

    def stop(self) -> None:
        """End it in order if it runs, and by force if that takes long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def pids(self) -> list[int]:
        """Its own id, and those of the processes that it has started (nginx's worker)."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [self.pid, *map(int, found.split())]

    def cpu_ticks(self) -> int:
        return sum(map(_cpu_ticks, self.pids))

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None


def rest(processes: Sequence[Process], pause_seconds: float, ticks_max: int = 1) -> None:
    """Wait until they have dealt with the leaving of the last run's clients.

    That is when they take no more than ``ticks_max`` of CPU in ``pause_seconds``.
    """
    deadline = time.monotonic() + REST_SECONDS_MAX
    before = sum(process.cpu_ticks() for process in processes)
    while time.monotonic() < deadline:
        time.sleep(pause_seconds)
        if (ticks := sum(process.cpu_ticks() for process in processes)) - before <= ticks_max:
            return
        before = ticks


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def free_ports(amount: int) -> list[int]:
    """Ports that nothing listens on, each another one.

    They lie below those that the kernel gives to clients: of these 18,000 may be
    taken, or be kept for a minute after they were.
    """
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < amount:
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", random.randrange(*SERVER_PORTS)))
                ports.append(probe.getsockname()[1])
        return ports


def _quiet() -> dict[str, str]:
    """The environment, less what would configure a server or watch it."""
    root = str(Path(__file__).parent.parent)
    unwanted = ("REPL_BROKER_", "COV", "ETCD")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    return {**kept, "PYTHONPATH": root}
