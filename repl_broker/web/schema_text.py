"""The OpenAPI document in words: what page.py and reference.py both say of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from repl_broker.web.openapi import COMMON_CODES, Object

__all__ = [
    "codes",
    "example_text",
    "notable_answers",
    "operations",
    "references",
    "schema_text",
    "used_codes",
]


def operations(document: Object) -> Iterator[tuple[str, str, Object]]:
    """Method, path and operation of each call, in the document's order."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def codes(response: Object) -> list[str]:
    """The codes of a problem; none if the response is no problem."""
    for media_type, media in response.get("content", {}).items():
        if media_type == "application/problem+json":
            found: list[str] = media["schema"]["allOf"][1]["properties"]["code"]["enum"]
            return found
    return []


def notable_answers(operation: Object) -> Iterator[tuple[str, Object, list[str]]]:
    """Status, response and codes, without what any request can get."""
    for status, response in operation["responses"].items():
        found = [code for code in codes(response) if code not in COMMON_CODES]
        if found or not codes(response):
            yield status, response, found


def used_codes(document: Object) -> set[str]:
    """The codes that some operation of this version answers with."""
    return {
        code
        for _, _, operation in operations(document)
        for response in operation["responses"].values()
        for code in codes(response)
    }


def references(schema: object) -> Iterator[str]:
    """The names of the schemas that one refers to, at any depth."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for part in schema.values():
            yield from references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from references(part)


def example_text(media_type: str, example: object) -> str:
    """An example as it is sent."""
    if media_type.endswith("ndjson"):
        assert isinstance(example, list)
        return "\n".join(json.dumps(each, separators=(",", ":")) for each in example)
    return json.dumps(example, indent=2, ensure_ascii=False)


def schema_text(schema: Object, link: Callable[[str], str]) -> str:
    """A schema in a few words; ``link`` writes the name of another one."""
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(schema_text(each, link) for each in schema["anyOf"])
    if "const" in schema:
        return f"always {schema['const']}"
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        words = f"array of {schema_text(schema['items'], link)}"
    elif "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        words = " or ".join(kinds)
    else:
        return "any JSON value"
    return ", ".join([words, *_limits(schema)])


def _limits(schema: Object) -> Iterator[str]:
    if "maximum" in schema:
        yield f"{schema['minimum']:,} to {schema['maximum']:,}"
    elif schema.get("minimum", 0) > 0:
        yield f"at least {schema['minimum']:,}"
    if "maxItems" in schema:
        yield f"{schema['minItems']} to {schema['maxItems']} of them"
    elif "minItems" in schema:
        yield f"at least {schema['minItems']}"
    if "default" in schema:
        yield f"default {schema['default']}"
