"""Clients: they use any node, are cut off, ask again elsewhere, and remember what they were told.

``Writer`` publishes, sets and deletes topics, and reads; ``Follower`` has a stream, and when
that ends resumes it on another node by its cursor. Neither looks into a node: what they
remember is checked when the run is over (``check``), against the truth.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from repl_broker.access import Asking, Credentials
from repl_broker.broker import Broker, Receipt
from repl_broker.errors import OutcomeUnknownError, RequestError, StorageError
from repl_broker.message import FilterSet, parse_event_id
from tests.world.truth import Sent, Truth, ViolationError

if TYPE_CHECKING:
    from tests.world.machine import Machine
    from tests.world.world import World

__all__ = ["Follower", "Writer"]

ANYONE: Final = Asking(Credentials(), "127.0.0.1")
TOPICS: Final = ("a", "b", "c.x", "c.y")
ANSWER_SECONDS: Final = 90  # in which a node must have answered, whatever the answer
HEALED_SECONDS: Final = 20  # … once nothing is wrong: before it would say that it does not know
NUMBERED: Final = 1_000_000_000  # bytes: above it are the numbers of settings


@dataclass
class Answer:
    """``kind`` is "done", "refused", "unknown" or "unreachable"; ``value`` the answer or code."""

    kind: str
    value: Any = None


@dataclass
class Publish:
    """One thing that somebody wanted to be published, however often it was asked for."""

    payloads: list[str]
    topics: list[str]
    key: str | None
    began: float
    done: list[Receipt] = field(default_factory=list)
    unknown: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass
class Change:
    """A PUT or a DELETE of a topic."""

    topic: str
    number: int  # of the settings; 0: a removal
    began: float
    ended: float = -1.0  # when it was acknowledged
    unknown: bool = False


@dataclass
class Look:
    """What a read gave."""

    topic: str
    began: float
    ended: float
    newest_acknowledged: int  # of the topic, when it began
    acknowledged_settings: int  # … the number of the newest
    last: int | None = None
    number: int = 0
    page: list[tuple[int, str]] | None = None
    has_more: bool = False
    missing: bool = False  # there is no such topic


class Writer:
    """Asks for one thing after the other."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"w{number}"
        self.chance = random.Random(f"writer {number} {world.schedule.seed}")
        self.publishes: list[Publish] = []
        self.changes: list[Change] = []
        self.looks: list[Look] = []
        self.is_done = False
        is_busy = world.schedule.busy
        self.pause = self.chance.choice([0.01, 0.02] if is_busy else [0.01, 0.05, 0.2])
        self.size = self.chance.choice([100, 1000, 1000] if is_busy else [10, 100, 1000])
        self.weights = [30, 20, self.chance.choice([0, 4]), self.chance.choice([0, 2]), 6, 6]

    async def run(self) -> None:
        actions = (
            self._publish_plainly,
            self._publish_with_key,
            self._set,
            self._delete,
            self._look,
            self._read,
        )
        while trio.current_time() < self.world.weather_ends:
            await trio.sleep(self.chance.expovariate(1 / self.pause))
            await self.chance.choices(actions, self.weights)[0]()

    # --- writing ---

    def _new(self) -> Publish:
        count = self.chance.choice([1, 1, 1, 1, 2, 5])
        payloads = [f"{self.name}-{len(self.publishes)}-{i}" for i in range(count)]
        topics = [self.chance.choice(TOPICS)] * count
        if count > 1 and self.chance.random() < 0.3:
            topics = [self.chance.choice(TOPICS) for _ in range(count)]
        new = Publish(payloads, topics, None, trio.current_time())
        self.publishes.append(new)
        return new

    def _body(self, payload: str) -> bytes:
        size = self.size
        if self.world.schedule.large and self.chance.random() < 0.05:
            size = 100_000
        return b'"%b %b"' % (payload.encode(), b"x" * self.chance.randrange(size))

    async def _publish_plainly(self) -> None:
        new = self._new()
        bodies = [self._body(payload) for payload in new.payloads]
        await self._offer(new, bodies)
        if new.unknown and self.chance.random() < 0.2:  # careless: it may be kept twice
            await self._offer(new, bodies)

    async def _publish_with_key(self) -> None:
        new = self._new()
        new.key = f"key-{new.payloads[0]}"
        bodies = [self._body(payload) for payload in new.payloads]
        for _ in range(6):
            if trio.current_time() - new.began > 45:  # of the time that keys are remembered
                return
            await self._offer(new, bodies)
            if new.done and self.chance.random() < 0.8:
                return
            await trio.sleep(self.chance.random())

    async def _offer(self, new: Publish, bodies: Sequence[bytes]) -> None:
        same = len(set(new.topics)) == 1

        def call(broker: Broker) -> Awaitable[Receipt]:
            if len(bodies) == 1:
                return broker.publish(ANYONE, new.topics[0], bodies[0], new.key)
            if same:
                return broker.publish_batch(ANYONE, new.topics[0], b"\n".join(bodies), new.key)
            lines = [
                b'{"topic":"%b","data":%b}' % (topic.encode(), body)
                for topic, body in zip(new.topics, bodies, strict=True)
            ]
            return broker.publish_many(ANYONE, b"\n".join(lines), new.key)

        answer = await self.ask(call)
        match answer.kind:
            case "done":
                new.done.append(answer.value)
                self._acknowledged(new, answer.value)
            case "unknown":
                new.unknown += 1
            case "refused":
                new.refused.append(answer.value)
        self.world.note(self.name, "publish", new.payloads[0], answer.kind, str(answer.value))

    def _acknowledged(self, new: Publish, receipt: Receipt) -> None:
        first = parse_event_id(receipt.first_id).seq
        if receipt.count != len(new.topics):
            raise ViolationError(f"{receipt} is the answer to {new}")
        for topic, seq in zip(new.topics, range(first, first + receipt.count), strict=True):
            newest = self.world.acknowledged.get(topic, 0)
            self.world.acknowledged[topic] = max(newest, seq)

    async def _set(self) -> None:
        topic = self.chance.choice(TOPICS)
        self.world.numbers += 1
        number = NUMBERED + self.world.numbers
        change = Change(topic, number, trio.current_time())
        self.changes.append(change)
        messages = self.chance.choice([1, 5, 50, 1000])
        seconds = self.chance.choice([None, None, 3, 60])

        def call(broker: Broker) -> Awaitable[Any]:
            return broker.create_topic(
                ANYONE, topic, messages=messages, seconds=seconds, bytes=number, replace=True
            )

        await self._change(change, call)
        if change.ended >= 0:
            self.world.settings_acknowledged.setdefault(topic, []).append(
                (change.began, change.ended, number)
            )

    async def _delete(self) -> None:
        topic = self.chance.choice(TOPICS)
        change = Change(topic, 0, trio.current_time())
        self.changes.append(change)
        await self._change(change, lambda broker: broker.delete_topic(ANYONE, topic))

    async def _change(self, change: Change, call: Callable[[Broker], Awaitable[Any]]) -> None:
        answer = await self.ask(call)
        if answer.kind == "done":
            change.ended = trio.current_time()
        change.unknown = answer.kind == "unknown"
        self.world.note(self.name, "change", change.topic, change.number, answer.kind)

    # --- reading ---

    def _new_look(self) -> Look:
        topic = self.chance.choice(TOPICS)
        acknowledged = self.world.settings_acknowledged.get(topic, [])
        newest = max((ended, number) for _, ended, number in acknowledged)[1] if acknowledged else 0
        began = trio.current_time()
        return Look(topic, began, began, self.world.acknowledged.get(topic, 0), newest)

    async def _look(self) -> None:
        look = self._new_look()
        answer = await self.ask(lambda broker: broker.topic(ANYONE, look.topic))
        look.ended = trio.current_time()
        if answer.kind == "done":
            view = answer.value
            look.last = parse_event_id(view.last_id).seq if view.last_id else 0
            look.number = view.retention.bytes
        elif answer.value == "topic_not_found":
            look.missing = True
        else:
            return
        self.looks.append(look)
        self.world.note(self.name, "look", look.topic, look.last, look.number)

    async def _read(self) -> None:
        look = self._new_look()
        answer = await self.ask(lambda broker: broker.history(ANYONE, look.topic, limit=1000))
        look.ended = trio.current_time()
        if answer.kind == "done":
            look.page = [
                (message.seq, message.data.split(b" ", 1)[0].strip(b'"').decode())
                for message in answer.value.messages
            ]
            look.has_more = answer.value.next is not None
        elif answer.value == "topic_not_found":
            look.missing = True
        else:
            return
        self.looks.append(look)
        self.world.note(self.name, "read", look.topic, len(look.page or ()))

    # --- over the network ---

    async def ask(self, call: Callable[[Broker], Awaitable[Any]]) -> Answer:
        machine = self.chance.choice(self.world.machines)
        return await ask(self.world, machine, call, self.chance)

    # --- afterwards ---

    def check(self, truth: Truth) -> None:
        for publish in self.publishes:
            _check_publish(publish, truth)
        for look in self.looks:
            _check_look(look, truth, self.world)


async def ask(
    world: World,
    machine: Machine,
    call: Callable[[Broker], Awaitable[Any]],
    chance: random.Random,
) -> Answer:
    """One request to the node of ``machine``; the connection may break, and the answer be lost."""
    await trio.sleep(chance.random() * 0.002)
    life = machine.life
    if life is None or not life.is_serving or life.node is None:
        return Answer("unreachable")
    patience = chance.choice([0.05, 1, 10, 300, 300, 300])
    began = trio.current_time()
    answer = Answer("unknown")
    with trio.CancelScope(deadline=trio.current_time() + patience) as scope:
        life.calls[scope] = None
        try:
            answer = Answer("done", await call(life.node.broker))
        except (OutcomeUnknownError, StorageError):
            pass  # the latter is the node's end: the connection breaks
        except RequestError as error:
            answer = Answer("refused", error.code)
        except Exception as error:
            if not life.was_killed:
                raise ViolationError(f"{machine.name} answered {error!r}") from error
        finally:
            life.calls.pop(scope, None)
    now = trio.current_time()
    if now - began > ANSWER_SECONDS:
        raise ViolationError(f"{machine.name} took {now - began:.0f} s to answer")
    if not world.is_stormy and now - max(began, world.weather_ends) > HEALED_SECONDS:
        raise ViolationError(
            f"{machine.name} took {now - began:.0f} s to answer, and all had been well since "
            f"{world.weather_ends:.0f}: {answer}"
        )
    if scope.cancelled_caught or life.was_killed:
        return Answer("unknown")
    await trio.sleep(chance.random() * 0.002)
    return Answer("unknown") if chance.random() < 0.02 else answer


def _check_publish(publish: Publish, truth: Truth) -> None:
    places = [truth.places.get(payload, []) for payload in publish.payloads]
    counts = {len(found) for found in places}
    what = f"{publish.payloads} (key {publish.key}) to {publish.topics}"
    if len(counts) > 1:
        raise ViolationError(f"a batch was kept in part: {what}: {places}")
    (count,) = counts
    asked = len(publish.done) + publish.unknown
    most = asked
    if publish.key is not None:
        most = min(asked, 1 + truth.times_forgotten(places[0]))
    if count > most:
        raise ViolationError(
            f"kept {count} times, at {places}, and {most} may be: {what}; acknowledged "
            f"{len(publish.done)}, unknown {publish.unknown}, refused {publish.refused}"
        )
    for receipt in publish.done:
        first = parse_event_id(receipt.first_id).seq
        expected = list(range(first, first + receipt.count))
        if not any([found[i] for found in places] == expected for i in range(count)):
            raise ViolationError(f"acknowledged at {expected} and kept at {places}: {what}")
        for payload, topic, seq in zip(publish.payloads, publish.topics, expected, strict=True):
            sent = truth.sent[seq - 1]
            if (sent.payload, sent.topic) != (payload, topic):
                raise ViolationError(f"{seq} is {sent}, and was acknowledged as {what}")


def _check_look(look: Look, truth: Truth, world: World) -> None:
    newest = look.newest_acknowledged
    was_deleted = newest and truth.may_be_out_of_sight(truth.sent[newest - 1])
    if look.missing:
        if newest and not was_deleted:
            raise ViolationError(
                f"stale: {look.topic!r} is not there, and {newest} was kept: {look}"
            )
        return
    if look.page is not None:
        seqs = [seq for seq, _ in look.page]
        for seq, payload in look.page:
            sent = truth.sent[seq - 1] if seq <= len(truth.sent) else None
            if sent is None or (sent.topic, sent.payload) != (look.topic, payload):
                raise ViolationError(f"history of {look.topic!r} has {payload} at {seq}: {sent}")
        if seqs and truth.between(look.topic, seqs[0], seqs[-1]) != seqs:
            raise ViolationError(f"history of {look.topic!r} has holes: {seqs}")
        if not look.has_more and newest and not was_deleted and (not seqs or seqs[-1] < newest):
            raise ViolationError(f"stale: {newest} was acknowledged before {look}")
    if look.last is not None and not was_deleted and look.last < newest:
        raise ViolationError(f"stale: {newest} was acknowledged before {look}")
    if look.number > NUMBERED:
        _check_settings(look, truth, world)


def _check_settings(look: Look, truth: Truth, world: World) -> None:
    """The settings that it saw are not older than some that were acknowledged before it."""
    numbers = [number for _, number in truth.settings.get(look.topic, [])]
    if look.number not in numbers:
        raise ViolationError(f"settings {look.number} were never in force: {look}")
    for _, ended, number in world.settings_acknowledged.get(look.topic, []):
        came_before = ended < look.began and number in numbers
        if came_before and numbers.index(number) > numbers.index(look.number):
            raise ViolationError(f"stale settings: {number} were acknowledged before {look}")


class Follower:
    """A stream, and all that it had. One that is *restless* begins anew now and then."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"f{number}"
        self.chance = random.Random(f"follower {number} {world.schedule.seed}")
        choices = [(">",), ("a",), ("c.*",), ("a", "b"), ("c.>", "b")]
        self.topics = self.chance.choice(choices)
        self.filters = FilterSet(self.topics)
        self.cursor = ""
        self.position = -1  # of it
        self.start = self.chance.choice(["latest", "earliest"])
        self.is_slow = self.chance.random() < 0.3
        self.is_restless = self.chance.random() < 0.4
        self.seconds = self.chance.choice([0.3, 4])  # with one node
        self.tellings: list[tuple[str, int, str, int]] = []  # kind, position, of what, index
        self.before: list[tuple[str, list[tuple[str, int, str, int]]]] = []  # until it began anew
        self.is_open = False

    async def run(self) -> None:
        while True:
            await trio.sleep(self.chance.random() * 0.3)
            if self.is_restless and self.world.is_stormy and self.chance.random() < 0.5:
                self.before.append((self.start, self.tellings))
                self.tellings, self.cursor, self.position = [], "", -1
                self.start = self.chance.choice(["latest", "earliest", "earliest"])
            machine = self.chance.choice(self.world.machines)
            life = machine.life
            if life is None or not life.is_serving or life.node is None:
                continue
            seconds = 1e9
            if self.world.is_stormy:
                seconds = self.chance.expovariate(1 / self.seconds)
            with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
                life.calls[scope] = None
                try:
                    await self._follow(life.node)
                except RequestError as error:
                    self.world.note(self.name, "refused", error.code)
                    await trio.sleep(0.2)
                except StorageError:
                    pass  # the node ends, and the stream with it
                finally:
                    life.calls.pop(scope, None)
                    self.is_open = False

    async def _follow(self, node: Any) -> None:
        after = self.cursor or self.start
        stream = node.broker.subscribe(ANYONE, self.topics, after)
        self.world.note(self.name, "opens", node.broker.node_id, after)
        async with stream:
            self.is_open = True
            async for chunk in stream:
                for block in chunk.decode().split("\n\n")[:-1]:
                    self._take(block, node)
                if self.is_slow and self.world.is_stormy:
                    await trio.sleep(self.chance.random() * 0.2)

    def _take(self, block: str, node: Any) -> None:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        kind, data = fields.get("event", "message"), json.loads(fields["data"])
        if "id" in fields:
            cursor = parse_event_id(fields["id"])
            index = node.replica.state.applied_index
            what = ""
            if kind == "message":
                what = f"{data['topic']} {data['data'].split(' ', 1)[0]}"
            elif kind == "gap":
                what = str(data["reason"])
            elif kind == "topic-deleted":
                what = str(data["topic"])
            if kind == "subscribed" and self.cursor and fields["id"] != self.cursor:
                raise ViolationError(f"{self.name}: resumed at {fields['id']}, not {self.cursor}")
            self.tellings.append((kind, cursor.seq, what, index))
            self.cursor, self.position = fields["id"], cursor.seq
            self.world.note(self.name, kind, fields["id"], what)

    def is_level(self, truth: Truth) -> bool:
        if self.position < 0:
            return False
        return not any(True for _ in truth.matching(self.filters, self.position, len(truth.sent)))

    def check(self, truth: Truth) -> None:
        for start, tellings in (*self.before, (self.start, self.tellings)):
            self._check_tellings(truth, start, tellings)

    def _check_tellings(
        self, truth: Truth, start: str, tellings: list[tuple[str, int, str, int]]
    ) -> None:
        """A gap tells of all that is lost when it is told, also of what lies further ahead:
        topics keep different amounts. Whoever comes back with a cursor is told anew."""
        position, told = -1, -1
        for kind, at, what, index in tellings:
            if position < 0:
                position, told = at, index  # the earliest of what there is: no more was asked for
                continue
            if kind == "gap":
                self._check_gap(truth, what, index, position, at)
                told = index
            elif kind == "subscribed":
                told = -1
            if at < position:
                raise ViolationError(f"{self.name}: {kind} {what} at {at} came after {position}")
            if kind == "message":
                self._check_message(truth, position, at, what)
            left_out = [
                sent
                for sent in truth.matching(self.filters, position, at - (kind == "message"))
                if not truth.is_gone(sent.seq, told) and not self._was_deleted(truth, sent, index)
            ]
            if left_out:
                raise ViolationError(
                    f"{self.name}: {kind} at {at} after {position} leaves out {left_out}"
                )
            position = at

    def _check_start(self, truth: Truth, start: str, at: int, index: int) -> None:
        if start == "earliest":
            for sent in truth.matching(self.filters, 0, at):
                if not truth.is_gone(sent.seq, index):
                    raise ViolationError(f"{self.name}: earliest begins at {at}, behind {sent}")

    def _check_message(self, truth: Truth, position: int, at: int, what: str) -> None:
        sent = truth.sent[at - 1] if at <= len(truth.sent) else None
        if at == position:
            raise ViolationError(f"{self.name}: {at} came twice")
        if sent is None or f"{sent.topic} {sent.payload}" != what:
            raise ViolationError(f"{self.name}: {at} is {what}, and was kept as {sent}")

    def _check_gap(self, truth: Truth, why: str, index: int, position: int, at: int) -> None:
        where = f"{self.name}: a gap from {position} to {at} at {index}"
        if why != "retention":
            raise ViolationError(f"{where}, and its reason is {why}")
        everything = truth.matching(self.filters, position, len(truth.sent))
        if not any(truth.is_gone(sent.seq, index) for sent in everything):
            raise ViolationError(f"{where}, and nothing was lost")

    def _was_deleted(self, truth: Truth, sent: Sent, index: int) -> bool:
        return any(at >= sent.index for _, at in truth.deleted.get(sent.topic, ()) if at <= index)
