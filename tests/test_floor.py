"""What is lost by nobody knows whom, against a list of all of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl_broker import floor as floor_module
from repl_broker.floor import Floor

LOSSES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=30)


@given(LOSSES)
@settings(max_examples=4 * settings().max_examples)
def test_the_newest_loss_above_any_number_is_known(losses: list[tuple[int, int]]) -> None:
    floor = Floor()
    for number, version in losses:
        floor.add(number, version)
    for after in range(22):
        newest = max((v for n, v in losses if n > after), default=-1)
        assert floor.newest(after) == newest


@given(LOSSES, st.integers(1, 4))
@settings(max_examples=4 * settings().max_examples)
def test_with_few_steps_none_is_passed_over_and_the_newest_are_exact(
    losses: list[tuple[int, int]], steps_max: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floor_module, "STEPS_MAX", steps_max)
        floor = Floor()
        for number, version in losses:
            floor.add(number, version)
        assert len(floor._numbers) == len(floor._versions) <= steps_max
    highest = max((n for n, _ in losses), default=0)
    for after in range(22):
        newest = max((v for n, v in losses if n > after), default=-1)
        assert floor.newest(after) >= newest
        assert floor.newest(after) == -1 or after < highest
    assert floor.newest(0) == max((v for _, v in losses), default=-1)
