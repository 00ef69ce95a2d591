"""A door before a whole application and a node without disk; publishes with or without Quart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from repl_broker.config import Config
from repl_broker.fanout import Fanout, FanoutOptions
from repl_broker.web.app import create_app
from repl_broker.web.base import Base
from repl_broker.web.door import Door, DoorOptions, open_listeners
from repl_broker.web.publishing import Publishing
from repl_broker.web.streams import Streams
from tests.nodes import Node, running_node

SECONDS_MAX = 10


@dataclass
class Served:
    """What runs, and how often the application was asked."""

    door: Door
    node: Node
    fanout: Fanout
    asked: list[str]  # methods and paths that reached Quart


@asynccontextmanager
async def serving(
    *,
    in_place: bool = True,
    config: Config | None = None,
    seconds_max: float = SECONDS_MAX,
    prepare: Callable[[Node, Config], None] = lambda node, config: None,
    **limits: float,
) -> AsyncIterator[Served]:
    """A running door; it must stop by itself at the end. ``prepare`` may change the node first."""
    config = config or Config()
    asked: list[str] = []
    with trio.fail_after(seconds_max):
        async with running_node(config=config) as node:
            prepare(node, config)
            app = create_app(node.broker, config, {}, lambda: door.statistics())

            async def noted(
                scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
            ) -> None:
                assert scope["type"] == "http"
                asked.append(f"{scope['method']} {scope['path']}")
                await app(scope, receive, send)  # type: ignore[arg-type]

            listeners = await open_listeners("127.0.0.1", 0, 16)
            patience = {"body_timeout_seconds": config.limits.body_timeout_seconds, **limits}
            options = DoorOptions(answer_in_place=in_place, **patience)  # type: ignore[arg-type]
            publishing = Publishing(node.broker, config)
            limits_of = FanoutOptions(
                config.limits.heartbeat_seconds,
                config.limits.dead_reader_seconds,
                config.limits.streams_bytes,
            )
            fanout = Fanout(node.replica, node.hub, limits_of)
            streams = Streams(node.broker, fanout, config)
            refusals = node.broker.refusals
            door = Door(
                noted,
                listeners,
                options,
                publishing=publishing,
                streams=streams,
                refusals=refusals,
                base=Base(config.http),
                origins=lambda: node.broker.access.origins.configured,
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(door.run)
                yield Served(door, node, fanout, asked)
                door.stop(grace_seconds=1)
            assert door.connections == 0


def publish(
    body: bytes = b"1",
    *fields: str,
    path: str = "/v1/topics/chat/messages",
    media_type: str = "application/json",
) -> bytes:
    """An ordinary publish, with more header fields if they are given."""
    lines = [f"POST {path} HTTP/1.1", "Host: [::1]", f"Content-Type: {media_type}"]
    lines += [f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
