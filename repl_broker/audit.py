"""Who changed what, from where: a line for each change that somebody asked for, done or refused.

It is a log of its own, ``repl_broker.audit``, in the one stream of lines. ``[log] audit`` has it
written whatever ``[log] level`` says, or not at all. The id of the request is on it like on
every line that a request causes.

The broker writes the line of what it is asked to do (``audited``), and whoever refuses a request
before it asks the broker writes that one (web/refused.py). What those cause who may change nothing
is counted after a few lines (logs.py): of each subject by itself, and of all who have no name
together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from repl_broker.errors import OutcomeUnknownError, RequestError

__all__ = ["NOTED", "Change", "audited", "note"]

STRANGERS: Final = frozenset({"unauthenticated", "forbidden", "rate_limited"})
TARGET_CHARACTERS_MAX: Final = 256
LINE: Final = "audit action=%s target=%r subject=%r address=%s outcome=%s"

log = logging.getLogger(__name__)

# Whether the change that is asked for here has its line.
NOTED: Final[ContextVar[bool]] = ContextVar("repl_broker.audit.noted", default=False)


def note(
    action: str,
    target: str,
    *,
    subject: str,
    address: str,
    outcome: str,
    seldom: bool = True,
    forced: bool = False,
) -> None:
    """Write the line. ``seldom``: it is never joined with others (logs.py)."""
    NOTED.set(True)
    values: list[object] = [action, target[:TARGET_CHARACTERS_MAX], subject]
    values += [address or "unknown", outcome]
    log.log(
        logging.INFO if outcome == "done" else logging.WARNING,
        LINE + (" forced=%s" if forced else ""),
        *values,
        *([True] if forced else ()),
        extra={"seldom": True} if seldom else {"kind": f"{outcome} {subject}"},
    )


class Change:
    """One that is asked for. Whoever finds out who asks says so; then what became of it is told."""

    def __init__(self) -> None:
        self.subject = "unknown"
        self.outcome = "done"  # if it is not refused


@contextmanager
def audited(action: str, target: str, address: str, *, forced: bool = False) -> Iterator[Change]:
    """Around what carries it out. Complaints of strangers may be joined into a count."""
    change, outcome = Change(), "unknown"
    try:
        yield change
        outcome = change.outcome
    except OutcomeUnknownError:
        raise
    except RequestError as error:
        outcome = error.code
        raise
    finally:
        note(
            action,
            target,
            subject=change.subject,
            address=address,
            outcome=outcome,
            seldom=outcome not in STRANGERS,
            forced=forced,
        )
