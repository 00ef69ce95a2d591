"""Secrets that found their way into text for people: a last line of defence. Pure.

Nothing of ours prints a token. What libraries, the system and users put into a message is not
ours: a token that was given where a topic belongs, or an error of a library that shows its input.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["masked", "without_login"]

# A JSON Web Token begins with the base64 of `{"`, or of `{` and white space.
_STARTS: Final = ("eyJ", "eyA", "ewo", "ew0")
_TOKEN: Final = re.compile(r"(?:eyJ|eyA|ewo|ew0)[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?", re.ASCII)
_LOGIN: Final = re.compile(r"//[^/?#\s\"']*@")
MASK: Final = "[token]"


def masked(text: str, *known: str) -> str:
    """The text without what looks like a token, and without those that are ``known``."""
    for secret in known:
        if len(secret) > 3:
            text = text.replace(secret, MASK)
    if any(start in text for start in _STARTS):
        text = _TOKEN.sub(MASK, text)
    return text


def without_login(url: str) -> str:
    """A URL as it may be shown: without user and password."""
    return _LOGIN.sub("//…@", url)
