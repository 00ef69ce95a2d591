"""Compiled filters say what the plain rules say, and cost what is asked for."""

from __future__ import annotations

from itertools import product

from hypothesis import example, given
from hypothesis import strategies as st

from repl_broker.filters import Filters
from repl_broker.message import FilterSet, covers

TOKENS = st.sampled_from(["a", "b", "aa", "*"])
TOPICS = st.lists(st.sampled_from(["a", "b", "aa"]), min_size=1, max_size=5).map(".".join)
FILTERS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]),
    st.lists(TOKENS, min_size=1, max_size=5),
    st.sampled_from([[], [">"]]),
) | st.just(">")


@given(st.lists(FILTERS, max_size=6), FILTERS | TOPICS)
@example(["a.>"], "a")
@example(["a.>", "a"], "a")
@example(["*.>"], "a.>")
@example(["a.*.>"], "a.>")
@example(["a", "a.a"], "a.a.a")
@example([">"], "*")
@example([], ">")
def test_filters_cover_what_one_of_them_covers(filters: list[str], wanted: str) -> None:
    compiled = Filters(filters)
    for text in (wanted, *filters, wanted, wanted):  # it remembers the last one
        assert compiled.covers(text) == any(covers(each, text) for each in filters)


@given(st.lists(FILTERS, min_size=1, max_size=6), TOPICS)
def test_filters_cover_the_topics_that_a_stream_of_them_would_get(
    filters: list[str], topic: str
) -> None:
    assert Filters(filters).covers(topic) == FilterSet(filters).matches(topic)


@given(FILTERS, FILTERS)
def test_one_filter_covers_another_if_it_matches_all_of_its_topics(wide: str, narrow: str) -> None:
    """By brute force: every topic of up to six tokens over an alphabet that both know in part."""
    topics = [
        ".".join(tokens)
        for length in range(1, 7)
        for tokens in product(("a", "b", "x"), repeat=length)
        if length < 6 or tokens[0] != "b"
    ]
    both = FilterSet([narrow]), FilterSet([wide])
    if "aa" in f"{wide}.{narrow}".split("."):
        topics = [topic.replace("b", "aa") for topic in topics]
    matched = [topic for topic in topics if both[0].matches(topic)]
    found = Filters([wide]).covers(narrow)
    if matched:
        assert found == all(both[1].matches(topic) for topic in matched)


def test_equal_filters_are_equal_and_say_so() -> None:
    one, two = Filters(["a", "b.>"]), Filters(["b.>", "a", "a"])
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one) == repr(two) == "Filters(['a', 'b.>'])"
    assert one != Filters(["a"])
    assert (bool(one), bool(Filters([]))) == (True, False)
    assert one.size == 3


def test_what_is_asked_for_costs_a_step_a_token_whatever_the_filters() -> None:
    """256 filters that agree in nothing but that each takes the first tokens of all others."""
    heads = [".".join(bits) for bits in product("a*", repeat=8)]
    filters = Filters(
        [f"{head}." + ".".join(["*"] * 100) + f".{n}" for n, head in enumerate(heads)]
    )
    steps = 0

    class Counted(str):
        def split(self, *_: object) -> list[str]:  # type: ignore[override]
            return [Token(token) for token in str.split(self, ".")]

    class Token(str):
        def __hash__(self) -> int:
            nonlocal steps
            steps += 1
            return str.__hash__(self)

        def __eq__(self, other: object) -> bool:
            return str.__eq__(self, other)

    wanted = Counted(".".join(["a"] * 108) + ".b")
    assert not filters.covers(wanted)
    assert steps <= 109
