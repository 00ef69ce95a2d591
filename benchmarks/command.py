"""What the commands of both suites have in common."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

__all__ = ["add_options", "allow_files", "end_in_order", "named", "progress"]

T = TypeVar("T")


def add_options(
    parser: argparse.ArgumentParser, rounds: str = "of which the median is taken (default: 3)"
) -> None:
    """How many rounds, how to print, where to store."""
    parser.add_argument("--rounds", type=_rounds, help=rounds)
    parser.add_argument("--quick", action="store_true", help="one short round: a rough idea")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    parser.add_argument("--dir", type=Path, help="where to store; it should be a real disk")


def _rounds(text: str) -> int:
    rounds = int(text)
    if not 1 <= rounds <= 99:
        raise argparse.ArgumentTypeError("1 to 99")
    return rounds


def named(text: str, choices: Mapping[str, T]) -> list[T]:
    """Those whose names ``text`` lists, in their own order. For an option of argparse."""
    names = text.split(",")
    if unknown := [name for name in names if name not in choices]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(choices)}")
    return [choices[name] for name in choices if name in names]


def allow_files() -> None:
    """As many open files as this user may have, for the servers, which inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def end_in_order() -> None:
    """When this process is asked to end, it ends its servers first, as on Ctrl-C."""

    def leave(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


def progress(what: str) -> None:
    """Say on stderr what goes on; on a terminal, in one line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
    elif what:
        print(what, file=sys.stderr)
