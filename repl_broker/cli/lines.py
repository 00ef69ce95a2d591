"""Lines of an input without end, gathered into batches of bounded size.

A batch goes when it is full, when the input pauses, or a little after its first
line, whichever comes first: a file goes in large batches, and a line of
``tail -F`` goes at once. Nothing is read while a batch is being sent, so a slow
node slows the program that writes, and memory stays bounded.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import BinaryIO, Final, Self

from repl_broker.errors import ReplBrokerError

__all__ = ["Batch", "Input", "Interrupt", "LineError", "Lines"]

BATCH_LINES_MAX: Final = 5_000
BATCH_BYTES_MAX: Final = 1024 * 1024
PAUSE_SECONDS: Final = 0.02  # nothing more for this time: the input has paused
WAIT_SECONDS_MAX: Final = 0.05  # after the first line of a batch, however fast they come
READ_BYTES: Final = 256 * 1024
BYTE_ORDER_MARK: Final = "\ufeff".encode()  # of UTF-8: some editors write it, and it says nothing
UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
# The largest that a node can be told to take ([limits] message_bytes): a longer
# line is hopeless, and without this limit one line could take all the memory.
LINE_BYTES_MAX: Final = 64 * 1024 * 1024


class LineError(ReplBrokerError):
    """A line of the input cannot be a message."""


class Interrupt:
    """Turns the first SIGINT into something to wait for, so that no batch is cut in two.

    A second SIGINT raises KeyboardInterrupt as usual. Where SIGINT is ignored, as in a
    job that a shell started in the background, it stays so. A context manager, for
    the main thread.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
        os.close(self._reading)
        os.close(self._writing)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        os.write(self._writing, b"!")

    def wait(self, seconds: float | None, descriptor: int | None = None) -> bool:
        """Wait this long, or for something to read. Whether there is; an interrupt ends it."""
        if self.requested:
            return False
        watched = [self._reading] + ([] if descriptor is None else [descriptor])
        readable, _, _ = select.select(watched, [], [], seconds)
        return descriptor in readable and not self.requested


class Input:
    """Bytes of a stream as they come; a stream without a descriptor always has some."""

    def __init__(self, stream: BinaryIO, interrupt: Interrupt) -> None:
        self.stream = stream
        self.interrupt = interrupt
        try:
            self.descriptor: int | None = stream.fileno()
        except (OSError, ValueError):
            self.descriptor = None

    def read(self, seconds: float | None) -> bytes | None:
        """What is there; None if nothing came in time or at an interrupt; b"" at the end."""
        if self.descriptor is None:
            return None if self.interrupt.requested else self.stream.read(READ_BYTES)
        if self.interrupt.wait(seconds, self.descriptor):
            return os.read(self.descriptor, READ_BYTES)
        return None


@dataclass(slots=True)
class Batch:
    """Encoded messages with the numbers of the lines that they come from."""

    messages: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    size: int = 0  # bytes, each message with its line break
    started: float = 0.0  # monotonic seconds, at the first message

    def add(self, number: int, message: bytes) -> None:
        if not self.messages:
            self.started = time.monotonic()
        self.messages.append(message)
        self.numbers.append(number)
        self.size += len(message) + 1

    def part(self, start: int, stop: int) -> Batch:
        """Some of it, as a batch of its own."""
        messages = self.messages[start:stop]
        size = sum(map(len, messages)) + len(messages)
        return Batch(messages, self.numbers[start:stop], size, self.started)

    def body(self) -> bytes:
        """``application/x-ndjson``."""
        return b"\n".join(self.messages) + b"\n"

    def has_room(self, message: bytes) -> bool:
        return not self.messages or (
            len(self.messages) < BATCH_LINES_MAX and self.size + len(message) + 1 <= BATCH_BYTES_MAX
        )


class Lines:
    """The batches of an input.

    ``encode(line, number)`` gives the message of a line, or None for a line that is
    none. An error that it raises comes after the batch of the lines before.
    """

    def __init__(self, source: Input, encode: Callable[[bytes, int], bytes | None]) -> None:
        self.source = source
        self.encode = encode
        self.number = 0  # of the last line read
        self._text = b""  # what was read and is not encoded yet
        self._offset = 0
        self._ended = False
        self._error: ReplBrokerError | None = None
        self._waiting: tuple[int, bytes] | None = None  # found no room in the last batch

    def next_batch(self) -> Batch | None:
        """The next batch, once it should go; None at the end, or when interrupted."""
        batch = Batch()
        while not self._fill(batch) and not self._ended:
            found = self.source.read(self._patience(batch))
            if found is None:
                break
            self._take(found)
        if batch.messages:
            return batch
        if self._error is not None:
            raise self._error
        return None

    def _patience(self, batch: Batch) -> float | None:
        if not batch.messages:
            return None
        rest = batch.started + WAIT_SECONDS_MAX - time.monotonic()
        return max(0.0, min(PAUSE_SECONDS, rest))

    def _take(self, found: bytes) -> None:
        if found:
            self._text = self._text[self._offset :] + found
            self._offset = 0
        else:
            self._ended = True

    def _fill(self, batch: Batch) -> bool:
        """Move lines into the batch; whether it should go now."""
        while (item := self._next_message()) is not None:
            if not batch.has_room(item[1]):
                self._waiting = item
                return True
            batch.add(*item)
        late = time.monotonic() - batch.started >= WAIT_SECONDS_MAX
        return self._error is not None or (bool(batch.messages) and late)

    def _next_message(self) -> tuple[int, bytes] | None:
        if self._waiting is not None:
            item, self._waiting = self._waiting, None
            return item
        while self._error is None and (line := self._next_line()) is not None:
            self.number += 1
            if self.number == 1:
                if line.startswith(UTF_16):
                    self._error = LineError(
                        "the input is UTF-16; make it UTF-8 first: iconv -f UTF-16 -t UTF-8"
                    )
                    return None
                line = line.removeprefix(BYTE_ORDER_MARK)
            try:
                message = self.encode(line, self.number)
            except ReplBrokerError as error:
                self._error = error
                return None
            if message is not None:
                return self.number, message
        return None

    def _next_line(self) -> bytes | None:
        end = self._text.find(b"\n", self._offset)
        rest = len(self._text) - self._offset
        if (end - self._offset if end >= 0 else rest) > LINE_BYTES_MAX:
            self._error = LineError(
                f"line {self.number + 1} has more than {LINE_BYTES_MAX:,} bytes, "
                "more than any node takes"
            )
            return None
        if end < 0:
            if not self._ended or not rest:
                return None
            end = len(self._text)
        line = self._text[self._offset : end]
        self._offset = min(end + 1, len(self._text))
        return line.removesuffix(b"\r")
