"""``repl-broker topics``: look at topics and change them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from repl_broker.cli.confirmation import confirm
from repl_broker.cli.options import KeyType, given_token, json_option, url_option

if TYPE_CHECKING:
    from repl_broker.cli.client import Client

__all__ = ["topics"]


@click.group()
def topics() -> None:
    """List, create, show and delete topics."""


@topics.command("list")
@click.option("--match", metavar="FILTER", help="Only topics that match it, as in 'orders.>'.")
@url_option
@json_option
def list_(match: str | None, url: str, as_json: bool) -> None:
    """List all topics, in the order of their names."""
    from repl_broker.cli.client import Client

    with Client(url, token=given_token()) as client:
        heading = True
        for page in pages(client, match):
            if as_json:
                lines = [json.dumps(each, ensure_ascii=False) for each in page]
            else:
                lines = table(page, heading)
            heading = False
            if lines:
                click.echo("\n".join(lines))


def pages(client: Client, match: str | None) -> Iterator[list[dict[str, object]]]:
    params = {} if match is None else {"match": match}
    while True:
        answer = client.call("GET", "/v1/topics", params=params)
        found = answer.get("topics")
        yield found if isinstance(found, list) else []
        following = answer.get("next")
        if following is None or not found:
            return
        params["after"] = str(following)


def table(page: list[dict[str, object]], heading: bool) -> list[str]:
    rows = [("TOPIC", "MESSAGES", "BYTES", "SUBSCRIBERS", "LAST ID")] if heading else []
    rows += [
        (
            str(each.get("name")),
            thousands(each.get("messages")),
            thousands(each.get("bytes")),
            thousands(each.get("subscribers")),
            str(each.get("last_id") or "-"),
        )
        for each in page
    ]
    if len(rows) == 1 and heading:
        return []
    width = max([24, *(len(row[0]) for row in rows)])
    return [
        f"{name:<{width}}  {messages:>12}  {size:>15}  {subscribers:>11}  {last}"
        for name, messages, size, subscribers, last in rows
    ]


def thousands(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


@topics.command()
@click.argument("topic")
@click.option(
    "--retention-messages",
    "messages",
    type=KeyType("topics.retention.messages", "n"),
    help="How many messages to keep.",
)
@click.option(
    "--retention-seconds",
    "seconds",
    type=KeyType("topics.retention.seconds", "seconds"),
    help="How long to keep a message; also with a unit, as in 24h.",
)
@click.option(
    "--retention-bytes",
    "size",
    type=KeyType("topics.retention.bytes", "bytes"),
    help="How many bytes to keep; also with a unit, as in 64MiB.",
)
@click.option(
    "--idle-seconds",
    "idle_seconds",
    type=KeyType("topics.retention.idle_seconds", "seconds"),
    help="Delete it when it was unused for this long; also with a unit, as in 1h. 0: never.",
)
@click.option("--or-change", is_flag=True, help="Change the topic if it exists already.")
@url_option
@json_option
def create(
    topic: str,
    messages: int | None,
    seconds: int | None,
    size: int | None,
    idle_seconds: int | None,
    or_change: bool,
    url: str,
    as_json: bool,
) -> None:
    """Create TOPIC. What is not given is as the node's configuration says."""
    from repl_broker.cli.client import Client
    from repl_broker.message import check_topic

    check_topic(topic)
    given = {
        "messages": messages,
        "seconds": seconds,
        "bytes": size,
        "idle_seconds": idle_seconds,
    }
    retention = {name: value for name, value in given.items() if value is not None}
    settings: dict[str, object] = {"retention": retention} if retention else {}
    with Client(url, token=given_token()) as client:
        if or_change:
            answer = client.call("PUT", f"/v1/topics/{topic}", body=settings)
        else:
            answer = client.call("POST", "/v1/topics", body={"name": topic, **settings})
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        click.echo(f"{'set' if or_change else 'created'} {topic}: keeps {retention_text(answer)}")


@topics.command()
@click.argument("topic")
@url_option
@json_option
def show(topic: str, url: str, as_json: bool) -> None:
    """Show the settings and counts of TOPIC."""
    from repl_broker.cli.client import Client
    from repl_broker.message import check_topic

    check_topic(topic)
    with Client(url, token=given_token()) as client:
        answer = client.call("GET", f"/v1/topics/{topic}")
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    for label, value in (
        ("topic", answer.get("name")),
        ("messages", thousands(answer.get("messages"))),
        ("bytes", thousands(answer.get("bytes"))),
        ("first id", answer.get("first_id") or "-"),
        ("last id", answer.get("last_id") or "-"),
        ("created", answer.get("created_at")),
        ("subscribers", f"{thousands(answer.get('subscribers'))} (on this node)"),
        ("keeps", retention_text(answer)),
    ):
        click.echo(f"{label:<12} {value}")


def retention_text(topic: dict[str, object]) -> str:
    retention = topic.get("retention")
    if not isinstance(retention, dict):
        return "-"
    idle_seconds = retention.get("idle_seconds")
    until = "" if idle_seconds is None else f"; deleted when unused for {thousands(idle_seconds)} s"
    return (
        f"{thousands(retention.get('messages'))} messages, "
        f"{thousands(retention.get('seconds'))} s, {thousands(retention.get('bytes'))} bytes, "
        f"whichever comes first{until}"
    )


@topics.command()
@click.argument("topic", required=False)
@click.option(
    "--match", metavar="FILTER", help="Delete all topics that match it, as in 'jobs.>', instead."
)
@click.option("--yes", is_flag=True, help="Do not ask. Needed where no terminal can be asked.")
@url_option
@json_option
def delete(topic: str | None, match: str | None, yes: bool, url: str, as_json: bool) -> None:
    """Delete TOPIC and its history, for good; or with --match many of them.

    If --match is interrupted, the topics that it has deleted stay deleted; run it
    again to delete the rest.
    """
    from repl_broker.cli.client import Client
    from repl_broker.message import FilterSet, check_topic

    if (topic is None) == (match is None):
        raise click.UsageError("give TOPIC, or --match FILTER, and not both")
    if topic is not None:
        check_topic(topic)
    else:
        FilterSet([match or ""])
    with Client(url, token=given_token()) as client:
        if not yes:
            confirm(lambda: question(client, topic, match))
        if topic is not None:
            client.call("DELETE", f"/v1/topics/{topic}")
            click.echo(json.dumps({"deleted": topic}) if as_json else f"deleted {topic}")
            return
        answer = client.call("DELETE", "/v1/topics", params={"match": str(match)})
    count = answer.get("count")
    if as_json:
        click.echo(json.dumps({"match": match, "count": count}))
    else:
        click.echo(f"deleted {topics_matching(count, match)}")


def question(client: Client, topic: str | None, match: str | None) -> str:
    if topic is not None:
        return f"Delete {topic} and its messages?"
    count = sum(len(page) for page in pages(client, match))
    return f"Delete {topics_matching(count, match)}, and all their messages?"


def topics_matching(count: object, match: str | None) -> str:
    if count == 1:
        return f"1 topic that matches {match}"
    return f"{thousands(count)} topics that match {match}"
