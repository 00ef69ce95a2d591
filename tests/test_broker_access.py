"""The broker decides who may do what, whoever calls it: no door has to be trusted with that."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from repl_broker.access import Asking, Credentials
from repl_broker.broker import Broker
from repl_broker.command import Shares
from repl_broker.config import Config
from repl_broker.errors import RequestError
from tests.nodes import ANYONE, Node, configured, running_node
from tests.signing import SECRET, bearer, token

# What the node asks of its own broker: no door calls these.
INTERNAL: Final = {"reload", "settings", "describe_cluster", "statistics", "check_ready", "reasons"}
INTERNAL_READS: Final = {"subscribers"}

CALLS: Final[dict[str, Callable[[Broker, Asking], Any]]] = {
    "publish": lambda b, asking: b.publish(asking, "secret", b"1"),
    "publish_batch": lambda b, asking: b.publish_batch(asking, "secret", b"1\n"),
    "publish_many": lambda b, asking: b.publish_many(asking, b'{"topic":"secret","data":1}'),
    "create_topic": lambda b, asking: b.create_topic(asking, "secret"),
    "delete_topic": lambda b, asking: b.delete_topic(asking, "old"),
    "delete_topics": lambda b, asking: b.delete_topics(asking, "other.>"),
    "topic": lambda b, asking: b.topic(asking, "old"),
    "history": lambda b, asking: b.history(asking, "old", limit=1),
    "subscribe": lambda b, asking: b.subscribe(asking, ["old"]),
    "revoke_tokens": lambda b, asking: b.revoke_tokens(asking, "ann"),
    "inspect": lambda b, asking: b.inspect(asking),
    "cluster": lambda b, asking: b.cluster(asking),
    "add_member": lambda b, asking: b.add_member(asking, "n2", "n2:4081", "http://n2"),
    "remove_member": lambda b, asking: b.remove_member(asking, "n2"),
    "move_leader": lambda b, asking: b.move_leader(asking, "n2"),
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    return configured(auth={"mode": "jwt", "secret_file": secret})


def by(text: str, address: str = "192.0.2.1") -> Asking:
    return Asking(Credentials(bearer(text)["Authorization"]), address)


async def code_of(call: Callable[[], Any]) -> str:
    """The code that the call is refused with; "" if it is not."""
    try:
        found = call()
        if isinstance(found, Awaitable):
            await found
    except RequestError as error:
        return error.code
    return ""


def test_each_call_of_the_broker_has_to_say_who_asks() -> None:
    calls = {
        name: list(inspect.signature(call).parameters.values())
        for name, call in inspect.getmembers(Broker, callable)
        if not name.startswith("_") and name not in INTERNAL | INTERNAL_READS
    }
    assert calls.keys() == CALLS.keys() | {"topics"}
    for name, (_, asking, *_) in calls.items():
        assert (asking.name, asking.default) == ("asking", inspect.Parameter.empty), name
    assert not Asking._field_defaults


async def test_a_call_by_somebody_without_the_right_changes_and_tells_nothing(
    config: Config,
) -> None:
    root = by(token(admin=True, sub="root"))
    async with running_node(config=config) as node:
        await node.broker.publish(root, "old", b'"kept"')
        before = node.replica.state.snapshot()
        for asking, code in (
            (ANYONE, "unauthenticated"),
            (by("forged"), "unauthenticated"),
            (by(token()), "forbidden"),
            (by(token(("old2", "secret.*"), ("old2", "old.*", "secret.>"))), "forbidden"),
        ):
            for name, call in CALLS.items():
                found = await code_of(lambda c=call, a=asking: c(node.broker, a))
                assert found == code, (name, asking)
            assert node.replica.state.snapshot() == before
        page = await node.broker.topics(by(token(("other",))), limit=10)
        assert page.topics == []
        for name, call in CALLS.items():
            found = await code_of(lambda c=call: c(node.broker, root))
            assert found in ("", "topic_exists", "topic_not_found", "single_node"), name


async def test_what_is_checked_is_what_is_used(config: Config) -> None:
    narrow = by(token(("a.t",), ("a.t",)))
    async with running_node(config=config) as node:
        for filters in (["a.t"] * 127 + [">"], ["a.t", "b"], [">"] * 128, ["a.t"] * 128 + [">"]):
            with pytest.raises(RequestError) as caught:
                node.broker.subscribe(narrow, iter(filters))
            assert caught.value.code in ("forbidden", "invalid_filter")
        with pytest.raises(RequestError, match="'b'"):
            await node.broker.publish_many(
                narrow, b'{"topic":"a.t","data":1}\n{"topic":"\\u0062","data":2}'
            )
        assert not node.replica.state.topics


async def test_rates_and_keys_are_those_of_the_subject_else_of_the_address(
    config: Config,
) -> None:
    async with running_node(config=config) as node:
        access = node.broker.access
        for asking, client in ((by(token(sub="ann")), "token ann"), (ANYONE, "127.0.0.1")):
            caller = access.caller(asking, write=False)
            assert (caller.client, caller.owner, caller.share) == (client, client, client)
    async with running_node() as node:
        caller = node.broker.access.caller(ANYONE, write=False)
        assert (caller.client, caller.owner) == ("127.0.0.1", "")


async def test_keys_of_a_token_without_a_subject_are_its_own_at_any_address(
    config: Config,
) -> None:
    """An address is a rate's client, and nobody who keeps something: it changes, and is shared."""
    async with running_node(config=config) as node:
        access = node.broker.access

        def owner(address: str, *grants: tuple[str, ...], **changed: Any) -> str:
            asking = by(token(*grants, sub=None, **changed))._replace(address=address)
            caller = access.caller(asking, write=False)
            assert caller.client == address
            assert caller.share == caller.owner
            return caller.owner

        first = owner("192.0.2.1", ("a", "b"))
        assert first == owner("192.0.2.9", ("b", "a"), exp=int(time.time()) + 999), "it was renewed"
        others = {owner("192.0.2.1", ("a",)), owner("192.0.2.1", ("b",)), owner("192.0.2.1")}
        assert len({first, "192.0.2.1"} | others) == 5


async def test_a_share_that_only_the_leaders_file_sets_holds_for_each_address() -> None:
    def counted(node: Node) -> dict[str, int]:
        return {client: held.topics for client, held in node.replica.state._holdings.items()}

    other = ANYONE._replace(address="192.0.2.1")
    async with running_node() as node:
        await node.broker.publish(ANYONE, "a", b"1")
        assert counted(node) == {}
        shares = Shares(topics=1)
        node.replica.reconfigure(replace(node.replica.state.settings, shares=shares))
        with trio.fail_after(5):
            while node.replica.state.settings.shares != shares:
                await trio.lowlevel.checkpoint()
        for asking in (ANYONE, other):
            await node.broker.publish(asking, f"of.{asking.address.replace('.', '-')}", b"1")
            call = partial(node.broker.publish, asking, "b", b"1")
            assert await code_of(call) == "too_many_topics"
        assert counted(node) == {"127.0.0.1": 1, "192.0.2.1": 1}


@pytest.mark.parametrize("place", [0, 15, 16, 17, 4999])
async def test_each_topic_of_a_long_batch_is_looked_at(config: Config, place: int) -> None:
    ann = by(token(("a.>",), sub="ann"))
    names = [f"a.{number}" for number in range(5000)]
    names[place] = "b"
    body = "".join(f'{{"topic":"{name}","data":1}}\n' for name in names).encode()
    async with running_node(config=config) as node:
        assert await code_of(lambda: node.broker.publish_many(ann, body)) == "forbidden"
        assert node.replica.state.seq == 0
        allowed = body.replace(b'"b"', b'"a.b"')
        assert (await node.broker.publish_many(ann, allowed)).count == 5000


async def test_a_rate_is_held_whichever_call_publishes(config: Config) -> None:
    config = configured(config, limits={"publishes_per_second": 1, "publish_burst": 3})
    ann = by(token(("a",), sub="ann"))
    async with running_node(config=config) as node:
        await node.broker.publish(ann, "a", b"1")
        await node.broker.publish_batch(ann._replace(address="192.0.2.2"), "a", b"1")
        await node.broker.publish_many(ann, b'{"topic":"a","data":1}')
        for name in ("publish", "publish_batch"):
            call = getattr(node.broker, name)
            assert await code_of(lambda c=call: c(ann, "a", b"1")) == "rate_limited"
        assert await code_of(lambda: node.broker.publish_many(ann, b"{}")) == "rate_limited"
        await node.broker.publish(by(token(("a",), sub="bob")), "a", b"1")
