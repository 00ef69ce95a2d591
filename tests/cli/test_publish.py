"""Publishing: one message, and the lines of standard input."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from unittest import mock

import pytest

from repl_broker.cli import lines, publisher
from repl_broker.cli.client import CallError, Client, ProblemError
from repl_broker.cli.options import SecondsType
from repl_broker.cli.publisher import NOTE_SECONDS, Sender
from tests.cli.conftest import Run
from tests.cli.fake_broker import EPOCH, FakeBroker, drop, html, keep, keep_and_drop, problem


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "RETRY_BASE_SECONDS", 0.001)


def test_an_argument_is_published_as_the_json_that_it_is(run: Run, broker: FakeBroker) -> None:
    result = run("publish", "chat", '{"a": [1, 2.50]}', "--url", broker.url)
    assert (result.exit_code, result.stdout) == (0, f"published {EPOCH}-1 to chat\n")
    request = broker.next_request()
    assert request.path == "/v1/topics/chat/messages"
    assert request.body == b'{"a":[1,2.50]}'
    assert request.headers["content-type"] == "application/json"
    assert len(request.headers["idempotency-key"]) == 32


def test_the_answer_is_json_on_request(run: Run, broker: FakeBroker) -> None:
    result = run("publish", "chat", "1", "--json", "--url", broker.url)
    assert json.loads(result.stdout)["id"] == f"{EPOCH}-1"


def test_an_argument_that_is_not_json_is_refused_before_anything_is_sent(
    run: Run, broker: FakeBroker
) -> None:
    result = run("publish", "chat", "hello", "--url", broker.url)
    assert result.exit_code == 2
    assert "not valid JSON" in result.stderr
    assert "--as text" in result.stderr
    assert broker.seen == []


@pytest.mark.parametrize(
    ("reading", "argument", "sent"),
    [
        ("text", "hello", "hello"),
        ("text", "1", "1"),
        ("auto", "hello", "hello"),
        ("auto", "1", 1),
        ("json", "null", None),
        ("text", "", ""),
    ],
)
def test_as_says_how_to_read_the_argument(
    run: Run, broker: FakeBroker, reading: str, argument: str, sent: object
) -> None:
    assert run("publish", "t", argument, "--as", reading, "--url", broker.url).exit_code == 0
    assert broker.kept == [sent]


def test_a_key_of_the_users_own_is_sent(run: Run, broker: FakeBroker) -> None:
    for _ in range(2):
        assert run("publish", "t", "1", "--key", "order-7", "--url", broker.url).exit_code == 0
    assert broker.kept == [1]
    assert {request.headers["idempotency-key"] for request in broker.seen} == {"order-7"}


def test_a_wrong_topic_is_refused_before_anything_is_sent(run: Run, broker: FakeBroker) -> None:
    for topic in ("..", "a b", "a/b", ""):
        result = run("publish", topic, "1", "--url", broker.url)
        assert result.exit_code == 1
        assert result.stderr.endswith("[invalid_topic]\n")
    assert broker.seen == []


@pytest.mark.parametrize(
    "fault",
    [
        drop,
        keep_and_drop,
        problem("no_leader", "There is no leader.", retry_after=0),
        problem("outcome_unknown", "Nobody knows."),
        problem("rate_limited", "Slow down.", retry_after=0),
        html(502),
    ],
    ids=["dropped", "kept and dropped", "503", "504", "429", "proxy"],
)
def test_a_retry_is_under_the_same_key_and_publishes_once(
    run: Run, broker: FakeBroker, fault: object
) -> None:
    broker.steps = [fault, fault, keep]  # type: ignore[list-item]
    result = run("publish", "t", "1", "--url", broker.url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert broker.kept == [1]
    assert len(broker.seen) == 3
    assert len({request.headers["idempotency-key"] for request in broker.seen}) == 1


def test_retrying_ends_when_time_is_up(run: Run, broker: FakeBroker) -> None:
    broker.steps = [problem("no_leader", "There is no leader.", retry_after=1)] * 2
    result = run("publish", "t", "1", "--retry-for", "0.5", "--url", broker.url)
    assert result.exit_code == 1
    assert result.stderr.endswith("There is no leader. [no_leader]\n")
    assert len(broker.seen) == 1


def test_a_refusal_is_not_tried_again(run: Run, broker: FakeBroker) -> None:
    broker.steps = [problem("idempotency_key_reused", "Used before.")]
    assert run("publish", "t", "1", "--url", broker.url).exit_code == 1
    assert len(broker.seen) == 1


# Lines


def test_lines_are_one_batch_in_order(run: Run, broker: FakeBroker) -> None:
    result = run("publish", "logs", "-", "--url", broker.url, stdin=b'{"n":1}\nplain\n\n3\n"4"')
    assert (result.exit_code, result.stdout) == (0, "published 4 messages to logs\n")
    assert broker.kept == [{"n": 1}, "plain", 3, "4"]
    assert len(broker.seen) == 1
    assert broker.seen[0].headers["content-type"] == "application/x-ndjson"


def test_the_count_is_json_on_request(run: Run, broker: FakeBroker) -> None:
    result = run("publish", "logs", "-", "--json", "--url", broker.url, stdin=b"1\n2\n")
    assert json.loads(result.stdout) == {
        "topic": "logs",
        "count": 2,
        "first_id": f"{EPOCH}-1",
        "last_id": f"{EPOCH}-2",
    }


def test_standard_input_is_read_without_being_asked_if_it_is_no_terminal(
    run: Run, broker: FakeBroker
) -> None:
    assert run("publish", "logs", "--url", broker.url, stdin=b"1\n").exit_code == 0
    assert broker.kept == [1]


def test_no_lines_are_no_messages(run: Run, broker: FakeBroker) -> None:
    result = run("publish", "logs", "-", "--url", broker.url, stdin=b"\n\n")
    assert (result.exit_code, result.stdout) == (0, "published 0 messages to logs\n")
    assert broker.seen == []


def test_as_text_sends_every_line_as_a_string(run: Run, broker: FakeBroker) -> None:
    run("publish", "t", "-", "--as", "text", "--url", broker.url, stdin=b'1\r\n\n{"a"\n\xff\n')
    assert broker.kept == ["1", "", '{"a"', "\ufffd"]


def test_as_json_names_the_line_that_is_none_and_keeps_those_before(
    run: Run, broker: FakeBroker
) -> None:
    result = run("publish", "t", "-", "--as", "json", "--url", broker.url, stdin=b"1\n2\n{bad\n4\n")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "Line 3, column 2" in result.stderr
    assert "2 messages published before it" in result.stderr
    assert broker.kept == [1, 2]


def test_a_key_does_not_go_with_lines(run: Run, broker: FakeBroker) -> None:
    result = run("publish", "t", "-", "--key", "k", "--url", broker.url, stdin=b"1\n")
    assert result.exit_code == 2
    assert broker.seen == []


def test_large_input_goes_in_several_batches_in_order(
    run: Run, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BATCH_LINES_MAX", 100)
    monkeypatch.setattr(lines, "BATCH_BYTES_MAX", 300)
    monkeypatch.setattr(lines, "READ_BYTES", 1000)
    text = "".join(f"{n}\n" for n in range(1000))
    broker.steps = [keep, keep_and_drop, keep, problem("outcome_unknown", "?"), drop]
    result = run("publish", "t", "-", "--url", broker.url, stdin=text.encode())
    assert (result.exit_code, result.stdout) == (0, "published 1,000 messages to t\n")
    assert broker.kept == [*range(1000)]
    assert max(len(request.body) for request in broker.seen) <= 300
    assert max(len(request.lines) for request in broker.seen) <= 100


def test_a_line_over_the_nodes_limit_is_named_and_those_before_are_kept(
    run: Run, broker: FakeBroker
) -> None:
    broker.steps = [
        problem("message_too_large", "The message on line 2 has 6 bytes; the limit is 5.", limit=5)
    ]
    result = run("publish", "t", "-", "--url", broker.url, stdin=b"1\n\n123456\n1234567\n")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: The message is too large: The message on line 3 has 6 bytes; the limit is 5. "
        "[message_too_large]; 1 message published before it\n"
    )
    assert broker.kept == [1]


def test_the_longest_line_is_named_where_the_node_names_no_limit(
    run: Run, broker: FakeBroker
) -> None:
    broker.steps = [problem("message_too_large", "Too large.")]
    result = run("publish", "t", "-", "--url", broker.url, stdin=b"123\n1\n")
    assert result.stderr.startswith("error: line 1: The message is too large: ")
    assert broker.kept == []


def test_a_line_that_only_the_node_refuses_is_named(run: Run, broker: FakeBroker) -> None:
    broker.steps = [problem("invalid_json", "Too deep.", line=2, column=1)]
    result = run("publish", "t", "-", "--url", broker.url, stdin=b"1\n\n[[2]]\n3\n")
    assert result.stderr.startswith("error: line 3: The body is not valid JSON: Too ")
    assert broker.kept == [1]


def test_a_batch_over_the_nodes_limit_is_cut_in_two(run: Run, broker: FakeBroker) -> None:
    too_large = problem("batch_too_large", "The limit is 2 messages.", limit=2)
    broker.steps = [too_large, keep, too_large, keep]
    result = run("publish", "t", "-", "--url", broker.url, stdin=b"1\n2\n3\n4\n5\n")
    assert result.exit_code == 0
    assert broker.kept == [1, 2, 3, 4, 5]


def test_a_refusal_that_is_no_lines_fault_ends_with_the_count(run: Run, broker: FakeBroker) -> None:
    broker.steps = [problem("topic_not_found", "No such topic.")]
    result = run("publish", "t", "-", "--url", broker.url, stdin=b"1\n")
    assert result.exit_code == 1
    assert result.stderr.endswith("[topic_not_found]; 0 messages published before it\n")


def test_a_line_without_end_is_refused_before_it_takes_the_memory(
    run: Run, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 1000)
    monkeypatch.setattr(lines, "READ_BYTES", 300)
    result = run("publish", "t", "-", "--url", broker.url, stdin=b"1\n" + b"x" * 5000)
    assert result.exit_code == 1
    assert "line 2 has more than 1,000 bytes" in result.stderr
    assert broker.kept == [1]


# As a process, with pipes


@contextmanager
def publishing(broker: FakeBroker, stderr: int = subprocess.PIPE) -> Iterator[Pipes]:
    command = [sys.executable, "-m", "repl_broker", "publish", "logs", "-", "--url", broker.url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
    ) as process:
        assert process.stdin is not None
        try:
            yield Pipes(process, process.stdin)
        finally:
            process.kill()


class Pipes:
    def __init__(self, process: subprocess.Popen[bytes], stdin: IO[bytes]) -> None:
        self.process = process
        self.stdin = stdin

    def end(self) -> tuple[bytes, bytes]:
        return self.process.communicate(timeout=10)


def test_lines_go_when_the_input_pauses_not_when_it_ends(broker: FakeBroker) -> None:
    with publishing(broker) as pipes:
        for n in range(3):
            pipes.stdin.write(b"%d\nunfinished" % n)
            assert broker.next_request().lines[-1] == (n if n == 0 else f"unfinished{n}")
        out, err = pipes.end()
    assert (out, err) == (b"published 4 messages to logs\n", b"")
    assert broker.kept == [0, "unfinished1", "unfinished2", "unfinished"]


def test_an_interrupt_ends_cleanly_with_the_count(broker: FakeBroker) -> None:
    with publishing(broker) as pipes:
        pipes.stdin.write(b"1\n2\n")
        assert broker.next_request().lines == [1, 2]
        pipes.process.send_signal(signal.SIGINT)
        assert pipes.process.wait(10) == 130
        out, err = pipes.end()
    assert (out, err) == (b"published 2 messages to logs\n", b"")


def test_a_node_that_goes_away_for_a_while_is_waited_for(broker: FakeBroker) -> None:
    broker.steps = [keep, keep_and_drop, problem("shutting_down", "Bye.", retry_after=0), keep]
    with publishing(broker) as pipes:
        pipes.stdin.write(b"1\n")
        broker.next_request()
        pipes.stdin.write(b"2\n")
        out, err = pipes.end()
    assert (out, err) == (b"published 2 messages to logs\n", b"")
    assert broker.kept == [1, 2]


def test_progress_is_shown_on_a_terminal(broker: FakeBroker) -> None:
    ours, theirs = pty.openpty()
    try:
        with publishing(broker, stderr=theirs) as pipes:
            pipes.stdin.write(b"1\n")
            assert b"1 messages, " in os.read(ours, 1000)
            assert pipes.end()[0] == b"published 1 message to logs\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_key_that_no_header_can_hold_is_refused(run: Run, broker: FakeBroker) -> None:
    for key in ("", "a b", "é", "x" * 256):
        result = run("publish", "t", "1", "--key", key, "--url", broker.url)
        assert result.exit_code == 2
        assert "visible ASCII" in result.stderr
    assert broker.seen == []


def test_an_interrupt_is_ignored_where_the_shell_says_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with lines.Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert not interrupt.requested
            assert not interrupt.wait(0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_does_not_wait_for_anything() -> None:
    with lines.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        assert not interrupt.wait(None)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# --- what is misread, and what is said ---------------------------------------------------


def test_a_byte_order_mark_at_the_beginning_is_no_part_of_the_first_line(
    run: Run, broker: FakeBroker
) -> None:
    """Or the first line would be text, and the others JSON."""
    for text in (b'{"a":1}\n{"a":2}\n', b"\n[1]\n", b""):
        broker.kept.clear()
        broker.steps = [keep]
        result = run("publish", "t", "-", "--url", broker.url, stdin=b"\xef\xbb\xbf" + text)
        assert result.exit_code == 0, result.output
        assert broker.kept == [json.loads(line) for line in text.split()]


def test_a_byte_order_mark_elsewhere_stays(run: Run, broker: FakeBroker) -> None:
    broker.steps = [keep]
    mark = b"\xef\xbb\xbf"
    run("publish", "t", "-", "--url", broker.url, stdin=mark + mark + b"1\n" + mark + b"2\n")
    assert broker.kept == ["\ufeff1", "\ufeff2"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_an_input_in_utf_16_is_refused(run: Run, broker: FakeBroker, encoding: str) -> None:
    data = '\ufeff{"a":1}\n' if encoding != "utf-16" else '{"a":1}\n'
    result = run("publish", "t", "-", "--url", broker.url, stdin=data.encode(encoding))
    assert result.exit_code == 1
    assert "the input is UTF-16; make it UTF-8 first: iconv" in result.stderr
    assert broker.seen == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("2", 2), ("0.5", 0.5), ("1s", 1), ("500ms", 0.5), ("1.5m", 90), ("2 h", 7200)],
)
def test_a_time_may_have_a_unit(text: str, seconds: float) -> None:
    assert SecondsType().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1x", "-1", "inf", "nan", "1e3", "s"])
def test_what_is_no_time_is_told(run: Run, text: str) -> None:
    result = run("publish", "t", "1", "--retry-for", text)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "wanted a number of seconds, or with a unit (ms, s, m, h, d)" in result.stderr


def test_giving_up_says_that_it_was_tried_again_and_for_how_long(
    run: Run, broker: FakeBroker
) -> None:
    broker.steps = [problem("no_leader", "There is no leader.", retry_after=0)] * 100
    result = run("publish", "t", "1", "--retry-for", "700ms", "--url", broker.url)
    assert result.exit_code == 1
    attempts = len(broker.seen)
    assert attempts > 1
    assert result.stderr.endswith(
        f"[no_leader]; given up after {attempts} attempts in 0.7 s (--retry-for)\n"
    )


def test_what_is_tried_again_for_longer_is_told() -> None:
    told: list[str] = []
    now = [0.0]

    class Away:
        def call(self, *_: object, **__: object) -> dict[str, object]:
            raise ProblemError(503, {"title": "No leader", "code": "no_leader"})

    def sleep(seconds: float) -> None:
        now[0] += seconds

    sender = Sender(Away(), "t", 60, sleep, note=told.append)  # type: ignore[arg-type]
    with mock.patch("time.monotonic", side_effect=lambda: now[0]):
        with pytest.raises(CallError, match="given up"):
            sender.send(b"1", "application/json", "k")
    assert told[0].startswith("No leader [no_leader]; trying again, for 5")
    assert len(told) <= 60 / NOTE_SECONDS


def test_a_request_that_cannot_be_sent_is_not_tried_again(broker: FakeBroker) -> None:
    """The library's error shows what it is, for instance a token with a line break."""
    token = "s3cr3t\n"
    with Client(broker.url, token=lambda: token) as client:
        sender = Sender(client, "t", 60, lambda _: pytest.fail("it is tried again"))
        with pytest.raises(CallError, match="cannot be sent") as caught:
            sender.send(b"1", "application/json", "k")
    assert "s3cr3t" not in str(caught.value)
