"""Inputs for a target: bytes by chance, and its seeds with something changed."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from tests.fuzz.targets import Target

__all__ = ["inputs_of"]

# What parsers trip over: ends, quotes, brackets, numbers at their limits, bad UTF-8.
TOKENS: Final = (
    b"", b"\0", b"\r", b"\n", b"\r\n", b"\n\n", b" ", b"\t", b":", b".", b"*", b">", b"-", b"%",
    b"&", b"=", b";", b",", b'"', b"\\", b"\\u0000", b"\\ud800", b"[", b"]", b"{", b"}", b"#",
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x7f", b"\x80", b"0",
    b"-1", b"1e999", b"NaN", b"9" * 20, b"\xdd\xff\xff\xff\xff", b"\xc1", b"\x91" * 40, b"\xcf" * 9,
    b"true", b"null", b"a" * 300,
)  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed, or two joined, with up to four places changed, doubled or left out."""
    data = draw(st.sampled_from(seeds))
    if draw(st.integers(0, 4)) == 0:
        data += draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 1, 2, 4, 20])))
        new = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=4), st.just(data[:end])))
        data = data[:start] + new + data[end:]
    return data[:4096]


def inputs_of(target: Target) -> st.SearchStrategy[bytes]:
    return changed((b"", *target.seeds)) | st.binary(max_size=64)
