"""Proposals on their way: what becomes of one that was placed, lost, put back or given up."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    DeleteTopics,
    Expire,
    KeepTopics,
    Numbered,
    Publish,
    RaiseLevel,
    Retention,
    Settings,
)
from repl_broker.errors import OutcomeUnknownError, RequestError
from repl_broker.proposals import (
    LIGHT_BYTES_MAX,
    LIGHT_STEPS_MAX,
    RECENT_OUTCOMES_MAX,
    STEPS_MAX,
    Forwarded,
    Offer,
    Proposal,
    Proposals,
    Settled,
)
from repl_broker.state import REPEATED, Outcome, Published
from repl_broker.wire import encode_command

REFUSAL = RequestError("no_leader", "Nothing was changed.")


def proposed(proposals: Proposals, *, numbered: bool = False, data: bytes = b"1") -> Proposal:
    """One that waits. Only with a number it may be repeated."""
    proposal = Proposal(Publish("chat", (data,)))
    proposals.add(proposal)
    if numbered:
        proposals.number([proposal])
    return proposal


def at(offers: Iterable[Offer], ordinal: int = 0) -> list[tuple[Offer, int]]:
    """Of one command each, one behind the other."""
    return [(offer, number) for number, offer in enumerate(offers, ordinal)]


def numbers(*given: int | None) -> Numbered:
    return Numbered("n1", 1, 1, tuple(number for number in given if number is not None))


def forwarded(proposals: Proposals) -> Forwarded:
    command = Publish("chat", (b"1",), None, b"")
    offer = Forwarded("n2", (command,), (encode_command(command),))
    proposals.add(offer)
    return offer


def outcomes(count: int = 1) -> list[Outcome]:
    return [Published(seq, seq, 0, replayed=False) for seq in range(1, count + 1)]


def ended_unknown(proposal: Proposal) -> bool:
    return proposal.settled.is_set() and isinstance(proposal.failure, OutcomeUnknownError)


@pytest.mark.parametrize("command", [RaiseLevel(2), Expire(1)])
async def test_what_a_leader_decided_is_not_offered_by_it_in_another_term(
    command: Command,
) -> None:
    """It knows nothing of what has happened since: who has joined, or what was published."""
    proposals = Proposals()
    waits, displaced, behind = (Proposal(command) for _ in range(3))
    publishes = [proposed(proposals) for _ in range(3)]
    for proposal in (displaced, behind):
        proposals.add(proposal)
    proposals.place(at(proposals.take(1 << 20)), 5, 1)
    proposals.add(waits)
    proposals.lose_leadership()
    proposals.applied(5, 2, outcomes())
    for proposal in (waits, displaced, behind):
        assert proposal.failure is not None
        assert proposal.failure.code == "no_leader"
    assert proposals.take(1 << 20) == publishes, "of clients it is not the leader who decides"


# --- taking, and room ---


async def test_what_goes_next_is_bounded_and_at_least_one() -> None:
    proposals = Proposals()
    first, second, third = (proposed(proposals, data=b"x" * 100) for _ in range(3))
    assert proposals.take(first.size + second.size) == [first, second]
    assert proposals.waiting_bytes == third.size
    assert proposals.take(1) == [third]
    assert proposals.take(1) == []


def batch(proposals: Proposals, messages: int = 5000, size: int = 1) -> Proposal:
    proposal = Proposal(Publish("chat", (b"x" * size,) * messages))
    proposals.add(proposal)
    return proposal


async def test_a_small_publish_waits_for_one_entry_of_batches_and_not_for_all() -> None:
    proposals = Proposals()
    batches = [batch(proposals) for _ in range(6)]
    small = [proposed(proposals) for _ in range(3)]
    entries = [proposals.take(1 << 20) for _ in range(4)]
    assert entries == [small, batches[:2], batches[2:4], batches[4:]]
    assert (proposals.take(1 << 20), proposals.waiting_bytes) == ([], 0)


async def test_small_publishes_that_a_peer_sends_on_together_do_not_wait_as_a_batch() -> None:
    proposals = Proposals()
    batches = [batch(proposals) for _ in range(6)]
    command = Publish("chat", (b"x" * 200,))
    many = Forwarded("n2", (command,) * 1500, (encode_command(command),) * 1500)
    proposals.add(many)
    assert many.size > LIGHT_BYTES_MAX
    assert many.steps > LIGHT_STEPS_MAX
    assert [proposals.take(1 << 20) for _ in range(3)] == [[many], batches[:2], batches[2:4]]


async def test_batches_go_although_small_publishes_never_cease() -> None:
    proposals = Proposals()
    large = batch(proposals, messages=1, size=200_000)
    taken = []
    for _ in range(4):
        proposed(proposals)
        taken += proposals.take(1 << 20)
    assert large in taken


@pytest.mark.parametrize(
    ("command", "most"),
    [
        (DeleteTopic("a"), 20),
        (CreateTopic("a", replace=True), 20),  # it may keep less than before
        (DeleteTopics(("a", "b")), 10),
        (DeleteTopics(("a",) * 1000, (1,) * 1000), 1),
        (DeleteTopics(()), 20),
        (Expire(2500), 4),
        (Expire(10**6), 1),
        (Expire(), 1),
        (Configure(Settings(True, Retention(1, 1, 1), 1, 1)), 1),
        (KeepTopics(("a",) * 1000), 39),
        (CreateTopic("a"), 100),
    ],
)
async def test_what_takes_long_to_apply_does_not_go_in_numbers(command: Command, most: int) -> None:
    proposals = Proposals()
    for _ in range(100):
        proposals.add(Proposal(command))
    sizes = []
    while entry := proposals.take(1 << 20):
        sizes.append(len(entry))
    assert (max(sizes), sum(sizes)) == (most, 100)


async def test_a_publish_waits_for_no_more_than_one_entry_of_removals() -> None:
    proposals = Proposals()
    for _ in range(5):
        proposals.add(Proposal(Expire(10_000)))
        proposals.add(Proposal(DeleteTopics(("a",) * 1000)))
    small = proposed(proposals)
    assert small in proposals.take(1 << 20) + proposals.take(1 << 20)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_waits_is_taken_once_and_each_line_in_its_order(seed: int) -> None:
    draw = random.Random(seed)
    proposals = Proposals()
    added: list[Offer] = []
    taken: list[Offer] = []
    for _ in range(200):
        match draw.randrange(5):
            case 0 | 1:
                added.append(proposed(proposals, data=b"x" * draw.randrange(100_000)))
            case 2:
                added.append(batch(proposals, draw.randrange(1, 12_000)))
            case 3:
                entry = proposals.take(1 << 18)
                assert len(entry) < 2 or sum(offer.steps for offer in entry) <= STEPS_MAX
                if draw.random() < 0.3:
                    proposals.put_back(entry)
                else:
                    taken += entry
            case 4 if added and draw.random() < 0.2:
                proposals.give_up(draw.choice(added), REFUSAL)  # type: ignore[arg-type]
    while entry := proposals.take(1 << 18):
        taken += entry
    assert proposals.waiting_bytes == 0
    for light in (True, False):
        line = [offer for offer in taken if offer.is_light is light]
        assert line == [offer for offer in added if offer in set(line)]
    assert len(taken) == len(set(taken))
    lost = set(added) - set(taken)
    assert all(offer.settled.is_set() for offer in lost)  # type: ignore[attr-defined]


async def test_what_waits_and_is_given_up_makes_room() -> None:
    """Or a node without a leader fills up with what nobody waits for."""
    proposals = Proposals()
    given_up, other = proposed(proposals), proposed(proposals)
    proposals.give_up(given_up, REFUSAL)
    assert proposals.waiting_bytes == other.size
    assert proposals.take(1000) == [other]
    assert proposals.waiting_bytes == 0


async def test_what_was_given_up_while_it_was_away_does_not_wait_again() -> None:
    proposals = Proposals()
    given_up, other = proposed(proposals), proposed(proposals)
    taken = proposals.take(1000)
    proposals.give_up(given_up, REFUSAL)
    proposals.put_back(taken)
    assert proposals.waiting_bytes == other.size
    assert proposals.take(1000) == [other]


async def test_what_is_put_back_goes_before_all_others_in_its_order() -> None:
    proposals = Proposals()
    first, second = proposed(proposals), proposed(proposals)
    taken = proposals.take(1000)
    third = proposed(proposals)
    proposals.put_back(taken)
    assert proposals.take(1000) == [first, second, third]


# --- giving up ---


async def test_what_is_in_no_log_ends_as_refused() -> None:
    proposals = Proposals()
    waits, was_put_back = proposed(proposals), proposed(proposals)
    proposals.put_back(proposals.take(1000))
    for proposal in (waits, was_put_back):
        proposals.give_up(proposal, REFUSAL)
        assert proposal.failure is REFUSAL
    assert not proposals.unsettled
    assert proposals.commands == 0


async def test_what_may_be_in_a_log_ends_as_unknown() -> None:
    proposals = Proposals()
    away, placed = proposed(proposals), proposed(proposals)
    proposals.take(1000)
    proposals.place(at([placed]), 1, 1)
    for proposal in (away, placed):
        proposals.give_up(proposal, REFUSAL)
        assert ended_unknown(proposal)


async def test_what_may_not_be_repeated_ends_as_unknown_once_it_is_lost() -> None:
    proposals = Proposals()
    proposal = proposed(proposals)
    proposals.lose(proposals.take(1000))
    assert ended_unknown(proposal)
    assert not proposals.is_waiting


async def test_what_was_lost_and_is_repeated_stays_doubtful() -> None:
    """RAFT.md scenario 46: its first attempt may be kept, whatever becomes of the second."""
    proposals = Proposals()
    proposal = proposed(proposals, numbered=True)
    proposals.lose(proposals.take(1000))
    assert not proposal.settled.is_set()
    proposals.put_back(proposals.take(1000))  # the next leader refused the second
    assert not proposal.away
    proposals.give_up(proposal, REFUSAL)
    assert ended_unknown(proposal)
    assert proposals.waiting_bytes == 0


async def test_at_the_end_each_is_told_what_is_known_of_it() -> None:
    proposals = Proposals()
    away = proposed(proposals)
    proposals.take(1000)
    waits = proposed(proposals)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proposals.idle.park)
        await wait_all_tasks_blocked()
        proposals.give_up_all(REFUSAL)  # which is told to who waits for that
    assert ended_unknown(away)
    assert waits.failure is REFUSAL
    assert (proposals.unsettled, proposals.waiting_bytes) == (set(), 0)


async def test_an_outcome_that_comes_after_giving_up_changes_nothing() -> None:
    proposals = Proposals()
    proposal = proposed(proposals)
    proposals.place(at(proposals.take(1000)), 1, 1)
    proposals.give_up(proposal, REFUSAL)
    proposals.applied(1, 1, outcomes())
    assert proposal.outcome is None
    assert proposals.commands == 0


# --- what is applied ---


async def test_each_gets_the_outcome_of_its_place() -> None:
    proposals = Proposals()
    waiting = [proposed(proposals) for _ in range(3)]
    proposals.place(at(proposals.take(1000), 1), 7, 2)
    proposals.applied(7, 2, outcomes(4))
    assert [p.outcome for p in waiting] == outcomes(4)[1:]
    assert proposals.commands == 3


async def test_another_entry_at_its_place_has_it_offered_again() -> None:
    """RAFT.md scenario 47."""
    proposals = Proposals()
    proposal = proposed(proposals)
    proposals.place(at(proposals.take(1000)), 7, 2)
    proposals.applied(7, 3, outcomes())
    assert not proposal.settled.is_set()
    assert proposals.take(1000) == [proposal]


async def test_an_entry_of_a_higher_term_has_all_behind_it_offered_again() -> None:
    """RAFT.md scenario 47: the new log may be shorter, and nothing comes to its place."""
    proposals = Proposals()
    first, second = proposed(proposals), proposed(proposals, data=b"2")
    newer = proposed(proposals, data=b"3")
    proposals.take(1000)
    proposals.place(at([first]), 6, 1)
    proposals.place(at([second]), 7, 1)
    proposals.place(at([newer]), 7, 2)
    proposals.applied(4, 1, outcomes())
    assert not proposals.is_waiting, "they may come yet"
    proposals.applied(5, 2, outcomes())
    again = proposals.take(1000)
    assert set(again) == {first, second}
    proposals.place(at(again), 8, 2)
    proposals.applied(7, 2, outcomes())
    assert newer.outcome == outcomes()[0], "what is of that term is at its place"
    proposals.applied(8, 2, outcomes(2))
    assert {p.outcome for p in again if isinstance(p, Proposal)} == {*outcomes(2)}
    assert not proposals.unsettled


async def test_a_late_place_of_an_older_term_has_it_offered_again_at_once() -> None:
    """RAFT.md scenario 47: nothing comes there for a long time, and then it is another's."""
    proposals = Proposals()
    proposal = proposed(proposals)
    taken = proposals.take(1000)
    proposals.applied(5, 2, outcomes())
    proposals.place_late(at(taken), 9, 1, 5)
    assert proposals.take(1000) == [proposal]
    proposals.place_late(at([proposal]), 6, 2, 5)
    assert not proposals.is_waiting, "this one may come yet"
    proposals.applied(6, 2, outcomes())
    assert proposal.outcome == outcomes()[0]


async def test_behind_a_snapshot_of_a_higher_term_there_is_nothing_of_an_older_one() -> None:
    proposals = Proposals()
    late, behind = proposed(proposals), proposed(proposals, data=b"2")
    proposals.take(1000)
    proposals.place(at([behind]), 9, 1)
    proposals.skipped(7, 2)
    assert proposals.take(1000) == [behind]
    proposals.place_late(at([late]), 8, 1, 7)
    assert proposals.take(1000) == [late]


async def test_a_place_that_its_entry_does_not_have_ends_as_unknown() -> None:
    """It is a peer that gives it."""
    proposals = Proposals()
    proposal = proposed(proposals)
    proposals.place_late(at(proposals.take(1000), 5), 7, 1, 6)
    proposals.applied(7, 1, outcomes())
    assert ended_unknown(proposal)


async def test_an_answer_that_comes_after_its_entry_finds_the_outcome() -> None:
    proposals = Proposals()
    proposal = proposed(proposals)
    taken = proposals.take(1000)
    proposals.keep(7, 1, outcomes())
    proposals.applied(7, 1, outcomes())
    proposals.place_late(at(taken), 7, 1, 7)
    assert proposal.outcome == outcomes()[0]


@pytest.mark.parametrize("numbered", [False, True])
async def test_an_answer_that_comes_far_too_late_is_as_good_as_lost(numbered: bool) -> None:
    """What has a number was settled then, or a snapshot has taken the entry's place."""
    proposals = Proposals()
    proposal = proposed(proposals, numbered=numbered)
    taken = proposals.take(1000)
    proposals.keep(1, 1, outcomes())
    proposals.keep(2, 1, outcomes(RECENT_OUTCOMES_MAX))
    proposals.place_late(at(taken), 1, 1, 2)
    assert ended_unknown(proposal) != numbered
    assert proposal.doubtful == numbered


async def test_what_a_snapshot_covers_is_as_good_as_lost() -> None:
    """RAFT.md scenario 46."""
    proposals = Proposals()
    plain, numbered = proposed(proposals), proposed(proposals, numbered=True)
    behind = proposed(proposals)
    proposals.take(1000)
    proposals.place(at([plain]), 6, 1)
    proposals.place(at([numbered]), 7, 1)
    proposals.place(at([behind]), 8, 1)
    proposals.skipped(7, 1)
    assert ended_unknown(plain)
    assert proposals.take(1000) == [numbered]
    assert numbered.doubtful
    proposals.applied(8, 1, outcomes())
    assert behind.outcome == outcomes()[0]


# --- numbers ---


async def test_a_number_that_is_applied_settles_wherever_it_is() -> None:
    """Its answer was lost, it waits to be sent again, or it is on its way a second time."""
    proposals = Proposals()
    away, waits, again = (proposed(proposals, numbered=True) for _ in range(3))
    taken = proposals.take(1000)
    proposals.lose([waits])
    proposals.lose([again])
    assert proposals.take(again.size) == [again]
    three = numbers(away.number, waits.number, again.number)
    proposals.delivered(three, 1, [REPEATED, *outcomes(4)])
    assert [p.outcome for p in (away, waits, again)] == outcomes(4)[1:]
    assert (proposals.take(1000), proposals.waiting_bytes) == ([], 0)
    proposals.lose(taken)  # only now it is known that the answer will not come
    assert not proposals.is_waiting
    assert not proposals.unsettled


async def test_the_second_of_a_number_says_nothing_unless_the_first_was_never_seen() -> None:
    proposals = Proposals()
    first, unseen = proposed(proposals, numbered=True), proposed(proposals, numbered=True)
    proposals.place(at(proposals.take(1000)), 7, 2)
    twice = numbers(first.number, unseen.number)
    proposals.delivered(twice, 0, [*outcomes(1), REPEATED, REPEATED])
    assert not first.settled.is_set()
    proposals.delivered(numbers(first.number), 0, outcomes(2))
    proposals.applied(7, 2, [REPEATED, REPEATED])
    assert first.outcome == outcomes(2)[1]
    assert ended_unknown(unseen), "a snapshot took the place of the entry that has the first"


async def test_below_the_floor_nothing_is_sent_again() -> None:
    proposals = Proposals()
    first, second, third = (proposed(proposals) for _ in range(3))
    assert proposals.floor == 1
    assert proposals.number([first, second]) == (1, (1, 2))
    assert proposals.number([second, third]) == (1, (2, 3)), "each keeps its number"
    proposals.give_up(second, REFUSAL)
    assert proposals.floor == 1
    proposals.give_up(first, REFUSAL)
    assert proposals.floor == 3
    proposals.delivered(numbers(third.number), 0, outcomes(2))
    assert proposals.floor == 4


# --- what peers sent ---


async def test_what_a_peer_sent_gets_its_place_and_no_more() -> None:
    proposals = Proposals()
    own, offer = proposed(proposals), forwarded(proposals)
    proposals.place(at(proposals.take(1000)), 7, 2)
    assert offer.place == (7, 2, 1)
    assert offer.decided.is_set()
    proposals.applied(7, 2, outcomes(2))
    assert own.outcome == outcomes()[0]


async def test_what_a_peer_sent_goes_back_to_it_when_this_node_leads_no_more() -> None:
    """RAFT.md scenario 47: never on."""
    proposals = Proposals()
    own, offer = proposed(proposals), forwarded(proposals)
    proposals.lose_leadership()
    assert offer.decided.is_set()
    assert offer.place is None
    assert proposals.waiting_bytes == own.size
    assert proposals.take(1000) == [own]


async def test_who_waits_for_an_outcome_is_told_once() -> None:
    early, late, gone = Settled(), Settled(), Settled()
    early.set()
    await early.wait()  # not at all
    async with trio.open_nursery() as nursery:
        nursery.start_soon(late.wait)
        await wait_all_tasks_blocked()
        late.set()
        late.set()
    with trio.move_on_after(0):
        await gone.wait()
    gone.set()  # nobody waits any more
    assert early.is_set()
    assert late.is_set()
    assert gone.is_set()
