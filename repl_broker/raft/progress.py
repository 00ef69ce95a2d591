"""What a leader knows of each peer's log, and how much it sends it.

    PROBE ──── accepted ────▶ REPLICATE
      ▲  ◀──── refused ─────     │
      │                          │ what it needs is compacted
      └──── sent or failed ── SNAPSHOT

PROBE: where the logs agree is not known; one append at a time. REPLICATE: it
is; appends are pipelined, within a window by count and by bytes. SNAPSHOT: the
peer gets a snapshot; appends wait. ``match`` only ever grows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Mode", "Progress"]


class Mode(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Progress:
    """One peer. Invariant: ``match < next``."""

    next: int  # the index of the next entry to send
    match: int = 0  # the log is known to be equal, and on the peer's disk, up to here
    mode: Mode = Mode.PROBE
    paused: bool = False  # PROBE: an append is on its way
    heard_at: float = 0.0  # when the peer last answered, or this leader began to wait for it
    silent: bool = True  # it has not answered since then, or its connection broke
    round: int = 0  # the newest heartbeat that it answered
    told_commit: int = 0  # what it knows to be committed, if nothing was lost
    snapshot_index: int = 0  # SNAPSHOT: what it is being sent
    catch_up_target: int = 0  # a learner's round: where the log ended when it began …
    catch_up_began: float = 0.0  # … and when that was
    in_flight: deque[tuple[int, int]] = field(default_factory=deque)  # last index, bytes
    in_flight_bytes: int = 0

    def may_send(self, appends_max: int, bytes_max: int) -> bool:
        """Whether another append may go out now."""
        match self.mode:
            case Mode.PROBE:
                return not self.paused
            case Mode.REPLICATE:
                return len(self.in_flight) < appends_max and self.in_flight_bytes < bytes_max
            case Mode.SNAPSHOT:
                return False

    def is_answering(self, since: float) -> bool:
        """Whether the peer has answered since then, and can be sent entries."""
        return self.heard_at >= since and not self.silent and self.mode is not Mode.SNAPSHOT

    @property
    def is_waiting(self) -> bool:
        """Whether an append has gone out that is not answered yet."""
        match self.mode:
            case Mode.PROBE:
                return self.paused
            case Mode.REPLICATE:
                return self.match < self.next - 1
            case Mode.SNAPSHOT:
                return False

    def sent(self, last_index: int, size: int) -> None:
        """An append with entries up to ``last_index`` has gone out."""
        if self.mode is Mode.PROBE:
            self.paused = True
        else:
            self.next = last_index + 1
            self.in_flight.append((last_index, size))
            self.in_flight_bytes += size

    def accepted(self, index: int) -> bool:
        """The peer has everything up to ``index``. False when that was known."""
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
        news = index > self.match
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        if self.mode is Mode.PROBE or (self.mode is Mode.SNAPSHOT and index >= self.snapshot_index):
            self.replicate()
            return True
        return news

    def refused(self, index: int, probe_at: int) -> bool:
        """The entry at ``index`` did not match; try the one at ``probe_at``. False if stale."""
        if self.mode is Mode.SNAPSHOT or index <= self.match:
            return False  # an answer to what is long since overtaken
        if self.mode is Mode.PROBE and index != self.next - 1:
            return False
        self.probe(min(probe_at, index - 1) + 1)
        return True

    def probe(self, next_index: int) -> None:
        self._enter(Mode.PROBE)
        self.next = max(next_index, self.match + 1)

    def replicate(self) -> None:
        self._enter(Mode.REPLICATE)
        self.next = self.match + 1

    def snapshot(self, index: int) -> None:
        self._enter(Mode.SNAPSHOT)
        self.snapshot_index = index

    def _enter(self, mode: Mode) -> None:
        self.mode = mode
        self.paused = False
        self.in_flight.clear()
        self.in_flight_bytes = 0
