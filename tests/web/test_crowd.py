"""One address never keeps another out, whatever it does with the places that it has."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from repl_broker.config import Config
from repl_broker.web.crowd import ADDRESSES_MAX, LEAVING_MAX, LOOKS_MAX, Crowd, Place
from repl_broker.web.door import Door
from tests.web.doors import Served, publish, serving
from tests.web.test_door import Client, connect, open_door, until
from tests.web.test_limits import answers, assert_healthy, metric
from tests.web.test_streams import get

both_ways = pytest.mark.parametrize("in_place", [True, False], ids=["door", "Quart"])
PLACES = 6
CROWD, PROXY = "127.0.0.2", "127.0.0.3"


class OneGuest:
    """A connection as the crowd sees it."""

    def __init__(
        self, since: float | None = 0.0, *, waits: bool = False, reads: bool = False
    ) -> None:
        self.rests_since = since
        self.waits_for_client = waits
        self.only_reads = reads
        self.became = ""

    def close_if_idle(self) -> None:
        self.became = "closed"

    def cut_off(self) -> None:
        self.became = "cut off"

    def finish(self) -> None:
        self.became = "finished"


def enter(crowd: Crowd, address: str, guest: OneGuest, *, trusted: bool = False) -> Place:
    place = crowd.enter(address, trusted=trusted)
    place.guest = guest
    return place


def crowd_of(**numbers: int) -> tuple[Crowd, dict[str, list[OneGuest]]]:
    """Connections that rest, by address."""
    crowd, guests = Crowd(), dict[str, list[OneGuest]]()
    for address, number in numbers.items():
        guests[address] = [OneGuest() for _ in range(number)]
        for guest in guests[address]:
            enter(crowd, address, guest)
    return crowd, guests


def ended(guests: list[OneGuest]) -> list[int]:
    return [number for number, guest in enumerate(guests) if guest.became]


def test_the_one_that_rests_for_longest_goes_of_the_address_that_has_most() -> None:
    crowd, guests = crowd_of(few=1, many=3)
    places = [*crowd._rows["many"].connections]
    places[0].rest()
    assert crowd.make_room("new", 1.0, 1.0)
    assert (ended(guests["many"]), ended(guests["few"])) == ([1], [])
    assert guests["many"][1].became == "closed"
    assert crowd.counts() == {"few": 1, "many": 2}


def test_one_on_which_a_request_may_be_on_its_way_does_not_go() -> None:
    crowd, guests = crowd_of(many=3)
    guests["many"][0].rests_since = None
    guests["many"][1].rests_since = 0.5
    guests["many"][2].rests_since = 0.5
    assert not crowd.make_room("many", 1.4, 1.0)
    assert ended(guests["many"]) == []
    assert crowd.make_room("many", 1.5, 1.0)
    assert ended(guests["many"]) == [1]


def test_whoever_has_most_does_not_get_the_places_of_those_who_have_less() -> None:
    crowd, guests = crowd_of(few=2)
    for _ in range(4):
        enter(crowd, "many", OneGuest(None))
    assert not crowd.make_room("many", 9.0, 1.0)
    assert ended(guests["few"]) == []


def test_what_waits_for_its_client_is_cut_off_only_where_there_is_more_than_the_newcomer_has() -> (
    None
):
    crowd = Crowd()
    slow = [OneGuest(None, waits=True) for _ in range(2)]
    for guest in slow:
        enter(crowd, "slow", guest)
    assert crowd.make_room("new", 0.0, 1.0)
    assert [guest.became for guest in slow] == ["cut off", ""]
    assert not crowd.make_room("new", 0.0, 1.0)  # one each would be no more than fair


def test_a_request_that_may_change_something_is_never_cut_off_but_ends_its_connection() -> None:
    crowd = Crowd()
    busy = [OneGuest(None) for _ in range(LEAVING_MAX + 9)]
    for guest in busy:
        enter(crowd, "busy", guest)
    places = [*crowd._rows["busy"].connections]
    for _ in range(LEAVING_MAX):
        assert crowd.make_room("new", 0.0, 1.0)
    gone = [guest for guest in busy if guest.became]
    assert [guest.became for guest in gone] == ["finished"] * LEAVING_MAX
    assert crowd.counts() == {"busy": 9}
    assert not crowd.make_room("new", 0.0, 1.0)  # those above the number are few
    gone[5].waits_for_client = True  # it has its answer, and does not take it
    assert crowd.make_room("new", 0.0, 1.0)
    assert (gone[5].became, len(crowd), len(crowd.leaving)) == ("cut off", 8, LEAVING_MAX)
    for place in places:
        place.leave()
    assert (crowd.counts(), crowd.leaving, crowd._by_count) == ({}, {}, {})


def test_what_waits_for_its_client_is_found_among_those_at_work() -> None:
    crowd = Crowd()
    for _ in range(LOOKS_MAX + 9):
        enter(crowd, "busy", OneGuest(None))
    late = OneGuest(None, waits=True)
    enter(crowd, "busy", late)
    for _ in range(3):  # each time it is looked on from where it was left
        assert crowd.make_room("new", 0.0, 1.0)
    assert late.became == "cut off"


def test_a_read_that_the_node_works_at_goes_when_nothing_waits() -> None:
    crowd = Crowd()
    reading = [OneGuest(None, reads=True) for _ in range(3)]
    writing = OneGuest(None)
    for guest in (writing, *reading):
        enter(crowd, "busy", guest)
    assert crowd.make_room("new", 0.0, 1.0)
    assert sorted(guest.became for guest in reading) == ["", "", "cut off"]
    assert writing.became == ""


def test_a_proxys_row_is_its_own_and_its_requests_count_for_their_clients() -> None:
    crowd = Crowd()
    waiting = [OneGuest(None, waits=True) for _ in range(9)]
    places = [enter(crowd, "proxy", guest, trusted=True) for guest in waiting]
    assert not crowd.make_room("new", 0.0, 1.0)  # whose they are is not known yet
    for place in places:
        place.count_for("greedy")
    enter(crowd, "proxy", OneGuest(None, waits=True), trusted=True)
    assert crowd.counts() == {"greedy": 9, "proxy": 1}
    assert crowd.make_room("new", 0.0, 1.0)
    assert [guest.became for guest in waiting] == ["cut off"] + [""] * 8
    for place in places[1:]:
        place.count_for()
    assert crowd.counts() == {"proxy": 9}
    assert not crowd.make_room("new", 0.0, 1.0)


def test_proxies_do_not_hide_from_a_newcomer_whoever_has_most_beside_them() -> None:
    crowd = Crowd()
    for number in range(ADDRESSES_MAX):
        for _ in range(20):
            enter(crowd, f"proxy{number}", OneGuest(None, waits=True), trusted=True)
    slow = OneGuest(None, waits=True)
    enter(crowd, "greedy", slow)
    for _ in range(9):
        enter(crowd, "greedy", OneGuest(None, waits=True))
    assert crowd.make_room("new", 0.0, 1.0)
    assert slow.became == "cut off"


def test_of_streams_the_latest_goes_and_only_when_nothing_rests() -> None:
    crowd, guests = crowd_of(many=1)
    gone: list[int] = []
    for number in range(3):
        place = enter(crowd, "many", OneGuest(None))
        place.become_stream(lambda number=number: gone.append(number))  # type: ignore[misc]
    for _ in range(3):
        assert crowd.make_room("new", 9.0, 1.0)
    assert (ended(guests["many"]), gone) == ([0], [2, 1])
    assert not crowd.make_room("new", 9.0, 1.0)


def test_a_proxy_loses_what_rests_and_nothing_else_and_its_streams_count_for_their_clients() -> (
    None
):
    crowd = Crowd()
    resting, slow = OneGuest(), OneGuest(None, waits=True)
    for guest in (resting, slow):
        enter(crowd, "proxy", guest, trusted=True)
    gone: list[int] = []
    for number in range(12):
        place = enter(crowd, "proxy", OneGuest(None), trusted=True)
        place.count_for("greedy" if number else "modest")
        place.become_stream(lambda number=number: gone.append(number))  # type: ignore[misc]
    assert crowd.counts() == {"proxy": 2, "modest": 1, "greedy": 11}
    assert crowd.make_room("proxy", 9.0, 1.0, trusted=True)
    assert (resting.became, gone) == ("closed", [])  # its own place rests, and costs nobody
    assert crowd.make_room("proxy", 9.0, 1.0, trusted=True)
    assert (slow.became, gone) == ("", [11])


def test_a_place_is_left_once_and_nothing_is_kept_of_who_left() -> None:
    crowd, _ = crowd_of(one=1)
    place = enter(crowd, "other", OneGuest())
    place.leave()
    place.leave()
    place.rest()
    place.count_for("else")
    place.become_stream(lambda: None)
    assert (len(crowd), crowd.counts()) == (1, {"one": 1})
    assert crowd.make_room("x", 9.0, 1.0)
    assert (len(crowd), crowd.counts(), crowd._by_count) == (0, {}, {})
    assert not crowd.make_room("x", 9.0, 1.0)


# --- whole doors ---

HEAD = b"POST /v1/topics/chat/messages HTTP/1.1\r\nHost: localhost\r\n"
OCCUPATIONS = {
    "says nothing": b"",
    "rests": publish(),
    "sends half a head": HEAD,
    "sends half a body": HEAD + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n",
    "sends half a body of another call": b"PUT /v1/topics/a HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n",
    "sends half a long body": b"PUT /v1/topics/a HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n",
    "sends half a chunk": HEAD
    + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n",
    "streams": get("/v1/events?topic=chat"),
}


async def occupy(stack: AsyncExitStack, served: Served, request: bytes, source: str) -> Client:
    client = await stack.enter_async_context(connect(served.door, source=source))
    await client.send(request)
    if request == OCCUPATIONS["rests"]:
        assert (await client.receive_answer()).status == 201
    elif request.startswith(b"GET /v1/events"):
        await client._read_until(b"event: subscribed")
    return client


@both_ways
@pytest.mark.parametrize("request_of_crowd", OCCUPATIONS.values(), ids=OCCUPATIONS)
async def test_a_newcomer_gets_in_whatever_another_address_does_with_all_places(
    in_place: bool, request_of_crowd: bytes
) -> None:
    async with (
        serving(in_place=in_place, connections_max=PLACES, settled_seconds=0) as served,
        AsyncExitStack() as stack,
    ):
        for number in range(PLACES):
            await occupy(stack, served, request_of_crowd, CROWD)
            await until(lambda n=number: served.door.connections == n + 1)  # type: ignore[misc]
        async with connect(served.door) as newcomer:
            assert await answers(newcomer, publish()) == [(201, "")]
            async with connect(served.door) as reader:
                await reader.send(get("/v1/events?topic=chat"))
                await reader._read_until(b"event: subscribed")
        assert metric(served, "connections_refused_total") == 0
        assert metric(served, "connections_ended_for_others_total") == 2
        assert metric(served, "connections_failed_total") == 0


@both_ways
async def test_a_stream_that_makes_room_is_told_to_come_back(in_place: bool) -> None:
    async with (
        serving(in_place=in_place, connections_max=2, settled_seconds=0) as served,
        AsyncExitStack() as stack,
    ):
        readers = [await occupy(stack, served, OCCUPATIONS["streams"], CROWD) for _ in range(2)]
        async with connect(served.door) as newcomer:
            assert await answers(newcomer, publish()) == [(201, "")]
            if in_place:  # of the others the kernel drops what is on its way
                said = await readers[1].receive_end()
                assert b'event: goodbye\ndata: {"reason":"making_room"}' in said
            # Its own address has as much as another: it is not taken in at the cost of that.
            async with connect(served.door, source=CROWD) as again:
                refusal = await again.receive_answer()
                assert (refusal.status, refusal.code) == (429, "too_many_connections")


@both_ways
async def test_an_address_replaces_its_own_connections_that_rest(in_place: bool) -> None:
    async with (
        serving(in_place=in_place, connections_max=2, settled_seconds=0) as served,
        AsyncExitStack() as stack,
    ):
        first, second = [await occupy(stack, served, publish(), CROWD) for _ in range(2)]
        await occupy(stack, served, publish(), CROWD)
        assert await first.receive_end() == b""
        assert await answers(second, publish()) == [(201, "")]


@both_ways
async def test_a_proxy_has_no_share_and_a_client_behind_it_has(in_place: bool) -> None:
    config = Config()
    config = replace(config, http=replace(config.http, trusted_proxies=(PROXY,)))
    async with (
        serving(
            in_place=in_place,
            config=config,
            connections_max=20,
            connections_per_address=2,
            settled_seconds=0,
        ) as served,
        AsyncExitStack() as stack,
    ):
        stream = get("/v1/events?topic=chat", "X-Forwarded-For: 10.0.0.1, 192.0.2.7")
        for _ in range(19):
            await occupy(stack, served, stream, PROXY)
        modest = get("/v1/events?topic=chat", "X-Forwarded-For: 192.0.2.7, 192.0.2.8")
        kept = await occupy(stack, served, modest, PROXY)
        assert served.door._crowd.counts() == {"192.0.2.7": 19, "192.0.2.8": 1}
        await occupy(stack, served, publish(), PROXY)
        assert served.door._crowd.counts() == {PROXY: 1, "192.0.2.7": 18, "192.0.2.8": 1}
        await kept._read_until(b"caught-up" if b"caught-up" in kept.buffer else b"subscribed")


# What a client of a proxy can do with a request: its head, and what follows that.
THROUGH = "X-Forwarded-For: 192.0.2.7\r\n\r\n"
JSON = "Host: localhost\r\nContent-Type: application/json\r\n"
PUT = "PUT /v1/topics/a HTTP/1.1\r\n" + JSON
PUBLISHES = "POST /v1/topics/chat/messages HTTP/1.1\r\n" + JSON
HOLDS = {
    "half a body": PUBLISHES + "Content-Length: 9\r\n" + THROUGH,
    "half a body of another call": PUT + "Content-Length: 99\r\n" + THROUGH,
    "half a long body": PUT + "Content-Length: 60000\r\n" + THROUGH,
    "half a chunk": PUBLISHES + "Transfer-Encoding: chunked\r\n" + THROUGH + "9\r\n",
    "the rest of a body that is refused": PUBLISHES + "Content-Length: 99999999\r\n" + THROUGH,
    "the rest of bad chunks": PUBLISHES + "Transfer-Encoding: chunked\r\n" + THROUGH + "x\r\n",
    "the rest of a head that is refused": PUT + " folded: 1\r\n" + THROUGH,
    "the rest of a method that is refused": "put" + PUT[3:] + "Content-Length: 9\r\n" + THROUGH,
}


def behind_proxy() -> Config:
    config = Config()
    return replace(config, http=replace(config.http, trusted_proxies=(PROXY,)))


@both_ways
@pytest.mark.parametrize("request_of_crowd", HOLDS.values(), ids=HOLDS)
async def test_a_client_behind_a_proxy_holds_its_own_places_whatever_it_does_with_them(
    in_place: bool, request_of_crowd: str
) -> None:
    async with (
        serving(
            in_place=in_place, config=behind_proxy(), connections_max=20, settled_seconds=0
        ) as served,
        AsyncExitStack() as stack,
    ):
        streams = [await occupy(stack, served, OCCUPATIONS["streams"], CROWD) for _ in range(6)]
        counts = served.door._crowd.counts
        for number in range(14):
            client = await stack.enter_async_context(connect(served.door, source=PROXY))
            await client.send(request_of_crowd.encode())
            await until(lambda n=number: counts().get("192.0.2.7") == n + 1)  # type: ignore[misc]
        other = publish(b"1", "X-Forwarded-For: 192.0.2.8")
        for source in (PROXY, "127.0.0.4"):
            newcomer = await stack.enter_async_context(connect(served.door, source=source))
            assert await answers(newcomer, other) == [(201, "")]
        assert counts() == {CROWD: 6, "192.0.2.7": 12, PROXY: 1, "127.0.0.4": 1}
        assert served.door._crowd.leaving == {}  # they are cut off, whatever they wait in
        assert all(b"goodbye" not in stream.buffer for stream in streams)
        assert metric(served, "connections_failed_total") == 0


@both_ways
async def test_a_place_is_the_proxys_again_when_the_request_is_answered(in_place: bool) -> None:
    async with (
        serving(in_place=in_place, config=behind_proxy()) as served,
        connect(served.door, source=PROXY) as proxy,
    ):
        counts = served.door._crowd.counts
        for host in ("192.0.2.7", "192.0.2.8"):
            request = publish(b"12", f"X-Forwarded-For: {host}")
            await proxy.send(request[:-1])
            await until(lambda host=host: counts() == {host: 1})  # type: ignore[misc]
            await proxy.send(request[-1:])
            assert (await proxy.receive_answer()).status == 201
            await until(lambda: counts() == {PROXY: 1})
        # Two that come together, of which the second names nobody.
        await proxy.send(publish(b"1", "X-Forwarded-For: 192.0.2.7") + publish(b"12")[:-1])
        assert (await proxy.receive_answer()).status == 201
        await until(lambda: counts() == {PROXY: 1})


class Held:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = trio.Event()

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        self.begun += 1
        with trio.CancelScope() as scope_of_client:
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    scope_of_client.cancel()

                nursery.start_soon(leave)
                await self.go_on.wait()
                nursery.cancel_scope.cancel()
        head = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": head})  # type: ignore[arg-type,typeddict-item]
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})


async def begin(stack: AsyncExitStack, door: Door, app: Held, method: str) -> Client:
    client = await stack.enter_async_context(connect(door, source=CROWD))
    begun = app.begun
    await client.send(f"{method} /x HTTP/1.1\r\nHost: [::1]\r\n\r\n".encode())
    await until(lambda: app.begun == begun + 1)
    return client


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_an_address_whose_reads_the_node_works_at_keeps_nobody_out(method: str) -> None:
    app = Held()
    async with open_door(app, connections_max=4) as door, AsyncExitStack() as stack:
        held = [await begin(stack, door, app, method) for _ in range(4)]
        async with connect(door) as newcomer:
            await newcomer.send(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            await until(lambda: app.begun == 5)
            assert door._crowd.leaving == {}  # one of them has been broken off
            app.go_on.set()
            assert (await newcomer.receive_answer()).status == 200
        assert door.statistics().refused == door.statistics().failed == 0
        assert len(held) == 4


async def test_an_address_whose_writes_the_node_works_at_keeps_nobody_out_and_loses_none() -> None:
    app = Held()
    async with open_door(app, connections_max=4) as door, AsyncExitStack() as stack:
        held = [await begin(stack, door, app, "DELETE") for _ in range(4)]
        async with connect(door) as newcomer:
            await newcomer.send(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            await until(lambda: app.begun == 5)
            (left,) = (place.guest for place in door._crowd.leaving)
            assert left is not None
            assert not left.waits_for_client
            for client in held:
                await client.send(b"GET /y HTTP/1.1\r\n")  # which is read in vain
            app.go_on.set()
            assert (await newcomer.receive_answer()).status == 200
        found = [await client.receive_answer() for client in held]
        assert [answer.status for answer in found] == [200] * 4
        assert [answer.headers.get("connection") for answer in found].count("close") == 1
        assert left.waits_for_client
        assert door.statistics().refused == door.statistics().failed == 0


async def test_streams_that_wait_for_their_turn_are_no_place_to_stay() -> None:
    long = get("/v1/events?" + "&".join(f"topic=chat{n}.{'x' * 40}" for n in range(100)))
    async with (
        serving(connections_max=4, settled_seconds=0) as served,
        AsyncExitStack() as stack,
    ):
        turns = served.node.broker.turnstile._gate
        async with turns:
            for number in range(4):
                client = await stack.enter_async_context(connect(served.door, source=CROWD))
                await client.send(long)
                await until(lambda n=number: turns.statistics().tasks_waiting == n + 1)  # type: ignore[misc]
            newcomer = await stack.enter_async_context(connect(served.door))
            assert await answers(newcomer, publish()) == [(201, "")]
            assert served.door._crowd.leaving == {}
        await until(lambda: len(served.fanout) == 3)
        assert served.door._crowd.counts() == {CROWD: 3, "127.0.0.1": 1}


@both_ways
async def test_after_a_crowd_the_door_is_as_before(in_place: bool) -> None:
    async with serving(in_place=in_place, settled_seconds=0) as served:
        async with AsyncExitStack() as stack:
            for request in OCCUPATIONS.values():
                await occupy(stack, served, request, CROWD)
        await until(lambda: not served.door.connections)
        assert served.door._crowd.counts() == {}
        await assert_healthy(served)
