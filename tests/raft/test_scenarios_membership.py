"""RAFT.md, scenarios 37 to 40 and 42: membership. 38 is about joint consensus, which this
core does not need: one server comes or goes at a time. 41 is the handshake's."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from typing import get_args

import pytest

from repl_broker.raft.core import (
    AddLearner,
    MembershipChange,
    Promote,
    Refusal,
    Remove,
    Role,
    Unreachable,
    UpdateMember,
)
from repl_broker.raft.log import Entry, EntryKind, Membership
from repl_broker.raft.rpc import Append, AppendReply, HeartbeatReply, PreVote, TimeoutNow, VoteReply
from tests.raft.cluster import Cluster, accepted, entries_of, member, members


def grown(size: int = 1) -> Cluster:
    """A cluster of so many; one more node is there and gets added."""
    cluster = Cluster(size, outside=1)
    cluster.elect("n1")
    return cluster


def membership_append(
    index: int, terms: tuple[int, int], voters: list[str], *, sender: str = "n1"
) -> Append:
    prev_term, term = terms
    entry = Entry(index, term, EntryKind.MEMBERSHIP, members(voters).encode())
    return Append(
        sender=sender,
        receiver="n2",
        term=term,
        prev_index=index - 1,
        prev_term=prev_term,
        entries=(entry,),
        commit=0,
    )


def test_a_membership_is_in_force_when_it_is_appended() -> None:
    """RAFT.md scenario 37; dissertation §4.1."""
    cluster = Cluster(logs={"n2": [1]})
    cluster.receive(membership_append(2, (1, 1), ["n1", "n2", "n3", "n4"]))
    core = cluster["n2"]
    assert core.membership == members(["n1", "n2", "n3", "n4"])
    assert core.committed_membership == members(["n1", "n2", "n3"])
    assert core.membership_at(1) == core.committed_membership
    assert core.membership_at(2) == core.membership


def test_a_truncated_membership_is_taken_back() -> None:
    """RAFT.md scenario 37; canonical recvRollbackConfiguration, NRGTruncateWALReverts."""
    cluster = Cluster(logs={"n2": [1]})
    cluster.receive(membership_append(2, (1, 1), ["n1", "n2", "n3", "n4"]))
    other = Append(
        sender="n3",
        receiver="n2",
        term=2,
        prev_index=1,
        prev_term=1,
        entries=tuple(entries_of([2], 2)),
        commit=0,
    )
    cluster.receive(other)
    assert cluster["n2"].membership == members(["n1", "n2", "n3"])


def test_a_membership_is_there_after_a_restart() -> None:
    """RAFT.md scenario 37: of the log, not of the snapshot only."""
    cluster = Cluster(logs={"n2": [1]})
    cluster.receive(membership_append(2, (1, 1), ["n1", "n2", "n3", "n4"]))
    cluster.start("n2")
    assert cluster["n2"].membership == members(["n1", "n2", "n3", "n4"])


def test_compaction_keeps_the_membership_in_force() -> None:
    """RAFT.md scenarios 37, 32."""
    cluster = grown(3)
    cluster.change("n1", AddLearner(member("n4")))
    cluster.deliver()
    cluster.propose("n1")
    cluster.deliver()
    cluster.compact("n1", 3)
    assert cluster["n1"].membership.ids == {"n1", "n2", "n3", "n4"}
    cluster.start("n1")
    assert cluster["n1"].membership.ids == {"n1", "n2", "n3", "n4"}


def test_there_is_one_change_at_a_time() -> None:
    """RAFT.md scenario 37; dissertation §4.1."""
    cluster = grown(3)
    first = cluster.change("n1", AddLearner(member("n4")))
    second = cluster.change("n1", Remove("n3"))
    assert first in cluster.taken
    assert cluster.refused == {second: Refusal.CHANGE_IN_PROGRESS}
    cluster.deliver_only("n1", "n2")
    third = cluster.change("n1", Remove("n3"))
    assert third in cluster.taken


def majorities(ids: frozenset[str]) -> list[set[str]]:
    sizes = range(len(ids) // 2 + 1, len(ids) + 1)
    return [set(some) for size in sizes for some in combinations(sorted(ids), size)]


def overlap(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether each majority of one has a node in common with each of the other."""
    return all(a & b for a, b in product(majorities(one), majorities(other)))


VOTERS_AND_LEARNERS = [(v, n) for v in range(1, 7) for n in range(3)]


@pytest.mark.parametrize(("voters", "learners"), VOTERS_AND_LEARNERS)
def test_majorities_before_and_after_any_change_have_a_node_in_common(
    voters: int, learners: int
) -> None:
    """RAFT.md scenario 38; dissertation §4.1: so no change needs two majorities at once."""
    nodes = [f"n{i}" for i in range(1, voters + learners + 2)]
    changes: list[MembershipChange] = [AddLearner(member(nodes[-1]))]
    changes += [kind(name) for name in nodes for kind in (Promote, Remove)]
    made = 0
    for change in changes:
        cluster = Cluster(voters, learners=learners, outside=1)
        cluster.elect("n1", *nodes[:voters])  # a learner that hears would be promoted
        before = cluster["n1"].membership.voters
        token = cluster.change("n1", change, forced=True)
        after = cluster["n1"].membership.voters
        assert len(before ^ after) <= 1
        assert overlap(before, after)
        made += token in cluster.taken
    assert made == 1 + learners + voters + learners - (voters == 1)


def test_two_servers_at_once_could_have_two_majorities() -> None:
    """RAFT.md scenario 38: what joint consensus is for; here nobody can ask for it."""
    three, five = members(["n1", "n2", "n3"]), members(["n1", "n2", "n3", "n4", "n5"])
    assert not overlap(three.voters, five.voters)
    assert not overlap(three.voters, members(["n1"]).voters)
    assert all(len(kind.__match_args__) == 1 for kind in get_args(MembershipChange))


@pytest.mark.parametrize(
    "second", [AddLearner(member("n5")), Promote("n4"), Remove("n3")], ids=repr
)
def test_a_second_change_is_refused_until_the_first_is_committed(
    second: MembershipChange,
) -> None:
    """RAFT.md scenario 38: by the same leader, and by the next one that has the first."""
    cluster = Cluster(3, learners=1, outside=1)
    cluster.elect("n1", "n2", "n3")
    assert cluster.change("n1", Remove("n2")) in cluster.taken
    cluster.deliver(drop=lambda rpc: rpc.receiver != "n3")
    token = cluster.change("n1", second)
    assert cluster.refused[token] is Refusal.CHANGE_IN_PROGRESS
    cluster.now += 2.0
    cluster.step("n1")
    cluster.flying.clear()  # nobody has answered it: it steps down
    cluster.step("n3")
    cluster.deliver(drop=lambda rpc: isinstance(rpc, AppendReply))
    assert cluster["n3"].role is Role.LEADER
    assert cluster["n3"].membership.voters == {"n1", "n3"}
    token = cluster.change("n3", second)
    assert cluster.refused[token] is Refusal.NOT_READY, "its term has no commit yet"
    cluster.now += 0.1
    cluster.step("n3")
    cluster.deliver_only("n1", "n3")
    assert cluster["n3"].committed_membership.voters == {"n1", "n3"}
    assert cluster.change("n3", second) in cluster.taken


def test_there_is_no_change_before_a_commit_in_the_term() -> None:
    """RAFT.md scenario 37; the single-server bug of 2015."""
    cluster = Cluster(outside=1)
    cluster.now = 1.1
    cluster.step("n1")
    cluster.deliver(drop=lambda rpc: isinstance(rpc, AppendReply))
    assert cluster["n1"].role is Role.LEADER
    early = cluster.change("n1", AddLearner(member("n4")))
    assert cluster.refused == {early: Refusal.NOT_READY}
    cluster.heartbeat("n1")
    assert cluster.change("n1", AddLearner(member("n4"))) in cluster.taken


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (AddLearner(member("n2")), Refusal.ALREADY_A_MEMBER),
        (Promote("n2"), Refusal.ALREADY_A_MEMBER),
        (Promote("n9"), Refusal.NOT_A_MEMBER),
        (Remove("n9"), Refusal.NOT_A_MEMBER),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    change: AddLearner | Promote | Remove, refusal: Refusal
) -> None:
    """RAFT.md scenario 37."""
    cluster = Cluster()
    cluster.elect("n1")
    token = cluster.change("n1", change)
    assert cluster.refused == {token: refusal}


def test_the_last_voter_is_not_removed() -> None:
    """RAFT.md scenario 37: a learner cannot go on alone."""
    cluster = grown()
    token = cluster.change("n1", Remove("n1"))
    assert cluster.refused == {token: Refusal.LAST_VOTER}


def test_a_removal_that_the_rest_could_not_commit_is_refused() -> None:
    """RAFT.md scenario 37; etcd's strict reconfiguration check: it would be in force at once."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.step("n1", Unreachable("n3"))
    token = cluster.change("n1", Remove("n2"))
    assert cluster.refused == {token: Refusal.NO_MAJORITY}
    assert cluster["n1"].membership == members(["n1", "n2", "n3"])
    token = cluster.change("n1", Remove("n3"))
    assert token in cluster.taken
    cluster.deliver_only("n1", "n2")
    token = cluster.change("n1", Remove("n2"))
    assert token in cluster.taken, "who is left is a majority of one"


def test_a_removal_is_forced_by_who_knows_better() -> None:
    """RAFT.md scenario 37."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.step("n1", Unreachable("n3"))
    token = cluster.change("n1", Remove("n2"), forced=True)
    assert token in cluster.taken


def test_a_new_leader_counts_nobody_who_has_not_answered_it() -> None:
    """RAFT.md scenario 37: it knows of nobody yet that it is away."""
    cluster = Cluster()
    cluster.elect("n1", "n1", "n2")
    assert cluster["n1"].has_committed_in_term
    token = cluster.change("n1", Remove("n2"))
    assert cluster.refused == {token: Refusal.NO_MAJORITY}


def test_a_voter_that_answered_long_ago_is_not_counted() -> None:
    """RAFT.md scenario 37: a cut is silent."""
    cluster = Cluster()
    cluster.elect("n1")
    assert cluster["n1"].answering == {"n1", "n2", "n3"}
    for _ in range(15):
        cluster.now += 0.1
        cluster.step("n1")
        cluster.deliver_only("n1", "n2")
    assert cluster["n1"].answering == {"n1", "n2"}
    token = cluster.change("n1", Remove("n2"))
    assert cluster.refused == {token: Refusal.NO_MAJORITY}


def test_a_voter_that_has_to_get_a_snapshot_first_is_not_counted() -> None:
    """RAFT.md scenario 37: it lives, and can acknowledge nothing for as long as that takes."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster["n1"].progress["n3"].snapshot(1)
    token = cluster.change("n1", Remove("n2"))
    assert cluster.refused == {token: Refusal.NO_MAJORITY}


@pytest.mark.parametrize(("size", "away"), [(s, a) for s in range(2, 7) for a in range(s)])
def test_no_removal_that_is_taken_leaves_those_who_answer_without_a_majority(
    size: int, away: int
) -> None:
    """RAFT.md scenario 37: whoever goes, the leader too, and however many are away."""
    for gone in range(1, size + 1):
        cluster = Cluster(size)
        cluster.elect("n1")
        silent = {f"n{size - i}" for i in range(away)} - {"n1"}
        cluster.step("n1", *map(Unreachable, sorted(silent)))
        token = cluster.change("n1", Remove(f"n{gone}"))
        left = {f"n{i}" for i in range(1, size + 1)} - {f"n{gone}"}
        may_commit = 2 * len(left - silent) > len(left)
        assert (token in cluster.taken) is may_commit


def test_only_the_leader_changes_members() -> None:
    """RAFT.md scenario 37."""
    cluster = Cluster()
    cluster.elect("n1")
    token = cluster.change("n2", Remove("n3"))
    assert cluster.refused == {token: Refusal.NOT_LEADER}


def test_members_do_not_change_while_leadership_is_handed_over() -> None:
    """RAFT.md scenarios 37, 43."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.propose("n1")
    cluster.fly(Append)
    cluster.transfer("n1", "n2")
    token = cluster.change("n1", Remove("n3"))
    # The proposal before it is not committed, but no change of members is under way.
    assert cluster.refused == {token: Refusal.BUSY}


def test_a_leader_that_removes_itself_does_not_count_itself_and_steps_down() -> None:
    """RAFT.md scenario 39; etcd v1_remove_leader_stepdown; dissertation §4.2.2."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.change("n1", Remove("n1"))
    cluster.deliver_only("n1", "n2")
    assert cluster["n1"].role is Role.LEADER, "its own disk and n2's are one of two voters"
    assert cluster["n1"].committed_index == 1
    cluster.now += 0.1
    cluster.step("n1")
    cluster.deliver(drop=lambda rpc: isinstance(rpc, TimeoutNow))
    assert cluster["n1"].role is Role.FOLLOWER
    assert cluster["n1"].committed_membership == members(["n2", "n3"])
    assert cluster["n1"].leader is None


def test_a_leader_that_removed_itself_hands_over() -> None:
    """RAFT.md scenario 39: no election timeout passes without a leader."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.change("n1", Remove("n1"))
    cluster.deliver()
    (leader,) = cluster.leaders()
    assert leader in ("n2", "n3")
    assert cluster["n1"].committed_index >= 2, "it knows that it is removed"


def test_a_removed_leader_cannot_return() -> None:
    """RAFT.md scenarios 39, 9: it neither stands nor disturbs."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.change("n1", Remove("n1"))
    cluster.deliver()
    (leader,) = cluster.leaders()
    term = cluster[leader].term
    cluster.advance(10.0)
    assert cluster.leaders() == [leader]
    assert (cluster[leader].term, cluster["n1"].role) == (term, Role.FOLLOWER)


def test_a_leader_stands_again_until_its_removal_is_committed() -> None:
    """RAFT.md scenario 39; dissertation §4.2.2: its log may be the only one that can win.

    Seed 53 of the simulator: n2 had the old membership and a shorter log, n1 the
    longer log and an uncommitted membership without itself; nobody could lead."""
    cluster = Cluster(2)
    cluster.elect("n1")
    cluster.propose("n1")
    cluster.change("n1", Remove("n1"))
    cluster.flying.clear()
    cluster.start("n1")
    cluster.advance(8.0)
    assert cluster.leaders() == ["n2"]
    assert cluster["n2"].membership == members(["n2"])
    assert cluster["n1"].committed_membership == members(["n2"])


def test_after_a_restart_it_still_stands_until_its_removal_is_committed() -> None:
    """RAFT.md scenario 39. Seed 318 of the simulator (CHANGING, 3 nodes): the members that a
    restarted node knows to be committed were those from before it had joined."""
    cluster = Cluster(1, outside=1)
    cluster.receive(membership_append(1, (0, 1), ["n1", "n2"]))
    cluster.receive(membership_append(2, (1, 1), ["n1"]))
    cluster.start("n2")
    cluster.flying.clear()
    cluster.now = 5.0
    cluster.step("n2")
    assert cluster["n2"].committed_membership == members([])
    assert [rpc.receiver for rpc in cluster.fly(PreVote)] == ["n1"]


def test_a_removed_follower_learns_of_its_removal() -> None:
    """RAFT.md scenarios 9, 39: so that it can say so and stop."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.change("n1", Remove("n3"))
    cluster.deliver()
    assert cluster["n3"].committed_membership == members(["n1", "n2"])
    assert set(cluster["n1"].progress) == {"n1", "n2"}
    cluster.now += 9.0
    assert cluster.step("n3").send == []


def test_a_node_that_was_removed_while_away_disturbs_nobody() -> None:
    """RAFT.md scenarios 9, 40; hashicorp RemovePartitionedNode."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.change("n1", Remove("n3"))
    cluster.deliver_only("n1", "n2")
    assert cluster["n1"].committed_membership == members(["n1", "n2"])
    cluster.advance(10.0)
    assert cluster["n3"].role is Role.PRE_CANDIDATE
    assert cluster.leaders() == ["n1"]
    assert cluster["n1"].term == 1


def test_a_removed_voter_that_is_back_as_a_learner_does_not_stand() -> None:
    """RAFT.md scenarios 12, 40. Seed 2636 of the simulator: it had not heard that its removal was
    committed, stood, and led as a learner that nobody promotes."""
    cluster = Cluster(logs={"n2": [1]})
    cluster.receive(membership_append(2, (1, 1), ["n1", "n3"]))
    back = members(["n1", "n3"], ["n2"])
    entry = Entry(3, 1, EntryKind.MEMBERSHIP, back.encode())
    append = Append(
        sender="n1",
        receiver="n2",
        term=1,
        prev_index=2,
        prev_term=1,
        entries=(entry,),
        commit=0,
    )
    cluster.receive(append)
    cluster.flying.clear()
    cluster.now += 5.0
    cluster.step("n2")
    assert cluster["n2"].committed_membership.voters == {"n1", "n2", "n3"}
    assert (cluster["n2"].role, cluster.flying) == (Role.FOLLOWER, [])


def test_votes_and_acknowledgements_of_those_who_are_no_voters_count_for_nothing() -> None:
    """RAFT.md scenario 40; NRGDisjointMajorities."""
    cluster = Cluster(3, outside=2)
    cluster.elect("n1")
    cluster.change("n1", AddLearner(member("n4")))
    cluster.deliver_only("n1", "n2")
    cluster.propose("n1")
    cluster.fly(Append)
    for stranger in ("n4", "n5"):
        cluster.receive(accepted(3, term=1, sender=stranger))
        cluster.receive(VoteReply(sender=stranger, receiver="n1", term=1, granted=True))
    assert cluster["n1"].committed_index == 2


def test_a_new_voter_counts_from_its_promotion_on() -> None:
    """RAFT.md scenario 40: three of four are a majority, two are not."""
    cluster = Cluster(3, learners=1)
    cluster.elect("n1", "n2", "n3")
    cluster.change("n1", Promote("n4"))
    cluster.deliver_only("n1", "n2")
    assert cluster["n1"].committed_index == 1
    cluster.heartbeat("n1")
    assert cluster["n1"].committed_index == 2


def test_a_learner_is_promoted_once_it_has_caught_up() -> None:
    """RAFT.md scenario 42; dissertation §4.2.1: without any traffic but heartbeats."""
    cluster = grown(3)
    token = cluster.change("n1", AddLearner(member("n4", voter=True)))
    assert token in cluster.taken
    assert cluster["n1"].membership.learners == {"n4"}
    cluster.deliver()
    cluster.advance(1.0)
    assert cluster["n1"].committed_membership == members(["n1", "n2", "n3", "n4"])
    assert cluster["n4"].membership == cluster["n1"].membership


def test_a_newcomer_that_is_dead_is_not_promoted() -> None:
    """RAFT.md scenario 42: it slows nobody down, and can be removed."""
    cluster = grown(3)
    cluster.change("n1", AddLearner(member("n4")))
    cluster.advance(10.0, "n1", "n2", "n3")
    assert cluster["n1"].membership.learners == {"n4"}
    assert cluster["n1"].committed_index == cluster["n1"].log.last_index
    assert cluster.change("n1", Remove("n4")) in cluster.taken
    cluster.advance(1.0, "n1", "n2", "n3")
    assert cluster["n1"].committed_membership == members(["n1", "n2", "n3"])


def test_a_learner_that_needs_too_long_for_a_round_is_not_promoted() -> None:
    """RAFT.md scenario 42: its next round begins."""
    cluster = Cluster(1, learners=1)
    cluster.elect("n1", "n1")
    progress = cluster["n1"].progress["n2"]
    cluster.receive(HeartbeatReply(sender="n2", receiver="n1", term=1, round=0))
    assert (progress.catch_up_target, progress.catch_up_began) == (1, cluster.now)
    cluster.fly(Append)
    cluster.now += 1.5
    cluster.receive(accepted(1, term=1))
    assert cluster["n1"].membership.learners == {"n2"}
    assert progress.catch_up_began == cluster.now
    cluster.now += 0.1
    cluster.receive(HeartbeatReply(sender="n2", receiver="n1", term=1, round=0))
    assert cluster["n1"].membership.voters == {"n1", "n2"}


def test_a_learner_is_promoted_on_request() -> None:
    """RAFT.md scenario 42."""
    cluster = Cluster(1, learners=1)
    cluster.elect("n1", "n1")
    cluster.change("n1", Promote("n2"), forced=True)
    assert cluster["n1"].membership == members(["n1", "n2"])


def test_a_removal_that_leaves_one_voter_serves_the_reads_that_wait() -> None:
    """RAFT.md scenario 44: no answer would come any more to do it."""
    cluster = Cluster(2)
    cluster.elect("n1")
    token = cluster.read("n1")
    assert cluster.readable == {}
    cluster.change("n1", Remove("n2"))
    assert cluster.readable == {token: 1}


def test_a_pre_candidate_asks_the_voters_only() -> None:
    """RAFT.md scenario 40."""
    cluster = Cluster(3, learners=1, outside=1)
    cluster.now = 1.05
    cluster.step("n1")
    assert {rpc.receiver for rpc in cluster.fly(PreVote)} == {"n2", "n3"}


def test_a_member_that_moved_keeps_its_vote() -> None:
    """Neither majority nor votes change; so the change needs no more care than an entry."""
    cluster = grown(2)
    moved = replace(member("n2", voter=False), raft_address="elsewhere:1")
    token = cluster.change("n1", UpdateMember(moved))
    cluster.deliver()
    assert token in cluster.taken
    assert cluster["n2"].committed_membership.find("n2") == replace(moved, voter=True)


def test_who_is_no_member_cannot_move() -> None:
    cluster = grown()
    token = cluster.change("n1", UpdateMember(member("n2")))
    assert cluster.refused[token] is Refusal.NOT_A_MEMBER


def test_a_removed_incarnation_is_remembered() -> None:
    """So that its handshake can be refused, whatever it says; a new one may come."""
    cluster = grown(2)
    cluster.change("n1", UpdateMember(replace(member("n2"), incarnation="first")))
    cluster.deliver()
    cluster.change("n1", Remove("n2"))
    cluster.deliver()
    membership = cluster["n1"].committed_membership
    assert membership.ids == {"n1"}
    assert membership.removed == ("first",)
    assert Membership.decode(membership.encode()) == membership


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x92\x91\x01\x90", b"\x90"], ids=repr)
def test_what_is_not_a_membership_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a membership"):
        Membership.decode(data)
