"""What tests of pages share: one Chromium and one node, for the tests of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from demo_node import BROWSER_ARGUMENTS, DemoNode, find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # here, since it may be missing

    path = find_browser()
    if path is None:
        reason = "no Chromium on the PATH; the variable CHROMIUM may name one"
        if os.environ.get("REPL_BROKER_TEST_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=path, args=list(BROWSER_ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoNode]:
    with DemoNode(tmp_path_factory.mktemp("node")) as running:
        yield running
