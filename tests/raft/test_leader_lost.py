"""A connection that breaks is a hint that the leader is gone: it shortens a wait, no more."""

from __future__ import annotations

from repl_broker.raft.core import Role, Unreachable
from repl_broker.raft.rpc import PreVote, PreVoteReply
from tests.raft.cluster import OPTIONS, Cluster, is_heartbeat


def led() -> Cluster:
    cluster = Cluster()
    cluster.elect("n1")
    cluster.heartbeat("n1")
    return cluster


def test_a_leader_whose_connections_all_broke_is_replaced_within_a_few_heartbeats() -> None:
    cluster = led()
    for name in ("n2", "n3"):
        cluster.step(name, Unreachable("n1"))
    cluster.advance(3 * OPTIONS.heartbeat_interval_seconds, "n2", "n3")
    assert len(cluster.leaders()) == 2, "the old one, which is cut off, and a new one"


def test_one_broken_connection_deposes_nobody() -> None:
    """RAFT.md scenario 9: the others still hear the leader, and refuse."""
    cluster = led()
    term = cluster["n1"].term
    cluster.step("n2", Unreachable("n1"))
    cluster.now += 3 * OPTIONS.heartbeat_interval_seconds
    cluster.step("n2")
    assert cluster["n2"].role is Role.PRE_CANDIDATE
    cluster.deliver(drop=lambda rpc: is_heartbeat(rpc) and rpc.receiver == "n2")
    assert cluster.leaders() == ["n1"]
    assert {core.term for core in cluster.cores.values()} == {term}


def test_a_heartbeat_clears_the_suspicion() -> None:
    cluster = led()
    cluster.step("n2", Unreachable("n1"))
    cluster.heartbeat("n1")
    cluster.now += 3 * OPTIONS.heartbeat_interval_seconds
    cluster.step("n2")
    assert cluster["n2"].role is Role.FOLLOWER
    cluster.now += 2 * OPTIONS.election_timeout_seconds
    cluster.step("n3")
    assert not any(reply.granted for reply in cluster.fly(PreVoteReply))


def test_a_broken_connection_to_another_follower_means_nothing() -> None:
    cluster = led()
    deadline = cluster.step("n2").deadline
    assert cluster.step("n2", Unreachable("n3")).deadline == deadline


def rivals() -> Cluster:
    """The leader is gone, and the time of both others is over at the same moment."""
    cluster = led()
    cluster.flying.clear()
    for name in ("n2", "n3"):
        cluster.step(name, Unreachable("n1"))
    cluster.now += 3 * OPTIONS.heartbeat_interval_seconds
    for name in ("n2", "n3"):
        cluster.step(name)
        assert cluster[name].role is Role.PRE_CANDIDATE
    return cluster


def test_two_whose_time_is_over_together_do_not_split_the_vote() -> None:
    """Each hears the other's question before it has an answer to its own."""
    cluster = rivals()
    for question in cluster.fly(PreVote):
        if question.receiver != "n1":
            cluster.receive(question)
    assert {(reply.sender, reply.granted) for reply in cluster.fly(PreVoteReply)} == {
        ("n2", False),
        ("n3", True),
    }


def test_one_of_two_rivals_leads_at_once() -> None:
    cluster = rivals()
    term = cluster["n1"].term
    cluster.deliver(drop=lambda rpc: "n1" in (rpc.sender, rpc.receiver))
    assert cluster["n2"].role is Role.LEADER
    assert cluster["n2"].term == term + 1


def test_who_asked_in_vain_keeps_another_from_standing_for_a_moment_only() -> None:
    """Or one that nobody hears could do so for ever."""
    cluster = rivals()
    cluster.flying.clear()  # nobody heard them
    cluster.now += OPTIONS.heartbeat_interval_seconds
    core = cluster["n3"]
    cluster.receive(
        PreVote(
            sender="n3",
            receiver="n2",
            term=core.term + 1,
            last_index=core.log.last_index,
            last_term=core.log.last_term,
        )
    )
    assert [reply.granted for reply in cluster.fly(PreVoteReply)] == [True]
