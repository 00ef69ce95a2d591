"""Who changed what, from where: a line for each change that somebody asked for, done or refused.

It is a log of its own, ``repl_broker.audit``, in the one stream of lines. ``[log] audit`` has it
written whatever ``[log] level`` says, or not at all. The id of the request is on it like on
every line that a request causes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from repl_broker.errors import OutcomeUnknownError, RequestError

__all__ = ["Change", "audited", "note"]

STRANGERS: Final = frozenset({"unauthenticated", "forbidden", "rate_limited"})

log = logging.getLogger(__name__)


def note(
    action: str, target: str, *, subject: str, address: str, outcome: str, seldom: bool = True
) -> None:
    """Write the line. ``seldom``: it is never joined with others (logs.py)."""
    log.log(
        logging.INFO if outcome == "done" else logging.WARNING,
        "audit action=%s target=%r subject=%r address=%s outcome=%s",
        action,
        target,
        subject,
        address or "unknown",
        outcome,
        extra={"seldom": True} if seldom else None,
    )


class Change:
    """One that is asked for. Whoever finds out who asks says so; then what became of it is told."""

    def __init__(self) -> None:
        self.subject = "unknown"


@contextmanager
def audited(action: str, target: str, address: str) -> Iterator[Change]:
    """Around what carries it out. Complaints of strangers may be joined into a count."""
    change, outcome = Change(), "unknown"
    try:
        yield change
        outcome = "done"
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
        )
