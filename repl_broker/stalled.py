"""What is held for readers that do not read on, and which of them go when it is too much.

A stream whose socket takes no more keeps what is left of the one event that was
being sent. Streams that stopped within the same event share it, and it counts
once. With large messages and readers that stop on purpose, each in another one,
that is still memory without end; so there is a bound. Beyond it those go that
have been stalled for longest: they lag most, and have their cursors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Stalled"]


class Stalled:
    """All that is held for the streams of a node, however they are served."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0  # held now
        self.ended = 0  # streams, since the start
        self._holders: dict[Any, tuple[bytes, Callable[[Any], None]]] = {}  # oldest first
        self._shared: dict[int, int] = {}  # by the identity of what is held: by how many

    def hold(self, holder: Any, data: bytes, end: Callable[[Any], None]) -> None:
        """``data`` waits for ``holder``, until ``release``. ``end`` is called with holders
        that are to go, perhaps this one; but never with the only one."""
        self.release(holder)
        count = self._shared.get(id(data), 0)
        self._shared[id(data)] = count + 1
        self._holders[holder] = (data, end)
        if count:
            return
        self.bytes += len(data)
        while self.bytes > self.bytes_max and len(self._holders) > 1:
            oldest, (_, end_it) = next(iter(self._holders.items()))
            self.release(oldest)
            self.ended += 1
            end_it(oldest)

    def release(self, holder: Any) -> None:
        """It holds nothing any more; nothing happens if it did not."""
        held = self._holders.pop(holder, None)
        if held is None:
            return
        data, _ = held
        count = self._shared[id(data)] - 1
        if count:
            self._shared[id(data)] = count
        else:
            del self._shared[id(data)]
            self.bytes -= len(data)
