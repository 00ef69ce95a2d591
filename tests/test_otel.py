"""Traces: what spans a publish makes, of what trace they are, and that they cost nothing else."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from trio.testing import MockClock

from repl_broker.broker import SpanStatistics
from repl_broker.config import Config
from repl_broker.errors import ConfigError, RequestError
from repl_broker.otel import DELIVERIES_MAX, Tracing, _Exporter
from repl_broker.trace import CURRENT, Request
from repl_broker.traces import asked_by, open_tracing
from tests.network import running_cluster
from tests.nodes import ANYONE, Node, configured, running_node
from tests.web.doors import Served, publish, serving
from tests.web.test_door import connect
from tests.web.test_streams import get

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"traceparent: 00-{TRACE}-{SPAN}-01"
BOTH_WAYS = pytest.mark.parametrize("in_place", [True, False])


class Traces:
    """A node's tracing, and the spans that it has made."""

    def __init__(self, config: Config | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(config or Config(), SimpleSpanProcessor(self.exporter))

    def make_broker(self, node: Node, config: Config) -> None:
        node.broker = self.tracing.broker(node.replica, node.hub, config)

    def spans(self) -> dict[str, ReadableSpan]:
        """By name; each at most once."""
        found = self.exporter.get_finished_spans()
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


@asynccontextmanager
async def traced(traces: Traces, *, in_place: bool = True) -> AsyncIterator[Served]:
    async with serving(in_place=in_place, prepare=traces.make_broker) as served:
        served.fanout.on_flushed = traces.tracing.flushed
        yield served


@BOTH_WAYS
async def test_a_publish_is_traced_from_the_request_to_the_streams(in_place: bool) -> None:
    traces = Traces()
    async with traced(traces, in_place=in_place) as served:
        reader = served.fanout  # streams are the fan-out's where they are opened in place
        async with connect(served.door) as listener, connect(served.door) as client:
            await listener.send(get("/v1/events?topic=chat"))
            await listener._read_until(b"event: subscribed")
            await client.send(publish(b'"secret"', TRACEPARENT))
            answer = await client.receive_answer()
            await listener._read_until(b'"secret"')
            assert len(reader) == int(in_place)
    spans = traces.spans()
    names = {"publish", "propose", "commit"} | ({"deliver"} if in_place else set())
    assert set(spans) == names
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    root = spans.pop("publish")
    assert root.parent is not None
    assert (f"{root.parent.span_id:016x}", root.kind) == (SPAN, SpanKind.SERVER)
    assert root.attributes == {
        "messaging.system": "repl_broker",
        "messaging.operation.name": "publish",
        "messaging.destination.name": "chat",
        "messaging.message.id": json.loads(answer.body)["id"],
        "messaging.batch.message_count": 1,
    }
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
    if in_place:
        assert spans["deliver"].attributes == {"repl_broker.streams": 1}
    assert "secret" not in "".join(span.to_json() for span in [root, *spans.values()])


@BOTH_WAYS
async def test_times_follow_each_other(in_place: bool) -> None:
    traces = Traces()
    async with traced(traces, in_place=in_place) as served, connect(served.door) as client:
        await client.send(publish(b"1"))
        await client.receive_answer()
    spans = traces.spans()
    times = [(spans[n].start_time, spans[n].end_time) for n in ("publish", "propose", "commit")]
    (began, ended), (proposed, placed), (also_placed, settled) = times
    assert placed == also_placed
    moments = [each for each in (began, proposed, placed, settled, ended) if each is not None]
    assert len(moments) == 5
    assert moments == sorted(moments)


async def test_a_trace_that_begins_here_has_the_id_of_the_request() -> None:
    traces = Traces()
    async with traced(traces) as served, connect(served.door) as client:
        await client.send(publish(b"{"))
        answer = await client.receive_answer()
    (root,) = traces.spans().values()
    assert root.parent is None
    assert f"{root.context.trace_id:032x}" == answer.headers["x-request-id"]
    assert root.attributes is not None
    assert root.attributes["error.type"] == "invalid_json"
    assert root.status.status_code is StatusCode.UNSET  # it is the client's


async def test_a_fault_of_the_node_is_an_error_of_the_span() -> None:
    traces = Traces()
    async with running_node() as node:
        traces.make_broker(node, Config())
        await node.replica.drain()
        with pytest.raises(RequestError, match="shutting down"):
            await node.broker.publish(ANYONE, "chat", b"1")
    (root,) = traces.spans().values()
    assert root.attributes is not None
    assert root.attributes["error.type"] == "shutting_down"
    assert root.status.status_code is StatusCode.ERROR


async def test_what_the_client_does_not_have_traced_is_not() -> None:
    traces = Traces()
    async with traced(traces) as served, connect(served.door) as client:
        await client.send(publish(b"1", TRACEPARENT[:-2] + "00"))
        assert (await client.receive_answer()).status == 201
    assert traces.spans() == {}


@pytest.mark.parametrize(("ratio", "count"), [("0", 0), ("1", 1)])
async def test_the_standard_variables_say_what_is_sampled(
    monkeypatch: pytest.MonkeyPatch, ratio: str, count: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    traces = Traces()
    async with traced(traces) as served, connect(served.door) as client:
        await client.send(publish(b"1"))
        assert (await client.receive_answer()).status == 201
    assert ("publish" in traces.spans()) == bool(count)


async def test_only_so_many_are_traced_in_a_second(autojump_clock: MockClock) -> None:
    """A stranger who asks for a trace with each publish costs the node no more than that."""
    config = configured(tracing={"traces_per_second": 3})
    traces = Traces(config)
    async with running_node() as node:
        traces.make_broker(node, config)
        await trio.sleep(1.5 - trio.current_time() % 1)
        for seconds, expected in ((0.0, 3), (1.0, 6)):
            await trio.sleep(seconds)
            for _ in range(10):
                CURRENT.set(Request(TRACEPARENT.removeprefix("traceparent: ")))
                await node.broker.publish(ANYONE, "chat", b"1")
            names = [span.name for span in traces.exporter.get_finished_spans()]
            assert names.count("publish") == expected
    assert node.broker.statistics().publishes == 20


async def test_batches_are_traced_as_one_and_delivered_once_for_each_set_of_filters() -> None:
    traces = Traces()
    lines = b'{"topic":"a","data":1}\n{"topic":"b","data":2}\n{"topic":"a","data":3}'
    async with traced(traces) as served:
        async with connect(served.door) as first, connect(served.door) as second:
            await first.send(get("/v1/events?topic=a"))
            await second.send(get("/v1/events?topic=b&topic=c"))
            for listener in (first, second):
                await listener._read_until(b"event: subscribed")
            await served.node.broker.publish_many(ANYONE, lines)
            await first._read_until(b'"data":3')
            await second._read_until(b'"data":2')
            await served.node.broker.publish(ANYONE, "z", b"0")  # which nobody follows
    found = traces.exporter.get_finished_spans()
    assert [span.name for span in found].count("publish") == 2
    delivered = [span for span in found if span.name == "deliver"]
    assert len(delivered) == 2
    (batch,) = (
        span
        for span in found
        if span.name == "publish" and (span.attributes or {})["messaging.batch.message_count"] == 3
    )
    assert {s.parent.span_id for s in delivered if s.parent} == {batch.context.span_id}


async def test_deliveries_that_never_come_are_not_waited_for_in_memory() -> None:
    traces = Traces(configured(tracing={"traces_per_second": 1000}))
    async with running_node() as node:
        traces.make_broker(node, configured(tracing={"traces_per_second": 1000}))
        for _ in range(DELIVERIES_MAX + 10):
            await node.broker.publish(ANYONE, "chat", b"1")
    assert len(traces.tracing._deliveries) == DELIVERIES_MAX


async def test_a_repeat_is_traced_and_delivers_nothing() -> None:
    traces = Traces()
    async with running_node() as node:
        traces.make_broker(node, Config())
        await node.broker.publish(ANYONE, "chat", b"1", "key")
        await node.broker.publish(ANYONE, "chat", b"1", "key")
    assert len(traces.tracing._deliveries) == 1
    names = [span.name for span in traces.exporter.get_finished_spans()]
    assert names.count("publish") == 2


async def test_a_span_ends_when_its_client_leaves() -> None:
    traces = Traces()
    async with running_node() as node:
        traces.make_broker(node, Config())
        node.gate.shut()
        with trio.move_on_after(0):
            await node.broker.publish(ANYONE, "chat", b"1")
    root = traces.spans()["publish"]
    assert root.attributes is not None
    assert root.attributes["error.type"] == "Cancelled"


# --- the collector ----------------------------------------------------------------------


class Collector(SpanExporter):
    """Takes what it gets, or not; or hangs until it is let go."""

    def __init__(self) -> None:
        self.endpoint = "http://collector.test/v1/traces"
        self._endpoint = self.endpoint
        self.result: SpanExportResult | Exception = SpanExportResult.SUCCESS
        self.let_go = threading.Event()
        self.let_go.set()
        self.asked = threading.Event()
        self.spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.let_go.wait(30)
        if isinstance(self.result, Exception):
            raise self.result
        self.spans += len(spans)
        return self.result


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.let_go.set()


def through(collector: Collector, config: Config | None = None) -> tuple[Tracing, _Exporter]:
    exporter = _Exporter(collector)  # type: ignore[arg-type]
    processor = BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000)
    return Tracing(config or Config(), processor, exporter), exporter


async def test_a_collector_that_hangs_holds_up_neither_publishes_nor_the_stop(
    collector: Collector, autojump_clock: MockClock
) -> None:
    collector.let_go.clear()
    config = configured(tracing={"traces_per_second": 10_000})
    tracing, _ = through(collector, config)
    async with running_node() as node:
        node.broker = tracing.broker(node.replica, node.hub, config)
        for number in range(1000):  # 3 spans each: more than the queue of 2,048 has room for
            assert (await node.broker.publish(ANYONE, "chat", b"1")).count == 1, number
        await trio.to_thread.run_sync(collector.asked.wait, 30)
        assert collector.spans == 0
        began = trio.current_time()
        autojump_clock.autojump_threshold = 0.05
        await tracing.close()
        assert trio.current_time() - began < 3
    assert node.broker.statistics().publishes == 1000


@pytest.mark.parametrize("result", [SpanExportResult.FAILURE, ConnectionError("refused")])
def test_lost_spans_are_counted_and_told_once(
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
    result: SpanExportResult | Exception,
) -> None:
    caplog.set_level(logging.INFO, "repl_broker.otel")
    _, exporter = through(collector)
    traces = Traces()
    span = traces.tracing._tracer.start_span("x")
    span.end()
    spans = traces.exporter.get_finished_spans()
    good = SpanExportResult.SUCCESS
    for each in (good, result, result, result, good, good):
        collector.result = each
        told = exporter.export(spans)
        assert told is (good if each is good else SpanExportResult.FAILURE)
    assert exporter.statistics() == SpanStatistics(sent=3, lost=3)
    assert [(r.levelname, r.getMessage().partition(" endpoint")[0]) for r in caplog.records] == [
        ("WARNING", "traces are lost: the collector does not take them"),
        ("INFO", "traces are sent again"),
    ]


async def test_what_is_queued_is_sent_at_the_stop_and_counted(collector: Collector) -> None:
    tracing, _ = through(collector)
    async with running_node() as node:
        node.broker = tracing.broker(node.replica, node.hub, Config())
        await node.broker.publish(ANYONE, "chat", b"1")
        await tracing.close()
        assert collector.spans == 3
        assert node.broker.statistics().spans == SpanStatistics(sent=3, lost=0)


# --- what turns it on -------------------------------------------------------------------


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
ON = configured(tracing={"endpoint": "http://127.0.0.1:4318"})


@pytest.mark.parametrize(
    ("config", "environ", "expected"),
    [
        (Config(), {}, None),
        (Config(), {ENDPOINT: ""}, None),
        (Config(), {"OTEL_SERVICE_NAME": "x"}, None),
        (ON, {}, "[tracing] endpoint"),
        (Config(), {ENDPOINT: "http://c"}, ENDPOINT),
        (Config(), {TRACES_ENDPOINT: "http://c"}, TRACES_ENDPOINT),
        (ON, {ENDPOINT: "http://c"}, "[tracing] endpoint"),
        (ON, {"OTEL_SDK_DISABLED": "true"}, None),
        (ON, {"OTEL_SDK_DISABLED": "false"}, "[tracing] endpoint"),
        (ON, {"OTEL_TRACES_EXPORTER": "none"}, None),
        (Config(), {ENDPOINT: "http://c", "OTEL_SDK_DISABLED": "TRUE"}, None),
    ],
)
def test_tracing_is_off_unless_something_asks_for_it(
    config: Config, environ: dict[str, str], expected: str | None
) -> None:
    assert asked_by(config, environ) == expected
    if expected is None:
        assert open_tracing(config, environ) is None


def test_without_the_extra_the_error_names_the_setting_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "repl_broker.otel")
    monkeypatch.delattr("repl_broker.otel")
    with pytest.raises(ConfigError) as raised:
        open_tracing(Config(), {ENDPOINT: "http://c"})
    assert ENDPOINT in str(raised.value)
    assert 'pip install "repl-broker[otel]"' in str(raised.value)


# --- a cluster --------------------------------------------------------------------------


async def test_on_a_follower_the_way_to_the_leader_is_in_propose(
    autojump_clock: MockClock,
) -> None:
    traces = Traces()
    async with running_cluster() as cluster:
        leader = await cluster.leader()
        follower = next(n for n in cluster.running.values() if n is not leader)
        broker = traces.tracing.broker(follower.replica, follower.hub, Config())
        receipt = await broker.publish(ANYONE, "chat", b"1")
    spans = traces.spans()
    assert {*spans} == {"publish", "propose", "commit"}
    assert (spans["publish"].attributes or {})["messaging.message.id"] == receipt.first_id
    assert len({span.context.trace_id for span in spans.values()}) == 1
