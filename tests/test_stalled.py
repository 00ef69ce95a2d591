"""What is held for readers that do not read on is bounded; those that lag most go first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repl_broker.stalled import Stalled


def test_what_several_hold_together_counts_once() -> None:
    stalled, event = Stalled(100), b"x" * 80
    for holder in range(50):
        stalled.hold(holder, event, lambda holder: None)
    assert (stalled.bytes, stalled.ended) == (80, 0)
    for holder in range(50):
        stalled.release(holder)
        stalled.release(holder)
    assert stalled.bytes == 0


def test_those_go_that_have_been_stalled_for_longest_until_it_fits() -> None:
    stalled, gone = Stalled(100), list[str]()
    stalled.hold("a", b"a" * 40, gone.append)
    stalled.hold("b", b"b" * 40, gone.append)
    stalled.hold("a", b"c" * 40, gone.append)  # it has read on, and stopped again
    stalled.hold("d", b"d" * 30, gone.append)
    assert gone == ["b"]
    stalled.hold("e", b"e" * 90, gone.append)
    assert gone == ["b", "a", "d"]
    assert (stalled.bytes, stalled.ended) == (90, 3)


def test_the_only_one_is_never_ended_or_it_would_never_get_its_message() -> None:
    stalled, gone = Stalled(10), list[str]()
    stalled.hold("a", b"a" * 40, gone.append)
    assert (gone, stalled.bytes) == ([], 40)
    stalled.hold("b", b"b", gone.append)
    assert (gone, stalled.bytes) == (["a"], 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.booleans())))
def test_the_count_is_that_of_what_is_held(
    steps: list[tuple[int, int, bool]],
) -> None:
    events = [bytes([n]) * (n * 30 + 1) for n in range(6)]
    stalled = Stalled(200)
    holds: dict[int, bytes] = {}
    for holder, number, releases in steps:
        if releases:
            stalled.release(holder)
            holds.pop(holder, None)
        else:
            holds[holder] = events[number]
            stalled.hold(holder, events[number], holds.pop)
        assert stalled.bytes == sum(map(len, {id(e): e for e in holds.values()}.values()))
        assert stalled.bytes <= 200
