"""A store that was part of a cluster, or the copy of one, becomes the whole of a new one. Offline.

Two ways lead here: a backup is restored, and a cluster that has lost its
majority is recovered from one node that is left. Both keep the log, and append
one entry to it: from there on this node is the only member, so that it commits
all that stands before. Both draw a new cluster id and a new epoch:

    cluster id   the handshake binds it: nodes of the old cluster are strangers
    epoch        numbers that the old cluster gave may be given again, to other
                 messages: with a new epoch a reader with an old cursor is told
                 of a gap (``unknown_epoch``), and misses nothing in silence

What was done is noted in the store, under ``foundings``, for those who wonder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from repl_broker.errors import ConfigError
from repl_broker.message import time_text
from repl_broker.raft.log import Entry, EntryKind, HardState, Member, Membership, WriteBatch
from repl_broker.storage import Identity, Loaded, SqliteStorage

__all__ = ["DISOWNED", "FOUNDED", "FOUNDINGS", "LOST", "Recovery", "Standing", "found"]
__all__ += ["Rebuilt", "former_addresses", "rebuilt_of", "standing_of"]

FOUNDINGS: Final = "foundings"  # the note: a list of records, the newest last
FOUNDED: Final = "founded"  # the note: when --bootstrap founded one with an empty store, or a
# store that was rebuilt began to serve, in ms
DISOWNED: Final = "disowned"  # the note: why a node takes no part, whose cluster should not be
LOST: Final = "lost"  # the note: up to where the log was acknowledged, and where it ended


@dataclass(frozen=True, slots=True)
class Standing:
    """Whose a store is, how far its log goes, and who belongs to its cluster."""

    identity: Identity
    term: int  # the newest that the node has seen
    last_index: int
    last_term: int
    membership: Membership | None  # the newest in the log; None where there was none yet

    @property
    def member(self) -> Member | None:
        """The node itself, as the cluster knows it."""
        return self.membership.find(self.identity.node_id) if self.membership else None

    def as_json(self) -> dict[str, Any]:
        """For people, and for the record."""
        members = self.membership.members if self.membership else ()
        return {
            "node": self.identity.node_id,
            "cluster_id": self.identity.cluster_id,
            "epoch": self.identity.epoch,
            "term": self.term,
            "last_index": self.last_index,
            "last_term": self.last_term,
            "members": [
                {
                    "id": m.id,
                    "role": "voter" if m.voter else "learner",
                    "raft_address": m.raft_address,
                    "http_url": m.http_url,
                    "incarnation": m.incarnation,
                }
                for m in members
            ],
        }


def standing_of(identity: Identity, loaded: Loaded) -> Standing:
    """Of what a store gave. Raises ValueError for a membership that cannot be read."""
    last_index = last_term = 0
    membership = None
    if (snapshot := loaded.snapshot) is not None:
        last_index, last_term = snapshot.index, snapshot.term
        membership = Membership.decode(snapshot.membership) if snapshot.membership else None
    for entry in loaded.entries:
        last_index, last_term = entry.index, entry.term
        if entry.kind is EntryKind.MEMBERSHIP:
            membership = Membership.decode(entry.data)
    return Standing(identity, loaded.hard_state.term, last_index, last_term, membership)


def found(
    storage: SqliteStorage,
    old: Standing,
    identity: Identity,
    membership: Membership,
    *,
    how: str,
    now_ms: int,
    apart: bool = False,
    notes: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Make the store one of ``identity``, with ``membership`` in force; the record of it.

    If ``apart``, it serves whoever else lives of the cluster that it comes from.
    All is on disk when this returns, or nothing. The term is a new one, in which
    nobody has voted or appended.
    """
    term = max(old.term, old.last_term) + 1
    entry = Entry(old.last_index + 1, term, EntryKind.MEMBERSHIP, membership.encode())
    new = Standing(identity, term, entry.index, term, membership)
    record: dict[str, Any] = {
        "how": how,
        "time": time_text(now_ms),
        "old": old.as_json(),
        "new": new.as_json(),
    }
    record |= {"apart": True} if apart else {}
    foundings = [*(storage.note(FOUNDINGS) or ()), record]
    batch = WriteBatch((entry,), HardState(term, None))
    # Of another cluster now, that is sure; and nobody knows what it said in the one before.
    founded = {FOUNDINGS: foundings, FOUNDED: None, DISOWNED: None, LOST: None}
    storage.found_cluster(identity, batch, {**(notes or {}), **founded})
    return record


class Rebuilt(NamedTuple):
    """What the newest of a store's foundings says to the node that runs on it."""

    founded_at: int  # of the entry that made it the only member: what comes behind is its own
    apart: bool  # it was said to be a cluster of its own, whatever lives beside it
    former: tuple[str, ...]  # where the others were of the cluster that it comes from


def rebuilt_of(foundings: Any, me: Member) -> Rebuilt | None:
    """Of the note; None for a store that is neither restored nor recovered."""
    if not foundings:
        return None
    newest = foundings[-1]
    index = newest.get("new", {}).get("last_index", 0)
    apart = newest.get("apart") is True
    return Rebuilt(index, apart, () if apart else tuple(former_addresses(foundings, me)))


def former_addresses(foundings: Any, me: Member) -> list[str]:
    """Where the others were of the cluster from which the store was made, if it is at home:
    the node of that name and address was one of them. A copy elsewhere leaves them alone."""
    old = foundings[-1].get("old", {}).get("members", []) if foundings else []
    addresses = {each.get("id"): each.get("raft_address") for each in old}
    if addresses.pop(me.id, None) != me.raft_address:
        return []
    return sorted(address for address in addresses.values() if address)


class Recovery:
    """One node of a cluster that has lost its majority, to become the only member.

    A context manager, which holds the store's lock: the node cannot be started
    meanwhile. Raises ConfigError for a node that this is nothing for,
    StoreLockedError for one that runs, StorageError for a damaged store.
    """

    def __init__(self, folder: Path) -> None:
        self._storage = SqliteStorage(folder, None)
        try:
            self.standing = standing_of(self._storage.identity, self._storage.load())
            self._check()
        except BaseException:
            self._storage.close()
            raise

    def _check(self) -> None:
        node, members = self.standing.identity.node_id, self.standing.membership
        if members is None and self.standing.identity.adopted:
            raise ConfigError(
                f"node {node!r} has joined a cluster, and has nothing of its log yet; "
                "recover on another node of it"
            )
        me = self.standing.member
        is_alone = me is not None and members is not None and members.ids == {node}
        is_single = is_alone and me is not None and not me.raft_address
        # A restored store that found its cluster alive has no address in its log yet.
        if members is None or (is_single and self._storage.note(DISOWNED) is None):
            raise ConfigError(
                f"node {node!r} is not part of a cluster: it runs alone, and has no majority to "
                "lose; start it with 'repl-broker serve'"
            )
        if me is None:
            raise ConfigError(
                f"node {node!r} is no member of its cluster any more (members: "
                f"{', '.join(sorted(members.ids))}); recover on a member. 'repl-broker backup' "
                "and 'repl-broker restore' save what this node has"
            )

    def carry_out(self, now_ms: int, *, apart: bool = False) -> dict[str, Any]:
        """Make the node the only member, and a voter; the record of it (see ``found``)."""
        old = self.standing
        assert old.membership is not None, "it was looked at"
        assert old.member is not None, "it was looked at"
        drawn = Identity.draw(old.identity.node_id)
        identity = replace(old.identity, cluster_id=drawn.cluster_id, epoch=drawn.epoch)
        me = replace(old.member, voter=True, incarnation=identity.incarnation)
        alone = old.membership.with_member(me)
        for gone in sorted(old.membership.ids - {me.id}):
            alone = alone.without(gone)
        store = self._storage
        return found(store, old, identity, alone, how="recover", now_ms=now_ms, apart=apart)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._storage.close()
