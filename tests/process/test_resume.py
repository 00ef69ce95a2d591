"""50 readers leave at random and come back by Last-Event-ID while publishing goes on.

Each must end with the same messages, byte for byte, in the same order.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

import pytest

from tests.process.node import WAIT_SECONDS_MAX, Node, Stream
from tests.process.publisher import ACKNOWLEDGED, Publisher

pytestmark = pytest.mark.process

SEED: Final = os.environ.get("REPL_BROKER_TEST_SEED") or secrets.token_hex(4)
READERS: Final = 50
RESUMES_MIN: Final = 8  # of each reader, while publishing goes on
LAST: Final = b'"the end"}'

# Two ways to follow the same three topics; a pattern takes another path through the hub.
FOLLOWED: Final[Sequence[Sequence[str]]] = (("resume.>",), ("resume.a", "resume.b", "resume.end"))


class Reader:
    """Reads some messages, leaves, and comes back with the last id that it saw."""

    def __init__(self, number: int) -> None:
        self.raw: list[bytes] = []  # every message's block, as received
        self.resumes = 0
        self.resumed_enough = threading.Event()
        self._topics = FOLLOWED[number % len(FOLLOWED)]
        self._random = random.Random(f"{SEED} {number}")

    def run(self, node: Node, abandoned: threading.Event) -> None:
        last_id = None
        try:
            while not abandoned.is_set():
                with Stream(node, *self._topics, after="earliest", last_id=last_id) as stream:
                    if self._read(stream, self._random.choice([0, 1, 5, 50, 500])):
                        return
                    last_id = stream.last_id
                self.resumes += 1
                if self.resumes == RESUMES_MIN:
                    self.resumed_enough.set()
        finally:
            self.resumed_enough.set()  # or it failed, which its result tells

    def _read(self, stream: Stream, count: int) -> bool:
        """Read ``count`` messages at most; whether the last of all was read."""
        for block in stream:
            assert block.event in {None, "subscribed", "heartbeat"}, block
            if block.is_message:
                self.raw.append(block.raw)
                count -= 1
                if block.raw.endswith(LAST):
                    return True
            if count <= 0:
                return False
        raise AssertionError("the node ended the stream")


def test_readers_that_come_and_go_all_end_with_the_same_complete_sequence(tmp_path: Path) -> None:
    print(f"seed={SEED}")  # noqa: T201
    readers = [Reader(number) for number in range(READERS)]
    publishers = [
        Publisher(0, lambda p: p.single("resume.a"), SEED),
        Publisher(1, lambda p: p.across("resume.a", "resume.b"), SEED),
    ]
    with Node(tmp_path / "data", topics_retention_messages=10_000_000) as node:
        node.start()
        run(node, readers, publishers)

    requests = [request for publisher in publishers for request in publisher.requests]
    assert all(request.fate == ACKNOWLEDGED for request in requests)
    count = sum(len(request.messages) for request in requests) + 1
    resumes = sum(reader.resumes for reader in readers)
    print(f"{count} messages, {READERS} readers, {resumes} resumes")  # noqa: T201
    assert len(readers[0].raw) == len(set(readers[0].raw)) == count
    for reader in readers:
        assert reader.raw == readers[0].raw


def run(node: Node, readers: Sequence[Reader], publishers: Sequence[Publisher]) -> None:
    """Publish until each reader has come back often enough; returns when all have read all."""
    up, end, abandoned = threading.Event(), threading.Event(), threading.Event()
    up.set()
    with ThreadPoolExecutor(len(readers) + len(publishers)) as threads:
        try:
            reading = [threads.submit(reader.run, node, abandoned) for reader in readers]
            publishing = [threads.submit(one.run, node, up, end) for one in publishers]
            for reader in readers:
                assert reader.resumed_enough.wait(WAIT_SECONDS_MAX), "readers come back"
            end.set()
            for task in publishing:
                task.result(WAIT_SECONDS_MAX)
            node.publish("resume.end", "the end")
            for task in as_completed(reading, WAIT_SECONDS_MAX):
                task.result()
        except BaseException:
            end.set()
            abandoned.set()
            node.kill()  # what still waits for it fails, and is joined
            raise
