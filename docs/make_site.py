"""Build the documentation as a site: ``./dev docs``, into build/site.

The pages link to each other, to the examples and to source files by relative paths,
so that they work wherever one reads the repository. To keep every link as it is, the
pages are staged in build/pages at the places that they have here, with each file that
one of them links to. zensical builds those, in strict mode: a link to a page or a
heading that is not there fails. It does not look at links to other files, nor for what
a browser would fetch from another host; the HTML is checked for both afterwards.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
STAGED = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "examples"),
    "clients/typescript/README.md",
)
IGNORED = shutil.ignore_patterns("__pycache__", "repl-data", "*.db", "node_modules", "*.py[co]")


def main() -> None:
    pages, site = ROOT / "build" / "pages", ROOT / "build" / "site"
    stage(pages)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit("the documentation does not build: see above")
    if wrong := list(faults(site)):
        sys.exit("the documentation has faults:\n" + "\n".join(wrong))
    print(f"the documentation is in {site.relative_to(ROOT)}/index.html")


def stage(pages: Path) -> None:
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    for name in STAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, pages / name, ignore=IGNORED)
        else:
            (pages / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, pages / name)
    for page in list(pages.rglob("*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            target = (page.parent / unquote(link)).resolve()
            source = ROOT / target.relative_to(pages) if target.is_relative_to(pages) else target
            if source.is_file() and not target.exists() and source.is_relative_to(ROOT):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)


class Links(HTMLParser):
    """What a page links to, what a browser fetches for it, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values.get("id", ""), values.get("name", "")}
        if "src" in values or tag == "link":
            self.fetched.append(values.get("src", values.get("href", "")))
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])


def faults(site: Path) -> Iterator[str]:
    """Links that lead nowhere, and what would be fetched from another host."""
    read = {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    for page, found in read.items():
        name = page.relative_to(site)
        if name.name == "404.html":  # it is shown at any depth
            continue
        for link in (*found.links, *found.fetched):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in found.fetched and parts.scheme != "data":
                    yield f"{name}: fetches {link}"
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name}: {link}: there is no such file"
            elif target in read and unquote(parts.fragment) not in read[target].anchors:
                yield f"{name}: {link}: there is no such heading"


if __name__ == "__main__":
    main()
