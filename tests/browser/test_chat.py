"""The chat example in a real Chromium, against a real broker that is killed and started again.

Every test ends with the same question (``open_page``): did a page report an error, or
ask anybody but the broker for anything?
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from accessibility import assert_accessible
from demo_node import DemoNode

from tests.process.demo import Demo
from tests.process.node import polls

REQUIRED = os.environ.get("REPL_BROKER_TEST_REQUIRE_BROWSER") == "1"

if REQUIRED:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
Browser, Page = playwright.Browser, playwright.Page
expect = playwright.expect

pytestmark = pytest.mark.browser

WAIT_MILLISECONDS_MAX = 20_000
MESSAGES_EACH = 50  # in the test of the crash
CRASHES = int(os.environ.get("REPL_BROKER_TEST_CRASHES", "1"))

# What a page acknowledges: the uuid and the answer of each publish that it saw answered.
RECORD_ACKNOWLEDGEMENTS = """
window.acknowledged = [];
const plain = window.fetch;
window.fetch = async (url, options) => {
  const answer = await plain(url, options);
  const uuid = options?.method === "POST" && JSON.parse(options.body)?.uuid;
  if (uuid && answer.ok) {
    const { id } = await answer.clone().json();
    // The page may drop an answer that it has not read yet, and ask again.
    const isNew = !window.acknowledged.some((other) => other.uuid === uuid);
    if (isNew) window.acknowledged.push({ id, uuid });
  }
  return answer;
};
"""

# Says "<name> 1", "<name> 2" … as a user would, through the form, one every few frames.
KEEP_SENDING = """([name, count]) => {
  let said = 0;
  const timer = setInterval(() => {
    document.getElementById("text").value = `${name} ${++said}`;
    document.getElementById("composer").requestSubmit();
    if (said === count) clearInterval(timer);
  }, 40);
}"""

# The broker gets what is published, and the page never gets the answer.
LOSE_ANSWERS = """() => {
  const whole = window.fetch;
  window.fetch = async (url, options) => {
    const answer = await whole(url, options);
    if (options?.method === "POST") throw new TypeError("the connection broke");
    return answer;
  };
}"""

# Returns when the demo's control has answered, and the page does not know of it.
HOLD_AN_ANSWER = """() => new Promise((answered) => {
  const whole = window.fetch;
  window.fetch = async (url, options) => {
    const answer = await whole(url, options);
    if (String(url).endsWith("/state") && !window.release) {
      await new Promise((release) => { window.release = release; answered(); });
    }
    return answer;
  };
})"""

# Returns when the page has read it.
RELEASE = """async () => {
  window.release();
  await fetch(location.pathname).then((page) => page.text());
}"""

SHOWN = """() => [...document.querySelectorAll("#messages .message")].map((item) => ({
  id: item.dataset.id,
  uuid: item.dataset.uuid,
  text: item.querySelector(".bubble").textContent,
}))"""

OpenPage = Callable[..., Page]


class Site(Protocol):
    """What serves the chat."""

    @property
    def chat_url(self) -> str: ...

    @property
    def origins(self) -> Sequence[str]:
        """All that its pages may ask."""


class Cluster(Demo):
    """``demo --nodes 3``. It outlives its nodes."""

    @property
    def chat_url(self) -> str:
        return f"http://127.0.0.1:{self.nodes['n2'].port}/chat/"

    @property
    def origins(self) -> Sequence[str]:
        ports = [self.control, *(node.port for node in self.nodes.values())]
        return [f"http://127.0.0.1:{port}" for port in ports]


@pytest.fixture
def refusals() -> list[str]:
    """The statuses of which a test wants the browser to complain."""
    return []


@pytest.fixture
def open_page(browser: Browser, refusals: list[str]) -> Iterator[OpenPage]:
    """Open the chat as somebody, each in a browser profile of their own."""
    opened: list[Page] = []
    complaints: list[str] = []

    def open_one(
        node: Site,
        name: str,
        room: str = "lobby",
        *,
        link: str = "",
        clock: bool = False,
        **options: Any,
    ) -> Page:
        context = browser.new_context(**{"locale": "en-GB", **options})
        if clock:
            context.clock.install()
        context.set_default_timeout(WAIT_MILLISECONDS_MAX)
        context.add_init_script(RECORD_ACKNOWLEDGEMENTS)
        page = context.new_page()
        opened.append(page)
        page.on("pageerror", lambda error: complaints.append(f"{name}: {error}"))
        page.on("console", lambda said: complaints.extend(errors_of(name, said)))
        page.on("request", lambda request: complaints.extend(strangers(node, request.url)))
        page.goto(link or f"{node.chat_url}#{room}")
        page.get_by_label("Your name", exact=True).fill(name)
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#status-text")).to_have_text("Live")
        expect(page.locator("#log")).to_have_attribute("aria-busy", "false")
        return page

    yield open_one
    for page in opened:
        page.context.close()
    wanted = [f"with a status of {status}" for status in refusals]
    assert [text for text in complaints if not any(part in text for part in wanted)] == []


def errors_of(name: str, said: Any) -> list[str]:
    # Chromium itself writes a line for each request that finds the broker down.
    if said.type not in ("error", "warning") or "net::ERR_" in said.text:
        return []
    return [f"{name}: {said.text}"]


def strangers(node: Site, url: str) -> list[str]:
    is_known = any(url.startswith(f"{origin}/") for origin in node.origins)
    return [] if is_known else [f"a request to {url}"]


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message to").fill(text)
    page.keyboard.press("Enter")


def bubbles(page: Page) -> Any:
    return page.locator("#messages .bubble")


def wait_shown(page: Page, count: int) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('#messages .message').length >= count", arg=count
    )


def texts(page: Page) -> list[str]:
    return [message["text"] for message in page.evaluate(SHOWN)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster") / "demo") as running:
        running.start()
        yield running


def check_acknowledged(page: Page, kept: list[dict[str, Any]]) -> None:
    """What a page was told is so: each once, in order, under the id that it has.

    All of it is kept; but where the stream was quicker than the answer, the page asked no more.
    """
    told = page.evaluate("acknowledged")
    uuids = {message["uuid"] for message in told}
    assert told == [{"id": m["id"], "uuid": m["uuid"]} for m in kept if m["uuid"] in uuids]
    assert len(told) > len(kept) / 2


def test_two_pages_chat_and_see_the_same_order(node: DemoNode, open_page: OpenPage) -> None:
    ana, ben = open_page(node, "Ana", "pair"), open_page(node, "Ben", "pair")
    say(ana, "Hello")
    expect(bubbles(ben)).to_have_text(["Hello"])
    for page, name in ((ana, "Ana"), (ben, "Ben")):
        page.evaluate(KEEP_SENDING, [name, 12])
    wait_shown(ana, 25)
    wait_shown(ben, 25)

    seen = ana.evaluate(SHOWN)
    assert seen == ben.evaluate(SHOWN)
    for name in ("Ana", "Ben"):
        theirs = [m["text"] for m in seen if m["text"].startswith(f"{name} ")]
        assert theirs == [f"{name} {number}" for number in range(1, 13)]
    expect(ana.locator("#pending li")).to_have_count(0)
    expect(ana.locator("#messages .own")).to_have_count(13)
    expect(ben.locator("#messages .author").first).to_have_text("Ana")


def test_both_pages_go_on_after_the_broker_was_killed(tmp_path: Path, open_page: OpenPage) -> None:
    """What was acknowledged is there once, in one order, on both pages and in the history."""
    with DemoNode(tmp_path) as node:
        pages = {name: open_page(node, name) for name in ("Ana", "Ben")}
        for name, page in pages.items():
            page.evaluate(KEEP_SENDING, [name, MESSAGES_EACH])
        for crash in range(1, CRASHES + 1):
            pages["Ana"].wait_for_function(
                "count => acknowledged.length >= count", arg=crash * MESSAGES_EACH // (CRASHES + 2)
            )
            node.kill()
            for page in pages.values():
                expect(page.locator("#status-text")).to_have_text("Reconnecting…")
                expect(page.locator("#banner")).to_be_visible()
            node.start()
        for page in pages.values():
            wait_shown(page, 2 * MESSAGES_EACH)
            expect(page.locator("#status-text")).to_have_text("Live")
            expect(page.locator("#pending li")).to_have_count(0)

        history = [
            {"id": m["id"], "uuid": m["data"]["uuid"], "text": m["data"]["text"]}
            for m in node.history("chat.lobby")
        ]
        assert pages["Ana"].evaluate(SHOWN) == history
        assert pages["Ben"].evaluate(SHOWN) == history
        for name, page in pages.items():
            theirs = [m for m in history if m["text"].startswith(f"{name} ")]
            assert [m["text"] for m in theirs] == [
                f"{name} {number}" for number in range(1, MESSAGES_EACH + 1)
            ]
            check_acknowledged(page, theirs)
        assert len(history) == 2 * MESSAGES_EACH


def test_history_is_there_on_load_and_in_each_room(node: DemoNode, open_page: OpenPage) -> None:
    ana = open_page(node, "Ana", "tea")
    say(ana, "Earl Grey")
    say(ana, "Darjeeling")
    expect(bubbles(ana)).to_have_text(["Earl Grey", "Darjeeling"])

    ben = open_page(node, "Ben", "tea")
    assert texts(ben) == ["Earl Grey", "Darjeeling"]

    ben.get_by_role("button", name="New room").click()
    ben.get_by_label("Name", exact=True).fill("Café talk")
    ben.get_by_role("button", name="Create").click()
    expect(ben.get_by_role("heading", level=1)).to_have_text("#cafe-talk")
    say(ben, "Espresso")
    expect(bubbles(ben)).to_have_text(["Espresso"])
    assert node.get("/v1/topics/chat.cafe-talk")["retention"]["messages"] == 500

    # Ana hears of the new room from its first message, and has what was said when she looks.
    link = ana.get_by_role("link", name="cafe-talk")
    expect(link.locator(".badge")).to_have_text("1 unread")
    link.click()
    expect(bubbles(ana)).to_have_text(["Espresso"])
    expect(link).to_have_attribute("aria-current", "page")
    expect(link.locator(".badge")).to_have_count(0)
    say(ben, "And a glass of water")
    expect(bubbles(ana)).to_have_text(["Espresso", "And a glass of water"])

    ana.go_back()
    expect(bubbles(ana)).to_have_text(["Earl Grey", "Darjeeling"])
    ana.reload()
    expect(bubbles(ana)).to_have_text(["Earl Grey", "Darjeeling"])
    expect(ana.locator("#messages .own")).to_have_count(2)
    expect(ana.locator("#me-name")).to_have_text("Ana")


def test_what_was_not_sent_outlives_a_reload(node: DemoNode, open_page: OpenPage) -> None:
    ana = open_page(node, "Ana", "unsent")
    ana.evaluate(LOSE_ANSWERS)
    say(ana, "Is this on?")
    expect(bubbles(ana)).to_have_text(["Is this on?"])
    say(ana, "And this?")
    expect(ana.locator("#pending .bubble")).to_have_text(["And this?"])
    ana.reload()
    expect(bubbles(ana)).to_have_text(["Is this on?", "And this?"])
    expect(ana.locator("#pending li")).to_have_count(0)
    assert len(node.history("chat.unsent")) == 2


def test_html_in_a_message_is_shown_as_text(node: DemoNode, open_page: OpenPage) -> None:
    ana, ben = open_page(node, "<i>Ana</i>", "html"), open_page(node, "Ben", "html")
    text = '<img src="//example.invalid/x" onerror="alert(1)"> <script>alert(2)</script> &amp;'
    say(ana, text)
    for page in (ana, ben):
        expect(bubbles(page)).to_have_text([text])
        expect(page.locator("#messages :is(img, script, i)")).to_have_count(0)
    expect(ben.locator("#messages .author")).to_have_text("<i>Ana</i>")


HOSTILE = [
    None,
    True,
    12.5,
    "only a string",
    [],
    [[{"text": "nested"}]],
    {},
    {"text": None, "name": None, "uuid": None, "window": None},
    {"text": 7, "name": 7, "uuid": {"a": 1}, "window": [1]},
    {"__proto__": {"text": "polluted"}, "constructor": 1, "toString": "x"},
    {"name": "\u202egnp.exe\u0000\n\t", "text": "\u202eevil\u0000\u0007 text"},
    {"name": "\u200b\u2066 ", "text": "no name to be seen"},
    {"name": "N" * 5000, "text": "a long name"},
    {"name": "Z" + "\u0301" * 900, "text": "a\u0301" * 900},
    {"name": "Lines", "text": "line\n" * 5000},
    {"name": "Big", "text": "x" * 1_000_000},
    {"name": "Half", "text": "\ud83d"},
    {"name": "Last", "text": "still here"},
]


def test_a_hostile_message_does_not_break_the_page(node: DemoNode, open_page: OpenPage) -> None:
    """Whatever is published to a room's topic: live, and again from the history."""
    ana = open_page(node, "Ana", "hostile")
    publish = """async ([url, body]) => (await fetch(url, {
        method: "POST", headers: {"Content-Type": "application/json"}, body})).status"""
    for data in HOSTILE:
        url = f"{node.url}/v1/topics/chat.hostile/messages"
        assert ana.evaluate(publish, [url, json.dumps(data)]) == 201
    wait_shown(ana, len(HOSTILE))
    live = texts(ana)
    assert live[3] == "only a string"
    assert live[6] == "{}"
    assert live[10] == "\u202eevil\ufffd\ufffd text"
    assert live[-1] == "still here"
    assert max(map(len, live)) <= 4000
    authors = ana.locator("#messages .author").all_text_contents()
    assert authors[0] == "Anonymous"
    assert authors[10] == "gnp.exe"
    assert authors[11] == "Anonymous"
    assert max(map(len, authors)) <= 40
    assert ana.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ana.reload()
    wait_shown(ana, len(HOSTILE))
    assert texts(ana) == live


def test_a_message_that_is_too_long_is_not_sent(node: DemoNode, open_page: OpenPage) -> None:
    ana = open_page(node, "Ana", "long")
    say(ana, "é" * 2001)
    expect(ana.locator("#composer-error")).to_have_text(
        "A message has at most 2,000 characters; this one has 1 too many."
    )
    say(ana, "é" * 2000)
    expect(bubbles(ana)).to_have_text(["é" * 2000])
    expect(ana.locator("#composer-error")).to_have_text("")


def test_a_refused_message_says_why_and_can_be_sent_again(
    node: DemoNode, open_page: OpenPage, refusals: list[str]
) -> None:
    refusals.append("403")
    ana = open_page(node, "Ana", "refused")
    ana.route(
        "**/messages",
        lambda route: route.fulfill(
            status=403,
            content_type="application/problem+json",
            body='{"status": 403, "code": "forbidden", "detail": "You may only read here."}',
        ),
    )
    say(ana, "Let me in")
    expect(ana.locator("#pending .state")).to_have_text("Not sent. You may only read here.")
    expect(ana.locator("#announcer")).to_have_text("Not sent. You may only read here.")
    ana.unroute_all()
    ana.get_by_role("button", name="Try again").click()
    expect(bubbles(ana)).to_have_text(["Let me in"])
    expect(ana.locator("#pending li")).to_have_count(0)


def test_a_stream_that_was_refused_is_opened_again(
    node: DemoNode, open_page: OpenPage, refusals: list[str]
) -> None:
    """A native EventSource would give up on an answer other than 200."""
    refusals.append("503")
    ana = open_page(node, "Ana", "stream")
    ana.route("**/v1/events**", lambda route: route.fulfill(status=503, body="no"))
    # The client heeds that a second after its last start, not before.
    ana.wait_for_function(
        """() => dispatchEvent(new Event("online"))
            && document.getElementById("status").dataset.state === 'reconnecting'""",
        polling=100,
    )
    ben = open_page(node, "Ben", "stream")
    say(ben, "While you were away")
    expect(bubbles(ben)).to_have_text(["While you were away"])
    ana.unroute_all()
    expect(ana.locator("#status-text")).to_have_text("Live")
    expect(bubbles(ana)).to_have_text(["While you were away"])


def test_a_deleted_room_says_so_and_can_be_opened_again(
    node: DemoNode, open_page: OpenPage
) -> None:
    ana = open_page(node, "Ana", "gone")
    say(ana, "Soon gone")
    expect(bubbles(ana)).to_have_text(["Soon gone"])
    ana.evaluate("url => fetch(url, {method: 'DELETE'})", f"{node.url}/v1/topics/chat.gone")
    expect(ana.locator("#messages .gap")).to_contain_text("This room was deleted.")
    expect(bubbles(ana)).to_have_count(0)
    say(ana, "Back again")
    expect(bubbles(ana)).to_have_text(["Back again"])
    assert node.get("/v1/topics/chat.gone")["retention"]["messages"] == 500


def try_now(page: Page) -> None:
    """Do not wait for the next attempt; unless the page was quicker."""
    with suppress(playwright.TimeoutError):
        page.get_by_role("button", name="Try now").click(timeout=2000)


def test_a_gap_is_told_in_the_conversation(tmp_path: Path, open_page: OpenPage) -> None:
    """The node's data are gone while the page is away: the stream says so, and so does the page."""
    with DemoNode(tmp_path / "first") as node:
        ana = open_page(node, "Ana")
        say(ana, "Remember this")
        expect(bubbles(ana)).to_have_text(["Remember this"])
        node.kill()
        node.data_dir = tmp_path / "second"
        node.start()
        try_now(ana)
        expect(ana.locator("#messages .gap")).to_contain_text("The broker has started afresh.")
        say(ana, "Hello again")
        expect(bubbles(ana)).to_have_text(["Remember this", "Hello again"])


def subscribers(node: DemoNode, topic: str) -> int:
    """Streams on the node that get this topic."""
    found: int = node.get(f"/v1/topics/{topic}")["subscribers"]
    return found


def test_rooms_and_who_is_here_and_other_windows_share_one_stream(
    tmp_path: Path, open_page: OpenPage
) -> None:
    with DemoNode(tmp_path) as node:
        ana = open_page(node, "Ana", "tea")
        say(ana, "Earl Grey")
        ana.goto(f"{node.chat_url}#coffee")
        say(ana, "Espresso")
        expect(bubbles(ana)).to_have_text(["Espresso"])
        other = ana.context.new_page()  # of the same browser
        other.goto(f"{node.chat_url}#tea")
        expect(other.locator("#status-text")).to_have_text("Live")
        expect(bubbles(other)).to_have_text(["Earl Grey"])
        say(ana, "Ristretto")
        expect(other.get_by_role("link", name="coffee").locator(".badge")).to_have_text("1 unread")
        say(other, "Darjeeling")
        expect(ana.get_by_role("link", name="tea").locator(".badge")).to_have_text("1 unread")
        for topic in ("chat.tea", "chat.coffee", "chat-presence"):
            for _ in polls(f"one stream for {topic}"):  # two merge in a moment
                if subscribers(node, topic) == 1:
                    break


def people(page: Page) -> Any:
    return page.locator("#people .person")


def test_a_page_shows_who_is_here_and_where(tmp_path: Path, open_page: OpenPage) -> None:
    with DemoNode(tmp_path) as node:
        ana, ben = open_page(node, "Ana"), open_page(node, "Ben")
        for page in (ana, ben):
            expect(people(page)).to_have_count(2)
            expect(page.locator("#here-count")).to_have_text("2 here")
        expect(people(ana).locator(".person-name")).to_have_text(["Ana", "Ben"])

        # Who comes later learns of both from the history.
        carla = open_page(node, "Carla")
        expect(people(carla).locator(".person-name")).to_have_text(["Carla", "Ana", "Ben"])

        ben.evaluate("location.hash = 'tea'")
        expect(people(ana).filter(has_text="Ben").locator(".hint")).to_have_text("#tea")
        expect(ana.locator("#here-count")).to_have_text("2 here")
        expect(ben.locator("#here-count")).to_have_text("1 here")

        ben.goto("about:blank")  # it says good-bye
        expect(people(ana)).to_have_count(2)
        carla.get_by_role("button", name="Change your name").click()
        carla.get_by_label("Your name", exact=True).fill("<b>Carla</b>")
        carla.get_by_role("button", name="Continue").click()
        expect(people(ana).locator(".person-name")).to_have_text(["Ana", "<b>Carla</b>"])


def test_who_says_nothing_any_more_has_left(node: DemoNode, open_page: OpenPage) -> None:
    """A crashed browser says no good-bye; and anybody may publish anything."""
    ana = open_page(node, "Ana", "ghosts", clock=True)
    publish = """async (data) => (await fetch("/v1/topics/chat-presence/messages", {
        method: "POST", headers: {"Content-Type": "application/json"},
        body: JSON.stringify(data)})).status"""
    for data in (
        None,
        1,
        "x",
        [],
        {},
        {"window": 1, "name": "No"},
        {"window": "w" * 65, "name": "No"},
        {"window": "w1", "name": " "},
        {"window": "w2", "name": "Ghost", "room": {"a": 1}},
    ):
        assert ana.evaluate(publish, data) == 201
    ghost = people(ana).filter(has_text="Ghost")
    expect(ghost).to_have_count(1)
    assert "No" not in people(ana).locator(".person-name").all_text_contents()
    ana.clock.fast_forward(30_000)
    expect(ghost).to_have_count(0)
    expect(people(ana).filter(has_text="Ana")).to_have_count(1)


def test_what_is_said_offline_is_sent_once_and_in_order(
    node: DemoNode, open_page: OpenPage
) -> None:
    ana, ben = open_page(node, "Ana", "tunnel"), open_page(node, "Ben", "tunnel")
    ana.context.set_offline(True)
    said = [f"In the tunnel {number}" for number in range(1, 6)]
    for text in said:
        say(ana, text)
    expect(ana.locator("#pending .bubble")).to_have_text(said)
    say(ben, "Where is Ana?")
    expect(bubbles(ben)).to_have_text(["Where is Ana?"])
    ana.context.set_offline(False)
    for page in (ana, ben):
        expect(bubbles(page)).to_have_text(["Where is Ana?", *said])
    expect(ana.locator("#pending li")).to_have_count(0)
    assert [m["data"]["text"] for m in node.history("chat.tunnel")] == ["Where is Ana?", *said]


def chip(page: Page, name: str) -> Any:
    return page.locator(f'#nodes .node[data-node="{name}"]')


def test_the_chat_goes_on_when_the_leader_is_killed_by_the_button(
    cluster: Cluster, open_page: OpenPage
) -> None:
    """Twice, while both write: nothing is lost, doubled or out of order, on any page or node."""
    pages = {
        name: open_page(cluster, name, link=cluster.links[node])
        for name, node in (("Ana", "n1"), ("Ben", "n2"))
    }
    ana = pages["Ana"]
    expect(ana).to_have_url(f"http://127.0.0.1:{cluster.nodes['n1'].port}/chat/#lobby")
    expect(ana.locator("#status-node")).to_have_text("n1")
    for name, page in pages.items():
        page.evaluate(KEEP_SENDING, [name, MESSAGES_EACH])
    for number in (1, 2):
        ana.wait_for_function("n => acknowledged.length >= n", arg=number * MESSAGES_EACH // 4)
        leader = ana.locator("#nodes .node:has(.leads)").get_attribute("data-node")
        assert leader is not None
        ana.locator("#kill").click()
        for page in pages.values():
            expect(chip(page, leader)).to_have_attribute("data-state", "down")
            expect(page.locator("#nodes .leads")).to_have_count(1)
            expect(page.locator("#kill")).to_be_disabled()
        expect(ana.locator("#happenings")).to_contain_text(f"{leader}, the leader, was killed")
        expect(ana.locator("#happenings")).to_contain_text(f"after {leader} was lost.")
        if number == 1:
            expect(ana.locator("#status-node")).to_have_text(re.compile("n2|n3"), timeout=15_000)
            expect(ana.locator("#happenings")).to_contain_text("Your stream went from n1 to n")
        ana.get_by_role("button", name=f"Start {leader} now").click()
        expect(ana.locator("#kill")).to_be_enabled(timeout=30_000)
    for page in pages.values():
        wait_shown(page, 2 * MESSAGES_EACH)
        expect(page.locator("#status-text")).to_have_text("Live", timeout=15_000)
        expect(page.locator("#pending li")).to_have_count(0)
        expect(page.locator("#messages .gap")).to_have_count(0)

    histories = [node.history("chat.lobby") for node in cluster.nodes.values()]
    assert histories[0] == histories[1] == histories[2]
    history = [
        {"id": m["id"], "uuid": m["data"]["uuid"], "text": m["data"]["text"]} for m in histories[0]
    ]
    assert len(history) == 2 * MESSAGES_EACH
    for name, page in pages.items():
        assert page.evaluate(SHOWN) == history
        theirs = [m for m in history if m["text"].startswith(f"{name} ")]
        assert [m["text"] for m in theirs] == [f"{name} {n}" for n in range(1, MESSAGES_EACH + 1)]
        check_acknowledged(page, theirs)


def test_only_who_has_the_link_sees_the_button(
    cluster: Cluster, open_page: OpenPage, refusals: list[str]
) -> None:
    ana = open_page(cluster, "Ana", "plain")
    expect(ana.locator("#stage")).to_be_hidden()
    expect(ana.locator("#status-node")).to_have_text("n2")
    ana.goto(cluster.links["n2"])
    expect(ana.locator("#nodes .node")).to_have_count(3)
    ana.goto(f"{cluster.chat_url}#plain")
    expect(ana.locator("#kill")).to_be_visible()  # the browser remembers
    ana.evaluate(HOLD_AN_ANSWER)
    refusals.append("401")
    ana.goto(f"{cluster.chat_url}#demo={cluster.control}.of-another-demo")
    expect(ana.locator("#stage")).to_be_hidden()
    ana.evaluate(RELEASE)  # the answer for the link that was there before comes last
    expect(ana.locator("#stage")).to_be_hidden()
    ana.reload()
    expect(ana.locator("#status-text")).to_have_text("Live")
    expect(ana.locator("#stage")).to_be_hidden()


class Controls:
    """A node, and the controls of demos that there are not: ``answers`` by their ports."""

    def __init__(self, node: DemoNode, page: Page) -> None:
        self.answers: dict[int, tuple[int, str] | None] = {1: None, 2: None}  # None: no answer
        self._chat_url = node.chat_url
        for port in self.answers:
            page.context.route(f"http://127.0.0.1:{port}/**", partial(self._answer, port))

    def link(self, port: int) -> str:
        return f"{self._chat_url}#demo={port}.token-of-demo-{port}"

    def _answer(self, port: int, route: Any) -> None:
        answer = self.answers[port]
        if answer is None:
            route.abort("connectionrefused")
            return
        status, leader = answer
        node = {"id": leader, "state": "down", "streams": 0, "returns_in_seconds": None, "url": ""}
        state = {"leader": leader, "term": 1, "cannot_kill": None, "nodes": [node]}
        route.fulfill(
            status=status,
            json={**state, "happenings": []},
            headers={"Access-Control-Allow-Origin": "*"},
        )


@pytest.fixture
def ana(node: DemoNode, open_page: OpenPage) -> Page:
    """Somebody whose browser has no key of a demo yet, and may ask two of them."""
    controls = [f"http://127.0.0.1:{port}" for port in (1, 2)]
    site = SimpleNamespace(chat_url=node.chat_url, origins=[*node.origins, *controls])
    return open_page(site, "Ana", "plain")


def come_back(page: Page) -> None:
    """As who looks at the window again."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_key_is_kept_while_its_control_does_not_answer(node: DemoNode, ana: Page) -> None:
    controls = Controls(node, ana)
    with ana.expect_event("requestfailed"):
        ana.goto(controls.link(1))
    expect(ana.locator("#stage")).to_be_hidden()
    controls.answers[1] = 200, "left"
    come_back(ana)
    expect(chip(ana, "left")).to_be_visible()
    controls.answers[1] = None
    expect(ana.locator("#kill")).to_have_attribute("title", "The demo has ended.")
    controls.answers[1] = 200, "left"
    expect(chip(ana, "left")).to_be_visible()


def test_nothing_of_one_demo_is_shown_as_another(node: DemoNode, ana: Page) -> None:
    controls = Controls(node, ana)
    controls.answers[1] = 200, "left"
    ana.goto(controls.link(1))
    expect(chip(ana, "left")).to_be_visible()
    with ana.expect_event("requestfailed"):
        ana.goto(controls.link(2))
    expect(ana.locator("#stage")).to_be_hidden()
    controls.answers[2] = 200, "right"
    come_back(ana)
    expect(chip(ana, "right")).to_be_visible()
    expect(chip(ana, "left")).to_have_count(0)


def test_a_window_forgets_no_key_of_another(node: DemoNode, ana: Page, refusals: list[str]) -> None:
    controls = Controls(node, ana)
    controls.answers.update({1: (200, "left"), 2: (200, "right")})
    ana.goto(controls.link(1))
    expect(chip(ana, "left")).to_be_visible()
    other = ana.context.new_page()
    other.goto(controls.link(2))
    expect(chip(other, "right")).to_be_visible()
    refusals.append("401")
    controls.answers[1] = 401, "left"
    expect(ana.locator("#stage")).to_be_hidden()
    ana.reload()
    expect(chip(ana, "right")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360], ids=["desktop", "phone"])
def test_axe_finds_no_serious_violation_in_the_chat(
    node: DemoNode, open_page: OpenPage, scheme: str, width: int
) -> None:
    page = open_page(
        node,
        "Ada",
        f"axe-{scheme}-{width}",
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
    )
    # So many that the list of them scrolls.
    page.evaluate("""() => {
      const [first] = document.getElementById("people").children;
      for (let n = 0; n < 50; n++) first.after(first.cloneNode(true));
    }""")
    assert_accessible(page)
    say(page, "Can everybody read this?")
    expect(bubbles(page)).to_have_count(1)
    assert_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation_on_the_page_of_the_api(
    node: DemoNode, browser: Browser, scheme: str
) -> None:
    page = browser.new_page(color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{node.url}/docs")
    assert_accessible(page)
    page.close()
    assert [url for url in asked if not url.startswith(node.url)] == []
