"""When the oldest message of each topic will be too old: the next, without a look at each topic.

For each topic that holds something a time is noted that is not later than its
own. Times of topics that lose messages move on all the time, and nobody is told:
a noted time is put right when it comes to the front. So a topic costs a step when it
gets its first message, and one each time its noted time is reached. One that is deleted
is forgotten at once: what there is in memory follows the topics that there are.

What comes to the front is the least there is, by time and name, whenever it was
noted: nodes that hold the same have the same order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Due", "Expiry"]

STALE_MIN: Final = 64  # entries that do not count any more, before they are looked for


class Due(NamedTuple):
    """The topic's oldest message is too old once the time is later than ``time_ms``."""

    time_ms: int
    name: str


class Expiry:
    """``due_ms`` says when a topic's oldest message is too old; None if it holds none."""

    __slots__ = ("_due_ms", "_heap", "_noted")

    def __init__(self, due_ms: Callable[[str], int | None]) -> None:
        self._due_ms = due_ms
        self._heap: list[tuple[int, str]] = []  # plain: the collector need not look at them
        self._noted: dict[str, int] = {}  # the times in the heap that count

    def note(self, name: str, time_ms: int) -> None:
        """The topic's time is this, or later; not needed if it has only become later."""
        noted = self._noted.get(name)
        if noted is None or time_ms < noted:
            self._noted[name] = time_ms
            heapq.heappush(self._heap, (time_ms, name))

    def forget(self, name: str) -> None:
        """The topic holds nothing any more, and is gone."""
        noted, heap = self._noted, self._heap
        if noted.pop(name, None) is not None and len(heap) > 2 * len(noted) + STALE_MIN:
            self._heap = [(time_ms, name) for name, time_ms in noted.items()]
            heapq.heapify(self._heap)

    def first(self) -> Due | None:
        """The topic that is due first, and when; None if no topic holds anything."""
        heap, noted = self._heap, self._noted
        while heap:
            found = Due(*heap[0])
            if noted.get(found.name) != found.time_ms:
                heapq.heappop(heap)  # an earlier one was noted since, or it is forgotten
                continue
            time_ms = self._due_ms(found.name)
            if time_ms == found.time_ms:
                return found
            if time_ms is None:
                heapq.heappop(heap)
                del noted[found.name]
            else:
                heapq.heapreplace(heap, (time_ms, found.name))
                noted[found.name] = time_ms
        return None
