"""Who follows a topic by patterns, against asking each of them; and what that costs."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl_broker import routes as routes_module
from repl_broker.routes import (
    PLAIN_STARS_MAX,
    PLAIN_TOKENS_MAX,
    TOKENS_A_LOOK,
    Routes,
    is_plain,
)
from tests.test_names import FILTER, TOPIC, naive_match

PATTERN = FILTER.filter(lambda text: "*" in text or ">" in text)
PATTERNS = st.lists(PATTERN, min_size=1, max_size=4).map(frozenset)


def routes_for(looks_max: int = 10**9) -> Routes[str]:
    return Routes(lambda owner, topic: False, looks_max)


@given(st.lists(PATTERNS | st.integers(0, 9), max_size=15), st.lists(TOPIC, min_size=1, max_size=5))
@settings(max_examples=4 * settings().max_examples)
def test_a_route_has_those_whose_patterns_match_while_patterns_come_and_go(
    steps: list[frozenset[str] | int], topics: list[str]
) -> None:
    routes, owners = routes_for(), dict[str, frozenset[str]]()
    for number, step in enumerate(steps):
        if isinstance(step, frozenset):
            owners[f"owner {number}"] = step
            routes.add(f"owner {number}", step)
        elif owners:
            owner = list(owners)[step % len(owners)]
            routes.remove(owner, owners.pop(owner))
        for topic in topics:
            found = routes.route(topic)
            assert len(found) == len(set(found))
            assert set(found) == {
                owner
                for owner, patterns in owners.items()
                if any(naive_match(pattern, topic) for pattern in patterns)
            }
            assert routes.looks(topic) <= sum(map(len, owners.values()))
    assert not routes.is_lost
    for owner, patterns in owners.items():
        routes.remove(owner, patterns)
    assert not routes._one
    assert not routes._others
    assert not routes._fixed
    assert not routes._open


def test_an_owner_that_gets_the_topic_in_another_way_is_left_out() -> None:
    routes: Routes[str] = Routes(lambda owner, topic: (owner, topic) == ("a", "x"), 100)
    routes.add("a", {"*"})
    routes.add("b", {"*"})
    assert set(routes.route("x")) == {"b"}
    assert set(routes.route("y")) == {"a", "b"}


def test_a_route_costs_a_look_a_shape_however_many_patterns_there_are() -> None:
    routes = routes_for()
    for number in range(100_000):
        routes.add(str(number), {f"rooms.{number}.>", f"users.*.{number}"})
    assert routes.looks("rooms.7.x") == 2
    assert routes.route("rooms.7.x") == ("7",)
    assert routes.route("users.ann.99999") == ("99999",)


def test_all_plain_patterns_together_have_few_shapes_that_one_topic_can_match() -> None:
    routes = routes_for()
    plain = set()
    for length in range(1, PLAIN_TOKENS_MAX + 1):
        for count in range(PLAIN_STARS_MAX + 1):
            for stars in combinations(range(length), count):
                parts = ["*" if at in stars else "a" for at in range(length)]
                plain |= {".".join(parts), ".".join([*parts[:-1], ">"])}
    plain = {pattern for pattern in plain if "*" in pattern or ">" in pattern}
    assert all(map(is_plain, plain))
    assert not is_plain("*.*.*")
    assert not is_plain("a.a.a.a.a.a.a.a.>")
    routes.add("everyone", plain)
    assert max(routes.looks(".".join("a" * length)) for length in range(1, 16)) == 128
    assert routes.looks(".".join("a" * 127)) < 128 * 127 / TOKENS_A_LOOK


def test_odd_patterns_cost_no_more_than_they_may_and_then_are_lost_until_renewed() -> None:
    chance = random.Random(1)
    routes = routes_for(looks_max=1000)
    odd = {
        ".".join(chance.choice(["a", "*"]) for _ in range(126)) + chance.choice([".a", ".>"])
        for _ in range(5_120)
    }
    for number in range(0, 5_120, 128):
        routes.add(str(number), sorted(odd)[number : number + 128])
    assert routes.looks(".".join("a" * 127)) > 1000
    assert routes.route(".".join("a" * 127)) == ()
    assert routes.is_lost
    assert routes.is_used
    routes.renew()
    assert routes.route("a.b") == ()
    assert not routes.is_lost, "what is shorter than all of them is cheap"


def test_looks_are_counted_from_one_renewal_to_the_next_and_what_is_known_costs_none() -> None:
    routes = routes_for(looks_max=10)
    routes.add("a", {"x.*", "x.>"})
    found = [routes.route(f"x.{number}") for number in range(5)]
    assert found == [("a",)] * 3 + [()] * 2
    assert routes.is_lost
    assert routes.route("x.0") == ("a",), "it is known"
    routes.renew()
    assert routes.route("x.4") == ("a",)
    assert not routes.is_lost
    routes.add("b", {"x.4.>", "x.*"})
    assert set(routes.route("x.0")) == {"a", "b"}, "what was known is asked for again"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "REMEMBERED_MAX", 100)
    routes = routes_for()
    for number in range(9):
        routes.add(str(number), {"*"})
    for number in range(1000):
        assert len(routes.route(f"t{number % 30}")) == 9
        if number % 100 == 0:
            routes.add(f"more {number}", {"a.*"})
    assert routes._known_size <= 100
    assert routes._known_size == sum(1 + len(owners) for _, owners in routes._known.values())
