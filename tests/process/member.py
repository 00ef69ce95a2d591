"""Nodes on loopback that make a cluster, or try to.

    Member       a node with a name and a Raft address
    cluster_of   some of them: the first founds the cluster, the others join it
    Rounds       a publisher that goes from node to node and remembers what it saw

As for single nodes (node.py), every wait has a bound, and the end of a ``with``
kills what still runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests.process.node import Broken, Client, Node, free_port, polls

NAMES: Final = ("n1", "n2", "n3")
LOOK_SECONDS: Final = 5  # for an answer about the cluster


class Member(Node):
    """``name`` is its id, and that of its folder. It listens for peers at ``raft``."""

    def __init__(
        self, folder: Path, name: str, *options: str, secret: Path | None = None, **keys: object
    ) -> None:
        self.name = name
        self.raft = f"127.0.0.1:{free_port()}"
        if secret is not None:
            keys["cluster_secret_file"] = secret
        super().__init__(folder / name, options=options, node_id=name, raft_bind=self.raft, **keys)

    def move(self) -> None:
        """Listen for peers elsewhere from the next start on."""
        self.raft = self.keys["raft_bind"] = f"127.0.0.1:{free_port()}"

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def record(self) -> dict[str, str]:
        """What is sent to have it added."""
        return {"id": self.name, "raft_address": self.raft, "http_url": self.url}

    def cluster(self) -> dict[str, Any]:
        """/v1/cluster as this node sees it."""
        found: dict[str, Any] = self.get("/v1/cluster")
        return found

    def roles(self) -> dict[str, str]:
        return {member["id"]: member["role"] for member in self.cluster()["members"]}

    def wait_votes(self, *names: str) -> None:
        """Until these are the members, as this node knows, and all vote under one leader."""
        for _ in polls(lambda: f"{names} to vote: {self.roles()}\n{self.log_text()[-2000:]}"):
            roles = self.roles()
            if roles.keys() == {*names} and {*roles.values()} == {"leader", "voter"}:
                return

    def wait_log(self, text: str, since: int = 0) -> None:
        """Until it has said so, ``since`` that place in its log."""
        for _ in polls(lambda: f"{text!r} in the log: {self.log_text()[since:]}"):
            if text in self.log_text()[since:]:
                return


@contextmanager
def cluster_of(folder: Path, names: Sequence[str] = NAMES, **keys: Any) -> Iterator[list[Member]]:
    """A cluster, ready to serve, in which all of these vote."""
    first = Member(folder, names[0], "--bootstrap", **keys)
    others = [Member(folder, name, "--join", first.raft, **keys) for name in names[1:]]
    with ExitStack() as opened:
        nodes = [opened.enter_context(node) for node in (first, *others)]
        for node in nodes:  # the others wait until they are let in
            node.spawn()
        for node in nodes:
            node.wait_ready()
            node.wait_votes(*names)
        yield nodes


def leader_of(nodes: Sequence[Member]) -> Member:
    """Once all of them agree on one of them."""
    names = {node.name: node for node in nodes}
    for _ in polls("the nodes to agree on a leader"):
        with suppress(*Broken):
            (name, *more) = {node.cluster()["leader"] for node in nodes}
            if not more and name in names:
                return names[name]
    raise AssertionError


def followers_of(nodes: Sequence[Member]) -> list[Member]:
    leader = leader_of(nodes)
    return [node for node in nodes if node is not leader]


class Rounds:
    """Publishes 0, 1, 2 … to ``topic``, each through the next node, until its ``with`` ends."""

    def __init__(self, nodes: Sequence[Member], topic: str) -> None:
        self.acknowledged: dict[int, str] = {}  # event ids
        self.errors: set[tuple[str, str]] = set()  # node, what it answered
        self.lost: set[str] = set()  # nodes to which the connection broke
        self._nodes = nodes
        self._topic = topic
        self._sent = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        clients = [Client(node) for node in self._nodes]
        while not self._end.is_set():
            for node, client in zip(self._nodes, clients, strict=True):
                self._publish(node, client)
        for client in clients:
            client.close()

    def _publish(self, node: Member, client: Client) -> None:
        number = self._sent
        self._sent += 1
        try:
            answer = client.publish(self._topic, b"%d" % number)
        except Broken:
            self.lost.add(node.name)
            self._end.wait(0.01)
            return
        if answer.status == 201:
            self.acknowledged[number] = answer.json["id"]
        else:
            self.errors.add((node.name, str(answer.json.get("code"))))

    def wait_more(self, count: int = 20) -> None:
        """Until so many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        for _ in polls("publishing to go on"):
            if len(self.acknowledged) >= wanted:
                return

    def forget_errors(self) -> tuple[set[str], set[tuple[str, str]]]:
        """To which nodes the connection broke since the last time, and what others answered."""
        found = self.lost, self.errors
        self.lost, self.errors = set(), set()
        return found

    def check_kept(self, messages: Sequence[dict[str, Any]]) -> None:
        """What was acknowledged is there, once, and where it was said to be."""
        found = {message["data"]: message["id"] for message in messages}
        assert len(found) == len(messages), "nothing is there twice"
        assert found.items() >= self.acknowledged.items()

    def __enter__(self) -> Rounds:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
