"""Commands on their way into the log, and their outcomes on the way back.

                      ┌──── refused: not appended ────┐
                      ▼                               │
    propose ──▶    waiting ──▶ away: offered to this node's core, or sent to the leader
                      ▲                               │ appended
                      │ another entry                 ▼
                      └── is applied there ──── placed at (index, term)
                                                      │ that entry is applied
                                                      ▼
                                                   settled

Whichever node appended it, a command that is *placed* is settled by what this
node itself applies at that index: the entry of that term has its outcome; an
entry of another term proves that it is in no committed log, and may be offered
again (Raft §5.3, log matching). So a change of leaders costs no answer, unless
the node cannot learn whether its command was appended at all. Then a command
that may be repeated is, and any other ends as ``outcome_unknown``.

There are three lines of those that wait, and entries are made of them in turn: what is
larger than an entry of several; other batches and removals, which take long to write or to
apply; and all else. So a publish waits for one entry of batches, and not for all the batches
that came before it. Large ones go one at a time, with a pause between (pace.py).
No order is lost: whoever waits in one line has had no answer yet, nor has anyone in
the other.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio

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
)
from repl_broker.errors import NOTHING_CHANGED, OutcomeUnknownError, RequestError
from repl_broker.histogram import BOUNDS_SECONDS
from repl_broker.state import Outcome, Repeated
from repl_broker.wire import encode_command

__all__ = ["COMMIT_BUCKETS_SECONDS", "LARGE_BYTES", "LEADERS_OWN"]
__all__ += ["Forwarded", "Offer", "Proposal", "Proposals", "Watch"]

# What a leader decides by what it knows: no follower sends it on, and no later leader appends it.
LEADERS_OWN: Final = (Configure, Expire, RaiseLevel)
STEPS_MAX: Final = 10_000  # of one entry, unless a single command is more: some 20 ms of applying
LIGHT_STEPS_MAX: Final = 1000  # of what does not wait behind batches …
LIGHT_BYTES_MAX: Final = 64 << 10  # … and its size
LARGE_BYTES: Final = 1 << 20  # what has more goes alone, and no other such beside it
TOPIC_STEPS: Final = 4  # of a message in a batch over several topics
REMOVAL_STEPS: Final = 500  # of what removes a topic's messages: how many, only the state knows
KEPT_TOPICS_OF_STEP: Final = 4
RECENT_OUTCOMES_MAX: Final = 10_000  # of applied entries, for answers that come late
COMMIT_BUCKETS_SECONDS: Final = BOUNDS_SECONDS


class Offer:
    """Commands that go into one entry together, in this order.

    ``steps`` is how much work they are to apply: messages, about. It is light if each of
    them is: what a peer sends on together stays what it was.
    """

    __slots__ = ("commands", "encoded", "is_light", "size", "steps")

    def __init__(self, commands: Sequence[Command], encoded: Sequence[bytes]) -> None:
        self.commands = commands
        self.encoded = encoded
        self.size = sum(map(len, encoded))
        self.steps = sum(map(_steps, commands))
        self.is_light = all(map(_is_light, commands, encoded))


class Watch(Protocol):
    """Whoever wants to know how far a proposal has come; ``now`` is by Trio's clock."""

    def placed(self, now: float) -> None:
        """It has a place in a log; again, if it lost an earlier one."""
        ...

    def settled(self, now: float, outcome: Outcome) -> None:
        """It is committed, and applied here."""
        ...


class Settled:
    """As ``trio.Event``, but for one task that waits, and at half its cost."""

    __slots__ = ("_is_set", "_task")

    def __init__(self) -> None:
        self._is_set = False
        self._task: trio.lowlevel.Task | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Not at all, if it is set."""
        if not self._is_set:
            assert self._task is None, "somebody waits already"
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._forget)

    def _forget(self, _: Callable[[], None]) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Proposal(Offer):
    """One command of a client of this node."""

    __slots__ = (
        "away",
        "doubtful",
        "due",
        "failure",
        "number",
        "outcome",
        "settled",
        "started",
        "watch",
    )

    def __init__(
        self, command: Command, watch: Watch | None = None, patience: float = math.inf
    ) -> None:
        encoded = encode_command(command)
        self.commands, self.encoded, self.size = (command,), (encoded,), len(encoded)
        self.steps = steps = _steps(command)
        self.is_light = steps <= LIGHT_STEPS_MAX and self.size <= LIGHT_BYTES_MAX
        self.watch = watch
        self.started = trio.current_time()
        self.due = self.started + patience  # then it is seen whether there is hope
        self.settled = Settled()
        self.away = False  # it may be in a log
        self.doubtful = False  # an earlier attempt may be, for good
        self.number: int | None = None  # once it was sent to a leader: then it may be repeated
        self.outcome: Outcome | None = None
        self.failure: RequestError | None = None


class Forwarded(Offer):
    """Commands that a peer sent on to this node, because it leads."""

    __slots__ = ("decided", "peer", "place")

    def __init__(self, peer: str, commands: Sequence[Command], encoded: Sequence[bytes]) -> None:
        super().__init__(commands, encoded)
        self.peer = peer
        self.decided = trio.Event()
        self.place: tuple[int, int, int] | None = None  # index, term, ordinal; None: refused


class _Line:
    """Offers that wait, the next one first."""

    __slots__ = ("bytes", "offers")

    def __init__(self) -> None:
        self.offers: deque[Offer] = deque()
        self.bytes = 0

    def add(self, offer: Offer) -> None:
        self.offers.append(offer)
        self.bytes += offer.size

    def put_back(self, offer: Offer) -> None:
        self.offers.appendleft(offer)
        self.bytes += offer.size

    def remove(self, offer: Offer) -> None:
        with suppress(ValueError):  # it is away
            self.offers.remove(offer)
            self.bytes -= offer.size

    def take(self, bytes_max: int) -> list[Offer]:
        """At least one if there is one, and of at most this many bytes, and STEPS_MAX."""
        taken: list[Offer] = []
        size = steps = 0
        while self.offers:
            offer = self.offers[0]
            size += offer.size
            steps += offer.steps
            if taken and (size > bytes_max or steps > STEPS_MAX):
                break
            self.offers.popleft()
            self.bytes -= offer.size
            if isinstance(offer, Proposal):
                if offer.settled.is_set():  # it was given up
                    continue
                offer.away = True
            taken.append(offer)
        return taken

    def clear(self) -> list[Offer]:
        """Returns what waited."""
        offers = [*self.offers]
        self.offers.clear()
        self.bytes = 0
        return offers


class Proposals:
    """All commands of this node that are not settled. Synchronous: no method waits."""

    def __init__(self) -> None:
        self.commands = 0  # settled with an outcome, since the start
        self.commit_seconds = 0.0  # sum, from propose to settled
        self.commit_buckets = [0] * (len(COMMIT_BUCKETS_SECONDS) + 1)
        self.waiting_since = 0.0  # when the first of those that wait came
        self.idle = trio.lowlevel.ParkingLot()  # unparked when nothing is unsettled any more
        self.unsettled: set[Proposal] = set()
        self._light = _Line()
        self._heavy = _Line()
        self._large = _Line()
        self._lines = [self._light, self._heavy, self._large]  # in the order of their turns
        self._applied_term = 0
        self._placed: dict[int, list[tuple[int, int, Proposal]]] = {}  # term, ordinal
        self._recent: OrderedDict[int, tuple[int, Sequence[Outcome]]] = OrderedDict()  # by index
        self._recent_outcomes = 0
        self._numbers = 0  # given so far
        self._numbered: dict[int, Proposal] = {}  # by number, ascending: those that are unsettled

    @property
    def is_waiting(self) -> bool:
        return bool(self._light.offers or self._heavy.offers or self._large.offers)

    @property
    def waiting(self) -> int:
        """How many offers wait."""
        return len(self._light.offers) + len(self._heavy.offers) + len(self._large.offers)

    @property
    def waiting_bytes(self) -> int:
        return self._light.bytes + self._heavy.bytes + self._large.bytes

    def bytes_before(self, offer: Offer) -> int:
        """How much waits where ``offer`` would."""
        return self._line(offer).bytes

    def add(self, offer: Offer) -> None:
        if isinstance(offer, Proposal):
            self.unsettled.add(offer)
        if not self.is_waiting:
            self.waiting_since = trio.current_time()
        self._line(offer).add(offer)

    def _line(self, offer: Offer) -> _Line:
        if offer.is_light:
            return self._light
        return self._large if offer.size > LARGE_BYTES else self._heavy

    @property
    def has_others(self) -> bool:
        """Whether anything but large ones waits, or was what was taken the last time."""
        return self._lines[-1] is not self._large or not self.has_only_large

    @property
    def has_only_large(self) -> bool:
        return not self._light.offers and not self._heavy.offers

    def take(self, bytes_max: int, *, large: bool = True) -> list[Offer]:
        """What goes next: at least one if there is one, and of at most this many bytes.

        Without ``large`` those go on waiting.
        """
        for line in self._lines:
            if line is self._large and not large:
                continue
            if taken := line.take(bytes_max):
                if line is not self._lines[-1]:
                    at = self._lines.index(line) + 1
                    self._lines = self._lines[at:] + self._lines[:at]
                return taken
        return []

    def put_back(self, offers: Iterable[Offer]) -> None:
        """They were not appended: they wait again, before all others."""
        for offer in reversed([*offers]):
            if isinstance(offer, Proposal):
                offer.away = False
                if offer.settled.is_set():
                    continue
            self._line(offer).put_back(offer)

    def recall(self, offers: Iterable[Offer]) -> None:
        """They are in no log, and are about to be put back."""
        for offer in offers:
            if isinstance(offer, Proposal):
                offer.away = False

    def keep_back(
        self, offers: Iterable[Offer], kinds: tuple[type, ...], refusal: RequestError
    ) -> list[Offer]:
        """The offers less those of commands of ``kinds``, which are refused."""
        kept: list[Offer] = []
        for offer in offers:
            if isinstance(offer, Proposal) and isinstance(offer.commands[0], kinds):
                self.refuse(offer, refusal)
            else:
                kept.append(offer)
        return kept

    def lose_leadership(self) -> None:
        """This node leads no more: what peers sent goes back to them, never on; and what it
        decided as leader is over, even if it should lead again."""
        for line in (self._light, self._heavy, self._large):
            for offer in line.clear():
                if isinstance(offer, Forwarded):
                    offer.decided.set()
                elif isinstance(offer.commands[0], LEADERS_OWN) and isinstance(offer, Proposal):
                    self.refuse(offer, _leads_no_more())
                else:
                    line.add(offer)

    def has(self, kind: type[Command]) -> bool:
        """Whether a command of that kind is not settled."""
        return any(isinstance(each.commands[0], kind) for each in self.unsettled)

    def number(self, offers: Sequence[Offer]) -> tuple[int, tuple[int, ...]]:
        """The floor, and the numbers of ``offers``, which are proposals. Each keeps its own."""
        numbers = []
        for offer in offers:
            assert isinstance(offer, Proposal), "what a peer sent on is never sent on again"
            if offer.number is None:
                offer.number = self._numbers = self._numbers + 1
                if not offer.settled.is_set():
                    self._numbered[offer.number] = offer
            numbers.append(offer.number)
        return self.floor, tuple(numbers)

    @property
    def floor(self) -> int:
        """No number below it is sent again."""
        return next(iter(self._numbered), self._numbers + 1)

    def place(self, placed: Iterable[tuple[Offer, int]], index: int, term: int) -> None:
        """They are in the entry at ``index`` of ``term``, each from one of its commands on."""
        for offer, ordinal in placed:
            if isinstance(offer, Forwarded):
                offer.place = (index, term, ordinal)
                offer.decided.set()
            elif isinstance(offer, Proposal):
                self._placed.setdefault(index, []).append((term, ordinal, offer))
                if offer.watch is not None:
                    offer.watch.placed(trio.current_time())

    def place_late(
        self, placed: Iterable[tuple[Offer, int]], index: int, term: int, applied_index: int
    ) -> None:
        """The same for what another node appended: it may be applied here already."""
        placed = [*placed]
        if index > applied_index and term < self._applied_term:
            # Terms only grow along the log: what comes to that place is of another leader.
            self.put_back([offer for offer, _ in placed])
            return
        self.place(placed, index, term)
        if index in self._recent:
            self._settle(index, *self._recent[index])
        elif index <= applied_index:
            self._lose_placed(index)

    def delivered(self, numbered: Numbered, ordinal: int, outcomes: Sequence[Outcome]) -> None:
        """What this node sent on is applied, wherever it is: ``ordinal`` is that of the numbers.

        A number that is applied for the second time says nothing; the first did.
        """
        pairs = zip(numbered.numbers, outcomes[ordinal + 1 :], strict=False)
        now = trio.current_time()
        for number, outcome in pairs:
            proposal = self._numbered.get(number)
            if proposal is not None and not isinstance(outcome, Repeated):
                self._succeed(proposal, outcome, now)

    def keep(self, index: int, term: int, outcomes: Sequence[Outcome]) -> None:
        """Keep the outcomes of an entry for what is sent on without numbers.

        Its place may be told only when it is applied.
        """
        self._recent[index] = (term, outcomes)
        self._recent_outcomes += len(outcomes)
        while self._recent_outcomes > RECENT_OUTCOMES_MAX:
            _, (_, forgotten) = self._recent.popitem(last=False)
            self._recent_outcomes -= len(forgotten)

    def applied(self, index: int, term: int, outcomes: Sequence[Outcome]) -> None:
        """The entry at ``index`` of ``term`` is applied."""
        if index in self._placed:
            self._settle(index, term, outcomes)
        if term > self._applied_term:
            self._reached(term)

    def _reached(self, term: int) -> None:
        """Terms only grow along the log: what is placed behind, of an older one, is lost."""
        self._applied_term = term
        for later in sorted(self._placed):
            placed = self._placed.pop(later)
            if kept := [p for p in placed if p[0] >= term]:
                self._placed[later] = kept
            self._offer_again([p for t, _, p in placed if t < term])

    def skipped(self, upto: int, term: int) -> None:
        """A snapshot took the place of the entries up to ``upto``, the last of which is of
        ``term``: what they did is not known."""
        for index in sorted(i for i in self._placed if i <= upto):
            self._lose_placed(index)
        if term > self._applied_term:
            self._reached(term)

    def _lose_placed(self, index: int) -> None:
        self.lose([proposal for _, _, proposal in self._placed.pop(index)])

    def lose(self, offers: Iterable[Offer]) -> None:
        """Whether they were appended is not known: repeat what has a number, fail the rest."""
        again: list[Offer] = []
        for offer in offers:
            if not isinstance(offer, Proposal):
                continue
            if offer.number is not None:
                offer.doubtful = True
                again.append(offer)
            else:
                self.fail(offer, outcome_unknown())
        self.put_back(again)

    def fail(self, proposal: Proposal, failure: RequestError) -> None:
        if not proposal.settled.is_set():
            proposal.failure = failure
            self._settled(proposal)

    def refuse(self, proposal: Proposal, refusal: RequestError) -> None:
        """It was not appended, and is not to be offered again."""
        self.fail(proposal, outcome_unknown() if proposal.doubtful else refusal)

    def give_up(self, proposal: Proposal, refusal: RequestError, why: str = "") -> None:
        """It has waited too long: ``refusal`` if it is in no log, and else unknown, because of
        ``why`` or for the same reason."""
        in_doubt = proposal.away or proposal.doubtful
        why = why or _reason_of(refusal)
        self.fail(proposal, outcome_unknown(why) if in_doubt else refusal)

    def give_up_all(self, refusal: RequestError, why: str = "") -> None:
        for proposal in [*self.unsettled]:
            self.give_up(proposal, refusal, why)

    def _settle(self, index: int, term: int, outcomes: Sequence[Outcome]) -> None:
        again: list[Proposal] = []
        now = trio.current_time()
        for placed_term, ordinal, proposal in self._placed.pop(index):
            if placed_term != term:
                again.append(proposal)
            elif ordinal >= len(outcomes) or isinstance(outcomes[ordinal], Repeated):
                # A peer gave a place that there is not; or a snapshot took the place of the
                # entry in which it was applied, and nobody knows with what outcome.
                self.fail(proposal, outcome_unknown())
            else:
                self._succeed(proposal, outcomes[ordinal], now)
        self._offer_again(again)

    def _offer_again(self, proposals: Iterable[Proposal]) -> None:
        """Entries of another leader took their places: they are in no committed log."""
        self.put_back(self.keep_back(proposals, LEADERS_OWN, _leads_no_more()))

    def _succeed(self, proposal: Proposal, outcome: Outcome, now: float) -> None:
        if not proposal.settled.is_set():
            proposal.outcome = outcome
            self._count(now - proposal.started)
            if proposal.watch is not None:
                proposal.watch.settled(now, outcome)
            self._settled(proposal)

    def _settled(self, proposal: Proposal) -> None:
        proposal.settled.set()
        self.unsettled.discard(proposal)
        if proposal.number is not None:
            self._numbered.pop(proposal.number, None)
        if not proposal.away:  # it waits for nothing any more, and takes no room
            self._line(proposal).remove(proposal)
        if not self.unsettled:
            self.idle.unpark_all()

    def _count(self, seconds: float) -> None:
        self.commands += 1
        self.commit_seconds += seconds
        self.commit_buckets[bisect_left(COMMIT_BUCKETS_SECONDS, seconds)] += 1


def _steps(command: Command) -> int:
    match command:
        case Publish(topics, data):
            return len(data) if isinstance(topics, str) else len(data) * TOPIC_STEPS
        case DeleteTopic() | CreateTopic(replace=True):
            return REMOVAL_STEPS
        case DeleteTopics(names):
            return min(max(len(names), 1) * REMOVAL_STEPS, STEPS_MAX)
        case Expire(steps_max):
            return min(steps_max or STEPS_MAX, STEPS_MAX)
        case Configure():  # it looks at all topics
            return STEPS_MAX
        case KeepTopics(names):
            return 1 + len(names) // KEPT_TOPICS_OF_STEP
    return 1


def _is_light(command: Command, encoded: bytes) -> bool:
    return len(encoded) <= LIGHT_BYTES_MAX and _steps(command) <= LIGHT_STEPS_MAX


def _leads_no_more() -> RequestError:
    return RequestError("no_leader", f"The node does not lead any more.{NOTHING_CHANGED}")


def outcome_unknown(why: str = "the leader was lost or the node stopped") -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"The node could not learn whether the write is kept, because {why}; ask again with the "
        "same Idempotency-Key."
    )


def _reason_of(refusal: RequestError) -> str:
    reasons = {
        "no_leader": "the leader was lost",
        "behind": "it is behind its cluster (ask another node)",
        "no_room": "it has no room for what its cluster writes (ask another node)",
    }
    return reasons.get(refusal.code, "the leader was lost or the node stopped")
