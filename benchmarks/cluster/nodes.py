"""What all clusters have in common: some processes, one of them the leader."""

from __future__ import annotations

import http.client
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from benchmarks.load import BenchmarkError, Load, Post
from benchmarks.processes import Process

__all__ = ["Cluster", "PostCluster", "ask", "wait_until"]

CALL_SECONDS_MAX = 5
READY_SECONDS_MAX = 60
POLL_SECONDS = 0.05  # asking costs the nodes time, too
NODES = 3

T = TypeVar("T")


class Cluster(ABC):
    """Nodes of one kind in a folder of their own. As a context: started, and at the end killed."""

    name: ClassVar[str]
    size: ClassVar[int] = NODES
    nodes: list[Process]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @abstractmethod
    def version(cls) -> str | None:
        """None if it is not installed."""

    @classmethod
    @abstractmethod
    def install(cls) -> str:
        """How to get it."""

    @abstractmethod
    def leader(self) -> int:
        """The index of the node that leads. Raises BenchmarkError if none does."""

    @abstractmethod
    def publishes(self, load: Load) -> Load:
        """``load``, as publishes that these nodes understand, a message each."""

    def batches(self, load: Load) -> Load | None:
        """``load``, as batches, or what comes next to them; None if there is no such thing."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Return when all nodes serve."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def _kill(self) -> None:
        for node in self.nodes:
            if node.launched:
                node.kill()

    def wait_leader(self) -> int:
        """The index of the node that leads, as soon as one does."""
        return wait_until(f"{self.name} has no leader", self.leader)


class PostCluster(Cluster):
    """A cluster that takes a publish as a POST, and whose leadership can be handed over."""

    @abstractmethod
    def post(self, value_bytes: int) -> Post:
        """One publish."""

    @abstractmethod
    def ready(self, index: int) -> bool:
        """Whether the node says that it serves. May raise BenchmarkError instead."""

    @abstractmethod
    def ask_hand_over(self, leader: int, target: int) -> None:
        """Ask the leader to hand over to ``target``. It need not be done on return."""

    def publishes(self, load: Load) -> Load:
        return replace(load, other=self.post(load.message_bytes))

    def wait_ready(self) -> None:
        """Return when all nodes serve, and one leads."""
        for index in range(self.size):
            wait_until(
                f"node {index + 1} of {self.name} is not ready",
                lambda index=index: self.ready(index) or None,  # type: ignore[misc]
            )
        self.wait_leader()


def wait_until(what: str, found: Callable[[], T | None], seconds: float = READY_SECONDS_MAX) -> T:
    """What ``found`` gives once it is not None. Raises BenchmarkError: ``what``, and why."""
    deadline = time.monotonic() + seconds
    last: BenchmarkError | None = None
    while time.monotonic() < deadline:
        try:
            if (value := found()) is not None:
                return value
        except BenchmarkError as error:
            last = error
        time.sleep(POLL_SECONDS)
    raise BenchmarkError(f"{what} after {seconds:g} s{f': {last}' if last else ''}")


def ask(port: int, path: str, body: object = None) -> Any:
    """The JSON of a GET, or of a POST if there is a body. Raises BenchmarkError if none comes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_SECONDS_MAX)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"{path} on port {port}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise BenchmarkError(f"{path} on port {port} answers {answer.status}: {text[:300]}")
    try:
        return json.loads(text)
    except ValueError:
        return text
