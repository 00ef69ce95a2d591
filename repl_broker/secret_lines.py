"""A file with a secret, or with two while one takes the place of the other. Pure.

    9d1f…    the first line: by which this node signs, or proves that it knows it
    77ab…    the second, if there is one: what is accepted as well

One file rather than two, because it is replaced as a whole: at no moment does a node
know neither, or only the wrong one.
"""

from __future__ import annotations

from typing import Final

from repl_broker.errors import ConfigError

__all__ = ["PLACES", "SECRETS_MAX", "check_text", "secrets_in"]

SECRETS_MAX: Final = 2
PLACES: Final = ("first", "second")  # of a secret, in an error
_BYTE_ORDER_MARK: Final = "\ufeff".encode()
_SPACE: Final = frozenset("\t\r\n")


def secrets_in(data: bytes, where: str) -> tuple[bytes, ...]:
    """The secrets in a file's ``data``, the one in use first: at least one, be it empty.

    Text is a secret a line; blank lines and repeats do not count. What is no text is one
    secret, whatever bytes it has. Raises ConfigError for more than two.
    """
    whole = data.rstrip(b"\r\n")
    if not _is_text(whole):
        return (whole,)
    lines = dict.fromkeys(line for line in whole.splitlines() if line.strip())
    if len(lines) > SECRETS_MAX:
        raise ConfigError(
            f"{where} holds {len(lines)} secrets, a line each; wanted at most {SECRETS_MAX}: the "
            "one in use, and below it the one that is accepted as well. If it is one secret, "
            "write it on one line"
        )
    return tuple(lines) or (b"",)


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in _SPACE for character in text)


def check_text(secret: bytes, where: str) -> None:
    """Refuse what an editor has put before a secret that is text; others would not count it in."""
    rest = secret.removeprefix(_BYTE_ORDER_MARK)
    if (rest != secret and rest.isascii()) or (
        secret[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\0" in secret[2:4]
    ):
        raise ConfigError(
            f"{where} begins with a byte order mark, which would be part of the secret; save it as "
            "plain ASCII or UTF-8 without one"
        )
