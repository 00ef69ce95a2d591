"""etcd with its defaults, through the gateway that speaks HTTP and JSON."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

from benchmarks.cluster.nodes import PostCluster, ask
from benchmarks.load import BenchmarkError, Post
from benchmarks.processes import Process, free_ports

__all__ = ["Etcd"]


class Etcd(PostCluster):
    """A publish is a put of one key, whose revisions etcd keeps in order."""

    name = "etcd ×3"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        ports = free_ports(2 * self.size)
        self._peers = [f"n{i}=http://127.0.0.1:{port}" for i, port in enumerate(ports[::2])]
        self.nodes = [self._node(i, port) for i, port in enumerate(ports[1::2])]

    def _node(self, index: int, port: int) -> Process:
        name, peer_url = self._peers[index].split("=")
        url = f"http://127.0.0.1:{port}"
        options = {
            "--name": name,
            "--data-dir": str(self.folder / name),
            "--listen-client-urls": url,
            "--advertise-client-urls": url,
            "--listen-peer-urls": peer_url,
            "--initial-advertise-peer-urls": peer_url,
            "--initial-cluster": ",".join(self._peers),
            "--initial-cluster-state": "new",
            "--logger": "zap",
            "--log-level": "error",
        }
        command = ["etcd", *(part for pair in options.items() for part in pair)]
        return Process(f"etcd {name}", command, port, self.folder / f"{name}.log")

    @classmethod
    def version(cls) -> str | None:
        if shutil.which("etcd") is None:
            return None
        said = subprocess.run(["etcd", "--version"], capture_output=True, text=True, timeout=10)
        return f"etcd {said.stdout.splitlines()[0].rpartition(' ')[2]}"

    @classmethod
    def install(cls) -> str:
        return "there is no etcd; on Debian: apt-get install etcd-server"

    def start(self) -> None:
        for node in self.nodes:  # none serves before there are two
            node.launch()
        self.wait_ready()

    def leader(self) -> int:
        statuses = [self._status(node) for node in self.nodes]
        leaders = {leader for _, leader in statuses}
        members = [member for member, _ in statuses]
        (leader,) = leaders if len(leaders) == 1 else ("0",)
        if leader not in members:
            raise BenchmarkError("the nodes of etcd do not agree on a leader")
        return members.index(leader)

    def _status(self, node: Process) -> tuple[str, str]:
        status = ask(node.port, "/v3/maintenance/status", {})
        return status["header"]["member_id"], status.get("leader", "0")

    def ready(self, index: int) -> bool:
        return bool(ask(self.nodes[index].port, "/health") == {"health": "true"})

    def post(self, value_bytes: int) -> Post:
        key, value = (base64.b64encode(part).decode() for part in (b"bench", b"x" * value_bytes))
        return Post("/v3/kv/put", f'{{"key":"{key}","value":"{value}"}}')

    def ask_hand_over(self, leader: int, target: int) -> None:
        member, _ = self._status(self.nodes[target])
        ask(self.nodes[leader].port, "/v3/maintenance/transfer-leadership", {"targetID": member})
