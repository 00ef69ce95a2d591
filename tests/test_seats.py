"""How many streams a client has open, and that each of them gives its seat back."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from repl_broker.errors import RequestError
from repl_broker.seats import Seat, Seats


class OneLease:
    """Notes what becomes of it."""

    def __init__(self) -> None:
        self.ends_at = 12.5
        self.seen: list[str] = []

    def begin(self, dismiss: Callable[[str], None]) -> None:
        self.seen.append("begin")

    def end(self) -> None:
        self.seen.append("end")


def test_a_client_has_as_many_seats_as_its_share_and_another_its_own() -> None:
    seats = Seats()
    taken = [seats.take("ann", 2, None) for _ in range(2)]
    with pytest.raises(RequestError, match=r"client, 'ann', .* is 2 .* 2 open.* raise") as caught:
        seats.take("ann", 2, None)
    assert (caught.value.code, caught.value.status) == ("too_many_streams", 429)
    other = seats.take("bob", 2, None)
    taken.pop().end()
    seats.take("ann", 2, None).end()
    assert len(seats) == 2
    other.end()
    taken.pop().end()
    assert len(seats) == 0


def test_a_seat_is_given_back_once() -> None:
    seats = Seats()
    first, second = seats.take("ann", 2, None), seats.take("ann", 2, None)
    first.end()
    first.end()
    del first
    gc.collect()
    with pytest.raises(RequestError):
        seats.take("ann", 1, None)
    second.end()
    assert len(seats) == 0


def test_a_stream_that_never_begins_gives_its_seat_back() -> None:
    seats = Seats()
    seat: Seat | None = seats.take("ann", 1, OneLease())
    assert seat is not None
    assert len(seats) == 1
    seat = None
    assert len(seats) == 0


def test_a_seat_is_the_lease_that_it_goes_with() -> None:
    lease = OneLease()
    seat = Seats().take("ann", 1, lease)
    seat.begin(lambda reason: None)
    assert seat.ends_at == 12.5
    seat.end()
    assert lease.seen == ["begin", "end"]
    assert Seats().take("ann", 1, None).ends_at == float("inf")
