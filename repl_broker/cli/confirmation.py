"""What cannot be undone is asked about first: on the terminal, whatever the output goes to."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

__all__ = ["asked", "confirm"]


def confirm(question: Callable[[], str]) -> None:
    """Ask before what cannot be undone; raises UsageError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise click.UsageError(
            "this cannot be undone, so it must be confirmed, and the input is not a terminal; "
            "give --yes"
        )
    if asked(f"{question()} [y/N]: ").lower() not in ("y", "yes"):
        raise click.Abort


def asked(question: str) -> str:
    """The line that is answered; raises UsageError if there is none.

    The question goes to standard error: the output may be a pipe or a file, which nobody sees.
    """
    click.echo(question, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        click.echo(err=True)
        raise click.UsageError("nothing was answered; give --yes to go on without being asked")
    return line.strip()
