"""Numbers in order, against a dict; and what keeping them costs."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sortedcontainers import SortedDict

from repl_broker import order as order_module
from repl_broker.order import BLOCK_NUMBERS, Order


class Held:
    """What there is, and an Order of it."""

    def __init__(self) -> None:
        self.owners: SortedDict[int, int] = SortedDict()
        self.next = 1
        self.asked = 0
        self.order = Order(self._has)

    def _has(self, owner: int, first: int, last: int) -> list[int]:
        numbers = [n for n in self.owners.irange(first, last) if self.owners[n] == owner]
        self.asked += len(numbers)
        return numbers

    def append(self, owner: int, count: int, skip: int = 0, mark: int = 0) -> None:
        self.next += skip
        self.order.append(self.next, owner, count, mark)
        self.owners.update((self.next + n, owner) for n in range(count))
        self.next += count

    def append_each(self, owners: list[int], skip: int = 0) -> None:
        self.next += skip
        self.order.append_each(self.next, array("I", owners))
        self.owners.update(enumerate(owners, self.next))
        self.next += len(owners)

    def release(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.owners[number]
        self.order.release(numbers)

    def check(self, after: int = 0) -> None:
        found = [
            (number, owner)
            for numbers, owners in self.order.runs(after)
            for number, owner in zip(numbers, owners, strict=True)
        ]
        assert [number for number, _ in found] == sorted({number for number, _ in found})
        assert all(number > after for number, _ in found)
        assert {n: o for n, o in found if self.owners.get(n) == o} == {
            n: o for n, o in self.owners.items() if n > after
        }
        assert len(self.order) == len(self.owners)


def loaded(held: Held) -> Held:
    """The same, from all that there is."""
    again = Held()
    again.owners = dict(held.owners)
    numbers: dict[int, array[int]] = {}
    for number, owner in sorted(held.owners.items()):
        numbers.setdefault(owner, array("Q")).append(number)
    again.order.load(numbers.items())
    return again


STEPS = st.lists(
    st.tuples(st.just("append"), st.integers(0, 5), st.integers(1, 9), st.integers(0, 3))
    | st.tuples(st.just("each"), st.integers(0, 5), st.integers(0, 20), st.integers(0, 3))
    | st.tuples(st.just("release"), st.integers(0, 5), st.integers(1, 9), st.integers(0, 3)),
    max_size=40,
)


@given(STEPS, st.integers(0, 60))
@settings(max_examples=4 * settings().max_examples)
def test_what_lives_is_found_in_order_from_any_number_on(
    steps: list[tuple[str, int, int, int]], after: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "BLOCK_NUMBERS", 8)
        held = Held()
        for kind, owner, count, skip in steps:
            if kind == "append":
                held.append(owner, count, skip)
            elif kind == "each":
                held.append_each([(owner + n) % 6 for n in range(count)], skip)
            else:
                own = sorted(n for n, o in held.owners.items() if o == owner)
                held.release(own[skip : skip + count] or sorted(held.owners)[: count // 2])
            held.check()
            held.check(after)
        for window, ratio in ((8, 1), (8, 100), (1 << 22, 1), (1 << 22, 8)):
            patch.setattr(order_module, "WINDOW_NUMBERS", window)
            patch.setattr(order_module, "DENSE_RATIO", ratio)
            again = loaded(held)
            again.check()
            again.check(after)
        assert all(len(block.owners) <= 8 for block in again.order._blocks)
        for number in sorted(again.owners)[::2]:  # it goes on as the first does
            again.release([number])
            again.check()
        again.next = held.next
        again.append(1, 3)
        again.check()


def test_what_was_marked_before_is_passed_over_in_blocks() -> None:
    held = Held()
    for number in range(10 * BLOCK_NUMBERS):
        held.append(1, 1, mark=number // 2)
    runs = list(held.order.runs(0, mark_min=4 * BLOCK_NUMBERS))
    assert runs[0][0][0] > 7 * BLOCK_NUMBERS
    assert {n for numbers, _ in runs for n in numbers} >= set(
        range(8 * BLOCK_NUMBERS + 2, held.next)
    )


def test_room_is_taken_for_what_lives_and_no_release_takes_long() -> None:
    """One topic of a message a block among others that go: the worst for blocks."""
    held = Held()
    numbers = 200 * BLOCK_NUMBERS
    for number in range(numbers):
        held.append(0 if number % BLOCK_NUMBERS == 7 else 1, 1)
    going = [number for number, owner in held.owners.items() if owner == 1]
    most = 0
    for start in range(0, len(going), 100):
        held.asked = 0
        held.release(going[start : start + 100])
        most = max(most, held.asked)
    assert most <= BLOCK_NUMBERS, "one block is written anew at each release, at most"
    for _ in range(200):
        held.append(1, 1)
        held.release([held.next - 1])
    assert sum(len(block.owners) for block in held.order._blocks) <= 5 * 200 + BLOCK_NUMBERS
    assert len(held.order._blocks) <= 5, "small ones are joined"
    held.check()
