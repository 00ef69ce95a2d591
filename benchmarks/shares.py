"""What is left for others when one client with a narrow token takes all that it can get.

On a node with small limits it asks for topics, for bytes of the store, for idempotency keys
and for streams, until it is refused or has had more than there are. After each, another
client wants one of the same.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.attacks import Full, Target, ask, settings, target
from benchmarks.figures import markdown
from benchmarks.load import BenchmarkError
from benchmarks.node import single_node
from benchmarks.processes import Process, free_ports

__all__ = ["Taken", "as_text", "measure"]

TOPICS = 1000
BYTES = 8 << 20
KEYS = 1000
CONNECTIONS = 400
LARGE = b'"%b"' % (b"x" * 65_000)
JSON = "application/json"


class Taken(NamedTuple):
    what: str
    there: int
    got: int
    refused: str  # what the next is answered with
    other: str  # what the other client's is


def measure(folder: Path, say: Callable[[str], None] = lambda what: None) -> list[Taken]:
    """Raises BenchmarkError if nothing is left of something."""
    (port,) = free_ports(1)
    sections = settings(folder)
    sections["limits"] = {
        "topics": TOPICS,
        "storage_bytes": BYTES,
        "idempotency_keys": KEYS,
        "connections": CONNECTIONS,
    }
    process = Process("repl-broker", single_node(port, folder, sections), port, folder / "l")
    try:
        process.start()
        node = target(port, Full())
        founds = []
        for take in (_take_topics, _take_bytes, _take_keys, _take_streams):
            say(take.__name__.removeprefix("_").replace("_", " "))
            found = take(node)
            founds.append(found)
            if not 0 < found.got < found.there or found.other not in ("200", "201"):
                raise BenchmarkError(f"one client can take all: {found}")
    finally:
        process.stop()
    return founds


def _publish(
    node: Target, token: str, topic: str, body: bytes = b"1", key: str = ""
) -> tuple[str, str]:
    """The answer's status and head, and its problem."""
    fields = {"Idempotency-Key": key} if key else {}
    path = f"/v1/topics/{topic}/messages"
    head, said = ask(node, node.request("POST", path, token, body, JSON, fields))
    return head, said


def _status(answer: tuple[str, str]) -> str:
    head, said = answer
    code = json.loads(said).get("code", "") if said else ""
    return f"{head[9:12]} {code}".rstrip()


def _until_refused(take: Callable[[int], str], most: int) -> tuple[int, str]:
    """How many it got, and what the first that was refused was answered with."""
    for number in range(most):
        status = take(number)
        if status not in ("200", "201"):
            return number, status
    return most, ""


def _take_topics(node: Target) -> Taken:
    there = TOPICS
    got, refused = _until_refused(
        lambda number: _status(_publish(node, node.narrow, f"m.taken.{number}")), there + 1
    )
    other = _status(_publish(node, node.other, "other.new"))
    return Taken("topics", there, got, refused, other)


def _take_bytes(node: Target) -> Taken:
    there = BYTES
    got, refused = _until_refused(
        lambda number: _status(_publish(node, node.narrow, "m.taken.0", LARGE)),
        there // len(LARGE) + 1,
    )
    other = _status(_publish(node, node.other, "other.new", LARGE))
    return Taken("bytes", there, got * len(LARGE), refused, other)


def _take_keys(node: Target) -> Taken:
    """Its own oldest go; how many it has is how many of them are still known."""
    there = KEYS
    _publish(node, node.other, "other.new", key="ann")
    # It deletes nothing, and its share of the store is used up: to another subject, then.
    token = node.another
    for number in range(2 * there):
        _publish(node, token, "m.keys", key=f"key-{number}")
    known = 0
    for number in reversed(range(2 * there)):
        head, _ = _publish(node, token, "m.keys", key=f"key-{number}")
        if "idempotent-replayed: true" not in head.lower():
            break
        known += 1
    head, said = _publish(node, node.other, "other.new", key="ann")
    if "idempotent-replayed: true" not in head.lower():
        raise BenchmarkError("another client's idempotency key is forgotten")
    return Taken("idempotency keys", there, known, "its own oldest go", _status((head, said)))


def _take_streams(node: Target) -> Taken:
    there = CONNECTIONS
    with ExitStack() as opened:

        def open_stream(token: str, topic: str) -> str:
            connection = opened.enter_context(
                socket.create_connection(("127.0.0.1", node.port), 10)
            )
            connection.sendall(node.request("GET", f"/v1/events?topic={topic}", token))
            answer = connection.recv(1 << 16).decode()
            head, _, said = answer.partition("\r\n\r\n")
            return _status((head, "" if head[9:12] == "200" else said))

        got, refused = _until_refused(lambda _: open_stream(node.narrow, "m.x"), there + 1)
        other = open_stream(node.other, "other.x")
    return Taken("streams", there, got, refused, other)


def as_text(founds: list[Taken]) -> str:
    lines = [["of", "there are", "one client gets", "and then", "another's next is answered"]]
    lines += [[f.what, f"{f.there:,}", f"{f.got:,}", f.refused, f.other] for f in founds]
    return markdown(lines)
