"""What the demo's page may ask of the supervisor: to see the nodes, kill the leader, start a node.

    GET  /state                  the nodes, who leads, what happened
    POST /leader/kill            SIGKILL
    POST /nodes/<name>/start     one that is down; it would come back by itself, too

Whoever can call it can end processes. So it listens on loopback only, and each
request must have the token that the supervisor has printed (``Authorization:
Bearer``), and name this machine as its host, so that no name of somebody else's
that resolves to 127.0.0.1 leads here (DNS rebinding). A web page must be one
of the demo's own. The token is not in a cookie: nothing that a browser adds by
itself gets a foreign page anywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final

import trio
from msgspec.json import encode as encode_json
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from repl_broker.cli.stage.layout import HOSTS
from repl_broker.cli.stage.supervisor import CannotError, Supervisor
from repl_broker.config import Address
from repl_broker.web.answers import answer, empty_answer, json_answer
from repl_broker.web.door import Door, DoorOptions, open_listeners
from repl_broker.web.problems import PROBLEM_JSON

__all__ = ["create_control", "serve_control"]

BACKLOG: Final = 64
OPTIONS: Final = DoorOptions(connections_max=100, refusals_max=10, backlog=BACKLOG)
BODY_BYTES_MAX: Final = 1024  # none is wanted


async def serve_control(
    supervisor: Supervisor,
    address: Address,
    token: str,
    origins: Sequence[str],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. Raises ConfigError if the address is taken."""
    listeners = await open_listeners(address.host, address.port, BACKLOG)
    door = Door(create_control(supervisor, address.port, token, origins), listeners, OPTIONS)
    await door.run(task_status=task_status)


def create_control(
    supervisor: Supervisor, port: int, token: str, origins: Sequence[str]
) -> QuartTrio:
    """The application. ``origins`` are those of the demo's pages."""
    app = QuartTrio(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX
    hosts = {f"{host}:{port}" for host in HOSTS}

    @app.before_request
    async def guard() -> Response | None:
        if request.host not in hosts:
            return problem(403, f"This is {sorted(hosts)[0]}, not {request.host!r}.")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in origins:
            return problem(403, f"A page of {origin!r} is none of this demo.")
        if request.method == "OPTIONS":
            return empty_answer(204)
        given = request.headers.get("Authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return problem(
                401,
                "The token is missing, or that of another demo. Use the link that "
                "the demo has printed when it was started.",
            )
        return None

    @app.after_request
    async def allow(response: Response) -> Response:
        origin = request.headers.get("Origin")
        response.headers["Vary"] = "Origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        if origin in origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Methods"] = "GET, POST"
            response.headers["Access-Control-Allow-Headers"] = "Authorization"
            response.headers["Access-Control-Max-Age"] = "600"
        return response

    @app.get("/state")
    async def state() -> Response:
        return json_answer(supervisor.state())

    @app.post("/leader/kill")
    async def kill() -> Response:
        return attempt(supervisor, supervisor.kill_leader)

    @app.post("/nodes/<name>/start")
    async def start(name: str) -> Response:
        return attempt(supervisor, lambda: supervisor.start(name))

    app.register_error_handler(HTTPException, refused)
    return app


def attempt(supervisor: Supervisor, act: Callable[[], None]) -> Response:
    """Do it, and answer with what is so then; or with why it cannot be done."""
    try:
        act()
    except CannotError as error:
        return problem(409, str(error))
    return json_answer(supervisor.state(), 202)


def problem(status: int, detail: str) -> Response:
    """RFC 9457."""
    return answer(encode_json({"status": status, "detail": detail}), PROBLEM_JSON, status)


async def refused(error: Exception) -> Response:
    """What Quart refuses by itself: another path, another method."""
    assert isinstance(error, HTTPException)
    return problem(error.code or 500, error.description or error.name)
