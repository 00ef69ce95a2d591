"""repl-broker with its defaults: three nodes, and one by itself."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from benchmarks.cluster.nodes import PostCluster, ask
from benchmarks.load import BenchmarkError, Load, Post
from benchmarks.node import single_node
from benchmarks.processes import Process, free_ports

__all__ = ["Single", "Three"]


class Three(PostCluster):
    """Three nodes: the first founds the cluster, and the others join it."""

    name = "repl-broker ×3"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        ports = free_ports(2 * self.size)
        self._founder = f"127.0.0.1:{ports[0]}"
        pairs = zip(ports[::2], ports[1::2], strict=True)
        self.nodes = [self._node(i, *pair) for i, pair in enumerate(pairs)]

    def _node(self, index: int, raft: int, port: int) -> Process:
        name = _id(index)
        command = single_node(port, self.folder / name)
        command += ["--node-id", name, "--raft", f"127.0.0.1:{raft}"]
        command += ["--join", self._founder] if index else ["--bootstrap"]
        return Process(f"repl-broker {name}", command, port, self.folder / f"{name}.log")

    @classmethod
    def version(cls) -> str | None:
        return f"repl-broker {version('repl-broker')}"

    @classmethod
    def install(cls) -> str:
        raise AssertionError("it is here")

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self.wait_ready()

    def leader(self) -> int:
        leaders = {ask(node.port, "/v1/cluster")["leader"] for node in self.nodes}
        names = [_id(index) for index in range(self.size)]
        (leader,) = leaders if len(leaders) == 1 else (None,)
        if leader not in names:
            raise BenchmarkError("the nodes of repl-broker do not agree on a leader")
        return names.index(leader)

    def ready(self, index: int) -> bool:
        """A learner serves before it votes; what is measured is three voters."""
        ask(self.nodes[index].port, "/readyz")
        members = ask(self.nodes[index].port, "/v1/cluster")["members"]
        return [member["role"] == "learner" for member in members] == [False] * self.size

    def post(self, value_bytes: int) -> Post:
        text = "x" * (value_bytes - len('{"text":""}'))
        return Post("/v1/topics/bench/messages", f'{{"text":"{text}"}}')

    def batches(self, load: Load) -> Load:
        return load

    def ask_hand_over(self, leader: int, target: int) -> None:
        ask(self.nodes[leader].port, "/v1/cluster/leader", {"id": _id(target)})


class Single(Three):
    """One node by itself: what three of them are held against."""

    name = "repl-broker ×1"
    size = 1

    def _node(self, index: int, raft: int, port: int) -> Process:
        return Process("repl-broker", single_node(port, self.folder), port, self.folder / "log")


def _id(index: int) -> str:
    return f"n{index + 1}"
