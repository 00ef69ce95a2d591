"""The one way by which the contract's tests get a node.

A test sees a ``Node``: a URL, a client, and ``stop``. How the node is run stays
here, so that the same suite can hold another front end, or a node in a process
of its own, to the same contract: add it to ``FRONT_ENDS``. A module whose tests
concern publishing, event streams, or reading requests at all, runs over each of them with
``pytestmark = over_all_front_ends``; the others run over the first.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import httpx
import pytest
import trio

from repl_broker import daemon
from repl_broker.config import Address, Config
from repl_broker.web.door import QUART_ONLY
from tests.contract.client import Node
from tests.contract.standard_library import StandardLibrary
from tests.nodes import configured

# Runs a node: (data directory, sections of the configuration) → Node.
Launch = Callable[..., AbstractAsyncContextManager[Node]]

TEST_SECONDS_MAX: Final = 15


@asynccontextmanager
async def door(
    data_dir: Path,
    *,
    seconds_max: float = TEST_SECONDS_MAX,
    transport: httpx.AsyncBaseTransport | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[Node]:
    """A node in this process, over real TCP: ``door(path, limits={"message_bytes": 100})``."""
    config = configured(Config(), **sections)
    config = replace(
        config,
        node=replace(config.node, data_dir=data_dir),
        http=replace(config.http, bind=Address("127.0.0.1", 0)),
    )
    stop = trio.Event()
    with trio.fail_after(seconds_max):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(partial(daemon.serve, config, stop))
            async with httpx.AsyncClient(
                base_url=running.url,
                timeout=TEST_SECONDS_MAX,
                trust_env=False,
                verify=False,
                transport=transport,
            ) as client:
                yield Node(running.url, client, stop.set)
            stop.set()


@asynccontextmanager
async def quart(data_dir: Path, **sections: Any) -> AsyncIterator[Node]:
    """The same with REPL_BROKER_TEST_QUART_ONLY=1: every request is Hypercorn's and Quart's."""
    with mock.patch.dict(os.environ, {QUART_ONLY: "1"}):
        async with door(data_dir, **sections) as node:
            yield node


@asynccontextmanager
async def door_by_http_client(data_dir: Path, **sections: Any) -> AsyncIterator[Node]:
    """As ``door``, and what asks is another HTTP client."""
    transport = StandardLibrary(TEST_SECONDS_MAX)
    async with door(data_dir, transport=transport, **sections) as node:
        yield node


FRONT_ENDS: Final[dict[str, Launch]] = {
    "door": door,
    "quart": quart,
    "door by http.client": door_by_http_client,
}
over_all_front_ends = pytest.mark.parametrize("launch", list(FRONT_ENDS), indirect=True)


@pytest.fixture(params=list(FRONT_ENDS)[:1])
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Launch:
    """Runs nodes on this test's own data directory; again, for a restart."""
    return partial(FRONT_ENDS[request.param], tmp_path / "data")


@pytest.fixture
async def node(launch: Launch) -> AsyncIterator[Node]:
    """A node with the default configuration."""
    async with launch() as running:
        yield running
