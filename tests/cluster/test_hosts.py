"""The hosts, the network between them and its faults, tried with talkers instead of nodes."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.cluster import hosts
from tests.cluster.hosts import (
    LABEL,
    Host,
    Loopback,
    Namespaces,
    Network,
    ip,
    small_disk,
    why_no_namespaces,
)
from tests.process.node import LEASH, WAIT_SECONDS_MAX

pytestmark = pytest.mark.process

NAMES: Final = ("n1", "n2", "n3")
SILENCE_SECONDS: Final = 0.3  # long for what takes a millisecond

# Answers what it hears; says what it hears and is answered. A line of its input,
# "ADDRESS:PORT TEXT", goes out on the one connection to there.
TALKER: Final = """
import os, socket, sys, threading
def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())
def hear(connection, what, answer):
    for line in connection.makefile():
        say(what, line.strip())
        if answer:
            connection.sendall(line.encode())
def start(*arguments):
    threading.Thread(target=hear, args=arguments, daemon=True).start()
def serve(listener):
    while True:
        start(listener.accept()[0], "heard", True)
host, port = sys.argv[1].split(":")
listener = socket.create_server((host, int(port)))
threading.Thread(target=serve, args=[listener], daemon=True).start()
say("listening")
known = {}
def send(where, text):
    if where not in known:
        address, port = where.split(":")
        known[where] = socket.create_connection((address, int(port)))
        start(known[where], "answered", False)
    known[where].sendall(text.encode() + b"\\n")
for line in sys.stdin:
    threading.Thread(target=send, args=line.split(), daemon=True).start()
"""


class Talker:
    """A process on a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._heard: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [*host.prefix, *LEASH, sys.executable, "-c", TALKER, host.raft],
            env=os.environ | {"REPL_BROKER_NODE_ID": host.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._heard.put(line.strip())

    def __enter__(self) -> Talker:
        assert self.next() == "listening"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def send(self, other: Talker, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{other._host.advertised} {text}\n")
        self._process.stdin.flush()

    def next(self) -> str:
        return self._heard.get(timeout=WAIT_SECONDS_MAX)

    @property
    def has_said_all(self) -> bool:
        return self._heard.empty()

    def hears_nothing(self) -> bool:
        try:
            self._heard.get(timeout=SILENCE_SECONDS)
        except queue.Empty:
            return True
        return False


def needs_namespaces(kind: type[Network]) -> None:
    if kind is Namespaces and why_no_namespaces():
        pytest.skip(why_no_namespaces())


@pytest.fixture(params=[(Namespaces, False), (Namespaces, True), (Loopback, True)], scope="module")
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Network, list[Talker]]]:
    """Once for each kind: processes take long to start."""
    kind, proxied = request.param
    needs_namespaces(kind)
    with kind(NAMES, proxied=proxied) as network, ExitStack() as talking:
        yield network, [talking.enter_context(Talker(host)) for host in network.hosts.values()]


@pytest.fixture
def network(opened: tuple[Network, list[Talker]]) -> Iterator[Network]:
    network, _ = opened
    yield network
    network.heal()


@pytest.fixture
def talkers(opened: tuple[Network, list[Talker]]) -> Iterator[list[Talker]]:
    _, talkers = opened
    yield talkers
    assert all(talker.has_said_all for talker in talkers)


def check_talk(one: Talker, other: Talker, text: str) -> None:
    one.send(other, text)
    assert other.next() == f"heard {text}"
    assert one.next() == f"answered {text}"


def check_all_talk(talkers: list[Talker], text: str) -> None:
    for one in talkers:
        for other in talkers:
            if one is not other:
                check_talk(one, other, text)


def test_hosts_talk_until_one_is_cut_off_and_again_when_it_is_healed(
    network: Network, talkers: list[Talker]
) -> None:
    n1, n2, n3 = talkers
    check_all_talk(talkers, "before")
    network.cut("n1")
    n1.send(n2, "held")
    n3.send(n1, "held")
    check_talk(n2, n3, "beside")
    assert n1.hears_nothing()
    assert n2.hears_nothing()
    network.heal()
    assert n2.next() == "heard held"
    assert {n1.next(), n1.next()} == {"heard held", "answered held"}
    assert n3.next() == "answered held"
    check_all_talk(talkers, "after")


def test_a_pair_can_be_cut_and_others_reach_both(network: Network, talkers: list[Talker]) -> None:
    n1, n2, n3 = talkers
    network.cut_pair("n1", "n2")
    check_talk(n1, n3, "aside")
    check_talk(n3, n2, "aside")
    n1.send(n2, "held")
    assert n2.hears_nothing()
    network.heal()
    assert n2.next() == "heard held"
    assert n1.next() == "answered held"


def test_a_way_can_be_cut_and_the_way_back_is_open(network: Network, talkers: list[Talker]) -> None:
    n1, n2, _ = talkers
    check_all_talk(talkers, "before")
    network.cut_one_way("n2", "n1")
    n1.send(n2, "there")
    assert n2.next() == "heard there"
    assert n1.hears_nothing(), "the answer does not come back"
    n2.send(n1, "back")
    assert n1.hears_nothing()
    network.heal()
    assert {n1.next(), n1.next()} == {"answered there", "heard back"}
    assert n2.next() == "answered back"


def test_a_host_can_be_deafened_or_muted(network: Network, talkers: list[Talker]) -> None:
    n1, n2, n3 = talkers
    check_all_talk(talkers, "before")
    network.deafen("n1")
    n1.send(n2, "sent")
    assert n2.next() == "heard sent"
    n3.send(n1, "unheard")
    assert n1.hears_nothing()
    network.heal()
    assert {n1.next(), n1.next()} == {"answered sent", "heard unheard"}
    assert n3.next() == "answered unheard"
    network.mute("n1")
    n2.send(n1, "sent")
    assert n1.next() == "heard sent"
    n1.send(n3, "unheard")
    assert n3.hears_nothing()
    network.heal()
    assert n2.next() == "answered sent"
    assert n3.next() == "heard unheard"
    assert n1.next() == "answered unheard"


@pytest.mark.parametrize("kind", [Namespaces, Loopback])
def test_a_delay_delays_each_way(kind: type[Network]) -> None:
    needs_namespaces(kind)
    with kind(NAMES[:2], proxied=True) as network, ExitStack() as opened:
        n1, n2 = (opened.enter_context(Talker(host)) for host in network.hosts.values())
        check_talk(n1, n2, "before")
        network.delay(100)
        start = time.monotonic()
        check_talk(n1, n2, "late")
        assert time.monotonic() - start >= 0.2
        network.heal()
        check_talk(n1, n2, "after")


def test_loss_loses_some_packets_and_tcp_gets_through() -> None:
    needs_namespaces(Namespaces)
    with Namespaces(NAMES[:2]) as network, ExitStack() as opened:
        n1, n2 = (opened.enter_context(Talker(host)) for host in network.hosts.values())
        check_talk(n1, n2, "before")
        network.lose(20)
        for number in range(20):
            check_talk(n1, n2, f"through-{number}")
        assert sum(lost_packets(host) for host in network.hosts.values()) > 0
        network.heal()
        check_talk(n1, n2, "after")


def lost_packets(host: Host) -> int:
    rules = hosts.run(*host.prefix, "nft", "list", "ruleset")
    return int(rules.split("numgen random mod 100 < 20 counter packets ")[1].split()[0])


def test_a_host_that_cannot_lose_says_so() -> None:
    with (
        Loopback(NAMES[:1]) as network,
        pytest.raises(AssertionError, match="Loopback cannot lose"),
    ):
        network.lose(20)


def test_namespaces_are_removed_after_a_failure() -> None:
    needs_namespaces(Namespaces)

    def fail() -> None:
        with Namespaces(NAMES) as network:
            assert own_namespaces() >= {network.hosts[name].prefix[-1] for name in NAMES}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert own_namespaces() == set()


def test_namespaces_are_removed_when_a_host_cannot_be_made() -> None:
    needs_namespaces(Namespaces)
    with pytest.raises(RuntimeError, match="ip netns add"), Namespaces(["n1", "n1"]):
        pass
    assert own_namespaces() == set()


def own_namespaces() -> set[str]:
    names = {line.split()[0] for line in ip("netns", "list").splitlines()}
    return {name for name in names if name.startswith(f"{LABEL}-{os.getpid()}-")}


def test_what_a_killed_test_has_left_behind_is_removed() -> None:
    needs_namespaces(Namespaces)
    code = "import os, tests.cluster.hosts as h\nh.Namespaces(['n1']).__enter__(); os.abort()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=hosts.ROOT) as killed:
        assert killed.wait(WAIT_SECONDS_MAX) == -signal.SIGABRT
    hosts.remove_left_behind()
    assert f"{LABEL}-{killed.pid}-" not in ip("netns", "list")


def test_whoever_stands_on_a_host_comes_back_from_it() -> None:
    needs_namespaces(Namespaces)
    here = os.readlink("/proc/thread-self/ns/net")
    with Namespaces(["n1"]) as network:
        made = network.hosts["n1"].make_socket()
        with made, pytest.raises(OSError, match="Network is unreachable"):
            made.connect(("192.0.2.1", 80))
        assert os.readlink("/proc/thread-self/ns/net") == here


def test_a_small_disk_can_be_filled_and_emptied(tmp_path: Path) -> None:
    needs_namespaces(Namespaces)
    path = tmp_path / "disk"
    with small_disk(path, 2) as disk:
        (path / "file").write_bytes(bytes(1000))
        disk.fill()
        with pytest.raises(OSError, match="No space left on device"):
            (path / "other").write_bytes(bytes(10_000))
        disk.empty()
        (path / "other").write_bytes(bytes(10_000))
    assert not [*path.iterdir()]
