"""``repl-broker serve``: run a node."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from repl_broker import logs, systemd
from repl_broker.cli.options import KeyType
from repl_broker.config import Address, Config, load

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

    SIGHUP has all of them read again, and applies what can change while the node runs;
    the log says what that was and what needs a restart. Under systemd the node says
    when it is ready and how it is, and takes a listening socket that it is passed in the
    place of [http] bind.
    """
    # A SIGHUP that comes before somebody listens waits, rather than ends the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    given: dict[str, object] = {
        "node.id": node_id,
        "node.data_dir": data_dir,
        "http.bind": http,
        "raft.bind": raft,
        "cluster.join": join or None,
        "log.level": log_level,
    }
    try:
        run(file, {name: value for name, value in given.items() if value is not None}, bootstrap)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def run(file: Path | None, options: dict[str, object], bootstrap: bool) -> None:
    sockets = systemd.passed_sockets(os.environ)
    if sockets:  # an option, so that whatever depends on where the node listens is checked
        options["http.bind"] = systemd.widest(sockets)

    def read() -> Config:
        return load(file, environ=os.environ, options=options)

    config = read()
    logs.configure(config.log)
    manager = systemd.Manager.from_environment(os.environ)

    from repl_broker import daemon

    with logs.strays_caught():
        daemon.run(config, bootstrap=bootstrap, read_again=read, manager=manager, sockets=sockets)
