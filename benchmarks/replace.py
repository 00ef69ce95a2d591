"""``python -m benchmarks replace``: how long a replaced node takes to get level under load.

    fill      three nodes get their history, and stop      ──▶ FOLDER stays
    replace   they start, publishers run, one node is removed, loses its directory and
              joins again; measured until it votes, which it may once it is level

Both steps in one go without a step's name. The topic's retention is what was filled in, so
while the new node gets its copy as much dies as is published: as it is in a node that has
run for long.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cluster.nodes import ask, wait_until
from benchmarks.command import end_in_order, progress
from benchmarks.load import BenchmarkError
from benchmarks.node import single_node
from benchmarks.processes import Process, free_ports
from benchmarks.report import OtherWork, machine

__all__ = ["Found", "Plan", "as_lines", "fill", "main", "replace"]

TOPIC = "/v1/topics/history"
GIB = 1 << 30
BATCH_MESSAGES = 500
FILLERS = 4  # publish batches at a time
PUBLISHERS = 4  # take turns
MESSAGES_MAX = 1_000_000_000
NODES = 3
LEVEL_SECONDS_MAX = 3600
POLL_SECONDS = 0.2
NOTE = "replace.json"  # in the folder: where its nodes listen


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked for."""

    gib: float = 4.0
    rate: float = 500.0  # publishes a second meanwhile
    message_bytes: int = 8192
    warm_seconds: float = 5.0  # of publishing before the node is replaced


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured. Times are of publishes at a node that stays."""

    level_seconds: float  # from its start until it votes
    p50_ms: float
    p99_ms: float
    max_ms: float
    quiet_p99_ms: float  # before anything was replaced
    published: int
    failed: int
    snapshots: int  # that the leader has sent
    sent_mib: float  # by the leader, to both
    leader_memory_mib: float  # the most
    new_memory_mib: float
    rounds: tuple[str, ...]  # what the leader's log says of them


class Nodes:
    """Three nodes in a folder, which they find again."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.ports = list(ports)
        self._folder = folder
        self.nodes = [self._node(index) for index in range(NODES)]

    def _node(self, index: int) -> Process:
        name = f"n{index + 1}"
        sections = {"topics.retention": {"messages": MESSAGES_MAX, "bytes": 64 * GIB}}
        command = single_node(self.ports[2 * index], self._folder / name, sections)
        command += ["--node-id", name, "--raft", f"127.0.0.1:{self.ports[2 * index + 1]}"]
        command += ["--log-level", "info"]
        if index == 0:
            command += ["--bootstrap"]
        for other in range(NODES):
            if other != index and index:
                command += ["--join", f"127.0.0.1:{self.ports[2 * other + 1]}"]
        return Process(name, command, self.ports[2 * index], self.log(index))

    def log(self, index: int) -> Path:
        return self._folder / f"n{index + 1}.log"

    def data(self, index: int) -> Path:
        return self._folder / f"n{index + 1}" / "data"

    def __enter__(self) -> Nodes:
        try:
            for node in self.nodes:
                node.start()
            self.wait_voters(NODES)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if node.launched:
                node.stop()

    def members(self) -> dict[str, dict[str, Any]]:
        found = ask(self.nodes[0].port, "/v1/cluster")
        return {member["id"]: member for member in found["members"]}

    def wait_voters(self, count: int) -> None:
        def are_there() -> bool | None:
            roles = [member["role"] for member in self.members().values()]
            return (len(roles) == count and "learner" not in roles and "leader" in roles) or None

        wait_until(f"there are not {count} voters", are_there, LEVEL_SECONDS_MAX)

    def lead(self) -> None:
        """Have the first node lead: it stays."""
        if self.members()["n1"]["role"] != "leader":
            ask(self.nodes[0].port, "/v1/cluster/leader", {"id": "n1"})
            wait_until("n1 does not lead", lambda: self.members()["n1"]["role"] == "leader" or None)


# --- the steps ----------------------------------------------------------------------------


def fill(folder: Path, plan: Plan, say: Callable[[str], None]) -> None:
    """Have three nodes keep this much history, with what they have already. Raises BenchmarkError.

    It may be interrupted, and begun again.
    """
    note = folder / NOTE
    ports = json.loads(note.read_text())["ports"] if note.exists() else free_ports(2 * NODES)
    note.write_text(json.dumps({"ports": ports}))
    nodes = Nodes(folder, ports)
    size = int(plan.gib * GIB)
    retention = {"messages": MESSAGES_MAX, "bytes": size, "seconds": 10 * 86400}
    with nodes:
        _request(nodes.ports[0], "PUT", TOPIC, json.dumps({"retention": retention}).encode())
        line = json.dumps("x" * (plan.message_bytes - 2)).encode() + b"\n"
        lacking = size - json.loads(_request(nodes.ports[0], "GET", TOPIC))["bytes"]
        batch, count = line * BATCH_MESSAGES, -(-lacking // (plan.message_bytes * BATCH_MESSAGES))
        todo, failures = [None] * count, list[BaseException]()

        def publish() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", nodes.ports[0], timeout=60)
            try:
                while not failures and todo:
                    todo.pop()
                    _post(connection, batch, "application/x-ndjson")
            except BaseException as error:  # noqa: BLE001  told by the main thread
                failures.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=publish, daemon=True) for _ in range(FILLERS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            say(f"filling: {len(todo) * plan.message_bytes * BATCH_MESSAGES / GIB:.2f} GiB to go")
            time.sleep(1)
        if failures:
            raise BenchmarkError(f"cannot fill: {failures[0]}") from failures[0]


def replace(folder: Path, plan: Plan, say: Callable[[str], None]) -> Found:
    """Measure. Raises BenchmarkError."""
    note = json.loads((folder / NOTE).read_text())
    with Nodes(folder, note["ports"]) as nodes, Publishers(nodes.ports[0], plan) as publishers:
        nodes.lead()
        time.sleep(plan.warm_seconds)
        quiet = publishers.taken()
        _request(nodes.ports[0], "DELETE", "/v1/cluster/members/n3")
        nodes.wait_voters(NODES - 1)
        nodes.nodes[2].stop()
        shutil.rmtree(nodes.data(2))
        said = len(nodes.log(0).read_text())
        sent = _metric(nodes.ports[0], "repl_broker_peer_sent_bytes_total")
        snapshots = _metric(nodes.ports[0], "repl_broker_snapshots_sent_total")
        publishers.taken()
        began = time.monotonic()
        nodes.nodes[2].start()
        _wait_level(nodes, began, say)
        level = time.monotonic() - began
        seconds, failed = publishers.taken()
        time.sleep(1)  # the sender counts it then
        return Found(
            level,
            *(1000 * _quantile(seconds, q) for q in (0.5, 0.99, 1.0)),
            1000 * _quantile(quiet[0], 0.99),
            len(seconds),
            failed,
            int(_metric(nodes.ports[0], "repl_broker_snapshots_sent_total") - snapshots),
            (_metric(nodes.ports[0], "repl_broker_peer_sent_bytes_total") - sent) / (1 << 20),
            _peak_mib(nodes.nodes[0].pid),
            _peak_mib(nodes.nodes[2].pid),
            tuple(_rounds(nodes.log(0).read_text()[said:])),
        )


def _wait_level(nodes: Nodes, began: float, say: Callable[[str], None]) -> None:
    while True:
        member = nodes.members().get("n3")
        past = time.monotonic() - began
        if member is not None and member["role"] == "voter":
            return
        if past > LEVEL_SECONDS_MAX:
            raise BenchmarkError(f"the node is not level after {past:.0f} s: {member}")
        store = sum(file.stat().st_size for file in nodes.data(2).glob("broker.*"))
        say(f"replacing: {past:.0f} s, {store / (1 << 20):.0f} MiB on its disk")
        time.sleep(POLL_SECONDS)


def _rounds(text: str) -> list[str]:
    return re.findall(
        r"(?:sent (?:its history|what is new of a snapshot)|a snapshot is not )[^\"]*", text
    )


# --- publishing ---------------------------------------------------------------------------


class Publishers:
    """Publish steadily, each with a connection of its own, as long as the context lasts."""

    def __init__(self, port: int, plan: Plan) -> None:
        self._port = port
        self._plan = plan
        self._lock = threading.Lock()
        self._seconds: list[float] = []
        self._failed = 0
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(PUBLISHERS)
        ]

    def __enter__(self) -> Publishers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def taken(self) -> tuple[list[float], int]:
        """How long each publish took since the last call, and how many failed."""
        with self._lock:
            seconds, self._seconds = self._seconds, []
            failed, self._failed = self._failed, 0
            return seconds, failed

    def _run(self, number: int) -> None:
        body = json.dumps("x" * (self._plan.message_bytes - 2)).encode()
        pause = PUBLISHERS / self._plan.rate
        due = time.monotonic() + pause * number / PUBLISHERS
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            # From when it was due: who is late for the one before waits for that, too.
            try:
                _post(connection, body, "application/json")
                with self._lock:
                    self._seconds.append(time.monotonic() - due)
            except (OSError, http.client.HTTPException, BenchmarkError):
                connection.close()
                with self._lock:
                    self._failed += 1
            due += pause
        connection.close()


def _post(connection: http.client.HTTPConnection, body: bytes, kind: str) -> None:
    connection.request("POST", f"{TOPIC}/messages", body, {"Content-Type": kind})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 201:
        raise BenchmarkError(f"a publish is answered by {answer.status}: {said[:300]!r}")


def _request(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"{path} on port {port}: {error}") from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise BenchmarkError(f"{method} {path} is answered by {answer.status}: {said[:300]!r}")
    return said


def _metric(port: int, name: str) -> float:
    text = _request(port, "GET", "/metrics").decode()
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    if not found:
        raise BenchmarkError(f"there is no metric {name}")
    return sum(map(float, found))


def _quantile(values: Sequence[float], part: float) -> float:
    if not values:
        raise BenchmarkError("nothing was published")
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def _peak_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


# --- the command --------------------------------------------------------------------------


def as_lines(plan: Plan, found: Found) -> list[str]:
    """What is printed for people."""
    gib = found.level_seconds / plan.gib
    return [
        f"history: {plan.gib:g} GiB in messages of {plan.message_bytes} bytes, on each of 3 nodes",
        f"load: {plan.rate:g} publishes/s, {found.published} answered, {found.failed} failed",
        f"level after: {found.level_seconds:.1f} s ({gib:.1f} s a GiB)",
        f"publishes meanwhile: p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms, "
        f"max {found.max_ms:.0f} ms; p99 {found.quiet_p99_ms:.1f} ms before",
        f"snapshots sent: {found.snapshots}; by the leader to both: {found.sent_mib:.0f} MiB",
        f"memory at most: leader {found.leader_memory_mib:.0f} MiB, "
        f"new node {found.new_memory_mib:.0f} MiB",
        *found.rounds,
    ]


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    plan = Plan(options.gib, options.rate, options.message_bytes)
    end_in_order()
    try:
        if options.step is not None:
            options.dir.mkdir(parents=True, exist_ok=True)
            found = _steps(options.dir, plan, options.step)
        else:
            with TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
                found = _steps(Path(name), plan, None)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if found is not None and options.json:
        print(json.dumps({"plan": asdict(plan), "found": asdict(found)}))
    elif found is not None:
        print(*as_lines(plan, found), sep="\n")
    return 0


def _steps(folder: Path, plan: Plan, step: str | None) -> Found | None:
    if step != "replace":
        fill(folder, plan, progress)
    if step == "fill":
        return None
    others = OtherWork()
    found = replace(folder, plan, progress)
    progress("")
    about = {**machine(folder), "other work": str(others)}
    print(*(f"{what}: {how}" for what, how in about.items()), sep="\n", file=sys.stderr)
    return found


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m benchmarks replace", description=__doc__)
    parser.add_argument(
        "step", nargs="?", choices=("fill", "replace"), help="one step; needs --dir"
    )
    parser.add_argument("--dir", type=Path, help="where to store; it should be a real disk")
    parser.add_argument("--gib", type=float, default=plan.gib, help="of history (default: 4)")
    parser.add_argument("--rate", type=float, default=plan.rate, help="publishes/s (default: 500)")
    parser.add_argument("--message-bytes", type=int, default=plan.message_bytes)
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")
    options = parser.parse_args(arguments)
    if options.step is not None and options.dir is None:
        parser.error("one step by itself needs --dir")
    return options
