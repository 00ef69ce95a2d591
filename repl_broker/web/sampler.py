"""What the dashboard shows, taken once a second for all who look, and not at all for nobody.

A viewer asks for a sample; the first who does so in a period takes it, and the
others get the same one. So nothing here is a task, and a node at which nobody
looks does no more than before.

Looking through many topics is cut into pieces, between which publishes go on.
If it takes long all the same, it is done less often: at most a twentieth of the
time goes into it (``SHARE_MAX``).
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from repl_broker.broker import Broker
from repl_broker.message import FilterSet, event_id, time_text
from repl_broker.state import Topic
from repl_broker.web.door import DoorStatistics

__all__ = ["PAST_SECONDS", "PERIOD_SECONDS", "SORTS", "Sample", "Sampler", "Window"]

PERIOD_SECONDS: Final = 1.0
PAST_SECONDS: Final = 300  # what a page that is opened now can show of the time before
DISK_SECONDS: Final = 5.0  # between two looks at the disk
PIECE_TOPICS: Final = 1000  # about 0.5 ms of work
SHARE_MAX: Final = 0.05
TAIL_MESSAGES: Final = 100  # with which a page begins to show a topic
SORTS: Final = ("name", "rate", "messages", "bytes", "subscribers")

Row = tuple[str, float | None, int, int, int, str | None]


class Window(NamedTuple):
    """Which topics a viewer sees: those that ``match``, sorted, from ``offset`` on."""

    match: str = ""  # a part of the name, or a pattern with * or >
    sort: str = "name"
    descending: bool = False
    offset: int = 0
    limit: int = 50


class Sample(NamedTuple):
    """All but topics, which each viewer sees another part of."""

    number: int
    clock: float  # seconds that only go forward
    node: dict[str, Any]
    cluster: dict[str, Any]


class Sampler:
    """Figures of one node, shared by its viewers."""

    def __init__(self, broker: Broker, door: Callable[[], DoorStatistics], data_dir: Path) -> None:
        self._broker = broker
        self._door = door
        self._data_dir = data_dir
        self._lock = trio.Lock()
        self._number = 0
        self._newest: Sample | None = None
        self._past: deque[tuple[float, dict[str, Any]]] = deque(maxlen=PAST_SECONDS)
        self._published: dict[str, int] | None = None  # by topic, at the last look
        self._looked_at = 0.0
        self._look_again_at = 0.0
        self._rates: dict[str, float] | None = None  # of topics that got something; None: unknown
        self._history = (0, 0)  # messages and bytes that are retained
        self._orders: dict[Window, list[str]] = {}  # of this sample
        self._disk: dict[str, int | None] = {}
        self._disk_asked_at = -math.inf

    async def sample(self, after: int) -> Sample:
        """The next sample whose number is higher than ``after``."""
        async with self._lock:
            newest = self._newest
            if newest is None or newest.number <= after or self._is_old(newest):
                newest = self._newest = await self._take()
            return newest

    def past(self) -> list[tuple[float, dict[str, Any]]]:
        """Clock and node's figures of earlier samples, oldest first."""
        return list(self._past)

    def _is_old(self, sample: Sample) -> bool:
        return sample.clock + PERIOD_SECONDS <= trio.current_time()

    async def _take(self) -> Sample:
        if trio.current_time() >= self._look_again_at:
            await self._look_through_topics()
        self._orders.clear()
        cluster = await self._broker.describe_cluster()
        if trio.current_time() - self._disk_asked_at >= DISK_SECONDS:
            self._disk_asked_at = trio.current_time()
            self._disk = await trio.to_thread.run_sync(_look_at_disk, self._data_dir)
        self._number += 1
        clock = trio.current_time()
        node = self._node() | self._disk
        self._past.append((clock, node))
        return Sample(self._number, clock, node, cluster)

    def _node(self) -> dict[str, Any]:
        now, door = self._broker.statistics(), self._door()
        messages, size = self._history
        return {
            "time_ms": time.time_ns() // 1_000_000,
            "ready": self._broker.ready,
            "publishes": now.publishes,
            "messages": now.messages,
            "seq": now.seq,
            "topics": now.topics,
            "history_messages": messages,
            "history_bytes": size,
            **now.hub._asdict(),
            **now.replica._asdict(),
            "lagging": door.lagging,
            "behind_max": door.behind_max,
            "connections": door.connections,
            "connections_accepted": door.accepted,
            "connections_refused": door.refused,
            "connections_failed": door.failed,
            "peers_connected": now.peers.connected,
        }

    # --- topics ---

    async def _look_through_topics(self) -> None:
        """How much each topic got since the last look."""
        began = time.perf_counter()
        topics = self._broker.state.topics
        published: dict[str, int] = {}
        messages = size = 0
        for piece in _pieces(list(self._broker.state.names)):
            for topic in filter(None, map(topics.get, piece)):
                published[topic.name] = topic.published
                messages += len(topic)
                size += topic.bytes
            await trio.lowlevel.checkpoint()
        now = trio.current_time()
        seconds, before = now - self._looked_at, self._published
        if before is not None and seconds > 0:
            self._rates = {
                name: max(0, count - before.get(name, 0)) / seconds
                for name, count in published.items()
                if count != before.get(name, 0)
            }
        self._published, self._looked_at, self._history = published, now, (messages, size)
        self._look_again_at = now + (time.perf_counter() - began) / SHARE_MAX

    async def topics(self, window: Window) -> dict[str, Any]:
        """The part of the list that ``window`` shows, and how long the list is."""
        order = window._replace(offset=0, limit=0)
        async with self._lock:
            names = self._orders.get(order)
            if names is None:
                names = self._orders[order] = await self._ordered(order)
        shown = names[window.offset : window.offset + window.limit]
        rows = [self._row(topic) for topic in self._existing(shown)]
        return {"count": len(names), "offset": window.offset, "rows": rows}

    async def _ordered(self, order: Window) -> list[str]:
        names = list(filter(_matcher(order.match), self._broker.state.names))
        if order.sort == "name":
            return names[::-1] if order.descending else names
        key, keys = self._key(order.sort), dict[str, float]()
        for piece in _pieces(names):
            keys.update(zip(piece, map(key, piece), strict=True))
            await trio.lowlevel.checkpoint()
        return sorted(names, key=keys.__getitem__, reverse=order.descending)

    def _key(self, sort: str) -> Callable[[str], float]:
        topics, rates = self._broker.state.topics, self._rates or {}
        keys: dict[str, Callable[[str], float]] = {
            "rate": lambda name: rates.get(name, 0.0),
            "messages": lambda name: len(topics[name]) if name in topics else 0,
            "bytes": lambda name: topics[name].bytes if name in topics else 0,
            "subscribers": self._broker.subscribers,
        }
        return keys[sort]

    def _existing(self, names: Sequence[str]) -> Iterator[Topic]:
        topics = self._broker.state.topics
        return (topics[name] for name in names if name in topics)

    def _rate(self, name: str) -> float | None:
        return None if self._rates is None else round(self._rates.get(name, 0.0), 2)

    def _row(self, topic: Topic) -> Row:
        return (
            topic.name,
            self._rate(topic.name),
            len(topic),
            topic.bytes,
            self._broker.subscribers(topic.name),
            self._id(topic.last_seq),
        )

    def topic(self, name: str) -> dict[str, Any] | None:
        """One topic with everything; None if there is no such topic."""
        topic = self._broker.state.topics.get(name)
        if topic is None:
            return None
        messages, seconds, size, idle_seconds = topic.own
        return {
            "name": name,
            "rate": self._rate(name),
            "messages": len(topic),
            "bytes": topic.bytes,
            "first_id": self._id(topic.first_seq),
            "last_id": self._id(topic.last_seq),
            "created_at": time_text(topic.created_ms),
            "subscribers": self._broker.subscribers(name),
            "retention": topic.retention,
            "own": {
                "messages": messages,
                "seconds": seconds,
                "bytes": size,
                "idle_seconds": idle_seconds,
            },
            "tail_after": self._id(topic.seq_before_last(TAIL_MESSAGES)),
        }

    def _id(self, seq: int | None) -> str | None:
        return None if seq is None else event_id(self._broker.epoch, seq)


def _look_at_disk(data_dir: Path) -> dict[str, int | None]:
    """What the store takes now, and what is free beside it; None where that cannot be said."""
    try:
        return {
            "store_bytes": sum(entry.stat().st_size for entry in os.scandir(data_dir)),
            "disk_free_bytes": shutil.disk_usage(data_dir).free,
        }
    except OSError:
        return {"store_bytes": None, "disk_free_bytes": None}


def _pieces(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + PIECE_TOPICS] for at in range(0, len(names), PIECE_TOPICS))


def _matcher(match: str) -> Callable[[str], bool]:
    """Raises RequestError ``invalid_filter``."""
    if "*" in match or ">" in match:
        return FilterSet([match]).matches
    return lambda name: match in name
