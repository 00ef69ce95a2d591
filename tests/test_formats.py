"""What earlier versions wrote is read, and written again to the byte where nothing new is used.

The bytes below were written by the code before clients had shares, and by that before a message
counted for whoever published it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl_broker.command import Configure, Retention, Settings, Shares
from repl_broker.state import BrokerState, Published, Refused
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

# Clients with shares, in which a message counts for whoever created its topic.
SHARED_LOG = tuple(
    map(
        bytes.fromhex,
        (
            "92cd03e89704c393053c6409cd0258079303cd019002",
            "94cd07d09802a3612e62c0c0c0c2c0a3616e6e9602a3616c6cc0c0c0c29802a36a6f6202c0c0c21ea3626f62",
            "94cd0bb89701a3612e6292c40131c4023232c0c400a3616e6ea09701a3612e6291c403333333c0c400a3626f"
            "62a09701a3616c6c91c40134c0c400a3626f62a0",
            "93cd0fa0960193a36f776ea36a6f62a3612e6293c40135c40136c40137a56b65792d31c41064646464646464"
            "646464646464646464a3626f629501a3612e6291c40138c0c400",
            "93cd13889701a3612e6291c43c39393939393939393939393939393939393939393939393939393939393939"
            "3939393939393939393939393939393939393939393939393939393939c0c400a3657665a09701a36a6f6292"
            "c40130c40130a56b65792d32c41064646464646464646464646464646464a0a3657665",
        ),
    )
)
SHARED = bytes.fromhex(
    "9b03050acd138896c393053c6409cd0258079303cd019002949aa3612e6293c0c0c0cd07d00000cd0bb8c428"
    "01000000000000000200000000000000030000000000000007000000000000000800000000000000c4140100"
    "000002000000030000000100000001000000a3616e6e0098a3616c6c93c0c0c0cd07d00000cd0bb8c4080400"
    "000000000000c404010000009aa36a6f629402c0c01ecd07d00006cd1388c41009000000000000000a000000"
    "00000000c4080100000001000000a3626f62059aa36f776e93c0c0c0cd0fa00400cd0fa0c408050000000000"
    "0000c40401000000a3626f620096c418030000000000000004000000000000000500000000000000c4180100"
    "00000000000005000000000000000900000000000000c418b80b000000000000a00f00000000000088130000"
    "00000000c40c040000000300000002000000c418070000000000000003000000000000000200000000000000"
    "c4180700000000000000040000000000000002000000000000009192059201029297a56b65792d31c4106464"
    "64646464646464646464646464640503cd0fa0a3626f62a3626f6297a56b65792d32c4106464646464646464"
    "64646464646464640902cd1388a3657665a09000"
)


def test_an_entry_is_read_and_has_the_same_bytes_again() -> None:
    for entry in LOG + SHARED_LOG:
        time_ms, commands = decode_entry(entry)
        assert encode_entry(time_ms, [encode_command(command) for command in commands]) == entry


@pytest.mark.parametrize(
    ("snapshot", "log"), [(PLAIN, LOG[:6]), (WITH_REVOCATIONS, LOG), (SHARED, SHARED_LOG)]
)
def test_a_log_gives_the_same_snapshot_as_it_did(snapshot: bytes, log: tuple[bytes, ...]) -> None:
    assert replayed(log).snapshot() == snapshot


def test_what_a_log_refused_it_refuses_still() -> None:
    """Eve's message to a topic of Ann's, whose share it would exceed; and Eve's own is taken."""
    state = replayed(SHARED_LOG[:4])
    outcomes = state.apply(5, *decode_entry(SHARED_LOG[4])).outcomes
    assert [type(outcome) for outcome in outcomes] == [Refused, Published]


def test_messages_of_an_earlier_snapshot_count_for_whoever_created_their_topic() -> None:
    for state in (BrokerState.restore(SHARED), replayed(SHARED_LOG)):
        held = {client: (h.topics, h.bytes) for client, h in state._holdings.items()}
        assert held == {"ann": (1, 328), "bob": (2, 195)}


@pytest.mark.parametrize("snapshot", [PLAIN, WITH_REVOCATIONS, SHARED])
def test_a_snapshot_is_read_and_has_the_same_bytes_again(snapshot: bytes) -> None:
    state = BrokerState.restore(snapshot)
    assert state.snapshot() == snapshot
    assert state.settings.shares == (Shares(3, 400, 2) if snapshot is SHARED else Shares())
    assert [*state.idle_topics] == (["job"] if snapshot is SHARED else [])


def test_what_counts_for_publishers_is_written_where_it_is_used_and_read_again() -> None:
    settings = Settings(True, Retention(5, 60, 100), 9, 600, 7, Shares(3, 400, 2, True))
    command = encode_command(Configure(settings))
    assert decode_entry(encode_entry(1, [command])) == (1, [Configure(settings)])
    before = encode_command(Configure(replace(settings, shares=Shares(3, 400, 2))))
    assert len(command) == len(before) + 1
    assert command.endswith(b"\xc3")
    with pytest.raises(ValueError, match="does not know"):
        decode_entry(encode_entry(1, [command[:-1] + b"\xc2"]))


def replayed(log: tuple[bytes, ...]) -> BrokerState:
    state = BrokerState()
    for index, entry in enumerate(log, 1):
        state.apply(index, *decode_entry(entry))
    return state


def test_a_log_goes_on_from_a_snapshot_of_an_earlier_version() -> None:
    state = BrokerState.restore(PLAIN)
    for index, entry in enumerate(LOG[6:], 7):
        state.apply(index, *decode_entry(entry))
    assert state.snapshot() == WITH_REVOCATIONS
    assert isinstance(state.settings, Settings)
