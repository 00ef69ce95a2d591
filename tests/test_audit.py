"""./dev audit: what it makes of what its tools say, and the bill of materials."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "version": "1.0", "vulns": [], **more}


def test_packages_without_advisories_pass(audit: ModuleType) -> None:
    assert audit.judge_pip_audit(json.dumps({"dependencies": [package("a")]}), "") is None


def test_a_vulnerability_fails_and_is_named(audit: ModuleType) -> None:
    fault = {"id": "PYSEC-1", "fix_versions": ["1.1"]}
    said = json.dumps({"dependencies": [package("a"), package("b", vulns=[fault])]})
    assert "b 1.0: PYSEC-1, mended in 1.1" in audit.judge_pip_audit(said, "")


@pytest.mark.parametrize(
    "said",
    [
        json.dumps({"dependencies": [package("a"), {"name": "b", "skip_reason": "not found"}]}),
        json.dumps({"dependencies": []}),
        "",
        "[]",
    ],
)
def test_what_could_not_be_looked_at_is_a_failure(audit: ModuleType, said: str) -> None:
    """pip-audit itself ends with 0 for packages that its database does not know."""
    assert "could not look at" in audit.judge_pip_audit(said, "ERROR: no network")


def test_npm_is_judged_alike(audit: ModuleType) -> None:
    well = json.dumps({"metadata": {"vulnerabilities": {"total": 0}}, "vulnerabilities": {}})
    bad = json.dumps({"metadata": {"vulnerabilities": {"total": 1}}, "vulnerabilities": {"x": {}}})
    assert audit.judge_npm_audit(well, "") is None
    assert audit.judge_npm_audit(bad, "").endswith(": x")
    assert "were not reached (405)" in audit.judge_npm_audit('{"error": {}}', "a\n405\n")


def test_the_bill_has_what_a_node_needs_and_no_tools(audit: ModuleType) -> None:
    names = audit.runtime("repl-broker")
    assert {"trio", "hypercorn", "msgpack", "h11", "werkzeug"} <= names
    assert names.isdisjoint({"pytest", "mypy", "hypothesis", "bandit", "django"})
    bill = {
        "metadata": {"component": {"bom-ref": "root"}},
        "components": [{"name": n, "bom-ref": n} for n in ("A_b", "c", "pytest")],
        "dependencies": [
            {"ref": "root", "dependsOn": ["A_b", "pytest"]},
            {"ref": "A_b", "dependsOn": ["c"]},
            {"ref": "pytest"},
        ],
    }
    kept = audit.of_a_node(bill, {"a-b", "c"})
    assert [each["name"] for each in kept["components"]] == ["A_b", "c"]
    assert kept["dependencies"] == [
        {"ref": "root", "dependsOn": ["A_b"]},
        {"ref": "A_b", "dependsOn": ["c"]},
    ]


def test_the_bill_names_the_javascript_that_a_node_serves(audit: ModuleType) -> None:
    found = {each["name"]: each["purl"] for each in audit.vendored()}
    assert set(found) == {"uplot", "eventsource-parser"}
    assert all("@" in purl for purl in found.values())
