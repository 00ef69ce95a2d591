"""Take the pictures of the chat that the documentation shows.

    python tests/browser/screenshots.py [FOLDER]

They go to ``docs/images/`` if no folder is given. It needs Playwright (``pip
install -e '.[test]'``) and a Chromium, and starts a broker and a cluster of its own. The page
asks for the font Inter and takes the system's own where that is missing; the
pictures in the repository were taken with Inter (Debian: ``fonts-inter``).
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from demo_node import BROWSER_ARGUMENTS, DemoNode, find_browser
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.process.demo import Demo

IMAGES = Path(__file__).parents[2] / "docs" / "images"
IMAGE_BYTES_MAX = 150 * 1024
DESKTOP = (860, 680)
PHONE = (360, 680)

TALK = [
    ("Ana Moreira", "Morning! The price feed runs over the broker since last night."),
    ("Ana Moreira", "One process, one port. The Redis box is off."),
    ("Ben Carter", "I did not notice a thing. That is the best kind of migration."),
    ("Ana Moreira", "I pulled the plug on it twice at three in the morning, to be sure."),
    ("Ben Carter", "And?"),
    ("Ana Moreira", "Every message is there. Once, and in order."),
]
CLUSTER_TALK = [
    ("Ana Moreira", "Three nodes. n1 leads, and my stream comes from it."),
    ("Ben Carter", "Mine comes from n2. Go on, press the red button."),
    ("Ana Moreira", "Pressed. Did you see anything?"),
]
ROOMS = [("deploys", "v2.4.1 is out on both nodes"), ("deploys", "Latency is flat"), ("tea", "Two")]

# Two windows side by side on a plain ground, as one picture.
COMPOSITION = """
<style>
  body {{ margin: 0; padding: 28px; display: flex; gap: 22px; width: max-content;
          background: {ground}; }}
  img {{ display: block; border-radius: 14px; box-shadow: 0 0 0 1px {edge}, 0 18px 40px {shade}; }}
</style>
<img src="data:image/png;base64,{left}" width="{left_width}">
<img src="data:image/png;base64,{right}" width="{right_width}">
"""
GROUNDS = {
    "light": {"ground": "#cfe3de", "edge": "#0001", "shade": "#0b3d3726"},
    "dark": {"ground": "#0d2422", "edge": "#fff2", "shade": "#0008"},
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as data_dir,
        DemoNode(Path(data_dir), port=default_port()) as node,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=list(BROWSER_ARGUMENTS)
        )
        take_all(browser, node, folder)
        with Demo(Path(data_dir) / "cluster", http=f"127.0.0.1:{default_port() or 0}") as demo:
            demo.start()
            take_cluster(browser, demo, folder)
            browser.close()


def default_port() -> int | None:
    """4080, so that the pictures show what a reader will see; None if it is taken."""
    with socket.socket() as probe:
        return None if probe.connect_ex(("127.0.0.1", 4080)) == 0 else 4080


def take_all(browser: Browser, node: DemoNode, folder: Path) -> None:
    ana = open_chat(browser, node.chat_url, "Ana Moreira", DESKTOP)
    ben = open_chat(browser, node.chat_url, "Ben Carter", PHONE)
    for room, text in ROOMS:
        post(ana, room, text)
    pages = {"Ana Moreira": ana, "Ben Carter": ben}
    for number, (name, text) in enumerate(TALK, 1):
        say(pages[name], text)
        for page in pages.values():
            expect(page.locator("#messages .message")).to_have_count(number)
    for name, scheme in (("chat.png", "light"), ("chat-dark.png", "dark")):
        save(folder / name, compose(browser, ana, ben, scheme))

    wide = open_chat(browser, node.chat_url, "Carla", (1280, 760))
    save(folder / "chat-how-it-works.png", picture(wide, "light"))
    node.kill()
    expect(ana.locator("#banner")).to_be_visible()
    say(ana, "Third time. Go on writing, I will start it again.")
    expect(ana.locator("#pending li")).to_have_count(1)
    say(ben, "I see it. This waits here until it is back.")
    expect(ben.locator("#pending li")).to_have_count(1)
    save(folder / "chat-reconnecting.png", compose(browser, ana, ben, "light"))
    for page in (ana, ben, wide):  # what they wait to say is not for the next broker on this port
        page.context.close()


def take_cluster(browser: Browser, demo: Demo, folder: Path) -> None:
    """Before the leader is killed and after it: the light and the dark one, and a phone."""
    ana = open_chat(browser, demo.links["n1"], "Ana Moreira", (1280, 760))
    ben = open_chat(browser, demo.links["n2"], "Ben Carter", PHONE)
    pages = {"Ana Moreira": ana, "Ben Carter": ben}
    for number, (name, text) in enumerate(CLUSTER_TALK, 1):
        if number == len(CLUSTER_TALK):
            ana.locator("#kill").click()
        say(pages[name], text)
        for page in pages.values():
            expect(page.locator("#messages .message")).to_have_count(number, timeout=20_000)
    expect(ana.locator("#status-node")).not_to_have_text("n1", timeout=20_000)
    expect(ana.locator("#happenings")).to_contain_text("Your stream went")
    for name, scheme in (("chat-cluster.png", "light"), ("chat-cluster-dark.png", "dark")):
        save(folder / name, picture(ana, scheme))
    save(folder / "chat-cluster-phone.png", picture(ben, "light"))


def open_chat(browser: Browser, url: str, name: str, size: tuple[int, int]) -> Page:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        device_scale_factor=1.5,
        locale="en-GB",
    )
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Your name", exact=True).fill(name)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#status-text")).to_have_text("Live")
    expect(page.locator("#log")).to_have_attribute("aria-busy", "false")
    return page


def say(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.keyboard.press("Enter")


def post(page: Page, room: str, text: str) -> None:
    """Publish as something else than this page would, so that rooms have unread messages."""
    page.evaluate(
        """([topic, text]) => fetch(`/v1/topics/${topic}/messages`, {
            method: "POST",
            headers: {"Content-Type": "application/json"},
            body: JSON.stringify({name: "Carla", text}),
        })""",
        [f"chat.{room}", text],
    )
    expect(page.locator(f'#rooms a[href="#{room}"] .badge')).to_be_visible()


def picture(page: Page, scheme: str) -> bytes:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.evaluate("document.activeElement.blur()")
    page.evaluate(
        "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
    )
    return page.screenshot(animations="disabled")


def compose(browser: Browser, left: Page, right: Page, scheme: str) -> bytes:
    page = browser.new_page(device_scale_factor=1.5)
    encoded = [base64.b64encode(picture(each, scheme)).decode() for each in (left, right)]
    page.set_content(
        COMPOSITION.format(
            left=encoded[0],
            right=encoded[1],
            left_width=DESKTOP[0],
            right_width=PHONE[0],
            **GROUNDS[scheme],
        )
    )
    box = page.locator("body").bounding_box()
    assert box is not None
    page.set_viewport_size({"width": int(box["width"]), "height": int(box["height"])})
    image = page.screenshot()
    page.close()
    return image


def save(path: Path, image: bytes) -> None:
    """Write a picture, smaller by what pngquant and oxipng can do where they are installed."""
    path.write_bytes(image)
    for command in (
        ("pngquant", "--force", "--strip", "--speed", "1", "--output", str(path), "256", str(path)),
        ("oxipng", "--quiet", "-o", "4", "--strip", "safe", str(path)),
    ):
        if shutil.which(command[0]):
            subprocess.run(command, check=False)
    size = path.stat().st_size
    remark = "" if size <= IMAGE_BYTES_MAX else "  (more than 150 KB; is pngquant installed?)"
    print(f"{path.name}: {size / 1024:.0f} KB{remark}")  # noqa: T201


if __name__ == "__main__":
    main()
