"""The order of all messages, and of all losses: whose each is, as a number in a row of topics.

Each topic has a *place*, and so has one that was deleted, as long as it is remembered.
From any sequence number on, the timeline says whose message each is; and from any
*version* on, which topics have lost history since. So what a stream must look at is
what happened after its cursor, and not what there is.

Which places match some filters is remembered in marks, a byte for each. A place
that is free again is given away only once all marks are forgotten.

None of this is part of the replicated state: it follows from it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Final

from repl_broker.floor import Floor
from repl_broker.order import Order
from repl_broker.patience import Patience

if TYPE_CHECKING:
    from repl_broker.message import FilterSet
    from repl_broker.state import Topic

__all__ = ["UNKNOWN", "Gone", "Timeline"]

UNKNOWN: Final = 2  # a mark: neither that it does not match, 0, nor that it does, 1
MARKS_BYTES_MAX: Final = 16 << 20  # of all filters together
FREE_MIN: Final = 1024  # places that are free, before marks are forgotten for them
PIECE_MATCHES: Final = 16  # between two looks at the clock


class Gone:
    """A topic that was deleted, as far as it is remembered. It retains nothing."""

    __slots__ = ("born_seq", "lost_at", "lost_version", "name", "place", "trimmed_seq")

    def __init__(self, name: str, born_seq: int, trimmed_seq: int) -> None:
        self.name = name
        self.born_seq = born_seq  # or later, up to when it was deleted
        self.trimmed_seq = trimmed_seq
        self.place = self.lost_version = self.lost_at = 0  # as a Topic has them

    @classmethod
    def of(cls, topic: Topic) -> Gone:
        gone = cls(topic.name, topic.born_seq, topic.trimmed_seq)
        gone.place, gone.lost_version, gone.lost_at = (
            topic.place,
            topic.lost_version,
            topic.lost_at,
        )
        return gone

    def retains(self, seq: int) -> bool:
        return False

    def size_of(self, seq: int) -> int | None:
        return None

    def between(self, first: int, last: int) -> Sequence[int]:
        return ()


NOBODY: Final = Gone("", 0, 0)  # at a place that is free


class Timeline:
    """What a BrokerState tells it of its topics, in order."""

    def __init__(self) -> None:
        self.topics: list[Topic | Gone] = []  # by place
        self.version = 0  # of the last loss; local to a node
        self._seen = 0  # the version that a reader knows, at most
        self._messages = Order(lambda place, *span: self.topics[place].between(*span))
        self._losses = Order(self._lost_between)
        self.gone: dict[str, Gone] = {}  # deleted, and remembered by name
        self.floor = Floor()  # what those lost that are not, by their versions then
        self._freed: list[int] = []  # places that marks may know
        self._free: list[int] = []
        self._marks: OrderedDict[FilterSet, bytearray] = OrderedDict()
        self._marks_bytes = 0

    # --- what happens ---

    def begin(self, topic: Topic) -> None:
        """A topic was created, perhaps where there had been one before."""
        gone = self.gone.pop(topic.name, None)
        if gone is not None:
            topic.place, self.topics[gone.place] = gone.place, topic
            topic.lost_version, topic.lost_at = gone.lost_version, gone.lost_at
            return
        self._give_place(topic)

    def _give_place(self, topic: Topic | Gone) -> None:
        if not self._free and len(self._freed) > FREE_MIN + len(self.topics) // 2:
            self._forget_marks()
            self._free, self._freed = self._freed, []
        if self._free:
            topic.place = self._free.pop()
            self.topics[topic.place] = topic
        else:
            topic.place = len(self.topics)
            self.topics.append(topic)

    def publish(self, topic: Topic, seq: int, count: int) -> None:
        """It got the ``count`` sequence numbers from ``seq`` on."""
        self._messages.append(seq, topic.place, count)

    def publish_each(self, seq: int, places: array[int]) -> None:
        """The topics at these places got one each, of the sequence numbers from ``seq`` on."""
        self._messages.append_each(seq, places)

    def trim(self, topic: Topic, sequences: Sequence[int], seq: int) -> None:
        """It does not retain these any more; ``seq`` is the last that was given."""
        self._messages.release(sequences)
        if topic.lost_version > self._seen and topic.trimmed_seq <= topic.lost_at:
            return  # nobody knows of the last time yet
        self._forget_loss(topic)
        self.version += 1
        topic.lost_version, topic.lost_at = self.version, seq
        self._losses.append(self.version, topic.place, 1, seq)

    def end(self, topic: Topic) -> None:
        """It was deleted, all that it had is trimmed, and it is remembered."""
        self.topics[topic.place] = self.gone[topic.name] = Gone.of(topic)

    def forget(self, name: str) -> None:
        """One that was deleted is not remembered any more; what it lost still is."""
        gone = self.gone.pop(name)
        if gone.trimmed_seq:
            self.floor.add(gone.trimmed_seq, gone.lost_version)
        self._forget_loss(gone)
        self.topics[gone.place] = NOBODY
        self._freed.append(gone.place)

    def _lost_between(self, place: int, first: int, last: int) -> Sequence[int]:
        """The version of what the topic lost last, if it is in that range."""
        version = self.topics[place].lost_version
        return (version,) if first <= version <= last else ()

    def _forget_loss(self, topic: Topic | Gone) -> None:
        version, topic.lost_version = topic.lost_version, 0
        if version:
            self._losses.release((version,))

    def load(self, topics: Sequence[Topic], gone: Sequence[Gone], floor: int, seq: int) -> None:
        """What a snapshot has; nothing was told before. ``floor`` was lost by nobody knows whom."""
        held: list[Topic | Gone] = [*topics, *gone]
        for topic in held:
            self._give_place(topic)
            if topic.trimmed_seq:
                self.version += 1
                topic.lost_version, topic.lost_at = self.version, seq
                self._losses.append(self.version, topic.place, 1, seq)
        self.gone = {each.name: each for each in gone}
        if floor:
            self.floor.add(floor, self.version)
        self._messages.load((topic.place, topic.sequences()) for topic in topics)

    # --- reading ---

    def look(self) -> int:
        """The version of now: what is lost from now on is later."""
        self._seen = self.version
        return self.version

    @property
    def first_seq(self) -> int | None:
        """Of no message that is retained the number is less; None if none is."""
        found = next(iter(self._messages.runs(0)), None)
        return None if found is None else found[0][0]

    def runs(self, after: int) -> Iterator[tuple[Sequence[int], array[int]]]:
        """Sequence numbers above ``after``, in pieces, and the places of their topics."""
        return self._messages.runs(after)

    def marks(self, filters: FilterSet) -> bytearray:
        """For each place what is known. Whoever finds out more says so in it, in the same step."""
        marks = self._marks.get(filters)
        if marks is None:
            marks = self._marks[filters] = bytearray()
        else:
            self._marks.move_to_end(filters)
        missing = len(self.topics) - len(marks)
        if missing:
            marks.extend(bytes((UNKNOWN,)) * missing)
            self._marks_bytes += missing
            while self._marks_bytes > MARKS_BYTES_MAX and len(self._marks) > 1:
                self._marks_bytes -= len(self._marks.popitem(last=False)[1])
        return marks

    def _forget_marks(self) -> None:
        self._marks.clear()
        self._marks_bytes = 0

    def find_loss(
        self, filters: FilterSet, after: int, version: int, turn: Patience
    ) -> tuple[int, bool]:
        """Whether a topic of ``filters`` lost something above ``after``, later than ``version``.

        Returns how far it has looked: to the last version, if there is no such loss, or the
        turn is not over before that.
        """
        self.look()
        marks = self.marks(filters)
        covers, asked = filters.compiled.covers, 0
        for versions, places in self._losses.runs(version, after):
            for lost, place in compress(
                zip(versions, places, strict=True), map(marks.__getitem__, places)
            ):
                topic = self.topics[place]
                if topic.lost_version != lost or topic.trimmed_seq <= after:
                    continue
                if marks[place] == UNKNOWN:
                    asked += 1
                    marks[place] = covers(topic.name)
                if marks[place]:
                    return lost, True
                if asked == PIECE_MATCHES:
                    asked = 0
                    if turn.is_over:
                        return lost, False
            if turn.is_over:
                return versions[-1], False
        return self.version, False
