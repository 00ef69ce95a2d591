"""The dashboard's files and its feed; tests/browser/test_ui.py is about the page itself."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from html.parser import HTMLParser
from typing import Any
from unittest import mock

import pytest
import trio
from quart_trio import QuartTrio
from trio.testing import MockClock

from repl_broker.broker import Broker
from repl_broker.config import Config
from repl_broker.state import ALL_DEFAULT
from repl_broker.web.app import create_app
from repl_broker.web.door import DoorStatistics
from repl_broker.web.sampler import PAST_SECONDS, Sampler, Window
from repl_broker.web.ui import FEEDS_MAX, FOLDER, HEADERS
from tests.eventsource import FEED_NAMES, blocks
from tests.nodes import ANYONE, Node

BYTES_MAX = 150 * 1024
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
VENDORED = {  # uPlot 1.6.32, as npm has it
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


class Feed:
    """The events of one open feed."""

    def __init__(self, body: Any) -> None:
        self._body = body

    async def events(self) -> dict[str, Any]:
        """Name and data of what comes together."""
        found = blocks(await self._body.__anext__(), FEED_NAMES)
        return {fields["event"]: json.loads(fields["data"]) for fields in found}

    async def sample(self) -> dict[str, Any]:
        """The next sample."""
        events = await self.events()
        sample: dict[str, Any] = events["sample"] if "sample" in events else await self.sample()
        return sample


@asynccontextmanager
async def feed(app: QuartTrio, query: str = "") -> AsyncIterator[Feed]:
    async with app.test_request_context(f"/ui/feed?{query}") as context:
        response = await app.dispatch_request(context)
        async with response.response as body:  # type: ignore[union-attr]
            yield Feed(body)


@contextmanager
def standing_still(clock: MockClock) -> Iterator[None]:
    """No time passes while something waits for a thread."""
    clock.autojump_threshold = math.inf
    yield
    clock.autojump_threshold = 0


def names(sample: dict[str, Any]) -> list[str]:
    return [row[0] for row in sample["topics"]["rows"]]


def rates(sample: dict[str, Any]) -> dict[str, float | None]:
    return {row[0]: row[1] for row in sample["topics"]["rows"]}


# --- files ------------------------------------------------------------------------------------


async def test_every_file_is_served_with_headers_that_lock_the_page_in(app: QuartTrio) -> None:
    for path in FILES:
        response = await app.test_client().get(f"/ui/{path.relative_to(FOLDER)}")
        assert (response.status_code, await response.get_data()) == (200, path.read_bytes())
        assert {name: response.headers[name] for name in HEADERS} == HEADERS


async def test_the_page_is_at_ui(app: QuartTrio) -> None:
    response = await app.test_client().get("/ui")
    assert (response.status_code, response.headers["location"]) == (308, "/ui/")
    response = await app.test_client().get("/ui/")
    assert response.content_type == "text/html; charset=utf-8"


def test_no_script_or_style_is_inline_and_none_comes_from_elsewhere() -> None:
    policy = dict(
        part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}


def test_the_page_names_only_files_that_there_are_and_has_nothing_inline() -> None:
    wrong: list[str] = []
    named: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            wrong.extend(f"{tag} {name}" for name in given if re.match(r"on|style$", name))
            if tag == "style" or (tag == "script" and "src" not in given):
                wrong.append(tag)
            for name in ("src", "href"):
                target = given.get(name) or ""
                if target and not target.startswith(("#", "../")):
                    named.add(target)

    Reader().feed((FOLDER / "index.html").read_text(encoding="utf-8"))
    assert wrong == []
    assert {name for name in named if not (FOLDER / name).is_file()} == set()
    modules = {path.name for path in FOLDER.glob("*.js")}
    assert modules <= named  # all are asked for at once, not one after the other


def test_the_page_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FILES}
    assert sum(sizes.values()) <= BYTES_MAX, sizes


def test_what_others_made_is_what_they_published() -> None:
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (FOLDER / "vendor").iterdir()
    }
    assert found == VENDORED


def test_nothing_of_ours_makes_html_of_text() -> None:
    sinks = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\("
    )
    for path in FOLDER.glob("*.js"):
        assert sinks.search(path.read_text(encoding="utf-8")) is None, path.name


# --- the feed -----------------------------------------------------------------------------------


async def test_a_feed_begins_with_who_it_is_and_what_there_is(app: QuartTrio, node: Node) -> None:
    await node.broker.publish(ANYONE, "chat", b"1")
    async with feed(app) as opened:
        hello = (await opened.events())["hello"]
        assert hello["node"] == node.broker.node_id
        assert hello["default_retention"]["messages"] == Config().topics.retention.messages
        sample = await opened.sample()
    assert sample["cluster"]["leader"] == node.broker.node_id
    assert sample["node"]["messages"] == 1
    assert sample["node"]["topics"] == 1
    assert sample["node"]["history_bytes"] == 1
    assert len(sample["node"]["commit_buckets"]) == len(hello["commit_buckets_seconds"]) + 1
    assert sample["topics"] == {
        "count": 1,
        "offset": 0,
        "rows": [["chat", None, 1, 1, 0, f"{node.broker.epoch}-1"]],
    }
    assert sample["topic"] is None


async def test_rates_are_what_came_in_a_second(
    app: QuartTrio, node: Node, autojump_clock: MockClock
) -> None:
    async with feed(app) as opened:
        with standing_still(autojump_clock):
            assert (await opened.sample())["topics"]["count"] == 0
            for number in range(10):
                await node.broker.publish(ANYONE, "fast" if number else "slow", b"1")
        assert rates(await opened.sample()) == {"fast": 9, "slow": 1}
        assert rates(await opened.sample()) == {"fast": 0, "slow": 0}


async def test_what_was_trimmed_at_once_counts_in_the_rate(
    app: QuartTrio, node: Node, autojump_clock: MockClock
) -> None:
    await node.broker.create_topic(ANYONE, "last-value", messages=1)
    async with feed(app) as opened:
        with standing_still(autojump_clock):
            await opened.sample()
            for _ in range(20):
                await node.broker.publish(ANYONE, "last-value", b"1")
        sample = await opened.sample()
    assert rates(sample) == {"last-value": 20}
    assert sample["topics"]["rows"][0][2] == 1


async def test_a_topic_that_was_deleted_and_made_again_has_no_negative_rate(
    app: QuartTrio, node: Node, autojump_clock: MockClock
) -> None:
    for _ in range(9):
        await node.broker.publish(ANYONE, "chat", b"1")
    async with feed(app) as opened:
        await opened.sample()
        await node.broker.delete_topic(ANYONE, "chat")
        await node.broker.publish(ANYONE, "chat", b"1")
        assert rates(await opened.sample()) == {"chat": 0}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["a", "b.x", "b.y", "c"]),
        ("sort=-name", ["c", "b.y", "b.x", "a"]),
        ("sort=-messages", ["c", "b.y", "b.x", "a"]),
        ("sort=bytes", ["a", "b.x", "b.y", "c"]),
        ("sort=-bytes&offset=1&limit=2", ["b.y", "b.x"]),
        ("match=b", ["b.x", "b.y"]),
        ("match=.y", ["b.y"]),
        ("match=b.*", ["b.x", "b.y"]),
        ("match=b.>", ["b.x", "b.y"]),
        ("match=*", ["a", "c"]),
        ("match=nothing", []),
        ("offset=3", ["c"]),
        ("offset=100", []),
        ("limit=0", []),
    ],
)
async def test_a_viewer_sees_the_part_that_it_asks_for(
    app: QuartTrio, node: Node, query: str, expected: list[str]
) -> None:
    for count, topic in enumerate(("a", "b.x", "b.y", "c"), 1):
        for _ in range(count):
            await node.broker.publish(ANYONE, topic, b"1")
    async with feed(app, query) as opened:
        sample = await opened.sample()
    assert names(sample) == expected
    all_of_them = await Sampler(node.broker, none, Config().node.data_dir).topics(Window())
    assert all_of_them["count"] == 4


async def test_the_busiest_come_first(
    app: QuartTrio, node: Node, autojump_clock: MockClock
) -> None:
    for topic in ("a", "b", "c"):
        await node.broker.publish(ANYONE, topic, b"1")
    async with feed(app, "sort=-rate&limit=2") as opened:
        await opened.sample()
        for topic in ("b", "c", "c"):
            await node.broker.publish(ANYONE, topic, b"1")
        assert names(await opened.sample()) == ["c", "b"]


async def test_the_most_followed_come_first(app: QuartTrio, node: Node) -> None:
    for topic in ("a", "b", "c"):
        await node.broker.publish(ANYONE, topic, b"1")
    async with node.broker.subscribe(ANYONE, ["c"]), node.broker.subscribe(ANYONE, ["c", "b"]):
        async with feed(app, "sort=-subscribers") as opened:
            rows = (await opened.sample())["topics"]["rows"]
    assert [(row[0], row[4]) for row in rows] == [("c", 2), ("b", 1), ("a", 0)]


async def test_one_topic_is_told_with_its_settings(app: QuartTrio, node: Node) -> None:
    await node.broker.create_topic(ANYONE, "chat", seconds=60)
    for _ in range(150):
        await node.broker.publish(ANYONE, "chat", b"12")
    async with feed(app, "topic=chat") as opened:
        topic = (await opened.sample())["topic"]
    assert topic["own"] == {
        "messages": None,
        "seconds": 60,
        "bytes": None,
        "idle_seconds": None,
    }
    assert topic["retention"]["messages"] == Config().topics.retention.messages
    assert (topic["messages"], topic["bytes"], topic["subscribers"]) == (150, 300, 0)
    page = await node.broker.history(ANYONE, "chat", after=topic["tail_after"], limit=1000)
    assert len(page.messages) == 100


async def test_a_topic_without_messages_and_one_that_is_not_there(
    app: QuartTrio, node: Node
) -> None:
    await node.broker.create_topic(ANYONE, "empty")
    async with feed(app, "topic=empty") as opened:
        topic = (await opened.sample())["topic"]
    assert (topic["first_id"], topic["last_id"]) == (None, None)
    assert topic["tail_after"] == f"{node.broker.epoch}-0"
    async with feed(app, "topic=nothing") as opened:
        assert (await opened.sample())["topic"] is None


async def test_who_comes_later_gets_the_minutes_before(
    app: QuartTrio, node: Node, autojump_clock: MockClock
) -> None:
    async with feed(app) as opened:
        for _ in range(PAST_SECONDS + 5):
            await opened.sample()
    async with feed(app, "past=1") as later:
        events = await later.events()
        assert len(events["past"]) == PAST_SECONDS
        sample = await later.sample()
    clocks = [clock for clock, _ in events["past"]]
    assert clocks == sorted(clocks)
    assert sample["clock"] >= clocks[-1]
    async with feed(app) as other:
        assert "past" not in await other.events()


async def test_viewers_share_one_look_at_the_node(
    app: QuartTrio, node: Node, autojump_clock: MockClock
) -> None:
    taken: list[int] = []
    with mock.patch.object(Sampler, "_take", counted(Sampler._take, taken)):
        async with feed(app) as one, feed(app, "sort=-rate") as two, feed(app) as three:
            assert taken == []  # nobody has looked yet
            for _ in range(5):
                async with trio.open_nursery() as nursery:
                    for each in (one, two, three):
                        nursery.start_soon(each.sample)
    assert len(taken) == 5


def counted(real: Any, calls: list[int]) -> Any:
    async def call(sampler: Sampler) -> Any:
        calls.append(1)
        return await real(sampler)

    return call


async def test_another_leader_shows_at_once(
    app: QuartTrio, node: Node, autojump_clock: MockClock
) -> None:
    async with feed(app) as opened:
        with standing_still(autojump_clock):
            await opened.sample()
        began = trio.current_time()
        with mock.patch.object(Broker, "leadership", (7, "n2")):
            await opened.sample()
            assert trio.current_time() - began < 0.5
            await opened.sample()
            assert trio.current_time() - began > 1


async def test_a_feed_ends_when_the_node_does(
    app: QuartTrio, node: Node, autojump_clock: MockClock
) -> None:
    async with feed(app) as opened:
        await opened.sample()
        node.broker.draining = True
        with pytest.raises(StopAsyncIteration):
            await opened.sample()
    response = await app.test_client().get("/ui/feed")
    assert (response.status_code, (await response.get_json())["code"]) == (503, "shutting_down")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("sort=size", "invalid_parameter"),
        ("sort=", "invalid_parameter"),
        ("sort=--name", "invalid_parameter"),
        ("offset=-1", "invalid_parameter"),
        ("offset=99999999999999999999", "invalid_parameter"),
        ("offset=%D9%A1", "invalid_parameter"),  # a digit, and not ASCII
        ("limit=501", "invalid_parameter"),
        ("limit=x", "invalid_parameter"),
        ("past=2", "invalid_parameter"),
        ("match=" + "x" * 256, "invalid_parameter"),
        ("match=a*", "invalid_filter"),
        ("match=>.a", "invalid_filter"),
        ("topic=<b>", "invalid_topic"),
        ("topics=a", "invalid_parameter"),
        ("limit=1&limit=2", "invalid_parameter"),
    ],
)
async def test_what_a_feed_cannot_give_is_refused(app: QuartTrio, query: str, code: str) -> None:
    response = await app.test_client().get(f"/ui/feed?{query}")
    assert (response.status_code, (await response.get_json())["code"]) == (400, code)


async def test_a_search_for_markup_finds_nothing_and_breaks_nothing(
    app: QuartTrio, node: Node
) -> None:
    await node.broker.publish(ANYONE, "chat", b"1")
    async with feed(app, "match=%3Cimg%20src=x%3C") as opened:
        assert names(await opened.sample()) == []


async def test_only_so_many_look_at_a_time(app: QuartTrio) -> None:
    async with trio.open_nursery() as nursery:
        full, done = trio.Semaphore(0), trio.Event()

        async def look() -> None:
            async with feed(app):
                full.release()
                await done.wait()

        for _ in range(FEEDS_MAX):
            nursery.start_soon(look)
        for _ in range(FEEDS_MAX):
            await full.acquire()
        response = await app.test_client().get("/ui/feed")
        assert (await response.get_json())["code"] == "too_many_connections"
        done.set()
    async with feed(app) as opened:
        assert "hello" in await opened.events()


async def test_head_says_what_get_would_give(app: QuartTrio) -> None:
    response = await app.test_client().head("/ui/feed")
    assert (response.status_code, response.content_type) == (200, "text/event-stream")
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert await response.get_data() == b""


async def test_many_topics_are_looked_through_in_pieces(
    node: Node, autojump_clock: MockClock
) -> None:
    state = node.broker.state
    for number in range(3000):
        state._add_topic(f"topic.{number:04}", ALL_DEFAULT)
    sampler = Sampler(node.broker, none, Config().node.data_dir)
    others = 0
    looked = trio.Event()

    async def run_beside() -> None:
        nonlocal others
        while not looked.is_set():
            others += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_beside)
        await sampler._look_through_topics()
        await sampler.topics(Window(sort="messages"))
        looked.set()
    assert others >= 6  # three pieces each
    page = await sampler.topics(Window(offset=2990, limit=100))
    assert (page["count"], len(page["rows"])) == (3000, 10)


async def test_cross_origin_pages_get_the_feed_no_more_than_the_api(node: Node) -> None:
    app = create_app(node.broker, Config(), {})
    response = await app.test_client().head("/ui/feed", headers={"Origin": "https://evil.test"})
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["cross-origin-resource-policy"] == "same-origin"


def none() -> DoorStatistics:
    return DoorStatistics(0, 0, 0, 0)
