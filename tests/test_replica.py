"""The loop behind the log: durability before answers, recovery, compaction, drain."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repl_broker.command import Command, CreateTopic, DeleteTopic, Publish, Shares
from repl_broker.errors import OutcomeUnknownError, RequestError, StorageError
from repl_broker.message import FilterSet
from repl_broker.raft.core import TellCommit
from repl_broker.replica import TURNS_MAX, Replica
from repl_broker.state import BrokerState, Published, Refused
from repl_broker.wire import decode_entry, decode_messages
from tests.nodes import Clock, Disk, configured, running_node


def publish(topic: str = "chat", *data: bytes, key: str | None = None) -> Publish:
    return Publish(topic, data or (b"1",), key, b"digest" if key else b"")


def content(state: BrokerState) -> str:
    """A digest of the state, whatever the index: each start adds an entry to the log."""
    copy = BrokerState.restore(state.snapshot())
    copy.applied_index = 0
    return copy.digest()


async def history(replica: Replica, topic: str = "chat") -> list[bytes]:
    locations = replica.state.scan(FilterSet([topic]), 0, 1_000_000)
    return [message.data for message in await replica.fetch(locations)]


# --- durability ---


async def test_an_outcome_comes_only_after_the_write() -> None:
    """Promise 2; RAFT.md scenario 24: acknowledged only after fsync, one node or many."""
    async with running_node() as node, trio.open_nursery() as nursery:
        node.gate.shut()
        outcomes = []

        async def propose() -> None:
            outcomes.append(await node.replica.propose(publish()))

        nursery.start_soon(propose)
        await wait_all_tasks_blocked()
        assert outcomes == []
        assert node.replica.state.seq == 0, "what is not durable is not applied either"
        node.gate.open()
        await wait_all_tasks_blocked()
        assert [o.first_seq for o in outcomes] == [1]


async def test_all_that_waits_goes_into_one_write() -> None:
    async with running_node() as node, trio.open_nursery() as nursery:
        node.gate.shut()
        nursery.start_soon(node.replica.propose, publish())
        await wait_all_tasks_blocked()
        for _ in range(20):
            nursery.start_soon(node.replica.propose, publish())
        await wait_all_tasks_blocked()
        before = len(node.disk.writes)
        node.gate.open()
        await wait_all_tasks_blocked()
        sizes = [len(decode_messages(w.entries[0].data)) for w in node.disk.writes[before:]]
        assert sizes == [1, 20]


async def test_one_entry_takes_a_bounded_part_of_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("repl_broker.replica.ENTRY_BYTES_MAX", 1000)
    async with running_node() as node, trio.open_nursery() as nursery:
        node.gate.shut()
        for _ in range(9):
            nursery.start_soon(node.replica.propose, publish("chat", b"x" * 300))
        nursery.start_soon(node.replica.propose, publish("chat", b"y" * 5000))
        await wait_all_tasks_blocked()
        before = len(node.disk.writes)
        node.gate.open()
        await wait_all_tasks_blocked()
        sizes = [len(w.entries[0].data) for w in node.disk.writes[before:]]
        assert sum(size > 1010 for size in sizes) == 1, "a larger one goes alone"
        assert node.replica.state.seq == 10


async def test_publishes_beyond_a_bound_are_refused_at_once_and_what_was_taken_is_kept(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repl_broker.replica.PENDING_BYTES_MAX", 1000)
    refused: list[str] = []

    async def propose(replica: Replica, command: Command) -> None:
        try:
            await replica.propose(command)
        except RequestError as error:
            refused.append(error.code)

    async with running_node() as node, trio.open_nursery() as nursery:
        await node.replica.propose(CreateTopic("old"))
        node.gate.shut()
        for _ in range(50):
            nursery.start_soon(propose, node.replica, publish("chat", b"x" * 300))
        await wait_all_tasks_blocked()
        pending = node.replica.statistics().pending
        assert pending <= 8
        assert refused == ["overloaded"] * (50 - pending)
        nursery.start_soon(propose, node.replica, DeleteTopic("old"))  # which makes room
        node.gate.open()
        await trio.sleep(1)
        assert node.replica.state.seq == pending
        assert "old" not in node.replica.state.topics
        assert len(refused) == 50 - pending
        await node.replica.propose(publish("chat"))


async def test_who_were_served_together_are_waited_for_a_moment(autojump_clock: MockClock) -> None:
    """An entry for the first of them alone would cost as much as one for all."""
    async with running_node() as node:

        async def round_of(count: int, seconds: float) -> list[int]:
            """Each comes so much later than the one before; how many went into each entry."""
            before = len(node.disk.writes)
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(node.replica.propose, publish())
                    await trio.sleep(seconds)
            writes = node.disk.writes[before:]
            return [len(decode_messages(w.entries[0].data)) for w in writes]

        node.gate.shut()
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(node.replica.propose, publish())
            await wait_all_tasks_blocked()
            node.gate.open()
        assert await round_of(8, 0.00001) == [8], "the eight that went together come again"
        assert await round_of(2, 0.1) == [1, 1], "who comes alone waits for a moment only"


@pytest.mark.parametrize("looks", range(1, 6))
@pytest.mark.parametrize("another", [False, True], ids=["in a turn", "when another comes"])
async def test_a_wait_for_others_may_end_between_any_two_looks_at_the_clock(
    looks: int, another: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits goes then, and not when something else happens, if it ever does."""
    async with running_node() as node:
        replica = node.replica

        async def three_together() -> None:
            node.gate.shut()
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(replica.propose, publish())
                await wait_all_tasks_blocked()
                node.gate.open()

        await three_together()  # of the four the first went alone
        look = trio.current_time

        def time_passes() -> float:
            nonlocal looks
            looks -= 1
            if looks == 0:
                autojump_clock.jump(replica._gathered_at() - look() + 1e-6)
            return look()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.propose, publish())
            await wait_all_tasks_blocked()
            assert replica.statistics().pending == 1, "it waits for two more"
            began = look()
            monkeypatch.setattr(trio, "current_time", time_passes)
            if another:
                nursery.start_soon(replica.propose, publish())
            else:
                replica.turn()
        assert looks <= 0, "there were so many looks"
        assert look() < began + 0.01


async def test_a_cancelled_caller_stops_waiting_and_the_command_happens() -> None:
    async with running_node() as node:
        node.gate.shut()
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.replica.propose(publish())
        node.gate.open()
        await wait_all_tasks_blocked()
        assert await history(node.replica) == [b"1"]


async def test_who_propose_in_the_same_pass_go_into_one_entry_though_the_write_is_quick() -> None:
    """The first would otherwise be written, alone, before the second has come."""
    async with running_node() as node:
        assert node.gate.is_quick
        before = len(node.disk.writes)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(node.replica.propose, publish())
        writes = node.disk.writes[before:]
        assert [len(decode_messages(w.entries[0].data)) for w in writes] == [20]


async def test_a_publish_whose_write_is_quick_can_be_cancelled_like_any_other() -> None:
    """It is answered without a wait, and a loop of them must end all the same."""
    async with running_node() as node:
        count = 0
        with trio.CancelScope() as scope:
            scope.cancel()
            while count < 100:
                count += 1
                await node.replica.propose(publish())
        assert (count, scope.cancelled_caught) == (1, True)
        assert await history(node.replica) == [b"1"]


async def test_quick_writes_one_after_the_other_keep_nobody_from_running() -> None:
    """They are made in the event loop, from which nothing else would take it away."""
    async with running_node() as node:
        passes = 0

        async def propose_on() -> None:
            while True:
                await node.replica.propose(publish())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(propose_on)
            nursery.start_soon(propose_on)
            while passes < 100:
                await trio.lowlevel.checkpoint()
                passes += 1
            assert 10 < node.replica.state.seq < 500
            nursery.cancel_scope.cancel()


async def test_one_turn_goes_on_to_others_after_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes of it: what is left the driving task does, when others have run."""
    async with running_node() as node:
        replica = node.replica
        taken = 0
        step = replica._core.step

        def busy(now: float, events: list[Any]) -> Any:
            nonlocal taken
            taken += 1
            replica._events.append(TellCommit("n9"))
            return step(now, [])

        with monkeypatch.context() as patch:
            patch.setattr(replica._core, "step", busy)
            replica.turn()
            assert taken == TURNS_MAX
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            assert taken > TURNS_MAX
        await replica.propose(publish())
        assert replica.state.seq == 1


async def test_after_a_write_in_place_has_failed_the_core_takes_no_other_turn() -> None:
    """RAFT.md scenario 27: what it would ask for rests on a disk that is gone."""
    with pytest.RaisesGroup(StorageError, flatten_subgroups=True):
        async with running_node() as node:
            node.disk.error = StorageError("the disk is gone")
            steps: list[int] = []
            replica, step = node.replica, node.replica._core.step

            def counted(now: float, events: list[Any]) -> Any:
                steps.append(len(events))
                effects = step(now, events)
                replica._events.append(TellCommit("n9"))  # there would be more to do
                return effects

            replica._core.step = counted  # type: ignore[method-assign]
            with suppress(OutcomeUnknownError):
                await replica.propose(publish())
    assert len(steps) == 1


async def test_a_failing_disk_stops_the_node_and_answers_unknown() -> None:
    """RAFT.md scenario 27: no acknowledgement after a failed write; fail-stop."""
    outcomes = []
    with pytest.RaisesGroup(StorageError, flatten_subgroups=True):
        async with running_node() as node:
            node.disk.error = StorageError("the disk is gone")

            async def propose() -> None:
                try:
                    await node.replica.propose(publish())
                except OutcomeUnknownError as error:
                    outcomes.append(error.code)

            async with trio.open_nursery() as nursery:
                with trio.CancelScope(shield=True):
                    nursery.start_soon(propose)
                    await wait_all_tasks_blocked()
    assert outcomes == ["outcome_unknown"]


# --- recovery ---


async def test_a_restart_gives_the_same_state() -> None:
    disk = Disk()
    async with running_node(disk) as node:
        await node.replica.propose(publish("chat", b"1", b"2", key="k"))
        await node.replica.propose(CreateTopic("quiet", messages=5))
        await node.replica.propose(publish("chat", b"3"))
        digest = content(node.replica.state)
    async with running_node(disk) as node:
        assert content(node.replica.state) == digest
        assert await history(node.replica) == [b"1", b"2", b"3"]
        again = await node.replica.propose(publish("chat", b"1", b"2", key="k"))
        assert isinstance(again, Published)
        assert (again.first_seq, again.replayed) == (1, True)


async def test_a_restart_is_a_new_term() -> None:
    disk = Disk()
    async with running_node(disk) as node:
        assert node.replica.statistics().term == 1
    async with running_node(disk) as node:
        assert node.replica.statistics().term == 2
        assert disk.hard_state.term == 2


async def test_changed_settings_take_effect_by_a_command_in_the_log() -> None:
    disk = Disk()
    async with running_node(disk) as node:
        await node.replica.propose(publish("old"))
    config = configured(topics={"auto_create": False})
    async with running_node(disk, config=config) as node:
        outcome = await node.replica.propose(publish("new"))
        assert isinstance(outcome, Refused)
        assert outcome.code == "topic_not_found"
        digest = content(node.replica.state)
    async with running_node(disk, config=config) as node:
        assert content(node.replica.state) == digest


async def test_time_does_not_run_backwards_when_the_clock_does(autojump_clock: MockClock) -> None:
    clock = Clock()
    async with running_node(clock=clock) as node:
        first = await node.replica.propose(publish())
        clock.now_ms -= 60_000
        second = await node.replica.propose(publish())
        assert isinstance(first, Published)
        assert isinstance(second, Published)
        assert second.time_ms == first.time_ms


async def test_time_goes_on_after_a_clock_that_was_ahead_is_put_right(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Or nothing would age until the real time has caught up."""
    clock = Clock()
    async with running_node(clock=clock) as node:
        await node.replica.propose(CreateTopic("chat", seconds=60))
        clock.now_ms += 3_600_000
        await node.replica.propose(publish("other"))
        assert "the clock has jumped ahead seconds=3600" in caplog.text
        clock.now_ms -= 3_600_000
        first = await node.replica.propose(publish("chat", b"1"))
        await trio.sleep(100)
        second = await node.replica.propose(publish("chat", b"2"))
        assert isinstance(first, Published)
        assert isinstance(second, Published)
        assert 100_000 <= second.time_ms - first.time_ms < 101_000
        assert await history(node.replica) == [b"2"]


async def test_idle_topics_age_after_a_clock_that_was_ahead_is_put_right(
    autojump_clock: MockClock,
) -> None:
    clock = Clock()
    async with running_node(clock=clock) as node:
        await node.replica.propose(CreateTopic("chat", seconds=60))
        clock.now_ms += 3_600_000
        await node.replica.propose(publish("chat", b"1"))
        clock.now_ms -= 3_600_000
        await trio.sleep(30)
        assert await history(node.replica) == [b"1"]
        await trio.sleep(60)
        assert await history(node.replica) == []


# --- compaction ---

SMALL_SNAPSHOTS = configured(raft={"snapshot_entries": 100})


async def test_compaction_keeps_history_and_drops_the_rest() -> None:
    disk = Disk()
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        await node.replica.propose(CreateTopic("chat", messages=10))
        for number in range(250):
            await node.replica.propose(publish("chat", b"%d" % number))
        await wait_all_tasks_blocked()
        assert disk.snapshot is not None
        assert disk.snapshot.index > 100
        assert len(disk.entries) < 150
        assert await history(node.replica) == [b"%d" % n for n in range(240, 250)]
        digest = content(node.replica.state)
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        assert content(node.replica.state) == digest
        assert await history(node.replica) == [b"%d" % n for n in range(240, 250)]


async def test_large_messages_are_cleared_away_though_they_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("repl_broker.upkeep.SNAPSHOT_BYTES", 100_000)
    async with running_node() as node:
        await node.replica.propose(CreateTopic("chat", messages=2))
        for _ in range(50):
            await node.replica.propose(publish("chat", b"x" * 10_000))
            await wait_all_tasks_blocked()
            assert node.disk.bytes < 250_000
        assert len(await history(node.replica)) == 2


async def test_history_older_than_the_snapshot_is_read_from_the_log() -> None:
    disk = Disk()
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        for number in range(300):
            await node.replica.propose(publish("chat", b"%d" % number))
        await wait_all_tasks_blocked()
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        assert await history(node.replica) == [b"%d" % n for n in range(300)]


async def test_what_a_crash_kept_from_being_dropped_is_dropped_at_the_next_start() -> None:
    disk = Disk()
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        await node.replica.propose(CreateTopic("chat", messages=1))
        for _ in range(150):
            await node.replica.propose(publish())
        await wait_all_tasks_blocked()
        snapshot = disk.snapshot
        assert snapshot is not None
    disk.entries.update((e.index, e) for w in disk.writes for e in w.entries)
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        live = set(BrokerState.restore(snapshot.data).live_entries())
        assert {i for i in disk.entries if i <= snapshot.index} <= live
        assert await history(node.replica) == [b"1"]


async def test_an_entry_that_is_mostly_dead_is_rewritten_without_its_dead() -> None:
    """One long-lived message must not keep a megabyte of others on disk."""
    disk = Disk()
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        await node.replica.propose(CreateTopic("busy", messages=1))
        data = tuple(b"x" * 20_000 if topic == "busy" else b"7" for topic in ("busy", "rare") * 5)
        await node.replica.propose(Publish(("busy", "rare") * 5, data))
        index = node.replica.state.applied_index
        await node.replica.propose(publish("busy", b"0"))
        assert len(disk.entries[index].data) > 100_000
        for _ in range(100):
            await node.replica.propose(publish("busy", b"1"))
        await wait_all_tasks_blocked()
        assert len(disk.entries[index].data) < 1000
        digest = content(node.replica.state)
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        assert content(node.replica.state) == digest
        assert await history(node.replica, "rare") == [b"7"] * 5


async def test_nothing_is_rewritten_away_that_the_snapshot_on_disk_still_retains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash goes back to it, and readers are served from there at once."""
    disk, missing = Disk(), list[tuple[int, set[int]]]()
    replace_entries = disk.replace

    def replaced(entries: dict[int, bytes]) -> None:
        assert disk.snapshot is not None
        saved = BrokerState.restore(disk.snapshot.data)
        for index, data in entries.items():
            dead = saved.dead_ordinals(index, decode_entry(disk.entries[index].data)[1])
            gone = {n for n, body in enumerate(decode_messages(data)) if not body}
            missing.append((index, gone - dead))
        replace_entries(entries)

    monkeypatch.setattr(disk, "replace", replaced)
    async with running_node(disk, config=SMALL_SNAPSHOTS) as node:
        await node.replica.propose(CreateTopic("busy", messages=1))
        await node.replica.propose(CreateTopic("rare", messages=5))
        save = node.replica._disk.save_snapshot

        async def saved_while_more_is_published(*arguments: Any) -> None:
            await save(*arguments)
            await node.replica.propose(publish("rare", b"8", b"9"))

        monkeypatch.setattr(node.replica._disk, "save_snapshot", saved_while_more_is_published)
        data = tuple(b"x" * 20_000 if topic == "busy" else b"7" for topic in ("busy", "rare") * 5)
        await node.replica.propose(Publish(("busy", "rare") * 5, data))
        for _ in range(110):
            await node.replica.propose(publish("busy", b"1"))
        await wait_all_tasks_blocked()
    assert missing
    assert [(index, gone) for index, gone in missing if gone] == []


async def test_fetch_gives_what_comes_before_a_message_that_was_trimmed_meanwhile() -> None:
    disk = Disk()
    async with running_node(disk) as node:
        for number in range(5):
            await node.replica.propose(publish("chat", b"%d" % number))
    async with running_node(disk) as node:
        node.replica._history._cache.clear()
        locations = node.replica.state.scan(FilterSet(["chat"]), 0, 10)
        settings = CreateTopic("chat", messages=2, replace=True)
        await node.replica.propose(settings)
        disk.drop([locations[2].entry])
        assert [m.data for m in await node.replica.fetch(locations)] == [b"0", b"1"]


async def test_a_retained_message_that_is_not_there_ends_the_node() -> None:
    """Promise 2: a failing disk stops the node. Looking again would find the same for ever."""
    disk = Disk()
    with pytest.RaisesGroup(
        pytest.RaisesExc(StorageError, match="message 3 of 'chat' should be in entry"),
        flatten_subgroups=True,
    ):
        async with running_node(disk) as node:
            await node.replica.propose(publish("chat", b"1", b"2", b"3"))
            locations = node.replica.state.scan(FilterSet(["chat"]), 2, 10)
            disk.drop([locations[0].entry])
            node.replica._history._cache.clear()
            with pytest.raises(StorageError):
                await node.replica.fetch(locations)
            await trio.sleep_forever()


async def test_damage_that_a_reader_finds_ends_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(indexes: object) -> dict[int, bytes]:
        raise StorageError("entry 2 is not what was written")

    with pytest.RaisesGroup(StorageError, flatten_subgroups=True):
        async with running_node() as node:
            await node.replica.propose(publish())
            node.replica._history._cache.clear()
            monkeypatch.setattr(node.disk, "read", read)
            with pytest.raises(StorageError):
                await history(node.replica)
            await trio.sleep_forever()


async def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl_broker.history.CACHE_BYTES_MAX", 1000)
    async with running_node() as node:
        for _ in range(50):
            await node.replica.propose(publish("chat", b"x" * 100))
        assert node.replica._history._cache_bytes <= 1000
        assert await history(node.replica) == [b"x" * 100] * 50


# --- time ---


async def test_messages_expire_in_topics_that_nobody_publishes_to(
    autojump_clock: MockClock,
) -> None:
    clock = Clock()
    async with running_node(clock=clock) as node:
        await node.replica.propose(CreateTopic("chat", seconds=60))
        await node.replica.propose(publish())
        await trio.sleep(30)
        assert await history(node.replica) == [b"1"]
        entries = node.replica.statistics().last_index
        clock.now_ms += 61_000
        await trio.sleep(10)
        assert await history(node.replica) == []
        assert node.replica.statistics().last_index == entries + 1, "idle time costs no entries"


# --- the end ---


async def test_drain_answers_what_was_taken_and_refuses_what_comes() -> None:
    async with running_node() as node, trio.open_nursery() as nursery:
        node.gate.shut()
        outcomes = []

        async def propose() -> None:
            outcomes.append(await node.replica.propose(publish()))

        nursery.start_soon(propose)
        await wait_all_tasks_blocked()
        nursery.start_soon(node.replica.drain)
        await wait_all_tasks_blocked()
        with pytest.raises(RequestError) as refused:
            await node.replica.propose(publish())
        assert refused.value.code == "shutting_down"
        node.gate.open()
        await wait_all_tasks_blocked()
        assert len(outcomes) == 1


async def test_statistics_count_writes_commands_and_times() -> None:
    async with running_node() as node:
        await node.replica.propose(publish())
        outcome = await node.replica.propose(DeleteTopic("nothing"))
        assert isinstance(outcome, Refused)
        statistics = node.replica.statistics()
        assert statistics.commands == 3, "these two, and the settings"
        assert sum(statistics.commit_buckets) == 3
        assert statistics.last_index == statistics.applied_index == 4, "and the no-op of the term"
        assert statistics.pending == 0


# --- signs of life ---


async def test_the_driving_task_proves_that_it_is_alive() -> None:
    async with running_node() as node:
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            await node.replica.prove_alive()
            await node.replica.prove_alive()


async def test_a_write_that_hangs_shows() -> None:
    async with running_node() as node:
        node.gate.busy_seconds = 50.0
        assert node.replica.writing_seconds == 50.0


async def test_other_settings_are_agreed_on_while_the_node_leads() -> None:
    async with running_node() as node:
        replica = node.replica
        settings = replace(replica.state.settings, auto_create=False)
        replica.reconfigure(settings)
        with trio.fail_after(5):
            while replica.state.settings != settings:
                await trio.lowlevel.checkpoint()
        last = replica.statistics().last_index
        replica.reconfigure(settings)
        await wait_all_tasks_blocked()
        assert replica.statistics().last_index == last, "the same again is no entry"


async def test_what_counts_for_publishers_goes_on_to_whatever_the_next_leader_is_told() -> None:
    async with running_node() as node:
        replica = node.replica
        before = replica.state.settings
        for shares, agreed in (
            (Shares(9, 9, 9, of_publishers=True), Shares(9, 9, 9, of_publishers=True)),
            (Shares(), Shares(of_publishers=True)),
            (Shares(topics=5), Shares(topics=5, of_publishers=True)),
        ):
            replica.reconfigure(replace(before, shares=shares))
            with trio.fail_after(5):
                while replica.state.settings.shares != agreed:
                    await trio.lowlevel.checkpoint()
            last = replica.statistics().last_index
            replica.reconfigure(replace(before, shares=shares))
            await wait_all_tasks_blocked()
            assert replica.statistics().last_index == last, "what is in force is no entry"
