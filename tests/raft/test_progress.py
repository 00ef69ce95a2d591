"""What a leader knows of a peer, state by state."""

from __future__ import annotations

from repl_broker.raft.progress import Mode, Progress


def replicating(*sent: int, match: int = 0) -> Progress:
    progress = Progress(next=match + 1, match=match, mode=Mode.REPLICATE)
    for last_index in sent:
        progress.sent(last_index, 10)
    return progress


def test_a_probe_goes_out_once() -> None:
    progress = Progress(next=5)
    assert progress.may_send(9, 99)
    assert not progress.is_waiting
    progress.sent(7, 10)
    assert (progress.paused, progress.next) == (True, 5)
    assert not progress.may_send(9, 99)
    assert progress.is_waiting


def test_an_accepted_probe_leads_to_replicating() -> None:
    progress = Progress(next=5)
    progress.sent(7, 10)
    assert progress.accepted(7)
    assert (progress.mode, progress.match, progress.next) == (Mode.REPLICATE, 7, 8)


def test_a_refused_probe_tries_lower_each_time() -> None:
    progress = Progress(next=5)
    assert progress.refused(4, 9)
    assert (progress.next, progress.paused) == (4, False)
    assert progress.refused(3, 1)
    assert progress.next == 2


def test_a_refusal_of_another_probe_is_stale() -> None:
    progress = Progress(next=5)
    progress.sent(5, 10)
    assert not progress.refused(3, 1)
    assert progress.paused


def test_replicating_runs_ahead_within_the_window() -> None:
    progress = replicating(3, 6)
    assert (progress.next, progress.in_flight_bytes) == (7, 20)
    assert progress.may_send(3, 99)
    assert not progress.may_send(2, 99)
    assert not progress.may_send(3, 20)
    assert progress.is_waiting


def test_an_acknowledgement_frees_the_window_up_to_it() -> None:
    progress = replicating(3, 6, 9)
    assert progress.accepted(6)
    assert (progress.match, progress.next, list(progress.in_flight)) == (6, 10, [(9, 10)])
    assert progress.in_flight_bytes == 10
    assert progress.accepted(9)
    assert not progress.is_waiting


def test_match_never_runs_back() -> None:
    progress = replicating(3, 6)
    assert progress.accepted(6)
    assert not progress.accepted(3)
    assert progress.match == 6


def test_a_refusal_while_replicating_leads_to_probing_behind_what_matches() -> None:
    progress = replicating(4, 6, match=3)
    assert not progress.refused(3, 1)
    assert progress.refused(6, 1)
    assert (progress.mode, progress.next) == (Mode.PROBE, 4)
    assert (progress.in_flight_bytes, len(progress.in_flight)) == (0, 0)


def test_during_a_snapshot_nothing_is_sent() -> None:
    progress = replicating(match=3)
    progress.snapshot(20)
    assert not progress.may_send(9, 99)
    assert not progress.is_waiting
    assert not progress.refused(5, 4)
    assert progress.mode is Mode.SNAPSHOT


def test_a_snapshot_is_over_when_what_it_holds_is_acknowledged() -> None:
    progress = replicating(match=3)
    progress.snapshot(20)
    assert progress.accepted(10)
    assert progress.mode is Mode.SNAPSHOT
    assert progress.accepted(25)
    assert (progress.mode, progress.next) == (Mode.REPLICATE, 26)
