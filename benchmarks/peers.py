"""Servers that are measured: each a process of its own on loopback."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Process, free_ports

__all__ = ["HYPERCORN", "OURS", "PEERS", "SQLITE", "Peer", "single_node"]

OURS = "repl-broker"
HYPERCORN = "bare ASGI on Hypercorn"
SQLITE = "SQLite alone"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that can be started; ``command`` gives its arguments from port and folder."""

    name: str
    command: Callable[[int, Path], list[str]]

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Process]:
        """Started in a fresh folder below ``folder``; stopped and removed at the end."""
        with tempfile.TemporaryDirectory(dir=folder, prefix="peer-") as own:
            (port,) = free_ports(1)
            command = [sys.executable, "-m", *self.command(port, Path(own))]
            process = Process(self.name, command, port, Path(own) / "log")
            try:
                process.start()
                yield process
            finally:
                process.stop()


def single_node(port: int, folder: Path) -> list[str]:
    """Our server with its defaults."""
    address = f"127.0.0.1:{port}"
    data = str(folder / "data")
    return ["repl_broker", "serve", "--http", address, "--data-dir", data, "--log-level", "warning"]


def _bare(port: int, folder: Path) -> list[str]:
    return ["benchmarks.bare", str(port)]


PEERS = (Peer(OURS, single_node), Peer(HYPERCORN, _bare))
