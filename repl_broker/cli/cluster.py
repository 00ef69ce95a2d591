"""``repl-broker cluster``: look at the cluster and change its members."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from repl_broker.cli.options import KeyType, UrlType, json_option, url_option
from repl_broker.config import Address

__all__ = ["cluster"]


@click.group()
def cluster() -> None:
    """Show the cluster; add and remove nodes; move the leadership.

    A node in single-node mode refuses all but "status".
    """


@cluster.command()
@url_option
@json_option
def status(url: str, as_json: bool) -> None:
    """Show the members, who leads, and how far each one is."""
    from repl_broker.cli.client import Client

    with Client(url) as client:
        answer = client.call("GET", "/v1/cluster")
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    for name in (
        "cluster_id",
        "epoch",
        "node",
        "mode",
        "term",
        "leader",
        "commit_index",
        "applied_index",
    ):
        click.echo(f"{name.replace('_', ' '):<14} {shown(answer.get(name))}")
    members = answer.get("members")
    if isinstance(members, list) and members:
        row = "{:<16} {:<8} {:<22} {:<28} {:>12} {:>8} {}"
        click.echo("")
        click.echo(row.format("MEMBER", "ROLE", "RAFT", "HTTP", "MATCH", "LAG", "REACHABLE"))
        for each in members:
            cells = ("id", "role", "raft_address", "http_url", "match_index", "lag", "reachable")
            click.echo(row.format(*(shown(each.get(cell)) for cell in cells)))


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


@cluster.command()
@click.argument("node", type=KeyType("node.id", "name"), metavar="ID")
@click.option(
    "--raft",
    type=KeyType("raft.bind", "host:port"),
    required=True,
    help="The address by which other nodes reach it.",
)
@click.option(
    "--http",
    type=UrlType(),
    metavar="URL",
    required=True,
    help="The URL by which clients reach it.",
)
@url_option
@json_option
def add(node: str, raft: Address, http: str, url: str, as_json: bool) -> None:
    """Add the node ID, as a learner; it is promoted when it has caught up."""
    body = {"id": node, "raft_address": str(raft), "http_url": http}
    change(url, as_json, "POST", "/v1/cluster/members", body, f"adding {node}")


@cluster.command()
@click.argument("node", type=KeyType("node.id", "name"), metavar="ID")
@url_option
@json_option
def remove(node: str, url: str, as_json: bool) -> None:
    """Remove the node ID."""
    change(url, as_json, "DELETE", f"/v1/cluster/members/{node}", None, f"removing {node}")


@cluster.command()
@click.argument("node", type=KeyType("node.id", "name"), metavar="ID")
@url_option
@json_option
def transfer(node: str, url: str, as_json: bool) -> None:
    """Hand the leadership to the node ID."""
    done = f"handing the leadership to {node}"
    change(url, as_json, "POST", "/v1/cluster/leader", {"id": node}, done)


def change(
    url: str,
    as_json: bool,
    method: str,
    path: str,
    body: Mapping[str, object] | None,
    done: str,
) -> None:
    from repl_broker.cli.client import Client

    with Client(url) as client:
        answer = client.call(method, path, body=body)
    text = f"{done}; 'cluster status' shows how far it is"
    click.echo(json.dumps(answer, ensure_ascii=False) if as_json else text)
