"""What the node answers when it does not do what was asked: RFC 9457 problems.

Every error on every route leaves through ``problem``. Its ``type`` is a
reference into the node's own page (``/docs#invalid_json``), where the code is
explained with its remedy.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from msgspec.json import encode as encode_json
from quart import Response, current_app, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from repl_broker.errors import PROBLEMS, RequestError
from repl_broker.trace import current_id
from repl_broker.web import answers
from repl_broker.web.base import base_here

__all__ = ["PROBLEM_JSON", "REMEDIES", "RETRIED", "RETRY_AFTER_SECONDS", "note_failure"]
__all__ += ["challenge", "problem", "problem_content", "register", "retry_after"]

log = logging.getLogger(__name__)

REFUSALS: Final = "repl_broker.refusals"  # in an application's extensions
PROBLEM_JSON: Final = "application/problem+json"
RETRIED: Final = frozenset({429, 503, 507})  # statuses that come with a Retry-After
RETRY_AFTER_SECONDS: Final = 2  # as long as EventSource is told to wait (``retry:``)
STORAGE_RETRY_AFTER_SECONDS: Final = 30  # room comes by retention, or by someone's hand

# code → what its reader does about it. One entry for each of errors.PROBLEMS.
REMEDIES: Final[dict[str, str]] = {
    "invalid_json": "Mend the body where `line` and `column` point (both count from 1; the "
    "column counts characters). JSON is RFC 8259's: UTF-8, no NaN, no trailing comma, no comment.",
    "invalid_topic": "Use dot-separated tokens of `A-Z a-z 0-9 _ -`, at most 255 characters, as in "
    "`orders.eu.42`. A topic's name has no wildcard.",
    "invalid_filter": "Use a topic's name, or a pattern in which `*` is one token and a last `>` "
    "is one or more. A stream has 1 to 128 filters.",
    "invalid_event_id": "Send back an event id that a node of this cluster gave, unchanged, or "
    "`earliest` or `latest`.",
    "invalid_parameter": "Correct the query parameter, header or member of the body that `detail` "
    "names. Unknown ones are refused, so that a typo is never ignored.",
    "malformed_request": "Send valid HTTP/1.1 (RFC 9112). WebSocket and HTTP/2 are not spoken "
    "here; a proxy in front of the node may offer HTTP/2.",
    "unauthenticated": "Send a valid token: `Authorization: Bearer …`, the cookie "
    "`repl_broker_token`, or `access_token` in the query of `/v1/events` if the operator allows "
    "that. `reason` says what is wrong with the one that was sent; get a new one from whoever "
    "issues them.",
    "forbidden": "Use a token with the grant that `detail` names: a `publish` or `subscribe` "
    "filter that covers all of what is asked for, or `admin`. With `reason` `origin`: a write from "
    "a web page must come from the node's own origin, or from one in `[http] cors_origins`.",
    "not_found": "Check the path against this page. A topic's name stands percent-encoded in it.",
    "topic_not_found": "Create the topic with `PUT /v1/topics/{topic}`, or publish to it if "
    "`[topics] auto_create` is on.",
    "member_not_found": "See who is a member with `GET /v1/cluster`.",
    "method_not_allowed": "Use one of the methods in the `Allow` header.",
    "request_timeout": "Send the request faster, or in smaller parts. `[limits] "
    "body_timeout_seconds` and `header_timeout_seconds` say how long one may take.",
    "topic_exists": "Use it as it is, or change its settings with `PUT /v1/topics/{topic}`.",
    "member_exists": "Give each node an id of its own. A member that lost its data is removed "
    "first, and joins again with an empty data directory.",
    "member_unreachable": "Start the node, with `--join` if it is to be added, see that the leader "
    "reaches its `[raft] advertise`, and ask again.",
    "no_majority": "`detail` names the voters that there would be, and those that do not answer: "
    "start these first, or remove one of them first. With `force=true` it is done all the same, "
    "and nothing is written until enough of them are back.",
    "last_voter": "Add another node first, or stop this one if the cluster is to end.",
    "not_a_voter": "Choose a voter; a learner becomes one when it has caught up.",
    "clock_off": "Mend the member's clock (NTP), or choose another: one whose clock is off leaves "
    "it to others to lead. The operator sets `[cluster] clock_skew_seconds_max`.",
    "single_node": "Start the node with `--bootstrap`: it is then the first member of a cluster, "
    "with all its messages, and others can join it.",
    "too_many_topics": "Delete topics that are not needed any more. `DELETE /v1/topics?match=` "
    "deletes many at once, and with `retention.idle_seconds` topics go by themselves. The operator "
    "sets `[limits] topics` and `topics_per_client`; with `[topics] auto_create` off, a typo makes "
    "none.",
    "membership_change_in_progress": "Wait until `GET /v1/cluster` shows the change done, then "
    "ask again.",
    "message_too_large": "Send less: `limit` is in bytes. The operator sets `[limits] "
    "message_bytes`; other JSON bodies have a fixed limit.",
    "batch_too_large": "Send the batch in several requests. The operator sets `[limits] "
    "batch_bytes` and `batch_messages`.",
    "unsupported_media_type": "Set `Content-Type` to what the route takes, in UTF-8, and send the "
    "body without content coding.",
    "unknown_host": "Ask the node by a name that it serves: `localhost`, its IP address, the name "
    "in `[http] public_url`, or one in `[http] hosts`, where the operator lists more of them.",
    "idempotency_key_reused": "Use a new `Idempotency-Key` for each new request, and the same key "
    "and body for a retry only.",
    "too_many_connections": "Close connections and streams that are not needed; come back after "
    "`Retry-After`, or use another node. The operator "
    "sets `[limits] connections` and `connections_per_address`.",
    "too_many_streams": "Close streams that are not needed, or follow several topics in one; a "
    "stream has up to 128 filters. The operator sets `[limits] streams_per_client`.",
    "rate_limited": "Slow down: come back after `Retry-After`, which is not the same for all. The "
    "operator sets `publishes_per_second`, `subscribes_per_second` and `reads_per_second` in "
    "`[limits]`.",
    "headers_too_large": "Send a shorter URL or fewer header fields; `[limits] header_bytes` is "
    "the limit. Patterns make a long list of topics short.",
    "internal_error": "Try again. If it stays, the log of the node has the cause, under the time "
    "of the request.",
    "method_not_implemented": "Write the method in capital letters, as in `POST`: names of methods "
    "are case-sensitive (RFC 9110).",
    "transfer_coding_not_implemented": "Use `Transfer-Encoding: chunked`, or `Content-Length`.",
    "no_leader": "Try again after `Retry-After`; a cluster elects a leader within seconds, if a "
    "majority of its voters run and reach each other.",
    "older_copy": "Use another node. On this one's machine stop it and run 'repl-broker cluster "
    "rejoin': its data directory was set back, by a restored disk or a cloned machine, and it may "
    "have lost what it had acknowledged.",
    "shutting_down": "Use another node, or try again after `Retry-After`.",
    "behind": "Use another node, or wait: this one takes up what it lacks by itself. If it does "
    "not, look at its log, its disk, and its connection to the leader.",
    "no_room": "Use another node. The operator makes room on the disk of this one; it goes on by "
    "itself then. `[limits] disk_free_bytes` is what is to stay free.",
    "overloaded": "Nothing was done. Come back after `Retry-After`, with the same "
    "`Idempotency-Key` if there was one. The operator sets `[limits] publishes_under_way` and "
    "`requests_bytes`.",
    "outcome_unknown": "The write may or may not be kept. Repeat it with the same "
    "`Idempotency-Key`: then it happens once.",
    "http_version_not_supported": "Use HTTP/1.1, or a proxy that does so towards the node.",
    "storage_full": "Delete topics, shorten their retention, or give the node more disk: it takes "
    "publishes again by itself when there is room. Reading goes on. If it is your share that is "
    "used up, there is room again as what you published is trimmed or grows too old. The operator "
    "sets `[limits] storage_bytes`, `storage_bytes_per_client` and `disk_free_bytes`.",
}


def problem(
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
    wait_seconds: int | None = None,
) -> Response:
    """The answer for ``code``, which is a key of PROBLEMS; ``extra`` joins the object.

    ``wait_seconds`` is for Retry-After, if more is known than what the status says.
    """
    current_app.extensions[REFUSALS][code] += 1
    g.problem = code  # of which the audit may have to tell (refused.py)
    status, content = problem_content(code, detail, extra)
    response = answers.answer(content, PROBLEM_JSON, status, headers)
    if asked := challenge(code, extra or {}):
        response.headers["WWW-Authenticate"] = asked
    if (seconds := retry_after(status, wait_seconds)) is not None:
        response.headers["Retry-After"] = str(seconds)
    response.headers["X-Request-Id"] = current_id()
    return response


def retry_after(status: int, known: int | None = None) -> int | None:
    """What Retry-After says, in seconds; None for a status that has none."""
    if status not in RETRIED:
        return None
    if known is not None:
        return known
    return STORAGE_RETRY_AFTER_SECONDS if status == 507 else RETRY_AFTER_SECONDS


def challenge(code: str, extra: Mapping[str, object]) -> str:
    """What a client is asked for, as WWW-Authenticate says it (RFC 6750 section 3); or ""."""
    if code == "forbidden" and extra.get("reason") != "origin":  # another token would not help
        return 'Bearer realm="repl-broker", error="insufficient_scope"'
    if code != "unauthenticated":
        return ""
    reason = extra.get("reason", "missing")
    if reason == "missing":
        return 'Bearer realm="repl-broker"'
    return f'Bearer realm="repl-broker", error="invalid_token", error_description="{reason}"'


def problem_content(
    code: str, detail: str, extra: Mapping[str, object] | None = None
) -> tuple[int, bytes]:
    """Status and body of the answer for ``code``."""
    status, title = PROBLEMS[code]
    fields = {
        "type": f"{base_here()}/docs#{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        **(extra or {}),
    }
    return status, encode_json(fields)


def note_failure(method: str, path: str, error: BaseException) -> str:
    """Log all of an error of ours; what the client is told of it, which is nothing."""
    log.error("request failed method=%s path=%r", method, path, exc_info=error)
    return (
        "The node failed to carry out the request; its log tells why. Nothing more is known here."
    )


def register(app: QuartTrio, refusals: Counter[str]) -> None:
    """Have every error of ``app`` answered as a problem, and counted by code."""
    app.extensions[REFUSALS] = refusals
    app.register_error_handler(RequestError, _refused)
    app.register_error_handler(HTTPException, _from_http_exception)
    app.register_error_handler(Exception, _failed)


async def _refused(error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return problem(error.code, error.detail, extra=error.extra, wait_seconds=error.retry_after)


async def _from_http_exception(error: Exception) -> Response:
    """What Quart and Werkzeug refuse by themselves."""
    assert isinstance(error, HTTPException)
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(answers.allowed_methods(error))
        return problem(
            "method_not_allowed",
            f"{request.method} is not allowed at {request.path!r}; use {allowed}.",
            headers={"Allow": allowed},
        )
    if error.code == 404:
        base = base_here()
        return problem(
            "not_found",
            f"There is nothing at {request.path!r}; {base}/docs and {base}/openapi.json list what "
            "there is.",
        )
    if error.code is not None and error.code < 500:
        return problem("malformed_request", "The request cannot be read as HTTP.")
    return await _failed(error)


async def _failed(error: Exception) -> Response:
    return problem("internal_error", note_failure(request.method, request.path, error))
