"""Whether requests should come to this node, and if not, why.

    what it knows now ──▶ reasons ──▶ /readyz, /v1/cluster, ``repl-broker doctor``
                             │
      once a second          ├──▶ the log: a line when it is not ready, and one when it is again
                             └──▶ the hub: streams that would get nothing here end, and go elsewhere

A node is ready if it has a leader, has applied what it must, and has room for what its
cluster writes. That it refuses publishes because the cluster is full is no reason: another
node would say the same, and reading and deleting go on.

A node that leads is ready whatever room it has: what makes room comes in by it.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Final, NamedTuple

import trio

from repl_broker.errors import NOTHING_CHANGED, RequestError
from repl_broker.hub import Hub
from repl_broker.members import Members
from repl_broker.replica import Replica, disowned_error, older_copy_error
from repl_broker.room import Room

__all__ = ["NotReadyError", "Readiness", "Reason"]

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
TELL_SECONDS: Final = 2.0  # a change of leader, or a start, is no news
BEHIND_SECONDS_MAX: Final = 5.0  # after which what was committed is to be applied here
STUCK_SECONDS: Final = 10.0  # without progress, of a node that is behind: its streams end
LEADERLESS_SECONDS: Final = 30.0  # after which they do where there is no leader
END_STREAMS_SECONDS: Final = 30.0  # … and those that have come since, for as long as it lasts

REMEDIES: Final = {
    "no_leader": "see that a majority of the voters run and reach each other at [raft] advertise",
    "behind": "wait, if it has just started; else look at its disk, and at the network to the "
    "leader",
    "no_room": "make room on the disk of this node; it goes on by itself then",
    "older_copy": "stop it, and run 'repl-broker cluster rejoin' on its machine",
}


# What everyone may hear, where only administrators hear which nodes, how much and from whom.
IN_GENERAL: Final = {
    "no_leader": "The node knows no leader that it may follow.",
    "behind": "The node has not applied all that its cluster has committed.",
    "no_room": "The disk of the node has too little room.",
    "older_copy": "The data of the node are an older copy; it takes no writes.",
}
MORE: Final = " With a token that has admin there is more."


class Reason(NamedTuple):
    """Why a node is not ready: ``code`` is a key of errors.PROBLEMS."""

    code: str
    detail: str


class NotReadyError(RequestError):
    """The first of the reasons is its code; all of them are in the answer."""

    def __init__(self, reasons: list[Reason], **more: Any) -> None:
        first, told = reasons[0], [reason._asdict() for reason in reasons]
        super().__init__(first.code, first.detail, **more, reasons=told)
        self._reasons, self._more = reasons, more

    def in_general(self) -> NotReadyError:
        """The same for strangers: the codes, and nothing of what is special about this node."""
        texts = {code: text + MORE for code, text in IN_GENERAL.items()}
        told = [Reason(code, texts.get(code, detail)) for code, detail in self._reasons]
        return NotReadyError(told, **self._more)


class Readiness:
    """Of one node. ``members`` and ``room`` are None where there are none to ask.

    ``reasons`` may be asked at any time; how far the node is behind is as of the last look.
    """

    def __init__(
        self, replica: Replica, hub: Hub, members: Members | None, room: Room | None
    ) -> None:
        self._replica = replica
        self._hub = hub
        self._members = members
        self.room = room
        self._due_index = 0  # to be applied …
        self._due_at = math.inf  # … by then
        self._applied = (0, -math.inf)  # up to where, and since when
        self._leaderless_since: float | None = None
        self._told: tuple[str, ...] = ()  # the codes that the log has
        self._told_since = 0.0  # it was not
        self._not_ready_since: float | None = None
        self._ended_streams_at = -math.inf
        replica.why_behind = self.why_behind

    def why_behind(self) -> RequestError | None:
        """What a request hears that cannot be done by this node, which follows, because it
        lacks entries and does not get them; None if there is hope. It changed nothing."""
        replica = self._replica
        lacks_room = replica.lacks_room
        if replica.leads or replica.leader is None or not (lacks_room or self._is_behind()):
            return None
        room = self.room
        if replica.holds_back and room is not None:
            return RequestError("no_room", f"{room.held_back_reason}{NOTHING_CHANGED}")
        reason = self._level()
        if reason is None:
            return None
        return RequestError("behind", f"{reason.detail} Ask another node.{NOTHING_CHANGED}")

    def reasons(self) -> list[Reason]:
        """Why it is not ready; empty if it is."""
        found = [self._its_own(), self._led(), self._level(), self._with_room()]
        return [reason for reason in found if reason is not None]

    def check(self) -> None:
        """Raises NotReadyError."""
        if reasons := self.reasons():
            raise NotReadyError(reasons)

    # --- one reason each ---

    def _led(self) -> Reason | None:
        replica, members = self._replica, self._members
        if replica.disowned is not None:
            return Reason("no_leader", disowned_error(replica.disowned).detail)
        if replica.leader is not None:
            return None
        if members is None:
            return Reason("no_leader", "The node knows no leader.")
        if not members.has_joined:
            return Reason("no_leader", "The node knows no leader: it has not joined a cluster yet.")
        return Reason("no_leader", f"The node knows no leader. {members.why_no_leader()}".rstrip())

    def _level(self) -> Reason | None:
        replica = self._replica
        if replica.leader is None or replica.disowned is not None:
            return None  # by whom would that be known
        if not replica.caught_up:
            return Reason("behind", "The node has not caught up with its cluster yet.")
        if self._is_behind():
            lag = replica.newest_commit - replica.state.applied_index
            return Reason(
                "behind",
                f"The node is behind its cluster: it lacks {lag} entries of the log, and has for "
                f"more than {BEHIND_SECONDS_MAX:g} seconds.",
            )
        return None

    def _with_room(self) -> Reason | None:
        room = self.room
        if room is None or self._replica.leads or room.disk_reason is None:
            return None
        return Reason("no_room", room.disk_reason)

    def _its_own(self) -> Reason | None:
        replica, members = self._replica, self._members
        if replica.is_older_copy:
            return Reason("older_copy", older_copy_error(replica.node_id).detail)
        if members is not None and members.has_twin:
            text = f"Node {replica.node_id!r} runs twice. {members.objections()}"
            return Reason("no_leader", text.rstrip())
        return None

    def _is_behind(self) -> bool:
        applied = self._replica.state.applied_index
        return applied < self._due_index and trio.current_time() >= self._due_at

    # --- looking ---

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            self.look()
            await trio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        now = trio.current_time()
        self._measure(now)
        reasons = self.reasons()
        self._tell(reasons, now)
        if (why := self._starves(reasons, now)) is None:
            self._ended_streams_at = -math.inf
        elif now >= self._ended_streams_at + END_STREAMS_SECONDS:
            self._ended_streams_at = now
            self._end_streams(why)

    def _measure(self, now: float) -> None:
        replica = self._replica
        applied = replica.state.applied_index
        if applied != self._applied[0]:
            self._applied = applied, now
        if applied >= self._due_index:  # what has been committed by now is due a while later
            newest = replica.newest_commit
            self._due_index = newest
            self._due_at = now + BEHIND_SECONDS_MAX if applied < newest else math.inf
        if replica.leader is not None:
            self._leaderless_since = None
        elif self._leaderless_since is None:
            self._leaderless_since = now

    def _tell(self, reasons: list[Reason], now: float) -> None:
        codes = tuple(reason.code for reason in reasons)
        since = self._not_ready_since = (self._not_ready_since or now) if codes else None
        if codes == self._told or (since is not None and now < since + TELL_SECONDS):
            return
        if since is None:
            log.info("ready again after_seconds=%.0f", now - self._told_since)
        else:
            self._told_since = since
            log.warning(
                "not ready: requests should go to other nodes code=%s reason=%r remedy=%r",
                "+".join(codes),
                " ".join(reason.detail for reason in reasons),
                "; ".join(REMEDIES[code] for code in codes),
            )
        self._told = codes

    def _starves(self, reasons: list[Reason], now: float) -> str | None:
        """Why event streams would get nothing new here, for nobody knows how long."""
        since = self._leaderless_since
        if since is not None and now - since >= LEADERLESS_SECONDS:
            return "no_leader"
        if self._is_behind() and now - self._applied[1] >= STUCK_SECONDS:
            codes = [reason.code for reason in reasons]
            return "no_room" if "no_room" in codes else "behind"
        return None

    def _end_streams(self, why: str) -> None:
        streams = self._hub.statistics().subscribers
        if streams:
            log.warning(
                "ends its event streams, which would get nothing new here: their readers find "
                "another node, or come back streams=%d code=%s remedy=%r",
                streams,
                why,
                REMEDIES[why],
            )
        self._hub.dismiss(why)
