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
from typing import Any, Final
from unittest.mock import patch

import trio
import trio.testing

from repl_broker.turnstile import Turnstile

__all__ = ["deterministic", "world_clock"]

SMALL: Final = {  # what happens once a day happens all the time
    "repl_broker.journal.JOURNAL_BYTES": 96 << 10,
    "repl_broker.storage.WAL_BYTES_MAX": 256 << 10,
    "repl_broker.upkeep.TIDY_BYTES": 64 << 10,
    "repl_broker.upkeep.SNAPSHOT_BYTES": 256 << 10,
    "repl_broker.upkeep.DROP_ENTRIES_MAX": 5,
    "repl_broker.upkeep.REWRITE_ENTRIES_MAX": 3,
    "repl_broker.replica.RELEASE_BYTES": 1 << 10,
    "repl_broker.disk.DISCARD_BYTES": 2 << 10,
    "repl_broker.parts.ROW_BYTES_MAX": 4 << 10,
    "repl_broker.parts.PART_BYTES": 1 << 10,
    "repl_broker.transport.PART_BYTES": 16 << 10,  # lines are narrower than any in use
    "repl_broker.snapshots.PIECE_BYTES": 2 << 10,
    "repl_broker.history.CACHE_BYTES_MAX": 4 << 10,
    "repl_broker.subscription.CHUNK_BYTES_MAX": 2 << 10,
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
def deterministic(seed: int, log_bytes_kept: int) -> Iterator[None]:
    """The process's chance, threads and processor's clock, from ``seed``."""
    kept = {"LOG_BYTES_KEPT": 1, "LOG_BYTES_MAX": 8, "BEHIND_BYTES_MAX": 4}
    small = SMALL | {f"repl_broker.sending.{n}": t * log_bytes_kept for n, t in kept.items()}
    chance = random.Random(f"chance {seed}")
    trio_run = trio._core._run
    states = random.getstate(), trio_run._r.getstate()
    ticks = random.Random(f"ticks {seed}")
    ticked = 0.0

    def processor_seconds() -> float:
        nonlocal ticked
        ticked += ticks.random() ** 6 * 0.002
        return ticked

    with ExitStack() as stack:
        for name, value in small.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True))
        stack.enter_context(patch.object(secrets, "token_bytes", chance.randbytes))
        stack.enter_context(
            patch.object(secrets, "token_hex", lambda size: chance.randbytes(size).hex())
        )
        stack.enter_context(patch.object(trio.to_thread, "run_sync", _in_the_loop))
        stack.enter_context(patch.object(Turnstile.__init__, "__defaults__", (processor_seconds,)))
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


async def _in_the_loop(call: Callable[..., Any], *arguments: Any, **_: object) -> Any:
    await trio.sleep(0.0002)
    return call(*arguments)
