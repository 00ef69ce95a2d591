"""How long a client is read from that has its answer and still sends."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair

from repl_broker.web.tcp import Discards, Linger, Transport, discard


async def lingered(linger: Linger, *, bytes_each: int, pause_seconds: float) -> float:
    """For how long a client is read from that never stops."""
    client, server = memory_stream_pair()

    async def send() -> None:
        while True:
            await client.send_all(b"x" * bytes_each)
            await trio.sleep(pause_seconds)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await discard(server, linger, Discards())
        nursery.cancel_scope.cancel()
    return trio.current_time() - began


@pytest.mark.parametrize(
    ("linger", "pause_seconds", "seconds"),
    [
        (Linger(1000, 2, 20), 1.5, 9 * 1.5),  # a slow line: for longer than a pause may take
        (Linger(10_000, 2, 20), 1.5, 20),
        (Linger(10_000, 2, 20), 2.5, 2),
    ],
    ids=["bytes", "time", "a pause"],
)
async def test_a_client_is_read_from_while_it_sends_within_bounds(
    linger: Linger, pause_seconds: float, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    found = await lingered(linger, bytes_each=100, pause_seconds=pause_seconds)
    assert found == pytest.approx(seconds)


async def test_what_is_read_in_vain_has_one_rate_for_all_clients(
    autojump_clock: trio.testing.MockClock,
) -> None:
    discards, ended = Discards(), []
    linger = Linger(16 << 20, 2, 20)

    async def one() -> None:
        client, server = memory_stream_pair()
        await client.send_all(bytes(8 << 20))
        await client.send_eof()
        await discard(server, linger, discards)
        ended.append(trio.current_time())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(one)
    assert len(ended) == 16
    assert max(ended) - began == pytest.approx(4, rel=0.01)  # 128 MiB, 32 a second


class SlowSocket:
    """Takes a few bytes, now and then."""

    def __init__(self, bytes_each: int, pause_seconds: float) -> None:
        self._bytes_each = bytes_each
        self._pause_seconds = pause_seconds
        self.is_open = True

    async def send(self, data: memoryview) -> int:
        await trio.sleep(self._pause_seconds)
        return min(self._bytes_each, len(data))

    def fileno(self) -> int:
        return 1 if self.is_open else -1

    def setsockopt(self, *_: object) -> None: ...

    def close(self) -> None:
        self.is_open = False


@pytest.mark.parametrize(
    ("bytes_each", "pause_seconds", "seconds"),
    [(1, 5, 10), (1024, 8, 11), (1, 11, 10)],
    ids=["a byte now and then", "a slow line that is too slow", "nothing"],
)
async def test_an_answer_that_is_read_too_slowly_ends_however_steadily(
    bytes_each: int, pause_seconds: float, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    slow = SlowSocket(bytes_each, pause_seconds)
    transport = Transport(slow, ("192.0.2.1", 1), 10)  # type: ignore[arg-type]
    began = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        await transport.send_all(bytes(100_000))
    assert trio.current_time() - began == pytest.approx(seconds, rel=0.01)
    assert not slow.is_open


async def test_an_answer_on_a_slow_line_arrives(autojump_clock: trio.testing.MockClock) -> None:
    transport = Transport(SlowSocket(4096, 4), ("192.0.2.1", 1), 10)  # type: ignore[arg-type]
    await transport.send_all(bytes(100_000))
