"""Which chunked bodies have the one form, however they are cut into pieces."""

from __future__ import annotations

import json
import re

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from repl_broker.web.chunks import CHUNK_LINE_BYTES_MAX, Chunks
from tests.web.doors import serving
from tests.web.test_door import connect

BODY = b"5\r\nhello\r\n0\r\n\r\n"

SOUND = {
    "one chunk": BODY,
    "none": b"0\r\n\r\n",
    "several zeros": b"000\r\n\r\n",
    "capital and small digits": b"aB\r\n" + b"x" * 0xAB + b"\r\n0\r\n\r\n",
    "zeros before the size": b"00000005\r\nhello\r\n0\r\n\r\n",
    "an extension": b"5;a\r\nhello\r\n0\r\n\r\n",
    "an extension with a value": b"5;chunk-signature=0123abcd\r\nhello\r\n0;a=b\r\n\r\n",
    "a quoted value": b'5;a="b ;\\" \t=\xe9"\r\nhello\r\n0\r\n\r\n',
    "several extensions": b"5;a;b=c\r\nhello\r\n0\r\n\r\n",
    "line ends in the data": b"6\r\n\r\n0\r\n\r\r\n0\r\n\r\n",
    "a line as long as it may be": b"5;" + b"a" * 252 + b"\r\nhello\r\n0\r\n\r\n",
}

UNSOUND = {
    "a bare LF ends the line": BODY.replace(b"5\r\n", b"5\n"),
    "a bare LF ends the chunk": BODY.replace(b"hello\r\n", b"hello\n"),
    "a bare LF ends the last line": BODY.replace(b"0\r\n", b"0\n"),
    "a bare LF ends the body": BODY[:-2] + b"\n",
    "a bare CR ends the line": BODY.replace(b"5\r\n", b"5\r"),
    "a bare CR ends the body": BODY[:-1] + b"x",
    "a bare CR in an extension": BODY.replace(b"5", b"5;a\rb"),
    "a bare CR in a quoted value": BODY.replace(b"5", b'5;a="\r"'),
    "a bare CR behind the size": BODY.replace(b"5", b"5\r"),
    "a bare LF in an extension": BODY.replace(b"5", b"5;a\nb"),
    "NUL in an extension": BODY.replace(b"5", b"5;\0"),
    "white space before the size": b" " + BODY,
    "white space behind the size": BODY.replace(b"5", b"5 "),
    "a tab behind the size": BODY.replace(b"5", b"5\t"),
    "white space before the extension": BODY.replace(b"5", b"5 ;a"),
    "white space in the extension": BODY.replace(b"5", b"5; a"),
    "white space behind the extension": BODY.replace(b"5", b"5;a "),
    "white space before the value": BODY.replace(b"5", b"5;a= b"),
    "an extension without a name": BODY.replace(b"5", b"5;"),
    "a value without a name": BODY.replace(b"5", b"5;=a"),
    "a name without a value": BODY.replace(b"5", b"5;a="),
    "a quote that does not end": BODY.replace(b"5", b'5;a="'),
    "no size": BODY.replace(b"5", b""),
    "only an extension": BODY.replace(b"5", b";a"),
    "a plus sign": BODY.replace(b"5", b"+5"),
    "a minus sign": BODY.replace(b"5", b"-5"),
    "0x": BODY.replace(b"5", b"0x5"),
    "an underscore": BODY.replace(b"5", b"0_5"),
    "no hexadecimal digit": BODY.replace(b"5", b"g"),
    "a digit of another script": BODY.replace(b"5", "٥".encode()),
    "a size of 36 bits": BODY.replace(b"5", b"100000005"),
    "a size of 64 bits": BODY.replace(b"5", b"ffffffffffffffff"),
    "a size beyond 64 bits": BODY.replace(b"5", b"10000000000000005"),
    "too many zeros": BODY.replace(b"5", b"0" * 30 + b"5"),
    "a size that is too small": BODY.replace(b"5", b"4"),
    "a size that is too large": BODY.replace(b"5", b"6"),
    "a trailer": BODY[:-2] + b"a: b\r\n\r\n",
    "a trailer of white space": BODY[:-2] + b" \r\n\r\n",
    "a line that is too long": b"5;" + b"a" * 253 + b"\r\nhello\r\n0\r\n\r\n",
    "a line that does not end": b"5;" + b"a" * 1000,
}


def taken(*pieces: bytes) -> tuple[bool, bool]:
    chunks = Chunks()
    for piece in pieces:
        chunks.take(piece)
    return chunks.sound, chunks.ended


@pytest.mark.parametrize("body", SOUND.values(), ids=SOUND.keys())
def test_a_body_in_the_one_form_is_sound_and_ends(body: bytes) -> None:
    assert taken(body) == (True, True)
    assert taken(*(body[at : at + 1] for at in range(len(body)))) == (True, True)
    assert taken(body[:-1]) == (True, False)
    assert taken(body + b"GET / HTTP/1.1\n\n") == (True, True)


@pytest.mark.parametrize("body", UNSOUND.values(), ids=UNSOUND.keys())
def test_a_body_that_can_be_read_in_two_ways_is_not_sound(body: bytes) -> None:
    assert taken(body)[0] is False
    assert taken(*(body[at : at + 1] for at in range(len(body))))[0] is False
    assert taken(body, BODY)[1] is False


# The same said in another manner: what is left of a body when chunk after chunk is taken off it.
CHUNK = re.compile(
    rb"""0{0,8}(?P<size>[0-9a-fA-F]{1,8})
    (?:;[!#$%&'*+.^_`|~0-9a-zA-Z-]+(?:=(?:[!#$%&'*+.^_`|~0-9a-zA-Z-]+|"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*"))?)*
    \r\n""",
    re.VERBOSE,
)
PIECES = st.sampled_from(
    [b"5\r\nhello\r\n", b"0\r\n\r\n", b"1;a=b\r\nx\r\n", b'2;a="\\""\r\nxy\r\n', b"\r\n", b"\n",
     b"\r", b"0", b"1", b"f", b";", b"a", b"=", b'"', b"\\", b" ", b"\t", b"x", b"+", b"\0",
     b"\xe9"]
)  # fmt: skip


def rest_of(body: bytes) -> bytes | None:
    """What comes behind the body; None if it is incomplete or wrong."""
    while (found := CHUNK.match(body)) is not None and found.end() <= CHUNK_LINE_BYTES_MAX:
        size = int(found["size"], 16)
        end = found.end() + size + 2
        if body[end - 2 : end] != b"\r\n":
            return None
        body = body[end:]
        if not size:
            return body
    return None


def read_by_h11(body: bytes) -> tuple[bytes, bytes]:
    """The data, and what comes behind the body."""
    reader, data = h11.Connection(h11.SERVER), b""
    reader.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    while type(event := reader.next_event()) is not h11.EndOfMessage:
        data += event.data if isinstance(event, h11.Data) else b""
    return data, reader.trailing_data[0]


def test_many_chunks_that_come_together_are_given_as_one() -> None:
    chunks = Chunks()
    assert chunks.take(b"1;a=b\r\nx\r\n" * 1000 + b"5\r\nyy") == b"3ea\r\n%byy\r\n" % (b"x" * 1000)
    assert chunks.take(b"y") == b"1\r\ny\r\n"
    assert chunks.take(b"yy\r\n0\r") == b"2\r\nyy\r\n"
    assert chunks.take(b"\n") == b""
    assert chunks.take(b"\r\nGET / ") == b"0\r\n\r\nGET / "
    assert chunks.take(b"HTTP/1.1") == b"HTTP/1.1"


@given(st.lists(PIECES, max_size=8).map(b"".join), st.integers(1, 5))
@example(b"5\r\nhello\r\n0\r\n\r\n", 1)
def test_what_is_sound_is_what_the_grammar_says_and_h11_reads_no_more_of_it(
    body: bytes, step: int
) -> None:
    chunks = Chunks()
    ended_at, given = None, b""
    for at in range(0, len(body), step):
        given += chunks.take(body[at : at + step])
        if chunks.ended and ended_at is None:
            ended_at = at + step
    rest = rest_of(body)
    assert (chunks.sound and chunks.ended) == (rest is not None)
    if rest is not None:
        assert read_by_h11(given) == read_by_h11(body)
        assert read_by_h11(body)[1] == rest
        assert ended_at is not None
        assert ended_at - step < len(body) - len(rest) <= ended_at


HEAD = (
    b"POST /v1/topics/chat/messages HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
NEXT = b"GET /v1/topics HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("in_place", [True, False])
async def test_the_door_takes_sound_bodies_and_refuses_all_others(in_place: bool) -> None:
    async with serving(in_place=in_place, body_timeout_seconds=0.2) as served:
        for body in UNSOUND.values():
            body = body.replace(b"hello", b"12345")
            async with connect(served.door) as client:
                await client.send(HEAD + body + NEXT)
                answer = await client.receive_answer()
                assert (answer.status, answer.headers["connection"]) == (400, "close"), body
                assert await client.receive_end() == b"", "what follows is no request"
        async with connect(served.door) as client:
            assert json.loads((await client.get("/v1/topics")).body)["topics"] == []
        for body in SOUND.values():
            body = body.replace(b"hello", b"12345")
            async with connect(served.door) as client:
                await client.send(HEAD + body + NEXT)
                assert (await client.receive_answer()).status in (201, 400), "which are of JSON"
                assert (await client.receive_answer()).status == 200, body
