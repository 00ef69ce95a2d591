"""Sending messages until they are acknowledged, one or a batch at a time.

Every request carries an Idempotency-Key, so a repeat is safe even where nobody
knows whether the first arrived.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Final

import msgspec

from repl_broker.cli.client import (
    CallError,
    Client,
    ProblemError,
    UnreachableError,
    backoff_seconds,
    may_pass,
)
from repl_broker.cli.lines import LINE_BYTES_MAX, Batch, LineError
from repl_broker.errors import RequestError
from repl_broker.message import JsonLimits, compact_json

__all__ = ["BatchPublisher", "Encoder", "Sender", "encoder"]

RETRY_BASE_SECONDS: Final = 0.2
NOTE_SECONDS: Final = 3.0  # of trying, for which nothing is said of it

Encoder = Callable[[bytes, int], bytes | None]


class Sender:
    """Sends to one topic until it is acknowledged, refused, or time is up.

    ``sleep`` may return early; once ``stop`` is true nothing is tried again. ``note`` is told
    of what is tried again for longer, now and then.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        retry_for_seconds: float,
        sleep: Callable[[float], object],
        stop: Callable[[], bool] = lambda: False,
        note: Callable[[str], object] = lambda note: None,
    ) -> None:
        self.client = client
        self.path = f"/v1/topics/{topic}/messages"
        self.retry_for_seconds = retry_for_seconds
        self.sleep = sleep
        self.stop = stop
        self.note = note
        self.answered = False  # the node has been there: a refused connection may pass

    def send(self, content: bytes, kind: str, key: str) -> dict[str, object]:
        """The node's answer. Raises CallError: the last, when time is up."""
        headers = {"Content-Type": kind, "Idempotency-Key": key}
        deadline = time.monotonic() + self.retry_for_seconds
        note_at = time.monotonic() + NOTE_SECONDS
        attempt = 0
        while True:
            try:
                answer = self.client.call("POST", self.path, content=content, headers=headers)
            except CallError as error:
                delay = backoff_seconds(attempt, RETRY_BASE_SECONDS)
                if isinstance(error, ProblemError):
                    self.answered = True
                    delay += error.retry_after_seconds
                if self.stop() or not self.is_worth_repeating(error, attempt):
                    raise
                now = time.monotonic()
                if now + delay >= deadline:
                    raise self.given_up(error, attempt) from error
                if now >= note_at:
                    note_at = now + NOTE_SECONDS
                    self.note(f"{error}; trying again, for {deadline - now:.0f} s at most")
                self.sleep(delay)
                attempt += 1
            else:
                self.answered = True
                return answer

    def given_up(self, error: CallError, attempt: int) -> CallError:
        """The error, with what --retry-for has to do with it."""
        if attempt == 0:
            return error
        times = f"{attempt + 1} attempts in {self.retry_for_seconds:g} s (--retry-for)"
        return CallError(f"{error}; given up after {times}")

    def is_worth_repeating(self, error: CallError, attempt: int) -> bool:
        if isinstance(error, UnreachableError) and error.refused:
            # Nobody has ever answered: more likely a wrong URL than a restart.
            return self.answered or attempt > 0
        return may_pass(error)


class BatchPublisher:
    """Publishes batches in order, and finds the line that a node will not take."""

    def __init__(self, sender: Sender, progress: Callable[[int], None]) -> None:
        self.sender = sender
        self.progress = progress  # told the count after each batch
        self.count = 0
        self.first_id: object = None
        self.last_id: object = None

    def publish(self, batch: Batch) -> None:
        """Raises CallError, or LineError that names the line; the lines before it are kept."""

        try:
            answer = self.sender.send(batch.body(), "application/x-ndjson", uuid.uuid4().hex)
        except ProblemError as error:
            self.publish_around(batch, error)
        else:
            self.count += len(batch.messages)
            self.first_id = self.first_id or answer.get("first_id")
            self.last_id = answer.get("last_id")
            self.progress(self.count)

    def publish_around(self, batch: Batch, error: ProblemError) -> None:
        """A refused batch has changed nothing: send what can be sent of it."""

        if error.code == "batch_too_large" and len(batch.messages) > 1:
            middle = len(batch.messages) // 2
            self.publish(batch.part(0, middle))
            self.publish(batch.part(middle, len(batch.messages)))
            return
        bad = guilty(batch, error)
        if bad is None:
            raise error
        if bad > 0:
            self.publish(batch.part(0, bad))
        raise LineError(in_words(error, bad + 1, batch.numbers[bad])) from error


def in_words(error: ProblemError, line: int, number: int) -> str:
    """The refusal of the batch's ``line``, with the ``number`` of that line in the input."""
    detail, found = re.subn(rf"\b([Ll]ine) {line}\b", rf"\1 {number}", error.detail, count=1)
    return f"{'' if found else f'line {number}: '}{error.title}: {detail} [{error.code}]"


def guilty(batch: Batch, error: ProblemError) -> int | None:
    """The index of the message for which a batch was refused, if it was for one."""
    line = error.number("line")
    if error.code == "invalid_json" and line is not None and 1 <= line <= len(batch.messages):
        return line - 1
    if error.code in ("message_too_large", "batch_too_large"):
        limit = error.number("limit")
        sizes = [len(each) for each in batch.messages]
        if limit is not None and max(sizes) > limit:
            return next(index for index, size in enumerate(sizes) if size > limit)
        return sizes.index(max(sizes))
    return None


def encoder(reading: str) -> Encoder:
    """How a line becomes a message: JSON bytes without a line break, or None for no message."""
    limits = JsonLimits(LINE_BYTES_MAX, 1, 512)

    def as_text(line: bytes, _number: int) -> bytes:
        return msgspec.json.encode(line.decode(errors="replace"))

    def as_json(line: bytes, number: int) -> bytes | None:
        return compact_json(line, limits, number) if line.strip() else None

    def as_either(line: bytes, number: int) -> bytes | None:
        try:
            return as_json(line, number)
        except RequestError:
            return as_text(line, number)

    encoders: dict[str, Encoder] = {"text": as_text, "json": as_json, "auto": as_either}
    return encoders[reading]
