"""``repl-broker top``: which topics are published to most, and how far readers are behind.

It reads what the dashboard of the node reads (web/ui.py), so a node at which nobody looks
does nothing for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from repl_broker.cli.options import given_token, json_option, url_option

__all__ = ["top"]

SILENCE_SECONDS: Final = 15.0  # a sample comes each second
SORTS: Final = ("rate", "messages", "bytes", "subscribers")  # as web/sampler.py has them
NODE: Final = (
    "ready", "publishes", "messages", "subscribers", "lagging", "behind_max", "connections",
    "pending", "topics", "store_bytes",
)  # fmt: skip
CLEAR: Final = "\x1b[H\x1b[J"  # from the upper left on
COLUMNS: Final = f"{'TOPIC':<40} {'RATE/S':>10} {'MESSAGES':>12} {'BYTES':>15} {'STREAMS':>8}"


@click.command()
@click.option(
    "--count", type=click.IntRange(1, 500), default=20, show_default=True, help="How many topics."
)
@click.option(
    "--sort", type=click.Choice(SORTS), default="rate", show_default=True, help="Which come first."
)
@click.option(
    "--match",
    metavar="TEXT",
    default="",
    help='Only topics that have it in their names, or that it matches as a filter ("jobs.>").',
)
@click.option("--once", is_flag=True, help="Look for a second, print that, and end.")
@url_option
@json_option
def top(count: int, sort: str, match: str, once: bool, url: str, as_json: bool) -> None:
    """Show the topics that most is published to, and how far streams are behind, once a second.

    The figures are of the node that is asked; rates are of the whole cluster's messages.
    STREAMS are those of this node. With --json, or where the output is no terminal, each look
    is printed after the one before; with --once there is one. With tokens it needs one with
    admin.
    """
    from repl_broker.cli.client import Client

    on_terminal = sys.stdout.isatty() and not once and not as_json
    with Client(url, token=given_token()) as client:
        for sample, seconds in looks(client, {"sort": f"-{sort}", "match": match, "limit": count}):
            found = figures(sample, seconds)
            text = json.dumps(found, ensure_ascii=False) if as_json else table(found)
            click.echo((CLEAR if on_terminal else "") + text)
            if once:
                return


def looks(client: Any, query: dict[str, object]) -> Iterator[tuple[Any, tuple[Any, float]]]:
    """Each sample that has rates, with the one before and how many seconds lie between them."""
    from repl_broker.cli.client import CallError
    from repl_broker.cli.eventstream import EventReader

    params = [(name, str(value)) for name, value in query.items()]
    before: Any = None
    reader = EventReader()
    with client.stream("/ui/feed", params, {}, silence=SILENCE_SECONDS) as chunks:
        for chunk in chunks:
            for event in reader.feed(chunk):
                if event.name != "sample":
                    continue
                sample = json.loads(event.data)
                if before is not None:
                    yield sample, (before["node"], sample["clock"] - before["clock"])
                before = sample
    raise CallError(
        "the node ended the stream; it shuts down, or the token does not count any more"
    )


def figures(sample: Any, since: tuple[Any, float]) -> dict[str, Any]:
    """What is shown, for programs."""
    node, (before, seconds) = sample["node"], since

    def rate(name: str) -> float:
        return round(float(max(0, node[name] - before[name])) / max(seconds, 0.001), 1)

    return {
        "node": sample["cluster"]["node"],
        "leader": sample["cluster"]["leader"],
        "published_a_second": rate("messages"),
        "delivered_a_second": rate("deliveries"),
        **{name: node[name] for name in NODE},
        "top": [
            {"topic": topic, "rate": per_second, "messages": messages, "bytes": size,
             "subscribers": streams}
            for topic, per_second, messages, size, streams, _ in sample["topics"]["rows"]
        ],
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    from repl_broker.cli.human import printable

    state = "ready" if found["ready"] else "NOT READY"
    store = found["store_bytes"]
    size = "-" if store is None else f"{store:,}"
    lines = [
        f"{found['node']}  {state}  leader {found['leader'] or '-'}  topics {found['topics']:,}  "
        f"store {size} bytes  writes that wait {found['pending']:,}",
        f"published {found['published_a_second']:,}/s  "
        f"delivered {found['delivered_a_second']:,}/s  connections {found['connections']:,}",
        f"streams {found['subscribers']:,}  behind {found['lagging']:,}, "
        f"the furthest by {found['behind_max']:,} messages",
        "",
        COLUMNS,
    ]
    for row in found["top"]:
        rate = "-" if row["rate"] is None else f"{row['rate']:,.1f}"
        lines.append(
            f"{printable(row['topic']):<40} {rate:>10} {row['messages']:>12,} {row['bytes']:>15,} "
            f"{row['subscribers']:>8,}"
        )
    return "\n".join(lines)
