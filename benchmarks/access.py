"""``python -m benchmarks access``: what tokens and TLS cost a publish and a delivery.

The same load on four nodes, each just started: without either, with a token on each
request, over TLS, and with both. A node that ends TLS itself answers publishes and
streams through Hypercorn and Quart, so that row tells what a proxy in front saves.

The client is one process of Python, which takes more of the processor than the node
does: read the CPU of the node, which is what it did, and not the rates. A delivery's is
what the node took beyond the publishes alone, by the deliveries.
"""

from __future__ import annotations

import argparse
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from benchmarks.command import allow_files, progress
from benchmarks.figures import markdown, number
from benchmarks.load import BenchmarkError
from benchmarks.node import single_node
from benchmarks.processes import Process, free_ports
from benchmarks.report import OtherWork, machine

__all__ = ["main", "measure"]

TICKS_A_SECOND = 100
WAYS = ("neither", "tokens", "TLS", "both")
BODY = b'{"text":"' + b"x" * 180 + b'"}'


@dataclass(frozen=True, slots=True)
class Plan:
    publishers: int = 16
    subscribers: int = 100
    seconds: float = 3.0


@dataclass(frozen=True, slots=True)
class Way:
    """A node that serves, and how to talk to it."""

    server: Process
    context: ssl.SSLContext | None
    field: bytes  # the Authorization field, or nothing


@dataclass(frozen=True, slots=True)
class Found:
    publishes_per_second: float
    publish_cpu_us: float
    delivery_cpu_us: float


def measure(folder: Path, plan: Plan) -> dict[str, Found]:
    found = {}
    for name in WAYS:
        progress(f"{name} …")
        with _serving(folder / name, name) as way:
            found[name] = trio.run(_measure, way, plan)
    return found


@contextmanager
def _serving(folder: Path, name: str) -> Iterator[Way]:
    folder.mkdir()
    (port,) = free_ports(1)
    command = single_node(port, folder)
    config = folder / "node.toml"
    context, field = None, b""
    with ExitStack() as stack:
        if name in ("TLS", "both"):
            _certificate(folder)
            context = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
            _add(config, "[http]", f'tls_certificate = "{folder}/certificate.pem"',
                 f'tls_key = "{folder}/key.pem"')  # fmt: skip
        if name in ("tokens", "both"):
            secret = folder / "secret"
            secret.write_bytes(b"0123456789abcdef" * 2)
            secret.chmod(0o600)
            _add(config, "[auth]", 'mode = "jwt"', f'secret_file = "{secret}"')
            field = b"Authorization: Bearer " + _token(secret) + b"\r\n"
        server = Process(name, command, port, folder / "log")
        server.start()
        stack.callback(server.stop)
        yield Way(server, context, field)


def _add(config: Path, *lines: str) -> None:
    with config.open("a") as file:
        print("", *lines, sep="\n", file=file)


def _certificate(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")],
        check=True,
        capture_output=True,
    )  # fmt: skip


def _token(secret: Path) -> bytes:
    command = [sys.executable, "-m", "repl_broker", "token", "create", "--sub", "benchmarks"]
    command += ["--publish", ">", "--subscribe", ">", "--expires", "1h"]
    command += ["--secret-file", str(secret)]
    return subprocess.run(command, check=True, capture_output=True).stdout.strip()


async def _measure(way: Way, plan: Plan) -> Found:
    await _publish(way, plan, 0.5)  # what is only done once
    count, cpu, seconds = await _publish(way, plan, plan.seconds)
    async with _subscribed(way, plan.subscribers):
        more, more_cpu, _ = await _publish(way, plan, plan.seconds)
    delivered = max(0.0, more_cpu - cpu / count * more)
    return Found(count / seconds, cpu * 1e6 / count, delivered * 1e6 / (more * plan.subscribers))


async def _publish(way: Way, plan: Plan, seconds: float) -> tuple[int, float, float]:
    """How many were answered, the node's CPU in seconds, and how long it took."""
    counts = [0] * plan.publishers
    ticks, began = way.server.cpu_ticks(), time.monotonic()
    async with trio.open_nursery() as nursery:
        for number_ in range(plan.publishers):
            nursery.start_soon(_publish_on, way, began + seconds, counts, number_)
    cpu = (way.server.cpu_ticks() - ticks) / TICKS_A_SECOND
    return max(1, sum(counts)), cpu, time.monotonic() - began


async def _publish_on(way: Way, end: float, counts: list[int], number_: int) -> None:
    request = (
        b"POST /v1/topics/bench/messages HTTP/1.1\r\nHost: 127.0.0.1\r\n%b"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (way.field, len(BODY), BODY)
    )
    async with _connected(way) as stream:
        while time.monotonic() < end:
            await stream.send_all(request)
            answer = bytes(await stream.receive_some(4096))
            while answer and not answer.endswith(b"}"):
                answer += bytes(await stream.receive_some(4096))
            if not answer.startswith(b"HTTP/1.1 201"):
                raise BenchmarkError(f"a publish was answered {answer[:200]!r}")
            counts[number_] += 1


@asynccontextmanager
async def _subscribed(way: Way, count: int) -> AsyncIterator[None]:
    request = b"GET /v1/events?topic=bench HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n" % way.field

    async def read(*, task_status: trio.TaskStatus[None]) -> None:
        async with _connected(way) as stream:
            await stream.send_all(request)
            begun = b""
            while b"event: subscribed" not in begun:
                begun += bytes(await stream.receive_some(65536))
            task_status.started()
            while await stream.receive_some(1 << 20):
                pass

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            await nursery.start(read)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _connected(way: Way) -> AsyncIterator[trio.abc.Stream]:
    stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", way.server.port)
    if way.context is not None:
        stream = trio.SSLStream(stream, way.context, server_hostname="127.0.0.1")  # type: ignore[arg-type,type-var]
    try:
        yield stream
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks access",
        description="What tokens and TLS cost a publish and a delivery.",
    )
    parser.add_argument("--seconds", type=float, default=Plan().seconds, help="of each run")
    parser.add_argument("--dir", type=Path, help="where the stores go; a folder on a disk")
    options = parser.parse_args(arguments)
    allow_files()
    others = OtherWork()
    try:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="benchmarks-") as name:
            about = machine(Path(name))
            found = measure(Path(name), Plan(seconds=options.seconds))
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    progress("")
    base = found["neither"]
    about["other work"] = str(others)
    print(*(f"{what}: {how}" for what, how in about.items()), "", sep="\n")
    rows = [
        [
            name,
            number(each.publishes_per_second),
            f"{number(each.publish_cpu_us)} ({each.publish_cpu_us / base.publish_cpu_us:.2f})",
            f"{number(each.delivery_cpu_us)} ({each.delivery_cpu_us / base.delivery_cpu_us:.2f})",
        ]
        for name, each in found.items()
    ]
    head = ["", "publishes/s, with this client", "CPU a publish, µs", "CPU a delivery, µs"]
    print(markdown([head, *rows]))
    print("\nIn brackets: to the first row, in this run.")
    return 0
