"""Readers whose machine vanishes without a word are dropped in time; those that stall are not.

Two hosts with a reader each that reads and one that does not, in network
namespaces. One host goes dark: every packet of it is dropped, so there is no FIN
and no RST. The kernel of the other acknowledges and answers probes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.cluster.hosts import Host, Namespaces, why_no_namespaces
from tests.process.node import Client, Node, Stream, polls

pytestmark = pytest.mark.process

DEAD_SECONDS = 5
FOUND_SECONDS_MAX = 4 * DEAD_SECONDS  # the machine may be busy; the system's own time is minutes
LIVING_SECONDS = 3 * DEAD_SECONDS  # for which the other's stalled reader is watched
MESSAGES = 8
PAD = "x" * 8_000


@dataclass
class From:
    """The node, as it is reached from a host."""

    node: Node
    host: Host

    def stream(self, **options: Any) -> Stream:
        return Stream(cast(Node, self), "chat", after="earliest", **options)

    @property
    def address(self) -> str:
        return self.node.address

    @property
    def port(self) -> int:
        return self.node.port

    @property
    def make_socket(self) -> Any:
        return self.host.make_socket


@pytest.fixture
def network() -> Iterator[Namespaces]:
    if why_no_namespaces():
        pytest.skip(f"no network can go dark here: {why_no_namespaces()}")
    with Namespaces(["node", "near", "far"]) as network:
        yield network


def metric(node: Node, name: str) -> float:
    with Client(node) as client:
        text = client.request("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"repl_broker_{name} ")]
    return float(line.split()[1])


def test_readers_that_vanish_are_dropped_in_time_and_those_that_stall_are_kept(
    network: Namespaces, tmp_path: Path
) -> None:
    home = network.hosts["node"]
    node = Node(
        tmp_path / "data",
        address=home.address,
        prefix=home.prefix,
        make_socket=home.make_socket,
        limits_heartbeat_seconds=1,
        limits_dead_reader_seconds=DEAD_SECONDS,
    )
    with node:
        node.start()
        near, far = (From(node, network.hosts[name]) for name in ("near", "far"))
        with (
            near.stream() as reads,
            near.stream(receive_buffer_bytes=4096) as stalls,
            far.stream(),
            far.stream(receive_buffer_bytes=4096),
        ):
            for number in range(MESSAGES):
                node.publish("chat", {"n": number, "pad": PAD})
            for _ in polls("two readers to be stalled"):
                if metric(node, "lagging_subscribers") == 2:
                    break
            network.cut("far")
            dark = time.monotonic()
            for _ in polls("the readers of the dark host to be dropped"):
                if metric(node, "dead_subscribers_total") == 2:
                    break
            found_seconds = time.monotonic() - dark
            for _ in polls("the other's stalled reader to outlive the limit by far"):
                assert metric(node, "subscribers") == 2
                if time.monotonic() - dark > LIVING_SECONDS:
                    break
            print(f"dropped after {found_seconds:.1f} s, the limit is {DEAD_SECONDS}")  # noqa: T201
            assert DEAD_SECONDS - 1 < found_seconds < FOUND_SECONDS_MAX
            node.publish("chat", {"n": MESSAGES})
            for stream in (reads, stalls):
                assert list(numbers(stream)) == list(range(MESSAGES + 1))


def numbers(stream: Stream) -> Iterator[int]:
    for block in stream:
        if block.is_message:
            number = json.loads(block.fields["data"])["data"]["n"]
            yield number
            if number == MESSAGES:
                return
