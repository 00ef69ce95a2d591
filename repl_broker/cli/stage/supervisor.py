"""Starts the nodes, watches who leads, kills the leader when asked, and starts it again.

    starting ──▶ running ──▶ down
       ▲    caught up   killed │  by itself after RETURN_SECONDS, or by the button
       └───────────────────────┘

A task keeps each node's process: it starts it, waits for its end, starts it
again. Cancelling it ends the process. Another task asks each node how it sees
the cluster; nothing is known here that the nodes do not tell.
"""

from __future__ import annotations

import math
import os
import subprocess  # nosec B404  # of this very program, without a shell
import sys
from collections import deque
from dataclasses import dataclass, field
from time import time_ns
from typing import Any, Final

import httpx
import trio

from repl_broker.cli.stage.layout import Layout, Place
from repl_broker.cli.stage.node import BOOTSTRAP
from repl_broker.errors import ConfigError, ReplBrokerError
from repl_broker.files import make_file
from repl_broker.message import time_text

__all__ = ["CannotError", "Supervisor"]

START_SECONDS_MAX: Final = 60
STOP_SECONDS_MAX: Final = 12  # then a node is killed
RETURN_SECONDS: Final = 20  # after which a node that is down is started again
LOOK_SECONDS: Final = 0.25
LOOK_CLOSELY_SECONDS: Final = 0.05  # while nobody leads
ANSWER_SECONDS_MAX: Final = 2
HAPPENINGS_MAX: Final = 50
STREAMS_METRIC: Final = "repl_broker_subscribers "


class CannotError(ReplBrokerError):
    """What was asked for cannot be done now; the text says why."""


@dataclass(slots=True)
class Node:
    """A node, and what it said last."""

    place: Place
    process: trio.Process | None = None
    state: str = "starting"  # then "running", "down"
    killed: bool = False  # by us
    wanted: trio.Event = field(default_factory=trio.Event)  # back, at once
    returns_at: float = math.inf  # in Trio's time
    leader: str | None = None  # as this node sees it
    term: int = 0
    voters: int = 0
    commit_index: int = 0
    applied_index: int = 0
    streams: int = 0

    def is_gone(self) -> None:
        """Nothing that it said counts any more."""
        self.state = "down"
        self.leader = None
        self.streams = 0

    def as_json(self) -> dict[str, Any]:
        waits = self.returns_at - trio.current_time() if self.state == "down" else math.inf
        return {
            "id": self.place.name,
            "url": self.place.url,
            "state": self.state,
            "streams": self.streams,
            "applied_index": self.applied_index,
            "returns_in_seconds": None if math.isinf(waits) else max(0, math.ceil(waits)),
        }


class Supervisor:
    """The cluster of a demo. ``run`` it once."""

    def __init__(self, layout: Layout) -> None:
        self.leader: str | None = None
        self.term = 0
        self._layout = layout
        self._nodes = {place.name: Node(place) for place in layout.places}
        self._majority = len(self._nodes) // 2 + 1
        self._happenings: deque[dict[str, Any]] = deque(maxlen=HAPPENINGS_MAX)
        self._happened = 0
        self._ready = trio.Event()  # all have a vote, and agree on a leader
        self._lost: tuple[str, float] | None = None  # the last leader, and when it ended

    # --- what the page sees and asks for ---

    def state(self) -> dict[str, Any]:
        """All that there is to know, as JSON."""
        return {
            "nodes": [node.as_json() for node in self._nodes.values()],
            "leader": self.leader,
            "term": self.term,
            "cannot_kill": self._why_not(),
            "happenings": [*self._happenings],
        }

    def kill_leader(self) -> None:
        """SIGKILL: nothing of its process runs any more. Raises CannotError."""
        why_not = self._why_not()
        if why_not is not None:
            raise CannotError(why_not)
        assert self.leader is not None
        node = self._nodes[self.leader]
        assert node.process is not None
        node.process.kill()
        node.killed = True
        self._down(node, f"{node.place.name}, the leader, was killed with SIGKILL.")

    def start(self, name: str) -> None:
        """Start a node that is down, at once. Raises CannotError."""
        node = self._nodes.get(name)
        if node is None:
            raise CannotError(f"There is no node {name!r}; there are {', '.join(self._nodes)}.")
        if node.state != "down":
            raise CannotError(f"{name} is {node.state}.")
        node.wanted.set()

    def _why_not(self) -> str | None:
        """Why the leader cannot be killed now; None if it can."""
        if self.leader is None:
            return "No node leads at the moment."
        running = sum(node.state == "running" for node in self._nodes.values())
        if running <= self._majority:
            return (
                f"{running} of {len(self._nodes)} nodes run. Without one more there is no "
                "majority, and nothing could be published."
            )
        return None

    # --- the nodes ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the cluster until cancelled; ``started`` once all nodes vote.

        Raises ConfigError if one does not start. No process is left behind.
        """
        async with trio.open_nursery() as nursery:
            for node in self._nodes.values():
                nursery.start_soon(self._keep, node)
                nursery.start_soon(self._watch, node)
            with trio.move_on_after(START_SECONDS_MAX):
                await self._ready.wait()
            if not self._ready.is_set():
                raise ConfigError(
                    f"the nodes are not ready after {START_SECONDS_MAX} s; "
                    f"see {self._layout.folder}/*.log"
                )
            task_status.started()

    async def _keep(self, node: Node) -> None:
        """Start its process, and start it again whenever it has ended."""
        name = node.place.name
        while True:
            node.process = await self._spawn(node.place)
            node.state, node.killed = "starting", False
            try:
                status = await node.process.wait()
            finally:
                await _end(node.process)
                node.process = None
            if not self._ready.is_set():
                raise ConfigError(f"{name} did not start: {self._last_line(node.place)}")
            if not node.killed:  # somebody has done it in a terminal
                how = f"by signal {-status}" if status < 0 else f"with code {status}"
                self._down(node, f"{name} ended {how}.")
            node.returns_at = trio.current_time() + RETURN_SECONDS
            with trio.move_on_after(RETURN_SECONDS):
                await node.wanted.wait()
            node.wanted = trio.Event()
            self._happen("start", f"{name} is started again.")

    async def _spawn(self, place: Place) -> trio.Process:
        options = [BOOTSTRAP] if place is self._layout.places[0] else []
        file = self._layout.file(place)
        command = [sys.executable, "-m", "repl_broker.cli.stage.node", str(file), *options]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("REPL_BROKER_")}
        make_file(self._layout.log(place))
        with self._layout.log(place).open("ab") as log:
            return await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,  # which ends with this process
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends them in order
            )

    def _last_line(self, place: Place) -> str:
        lines = self._layout.log(place).read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def _down(self, node: Node, text: str) -> None:
        was_leader = node.place.name == self.leader
        node.is_gone()
        if was_leader:
            self._lost = (node.place.name, trio.current_time())
            self.leader = None
        self._happen("down", text)

    # --- what they say ---

    async def _watch(self, node: Node) -> None:
        """Ask it how it sees the cluster, again and again."""
        async with httpx.AsyncClient(
            base_url=node.place.url, timeout=ANSWER_SECONDS_MAX, trust_env=False
        ) as client:
            while True:
                if node.process is not None:
                    await self._look(node, client)
                    self._judge()
                is_calm = self.leader is not None or not self._ready.is_set()
                await trio.sleep(LOOK_SECONDS if is_calm else LOOK_CLOSELY_SECONDS)

    async def _look(self, node: Node, client: httpx.AsyncClient) -> None:
        process = node.process
        try:
            cluster = (await client.get("/v1/cluster")).raise_for_status().json()
            metrics = (await client.get("/metrics")).raise_for_status().text
        except httpx.HTTPError:
            return
        if node.process is not process or node.killed:
            return  # its last words
        node.leader, node.term = cluster["leader"], cluster["term"]
        node.voters = sum(member["role"] != "learner" for member in cluster["members"])
        node.commit_index = cluster["commit_index"]
        node.applied_index = cluster["applied_index"]
        node.streams = _metric(metrics)
        if node.state == "starting" and self._has_caught_up(node):
            node.state = "running"
            if self._ready.is_set():
                self._happen("up", f"{node.place.name} is back, and has all that it missed.")

    def _has_caught_up(self, node: Node) -> bool:
        known = max(other.commit_index for other in self._nodes.values())
        return node.leader is not None and node.applied_index >= known

    def _judge(self) -> None:
        """Who leads, by what the nodes said; the newest term counts."""
        told = [node for node in self._nodes.values() if node.leader is not None]
        if not told:
            return
        newest = max(told, key=lambda node: node.term)
        assert newest.leader is not None
        leads = self._nodes.get(newest.leader)
        if leads is None or leads.state == "down" or newest.term < self.term:
            return
        if not self._ready.is_set():
            if any(node.voters < len(self._nodes) for node in self._nodes.values()):
                return
            if {node.state for node in self._nodes.values()} != {"running"}:
                return
        if (newest.leader, newest.term) != (self.leader, self.term):
            self.leader, self.term = newest.leader, newest.term
            self._happen("leader", self._new_leader())
        self._ready.set()

    def _new_leader(self) -> str:
        text = f"{self.leader} leads in term {self.term}"
        if self._lost is None:
            return f"{text}."
        name, when = self._lost
        self._lost = None
        return f"{text}, {trio.current_time() - when:.1f} s after {name} was lost."

    def _happen(self, kind: str, text: str) -> None:
        self._happened += 1
        now = time_text(time_ns() // 1_000_000)
        self._happenings.append({"number": self._happened, "time": now, "kind": kind, "text": text})


async def _end(process: trio.Process) -> None:
    """Let it shut down as it should, and kill it if that takes too long."""
    if process.poll() is None:
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(STOP_SECONDS_MAX):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()
    if process.stdin is not None:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()


def _metric(text: str) -> int:
    """How many event streams are open, of the text of /metrics."""
    for line in text.splitlines():
        if line.startswith(STREAMS_METRIC):
            return int(float(line.removeprefix(STREAMS_METRIC)))
    return 0
