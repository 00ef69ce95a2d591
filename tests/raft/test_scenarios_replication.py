"""RAFT.md, scenarios 14 to 24: replication and commit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl_broker.raft.core import (
    Core,
    CoreOptions,
    Persisted,
    Propose,
    Receive,
    Refusal,
    Role,
    Unreachable,
)
from repl_broker.raft.log import Entry, EntryKind, HardState, SnapshotMark
from repl_broker.raft.progress import Mode
from repl_broker.raft.rpc import Append, AppendReply, Commit, Heartbeat, HeartbeatReply, Rpc
from tests.raft.cluster import OPTIONS, Chosen, Cluster, accepted, entries_of, is_heartbeat, members

LEADER = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


def append(
    prev: tuple[int, int],
    terms: list[int],
    *,
    term: int,
    commit: int = 0,
    sender: str = "n1",
    receiver: str = "n2",
) -> Append:
    index, prev_term = prev
    return Append(
        sender=sender,
        receiver=receiver,
        term=term,
        prev_index=index,
        prev_term=prev_term,
        entries=tuple(entries_of(terms, index + 1)),
        commit=commit,
    )


@pytest.mark.parametrize("name", list(FIGURE_7))
def test_the_logs_of_figure_7_converge(name: str) -> None:
    """RAFT.md scenario 14; Raft §5.3, figure 7."""
    cluster = Cluster(
        logs={"n1": LEADER, "n2": FIGURE_7[name], "n3": LEADER}, terms={"n1": 7, "n2": 7, "n3": 7}
    )
    cluster.elect("n1", "n3")
    cluster.advance(2.0)
    assert cluster.log("n2") == cluster.log("n1") == [*LEADER, 8]
    assert cluster.applied["n2"] == cluster.applied["n1"]


def test_a_conflict_skips_whole_terms() -> None:
    """RAFT.md scenario 14; Raft §5.3: one refusal a term, not one an entry."""
    cluster = Cluster(
        logs={"n1": [1] + [4] * 50, "n2": [1] + [2] * 30 + [3] * 30, "n3": [1] + [4] * 50},
        terms={"n1": 4, "n2": 4, "n3": 4},
    )
    cluster.elect("n1", "n3")
    refusals: list[Rpc] = []

    def count(rpc: Rpc) -> bool:
        if isinstance(rpc, AppendReply) and not rpc.accepted and rpc.sender == "n2":
            refusals.append(rpc)
        return False

    cluster.heartbeat("n1")
    cluster.deliver(drop=count)
    cluster.advance(1.0, drop=count)
    assert cluster.log("n2") == cluster.log("n1")
    assert len(refusals) <= 3


def test_entries_of_an_earlier_term_are_not_committed_by_counting() -> None:
    """RAFT.md scenario 15; Raft §5.4.2, figure 8: on a majority, and still not committed."""
    cluster = Cluster(5, logs={"n1": [1, 2], "n2": [1, 2], "n5": [1, 3]}, terms={"n1": 3})
    cluster.slow = {"n1"}  # its no-op does not reach its own disk yet …
    cluster.now = 1.1
    cluster.step("n1")
    cluster.deliver(drop=lambda rpc: rpc.receiver == "n5")
    cluster.persist("n1")
    cluster.deliver(drop=lambda rpc: rpc.receiver == "n5" or isinstance(rpc, Append))
    assert (cluster["n1"].role, cluster["n1"].term) == (Role.LEADER, 4)
    for peer in ("n2", "n3"):  # … and the entry of term 2 is on three of five
        cluster.receive(accepted(2, term=4, sender=peer))
    assert cluster["n1"].committed_index == 0
    for peer in ("n2", "n3"):
        cluster.receive(accepted(3, term=4, sender=peer))
    cluster.persist("n1")
    assert cluster["n1"].committed_index == 3


def test_the_no_op_of_a_new_leader_commits_what_is_there() -> None:
    """RAFT.md scenario 15; Raft §8: without any proposal."""
    cluster = Cluster(logs={"n1": [1, 1], "n2": [1, 1], "n3": [1]})
    cluster.elect("n1")
    assert [entry.kind for entry in cluster.applied["n1"]] == [
        EntryKind.DATA,
        EntryKind.DATA,
        EntryKind.NO_OP,
    ]
    assert cluster.applied["n3"] == cluster.applied["n1"]


def test_a_delayed_append_never_truncates_what_matches() -> None:
    """RAFT.md scenario 16; Raft §5.3; async-raft and PySyncObj lost entries so."""
    cluster = Cluster()
    cluster.receive(append((0, 0), [1, 1, 1, 1], term=1))
    late = append((0, 0), [1, 1], term=1)
    effects = cluster.receive(late)
    assert effects.persist is None
    assert cluster.log("n2") == [1, 1, 1, 1]
    assert cluster.fly(AppendReply)[-1] == accepted(2, term=1)
    cluster.receive(append((1, 1), [], term=1))
    assert cluster.log("n2") == [1, 1, 1, 1]


def test_appends_may_come_in_any_order_and_twice() -> None:
    """RAFT.md scenario 16; etcd LogReplicationWithReorderedMessage."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.flying.clear()
    for _ in range(3):
        cluster.propose("n1")
    first, second, third = (rpc for rpc in cluster.fly(Append) if rpc.receiver == "n2")
    for rpc in (third, first, third, second, second, third, first):
        cluster.receive(rpc)
    assert cluster.log("n2") == [1, 1, 1, 1]
    answers = [rpc.index for rpc in cluster.fly(AppendReply) if rpc.accepted]
    assert answers == [2, 3, 3, 4, 2]


def test_a_real_conflict_truncates() -> None:
    """RAFT.md scenario 16; Raft §5.3."""
    cluster = Cluster(logs={"n2": [1, 1, 2, 2]})
    effects = cluster.receive(append((2, 1), [3], term=3))
    assert effects.persist is not None
    assert effects.persist.truncate_from == 3
    assert cluster.log("n2") == [1, 1, 3]
    assert cluster.disks["n2"].load() == entries_of([1, 1, 3])


def test_truncated_twice_in_one_step_the_write_says_so_once() -> None:
    """RAFT.md scenario 16: what was never written is not written; the lower index counts."""
    cluster = Cluster(logs={"n2": [1, 1, 2, 2]})
    effects = cluster.step(
        "n2",
        Receive(append((3, 2), [3, 3], term=3)),
        Receive(append((1, 1), [4], term=4)),
    )
    assert effects.persist is not None
    assert effects.persist.truncate_from == 2
    assert effects.persist.entries == tuple(entries_of([4], 2))
    assert cluster.disks["n2"].load() == entries_of([1, 4])
    assert cluster.fly(AppendReply) == [accepted(2, term=4)]


@pytest.mark.parametrize(("commit", "expected"), [(1, 1), (3, 3), (9, 3)])
def test_a_follower_commits_no_further_than_what_was_verified(commit: int, expected: int) -> None:
    """RAFT.md scenario 17; Raft §5.3: the log may hold more, of another history."""
    cluster = Cluster(logs={"n2": [1, 1, 1, 2, 2]})
    cluster.receive(append((2, 1), [1], term=3, commit=commit))
    assert cluster["n2"].committed_index == expected
    assert cluster.log("n2") == [1, 1, 1, 2, 2]


def test_a_commit_index_never_runs_back() -> None:
    """RAFT.md scenario 17."""
    cluster = Cluster()
    cluster.receive(append((0, 0), [1, 1, 1], term=1, commit=3))
    cluster.receive(append((0, 0), [1, 1, 1], term=1, commit=1))
    cluster.receive(Heartbeat(sender="n1", receiver="n2", term=1, commit=2, round=0))
    assert cluster["n2"].committed_index == 3
    assert len(cluster.applied["n2"]) == 3


def test_a_heartbeat_commits_no_more_than_the_follower_acknowledged() -> None:
    """RAFT.md scenario 17: the receiver's log beyond that may be of another history."""
    cluster = Cluster(logs={"n1": [1, 1, 3], "n2": [1, 1, 3], "n3": [1, 1, 2]}, terms={"n3": 3})
    cluster.elect("n1", "n2")
    cluster.now += 0.1
    cluster.step("n1")
    told = {rpc.receiver: rpc.commit for rpc in cluster.fly(Heartbeat)}
    assert told == {"n2": 4, "n3": 0}


def test_an_append_without_entries_finds_a_conflict() -> None:
    """RAFT.md scenario 18."""
    cluster = Cluster(logs={"n2": [1, 2, 2]})
    cluster.receive(append((3, 3), [], term=3))
    (reply,) = cluster.fly(AppendReply)
    assert (reply.accepted, reply.index, reply.hint_index, reply.hint_term) == (False, 3, 3, 2)
    cluster.receive(append((9, 2), [], term=3))
    (reply,) = cluster.fly(AppendReply)
    assert (reply.accepted, reply.index, reply.hint_index, reply.hint_term) == (False, 9, 3, 2)
    cluster.receive(append((3, 1), [], term=3))
    (reply,) = cluster.fly(AppendReply)
    assert (reply.accepted, reply.index, reply.hint_index, reply.hint_term) == (False, 3, 1, 1)


def test_acknowledgements_of_an_older_term_are_ignored() -> None:
    """RAFT.md scenario 19; etcd append_aba_race: what was acknowledged may be truncated."""
    cluster = Cluster()
    cluster.elect("n1")
    for _ in range(5):
        cluster.propose("n1")
    cluster.flying.clear()
    cluster.receive(append((1, 1), [2], term=2, sender="n3", receiver="n1"))
    cluster.flying.clear()
    cluster.elect("n1")
    cluster.flying.clear()
    for _ in range(3):
        cluster.propose("n1")
    cluster.flying.clear()
    match = cluster["n1"].progress["n2"].match
    assert cluster["n1"].term == 3
    cluster.receive(accepted(6, term=1))
    cluster.receive(HeartbeatReply(sender="n2", receiver="n1", term=1, round=99))
    assert cluster["n1"].progress["n2"].match == match == 3
    assert cluster["n1"].progress["n2"].round == 0


def test_a_write_that_ends_in_another_term_acknowledges_nothing() -> None:
    """RAFT.md scenario 19; canonical newTermWhileAppending."""
    cluster = Cluster()
    cluster.slow = {"n2"}
    cluster.receive(append((0, 0), [1, 1, 1], term=1))
    cluster.receive(append((0, 0), [2], term=2, sender="n3"))
    cluster.persist("n2")
    assert cluster.fly(AppendReply) == [accepted(1, term=2, receiver="n3")]


def test_an_append_is_acknowledged_when_it_is_on_disk() -> None:
    """RAFT.md scenario 24; also when it was there in memory already."""
    cluster = Cluster()
    cluster.slow = {"n2"}
    cluster.receive(append((0, 0), [1, 1], term=1))
    cluster.receive(append((0, 0), [1, 1], term=1))
    cluster.receive(append((0, 0), [1], term=1))
    cluster.receive(Heartbeat(sender="n1", receiver="n2", term=1, commit=0, round=0))
    assert cluster.flying == []
    cluster.persist("n2")
    replies = [(type(rpc), getattr(rpc, "index", None)) for rpc in cluster.flying]
    assert replies == [
        (AppendReply, 2),
        (AppendReply, 2),
        (AppendReply, 1),
        (HeartbeatReply, None),
    ]


def test_writes_end_in_order_and_each_releases_its_own() -> None:
    """RAFT.md scenario 24: the first of two writes acknowledges the first append only."""
    cluster = Cluster()
    cluster.slow = {"n2"}
    first = cluster.receive(append((0, 0), [1], term=1)).persist_number
    second = cluster.receive(append((1, 1), [1], term=1)).persist_number
    assert (first, second) == (1, 2)
    effects = cluster["n2"].step(0.0, [Persisted(1)])
    assert effects.send == [accepted(1, term=1)]
    effects = cluster["n2"].step(0.0, [Persisted(2)])
    assert effects.send == [accepted(2, term=1)]


def test_a_lost_append_is_found_at_the_next_heartbeat() -> None:
    """RAFT.md scenario 20: and the peer is level without any further proposal."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.propose("n1")
    cluster.deliver(drop=lambda rpc: rpc.receiver == "n2")
    assert len(cluster.log("n2")) == 1
    cluster.heartbeat("n1")
    assert cluster.log("n2") == cluster.log("n1")
    assert cluster["n1"].progress["n2"].mode is Mode.REPLICATE
    assert cluster["n2"].committed_index == 2


def test_a_lost_probe_is_repeated_at_the_next_heartbeat() -> None:
    """RAFT.md scenario 20; etcd heartbeat_resp_recovers_from_probing."""
    cluster = Cluster()
    cluster.elect("n1", "n3")
    assert cluster["n1"].progress["n2"].mode is Mode.PROBE
    cluster.heartbeat("n1")
    assert cluster["n1"].progress["n2"].mode is Mode.REPLICATE
    assert cluster.log("n2") == cluster.log("n1")


def test_an_unreachable_peer_is_probed() -> None:
    """RAFT.md scenario 20."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.propose("n1")
    cluster.flying.clear()
    cluster.step("n1", Unreachable("n2"), Unreachable("n9"))
    progress = cluster["n1"].progress["n2"]
    assert (progress.mode, progress.next, progress.paused) == (Mode.PROBE, 2, True)
    cluster.heartbeat("n1")
    assert (progress.mode, progress.match) == (Mode.REPLICATE, 2)


def test_an_unanswered_probe_goes_out_once() -> None:
    """RAFT.md scenario 20: not with each proposal."""
    cluster = Cluster()
    cluster.elect("n1", "n3")
    for _ in range(5):
        cluster.propose("n1")
    assert [rpc for rpc in cluster.fly(Append) if rpc.receiver == "n2"] == []


def test_an_idle_cluster_exchanges_heartbeats_only() -> None:
    """Not even one append more, once all know what is committed."""
    cluster = Cluster(5)
    cluster.elect("n1")
    cluster.propose("n1")
    cluster.deliver()
    seen: set[type[Rpc]] = set()

    def note(rpc: Rpc) -> bool:
        seen.add(type(rpc))
        return False

    cluster.advance(5.0, drop=note)
    assert seen == {Heartbeat, HeartbeatReply}


def window(**options: int) -> Cluster:
    cluster = Cluster(options=replace(Cluster().options, **options))
    cluster.elect("n1")
    return cluster


def test_the_window_is_bounded_by_count() -> None:
    """RAFT.md scenario 21; etcd replicate_pause: and it does not delay the others' commit."""
    cluster = window(window_appends_max=2)
    for _ in range(6):
        cluster.propose("n1")
        cluster.deliver_only("n1", "n3")
    progress = cluster["n1"].progress["n2"]
    assert len(progress.in_flight) == 2
    assert cluster["n1"].committed_index == 7
    cluster.heartbeat("n1")
    assert cluster.log("n2") == cluster.log("n1")
    assert (progress.in_flight_bytes, len(progress.in_flight)) == (0, 0)


def test_the_window_is_bounded_by_bytes() -> None:
    """RAFT.md scenario 21."""
    cluster = window(window_bytes_max=250, append_bytes_max=100)
    for _ in range(6):
        cluster.propose("n1", b"." * 100)
    sent = [rpc for rpc in cluster.fly(Append) if rpc.receiver == "n2"]
    assert [len(rpc.entries) for rpc in sent] == [1, 1, 1]
    for rpc in sent:
        cluster.receive(rpc)
    cluster.deliver()
    assert cluster.log("n2") == cluster.log("n1")


def test_an_append_takes_as_many_entries_as_fit_but_at_least_one() -> None:
    """RAFT.md scenario 21."""
    cluster = window(append_bytes_max=10)
    token = iter(range(1, 9))
    sizes = (4, 4, 4, 50, 4)
    cluster.step("n1", *(Propose(next(token), b"." * size) for size in sizes))
    sent = [rpc for rpc in cluster.fly(Append) if rpc.receiver == "n2"]
    assert [[len(e.data) for e in rpc.entries] for rpc in sent] == [[4, 4], [4], [50], [4]]


def test_beyond_the_cap_on_uncommitted_bytes_proposals_are_refused() -> None:
    """RAFT.md scenario 22; etcd BoundedLogGrowthWithPartition: until a majority is back."""
    cluster = window(uncommitted_bytes_max=100)
    first, second = cluster.propose("n1", b"." * 60), cluster.propose("n1", b"." * 60)
    assert first in cluster.taken
    assert cluster.refused == {second: Refusal.BUSY}
    cluster.deliver()
    assert cluster.propose("n1", b"." * 60) in cluster.taken
    cluster.deliver()
    large = cluster.propose("n1", b"." * 1000)
    assert large in cluster.taken, "a larger one goes alone"


def test_a_new_leader_counts_what_it_found_uncommitted() -> None:
    """RAFT.md scenario 22."""
    options = replace(Cluster().options, uncommitted_bytes_max=12)
    cluster = Cluster(logs={name: [1] * 5 for name in ("n1", "n2", "n3")}, options=options)
    cluster.now = 1.1
    cluster.step("n1")
    cluster.deliver(drop=lambda rpc: isinstance(rpc, AppendReply))
    early = cluster.propose("n1")
    assert cluster.refused == {early: Refusal.BUSY}
    cluster.heartbeat("n1")
    assert cluster.propose("n1") in cluster.taken


def test_entries_are_applied_once_and_in_order() -> None:
    """RAFT.md scenario 23; also when they come in one step."""
    cluster = Cluster()
    cluster.receive(append((0, 0), [1, 1, 1, 1], term=1, commit=2))
    cluster.receive(append((4, 1), [1], term=1, commit=4))
    cluster.receive(append((0, 0), [1, 1, 1, 1], term=1, commit=4))
    cluster.receive(append((5, 1), [], term=1, commit=5))
    assert cluster.applied["n2"] == entries_of([1, 1, 1, 1, 1])


def test_after_a_restart_entries_are_applied_anew_behind_the_snapshot() -> None:
    """RAFT.md scenario 23."""
    membership = members(["n1"])
    core = Core(
        "n1",
        CoreOptions(),
        Chosen(0),
        0.0,
        hard_state=HardState(3, "n1"),
        mark=SnapshotMark(2, 1, membership),
        entries=entries_of([1, 3], 3),
    )
    core.step(2.0)
    effects = core.step(2.0, [Persisted(1)])
    assert effects.persist is not None
    effects = core.step(2.0, [Persisted(2)])
    assert effects.committed == [*entries_of([1, 3], 3), Entry(5, 4, EntryKind.NO_OP, b"")]


def test_nothing_is_committed_before_a_majority_has_it_on_disk() -> None:
    """RAFT.md scenario 24."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.slow = {"n2", "n3"}
    cluster.propose("n1")
    cluster.deliver()
    assert cluster["n1"].committed_index == 1
    cluster.persist("n3")
    cluster.deliver()
    assert cluster["n1"].committed_index == 2


def test_a_single_node_commits_when_its_own_disk_has_it() -> None:
    """RAFT.md scenario 24; etcd#14370."""
    cluster = Cluster(1)
    cluster.elect("n1")
    cluster.slow = {"n1"}
    cluster.propose("n1")
    assert cluster["n1"].committed_index == 1
    cluster.persist("n1")
    assert cluster["n1"].committed_index == 2


def test_a_leader_whose_own_disk_is_slow_commits_with_the_others() -> None:
    """RAFT.md scenario 24; dissertation §10.2.1: its disk works in parallel to the sends."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.slow = {"n1"}
    cluster.propose("n1")
    assert len([rpc for rpc in cluster.flying if isinstance(rpc, Append)]) == 2
    cluster.deliver_only("n1", "n2")
    assert cluster["n1"].committed_index == 1
    cluster.heartbeat("n1")
    assert cluster["n1"].committed_index == 2
    assert cluster["n1"].progress["n1"].match == 1


def test_a_follower_accepts_proposals_for_nobody() -> None:
    """RAFT.md scenario 47: the driver forwards them, with the term."""
    cluster = Cluster()
    cluster.elect("n1")
    token = cluster.propose("n2")
    assert cluster.refused == {token: Refusal.NOT_LEADER}


def test_an_answer_to_what_nobody_asked_is_ignored() -> None:
    """RAFT.md scenarios 3, 40: a peer that is not, or is no longer, a member."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.receive(accepted(1, term=1, sender="n9"))
    cluster.receive(HeartbeatReply(sender="n9", receiver="n1", term=1, round=9))
    cluster.receive(
        Append(sender="n2", receiver="n1", term=1, prev_index=0, prev_term=0, entries=(), commit=9)
    )
    assert cluster["n1"].role is Role.LEADER
    assert cluster["n1"].committed_index == 1
    assert cluster.flying == []


def test_a_stale_refusal_does_not_lead_back_to_probing() -> None:
    """RAFT.md scenario 20: what it says is long since overtaken."""
    cluster = Cluster()
    cluster.elect("n1")
    for _ in range(4):
        cluster.propose("n1")
    cluster.deliver()
    stale = AppendReply(
        sender="n2", receiver="n1", term=1, accepted=False, index=3, hint_index=0, hint_term=0
    )
    cluster.receive(stale)
    assert cluster["n1"].progress["n2"].mode is Mode.REPLICATE
    assert [rpc for rpc in cluster.flying if not is_heartbeat(rpc)] == []


# --- the news of a commit ---

DELAY = 0.003


def news_cluster() -> Cluster:
    """Its leader has proposed nothing for a long time. Entries that come within ``DELAY`` of
    each other are many."""
    cluster = Cluster(options=replace(OPTIONS, commit_delay_seconds=DELAY))
    cluster.elect("n1")
    cluster.now += 0.05
    return cluster


def commit_one(cluster: Cluster) -> None:
    """Propose one entry, which n2 acknowledges; all else that flies stays in the air."""
    cluster.propose("n1")
    (sent,) = [rpc for rpc in cluster.fly(Append) if rpc.receiver == "n2"]
    cluster.receive(sent)
    (reply,) = cluster.fly(AppendReply)
    cluster.receive(reply)
    assert cluster["n1"].committed_index == sent.prev_index + 1


def told(cluster: Cluster) -> list[int]:
    """Of which commits n2 is told, by an RPC of its own."""
    return [rpc.index for rpc in cluster.fly(Commit) if rpc.receiver == "n2"]


def test_a_commit_is_told_at_once_where_entries_are_few() -> None:
    """Or what is published now and then would come late to who reads on another node."""
    cluster = news_cluster()
    for index in (2, 3, 4):
        commit_one(cluster)
        assert told(cluster) == [index]
        cluster.now += 2 * DELAY


def test_a_commit_is_told_with_the_next_entry_where_they_are_many() -> None:
    """An RPC of its own for each would cost as much as the entry did."""
    cluster = news_cluster()
    commit_one(cluster)
    told(cluster)
    for index in (3, 4, 5):
        cluster.now += DELAY / 2
        cluster.propose("n1")
        appends = [rpc for rpc in cluster.fly(Append) if rpc.receiver == "n2"]
        assert [rpc.commit for rpc in appends] == [index - 1]
        cluster.receive(appends[0])
        cluster.receive(cluster.fly(AppendReply)[0])
        assert cluster["n1"].committed_index == index
        assert told(cluster) == []


def test_the_last_of_many_commits_is_told_when_no_entry_has_come() -> None:
    """After the delay, at which the leader is to be woken."""
    cluster = news_cluster()
    commit_one(cluster)
    told(cluster)
    cluster.now += DELAY / 2
    commit_one(cluster)
    assert told(cluster) == []
    effects = cluster.step("n1")
    assert effects.deadline == cluster.now + DELAY
    cluster.now = effects.deadline
    cluster.step("n1")
    assert told(cluster) == [3]
    cluster.now += DELAY
    cluster.step("n1")
    assert told(cluster) == [], "once"


def test_entries_of_an_earlier_term_are_no_sign_that_many_come() -> None:
    """A node that leads again after a while has to learn it anew."""
    cluster = news_cluster()
    commit_one(cluster)
    cluster.now += DELAY / 2
    commit_one(cluster)
    cluster.deliver()
    cluster.elect("n2")
    cluster.elect("n1")
    cluster.now += 2 * DELAY
    told(cluster)
    commit_one(cluster)
    assert len(told(cluster)) == 1
