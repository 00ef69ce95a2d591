"""``repl-broker serve``: run a node."""

from __future__ import annotations

import os
from pathlib import Path

import click

from repl_broker import logs
from repl_broker.cli.options import KeyType
from repl_broker.config import Address, Config, load
from repl_broker.errors import ConfigError

__all__ = ["refuse_cluster_mode", "serve"]


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
    "--bootstrap", is_flag=True, help="Start a new cluster. Not in this version: refused."
)
@click.option(
    "--join",
    multiple=True,
    type=KeyType("raft.bind", "host:port"),
    help="A node of the cluster to join; may be repeated. Not in this version: refused.",
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
    """Run a node until it gets SIGTERM or SIGINT.

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
    refuse_cluster_mode(config, bootstrap=bootstrap)
    logs.configure(config.log)

    from repl_broker import daemon

    daemon.run(config)


def refuse_cluster_mode(config: Config, *, bootstrap: bool = False) -> None:
    """Clusters come with a later version; until then nobody may think they have one."""
    asked = "--bootstrap" if bootstrap else "--join" if config.cluster.join else None
    if asked:
        raise ConfigError(
            f"{asked}{' ([cluster] join)' if asked == '--join' else ''}: this version runs "
            "single nodes only; clusters come with a later one"
        )
