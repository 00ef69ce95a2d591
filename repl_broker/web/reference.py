"""Writes what users look up about HTTP, from the code itself.

    python -m repl_broker.web.reference http-api > docs/reference/http-api.md
    python -m repl_broker.web.reference metrics > docs/reference/metrics.md
    python -m repl_broker.web.reference errors > docs/reference/errors.md

A test compares the files with what this writes today.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Final

from repl_broker.errors import PROBLEMS
from repl_broker.proposals import COMMIT_BUCKETS_SECONDS
from repl_broker.web.metrics import (
    BUILD_INFO,
    CERTIFICATE,
    CLOCK_MAX,
    HISTOGRAMS,
    MEMBERS,
    METRICS,
    OWN_CLOCK,
    REFUSED,
    REQUESTS,
    SUBSCRIBERS_BEHIND,
)
from repl_broker.web.openapi import COMMON_CODES, Object, document
from repl_broker.web.problems import REMEDIES
from repl_broker.web.schema_text import (
    example_text,
    notable_answers,
    operations,
    references,
    schema_text,
    used_codes,
)

__all__ = ["PAGES", "PROCESS_METRICS", "errors", "http_api", "metrics"]

ANYWHERE: Final = frozenset({"not_found", "method_not_allowed"})
# What prometheus_client tells of the process, on Linux.
PROCESS_METRICS: Final = {
    "process_cpu_seconds_total": ("counter", "Processor time, user and system."),
    "process_resident_memory_bytes": ("gauge", "Memory that is in use."),
    "process_virtual_memory_bytes": ("gauge", "Address space that is taken."),
    "process_start_time_seconds": ("gauge", "When the process was started, in Unix time."),
    "process_open_fds": ("gauge", "Open file descriptors; each connection is one."),
    "process_max_fds": ("gauge", "How many may be open."),
}


# --- http-api.md ------------------------------------------------------------------------


def http_api() -> str:
    """Every call, with its parameters, bodies and answers."""
    described = document()
    parts = [
        "# HTTP API",
        "A node serves this description itself: as a page at `/docs`, and as an OpenAPI 3.1 "
        "document at `/openapi.json`.",
        described["info"]["description"],
        *_overview(described),
    ]
    for tag in described["tags"]:
        parts += [f"## {tag['name']}", tag["description"]]
        for method, path, operation in operations(described):
            if tag["name"] in operation["tags"]:
                parts += _operation(method, path, operation)
    parts += _schemas(described)
    parts += _fuzzing()
    return "\n\n".join(parts) + "\n"


def _overview(described: Object) -> Iterator[str]:
    yield "## Calls"
    yield _table(
        ("call", "does", "answers"),
        (
            (
                f"[`{method} {path}`](#{_anchor(operation['summary'])})",
                operation["summary"],
                ", ".join(s for s in operation["responses"] if s < "400"),
            )
            for method, path, operation in operations(described)
        ),
    )


def _operation(method: str, path: str, operation: Object) -> Iterator[str]:
    yield f"### {operation['summary']}"
    yield f"`{method} {path}`"
    yield operation["description"]
    if "parameters" in operation:
        rows = (
            (
                f"`{each['name']}`",
                each["in"] + (", required" if each.get("required") else ""),
                f"{each['description']} ({_type(each['schema'])})",
            )
            for each in operation["parameters"]
        )
        yield _table(("parameter", "in", "meaning"), rows)
    if "requestBody" in operation:
        body = operation["requestBody"]
        yield f"Body{'' if body['required'] else ', which may be left out'}:"
        for media_type, media in body["content"].items():
            lines = ", an item a line" if media_type.endswith("ndjson") else ""
            yield f"`{media_type}`: {_type(media['schema'])}{lines}"
            yield _fence(example_text(media_type, media["example"]), "json")
    rows = (
        (status, ", ".join(map(_code, found)) if found else response["description"], body)
        for status, response, found in notable_answers(operation)
        for body in [_content(response) if not found else "problem"]
    )
    yield _table(("status", "when", "body"), rows)
    headers: dict[str, str] = {}  # several answers may have the same
    for response in operation["responses"].values():
        for name, header in response.get("headers", {}).items():
            if name not in ("Retry-After", "X-Request-Id"):
                headers[f"Header `{name}`: {header['description']}"] = name
    yield from headers
    for response in operation["responses"].values():
        media = response["content"].get("application/json", {}) if "content" in response else {}
        if "example" in media:
            yield _fence(example_text("application/json", media["example"]), "json")
            break
    yield _fence(operation["x-codeSamples"][0]["source"], "sh")


def _schemas(described: Object) -> Iterator[str]:
    yield "## Schemas"
    schemas = described["components"]["schemas"]
    for name, schema in schemas.items():
        yield f"### {name}"
        if "properties" not in schema:
            text = f"{_type(schema)}, at most {schema['maxLength']} characters"
            yield f"{text[0].upper()}{text[1:]}: `{schema['pattern']}`."
            continue
        yield schema["description"]
        required = schema.get("required", ())
        rows = (
            (
                f"`{member}`",
                "a [code](errors.md)" if member == "code" else _type(part),
                part.get("description", "") + ("" if member in required else " Optional."),
            )
            for member, part in schema["properties"].items()
        )
        yield _table(("member", "type", "meaning"), rows)
    assert set(references(described)) <= set(schemas), "every schema is described"


def _fuzzing() -> Iterator[str]:
    yield "## Hold a node to it"
    yield (
        "The test suite lets schemathesis make up requests from this description, sends them to a "
        "running node, and fails at any status, media type, header or body that is not described "
        "here. To do so for longer, from the repository:"
    )
    yield _fence(
        "repl-broker serve --data-dir /tmp/fuzzed &\n"
        "PYTHONPATH=. schemathesis --config-file tests/contract/schemathesis.toml \\\n"
        "  run http://127.0.0.1:4080/openapi.json --max-examples 1000",
        "sh",
    )
    yield (
        "The configuration teaches it NDJSON, and to leave an event stream, which never ends, "
        "after its first event."
    )


# --- metrics.md -------------------------------------------------------------------------


def metrics() -> str:
    """Every metric of ``/metrics``."""
    ours = [(f"`{m.full_name}`", m.kind, m.meaning) for m in METRICS]
    ours += [(f"`{name}`", "histogram", about) for name, about in HISTOGRAMS]
    about = f"{REQUESTS[1]} Labels: `method`, `route`, `status`."
    ours.append((f"`{REQUESTS[0]}`", "counter", about))
    ours += [(f"`{name}`", "gauge", f"{about} Label: `member`.") for name, about in MEMBERS]
    ours += [(f"`{name}`", "gauge", meaning) for name, meaning in (OWN_CLOCK, CLOCK_MAX)]
    about = f"{SUBSCRIBERS_BEHIND[1]} Label: `messages`."
    ours.append((f"`{SUBSCRIBERS_BEHIND[0]}`", "gauge", about))
    ours += [(f"`{CERTIFICATE[0]}`", "gauge", f"{CERTIFICATE[1]} Label: `certificate`.")]
    ours.append((f"`{REFUSED[0]}_total`", "counter", REFUSED[1] + " Label: `code`."))
    ours.append((f"`{BUILD_INFO[0]}`", "gauge", BUILD_INFO[1] + " Labels: `version`, `node`."))
    process = [(f"`{name}`", *about) for name, about in PROCESS_METRICS.items()]
    bounds = ", ".join(f"{bound:g}" for bound in COMMIT_BUCKETS_SECONDS)
    parts = [
        "# Metrics",
        "`GET /metrics` answers in Prometheus' text format. Counters begin at zero when the node "
        "starts, and count what this node did. No metric has a label for topics, so their number "
        "is bounded, whatever clients do.",
        _table(("metric", "type", "meaning"), ours),
        f"The buckets of the histograms end at {bounds} seconds.",
        "## The process",
        "From prometheus_client; on Linux.",
        _table(("metric", "type", "meaning"), process),
        "## Worth an alert",
        "[`examples/monitoring/alerts.yml`](../../examples/monitoring/alerts.yml) has a rule for "
        "each of these, with thresholds to begin with; `up` is Prometheus' own.",
        "- `repl_broker_ready` is 0 for longer than a restart takes.\n"
        "- `sum(repl_broker_is_leader)` over a cluster is 0 for longer than an election takes: no "
        "majority, nothing can be written. It stays above 1: a node was cut off and does not "
        "know.\n"
        "- `repl_broker_peers_connected` is below the number of the other nodes: one more loss may "
        "be one too many.\n"
        "- `changes(repl_broker_term[15m])` is above 3 with nobody restarting nodes: a disk or a "
        "network that is too slow for `[raft] election_timeout_ms`.\n"
        "- `rate(repl_broker_peer_handshakes_refused_total[5m])` or "
        "`rate(repl_broker_peer_garbage_total[5m])` is above 0: a node with a wrong secret, or a "
        "stranger at the Raft port.\n"
        "- `histogram_quantile(0.99, rate(repl_broker_commit_seconds_bucket[5m]))` is above what "
        "publishers can wait for: the disk is slow, or shared.\n"
        "- `histogram_quantile(0.99, rate(repl_broker_store_write_seconds_bucket[5m]))` is above a "
        "tenth of a second: it is this node's disk.\n"
        '- `sum by (status) (rate(repl_broker_http_requests_total{status=~"5.."}[5m]))` is above '
        "0: clients get errors. Few of them, which a rate does not show: "
        '`increase(repl_broker_refused_total{code=~"internal_error|outcome_unknown|storage_full"}'
        "[1h])`.\n"
        '- `sum by (status) (rate(repl_broker_http_requests_total{status="429"}[5m]))` is above '
        "0.1: clients are told to slow down.\n"
        '- `increase(repl_broker_refused_total{code=~"too_many_.*"}[15m])` is above 0: a share, '
        "or a limit, is used up.\n"
        "- `repl_broker_member_lag_entries` stays high, or `repl_broker_member_reachable` is 0: a "
        "member that is slow, or gone.\n"
        "- `repl_broker_certificate_expiry_timestamp_seconds - time()` is below 30 days, or 7: a "
        "certificate ends, and with it the connections that rest on it.\n"
        "- `repl_broker_reload_problems` is above 0: a file could not be taken at a reload. What "
        "it was to withdraw is still accepted, and the next start would fail.\n"
        "- `min by (member) (abs(repl_broker_member_clock_skew_seconds))` is above "
        "`repl_broker_clock_skew_limit_seconds`: the clock of that member is off, as all others "
        "see it.\n"
        "- `increase(repl_broker_gaps_total[15m])` is above 0: readers come back too late for what "
        "topics retain.\n"
        "- `repl_broker_subscriber_lag_messages_max` stays high: a client reads more slowly than "
        "is published to its topics.\n"
        "- `repl_broker_loop_turn_longest_seconds` is above 0.3: requests wait for the processor, "
        "or for what somebody asked for.\n"
        "- `time() - max by (job) (repl_broker_last_backup_timestamp_seconds)` is above two days.\n"
        "- `repl_broker_pending_proposals` grows: more is published than the disk takes.\n"
        "- `repl_broker_store_full` is 1: publishes are refused. Better before that: "
        "`repl_broker_disk_free_bytes` comes near `repl_broker_disk_free_limit_bytes`, or "
        "`repl_broker_retained_bytes` near `repl_broker_retained_limit_bytes`.\n"
        '- `rate(repl_broker_refused_total{code="overloaded"}[5m])` is above 0: more is published '
        "than is written.\n"
        "- `repl_broker_connections` comes near `repl_broker_connections_max`, or "
        "`rate(repl_broker_connections_refused_total[5m])` is above 0.\n"
        "- `process_open_fds / process_max_fds` is above 0.8.\n"
        "- `rate(repl_broker_connections_failed_total[5m])` is above 0: please report it, with "
        "the line of the log.",
    ]
    return "\n\n".join(parts) + "\n"


# --- errors.md --------------------------------------------------------------------------


def errors() -> str:
    """Every problem code."""
    used = used_codes(document()) | ANYWHERE
    parts = [
        "# Errors",
        "A request that is not carried out is answered with a problem (RFC 9457, "
        "`application/problem+json`):",
        _fence(
            json.dumps(
                {
                    "type": "/docs#invalid_json",
                    "title": PROBLEMS["invalid_json"][1],
                    "status": 400,
                    "detail": "Line 1, column 8: expecting ',' delimiter.",
                    "code": "invalid_json",
                    "line": 1,
                    "column": 8,
                },
                indent=2,
            ),
            "json",
        ),
        "`code` is stable, and what programs go by. `title` is the same for every problem of a "
        "code; `detail` tells of this one, and may change from version to version. `type` is "
        "where the node's own page explains the code. 429 and 503 come with `Retry-After`, in "
        "seconds. `X-Request-Id` is what the [log](../how-to/monitor.md#the-log) of the node has "
        "on each line about the request; what cannot be read as a request has none.",
        "A refused request has changed nothing. `outcome_unknown` alone leaves that open.",
        f"Any request can get {', '.join(map(_code, COMMON_CODES))}; an unknown path "
        f"{_code('not_found')}, and a method that a path does not have "
        f"{_code('method_not_allowed')}. The [HTTP API](http-api.md) says what else a call can "
        "get.",
    ]
    for code, (status, title) in PROBLEMS.items():
        note = "" if code in used else " Reserved: nothing in this version answers with it."
        parts += [f"## {code}", f"{status}. {title}.{note}", REMEDIES[code]]
    return "\n\n".join(parts) + "\n"


# --- parts ------------------------------------------------------------------------------


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _fence(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _type(schema: Object) -> str:
    return schema_text(schema, lambda name: f"[{name}](#{name.lower()})")


def _content(response: Object) -> str:
    contents = response.get("content", {}).items()
    return ", ".join(f"`{kind}`: {_type(media['schema'])}" for kind, media in contents)


def _code(code: str) -> str:
    return f"[`{code}`](errors.md#{code})"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


PAGES: Final = {"http-api": http_api, "metrics": metrics, "errors": errors}

if __name__ == "__main__":
    sys.stdout.write(PAGES[sys.argv[1]]())
