"""A reader that stops reading costs a cursor: it delays no one, and its backlog is the log.

20 readers stop, for longer than write_timeout_seconds, while far more is
published than the sockets' buffers and the node's caches take in. The quick
readers get everything meanwhile; the node does not grow; then the stalled ones
read on, on the same connection, and have missed nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.process.node import NDJSON, WAIT_SECONDS_MAX, Client, Node, Stream, polls

pytestmark = pytest.mark.process

MIB: Final = 1 << 20
STALLED: Final = 20
QUICK: Final = 3
READ_TO_THE_END: Final = 2  # of the stalled ones; the others read this much:
READ_ON_MESSAGES: Final = 200
WRITE_TIMEOUT_SECONDS: Final = 1  # of the node: a stall is longer than it
STALL_SECONDS_MIN: Final = 1.5

MESSAGE_BYTES: Final = 16 << 10
BATCH_MESSAGES: Final = 64
BATCHES: Final = 160  # 160 MiB in all

# What the node may come to hold, whoever stalls: its cache of entries (32 MiB),
# the tails (1 MiB, as configured below), a chunk of 64 KiB and its copies for
# each reader (5 MiB together), an entry of 1 MiB that each reads and decodes (40
# MiB), a batch in each form that it takes (body, messages, command, entry, page
# cache: 8 MiB), and what the allocator keeps for the threads (as much again as
# the cache, to be sure). One copy of what is published, kept for the readers
# together, would be 160 MiB; one for each, 3 GiB.
GROWTH_BYTES_MAX: Final = (32 + 1 + 5 + 2 * STALLED + 8 + 32) * MIB


def publish_batch(client: Client, number: int) -> None:
    first = number * BATCH_MESSAGES
    lines = [
        json.dumps({"n": n, "pad": "x" * MESSAGE_BYTES})
        for n in range(first, first + BATCH_MESSAGES)
    ]
    path, body = "/v1/topics/heavy/messages", "\n".join(lines).encode()
    answer = client.request("POST", path, body, Content_Type=NDJSON)
    assert answer.status == 201, answer


def numbers(stream: Stream) -> Iterator[int]:
    """The messages' numbers, which count from 0 without a hole, or this fails."""
    expected = 0
    for block in stream:
        assert block.event in {None, "subscribed", "heartbeat"}, block
        if block.is_message:
            number = block.message["data"]["n"]
            assert number == expected
            yield number
            expected += 1


def read_upto(stream: Stream, count: int) -> float:
    """Read the first ``count`` messages. Returns when the last one was there."""
    for number in numbers(stream):
        if number == count - 1:
            return time.monotonic()
    raise AssertionError("the node ended the stream")


def test_stalled_readers_delay_no_one_cost_no_memory_and_miss_nothing(tmp_path: Path) -> None:
    count = BATCHES * BATCH_MESSAGES
    with ThreadPoolExecutor(QUICK + STALLED) as threads, ExitStack() as opened:
        node = opened.enter_context(
            Node(
                tmp_path / "data",
                limits_write_timeout_seconds=WRITE_TIMEOUT_SECONDS,
                limits_tail_bytes=MIB,
                topics_retention_messages=10_000_000,
                topics_retention_bytes=1 << 40,
            )
        )
        node.start()
        stalled = [
            opened.enter_context(Stream(node, "heavy", after="earliest", receive_buffer_bytes=4096))
            for _ in range(STALLED)
        ]
        quick = [
            opened.enter_context(Stream(node, "heavy", after="earliest")) for _ in range(QUICK)
        ]
        client = opened.enter_context(Client(node))
        reading = [threads.submit(read_upto, stream, count) for stream in quick]
        publish_batch(client, 0)
        before = most = node.rss_bytes()

        began = time.monotonic()
        for number in range(1, BATCHES):
            publish_batch(client, number)
            most = max(most, node.rss_bytes())
        published = time.monotonic()
        behind = max(quick_one.result(WAIT_SECONDS_MAX) for quick_one in reading) - published
        for _ in polls("the stall to be longer than the write timeout"):
            if time.monotonic() - began > WRITE_TIMEOUT_SECONDS + STALL_SECONDS_MIN:
                break
        most = max(most, node.rss_bytes())

        going_on: list[Future[float]] = []
        for number, stream in enumerate(stalled):
            stream.set_receive_buffer(MIB)
            upto = count if number < READ_TO_THE_END else READ_ON_MESSAGES
            going_on.append(threads.submit(read_upto, stream, upto))
        for task in going_on:
            task.result(WAIT_SECONDS_MAX)
        after = max(most, node.rss_bytes())

    print(  # noqa: T201
        f"{count * MESSAGE_BYTES / MIB:.0f} MiB in {published - began:.1f} s; "
        f"quick readers had all {behind:.2f} s after the last publish; "
        f"VmRSS {before / MIB:.0f} MiB, at most {most / MIB:.0f} while {STALLED} readers stalled, "
        f"{after / MIB:.0f} while they caught up"
    )
    assert behind < 2, behind
    assert after - before < GROWTH_BYTES_MAX
