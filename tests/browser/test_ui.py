"""The dashboard in a real Chromium, on real nodes.

Every test ends with the same question (``open_page``): did the page report an error, or
ask anybody but the node for anything? The page's Content-Security-Policy makes an
error of whatever would run foreign script or make HTML of text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from accessibility import assert_accessible
from demo_node import DemoNode

from tests.process.member import cluster_of, followers_of, leader_of
from tests.process.node import Node
from tests.signing import SECRET, token

REQUIRED = os.environ.get("REPL_BROKER_TEST_REQUIRE_BROWSER") == "1"

if REQUIRED:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
Browser, Page = playwright.Browser, playwright.Page
expect = playwright.expect

pytestmark = pytest.mark.browser

WAIT_MILLISECONDS_MAX = 20_000
expect.set_options(timeout=WAIT_MILLISECONDS_MAX)  # reconnecting alone may take 5 s, its default
BYTES_MAX = 150 * 1024
MANY_TOPICS = 10_000
ROWS_MAX = 80  # elements of the list of topics, however many there are
TAIL_ROWS_MAX = 200
PHONE = {"width": 360, "height": 740}

COUNT_LONG_TASKS = """
window.longTasks = [];
new PerformanceObserver((list) => {
  window.longTasks.push(...list.getEntries().map((entry) => entry.duration));
}).observe({ type: "longtask", buffered: true });
"""

HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "</code></li><iframe srcdoc='<script>parent.document.title=1</script>'>",
    "‮evil​",
    "{{constructor.constructor('document.title=1')()}}",
]

OpenPage = Callable[..., Page]


@pytest.fixture
def refusals() -> list[int]:
    """The statuses of which a test wants the browser to complain."""
    return []


@pytest.fixture
def open_page(browser: Browser, refusals: list[int]) -> Iterator[OpenPage]:
    """Open the dashboard of the node at ``url``, each time in a browser profile of its own."""
    opened: list[Page] = []
    complaints: list[str] = []

    def open_one(url: str, view: str = "", *, ready: bool = True, **options: Any) -> Page:
        context = browser.new_context(**{"locale": "en-GB", **options})
        context.set_default_timeout(WAIT_MILLISECONDS_MAX)
        context.add_init_script(COUNT_LONG_TASKS)
        page = context.new_page()
        page.set_default_timeout(WAIT_MILLISECONDS_MAX)
        opened.append(page)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.extend(errors_of(said)))
        page.on("request", lambda asked: complaints.extend(strangers(url, asked.url)))
        page.goto(f"{url}/ui/{view}")
        if ready:
            expect(page.locator("body")).to_have_attribute("data-ready", "true")
        return page

    yield open_one
    for page in opened:
        assert page.title() != "owned"
        page.context.close()
    wanted = [f"with a status of {status}" for status in refusals]
    assert [text for text in complaints if not any(part in text for part in wanted)] == []


def errors_of(said: Any) -> list[str]:
    # Chromium itself writes a line for each request that finds the node down.
    if said.type not in ("error", "warning") or "net::ERR_" in said.text:
        return []
    return [said.text]


def strangers(url: str, asked: str) -> list[str]:
    return [] if asked.startswith((f"{url}/", "blob:", "data:")) else [f"a request to {asked}"]


def publish(url: str, topic: str, *values: object) -> None:
    """One batch."""
    send(f"{url}/v1/topics/{topic}/messages", "\n".join(json.dumps(v) for v in values))


def publish_many(url: str, *pairs: tuple[str, object]) -> None:
    lines = (json.dumps({"topic": topic, "data": data}) for topic, data in pairs)
    send(f"{url}/v1/messages", "\n".join(lines))


def send(url: str, text: str) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    with urlopen(Request(url, text.encode(), headers), timeout=20) as answer:
        answer.read()


def topics(page: Page) -> Any:
    return page.locator("#topic-rows a")


def tail(page: Page) -> Any:
    return page.locator("#tail li .data")


def open_topic(page: Page, name: str) -> None:
    page.evaluate("(name) => { location.hash = `topics/${name}` }", name)
    expect(page.locator("#topic-name")).to_have_text(name)
    expect(page.locator("#tail-status")).to_contain_text("Live ·")


# --- the overview -------------------------------------------------------------------------------


def test_the_figures_are_shown_and_go_on(node: DemoNode, open_page: OpenPage) -> None:
    page = open_page(node.url)
    expect(page.locator("#cluster-health")).to_have_text("Single node")
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#members tr")).to_have_count(1)
    expect(page.locator(".chart canvas")).to_have_count(3)
    publish(node.url, "figures", *range(500))
    expect(page.locator("#tile-published-more")).not_to_have_text("0 through this node")
    expect(page.locator("#tile-latency-more")).to_contain_text("within")
    title = page.title()
    assert title == "n1 · repl-broker"


def test_the_page_is_small_and_asks_only_its_node(
    node: DemoNode, open_page: OpenPage, capsys: pytest.CaptureFixture[str]
) -> None:
    page = open_page(node.url)
    got = page.evaluate(
        """() => [...performance.getEntriesByType("navigation"),
          ...performance.getEntriesByType("resource")]
          .filter(({ name }) => !name.includes("/ui/feed"))
          .map(({ name, encodedBodySize }) => [name, encodedBodySize])"""
    )
    paint = page.evaluate(
        """() => performance.getEntriesByType("paint")
          .map(({ name, startTime }) => [name, Math.round(startTime)])"""
    )
    size = sum(bytes_ for _, bytes_ in got)
    with capsys.disabled():
        print(f"\ndashboard: {len(got)} files, {size / 1024:.1f} KiB, {dict(paint)} ms")  # noqa: T201
    assert 50_000 < size <= BYTES_MAX
    assert all(name.startswith(node.url) for name, _ in got)
    assert "first-contentful-paint" in dict(paint)


def test_a_reload_keeps_the_charts(node: DemoNode, open_page: OpenPage) -> None:
    page = open_page(node.url)
    publish(node.url, "figures", *range(300))
    expect(page.locator("#tile-published")).to_have_text(re.compile("^[1-9]"))
    expect(page.locator("#tile-published")).to_have_text("0")
    page.reload()
    label = re.compile("at most [1-9]")  # nothing was published since the reload
    expect(page.locator("#chart-published")).to_have_attribute("aria-label", label)


def test_the_theme_can_be_switched_and_stays(node: DemoNode, open_page: OpenPage) -> None:
    page = open_page(node.url, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert dark != light
    button = page.get_by_role("button", name="Theme")
    button.click()
    expect(button).to_contain_text("Light")
    assert page.evaluate(ground) == light
    page.reload()
    expect(button).to_contain_text("Light")
    assert page.evaluate(ground) == light
    button.click()
    button.click()
    expect(button).to_contain_text("System")
    assert page.evaluate(ground) == dark


def test_a_page_that_nobody_sees_takes_no_connection(node: DemoNode, open_page: OpenPage) -> None:
    publish(node.url, "hidden", 1)
    page = open_page(node.url, "#topics")
    open_topic(page, "hidden")
    expect(page.locator("#fact-subscribers")).to_have_text("1")
    page.clock.install()
    turn(page, "hidden")
    page.clock.fast_forward(31_000)
    watcher = open_page(node.url, "#topics/hidden")
    expect(watcher.locator("#fact-subscribers")).to_have_text("1")  # its own
    publish(node.url, "hidden", 2)
    turn(page, "visible")
    expect(tail(page)).to_have_text(["2", "1"])
    expect(watcher.locator("#fact-subscribers")).to_have_text("2")


def turn(page: Page, state: str) -> None:
    page.evaluate(
        """(state) => {
          const hidden = { value: state === "hidden", configurable: true };
          Object.defineProperty(document, "hidden", hidden);
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        state,
    )


def test_a_node_that_is_killed_and_comes_back(tmp_path: Path, open_page: OpenPage) -> None:
    with DemoNode(tmp_path) as node:
        page = open_page(node.url)
        node.kill()
        expect(page.locator("#connection-text")).to_have_text("Reconnecting…")
        expect(page.locator("#activity")).to_contain_text("The feed of this node broke")
        node.start()
        expect(page.locator("#connection-text")).to_have_text("Live")
        expect(page.locator("#activity")).to_contain_text("n1 was restarted")


def test_a_change_of_leaders_shows_as_it_happens(tmp_path: Path, open_page: OpenPage) -> None:
    with cluster_of(tmp_path) as nodes:
        leader = leader_of(nodes)
        watched, other = followers_of(nodes)
        page = open_page(watched.url)
        expect(page.locator("#members tr")).to_have_count(3)
        expect(page.locator("#cluster-health")).to_have_text("All 3 nodes up")
        expect(page.locator("#members tr.leads th")).to_contain_text(leader.name)
        leader.kill()
        log = page.get_by_role("log")
        expect(log).to_contain_text(re.compile(f"({watched.name}|{other.name}) leads now"))
        expect(log).to_contain_text(f"{leader.name} cannot be reached")
        expect(page.locator("#cluster-health")).to_have_text(f"{leader.name} unreachable")
        leader.start()
        expect(log).to_contain_text(f"{leader.name} can be reached again")
        expect(page.locator("#cluster-health")).to_have_text("All 3 nodes up")


# --- topics -------------------------------------------------------------------------------------


def test_a_topic_is_created_used_changed_and_deleted(
    node: DemoNode, open_page: OpenPage, refusals: list[int]
) -> None:
    refusals += [400, 409]
    page = open_page(node.url, "#topics")
    new, name, error = (
        page.get_by_role("button", name="New topic"),
        page.get_by_label("Name", exact=True),
        page.locator("#settings-error"),
    )
    new.click()
    name.fill("not a <b>topic</b>")
    page.get_by_role("button", name="Create").click()
    expect(error).to_contain_text("The topic name is not valid")
    expect(error).to_contain_text("not a <b>topic</b>")
    name.fill("made.here")
    page.get_by_label("Messages", exact=True).fill("0")
    page.get_by_role("button", name="Create").click()
    expect(error).to_contain_text("retention.messages")
    page.get_by_label("Messages", exact=True).fill("7")
    page.get_by_role("button", name="Create").click()
    expect(page.locator("#topic-name")).to_have_text("made.here")
    expect(page.locator("#fact-retention")).to_contain_text("7 messages")

    new.click()
    name.fill("made.here")
    page.get_by_role("button", name="Create").click()
    expect(error).to_contain_text("exists")
    page.keyboard.press("Escape")

    data, result = page.get_by_label("Publish a test message"), page.locator("#publish-result")
    data.fill('{"n": 1,}')
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(result).to_contain_text("Line 1, column 9")
    data.fill('{"n": 1}')
    data.press("Control+Enter")
    expect(result).to_contain_text("Published as")
    expect(tail(page)).to_have_text(['{"n":1}'])
    expect(page.locator("#fact-messages")).to_have_text("1")

    page.get_by_role("button", name="Retention").click()
    expect(page.get_by_label("Messages", exact=True)).to_have_value("7")
    expect(page.get_by_label("Age, in seconds")).to_have_value("")  # the default, and it stays so
    page.get_by_label("Messages", exact=True).fill("9")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#fact-retention")).to_contain_text("9 messages")

    publish(node.url, "made.here", 2)
    page.get_by_role("button", name="Retention").click()
    page.get_by_label("Messages", exact=True).fill("1")
    page.get_by_role("button", name="Save").click()
    expect(error).to_contain_text("Less will be kept")
    assert node.get("/v1/topics/made.here")["messages"] == 2
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#fact-retention")).to_contain_text("1 message,")
    expect(page.locator("#fact-messages")).to_have_text("1")

    page.get_by_role("button", name="Delete", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("made.here, with 1 message")
    dialog.get_by_role("button", name="Delete").click()
    expect(page.locator("#delete-error")).to_contain_text("Write made.here")
    assert node.get("/v1/topics/made.here")["messages"] == 1
    dialog.get_by_label("Write made.here to confirm").fill("made.here")
    dialog.get_by_role("button", name="Delete").click()
    expect(page.locator("#topic-panel")).to_be_hidden()
    expect(topics(page).get_by_text("made.here")).to_have_count(0)
    assert "made.here" not in {topic["name"] for topic in node.get("/v1/topics")["topics"]}


def test_the_tail_is_searched_paused_and_told_of_a_removal(
    node: DemoNode, open_page: OpenPage
) -> None:
    publish(
        node.url, "tailed", *({"n": n, "colour": "red" if n % 10 else "Blue"} for n in range(150))
    )
    page = open_page(node.url, "#topics")
    open_topic(page, "tailed")
    expect(tail(page).first).to_have_text('{"n":149,"colour":"red"}')
    expect(tail(page)).to_have_count(100)
    page.get_by_label("Search messages").fill("blue")
    expect(tail(page)).to_have_count(10)
    expect(page.locator("#tail mark").first).to_have_text("Blue")
    publish(node.url, "tailed", {"n": 1000, "colour": "blue"}, {"n": 1001, "colour": "red"})
    expect(tail(page)).to_have_count(11)
    page.get_by_role("button", name="Pause").click()
    publish(node.url, "tailed", {"n": 1002, "colour": "blue"})
    expect(page.locator("#tail-status")).to_contain_text("1 new")
    expect(tail(page)).to_have_count(11)
    page.get_by_role("button", name="Resume").click()
    expect(tail(page).first).to_contain_text("1002")
    page.locator("#tail").hover()
    publish(node.url, "tailed", {"n": 1003, "colour": "blue"})
    expect(page.locator("#tail-status")).to_contain_text("Held while you read")
    expect(tail(page)).to_have_count(12)
    page.locator("h1#topics-title").hover()
    expect(tail(page)).to_have_count(13)
    page.get_by_label("Begin at").select_option("earliest")
    expect(tail(page)).to_have_count(15 + 3)
    page.get_by_label("Search messages").fill("")
    expect(page.locator("#tail-status")).to_contain_text("154 messages seen")
    request = Request(f"{node.url}/v1/topics/tailed", method="DELETE")
    urlopen(request, timeout=10).close()
    expect(page.locator("#tail .remark")).to_contain_text("was deleted")
    expect(page.locator("#topic-missing")).to_be_visible()


def test_more_than_can_be_read_is_sampled_and_said(node: DemoNode, open_page: OpenPage) -> None:
    page = open_page(node.url, "#topics")
    open_topic(page, "flood")
    page.get_by_label("Publish a test message").focus()
    seen = page.locator("#tail-status")
    for _ in range(200):
        publish(node.url, "flood", *({"n": n, "pad": "x" * 100} for n in range(500)))
        if "showing 1 of" in (seen.text_content() or ""):
            break
    expect(seen).to_contain_text("showing 1 of")
    assert page.locator("#tail li").count() <= TAIL_ROWS_MAX
    publish(node.url, "flood", "the last one")
    expect(tail(page).first).to_have_text('"the last one"')  # once it is quiet, all of them
    expect(tail(page).nth(1)).to_contain_text('"n":499')
    expect(tail(page).nth(150)).to_contain_text('"n":350')
    publish(node.url, "flood", "one more")
    expect(tail(page).first).to_have_text('"one more"')
    expect(page.locator("#tail li")).to_have_count(TAIL_ROWS_MAX)


def test_text_stays_text_whatever_it_says(
    node: DemoNode, open_page: OpenPage, refusals: list[int]
) -> None:
    refusals.append(400)
    page = open_page(node.url, "#topics")
    open_topic(page, "hostile")
    publish(node.url, "hostile", *HOSTILE, {text: text for text in HOSTILE})
    expect(tail(page)).to_have_count(len(HOSTILE) + 1)
    shown = [json.loads(text) for text in tail(page).all_text_contents()]
    assert shown == [{text: text for text in HOSTILE}, *reversed(HOSTILE)]
    page.get_by_label("Search messages").fill("<script>")
    expect(page.locator("#tail mark").first).to_have_text("<script>")
    page.get_by_label("Search topics").fill(HOSTILE[2])
    expect(page.locator("#topics-count")).to_have_text("0 match")
    page.get_by_label("Search topics").fill("<img src=x onerror=alert(1)>")
    expect(page.locator("#topic-search-error")).to_contain_text("'<img src=x onerror=alert(1)>' is")
    expect(page.locator("#connection-text")).to_have_text("Live")
    page.get_by_label("Publish a test message").fill(HOSTILE[0])
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.locator("#publish-result")).to_contain_text("JSON")
    for part in ("<img src=x onerror=alert(1)>", "../../etc", "a%00b", "x" * 300, "a..b"):
        page.evaluate("(part) => { location.hash = `topics/${part}` }", part)
        expect(page.locator("#topic-panel")).to_be_hidden()
    assert page.locator("main img, main iframe, main script").count() == 0


def test_a_large_message_is_cut_and_shown_whole_on_demand(
    node: DemoNode, open_page: OpenPage
) -> None:
    publish(node.url, "large", "y" * 100_000)
    page = open_page(node.url, "#topics")
    open_topic(page, "large")
    expect(tail(page)).to_have_text(re.compile("^.{600}$"))
    page.get_by_role("button", name="all 97.7 KiB").click()
    expect(tail(page)).to_have_text(re.compile("^.{100002}$"))


def test_ten_thousand_topics_take_few_elements(
    tmp_path: Path, open_page: OpenPage, capsys: pytest.CaptureFixture[str]
) -> None:
    with DemoNode(tmp_path) as node:
        for start in range(0, MANY_TOPICS, 1000):
            publish_many(node.url, *((f"topic.{n:05}", n) for n in range(start, start + 1000)))
        page = open_page(node.url, "#topics")
        expect(page.locator("#topics-count")).to_have_text("10,000 in all")
        page.get_by_role("button", name="Topic", exact=True).click()
        expect(page.locator("th[data-column=name]")).to_have_attribute("aria-sort", "ascending")
        expect(topics(page).first).to_have_text("topic.00000")
        page.evaluate("window.longTasks.length = 0")
        rows = page.locator("#topics-view-rows")
        for _ in range(30):  # as fast as it goes, through all of the list
            rows.evaluate("(rows) => { rows.scrollTop += rows.scrollHeight / 31; }")
            page.evaluate("new Promise((done) => requestAnimationFrame(done))")
            assert topics(page).count() <= ROWS_MAX
        rows.evaluate("(rows) => { rows.scrollTop = rows.scrollHeight; }")
        expect(topics(page).last).to_have_text("topic.09999")
        page.get_by_label("Search topics").fill("0042")
        expect(page.locator("#topics-count")).to_have_text("11 match")
        expect(topics(page).first).to_have_text("topic.00042")
        page.get_by_label("Search topics").fill("*.04242")
        expect(topics(page)).to_have_text(["topic.04242"])
        page.get_by_label("Search topics").fill("")
        publish(node.url, "topic.07777", *range(500))
        page.get_by_role("button", name="Rate").click()
        expect(page.locator("#topics-count")).to_have_text("10,000 in all")
        page.get_by_role("button", name="Messages").click()
        expect(topics(page).first).to_have_text("topic.07777")
        long_tasks = page.evaluate("window.longTasks.map(Math.round)")
        with capsys.disabled():
            print(f"\n10,000 topics: tasks over 50 ms: {long_tasks}")  # noqa: T201
        assert page.locator("*").count() < 1500
        assert page.locator("#topics-table").get_attribute("aria-rowcount") == "10001"


# --- without a mouse, without eyes ---------------------------------------------------------


def test_everything_is_done_with_the_keyboard_alone(node: DemoNode, open_page: OpenPage) -> None:
    publish_many(node.url, *((f"keys.{n:03}", n) for n in range(300)))
    page = open_page(node.url)
    focused = page.locator("*:focus")
    keyboard = page.keyboard
    keyboard.press("Tab")
    expect(focused).to_have_text("Skip to the content")
    tab_to(page, "a", "Topics")
    keyboard.press("Enter")
    tab_to(page, "input", "")
    keyboard.type("keys.")
    expect(page.locator("#topics-count")).to_have_text("300 match")
    tab_to(page, "button", "Topic")
    keyboard.press("Enter")
    expect(topics(page).first).to_have_text("keys.000")
    tab_to(page, "a", "keys.000")
    keyboard.press("ArrowDown")
    keyboard.press("ArrowDown")
    expect(focused).to_have_text("keys.002")
    keyboard.press("End")
    expect(focused).to_have_text("keys.299")
    keyboard.press("ArrowUp")
    expect(focused).to_have_text("keys.298")
    keyboard.press("Home")
    expect(focused).to_have_text("keys.000")
    keyboard.press("PageDown")
    expect(focused).not_to_have_text("keys.000")
    keyboard.press("PageUp")
    expect(focused).to_have_text("keys.000")
    keyboard.press("Enter")
    expect(page.locator("#topic-name")).to_be_focused()
    expect(page.locator("#topic-delete")).to_be_enabled()  # once the feed has told of it
    tab_to(page, "button", "Delete")
    keyboard.press("Enter")
    keyboard.type("keys.000")
    keyboard.press("Enter")
    expect(page.locator("#topic-panel")).to_be_hidden()
    expect(page.locator("#topics-count")).to_have_text("299 match")


def tab_to(page: Page, tag: str, text: str) -> None:
    """Press Tab until the focus is there, as somebody without a mouse would."""
    here = "() => [document.activeElement.localName, document.activeElement.textContent.trim()]"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(here) == [tag, text]:
            return
    raise AssertionError(f"Tab does not lead to {tag} {text!r}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "viewport", [{"width": 1280, "height": 800}, PHONE], ids=["desktop", "phone"]
)
def test_axe_finds_no_serious_violation(
    node: DemoNode, open_page: OpenPage, scheme: str, viewport: dict[str, int]
) -> None:
    topic = f"axe-{scheme}-{viewport['width']}"
    publish(node.url, topic, *range(20))
    page = open_page(node.url, color_scheme=scheme, viewport=viewport)
    expect(page.locator("#tile-streams")).to_have_text("0")
    page.evaluate("document.querySelector('#activity-empty').hidden = true")
    assert_accessible(page)
    page.evaluate("location.hash = 'topics'")
    expect(topics(page).get_by_text(topic, exact=True)).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="New topic").click()
    assert_accessible(page)
    page.keyboard.press("Escape")
    open_topic(page, topic)
    expect(tail(page)).to_have_count(20)
    page.get_by_label("Search messages").fill("1")
    expect(page.locator("#tail mark").first).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="Delete", exact=True).click()
    assert_accessible(page)


def test_a_phone_shows_all_without_scrolling_sideways(node: DemoNode, open_page: OpenPage) -> None:
    publish(node.url, "phone", {"a": "b" * 300})
    page = open_page(node.url, viewport=PHONE, has_touch=True, is_mobile=True)
    for view in ("overview", "topics", "topics/phone"):
        page.evaluate("(view) => { location.hash = view }", view)
        if "/" in view:
            expect(tail(page)).to_have_count(1)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["width"], view
    expect(page.locator("#topics-view-rows")).to_be_hidden()
    page.get_by_role("link", name="Back to the list").click()
    expect(page.locator("#topics-view-rows")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1024])
def test_long_names_that_differ_late_can_be_told_apart_in_a_small_window(
    node: DemoNode, open_page: OpenPage, width: int
) -> None:
    """Beside an open topic in the middle one; and the columns are as wide as the table."""
    names = [f"orders.apac.customer-{number:05}-of-many" for number in range(2)]
    publish_many(node.url, *((name, 1) for name in names))
    page = open_page(node.url, "#topics", viewport={"width": width, "height": 800})
    page.get_by_label("Search topics").fill("-of-many")
    expect(topics(page)).to_have_count(2)
    if width > 1000:
        topics(page).first.click()
        expect(page.locator("#topic-panel")).to_be_visible()
    for link in page.locator("#topic-rows a").all():
        assert link.evaluate("(a) => a.scrollHeight <= a.clientHeight + 1"), link.inner_text()
        assert link.evaluate("(a) => a.scrollWidth <= a.clientWidth + 1"), link.inner_text()
    table = page.locator("#topics-table")
    assert table.evaluate(
        "(t) => Math.abs(t.tHead.rows[0].getBoundingClientRect().width - t.clientWidth) < 2"
    )


# --- access ---------------------------------------------------------------------------------------


def test_the_page_asks_for_a_token_and_does_everything_with_it(
    open_page: OpenPage, refusals: list[int], tmp_path: Path
) -> None:
    refusals += [401, 403]
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    with Node(tmp_path / "data", auth_mode="jwt", auth_secret_file=secret) as node:
        node.start()
        page = open_page(f"http://{node.address}:{node.port}", ready=False)
        dialog, why = page.locator("#token"), page.locator("#token-why")
        expect(dialog).to_be_visible()
        expect(why).to_contain_text("needs a token with admin")
        expect(page.locator("#connection-text")).to_have_text("Needs a token")
        expect(page.locator("#activity")).to_be_empty()  # nothing broke
        assert_accessible(page)
        for wrong, words in (
            ("garbage", "is not a JSON Web Token"),
            (token(("a",), ("a",)), "needs admin, which the token does not have"),
        ):
            page.locator("#token-value").fill(wrong)
            page.keyboard.press("Enter")
            expect(why).to_contain_text(words)
        page.locator("#token-value").fill(token(admin=True))
        page.keyboard.press("Enter")
        expect(page.locator("body")).to_have_attribute("data-ready", "true")
        expect(dialog).not_to_be_visible()
        open_topic(page, "chat")
        page.locator("#publish-data").fill('"hello"')
        page.locator("#publish-form button[type=submit]").click()
        expect(tail(page).first).to_have_text('"hello"')
        page.reload()
        expect(page.locator("body")).to_have_attribute("data-ready", "true")
        expect(dialog).not_to_be_visible()
        page.evaluate("sessionStorage.clear()")
        page.reload()
        page.locator("#token-close").click()
        expect(page.locator("#banner")).to_contain_text("The request needs a valid token")
