"""``/ui``: the dashboard's files, and the event stream that it lives on.

The page is made of files that the node serves itself; it asks no other host for
anything. ``/ui/feed`` is the page's own, and no part of the API: what is in it
may change from version to version, and the page comes with the node. The
page writes through ``/v1``, as any client does.

    event: hello    once: which node, and what its histogram's buckets are
    event: past     once, if asked for: figures of the last minutes
    event: sample   about once a second, and at once when the leader changes
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import trio
from msgspec.json import encode as encode_json
from quart import Response, request
from quart.wrappers.response import ResponseBody

from repl_broker import __version__, sse
from repl_broker.access import Lease
from repl_broker.broker import Broker
from repl_broker.config import Config
from repl_broker.errors import RequestError
from repl_broker.message import FilterSet, check_topic
from repl_broker.proposals import COMMIT_BUCKETS_SECONDS
from repl_broker.web.door import DoorStatistics
from repl_broker.web.guard import Guard, Right, asking
from repl_broker.web.parameters import Query, read_query
from repl_broker.web.sampler import PERIOD_SECONDS, SORTS, Sampler, Window
from repl_broker.web.statics import StaticFiles

__all__ = ["FOLDER", "HEADERS", "PATH", "Dashboard"]

PATH: Final = "/ui"
FOLDER: Final = Path(__file__).parent / "ui"
RETRY_MS: Final = 2000
FEEDS_MAX: Final = 64  # open at one time; each costs about 0.1 ms of CPU a second
ROWS_MAX: Final = 500
OFFSET_MAX: Final = 10_000_000
MATCH_CHARACTERS_MAX: Final = 255
STEP_SECONDS: Final = 0.25  # how soon a change of leaders shows
HEADERS: Final = {
    # Whatever a topic's name or a message says: nothing but our own files is run, and
    # nothing that is a string becomes HTML.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Dashboard:
    """``/ui`` and what is below it."""

    def __init__(
        self, broker: Broker, config: Config, door: Callable[[], DoorStatistics] | None
    ) -> None:
        none = DoorStatistics(0, 0, 0, 0)
        self.broker = broker
        self.sampler = Sampler(broker, door or (lambda: none), config.node.data_dir)
        self.run = secrets.token_hex(8)  # counters of another run began at zero again
        self.feeds = 0

    def register(self, guard: Guard) -> None:
        """Add the routes."""
        guard.route("GET", f"{PATH}/feed", Right.ADMIN, self.feed)
        StaticFiles(PATH, FOLDER, HEADERS).register(guard)

    async def feed(self) -> Response:
        """What the page shows, as it changes."""
        names = ("match", "sort", "offset", "limit", "topic", "past")
        query = read_query(request.query_string, names)
        window, topic = _window(query), query.get("topic", [""])[0]
        if topic:
            check_topic(topic)
        lease = self.broker.inspect(asking())
        if self.broker.draining:
            raise RequestError("shutting_down", "The node is shutting down; use another.")
        if self.feeds >= FEEDS_MAX:
            raise RequestError(
                "too_many_connections",
                f"{FEEDS_MAX} dashboards are open on this node; close one, or use another node.",
            )
        is_head = request.method == "HEAD"
        body = b"" if is_head else _Feed(self, window, topic, lease, past=_flag(query, "past"))
        response = Response(body, content_type="text/event-stream")
        if is_head:
            del response.headers["Content-Length"]
        response.headers["Cache-Control"] = "no-cache, no-transform"
        response.headers["X-Accel-Buffering"] = "no"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.timeout = None
        return response


class _Feed(ResponseBody):
    """The events of one viewer. It is no generator: those must not be left by cancellation."""

    def __init__(
        self, dashboard: Dashboard, window: Window, topic: str, lease: Lease | None, *, past: bool
    ) -> None:
        self._dashboard = dashboard
        self._broker = dashboard.broker
        self._window = window
        self._topic = topic
        self._lease = lease
        self._past = past
        self._number = -1  # of the last sample; -1 before the beginning
        self._leadership: tuple[int, str | None] = (0, None)

    async def __aenter__(self) -> AsyncIterator[bytes]:
        self._dashboard.feeds += 1
        if self._lease is not None:
            self._lease.begin(lambda reason: None)  # it is looked at now and then
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._dashboard.feeds -= 1
        if self._lease is not None:
            self._lease.end()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._number < 0:
            self._number = 0
            await trio.lowlevel.checkpoint()
            return self._hello()
        if self._number > 0:
            await self._wait()
        if self._is_over():
            raise StopAsyncIteration
        return await self._sample()

    async def _wait(self) -> None:
        """For a period, or until another leads or the node goes."""
        end = trio.current_time() + PERIOD_SECONDS
        while trio.current_time() < end:
            await trio.sleep(STEP_SECONDS)
            if self._is_over() or self._broker.leadership != self._leadership:
                return

    def _is_over(self) -> bool:
        return self._broker.draining or (self._lease is not None and self._lease.is_over)

    def _hello(self) -> bytes:
        dashboard = self._dashboard
        hello = {
            "run": dashboard.run,
            "node": self._broker.node_id,
            "version": __version__,
            "period_seconds": PERIOD_SECONDS,
            "commit_buckets_seconds": COMMIT_BUCKETS_SECONDS,
            "default_retention": self._broker.state.settings.retention,
        }
        data = sse.event("hello", "0", encode_json(hello), RETRY_MS)
        if self._past:
            data += sse.event("past", "0", encode_json(dashboard.sampler.past()))
        return data

    async def _sample(self) -> bytes:
        sampler = self._dashboard.sampler
        self._leadership = self._broker.leadership
        sample = await sampler.sample(self._number)
        self._number = sample.number
        content: dict[str, Any] = {
            "clock": sample.clock,
            "node": sample.node,
            "cluster": sample.cluster,
            "topics": await sampler.topics(self._window),
            "topic": sampler.topic(self._topic) if self._topic else None,
        }
        return sse.event("sample", str(sample.number), encode_json(content))


def _window(query: Query) -> Window:
    """Which topics are asked for. Raises ``invalid_parameter``, ``invalid_filter``."""
    match = query.get("match", [""])[0]
    if len(match) > MATCH_CHARACTERS_MAX:
        raise RequestError(
            "invalid_parameter",
            f"The query parameter 'match' has {len(match)} characters; "
            f"the limit is {MATCH_CHARACTERS_MAX}.",
        )
    if "*" in match or ">" in match:
        FilterSet([match])
    sort = query.get("sort", ["name"])[0]
    if sort.removeprefix("-") not in SORTS:
        raise RequestError(
            "invalid_parameter",
            f"The query parameter 'sort' is {sort[:64]!r}; give one of {', '.join(SORTS)}, "
            "with a '-' before it for the highest first.",
        )
    return Window(
        match,
        sort.removeprefix("-"),
        sort.startswith("-"),
        _number(query, "offset", 0, OFFSET_MAX),
        _number(query, "limit", 50, ROWS_MAX),
    )


def _number(query: Query, name: str, default: int, maximum: int) -> int:
    text = query.get(name, [str(default)])[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= maximum):
        raise RequestError(
            "invalid_parameter",
            f"The query parameter {name!r} is {text[:64]!r}; give a number, 0 to {maximum}.",
        )
    return int(text)


def _flag(query: Query, name: str) -> bool:
    return _number(query, name, 0, 1) == 1
