"""Who waits to be asked for a body is asked only when it is wanted (RFC 9110 section 10.1.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import trio

from tests.nodes import configured
from tests.signing import SECRET, bearer, token
from tests.web.doors import serving
from tests.web.test_door import connect

BOTH_WAYS: Final = pytest.mark.parametrize("in_place", [True, False])
OTHERS: Final = bearer(token(("a.*",), ()))["Authorization"]
ADMIN: Final = bearer(token((">",), (), admin=True))["Authorization"]
LIMITS: Final = {"message_bytes": 300, "batch_bytes": 500}

REFUSED: Final = {
    "too long": (413, "POST /v1/topics/a/messages", ADMIN, "json", 301),
    "too long a batch": (413, "POST /v1/messages", ADMIN, "x-ndjson", 501),
    "too long an object": (413, "PUT /v1/topics/a", ADMIN, "json", 1 << 20),
    "without a token": (401, "POST /v1/topics/a/messages", "", "json", 1),
    "without a token, several topics": (401, "POST /v1/messages", "", "x-ndjson", 1),
    "without a token, too long as well": (401, "POST /v1/topics/a/messages", "", "json", 301),
    "without the right": (403, "POST /v1/topics/a/messages", OTHERS, "json", 1),
    "without the right, an object": (403, "PUT /v1/topics/a", OTHERS, "json", 1),
    "of another type": (415, "POST /v1/topics/a/messages", ADMIN, "xml", 1),
    "to nowhere": (404, "POST /v1/nothing", ADMIN, "json", 1),
    "by another method": (405, "PATCH /v1/topics/a", ADMIN, "json", 1),
    "by a method that is none": (501, "post /v1/topics/a/messages", ADMIN, "json", 1),
    "of two lengths": (400, "POST /v1/topics/a/messages", ADMIN, "json", "1\r\nContent-Length: 1"),
}


def head(start: str, authorization: str, kind: str, length: int | str) -> bytes:
    lines = [f"{start} HTTP/1.1", "Host: [::1]", f"Content-Type: application/{kind}"]
    lines += [f"Content-Length: {length}", "Expect: 100-continue"]
    lines += [f"Authorization: {authorization}"] if authorization else []
    return "\r\n".join([*lines, "", ""]).encode()


@BOTH_WAYS
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
async def test_what_the_head_decides_is_said_at_once(
    case: tuple[int, str, str, str, int | str], in_place: bool, tmp_path: Path
) -> None:
    status, *rest = case
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    config = configured(auth={"mode": "jwt", "secret_file": secret}, limits=LIMITS)
    async with serving(in_place=in_place, config=config) as served, connect(served.door) as client:
        await client.send(head(*rest))
        answer = await client.receive_answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert await client.receive_end() == b""


@BOTH_WAYS
@pytest.mark.parametrize("kind", ["json", "x-ndjson"])
async def test_a_body_that_is_wanted_is_asked_for_once(kind: str, in_place: bool) -> None:
    async with serving(in_place=in_place) as served, connect(served.door) as client:
        for _ in range(2):
            await client.send(head("POST /v1/topics/a/messages", "", kind, 1))
            assert (await client.receive_answer()).status == 100
            await client.send(b"1")
            assert (await client.receive_answer()).status == 201
        assert len(served.asked) == 2


@BOTH_WAYS
async def test_who_leaves_when_asked_for_the_body_is_no_failure(in_place: bool) -> None:
    async with serving(in_place=in_place) as served:
        async with connect(served.door) as client:
            await client.send(head("POST /v1/topics/a/messages", "", "json", 1))
            assert (await client.receive_answer()).status == 100
        async with connect(served.door) as client:
            await client.send(head("POST /v1/topics/a/messages", "", "json", 1))
        while served.door.connections:
            await trio.lowlevel.checkpoint()
        assert served.door.statistics().failed == 0
