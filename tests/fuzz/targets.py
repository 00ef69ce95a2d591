# ruff: noqa: PT017  (targets are no tests, and what they assert is what a refusal says)
"""The targets: each takes any bytes, and raises only if a parser breaks its word.

Its word is: the errors that its docstring declares and no others, one meaning for
what it takes, and the same by every way in. Time and memory are test_fuzz.py's.

A parser that is new gets a function here with ``@target`` and some seeds, valid
ones that mutation starts from.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, get_type_hints
from urllib.parse import unquote_to_bytes

import h11
import msgpack
import trio
from trio.testing import MockClock, memory_stream_pair

from repl_broker.cli.eventstream import Event, EventReader
from repl_broker.cli.findings import judge_cluster, judge_descriptors, read_metrics
from repl_broker.config import AuthConfig, InvalidConfigError, load
from repl_broker.errors import ConfigError, RequestError, StorageError
from repl_broker.handshake import Hello, Part, Refused, Seal, Welcome
from repl_broker.jwks import read_keys
from repl_broker.message import (
    FILTERS_MAX,
    Cursor,
    FilterSet,
    JsonLimits,
    check_topic,
    compact_json,
    parse_event_id,
    split_ndjson,
    split_topic_ndjson,
)
from repl_broker.raft.codec import decode_rpc, encode_rpc
from repl_broker.raft.rpc import Rpc
from repl_broker.tokens import Verifier
from repl_broker.transport import HELLO_BYTES_MAX, Me, Transport, _Link
from repl_broker.web.chunks import Chunks
from repl_broker.web.events import read_after, read_events_query
from repl_broker.web.head import EventsHead, PublishHead, head_end, is_plain, read_head
from repl_broker.web.parameters import read_object
from tests.web.test_two_ways import LAST, told

__all__ = ["TARGETS", "Target", "target"]

LIMITS: Final = JsonLimits(message_bytes=2 << 20, batch_messages=1000, depth=64)


@dataclass(frozen=True)
class Target:
    """``run`` gets any bytes. ``is_slow``: an example is worth milliseconds, not microseconds."""

    name: str
    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    is_slow: bool = False


TARGETS: Final[dict[str, Target]] = {}


def target(*seeds: bytes, is_slow: bool = False) -> Callable[[Callable[[bytes], None]], Any]:
    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run.__name__, run, seeds, is_slow)
        return run

    return register


def refused(error: RequestError, *codes: str) -> None:
    """A refusal is of a declared kind, and can be told: as one line of bounded length."""
    assert error.code in codes, (error.code, error.detail)
    assert 0 < len(error.detail) < 2000
    error.detail.encode()


# --- topics, filters, ids, queries --------------------------------------------------------


@target(b"chat", b"orders.*.paid logs.>", b">", b"a.b.c\0" * 3, b"*.*.*.*")
def filters(data: bytes) -> None:
    """Filters against a matcher that follows NATS's rules word for word."""
    names = data.decode("latin-1").split(" ")
    try:
        chosen = FilterSet(names)
    except RequestError as error:
        refused(error, "invalid_filter")
        assert len(names) > FILTERS_MAX or not all(map(is_filter, names))
        return
    assert all(map(is_filter, names))
    for topic in ("chat", "orders", "orders.eu.paid", "logs.a.b", *names):
        assert chosen.matches(topic) == any(
            matches(name.split("."), topic.split(".")) for name in names
        ) or not is_topic(topic)


def is_topic(text: str) -> bool:
    tokens = text.split(".")
    return len(text) <= 255 and all(re.fullmatch(r"[A-Za-z0-9_-]+", t) for t in tokens)


def is_filter(text: str) -> bool:
    *first, last = text.split(".")
    tokens = first if last == ">" else [*first, last]
    return len(text) <= 255 and all(re.fullmatch(r"[A-Za-z0-9_-]+|\*", t) for t in tokens)


def matches(pattern: Sequence[str], topic: Sequence[str]) -> bool:
    if not pattern or not topic:
        return not pattern and not topic
    if pattern[0] == ">" and len(pattern) == 1:
        return True
    return pattern[0] in ("*", topic[0]) and matches(pattern[1:], topic[1:])


@target(b"chat", b"orders.eu.42", b"a" * 255, "é".encode())
def topics(data: bytes) -> None:
    for text in (data.decode("latin-1"), data.decode(errors="surrogateescape")):
        try:
            assert check_topic(text) == text
        except RequestError as error:
            assert not is_topic(text)
            assert error.code == "invalid_topic"
        else:
            assert is_topic(text)


@target(b"9f3a1c2b-5000", b"00000000-0", b"ffffffff-9223372036854775807", b"earliest")
def event_ids(data: bytes) -> None:
    """What is taken is said in one way only, so that equal cursors are equal texts."""
    text = data.decode("latin-1")
    try:
        cursor = parse_event_id(text)
    except RequestError as error:
        refused(error, "invalid_event_id")
        return
    assert str(cursor) == text
    assert cursor == Cursor(text[:8], int(text[9:]))


@target(
    b"topic=chat&topic=orders.%2A&after=9f3a1c2b-5000", b"topic=a+b&after=earliest",
    b"after=latest", b"topic=%ff%fe", b"topic=%&=&&", b"limit=1", b"_=1&topic=a&ngsw-bypass=",
    b"topic=a&after=earliest&lastEventId=9f3a1c2b-1&Last-Event-ID=9f3a1c2b-2",
)  # fmt: skip
def sse_query(data: bytes) -> None:
    """The query of a stream, as both ways in read it."""
    query, _, last = data.partition(b"\n")
    given = (last.decode("latin-1"),) if last else ()
    try:
        found = read_events_query(query, with_token=bool(last))
        after = read_after(found, given)
        FilterSet(found.get("topic", ()))
        if after not in ("earliest", "latest"):
            parse_event_id(after)
    except RequestError as error:
        refused(error, "invalid_parameter", "invalid_event_id", "invalid_filter")


# --- bodies -------------------------------------------------------------------------------


def strict(text: bytes) -> Any:
    """The value, if it is one by RFC 8259. Raises ValueError, RecursionError."""

    def constant(name: str) -> None:
        raise ValueError(name)

    # A number of any length is one; only its form counts.
    return json.loads(
        text.decode(), parse_constant=constant, parse_int=str, parse_float=str,
        object_pairs_hook=lambda pairs: ("object", pairs),
    )  # fmt: skip


def depth(value: Any) -> int:
    if isinstance(value, tuple):
        return 1 + max((depth(v) for _, v in value[1]), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@target(
    b'{"any": "JSON", "n": [1, 2.50, -0, 1e400], "\\ud800": null}', b' "\\u00e9 \xc3\xa9" ', b"NaN",
    b'{"a":1,"a":2}', b"\xef\xbb\xbf1", b"[" * 70 + b"]" * 70, b"0123", b'"\x7f\\/"', b"-Infinity",
)  # fmt: skip
def bodies_json(data: bytes) -> None:
    """One message, against the standard library's reader."""
    try:
        value = strict(data)
        is_json = not data.startswith(b"\xef\xbb\xbf")
    except (ValueError, RecursionError):
        value, is_json = None, False
    try:
        compact = compact_json(data, LIMITS)
    except RequestError as error:
        refused(error, "invalid_json", "message_too_large")
        assert not is_json or depth(value) > LIMITS.depth or len(data) > LIMITS.message_bytes
        return
    assert is_json, data
    assert b"\n" not in compact
    assert b"\r" not in compact
    assert strict(compact) == value, "what a subscriber gets is what was published"
    assert compact_json(compact, LIMITS) == compact


@target(b'{"a":1}\n[1, 2]\r\n\n"x"\n', b"1\n2\n3", b"\n\r\n \t\n", b"{\n}", b"1\n\xff\n")
def bodies_ndjson(data: bytes) -> None:
    """A batch is its lines: each alone gives the same, and one that is bad refuses all."""
    lines = [line for line in data.split(b"\n") if line.strip(b" \t\r")]
    try:
        values = split_ndjson(data, LIMITS)
    except RequestError as error:
        refused(error, "invalid_json", "message_too_large", "batch_too_large")
        if error.code == "invalid_json":
            assert 1 <= int(error.extra["line"]) <= data.count(b"\n") + 1
            assert int(error.extra["column"]) >= 1
        return
    assert values == [compact_json(line, LIMITS) for line in lines]


@target(
    b'{"topic":"chat","data":{"a":1}}\n{"data":"\\ud800","topic":"a.b"}\n',
    b'{"topic":"a","topic":"b","data":1}', b'{"topic":"a","data":1,"x":2}', b'["chat",1]',
    b'{"\\u0074opic":"a","data":"\\"topic\\":"}', b'{"topic":1,"data":1}', b'{"data":1}',
)  # fmt: skip
def bodies_topic_ndjson(data: bytes) -> None:
    """A batch over several topics, against the standard library's reader."""
    try:
        pairs = split_topic_ndjson(data, LIMITS)
    except RequestError as error:
        refused(error, "invalid_json", "invalid_topic", "message_too_large", "batch_too_large")
        return
    lines = [line for line in data.split(b"\n") if line.strip(b" \t\r")]
    for (topic, value), line in zip(pairs, lines, strict=True):
        kind, members = strict(line)
        assert kind == "object"
        assert sorted(name for name, _ in members) == ["data", "topic"], line
        assert (topic, strict(value)) == (dict(members)["topic"], dict(members)["data"])
        assert is_topic(topic)


@target(b'{"name":"chat","retention":{"messages":10}}', b"[]", b"{", b'{"a":' * 20)
def bodies_object(data: bytes) -> None:
    """The body of a call that is not a publish."""
    try:
        assert isinstance(read_object(data), dict)
    except RequestError as error:
        refused(error, "invalid_json", "invalid_parameter", "message_too_large")


# --- the head of a request ----------------------------------------------------------------

PUBLISH: Final = (
    b"POST /v1/topics/chat/messages HTTP/1.1\r\n"
    b"Host: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1\r\nIdempotency-Key: k\r\n\r\n"
)
EVENTS: Final = (
    b"GET /v1/events?topic=chat&after=earliest HTTP/1.1\r\nHost: localhost\r\n"
    b"Last-Event-ID: 9f3a1c2b-1\r\nOrigin: http://page\r\nConnection: keep-alive\r\n\r\n"
)


@target(
    PUBLISH, EVENTS, PUBLISH.replace(b"Length: 1", b"Length: +1"),
    PUBLISH.replace(b"Host", b" Host"), PUBLISH.replace(b"\r\n", b"\n"),
    EVENTS.replace(b"Origin", b"Transfer-Encoding"), EVENTS.replace(b"keep-alive", b"close, te"),
    EVENTS.replace(b"keep-alive", b"upgrade\r\nUpgrade: h2c"),
)  # fmt: skip
def http_heads(data: bytes) -> None:
    """What the door answers in place, h11 reads as the same request; else it is a hole."""
    end = head_end(data)
    assert 0 <= end <= len(data)
    head = data[:end]
    found = read_head(head) if head.endswith(b"\r\n\r\n") else None
    if found is None:
        return
    assert is_plain(head)
    assert head.count(b"\r\n\r\n") == 1
    request = read_by_h11(head)
    assert isinstance(request, h11.Request), (head, request)
    fields: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        fields.setdefault(name, []).append(value)

    def text(name: bytes) -> str | None:
        values = fields.get(name, [])
        assert len(values) < 2, name
        return values[0].decode("latin-1") if values else None

    assert request.http_version == b"1.1"
    options = (text(b"connection") or "").lower().split(",")
    assert found.close == ("close" in [option.strip() for option in options])
    assert "websocket" not in (text(b"upgrade") or "").lower()
    assert found.origin == (text(b"origin") or "")
    if isinstance(found, PublishHead):
        assert (request.method, request.target) == (b"POST", found.target.encode())
        assert found.length == int(text(b"content-length") or "-1")
        assert found.key == text(b"idempotency-key")
    else:
        assert isinstance(found, EventsHead)
        assert request.method == b"GET"
        assert request.target.partition(b"?")[::2] == (b"/v1/events", found.query)
        assert found.last_event_id == text(b"last-event-id")
        assert b"content-length" not in fields
    assert b"transfer-encoding" not in fields


def read_by_h11(head: bytes) -> object:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(head)
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        return error


@target(
    b"5\r\nhello\r\n0\r\n\r\n", b'2;a=b;c="\\""\r\nxy\r\n00\r\n\r\nGET', b"5;a\rb\r\n", b"1" * 17,
    b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\n", b"0000ffffffff\r\n", b"0\r\na: b\r\n\r\n",
)  # fmt: skip
def http_chunks(data: bytes) -> None:
    """A chunked body that is taken ends where h11 ends it, however it comes."""
    chunks, piecewise = Chunks(), Chunks()
    chunks.take(data)
    for at in range(len(data)):
        piecewise.take(data[at : at + 1])
    assert (chunks.sound, chunks.ended) == (piecewise.sound, piecewise.ended)
    if not chunks.ended:
        return
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    while not isinstance(event := reader.next_event(), h11.EndOfMessage):
        assert isinstance(event, (h11.Request, h11.Data))
    assert not event.headers
    body = data.removesuffix(reader.trailing_data[0])
    assert body.endswith(b"\r\n\r\n")
    again = Chunks()
    again.take(body)
    assert again.ended
    again = Chunks()
    again.take(body[:-1])
    assert not again.ended


@target(
    PUBLISH + b"1", PUBLISH.replace(b"HTTP", b" HTTP") + b"1", PUBLISH + b"1" + PUBLISH + b"2",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n" + PUBLISH + b"1", PUBLISH[:60],
    PUBLISH.replace(b"Content-Length: 1", b"Transfer-Encoding: chunked") + b"1\r\n1\r\n0\r\n\r\n",
    PUBLISH.replace(b"Host", b"Connection: upgrade\r\nUpgrade: h2c\r\nHost") + b"1",
    b"post" + PUBLISH[4:],
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\0\x01", PUBLISH.replace(b"\r\n", b"\n"),
    is_slow=True,
)  # fmt: skip
def http_door(data: bytes) -> None:
    """A connection's bytes are answered alike in place and by Quart, and nothing else happens.

    Streams, which do not end, are left out. tests/web/test_two_ways.py has requests that
    are made with more care.
    """
    if b"/v1/e" in unquote_to_bytes(data).lower() or b"ui" in data:
        return
    in_place, with_quart = (
        trio.run(told, [data, LAST], way, clock=MockClock(autojump_threshold=0.01))
        for way in (True, False)
    )
    assert in_place[:2] == with_quart[:2]


# --- event streams, as the command line reads them ----------------------------------------


@target(
    b"retry: 2000\n\nid: a-1\nevent: subscribed\ndata: {}\n\n: x\nid: a\n\ndata: 1\r\ndata: 2\n\n",
    b"\xef\xbb\xbfdata: x\n\n", b"data\n\ndata:\n\nid\n\n", b"\r\r\n\n", b"id: \0\n\nretry: -1\n\n",
    b"\n\xef\xbb\xbfdata: x\n\n", b"event: a\n\n", b"retry: 12345678901\n\n",
)  # fmt: skip
def sse_reader(data: bytes) -> None:
    """Any cut gives the same events, which are those of the standard's algorithm."""
    expected = standard_events(data)
    for size in (1, 2, 3, len(data) or 1) if len(data) < 5000 else (1000, len(data)):
        reader = EventReader()
        found: list[Event] = []
        for start in range(0, len(data), size):
            found += reader.feed(data[start : start + size])
        found += reader.feed(b"\n") if data.endswith(b"\r") else []
        assert found == expected, size


def standard_events(data: bytes) -> list[Event]:
    """WHATWG HTML 9.2.6, but that a block without data counts, if it has another field."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    *lines, _ = re.split(rb"\r\n|\n|\r", data)
    events: list[Event] = []
    identity, name, values, seen = "", "", [], False
    for line in lines:
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if not line:
            if seen:
                events.append(Event(name or "message", identity, b"\n".join(values)))
            name, values, seen = "", [], False
        elif field == b"data":
            values.append(value)
            seen = True
        elif field == b"event":
            name, seen = value.decode(errors="replace"), True
        elif field == b"id" and b"\0" not in value:
            identity, seen = value.decode(errors="replace"), True
    return events


# --- what peers send ----------------------------------------------------------------------


def packed(*frames: Any) -> bytes:
    bodies = [msgpack.packb(frame) for frame in frames]
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


KNOCK: Final = ("knock", 2)
CHALLENGE: Final = ("challenge", b"n" * 32)
PROOF: Final = ("proof", b"p" * 32)
OLD_HELLO: Final = ("hello", 1, 1, "c" * 32, "n2", "incarnation", b"n" * 32)  # of protocol 1
HELLO: Final = (2, 2, "c" * 32, "n2", "incarnation", 7, "n1", "i1")
KEY: Final = b"a secret"
OWN: Final = (b"the node", b"its incarnation")  # so long that no random bytes have them by chance
HEARTBEAT: Final = msgpack.packb([7, "n2", "n1", 1, 0, 1])


@target(
    HEARTBEAT,
    *(msgpack.packb([number, "n2", "n1", 1, 0, 0, [], 0, 0]) for number in range(10)),
    b"\x91" * 500, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd6\xff\0\0\0\0",
)  # fmt: skip
def rpcs(data: bytes) -> None:
    try:
        rpc = decode_rpc(data)
    except ValueError:
        return
    assert decode_rpc(encode_rpc(rpc)) == rpc


def a_transport(heard: list[Rpc], asked: list[str]) -> Transport:
    async def on_request(_peer: str, name: str, _argument: Any) -> None:
        asked.append(name)

    return Transport(
        Me("c" * 32, *(words.decode() for words in OWN)),
        [KEY],
        on_rpc=heard.append,
        on_request=on_request,
        admit=lambda *_: None,
        admit_level=lambda node_id, level: None,
    )


@target(
    packed(KNOCK), packed(KNOCK, ("answer", b"n" * 32, b"p" * 32), (0, HEARTBEAT)),
    packed(OLD_HELLO), packed(KNOCK, (b"hello", msgpack.packb(HELLO), b"p" * 32)),
    packed(("knock", 9)), packed(KNOCK, ("answer", b"", b"")), packed(("proof", b"")),
    b"\0\0\x01\x01", b"\xff\xff\xff\xff", b"GET / HTTP/1.1",
    packed(("refused", "no")), packed(["knock"]), packed(None), packed({"knock": 1}),
    is_slow=True,
)  # fmt: skip
def handshake_acceptor(data: bytes) -> None:
    """Who does not know the secret gets an end, and nothing happens."""
    heard: list[Rpc] = []
    asked: list[str] = []

    async def attack() -> bytes:
        transport = a_transport(heard, asked)
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.serve, ours)
            with suppress(trio.BrokenResourceError):
                await theirs.send_all(data)
                await theirs.send_eof()
            answer = b""
            with suppress(trio.BrokenResourceError):
                while more := await theirs.receive_some():
                    answer += more
        return answer

    answer = trio.run(attack, clock=MockClock(autojump_threshold=0))
    assert heard == []
    assert asked == []
    for words in (b"welcome", b"proof", KEY, b"c" * 32, *OWN):
        assert words not in answer, "a stranger learns nothing"
    assert len(answer) < HELLO_BYTES_MAX


@target(
    packed(CHALLENGE), packed(CHALLENGE, PROOF), packed(CHALLENGE, PROOF, (b"welcome", b"", b"")),
    packed(("refused", "go away")), packed(CHALLENGE, ("refused", "x")), packed([[]]),
    packed(CHALLENGE, (b"refused", msgpack.packb(("removed", "x")), b"p" * 32)),
    packed(("challenge", b"")), packed(CHALLENGE, CHALLENGE), b"\0\0\0\0", b"HTTP/1.1 400",
    is_slow=True,
)  # fmt: skip
def handshake_dialer(data: bytes) -> None:
    """Who answers in a peer's place without the secret gets no RPC, and no request."""
    heard: list[Rpc] = []

    async def attack() -> bytes:
        transport = a_transport(heard, [])
        link = _Link(transport, "n2", ("127.0.0.1", 1))
        ours, theirs = memory_stream_pair()
        received = b""

        async def dial() -> None:
            from repl_broker.transport import PeerRefusedError

            with suppress(
                PeerRefusedError, trio.BrokenResourceError, trio.TooSlowError, ValueError
            ):
                await link.talk(ours)
            await trio.aclose_forcefully(ours)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            with suppress(trio.BrokenResourceError):
                await theirs.send_all(data)
                await theirs.send_eof()
            with suppress(trio.BrokenResourceError):
                while more := await theirs.receive_some():
                    received += more
        assert not link.connected
        return received

    received = trio.run(attack, clock=MockClock(autojump_threshold=0))
    assert heard == []
    for words in (b"hello", KEY, b"c" * 32, *OWN):
        assert words not in received, "it tells its name only to a peer that has proved itself"


@target(
    *(
        bytes([part]) + words
        for part in range(3)
        for words in (
            msgpack.packb(HELLO), msgpack.packb((9, 9, *HELLO[2:])),
            msgpack.packb((2, "c" * 32, "n2", "i2")), msgpack.packb(("removed", "gone")),
            b"", b"\xc1", b"\x91" * 300, msgpack.packb([None] * 8),
        )
    ),
    is_slow=True,
)  # fmt: skip
def handshake_words(data: bytes) -> None:
    """Of one who knows the secret, and may be of another version: read strictly, or refused."""
    part = (Part.HELLO, Part.WELCOME, Part.REFUSED)[data[0] % 3 if data else 0]
    kind = {Part.HELLO: Hello, Part.WELCOME: Welcome, Part.REFUSED: Refused}[part]
    words = data[1:]
    seal = Seal(KEY, b"n" * 32, b"m" * 32, b"")
    try:
        found: Any = seal.open(kind, part, (part, words, seal.proof(part, words)))
    except ValueError:
        return
    assert seal.open(kind, part, seal.close(part, found)) == found
    assert [type(value) for value in found] == [*get_type_hints(kind).values()]


# --- files and other people's words -------------------------------------------------------


@target(
    b'[node]\nid = "n1"\n[http]\nbind = "127.0.0.1:4080"\n[limits]\nmessage_bytes = "1 MiB"\n',
    b'[raft]\nbind = "[::1]:4081"\n[cluster]\njoin = ["a:1"]\n', b"[http]\ncors_origins = [1]\n",
    b"[topics.retention]\nseconds = 1e400\n", b"a = nan\n[a]\n", b"[limits]\nconnections = -1\n",
    b'[log]\nlevel = "\xff"', b"x = [" * 100, b"[" * 1000, b'"\\u0000" = 1979-05-27T07:32:00Z',
    is_slow=True,
)  # fmt: skip
def toml(data: bytes) -> None:
    """Every problem is a line that can be printed."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            load(Path(file.name))
        except InvalidConfigError as error:
            assert error.problems
            for problem in error.problems:
                assert "\n" not in problem
                problem.encode()
        except ConfigError as error:
            assert "\n" not in str(error)


@cache
def sound_backup() -> bytes:
    """The bytes of a backup that has topics, messages and a snapshot below them."""
    from tests.fuzz.backups import make

    return make()


@target(b"", b"\0\0", b"\x10\x00\x01", b"\xff\xff\xff", b"SQLite format 3\0", is_slow=True)
def backups(data: bytes) -> None:
    """``data`` changes a sound backup; it is restored as it was, or refused with nothing left."""
    from repl_broker.backup import restore

    changed = bytearray(sound_backup())
    for start in range(0, len(data) - 2, 3):  # two bytes say where, the third what
        at = int.from_bytes(data[start : start + 2], "big") * 31 % len(changed)
        changed[at] ^= data[start + 2]
    if len(data) % 3 == 2:
        del changed[int.from_bytes(data[-2:], "big") * 31 % len(changed) :]
    with tempfile.TemporaryDirectory() as name:
        file, folder = Path(name, "backup"), Path(name, "data")
        file.write_bytes(changed)
        try:
            restore(file, folder, None, now_ms=1)
        except (StorageError, ConfigError) as error:
            assert not folder.exists()
            assert str(error)


@target(
    msgpack.packb([1, 7, 1, 0, [True, [1, 1, 1], 1, 1], [], [], {}, [], [], 0]), b"\x90", b"\x01",
    msgpack.packb([1_800_000_000_000, [1, ["chat"], [b"1"], None, b""], [5]]), b"\x92\x01\x91\x05",
    msgpack.packb([0, [2, 1, None, None, None, 3]]), msgpack.packb([0, [1, 7, 7, 7, 7]]),
    msgpack.packb([0, [4, True, [1, 1, 1], -1, "x"]]), msgpack.packb([0, [3, []], [2, {}]]),
    is_slow=True,
)  # fmt: skip
def backups_forged(data: bytes) -> None:
    """``data`` is an entry, or the snapshot, of a backup whose checksums are sound."""
    from repl_broker.backup import restore
    from tests.fuzz.backups import forged

    for place in ("log", "snapshot"):
        with tempfile.TemporaryDirectory() as name:
            file, folder = Path(name, "backup"), Path(name, "data")
            file.write_bytes(sound_backup())
            forged(file, place, data)
            try:
                restore(file, folder, None, now_ms=1)
            except (StorageError, ConfigError) as error:
                assert not folder.exists()
                assert str(error)


@target(
    b"# HELP x\nprocess_open_fds 12.0\nprocess_max_fds 1024.0\n", b"process_open_fds nan\n",
    b'repl_broker_commit_seconds_bucket{le="0.0.1"} 1\nrepl_broker_commit_seconds_count 1\n',
    b'repl_broker_commit_seconds_bucket{le="0.001"} 1\nrepl_broker_commit_seconds_count 1\n',
    b'{"members":[{"id":"n1","role":"learner","lag":1}],"mode":"cluster","leader":null}',
    b'{"members":[{"id":["n1"],"lag":true,"match_index":{}}],"node":[]}',
)  # fmt: skip
def doctor_reading(data: bytes) -> None:
    """Whatever a server says, the doctor has an opinion of it."""
    from repl_broker.cli.findings import judge_commits

    metrics = read_metrics(data.decode(errors="replace"))
    assert not any(math.isnan(value) for value in metrics.values())
    judge_descriptors(metrics)
    judge_commits(metrics)
    with suppress(ValueError, RecursionError):
        found = json.loads(data)
        if isinstance(found, dict):
            assert judge_cluster(found, found)


@target(
    b'{"keys":[]}', b'{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"a"}]}',
    b'{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}',
    b'{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA","use":"sig","key_ops":["verify"]}]}',
)  # fmt: skip
def jwks(data: bytes) -> None:
    """A key set is read, key by key, or is none; whatever the libraries below think of it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            found = read_keys(Path(file.name))
        except ConfigError as error:
            assert len(str(error)) < 400
            return
    assert len(found.keys) <= 64
    assert all(len(note) < 400 for note in found.notes)


@cache
def a_verifier() -> Verifier:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 64)
        file.flush()
        return Verifier(AuthConfig(mode="jwt", secret_file=Path(file.name)))


@target(
    b"eyJhbGciOiJub25lIn0.e30.", b"eyJhbGciOiJIUzI1NiJ9.e30.AAAA", b"a.b.c", b"..",
    b"eyJhbGciOlsxXX0.W10.x", b"eyJhbGciOiJIUzI1NiIsImtpZCI6e319.e30.AAAA",
)  # fmt: skip
def jwt(data: bytes) -> None:
    """Nobody who does not have the key makes a token."""
    try:
        a_verifier().verify(data.decode("latin-1"), 1.8e9)
    except RequestError as error:
        refused(error, "unauthenticated")
        return
    raise AssertionError("nobody has signed this")
