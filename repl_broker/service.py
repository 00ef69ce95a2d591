"""The node as its service manager sees it: starting, ready, alive, reloading, stopping.

What is said, and how, is in systemd.py; what a reload changes in reload.py. Here is
when. A manager that is not there is told nothing, and costs nothing.

Signs of life (WATCHDOG=1) are given by a task among the node's own, twice in each
interval that the manager waits. That it runs shows that the event loop turns. It
speaks only if the task that drives Raft has come round since the last time, and if
the disk has not been at one and the same write for a whole interval: a node that
cannot commit is better started anew, for its cluster elects another leader then.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Final, Protocol

import trio

from repl_broker.reload import Reloader
from repl_broker.systemd import Manager

__all__ = ["Service", "Vital"]

log = logging.getLogger(__name__)

STATUS_SECONDS: Final = 5.0  # between two looks at what the status line says
EXTENSION_SECONDS: Final = 60  # by which a start that goes on is put off, each time
EXTEND_SECONDS_MAX: Final = 3600  # beyond it a start counts as hung after all
SAY_TRIES: Final = 20
SAY_AGAIN_SECONDS: Final = 0.1


class Vital(Protocol):
    """What must go on for the node to be alive: the replica."""

    @property
    def writing_seconds(self) -> float: ...

    async def prove_alive(self) -> None: ...


class Service:
    """What is told to ``manager``, and when. ``reloader`` is None where nothing can be reloaded."""

    def __init__(self, manager: Manager | None = None, reloader: Reloader | None = None) -> None:
        self.manager = manager or Manager()
        self.reloader = reloader
        self.serving = trio.Event()
        self.hurry = trio.Event()
        """The node is to stop without draining."""
        self._status: Callable[[], str] = lambda: "starting"
        self._told = ""  # the status line that the manager has
        self._reload_outcome = ""
        self._fed = True
        self._stopping = False

    async def extend_start(self) -> None:
        """Until the node serves: more time, again and again: a long log takes long to read.

        Not for ever: a disk that hangs would keep the manager waiting.
        """
        with trio.move_on_after(EXTEND_SECONDS_MAX):
            while self.manager.listens and not self.serving.is_set():
                microseconds = EXTENSION_SECONDS * 1_000_000
                self.manager.tell(f"EXTEND_TIMEOUT_USEC={microseconds}", "STATUS=reading the log")
                with trio.move_on_after(EXTENSION_SECONDS / 3):
                    await self.serving.wait()

    async def ready(self, status: Callable[[], str]) -> None:
        """Requests are answered; ``status`` says how the node is, in a few words."""
        self._status = status
        self.serving.set()
        await self._say("READY=1", self._status_line())

    def stopping(self) -> None:
        """The node drains and ends. Once is enough."""
        if not self._stopping:
            self._stopping = True
            self.manager.tell("STOPPING=1", "STATUS=stopping")

    def extend_stop(self, seconds: int) -> None:
        """The node serves on for so long before it stops: the manager's patience begins then."""
        microseconds = (seconds + EXTENSION_SECONDS) * 1_000_000
        self.manager.tell(f"EXTEND_TIMEOUT_USEC={microseconds}", f"STATUS=draining for {seconds} s")

    async def run(self, vital: Vital) -> None:
        """Signs of life and the status line, until cancelled."""
        if not self.manager.listens:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_status)
            if self.manager.watchdog_seconds is not None:
                nursery.start_soon(self._feed_watchdog, vital, self.manager.watchdog_seconds)

    async def _tell_status(self) -> None:
        while True:
            line = self._status_line()
            if line != self._told and not self._stopping and self.manager.tell(line):
                self._told = line
            await trio.sleep(STATUS_SECONDS)

    def _status_line(self) -> str:
        return f"STATUS={self._status()}{self._reload_outcome}"

    async def _feed_watchdog(self, vital: Vital, interval_seconds: float) -> None:
        period = interval_seconds / 2
        while True:
            due = trio.current_time() + period
            trouble = await self._trouble(vital, interval_seconds)
            if not trouble:
                self.manager.tell("WATCHDOG=1")
            elif self._fed:
                log.error("the watchdog is not fed why=%r", trouble)
            self._fed = not trouble
            await trio.sleep_until(due)

    async def _trouble(self, vital: Vital, interval_seconds: float) -> str:
        """Why the node is not alive; "" if it is."""
        if vital.writing_seconds >= interval_seconds:
            return f"the disk has been at one write for {vital.writing_seconds:.1f} seconds"
        with trio.move_on_after(interval_seconds / 2) as patience:
            await vital.prove_alive()
        return "the task that drives Raft does not come round" if patience.cancelled_caught else ""

    async def reload(self) -> None:
        """Read the configuration again, and tell the manager before and after."""
        if self.reloader is None or self._stopping:
            return
        await self._try(self.manager.tell_reloading)
        outcome = str(self.reloader.reload())
        self._reload_outcome = f"; {outcome}" if outcome else ""
        await self._say("READY=1", self._status_line())

    async def _say(self, *lines: str) -> None:
        await self._try(lambda: self.manager.tell(*lines))

    async def _try(self, tell: Callable[[], bool]) -> None:
        """What the manager waits for; it may be busy for a moment."""
        for _ in range(SAY_TRIES):
            if not self.manager.listens or tell():
                return
            await trio.sleep(SAY_AGAIN_SECONDS)


def lost_terminal(was_there: bool) -> bool:
    """Whether a SIGHUP tells that the terminal is gone, rather than asks for a reload."""
    return was_there and not sys.stderr.isatty()
