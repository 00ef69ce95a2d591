"""Whether there is room for more messages: on the disk, and by what the operator allows.

    looks once a second ──▶ full? ──▶ publishes are refused: 507 storage_full
                              │
             follows: tells the leader     leads: hands over to a node that has room

A store that is full refuses publishes while there is still disk for all the
rest: deleting, retention, elections, snapshots. It goes on when there is room
again, with a distance between the two, so that it does not flutter.

In a cluster a message goes to every disk. The leader refuses if its own store is
full, or so many others that none of what it took could be committed: those tell
it, for as long as they are. One full disk of three stops nothing. A node whose
disk has come below half of what is to be left free takes no more entries from
the leader, as if they were lost on the way: it stays, serves what it has, and
catches up when it has room. What makes room is taken all the same, down to an eighth:
deletions, expiry, the first entry of a new leader. Else a majority without room could
not get out of that. So is a bounded tail of all else: publishes that were under way when
the leader was told stand in front of the deletion, and no others come after them. If
these are more, and nothing is committed any more, the leader steps aside: one of those
that have not taken them leads then, and takes them back from it.

A snapshot takes the place of all that the store has, and most often of more than it
brings: it is taken as far as it fits beside.

Nothing is told between two looks, so what is taken meanwhile is counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import trio

from repl_broker.command import Command, Publish
from repl_broker.config import LimitsConfig
from repl_broker.errors import NOTHING_CHANGED, ReplBrokerError, RequestError
from repl_broker.replica import Replica
from repl_broker.state import MESSAGE_OVERHEAD_BYTES

__all__ = ["Room", "RoomStatistics"]

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
MAKE_ROOM_SECONDS: Final = 5.0  # between two snapshots for its sake
REPORT_SECONDS: Final = 5.0  # for which what a peer said of itself holds
WRITTEN_TIMES: Final = 3  # each byte: the journal, SQLite's write-ahead log, the database
STORAGE_AGAIN: Final = 0.95  # of ``storage_bytes``, and there is room again
DISK_AGAIN: Final = 1.1  # of ``disk_free_bytes``, or of the half of it
RESERVE: Final = 8  # of this part of ``disk_free_bytes`` what makes room may take the rest
TAIL: Final = 4  # and all else that was under way this part, in all, while it holds back
STAGED_TIMES: Final = 2  # each byte of a snapshot: the write-ahead log, the database
STALLED_SECONDS: Final = 5.0  # without a commit, though there is something to commit
NEARLY: Final = 0.85  # of what there may be: worth a warning …
NEARLY_NOT: Final = 0.80  # … until it is this again
REMEDY: Final = (
    "make room on the disk, delete topics or shorten their retention; the limits are [limits] "
    "storage_bytes and disk_free_bytes"
)
HOLD_SECONDS: Final = 5.0  # for which it stays full, once that was found by an estimate
LOOKS_APART_SECONDS: Final = 0.05  # under load it looks as often as this
REQUEST: Final = "full"  # what a follower tells the leader


class RoomStatistics(NamedTuple):
    stored_bytes: int  # as they count for ``storage_bytes``
    disk_free_bytes: int
    is_full: bool  # publishes are refused here
    refused: int
    fullness: float = 0.0  # 1: there is no room


class Room:
    """Watches the store of one node. ``run`` looks; ``check`` is asked before each publish.

    ``free_bytes`` asks the disk, and may block: what a store could still grow by.
    """

    def __init__(
        self,
        replica: Replica,
        limits: LimitsConfig,
        free_bytes: Callable[[], int],
        *,
        in_thread: Callable[..., Awaitable[Any]] = trio.to_thread.run_sync,
    ) -> None:
        self._replica = replica
        self._limits = limits
        self._free_bytes = free_bytes
        self._in_thread = in_thread
        self._free = free_bytes()
        self._taken_bytes = 0  # since the last look
        self._disk_full = self._storage_full = False
        self._nearly_full = False
        self._others_have_room = False  # as the leader said last
        self._full_until = -math.inf  # at least; by an estimate
        self._peers: dict[str, tuple[float, str]] = {}  # full ones: until when that holds, and why
        self._told = (0.0, "")  # by the leader, as a peer is told
        self._refused = 0
        self._look_now = trio.Event()
        self._stood = (0, 0, 0.0)  # as leader: the term, what was committed, and since when
        replica.handlers[REQUEST] = self._on_full
        replica.admits = self._admits
        replica.on_full = self._leader_is_full
        self._note()

    def reload(self, limits: LimitsConfig) -> None:
        """Other limits, from now on."""
        self._limits = limits
        self._note()

    def statistics(self) -> RoomStatistics:
        return RoomStatistics(
            self._stored_bytes,
            self._free,
            self.reason is not None,
            self._refused,
            self.fullness,
        )

    @property
    def fullness(self) -> float:
        """How much of what there may be is taken, from 0 to 1: of the disk, or of
        ``storage_bytes``, whichever is nearer to its end."""
        limits, floor = self._limits, self._limits.disk_free_bytes
        parts = [0.0]
        if limits.storage_bytes:
            parts.append(self._stored_bytes / limits.storage_bytes)
        if floor:
            store, room = self._replica.store_bytes, max(0, self._free - floor)
            parts.append(store / (store + room) if store + room else 1.0)
            parts.append(floor / max(floor, self._free))
        return min(1.0, max(parts))

    @property
    def reason(self) -> str | None:
        """Why publishes are refused here; None if they are not."""
        self._note_stored()
        if (own := self._own_reason()) is not None:
            return own
        now = trio.current_time()
        if self._replica.leads:
            return self._reason_of_peers(now)
        until, why = self._told
        if until <= now:
            self._told = (0.0, "")
            return None
        return why

    @property
    def disk_reason(self) -> str | None:
        """Why others should be asked, who have room on their disks; None if that is no better.

        A node that takes nothing more from its leader has nothing new. One that takes what comes
        is as good as others for reading, and for publishing if the leader refuses, too.
        """
        if self._replica.holds_back or (self._disk_full and self._others_have_room):
            return self._disk_reason()
        return None

    @property
    def held_back_reason(self) -> str:
        """Why a node that holds back does not do what is asked of it, and who does."""
        return (
            f"The disk of node {self._replica.node_id!r} has {self._free:,} bytes left, so it "
            "takes nothing more from its leader until there is room on it ([limits] "
            "disk_free_bytes). Ask another node: reading, deleting and shorter retention go on "
            "there."
        )

    @property
    def _stored_bytes(self) -> int:
        state = self._replica.state
        return state.retained_bytes + MESSAGE_OVERHEAD_BYTES * state.retained_messages

    def check(self, size: int) -> None:
        """A publish of ``size`` bytes is to be taken. Raises ``storage_full``."""
        limits, taken = self._limits, self._taken_bytes + size
        if (
            not (self._disk_full or self._storage_full or self._peers or self._told[1])
            and (not limits.storage_bytes or self._stored_bytes < limits.storage_bytes)
            and (self._free - WRITTEN_TIMES * taken >= limits.disk_free_bytes)
        ):
            self._taken_bytes = taken
            if 2 * WRITTEN_TIMES * taken > self._free - limits.disk_free_bytes:
                self._look_now.set()  # half of what was left may be gone: what is it really?
            return
        reason = self.reason
        if reason is None:
            self._taken_bytes += size
            reason = self._reason_by_estimate()
        if reason is not None:
            self._refused += 1
            if self._replica.lacks_room:
                raise RequestError("storage_full", f"{self.held_back_reason}{NOTHING_CHANGED}")
            raise _storage_full(reason)

    async def run(self) -> None:
        """Look, and see to it that room is made, until cancelled."""
        made_room_at = -MAKE_ROOM_SECONDS
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._look_now.wait()
                await trio.sleep(LOOKS_APART_SECONDS)
            self._look_now = trio.Event()
            taken = self._taken_bytes
            try:
                self._free = await self._in_thread(self._free_bytes)
            except OSError as error:
                log.warning("cannot ask the disk for its free space error=%r", str(error))
            self._taken_bytes -= taken
            self._note()
            if self._disk_full or self._storage_full:
                await self._pass_on()
            now = trio.current_time()
            if self._is_stalled(now):
                log.warning(
                    "steps aside: what it has taken has no room on the others uncommitted=%d "
                    "reason=%r",
                    self._uncommitted,
                    self._reason_of_peers(now),
                )
                self._replica.step_aside()
            if self._disk_full and now >= made_room_at + MAKE_ROOM_SECONDS:
                made_room_at = now
                self._replica.make_room()

    # --- the own store ---

    def _note(self) -> None:
        """Compare with the limits, and say when that changes."""
        floor = self._limits.disk_free_bytes
        was = self._disk_full
        self._disk_full = self._free < (floor * DISK_AGAIN if was else floor)
        self._disk_full |= trio.current_time() < self._full_until
        self._note_reserve(floor)
        self._tell(was, self._disk_full, "the disk of the store has too little room")
        self._note_stored()
        self._note_nearly()

    def _note_nearly(self) -> None:
        """Before anything is refused."""
        fullness = self.fullness
        is_nearly = fullness >= (NEARLY_NOT if self._nearly_full else NEARLY)
        if is_nearly is self._nearly_full:
            return
        self._nearly_full = is_nearly
        if not is_nearly:
            log.info("the store has room again fullness=%.2f", fullness)
            return
        if self._disk_full or self._storage_full:  # which is told
            return
        log.warning(
            "the store fills up; when it is full publishes are refused fullness=%.2f "
            "free_bytes=%d stored_bytes=%d remedy=%r",
            fullness,
            self._free,
            self._stored_bytes,
            REMEDY,
        )

    def _note_reserve(self, floor: int) -> None:
        """What is taken from the leader. What it has let through may not be written yet, so
        it counts for as long as the node holds back, also against what is free by now."""
        replica, left = self._replica, self._free - floor // RESERVE
        half = floor // 2
        replica.holds_back = self._free < (half * DISK_AGAIN if replica.holds_back else half)
        replica.has_reserve = left >= 0
        replica.tail_bytes_max = min(floor // TAIL, left) // WRITTEN_TIMES
        replica.snapshot_bytes_max = left // STAGED_TIMES if floor else math.inf
        if not replica.holds_back:
            replica.tail_bytes = 0

    def _note_stored(self) -> None:
        limit, was = self._limits.storage_bytes, self._storage_full
        full_at = limit * STORAGE_AGAIN if was else limit
        self._storage_full = limit > 0 and self._stored_bytes >= full_at
        self._tell(was, self._storage_full, "the store holds as much as it may")

    def _tell(self, was: bool, is_full: bool, what: str) -> None:
        if was != is_full:
            outcome = "publishes are refused" if is_full else "it is over"
            level = logging.WARNING if is_full else logging.INFO
            limits = self._limits
            text = f"{what}, {outcome} free_bytes=%d disk_free_bytes=%d stored_bytes=%d "
            text += "storage_bytes=%d remedy=%r"
            bounds = self._free, limits.disk_free_bytes, self._stored_bytes, limits.storage_bytes
            log.log(level, text, *bounds, REMEDY if is_full else "none")

    def _own_reason(self) -> str | None:
        limits = self._limits
        if self._disk_full:
            return self._disk_reason()
        if self._storage_full:
            return (
                "The store is full: the messages that are retained, of all clients, take "
                f"{self._stored_bytes:,} bytes, and {limits.storage_bytes:,} is the most "
                f"([limits] storage_bytes); below {int(limits.storage_bytes * STORAGE_AGAIN):,} "
                "publishes are taken again. Delete topics, shorten their retention, or raise "
                "storage_bytes."
            )
        return None

    def _disk_reason(self) -> str:
        return (
            f"The disk of node {self._replica.node_id!r} has {self._free:,} bytes left, and "
            f"{self._limits.disk_free_bytes:,} are to stay free ([limits] disk_free_bytes). Make "
            "room on it, delete topics, or shorten their retention."
        )

    def _reason_by_estimate(self) -> str | None:
        """What was taken since the last look may have taken the rest of the disk."""
        floor = self._limits.disk_free_bytes
        if not floor or self._free - WRITTEN_TIMES * self._taken_bytes >= floor:
            return None
        # What is told, and counted, is so from the first refusal on, and not in turns.
        self._full_until = trio.current_time() + HOLD_SECONDS
        self._disk_full = True
        self._tell(False, True, "the disk of the store has too little room, by an estimate")
        self._look_now.set()
        return (
            f"The disk of node {self._replica.node_id!r} would have less than "
            f"{floor:,} bytes left, with what is being written ([limits] disk_free_bytes). Make "
            "room on it, delete topics, or shorten their retention."
        )

    # --- the cluster ---

    @property
    def _uncommitted(self) -> int:
        replica = self._replica.statistics()
        return replica.last_index - replica.commit_index

    def _is_stalled(self, now: float) -> bool:
        """Whether this node leads, and nothing has been committed for long, because too few
        of the others have room for what comes next; and these could have a leader of their own.
        """
        replica = self._replica
        term, committed, since = self._stood
        if not replica.leads or (replica.term, replica.commit_index) != (term, committed):
            self._stood = replica.term, replica.commit_index, now
            return False
        voters = self._replica.membership.voters
        can_elect = 2 * len(self._peers.keys() & voters) > len(voters)
        if not self._uncommitted or self._reason_of_peers(now) is None or not can_elect:
            self._stood = term, committed, now
            return False
        return now - since >= STALLED_SECONDS

    async def _pass_on(self) -> None:
        """Tell the leader; or, as leader, let one lead that has room."""
        replica = self._replica
        try:
            if replica.leads:
                if self._disk_full and self._reason_of_peers(trio.current_time()) is None:
                    await replica.hand_over(avoid=self._peers)
            elif replica.leader is not None:
                why = self._own_reason() or ""
                found = await replica.call_leader(REQUEST, why, seconds=LOOK_SECONDS)
                self._others_have_room = found is False  # an older leader does not say
        except ReplBrokerError as error:
            log.debug("could not pass on that the store is full reason=%r", str(error))

    async def _on_full(self, peer: str, argument: Any) -> bool:
        """Take note; whether publishes are refused here, too."""
        why = msgspec.convert(argument, str)[:1000]
        if peer not in self._peers:
            log.warning("a peer has no room peer=%s reason=%r remedy=%r", peer, why, REMEDY)
        self._peers[peer] = (trio.current_time() + REPORT_SECONDS, why)
        return self.reason is not None

    def _reason_of_peers(self, now: float) -> str | None:
        """Why nothing could be committed: too few voters have room."""
        for peer in [peer for peer, told in self._peers.items() if told[0] <= now]:
            del self._peers[peer]
            log.info("a peer does not say any more that it has no room peer=%s", peer)
        if not self._peers:
            return None
        voters = self._replica.membership.voters
        full = [peer for peer in self._peers if peer in voters]
        if not full or len(voters) - len(full) > len(voters) // 2:
            return None
        return self._peers[full[0]][1]

    def _admits(self, commands: Sequence[Command]) -> str | None:
        """A peer sends these on to this node, which leads: why they are not taken."""
        sizes = [sum(map(len, each.data)) for each in commands if isinstance(each, Publish)]
        if not sizes:
            return None
        try:
            self.check(sum(sizes))
        except RequestError as refusal:
            return refusal.detail
        return None

    def _leader_is_full(self, why: str) -> RequestError:
        """The leader has said so: it is not asked with every publish."""
        self._told = (trio.current_time() + LOOK_SECONDS, why)
        self._refused += 1
        return _storage_full(why)


def _storage_full(reason: str) -> RequestError:
    return RequestError(
        "storage_full",
        f"{reason.removesuffix(_REMEDY)}{_REMEDY}",
    )


_REMEDY: Final = (
    " Reading, deleting and shorter retention go on, and publishing does when there is room."
)
