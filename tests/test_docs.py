"""What people wrote in the documentation is true: links, names, and what commands do.

Whether the reference is what the code says has tests of its own beside the
generators (tests/cli/test_reference.py, tests/web/). Here are the pages that people
write. A comment before a fenced block says what to do with it; the blocks of
a page run in their order, against one fresh node:

    <!-- doc-test: run -->            run it in a shell; it must succeed
    <!-- doc-test: output -->         what the last ``run`` printed
    <!-- doc-test: stream -->         run it beside the others, until the end of the page
    <!-- doc-test: stream output -->  what that prints
    <!-- doc-test: python -->         run it as a script
    <!-- doc-test: file NAME -->      write it to a file
    <!-- doc-test: append NAME -->    write it to the end of a file, before </html>
    <!-- doc-test: check -->          whatever reads such a file takes it: TOML, YAML, JSON, nft …
    <!-- doc-test: browser -->        run it in a page of the node's; the test is below
    <!-- doc-test: nginx -->          and caddy, haproxy: tests/test_proxies.py runs it
    <!-- doc-test: hook FILE -->     and move: tests/examples/ runs it
    <!-- doc-test: elsewhere FILE --> the test in FILE runs it
    <!-- doc-test: skip REASON -->    it cannot be run here; ``pytest -rP`` prints the reasons

A block in a language that something can run must have such a comment.
The port 4080 of the text becomes the node's. In outputs the epoch and the times
are what they happen to be; everything else must be as it is written.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import click
import pytest
import yaml
from click.testing import CliRunner

from repl_broker.access import COOKIE
from repl_broker.cli import main
from repl_broker.config import keys
from repl_broker.errors import PROBLEMS
from repl_broker.web.metrics import (
    BUILD_INFO,
    CERTIFICATE,
    CLOCK_MAX,
    HISTOGRAMS,
    MEMBERS,
    METRICS,
    OWN_CLOCK,
    REFUSED,
    REQUESTS,
    SUBSCRIBERS_BEHIND,
)
from tests.browser.demo_node import BROWSER_ARGUMENTS, find_browser, free_port
from tests.required import need_program

ROOT: Final = Path(__file__).parent.parent
REFERENCE: Final = ROOT / "docs" / "reference"
PAGES: Final = (
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "clients" / "typescript" / "README.md",
)
WRITTEN: Final = tuple(page for page in PAGES if REFERENCE not in page.parents)
WAIT_SECONDS_MAX: Final = 30
POLL_SECONDS: Final = 0.02


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
every_written_page = pytest.mark.parametrize("page", WRITTEN, ids=name_of)


# --- reading pages ------------------------------------------------------------------------


# What runs a block that is not run here, by the first word of its comment.
ELSEWHERE: Final = {
    "browser": "tests/test_docs.py",
    "caddy": "tests/test_proxies.py",
    "client": "clients/typescript/tests/docs.test.ts",
    "haproxy": "tests/test_proxies.py",
    "hook": "tests/examples/test_hooks.py",
    "move": "tests/examples/test_moves.py",
    "nginx": "tests/test_proxies.py",
    "other": "tests/clients/test_clients.py",
}
TEXT: Final = frozenset({"", "text"})  # diagrams, and what a command prints


class Block(NamedTuple):
    """A fenced block and what its comment asks for ("" without one)."""

    line: int
    order: str
    language: str
    text: str


_BLOCK = re.compile(
    r"^(?:<!-- doc-test: (?P<order>[^\n]*?) -->\n)?"
    r"(?P<fence>```+)(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(
    r"\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)|(?:src|srcset)=\"(?P<file>[^\"]+)\""
)
_HEADING = re.compile(r"^#{1,6} (?P<text>.+?)\s*$", re.MULTILINE)


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    text = page.read_text()
    return tuple(
        Block(text.count("\n", 0, m.start()) + 1, m["order"] or "", m["language"], m["text"])
        for m in _BLOCK.finditer(text)
    )


@cache
def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text())


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for match in _HEADING.finditer(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match["text"]).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return frozenset(names)


def links(page: Path) -> Iterator[str]:
    without_code = re.sub(r"`[^`]*`", "``", prose(page))
    for match in _LINK.finditer(without_code):
        yield match["target"] or match["file"]


def target_of(page: Path, link: str) -> Path:
    path = unquote(urlsplit(link).path)
    return (page.parent / path).resolve() if path else page


def is_outside(link: str) -> bool:
    return urlsplit(link).scheme != ""


# --- links --------------------------------------------------------------------------------


@every_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for link in links(page):
        if is_outside(link):
            continue
        target, anchor = target_of(page, link), urlsplit(link).fragment
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(f"{link}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            broken.append(f"{link}: the page has no such heading")
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {target_of(index, link) for link in links(index) if not is_outside(link)}
    pages = {page for page in PAGES if (ROOT / "docs") in page.parents} - {index}
    assert pages - linked == set()


@every_page
def test_a_page_names_no_place_of_one_machine(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"/(?:home|root|work|Users)/\S+", text) == []


# --- names --------------------------------------------------------------------------------


@every_written_page
def test_configuration_keys_that_a_page_names_exist(page: Path) -> None:
    known = keys()
    tables = {name.rpartition(".")[0] for name in known}
    named = {
        f"{table}.{key}"
        for table, key in re.findall(r"\[([a-z.]+)\] ([a-z][a-z_]*[a-z])\b(?!\()", page.read_text())
        if table in tables
    }
    named |= {
        name
        for name in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", prose(page))
        if name.partition(".")[0] in {table.partition(".")[0] for table in tables}
        and not name.endswith((".py", ".ts", ".db", ".log", ".md", ".toml", ".example"))
    }
    assert named - set(known) == set()


@every_written_page
def test_defaults_that_a_page_names_are_the_defaults(page: Path) -> None:
    """A number right after a key, as in ``limits.tail_bytes`` (16 MiB), is its default."""
    known = keys()
    text = re.sub(r"`\[([a-z.]+)\] ([a-z_]+)`", r"`\1.\2`", prose(page).replace("\n", " "))
    wrong = []
    for name, value in re.findall(
        r"`([a-z]+\.[a-z_.]+)`(?:\]\([^)]*\))?,? (?:\| )?\(?(\d[\d,]*(?: [KMG]iB)?|a day)(?![\w.])",
        text,
    ):
        if name in known:
            number, _, unit = value.replace("a day", "86400").replace(",", "").partition(" ")
            stated = int(number) * {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}[unit]
            if stated != known[name].default:
                wrong.append(f"{name} is {known[name].default}, and not {value}")
    assert wrong == []


@every_written_page
def test_environment_variables_that_a_page_names_exist(page: Path) -> None:
    known = {key.variable for key in keys().values()}
    known |= {"REPL_BROKER_URL", "REPL_BROKER_CONFIG", "REPL_BROKER_TRACEBACK"}
    known |= {"REPL_BROKER_TOKEN"}
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    sources += (ROOT / "dev").read_text()
    named = set(re.findall(r"\bREPL_BROKER_[A-Z_]+[A-Z]\b", page.read_text()))
    assert {name for name in named - known if name not in sources} == set()


@every_written_page
def test_metrics_that_a_page_names_exist(page: Path) -> None:
    known = {metric.full_name for metric in METRICS}
    known |= {BUILD_INFO[0], REQUESTS[0], OWN_CLOCK[0], CLOCK_MAX[0], CERTIFICATE[0]}
    known |= {name for name, _ in (*HISTOGRAMS, *MEMBERS)}
    known |= {f"{name}_{part}" for name, _ in HISTOGRAMS for part in ("bucket", "sum", "count")}
    known |= {f"{REFUSED[0]}_total", SUBSCRIBERS_BEHIND[0]}
    known.add(COOKIE)
    named = set(re.findall(r"\brepl_broker_[a-z_]+[a-z]\b", page.read_text()))
    assert named - known == set()


@every_written_page
def test_nginx_says_whose_request_it_passes_on_wherever_a_page_has_it(page: Path) -> None:
    """Else it passes on what the client says, who then has as many shares as it likes."""
    for block in re.findall(r"location [^{]*\{([^}]*(?:\{[^}]*\}[^}]*)*)\}", page.read_text()):
        if "proxy_pass" in block:
            assert "proxy_set_header X-Forwarded-For $remote_addr;" in block


@every_written_page
def test_problem_codes_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"\b[45]\d\d \[?`([a-z_]+)`", prose(page)))
    assert named - set(PROBLEMS) == set()


@every_written_page
def test_commands_and_options_that_a_page_names_exist(page: Path) -> None:
    wrong = []
    for line in re.findall(r"\brepl-broker ([a-z][^\n`|;&)]*)", page.read_text()):
        command: click.Command = main
        for word in line.split():
            if not isinstance(command, click.Group):
                break
            if re.fullmatch(r"[a-z-]+", word) is None:
                break
            found = command.commands.get(word)
            if found is None:
                wrong.append(f"repl-broker {line}: {word}") if command is not main else None
                break
            command = found
        known = {name for parameter in command.params for name in parameter.opts}
        options = re.findall(r"(?<!\S)(--[a-z-]+)", line)
        if command is not main:
            wrong += [f"repl-broker {line}: {o}" for o in options if o not in known | {"--help"}]
    assert wrong == []


# --- what commands do -----------------------------------------------------------------------


class Node:
    """A real node in a process of its own, which may be killed and started again."""

    def __init__(self, data_dir: Path, cors_origins: str = "") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        ours = {k: v for k, v in os.environ.items() if not k.startswith("REPL_BROKER_")}
        scripts = str(Path(sys.executable).parent)
        self.environment = ours | {
            "PATH": f"{scripts}{os.pathsep}{ours.get('PATH', '')}",
            "NO_PROXY": "127.0.0.1",
            "REPL_BROKER_URL": self.url,
            "REPL_BROKER_HTTP_BIND": f"127.0.0.1:{self.port}",
            "REPL_BROKER_HTTP_CORS_ORIGINS": cors_origins,
            "REPL_BROKER_NODE_DATA_DIR": str(data_dir),
        }
        self._log = data_dir.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "repl_broker", "serve"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, env=self.environment)
        wait_for(self._is_ready, lambda: f"the node does not start: {self._log.read_text()}")

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urlopen(f"{self.url}/readyz", timeout=WAIT_SECONDS_MAX):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def wait_for(happened: Callable[[], bool], what: Callable[[], str]) -> None:
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not happened():
        assert time.monotonic() < end, what()
        time.sleep(POLL_SECONDS)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path / "repl-data")
    found.start()
    yield found
    found.kill()


class Stream:
    """A command that goes on printing while others run."""

    def __init__(self, command: str, node: Node, folder: Path) -> None:
        self.text = ""
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=node.environment,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        wait_for(lambda: "event: subscribed" in self.text, lambda: f"nothing came: {self.text}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while found := os.read(pipe.fileno(), 65536):
                self.text += found.decode()

    def expect(self, text: str) -> None:
        lines = text.count("\n")
        wait_for(lambda: self.text.count("\n") >= lines, lambda: f"only this came: {self.text}")
        assert same(self.text).startswith(same(text).rstrip("\n"))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()


def same(text: str) -> str:
    """Without what differs from run to run: epochs and times."""
    text = re.sub(r"\b[0-9a-f]{8}-(?=[0-9]+\b)", "EPOCH-", text)
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "TIME", text)


class Reader:
    """Does what a page asks its reader to do."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node = node
        self._folder = folder
        self._printed = ""
        self._streams: list[Stream] = []
        self._expected: list[tuple[Stream, str]] = []

    def follow(self, page: Path) -> None:
        try:
            for block in blocks(page):
                if block.order:
                    self._do(block, f"{name_of(page)}:{block.line}")
            for stream, text in self._expected:
                stream.expect(text)
        finally:
            for stream in self._streams:
                stream.stop()

    def _do(self, block: Block, where: str) -> None:
        text = block.text.replace("127.0.0.1:4080", f"127.0.0.1:{self._node.port}")
        order, _, name = block.order.partition(" ")
        match order, name:
            case "run", "":
                self._printed = self._run(["bash", "-euo", "pipefail", "-c", text], where)
            case "python", "":
                self._printed = self._run([sys.executable, "-W", "error", "-c", text], where)
            case "output", "":
                assert same(self._printed).strip() == same(text).strip(), where
            case "stream", "":
                self._streams.append(Stream(text, self._node, self._folder))
            case "stream", "output":
                self._expected.append((self._streams[-1], text))
            case "file", _:
                write(self._folder / name, text)
            case "append", _:
                append(self._folder / name, text)
            case "check", "":
                check(block.language, text, self._folder, where)
            case (("elsewhere" | "skip"), _):
                pass
            case _ if order in ELSEWHERE:
                pass
            case _:
                pytest.fail(f"{where}: unknown order {block.order!r}")

    def _run(self, command: list[str], where: str) -> str:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._node.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, f"{where}: {done.stderr}{done.stdout}"
        assert '"code":' not in done.stdout, f"{where}: the node refused: {done.stdout}"
        return done.stdout


def check(language: str, text: str, folder: Path, where: str) -> None:
    """A file of this text would be taken by what reads such files."""
    match language:
        case "json":
            json.loads(text)
        case "yaml":
            assert isinstance(yaml.safe_load(text), dict), where
        case "ini":
            parser = configparser.ConfigParser(strict=False)
            parser.optionxform = str  # type: ignore[assignment,method-assign]
            parser.read_string(text)
            assert parser.sections(), where
        case "toml":
            secret = folder / "secret"
            secret.write_text("s" * 64)
            secret.chmod(0o600)
            file = folder / "checked.toml"
            file.write_text(text.replace("/etc/repl-broker/secret", str(secret)))
            done = CliRunner().invoke(main, ["config", "check", str(file)])
            assert done.exit_code == 0, f"{where}: {done.output}"
        case "nft":
            command = [need_program("nft", "/usr/sbin/nft"), "--check", "--file", "-"]
            if os.geteuid() != 0:
                return  # it asks the kernel
            checked = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
            assert checked.returncode == 0, f"{where}: {checked.stderr.decode()}"
        case _:
            pytest.fail(f"{where}: nothing checks {language!r}")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def append(path: Path, text: str) -> None:
    before, end, after = path.read_text().rpartition("</html>")
    assert end, f"{path.name} ends with </html>"
    path.write_text(before + text + end + after)


def is_done_here(block: Block) -> bool:
    return block.order.partition(" ")[0] not in {"", "skip", "elsewhere", *ELSEWHERE}


RUNNABLE: Final = tuple(page for page in WRITTEN if any(map(is_done_here, blocks(page))))


@pytest.mark.process
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_commands_do_what_the_page_says(page: Path, node: Node, tmp_path: Path) -> None:
    Reader(node, tmp_path).follow(page)


def test_the_readme_and_the_tutorial_are_run() -> None:
    assert {"README.md", "docs/tutorial/first-messages.md"} <= set(map(name_of, RUNNABLE))


@every_written_page
def test_every_comment_for_this_test_stands_before_a_block(page: Path) -> None:
    asked = re.findall(r"^<!-- doc-test: ", page.read_text(), re.MULTILINE)
    assert len(asked) == sum(1 for block in blocks(page) if block.order)


@every_written_page
def test_every_block_that_something_can_run_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        order, _, rest = block.order.partition(" ")
        if order == "skip":
            assert len(rest.split()) > 2, f"{where}: why is it not run?"
            print(f"{where}: not run: {rest}")  # noqa: T201
        elif order == "elsewhere" or order in ELSEWHERE:
            file = rest if order == "elsewhere" else ELSEWHERE[order]
            assert (ROOT / file).is_file(), f"{where}: there is no {file}"
            print(f"{where}: run by {file}")  # noqa: T201
        else:
            assert block.order or block.language in TEXT, f"{where}: nothing runs this block"


@pytest.mark.process
def test_the_calls_of_the_reference_are_such_as_a_node_takes(node: Node, tmp_path: Path) -> None:
    """Each ``curl`` of the reference is well-formed; some say no: a single node has no members."""
    write(tmp_path / "batch.ndjson", '{"topic":"orders.eu","data":{"n":1}}\n')
    page = REFERENCE / "http-api.md"
    calls = [block for block in blocks(page) if block.text.startswith("curl ")]
    assert calls
    for call in calls:
        ours = "curl -sS --max-time 1 -o answer -w '%{http_code}' "
        text = call.text.replace("curl ", ours, 1).replace("4080", str(node.port))
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=tmp_path,
            env=node.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in ((0, 28) if "curl -N" in call.text else (0,)), done.stderr
        answer = (tmp_path / "answer").read_text()
        assert done.stdout in {"200", "201", "204", "409"}, f"{call.text}{answer}"


@pytest.mark.parametrize("page", sorted(REFERENCE.glob("*.md")), ids=name_of)
def test_the_samples_of_the_reference_are_json(page: Path) -> None:
    for block in blocks(page):
        if block.language == "json":
            for line in [block.text] if block.text.startswith("{\n") else block.text.splitlines():
                json.loads(line)


# --- what pages in a browser do ---------------------------------------------------------------


def files_of(page: Path, folder: Path, node: Node) -> None:
    """The files that ``page`` has its reader write."""
    for block in blocks(page):
        text = block.text.replace("127.0.0.1:4080", f"127.0.0.1:{node.port}")
        order, _, name = block.order.partition(" ")
        if order == "file":
            write(folder / name, text)
        elif order == "append":
            append(folder / name, text)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """``python -m http.server --directory FOLDER``; its URL."""
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def web_page() -> Iterator[Any]:
    path = find_browser()
    if path is None:
        if os.environ.get("REPL_BROKER_TEST_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium on the PATH")
        pytest.skip("no Chromium on the PATH; the variable CHROMIUM may name one")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=[*BROWSER_ARGUMENTS])
        page = browser.new_page()
        page.set_default_timeout(WAIT_SECONDS_MAX * 1000)
        yield page
        browser.close()


@pytest.mark.browser
@pytest.mark.process
def test_the_page_of_the_tutorial_is_live_and_outlives_the_node(
    web_page: Any, tmp_path: Path
) -> None:
    with served(tmp_path / "live") as origin:
        node = Node(tmp_path / "data", cors_origins=origin)
        files_of(ROOT / "docs/tutorial/first-messages.md", tmp_path, node)
        node.start()
        try:
            publish(node, "prices", '{"symbol":"TEA","price":12.5}')
            web_page.goto(f"{origin}/")
            web_page.locator("#state", has_text="live").wait_for()
            wait_for_items(web_page, ["TEA: 12.5"])
            publish(node, "prices", '{"symbol":"TEA","price":12.75}')
            wait_for_items(web_page, ["TEA: 12.5", "TEA: 12.75"])
            node.kill()
            web_page.locator("#state", has_text="reconnecting").wait_for()
            node.start()
            web_page.locator("#state", has_text="live").wait_for()
            web_page.locator("button").click()
            wait_for_items(web_page, ["TEA: 12.5", "TEA: 12.75", "TEA: 14"])
        finally:
            node.kill()


@pytest.mark.browser
@pytest.mark.process
def test_the_function_of_the_guide_goes_on_after_an_answer_that_ends_an_event_source(
    web_page: Any, tmp_path: Path
) -> None:
    """A proxy's 502 makes EventSource give up; ``follow`` makes a new one, with the cursor."""
    with served(tmp_path) as origin:
        node = Node(tmp_path / "data", cors_origins=origin)
        files_of(ROOT / "docs/how-to/resume-and-gaps.md", tmp_path, node)
        write(tmp_path / "index.html", "<!doctype html><script src=follow.js></script>")
        node.start()
        try:
            away = [False]

            def route(request: Any) -> None:
                request.fulfill(status=502) if away[0] else request.continue_()

            web_page.route("**/v1/events*", route)
            web_page.goto(f"{origin}/")
            web_page.evaluate(
                """url => {
                  window.seen = [];
                  const note = kind => data => window.seen.push([kind, data.data ?? null]);
                  follow(url, "t", { message: note("message"), subscribed: note("subscribed") });
                }""",
                node.url,
            )
            web_page.wait_for_function("seen.length === 1")
            publish(node, "t", "1")
            web_page.wait_for_function("seen.length === 2")
            away[0] = True
            node.kill()
            node.start()
            publish(node, "t", "2")
            with web_page.expect_response(lambda answer: answer.status == 502):
                pass
            away[0] = False
            web_page.wait_for_function("seen.length === 4")
            assert web_page.evaluate("seen") == [
                ["subscribed", None],
                ["message", 1],
                ["subscribed", None],
                ["message", 2],
            ]
        finally:
            node.kill()


@pytest.mark.browser
@pytest.mark.process
def test_the_lines_of_the_readme_show_what_is_published(web_page: Any, node: Node) -> None:
    (block,) = [block for block in blocks(ROOT / "README.md") if block.order == "browser"]
    web_page.goto(f"{node.url}/healthz")
    web_page.evaluate(
        """text => {
          window.shown = [];
          console.log = (...values) => window.shown.push(values);
          window.eval(text + "; window.source = source");
          return new Promise((resolve) => source.addEventListener("subscribed", resolve));
        }""",
        block.text,
    )
    publish(node, "orders", '{"order":42}')
    web_page.wait_for_function("shown.length === 1")
    topic, _, data = web_page.evaluate("shown[0]")
    assert (topic, data) == ("orders", {"order": 42})


def publish(node: Node, topic: str, data: str) -> None:
    command = ["repl-broker", "publish", topic, data]
    subprocess.run(
        command, env=node.environment, capture_output=True, timeout=WAIT_SECONDS_MAX, check=True
    )


def wait_for_items(page: Any, items: list[str]) -> None:
    page.wait_for_function(
        "wanted => JSON.stringify([...document.querySelectorAll('li')].map(i => i.textContent))"
        " === JSON.stringify(wanted)",
        arg=items,
    )
    assert page.locator("li").all_text_contents() == items
