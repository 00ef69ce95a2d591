"""Health, readiness, metrics, the descriptions, and what every answer carries."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from repl_broker.web.cors import ALLOWED_HEADERS
from tests.contract.client import NDJSON, Node, check_problem, read_answer, request_bytes
from tests.contract.conftest import Launch


async def test_a_node_that_serves_is_alive_and_ready(node: Node) -> None:
    for path in ("/healthz", "/readyz"):
        response = await node.client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_while_it_shuts_down_a_node_is_alive_not_ready_and_takes_no_publish(
    node: Node,
) -> None:
    """Requests that had begun to arrive are still answered."""
    refused = {
        "/readyz": request_bytes("GET", "/readyz"),
        "publish": request_bytes(
            "POST",
            "/v1/topics/chat/messages",
            ["Content-Type: application/json", "Content-Length: 1"],
            b"1",
        ),
        "batch": request_bytes(
            "POST",
            "/v1/messages",
            ["Content-Type: application/x-ndjson", "Content-Length: 24"],
            b'{"topic":"b","data":12}\n',
        ),
        "events": request_bytes("GET", "/v1/events?topic=chat"),
        "put": request_bytes("PUT", "/v1/topics/chat"),
        "delete": request_bytes("DELETE", "/v1/topics/chat"),
    }
    served = {"/healthz": request_bytes("GET", "/healthz")}
    connections = {name: await node.connect() for name in refused | served}
    for name, request in (refused | served).items():
        await connections[name].send_all(request[:5])
        # A second request on the same node proves that these bytes have arrived before it.
    for _ in range(2):
        assert (await node.client.get("/healthz")).status_code == 200
    node.stop()
    await trio.testing.wait_all_tasks_blocked()  # what comes before it has begun is taken
    for name, request in (refused | served).items():
        await connections[name].send_all(request[5:])
    for name in refused:
        answer = await read_answer(connections[name])
        check_problem(answer, 503, "shutting_down")
        assert answer.headers["connection"] == "close"
    assert (await read_answer(connections["/healthz"])).status == 200
    for stream in connections.values():
        await stream.aclose()


async def test_metrics_count_what_happens(node: Node) -> None:
    async def metrics() -> dict[str, float]:
        response = await node.client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return {
            sample.name + "".join(f"|{v}" for k, v in sorted(sample.labels.items()) if k == "le"):
                sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        }  # fmt: skip

    before = await metrics()
    async with node.events("chat") as stream:
        await stream.subscribed()
        await node.publish("chat", 1)
        await node.client.post("/v1/topics/chat/messages", content=b"2\n3\n", headers=NDJSON)
        await stream.data(3)
        after = await metrics()
    rise = {name: after[name] - before.get(name, 0) for name in after}
    assert rise["repl_broker_publishes_total"] == 2
    assert rise["repl_broker_messages_total"] == 3
    assert rise["repl_broker_deliveries_total"] == 3
    assert rise["repl_broker_sequence_number"] == 3
    assert rise["repl_broker_topics"] == 1
    assert rise["repl_broker_commands_total"] == 2
    assert rise["repl_broker_commit_seconds_count"] == 2
    assert rise["repl_broker_commit_seconds_bucket|+Inf"] == 2
    assert 0 < rise["repl_broker_commit_seconds_sum"] < 10
    assert after["repl_broker_subscribers"] == after["repl_broker_channels"] == 1
    assert after["repl_broker_tail_bytes"] > 0
    assert after["repl_broker_pending_proposals"] == after["repl_broker_lag_entries"] == 0
    assert after["repl_broker_applied_index"] == after["repl_broker_last_index"]
    assert after["repl_broker_store_bytes"] > 0
    assert after["repl_broker_ready"] == 1
    assert after["repl_broker_connections"] >= 2
    assert after["repl_broker_connections_accepted_total"] >= 2
    assert after["process_resident_memory_bytes"] > 1_000_000
    buckets = [v for name, v in after.items() if "commit_seconds_bucket" in name]
    assert buckets == sorted(buckets), "a histogram's buckets are cumulative"


async def test_the_description_for_people_needs_nothing_but_itself(node: Node) -> None:
    response = await node.client.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = response.text
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert "@import" not in page
    assert "url(" not in page


async def test_the_type_of_a_problem_leads_to_its_explanation(node: Node) -> None:
    problem = check_problem(await node.client.get("/v1/topics/nope"), 404, "topic_not_found")
    path, _, anchor = problem["type"].partition("#")
    page = (await node.client.get(path)).text
    assert f'id="{anchor}"' in page


async def test_every_code_has_an_anchor(node: Node) -> None:
    document: dict[str, Any] = (await node.client.get("/openapi.json")).json()
    page = (await node.client.get("/docs")).text
    for code in document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]:
        assert page.count(f'id="{code}"') == 1, code
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert page.count(f'id="{anchor}"') == 1, anchor


async def test_head_answers_as_get_without_the_body(node: Node) -> None:
    await node.publish("chat", 1)
    for path in (
        "/healthz",
        "/v1/topics",
        "/v1/topics/chat/messages",
        "/docs",
        "/client.js",
        "/v1/topics/x",
    ):
        head, get = await node.client.head(path), await node.client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("content-type", "content-length"):
            assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    "path", ["/healthz", "/v1/topics", "/nowhere", "/docs", "/metrics", "/client.js"]
)
async def test_no_answer_is_sniffed_or_kept(node: Node, path: str) -> None:
    response = await node.client.get(path)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] in {"no-store", "no-cache"}
    assert "server" not in response.headers
    assert "set-cookie" not in response.headers


# --- other origins ----------------------------------------------------------------------

ORIGIN = "https://app.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,idempotency-key",
}


def cors(response: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in response.headers.items() if k.startswith("access-control-")}


async def test_by_default_no_other_origin_reads_answers(node: Node) -> None:
    for response in (
        await node.client.get("/v1/topics", headers={"Origin": ORIGIN}),
        await node.client.options("/v1/topics", headers=PREFLIGHT),
    ):
        assert cors(response) == {}
    check_problem(response, 403, "forbidden", ORIGIN, "[http] cors_origins")


async def test_a_listed_origin_reads_answers_errors_and_streams(launch: Launch) -> None:
    async with launch(http={"cors_origins": (ORIGIN, "https://b.example")}) as node:
        client = node.client
        exposed = "Idempotent-Replayed, Location, Retry-After, X-Request-Id"
        for path in ("/v1/topics", "/v1/nowhere", "/v1/topics?x=1"):
            response = await client.get(path, headers={"Origin": ORIGIN})
            assert cors(response) == {
                "access-control-allow-origin": ORIGIN,
                "access-control-expose-headers": exposed,
            }
            assert response.headers["vary"] == "Origin"
        head = await client.head("/v1/events?topic=chat", headers={"Origin": ORIGIN})
        assert cors(head)["access-control-allow-origin"] == ORIGIN
        for origin in ("https://app.example.evil", "http://app.example", "null", ""):
            response = await client.get("/v1/topics", headers={"Origin": origin})
            assert (cors(response), response.headers["vary"]) == ({}, "Origin")


LOOK_ALIKES = (
    "null",
    "",
    "*",
    "https://app.example.evil.test",
    "https://evil-app.example",
    "https://evil.test/https://app.example",
    "https://app.example:443",
    "https://app.example:8443",
    "https://app.example/",
    "https://app.example.",
    "https://app.example%00.evil.test",
    "https://user@app.example",
    "https://sub.app.example",
    "https://app",
    "https://APP.example",
    "HTTPS://app.example",
    "http://app.example",
    "app.example",
    "file://app.example",
    "https://app.example, https://evil.test",
    "https://app.example https://evil.test",
)


@pytest.mark.parametrize("launch", ["door", "quart"], indirect=True)
@pytest.mark.parametrize("path", ["/v1/topics", "/v1/events?topic=t", "/v1/topics/t/messages"])
async def test_an_origin_that_only_looks_like_a_listed_one_reads_nothing(
    launch: Launch, path: str
) -> None:
    """By either way into the node; and cookies are never asked for."""
    method, content = ("POST", "1") if path.endswith("messages") else ("GET", None)
    async with launch(http={"cors_origins": (ORIGIN,)}) as node:
        for origin in (*LOOK_ALIKES, ORIGIN):
            headers = {"Origin": origin, "Content-Type": "application/json"}
            async with node.client.stream(method, path, headers=headers, content=content) as found:
                refused = method == "POST" and origin not in (ORIGIN, "")
                assert found.status_code == (403 if refused else 201 if content else 200), origin
                allowed = found.headers.get("access-control-allow-origin")
                assert allowed == (ORIGIN if origin == ORIGIN else None), origin
                assert "access-control-allow-credentials" not in found.headers
                assert found.headers["vary"] == "Origin"


async def test_a_preflight_allows_what_the_route_does(launch: Launch) -> None:
    async with launch(http={"cors_origins": (ORIGIN,)}) as node:
        response = await node.client.options("/v1/topics/chat/messages", headers=PREFLIGHT)
        assert response.status_code == 204
        found = cors(response)
        assert found["access-control-allow-origin"] == ORIGIN
        assert "POST" in found["access-control-allow-methods"]
        allowed = found["access-control-allow-headers"].lower()
        for name in ("authorization", "content-type", "idempotency-key", "last-event-id"):
            assert name in allowed
        assert int(found["access-control-max-age"]) > 0
        foreign = PREFLIGHT | {"Origin": "https://evil.example"}
        response = await node.client.options("/v1/topics/chat/messages", headers=foreign)
        assert cors(response) == {}
        check_problem(response, 403, "forbidden", "'https://evil.example'", "[http] cors_origins")


@pytest.mark.parametrize("origins", [(ORIGIN,), ("*",)])
async def test_a_preflight_allows_the_header_fields_that_it_asks_for(
    launch: Launch, origins: tuple[str, ...]
) -> None:
    """Libraries add their own: tracing, session replay, X-Requested-With."""
    async with launch(http={"cors_origins": origins}) as node:
        for asked, more in (
            (
                "x-requested-with,baggage, sentry-trace",
                ["x-requested-with", "baggage", "sentry-trace"],
            ),
            ("Content-Type,\tAuthorization ,X-A", ["x-a"]),
            ("x-a,x-a,X-A", ["x-a"]),
            ("", []),
            # What is no list of names, or too long a one, is not reflected.
            ("x-a: b", []),
            ("x-a b", []),
            ('"x"', []),
            (",".join(["x-a"] * 1000), []),
            ("é", []),
        ):
            headers = PREFLIGHT | {"Access-Control-Request-Headers": asked.encode("latin-1")}
            response = await node.client.options("/v1/topics/chat/messages", headers=headers)
            assert response.status_code == 204
            found = cors(response)
            allowed = found["access-control-allow-headers"].split(", ")
            assert allowed == [*ALLOWED_HEADERS.split(", "), *more], asked
            assert found["access-control-allow-methods"] == "GET, HEAD, POST, OPTIONS"
            assert int(found["access-control-max-age"]) > 0
            assert "access-control-allow-credentials" not in found
            vary = response.headers["vary"].lower().split(", ")
            assert "access-control-request-headers" in vary
            assert ("origin" in vary) == (origins == (ORIGIN,))


async def test_any_origin_may_be_allowed_but_never_with_credentials(launch: Launch) -> None:
    async with launch(http={"cors_origins": ("*",)}) as node:
        response = await node.client.get("/v1/topics", headers={"Origin": "https://x.example"})
        assert cors(response)["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
        preflight = await node.client.options("/v1/topics", headers=PREFLIGHT)
        assert cors(preflight)["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in preflight.headers
