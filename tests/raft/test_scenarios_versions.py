"""RAFT.md, scenario 49: nodes of other versions, and bytes that are none of ours."""

from __future__ import annotations

from typing import Any, Final

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import fields

from repl_broker.raft.codec import PARTS_BYTES, decode_rpc, encode_parts, encode_rpc
from repl_broker.raft.log import NUMBER_MAX, Entry, EntryKind, Member, Membership, SnapshotMark
from repl_broker.raft.rpc import (
    Append,
    AppendReply,
    Commit,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    PreVoteReply,
    Rpc,
    SnapshotReceived,
    TimeoutNow,
    Vote,
    VoteReply,
)
from repl_broker.wire import decode_entry

NUMBERS: Final = st.integers(0, NUMBER_MAX)
NAMES: Final = st.text(max_size=8)
MEMBERS: Final = st.builds(
    Member, id=NAMES, raft_address=NAMES, http_url=NAMES, voter=st.booleans()
)
MEMBERSHIPS: Final = st.lists(MEMBERS, max_size=3).map(tuple).map(Membership)
OTHER_FIELDS: Final[dict[str, st.SearchStrategy[Any]]] = {
    "sender": NAMES,
    "receiver": NAMES,
    "granted": st.booleans(),
    "transfer": st.booleans(),
    "accepted": st.booleans(),
}
KINDS: Final[tuple[type[Rpc], ...]] = (
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
    Commit,
)


@st.composite
def appends(draw: st.DrawFn) -> Append:
    """As a leader sends them: the indexes ascend by one, the terms never fall."""
    terms = sorted(draw(st.lists(NUMBERS, min_size=2, max_size=5)))
    prev_index = draw(st.integers(0, NUMBER_MAX - 8))
    entries = []
    for index, term in enumerate(terms[1:-1], prev_index + 1):
        kind = draw(st.sampled_from(EntryKind))
        is_membership = kind is EntryKind.MEMBERSHIP
        data = MEMBERSHIPS.map(Membership.encode) if is_membership else st.binary(max_size=8)
        entries.append(Entry(index, term, kind, draw(data)))
    return Append(
        sender=draw(NAMES),
        receiver=draw(NAMES),
        term=terms[-1],
        prev_index=prev_index,
        prev_term=terms[0],
        entries=tuple(entries),
        commit=draw(NUMBERS),
    )


RPCS: Final[st.SearchStrategy[Rpc]] = st.one_of(
    [
        appends()
        if kind is Append
        else st.builds(kind, **{f.name: OTHER_FIELDS.get(f.name, NUMBERS) for f in fields(kind)})
        for kind in KINDS
    ]
)
VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)
EDITS: Final = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)
MANY: Final = settings(max_examples=5 * settings().max_examples, deadline=None)


@given(RPCS)
def test_an_rpc_is_read_as_it_was_written(rpc: Rpc) -> None:
    """RAFT.md scenario 49: whatever its fields are."""
    assert decode_rpc(encode_rpc(rpc)) == rpc


@given(NUMBERS, NUMBERS, NUMBERS, NAMES, st.sampled_from([1, 1 << 20]))
@example(0, NUMBER_MAX, NUMBER_MAX, "", 1)
def test_an_append_in_parts_has_the_same_bytes(
    before: int, term: int, commit: int, name: str, more: int
) -> None:
    entry = Entry(before + 1, term, EntryKind.DATA, bytes(PARTS_BYTES + more))
    append = Append(
        sender=name,
        receiver=name,
        term=term,
        prev_index=before,
        prev_term=term,
        entries=(entry,),
        commit=commit,
    )
    parts = encode_parts(append)
    assert b"".join(parts) == encode_rpc(append)
    assert any(part is entry.data for part in parts), "it is not copied"


def decode_or_refuse(data: bytes) -> None:
    """Nothing but ValueError may come out of garbage, and nothing half read."""
    try:
        rpc = decode_rpc(data)
    except ValueError:
        return
    assert decode_rpc(encode_rpc(rpc)) == rpc


@given(st.binary(max_size=60))
@example(b"\x91" * 5000)  # lists in lists
@example(b"\xdd\xff\xff\xff\xff")  # a list of four thousand million, it says
@example(b"\xd6\xff\0\0\0\0")  # a time
@example(b"\x81\x90\x01")  # a list as a key
@MANY
def test_bytes_by_chance_are_refused_or_an_rpc(data: bytes) -> None:
    """RAFT.md scenario 49."""
    decode_or_refuse(data)


@given(st.integers(0, 12) | VALUES, st.lists(VALUES, max_size=8))
@MANY
def test_values_in_another_order_or_of_other_types_are_refused_or_an_rpc(
    number: Any, values: list[Any]
) -> None:
    """RAFT.md scenario 49: well-formed msgpack is not enough."""
    decode_or_refuse(msgpack.packb([number, *values]))
    decode_or_refuse(msgpack.packb(number))


@given(RPCS, EDITS, st.integers(0, 20))
@MANY
def test_an_rpc_with_some_bytes_changed_or_missing_is_refused_or_an_rpc(
    rpc: Rpc, edits: list[tuple[int, int]], cut: int
) -> None:
    """RAFT.md scenario 49."""
    data = bytearray(encode_rpc(rpc))
    for at, byte in edits:
        data[at % len(data)] = byte
    decode_or_refuse(bytes(data[: len(data) - cut]))


@pytest.mark.parametrize("number", [0, 12, 99])
def test_an_rpc_that_this_version_does_not_know_is_refused(number: int) -> None:
    """RAFT.md scenario 49."""
    with pytest.raises(ValueError, match="not an RPC"):
        decode_rpc(msgpack.packb([number, "a", "b", 1]))


def test_an_rpc_with_one_field_more_is_refused() -> None:
    """RAFT.md scenario 49: another form is another protocol, which the handshake tells."""
    known = TimeoutNow(sender="a", receiver="b", term=1)
    assert decode_rpc(msgpack.packb([10, "a", "b", 1])) == known
    for values in ([10, "a", "b"], [10, "a", "b", 1, 2]):
        with pytest.raises(ValueError, match="not an RPC"):
            decode_rpc(msgpack.packb(values))


@given(RPCS, st.data())
def test_an_rpc_without_all_its_fields_is_refused(rpc: Rpc, data: st.DataObject) -> None:
    """RAFT.md scenario 49: none has a value that is meant where it is not said."""
    values = msgpack.unpackb(encode_rpc(rpc))
    fewer = data.draw(st.integers(0, len(values) - 1))
    with pytest.raises(ValueError, match="not an RPC"):
        decode_rpc(msgpack.packb(values[:fewer]))
    with pytest.raises(ValueError, match="not an RPC"):
        decode_rpc(msgpack.packb([*values, 0]))


def test_no_peer_may_say_that_a_snapshot_has_arrived() -> None:
    """RAFT.md scenario 33: only the pieces of it, all checked, make a node believe it."""
    said = SnapshotReceived(sender="a", receiver="b", term=1, mark=SnapshotMark(1, 1))
    with pytest.raises(ValueError, match="not an RPC"):
        decode_rpc(encode_rpc(said))


def test_an_entry_of_an_unknown_kind_is_refused_before_it_is_in_the_log() -> None:
    """RAFT.md scenario 49: or a node would append what it can never apply."""
    entry = [1, 1, 3, b""]
    with pytest.raises(ValueError, match="Invalid enum value 3"):
        decode_rpc(msgpack.packb([5, "a", "b", 1, 0, 0, [entry], 0]))


def append(*entries: tuple[int, int, int, bytes], prev: tuple[int, int] = (4, 2)) -> bytes:
    """What node a would say in term 3."""
    data: bytes = msgpack.packb([5, "a", "b", 3, *prev, entries, 0])
    return data


NO_OP: Final = (5, 2, 1, b"")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (append((6, 2, 1, b"")), "entry 6 where 5 was to come"),
        (append((4, 2, 1, b"")), "entry 4 where 5"),
        (append(NO_OP, NO_OP), "entry 5 where 6"),
        (append(NO_OP, (7, 2, 1, b"")), "entry 7 where 6"),
        (append((5, 1, 1, b"")), "entry 5 of term 1 after term 2"),
        (append((5, 3, 1, b""), (6, 2, 1, b"")), "entry 6 of term 2 after term 3"),
        (append((5, 4, 1, b"")), "entry 5 of term 4"),
        (append((5, 2, 2, b"nobody")), "not a membership"),
        (append(NO_OP, (6, 2, 2, b"")), "not a membership"),
        (append((NUMBER_MAX + 1, 2, 1, b""), prev=(NUMBER_MAX, 2)), "`int` <= "),
        (append(prev=(2**63, 2)), "`int` <= "),
        (append((5, 2**63, 1, b"")), "`int` <= "),
        (msgpack.packb([10, "a", "b", 2**63]), "`int` <= "),
        (msgpack.packb([10, "a", "b", -1]), "`int` >= 0"),
    ],
)
def test_what_the_core_or_the_store_could_not_take_is_refused(said: bytes, why: str) -> None:
    """RAFT.md scenario 49: it would end the node, and not only the connection."""
    with pytest.raises(ValueError, match=f"not an RPC: .*{why}"):
        decode_rpc(said)


def test_an_append_that_fits_is_taken() -> None:
    """RAFT.md scenario 49."""
    taken = decode_rpc(append(NO_OP, (6, 3, 2, Membership().encode()), (7, 3, 0, b"")))
    assert isinstance(taken, Append)
    assert [(e.index, e.term) for e in taken.entries] == [(5, 2), (6, 3), (7, 3)]


def test_a_command_of_an_unknown_kind_is_named() -> None:
    """RAFT.md scenario 49: to skip it would let two nodes' states part."""
    with pytest.raises(ValueError, match="a command of kind 77, which this version does not know"):
        decode_entry(msgpack.packb([1, [5], [77, "new"]]))
