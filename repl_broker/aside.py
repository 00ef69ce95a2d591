"""A store that cannot be used any more is moved aside, so that its node can join anew. Offline.

    data directory/  broker.db  broker.db-wal  broker.journal
          └──▶ data directory/aside-20261201T155000Z/  …

Nothing is deleted: somebody may want to look. The database goes last. A crash before
leaves one whose journal is gone, which no node starts with; to move again goes on.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from repl_broker.errors import StorageError
from repl_broker.files import make_folder, sync
from repl_broker.storage import JOURNAL_NAME, STORE_NAME, hold, require_store

__all__ = ["Aside"]

FILES: Final = (JOURNAL_NAME, f"{STORE_NAME}-wal", f"{STORE_NAME}-shm", STORE_NAME)  # in this order


class Aside:
    """A store that no node uses meanwhile. A context manager.

    ``node_id`` and ``cluster_id`` are as the store says, or "" where that cannot be read.
    Raises ConfigError where there is none, StoreLockedError for one of a running node.
    """

    def __init__(self, folder: Path) -> None:
        require_store(folder)
        self._folder = folder
        self._lock = hold(folder)
        meta = _meta(folder / STORE_NAME)
        self.node_id, self.cluster_id = (str(meta.get(k, "")) for k in ("node_id", "cluster_id"))

    def move(self, now_ms: int) -> Path:
        """Move it; where to. Raises StorageError."""
        name = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("aside-%Y%m%dT%H%M%SZ")
        target = self._folder / name
        try:
            make_folder(target)
            for each in FILES:
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / each).rename(target / each)
                sync(target)
                sync(self._folder)
        except OSError as error:
            raise StorageError(
                f"the store in {str(self._folder)!r} cannot be moved to {str(target)!r}: "
                f"{error.strerror or error}; run this again, as the node's user"
            ) from None
        return target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._lock)


def _meta(file: Path) -> dict[str, Any]:
    """What of it can be read: it may be damaged anywhere.

    Of a young node that was killed all is in the write-ahead log, which is read too. It stays
    as it is: who may only read does not move it into the file at the end.
    """
    name = f"{file.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(name, uri=True)) as connection:
            return dict(connection.execute("SELECT key, value FROM meta"))
    except Exception:  # noqa: BLE001  of whatever kind: it is damaged
        return {}
