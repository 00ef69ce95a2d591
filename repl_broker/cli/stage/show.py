"""The demo of a cluster as a process: the supervisor and its control, from start to Ctrl-C."""

from __future__ import annotations

import secrets
import signal
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio

from repl_broker import logs
from repl_broker.cli.demo import DASHBOARD, PREFIX, chat_folder
from repl_broker.cli.stage.control import serve_control
from repl_broker.cli.stage.layout import Layout, lay_out
from repl_broker.cli.stage.supervisor import Supervisor
from repl_broker.config import Address, load
from repl_broker.errors import ReplBrokerError

__all__ = ["run"]

TOKEN_BYTES: Final = 16
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(count: int, http: Address, folder: Path, log_level: str) -> None:
    """Run a demo of ``count`` nodes until a signal. Raises ConfigError if it cannot start."""
    chat_folder()  # is there
    layout = lay_out(folder, count, http)
    layout.check_ports()
    layout.write(log_level)
    logs.configure(load(options={"log.level": log_level}).log)
    try:
        trio.run(_run, layout, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        raise _cause(group) from None


async def _run(layout: Layout) -> None:
    supervisor = Supervisor(layout)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    async with trio.open_nursery() as nursery:
        await nursery.start(_end_on_signal, nursery.cancel_scope)
        # The control first: if its port is taken, nothing has been started yet.
        control = partial(serve_control, supervisor, layout.control, token, layout.origins)
        await nursery.start(control)
        click.echo(f"Starting {len(layout.places)} nodes …", err=True)
        await nursery.start(supervisor.run)
        click.echo(_announcement(layout, supervisor, token))


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended it: one of ours where there is one; two nodes may fail at once."""
    error: BaseException = group.subgroup(ReplBrokerError) or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _end_on_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(*SIGNALS) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


def _announcement(layout: Layout, supervisor: Supervisor, token: str) -> str:
    # What is behind the # goes to no server, and into no log.
    key = f"#demo={layout.control.port}.{token}"
    lines = ["", f"A cluster of {len(layout.places)} nodes, each with the chat:", ""]
    for place in layout.places:
        leads = "   leads" if place.name == supervisor.leader else ""
        lines.append(f"  {place.name}  {place.url}{PREFIX}/{key}{leads}")
    lines += [
        "",
        f"The dashboard:  {layout.places[0].url}{DASHBOARD}",
        "",
        'Open one in two windows and write. Then press "Kill the leader": the chat goes on.',
        "Whoever has these links can press it, from this machine.",
        "",
        f"Data and logs:  {layout.folder}   (delete it to start afresh; Ctrl-C ends all nodes)",
    ]
    return "\n".join(lines)
