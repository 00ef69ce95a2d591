"""A state in parts: SQLite takes a value all at once, and none of more than 1e9 bytes.

    snapshot        … data = {"parts":3} …     one row; what it says of its parts is not the state
    snapshot_part   0 │ 1 │ 2                  behind one another they are

The checksum of the snapshot is over the whole. Parts are written one by one into a
table of their own, which takes its name with the row that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

__all__ = ["PART_BYTES", "ROW_BYTES_MAX", "count_of", "head", "parts_in", "parts_of"]

# Each part is a transaction of its own, for which a small write may have to wait.
ROW_BYTES_MAX: Final = 2 << 20  # of a state that is kept in one row
PART_BYTES: Final = 2 << 20
_HEAD_BYTES_MAX: Final = 32


def count_of(data: bytes) -> int:
    """In how many parts it is saved; 0 if it fits in one row."""
    return -(-len(data) // PART_BYTES) if len(data) > ROW_BYTES_MAX else 0


def parts_of(data: bytes) -> Iterator[bytes]:
    """One by one; none if it fits in one row."""
    for number in range(count_of(data)):
        yield data[number * PART_BYTES : (number + 1) * PART_BYTES]


def head(count: int) -> bytes:
    """What stands in the place of a state in this many parts. A state begins with other bytes,
    as it is an array of msgpack."""
    return json.dumps({"parts": count}, separators=(",", ":")).encode()


def parts_in(data: bytes) -> int | None:
    """How many parts it says that there are; None for a state. Raises ValueError for damage."""
    if len(data) > _HEAD_BYTES_MAX or not data.startswith(b'{"parts":'):
        return None
    count = json.loads(data)["parts"]
    if not isinstance(count, int) or head(count) != data:
        raise ValueError("it is neither a state nor does it name its parts")
    return count
