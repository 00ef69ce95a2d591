"""RAFT.md, scenarios 1 to 13: elections."""

from __future__ import annotations

import math

import pytest

from repl_broker.raft.core import Decline, PartReceived, Receive, Role, Unreachable
from repl_broker.raft.log import HardState
from repl_broker.raft.rpc import (
    AppendReply,
    Heartbeat,
    PreVote,
    PreVoteReply,
    Rpc,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.raft.cluster import Cluster, is_heartbeat


def vote(sender: str, receiver: str, term: int, *, index: int = 0, log_term: int = 0) -> Vote:
    return Vote(
        sender=sender,
        receiver=receiver,
        term=term,
        last_index=index,
        last_term=log_term,
        transfer=False,
    )


def pre_vote(
    sender: str, receiver: str, term: int, *, index: int = 0, log_term: int = 0
) -> PreVote:
    return PreVote(
        sender=sender, receiver=receiver, term=term, last_index=index, last_term=log_term
    )


def granted(sender: str, receiver: str, term: int, *, yes: bool = True) -> VoteReply:
    return VoteReply(sender=sender, receiver=receiver, term=term, granted=yes)


def heartbeat(sender: str, receiver: str, term: int, commit: int = 0) -> Heartbeat:
    return Heartbeat(sender=sender, receiver=receiver, term=term, commit=commit, round=0)


def test_a_node_votes_once_a_term_and_again_for_the_same_candidate() -> None:
    """RAFT.md scenario 1; Raft §5.2."""
    cluster = Cluster()
    assert cluster.receive(vote("n2", "n1", 1)).persist is not None
    assert cluster.fly(VoteReply) == [granted("n1", "n2", 1)]
    cluster.receive(vote("n3", "n1", 1))
    assert cluster.fly(VoteReply) == [granted("n1", "n3", 1, yes=False)]
    cluster.receive(vote("n2", "n1", 1))
    assert cluster.fly(VoteReply) == [granted("n1", "n2", 1)]


def test_a_vote_is_on_disk_before_it_is_told() -> None:
    """RAFT.md scenario 1; Raft figure 2, "updated on stable storage before responding"."""
    cluster = Cluster()
    cluster.slow = {"n1"}
    cluster.receive(vote("n2", "n1", 1))
    assert cluster.flying == []
    cluster.persist("n1")
    assert cluster.fly(VoteReply) == [granted("n1", "n2", 1)]
    assert cluster.disks["n1"].hard_state == HardState(1, "n2")


def test_a_vote_holds_across_a_crash() -> None:
    """RAFT.md scenarios 1, 2: term and vote are one write, and both are there after a crash."""
    cluster = Cluster()
    cluster.receive(vote("n2", "n1", 1))
    cluster.flying.clear()
    cluster.start("n1")
    assert (cluster["n1"].term, cluster["n1"].vote) == (1, "n2")
    cluster.receive(vote("n3", "n1", 1))
    assert cluster.fly(VoteReply) == [granted("n1", "n3", 1, yes=False)]


def test_a_vote_lost_in_a_crash_was_never_told() -> None:
    """RAFT.md scenario 1: the reply waits for the write, and dies with it."""
    cluster = Cluster()
    cluster.slow = {"n1"}
    cluster.receive(vote("n2", "n1", 1))
    cluster.start("n1")
    assert cluster.flying == []
    cluster.slow.clear()
    cluster.receive(vote("n3", "n1", 1))
    assert cluster.fly(VoteReply) == [granted("n1", "n3", 1)]


def test_a_vote_of_an_older_term_is_not_told_when_its_write_ends() -> None:
    """RAFT.md scenarios 1, 19: what was held is looked at again in the term of its release."""
    cluster = Cluster()
    cluster.slow = {"n1"}
    cluster.receive(vote("n2", "n1", 1))
    cluster.receive(vote("n3", "n1", 2))
    cluster.persist("n1")
    assert cluster.fly(VoteReply) == [granted("n1", "n3", 2)]


def test_a_candidate_asks_and_votes_for_itself_only_when_that_is_on_disk() -> None:
    """RAFT.md scenario 1; Raft §5.2."""
    cluster = Cluster()
    cluster.slow = {"n1"}
    cluster.now = 2.0
    cluster.step("n1")
    for rpc in cluster.fly(PreVote):
        cluster.receive(rpc)
    cluster.deliver()
    assert cluster["n1"].role is Role.CANDIDATE
    assert cluster.flying == []
    cluster.persist("n1")
    assert {rpc.receiver for rpc in cluster.fly(Vote)} == {"n2", "n3"}
    assert cluster["n1"].role is Role.CANDIDATE


@pytest.mark.parametrize("why", ["a leader of the term", "a transfer", "no majority"])
def test_stepping_down_never_clears_a_vote_of_the_same_term(why: str) -> None:
    """RAFT.md scenario 2; NATS#7698, CCF#8094."""
    cluster = Cluster()
    if why == "a transfer":
        cluster.receive(TimeoutNow(sender="n2", receiver="n1", term=0))
    else:
        cluster.now = 2.0
        cluster.step("n1")
        cluster.receive(PreVoteReply(sender="n2", receiver="n1", term=1, granted=True))
    cluster.flying.clear()
    assert (cluster["n1"].role, cluster["n1"].term) == (Role.CANDIDATE, 1)
    if why == "no majority":
        cluster.receive(granted("n2", "n1", 1, yes=False))
        cluster.receive(granted("n3", "n1", 1, yes=False))
    else:
        cluster.receive(heartbeat("n3", "n1", 1))
    cluster.flying.clear()
    assert (cluster["n1"].role, cluster["n1"].vote) == (Role.FOLLOWER, "n1")
    cluster.receive(vote("n2", "n1", 1, index=9, log_term=1))
    assert cluster.fly(VoteReply) == [granted("n1", "n2", 1, yes=False)]


def test_a_leader_that_steps_down_keeps_its_vote() -> None:
    """RAFT.md scenario 2."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.advance(3.0, "n1")
    assert (cluster["n1"].role, cluster["n1"].term) == (Role.PRE_CANDIDATE, 1)
    assert cluster["n1"].vote == "n1"


def test_votes_are_tallied_by_voter() -> None:
    """RAFT.md scenario 3: duplicates, older terms and those who are no voters do not count."""
    cluster = Cluster(5, learners=1, outside=1)
    cluster.now = 2.0
    cluster.step("n1")
    for peer in ("n2", "n3"):
        cluster.receive(PreVoteReply(sender=peer, receiver="n1", term=1, granted=True))
    for sender in ("n2", "n2", "n2", "n6", "n7"):  # n6 is a learner, n7 a stranger
        cluster.receive(granted(sender, "n1", 1))
    cluster.receive(granted("n3", "n1", 0))
    assert cluster["n1"].role is Role.CANDIDATE
    cluster.receive(granted("n3", "n1", 1))
    assert cluster["n1"].role is Role.LEADER


def test_pre_votes_are_tallied_by_voter_and_question() -> None:
    """RAFT.md scenarios 3, 8."""
    cluster = Cluster(5, terms={"n1": 4})
    cluster.now = 2.0
    cluster.step("n1")
    for _ in range(3):
        cluster.receive(PreVoteReply(sender="n2", receiver="n1", term=5, granted=True))
    cluster.receive(PreVoteReply(sender="n3", receiver="n1", term=9, granted=True))
    cluster.receive(PreVoteReply(sender="n4", receiver="n1", term=4, granted=False))
    assert (cluster["n1"].role, cluster["n1"].term) == (Role.PRE_CANDIDATE, 4)


@pytest.mark.parametrize(
    ("log", "candidate", "yes"),
    [
        ([1, 1, 2], (3, 2), True),
        ([1, 1, 2], (4, 2), True),
        ([1, 1, 2], (1, 3), True),  # shorter, and of a later term
        ([1, 1, 2], (2, 2), False),
        ([1, 1, 2], (9, 1), False),  # longer, and of an earlier term
        ([], (0, 0), True),
    ],
)
def test_a_log_is_up_to_date_by_its_last_term_then_by_its_length(
    log: list[int], candidate: tuple[int, int], yes: bool
) -> None:
    """RAFT.md scenario 4; Raft §5.4.1."""
    cluster = Cluster(logs={"n1": log}, terms={"n1": 5})
    index, term = candidate
    cluster.receive(pre_vote("n2", "n1", 6, index=index, log_term=term))
    cluster.receive(vote("n2", "n1", 6, index=index, log_term=term))
    assert [rpc.granted for rpc in cluster.fly(PreVoteReply)] == [yes]
    assert [rpc.granted for rpc in cluster.fly(VoteReply)] == [yes]


def test_requests_of_an_older_term_are_refused_or_dropped() -> None:
    """RAFT.md scenario 5; Raft §5.1."""
    cluster = Cluster(terms={"n1": 5})
    cluster.receive(vote("n2", "n1", 4))
    cluster.receive(TimeoutNow(sender="n2", receiver="n1", term=4))
    assert cluster.flying == []
    assert (cluster["n1"].term, cluster["n1"].role) == (5, Role.FOLLOWER)
    cluster.receive(heartbeat("n2", "n1", 4))
    cluster.receive(pre_vote("n2", "n1", 5))
    cluster.receive(pre_vote("n2", "n1", 4))
    replies = [(type(rpc), rpc.term) for rpc in cluster.flying]
    assert replies == [(AppendReply, 5), (PreVoteReply, 5), (PreVoteReply, 5)]
    assert cluster["n1"].leader is None


@pytest.mark.parametrize("role", list(Role))
def test_a_higher_term_demotes_any_role(role: Role) -> None:
    """RAFT.md scenario 5; Raft §5.1."""
    cluster = Cluster()
    cluster.now = 2.0
    if role is not Role.FOLLOWER:
        cluster.step("n1")
    if role is Role.CANDIDATE or role is Role.LEADER:
        cluster.receive(PreVoteReply(sender="n2", receiver="n1", term=1, granted=True))
    if role is Role.LEADER:
        cluster.receive(granted("n2", "n1", 1))
    assert cluster["n1"].role is role
    cluster.receive(heartbeat("n3", "n1", 7))
    assert (cluster["n1"].role, cluster["n1"].term, cluster["n1"].leader) == (
        Role.FOLLOWER,
        7,
        "n3",
    )


def test_a_leader_of_an_older_term_learns_of_the_newer_one() -> None:
    """RAFT.md scenarios 5, 8: or a node whose term is ahead could never join again."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster["n3"].term = 9
    cluster.heartbeat("n1")
    assert cluster["n1"].term == 9
    assert cluster["n1"].role is Role.FOLLOWER


def test_a_candidate_yields_to_the_leader_of_its_term_only() -> None:
    """RAFT.md scenario 6; Raft §5.2."""
    cluster = Cluster()
    cluster.now = 2.0
    cluster.step("n1")
    cluster.receive(PreVoteReply(sender="n2", receiver="n1", term=1, granted=True))
    cluster.receive(heartbeat("n3", "n1", 0))
    assert cluster["n1"].role is Role.CANDIDATE
    cluster.receive(heartbeat("n3", "n1", 1))
    assert (cluster["n1"].role, cluster["n1"].leader) == (Role.FOLLOWER, "n3")


@pytest.mark.parametrize("size", [3, 5])
def test_split_votes_are_resolved_by_waiting_differently_long(size: int) -> None:
    """RAFT.md scenario 7; Raft §5.2: all stand at once, then the shortest wait wins."""
    cluster = Cluster(size)
    names = sorted(cluster.cores)
    for name in names:
        cluster.receive(TimeoutNow(sender="n9", receiver=name, term=0))
    assert {core.role for core in cluster.cores.values()} == {Role.CANDIDATE}
    cluster.deliver()
    assert cluster.leaders() == []
    cluster.advance(4.0)
    assert cluster.leaders() == ["n1"]
    assert cluster["n1"].term == 2


def test_waits_are_drawn_anew_between_one_and_two_timeouts() -> None:
    """RAFT.md scenario 7; Raft §9.3."""
    cluster = Cluster()
    deadlines = []
    for fraction in (0.0, 0.25, 1.0):
        cluster._random["n1"].fraction = fraction
        cluster.receive(heartbeat("n2", "n1", 1))
        deadlines.append(cluster.step("n1").deadline - cluster.now)
    assert deadlines == [1.0, 1.25, 2.0]


def test_a_node_that_declines_stands_only_after_the_others_had_their_time() -> None:
    """Its clock is off, as whoever drives it says; with nobody else to lead, it leads."""
    cluster = Cluster()
    cluster.step("n1", Decline(declines=True))
    assert cluster.step("n1").deadline == 4.0
    cluster.advance(2.0)
    assert cluster.leaders() == ["n2"]
    cluster.step("n1", Decline(declines=False))
    assert cluster.step("n1").deadline <= cluster.now + 2.0

    cluster = Cluster()
    cluster.step("n1", Decline(declines=True))
    cluster.receive(heartbeat("n2", "n1", 1))
    cluster.step("n1", Unreachable("n2"))
    assert cluster.step("n1").deadline > 3.0  # it is in no hurry either when its leader is gone
    cluster.advance(10.0, drop=lambda rpc: isinstance(rpc, PreVote) and rpc.sender != "n1")
    assert cluster.leaders() == ["n1"]


def test_a_node_that_is_alone_cannot_decline() -> None:
    cluster = Cluster(1)
    cluster.step("n1", Decline(declines=True))
    cluster.advance(2.0)
    assert cluster.leaders() == ["n1"]


def test_a_pre_vote_changes_nothing() -> None:
    """RAFT.md scenario 8; dissertation §9.6."""
    cluster = Cluster()
    before = cluster.step("n1").deadline
    effects = cluster.receive(pre_vote("n2", "n1", 7))
    assert [rpc.granted for rpc in cluster.fly(PreVoteReply)] == [True]
    assert effects.persist is None
    assert effects.deadline == before
    assert (cluster["n1"].term, cluster["n1"].vote) == (0, None)


def test_a_stale_log_cannot_campaign() -> None:
    """RAFT.md scenario 8: its term stays where it is, so that it disturbs nobody."""
    cluster = Cluster(logs={"n1": [1], "n2": [1, 1], "n3": [1, 1]})
    cluster.now = 1.2  # only n1's wait is over
    cluster.step("n1")
    assert len(cluster.flying) == 2
    cluster.deliver()
    assert (cluster["n1"].role, cluster["n1"].term) == (Role.PRE_CANDIDATE, 1)


def test_a_pre_candidate_that_is_behind_learns_the_term() -> None:
    """RAFT.md scenario 8."""
    cluster = Cluster(terms={"n1": 1, "n2": 5, "n3": 5})
    cluster.now = 1.2
    cluster.step("n1")
    cluster.deliver()
    assert (cluster["n1"].term, cluster["n1"].role) == (5, Role.FOLLOWER)
    cluster.now = 2.5
    cluster.step("n1")
    cluster.deliver()
    assert (cluster["n1"].term, cluster["n1"].role) == (6, Role.LEADER)


def test_a_node_that_was_cut_off_does_not_depose_a_healthy_leader() -> None:
    """RAFT.md scenario 9; etcd DisruptiveFollowerPreVote."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.advance(9.0, "n1", "n2")
    for _ in range(5):  # alone
        cluster.step("n3")
        cluster.flying.clear()
        cluster.now += 0.05
    assert cluster["n3"].role is Role.PRE_CANDIDATE
    cluster.advance(5.0)
    assert cluster.leaders() == ["n1"]
    assert {core.term for core in cluster.cores.values()} == {1}


def test_a_vote_request_is_ignored_while_a_leader_is_heard() -> None:
    """RAFT.md scenario 9; dissertation §4.2.3: not even the term changes."""
    cluster = Cluster()
    cluster.elect("n1")
    for name in ("n1", "n2"):
        assert cluster.receive(vote("n3", name, 9, index=9, log_term=9)).send == []
        assert cluster[name].term == 1
        cluster.receive(pre_vote("n3", name, 9, index=9, log_term=9))
        assert [rpc.granted for rpc in cluster.fly(PreVoteReply)] == [False]
    cluster.now += 1.0
    cluster.receive(vote("n3", "n2", 9, index=9, log_term=9))
    assert [rpc.granted for rpc in cluster.fly(VoteReply)] == [True]


def test_a_leader_that_no_majority_answers_steps_down_in_time() -> None:
    """RAFT.md scenario 10; dissertation §6.2: two timeouts at most; what waits is refused."""
    cluster = Cluster()
    cluster.elect("n1")
    token = cluster.read("n1")
    cluster.advance(2.01, "n1")
    assert cluster["n1"].role is not Role.LEADER
    assert cluster["n1"].leader is None
    assert token in cluster.refused


def test_a_leader_that_a_majority_answers_stays() -> None:
    """RAFT.md scenario 10."""
    cluster = Cluster(5)
    cluster.elect("n1")
    cluster.advance(10.0, "n1", "n2", "n3")
    assert cluster.leaders() == ["n1"]


def pass_with_parts(cluster: Cluster, seconds: float, *ways: tuple[str, str]) -> None:
    """No RPC of these senders arrives as a whole, and parts of one do all the time; what
    the receivers answer arrives."""
    mute = {sender for sender, _ in ways}
    for _ in range(round(seconds / 0.2)):
        cluster.advance(0.2, drop=lambda rpc: rpc.sender in mute)
        for sender, receiver in ways:
            cluster.step(receiver, PartReceived(sender))
        cluster.deliver(drop=lambda rpc: rpc.sender in mute)


def test_nobody_stands_in_the_middle_of_what_the_leader_sends() -> None:
    """RAFT.md scenario 10: a large entry on a slow link takes longer than an election timeout,
    and heartbeats wait behind it. The leader hears that the others live."""
    cluster = Cluster()
    cluster.elect("n1")
    pass_with_parts(cluster, 10.0, ("n1", "n2"), ("n1", "n3"))
    assert cluster.leaders() == ["n1"]
    assert {core.term for core in cluster.cores.values()} == {1}


def test_a_leader_stays_in_the_middle_of_what_the_others_send() -> None:
    """RAFT.md scenario 10: what clients gave them, before which their answers wait."""
    cluster = Cluster()
    cluster.elect("n1")
    pass_with_parts(cluster, 10.0, ("n2", "n1"), ("n3", "n1"))
    assert cluster.leaders() == ["n1"]
    assert {core.term for core in cluster.cores.values()} == {1}


def test_parts_of_what_others_send_keep_no_leader() -> None:
    """RAFT.md scenario 10: neither one who is gone, nor one who was followed before."""
    cluster = Cluster()
    cluster.elect("n1")
    for _ in range(20):
        cluster.advance(0.2, "n2", "n3")
        for sender, receiver in (("n2", "n3"), ("n3", "n2")):
            cluster.step(receiver, PartReceived(sender))
    (new,) = {*cluster.leaders()} - {"n1"}
    for _ in range(20):
        cluster.advance(0.2, drop=lambda rpc: rpc.sender == new)
        for other in {"n2", "n3"} - {new}:
            cluster.step(other, PartReceived("n1"))
    assert cluster.leaders() != [new]


def test_parts_of_what_a_leader_has_left_behind_keep_no_one_waiting() -> None:
    """RAFT.md scenario 10: its process has ended, and the kernel still sends."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.step("n2", Unreachable("n1"))
    for _ in range(4):
        cluster.now += 0.1
        cluster.step("n2", PartReceived("n1"))
    assert cluster["n2"].role is Role.PRE_CANDIDATE


@pytest.mark.parametrize(
    "cut",
    [
        {("n1", "n2"), ("n1", "n3")},  # the leader is mute
        {("n2", "n1"), ("n3", "n1")},  # the leader is deaf
        {("n1", "n3")},  # one does not hear it
        {("n3", "n1")},  # one is not heard by it
        {("n1", "n3"), ("n3", "n1")},  # a chain, the leader at its end
        {("n2", "n3"), ("n3", "n2")},  # a chain, the leader in the middle
    ],
)
def test_partial_connectivity_reaches_a_stable_leader(cut: set[tuple[str, str]]) -> None:
    """RAFT.md scenario 11; openraft t14_one_way_isolation."""
    cluster = Cluster()
    cluster.elect("n1")

    def lost(rpc: Rpc) -> bool:
        return (rpc.sender, rpc.receiver) in cut

    cluster.advance(12.0, drop=lost)
    (leader,) = cluster.leaders()
    term = cluster[leader].term
    cluster.propose(leader, b"served")
    cluster.advance(10.0, drop=lost)
    assert cluster.leaders() == [leader]
    assert cluster[leader].term == term
    assert cluster.applied[leader][-1].data == b"served"


def test_a_single_voter_leads_again_after_a_restart() -> None:
    """RAFT.md scenario 12."""
    cluster = Cluster(1)
    cluster.advance(2.0)
    cluster.propose("n1", b"kept")
    cluster.start("n1")
    cluster.advance(2.5)
    assert (cluster.leaders(), cluster["n1"].term) == (["n1"], 2)
    assert [entry.data for entry in cluster.applied["n1"]] == [b"", b"kept", b""]


def test_learners_and_strangers_never_campaign() -> None:
    """RAFT.md scenario 12."""
    cluster = Cluster(1, learners=1, outside=1)
    for name in ("n2", "n3"):
        cluster.now += 10.0
        assert cluster.step(name).send == []
        cluster.receive(TimeoutNow(sender="n1", receiver=name, term=0))
        assert cluster[name].role is Role.FOLLOWER
    assert cluster.flying == []


def test_a_learner_that_is_asked_for_its_vote_gives_it() -> None:
    """RAFT.md scenario 12; etcd campaign_learner_must_vote: promoted, it may not know it yet."""
    cluster = Cluster(3, learners=1)
    cluster.receive(vote("n1", "n4", 1))
    assert cluster.fly(VoteReply) == [granted("n4", "n1", 1)]


def test_a_learner_forgets_a_leader_that_it_does_not_hear() -> None:
    """RAFT.md scenario 12: what it is asked must not be forwarded to the dead."""
    cluster = Cluster(3, learners=1)
    cluster.elect("n1")
    assert cluster["n4"].leader == "n1"
    cluster.now += 3.0
    cluster.step("n4")
    assert cluster["n4"].leader is None


def test_after_a_restart_of_all_with_staggered_logs_nothing_committed_is_lost() -> None:
    """RAFT.md scenario 13: of three logs the one without the committed entry cannot win."""
    cluster = Cluster(logs={"n1": [1], "n2": [1, 1, 1], "n3": [1, 1]})  # 2 is on a majority
    for name in cluster.cores:
        cluster.start(name)
    cluster.advance(8.0)
    (leader,) = cluster.leaders()
    assert leader in ("n2", "n3")
    for name in cluster.cores:
        assert [e.data for e in cluster.applied[name][:2]] == [b"1/1", b"2/1"]
    assert len({tuple(cluster.log(name)) for name in cluster.cores}) == 1


def test_a_paused_follower_that_finds_news_of_its_leader_does_not_stand() -> None:
    """RAFT.md scenario 9: what came in is looked at before the deadline is."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.now += 60.0
    cluster.step("n3", Receive(heartbeat("n1", "n3", 1)))
    assert cluster["n3"].role is Role.FOLLOWER


def test_an_append_keeps_a_follower_from_standing() -> None:
    """Raft §5.2: it is news of the leader like a heartbeat."""
    cluster = Cluster()
    cluster.elect("n1")
    for _ in range(10):
        cluster.now += 0.9
        cluster.propose("n1")
        cluster.deliver(drop=is_heartbeat)
        assert cluster["n2"].role is Role.FOLLOWER


def test_the_deadline_is_always_ahead() -> None:
    """Or the driver would spin. ``Cluster.step`` asserts it at each step, too."""
    cluster = Cluster(outside=1)
    for name in cluster.cores:
        for _ in range(20):
            deadline = cluster.step(name).deadline
            assert cluster.now < deadline < math.inf
            cluster.now = deadline
            assert cluster.step(name).deadline > cluster.now
    cluster.flying.clear()
