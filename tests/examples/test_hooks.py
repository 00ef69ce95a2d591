"""The hooks of the guide, bundled with React, Vue and Svelte, in a real browser."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.process.node import WAIT_SECONDS_MAX, polls
from tests.process.node import Node as Process
from tests.required import missing, need_program
from tests.test_docs import ROOT, blocks, served, web_page, write

pytestmark = [pytest.mark.process, pytest.mark.browser]
__all__ = ["web_page"]

GUIDE: Final = ROOT / "docs" / "how-to" / "use-with-a-framework.md"
FRAMEWORKS: Final = Path(__file__).parent / "frameworks"
PAGE: Final = '<!doctype html><body></body><script type="module" src="bundle.js"></script>'


def bundle(framework: str, folder: Path, node: Process) -> None:
    """Write the guide's files of one framework, and bundle them."""
    program = need_program("node")
    if not (FRAMEWORKS / "node_modules").is_dir():
        missing(f"npm packages; npm ci --prefix {FRAMEWORKS.relative_to(ROOT)} installs them")
    url = f"http://127.0.0.1:{node.port}"
    for block in blocks(GUIDE):
        order, _, name = block.order.partition(" ")
        if order == "hook" and name.startswith(f"{framework}/"):
            write(folder / name, block.text.replace("https://broker.example", url))
    write(folder / framework / "index.html", PAGE)
    command = [program, str(FRAMEWORKS / "build.mjs"), str(folder / framework), f"{url}/client.js"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "NODE_PATH": str(FRAMEWORKS / "node_modules")},
        capture_output=True,
        text=True,
        timeout=2 * WAIT_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def wait_for_items(page: Any, *items: str) -> None:
    page.wait_for_function(
        "wanted => JSON.stringify([...document.querySelectorAll('li')].map(i => i.textContent))"
        " === JSON.stringify(wanted)",
        arg=list(items),
    )


@pytest.mark.parametrize("framework", ["react", "vue", "svelte"])
def test_a_hook_shows_messages_follows_its_filter_and_unsubscribes(
    framework: str, web_page: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    with served(folder) as origin, Process(tmp_path / "data", http_cors_origins=origin) as node:
        bundle(framework, folder, node)
        node.start()
        node.publish("orders.1", {"item": "tea"})
        web_page.goto(f"{origin}/{framework}/")
        web_page.wait_for_function("typeof show === 'function'")
        web_page.evaluate("show('orders.*')")
        wait_for_items(web_page, "tea")
        node.publish("orders.2", {"item": "<b>soup</b>"})
        wait_for_items(web_page, "tea", "<b>soup</b>")
        web_page.evaluate("show('orders.2')")
        wait_for_items(web_page, "<b>soup</b>")
        web_page.evaluate("unmount()")
        for _ in polls("nobody to be subscribed"):
            if node.get("/v1/topics/orders.2")["subscribers"] == 0:
                break
