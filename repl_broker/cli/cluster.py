"""``repl-broker cluster``: look at the cluster and change its members."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from repl_broker.cli.confirmation import asked
from repl_broker.cli.confirmation import confirm as confirm_with
from repl_broker.cli.options import (
    KeyType,
    UrlType,
    apart_option,
    config_option,
    data_dir_of,
    data_dir_option,
    given_token,
    json_option,
    url_option,
)
from repl_broker.config import Address

__all__ = ["cluster"]

LEAVE_SECONDS: Final = 30  # until the cluster has agreed that a node is no member any more
SETTLE_SECONDS: Final = 2  # a node that went down just now may be taken for reachable that long


@click.group()
def cluster() -> None:
    """Show the cluster; add and remove nodes; move the leadership.

    A node in single-node mode refuses all but "status". "rejoin" is for a node whose
    store is damaged, "recover" for when most nodes are lost.
    """


@cluster.command()
@url_option
@json_option
def status(url: str, as_json: bool) -> None:
    """Show the members, who leads, and how far each one is."""
    from repl_broker.cli.client import Client
    from repl_broker.cli.human import printable

    with Client(url, token=given_token()) as client:
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
        "feature_level",
        "change_pending",
        "ready",
    ):
        click.echo(f"{name.replace('_', ' '):<14} {shown(answer.get(name))}")
    reasons = answer.get("reasons")
    for reason in reasons if isinstance(reasons, list) else ():
        click.echo(f"{'':<14} {printable(str(reason.get('detail')))} [{shown(reason.get('code'))}]")
    if pending := sentence_of(answer.get("change")):
        click.echo(f"\n{pending}")
    members = answer.get("members")
    if isinstance(members, list) and members:
        row = "{:<16} {:<8} {:<22} {:<28} {:>12} {:>8} {:<9} {:>5} {:>8}"
        click.echo("")
        head = ("MEMBER", "ROLE", "RAFT", "HTTP", "MATCH", "LAG", "REACHABLE", "LEVEL", "CLOCK")
        click.echo(row.format(*head))
        for each in members:
            click.echo(row.format(*(shown(each.get(cell)) for cell in CELLS)))


def sentence_of(change: object) -> str:
    """What is told of a change that is not committed; nothing if there is none."""
    import msgspec

    from repl_broker.changes import PendingChange, sentence

    try:
        found = msgspec.convert(change, PendingChange | None)
    except msgspec.ValidationError:  # of another version
        return ""
    return sentence(found) if found else ""


CELLS: Final = (
    *("id", "role", "raft_address", "http_url", "match_index", "lag", "reachable"),
    *("feature_level", "clock_skew_seconds"),
)


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
    """Add the node ID, as a learner; it is promoted when it has caught up.

    Start it first, with --join and an empty data directory: a node that does not answer
    is not added. One that reaches a member by --join asks for this by itself.
    """
    body = {"id": node, "raft_address": str(raft), "http_url": http}
    change(url, as_json, "POST", "/v1/cluster/members", body, f"adding {node}")


@cluster.command()
@click.argument("node", type=KeyType("node.id", "name"), metavar="ID")
@click.option(
    "--force",
    is_flag=True,
    help="Even if the voters that are left, and answer, are no majority: nothing is written then "
    "until enough of them are back, and it cannot be undone.",
)
@url_option
@json_option
def remove(node: str, force: bool, url: str, as_json: bool) -> None:
    """Remove the node ID.

    It hears of that, says so and stops. It may also be away: to come back it needs an
    empty data directory. What would leave the cluster without a majority is refused:
    remove the nodes that are away first.
    """
    path = f"/v1/cluster/members/{node}{'?force=true' if force else ''}"
    change(url, as_json, "DELETE", path, None, f"removing {node}")


@cluster.command()
@click.argument("node", type=KeyType("node.id", "name"), metavar="ID")
@url_option
@json_option
def transfer(node: str, url: str, as_json: bool) -> None:
    """Hand the leadership to the node ID.

    Writes wait for it, which takes milliseconds. A leader that gets SIGTERM does this
    by itself.
    """
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

    with Client(url, token=given_token()) as client:
        answer = client.call(method, path, body=body)
    text = sentence_of(answer.get("change")) or f"{done}; 'cluster status' shows how far it is"
    click.echo(json.dumps(answer, ensure_ascii=False) if as_json else text)


@cluster.command()
@config_option
@data_dir_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@apart_option
@json_option
def recover(
    file: Path | None, data_dir: Path | None, yes: bool, apart: bool, as_json: bool
) -> None:
    """Make this node the only member, when the majority is lost for good.

    Stop the node first, and run this on its machine. It gives up the other members and
    whatever only they have. It shows what it found, and asks for the node's id before
    it changes anything.
    """
    from repl_broker.founding import Recovery

    with Recovery(data_dir_of(file, data_dir)) as recovery:
        found = recovery.standing.as_json()
        if not (yes and as_json):
            click.echo(account(found), err=as_json or not yes)
        if not yes:
            confirm(found["node"])
        record = recovery.carry_out(time.time_ns() // 1_000_000, apart=apart)
    click.echo(json.dumps(record, ensure_ascii=False) if as_json else outcome(record["new"]))


def account(found: dict[str, Any]) -> str:
    """What was found, and what recovering means."""
    lines = [
        f"{name.replace('_', ' '):<14} {found[name]}"
        for name in ("node", "cluster_id", "epoch", "term", "last_term", "last_index")
    ]
    lines += ["", "{:<16} {:<8} {}".format("MEMBER", "ROLE", "RAFT")]
    for each in found["members"]:
        here = "  (this node)" if each["id"] == found["node"] else ""
        lines.append(f"{each['id']:<16} {each['role']:<8} {each['raft_address']}{here}")
    return "\n".join(lines) + CONSEQUENCES.format(**found)


CONSEQUENCES = """

Recovering makes {node} the only member, of a cluster with a new id and a new epoch.

- Lost is what the others acknowledged and {node} does not have: its log ends at index
  {last_index}. If another node is left whose last term is higher, or whose last index is
  higher in the same term, recover that one instead.
- Kept is all of this log, also messages whose publishers were never told so.
- The other nodes must never be started with their data again. They may come back as new
  nodes, with empty data directories.
- Every reader with a cursor from before is told of a gap.
"""


def confirm(node: str) -> None:
    answer = asked(f"Type the node's id ({node}) to go on: ")
    if answer != node:
        raise click.ClickException(f"the node is {node!r}, not {answer!r}; nothing was changed")


def outcome(new: dict[str, Any]) -> str:
    return (
        f"recovered: {new['node']} is the only member from index {new['last_index']} of term "
        f"{new['term']} on; cluster id {new['cluster_id']}, epoch {new['epoch']}.\n"
        "Start it as before, then add new nodes. The store keeps a record of this."
    )


# --- rejoin ---


@cluster.command()
@config_option
@data_dir_option
@click.option(
    "--node-id",
    type=KeyType("node.id", "name"),
    help="The node's name, if its store cannot say it.",
)
@click.option(
    "--cluster-id",
    metavar="ID",
    help="The cluster's id, if its store cannot say it; as in 'cluster status' of another node.",
)
@click.option(
    "--url",
    type=UrlType(),
    metavar="URL",
    required=True,
    help="Another node of the cluster, which runs.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def rejoin(
    file: Path | None,
    data_dir: Path | None,
    node_id: str | None,
    cluster_id: str | None,
    url: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Have this node join its cluster anew, with what the others have.

    For a store that is damaged, or not trusted any more. Stop the node first, and run
    this on its machine. The node is removed from the cluster, for which a majority of the
    others must run, and then its store is moved aside: nothing is deleted. Started again,
    it gets everything from the others.
    """
    from repl_broker.aside import Aside
    from repl_broker.cli.client import Client

    folder = data_dir_of(file, data_dir)
    with Aside(folder) as aside, Client(url, token=given_token()) as client:
        node = own("--node-id", "node", aside.node_id, node_id, folder)
        own_cluster = own("--cluster-id", "cluster", aside.cluster_id, cluster_id, folder)
        others = others_of(client, node, own_cluster, is_sure=bool(aside.node_id))
        if not yes:
            confirm_with(lambda: REJOINING.format(node=node, folder=folder))
        leave(client, node)
        target = aside.move(time.time_ns() // 1_000_000)
    join = others[0]
    if as_json:
        click.echo(json.dumps({"node": node, "aside": str(target), "join": others}))
    else:
        click.echo(REJOINED.format(node=node, target=target, join=join))


REJOINING = (
    "{node} is removed from the cluster, and its store in {folder} moved aside. What the others "
    "have, it gets from them; what only it had is then in the files aside. Go on?"
)
REJOINED = (
    "{node} is no member any more; its store is in {target}.\n"
    "Start it with 'join' in [cluster], or with --join {join}, and without --bootstrap: it gets "
    "everything from the others, and its vote when it has caught up. Delete the files aside then."
)


def own(option: str, kind: str, stored: str, given: str | None, folder: Path) -> str:
    """Which member goes, and of which cluster: never by a default, as another may go well."""
    if stored and given and stored != given:
        raise click.UsageError(
            f"the store in {str(folder)!r} is of {kind} {stored!r}, not {given!r}"
        )
    if not (stored or given):
        raise click.UsageError(
            f"the store in {str(folder)!r} cannot say of which {kind} it is; name it with {option}"
        )
    return given or stored


def others_of(client: Any, node: str, cluster_id: str, *, is_sure: bool) -> list[str]:
    """The addresses of the other voters. Raises ClickException if the node cannot be taken out.

    ``is_sure`` says that the store itself has the node's name: then it may be removed already.
    """
    found = client.call("GET", "/v1/cluster")
    if found.get("mode") != "cluster":
        raise click.ClickException(f"the node at {client.url} runs alone, and is no cluster")
    if found.get("cluster_id") != cluster_id:
        raise click.ClickException(
            f"the node at {client.url} is of cluster {found.get('cluster_id')}, and the store of "
            f"cluster {cluster_id}; name a node of its own with --url"
        )
    members = {each["id"]: each for each in found.get("members", ())}
    me = members.pop(node, None)
    if me is None and not is_sure:
        names = ", ".join(sorted(members))
        raise click.ClickException(
            f"the cluster has no member {node!r}; --node-id is one of {names}. "
            "If it was removed before, move the files of its store aside by hand"
        )
    if me is not None and me.get("reachable") is not False:
        raise click.ClickException(
            f"the cluster reaches a node {node!r} that runs, or cannot tell; this is for one that "
            "is stopped: stop it, wait for some seconds, and try again"
        )
    others = [m["raft_address"] for m in members.values() if m["role"] != "learner"]
    if not others:
        raise click.ClickException(f"{node!r} is the only voter: nobody else has what it had")
    return others


def is_member(found: Mapping[str, Any], node: str) -> bool:
    return any(each["id"] == node for each in found["members"])


def check_majority(found: Mapping[str, Any], node: str) -> None:
    """Whoever is left must be able to agree without it. Raises ClickException.

    A removal is counted by the votes of those who are left: once it is in the leader's log,
    the node's own vote cannot help any more.
    """
    votes = {m["id"]: m["reachable"] for m in found["members"] if m["role"] != "learner"}
    votes.pop(node, None)
    reached = sorted(name for name, is_reached in votes.items() if is_reached is True)
    wanted = len(votes) // 2 + 1
    if len(reached) < wanted:
        away = ", ".join(sorted(votes.keys() - set(reached)))
        raise click.ClickException(
            f"without {node!r} there are {len(votes)} voters, of which {wanted} must be reached, "
            f"and {len(reached)} are ({', '.join(reached)}): nobody could agree that it goes. "
            f"Nothing was changed or moved; start {away} first, and run this again"
        )


def leave(client: Any, node: str) -> None:
    """Take it out, and wait until that is committed. Raises CallError, ClickException."""
    from repl_broker.cli.client import ProblemError, segment

    found = client.call("GET", "/v1/cluster")
    if is_member(found, node):
        check_majority(found, node)
        time.sleep(SETTLE_SECONDS)
    end = time.monotonic() + LEAVE_SECONDS
    while time.monotonic() < end:
        found = client.call("GET", "/v1/cluster")
        if is_member(found, node):
            check_majority(found, node)
            try:
                client.call("DELETE", f"/v1/cluster/members/{segment(node)}")
            except ProblemError as error:
                if error.code not in ("membership_change_in_progress", "member_not_found"):
                    raise
        elif found.get("change_pending") is False:
            return
        time.sleep(0.2)
    raise click.ClickException(
        f"{client.url} did not say within {LEAVE_SECONDS} s that the removal of {node!r} is "
        "committed: it may be in the leader's log alone. The store was left where it is. See that "
        "a majority of the other voters runs ('repl-broker cluster status' shows them, and 'change "
        "pending no' once it is committed), and run this again"
    )
