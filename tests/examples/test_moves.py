"""What the guides for moving say comes after: the page shows what the server publishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import pytest

from tests.process.node import LEASH, WAIT_SECONDS_MAX, Node
from tests.required import need_modules, need_program
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.process

GUIDES: Final = ROOT / "docs" / "how-to"
PUBLISH: Final = ROOT / "examples" / "node" / "publish.mjs"
HELPER: Final = ROOT / "examples" / "publish-on-commit"
THING: Final = {"number": 42, "userId": "u7"}

# What the guides leave out: it is the reader's own.
SERVER: Final = f"""
import {{ publish }} from {json.dumps(str(PUBLISH))};
const order = {json.dumps(THING)}, book = order;
const saveOrder = async () => {{}};
"""
PYTHON: Final = (
    f"import sys; sys.path.insert(0, {str(ROOT / 'examples' / 'publish-on-commit')!r})\n"
)
PAGE: Final = """
import { connect } from "./client.mjs";
const userId = "u7";
const show = (shown) => { console.log(JSON.stringify(shown)); process.exit(0); };
%s
client.on("state", ({ state }) => state === "live" && console.log("live"));
"""


def block_of(page: Path, order: str) -> str:
    found = [block.text for block in blocks(page) if block.order == order]
    assert len(found) == 1, f"{page.name} has one block to {order}"
    return found[0]


@pytest.mark.parametrize(
    ("guide", "server", "shown"),
    [
        ("socket-io", "move server", THING),
        ("pusher", "move server", THING),
        ("redis", "move python", {"state": "paid"}),
        ("mercure", "move server", THING),
    ],
)
def test_after_the_move_the_page_shows_what_the_server_publishes(
    guide: str, server: str, shown: Any, tmp_path: Path
) -> None:
    program = need_program("node")
    need_modules("httpx")
    page = GUIDES / f"move-from-{guide}.md"
    with Node(tmp_path / "data") as node:
        node.start()
        url = f"http://127.0.0.1:{node.port}"
        with urlopen(f"{url}/client.js", timeout=WAIT_SECONDS_MAX) as answer:
            (tmp_path / "client.mjs").write_bytes(answer.read())
        text = block_of(page, "move page").replace("https://broker.example", url)
        (tmp_path / "page.mjs").write_text(PAGE % text)
        with subprocess.Popen(
            [*LEASH, program, "page.mjs"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "live\n"
            publish(server, block_of(page, server), program, tmp_path, url)
            assert json.loads(reader.stdout.readline()) == shown
            assert reader.wait(WAIT_SECONDS_MAX) == 0


def publish(order: str, text: str, node: str, folder: Path, url: str) -> None:
    if order == "move python":
        command = [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"{PYTHON}from broker import publish\n{text}",
        ]
    else:
        (folder / "server.mjs").write_text(SERVER + text)
        command = [node, "server.mjs"]
    subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"REPL_BROKER_URL": url, "PYTHONPATH": str(HELPER)},
        timeout=WAIT_SECONDS_MAX,
        check=True,
    )
