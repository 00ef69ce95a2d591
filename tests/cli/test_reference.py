"""The files that users look up are what the code says today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from repl_broker.cli import main, reference
from repl_broker.config import keys

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("command-line", "docs/reference/command-line.md"),
        ("configuration", "docs/reference/configuration.md"),
        ("example", "cluster.toml.example"),
    ],
)
def test_the_file_is_up_to_date(name: str, file: str) -> None:
    made = reference.DOCUMENTS[name]()
    remedy = f"run: python -m repl_broker.cli.reference {name} > {file}"
    assert (ROOT / file).read_text() == made, remedy


def test_every_command_and_option_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/command-line.md").read_text()
    for path, command in reference.walk(main, ["repl-broker"]):
        assert f"## `{' '.join(path)}`" in text
        for parameter in command.params:
            for name in parameter.opts:
                assert name in text or parameter.param_type_name == "argument"


def test_every_key_is_in_the_reference_with_its_default() -> None:
    text = (ROOT / "docs/reference/configuration.md").read_text()
    for key in keys().values():
        assert f"### `{key.name}`" in text
        assert f"`{key.variable}`" in text
        assert key.meaning in text


def test_every_option_that_a_key_names_exists() -> None:
    serve = main.commands["serve"]
    options = {name for parameter in serve.params for name in parameter.opts}
    assert {key.option for key in keys().values() if key.option} <= options


def test_the_module_writes_a_document() -> None:
    command = [sys.executable, "-m", "repl_broker.cli.reference"]
    done = subprocess.run([*command, "example"], capture_output=True, check=True)
    assert done.stdout.decode() == reference.example()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
