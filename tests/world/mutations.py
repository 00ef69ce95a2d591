# ruff: noqa: T201  it is for people at a terminal
"""Faults that are put back, one at a time, to see that the simulation finds them.

A simulation that finds nothing proves something only if it finds these. Each is the source
of a function with some words replaced: one that does not apply any more fails at once.

    python -m tests.world.mutations               how many seeds each needs: the table of
                                                  docs/explanation/consensus.md
    python -m tests.world --mutation NAME         one of them, until it is found
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final
from unittest.mock import patch

__all__ = ["MUTATIONS", "Edit", "Mutation", "put_back"]

SEEDS_MAX: Final = 2000


@dataclass(frozen=True)
class Edit:
    """In ``place`` (module:function or module:class.method) ``old`` becomes ``new``."""

    place: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """``about`` is for the table; ``shipped`` says that we once had it ourselves."""

    about: str
    edits: tuple[Edit, ...]
    shipped: bool = False


def _one(about: str, place: str, old: str, new: str, *, shipped: bool = False) -> Mutation:
    return Mutation(about, (Edit(place, old, new),), shipped)


MUTATIONS: Final[dict[str, Mutation]] = {
    # What was in the product, and is mended.
    "snapshot-ahead-of-writes": Mutation(
        "a snapshot is saved before the writes that wait for this disk",
        (
            Edit(
                "disk:Disk._add",
                "self._queue.append(",
                "is_first = getattr(call, 'func', None) in (self._save, self._storage.save_part)\n"
                "    (self._queue.appendleft if is_first else self._queue.append)(",
            ),
            Edit("disk:Disk._save", "if snapshot.index > self.durable_index:", "if False:"),
        ),
        shipped=True,
    ),
    "store-before-state": _one(
        "readers look while the store has a received snapshot and the memory has not",
        "disk:Disk.settled",
        "while self._installs:",
        "while False:",
        shipped=True,
    ),
    "snapshot-in-one-go": _one(
        "a snapshot is made in one go, while nothing else is done",
        "taking:Begun.finish",
        "while await self._turnstile.give(capture.piece):",
        "from repl_broker.patience import ENDLESS\n        while capture.piece(ENDLESS):",
        shipped=True,
    ),
    "snapshots-without-end": Mutation(
        "nothing is kept for a follower that installs a snapshot, and it gets another and another",
        (
            Edit(
                "sending:SnapshotSender._until",
                "elif trio.current_time() >= since + still_seconds:",
                "else:",
            ),
            Edit(
                "sending:SnapshotSender.log_bytes_kept",
                "LOG_BYTES_MAX if self._upkeep.is_held else LOG_BYTES_KEPT",
                "LOG_BYTES_KEPT",
            ),
            Edit(
                "sending:SnapshotSender._send_rounds",
                "while outgoing.index < self._core().log.index_before(BEHIND_BYTES_MAX):",
                "while False:",
            ),
        ),
        shipped=True,
    ),
    "staged-for-ever": _one(
        "what came of a snapshot that broke off stays in the store",
        "disk:Disk.discard",
        "if self._is_discarding or",
        "if True or",
        shipped=True,
    ),
    "loss-not-noticed": _one(
        "a node that lost what it had acknowledged goes on",
        "raft.core:Core._commit_acknowledged",
        "self._effects.loss = Loss(index, self.log.last_index)",
        "pass",
        shipped=True,
    ),
    "parts-not-heard": _one(
        "a large entry that arrives slowly is no sign of life",
        "cluster:connect",
        "on_part=replica.receive_part",
        "on_part=lambda peer: None",
        shipped=True,
    ),
    "repeats-carried-out": Mutation(
        "a command that a node has sent on twice is carried out twice",
        (
            Edit(
                "senders:Senders.take",
                "return [sender.take(number) for number in numbers]",
                "return [sender.take(number) or True for number in numbers]",
            ),
        ),
        shipped=True,
    ),
    "order-of-insertion": _one(
        "of topics with old messages, that goes first which came to this node first",
        "state:BrokerState._expire",
        "topic = self.topics[due.name]",
        "topic = next(\n"
        "                topic\n"
        "                for topic in self.topics.values()\n"
        "                if (at := self._due_ms(topic.name)) is not None and at < self.time_ms\n"
        "            )",
        shipped=True,
    ),
    "outcomes-by-entries": Mutation(
        "outcomes of so many entries are kept in memory, whatever is in them",
        (
            Edit(
                "replica:Replica._apply",
                "if self.state.level < NUMBERED and not self.leads:",
                "if not self.leads:",
            ),
            Edit(
                "proposals:Proposals.keep",
                "while self._recent_outcomes > RECENT_OUTCOMES_MAX:",
                "while len(self._recent) > 1024:",
            ),
        ),
        shipped=True,
    ),
    "adoption-in-two-steps": Mutation(
        "a node that is taken in while the invitation breaks off keeps its own epoch",
        (
            Edit(
                "members:Members._on_invite",
                "await replica.adopt(cluster_id, epoch, belong)",
                "await replica.adopt(cluster_id, epoch, lambda: None)\n    belong()",
            ),
        ),
        shipped=True,
    ),
    # What syncs are for.
    "journal-not-synced": _one(
        "records of the journal are written and not synced",
        "journal:_open",
        "os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC",
        "os.O_WRONLY | os.O_CLOEXEC",
    ),
    "commits-not-synced": _one(
        "SQLite's commits are not synced (synchronous=NORMAL)",
        "storage:SqliteStorage._connect",
        "synchronous=FULL",
        "synchronous=NORMAL",
    ),
    "told-before-durable": _one(
        "a write is reported when it begins",
        "disk:Disk._write",
        "self._current = due\n",
        "self._current = due\n    self._on_durable(due[-1][0], 0)\n",
    ),
    "vote-not-written": _one(
        "a term or vote is written only with entries",
        "storage:SqliteStorage._put",
        "if batch.hard_state is not None:",
        "if batch.hard_state is not None and batch.entries:",
    ),
    "truncation-not-written": _one(
        "the log is not cut short on the disk",
        "storage:SqliteStorage._put",
        '"DELETE FROM log WHERE idx >= ?"',
        '"DELETE FROM log WHERE idx > ? + 3"',
    ),
    # Order.
    "reads-ahead-of-writes": _one(
        "an entry that is applied is looked for on the disk before it is written there",
        "disk:Disk.read",
        "if indexes and max(indexes) >= self._waits_from():",
        "if False:",
    ),
    "journal-outlives-truncation": _one(
        "what moves from the journal to SQLite still counts in the journal",
        "storage:SqliteStorage._writing",
        "self._move_pending(secrets.token_bytes(SALT_BYTES))",
        "self._move_pending(self._journal._salt)",
    ),
    # Fences.
    "place-not-fenced": Mutation(
        "whatever comes to be at an index is the outcome, whoever appended it",
        (
            Edit("proposals:Proposals._settle", "if placed_term != term:", "if False:"),
            Edit("proposals:Proposals.applied", "if term > self._applied_term:", "if False:"),
        ),
    ),
    "incarnation-not-fenced": _one(
        "a node that came back without its data is taken for the one before",
        "members:Members._add",
        "if known.incarnation != joiner.incarnation:\n",
        "if known.incarnation != joiner.incarnation:\n"
        "            await self._invite(raft_address)\n"
        "            return await self._commit(UpdateMember(member))\n"
        "        if False:\n",
    ),
    # Reads.
    "follower-reads-by-itself": _one(
        "a follower answers reads from what it has",
        "replica:Replica._ask_safe_index",
        'return _said(await self.call_leader("read", self._core.term), int)',
        "return self.state.applied_index",
    ),
    "read-joins-an-older-question": _one(
        "a read takes the answer to a question that was asked before it came",
        "replica:Replica._ask_for_all",
        "self._next_read = None\n        try:",
        "try:",
    ),
    "read-not-applied": _one(
        "a read does not wait until what it asked for is applied",
        "replica:Replica.read_barrier",
        "await self._wait_readable(await self._safe_index())",
        "await self._safe_index()",
    ),
    # What a snapshot has to hold.
    "keys-not-in-snapshot": _one(
        "idempotency keys are not in a snapshot",
        "state:BrokerState.restore",
        "RememberedKeys.from_wire(",
        "RememberedKeys.from_wire([] and ",
    ),
    "sweep-too-far": _one(
        "the sweep at a start takes an entry of which messages are retained",
        "upkeep:Upkeep.sweep",
        "live = self._state().live_entries()",
        "live = self._state().live_entries()[1:]",
    ),
    "thinned-too-far": _one(
        "an entry that is written anew loses a message that is retained",
        "upkeep:Upkeep._rewrite",
        "without_messages(data, parts[index])",
        "without_messages(data, {*parts[index], max(parts[index], default=0) + 1})",
    ),
    "snapshot-of-two-moments": _one(
        "what changes while a snapshot is made is in it as it is afterwards",
        "capture:Capture.before_block",
        "self._copies[block] = block.copy()",
        "pass",
    ),
    # Streams.
    "streams-not-told-of-install": _one(
        "streams go on with the tail when a received snapshot takes the place of the log",
        "node:Node._restored",
        "self.hub.jump(self.replica.state.seq)",
        "pass",
    ),
    "tail-joined-too-late": _one(
        "a stream joins the tail behind the message that comes next",
        "hub:Channel.offset_after",
        "bisect_right(self._marks, mark(seq), self._dropped) - self._dropped",
        "bisect_right(self._marks, mark(seq + 1), self._dropped) - self._dropped",
    ),
    "gap-not-told": _one(
        "a stream that lost something goes on without a word",
        "subscription:Subscription._look",
        "if is_lost:",
        "if False:",
    ),
}


@contextmanager
def put_back(name: str) -> Iterator[None]:
    """The product with this fault, until the end."""
    with ExitStack() as stack:
        for edit in MUTATIONS[name].edits:
            stack.enter_context(_edited(edit))
        yield


@contextmanager
def _edited(edit: Edit) -> Iterator[None]:
    module_name, _, path = edit.place.partition(":")
    module = import_module(f"repl_broker.{module_name}")
    *classes, name = path.split(".")
    owner: Any = module
    for each in classes:
        owner = getattr(owner, each)
    found = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(_function(found)))
    old = textwrap.dedent(edit.old)
    if source.count(old) != 1:
        raise ValueError(f"{edit.place} does not have these words once any more: {old!r}")
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(old, edit.new), f"<{edit.place}, mutated>", "exec", flags)
    made: dict[str, Any] = {}
    exec(code, module.__dict__, made)
    with ExitStack() as stack:
        stack.enter_context(patch.object(owner, name, made[name]))
        for table in [each for each in vars(module).values() if isinstance(each, dict)]:
            if keys := [key for key, value in table.items() if value is found]:  # who does what
                stack.enter_context(patch.dict(table, dict.fromkeys(keys, made[name])))
        yield


def _function(found: Any) -> Any:
    if isinstance(found, classmethod | staticmethod):
        return found.__func__
    return found.fget if isinstance(found, property) else found


def main(names: list[str]) -> int:
    from tests.world.weather import draw
    from tests.world.world import run

    missed = []
    for name in names or MUTATIONS:
        with put_back(name):
            for seed in range(SEEDS_MAX):
                violation = run(draw(seed)).violation
                if violation is not None:
                    mark = " ¹" * MUTATIONS[name].shipped
                    print(f"| {MUTATIONS[name].about}{mark} | {seed + 1} |", flush=True)
                    print(f"    {name}: {violation[:200]}", file=sys.stderr, flush=True)
                    break
            else:
                missed.append(name)
                print(f"| {MUTATIONS[name].about} | not found in {SEEDS_MAX} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
