"""What stands between a client and a node, and breaks: a proxy, or a network."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

READ_BYTES: Final = 1 << 16
CUT_SECONDS: Final = 0.3  # a browser drops what it has not given to the page when it sees the end
BAD_GATEWAY: Final = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Relay:
    """Passes bytes on to ``port`` of this machine, as they come.

    ``is_up``: else whoever connects gets ``answer``, and is hung up on. ``cut_at``: once these
    bytes have passed to a client, it gets no more, and all connections are closed.
    ``waiting_for`` is taken away once it has passed to a client.
    """

    def __init__(self, port: int, answer: bytes = b"") -> None:
        self.is_up = True
        self.cut_at = b""
        self.waiting_for = b""
        self.refused = 0  # connections while it was down
        self._port = port
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def down(self) -> None:
        """Close all connections, and let nobody in."""
        self.is_up = False
        for each in list(self._open):
            _hang_up(each)

    def accept(self) -> None:
        """Serve until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        self.down()
        _hang_up(self._listener)

    def _serve(self, client: socket.socket) -> None:
        if not self.is_up:
            self.refused += 1
            with suppress(OSError):
                client.recv(READ_BYTES)
                client.sendall(self._answer)
            _hang_up(client)
            return
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as node:
            self._open |= {client, node}
            back = threading.Thread(target=self._pass_back, args=(node, client), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(READ_BYTES):
                    node.sendall(data)
            _hang_up(node)
            back.join()
        _hang_up(client)
        self._open -= {client, node}

    def _pass_back(self, node: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := node.recv(READ_BYTES):
                if self.waiting_for and self.waiting_for in data:
                    self.waiting_for = b""
                at = data.find(self.cut_at) if self.cut_at else -1
                if at >= 0:
                    client.sendall(data[: at + len(self.cut_at)])
                    time.sleep(CUT_SECONDS)
                    self.cut_at = b""
                    self.down()
                    break
                client.sendall(data)
        _hang_up(client)


def _hang_up(each: socket.socket) -> None:
    """What was sent before arrives; whoever waits for it in this process wakes up."""
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        each.close()


@contextmanager
def relaying(port: int, answer: bytes = b"") -> Iterator[Relay]:
    relay = Relay(port, answer)
    thread = threading.Thread(target=relay.accept, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        relay.close()
        thread.join()
