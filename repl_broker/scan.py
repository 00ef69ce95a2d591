"""Where the retained messages of some topics are, in order, a page at a time.

There are two ways to find them, and neither looks at more than it must:

    by topic    the next message of each topic, in a heap: for filters that name
                topics, and for patterns that few topics match
    in order    through the order of all messages, past those that do not match: for
                patterns that many topics match, and where little is left

Both go on while the state does. What is trimmed meanwhile is left out; what is
published meanwhile comes when it is reached. ``position`` is how far it has come:
everything that is retained up to there was given. It moves even where nothing
matches, so that a stream that passes over a million others' messages does so in pieces,
and is level when its position is the state's.

By topic a scan holds BY_TOPIC_MAX places at most, in order it holds none.
"""

from __future__ import annotations

import heapq
from itertools import compress
from typing import TYPE_CHECKING, Final

from repl_broker.message import SEQUENCE_MAX, FilterSet
from repl_broker.patience import Patience
from repl_broker.timeline import UNKNOWN

if TYPE_CHECKING:
    from repl_broker.state import BrokerState, Location, Topic

__all__ = ["NEAR_MESSAGES", "Scan"]

BY_TOPIC_MAX: Final = 256
NEAR_MESSAGES: Final = 4096  # so few are gone through in order, whatever the filters
PIECE_NAMES: Final = 32  # between two looks at the clock
LOOKS_MAX: Final = 64  # until it goes in order, because finding the topics takes too long
PIECE_MATCHES: Final = 16


class Scan:
    """One reader's way through what ``filters`` match above ``after``."""

    __slots__ = (
        "_at", "_filters", "_heap", "_is_in_order", "_looks", "_names", "_state", "_upto",
        "position",
    )  # fmt: skip

    def __init__(self, state: BrokerState, filters: FilterSet, after: int) -> None:
        self.position = min(after, state.seq)
        self._state = state
        self._filters = filters
        # By topic: what comes next of each, up to _upto. Then it is decided anew.
        self._heap: list[tuple[int, int, int, Topic]] | None = None
        self._decide()

    def _decide(self) -> None:
        left = self._state.seq - self.position
        self._is_in_order = bool(self._filters.patterns) and left <= NEAR_MESSAGES
        self._upto = self._state.seq  # topics that come from now on have nothing up to here
        self._names: list[str] = []  # of topics, as far as they were found
        self._at: str | None = ""
        self._looks = 0

    def take(self, turn: Patience, limit: int, bytes_max: int = SEQUENCE_MAX) -> list[Location]:
        """The next ``limit`` at most, of at most ``bytes_max`` of data, but one may be larger.

        Fewer, perhaps none, when the turn is over; the position tells.
        """
        if self._heap is None and not self._is_in_order:
            self._begin_by_topic(turn)
        if self._heap is not None:
            return self._take_by_topic(limit, bytes_max)
        return self._take_in_order(turn, limit, bytes_max) if self._is_in_order else []

    def _begin_by_topic(self, turn: Patience) -> None:
        """Find the topics, if they are few and found soon; else it goes in order."""
        state, filters, names = self._state, self._filters, self._names
        if not filters.patterns:
            names += filters.exact
            self._at = None
        while self._at is not None:
            if turn.is_over:
                return
            wanted = [[filters.compiled]]
            found = state.names.find(self._at, wanted, BY_TOPIC_MAX + 1, PIECE_NAMES)
            names += found.names
            self._at = found.at
            self._looks += 1
            if len(names) > BY_TOPIC_MAX or self._looks > LOOKS_MAX:
                self._is_in_order, self._names = True, []
                return
        self._heap = []
        for number, topic in enumerate(map(state.topics.get, names)):
            following = None if topic is None else topic.after(self.position)
            if topic is not None and following is not None and following[0] <= self._upto:
                self._heap.append((following[0], number, following[1], topic))
        heapq.heapify(self._heap)
        self._names = []

    def _take_by_topic(self, limit: int, bytes_max: int) -> list[Location]:
        assert self._heap is not None
        heap, room = self._heap, bytes_max
        taken: list[Location] = []
        while heap and len(taken) < limit:
            seq, number, size, topic = heap[0]
            room -= size
            if taken and room < 0:
                break
            following = topic.after(seq)
            if following is not None and following[0] <= self._upto:
                heapq.heapreplace(heap, (following[0], number, following[1], topic))
            else:
                heapq.heappop(heap)
            if topic.retains(seq):
                taken.append(self._state.locate(seq, topic.name, size))
        if heap:
            self.position = heap[0][0] - 1
        else:
            self.position, self._heap = self._upto, None
            self._decide()
        return taken

    def _take_in_order(self, turn: Patience, limit: int, bytes_max: int) -> list[Location]:
        state, filters = self._state, self._filters
        topics, marks = state.timeline.topics, state.timeline.marks(filters)
        covers, asked = filters.compiled.covers, 0
        taken: list[Location] = []
        room = bytes_max
        for seqs, places in state.timeline.runs(self.position):
            for seq, place in compress(
                zip(seqs, places, strict=True), map(marks.__getitem__, places)
            ):
                topic = topics[place]
                size = topic.size_of(seq)
                if size is not None and marks[place] == UNKNOWN:  # not of a place that is free
                    marks[place] = covers(topic.name)
                    asked += 1
                if size is not None and marks[place]:
                    room -= size
                    if taken and room < 0:
                        return taken
                    taken.append(state.locate(seq, topic.name, size))
                self.position = seq
                if len(taken) == limit:
                    return taken
                if asked == PIECE_MATCHES:
                    asked = 0
                    if turn.is_over:
                        return taken
            self.position = seqs[-1]
            if turn.is_over:
                return taken
        self.position = state.seq
        return taken
