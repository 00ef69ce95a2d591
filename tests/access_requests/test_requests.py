"""A short form of the run; ``__main__.py`` has the long one. And it does find what is wrong."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from repl_broker.access import Access
from repl_broker.message import FilterSet, covers
from tests.access_requests.drawn import FILTERS, GRANTS, TOPICS, Drawing, credentials
from tests.access_requests.model import Holder, is_filter, is_topic
from tests.access_requests.wire import without_chunks
from tests.access_requests.world import Fault, run

SECONDS_MAX = 120  # four nodes and their clients share the processor with other tests


async def test_nothing_leaks_nothing_is_changed_and_no_right_is_refused(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS_MAX):
        judge = await run(1, range(400), tmp_path)
    assert sum(judge.kinds.values()) == 400
    assert judge.marks > 100
    assert len(judge.must_appear) > 100
    assert judge.kinds["granted 2xx"] > 100
    assert judge.kinds["refused 4xx"] > 100


@pytest.mark.parametrize("check", ["check_subscribe", "check_publish", "check_admin"])
async def test_a_check_that_is_left_out_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    monkeypatch.setattr(Access, check, lambda *_: None)
    with trio.fail_after(SECONDS_MAX), pytest.raises(Fault, match=r"leaks|not granted"):
        await run(1, range(400), tmp_path)


def test_the_model_is_that_of_the_product() -> None:
    """They share no code; over the names that are drawn they say the same."""
    for grant, wanted in product(FILTERS, FILTERS):
        assert Holder(subscribe=(grant,)).may_read(wanted) == covers(grant, wanted), (grant, wanted)
    for grant, topic in product(GRANTS, TOPICS):
        assert Holder((grant,)).may_publish(topic) == FilterSet([grant]).matches(topic)
    for text in (*FILTERS, "", ".", "a..b", "a.>.b", ">.a", "a*", "**", "a.t ", "a\n"):
        valid = is_filter(text)
        assert valid == (text in FILTERS), text
        assert is_topic(text) == (valid and not set(text) & set("*>"))


def test_a_seed_and_a_number_give_the_same_request_again() -> None:
    def drawn() -> list[Any]:
        known = credentials(Random("1"))
        return [Drawing(1, number, known).draw()[1:5] for number in range(200)]

    assert [each[3:] for each in drawn()] == [each[3:] for each in drawn()]


def test_chunks_are_taken_off() -> None:
    assert without_chunks(b"3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n") == (b"abcde", True)
    assert without_chunks(b"3\r\nabc\r\n2\r\nd") == (b"abc", False)
