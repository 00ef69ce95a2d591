"""Snapshots on their way: what a receiver takes, what it refuses, and what is never seen."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from typing import Any
from zlib import crc32

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from repl_broker.raft.log import (
    Entry,
    EntryKind,
    Member,
    Membership,
    Snapshot,
    SnapshotMark,
    WriteBatch,
)
from repl_broker.snapshots import (
    PIECE_BYTES,
    PIECE_SECONDS_MAX,
    Outgoing,
    SnapshotReceiver,
    SnapshotRefusedError,
    ask_for_room,
)
from repl_broker.state import BrokerState
from repl_broker.taking import Mark
from tests.nodes import Disk, Gate, queue_of

MEMBERS = Membership((Member("n1", "n1:4081", "http://n1", voter=True, incarnation="1" * 16),))
STATE = b"0123456789"
TERM = 3  # of the leader
INDEX = 9  # of the snapshot
HISTORY = [Entry(index, 1, EntryKind.DATA, b"entry %d" % index) for index in range(1, INDEX + 3)]
LIVE = [2, 5, 9]


async def at_once(call: Callable[..., object], *arguments: Any) -> Any:
    return call(*arguments)


class Restored(bytes):
    """Stands in for a state. What is retained is written in it: a digit for each entry."""

    def __new__(cls, snapshot: Snapshot) -> Restored:
        return super().__new__(cls, snapshot.data)

    def live_entries(self) -> array[int]:
        return array("Q", sorted(digit - ord("0") for digit in self))


class Receiving:
    """A receiver with its disk, and a leader's disk from which it can be sent a snapshot."""

    def __init__(self) -> None:
        self.disk = Disk("n2")
        self.gate = Gate()
        self.queue = queue_of(self.disk, self.gate)
        self.receiver = SnapshotReceiver(self.queue, at_once, Restored)  # type: ignore[arg-type]
        self.leader = Disk("n1")
        self.leader.write(WriteBatch(tuple(HISTORY)))
        self.asked: list[str] = []
        self.mark = SnapshotMark(INDEX, 2, MEMBERS)
        self.own_term = 1

    async def begin(
        self, transfer: str = "t", *, sender: str = "n1", term: int = TERM, state: bytes = STATE
    ) -> None:
        mark = (INDEX, 2, MEMBERS.encode())
        argument = (transfer, term, *mark, len(state), crc32(state))
        await self.receiver.begin(sender, argument, self.own_term)

    async def state(self, offset: int, piece: bytes, *, checksum: int | None = None) -> None:
        found = crc32(piece) if checksum is None else checksum
        await self.receiver.state("n1", ("t", offset, piece, found))

    async def entries(self, *entries: Entry, damage: int = 0) -> None:
        rows = [
            (e.index, e.term, int(e.kind), e.data, crc32(e.data, e.index) ^ damage) for e in entries
        ]
        await self.receiver.entries("n1", ("t", rows))

    async def end(self, count: int = 0) -> None:
        await self.receiver.end("n1", ("t", count))

    def install(self) -> None:
        """As the replica does when the core asks for it."""
        self.mark, _ = self.receiver.take()
        self.queue.install(self.mark.index, lambda: None)

    def outgoing(self) -> Outgoing:
        """A leader's side."""

        async def call(name: str, argument: Any) -> None:
            self.asked.append(name)
            match name:
                case "snapshot-begin":
                    await self.receiver.begin("n1", argument, self.own_term)
                case "snapshot-renew":
                    await self.receiver.renew("n1", argument)
                case "snapshot-state":
                    await self.receiver.state("n1", argument)
                case "snapshot-entries":
                    await self.receiver.entries("n1", argument)
                case _:
                    await self.receiver.end("n1", argument)

        return Outgoing(call, queue_of(self.leader), TERM, at_once)

    async def send(self, state: bytes = STATE, live: list[int] = LIVE) -> None:
        """As a leader does it."""
        outgoing = self.outgoing()
        await outgoing.begin(Snapshot(INDEX, 2, state, MEMBERS.encode()), array("Q", live))
        await outgoing.end()


def refusal(match: str) -> pytest.RaisesExc[SnapshotRefusedError]:
    return pytest.RaisesExc(SnapshotRefusedError, match=match)


# --- one that arrives ---


@pytest.mark.parametrize("size", [0, 10, PIECE_BYTES, 2 * PIECE_BYTES + 1])
async def test_what_was_sent_is_staged_whole_and_installed_as_it_was(size: int) -> None:
    """RAFT.md scenario 31: with the retained history that it covers, and nothing else."""
    receiving = Receiving()
    state = bytes(index % 251 for index in range(size))
    await receiving.send(state)
    assert receiving.receiver.complete is not None
    mark, data = receiving.receiver.complete
    assert (mark.index, mark.term, mark.membership, data) == (INDEX, 2, MEMBERS, state)
    assert receiving.disk.load().snapshot is None, "the core decides whether it is put in place"
    receiving.disk.install()
    assert receiving.disk.snapshot == Snapshot(INDEX, 2, state, MEMBERS.encode())
    assert receiving.disk.read([*range(20)]) == {i: b"entry %d" % i for i in LIVE}
    assert receiving.asked.count("snapshot-state") == -(-size // PIECE_BYTES)


async def test_a_snapshot_without_history_is_complete_all_the_same() -> None:
    receiving = Receiving()
    await receiving.send(live=[])
    assert receiving.receiver.complete is not None
    receiving.disk.install()
    assert receiving.disk.entries == {}


async def test_a_sender_whose_disk_lacks_entries_does_not_end_the_snapshot() -> None:
    """RAFT.md scenario 31: one that lacks history would be installed, and be no copy."""
    receiving = Receiving()
    receiving.leader.drop([5])
    with refusal("1 of its entries are not on this disk"):
        await receiving.send()
    assert "snapshot-end" not in receiving.asked
    assert receiving.receiver.complete is None


# --- beginning ---


async def test_a_snapshot_of_an_older_term_is_not_begun() -> None:
    """RAFT.md scenario 32: nor does it put an end to the one of the leader."""
    receiving = Receiving()
    await receiving.begin()
    receiving.own_term = TERM
    with refusal(f"the term is {TERM} here, and not {TERM - 1}"):
        await receiving.begin("stale", sender="n3", term=TERM - 1)
    await receiving.state(0, STATE)
    await receiving.end()
    assert receiving.receiver.complete is not None


async def test_a_new_beginning_puts_an_end_to_the_one_before() -> None:
    receiving = Receiving()
    await receiving.begin("first")
    await receiving.begin()
    with refusal("of no snapshot that was begun"):
        await receiving.receiver.state("n1", ("first", 0, STATE, crc32(STATE)))
    await receiving.state(0, STATE)
    await receiving.end()
    assert receiving.receiver.complete is not None


async def test_what_another_sends_is_not_mixed_in() -> None:
    receiving = Receiving()
    await receiving.begin()
    with refusal("of no snapshot that was begun"):
        await receiving.receiver.state("n3", ("t", 0, STATE, crc32(STATE)))
    await receiving.state(0, STATE)
    await receiving.end()


@pytest.mark.parametrize("moment", ["complete", "installing"])
async def test_none_is_begun_while_one_is_put_in_place(moment: str) -> None:
    """RAFT.md scenario 33: what is staged is read by the install."""
    receiving = Receiving()
    await receiving.send()
    if moment == "installing":
        receiving.gate.shut()
        receiving.install()
    staged = receiving.disk.staged
    with refusal("another snapshot is being installed"):
        await receiving.begin("next")
    assert receiving.disk.staged is staged


async def test_a_node_that_installs_one_says_so_before_another_is_made() -> None:
    receiving = Receiving()

    async def call(name: str, argument: Any) -> None:
        assert name == "snapshot-begin"
        await receiving.receiver.begin("n1", argument, receiving.own_term)

    await ask_for_room(call, Mark(INDEX, 2, MEMBERS.encode()), TERM)
    await receiving.send()
    receiving.gate.shut()
    receiving.install()
    with refusal("another snapshot is being installed"):
        await ask_for_room(call, Mark(INDEX, 2, MEMBERS.encode()), TERM)


async def test_another_that_begins_while_one_is_staged_is_not_mixed_with_it() -> None:
    """RAFT.md scenario 33."""
    receiving = Receiving()

    await receiving.begin()
    await receiving.state(0, STATE)
    receiving.gate.shut()
    with pytest.RaisesGroup(refusal("of no snapshot that was begun")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiving.entries, HISTORY[1])
            await wait_all_tasks_blocked()
            await receiving.begin("next", sender="n3")
            receiving.gate.open()
    assert receiving.disk.staged is None, "who began the next cleared what was staged"


# --- one that is renewed ---


def snapshot_at(index: int, state: bytes) -> tuple[Snapshot, array[int]]:
    live = array("Q", sorted(digit - ord("0") for digit in state))
    return Snapshot(index, 2, state, MEMBERS.encode()), live


async def test_a_newer_one_is_sent_as_what_is_new_and_takes_the_place_of_the_older() -> None:
    """RAFT.md scenario 31: by the time that gigabytes are there, much more was published."""
    receiving = Receiving()
    outgoing = receiving.outgoing()
    await outgoing.begin(*snapshot_at(4, b"124"))
    assert (outgoing.index, outgoing.bytes) == (4, 3 * len(b"entry 1"))
    await outgoing.renew(*snapshot_at(7, b"2457"))
    assert (outgoing.index, outgoing.bytes) == (7, 2 * len(b"entry 5"))
    await outgoing.renew(*snapshot_at(9, b"579"))
    await outgoing.end()
    mark, state = receiving.receiver.complete or (None, None)
    assert mark is not None
    assert (mark.index, mark.term, mark.membership, state) == (9, 2, MEMBERS, b"579")
    assert receiving.asked.count("snapshot-entries") == 3
    receiving.install()
    assert receiving.disk.snapshot == snapshot_at(9, b"579")[0]
    assert [*receiving.disk.entries] == [1, 2, 4, 5, 7, 9], "upkeep drops what has died"
    assert [*(receiving.receiver.live or ())] == [5, 7, 9]


async def test_one_that_was_never_renewed_has_nothing_that_is_to_be_dropped() -> None:
    receiving = Receiving()
    await receiving.send(state=b"259")
    assert receiving.receiver.live is None


async def test_a_renewal_before_the_whole_of_what_it_renews_is_refused() -> None:
    """RAFT.md scenario 33: or its state would be mixed with the one before."""
    receiving = Receiving()
    await receiving.begin()
    await receiving.state(0, STATE[:5])
    with refusal("not sound: a newer one came before the whole of the older"):
        await receiving.receiver.renew("n1", ("t", INDEX, 2, MEMBERS.encode(), 10, 0))
    assert receiving.disk.staged is None


async def test_an_older_one_does_not_take_the_place_of_a_newer() -> None:
    receiving = Receiving()
    await receiving.begin()
    await receiving.state(0, STATE)
    with refusal("not sound"):
        await receiving.receiver.renew("n1", ("t", INDEX - 1, 2, MEMBERS.encode(), 10, 0))


async def test_what_nobody_has_begun_is_not_renewed() -> None:
    receiving = Receiving()
    with refusal("of no snapshot that was begun"):
        await receiving.receiver.renew("n1", ("t", INDEX, 2, MEMBERS.encode(), 10, 0))
    await receiving.begin()
    with refusal("of no snapshot that was begun"):
        await receiving.receiver.renew("n3", ("t", INDEX, 2, MEMBERS.encode(), 10, 0))


async def test_a_sender_whose_disk_lacks_what_is_new_does_not_end_it() -> None:
    receiving = Receiving()
    outgoing = receiving.outgoing()
    await outgoing.begin(*snapshot_at(4, b"124"))
    receiving.leader.drop([5])
    with refusal("1 of its entries are not on this disk"):
        await outgoing.renew(*snapshot_at(7, b"2457"))


# --- what is staged has an owner ---


async def staged() -> Receiving:
    """Half of a snapshot has arrived."""
    receiving = Receiving()
    await receiving.begin()
    await receiving.state(0, STATE)
    await receiving.entries(HISTORY[1])
    assert receiving.disk.staged is not None
    return receiving


async def test_what_a_crash_left_staged_is_cleared_at_the_start() -> None:
    receiving = await staged()
    receiver = SnapshotReceiver(receiving.queue, at_once)
    receiver.forget()
    assert receiving.disk.staged is None


async def test_what_is_staged_goes_when_another_begins() -> None:
    receiving = await staged()
    await receiving.begin("next", sender="n3")
    assert receiving.disk.staged is None


async def test_what_is_staged_goes_when_a_piece_does_not_fit() -> None:
    receiving = await staged()
    with refusal("damaged"):
        await receiving.entries(HISTORY[2], damage=1)
    assert receiving.disk.staged is None


async def test_what_is_staged_goes_when_nothing_more_comes(autojump_clock: MockClock) -> None:
    receiving = await staged()
    await trio.sleep(2 * PIECE_SECONDS_MAX - 1)
    receiving.receiver.look()
    assert receiving.disk.staged is not None
    await receiving.entries(HISTORY[2])
    await trio.sleep(2 * PIECE_SECONDS_MAX - 1)
    receiving.receiver.look()
    assert receiving.disk.staged is not None
    await trio.sleep(2)
    receiving.receiver.look()
    assert receiving.disk.staged is None


async def test_nothing_is_cleared_of_what_is_being_installed() -> None:
    receiving = Receiving()
    await receiving.send()
    receiving.gate.shut()
    receiving.install()
    receiving.receiver.forget()
    receiving.gate.open()
    assert [*receiving.disk.entries] == LIVE


async def test_a_snapshot_that_cannot_be_read_is_refused_before_anything_is_replaced() -> None:
    receiving = Receiving()

    def restore(snapshot: Snapshot) -> BrokerState:
        raise ValueError("it has format 99")

    receiving.receiver = SnapshotReceiver(receiving.queue, at_once, restore)
    with refusal("not sound: it has format 99"):
        await receiving.send()
    assert receiving.receiver.complete is None
    assert receiving.disk.staged is None


# --- pieces ---

Piece = Callable[[Receiving], Awaitable[None]]


@pytest.mark.parametrize(
    "piece",
    [
        lambda r: r.state(5, STATE[5:], checksum=1),
        lambda r: r.state(6, STATE[6:]),
        lambda r: r.state(0, STATE[:5]),
        lambda r: r.state(5, STATE[5:] + b"more"),
        lambda r: r.entries(HISTORY[1], damage=1),
        lambda r: r.entries(HISTORY[0], HISTORY[INDEX]),
        lambda r: r.end(),
    ],
    ids=["damaged", "hole", "again", "too long", "entry damaged", "entry not covered", "cut short"],
)
async def test_a_piece_that_does_not_fit_ends_the_snapshot(piece: Piece) -> None:
    """RAFT.md scenario 33: nothing is seen of it, and the sender begins again."""
    receiving = Receiving()
    await receiving.begin()
    await receiving.state(0, STATE[:5])
    with refusal("the snapshot is not sound"):
        await piece(receiving)
    with refusal("of no snapshot that was begun"):
        await receiving.state(5, STATE[5:])
    assert receiving.receiver.complete is None
    await receiving.send()
    assert receiving.receiver.complete is not None


async def test_a_piece_of_state_that_comes_behind_entries_is_refused() -> None:
    """RAFT.md scenario 33: the state is staged by then, and would stay without that piece."""
    receiving = Receiving()
    await receiving.begin()
    await receiving.state(0, STATE[:5])
    await receiving.entries()
    with refusal("a piece of state came behind entries"):
        await receiving.state(5, STATE[5:])
    with refusal("of no snapshot that was begun"):
        await receiving.end()


async def test_state_whose_pieces_are_sound_and_make_another_is_refused() -> None:
    receiving = Receiving()
    await receiving.begin()
    await receiving.state(0, STATE[::-1])
    with refusal("its state is cut short or damaged"):
        await receiving.end()
    assert receiving.receiver.complete is None


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_another_count_of_entries_than_was_sent_is_refused(count: int) -> None:
    """RAFT.md scenario 33."""
    receiving = Receiving()
    await receiving.begin()
    await receiving.state(0, STATE)
    await receiving.entries(HISTORY[1], HISTORY[4])
    with refusal(f"2 of its {count} entries have arrived"):
        await receiving.end(count)
    assert receiving.receiver.complete is None


@pytest.mark.parametrize("argument", [None, (), ("t",), ("t", "0", b"", 0), ("t", 0, 1, 0)])
async def test_what_is_no_piece_is_nonsense_and_disturbs_nothing(argument: object) -> None:
    receiving = Receiving()
    await receiving.begin()
    with pytest.raises(ValueError):
        await receiving.receiver.state("n1", argument)
    await receiving.state(0, STATE)
    await receiving.end()
