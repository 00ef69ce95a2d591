"""The ``repl-broker`` command: thin click commands over the daemon and its HTTP API.

Importing this package loads click and little else: Trio, Quart and httpx are
imported by the commands that need them, when they run, so that ``--help`` and
shell completion are quick (``tests/cli/test_cli.py`` holds us to it).

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted. An error
is one line on standard error; a traceback is a bug, and ``REPL_BROKER_TRACEBACK=1``
shows it.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from repl_broker import __version__
from repl_broker.cli.backup import backup, restore
from repl_broker.cli.cluster import cluster
from repl_broker.cli.config import config
from repl_broker.cli.demo import demo
from repl_broker.cli.doctor import doctor
from repl_broker.cli.publish import publish
from repl_broker.cli.serve import serve
from repl_broker.cli.subscribe import subscribe
from repl_broker.cli.systemd import systemd
from repl_broker.cli.token import token
from repl_broker.cli.top import top
from repl_broker.cli.topics import topics
from repl_broker.cli.version import version
from repl_broker.config import one_line
from repl_broker.errors import ReplBrokerError, RequestError
from repl_broker.masking import masked
from repl_broker.outlet import say

__all__ = ["main"]


# Raised where a command is missing, with the help as its text; click has it since 8.2.
NO_COMMAND: type[Exception] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())


class OneLineErrors(click.Group):
    """A group in which every failure becomes one line and an exit code."""

    def main(self, *arguments: object, **options: object) -> NoReturn:
        options["standalone_mode"] = False
        try:
            status = super().main(*arguments, **options)  # type: ignore[call-overload]
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001  (the last line of defence)
            sys.exit(report(error))
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> object:
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            ctx.exit(130)
        except BrokenPipeError:
            # The reader (`head`, a pager) has what it wanted. What is still in the
            # buffer goes nowhere, rather than into an error at exit.
            abandon_stdout()
            ctx.exit(0)
        return result


def report(error: BaseException) -> int:
    """Print the one line of an error; its exit code."""
    error = single(error)
    if isinstance(error, NO_COMMAND):
        click.echo(str(error), err=True)
        return 2
    match error:
        case click.UsageError():
            context = error.ctx
            hint = f" (see '{context.command_path} --help')" if context else ""
            return fail(error.format_message().rstrip(".") + hint, 2)
        case click.ClickException():
            return fail(error.format_message(), error.exit_code)
        case click.Abort():
            return fail("cancelled", 1)
        case RequestError():
            return fail(f"{error.title}: {error.detail} [{error.code}]", 1)
        case ReplBrokerError():
            return fail(str(error), 1)
    if os.environ.get("REPL_BROKER_TRACEBACK"):
        raise error
    return fail(f"{type(error).__name__}: {error} (a bug; REPL_BROKER_TRACEBACK=1 shows more)", 1)


def fail(message: str, code: int) -> int:
    known = os.environ.get("REPL_BROKER_TOKEN", "").strip()
    say(sys.stderr, f"error: {masked(one_line(message), known)}\n")
    return code


def single(error: BaseException) -> BaseException:
    """What a nursery has wrapped in groups, if it is one thing."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def abandon_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@click.group(
    name="repl-broker",
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="repl-broker %(version)s")
def main() -> None:
    """Real-time messages for web applications: REST in, Server-Sent Events out.

    "serve" runs a node. "backup", "restore" and "cluster recover" work on a data
    directory, "token create" on a secret. The other commands talk to a node, at --url or
    REPL_BROKER_URL.
    """


for _command in (
    serve,
    demo,
    publish,
    subscribe,
    topics,
    top,
    cluster,
    token,
    backup,
    restore,
    doctor,
    config,
    systemd,
    version,
):
    main.add_command(_command)
