"""Request bodies: their media type, and reading them within a limit.

A body that is too large is refused before it is read, if its length is told,
and otherwise while it is read: the limit is what is ever held of it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import trio
from quart import request
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header

from repl_broker.admission import Bodies
from repl_broker.config import LimitsConfig
from repl_broker.errors import RequestError
from repl_broker.web.parameters import OBJECT_BYTES_MAX

__all__ = ["NDJSON", "BodyLimit", "BodyLimits", "BrokerRequest", "body_is_late"]
__all__ += ["ASK_FOR_BODY", "check_media_type", "late", "read_body"]

# In the state of a request's scope: what has a client send its body that waits to be asked for it.
ASK_FOR_BODY: Final = "repl_broker.ask_for_body"
NDJSON: Final = "application/x-ndjson"
_UTF8: Final = frozenset({"utf-8", "utf8"})
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


class BodyLimit(NamedTuple):
    """How much of a body is taken, and what is said of more."""

    bytes_max: int
    code: str
    source: str  # what sets the limit
    seconds: float  # for the whole body to arrive


class BodyLimits:
    """The limits of a node, by what a body holds. ``take`` changes them while it serves."""

    message: BodyLimit
    batch: BodyLimit
    object: BodyLimit

    def __init__(self, limits: LimitsConfig) -> None:
        self.take(limits)

    def take(self, limits: LimitsConfig) -> None:
        """For requests that come from now on."""
        seconds = limits.body_timeout_seconds
        self.message = BodyLimit(
            limits.message_bytes, "message_too_large", "[limits] message_bytes", seconds
        )
        self.batch = BodyLimit(
            limits.batch_bytes, "batch_too_large", "[limits] batch_bytes", seconds
        )
        self.object = BodyLimit(OBJECT_BYTES_MAX, "message_too_large", "fixed", seconds)


class BrokerRequest(TrioRequest):
    """A request whose body is dropped where none is expected.

    Quart takes in what arrives whether or not it is read, and an event stream
    goes on for days.
    """

    def __init__(
        self, method: str, *args: Any, max_content_length: int | None = None, **kwargs: Any
    ) -> None:
        limit = 0 if method in _WITHOUT_BODY else max_content_length
        super().__init__(method, *args, max_content_length=limit, **kwargs)

    @property
    def host(self) -> str:
        """The same for all, for Quart, which looks at it first and fails on some.

        No route goes by it, and what a request says of its host is checked in browsers.py.
        """
        return "localhost"


def check_media_type(*allowed: str) -> str:
    """The one of ``allowed`` that the request's body is. Raises ``unsupported_media_type``."""
    wanted = " or ".join(allowed)
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        _unsupported(f"The body has the content coding {coding[:64]!r}; send it without one.")
    several = request.headers.getlist("Content-Type")
    if len(several) > 1:
        _unsupported("The Content-Type is given more than once; give it once.")
    given = several[0] if several else ""
    media_type, options = parse_options_header(given)
    if media_type.lower() not in allowed:
        found = f"is {given[:64]!r}" if given else "is missing"
        _unsupported(f"The Content-Type {found}; it must be {wanted}.")
    charset = options.get("charset", "utf-8").lower()
    if charset not in _UTF8:
        _unsupported(f"The body's charset is {charset[:64]!r}; JSON is always UTF-8 (RFC 8259).")
    return media_type.lower()


async def read_body(limit: BodyLimit, held: Bodies | None = None) -> bytes:
    """The whole body; it counts as ``held``, from before it comes if its length is told.

    Raises ``limit.code`` when it is longer than the limit, as soon as that is
    known, ``overloaded`` when there is no memory for it, and ``request_timeout``
    when it does not arrive in time.
    """
    length = request.content_length
    if length is not None and length > limit.bytes_max:
        _too_large(limit)
    if length is not None and held is not None:
        held.grow(length)
    if (ask := request.scope.get("state", {}).get(ASK_FOR_BODY)) is not None:
        await ask()
    parts: list[bytes] = []
    size = 0
    with trio.move_on_after(limit.seconds) as patience:
        try:
            async for part in request.body:
                size += len(part)
                if size > limit.bytes_max:
                    _too_large(limit)
                if held is not None:
                    held.grow(size)
                parts.append(part)
        except RequestEntityTooLarge:
            _too_large(limit)
    if patience.cancelled_caught:
        raise late(limit)
    return b"".join(parts)


def late(limit: BodyLimit) -> RequestError:
    """What is said of a body that was not complete in time."""
    return RequestError("request_timeout", body_is_late(limit.seconds))


def body_is_late(seconds: float) -> str:
    return (
        f"The body was not complete within {seconds:g} seconds "
        "([limits] body_timeout_seconds); nothing was done."
    )


def _too_large(limit: BodyLimit) -> None:
    raise RequestError(
        limit.code,
        f"The body has more than {limit.bytes_max} bytes, which is the limit ({limit.source}).",
        limit=limit.bytes_max,
    )


def _unsupported(detail: str) -> None:
    raise RequestError("unsupported_media_type", detail)
