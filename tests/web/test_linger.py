"""How long a client is read from that has its answer and still sends."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair

from repl_broker.web.tcp import Linger, discard


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
        await discard(server, linger)
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
