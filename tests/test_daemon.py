"""A node within this process: what cannot be seen from outside it.

How it is started, stopped and killed is tested with processes (tests/process).
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from repl_broker import daemon
from repl_broker.config import Address
from repl_broker.storage import SqliteStorage
from repl_broker.systemd import PassedSocket
from repl_broker.writer import ThreadWriter
from tests.nodes import configured

HANG_SECONDS_MAX: Final = 30


class SlowStorage(SqliteStorage):
    """A store whose first write at a start hangs until it is ``let``, in the writer's thread."""

    def __init__(self, folder: Path, node_id: str) -> None:
        super().__init__(folder, node_id)
        self.hangs = threading.Event()
        self.let = threading.Event()
        self.done: list[str] = []

    def drop_others(
        self,
        upto: int,
        keep: Sequence[int],
        after: int,
        entries_max: int,
        bytes_max: float = math.inf,
    ) -> int:
        self.hangs.set()
        assert self.let.wait(HANG_SECONDS_MAX)
        done = super().drop_others(upto, keep, after, entries_max, bytes_max)
        self.done.append("written")
        return done

    def close(self) -> None:
        super().close()
        self.done.append("closed")


async def test_a_node_that_ends_while_it_starts_closes_its_store_after_the_last_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that a cluster refuses. SQLite takes the process along if a connection is
    closed while another thread uses it."""
    config = configured(node={"data_dir": tmp_path})
    storage = SlowStorage(tmp_path, config.node.id)
    monkeypatch.setattr(daemon, "SqliteStorage", lambda folder, node_id: storage)
    close_writer = ThreadWriter.close

    async def close(writer: ThreadWriter) -> None:
        storage.let.set()
        await close_writer(writer)

    monkeypatch.setattr(ThreadWriter, "close", close)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sockets = [PassedSocket(listening, Address("127.0.0.1", 0))]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(daemon.serve, config, trio.Event(), sockets=sockets))
            await trio.to_thread.run_sync(storage.hangs.wait, HANG_SECONDS_MAX)
            nursery.cancel_scope.cancel()
    assert storage.done == ["written", "closed"]
