"""The last seconds of a node whose cluster goes on: it is not ready any more, and serves.

    0         /readyz is 503, leadership goes to another, each answer says that it is the last of
              its connection; load balancers look, and send what is new elsewhere
    half      the streams are told to come back, one after the other
    all       the node stops (daemon.py): hardly anybody is left

A balancer that does not look at /readyz loses nothing by it: all is served until the end.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from repl_broker.config import HttpConfig
from repl_broker.fanout import Fanout
from repl_broker.replica import Replica

__all__ = ["drain", "drain_seconds"]

log = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 5  # the examples' balancers take up to three to notice


def drain_seconds(config: HttpConfig, replica: Replica) -> int:
    """How long this node serves on; 0 where what is served comes from nobody any more."""
    if replica.removed.is_set() or not replica.ready:
        return 0
    if config.drain_seconds is not None:
        return config.drain_seconds
    return DRAIN_SECONDS if len(replica.membership.members) > 1 else 0


async def drain(replica: Replica, fanout: Fanout, seconds: float, hurry: trio.Event) -> None:
    """Return after ``seconds``, or as soon as ``hurry`` is set or the node is removed."""
    log.info(
        "draining: not ready, serving on seconds=%g streams=%d sooner=%r",
        seconds,
        len(fanout),
        "a second signal stops it at once",
    )
    ends_at = trio.current_time() + seconds
    replica.decline(declines=True)
    async with trio.open_nursery() as nursery:

        async def end_at(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_at, hurry)
        nursery.start_soon(end_at, replica.removed)
        nursery.start_soon(replica.hand_over)
        await trio.sleep(seconds / 2)
        await fanout.dismiss_in_turn(seconds / 2)
        await trio.sleep_until(ends_at)
        nursery.cancel_scope.cancel()
