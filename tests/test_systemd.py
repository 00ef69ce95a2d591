"""sd_notify and passed sockets, against real sockets: the wire is the contract."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from repl_broker import systemd
from repl_broker.config import Address
from repl_broker.errors import ConfigError
from repl_broker.systemd import Manager, passed_sockets, widest


class Listener:
    """A manager's end: what came, datagram by datagram."""

    def __init__(self, name: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name)
        self.socket.setblocking(False)

    def close(self) -> None:
        self.socket.close()

    def heard(self) -> list[str]:
        came = []
        while True:
            try:
                came.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return came


MADE: list[Manager | Listener] = []  # in this test


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def listen(name: str | bytes) -> Listener:
    MADE.append(made := Listener(name))
    return made


def connect(address: str) -> Manager:
    return found_in({"NOTIFY_SOCKET": address})


def found_in(environ: dict[str, str]) -> Manager:
    MADE.append(made := Manager.from_environment(environ))
    return made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


def test_what_is_told_arrives_as_one_datagram(path: str) -> None:
    listener = listen(path)
    manager = found_in({"NOTIFY_SOCKET": path})
    assert manager.listens
    assert manager.tell("READY=1", "STATUS=n1 leads")
    assert listener.heard() == ["READY=1\nSTATUS=n1 leads"]


def test_an_abstract_address_begins_with_an_at_sign() -> None:
    name = f"repl-broker-test-{os.getpid()}"
    listener = listen(b"\0" + name.encode())
    connect(f"@{name}").tell("STOPPING=1")
    assert listener.heard() == ["STOPPING=1"]


def test_what_a_line_quotes_adds_no_line(path: str) -> None:
    listener = listen(path)
    connect(path).tell("STATUS=bad\nREADY=1\x00", "STATUS=" + "x" * 10_000)
    (datagram,) = listener.heard()
    first, second = datagram.split("\n")
    assert first == "STATUS=bad READY=1 "
    assert len(second) == systemd.STATUS_CHARACTERS_MAX


def test_reloading_carries_the_monotonic_time(path: str) -> None:
    listener = listen(path)
    connect(path).tell_reloading()
    (datagram,) = listener.heard()
    name, _, value = datagram.split("\n")[1].partition("=")
    assert name == "MONOTONIC_USEC"
    assert int(value) > 0


def test_without_a_manager_nothing_happens() -> None:
    manager = found_in({})
    assert not manager.listens
    assert manager.watchdog_seconds is None
    assert manager.tell("READY=1")


@pytest.mark.parametrize("address", ["relative", "/nowhere/at/all", "@" + "x" * 200, "vsock:2:1"])
def test_an_address_that_cannot_be_reached_is_logged_once_and_fails_nothing(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = connect(address)
    assert manager.tell("READY=1")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_manager_that_goes_is_logged_once(path: str, caplog: pytest.LogCaptureFixture) -> None:
    listener = listen(path)
    manager = connect(path)
    listener.close()
    assert manager.tell("WATCHDOG=1")
    assert manager.tell("WATCHDOG=1")
    assert len(caplog.records) == 1


def test_a_busy_manager_is_worth_another_try(path: str) -> None:
    listener = listen(path)
    manager = connect(path)
    while manager.tell("WATCHDOG=1"):
        pass
    listener.heard()
    assert manager.tell("READY=1")


def test_the_variables_are_taken_out_of_the_environment(path: str) -> None:
    listen(path)
    environ = {
        "NOTIFY_SOCKET": path,
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": str(os.getpid()),
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "LISTEN_FDNAMES": "http",
        "HOME": "/",
    }
    manager = found_in(environ)
    assert manager.watchdog_seconds == 1.0
    assert passed_sockets(environ) == ()  # meant for another process
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "variables",
    [
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {},
    ],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(path: str, variables: dict[str, str]) -> None:
    listen(path)
    assert found_in({"NOTIFY_SOCKET": path, **variables}).watchdog_seconds is None


# --- passed sockets ---


@pytest.fixture
def pass_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Descriptors in a row, as the first ones that may be passed."""
    passed: list[int] = []
    first = 900
    monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", first)
    yield passed
    for number in range(first, first + 4):
        with suppress(OSError):
            os.close(number)


def give(*sockets: socket.socket) -> None:
    for number, each in enumerate(sockets):
        os.dup2(each.fileno(), systemd.FIRST_DESCRIPTOR + number)
        each.close()


def environment(count: object, names: str = "") -> dict[str, str]:
    found = {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid())}
    return found | ({"LISTEN_FDNAMES": names} if names else {})


def listening(address: str = "127.0.0.1", family: int = socket.AF_INET) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.bind((address, 0))
    opened.listen()
    return opened


@pytest.mark.usefixtures("pass_on")
def test_sockets_that_listen_are_taken() -> None:
    first, second = listening(), listening("0.0.0.0")
    ports = [each.getsockname()[1] for each in (first, second)]
    give(first, second)
    found = passed_sockets(environment(2, "http:repl-broker.socket"))
    assert [each.address.port for each in found] == ports
    assert not any(each.socket.get_inheritable() for each in found)
    assert widest(found) == Address("0.0.0.0", ports[1])
    assert widest(found[:1]) == Address("127.0.0.1", ports[0])
    for each in found:
        each.socket.close()


@pytest.mark.usefixtures("pass_on")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM), "it does not listen"),
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "AF_INET, SOCK_DGRAM"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), "AF_UNIX, SOCK_STREAM"),
    ],
)
def test_a_socket_that_is_not_fit_is_refused(make: object, words: str) -> None:
    assert callable(make)
    give(make())
    with pytest.raises(ConfigError, match=words) as caught:
        passed_sockets(environment(1, "http"))
    assert "descriptor 900 (http)" in str(caught.value)


@pytest.mark.usefixtures("pass_on")
def test_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        os.dup2(file.fileno(), systemd.FIRST_DESCRIPTOR)
    with pytest.raises(ConfigError, match="it is no socket"):
        passed_sockets(environment(1))


@pytest.mark.usefixtures("pass_on")
def test_a_descriptor_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="Bad file descriptor"):
        passed_sockets(environment(1))


@pytest.mark.usefixtures("pass_on")
def test_a_socket_for_raft_is_refused() -> None:
    give(listening())
    with pytest.raises(ConfigError, match="only HTTP can be passed"):
        passed_sockets(environment(1, "raft"))


@pytest.mark.parametrize("count", ["-1", "many", "65", "1e3", "²"])
def test_a_count_that_makes_no_sense_is_refused(count: str) -> None:
    with pytest.raises(ConfigError, match="LISTEN_FDS must be"):
        passed_sockets(environment(count))


def test_no_sockets_are_none() -> None:
    assert passed_sockets({}) == ()
    assert passed_sockets(environment(0)) == ()
