"""How many secrets a file holds: a line each if it is text, else one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl_broker.errors import ConfigError
from repl_broker.secret_lines import SECRETS_MAX, secrets_in

LINE = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1)
ENDS = st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"])


@given(st.lists(LINE, min_size=1, max_size=4), ENDS, st.sampled_from(["", "\n", "\r\n\r\n"]))
def test_text_holds_a_secret_a_line(lines: list[str], between: str, after: str) -> None:
    data = (between.join(lines) + after).encode()
    wanted = tuple(dict.fromkeys(line.encode() for line in lines))
    if len(wanted) <= SECRETS_MAX:
        assert secrets_in(data, "f") == wanted
        return
    with pytest.raises(ConfigError, match=f"f holds {len(wanted)} secrets, a line each"):
        secrets_in(data, "f")


@given(st.binary(max_size=200))
def test_there_is_always_a_secret_and_nothing_is_made_up(data: bytes) -> None:
    try:
        secrets = secrets_in(data, "f")
    except ConfigError:
        return
    assert secrets
    assert all(secret in data for secret in secrets)


@pytest.mark.parametrize("data", [b"\xff" + b"a" * 40 + b"\n" + b"b" * 40, b"\0" * 9 + b"\n\1"])
def test_what_is_no_text_is_one_secret(data: bytes) -> None:
    """32 random bytes have a line break among them once in eight times."""
    assert secrets_in(data, "f") == (data,)


def test_a_secret_that_is_there_twice_is_one() -> None:
    assert secrets_in(b"same\nsame\n", "f") == (b"same",)


def test_an_empty_file_is_an_empty_secret_for_the_caller_to_refuse() -> None:
    for data in (b"", b"\n", b"\r\n\n", b"  \n "):
        assert secrets_in(data, "f") == (b"",)
