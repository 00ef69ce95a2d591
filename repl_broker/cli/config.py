"""``repl-broker config``: check a configuration file before a node is started with it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from repl_broker.cli.options import json_option
from repl_broker.config import (
    AuthConfig,
    Config,
    InvalidConfigError,
    exposed,
    is_credential,
    load,
)
from repl_broker.doubts import doubts
from repl_broker.errors import ConfigError
from repl_broker.masking import masked
from repl_broker.memory import MiB, memory_bytes
from repl_broker.secret_lines import counted

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
    readable, and secrets, key sets and certificates be such that a node can use them.
    It also prints how many secrets each file of them holds, and how much memory the
    limits of FILE come to.
    Warnings are printed, too; they leave the exit code 0.
    """
    problems, warnings, secrets = verdict_on(file)
    if as_json:
        found = {
            "file": str(file),
            "problems": problems,
            "warnings": warnings,
            "secrets": secrets,
            "memory_bytes": None if problems else memory_bytes(load(file)),
        }
        click.echo(masked(json.dumps(found, ensure_ascii=False)))
    else:
        for problem in problems:
            click.echo(masked(f"error: {problem}"), err=True)
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
        if not problems:
            click.echo(f"{file}: no problems")
            for key, count in secrets.items():
                click.echo(f"{key}: {counted(count)}")
            mebibytes = memory_bytes(load(file)) / MiB
            click.echo(f"memory: at most {mebibytes:,.0f} MiB, and what topics and messages take")
    ctx.exit(1 if problems else 0)


def verdict_on(file: Path) -> tuple[list[str], list[str], dict[str, int]]:
    """Problems, warnings, and how many secrets the files hold, by their keys."""
    from repl_broker import certificates  # with Trio

    try:
        config = load(file)
    except InvalidConfigError as error:
        return [*error.problems], [], {}
    except ConfigError as error:
        return [str(error)], [], {}
    problems, warnings = certificates.examine(config)
    warnings += [*exposed(config), *doubts(config)]
    secrets: dict[str, int] = {}
    for each in (check_tokens, check_secret):
        try:
            warnings += each(config, secrets)
        except ConfigError as error:
            problems.append(str(error))
    return problems, warnings, secrets


def check_tokens(config: Config, secrets: dict[str, int]) -> list[str]:
    """Warnings; how many secrets there are goes to ``secrets``."""
    from repl_broker.tokens import Verifier, read_secrets

    auth = config.auth
    if auth.mode != "jwt" or any(map(is_credential, files_of(auth))):
        return []
    notes = [*Verifier(auth).notes]
    if auth.secret_file is not None:
        secrets["auth.secret_file"] = len(read_secrets(auth.secret_file))
    return notes


def check_secret(config: Config, secrets: dict[str, int]) -> list[str]:
    from repl_broker.cluster_secret import read_secrets

    file = config.cluster.secret_file
    if file is not None and not is_credential(file):
        secrets["cluster.secret_file"] = len(read_secrets(config))
    return []


def files_of(auth: AuthConfig) -> list[Path | None]:
    return [auth.secret_file, auth.jwks_file]
