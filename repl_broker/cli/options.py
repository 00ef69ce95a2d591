"""Options that several commands share, and how they read their values."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import click

from repl_broker.config import RefusedError, is_http_url, keys, load
from repl_broker.errors import ConfigError

__all__ = [
    "KeyType",
    "config_option",
    "data_dir_of",
    "data_dir_option",
    "given_token",
    "json_option",
    "url_option",
]

DEFAULT_URL: Final = "http://127.0.0.1:4080"
TOKEN: Final = "repl_broker.token"  # noqa: S105  where click keeps it
TOKEN_FILE: Final = "repl_broker.token_file"  # noqa: S105

if TYPE_CHECKING:
    AnyType = click.ParamType[object]
    TextType = click.ParamType[str]
else:  # click before 8.3 has no type parameter here
    AnyType = TextType = click.ParamType

F = TypeVar("F", bound=Callable[..., object])


class KeyType(AnyType):
    """A value that is read and checked as the configuration key of this name is."""

    def __init__(self, name: str, metavar: str) -> None:
        self.kind = keys()[name].kind
        self.name = metavar

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self.kind.read_text(value)
        except RefusedError as error:
            self.fail(str(error), param, ctx)


class UrlType(TextType):
    """The URL of a node."""

    name = "url"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        text = str(value)
        if not is_http_url(text) or urlsplit(text).port == 0:
            self.fail(f"wanted http://HOST:PORT or https://HOST:PORT, found {text!r}", param, ctx)
        return text.rstrip("/")


def url_option(command: F) -> F:
    """``--url``: which node to talk to; and by which token, which ``given_token`` has."""
    for option in (_url_option, _token_option, _token_file_option):
        command = option(command)
    return command


def given_token() -> Callable[[], str]:
    """What gives the token of the command under way, or ""; a file is read each time."""
    meta = click.get_current_context().meta
    token, file = meta.get(TOKEN), meta.get(TOKEN_FILE)
    if token is None and file is not None:
        return lambda: read_token(file)
    return lambda: token or ""


def read_token(file: Path) -> str:
    """The token in a file. Raises ConfigError."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise ConfigError(f"cannot read the token in {file}: {reason}") from None


def _keep(name: str) -> Callable[[click.Context, click.Parameter, object], None]:
    def keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if name == TOKEN and isinstance(value, str) and not value.isascii():
            raise click.BadParameter("a token is ASCII", ctx, param)
        ctx.meta[name] = value

    return keep


def _token_option(command: F) -> F:
    return click.option(
        "--token",
        metavar="TOKEN",
        envvar="REPL_BROKER_TOKEN",
        show_envvar=True,
        expose_value=False,
        callback=_keep(TOKEN),
        help="The token to send. Other users of this machine can see what a command line says: "
        "better use the variable or --token-file.",
    )(command)


def _token_file_option(command: F) -> F:
    return click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar="REPL_BROKER_TOKEN_FILE",
        show_envvar=True,
        expose_value=False,
        callback=_keep(TOKEN_FILE),
        help="A file with the token to send, read for each request; --token beats it.",
    )(command)


def _url_option(command: F) -> F:
    return click.option(
        "--url",
        type=UrlType(),
        metavar="URL",
        default=DEFAULT_URL,
        show_default=True,
        envvar="REPL_BROKER_URL",
        show_envvar=True,
        help="The node to talk to; any node of a cluster will do.",
    )(command)


def json_option(command: F) -> F:
    """``--json``: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON lines, for programs.")(
        command
    )


def config_option(command: F) -> F:
    """``--config``: the node's file."""
    return click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar="REPL_BROKER_CONFIG",
        show_envvar=True,
        help="The node's TOML file, for where its data directory is.",
    )(command)


def data_dir_option(command: F) -> F:
    """``--data-dir``: beats the file."""
    return click.option(
        "--data-dir",
        type=KeyType("node.data_dir", "directory"),
        help="The node's data directory.",
    )(command)


def data_dir_of(file: Path | None, given: Path | None) -> Path:
    """Where a node with this file, or with these options, has its data."""
    if given is not None:
        return given
    return load(file, environ=os.environ, needs_credentials=False).node.data_dir
