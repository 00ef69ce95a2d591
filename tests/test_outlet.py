"""The log's way out: whoever does not read it stops nobody."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

import pytest

from repl_broker import audit, logs, outlet
from repl_broker.config import LogConfig
from repl_broker.outlet import Outlet, say

PIPE_BYTES = 1 << 16
FILLING = 4095 * b"x" + b"\n"


class Pipe:
    """A pipe whose writer is a stream, as standard error is."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.stream: IO[str] = os.fdopen(writing, "w")

    def fill(self) -> None:
        """Have it take nothing more, with what is no line of the log."""
        descriptor = self.stream.fileno()
        os.set_blocking(descriptor, False)
        with suppress(BlockingIOError):
            while True:
                os.write(descriptor, FILLING)
        os.set_blocking(descriptor, True)

    def close(self) -> None:
        for out in outlet.outlets():
            out.close()
        self.stream.close()
        with suppress(OSError):
            os.close(self.reading)

    def read_all(self) -> list[str]:
        """What is in it, once its writer is closed."""
        self.stream.close()
        with os.fdopen(os.dup(self.reading)) as file:
            return file.read().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    made = Pipe()
    yield made
    made.close()
    logging.captureWarnings(False)
    root.handlers[:], root.level, logging.raiseExceptions = before


def configured(stream: IO[str], monkeypatch: pytest.MonkeyPatch, bytes_max: int) -> Outlet:
    monkeypatch.setattr(outlet, "WAITING_BYTES_MAX", bytes_max)
    monkeypatch.setattr(Outlet.__init__, "__defaults__", ("utf-8", bytes_max))
    logs.configure(LogConfig(format="json"), stream)  # type: ignore[arg-type]
    (found,) = outlet.outlets()
    return found


def test_what_was_logged_comes_out_in_its_order(pipe: Pipe) -> None:
    logs.configure(LogConfig(format="json"), pipe.stream)  # type: ignore[arg-type]
    for number in range(300):
        logging.getLogger("x").info("said number=%d", number)
    logging.shutdown()
    assert [json.loads(line)["number"] for line in pipe.read_all()] == [*range(300)]


def test_a_pipe_that_nobody_reads_stops_nobody_and_the_loss_is_told(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.fill()
    out = configured(pipe.stream, monkeypatch, 200_000)
    log = logging.getLogger("x")
    for number in range(5000):  # some 600 kB: beyond the pipe and what may wait
        log.info("said number=%d", number)
    lost = out.lost
    assert 0 < lost < 5000
    assert logs.lost_lines() == lost
    log.warning("there is room for what weighs more")
    assert out.lost == lost
    assert not out.flush(0.01)

    read = b""
    while not read.endswith(b'more"}\n'):
        read += os.read(pipe.reading, PIPE_BYTES)
    log.info("and after that")
    assert out.flush()
    lines = [json.loads(line) for line in read.decode().splitlines() if line[0] == "{"]
    lines += map(json.loads, pipe.read_all())
    numbers = [line["number"] for line in lines if "number" in line]
    assert numbers == [*range(5000 - lost)]
    notice, warning, after = lines[5000 - lost :]
    assert (notice["lines"], notice["level"]) == (lost, "warning")
    assert "standard error" in notice["remedy"]
    assert "weighs" in warning["message"]
    assert after["message"] == "and after that"


def test_what_others_can_cause_takes_no_room_from_the_audit(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.fill()
    out = configured(pipe.stream, monkeypatch, 200_000)
    for number in range(5000):
        logging.getLogger("repl_broker.web.access").info("answered number=%d", number)
    lost = out.lost
    assert lost > 0
    for number in range(100):
        audit.note("topic.delete", f"t{number}", subject="alice", address="::1", outcome="done")
    assert out.lost == lost
    read = b""
    while b"'t99'" not in read:
        read += os.read(pipe.reading, PIPE_BYTES)
    assert read.count(b"topic.delete target='t") == 100
    assert out.flush()


def test_what_was_lost_last_is_told_without_another_line(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.fill()
    out = configured(pipe.stream, monkeypatch, 200_000)
    for number in range(5000):
        logging.getLogger("x").warning("said number=%d", number, extra={"seldom": True})
    lost = out.lost
    assert lost > 0
    read = b""
    while b"lines of the log" not in read:
        read += os.read(pipe.reading, PIPE_BYTES)
    assert json.loads(read.splitlines()[-1])["lines"] == lost
    assert out.flush()


def test_a_log_that_nobody_takes_any_more_costs_nothing_and_is_counted(pipe: Pipe) -> None:
    logs.configure(LogConfig(format="json"), pipe.stream)  # type: ignore[arg-type]
    (out,) = outlet.outlets()
    os.close(pipe.reading)
    for number in range(10):
        logging.getLogger("x").warning("said number=%d", number)
        assert out.flush()  # rather than trying for ever
    assert out.lost == 10
    pipe.stream.close()


def test_another_format_goes_the_same_way(pipe: Pipe) -> None:
    logs.configure(LogConfig(format="json"), pipe.stream)  # type: ignore[arg-type]
    (before,) = outlet.outlets()
    logging.getLogger("x").warning("one")
    logs.configure(LogConfig(format="console"), pipe.stream)  # type: ignore[arg-type]
    assert outlet.outlets() == [before]
    logging.getLogger("x").warning("two")
    before.close()
    first, second = pipe.read_all()
    assert json.loads(first)["message"] == "one"
    assert second.endswith("x: two")


def test_the_last_words_come_behind_what_was_logged(pipe: Pipe) -> None:
    logs.configure(LogConfig(format="json"), pipe.stream)  # type: ignore[arg-type]
    for _ in range(100):
        logging.getLogger("x").info("logged")
    say(pipe.stream, "error: é\n")  # type: ignore[arg-type]
    lines = pipe.read_all()
    assert (len(lines), lines[-1]) == (101, "error: é")


def test_the_last_words_go_where_they_are_sent() -> None:
    stream = io.StringIO()
    say(stream, "error: x\n")
    say(None, "error: nobody is there\n")
    assert stream.getvalue() == "error: x\n"


def test_an_error_that_nobody_is_told_of_is_logged(pipe: Pipe) -> None:
    before = sys.unraisablehook, threading.excepthook
    logs.configure(LogConfig(format="json"), pipe.stream)  # type: ignore[arg-type]

    class Odd:
        def __del__(self) -> None:
            raise ValueError("in a finaliser")

    def fail() -> None:
        raise ValueError("in a thread")

    with logs.strays_caught():
        Odd()
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert before == (sys.unraisablehook, threading.excepthook)
    logging.shutdown()
    first, second = map(json.loads, pipe.read_all())
    assert "in a finaliser" in first["exception"]
    assert "in a thread" in second["exception"]
