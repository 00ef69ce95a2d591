"""``repl-broker systemd``: units for this installation."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import click

from repl_broker.errors import ConfigError

__all__ = ["systemd", "unit_texts"]

FOLDER: Final = Path("/etc/systemd/system")
PROGRAM: Final = "/opt/repl-broker/bin/repl-broker"  # what the units say
CREDENTIALS: Final = Path("/etc/credstore")
MADE: Final = ("repl-broker.service", "repl-broker.socket")
MADE_FOR_BACKUP: Final = ("repl-broker-backup.service", "repl-broker-backup.timer")
# What differs where there are several nodes on a host, by the unit of one.
OF_INSTANCES: Final = {
    "repl-broker.service": (
        ("Description=repl-broker,", "Description=repl-broker %i,"),
        ("/etc/repl-broker/options", "/etc/repl-broker/%i.options"),
        ("/etc/repl-broker/repl-broker.toml", "/etc/repl-broker/%i.toml"),
        ("DATA_DIR=%S/repl-broker", "DATA_DIR=%S/repl-broker-%i"),
        ("StateDirectory=repl-broker", "StateDirectory=repl-broker-%i"),
        ("User=repl-broker", "User=repl-broker-%i"),
        ("/var/lib/repl-broker.", "/var/lib/repl-broker-%i."),
        ("The same file on every host", "The same file for every node"),
    ),
    "repl-broker-backup.service": (
        ("the node of this host", "the node %i"),
        ("/var/lib/repl-broker-backup.\n", "/var/lib/repl-broker-backup-%i.\n"),
        ("repl-broker-backup.timer", "repl-broker-backup@.timer"),
        ("Description=Back up repl-broker", "Description=Back up repl-broker %i"),
        ("--data-dir %S/repl-broker ", "--data-dir %S/repl-broker-%i "),
        ("%S/repl-broker-backup/", "%S/repl-broker-backup-%i/"),
        ("User=repl-broker", "User=repl-broker-%i"),
        (
            "StateDirectory=repl-broker repl-broker-backup",
            "StateDirectory=repl-broker-%i repl-broker-backup-%i",
        ),
    ),
    "repl-broker-backup.timer": (
        ("Description=Back up repl-broker", "Description=Back up repl-broker %i"),
    ),
}
# systemd gives a meaning to other characters in ExecStart=.
PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9/._+-]+")
# What ProtectHome= and PrivateTmp= hide from the service.
HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  # nosec B108


@click.group()
def systemd() -> None:
    """Run a node as a service of systemd."""


@systemd.command()
@click.option("--dry-run", "mode", flag_value="dry-run", help="Print the units. The default.")
@click.option("--write", "mode", flag_value="write", help="Write the units.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default=True,
    help="Where to write them.",
)
@click.option(
    "--program",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The repl-broker that they start. Default: the one that runs now.",
)
@click.option("--force", is_flag=True, help="Replace units that were changed by hand.")
def install(mode: str | None, directory: Path, program: Path | None, force: bool) -> None:
    """Print or write the units of a node, for the program where it is installed.

    They are repl-broker.service and repl-broker@.service (the node of /etc/repl-broker/NAME.toml),
    repl-broker.socket (systemd listens for HTTP; optional), and for each of the two services a
    backup with its timer. Nothing is enabled or started. A unit that is there and differs is left
    alone, and so are all the others then, unless --force is given. To change one of them for good,
    use "systemctl edit": its changes are kept elsewhere.
    """
    texts = unit_texts(checked(program or this_program()))
    if mode == "write":
        write(texts, directory, force=force)
        return
    for name, text in texts.items():
        click.echo(f"# --- {directory / name} ---\n\n{text}")


def unit_texts(program: str) -> dict[str, str]:
    """Every unit by its file name."""
    shipped = files("repl_broker") / "units"
    texts = {
        name: (shipped / name).read_text().replace(PROGRAM, program)
        for name in (*MADE, *MADE_FOR_BACKUP)
    }
    return texts | {
        name.replace(".", "@.", 1): for_instances(texts[name], changes)
        for name, changes in OF_INSTANCES.items()
    }


def for_instances(text: str, changes: Sequence[tuple[str, str]]) -> str:
    """The unit of one of several nodes on a host, or of one with a name: NAME.toml is its file."""
    for one, instance in changes:
        assert text.count(one) == 1, f"the unit says {one} once"
        text = text.replace(one, instance)
    return text


def this_program() -> Path:
    """Where the command of this installation is."""
    program = Path(sys.executable).with_name("repl-broker")
    if not program.is_file():
        raise ConfigError(f"there is no {program}; say with --program which one the units start")
    return program


def checked(program: Path) -> str:
    text = str(program)
    if PLAIN_PATH.fullmatch(text) is None:
        raise ConfigError(
            f"a unit cannot start {text!r}: wanted an absolute path of letters, digits and ._+-/; "
            "install it at such a path, for instance in /opt/repl-broker"
        )
    if hidden := next((each for each in HIDDEN if text.startswith(f"{each}/")), None):
        raise ConfigError(
            f"the service does not see {text}: {hidden} is hidden from it; install it elsewhere, "
            "for instance in /opt/repl-broker (python3 -m venv /opt/repl-broker)"
        )
    return text


def write(texts: dict[str, str], directory: Path, *, force: bool) -> None:
    there = {name: path.read_text() for name in texts if (path := directory / name).exists()}
    changed = [name for name, text in there.items() if text != texts[name]]
    if changed and not force:
        raise ConfigError(
            f"{directory} has {', '.join(changed)} with other contents; nothing was written. Put "
            'changes of yours into "systemctl edit", and give --force'
        )
    try:
        for name, text in texts.items():
            is_there = there.get(name) == text
            if not is_there:
                write_unit(directory / name, text)
            click.echo(f"{'is there' if is_there else 'written '}  {directory / name}")
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from None
    click.echo(NEXT)


def write_unit(path: Path, text: str) -> None:
    """For everyone to read, and for its owner alone to change, whatever the umask says: what is in
    it is started as root."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(descriptor, "w") as file:
        os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o644)
        file.write(text)


NEXT: Final = f"""
Next, as root:

  install -d -m 755 /etc/repl-broker           # repl-broker.toml goes there
  install -d -m 700 {CREDENTIALS}              # secrets, as repl-broker.cluster-secret
  systemctl daemon-reload
  systemctl enable --now repl-broker           # or repl-broker@NAME, for NAME.toml
  systemctl enable --now repl-broker-backup.timer   # every night; or -backup@NAME.timer"""
