"""The web application: which path is answered by whom.

    Door (door.py) ── this application ── Broker

The table of routes is here, whole; what a route does is in the module of its
noun. Reading requests strictly is in parameters.py and body.py, errors leave
through problems.py. The same table is described in openapi.py, and a test
compares the two. The dashboard (ui.py) is beside it: its routes are the page's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import MethodNotAllowed

from repl_broker.broker import Broker
from repl_broker.config import Config
from repl_broker.web import browsers, cors, policy, problems, refused
from repl_broker.web.access import AccessLog, Identified
from repl_broker.web.answers import allowed_methods, empty_answer
from repl_broker.web.base import Base
from repl_broker.web.body import BodyLimits, BrokerRequest
from repl_broker.web.client import Client
from repl_broker.web.cluster import Cluster
from repl_broker.web.counts import RequestCounts
from repl_broker.web.door import DoorStatistics
from repl_broker.web.events import Events
from repl_broker.web.guard import RIGHTS, Guard, Right
from repl_broker.web.messages import Messages
from repl_broker.web.operations import Operations
from repl_broker.web.statics import StaticFiles
from repl_broker.web.tokens import SubjectConverter, Tokens
from repl_broker.web.topics import Topics
from repl_broker.web.ui import Dashboard

__all__ = ["create_app", "reload_app"]

RELOADED: Final = "repl_broker"  # where the application keeps what ``reload_app`` changes


def create_app(
    broker: Broker,
    config: Config,
    apps: Mapping[str, Path],
    door: Callable[[], DoorStatistics] | None = None,
) -> QuartTrio:
    """The ASGI application of a node.

    ``apps`` maps a path such as ``/chat`` to a folder, which is served below it.
    ``door`` tells of connections, for the metrics.
    """
    app = QuartTrio("repl_broker", static_folder=None)
    app.request_class = BrokerRequest
    app.url_map.converters["subject"] = SubjectConverter
    app.url_map.merge_slashes = False  # no redirects: a path is right or 404
    app.config["RESPONSE_TIMEOUT"] = None  # the door bounds each write
    limits, requests = BodyLimits(config.limits), RequestCounts()
    refused.register(app, broker.access)  # what is refused from here on
    browsers.register(app, broker.access, broker.notices)  # the first that is asked
    guard = Guard(app, broker.access)
    _route(guard, broker, limits, Operations(broker, door, requests))
    Dashboard(broker, config, door).register(guard)
    for path, folder in apps.items():
        StaticFiles(path, folder, {"Content-Security-Policy": policy.EXAMPLE}).register(guard)
    problems.register(app, broker.refusals)
    app.before_request(_answer_options)
    app.after_request(policy.protect)
    requests.register(app)
    access_log = AccessLog(app.asgi_app)
    app.asgi_app = access_log  # type: ignore[method-assign]
    app.extensions[RELOADED] = live = _Live(limits, access_log)
    cors.register(app, lambda: live.origins)
    reload_app(app, config)
    app.asgi_app = Identified(app.asgi_app, Base(config.http))  # type: ignore[method-assign]
    return app


@dataclass(slots=True)
class _Live:
    """What of an application the configuration may change while the node serves."""

    limits: BodyLimits
    access_log: AccessLog
    origins: Collection[str] = ()


def reload_app(app: QuartTrio, config: Config) -> None:
    """Hold requests that come from now on to another configuration."""
    live: _Live = app.extensions[RELOADED]
    app.config["MAX_CONTENT_LENGTH"] = config.limits.batch_bytes
    live.limits.take(config.limits)
    live.access_log.on = config.http.access_log
    live.origins = config.http.cors_origins


def _route(guard: Guard, broker: Broker, limits: BodyLimits, operations: Operations) -> None:
    topics, messages = Topics(broker, limits), Messages(broker, limits)
    events, cluster, client = Events(broker), Cluster(broker, limits), Client()
    tokens = Tokens(broker)
    for method, path, view in (
        ("GET", "/v1/topics", topics.list),
        ("POST", "/v1/topics", topics.create),
        ("DELETE", "/v1/topics", topics.delete_matching),
        ("GET", "/v1/topics/<topic>", topics.show),
        ("PUT", "/v1/topics/<topic>", topics.put),
        ("DELETE", "/v1/topics/<topic>", topics.delete),
        ("POST", "/v1/topics/<topic>/messages", messages.publish),
        ("GET", "/v1/topics/<topic>/messages", messages.history),
        ("POST", "/v1/messages", messages.publish_many),
        ("GET", "/v1/events", events.stream),
        ("DELETE", "/v1/tokens/<subject:sub>", tokens.revoke),
        ("GET", "/v1/cluster", cluster.show),
        ("POST", "/v1/cluster/members", cluster.add_member),
        ("DELETE", "/v1/cluster/members/<member>", cluster.remove_member),
        ("POST", "/v1/cluster/leader", cluster.move_leader),
        ("GET", "/healthz", operations.health),
        ("GET", "/readyz", operations.ready),
        ("GET", "/metrics", operations.metrics),
        ("GET", "/openapi.json", operations.openapi),
        ("GET", "/docs", operations.docs),
        ("GET", "/client.js", client.script),
        ("GET", "/client.d.ts", client.types),
    ):
        guard.route(method, path, _right(method, path), view)


def _right(method: str, path: str) -> Right:
    """What the route needs; each one has to say (guard.py)."""
    return RIGHTS[method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)]


async def _answer_options() -> Response | None:
    """OPTIONS of any path that exists: which methods it has."""
    refusal = request.routing_exception
    if request.method != "OPTIONS" or not isinstance(refusal, MethodNotAllowed):
        return None
    return empty_answer(204, {"Allow": ", ".join(allowed_methods(refusal))})
