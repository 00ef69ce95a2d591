"""Many topics deleted at once, through a node of a cluster that is lost on the way."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from repl_broker import idle
from repl_broker.command import Command, DeleteTopics
from repl_broker.errors import NOTHING_CHANGED, RequestError
from tests.network import Cluster, ClusterNode, running_cluster
from tests.nodes import ANYONE

CODES = {True: "outcome_unknown", False: "no_leader"}  # whether it led: then the rest is in its log


def lose_others(cluster: Cluster, node: ClusterNode) -> None:
    for other in [*cluster.running]:
        if other != node.id:
            cluster.kill(other)


def lose_others_after(
    cluster: Cluster, node: ClusterNode, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both other nodes die when so many parts of a deletion have been carried out."""
    propose, left = node.replica.propose, parts

    async def proposing(command: Command) -> object:
        nonlocal left
        outcome = await propose(command)
        left -= isinstance(command, DeleteTopics)
        if not left:
            lose_others(cluster, node)
        return outcome

    monkeypatch.setattr(node.replica, "propose", proposing)


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize(
    ("size", "parts", "gone"), [(1, 1, "1 topic was"), (1000, 2, "2,000 topics were")]
)
async def test_a_deletion_that_is_interrupted_says_what_is_gone(
    leads: bool,
    size: int,
    parts: int,
    gone: str,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = size * parts
    names = [f"job.{number:04}" for number in range(count + 5)]
    async with running_cluster(3) as cluster:
        leader = await cluster.leader()
        node = next(n for n in cluster.running.values() if (n is leader) == leads)
        lines = [f'{{"topic":"{name}","data":1}}' for name in names]
        await node.broker.publish_many(ANYONE, "\n".join(lines).encode())
        monkeypatch.setattr(idle, "BATCH_TOPICS", size)
        lose_others_after(cluster, node, parts, monkeypatch)
        with pytest.raises(RequestError) as refused:
            await node.broker.delete_topics(ANYONE, "job.*")
        assert refused.value.code == CODES[leads]
        assert refused.value.extra == {"count": count}
        words = f" Before that {gone} deleted, for good; ask again for the rest."
        assert refused.value.detail.endswith(words)
        assert NOTHING_CHANGED not in refused.value.detail
        assert list(node.replica.state.names) == names[count:]


async def test_a_deletion_that_did_not_begin_says_nothing_of_a_rest(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(3) as cluster:
        node = await cluster.leader()
        await node.broker.create_topic(ANYONE, "job")
        lose_others(cluster, node)
        with pytest.raises(RequestError) as refused:
            await node.broker.delete_topics(ANYONE, ">")
        assert refused.value.extra == {"count": 0}
        assert refused.value.detail.endswith(NOTHING_CHANGED)
        assert list(node.replica.state.names) == ["job"]
