"""One node, twice: what tells two processes with one data directory from one that was restarted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from repl_broker.transport import PeerRefusedError, _Link
from tests.test_handshake import dialed
from tests.test_transport import Node, connected, running


class Keeper:
    """What stands between two and keeps connections, as a balancer may: it goes on drinking
    what comes for one who has gone, and closes nothing."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self.address = ("127.0.0.1", 0)
        self.kept: list[trio.SocketStream] = []  # its connections to the acceptor
        self.keeps_dialers = False  # when the acceptor has gone, too
        self.is_deaf = False  # what the acceptor says goes no further

    def lead_to(self, to: tuple[str, int]) -> None:
        """Whoever dials from now on."""
        self._to = to

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = listeners[0].socket.getsockname()[:2]
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, dialer: trio.SocketStream) -> None:
        acceptor = await trio.open_tcp_stream(*self._to)
        self.kept.append(acceptor)
        async with acceptor, trio.open_nursery() as nursery:
            nursery.start_soon(_carry, dialer, acceptor, lambda: False)
            await _carry(acceptor, dialer, lambda: self.is_deaf)  # until the acceptor ends it
            if self.keeps_dialers:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()


async def _carry(
    source: trio.SocketStream, sink: trio.SocketStream, is_lost: Callable[[], bool]
) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some():
            if not is_lost():
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await sink.send_all(data)


@asynccontextmanager
async def living(node: Node, peers: dict[str, tuple[str, int]]) -> AsyncIterator[None]:
    """A process that dials ``peers``; it is killed in the end."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(node.transport.run, listeners)
        node.transport.set_peers(peers)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def kept(b: Node) -> AsyncIterator[Keeper]:
    """``b`` behind one who keeps connections."""
    async with running(b), trio.open_nursery() as nursery:
        keeper = Keeper(b.address)
        await nursery.start(keeper.run)
        yield keeper
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


async def both_told(caplog: pytest.LogCaptureFixture) -> None:
    while not all(  # noqa: ASYNC110
        any(words in record.getMessage() for record in caplog.records) for words in TOLD
    ):
        await trio.sleep(0.01)


TOLD = ("peer refused peer=a", "refused by peer=b", "told by peer=b")


async def test_a_second_process_with_the_data_of_a_node_is_refused_and_all_three_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cloned machine: the same id, the same incarnation, another process."""
    first, twin, b = Node("a"), Node("a"), Node("b")
    async with running(first, b):
        await connected(first, "b")
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            await nursery.start(twin.transport.run, listeners)
            twin.transport.set_peers({"b": b.address})
            with pytest.raises(PeerRefusedError, match=r"node 'a' runs twice.* at 127") as no:
                await twin.transport.call("b", "ask", 1, seconds=10)
            assert no.value.kind == "twin"
            assert twin.transport.has_twin
            with pytest.raises(PeerRefusedError, match="runs twice") as no:  # asked by address
                await twin.transport.call_address(b.address, "join", 1, seconds=10)
            assert no.value.kind == "twin"
            assert twin.transport.had_twin
            assert not first.transport.has_twin
            assert not first.transport.had_twin
            await both_told(caplog)
            assert await first.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)
            first.transport.set_peers({})  # it is stopped
            while not twin.transport.is_connected("b"):  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert await twin.transport.call("b", "ask", 2, seconds=10) == ("a", "ask", 2)
            assert not twin.transport.has_twin
            nursery.cancel_scope.cancel()


async def test_a_node_that_crashed_comes_back_though_its_connection_is_kept_alive() -> None:
    """The other end acknowledges all that is sent, and nobody is there."""
    b = Node("b", silence_ms=100)
    async with kept(b) as keeper:
        async with living(old := Node("a"), {"b": keeper.address}):
            await connected(old, "b")
        assert "a" in b.transport._inbound
        async with living(anew := Node("a"), {"b": keeper.address}):
            assert await anew.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)
            assert not anew.transport.has_twin
            assert b.transport._inbound["a"].process == anew.transport._process
            assert len(b.transport._accepted) == 1, "that of the old one is ended"
    assert b.transport.statistics().refused == 0


async def test_a_node_that_was_started_anew_waits_no_longer_than_its_old_connection_lives() -> None:
    b = Node("b")
    async with kept(b) as keeper:
        async with living(old := Node("a"), {"b": keeper.address}):
            await connected(old, "b")
        async with living(anew := Node("a"), {"b": b.address}):
            await until(lambda: b.transport._inbound["a"]._asked)
            assert not anew.transport.is_connected("b")
            await keeper.kept[0].aclose()
            assert await anew.transport.call("b", "ask", 1, seconds=2) == ("a", "ask", 1)
    assert b.transport.statistics().refused == 0


async def test_a_process_that_was_stopped_gives_way_and_is_refused_when_it_goes_on() -> None:
    b = Node("b", silence_ms=100)
    async with kept(b) as keeper, living(stopped := Node("a"), {"b": keeper.address}):
        await connected(stopped, "b")
        keeper.is_deaf = True
        async with living(second := Node("a"), {"b": b.address}):
            assert await second.transport.call("b", "ask", 1, seconds=10) == ("a", "ask", 1)
            keeper.is_deaf = False
            await until(lambda: stopped.transport.has_twin)
            assert not second.transport.has_twin
            assert await second.transport.call("b", "ask", 2, seconds=10) == ("a", "ask", 2)


@pytest.mark.parametrize("said", ["nothing", "another nonce", "that it cannot answer"])
async def test_who_does_not_answer_as_it_was_asked_is_no_twin(
    said: str, autojump_clock: MockClock
) -> None:
    node, answers = Node("a"), said != "that it cannot answer"
    hello = {"node_id": "b", "peer_id": "a"}
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(dialed(node))
        await old.greet(**hello, process="old", answers=answers)
        anew = await stack.enter_async_context(dialed(node))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(anew.greet, **hello, process="anew", answers=True))
            if answers:
                kind, nonce = await old.frames.receive()
                assert (kind, len(nonce)) == (4, 32)
                if said == "another nonce":
                    await old.frames.send((5, bytes(32)))
            with pytest.raises(trio.BrokenResourceError):
                await old.frames.receive()
        assert node.transport._inbound["b"].process == "anew"
        assert node.transport.statistics().refused == 0


async def test_a_node_that_dials_again_is_not_its_own_twin() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        await connected(a, "b")
        link = _Link(a.transport, "b", b.address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run_once)
            assert await link.call("ask", 1, 10) == ("a", "ask", 1)
            nursery.cancel_scope.cancel()


# --- connections that are kept for one who has gone ---


async def test_a_node_that_dialed_one_who_has_gone_dials_anew_and_reaches_the_next() -> None:
    a, old, anew = Node("a", ask_seconds=0.05, absence_seconds=0.5), Node("b"), Node("b")
    async with running(anew), trio.open_nursery() as nursery:
        life = trio.CancelScope()
        keeper = Keeper(await nursery.start(run_until_killed, old, life))
        keeper.keeps_dialers = True
        await nursery.start(keeper.run)
        async with living(a, {"b": keeper.address}):
            await connected(a, "b")
            life.cancel()
            keeper.lead_to(anew.address)
            await until(lambda: a.unreachable)
            await connected(a, "b")
            assert a.transport._links["b"].connected
            assert anew.transport._inbound.keys() == {"a"}
        nursery.cancel_scope.cancel()


async def run_until_killed(
    node: Node, life: trio.CancelScope, *, task_status: trio.TaskStatus[tuple[str, int]]
) -> None:
    """Its address is told."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with life:
        async with trio.open_nursery() as nursery:
            await nursery.start(node.transport.run, listeners)
            task_status.started(listeners[0].socket.getsockname()[:2])


async def test_a_connection_of_one_who_has_gone_is_left_after_a_while() -> None:
    """It counts no more, as one that rests on the second secret would until then."""
    b = Node("b", ask_seconds=0.05, absence_seconds=0.5)
    async with kept(b) as keeper:
        async with living(old := Node("a"), {"b": keeper.address}):
            await connected(old, "b")
        assert b.transport._accepted
        await until(lambda: not b.transport._accepted)
        assert not b.transport._inbound


async def test_who_has_nothing_to_say_stays_connected(autojump_clock: MockClock) -> None:
    """Each of the two hears from the other in time."""
    a, b = Node("a"), Node("b")
    ours, theirs = memory_stream_pair()
    link = _Link(a.transport, "b", ("10.0.0.2", 4081))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.transport.serve, theirs)
        nursery.start_soon(link.talk, ours)
        await trio.sleep(600)
        assert link.connected
        assert b.transport._inbound.keys() == {"a"}
        nursery.cancel_scope.cancel()


async def test_for_want_of_room_to_ask_nobody_is_left(autojump_clock: MockClock) -> None:
    a, b = Node("a", queue_bytes_max=-1), Node("b", absence_seconds=3600)
    ours, theirs = memory_stream_pair()
    link = _Link(a.transport, "b", ("10.0.0.2", 4081))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.transport.serve, theirs)
        nursery.start_soon(link.talk, ours)
        await trio.sleep(600)
        assert link.connected
        nursery.cancel_scope.cancel()


async def test_a_version_that_does_not_know_the_question_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("repl_broker.transport.THERE", "fail")  # it is refused
    a, b = Node("a", ask_seconds=0.05, absence_seconds=5), Node("b", ask_seconds=60)
    async with running(a, b):
        link = a.transport._links["b"]
        await until(lambda: link._number >= 3)
        assert a.transport.is_connected("b")
        assert not a.unreachable


async def test_one_with_other_data_is_no_twin_of_the_node_whose_name_it_has() -> None:
    """Of one that lost its data, and asks to join, something else is to be said."""
    first, anew, b = Node("a"), Node("a", incarnation="anew"), Node("b")
    async with running(first, b), living(anew, {}):
        await connected(first, "b")
        assert await anew.transport.call_address(b.address, "join", 1, seconds=10)
        assert not anew.transport.had_twin


async def test_who_is_met_says_which_process_it_is_and_a_leader_tells_a_copy_by_it() -> None:
    first, copy, b = Node("a"), Node("a"), Node("b")
    async with running(first, b), living(copy, {}):
        await connected(first, "b")
        _, _, process = await b.transport.meet(first.address, "who", None, seconds=10)
        assert await b.transport.find_twin("a", process, "there") is None
        twin = await b.transport.find_twin("a", copy.transport._process, "there")
        assert twin is not None
        assert "since later, at there" in twin
        assert b.transport.is_heard("a")
        assert not b.transport.is_heard("c")
