"""Reading the configuration again while the node serves: what applies, and what cannot.

All of a file is taken, or nothing: one that has problems changes nothing. What is
taken is applied by hooks, one for each part of the node. A hook that fails (a
certificate that does not fit its key) leaves its part as it was; the others go on.
Every hook is called each time, because the files that keys name may have changed
while the keys have not; it says which have.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from repl_broker.audit import note
from repl_broker.config import Config, InvalidConfigError, replace_values, values_of
from repl_broker.errors import ConfigError

__all__ = ["LIVE", "Hook", "Reloaded", "Reloader", "is_live"]

log = logging.getLogger(__name__)

REFUSED: Final = "refused"  # the outcome that the audit has; the problems have lines of their own
EVERY: Final = ".*"  # at the end of a name: every key of that table

# Which keys a reload applies, by the hook that does it. What is not here needs a restart.
LIVE: Final[Mapping[str, tuple[str, ...]]] = {
    "log": ("log.*",),
    "limits": (
        *("limits.message_bytes", "limits.batch_bytes", "limits.batch_messages"),
        *("limits.json_depth", "limits.connections", "limits.header_bytes", "limits.tail_bytes"),
        *("limits.heartbeat_seconds", "limits.dead_reader_seconds", "limits.shutdown_seconds"),
        *("limits.header_timeout_seconds", "limits.body_timeout_seconds"),
        *("limits.write_timeout_seconds", "limits.idle_timeout_seconds"),
        *("limits.connections_per_address", "limits.publishes_per_second", "limits.publish_burst"),
        *("limits.subscribes_per_second", "limits.subscribe_burst", "limits.publishes_under_way"),
        *("limits.reads_per_second", "limits.read_burst"),
        *("limits.requests_bytes", "limits.streams_bytes", "limits.streams_per_client"),
        *("limits.storage_bytes", "limits.disk_free_bytes"),
        "http.drain_seconds",
    ),
    # Of the whole cluster: in force as soon as this node leads.
    "settings": (
        *("topics.*", "topics.retention.*"),
        *("limits.idempotency_keys", "limits.idempotency_seconds", "limits.topics"),
        *("limits.topics_per_client", "limits.storage_bytes_per_client"),
        "limits.idempotency_keys_per_client",
    ),
    "clocks": ("cluster.clock_skew_seconds_max",),
    "pages": ("http.hosts", "http.cors_origins", "http.access_log"),
    "certificates": (
        *("http.tls_certificate", "http.tls_key"),
        *("raft.tls_certificate", "raft.tls_key", "raft.tls_ca"),
    ),
    "secret": ("cluster.secret_file",),
    "access": (
        *("auth.secret_file", "auth.jwks_file", "auth.algorithms", "auth.audience", "auth.issuer"),
        *("auth.leeway_seconds", "auth.token_seconds_max", "auth.allow_query_token"),
        "auth.anonymous.*",
    ),
}


def is_live(key: str) -> bool:
    """Whether a reload applies this key."""
    return any(names_key(names, key) for names in LIVE.values())


def names_key(names: Collection[str], key: str) -> bool:
    return key in names or key.rpartition(".")[0] + EVERY in names


@dataclass(frozen=True, slots=True)
class Hook:
    """A part of the node that can change while it serves.

    ``apply`` gets a configuration in which nothing differs from the one in force but
    ``keys`` of this hook. It acts at once, without waiting: it raises ConfigError
    and leaves everything as it was, or has taken all of them. It may say of which keys
    the files have other contents now. The first hook that names a key has it.
    """

    name: str
    keys: tuple[str, ...]  # dotted names; "limits.*" is every key of [limits]
    apply: Callable[[Config], Collection[str] | None]
    # Whether the part itself counts a problem, and knows when it is over: it looks at its files.
    counts: Callable[[str], bool] = lambda problem: False

    def takes(self, key: str) -> bool:
        return names_key(self.keys, key)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of the keys whose values differ, and what was wrong."""

    applied: tuple[str, ...] = ()
    need_restart: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    read_anew: tuple[str, ...] = ()  # whose files have other contents, and are in force

    def __str__(self) -> str:
        """For the manager's status line."""
        parts = [f"reload failed: {self.problems[0]}"] if self.problems else []
        if self.applied:
            parts.append(f"applied {', '.join(self.applied)}")
        if self.read_anew:
            parts.append(f"read anew {', '.join(self.read_anew)}")
        if self.need_restart:
            parts.append(f"restart for {', '.join(self.need_restart)}")
        return "; ".join(parts)


class Reloader:
    """Holds the configuration in force. ``read`` gives it as it would be at a start now."""

    def __init__(self, config: Config, read: Callable[[], Config]) -> None:
        self.config = config
        self.hooks: list[Hook] = []
        self.problems = 0  # of the last time, beside those that the parts count themselves
        self._read = read

    def reload(self) -> Reloaded:
        """Read and apply, and say so in the log, key by key. Never raises."""
        outcome = self._reload()
        self.problems = sum(not self._is_counted(problem) for problem in outcome.problems)
        return outcome

    def _is_counted(self, problem: str) -> bool:
        return any(hook.counts(problem.removeprefix(f"{hook.name}: ")) for hook in self.hooks)

    def _reload(self) -> Reloaded:
        try:
            found = self._read()
        except ConfigError as error:
            problems = error.problems if isinstance(error, InvalidConfigError) else (str(error),)
            for problem in problems:
                log.error(
                    "the configuration was not reloaded; what was in force still is problem=%r",
                    problem,
                )
            _note("all of it", REFUSED)
            return Reloaded(problems=problems)
        return self._take(values_of(self.config), values_of(found))

    def _take(self, old: Mapping[str, object], new: Mapping[str, object]) -> Reloaded:
        changed = [name for name in new if new[name] != old[name]]
        taken = {hook.name: [k for k in changed if self._hook_of(k) is hook] for hook in self.hooks}
        problems: list[str] = []
        refused: list[str] = []
        applied: list[str] = []
        read_anew: list[str] = []
        for hook in self.hooks:
            names = taken[hook.name]
            found, problem = self._apply(hook, {name: new[name] for name in names})
            if problem:
                problems.append(f"{hook.name}: {problem}")
                refused += names or [hook.name]
            else:
                applied += names
                read_anew += [name for name in found if name not in names]
        need_restart = [name for name in changed if self._hook_of(name) is None]
        for name in applied:
            log.info("applied key=%s value=%r was=%r", name, _shown(new[name]), _shown(old[name]))
        for name in need_restart:
            value, was = _shown(new[name]), _shown(old[name])
            log.warning("needs a restart key=%s value=%r in_force=%r", name, value, was)
        if applied or read_anew:
            _note(", ".join((*applied, *read_anew)), "done")
        if problems:
            _note(", ".join(refused), REFUSED)
        for name in read_anew:
            log.info("read anew key=%s file=%r", name, str(new[name]))
        _tell_end(new, len(applied), len(read_anew), len(need_restart), len(problems))
        return Reloaded(tuple(applied), tuple(need_restart), tuple(problems), tuple(read_anew))

    def _apply(self, hook: Hook, values: Mapping[str, object]) -> tuple[Collection[str], str]:
        """Of which keys the files have changed, and what was wrong, if anything."""
        config = replace_values(self.config, values)
        try:
            found = hook.apply(config)
        except ConfigError as error:
            log.error("not applied part=%s problem=%r", hook.name, str(error))
            return (), str(error)
        except Exception as error:  # a bug of one part; the node serves on with what it has
            log.exception("not applied part=%s", hook.name)
            return (), f"{type(error).__name__}: {error}"
        self.config = config
        return found or (), ""

    def _hook_of(self, key: str) -> Hook | None:
        return next((hook for hook in self.hooks if hook.takes(key)), None)


def _note(target: str, outcome: str) -> None:
    """The audit's line."""
    by = "whoever sends signals to the process"
    note("configuration.reload", target, subject=by, address="local", outcome=outcome)


def _tell_end(
    values: Mapping[str, object], applied: int, read_anew: int, need_restart: int, problems: int
) -> None:
    """That a reload is over; and if nothing came of it, where that may come from."""
    if applied or read_anew or need_restart or problems:
        counts = (applied, read_anew, need_restart, problems)
        log.info("reloaded applied=%d read_anew=%d need_restart=%d problems=%d", *counts)
        return
    copies = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if copies and any(isinstance(v, Path) and v.is_relative_to(copies) for v in values.values()):
        log.info(
            "reloaded, and nothing has changed remedy=%r",
            "systemd's credentials are copies that were made at the start of the service; for "
            "newer ones restart it",
        )
    else:
        log.info("reloaded, and nothing has changed")


def _shown(value: object) -> object:
    """A value as the log has it: a list of strings, or what it is written as."""
    if isinstance(value, tuple):
        return [str(each) for each in value]
    return value if isinstance(value, bool | int) or value is None else str(value)
