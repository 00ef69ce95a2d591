"""Who may do what: every route, every kind of token, both ways into the broker, on any node."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock
from urllib.parse import quote

import pytest

from repl_broker.web.door import QUART_ONLY
from repl_broker.web.guard import RIGHTS, Right
from tests.contract.client import Node, Stream, check_problem, request_bytes
from tests.contract.conftest import FRONT_ENDS
from tests.contract.test_three_nodes import Three, three_nodes
from tests.signing import RSA, SECRET, bearer, claims, grants, hs256, signed, token, unsigned

pytestmark = pytest.mark.parametrize("way", ["door", "quart"])

AUDIENCE: Final = "test"
ADMIN: Final = {"admin": True, "aud": AUDIENCE, "sub": "root"}


class Call(NamedTuple):
    """One request to a route. ``done`` is the status for those who may."""

    method: str
    path: str
    done: int
    body: bytes | None = None
    media_type: str = "application/json"


CALLS: Final = {
    ("GET", "/v1/topics"): Call("GET", "/v1/topics", 200),
    ("POST", "/v1/topics"): Call("POST", "/v1/topics", 409, b'{"name":"chat"}'),
    ("DELETE", "/v1/topics"): Call("DELETE", "/v1/topics?match=absent", 200),
    ("GET", "/v1/topics/{topic}"): Call("GET", "/v1/topics/chat", 200),
    ("PUT", "/v1/topics/{topic}"): Call("PUT", "/v1/topics/chat", 200, b"{}"),
    ("DELETE", "/v1/topics/{topic}"): Call("DELETE", "/v1/topics/absent", 404),
    ("POST", "/v1/topics/{topic}/messages"): Call("POST", "/v1/topics/chat/messages", 201, b"1"),
    ("GET", "/v1/topics/{topic}/messages"): Call("GET", "/v1/topics/chat/messages?limit=1", 200),
    ("POST", "/v1/messages"): Call(
        "POST", "/v1/messages", 201, b'{"topic":"chat","data":1}\n', "application/x-ndjson"
    ),
    ("GET", "/v1/events"): Call("GET", "/v1/events?topic=chat", 200),
    ("DELETE", "/v1/tokens/{sub}"): Call("DELETE", "/v1/tokens/no/body", 204),
    ("GET", "/v1/cluster"): Call("GET", "/v1/cluster", 200),
    ("POST", "/v1/cluster/members"): Call("POST", "/v1/cluster/members", 400, b"{}"),
    ("DELETE", "/v1/cluster/members/{member}"): Call("DELETE", "/v1/cluster/members/n9", 404),
    ("POST", "/v1/cluster/leader"): Call("POST", "/v1/cluster/leader", 404, b'{"id":"n9"}'),
    ("GET", "/healthz"): Call("GET", "/healthz", 200),
    ("GET", "/readyz"): Call("GET", "/readyz", 200),
    ("GET", "/metrics"): Call("GET", "/metrics", 200),
    ("GET", "/openapi.json"): Call("GET", "/openapi.json", 200),
    ("GET", "/docs"): Call("GET", "/docs", 200),
    ("GET", "/client.js"): Call("GET", "/client.js", 200),
    ("GET", "/client.d.ts"): Call("GET", "/client.d.ts", 200),
    ("GET", "/ui/feed"): Call("GET", "/ui/feed", 200),
    ("GET", "/ui/"): Call("GET", "/ui/", 200),
}
# Beside those of the API: the dashboard's.
ALL_RIGHTS: Final = RIGHTS | {("GET", "/ui/feed"): Right.ADMIN, ("GET", "/ui/"): Right.OPEN}
READING: Final = frozenset({Right.OPEN, Right.LIST, Right.SUBSCRIBE, Right.STREAM, Right.SEE})
WRITING: Final = frozenset({Right.OPEN, Right.LIST, Right.PUBLISH, Right.EACH, Right.SEE})


class Kind(NamedTuple):
    """A request's token, what is refused with 401 why, and else what it may do."""

    headers: dict[str, str]
    reason: str = ""
    allowed: frozenset[Right] = frozenset({Right.OPEN})


def kinds() -> dict[str, Kind]:
    now = int(time.time())
    everything = grants((">",), (">",), admin=True)
    good = claims(repl_broker=everything, aud=AUDIENCE)

    def invalid(reason: str, text: str) -> Kind:
        return Kind(bearer(text), reason)

    def valid(*allowed: Right, **granted: Any) -> Kind:
        text = hs256(claims(aud=AUDIENCE, repl_broker=granted))
        return Kind(bearer(text), "", frozenset({Right.OPEN, Right.LIST, *allowed}))

    return {
        "no token": Kind({}, "missing"),
        "another scheme": Kind({"Authorization": "Basic cm9vdDpyb290"}, "malformed"),
        "garbage": invalid("malformed", "garbage"),
        "expired": invalid("expired", hs256(good | {"exp": now - 11})),
        "not yet valid": invalid("not_yet_valid", hs256(good | {"nbf": now + 600})),
        "wrong key": invalid("signature", hs256(good, b"x" * 32)),
        "wrong algorithm": invalid("algorithm", signed("RS256", good, RSA)),
        "alg none": invalid("algorithm", unsigned(good)),
        "wrong audience": invalid("audience", hs256(good | {"aud": "other"})),
        "no audience": invalid("audience", hs256({k: v for k, v in good.items() if k != "aud"})),
        "no exp": invalid("claims", hs256({k: v for k, v in good.items() if k != "exp"})),
        "claims changed": invalid("signature", forged(hs256(good))),
        "no grant": valid(),
        "too narrow": valid(publish=["chat.room", "news"], subscribe=["chat.>", "news"]),
        "publish": valid(Right.PUBLISH, Right.EACH, Right.SEE, publish=["chat"]),
        "subscribe": valid(Right.SUBSCRIBE, Right.STREAM, Right.SEE, subscribe=["chat"]),
        "broad": valid(*READING, *WRITING, publish=[">"], subscribe=["*", "*.>"]),
        "admin": valid(*Right, admin=True),
    }


def forged(text: str) -> str:
    head, _, signature = text.split(".")
    body = hs256(claims(repl_broker=grants(admin=True), aud=AUDIENCE)).split(".")[1]
    return f"{head}.{body}.{signature}"


@asynccontextmanager
async def cluster(tmp_path: Path, way: str, **auth: Any) -> AsyncIterator[Three]:
    secret = tmp_path / "token.secret"
    secret.write_bytes(SECRET + b"\n")
    keys = {"mode": "jwt", "secret_file": secret, "audience": AUDIENCE} | auth
    environment = {QUART_ONLY: "1"} if way == "quart" else {}
    with mock.patch.dict(os.environ, environment):
        async with three_nodes(tmp_path, bearer(token(**ADMIN)), auth=keys) as three:
            yield three


async def ask(node: Node, call: Call, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Status, and the members of the problem if it is one."""
    sent = {"Authorization": ""} | headers  # beats what the client sends by itself
    if call.body is not None:
        sent["Content-Type"] = call.media_type
    async with node.client.stream(
        call.method, call.path, content=call.body, headers=sent
    ) as response:
        if response.headers.get("Content-Type", "").startswith("text/event-stream"):
            return response.status_code, {}
        body = await response.aread()
        if response.headers.get("Content-Type") != "application/problem+json":
            return response.status_code, {}
        problem = json.loads(body)
        asked = response.headers.get("WWW-Authenticate", "")
        assert asked.startswith("Bearer ") == (response.status_code in (401, 403)), asked
        return response.status_code, problem


def expected(kind: Kind, right: Right, call: Call) -> tuple[int, str]:
    """Status, and the reason of a 401."""
    if right is not Right.OPEN and kind.reason:
        return 401, kind.reason
    return (call.done, "") if right in kind.allowed else (403, "")


async def test_who_may_do_what(tmp_path: Path, way: str) -> None:
    """The table: each kind of token, each route, at the leader and at a follower."""
    assert CALLS.keys() == ALL_RIGHTS.keys()
    async with cluster(tmp_path, way) as three:
        await three.leader.publish("chat", 1)
        wanted: dict[tuple[str, ...], tuple[int, str]] = {}
        found: dict[tuple[str, ...], tuple[int, str]] = {}
        for name, node in (("leader", three.leader), ("follower", three.followers[0])):
            for kind_name, kind in kinds().items():
                for route, call in CALLS.items():
                    cell = (name, kind_name, *route)
                    status, problem = await ask(node, call, kind.headers)
                    found[cell] = (status, problem.get("reason", ""))
                    wanted[cell] = expected(kind, ALL_RIGHTS[route], call)
                    check_text(kind, problem)
        assert found == wanted
        assert len(found) == 2 * len(kinds()) * len(CALLS)


def check_text(kind: Kind, problem: dict[str, Any]) -> None:
    text = json.dumps(problem)
    for secret in kind.headers.get("Authorization", "").split(".")[1:]:
        assert not secret or secret not in text, "a token is told to no one"


async def test_what_was_refused_left_no_trace(tmp_path: Path, way: str) -> None:
    async with cluster(tmp_path, way) as three:
        narrow = bearer(token(("a",), ("a",), aud=AUDIENCE))
        body = b'{"topic":"a","data":1}\n{"topic":"b","data":2}\n'
        call = Call("POST", "/v1/messages", 201, body, "application/x-ndjson")
        for node in three.nodes:
            status, problem = await ask(node, call, narrow)
            assert (status, problem["code"]) == (403, "forbidden")
            assert "'b'" in problem["detail"]
            assert (await node.client.get("/v1/topics")).json()["topics"] == []


async def test_topics_are_listed_for_those_who_may_know_them(tmp_path: Path, way: str) -> None:
    async with cluster(tmp_path, way) as three:
        for name in ("a.1", "a.2", "b.1", "c"):
            await three.leader.publish(name, 1)
        some = bearer(token(("c",), ("a.*",), aud=AUDIENCE))
        for node in three.nodes:
            page = (await node.client.get("/v1/topics", headers=some)).json()
            assert [topic["name"] for topic in page["topics"]] == ["a.1", "a.2", "c"]
            first = (await node.client.get("/v1/topics?limit=2", headers=some)).json()
            assert first["next"] == "a.2"


async def test_what_anyone_may_do_needs_no_token(tmp_path: Path, way: str) -> None:
    from repl_broker.config import AnonymousConfig

    anonymous = AnonymousConfig(publish=("wall",), subscribe=("news.>",))
    async with cluster(tmp_path, way, anonymous=anonymous) as three:
        await three.leader.publish("news.a", 1)
        for node in three.nodes:
            for headers in ({}, bearer(token(aud=AUDIENCE))):
                for method, path, body, status in (
                    ("POST", "/v1/topics/wall/messages", b"1", 201),
                    ("GET", "/v1/topics/news.a/messages", None, 200),
                    ("GET", "/v1/events?topic=news.*", None, 200),
                    ("GET", "/v1/topics", None, 200),
                    ("POST", "/v1/topics/news.a/messages", b"1", 403 if headers else 401),
                    ("GET", "/v1/events?topic=news.>&topic=wall", None, 403 if headers else 401),
                    ("GET", "/metrics", None, 403 if headers else 401),
                ):
                    found, _ = await ask(node, Call(method, path, 0, body), headers)
                    assert found == status, (method, path, headers)
            status, _ = await ask(node, CALLS["GET", "/v1/topics"], bearer("bad"))
            assert status == 401  # a token that is not valid is worth less than none


@asynccontextmanager
async def stream(node: Node, text: str) -> AsyncIterator[Stream]:
    async with await node.connect() as tcp:
        fields = [f"Authorization: Bearer {text}"]
        await tcp.send_all(request_bytes("GET", "/v1/events?topic=chat", fields))
        opened = Stream(tcp)
        await opened.open()
        await opened.subscribed()
        yield opened


TOO_WIDE: Final = (
    [">"] * 128,
    [">"] * 129,
    ["a.t"] * 128 + ["b.secret"],
    ["b.secret"] + ["a.t"] * 200,
    [f"a.{number}" for number in range(128)] + [">"],
)


async def test_filters_are_checked_however_many_are_asked_for(tmp_path: Path, way: str) -> None:
    narrow = bearer(token(subscribe=("a.>",), aud=AUDIENCE))
    async with cluster(tmp_path, way) as three:
        for wanted in TOO_WIDE:
            query = "&".join(f"topic={each}" for each in wanted)
            for node in three.nodes:
                path = f"/v1/events?{query}&after=earliest"
                for headers in ({}, narrow):
                    status, _ = await ask(node, Call("GET", path, 0), headers)
                    assert status in (400, 401, 403), (wanted[:2], len(wanted))
                    head = await node.client.head(path, headers={"Authorization": ""} | headers)
                    assert head.status_code == status


async def test_a_revocation_ends_the_streams_on_all_nodes_and_refuses_what_was_issued_before(
    tmp_path: Path, way: str
) -> None:
    async with cluster(tmp_path, way) as three, AsyncExitStack() as opened:
        ann, bob = (token(subscribe=("chat",), aud=AUDIENCE, sub=sub) for sub in ("a/n", "bob"))
        anns = [await opened.enter_async_context(stream(node, ann)) for node in three.nodes]
        bobs = [await opened.enter_async_context(stream(node, bob)) for node in three.nodes]
        answer = await three.followers[0].client.delete("/v1/tokens/a%2Fn")
        assert answer.status_code == 204
        for each in anns:
            assert await each.event() == {"event": "token-expired", "data": '{"reason":"revoked"}'}
            assert await each.end() == []
        await three.leader.publish("chat", 1)
        for each in bobs:
            assert await each.data(1) == [1]
        undated = token(subscribe=("chat",), aud=AUDIENCE, sub="a/n", iat=None)
        later = token(subscribe=("chat",), aud=AUDIENCE, sub="a/n", iat=int(time.time()) + 2)
        for node in three.nodes:
            for text in (ann, undated):
                response = await node.client.get("/v1/events?topic=chat", headers=bearer(text))
                check_problem(response, 401, "unauthenticated")
                assert response.json()["reason"] == "revoked"
            async with stream(node, later):
                pass


async def test_a_revocation_outlives_a_restart(tmp_path: Path, way: str) -> None:
    secret = tmp_path / "token.secret"
    secret.write_bytes(SECRET)
    keys = {"mode": "jwt", "secret_file": secret}
    ann = bearer(token(subscribe=("chat",)))
    async with FRONT_ENDS[way](tmp_path / "data", auth=keys) as node:
        assert (await node.client.get("/v1/topics", headers=ann)).status_code == 200
        root = bearer(token(admin=True, sub="root"))
        assert (await node.client.delete("/v1/tokens/ann", headers=root)).status_code == 204
    async with FRONT_ENDS[way](tmp_path / "data", auth=keys) as node:
        response = await node.client.get("/v1/topics", headers=ann)
        check_problem(response, 401, "unauthenticated", "revoked")


# What a token may have as its sub, in every spelling that a path can spoil.
SUBJECTS: Final = (
    *("ann", "/", "//", "/ann", "ann/", "a//b", "a/../b", "./a", "...", "..a", "a/.", "../.."),
    *("auth0|5f7c8ec7c33c6c004bbafe82", "https://login.example/users?id=1#me", "a b", " ann "),
    *("%2F", "%", "%zz", "a%00", "+", "a+b@c.example", "a;b=c", "a&b", "a\\b", '"', "'", "\u00e9"),
    *("\U0001f600", "\u7530\u4e2d", "x" * 255, "\U0001f600" * 255),
)
NO_SUBJECTS: Final = (
    *("", ".", "..", "x" * 256, "a\nb", "a\r", "\t", "\0", "a\u200b", "\u200bann", "a\u00a0b"),
    *("a\u2028", "a\u00ad", "\ufeffann", "\u202eann", "\u3000", "e\u0301", "\ufffd", "\u212b"),
    *("\u0378", "\ue000", "a\x7f", "a\x85"),
)


async def test_each_subject_that_a_token_may_have_can_be_revoked_and_no_other(
    tmp_path: Path, way: str
) -> None:
    async with cluster(tmp_path, way) as three:
        node = three.followers[0]

        def asks(sub: str) -> dict[str, str]:
            return bearer(token(subscribe=("chat",), aud=AUDIENCE, sub=sub))

        for sub in SUBJECTS:
            assert (await node.client.get("/v1/topics", headers=asks(sub))).status_code == 200, sub
            path = f"/v1/tokens/{quote(sub, safe='')}"
            assert (await node.client.delete(path)).status_code == 204, sub
            response = await node.client.get("/v1/topics", headers=asks(sub))
            check_problem(response, 401, "unauthenticated", "revoked")
        for sub in NO_SUBJECTS:
            response = await node.client.get("/v1/topics", headers=asks(sub))
            check_problem(response, 401, "unauthenticated", "sub")
            call = Call("DELETE", f"/v1/tokens/{quote(sub, safe='')}", 0)
            status, _ = await ask(node, call, bearer(token(**ADMIN)))
            assert status in (400, 404, 405), sub
        status, problem = await ask(
            node, Call("DELETE", "/v1/tokens/%FF", 0), bearer(token(**ADMIN))
        )
        assert (status, problem["code"]) == (400, "invalid_parameter")
