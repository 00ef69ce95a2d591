"""A disk that fails under a publish: the client is not told that it is kept."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from repl_broker import daemon
from repl_broker.config import Address, Config
from repl_broker.errors import StorageError
from repl_broker.raft.log import WriteBatch
from repl_broker.storage import SqliteStorage
from tests.contract.client import check_problem


async def test_a_publish_on_a_failing_disk_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node stops, but not before it has answered."""
    config = Config()
    config = replace(
        config,
        node=replace(config.node, data_dir=tmp_path / "data"),
        http=replace(config.http, bind=Address("127.0.0.1", 0)),
    )
    broken = threading.Event()
    write = SqliteStorage.write

    def fail(storage: SqliteStorage, batch: WriteBatch) -> None:
        if broken.is_set():
            raise StorageError("the disk is gone")
        write(storage, batch)

    monkeypatch.setattr(SqliteStorage, "write", fail)
    answers: list[httpx.Response] = []

    async def use_node() -> None:
        async with trio.open_nursery() as nursery:
            running = await nursery.start(partial(daemon.serve, config, trio.Event()))
            async with httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
                url = "/v1/topics/chat/messages"
                answers.append(await client.post(url, json=1))
                broken.set()
                with trio.CancelScope(shield=True):
                    answers.append(await client.post(url, json=2))

    with trio.fail_after(10), pytest.raises(BaseExceptionGroup) as failure:
        await use_node()
    assert failure.group_contains(StorageError, match="the disk is gone")
    first, second = answers
    assert first.status_code == 201
    check_problem(second, 504, "outcome_unknown", "Idempotency-Key")
