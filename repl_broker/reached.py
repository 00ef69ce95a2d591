"""Limits that refuse somebody, in the log: when that begins, and once a minute while it lasts.

What is told later than it happened has since when and until when: the limit may be over by then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Final

import trio

__all__ = ["LIMITS", "Reached"]

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 60.0

# code → what an operator may raise, or do.
LIMITS: Final = {
    "too_many_connections": "[limits] connections, connections_per_address",
    "too_many_streams": "[limits] streams_per_client",
    "rate_limited": "[limits] publishes_per_second, subscribes_per_second, reads_per_second",
    "too_many_topics": "[limits] topics, topics_per_client; delete topics, or let idle ones go "
    "([topics.retention] idle_seconds)",
    "overloaded": "[limits] publishes_under_way, requests_bytes; see that the disk is quick enough",
    "storage_full": "[limits] storage_bytes, storage_bytes_per_client, disk_free_bytes; make room",
    "message_too_large": "[limits] message_bytes",
    "batch_too_large": "[limits] batch_bytes, batch_messages",
    "headers_too_large": "[limits] header_bytes",
}


class Reached:
    """Looks once a second at ``refusals``, which count by code."""

    def __init__(self, refusals: Mapping[str, int]) -> None:
        self._refusals = refusals
        self._told: dict[str, tuple[int, float]] = {}  # by code: as many were told, and when

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            self.look(trio.current_time())
            await trio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> None:
        for code, remedy in LIMITS.items():
            count = self._refusals.get(code, 0)
            told, told_at = self._told.get(code, (0, -math.inf))
            if count == told or now < told_at + AGAIN_SECONDS:
                continue
            self._told[code] = count, now
            log.warning(
                "a limit is reached code=%s refused=%d refused_since_start=%d remedy=%r",
                code,
                count - told,
                count,
                remedy,
                extra={"seldom": True},
            )
