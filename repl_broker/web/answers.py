"""How answers are made: JSON, methods, and what every answer carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.json import encode as encode_json
from quart import Response
from werkzeug.exceptions import MethodNotAllowed

__all__ = ["JSON", "allowed_methods", "answer", "empty_answer", "json_answer"]

JSON: Final = "application/json"


def answer(
    body: bytes, content_type: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer of the API: never kept by a cache, because the next one may differ."""
    response = Response(body, status, content_type=content_type)
    response.headers["Cache-Control"] = "no-store"
    for name, value in (headers or {}).items():
        response.headers[name] = value
    return response


def json_answer(
    fields: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """``fields`` is anything msgspec encodes: dicts, frozen dataclasses."""
    return answer(encode_json(fields), JSON, status, headers)


def empty_answer(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without a body, and so without a media type."""
    response = answer(b"", JSON, status, headers)
    del response.headers["Content-Type"]
    del response.headers["Content-Length"]
    return response


def allowed_methods(error: MethodNotAllowed) -> list[str]:
    """The methods of the route, in a steady order; OPTIONS works everywhere."""
    return [*sorted(error.valid_methods or ()), "OPTIONS"]
