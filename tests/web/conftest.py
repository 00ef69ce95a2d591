"""The application by itself, over a node without disk or network."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from quart_trio import QuartTrio

from repl_broker.config import Config
from repl_broker.web.app import create_app
from tests.nodes import Node, running_node


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running_node() as running:
        yield running


@pytest.fixture
async def app(node: Node) -> QuartTrio:
    return create_app(node.broker, Config(), {})
