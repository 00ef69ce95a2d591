"""``repl-broker config``: check a configuration file before a node is started with it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from repl_broker.cli.options import json_option
from repl_broker.config import InvalidConfigError, load
from repl_broker.errors import ConfigError

__all__ = ["config"]


@click.group()
def config() -> None:
    """Work with configuration files."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def check(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Check FILE, and print every problem of it, one a line.

    Only the file is looked at, not the environment. Files that it names must be
    readable, and certificates be such that a node can use them.
    """
    problems = problems_of(file)
    if as_json:
        click.echo(json.dumps({"file": str(file), "problems": problems}, ensure_ascii=False))
    elif not problems:
        click.echo(f"{file}: no problems")
    else:
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
    ctx.exit(1 if problems else 0)


def problems_of(file: Path) -> list[str]:
    from repl_broker import certificates  # with Trio

    try:
        return certificates.problems(load(file))
    except InvalidConfigError as error:
        return [*error.problems]
    except ConfigError as error:
        return [str(error)]
