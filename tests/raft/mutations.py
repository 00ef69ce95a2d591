"""Bugs that shipped in mature systems, put back one at a time (RAFT.md section 2).

A simulator that finds nothing proves something only if it finds these. Each is
a subclass of Core with the bug in it; ``put_back`` lets the table of handlers
find the overridden methods. ``python -m tests.raft.mutations`` prints how many
seeds each needed, the table of docs/explanation/consensus.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from repl_broker.raft import core as core_module
from repl_broker.raft.core import (
    AddLearner,
    Core,
    Persisted,
    Promote,
    Read,
    Receive,
    Refusal,
    Remove,
    Role,
)
from repl_broker.raft.log import Entry, EntryKind
from repl_broker.raft.rpc import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    Rpc,
    Vote,
    VoteReply,
)
from tests.raft.simulator import CHANGING, Simulator, Violation, Weather

SEEDS_MAX = 1000


class CountsEntriesOfAnOldTerm(Core):
    """RAFT.md scenario 15: a majority holds it, so it is taken for committed, whatever its term."""

    def _advance_commit(self) -> None:
        index = self._majority_match()
        if index > self.committed_index:
            self._commit_as_leader(index)


class TruncatesOnAStaleAppend(Core):
    """RAFT.md scenario 16: everything behind prev_index is dropped, also what matches."""

    def _take_entries(self, entries: Sequence[Entry]) -> None:
        for entry in entries[:1]:
            if self.log.compacted_index < entry.index <= self.log.last_index:
                self._truncate_unchecked(entry.index)
        for entry in entries:
            if entry.index == self.log.last_index + 1:
                self._append_to_log(entry)

    def _on_append(self, rpc: Append) -> None:
        last = rpc.prev_index + len(rpc.entries)
        matches = self.log.term(rpc.prev_index) == rpc.prev_term
        if matches and self.log.last_index > last and self._installing is None:
            self._truncate_unchecked(last + 1)
        super()._on_append(rpc)

    def _truncate_unchecked(self, index: int) -> None:
        if index <= self.log.compacted_index:
            return
        self.log.truncate_from(index)
        self._unwritten = [entry for entry in self._unwritten if entry.index < index]
        self._truncate_from = min(index, self._truncate_from or index)
        while self._memberships[-1][0] >= index:
            self._memberships.pop()


class ForgetsItsVoteOnStepDown(Core):
    """RAFT.md scenario 2: a candidate that yields in its own term may vote again in it."""

    def _become_follower(self, term: int, leader: str | None) -> None:
        if self.role is not Role.FOLLOWER:
            self.vote = None
        super()._become_follower(term, leader)


class VotesBeforePersisting(Core):
    """RAFT.md scenario 1: what ought to wait for the disk goes at once."""

    def _hold(self, rpc: Rpc) -> None:
        if isinstance(rpc, Vote | VoteReply) and rpc.receiver != self.node_id:
            self._effects.send.append(rpc)
        else:
            super()._hold(rpc)


class AcknowledgesBeforePersisting(Core):
    """RAFT.md scenario 24: an append is acknowledged with its own fsync still to come."""

    def _hold(self, rpc: Rpc) -> None:
        if isinstance(rpc, AppendReply) and rpc.receiver != self.node_id:
            self._effects.send.append(rpc)
        else:
            super()._hold(rpc)


class LeaderCountsItselfBeforePersisting(Core):
    """RAFT.md scenario 24: etcd#14370: acknowledged with the leader's own fsync still to come."""

    def _append_as_leader(self, kind: EntryKind, data: bytes) -> Entry:
        entry = super()._append_as_leader(kind, data)
        self.progress[self.node_id].accepted(entry.index)
        self._advance_commit()
        return entry


class HasNoNoOp(Core):
    """RAFT.md scenarios 15, 44: a new leader waits for the first proposal, and reads what it thinks
    is committed."""

    def _append_as_leader(self, kind: EntryKind, data: bytes) -> Entry:
        if kind is EntryKind.NO_OP:
            self._wants_append.update(self.progress)
            return Entry(self.log.last_index, self.log.last_term, kind, data)
        return super()._append_as_leader(kind, data)

    @property
    def has_committed_in_term(self) -> bool:
        return True


class ReadsBeforeACommitInItsTerm(Core):
    """RAFT.md scenario 44: RedisRaft#22: what is committed is not known yet."""

    def _read(self, event: Read) -> None:
        if self.role is Role.LEADER:
            self._begin_read(event.token)
        else:
            super()._read(event)


class ReadsWithoutARound(Core):
    """RAFT.md scenarios 44, 45: a leader that is none any more answers from what it has."""

    def _serve_reads(self) -> None:
        while self._reads:
            token, _, index = self._reads.popleft()
            self._effects.readable.append((token, index))


class CountsAnOldRound(Core):
    """RAFT.md scenario 44: answers to heartbeats that were sent before the read was asked count."""

    def _begin_read(self, token: int) -> None:
        self._round += 1
        self._heartbeat_at = self._now
        self._reads.append((token, max(1, self._round - 1), self.committed_index))
        self.progress[self.node_id].round = self._round
        self._serve_reads()


class ChangesMembersBeforeACommitInItsTerm(Core):
    """RAFT.md scenario 37: the single-server bug of 2015: two majorities that do not meet."""

    def _objection(self, change: AddLearner | Promote | Remove) -> Refusal | None:
        with patch.object(type(self), "has_committed_in_term", True):
            return super()._objection(change)


class ChangesManyMembersAtOnce(Core):
    """RAFT.md scenarios 37, 38: NATS#7545: majorities of what is and of what will be need not
    meet."""

    def _objection(self, change: AddLearner | Promote | Remove) -> Refusal | None:
        with patch.object(self, "_memberships", [(0, self.membership)]):
            return super()._objection(change)


class KeepsATruncatedMembership(Core):
    """RAFT.md scenario 37: NATS#7632: the members of an entry that is gone stay in force."""

    def _truncate_log(self, index: int) -> None:
        kept = self._memberships[-1]
        super()._truncate_log(index)
        if kept[0] >= index:
            self._memberships.append((self.committed_index + 1, kept[1]))


class TakesAcknowledgementsOfAnOldTerm(Core):
    """RAFT.md scenario 19: ABA: what was acknowledged then may have been truncated since."""

    def _receive(self, event: Receive) -> None:
        rpc = event.rpc
        if isinstance(rpc, AppendReply) and rpc.term < self.term and rpc.accepted:
            if self.role is Role.LEADER and rpc.index <= self.log.last_index:
                self._on_append_reply(rpc)
        else:
            super()._receive(event)


class TakesCompletionsOfAnOldTerm(Core):
    """RAFT.md scenario 19: canonical newTermWhileAppending: a write that ends acknowledges in
    today's term."""

    def _release(self, rpc: Rpc) -> None:
        if isinstance(rpc, AppendReply) and rpc.accepted and rpc.receiver != self.node_id:
            rpc = replace(rpc, term=self.term, receiver=self.leader or rpc.receiver)
        super()._release(rpc)


class TakesVotesOfAnOldTerm(Core):
    """RAFT.md scenario 3: what was granted in an earlier election counts in this one."""

    def _receive(self, event: Receive) -> None:
        rpc = event.rpc
        if isinstance(rpc, VoteReply) and rpc.term < self.term and self.role is Role.CANDIDATE:
            self._on_vote_reply(rpc)
        else:
            super()._receive(event)


class VotesForAnyLog(Core):
    """RAFT.md scenario 4: the candidate's log is not compared."""

    def _on_vote(self, rpc: Vote) -> None:
        super()._on_vote(replace(rpc, last_term=1 << 60))

    def _on_pre_vote(self, rpc: PreVote) -> None:
        super()._on_pre_vote(replace(rpc, last_term=1 << 60))


class ComparesLogsByLength(Core):
    """RAFT.md scenario 4: the longer log wins, whatever its last term."""

    def _on_vote(self, rpc: Vote) -> None:
        super()._on_vote(self._by_length(rpc))

    def _on_pre_vote(self, rpc: PreVote) -> None:
        super()._on_pre_vote(self._by_length(rpc))

    def _by_length(self, rpc: Any) -> Any:
        longer = rpc.last_index >= self.log.last_index
        return replace(rpc, last_term=1 << 60 if longer else -1)


class CommitsWhatItHasNotVerified(Core):
    """RAFT.md scenario 17: a follower takes the leader's commit index, up to the end of its own
    log."""

    def _on_append(self, rpc: Append) -> None:
        super()._on_append(rpc)
        if self._installing is None:
            self._commit_to(min(rpc.commit, self.log.last_index))


class CommitsPastTheVerified(Core):
    """RAFT.md scenario 17: a heartbeat tells the commit index to a follower whose log is not known
    to match."""

    def _send_heartbeats(self) -> None:
        before = len(self._effects.send)
        super()._send_heartbeats()
        self._effects.send[before:] = [
            replace(rpc, commit=self.committed_index) if isinstance(rpc, Heartbeat) else rpc
            for rpc in self._effects.send[before:]
        ]


class AppendsWithoutTheCheck(Core):
    """RAFT.md scenario 14: prev_term is not compared."""

    def _on_append(self, rpc: Append) -> None:
        known = self.log.term(rpc.prev_index)
        super()._on_append(rpc if known is None else replace(rpc, prev_term=known))


class HasNoPreVote(Core):
    """RAFT.md scenarios 8, 9: a node that was cut off deposes a healthy leader when it is back."""

    def _count_pre_votes(self) -> None:
        self._stand()

    def _receive(self, event: Receive) -> None:
        rpc = event.rpc
        if isinstance(rpc, Vote):  # no stickiness either
            event = Receive(replace(rpc, transfer=True))
        super()._receive(event)


class CampaignsWhileInstalling(Core):
    """canonical snapshotBlocksCandidate."""

    def _may_stand(self) -> bool:
        with patch.object(self, "_installing", None):
            return super()._may_stand()


class KeepsAConflictingLogBehindASnapshot(Core):
    """RAFT.md scenario 32: openraft t31: entries of another history stay behind the installed
    snapshot."""

    def _snapshot_installed(self, event: core_module.SnapshotInstalled) -> None:
        kept = [
            replace(entry)
            for entry in self.log.slice(self.log.first_index, self.log.last_index)
            if entry.index > event.mark.index
        ]
        super()._snapshot_installed(event)
        for entry in kept:
            self._append_to_log(entry)


class NeverAsksAgain(Core):
    """RAFT.md scenario 20: this core's own first bug: a lost append stayed lost."""

    def _on_heartbeat_reply(self, rpc: HeartbeatReply) -> None:
        with patch.object(self, "_ask", lambda peer, progress: None):
            super()._on_heartbeat_reply(rpc)


class BarsARemovedLeader(Core):
    """RAFT.md scenario 39: this core's own second bug: removal not committed, and nobody else can
    win."""

    def _may_stand(self) -> bool:
        return super()._may_stand() and self.node_id in self.membership.voters


class IgnoresPersistedOrder(Core):
    """RAFT.md scenario 24: a completed write releases what waits for later ones, too."""

    def _persisted(self, event: Persisted) -> None:
        last = self._write_number
        super()._persisted(Persisted(max(event.number, last)))


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug, where it was seen, and how to have it."""

    core_class: type[Core]
    seen_in: str
    seed: int | None = None  # the first that shows it; None: not among the first SEEDS_MAX
    ignore_write_errors: bool = False
    weather: Weather | None = None  # drawn by default
    nodes: int | None = None

    @property
    def name(self) -> str:
        if self.ignore_write_errors:
            return "IgnoresWriteErrors"
        return self.core_class.__name__


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(CountsEntriesOfAnOldTerm, "figure 8; NATS#7955, canonical#336", 51),
    Mutation(TruncatesOnAStaleAppend, "async-raft, PySyncObj, NATS#7424", 0),
    Mutation(ForgetsItsVoteOnStepDown, "NATS#7698, CCF#8094", 37),
    Mutation(VotesBeforePersisting, "sofa-jraft#1241, PySyncObj#84", 0),
    Mutation(AcknowledgesBeforePersisting, "Jepsen NATS 2.12.1, Redpanda", 0),
    Mutation(LeaderCountsItselfBeforePersisting, "etcd#14370", 0),
    Mutation(IgnoresPersistedOrder, "etcd#6378", 0),
    Mutation(Core, "fsyncgate; NATS#8290", 4, ignore_write_errors=True),
    Mutation(HasNoNoOp, "RedisRaft#22", 0),
    Mutation(ReadsBeforeACommitInItsTerm, "RedisRaft#22", 4),
    Mutation(ReadsWithoutARound, "etcd#20418", 150),
    Mutation(CountsAnOldRound, "etcd raft#397", 413),
    Mutation(
        ChangesMembersBeforeACommitInItsTerm,
        "the 2015 bug; copycat#23",
        66,
        weather=CHANGING,
        nodes=4,
    ),
    Mutation(ChangesManyMembersAtOnce, "NATS#7545", 421),
    Mutation(KeepsATruncatedMembership, "NATS#7632", 8),
    Mutation(TakesAcknowledgementsOfAnOldTerm, "etcd append_aba_race", 5078),
    Mutation(TakesCompletionsOfAnOldTerm, "canonical newTermWhileAppending", 976),
    Mutation(TakesVotesOfAnOldTerm, "NRGRemovedPeerVoteDoesNotElectLeader", 348),
    Mutation(VotesForAnyLog, "Raft §5.4.1", 1),
    Mutation(ComparesLogsByLength, "Raft §5.4.1", 4),
    Mutation(CommitsWhatItHasNotVerified, "Raft §5.3", 4),
    Mutation(CommitsPastTheVerified, "Raft §5.3", 0),
    Mutation(AppendsWithoutTheCheck, "Raft §5.3", 4),
    Mutation(KeepsAConflictingLogBehindASnapshot, "openraft t31, t33", 0),
    Mutation(HasNoPreVote, "etcd DisruptiveFollowerPreVote", 19),
    Mutation(CampaignsWhileInstalling, "canonical snapshotBlocksCandidate"),
    Mutation(NeverAsksAgain, "this core, seed 18", 2),
    Mutation(BarsARemovedLeader, "this core, seed 53", 174),
)


@contextmanager
def put_back(mutation: Mutation) -> Iterator[None]:
    """Let the tables find the methods that the mutation overrides."""
    tables = (core_module._EVENTS, core_module._HANDLERS)
    changed = [
        {key: getattr(mutation.core_class, handler.__name__) for key, handler in table.items()}
        for table in tables
    ]
    with patch.dict(tables[0], changed[0]), patch.dict(tables[1], changed[1]):
        yield


def seeds_needed(mutation: Mutation, seeds: Sequence[int]) -> tuple[int, str] | None:
    """How many of the seeds until it was caught, and by what; None when it was not."""
    with put_back(mutation):
        for count, seed in enumerate(seeds, 1):
            simulator = Simulator(
                seed,
                mutation.nodes,
                weather=mutation.weather,
                core_class=mutation.core_class,
                ignore_write_errors=mutation.ignore_write_errors,
            )
            try:
                simulator.run()
            except Violation as violation:
                return count, str(violation).splitlines()[0]
    return None


def main() -> int:
    names = set(sys.argv[1:])
    print("| Bug put back | Seen in | Seeds needed | Caught by |\n|---|---|---|---|")  # noqa: T201
    missed = 0
    for mutation in MUTATIONS:
        if names and mutation.name not in names:
            continue
        found = seeds_needed(mutation, range(SEEDS_MAX))
        missed += found is None
        count, what = found or (0, "")
        print(f"| {mutation.name} | {mutation.seen_in} | {count} | {what[:150]} |", flush=True)  # noqa: T201
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
