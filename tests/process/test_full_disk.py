"""A disk that is full at run time: the node stops, and has promised nothing that it cannot keep.

The disk is a limit on the size of its files, set while it runs. Room for little
more fails when a commit is written; room in the write-ahead log, but not in the
database behind it, fails when the first is moved into the second.
"""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.process.node import WAIT_SECONDS_MAX, Broken, Client, Node, Stream
from tests.process.publisher import ACKNOWLEDGED, Publisher, check_fates

pytestmark = pytest.mark.process

MIB: Final = 1 << 20
PUBLISHERS: Final = 6


@pytest.mark.parametrize(
    ("mib_before", "room_bytes"),
    [(1, MIB), (16, 100_000)],
    ids=["for the write-ahead log", "for the database"],
)
def test_a_full_disk_ends_the_node_with_one_line_and_without_a_false_promise(
    mib_before: int, room_bytes: int, tmp_path: Path
) -> None:
    publishers = [Publisher(n, lambda p: p.across("a", "b"), "full") for n in range(PUBLISHERS)]
    seen: list[dict[str, Any]] = []
    with (
        ThreadPoolExecutor(PUBLISHERS + 1) as threads,
        Node(tmp_path / "data", topics_retention_messages=1_000_000) as node,
    ):
        node.start()
        for _ in range(mib_before):
            node.publish("before", "x" * 1_000_000)
        with Client(node) as client:  # the disk may be full before the next of them
            assert {one.publish(client).fate for one in publishers} == {ACKNOWLEDGED}
        limit = max(file.stat().st_size for file in node.data_dir.iterdir()) + room_bytes
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        tasks = [threads.submit(publish_until_it_ends, one, node) for one in publishers]
        tasks.append(threads.submit(read_until_it_ends, node, seen))
        assert node.wait() == 1
        for task in tasks:
            task.result(WAIT_SECONDS_MAX)
        requests = [request for one in publishers for request in one.requests]

        log = node.log_text()
        assert "Traceback" not in log
        (line,) = [line for line in log.splitlines() if not line.startswith("{")]
        assert line.startswith("error: the store")
        assert "failed to write" in line
        assert "then start the node again" in line

        node.start()  # with room
        history = [*node.history("a"), *node.history("b")]
        assert len(node.history("before")) == mib_before
        node.publish("a", "goes on")

    check_fates(requests, history)
    assert all(message in history for message in seen), "nobody saw what was not kept"


def publish_until_it_ends(publisher: Publisher, node: Node) -> None:
    """The last request is answered 504, or 503 by a node that has begun to stop, or breaks."""
    with Client(node) as client:
        try:
            while publisher.publish(client).fate == ACKNOWLEDGED:
                pass
        except Broken:
            return


def read_until_it_ends(node: Node, seen: list[dict[str, Any]]) -> None:
    try:
        with Stream(node, "a", "b", after="earliest") as stream:
            seen += (block.message for block in stream if block.is_message)
    except Broken:
        return
