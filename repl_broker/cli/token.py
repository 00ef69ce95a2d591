"""``repl-broker token``: make tokens, and revoke them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click

from repl_broker.cli.options import AnyType, TextType, given_token, json_option, url_option
from repl_broker.config import FILTER, Whole, load
from repl_broker.errors import ConfigError
from repl_broker.masking import masked

__all__ = ["token"]

EXPIRES = Whole("seconds", 1, 3650 * 86_400)


@click.group()
def token() -> None:
    """Make tokens for a node with [auth] mode = "jwt", and revoke them."""


class FilterType(TextType):
    """A topic, or a pattern."""

    name = "filter"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        text = str(value)
        if not FILTER.accepts(text):
            self.fail(f"wanted {FILTER.wanted}, found {text!r}", param, ctx)
        return text


class SecondsType(AnyType):
    """A time, as in the configuration."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        try:
            return EXPIRES.read_text(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@token.command()
@click.option(
    "--publish",
    multiple=True,
    type=FilterType(),
    help="It may publish to topics that match this, as in 'orders.>'; may be repeated.",
)
@click.option(
    "--subscribe",
    multiple=True,
    type=FilterType(),
    help="It may read topics that match this; may be repeated.",
)
@click.option("--admin", is_flag=True, help="It may do everything.")
@click.option(
    "--sub",
    metavar="NAME",
    help="Whose it is; by this name it can be revoked.",
)
@click.option(
    "--expires",
    type=SecondsType(),
    default="1h",
    show_default=True,
    help="How long it is valid: seconds, or with a unit.",
)
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The secret to sign it by; beats that of the node's file.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="REPL_BROKER_CONFIG",
    show_envvar=True,
    help="The node's TOML file, for its secret_file, audience and issuer.",
)
@click.option("--audience", metavar="TEXT", help="The claim aud; beats that of the node's file.")
@click.option("--issuer", metavar="TEXT", help="The claim iss; beats that of the node's file.")
@json_option
def create(
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    admin: bool,
    sub: str | None,
    expires: int,
    secret_file: Path | None,
    file: Path | None,
    audience: str | None,
    issuer: str | None,
    as_json: bool,
) -> None:
    """Print a token, signed (HS256) by the secret of the node.

    No node is asked. Tokens by RS256, ES256 or EdDSA are made by whoever has the
    private key.
    """
    from repl_broker import tokens
    from repl_broker.message import FILTERS_MAX

    auth = load(file, environ=os.environ).auth
    if sub is not None and not tokens.is_subject(sub):
        raise click.BadParameter(f"wanted {tokens.SUBJECT}", param_hint="'--sub'")
    secret_file = secret_file or auth.secret_file
    if secret_file is None:
        raise ConfigError("there is no secret to sign by: give --secret-file, or --config")
    if max(len(publish), len(subscribe)) > FILTERS_MAX:
        raise click.UsageError(f"A token has at most {FILTERS_MAX} filters of a kind.")
    if file is not None and expires > auth.token_seconds_max:
        raise click.UsageError(
            f"--expires is {expires} seconds; the node takes {auth.token_seconds_max} "
            "(auth.token_seconds_max)."
        )
    secret = tokens.read_secrets(secret_file)[0]
    if not (publish or subscribe or admin or auth.anonymous.publish or auth.anonymous.subscribe):
        raise click.UsageError(
            "The token would allow nothing: give it --publish or --subscribe filters, or --admin."
        )
    now = time.time()
    made = tokens.create(
        secret,
        now=now,
        seconds=expires,
        publish=publish,
        subscribe=subscribe,
        admin=admin,
        subject=sub,
        audience=audience or auth.audience,
        issuer=issuer or auth.issuer,
    )
    click.echo(json.dumps({"token": made, "expires_at": int(now) + expires}) if as_json else made)


@token.command()
@click.argument("sub")
@url_option
@json_option
def revoke(sub: str, url: str, as_json: bool) -> None:
    """Refuse the tokens of SUB that were issued before now, and end its streams.

    That holds on every node of the cluster. Tokens that are issued from the next second on
    are valid.
    """
    from repl_broker.cli.client import Client, segment
    from repl_broker.tokens import SUBJECT, is_subject

    if masked(sub) != sub:
        raise click.UsageError("SUB is a token's claim sub, such as ann, and not the token.")
    if not is_subject(sub):
        raise click.UsageError(f"No token has this sub: wanted {SUBJECT}.")
    with Client(url, token=given_token()) as client:
        client.call("DELETE", f"/v1/tokens/{segment(sub)}")
    click.echo(json.dumps({"revoked": sub}) if as_json else f"revoked the tokens of {sub}")
