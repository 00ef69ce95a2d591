"""``repl-broker backup`` and ``repl-broker restore``: a store as one file, and back."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any, Final

import click

from repl_broker.cli.options import (
    KeyType,
    apart_option,
    config_option,
    data_dir_of,
    data_dir_option,
    json_option,
)

__all__ = ["backup", "restore"]

SHOWN: Final = ("node", "cluster_id", "epoch", "index", "seq")


@click.command()
@click.argument("target", type=click.Path(path_type=Path), metavar="FILE")
@config_option
@data_dir_option
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
def backup(
    target: Path, file: Path | None, data_dir: Path | None, force: bool, as_json: bool
) -> None:
    """Save a node's store to FILE, while the node runs or not.

    Run it on the node's machine, as the node's user. FILE has all that the node had
    when the backup began. It is checked, and then appears whole or not at all.
    """
    from repl_broker.backup import backup as save

    folder = data_dir_of(file, data_dir)
    saved = save(folder, target, force=force, now_ms=now_ms())
    if as_json:
        click.echo(json.dumps(saved, ensure_ascii=False))
    else:
        click.echo(f"saved {folder} to {target}: {saved['bytes']:,} bytes, checked")
        show(saved, (*SHOWN, "entries"))


@click.command()
@click.argument("target", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--data-dir",
    type=KeyType("node.data_dir", "directory"),
    required=True,
    help="The data directory to make; it must not exist, or be empty.",
)
@click.option(
    "--node-id",
    type=KeyType("node.id", "name"),
    help="The name of the new node; without it, that of the node that was saved.",
)
@apart_option
@json_option
def restore(target: Path, data_dir: Path, node_id: str | None, apart: bool, as_json: bool) -> None:
    """Make a new data directory from the backup FILE.

    The new node is alone in a cluster of its own, with a new cluster id and a new
    epoch: readers with cursors from before are told of a gap.
    """
    from repl_broker.backup import restore as make

    made = make(target, data_dir, node_id, now_ms=now_ms(), apart=apart)
    if as_json:
        click.echo(json.dumps(made, ensure_ascii=False))
        return
    new = made["new"]
    click.echo(f"made {data_dir} of {target}, a backup of {made['made_at'] or 'an unknown time'}")
    show({**new, "index": new["last_index"], "seq": made["seq"]}, SHOWN)
    where = shlex.quote(str(data_dir))
    click.echo(f"start it: repl-broker serve --data-dir {where} --node-id {new['node']}")


def show(values: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = values[name]
        text = f"{value:,}" if isinstance(value, int) else value
        click.echo(f"{name.replace('_', ' '):<12} {text}")


def now_ms() -> int:
    return time.time_ns() // 1_000_000
