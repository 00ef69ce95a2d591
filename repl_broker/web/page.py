"""``/docs``: the OpenAPI document as one page for people, made by the node itself.

Nothing is fetched from anywhere: the style is in the page, allowed by its hash,
and there is no script. Each problem code has an anchor, to which the ``type``
of a problem leads.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Final

from repl_broker.errors import PROBLEMS
from repl_broker.web.openapi import COMMON_CODES, Object
from repl_broker.web.problems import REMEDIES
from repl_broker.web.schema_text import (
    example_text,
    notable_answers,
    operations,
    schema_text,
    used_codes,
)

__all__ = ["CONTENT_SECURITY_POLICY", "render", "to_html"]

_STYLE: Final = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def render(document: Object) -> bytes:
    """The page, in UTF-8."""
    info = document["info"]
    tags = document["tags"]
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(info['title'])} API</title>",
        '<link rel="icon" href="data:,">',
        f"<style>{_STYLE}</style>\n</head>\n<body>",
        '<a class="skip" href="#main">Skip to the content</a>',
        *_navigation(document),
        '<main id="main">',
        f"<header><h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        f'<p class="lead">{escape(info["summary"])} <a href="openapi.json">openapi.json</a> '
        '<a href="ui/">dashboard</a></p>',
        f"{_guides()}</header>\n{to_html(info['description'])}",
    ]
    for tag in tags:
        parts += [
            f'<section class="group" id="about-{escape(tag["name"].lower())}">',
            f"<h2>{escape(tag['name'])}</h2>\n<p>{escape(tag['description'])}</p>",
        ]
        for method, path, operation in operations(document):
            if tag["name"] in operation["tags"]:
                parts += _operation(method, path, operation)
        parts.append("</section>")
    parts += [*_schemas(document), *_problems(document), "</main>\n</body>\n</html>\n"]
    return "\n".join(parts).encode()


def _guides() -> str:
    """Where the rest of the documentation is: where the package's own metadata says, if it does."""
    where = "<code>docs/index.md</code> of the repository"
    for entry in _project_urls():
        label, _, url = entry.partition(", ")
        if label.lower() == "documentation" and url.startswith(("https://", "http://")):
            where = f'<a href="{escape(url)}">{escape(url)}</a>'
    return (
        '<p class="note">This page describes the HTTP API. '
        f"Tutorials, how-to guides and explanations: {where}.</p>"
    )


def _project_urls() -> list[str]:
    try:
        return metadata.metadata("repl-broker").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return []


def to_html(text: str) -> str:
    """CommonMark as openapi.py uses it: paragraphs, lists of one level, fences, code, bold."""
    blocks: list[str] = []
    for number, part in enumerate(re.split(r"^```\n(.*?)^```$", text, flags=re.M | re.S)):
        if number % 2:
            blocks.append(_code_block(part.rstrip("\n")))
            continue
        for block in filter(None, map(str.strip, part.split("\n\n"))):
            if block.startswith("- "):
                items = re.split(r"(?:^|\n)- ", block)[1:]
                blocks.append(f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>")
            else:
                blocks.append(f"<p>{_inline(block)}</p>")
    return "\n".join(blocks)


def _inline(text: str) -> str:
    parts = text.split("`")
    for number, part in enumerate(parts):
        safe = escape(part)
        if number % 2:
            parts[number] = f"<code>{safe}</code>"
        else:
            parts[number] = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return "".join(parts)


def _code_block(text: str) -> str:
    # Reachable by keyboard, because it may scroll sideways.
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def _navigation(document: Object) -> Iterator[str]:
    yield '<nav aria-label="Contents">'
    for tag in document["tags"]:
        name = escape(tag["name"])
        yield f'<h2><a href="#about-{name.lower()}">{name}</a></h2>\n<ul>'
        for method, _, operation in operations(document):
            if tag["name"] in operation["tags"]:
                anchor = escape(operation["operationId"])
                yield (
                    f'<li><a href="#{anchor}">{_badge(method)} '
                    f"<span>{escape(operation['summary'])}</span></a></li>"
                )
        yield "</ul>"
    yield '<h2><a href="#schemas">Schemas</a></h2>'
    yield '<h2><a href="#problems">Problems</a></h2>'
    yield "</nav>"


def _badge(method: str) -> str:
    return f'<b class="method {method.lower()}">{method}</b>'


def _operation(method: str, path: str, operation: Object) -> Iterator[str]:
    name = escape(operation["operationId"])
    yield f'<article id="{name}">\n<h3><a href="#{name}">{escape(operation["summary"])}</a></h3>'
    shown = re.sub(r"(\{\w+\})", r"<i>\1</i>", escape(path))
    yield f'<p class="call">{_badge(method)} <code>{shown}</code></p>'
    yield to_html(operation["description"])
    if "parameters" in operation:
        yield from _table(
            "Parameters",
            ("Name", "In", "Meaning"),
            (
                (
                    f"<code>{escape(each['name'])}</code>",
                    escape(each["in"]) + (" (required)" if each.get("required") else ""),
                    f"{_inline(each['description'])} <small>{_type(each['schema'])}</small>",
                )
                for each in operation["parameters"]
            ),
        )
    yield from _body(operation)
    yield from _answers(operation)
    yield f"<h4>Example</h4>\n{_code_block(operation['x-codeSamples'][0]['source'])}\n</article>"


def _body(operation: Object) -> Iterator[str]:
    if "requestBody" not in operation:
        return
    body = operation["requestBody"]
    yield f"<h4>Body{'' if body['required'] else ' (may be left out)'}</h4>"
    for media_type, media in body["content"].items():
        lines = ", an item a line" if media_type.endswith("ndjson") else ""
        yield f"<p><code>{escape(media_type)}</code>: {_type(media['schema'])}{lines}</p>"
        yield _code_block(example_text(media_type, media["example"]))


def _answers(operation: Object) -> Iterator[str]:
    yield from _table(
        "Answers",
        ("Status", "When", "Body"),
        (
            (
                f"<b>{status}</b>",
                ", ".join(map(_code_link, found)) if found else _inline(response["description"]),
                "problem" if found else _content(response),
            )
            for status, response, found in notable_answers(operation)
        ),
    )
    yield '<p class="note">And what <a href="#problems">any request</a> can get.</p>'


def _content(response: Object) -> str:
    return "<br>".join(
        f"<code>{escape(media_type)}</code> <small>{_type(media['schema'])}</small>"
        for media_type, media in response.get("content", {}).items()
    )


def _type(schema: Object) -> str:
    return schema_text(schema, lambda name: f'<a href="#schema-{name}">{name}</a>')


def _code_link(code: str) -> str:
    return f'<a href="#{code}"><code>{code}</code></a>'


def _table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f'<div class="table" tabindex="0"><table>\n<caption>{caption}</caption>\n<thead><tr>'
    yield "".join(f'<th scope="col">{head}</th>' for head in heads)
    yield "</tr></thead>\n<tbody>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
    yield "</tbody></table></div>"


def _schemas(document: Object) -> Iterator[str]:
    yield '<section class="group" id="schemas">\n<h2>Schemas</h2>'
    for name, schema in document["components"]["schemas"].items():
        yield f'<article id="schema-{name}">\n<h3><a href="#schema-{name}">{name}</a></h3>'
        if "properties" not in schema:
            yield (
                f"<p>{_type(schema)}, at most {schema['maxLength']} characters: "
                f"<code>{escape(schema['pattern'])}</code></p>\n</article>"
            )
            continue
        yield f"<p>{_inline(schema['description'])}</p>"
        required = schema.get("required", ())
        yield from _table(
            "Members",
            ("Name", "Type", "Meaning"),
            (
                (
                    f"<code>{member}</code>",
                    _type(part) if member != "code" else '<a href="#problems">a code</a>',
                    _inline(part.get("description", ""))
                    + ("" if member in required else " <small>optional</small>"),
                )
                for member, part in schema["properties"].items()
            ),
        )
        yield "</article>"
    yield "</section>"


def _problems(document: Object) -> Iterator[str]:
    used = used_codes(document)
    common = ", ".join(map(_code_link, COMMON_CODES))
    yield '<section class="group" id="problems">\n<h2>Problems</h2>'
    yield f"<p>Any request can get {common}; an unknown path {_code_link('not_found')}, and "
    yield f"a method that a path does not have {_code_link('method_not_allowed')}.</p>"
    for code, (status, title) in PROBLEMS.items():
        yield f'<article class="problem" id="{code}">'
        yield f'<h3><b class="status">{status}</b> <a href="#{code}"><code>{code}</code></a></h3>'
        yield f"<p><strong>{escape(title)}.</strong> {_inline(REMEDIES[code])}</p>"
        if code not in used | {"not_found", "method_not_allowed"}:
            yield '<p class="note">Reserved: nothing in this version answers with it.</p>'
        yield "</article>"
    yield "</section>"
