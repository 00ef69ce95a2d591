"""The control of the demo's cluster: who may use it, and what it does. Nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from repl_broker.cli.stage.control import create_control
from repl_broker.cli.stage.supervisor import CannotError

PORT = 4089
ORIGIN = "http://127.0.0.1:4080"
KEY = {"Authorization": "Bearer secret-of-this-demo"}
ACTIONS = [("GET", "/state"), ("POST", "/leader/kill"), ("POST", "/nodes/n1/start")]

every_action = pytest.mark.parametrize(("method", "path"), ACTIONS)


class FakeSupervisor:
    def __init__(self) -> None:
        self.done: list[str] = []

    def state(self) -> dict[str, Any]:
        return {"leader": "n1"}

    def kill_leader(self) -> None:
        if self.done:
            raise CannotError("No node leads at the moment.")
        self.done.append("kill")

    def start(self, name: str) -> None:
        self.done.append(f"start {name}")


class Control:
    """The application, and what it did."""

    def __init__(self) -> None:
        self.supervisor = FakeSupervisor()
        app = create_control(
            self.supervisor,  # type: ignore[arg-type]
            PORT,
            "secret-of-this-demo",
            [ORIGIN, "http://localhost:4080"],
        )
        self.client = app.test_client()

    async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> Any:
        given = {"Host": f"127.0.0.1:{PORT}", **headers}
        return await self.client.open(path, method=method, headers=given)


@pytest.fixture
def control() -> Control:
    return Control()


async def test_a_page_of_the_demo_sees_kills_and_starts(control: Control) -> None:
    for (method, path), status in zip(ACTIONS, (200, 202, 202), strict=True):
        response = await control.ask(method, path, {**KEY, "Origin": ORIGIN})
        assert response.status_code == status
        assert await response.get_json() == {"leader": "n1"}
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Cache-Control"] == "no-store"
    assert control.supervisor.done == ["kill", "start n1"]


async def test_a_terminal_may_too(control: Control) -> None:
    """Something that is no web page names no origin; the token is what counts."""
    assert (await control.ask("POST", "/leader/kill", KEY)).status_code == 202
    assert control.supervisor.done == ["kill"]


async def test_what_cannot_be_done_now_says_why(control: Control) -> None:
    await control.ask("POST", "/leader/kill", KEY)
    response = await control.ask("POST", "/leader/kill", KEY)
    assert response.status_code == 409
    assert await response.get_json() == {"status": 409, "detail": "No node leads at the moment."}


@every_action
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer of-another-demo"}, 401),
        ({"Authorization": "Basic secret-of-this-demo"}, 401),
        ({"Authorization": "Bearer é"}, 401),
        ({"Cookie": "token=secret-of-this-demo"}, 401),
        ({**KEY, "Origin": "https://evil.example"}, 403),
        ({**KEY, "Origin": "null"}, 403),
        ({**KEY, "Origin": "http://127.0.0.1:9999"}, 403),
        ({**KEY, "Origin": "http://127.0.0.1:4080.evil.example"}, 403),
        ({**KEY, "Origin": f"http://127.0.0.1:{PORT}"}, 403),
        ({**KEY, "Host": "evil.example"}, 403),
        ({**KEY, "Host": f"evil.example:{PORT}"}, 403),
        ({**KEY, "Host": "127.0.0.1"}, 403),
        ({**KEY, "Host": f"evil.example:{PORT}", "Origin": ORIGIN}, 403),
    ],
)
async def test_nobody_else_may(
    control: Control, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    response = await control.ask(method, path, headers)
    assert response.status_code == status
    assert (await response.get_json())["status"] == status
    assert response.headers.get("Access-Control-Allow-Origin") in (None, ORIGIN)
    assert control.supervisor.done == []


@every_action
async def test_a_foreign_page_gets_no_leave_to_ask(
    control: Control, method: str, path: str
) -> None:
    """The browser asks first (preflight), since the token makes it no simple request."""
    asked = {"Access-Control-Request-Method": method}
    foreign = await control.ask("OPTIONS", path, {**asked, "Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in foreign.headers
    own = await control.ask("OPTIONS", path, {**asked, "Origin": ORIGIN})
    assert own.status_code == 204
    assert own.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert own.headers["Access-Control-Allow-Headers"] == "Authorization"
    assert method in own.headers["Access-Control-Allow-Methods"]
    assert control.supervisor.done == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/leader/kill", 405), ("GET", "/", 404), ("POST", "/state", 405), ("PUT", "/x", 404)],
)
async def test_there_is_nothing_else(control: Control, method: str, path: str, status: int) -> None:
    response = await control.ask(method, path, KEY)
    assert response.status_code == status
    assert control.supervisor.done == []
