"""Which request is being answered: the id that every line of the log has that it causes.

The id is the trace id of the ``traceparent`` that the client, or a proxy before
us, has sent (W3C Trace Context, Level 1, section 3.2), or one that is made. It
is made when somebody asks for it, so a request that nothing is said about has
none. What strangers send gets no further than here unless it is hexadecimal.

Whoever answers requests sets CURRENT in its task. What runs for many requests
together, as a turn of the log does, runs ``apart`` from all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import Context, ContextVar
from secrets import token_hex
from typing import Final, NamedTuple, TypeVar

__all__ = [
    "CURRENT",
    "Parent",
    "Request",
    "apart",
    "current_client",
    "current_id",
    "read_traceparent",
]

T = TypeVar("T")

TRACEPARENT_CHARACTERS_MAX: Final = 512  # of versions to come; this one has 55
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Parent(NamedTuple):
    """The span of another program that a request belongs to."""

    trace_id: str  # 32 hexadecimal digits, not all 0
    span_id: str  # 16, not all 0
    sampled: bool


class Request:
    """The request that is being answered; ``begin`` makes it the next one of a connection."""

    __slots__ = ("_id", "base", "client", "traceparent")

    def __init__(self, traceparent: str | None = None, base: str = "", client: str = "") -> None:
        """``base`` is the path below which the client sees the node (web/base.py), ``client``
        its address, in whose share it counts (web/proxies.py); "" if it is not known."""
        self._id = ""
        self.base = base
        self.client = client
        self.traceparent = traceparent

    def begin(self, traceparent: str | None, base: str = "", client: str = "") -> None:
        """Be another request from now on."""
        self._id = ""
        self.base = base
        self.client = client
        self.traceparent = traceparent

    @property
    def id(self) -> str:
        """32 hexadecimal digits: the trace id that came with it, or the request's own."""
        if not self._id:
            parent = self.parent
            self._id = token_hex(16) if parent is None else parent.trace_id
        return self._id

    @property
    def parent(self) -> Parent | None:
        """What its ``traceparent`` says; None without one, and for one that is not valid."""
        return None if self.traceparent is None else read_traceparent(self.traceparent)


CURRENT: Final[ContextVar[Request | None]] = ContextVar("repl_broker.request", default=None)


def current_id() -> str:
    """The id of the request that is being answered here; "" if none is."""
    request = CURRENT.get()
    return "" if request is None else request.id


def current_client() -> str:
    """Whose request is being answered here, as ``Request.client``; "" if that is not known."""
    request = CURRENT.get()
    return "" if request is None else request.client


def apart(call: Callable[..., T], *arguments: object) -> T:
    """``call(*arguments)``, which no request is to be held responsible for.

    Tasks that it starts belong to none either.
    """
    return Context().run(call, *arguments)


def read_traceparent(text: str) -> Parent | None:
    """Read the header field's value; None if it is not valid (section 3.2.2).

    A later version may have more behind what this one has; ``ff`` is none.
    """
    if len(text) > TRACEPARENT_CHARACTERS_MAX:
        return None
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1))
