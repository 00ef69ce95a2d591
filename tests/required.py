"""What a test needs beside this package. Missing, it is skipped, and says so; in CI it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

VARIABLE = "REPL_BROKER_TEST_REQUIRE_PROGRAMS"


def need_program(*names: str) -> str:
    """The path of the first of them that is on the PATH."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or missing(f"no {' or '.join(names)} on the PATH")


def need_modules(*names: str) -> None:
    lacking = [name for name in names if importlib.util.find_spec(name) is None]
    if lacking:
        missing(f"not installed: {', '.join(lacking)}; pip install -e '.[test]' does it")


def missing(text: str) -> str:
    if os.environ.get(VARIABLE) == "1":
        pytest.fail(text)
    pytest.skip(text)
