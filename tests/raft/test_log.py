"""The log in memory, and the values that it is made of."""

from __future__ import annotations

import pytest

from repl_broker.raft.log import Entry, EntryKind, Log, Membership, SnapshotMark
from tests.raft.cluster import entries_of, member, members


def log_of(*terms: int, compacted: int = 0, term: int = 0) -> Log:
    return Log(SnapshotMark(compacted, term), entries_of(terms, compacted + 1))


def test_an_empty_log_ends_where_it_is_compacted() -> None:
    log = log_of(compacted=7, term=3)
    assert (log.first_index, log.last_index, log.last_term) == (8, 7, 3)


def test_terms_are_known_from_the_compacted_index_to_the_last() -> None:
    log = log_of(2, 3, 3, compacted=5, term=1)
    assert [log.term(index) for index in range(4, 10)] == [None, 1, 2, 3, 3, None]
    assert (log.first_index, log.last_index, log.last_term) == (6, 8, 3)


def test_a_slice_includes_both_ends() -> None:
    log = log_of(1, 1, 2, compacted=5, term=1)
    assert log.slice(7, 8) == entries_of([1, 2], 7)
    assert log.slice(9, 8) == []
    with pytest.raises(AssertionError, match="compacted"):
        log.slice(5, 8)


def test_entries_come_up_to_so_many_bytes_but_at_least_one() -> None:
    log = log_of(1, 1, 1, 1, compacted=5, term=1)  # 3 bytes each
    assert [len(log.up_to_bytes(7, size)) for size in (0, 3, 6, 100)] == [1, 1, 2, 3]
    assert log.up_to_bytes(10, 100) == []


def test_the_next_entry_is_the_only_one_that_can_be_appended() -> None:
    log = log_of(1, compacted=5, term=1)
    log.append(Entry(7, 2, EntryKind.DATA, b""))
    assert log.last_term == 2
    with pytest.raises(AssertionError):
        log.append(Entry(7, 2, EntryKind.DATA, b""))


def test_truncation_takes_the_index_itself_and_all_behind_it() -> None:
    log = log_of(1, 1, 1, compacted=5, term=1)
    log.truncate_from(7)
    assert log.last_index == 6
    log.truncate_from(9)
    assert log.last_index == 6
    with pytest.raises(AssertionError):
        log.truncate_from(5)


@pytest.mark.parametrize(
    ("term", "index", "expected"),
    [(3, 99, 9), (3, 8, 8), (2, 9, 7), (1, 9, 5), (0, 9, 5), (0, 3, 3)],
)
def test_the_last_index_of_a_term_at_most(term: int, index: int, expected: int) -> None:
    log = log_of(2, 2, 3, 3, compacted=5, term=1)
    assert log.last_index_of_term_at_most(term, index) == expected


def test_compaction_keeps_the_term_of_the_last_that_is_dropped() -> None:
    log = log_of(2, 3, 4, compacted=5, term=1)
    log.compact(7)
    assert (log.compacted_index, log.compacted_term, log.last_index) == (7, 3, 8)
    assert log.slice(8, 8) == entries_of([4], 8)


def test_a_reset_log_starts_behind_the_snapshot() -> None:
    log = log_of(2, 3, 4)
    log.reset(SnapshotMark(9, 5))
    assert (log.first_index, log.last_index, log.last_term) == (10, 9, 5)


def test_a_membership_is_read_as_it_was_written() -> None:
    membership = members(["n1", "n2"], ["n3"])
    assert Membership.decode(membership.encode()) == membership
    assert membership.voters == {"n1", "n2"}
    assert membership.learners == {"n3"}
    assert membership.ids == {"n1", "n2", "n3"}


def test_equal_memberships_are_equal_bytes_whatever_came_first() -> None:
    one = Membership().with_member(member("n1")).with_member(member("n2"))
    other = Membership().with_member(member("n2")).with_member(member("n1"))
    assert one.encode() == other.encode()


def test_a_member_takes_the_place_of_the_one_of_its_id() -> None:
    membership = members(["n1"], ["n2"]).with_member(member("n2"))
    assert membership == members(["n1", "n2"])
    assert membership.without("n1") == members(["n2"])
