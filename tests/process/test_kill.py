"""SIGKILL at random moments: what was acknowledged is there, in order, once.

20 kills by default. A long run, and a repeat of one by its seed (the moments
are the same, what they meet is not):

    REPL_BROKER_TEST_KILLS=500 REPL_BROKER_TEST_SEED=abc \\
        pytest -s -o faulthandler_timeout=0 tests/process/test_kill.py
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from tests.process.node import JSON, WAIT_SECONDS_MAX, Broken, Client, Node, Stream, sequence
from tests.process.publisher import ACKNOWLEDGED, Publisher, Request, check_fates

pytestmark = pytest.mark.process

KILLS: Final = int(os.environ.get("REPL_BROKER_TEST_KILLS", "20"))
SEED: Final = os.environ.get("REPL_BROKER_TEST_SEED") or secrets.token_hex(4)
MANY: Final = 1_000_000_000
KEEP_ALL: Final = {
    "topics_retention_messages": MANY,
    "topics_retention_bytes": MANY,
    "raft_snapshot_entries": 100,  # the least, so that kills meet snapshots, too
}

# Everything under "kept" stays. "churn" keeps little, so that the crashes also
# meet a log that is being compacted; only publishers with keys write to it, who
# know in the end the place of each of their messages.
CHURN: Final = "churn"
CHURN_MESSAGES: Final = 30
LAST: Final = "kept.last"
KEPT: Final = ("kept.single", "kept.batch", "kept.a", "kept.b", LAST)

Message = Mapping[str, Any]


def test_nothing_acknowledged_is_lost_doubled_or_out_of_order_over_kills(tmp_path: Path) -> None:
    print(f"seed={SEED} kills={KILLS}")  # noqa: T201
    run = Run(Node(tmp_path / "data", **KEEP_ALL))
    with run.node as node:
        node.start()
        make_churn(node)
        run.publish_and_kill()
        history = {topic: node.history(topic) for topic in (*KEPT, CHURN)}
        everything = replay(node)
        assert node.stop() == 0
    assert integrity(node.data_dir) == "ok"
    assert integrity(run.crashed) == "ok"

    kept = sorted((m for topic in KEPT for m in history[topic]), key=place)
    run.show(len(kept))
    assert run.reader.messages == kept, "the reader that resumed over all crashes saw the history"
    assert everything == sorted((*kept, *history[CHURN]), key=place), "so does a late reader"
    check_fates(run.requests, everything, trimmed=CHURN)
    check_order(everything)
    check_no_holes(run.requests, everything)
    churned = sorted(seq for request in run.requests for seq in churn(request))
    assert [place(m) for m in history[CHURN]] == churned[-CHURN_MESSAGES:]


# --- the run -----------------------------------------------------------------------------------


class Reader:
    """Follows everything that is kept, across every crash, by its Last-Event-ID."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.resumed = 0

    def run(self, node: Node, up: threading.Event, abandoned: threading.Event) -> None:
        last_id = None
        while not abandoned.is_set():
            assert up.wait(WAIT_SECONDS_MAX), "the node came back"
            try:
                with Stream(node, "kept.>", after="earliest", last_id=last_id) as stream:
                    try:
                        self._read(stream)
                        return
                    finally:
                        last_id = stream.last_id
            except Broken:
                self.resumed += 1

    def _read(self, stream: Stream) -> None:
        """Until the last message of all."""
        for block in stream:
            assert block.event in {None, "subscribed", "heartbeat"}, block
            if block.is_message:
                message = block.message
                self.messages.append(message)
                if message["topic"] == LAST:
                    return
        raise ConnectionError("the node ended the stream")


class Run:
    """Publishers and a reader at full speed, on a node that is killed again and again."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.crashed = node.data_dir.with_name("crashed")  # as the last kill left it
        self.reader = Reader()
        self.publishers = [
            Publisher(0, lambda p: p.single("kept.single"), SEED),
            Publisher(1, lambda p: p.single("kept.single"), SEED, keyed=True),
            Publisher(2, lambda p: p.batch("kept.batch"), SEED),
            Publisher(3, lambda p: p.batch("kept.batch"), SEED, keyed=True),
            Publisher(4, lambda p: p.across("kept.a", "kept.b"), SEED),
            Publisher(5, lambda p: p.across("kept.a", "kept.b", CHURN), SEED, keyed=True),
            Publisher(6, lambda p: p.single(CHURN), SEED, keyed=True),
        ]
        self._up = threading.Event()  # the node answers
        self._end = threading.Event()  # of publishing
        self._abandoned = threading.Event()
        self._random = random.Random(SEED)
        self._killed = 0

    @property
    def requests(self) -> list[Request]:
        return [request for publisher in self.publishers for request in publisher.requests]

    def publish_and_kill(self) -> None:
        """Returns with the node up, once all is published and read."""
        self._up.set()
        with ThreadPoolExecutor(len(self.publishers) + 1) as threads:
            try:
                publishing = [
                    threads.submit(one.run, self.node, self._up, self._end)
                    for one in self.publishers
                ]
                reading = threads.submit(self.reader.run, self.node, self._up, self._abandoned)
                self._kill()
                self._end.set()
                for task in publishing:
                    task.result(WAIT_SECONDS_MAX)
                self.node.publish(LAST, "the end")
                reading.result(WAIT_SECONDS_MAX)
            except BaseException:
                for event in (self._end, self._abandoned, self._up):
                    event.set()
                self.node.kill()  # what still waits for it fails, and is joined
                raise

    def _kill(self) -> None:
        while self._killed < KILLS:
            self._go_on(0.4)
            self._up.clear()
            self._kill_now()
            if self._random.random() < 0.2:  # … and once more, while it starts or recovers
                self.node.spawn()
                self._go_on(0.8)
                self._kill_now()
            if self._killed >= KILLS:
                shutil.copytree(self.node.data_dir, self.crashed)
            self.node.start()
            self._up.set()
        self._go_on(0.5)

    def _go_on(self, seconds_max: float) -> None:
        """The one thing here that is to take time: a kill comes at a random one."""
        self._abandoned.wait(self._random.uniform(0, seconds_max))

    def _kill_now(self) -> None:
        self.node.kill()
        self._killed += 1

    def show(self, kept: int) -> None:
        fates = [request.fate for request in self.requests]
        acknowledged = sum(len(r.messages) for r in self.requests if r.fate == ACKNOWLEDGED)
        print(  # noqa: T201
            f"{self._killed} kills, {len(fates)} requests, "
            f"{fates.count(ACKNOWLEDGED)} of them acknowledged with {acknowledged} messages, "
            f"{sum(p.repeats for p in self.publishers)} acknowledged ones repeated; "
            f"{kept} messages kept, a reader that resumed {self.reader.resumed} times"
        )


def make_churn(node: Node) -> None:
    body = b'{"retention": {"messages": %d}}' % CHURN_MESSAGES
    with Client(node) as client:
        answer = client.request("PUT", f"/v1/topics/{CHURN}", body, Content_Type=JSON)
    assert answer.status == 201, answer


def replay(node: Node) -> list[Message]:
    """Every message of every topic, from the earliest on."""
    messages: list[Message] = []
    with Stream(node, ">", after="earliest") as stream:
        for block in stream:
            if block.is_message:
                messages.append(block.message)
                if messages[-1]["topic"] == LAST:
                    break
    return messages


def integrity(data_dir: Path) -> str:
    database = sqlite3.connect(data_dir / "broker.db")
    try:
        return "\n".join(row[0] for row in database.execute("PRAGMA integrity_check"))
    finally:
        database.close()


# --- what must hold ----------------------------------------------------------------------------


def place(message: Message) -> int:
    return sequence(message["id"])


def check_order(messages: Sequence[Message]) -> None:
    """Each publisher's messages are in the order in which it published them."""
    told: dict[int, tuple[int, int]] = {}
    for message in messages:
        if message["topic"] != LAST:
            data = message["data"]
            assert told.get(data["p"], (-1, -1)) < (data["n"], data["i"]), message
            told[data["p"]] = (data["n"], data["i"])


def check_no_holes(requests: Sequence[Request], messages: Sequence[Message]) -> None:
    """Every sequence number was given to one message, retained or trimmed from churn."""
    retained = {place(message) for message in messages}
    trimmed = {seq for request in requests for seq in churn(request)}
    assert retained | trimmed == set(range(1, max(retained) + 1))


def churn(request: Request) -> list[int]:
    """The sequence numbers of its messages to churn."""
    topics = [topic for topic, _ in request.messages]
    if CHURN not in topics:
        return []
    return [
        seq for seq, topic in zip(count(request.first_seq), topics, strict=False) if topic == CHURN
    ]
