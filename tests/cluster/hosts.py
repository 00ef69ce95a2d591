"""Hosts for nodes, and a network between them that can be broken.

    Namespaces   a network namespace a host, behind one bridge; cuts and loss by
                 nftables in each host. Needs root, ip and nft.
    Loopback     one address for all, a port each; every Raft address is reached
                 through a proxy (proxy.py) that holds bytes back. No loss.

Faults are between hosts only. Whoever tests a node stands on its host and
always reaches it: a publisher on a host that is cut off is the one to watch.

Both do the same with one value: the pairs (from, to) that are cut, the loss and the
delay. A delay needs proxies, since not every kernel has netem; hosts of
``Namespaces`` have them if they are asked for.

What a killed test has left behind is removed by the next.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from tests.cluster.proxy import IN, OUT
from tests.process.node import LEASH, WAIT_SECONDS_MAX, free_port

ROOT: Final = Path(__file__).parents[2]  # of the checkout
LABEL: Final = "repl-broker-test"  # of all that outlives a process; then its id
CHOICE: Final = "REPL_BROKER_TEST_HOSTS"  # "namespaces" or "loopback"
CLONE_NEWNET: Final = 0x40000000
NUMBERS: Final = itertools.count(1)
BURST_KB: Final = 64  # of a link that is throttled; at least what leaves in one piece
QUEUE_MS: Final = 300  # what waits before it for longer is dropped


@dataclass(frozen=True, slots=True)
class Host:
    """Where a node runs. It binds to ``raft`` and advertises ``advertised``."""

    name: str
    address: str
    raft_port: int
    advertised_port: int  # of the proxy, if there is one
    prefix: tuple[str, ...]  # what a command is run by, to be run there
    make_socket: Callable[[], socket.socket]  # for whoever stands there

    @property
    def raft(self) -> str:
        return f"{self.address}:{self.raft_port}"

    @property
    def advertised(self) -> str:
        return f"{self.address}:{self.advertised_port}"

    @property
    def is_proxied(self) -> bool:
        return self.advertised_port != self.raft_port


class Network(ABC):
    """Hosts and what is between them. Use as ``with``; leaving it removes all that it made."""

    can_lose: ClassVar[bool]

    def __init__(self, names: Sequence[str], *, proxied: bool = False) -> None:
        self._names = names
        self._wants_proxies = proxied
        self._opened = ExitStack()
        self._proxies: dict[str, _Proxy] = {}
        self.hosts: dict[str, Host] = {}
        self.cut_ways: set[tuple[str, str]] = set()
        self.loss_percent = 0
        self.delay_ms = 0

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            for number, name in enumerate(self._names, 1):
                host = self._make_host(opening, number, name)
                self.hosts[name] = host
                if host.is_proxied:
                    self._proxies[name] = opening.enter_context(_Proxy(host))
            self._opened = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    @abstractmethod
    def _make_host(self, opening: ExitStack, number: int, name: str) -> Host:
        """What has to be undone is left to ``opening``."""

    @property
    def is_proxied(self) -> bool:
        return len(self._proxies) == len(self.hosts)

    # --- faults; each is in force when its call returns ---

    def cut(self, name: str) -> None:
        """Off from all others, both ways."""
        for other in self._others(name):
            self.cut_ways |= {(name, other), (other, name)}
        self._apply()

    def cut_pair(self, one: str, other: str) -> None:
        """From each other, both ways."""
        self.cut_ways |= {(one, other), (other, one)}
        self._apply()

    def cut_one_way(self, source: str, target: str) -> None:
        """What source sends does not arrive at target."""
        self.cut_ways.add((source, target))
        self._apply()

    def deafen(self, name: str) -> None:
        """It sends, and hears nobody."""
        self.cut_ways |= {(other, name) for other in self._others(name)}
        self._apply()

    def mute(self, name: str) -> None:
        """It hears, and nobody hears it."""
        self.cut_ways |= {(name, other) for other in self._others(name)}
        self._apply()

    def lose(self, percent: int) -> None:
        """Of the packets between hosts, each way, at random; 0 to 99."""
        assert self.can_lose, f"{type(self).__name__} cannot lose packets"
        self.loss_percent = percent
        self._apply()

    def delay(self, ms: int) -> None:
        """Of all bytes between hosts, each way."""
        assert self.is_proxied, "a delay needs proxies"
        self.delay_ms = ms
        self._apply()

    def throttle(self, mbit: int) -> None:
        """What each host sends to the others, in Mbit/s; it stays, whatever is healed."""
        raise NotImplementedError(f"{type(self).__name__} cannot throttle")

    def heal(self) -> None:
        """All faults."""
        self.cut_ways.clear()
        self.loss_percent = self.delay_ms = 0
        self._apply()

    def _others(self, name: str) -> list[str]:
        assert name in self.hosts, name
        return [other for other in self.hosts if other != name]

    @abstractmethod
    def _apply(self) -> None:
        """Make the faults true."""


# --- with root ---------------------------------------------------------------------------------


class Namespaces(Network):
    """10.77.0.N on a bridge, seen by nobody else."""

    can_lose = True

    def __enter__(self) -> Self:
        remove_left_behind()
        self._label = f"{LABEL}-{os.getpid()}-{next(NUMBERS)}"
        self._bridge = ""
        return super().__enter__()

    def _make_host(self, opening: ExitStack, number: int, name: str) -> Host:
        if not self._bridge:
            self._bridge = self._make_namespace(opening, "bridge")
            ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
            ip("-n", self._bridge, "link", "set", "br0", "up")
        space, address = self._make_namespace(opening, name), f"10.77.0.{number}"
        wire = f"link add eth0 type veth peer name host{number} netns {self._bridge}"
        ip("-n", space, *wire.split())
        ip("-n", self._bridge, "link", "set", f"host{number}", "master", "br0", "up")
        ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", space, "link", "set", link, "up")
        return Host(
            name,
            address,
            4081,
            5081 if self._wants_proxies else 4081,
            ("ip", "netns", "exec", space),
            functools.partial(socket_in, space),
        )

    def _make_namespace(self, opening: ExitStack, name: str) -> str:
        space = f"{self._label}-{name}"
        ip("netns", "add", space)
        opening.callback(ip, "netns", "del", space)
        return space

    def _apply(self) -> None:
        for name, host in self.hosts.items():
            run(*host.prefix, "nft", "-f", "-", said="\n".join(self._rules(name)))
        for proxy in self._proxies.values():
            proxy.tell(self.delay_ms, [])

    def throttle(self, mbit: int) -> None:
        shape = f"root tbf rate {mbit}mbit burst {BURST_KB}kb latency {QUEUE_MS}ms"
        for host in self.hosts.values():
            run(*host.prefix, "tc", "qdisc", "replace", "dev", "eth0", *shape.split())

    def _rules(self, name: str) -> Iterator[str]:
        """What a host does not let in. Adding the table first makes the deletion safe."""
        yield "add table inet faults; delete table inet faults; add table inet faults"
        yield "add chain inet faults in { type filter hook input priority 0; }"
        rule = 'add rule inet faults in iifname "eth0"'
        for source, target in sorted(self.cut_ways):
            if target == name:
                yield f"{rule} ip saddr {self.hosts[source].address} drop"
        if self.loss_percent:
            yield f"{rule} numgen random mod 100 < {self.loss_percent} counter drop"


def run(*command: str, said: str = "") -> str:
    """What it prints. RuntimeError with what it complains of."""
    done = subprocess.run(
        command, input=said, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def ip(*arguments: str) -> str:
    return run("ip", *arguments)


def socket_in(space: str) -> socket.socket:
    """A socket of a network namespace, for this process. Only this thread goes there."""
    with (
        Path(f"/run/netns/{space}").open() as there,
        Path("/proc/thread-self/ns/net").open() as here,
    ):
        enter_namespace(there.fileno())
        try:
            return socket.socket()
        finally:
            enter_namespace(here.fileno())


def enter_namespace(file: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def remove_left_behind() -> None:
    """Namespaces and disks of tests that were killed; another test may do so at the same time."""
    for line in ip("netns", "list").splitlines():
        if is_left_behind(line.split()[0]):
            with suppress(RuntimeError):
                ip("netns", "del", line.split()[0])
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, *_ = line.split()
        if is_left_behind(source):
            with suppress(RuntimeError):
                run("umount", "--lazy", place)


def is_left_behind(label: str) -> bool:
    match = re.match(rf"{LABEL}-(\d+)-", label)
    return match is not None and not Path(f"/proc/{match[1]}").exists()


# --- without root ------------------------------------------------------------------------------


class Loopback(Network):
    """127.0.0.1, and a proxy before every Raft address."""

    can_lose = False

    def _make_host(self, opening: ExitStack, number: int, name: str) -> Host:
        return Host(name, "127.0.0.1", free_port(), free_port(), (), socket.socket)

    def _apply(self) -> None:
        for name, proxy in self._proxies.items():
            into = [(source, IN) for source, target in self.cut_ways if target == name]
            out = [(target, OUT) for source, target in self.cut_ways if source == name]
            proxy.tell(self.delay_ms, into + out)


class _Proxy:
    """The process of a host's proxy."""

    def __init__(self, host: Host) -> None:
        command = [*host.prefix, *LEASH, sys.executable, "-m", "tests.cluster.proxy"]
        self._process = subprocess.Popen(
            [*command, host.advertised, host.raft],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def __enter__(self) -> Self:
        try:
            self._expect(b"listening\n")
        except BaseException:
            self.__exit__()
            raise
        return self

    def tell(self, delay_ms: int, hold: Iterable[tuple[str, str]]) -> None:
        """Returns once it is in force."""
        line = json.dumps({"delay_ms": delay_ms, "hold": [*hold]}) + "\n"
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._expect(b"done\n")

    def _expect(self, line: bytes) -> None:
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], WAIT_SECONDS_MAX)
        assert ready, "the proxy does not answer"
        assert out.readline() == line, "the proxy has ended"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


# --- which -------------------------------------------------------------------------------------


@functools.cache
def kind() -> type[Network]:
    """The best that this machine can do, or what REPL_BROKER_TEST_HOSTS says."""
    kinds: Mapping[str, type[Network]] = {"namespaces": Namespaces, "loopback": Loopback}
    choice = os.environ.get(CHOICE)
    return kinds[choice] if choice else Loopback if why_no_namespaces() else Namespaces


@functools.cache
def why_no_namespaces() -> str:
    """Why there are none; empty if there are."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables")):
        if not shutil.which(tool):
            return f"network namespaces need {tool} (apt-get install {package})"
    try:
        with Namespaces(["probe"]) as network:
            network.lose(1)
            network.hosts["probe"].make_socket().close()
    except (OSError, RuntimeError) as error:
        return f"no network namespaces here: {error}"
    return ""


# --- disks -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Disk:
    """A small file system of its own."""

    path: Path

    def fill(self) -> None:
        """To the last byte."""
        with (self.path / "filler").open("wb", buffering=0) as filler:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while filler.write(bytes(size)) == size:
                        pass

    def empty(self) -> None:
        """Of what filled it."""
        (self.path / "filler").unlink()


@contextmanager
def small_disk(path: Path, mib: int) -> Iterator[Disk]:
    """Mounted at ``path``. Needs root. RuntimeError if the system does not let us."""
    path.mkdir()
    label = f"{LABEL}-{os.getpid()}-{next(NUMBERS)}"
    run("mount", "-t", "tmpfs", "-o", f"size={mib}m", label, str(path))
    try:
        yield Disk(path)
    finally:
        run("umount", "--lazy", str(path))
