"""Three nodes behind a proxy are restarted one by one, and nobody outside notices.

The proxies' configurations are those of docs/how-to/run-a-cluster.md; where they look at a
node each second, they look here each quarter of one, and nodes drain for one second, not
five. Publishers send an Idempotency-Key and do not try again: whatever answer is not a 201
is a failure. Readers come back with their cursor, as EventSource does, which gives up at
any answer that is no stream.

Longer, with the times of the guide: REPL_BROKER_TEST_ROUNDS=10 ./dev run pytest -s
-o faulthandler_timeout=0 tests/test_rolling_restart.py
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.process.member import Member, cluster_of
from tests.process.node import WAIT_SECONDS_MAX, Block, Client, polls
from tests.test_proxies import CLUSTER_GUIDE, PUBLIC_URL, Proxy, of_the_guide, proxy, sni

pytestmark = pytest.mark.process

ROUNDS: Final = int(os.environ.get("REPL_BROKER_TEST_ROUNDS", "0"))  # 0: one, quickly
DRAIN_SECONDS: Final = 5 if ROUNDS else 1
LOOK: Final = ("1s", "1s") if ROUNDS else ("1s", "250ms")  # the guide's, and ours
PUBLISHERS: Final = 4
READERS: Final = 4
PAUSE_SECONDS: Final = 0.005
TOPIC: Final = "rolling"

(NGINX_BLOCK,) = of_the_guide("nginx", CLUSTER_GUIDE)
(CADDY_BLOCK,) = of_the_guide("caddy", CLUSTER_GUIDE)
(HAPROXY_BLOCK,) = of_the_guide("haproxy", CLUSTER_GUIDE)
BLOCKS: Final = {"nginx": NGINX_BLOCK, "caddy": CADDY_BLOCK, "haproxy": HAPROXY_BLOCK}


class Publisher:
    """Publishes numbers through the proxy, each once, each when the one before is answered."""

    def __init__(self, found: Proxy, name: str) -> None:
        self.acknowledged: list[str] = []  # event ids
        self.failures: list[str] = []
        self.slowest_seconds = 0.0
        self._found = found
        self._name = name

    def run(self, end: threading.Event) -> None:
        with self._found.client() as client:
            number = 0
            while not end.wait(PAUSE_SECONDS):
                self._publish(client, number)
                number += 1

    def _publish(self, client: httpx.Client, number: int) -> None:
        headers = {"Idempotency-Key": f"{self._name}-{number}"}
        began = time.monotonic()
        try:
            answer = client.post(
                f"/v1/topics/{TOPIC}/messages",
                json={"publisher": self._name, "number": number},
                headers=headers,
                extensions=sni(),
            )
        except httpx.TransportError as error:
            self.failures.append(repr(error))
            return
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
        if answer.status_code == 201:
            self.acknowledged.append(answer.json()["id"])
        else:
            self.failures.append(f"{answer.status_code} {answer.text[:200]}")


class Reader:
    """A stream through the proxy that comes back as EventSource does."""

    def __init__(self, found: Proxy) -> None:
        self.ids: list[str] = []
        self.failures: list[str] = []
        self.comes = 0
        self.away_seconds = 0.0  # at most, from an end to the next beginning
        self._found = found
        self._last_id = ""
        self._retry_seconds = 0.0

    def run(self, end: threading.Event) -> None:
        with self._found.client(http2=True) as client:
            while not end.is_set():
                began = time.monotonic()
                end.wait(self._retry_seconds)
                self._read(client, end, began)

    def _read(self, client: httpx.Client, end: threading.Event, began: float) -> None:
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        path, text = f"/v1/events?topic={TOPIC}", ""
        try:
            with client.stream("GET", path, headers=headers, extensions=sni()) as response:
                if response.status_code != 200:
                    self.failures.append(f"{response.status_code}, at which EventSource gives up")
                    return
                if self.comes:
                    self.away_seconds = max(self.away_seconds, time.monotonic() - began)
                self.comes += 1
                for piece in response.iter_text():
                    *blocks, text = (text + piece).split("\n\n")
                    for raw in blocks:
                        self._take(Block.parse(raw.encode()))
                    if end.is_set():
                        return
        except httpx.TransportError:
            pass  # EventSource comes back

    def _take(self, block: Block) -> None:
        self._last_id = block.fields.get("id", self._last_id)
        if "retry" in block.fields:
            self._retry_seconds = int(block.fields["retry"]) / 1000
        if block.is_message:
            self.ids.append(block.fields["id"])
        elif block.event == "gap":
            self.failures.append(f"a gap: {block.fields['data']}")


@contextmanager
def traffic(found: Proxy) -> Iterator[tuple[list[Publisher], list[Reader]]]:
    """Both, all the while; at the end readers have had what was acknowledged."""
    readers = [Reader(found) for _ in range(READERS)]
    publishers = [Publisher(found, f"p{n}") for n in range(PUBLISHERS)]
    ends = threading.Event(), threading.Event()
    threads = [threading.Thread(target=each.run, args=(ends[0],)) for each in readers]
    for thread in threads:
        thread.start()
    for _ in polls("the readers to have come"):
        if all(reader.comes for reader in readers):
            break
    publishing = [threading.Thread(target=each.run, args=(ends[1],)) for each in publishers]
    for thread in publishing:
        thread.start()
    try:
        yield publishers, readers
        ends[1].set()
        for thread in publishing:
            thread.join(WAIT_SECONDS_MAX)
        wanted = {each for publisher in publishers for each in publisher.acknowledged}
        for _ in polls(lambda: f"{[len(wanted - set(r.ids)) for r in readers]} messages to come"):
            if all(wanted <= set(reader.ids) for reader in readers):
                break
    finally:
        for end in ends:
            end.set()
        for thread in (*threads, *publishing):
            thread.join(WAIT_SECONDS_MAX)


def restart_each(nodes: list[Member]) -> None:
    """As the guide says: followers first, the next when the one before is ready and level."""
    leader = nodes[0].cluster()["leader"]
    for node in sorted(nodes, key=lambda each: each.name == leader):
        assert node.stop() == 0
        node.start()
        for _ in polls("the proxy to send to it again"):
            if publishes(node) > 10:
                break


def publishes(node: Member) -> float:
    """That it has acknowledged since its start."""
    with Client(node) as client:
        text = client.request("GET", "/metrics").body.decode()
    (found,) = re.findall(r"^repl_broker_publishes_total (\S+)$", text, re.MULTILINE)
    return float(found)


@pytest.mark.parametrize("program", [*BLOCKS])
def test_three_nodes_are_restarted_behind_a_proxy_and_no_request_and_no_message_is_lost(
    program: str, tmp_path: Path
) -> None:
    keys = {
        "http_public_url": PUBLIC_URL,
        "http_drain_seconds": DRAIN_SECONDS,
        "topics_retention_messages": 10_000_000,
    }
    with ExitStack() as opened:
        nodes = opened.enter_context(cluster_of(tmp_path, **keys))
        block = BLOCKS[program].replace(*LOOK)
        found = opened.enter_context(proxy(program, block, tmp_path, nodes[0], others=nodes[1:]))
        with traffic(found) as (publishers, readers):
            for _ in range(max(ROUNDS, 1)):
                restart_each(nodes)
        assert [failure for each in (*publishers, *readers) for failure in each.failures] == []
        acknowledged = {each for p in publishers for each in p.acknowledged}
        for reader in readers:
            assert len(reader.ids) == len(set(reader.ids)), "nothing comes twice"
            assert set(reader.ids) >= acknowledged
        told = {
            "acknowledged": len(acknowledged),
            "slowest": round(max(p.slowest_seconds for p in publishers), 3),
            "away": [round(r.away_seconds, 3) for r in readers],
            "comes": [r.comes for r in readers],
        }
        sys.stdout.write(f"{program} {json.dumps(told)}\n")
