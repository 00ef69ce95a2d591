"""A node that runs loads nothing any more: its package may be replaced beneath it.

An upgrade by pip takes the old files away while the old node serves. What it would import
after that is of the new version, or is not there.
"""

from __future__ import annotations

import ast
import http.client
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

import repl_broker
from repl_broker.daemon import LATE, LATE_WITH_TOKENS
from tests.contract.test_access import CALLS
from tests.process.node import (
    LEASH,
    WAIT_SECONDS_MAX,
    Broken,
    Client,
    Node,
    Stream,
    environment,
    free_port,
    polls,
)
from tests.signing import SECRET, claims, hs256, token

pytestmark = pytest.mark.process

# A node that notes what it looks for after it was told to, and on whose behalf.
NOTING: Final = """
import os, sys, traceback

class Late:
    def find_spec(self, name, path=None, target=None):
        if os.path.exists(sys.argv[1] + ".served"):
            frames = [f for f in traceback.extract_stack()[:-1] if "importlib" not in f.filename]
            with open(sys.argv[1] + ".late", "a") as file:
                print(name, f"{frames[-1].filename}:{frames[-1].lineno}", file=file)

sys.meta_path.insert(0, Late())
from repl_broker.cli import main
main(sys.argv[2:])
"""


STREAMS: Final = ("/v1/events", "/ui/feed")  # they have no end


class NotingNode(Node):
    def spawn(self) -> None:
        command = [*LEASH, sys.executable, "-c", NOTING, str(self.data_dir), "serve"]
        command += ["--data-dir", str(self.data_dir), "--http", f"{self.address}:{self.port}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.options], stdout=log, stderr=log, env=environment(**self.keys)
            )

    def note(self) -> None:
        """From now on."""
        self.data_dir.with_name(f"{self.data_dir.name}.served").touch()

    @property
    def late(self) -> list[str]:
        file = self.data_dir.with_name(f"{self.data_dir.name}.late")
        return sorted(set(file.read_text().splitlines())) if file.exists() else []


def ask_for_everything(node: Node, headers: Mapping[str, str]) -> None:
    with Client(node) as client:
        for call in CALLS.values():
            if call.path.startswith(STREAMS):
                continue
            typed = {} if call.body is None else {"Content_Type": call.media_type}
            client.request(call.method, call.path, call.body, **headers, **typed)
        for path in ("/", "/ui/", "/favicon.ico", "/nowhere", "/v1/topics?limit=x"):
            client.request("GET", path, **headers)
        client.request("OPTIONS", "/v1/topics", Origin="https://elsewhere.example")
        client.request("PATCH", "/v1/topics", **headers)
        client.publish("chat", b"{", **headers)
        lines = b'{"topic":"chat","data":1}\n{"topic":'
        ndjson = {"Content_Type": "application/x-ndjson"}
        client.request("POST", "/v1/messages", lines, **headers, **ndjson)
    connection = http.client.HTTPConnection(node.address, node.port, timeout=WAIT_SECONDS_MAX)
    connection.request("GET", "/ui/feed", headers=headers)
    connection.getresponse().read1()
    connection.close()
    for topic in ("chat", ">", "a b"):
        with suppress(AssertionError, *Broken), Stream(node, topic, after="earliest") as stream:
            next(iter(stream))


def check(*nodes: NotingNode) -> None:
    assert [(node.data_dir.name, line) for node in nodes for line in node.late] == []


# Modules of commands, and of what is an extra that is loaded at the start or not at all.
NOT_OF_A_NODE: Final = ("cli/", "traces.py", "otel.py")


def late_imports() -> Iterator[str]:
    """What functions of a node import when they are called."""
    root = Path(repl_broker.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).as_posix().startswith(NOT_OF_A_NODE):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    base = node.module or ""
                    loaded = [f"{base}.{alias.name}" for alias in node.names]
                    yield from (each if is_module(each) else base for each in loaded)


def is_module(name: str) -> bool:
    with suppress(ModuleNotFoundError):
        return importlib.util.find_spec(name) is not None
    return False


def test_whatever_a_function_imports_is_loaded_at_the_start() -> None:
    assert {*late_imports()} <= {*LATE, *LATE_WITH_TOKENS}


def test_the_node_that_notes_finds_what_is_loaded_late(tmp_path: Path) -> None:
    with NotingNode(tmp_path / "n1") as node:
        node.note()
        node.start()
        assert node.late, "all of it, as it was told to before the start"


def test_a_single_node_loads_nothing_once_it_serves(tmp_path: Path) -> None:
    with NotingNode(tmp_path / "n1", http_access_log="true") as node:
        node.start()
        node.note()
        ask_for_everything(node, {})
        node.process.send_signal(signal.SIGHUP)
        for _ in polls("the configuration to be read again"):
            if "reloaded, and nothing has changed" in node.log_text():
                break
        assert node.stop() == 0
        check(node)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    return {"auth_mode": "jwt", "auth_secret_file": str(secret)}


def test_a_node_with_tokens_loads_nothing_once_it_serves(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    with NotingNode(tmp_path / "n1", **keys) as node:
        node.start()
        node.note()
        ask_for_everything(node, {"Authorization": "Bearer " + token(admin=True)})
        for wrong in (
            hs256(claims(exp=1)),
            hs256(claims(), b"x" * 32),
            hs256({"sub": 3}),
            hs256(claims(), alg="none"),
            "none",
        ):
            ask_for_everything(node, {"Authorization": f"Bearer {wrong}"})
        node.process.send_signal(signal.SIGHUP)
        for _ in polls("the configuration to be read again"):
            if "reloaded, and nothing has changed" in node.log_text():
                break
        assert node.stop() == 0
        check(node)


def test_nodes_of_a_cluster_load_nothing_once_they_serve(tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    names = [("n1", first, "--bootstrap"), ("n2", second, "--join"), ("n3", free_port(), "--join")]
    nodes = [
        NotingNode(
            tmp_path / name,
            options=(
                *("--node-id", name, "--raft", f"127.0.0.1:{port}", how),
                *([f"localhost:{first}"] if how == "--join" else []),
            ),
        )
        for name, port, how in names
    ]
    with nodes[0], nodes[1], nodes[2]:
        nodes[0].start()
        nodes[0].note()
        nodes[0].publish("chat", "x" * 1000)
        for node in nodes[1:]:
            node.start()
            node.note()
        for node in nodes:
            ask_for_everything(node, {})
        for _ in polls("all to be voters"):
            members = nodes[0].get("/v1/cluster")["members"]
            if [each["role"] for each in members].count("voter") == 2:
                break
        with Client(nodes[1]) as client:
            body = json.dumps({"id": "n2"}).encode()
            client.request("POST", "/v1/cluster/leader", body, Content_Type="application/json")
        nodes[2].kill()
        nodes[1].publish("chat", 1)
        assert nodes[1].stop() == 0
        nodes[0].stop()
        check(*nodes[:2])
