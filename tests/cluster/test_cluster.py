"""The workload and the checker around real processes: a single node, since one is enough here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.history import Gap, Message, Subscribed, violations
from tests.cluster.hosts import kind
from tests.cluster.scene import full, killed, paused, scene
from tests.cluster.workload import ALL, FEW, FEW_MESSAGES, KEEP_ALL, Follower, Publisher, Workload
from tests.process.node import WAIT_SECONDS_MAX

pytestmark = pytest.mark.process


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Cluster]:
    with kind()(["n1"]) as network, Cluster(network, tmp_path, **KEEP_ALL) as cluster:
        cluster.start()
        yield cluster


def test_a_workload_over_faults_of_a_single_node_keeps_every_promise(alone: Cluster) -> None:
    node = alone.leader()
    with Workload(alone, "alone") as work:
        work.wait_progress(50)
        node.kill()
        alone.restart()
        work.wait_progress(50)
        node.pause()
        work.go_on(0.2)
        node.resume()
        work.wait_progress(50)
        history = work.finish()
        alone.wait_converged()
        assert alone.stop() == []
    history.check()

    assert all(reader.messages for reader in history.readers)
    assert {m.topic for m in history.nodes["n1"]} == work.topics
    streams = [e for r in history.readers for e in r.events if isinstance(e, Subscribed)]
    assert len(streams) > len(history.readers), "readers have come back"

    check_that_it_bites(work)


def check_that_it_bites(work: Workload) -> None:
    """What really happened, less one message that somebody should have."""
    history = work.history
    messages = history.nodes["n1"]
    taken = next(m for m in messages if m.topic == ALL)
    history.nodes["n1"] = [m for m in messages if m is not taken]
    (line,) = violations(history)
    assert line.startswith("n1 does not keep the")
    history.nodes["n1"] = messages

    events = history.readers[0].events
    missed = next(e for e in events[5:] if isinstance(e, Message) and e.topic == ALL)
    events.remove(missed)
    assert any(line.startswith("the narrow reader from n1") for line in violations(history))


def test_a_reader_that_is_too_slow_for_a_topic_is_told(alone: Cluster) -> None:
    with Workload(alone, "slow") as work:
        late = Follower(work, "n1", wide=False)
        with late.open() as stream:
            late.read(stream, 2)  # that it is subscribed
        with Publisher(work, "n1", keyed=True) as quick:
            work.publishers.append(quick)
            for _ in range(2 * FEW_MESSAGES):
                quick.publish(FEW)
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(late.run)
            work.readers.append(late)
            history = work.finish()
            reading.result(WAIT_SECONDS_MAX)
    history.check()
    assert any(isinstance(event, Gap) for event in late.seen.events)


@pytest.mark.parametrize("disks", [True, False], ids=["a small disk", "a limit on file sizes"])
def test_a_single_node_suffers_what_needs_no_other(disks: bool, tmp_path: Path) -> None:
    with scene(tmp_path, ["n1"], "alone", disks=disks) as now:
        for fault in (killed, paused, full):
            with fault(now, "n1"):
                pass
            now.check_goes_on()
        now.kill_all()
