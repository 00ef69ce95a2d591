"""What schemathesis has to be told of the contract; schemathesis.toml names this module."""

from __future__ import annotations

import itertools
import json
from typing import Any

import schemathesis

numbers = itertools.count()


@schemathesis.serializer("application/x-ndjson")
def lines(ctx: object, value: Any) -> bytes:
    """An array of the schema is sent as a value a line.

    What is no array, where something wrong is meant, would be a line in itself,
    and right: it is cut off.
    """
    if isinstance(value, list):
        return b"\n".join(json.dumps(each).encode() for each in value)
    return b"[" + json.dumps(value, default=repr).encode()


@schemathesis.hook
def before_call(context: object, case: Any, kwargs: dict[str, Any]) -> None:
    """Make most idempotency keys new ones: the fuzzer likes ``0``, and gets 422 for it."""
    key = (case.headers or {}).get("Idempotency-Key")
    number = next(numbers)
    if key and number % 8:
        case.headers["Idempotency-Key"] = f"{key}-{number}"
