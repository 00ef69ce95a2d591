"""What the cluster has decided, in every node's log: members, topics, tokens, settings.

Each node applies the same entries, and says of each what has changed, as it applies it. By
whom that was asked for, the node knows that was asked (audit.py). What a start finds in the
store was said before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from repl_broker.command import (
    Command,
    Configure,
    CreateTopic,
    DeleteTopic,
    DeleteTopics,
    RaiseLevel,
    RevokeTokens,
    Settings,
)
from repl_broker.raft.log import Membership
from repl_broker.state import Outcome, Refused, Repeated, TopicChanged, TopicsDeleted

__all__ = ["Chronicle"]

log = logging.getLogger(__name__)

# What may be much is written a few times in a while, and then counted (logs.py).
JOINS: Final = {"joins": True}

# By which key of the configuration each setting of the cluster is set.
KEYS: Final = {
    "auto_create": "topics.auto_create",
    "retention.messages": "topics.retention.messages",
    "retention.seconds": "topics.retention.seconds",
    "retention.bytes": "topics.retention.bytes",
    "retention.idle_seconds": "topics.retention.idle_seconds",
    "idempotency_keys": "limits.idempotency_keys",
    "idempotency_seconds": "limits.idempotency_seconds",
    "topics": "limits.topics",
    "shares.topics": "limits.topics_per_client",
    "shares.storage_bytes": "limits.storage_bytes_per_client",
    "shares.idempotency_keys": "limits.idempotency_keys_per_client",
    "shares.of_publishers": "auth.mode",  # or a limit per client
}


class Chronicle:
    """Says what changes from here on; ``begin`` says where that is."""

    def __init__(self) -> None:
        self._from_index = 0
        self._members = Membership()
        self._settings: Settings | None = None

    def begin(self, index: int, members: Membership, settings: Settings) -> None:
        """Entries up to ``index`` were there at the start: they are no news."""
        self._from_index = index
        self._members = members
        self._settings = settings if index else None  # a new log begins with them

    def members(self, index: int, now: Membership) -> None:
        """These are committed as of that entry."""
        before, self._members = self._members, now
        if index <= self._from_index:
            return
        for member in now.members:
            old, role = before.find(member.id), "voter" if member.voter else "learner"
            if old is None or old.incarnation != member.incarnation:
                text = "member added id=%s role=%s address=%s members=%s"
                log.info(text, member.id, role, member.raft_address, _names(now))
            elif old.voter != member.voter:
                log.info("member is a voter now id=%s voters=%s", member.id, _voters(now))
            elif old.raft_address != member.raft_address:
                text = "member moved id=%s address=%s was=%s"
                log.info(text, member.id, member.raft_address, old.raft_address)
        for gone in sorted(before.ids - now.ids):
            log.warning("member removed id=%s voters=%s", gone, _voters(now))

    def changes(
        self, index: int, settings: Settings, done: Sequence[tuple[Command, Outcome]]
    ) -> None:
        """Commands of that entry that are no publishes, with what became of them."""
        before, self._settings = self._settings, settings
        if index <= self._from_index:
            return
        for command, outcome in done:
            if isinstance(outcome, Refused | Repeated):
                continue
            match command:
                case CreateTopic() if isinstance(outcome, TopicChanged):
                    text = "topic created topic=%s" if outcome.created else "topic set topic=%s"
                    log.info(text, command.name, extra=JOINS)
                case DeleteTopic():
                    log.info("topic deleted topic=%s", command.name, extra=JOINS)
                case DeleteTopics() if isinstance(outcome, TopicsDeleted) and outcome.topics:
                    text = "topics deleted, because they were idle topics=%d first=%s last=%s"
                    if not command.used:
                        text = "topics deleted topics=%d first=%s last=%s"
                    log.info(text, outcome.topics, command.names[0], command.names[-1], extra=JOINS)
                case RevokeTokens():
                    log.info("tokens revoked subject=%r", command.subject, extra=JOINS)
                case RaiseLevel():
                    log.info("feature level raised level=%d", command.level)
                case Configure() if before is not None:
                    for key, was, value in _differences(before, settings):
                        log.info("setting changed key=%s value=%r was=%r", KEYS[key], value, was)


def _names(members: Membership) -> str:
    return "+".join(sorted(members.ids))


def _voters(members: Membership) -> str:
    return "+".join(sorted(members.voters))


def _differences(before: Any, after: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in (field.name for field in fields(after)):
        was, value = getattr(before, name), getattr(after, name)
        if is_dataclass(value) and is_dataclass(was):
            yield from _differences(was, value, f"{prefix}{name}.")
        elif was != value:
            yield f"{prefix}{name}", was, value
