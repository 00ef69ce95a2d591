"""Entries as bytes: msgpack arrays, so that the log and the peers share one form. Pure.

An entry is ``[time_ms, command, command …]``; a command is an array that
starts with its number. Numbers are never reused: a log outlives a version.
A command is encoded once, by the node that took the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack
import msgspec

from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    DeleteTopics,
    Expire,
    KeepTopics,
    Numbered,
    Publish,
    RaiseLevel,
    Retention,
    RevokeTokens,
    Settings,
    Shares,
)

__all__ = [
    "decode_command",
    "decode_entry",
    "decode_messages",
    "encode_command",
    "encode_entry",
    "pack_settings",
    "unpack_settings",
    "without_messages",
]

_ENCODE: Final = msgspec.msgpack.Encoder().encode  # the bytes of msgpack.packb, four times as fast

PUBLISH: Final = 1
CREATE_TOPIC: Final = 2
DELETE_TOPIC: Final = 3
CONFIGURE: Final = 4
EXPIRE: Final = 5
REVOKE_TOKENS: Final = 6
DELETE_TOPICS: Final = 7
KEEP_TOPICS: Final = 8
NUMBERED: Final = 9
RAISE_LEVEL: Final = 10


def encode_command(command: Command) -> bytes:
    """A command's bytes, ready to be joined into an entry."""
    fields: tuple[Any, ...]
    match command:
        case Publish(topics, data, key, digest, owner, client):
            fields = (PUBLISH, topics, data, key, digest)
            if client or owner:
                fields += (client,) if client == owner else (client, owner)
        case CreateTopic(name, messages, seconds, size, replace, idle_seconds, client):
            fields = (CREATE_TOPIC, name, messages, seconds, size, replace)
            if client or idle_seconds is not None:
                fields += (idle_seconds, client)
        case DeleteTopic(name):
            fields = (DELETE_TOPIC, name)
        case Configure(settings):
            fields = (CONFIGURE, *pack_settings(settings))
        case Expire(steps_max):
            fields = (EXPIRE, *((steps_max,) if steps_max else ()))
        case RevokeTokens(subject, keep_seconds, asked_ms):
            fields = (REVOKE_TOKENS, subject, keep_seconds, *((asked_ms,) if asked_ms else ()))
        case DeleteTopics(names, used):
            fields = (DELETE_TOPICS, names, used)
        case KeepTopics(names):
            fields = (KEEP_TOPICS, names)
        case Numbered(sender, run, floor, numbers):
            fields = (NUMBERED, sender, run, floor, numbers)
        case RaiseLevel(level):
            fields = (RAISE_LEVEL, level)
    return _ENCODE(fields)


def pack_settings(s: Settings) -> tuple[Any, ...]:
    """The settings as a tuple, for a command and for a snapshot.

    What came later is at the end, and only where it is used.
    """
    r, shares = s.retention, s.shares
    packed = (
        s.auto_create,
        (r.messages, r.seconds, r.bytes, *(() if r.idle_seconds is None else (r.idle_seconds,))),
        s.idempotency_keys,
        s.idempotency_seconds,
    )
    if shares != Shares():
        most = (shares.topics, shares.storage_bytes, shares.idempotency_keys)
        return (*packed, s.topics, (*most, True) if shares.of_publishers else most)
    return (*packed, s.topics) if s.topics else packed


def unpack_settings(fields: Sequence[Any]) -> Settings | None:
    """The settings that ``pack_settings`` gave; None for another version's."""
    match fields:
        case (auto_create, (messages, age, size, *idle), keys, seconds, *later) if len(idle) < 2:
            retention = Retention(messages, age, size, *idle)
            match later:
                case []:
                    return Settings(auto_create, retention, keys, seconds)
                case [topics]:
                    return Settings(auto_create, retention, keys, seconds, topics)
                case [topics, (_, _, _) | (_, _, _, True) as most]:
                    shares = Shares(*most)
                    return Settings(auto_create, retention, keys, seconds, topics, shares)
    return None


def encode_entry(time_ms: int, commands: Sequence[bytes]) -> bytes:
    """An entry of encoded commands, all of which happen at ``time_ms``."""
    packer = msgpack.Packer()
    head = packer.pack_array_header(len(commands) + 1) + packer.pack(time_ms)
    return b"".join((head, *commands))


def decode_command(data: bytes) -> Command:
    """The command that ``encode_command`` gave. Raises ValueError for what is not one."""
    match msgpack.unpackb(data, use_list=False, raw=False):
        case tuple(fields) if fields:
            return _command(fields)
    raise ValueError("not a command")


def decode_entry(data: bytes) -> tuple[int, list[Command]]:
    """The time and the commands of an entry. Raises ValueError for what is not one."""
    time_ms, commands = _unpack(data)
    return time_ms, [_command(fields) for fields in commands]


def _command(fields: tuple[Any, ...]) -> Command:
    match fields:
        case (1, topics, data, key, digest):
            return Publish(topics, data, key, digest)
        case (1, topics, data, key, digest, client):
            return Publish(topics, data, key, digest, client, client)
        case (1, topics, data, key, digest, client, owner):
            return Publish(topics, data, key, digest, owner, client)
        case (2, name, messages, seconds, size, replace, *later) if len(later) in (0, 2):
            return CreateTopic(name, messages, seconds, size, replace, *later)
        case (3, name):
            return DeleteTopic(name)
        case (4, *packed) if (settings := unpack_settings(packed)) is not None:
            return Configure(settings)
        case (5,):
            return Expire()
        case (5, int(steps_max)) if steps_max > 0:
            return Expire(steps_max)
        case (6, subject, keep_seconds):
            return RevokeTokens(subject, keep_seconds)
        case (6, subject, keep_seconds, int(asked_ms)) if asked_ms > 0:
            return RevokeTokens(subject, keep_seconds, asked_ms)
        case (7, names, None):
            return DeleteTopics(names)
        case (7, names, tuple(used)) if len(used) == len(names):
            return DeleteTopics(names, used)
        case (8, names):
            return KeepTopics(names)
        case (9, sender, int(run), int(floor), tuple(numbers)):
            return Numbered(sender, run, floor, numbers)
        case (10, int(level)):
            return RaiseLevel(level)
    raise ValueError(
        f"the log holds a command of kind {fields[0]!r}, which this version does not know"
    )


def decode_messages(data: bytes) -> list[bytes]:
    """The data of every message that an entry carries, in order, and nothing else."""
    _, commands = _unpack(data)
    return [body for fields in commands if fields[0] == PUBLISH for body in fields[2]]


def without_messages(data: bytes, dead: set[int]) -> bytes:
    """The entry with the data of the messages numbered in ``dead`` (from 0) left empty."""
    time_ms, commands = _unpack(data)
    number = 0
    rewritten = []
    for fields in commands:
        if fields[0] == PUBLISH:
            bodies = tuple(b"" if number + i in dead else b for i, b in enumerate(fields[2]))
            number += len(bodies)
            fields = (*fields[:2], bodies, *fields[3:])
        rewritten.append(msgpack.packb(fields))
    return encode_entry(time_ms, rewritten)


def _unpack(data: bytes) -> tuple[int, list[tuple[Any, ...]]]:
    match msgpack.unpackb(data, use_list=False, raw=False):
        case (int(time_ms), *commands) if all(isinstance(c, tuple) and c for c in commands):
            return time_ms, commands
    raise ValueError("the log holds something that is not an entry")
