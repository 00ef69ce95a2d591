"""A cluster of real nodes, each on its host.

    with Loopback(["n1", "n2", "n3"]) as network, Cluster(network, tmp_path) as cluster:
        cluster.start()
        cluster.leader().kill()

One host alone is a node in single-node mode, for what a cluster is not needed
to try. Every wait has a bound.
"""

from __future__ import annotations

import re
import secrets
import signal
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.cluster.history import different_digests
from tests.cluster.hosts import Network
from tests.process.node import Broken, Client, Node, polls

STOPPED: Final = re.compile(r"stopped node=(\S+) applied_index=(\d+) digest=([0-9a-f]+)")
LOOK_SECONDS: Final = 2  # for an answer about the cluster; a node may be stopped


class Cluster:
    """``data_dirs`` are of nodes that are not to keep theirs in ``folder``.

    ``keys`` are configuration keys of every node.
    """

    def __init__(
        self,
        network: Network,
        folder: Path,
        *,
        data_dirs: Mapping[str, Path] | None = None,
        **keys: object,
    ) -> None:
        self.network = network
        self._secret = folder / "cluster.secret"
        self._secret.write_text(secrets.token_hex(32))
        self._secret.chmod(0o600)
        self._opened = ExitStack()
        self.nodes: dict[str, Node] = {}
        for name in network.hosts:
            data_dir = (data_dirs or {}).get(name, folder / name)
            self.nodes[name] = self._make(name, data_dir, keys)
            self.nodes[name].log = folder / f"{name}.log"  # not on a disk that may be full

    def _make(self, name: str, data_dir: Path, keys: Mapping[str, object]) -> Node:
        host = self.network.hosts[name]
        first = next(iter(self.network.hosts.values()))
        alone = len(self.network.hosts) == 1
        begin = ["--bootstrap"] if host is first else ["--join", first.advertised]
        cluster: dict[str, object] = {
            "raft_bind": host.raft,
            "cluster_secret_file": self._secret,
        }
        if host.is_proxied:
            cluster["raft_advertise"] = host.advertised
        return Node(
            data_dir,
            address=host.address,
            options=[] if alone else begin,
            prefix=host.prefix,
            make_socket=host.make_socket,
            node_id=name,
            **({} if alone else cluster),
            **keys,
        )

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            for node in self.nodes.values():
                opening.enter_context(node)
            self._opened = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    # --- as a whole ---

    def start(self) -> None:
        """Bootstrap the first, let the others join; returns when all vote."""
        first, *others = self.nodes
        self.nodes[first].start()
        self.restart(others)
        self.wait_members()

    def restart(self, names: Iterable[str] = ()) -> None:
        """Start all of these, or of all nodes, that have ended, at once."""
        nodes = [self.nodes[name] for name in names or self.nodes]
        for node in nodes:
            if not node.runs:
                node.spawn()
        for node in nodes:
            node.wait_ready()

    def wait_members(self) -> None:
        """Until every node knows all of them, and that they vote."""
        for _ in polls("all nodes to vote"):
            views = self.views()
            if len(views) == len(self.nodes) and all(map(self._is_complete, views.values())):
                return

    def _is_complete(self, view: Mapping[str, Any]) -> bool:
        roles = {member["id"]: member["role"] for member in view["members"]}
        return roles.keys() == self.nodes.keys() and {*roles.values()} <= {"leader", "voter"}

    def wait_converged(self) -> None:
        """Until all know one leader and have applied as much."""
        for _ in polls(lambda: f"the nodes to converge: {_short(self.views())}"):
            if self.is_level():
                return

    def is_level(self) -> bool:
        """Whether all know one leader and have applied as much."""
        views = self.views()
        level = {(view["leader"], view["term"], view["applied_index"]) for view in views.values()}
        return len(views) == len(self.nodes) and len(level) == 1 and bool({*level}.pop()[0])

    def stop(self) -> list[str]:
        """SIGTERM to all, the leader last, so that nothing new is written. What is wrong."""
        leader = self.leader()
        followers = [node for node in self.nodes.values() if node is not leader]
        for node in followers:
            node.process.send_signal(signal.SIGTERM)
        codes = {node: node.wait() for node in followers} | {leader: leader.stop()}
        found = [f"{node.log.stem} exited with {code}" for node, code in codes.items() if code]
        return found + self._different_digests()

    def _different_digests(self) -> list[str]:
        """A single node has nothing to compare with."""
        said = [match for node in self.nodes.values() for match in STOPPED.findall(node.log_text())]
        stopped = {name: (int(index), digest) for name, index, digest in said}  # the last of each
        silent = [f"{name} did not say its digest" for name in self.others(*stopped)]
        return different_digests(stopped) + (silent if len(self.nodes) > 1 else [])

    # --- what the nodes say ---

    def views(self) -> dict[str, Any]:
        """/v1/cluster of each node that answers."""
        found = {}
        for name, node in self.nodes.items():
            if node.runs and not node.is_paused:
                with suppress(*Broken), Client(node, LOOK_SECONDS) as client:
                    answer = client.request("GET", "/v1/cluster")
                    if answer.status == 200:
                        found[name] = answer.json
        return found

    def leader_name(self) -> str:
        """Who leads, by what they themselves say: the one of the highest term."""
        for _ in polls("a leader"):
            views = self.views()
            leaders = {view["term"]: name for name, view in views.items() if view["leader"] == name}
            if leaders:
                return leaders[max(leaders)]
        raise AssertionError

    def leader(self) -> Node:
        return self.nodes[self.leader_name()]

    def others(self, *names: str) -> list[str]:
        return [name for name in self.nodes if name not in names]


def _short(views: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    names = ("leader", "term", "commit_index", "applied_index")
    return {node: {name: view[name] for name in names} for node, view in views.items()}
