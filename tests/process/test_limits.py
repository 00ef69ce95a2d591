"""Limits that only a real process meets: a disk that fills, descriptors that run out, slow clients.

The disk is a small one of its own where we may mount one; else the floor lies a
little below what is free, so that what the node writes reaches it all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.hosts import small_disk
from tests.process.node import Client, Node, Stream, polls

pytestmark = pytest.mark.process

MIB: Final = 1 << 20
DISK_MIB: Final = 96
FLOOR: Final = 32 * MIB
BODY: Final = json.dumps("x" * 900_000).encode()
SLOW: Final = 300
READERS: Final = 20
MESSAGES: Final = 60
LATE_SECONDS_MAX: Final = 3.0  # of a message; the machine may be busy


def metric(node: Node, name: str) -> float:
    with Client(node) as client:
        text = client.request("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"repl_broker_{name} ")]
    return float(line.split()[1])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder, and what is to stay free of its disk."""
    with ExitStack() as mounted:
        path = tmp_path / "disk"
        try:
            mounted.enter_context(small_disk(path, DISK_MIB))
        except (RuntimeError, PermissionError):
            path.mkdir(exist_ok=True)
            found = os.statvfs(path)
            yield path, found.f_bavail * found.f_frsize - (DISK_MIB * MIB - FLOOR)
        else:
            yield path, FLOOR


def test_a_disk_that_fills_up_refuses_publishes_serves_on_and_comes_back_by_itself(
    disk: tuple[Path, int], tmp_path: Path
) -> None:
    folder, floor = disk
    keys = {"limits_disk_free_bytes": floor, "topics_retention_bytes": 1 << 40}
    with Node(folder / "data", **keys) as node, Client(node) as client:
        node.log = tmp_path / "log"
        node.start()
        kept = [node.publish("first", "before")]
        for _ in polls("the disk to be nearly full"):
            answer = client.publish("filling", BODY)
            if answer.status == 201:
                kept.append(answer.json["id"])
                continue
            assert (answer.status, answer.json["code"]) == (507, "storage_full")
            assert int(answer.headers["retry-after"]) > 0
            if metric(node, "store_full"):  # not only by an estimate, between two looks
                break
        assert len(kept) > 10

        # It is full, and well: it reads, streams, creates, deletes, and says so.
        for _ in range(20):
            assert client.publish("filling", BODY).status == 507
        assert metric(node, "store_full") == 1
        assert node.get("/readyz") == {"status": "ok"}
        with Stream(node, ">", after="earliest") as stream:
            seen = []
            for block in stream:
                seen += [block.message["id"]] if block.is_message else []
                if len(seen) == len(kept):
                    break
        assert seen == kept, "all that was acknowledged, and nothing that was refused"
        assert client.request("PUT", "/v1/topics/other").status == 201
        assert client.request("DELETE", "/v1/topics/filling").status == 204

        for _ in polls("room"):
            if client.publish("filling", b'"after"').status == 201:
                break
        assert metric(node, "store_full") == 0
        assert node.stop() == 0
        node.start()
        assert [m["data"] for m in node.history("first")] == ["before"]
        assert [m["data"] for m in node.history("filling")] == ["after"]
    assert "Traceback" not in node.log_text()


def test_a_node_takes_no_more_connections_than_it_may_open_files_for(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Node(tmp_path / "data", prefix=("prlimit", "--nofile=256:256", "--")) as node:
        node.start()
        assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)
        assert metric(node, "connections_max") == 56
        assert "limits.connections=10000 open_files=256 connections=56" in as_text(node)
        with ExitStack() as opened:
            held = [opened.enter_context(raw(node)) for _ in range(56)]
            for _ in polls("the node to be full"):
                refused = opened.enter_context(raw(node))
                answer = refused.recv(4096)
                if answer:
                    break
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert len(held) == 56
        for _ in polls("the node to be free"):
            with contextlib.suppress(OSError, AssertionError):
                node.publish("chat", "alive")
                break


def as_text(node: Node) -> str:
    return node.log_text().replace('"', " ")


def test_descriptors_that_run_out_pause_accepting_and_nothing_else(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node, Client(node) as client:
        node.start()
        assert client.publish("chat", b'"before"').status == 201
        with Stream(node, "chat", after="earliest") as stream:
            blocks = iter(stream)
            used = len(os.listdir(f"/proc/{node.process.pid}/fd"))
            resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (used + 10, used + 1000))
            with ExitStack() as opened:
                for _ in range(40):
                    opened.enter_context(raw(node))
                for _ in polls("accepting to fail"):
                    if "cannot accept connections" in node.log_text():
                        break
                # Who is in goes on: publishing, reading, history from the store.
                for number in range(20):
                    assert client.publish("chat", b"%d" % number).status == 201
                found = [next(b for b in blocks if b.is_message).message["data"] for _ in range(21)]
                assert found == ["before", *range(20)]
                assert client.request("GET", "/v1/topics/chat/messages").status == 200
            node.publish("chat", "free again")
        assert node.stop() == 0
    assert "Traceback" not in node.log_text()


@contextlib.contextmanager
def raw(node: Node) -> Iterator[socket.socket]:
    with socket.create_connection((node.address, node.port), timeout=10) as opened:
        yield opened


class SlowClients(threading.Thread):
    """Connections that send a byte of a request now and then, and come back when they are ended."""

    def __init__(self, node: Node, count: int) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.count = count
        self.is_over = threading.Event()
        self.ended = 0  # by the node

    def run(self) -> None:
        heads = [
            b"GET /v1/events?topic=chat HTTP/1.1\r\nX-Slow: ",
            b"POST /v1/topics/chat/messages ",
        ]
        heads.append(b"PUT /v1/topics/a HTTP/1.1\r\nHost: localhost\r\ncontent-length: 999\r\n\r\n")
        opened: dict[int, socket.socket] = {}
        poll = select.poll()
        number = 0
        while not self.is_over.wait(0.1):
            while len(opened) < self.count:
                client = socket.create_connection((self.node.address, self.node.port))
                client.sendall(heads[number % len(heads)])
                number += 1
                client.setblocking(False)
                opened[client.fileno()] = client
                poll.register(client, select.POLLIN)
            for fd, _ in poll.poll(0):
                poll.unregister(fd)
                opened.pop(fd).close()
                self.ended += 1
            for client in opened.values():
                with contextlib.suppress(OSError):
                    client.send(b"a")
        for client in opened.values():
            client.close()


class Reader(threading.Thread):
    """A stream whose messages say when they were published."""

    def __init__(self, node: Node) -> None:
        super().__init__(daemon=True)
        self.stream = Stream(node, "good")
        self.late: list[float] = []

    def run(self) -> None:
        for block in self.stream:
            if block.is_message:
                self.late.append(time.monotonic() - block.message["data"])
                if len(self.late) == MESSAGES:
                    break


def test_slow_clients_are_ended_in_time_and_good_readers_notice_nothing(tmp_path: Path) -> None:
    keys = {"limits_header_timeout_seconds": 1, "limits_body_timeout_seconds": 1}
    with Node(tmp_path / "data", **keys) as node:
        node.start()
        readers = [Reader(node) for _ in range(READERS)]
        slow = SlowClients(node, SLOW)
        slow.start()
        try:
            for _ in polls("the slow ones to be there"):
                if metric(node, "connections") >= SLOW // 2:
                    break
            before = node.rss_bytes()
            for reader in readers:
                reader.start()
            for _ in range(MESSAGES):
                node.publish("good", time.monotonic())
                time.sleep(0.03)
            for reader in readers:
                reader.join(10)
                assert len(reader.late) == MESSAGES
            for _ in polls("every slow one to be ended once"):
                if slow.ended > SLOW:
                    break
            assert node.rss_bytes() - before < 32 * MIB
        finally:
            slow.is_over.set()
            slow.join()
            for reader in readers:
                reader.stream.close()
        assert max(max(reader.late) for reader in readers) < LATE_SECONDS_MAX
        for _ in polls("all to have left"):
            if metric(node, "connections") == 1:
                break
        assert metric(node, "connections_failed_total") == 0
