"""RAFT.md, scenarios 31 to 36, as far as they are the core's: snapshots and compaction."""

from __future__ import annotations

import pytest

from repl_broker.raft.core import Compact, Role, SnapshotFailed, SnapshotSent
from repl_broker.raft.log import SnapshotMark
from repl_broker.raft.progress import Mode
from repl_broker.raft.rpc import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    SnapshotReceived,
    TimeoutNow,
)
from tests.raft.cluster import Cluster, entries_of, members

THREE = members(["n1", "n2", "n3"])


def behind(*, compacted: int = 8) -> Cluster:
    """n1 leads with a log of 10 entries, compacted; n3 has missed all of it."""
    cluster = Cluster()
    cluster.elect("n1", "n2")
    for _ in range(9):
        cluster.propose("n1")
        cluster.deliver_only("n1", "n2")
    cluster.compact("n1", compacted)
    return cluster


def received(mark: SnapshotMark, *, term: int = 1, sender: str = "n1") -> SnapshotReceived:
    return SnapshotReceived(sender=sender, receiver="n2", term=term, mark=mark)


def test_a_follower_behind_the_compacted_gets_a_snapshot_then_the_log() -> None:
    """RAFT.md scenario 31; Raft §7."""
    cluster = behind()
    cluster.heartbeat("n1")
    progress = cluster["n1"].progress["n3"]
    assert (progress.mode, progress.snapshot_index) == (Mode.SNAPSHOT, 8)
    cluster.send_snapshot("n1", "n3")
    assert progress.mode is Mode.REPLICATE
    assert (cluster["n3"].log.compacted_index, cluster["n3"].log.last_index) == (8, 10)
    assert cluster["n3"].membership == THREE
    assert [entry.index for entry in cluster.applied["n3"]] == [9, 10]


def test_one_snapshot_is_asked_for_at_a_time() -> None:
    """RAFT.md scenarios 31, 35: while it is under way the peer gets heartbeats only."""
    cluster = behind()
    cluster.heartbeat("n1")
    for _ in range(3):
        cluster.propose("n1")
        effects = cluster.step("n1")
        assert effects.snapshots == []
    assert [rpc for rpc in cluster.fly(Append) if rpc.receiver == "n3"] == []
    cluster.now += 0.1
    cluster.step("n1")
    assert "n3" in {rpc.receiver for rpc in cluster.fly(Heartbeat)}


def test_a_snapshot_that_failed_is_sent_again_once_the_peer_answers() -> None:
    """RAFT.md scenario 31; logcabin#174: and not in a loop without a pause."""
    cluster = behind()
    cluster.heartbeat("n1")
    assert cluster.step("n1", SnapshotFailed("n3")).snapshots == []
    assert cluster["n1"].progress["n3"].mode is Mode.PROBE
    answer = HeartbeatReply(sender="n3", receiver="n1", term=1, round=0)
    assert cluster.receive(answer).snapshots == ["n3"]


def test_a_snapshot_that_was_sent_and_never_installed_is_sent_again() -> None:
    """RAFT.md scenario 31: the peer crashed in between; its refusal shows it."""
    cluster = behind()
    cluster.heartbeat("n1")
    cluster.step("n1", SnapshotSent("n3"))
    cluster.start("n3")
    cluster.heartbeat("n1")
    assert cluster["n1"].progress["n3"].mode is Mode.SNAPSHOT
    cluster.send_snapshot("n1", "n3")
    assert cluster.log("n3") == [1, 1]


def test_the_lost_answer_to_a_snapshot_is_asked_for() -> None:
    """RAFT.md scenario 31: or the leader would wait for it for ever."""
    cluster = behind()
    cluster.heartbeat("n1")
    effects = cluster.receive(cluster.snapshot("n1", "n3"))
    assert effects.restore is not None
    cluster.install("n3", effects.restore)
    assert len(cluster.fly(AppendReply)) == 1  # lost
    cluster.step("n1", SnapshotSent("n3"))
    cluster.heartbeat("n1")
    assert cluster["n1"].progress["n3"].mode is Mode.REPLICATE
    assert cluster.log("n3") == [1, 1]


def test_what_is_said_of_a_snapshot_that_is_over_is_ignored() -> None:
    """RAFT.md scenario 31."""
    cluster = behind()
    cluster.step("n1", SnapshotFailed("n2"), SnapshotSent("n2"), SnapshotSent("n9"))
    assert cluster["n1"].progress["n2"].mode is Mode.REPLICATE


def test_a_peer_whose_lost_append_is_compacted_since_gets_a_snapshot() -> None:
    """RAFT.md scenarios 31, 20: what was in flight to it is gone from the leader's log."""
    cluster = Cluster()
    cluster.elect("n1")
    for _ in range(5):
        cluster.propose("n1")
        cluster.deliver_only("n1", "n2")
    cluster.compact("n1", 6)
    cluster.propose("n1")
    cluster.deliver_only("n1", "n2")
    assert cluster["n1"].progress["n3"].mode is Mode.REPLICATE
    cluster.compact("n1", 7)
    cluster.heartbeat("n1")
    assert cluster["n1"].progress["n3"].mode is Mode.SNAPSHOT


def test_a_snapshot_installed_under_one_leader_is_told_to_the_next() -> None:
    """RAFT.md scenario 31: what it holds was committed, so that any leader has it."""
    cluster = behind()
    cluster.heartbeat("n1")
    effects = cluster.receive(cluster.snapshot("n1", "n3"))
    assert effects.restore is not None
    cluster.elect("n2")
    cluster.fly(Append)
    cluster.install("n3", effects.restore)
    (answer,) = cluster.fly(AppendReply)
    assert (answer.receiver, answer.term, answer.index) == ("n2", 2, 8)
    cluster.receive(answer)
    cluster.deliver()
    assert cluster["n3"].committed_index == cluster["n2"].committed_index == 11


def test_a_snapshot_installed_without_a_leader_is_told_to_nobody() -> None:
    """RAFT.md scenario 31."""
    cluster = behind()
    cluster.heartbeat("n1")
    effects = cluster.receive(cluster.snapshot("n1", "n3"))
    cluster.now += 5.0
    cluster.step("n3")
    cluster.flying.clear()
    assert effects.restore is not None
    cluster.install("n3", effects.restore)
    assert cluster.flying == []
    assert cluster["n3"].committed_index == 8


def test_a_restart_in_the_middle_of_an_install_starts_from_what_is_on_disk() -> None:
    """RAFT.md scenarios 31, 33: before or after it, never in between."""
    cluster = behind()
    cluster.heartbeat("n1")
    cluster.receive(cluster.snapshot("n1", "n3"))
    cluster.start("n3")
    assert cluster["n3"].log.last_index == 0
    cluster.step("n1", SnapshotFailed("n3"))
    cluster.heartbeat("n1")
    cluster.send_snapshot("n1", "n3")
    cluster.start("n3")
    assert (cluster["n3"].committed_index, cluster["n3"].log.last_index) == (8, 10)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_stale_snapshot_is_ignored(index: int) -> None:
    """RAFT.md scenario 32; openraft t31: and answered with what is committed here."""
    cluster = Cluster(logs={"n2": [1, 1, 1, 1]})
    commit = Append(
        sender="n1", receiver="n2", term=1, prev_index=4, prev_term=1, entries=(), commit=3
    )
    cluster.receive(commit)
    cluster.flying.clear()
    effects = cluster.receive(received(SnapshotMark(index, 1, THREE)))
    assert effects.restore is None
    assert [rpc.index for rpc in cluster.fly(AppendReply)] == [3]
    assert cluster.log("n2") == [1, 1, 1, 1]


def test_a_snapshot_of_an_older_term_is_ignored() -> None:
    """RAFT.md scenarios 32, 5: its sender hears of the newer term."""
    cluster = Cluster(terms={"n2": 5})
    effects = cluster.receive(received(SnapshotMark(9, 4, THREE), term=4))
    assert effects.restore is None
    assert [(rpc.term, rpc.accepted) for rpc in cluster.fly(AppendReply)] == [(5, False)]


def test_a_matching_suffix_is_kept() -> None:
    """RAFT.md scenario 32; Raft §7, "retains log entries following it": nothing is installed."""
    cluster = Cluster(logs={"n2": [1, 1, 1, 1]})
    effects = cluster.receive(received(SnapshotMark(2, 1, THREE)))
    assert effects.restore is None
    assert [entry.index for entry in cluster.applied["n2"]] == [1, 2]
    assert [rpc.index for rpc in cluster.fly(AppendReply)] == [2]
    assert cluster.log("n2") == [1, 1, 1, 1]


def test_a_conflicting_log_is_discarded_and_the_membership_restored() -> None:
    """RAFT.md scenario 32; openraft t33; Raft §7."""
    cluster = Cluster(logs={"n2": [1, 1, 1, 1, 1]})
    grown = members(["n1", "n2", "n3", "n4"])
    effects = cluster.receive(received(SnapshotMark(3, 2, grown), term=2))
    assert effects.restore == SnapshotMark(3, 2, grown)
    cluster.install("n2", effects.restore)
    core = cluster["n2"]
    assert (core.log.last_index, core.log.last_term, core.committed_index) == (3, 2, 3)
    assert core.membership == core.committed_membership == grown
    assert cluster.disks["n2"].load() == []


def test_while_installing_appends_and_other_snapshots_wait() -> None:
    """RAFT.md scenario 33; NRGSetupLastSnapshot: the log is being replaced."""
    cluster = Cluster()
    first = cluster.receive(received(SnapshotMark(8, 1, THREE))).restore
    assert first is not None
    assert cluster.receive(received(SnapshotMark(9, 1, THREE))).restore is None
    append = Append(
        sender="n1",
        receiver="n2",
        term=1,
        prev_index=0,
        prev_term=0,
        entries=tuple(entries_of([1])),
        commit=1,
    )
    assert cluster.receive(append).persist is None
    heartbeat = Heartbeat(sender="n1", receiver="n2", term=1, commit=8, round=3)
    effects = cluster.receive(heartbeat)
    assert effects.committed == []
    assert [type(rpc) for rpc in cluster.flying] == [HeartbeatReply]
    assert cluster["n2"].log.last_index == 0
    cluster.install("n2", first)
    assert cluster["n2"].committed_index == 8


def test_an_append_across_the_snapshots_end_is_answered_with_what_is_committed() -> None:
    """RAFT.md scenario 34: its beginning is compacted, and need not be compared."""
    cluster = Cluster()
    mark = cluster.receive(received(SnapshotMark(5, 1, THREE))).restore
    assert mark is not None
    cluster.install("n2", mark)
    cluster.flying.clear()
    append = Append(
        sender="n1",
        receiver="n2",
        term=1,
        prev_index=3,
        prev_term=1,
        entries=tuple(entries_of([1, 1, 1], 4)),
        commit=6,
    )
    cluster.receive(append)
    assert [(rpc.accepted, rpc.index) for rpc in cluster.fly(AppendReply)] == [(True, 5)]
    append = Append(
        sender="n1",
        receiver="n2",
        term=1,
        prev_index=5,
        prev_term=1,
        entries=tuple(entries_of([1], 6)),
        commit=6,
    )
    cluster.receive(append)
    assert cluster["n2"].committed_index == 6


def test_a_conflict_below_the_compacted_ends_in_a_snapshot() -> None:
    """RAFT.md scenario 34: hints are capped by what the leader still has."""
    cluster = Cluster(
        logs={"n1": [1, 3, 3, 3], "n2": [1, 3, 3, 3], "n3": [1, 2, 2, 2]}, terms={"n3": 3}
    )
    cluster.elect("n1", "n2")
    cluster.compact("n1", 3)
    cluster.heartbeat("n1")
    assert cluster["n1"].progress["n3"].mode is Mode.SNAPSHOT
    cluster.send_snapshot("n1", "n3")
    assert cluster["n3"].log.last_index == cluster["n1"].log.last_index


def test_while_a_snapshot_is_under_way_the_others_are_served() -> None:
    """RAFT.md scenario 35; openraft t35: building and sending take as long as they take."""
    cluster = behind()
    cluster.heartbeat("n1")
    assert cluster["n1"].progress["n3"].mode is Mode.SNAPSHOT
    for number in range(30):  # six times an election timeout
        token = cluster.propose("n1", b"%d" % number)
        cluster.deliver_only("n1", "n2")
        assert cluster.applied["n1"][-1].index == cluster.taken[token][0]
        cluster.now += 0.2
        cluster.step("n1")
        assert {rpc.receiver for rpc in cluster.flying if isinstance(rpc, Heartbeat)} == {
            "n2",
            "n3",
        }
        cluster.deliver(drop=lambda rpc: isinstance(rpc, Append) and rpc.receiver == "n3")
    assert cluster.leaders() == ["n1"]
    assert cluster["n3"].role is Role.FOLLOWER, "it hears heartbeats"
    cluster.send_snapshot("n1", "n3")
    assert cluster.log("n3") == [1] * (cluster["n1"].log.last_index - 8)


def test_a_snapshot_that_is_saved_late_compacts_what_it_covers_only() -> None:
    """RAFT.md scenario 35: appends and applying went on while it was written."""
    cluster = Cluster()
    cluster.elect("n1")
    for _ in range(9):
        cluster.propose("n1")
        cluster.deliver()
    cluster.compact("n1", 4)
    core = cluster["n1"]
    assert (core.log.compacted_index, core.committed_index, core.log.last_index) == (4, 10, 10)
    assert [entry.index for entry in cluster.applied["n1"]] == list(range(1, 11))


def test_only_what_was_handed_out_is_compacted() -> None:
    """RAFT.md, the end of section 1: ``compacted <= snapshot <= applied``."""
    cluster = Cluster()
    cluster.elect("n1")
    cluster.slow = {"n1", "n2"}
    cluster.propose("n1")
    cluster.step("n1", Compact(99))
    assert cluster["n1"].log.compacted_index == 1
    cluster.step("n1", Compact(1))
    assert (cluster["n1"].log.compacted_index, cluster["n1"].log.last_index) == (1, 2)
    assert cluster["n1"].membership == THREE


def test_nobody_stands_while_it_installs() -> None:
    """RAFT.md scenario 36; canonical snapshotBlocksCandidate."""
    cluster = Cluster()
    mark = cluster.receive(received(SnapshotMark(5, 1, THREE))).restore
    for _ in range(3):
        cluster.now += 5.0
        cluster.step("n2")
    cluster.receive(TimeoutNow(sender="n1", receiver="n2", term=1))
    assert cluster["n2"].role is Role.FOLLOWER
    assert cluster.fly(PreVote) == []
    assert mark is not None
    cluster.install("n2", mark)
    cluster.now += 5.0
    cluster.step("n2")
    assert cluster["n2"].role is Role.PRE_CANDIDATE
