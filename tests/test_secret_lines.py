"""How many secrets a file holds: one, or two with a line between; never what nobody meant."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl_broker import cluster_secret, tokens
from repl_broker.errors import ConfigError
from repl_broker.secret_lines import SEPARATOR, secrets_in
from tests.nodes import configured

HEX = "9d1f5a7c0be84236" * 4
OTHER = "77ab01c2d3e4f586" * 4
LINE = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1).filter(
    lambda line: line != SEPARATOR and not line.startswith("#")
)
BREAK = st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"])
AFTER = st.sampled_from(["", "\n", "\r\n\r\n"])


@given(st.lists(LINE, min_size=1, max_size=3), BREAK, AFTER)
def test_a_line_between_makes_two_of_them(lines: list[str], between: str, after: str) -> None:
    data = (f"{between}{SEPARATOR}{between}".join(lines) + after).encode()
    if len(lines) <= 2:
        assert secrets_in(data, "f") == tuple(dict.fromkeys(line.encode() for line in lines))
        return
    with pytest.raises(ConfigError, match="f holds 3 secrets; wanted at most 2"):
        secrets_in(data, "f")


@given(st.lists(LINE, min_size=2, max_size=4), BREAK, AFTER)
def test_lines_with_nothing_between_are_no_secrets(
    lines: list[str], between: str, after: str
) -> None:
    with pytest.raises(ConfigError, match=f"f has {len(lines)} lines, which may be one secret"):
        secrets_in((between.join(lines) + after).encode(), "f")


def wrapped(size: int, width: int) -> str:
    text = base64.b64encode(bytes(range(size))).decode()
    return "\n".join(text[at : at + width] for at in range(0, len(text), width)) + "\n"


MISTAKES = {
    "a remark above": (f"# the token secret of the shop, 2026\n{HEX}\n", "remark"),
    "a remark below": (f"{HEX}\n  # the token secret of the shop, 2026\n", "line 2 .* remark"),
    "a remark alone": ("# the token secret of the shop, made in 2026\n", "remark"),
    "another remark": (f"; the token secret of the shop, made in 2026\n{HEX}\n", "2 lines"),
    "a name above": (f"cluster-secret-of-production-and-test:\n{HEX}\n", "2 lines"),
    "base64 in lines of 64, both full": (wrapped(96, 64), "2 lines"),
    "base64 in lines of 64": (wrapped(90, 64), "2 lines"),
    "base64 in lines of 76": (wrapped(96, 76), "2 lines"),
    "two secrets with nothing between": (f"{HEX}\n{OTHER}\n", "2 lines"),
    "the second wrapped": (f"{HEX}\n---\n{wrapped(96, 64)}", "the second secret in .* has 2 lines"),
    "nothing above the line": (f"---\n{HEX}\n", "the first secret in .* is missing"),
    "nothing below the line": (f"{HEX}\n---\n", "the second secret in .* is missing"),
    "no break before the line": (f"{HEX}---\n{OTHER}\n", "2 lines"),
    "a space after the line": (f"{HEX}\n--- \n{OTHER}\n", "line 2 of .* a space"),
    "a space after a secret": (f"{HEX} \n", "line 1 of .* a space"),
    "a space before a secret": (f"{HEX}\n---\n {OTHER}\n", "line 3 of .* a space"),
    "a tab after a secret": (f"{HEX}\t\n", r"U\+0009"),
    "a byte order mark": (f"\ufeff{HEX}\n", "byte order mark"),
    "a byte order mark within": (f"{HEX}\n---\n\ufeff{OTHER}\n", r"line 3 of .* U\+FEFF"),
    "a space that does not break": (f"{HEX}\n---\n{OTHER}\xa0\n", r"U\+00A0"),
    "a form feed": (f"{HEX}\n\f---\n{OTHER}\n", r"U\+000C"),
    "another line break": (f"{HEX}\u2028{OTHER}\n", r"U\+2028"),
    "bytes that are no text": (f"{HEX}\n---\n{OTHER}\udcff\n", "line breaks, and is not text"),
    "bytes that are no text, and a space": (f"{HEX}\udcff ", "a byte that is a space"),
}


@pytest.mark.parametrize("kind", ["tokens", "cluster"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_can_be_read_in_two_ways_is_no_secret_of_any_kind(
    tmp_path: Path, mistake: str, kind: str
) -> None:
    text, words = MISTAKES[mistake]
    file = tmp_path / "secret"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=words) as refused:
        read(kind, file)
    assert str(file) in str(refused.value)
    assert not any(part in str(refused.value) for part in (HEX[:9], OTHER[:9]))


@pytest.mark.parametrize("kind", ["tokens", "cluster"])
@pytest.mark.parametrize(
    "text",
    [
        f"{HEX}\n---\n{OTHER}\n", f"\n{HEX}\r\n---\r\n{OTHER}", f"{HEX}\n \n---\n\n{OTHER}\n\n",
        f"{HEX}\r---\r{OTHER}\r",
    ],
)  # fmt: skip
def test_both_kinds_of_file_are_read_in_the_same_way(tmp_path: Path, text: str, kind: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(text.encode())
    assert read(kind, file) == (HEX.encode(), OTHER.encode())
    file.write_text(f"correct horse battery staple of {HEX}\n")
    assert len(read(kind, file)) == 1, "spaces between words are a part of it"


def read(kind: str, file: Path) -> tuple[bytes, ...]:
    if kind == "tokens":
        return tokens.read_secrets(file)
    return cluster_secret.read_secrets(configured(cluster={"secret_file": file}))


@given(st.binary(max_size=200))
def test_there_is_always_a_secret_and_nothing_is_made_up(data: bytes) -> None:
    try:
        secrets = secrets_in(data, "f")
    except ConfigError:
        return
    assert secrets
    assert all(secret in data for secret in secrets)
    assert b"\n" not in b"".join(secrets)


@pytest.mark.parametrize("data", [b"\xff" + b"a" * 40, b"\0\xa0" * 9, b"#\xfe" * 20])
def test_what_is_no_text_is_one_secret(data: bytes) -> None:
    assert secrets_in(data, "f") == (data,)
    assert secrets_in(data + b"\n", "f") == (data,)


def test_a_secret_that_is_there_twice_is_one() -> None:
    assert secrets_in(b"same\n---\nsame\n", "f") == (b"same",)


def test_an_empty_file_is_an_empty_secret_for_the_caller_to_refuse() -> None:
    for data in (b"", b"\n", b"\r\n\n", b"  \n "):
        assert secrets_in(data, "f") == (b"",)
