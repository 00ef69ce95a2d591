"""Subscribing: printing, reconnecting, and what is told on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from repl_broker.cli.client import CallError, Client
from repl_broker.cli.eventstream import Event, EventReader, EventTooLargeError
from repl_broker.cli.follow import Follower
from repl_broker.cli.human import Human, printable
from tests.cli.conftest import Run
from tests.cli.fake_broker import (
    EPOCH,
    FakeBroker,
    Step,
    answer,
    drop,
    goodbye,
    heartbeat,
    html,
    message,
    message_object,
    problem,
    stream,
    subscribed,
)

START = subscribed(0)


class Followed:
    """A follower with no waiting; what it was told and how long it would have slept."""

    def __init__(
        self, broker: FakeBroker, after: str | None = None, silence_seconds: float = 30
    ) -> None:
        self.notes: list[str] = []
        self.slept: list[float] = []
        self.client = Client(broker.url)
        self.follower = Follower(
            self.client,
            ["chat"],
            after,
            self.notes.append,
            silence_seconds=silence_seconds,
            sleep=self.slept.append,
            draw=lambda: 0.5,
        )

    def take(self, count: int) -> list[str]:
        found: list[str] = []
        with self.client, closing(self.follower.messages()) as arrivals:
            for messages in arrivals:
                found += [each.decode() for each in messages]
                if len(found) >= count:
                    break
        return found


def test_messages_are_printed_for_people(run: Run, broker: FakeBroker) -> None:
    broker.steps = [stream(START, message(1, '{"a":"é\x9b"}'))]
    result = run("subscribe", "chat", "logs.>", "--count", "1", "--url", broker.url)
    assert result.exit_code == 0
    assert result.stdout == '2026-11-23T04:00:00.123Z chat {"a":"é\\u009b"}\n'
    assert result.stderr == f"subscribed: node n1, after {EPOCH}-0\n"
    assert broker.seen[0].query == {"topic": ["chat", "logs.>"]}
    assert broker.seen[0].headers["accept"] == "text/event-stream"


def test_messages_are_printed_byte_for_byte_as_json(run: Run, broker: FakeBroker) -> None:
    data = '{"n":1.50,"n":2,"s":"\\u00e9 é"}'
    broker.steps = [stream(START, message(1, data) + message(2) + message(3))]
    result = run("subscribe", "chat", "--json", "--count", "2", "--url", broker.url)
    assert result.stdout == f"{message_object(1, data)}\n{message_object(2)}\n"


def test_after_is_sent_until_there_is_a_cursor(broker: FakeBroker) -> None:
    broker.steps = [drop, stream(START, message(1), then="break"), stream(message(2))]
    followed = Followed(broker, after="earliest")
    followed.follower.connected = True  # so that the first break is one
    assert followed.take(2) == [message_object(1), message_object(2)]
    first, second, third = broker.seen
    assert [r.query.get("after") for r in broker.seen] == [["earliest"], ["earliest"], None]
    assert "last-event-id" not in first.headers
    assert "last-event-id" not in second.headers
    assert third.headers["last-event-id"] == f"{EPOCH}-1"


@pytest.mark.parametrize("last", [message(7), heartbeat(7), subscribed(7)])
def test_the_cursor_moves_with_every_id(broker: FakeBroker, last: bytes) -> None:
    broker.steps = [stream(START, last), stream(message(8))]
    assert Followed(broker).take(2 if b'data: {"id"' in last else 1)
    assert broker.seen[1].headers["last-event-id"] == f"{EPOCH}-7"


def test_a_silent_stream_is_taken_for_dead(broker: FakeBroker) -> None:
    broker.steps = [stream(START, then="hang"), stream(subscribed(0), message(1))]
    followed = Followed(broker, silence_seconds=0.2)
    assert followed.take(1) == [message_object(1)]
    assert followed.notes == [
        f"subscribed: node n1, after {EPOCH}-0",
        f"{broker.url} did not answer in time; connecting again in 0.0 s",
        f"connected again: node n1, after {EPOCH}-0",
    ]


def test_the_wait_doubles_with_full_jitter_and_starts_anew_after_success(
    broker: FakeBroker,
) -> None:
    gone: list[Step] = [drop, html(502), problem("no_leader", "No leader.")]
    start = subscribed(0, 1000)
    broker.steps = [stream(start), *gone, stream(message(1)), stream(message(2))]
    followed = Followed(broker)
    followed.take(2)
    assert followed.slept == [0.5, 1.0, 2.0, 4.0, 0.5]


def test_a_farewell_is_obeyed_to_the_letter(broker: FakeBroker) -> None:
    broker.steps = [stream(START, message(1), goodbye(1234)), stream(message(2))]
    followed = Followed(broker)
    followed.take(2)
    assert followed.slept == [1.234]
    assert followed.notes[1] == "the node shuts down; connecting again in 1.2 s"


def test_retry_after_is_waited_for(broker: FakeBroker) -> None:
    busy = problem("too_many_connections", "Full.", retry_after=3)
    broker.steps = [busy, stream(message(1))]
    followed = Followed(broker)
    followed.take(1)
    assert followed.slept == [3 + 0.5 * 2.0]


def test_what_trying_again_cannot_change_ends_it(broker: FakeBroker) -> None:
    broker.steps = [stream(START), problem("topic_not_found", "No such topic.")]
    with pytest.raises(CallError, match="topic_not_found"):
        Followed(broker).take(1)


def test_gaps_and_deleted_topics_are_told(broker: FakeBroker) -> None:
    gap = (
        b"id: x-5\nevent: gap\n"
        b'data: {"after":"x-1","first_available":"x-5","reason":"retention"}\n\n'
    )
    deleted = b'id: x-9\nevent: topic-deleted\ndata: {"topic":"chat"}\n\n'
    other = b"event: news\ndata: not json\n\n"
    broker.steps = [stream(START, gap + message(5) + deleted + other + message(6))]
    followed = Followed(broker)
    assert followed.take(2) == [message_object(5), message_object(6)]
    assert followed.notes[1:] == [
        "gap (retention): messages after x-1 are not to be had; the first that is: x-5",
        "topic deleted: chat",
    ]


def test_a_wrong_filter_is_refused_before_anything_is_sent(run: Run, broker: FakeBroker) -> None:
    result = run("subscribe", "a..b", "--url", broker.url)
    assert result.exit_code == 1
    assert result.stderr.endswith("[invalid_filter]\n")
    assert broker.seen == []


def test_a_refused_stream_shows_the_problem(run: Run, broker: FakeBroker) -> None:
    broker.steps = [problem("invalid_event_id", "x is not an event id.")]
    result = run("subscribe", "chat", "--after", "x", "--url", broker.url)
    assert result.exit_code == 1
    assert result.stderr == (
        "error: The event id is not valid: x is not an event id. [invalid_event_id]\n"
    )


def test_json_in_place_of_a_stream_is_not_the_brokers(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, {})]
    result = run("subscribe", "chat", "--url", broker.url)
    assert result.exit_code == 1
    assert "not as a repl-broker node does" in result.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(broker: FakeBroker) -> None:
    blocks = [message(n, '"' + "x" * 60_000 + '"') for n in range(1, 20)]
    broker.steps = [stream(START, *blocks, then="hang")]
    command = [sys.executable, "-m", "repl_broker", "subscribe", "chat", "--url", broker.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"2026-11-23T04:00:00.123Z chat ")
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == f"subscribed: node n1, after {EPOCH}-0\n".encode()


# Reading the format


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_blocks_are_read_however_they_are_cut(ending: bytes, size: int) -> None:
    text = (
        b"\xef\xbb\xbf: comment\nretry: 7\nid: 1\nevent: gap\ndata: a\ndata:b\n\n"
        b"id: 2\n\nid: bad\0\nunknown: x\ndata\n\ndata: last\n\n: end\n"
    ).replace(b"\n", ending)
    reader = EventReader()
    events = [e for i in range(0, len(text), size) for e in reader.feed(text[i : i + size])]
    assert events == [
        Event("gap", "1", b"a\nb"),
        Event("message", "2", b""),
        Event("message", "2", b""),
        Event("message", "2", b"last"),
    ]
    assert reader.retry_ms == 7
    assert not reader.farewell


def test_a_retry_that_is_no_number_is_ignored() -> None:
    reader = EventReader()
    assert reader.feed(b"retry: soon\nretry: -1\n\n") == []
    assert reader.retry_ms is None


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl_broker.cli.eventstream.EVENT_BYTES_MAX", 100)
    with pytest.raises(EventTooLargeError, match="more than 100 bytes"):
        EventReader().feed(b"data: " + b"x" * 200)


def test_a_message_on_a_terminal_cannot_steer_it() -> None:
    assert printable("plain é 😀") == "plain é 😀"
    assert printable("\u202e\U000e0001") == "\\u202e\\udb40\\udc01"
    assert Human(terminal=False)(b"no json \x1b[2J") == b"no json \\u001b[2J\n"
    shown = Human(terminal=True)(message_object(1, '"x"').encode())
    assert shown == b'\x1b[2m2026-11-23T04:00:00.123Z\x1b[0m \x1b[1mchat\x1b[0m "x"\n'


def test_an_interrupt_ends_the_command_without_a_traceback(broker: FakeBroker) -> None:
    broker.steps = [stream(START, message(1), then="hang")]
    command = [sys.executable, "-m", "repl_broker", "subscribe", "chat", "--url", broker.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == f"subscribed: node n1, after {EPOCH}-0\n".encode()


def test_a_long_line_in_small_pieces_is_read_in_time_that_grows_with_its_length() -> None:
    """Each piece was searched for with all that had come before: minutes for some megabytes."""
    reader = EventReader()
    started = time.process_time()
    for _ in range(1 << 17):
        assert reader.feed(b"data: 0123456789") == []
    assert time.process_time() - started < 3
    (event,) = reader.feed(b"\n\n")
    assert len(event.data) == (16 << 17) - 6


def test_a_byte_order_mark_is_left_out_at_the_beginning_and_nowhere_else() -> None:
    """However the stream is cut (WHATWG HTML 9.2.6)."""
    for sent, data in ((b"\xef\xbb\xbfdata: x\n\n", [b"x"]), (b"\n\xef\xbb\xbfdata: x\n\n", [])):
        reader = EventReader()
        found = [e.data for i in range(len(sent)) for e in reader.feed(sent[i : i + 1])]
        assert found == data
