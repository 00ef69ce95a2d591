"""``repl-broker publish``: one message, or every line of standard input."""

from __future__ import annotations

import json
import sys
import time
import uuid
from typing import TYPE_CHECKING, Final

import click

from repl_broker.cli.options import SecondsType, given_token, json_option, url_option
from repl_broker.config import one_line
from repl_broker.errors import ReplBrokerError, RequestError

if TYPE_CHECKING:
    from repl_broker.cli.publisher import BatchPublisher

__all__ = ["publish"]

PROGRESS_SECONDS: Final = 0.1
KEY_LENGTH_MAX: Final = 255


@click.command()
@click.argument("topic")
@click.argument("message", required=False, metavar="[JSON|-]")
@click.option(
    "--as",
    "reading",
    type=click.Choice(["json", "text", "auto"]),
    help="How to read the message, or each line. json: it must be valid JSON. text: it is sent "
    "as a JSON string, whatever it looks like. auto: as JSON if it is valid JSON, otherwise as "
    "text. Default: json for an argument, auto for lines.",
)
@click.option(
    "--key",
    metavar="KEY",
    help="The Idempotency-Key: publishing again with the same key has no second effect. For one "
    "message only; without it, each message or batch gets a key of its own.",
)
@click.option(
    "--retry-for",
    type=SecondsType(),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to go on trying when the connection drops or the node is busy: seconds, or "
    "with a unit, such as 5m.",
)
@url_option
@json_option
def publish(
    topic: str,
    message: str | None,
    reading: str | None,
    key: str | None,
    retry_for: float,
    url: str,
    as_json: bool,
) -> None:
    """Publish to TOPIC: one JSON message, or with "-" every line of standard input.

    Lines go in order, in batches, as soon as the input pauses, so this works with
    input that never ends:

        tail -F app.log | repl-broker publish logs -

    A retry never publishes twice. A batch is kept whole or not at all. Blank lines
    are left out, except with --as text. In text, what is not UTF-8 becomes U+FFFD.
    Without JSON or "-", standard input is read if it is not a terminal.
    """
    if message is None and sys.stdin.isatty():
        raise click.UsageError("Missing argument 'JSON' (or '-' for standard input).")
    from repl_broker.message import check_topic

    check_topic(topic)
    if key is not None and not (0 < len(key) <= KEY_LENGTH_MAX and is_visible_ascii(key)):
        raise click.UsageError(
            f"--key takes 1 to {KEY_LENGTH_MAX} visible ASCII characters without spaces."
        )
    if message is None or message == "-":
        if key is not None:
            raise click.UsageError("--key is for one message; the batches of lines get their own.")
        publish_lines(topic, reading or "auto", url, retry_for, as_json)
    else:
        publish_one(topic, argument(message, reading or "json"), key, url, retry_for, as_json)


def is_visible_ascii(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def argument(text: str, reading: str) -> bytes:
    """The message that was given as an argument. Raises UsageError."""
    from repl_broker.cli.publisher import encoder

    raw = text.encode("utf-8", "surrogateescape")
    try:
        return encoder(reading)(raw, 1) or b'""'
    except RequestError as error:
        raise click.UsageError(
            f"The message is not valid JSON: {error.detail.rstrip('.')}; --as text sends it as text"
        ) from error


def publish_one(
    topic: str, data: bytes, key: str | None, url: str, retry_for: float, as_json: bool
) -> None:
    from repl_broker.cli.client import Client
    from repl_broker.cli.publisher import Sender

    with Client(url, token=given_token()) as client:
        sender = Sender(client, topic, retry_for, time.sleep, note=tell)
        answer = sender.send(data, "application/json", key or uuid.uuid4().hex)
    click.echo(json.dumps(answer) if as_json else f"published {answer.get('id')} to {topic}")


def publish_lines(topic: str, reading: str, url: str, retry_for: float, as_json: bool) -> None:
    from repl_broker.cli.client import Client
    from repl_broker.cli.lines import Input, Interrupt, Lines
    from repl_broker.cli.publisher import BatchPublisher, Sender, encoder

    stream = sys.stdin.buffer
    progress = Progress(sys.stderr.isatty())
    with Client(url, token=given_token()) as client, Interrupt() as interrupt:
        sender = Sender(
            client,
            topic,
            retry_for,
            interrupt.wait,
            lambda: interrupt.requested,
            note=progress.tell,
        )
        publisher = BatchPublisher(sender, progress.show)
        lines = Lines(Input(stream, interrupt), encoder(reading))
        try:
            while not interrupt.requested and (batch := lines.next_batch()) is not None:
                publisher.publish(batch)
        except ReplBrokerError as error:
            raise EndedEarlyError(error, publisher.count) from error
        finally:
            progress.clear()
    click.echo(summary(topic, publisher, as_json))
    if interrupt.requested:
        raise KeyboardInterrupt


class EndedEarlyError(ReplBrokerError):
    """The error that ended the publishing of lines, and how far it had come."""

    def __init__(self, error: ReplBrokerError, count: int) -> None:
        text = f"{error.title}: {error.detail}" if isinstance(error, RequestError) else str(error)
        super().__init__(f"{text}; {counted(count)} published before it")


def summary(topic: str, publisher: BatchPublisher, as_json: bool) -> str:
    if as_json:
        ids = {"first_id": publisher.first_id, "last_id": publisher.last_id}
        return json.dumps({"topic": topic, "count": publisher.count, **ids})
    return f"published {counted(publisher.count)} to {topic}"


def tell(note: str) -> None:
    """What happens meanwhile, on standard error."""
    click.echo(one_line(note), err=True)


def counted(count: int) -> str:
    return f"{count:,} message{'' if count == 1 else 's'}"


class Progress:
    """A line on the terminal that counts along; nothing where there is no terminal."""

    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal
        self.started = time.monotonic()
        self.shown = 0.0

    def show(self, count: int) -> None:
        now = time.monotonic()
        if self.terminal and now - self.shown >= PROGRESS_SECONDS:
            self.shown = now
            rate = count / max(now - self.started, 0.001)
            click.echo(f"\r\x1b[K{count:,} messages, {rate:,.0f}/s", err=True, nl=False)

    def tell(self, note: str) -> None:
        self.clear()
        tell(note)

    def clear(self) -> None:
        if self.terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
