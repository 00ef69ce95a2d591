"""Who is let in: rates of clients, publishes under way, memory for bodies."""

from __future__ import annotations

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from repl_broker.admission import Admission, Bodies, Rate, address_key, client_of
from repl_broker.config import LimitsConfig
from repl_broker.errors import RequestError


class Time:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("<local>", "<local>"),
    ],
)
def test_an_address_is_a_client_and_with_ipv6_its_network_is(host: str, key: str) -> None:
    assert address_key(host) == key


def test_a_connection_is_of_the_client_at_its_other_end() -> None:
    assert client_of("192.0.2.7:4080") == "192.0.2.7"
    assert client_of("[2001:db8:1:2:3::1]:4080") == "2001:db8:1:2::/64"
    assert client_of("unknown") == ""


def test_a_burst_is_taken_at_once_and_then_the_rate() -> None:
    time = Time()
    rate = Rate(2, 3, clock=time)
    assert [rate.take("a") for _ in range(3)] == [0, 0, 0]
    assert rate.take("a") == 0.5
    assert rate.take("b") == 0, "another client's are its own"
    time.now += 0.25
    assert rate.take("a") == 0.25
    time.now += 0.25
    assert rate.take("a") == 0
    assert rate.take("a") > 0
    time.now += 100
    assert [rate.take("a") > 0 for _ in range(4)] == [False] * 3 + [True]


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.lists(st.floats(0, 0.5), min_size=1, max_size=200),
)
def test_no_client_gets_more_than_its_burst_and_its_rate(
    per_second: int, burst: int, pauses: list[float]
) -> None:
    time = Time()
    rate = Rate(per_second, burst, clock=time)
    taken: list[float] = []
    for pause in pauses:
        time.now += pause
        wait = rate.take("a")
        if wait:
            assert 0 < wait <= 1 / per_second + 1e-6
        else:
            taken.append(time.now)
        for start in taken:
            since = sum(at >= start for at in taken)
            assert since <= burst + (time.now - start) * per_second + 1e-6


def test_the_table_of_clients_is_bounded_and_forgets_who_was_idle_for_longest() -> None:
    rate = Rate(1, 1, clock=Time(), clients_max=3)
    for client in ("a", "b", "a", "c", "d"):
        rate.take(client)
    assert len(rate) == 3
    assert rate.take("d") > 0
    assert rate.take("a") == 0, "it was forgotten"


def refused(call: object, *arguments: object) -> RequestError:
    assert callable(call)
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    return caught.value


def test_a_refusal_says_when_to_come_back_and_not_the_same_to_all() -> None:
    limits = LimitsConfig(publishes_per_second=1, publish_burst=10)
    admission = Admission(limits, clock=Time(), randomness=random.Random(1))
    for _ in range(10):
        admission.check_publish("a")
    told = [refused(admission.check_publish, "a") for _ in range(200)]
    assert {error.code for error in told} == {"rate_limited"}
    assert "[limits] publishes_per_second" in told[0].detail
    assert {error.retry_after for error in told} == {2, 3, 4}
    assert admission.statistics().rate_limited == 200


def test_waits_are_spread_over_as_long_again() -> None:
    admission = Admission(LimitsConfig(), randomness=random.Random(1))
    waits = {admission._spread(10) for _ in range(1000)}
    assert waits == set(range(11, 21))


def test_without_a_rate_nobody_is_refused_and_an_unknown_address_is_held_to_it_too() -> None:
    free = Admission(LimitsConfig(), clock=Time())
    for _ in range(10_000):
        free.check_publish("a")
        free.check_subscribe("a")
    tight = Admission(LimitsConfig(publishes_per_second=1, publish_burst=1), clock=Time())
    tight.check_publish("")
    with pytest.raises(RequestError, match="publishes_per_second"):
        tight.check_publish("")


def test_subscribes_have_a_rate_of_their_own() -> None:
    admission = Admission(LimitsConfig(subscribes_per_second=1, subscribe_burst=1), clock=Time())
    admission.check_publish("a")
    admission.check_subscribe("a")
    assert refused(admission.check_subscribe, "a").code == "rate_limited"
    admission.check_publish("a")


def test_reads_have_a_rate_of_their_own() -> None:
    admission = Admission(LimitsConfig(reads_per_second=1, read_burst=2), clock=Time())
    admission.check_read("a")
    admission.check_read("a")
    assert refused(admission.check_read, "a").code == "rate_limited"
    admission.check_read("b")
    admission.check_publish("a")
    admission.reload(LimitsConfig())
    admission.check_read("a")


def test_other_rates_hold_from_the_moment_they_are_loaded() -> None:
    admission = Admission(LimitsConfig(), clock=Time())
    admission.reload(LimitsConfig(publishes_per_second=1, publish_burst=1))
    admission.check_publish("a")
    refused(admission.check_publish, "a")
    admission.reload(LimitsConfig())
    admission.check_publish("a")


async def test_the_clock_is_trios(autojump_clock: MockClock) -> None:
    admission = Admission(LimitsConfig(publishes_per_second=1, publish_burst=1))
    admission.check_publish("a")
    refused(admission.check_publish, "a")
    await trio.sleep(1)
    admission.check_publish("a")


def test_publishes_under_way_are_bounded_and_come_free_again() -> None:
    admission = Admission(LimitsConfig(publishes_under_way=2))
    admission.begin_publish("")
    admission.begin_publish("")
    error = refused(admission.begin_publish, "")
    assert (error.code, "publishes_under_way" in error.detail) == ("overloaded", True)
    assert 1 <= (error.retry_after or 0) <= 3
    admission.end_publish("")
    admission.begin_publish("")
    assert admission.statistics()[1:3] == (1, 2)


def test_bodies_under_way_are_bounded_together_and_come_free_again() -> None:
    admission = Admission(LimitsConfig(requests_bytes=100))
    with admission.bodies("") as first:
        first.grow(40)
        first.grow(30)  # of what is held already
        with admission.bodies("") as second:
            second.grow(60)
            assert refused(second.grow, 61).code == "overloaded"
            assert admission.statistics().requests_bytes == 100
        assert admission.statistics().requests_bytes == 40
        assert isinstance(first, Bodies)
    assert admission.statistics().requests_bytes == 0


def test_one_client_has_half_of_what_is_under_way_at_most() -> None:
    admission = Admission(LimitsConfig(publishes_under_way=10))
    for _ in range(5):
        admission.begin_publish("a")
    error = refused(admission.begin_publish, "a")
    assert (error.code, "half of [limits] publishes_under_way" in error.detail) == (
        "overloaded",
        True,
    )
    for _ in range(4):
        admission.begin_publish("b")
    admission.begin_publish("")
    assert refused(admission.begin_publish, "c").code == "overloaded", "there are ten"
    for share in ("a",) * 5 + ("b",) * 4 + ("",):
        admission.end_publish(share)
    assert admission.statistics().publishes_under_way == 0
    assert not admission._shares.publishes, "nobody who has nothing is remembered"


def test_one_client_has_half_of_the_memory_for_bodies_at_most() -> None:
    admission = Admission(LimitsConfig(requests_bytes=100, batch_bytes=20))
    with admission.bodies("a") as first, admission.bodies("b") as other:
        first.grow(50)
        with admission.bodies("a") as second:
            assert "half of [limits] requests_bytes" in refused(second.grow, 1).detail
        other.grow(50)
    with admission.bodies("") as trusted:
        trusted.grow(100)
    assert admission.statistics().requests_bytes == 0
    assert not admission._shares.bytes


def test_a_batch_of_full_size_finds_room_in_a_share() -> None:
    admission = Admission(LimitsConfig(requests_bytes=100, batch_bytes=90))
    with admission.bodies("a") as only:
        only.grow(90)
        assert refused(only.grow, 91).code == "overloaded"
