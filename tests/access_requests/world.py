"""Clusters that answer drawn requests, and what watches that they answer right."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple
from unittest import mock

import trio
from trio.lowlevel import ParkingLot

from repl_broker import daemon
from repl_broker.config import Address, AnonymousConfig, RetentionConfig
from repl_broker.web.door import QUART_ONLY
from tests.access_requests.drawn import (
    ADMIN,
    ANONYMOUS,
    FILTERS,
    RETENTION,
    SCRATCH,
    TOPICS,
    Credential,
    Drawing,
    Request,
    credentials,
    datum,
    marker,
)
from tests.access_requests.model import Holder, matches
from tests.access_requests.wire import Answer, Wire, without_chunks
from tests.contract.test_three_nodes import config_of
from tests.nodes import configured
from tests.signing import SECRET

WAYS: Final = ("door", "quart")
NODES: Final = 2
WITNESSES: Final = 6  # streams of each cluster that are open throughout
WORKERS: Final = 8
TROUBLE_SHARE_MAX: Final = 0.01  # of requests that were answered 503 and the like …
TROUBLE_MIN: Final = 20  # … beyond these few: the machine may be busy with others
_MARK = re.compile(rb"mk[0-9a-f]{10}z")
_ID = re.compile(rb"(?:^|\n)id: [0-9a-f]{8}-(\d+)\n")


class Fault(Exception):  # noqa: N818
    """Something that must not be."""


class Judge:
    """Holds each answer against the model, and what is in the log against what was granted."""

    def __init__(self) -> None:
        self.topics = {marker(topic).encode(): topic for topic in TOPICS}
        self.may_appear: dict[tuple[str, str], str] = {}  # by way and datum: its topic
        self.known_names = set(TOPICS)
        self.must_appear: set[tuple[str, str]] = set()
        self.must_not_appear: set[tuple[str, str]] = set()
        self.kinds: Counter[str] = Counter()
        self.trouble = 0
        self.marks = 0

    def expect(self, request: Request) -> None:
        """It is about to be sent."""
        for topic, identity in request.data:
            self.topics[marker(topic).encode()] = topic
            if request.is_granted:
                self.may_appear[request.way, identity] = topic
                self.known_names.add(topic)
        if request.is_granted and request.creates:
            self.known_names.add(request.creates)

    def judge(self, request: Request, answer: Answer) -> None:
        """Raises Fault."""
        status, granted = answer.status, request.is_granted
        self.kinds[f"{'granted' if granted else 'refused'} {status // 100}xx"] += 1
        self._look_for_leaks(request.holder, request.wish.read, answer.head + answer.body)
        if status in (0, 500):
            raise Fault(f"there is no answer but {answer.head!r}")
        if not granted and status < 400 and request.method != "OPTIONS":
            raise Fault(f"what is not granted is answered {status}")
        if status >= 503:
            self.trouble += 1
            return
        if granted and status in (401, 403):
            raise Fault(f"what is granted is answered {status}: {answer.body!r}")
        if granted and request.done and status != request.done:
            raise Fault(f"what is granted is answered {status}: {answer.body!r}")
        keys = {(request.way, identity) for _, identity in request.data}
        if status == 201:
            self.must_appear |= keys
        else:
            self.must_not_appear |= keys
        if request.target.startswith("/v1/topics?") and status == 200 and answer.body:
            self._look_at_names(request, json.loads(answer.body))

    def _look_at_names(self, request: Request, page: dict[str, Any]) -> None:
        assert request.holder is not None
        for topic in page["topics"]:
            if not request.holder.may_see(topic["name"]):
                raise Fault(f"the topic {topic['name']!r} is listed")

    def _look_for_leaks(self, holder: Holder | None, filters: tuple[str, ...], data: bytes) -> None:
        for mark in set(_MARK.findall(data)):
            self.marks += 1
            topic = self.topics[mark]
            if holder is None or not holder.may_read(topic):
                raise Fault(f"a message of {topic!r} leaks")
            if not any(matches(each, topic) for each in filters):
                raise Fault(f"a message of {topic!r} was not asked for")

    def settle(self, way: str, seen: dict[str, int]) -> None:
        """All is over, and these data are in the log. Raises Fault."""
        kept = {(way, identity) for identity in seen}
        if missing := {key for key in self.must_appear if key[0] == way} - kept:
            raise Fault(f"acknowledged, and not there: {sorted(missing)[:5]}")
        if there := self.must_not_appear & kept:
            raise Fault(f"refused, and there: {sorted(there)[:5]}")


@dataclass
class Watcher:
    """A stream that stays open: what it gets, and that all of it is granted."""

    judge: Judge
    way: str
    name: str
    holder: Holder
    filters: tuple[str, ...]
    seen: dict[str, int] = field(default_factory=dict)  # data, with their seq
    newest: dict[str, int] = field(default_factory=dict)  # by topic
    position: int = 0
    began: int = 0
    gaps: int = 0
    came: ParkingLot = field(default_factory=ParkingLot)  # where to wait for more

    async def run(
        self, url: str, token: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        host = url.partition("//")[2]
        name, _, port = host.rpartition(":")
        query = "&".join(f"topic={each}" for each in self.filters)
        fields = [f"GET /v1/events?{query} HTTP/1.1", f"Host: {host}"]
        fields += [f"Authorization: Bearer {token}"] if token else []
        data, is_open = b"", False
        async with await trio.open_tcp_stream(name, int(port)) as stream:
            await stream.send_all("\r\n".join([*fields, "", ""]).encode())
            while more := await stream.receive_some():
                data += more
                if not is_open:
                    head, ended, data = data.partition(b"\r\n\r\n")
                    if not ended:
                        data = head
                        continue
                    if b" 200 " not in head.partition(b"\r\n")[0] + b" ":
                        raise Fault(f"{self.name}: {head!r} {data!r}")
                    is_open = True
                text, _ = without_chunks(data)
                if b"\n\n" in text and not self.began:
                    task_status.started()
                data = self._take(data)

    def _take(self, data: bytes) -> bytes:
        """The whole chunks, each of whole events; what is left."""
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            stop = end + 2 + int(data[at:end], 16) + 2
            if len(data) < stop:
                break
            for block in data[end + 2 : stop - 2].split(b"\n\n"):
                self._block(block)
            at = stop
        return data[at:]

    def _block(self, block: bytes) -> None:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
        seq = int(fields[b"id"].rpartition(b"-")[2]) if b"id" in fields else 0
        self.position = max(self.position, seq)
        if fields.get(b"event") == b"subscribed":
            self.began = max(1, seq)
        self.gaps += fields.get(b"event") == b"gap"
        if b"event" in fields or b"data" not in fields:
            return
        message = json.loads(fields[b"data"])
        topic, identity = message["topic"], message["data"]["id"]
        self.judge._look_for_leaks(self.holder, self.filters, block)
        if self.judge.may_appear.get((self.way, identity)) != topic:
            raise Fault(f"{identity} is published to {topic!r}, which was not granted")
        if identity in self.seen:
            raise Fault(f"{identity} comes twice to {self.name}")
        self.seen[identity] = self.newest[topic] = seq
        self.came.unpark_all()


class Cluster(NamedTuple):
    way: str
    urls: list[str]
    audit: Watcher  # of everything, at the leader
    witnesses: list[Watcher]


class World:
    """Two clusters: one answers in place where it can, the other by Quart alone."""

    def __init__(self, seed: int, folder: Path, tell: Callable[[int], None]) -> None:
        self.seed = seed
        self._tell = tell
        self.judge = Judge()
        self.credentials = credentials(Random(f"credentials {seed}"))
        self._folder = folder
        self._clusters: dict[str, Cluster] = {}
        self._retention = RetentionConfig(**RETENTION)

    @property
    def root(self) -> str:
        return self.credentials[0].token

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        (self._folder / "secret").write_bytes(SECRET)
        async with trio.open_nursery() as nursery:
            stops = []
            for way in WAYS:
                with mock.patch.dict(os.environ, {QUART_ONLY: "1"} if way == "quart" else {}):
                    urls = await self._start(nursery, way, stops)
                await self._furnish(nursery, way, urls)
            yield
            nursery.cancel_scope.cancel()

    async def _start(self, nursery: trio.Nursery, way: str, stops: list[trio.Event]) -> list[str]:
        anonymous = AnonymousConfig(publish=ANONYMOUS.publish, subscribe=ANONYMOUS.subscribe)
        auth = {"mode": "jwt", "secret_file": self._folder / "secret", "anonymous": anonymous}
        urls: list[str] = []
        join: tuple[Any, ...] = ()
        for number in range(NODES):
            config = config_of(
                self._folder / way, f"n{number}", join,
                auth=auth | {"allow_query_token": True},
                raft={"election_timeout_ms": 5000, "heartbeat_interval_ms": 500},
            )  # fmt: skip
            config = configured(config, topics={"retention": self._retention})
            stops.append(trio.Event())
            start = partial(daemon.serve, config, stops[-1], bootstrap=not join)
            running = await nursery.start(start)
            urls.append(running.url)
            members = (await self._read(urls[0], "/v1/cluster"))["members"]
            join = join or (Address.parse(members[0]["raft_address"]),)
        while {each["role"] for each in members} != {"leader", "voter"}:
            await trio.sleep(0.05)
            members = (await self._read(urls[0], "/v1/cluster"))["members"]
        return urls

    async def _furnish(self, nursery: trio.Nursery, way: str, urls: list[str]) -> None:
        """Messages in each topic, and streams that watch."""
        audit = Watcher(self.judge, way, "the audit", ADMIN, (">",))
        await nursery.start(audit.run, urls[0], self.root)
        for topic in TOPICS:
            await self._write(urls[0], "PUT", f"/v1/topics/{topic}", b"")
            for number in range(3):
                identity = f"first.{topic}.{number}"
                self.judge.may_appear[way, identity] = topic
                self.judge.must_appear.add((way, identity))
                body = datum(topic, identity).encode()
                await self._write(urls[0], "POST", f"/v1/topics/{topic}/messages", body)
        await self._write(urls[0], "DELETE", "/v1/tokens/gone", b"")
        random, witnesses = Random(f"witnesses {way} {self.seed}"), []
        known = [each for each in self.credentials if each.holder not in (None, ADMIN)]
        known.append(Credential("", ANONYMOUS))
        while len(witnesses) < WITNESSES:
            one = random.choice(known)
            filters = tuple(random.sample(FILTERS, 4))
            granted = tuple(f for f in filters if one.holder and one.holder.may_read(f))
            if granted and one.holder is not None:
                name = f"witness {len(witnesses)} of {granted}"
                witness = Watcher(self.judge, way, name, one.holder, granted)
                await nursery.start(witness.run, urls[len(witnesses) % NODES], one.token)
                witnesses.append(witness)
        self._clusters[way] = Cluster(way, urls, audit, witnesses)

    async def _read(self, url: str, target: str) -> Any:
        wire = Wire(url)
        fields = [
            f"GET {target} HTTP/1.1",
            f"Host: {wire.host}",
            f"Authorization: Bearer {self.root}",
        ]
        data = "\r\n".join([*fields, "", ""]).encode()
        answer = await wire.ask(data, head_only=False, is_enough=lambda body: False)
        await wire.close()
        if answer.status != 200:
            raise Fault(f"{target} of {url}: {answer}")
        return json.loads(answer.body)

    async def _write(self, url: str, method: str, target: str, body: bytes) -> None:
        wire = Wire(url)
        fields = [f"{method} {target} HTTP/1.1", f"Host: {wire.host}"]
        fields += [f"Authorization: Bearer {self.root}", f"Content-Length: {len(body)}"]
        fields += ["Content-Type: application/json"] if body else []
        data = "\r\n".join([*fields, "", ""]).encode() + body
        answer = await wire.ask(data, head_only=False, is_enough=lambda body: False)
        await wire.close()
        if answer.status not in (200, 201, 204):
            raise Fault(f"{method} {target} of {url}: {answer}")

    async def answer(self, numbers: range) -> None:
        """Run, and send these requests, a few at a time. Raises groups of Fault."""
        left = iter(numbers)
        async with self.running():
            async with trio.open_nursery() as nursery:
                for _ in range(min(WORKERS, len(numbers))):
                    nursery.start_soon(self.ask, left)
            await self.settle()

    # --- requests ---

    def drawn(self, number: int) -> Request:
        return Drawing(self.seed, number, self.credentials).draw()

    async def ask(self, numbers: Iterator[int]) -> None:
        """Send these requests, one after the other. Raises Fault."""
        wires = {
            (way, role): Wire(cluster.urls[role])
            for way, cluster in self._clusters.items()
            for role in range(NODES)
        }
        try:
            for number in numbers:
                self._tell(number)
                request = self.drawn(number)
                wire = wires[request.way, request.role]
                try:
                    await self._ask(request, wire)
                except Fault as fault:
                    raise Fault(f"{fault}\n\n{shown(request, wire.host)}") from None
        finally:
            for wire in wires.values():
                await wire.close()

    async def _ask(self, request: Request, wire: Wire) -> None:
        self.judge.expect(request)
        until = self._until(request)

        def is_enough(body: bytes) -> bool:
            if b"event: hello" in body:
                return True
            return max(map(int, _ID.findall(body)), default=-1) >= until

        answer = await wire.ask(
            request.encode(wire.host), head_only=request.method == "HEAD", is_enough=is_enough
        )
        self.judge.judge(request, answer)
        if b"text/event-stream" in answer.head and answer.body and not is_enough(answer.body):
            raise Fault(f"the stream does not get as far as {until}: {answer.body[-500:]!r}")

    def _until(self, request: Request) -> int:
        """The seq up to which a stream is read: of the newest message that it must have now."""
        if "after=earliest" not in request.target:
            return 0
        newest = self._clusters[request.way].audit.newest.items()
        filters = request.wish.read
        return max((n for t, n in newest if any(matches(each, t) for each in filters)), default=0)

    async def settle(self) -> None:
        """All requests are answered: compare what is there with what may be. Raises Fault."""
        for cluster in self._clusters.values():
            await self._settle(cluster)

    async def _settle(self, cluster: Cluster) -> None:
        end = f"end.{cluster.way}"
        names = {name for name in self.judge.known_names if not name.startswith(SCRATCH)}
        for topic in sorted(names & set(TOPICS)):  # streams of each filter get something last
            self.judge.may_appear[cluster.way, f"{end}.{topic}"] = topic
            body = datum(topic, f"{end}.{topic}").encode()
            await self._write(cluster.urls[0], "POST", f"/v1/topics/{topic}/messages", body)
        with trio.fail_after(60):
            for watcher in (cluster.audit, *cluster.witnesses):
                last = max(t for t in TOPICS if any(matches(f, t) for f in watcher.filters))
                while f"{end}.{last}" not in watcher.seen:
                    await watcher.came.park()
        self.judge.settle(cluster.way, cluster.audit.seen)
        for witness in cluster.witnesses:
            self._compare(cluster.audit, witness)
        for url in cluster.urls:
            await self._look_at_topics(url)
            members = (await self._read(url, "/v1/cluster"))["members"]
            if [each["id"] for each in members] != [f"n{n}" for n in range(NODES)]:
                raise Fault(f"the members are others: {members}")

    def _compare(self, audit: Watcher, witness: Watcher) -> None:
        if audit.gaps:
            raise Fault("the audit has a gap")
        wanted = {}
        for identity, seq in audit.seen.items():
            topic = self.judge.may_appear[audit.way, identity]
            if seq > witness.began and any(matches(each, topic) for each in witness.filters):
                wanted[identity] = seq
        if not witness.gaps and list(witness.seen.items()) != list(wanted.items()):
            raise Fault(f"{witness.name} has {len(witness.seen)} messages, not {len(wanted)}")

    async def _look_at_topics(self, url: str) -> None:
        found: dict[str, Any] = {}
        after = ""
        while page := await self._read(url, f"/v1/topics?limit=1000{after}"):
            found |= {topic["name"]: topic for topic in page["topics"]}
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        if unknown := found.keys() - self.judge.known_names:
            raise Fault(f"these topics were made without a grant: {sorted(unknown)[:5]}")
        for topic in TOPICS:
            if topic not in found or found[topic]["retention"] != RETENTION | {
                "idle_seconds": None
            }:
                raise Fault(f"the topic {topic!r} was changed: {found.get(topic)}")


def shown(request: Request, host: str) -> str:
    """A request and what it means, for people."""
    holder = request.holder
    return "\n".join(
        (
            f"request {request.number}, {request.way}, node {request.role}",
            repr(request.encode(host)),
            f"by {holder if holder is None or len(holder.publish) < 20 else 'one of many grants'}",
            f"for {request.wish}: {'granted' if request.is_granted else 'not granted'}",
        )
    )


async def run(
    seed: int, numbers: range, folder: Path, tell: Callable[[int], None] = lambda number: None
) -> Judge:
    """Send these requests of a seed to a new world. Raises the first Fault.

    ``tell`` is called with the number of each as it begins.
    """
    world = World(seed, folder, tell)
    try:
        await world.answer(numbers)
    except ExceptionGroup as group:
        faults, others = group.split(Fault)
        if faults is None or others is not None:
            raise
        raise _leaf(faults) from None
    if world.judge.trouble > TROUBLE_MIN + len(numbers) * TROUBLE_SHARE_MAX:
        raise Fault(f"{world.judge.trouble} requests were answered 503 or the like")
    return world.judge


def _leaf(error: BaseException) -> BaseException:
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
