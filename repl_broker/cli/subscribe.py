"""``repl-broker subscribe``: print messages as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing

import click

from repl_broker.cli.options import given_token, json_option, url_option

__all__ = ["subscribe"]


@click.command()
@click.argument("filters", nargs=-1, required=True, metavar="FILTER...")
@click.option(
    "--after",
    metavar="ID",
    help="Start after this event id, or with the history (earliest), or with what is published "
    "from now on (latest, the default).",
)
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="Stop after this many messages."
)
@url_option
@json_option
def subscribe(
    filters: tuple[str, ...], after: str | None, count: int | None, url: str, as_json: bool
) -> None:
    """Print the messages of all topics that match a FILTER, as they come.

    A FILTER is a topic, or a pattern: "*" stands for one part of a name, a last ">"
    for one or more, as in "orders.*.paid" or "logs.>".

    When the connection is lost this reconnects by itself and goes on where it was.
    Reconnects, gaps in the history and deleted topics are told on standard error.
    With --json each line is the message object, byte for byte.
    """
    from repl_broker.cli.client import Client
    from repl_broker.cli.follow import Follower
    from repl_broker.cli.human import Human
    from repl_broker.message import FilterSet

    FilterSet(filters)
    show: Callable[[bytes], bytes] = as_it_is if as_json else Human(sys.stdout.isatty())
    output = sys.stdout.buffer
    left = count
    with Client(url, token=given_token()) as client:
        follower = Follower(client, filters, after, lambda note: click.echo(note, err=True))
        with closing(follower.messages()) as arrivals:
            for messages in arrivals:
                wanted = messages[:left]
                output.write(b"".join(map(show, wanted)))
                output.flush()
                if left is not None:
                    left -= len(wanted)
                    if left == 0:
                        return


def as_it_is(message: bytes) -> bytes:
    return message + b"\n"
