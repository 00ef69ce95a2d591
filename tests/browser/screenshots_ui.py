"""Take the pictures of the dashboard that the documentation shows.

    python tests/browser/screenshots_ui.py [FOLDER]

They go to ``docs/images/`` if no folder is given. It starts three nodes of its own, has
them publish and deliver for a minute, and kills the leader, so that there is something to
see. What it needs is what screenshots.py needs.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[2]))

from demo_node import BROWSER_ARGUMENTS, find_browser
from playwright.sync_api import Browser, Page, expect, sync_playwright
from screenshots import IMAGES, picture, save

from tests.process.member import Member, cluster_of, followers_of, leader_of

DESKTOP = (1280, 800)
PHONE = (390, 844)
SECONDS_BEFORE = 45
SECONDS_AFTER = 25
SHOPS = ("lisbon", "porto", "berlin", "munich", "vienna", "madrid", "turin", "lyon", "ghent")
STATES = ("placed", "paid", "packed", "sent", "returned")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as data_dir,
        cluster_of(Path(data_dir)) as nodes,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=list(BROWSER_ARGUMENTS)
        )
        leader, (watched, *_) = leader_of(nodes), followers_of(nodes)
        with Load(watched):
            take_all(browser, leader, watched, folder)
        browser.close()


def take_all(browser: Browser, leader: Member, watched: Member, folder: Path) -> None:
    page = open_page(browser, watched, DESKTOP)
    time.sleep(SECONDS_BEFORE)
    leader.kill()
    expect(page.locator("#activity")).to_contain_text("leads now", timeout=20_000)
    time.sleep(SECONDS_AFTER / 2)
    leader.start()
    expect(page.locator("#activity")).to_contain_text("reached again", timeout=20_000)
    time.sleep(SECONDS_AFTER / 2)
    for name, scheme in (("dashboard.png", "light"), ("dashboard-dark.png", "dark")):
        save(folder / name, steady(page, scheme))
    phone = open_page(browser, watched, PHONE)
    phone.wait_for_timeout(2000)
    save(folder / "dashboard-phone.png", steady(phone, "dark"))
    page.evaluate("location.hash = 'topics/orders.eu.lisbon'")
    expect(page.locator("#tail li")).not_to_have_count(0)
    page.locator("#tail-search").fill("paid")
    page.locator("#topic-name").focus()
    page.wait_for_timeout(3000)
    save(folder / "dashboard-topics.png", steady(page, "light"))


def steady(page: Page, scheme: str) -> bytes:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.wait_for_timeout(1200)  # the charts are drawn anew with the next sample
    return picture(page, scheme)


def open_page(browser: Browser, node: Member, size: tuple[int, int]) -> Page:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, device_scale_factor=1.5, locale="en-GB"
    )
    page = context.new_page()
    page.goto(f"{node.url}/ui/")
    expect(page.locator("body")).to_have_attribute("data-ready", "true")
    return page


class Load:
    """Publishes in waves to many topics, and follows some, until its ``with`` ends."""

    def __init__(self, node: Member) -> None:
        self._node = node
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._publish)]
        self._threads += [
            threading.Thread(target=self._follow, args=(query,))
            for query in ("topic=orders.>", "topic=orders.eu.*", "topic=orders.eu.lisbon")
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _publish(self) -> None:
        chance = random.Random(7)
        number = 40_000
        began = time.monotonic()
        while not self._end.wait(0.05):
            wave = 1 + 0.6 * math.sin((time.monotonic() - began) / 5) + chance.random() / 2
            lines = []
            for _ in range(int(14 * wave)):
                number += 1
                shop = chance.choice(SHOPS[: chance.randint(1, len(SHOPS))])
                order = {"order": number, "state": chance.choice(STATES), "total": number % 977}
                topic = f"{chance.choice(('orders', 'orders', 'stock'))}.eu.{shop}"
                lines.append(json.dumps({"topic": topic, "data": order}))
            self._send("\n".join(lines))

    def _send(self, text: str) -> None:
        headers = {"Content-Type": "application/x-ndjson"}
        request = Request(f"{self._node.url}/v1/messages", text.encode(), headers)
        with suppress(OSError), urlopen(request, timeout=10) as answer:
            answer.read()

    def _follow(self, query: str) -> None:
        with urlopen(f"{self._node.url}/v1/events?{query}", timeout=20) as stream:
            while not self._end.is_set() and stream.read1():
                pass


if __name__ == "__main__":
    main()
