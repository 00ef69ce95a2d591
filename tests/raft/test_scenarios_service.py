"""RAFT.md, scenarios 43 to 45, 47 and 48, as far as they are the core's."""

from __future__ import annotations

import math
import random

import pytest

from repl_broker.raft.core import (
    Core,
    CoreOptions,
    PartReceived,
    Persisted,
    Propose,
    Read,
    Refusal,
    Role,
)
from repl_broker.raft.log import Member, Membership, SnapshotMark
from repl_broker.raft.rpc import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    TimeoutNow,
    Vote,
)
from tests.raft.cluster import Cluster


def led(size: int = 3, *, learners: int = 0) -> Cluster:
    cluster = Cluster(size, learners=learners)
    cluster.elect("n1", *[f"n{i}" for i in range(1, size + 1)])
    return cluster


def test_leadership_goes_to_a_current_voter_at_once() -> None:
    """RAFT.md scenario 43; dissertation §3.10: no timeout passes."""
    cluster = led()
    before = cluster.now
    assert cluster.transfer("n1", "n3") in cluster.taken
    cluster.deliver()
    assert cluster.leaders() == ["n3"]
    assert cluster.now == before
    assert {core.term for core in cluster.cores.values()} == {2}


def test_leadership_goes_to_a_lagging_voter_once_it_has_all() -> None:
    """RAFT.md scenario 43: until then proposals are refused, and none is lost."""
    cluster = led()
    for _ in range(3):
        cluster.propose("n1")
        cluster.deliver_only("n1", "n2")
    cluster.transfer("n1", "n3")
    assert cluster.fly(TimeoutNow) == []
    token = cluster.propose("n1")
    assert cluster.refused == {token: Refusal.BUSY}
    cluster.heartbeat("n1")
    assert cluster.leaders() == ["n3"]
    assert cluster["n3"].committed_index == 5


def test_a_transfer_to_a_dead_voter_ends_and_the_leader_serves_on() -> None:
    """RAFT.md scenario 43: within an election timeout."""
    cluster = led()
    cluster.propose("n1")
    cluster.deliver_only("n1", "n2")
    cluster.transfer("n1", "n3")
    cluster.advance(0.9, "n1", "n2")
    assert cluster["n1"].transfer_target == "n3"
    cluster.advance(0.2, "n1", "n2")
    assert cluster["n1"].transfer_target is None
    assert cluster.leaders() == ["n1"]
    assert cluster.propose("n1") in cluster.taken


def test_the_loss_of_the_last_word_costs_a_timeout_only() -> None:
    """RAFT.md scenario 43."""
    cluster = led()
    cluster.transfer("n1", "n3")
    assert len(cluster.fly(TimeoutNow)) == 1
    cluster.advance(1.2)
    assert cluster.leaders() == ["n1"]
    assert cluster.propose("n1") in cluster.taken


def test_a_transfer_to_oneself_is_done_already() -> None:
    """RAFT.md scenario 43."""
    cluster = led()
    token = cluster.transfer("n1", "n1")
    assert token in cluster.taken
    assert cluster["n1"].transfer_target is None
    assert cluster.flying == []


@pytest.mark.parametrize("target", ["n4", "n9"])
def test_leadership_does_not_go_to_learners_and_strangers(target: str) -> None:
    """RAFT.md scenario 43."""
    cluster = led(learners=1)
    token = cluster.transfer("n1", target)
    assert cluster.refused == {token: Refusal.NOT_A_VOTER}


def test_of_two_transfers_the_second_is_refused_unless_it_is_the_same() -> None:
    """RAFT.md scenario 43."""
    cluster = led()
    cluster.propose("n1")
    cluster.fly(Append)
    cluster.transfer("n1", "n2")
    again, other = cluster.transfer("n1", "n2"), cluster.transfer("n1", "n3")
    assert again in cluster.taken
    assert cluster.refused == {other: Refusal.BUSY}
    assert cluster["n1"].transfer_target == "n2"


def test_a_follower_hands_nothing_over() -> None:
    """RAFT.md scenario 43."""
    cluster = led()
    token = cluster.transfer("n2", "n3")
    assert cluster.refused == {token: Refusal.NOT_LEADER}


def test_the_vote_of_a_transfer_overrides_stickiness_and_no_other_does() -> None:
    """RAFT.md scenarios 43, 9; dissertation §4.2.3."""
    cluster = led()
    cluster.transfer("n1", "n3")
    (last_word,) = cluster.fly(TimeoutNow)
    cluster.receive(last_word)
    votes = cluster.fly(Vote)
    assert [rpc.transfer for rpc in votes] == [True, True]
    cluster.flying += votes
    cluster.deliver()
    assert cluster.leaders() == ["n3"]


def test_a_repeated_last_word_of_an_older_term_does_nothing() -> None:
    """RAFT.md scenario 43."""
    cluster = led()
    cluster.transfer("n1", "n3")
    (last_word,) = cluster.fly(TimeoutNow)
    cluster.receive(last_word)
    cluster.receive(last_word)
    assert cluster["n3"].term == 2


def test_a_read_waits_for_answers_to_a_round_that_began_after_it() -> None:
    """RAFT.md scenario 44; dissertation §6.4; etcd raft#397."""
    cluster = led()
    old = HeartbeatReply(sender="n2", receiver="n1", term=1, round=0)
    token = cluster.read("n1")
    cluster.receive(old)
    assert cluster.readable == {}
    (heartbeat, _) = cluster.fly(Heartbeat)
    assert heartbeat.round == 1
    cluster.receive(heartbeat)
    cluster.deliver()
    assert cluster.readable == {token: 1}


def test_an_answer_in_the_middle_of_an_rpc_proves_no_leadership() -> None:
    """RAFT.md scenario 44: it says that a follower lives, and not whom it has heard."""
    cluster = led()
    cluster.heartbeat("n1")
    token = cluster.read("n1")
    cluster.fly(Heartbeat)
    for peer in ("n2", "n3"):
        cluster.step(peer, PartReceived("n1"))
        cluster.step("n1", PartReceived(peer))
    cluster.deliver()
    assert token not in cluster.readable


def test_the_reads_of_a_step_share_a_round_and_later_ones_do_not() -> None:
    """RAFT.md scenario 44; etcd ReadOnlyDuplicateRequest: each token is answered once."""
    cluster = led()
    cluster.step("n1", Read(1), Read(2))
    first = cluster.fly(Heartbeat)
    cluster.step("n1", Read(3))
    second = cluster.fly(Heartbeat)
    assert ([rpc.round for rpc in first], [rpc.round for rpc in second]) == ([1, 1], [2, 2])
    cluster.receive(first[0])
    cluster.deliver()
    assert sorted(cluster.readable) == [1, 2]
    cluster.receive(second[1])
    cluster.deliver()
    assert sorted(cluster.readable) == [1, 2, 3]


def test_a_read_on_a_new_leader_waits_for_its_first_commit() -> None:
    """RAFT.md scenario 44; Raft §8; etcd ReadOnlyForNewLeader, RedisRaft#22."""
    cluster = Cluster(logs={"n1": [1, 1], "n2": [1, 1], "n3": [1, 1]})
    cluster.now = 1.1
    cluster.step("n1")
    cluster.deliver(drop=lambda rpc: isinstance(rpc, AppendReply))
    token = cluster.read("n1")
    cluster.now += 0.1
    cluster.step("n1")
    replies = cluster.fly(Heartbeat)
    assert cluster.readable == {}
    for rpc in replies:
        cluster.receive(rpc)
    cluster.deliver()
    assert cluster.readable == {token: 3}


def test_a_change_of_leader_fails_the_reads_that_wait() -> None:
    """RAFT.md scenario 44: they are refused, not forgotten; also the early ones."""
    cluster = led()
    token = cluster.read("n1")
    cluster.fly(Heartbeat)
    cluster.receive(Heartbeat(sender="n2", receiver="n1", term=2, commit=0, round=0))
    assert cluster.refused == {token: Refusal.NOT_LEADER}


def test_a_follower_serves_no_read() -> None:
    """RAFT.md scenario 44: the driver asks the leader for the index."""
    cluster = led()
    token = cluster.read("n2")
    assert cluster.refused == {token: Refusal.NOT_LEADER}


def test_a_single_node_serves_reads_at_once() -> None:
    """RAFT.md scenario 44."""
    cluster = led(1)
    token = cluster.read("n1")
    assert cluster.readable == {token: 1}


@pytest.mark.parametrize("size", [3, 5])
def test_a_deposed_leader_that_was_paused_serves_nothing_stale(size: int) -> None:
    """RAFT.md scenario 45; etcd#20418, tikv#10011: there is no lease that a pause could outlive."""
    cluster = led(size)
    others = [name for name in cluster.cores if name != "n1"]
    cluster.elect("n2", *others)
    cluster.propose("n2", b"newer")
    cluster.deliver_only(*others)
    cluster.now += 60.0
    cluster.step("n1", Read(77), Propose(78, b"late"))
    cluster.deliver()
    assert 77 not in cluster.readable
    assert cluster.refused[77] is Refusal.NOT_LEADER
    assert cluster["n1"].role is not Role.LEADER


def test_what_is_taken_says_the_term_in_which_it_counts() -> None:
    """RAFT.md scenario 47; NRGTermFencedProposals: another entry may come in its place."""
    cluster = led()
    token = cluster.propose("n1", b"lost")
    assert cluster.taken == {token: (2, 1)}
    cluster.flying.clear()
    cluster.elect("n2", "n3")
    cluster.advance(1.0)
    assert cluster["n1"].log.term(2) == 2
    assert b"lost" not in [entry.data for entry in cluster.applied["n1"]]


def test_a_leader_whose_disk_hangs_gives_way() -> None:
    """RAFT.md scenario 48; hashicorp/raft#503: another leads within a few timeouts."""
    cluster = led()
    cluster.slow = {"n1"}
    cluster.propose("n1")
    for _ in range(4):  # appends alone would keep the others from standing
        cluster.advance(1.0)
        cluster.propose("n1")
    (leader,) = cluster.leaders()
    assert leader in ("n2", "n3")
    assert cluster.propose(leader) in cluster.taken


def test_a_node_whose_disk_hangs_does_not_stand() -> None:
    """RAFT.md scenario 48: it could not even vote for itself."""
    cluster = Cluster()
    cluster.slow = {"n2"}
    cluster.receive(Heartbeat(sender="n1", receiver="n2", term=1, commit=0, round=0))
    cluster.now += 5.0
    cluster.step("n2")
    assert cluster.fly(PreVote) == []
    cluster.persist("n2")
    cluster.now += 5.0
    cluster.step("n2")
    assert len(cluster.fly(PreVote)) == 2


def test_a_single_node_whose_disk_hangs_leads_on() -> None:
    """RAFT.md scenario 48: there is nobody to give way to."""
    cluster = led(1)
    cluster.slow = {"n1"}
    cluster.propose("n1")
    cluster.advance(5.0)
    assert cluster.leaders() == ["n1"]
    cluster.persist("n1")
    assert cluster["n1"].committed_index == 2


def test_a_follower_whose_disk_hangs_does_not_answer_heartbeats() -> None:
    """RAFT.md scenario 48; hashicorp/raft#683: a node that writes nothing does not live."""
    cluster = led()
    cluster.slow = {"n2"}
    cluster.propose("n1")
    cluster.deliver()
    cluster.now += 0.1
    cluster.step("n1")
    heard = cluster["n1"].progress["n2"].heard_at
    cluster.deliver()
    assert cluster["n1"].progress["n2"].heard_at == heard
    cluster.persist("n2")
    cluster.deliver()
    assert cluster["n1"].progress["n2"].heard_at == cluster.now


def test_a_leader_that_is_alone_sleeps_until_it_is_called() -> None:
    """A single node that nobody uses costs nothing."""
    alone = Membership((Member("n1", "", "", voter=True),))
    core = Core("n1", CoreOptions(), random.Random(1), 0.0, mark=SnapshotMark(membership=alone))
    effects = core.step(0.0)
    effects = core.step(0.1, [Persisted(effects.persist_number)])
    if effects.persist is not None:
        effects = core.step(0.2, [Persisted(effects.persist_number)])
    assert core.role is Role.LEADER
    assert effects.deadline == math.inf
    effects = core.step(100.0, [Propose(1, b"still here")])
    assert effects.taken
    assert core.role is Role.LEADER
