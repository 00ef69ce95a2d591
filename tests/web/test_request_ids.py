"""A request's id: on every line that it causes and on its problem, whichever way it is answered."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from repl_broker import logs
from repl_broker.config import LogConfig
from repl_broker.trace import CURRENT
from tests.nodes import configured
from tests.web.doors import publish, serving
from tests.web.test_door import connect
from tests.web.test_streams import get

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01"
ACCESS_LOG = configured(http={"access_log": True})
BOTH_WAYS = pytest.mark.parametrize("in_place", [True, False])


class Lines:
    """What the node has logged as JSON, as it would on standard error."""

    def __init__(self) -> None:
        self._stream = io.StringIO()

    def configure(self) -> None:
        logs.configure(LogConfig(format="json"), self._stream)

    def of(self, text: str) -> list[dict[str, object]]:
        """Those whose message has ``text`` in it."""
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if text in line["message"]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    found = Lines()
    found.configure()
    yield found
    logging.captureWarnings(False)
    root.handlers[:], root.level, logging.raiseExceptions = before


@BOTH_WAYS
@pytest.mark.parametrize("field", [TRACEPARENT, TRACEPARENT.replace("t", "T", 1)])
async def test_an_access_line_has_the_trace_id_that_came(
    lines: Lines, in_place: bool, field: str
) -> None:
    async with serving(in_place=in_place, config=ACCESS_LOG) as served:
        async with connect(served.door) as client:
            await client.send(publish(b"1", field))
            answer = await client.receive_answer()
    assert answer.status == 201
    assert "x-request-id" not in answer.headers
    (line,) = lines.of("request method=POST")
    assert (line["request_id"], line["status"], line["method"]) == (TRACE, "201", "POST")


@BOTH_WAYS
async def test_a_problem_has_the_id_that_its_lines_have(lines: Lines, in_place: bool) -> None:
    bad = [publish(b"{", TRACEPARENT), publish(b"{"), get("/v1/events?topic=a..b", TRACEPARENT)]
    bad += [get("/v1/events?topic=a..b"), get("/nowhere", TRACEPARENT), get("/nowhere")]
    ids = []
    async with serving(in_place=in_place, config=ACCESS_LOG) as served:
        async with connect(served.door) as client:
            for request in bad:
                await client.send(request)
                answer = await client.receive_answer()
                assert answer.status in (400, 404)
                ids.append(answer.headers["x-request-id"])
    assert [line["request_id"] for line in lines.of("request method=")] == ids
    assert (ids[0], ids[2], ids[4]) == (TRACE, TRACE, TRACE)
    made = {ids[1], ids[3], ids[5]}
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


@BOTH_WAYS
async def test_the_traceback_of_an_error_has_the_id_of_the_request(
    lines: Lines, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(in_place=in_place) as served:
        monkeypatch.setattr(served.node.broker, "_propose", _fail)
        async with connect(served.door) as client:
            await client.send(publish(b"1", TRACEPARENT))
            answer = await client.receive_answer()
            await client.send(publish(b"1"))
            second = await client.receive_answer()
    assert (answer.status, answer.headers["x-request-id"]) == (500, TRACE)
    assert [line["request_id"] for line in lines.of("request failed")] == [
        TRACE,
        second.headers["x-request-id"],
    ]


@BOTH_WAYS
async def test_the_line_of_a_stream_that_ends_has_its_id(lines: Lines, in_place: bool) -> None:
    async with serving(in_place=in_place, config=ACCESS_LOG) as served:
        for field in (TRACEPARENT, "X-No: traceparent"):
            async with connect(served.door) as client:
                await client.send(get("/v1/events?topic=chat", field))
                await client._read_until(b"event: subscribed")
        with trio.fail_after(5):
            while len(lines.of("path=/v1/events")) < 2:
                await wait_all_tasks_blocked(0.01)
    first, second = (line["request_id"] for line in lines.of("path=/v1/events"))
    assert first == TRACE
    assert isinstance(second, str)
    assert re.fullmatch("[0-9a-f]{32}", second)
    assert second != TRACE


@BOTH_WAYS
@pytest.mark.parametrize(
    "field",
    [
        f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01 forged=1",
        f"traceparent: 00-{TRACE[:-6]}\x1b[2J\xe9-00f067aa0ba902b7-01".replace("\x1b", "\t"),
        "traceparent: " + "f" * 5000,
        f"{TRACEPARENT}\r\n{TRACEPARENT}",
    ],
)
async def test_nothing_that_a_stranger_makes_up_gets_into_the_log(
    lines: Lines, in_place: bool, field: str
) -> None:
    async with serving(in_place=in_place, config=ACCESS_LOG) as served:
        async with connect(served.door) as client:
            await client.send(publish(b"{", field))
            answer = await client.receive_answer()
    (line,) = lines.of("request method=")
    assert answer.headers["x-request-id"] == line["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert line["request_id"] != TRACE


async def test_a_connection_that_goes_to_quart_and_back_mixes_no_ids(lines: Lines) -> None:
    async with serving(config=ACCESS_LOG) as served, connect(served.door) as client:
        await client.send(publish(b"{", TRACEPARENT))
        await client.receive_answer()
        await client.get("/healthz")
        await client.send(publish(b"{"))
        await client.receive_answer()
        assert served.asked == ["GET /healthz"]
    ids = [line["request_id"] for line in lines.of("request method=")]
    assert ids[0] == TRACE
    assert len(set(ids)) == 3


async def test_without_a_log_or_a_problem_no_id_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cost a publish a system call."""
    made = []
    monkeypatch.setattr("repl_broker.trace.token_hex", lambda size: made.append(size) or "0" * 32)
    async with serving() as served, connect(served.door) as client:
        await client.send(publish(b"1") + publish(b"2"))
        assert [(await client.receive_answer()).status for _ in range(2)] == [201, 201]
        assert made == []
        await client.send(publish(b"{"))
        assert (await client.receive_answer()).headers["x-request-id"] == "0" * 32
        assert made == [16]


async def test_what_the_log_does_for_many_is_held_against_none(lines: Lines) -> None:
    """A publish may be what wakes the log; a change of leader is not its doing."""
    async with serving() as served:
        replica, seen = served.node.replica, []

        def applied(*_: object) -> None:
            seen.append(CURRENT.get())

        replica._on_applied = applied
        async with connect(served.door) as client:
            await client.send(publish(b"1", TRACEPARENT))
            assert (await client.receive_answer()).status == 201
    assert seen == [None]


async def _fail(*_: object) -> None:
    raise ZeroDivisionError("inner")
