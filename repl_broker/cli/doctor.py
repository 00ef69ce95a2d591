"""``repl-broker doctor``: what stands between a URL and its users."""

from __future__ import annotations

import json
import sys
from typing import Final

import click

from repl_broker.cli.options import (
    SecondsType,
    UrlType,
    given_token,
    json_option,
    token_options,
)

__all__ = ["doctor"]

DEFAULT_URL: Final = "http://127.0.0.1:4080"
COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "red", "untested": "cyan"}
TITLES: Final = {"untested": "not seen"}


@click.command()
@click.argument(
    "url", type=UrlType(), default=DEFAULT_URL, envvar="REPL_BROKER_URL", metavar="[URL]"
)
@click.option(
    "--topic",
    default="_doctor",
    show_default=True,
    metavar="TOPIC",
    help="Where the canaries go. If the token allows it, _doctor is created so that it is deleted "
    "after an hour without messages; in another topic they stay until its retention removes them.",
)
@token_options
@click.option(
    "--origin",
    metavar="ORIGIN",
    help="Also look whether web pages of this origin, such as https://app.example, may read and "
    "publish (CORS).",
)
@click.option(
    "--idle",
    type=SecondsType(0, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to leave a stream in silence. 30 sees a heartbeat, which comes every 15 s, and "
    "finds time-outs that are shorter.",
)
@click.option(
    "--patience",
    type=SecondsType(0.1, 300),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each answer and each event.",
)
@json_option
def doctor(
    url: str,
    topic: str,
    origin: str | None,
    idle: float,
    patience: float,
    as_json: bool,
) -> None:
    """Find out what stands in the way between URL and its users.

    Give the URL that pages and backends use, with every proxy in between. This opens a
    stream, publishes canaries, and sees whether they arrive, at once and in order; and
    it looks at names, certificates, HTTP/2, buffering, compression, time-outs, CORS,
    clocks, the disk, file descriptors and the cluster.

    With a problem the exit code is 1; with warnings alone it is 0. With --json each
    line has "check", "verdict" (ok, warning, problem or untested), "found" and "remedy".
    """
    import trio

    from repl_broker.cli.examination import Examination, Orders
    from repl_broker.cli.findings import Finding
    from repl_broker.message import check_topic

    check_topic(topic)
    if origin is not None and not (origin.isascii() and origin.isprintable()):
        raise click.UsageError("--origin takes a value such as https://app.example")
    verdicts: list[str] = []

    def tell(finding: Finding) -> None:
        verdicts.append(finding.verdict)
        click.echo(json.dumps(finding._asdict()) if as_json else shown(finding))

    orders = Orders(url, topic, given_token()() or None, origin, idle, patience)
    trio.run(Examination(orders, tell).run)
    if not as_json:
        click.echo(summary(verdicts))
    if "problem" in verdicts:
        sys.exit(1)


def shown(finding: object) -> str:
    """A finding for people; what servers say cannot steer the terminal."""
    from repl_broker.cli.findings import Finding
    from repl_broker.cli.human import printable

    assert isinstance(finding, Finding)
    title = TITLES.get(finding.verdict, finding.verdict)
    styled = click.style(f"{title:<9}", fg=COLOURS[finding.verdict])
    line = f"{styled}{finding.check:<16}{printable(finding.found)}"
    if finding.remedy:
        line += f"\n{'':<25}→ {printable(finding.remedy)}"
    return line


def summary(verdicts: list[str]) -> str:
    problems, warnings = verdicts.count("problem"), verdicts.count("warning")
    if not problems and not warnings:
        return "Nothing stands in the way."
    return f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}."


def counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
