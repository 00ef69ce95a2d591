"""Every error that repl-broker raises on purpose.

    ReplBrokerError
    ├── ConfigError        the configuration or the command line is wrong (exit code 1)
    │   └── InvalidConfigError   … in the places that it lists (config.py)
    ├── StorageError       the disk, or what is on it, cannot be trusted; the node stops
    │   └── StoreLockedError   another running node holds the data directory
    └── RequestError       a request cannot be carried out; it changed nothing
        └── OutcomeUnknownError   … except this: the write may or may not be kept

A message names the value, the limit and the remedy. A RequestError carries a
stable ``code`` that the HTTP side turns into an RFC 9457
problem and the command line into one line.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "NOTHING_CHANGED",
    "PROBLEMS",
    "ConfigError",
    "OutcomeUnknownError",
    "ReplBrokerError",
    "RequestError",
    "StorageError",
    "StoreLockedError",
]


class ReplBrokerError(Exception):
    """Base of every error that repl-broker raises on purpose."""


class ConfigError(ReplBrokerError):
    """The configuration, or what it points at, cannot be used as it is."""


class StorageError(ReplBrokerError):
    """The store failed, or holds something that it must not hold.

    After one of these from a write nothing more is acknowledged: what a failed
    fsync left on disk is unknown ("fsyncgate", PostgreSQL 2018).
    """


class StoreLockedError(StorageError):
    """Another running node holds the data directory."""


# code → (HTTP status, title). The title never varies; the detail does.
PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "invalid_json": (400, "The body is not valid JSON"),
    "invalid_topic": (400, "The topic name is not valid"),
    "invalid_filter": (400, "The topic filter is not valid"),
    "invalid_event_id": (400, "The event id is not valid"),
    "invalid_parameter": (400, "A parameter is not valid"),
    "malformed_request": (400, "The request is not valid HTTP/1.1"),
    "unauthenticated": (401, "The request needs a valid token"),
    "forbidden": (403, "This is not allowed"),
    "not_found": (404, "There is nothing at this path"),
    "topic_not_found": (404, "The topic does not exist"),
    "member_not_found": (404, "The member does not exist"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "request_timeout": (408, "The request took too long to arrive"),
    "topic_exists": (409, "The topic exists already"),
    "member_exists": (409, "The id belongs to a member already"),
    "member_unreachable": (409, "The node does not answer"),
    "no_majority": (409, "The voters that answer would be no majority"),
    "last_voter": (409, "The last voter cannot be removed"),
    "not_a_voter": (409, "The member is not a voter"),
    "clock_off": (409, "The member's clock is off"),
    "single_node": (409, "The node runs in single-node mode"),
    "too_many_topics": (409, "There are too many topics, of all clients or of this one"),
    "membership_change_in_progress": (409, "Another membership change is under way"),
    "message_too_large": (413, "The message is too large"),
    "batch_too_large": (413, "The batch is too large"),
    "unsupported_media_type": (415, "The media type is not supported"),
    "unknown_host": (421, "The node does not serve this host"),
    "idempotency_key_reused": (422, "The idempotency key was used for another request"),
    "too_many_connections": (429, "The node, or the address, has too many connections"),
    "too_many_streams": (429, "The client's share of event streams is used up"),
    "rate_limited": (429, "Too many requests"),
    "headers_too_large": (431, "The request header is too large"),
    "internal_error": (500, "The node failed to carry out the request"),
    "method_not_implemented": (501, "The method is not known"),
    "transfer_coding_not_implemented": (501, "The transfer coding is not implemented"),
    "no_leader": (503, "The cluster has no leader at the moment"),
    "older_copy": (503, "The node has an older copy of its data"),
    "shutting_down": (503, "The node is shutting down"),
    "behind": (503, "The node is behind its cluster"),
    "no_room": (503, "The node has no room for what its cluster writes"),
    "overloaded": (503, "The node has too much to do at the moment"),
    "outcome_unknown": (504, "The outcome of the request is unknown"),
    "http_version_not_supported": (505, "The HTTP version is not supported"),
    "storage_full": (507, "The store is full, or the client's share of it"),
}


NOTHING_CHANGED: Final = " Nothing was changed."  # at the end of a detail


class RequestError(ReplBrokerError):
    """A request that was refused, and changed nothing (but see Broker.delete_topics).

    ``code`` is a key of PROBLEMS; ``detail`` tells the reader what was wrong
    with this request and what to do; ``extra`` joins the problem object, for
    programs (for instance ``line`` and ``column`` of ``invalid_json``).
    ``retry_after`` is in seconds, where more is known than what the status says.
    """

    def __init__(
        self, code: str, detail: str, *, retry_after: int | None = None, **extra: object
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retry_after = retry_after
        self.extra = extra

    @property
    def status(self) -> int:
        """HTTP status, 400 to 599."""
        return PROBLEMS[self.code][0]

    @property
    def title(self) -> str:
        """One short sentence that is the same for every problem of this code."""
        return PROBLEMS[self.code][1]


class OutcomeUnknownError(RequestError):
    """The write was handed to the log, and this node cannot say whether it is kept."""

    def __init__(self, detail: str) -> None:
        super().__init__("outcome_unknown", detail)
