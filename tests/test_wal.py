"""Damage within SQLite's write-ahead log, and what a power loss leaves there, which is none."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from struct import pack_into, unpack_from
from typing import Final

import pytest

from repl_broker.wal import BIG, FRAME, HEADER, _sum, is_damaged
from tests.raft.power_loss import DATABASE, WAL, image, put, torn

FRAME_BYTES: Final = FRAME.size + 4096
SEEDS: Final = range(12)


def damaged(log: bytes) -> bool:
    return is_damaged(BytesIO(log))


def connect(folder: Path) -> sqlite3.Connection:
    """With a small cache, so that a transaction writes frames before its commit."""
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    for setting in (
        *("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0"),
        *("cache_size=10", "cache_spill=5"),
    ):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, data BLOB)")
    return connection


def insert(connection: sqlite3.Connection, *sizes: int) -> None:
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO t (data) VALUES (zeroblob(?))", [(n,) for n in sizes])
    connection.execute("COMMIT")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect(tmp_path)
    yield connection
    connection.close()


@pytest.fixture
def log(connection: sqlite3.Connection, tmp_path: Path) -> bytes:
    """Of some transactions, the last of which has more than one frame."""
    for sizes in ([10], [10_000], [10, 50_000], [3000], [10, 10_000]):
        insert(connection, *sizes)
    return (tmp_path / WAL).read_bytes()


def commits(log: bytes) -> list[int]:
    """Where the transactions end."""
    frames = range(HEADER.size, len(log), FRAME_BYTES)
    return [at + FRAME_BYTES for at in frames if FRAME.unpack_from(log, at)[1]]


def flipped(log: bytes, at: int, bit: int = 0) -> bytes:
    changed = bytearray(log)
    changed[at] ^= 1 << bit
    return bytes(changed)


# --- damage ---


def test_a_log_as_it_was_written_is_sound(log: bytes) -> None:
    assert len(commits(log)) > 4
    assert not damaged(log)


def test_any_bit_that_flips_before_the_last_transaction_is_damage(log: bytes) -> None:
    """RAFT.md scenario 26: SQLite would drop that transaction, and all behind it."""
    end = commits(log)[-2]
    heads = {h + i for h in range(HEADER.size, end, FRAME_BYTES) for i in range(FRAME.size)}
    draw = random.Random(1)
    places = {*range(HEADER.size), *heads, *draw.sample(range(end), 300)}
    for at in places:
        bit = draw.randrange(8)
        assert damaged(flipped(log, at, bit)), f"byte {at}, bit {bit}"
    for at in range(HEADER.size, end, FRAME_BYTES):  # the highest bit of each sum
        assert damaged(flipped(log, at + 16, 7))
        assert damaged(flipped(log, at + 20, 7))


def test_larger_damage_is_found_too(log: bytes) -> None:
    """RAFT.md scenario 26: a sector of zeros, and frames that changed places."""
    first, second, third = range(HEADER.size, HEADER.size + 3 * FRAME_BYTES, FRAME_BYTES)
    assert damaged(log[:8192] + bytes(512) + log[8704:])
    assert damaged(log[:first] + log[second:third] + log[first:second] + log[third:])
    assert damaged(bytes(512) + log[512:])


def test_damage_to_the_last_transaction_looks_like_a_torn_tail(log: bytes) -> None:
    """RAFT.md scenario 26: which is all that can be known."""
    for start in range(commits(log)[-2], len(log), FRAME_BYTES):
        for at in range(start + FRAME.size, start + FRAME_BYTES, 97):
            assert not damaged(flipped(log, at))


def test_a_log_of_many_frames_is_checked_to_its_end(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    for _ in range(100):
        insert(connection, 20_000)
    log = (tmp_path / WAL).read_bytes()
    assert not damaged(log)
    for place in range(HEADER.size + 100, commits(log)[-2], 100_000):
        assert damaged(flipped(log, place))


def test_a_log_of_a_machine_with_the_other_byte_order(log: bytes) -> None:
    """SQLite reads it, so it is judged as any other."""
    made = bytearray(log)
    pack_into(">I", made, 0, BIG)
    sums = _sum(bytes(made[:24]), (0, 0), is_big=True)
    pack_into(">2I", made, 24, *sums)
    for at in range(HEADER.size, len(made), FRAME_BYTES):
        page = bytes(made[at : at + 8] + made[at + FRAME.size : at + FRAME_BYTES])
        sums = _sum(page, sums, is_big=True)
        pack_into(">2I", made, at + 16, *sums)
    assert not damaged(bytes(made))
    assert damaged(flipped(made, 5000))


# --- what is none ---


@pytest.mark.parametrize("size", [0, 1, 31])
def test_a_log_without_a_whole_header_is_sound(size: int, log: bytes) -> None:
    assert not damaged(log[:size])


def test_a_log_that_is_cut_anywhere_is_sound(log: bytes) -> None:
    """RAFT.md scenario 26: a torn tail."""
    for size in range(HEADER.size, len(log), 1009):
        assert not damaged(log[:size])
        assert not damaged(log[:size] + bytes(9999))


def test_a_header_that_was_never_written_is_none() -> None:
    assert not damaged(bytes(32))
    assert not damaged(bytes(100_000))


def test_frames_of_an_older_log_are_no_damage(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    """RAFT.md scenario 26: after a checkpoint it is written from its start again."""
    for _ in range(5):
        insert(connection, 10_000)
    for mode in ("PASSIVE", "RESTART", "TRUNCATE"):
        connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        assert not damaged((tmp_path / WAL).read_bytes())
        insert(connection, 10)
        log = (tmp_path / WAL).read_bytes()
        assert not damaged(log)
        assert not damaged(flipped(log, HEADER.size + 100)), "it is the only transaction"
        insert(connection, 10)
        assert damaged(flipped((tmp_path / WAL).read_bytes(), HEADER.size + 100))


def test_a_transaction_that_was_taken_back_is_no_damage(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    """Its frames stay behind, with the salts of today."""
    insert(connection, 10)
    size = (tmp_path / WAL).stat().st_size
    connection.execute("BEGIN")
    connection.execute("SAVEPOINT s")
    connection.executemany("INSERT INTO t (data) VALUES (zeroblob(?))", [(3000,)] * 50)
    connection.execute("ROLLBACK TO s")
    connection.execute("ROLLBACK")
    log = (tmp_path / WAL).read_bytes()
    assert len(log) > size + 10 * FRAME_BYTES, "frames were written before the commit"
    assert not damaged(log)
    insert(connection, 10)
    assert not damaged((tmp_path / WAL).read_bytes())
    assert not damaged(flipped((tmp_path / WAL).read_bytes(), size + 100)), "the last one"


def test_a_torn_head_over_an_older_commit_is_no_damage(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    """RAFT.md scenario 25: some heads are in two sectors, of which one can be lost."""
    for _ in range(80):
        insert(connection, 10)
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    old = (tmp_path / WAL).read_bytes()
    insert(connection, 400_000)
    new = (tmp_path / WAL).read_bytes()
    places = range(HEADER.size, len(old), FRAME_BYTES)
    split = [at for at in places if at // 512 != (at + FRAME.size - 1) // 512]
    assert len(split) > 1
    for at in split:
        start = at // 512 * 512
        assert not damaged(new[:start] + old[start : start + 512] + new[start + 512 :])


@pytest.mark.parametrize("seed", SEEDS)
def test_no_power_loss_looks_like_damage(seed: int, tmp_path: Path) -> None:
    """RAFT.md scenario 25: nor one after the other, each of which leaves frames behind."""
    draw = random.Random(seed)
    folder = tmp_path / "0"
    folder.mkdir()
    for life in range(1, 7):
        connection = connect(folder)
        for _ in range(draw.randrange(4)):
            live(connection, draw)
        before = image(folder)
        live(connection, draw)
        left = draw.choice(list(torn(before, image(folder))))
        connection.close()
        assert not damaged(left.get(WAL, b"")), f"life {life}"
        shutil.rmtree(folder)
        folder = put(left, tmp_path / str(life))


def live(connection: sqlite3.Connection, draw: random.Random) -> None:
    """One thing that a store may do."""
    match draw.randrange(6):
        case 0:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        case 1:
            connection.execute("DELETE FROM t WHERE id % 3 = 0")
        case 2:
            insert(connection, *[draw.randrange(9000) for _ in range(40)])
        case _:
            insert(connection, draw.randrange(6000))


def test_the_sums_are_those_of_sqlite(log: bytes) -> None:
    """From the other side: each frame of the log that SQLite wrote continues the one before."""
    sums: tuple[int, ...] = unpack_from(">2I", log, 24)
    for at in range(HEADER.size, len(log), FRAME_BYTES):
        page = log[at : at + 8] + log[at + FRAME.size : at + FRAME_BYTES]
        sums = _sum(page, sums, is_big=False)
        assert sums == unpack_from(">2I", log, at + 16)
