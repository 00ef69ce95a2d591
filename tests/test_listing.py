"""Lists of topics: what a filter asks for and a token may know of, page by page."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from repl_broker.access import Asking, Credentials
from repl_broker.command import CreateTopic, DeleteTopic
from repl_broker.filters import Leaps, Stretch
from repl_broker.turnstile import Turnstile
from tests.nodes import ANYONE, Node, configured, running_node
from tests.signing import SECRET, bearer, token
from tests.test_names import FILTER, FILTERS, TOPICS, naive_match


class Impatient:
    """A clock by which each look takes as long as a piece may: each step is a piece."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks


def by(text: str) -> Asking:
    return Asking(Credentials(bearer(text)["Authorization"]), "192.0.2.1")


def have(node: Node, *names: str) -> None:
    """Topics, without waiting for the log."""
    state = node.replica.state
    state.apply(state.applied_index + 1, 1, [CreateTopic(name) for name in dict.fromkeys(names)])


async def pages(node: Node, asking: Asking, limit: int, match: str | None) -> list[list[str]]:
    """All pages, from the first to the last."""
    found, after = [], ""
    while True:
        page = await node.broker.topics(asking, limit=limit, after=after, match=match)
        found.append([topic.name for topic in page.topics])
        if page.next is None:
            return found
        assert page.next == found[-1][-1]
        assert len(found[-1]) == limit
        after = page.next


@given(TOPICS, FILTER | st.none(), FILTERS, FILTERS, st.integers(1, 4))
def test_pages_have_what_is_asked_for_and_may_be_seen(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    match: str | None,
    publish: list[str],
    subscribe: list[str],
    limit: int,
) -> None:
    secret = tmp_path_factory.getbasetemp() / "secret-of-lists"
    secret.write_bytes(SECRET)

    async def main() -> None:
        config = configured(auth={"mode": "jwt", "secret_file": secret})
        async with running_node(config=config) as node:
            node.replica.turnstile = Turnstile(Impatient())
            have(node, *names)
            asking = by(token(tuple(publish), tuple(subscribe)))
            found = await pages(node, asking, limit, match)
            assert list(itertools.chain(*found)) == sorted(
                name
                for name in set(names)
                if (match is None or naive_match(match, name))
                and any(naive_match(grant, name) for grant in [*publish, *subscribe])
            )

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_topics_may_come_and_go_while_they_are_listed(autojump_clock: MockClock) -> None:
    async with running_node() as node:
        node.replica.turnstile = Turnstile(Impatient())
        have(node, *(f"t.{n:04}.x" for n in range(0, 1000, 2)))

        async def change() -> None:
            for number in range(1, 1000, 2):
                state = node.replica.state
                gone = DeleteTopic(f"t.{number - 1:04}.x") if number % 4 == 1 else CreateTopic("t")
                commands = [CreateTopic(f"t.{number:04}.x"), gone]
                state.apply(state.applied_index + 1, 1, commands)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            [found] = await pages(node, ANYONE, 1000, "t.*.x")
    assert found == sorted(set(found))
    assert {f"t.{n:04}.x" for n in range(2, 1000, 4)} <= set(found)


async def test_a_page_costs_what_it_returns_however_many_topics_and_grants_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    looks = 0
    seek = Leaps.seek

    def counted(search: Leaps, name: str) -> Stretch | None:
        nonlocal looks
        looks += 1
        return seek(search, name)

    monkeypatch.setattr(Leaps, "seek", counted)
    async with running_node(config=configured(auth={"mode": "jwt", "secret_file": secret})) as node:
        have(node, *(f"t.{n:06}.x" for n in range(100_000)))
        for grants in ([f"u.{n}.>" for n in range(256)], [f"t.{n:06}.>" for n in range(256)]):
            looks = 0
            asking = by(token(tuple(grants[:128]), tuple(grants[128:])))
            page = await node.broker.topics(asking, limit=1)
            assert len(page.topics) == (grants[0] == "t.000000.>")
            assert looks <= 16
