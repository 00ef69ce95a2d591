"""The locks: hashes of all that is installed, for all that pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT: Final = Path(__file__).parent.parent
ALL: Final = "requirements.lock"
RUN: Final = "requirements-run.lock"
# What each has of the extras; `fuzz` has wheels for few, so nobody gets it unasked.
EXTRAS: Final = {ALL: ("test", "audit", "build", "lock"), RUN: ("build",)}


class Locked(NamedTuple):
    """One entry of a lock."""

    requirement: Requirement
    hashes: frozenset[str]

    @property
    def version(self) -> Version:
        [pinned] = self.requirement.specifier
        assert pinned.operator == "=="
        return Version(pinned.version)


def read(name: str) -> dict[str, list[Locked]]:
    """By canonical names: one that differs with the Python has several entries."""
    text = re.sub(r"(?m)^ *#.*\n", "", (ROOT / name).read_text()).replace("\\\n", " ")
    found: dict[str, list[Locked]] = {}
    for line in text.splitlines():
        requirement, *hashes = line.split(" --hash=sha256:")
        locked = Locked(Requirement(requirement), frozenset(map(str.strip, hashes)))
        found.setdefault(canonicalize_name(locked.requirement.name), []).append(locked)
    return found


def here(entries: list[Locked]) -> list[Locked]:
    """Those that are for this Python and platform."""
    marks = [(entry, entry.requirement.marker) for entry in entries]
    return [entry for entry, marker in marks if marker is None or marker.evaluate()]


@pytest.mark.parametrize("name", EXTRAS)
def test_every_version_is_pinned_and_has_hashes(name: str) -> None:
    locked = read(name)
    assert len(locked) > 20
    for entries in locked.values():
        assert len(here(entries)) <= 1
        for entry in entries:
            assert entry.version
            assert entry.hashes
            assert all(re.fullmatch("[0-9a-f]{64}", each) for each in entry.hashes)


def test_what_a_node_needs_is_a_part_of_the_whole() -> None:
    whole = read(ALL)
    for name, entries in read(RUN).items():
        for entry in entries:
            same = [each for each in whole[name] if each.version == entry.version]
            assert [each.hashes for each in same] == [entry.hashes], name


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_has_all_that_is_asked_for_and_all_that_this_asks_for(name: str) -> None:
    """Since pip is not left to find that out."""
    locked = read(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(each for extra in EXTRAS[name] for each in optional[extra]),
    ]
    waiting, seen = [Requirement(each) for each in asked], set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        if wanted.name == "repl-broker":
            more = [Requirement(each) for extra in wanted.extras for each in optional[extra]]
            waiting += more
            continue
        if wanted.name == "pip":  # which installs, and is not installed
            continue
        [entry] = here(locked[canonicalize_name(wanted.name)])
        assert wanted.specifier.contains(entry.version, prereleases=True), (wanted, entry.version)
        waiting += needs(wanted)
    assert len(seen) > 20


def needs(wanted: Requirement) -> list[Requirement]:
    """What an installed package asks for, with these extras."""
    found = []
    for each in map(Requirement, metadata.requires(wanted.name) or ()):
        extras = ("", *wanted.extras)
        environments = [dict(default_environment()) | {"extra": extra} for extra in extras]
        if each.marker is None or any(map(each.marker.evaluate, environments)):
            found.append(each)
    return found


def test_what_is_installed_is_what_is_locked() -> None:
    for name, entries in read(ALL).items():
        for entry in here(entries):
            assert Version(metadata.version(name)) == entry.version, name


def test_pip_is_called_in_one_place_that_asks_for_hashes_or_for_nothing_else() -> None:
    text = (ROOT / "dev").read_text()
    assert re.findall(r"pip install.*", text) == [
        'pip install --quiet --disable-pip-version-check --no-deps "$@"'
    ]
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.lstrip().startswith("pip_install "):
            assert "--require-hashes" in line or "--no-build-isolation --editable ." in line
