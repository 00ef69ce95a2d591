"""serve and demo: what reaches the daemon. The daemon itself has tests of its own."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

import repl_broker
from repl_broker.config import Address, Config
from repl_broker.errors import ConfigError, StorageError
from repl_broker.systemd import Manager, PassedSocket
from tests.cli.conftest import Run

demo = importlib.import_module("repl_broker.cli.demo")  # the package has the command there


class FakeDaemon:
    def __init__(self) -> None:
        self.config: Config | None = None
        self.apps: Mapping[str, Path] = {}
        self.bootstrap = False
        self.error: Exception | None = None
        self.read_again: Callable[[], Config] | None = None
        self.manager: Manager | None = None
        self.sockets: Sequence[PassedSocket] = ()

    def run(
        self,
        config: Config,
        *,
        bootstrap: bool = False,
        apps: Mapping[str, Path] | None = None,
        on_ready: Callable[[SimpleNamespace], None] = lambda running: None,
        read_again: Callable[[], Config] | None = None,
        manager: Manager | None = None,
        sockets: Sequence[PassedSocket] = (),
    ) -> None:
        self.config = config
        self.read_again = read_again
        self.manager = manager
        self.sockets = sockets
        self.bootstrap = bootstrap
        self.apps = apps or {}
        if self.error is not None:
            raise self.error
        on_ready(SimpleNamespace(url=f"http://{config.http.bind}"))


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    fake = FakeDaemon()
    monkeypatch.setattr(repl_broker, "daemon", SimpleNamespace(run=fake.run), raising=False)
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    yield fake
    logging.captureWarnings(False)
    root.handlers[:], root.level, logging.raiseExceptions = before


def test_serve_without_options_is_the_default_configuration(run: Run, daemon: FakeDaemon) -> None:
    assert run("serve").exit_code == 0
    assert daemon.config == Config()


def test_options_beat_the_environment_which_beats_the_file(
    run: Run, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        '[node]\nid = "file"\n[http]\nbind = "1.1.1.1:1"\n[raft]\nbind = "1.1.1.1:2"\n'
        '[auth]\nmode = "none"\n'
    )
    monkeypatch.setenv("REPL_BROKER_HTTP_BIND", "2.2.2.2:1")
    monkeypatch.setenv("REPL_BROKER_RAFT_BIND", "2.2.2.2:2")
    monkeypatch.setenv("REPL_BROKER_CONFIG", str(file))
    result = run("serve", "--raft", "[::1]:3", "--data-dir", "x", "--log-level", "error")
    assert result.exit_code == 0, result.output
    assert daemon.config is not None
    assert daemon.config.node.id == "file"
    assert daemon.config.node.data_dir == Path("x")
    assert daemon.config.http.bind == Address("2.2.2.2", 1)
    assert daemon.config.raft.bind == Address("::1", 3)
    assert daemon.config.log.level == "error"


def test_serve_prints_the_first_problem_and_how_many_there_are(
    run: Run, daemon: FakeDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text("nodes = 1\nlogs = 2\nx = 3\n")
    result = run("serve", "--config", str(file))
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("? (and 2 more)\n")
    assert daemon.config is None


def test_bootstrap_and_join_reach_the_daemon(run: Run, daemon: FakeDaemon) -> None:
    assert run("serve", "--bootstrap").exit_code == 0
    assert daemon.bootstrap
    assert run("serve", "--join", "10.0.0.1:4081", "--join", "10.0.0.2:4081").exit_code == 0
    assert not daemon.bootstrap
    assert daemon.config is not None
    assert daemon.config.cluster.join == (Address("10.0.0.1", 4081), Address("10.0.0.2", 4081))


def test_what_is_read_again_is_held_to_the_same_options(
    run: Run, daemon: FakeDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[limits]\nconnections = 5\n[node]\nid = 'file'\n")
    assert run("serve", "--config", str(file), "--node-id", "n7").exit_code == 0
    file.write_text("[limits]\nconnections = 6\n[node]\nid = 'other'\n")
    assert daemon.read_again is not None
    again = daemon.read_again()
    assert (again.limits.connections, again.node.id) == (6, "n7")


def test_the_manager_is_taken_from_the_environment_and_nothing_is_left_of_it(
    run: Run, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        assert run("serve").exit_code == 0
        assert daemon.manager is not None
        assert daemon.manager.watchdog_seconds == 2
        assert "NOTIFY_SOCKET" not in os.environ
        daemon.manager.close()
        assert run("serve").exit_code == 0
        assert not daemon.manager.listens


def test_a_hangup_is_held_back_until_the_daemon_listens(run: Run, daemon: FakeDaemon) -> None:
    daemon.error = StorageError("no space left")
    assert run("serve").exit_code == 1
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_what_the_daemon_raises_is_one_line(run: Run, daemon: FakeDaemon) -> None:
    daemon.error = StorageError("no space left")
    result = run("serve")
    assert (result.exit_code, result.stderr) == (1, "error: no space left\n")


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    package = tmp_path / "repl_broker"
    folder = package / "_examples" / "chat"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>")
    monkeypatch.setattr(repl_broker, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_demo_serves_the_chat_and_says_where(run: Run, daemon: FakeDaemon, chat: Path) -> None:
    port = free_port()
    result = run("demo", "--http", f"127.0.0.1:{port}")
    assert result.exit_code == 0, result.output
    assert f"http://127.0.0.1:{port}/chat/" in result.stdout
    assert daemon.apps == {"/chat": chat}
    assert daemon.config is not None
    assert daemon.config.node.data_dir.name == f"repl-broker-demo-{os.getuid()}-{port}"
    assert daemon.config.node.data_dir.stat().st_mode & 0o777 == 0o700


def test_demo_takes_a_folder_of_the_users_choice(
    run: Run, daemon: FakeDaemon, chat: Path, tmp_path: Path
) -> None:
    result = run("demo", "--http", f"127.0.0.1:{free_port()}", "--data-dir", str(tmp_path / "d"))
    assert result.exit_code == 0, result.output
    assert daemon.config is not None
    assert daemon.config.node.data_dir == tmp_path / "d"
    assert str(tmp_path / "d") in result.stdout


def test_demo_that_cannot_start_says_why_and_nothing_else(
    run: Run, daemon: FakeDaemon, chat: Path
) -> None:
    daemon.error = ConfigError("cannot listen on 127.0.0.1:80")
    result = run("demo", "--http", "127.0.0.1:80")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: cannot listen on 127.0.0.1:80\n"


def test_demo_on_all_addresses_names_one_that_can_be_visited(
    run: Run, daemon: FakeDaemon, chat: Path
) -> None:
    result = run("demo", "--http", "0.0.0.0:4999")
    assert "http://127.0.0.1:4999/chat/" in result.stdout


def test_demo_refuses_a_temporary_folder_that_someone_else_has_laid_out(
    run: Run, daemon: FakeDaemon, chat: Path, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / f"repl-broker-demo-{os.getuid()}-{port}").symlink_to(chat)
    result = run("demo", "--http", f"127.0.0.1:{port}")
    assert result.exit_code == 1
    assert "belongs to someone else" in result.stderr


def test_demo_in_a_checkout_takes_the_page_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(repl_broker, "__file__", str(tmp_path / "repl_broker" / "__init__.py"))
    folder = tmp_path / "examples" / "chat"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>")
    assert demo.chat_folder() == folder


def test_demo_without_the_page_says_so(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(repl_broker, "__file__", str(tmp_path / "repl_broker" / "__init__.py"))
    result = run("demo", "--data-dir", str(tmp_path / "d"))
    assert result.exit_code == 1
    assert "not part of this installation" in result.stderr


def test_any_free_port_gets_a_folder_of_its_own(chat: Path, tmp_path: Path) -> None:
    first, second = (demo.temporary_folder(0) for _ in range(2))
    assert first != second
    assert first.parent == second.parent == tmp_path
