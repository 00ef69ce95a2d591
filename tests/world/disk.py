"""A disk of memory beneath the product's own store: SQLite, journal and all else about files.

    disk = SimDisk(random.Random(seed))
    with disk.mounted():
        storage = SqliteStorage(disk.path, "n1")
        ...
        disk.crash()  # the power goes
        storage.close()  # what the dead process had; it reaches nothing any more
        storage = SqliteStorage(disk.path, "n1")

The seed gives the run: what survives, SQLite's salts, and what ``secrets`` draws.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import secrets
from collections.abc import Iterator
from unittest.mock import patch

from tests.world import sqlite_vfs, system_calls
from tests.world.files import MOUNTED, SimFiles

__all__ = ["SimDisk"]

QUICK_SECONDS = 0.0003
SLOW_SECONDS = 0.03
STALL = 0.01  # of all operations take so many times as long
STALL_TIMES = 20
STALL_SECONDS_MAX = 10.0  # else one write of a slow disk may take the minute in which all forms

_unnamed = itertools.count(1)


class SimDisk(SimFiles):
    """One disk of one node. Several may be mounted at once, each with a name of its own."""

    def __init__(
        self,
        chance: random.Random,
        *,
        name: str | None = None,
        mean_seconds: float = QUICK_SECONDS,
    ) -> None:
        draw = [random.Random(chance.getrandbits(64)) for _ in range(3)]
        self._delays, self._secrets, survival = draw
        super().__init__(survival, name or f"disk-{next(_unnamed)}")
        self.mean_seconds = mean_seconds  # SLOW_SECONDS for a slow one

    def delay_seconds(self) -> float:
        """How long a write takes here: drawn anew each time."""
        stalls = self._delays.random() < STALL
        seconds = self._delays.expovariate(1 / self.mean_seconds)
        return min(seconds * (STALL_TIMES if stalls else 1), STALL_SECONDS_MAX)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """While this lasts, what is below ``path`` is on this disk."""
        assert self.path.name not in MOUNTED, f"a disk is mounted as {self.path.name!r}"
        with contextlib.ExitStack() as stack:
            if not MOUNTED:
                stack.enter_context(sqlite_vfs.led(self._secrets))
                stack.enter_context(system_calls.led())
                stack.enter_context(patch.object(secrets, "token_bytes", self._token_bytes))
            MOUNTED[self.path.name] = self
            # Whichever goes last: the calls are led as long as one is there.
            _leading.append(stack.pop_all())
            try:
                yield
            finally:
                del MOUNTED[self.path.name]
                if not MOUNTED:
                    while _leading:
                        _leading.pop().close()

    def _token_bytes(self, count: int | None = None) -> bytes:
        return self._secrets.randbytes(32 if count is None else count)


_leading: list[contextlib.ExitStack] = []
