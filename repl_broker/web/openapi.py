"""The OpenAPI 3.1 document, by hand: no generator can describe an event stream.

``document()`` is what ``/openapi.json`` serves, what ``/docs`` shows and what
docs/reference/http-api.md is made from. A test compares its operations with the
routes of the application, both ways; another has a fuzzer hold a running node
to it. Texts are plain CommonMark: paragraphs, ``- `` lists, fenced blocks and
`` `code` ``, which is all that page.py reads.

An object of the document is an ``Object``: JSON, whatever its depth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from repl_broker import __version__
from repl_broker.access import COOKIE
from repl_broker.errors import PROBLEMS
from repl_broker.message import FILTERS_MAX, TOPIC_BYTES_MAX
from repl_broker.tokens import REASONS, SUBJECT
from repl_broker.web.answers import JSON
from repl_broker.web.body import NDJSON
from repl_broker.web.client import SCRIPT_TYPE, TYPES_TYPE
from repl_broker.web.events import CURSOR_NAMES, EVENT_STREAM, QUERY_CURSOR, QUERY_TOKEN
from repl_broker.web.guard import RIGHTS, Right
from repl_broker.web.metrics import CONTENT_TYPE
from repl_broker.web.parameters import LIMIT_DEFAULT, LIMIT_MAX, PASSED_OVER
from repl_broker.web.problems import PROBLEM_JSON, RETRIED
from repl_broker.web.topics import RETENTION_RANGES

__all__ = ["Object", "document"]

Object = dict[str, Any]

# What any request can get, because it is decided before, or in spite of, its route.
COMMON_CODES: Final = (
    "malformed_request",
    "invalid_parameter",
    "request_timeout",
    "too_many_connections",
    "unknown_host",
    "headers_too_large",
    "internal_error",
    "method_not_implemented",
    "transfer_coding_not_implemented",
    "http_version_not_supported",
)
BODY_CODES: Final = ("invalid_json", "unsupported_media_type", "message_too_large")
NOT_READY_CODES: Final = ("no_leader", "behind", "no_room", "older_copy")
READ_CODES: Final = ("no_leader", "behind", "no_room", "shutting_down")
WRITE_CODES: Final = (
    "no_leader",
    "behind",
    "no_room",
    "older_copy",
    "shutting_down",
    "outcome_unknown",
)
CREATE_CODES: Final = ("invalid_topic", "too_many_topics", "overloaded")
MEMBER_CODES: Final = (
    "single_node",
    "membership_change_in_progress",
    "no_leader",
    "outcome_unknown",
)
PUBLISH_CODES: Final = (
    *BODY_CODES,
    *WRITE_CODES,
    *CREATE_CODES,
    "topic_not_found",
    "batch_too_large",
    "idempotency_key_reused",
    "rate_limited",
    "storage_full",
)

EVENT_ID_PATTERN: Final = "[0-9a-f]{8}-(0|[1-9][0-9]{0,17})"
TOPIC_PATTERN: Final = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
FILTER_PATTERN: Final = r"^(([A-Za-z0-9_-]+|\*)(\.([A-Za-z0-9_-]+|\*))*(\.>)?|>)$"
HOST_PATTERN: Final = r"([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]{2,39}\])"
PORT_PATTERN: Final = (
    "([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
MEMBER_PATTERN: Final = "^[A-Za-z0-9._-]{1,64}$"

EXAMPLE_URL: Final = "http://127.0.0.1:4080"
EXAMPLE_ID: Final = "9f3a1c2b-5000"
EXAMPLE_TIME: Final = "2026-11-23T04:00:00.123Z"

DESCRIPTION: Final = f"""\
Publish JSON messages to topics over REST; receive them as Server-Sent Events, in one order, on
any node.

An acknowledged message is on the disk (of a majority, in a cluster) before the answer leaves. A
stream goes on after any interruption where it stopped, with no gap and no repeat; what can no
longer be given is told in the stream.

**Names.** A topic is dot-separated tokens of `A-Z a-z 0-9 _ -`, at most {TOPIC_BYTES_MAX}
characters: `orders.eu.42`. A filter is a topic, or a pattern in which `*` is one token and a
last `>` is one or more. An event id, such as `{EXAMPLE_ID}`, is opaque: send it back as it
came.

**Strictness.** Unknown query parameters and unknown members of JSON bodies are refused by name,
and so is a parameter that is given twice but may be given once. Passed over are those that
libraries, caches and service workers add by themselves: {", ".join(f"`{x}`" for x in PASSED_OVER)}.

**Access.** With `[auth] mode = "jwt"` a request brings a token: `Authorization: Bearer …`, or the
cookie `{COOKIE}`, or `{QUERY_TOKEN}` in the query of `/v1/events` if `[auth] allow_query_token` is
on. Its claim `repl_broker` has `publish` and `subscribe`, which are arrays of filters, and
`admin`, which allows everything. What needs no token is what `[auth.anonymous]` grants.

**Web pages.** A write that has an `Origin`, as those of browsers have, must come from a page of the
node's own origin, or of one in `[http] cors_origins`; one with the cookie must have an `Origin`.
Pages of those origins may read answers. `Host` must be a name that the node serves: `localhost`, an
IP address, that of `[http] public_url`, or one in `[http] hosts`. With `[auth] mode = "jwt"` and an
empty `[http] hosts` it may be any.

**Errors** are RFC 9457 problems (`{PROBLEM_JSON}`) with a stable `code`. 429, 503 and 507 come with
`Retry-After`. A request that is refused has changed nothing, with two exceptions:
`outcome_unknown` (504) leaves it open, and there a repeat with the same `Idempotency-Key` is safe;
and a `DELETE /v1/topics?match=` that is interrupted says in `count` how many topics it had deleted.

**Clusters.** Any node takes any request: one that does not lead has the leader carry out what
changes something. What a node acknowledged, and what was acknowledged by another before, it
shows. `no_leader` (503) means that a majority of the voters cannot be reached; an election takes
a second or two, and requests wait for it. A node that lacks what its cluster has committed, and
does not get it, says so at once: `no_room` (its disk) or `behind` (503). Ask another one then.

**Finding it in the log.** A problem comes with `X-Request-Id`, which the node's log has on every
line that the request caused: the trace id of the request's `traceparent` (W3C Trace Context), or
one that the node made.

**Methods.** HEAD works wherever GET does, and OPTIONS tells the methods of a path."""

EVENT_NAMES: Final = (
    "subscribed", "heartbeat", "gap", "topic-deleted", "token-expired", "goodbye"
)  # fmt: skip
EVENTS_DESCRIPTION: Final = f"""\
A stream of Server-Sent Events (WHATWG HTML 9.2), which stays open. Use the browser's own
`EventSource`.

It begins at once with

```
retry: 2000
id: 9f3a1c2b-4999
event: subscribed
data: {{"topics":["chat"],"node":"n1","position":"9f3a1c2b-4999"}}
```

so that a client that has seen no message yet resumes exactly all the same. `retry:` is how long
to wait before connecting again, in milliseconds. Then messages follow, as unnamed events
(`onmessage` fires), each with one `data:` line:

```
id: {EXAMPLE_ID}
data: {{"id":"{EXAMPLE_ID}","topic":"chat","time":"{EXAMPLE_TIME}","data":{{"text":"hello"}}}}
```

Other events follow. Each block of the stream has one `data:` line, which is a JSON object:

- `gap`: messages between the client's cursor and what follows can no longer be given. `data` is
  `{{"after":…,"first_available":…,"reason":…}}`; `reason` is `retention` (they were trimmed),
  `unknown_epoch` (the id is of another cluster) or `ahead` (the id is of the future);
  `first_available` is null if nothing is retained. It comes before anything that follows the
  gap.
- `token-expired`: what allowed the stream does so no more. `data` is `{{"reason":…}}`, which is
  `expired`, `revoked`, or `changed`: the node's keys, or what it grants, are others now. The stream
  ends. It has no id: come back with the same cursor, and another token if there was one.
- `topic-deleted`: a topic that the stream follows was removed. `data` is `{{"topic":…}}`.
- `heartbeat`: comes after each 15 s of silence (`[limits] heartbeat_seconds`). `data` is
  `{{"position":…}}`, the same as its id. The client's cursor moves, so that an idle stream does not
  fall behind retention.
- `goodbye`: the stream ends, because the node shuts down (`data` is
  `{{"reason":"shutting_down"}}`), or because all connections are taken, the client's
  address has the most of them, and another is to have one (`making_room`), or because nothing new
  would come from this node: it has known no leader for 30 s (`no_leader`), or does not get on with
  what its cluster writes, for lack of room (`no_room`) or otherwise (`behind`). It
  comes with a `retry:` that differs from client to client, so that they do not all come back at
  once. It has no id: come back with the same cursor, by a way that leads to other nodes if there is
  one. Before the latter three a stream that has had all that the node has gets a heartbeat.

A filter may name a topic that does not exist yet, unless `[topics] auto_create` is off.

An event id is valid on every node of the cluster. One that has not got there yet waits until it
has, a few seconds at most, before it says that the id is `ahead`. A change of leader ends no
stream. A node that has not joined its cluster yet answers `no_leader`."""


def document(base: str = "") -> Object:
    """The document, for who sees the node below ``base``. Each call builds a new one."""
    found = _document()
    found["servers"][0]["url"] = base or "/"
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            _secure(operation, RIGHTS[method.upper(), path])
    return found


def _document() -> Object:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "repl-broker",
            "version": __version__,
            "summary": "Real-time messages for web applications.",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This node."}],
        "tags": [
            {"name": "Messages", "description": "Publish, and read what is retained."},
            {"name": "Events", "description": "Receive messages as they come."},
            {"name": "Topics", "description": "Create, change, list and delete topics."},
            {"name": "Access", "description": "Revoke tokens."},
            {"name": "Cluster", "description": "Who is in the cluster."},
            {"name": "Client", "description": "The client for web pages, served by the node."},
            {"name": "Operations", "description": "For those who run the node."},
        ],
        "paths": {
            "/v1/topics/{topic}/messages": {"post": _publish(), "get": _history()},
            "/v1/messages": {"post": _publish_many()},
            "/v1/events": {"get": _events()},
            "/v1/topics": {
                "get": _list_topics(),
                "post": _create_topic(),
                "delete": _delete_topics(),
            },
            "/v1/topics/{topic}": {
                "get": _show_topic(),
                "put": _put_topic(),
                "delete": _delete_topic(),
            },
            "/v1/tokens/{sub}": {"delete": _revoke_tokens()},
            "/v1/cluster": {"get": _cluster()},
            "/v1/cluster/members": {"post": _add_member()},
            "/v1/cluster/members/{member}": {"delete": _remove_member()},
            "/v1/cluster/leader": {"post": _move_leader()},
            "/healthz": {"get": _health()},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _openapi()},
            "/docs": {"get": _docs()},
            "/client.js": {"get": _client()},
            "/client.d.ts": {"get": _client_types()},
        },
        "components": {"schemas": _schemas(), "securitySchemes": _SECURITY_SCHEMES},
    }


# --- messages -------------------------------------------------------------------------


def _publish() -> Object:
    return _operation(
        "Messages",
        "publish",
        "Publish one message, or a batch",
        "With `application/json` the body is the message's data: any JSON value. It is kept byte "
        "for byte, insignificant white space aside: numbers, escapes, the order of members and "
        "duplicate keys arrive as they were published.\n\n"
        "With `application/x-ndjson` each line is a message; blank lines do not count. A batch is "
        "atomic: all of it is kept, in order and with nothing between, or none.\n\n"
        "The answer comes when the messages are durable. A topic that does not exist is created, "
        "unless `[topics] auto_create` is off.\n\n"
        "A message has at most 1 MiB and a batch 8 MiB, unless the operator sets `[limits] "
        "message_bytes` and `batch_bytes`.",
        parameters=[_topic_parameter(), _idempotency_key()],
        body={
            JSON: {"schema": {"description": "Any JSON value."}, "example": {"text": "hello"}},
            NDJSON: {
                "schema": _lines({"description": "Any JSON value."}),
                "example": [{"n": 1}, {"n": 2}],
            },
        },
        answers={
            201: _json(
                "Kept. One message, or a batch.",
                {"anyOf": [_ref("Receipt"), _ref("BatchReceipt")]},
                {"id": EXAMPLE_ID, "topic": "chat", "time": EXAMPLE_TIME},
                headers=_REPLAYED,
            )
        },
        codes=PUBLISH_CODES,
        curl="""-H 'Content-Type: application/json' -d '{"text":"hello"}' \\
  {url}/v1/topics/chat/messages""",
    )


def _publish_many() -> Object:
    return _operation(
        "Messages",
        "publishMany",
        "Publish a batch over several topics",
        'Each line is `{"topic":…,"data":…}` and nothing else. The batch is atomic over all of '
        "them: everybody sees all of it, in this order, or none.",
        parameters=[_idempotency_key()],
        body={
            NDJSON: {
                "schema": _lines(_ref("TopicLine")),
                "example": [
                    {"topic": "orders.eu", "data": {"n": 1}},
                    {"topic": "audit", "data": "n"},
                ],
            }
        },
        answers={
            201: _json(
                "Kept.",
                _ref("ManyReceipt"),
                {"count": 2, "first_id": EXAMPLE_ID, "last_id": "9f3a1c2b-5001"},
                headers=_REPLAYED,
            )
        },
        codes=PUBLISH_CODES,
        curl="""-H 'Content-Type: application/x-ndjson' --data-binary @batch.ndjson \\
  {url}/v1/messages""",
    )


def _history() -> Object:
    return _operation(
        "Messages",
        "history",
        "Read the retained messages of a topic",
        "Oldest first. Go on with `after` set to `next` until `next` is null. A page ends early at "
        "1 MiB.\n\n`gap` is true if messages between `after` and the first of these are no longer "
        "there, or if `after` is of another cluster or of the future.",
        parameters=[
            _topic_parameter(),
            _query(
                "after",
                "Only messages after this one: an event id, `earliest` (all that is retained) or "
                "`latest` (none).",
                _AFTER_SCHEMA | {"default": "earliest"},
            ),
            _limit(),
        ],
        answers={
            200: _json(
                "A page.",
                _ref("History"),
                {"messages": [_EXAMPLE_MESSAGE], "next": None, "gap": False},
            )
        },
        codes=(
            "invalid_topic",
            "invalid_event_id",
            "topic_not_found",
            "rate_limited",
            *READ_CODES,
        ),
        curl="'{url}/v1/topics/chat/messages?limit=10'",
    )


def _events() -> Object:
    filters = {
        "type": "array",
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": TOPIC_BYTES_MAX,
            "pattern": FILTER_PATTERN,
        },
        "minItems": 1,
        "maxItems": FILTERS_MAX,
    }
    return _operation(
        "Events",
        "events",
        "Follow topics",
        EVENTS_DESCRIPTION,
        parameters=[
            _query(
                "topic",
                f"A filter; give 1 to {FILTERS_MAX} of them: `?topic=chat&topic=orders.>`.",
                filters,
                example=["chat"],
                required=True,
                style="form",
                explode=True,
            ),
            _query(
                "after",
                "Where to begin: after this event id, at the `earliest` retained message, or at "
                "the `latest`, that is, with what is published from now on.",
                _AFTER_SCHEMA | {"default": "latest"},
            ),
            _query(
                QUERY_CURSOR,
                "What libraries send that cannot set a header when they reconnect; it wins over "
                f"`after`. So do {_OTHER_CURSOR_NAMES}; all of them in capitals or not. If several "
                "are given, the last one counts; an empty one counts as none.",
                _CURSOR_SCHEMA,
                example=EXAMPLE_ID,
            ),
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "What a browser sends when it reconnects; it wins over the query. "
                "An empty one counts as none.",
                "schema": _CURSOR_SCHEMA,
                "example": EXAMPLE_ID,
            },
        ],
        answers={
            200: {
                "description": "The stream.",
                "headers": {
                    "Cache-Control": _header("`no-cache, no-transform`"),
                    "X-Accel-Buffering": _header("`no`: nginx passes events on at once."),
                },
                "content": {
                    EVENT_STREAM: {
                        "schema": _ref("Event"),
                        "example": {
                            "id": EXAMPLE_ID,
                            "data": json.dumps(_EXAMPLE_MESSAGE, separators=(",", ":")),
                        },
                    }
                },
            }
        },
        codes=(
            "invalid_filter",
            "invalid_event_id",
            "topic_not_found",
            "rate_limited",
            "too_many_streams",
            "no_leader",
            "shutting_down",
        ),
        curl="-N '{url}/v1/events?topic=chat&after=earliest'",
    )


# --- access -----------------------------------------------------------------------------


def _revoke_tokens() -> Object:
    return _operation(
        "Access",
        "revokeTokens",
        "Revoke a subject's tokens",
        "Tokens whose `sub` this is are refused on every node from now on if they were issued "
        "(`iat`) before now, or do not say when, and the streams that were opened with them end "
        "with `event: token-expired`. Tokens that are issued from the next second on are valid. A "
        "token that is dated more than two seconds ahead counts as issued `auth.leeway_seconds` "
        "earlier than it says, because its issuer's clock is ahead.",
        parameters=[
            {
                "name": "sub",
                "in": "path",
                "required": True,
                "description": f"The claim `sub` of the tokens: {SUBJECT}. All that is not "
                "unreserved in a URL is percent-encoded, slashes too.",
                "schema": {
                    "type": "string",
                    "pattern": "^[!-~]{1,255}$",
                    "not": {"enum": [".", ".."]},
                },
                "example": "ann",
            }
        ],
        answers={204: {"description": "Revoked."}},
        codes=(*WRITE_CODES, "rate_limited"),
        curl="-X DELETE {url}/v1/tokens/ann",
    )


# --- topics -----------------------------------------------------------------------------


def _list_topics() -> Object:
    return _operation(
        "Topics",
        "listTopics",
        "List topics",
        "In the order of their names. Go on with `after` set to `next` until `next` is null.",
        parameters=[
            _limit(),
            _query("after", "Only topics whose name is above this one.", _ref("TopicName")),
            _query(
                "match",
                "Only topics that this filter matches.",
                {"type": "string", "maxLength": TOPIC_BYTES_MAX, "pattern": FILTER_PATTERN},
                example="orders.>",
            ),
        ],
        answers={
            200: _json("A page.", _ref("TopicList"), {"topics": [_EXAMPLE_TOPIC], "next": None})
        },
        codes=("invalid_topic", "invalid_filter", "rate_limited", *READ_CODES),
        curl="'{url}/v1/topics?match=orders.>'",
    )


def _delete_topics() -> Object:
    return _operation(
        "Topics",
        "deleteTopics",
        "Delete topics that a filter matches",
        "With their history; `count` says how many there were. Their subscribers get `event: "
        "topic-deleted` for each, and stay. They go in the order of their names, up to 1,000 at a "
        "time. If that is interrupted, the problem has the `count` of those that are gone, "
        "whatever its code; asking again deletes the rest.",
        parameters=[
            _query(
                "match",
                "The filter; `>` is every topic. It is required, so that nothing is deleted by "
                "leaving it out.",
                {"type": "string", "maxLength": TOPIC_BYTES_MAX, "pattern": FILTER_PATTERN},
                required=True,
                example="jobs.>",
            ),
        ],
        answers={
            200: _json(
                "Deleted.",
                _object(
                    {"count": {"type": "integer", "minimum": 0}}, "How many topics were deleted."
                ),
                {"count": 3},
            )
        },
        codes=(*WRITE_CODES, "invalid_filter"),
        curl="-X DELETE '{url}/v1/topics?match=jobs.>'",
    )


def _create_topic() -> Object:
    return _operation(
        "Topics",
        "createTopic",
        "Create a topic",
        "What `retention` leaves out is as the operator configured it.",
        body={
            JSON: {
                "schema": _ref("NewTopic"),
                "example": {"name": "chat", "retention": {"messages": 1000}},
            }
        },
        answers={201: _json("Created.", _ref("Topic"), _EXAMPLE_TOPIC, headers=_LOCATION)},
        codes=(*BODY_CODES, *WRITE_CODES, *CREATE_CODES, "topic_exists"),
        curl="""-H 'Content-Type: application/json' -d '{"name":"chat"}' \\
  {url}/v1/topics""",
    )


def _show_topic() -> Object:
    return _operation(
        "Topics",
        "showTopic",
        "Show a topic",
        "Its settings and counts. `subscribers` are the event streams on this node.",
        parameters=[_topic_parameter()],
        answers={200: _json("The topic.", _ref("Topic"), _EXAMPLE_TOPIC)},
        codes=("invalid_topic", "topic_not_found", "rate_limited", *READ_CODES),
        curl="{url}/v1/topics/chat",
    )


def _put_topic() -> Object:
    return _operation(
        "Topics",
        "putTopic",
        "Create a topic, or change its settings",
        "Idempotent: afterwards the topic has these settings, and the configured ones for what is "
        "left out. History that the new settings do not retain is trimmed at once. The body may be "
        "left out.",
        parameters=[_topic_parameter()],
        body={
            JSON: {
                "schema": _ref("TopicSettings"),
                "example": {"retention": {"messages": 1000, "seconds": 3600}},
            }
        },
        body_required=False,
        answers={
            200: _json("Changed.", _ref("Topic"), _EXAMPLE_TOPIC),
            201: _json("Created.", _ref("Topic"), _EXAMPLE_TOPIC, headers=_LOCATION),
        },
        codes=(*BODY_CODES, *WRITE_CODES, *CREATE_CODES),
        curl="""-X PUT -H 'Content-Type: application/json' -d '{"retention":{"seconds":3600}}' \\
  {url}/v1/topics/chat""",
    )


def _delete_topic() -> Object:
    return _operation(
        "Topics",
        "deleteTopic",
        "Delete a topic and its history",
        "Its subscribers get `event: topic-deleted`, and stay.",
        parameters=[_topic_parameter()],
        answers={204: {"description": "Deleted."}},
        codes=(*WRITE_CODES, "invalid_topic", "topic_not_found"),
        curl="-X DELETE {url}/v1/topics/chat",
    )


# --- cluster ----------------------------------------------------------------------------


def _cluster() -> Object:
    return _operation(
        "Cluster",
        "cluster",
        "Show the cluster",
        "As this node sees it. `match_index`, `lag` and `reachable` of the members are what the "
        "leader knows; while it cannot be asked, the first two are null.",
        answers={200: _json("The cluster.", _ref("Cluster"), _EXAMPLE_CLUSTER)},
        curl="{url}/v1/cluster",
    )


_UNDER_WAY: Final = (
    " The answer is the cluster as it is now; `GET /v1/cluster` tells when it is done. A node in "
    "single-node mode answers `single_node`."
)


def _accepted() -> Mapping[int, Object]:
    where = {"Location": _header("`/v1/cluster`: where to look how far it is.")}
    return {202: _json("Under way.", _ref("Cluster"), headers=where)}


def _add_member() -> Object:
    return _operation(
        "Cluster",
        "addMember",
        "Add a node to the cluster",
        "Start it first, with `--join` and an empty data directory: the leader looks whether it "
        "answers at `raft_address`. It comes in as a learner, and gets its vote when it has caught "
        "up. A node that reaches a member at its `--join` address asks for this by itself."
        + _UNDER_WAY,
        body={JSON: {"schema": _ref("NewMember"), "example": _EXAMPLE_NEW_MEMBER}},
        answers=_accepted(),
        codes=(*BODY_CODES, *MEMBER_CODES, "member_exists", "member_unreachable"),
        curl="""-H 'Content-Type: application/json' \\
  -d '{"id":"n2","raft_address":"10.0.0.2:4081","http_url":"http://10.0.0.2:4080"}' \\
  {url}/v1/cluster/members""",
    )


def _remove_member() -> Object:
    member = {
        "name": "member",
        "in": "path",
        "required": True,
        "description": "The node's id.",
        "schema": {"type": "string", "pattern": MEMBER_PATTERN},
        "example": "n2",
    }
    force = {
        "name": "force",
        "in": "query",
        "description": "`true`: even if the voters that are left, and answer, are no majority.",
        "schema": {"type": "boolean", "default": False},
    }
    return _operation(
        "Cluster",
        "removeMember",
        "Remove a node from the cluster",
        "The node hears of it, says so and stops. It may be away: with its old data it is not let "
        "in again. A leader hands over first. If the voters that are left, and answer, would be no "
        "majority, it is refused: once begun it could not be taken back, and nothing would be "
        "written any more until enough of them are back." + _UNDER_WAY,
        parameters=[member, force],
        answers=_accepted(),
        codes=(*MEMBER_CODES, "member_not_found", "last_voter", "no_majority"),
        curl="-X DELETE {url}/v1/cluster/members/n2",
    )


def _move_leader() -> Object:
    return _operation(
        "Cluster",
        "moveLeader",
        "Hand leadership over",
        "To a voter, which then leads within milliseconds; writes wait meanwhile. If it does not "
        "get there within an election timeout, the old leader goes on." + _UNDER_WAY,
        body={JSON: {"schema": _ref("NewLeader"), "example": {"id": "n2"}}},
        answers=_accepted(),
        codes=(
            *(*BODY_CODES, *MEMBER_CODES),
            *("member_not_found", "not_a_voter", "member_unreachable", "clock_off"),
        ),
        curl="""-H 'Content-Type: application/json' -d '{"id":"n2"}' {url}/v1/cluster/leader""",
    )


# --- operations -------------------------------------------------------------------------


def _health() -> Object:
    return _operation(
        "Operations",
        "health",
        "Is the process alive?",
        "For the supervisor: restart it if this does not answer.",
        answers={200: _json("It is.", _ref("Status"), {"status": "ok"})},
        curl="{url}/healthz",
    )


def _ready() -> Object:
    return _operation(
        "Operations",
        "ready",
        "Does the node serve?",
        "For the load balancer: send requests here while this answers 200. It does once the node "
        "knows a leader, has applied what was committed five seconds ago, and has room on its disk "
        "for what its cluster writes. It does not while the node shuts down, nor in the `[http] "
        "drain_seconds` before that (`reason` `draining`), in which it still serves; nor when its "
        "data prove to be an older copy, when its store was restored or recovered beside a cluster "
        "that lives, when another process runs with its data, or once it has heard that its "
        "cluster was founded by a node that had lost its data. A cluster that is full is no "
        "reason: every node serves what it has.\n\n"
        "Otherwise `code` is the first reason, and `reasons` has all of them, each with `code` and "
        "`detail`. Where there are tokens, `detail` is general: nodes, bytes and what peers say "
        "are told with a token that has `admin` (any other token, also one that is not valid, "
        "changes nothing here). `no_leader` then names the voters that are not reached, and the "
        "peers that are refused. `GET /v1/cluster` has the same.",
        answers={200: _json("It does.", _ref("Status"), {"status": "ok"})},
        codes=(*NOT_READY_CODES, "shutting_down"),
        curl="{url}/readyz",
    )


def _metrics() -> Object:
    text = {"schema": {"type": "string"}, "example": "repl_broker_subscribers 3.0\n"}
    return _operation(
        "Operations",
        "metrics",
        "Metrics for Prometheus",
        "In the text format 0.0.4.",
        answers={200: {"description": "The metrics.", "content": {CONTENT_TYPE: text}}},
        curl="{url}/metrics",
    )


def _openapi() -> Object:
    return _operation(
        "Operations",
        "openapi",
        "This description, for programs",
        "An OpenAPI 3.1 document.",
        answers={200: _json("The document.", {"type": "object"})},
        curl="{url}/openapi.json",
    )


def _docs() -> Object:
    return _operation(
        "Operations",
        "docs",
        "This description, for people",
        "One page, with everything in it. The `type` of a problem leads here.",
        answers={200: _text("The page.", "text/html; charset=utf-8")},
        curl="{url}/docs",
    )


def _client() -> Object:
    return _operation(
        "Client",
        "client",
        "The client, as a module",
        'For pages without a build step: `import { connect } from "/client.js"`. It is the npm '
        "package `repl-broker` in one file, with nothing else to load.",
        answers={200: _text("The module.", SCRIPT_TYPE), 304: _UNCHANGED},
        curl="{url}/client.js",
    )


def _client_types() -> Object:
    return _operation(
        "Client",
        "clientTypes",
        "The client's types",
        "For editors and compilers. What it declares is in the client's reference.",
        answers={200: _text("The declarations.", TYPES_TYPE), 304: _UNCHANGED},
        curl="{url}/client.d.ts",
    )


_SECURITY_SCHEMES: Final[Object] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A signed token (RFC 7519) in the Authorization header.",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "The same token; a write needs an Origin that is allowed.",
    },
    "query": {
        "type": "apiKey",
        "in": "query",
        "name": QUERY_TOKEN,
        "description": "The same token, for EventSource, if `[auth] allow_query_token` is on.",
    },
}

_UNCHANGED: Final[Object] = {"description": "It is what `If-None-Match` says; no body."}


def _text(description: str, content_type: str) -> Object:
    return {"description": description, "content": {content_type: {"schema": {"type": "string"}}}}


# --- parts ------------------------------------------------------------------------------


def _operation(
    tag: str,
    name: str,
    summary: str,
    description: str,
    *,
    answers: Mapping[int, Object] | None = None,
    codes: Sequence[str] = (),
    parameters: Sequence[Object] = (),
    body: Object | None = None,
    body_required: bool = True,
    curl: str,
) -> Object:
    operation: Object = {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "description": description,
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = {"required": body_required, "content": body}
    answered = dict(answers or {}) | _refusals({*codes, *COMMON_CODES})
    operation["responses"] = {str(status): answered[status] for status in sorted(answered)}
    source = "curl " + curl.replace("{url}", EXAMPLE_URL)
    operation["x-codeSamples"] = [{"lang": "Shell", "label": "curl", "source": source}]
    return operation


def _secure(operation: Object, right: Right) -> None:
    """Say what the operation needs, and how it refuses those who have not got it."""
    operation["description"] += f"\n\n**Access.** {right.value}"
    if right is Right.OPEN:
        return
    ways: list[Object] = [{"bearer": []}, {"cookie": []}]
    if right is Right.STREAM:
        ways.append({"query": []})
    operation["security"] = [*ways, {}]  # none is needed where anonymous ones may, or mode is none
    answered = operation["responses"] | {
        str(status): response
        for status, response in _refusals({"unauthenticated", "forbidden"}).items()
    }
    operation["responses"] = {status: answered[status] for status in sorted(answered)}


def _refusals(codes: set[str]) -> dict[int, Object]:
    """The problems, a response a status."""
    by_status: dict[int, list[str]] = {}
    for code, (status, _) in PROBLEMS.items():
        if code in codes:
            by_status.setdefault(status, []).append(code)
    return {status: _refusal(status, found) for status, found in by_status.items()}


def _refusal(status: int, codes: list[str]) -> Object:
    exact = {"properties": {"status": {"const": status}, "code": {"enum": codes}}}
    response: Object = {
        "description": ", ".join(f"`{code}`: {PROBLEMS[code][1]}" for code in codes) + ".",
        "content": {PROBLEM_JSON: {"schema": {"allOf": [_ref("Problem"), exact]}}},
    }
    headers = response["headers"] = {"X-Request-Id": _header("Which lines of the log are of it.")}
    if status in (401, 403):
        headers["WWW-Authenticate"] = _header("What is asked for (RFC 6750).")
    if status in RETRIED:
        headers["Retry-After"] = _header("Seconds to wait.", {"type": "integer"})
    return response


def _json(
    description: str, schema: Object, example: object = None, headers: Object | None = None
) -> Object:
    media: Object = {"schema": schema}
    if example is not None:
        media["example"] = example
    response: Object = {"description": description}
    if headers:
        response["headers"] = headers
    response["content"] = {JSON: media}
    return response


def _lines(schema: Object) -> Object:
    """NDJSON: as in OpenAPI 3.2, the schema is that of the sequence as an array."""
    return {"type": "array", "items": schema, "minItems": 1}


def _ref(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(description: str, schema: Object | None = None) -> Object:
    return {"description": description, "schema": schema or {"type": "string"}}


def _query(name: str, description: str, schema: Object, **more: object) -> Object:
    return {"name": name, "in": "query", "description": description, "schema": schema, **more}


def _limit() -> Object:
    schema = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
    return _query("limit", "How many a page has at most.", schema)


def _topic_parameter() -> Object:
    return {
        "name": "topic",
        "in": "path",
        "required": True,
        "description": "The topic's name.",
        "schema": _ref("TopicName"),
        "example": "chat",
    }


def _idempotency_key() -> Object:
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Makes a retry safe: a request with a key that was used has the effect and "
        "the answer of the first. 1 to 255 visible ASCII characters, for instance a UUID. A key is "
        "remembered for a day, unless the operator sets `[limits] idempotency_seconds`.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    }


_CURSOR_SCHEMA: Final[Object] = {
    "type": "string",
    "pattern": f"^(earliest|latest|{EVENT_ID_PATTERN}|)$",
}
_OTHER_CURSOR_NAMES: Final = ", ".join(
    f"`{name}`" for name in CURSOR_NAMES if name != QUERY_CURSOR.lower()
)
_AFTER_SCHEMA: Final[Object] = {
    "type": "string",
    "pattern": f"^(earliest|latest|{EVENT_ID_PATTERN})$",
}
_LOCATION: Final[Object] = {"Location": _header("The path of the topic.")}
_REPLAYED: Final[Object] = {
    "Idempotent-Replayed": _header(
        "`true` if the Idempotency-Key was known: this is the answer of the first request.",
        {"type": "string", "const": "true"},
    )
}


# --- schemas ----------------------------------------------------------------------------


def _schemas() -> Object:
    event_id = {"type": "string", "pattern": f"^{EVENT_ID_PATTERN}$", "example": EXAMPLE_ID}
    time = {"type": "string", "format": "date-time", "example": EXAMPLE_TIME}
    count = {"type": "integer", "minimum": 0}
    maybe = {"type": ["integer", "null"], "minimum": 0}
    ids = {"type": "array", "items": {"type": "string"}}
    next_id = {"type": ["string", "null"], "description": "`after` of the next page; null: none."}
    retention = {
        name: {"type": "integer", "minimum": least, "maximum": most}
        for name, (least, most) in RETENTION_RANGES.items()
    }
    idle: Object = {
        "description": "Unused for this long, the topic is deleted: nothing was published to it, "
        "and no event stream followed it. null: never."
    }
    shown_idle = retention["idle_seconds"] | idle | {"type": ["integer", "null"], "minimum": 1}
    given_idle = retention["idle_seconds"] | {
        "type": ["integer", "null"],
        "description": f"{idle['description']} 0 is the same.",
    }
    name = _ref("TopicName")
    return {
        "TopicName": {
            "type": "string",
            "minLength": 1,
            "maxLength": TOPIC_BYTES_MAX,
            "pattern": TOPIC_PATTERN,
            "example": "chat",
        },
        "Message": _object(
            {
                "id": event_id,
                "topic": name,
                "time": time | {"description": "When the leader took it."},
                "data": {"description": "Any JSON value, as it was published."},
            },
            "A message. It is the same object in the event stream, in the history and on the "
            "command line.",
        ),
        "TopicLine": _object(
            {"topic": name, "data": {"description": "Any JSON value."}},
            "A line of a batch over several topics.",
        ),
        "Event": _object(
            {
                "id": event_id,
                "event": {"enum": list(EVENT_NAMES)},
                "retry": {"type": "integer", "description": "In `subscribed` and `goodbye`."},
                "data": {
                    "type": "string",
                    "contentMediaType": JSON,
                    "description": "For a message, which has no `event`, a Message in JSON.",
                },
            },
            "An event of the stream; the stream is a sequence of them. `token-expired` and "
            "`goodbye` have no id.",
            required=("data",),
        ),
        "Receipt": _object({"id": event_id, "topic": name, "time": time}, "One message is kept."),
        "BatchReceipt": _object(
            {
                "topic": name,
                "count": count | {"minimum": 1},
                "first_id": event_id,
                "last_id": event_id,
            },
            "A batch is kept.",
        ),
        "ManyReceipt": _object(
            {"count": count | {"minimum": 1}, "first_id": event_id, "last_id": event_id},
            "A batch over several topics is kept.",
        ),
        "History": _object(
            {
                "messages": {"type": "array", "items": _ref("Message")},
                "next": next_id,
                "gap": {"type": "boolean"},
            },
            "A page of retained messages.",
        ),
        "Retention": _object(
            retention | {"idle_seconds": shown_idle},
            "How much history a topic keeps; the limit that is reached first counts.",
        ),
        "RetentionSettings": _object(
            retention | {"idle_seconds": given_idle},
            "What is left out is as the operator configured it.",
            required=(),
        ),
        "TopicSettings": _object(
            {"retention": _ref("RetentionSettings")}, "The settings of a topic.", required=()
        ),
        "NewTopic": _object(
            {"name": name, "retention": _ref("RetentionSettings")},
            "A topic to create.",
            required=("name",),
        ),
        "Topic": _object(
            {
                "name": name,
                "retention": _ref("Retention"),
                "messages": count,
                "bytes": count,
                "first_id": event_id | {"type": ["string", "null"]},
                "last_id": event_id | {"type": ["string", "null"]},
                "created_at": time,
                "subscribers": count,
            },
            "A topic: its settings, and what it retains now.",
        ),
        "TopicList": _object(
            {"topics": {"type": "array", "items": _ref("Topic")}, "next": next_id},
            "A page of topics.",
        ),
        "Cluster": _object(
            {
                "cluster_id": {"type": "string"},
                "epoch": {"type": "string", "pattern": "^[0-9a-f]{8}$"},
                "node": {"type": "string", "description": "The id of the node that answers."},
                "mode": {"enum": ["single", "cluster"]},
                "term": count,
                "leader": {
                    "type": ["string", "null"],
                    "description": "Its id; null while this node knows none.",
                },
                "commit_index": count,
                "applied_index": count,
                "feature_level": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "What may be written to the log: it rises to what all members "
                    "know, once every one of them runs a version that knows more. Of a single "
                    "node: what its version knows.",
                },
                "clock_skew_seconds_max": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "How far apart two clocks may be that the node that answers "
                    "takes for right ([cluster] clock_skew_seconds_max).",
                },
                "change_pending": {
                    "type": "boolean",
                    "description": "Whether the members are as in a change that this node does not "
                    "know to be committed: without a majority it may stay so, or be dropped.",
                },
                "change": {
                    "anyOf": [_ref("PendingChange"), {"type": "null"}],
                    "description": "That change; null if there is none.",
                },
                "ready": {
                    "type": "boolean",
                    "description": "Whether `GET /readyz` of this node answers 200.",
                },
                "reasons": {
                    "type": "array",
                    "items": _ref("Reason"),
                    "description": "Why it does not, but for a shutdown; empty if it does.",
                },
                "members": {"type": "array", "items": _ref("Member")},
            },
            "The cluster as one node sees it.",
        ),
        "PendingChange": _object(
            {
                "joins": ids | {"description": "Who comes, as a learner."},
                "promotes": ids | {"description": "Who gets its vote."},
                "leaves": ids | {"description": "Who goes."},
                "voters": ids | {"description": "Who votes once it is committed, and until then."},
                "needed": count | {"description": "How many of them must have it."},
                "waits_for": ids
                | {
                    "description": "Those of them that do not answer, if the others are too few: "
                    "nothing is written before some of them are back.",
                },
            },
            "A change of the members that is not known to be committed.",
        ),
        "Reason": _object(
            {
                "code": {"enum": list(NOT_READY_CODES), "description": "Stable; for programs."},
                "detail": {"type": "string", "description": "What is wrong, and what to do."},
            },
            "Why a node is not ready.",
        ),
        "Member": _object(
            {
                "id": {"type": "string"},
                "role": {"enum": ["leader", "voter", "learner"]},
                "raft_address": {"type": "string"},
                "http_url": {"type": "string"},
                "match_index": maybe
                | {"description": "Up to here its log is known to be the leader's; null: unknown."},
                "lag": maybe | {"description": "Entries that it is behind; null: unknown."},
                "reachable": {
                    "type": "boolean",
                    "description": "The leader heard of it within an election timeout.",
                },
                "feature_level": {
                    "type": ["integer", "null"],
                    "description": "The highest feature level that its version knows; null: this "
                    "node is not connected to it.",
                },
                "clock_skew_seconds": {
                    "type": ["number", "null"],
                    "description": "By how much its clock is ahead of that of the node that "
                    "answers; negative: behind; null: unknown.",
                },
            },
            "A node of the cluster.",
        ),
        "NewMember": _object(
            {
                "id": {"type": "string", "pattern": MEMBER_PATTERN},
                "raft_address": {
                    "type": "string",
                    "pattern": f"^{HOST_PATTERN}:{PORT_PATTERN}$",
                    "description": "`HOST:PORT`, or `[IPV6]:PORT`.",
                },
                "http_url": {
                    "type": "string",
                    "pattern": "^https?://[!-~]+$",
                    "description": "An http:// or https:// URL.",
                },
            },
            "A node to add.",
        ),
        "NewLeader": _object(
            {"id": {"type": "string", "pattern": MEMBER_PATTERN}}, "The voter that is to lead."
        ),
        "Status": _object({"status": {"const": "ok"}}, "All is well."),
        "Problem": {
            "type": "object",
            "description": "Why a request was not carried out (RFC 9457). Some codes add members: "
            "`invalid_json` has `line` and `column`, those of 413 have `limit`, "
            "`/readyz` adds `reasons`, `unauthenticated` has `reason`, and so has `forbidden` "
            "(`origin`) where a web page is refused.",
            "properties": {
                "type": {
                    "type": "string",
                    "format": "uri-reference",
                    "description": "Where the code is explained.",
                },
                "title": {"type": "string", "description": "The same for every problem of a code."},
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": {"type": "string", "description": "What was wrong, and what to do."},
                "code": {"enum": list(PROBLEMS), "description": "Stable; for programs."},
                "line": {"type": "integer", "minimum": 1},
                "column": {"type": "integer", "minimum": 1},
                "limit": {"type": "integer", "minimum": 1},
                "reason": {"enum": [*REASONS, "origin"]},
                "reasons": {"type": "array", "items": _ref("Reason")},
            },
            "required": ["type", "title", "status", "detail", "code"],
        },
    }


def _object(properties: Object, description: str, required: Sequence[str] | None = None) -> Object:
    schema: Object = {
        "type": "object",
        "description": description,
        "properties": properties,
        "additionalProperties": False,
    }
    names = list(properties if required is None else required)
    if names:
        schema["required"] = names
    return schema


_EXAMPLE_MESSAGE: Final[Object] = {
    "id": EXAMPLE_ID,
    "topic": "chat",
    "time": EXAMPLE_TIME,
    "data": {"text": "hello"},
}
_EXAMPLE_TOPIC: Final[Object] = {
    "name": "chat",
    "retention": {
        "messages": 10_000,
        "seconds": 86_400,
        "bytes": 67_108_864,
        "idle_seconds": None,
    },
    "messages": 2,
    "bytes": 32,
    "first_id": "9f3a1c2b-4999",
    "last_id": EXAMPLE_ID,
    "created_at": EXAMPLE_TIME,
    "subscribers": 1,
}
_EXAMPLE_NEW_MEMBER: Final[Object] = {
    "id": "n2",
    "raft_address": "10.0.0.2:4081",
    "http_url": "http://10.0.0.2:4080",
}


def _example_member(number: int, role: str) -> Object:
    return {
        "id": f"n{number}",
        "role": role,
        "raft_address": f"10.0.0.{number}:4081",
        "http_url": f"http://10.0.0.{number}:4080",
        "match_index": 5120,
        "lag": 0,
        "reachable": True,
        "feature_level": 3,
        "clock_skew_seconds": 0.0 if number == 1 else 0.002,
    }


_EXAMPLE_CLUSTER: Final[Object] = {
    "cluster_id": "5f1d7a52c9a14d03b7a6d4f2d20c9b8e",
    "epoch": "9f3a1c2b",
    "node": "n1",
    "mode": "cluster",
    "term": 3,
    "leader": "n1",
    "commit_index": 5120,
    "applied_index": 5120,
    "feature_level": 3,
    "clock_skew_seconds_max": 5,
    "change_pending": False,
    "change": None,
    "ready": True,
    "reasons": [],
    "members": [
        _example_member(1, "leader"),
        _example_member(2, "voter"),
        _example_member(3, "voter"),
    ],
}
