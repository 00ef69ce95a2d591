"""What time it is, as far as the clocks of the members agree.

    every few seconds   each node asks each member: what does your clock say?
    a majority agrees   that is the time; whose clock is off goes by theirs, declines
                        leadership, and is named in the log of every node
    nobody does         the time of the log goes on at a steady pace, and nothing is
                        removed for its age until it is certain again

Clocks are compared by their distance from this node's steady clock (Trio's), which is
never set. So a clock that jumps is noticed at once, by the node that has it, without
asking anybody. Nothing is concluded from fewer clocks than a majority of the voters
have: then, and on a single node, the own clock counts.

An entry's time is given by the leader (``Replica.time_ms``); before it knows how its
clock compares, it waits a moment with its first entry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import trio

from repl_broker.agreement import middle
from repl_broker.errors import RequestError
from repl_broker.raft.log import Membership
from repl_broker.replica import Replica
from repl_broker.transport import PeerRefusedError, PeerUnreachableError

__all__ = ["ClockStatistics", "Clocks"]

log = logging.getLogger(__name__)

REQUEST: Final = "time"
ASK_SECONDS: Final = 5.0
ASK_SOON_SECONDS: Final = 0.5  # while too few have answered
ANSWER_SECONDS_MAX: Final = 2.0  # of a round trip; half of it is how wrong the answer may be
GOOD_SECONDS: Final = 60.0  # that an answer counts
HOLD_SECONDS: Final = 1.0  # that a leader waits with its entries for the first answers
HAND_OVER_SECONDS: Final = 60.0  # between two tries to have another lead
BACK: Final = 0.9  # of the bound, within which a clock that was off is right again
REMEDY: Final = "let all nodes follow NTP, and look at timedatectl there"


class ClockStatistics(NamedTuple):
    """Seconds by which clocks are ahead; what is not known is None, or left out."""

    seconds_max: float  # apart that two clocks may be that are both taken for right
    own: float | None = None  # of what a majority has
    members: tuple[tuple[str, float], ...] = ()  # by id, of this node's own


class _Answer(NamedTuple):
    offset_ms: float  # of the member's clock from this node's steady one
    at: float  # by the steady clock


class Clocks:
    """The members' clocks as this node sees them. ``run`` asks.

    ``bound_seconds`` is how far apart two clocks may be that are both taken for right.
    """

    def __init__(self, replica: Replica, now_ms: Callable[[], int], bound_seconds: float) -> None:
        self._replica = replica
        self._now_ms = now_ms
        self._bound_ms = bound_seconds * 1000
        self._answers: dict[str, _Answer] = {}  # by member, the newest
        self._mute: set[str] = set()  # members that do not answer such a question
        self._middle_ms: float | None = None  # what a majority agrees on, as an offset
        self._is_free = True  # nothing can be concluded: the own clock counts
        self._pending_since: float | None = None  # as leader: too few have answered yet
        self._is_off: set[str] = set()  # whose clock is, as was logged; this node's, too
        self._differs = False  # no majority agrees, as was logged
        self._leads_on = False  # though its own clock is off, as was logged
        self._declines = False
        self._handed_over_at = -HAND_OVER_SECONDS
        self._judged: Membership | None = None  # which members that was concluded for
        self._stirred = trio.Event()  # set when there is reason to ask at once
        replica.handlers[REQUEST] = self._on_time
        replica.certain_ms = self.certain_ms

    def reload(self, bound_seconds: float) -> None:
        """Another bound, from now on."""
        self._bound_ms = bound_seconds * 1000
        self._judge()

    # --- what it is ---

    def certain_ms(self) -> int | None:
        """The time of day; None while no clock is known to be right. For each entry: quick."""
        if self._judged is not self._replica.membership:
            self._judge()
            self._stirred.set()
        now_ms = self._now_ms()
        if self._is_free:
            return now_ms
        if self._middle_ms is None:
            return None
        right_ms = trio.current_time() * 1000 + self._middle_ms
        return now_ms if abs(now_ms - right_ms) <= self._bound_ms else int(right_ms)

    def skew_seconds(self, node_id: str) -> float | None:
        """How far the member's clock is ahead of this node's; None: not known."""
        if node_id == self._replica.node_id:
            return 0.0
        answer = self._fresh().get(node_id)
        return None if answer is None else round(answer.offset_ms - self._own_ms()) / 1000

    def off_seconds(self, node_id: str) -> float | None:
        """How far the member's clock is ahead of what a majority has, if that is further than two
        that are right may be apart; None if it is not, or not known."""
        answer = self._fresh().get(node_id)
        offset_ms = self._own_ms() if node_id == self._replica.node_id else None
        if answer is not None:
            offset_ms = answer.offset_ms
        if self._middle_ms is None or offset_ms is None:
            return None
        ahead_ms = offset_ms - self._middle_ms
        return ahead_ms / 1000 if abs(ahead_ms) > self._bound_ms else None

    def check(self, node_id: str) -> None:
        """Whether the member may be asked to lead. Raises ``clock_off``."""
        if (ahead := self.off_seconds(node_id)) is None:
            return
        way = "ahead of" if ahead > 0 else "behind"
        raise RequestError(
            "clock_off",
            f"The clock of {node_id!r} is {abs(ahead):,.1f} s {way} what a majority of the members "
            f"has, and {self._bound_ms / 1000:g} s is the most ([cluster] "
            "clock_skew_seconds_max): it would leave it to others to lead. Let it follow NTP (see "
            "timedatectl there), and ask again.",
        )

    def statistics(self) -> ClockStatistics:
        own_ms = self._own_ms()
        off_ms = None if self._middle_ms is None else own_ms - self._middle_ms
        return ClockStatistics(
            self._bound_ms / 1000,
            None if off_ms is None else round(off_ms) / 1000,
            tuple(
                (peer, round(answer.offset_ms - own_ms) / 1000)
                for peer, answer in sorted(self._fresh().items())
            ),
        )

    def _own_ms(self) -> float:
        return self._now_ms() - trio.current_time() * 1000

    def _fresh(self) -> Mapping[str, _Answer]:
        since = trio.current_time() - GOOD_SECONDS
        ids = self._replica.membership.ids
        return {p: each for p, each in self._answers.items() if each.at >= since and p in ids}

    # --- asking ---

    async def run(self) -> None:
        """Ask, judge and act, until cancelled."""
        self._judge()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            while True:
                self._stirred = trio.Event()
                await self._ask_all()
                self._judge()
                self._tell()
                await self._act()
                is_known = self._is_free or self._middle_ms is not None
                with trio.move_on_after(ASK_SECONDS if is_known else ASK_SOON_SECONDS):
                    await self._stirred.wait()

    async def _watch(self) -> None:
        """With another leader, soon or now, the time may be needed at once."""
        while True:
            await self._replica.news(self._replica.seen)
            self._stirred.set()

    async def _ask_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for peer in sorted(self._replica.membership.ids - {self._replica.node_id}):
                nursery.start_soon(self._ask, peer)

    async def _ask(self, peer: str) -> None:
        began = trio.current_time()
        try:
            found = await self._replica.peers.call(peer, REQUEST, None, seconds=ANSWER_SECONDS_MAX)
            there_ms = msgspec.convert(found, int)
        except PeerUnreachableError:
            return
        except (PeerRefusedError, msgspec.ValidationError):  # an older version does not know it
            self._mute.add(peer)
            return
        now = trio.current_time()
        self._mute.discard(peer)
        if now - began <= ANSWER_SECONDS_MAX:
            self._answers[peer] = _Answer(there_ms - (began + now) / 2 * 1000, now)
            self._judge()

    async def _on_time(self, peer: str, argument: Any) -> int:
        return self._now_ms()

    # --- judging ---

    def _judge(self) -> None:
        """What may be concluded from the answers that there are."""
        replica = self._replica
        self._judged = replica.membership
        voters, me = replica.membership.voters, replica.node_id
        known = [each.offset_ms for peer, each in self._fresh().items() if peer in voters]
        if me in voters:
            known.append(self._own_ms())
        needed = len(voters) // 2 + 1
        open_ = voters - self._fresh().keys() - self._mute - {me}
        reachable = sum(map(replica.peers.is_connected, open_))
        middle_ms, agree = middle(known, self._bound_ms)
        is_known = len(voters) > 1 and agree >= needed
        self._middle_ms = middle_ms if is_known else None
        is_pending = len(voters) > 1 and not is_known and agree + reachable >= needed
        self._is_free = len(voters) < 2 or (len(known) < needed and not is_pending)
        self._hold(is_pending)

    def _hold(self, is_pending: bool) -> None:
        """As leader, wait with entries for the first answers; but not for long."""
        replica = self._replica
        if not is_pending or not replica.leads:
            self._pending_since = None
        elif self._pending_since is None:
            self._pending_since = trio.current_time()
        since = self._pending_since
        has_waited = since is not None and trio.current_time() >= since + HOLD_SECONDS
        held, replica.holds_entries = replica.holds_entries, is_pending and not has_waited
        if held and not replica.holds_entries:
            replica.turn()

    def _ahead(self, offset_ms: float) -> float:
        """Seconds, of the majority's time; if there is none, of this node's."""
        right_ms = self._own_ms() if self._middle_ms is None else self._middle_ms
        return (offset_ms - right_ms) / 1000

    def _tell(self) -> None:
        """One line whenever a clock passes the bound, and when it is back."""
        offsets = {peer: each.offset_ms for peer, each in self._fresh().items()}
        me = self._replica.node_id
        offsets[me] = self._own_ms()
        for node_id, offset_ms in sorted(offsets.items()):
            ahead = self._ahead(offset_ms)
            was_off = node_id in self._is_off
            is_off = abs(ahead) * 1000 > self._bound_ms * (BACK if was_off else 1)
            if is_off and not was_off:
                self._is_off.add(node_id)
                log.warning(
                    "a clock is off member=%s ahead_seconds=%.1f seconds_max=%g of=%r remedy=%r",
                    node_id,
                    ahead,
                    self._bound_ms / 1000,
                    "this node" if self._middle_ms is None else "a majority",
                    REMEDY,
                )
            elif was_off and not is_off:
                self._is_off.discard(node_id)
                log.info("a clock is right again member=%s ahead_seconds=%.1f", node_id, ahead)
        self._is_off &= self._replica.membership.ids | {me}
        self._tell_differing(len(offsets))

    def _tell_differing(self, clocks: int) -> None:
        differs = not self._is_free and self._middle_ms is None and clocks > 1
        if differs and not self._differs:
            log.warning(
                "no majority agrees on the time: nothing is removed for its age until it does "
                "remedy=%r",
                REMEDY,
            )
        elif self._differs and not differs:
            log.info("a majority agrees on the time again")
        self._differs = differs

    # --- acting ---

    async def _act(self) -> None:
        """Leave it to others to lead, if the own clock is off."""
        replica = self._replica
        declines = self._middle_ms is not None and replica.node_id in self._is_off
        if declines != self._declines:
            self._declines = declines
            replica.decline(declines=declines)
        if not declines or not replica.leads:
            self._leads_on = False
            return
        if trio.current_time() < self._handed_over_at + HAND_OVER_SECONDS:
            return
        self._handed_over_at = trio.current_time()
        await replica.hand_over(replica.membership.ids - self._right())
        if replica.leads and not self._leads_on:
            self._leads_on = True
            log.warning("leads on though its clock is off: no other member can; time is theirs")

    def _right(self) -> set[str]:
        """The members whose clocks are known to be right."""
        return {p for p, each in self._fresh().items() if p not in self._is_off}
