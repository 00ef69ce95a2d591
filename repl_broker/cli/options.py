"""Options that several commands share, and how they read their values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import click

from repl_broker.config import UNITS, RefusedError, is_http_url, is_ip_address, keys, load
from repl_broker.errors import ConfigError
from repl_broker.masking import without_login

__all__ = [
    "KeyType",
    "SecondsType",
    "apart_option",
    "config_option",
    "data_dir_of",
    "data_dir_option",
    "given_token",
    "json_option",
    "plain_token",
    "token_options",
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
            self.fail(
                f"wanted http://HOST:PORT or https://HOST:PORT, found {shown_url(text)!r}"
                f"{url_hint(text)}", param, ctx,
            )  # fmt: skip
        return text.rstrip("/")


def shown_url(text: str) -> str:
    """Without what may be secret in it."""
    return re.sub(r"[?#].*", "?…", without_login(text), flags=re.DOTALL)


def url_hint(text: str) -> str:
    """What was probably meant."""
    scheme, there, rest = text.partition("://")
    if not there:
        return f"; for instance http://{text}" if re.fullmatch(r"[\w.-]+(:\d+)?", text) else ""
    if "@" in rest:
        return "; a name and a password do not go into it: see --token and --token-file"
    host, _, port = rest.rstrip("/").rpartition(":")
    if ":" in host and is_ip_address(host):
        return f"; an IPv6 address stands in brackets: {scheme}://[{host}]:{port}"
    return ""


def url_option(command: F) -> F:
    """``--url``: which node to talk to; and by which token, which ``given_token`` has."""
    return token_options(_url_option(command))


def token_options(command: F) -> F:
    """``--token`` and ``--token-file``, which ``given_token`` has."""
    return _token_file_option(_token_option(command))


def given_token() -> Callable[[], str]:
    """What gives the token of the command under way, or ""; a file is read each time."""
    meta = click.get_current_context().meta
    token, file = meta.get(TOKEN), meta.get(TOKEN_FILE)
    if token is None and file is not None:
        return lambda: read_token(file)
    return lambda: token or ""


TOKEN_FILE_BYTES_MAX: Final = 64 << 10


def read_token(file: Path) -> str:
    """The token in a file. Raises ConfigError, without what is in it."""
    try:
        with file.open("rb") as opened:
            data = opened.read(TOKEN_FILE_BYTES_MAX + 1)
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("it is UTF-16; save it as ASCII or UTF-8")
        if len(data) > TOKEN_FILE_BYTES_MAX:
            raise ValueError(f"it has more than {TOKEN_FILE_BYTES_MAX} bytes")
        token = plain_token(data.decode("utf-8", "replace"))
        if not token:
            raise ValueError("it is empty")
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ConfigError(f"cannot read the token in {file}: {reason}") from None
    return token


def plain_token(text: str) -> str:
    """The token alone, of what was copied with more around it: a byte order mark, line breaks,
    quotes, the word Bearer. Raises ValueError for what is none, and does not say what it was."""
    found = text.removeprefix("\ufeff").strip()
    found = re.sub(r"""^(["'])(.*)\1$""", r"\2", found, flags=re.DOTALL).strip()
    found = re.sub(r"(?i)^(authorization:\s*)?bearer(\s+|$)", "", found)
    if not found.isascii():
        raise ValueError("it is not ASCII, and a token is")
    if re.search(r"\s", found):
        raise ValueError("it has a space or a line break within it, and a token has none")
    if not found.isprintable():
        raise ValueError("it has a control character within it, and a token has none")
    return found


def _keep(name: str) -> Callable[[click.Context, click.Parameter, object], None]:
    def keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if name == TOKEN and isinstance(value, str):
            try:
                value = plain_token(value) or None
            except ValueError as error:
                raise click.BadParameter(f"this is not a token: {error}", ctx, param) from None
        ctx.meta[name] = value

    return keep


class SecondsType(AnyType):
    """A time: a number of seconds, or with a unit as in the configuration; a float."""

    name = "time"

    def __init__(self, minimum: float = 0.0, maximum: float = math.inf) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        units = UNITS["seconds"]
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]*)", str(value).strip())
        if match is None or (match[2] or "s") not in units:
            known = ", ".join(units)
            self.fail(
                f"wanted a number of seconds, or with a unit ({known}), such as 90 or 1.5m; found "
                f"{str(value)!r}", param, ctx,
            )  # fmt: skip
        seconds = float(Decimal(match[1]) * units[match[2] or "s"])
        if not self.minimum <= seconds <= self.maximum:
            most = "" if self.maximum == math.inf else f" to {self.maximum:g}"
            least = f"{self.minimum:g}{most or ' or more'}"
            self.fail(f"must be {least} seconds, found {seconds:g}", param, ctx)
        return seconds


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


def apart_option(command: F) -> F:
    return click.option(
        "--apart",
        is_flag=True,
        help="Serve, even where nodes of the cluster that it comes from still run.",
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
