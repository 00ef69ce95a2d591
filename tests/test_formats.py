"""What earlier versions wrote is read, and written again to the byte where nothing new is used.

The bytes below were written by the code before clients had shares.
"""

from __future__ import annotations

import pytest

from repl_broker.command import Settings, Shares
from repl_broker.state import BrokerState
from repl_broker.wire import decode_entry, encode_command, encode_entry

# Entries 1 to 8: every kind of command that there was.
LOG = tuple(
    map(
        bytes.fromhex,
        (
            "92cd03e89504c393053c640964",
            "94cd07d09602a46d61646503c032c29602a4676f6e65c0c0c0c29501a3612e6292c40131c4052274776f22c0"
            "c400",
            "93cd0bb8950193a46d616465a3612e62a46d61646593c40133c40134c40135a56b65792d31c4106464646464"
            "64646464646464646464649501a3612e6291c40136a56b65792d31c410656565656565656565656565656565"
            "65",
            "94cd0fa09501a4676f6e6591c40137c0c4009203a4676f6e659203a56e65766572",
            "93cd13889501a3612e6291c40138a56b65792d32c4009602a46d616465c0c0c0c3",
            "92cd157c9105",
            "92cd17709604c293053c64096407",
            "94cd1b589306a3616e6ecd0e109501a56e6576657291c4026e6fc0c4009501a3612e6291c40139c0c400",
        ),
    )
)
# After entry 6.
PLAIN = bytes.fromhex(
    "9b010607cd157c94c393053c6409649298a3612e6293c0c0c0cd07d00000cd07d0c420010000000000000002"
    "0000000000000004000000000000000700000000000000c4100100000005000000010000000100000098a46d"
    "61646593c0c0c0cd07d00000cd0bb8c41003000000000000000500000000000000c408010000000100000096"
    "c418020000000000000003000000000000000500000000000000c41801000000000000000300000000000000"
    "0700000000000000c418d007000000000000b80b0000000000008813000000000000c40c0200000003000000"
    "01000000c418060000000000000003000000000000000100000000000000c418060000000000000003000000"
    "000000000100000000000000919203930001029295a56b65792d31c410646464646464646464646464646464"
    "640303cd0bb895a56b65792d32c4000701cd13889193a4676f6e65060600"
)
# After entry 8.
WITH_REVOCATIONS = bytes.fromhex(
    "9c020808cd1b5895c293053c640964079298a3612e6293c0c0c0cd07d00000cd07d0c4280100000000000000"
    "0200000000000000040000000000000007000000000000000800000000000000c41401000000050000000100"
    "0000010000000100000098a46d61646593c0c0c0cd07d00000cd0bb8c4100300000000000000050000000000"
    "0000c408010000000100000096c4200200000000000000030000000000000005000000000000000800000000"
    "000000c4200100000000000000030000000000000007000000000000000800000000000000c420d007000000"
    "000000b80b0000000000008813000000000000581b000000000000c410020000000300000001000000010000"
    "00c4200600000000000000030000000000000001000000000000000100000000000000c42006000000000000"
    "0003000000000000000100000000000000010000000000000092920393000102920891019295a56b65792d31"
    "c410646464646464646464646464646464640303cd0bb895a56b65792d32c4000701cd13889193a4676f6e65"
    "0606009193a3616e6ecd1b58ce003709d8"
)


def test_an_entry_is_read_and_has_the_same_bytes_again() -> None:
    for entry in LOG:
        time_ms, commands = decode_entry(entry)
        assert encode_entry(time_ms, [encode_command(command) for command in commands]) == entry


@pytest.mark.parametrize(("snapshot", "entries"), [(PLAIN, 6), (WITH_REVOCATIONS, 8)])
def test_a_log_gives_the_same_snapshot_as_it_did(snapshot: bytes, entries: int) -> None:
    state = BrokerState()
    for index, entry in enumerate(LOG[:entries], 1):
        state.apply(index, *decode_entry(entry))
    assert state.snapshot() == snapshot


@pytest.mark.parametrize("snapshot", [PLAIN, WITH_REVOCATIONS])
def test_a_snapshot_is_read_and_has_the_same_bytes_again(snapshot: bytes) -> None:
    state = BrokerState.restore(snapshot)
    assert state.snapshot() == snapshot
    assert state.settings.shares == Shares()
    assert state.idle_topics == {}


def test_a_log_goes_on_from_a_snapshot_of_an_earlier_version() -> None:
    state = BrokerState.restore(PLAIN)
    for index, entry in enumerate(LOG[6:], 7):
        state.apply(index, *decode_entry(entry))
    assert state.snapshot() == WITH_REVOCATIONS
    assert isinstance(state.settings, Settings)
