"""Who belongs to the cluster: starting one, joining one, changing one.

    --bootstrap   a node that is alone writes its own address into the log: from
                  then on others can be added
    --join        an empty node asks a member to add it. The leader looks whether
                  the node answers at the address that it gave, invites it (the
                  node then belongs to the cluster, on its disk), and appends it
                  as a learner; it is promoted by itself when it has caught up

A node is known by its id and the *incarnation* of its data: one that lost its
data, or was removed, is not taken for the one that it was. Any node takes a
change and has the leader carry it out; nobody sends on what was sent to it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
import trio

from repl_broker.changes import PendingChange, sentence
from repl_broker.command import RaiseLevel
from repl_broker.config import Address, RefusedError
from repl_broker.errors import ConfigError, OutcomeUnknownError, ReplBrokerError, RequestError
from repl_broker.founding import Rebuilt
from repl_broker.handshake import (
    Hello,
    Itself,
    Level,
    Loss,
    Lost,
    Objection,
    Refused,
    Removal,
    Twin,
    Version,
    lost_its_data,
)
from repl_broker.levels import FIRST
from repl_broker.notices import Notices
from repl_broker.raft.core import MembershipChange, Remove, Role, UpdateMember
from repl_broker.raft.log import Member, Membership
from repl_broker.replica import MemberProgress, NotLeaderError, Replica, disowned_error
from repl_broker.sending import UNKNOWN_REQUEST
from repl_broker.transport import (
    Me,
    PeerRefusedError,
    PeerUnreachableError,
    Transport,
    TransportStatistics,
)

__all__ = ["Joiner", "MemberView", "Members"]

log = logging.getLogger(__name__)

CALL_SECONDS: Final = 5
CHANGE_SECONDS: Final = 4 * CALL_SECONDS  # for the leader, who may ask the node twice
JOIN_RETRY_SECONDS: Final = 1
WATCH_SECONDS: Final = 10  # between two looks around of a node that has a leader
FIRST_LOOK_SECONDS: Final = 2  # that a founder waits for answers before it serves
YOUNG_SECONDS: Final = 3600  # that a cluster has little to lose, and others may be on their way
REASON_CHARACTERS_MAX: Final = 2000
OBJECTIONS_MAX: Final = 5
NAMES_MAX: Final = 10
JOIN_REMEDY: Final = "see that a member runs there, with the same secret, and its log"
OBJECTIONS: Final = {
    "older": "speaks an older protocol (stop all nodes, and start them with one version)",
    Version.kind: "speaks another protocol (stop all nodes, and start them with one version)",
    "stranger": "has another secret or version (compare [cluster] secret_file and 'repl-broker "
    "version' on both)",
    Level.kind: "has a higher feature level, or a lower one (install the newer version on both)",
    Loss.kind: "knows this node with other data (this one lost its own; see its log)",
    Removal.kind: "has removed this node",
    Twin.kind: "is connected to another process with this node's data (stop one of the two, and "
    "let it join with an id of its own and an empty data directory)",
    Objection.kind: "refuses this node, or is refused (see its log)",
}
# What may be otherwise soon; any other refusal of a join ends the node.
PASSING: Final = frozenset(
    {"no_leader", "membership_change_in_progress", "outcome_unknown", "member_unreachable"}
)

LOSES: Final = (
    "What was acknowledged only in this cluster is lost with the data directories of its members: "
    "save it first with 'repl-broker backup'"
)
WAY_BACK: Final = (
    "To keep this cluster instead, stop its members, run 'repl-broker cluster recover --apart' on "
    "the one with the longest log, and have the others join that one anew"
)

FORCED: Final = "remove-forced"  # a change, and a request: older nodes know neither
LEVEL_SECONDS: Final = 1.0  # between two looks at which versions the members run

Answer = tuple[str, str] | None  # code and detail of a refusal


class MemberView(NamedTuple):
    """A member as the API shows it; None where this node cannot know."""

    id: str
    role: str  # "leader", "voter" or "learner"
    raft_address: str
    http_url: str
    match_index: int | None  # its log is known to be the leader's up to here
    lag: int | None  # entries that it lacks
    reachable: bool
    feature_level: int | None  # the highest that its version has
    clock_skew_seconds: float | None  # by which its clock is ahead of this node's


class Joiner(NamedTuple):
    """Who a node says that it is."""

    id: str
    incarnation: str
    cluster_id: str  # empty: of none yet
    commit_index: int = 0  # up to which it knows the log, and that it is a member there; else 0


class Members:
    """The cluster's members, as seen and changed from this node.

    ``me`` is how others reach this node. ``join`` holds the addresses of members
    to ask, for a node that is to join; ``watch`` those where any node looks for
    others, once it belongs to a cluster (``look_around``). ``rebuilt`` is there for a store
    that was restored or recovered, so that old members know it otherwise.
    ``on_adopted`` is called once a cluster has taken the node in, and
    ``on_disowned`` when it turns out that its cluster should not have been founded.
    """

    def __init__(
        self,
        replica: Replica,
        me: Member,
        *,
        join: Sequence[Address] = (),
        watch: Sequence[Address] = (),
        rebuilt: Rebuilt | None = None,
        on_adopted: Callable[[], None] = lambda: None,
        on_disowned: Callable[[], None] = lambda: None,
    ) -> None:
        self._replica = replica
        self._me = me
        self._join = self._others(join) if replica.is_empty or replica.adopted else ()
        former = rebuilt.former if rebuilt is not None else ()
        former = tuple(address for address in former if address not in map(str, watch))
        self._watch = self._others([*watch, *map(Address.parse, former)])
        self._rebuilt = rebuilt
        self._on_adopted = on_adopted
        self._on_disowned = on_disowned
        self._transport: Transport | None = None
        self.skew_seconds: Callable[[str], float | None] = lambda node_id: None  # by clocks.py
        self.check_clock: Callable[[str], None] = lambda node_id: None  # … too
        self._changed = trio.Event()  # set when the members change
        self._elsewhere: dict[str, tuple[str, Address]] = {}  # by id: not there any more, but here
        self._notices = Notices()
        self._noted: dict[Address, str] = {}  # what was logged of the addresses in ``join``
        self._own: set[Address] = set()  # those in ``watch`` at which this node has found itself
        self._stirred = trio.Event()  # set when there is something to tell the others
        self._is_new = replica.is_empty
        replica.handlers |= {
            "change": self._on_change,
            FORCED: lambda peer, node_id: self._on_change(peer, (FORCED, node_id, False)),
            "join": self._on_join,
            "who": self._on_who,
            "invite": self._on_invite,
            "disown": self._on_disown,
        }
        if self._is_new and self._founded:
            replica.founds()
        self._actions: dict[str, Callable[[Any], Awaitable[None]]] = {
            "add": self._add,
            "update": self._update,
            "remove": self._remove,
            FORCED: self._remove_forced,
            "transfer": self._transfer,
        }

    def _others(self, addresses: Sequence[Address]) -> tuple[Address, ...]:
        return tuple(each for each in addresses if str(each) != self._me.raft_address)

    def connect(self, transport: Transport) -> None:
        """Use ``transport`` from now on; before ``run``."""
        self._transport = transport
        transport.me = self._identity()

    def _identity(self) -> Me:
        replica = self._replica
        cluster_id = replica.cluster_id if self._belongs else ""
        return Me(cluster_id, replica.node_id, replica.incarnation, replica.level_max)

    @property
    def _belongs(self) -> bool:
        """Whether the node belongs to a cluster, if only to one of itself."""
        return self._replica.adopted or not self._join

    @property
    def has_joined(self) -> bool:
        """Whether this node is among the members that it knows."""
        return self._replica.node_id in self._replica.membership.ids

    @property
    def known_index(self) -> int:
        """Up to where this node knows the log, and that it is a member there; else 0."""
        replica = self._replica
        is_member = _has(replica.committed_membership, replica.node_id, replica.incarnation)
        return replica.commit_index if is_member else 0

    def statistics(self) -> TransportStatistics:
        """What the connections to peers count."""
        return self._require_transport().statistics()

    @property
    def has_twin(self) -> bool:
        """Whether a peer says that another process runs as this node."""
        return self._require_transport().has_twin

    def objections(self) -> str:
        """Why there may be no majority: the peers that are refused, or refuse, in a sentence.

        For anybody to read: it has ids and remedies, and no addresses.
        """
        stuck = self.pending_change()
        found = [
            f"{peer} {OBJECTIONS.get(kind, OBJECTIONS[Objection.kind])}"
            for peer, kind in sorted(self._require_transport().refusals().items())[:OBJECTIONS_MAX]
        ]
        texts = [f"Not talked to: {'; '.join(found)}."] if found else []
        texts += [sentence(stuck)] if stuck is not None and stuck.waits_for else []
        return " ".join(texts)

    def pending_change(self) -> PendingChange | None:
        """A change of the members that this node does not know to be committed."""
        replica = self._replica
        reached = replica.answering if replica.leads else {self._me.id, *self._connected()}
        return replica.pending_change(reached)

    def why_no_leader(self) -> str:
        """Which voters are not reached, and how many it takes; and ``objections``."""
        voters, transport = self._replica.membership.voters, self._require_transport()
        silent = self._replica.unanswering if self._replica.leader is None else ()
        missing = sorted(
            peer
            for peer in voters - {self._me.id}
            if peer in silent or not transport.is_connected(peer)
        )
        parts = [self.objections()]
        if missing:
            needed = len(voters) // 2 + 1
            names = ", ".join(missing[:NAMES_MAX]) + (" …" if len(missing) > NAMES_MAX else "")
            parts.insert(0, f"Not reached: {names}; {needed} of {len(voters)} voters have to meet.")
        return " ".join(filter(None, parts))

    # --- tasks ---

    async def run(self) -> None:
        """Join, if that is to be done; then keep this node's own record true.

        Raises ConfigError if the cluster will not have it, and it is no member yet.
        """
        if self._replica.disowned is not None:
            self._say_disowned()
        if self._join:
            if not self._replica.is_empty:  # it was taken in; does the cluster know?
                await self._wait_to_be_led(self._replica.patience)
            await self._ask_to_join()
        while True:
            changed = self._changed
            await self._keep_record()
            await changed.wait()
            await trio.sleep(2 * self._replica.options.election_timeout_seconds)
            self._connect()  # who has gone has heard of it by now

    async def raise_level(self) -> None:
        """As leader, have the cluster's feature level rise to what all members know."""
        replica = self._replica
        while replica.state.level < replica.level_max:
            seen = replica.seen
            if seen.role is Role.LEADER and seen.has_committed:
                level = min(self._level_of(each) or FIRST for each in replica.membership.ids)
                if level > replica.state.level:
                    with suppress(RequestError):  # it is tried again
                        await replica.propose(RaiseLevel(level))
                        replica.level_raised()
            with trio.move_on_after(LEVEL_SECONDS):
                await replica.news(seen)

    def _level_of(self, node_id: str) -> int | None:
        if node_id == self._me.id:
            return self._replica.level_max
        return self._require_transport().level_of(node_id)

    async def look_around(self) -> None:
        """Ask who is at ``watch``, for as long as that may be news.

        A founder may be a member of another cluster, that has lost its data: it is told
        there, and that comes to ``disown``. So it looks wherever it has no member of its
        own. A member that hears no leader may find others where they are now, if the
        addresses of all have changed. One that has been disowned tells its cluster.
        """
        while True:
            self._stirred = trio.Event()
            is_led, all_told = self.is_led, True
            if self._replica.disowned is not None:
                all_told = await self._tell_disowned()
            elif self._founded or self._is_young_rebuilt or (self.has_joined and not is_led):
                await self._look(self._unknown if is_led else self._watch)
            with trio.move_on_after(WATCH_SECONDS if is_led and all_told else JOIN_RETRY_SECONDS):
                await self._stirred.wait()

    async def look_first(self) -> None:
        """Before a founder serves again, or a store that was rebuilt: it may have been told by
        nobody yet.

        A new one has asked before it founded (cluster.py).
        """
        if (self._founded and not self._is_new) or self._is_young_rebuilt:
            with trio.move_on_after(FIRST_LOOK_SECONDS):
                await self._look(self._unknown)
        is_new = self._rebuilt is not None and not self._replica.has_founded
        if is_new and self._replica.disowned is None:
            self._replica.founds()

    @property
    def _is_young_rebuilt(self) -> bool:
        """Whether the store was restored or recovered, and it has not served for long since."""
        replica = self._replica
        is_young = not replica.has_founded or replica.founded_seconds_ago < YOUNG_SECONDS
        return self._rebuilt is not None and not self._rebuilt.apart and is_young

    def _heed(self, other: Refused, address: Address) -> None:
        """Of another cluster, as the node at ``address`` says. If it takes writes, a store that
        was made of a backup, or of what was left of that cluster, does not take any beside it:
        unless it has taken some, or others have joined it, before that one came (back)."""
        replica = self._replica
        is_another = other.cluster_id not in ("", replica.cluster_id)
        if replica.disowned is not None or not (is_another and other.is_led):
            return
        if self._rebuilt is None or not self._is_young_rebuilt:
            return
        there = f"node {other.node_id!r} at {address} hears its leader"
        has_joiners = replica.membership.ids != {self._me.id}
        if has_joiners or replica.has_taken_since(self._rebuilt.founded_at):
            text = "goes on beside another cluster: %s. Clients of the two see different messages"
            text += "; stop the nodes of the one that is not wanted cluster_id=%s has=%r"
            has = "members that joined" if has_joiners else "taken writes"
            self._notices.warn(log, other.cluster_id, text, there, other.cluster_id, has)
            return
        self._take_no_part(
            f"its store was restored or recovered, and the cluster {other.cluster_id} lives: "
            f"{there}. To have this node in that cluster, stop it, and let it join with --join, "
            "without --bootstrap, and with an empty data directory; what only the old one has is "
            "lost then, and 'repl-broker backup' saves it. To have a cluster of its own, stop it, "
            "and run 'repl-broker cluster recover --apart' on its machine"
        )

    @property
    def _unknown(self) -> list[Address]:
        """Where there may be others than the members of this cluster, and this node."""
        known = {member.raft_address for member in self._replica.membership.members}
        return [each for each in self._watch if str(each) not in known and each not in self._own]

    async def _look(self, addresses: Sequence[Address]) -> None:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(self._look_at, address)

    async def _look_at(self, address: Address) -> None:
        try:
            found = await self._require_transport().call_address(
                (address.host, address.port), "who", None, seconds=CALL_SECONDS
            )
            there = msgspec.convert(found, Joiner)
        except PeerRefusedError as error:  # of a Loss ``disown`` has heard
            if error.kind == Itself.kind:
                self._own.add(address)
            elif error.about is not None:
                self._heed(error.about, address)
            return
        except (PeerUnreachableError, ValueError):
            return
        known = self._replica.membership.find(there.id)
        if known is None or there.id == self._me.id or str(address) == known.raft_address:
            return
        is_it = (there.cluster_id, there.incarnation) == (
            self._replica.cluster_id,
            known.incarnation,
        )
        if is_it and self._elsewhere.get(there.id) != (known.raft_address, address):
            log.info("found a member elsewhere id=%s address=%s", there.id, address)
            self._elsewhere[there.id] = known.raft_address, address
            self._connect()

    @property
    def _founded(self) -> bool:
        """Whether this node founded its cluster, with an empty store."""
        return self._belongs and not self._replica.adopted and self._rebuilt is None

    def disown(self, lost: Lost) -> None:
        """A cluster has this node as a member that lost its data. If it has founded another one
        meanwhile, two take writes under one name: this one stops, with all who have joined it,
        and stays so when it is started again. ('repl-broker cluster recover' makes it a cluster
        of its own.)"""
        if self._replica.disowned is None and self._must_yield(lost):
            self._take_no_part(lost.reason)

    def _must_yield(self, lost: Lost) -> bool:
        """Whether this node's cluster is the one that should not be.

        A cluster that others have joined does not yield to the old data of one of its own
        members. After its first hour it yields only to a cluster that takes writes itself
        and has this node as a member at its address: nothing is won otherwise.
        """
        replica = self._replica
        ids = replica.membership.ids
        if not self._founded or lost.cluster_id == replica.cluster_id:
            return False
        if ids == {self._me.id}:
            return True
        if not lost.node_id or lost.node_id in ids:
            return False
        if replica.founded_seconds_ago < YOUNG_SECONDS:
            return True
        return lost.is_led and lost.member_at in (None, self._me.raft_address)

    def _take_no_part(self, reason: str) -> None:
        self._replica.disown(reason)
        self._say_disowned()
        self._connect()
        self._on_disowned()
        self._stirred.set()

    def _say_disowned(self) -> None:
        if self._replica.adopted or self._rebuilt is not None:  # the remedy is in the reason
            log.error("takes no writes and is not ready reason=%r", self._replica.disowned)
            return
        log.error(
            "takes no writes and is not ready: it founded a cluster while another has it as a "
            "member reason=%r remedy=%r",
            self._replica.disowned,
            f"{LOSES}. Then stop this node, remove its old self there, and start it with --join "
            f"and an empty data directory. {WAY_BACK}",
        )

    async def _tell_disowned(self) -> bool:
        """Have all members of this cluster take no part either; whether all have heard it."""
        replica, all_told = self._replica, True
        reason = replica.disowned
        if not replica.adopted:
            why = "has another store now" if self._rebuilt is not None else "had lost its data"
            reason = (
                f"its cluster was founded by node {self._me.id!r}, which {why}. {LOSES}. Then stop "
                "this node, remove its data directory, and start it with --join and the address "
                f"of a member of the other cluster. {WAY_BACK}. Node {self._me.id!r} was told: "
                f"{reason}"
            )

        async def tell(peer: str) -> None:
            nonlocal all_told
            try:
                await self._require_transport().call(peer, "disown", reason, seconds=CALL_SECONDS)
            except PeerUnreachableError:
                all_told = False
            except PeerRefusedError:  # it is gone from here, or too old to know of this
                pass

        async with trio.open_nursery() as nursery:
            for peer in sorted(replica.membership.ids - {self._me.id}):
                nursery.start_soon(tell, peer)
        return all_told

    async def _on_disown(self, peer: str, argument: Any) -> None:
        reason = msgspec.convert(argument, str)[:REASON_CHARACTERS_MAX]
        if self._replica.disowned is None:
            self._take_no_part(reason)

    async def _ask_to_join(self) -> None:
        while not self.is_led:
            refusals: list[str] = []
            accepted = False
            for address in self._join:
                accepted = await self._ask_one_to_join(address, refusals)
                if accepted:
                    break
            # A member has its majority to wait for, whoever answers at these addresses.
            if refusals and not accepted and not self.has_joined:
                raise ConfigError(refusals[0])
            # What one leader has accepted, it may lose; asking again does no harm.
            await self._wait_to_be_led(self._replica.patience if accepted else JOIN_RETRY_SECONDS)
            while accepted and self._replica.leader is not None and not self.is_led:
                # It talks to members only, so this is one: there is nothing to ask, however long
                # its copy of all there is may take.
                await self._replica.pause(self._replica.seen)

    @property
    def is_led(self) -> bool:
        """Whether a leader talks to this node, and its membership is committed."""
        replica = self._replica
        return replica.leader is not None and replica.node_id in replica.committed_membership.ids

    async def _wait_to_be_led(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while not self.is_led:
                await self._replica.pause(self._replica.seen)

    async def _ask_one_to_join(self, address: Address, refusals: list[str]) -> bool:
        me = self._me
        argument = (me.id, me.raft_address, me.http_url)
        try:
            found = await self._require_transport().call_address(
                (address.host, address.port), "join", argument, seconds=CHANGE_SECONDS
            )
        except PeerUnreachableError as error:
            self._note_refusal(address, str(error))
            return False
        except PeerRefusedError as error:
            if error.kind != Itself.kind:  # by another name of its own: it asks the others
                self._note_refusal(address, str(error))
                # It belongs to a cluster: another one, or a stranger, has nothing to say.
                if not self._belongs:
                    refusals.append(f"cannot join the cluster through {address}: {error}")
            return False
        refusal = msgspec.convert(found, Answer)
        if refusal is None:
            self._noted.pop(address, None)
            log.info("joined address=%s cluster_id=%s", address, self._replica.cluster_id)
            return True
        code, detail = refusal
        self._note_refusal(address, detail)
        if code not in PASSING:
            refusals.append(f"cannot join the cluster through {address}: {detail}")
        return False

    def _note_refusal(self, address: Address, reason: str) -> None:
        """Once, until it is another: it is asked for again each second."""
        if self._noted.get(address) == reason:
            return
        self._noted[address] = reason
        if self.has_joined:
            text = "waits for a majority of its cluster; no help from join address=%s reason=%r"
        else:
            text = "cannot join yet, and asks again each second address=%s reason=%r remedy=%r"
            log.warning(text, address, reason, JOIN_REMEDY)
            return
        log.warning(text, address, reason)

    async def _keep_record(self) -> None:
        """Have the members know this node's addresses as they are now."""
        me = self._me
        fields = (me.id, me.raft_address, me.http_url, me.incarnation)
        refusal = ""
        while True:
            known = self._replica.membership.find(me.id)
            if known is not None:
                if fields == (known.id, known.raft_address, known.http_url, known.incarnation):
                    return
                try:
                    await self._by_leader("update", fields, relay=True)
                    continue
                except RequestError as error:
                    if str(error) != refusal:  # it is asked for again and again
                        log.warning("cannot tell the members of this node reason=%r", str(error))
                    refusal = str(error)
            with trio.move_on_after(JOIN_RETRY_SECONDS):
                await self._changed.wait()

    # --- peers ---

    def follow(self, members: Membership) -> None:
        """These are the members from now on."""
        self._connect()
        self._changed.set()
        self._changed = trio.Event()

    def _connect(self) -> None:
        """Connect to all members, and to who is about to go: it is to hear of it."""
        if self._transport is None:
            return
        known = {m.id: m for m in self._replica.committed_membership.members}
        known |= {m.id: m for m in self._replica.membership.members}
        peers = [m for m in known.values() if m.id != self._me.id and m.raft_address]
        addresses = {}
        for member in peers:
            try:
                address = Address.parse(member.raft_address)
            except RefusedError:
                log.error("a member's address cannot be used id=%s", member.id)
                continue
            was_at, is_at = self._elsewhere.get(member.id, ("", address))
            if was_at == member.raft_address:
                address = is_at
            addresses[member.id] = (address.host, address.port)
        is_disowned = self._replica.disowned is not None  # then it calls nobody a lost member
        incarnations = {} if is_disowned else {m.id: m.incarnation for m in peers}
        self._transport.set_peers(addresses, incarnations)

    def may_lead(self, node_id: str, incarnation: str) -> bool:
        """Whether a node that has a member's name and other data may be that member by now: as
        long as no other leader is heard, what this node knows of members may be old."""
        replica = self._replica
        is_gone = incarnation in replica.committed_membership.removed
        return replica.leader in (None, node_id) and not is_gone

    def admit(self, hello: Hello) -> str | None:
        """What speaks against talking to that node, which knows the secret."""
        return self._objection(hello) or self.admit_level(hello.node_id, hello.level)

    def admit_level(self, node_id: str, level: int) -> Level | None:
        """What speaks against a node whose version knows ``level`` at most, whoever dials."""
        needed = self._replica.state.level
        if not self._belongs or level >= needed:
            return None
        return Level(
            f"the cluster has feature level {needed}, and the version of node {node_id!r} "
            f"knows {level} at most; install a newer one there"
        )

    def _objection(self, hello: Hello) -> str | None:
        replica = self._replica
        node_id, incarnation = hello.node_id, hello.incarnation
        if node_id == replica.node_id and incarnation == replica.incarnation:
            return (
                f"node {node_id!r} runs twice, with copies of one data directory; stop one of the "
                "two, and let it join with an id of its own and an empty data directory"
            )
        if node_id == replica.node_id:
            return f"this node has the id {node_id!r} itself; each node needs its own"
        if not hello.cluster_id or not self._belongs:
            return None  # it asks to join, or this node does
        known = replica.membership.find(node_id)
        lost = known is not None and known.incarnation not in ("", incarnation)
        lost = lost and replica.disowned is None  # one that should not be says nothing of others
        if hello.cluster_id != replica.cluster_id:
            if lost:
                at = known.raft_address if known is not None else ""
                return Loss(lost_its_data(node_id, replica.cluster_id), at)
            return (
                f"node {replica.node_id!r} belongs to the cluster {replica.cluster_id}, "
                f"and node {node_id!r} to {hello.cluster_id}"
            )
        if self._was_removed(node_id, incarnation, hello.commit_index):
            return Removal(
                f"node {node_id!r} was removed from the cluster; to join again it needs an "
                "empty data directory"
            )
        # Who hears no leader may be behind, and must listen to whom it does not know.
        if lost and replica.leader not in (None, node_id):
            return lost_its_data(node_id, replica.cluster_id)
        return None

    def _was_removed(self, node_id: str, incarnation: str, commit_index: int) -> bool:
        """Whether the node, a member as of ``commit_index`` unless that is 0, is none any more.

        An incarnation never comes back. So it needs no memory of who has gone: whoever
        was a member at some index, and is none at a later one, was removed in between.
        """
        replica = self._replica
        if incarnation in replica.committed_membership.removed:
            return True
        return 0 < commit_index <= replica.commit_index and not _has(
            replica.committed_membership, node_id, incarnation
        )

    async def answer(self, peer: str, name: str, argument: Any) -> Any:
        """A peer, or with an empty name a guest, asks. Raises ReplBrokerError to refuse."""
        if not peer and name not in ("who", "join"):
            raise NotAMemberError("a node that belongs to no cluster may only ask to join one")
        if not self._belongs and name not in ("who", "invite", "join"):
            raise NotAMemberError(f"node {self._me.id!r} has not joined the cluster yet")
        return await self._replica.answer(peer, name, argument)

    # --- what is asked of this node ---

    async def add(self, node_id: str, raft_address: str, http_url: str) -> None:
        """Add a node as a learner. Raises RequestError."""
        await self._by_leader("add", (node_id, raft_address, http_url))

    async def remove(self, node_id: str, *, forced: bool = False) -> None:
        """Remove a member; if ``forced``, even if the voters that answer are no majority then.
        Raises RequestError."""
        await self._by_leader(FORCED if forced else "remove", node_id)

    async def transfer(self, node_id: str) -> None:
        """Hand leadership over to a voter. Raises RequestError."""
        await self._by_leader("transfer", node_id)

    async def view(self) -> list[MemberView]:
        """The members, by id, with what the leader knows of them if it can be asked."""
        replica = self._replica
        progress = await self._progress()
        newest = max((p.match_index for p in progress.values()), default=0)
        transport = self._require_transport()
        views = []
        for m in replica.membership.members:
            role = "leader" if m.id == replica.leader else "voter" if m.voter else "learner"
            record = self._me if m.id == self._me.id else m  # it knows its own best
            found = progress.get(m.id)
            reachable = found.reachable if found else transport.is_connected(m.id)
            views.append(
                MemberView(
                    m.id,
                    role,
                    record.raft_address,
                    record.http_url,
                    found.match_index if found else None,
                    max(0, newest - found.match_index) if found else None,
                    reachable or m.id == self._me.id,
                    self._level_of(m.id),
                    self.skew_seconds(m.id),
                )
            )
        return views

    async def _progress(self) -> dict[str, MemberProgress]:
        replica = self._replica
        if replica.leads or replica.leader is None:
            return replica.progress()
        with trio.move_on_after(replica.options.election_timeout_seconds):
            try:
                found = await replica.call_leader("progress", None)
            except (NotLeaderError, PeerRefusedError, PeerUnreachableError):
                return {}
            return msgspec.convert(found, dict[str, MemberProgress])
        return {}

    # --- through the leader ---

    async def _by_leader(self, kind: str, argument: Any, *, relay: bool = False) -> None:
        """Have the leader do it, wherever it is. Raises RequestError.

        With ``relay``, any peer is asked to find it: one whose address has changed
        hears no leader.
        """
        replica = self._replica
        if replica.disowned is not None:
            raise disowned_error(replica.disowned)
        # The time is for finding the leader. What it does takes as long as it takes,
        # within bounds of its own: that nothing was changed could not be said then.
        end = trio.current_time() + replica.patience
        while trio.current_time() < end:
            seen = replica.seen
            try:
                if replica.leads:
                    return await self._actions[kind](argument)
                if replica.leader is not None:
                    return _raise_refusal(await self._ask_leader(kind, argument))
                for peer in self._connected() if relay else ():
                    found = await self._require_transport().call(
                        peer, "change", (kind, argument, True), seconds=CHANGE_SECONDS
                    )
                    return _raise_refusal(found)
            except (NotLeaderError, PeerRefusedError):
                pass
            except PeerUnreachableError as error:
                if error.sent:
                    raise OutcomeUnknownError(
                        "The leader was lost while it carried this out; see GET /v1/cluster."
                    ) from None
            await replica.pause(seen)
        raise RequestError(
            "no_leader",
            "The node knows no leader: a majority of the cluster's voters must run and reach "
            "each other. Nothing was changed.",
        )

    async def _ask_leader(self, kind: str, argument: Any) -> Any:
        call, seconds = self._replica.call_leader, CHANGE_SECONDS
        if kind == FORCED:
            try:
                return await call(FORCED, argument, seconds=seconds)
            except PeerRefusedError as error:
                if not str(error).startswith(UNKNOWN_REQUEST):
                    raise
            kind = "remove"  # by an older leader, which refuses none
        return await call("change", (kind, argument, False), seconds=seconds)

    def _connected(self) -> list[str]:
        transport = self._require_transport()
        ids = sorted(self._replica.membership.ids - {self._me.id})
        return [peer for peer in ids if transport.is_connected(peer)]

    async def _on_change(self, peer: str, argument: Any) -> Answer:
        kind, inner, relay = msgspec.convert(argument, tuple[str, Any, bool])
        if kind not in self._actions:
            raise ValueError(f"no change is called {kind[:64]!r}")
        try:
            if relay or self._replica.disowned is not None:  # which refuses
                await self._by_leader(kind, inner)
            elif self._replica.leads:
                if kind == "update":
                    await self._check_move(peer, inner)
                await self._actions[kind](inner)
            else:
                raise NotLeaderError
        except RequestError as error:
            return error.code, error.detail
        return None

    # --- as leader ---

    async def _add(self, argument: Any) -> None:
        node_id, raft_address, http_url = msgspec.convert(argument, tuple[str, str, str])
        if (node_id, raft_address) == (self._me.id, self._me.raft_address):
            return  # nobody dials himself
        joiner, process = await self._who(node_id, raft_address)
        replica = self._replica
        member = Member(node_id, raft_address, http_url, False, joiner.incarnation)
        known = replica.membership.find(node_id)
        if known is not None:
            if known.incarnation != joiner.incarnation:
                raise RequestError(
                    "member_exists",
                    f"The cluster has a member {node_id!r} with other data. If it lost its data, "
                    f"remove it first (repl-broker cluster remove {node_id}); if it is another "
                    "node, give it an id of its own.",
                )
            if (known.raft_address, known.http_url) != (raft_address, http_url):
                await self._check_twin(node_id, raft_address, process)
                await self._commit(UpdateMember(member))
            return
        is_gone = joiner.incarnation in replica.membership.removed
        if is_gone or self._was_removed(node_id, joiner.incarnation, joiner.commit_index):
            raise RequestError(
                "member_exists",
                f"The node {node_id!r} was removed from the cluster and still has its old data; "
                "empty its data directory, and let it join again.",
            )
        level = await self._invite(raft_address, joiner)
        await self._await_commit(await replica.add_learner(member, level))

    async def _check_twin(self, node_id: str, raft_address: str, process: str) -> None:
        """Refuse to have the member at an address where it is not the one that is connected."""
        twin = await self._require_transport().find_twin(node_id, process, raft_address)
        if twin is not None:
            raise RequestError("member_exists", f"{twin[:1].upper()}{twin[1:]}.")

    async def _check_move(self, peer: str, argument: Any) -> None:
        """Of a node that has another tell where it is now: one that is connected says so itself,
        and then it may be a copy of it."""
        node_id, raft_address, _, _ = msgspec.convert(argument, tuple[str, str, str, str])
        known = self._replica.membership.find(node_id)
        if peer == node_id or known is None or known.raft_address == raft_address:
            return
        if self._require_transport().is_heard(node_id):
            _, process = await self._who(node_id, raft_address)
            await self._check_twin(node_id, raft_address, process)

    async def _who(self, node_id: str, raft_address: str) -> tuple[Joiner, str]:
        """What the node there says of itself, and which process that is."""
        found, _, process = await self._ask_address(raft_address, "who", None)
        joiner = msgspec.convert(found, Joiner)
        if joiner.id != node_id:
            raise RequestError(
                "invalid_parameter",
                f"The node at {raft_address} is {joiner.id!r}, not {node_id!r}.",
            )
        if joiner.cluster_id not in ("", self._replica.cluster_id):
            raise RequestError(
                "member_exists",
                f"The node {node_id!r} at {raft_address} belongs to another cluster, "
                f"{joiner.cluster_id}. What was acknowledged only there is lost with its data "
                "directory ('repl-broker backup' saves it); to join here, start it with an empty "
                "one and --join.",
            )
        return joiner, process

    async def _invite(self, raft_address: str, joiner: Joiner) -> int:
        """Have that node, and no other, belong to this cluster; its feature level."""
        about = (self._replica.cluster_id, self._replica.epoch)
        who = joiner.id, joiner.incarnation
        _, level, _ = await self._ask_address(raft_address, "invite", about, who)
        return level

    async def _ask_address(
        self, raft_address: str, name: str, argument: Any, who: tuple[str, str] | None = None
    ) -> tuple[Any, int, str]:
        try:
            address = Address.parse(raft_address)
        except RefusedError as error:
            raise RequestError("invalid_parameter", f"The raft_address: {error}.") from None
        try:
            return await self._require_transport().meet(
                (address.host, address.port), name, argument, seconds=CALL_SECONDS, who=who
            )
        except PeerUnreachableError:
            raise RequestError(
                "member_unreachable",
                f"The leader {self._me.id!r} gets no answer at {raft_address}. Start the node "
                "there with --join, and see that its [raft] advertise can be reached.",
            ) from None
        except PeerRefusedError as error:
            raise RequestError(
                "member_unreachable", f"The node at {raft_address} refused: {error}."
            ) from None

    async def _update(self, argument: Any) -> None:
        node_id, raft_address, http_url, incarnation = msgspec.convert(
            argument, tuple[str, str, str, str]
        )
        known = self._replica.membership.find(node_id)
        if known is None:
            raise RequestError("member_not_found", f"The cluster has no member {node_id!r}.")
        if known.incarnation not in ("", incarnation):
            raise RequestError("member_exists", f"The member {node_id!r} is another node.")
        await self._commit(
            UpdateMember(Member(node_id, raft_address, http_url, False, incarnation))
        )

    async def _remove(self, argument: Any, *, forced: bool = False) -> None:
        node_id = msgspec.convert(argument, str)
        self._check_member(node_id)
        await self._commit(Remove(node_id), forced=forced)

    async def _remove_forced(self, argument: Any) -> None:
        await self._remove(argument, forced=True)

    async def _transfer(self, argument: Any) -> None:
        node_id = msgspec.convert(argument, str)
        self._check_member(node_id)
        self.check_clock(node_id)
        await self._replica.transfer(node_id)

    def _check_member(self, node_id: str) -> None:
        if node_id not in self._replica.membership.ids:
            ids = ", ".join(sorted(self._replica.membership.ids))
            raise RequestError(
                "member_not_found", f"The cluster has no member {node_id!r}; it has {ids}."
            )

    async def _commit(self, change: MembershipChange, *, forced: bool = False) -> None:
        """Append a change; wait for its commit, as long as that may be expected to take."""
        await self._await_commit(await self._replica.change_membership(change, forced=forced))

    async def _await_commit(self, index: int) -> None:
        with trio.move_on_after(self._replica.options.election_timeout_seconds):
            await self._replica.wait_applied(index)

    # --- as one that is asked to join, or asked by one ---

    async def _on_join(self, peer: str, argument: Any) -> Answer:
        node_id, raft_address, http_url = msgspec.convert(argument, tuple[str, str, str])
        if not self._belongs:
            return "no_leader", f"node {self._me.id!r} has not joined a cluster itself yet"
        try:
            await self.add(node_id, raft_address, http_url)
        except RequestError as error:
            text = "did not add node=%s address=%s reason=%r code=%s"  # it asks again each second
            self._notices.warn(log, node_id, text, node_id, raft_address, error.detail, error.code)
            return error.code, error.detail
        log.info("added on request of its own node=%s address=%s", node_id, raft_address)
        return None

    async def _on_who(self, peer: str, argument: Any) -> Joiner:
        me = self._identity()
        return Joiner(me.node_id, me.incarnation, me.cluster_id, self.known_index)

    async def _on_invite(self, peer: str, argument: Any) -> None:
        cluster_id, epoch = msgspec.convert(argument, tuple[str, str])
        replica = self._replica
        if self._belongs:
            if cluster_id != replica.cluster_id:
                raise NotAMemberError(f"it belongs to the cluster {replica.cluster_id}")
            return

        def belong() -> None:
            self._require_transport().me = self._identity()
            log.info("taken in cluster_id=%s epoch=%s", cluster_id, epoch)
            self._on_adopted()

        await replica.adopt(cluster_id, epoch, belong)

    def _require_transport(self) -> Transport:
        assert self._transport is not None, "connect() comes first"
        return self._transport


def _has(membership: Membership, node_id: str, incarnation: str) -> bool:
    """Whether the node is among them; in old memberships its incarnation is missing."""
    known = membership.find(node_id)
    return known is not None and known.incarnation in ("", incarnation)


def _raise_refusal(found: Any) -> None:
    refusal = msgspec.convert(found, Answer)
    if refusal is not None:
        raise RequestError(*refusal)


class NotAMemberError(ReplBrokerError):
    """A request that is for members only."""
