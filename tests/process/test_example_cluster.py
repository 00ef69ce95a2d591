"""The example of a cluster on one machine, and the tutorial of one, do what they say.

The example is run as it is, in a copy of its folder, and the tutorial's commands
one by one, on other ports.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from repl_broker.config import load
from tests.process.node import (
    WAIT_SECONDS_MAX,
    Broken,
    Client,
    Node,
    Stream,
    environment,
    free_port,
    polls,
)

pytestmark = pytest.mark.process

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "cluster"
TUTORIAL: Final = EXAMPLE.parents[1] / "docs" / "tutorial" / "first-cluster.md"
NAMES: Final = ("n1", "n2", "n3")


def copy_example(target: Path) -> dict[str, Node]:
    """Copy the example, with other ports; the nodes as a client sees them."""
    shutil.copytree(EXAMPLE, target, ignore=shutil.ignore_patterns("repl-data"))
    nodes = {name: Node(target / "repl-data" / name) for name in NAMES}
    ports = {}
    for number, name in enumerate(NAMES):
        ports |= {f":4{number}80": f":{nodes[name].port}", f":4{number}81": f":{free_port()}"}
    for name in NAMES:
        file = target / f"{name}.toml"
        file.write_text(re.sub(r":4\d8[01]\b", lambda port: ports[port[0]], file.read_text()))
    return nodes


@contextmanager
def run(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The script in a session of its own, as in a terminal; nothing of it is left behind."""
    process = subprocess.Popen(
        [sys.executable, str(folder / "run"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=folder.parent,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def read_until(process: subprocess.Popen[str], last: str) -> str:
    """What it prints, up to the line with ``last``; the suite's own timeout bounds the wait."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if last in line:
            return text
    raise AssertionError(f"it ended, and said: {text}")


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C: all that the terminal runs in the foreground gets the signal. What it says then."""
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
    assert process.returncode == 0, text
    return text


def wait_ready(node: Node, process: subprocess.Popen[Any]) -> None:
    for _ in polls("the node to be ready"):
        assert process.poll() is None, "the node ended by itself"
        with suppress(*Broken), Client(node) as client:
            if client.request("GET", "/readyz").status == 200:
                return


def has_chat(node: Node) -> bool:
    with Client(node) as client:
        answer = client.request("GET", "/chat/")
    return answer.status == 200 and b"chat.js" in answer.body


def is_gone(process: subprocess.Popen[str]) -> bool:
    """Whether nothing is left of what it started."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def pids(text: str) -> dict[str, int]:
    return {name: int(pid) for name, pid in re.findall(r"^  (n\d)  \S+  pid (\d+)", text, re.M)}


def texts(stream: Stream, count: int) -> list[object]:
    found: list[object] = []
    for block in stream:
        if block.is_message:
            found.append(block.message["data"])
            if len(found) == count:
                break
    return found


def test_the_example_survives_its_leader_and_ends_cleanly(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    nodes = copy_example(folder)
    with run(folder) as cluster:
        advice = read_until(cluster, "Ctrl-C ends all nodes")
        (leader,) = re.findall(r"^  (n\d) .* leads$", advice, re.M)
        one, other = (nodes[name] for name in NAMES if name != leader)
        with Stream(one, "orders") as stream:
            ids = [other.publish("orders", {"order": 42})]
            os.kill(pids(advice)[leader], signal.SIGKILL)
            assert f"{leader} has ended" in read_until(cluster, f"run {leader}")
            ids.append(other.publish("orders", {"order": 43}))
            assert texts(stream, 2) == [{"order": 42}, {"order": 43}]

        with run(folder, leader) as again:
            wait_ready(nodes[leader], again)
            assert [message["id"] for message in nodes[leader].history("orders")] == ids
            assert all(has_chat(node) for node in nodes.values())
            interrupt(again)
        assert "Ending all nodes" in interrupt(cluster)
        assert is_gone(cluster)
    for name in NAMES:
        assert (
            "stopped node=" in (folder / "repl-data" / f"{name}.log").read_text() or name == leader
        )


def test_the_example_says_why_it_does_not_start(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    nodes = copy_example(folder)
    file = folder / "n3.toml"
    file.write_text(file.read_text().replace(f":{nodes['n3'].port}", f":{nodes['n1'].port}"))
    with run(folder) as cluster:
        text, _ = cluster.communicate(timeout=WAIT_SECONDS_MAX)
    assert cluster.returncode == 1
    assert re.search(r"^n[13] did not start: error: .*another program", text, re.M), text
    assert is_gone(cluster)


def test_the_files_of_the_example_differ_in_nothing_but_names_and_ports(tmp_path: Path) -> None:
    """What nodes must agree on cannot drift apart."""
    copy_example(tmp_path / "cluster")
    data = tmp_path / "cluster" / "repl-data"
    data.mkdir()
    (data / "secret").write_text("s" * 32)
    with chdir(tmp_path / "cluster"):
        configs = [load(Path(f"{name}.toml")) for name in NAMES]
    assert [config.node.id for config in configs] == [*NAMES]
    assert len({(c.topics, c.limits, c.cluster.secret_file) for c in configs}) == 1
    assert [bool(config.cluster.join) for config in configs] == [False, True, True]
    addresses = {config.raft.bind for config in configs}
    assert all(set(config.cluster.join) < addresses for config in configs)
    assert all(config.raft.bind not in config.cluster.join for config in configs)


# --- the tutorial ---------------------------------------------------------------------------


class Terminals:
    """Does what the tutorial asks its reader to do."""

    def __init__(self, folder: Path) -> None:
        self.nodes = {name: Node(folder / name) for name in NAMES}
        self.printed: list[str] = []
        self._folder = folder
        self._log = folder / "log"  # what goes on beside the rest
        self._running: list[subprocess.Popen[bytes]] = []
        self._ports: dict[str, str] = {}
        for number, name in enumerate(NAMES):
            self._ports[f"4{number}80"] = str(self.nodes[name].port)
            self._ports[f"4{number}81"] = str(free_port())
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._variables = environment() | {"PATH": path, "NO_PROXY": "127.0.0.1"}

    def enter(self, command: str) -> None:
        if "--bootstrap" in command:  # its ports are the defaults
            command = f"{command.strip()} --http 127.0.0.1:4080 --raft 127.0.0.1:4081"
        command = re.sub(r"\b4\d8[01]\b", lambda port: self._ports[port[0]], command)
        if command.startswith("repl-broker serve"):
            (name,) = re.findall(r"--node-id (n\d)", command)
            wait_ready(self.nodes[name], self._start(command))
        elif command.startswith("repl-broker subscribe orders --url"):
            self._start(command)
            self.wait_log("subscribed: node")
        else:
            self._run(command)

    def wait_log(self, text: str) -> None:
        for _ in polls(lambda: f"{text!r} in {self._log.read_text()}"):
            if text in self._log.read_text():
                return

    def wait_until_all_vote(self) -> None:
        for _ in polls("three voters"):
            members = self.nodes["n1"].get("/v1/cluster")["members"]
            if [m["role"] for m in members] == ["leader", "voter", "voter"]:
                return

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=self._variables,
            )
        self._running.append(process)
        return process

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-euc", command],
            capture_output=True,
            text=True,
            cwd=self._folder,
            env=self._variables,
            timeout=2 * WAIT_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, f"{command}{done.stderr}{self._log.read_text()}"
        self.printed.append(done.stdout + done.stderr)

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


def test_the_tutorial_of_a_first_cluster_does_what_it_says(tmp_path: Path) -> None:
    with closing(Terminals(tmp_path)) as terminals:
        for number, command in enumerate(
            re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)
        ):
            terminals.enter(command)
            if number == 2:  # the third node was started
                terminals.wait_until_all_vote()
        terminals.wait_log('orders {"order":2}')  # read at the third node
    printed = terminals.printed
    (answer,) = re.findall(r"\[(no_leader|outcome_unknown)\]", "".join(printed))
    read = [re.findall(r'\{"order":(\d)\}', text) for text in printed]
    after_one, after_two = (found for found in read if found)
    assert after_one == ["1", "2"]
    assert after_two == ["1", "2", "4"] or (
        answer == "outcome_unknown" and after_two == ["1", "2", "3", "4"]
    )
