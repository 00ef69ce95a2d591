"""NATS JetStream with its defaults: a stream of three replicas, stored in files.

It acknowledges when a majority has a message, and syncs to the disk by a timer.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cluster.nodes import NODES, Cluster, wait_until
from benchmarks.load import BenchmarkError, Load, Nats
from benchmarks.processes import Process, free_ports

__all__ = ["IN_FLIGHT", "JetStream"]

STREAM = "bench"
CALL_SECONDS_MAX = 5
IN_FLIGHT = 64  # in all, where others send batches
CREATE = {
    "name": STREAM,
    "subjects": [STREAM],
    "storage": "file",
    "retention": "limits",
    "num_replicas": NODES,
}


class JetStream(Cluster):
    """A publish is a PUB with an inbox, in which the PubAck arrives."""

    name = "JetStream R3"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        ports = free_ports(2 * self.size)
        self._routes = [f"nats://127.0.0.1:{port}" for port in ports[::2]]
        self.nodes = [self._node(i, port) for i, port in enumerate(ports[1::2])]

    def _node(self, index: int, port: int) -> Process:
        name = f"n{index}"
        configuration = {
            "server_name": name,
            "listen": f"127.0.0.1:{port}",
            "jetstream": {"store_dir": str(self.folder / name)},
            "cluster": {
                "name": "bench",
                "listen": self._routes[index].removeprefix("nats://"),
                "routes": self._routes,
            },
        }
        file = self.folder / f"{name}.conf"  # JSON is a configuration to NATS, too
        file.write_text(json.dumps(configuration))
        command = ["nats-server", "-c", str(file)]
        return Process(f"nats-server {name}", command, port, self.folder / f"{name}.log")

    @classmethod
    def version(cls) -> str | None:
        if shutil.which("nats-server") is None:
            return None
        said = subprocess.run(
            ["nats-server", "--version"], capture_output=True, text=True, timeout=10
        )
        return said.stdout.strip().replace(": v", " ")

    @classmethod
    def install(cls) -> str:
        return "there is no nats-server; on Debian: apt-get install nats-server"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        wait_until("JetStream makes no stream", lambda: self._call("CREATE", CREATE))
        self.wait_leader()

    def leader(self) -> int:
        name = self._call("INFO").get("cluster", {}).get("leader", "")
        if not name:
            raise BenchmarkError("the stream has no leader")
        return int(name.removeprefix("n"))

    def publishes(self, load: Load) -> Load:
        return replace(load, other=Nats(STREAM))

    def batches(self, load: Load) -> Load:
        """It has none; it has messages in flight instead."""
        return replace(load, batch=1, other=Nats(STREAM, IN_FLIGHT // load.publishers))

    def _call(self, verb: str, what: object = None) -> Any:
        body = json.dumps(what).encode() if what else b""
        answer = json.loads(request(self.nodes[0].port, f"$JS.API.STREAM.{verb}.{STREAM}", body))
        if "error" in answer:
            raise BenchmarkError(f"JetStream: {answer['error'].get('description')}")
        return answer


def request(port: int, subject: str, body: bytes) -> bytes:
    """One request of NATS, and its answer. Raises BenchmarkError if none comes."""
    try:
        with socket.create_connection(("127.0.0.1", port), CALL_SECONDS_MAX) as connection:
            return _exchange(connection, subject, body)
    except OSError as error:
        raise BenchmarkError(f"{subject} on port {port}: {error}") from error


def _exchange(connection: socket.socket, subject: str, body: bytes) -> bytes:
    """The answer is one line, as JetStream writes its JSON."""
    inbox = "_INBOX.request"
    head = f'CONNECT {{"verbose":false}}\r\nSUB {inbox} 1\r\nPUB {subject} {inbox} {len(body)}\r\n'
    connection.sendall(head.encode() + body + b"\r\n")
    with connection.makefile("rb") as lines:
        for line in lines:
            if line.startswith(b"-ERR"):
                raise BenchmarkError(f"NATS says {line.decode().strip()}")
            if line.startswith(b"MSG"):
                return next(lines, b"")
    raise BenchmarkError("NATS hung up")
