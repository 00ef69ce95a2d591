"""When large entries may begin."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from repl_broker.command import Publish
from repl_broker.pace import PAUSE_SECONDS_MAX, Pace
from repl_broker.proposals import Proposal, Proposals
from tests.nodes import running_node

LARGE_BYTES = 3 << 20


def test_a_large_entry_waits_until_the_one_before_is_applied() -> None:
    pace = Pace()
    assert pace.allows(1, 0.0)
    pace.began(7, 1, 0.0)
    assert not pace.allows(1, 5.0)
    pace.ended(5.0, pauses=False)
    assert pace.allows(1, 5.0)


def test_small_ones_have_the_disks_for_as_long_as_a_large_one_took() -> None:
    pace = Pace()
    pace.began(7, 1, 1.0)
    pace.ended(1.3, pauses=True)
    assert not pace.allows(1, 1.59)
    assert pace.allows(1, 1.61)


def test_the_pause_is_bounded() -> None:
    pace = Pace()
    pace.began(7, 1, 0.0)
    pace.ended(100.0, pauses=True)
    assert pace.next_at == 100.0 + PAUSE_SECONDS_MAX


def test_a_large_entry_of_an_older_term_holds_up_nothing() -> None:
    pace = Pace()
    pace.began(7, 1, 0.0)
    assert pace.allows(2, 0.0)


async def test_small_ones_and_batches_go_while_a_large_one_is_held() -> None:
    proposals = Proposals()
    large = Proposal(Publish("chat", (b"x" * LARGE_BYTES,)))
    batch = Proposal(Publish("chat", (b"x",) * 5000))
    small = Proposal(Publish("chat", (b"x",)))
    for each in (large, batch, small):
        proposals.add(each)
    taken = [proposals.take(1 << 20, large=False) for _ in range(3)]
    assert taken == [[small], [batch], []]
    assert proposals.has_only_large
    assert proposals.take(1 << 20) == [large]
    assert not proposals.is_waiting


async def test_a_node_paces_large_entries_while_small_ones_come(autojump_clock: MockClock) -> None:
    large = Publish("chat", (b"x" * LARGE_BYTES,))
    async with running_node() as node, trio.open_nursery() as nursery:
        node.gate.shut()
        for command in (large, large, large, Publish("chat", (b"1",))):
            nursery.start_soon(node.replica.propose, command)
            await trio.sleep(0.1)
        node.gate.open()
        await trio.sleep(0.3)
        assert node.replica.state.seq == 2, "the disks are the small one's for 0.4 s"
        await trio.sleep(0.2)
        assert node.replica.state.seq == 4, "nobody else is there: no pause any more"
