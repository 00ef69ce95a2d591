"""Writes what users look up, from the code itself.

    python -m repl_broker.cli.reference command-line > docs/reference/command-line.md
    python -m repl_broker.cli.reference configuration > docs/reference/configuration.md
    python -m repl_broker.cli.reference example > cluster.toml.example

A test compares the files with what this writes today.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from repl_broker.cli import main
from repl_broker.config import (
    DAY,
    HOUR,
    UNITS,
    Address,
    GiB,
    Key,
    KiB,
    MiB,
    Whole,
    sections,
)
from repl_broker.reload import is_live

__all__ = ["command_line", "configuration", "example"]

EXAMPLE_WIDTH: Final = 88


# TOML and words


def toml(value: object) -> str:
    """A default as it stands in a file."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return f"{value:_}" if value >= 10_000 else str(value)
        case str() | Path() | Address():
            return f'"{value}"'
        case tuple():
            return f"[{', '.join(map(toml, value))}]"
    raise AssertionError(value)


def in_words(value: int, unit: str) -> str:
    """``67108864`` bytes as ``64 MiB``; "" where the number says it as well."""
    names = {
        "bytes": ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")),
        "seconds": ((DAY, "d"), (HOUR, "h")),
    }
    for size, name in names.get(unit, ()):
        if value >= size and value % size == 0:
            return f"{value // size:,} {name}"
    return ""


def amount(value: int, unit: str) -> str:
    words = in_words(value, unit)
    return f"{value:,} ({words})" if words else f"{value:,}"


def values(key: Key) -> str:
    """What the key takes, with its unit and range."""
    kind = key.kind
    if isinstance(kind, Whole):
        least, most = amount(kind.minimum, kind.unit), amount(kind.maximum, kind.unit)
        return f"{kind.unit}, {least} to {most}"
    return kind.wanted


def default(key: Key) -> str:
    if key.default is None:
        return "none"
    text = toml(key.default)
    if isinstance(key.kind, Whole) and isinstance(key.default, int):
        words = in_words(key.default, key.kind.unit)
        return f"{text} ({words})" if words else text
    return text


# The three documents


def example() -> str:
    """``cluster.toml.example``."""
    lines = [
        "# The configuration of a repl-broker node, with every key. This file is the defaults:",
        "# keep what you change, leave out the rest. Check it before use:",
        "#",
        "#     repl-broker config check FILE",
        "#     repl-broker serve --config FILE",
        "#",
        "# The environment (REPL_BROKER_HTTP_BIND for [http] bind) beats this file, and options",
        "# of the command line beat both. Bytes and times may also be strings with a unit:",
        '# "64 MiB", "24h".',
        "#",
        "# On SIGHUP (systemctl reload repl-broker) a node reads it again, and applies the keys",
        '# that say so. A path may begin with "${CREDENTIALS_DIRECTORY}/" (systemd).',
        "#",
        "# Made by python -m repl_broker.cli.reference example",
    ]
    for section in sections():
        lines += ["", "", *comment(section.meaning), f"[{section.name}]"]
        for key in section.keys:
            own_name = key.name.rpartition(".")[2]
            lines += ["", *comment(key.meaning)]
            reload = " A reload applies it." if is_live(key.name) else ""
            lines += comment(f"{sentence(values(key))} Default: {default(key)}.{reload}")
            if key.default is None:
                lines.append(f"#{own_name} = {key.example}")
            else:
                lines.append(f"{own_name} = {toml(key.default)}")
    return "\n".join(lines) + "\n"


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        EXAMPLE_WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def configuration() -> str:
    """``docs/reference/configuration.md``."""
    bytes_units, time_units = (", ".join(f"`{u}`" for u in UNITS[n]) for n in ("bytes", "seconds"))
    lines = [
        "# Configuration",
        "",
        "<!-- Made by python -m repl_broker.cli.reference configuration -->",
        "",
        "A node takes its configuration from four places. Each beats the ones after it:",
        "",
        "1. options of [`repl-broker serve`](command-line.md#repl-broker-serve),",
        "2. environment variables, `REPL_BROKER_<SECTION>_<KEY>`,",
        "3. the TOML file that `--config` or `REPL_BROKER_CONFIG` names,",
        "4. the defaults below.",
        "",
        "`cluster.toml.example` has every key with its default. `repl-broker config check FILE`",
        "says all that is wrong with a file, one line a problem. An unknown key is an error, in",
        "the file and in the environment.",
        "",
        "A number of bytes or a time is an integer in the unit that the key names. It may also be",
        'a string with a unit, such as `"64 MiB"` or `"24h"`, if that comes to a whole number.',
        f"Units of bytes: {bytes_units}. Units of time: {time_units}.",
        "",
        "In the environment an array is separated by commas, and an empty variable counts as not",
        "set. Relative paths start at the working directory of the node. A path may begin with",
        "`${CREDENTIALS_DIRECTORY}/`: the folder with what systemd hands to the service alone",
        "(`LoadCredential=`).",
        "",
        "On SIGHUP (`systemctl reload repl-broker`) a node reads all four again. It applies the",
        "keys that say so below, and names in its log each one that it applied and each one that",
        "needs a restart. A configuration with problems changes nothing. Limits are for requests",
        "and connections that come from then on.",
    ]
    for section in sections():
        lines += ["", f"## `[{section.name}]`", "", section.meaning]
        for key in section.keys:
            lines += ["", f"### `{key.name}`", "", key.meaning, ""]
            lines += [f"- Values: {values(key)}", f"- Default: {code_default(key)}"]
            lines += [f"- Environment: `{key.variable}`"]
            if key.option:
                lines += [f"- Option: `{key.option}`"]
            if is_live(key.name):
                lines += ["- A reload applies it."]
    return "\n".join(lines) + "\n"


def code_default(key: Key) -> str:
    if key.default is None:
        return "none"
    text, space, words = (
        default(key).partition(" (")
        if isinstance(key.kind, Whole)
        else (
            default(key),
            "",
            "",
        )
    )
    return f"`{text}`{space}{words}"


def command_line() -> str:
    """``docs/reference/command-line.md``."""
    lines = [
        "# Command line",
        "",
        "<!-- Made by python -m repl_broker.cli.reference command-line -->",
        "",
        "Output is for people; with `--json` it is JSON lines. What goes wrong is one line on",
        "standard error, `error: …`; where a node refused, the line ends with its error code in",
        "brackets.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | refused or failed |",
        "| 2 | the command line is wrong |",
        "| 130 | interrupted with Ctrl-C |",
        "",
        "Behind a proxy or with a private certificate authority, the usual variables apply to",
        "the commands that talk to a node: `HTTPS_PROXY`, `NO_PROXY`, and `SSL_CERT_FILE` or",
        "`SSL_CERT_DIR`, whose authorities are trusted in place of the public ones. They apply",
        "to a node on this machine (`localhost`, `127.0.0.1`, `::1`) as well; it is never",
        "reached through a proxy.",
    ]
    for path, command in walk(main, ["repl-broker"]):
        lines += ["", *describe(path, command)]
    return "\n".join(lines) + "\n"


def walk(
    command: click.Command, path: Sequence[str]
) -> Iterator[tuple[Sequence[str], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from walk(command.commands[name], [*path, name])


def describe(path: Sequence[str], command: click.Command) -> Iterator[str]:
    name = " ".join(path)
    context = click.Context(command, info_name=name)
    yield f"## `{name}`"
    yield ""
    yield "```"
    yield f"{name} {' '.join(command.collect_usage_pieces(context))}"
    yield "```"
    yield ""
    yield inspect.cleandoc(command.help or "")
    if isinstance(command, click.Group):
        yield ""
        yield from (
            f"- `{name} {each}`: {short(command.commands[each])}"
            for each in sorted(command.commands)
        )
    options = [each for each in command.params if isinstance(each, click.Option)]
    if options:
        yield ""
        yield from map(option, options)


def short(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").partition("\n")[0]


def option(each: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*each.opts, *each.secondary_opts))
    if isinstance(each.type, click.Choice):
        names += f" `{'|'.join(map(str, each.type.choices))}`"
    elif not each.is_flag:
        names += f" `{each.metavar or each.type.name.upper()}`"
    facts = []
    if each.required:
        facts.append("required")
    if each.multiple:
        facts.append("may be repeated")
    if each.show_default:
        facts.append(f"default `{each.default}`")
    if each.envvar:
        facts.append(f"environment `{each.envvar}`")
    text = f"- {names}: {each.help}"
    return f"{text} ({'; '.join(facts)})" if facts else text


DOCUMENTS: Final[dict[str, Callable[[], str]]] = {
    "command-line": command_line,
    "configuration": configuration,
    "example": example,
}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in DOCUMENTS:
        sys.exit(f"usage: python -m repl_broker.cli.reference {'|'.join(DOCUMENTS)}")
    sys.stdout.write(DOCUMENTS[sys.argv[1]]())
