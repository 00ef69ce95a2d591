"""Following an event stream across connections.

The cursor is the last event id that came, on messages, control events and
heartbeats alike. After a break the stream is asked for from there on
(``Last-Event-ID``), so nothing is missed and nothing comes twice.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final

from repl_broker.cli.client import (
    CallError,
    Client,
    ProblemError,
    UnreachableError,
    backoff_seconds,
    may_pass,
)
from repl_broker.cli.eventstream import Event, EventReader

__all__ = ["Follower"]

# A node sends a heartbeat in every 15 s of silence: three missed ones are enough.
SILENCE_SECONDS: Final = 45.0
RETRY_SECONDS: Final = 2.0  # until the node names its own


class Follower:
    """Gives the messages of some filters, for as long as the caller wants them.

    ``note`` is told, in one line each, of what happens beside the messages.
    ``silence_seconds``, ``sleep`` and ``draw`` (0 to 1) are for tests.
    """

    def __init__(
        self,
        client: Client,
        filters: Sequence[str],
        after: str | None,
        note: Callable[[str], object],
        *,
        silence_seconds: float = SILENCE_SECONDS,
        sleep: Callable[[float], object] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.client = client
        self.filters = filters
        self.after = after
        self.note = note
        self.silence_seconds = silence_seconds
        self.sleep = sleep
        self.draw = draw
        self.cursor: str | None = None
        self.retry_seconds = RETRY_SECONDS
        self.attempt = 0  # since something was last received
        self.connected = False  # ever

    def messages(self) -> Generator[list[bytes], None, None]:
        """Message objects, as many at a time as came together. Does not end by itself.

        Raises CallError for what trying again cannot change, and for a node that was
        not there in the first place.
        """
        while True:
            told, least = False, 0.0
            try:
                yield from self.one_connection(reader := EventReader())
                told = reader.farewell
                reason = "the node shuts down" if told else "the node ended the stream"
            except CallError as error:
                if not self.is_worth_repeating(error):
                    raise
                if isinstance(error, ProblemError):
                    least = error.retry_after_seconds
                reason = str(error)
            delay = self.delay_seconds(told, least)
            self.note(f"{reason}; connecting again in {delay:.1f} s")
            self.sleep(delay)
            self.attempt += 1

    def is_worth_repeating(self, error: CallError) -> bool:
        if isinstance(error, UnreachableError) and not self.connected:
            return False
        return may_pass(error)

    def delay_seconds(self, told: bool, least: float) -> float:
        """``told``: the node has spread its clients over time itself, with a farewell."""
        if told and self.attempt == 0:
            return self.retry_seconds
        return least + backoff_seconds(self.attempt, self.retry_seconds, draw=self.draw)

    def one_connection(self, reader: EventReader) -> Iterator[list[bytes]]:
        with self.client.events(
            self.filters, after=self.after, cursor=self.cursor, silence=self.silence_seconds
        ) as chunks:
            for chunk in chunks:
                messages: list[bytes] = []
                for event in reader.feed(chunk):
                    self.attempt = 0
                    self.cursor = event.id or self.cursor
                    if event.name == "message" and event.data:
                        messages.append(event.data)
                    else:
                        if messages:
                            yield messages
                            messages = []
                        self.tell(event)
                if reader.retry_ms is not None:
                    self.retry_seconds = reader.retry_ms / 1000
                if messages:
                    yield messages

    def tell(self, event: Event) -> None:
        about = members(event.data)
        match event.name:
            case "subscribed":
                again = "connected again" if self.connected else "subscribed"
                self.connected = True
                self.note(f"{again}: node {about.get('node')}, after {about.get('position')}")
            case "gap":
                self.note(
                    f"gap ({about.get('reason')}): messages after {about.get('after')} are not "
                    f"to be had; the first that is: {about.get('first_available')}"
                )
            case "token-expired":
                self.note(f"the token does not count any more ({about.get('reason')})")
            case "topic-deleted":
                self.note(f"topic deleted: {about.get('topic', '')}")


def members(data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
