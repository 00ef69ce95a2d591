"""Query parameters and members of JSON bodies, read strictly. Pure.

What a route does not know is refused by its name, with the nearest known one,
so that a typo is never ignored; what may be given once is refused twice. Some
parameters are written by no author of a page, but added by what it is built on:
those are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NoReturn
from urllib.parse import unquote_plus

from repl_broker.config import nearest
from repl_broker.errors import RequestError
from repl_broker.message import JsonLimits, compact_json
from repl_broker.origins import COOKIE

__all__ = [
    "LIMIT_DEFAULT",
    "LIMIT_MAX",
    "OBJECT_BYTES_MAX",
    "PARAMETERS_MAX",
    "PASSED_OVER",
    "TOKEN_NAME",
    "Query",
    "check_members",
    "read_integer",
    "read_limit",
    "read_object",
    "read_query",
    "read_switch",
    "read_text",
]

# So that no cache answers: jQuery, Ext JS, Dojo; past, and within, Angular's service worker.
PASSED_OVER: Final = ("_", "_dc", "dojo.preventCache", "ngsw-bypass", "ngsw-cache-bust")
TOKEN_NAME: Final = "access_token"  # noqa: S105  RFC 6750 2.3
# As others call it: Mercure's hub, and what people try.
TOKEN_NAMES: Final = frozenset(
    {TOKEN_NAME, "authorization", "token", "jwt", "bearer", "auth", "auth_token", "accesstoken"}
)
PARAMETERS_MAX: Final = 512  # of a query: filters, and what libraries add
LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000
OBJECT_BYTES_MAX: Final = 64 << 10  # of a JSON body that is not a message
_OBJECT_LIMITS: Final = JsonLimits(OBJECT_BYTES_MAX, 1, 16)
_COMPARED_MAX: Final = 64  # characters of a name, as it is compared with the known ones
_SAFE_DIGITS: Final = 18  # more would not fit a 64-bit number; none of ours is that large

Query = Mapping[str, Sequence[str]]


def read_query(
    query_string: bytes,
    known: Sequence[str],
    repeated: Collection[str] = (),
    also: Mapping[str, str] = MappingProxyType({}),
) -> Query:
    """The values of each parameter that is given, all of which are ``known``.

    Those in ``repeated`` may come more than once. ``also`` has other names of some, in lower
    case, though they may come in any; values are in the order of the query, whatever the names.
    Raises ``invalid_parameter``.
    """
    count = query_string.count(b"&") + 1
    if count > PARAMETERS_MAX:
        _refuse(f"The query has {count} parameters; at most {PARAMETERS_MAX} fit. Send fewer.")
    query: dict[str, list[str]] = {}
    for pair in query_string.split(b"&"):
        if not pair:
            continue
        name, _, value = (_decode(part) for part in pair.partition(b"="))
        if name not in known:
            if name in PASSED_OVER:
                continue
            if name.lower() in TOKEN_NAMES:
                _refuse_token(name, known)
            if name.lower() not in also:
                _refuse_unknown("query parameter", name, known)
            name = also[name.lower()]
        values = query.setdefault(name, [])
        if values and name not in repeated:
            _refuse(f"The query parameter {name!r} is given more than once; give it once.")
        values.append(value)
    return query


def read_limit(query: Query) -> int:
    """``limit``: how many entries a page has at most. Raises ``invalid_parameter``."""
    text = query.get("limit", [str(LIMIT_DEFAULT)])[0]
    if re.fullmatch(r"[0-9]{1,9}", text) is None or not 1 <= int(text) <= LIMIT_MAX:
        _refuse(f"The query parameter 'limit' is {_shown(text)}; give a number, 1 to {LIMIT_MAX}.")
    return int(text)


def read_switch(query: Query, name: str) -> bool:
    """``true`` or ``false``, which it is if it is not given. Raises ``invalid_parameter``."""
    text = query.get(name, ["false"])[0]
    if text not in ("true", "false"):
        _refuse(f"The query parameter {name!r} is {_shown(text)}; give true or false.")
    return text == "true"


def read_object(body: bytes) -> dict[str, object]:
    """A body that is one JSON object. Raises ``invalid_json``, ``invalid_parameter``."""
    compact_json(body, _OBJECT_LIMITS)
    found = json.loads(body.decode(), object_pairs_hook=_once, parse_int=_whole)
    if not isinstance(found, dict):
        _refuse(f"The body is {_kind(found)}; send a JSON object.")
    return found


def check_members(found: Mapping[str, object], known: Sequence[str], where: str = "") -> None:
    """Refuse members that are not ``known``. ``where`` is the object's own name, if nested."""
    for name in found:
        if name not in known:
            _refuse_unknown(f"member of the object {where!r}" if where else "member", name, known)


def read_text(found: Mapping[str, object], name: str) -> str:
    """A member that must be there and be a string."""
    if name not in found:
        _refuse(f"The member {name!r} is missing; it is required.")
    value = found[name]
    if not isinstance(value, str):
        _refuse(f"The member {name!r} is {_kind(value)}; give a string.")
    return value


def read_integer(
    found: Mapping[str, object], name: str, minimum: int, maximum: int, where: str, of: str
) -> int | None:
    """A member that is a whole number in a range; None if it is not there.

    ``where`` is the object that it is in, ``of`` its unit, as in "of seconds".
    """
    if name not in found:
        return None
    value = found[name]
    full_name = f"{where}.{name}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        shown = f", {_shown(value)}" if isinstance(value, str) else ""
        _refuse(
            f"The member {full_name!r} is {_kind(value)}{shown}; give a whole number {of}, "
            f"{minimum} to {maximum}."
        )
    if not minimum <= value <= maximum:
        shown = f"{value}" if abs(value) < 10**_SAFE_DIGITS else "far beyond that"
        _refuse(
            f"The member {full_name!r} must be a whole number {of}, {minimum} to {maximum}; it is "
            f"{shown}."
        )
    return value


def _decode(part: bytes) -> str:
    # A target is ASCII; what it escapes must be UTF-8.
    try:
        return unquote_plus(part.decode("ascii"), errors="strict")
    except UnicodeDecodeError:
        _refuse("The query is not percent-encoded UTF-8.")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            _refuse(f"The member {_shown(name)} is given more than once; give it once.")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    # Python refuses to read thousands of digits; no range of ours reaches this far.
    return int(digits) if len(digits) <= _SAFE_DIGITS else 10**_SAFE_DIGITS


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    names |= {list: "an array", dict: "an object"}
    return names.get(type(value), "null")


def _refuse_unknown(what: str, name: str, known: Sequence[str]) -> NoReturn:
    if not known:
        _refuse(f"Unknown {what} {_shown(name)}; there is none here.")
    near = nearest(name[:_COMPARED_MAX], known)
    hint = "" if near is None else f"; the nearest known one is {near!r}"
    _refuse(f"Unknown {what} {_shown(name)}{hint}. Known: {', '.join(known)}.")


def _refuse_token(name: str, known: Sequence[str]) -> NoReturn:
    """A token where none is taken. Its value is not repeated."""
    if TOKEN_NAME in known:
        query = f"the query parameter {TOKEN_NAME!r}"
    else:
        query = f"{TOKEN_NAME!r} in the query of /v1/events, if [auth] allow_query_token is on"
    _refuse(
        f"No token is taken from the query parameter {_shown(name)} here. Send it in the header "
        f"'Authorization: Bearer …', as the cookie {COOKIE!r}, or as {query}."
    )


def _refuse(detail: str) -> NoReturn:
    raise RequestError("invalid_parameter", detail)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")
