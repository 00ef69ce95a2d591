"""The load generator believes no server: whatever one does to a message is found out."""

from __future__ import annotations

import shutil
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from benchmarks.load import BenchmarkError, Generator, Load

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"),
    reason="the load generator needs Linux and a C compiler",
)

MESSAGES = 10
SUBSCRIBERS = 3
LOAD = Load(
    subscribers=SUBSCRIBERS, requests=MESSAGES, seconds=20, message_bytes=64, patience_seconds=0.2
)
WAIT_SECONDS_MAX = 20

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SUBSCRIBED = b'id: 0a0b0c0d-4\nevent: subscribed\ndata: {"topics":["bench"]}\n\n'
EVENT = (
    b'id: 0a0b0c0d-%d\ndata: {"id":"0a0b0c0d-%d","topic":"%b",'
    b'"time":"2026-11-23T04:00:00.123Z","data":%b}\n\n'
)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(tmp_path_factory.mktemp("generator"))


# Given the number of a message (0, 1, 2…) and its body: the (id, body) to send instead.
Spoil = Callable[[int, bytes], list[tuple[int, bytes]]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Fake(socketserver.ThreadingTCPServer):
    """Speaks as much of our HTTP as it takes. What it sends to the last subscriber is spoilt."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, spoil: Spoil, piece_bytes: int, hang_up_at: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.streams: list[socket.socket] = []
        self.topic = b""
        self.published = 0
        self.ended = threading.Event()
        self.spoil = spoil
        self.piece_bytes = piece_bytes
        self.hang_up_at = hang_up_at

    def fan_out(self, body: bytes) -> None:
        number, self.published = self.published, self.published + 1
        for stream in self.streams:
            spoilt = stream is self.streams[-1]
            if spoilt and 0 <= self.hang_up_at < number:
                continue
            frames = self.spoil(number, body) if spoilt else [(number + 5, body)]
            data = b"".join(chunk(EVENT % (seq, seq, self.topic, text)) for seq, text in frames)
            for start in range(0, len(data), self.piece_bytes):
                stream.sendall(data[start : start + self.piece_bytes])
            if spoilt and number == self.hang_up_at:
                stream.shutdown(socket.SHUT_RDWR)


class Handler(socketserver.BaseRequestHandler):
    server: Fake

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rest = b""
        while b"\r\n\r\n" not in rest:
            if not (more := self.request.recv(65536)):
                return
            rest += more
        if rest.startswith(b"GET"):
            with self.server.lock:
                self.server.topic = rest.split()[1].partition(b"=")[2]
                self.request.sendall(HEAD + chunk(SUBSCRIBED))
                self.server.streams.append(self.request)
            self.server.ended.wait(WAIT_SECONDS_MAX)
        else:
            self.answer_publishes(rest)

    def answer_publishes(self, rest: bytes) -> None:
        while True:
            head, end, body = rest.partition(b"\r\n\r\n")
            if end and len(body) >= (length := int(head.rpartition(b": ")[2])):
                with self.server.lock:
                    self.server.fan_out(body[:length])
                self.request.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")
                rest = body[length:]
            elif more := self.request.recv(65536):
                rest += more
            else:
                return


@contextmanager
def fake(spoil: Spoil, piece_bytes: int = 1 << 20, hang_up_at: int = -1) -> Iterator[int]:
    with Fake(spoil, piece_bytes, hang_up_at) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def honest(number: int, body: bytes) -> list[tuple[int, bytes]]:
    return [(number + 5, body)]


def lose(lost: int) -> Spoil:
    """One message, without a hole in the ids."""

    def spoil(number: int, body: bytes) -> list[tuple[int, bytes]]:
        return [] if number == lost else [(number + 5 - (number > lost), body)]

    return spoil


def repeat(number: int, body: bytes) -> list[tuple[int, bytes]]:
    return [(number + 5 + (number > 3), body)] * (1 + (number == 3))


def exchange() -> Spoil:
    held: list[bytes] = []

    def spoil(number: int, body: bytes) -> list[tuple[int, bytes]]:
        if number == 3:
            held.append(body)
            return []
        return [(8, body), (9, held.pop())] if number == 4 else [(number + 5, body)]

    return spoil


def give_another(number: int, body: bytes) -> list[tuple[int, bytes]]:
    """The message before it, in its place."""
    other = body.replace(b".%09d" % number, b".%09d" % (number - 1)) if number == 3 else body
    return [(number + 5, other)]


def skip_an_id(number: int, body: bytes) -> list[tuple[int, bytes]]:
    return [(number + 5 + (number >= 3), body)]


def keep_an_id(number: int, body: bytes) -> list[tuple[int, bytes]]:
    return [(number + 5 - (number == 3), body)]


@pytest.mark.parametrize("stalled", [0, 1])
@pytest.mark.parametrize(
    "publishing",
    [LOAD, replace(LOAD, in_step=True), replace(LOAD, publishers=3)],
    ids=["one", "in step", "three"],
)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 7], ids=["whole", "in pieces"])
def test_a_server_that_delivers_everything_passes_however_it_cuts_its_writes(
    piece_bytes: int, publishing: Load, stalled: int, generator: Generator
) -> None:
    with fake(honest, piece_bytes) as port:
        found = generator.run(port, [], replace(publishing, stalled=stalled))
    assert (found["messages"], found["misplaced"], found["uneven"]) == (MESSAGES, 0, 0)
    assert found["deliveries"] == MESSAGES * (SUBSCRIBERS - stalled)


@pytest.mark.parametrize("stalled", [0, 1])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lose(3), r"subscriber \d got message 4 where 3 was due"),
        (lose(0), r"subscriber \d got message 1 where 0 was due"),
        (lose(MESSAGES - 1), "1 of 3 subscribers do not have as many"),
        (repeat, r"subscriber \d got message 3 where 4 was due"),
        (exchange(), r"subscriber \d got message 4 where 3 was due"),
        (give_another, r"subscriber \d got message 2 where 3 was due"),
        (skip_an_id, r"subscriber \d got id 9 where 8 was due"),
        (keep_an_id, r"subscriber \d got id 7 where 8 was due"),
    ],
    ids=["lost", "first lost", "last lost", "repeated", "exchanged", "other", "id", "same id"],
)
def test_a_message_that_is_lost_repeated_moved_or_misnamed_is_found_out(
    spoil: Spoil, said: str, stalled: int, generator: Generator
) -> None:
    """Whether its reader goes on or stalls."""
    with fake(spoil) as port:
        with pytest.raises(BenchmarkError, match=said):
            generator.run(port, [], replace(LOAD, stalled=stalled))


def test_a_stream_that_ends_early_is_found_out(generator: Generator) -> None:
    with fake(honest, hang_up_at=3) as port:
        with pytest.raises(BenchmarkError, match="the server ended 1 subscription"):
            generator.run(port, [], LOAD)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (Load(protocol="kafka"), "there is no protocol kafka"),
        (Load(protocol="redis", batch=2), "-k goes with ours and bare"),
        (Load(message_bytes=46), "at least 47 bytes"),
        (Load(subscribers=2, stalled=3), "as many as there are subscribers"),
        (Load(publishers=2, in_step=True), "-e goes with one publisher"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(load: Load, said: str, generator: Generator) -> None:
    with pytest.raises(BenchmarkError, match=said):
        generator.run(1, [], load)
