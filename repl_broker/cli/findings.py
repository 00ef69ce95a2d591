"""What a doctor may find, and how measured values are judged. Pure.

A finding is a check's name, a verdict, what was found, and what to do about it.
The verdicts: ``ok``; ``warning``, it works, and will hurt some day or some users;
``problem``, it stands in the way now; ``untested``, with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

from repl_broker.agreement import middle
from repl_broker.certificates import days_ago, days_of
from repl_broker.changes import PendingChange, sentence
from repl_broker.config import ClusterConfig

__all__ = [
    "CERTIFICATE_DAYS_MIN",
    "Finding",
    "judge_clock",
    "judge_clocks",
    "judge_cluster",
    "judge_descriptors",
    "judge_files",
    "judge_headers",
    "judge_latency",
    "judge_turns",
    "judge_versions",
    "ok",
    "percentile",
    "problem",
    "read_metrics",
    "skew_seconds_max",
    "untested",
    "warning",
]

LATENCY_P50_SECONDS_MAX: Final = 0.05
LATENCY_P99_SECONDS_MAX: Final = 0.5
# A tenth of the default election timeout: beyond it, heartbeats begin to wait for the disk.
COMMIT_P99_SECONDS_MAX: Final = 0.1
DESCRIPTORS_MIN: Final = 10_000  # the default of [limits] connections
TURN_SECONDS_MAX: Final = 0.1  # others notice it
CERTIFICATE_DAYS_MIN: Final = 30
CERTIFICATE_DAYS_FEW: Final = 7
DESCRIPTORS_SHARE_MAX: Final = 0.8
LAG_ENTRIES_MAX: Final = 1000

Verdict = Literal["ok", "warning", "problem", "untested"]


class Finding(NamedTuple):
    """``remedy`` is empty where there is nothing to do."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, "warning", found, remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, "problem", found, remedy)


def untested(check: str, found: str, remedy: str = "") -> Finding:
    return Finding(check, "untested", found, remedy)


# --- time ---------------------------------------------------------------------------------


def skew_seconds_max(cluster: Mapping[str, Any]) -> float:
    """How far apart the node that answered ``GET /v1/cluster`` lets two clocks be."""
    found = _number(cluster.get("clock_skew_seconds_max"))  # older nodes do not say
    return found if found > 0 else ClusterConfig().clock_skew_seconds_max


def judge_clock(
    whose: str, ahead_seconds: float, uncertain_seconds: float, seconds_max: float
) -> Finding:
    """A clock that is ``ahead_seconds`` of this machine's; negative: behind."""
    way = "ahead of" if ahead_seconds > 0 else "behind"
    if abs(ahead_seconds) - uncertain_seconds <= seconds_max:
        return ok("clock", f"{whose} and this machine's agree within {seconds_max:g} s")
    return warning(
        "clock",
        f"{whose} is {abs(ahead_seconds):.0f} s {way} this machine's",
        "let both follow NTP (timedatectl); a wrong clock ends tokens early or late, and on a "
        "single node history ages by it",
    )


def judge_clocks(cluster: Mapping[str, Any]) -> list[Finding]:
    """Of the members, as the node that answers ``GET /v1/cluster`` sees them."""
    bound, voters = skew_seconds_max(cluster), 0
    ahead: dict[str, float] = {}  # of the node that answered
    votes: list[float] = []
    for member in _members(cluster):
        skew, votes_too = member.get("clock_skew_seconds"), member.get("role") != "learner"
        voters += votes_too
        if isinstance(skew, int | float):
            ahead[str(member.get("id"))] = skew
            votes += [skew] * votes_too
    if voters < 2:
        return []
    needed = voters // 2 + 1
    if len(votes) < needed:
        return [
            untested(
                "clock", f"the node knows {len(votes)} of {voters} clocks, and {needed} are needed"
            )
        ]
    right, agree = middle(votes, bound)
    if agree < needed:
        return [_no_majority(ahead, str(cluster.get("node")), bound)]
    return [
        warning(
            "clock",
            f"the clock of {name} is {_apart(skew - right)} what a majority of the members has; "
            f"{bound:g} s is the most ([cluster] clock_skew_seconds_max)",
            f"let {name} follow NTP (timedatectl there); meanwhile it does not lead, and nothing "
            "is dated by it",
        )
        for name, skew in ahead.items()
        if abs(skew - right) > bound
    ]


def _no_majority(ahead: Mapping[str, float], node: str, bound: float) -> Finding:
    each = ", ".join(
        f"{name} is {_apart(skew)} {node}" for name, skew in ahead.items() if name != node
    )
    return problem(
        "clock",
        f"no majority of the members agrees on the time within {bound:g} s ([cluster] "
        f"clock_skew_seconds_max): {each}",
        "nobody can tell which clock is right, and until a majority agrees nothing is removed for "
        f"its age: let {', '.join(ahead)} all follow NTP (timedatectl on each)",
    )


def _apart(ahead: float) -> str:
    return f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` (0 to 1) of all, of which there is one, do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def judge_latency(publishes: Sequence[float], round_trip: float) -> Finding:
    """Seconds that each publish took, and what a request that writes nothing takes."""
    p50, p99 = percentile(publishes, 0.5), percentile(publishes, 0.99)
    found = (
        f"{len(publishes)} publishes took {p50 * 1000:.1f} ms (p50) and {p99 * 1000:.1f} ms (p99); "
        f"a request that writes nothing takes {round_trip * 1000:.1f} ms"
    )
    slow = p50 - round_trip > LATENCY_P50_SECONDS_MAX or p99 - round_trip > LATENCY_P99_SECONDS_MAX
    if not slow:
        return ok("publish-latency", found)
    return warning(
        "publish-latency",
        found,
        "each publish waits for an fsync on a majority: look at the disks (fio with fdatasync=1; "
        "network storage is slow), at repl_broker_commit_seconds of each node, and at the network "
        "between the nodes",
    )


# --- what a proxy does --------------------------------------------------------------------


def judge_headers(headers: Mapping[str, str]) -> list[Finding]:
    """Of the answer that is an event stream; names in lower case."""
    findings = []
    control = headers.get("cache-control", "").lower()
    missing = [word for word in ("no-cache", "no-transform") if word not in control]
    if missing:
        findings.append(
            warning(
                "headers",
                f"the stream's Cache-Control has come as {control!r}, without "
                f"{' and '.join(missing)}, which the node says",
                "let the proxy pass the node's Cache-Control on: caches and compressors further "
                "on heed it",
            )
        )
    if "x-accel-buffering" not in headers:
        findings.append(
            ok(
                "headers",
                "X-Accel-Buffering has not come: a proxy took it out, as nginx does when it heeds "
                "it; another nginx in front of that one must be told not to buffer itself",
            )
        )
    if not findings:
        findings.append(ok("headers", "the stream's header fields came as the node sent them"))
    return findings


# --- the cluster --------------------------------------------------------------------------


def judge_cluster(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Finding]:
    """Two looks at ``GET /v1/cluster``, with some publishes between them."""
    if after.get("mode") == "single":
        return [ok("cluster", f"node {after.get('node')} is a single node")]
    findings = []
    if after.get("leader") is None:
        findings.append(
            problem(
                "cluster",
                f"node {after.get('node')} knows no leader",
                "see that a majority of the nodes runs and that they reach each other at their "
                "raft_address",
            )
        )
    findings += _judge_change(after.get("change"))
    earlier = {str(each.get("id")): each for each in _members(before)}
    for member in _members(after):
        findings += _judge_member(member, earlier.get(str(member.get("id")), {}))
    if not findings:
        count = len(_members(after))
        findings.append(ok("cluster", f"{after.get('leader')} leads; {count} members are well"))
    return findings


def _judge_change(change: object) -> list[Finding]:
    """Of the members, if it is not committed and cannot be."""
    try:
        found = msgspec.convert(change, PendingChange | None)
    except msgspec.ValidationError:  # of another version
        return []
    if found is None or not found.waits_for:
        return []
    what, _, remedy = sentence(found).partition(". ")
    return [problem("cluster", what, remedy)]


def _members(cluster: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = cluster.get("members")
    return [m for m in found if isinstance(m, dict)] if isinstance(found, list) else []


def _judge_member(member: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[Finding]:
    name, role = member.get("id"), member.get("role")
    if member.get("reachable") is False:
        return [
            problem(
                "cluster",
                f"{name} ({role}) is not reachable for the node that answered",
                f"look whether it runs, and whether {member.get('raft_address')} is reached from "
                "the other nodes; if it is gone for good, 'repl-broker cluster remove'",
            )
        ]
    lag = _number(member.get("lag"))
    moved = member.get("match_index") != earlier.get("match_index")
    if role == "learner":
        if lag and not moved:
            return [
                problem(
                    "cluster",
                    f"the learner {name} is {lag:.0f} entries behind and does not move",
                    "its log says why; it may be removed, and join again with an empty directory",
                )
            ]
        return [
            warning(
                "cluster",
                f"{name} is still a learner, {lag:.0f} entries behind",
                "wait: it is promoted by itself when it has caught up",
            )
        ]
    if lag > LAG_ENTRIES_MAX and lag >= _number(earlier.get("lag")):
        return [
            warning(
                "cluster",
                f"{name} ({role}) is {lag:.0f} entries behind and does not catch up",
                "look at its disk and at its network",
            )
        ]
    return []


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0


def judge_versions(versions: Mapping[str, str], here: str) -> Finding:
    """The version of each node by name, and of this command."""
    shown = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    if len(set(versions.values())) > 1:
        return warning(
            "versions",
            f"the nodes are of several versions: {shown}",
            "that is for the time of an upgrade only; go on with it",
        )
    if set(versions.values()) - {here}:
        return warning(
            "versions",
            f"this command is {here}, and the nodes: {shown}",
            "use the command of the same version",
        )
    return ok("versions", f"the same everywhere: {shown}")


# --- metrics ------------------------------------------------------------------------------

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})? (\S+)")


def read_metrics(text: str) -> dict[tuple[str, str], float]:
    """Name and labels, as they are written, to value; what cannot be read is left out."""
    found = {}
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None:
            with suppress(ValueError):
                value = float(sample[3])
                if not math.isnan(value):  # which compares with nothing
                    found[sample[1], sample[2] or ""] = value
    return found


def judge_descriptors(metrics: Mapping[tuple[str, str], float]) -> Finding:
    """How many the node's process may open, and has open."""
    limit = metrics.get(("process_max_fds", ""))
    used = metrics.get(("process_open_fds", ""))
    if limit is None or used is None:
        return untested("descriptors", "the node's metrics do not tell of its file descriptors")
    found = f"the node has {used:.0f} of {limit:.0f} file descriptors open"
    if used > DESCRIPTORS_SHARE_MAX * limit or limit < DESCRIPTORS_MIN:
        return warning(
            "descriptors",
            found,
            "each connection takes one: raise the limit (LimitNOFILE= in the unit, ulimit -n) "
            "above [limits] connections",
        )
    return ok("descriptors", found)


def judge_files(metrics: Mapping[tuple[str, str], float], now: float) -> Finding:
    """The node's certificates, and what it could not read again."""
    problems = metrics.get(("repl_broker_reload_problems", ""))
    if problems is None:
        return untested("files", "the node's metrics do not tell of its files")
    name = "repl_broker_certificate_expiry_timestamp_seconds"
    ends = {labels: end for (metric, labels), end in metrics.items() if metric == name}
    days = {labels[len('certificate="') : -1]: (end - now) / 86400 for labels, end in ends.items()}
    first = min(days, key=days.__getitem__, default=None)
    if first is not None and days[first] < CERTIFICATE_DAYS_MIN:
        left = days[first]
        found = f"the file of {first} has a certificate that "
        found += f"ends in {days_of(left)}" if left > 0 else f"expired {days_ago(-left)}"
        remedy = "renew it, put it in the place of the old one, and reload the node"
        few = left < CERTIFICATE_DAYS_FEW
        return problem("files", found, remedy) if few else warning("files", found, remedy)
    if problems:
        return warning(
            "files",
            f"the node could not take {problems:.0f} of the files that it was to read again, and "
            "goes on with what it had",
            "its log says which and why; the next start would fail: mend it, and reload the node",
        )
    last = "" if first is None else f"; the first certificate ends in {days_of(days[first])}"
    return ok("files", f"all that was read is in force{last}")


def judge_turns(metrics: Mapping[tuple[str, str], float]) -> Finding:
    """For how long the node was busy at most, and looked at nobody's request."""
    longest = metrics.get(("repl_broker_loop_turn_longest_seconds", ""))
    if longest is None:
        return untested("loop", "the node's metrics do not tell how long it is busy at a time")
    found = f"in the last minutes no request waited for more than {longest * 1000:.0f} ms of work"
    if longest > TURN_SECONDS_MAX:
        return warning(
            "loop",
            f"the node was busy for {longest * 1000:.0f} ms at a time, and answered nobody",
            "is the processor shared with others? else the log tells which requests came then: "
            "bound them ([limits] publishes_per_second, reads_per_second, batch_messages)",
        )
    return ok("loop", found)


def judge_commits(metrics: Mapping[tuple[str, str], float]) -> Finding:
    """How long the node's writes took since it started."""
    name = "repl_broker_commit_seconds"
    total = metrics.get((f"{name}_count", ""))
    if not total:
        return untested("disk", "the node's metrics do not tell of its writes")
    bounds = []
    for (metric, labels), count in metrics.items():
        if metric == f"{name}_bucket" and labels.startswith('le="'):
            with suppress(ValueError):
                bounds.append((float(labels[4:-1]), count))
    p99 = next((bound for bound, count in sorted(bounds) if count >= 0.99 * total), math.inf)
    found = f"of {total:.0f} writes since the node started, 99 % took {_shown(p99)} at most"
    if p99 <= COMMIT_P99_SECONDS_MAX:
        return ok("disk", found)
    return warning(
        "disk",
        found,
        "the disk, or the way to the other nodes, is slow: measure it with fio and fdatasync=1; "
        "put node.data_dir on a local SSD",
    )


def _shown(seconds: float) -> str:
    return "longer than is counted" if math.isinf(seconds) else f"{seconds * 1000:g} ms"


def parse_time(text: object) -> float | None:
    """Seconds since 1970 of a message's time; None for what is not one."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
