"""Limits that refuse somebody, in the log: when that begins, and once a minute while it lasts.

What is told later than it happened has since when and until when: the limit may be over by then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import trio

from repl_broker.config import LimitsConfig

__all__ = ["LIMITS", "Reached"]

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 60.0


class _Told(NamedTuple):
    """Of one code."""

    told: int = 0  # as many were …
    at: float = float("-inf")  # … then
    seen: int = 0  # as many there were at the last look
    since: float = 0.0  # the first of those that are not told yet
    until: float = 0.0  # the last of all


# code → keys of [limits] that an operator may raise, and what else may be done.
LIMITS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "too_many_connections": (("connections", "connections_per_address"), ""),
    "too_many_streams": (("streams_per_client",), ""),
    "rate_limited": (("publishes_per_second", "subscribes_per_second", "reads_per_second"), ""),
    "too_many_topics": (
        ("topics", "topics_per_client"),
        "delete topics, or let idle ones go ([topics.retention] idle_seconds)",
    ),
    "overloaded": (
        ("publishes_under_way", "requests_bytes"),
        "see that the disk is quick enough",
    ),
    "storage_full": (("storage_bytes", "storage_bytes_per_client", "disk_free_bytes"), "make room"),
    "message_too_large": (("message_bytes",), ""),
    "batch_too_large": (("batch_bytes", "batch_messages"), ""),
    "headers_too_large": (("header_bytes",), ""),
}


class Reached:
    """Looks once a second at ``refusals``, which count by code; ``limits`` gives those in force."""

    def __init__(
        self,
        refusals: Mapping[str, int],
        limits: Callable[[], LimitsConfig],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._refusals = refusals
        self._limits = limits
        self._now = now  # seconds since 1970
        self._told: dict[str, _Told] = {}

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            self.look(trio.current_time())
            await trio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> None:
        for code in LIMITS:
            known, count = self._told.get(code, _Told()), self._refusals.get(code, 0)
            if count == known.told:
                continue
            since = now if known.seen == known.told else known.since
            until = now if count != known.seen else known.until
            known = _Told(known.told, known.at, count, since, until)
            if now >= known.at + AGAIN_SECONDS:
                self._tell(code, known, now)
                known = _Told(count, now, count)
            self._told[code] = known

    def _tell(self, code: str, known: _Told, now: float) -> None:
        what = "a limit is reached" if known.until == now else "a limit was reached"
        log.warning(
            f"{what} code=%s refused=%d refused_since_start=%d since=%s until=%s remedy=%r",
            code,
            known.seen - known.told,
            known.seen,
            _text(self._now() - (now - known.since)),
            _text(self._now() - (now - known.until)),
            self._remedy(code),
            extra={"seldom": True},
        )

    def _remedy(self, code: str) -> str:
        """The limits that are set, with their values; those that are 0 refuse nobody."""
        limits = self._limits()
        keys, more = LIMITS[code]
        values = {key: getattr(limits, key) for key in keys}
        shown = {key: value for key, value in values.items() if value} or values
        each = ", ".join(f"{key} = {value}" for key, value in shown.items())
        return f"[limits] {each}" + (f"; {more}" if more else "")


def _text(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
