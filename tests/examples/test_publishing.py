"""The examples that publish do so, each run by the command of its README, against a real node."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.process.node import LEASH, WAIT_SECONDS_MAX, Broken, Node, environment, free_port, polls
from tests.required import need_modules, need_program

pytestmark = pytest.mark.process

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
SHOPS: Final = EXAMPLES / "publish-on-commit"
TEA: Final = {"item": "tea", "quantity": 2}
TOO_MUCH: Final = {"item": "tea", "quantity": 99}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path / "data") as found:
        found.start()
        yield found


def environment_of(node: Node) -> dict[str, str]:
    url = f"http://127.0.0.1:{node.port}"
    scripts = Path(sys.executable).parent
    path = f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}"
    return environment() | {"REPL_BROKER_URL": url, "PATH": path, "PYTHONWARNINGS": "error"}


# --- the shops ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shop:
    """A shop that runs."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def order(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        """Its answer: status and JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/orders",
            data=json.dumps(wanted).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS_MAX) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def command_of(name: str, port: int) -> list[str]:
    """The line of the README that runs ``shop_NAME``, with another port."""
    (line,) = re.findall(rf"^(.*shop_{name}.* 800\d.*)$", (SHOPS / "README.md").read_text(), re.M)
    return re.sub(r"\b800\d\b", str(port), line).split()


@contextmanager
def shop(name: str, folder: Path, node: Node) -> Iterator[Shop]:
    """In a folder of its own, which keeps its database. It is killed at the end."""
    shutil.copytree(SHOPS, folder, dirs_exist_ok=True)
    port, log = free_port(), folder / "shop.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*LEASH, *command_of(name, port)],
            cwd=folder,
            env=environment_of(node),
            stdout=output,
            stderr=output,
        )
    with process:
        try:
            for _ in polls(lambda: f"the shop to answer: {log.read_text()}"):
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=WAIT_SECONDS_MAX)
                except urllib.error.HTTPError as error:  # 404: it serves
                    error.close()
                    break
                except Broken:
                    continue
            yield Shop(port, process, log)
        finally:
            process.kill()


def published(node: Node, count: int) -> list[Any]:
    """The orders that were published, once there are ``count``."""
    for _ in polls(f"{count} orders"):
        topics = [topic["name"] for topic in node.get("/v1/topics")["topics"]]
        found = node.history("orders") if "orders" in topics else []
        if len(found) >= count:
            return [message["data"] for message in found]
    raise AssertionError


every_shop = pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("django", ["django"]),
        ("flask", ["flask", "sqlalchemy"]),
        ("fastapi", ["fastapi", "uvicorn", "sqlalchemy"]),
    ],
    ids=["django", "flask", "fastapi"],
)


@every_shop
def test_a_shop_publishes_what_it_commits_and_nothing_that_it_rolls_back(
    name: str, modules: Sequence[str], node: Node, tmp_path: Path
) -> None:
    need_modules(*modules)
    with shop(name, tmp_path / "shop", node) as open_shop:
        assert open_shop.order(TEA) == (201, {"order": 1, **TEA})
        assert open_shop.order(TOO_MUCH)[0] == 409
        status, last = open_shop.order(TEA)
        assert status == 201
        assert published(node, 2) == [{"order": 1, **TEA}, last]


@pytest.mark.parametrize("name", ["django", "flask"])
def test_an_order_stands_although_the_broker_is_away_and_the_log_says_what_was_lost(
    name: str, node: Node, tmp_path: Path
) -> None:
    need_modules(name, "httpx", "sqlalchemy")
    with shop(name, tmp_path / "shop", node) as open_shop:
        node.kill()
        assert open_shop.order(TEA) == (201, {"order": 1, **TEA})
        assert "given up after" in open_shop.log.read_text()


def test_an_outbox_publishes_after_its_own_crash_and_the_brokers(
    node: Node, tmp_path: Path
) -> None:
    need_modules("fastapi", "uvicorn", "sqlalchemy")
    orders = [{"order": 1, **TEA}, {"order": 2, **TEA}]
    with shop("fastapi", tmp_path / "shop", node) as open_shop:
        node.kill()
        assert [open_shop.order(TEA) for _ in orders] == [(201, order) for order in orders]
    node.start()
    with shop("fastapi", tmp_path / "shop", node) as open_shop:
        assert published(node, 2) == orders
        assert open_shop.order(TEA)[0] == 201
        assert len(published(node, 3)) == 3


def test_an_outbox_passes_over_what_the_broker_refuses(node: Node, tmp_path: Path) -> None:
    need_modules("fastapi", "uvicorn", "sqlalchemy")
    with shop("fastapi", tmp_path / "shop", node) as open_shop:
        assert open_shop.order({"item": "tea" * 1_000_000, "quantity": 1})[0] == 201
        assert open_shop.order(TEA)[0] == 201
        assert published(node, 1) == [{"order": 2, **TEA}]
        assert "message_too_large" in open_shop.log.read_text()


# --- from Node and from cron ------------------------------------------------------------------


def run(command: Sequence[str], node: Node) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment_of(node),
        capture_output=True,
        text=True,
        timeout=2 * WAIT_SECONDS_MAX,
        check=False,
    )


def test_node_publishes_by_fetch(node: Node) -> None:
    need_program("node")
    script = str(EXAMPLES / "node" / "publish.mjs")
    done = run(["node", script, "orders", '{"order":42}'], node)
    assert done.returncode == 0, done.stderr
    (message,) = node.history("orders")
    assert message["data"] == {"order": 42}
    assert json.loads(done.stdout)["id"] == message["id"]
    for arguments, said in (
        (["or ders", "1"], "invalid_topic"),
        (["orders", "{"], "JSON"),
        (["orders"], "usage"),
    ):
        refused = run(["node", script, *arguments], node)
        assert refused.returncode == 1
        assert said in refused.stderr


def test_node_publishes_once_the_broker_is_back(node: Node) -> None:
    need_program("node")
    node.kill()
    script = str(EXAMPLES / "node" / "publish.mjs")
    with subprocess.Popen(
        ["node", script, "orders", "1"], env=environment_of(node), stdout=subprocess.PIPE
    ) as process:
        node.start()
        assert process.wait(WAIT_SECONDS_MAX) == 0
    assert [message["data"] for message in node.history("orders")] == [1]


def test_cron_reports_every_disk_in_one_batch(node: Node) -> None:
    need_program("curl")
    done = run([str(EXAMPLES / "cron" / "report-disks")], node)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (topic,) = [topic["name"] for topic in node.get("/v1/topics", match="disks.*")["topics"]]
    mounts = [message["data"] for message in node.history(topic)]
    assert "/" in [disk["mount"] for disk in mounts]
    assert all(0 <= disk["used_percent"] <= 100 for disk in mounts)


def test_cron_reports_are_mailed_when_they_are_refused(tmp_path: Path) -> None:
    need_program("curl")
    with Node(tmp_path / "data", topics_auto_create="false") as strict:
        strict.start()
        done = run([str(EXAMPLES / "cron" / "report-disks")], strict)
    assert done.returncode == 1
    assert "topic_not_found" in done.stderr
