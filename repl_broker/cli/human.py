"""Messages as lines for people, safe to show on a terminal."""

from __future__ import annotations

import msgspec

__all__ = ["Human", "printable"]


class MessageObject(msgspec.Struct):
    """What is shown of a message; ``data`` stays as it was published."""

    topic: str
    time: str
    data: msgspec.Raw


class Human:
    """``2026-11-23T04:00:00.123Z chat {"any":"JSON"}``; a callable."""

    def __init__(self, terminal: bool) -> None:
        self.decode = msgspec.json.Decoder(MessageObject).decode
        self.terminal = terminal

    def __call__(self, message: bytes) -> bytes:
        try:
            found = self.decode(message)
        except msgspec.DecodeError:
            return printable(message.decode(errors="replace")).encode() + b"\n"
        text = printable(bytes(found.data).decode(errors="replace"))
        if self.terminal:
            return f"\x1b[2m{found.time}\x1b[0m \x1b[1m{found.topic}\x1b[0m {text}\n".encode()
        return f"{found.time} {found.topic} {text}\n".encode()


def printable(text: str) -> str:
    r"""Characters that could steer a terminal, as JSON escapes: ``\u009b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else json_escape(c) for c in text)


def json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
