"""A change of the members that is not committed: what it is, and whom it waits for. Pure.

A change is in force from the moment it is in a log (dissertation §4.1): it is counted by
the voters that there are then. If too few of those answer, nothing is written any more,
and it cannot be taken back either: another change waits until this one is committed. So the
leader refuses such a change unless it is forced; and who looks is told whom it waits for.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence

import msgspec

from repl_broker.raft.log import Membership

__all__ = ["PendingChange", "arithmetic", "pending", "sentence"]


class PendingChange(msgspec.Struct, frozen=True):
    """Ids, in order. What joins is a learner at first."""

    joins: Sequence[str]
    promotes: Sequence[str]
    leaves: Sequence[str]
    voters: Sequence[str]  # who votes by it
    needed: int  # of them, until it is committed
    waits_for: Sequence[str]  # those of them that do not answer, if the others are too few


def pending(
    committed: Membership, newest: Membership, answering: Container[str]
) -> PendingChange | None:
    """The change from ``committed`` to ``newest``; None if that is none.

    ``answering`` has the members that can be reached.
    """
    if committed == newest:
        return None
    voters = sorted(newest.voters)
    needed = len(voters) // 2 + 1
    silent = [each for each in voters if each not in answering]
    return PendingChange(
        sorted(newest.ids - committed.ids),
        sorted((newest.voters - committed.voters) & committed.ids),
        sorted(committed.ids - newest.ids),
        voters,
        needed,
        silent if len(voters) - len(silent) < needed else [],
    )


def arithmetic(voters: Collection[str], answering: Container[str]) -> str:
    """Who votes, how many of them must agree, and who answers, in a clause."""
    names = sorted(voters)
    there = [each for each in names if each in answering]
    away = [each for each in names if each not in answering]
    return (
        f"{len(names) // 2 + 1} of {len(names)} voters must agree ({', '.join(names)}), and "
        f"{len(there)} can ({', '.join(there) or 'none'}); not {', '.join(away) or 'any other'}"
    )


def sentence(change: PendingChange) -> str:
    """For people: what is under way, whom it waits for, and what to do."""
    parts = [
        *(f"the joining of {each}" for each in change.joins),
        *(f"the vote of {each}" for each in change.promotes),
        *(f"the removal of {each}" for each in change.leaves),
    ]
    what = " and ".join(parts) or "a member's new address"
    text = f"{what[0].upper()}{what[1:]} is not known to be committed"
    if not change.waits_for:
        return f"{text}."
    away = ", ".join(change.waits_for)
    answering = [each for each in change.voters if each not in change.waits_for]
    return (
        f"{text}: {arithmetic(change.voters, answering)}. Start {away}, or see that the others "
        "reach it: nothing is written before, and it cannot be taken back, as any other change "
        f"waits for this one. If {away} is lost for good, stop all nodes and run 'repl-broker "
        "cluster recover' on the one whose log goes furthest."
    )
