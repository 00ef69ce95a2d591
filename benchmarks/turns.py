"""``python -m benchmarks turns``: how long the event loop is busy at once while a snapshot is made.

A state that retains much, each message in an entry of its own, which is the dearest; then
snapshots of it, taken as a node takes them, while somebody asks a thousand times a second
for a turn of the loop. In one process, without disk or network.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import trio

from benchmarks.command import progress
from repl_broker.command import Command, Configure, DeleteTopic, Publish, Retention, Settings
from repl_broker.daemon import GC_THRESHOLDS, SWITCH_SECONDS
from repl_broker.loop_turns import LoopTurns
from repl_broker.state import BrokerState
from repl_broker.taking import Mark, Taker

__all__ = ["Found", "Plan", "main", "measure", "state_of"]

TURN_MS_MAX = 20.0
LOOK_SECONDS = 0.001
WARM_SECONDS = 0.2
AMPLE = Retention(messages=1_000_000_000, seconds=10 * 86_400, bytes=1 << 50)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the state holds."""

    messages: int = 1_000_000
    topics: int = 10_000
    keys: int = 100_000  # idempotency keys
    deleted: int = 10_000  # topics that are remembered as deleted
    rounds: int = 3


class Found(NamedTuple):
    """Of the worst round."""

    turn_ms: float  # the longest of the loop
    late_ms: float  # by which somebody else got a turn at the latest
    seconds: float  # that a snapshot took
    size: int  # of the snapshot, in bytes
    entries: int  # of which something is retained


def state_of(plan: Plan) -> BrokerState:
    """One that retains all of that."""
    state = BrokerState()
    index = 0

    def apply(*commands: Command) -> None:
        nonlocal index
        index += 1
        state.apply(index, index, commands)

    apply(Configure(Settings(True, AMPLE, plan.keys, 86_400)))
    for number in range(plan.deleted):
        apply(Publish(f"gone.{number}", (b"1",), None, b""))
        apply(DeleteTopic(f"gone.{number}"))
    for number in range(plan.messages):
        key = f"key {number}" if number < plan.keys else None
        apply(Publish(f"topic.{number % plan.topics}", (b"1",), key, b"8 bytes."))
    return state


async def measure(state: BrokerState, rounds: int) -> Found:
    worst = [await _measure(state) for _ in range(rounds)]
    return Found(
        max(found.turn_ms for found in worst),
        max(found.late_ms for found in worst),
        max(found.seconds for found in worst),
        worst[0].size,
        worst[0].entries,
    )


async def _measure(state: BrokerState) -> Found:
    taker = Taker(lambda: state, lambda: Mark(state.applied_index, 1, b""), trio.to_thread.run_sync)
    turns, late = LoopTurns(), [0.0]

    async def look() -> None:
        while True:
            began = perf_counter()
            await trio.sleep(LOOK_SECONDS)
            late.append(perf_counter() - began - LOOK_SECONDS)

    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.sleep(WARM_SECONDS)
        began = perf_counter()
        async with taker.one:
            taken = await taker.begin().finish()
        seconds = perf_counter() - began
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(turns)
    longest = turns.statistics().longest_seconds
    return Found(
        1000 * longest, 1000 * max(late), seconds, len(taken.snapshot.data), len(taken.live)
    )


@contextmanager
def _settled() -> Iterator[None]:
    """This process does meanwhile as a node does (daemon.py): what is there stays."""
    thresholds, seconds = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(seconds)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def main(arguments: Sequence[str]) -> int:
    plan = _options(arguments)
    progress(f"publishing {plan.messages:,} messages")
    state = state_of(plan)
    with _settled():
        found = trio.run(measure, state, plan.rounds)
    progress("")
    print(
        f"{plan.messages:,} messages in {found.entries:,} entries, {plan.topics:,} topics, "
        f"{plan.keys:,} keys: a snapshot of {found.size / (1 << 20):.1f} MiB in "
        f"{found.seconds:.2f} s"
    )
    print(
        f"longest turn of the loop: {found.turn_ms:.1f} ms (at most {TURN_MS_MAX:g} are allowed); "
        f"others waited {found.late_ms:.1f} ms at most"
    )
    return 0 if found.turn_ms <= TURN_MS_MAX else 1


def _options(arguments: Sequence[str]) -> Plan:
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m benchmarks turns", description=__doc__)
    for name in ("messages", "topics", "keys", "deleted", "rounds"):
        default = getattr(plan, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    return Plan(**vars(parser.parse_args(arguments)))
