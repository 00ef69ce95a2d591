"""A TCP proxy in front of one node's Raft address, that delays bytes or holds them back.

    python -m tests.cluster.proxy LISTEN_HOST:PORT TARGET_HOST:PORT

For kernels without netem, and for cuts without root. A node advertises the
proxy's address and listens on the other. The proxy has one line of JSON on its
standard input for each change, and answers each with one line, once it is in
force:

    {"delay_ms": 100, "hold": [["n1", "in"], ["n3", "out"]]}

``delay_ms`` is each way. *in* is from the one who connects to the node, *out* is
back. What is held goes out when it is no longer held, as after a cut that TCP
outlives; ends of connections are held, too. Who connects is known by the
environment of the process that owns the other end: REPL_BROKER_NODE_ID.

The proxy ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

READ_BYTES: Final = 64 << 10
CHUNKS_MAX: Final = 256  # on their way, in each direction of a connection
IN: Final = "in"
OUT: Final = "out"

Chunk = tuple[float, bytes]  # due when, what; no bytes: the end


class Weather:
    """What is to be done to bytes; changes wake whoever waits for one."""

    def __init__(self) -> None:
        self.delay_seconds = 0.0
        self._hold: set[tuple[str, str]] = set()
        self._changed = trio.Event()

    def change(self, line: bytes) -> None:
        told = json.loads(line)
        self.delay_seconds = told["delay_ms"] / 1000
        self._hold = {(name, direction) for name, direction in told["hold"]}
        self._changed.set()
        self._changed = trio.Event()

    async def wait_passable(self, name: str, direction: str) -> None:
        while (name, direction) in self._hold:
            await self._changed.wait()


class Proxy:
    """Connects everybody who comes with the node."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.weather = Weather()
        self._target = target

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, until either side ends it."""
        name = node_of(stream.socket.getpeername()[1])
        with suppress(OSError, trio.BrokenResourceError):
            async with stream:
                await self._wait_passable(name)
                async with await trio.open_tcp_stream(*self._target) as node:
                    async with trio.open_nursery() as nursery:
                        for source, sink, direction in ((stream, node, IN), (node, stream, OUT)):
                            way = Way(self.weather, name, direction, nursery.cancel_scope)
                            nursery.start_soon(way.read, source)
                            nursery.start_soon(way.write, sink)

    async def _wait_passable(self, name: str) -> None:
        """A connection needs both ways."""
        await self.weather.wait_passable(name, IN)
        await self.weather.wait_passable(name, OUT)


class Way:
    """One direction of a connection. Its end, when that has arrived, ends the connection."""

    def __init__(
        self, weather: Weather, name: str, direction: str, connection: trio.CancelScope
    ) -> None:
        self._weather = weather
        self._name, self._direction = name, direction
        self._connection = connection
        self._sender, self._receiver = trio.open_memory_channel[Chunk](CHUNKS_MAX)

    async def read(self, source: trio.SocketStream) -> None:
        data = b"more"
        while data:
            try:
                data = await source.receive_some(READ_BYTES)
            except trio.BrokenResourceError:
                data = b""
            await self._sender.send((trio.current_time() + self._weather.delay_seconds, data))

    async def write(self, sink: trio.SocketStream) -> None:
        while True:
            due, data = await self._receiver.receive()
            await trio.sleep_until(due)
            await self._weather.wait_passable(self._name, self._direction)
            if not data:
                break
            try:
                await sink.send_all(data)
            except trio.BrokenResourceError:
                break  # the other way tells why, or has
        self._connection.cancel()


# --- who connects ------------------------------------------------------------------------------


def node_of(port: int) -> str:
    """The node id of the process that connects from this port of this host; empty if unknown."""
    inode = _inode_of(port)
    for process in Path("/proc").glob("[0-9]*") if inode else ():
        with suppress(OSError):
            if _owns(process, f"socket:[{inode}]"):
                return _node_id(process)
    return ""


def _inode_of(port: int) -> str | None:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and fields[9] != "0":
            return fields[9]
    return None


def _owns(process: Path, link: str) -> bool:
    return any(os.readlink(file) == link for file in (process / "fd").iterdir())


def _node_id(process: Path) -> str:
    variables = (process / "environ").read_bytes().split(b"\0")
    prefix = b"REPL_BROKER_NODE_ID="
    return next((v.removeprefix(prefix).decode() for v in variables if v.startswith(prefix)), "")


# --- the process -------------------------------------------------------------------------------


async def main(listen: str, target: str) -> None:
    host, _, port = listen.rpartition(":")
    target_host, _, target_port = target.rpartition(":")
    proxy = Proxy((target_host, int(target_port)))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, proxy.serve, int(port), host=host))
        say("listening")
        commands = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
        rest = b""
        while data := await commands.receive_some(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                proxy.weather.change(line)
                say("done")
        nursery.cancel_scope.cancel()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
