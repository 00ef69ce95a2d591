"""``repl-broker demo``: a node with the chat example, or a whole cluster, in one command."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

import click

import repl_broker
from repl_broker import logs
from repl_broker.cli.options import KeyType
from repl_broker.config import Address, load
from repl_broker.errors import ConfigError
from repl_broker.files import tighten

__all__ = ["demo"]

PREFIX: Final = "/chat"
DASHBOARD: Final = "/ui/"
NODES_MAX: Final = 7


def read_nodes(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """1, or an odd number up to NODES_MAX."""
    if value == 1 or (3 <= value <= NODES_MAX and value % 2):
        return value
    if 2 <= value <= NODES_MAX:
        why = (
            f"more than half of the nodes must run, so {value} outlive the loss of no more than "
            f"{value - 1}; "
        )
    else:
        why = ""
    raise click.BadParameter(
        f"{why}wanted 1, or an odd number from 3 to {NODES_MAX}, found {value}", ctx, param
    )


@click.command()
@click.option(
    "--nodes",
    type=int,
    callback=read_nodes,
    default=1,
    show_default=True,
    metavar="NUMBER",
    help=f"How many nodes: 1, or an odd number from 3 to {NODES_MAX}, which make a cluster. Its "
    "page has a button that kills the leader.",
)
@click.option(
    "--http",
    type=KeyType("http.bind", "host:port"),
    default="127.0.0.1:4080",
    show_default=True,
    help="Where to listen for HTTP; port 0 takes a free one. Several nodes take this port and "
    "others that follow from it, on this machine alone.",
)
@click.option(
    "--data-dir",
    type=KeyType("node.data_dir", "directory"),
    help="The folder of the store, or of the stores, logs and files of several nodes. Default: one "
    "in the system's folder for temporary files, the same for the same port, so that a demo that "
    "is started again has its messages.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="How much to log.",
)
def demo(nodes: int, http: Address, data_dir: Path | None, log_level: str) -> None:
    """Start a node, or a cluster, with the chat example, and say where to look.

    Open the page in two windows and chat. Stop the node, start it again: both go on.
    With --nodes 3, press the button that kills the leader: the chat goes on at once.
    """
    folder = data_dir or temporary_folder(http.port, nodes)
    if nodes > 1:
        from repl_broker.cli.stage import show

        show.run(nodes, http, folder, log_level)
        return
    # Imported late: --help and shell completion need none of it.
    from repl_broker.cli.stage.layout import check_single

    check_single(folder)
    options = {"http.bind": http, "node.data_dir": folder, "log.level": log_level}
    options["auth.mode"] = "none"  # it is there to be tried
    config = load(options=options)
    apps = {PREFIX: chat_folder()}
    logs.configure(config.log)

    from repl_broker import daemon

    daemon.run(config, apps=apps, on_ready=lambda node: announce(node.url, folder))


def announce(url: str, folder: Path) -> None:
    # An address that stands for all of this machine's is none to visit.
    for all_of_them, this_one in (("//0.0.0.0:", "//127.0.0.1:"), ("//[::]:", "//[::1]:")):
        url = url.replace(all_of_them, this_one)
    click.echo(f"The chat:       {url}{PREFIX}/   (Ctrl-C stops)")
    click.echo(f"The dashboard:  {url}{DASHBOARD}")
    click.echo(f"The data:       {folder}   (delete it to start afresh)")


def chat_folder() -> Path:
    """Where the page is: in the installed package, or beside it in a checkout."""
    package = Path(repl_broker.__file__).parent
    for folder in (package / "_examples" / "chat", package.parent / "examples" / "chat"):
        if (folder / "index.html").is_file():
            return folder
    raise ConfigError("the chat example is not part of this installation (_examples/chat)")


def temporary_folder(port: int, nodes: int = 1) -> Path:
    """A folder of this user's, and nobody else's, that is there again after a restart."""
    if port == 0:
        return Path(tempfile.mkdtemp(prefix="repl-broker-demo-"))
    shape = f"-{nodes}-nodes" if nodes > 1 else ""
    folder = Path(tempfile.gettempdir()) / f"repl-broker-demo-{os.getuid()}-{port}{shape}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError as error:
        raise ConfigError(f"cannot use {folder}: {error.strerror}; give --data-dir") from error
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise ConfigError(f"cannot use {folder}: it belongs to someone else; give --data-dir")
    tighten((folder,))
    return folder
