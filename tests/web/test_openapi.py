"""The description agrees with the application, and the reference with both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quart_trio import QuartTrio

from repl_broker.errors import PROBLEMS
from repl_broker.web.openapi import document
from repl_broker.web.page import render, to_html
from repl_broker.web.reference import PAGES
from repl_broker.web.schema_text import operations, references, used_codes

ROOT = Path(__file__).parents[2]


async def test_the_routes_and_the_description_agree(app: QuartTrio) -> None:
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if not rule.rule.startswith("/ui")  # the dashboard's own, and no part of the API
        for method in rule.methods or ()
        if method != "HEAD"
    }
    assert {(method, path) for method, path, _ in operations(document())} == routes


def test_parameters_of_paths_are_described() -> None:
    for _, path, operation in operations(document()):
        described = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert described == set(re.findall(r"\{(\w+)\}", path))


def test_names_are_unique_and_references_lead_somewhere() -> None:
    found = document()
    names = [operation["operationId"] for _, _, operation in operations(found)]
    assert len(names) == len(set(names))
    assert set(references(found)) == set(found["components"]["schemas"])
    tags = {tag["name"] for tag in found["tags"]}
    assert {t for _, _, operation in operations(found) for t in operation["tags"]} == tags


def test_codes_that_are_described_exist() -> None:
    assert used_codes(document()) <= set(PROBLEMS)


@pytest.mark.parametrize("name", list(PAGES))
def test_the_reference_is_what_the_code_says(name: str) -> None:
    """If it is not: python -m repl_broker.web.reference NAME > docs/reference/NAME.md"""
    written = (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")
    assert written == PAGES[name]()


def test_links_of_the_reference_lead_somewhere() -> None:
    pages = {f"{name}.md": write() for name, write in PAGES.items()}
    for name, text in pages.items():
        for page, anchor in re.findall(r"\]\(([\w.-]*)#([\w-]+)\)", text):
            target = pages[page or name]
            headings = re.findall(r"^#+ (.+)$", target, flags=re.M)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, (name, page, anchor)


def test_the_page_is_well_formed_and_escapes_what_it_shows() -> None:
    from html.parser import HTMLParser

    void = {"meta", "link", "br"}
    open_tags: list[str] = []
    text: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in void:
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag, self.getpos()

        def handle_data(self, data: str) -> None:
            text.append(data)

    checker = Checker(convert_charrefs=True)
    checker.feed(render(document()).decode())
    checker.close()
    assert not open_tags
    shown = "".join(text)
    assert "**" not in shown
    assert "`" not in shown
    assert "GET" in shown


def test_texts_become_html() -> None:
    assert to_html("A `<b>` and **bold**\nline.\n\n- one\n- two\n  lines") == (
        "<p>A <code>&lt;b&gt;</code> and <strong>bold</strong>\nline.</p>\n"
        "<ul><li>one</li><li>two\n  lines</li></ul>"
    )
    assert to_html("a\n\n```\n<x>\n```\n\nb") == (
        '<p>a</p>\n<pre tabindex="0"><code>&lt;x&gt;</code></pre>\n<p>b</p>'
    )


def test_the_page_links_to_the_documentation_that_the_package_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert b"<code>docs/index.md</code> of the repository" in render(document())
    for urls, link in (
        (["Source, https://source.example/", "Documentation, https://docs.example/a?b&c"], True),
        (["Documentation, javascript:alert(1)"], False),
    ):
        monkeypatch.setattr("repl_broker.web.page._project_urls", lambda urls=urls: urls)
        page = render(document())
        assert (b'<a href="https://docs.example/a?b&amp;c">' in page) is link
        assert b"javascript:alert" not in page
