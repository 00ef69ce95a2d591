"""Names found by filters, and filters asked for names, against a matcher token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repl_broker import filters as filters_module
from repl_broker.filters import AFTER_ALL, Filters, Leaps, compiled
from repl_broker.names import Names, Wanted, above

EVERY = 4 * settings().max_examples

TOKEN = st.text(alphabet="-_0aZ", min_size=1, max_size=2)
TOPIC = st.lists(TOKEN, min_size=1, max_size=4).map(".".join)
FILTER = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(TOKEN | st.just("*"), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")
FILTERS = st.lists(FILTER, min_size=1, max_size=5)
TOPICS = st.lists(TOPIC, max_size=30)
WANTED = st.lists(st.lists(FILTERS, max_size=2), max_size=2)


def naive_match(pattern: str, topic: str) -> bool:
    """NATS's rules, token by token."""
    have = topic.split(".")
    for n, token in enumerate(wanted := pattern.split(".")):
        if token == ">":
            return len(have) > n
        if n >= len(have) or token not in ("*", have[n]):
            return False
    return len(have) == len(wanted)


def naive_names(
    names: Sequence[str], at: str, wanted: Sequence[Sequence[Sequence[str]]]
) -> list[str]:
    def is_wanted(name: str) -> bool:
        return all(any(naive_match(f, name) for fs in sets for f in fs) for sets in wanted)

    return sorted(name for name in set(names) if name >= at and is_wanted(name))


def ready(wanted: Sequence[Sequence[Sequence[str]]]) -> Wanted:
    return [[Filters(filters) for filters in sets] for sets in wanted]


def found(
    names: Names, at: str, wanted: Wanted, limit: int = 3, steps_max: int = 2
) -> Iterator[str]:
    """All that is found, piece by piece."""
    where: str | None = at
    while where is not None:
        piece = names.find(where, wanted, limit, steps_max)
        assert len(piece.names) <= limit
        assert piece.steps <= steps_max
        assert piece.at is None or piece.at > where, "each piece goes on"
        yield from piece.names
        where = piece.at


# --- where the next could be ----------------------------------------------------------------


@given(FILTERS, TOPIC, TOPICS)
@settings(max_examples=EVERY)
@example(["a.a"], "a-a", ["a.a", "a0"])  # "-" comes before "."
def test_nothing_that_is_sought_is_passed_over(
    filters: list[str], name: str, others: list[str]
) -> None:
    stretch = Leaps(Filters(filters)).seek(name)
    matching = naive_names([name, *others], name, [[filters]])
    if stretch is None:
        assert matching == []
    elif stretch.start == name:
        inside = sorted({n for n in (name, *others) if name <= n < stretch.end})
        assert [n for n in matching if n < stretch.end] == inside
    else:
        assert stretch.start > name
        assert all(n >= stretch.start for n in matching)


def test_no_filters_match_nothing() -> None:
    assert Leaps(Filters([])).seek("a") is None


def test_compiled_filters_are_remembered_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filters_module, "COMPILED_SIZE_MAX", 100)
    first = compiled(frozenset(["first.*"]))
    assert compiled(frozenset(["first.*"])) is first
    for number in range(100):
        compiled(frozenset([f"{number}.*"]))
    assert compiled(frozenset(["first.*"])) is not first
    assert filters_module._compiled_size <= 100
    compiled(frozenset(f"a.b.{n}.d" for n in range(30)))
    assert len(filters_module._compiled) == 1, "one that is larger than all the room is kept alone"


def test_what_one_search_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters_module, "KEYS_MAX", 30)
    search = Leaps(Filters([f"*.{n}.{m}" for n in range(10) for m in range(3)]))
    for number in range(10):
        search.seek(f"a.{number}.x")
    assert search._keys_count <= 30 + 11
    assert search._keys_count == sum(len(keys) + 1 for keys in search._keys.values())


# --- names ----------------------------------------------------------------------------------


@given(TOPICS, TOPIC | st.just(""), WANTED, st.integers(1, 5))
@settings(max_examples=EVERY)
@example(["a", "a-", "a.a", "a0"], "", [[["a", "a.>"]]], 1)
def test_names_come_in_order_as_a_look_at_each_finds_them(
    topics: list[str], after: str, wanted: list[list[list[str]]], steps_max: int
) -> None:
    names, at = Names(set(topics)), above(after)
    found_names = list(found(names, at, ready(wanted), 3, steps_max))
    assert found_names == naive_names(topics, at, wanted)
    assert list(names) == sorted(set(topics))
    assert len(names) == len(set(topics))


@given(TOPICS, TOPICS, TOPICS, FILTERS)
def test_names_may_come_and_go_while_they_are_sought(
    stay: list[str], come: list[str], go: list[str], filters: list[str]
) -> None:
    names = Names({*stay, *go})
    coming = [name for name in dict.fromkeys(come) if name not in {*stay, *go}]
    going = [name for name in dict.fromkeys(go) if name not in stay]
    given_names = []
    for name in found(names, "", ready([[filters]]), 1, 1):
        given_names.append(name)
        if coming:
            names.add(coming.pop())
        if going:
            names.remove(going.pop())
    assert given_names == sorted(set(given_names))
    assert set(naive_names(stay, "", [[filters]])) <= set(given_names)
    assert set(given_names) <= set(naive_names([*stay, *come, *go], "", [[filters]]))


# --- what it costs ----------------------------------------------------------------------------


def steps(names: Names, *sets: Sequence[str], limit: int = 10**9) -> int:
    """Until ``limit`` names are found, or the end."""
    piece = names.find("", ready([[filters] for filters in sets]), limit, 10**9)
    return piece.steps


@pytest.fixture(scope="module")
def crowd() -> Names:
    """A hundred thousand topics."""
    return Names(f"{kind}.{n:05}.x" for kind in ("a", "b-", "b", "m", "z") for n in range(20_000))


def test_a_page_costs_what_it_returns(crowd: Names) -> None:
    assert steps(crowd, ["z.>"], limit=1) <= 2
    assert steps(crowd, ["nothing.>"]) <= 3
    assert steps(crowd, ["z.19999.x", "a.00000.x"]) <= 5
    assert steps(crowd, ["z.*.x"], limit=10) <= 25
    assert steps(crowd, [">"]) <= 100_000 / 60


def test_many_grants_cost_a_few_steps_each(crowd: Names) -> None:
    grants = [f"m.{n:05}.>" for n in range(0, 20_000, 100)]
    assert steps(crowd, [">"], grants) <= 3 * len(grants)
    assert steps(crowd, ["m.*.x"], grants) <= 5 * len(grants)
    assert steps(crowd, ["a.>"], grants) <= 4, "what no grant shares with the filter is not seen"
    others = [f"none.{n}" for n in range(256)]
    assert steps(crowd, [">"], others) <= 4


def test_a_wildcard_in_the_middle_looks_once_at_each_token_there(crowd: Names) -> None:
    assert steps(crowd, ["*.00007.x"]) <= 4 * 5
    assert steps(crowd, ["a.*.y"]) <= 2 * 20_000 + 3


def test_no_work_is_longer_than_it_may_be(crowd: Names) -> None:
    for filters in (["*.*.none"], ["a.*.y"], [">"]):
        piece = crowd.find("", ready([[filters]]), 10**9, 50)
        assert piece.steps <= 50
        assert piece.at is not None


def test_what_lies_above_every_name_ends_a_search() -> None:
    assert AFTER_ALL > "z" * 255
    assert Names(["z"]).find(AFTER_ALL, (), 1, 1).at is None
