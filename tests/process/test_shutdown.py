"""SIGTERM and SIGINT: exit code 0 within 5 s, whatever the clients do.

Streams are told to come back at times that differ, publishes that were taken
are answered, the others are refused, and the node can start again at once.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from repl_broker.command import Publish
from repl_broker.raft.log import Entry, EntryKind, HardState, WriteBatch
from repl_broker.storage import SqliteStorage
from repl_broker.wire import encode_command, encode_entry
from tests.process.node import WAIT_SECONDS_MAX, Block, Broken, Client, Node, Stream, polls
from tests.process.publisher import ACKNOWLEDGED, Publisher

pytestmark = pytest.mark.process

STOP_SECONDS_MAX: Final = 5
STREAMS: Final = 20
PUBLISHERS: Final = 8
LONG_LOG_ENTRIES: Final = 100_000  # takes two seconds to read
HALF_A_REQUEST: Final = (
    b"POST /v1/topics/chat/messages HTTP/1.1\r\nHost: localhost\r\n"
    b'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"half'
)

both_signals = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name
)


def stop_in_time(node: Node, number: signal.Signals) -> None:
    began = time.monotonic()
    assert node.stop(number) == 0
    assert time.monotonic() - began < STOP_SECONDS_MAX
    assert "Traceback" not in node.log_text()
    assert '"level":"error"' not in node.log_text()


@both_signals
@pytest.mark.parametrize("keys", [{}, {"test_quart_only": 1}], ids=["in place", "by Quart"])
def test_idle_streams_are_told_to_come_back_at_different_times(
    number: signal.Signals, keys: dict[str, int], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(STREAMS) as threads, ExitStack() as opened:
        node = opened.enter_context(Node(tmp_path / "data", **keys))
        node.start()
        node.publish("chat", "before")
        streams = [
            opened.enter_context(Stream(node, "chat", after="earliest")) for _ in range(STREAMS)
        ]
        last: list[Block] = []
        reading = [threads.submit(lambda stream: last.append([*stream][-1]), s) for s in streams]
        stop_in_time(node, number)
        for task in reading:
            task.result(WAIT_SECONDS_MAX)  # with an end after a whole chunk, or it raises

        assert {block.event for block in last} == {"goodbye"}
        retries = [int(block.fields["retry"]) for block in last]
        assert len(retries) == STREAMS
        assert all(2000 <= retry < 7000 for retry in retries)
        assert len(set(retries)) > STREAMS / 2, retries
        node.start()
        with Stream(node, "chat", last_id=streams[0].last_id) as stream:
            node.publish("chat", "after")
            assert next(b for b in stream if b.is_message).message["data"] == "after"


@both_signals
def test_stalled_readers_and_half_sent_requests_do_not_hold_it_up(
    number: signal.Signals, tmp_path: Path
) -> None:
    with ExitStack() as opened:
        node = opened.enter_context(Node(tmp_path / "data"))
        node.start()
        stalled = [
            opened.enter_context(Stream(node, "chat", after="earliest", receive_buffer_bytes=4096))
            for _ in range(STREAMS)
        ]
        for _ in range(12):  # MiB: far more than the sockets take in
            node.publish("chat", "x" * 1_000_000)
        quick = opened.enter_context(Stream(node, "chat", after="latest"))
        half = opened.enter_context(socket.create_connection(("127.0.0.1", node.port)))
        half.sendall(HALF_A_REQUEST)
        stop_in_time(node, number)
        assert [block.event for block in quick][-1] == "goodbye"
        assert len(stalled) == STREAMS
        node.start()
        assert len(node.history("chat")) == 12


@both_signals
def test_publishes_in_flight_are_answered_or_refused_and_no_201_is_lost(
    number: signal.Signals, tmp_path: Path
) -> None:
    publishers = [
        Publisher(0, lambda p: p.single("chat"), number.name),
        *(Publisher(n, lambda p: p.batch("chat"), number.name) for n in range(1, PUBLISHERS)),
    ]
    with (
        ThreadPoolExecutor(PUBLISHERS) as threads,
        Node(tmp_path / "data", topics_retention_messages=1_000_000) as node,
    ):
        node.start()
        tasks = [threads.submit(publish_until_refused, one, node) for one in publishers]
        for _ in polls("publishing to be under way"):
            if all(len(one.requests) > 10 for one in publishers):
                break
        stop_in_time(node, number)
        for task in tasks:
            task.result(WAIT_SECONDS_MAX)
        node.start()  # at once, on the same port
        kept = [message["data"] for message in node.history("chat")]
        # What was not acknowledged was not taken: a shutdown leaves no outcome unknown.
        expected = [
            data
            for one in publishers
            for request in one.requests
            if request.fate == ACKNOWLEDGED
            for _, data in request.messages
        ]
        key = lambda data: (data["p"], data["n"], data["i"])  # noqa: E731
        assert sorted(kept, key=key) == sorted(expected, key=key)


def publish_until_refused(publisher: Publisher, node: Node) -> None:
    """A connection that breaks is a refusal, too: what was taken is answered."""
    with Client(node) as client, contextlib.suppress(*Broken):
        while publisher.publish(client).fate == ACKNOWLEDGED:
            pass


@both_signals
def test_a_signal_during_recovery_ends_the_node_cleanly(
    number: signal.Signals, tmp_path: Path
) -> None:
    with Node(tmp_path / "data") as node:
        write_log(node.data_dir, entries=LONG_LOG_ENTRIES)
        node.spawn()
        for _ in polls("the node to hold the lock, and so to begin to read the log"):
            with contextlib.suppress(FileNotFoundError):
                if (node.data_dir / "lock").read_text().strip() == str(node.process.pid):
                    break
        stop_in_time(node, number)
        assert "serving" not in node.log_text()
        node.start()
        assert node.get("/v1/topics/chat")["last_id"].endswith(f"-{LONG_LOG_ENTRIES}")


def write_log(data_dir: Path, entries: int) -> None:
    """A store as a node leaves it that was killed before its first snapshot."""
    storage = SqliteStorage(data_dir, "n1")
    command = encode_command(Publish("chat", (b"1",)))
    began_ms = time.time_ns() // 1_000_000 - entries
    storage.write(
        WriteBatch(
            tuple(
                Entry(index, 1, EntryKind.DATA, encode_entry(began_ms + index, [command]))
                for index in range(1, entries + 1)
            ),
            HardState(1, "n1"),
        )
    )
    storage.close()
