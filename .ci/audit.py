"""What ./dev audit does: known faults of what we stand on, our own code, and a bill of materials.

    bandit      our own code, for patterns that are known to be dangerous
    SBOM        build/sbom.cdx.json (CycloneDX): what an installed node consists of
    pip-audit   requirements.lock against the advisories of PyPI
    npm audit   the same for what the TypeScript client is built with

The last two ask databases on the network. What could not be asked has not been found
sound: that is a failure, unless --offline says that it is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SBOM = ROOT / "build" / "sbom.cdx.json"
CLIENT = ROOT / "clients" / "typescript"
PLOT = ROOT / "repl_broker" / "web" / "ui" / "vendor" / "uPlot.iife.min.js"


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev audit")
    parser.add_argument("--offline", action="store_true", help="leave out what needs the network")
    offline = parser.parse_args().offline
    failures = list(filter(None, [bandit(), bill_of_materials()]))
    if offline:
        print("audit: NOT LOOKED AT: known vulnerabilities of dependencies (--offline)")
    else:
        failures += filter(None, [pip_audit(), npm_audit()])
    for failure in failures:
        print(f"audit: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


def tool(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)


def bandit() -> str | None:
    done = tool(sys.executable, "-m", "bandit", "-q", "-c", "pyproject.toml", "-r", "repl_broker")
    if done.returncode:
        return f"bandit has found something:\n{done.stdout}{done.stderr}"
    print("audit: bandit finds nothing in repl_broker")
    return None


# --- the bill of materials ----------------------------------------------------------------


def bill_of_materials() -> str | None:
    SBOM.parent.mkdir(exist_ok=True)
    done = tool(
        sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", "pyproject.toml",
        "--of", "JSON", "--output-reproducible", sys.executable,
    )  # fmt: skip
    if done.returncode:
        return f"the bill of materials cannot be made: {done.stderr}"
    bill = of_a_node(json.loads(done.stdout), runtime("repl-broker"))
    bill["components"] += vendored()
    SBOM.write_text(json.dumps(bill, indent=2) + "\n")
    print(f"audit: {SBOM.relative_to(ROOT)} has {len(bill['components'])} components")
    return None


def runtime(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """The names of what ``pip install`` brings with it, its own left out."""
    found: set[str] = set()
    pending = list(needs(name, extras))
    while pending:
        requirement = pending.pop()
        known = canonicalize_name(requirement.name)
        if known not in found:
            found.add(known)
            pending += needs(known, frozenset(requirement.extras))
    return found


def needs(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": each}) for each in (*extras, "")):
            yield requirement


def of_a_node(bill: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """``bill`` without what only tests and tools need."""
    kept = [each for each in bill["components"] if canonicalize_name(each["name"]) in names]
    missing = names - {canonicalize_name(each["name"]) for each in kept}
    assert not missing, f"not in the environment: {missing}"
    own = bill["metadata"]["component"]["bom-ref"]
    refs = {each["bom-ref"] for each in kept} | {own}
    dependencies = [
        {**each, "dependsOn": sorted(refs.intersection(each.get("dependsOn", ())))}
        for each in bill["dependencies"]
        if each["ref"] in refs
    ]
    return {**bill, "components": kept, "dependencies": dependencies}


def vendored() -> list[dict[str, Any]]:
    """JavaScript of others that a node serves, and that no package manager knows of."""
    plot = re.search(r"uPlot \(v([\d.]+)\)", PLOT.read_text()[:200])
    assert plot is not None, "uPlot does not say its version"
    versions = {
        "uplot": plot[1],
        "eventsource-parser": json.loads((CLIENT / "package.json").read_text())[
            "devDependencies"
        ]["eventsource-parser"],
    }  # fmt: skip
    return [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:npm/{name}@{version}",
            "bom-ref": f"{name}@{version}",
            "licenses": [{"license": {"id": "MIT"}}],
        }
        for name, version in versions.items()
    ]


# --- known vulnerabilities ----------------------------------------------------------------


def pip_audit() -> str | None:
    done = tool(
        sys.executable, "-m", "pip_audit", "--requirement", "requirements.lock", "--no-deps",
        "--disable-pip", "--format", "json", "--progress-spinner", "off",
    )  # fmt: skip
    return judge_pip_audit(done.stdout, done.stderr)


def judge_pip_audit(stdout: str, stderr: str) -> str | None:
    """What speaks against the packages, or against believing that nothing does."""
    try:
        packages = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return f"pip-audit could not look at anything: {last_line(stderr)}"
    bad = [
        f"{each['name']} {each['version']}: {fault['id']}, mended in "
        f"{', '.join(fault.get('fix_versions') or ['no version yet'])}"
        for each in packages
        for fault in each.get("vulns", ())
    ]
    if bad:
        return "pip-audit knows of vulnerabilities:\n  " + "\n  ".join(bad)
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    if unknown or not packages:
        return (
            f"pip-audit could not look at {len(unknown)} of {len(packages)} packages: the database "
            "of advisories (PyPI's JSON API) was not reached, or does not know them. Nothing is "
            "known of these; --offline leaves them out"
        )
    print(f"audit: pip-audit knows of no vulnerability in {len(packages)} packages")
    return None


def npm_audit() -> str | None:
    if shutil.which("npm") is None:
        return "npm is not there, so nothing is known of what the TypeScript client is built with"
    done = tool("npm", "audit", "--json", cwd=CLIENT)
    return judge_npm_audit(done.stdout, done.stderr)


def judge_npm_audit(stdout: str, stderr: str) -> str | None:
    found: dict[str, Any] = {}
    try:
        found = json.loads(stdout)
        counts = found["metadata"]["vulnerabilities"]
    except (ValueError, KeyError, TypeError):
        reason = found.get("message") or last_line(stderr)
        return (
            "npm audit could not look at anything: the registry's advisories were not reached "
            f"({reason}); --offline leaves them out"
        )
    if counts["total"]:
        return f"npm audit knows of vulnerabilities: {', '.join(found['vulnerabilities'])}"
    print("audit: npm audit knows of no vulnerability in what the client is built with")
    return None


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


if __name__ == "__main__":
    main()
