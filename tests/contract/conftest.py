"""The one way by which the contract's tests get a node.

A test sees a ``Node``: a URL, a client, and ``stop``. How the node is run stays
here, so that the same suite can hold another front end, or a node in a process
of its own, to the same contract: add it to ``FRONT_ENDS``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio

from repl_broker import daemon
from repl_broker.config import Address, Config
from tests.contract.client import Node
from tests.nodes import configured

# Runs a node: (data directory, sections of the configuration) → Node.
Launch = Callable[..., AbstractAsyncContextManager[Node]]

TEST_SECONDS_MAX: Final = 15


@asynccontextmanager
async def quart(
    data_dir: Path, *, seconds_max: float = TEST_SECONDS_MAX, **sections: dict[str, Any]
) -> AsyncIterator[Node]:
    """A node in this process, over real TCP: ``quart(path, limits={"message_bytes": 100})``."""
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
                base_url=running.url, timeout=TEST_SECONDS_MAX, trust_env=False, verify=False
            ) as client:
                yield Node(running.url, client, stop.set)
            stop.set()


FRONT_ENDS: Final[dict[str, Launch]] = {"quart": quart}


@pytest.fixture(params=list(FRONT_ENDS))
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Launch:
    """Runs nodes on this test's own data directory; again, for a restart."""
    return partial(FRONT_ENDS[request.param], tmp_path / "data")


@pytest.fixture
async def node(launch: Launch) -> AsyncIterator[Node]:
    """A node with the default configuration."""
    async with launch() as running:
        yield running
