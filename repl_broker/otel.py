"""Traces of publishes, for OpenTelemetry: publish → propose → commit → deliver.

    publish     the request, from its body to the answer; its parent is the client's span
    ├ propose   until the command has its place in the log; it waits for those before it
    ├ commit    until a majority has it on disk and it is applied here
    └ deliver   until the streams of this node that are level have it; one for each set of filters

Only this node's part is traced: a follower that has the leader append the command
sees that as ``propose``, and what other nodes deliver is in no trace, because the
log does not carry one. Streams that lag, and those under TLS, are not in ``deliver``.

Spans are made when their ends are known, from times that were noted on the way.
The SDK queues them, within a bound, and a thread of its own sends them. When the
collector is away spans are lost, and nothing else; the log says so once.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

import trio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)

from repl_broker import __version__
from repl_broker.access import Access, Asking
from repl_broker.broker import Broker, Receipt, SpanStatistics
from repl_broker.command import Command
from repl_broker.config import Config
from repl_broker.errors import RequestError
from repl_broker.hub import Batch, Hub
from repl_broker.members import Members
from repl_broker.replica import Replica
from repl_broker.room import Room
from repl_broker.state import Outcome, Published
from repl_broker.trace import CURRENT, Parent, current_id

__all__ = ["TracedBroker", "Tracing", "open_tracing"]

log = logging.getLogger(__name__)

EXPORT_SECONDS_MAX: Final = 5.0  # for one batch, retries included
CLOSE_SECONDS_MAX: Final = 2.0  # for what is queued when the node stops
DELIVERIES_MAX: Final = 64  # that are waited for at one time
DELIVERY_SECONDS_MAX: Final = 5.0
TOPIC_CHARACTERS_MAX: Final = 255

_PUBLISHING: Final[ContextVar[_Publish | None]] = ContextVar("repl_broker.publishing", default=None)


def open_tracing(config: Config) -> Tracing:
    """Trace to the collector of the configuration, or of the standard variables."""
    base = config.tracing.endpoint
    endpoint = None if base is None else f"{base.rstrip('/')}/v1/traces"  # None: the variables'
    exporter = _Exporter(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS_MAX))
    tracing = Tracing(config, BatchSpanProcessor(exporter), exporter)
    log.info("traces publishes endpoint=%s", exporter.endpoint)
    return tracing


class Tracing:
    """Makes spans of what the node's broker and fan-out tell."""

    def __init__(
        self, config: Config, processor: SpanProcessor, exporter: _Exporter | None = None
    ) -> None:
        resource = Resource.create({"service.name": "repl-broker"}).merge(
            Resource({"service.version": __version__, "service.instance.id": config.node.id})
        )
        self._provider = TracerProvider(
            resource=resource, id_generator=_Ids(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._exporter = exporter
        self._tracer = self._provider.get_tracer("repl_broker", __version__)
        self._per_second = config.tracing.traces_per_second
        self._second = 0
        self._traced = 0  # in that second
        self._deliveries: deque[_Delivery] = deque()

    def broker(
        self,
        replica: Replica,
        hub: Hub,
        config: Config,
        members: Members | None = None,
        room: Room | None = None,
        access: Access | None = None,
    ) -> Broker:
        """A broker whose publishes are traced."""
        return TracedBroker(self, replica, hub, config, members, room, access)

    def statistics(self) -> SpanStatistics:
        return SpanStatistics() if self._exporter is None else self._exporter.statistics()

    async def close(self) -> None:
        """Send what is queued, for a moment; what a slow collector has not taken is lost."""
        with trio.move_on_after(CLOSE_SECONDS_MAX):
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)

    def begin(self, topic: str | None) -> _Publish | None:
        """A publish begins, unless it is not sampled, or enough others were in this second."""
        second = int(trio.current_time())
        if second != self._second:
            self._second, self._traced = second, 0
        if self._traced >= self._per_second:
            return None
        request = CURRENT.get()
        parent = None if request is None else request.parent
        publish = _Publish(self, self._tracer, parent, topic)
        if not publish.span.is_recording():
            return None
        self._traced += 1
        return publish

    def expect(self, delivery: _Delivery) -> None:
        """Have the fan-out's report of it become a span."""
        if len(self._deliveries) >= DELIVERIES_MAX:
            self._deliveries.popleft()
        self._deliveries.append(delivery)

    def flushed(self, batch: Batch, readers: int) -> None:
        """The fan-out has written ``batch`` to ``readers`` (Fanout.on_flushed)."""
        now = trio.current_time()
        while self._deliveries and now - self._deliveries[0].since > DELIVERY_SECONDS_MAX:
            self._deliveries.popleft()
        for delivery in self._deliveries:
            delivery.flushed(self._tracer, batch, readers, now)


class TracedBroker(Broker):
    """A Broker that traces what is published through it."""

    def __init__(
        self,
        tracing: Tracing,
        replica: Replica,
        hub: Hub,
        config: Config,
        members: Members | None = None,
        room: Room | None = None,
        access: Access | None = None,
    ) -> None:
        super().__init__(replica, hub, config, members, room, access)
        self._tracing = tracing
        self._propose = self._propose_traced

    async def publish(
        self, asking: Asking, topic: str, body: bytes, key: str | None = None
    ) -> Receipt:
        with self._traced(topic) as publish:
            return publish.done(await super().publish(asking, topic, body, key))

    async def publish_batch(
        self, asking: Asking, topic: str, body: bytes, key: str | None = None
    ) -> Receipt:
        with self._traced(topic) as publish:
            return publish.done(await super().publish_batch(asking, topic, body, key))

    async def publish_many(self, asking: Asking, body: bytes, key: str | None = None) -> Receipt:
        with self._traced(None) as publish:
            return publish.done(await super().publish_many(asking, body, key))

    @contextmanager
    def _traced(self, topic: str | None) -> Iterator[_Publish | _NotTraced]:
        publish = self._tracing.begin(topic)
        if publish is None:
            yield _NOT_TRACED
            return
        token = _PUBLISHING.set(publish)
        try:
            yield publish
        except BaseException as error:
            publish.failed(error)
            raise
        finally:
            _PUBLISHING.reset(token)
            publish.end()

    async def _propose_traced(self, command: Command) -> Outcome:
        publish = _PUBLISHING.get()
        if publish is not None:
            publish.proposed()
        return await self._replica.propose(command, publish)

    def _spans(self) -> SpanStatistics:
        return self._tracing.statistics()


class _NotTraced:
    def done(self, receipt: Receipt) -> Receipt:
        return receipt


_NOT_TRACED: Final = _NotTraced()


class _Publish:
    """One publish. Times are Trio's until they become a span's."""

    def __init__(
        self, tracing: Tracing, tracer: Tracer, parent: Parent | None, topic: str | None
    ) -> None:
        self._tracing = tracing
        self._tracer = tracer
        self._clock = _Clock(time.time_ns(), trio.current_time())
        self._proposed: float | None = None
        self._placed: float | None = None
        self._settled: float | None = None
        attributes = {"messaging.system": "repl_broker", "messaging.operation.name": "publish"}
        if topic is not None:
            attributes["messaging.destination.name"] = topic[:TOPIC_CHARACTERS_MAX]
        self.span: Span = tracer.start_span(
            "publish",
            _context_of(parent),
            SpanKind.SERVER,
            attributes,
            start_time=self._clock.wall_ns,
        )

    def proposed(self) -> None:
        self._proposed = trio.current_time()

    def placed(self, now: float) -> None:
        """It has its place in a log, which it may lose again (proposals.Watch)."""
        self._placed = now

    def settled(self, now: float, outcome: Outcome) -> None:
        """It is committed and applied here; the streams are not told yet (proposals.Watch)."""
        self._settled = now
        if isinstance(outcome, Published) and not outcome.replayed:
            last_seq = outcome.first_seq + outcome.count - 1
            delivery = _Delivery(self.span, self._clock, now, outcome.first_seq, last_seq)
            self._tracing.expect(delivery)

    def done(self, receipt: Receipt) -> Receipt:
        self.span.set_attribute("messaging.message.id", receipt.first_id)
        self.span.set_attribute("messaging.batch.message_count", receipt.count)
        return receipt

    def failed(self, error: BaseException) -> None:
        """What the client is told of; a fault of its own is none of the node's."""
        code = error.code if isinstance(error, RequestError) else type(error).__name__
        self.span.set_attribute("error.type", code)
        if not isinstance(error, RequestError) or error.status >= 500:
            self.span.set_status(Status(StatusCode.ERROR, code))

    def end(self) -> None:
        if self._proposed is not None and self._placed is not None:
            self._child("propose", self._proposed, self._placed)
            if self._settled is not None:
                self._child("commit", self._placed, self._settled)
        self.span.end(self._clock.at(trio.current_time()))

    def _child(self, name: str, began: float, ended: float) -> None:
        start, end = self._clock.at(began), self._clock.at(ended)
        _child(self._tracer, self.span, name, start, end)


class _Delivery(NamedTuple):
    """Messages that are applied, and about to be given to streams."""

    publish: Span
    clock: _Clock
    since: float
    first_seq: int
    last_seq: int

    def flushed(self, tracer: Tracer, batch: Batch, readers: int, now: float) -> None:
        """Make a span if ``batch`` holds the last of them that its streams follow."""
        at = bisect_left(batch.marks, 2 * self.first_seq)
        if at == len(batch.marks) or batch.marks[at] // 2 > self.last_seq:
            return
        start, end = self.clock.at(self.since), self.clock.at(now)
        kind, attributes = SpanKind.PRODUCER, {"repl_broker.streams": readers}
        _child(tracer, self.publish, "deliver", start, end, kind, attributes)


class _Clock(NamedTuple):
    """One moment by both clocks, so that the times of a trace follow each other as they did."""

    wall_ns: int  # since 1970
    trio_seconds: float

    def at(self, trio_seconds: float) -> int:
        return self.wall_ns + int((trio_seconds - self.trio_seconds) * 1e9)


def _child(
    tracer: Tracer,
    parent: Span,
    name: str,
    start_ns: int,
    end_ns: int,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, int] | None = None,
) -> None:
    context = trace.set_span_in_context(parent, Context())
    tracer.start_span(name, context, kind, attributes, start_time=start_ns).end(end_ns)


def _context_of(parent: Parent | None) -> Context:
    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    remote = SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags
    )
    return trace.set_span_in_context(NonRecordingSpan(remote), Context())


class _Ids(RandomIdGenerator):
    """A trace that begins here has the id that the request's lines in the log have."""

    def generate_trace_id(self) -> int:
        request_id = current_id()
        return int(request_id, 16) if request_id else super().generate_trace_id()


class _Exporter(SpanExporter):
    """Counts what is sent and what is lost, and logs when that changes. In the SDK's thread."""

    def __init__(self, inner: OTLPSpanExporter) -> None:
        self.endpoint = inner._endpoint
        self._inner = inner
        self._sent = 0
        self._lost = 0
        self._failing = False

    def statistics(self) -> SpanStatistics:
        return SpanStatistics(self._sent, self._lost)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception:
            log.debug("cannot send traces", exc_info=True)
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._sent += len(spans)
            if self._failing:
                log.info("traces are sent again endpoint=%s lost=%d", self.endpoint, self._lost)
        else:
            self._lost += len(spans)
            if not self._failing:
                log.warning(
                    "traces are lost: the collector does not take them endpoint=%s", self.endpoint
                )
        self._failing = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)
