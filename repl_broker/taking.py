"""Snapshots of the state: each of one moment, made in pieces while entries are applied.

    async with taker.one:             one at a time
        begun = taker.begin()         the moment; what belongs to it is taken in the same step
        snapshot = await begun.finish()

They have a turnstile of their own: neither do they wait behind the long work of requests,
which may be without end, nor does that wait behind them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import trio

from repl_broker.capture import Capture
from repl_broker.disk import InThread
from repl_broker.raft.log import Snapshot
from repl_broker.state import BrokerState
from repl_broker.turnstile import Turnstile

__all__ = ["Begun", "Mark", "Taken", "Taker"]

PARTS_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Mark:
    """Of which point of the log a snapshot is."""

    index: int
    term: int
    membership: bytes


class Taken(NamedTuple):
    """A snapshot, and the entries that it covers of which some message is retained."""

    snapshot: Snapshot
    live: array[int]  # ascending


class Begun:
    """The moment is fixed; the bytes are to be made."""

    def __init__(
        self, mark: Mark, capture: Capture, turnstile: Turnstile, in_thread: InThread
    ) -> None:
        self.index = mark.index
        self._mark = mark
        self._capture = capture
        self._turnstile = turnstile
        self._in_thread = in_thread

    async def finish(self) -> Taken:
        """Once, before ``one`` is let go."""
        capture = self._capture
        try:
            while await self._turnstile.give(capture.piece):
                pass
            # What is complete changes no more; and with millions of entries it is a copy of size.
            parts, live = capture.parts(), await self._in_thread(capture.live_entries)
        finally:
            capture.end()
        data = await self._in_thread(_joined, parts)
        mark = self._mark
        return Taken(Snapshot(mark.index, mark.term, data, mark.membership), live)


def _joined(parts: list[bytes]) -> bytes:
    """All of them; and it lets them go, a few at a time, as each may take as long as a piece."""
    data = b"".join(parts)
    while parts:
        del parts[-PARTS_AT_ONCE:]
    return data


class Taker:
    """``state`` and ``mark`` give the newest."""

    def __init__(
        self, state: Callable[[], BrokerState], mark: Callable[[], Mark], in_thread: InThread
    ) -> None:
        self.one = trio.Lock()
        self._state = state
        self._mark = mark
        self._in_thread = in_thread
        self._turnstile = Turnstile()

    def begin(self) -> Begun:
        """A snapshot of now; whoever has ``one`` finishes it."""
        return Begun(self._mark(), self._state().capture(), self._turnstile, self._in_thread)
