"""Servers that are measured: ours, and those that it is held against.

Each is started anew for each group of runs, in a folder of its own on loopback,
and ended by its ids. All of them serve from one process with one thread for the
clients (nginx: one worker), but NATS, which uses all cores, and three nodes.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.cluster.ours import Three
from benchmarks.load import BenchmarkError
from benchmarks.node import connections_max, single_node
from benchmarks.processes import Process, free_ports

__all__ = ["HYPERCORN", "OURS", "PEERS", "SQLITE", "THREE", "Peer", "Server"]

OURS = "repl-broker"
THREE = Three.name
NCHAN = "Nchan"
REDIS = "Redis"
NATS = "NATS"
HYPERCORN = "bare ASGI on Hypercorn"
SQLITE = "SQLite alone"

ASK_SECONDS_MAX = 10


@dataclass(frozen=True, slots=True)
class Server:
    """A peer that runs."""

    processes: Sequence[Process]
    find_port: Callable[[], int]  # where its clients go; of a cluster, the leader's

    @property
    def pids(self) -> list[int]:
        return [pid for process in self.processes for pid in process.pids]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that can be started."""

    name: str
    protocol: str  # what the load generator speaks with it
    version: Callable[[], str | None]  # None if it is not installed
    install: str
    run: Callable[[Path], contextlib.AbstractContextManager[Server]]
    subscribers_max: int = 1_000_000
    takes_crowds: bool = True  # more deliveries may be asked for than it can do
    takes_batches: bool = False

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Server]:
        """Started in a fresh folder below ``folder``; stopped and removed at the end."""
        with tempfile.TemporaryDirectory(dir=folder, prefix="peer-") as own:
            with self.run(Path(own)) as server:
                yield server


def _alone(
    name: str, command: Callable[[int, Path], list[str]]
) -> Callable[[Path], contextlib.AbstractContextManager[Server]]:
    """As one process; ``command`` gives its arguments from port and folder."""

    @contextlib.contextmanager
    def run(folder: Path) -> Iterator[Server]:
        (port,) = free_ports(1)
        process = Process(name, command(port, folder), port, folder / "log")
        try:
            process.start()
            yield Server([process], lambda: port)
        finally:
            process.stop()

    return run


@contextlib.contextmanager
def _three(folder: Path) -> Iterator[Server]:
    with Three(folder) as cluster:
        yield Server(cluster.nodes, lambda: cluster.nodes[cluster.wait_leader()].port)


def _bare(port: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.bare", str(port)]


def _redis(port: int, folder: Path) -> list[str]:
    """In memory only. Clients on 127.0.0.2 are strangers to it, hence no protected mode."""
    options = {
        "--port": str(port),
        "--bind": "127.0.0.1",
        "--protected-mode": "no",
        "--maxclients": str(connections_max()),
        "--appendonly": "no",
        "--save": "",
        "--dir": str(folder),
    }
    return ["redis-server", *(part for pair in options.items() for part in pair)]


def _nats(port: int, folder: Path) -> list[str]:
    return ["nats-server", "-a", "127.0.0.1", "-p", str(port)]


def _nginx(port: int, folder: Path) -> list[str]:
    """One worker. Nothing is stored: a message goes to who is subscribed, and is gone."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind}; "
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(
        f"""
        daemon off;
        worker_processes 1;
        worker_rlimit_nofile {connections_max() + 100};
        pid {folder}/pid;
        error_log stderr error;
        load_module {_nchan_module()};
        events {{ worker_connections {connections_max()}; }}
        http {{
            access_log off;
            keepalive_requests 1000000000;
            nchan_message_buffer_length 0;
            {temporary}
            server {{
                listen 127.0.0.1:{port} backlog=1024;
                location ~ ^/pub/([A-Za-z0-9_-]+)$ {{
                    nchan_publisher;
                    nchan_channel_id $1;
                }}
                location ~ ^/sub/([A-Za-z0-9_-]+)$ {{
                    nchan_subscriber eventsource;
                    nchan_channel_id $1;
                    nchan_subscriber_first_message newest;
                }}
            }}
        }}
        """
    )
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(file)]


def _nchan_module() -> Path | None:
    """None if nginx or the module is not installed."""
    said = _ask("nginx", "-V")
    found = re.search(r"--modules-path=(\S+)", said or "")
    module = Path(found[1] if found else "/usr/lib/nginx/modules", "ngx_nchan_module.so")
    return module if said and module.exists() else None


def _nchan_version() -> str | None:
    found = re.search(r"nginx/(\S+)", _ask("nginx", "-v") or "")
    if not found or _nchan_module() is None:
        return None
    package = _ask("dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan")
    return f"nginx {found[1]} (one worker)" + (f" with Nchan {package}" if package else "")


def _redis_version() -> str | None:
    found = re.search(r"v=(\S+)", _ask("redis-server", "--version") or "")
    return f"Redis {found[1]}" if found else None


def _nats_version() -> str | None:
    said = _ask("nats-server", "--version")
    return said.replace(": v", " ") if said else None


def _ask(*command: str) -> str | None:
    """What it prints; None if it is not there, or not well."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS_MAX)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{command[0]} does not say its version") from error
    return (done.stdout + done.stderr).strip() if done.returncode == 0 else None


def _ours() -> str:
    return f"repl-broker {version('repl-broker')}"


PEERS = {
    "ours": Peer(OURS, "ours", _ours, "", _alone(OURS, single_node), takes_batches=True),
    "cluster": Peer(THREE, "ours", _ours, "", _three, takes_batches=True),
    "nchan": Peer(
        NCHAN,
        "nchan",
        _nchan_version,
        "apt-get install nginx-light libnginx-mod-nchan",
        _alone(NCHAN, _nginx),
    ),
    "redis": Peer(
        REDIS, "redis", _redis_version, "apt-get install redis-server", _alone(REDIS, _redis)
    ),
    "nats": Peer(NATS, "nats", _nats_version, "apt-get install nats-server", _alone(NATS, _nats)),
    "hypercorn": Peer(
        HYPERCORN,
        "bare",
        lambda: f"Hypercorn {version('hypercorn')}",
        "",
        _alone(HYPERCORN, _bare),
        subscribers_max=1000,
        takes_crowds=False,
        takes_batches=True,
    ),
}
