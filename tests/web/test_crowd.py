"""One address never keeps another out, whatever it does with the places that it has."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from repl_broker.config import Config
from repl_broker.web.crowd import LOOKS_MAX, Crowd, Place
from tests.web.doors import Served, publish, serving
from tests.web.test_door import Client, connect, until
from tests.web.test_limits import answers, assert_healthy, metric
from tests.web.test_streams import get

both_ways = pytest.mark.parametrize("in_place", [True, False], ids=["door", "Quart"])
PLACES = 6
CROWD, PROXY = "127.0.0.2", "127.0.0.3"


class OneGuest:
    """A connection as the crowd sees it."""

    def __init__(self, since: float | None = 0.0, *, waits: bool = False) -> None:
        self.rests_since = since
        self.waits_for_client = waits
        self.became = ""

    def close_if_idle(self) -> None:
        self.became = "closed"

    def cut_off(self) -> None:
        self.became = "cut off"


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


def test_a_request_that_the_node_works_at_is_never_cut_off() -> None:
    crowd = Crowd()
    for _ in range(LOOKS_MAX + 9):
        enter(crowd, "busy", OneGuest(None))
    assert not crowd.make_room("new", 0.0, 1.0)
    late = OneGuest(None, waits=True)
    enter(crowd, "busy", late)
    assert crowd.make_room("new", 0.0, 1.0)  # each time it is looked on from where it was left
    assert late.became == "cut off"


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


@both_ways
async def test_after_a_crowd_the_door_is_as_before(in_place: bool) -> None:
    async with serving(in_place=in_place, settled_seconds=0) as served:
        async with AsyncExitStack() as stack:
            for request in OCCUPATIONS.values():
                await occupy(stack, served, request, CROWD)
        await until(lambda: not served.door.connections)
        assert served.door._crowd.counts() == {}
        await assert_healthy(served)
