"""Errors leave as problems, with nothing of the inside in them."""

from __future__ import annotations

import json
import logging
import re
from typing import NoReturn

import pytest
import trio
from quart_trio import QuartTrio
from werkzeug.exceptions import ImATeapot, ServiceUnavailable

from repl_broker.errors import PROBLEMS, OutcomeUnknownError, RequestError, StorageError
from repl_broker.web.guard import GUARD, Right
from repl_broker.web.problems import REMEDIES, problem


def raising(app: QuartTrio, error: BaseException) -> None:
    async def fail() -> NoReturn:
        raise error

    app.extensions[GUARD].route("GET", "/fail", Right.OPEN, fail)


async def answer(app: QuartTrio) -> tuple[int, dict[str, str], dict[str, object]]:
    response = await app.test_client().get("/fail?secret=1")
    headers = {name.lower(): value for name, value in response.headers.items()}
    assert headers["content-type"] == "application/problem+json"
    return response.status_code, headers, json.loads(await response.get_data())


@pytest.mark.parametrize("code", list(PROBLEMS))
async def test_every_code_is_answered_with_its_status_and_title(app: QuartTrio, code: str) -> None:
    raising(app, RequestError(code, "What is wrong.", limit=5))
    status, headers, found = await answer(app)
    assert (status, found) == (
        PROBLEMS[code][0],
        {
            "type": f"/docs#{code}",
            "title": PROBLEMS[code][1],
            "status": PROBLEMS[code][0],
            "detail": "What is wrong.",
            "code": code,
            "limit": 5,
        },
    )
    assert ("retry-after" in headers) == (status in {429, 503, 507})


async def test_an_unknown_outcome_is_504_and_says_what_to_do(app: QuartTrio) -> None:
    raising(app, OutcomeUnknownError("Ask again with the same Idempotency-Key."))
    status, _, found = await answer(app)
    assert (status, found["code"]) == (504, "outcome_unknown")


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("inner secret"),
        StorageError("inner secret: disk"),
        ExceptionGroup("inner secret", [ValueError("inner secret")]),
        ServiceUnavailable("inner secret"),
    ],
)
async def test_an_error_of_ours_is_logged_whole_and_told_to_nobody(
    app: QuartTrio, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    raising(app, error)
    with caplog.at_level(logging.ERROR, "repl_broker"):
        status, _, found = await answer(app)
    assert (status, found["code"]) == (500, "internal_error")
    assert "inner" not in json.dumps(found)
    (record,) = caplog.records
    assert record.name == "repl_broker.web.problems"
    assert record.getMessage() == "request failed method=GET path='/fail'"
    assert record.exc_info is not None
    assert "inner secret" in caplog.text


async def test_what_the_framework_refuses_is_a_problem_too(app: QuartTrio) -> None:
    raising(app, ImATeapot())
    status, _, found = await answer(app)
    assert (status, found["code"]) == (400, "malformed_request")


async def test_cancellation_is_no_error(app: QuartTrio, caplog: pytest.LogCaptureFixture) -> None:
    scope = trio.CancelScope()

    async def wait() -> str:
        scope.cancel()
        await trio.sleep_forever()
        raise AssertionError

    app.extensions[GUARD].route("GET", "/wait", Right.OPEN, wait)
    with scope:
        await app.test_client().get("/wait")
    assert scope.cancelled_caught
    assert not caplog.records


def test_every_code_has_a_remedy_and_a_sound_name() -> None:
    assert list(REMEDIES) == list(PROBLEMS)
    for code, (status, title) in PROBLEMS.items():
        assert re.fullmatch("[a-z0-9]+(_[a-z0-9]+)*", code)
        assert 400 <= status <= 599
        assert title[0].isupper()
        assert not title.endswith(".")


async def test_a_problem_of_503_says_when_to_come_back(app: QuartTrio) -> None:
    async with app.test_request_context("/"):
        assert int(problem("shutting_down", "x").headers["Retry-After"]) > 0
