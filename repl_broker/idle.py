"""Topics that go when nobody uses them: this node's part in finding out which those are.

    every node     its streams follow it, and a quarter of its time is over ──▶ KeepTopics
    the leader     its time was over, and no node has spoken up since       ──▶ DeleteTopics

How long a topic was not used is in the state, by the log's time: publishing to it,
setting it and ``KeepTopics`` begin it anew. Only topics with ``idle_seconds`` are
looked at, each of them once a second, a few at a time.

Nothing is removed in haste, since a wrong removal cannot be undone and a late one
costs little:

- The log's time may jump: a leader whose clock is ahead, a machine that slept. So
  what counts is how far it had come, *for everyone to see*, SETTLE_SECONDS ago; by
  then each node has told what it follows.
- Streams come back after a restart or a failover. So a new leader, or one that stood
  still, waits HOLD_SECONDS before it removes what was not used since it began.
- ``DeleteTopics`` says up to when a topic must have been idle, and the state looks
  again as it applies it: whoever spoke up in between has kept its topic.

A node that is cut off from the others for three quarters of a topic's time cannot keep
it: its streams are told ``topic-deleted`` when it is back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from repl_broker.command import Command, DeleteTopics, Expire, KeepTopics
from repl_broker.errors import RequestError
from repl_broker.filters import Filters
from repl_broker.hub import Hub
from repl_broker.replica import EXPIRY_STEPS_MAX, Replica
from repl_broker.state import BrokerState, Topic
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


def batches(state: Callable[[], BrokerState], names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The topics of ``names`` that there are, in parts of bounded size."""
    batch = Batch()
    for name in names:
        topic = state().topics.get(name)
        if topic is not None:
            batch.add(topic)
        if batch.is_full:
            yield tuple(batch.names)
            batch = Batch()
    if batch.names:
        yield tuple(batch.names)


@dataclass(slots=True)
class _Reign:
    """Since when this node leads, and sees time go on evenly. Seconds are Trio's."""

    term: int
    began: float
    began_ms: int  # by the log
    looked: float
    looked_ms: int
    seen: deque[tuple[float, int]] = field(default_factory=deque)  # when, and the log's time then


class IdleTopics:
    """``run`` looks after them; ``opened`` is told of each stream that opens on this node."""

    def __init__(self, replica: Replica, hub: Hub) -> None:
        self._replica = replica
        self._hub = hub
        self._opened: set[str] = set()  # filters: a stream may be gone before anyone looks
        self._look_now = trio.Event()
        self._reign: _Reign | None = None

    def opened(self, filters: Collection[str]) -> None:
        """A stream opens that follows these."""
        topics = self._replica.state.idle_topics
        if not topics or len(self._opened) >= OPENED_MAX:
            return
        self._opened.update(filters)
        now_ms = self._replica.time_ms()
        if any(_is_due(topics[name], now_ms) for name in filters if name in topics):
            self._look_now.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_always)
            nursery.start_soon(self._remove_always)

    # --- every node ---

    async def _keep_always(self) -> None:
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._look_now.wait()
            self._look_now = trio.Event()
            if self._replica.state.idle_topics:
                await self._keep()

    async def _keep(self) -> None:
        """Tell the log which topics streams of this node follow, of those it should be told of."""
        opened, self._opened = Filters(self._opened), set()
        now_ms = self._replica.time_ms()

        def is_kept(topic: Topic) -> bool:
            return _is_due(topic, now_ms) and (
                opened.covers(topic.name) or self._hub.subscribers(topic.name) > 0
            )

        names = await self._pick(is_kept)
        for start in range(0, len(names), BATCH_TOPICS):
            part = tuple(names[start : start + BATCH_TOPICS])
            if not await self._propose(KeepTopics(part)):
                self._opened |= opened.filters  # two looks' at most: more are not taken meanwhile
                return

    # --- the leader ---

    async def _remove_always(self) -> None:
        while True:
            reign = self._reign = self._look()
            if reign is not None and self._replica.state.idle_topics:
                await self._remove(reign)
            # The sooner it notices that it leads, the fewer topics count as older than that.
            await trio.sleep(LOOK_SECONDS if reign is not None else LOOK_SECONDS / 20)

    def _look(self) -> _Reign | None:
        """How long this node leads already; None if it does not."""
        replica, reign = self._replica, self._reign
        if not (replica.leads and replica.ready):
            return None
        now, now_ms, log_ms = trio.current_time(), replica.time_ms(), replica.state.time_ms
        if (
            reign is None
            or reign.term != replica.term
            or now - reign.looked > STANDSTILL_SECONDS
            or now_ms - reign.looked_ms > STANDSTILL_SECONDS * 1000
        ):
            reign = _Reign(replica.term, now, log_ms, now, now_ms)
        reign.looked, reign.looked_ms = now, now_ms
        reign.seen.append((now, log_ms))
        while len(reign.seen) > 1 and reign.seen[1][0] <= now - SETTLE_SECONDS:
            reign.seen.popleft()
        return reign

    async def _remove(self, reign: _Reign) -> None:
        """Remove the topics whose time was over when everyone could see it."""
        seen_at, before_ms = reign.seen[0]
        if seen_at > reign.looked - SETTLE_SECONDS:
            return
        since_ms = reign.began_ms if reign.looked < reign.began + HOLD_SECONDS else -1
        log_ms, is_unseen = self._replica.state.time_ms, False

        def is_over(topic: Topic) -> bool:
            nonlocal is_unseen
            idle_at_ms = topic.idle_at_ms
            if idle_at_ms is None or topic.used_ms <= since_ms:
                return False
            is_unseen |= log_ms < idle_at_ms <= reign.looked_ms
            return idle_at_ms <= before_ms

        names = await self._pick(is_over)
        for part in batches(lambda: self._replica.state, names):
            if self._reign is not reign or not await self._propose(DeleteTopics(part, before_ms)):
                return
        if is_unseen:  # nothing else may be written, and the log's time would stand still
            await self._propose(Expire(EXPIRY_STEPS_MAX))

    # --- both ---

    async def _pick(self, is_wanted: Callable[[Topic], bool]) -> list[str]:
        """The names of the topics with idle time that are wanted, looked at in pieces."""
        names = list(self._replica.state.idle_topics)
        picked: list[str] = []

        def look(start: int, turn: Turn) -> int:
            while start < len(names) and not turn.is_over:
                topics = self._replica.state.idle_topics
                for name in names[start : start + PIECE_TOPICS]:
                    if name in topics and is_wanted(topics[name]):
                        picked.append(name)
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


def _is_due(topic: Topic, now_ms: int) -> bool:
    """Whether the log should hear that the topic is followed, if it is."""
    idle_seconds = topic.retention.idle_seconds
    return idle_seconds is not None and now_ms - topic.used_ms >= idle_seconds * 1000 // KEEP_AFTER
