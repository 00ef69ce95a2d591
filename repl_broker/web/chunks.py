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

There are no trailers.
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


class Chunks:
    """The chunked body of one request: ``take`` each byte of it, in order, as it comes.

    ``sound`` is False from the first line on that is not as above. ``ended``: the body is
    complete, and what follows is another request's.
    """

    __slots__ = ("_begun", "_due", "_is_last", "_missing", "ended", "sound")

    def __init__(self) -> None:
        self.sound = True
        self.ended = False
        self._begun = b""  # a line that is not complete
        self._missing = 0  # bytes of data until the chunk's end
        self._due = b""  # what must come behind them
        self._is_last = False

    def take(self, data: bytes) -> None:
        """Read on; the time is linear in ``data``, whatever it is."""
        if self._begun:
            data, self._begun = self._begun + data, b""
        at = 0
        while at < len(data) and self.sound and not self.ended:
            if self._missing:
                step = min(self._missing, len(data) - at)
                self._missing -= step
                at += step
            elif self._due:
                at = self._take_end(data, at)
            else:
                at = self._take_line(data, at)

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
