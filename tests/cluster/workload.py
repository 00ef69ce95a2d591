"""Publishers and readers on every node, that write down all they are told.

    with Workload(cluster, seed) as work:
        …  faults; work.wait_progress(100) between them
        history = work.finish()

They are threads of the test. They start with the ``with`` and go on over every
fault: a publisher without keys drops what is not acknowledged, one with keys
repeats it, at any node, until it is; a reader that loses its stream, or has
read for a while, comes back with its Last-Event-ID, here or elsewhere.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

from tests.cluster.cluster import Cluster
from tests.cluster.history import (
    ACKNOWLEDGED,
    REFUSED,
    UNKNOWN,
    Attempt,
    Event,
    Gap,
    Heartbeat,
    History,
    Message,
    Other,
    Reader,
    Subscribed,
)
from tests.process.node import (
    JSON,
    WAIT_SECONDS_MAX,
    Answer,
    Block,
    Broken,
    Client,
    Node,
    Stream,
    polls,
)

ALL: Final = "kept.all"  # everybody publishes to it
FEW: Final = "few"  # keeps so little that slow readers meet gaps
FEW_MESSAGES: Final = 20
LAST: Final = "last"  # its one message ends the readers
MANY: Final = 1_000_000_000
KEEP_ALL: Final[Mapping[str, Any]] = {
    "topics_retention_messages": MANY,
    "topics_retention_bytes": MANY,
    "raft_snapshot_entries": 100,  # the least
    "limits_disk_free_bytes": 0,  # disks are small here, and are to be filled
}
ANSWER_SECONDS: Final = 5  # until a publisher without an answer gives up
PAUSE_SECONDS_MAX: Final = 0.03  # between publishes: the machine has two cores
RETRY_SECONDS_MAX: Final = 0.2
BLOCKS_MAX: Final = 400  # of one stream, before its reader goes elsewhere
AWAY_SECONDS_MAX: Final = 2  # now and then, before it comes back: long enough for a gap


class Workload:
    """``keyed`` and other publishers, and two readers, for each node."""

    def __init__(self, cluster: Cluster, seed: str) -> None:
        self.cluster = cluster
        self.seed = seed
        self.numbers = count(1)  # of publishers
        self.end = threading.Event()  # of publishing
        self.abandoned = threading.Event()
        self.history = History(retained={FEW: FEW_MESSAGES})
        self.publishers: list[Publisher] = []
        self.readers: list[Follower] = []
        for name in cluster.nodes:
            self.publishers += [Publisher(self, name, keyed=keyed) for keyed in (False, True)]
            self.readers += [Follower(self, name, wide=wide) for wide in (False, True)]
        self.turns = threading.BoundedSemaphore(len(self.publishers))  # of what is published
        self._threads = ThreadPoolExecutor(len(self.publishers) + len(self.readers))
        self._publishing: list[Future[None]] = []
        self._reading: list[Future[None]] = []

    @property
    def topics(self) -> set[str]:
        return {ALL, FEW, LAST} | {publisher.own_topic for publisher in self.publishers}

    def __enter__(self) -> Self:
        make_few(self.cluster)
        self._reading = [self._threads.submit(reader.run) for reader in self.readers]
        self._publishing = [self._threads.submit(one.run) for one in self.publishers]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """After a failure the nodes are killed, so that nobody waits for them."""
        self.end.set()
        self.abandoned.set()
        if error is not None:
            for node in self.cluster.nodes.values():
                if node.runs:
                    node.kill()
        self._threads.shutdown()

    # --- while it runs ---

    @property
    def acknowledged(self) -> int:
        return sum(publisher.acknowledged for publisher in self.publishers)

    def wait_progress(self, count: int) -> None:
        """Until so many more publishes are acknowledged, to anybody."""
        wanted = self.acknowledged + count
        for _ in polls(lambda: f"{wanted} acknowledgements; there are {self.acknowledged}"):
            self._raise_failures()
            if self.acknowledged >= wanted:
                return

    def go_on(self, seconds: float) -> None:
        """Where a fault is to take time."""
        self.abandoned.wait(seconds)
        self._raise_failures()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is published meanwhile, and the fate of all that was is known."""
        with ExitStack() as taken:
            for _ in self.publishers:
                assert self.turns.acquire(timeout=WAIT_SECONDS_MAX), "a publisher hangs"
                taken.callback(self.turns.release)
            self._raise_failures()
            yield

    def so_far(self) -> History:
        """What has been seen until now. While it is paused, and the nodes are level."""
        readers = [Reader(s.name, s.topics, [*s.events]) for s in (r.seen for r in self.readers)]
        attempts = [attempt for one in self.publishers for attempt in one.attempts]
        return History(attempts, readers, self.kept(), self.history.retained)

    def kept(self) -> dict[str, list[Message]]:
        """By node, all that it keeps."""
        return {
            name: [message for topic in self.topics for message in kept(node, topic)]
            for name, node in self.cluster.nodes.items()
        }

    def _raise_failures(self) -> None:
        for task in (*self._publishing, *self._reading):
            if task.done() and not self.end.is_set():
                task.result()
                raise AssertionError("nobody stops before the end")

    # --- at the end ---

    def finish(self) -> History:
        """All published, read and level. The nodes must be able to serve again."""
        self.end.set()
        for task in self._publishing:
            task.result(WAIT_SECONDS_MAX)
        with Publisher(self, next(iter(self.cluster.nodes)), keyed=True) as last:
            last.publish(LAST)
        for reading, reader in zip(self._reading, self.readers, strict=False):
            try:
                reading.result(WAIT_SECONDS_MAX)
            except TimeoutError:
                raise AssertionError(f"{reader} has not read all") from None
        self.cluster.wait_converged()
        for publisher in (*self.publishers, last):
            self.history.attempts += publisher.attempts
        self.history.readers = [reader.seen for reader in self.readers]
        self.history.nodes = self.kept()
        return self.history


def make_few(cluster: Cluster) -> None:
    body = b'{"retention": {"messages": %d}}' % FEW_MESSAGES
    with Client(next(iter(cluster.nodes.values()))) as client:
        answer = client.request("PUT", f"/v1/topics/{FEW}", body, Content_Type=JSON)
    assert answer.status in {200, 201}, answer


def kept(node: Node, topic: str) -> list[Message]:
    """All that it keeps; a topic may never have come to be."""
    with Client(node) as client:
        if client.request("GET", f"/v1/topics/{topic}").status == 404:
            return []
    return [message_of(found) for found in node.history(topic)]


def message_of(found: Mapping[str, Any]) -> Message:
    return Message(found["id"], found["topic"], found["data"])


# --- publishers --------------------------------------------------------------------------------


class Publisher:
    """One message at a time, at its own node; a repeat goes to any. Leaving the ``with``
    closes its connections."""

    def __init__(self, work: Workload, home: str, *, keyed: bool) -> None:
        self.name = f"{home}-{'keyed' if keyed else 'plain'}-{next(work.numbers)}"
        self.own_topic = f"kept.{self.name}"
        self.attempts: list[Attempt] = []
        self.acknowledged = 0
        self._work = work
        self._home = home
        self._keyed = keyed
        self._number = 0
        self._random = random.Random(f"{work.seed} {self.name}")
        self._clients: dict[str, Client] = {}

    def run(self) -> None:
        with self:
            while not self._work.end.is_set():
                with self._work.turns:
                    self.publish(self._random.choice([ALL, ALL, FEW, self.own_topic]))
                self._work.end.wait(self._random.uniform(0, PAUSE_SECONDS_MAX))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def publish(self, topic: str, size: int | None = None) -> None:
        """Without a key: once. With one: until it is acknowledged. Of any size, unless told."""
        self._number += 1
        pad = "x" * (self._random.choice([0, 100, 1000]) if size is None else size)
        payload = f"{self.name}-{self._number}-{pad}"
        key = f"{self.name}-{self._number}" if self._keyed else None
        node, end = self._home, time.monotonic() + WAIT_SECONDS_MAX
        while self._send(node, topic, payload, key) != ACKNOWLEDGED:
            self._work.abandoned.wait(self._random.uniform(0, RETRY_SECONDS_MAX))
            if not self._keyed or self._work.abandoned.is_set():
                return
            assert time.monotonic() < end, f"{key} is not acknowledged"
            node = self._random.choice(list(self._work.cluster.nodes))
        self.acknowledged += 1

    def _send(self, node: str, topic: str, payload: str, key: str | None) -> str:
        headers = {"Idempotency_Key": key} if key else {}
        start = time.monotonic()
        try:
            answer = self._client(node).publish(topic, json.dumps(payload).encode(), **headers)
            outcome, told = outcome_of(answer)
        except ConnectionRefusedError:
            outcome, told = REFUSED, None
        except Broken:
            outcome, told = UNKNOWN, None
        end = time.monotonic()
        self.attempts.append(Attempt(node, topic, payload, key, start, end, outcome, told))
        return outcome

    def _client(self, node: str) -> Client:
        if node not in self._clients:
            self._clients[node] = Client(self._work.cluster.nodes[node], ANSWER_SECONDS)
        return self._clients[node]


def outcome_of(answer: Answer) -> tuple[str, str | None]:
    if answer.status == http.client.CREATED:
        return ACKNOWLEDGED, answer.json["id"]
    if answer.status == http.client.GATEWAY_TIMEOUT:
        return UNKNOWN, None
    assert answer.status == http.client.SERVICE_UNAVAILABLE, answer  # nobody sends bad input
    return REFUSED, None


# --- readers -----------------------------------------------------------------------------------


class Follower:
    """From before the first message to the last: all topics, or those that all use."""

    def __init__(self, work: Workload, home: str, *, wide: bool) -> None:
        self._work = work
        self._node = home
        self._wide = wide
        self._filters = (">",) if wide else (ALL, FEW, LAST)
        self._name = f"the {'wide' if wide else 'narrow'} reader from {home}"
        self._random = random.Random(f"{work.seed} {self._name}")
        self._events: list[Event] = []
        self._last_id: str | None = None

    def __str__(self) -> str:
        return f"{self._name}, now at {self._node} with {self._last_id},"

    @property
    def seen(self) -> Reader:
        topics = self._work.topics if self._wide else {ALL, FEW, LAST}
        return Reader(self._name, frozenset(topics), self._events)

    def run(self) -> None:
        while not self._work.abandoned.is_set():
            try:
                with self.open() as stream:
                    if self.read(stream, self._random.randint(1, BLOCKS_MAX)):
                        return
                if self._random.random() < 0.3:
                    self._work.end.wait(self._random.uniform(0, AWAY_SECONDS_MAX))
            except Broken:
                self._work.abandoned.wait(self._random.uniform(0, RETRY_SECONDS_MAX))
            self._node = self._random.choice([self._node, *self._work.cluster.nodes])

    def open(self) -> Stream:
        node = self._work.cluster.nodes[self._node]
        after = None if self._last_id else "earliest"
        return Stream(node, *self._filters, after=after, last_id=self._last_id)

    def read(self, stream: Stream, blocks: int) -> bool:
        """Until the last message (true), the end of the stream, or so many blocks."""
        for number, block in enumerate(stream, 1):
            event = event_of(block)
            if event is not None:
                self._events.append(event)
            self._last_id = stream.last_id
            if isinstance(event, Message) and event.topic == LAST:
                return True
            if number == blocks or self._work.abandoned.is_set():
                break
        return False


def event_of(block: Block) -> Event | None:
    """What a block says; None if it only says good-bye."""
    match block.event:
        case None if block.is_message:
            return message_of(block.message)
        case "heartbeat":
            return Heartbeat(block.fields["id"])
        case "goodbye":
            return None
        case "subscribed":
            data = json.loads(block.fields["data"])
            return Subscribed(data["node"], block.fields["id"])
        case "gap":
            data = json.loads(block.fields["data"])
            return Gap(block.fields["id"], data["after"], data["reason"])
    return Other(block.raw.decode())
