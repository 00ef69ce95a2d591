"""Each change is a line, on every node, once: with names, and in an audit line by whom."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from repl_broker import logs
from repl_broker.access import Asking, Credentials
from repl_broker.audit import audited
from repl_broker.broker import Broker
from repl_broker.chronicle import KEYS
from repl_broker.config import Config, LogConfig, values_of
from repl_broker.errors import RequestError
from repl_broker.levels import TWO_CLOCKS
from tests.network import running_cluster
from tests.nodes import ANYONE, Disk, configured, running_node
from tests.signing import SECRET, bearer, token

NAME = "repl_broker.chronicle"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == NAME]


async def test_topics_and_tokens_are_told_by_each_node_and_not_again_after_a_start(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, NAME)
    disk = Disk()
    async with running_node(disk) as node:
        caplog.clear()
        await node.broker.create_topic(ANYONE, "orders.eu")
        await node.broker.create_topic(ANYONE, "orders.us", messages=5)
        await node.broker.create_topic(ANYONE, "orders.us", messages=6, replace=True)
        await node.broker.publish(ANYONE, "made.by.a.publish", b"1")
        with pytest.raises(RequestError):
            await node.broker.create_topic(ANYONE, "orders.us")
        await node.broker.delete_topic(ANYONE, "orders.us")
        await node.broker.delete_topics(ANYONE, ">")
        await node.broker.revoke_tokens(ANYONE, "mallory")
    assert said(caplog) == [
        "topic created topic=orders.eu",
        "topic created topic=orders.us",
        "topic set topic=orders.us",
        "topic deleted topic=orders.us",
        "topics deleted topics=2 first=made.by.a.publish last=orders.eu",
        f"feature level raised level={TWO_CLOCKS}",  # that what follows needs
        "tokens revoked subject='mallory'",
    ]
    caplog.clear()
    async with running_node(disk):
        assert said(caplog) == []


async def test_settings_are_told_with_what_they_were(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, NAME)
    disk = Disk()
    async with running_node(disk):
        caplog.clear()
    config = configured(Config(), limits={"topics": 7})
    async with running_node(disk, config=config):
        assert said(caplog) == [
            f"setting changed key=limits.topics value=7 was={Config().limits.topics}"
        ]


def test_each_setting_is_told_by_the_key_that_an_operator_sets() -> None:
    def names(settings: Any, prefix: str = "") -> Iterator[str]:
        for name in (each.name for each in fields(settings)):
            value = getattr(settings, name)
            if is_dataclass(value):
                yield from names(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert KEYS.keys() == {*names(Broker.settings(Config()))}
    assert {*KEYS.values()} <= values_of(Config()).keys()


async def test_members_are_told_by_all(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_cluster(2) as cluster:
        caplog.set_level(logging.INFO, NAME)
        await cluster.start("n3", join=("n1",))
        await cluster.all_vote()
        await cluster.converged()
        lines = said(caplog)
        added = "member added id=n3 role=learner address=n3:4081 members=n1+n2+n3"
        assert lines.count(added) == 3
        assert lines.count("member is a voter now id=n3 voters=n1+n2+n3") == 3
        caplog.clear()
        await cluster["n1"].broker.remove_member(ANYONE, "n3")
        await cluster.until(lambda: cluster["n3"].replica.removed.is_set(), "n3 to hear of it")
        await cluster.converged()
        assert said(caplog).count("member removed id=n3 voters=n1+n2") >= 2


# --- audit ---


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    yield io.StringIO()
    logging.captureWarnings(False)
    logging.getLogger(logs.AUDIT).setLevel(logging.NOTSET)
    root.handlers[:], root.level, logging.raiseExceptions = before


async def test_an_audit_line_has_who_what_and_from_where_whatever_the_level_is(
    autojump_clock: MockClock, stream: io.StringIO
) -> None:
    asking = Asking(Credentials(), "10.0.0.7")
    async with running_node() as node:
        logs.configure(LogConfig(level="error"), stream)
        await node.broker.create_topic(asking, "orders")
        with pytest.raises(RequestError):
            await node.broker.create_topic(asking, "orders")
        with pytest.raises(RequestError):
            await node.broker.create_topic(asking, "or ders" + 1000 * "x")
        logs.configure(LogConfig(level="error", audit=False), stream)
        await node.broker.delete_topic(asking, "orders")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    names = ("action", "target", "subject", "address", "outcome")
    assert [[line[name] for name in names] for line in lines[:2]] == [
        ["topic.create", "orders", "anyone", "10.0.0.7", "done"],
        ["topic.create", "orders", "anyone", "10.0.0.7", "topic_exists"],
    ]
    assert lines[2]["outcome"] == "invalid_topic"
    assert len(lines[2]["target"]) == 256
    assert len(lines) == 3


async def test_a_line_names_who_was_refused_for_want_of_rights_and_what_was_forced(
    stream: io.StringIO, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    config = configured(auth={"mode": "jwt", "secret_file": tmp_path / "secret"})
    asking = Asking(Credentials(bearer(token(("news",), sub="bob"))["Authorization"]), "10.0.0.7")
    async with running_node(config=config) as node:
        logs.configure(LogConfig(level="error"), stream)
        for forced in (False, True):
            with pytest.raises(RequestError):
                await node.broker.remove_member(asking, "n3", forced=forced)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    names = ("action", "target", "subject", "outcome", "forced")
    assert [[line.get(name) for name in names] for line in lines] == [
        ["member.remove", "n3", "bob", "forbidden", None],
        ["member.remove", "n3", "bob", "forbidden", True],
    ]


async def test_a_change_whose_caller_left_has_an_unknown_outcome(stream: io.StringIO) -> None:
    logs.configure(LogConfig(), stream)
    with pytest.raises(KeyboardInterrupt), audited("topic.delete", "orders", ""):
        raise KeyboardInterrupt
    line = json.loads(stream.getvalue())
    assert (line["outcome"], line["subject"], line["address"]) == ("unknown",) * 3


def test_many_of_one_kind_are_written_a_few_times_and_then_counted(stream: io.StringIO) -> None:
    logs.configure(LogConfig(), stream)
    log = logging.getLogger(NAME)
    for number in range(100):
        log.info("topic created topic=%s", number, extra={"joins": True})
        log.info("of another kind number=%s", number)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sum("topic created" in line["message"] for line in lines) == 10
    assert sum("of another kind" in line["message"] for line in lines) == 100
    assert not any("joins" in line for line in lines)
