"""Topics, filters, ids and JSON: what is let in, and what is refused with which words."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repl_broker.errors import RequestError
from repl_broker.message import (
    FILTERS_MAX,
    SEQUENCE_MAX,
    TOPIC_BYTES_MAX,
    Cursor,
    FilterSet,
    JsonLimits,
    Message,
    check_topic,
    compact_json,
    covers,
    event_id,
    ndjson_steps,
    parse_event_id,
    split_ndjson,
    split_topic_ndjson,
    time_text,
    topic_ndjson_steps,
)
from tests.test_names import naive_match

LIMITS = JsonLimits(message_bytes=1 << 20, batch_messages=1000, depth=64)

SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def refusal(call: Any, *arguments: Any) -> RequestError:
    """The error with which ``call`` refuses its arguments."""
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    return caught.value


# --- messages and ids ---------------------------------------------------------------------


def test_message_object_is_the_contracts_to_the_byte() -> None:
    """DESIGN section 3: the same object in SSE data, history and the command line."""
    message = Message(5000, "chat", 1_795_406_400_123, b'{"any":"JSON value"}')
    assert message.to_json("9f3a1c2b") == (
        b'{"id":"9f3a1c2b-5000","topic":"chat","time":"2026-11-23T04:00:00.123Z",'
        b'"data":{"any":"JSON value"}}'
    )


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1000, "1970-01-01T00:00:01.000Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (1_795_406_400_123, "2026-11-23T04:00:00.123Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_time_text_is_rfc_3339_in_utc_with_milliseconds(time_ms: int, text: str) -> None:
    assert time_text(time_ms) == text


@pytest.mark.parametrize(
    "cursor",
    [Cursor("9f3a1c2b", 0), Cursor("00000000", 1), Cursor("ffffffff", SEQUENCE_MAX)],
)
def test_event_ids_round_trip(cursor: Cursor) -> None:
    assert str(cursor) == event_id(cursor.epoch, cursor.seq)
    assert parse_event_id(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "9f3a1c2b",
        "9f3a1c2b-",
        "-5",
        "9f3a1c2-5",
        "9f3a1c2bb-5",
        "9F3A1C2B-5",
        "9f3a1c2g-5",
        "9f3a1c2b-05",
        "9f3a1c2b-00",
        "9f3a1c2b--5",
        "9f3a1c2b-+5",
        "9f3a1c2b-5.0",
        "9f3a1c2b-5 ",
        " 9f3a1c2b-5",
        "9f3a1c2b-5\n",
        "9f3a1c2b-٥",
        f"9f3a1c2b-{SEQUENCE_MAX + 1}",
        "9f3a1c2b-" + "9" * 5000,
        "latest",
    ],
)
def test_what_is_not_an_event_id_is_refused(text: str) -> None:
    error = refusal(parse_event_id, text)
    assert (error.code, error.status) == ("invalid_event_id", 400)
    assert len(error.detail) < 300


# --- topics -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a", "chat", "orders.eu.42", "-", "_", "0", "A.b-C_d.9", "a" * 255, "a." * 127 + "a"],
)
def test_topic_names_are_dot_separated_tokens(name: str) -> None:
    """DESIGN section 3: tokens of ``[A-Za-z0-9_-]``, at most 255 bytes."""
    assert check_topic(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\n",
        "a/b",
        "a*",
        "*",
        ">",
        "a.*",
        "a.>",
        "é",
        "٤",
        "a\x00",
        "$SYS",
        "a" * 256,
        "a." * 128,
        "é" * 200,
    ],
)
def test_what_is_not_a_topic_is_refused(name: str) -> None:
    error = refusal(check_topic, name)
    assert (error.code, error.status) == ("invalid_topic", 400)


def test_a_long_topic_is_refused_with_its_length_and_the_limit_and_not_echoed_whole() -> None:
    detail = refusal(check_topic, "a" * 100_000).detail
    assert "100000" in detail
    assert str(TOPIC_BYTES_MAX) in detail
    assert len(detail) < 200


# --- filters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("a", ["a"], ["b", "a.b", "aa"]),
        ("*", ["a", "b"], ["a.b"]),
        (">", ["a", "a.b", "a.b.c"], []),
        ("a.*", ["a.b"], ["a", "a.b.c", "b.a", "aa.b"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "ab.c", "b.a"]),
        ("*.b", ["a.b"], ["b", "a.a.b", "a.b.b"]),
        ("*.>", ["a.b", "a.b.c"], ["a"]),
        ("a.*.c", ["a.b.c"], ["a.c", "a.b.b.c"]),
        ("a.*.>", ["a.b.c", "a.b.c.d"], ["a.b", "a"]),
        ("a-b_c", ["a-b_c"], ["a-bxc"]),
    ],
)
def test_wildcards_follow_nats_rules(text: str, yes: list[str], no: list[str]) -> None:
    """``*`` is one token, a last ``>`` is one or more."""
    filters = FilterSet([text])
    assert [t for t in yes + no if filters.matches(t)] == yes


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a*",
        "*a",
        "**",
        "a.**",
        ">.a",
        "a.>.b",
        ">>",
        "a>",
        "a.>b",
        "a.*b",
        "a b",
        "é",
        "a\n",
        "a.>\n",
        "a" * 256,
        "a." * 127 + "*>",
    ],
)
def test_what_is_not_a_filter_is_refused(text: str) -> None:
    error = refusal(FilterSet, ["fine", text])
    assert (error.code, error.status) == ("invalid_filter", 400)


def test_filters_may_have_as_many_bytes_as_topics() -> None:
    assert FilterSet(["a" * 255]).matches("a" * 255)
    assert FilterSet(["a." * 126 + "b.>"]).patterns


def test_a_stream_has_between_1_and_128_filters() -> None:
    assert len(FilterSet(f"t{n}" for n in range(FILTERS_MAX)).filters) == 128
    error = refusal(FilterSet, [f"t{n}" for n in range(FILTERS_MAX + 1)])
    assert error.code == "invalid_filter"
    assert "129" in error.detail
    assert refusal(FilterSet, []).code == "invalid_filter"


def test_equal_sets_are_one_key_whatever_the_order_and_repeats() -> None:
    one, other = FilterSet(["a", "b.*"]), FilterSet(["b.*", "a", "a"])
    assert (one, hash(one), repr(one)) == (other, hash(other), repr(other))
    assert one != FilterSet(["a"])
    assert one != frozenset(["a", "b.*"])
    assert (one.exact, one.patterns) == ({"a"}, {"b.*"})


TOKENS = st.sampled_from(["a", "b", "ab", "-", "A"])
TOPICS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)
FILTERS = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(TOKENS | st.just("*"), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")


@given(st.lists(FILTERS, min_size=1, max_size=5), st.lists(TOPICS, max_size=10))
@settings(max_examples=4 * settings().max_examples)
def test_matching_agrees_with_a_naive_matcher(filters: list[str], topics: list[str]) -> None:
    chosen = FilterSet(filters)
    for topic in topics:
        assert chosen.matches(topic) is any(naive_match(f, topic) for f in filters)


@given(st.text(alphabet="ab.*>- \n", max_size=8))
@settings(max_examples=4 * settings().max_examples)
def test_a_filter_is_valid_exactly_when_its_tokens_are(text: str) -> None:
    tokens = text.split(".")
    valid = all(
        token == "*" or re.fullmatch("[ab-]+", token) or (token == ">" and n == len(tokens) - 1)
        for n, token in enumerate(tokens)
    )
    if valid:
        assert FilterSet([text]).filters == {text}
    else:
        assert refusal(FilterSet, [text]).code == "invalid_filter"


# --- JSON: accepted -----------------------------------------------------------------------


def same(text: str | bytes) -> tuple[bytes, bytes]:
    data = text if isinstance(text, bytes) else text.encode()
    return data, data


@pytest.mark.parametrize(
    ("text", "compact"),
    [
        same("null"),
        same("true"),
        same("false"),
        same("0"),
        same('""'),
        same("[]"),
        same("{}"),
        same("[[],{},[{}]]"),
        (b" \t\r\n1\n\r\t ", b"1"),
        (b'{ "a" : [ 1 , 2 ] ,\r\n\t"b" : null }\n', b'{"a":[1,2],"b":null}'),
        # White space is significant in strings, escaped or not.
        same(r'" a  b \" \\ c "'),
        same(r'["\\", " ] ["]'.replace(", ", ",")),
        same('"\x7f\u2028\u2029\ufeff"'),
    ],
    ids=str,
)
def test_values_are_kept_without_insignificant_white_space(text: bytes, compact: bytes) -> None:
    assert compact_json(text, LIMITS) == compact


@pytest.mark.parametrize(
    "number",
    [
        "-0",
        "1.0",
        "1.10",
        "1e2",
        "1E+2",
        "1e-0",
        "-0.0e00",
        "1e999",
        "18446744073709551616",
        "0.1000000000000000055511151231257827",
        "9" * 5000,
        "-" + "9" * 5000 + "." + "9" * 5000 + "e" + "9" * 5000,
    ],
)
def test_numbers_are_kept_as_they_were_written(number: str) -> None:
    """DESIGN section 3: byte for byte as published; no number is too long or too large."""
    assert compact_json(f'[{number}, {{"n": {number}}}]'.encode(), LIMITS) == (
        f'[{number},{{"n":{number}}}]'.encode()
    )


def test_long_numbers_are_kept_beside_a_lone_surrogate_too() -> None:
    """Then the standard library reads, whose int() refuses more than 4300 digits."""
    text = b'["\\ud800",%b]' % (b"9" * 5000)
    assert compact_json(text, LIMITS) == text


@pytest.mark.parametrize(
    "text",
    [
        r'"\ud800"',
        r'"\uDFFF"',
        r'"\udc00\ud800"',
        r'"\ud800\ud800"',
        r'"\ud800A"',
        r'"\ud800\n\\"',
        r'{"\udead":"\ubeef"}',
        r'"\ud83d\ude00"',
    ],
)
def test_escapes_of_surrogates_are_kept_paired_or_not(text: str) -> None:
    """RFC 8259 section 8.2 allows them, and JSON.stringify produces them."""
    assert compact_json(text.encode(), LIMITS) == text.encode()
    assert compact_json(f" [ {text} , 1 ] ".encode(), LIMITS) == f"[{text},1]".encode()


def test_escapes_keep_their_spelling() -> None:
    text = r'"\u0041\u00e9\/\b\f\n\r\t\"\\ é😀"'.encode()
    assert compact_json(text, LIMITS) == text


def test_duplicate_keys_and_their_order_are_kept() -> None:
    assert compact_json(b'{"b": 1, "a": 2, "b": 3}', LIMITS) == b'{"b":1,"a":2,"b":3}'


# --- JSON: refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        (b"", 1, 1),
        (b" \n ", 2, 2),
        (b"NaN", 1, 1),
        (b"Infinity", 1, 1),
        (b"-Infinity", 1, 1),
        (b'{"NaN": "Infinity",\n "a": -Infinity}', 2, 7),
        (b'["\\ud800",\n NaN]', 2, 2),
        (b"nan", 1, 1),
        (b"None", 1, 1),
        (b"True", 1, 1),
        (b"tru", 1, 1),
        (b"nulll", 1, 5),
        (b"undefined", 1, 1),
        (b"'a'", 1, 1),
        (b"{a:1}", 1, 2),
        (b"{1:2}", 1, 2),
        (b'{"a"}', 1, 5),
        (b'{"a":}', 1, 6),
        (b'{"a" 1}', 1, 6),
        (b'{"a":1 "b":2}', 1, 8),
        (b"[1,]", 1, 4),
        (b"[1 2]", 1, 4),
        (b"[,1]", 1, 2),
        (b"[1,\n  2,\n  oops]", 3, 3),
        (b"1 2", 1, 3),
        (b"1,", 1, 2),
        (b"{}{}", 1, 3),
        (b"]", 1, 1),
        (b"[", 1, 2),
        (b"[}", 1, 2),
        (b'{"a":[1,2', 1, 10),
        (b'"abc', 1, 1),
        (b'"abc\\', 1, 1),
        (b'"', 1, 1),
        (b'"\\x41"', 1, 2),
        (b'"\\u12"', 1, 3),
        (b'"\\u12g4"', 1, 3),
        (b'"\\ud800\\u12"', 1, 9),
        (b'"a\x00b"', 1, 3),
        (b'"a\x1fb"', 1, 3),
        (b'"a\tb"', 1, 3),
        (b'"a\nb"', 1, 3),
        (b"\x00", 1, 1),
        (b"1\x00", 1, 2),
        (b"\x0b1", 1, 1),
        (b"1\xc2\xa0", 1, 2),
        (b"01", 1, 2),
        (b"-01", 1, 3),
        (b"+1", 1, 1),
        (b".5", 1, 1),
        (b"1.", 1, 2),
        (b"1e", 1, 2),
        (b"-", 1, 1),
        (b"0x10", 1, 2),
        (b"1_000", 1, 2),
        ("١".encode(), 1, 1),
        (b"// comment\n1", 1, 1),
        (b"/* c */1", 1, 1),
        (b"\xef\xbb\xbf1", 1, 1),  # a byte-order mark (RFC 8259 section 8.1)
        ("\ufeff{}".encode("utf-16-le"), 1, 1),
        ('["é😀", x]'.encode(), 1, 8),  # columns count characters, not bytes
    ],
)
def test_what_rfc_8259_does_not_allow_is_refused_at_its_place(
    text: bytes, line: int, column: int
) -> None:
    error = refusal(compact_json, text, LIMITS)
    assert (error.code, error.status) == ("invalid_json", 400)
    assert error.extra == {"line": line, "column": column}
    assert error.detail.startswith(f"Line {line}, column {column}: ")


@pytest.mark.parametrize(
    ("text", "line", "column", "byte"),
    [
        (b"\xff", 1, 1, "0xff"),
        (b'"\xff"', 1, 2, "0xff"),
        (b'["a",\n "\xc3\xa9\x80"]', 2, 4, "0x80"),
        (b'"\xc3"', 1, 2, "0xc3"),
        (b'"\xc0\xaf"', 1, 2, "0xc0"),  # an overlong form
        (b'"\xed\xa0\x80"', 1, 2, "0xed"),  # a surrogate as bytes
        (b'"\xf4\x90\x80\x80"', 1, 2, "0xf4"),  # beyond U+10FFFF
        (b'"\xe2\x82', 1, 2, "0xe2"),  # cut off in a character
    ],
)
def test_what_is_not_utf_8_is_refused_at_its_place(
    text: bytes, line: int, column: int, byte: str
) -> None:
    error = refusal(compact_json, text, LIMITS)
    assert error.code == "invalid_json"
    assert error.extra == {"line": line, "column": column}
    assert byte in error.detail


def test_a_constant_that_is_not_json_is_refused_by_its_name() -> None:
    assert "NaN is not JSON" in refusal(compact_json, b"[NaN]", LIMITS).detail


def test_lines_are_counted_from_where_the_text_starts_in_the_body() -> None:
    error = refusal(compact_json, b"[1,\n2,\n]", LIMITS, 7)
    assert error.extra == {"line": 9, "column": 1}


# --- JSON: limits -------------------------------------------------------------------------


def test_a_message_may_have_as_many_bytes_as_the_limit_and_no_more() -> None:
    limits = LIMITS._replace(message_bytes=10)
    assert compact_json(b'"12345678"', limits) == b'"12345678"'
    error = refusal(compact_json, b'"123456789"', limits, 3)
    assert (error.code, error.status, error.extra) == ("message_too_large", 413, {"limit": 10})
    assert "line 3" in error.detail
    assert "11 bytes" in error.detail


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")]
)
def test_nesting_may_be_as_deep_as_the_limit_and_no_deeper(opening: bytes, closing: bytes) -> None:
    times = 64 // (opening.count(b"[") + opening.count(b"{"))
    at_limit = opening * times + b"1" + closing * times
    assert compact_json(at_limit, LIMITS) == at_limit
    error = refusal(compact_json, opening * times + b"[1]" + closing * times, LIMITS)
    assert error.code == "invalid_json"
    assert error.extra == {"line": 1, "column": len(opening * times) + 1}
    assert "64 levels" in error.detail


@pytest.mark.parametrize(
    "text",
    [
        b'["[[[[","{{{{","\\"[[[\\\\"]',
        b'[[],[],[],[],{},{"a":{}}]',
        b"[[]]",
    ],
)
def test_brackets_in_strings_and_side_by_side_are_no_depth(text: bytes) -> None:
    assert compact_json(text, LIMITS._replace(depth=3)) == text


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a":' * 100_000, b'"' + b"[" * 100_000])
def test_endless_nesting_is_refused_whatever_the_limit(text: bytes) -> None:
    for depth in (64, 10**9):
        assert refusal(compact_json, text, LIMITS._replace(depth=depth)).code == "invalid_json"


def test_nesting_at_the_configurable_limit_is_read_by_both_readers() -> None:
    """[limits] json_depth is at most 512."""
    limits = LIMITS._replace(depth=512)
    for inner in (b"1", b'"\\ud800"'):
        text = b"[" * 512 + inner + b"]" * 512
        assert compact_json(text, limits) == text


def test_a_long_string_beside_many_brackets_is_read_in_a_moment() -> None:
    """The depth is counted in one pass that remembers nothing."""
    text = b'["%b",%b1]' % (rb"\"" * 400_000, b"[],[]," * 30)
    assert compact_json(text, LIMITS) == text


TOKENS = st.sampled_from(
    [
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b" ",
        b"\n",
        b"1",
        b'""',
        b'"["',
        rb'"\""',
        rb'"\\"',
        b'"a]"',
    ]
)


def depth_of(text: bytes) -> int:
    """How deep its brackets go, counted one by one."""
    depth = deepest = 0
    for bracket in outside_strings(text):
        depth += (bracket in b"[{") - (bracket in b"]}")
        deepest = max(deepest, depth)
    return deepest


@given(st.lists(TOKENS, min_size=1, max_size=12), st.sampled_from([1, 300, 3000]), st.data())
def test_depth_is_counted_the_same_in_pieces(
    tokens: list[bytes], times: int, data: st.DataObject
) -> None:
    text = b"".join(tokens) * times
    depth_max = data.draw(st.integers(1, 512))
    try:
        compact_json(text, LIMITS._replace(message_bytes=1 << 30, depth=depth_max))
    except RequestError as error:
        too_deep = "nested deeper than" in error.detail
        assert too_deep == (depth_of(text) > depth_max)
        if too_deep:
            before = text.split(b"\n")[error.extra["line"] - 1][: error.extra["column"] - 1]
            whole = b"\n".join([*text.split(b"\n")[: error.extra["line"] - 1], before])
            assert depth_of(whole) == depth_max
            assert depth_of(text[: len(whole) + 1]) == depth_max + 1
    else:
        assert depth_of(text) <= depth_max


@given(st.lists(st.sampled_from([b" 1", b'"\\ud800"', b'" [ "', b"{ }", rb'"\\"']), min_size=1))
def test_white_space_goes_from_a_long_text_with_a_lone_surrogate(items: list[bytes]) -> None:
    items = [*items, rb'"\udfff"'] * 500
    text = b"[" + b" ,\t".join(items) + b"]"
    compact = [b"{}" if item == b"{ }" else item.strip() for item in items]
    assert compact_json(text, LIMITS) == b"[" + b",".join(compact) + b"]"


# --- JSON: properties ---------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=12,
)


def outside_strings(text: bytes) -> bytes:
    return re.sub(rb'"(?:[^"\\]|\\.)*"', b"", text)


@given(VALUES, st.sampled_from([None, 0, 1, "\t"]), st.booleans())
@example("\ud800", None, True)
@example({"\udc00 x": [" \ud800 "]}, 1, True)
@settings(max_examples=3 * settings().max_examples)
def test_any_value_is_kept_on_one_line_and_stays_equal(
    value: Any, indent: int | str | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="replace")
    compact = compact_json(text, LIMITS)
    assert json.loads(compact) == json.loads(text)
    assert not re.search(rb"\s", outside_strings(compact))
    assert b"\n" not in compact
    assert b"\r" not in compact
    assert compact_json(compact, LIMITS) == compact


JSON_PIECES = st.lists(
    st.sampled_from(
        [
            *(b'[|]|{|}|:|,|"|\\|u|d800|"a":|"b"|1|-|0|.|e|+| |\n|\r|\t|true|null|NaN'.split(b"|")),
            *(b"\\ud800", b"\x00", b"\x7f", b"\xff", b"\xc3\xa9", b"\xef\xbb\xbf", b'["', b"[1,"),
        ]
    ),
    max_size=10,
).map(b"".join)


@given(st.binary(max_size=20) | JSON_PIECES)
@settings(max_examples=10 * settings().max_examples)
def test_any_bytes_are_refused_with_a_place_or_are_json(text: bytes) -> None:
    compact = error = None
    try:
        compact = compact_json(text, LIMITS)
    except RequestError as raised:
        error = raised
    if error is None:
        assert strict_loads(compact) == strict_loads(text)
        assert len(compact) <= len(text)
        return
    assert error.code == "invalid_json"
    assert 1 <= error.extra["line"] <= text.count(b"\n") + 1
    assert 1 <= error.extra["column"] <= len(text) + 1
    with pytest.raises(ValueError):
        strict_loads(text)


def strict_loads(text: bytes) -> Any:
    """The standard library's reader, held to RFC 8259."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text.decode(), parse_constant=refuse)


# --- NDJSON -------------------------------------------------------------------------------


def test_a_batch_is_one_value_a_line() -> None:
    assert split_ndjson(b'{"a": 1}\n[ 2 ]\n"3"', LIMITS) == [b'{"a":1}', b"[2]", b'"3"']


@pytest.mark.parametrize("body", [b"1\n2\n", b"1\r\n2\r\n", b"\n\n1\n \t\r\n\n2\n\n", b"1\n2"])
def test_blank_lines_and_carriage_returns_do_not_count(body: bytes) -> None:
    assert split_ndjson(body, LIMITS) == [b"1", b"2"]


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n\r\n", b"  \n\t\n"])
def test_a_batch_without_a_message_is_refused(body: bytes) -> None:
    for split in (split_ndjson, split_topic_ndjson):
        error = refusal(split, body, LIMITS)
        assert error.code == "invalid_json"
        assert error.extra == {"line": 1, "column": 1}


@pytest.mark.parametrize(
    ("body", "line", "column"),
    [
        (b"1\n2\n[3,]", 3, 4),
        (b"\n\n1\r\n\n  oops\n", 5, 3),
        (b"1\n\x0c\n2", 2, 1),
        (b"1\n2 3\n4", 2, 3),
        (b'{"a":\n1}', 1, 6),
        (b'1\n"\xff"\n', 2, 2),
        (b"1\n\xef\xbb\xbf2\n", 2, 1),
    ],
)
def test_a_bad_line_is_refused_with_its_place_in_the_body(
    body: bytes, line: int, column: int
) -> None:
    error = refusal(split_ndjson, body, LIMITS)
    assert error.code == "invalid_json"
    assert error.extra == {"line": line, "column": column}


def test_a_batch_has_at_most_so_many_messages() -> None:
    limits = LIMITS._replace(batch_messages=3)
    assert len(split_ndjson(b"1\n\n2\n\n3\n\n", limits)) == 3
    error = refusal(split_ndjson, b"1\n2\n3\n4\n", limits)
    assert (error.code, error.status, error.extra) == ("batch_too_large", 413, {"limit": 3})
    assert refusal(split_topic_ndjson, b'{"topic":"a","data":1}\n' * 4, limits).code == (
        "batch_too_large"
    )


@pytest.mark.parametrize("space", [b"", b"\n", b" \n" * 400], ids=["none", "lines", "many lines"])
def test_a_long_batch_is_taken_in_steps_and_says_of_each_line_where_it_is(space: bytes) -> None:
    lines = [b"%d" % n for n in range(2000)]
    limits = LIMITS._replace(batch_messages=2000)
    body = (b"\n" + space).join(lines) + b"\n" + space
    steps = ndjson_steps(body, limits)
    assert sum(1 for _ in steps) > 5
    assert split_ndjson(body, limits) == lines
    more = body + b"1"
    assert refusal(split_ndjson, more, limits).code == "batch_too_large"
    bad = body + b"]"
    error = refusal(split_ndjson, bad, limits._replace(batch_messages=2001))
    assert (error.code, error.extra["line"]) == ("invalid_json", bad.count(b"\n") + 1)
    pairs = [(f"t.{n}", line) for n, line in enumerate(lines)]
    named = (b"\n" + space).join(b'{"topic":"t.%b","data":%b}' % (line, line) for line in lines)
    assert sum(1 for _ in topic_ndjson_steps(named, limits)) > 5
    assert split_topic_ndjson(named, limits) == pairs


def test_the_first_thing_that_is_wrong_with_a_batch_is_told() -> None:
    """A bad line before a line too many, and the other way round."""
    limits = LIMITS._replace(batch_messages=2)
    assert refusal(split_ndjson, b"1\n]\n3\n", limits).code == "invalid_json"
    assert refusal(split_ndjson, b"1\n2\n]\n", limits).code == "batch_too_large"


def test_a_large_message_in_a_batch_is_refused_with_its_line() -> None:
    error = refusal(split_ndjson, b"1\n2\n" + b"9" * 20, LIMITS._replace(message_bytes=10))
    assert error.code == "message_too_large"
    assert "line 3" in error.detail


# --- NDJSON over several topics -----------------------------------------------------------


def test_a_line_of_several_topics_names_its_topic_in_any_order() -> None:
    body = b'{"topic":"a.b","data":{"x" : 1}}\r\n\n { "data" : null , "topic" : "c" } \n'
    assert split_topic_ndjson(body, LIMITS) == [("a.b", b'{"x":1}'), ("c", b"null")]


def test_data_over_several_topics_is_kept_as_it_was_written() -> None:
    data = r'{"n":1.10,"n":1E+2,"s":"\u0041 \/ é","big":%s}' % ("9" * 5000)
    body = f'{{"topic":"a","data":{data}}}'.encode()
    assert split_topic_ndjson(body, LIMITS) == [("a", data.encode())]


@pytest.mark.parametrize("data", [r'"\ud800"', r'["\udc00 ",9]', r'{"\ud800":{"a":"\\ud800"}}'])
def test_escapes_of_lone_surrogates_are_kept_over_several_topics_too(data: str) -> None:
    """A message is accepted or not, whichever form it was published in."""
    first = f'{{"topic":"a", "data": {data}}}\n'
    last = f'{{ "data":{data}, "topic":"\\u0062"}}\n'
    assert split_topic_ndjson((first + last).encode(), LIMITS) == [
        ("a", data.encode()),
        ("b", data.encode()),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"topic":"a","data":1,"dat":2}', "`dat`"),
        (b'{"topic":"a","data":1,"key":"\\ud800"}', "`key`"),
        (b'{"topic":"a","data":"\\ud800","key":"\\ud800"}', "`key`"),
        (b'{"topic":"a"}', "`data`"),
        (b'{"data":1}', "`topic`"),
        (b'{"data":"\\ud800"}', "`topic`"),
        (b"{}", "`topic`"),
        (b'{"topic":1,"data":1}', "`$.topic`"),
        (b'{"topic":null,"data":"\\ud800"}', "`$.topic`"),
        (b'{"Topic":"a","data":1}', "`Topic`"),
        (b"[1]", "array"),
        (b'"\\ud800"', "`topic`"),
        (b"null", "null"),
    ],
)
def test_a_line_that_is_not_a_topic_and_its_data_is_refused_by_name(
    line: bytes, words: str
) -> None:
    error = refusal(split_topic_ndjson, b'{"topic":"a","data":1}\n\n' + line + b"\n", LIMITS)
    assert (error.code, error.extra) == ("invalid_json", {"line": 3, "column": 1})
    assert error.detail.startswith("Line 3 ")
    assert words in error.detail


def test_a_topic_that_holds_a_lone_surrogate_is_refused() -> None:
    body = b'{"topic":"a\\ud800","data":1}'
    assert refusal(split_topic_ndjson, body, LIMITS).status == 400


@pytest.mark.parametrize("topic", ["", "a b", "a.*", ">", "\\u00e9", "a" * 256])
def test_a_line_for_a_bad_topic_is_refused(topic: str) -> None:
    body = f'{{"topic":"{topic}","data":1}}'.encode()
    assert refusal(split_topic_ndjson, body, LIMITS).code == "invalid_topic"


def test_malformed_lines_over_several_topics_have_their_place() -> None:
    body = b'{"topic":"a","data":1}\n{"topic":"a","data":[1,]}\n'
    error = refusal(split_topic_ndjson, body, LIMITS)
    assert (error.code, error.extra) == ("invalid_json", {"line": 2, "column": 24})


def test_the_limits_are_those_of_the_data_and_not_of_its_line() -> None:
    """What may be published alone may be published in a batch."""
    deep = b"[" * 64 + b"]" * 64
    limits = LIMITS._replace(message_bytes=len(deep))
    line = b'{"topic":"%b","data":  %b  }\n'
    assert split_topic_ndjson(line % (b"t" * 255, deep), limits) == [("t" * 255, deep)]
    assert compact_json(deep, limits) == deep

    error = refusal(split_topic_ndjson, line % (b"t", b"[" + deep + b"]"), LIMITS)
    assert (error.code, error.extra) == ("invalid_json", {"line": 1, "column": 87})
    assert "64 levels" in error.detail

    error = refusal(split_topic_ndjson, b"\n" + line % (b"t", b'"%129d"' % 0), limits)
    assert error.code == "message_too_large"
    assert "line 2" in error.detail
    assert "131 bytes" in error.detail


@given(st.lists(st.binary(max_size=20) | JSON_PIECES, max_size=4), st.booleans())
@example([b"[" * 200 + b"]" * 200], True)
@example([b'"\\ud800"', b"[1"], True)
@example([b"1", b"\x0b", b" \t\r"], True)
def test_a_batch_says_of_each_line_what_is_said_of_it_alone(
    lines: list[bytes], ascii_only: bool
) -> None:
    """However it is split; what has only ASCII, and is small, is split with fewer looks."""
    lines = [line.replace(b"\n", b"") for line in lines]
    if ascii_only:
        lines = [bytes(byte & 0x7F for byte in line).replace(b"\n", b"") for line in lines]
    values: list[bytes] = []
    error = None
    for number, line in enumerate(lines, 1):
        if error is None and line.strip(b" \t\r"):
            try:
                values.append(compact_json(line, LIMITS, number))
            except RequestError as raised:
                error = raised
    if error is None and values:
        assert split_ndjson(b"\n".join(lines), LIMITS) == values
    else:
        refused = refusal(split_ndjson, b"\n".join(lines), LIMITS)
        if error is not None:
            assert (refused.code, refused.detail) == (error.code, error.detail)


@given(st.lists(st.tuples(TOPICS, VALUES), min_size=1, max_size=5), st.booleans())
@example([("a", "\ud800"), ("b", 1)], True)
def test_any_batch_is_split_into_its_values(pairs: list[tuple[str, Any]], ascii_only: bool) -> None:
    def line(value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=ascii_only).encode(errors="replace")

    alone = [(topic, compact_json(line(value), LIMITS)) for topic, value in pairs]
    lines = [line({"topic": topic, "data": value}) for topic, value in pairs]
    assert split_topic_ndjson(b"\n".join(lines), LIMITS) == alone
    assert split_ndjson(b"\n".join(map(line, (v for _, v in pairs))), LIMITS) == [
        data for _, data in alone
    ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"topic":"a","data":1,"data":2}',
        b'{"topic":"a","topic":"b","data":1}',
        b'{"data":{"data":1},"topic":"a","data":2}',
        b'{"topic":"a","top\\u0069c":"b","data":1}',
        b'{"\\u0074opic":"a","topic":"b","data":1}',
        b'{"topic":"a","d\\u0061ta":1,"data":1}',
        b'{"data":1,"topic":"a","d\\u0061ta":1}',
        b'{"data":1,"topic":"a","topic":"a"}',
        b'{"data":"x","topic":"a","data":"x"}',
        b'{"data":"\\ud800","topic":"a","data":"\\ud800"}',
        b'{"data":"a","topic":"a","top\\u0069c":"a","data":"a"}',
    ],
)
def test_topic_line_that_names_a_member_twice_is_refused(line: bytes) -> None:
    with pytest.raises(RequestError, match="names a member more than once"):
        split_topic_ndjson(line, LIMITS)


def spelled(name: str) -> st.SearchStrategy[str]:
    """A JSON string that is ``name``: some characters escaped."""
    return st.tuples(*(st.sampled_from([each, f"\\u{ord(each):04x}"]) for each in name)).map(
        lambda parts: '"' + "".join(parts) + '"'
    )


NAMES = st.sampled_from(["topic", "data", "topic", "data", "Topic", "dat"]).flatmap(spelled)
RAW_VALUES = st.sampled_from(
    ['"a"', '"a.b"', "1", "12", '"\\u0061"', '{"topic":"b"}', '{"data":1,"data":2}', "[1,2]", '"}"',
     '",\\"data\\":1"', "null", '"\\ud800"', "{}", '""', '"\\\\"']
)  # fmt: skip
SPACES = st.sampled_from(["", "", "", " ", "\t"])


@given(st.lists(st.tuples(NAMES, RAW_VALUES, SPACES), max_size=4), SPACES)
def test_a_line_is_taken_if_it_names_a_topic_and_data_once_each(
    members: list[tuple[str, str, str]], space: str
) -> None:
    """However the names are written, in whatever order, whatever is in the data."""
    line = space + "{" + ",".join(f"{s}{n}{s}:{v}{s}" for n, v, s in members) + "}"
    pairs = json.loads(line, object_pairs_hook=lambda found: [*found])
    topics = [value for name, value in pairs if name == "topic"]
    is_right = sorted(name for name, _ in pairs) == ["data", "topic"] and topics[0] in ("a", "a.b")
    if not is_right:
        with pytest.raises(RequestError):
            split_topic_ndjson(line.encode(), LIMITS)
        return
    ((topic, data),) = split_topic_ndjson(line.encode(), LIMITS)
    (written,) = [value for name, value, _ in members if json.loads(name) == "data"]
    assert (topic, data) == (topics[0], written.encode())


def test_topic_line_whose_data_has_members_of_the_same_names_is_taken() -> None:
    line = b'{"topic":"a","data":{"topic":"b","data":{"data":1,"data":2}}}'
    (pair,) = split_topic_ndjson(line, LIMITS)
    assert pair == ("a", b'{"topic":"b","data":{"data":1,"data":2}}')


# --- filters that cover others ------------------------------------------------------------

PARTS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3)
FILTERS = st.builds(lambda parts, rest: ".".join(parts + rest), PARTS, st.sampled_from([[], [">"]]))
FILTERS_TOO = FILTERS | st.just(">")
# One token more than any filter has, and a name that none of them has.
ALL_TOPICS = [
    ".".join(parts) for size in range(1, 6) for parts in itertools.product("abc", repeat=size)
]


@given(FILTERS_TOO, FILTERS_TOO)
def test_a_filter_covers_another_if_it_matches_all_that_the_other_does(
    wide: str, narrow: str
) -> None:
    """Against brute force: every topic of up to five tokens."""
    matched = [topic for topic in ALL_TOPICS if FilterSet([narrow]).matches(topic)]
    assert covers(wide, narrow) == all(FilterSet([wide]).matches(topic) for topic in matched)


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("orders.>", "orders.*.paid", True),
        ("orders.>", "orders.eu", True),
        ("orders.>", "orders", False),
        ("orders.>", ">", False),
        (">", ">", True),
        (">", "a.b.c", True),
        ("*", ">", False),
        ("*.>", ">", False),
        (">", "*.>", True),
        ("*.*", "a.>", False),
        ("a.*", "a.b", True),
        ("a.b", "a.*", False),
        ("a", "a.b", False),
    ],
)
def test_what_covers_what(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected
