"""The documentation builds as a site: strictly, and with nothing that leads nowhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.required import need_modules
from tests.test_docs import ROOT, name_of

KINDS: Final = {"tutorial": "Tutorials", "how-to": "How-to"} | {
    kind.lower(): kind for kind in ("Reference", "Explanation")
}
_spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs" / "make_site.py")
assert _spec is not None
assert _spec.loader is not None
make_site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_site)


def navigation() -> list[dict[str, Any]]:
    with (ROOT / "zensical.toml").open("rb") as file:
        found: list[dict[str, Any]] = tomllib.load(file)["project"]["nav"]
    return found


def test_the_site_builds_and_no_link_of_it_leads_nowhere() -> None:
    need_modules("zensical")
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_site.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (ROOT / "build" / "site" / "docs" / "how-to" / "run-behind-a-proxy.html").is_file()


def test_every_page_is_in_the_navigation_under_its_kind() -> None:
    sections = {name: pages for entry in navigation() for name, pages in entry.items()}
    for folder, kind in KINDS.items():
        listed = {page for entry in sections[kind] for page in entry.values()}
        pages = {name_of(page) for page in (ROOT / "docs" / folder).glob("*.md")}
        assert pages == {page for page in listed if page.startswith("docs/")}, kind
    examples = {name_of(page) for page in (ROOT / "examples").glob("*/README.md")}
    everything = str(navigation())
    assert [page for page in sorted(examples) if page not in everything] == []


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="other.html">', "page.html: other.html: there is no such file"),
        ('<a href="#nowhere">', "page.html: #nowhere: there is no such heading"),
        ('<img src="gone.png">', "page.html: gone.png: there is no such file"),
        ('<script src="https://cdn.example/x.js"></script>', "page.html: fetches https://cdn.example/x.js"),
        ('<link rel="icon" href="//cdn.example/x">', "page.html: fetches //cdn.example/x"),
        ('<a href="https://elsewhere.example/">', None),
        ('<h1 id="here"></h1><a href="page.html#here">', None),
    ],
)  # fmt: skip
def test_a_fault_of_a_page_is_found(html: str, fault: str | None, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html)
    assert list(make_site.faults(tmp_path)) == ([fault] if fault else [])
