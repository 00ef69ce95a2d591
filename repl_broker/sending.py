"""A leader's part in a snapshot: until the peer is level, in rounds.

    does it take one? ──▶ state, history ──▶ far behind by now? ──▶ end ──▶ installed? ──▶ level?
                             ▲                    │ yes
                             └── state, what is new

Gigabytes take minutes, and meanwhile more is published than is kept in memory for the
peer to go on from. So it is sent what is new, and the state as it is by then, until
the rest is surely in memory. Each round is shorter than the one before as long as
sending is faster than publishing; if it is not, there is nothing to be gained, and
the log says so.

How long anything may take is not bounded: that there is progress is. While a snapshot is
on its way, what it covers is held (upkeep.py), and the log keeps more in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from repl_broker.disk import Disk, InThread
from repl_broker.errors import ReplBrokerError
from repl_broker.raft.core import Core, Event, Role, SnapshotFailed, SnapshotSent
from repl_broker.raft.progress import Progress
from repl_broker.snapshots import (
    INSTALLING,
    PIECE_SECONDS_MAX,
    Outgoing,
    SnapshotRefusedError,
    ask_for_room,
)
from repl_broker.taking import Mark, Taker
from repl_broker.transport import PeerRefusedError, PeerUnreachableError
from repl_broker.upkeep import Upkeep

__all__ = ["UNKNOWN_REQUEST", "SnapshotSender"]

log = logging.getLogger(__name__)

LOG_BYTES_KEPT: Final = 32 << 20  # of entries in memory, for followers that lag
LOG_BYTES_MAX: Final = 256 << 20  # … while one is being sent a snapshot
BEHIND_BYTES_MAX: Final = LOG_BYTES_MAX // 2  # the rest is for what comes until it is installed
STILL_SECONDS_MAX: Final = 2 * PIECE_SECONDS_MAX  # a peer that is behind, and gets no further
ASK_SECONDS: Final = 5  # between two questions to one that does not say that it has installed
REST_SECONDS_MAX: Final = 5.0  # until one that refuses is asked again
UNKNOWN_REQUEST: Final = "this version has no request"  # what such a refusal begins with

_Call = Callable[[str, str, Any], Awaitable[Any]]


class _NotLeadingError(ReplBrokerError):
    """In that term."""

    def __init__(self) -> None:
        super().__init__("this node does not lead any more")


class SnapshotSender:
    """Sends snapshots to the peers of one node. ``core`` gives its core, which ``post`` tells.

    ``call`` asks a peer: its name, the request and the argument. ``news`` waits for another
    leader or term, or for so many seconds.
    """

    def __init__(
        self,
        *,
        core: Callable[[], Core],
        call: _Call,
        post: Callable[[Event], None],
        news: Callable[[float], Awaitable[None]],
        mark: Callable[[], Mark],
        disk: Disk,
        taker: Taker,
        upkeep: Upkeep,
        in_thread: InThread,
    ) -> None:
        self.sent = 0
        self._core = core
        self._call_peer = call
        self._post = post
        self._news = news
        self._mark = mark
        self._disk = disk
        self._taker = taker
        self._upkeep = upkeep
        self._in_thread = in_thread
        self._failures: dict[str, tuple[str, int]] = {}  # by peer: the last one, and how many

    async def send(self, peer: str) -> None:
        """Have ``peer`` be level, and tell the core how that went."""
        term = self._core().term

        async def call(name: str, argument: Any) -> Any:
            self._require(term)
            return await self._call_peer(peer, name, argument)

        try:
            await ask_for_room(call, self._mark(), term)  # before there is work
            with self._upkeep.held():
                outgoing = await self._send_rounds(peer, call, term)
                await self._until_installed(peer, outgoing.index, call, term)
                self._post(SnapshotSent(peer, outgoing.index))
                await self._until(
                    peer,
                    term,
                    lambda p: p.match >= self._core().log.index_before(LOG_BYTES_KEPT),
                    STILL_SECONDS_MAX,
                )
        except (
            _NotLeadingError,
            PeerRefusedError,
            PeerUnreachableError,
            SnapshotRefusedError,
        ) as error:
            await self._news(self._failed(peer, error))
            self._post(SnapshotFailed(peer))
        else:
            self.sent += 1
            self._failures.pop(peer, None)

    def _require(self, term: int) -> None:
        core = self._core()
        if core.role is not Role.LEADER or core.term != term:
            raise _NotLeadingError

    @property
    def log_bytes_kept(self) -> int:
        """Of entries, in memory, for followers that lag."""
        return LOG_BYTES_MAX if self._upkeep.is_held else LOG_BYTES_KEPT

    # --- rounds ---

    async def _send_rounds(
        self, peer: str, call: Callable[[str, Any], Awaitable[Any]], term: int
    ) -> Outgoing:
        outgoing = Outgoing(call, self._disk, term, self._in_thread)
        async with self._taker.one:
            snapshot, live = await self._taker.begin().finish()
        log.info("sends a snapshot peer=%s index=%d", peer, snapshot.index)
        await outgoing.begin(snapshot, live)
        log.info("sent its history peer=%s bytes=%d", peer, outgoing.bytes)
        behind = math.inf
        while outgoing.index < self._core().log.index_before(BEHIND_BYTES_MAX):
            before, behind = behind, self._mark().index - outgoing.index
            if behind >= before:
                log.warning(
                    "a snapshot is not sent faster than is published peer=%s entries=%d",
                    peer,
                    behind,
                )
                break
            async with self._taker.one:
                snapshot, live = await self._taker.begin().finish()
            try:
                await outgoing.renew(snapshot, live)
            except PeerRefusedError as error:
                if not str(error).startswith(UNKNOWN_REQUEST):
                    raise
                break  # an older version: it gets the rest from memory, or begins anew
            log.info(
                "sent what is new of a snapshot peer=%s index=%d bytes=%d",
                peer,
                outgoing.index,
                outgoing.bytes,
            )
        await outgoing.end()
        return outgoing

    # --- what the peer makes of it ---

    async def _until_installed(
        self, peer: str, index: int, call: Callable[[str, Any], Awaitable[Any]], term: int
    ) -> None:
        """Until it says so, or is at nothing: then what it has is to be found out."""
        while not await self._until(peer, term, lambda p: p.match >= index, ASK_SECONDS):
            try:
                await ask_for_room(call, self._mark(), term)
            except PeerRefusedError as error:
                if INSTALLING not in str(error):
                    raise
            else:
                break

    async def _until(
        self, peer: str, term: int, reached: Callable[[Progress], bool], still_seconds: float
    ) -> bool:
        """Whether it was, before the peer got no further for so long. Raises if that is over."""
        seen, since = -1, trio.current_time()
        while True:
            self._require(term)
            progress = self._core().progress.get(peer)
            if progress is None or reached(progress):
                return True
            if progress.match > seen:
                seen, since = progress.match, trio.current_time()
            elif trio.current_time() >= since + still_seconds:
                return False
            await trio.sleep(self._core().options.heartbeat_interval_seconds)

    # --- what refuses ---

    def _failed(self, peer: str, error: ReplBrokerError) -> float:
        """For how long to leave it alone. A reason is told once: it may be the same for long."""
        reason, times = self._failures.get(peer, ("", 0))
        if str(error) != reason:
            log.warning("could not send a snapshot peer=%s reason=%r", peer, str(error))
            times = 0
        self._failures[peer] = str(error), times + 1
        rest: float = self._core().options.heartbeat_interval_seconds
        if isinstance(error, PeerRefusedError | SnapshotRefusedError):
            rest = min(rest * 2 ** min(times, 10), REST_SECONDS_MAX)
        return rest
