"""The chat example in a real Chromium, against a real broker that is killed and started again.

Every test ends with the same question (``open_page``): did a page report an error, or
ask anybody but the broker for anything?
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from demo_node import BROWSER_ARGUMENTS, DemoNode, find_browser

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
  if (options?.method === "POST" && answer.ok) {
    const { id } = await answer.clone().json();
    window.acknowledged.push({ id, uuid: JSON.parse(options.body)?.uuid });
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

SHOWN = """() => [...document.querySelectorAll("#messages .message")].map((item) => ({
  id: item.dataset.id,
  uuid: item.dataset.uuid,
  text: item.querySelector(".bubble").textContent,
}))"""

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        reason = "no Chromium on the PATH; the variable CHROMIUM may name one"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=path, args=list(BROWSER_ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoNode]:
    with DemoNode(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture
def refusals() -> list[str]:
    """The statuses of which a test wants the browser to complain."""
    return []


@pytest.fixture
def open_page(browser: Browser, refusals: list[str]) -> Iterator[OpenPage]:
    """Open the chat as somebody, each in a browser profile of their own."""
    opened: list[Page] = []
    complaints: list[str] = []

    def open_one(node: DemoNode, name: str, room: str = "lobby") -> Page:
        context = browser.new_context(locale="en-GB")
        context.set_default_timeout(WAIT_MILLISECONDS_MAX)
        context.add_init_script(RECORD_ACKNOWLEDGEMENTS)
        page = context.new_page()
        opened.append(page)
        page.on("pageerror", lambda error: complaints.append(f"{name}: {error}"))
        page.on("console", lambda said: complaints.extend(errors_of(name, said)))
        page.on("request", lambda request: complaints.extend(strangers(node, request.url)))
        page.goto(f"{node.chat_url}#{room}")
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


def strangers(node: DemoNode, url: str) -> list[str]:
    return [] if url.startswith(f"{node.url}/") else [f"a request to {url}"]


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
            page.wait_for_function("count => acknowledged.length === count", arg=MESSAGES_EACH)
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
            assert page.evaluate("acknowledged") == [
                {"id": m["id"], "uuid": m["uuid"]} for m in theirs
            ]
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
    """EventSource gives up on an answer other than 200; the page does not."""
    refusals.append("503")
    ana = open_page(node, "Ana", "stream")
    ana.route("**/v1/events**", lambda route: route.fulfill(status=503, body="no"))
    ana.evaluate("dispatchEvent(new Event('online'))")
    expect(ana.locator("#status-text")).to_have_text("Reconnecting…")
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
