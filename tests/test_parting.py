"""What asks the cluster again and again takes turns with the others while its node stops."""

from __future__ import annotations

import pytest
import trio

from repl_broker.errors import RequestError
from tests.network import running_cluster


async def test_a_read_that_is_refused_at_the_stop_lets_the_others_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        replica = next(n for n in cluster.running.values() if n is not leader).replica
        replica._caught_up = False
        turns = 0

        async def others() -> None:
            nonlocal turns
            for turns in range(1, 11):  # noqa: B007  it is looked at from outside
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.drain, 5)
            await replica.parting.wait()
            nursery.start_soon(others)
            while turns < 10:
                with pytest.raises(RequestError):
                    await replica.read_barrier()
