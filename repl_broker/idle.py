"""Topics that go when nobody uses them: this node's part in finding out which those are.

    every node     its streams follow it, and a quarter of its time is over ──▶ KeepTopics
    the leader     its time is over, and some seconds more ──▶ DeleteTopics

The log has which entry used a topic last: it published to it, set it or kept it. How
long ago that was no clock of day can say, because each may be wrong, and the log's time
with it. So each node looks at the topics with ``idle_seconds`` once a second, a few at
a time, and notes by its own steady clock when it found that a topic had been used
(``Topic.sight``); a node that becomes the leader goes by what it saw before. What
happened before a node started, it has not seen.

Nothing is removed in haste, because a wrong removal cannot be undone and a late one
costs little:

- A use was before the look that found it. The leader counts from that look, and waits
  SETTLE_SECONDS more for all nodes to tell what they follow. A node counts from the look
  before that when it asks whether to tell, and tells at once where it does not know.
- Streams come back after a restart or a failover. So a new leader, or one that stood
  still, waits HOLD_SECONDS before it removes what was not used since it began, for all it knows.
- ``DeleteTopics`` says which entry is taken for the last use, and the state looks again
  as it applies it: whoever used the topic in between has kept it.

A node that is cut off from the others for three quarters of a topic's time cannot keep
it: its streams are told ``topic-deleted`` when it is back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from repl_broker.command import Command, DeleteTopics, KeepTopics
from repl_broker.errors import RequestError
from repl_broker.filters import Filters
from repl_broker.hub import Hub
from repl_broker.replica import Replica
from repl_broker.state import BrokerState, Sight, Topic
from repl_broker.turnstile import Turn

__all__ = ["Batch", "IdleTopics", "batches"]

LOOK_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 3.0  # for all nodes to look, and to be heard
HOLD_SECONDS: Final = 60.0  # for streams to come back: clients wait 30 s at most between tries
STANDSTILL_SECONDS: Final = 10.0  # between two looks: the node, or time, has not gone on evenly
KEEP_AFTER: Final = 4  # a topic is kept when this part of its time is over: a quarter
OPENED_MAX: Final = 4096  # filters of streams that were opened since the last look
BATCH_TOPICS: Final = 1000  # in one entry …
BATCH_MESSAGES: Final = 20_000  # … and of what they hold, but for a single topic: some 20 ms
PIECE_TOPICS: Final = 64  # between two looks at the clock


@dataclass(slots=True)
class Batch:
    """Topics that may be removed by one entry."""

    names: list[str] = field(default_factory=list)
    messages: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.names) >= BATCH_TOPICS or self.messages >= BATCH_MESSAGES

    def add(self, topic: Topic) -> None:
        self.names.append(topic.name)
        self.messages += len(topic)


def batches(state: Callable[[], BrokerState], picked: Mapping[str, int]) -> Iterator[DeleteTopics]:
    """What removes the topics of ``picked``, by name their last use, in parts of bounded size."""

    def removal() -> DeleteTopics:
        return DeleteTopics(tuple(batch.names), tuple(picked[name] for name in batch.names))

    batch = Batch()
    for name, used_index in picked.items():
        topic = state().topics.get(name)
        if topic is not None and topic.used_index == used_index:
            batch.add(topic)
        if batch.is_full:
            yield removal()
            batch = Batch()
    if batch.names:
        yield removal()


@dataclass(slots=True)
class _Reign:
    """This node leads, and time goes on evenly. Seconds are Trio's."""

    term: int
    began: float
    looked: float  # the last time that somebody asked whether it goes on

    def goes_on(self, replica: Replica) -> bool:
        """Whether it does; to be asked every few seconds at least."""
        before, self.looked = self.looked, trio.current_time()
        is_even = self.looked - before <= STANDSTILL_SECONDS
        return is_even and _leads(replica) and replica.term == self.term


class IdleTopics:
    """``run`` looks after them; ``opened`` is told of each stream that opens on this node."""

    def __init__(self, replica: Replica, hub: Hub) -> None:
        self._replica = replica
        self._hub = hub
        self._opened: set[str] = set()  # filters: a stream may be gone before anyone looks
        self._look_now = trio.Event()
        self._looked = -math.inf  # when it saw all uses up to then …
        self._generation = -1  # … in which state

    def opened(self, filters: Collection[str]) -> None:
        """A stream opens that follows these."""
        topics = self._replica.state.idle_topics
        if not topics or len(self._opened) >= OPENED_MAX:
            return
        self._opened.update(filters)
        now = trio.current_time()
        if any(_is_due(topics[name], now) for name in filters if name in topics):
            self._look_now.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_always)
            nursery.start_soon(self._remove_always)

    # --- every node ---

    async def _keep_always(self) -> None:
        while True:
            if self._replica.ready:
                await self._keep()
                wait_seconds = LOOK_SECONDS
            else:  # there is nobody to tell; and what is missed now cannot be dated
                self._looked = -math.inf
                wait_seconds = LOOK_SECONDS / 20
            with trio.move_on_after(wait_seconds):
                await self._look_now.wait()
            self._look_now = trio.Event()

    async def _keep(self) -> None:
        """Look at all; tell the log which of them streams of this node follow, if it is time."""
        opened, self._opened = Filters(self._opened), set()
        before, self._generation = self._generation, self._replica.state.generation
        after, self._looked = self._looked, trio.current_time()

        def is_kept(topic: Topic) -> bool:
            now = trio.current_time()
            if topic.sight is None or topic.sight.used_index != topic.used_index:
                # After a snapshot took the place of the state, all is seen for the first time.
                is_dated = before == self._generation == self._replica.state.generation
                topic.sight = Sight(topic.used_index, after if is_dated else -math.inf, now)
            return _is_due(topic, now) and (
                opened.covers(topic.name) or self._hub.subscribers(topic.name) > 0
            )

        names = [*await self._pick(is_kept)]
        for start in range(0, len(names), BATCH_TOPICS):
            part = tuple(names[start : start + BATCH_TOPICS])
            if not await self._propose(KeepTopics(part)):
                self._opened |= opened.filters  # two looks' at most: more are not taken meanwhile
                return

    # --- the leader ---

    async def _remove_always(self) -> None:
        reign: _Reign | None = None
        while True:
            if reign is None or not reign.goes_on(self._replica):
                reign = self._begin()
            if reign is not None and self._replica.state.idle_topics:
                await self._remove(reign)
            # The sooner it notices that it leads, the fewer topics count as older than that.
            await trio.sleep(LOOK_SECONDS if reign is not None else LOOK_SECONDS / 20)

    def _begin(self) -> _Reign | None:
        if not _leads(self._replica):
            return None
        self._look_now.set()  # so that what is used from now on can be told apart
        now = trio.current_time()
        return _Reign(self._replica.term, now, now)

    async def _remove(self, reign: _Reign) -> None:
        """Remove the topics whose time is over."""
        now = trio.current_time()
        held = reign.began if now < reign.began + HOLD_SECONDS else -math.inf

        def may_go(topic: Topic) -> bool:
            idle_seconds, sight = topic.retention.idle_seconds, topic.sight
            if idle_seconds is None or sight is None or sight.used_index != topic.used_index:
                return False
            is_over = sight.before <= now - idle_seconds - SETTLE_SECONDS
            return is_over and sight.after >= held

        picked = await self._pick(may_go)
        for removal in batches(lambda: self._replica.state, picked):
            if not reign.goes_on(self._replica) or not await self._propose(removal):
                return

    # --- both ---

    async def _pick(self, is_wanted: Callable[[Topic], bool]) -> dict[str, int]:
        """The topics that are wanted, each with its last use; looked at in pieces."""
        names = list(self._replica.state.idle_topics)
        picked: dict[str, int] = {}

        def look(start: int, turn: Turn) -> int:
            while start < len(names) and not turn.is_over:
                topics = self._replica.state.idle_topics
                for name in names[start : start + PIECE_TOPICS]:
                    if name in topics and is_wanted(topics[name]):
                        picked[name] = topics[name].used_index
                start += PIECE_TOPICS
            return start

        start = 0
        while start < len(names):
            start = await self._replica.turnstile.give(partial(look, start))
        return picked

    async def _propose(self, command: Command) -> bool:
        """False if it may not have happened: it is tried again with the next look."""
        with suppress(RequestError):
            await self._replica.propose(command)
            return True
        return False


def _leads(replica: Replica) -> bool:
    return replica.leads and replica.ready


def _is_due(topic: Topic, now: float) -> bool:
    """Whether the log should hear that the topic is followed, if it is."""
    idle_seconds, sight = topic.retention.idle_seconds, topic.sight
    if idle_seconds is None or sight is None:
        return False
    return now - sight.after >= idle_seconds / KEEP_AFTER
