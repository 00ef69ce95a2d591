"""What axe-core finds on a page that is open in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import axe_playwright_python

_AXE: Final = Path(axe_playwright_python.__file__).with_name("axe.min.js")
_RUN: Final = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations.map(({ id, impact, nodes }) =>
    ({ id, impact, nodes: nodes.map((n) => n.html.slice(0, 200) + " " + n.failureSummary) }));
}"""


def assert_accessible(page: Any) -> None:
    """No serious and no critical violation."""
    page.evaluate(_AXE.read_text(encoding="utf-8"))
    found = [v for v in page.evaluate(_RUN) if v["impact"] in ("serious", "critical")]
    assert found == [], json.dumps(found, indent=1)
