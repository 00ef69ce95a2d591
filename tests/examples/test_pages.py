"""The examples that are pages work in a real browser, with the commands of their README.

The page is served as the README says, from another origin than the node, and takes
the client from the node.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import pytest

from tests.browser.accessibility import assert_accessible
from tests.process.node import LEASH, WAIT_SECONDS_MAX, Broken, Node, free_port, polls
from tests.test_docs import blocks, web_page

pytestmark = [pytest.mark.process, pytest.mark.browser]
__all__ = ["web_page"]

EXAMPLES: Final = Path(__file__).parents[2] / "examples"


class Example:
    """A copy of an example's folder, with ports of its own; runs what its README says."""

    def __init__(self, name: str, folder: Path, stack: ExitStack) -> None:
        self.folder = folder / name
        self.port = free_port()
        self._stack = stack
        self.origin = f"http://127.0.0.1:{self.port}"
        self.node = stack.enter_context(
            Node(folder / "data", http_cors_origins=self.origin, limits_heartbeat_seconds=1)
        )
        shutil.copytree(EXAMPLES / name, self.folder)
        page = self.folder / "index.html"
        page.write_text(self._here(page.read_text()))
        self._commands = [block.text for block in blocks(EXAMPLES / name / "README.md")]

    def _here(self, text: str) -> str:
        return text.replace(":4080", f":{self.node.port}").replace("8000", str(self.port))

    def command(self, beginning: str) -> str:
        (found,) = [text for text in self._commands if text.startswith(beginning)]
        return self._here(found).strip()

    def run(self, beginning: str, more: str = "") -> subprocess.Popen[bytes]:
        """Start the README's command that begins so; ``more`` goes right behind that beginning."""
        command = self.command(beginning).replace(beginning, f"{beginning}{more}", 1)
        process = subprocess.Popen(
            [*LEASH, "bash", "-c", command],
            cwd=self.folder,
            env=os.environ | {"REPL_BROKER_URL": f"http://127.0.0.1:{self.node.port}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._stack.callback(end, process)
        return process

    def open(self, page: Any) -> None:
        assert f"CORS_ORIGINS={self.origin} " in self.command("REPL_BROKER_HTTP_CORS_ORIGINS")
        self.node.start()
        self.run("python3 -m http.server")
        for _ in polls("the page to be served"):
            with suppress(*Broken), urlopen(f"{self.origin}/", timeout=WAIT_SECONDS_MAX):
                break
        page.goto(f"{self.origin}/")
        page.locator("[role=status]", has_text="live").wait_for()


def end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def example(name: str, folder: Path) -> Iterator[Example]:
    with ExitStack() as stack:
        yield Example(name, folder, stack)


def texts(page: Any, selector: str) -> list[str]:
    return list(page.locator(selector).all_text_contents())


def test_the_order_board_shows_where_every_order_is_and_outlives_the_node(
    web_page: Any, tmp_path: Path
) -> None:
    with example("order-board", tmp_path) as board:
        board.open(web_page)
        board.node.publish("kitchen", {"order": 1, "item": "tea", "state": "waiting"})
        board.node.publish("kitchen", {"order": 2, "item": "<b>soup</b>", "state": "waiting"})
        web_page.locator("#waiting li", has_text="<b>soup</b>").wait_for()
        board.node.publish("kitchen", {"order": 1, "item": "tea", "state": "ready"})
        web_page.locator("#ready li", has_text="tea").wait_for()
        assert texts(web_page, "#waiting li") == ["2 <b>soup</b>"]
        assert_accessible(web_page)

        board.node.kill()
        web_page.locator("[role=status]", has_text="reconnecting").wait_for()
        board.node.start()
        board.node.publish("kitchen", {"order": 1, "item": "tea", "state": "done"})
        web_page.locator("#order-1").wait_for(state="detached")

        # A window that is opened now shows the same.
        web_page.reload()
        web_page.locator("#waiting li").wait_for()
        assert texts(web_page, "li") == ["2 <b>soup</b>"]


def test_the_kitchen_publishes_every_step_of_its_orders(web_page: Any, tmp_path: Path) -> None:
    with example("order-board", tmp_path) as board:
        board.open(web_page)
        kitchen = board.run("python3 kitchen.py", " --orders 12 --pause 0")
        assert kitchen.wait(WAIT_SECONDS_MAX) == 0
        steps: dict[int, list[str]] = {}
        for message in board.node.history("kitchen"):
            steps.setdefault(message["data"]["order"], []).append(message["data"]["state"])
        whole = ["waiting", "making", "ready", "done"]
        assert steps == dict.fromkeys(range(1, 13), whole)
        board.node.publish("kitchen", {"order": 13, "item": "tea", "state": "waiting"})
        web_page.locator("#order-13").wait_for()
        assert texts(web_page, "li") == ["13 tea"]


def test_the_log_is_followed_and_searched(web_page: Any, tmp_path: Path) -> None:
    with example("log-tail", tmp_path) as log:
        (log.folder / "app.log").write_text("first\n")
        log.open(web_page)
        log.run("tail -n +1 -F")
        web_page.locator("li", has_text="first").wait_for()
        assert_accessible(web_page)
        log.run("echo").wait()
        web_page.locator("li", has_text="it works").wait_for()
        log.node.publish("logs.worker.1", {"level": "error", "text": "<img src=x>"})
        web_page.locator("li", has_text='"text":"<img src=x>"').wait_for()
        shown = [re.sub(r"^\S+ ", "", text) for text in texts(web_page, "li")]
        assert shown == [
            "logs.app first",
            "logs.app it works",
            'logs.worker.1 {"level":"error","text":"<img src=x>"}',
        ]
        web_page.locator("[type=search]").fill("WORKS")
        web_page.wait_for_function("document.querySelectorAll('li:not([hidden])').length === 1")
