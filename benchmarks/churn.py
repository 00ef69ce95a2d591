"""``python -m benchmarks churn``: readers that come, read a few messages, and vanish.

They vanish by a reset, by an orderly end, or in silence, as when a cable is
pulled: for the last the run has a network of its own (network.py), which needs
root. A publisher goes on all the while. Each reader checks that its messages
follow one another. In the end nothing may be left of any of them: no open file,
no connection, no stream, no channel; and the node must not have grown.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import trio

from benchmarks.command import allow_files, progress
from benchmarks.load import BenchmarkError
from benchmarks.network import enter_own_network, silence
from benchmarks.node import single_node
from benchmarks.processes import Process, free_ports
from benchmarks.report import OtherWork, machine

__all__ = ["Found", "Holding", "Plan", "as_lines", "leaks", "main", "measure"]

TOPIC = "churn"
BODY = json.dumps({"text": "x" * 50}).encode()
OTHER_TOPICS = 50  # filters that some readers have beside: so many channels come and go
WAVE = 1000  # readers; the silent ones of a wave fall silent together
WARM = 400  # readers before the first look at what the node holds
PUBLISH_PAUSE_SECONDS = 0.01
VISIT_SECONDS_MAX = 60
CALL_SECONDS_MAX = 10
POLL_SECONDS = 0.1
READ_BYTES = 65536
RESET = struct.pack("ii", 1, 0)
SMALL_BUFFER_BYTES, ETHERNET_BYTES = 4096, 1448  # so that the kernel holds little for a silent one
GROWTH_MB_MAX = 32
PARTS = 10  # of the way, after each of which the memory is shown
VANISH = ("reset", "end", "silence")
SILENT_EVERY = 50  # one reader of so many
PATIENCE_SECONDS = 150.0
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; not in every version of socket
IDS = re.compile(rb'"id":"[0-9a-f]{8}-([0-9]+)","topic"')
COUNTED = ("subscribers", "channels", "connections", "connections_failed_total")
SECTIONS = {"topics.retention": {"messages": 1000}, "limits": {"dead_reader_seconds": 5}}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked for."""

    count: int = 100_000
    at_once: int = 200
    silent_every: int = SILENT_EVERY  # 0: none
    patience_seconds: float = PATIENCE_SECONDS  # for the silent ones to be found dead, too


@dataclass(frozen=True, slots=True)
class Holding:
    """What the node holds at one moment."""

    files: int
    rss_mb: float
    subscribers: int
    channels: int
    connections: int  # one is that which asks
    connections_failed_total: int


@dataclass(frozen=True, slots=True)
class Found:
    """What came out."""

    ends: Mapping[str, int]  # how many readers vanished in which way
    messages: int
    publishes: int
    seconds: float  # until the last reader had vanished
    settling_seconds: float  # and from then, until nothing was left of them
    before: Holding
    peak: Holding  # when it had most memory
    after: Holding
    memory_mb: Sequence[float]  # on the way, after equal parts of the readers


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    allow_files()
    why = enter_own_network()
    plan = Plan(options.count, options.at_once, 0 if why else SILENT_EVERY, options.patience)
    try:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
            about = machine(Path(name))
            others = OtherWork()
            found = measure(plan, Path(name), progress)
            progress("")
            about["other work"] = str(others)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(*(f"{what}: {how}" for what, how in about.items()), *as_lines(found), sep="\n")
    if why:
        print(f"none vanished in silence: {why}")
    for leak in (found_leaks := list(leaks(found))):
        print(f"benchmarks: {leak}", file=sys.stderr)
    return 1 if found_leaks else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks churn",
        description="Have readers come and vanish, and see what the node has left of them. "
        "Exit status: 1 if anything is. As root, some vanish in silence.",
    )
    parser.add_argument(
        "--count", type=_positive, default=100_000, help="readers (default: 100000)"
    )
    parser.add_argument("--at-once", type=_positive, default=200, help="of them (default: 200)")
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_SECONDS,
        help="seconds for the node to let go of the last (default: 150)",
    )
    parser.add_argument("--dir", type=Path, help="where to store")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    amount = int(text)
    if not 1 <= amount <= 10_000_000:
        raise argparse.ArgumentTypeError("1 to 10000000")
    return amount


def measure(plan: Plan, folder: Path, progress: Callable[[str], None]) -> Found:
    """All of it, on a node of its own. Raises BenchmarkError if a reader is not served."""
    (port,) = free_ports(1)
    process = Process("repl-broker", single_node(port, folder, SECTIONS), port, folder / "log")
    try:
        process.start()
        return trio.run(_Churn(plan, process).run, progress)
    except ExceptionGroup as group:
        raise _first(group) from group
    finally:
        process.stop()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of the errors that ended the nurseries: one stands for all."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


class _Churn:
    """Readers of one node, and a publisher."""

    def __init__(self, plan: Plan, process: Process) -> None:
        self._plan = plan
        self._process = process
        self._ends = dict.fromkeys(VANISH, 0)
        self._messages = self._publishes = 0

    async def run(self, progress: Callable[[str], None]) -> Found:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish)
            await self._visit_all(range(WARM), may_be_silent=False)
            before = await self._settle(None)
            self._ends, self._messages = dict.fromkeys(VANISH, 0), 0
            began = time.monotonic()
            looks = await self._visit_in_waves(progress)
            ended = time.monotonic()
            progress("waiting until nothing is left of them")
            after = await self._settle(before)
            settled = time.monotonic()
            nursery.cancel_scope.cancel()
        return Found(
            self._ends,
            self._messages,
            self._publishes,
            ended - began,
            settled - ended,
            before,
            max(looks, key=lambda holding: holding.rss_mb),
            after,
            [look.rss_mb for look in looks[:: max(1, len(looks) // PARTS)]],
        )

    async def _visit_in_waves(self, progress: Callable[[str], None]) -> list[Holding]:
        """Returns what the node held after each."""
        count, looks = self._plan.count, []
        for first in range(0, count, WAVE):
            wave = range(first, min(first + WAVE, count))
            await self._visit_all(wave, may_be_silent=True)
            progress(f"{wave.stop:,} of {count:,} have come and gone")
            looks.append(await self._look())
        return looks

    async def _publish(self) -> None:
        """One message after the other, until it is cancelled."""
        head = (
            f"POST /v1/topics/{TOPIC}/messages HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        ).encode()
        stream = await trio.open_tcp_stream("127.0.0.1", self._process.port)
        async with stream:
            while True:
                with trio.fail_after(VISIT_SECONDS_MAX):
                    await stream.send_all(head + BODY)
                    answer = bytes(await stream.receive_some(READ_BYTES))
                if not answer.startswith(b"HTTP/1.1 201"):
                    raise BenchmarkError(f"a publish was not taken: {answer[:200]!r}")
                self._publishes += 1
                await trio.sleep(PUBLISH_PAUSE_SECONDS)

    async def _visit_all(self, numbers: range, *, may_be_silent: bool) -> None:
        """Readers come, a bounded number at a time; returns when all have vanished."""
        places = trio.Semaphore(self._plan.at_once)
        wave = numbers.start // WAVE % 65536
        quiet_address = f"127.100.{wave // 256}.{wave % 256}"
        quiet: list[trio.socket.SocketType] = []
        async with trio.open_nursery() as nursery:
            for number in numbers:
                await places.acquire()
                silent = may_be_silent and self._is_silent(number)
                address = quiet_address if silent else f"127.0.0.{1 + number % 8}"
                keep = quiet if silent else None
                nursery.start_soon(self._visit, number, address, keep, places)
        if quiet:
            silence([quiet_address])
            for one in quiet:
                _reset(one)  # which nobody hears
            self._ends["silence"] += len(quiet)

    def _is_silent(self, number: int) -> bool:
        every = self._plan.silent_every
        return every > 0 and number % every == every - 1

    async def _visit(
        self,
        number: int,
        address: str,
        keep: list[trio.socket.SocketType] | None,
        places: trio.Semaphore,
    ) -> None:
        """One reader. If it is to fall silent, its socket goes into ``keep``."""
        reader = trio.socket.socket()
        try:
            with trio.fail_after(VISIT_SECONDS_MAX):
                await self._read_some(reader, number, address, small=keep is not None)
                if keep is not None:
                    keep.append(reader)
                elif number % 2:
                    await _end(reader)
                    self._ends["end"] += 1
                else:
                    _reset(reader)
                    self._ends["reset"] += 1
        except (OSError, trio.TooSlowError) as error:
            reader.close()
            why = str(error) or type(error).__name__
            raise BenchmarkError(f"reader {number} was not served: {why}") from error
        finally:
            places.release()

    async def _read_some(
        self, reader: trio.socket.SocketType, number: int, address: str, *, small: bool
    ) -> None:
        """Subscribe, and read none to three messages; some begin with what is retained."""
        reader.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        if small:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_BYTES)
        await reader.bind((address, 0))
        await reader.connect(("127.0.0.1", self._process.port))
        await reader.send(_request(number))
        wanted, begun, data = number // 2 % 4, False, b""
        while len(ids := IDS.findall(data)) < wanted or not begun:
            if not (more := await reader.recv(READ_BYTES)):
                raise BenchmarkError(f"the node hung up on reader {number}: {data[-300:]!r}")
            data += more
            begun = begun or b"event: subscribed" in data
        numbers = [int(one) for one in ids]
        if any(later != earlier + 1 for earlier, later in pairwise(numbers)):
            raise BenchmarkError(f"reader {number} got {numbers[:5]}…, which do not follow")
        self._messages += len(numbers)

    async def _look(self) -> Holding:
        return await trio.to_thread.run_sync(_look, self._process)

    async def _settle(self, before: Holding | None) -> Holding:
        """Wait until it holds nothing of readers. In the end, what it holds all the same."""
        deadline = time.monotonic() + self._plan.patience_seconds
        while True:
            holding = await self._look()
            if is_settled(holding, before) or time.monotonic() > deadline:
                return holding
            await trio.sleep(POLL_SECONDS)


def is_settled(now: Holding, before: Holding | None) -> bool:
    """The publisher and who asks have a connection each."""
    files = before is None or now.files <= before.files
    return files and now.subscribers == now.channels == 0 and now.connections <= 2


def _request(number: int) -> bytes:
    query = f"topic={TOPIC}"
    if number % 3 == 0:
        query += f"&topic=other.{number % OTHER_TOPICS}"
    if number % 5 == 0:
        query += "&after=earliest"
    return f"GET /v1/events?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def _reset(reader: trio.socket.SocketType) -> None:
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    reader.close()


async def _end(reader: trio.socket.SocketType) -> None:
    """An orderly end, to which the node answers with its own."""
    with reader:
        reader.shutdown(socket.SHUT_WR)
        while await reader.recv(READ_BYTES):
            pass


def _look(process: Process) -> Holding:
    files = len(os.listdir(f"/proc/{process.pid}/fd"))
    status = Path(f"/proc/{process.pid}/status").read_text()
    rss_mb = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return Holding(files, rss_mb, *_metrics(process.port))


def _metrics(port: int) -> list[int]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_SECONDS_MAX)) as asked:
        try:
            asked.request("GET", "/metrics", headers={"Connection": "close"})
            text = asked.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise BenchmarkError(f"the node does not tell its metrics: {error}") from error
    values = dict(re.findall(r"^repl_broker_([a-z_]+) ([0-9.e+]+)$", text, re.MULTILINE))
    return [int(float(values[name])) for name in COUNTED]


def leaks(found: Found) -> Iterator[str]:
    """What is wrong at the end."""
    before, after = found.before, found.after
    if after.files > before.files:
        yield f"{after.files - before.files} files are open that were not before"
    for what in ("subscribers", "channels"):
        if left := getattr(after, what):
            yield f"{left} {what} are left, and no reader is"
    if after.connections > 2:
        yield f"{after.connections - 2} connections are left of readers"
    if failed := after.connections_failed_total - before.connections_failed_total:
        yield f"{failed} connections were ended by errors of the node: see its log"
    if (grown := after.rss_mb - before.rss_mb) > GROWTH_MB_MAX:
        yield f"the node has grown by {grown:.1f} MB ({GROWTH_MB_MAX} MB are allowed)"


def as_lines(found: Found) -> Iterator[str]:
    ends = ", ".join(f"{amount:,} by {how}" for how, amount in found.ends.items())
    amount = sum(found.ends.values())
    yield f"readers: {amount:,} ({ends}), {amount / found.seconds:,.0f} a second"
    yield f"messages: {found.messages:,} read, all in order, of {found.publishes:,} published"
    yield f"settled: {found.settling_seconds:.1f} s after the last had vanished"
    for what, name in (("open files", "files"), ("memory, MB", "rss_mb")):
        values = [getattr(holding, name) for holding in (found.before, found.peak, found.after)]
        shown = [f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in values]
        yield f"{what}: {shown[0]} before, {shown[1]} at the peak of memory, {shown[2]} after"
    yield f"memory on the way, MB: {' '.join(f'{mb:.1f}' for mb in found.memory_mb)}"
    left = found.after
    yield f"left: {left.subscribers} streams, {left.channels} channels"
