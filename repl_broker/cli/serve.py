"""``repl-broker serve``: run a node."""

from __future__ import annotations

import os
from pathlib import Path

import click

from repl_broker import logs
from repl_broker.cli.options import KeyType
from repl_broker.config import Address, load

__all__ = ["serve"]


@click.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="REPL_BROKER_CONFIG",
    show_envvar=True,
    help="A TOML file; see cluster.toml.example. Without it: the defaults.",
)
@click.option("--node-id", type=KeyType("node.id", "name"), help="The name of this node.")
@click.option(
    "--data-dir", type=KeyType("node.data_dir", "directory"), help="The folder of the store."
)
@click.option("--http", type=KeyType("http.bind", "host:port"), help="Where to listen for HTTP.")
@click.option(
    "--raft", type=KeyType("raft.bind", "host:port"), help="Where to listen for other nodes."
)
@click.option(
    "--bootstrap",
    is_flag=True,
    help="Start a cluster, with this node as its first member. It changes nothing on a node "
    "that belongs to one, so a service unit can keep it. With --join ([cluster] join) beside it, "
    "a node without data asks those first, and joins a cluster that is there.",
)
@click.option(
    "--join",
    multiple=True,
    type=KeyType("raft.bind", "host:port"),
    help="The Raft address of a member of the cluster to join; may be repeated. It changes "
    "nothing on a node that belongs to one.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much to log.",
)
def serve(
    file: Path | None,
    node_id: str | None,
    data_dir: Path | None,
    http: Address | None,
    raft: Address | None,
    bootstrap: bool,
    join: tuple[Address, ...],
    log_level: str | None,
) -> None:
    """Run a node until it gets SIGTERM or SIGINT, or is removed from its cluster.

    With no option: a single node, HTTP on 127.0.0.1:4080, data in ./repl-data. Every
    key of the configuration file can also be set in the environment, as
    REPL_BROKER_<SECTION>_<KEY>. Options beat the environment, which beats the file.
    """
    given: dict[str, object] = {
        "node.id": node_id,
        "node.data_dir": data_dir,
        "http.bind": http,
        "raft.bind": raft,
        "cluster.join": join or None,
        "log.level": log_level,
    }
    options = {name: value for name, value in given.items() if value is not None}
    config = load(file, environ=os.environ, options=options)
    logs.configure(config.log)

    from repl_broker import daemon

    daemon.run(config, bootstrap=bootstrap)
