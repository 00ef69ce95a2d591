"""One client that publishes steadily, whatever happens to the nodes."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Self

from benchmarks.load import BenchmarkError, Post

__all__ = ["Attempt", "Publisher"]

PACE_SECONDS = 0.005
PATIENCE_SECONDS = 0.1  # for one answer; what is unanswered is given up, and another node asked
RUN_SECONDS_MAX = 120
POLL_SECONDS = 0.002

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Attempt(NamedTuple):
    """One request; the moments are of time.monotonic."""

    begun: float
    ended: float
    port: int
    ok: bool
    said: str


class Publisher:
    """Sends every 5 ms, one request at a time, and goes on to the next node on any failure.

    It works in a thread, as long as the context lasts. ``attempts`` grows meanwhile.
    """

    def __init__(self, ports: Sequence[int], post: Post) -> None:
        """It begins with the first of ``ports``."""
        self.attempts: list[Attempt] = []
        self._ports = list(ports)
        self._post = post
        self._socket: socket.socket | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def wait_answer(self, since: float, seconds: float) -> Attempt:
        """The first 2xx to a request that was begun after ``since``."""
        deadline = time.monotonic() + seconds
        seen = 0
        while time.monotonic() < deadline:
            for attempt in self.attempts[seen:]:
                seen += 1
                if attempt.ok and attempt.begun > since:
                    return attempt
            time.sleep(POLL_SECONDS)
        said = self.attempts[-1].said if self.attempts else "nothing was sent"
        raise BenchmarkError(f"no publish succeeds within {seconds:g} s; at last: {said}")

    def answers(self) -> list[float]:
        """When each 2xx came."""
        return [attempt.ended for attempt in self.attempts if attempt.ok]

    def _run(self) -> None:
        end = time.monotonic() + RUN_SECONDS_MAX
        while not self._stopped.is_set() and (begun := time.monotonic()) < end:
            port = self._ports[0]
            ok, said = self._attempt(port, begun + PATIENCE_SECONDS)
            self.attempts.append(Attempt(begun, time.monotonic(), port, ok, said))
            if not ok:
                self._hang_up()
                self._ports.append(self._ports.pop(0))
            self._stopped.wait(max(0.0, begun + PACE_SECONDS - time.monotonic()))
        self._hang_up()

    def _attempt(self, port: int, deadline: float) -> tuple[bool, str]:
        try:
            said = self._exchange(port, deadline)
        except (OSError, ValueError) as error:
            return False, str(error) or type(error).__name__
        return said[9:10] == "2", said

    def _exchange(self, port: int, deadline: float) -> str:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", port), _left(deadline))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(_request(port, self._post))
        answer = b""
        while not _is_whole(answer):
            self._socket.settimeout(_left(deadline))
            if not (more := self._socket.recv(1 << 16)):
                raise ConnectionError("the server hung up")
            answer += more
        return answer.decode(errors="replace")[:300]

    def _hang_up(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket = None


def _left(deadline: float) -> float:
    """Seconds until then. Raises TimeoutError when there are none."""
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError("timed out")
    return left


def _request(port: int, post: Post) -> bytes:
    return (
        f"POST {post.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: {post.content_type}\r\nContent-Length: {len(post.body)}\r\n\r\n{post.body}"
    ).encode()


def _is_whole(answer: bytes) -> bool:
    """Whether all of the answer is there. Raises ValueError if it does not say how long it is."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    if not (length := LENGTH.search(head)):
        raise ValueError(f"an answer without Content-Length: {head[:100]!r}")
    return len(body) >= int(length[1])
