"""Three nodes, of which one has a bad disk and is killed again and again; what was promised holds.

    python -m tests.process.kills --kind slow --kills 200 --seed abc

    slow     each sync takes tens of milliseconds
    lies     syncs do nothing, and a kill takes the newest writes along
    full     there is room for a little more, and later enough
    fails    one write or sync of those that come fails

Retention is short and snapshots are frequent, publishers and readers (workload.py) go on
all the time. With a disk that does not lie half of the kills are a loss of power as well:
what was not synced is lost, in any subset. After each kill the node starts again with what
its disk has; then, while nothing is published, all nodes must be level, and all that
publishers, readers and nodes have seen is checked (history.py). Every KILLS_PER_CLUSTER
kills the cluster is stopped: digests must be equal, and every store must open and say the
same. A repeat by the seed draws the same faults; the moments are not the same.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from repl_broker.state import BrokerState
from repl_broker.storage import SqliteStorage
from tests.cluster.cluster import Cluster
from tests.cluster.hosts import Loopback
from tests.cluster.workload import FEW, FEW_MESSAGES, KEEP_ALL, Workload
from tests.process.disk import BadDisk, compiled
from tests.process.node import JSON, Broken, Client, Node, polls

NAMES: Final = ("n1", "n2", "n3")
BAD: Final = "n3"
KILLS_PER_CLUSTER: Final = 50
RETAINED: Final = 30
KEEP_LITTLE: Final = {**KEEP_ALL, "topics_retention_messages": RETAINED}
SHOWN_CHARACTERS: Final = 4000  # of a log
LEADS_ODDS: Final = 0.4
POWER_LOSS_ODDS: Final = 0.5
SLOW_US: Final = (5_000, 30_000, 60_000)
CACHE_SECONDS_MAX: Final = 0.5  # what a disk that lies loses
ROOM_BYTES_MAX: Final = 300_000
CALLS_MAX: Final = 60  # until one fails
LIFE_SECONDS_MAX: Final = 1.2  # from a fault to the kill
SOME: Final = 10  # acknowledged publishes: the others go on
LAST_WORDS: Final = ("error: the store", "failed to write", "then start the node again")
LOSS: Final = "lost what it had acknowledged"
LEADERS_WORDS: Final = "has lost what it had acknowledged, and ends"


def _slow(choice: random.Random) -> dict[str, int]:
    return {"slow_us": choice.choice(SLOW_US)}


def _lies(choice: random.Random) -> dict[str, int]:
    return {"lies": 1}


def _full(choice: random.Random) -> dict[str, int]:
    return {"room": choice.randrange(ROOM_BYTES_MAX), "overwrites": choice.randrange(2)}


def _fails(choice: random.Random) -> dict[str, int]:
    call = choice.choice(["fail_write_in", "fail_sync_in"])
    return {call: choice.randint(1, CALLS_MAX)}


KINDS: Final[Mapping[str, Callable[[random.Random], dict[str, int]]]] = {
    "slow": _slow,
    "lies": _lies,
    "full": _full,
    "fails": _fails,
}


@dataclass(slots=True)
class Tally:
    """What has happened."""

    kills: int = 0
    ended: int = 0  # by themselves, because their disk failed
    power_losses: int = 0
    lost_writes: int = 0
    noticed: int = 0  # losses of what was acknowledged, by the node that had them


class Patient:
    """A cluster at work, and in it the node with the bad disk."""

    def __init__(self, cluster: Cluster, work: Workload, disk: BadDisk, seed: str) -> None:
        self.tally = Tally()
        self._cluster = cluster
        self._work = work
        self._disk = disk
        self._random = random.Random(seed)

    @property
    def _node(self) -> Node:
        return self._cluster.nodes[BAD]

    def suffer(self, kind: str) -> None:
        """One fault, one kill, and all that is to be true afterwards."""
        if self._random.random() < LEADS_ODDS:
            self._lead()
        before = len(self._node.log_text())
        self._disk.forget()
        self._disk.set(**KINDS[kind](self._random))
        self._work.go_on(self._random.uniform(0.02, LIFE_SECONDS_MAX))
        self._node.kill()  # unless it has ended by itself
        if self._node.process.returncode == -signal.SIGKILL:
            self.tally.kills += 1
            self._lose(kind)
        else:
            self.tally.ended += 1
            self._check_last_words(before, kind)
        self._work.wait_progress(SOME)  # so the others have all that it acknowledged
        if kind != "slow":
            self._disk.heal()
        self._check(kind)
        self._disk.heal()

    def _lead(self) -> None:
        """Have it lead, if that is to be had."""
        other = self._cluster.nodes[self._cluster.others(BAD)[0]]
        with suppress(*Broken), Client(other) as client:
            body = json.dumps({"id": BAD}).encode()
            client.request("POST", "/v1/cluster/leader", body, Content_Type=JSON)

    def _lose(self, kind: str) -> None:
        lost = 0
        if kind == "lies":
            lost = self._disk.lose_newest(self._random.uniform(0, CACHE_SECONDS_MAX))
        elif self._random.random() < POWER_LOSS_ODDS:
            lost = self._disk.lose_unsynced(self._random)
        self.tally.power_losses += lost > 0
        self.tally.lost_writes += lost

    def _check_last_words(self, before: int, kind: str) -> None:
        assert kind in {"full", "fails"}, self._node.log_text()[-2000:]
        assert self._node.process.returncode == 1
        said = self._node.log_text()[before:]
        assert "Traceback" not in said, said
        (line,) = [line for line in said.splitlines() if not line.startswith("{")]
        assert all(words in line for words in LAST_WORDS), line

    def _check(self, kind: str) -> None:
        """It starts with what its disk has; and when all are level, all promises hold."""
        self._node.spawn()
        with self._work.paused():
            self._wait_settled(kind)
            history = self._work.so_far()
        history.check()

    def _wait_settled(self, kind: str) -> None:
        """Level, or ended because it lost what it had acknowledged, and replaced."""
        if kind == "lies":
            for _ in polls("the node to be level, or to notice what it lost"):
                if not self._node.runs:
                    self._replace()
                    break
                if self._cluster.is_level():
                    break
        else:
            self._node.wait_ready()
        self._cluster.wait_converged()

    def _replace(self) -> None:
        """As the guide has it: its old self is removed, and it joins without data."""
        assert LOSS in self._node.log_text(), self._node.log_text()[-2000:]
        leader = self._cluster.leader()
        assert LEADERS_WORDS in leader.log_text(), leader.log_text()[-2000:]
        self.tally.noticed += 1
        with Client(leader) as client:
            answer = client.request("DELETE", f"/v1/cluster/members/{BAD}")
        assert answer.status == 202, answer
        shutil.rmtree(self._node.data_dir)
        self._disk.forget()
        self._node.start()
        self._cluster.wait_members()


@contextmanager
def telling(node: Node) -> Iterator[None]:
    """What a node said, if something is wrong."""
    try:
        yield
    except BaseException:
        print(node.log_text()[-SHOWN_CHARACTERS:])  # noqa: T201
        raise


@contextmanager
def patient(folder: Path, library: Path, seed: str) -> Iterator[Patient]:
    """When it is left, all is held to what was promised once more, also by the stopped stores."""
    with ExitStack() as opened:
        network = opened.enter_context(Loopback(NAMES))
        cluster = opened.enter_context(Cluster(network, folder, **KEEP_LITTLE))
        node = cluster.nodes[BAD]
        disk = BadDisk(library, folder, node.data_dir)
        node.prefix = (*disk.prefix, *node.prefix)
        cluster.start()
        work = opened.enter_context(Workload(cluster, seed))
        work.history.retained = dict.fromkeys(work.topics, RETAINED) | {FEW: FEW_MESSAGES}
        with telling(node):
            yield Patient(cluster, work, disk, seed)
        disk.heal()
        history = work.finish()
        wrong = cluster.stop()
        assert wrong == []
        check_stores(cluster)
        cluster.restart()
        cluster.wait_converged()
        assert work.kept() == history.nodes, "stores say after a start what they said before"
    print(history)  # noqa: T201
    history.check()


def check_stores(cluster: Cluster) -> None:
    """Each is whole, and holds what its state refers to."""
    for name, node in cluster.nodes.items():
        with closing(SqliteStorage(node.data_dir, name)) as store:
            store.check_file()
            snapshot = store.load().snapshot
            assert snapshot is not None, "there were snapshots"
            live = BrokerState.restore(snapshot.data).live_entries()
            assert store.read(live).keys() == set(live), f"{name} lacks what is retained"


def run(kind: str, kills: int, seed: str) -> Tally:
    """In clusters of ``KILLS_PER_CLUSTER``."""
    total = Tally()
    with tempfile.TemporaryDirectory() as name:
        library = compiled(Path(name))
        for first in range(0, kills, KILLS_PER_CLUSTER):
            folder = Path(name) / str(first)
            folder.mkdir()
            with patient(folder, library, f"{seed}-{first}") as one:
                for _ in range(first, min(first + KILLS_PER_CLUSTER, kills)):
                    one.suffer(kind)
                    print(one.tally)  # noqa: T201
            shutil.rmtree(folder)
            for f in fields(Tally):
                setattr(total, f.name, getattr(total, f.name) + getattr(one.tally, f.name))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.process.kills")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    options = parser.parse_args()
    print(f"kind={options.kind} kills={options.kills} seed={options.seed}")  # noqa: T201
    print("in all:", run(options.kind, options.kills, options.seed))  # noqa: T201


if __name__ == "__main__":
    main()
