"""A file with a secret, or with two while one takes the place of the other. Pure.

    9d1f…    by which this node signs, or proves that it knows it
    ---
    77ab…    what is accepted as well

One file rather than two, because it is replaced as a whole: at no moment does a node
know neither, or only the wrong one. The line between is what tells two secrets from one
that was wrapped, and from a secret with a remark above it: each of several lines would
be enough to get in. So what can be read in two ways is refused.
"""

from __future__ import annotations

from typing import Final

from repl_broker.errors import ConfigError

__all__ = [
    "PLACES",
    "SECRETS_MAX",
    "SEPARATOR",
    "STILL_IN_FORCE",
    "check_mark",
    "counted",
    "secrets_in",
]

SECRETS_MAX: Final = 2
PLACES: Final = ("first", "second")  # of a secret, in an error
SEPARATOR: Final = "---"
# Of a file that cannot be used at a reload.
STILL_IN_FORCE: Final = "Until it can be used, what was in force is, also what was taken out of it"
_BYTE_ORDER_MARK: Final = "\ufeff".encode()
_REMEDY: Final = "write a secret on one line, for instance with openssl rand -hex 32"


def secrets_in(data: bytes, where: str) -> tuple[bytes, ...]:
    """The secrets in a file's ``data``, the one in use first: at least one, be it empty.

    What is no text is one secret, whatever bytes it has. Raises ConfigError for what can be
    read in two ways, here or by another program that signs by the same file.
    """
    check_mark(data, where)
    whole = data.rstrip(b"\r\n")
    if not whole.strip():
        return (b"",)
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return (_no_text(whole, where),)
    lines = [(number, line) for number, line in _numbered(text) if line.strip()]
    for number, line in lines:
        _check_line(line, f"line {number} of {where}")
    return tuple(dict.fromkeys(secret.encode() for secret in _apart(lines, where)))


def _numbered(text: str) -> list[tuple[int, str]]:
    """By the line breaks of files alone: str.splitlines would take others for some, too."""
    return [*enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)]


def _apart(lines: list[tuple[int, str]], where: str) -> list[str]:
    """The secrets between the separators."""
    parts: list[list[str]] = [[]]
    for _, line in lines:
        if line == SEPARATOR:
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) > SECRETS_MAX:
        raise ConfigError(
            f"{where} holds {len(parts)} secrets; wanted at most {SECRETS_MAX}: the one in use, "
            f"and below it, after a line {SEPARATOR}, the one that is accepted as well"
        )
    for place, part in zip(PLACES, parts, strict=False):
        which = f"the {place} secret in {where}" if len(parts) > 1 else where
        if not part:
            raise ConfigError(
                f"{which} is missing: there is nothing on its side of the line {SEPARATOR}"
            )
        if len(part) > 1:
            raise ConfigError(
                f"{which} has {len(part)} lines, which may be one secret that was wrapped, or "
                f"several: {_REMEDY}; between two secrets belongs a line {SEPARATOR}"
            )
    return [part[0] for part in parts]


def _check_line(line: str, where: str) -> None:
    if line.lstrip().startswith("#"):
        raise ConfigError(
            f"{where} begins with '#', and is a remark rather than a secret: take it out; "
            "there are no remarks in a file with secrets"
        )
    for character in line:
        if not character.isprintable():
            raise ConfigError(
                f"{where} has the character U+{ord(character):04X}, which cannot be seen and would "
                f"be part of the secret: {_REMEDY}"
            )
    if line != line.strip():
        raise ConfigError(
            f"{where} begins or ends with a space, which others may or may not take for a part of "
            "the secret: take it out"
        )


def _no_text(whole: bytes, where: str) -> bytes:
    if b"\n" in whole or b"\r" in whole:
        raise ConfigError(
            f"{where} has line breaks, and is not text (UTF-8), so it cannot be told how many "
            f"secrets it holds: {_REMEDY}"
        )
    if whole != whole.strip():
        raise ConfigError(
            f"{where} begins or ends with a byte that is a space in text, which others may or may "
            f"not take for a part of the secret: {_REMEDY}"
        )
    return whole


def check_mark(secret: bytes, where: str) -> None:
    """Refuse what an editor has put before a secret that is text; others would not count it in."""
    rest = secret.removeprefix(_BYTE_ORDER_MARK)
    if (rest != secret and rest.isascii()) or (
        secret[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\0" in secret[2:4]
    ):
        raise ConfigError(
            f"{where} begins with a byte order mark, which would be part of the secret; save it as "
            "plain ASCII or UTF-8 without one"
        )


def counted(secrets: int) -> str:
    """How many there are, for people."""
    return "1 secret" if secrets == 1 else f"{secrets} secrets"
