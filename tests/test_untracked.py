"""Python's collector looks at few things, however many topics, messages and keys there are."""

from __future__ import annotations

import gc
import weakref

from repl_broker.command import Configure, Publish
from repl_broker.state import BrokerState
from repl_broker.untracked import untrack

TOPICS = 500


class Thing:
    pass


def tracked() -> int:
    gc.collect()  # which finds out that plain tuples of numbers and bytes are no matter of its
    return len(gc.get_objects())


def filled(state: BrokerState) -> BrokerState:
    for number in range(1, TOPICS + 1):
        command = Publish(f"topic/{number}", (b"1", b"2"), f"key-{number}", b"d", "ann", "ann")
        state.apply(number, number, [command])
    state.apply(TOPICS + 1, TOPICS, [Configure(state.settings)])
    return state


def test_what_is_held_for_topics_and_keys_is_nothing_to_the_collector() -> None:
    state = BrokerState()
    before = tracked()
    filled(state)
    assert tracked() - before < TOPICS / 4
    snapshot = state.snapshot()
    before = tracked()
    restored = BrokerState.restore(snapshot)
    assert tracked() - before < TOPICS / 4
    assert restored.snapshot() == snapshot


def test_what_is_not_tracked_goes_when_nothing_refers_to_it() -> None:
    thing = Thing()
    untrack(thing)
    gone = weakref.ref(thing)
    del thing
    assert gone() is None
