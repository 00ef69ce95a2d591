"""A snapshot without the code that makes it in pieces, to compare with."""

from __future__ import annotations

from array import array

import msgpack

from repl_broker.state import BrokerState
from repl_broker.wire import pack_settings


def in_one_go(state: BrokerState) -> bytes:
    """What a snapshot of ``state`` is, written down without pieces."""
    packed = pack_settings(state.settings)
    topics = [state.topics[name].to_wire() for name in sorted(state.topics)]
    keys = state.keys_to_wire()
    revoked = [(subject, *known) for subject, known in state.revocations.items()]
    rows = [
        (row, block.published.get(row[0]))
        for block in state.segments.blocks
        for row in zip(*block.columns, strict=True)
        if row[3]
    ]
    columns = [
        array(code, (row[number] for row, _ in rows)).tobytes()
        for number, code in enumerate("QQQIQQ")
    ]
    is_wide = (
        len(packed) > 5
        or len(packed[1]) > 3
        or any(len(row) > 8 or len(row[1]) > 3 for row in topics)
        or any(len(row) > 5 for row in keys)
    )
    data: bytes = msgpack.packb(
        (
            3 if is_wide else 2 if revoked else 1,
            state.applied_index,
            state.seq,
            state.time_ms,
            packed,
            topics,
            columns,
            [(row[0], published) for row, published in rows if published is not None],
            keys,
            [(name, *when) for name, when in state.tombstones.items()],
            state.tombstone_floor,
            *([revoked] if revoked else ()),
        )
    )
    return data
