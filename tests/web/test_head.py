"""Which heads are plain, and which of those are publishes."""

from __future__ import annotations

import httptools
import pytest
from httptools.parser import errors

from repl_broker.access import Credentials
from repl_broker.web import head as head_module
from repl_broker.web.head import (
    EventsHead,
    PublishHead,
    coming_bytes,
    head_end,
    is_plain,
    read_head,
)
from tests.web.doors import publish

HEAD = publish(b"")


def with_line(line: bytes) -> bytes:
    return HEAD[:-2] + line + b"\r\n\r\n"


NOT_PLAIN = {
    "bare LF after the request line": HEAD.replace(b"\r\nHost", b"\nHost"),
    "bare LF at the end": HEAD[:-2] + b"\n",
    "bare LF within a value": with_line(b"X: a\nY: b"),
    "bare CR within a value": with_line(b"X: a\rY: b"),
    "CR CR LF": with_line(b"X: a\r"),
    "folded line": with_line(b"X: a\r\n b"),
    "folded line, tab": with_line(b"X: a\r\n\tb"),
    "folded first line": HEAD.replace(b"Host", b" Host", 1),
    "space before the colon": with_line(b"X : a"),
    "tab before the colon": with_line(b"X\t: a"),
    "no colon": with_line(b"X"),
    "no name": with_line(b": a"),
    "NUL in a value": with_line(b"X: a\0"),
    "control character in a value": with_line(b"X: \x01"),
    "DEL in a value": with_line(b"X: \x7f"),
    "control character in a name": with_line(b"X\x0b: a"),
    "letter beyond ASCII in a name": with_line(b"X\xe9: a"),
    "bracket in a name": with_line(b"X(: a"),
    "length twice, the same": with_line(b"content-LENGTH: 0"),
    "length twice, another": with_line(b"Content-Length: 1"),
    "list of lengths": HEAD.replace(b"Length: 0", b"Length: 0, 0"),
    "tab in the request line": HEAD.replace(b"POST ", b"POST\t"),
    "empty line first": b"\r\n" + HEAD,
}


@pytest.mark.parametrize("head", NOT_PLAIN.values(), ids=NOT_PLAIN.keys())
def test_a_head_that_can_be_read_in_two_ways_is_not_plain(head: bytes) -> None:
    assert not is_plain(head)
    assert read_head(head) is None


UNUSUAL = {
    "another method": HEAD.replace(b"POST", b"PUT", 1),
    "a method in lower case": HEAD.replace(b"POST", b"post", 1),
    "HTTP/1.0": HEAD.replace(b"1.1", b"1.0", 1),
    "HTTP/1.2": HEAD.replace(b"1.1", b"1.2", 1),
    "HTTP/1.10": HEAD.replace(b"1.1", b"1.10", 1),
    "two spaces": HEAD.replace(b" HTTP", b"  HTTP", 1),
    "something behind the version": HEAD.replace(b"1.1", b"1.1 ", 1),
    "query": HEAD.replace(b"messages ", b"messages? ", 1),
    "fragment": HEAD.replace(b"messages ", b"messages# ", 1),
    "absolute form": HEAD.replace(b"POST /", b"POST http://node/", 1),
    "percent-encoded topic": HEAD.replace(b"chat", b"ch%61t", 1),
    "what cannot be a topic": HEAD.replace(b"chat", b"a+b", 1),
    "another path": HEAD.replace(b"/messages", b"/message", 1),
    "no host": HEAD.replace(b"Host: [::1]\r\n", b""),
    "two hosts": with_line(b"Host: other"),
    "no type": HEAD.replace(b"Content-Type: application/json\r\n", b""),
    "two types": with_line(b"Content-Type: application/json"),
    "another type": HEAD.replace(b"/json", b"/jsonx"),
    "another charset": HEAD.replace(b"/json", b"/json; charset=latin-1"),
    "another parameter": HEAD.replace(b"/json", b"/json; profile=x"),
    "no length": HEAD.replace(b"Content-Length: 0\r\n", b""),
    "empty length": HEAD.replace(b"Length: 0", b"Length: "),
    "signed length": HEAD.replace(b"Length: 0", b"Length: +1"),
    "negative length": HEAD.replace(b"Length: 0", b"Length: -1"),
    "hexadecimal length": HEAD.replace(b"Length: 0", b"Length: 0x1"),
    "length with an underscore": HEAD.replace(b"Length: 0", b"Length: 1_0"),
    "length in other digits": HEAD.replace(b"Length: 0", b"Length: \xb2"),
    "length beyond all measure": HEAD.replace(b"Length: 0", b"Length: " + b"9" * 30),
    "chunked too": with_line(b"Transfer-Encoding: chunked"),
    "chunked": HEAD.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    "identity": with_line(b"Transfer-Encoding: identity"),
    "expectation": with_line(b"Expect: 100-continue"),
    "upgrade to WebSocket": with_line(b"Upgrade: WebSocket"),
    "upgrade to one of several": with_line(b"Connection: upgrade\r\nUpgrade: h2c, websocket"),
    "two upgrades": with_line(b"Upgrade: h2c\r\nUpgrade: TLS/1.2"),
    "two lists of connection options": with_line(b"Connection: te\r\nConnection: close"),
    "content coding": with_line(b"Content-Encoding: identity"),
    "two keys": with_line(b"Idempotency-Key: a\r\nIdempotency-Key: a"),
    "two tokens": with_line(b"Authorization: Bearer a\r\nAuthorization: Bearer a"),
    "two cookies": with_line(b"Cookie: a=b\r\nCookie: a=b"),
    "two origins": with_line(b"Origin: http://a\r\nOrigin: http://b"),
    "JSON for several topics": publish(b"", path="/v1/messages"),
}


@pytest.mark.parametrize("head", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_a_request_that_is_unusual_is_left_to_quart(head: bytes) -> None:
    assert head_end(head) == len(head)
    assert read_head(head) is None


def test_a_publish_is_read() -> None:
    fields = ["IDEMPOTENCY-key:\t k 1 \t", "Origin: http://a", "X-Any: é"]
    fields += ["authorization: Bearer t ", "Cookie: a=b; c=d"]
    head = publish(b"12", *fields)[:-2]
    credentials = Credentials("Bearer t", "a=b; c=d", "http://a", "[::1]")
    assert read_head(head) == PublishHead(
        "/v1/topics/chat/messages",
        "chat",
        False,
        2,
        "k 1",
        "http://a",
        False,
        credentials,
    )


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
@pytest.mark.parametrize("value", [TRACEPARENT, "x", "", TRACEPARENT + "-more"])
def test_a_traceparent_is_told_as_it_came(name: str, value: str) -> None:
    for place in (
        (f"{name}: {value}", "Origin: http://a"),
        ("Origin: http://a", f"{name}:{value}"),
    ):
        published = read_head(publish(b"", *place))
        assert isinstance(published, PublishHead)
        assert published.traceparent == value
        events = b"GET /v1/events?topic=a HTTP/1.1\r\nHost: [::1]\r\n%b\r\n\r\n"
        head = read_head(events % "\r\n".join(place).encode())
        assert isinstance(head, EventsHead)
        assert (head.query, head.traceparent) == (b"topic=a", value)


@pytest.mark.parametrize("second", ["traceparent", "Traceparent"])
@pytest.mark.parametrize("value", [TRACEPARENT, "x"])
def test_a_traceparent_that_is_given_twice_counts_as_none(second: str, value: str) -> None:
    fields = (f"traceparent: {TRACEPARENT}", f"{second}: {value}")
    for given in (fields, fields[::-1]):
        head = read_head(publish(b"", *given))
        assert isinstance(head, PublishHead)
        assert head.traceparent is None


def test_heads_that_differ_by_their_traceparent_are_remembered_as_one() -> None:
    head_module._known.clear()
    for number in range(100):
        traceparent = f"00-{number + 1:032x}-00f067aa0ba902b7-01"
        head = read_head(publish(b"", f"traceparent: {traceparent}"))
        assert isinstance(head, PublishHead)
        assert head.traceparent == traceparent
    assert [*head_module._known] == [publish(b"")]


def test_no_more_heads_are_remembered_than_there_is_room_for() -> None:
    for number in range(3000):
        assert read_head(publish(b"", f"X-Number: {number}")) == read_head(publish(b""))
        assert len(head_module._known) <= 1024
    head_module._known.clear()
    assert read_head(publish(b"", "X-Long: " + "x" * 2000)) == read_head(publish(b""))
    assert read_head(HEAD.replace(b"chat", b"a+b", 1)) is None
    assert [*head_module._known] == [publish(b"")]


@pytest.mark.parametrize(
    "line",
    [
        b"traceparent: " + TRACEPARENT.encode() + b"\n",
        b"traceparent: " + TRACEPARENT.encode() + b"\r\n folded",
        b"traceparent : " + TRACEPARENT.encode(),
        b"traceparent: " + TRACEPARENT.encode() + b"\r\nX: a\n",
        b"traceparent: " + TRACEPARENT.encode() + b"\0",
    ],
)
def test_a_traceparent_makes_no_head_plain_that_is_not(line: bytes) -> None:
    assert read_head(with_line(line)) is None


OFFERS = {
    "curl --http2": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA",
    "Java": "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c",
    "Apache HttpClient": "Upgrade: TLS/1.2\r\nConnection: Upgrade",
    "a proxy that keeps the connection": "Connection: keep-alive, Upgrade\r\nUpgrade: h2c",
    "no option for it": "Upgrade: h2c",
    "an option without an offer": "Connection: Upgrade",
    "an offer of nothing": "Connection: Upgrade\r\nUpgrade:",
    "an offer of something else": "Connection: upgrade\r\nUpgrade: x/2, y",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_an_offer_to_upgrade_changes_nothing(offer: str) -> None:
    """RFC 9110 section 7.8. httptools tells of one by an exception that is not of its family."""
    assert read_head(publish(b"", offer)) == read_head(publish(b""))
    events = "GET /v1/events?topic=a HTTP/1.1\r\nHost: a\r\n{}\r\n"
    with_offer = read_head(events.format(offer + "\r\n").encode())
    assert with_offer == read_head(events.format("").encode()) is not None


ERRORS = [*vars(errors).values()]
ERRORS = [each for each in ERRORS if isinstance(each, type) and issubclass(each, Exception)]


@pytest.mark.parametrize("error", [*ERRORS, ValueError, RecursionError])
def test_no_exception_of_the_parser_escapes(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Parser:
        def __init__(self, protocol: object) -> None:
            pass

        def feed_data(self, data: bytes) -> None:
            raise error("no")

        def get_method(self) -> bytes:
            return b"POST"

        def get_http_version(self) -> str:
            return "1.1"

    assert {"HttpParserError", "HttpParserUpgrade"} < {each.__name__ for each in ERRORS}
    head_module._known.clear()
    monkeypatch.setattr(httptools, "HttpRequestParser", Parser)
    assert read_head(HEAD) is None
    assert ("was not read in place" in caplog.text) == (error not in ERRORS)


@pytest.mark.parametrize(
    ("field", "close"),
    [("Connection: close", True), ("Connection: Close", True), ("Connection: Keep-Alive", False),
     ("Connection: upgrade,close", True), ("Connection: close\t , x", True),
     ("Connection: closed, notclose", False), ("Connection:", False), ("Connection: te", False)],
)  # fmt: skip
def test_the_client_says_whether_it_wants_more(field: str, close: bool) -> None:
    found = read_head(publish(b"", field))
    assert found is not None
    assert found.close == close


@pytest.mark.parametrize(
    ("media_type", "batch"),
    [
        ("application/json", False),
        ("APPLICATION/Json", False),
        ("application/json;charset=utf-8", False),
        ("application/json ; charset=UTF8", False),
        ('application/json; charset="utf-8"', False),
        ("application/x-ndjson", True),
        ("application/x-ndjson; charset=utf-8", True),
    ],
)
def test_the_media_type_says_whether_it_is_a_batch(media_type: str, batch: bool) -> None:
    found = read_head(publish(b"", media_type=media_type))
    assert found is not None
    assert found.batch == batch


def test_a_batch_over_topics_names_no_topic() -> None:
    head = publish(b"", path="/v1/messages", media_type="application/x-ndjson")
    found = read_head(head)
    assert found is not None
    assert (found.topic, found.batch) == (None, True)


def test_a_long_head_is_read_too() -> None:
    found = read_head(publish(b"", f"X: {'x' * 5000}"))
    assert found is not None
    assert found.topic == "chat"


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
def test_a_head_ends_where_the_most_lenient_reader_ends_it(end: bytes) -> None:
    head = b"GET / HTTP/1.1" + end
    assert head_end(head + b"rest\r\n\r\n") == len(head)
    assert head_end(head[:-1]) == 0


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (("Content-Length: 12",), 12),
        (("content-length:\t7 ",), 7),
        ((), 0),
        (("Content-Length: 12", "Expect: 100-continue"), 0),
        (("Content-Length: 12", "Transfer-Encoding: chunked"), 0),
        (("Content-Length: 12", "Content-Length: 12"), 0),
        (("Content-Length: -1",), 0),
        (("Content-Length: +1",), 0),
        (("Content-Length: 1x",), 0),
        (("Content-Length: 1, 1",), 0),
        (("X-Content-Length: 5",), 0),
    ],
)
def test_how_much_of_a_body_is_missing(fields: tuple[str, ...], length: int) -> None:
    head = "\r\n".join(["PUT /v1/topics/a HTTP/1.1", "Host: [::1]", *fields, "", ""]).encode()
    assert coming_bytes(head) == length
    assert coming_bytes(head + b"{}") == max(0, length - 2)
    assert coming_bytes(head + b"{" * length) == 0
    assert coming_bytes(head[:-1]) == 0
    assert coming_bytes(head.replace(b"\r\n", b"\n")) == 0
    for path in (b"/v1/messages", b"/v1/messages?x", b"/v1/topics/a/messages"):
        assert coming_bytes(head.replace(b"PUT /v1/topics/a", b"POST " + path)) == 0
