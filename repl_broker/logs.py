"""Setting up the log: stdlib logging, one handler, on standard error.

Every module has its own logger and writes ``key=value`` messages; fields may
also come as ``extra={...}``. On a terminal the lines are for people; otherwise
each is a JSON object, in which each ``key=`` is a member as well. What a request
causes has its id (trace.py). A thread writes them (outlet.py): the node waits for nobody
who reads its log. Bodies of messages are never logged, at any level.
Complaints of one kind are written a few times and then counted, so that nobody
who can cause one can fill the disk with them.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from repl_broker.config import LogConfig
from repl_broker.masking import masked
from repl_broker.outlet import AUDIT, Outlet, OutletHandler, outlets
from repl_broker.trace import CURRENT

__all__ = ["AUDIT", "ConsoleFormatter", "JsonFormatter", "configure", "lost_lines", "strays_caught"]

log = logging.getLogger(__name__)

# What a record has by itself; anything else came in as `extra`.
OWN: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    "message",
    "asctime",
    "taskName",
    "seldom",
    "joins",
    "kind",
}

Kind = tuple[str, str, str, str]

# It has a line for each span that finds no room; otel.py says what there is to say, once.
TELEMETRY: Final = "opentelemetry"

# Libraries that hang handlers of their own on their loggers, or that would fill
# the log with lines about every request and connection.
LIBRARIES: Final = (
    *("hypercorn", "quart", "quart_trio", "httpx", "httpcore", "asyncio", "urllib3", TELEMETRY),
)

CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# A place of a value in a message, and what it is called there.
PLACE: Final = re.compile(r"(?:\b([a-z_]+)=)?%(?:%|[-+ #0]*\d*(?:\.\d+)?([a-z]))")

# At most PASSING_MAX warnings or errors of one kind are written in JOINED_SECONDS.
PASSING_MAX: Final = 10
JOINED_SECONDS: Final = 10.0
KINDS_MAX: Final = 1024
EXAMPLE_MAX: Final = 300  # characters of one that was only counted

COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send every logger of the process through one handler. Calling it again replaces that.

    ``stream`` is standard error unless told. Handlers that a library has put on
    its own loggers are taken off, so that no line comes twice or in another form.
    """
    stream = sys.stderr if stream is None else stream
    handler = handler_of(stream)
    handler.setFormatter(formatter(config.format, stream.isatty()))
    handler.addFilter(identify)
    handler.addFilter(Joined())
    root, before = logging.getLogger(), outlets()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    for outlet in before:
        if outlet not in outlets():
            outlet.close()
    level = config.level.upper()
    root.setLevel(level)
    # Above every level there is: none of its lines.
    logging.getLogger(AUDIT).setLevel(logging.INFO if config.audit else logging.CRITICAL + 1)
    quiet_libraries(level)
    logging.captureWarnings(True)
    # A log that cannot be written (a full disk, a closed pipe) must not print
    # tracebacks, nor stop the node.
    logging.raiseExceptions = False


def handler_of(stream: TextIO) -> logging.Handler:
    """Lines go to a stream's descriptor by a thread; the one that there is, if it is the same."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it is in memory, where nobody waits
        return logging.StreamHandler(stream)
    found = [outlet for outlet in outlets() if outlet.writes_to(stream)]
    return OutletHandler(found[0] if found else Outlet(descriptor, stream.encoding or "utf-8"))


def lost_lines() -> int:
    """How many lines were not written since the start, because nobody took them."""
    return sum(outlet.lost for outlet in outlets())


@contextmanager
def strays_caught() -> Iterator[None]:
    """Have the log say what Python would print on standard error by itself, and wait for."""

    def unraisable(found: sys.UnraisableHookArgs) -> None:
        error = found.exc_value or found.exc_type()
        log.error("an error nobody could be told of where=%r", found.object, exc_info=error)

    def of_thread(found: threading.ExceptHookArgs) -> None:
        error = found.exc_value or found.exc_type()
        log.error("a thread failed", exc_info=error)

    before = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = unraisable, of_thread
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = before


def formatter(form: str, terminal: bool) -> logging.Formatter:
    if form == "console" or (form == "auto" and terminal):
        return ConsoleFormatter(colour=terminal)
    return JsonFormatter()


def quiet_libraries(level: str) -> None:
    for name in [*logging.root.manager.loggerDict]:
        if name.split(".")[0] in LIBRARIES:
            logger = logging.getLogger(name)
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True
    # Their parents, so that loggers which are made later are quiet as well.
    for name in LIBRARIES:
        least = "CRITICAL" if name == TELEMETRY else "WARNING"
        logging.getLogger(name).setLevel("DEBUG" if level == "DEBUG" else least)


def extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in OWN}


def identify(record: logging.LogRecord) -> bool:
    """Have the line tell which request has caused it; one of its own it keeps."""
    if not hasattr(record, "request_id") and (request := CURRENT.get()) is not None:
        record.request_id = request.id
    return True


class _Few:
    """Those of one kind in a while: how many have passed, and how many are only counted."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.passed = 0
        self.joined = 0
        self.example = ""


class Joined:
    """Lets a few warnings or errors of a kind pass in a while, and joins the others into a count.

    Of a kind are those with the same logger, message (before its values are filled in),
    type of exception, and ``kind``, if they have one. The last of the few says that more are
    only counted (``joined_for``).
    The next complaint after that time, of this kind or another, says how many they were
    (``joined``) and what one of them was, by chance (``joined_example``), because it may not
    have been about what the few were about. Lines that are few anyway (notices.py) all pass,
    and so do those of less weight, but for such as may be many (``joins``).
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[int], int] = random.randrange,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._kinds: dict[Kind, _Few] = {}
        self._owing: dict[Kind, _Few] = {}  # those of which some were joined

    def __call__(self, record: logging.LogRecord) -> bool:
        weighs = record.levelno >= logging.WARNING or hasattr(record, "joins")
        if not weighs or hasattr(record, "seldom"):
            return True
        raised = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        kind = (record.name, str(record.msg)[:256], raised, str(getattr(record, "kind", "")))
        now = self._clock()
        few = self._kinds.get(kind)
        if few is None or now - few.began >= JOINED_SECONDS:
            if len(self._kinds) >= KINDS_MAX:
                self._kinds.clear()
                self._owing.clear()
            few = self._kinds[kind] = _Few(now)
        elif few.passed >= PASSING_MAX:
            few.joined += 1
            if self._chance(few.joined) == 0:
                few.example = f"{record.name}: {record.getMessage()}"[:EXAMPLE_MAX]
            self._owing[kind] = few
            return False
        few.passed += 1
        if few.passed == PASSING_MAX:
            record.joined_for = f"{JOINED_SECONDS - (now - few.began):.0f}s"
        self._tell(record, kind, now)
        return True

    def _tell(self, record: logging.LogRecord, kind: Kind, now: float) -> None:
        """Say of a kind whose time is over how many were joined: of the record's own first."""
        for each in (kind, next(iter(self._owing), kind)):
            few = self._owing.get(each)
            if few is not None and now - few.began >= JOINED_SECONDS:
                record.joined, record.joined_example = few.joined, few.example
                del self._owing[each]
                return


def named(record: logging.LogRecord) -> dict[str, object]:
    """What the message calls by name: ``{"peer": "n2"}`` of ``"lost peer=%s", "n2"``."""
    if not isinstance(record.args, tuple) or not isinstance(record.msg, str):
        return {}
    places = [found for found in PLACE.finditer(record.msg) if found[2]]
    return {
        found[1]: value if isinstance(value, (bool, int, float)) else str(value)
        for found, value in zip(places, record.args, strict=False)
        if found[1]
    }


def moment(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03}Z"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, fields by name, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in (extra(record) | named(record)).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return masked(json.dumps(line, ensure_ascii=False, default=str, separators=(",", ":")))


class ConsoleFormatter(logging.Formatter):
    """``04:53:57.123 INFO    broker: listening http=127.0.0.1:4080``, in local time.

    Control characters are shown escaped: what comes from outside may not write
    lines, or move the cursor, in an operator's terminal. A traceback keeps its lines.
    """

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={value}" for name, value in extra(record).items())
        name = record.name.removeprefix("repl_broker.")
        text = visible(f"{name}: {record.getMessage()}{fields}")
        level = f"{record.levelname:<7}"
        if self.colour and (code := COLOURS.get(record.levelname)):
            level = f"\x1b[{code}m{level}\x1b[0m"
        lines = [f"{clock}.{int(record.msecs):03} {level} {text}"]
        if record.exc_info:
            lines.extend(
                visible(each) for each in self.formatException(record.exc_info).split("\n")
            )
        return masked("\n".join(lines))


def visible(text: str) -> str:
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
