"""A node under a stand-in for the service manager: a real notify socket, real descriptors.

What systemd would see on the wire, in the order in which it would.
"""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.process.node import LEASH, WAIT_SECONDS_MAX, Client, Node, environment, free_port, polls
from tests.process.test_start_failures import refusal

pytestmark = pytest.mark.process

WATCHDOG_SECONDS: Final = 0.4


class Manager:
    """Its notify socket, and the environment that it gives a node."""

    def __init__(self, folder: Path, watchdog_seconds: float | None = None) -> None:
        self.path = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.variables = [f"NOTIFY_SOCKET={self.path}"]
        if watchdog_seconds is not None:
            self.variables.append(f"WATCHDOG_USEC={int(watchdog_seconds * 1e6)}")
        self.lines: list[str] = []

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("env", *self.variables)

    def next(self, seconds: float = WAIT_SECONDS_MAX) -> str:
        """The next line that comes. Raises TimeoutError."""
        if not self.lines:
            self.socket.settimeout(seconds)
            self.lines = self.socket.recv(4096).decode().split("\n")
        return self.lines.pop(0)

    def until(self, start: str) -> str:
        """The first line that begins so; those before it are passed over."""
        for _ in range(100_000):
            if (line := self.next()).startswith(start):
                return line
        raise AssertionError(f"no line begins with {start}")

    def drain(self) -> None:
        while True:
            try:
                self.next(0.01)
            except TimeoutError:
                return


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.socket.close()


def written(folder: Path, text: str) -> tuple[str, ...]:
    file = folder / "node.toml"
    file.write_text(text)
    return ("--config", str(file))


def test_a_node_says_ready_when_it_answers_and_stopping_when_it_ends(
    manager: Manager, tmp_path: Path
) -> None:
    with Node(tmp_path / "data", prefix=manager.prefix) as node:
        node.spawn()
        assert manager.next().startswith("EXTEND_TIMEOUT_USEC="), "the log may be long"
        manager.until("READY=1")
        assert manager.until("STATUS=").startswith("STATUS=n1 leads in term 1, 0 streams")
        with Client(node) as client:  # no try before: READY came, so it answers
            assert client.request("GET", "/readyz").status == 200
        assert node.stop() == 0
        assert manager.until("STOPPING=1")
        assert manager.until("STATUS=") == "STATUS=stopping"


def test_no_child_of_the_node_inherits_the_manager(manager: Manager, tmp_path: Path) -> None:
    """What a node's children would get is what its own environment has left."""
    code = (
        "import os, sys; from repl_broker import daemon;"
        "daemon.run = lambda *a, **k: os.execvp('env', ['env']);"
        "from repl_broker.cli import main; main(['serve', '--data-dir', sys.argv[1]])"
    )
    variables = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1", "LISTEN_FDS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=True,
    )
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert "PATH" in names
    assert names.isdisjoint(variables)


# --- the watchdog ---


def test_signs_of_life_come_until_the_process_stands_still(tmp_path: Path) -> None:
    manager = Manager(tmp_path, WATCHDOG_SECONDS)
    with manager.socket, Node(tmp_path / "data", prefix=manager.prefix) as node:
        node.spawn()
        manager.until("READY=1")
        for _ in range(5):
            manager.until("WATCHDOG=1")
        node.pause()
        manager.drain()
        with pytest.raises(TimeoutError):
            manager.next(5 * WATCHDOG_SECONDS)
        node.resume()
        manager.until("WATCHDOG=1")


# --- reload ---


def test_a_reload_applies_what_can_change_while_streams_go_on(
    manager: Manager, tmp_path: Path
) -> None:
    doubtful = "[http]\ntrusted_proxies = ['0.0.0.0/0']\n"
    options = written(tmp_path, f"[limits]\nmessage_bytes = 100\n{doubtful}")
    with Node(tmp_path / "data", prefix=manager.prefix, options=options) as node:
        node.spawn()
        manager.until("READY=1")
        assert "http.trusted_proxies has 0.0.0.0/0, every IPv4 address" in node.log_text()
        with Client(node) as client:
            assert client.publish("chat", b'"' + b"x" * 200 + b'"').status == 413
            written(
                tmp_path,
                "[limits]\nmessage_bytes = 1000\ntopics = 5\ntopics_per_client = 6\n"
                "[log]\nlevel = 'debug'\n[raft]\n"
                "bind = '127.0.0.1:9999'\n"
                "[http]\ncors_origins = ['https://app.example']\naccess_log = true\n"
                "[topics.retention]\nmessages = 2\n",
            )
            node.process.send_signal(signal.SIGHUP)
            manager.until("RELOADING=1")
            assert manager.next().startswith("MONOTONIC_USEC=")
            manager.until("READY=1")
            status = manager.next()
            for key in ("limits.message_bytes", "log.level", "http.cors_origins"):
                assert key in status
            assert "restart for http.trusted_proxies, raft.bind" in status
            answer = client.publish("chat", b'"' + b"x" * 200 + b'"', Origin="https://app.example")
            assert answer.status == 201
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            slow = client.request("GET", "/v1/topics", Origin="https://app.example")
            assert slow.headers["access-control-allow-origin"] == "https://app.example"
            for number in range(3):
                assert client.publish("few", str(number).encode()).status == 201
        for _ in polls("the shared settings to be agreed on"):
            if len(node.history("few")) == 2:
                break
        log = node.log_text()
        assert "applied key=limits.message_bytes value=1000 was=100" in log
        assert "limits.topics_per_client is 6, more than limits.topics (5)" in log
        assert "needs a restart key=raft.bind value='127.0.0.1:9999'" in log
        assert "request method=POST path=/v1/topics/chat/messages status=201" in log
        assert "request method=GET path=/v1/topics status=200" in log


def test_a_broken_file_leaves_everything_as_it_was(manager: Manager, tmp_path: Path) -> None:
    options = written(tmp_path, "[limits]\nmessage_bytes = 100\n")
    with Node(tmp_path / "data", prefix=manager.prefix, options=options) as node:
        node.spawn()
        manager.until("READY=1")
        written(tmp_path, "[limits]\nmessage_bytes = 1000\nconections = 5\n")
        node.process.send_signal(signal.SIGHUP)
        manager.until("RELOADING=1")
        manager.until("READY=1")
        assert "reload failed: " in manager.next()
        assert "did you mean limits.connections?" in node.log_text()
        with Client(node) as client:
            assert client.publish("chat", b'"' + b"x" * 200 + b'"').status == 413
        assert node.stop() == 0


def test_a_hangup_before_anybody_listens_does_not_end_the_node(
    manager: Manager, tmp_path: Path
) -> None:
    with Node(tmp_path / "data", prefix=manager.prefix) as node:
        node.spawn()
        for _ in polls("the process to hold the signal back, or to catch it"):
            if is_awaited(node.process.pid, signal.SIGHUP):
                break
        for _ in range(20):
            node.process.send_signal(signal.SIGHUP)
            time.sleep(0.02)
        manager.until("READY=1")
        manager.until("RELOADING=1")
        manager.until("READY=1")
        assert node.stop() == 0


# Runs the command up to the first import of ours, and says whether a SIGHUP waits by then.
UP_TO_THE_FIRST_IMPORT: Final = """
import runpy, signal, sys

class First:
    def find_spec(self, name, path=None, target=None):
        if name == "repl_broker.cli":
            print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            sys.exit()

sys.meta_path.insert(0, First())
runpy.run_module("repl_broker", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("words", "waits"), [("serve --bootstrap", True), ("publish serve", False)]
)
def test_a_hangup_waits_before_anything_is_loaded_that_takes_time(
    words: str, *, waits: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UP_TO_THE_FIRST_IMPORT, *words.split()],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=True,
    )
    assert done.stdout.split() == [str(waits)]


def test_the_command_begins_where_a_hangup_is_held_back() -> None:
    script = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert script["scripts"] == {"repl-broker": "repl_broker.__main__:main"}


def is_awaited(process: int, number: signal.Signals) -> bool:
    """Whether the process blocks or catches the signal, so that it does not end it."""
    status = Path(f"/proc/{process}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return any(int(fields[name], 16) >> (number - 1) & 1 for name in ("SigBlk", "SigCgt"))


def test_a_terminal_that_is_gone_ends_the_node(tmp_path: Path) -> None:
    """Who closes the window wants no process left behind that nobody sees."""
    ours, theirs = pty.openpty()
    port = free_port()
    process = subprocess.Popen(
        [*LEASH, sys.executable, "-m", "repl_broker", "serve", "--http", f"127.0.0.1:{port}",
         "--data-dir", str(tmp_path / "data")],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment(),
    )  # fmt: skip
    os.close(theirs)
    try:
        seen = b""
        while b"serving" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGHUP)  # the terminal is there: a reload
        while b"reloaded" not in seen:
            seen += os.read(ours, 4096)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(WAIT_SECONDS_MAX) == 0
    finally:
        process.kill()
        process.wait()


# --- socket activation ---


class Activated:
    """A node that is started with descriptors from 3 on, by a shell that tells it so."""

    def __init__(self, folder: Path, passed: Sequence[socket.socket], names: str = "http") -> None:
        script = 'export LISTEN_PID=$$; exec "$@"'
        # The descriptors are put in their places in the child, where nobody else uses them.
        code = (
            "import os, sys; n = int(sys.argv[1]); fds = [int(a) for a in sys.argv[2:2 + n]];"
            "high = [os.dup2(fd, 200 + i) for i, fd in enumerate(fds)];"
            "[os.dup2(fd, 3 + i) for i, fd in enumerate(high)];"
            "os.closerange(3 + n, 300);"
            "os.execvp(sys.argv[2 + n], sys.argv[2 + n:])"
        )
        numbers = [str(one.fileno()) for one in passed]
        command = [sys.executable, "-c", code, str(len(numbers)), *numbers, *LEASH]
        command += ["sh", "-c", script, "sh", sys.executable, "-m", "repl_broker", "serve"]
        command += ["--data-dir", str(folder / "data")]
        variables = {"LISTEN_FDS": str(len(numbers)), "LISTEN_FDNAMES": names}
        self.log = folder / "activated.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=environment() | variables,
                pass_fds=[one.fileno() for one in passed],
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Activated:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def listening() -> socket.socket:
    opened = socket.socket()
    opened.bind(("127.0.0.1", 0))
    opened.listen(64)
    return opened


def asked(address: tuple[str, int]) -> bytes:
    """A request to a socket that listens before anybody accepts."""
    with socket.create_connection(address, WAIT_SECONDS_MAX) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_a_passed_socket_serves_what_waited_in_it(tmp_path: Path) -> None:
    with listening() as first, listening() as second:
        with socket.create_connection(first.getsockname(), WAIT_SECONDS_MAX) as early:
            early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with Activated(tmp_path, [first, second], "http:http") as node:
                assert b" 200 " in early.recv(4096)
                assert b" 200 " in asked(second.getsockname())
                host, port = first.getsockname()
                assert f"listening on a socket that was passed http={host}:{port}" in (
                    node.log.read_text()
                )
                node.process.terminate()
                assert node.process.wait(WAIT_SECONDS_MAX) == 0
        # The manager holds the socket still: nobody is refused while the next one starts.
        with socket.create_connection(first.getsockname(), WAIT_SECONDS_MAX) as late:
            late.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with Activated(tmp_path, [first]):
                assert b" 200 " in late.recv(4096)


def test_a_passed_socket_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    with socket.socket() as idle, Activated(tmp_path, [idle]) as node:
        assert node.process.wait(WAIT_SECONDS_MAX) == 1
        (line,) = node.log.read_text().splitlines()
        assert "descriptor 3 (http)" in line
        assert "does not listen" in line
    assert not (tmp_path / "data").exists()


def test_descriptors_for_another_process_are_left_alone(tmp_path: Path) -> None:
    with Node(tmp_path / "data", prefix=("env", "LISTEN_FDS=1", "LISTEN_PID=1")) as node:
        node.start()
        assert node.stop() == 0


def test_a_credential_without_a_manager_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[cluster]\nsecret_file = "${CREDENTIALS_DIRECTORY}/cluster-secret"\n')
    line = refusal("--config", str(file), "--data-dir", str(tmp_path / "data"))
    assert "CREDENTIALS_DIRECTORY is not set" in line
