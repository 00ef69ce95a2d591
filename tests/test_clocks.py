"""Members tell each other the time: whose clock is off is noticed, leads nobody, dates nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from repl_broker import agreement
from repl_broker.access import Access, Credentials
from repl_broker.clocks import ASK_SECONDS, GOOD_SECONDS, REQUEST
from repl_broker.command import CreateTopic, RaiseLevel, RevokeTokens
from repl_broker.errors import RequestError
from repl_broker.levels import NEWEST, TWO_CLOCKS
from repl_broker.state import Published
from repl_broker.transport import PeerRefusedError
from tests.network import Cluster, ClusterNode, running_cluster
from tests.nodes import ANYONE, Clock, Node, configured, running_node
from tests.raft.cluster import Chosen
from tests.signing import SECRET, claims, hs256
from tests.test_cluster import history, publish, seq_of
from tests.test_levels import commands_of, restarted

BOUND_MS: Final = 5000  # the default
DAY_MS: Final = 86_400_000
YEAR_MS: Final = 365 * DAY_MS
IDS: Final = ("n1", "n2", "n3")
ROUND: Final = 2 * ASK_SECONDS  # by then every node has asked every other


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def newest_ms(cluster: Cluster) -> int:
    return max(node.replica.state.time_ms for node in cluster.running.values())


# --- what is known of the members' clocks ---


async def test_each_node_shows_how_far_the_others_clocks_are_from_its_own(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        cluster.ahead_ms["n2"] = 3000
        await trio.sleep(ROUND)
        shown = {}
        for node in cluster.running.values():
            found = await node.broker.cluster(ANYONE)
            members = found["members"]
            assert isinstance(members, list)
            shown[node.id] = [round(each["clock_skew_seconds"], 1) for each in members]
        assert shown == {"n1": [0, 3, 0], "n2": [-3, 0, -3], "n3": [0, 3, 0]}
        figures = cluster["n1"].broker.statistics().clocks
        assert {peer: round(s, 1) for peer, s in figures.members} == {"n2": 3, "n3": 0}
        assert figures.own == pytest.approx(0, abs=0.1)


async def test_half_the_round_trip_is_taken_off(autojump_clock: MockClock) -> None:
    async with running_cluster() as cluster:
        cluster.network.ask_seconds["n2"] = 1.0
        await trio.sleep(ROUND + 2)
        skew = cluster["n1"].clocks.skew_seconds("n2")
        assert skew == pytest.approx(0.5, abs=0.01)  # all of it was on the way there


async def test_an_answer_that_was_long_on_its_way_or_is_old_counts_for_nothing(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        await trio.sleep(ROUND)
        assert cluster["n1"].clocks.skew_seconds("n2") == pytest.approx(0, abs=0.01)
        cluster.network.ask_seconds["n2"] = 3.0
        await trio.sleep(GOOD_SECONDS + ROUND)
        assert cluster["n1"].clocks.skew_seconds("n2") is None
        assert [peer for peer, _ in cluster["n1"].clocks.statistics().members] == ["n3"]


async def test_a_clock_that_passes_the_bound_is_one_line_on_each_node_and_its_return_another(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster() as cluster:
        await trio.sleep(ROUND)
        cluster.ahead_ms["n3"] = -4000
        await trio.sleep(4 * ROUND)
        assert not lines(caplog, "clock is off")
        cluster.ahead_ms["n3"] = -2 * DAY_MS
        await trio.sleep(4 * ROUND)
        assert len(lines(caplog, "a clock is off member=n3")) == 3
        assert len(lines(caplog, "clock is off")) == 3
        assert "ahead_seconds=-172800.0" in lines(caplog, "clock is off")[0]
        assert "NTP" in lines(caplog, "clock is off")[0]
        assert cluster["n3"].clocks.statistics().own == pytest.approx(-172_800, abs=0.1)
        caplog.set_level(logging.INFO)
        cluster.ahead_ms["n3"] = 0
        await trio.sleep(4 * ROUND)
        assert len(lines(caplog, "right again member=n3")) == 3


async def test_another_bound_counts_from_the_moment_it_is_given(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster() as cluster:
        cluster.ahead_ms["n3"] = 20_000
        for node in cluster.running.values():
            node.clocks.reload(30)
        await trio.sleep(2 * ROUND)
        assert not lines(caplog, "clock is off")
        for node in cluster.running.values():
            node.clocks.reload(10)
        await trio.sleep(2 * ROUND)
        assert len(lines(caplog, "clock is off")) == 3


@pytest.mark.parametrize(
    ("offsets", "middle", "agree"),
    [
        ([], 0, 0),
        ([7], 7, 1),
        ([0, DAY_MS], 0, 1),
        ([0, 3000, DAY_MS], 3000, 2),
        ([DAY_MS, DAY_MS + 1, 0], DAY_MS, 2),
        ([0, 4000, 8000, 12_000, 16_000], 8000, 3),
        ([-DAY_MS, 0, 4000, 8000], 4000, 3),
        ([0, 0, DAY_MS, DAY_MS], 0, 2),
    ],
)
def test_the_middle_is_the_clock_that_most_agree_with(
    offsets: list[float], middle: float, agree: int
) -> None:
    for order in (offsets, offsets[::-1]):
        assert agreement.middle(order, BOUND_MS) == (middle, agree)


# --- a leader whose clock is off ---


async def test_leadership_is_not_handed_to_a_member_whose_clock_is_off(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        wrong, right = sorted(cluster.running.keys() - {leader.id})
        cluster.ahead_ms[wrong] = -90_000
        await trio.sleep(2 * ROUND)
        for asked in (leader, cluster[right]):  # a follower passes it on
            with pytest.raises(RequestError) as refused:
                await asked.broker.move_leader(ANYONE, wrong)
            assert (refused.value.code, refused.value.status) == ("clock_off", 409)
            for words in (f"{wrong!r} is 90.0 s behind", "5 s is the most", "NTP"):
                assert words in refused.value.detail
        assert leader.replica.leads
        await leader.broker.move_leader(ANYONE, right)
        await cluster.until(lambda: cluster[right].replica.leads, "the other to lead")
        cluster.ahead_ms[wrong] = 0
        await trio.sleep(2 * ROUND)
        await cluster[right].broker.move_leader(ANYONE, wrong)
        await cluster.until(lambda: cluster[wrong].replica.leads, "the one that was off to lead")


async def test_where_no_majority_agrees_on_the_time_leadership_goes_where_it_is_asked_to(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        one, other = sorted(cluster.running.keys() - {leader.id})
        cluster.ahead_ms |= {one: -90_000, other: 90_000}
        await trio.sleep(2 * ROUND)
        await leader.broker.move_leader(ANYONE, one)
        await cluster.until(lambda: cluster[one].replica.leads, "it to lead")


async def test_a_leader_whose_clock_jumps_ahead_dates_nothing_by_it_and_hands_over(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        await leader.replica.propose(CreateTopic("chat", seconds=86_400))
        await seq_of(leader.replica, publish(b"kept"))
        cluster.ahead_ms[leader.id] = 2 * DAY_MS
        await seq_of(leader.replica, publish(b"at once"))
        assert newest_ms(cluster) <= cluster.now_ms() + BOUND_MS
        await cluster.until(lambda: not leader.replica.leads, "another to lead")
        await cluster.leader()
        await seq_of(leader.replica, publish(b"through it"))
        await trio.sleep(60)
        await cluster.converged()
        for node in cluster.running.values():
            assert await history(node.replica) == [b"kept", b"at once", b"through it"]
        assert newest_ms(cluster) <= cluster.now_ms() + BOUND_MS
        assert len(lines(caplog, "clock is off")) == 3
        assert not lines(caplog, "jumped")


async def test_a_node_that_is_started_two_days_ahead_and_made_leader_removes_nothing(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        await leader.replica.propose(CreateTopic("chat", seconds=86_400))
        await seq_of(leader.replica, publish(b"kept"))
        wrong = next(node for node in cluster.running if node != leader.id)
        cluster.kill(wrong)
        cluster.ahead_ms[wrong] = 2 * DAY_MS
        node = await cluster.start(wrong)
        await cluster.converged()
        term = leader.replica.term
        await leader.replica.transfer(wrong)
        await seq_of(node.replica, publish(b"new"))
        await trio.sleep(30)
        assert node.replica.term > term
        assert not node.replica.leads
        await cluster.leader()
        await cluster.converged()
        for each in cluster.running.values():
            assert await history(each.replica) == [b"kept", b"new"]
        assert newest_ms(cluster) <= cluster.now_ms() + BOUND_MS


async def test_a_leader_that_is_just_started_waits_with_its_entries_until_it_knows_the_time(
    autojump_clock: MockClock,
) -> None:
    """All were away for a week; the one that leads first is a year ahead."""
    async with running_cluster() as cluster:
        await seq_of(cluster["n1"].replica, publish(b"1"))
        for node_id in IDS:
            cluster.kill(node_id)
        await trio.sleep(1)  # what they sent last has come, or is lost
        cluster.clock.now_ms += 7 * DAY_MS
        cluster.ahead_ms["n2"] = YEAR_MS
        cluster.network.ask_seconds = dict.fromkeys(IDS, 0.3)
        sent = cluster.now_ms()
        async with trio.open_nursery() as nursery:
            for node_id in ("n2", "n1", "n3"):
                nursery.start_soon(cluster.start, node_id)
        node = cluster["n2"]
        node.replica._core._election_at = 0
        node.replica.turn()
        published = await node.replica.propose(publish(b"2"))
        assert isinstance(published, Published)
        assert sent - BOUND_MS <= published.time_ms <= cluster.now_ms() + BOUND_MS


async def test_a_node_whose_clock_is_off_does_not_stand_while_another_can(
    autojump_clock: MockClock,
) -> None:
    for ahead_ms in (DAY_MS, -DAY_MS):
        async with running_cluster() as cluster:
            leader = await cluster.leader()
            wrong, other = (node for node in cluster.running.values() if node is not leader)
            wrong.replica._core._random = Chosen(0)  # it would stand first
            other.replica._core._random = Chosen(1)
            cluster.ahead_ms[wrong.id] = ahead_ms
            await trio.sleep(ROUND)
            term = leader.replica.term
            cluster.kill(leader.id)
            assert await cluster.leader(other.id, wrong.id) is other
            assert other.replica.term == term + 1, "nobody has led in between"


async def test_it_stands_where_no_other_can_and_hands_over_as_soon_as_one_is_level(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        wrong, behind = (node for node in cluster.running.values() if node is not leader)
        cluster.ahead_ms[wrong.id] = YEAR_MS
        await trio.sleep(ROUND)
        cluster.cut(behind.id)
        await seq_of(leader.replica, publish(b"acknowledged"))
        cluster.kill(leader.id)
        cluster.heal()
        # It may be over within a moment: what is looked at is each change, not each moment.
        with trio.fail_after(60):
            while not wrong.replica.leads:
                await wrong.replica.news(wrong.replica.seen)
        await seq_of(wrong.replica, publish(b"2"))
        await cluster.until(lambda: behind.replica.leads, "the other to lead")
        await cluster.converged()
        assert await history(behind.replica) == [b"acknowledged", b"2"]
        assert newest_ms(cluster) <= cluster.now_ms() + BOUND_MS


async def test_with_no_other_to_lead_it_leads_on_by_their_time_and_says_so_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        await leader.replica.propose(CreateTopic("chat", seconds=86_400))
        leader.replica._best_successor = lambda avoid=(): None  # type: ignore[method-assign]
        cluster.ahead_ms[leader.id] = 2 * DAY_MS
        await trio.sleep(150)
        assert leader.replica.leads
        assert len(lines(caplog, "leads on though")) == 1
        await seq_of(leader.replica, publish(b"1"))
        assert abs(newest_ms(cluster) - cluster.now_ms()) <= BOUND_MS


# --- a time that is not certain ---


async def test_while_no_majority_agrees_time_goes_on_steadily_and_nothing_is_removed_for_its_age(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster(2) as cluster:
        leader = await cluster.leader()
        await leader.replica.propose(CreateTopic("chat", seconds=60))
        await seq_of(leader.replica, publish(b"1"))
        cluster.ahead_ms["n2"] = DAY_MS
        await trio.sleep(120)
        assert await history(leader.replica) == [b"1"]
        await seq_of(leader.replica, publish(b"other", topic="other"))
        assert abs(newest_ms(cluster) - cluster.now_ms()) <= BOUND_MS
        assert len(lines(caplog, "no majority agrees")) == 2
        cluster.ahead_ms["n2"] = 0
        await trio.sleep(30)
        assert await history(leader.replica) == []


async def test_with_members_of_an_older_version_the_own_clock_counts(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        for node in cluster.running.values():
            del node.replica.handlers[REQUEST]
            node.clocks._answers.clear()
        await trio.sleep(ROUND)
        assert leader.clocks.statistics().own is None
        assert leader.clocks.skew_seconds("n2" if leader.id != "n2" else "n3") is None
        cluster.clock.now_ms += DAY_MS
        await seq_of(leader.replica, publish(b"1"))
        assert newest_ms(cluster) >= cluster.now_ms() - BOUND_MS
        with pytest.raises(PeerRefusedError, match="no request 'time'"):
            await leader.line.call("n2" if leader.id != "n2" else "n3", REQUEST, None, seconds=1)


async def test_a_jump_that_nobody_could_prevent_is_one_line_on_every_node(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Among nodes of an older version; the first entry after it may have no command."""
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        await seq_of(leader.replica, publish(b"1"))
        for node in cluster.running.values():
            del node.replica.handlers[REQUEST]
            node.clocks._answers.clear()
        await trio.sleep(ROUND)
        cluster.ahead_ms[leader.id] = DAY_MS
        for number in range(10):
            await seq_of(leader.replica, publish(b"%d" % number))
        await cluster.converged()
        assert len(lines(caplog, "the clock has jumped ahead")) == 1
        assert len(lines(caplog, "the log's time is ahead of this node's clock")) == 2


# --- one node alone ---


async def test_a_node_that_was_away_says_how_old_its_newest_entry_is(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    async with running_node(clock=clock) as node:
        await seq_of(node.replica, publish(b"1"))
        assert not lines(caplog, "the newest entry is old")
    clock.now_ms += DAY_MS
    async with running_node(node.disk, clock) as node:
        await seq_of(node.replica, publish(b"2"))
        assert len(lines(caplog, "the newest entry is old")) == 1
        clock.now_ms += DAY_MS
        await seq_of(node.replica, publish(b"3"))
        assert len(lines(caplog, "the clock has jumped ahead")) == 1


class Judge:
    """Whether a node takes a token of ann's that was issued at some second."""

    def __init__(self, node: Node, secret: Path) -> None:
        secret.write_bytes(SECRET)
        config = configured(auth={"mode": "jwt", "secret_file": secret, "leeway_seconds": 0})
        self._clock = node.clock
        self.access = Access(config, lambda: self._clock.now_ms / 1000)
        self.access.follow(lambda: node.replica.state.revocations)

    def takes(self, subject: str, issued_ms: int) -> bool:
        now = self._clock.now_ms // 1000
        text = hs256(claims(sub=subject, iat=issued_ms // 1000, exp=now + 100))
        try:
            self.access.identify(Credentials(authorization=f"Bearer {text}"), write=False)
        except RequestError as error:
            if error.extra.get("reason") != "revoked":
                raise
            return False
        return True


async def test_a_single_nodes_clock_that_was_ahead_at_its_start_locks_nobody_out_for_long(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    clock = Clock()
    async with running_node(clock=clock) as node:
        await node.broker.revoke_tokens(ANYONE, "old")
    right_ms = clock.now_ms
    clock.now_ms += YEAR_MS
    async with running_node(node.disk, clock) as node:
        judge = Judge(node, tmp_path / "secret")
        await node.broker.revoke_tokens(ANYONE, "ann")
        await seq_of(node.replica, publish(b"1"))
        await trio.sleep(5)
        clock.now_ms = right_ms + 10_000
        await node.broker.revoke_tokens(ANYONE, "bob")
        await trio.sleep(20)
        clock.now_ms += 20_000
        assert not judge.takes("old", right_ms - 1000)  # nothing was forgotten
        assert judge.takes("old", right_ms + 1000)
        assert not judge.takes("bob", right_ms)
        assert judge.takes("bob", right_ms + 11_000)
        assert not judge.takes("ann", right_ms + 29_000)  # it could be from before …
        await node.broker.revoke_tokens(ANYONE, "ann")
        assert not judge.takes("ann", right_ms + 29_000)
        clock.now_ms += 2000
        assert judge.takes("ann", clock.now_ms)  # … which is told by revoking once more
    async with running_node(node.disk, clock) as node:
        judge = Judge(node, tmp_path / "secret")
        assert not judge.takes("old", right_ms - 1000)
        assert judge.takes("ann", clock.now_ms)


async def test_a_single_node_rises_to_the_level_that_a_revocation_needs_when_it_is_asked_for_one(
    autojump_clock: MockClock,
) -> None:
    async with running_node() as node:
        await seq_of(node.replica, publish(b"1"))
        assert node.replica.state.level < TWO_CLOCKS
        await node.broker.revoke_tokens(ANYONE, "ann")
        assert node.replica.state.level == TWO_CLOCKS
        await node.broker.revoke_tokens(ANYONE, "bob")


async def test_in_a_cluster_with_an_older_node_a_revocation_is_as_it_was(
    autojump_clock: MockClock,
) -> None:
    async with running_cluster(levels=dict.fromkeys(IDS, TWO_CLOCKS - 1)) as cluster:
        for node_id in ("n1", "n2"):
            await restarted(cluster, node_id, NEWEST)
        for node in cluster.running.values():
            await node.broker.revoke_tokens(ANYONE, node.id)
        await cluster.converged()
        assert not cluster.failures
        asked = [c for c in commands_of(cluster) if isinstance(c, RevokeTokens)]
        assert len(asked) == 9
        assert {command.asked_ms for command in asked} == {0}
        await restarted(cluster, "n3", NEWEST)
        await trio.sleep(10)
        await cluster["n3"].broker.revoke_tokens(ANYONE, "ann")
        assert any(isinstance(c, RaiseLevel) for c in commands_of(cluster))
        assert any(isinstance(c, RevokeTokens) and c.asked_ms for c in commands_of(cluster))


async def test_a_revocation_through_a_wrong_leader_refuses_what_was_issued_and_nothing_new(
    autojump_clock: MockClock,
) -> None:
    for ahead_ms in (YEAR_MS, -YEAR_MS):
        async with running_cluster() as cluster:
            await trio.sleep(10)
            leader = await cluster.leader()
            cluster.ahead_ms[leader.id] = ahead_ms
            for node in cluster.running.values():
                await node.broker.revoke_tokens(ANYONE, node.id)
                revoked = node.replica.state.revocations[node.id]
                assert abs(revoked.time_ms - cluster.now_ms()) <= BOUND_MS


# --- any clocks, for days ---


class Model:
    """What must hold, by the right time, while at most one of three clocks is off."""

    SECONDS = 40  # of retention
    SLACK_MS = BOUND_MS + 2000  # two clocks that are right, and the way

    def __init__(self, cluster: Cluster, chance: Random) -> None:
        self.cluster = cluster
        self.chance = chance
        self.published: list[tuple[bytes, int, int]] = []  # data, when it began, and was answered
        self.revoked: dict[str, tuple[int, int]] = {}

    def node(self) -> ClusterNode:
        return self.chance.choice([*self.cluster.running.values()])

    async def publish(self) -> None:
        data, began = b"%d" % len(self.published), self.cluster.now_ms()
        outcome = await seq_of(self.node().replica, publish(data))
        assert outcome
        self.published.append((data, began, self.cluster.now_ms()))
        assert newest_ms(self.cluster) <= self.cluster.now_ms() + self.SLACK_MS, "dated ahead"

    async def revoke(self) -> None:
        subject, began = f"s{self.chance.randrange(20)}", self.cluster.now_ms()
        await self.node().broker.revoke_tokens(ANYONE, subject)
        self.revoked[subject] = began, self.cluster.now_ms()

    async def check(self) -> None:
        cluster, now_ms = self.cluster, self.cluster.now_ms()
        await cluster.converged()
        node = self.node()
        kept = set(await history(node.replica))
        young = {
            data
            for data, began, _ in self.published
            if now_ms - began < self.SECONDS * 1000 - self.SLACK_MS
        }
        assert young <= kept, f"trimmed before its age: {young - kept}"
        assert newest_ms(cluster) <= cluster.now_ms() + self.SLACK_MS, "dated ahead"
        revocations = node.replica.state.revocations
        for subject, (began, ended) in self.revoked.items():
            assert revocations[subject].time_ms >= began - self.SLACK_MS, "taken back"
            assert revocations[subject].time_ms <= ended + self.SLACK_MS, "locked out"

    async def spoil(self) -> None:
        """One clock goes wrong, or jumps, or is put right."""
        ahead = self.cluster.ahead_ms
        wrong = [node_id for node_id, ms in ahead.items() if abs(ms) > 1000]
        if wrong and self.chance.random() < 0.5:
            ahead[wrong[0]] = self.chance.randint(-1000, 1000)
            await trio.sleep(ROUND)
            return
        size = self.chance.choice([BOUND_MS * 3, DAY_MS, YEAR_MS])
        node_id = wrong[0] if wrong else self.chance.choice(IDS)
        ahead[node_id] = self.chance.choice([-1, 1]) * self.chance.randint(size // 2, size)

    async def restart(self) -> None:
        node_id = self.node().id
        self.cluster.kill(node_id)
        await trio.sleep(self.chance.uniform(0, 10))
        await self.cluster.start(node_id)
        await self.cluster.leader()

    async def sleep_for_days(self) -> None:
        """All are away; the day goes on meanwhile."""
        for node_id in [*self.cluster.running]:
            self.cluster.kill(node_id)
        self.cluster.clock.now_ms += self.chance.randint(1, 3 * DAY_MS)
        for node_id in self.chance.sample(IDS, 3):
            await self.cluster.start(node_id)

    async def wait(self) -> None:
        await trio.sleep(self.chance.uniform(0, 15))

    async def transfer(self) -> None:
        leader = await self.cluster.leader()
        with suppress(RequestError):  # it is being handed over already
            await leader.members.transfer(self.node().id)


SEEDS = range(int(os.environ.get("REPL_BROKER_TEST_SEEDS", "6")))


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_one_clock_of_three_says_nothing_is_lost_dated_ahead_or_locked_out(
    seed: int, autojump_clock: MockClock
) -> None:
    """Days go by, clocks are ahead, behind and jump, nodes are restarted, leadership moves."""
    async with running_cluster() as cluster:
        await trio.sleep(10)
        model = Model(cluster, Random(seed))
        await cluster["n1"].replica.propose(CreateTopic("chat", seconds=model.SECONDS))
        steps: list[Callable[[], object]] = [
            *(model.publish, model.publish, model.publish, model.revoke, model.wait, model.wait),
            *(model.spoil, model.spoil, model.restart, model.transfer, model.sleep_for_days),
        ]
        for _ in range(80):
            step = model.chance.choice(steps)
            await step()  # type: ignore[misc]
            await cluster.leader()
            await model.check()
        assert not cluster.failures
