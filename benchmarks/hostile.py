"""``python -m benchmarks hostile``: slow clients beside good readers, and a flood of publishes.

First as many good readers with and without slow connections beside them, each on
a node that was just started: what is compared is how late messages come. A slow
connection sends a byte of a request now and then, and comes back when the node
ends it. Then a flood: publishes are *due* at a multiple of what the node could
just do, over many connections, each with one under way; what is due when all are
taken is not sent, and counted. Then the attacks of a client with a narrow token, on one node and
on the leader of three (attacks.py). All of it is bounded in number and in time.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import attacks, shares
from benchmarks.command import allow_files, named, progress
from benchmarks.figures import markdown, number
from benchmarks.load import BenchmarkError, Generator, Load
from benchmarks.node import single_node
from benchmarks.processes import Process, free_ports
from benchmarks.report import OtherWork, machine

__all__ = ["Flood", "Plan", "Slow", "flood_text", "main", "measure_flood", "measure_slow"]
__all__ += ["slow_text"]

READER_RATE = 20.0  # publishes a second, while there are slow clients
OPEN_SECONDS_MAX = 30.0
SLOW_ROUND_SECONDS = 1.0  # in which each of them sends a byte
HEADS = (
    b"GET /v1/events?topic=chat HTTP/1.1\r\nX-Slow: ",
    b"POST /v1/topics/chat/messages HTTP/1.1\r\n"
    b"Host: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 99999\r\n\r\n",
    b"PUT /v1/topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked for."""

    readers: int = 1000
    slow: int = 5000
    seconds: float = 15.0
    connections: int = 3000  # of the flood
    times: float = 3.0  # what the node can do
    flood_seconds: float = 60.0


class Slow(threading.Thread):
    """So many slow clients, until ``stop``."""

    def __init__(self, port: int, count: int) -> None:
        super().__init__(daemon=True)
        self.most = 0  # that were open at a time
        self.ended = 0  # by the node
        self._port = port
        self._count = count
        self._over = threading.Event()
        self._poll = select.epoll()
        self._clients: dict[int, socket.socket] = {}

    def run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            for _ in range(self._count - len(self._clients)):
                self._add()
            self.most = max(self.most, len(self._clients))
            for fd, _ in self._poll.poll(0):
                self._clients.pop(fd).close()
                self.ended += 1
            for count, client in enumerate(list(self._clients.values())):
                with contextlib.suppress(OSError):
                    client.send(b"a")
                if count % 50 == 0:  # spread over the round
                    self._over.wait(SLOW_ROUND_SECONDS * 50 / self._count)
            self._over.wait(max(0.0, SLOW_ROUND_SECONDS - (time.monotonic() - began)))
        for client in self._clients.values():
            client.close()

    def _add(self) -> None:
        try:
            client = socket.create_connection(("127.0.0.1", self._port))
        except OSError:
            return  # the next round tries again
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.send(HEADS[client.fileno() % len(HEADS)])
        self._clients[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN | select.EPOLLRDHUP)

    def wait_open(self) -> None:
        """Until nearly all of them have been there at a time."""
        end = time.monotonic() + OPEN_SECONDS_MAX
        while self.most < self._count * 0.9:
            if time.monotonic() > end:
                raise BenchmarkError("the slow clients did not get in")
            time.sleep(0.05)

    def stop(self) -> None:
        self._over.set()
        self.join()


@dataclass(slots=True)
class Flood:
    """What came of the flood."""

    capacity: float  # publishes a second that 64 publishers got answered just before
    answers: Counter[int] = field(default_factory=Counter)  # by status
    late: dict[int, list[float]] = field(default_factory=dict)  # seconds, by status
    not_sent: int = 0  # due while every connection waited
    broken: int = 0  # connections
    seconds: float = 0.0
    rss_before_kb: int = 0
    rss_max_kb: int = 0
    healthy_ms: float = 0.0  # one publish, right after

    def quantile_ms(self, status: int, q: float) -> float:
        late = sorted(self.late.get(status, [0.0]))
        return late[min(len(late) - 1, int(q * len(late)))] * 1000


@contextlib.contextmanager
def running_node(folder: Path, name: str) -> Iterator[tuple[Process, int]]:
    (port,) = free_ports(1)
    own = folder / name
    process = Process("repl-broker", single_node(port, own), port, own / "log")
    try:
        process.start()
        yield process, port
    finally:
        process.stop()


def measure_slow(
    plan: Plan, folder: Path, say: Callable[[str], None] = lambda what: None
) -> list[tuple[int, dict[str, float], int]]:
    """Without and with slow clients: how many, the readers' figures, how many were ended."""
    generator = Generator(folder)
    load = Load(subscribers=plan.readers, publishers=4, rate=READER_RATE, seconds=plan.seconds)
    runs = []
    for count in (0, plan.slow):
        say(f"{plan.readers} readers beside {count} slow clients")
        with running_node(folder, f"slow-{count}") as (process, port):
            generator.run(port, process.pids, Load(subscribers=4, requests=100))  # warm
            slow = Slow(port, count) if count else None
            if slow is not None:
                slow.start()
                slow.wait_open()
            try:
                figures = generator.run(port, process.pids, load)
            finally:
                if slow is not None:
                    slow.stop()
            runs.append((count, figures, slow.ended if slow is not None else 0))
    return runs


def measure_flood(
    plan: Plan, folder: Path, say: Callable[[str], None] = lambda what: None
) -> Flood:
    """Find what the node can do, then ask for more than that."""
    with running_node(folder, "flood") as (process, port):
        say("what the node can do")
        found = Generator(folder).run(
            port, process.pids, Load(publishers=64, seconds=min(3.0, plan.flood_seconds))
        )
        flood = Flood(found["answers_per_s"])
        say(f"a flood of {plan.times:g} times {flood.capacity:.0f} publishes/s")
        flood.rss_before_kb = flood.rss_max_kb = _rss_kb(process)
        with ExitStack() as opened:
            _run_flood(plan, port, process, flood, opened)
        flood.healthy_ms = _one_publish(port)
    return flood


def _run_flood(plan: Plan, port: int, process: Process, flood: Flood, opened: ExitStack) -> None:
    body = b'"%b"' % (b"x" * 198)
    request = (
        b"POST /v1/topics/flood/messages HTTP/1.1\r\n"
        b"Host: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    poll = opened.enter_context(select.epoll())
    clients: dict[int, socket.socket] = {}
    for _ in range(plan.connections):
        client = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        client.setblocking(False)
        clients[client.fileno()] = client
        poll.register(client, select.EPOLLIN)
    free = list(clients)
    sent_at: dict[int, float] = {}
    rate = plan.times * flood.capacity
    began = now = time.monotonic()
    due, looked_at = 0, began
    while now < began + plan.flood_seconds or sent_at:
        owed = int((now - began) * rate) - due if now < began + plan.flood_seconds else 0
        due += owed
        sending = min(owed, len(free))
        flood.not_sent += owed - sending
        for _ in range(sending):
            fd = free.pop()
            try:
                clients[fd].send(request)
            except OSError:
                flood.broken += 1
                poll.unregister(fd)
            else:
                sent_at[fd] = time.monotonic()
        for fd, _ in poll.poll(0.001):
            _take(clients[fd], sent_at.pop(fd, None), poll, free, flood)
        now = time.monotonic()
        if now > looked_at + 0.5:
            looked_at = now
            flood.rss_max_kb = max(flood.rss_max_kb, _rss_kb(process))
        if now > began + plan.flood_seconds + 60:
            raise BenchmarkError(f"{len(sent_at)} publishes have no answer after a minute")
    flood.seconds = now - began


def _take(
    client: socket.socket,
    sent_at: float | None,
    poll: select.epoll,
    free: list[int],
    flood: Flood,
) -> None:
    try:
        answer = client.recv(4096)
    except OSError:
        answer = b""
    if not answer or sent_at is None:
        flood.broken += 1
        poll.unregister(client)
        return
    status = int(answer[9:12])
    flood.answers[status] += 1
    flood.late.setdefault(status, []).append(time.monotonic() - sent_at)
    free.append(client.fileno())


def _one_publish(port: int) -> float:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(
            b"POST /v1/topics/after/messages HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1\r\n\r\n1"
        )
        answer = client.recv(4096)
    if not answer.startswith(b"HTTP/1.1 201 "):
        raise BenchmarkError(f"the node is not well after the flood: {answer[:80]!r}")
    return (time.monotonic() - began) * 1000


def _rss_kb(process: Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def slow_text(plan: Plan, runs: Sequence[tuple[int, dict[str, float], int]]) -> str:
    lines = [["beside", "p50, ms", "p99, ms", "max, ms", "memory, MB", "ended"]]
    for count, found, ended in runs:
        memory = (found["rss_max_kb"] - found["rss_before_kb"]) / 1024
        figures = (found["p50_ms"], found["p99_ms"], found["max_ms"], memory)
        lines.append([f"{count:,} slow clients", *map(number, figures), f"{ended:,}"])
    note = (
        f"{plan.readers:,} readers, {READER_RATE:g} publishes/s of 200 bytes for "
        f"{plan.seconds:g} s; every reader got every message, once and in order."
    )
    return f"{markdown(lines)}\n\n{note}\n"


def flood_text(plan: Plan, flood: Flood) -> str:
    answered = [["answer", "a second", "p50, ms", "p99, ms", "max, ms"]]
    for status, amount in sorted(flood.answers.items()):
        quantiles = (flood.quantile_ms(status, q) for q in (0.5, 0.99, 1))
        answered.append([str(status), number(amount / flood.seconds), *map(number, quantiles)])
    head = (
        f"A flood of {plan.times:g} times {flood.capacity:,.0f} publishes/s for "
        f"{flood.seconds:.0f} s over {plan.connections:,} connections:"
    )
    grown = (flood.rss_max_kb - flood.rss_before_kb) / 1024
    end = (
        f"{flood.not_sent:,} were due while every connection waited; {flood.broken} connections "
        f"broke.\nMemory: {flood.rss_before_kb / 1024:.0f} MB before, {grown:+.0f} MB at most. One "
        f"publish right after took {flood.healthy_ms:.1f} ms."
    )
    return f"{head}\n\n{markdown(answered)}\n\n{end}\n"


PARTS = ("slow", "flood", "shares", "attacks", "cluster")


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    allow_files()
    try:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
            about = machine(Path(name))
            others = OtherWork()
            texts = [_part(part, options, Path(name)) for part in options.parts]
            progress("")
            about["other work"] = str(others)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(*(f"{what}: {how}" for what, how in about.items()), sep="\n")
    print("", *texts, sep="\n")
    return int(any(attacks.LOST in text for text in texts))


def _part(part: str, options: argparse.Namespace, folder: Path) -> str:
    plan = Plan(
        options.readers, options.slow, options.seconds, options.connections, options.times,
        options.flood_seconds,
    )  # fmt: skip
    full = attacks.Full(
        topics=options.topics, streams=options.streams, seconds=options.attack_seconds
    )
    if part == "slow":
        return slow_text(plan, measure_slow(plan, folder, progress))
    if part == "flood":
        return flood_text(plan, measure_flood(plan, folder, progress))
    if part == "attacks":
        founds = attacks.measure_one(full, folder / part, progress, options.only)
        return f"{attacks.as_text(founds)}\n"
    if part == "shares":
        return f"{shares.as_text(shares.measure(folder / part, progress))}\n"
    founds = attacks.measure_three(full, folder / part, progress, options.only)
    lost = sum(found.terms for found in founds)
    led = f"leadership was lost {lost} times" if lost else "which led all the time"
    return f"At the leader of three, {led}:\n\n{attacks.as_text(founds)}\n"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hostile",
        description="Good readers beside slow clients; a flood of publishes; the attacks of a "
        "narrow token, on one node and on the leader of three, and its tries to take all there "
        "is. Exit status: 1 if a reader lacks a message, a publish has no answer, a node is not "
        "well after, leadership is lost, or one client takes all.",
    )
    plan, full = Plan(), attacks.Full()
    parser.add_argument(
        "--parts", type=_parts, default=PARTS, help=f"a list of {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--only", action="append", default=[], help="the attack of this name")
    parser.add_argument("--topics", type=_amount(100_000), default=full.topics)
    parser.add_argument("--streams", type=_amount(5000), default=full.streams)
    parser.add_argument("--attack-seconds", type=_amount(60), default=int(full.seconds))
    parser.add_argument("--dir", type=Path, help="where to store; it should be a real disk")
    parser.add_argument("--readers", type=_amount(5000), default=plan.readers)
    parser.add_argument("--slow", type=_amount(10_000), default=plan.slow)
    parser.add_argument("--seconds", type=_amount(60), default=plan.seconds)
    parser.add_argument("--connections", type=_amount(9000), default=plan.connections)
    parser.add_argument("--times", type=float, default=plan.times, help="what the node can do")
    parser.add_argument("--flood-seconds", type=_amount(60), default=plan.flood_seconds)
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    return named(text, {part: part for part in PARTS})


def _amount(most: int) -> Callable[[str], int]:
    def amount(text: str) -> int:
        found = int(text)
        if not 1 <= found <= most:
            raise argparse.ArgumentTypeError(f"1 to {most}")
        return found

    return amount
