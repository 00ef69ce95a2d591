"""What one client with a narrow token can do to another, when every limit is at its maximum.

The node is *full* first: as many topics as there may be, with names as long as they may be,
made by an administrator; streams with as many patterns as one may have. Then come the
attacks, one after the other: each request that a narrow token may send, at its dearest,
over forty connections from as many addresses. Because the node is full, each attack meets
all limits at once, and so every pair of them. Beside each, another client publishes small
messages: how long it waits is the figure. One like it asks a server that does nothing but
answer: what that one waits is the machine's, whose processors the attackers use as well.
The last attack is for the places at the door: one address has all connections that there
are, and takes each anew that is ended; the other client opens a connection for each of its
publishes.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count as counting
from pathlib import Path

from joserfc.jwk import OctKey
from joserfc.jwt import encode

from benchmarks.figures import markdown, number
from benchmarks.load import BenchmarkError
from benchmarks.node import single_node
from benchmarks.processes import Process, free_ports
from benchmarks.victim import Echo, Victim

__all__ = ["ATTACKS", "FULL", "LIMITS", "LOST", "Found", "Full", "as_text", "ask", "measure_one"]
__all__ += ["measure_three", "settings", "target"]

ASKED_P99_MS = 100
ASKED_MAX_MS = 300
LOST = "(leadership lost)"
SECRET = b"0123456789abcdef" * 2
CONNECTIONS = 40
ANSWER_SECONDS_MAX = 60.0
JSON_TYPE = "application/json"
LINES_TYPE = "application/x-ndjson"
VICTIM_ADDRESS = "127.9.9.9"
OWN_TOPICS = ("small", "large", "deep", "keys")
BATCH = 20_000  # messages, which is the most
TOKENS = 127  # of a name: two bytes each, and 255 in all

# What an attack may have at its maximum; a full node has the first six whatever comes.
LIMITS = (
    "topics", "length of a name", "filters of a stream", "wildcards of a filter", "streams",
    "grants of a token", "messages of a batch", "topics of a batch", "bytes of a body",
    "depth of JSON", "page of history", "idempotency keys", "connections", "length of a head",
)  # fmt: skip
FULL = frozenset(LIMITS[:6])


@dataclass(frozen=True, slots=True)
class Full:
    """How much of all that there is before the attacks."""

    topics: int = 79_990  # of the 100,000 there may be: the first attack makes the rest
    streams: int = 200
    filters: int = 128
    grants: int = 256
    connections: int = CONNECTIONS
    places: int = 2000  # that one address takes, all there are
    seconds: float = 6.0  # of each attack


@dataclass(frozen=True, slots=True)
class Target:
    """A node under attack, and the tokens that there are."""

    port: int
    full: Full
    admin: str
    narrow: str  # may use what is below m.
    wide: str  # the same, by as many grants as a token may have
    other: str  # the one who must not notice
    another: str  # a second one with the rights of ``narrow``

    def request(
        self,
        method: str,
        path: str,
        token: str,
        body: bytes = b"",
        media_type: str = "",
        fields: Mapping[str, str] | None = None,
    ) -> bytes:
        found = {"Host": f"127.0.0.1:{self.port}", "Authorization": f"Bearer {token}"}
        found |= fields or {}
        if media_type:
            found |= {"Content-Type": media_type, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in found.items())
        return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


@dataclass(slots=True)
class Found:
    """What an attack came to."""

    name: str
    waits: list[float] = field(default_factory=list)  # of the other client, in seconds
    machine: list[float] = field(default_factory=list)  # of one that asks the other server
    answers: Counter[str] = field(default_factory=Counter)
    terms: int = 0  # that began meanwhile, in a cluster

    def quantile_ms(self, q: float) -> float:
        return _quantile_ms(self.waits, q)

    @property
    def is_within(self) -> bool:
        return self.quantile_ms(0.99) <= ASKED_P99_MS and self.quantile_ms(1) <= ASKED_MAX_MS


def _quantile_ms(seconds: Sequence[float], q: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1000


Requests = Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Attack:
    """``requests`` gives what connection number n sends, one after the other."""

    name: str
    at_most: frozenset[str]  # of LIMITS, beside those of a full node
    requests: Callable[[Target, int], Requests]


# --- names, filters, tokens -----------------------------------------------------------------


def long_name(number: int) -> str:
    """A topic below ``m.`` of 255 bytes and 127 tokens; another for each number."""
    letters = f"{number:08b}".translate({48: "a", 49: "b"})
    tail = format(number, "024b").translate({48: "a", 49: "b"})
    return ".".join(["m", *(letters * 20)[: TOKENS - 1 - len(tail)], *tail])


def long_filter(number: int) -> str:
    """A pattern that many long names match nearly to its end, and few quite."""
    parts = ["m"]
    parts += ["*" if (number >> (place % 11)) & 1 else "ab"[place % 2] for place in range(120)]
    return ".".join([*parts, *"*****", "x" if number % 2 else "*"])


def long_grant(number: int) -> str:
    """As long as so many of them still fit into the head of a request."""
    return ".".join(["m", *("*" if (number >> place) & 1 else "a" for place in range(8)), ">"])


def sign(subject: str, publish: Sequence[str], subscribe: Sequence[str], *, admin: bool) -> str:
    now = int(time.time())
    grants = {"publish": [*publish], "subscribe": [*subscribe], "admin": admin}
    claims = {"sub": subject, "iat": now, "exp": now + 3600, "repl_broker": grants}
    return encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))


def target(port: int, full: Full) -> Target:
    half = full.grants // 2
    return Target(
        port,
        full,
        admin=sign("admin", (), (), admin=True),
        narrow=sign("mallory", ["m.>"], ["m.>"], admin=False),
        wide=sign(
            "mallory",
            ["m.>", *map(long_grant, range(1, half))],
            [*map(long_grant, range(1, half)), "m.>"],
            admin=False,
        ),
        other=sign("ann", ["other.>"], ["other.>"], admin=False),
        another=sign("eve", ["m.>"], ["m.>"], admin=False),
    )


# --- the attacks ------------------------------------------------------------------------------


def _again(request: bytes) -> Requests:
    while True:
        yield request


def _list(node: Target, number: int) -> Requests:
    return _again(node.request("GET", "/v1/topics?limit=1", node.wide))


def _match(node: Target, number: int) -> Requests:
    for each in counting(number * 1000):
        path = f"/v1/topics?limit=1&match={long_filter(2 * each + 1)}"
        yield node.request("GET", path, node.wide)


def _stream_path(node: Target, number: int, after: str) -> str:
    first = number * node.full.filters
    wanted = "&".join(f"topic={long_filter(first + i)}" for i in range(node.full.filters))
    return f"/v1/events?{wanted}&after={after}"


def _streams(node: Target, number: int) -> Requests:
    for each in counting(number * 50):
        yield node.request("GET", _stream_path(node, each, "earliest"), node.narrow)


def _new_topics(node: Target, number: int) -> Requests:
    """Each connection has its own; the first batches take all that is left, and more."""
    first = (1 << 23) + number * BATCH
    return _again(_batch(node, (long_name(first + i) for i in range(_batch_topics(node)))))


def _batch_topics(node: Target) -> int:
    return min(BATCH, node.full.topics)


def _batch(node: Target, names: Iterator[str]) -> bytes:
    lines = "".join(f'{{"topic":"{name}","data":1}}\n' for name in names)
    return node.request("POST", "/v1/messages", node.wide, lines.encode(), LINES_TYPE)


def _batch_over_topics(node: Target, number: int) -> Requests:
    return _again(_batch(node, (long_name(i) for i in range(_batch_topics(node)))))


def _batch_of_small(node: Target, number: int) -> Requests:
    body = b"1\n" * BATCH
    return _again(node.request("POST", "/v1/topics/m.small/messages", node.wide, body, LINES_TYPE))


def _small_and_deep(node: Target, number: int) -> Requests:
    """Just small enough to be no large body, on each connection at once."""
    body = b"[" + b'{"a":1},' * 4090
    return _again(node.request("POST", "/v1/topics/m.deep/messages", node.wide, body, JSON_TYPE))


def _large_batch(node: Target, number: int) -> Requests:
    line = b'"%b"\n' % (b"x" * 1_000_000)
    return _again(
        node.request("POST", "/v1/topics/m.large/messages", node.wide, line * 8, LINES_TYPE)
    )


def _deep(node: Target, number: int) -> Requests:
    bodies = (
        b"[" * (1 << 20),
        b"[" + b"[]," * 340_000 + b"[" * 70,
        b"[" + b"[]," * 340_000 + b'"\\ud800"]',
        b"[" + b'{"a":1},' * 120_000,
        b'"' + b"\\ud800" * 170_000 + b'"',
    )
    while True:
        for body in bodies:
            yield node.request("POST", "/v1/topics/m.deep/messages", node.wide, body, JSON_TYPE)


def _history(node: Target, number: int) -> Requests:
    return _again(node.request("GET", "/v1/topics/m.small/messages?limit=1000", node.wide))


def _keys(node: Target, number: int) -> Requests:
    for each in counting():
        key = {"Idempotency-Key": f"{number}-{each}" + "k" * 200}
        yield node.request("POST", "/v1/topics/m.keys/messages", node.narrow, b"1", JSON_TYPE, key)


def _long_heads(node: Target, number: int) -> Requests:
    for each in counting():
        token = node.wide[:-20] + f"{number:010d}{each:010d}"  # another signature each time
        yield node.request("GET", "/v1/topics?limit=1", token)


EACH = (
    Attack("batches to 20,000 new topics", frozenset({"connections", "messages of a batch",
           "topics of a batch", "bytes of a body"}), _new_topics),
    Attack("pages of topics, 256 grants", frozenset({"connections"}), _list),
    Attack("pages that nearly match", frozenset({"connections", "length of a head"}), _match),
    Attack("streams from the beginning", frozenset({"connections", "length of a head"}), _streams),
    Attack("batches to 20,000 topics", frozenset({"connections", "messages of a batch",
           "topics of a batch", "bytes of a body"}), _batch_over_topics),
    Attack("batches of 20,000 messages", frozenset({"connections", "messages of a batch"}),
           _batch_of_small),
    Attack("batches of 8 MB", frozenset({"connections", "bytes of a body"}), _large_batch),
    Attack("1 MiB of brackets", frozenset({"connections", "bytes of a body", "depth of JSON"}),
           _deep),
    Attack("32 KiB of brackets", frozenset({"connections", "depth of JSON"}), _small_and_deep),
    Attack("pages of history", frozenset({"connections", "page of history"}), _history),
    Attack("keys", frozenset({"connections", "idempotency keys"}), _keys),
    Attack("long heads with forged tokens", frozenset({"connections", "length of a head"}),
           _long_heads),
)  # fmt: skip


def _together(node: Target, number: int) -> Requests:
    return EACH[number % len(EACH)].requests(node, number)


ATTACKS = (*EACH, Attack("all of these together", frozenset(LIMITS), _together))


# --- running them -----------------------------------------------------------------------------


class _Attacker(threading.Thread):
    """Sends requests, waiting for each answer as a client does, until it is stopped."""

    def __init__(self, node: Target, number: int, requests: Requests, found: Found) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._address = (f"127.0.1.{number + 1}", 0)
        self._requests = requests
        self._found = found
        self._over = threading.Event()
        self._connection: socket.socket | None = None

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._ask(next(self._requests))
            except OSError:
                self._found.answers["broken"] += 1
                self._close()

    def _ask(self, request: bytes) -> None:
        if self._connection is None:
            self._connection = socket.create_connection(
                ("127.0.0.1", self._node.port), ANSWER_SECONDS_MAX, self._address
            )
        self._connection.sendall(request)
        head, rest = _answer(self._connection)
        self._found.answers[head[9:12].decode()] += 1
        if rest is None or b"\r\nconnection: close\r\n" in head.lower():  # a stream is left
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def end(self) -> None:
        """Send no more."""
        self._over.set()

    def stop(self) -> None:
        self.end()
        self.join(ANSWER_SECONDS_MAX)
        self._close()


def _answer(connection: socket.socket) -> tuple[bytes, bytes | None]:
    """Head and body; the body is None if it has no length: an event stream's first part."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(1 << 16)
        if not more:
            raise OSError("the connection ended")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n")
         if line.lower().startswith(b"content-length:")), None,
    )  # fmt: skip
    if length is None:
        return head + b"\r\n", None
    parts, missing = [body], length - len(body)
    while missing > 0:
        more = connection.recv(1 << 20)
        if not more:
            raise OSError("the connection ended")
        parts.append(more)
        missing -= len(more)
    return head + b"\r\n", b"".join(parts)


def ask(node: Target, request: bytes) -> tuple[str, str]:
    """Head and body of the answer, on a connection of its own."""
    with socket.create_connection(("127.0.0.1", node.port), ANSWER_SECONDS_MAX) as connection:
        connection.sendall(request)
        head, said = _answer(connection)
    return head.decode(), (said or b"").decode()


def fill(node: Target, say: Callable[[str], None]) -> None:
    """Have all topics there are room for, each with a message; the attacker's own first."""
    say(f"{node.full.topics} topics")
    with socket.create_connection(("127.0.0.1", node.port), ANSWER_SECONDS_MAX) as connection:
        connection.sendall(_batch(node, (f"m.{name}" for name in OWN_TOPICS)))
        _require_kept(_answer(connection))
    _make_topics(node, range(node.full.topics))


def fill_up(node: Target) -> None:
    """Have as many topics as the first attack makes."""
    _make_topics(node, range(1 << 23, (1 << 23) + _batch_topics(node)))


def _make_topics(node: Target, numbers: range) -> None:
    with socket.create_connection(("127.0.0.1", node.port), ANSWER_SECONDS_MAX) as connection:
        for first in range(0, len(numbers), 5000):
            lines = "".join(
                f'{{"topic":"{long_name(i)}","data":1}}\n' for i in numbers[first : first + 5000]
            ).encode()
            connection.sendall(node.request("POST", "/v1/messages", node.admin, lines, LINES_TYPE))
            _require_kept(_answer(connection))


def _require_kept(answer: tuple[bytes, bytes | None]) -> None:
    head, said = answer
    if not head.startswith(b"HTTP/1.1 201 "):
        raise BenchmarkError(f"topics cannot be made: {head[:20]!r} {said!r}")


@contextmanager
def open_streams(node: Target, say: Callable[[str], None]) -> Iterator[None]:
    """Streams of patterns that stay open and take what comes."""
    say(f"{node.full.streams} streams of {node.full.filters} patterns")
    with ExitStack() as stack:
        for number in range(node.full.streams):
            connection = stack.enter_context(
                socket.create_connection(
                    ("127.0.0.1", node.port), ANSWER_SECONDS_MAX, (f"127.0.2.{number % 250}", 0)
                )
            )
            connection.sendall(
                node.request("GET", _stream_path(node, number, "latest"), node.narrow)
            )
            head, _ = _answer(connection)
            if head[9:12] not in (b"200", b"429"):
                raise BenchmarkError(f"a stream is refused: {head[:100]!r}")
        yield


def run(node: Target, attack: Attack | None) -> Found:
    """Other publishes beside the attack; beside nothing, if it is None."""
    found = Found("nothing" if attack is None else attack.name)
    victim, echo = Victim(node.port, VICTIM_ADDRESS, node.other), Echo()
    echo.start()
    beside = Victim(echo.port, VICTIM_ADDRESS, node.other)
    attackers = [] if attack is None else [
        _Attacker(node, number, attack.requests(node, number), found)
        for number in range(node.full.connections)
    ]  # fmt: skip
    victim.start()
    beside.start()
    time.sleep(0.5)
    for attacker in attackers:
        attacker.start()
    time.sleep(node.full.seconds)
    for attacker in attackers:
        attacker.end()
    found.waits, found.machine = victim.stop(), beside.stop()
    echo.stop()
    for attacker in attackers:
        attacker.stop()
    return found


# What a connection sends that only has a place; none of them ever reads.
OCCUPATIONS = (
    b"",
    b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n",
    b"PUT /v1/topics/m.a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
)
CROWD_ADDRESS = "127.0.3.1"
CROWD = "one address has all connections"


class _Occupier(threading.Thread):
    """Has all the places of a node, and takes each anew that it loses, until it is stopped."""

    def __init__(self, node: Target, found: Found) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._found = found
        self._over = threading.Event()
        self.has_all = threading.Event()

    def run(self) -> None:
        stream = self._node.request("GET", "/v1/events?topic=m.small", self._node.narrow)
        requests = (*OCCUPATIONS, stream)
        with ExitStack() as stack:
            poll = stack.enter_context(select.epoll())
            places: dict[int, socket.socket] = {}
            opened = 0
            while not self._over.is_set():
                for _ in range(min(100, self._node.full.places - len(places))):
                    place = socket.create_connection(
                        ("127.0.0.1", self._node.port), ANSWER_SECONDS_MAX, (CROWD_ADDRESS, 0)
                    )
                    places[place.fileno()] = place
                    with suppress(OSError):
                        place.sendall(requests[opened % len(requests)])
                    poll.register(place, select.EPOLLRDHUP)
                    opened += 1
                if len(places) == self._node.full.places:
                    self.has_all.set()
                for fd, _ in poll.poll(0.01):
                    places.pop(fd).close()
                    self._found.answers["ended"] += 1
            for place in places.values():
                place.close()

    def stop(self) -> None:
        self._over.set()
        self.join(ANSWER_SECONDS_MAX)


def take_places(node: Target) -> Found:
    """Publishes over new connections while one address has all that there are.

    Raises BenchmarkError if one of them is refused.
    """
    found = Found(CROWD)
    occupier = _Occupier(node, found)
    victim = Victim(node.port, VICTIM_ADDRESS, node.other, anew=True)
    occupier.start()
    try:
        if not occupier.has_all.wait(ANSWER_SECONDS_MAX):
            raise BenchmarkError(f"one address did not get {node.full.places} connections")
        victim.start()
        time.sleep(0.5 + node.full.seconds)
        found.waits = victim.stop()
    finally:
        occupier.stop()
    return found


def measure_places(full: Full, folder: Path, say: Callable[[str], None]) -> Found:
    """``take_places`` on a node of its own, which takes as many connections as that."""
    say(CROWD)
    (port,) = free_ports(1)
    chosen = {**settings(folder), "limits": {"connections": full.places}}
    process = Process("repl-broker", single_node(port, folder, chosen), port, folder / "l")
    try:
        process.start()
        return take_places(target(port, full))
    finally:
        process.stop()


def measure(
    node: Target,
    say: Callable[[str], None] = lambda what: None,
    only: Sequence[str] = (),
    term: Callable[[], int] = lambda: 0,
) -> list[Found]:
    """All attacks, on a node that is made full first; ``term`` tells the cluster's."""
    fill(node, say)
    if only and ATTACKS[0].name not in only:
        fill_up(node)
    with open_streams(node, say):
        founds = [run(node, None)]
        for attack in ATTACKS:
            if not only or attack.name in only:
                say(attack.name)
                before = term()
                founds.append(run(node, attack))
                founds[-1].terms = term() - before
    return founds


def as_text(founds: Sequence[Found]) -> str:
    head = ["beside", "p50, ms", "p99, ms", "max, ms", "machine's p99", "its max", "answers"]
    lines = [head]
    for found in founds:
        figures = [found.quantile_ms(q) for q in (0.5, 0.99, 1)]
        machine = [
            number(_quantile_ms(found.machine, q)) if found.machine else "" for q in (0.99, 1)
        ]
        answers = ", ".join(f"{n:,} × {status}" for status, n in sorted(found.answers.items()))
        mark = "" if found.is_within else " (beyond)"
        mark += f" {LOST}" if found.terms else ""
        lines.append([found.name + mark, *map(number, figures), *machine, answers])
    asked = f"Asked: {ASKED_P99_MS} ms at the p99, and {ASKED_MAX_MS} ms at most."
    return f"{markdown(lines)}\n\n{asked}"


# --- the nodes --------------------------------------------------------------------------------


def measure_one(
    full: Full, folder: Path, say: Callable[[str], None], only: Sequence[str] = ()
) -> list[Found]:
    """All attacks on one node."""
    (port,) = free_ports(1)
    node = target(port, full)
    process = Process(
        "repl-broker", single_node(port, folder, settings(folder)), port, folder / "l"
    )
    try:
        process.start()
        founds = measure(node, say, only)
    finally:
        process.stop()
    if not only or CROWD in only:
        founds.append(measure_places(full, folder / "places", say))
    return founds


def measure_three(
    full: Full, folder: Path, say: Callable[[str], None], only: Sequence[str] = ()
) -> list[Found]:
    """The same at the leader of three."""
    ports = free_ports(6)
    nodes: list[Process] = []
    try:
        for number in range(3):
            own, port = folder / f"n{number + 1}", ports[number]
            own.mkdir(parents=True)
            command = single_node(port, own, settings(own))
            command += ["--node-id", own.name, "--raft", f"127.0.0.1:{ports[3 + number]}"]
            command += ["--join", f"127.0.0.1:{ports[3]}"] if number else ["--bootstrap"]
            nodes.append(Process(own.name, command, port, own / "log"))
            nodes[-1].start()
        leads = target(ports[0], full)
        _term(leads)  # once all three are there
        return measure(leads, say, only, lambda: _term(leads))
    finally:
        for process in nodes:
            process.stop()


def _term(node: Target) -> int:
    """The term, once there are three voters."""
    end = time.monotonic() + ANSWER_SECONDS_MAX
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", node.port), ANSWER_SECONDS_MAX) as connection:
            connection.sendall(node.request("GET", "/v1/cluster", node.admin))
            _, body = _answer(connection)
        found = json.loads(body or b"{}")
        roles = [member["role"] for member in found.get("members", [])]
        if sorted(roles) == ["leader", "voter", "voter"]:
            return int(found["term"])
        time.sleep(0.2)
    raise BenchmarkError("the three nodes are no three voters")


def settings(folder: Path) -> dict[str, dict[str, int | str]]:
    """Sections of the configuration: tokens are asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder / "token.secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    return {"auth": {"mode": "jwt", "secret_file": str(secret)}}
