"""``repl-broker version``."""

from __future__ import annotations

import json

import click

from repl_broker import __version__
from repl_broker.cli.options import json_option

__all__ = ["version"]


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version."""
    click.echo(json.dumps({"version": __version__}) if as_json else f"repl-broker {__version__}")
