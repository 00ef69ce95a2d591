"""Where the log's lines go: a thread writes them, so that nobody waits who has one to write.

    emit ──▶ waiting lines, bounded ──▶ thread ──▶ file descriptor

Whoever reads the log may stop doing so: a pipe that is full, a journal that stands still, a
disk that hangs. The node goes on then. Lines for which there is no room are counted
instead, and once others are written again, one of them says how many were lost. Those of
less weight than a warning have half of the room, so that they cannot take it all. A line of
the audit weighs as much as a warning, whatever it tells.

At the end of the process ``flush`` waits for what is still to be written, for a bounded time.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final, TextIO

__all__ = ["AUDIT", "Outlet", "OutletHandler", "outlets", "say"]

log = logging.getLogger(__name__)

AUDIT: Final = "repl_broker.audit"

WAITING_BYTES_MAX: Final = 4 << 20
LINE_OVERHEAD_BYTES: Final = 100  # of a line that waits, beside its own bytes
WRITE_BYTES_MAX: Final = 64 << 10  # in one go
PARTING_SECONDS: Final = 2.0  # for the last lines, at the end of the process
AGAIN_MS: Final = 1000  # until a descriptor that was busy is tried again
REMEDY: Final = "see what reads the node's standard error, or the disk that it is written to"

# They are for the main thread, which Trio has listen to them.
FOR_OTHERS: Final = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}


class Outlet:
    """Lines on their way to ``descriptor``. ``put`` never waits; any thread may call it.

    ``formatter`` is by which it says what was lost.
    """

    def __init__(
        self, descriptor: int, encoding: str = "utf-8", bytes_max: int = WAITING_BYTES_MAX
    ) -> None:
        self.descriptor = descriptor
        self.encoding = encoding
        self.formatter = logging.Formatter()
        self.lost = 0  # lines, since the start
        self._bytes_max = bytes_max
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # of those, and of what is being written
        self._missing = 0  # lines lost of which nothing is said yet …
        self._missing_since = 0.0  # … and since when there are any
        self._notice: bytes | None = None  # what says so, while it waits
        self._told = 0  # lines that it tells of
        self._changed = threading.Condition()
        self._ends = False
        self._is_given_up = False  # it was waited for already
        self._thread: threading.Thread | None = None

    def writes_to(self, stream: TextIO) -> bool:
        try:
            return stream.fileno() == self.descriptor
        except (OSError, ValueError):  # it is in memory, or closed
            return False

    def put(self, line: bytes, *, weighs: bool) -> None:
        """Have ``line`` written, or count it if there is no room, of which one that ``weighs``
        may have all."""
        size = len(line) + LINE_OVERHEAD_BYTES
        with self._changed:
            room = self._bytes_max if weighs else self._bytes_max // 2
            if self._bytes and self._bytes + size > room:
                self._lose(1)
                return
            self._tell_missing()
            self._add(line)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def flush(self, seconds: float = PARTING_SECONDS) -> bool:
        """Wait until all is written, or that time is over. Returns whether it is."""
        with self._changed:
            is_written = self._changed.wait_for(
                lambda: not self._bytes, 0 if self._is_given_up else seconds
            )
            self._is_given_up = not is_written
            return is_written

    def close(self) -> None:
        """Flush, and end the thread."""
        self.flush()
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def _add(self, line: bytes) -> None:
        self._waiting.append(line)
        self._bytes += len(line) + LINE_OVERHEAD_BYTES

    def _lose(self, lines: int) -> None:
        if not self._missing:
            self._missing_since = time.monotonic()
        self.lost += lines
        self._missing += lines

    def _tell_missing(self) -> None:
        """In the place where the lines would have been that were lost."""
        if not self._missing or self._notice is not None:
            return
        record = log.makeRecord(
            log.name,
            logging.WARNING,
            __file__,
            0,
            "lines of the log were lost, because nobody took them lines=%d seconds=%.1f remedy=%r",
            (self._missing, time.monotonic() - self._missing_since, REMEDY),
            None,
        )
        text = self.formatter.format(record) + "\n"
        self._notice = text.encode(self.encoding, "backslashreplace")
        self._told = self._missing
        self._add(self._notice)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, FOR_OTHERS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ends)
                if not self._waiting:
                    return
                lines = self._take()
            is_written = self._write(b"".join(lines))
            with self._changed:
                self._settle(lines, is_written=is_written)
                self._changed.notify_all()

    def _settle(self, lines: list[bytes], *, is_written: bool) -> None:
        has_notice = any(line is self._notice for line in lines)
        if not is_written:
            self._lose(len(lines) - has_notice)
        elif has_notice:
            self._missing -= self._told
        self._is_given_up &= not is_written
        if has_notice:
            self._notice = None
        self._bytes -= sum(len(line) + LINE_OVERHEAD_BYTES for line in lines)
        if is_written and not self._waiting:  # else the next line that there is room for has it
            self._tell_missing()

    def _take(self) -> list[bytes]:
        lines = [self._waiting.popleft()]
        size = len(lines[0])
        while self._waiting and size + len(self._waiting[0]) <= WRITE_BYTES_MAX:
            lines.append(self._waiting.popleft())
            size += len(lines[-1])
        return lines

    def _write(self, data: bytes) -> bool:
        """Waits for as long as that takes. Returns whether it went well."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:  # another process shares it, and wants no waiting there
                wait_writable(self.descriptor, AGAIN_MS)
            except OSError:
                return False
        return True


class OutletHandler(logging.Handler):
    """The log's handler for a stream with a descriptor."""

    def __init__(self, outlet: Outlet) -> None:
        super().__init__()
        self.outlet = outlet

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) + "\n"
        except Exception:  # noqa: BLE001  a line that cannot be formatted stops nothing
            self.handleError(record)
            return
        line = text.encode(self.outlet.encoding, "backslashreplace")
        self.outlet.put(line, weighs=record.levelno >= logging.WARNING or record.name == AUDIT)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802  logging's name
        super().setFormatter(fmt)
        self.outlet.formatter = fmt or logging.Formatter()

    def flush(self) -> None:
        """At the end of the process, by ``logging.shutdown``."""
        self.outlet.flush()


def wait_writable(descriptor: int, milliseconds: int) -> None:
    poll = select.poll()
    with suppress(OSError):
        poll.register(descriptor, select.POLLOUT)
        poll.poll(milliseconds)


def outlets() -> list[Outlet]:
    """Those that the log goes through: one, or none."""
    handlers = logging.getLogger().handlers
    return [each.outlet for each in handlers if isinstance(each, OutletHandler)]


def say(stream: TextIO | None, text: str) -> None:
    """Write the last words of a process: behind what it has logged, if that goes the same way,
    and not waiting for ever for somebody to read them."""
    for outlet in outlets():
        if stream is not None and outlet.writes_to(stream):
            outlet.put(text.encode(outlet.encoding, "backslashreplace"), weighs=True)
            outlet.flush()
            return
    if stream is not None:
        stream.write(text)
        stream.flush()
