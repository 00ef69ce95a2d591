"""A cluster at work, what it can suffer, and what is checked when it is over.

    with scene(tmp_path, ["n1", "n2", "n3"], seed) as now:
        now.suffer(cut_off, now.cluster.leader_name())

Each fault is a context manager that lasts as long as its ``with``; two at once
are one in the other. When the scene is left, all is healed and level, and
everything that publishers and readers were told is checked.
"""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cluster.cluster import Cluster
from tests.cluster.hosts import Disk, Network, kind, small_disk
from tests.cluster.workload import ALL, KEEP_ALL, Publisher, Workload
from tests.process.node import Client, Node, polls

PAUSE_SECONDS: Final = 3
DELAY_MS: Final = 100
LOSS_PERCENT: Final = 20
SOME: Final = 40  # acknowledged publishes: the cluster works
DISK_MIB: Final = 192  # a store needs some for what is not yet cleared away
LARGE_BYTES: Final = 500_000


@dataclass(frozen=True, slots=True)
class Scene:
    """A cluster at work, that can suffer."""

    network: Network
    cluster: Cluster
    work: Workload
    disks: Mapping[str, Disk]
    random: random.Random

    def suffer(self, fault: Fault, name: str) -> None:
        """The others go on while it lasts; all go on when it is over."""
        with fault(self, name):
            self.check_goes_on()
        self.check_goes_on()

    def check_goes_on(self) -> None:
        """More is acknowledged than was under way before."""
        self.work.wait_progress(SOME)

    def kill_all(self) -> None:
        for node in self.cluster.nodes.values():
            node.kill()
        self.cluster.restart()
        self.check_goes_on()

    def suffer_at_random(self, number: int) -> None:
        """One fault, or two at once, to a leader or anybody; now and then all are killed."""
        faults = [fault for fault in FAULTS if self._can(fault)]
        names = self.random.sample([*self.cluster.nodes], 2)
        if self.random.random() < 0.5:
            leader = self.cluster.leader_name()
            names = [leader, self.random.choice(self.cluster.others(leader))]
        drawn = self.random.sample(faults, self.random.choice([1, 1, 2]))
        names = names[: len(drawn)]
        shown = [f"{fault.__name__} {name}" for fault, name in zip(drawn, names, strict=True)]
        print(f"round {number}: {', '.join(shown)}")  # noqa: T201
        with ExitStack() as suffering:
            for fault, name in zip(drawn, names, strict=True):
                suffering.enter_context(fault(self, name))
            self.check_goes_on()
        self.check_goes_on()
        if self.random.random() < 0.1:
            self.kill_all()

    def _can(self, fault: Fault) -> bool:
        if fault is losing:
            return self.network.can_lose
        return fault is not late or self.network.is_proxied

    def compact_past(self, name: str) -> None:
        """For a node that is down: the others no longer have the entries that it needs.

        They take snapshots of what it has not. They also keep entries in memory
        that are older than that; so they are killed, and started again.
        """
        others = self.cluster.others(name)
        missed = self.cluster.views()[self.cluster.leader_name()]["commit_index"] + 1
        for _ in polls(f"snapshots from {missed} on, which {name} has missed"):
            self.check_goes_on()
            if all(snapshot_index(self.cluster.nodes[other]) >= missed for other in others):
                break
        for other in others:
            self.cluster.nodes[other].kill()
        self.cluster.restart(others)


@contextmanager
def scene(
    folder: Path, names: Sequence[str], seed: str, *, proxied: bool = False, disks: bool = False
) -> Iterator[Scene]:
    """``proxied`` makes delays possible; ``disks`` gives each node a small one, if we may."""
    print(f"seed={seed}")  # noqa: T201
    with ExitStack() as opened:
        network = opened.enter_context(kind()(names, proxied=proxied))
        small = {name: disk_for(opened, folder / f"{name}-disk") for name in names if disks}
        made = {name: disk for name, disk in small.items() if disk is not None}
        data_dirs = {name: disk.path / "data" for name, disk in made.items()}
        cluster = Cluster(network, folder, data_dirs=data_dirs, **KEEP_ALL)
        opened.enter_context(cluster)
        cluster.start()
        work = opened.enter_context(Workload(cluster, seed))
        yield Scene(network, cluster, work, made, random.Random(seed))
        network.heal()
        cluster.wait_members()
        history = work.finish()
        wrong = cluster.stop()
    print(history)  # noqa: T201
    history.check()
    assert wrong == []


def disk_for(opened: ExitStack, path: Path) -> Disk | None:
    """None where nobody may mount one."""
    if os.geteuid() != 0:
        return None
    try:
        return opened.enter_context(small_disk(path, DISK_MIB))
    except (OSError, RuntimeError):
        return None


def snapshot_index(node: Node) -> int:
    with Client(node) as client:
        lines = client.request("GET", "/metrics").body.decode().splitlines()
    for line in lines:
        if line.startswith("repl_broker_snapshot_index"):
            return int(float(line.split()[-1]))
    raise AssertionError("no such metric")


# --- faults; each lasts as long as its `with` --------------------------------------------------

Fault = Callable[[Scene, str], AbstractContextManager[None]]


@contextmanager
def killed(now: Scene, name: str) -> Iterator[None]:
    now.cluster.nodes[name].kill()
    yield
    now.cluster.nodes[name].start()


@contextmanager
def paused(now: Scene, name: str) -> Iterator[None]:
    node = now.cluster.nodes[name]
    node.pause()
    now.work.go_on(PAUSE_SECONDS)
    yield
    node.resume()


@contextmanager
def cut_off(now: Scene, name: str) -> Iterator[None]:
    now.network.cut(name)
    yield
    now.network.heal()


@contextmanager
def deafened(now: Scene, name: str) -> Iterator[None]:
    now.network.deafen(name)
    yield
    now.network.heal()


@contextmanager
def muted(now: Scene, name: str) -> Iterator[None]:
    now.network.mute(name)
    yield
    now.network.heal()


@contextmanager
def cut_from_one(now: Scene, name: str) -> Iterator[None]:
    now.network.cut_pair(name, now.random.choice(now.cluster.others(name)))
    yield
    now.network.heal()


@contextmanager
def losing(now: Scene, name: str) -> Iterator[None]:
    now.network.lose(LOSS_PERCENT)
    yield
    now.network.heal()


@contextmanager
def late(now: Scene, name: str) -> Iterator[None]:
    now.network.delay(DELAY_MS)
    yield
    now.network.heal()


@contextmanager
def full(now: Scene, name: str) -> Iterator[None]:
    """Without a disk of its own it gets a limit on the size of its files."""
    node, disk = now.cluster.nodes[name], now.disks.get(name)
    before = len(node.log_text())
    if disk is not None:
        disk.fill()
    else:
        limit = max(file.stat().st_size for file in node.data_dir.iterdir())
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    publish_until_it_ends(now.work, node)
    check_last_words(node, before)
    yield
    if disk is not None:
        disk.empty()
    node.start()


def publish_until_it_ends(work: Workload, node: Node) -> None:
    """Large ones, to every node: what has room is soon used up."""
    with ExitStack() as opened:
        names = work.cluster.nodes
        publishers = [opened.enter_context(Publisher(work, n, keyed=False)) for n in names]
        work.publishers += publishers
        for _ in polls("the node without room to end"):
            for publisher in publishers:
                if not node.runs:
                    return
                publisher.publish(ALL, LARGE_BYTES)


def check_last_words(node: Node, before: int) -> None:
    assert node.wait() == 1
    said = node.log_text()[before:]
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if not line.startswith("{")]
    assert line.startswith("error: the store")
    assert "failed to write" in line
    assert "then start the node again" in line


FAULTS: Final[tuple[Fault, ...]] = (
    killed,
    paused,
    cut_off,
    deafened,
    muted,
    cut_from_one,
    losing,
    late,
    full,
)
