"""The log: one handler, lines for people or for programs, nothing leaks in."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import repl_broker
from repl_broker.config import LogConfig
from repl_broker.logs import PLACE, Joined, configure
from repl_broker.trace import CURRENT, Request, apart


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level, logging.raiseExceptions = before


def logged(config: LogConfig, stream: io.StringIO) -> logging.Logger:
    configure(config, stream)
    return logging.getLogger("repl_broker.tests.logs")


def test_a_program_gets_a_json_object_a_line() -> None:
    stream = io.StringIO()
    logged(LogConfig(), stream).info("listening http=%s", "é:1\n2", extra={"node": "n1"})
    line = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "logger": "repl_broker.tests.logs",
        "message": "listening http=é:1\n2",
        "node": "n1",
        "http": "é:1\n2",
    }


def test_what_a_message_calls_by_name_is_a_member_of_the_object() -> None:
    stream = io.StringIO()
    log = logged(LogConfig(), stream)
    log.info(
        "%d%% of peer=%s seconds=%.2f up=%s error=%r level=%s",
        *(50, "n2", 1.234, True, ValueError("x"), "forged"),
    )
    log.info("nothing=%%s", extra={"a": 1})
    log.info("by name peer=%(peer)s", {"peer": "n2"})
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    members = ("level", "logger", "message", "peer", "seconds", "up", "error", "nothing")
    assert {name: first[name] for name in members if name in first} == {
        "level": "info",
        "logger": "repl_broker.tests.logs",
        "message": "50% of peer=n2 seconds=1.23 up=True error=ValueError('x') level=forged",
        "peer": "n2",
        "seconds": 1.234,
        "up": True,
        "error": "x",
    }
    assert "nothing" not in second
    assert third["message"] == "by name peer=n2"


PACKAGE: Final = Path(repl_broker.__file__).parent
FIELD: Final = re.compile(r"\b[a-z_]+=%[-+ #0]*\d*(?:\.\d+)?[a-z]")
LEVELS: Final = ("debug", "info", "warning", "error", "exception", "critical", "log")
# A value of these may have blanks: it stands in quotes, lest it look like several fields.
WORDS: Final = frozenset(
    ("error", "example", "file", "files", "folder", "like", "problem", "reason", "remedy", "what")
)


def log_texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The messages of a module: what is logged, and whatever has a place for a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            named, name = node.func.value, node.func.attr
            if isinstance(named, ast.Name) and named.id in ("log", "logger") and name in LEVELS:
                text = node.args[name == "log"]
                if isinstance(text, ast.Constant):
                    assert isinstance(text.value, str)
                    yield node.lineno, text.value
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if FIELD.search(node.value):
            yield node.lineno, node.value


def amiss(text: str) -> Iterator[str]:
    for place in PLACE.finditer(text):
        name, form = place.groups()
        if form and not name:
            yield "a value without a name is no member of the JSON object"
        if name in WORDS and form != "r":
            yield f"{name} may have blanks, and is not quoted"
    if re.search(r"\b[a-z_]+=[^%\s]", text):
        yield "what is written out is no member of the JSON object"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_each_field_that_the_code_logs_has_a_place_of_its_own(path: Path) -> None:
    """A placeholder that held "peer=n1 address=…" made one line, and no members."""
    for line, text in log_texts(ast.parse(path.read_text())):
        assert [*amiss(text)] == [], f"{path.name}:{line}: {text!r}"


@pytest.mark.parametrize(
    "text",
    ["peer refused %s reason=%r", "a reason=%s", "folder=%r remedy='chmod'", "%s free_bytes=%d"],
)
def test_a_field_without_a_place_of_its_own_is_noticed(text: str) -> None:
    ((_, found),) = {*log_texts(ast.parse(f"log.error({text!r}, x)"))}
    assert [*amiss(found)]


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_has_the_id_of_the_request_that_caused_it(form: str) -> None:
    stream = io.StringIO()
    log = logged(LogConfig(format=form), stream)
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    log.info("before")
    token = CURRENT.set(Request(f"00-{trace_id}-00f067aa0ba902b7-01"))
    log.info("during")
    log.info("of another", extra={"request_id": "x"})
    apart(log.info, "apart")
    CURRENT.reset(token)
    before, during, other, apart_line = stream.getvalue().splitlines()
    assert ("request_id" in before, "request_id" in apart_line) == (False, False)
    if form == "json":
        assert json.loads(during)["request_id"] == trace_id
        assert json.loads(other)["request_id"] == "x"
    else:
        assert during.endswith(f"during request_id={trace_id}")
        assert other.endswith("of another request_id=x")


def test_a_person_gets_a_line_that_cannot_steer_the_terminal() -> None:
    stream = Terminal()
    log = logged(LogConfig(), stream)
    log.info("role=%s", "leader\x1b[2J\r\nforged", extra={"term": 3})
    log.warning("slow")
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} INFO    "
        r"tests\.logs: role=leader\\x1b\[2J\\r\\nforged term=3",
        first,
    )
    assert second.endswith("\x1b[33mWARNING\x1b[0m tests.logs: slow")


def test_the_form_can_be_chosen() -> None:
    console, as_json = io.StringIO(), Terminal()
    logged(LogConfig(format="console"), console).warning("x")
    logged(LogConfig(format="json"), as_json).warning("x")
    assert console.getvalue().endswith("WARNING tests.logs: x\n")
    assert json.loads(as_json.getvalue())["message"] == "x"


def test_the_level_is_the_configurations() -> None:
    stream = io.StringIO()
    log = logged(LogConfig(level="warning"), stream)
    log.info("not this")
    log.warning("this")
    assert "not this" not in stream.getvalue()
    assert "this" in stream.getvalue()


def test_a_traceback_is_part_of_its_record() -> None:
    as_json, console = io.StringIO(), io.StringIO()
    for stream, form in ((as_json, "json"), (console, "console")):
        log = logged(LogConfig(format=form), stream)
        try:
            raise ZeroDivisionError("oh")
        except ZeroDivisionError:
            log.exception("failed", stack_info=True)
    line = json.loads(as_json.getvalue())
    assert line["exception"].endswith("ZeroDivisionError: oh")
    assert line["stack"].startswith("Stack")
    assert "\nZeroDivisionError: oh\n" in console.getvalue()


def test_setting_up_twice_leaves_one_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(LogConfig(), first)
    logged(LogConfig(), second).warning("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_libraries_use_the_same_handler_and_only_to_warn() -> None:
    stream, own = io.StringIO(), io.StringIO()
    library = logging.getLogger("hypercorn.error")
    handler = logging.StreamHandler(own)
    library.addHandler(handler)
    library.propagate = False
    library.setLevel("INFO")
    configure(LogConfig(), stream)
    library.info("Running on http://127.0.0.1:4080")
    library.warning("odd")
    logging.getLogger("quart.app").info("later")
    assert own.getvalue() == ""
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["odd"]


def test_debug_lets_the_libraries_speak() -> None:
    stream = io.StringIO()
    configure(LogConfig(level="debug"), stream)
    logging.getLogger("hypercorn.error").debug("detail")
    assert "detail" in stream.getvalue()


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    configure(LogConfig(), stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", stacklevel=1)
        logging.captureWarnings(False)
    assert "old" in stream.getvalue()


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    stream = io.StringIO()
    log = logged(LogConfig(), stream)
    stream.close()
    log.warning("into the void")


def test_complaints_of_one_kind_are_written_a_few_times_and_then_counted() -> None:
    now = 0.0
    stream = io.StringIO()
    log = logged(LogConfig(), stream)
    (handler,) = logging.getLogger().handlers
    # The first that is only counted is the example.
    handler.filters = [*handler.filters[:-1], Joined(lambda: now, lambda among: among - 1)]
    for number in range(1000):
        log.error("connection failed peer=%s", number)
        log.info("not a complaint number=%s", number)
    log.error("something else")
    try:
        raise ValueError("x")
    except ValueError:
        log.exception("connection failed peer=%s", "with an exception")
    lines = [json.loads(each) for each in stream.getvalue().splitlines()]
    complaints = [each for each in lines if each["level"] == "error"]
    assert [each.get("peer") for each in complaints] == [
        *range(10),
        None,
        "with an exception",
    ]
    assert [each.get("joined_for") for each in complaints] == [None] * 9 + ["10s", None, None]
    assert sum(each["level"] == "info" for each in lines) == 1000
    now = 10.0
    log.error("connection failed peer=%s", "later")
    last = json.loads(stream.getvalue().splitlines()[-1])
    example = "repl_broker.tests.logs: connection failed peer=10"
    assert (last["joined"], last["joined_example"]) == (990, example)
    log.error("connection failed peer=%s", "later")
    assert "joined" not in json.loads(stream.getvalue().splitlines()[-1])


def test_what_was_counted_is_told_by_the_next_complaint_of_any_kind() -> None:
    now = 0.0
    joined = Joined(lambda: now, lambda among: among - 1)

    def complain(kind: str, *values: object) -> logging.LogRecord | None:
        made = {"levelno": logging.ERROR, "name": "a", "msg": kind, "args": values}
        record = logging.makeLogRecord(made)
        return record if joined(record) else None

    for number in range(12):
        complain("of peers peer=%s", "n2" if number < 10 else "n3")
        complain("of disks")
    now = 20.0
    told = []
    for _ in range(3):
        record = complain("of the hour")
        assert record is not None
        told.append((getattr(record, "joined", 0), getattr(record, "joined_example", "")))
    assert told == [(2, "a: of peers peer=n3"), (2, "a: of disks"), (0, "")]


def test_kinds_are_remembered_within_a_bound() -> None:
    joined = Joined(lambda: 0.0)
    for number in range(3000):
        assert joined(logging.makeLogRecord({"levelno": logging.ERROR, "msg": f"kind {number}"}))
    assert len(joined._kinds) <= 1024
