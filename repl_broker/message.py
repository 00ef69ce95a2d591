"""What travels: messages, the topics they belong to, and the ids that order them.

A *message* is one JSON value published to one *topic*. It has a cluster-wide
sequence number, ``seq`` (1, 2, 3 …), and an *event id*, ``<epoch>-<seq>``,
which is opaque to clients and valid on every node. A *filter* is a topic, or
a pattern with NATS's wildcards.

JSON is checked here and then kept as bytes: numbers, escapes, duplicate keys
and the order of members reach the subscriber as they were published. Only
insignificant white space goes, so that a message is always one line.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple, NoReturn, TypeVar, cast

import msgspec

from repl_broker.errors import RequestError
from repl_broker.filters import Filters, compiled

__all__ = [
    "FILTERS_MAX",
    "QUICK",
    "SEQUENCE_MAX",
    "SLOW",
    "TOPIC_BYTES_MAX",
    "Cursor",
    "FilterSet",
    "JsonLimits",
    "Message",
    "Steps",
    "TopicDeleted",
    "check_topic",
    "compact_json",
    "covers",
    "event_id",
    "is_filter",
    "json_steps",
    "ndjson_steps",
    "parse_event_id",
    "split_ndjson",
    "split_topic_ndjson",
    "time_text",
    "topic_ndjson_steps",
    "whole",
]

T = TypeVar("T")

TOPIC_BYTES_MAX: Final = 255
FILTERS_MAX: Final = 128  # filters one stream may have
SEQUENCE_MAX: Final = 2**63 - 1

_TOPIC = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_FILTER = re.compile(r"(?:[A-Za-z0-9_-]+|\*)(?:\.(?:[A-Za-z0-9_-]+|\*))*(?:\.>)?|>")
_EVENT_ID = re.compile(r"([0-9a-f]{8})-(0|[1-9][0-9]{0,18})")


class Message(msgspec.Struct, frozen=True, gc=False):
    """One published message, as the log orders it."""

    seq: int  # cluster-wide, from 1, without holes
    topic: str
    time_ms: int  # milliseconds since 1970, the leader's, never running backwards
    data: bytes  # one JSON value, no line breaks

    def to_json(self, epoch: str) -> bytes:
        """The message object that SSE, history and the command line all show."""
        return b'{"id":"%b","topic":"%b","time":"%b","data":%b}' % (
            event_id(epoch, self.seq).encode(),
            self.topic.encode(),
            time_text(self.time_ms).encode(),
            self.data,
        )


class TopicDeleted(NamedTuple):
    """A topic was removed when ``position`` was the last sequence number given."""

    topic: str
    position: int


class Cursor(NamedTuple):
    """A place in the order: everything up to and including ``seq`` has been seen."""

    epoch: str
    seq: int

    def __str__(self) -> str:
        return event_id(self.epoch, self.seq)


def event_id(epoch: str, seq: int) -> str:
    """``<epoch>-<seq>``, the id by which clients know a message."""
    return f"{epoch}-{seq}"


def parse_event_id(text: str) -> Cursor:
    """The cursor that an event id stands for. Raises ``invalid_event_id``."""
    match = _EVENT_ID.fullmatch(text)
    if match is None or int(match[2]) > SEQUENCE_MAX:
        raise RequestError(
            "invalid_event_id",
            f"{_shown(text)} is not an event id. An event id is 8 hexadecimal digits, a hyphen and "
            "a number; send back one that the server gave, or 'earliest' or 'latest'.",
        )
    return Cursor(match[1], int(match[2]))


def time_text(time_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds: ``2026-11-23T04:00:00.123Z``."""
    seconds, milliseconds = divmod(time_ms, 1000)
    return f"{_second_text(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=64)  # of the seconds: most messages are of this one
def _second_text(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


# --- topics and filters -----------------------------------------------------------


@lru_cache(maxsize=1024)  # of names that passed: one client publishes to one topic, as a rule
def check_topic(name: str) -> str:
    """``name`` itself when it is a topic's name. Raises ``invalid_topic``."""
    if len(name) > TOPIC_BYTES_MAX:
        raise RequestError(
            "invalid_topic",
            f"The name {_shown(name)} has {len(name)} characters; "
            f"a topic's name has at most {TOPIC_BYTES_MAX}.",
        )
    if _TOPIC.fullmatch(name) is None:
        raise RequestError(
            "invalid_topic",
            f"{_shown(name)} is not a topic's name: use one or more of A-Z a-z 0-9 _ - between "
            "single dots, for instance 'orders.eu.42'.",
        )
    return name


class FilterSet:
    """A set of filters: which topics one stream follows.

    Equal sets compare and hash equal, so that streams that follow the same
    topics can share their work. ``exact`` are the filters that name one topic,
    ``patterns`` those with wildcards: ``*`` is one token, a last ``>`` one or
    more (NATS's rules).
    """

    __slots__ = ("_hash", "exact", "filters", "patterns")

    def __init__(self, filters: Iterable[str], filters_max: int = FILTERS_MAX) -> None:
        """Raises ``invalid_filter`` for one that is malformed, and for none or too many.

        Repeats count: a filter that is given twice is two of ``filters_max``.
        """
        given = tuple(filters)
        self.filters = frozenset(given)
        if not given:
            raise RequestError(
                "invalid_filter",
                "The stream has no filter; give at least one, as in '?topic=chat'.",
            )
        if len(given) > filters_max:
            raise RequestError(
                "invalid_filter",
                f"The stream has {len(given)} filters; the limit is {filters_max}. "
                "Use a pattern such as 'orders.>' or open a second stream.",
            )
        for text in self.filters:
            _check_filter(text)
        self.patterns = frozenset(f for f in self.filters if f == ">" or "*" in f or ".>" in f)
        self.exact = self.filters - self.patterns
        self._hash = hash(self.filters)

    def matches(self, topic: str) -> bool:
        """Whether a message of ``topic`` belongs to this set."""
        if not self.patterns:
            return topic in self.exact
        return topic in self.exact or compiled(self.filters).covers(topic)

    @property
    def compiled(self) -> Filters:
        """The same, to search names by. Large, so take it anew for each piece of a search."""
        return compiled(self.filters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FilterSet) and self.filters == other.filters

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"FilterSet({sorted(self.filters)})"


def is_filter(text: str) -> bool:
    """Whether it is a topic's name or a pattern."""
    return len(text) <= TOPIC_BYTES_MAX and _FILTER.fullmatch(text) is not None


def covers(wide: str, narrow: str) -> bool:
    """Whether ``wide`` matches every topic that ``narrow`` can match; both are filters.

    So ``orders.>`` covers ``orders.*.paid`` and ``orders.eu``, and not ``orders`` or ``>``.
    """
    given, wanted = wide.split("."), narrow.split(".")
    for position, part in enumerate(given):
        if position == len(wanted):
            return False
        if part == ">":
            return True  # one or more, which is what is left of ``narrow``
        if wanted[position] == ">" or part not in ("*", wanted[position]):
            return False
    return len(given) == len(wanted)


def _check_filter(text: str) -> None:
    if not is_filter(text):
        raise RequestError(
            "invalid_filter",
            f"{_shown(text)} is not a filter: use a topic's name of at most {TOPIC_BYTES_MAX} "
            "characters, with '*' for one token or a last '>' for all that follow, for instance "
            "'orders.*.42' or 'orders.>'.",
        )


# --- JSON ---------------------------------------------------------------------------


class JsonLimits(NamedTuple):
    """What a publisher may send."""

    message_bytes: int
    batch_messages: int
    depth: int  # levels of nested arrays and objects


class _TopicLine(msgspec.Struct, forbid_unknown_fields=True):
    topic: str
    data: msgspec.Raw


_TOPIC_LINE = msgspec.json.Decoder(_TopicLine)
# It pauses after each step, says whether the next is one that takes long, and returns what came
# of all.
Steps = Generator[bool, None, T]
QUICK, SLOW = False, True
BLOCK_BYTES: Final = 1024  # of a batch, and the rest of a line: a step of some 0.5 ms at most
# Possessive repeats, so that a long string costs no memory for places to go back to.
_STRING_OR_SPACE = re.compile(rb'("(?:[^"\\]++|\\.)*+")|[ \t\r\n]+', re.DOTALL)
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]")
_TOPIC_COMES_FIRST = re.compile(rb"\{%b:%b,%b:" % ((_STRING.pattern,) * 3), re.DOTALL)
_DATA_COMES_FIRST = re.compile(rb"\{%b:" % _STRING.pattern, re.DOTALL)
_TOPIC_COMES_LAST = re.compile(rb",%b:%b\}" % ((_STRING.pattern,) * 2), re.DOTALL)
# A step of what goes over a long text: whole strings, and some other bytes between them.
_PIECE = re.compile(rb'(?:[^"]{1,1024}+|"(?:[^"\\]++|\\.)*+"){1,64}+', re.DOTALL)
_REASON_MAX: Final = 200  # characters of what the decoder says, which may repeat a long name
_OPENING: Final = b"[{"
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")  # +1 and -1, as array("b") reads
_STRING_OR_CONSTANT = re.compile(rb'"(?:[^"\\]++|\\.)*+"|(NaN|-?Infinity)', re.DOTALL)


def compact_json(text: bytes, limits: JsonLimits, line: int = 1) -> bytes:
    """``text`` without insignificant white space, once it is proved to be one JSON value.

    RFC 8259 to the letter: UTF-8, no NaN, no trailing comma, no byte-order mark.
    ``line`` is where ``text`` starts in the request's body. Raises
    ``invalid_json`` with line and column (both from 1, the column in
    characters), or ``message_too_large``.
    """
    _check_size(text, limits, line)
    return _compact(text, limits.depth, line)


def _check_size(text: bytes, limits: JsonLimits, line: int) -> None:
    if len(text) > limits.message_bytes:
        raise RequestError(
            "message_too_large",
            f"The message on line {line} has {len(text)} bytes; the limit is "
            f"{limits.message_bytes} bytes ([limits] message_bytes).",
            limit=limits.message_bytes,
        )


def _compact(text: bytes, depth_max: int, line: int, wrappers: int = 0) -> bytes:
    # ``wrappers`` levels around a message are the batch's own, and do not count.
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            _refuse_json(text, error.start, line, f"byte 0x{text[error.start]:02x} is not UTF-8")
    if text.count(b"[") + text.count(b"{") > depth_max + wrappers:
        _check_depth(text, depth_max, line, wrappers)
    try:
        return msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, RecursionError):
        # It may be right all the same: msgspec refuses the escape of a lone surrogate, which
        # JSON.stringify produces. If it is not, the slow reader has the better words.
        if not _is_json_but_for_surrogates(text):
            _explain_json(text, line)
        if _SPACE.search(text) is None:
            return text
        return b"".join(map(_without_space, _pieces(text)))


def _at_once(text: bytes, depth_max: int, wrappers: int = 0) -> bytes | None:
    """As ``_compact``, of what one look is enough for; None of what is wrong, or only looks so."""
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return None
    if text.count(b"[") + text.count(b"{") > depth_max + wrappers:
        return None
    try:
        return msgspec.json.format(text, indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return None


def json_steps(body: bytes, limits: JsonLimits) -> Steps[bytes]:
    """``compact_json``, in one step if it can be."""
    _check_size(body, limits, 1)
    value = _at_once(body, limits.depth)
    if value is None:
        yield SLOW
        value = _compact(body, limits.depth, 1)
    return value


def whole(steps: Steps[T]) -> T:
    """What comes of all the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return cast(T, ended.value)


def _is_json_but_for_surrogates(text: bytes) -> bool:
    # With escaped backslashes out of the way, a backslash and a u are an escape; none that
    # begins with another digit is of a surrogate.
    plain = text.replace(rb"\\", rb"\n").replace(rb"\ud", rb"\u0").replace(rb"\uD", rb"\u0")
    try:
        msgspec.json.format(plain, indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _pieces(text: bytes) -> Iterator[bytes]:
    """``text`` in small parts, of which none begins or ends within a string.

    A thread that goes over a long text lets others have their turns between two of
    them. What follows an unterminated string is left out.
    """
    end = 0
    while (found := _PIECE.match(text, end)) is not None:
        end = found.end()
        yield found[0]


def _without_space(piece: bytes) -> bytes:
    if _SPACE.search(_STRING.sub(b"", piece)) is None:
        return piece
    return _STRING_OR_SPACE.sub(rb"\1", piece)


def split_ndjson(body: bytes, limits: JsonLimits) -> list[bytes]:
    """The values of an ``application/x-ndjson`` body, one a line; blank lines do not count.

    Raises ``invalid_json``, ``message_too_large`` or ``batch_too_large``; the
    line in the error is the body's.
    """
    return whole(ndjson_steps(body, limits))


def split_topic_ndjson(body: bytes, limits: JsonLimits) -> list[tuple[str, bytes]]:
    """The pairs of topic and value of a body whose lines are ``{"topic":…,"data":…}``."""
    return whole(topic_ndjson_steps(body, limits))


def ndjson_steps(body: bytes, limits: JsonLimits) -> Steps[list[bytes]]:
    """``split_ndjson``, some lines at a time."""
    compacted: list[bytes] = []
    depth_max, format_json = limits.depth, msgspec.json.format
    # Where no line is too long or has a byte that is to be checked: the same, with fewer looks
    # at each.
    is_plain = len(body) <= limits.message_bytes and body.isascii()
    for block in _lines(body, limits):
        for line, text in block:
            value: bytes | None = None
            if not is_plain:
                _check_size(text, limits, line)
                value = _at_once(text, depth_max)
            elif text.count(b"[") + text.count(b"{") <= depth_max:
                try:
                    value = format_json(text, indent=-1)
                except (msgspec.DecodeError, RecursionError):
                    value = None  # it may be right all the same, or is explained
            if value is None:
                yield SLOW
                value = _compact(text, depth_max, line)
            compacted.append(value)
        yield QUICK
    return compacted


def topic_ndjson_steps(body: bytes, limits: JsonLimits) -> Steps[list[tuple[str, bytes]]]:
    """``split_topic_ndjson``, some lines at a time."""
    pairs: list[tuple[str, bytes]] = []
    for block in _lines(body, limits):
        for line, text in block:
            value = _at_once(text, limits.depth, wrappers=1)
            if value is None:
                yield SLOW
                value = _compact(text, limits.depth, line, wrappers=1)
            pairs.append(_topic_and_data(value, limits, line))
        yield QUICK
    return pairs


def _topic_and_data(value: bytes, limits: JsonLimits, line: int) -> tuple[str, bytes]:
    try:
        topic, data = _topic_line(value)
    except msgspec.DecodeError as error:
        raise RequestError(
            "invalid_json",
            f"Line {line} of the batch is not a message: {str(error)[:_REASON_MAX]}. A line is "
            '{"topic":"orders.eu","data":any JSON value} and nothing else.',
            line=line,
            column=1,
        ) from None
    if not _names_two_members(value, data):
        raise RequestError(
            "invalid_json",
            f"Line {line} of the batch names a member more than once; "
            "give 'topic' once and 'data' once.",
            line=line,
            column=1,
        )
    _check_size(data, limits, line)
    return check_topic(topic), data


def _names_two_members(value: bytes, data: bytes) -> bool:
    """Whether an object, without white space, that names a topic and ``data`` names nothing else.

    The decoder takes the last of those that have one name, however they are escaped, and
    loses the others without a word. So no name is looked for: what is left of the object
    beside the last ``data`` must be one string, and two names.
    """
    begins = _TOPIC_COMES_FIRST.match(value)
    if begins is not None and value[begins.end() :] == data + b"}":
        return True
    begins = _DATA_COMES_FIRST.match(value)
    if begins is None or not value.startswith(data, begins.end()):
        return False
    return _TOPIC_COMES_LAST.fullmatch(value, begins.end() + len(data)) is not None


def _topic_line(value: bytes) -> tuple[str, bytes]:
    try:
        item = _TOPIC_LINE.decode(value)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # The escape of a lone surrogate again: the data is read around msgspec.
        members = dict(_members(value.decode()))
        hidden = ((name, "null" if name == "data" else v) for name, v in members.items())
        item = _TOPIC_LINE.decode("{" + ",".join(f"{json.dumps(n)}:{v}" for n, v in hidden) + "}")
        return item.topic, members["data"].encode()
    return item.topic, bytes(item.data)


def _members(text: str) -> Iterator[tuple[str, str]]:
    # The names and raw values of a JSON object that is proved and has no white space.
    read = json.JSONDecoder(parse_int=len, parse_float=len).raw_decode
    end = 0
    while text[end] in "{,":
        name, colon = read(text, end + 1)
        _, end = read(text, colon + 1)
        yield name, text[colon + 1 : end]


def _lines(body: bytes, limits: JsonLimits) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that are not blank, with their numbers; some bytes of the body at a time."""
    count = number = start = 0
    while start <= len(body):
        end = body.find(b"\n", start + BLOCK_BYTES)
        end = len(body) if end < 0 else end
        block: list[tuple[int, bytes]] = []
        for text in body[start:end].split(b"\n"):
            number += 1
            if text and not (text.isspace() and not text.strip(b" \t\r")):
                block.append((number, text))
        start = end + 1
        yield block[: limits.batch_messages - count]
        count += len(block)
        if count > limits.batch_messages:
            raise RequestError(
                "batch_too_large",
                f"The batch has more than {limits.batch_messages} messages, which is the limit "
                "([limits] batch_messages); send it in several parts.",
                limit=limits.batch_messages,
            )
    if not count:
        raise RequestError(
            "invalid_json", "The batch has no message; send at least one line.", line=1, column=1
        )


def _check_depth(text: bytes, depth_max: int, line: int, wrappers: int) -> None:
    depth, start = -wrappers, 0
    for piece in _pieces(text):
        steps = array("b", _STRING.sub(b"", piece).translate(_STEPS, _NO_BRACKETS))
        if depth + len(steps) > depth_max and max(accumulate(steps, initial=depth)) > depth_max:
            offset = start + _too_deep(piece, depth_max - depth)
            _refuse_json(
                text,
                offset,
                line,
                f"arrays and objects are nested deeper than {depth_max} levels, "
                "which is the limit ([limits] json_depth)",
            )
        depth += sum(steps)
        start += len(piece)


def _too_deep(piece: bytes, room: int) -> int:
    """Where the bracket is that opens more than ``room`` levels."""
    for token in _STRING_OR_BRACKET.finditer(piece):
        bracket = piece[token.start()]
        if bracket in _OPENING:
            room -= 1
            if room < 0:
                return token.start()
        elif bracket in b"]}":
            room += 1
    raise AssertionError("there is one")


def _explain_json(text: bytes, line: int) -> None:
    try:
        # What it reads is not wanted. These are in Python, so that while it reads a long text
        # in a thread others have their turns.
        json.loads(
            text.decode(),
            parse_constant=_refuse_constant,
            parse_int=_forget,
            parse_float=_forget,
            object_pairs_hook=_forget,
        )
    except json.JSONDecodeError as found:
        _refuse_json(text, len(found.doc[: found.pos].encode()), line, _lower(found.msg))
    except _ConstantError as found:
        # The reader stops at the first constant, and all strings before it are closed.
        offset = next(m.start(1) for m in _STRING_OR_CONSTANT.finditer(text) if m[1])
        _refuse_json(text, offset, line, f"{found} is not JSON; use null or a string")
    except RecursionError:
        _refuse_json(text, 0, line, "arrays and objects are nested too deep")


class _ConstantError(ValueError):
    pass


def _forget(found: object) -> None:
    pass


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


def _refuse_json(text: bytes, offset: int, line: int, reason: str) -> NoReturn:
    before = text[:offset]
    line += before.count(b"\n")
    column = len(before[before.rfind(b"\n") + 1 :].decode(errors="replace")) + 1
    raise RequestError(
        "invalid_json", f"Line {line}, column {column}: {reason}.", line=line, column=column
    )


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")
