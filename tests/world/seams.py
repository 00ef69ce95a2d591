"""One seed, one run: chance, time and threads of the process, as long as a run lasts.

Trio's clock is ours and jumps when nobody has anything to do. Its scheduler draws
from the seed (as hypothesis-trio has it do), and so do the modules ``random`` and
``secrets``. What the product gives to a thread runs in the loop, and takes simulated time.
What it measures by the processor's clock, to break long work into pieces, is measured by
one that moves with each look: so pieces end at other places in each run.
"""

from __future__ import annotations

import gc
import math
import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final
from unittest.mock import patch

import trio
import trio.testing

from repl_broker import cluster
from repl_broker.capture import Capture
from repl_broker.checks import Checks
from repl_broker.config import Config
from repl_broker.raft.core import CoreOptions
from repl_broker.turnstile import Turnstile
from tests.world.weather import Schedule

__all__ = ["deterministic", "world_clock"]

SMALL: Final = {  # what happens once a day happens all the time
    "repl_broker.journal.JOURNAL_BYTES": 96 << 10,
    "repl_broker.storage.WAL_BYTES_MAX": 256 << 10,
    "repl_broker.upkeep.TIDY_BYTES": 64 << 10,
    "repl_broker.upkeep.SNAPSHOT_BYTES": 256 << 10,
    "repl_broker.disk.DROP_ENTRIES_MAX": 5,
    "repl_broker.upkeep.REWRITE_ENTRIES_MAX": 3,
    "repl_broker.upkeep.REWRITE_BYTES": 4 << 10,
    "repl_broker.replica.RELEASE_BYTES": 1 << 10,
    "repl_broker.replica.EXPIRY_STEPS_MAX": 4,
    "repl_broker.proposals.RECENT_OUTCOMES_MAX": 20,
    "repl_broker.disk.DISCARD_BYTES": 2 << 10,
    "repl_broker.parts.PART_BYTES": 1 << 10,
    "repl_broker.transport.PART_BYTES": 16 << 10,  # lines are narrower than any in use
    "repl_broker.snapshots.PIECE_BYTES": 2 << 10,
    "repl_broker.history.CACHE_BYTES_MAX": 4 << 10,
    "repl_broker.subscription.CHUNK_BYTES_MAX": 2 << 10,
    "repl_broker.capture.STEP_ROWS": 8,
    "repl_broker.segments.BLOCK_ROWS": 32,
}


def world_clock() -> trio.testing.MockClock:
    """A MockClock with ``autojump_threshold=0``, and without the real clock beneath: it is read
    at each of Trio's steps."""
    clock: Any = trio.testing.MockClock(autojump_threshold=0)
    clock.now = 0.0

    def jump() -> None:
        """Called by the run loop when all tasks wait."""
        deadline = trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        if clock.now < deadline < math.inf:
            clock.now = deadline

    def sleep_time(deadline: float) -> float:
        return 0.0 if deadline <= clock.now else 999_999_999.0

    clock.current_time = lambda: clock.now
    clock.deadline_to_sleep_time = sleep_time
    clock._autojump = jump
    return clock  # type: ignore[no-any-return]


@contextmanager
def deterministic(schedule: Schedule) -> Iterator[None]:
    """The process's chance, threads and processor's clock, from the seed."""
    seed, unit = schedule.seed, schedule.log_bytes_kept
    kept = {"LOG_BYTES_KEPT": 1, "LOG_BYTES_MAX": 8, "BEHIND_BYTES_MAX": 4}
    small = SMALL | {f"repl_broker.sending.{n}": times * unit for n, times in kept.items()}
    core_options = partial(_core_options, schedule.window_bytes_max, cluster.core_options)
    small["repl_broker.parts.ROW_BYTES_MAX"] = schedule.row_bytes_max
    chance = random.Random(f"chance {seed}")
    trio_run = trio._core._run
    states = random.getstate(), trio_run._r.getstate()
    ticks = random.Random(f"ticks {seed}")
    ticked = 0.0
    charged: Any = None
    capture_work: Any = Capture._work

    def processor_seconds() -> float:
        nonlocal ticked
        ticked += ticks.random() ** 6 * 0.002
        return ticked

    def work(capture: Capture) -> Iterator[None]:
        """Each step of one node's snapshots takes that long, and nobody does anything meanwhile."""
        nonlocal ticked, charged
        if capture._number is not None and charged is None:
            charged = capture._state
        for _ in capture_work(capture):
            if capture._number is not None and capture._state is charged:
                world_time: Any = trio.lowlevel.current_clock()
                world_time.now += schedule.step_seconds
                ticked += schedule.step_seconds
            yield

    with ExitStack() as stack:
        for name, value in small.items():
            stack.enter_context(patch(name, value))
        if schedule.step_seconds:
            stack.enter_context(patch.object(Capture, "_work", work))
        stack.enter_context(patch.object(cluster, "core_options", core_options))
        stack.enter_context(patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True))
        stack.enter_context(patch.object(secrets, "token_bytes", chance.randbytes))
        stack.enter_context(
            patch.object(secrets, "token_hex", lambda size: chance.randbytes(size).hex())
        )
        stack.enter_context(patch.object(trio.to_thread, "run_sync", _in_the_loop))
        for each in (Turnstile, Checks):
            defaults = patch.object(each.__init__, "__defaults__", (processor_seconds,))
            stack.enter_context(defaults)
        trio_run._r.seed(f"trio {seed}")
        random.seed(f"random {seed}")
        was_enabled = gc.isenabled()
        gc.disable()  # what it ends would end at other moments each time
        try:
            yield
        finally:
            random.setstate(states[0])
            trio_run._r.setstate(states[1])
            if was_enabled:
                gc.enable()


def _core_options(
    window_bytes_max: int, options_of: Callable[[Config], CoreOptions], config: Config
) -> CoreOptions:
    options = options_of(config)
    append_bytes_max = min(options.append_bytes_max, window_bytes_max // 2)
    return replace(options, append_bytes_max=append_bytes_max, window_bytes_max=window_bytes_max)


async def _in_the_loop(call: Callable[..., Any], *arguments: Any, **_: object) -> Any:
    await trio.sleep(0.0002)
    return call(*arguments)
