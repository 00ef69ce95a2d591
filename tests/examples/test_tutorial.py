"""The page of the tutorial does what its reader is told that it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from tests.test_docs import ROOT, Node, files_of, publish, served, web_page

pytestmark = [pytest.mark.process, pytest.mark.browser]
__all__ = ["web_page"]

TUTORIAL: Final = ROOT / "docs" / "tutorial" / "live-page.md"


def count(page: Any, tea: int, coffee: int) -> None:
    """Wait until so many votes are shown."""
    page.wait_for_function(
        "wanted => ['tea', 'coffee'].map(id => document.getElementById(id).textContent).join()"
        " === wanted",
        arg=f"{tea},{coffee}",
    )


def test_the_poll_counts_in_every_window_and_a_vote_outlives_the_node(
    web_page: Any, tmp_path: Path
) -> None:
    with served(tmp_path / "poll") as origin:
        node = Node(tmp_path / "data", cors_origins=origin)
        files_of(TUTORIAL, tmp_path, node)
        node.start()
        one_browser = web_page.context.browser.new_context()
        page, other = pages = [one_browser.new_page(), one_browser.new_page()]
        try:
            for each in pages:
                each.goto(f"{origin}/")
                each.locator("[role=status]", has_text="live").wait_for()
            publish(node, "poll", '{"vote":"tea"}')
            publish(node, "poll", '{"vote":"constructor"}')
            other.locator("button", has_text="Coffee").click()
            for each in pages:
                count(each, 1, 1)
            node.kill()
            page.locator("[role=status]", has_text="reconnecting").wait_for()
            page.locator("button", has_text="Coffee").click()
            node.start()
            for each in pages:
                count(each, 1, 2)
                each.locator("[role=status]", has_text="live").wait_for()
        finally:
            one_browser.close()
            node.kill()
