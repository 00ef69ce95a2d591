"""Each scenario has a test that says so, and the page about them is up to date."""

from __future__ import annotations

import subprocess
import sys

from tests.raft import reference
from tests.raft.reference import ROOT, SCENARIOS, citations, malformed, page, shown_by

PAGE = ROOT / "docs" / "reference" / "raft-scenarios.md"


def test_there_are_fifty_scenarios() -> None:
    assert list(SCENARIOS) == list(range(1, 51))


def test_every_scenario_is_shown_by_a_test() -> None:
    assert not SCENARIOS.keys() - shown_by().keys(), "each has a test that cites it"


def test_every_number_that_is_cited_is_one_of_a_scenario() -> None:
    numbers = {(c.file, c.name, n) for c in citations() for n in c.numbers}
    assert {each for each in numbers if each[2] not in SCENARIOS} == set()


def test_every_citation_is_in_the_form_that_is_read() -> None:
    assert malformed() == []


def test_the_page_is_up_to_date() -> None:
    remedy = "run: python -m tests.raft.reference > docs/reference/raft-scenarios.md"
    assert PAGE.read_text() == page(), remedy


def test_the_module_writes_the_page() -> None:
    command = [sys.executable, "-m", reference.__name__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode() == page()
