"""The units: what systemd makes of them, and how they get to where it looks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from repl_broker.cli import main
from repl_broker.cli.systemd import PROGRAM, unit_texts
from repl_broker.config import load
from tests.required import need_program

EXAMPLES = Path(__file__).parents[2] / "examples" / "systemd"
UNITS = unit_texts(PROGRAM)
SERVICES = [name for name in UNITS if name.endswith(".service")]
EXPOSURE_MAX = 1.0  # of 10, by systemd's own count


def install(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["systemd", "install", *arguments])


def written(folder: Path) -> Path:
    """The units, with a program that every host has."""
    for name, text in unit_texts("/bin/true").items():
        (folder / name).write_text(text)
    return folder


# --- what systemd makes of them ---


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    analyze = need_program("systemd-analyze")
    command = [analyze, "verify", "--recursive-errors=no", "--man=no"]
    command += [str(path) for path in sorted(written(tmp_path).iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_line_that_systemd_does_not_know_would_be_noticed(tmp_path: Path) -> None:
    analyze = need_program("systemd-analyze")
    unit = written(tmp_path) / "repl-broker.service"
    unit.write_text(unit.read_text().replace("PrivateMounts=", "PrivateMonts="))
    command = [analyze, "verify", "--recursive-errors=no", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "PrivateMonts" in done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_the_sandbox_leaves_little_exposed(name: str, tmp_path: Path) -> None:
    analyze = need_program("systemd-analyze")
    unit = written(tmp_path) / name
    if "@" in name:
        unit = unit.rename(tmp_path / name.replace("@", "@n1"))
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= EXPOSURE_MAX


# --- what they say ---


@pytest.mark.parametrize("name", UNITS)
def test_the_examples_are_what_is_installed(name: str) -> None:
    remedy = "run: repl-broker systemd install --write --force --directory examples/systemd"
    assert (EXAMPLES / name).read_text() == UNITS[name], f"{remedy} --program {PROGRAM}"


@pytest.mark.parametrize("name", [name for name in UNITS if "@" in name])
def test_an_instance_has_everything_of_its_own(name: str) -> None:
    text = UNITS[name]
    settings = [line for line in text.splitlines() if line and line[0] not in "#["]
    for line in settings:
        key, _, value = line.partition("=")
        if key in ("User", "StateDirectory", "Environment", "EnvironmentFile", "Description"):
            assert value.count("%i") == len(value.split()) or key == "Description", line
            assert "%i" in value, line
        if key == "ExecStart":
            assert all("%i" in word for word in value.split() if word.startswith(("%S", "/etc")))


def test_every_service_of_a_node_has_a_backup_with_a_timer_which_finds_its_folder() -> None:
    nodes = [name for name in SERVICES if "-backup" not in name]
    assert len(nodes) == 2
    for name in nodes:
        backup = name.replace("repl-broker", "repl-broker-backup", 1)
        assert backup in UNITS
        assert backup.replace(".service", ".timer") in UNITS
        (data_dir,) = re.findall(r"DATA_DIR=(\S+)", UNITS[name])
        (saved_dir,) = re.findall(r"backup --data-dir (\S+)", UNITS[backup])
        (user, of_backup) = (re.findall(r"^User=(\S+)", UNITS[n], re.M) for n in (name, backup))
        assert (saved_dir, of_backup) == (data_dir, user)


@pytest.mark.parametrize("name", ["repl-broker.service", "repl-broker@.service"])
def test_the_variable_of_the_unit_is_a_key(name: str) -> None:
    (line,) = [line for line in UNITS[name].splitlines() if line.startswith("Environment=")]
    variable, _, value = line.removeprefix("Environment=").partition("=")
    assert load(environ={variable: value}).node.data_dir == Path(value)


# --- putting them there ---


def test_without_an_order_they_are_only_printed(tmp_path: Path) -> None:
    for mode in ([], ["--dry-run"]):
        done = install(*mode, "--directory", str(tmp_path), "--program", "/opt/x/bin/repl-broker")
        assert done.exit_code == 0
        assert f"# --- {tmp_path}/repl-broker@.service ---" in done.output
        assert "ExecStart=/opt/x/bin/repl-broker serve" in done.output
        assert PROGRAM not in done.output
    assert list(tmp_path.iterdir()) == []


def test_they_are_written_once_and_what_comes_next_is_said(tmp_path: Path) -> None:
    command = ("--write", "--directory", str(tmp_path), "--program", PROGRAM)
    first = install(*command)
    assert first.exit_code == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == UNITS
    assert "systemctl enable --now repl-broker" in first.output
    again = install(*command)
    assert again.exit_code == 0
    assert again.output.count("is there") == len(UNITS)


def test_a_unit_that_was_changed_is_left_alone(tmp_path: Path) -> None:
    changed = tmp_path / "repl-broker.socket"
    changed.write_text("mine")
    command = ("--write", "--directory", str(tmp_path), "--program", PROGRAM)
    refused = install(*command)
    assert refused.exit_code == 1
    assert "repl-broker.socket with other contents; nothing was written" in refused.output
    assert [*tmp_path.iterdir()] == [changed]
    assert install(*command, "--force").exit_code == 0
    assert changed.read_text() == UNITS["repl-broker.socket"]


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    done = install("--write", "--directory", str(gone), "--program", PROGRAM)
    assert done.exit_code == 1
    assert f"cannot write {gone}" in done.output


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/home/ada/.local/bin/repl-broker", "/home is hidden from it"),
        ("/root/.local/bin/repl-broker", "/root is hidden from it"),
        ("bin/repl-broker", "wanted an absolute path"),
        ("/opt/my apps/repl-broker", "wanted an absolute path"),
        ("/opt/%i/repl-broker", "wanted an absolute path"),
        ("/opt/a\nUser=root", "wanted an absolute path"),
    ],
)
def test_a_program_that_the_service_could_not_start_is_refused(program: str, words: str) -> None:
    done = install("--program", program)
    assert done.exit_code == 1
    assert words in done.output


def test_the_default_is_the_program_of_this_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    assert "ExecStart=/opt/venv/bin/repl-broker serve" in install().output
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    assert "say with --program" in install().output


GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "run-as-a-service.md"


@pytest.mark.parametrize("name", [n for n in SERVICES if "backup" not in n])
def test_the_units_hand_over_what_the_guide_lists(name: str) -> None:
    file, key = r"`(repl-broker\.\S+)`", r"`\"\$\{CREDENTIALS_DIRECTORY\}/(\S+)\"`"
    row = re.compile(rf"^\| {file} \| {key} \|$", re.M)
    listed = {(name, source) for source, name in row.findall(GUIDE.read_text())}
    handed = set(re.findall(r"^LoadCredential=(\S+):(\S+)$", UNITS[name], re.M))
    assert listed == handed
    assert len(handed) == 6


def test_systemd_takes_the_group_by_which_the_guide_has_the_service_read_files(
    tmp_path: Path,
) -> None:
    analyze = need_program("systemd-analyze")
    unit = written(tmp_path) / "repl-broker.service"
    (line,) = set(re.findall(r"\[Service\], (SupplementaryGroups=\S+)", GUIDE.read_text()))
    unit.write_text(unit.read_text().replace("DynamicUser=yes", f"DynamicUser=yes\n{line}"))
    command = [analyze, "verify", "--recursive-errors=no", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
