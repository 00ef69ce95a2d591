"""The clients of the guide, as their authors made them: cut off, they miss nothing.

Each snippet of docs/how-to/use-other-clients.md follows a node through a relay. The relay breaks
the connection within a message, the node shuts down and comes back, and heartbeats come often.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.relay import BAD_GATEWAY, Relay, relaying
from tests.process.node import Node, polls
from tests.required import missing, need_modules, need_program
from tests.test_docs import ROOT, blocks, served, web_page, write

pytestmark = pytest.mark.process
__all__ = ["web_page"]

GUIDE: Final = ROOT / "docs" / "how-to" / "use-other-clients.md"
HERE: Final = Path(__file__).parent
BROKER: Final = "https://broker.example"
LARGE: Final = "x" * 100_000  # more than Go's readers of lines take by themselves
LINES: Final = "a line\u2028another\u0085and\x0bmore\x1c\U0001f600"
BUILD_SECONDS_MAX: Final = 240

Seen = Callable[[], list[int]]


def snippet(name: str, url: str) -> str:
    (found,) = (block.text for block in blocks(GUIDE) if block.order == f"other {name}")
    assert BROKER in found
    return found.replace(BROKER, url)


def test_every_client_of_the_guide_is_run_here() -> None:
    names = {block.order.removeprefix("other ") for block in blocks(GUIDE)}
    assert names == {*PAGES, *PROGRAMS}


# --- programs, which print each message ---------------------------------------------------


class Program:
    """What a client prints: one message a line, or something that it should not."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
            )
        self._lines: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines += iter(self._process.stdout.readline, "")

    def seen(self) -> list[int]:
        assert self._process.poll() is None, f"it has ended: {self.errors.read_text()[-2000:]}"
        return [json.loads(line)["data"]["n"] for line in list(self._lines) if line[0] == "{"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def node_program(name: str, url: str, folder: Path) -> list[str]:
    node = need_program("node")
    write(folder / "follow.js", snippet(name, url))
    return [node, str(javascript() / "run.mjs"), "node", str(folder)]


def javascript() -> Path:
    folder = HERE / "javascript"
    if not (folder / "node_modules").is_dir():
        missing(f"npm packages; npm ci --prefix {folder.relative_to(ROOT)} installs them")
    return folder


PYTHON: Final = """
import json
follow("orders", lambda message: print(json.dumps(message), flush=True))
"""
# sseclient and sseclient-py have the same name. A package comes before a module, so that the
# former is loaded by its path.
SSECLIENT: Final = """
import importlib.metadata, importlib.util, sys
(path,) = [f for f in importlib.metadata.files("sseclient") if f.name == "sseclient.py"]
spec = importlib.util.spec_from_file_location("sseclient", path.locate())
sys.modules["sseclient"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["sseclient"])
"""


def python_program(name: str, url: str, folder: Path) -> list[str]:
    need_modules("httpx_sse", "requests", "sseclient")
    before = SSECLIENT if name == "sseclient" else ""
    write(folder / "follow.py", before + snippet(name, url) + PYTHON)
    return [sys.executable, str(folder / "follow.py")]


def go_program(name: str, url: str, folder: Path) -> list[str]:
    go = need_program("go")
    for file in ("go.mod", "go.sum"):
        write(folder / file, (HERE / "go" / file).read_text())
    write(folder / "main.go", snippet(name, url))
    built = subprocess.run(
        [go, "build", "-o", "follow", "."],
        cwd=folder,
        env={**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    if "GOPROXY=off" in built.stderr:
        missing("Go modules; (cd tests/clients/go && go mod download) fetches them")
    assert built.returncode == 0, built.stderr
    return [str(folder / "follow")]


def java_program(name: str, url: str, folder: Path) -> list[str]:
    java = need_program("java")
    need_program("javac")  # which runs a source file that is given to java
    write(folder / "Follow.java", snippet(name, url))
    return [java, "-Xshare:auto", str(folder / "Follow.java")]


PROGRAMS: Final = {
    "eventsource": node_program,
    "httpx-sse": python_program,
    "sseclient-py": python_program,
    "sseclient": python_program,
    "r3labs": go_program,
    "java": java_program,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_is_cut_off_misses_nothing_and_sees_nothing_twice(
    name: str, tmp_path: Path
) -> None:
    with serving(tmp_path) as (node, relay):
        command = PROGRAMS[name](name, relay.url, tmp_path)
        program = Program(command, tmp_path)
        try:
            text = "" if name == "sseclient" else LINES  # which takes these for ends of lines
            check(node, relay, program.seen, text)
        finally:
            program.close()


# --- pages --------------------------------------------------------------------------------

# What those get that come while the node is away: a browser's own EventSource gives up at it.
PAGES: Final = {
    "event-source-polyfill": b"",
    "reconnecting-eventsource": BAD_GATEWAY,
    "fetch-event-source": BAD_GATEWAY,
}


@pytest.mark.browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_is_cut_off_misses_nothing_and_sees_nothing_twice(
    name: str, tmp_path: Path, web_page: Any
) -> None:
    program = need_program("node")
    folder = tmp_path / "page"
    folder.mkdir()
    with ExitStack() as stack:
        origin = stack.enter_context(served(folder))
        node, relay = stack.enter_context(
            serving(tmp_path, answer=PAGES[name], http_cors_origins=origin)
        )
        write(folder / "follow.js", snippet(name, relay.url))
        write(
            folder / "index.html", '<!doctype html><script type="module" src="bundle.js"></script>'
        )
        command = [program, str(javascript() / "run.mjs"), "page", str(folder)]
        subprocess.run(command, check=True, timeout=BUILD_SECONDS_MAX)
        web_page.goto(f"{origin}/")
        web_page.wait_for_function("window.seen")
        check(node, relay, lambda: list(web_page.evaluate("seen")), LINES)
        # Else it would try for as long as the test's own end takes.
        web_page.goto("about:blank")


# --- what happens to each -----------------------------------------------------------------


@contextmanager
def serving(tmp_path: Path, answer: bytes = b"", **keys: object) -> Iterator[tuple[Node, Relay]]:
    keys |= {"limits_heartbeat_seconds": 1}
    with Node(tmp_path / "data", **keys) as node, relaying(node.port, answer) as relay:
        node.start()
        node.publish("orders", {"n": 0})
        yield node, relay


def check(node: Node, relay: Relay, seen: Seen, text: str) -> None:
    def come_back() -> None:
        relay.is_up = True
        wait_for_stream(node)

    wait_for_stream(node)
    node.publish("orders", {"n": 1, "text": text})
    node.publish("orders", {"n": 2, "text": LARGE})
    relay.waiting_for = b"event: heartbeat"
    wait("the first messages", lambda: (seen() == [1, 2], seen))
    wait("a heartbeat", lambda: (not relay.waiting_for, seen))

    relay.cut_at = b'"n":3,'
    node.publish("orders", {"n": 3, "text": text})
    wait("the relay to cut", lambda: (not relay.cut_at, seen))
    wait("the client to try", lambda: (relay.refused > 0, seen))
    node.publish("orders", {"n": 4})
    come_back()
    wait("what came meanwhile", lambda: (seen()[-1:] == [4], seen))

    relay.waiting_for = b"event: goodbye"
    assert node.stop() == 0
    wait("the good-bye", lambda: (not relay.waiting_for, seen))
    relay.down()
    node.start()
    node.publish("orders", {"n": 5})
    come_back()
    node.publish("orders", {"n": 6, "text": text})
    wait("the end", lambda: (seen()[-1:] == [6], seen))
    assert seen() == [1, 2, 3, 4, 5, 6]


def wait_for_stream(node: Node) -> None:
    for _ in polls("the client to follow"):
        if node.get("/v1/topics/orders")["subscribers"]:
            return


def wait(what: str, look: Callable[[], tuple[bool, Seen]]) -> None:
    for _ in polls(lambda: f"{what}; it has seen {look()[1]()}"):
        if look()[0]:
            return
