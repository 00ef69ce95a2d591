"""Writes which test shows which scenario, from the tests' own docstrings.

    python -m tests.raft.reference > docs/reference/raft-scenarios.md

A docstring cites scenarios as ``RAFT.md scenario 15`` or ``RAFT.md scenarios 1,
2``. The files are read and not run. A test compares the page with what this
writes today, and fails where a scenario has no test.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["GROUPS", "SCENARIOS", "citations", "malformed", "page", "shown_by"]

ROOT: Final = Path(__file__).parents[2]
TESTS: Final = ROOT / "tests"
SIMULATION: Final = (TESTS / "raft" / "simulator.py", TESTS / "raft" / "mutations.py")

GROUPS: Final[dict[str, dict[int, str]]] = {
    "Election": {
        1: "One vote a term, on disk before it is told; the same candidate gets it again; a crash "
        "anywhere changes nothing of that.",
        2: "Nothing that happens within a term clears its vote; term and vote are one write.",
        3: "Votes are counted by voter: not twice, not of an older term, not of who has none.",
        4: "A log is as up to date as another by its last term, and then by its length.",
        5: "Requests of an older term are refused; a newer term makes anyone a follower.",
        6: "A candidate yields to a leader of its term, and to no older one.",
        7: "Waits are drawn anew each time, so split votes resolve.",
        8: "A pre-vote changes nobody's term, vote or wait; a stale log cannot stand.",
        9: "Who was cut off or removed does not depose a leader that lives when it is back.",
        10: "A leader that no majority answers steps down in time, and what waits learns of it.",
        11: "Links that are broken in one direction, in part or in a chain still allow one leader.",
        12: "A single voter leads again after a restart; learners never stand, and vote if asked.",
        13: "When all restart at once with logs of different length, nothing committed is lost.",
    },
    "Replication": {
        14: "Logs that differ as in figure 7 of the paper become one, a whole term at a time.",
        15: "Entries of earlier terms are committed by the no-op behind them, never by counting.",
        16: "Appends that are late, repeated or out of order never truncate what matches.",
        17: "A follower commits what was verified, no more, and never goes back.",
        18: "An append without entries finds a conflict, too.",
        19: "Acknowledgements, and writes that end, count in the term that they were meant for.",
        20: "What is lost is found by asking; a peer that has all is not forgotten.",
        21: "What is under way to a peer is bounded by count and by bytes; a slow one holds up "
        "nobody else.",
        22: "Beyond a bound of what is not committed proposals are refused, until a majority is "
        "back.",
        23: "Each entry is applied once and in order, across restarts.",
        24: "A client hears of success when a majority's disks have it; a single node is no "
        "exception.",
    },
    "Storage": {
        25: "A power loss at any write of an append, a truncation, a vote or a snapshot leaves all "
        "of it or nothing.",
        26: "A torn tail is dropped; damage before it refuses the start.",
        27: "After a disk error or a failed fsync nothing is acknowledged, no vote given, nobody "
        "stands; the node stops.",
        28: "A term is on disk no later than its entries.",
        29: "What was truncated never comes back; the names of new files are synced.",
        30: "One conformance suite for all stores.",
    },
    "Snapshots": {
        31: "Who is behind the compacted log gets a snapshot and then the log, through crashes, "
        "restarts and a change of leader.",
        32: "A stale snapshot is ignored; a suffix that matches stays; a log that conflicts goes; "
        "the members are restored.",
        33: "A partial or damaged snapshot is never seen; nothing is applied while one is put in "
        "place.",
        34: "An append may lie across the end of a snapshot.",
        35: "While a snapshot is made or sent, heartbeats, appends and applying go on.",
        36: "Nobody stands while it puts a snapshot in place.",
    },
    "Membership": {
        37: "Members count from the entry on, not from its commit; a truncated one is taken back; "
        "one change at a time, and none before a commit of the term.",
        38: "No change needs joint consensus: one server comes or goes at a time, so any two "
        "majorities have a node in common.",
        39: "A leader that removes itself does not count itself, steps down and does not return.",
        40: "Who joins or leaves never makes two majorities that do not meet.",
        41: "A node that lost its data is refused under its old id.",
        42: "A learner catches up in rounds; one that is dead is not promoted.",
    },
    "Service": {
        43: "Leadership can be handed over: to one that is level, behind, dead, itself, a learner, "
        "two at once.",
        44: "A read waits for a commit of the term and for answers to a round that began after it.",
        45: "After a pause or a jump of the clock a read is fresh or refused.",
        46: "A publish that is retried happens once, across failover and snapshot.",
        47: "Forwarding never loops; a proposal counts in its term only.",
        48: "A leader whose disk hangs is replaced within a bound.",
        49: "Nodes of the next and the last version understand or refuse each other clearly; "
        "garbage ends a connection and nothing else.",
        50: "Event streams: in order, without gaps or repeats, committed only, resumable on any "
        "node.",
    },
}
SCENARIOS: Final = {number: text for group in GROUPS.values() for number, text in group.items()}

_CITATION: Final = re.compile(r"RAFT\.md scenarios? (\d+(?:, \d+)*)(?!\d)")
_LIKE_A_CITATION: Final = re.compile(r"(?:RAFT\.md[,:]? (?:scenarios? )?|[Ss]cenarios? )\d")


class Citation(NamedTuple):
    """What cites scenarios: a test, or a part of the simulation."""

    file: str
    name: str
    numbers: tuple[int, ...]
    text: str  # of the docstring, behind the numbers


def documented(path: Path) -> Iterator[tuple[str, str]]:
    """The functions and classes of a file, and their docstrings on one line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, " ".join((ast.get_docstring(node) or "").split())


def _cited(paths: Iterable[Path], prefix: str) -> Iterator[Citation]:
    for path in paths:
        for name, text in documented(path):
            found = _CITATION.search(text)
            if found and name.startswith(prefix):
                numbers = tuple(map(int, found[1].split(", ")))
                rest = text[found.end() :].lstrip(" :;.")
                yield Citation(str(path.relative_to(ROOT)), name, numbers, rest)


def citations() -> list[Citation]:
    """Of the tests, file by file."""
    return list(_cited(sorted(TESTS.rglob("test_*.py")), "test_"))


def malformed() -> list[str]:
    """Docstrings that seem to cite, and not in the form that is read here."""
    return [
        f"{path.relative_to(ROOT)}: {name}: {text}"
        for path in (*sorted(TESTS.rglob("test_*.py")), *SIMULATION)
        for name, text in documented(path)
        if _LIKE_A_CITATION.search(text) and not _CITATION.search(text)
    ]


def shown_by() -> dict[int, list[Citation]]:
    """The tests of each number that is cited."""
    found = defaultdict(list)
    for citation in citations():
        for number in citation.numbers:
            found[number].append(citation)
    return dict(found)


# --- the page -----------------------------------------------------------------------------


def page() -> str:
    shown = shown_by()
    simulated = list(_cited(SIMULATION, ""))
    parts = [
        "# Raft scenarios",
        "Situations that have broken consensus in mature systems, and the tests that show what "
        "this one does in them. The numbers are those of the list that the core was built "
        "against; a test cites them in its docstring, as `RAFT.md scenario 15`, and this page is "
        "made from there. [Consensus](../explanation/consensus.md) explains the rules.",
    ]
    for group, scenarios in GROUPS.items():
        parts.append(f"## {group}")
        for number, text in scenarios.items():
            simulators = [each for each in simulated if number in each.numbers]
            parts += _scenario(number, text, shown.get(number, []), simulators)
    parts += _simulation(simulated)
    return "\n\n".join(parts) + "\n"


def _scenario(
    number: int, text: str, tests: list[Citation], simulated: list[Citation]
) -> Iterator[str]:
    yield f"### Scenario {number}"
    yield text
    by_file = defaultdict(list)
    for test in tests:
        by_file[test.file].append(test.name)
    lines = []
    for file, names in by_file.items():
        lines += [f"- [{file}](../../{file})", *(f"  - `{name}`" for name in names)]
    if simulated:
        names = [f"`{each.name}`" for each in simulated]
        lines.append(f"- [the simulation](#the-simulation): {', '.join(names)}")
    yield "\n".join(lines) if tests else "Not tested yet: what it is about is being built."


def _simulation(simulated: list[Citation]) -> Iterator[str]:
    simulator, mutations = (str(path.relative_to(ROOT)) for path in SIMULATION)
    yield "## The simulation"
    yield (
        f"[{simulator}](../../{simulator}) runs whole clusters in simulated time, from seeds. "
        "What happens to them, and what is checked:"
    )
    yield _table(each for each in simulated if each.file == simulator)
    yield (
        f"[{mutations}](../../{mutations}) puts bugs back, one at a time, each of which the "
        "simulator must find:"
    )
    yield _table(each for each in simulated if each.file == mutations)


def _table(rows: Iterable[Citation]) -> str:
    lines = ["| name | what | scenarios |", "| --- | --- | --- |"]
    for each in rows:
        links = ", ".join(f"[{number}](#scenario-{number})" for number in each.numbers)
        lines.append(f"| `{each.name}` | {each.text} | {links} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
