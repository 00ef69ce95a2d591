"""Sends requests as bytes and keeps every byte that comes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import trio

SECONDS_MAX: Final = 30
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Answer(NamedTuple):
    status: int  # 0: none came
    head: bytes
    body: bytes  # without chunks around it


def without_chunks(data: bytes) -> tuple[bytes, bool]:
    """What is in the whole chunks of it, and whether the last one is there."""
    found, at = [], 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(found), True
        if len(data) < end + 2 + size + 2:
            break
        found.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(found), False


class Wire:
    """A connection to a node, which is made anew when it has to be."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        self._stream: trio.SocketStream | None = None

    async def ask(
        self, data: bytes, *, head_only: bool, is_enough: Callable[[bytes], bool]
    ) -> Answer:
        """The answer; of a stream, so much of its body as is enough, and then it is left."""
        if self._stream is None:
            host, _, port = self.host.rpartition(":")
            self._stream = await trio.open_tcp_stream(host, int(port))
        stream, received = self._stream, b""
        try:
            with trio.fail_after(SECONDS_MAX):
                await stream.send_all(data)
                while True:
                    more = await stream.receive_some()
                    received += more
                    answer, is_over = _read(received, head_only=head_only)
                    if not more or is_over or (answer.body and is_enough(answer.body)):
                        break
        except (trio.BrokenResourceError, trio.TooSlowError):
            await self.close()
            return _read(received, head_only=head_only)[0]
        if not (more and is_over) or _CLOSE.search(answer.head):
            await self.close()
        return answer

    async def close(self) -> None:
        if self._stream is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)
            self._stream = None


def _read(data: bytes, *, head_only: bool) -> tuple[Answer, bool]:
    """What has come so far, and whether that is all."""
    head, ended, rest = data.partition(b"\r\n\r\n")
    if not ended:
        return Answer(0, data, b""), False
    status = int(head.split(b" ", 2)[1])
    if status == 100:
        return _read(rest, head_only=head_only)
    if head_only or status in (204, 304):
        return Answer(status, head, rest), True
    if _CHUNKED.search(head):
        body, is_over = without_chunks(rest)
        return Answer(status, head, body), is_over
    length = _LENGTH.search(head)
    return Answer(status, head, rest), length is not None and len(rest) >= int(length[1])
