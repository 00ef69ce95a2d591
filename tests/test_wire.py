"""Entries as bytes: what goes in comes out, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    DeleteTopics,
    Expire,
    KeepTopics,
    Publish,
    Retention,
    RevokeTokens,
    Settings,
    Shares,
)
from repl_broker.wire import (
    decode_entry,
    decode_messages,
    encode_command,
    encode_entry,
    without_messages,
)

NAMES = st.from_regex(r"[a-z]{1,3}(\.[a-z]{1,3})?", fullmatch=True)
BODIES = st.binary(max_size=300)
COUNTS = st.integers(1, 2**63 - 1)
MAYBE = st.none() | COUNTS
KEYS = st.none() | st.text(st.characters(codec="utf-8"), max_size=300)

SAME_TOPIC = st.tuples(NAMES, st.lists(BODIES, max_size=20).map(tuple))
OWN_TOPICS = st.lists(st.tuples(NAMES, BODIES), min_size=1, max_size=20).map(
    lambda pairs: tuple(zip(*pairs, strict=True))
)
WHOSE = st.just("") | st.text(st.characters(codec="utf-8"), max_size=9)
PUBLISHES = st.builds(
    lambda m, key, digest, owner, client: Publish(m[0], m[1], key, digest, owner, client),
    SAME_TOPIC | OWN_TOPICS,
    KEYS,
    st.binary(max_size=32),
    WHOSE,
    WHOSE,
)
SHARES = st.just(Shares()) | st.builds(Shares, *[st.integers(0, 2**63 - 1)] * 3)
COMMANDS = st.one_of(
    PUBLISHES,
    st.builds(CreateTopic, NAMES, MAYBE, MAYBE, MAYBE, st.booleans(), MAYBE | st.just(0), WHOSE),
    st.builds(DeleteTopic, NAMES),
    st.builds(DeleteTopics, st.lists(NAMES).map(tuple)),
    st.lists(st.tuples(NAMES, COUNTS), min_size=1).map(
        lambda idle: DeleteTopics(*map(tuple, zip(*idle, strict=True)))  # type: ignore[arg-type]
    ),
    st.builds(KeepTopics, st.lists(NAMES).map(tuple)),
    st.builds(
        Configure,
        st.builds(
            Settings,
            st.booleans(),
            st.builds(Retention, *[COUNTS] * 3, MAYBE),
            COUNTS,
            COUNTS,
            st.just(0) | COUNTS,
            SHARES,
        ),
    ),
    st.builds(Expire, COUNTS),
    st.builds(RevokeTokens, st.text(st.characters(codec="utf-8"), max_size=300), COUNTS, COUNTS),
)
ENTRIES = st.lists(COMMANDS, max_size=8)
TIMES = st.integers(0, 2**63 - 1)


def encoded(commands: Sequence[Command], time_ms: int = 1) -> bytes:
    return encode_entry(time_ms, [encode_command(command) for command in commands])


@given(TIMES, ENTRIES)
@example(0, [])
@example(2**63 - 1, [Expire()] * 70_000)
def test_any_entry_comes_back_as_it_was(time_ms: int, commands: list[Command]) -> None:
    assert decode_entry(encoded(commands, time_ms)) == (time_ms, commands)


@given(TIMES, ENTRIES)
@settings(max_examples=settings().max_examples // 2)
def test_an_entry_has_one_form(time_ms: int, commands: list[Command]) -> None:
    """The log's checksums and the peers compare bytes."""
    once = encoded(commands, time_ms)
    assert encoded(decode_entry(once)[1], time_ms) == once


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (Publish("a", (b"1", b"2")), [1, "a", [b"1", b"2"], None, b""]),
        (Publish(("a", "b"), (b"1", b"2"), "k", b"d"), [1, ["a", "b"], [b"1", b"2"], "k", b"d"]),
        (CreateTopic("a", 1, None, 3, True), [2, "a", 1, None, 3, True]),
        (DeleteTopic("a"), [3, "a"]),
        (Configure(Settings(False, Retention(1, 2, 3), 4, 5)), [4, False, [1, 2, 3], 4, 5]),
        (Configure(Settings(True, Retention(1, 2, 3), 4, 5, 6)), [4, True, [1, 2, 3], 4, 5, 6]),
        (Expire(), [5]),
        (Expire(7), [5, 7]),
        (Publish("a", (b"1",), "k", b"d", "ann", "ann"), [1, "a", [b"1"], "k", b"d", "ann"]),
        (Publish("a", (b"1",), "k", b"d", "ann"), [1, "a", [b"1"], "k", b"d", "", "ann"]),
        (Publish("a", (b"1",), client="::1"), [1, "a", [b"1"], None, b"", "::1", ""]),
        (CreateTopic("a", idle_seconds=0), [2, "a", None, None, None, False, 0, ""]),
        (CreateTopic("a", client="ann"), [2, "a", None, None, None, False, None, "ann"]),
        (
            Configure(Settings(True, Retention(1, 2, 3, 9), 4, 5)),
            [4, True, [1, 2, 3, 9], 4, 5],
        ),
        (
            Configure(Settings(True, Retention(1, 2, 3), 4, 5, 0, Shares(6, 7, 8))),
            [4, True, [1, 2, 3], 4, 5, 0, [6, 7, 8]],
        ),
        (DeleteTopics(("a", "b")), [7, ["a", "b"], None]),
        (DeleteTopics(("a", "b"), (5, 6)), [7, ["a", "b"], [5, 6]]),
        (KeepTopics(("a", "b")), [8, ["a", "b"]]),
    ],
)
def test_the_form_on_disk_never_changes(command: Command, fields: list[object]) -> None:
    """A log outlives a version: numbers and positions are for good."""
    assert msgpack.unpackb(encoded([command], 7)) == [7, fields]
    assert decode_entry(msgpack.packb([7, fields])) == (7, [command])


@given(ENTRIES)
def test_messages_are_numbered_through_the_whole_entry(commands: list[Command]) -> None:
    assert decode_messages(encoded(commands)) == bodies_of(commands)


@given(ENTRIES, st.data())
def test_messages_are_emptied_by_their_number_and_nothing_else_changes(
    commands: list[Command], data: st.DataObject
) -> None:
    entry = encoded(commands)
    bodies = bodies_of(commands)
    dead = data.draw(st.sets(st.integers(0, max(len(bodies) - 1, 0))))
    rewritten = without_messages(entry, dead)
    assert decode_messages(rewritten) == [
        b"" if number in dead else body for number, body in enumerate(bodies)
    ]
    time_ms, others = decode_entry(rewritten)
    assert time_ms == 1
    assert [without_data(c) for c in others] == [without_data(c) for c in commands]


@given(ENTRIES)
def test_an_entry_without_dead_messages_is_kept_to_the_byte(commands: list[Command]) -> None:
    assert without_messages(encoded(commands), set()) == encoded(commands)


def bodies_of(commands: Sequence[Command]) -> list[bytes]:
    return [body for c in commands if isinstance(c, Publish) for body in c.data]


def without_data(command: Command) -> Command:
    if not isinstance(command, Publish):
        return command
    return msgspec.structs.replace(command, data=(b"",) * len(command.data))


@pytest.mark.parametrize("command", [[6], [0], [99, "of", "the", "future"], ["publish"], [None]])
def test_a_command_of_another_version_is_refused_by_its_number(command: list[object]) -> None:
    with pytest.raises(ValueError, match=f"command of kind {command[0]!r}, which this version"):
        decode_entry(msgpack.packb([1, command]))


@pytest.mark.parametrize(
    "command",
    [
        [1],
        [1, "a", [b"1"], None],
        [1, "a", [b"1"], None, b"", "ann", "ann", "more"],
        [2, "a", 1, 2, 3, True, 5],
        [4, True, [1, 2], 3, 4],
        [4, True, [1, 2, 3, 4, 5], 3, 4],
        [4, True, [1, 2, 3], 3, 4, 0, [1, 2]],
        [4, True, [1, 2, 3], 3, 4, 0, 7],
        [4, True, [1, 2, 3], 3, 4, 0, [1, 2, 3], 5],
        [7, ["a"]],
        [8],
        [4, True, 1, 3, 4],
        [5, 0],
        [5, "1"],
        [5, 1, 1],
    ],
)
def test_a_command_with_other_fields_is_refused(command: list[object]) -> None:
    with pytest.raises(ValueError, match="command of kind"):
        decode_entry(msgpack.packb([1, command]))


@pytest.mark.parametrize(
    "value",
    [None, 5, "text", b"bytes", {}, {"a": 1}, [], [None], ["1", [5]], [1.5], [1, 5], [1, []]],
)
def test_what_is_not_an_entry_is_refused(value: object) -> None:
    for decode in (decode_entry, decode_messages):
        with pytest.raises(ValueError, match="not an entry"):
            decode(msgpack.packb(value))


@given(st.binary(max_size=40) | ENTRIES.map(encoded), st.integers(0, 40))
@example(b"\x91" * 5000, 0)
@example(b"\x92\x01\x81\x90\x01", 0)
@settings(max_examples=4 * settings().max_examples)
def test_bytes_that_are_cut_off_or_chance_raise_nothing_but_value_error(
    data: bytes, cut: int
) -> None:
    try:
        time_ms, commands = decode_entry(data[: len(data) - cut])
    except ValueError:
        return
    assert isinstance(time_ms, int)
    assert all(isinstance(command, Command) for command in commands)
