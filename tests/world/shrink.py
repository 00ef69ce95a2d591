"""The shortest schedule that still fails: what goes wrong is left out, part by part.

Another schedule is another run, so what fails then may be something else; it is a fault all
the same. Whole halves are left out first, then single events, clients and streams.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from tests.world.weather import Event, Schedule
from tests.world.world import run

__all__ = ["shrink"]


def shrink(schedule: Schedule, seconds: float) -> tuple[Schedule, str]:
    """The shortest that was found in so many seconds, and what was seen in it."""
    ends = time.monotonic() + seconds
    found = run(schedule).violation or "nothing: its two runs differ"
    shorter = True
    while shorter and time.monotonic() < ends:
        shorter = False
        for candidate in _shorter(schedule):
            if time.monotonic() > ends:
                break
            violation = _violation(candidate)
            if violation is not None:
                schedule, found, shorter = candidate, violation, True
                break
    return schedule, found


def _violation(schedule: Schedule) -> str | None:
    try:
        return run(schedule).violation
    except Exception:  # noqa: BLE001  the simulation itself failed: that is no shorter way to this
        return None


def _shorter(schedule: Schedule) -> Iterator[Schedule]:
    if schedule.seconds > 1:
        seconds = schedule.seconds * 0.7
        events = tuple(event for event in schedule.events if event.at < seconds)
        yield replace(schedule, seconds=seconds, events=events)
    for events in _less(schedule.events):
        yield replace(schedule, events=events)
    for field in ("clients", "streams"):
        numbers: tuple[int, ...] = getattr(schedule, field)
        for number in numbers:
            if len(numbers) > (field == "clients"):
                left = tuple(each for each in numbers if each != number)
                yield replace(schedule, **{field: left})


def _less(events: tuple[Event, ...]) -> Iterator[tuple[Event, ...]]:
    size = len(events) // 2
    while size:
        for start in range(0, len(events), size):
            yield events[:start] + events[start + size :]
        size //= 2
