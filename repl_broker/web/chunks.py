"""The chunks of a body, held to the one form that nobody reads in two ways. Pure.

Request smuggling has a second place beside the head (head.py): the lines between
the chunks (RFC 9112 sections 7.1 and 11.2). One reader ends such a line at a bare
LF, or looks for the next at a bare CR within an extension, or cuts a size off
that overflows, where another does not. h11 is lenient there, so what it is going
to read is read here first:

    chunk      = size [ extensions ] CRLF data CRLF
    last       = 0 [ extensions ] CRLF CRLF
    size       = 1 to 8 hexadecimal digits, behind at most 8 zeros
    extensions = *( ";" token [ "=" ( token / quoted-string ) ] ), without white space

There are no trailers. And since h11 takes some thirty times as long for a chunk as is needed
here, it is given the same body with all that came together in one.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["CHUNK_LINE_BYTES_MAX", "Chunks"]

CHUNK_LINE_BYTES_MAX: Final = 256  # of the line that begins a chunk, its CRLF included

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_LINE = re.compile(
    rb"0{0,8}([0-9A-Fa-f]{1,8})(?:;%b(?:=(?:%b|%b))?)*+\r\n" % (_TOKEN, _TOKEN, _QUOTED)
)
_CRLF: Final = b"\r\n"
_END: Final = b"0\r\n\r\n"


class Chunks:
    """The chunked body of one request: ``take`` each byte of it, in order, as it comes. What is
    given for it is the same body in few chunks; what follows its end is given as it is.

    ``sound`` is False from the first line on that is not as above. ``ended``: the body is
    complete, and what follows is another request's.
    """

    __slots__ = ("_begun", "_due", "_is_last", "_missing", "_parts", "ended", "sound")

    def __init__(self) -> None:
        self.sound = True
        self.ended = False
        self._begun = b""  # a line that is not complete
        self._missing = 0  # bytes of data until the chunk's end
        self._due = b""  # what must come behind them
        self._is_last = False
        self._parts: list[bytes] = []  # of data, that came together

    def take(self, data: bytes) -> bytes:
        """Read on; the time is linear in ``data``, whatever it is. b"" if no more than part of
        what stands between data has come, or nothing is sound any more."""
        if self.ended:
            return data
        if self._begun:
            data, self._begun = self._begun + data, b""
        at = self._take_all(data)
        content = b"".join(self._parts)
        self._parts.clear()
        if not self.sound:
            return b""
        whole = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
        return whole + _END + data[at:] if self.ended else whole

    def _take_all(self, data: bytes) -> int:
        """How far the body goes in it."""
        at = 0
        while at < len(data) and self.sound and not self.ended:
            if self._missing:
                part = data[at : at + self._missing]
                self._parts.append(part)
                self._missing -= len(part)
                at += len(part)
            elif self._due:
                at = self._take_end(data, at)
            else:
                at = self._take_line(data, at)
        return at

    def _take_end(self, data: bytes, at: int) -> int:
        found = data[at : at + len(self._due)]
        self.sound = self._due.startswith(found)
        self._due = self._due[len(found) :]
        self.ended = self.sound and self._is_last and not self._due
        return at + len(found)

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at, at + CHUNK_LINE_BYTES_MAX) + 1
        if not end:
            self._begun = data[at:]
            self.sound = len(self._begun) < CHUNK_LINE_BYTES_MAX
            return len(data)
        line = _LINE.fullmatch(data, at, end)
        if line is None:
            self.sound = False
            return end
        self._missing = int(line[1], 16)
        self._is_last = not self._missing
        self._due = _CRLF
        return end
