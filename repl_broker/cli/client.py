"""Talking to a node over its HTTP API, with errors that fit on one line.

httpx's blocking client, in the main thread, without Trio: a command holds one
conversation at a time, an interrupt reaches a blocking read at once, and
standard input, which has no cancellable read in a thread, stays with ``select``.
"""

from __future__ import annotations

import json
import os
import random
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote, urlsplit

import httpx

from repl_broker import __version__
from repl_broker.errors import ReplBrokerError

__all__ = [
    "CallError",
    "Client",
    "NotBrokerError",
    "ProblemError",
    "UnreachableError",
    "backoff_seconds",
    "may_pass",
    "segment",
    "trust_of",
]

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0
BACKOFF_SECONDS_MAX: Final = 30.0
UNSENT: Final = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)
ANSWER_BYTES_MAX: Final = 64 * 1024  # of an error that is read from a stream


class CallError(ReplBrokerError):
    """A call to the node came to nothing, or nothing is known of it."""


class UnreachableError(CallError):
    """No answer came. ``refused``: there was not even a connection, so nothing was sent."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class NotBrokerError(CallError):
    """Something answered, and it is not a repl-broker node: a proxy, another server."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ProblemError(CallError):
    """The node refused, and said why (RFC 9457)."""

    def __init__(
        self, status: int, problem: Mapping[str, object], retry_after_seconds: float = 0.0
    ) -> None:
        self.status = status
        self.code = str(problem.get("code", status))
        self.title = str(problem.get("title", HTTPStatus(status).phrase))
        self.detail = str(problem.get("detail", ""))
        self.problem = dict(problem)
        self.retry_after_seconds = retry_after_seconds
        text = f"{self.title}: {self.detail}" if self.detail else self.title
        super().__init__(f"{text} [{self.code}]")

    def number(self, member: str) -> int | None:
        """A whole number of the problem object, such as ``line`` or ``limit``."""
        value = self.problem.get(member)
        return value if isinstance(value, int) else None


def may_pass(error: CallError) -> bool:
    """Whether the same call may work a little later."""
    match error:
        case UnreachableError():
            return True
        case ProblemError():
            return error.status in (429, 503, 504)
        case NotBrokerError():  # a proxy whose node is away
            return error.status in (502, 503, 504)
    return False


def backoff_seconds(
    attempt: int, base_seconds: float, *, draw: Callable[[], float] = random.random
) -> float:
    """Full jitter: a draw from zero to the base, doubled for each attempt from 0 on."""
    return draw() * min(BACKOFF_SECONDS_MAX, base_seconds * 2.0 ** min(attempt, 16))


def segment(text: str) -> str:
    """A value as one segment of a path, whatever it holds."""
    return quote(text, safe="")


class Client:
    """A connection to one node. A context manager; not for several threads."""

    def __init__(
        self,
        url: str,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        token: Callable[[], str] = lambda: "",
    ) -> None:
        """``token`` is asked for each request, and gives "" for none."""
        self.url = url.rstrip("/")
        self.token = token
        parts = urlsplit(self.url)
        self.answer_seconds = answer_seconds
        self.http = httpx.Client(
            timeout=httpx.Timeout(answer_seconds, connect=min(CONNECT_SECONDS, answer_seconds)),
            headers={"User-Agent": f"repl-broker/{__version__}"},
            # A node on this machine is never behind a proxy. Whom to trust is asked of the
            # environment all the same; reading certificates costs 30 ms that plain http has
            # no use for.
            trust_env=parts.hostname not in ("localhost", "127.0.0.1", "::1"),
            verify=trust_of(self.url) if parts.scheme == "https" else False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, object]:
        """One request; the JSON object of a 2xx answer. Raises CallError.

        ``body`` is sent as JSON, ``content`` as it is. An answer without a body
        gives an empty object.
        """
        sent = self.authorization() | dict(headers or {})
        if body is not None:
            content = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        with self.translated():
            response = self.http.request(
                method, self.url + path, params=params, content=content, headers=sent
            )
        return self.answer(response, response.content)

    def authorization(self) -> dict[str, str]:
        token = self.token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    @contextmanager
    def events(
        self, filters: Sequence[str], *, after: str | None, cursor: str | None, silence: float
    ) -> Iterator[Iterator[bytes]]:
        """Open an event stream; its bytes as they come. Raises CallError, then and later.

        ``silence`` is how many seconds without a byte mean that the stream is dead.
        """
        params = [("topic", each) for each in filters]
        headers = {}
        if cursor is not None:
            headers["Last-Event-ID"] = cursor
        elif after is not None:
            params.append(("after", after))
        with self.stream("/v1/events", params, headers, silence=silence) as chunks:
            yield chunks

    @contextmanager
    def stream(
        self,
        path: str,
        params: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        *,
        silence: float,
    ) -> Iterator[Iterator[bytes]]:
        """Open what answers as an event stream; as for ``events``."""
        sent = self.authorization() | {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Connection": "close",  # coming back over one that is about to close costs a retry
        }
        timeout = httpx.Timeout(self.answer_seconds, connect=CONNECT_SECONDS, read=silence)
        with (
            self.translated(),
            self.http.stream(
                "GET",
                self.url + path,
                params=httpx.QueryParams([*params]),
                headers=sent | dict(headers),
                timeout=timeout,
            ) as response,
        ):
            kind = media_type(response)
            if response.status_code != 200 or kind != "text/event-stream":
                self.answer(response, read_some(response))
                raise self.not_broker(response)
            yield response.iter_raw()

    @contextmanager
    def translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = plain(error) or "timed out"
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise UnreachableError(
                    f"cannot connect to {self.url}: {untrusted(reason)}", refused=True
                ) from error
            raise UnreachableError(
                f"cannot connect to {self.url}: {reason}; is the node running?", refused=True
            ) from error
        except httpx.TimeoutException as error:
            raise UnreachableError(f"{self.url} did not answer in time", refused=False) from error
        except (*UNSENT, httpx.InvalidURL, UnicodeError) as error:
            # What cannot be sent now cannot be sent later; and the library shows what it was.
            raise CallError(
                f"the request to {self.url} cannot be sent ({type(error).__name__}); look at the "
                "URL and the token"
            ) from error
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"the connection to {self.url} broke: {plain(error)}", refused=False
            ) from error

    def answer(self, response: httpx.Response, content: bytes) -> dict[str, object]:
        if response.status_code == 204:
            return {}
        kind = media_type(response)
        if kind not in ("application/json", "application/problem+json"):
            raise self.not_broker(response)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.not_broker(response)
        if not response.is_success:
            raise ProblemError(response.status_code, found, retry_after(response))
        return found

    def not_broker(self, response: httpx.Response) -> NotBrokerError:
        kind = media_type(response) or "no media type"
        return NotBrokerError(
            f"{self.url} answered {response.status_code} with {kind}, "
            "not as a repl-broker node does; is the URL right?",
            response.status_code,
        )


def trust_of(url: str) -> ssl.SSLContext:
    """The authorities of SSL_CERT_FILE or SSL_CERT_DIR, else httpx's. Raises CallError."""
    try:
        return httpx.create_ssl_context(trust_env=True)
    except OSError as error:  # of ssl, too
        named = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        raise CallError(
            f"cannot read the authorities by which {url} is to be trusted: {plain(error)}; look at "
            f"{' and '.join(named) or 'the installation of certifi'}"
        ) from None


def untrusted(reason: str) -> str:
    """What OpenSSL has against a certificate, and what to do about it."""
    found = re.search(r"verify failed: (.*?)(?: \(_ssl\.c:\d+\))?$", reason)
    return (
        f"its certificate is not trusted: {found[1] if found else reason}; for an authority of "
        "your own set SSL_CERT_FILE to the file with its certificate"
    )


def media_type(response: httpx.Response) -> str:
    value: str = response.headers.get("Content-Type", "")
    return value.partition(";")[0].strip().lower()


def retry_after(response: httpx.Response) -> float:
    value: str = response.headers.get("Retry-After", "")
    return min(float(value), BACKOFF_SECONDS_MAX) if re.fullmatch(r"\d{1,6}", value) else 0.0


def read_some(response: httpx.Response) -> bytes:
    """The body of an error that came in place of a stream, but not without end."""
    found = bytearray()
    for chunk in response.iter_raw():
        found += chunk
        if len(found) > ANSWER_BYTES_MAX:
            break
    return bytes(found)


def plain(error: Exception) -> str:
    """httpx's words without "[Errno 111]"."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
