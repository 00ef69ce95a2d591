"""Query parameters and members of bodies are read strictly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl_broker.errors import RequestError
from repl_broker.web.parameters import (
    PARAMETERS_MAX,
    _once,
    check_members,
    read_integer,
    read_limit,
    read_object,
    read_query,
    read_text,
)


def refusal(error: pytest.ExceptionInfo[RequestError]) -> tuple[str, str]:
    return error.value.code, error.value.detail


def test_values_are_decoded_and_kept_in_order() -> None:
    query = b"topic=a.%3E&topic=b+c&after=%C3%A9&empty=&bare"
    found = read_query(query, ("topic", "after", "empty", "bare"), repeated=("topic",))
    assert found == {"topic": ["a.>", "b c"], "after": ["é"], "empty": [""], "bare": [""]}


def test_an_unknown_parameter_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(RequestError) as error:
        read_query(b"topics=a", ("topic", "after"))
    assert refusal(error) == (
        "invalid_parameter",
        "Unknown query parameter 'topics'; the nearest known one is 'topic'. Known: topic, after.",
    )
    with pytest.raises(RequestError) as error:
        read_query(b"x", ())
    assert refusal(error)[1] == "Unknown query parameter 'x'; there is none here."


@pytest.mark.parametrize("known", [("topic", "after", "lastEventId"), ("limit", "cursor")])
@pytest.mark.parametrize("name", ["hub", "q", "x" * 100, "callback"])
def test_a_name_that_is_like_none_is_not_said_to_be_near_one(
    name: str, known: tuple[str, ...]
) -> None:
    with pytest.raises(RequestError) as error:
        read_query(name.encode(), known)
    assert refusal(error)[1].endswith(f"'. Known: {', '.join(known)}.")
    assert "nearest" not in refusal(error)[1]


@pytest.mark.parametrize("name", ["access_token", "authorization", "Authorization", "token"])
def test_a_token_in_a_query_that_takes_none_is_sent_to_where_one_is_taken(name: str) -> None:
    for known in (("topic", "after", "lastEventId"), ("limit",), ()):
        with pytest.raises(RequestError) as error:
            read_query(f"{name}=s3cret".encode(), known)
        code, detail = refusal(error)
        assert code == "invalid_parameter"
        for word in (repr(name), "[auth] allow_query_token", "Authorization: Bearer", "cookie"):
            assert word in detail
        assert "nearest" not in detail
        assert "s3cret" not in detail
    assert read_query(b"access_token=a", ("access_token",)) == {"access_token": ["a"]}
    with pytest.raises(RequestError, match="as the query parameter 'access_token'"):
        read_query(b"authorization=a", ("access_token",))


def test_a_single_parameter_given_twice_is_refused() -> None:
    with pytest.raises(RequestError, match="more than once"):
        read_query(b"after=a&after=a", ("after",))


@pytest.mark.parametrize(
    "query", ["_=1712", "_dc=1", "dojo.preventCache=1", "ngsw-bypass", "ngsw-cache-bust=0.1"]
)
def test_what_libraries_and_caches_add_is_passed_over(query: str) -> None:
    found = read_query(f"{query}&topic=a&{query}".encode(), ("topic",))
    assert found == {"topic": ["a"]}
    assert read_query(query.encode(), ()) == {}
    with pytest.raises(RequestError, match="Unknown query parameter"):
        read_query(f"{query[0]}x=1".encode(), ("topic",))  # as others of such names are not


def test_a_query_of_many_parameters_is_refused_before_they_are_read() -> None:
    """Each costs a look, also one that is passed over or empty."""
    for part in (b"_&", b"&", b"topic=a&"):
        with pytest.raises(RequestError) as error:
            read_query(part * PARAMETERS_MAX, ("topic",), ("topic",))
        code, detail = refusal(error)
        assert code == "invalid_parameter"
        assert f"{PARAMETERS_MAX + 1} parameters; at most {PARAMETERS_MAX}" in detail
        read_query(part * (PARAMETERS_MAX - 1), ("topic",), ("topic",))


def test_other_names_of_a_parameter_count_in_the_order_of_the_query() -> None:
    also = {"the_cursor": "cursor"}
    query = b"the_cursor=1&cursor=2&THE_cursor=3"
    assert read_query(query, ("cursor",), ("cursor",), also) == {"cursor": ["1", "2", "3"]}
    with pytest.raises(RequestError, match="more than once"):
        read_query(query, ("cursor",), (), also)
    with pytest.raises(RequestError, match="the-cursor"):
        read_query(b"the-cursor=1", ("cursor",), (), also)


@given(st.binary(max_size=60))
def test_any_query_is_read_or_refused(query: bytes) -> None:
    refused = None
    try:
        read_query(query, ("topic", "after"), repeated=("topic",))
    except RequestError as error:
        refused = error
    if refused is not None:
        assert refused.code == "invalid_parameter"
        assert refused.detail.encode(), "it can be sent"


@pytest.mark.parametrize(("query", "limit"), [(b"", 100), (b"limit=1", 1), (b"limit=1000", 1000)])
def test_limit_is_1_to_1000_and_100_by_default(query: bytes, limit: int) -> None:
    assert read_limit(read_query(query, ("limit",))) == limit


@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda text: f'{{"{text}":1}}'.encode()))
def test_any_body_is_an_object_or_refused(body: bytes) -> None:
    found, refused = None, None
    try:
        found = read_object(body)
    except RequestError as error:
        refused = error
    if refused is None:
        assert isinstance(found, dict)
    else:
        assert refused.code in {"invalid_json", "invalid_parameter"}
        assert refused.detail.encode(), "it can be sent"


OBJECTS = st.recursive(
    st.sampled_from(["1", "null", '"a"']),
    lambda inner: (
        st.lists(
            st.tuples(st.sampled_from(['"a"', '"b"', '"c"', '"\\u0061"', '"A"']), inner), max_size=3
        ).map(lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}")
        | st.lists(inner, max_size=2).map(lambda items: f"[{','.join(items)}]")
    ),
    max_leaves=6,
)


@given(OBJECTS)
def test_an_object_is_taken_if_no_member_in_it_is_given_twice_however_it_is_written(
    text: str,
) -> None:
    repeats = 0

    def count(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal repeats
        repeats += len(pairs) - len(dict(pairs))
        return dict(pairs)

    expected = json.loads(text, object_pairs_hook=count)
    if repeats or not isinstance(expected, dict):
        with pytest.raises(RequestError, match="more than once" if repeats else "a JSON object"):
            read_object(text.encode())
    else:
        assert read_object(text.encode()) == expected


class Counted(str):
    """A name that counts how often it is compared."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_members_that_are_given_twice_are_found_in_linear_time() -> None:
    names = [str(number) for number in range(1000)]
    Counted.compared = 0
    with pytest.raises(RequestError, match="'999' is given more than once"):
        _once([(Counted(name), 1) for name in [*names, names[-1]]])
    assert Counted.compared < 2 * len(names)


def test_members_are_checked_by_name() -> None:
    check_members({"name": 1}, ("name", "retention"))
    with pytest.raises(
        RequestError, match=r"member of the object 'retention' 'message'.*'messages'"
    ):
        check_members({"message": 1}, ("messages", "bytes"), "retention")


def test_text_must_be_there_and_be_text() -> None:
    assert read_text({"a": "x"}, "a") == "x"
    with pytest.raises(RequestError, match="'a' is missing"):
        read_text({}, "a")
    with pytest.raises(RequestError, match="'a' is null; give a string"):
        read_text({"a": None}, "a")


@pytest.mark.parametrize(
    ("value", "result"), [(1, 1), (9, 9), (5.0, 5)], ids=["least", "most", "a whole float"]
)
def test_whole_numbers_in_range_are_read(value: object, result: int) -> None:
    assert read_integer({"n": value}, "n", 1, 9, "r", "of seconds") == result
    assert read_integer({}, "n", 1, 9, "r", "of seconds") is None


@pytest.mark.parametrize("value", [0, 10, 10**18, 1.5, float("inf"), True, "5", None, [], {}])
def test_other_numbers_are_refused(value: object) -> None:
    with pytest.raises(RequestError, match=r"'r\.n' (is|must be) .*of seconds, 1 to 9"):
        read_integer({"n": value}, "n", 1, 9, "r", "of seconds")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-5, "must be a whole number of seconds, 1 to 9; it is -5."),
        (0, "it is 0."),
        (10**18, "it is far beyond that."),
        ("5s", "is a string, '5s'; give a whole number of seconds, 1 to 9."),
        ("x" * 1000, "is a string, '" + "x" * 61 + "...'; give"),
        (None, "is null; give a whole number of seconds"),
    ],
)
def test_a_number_that_is_refused_is_shown(value: object, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_integer({"n": value}, "n", 1, 9, "r", "of seconds")
    assert refused.value.detail.startswith("The member 'r.n' ")
    assert words in refused.value.detail
