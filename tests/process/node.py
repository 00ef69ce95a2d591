"""A node as its users run it: ``python -m repl_broker serve``, over TCP.

It listens on loopback, or on a host of its own (tests/cluster/hosts.py).

    Node      the process: start, kill, stop, start again on the same port and data
    Client    one keep-alive connection for requests
    Stream    one event stream, read as blocks

The tests are plain threads and blocking sockets, so that no code is shared with
what they test. Every wait has a bound, and threads outlive the node in the
``with`` of a test: killing the node then ends what still waits for it.

A port lies below the ephemeral range: a client that connects to a dead port
there can be given that very port as its own, talk to itself, and keep the node
from coming back.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode

WAIT_SECONDS_MAX: Final = 30  # for anything that is sure to come; the machine may be busy
POLL_SECONDS: Final = 0.01
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"

# Linux ends a node with the test that started it, even if that is killed.
LEASH: Final = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()

# What a client sees of a node that is killed, or not there.
Broken = (OSError, http.client.HTTPException)


def free_port() -> int:
    """A port that nobody listens on; it is taken when a node binds to it, not before."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def environment(**keys: object) -> dict[str, str]:
    """Ours, less what configures a node, plus ``limits_tail_bytes=…`` as a variable."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("REPL_BROKER_")}
    ours["REPL_BROKER_HTTP_DRAIN_SECONDS"] = "0"  # tests of it say otherwise
    return ours | {f"REPL_BROKER_{key.upper()}": str(value) for key, value in keys.items()}


def serve(
    *options: str, prefix: Sequence[str] = (), **keys: object
) -> subprocess.CompletedProcess[str]:
    """Run ``serve`` for as long as it lasts: for nodes that must not start."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "repl_broker", "serve", *options],
        env=environment(**keys),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


class Node:
    """A node's process, or the place of one: its data directory and its port outlive it.

    ``keys`` are configuration keys as ``limits_tail_bytes=1000``. ``address``
    is where it listens for HTTP, ``prefix`` what its command is run by, and
    ``make_socket`` makes a TCP socket from which it can be reached. Leaving
    the ``with`` kills what still runs.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        address: str = "127.0.0.1",
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
        make_socket: Callable[[], socket.socket] = socket.socket,
        **keys: object,
    ) -> None:
        self.data_dir = data_dir
        self.address = address
        self.port = free_port()
        # Only on loopback need nothing be written down.
        self.keys = keys if address.startswith("127.") else {"auth_mode": "none"} | keys
        self.options = options
        self.prefix: Sequence[str] = (*prefix, *LEASH)
        self.make_socket = make_socket
        self.log = data_dir.with_name(f"{data_dir.name}.log")  # standard error of every run
        self.is_paused = False
        self._process: subprocess.Popen[bytes] | None = None

    # --- the process ---

    def start(self) -> None:
        """Start, and return once requests are served."""
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start, and return at once."""
        command = [*self.prefix, sys.executable, "-m", "repl_broker", "serve"]
        command += ["--data-dir", str(self.data_dir), "--http", f"{self.address}:{self.port}"]
        command += self.options
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment(**self.keys)
            )

    def wait_ready(self) -> None:
        """Until /readyz answers 200."""
        for _ in polls("the node to be ready"):
            assert self.process.poll() is None, (
                f"the node ended by itself: {self.log_text()[-2000:]}"
            )
            try:
                with Client(self) as client:
                    if client.request("GET", "/readyz").status == 200:
                        return
            except Broken:
                continue

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the node was not started"
        return self._process

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: nothing of the process runs any more."""
        self.process.kill()
        self.process.wait()
        self.is_paused = False

    def pause(self) -> None:
        """SIGSTOP: it stands still, and its connections stay open."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_paused = True

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.is_paused = False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to shut down, and wait. Returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Until the process has ended. Returns the exit code."""
        return self.process.wait(WAIT_SECONDS_MAX)

    def rss_bytes(self) -> int:
        """Memory that the process has in RAM now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.kill()

    # --- what tests ask of it, each on a connection of its own ---

    def publish(self, topic: str, value: object) -> str:
        """Publish one message; its id."""
        with Client(self) as client:
            answer = client.publish(topic, json.dumps(value).encode())
        assert answer.status == 201, answer
        return str(answer.json["id"])

    def get(self, path: str, **query: object) -> Any:
        """The JSON of a 200."""
        with Client(self) as client:
            answer = client.request("GET", path + ("?" + urlencode(query) if query else ""))
        assert answer.status == 200, answer
        return answer.json

    def history(self, topic: str) -> list[dict[str, Any]]:
        """All that is retained of a topic, page by page."""
        messages: list[dict[str, Any]] = []
        after = "earliest"
        while True:
            page = self.get(f"/v1/topics/{topic}/messages", after=after, limit=1000)
            messages += page["messages"]
            if page["next"] is None:
                return messages
            after = page["next"]


def polls(what: str | Callable[[], str]) -> Iterator[None]:
    """Try again and again, for something that only shows from outside; AssertionError in time."""
    end = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < end:
        yield
        time.sleep(POLL_SECONDS)
    shown = what if isinstance(what, str) else what()
    raise AssertionError(f"waited {WAIT_SECONDS_MAX} s for {shown}")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # by names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection(http.client.HTTPConnection):
    """From where the node can be reached."""

    def __init__(self, node: Node, timeout: float) -> None:
        super().__init__(node.address, node.port)
        self._node = node
        self._timeout = timeout
        self.sock: socket.socket | None = None

    def open_socket(self) -> socket.socket:
        """Not connected yet."""
        self.sock = self._node.make_socket()
        self.sock.settimeout(self._timeout)
        return self.sock

    def connect(self) -> None:
        opened = self.open_socket()
        try:
            opened.connect((self.host, self.port))
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self.close()
            raise


class Client:
    """One keep-alive connection; opened by the first request. Raises one of ``Broken``."""

    def __init__(self, node: Node, timeout: float = WAIT_SECONDS_MAX) -> None:
        self._connection = Connection(node, timeout)

    def request(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> Answer:
        """Headers as ``Idempotency_Key="…"``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request(method, target, body, named)
            with self._connection.getresponse() as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, headers, response.read())
        except BaseException:
            self.close()
            raise

    def publish(self, topic: str, body: bytes, **headers: str) -> Answer:
        path = f"/v1/topics/{topic}/messages"
        return self.request("POST", path, body, Content_Type=JSON, **headers)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Block:
    """One block of an event stream; ``raw`` is what was received, to the byte."""

    raw: bytes
    fields: Mapping[str, str] = field(hash=False)

    @classmethod
    def parse(cls, raw: bytes) -> Block:
        lines = raw.decode().split("\n")
        fields = dict(line.split(": ", 1) for line in lines)
        assert fields.get("data"), f"no block is without data: {raw!r}"
        return cls(raw, fields)

    @property
    def is_message(self) -> bool:
        return "event" not in self.fields

    @property
    def event(self) -> str | None:
        return self.fields.get("event")

    @property
    def message(self) -> dict[str, Any]:
        assert self.is_message, self
        message: dict[str, Any] = json.loads(self.fields["data"])
        assert message["id"] == self.fields["id"]
        return message


class Stream:
    """One event stream. Iterating gives its blocks and ends where the server ends it.

    A connection that breaks raises one of ``Broken``; so does an end without the
    last chunk. ``last_id`` is what a browser would come back with.
    """

    def __init__(
        self,
        node: Node,
        *topics: str,
        after: str | None = None,
        last_id: str | None = None,
        receive_buffer_bytes: int | None = None,
        token: str | None = None,
    ) -> None:
        self.last_id = last_id
        self._rest = b""
        self._connection = Connection(node, WAIT_SECONDS_MAX)
        self._socket = self._connection.open_socket()
        if receive_buffer_bytes is not None:
            self.set_receive_buffer(receive_buffer_bytes)
        query = [("topic", topic) for topic in topics] + ([("after", after)] if after else [])
        try:
            self._socket.connect((node.address, node.port))
            self._connection.request(
                "GET",
                f"/v1/events?{urlencode(query)}",
                headers=({"Last-Event-ID": last_id} if last_id else {})
                | ({"Authorization": f"Bearer {token}"} if token else {}),
            )
            self._response = self._connection.getresponse()
            self._check()
        except BaseException:
            self._connection.close()
            raise

    def _check(self) -> None:
        if self._response.status == 503:  # it is going, or has not come yet
            with self._response:
                raise ConnectionError(self._response.read().decode())
        assert self._response.status == 200, self._response.read()

    def set_receive_buffer(self, size: int) -> None:
        """How much the kernel takes in while nobody reads."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def __iter__(self) -> Iterator[Block]:
        while data := self._response.read1(1 << 16):
            *blocks, self._rest = (self._rest + data).split(b"\n\n")
            for raw in blocks:
                block = Block.parse(raw)
                self.last_id = block.fields.get("id", self.last_id)
                yield block
        assert self._rest == b"", "a stream ends with a whole block"

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sequence(event_id: str) -> int:
    """The ``seq`` of an event id."""
    return int(event_id.rpartition("-")[2])
