"""A capture is the state of its moment to the byte, whatever is applied while it is made."""

from __future__ import annotations

from random import Random
from typing import Final

import pytest

from repl_broker import capture as capture_module
from repl_broker import segments as segments_module
from repl_broker import state as state_module
from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    DeleteTopics,
    Expire,
    KeepTopics,
    Publish,
    Retention,
    RevokeTokens,
    Settings,
    Shares,
)
from repl_broker.patience import Looks
from repl_broker.state import BrokerState
from tests.snapshot_in_one_go import in_one_go

NAMES: Final = tuple("abcdefgh")


class History:
    """Commands by chance, of a kind in which much comes and goes."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.has_clients = seed % 2 == 1
        self.state = BrokerState()
        self.apply(Configure(self.settings()))

    def apply(self, *commands: Command) -> None:
        state = self.state
        time_ms = state.time_ms + self.chance.choice([0, 1, 400, 2000])
        state.apply(state.applied_index + 1, time_ms, commands)

    def go_on(self) -> None:
        self.apply(*(self.command() for _ in range(self.chance.randint(1, 3))))

    def settings(self) -> Settings:
        chance = self.chance
        idle = chance.choice([None, 5]) if self.has_clients else None
        retention = Retention(chance.choice([2, 4]), chance.choice([6, 30]), 50, idle)
        shares = Shares()
        if self.has_clients:
            shares = Shares(0, 0, 5, of_publishers=chance.random() < 0.9)
        return Settings(chance.random() < 0.7, retention, 9, chance.choice([9, 20]), 0, shares)

    def command(self) -> Command:
        chance = self.chance
        name, others = chance.choice(NAMES), tuple(chance.sample(NAMES, 2))
        client = chance.choice(["", "ann", "bob"]) if self.has_clients else ""
        idle = chance.choice([None, 0, 7]) if self.has_clients else None
        key = chance.choice([None, f"key-{chance.randrange(30)}"])
        match chance.randrange(16):
            case 0:
                return DeleteTopic(name)
            case 1:
                return DeleteTopics(others)
            case 2:
                return Expire(chance.choice([0, 9]))
            case 3:
                return KeepTopics(others)
            case 4:
                return RevokeTokens(name, chance.choice([1, 30]))
            case 5:
                return Configure(self.settings())
            case 6 | 7:
                messages = chance.choice([None, 1, 5])
                return CreateTopic(name, messages, None, None, True, idle, client)
            case 8:
                return Publish(others, (b"x" * chance.randrange(30), b""), key, b"", client, client)
        data = tuple(b"x" * chance.randrange(30) for _ in range(chance.randint(1, 3)))
        return Publish(name, data, key, b"", client, client)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "BLOCK_ROWS", 3)
    monkeypatch.setattr(capture_module, "STEP_TOPICS", 1)
    monkeypatch.setattr(capture_module, "STEP_ROWS", 2)
    monkeypatch.setattr(state_module, "TOMBSTONES_MAX", 3)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_applied_between_the_pieces_is_not_in_it(seed: int) -> None:
    history = History(seed)
    chance, state = history.chance, history.state
    between = 0
    for _ in range(40):
        for _ in range(4):
            history.go_on()
        expected, capture = in_one_go(state), state.capture()
        live = state.live_entries()
        while capture.piece(Looks(chance.choice([0, 0, 1, 3]))):
            for _ in range(chance.randint(0, 3)):
                history.go_on()
                between += 1
            if between % 7 == 0:
                assert state.snapshot() == in_one_go(state), "one in one go disturbs none in pieces"
        assert b"".join(capture.parts()) == expected
        assert [*capture.live_entries()] == live
        capture.end()
        assert state.entries == len(state.live_entries())
        blocks = state.segments.blocks
        assert [block.dead for block in blocks] == [[*block.live].count(0) for block in blocks]
    assert state.snapshot() == in_one_go(state)
    assert between > 200, "much is applied while captures are made"


@pytest.mark.parametrize("seed", range(12, 16))
def test_a_state_from_a_snapshot_goes_on_as_the_one_it_was_of(seed: int) -> None:
    history, twin = History(seed), BrokerState()
    apply = history.state.apply

    def both(index: int, time_ms: int, commands: tuple[Command, ...]) -> None:
        apply(index, time_ms, commands)
        twin.apply(index, time_ms, commands)

    for _ in range(20):
        twin = BrokerState.restore(history.state.snapshot())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(history.state, "apply", both)
            for _ in range(9):
                history.go_on()
        assert twin.snapshot() == in_one_go(history.state)


def test_one_that_is_given_up_leaves_the_state_as_it_was() -> None:
    history = History(1)
    for _ in range(30):
        history.go_on()
    given_up = history.state.capture()
    given_up.piece(Looks(0))
    given_up.end()
    history.go_on()
    assert history.state.snapshot() == in_one_go(history.state)
