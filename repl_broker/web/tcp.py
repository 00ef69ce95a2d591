"""TCP as the door needs it: no write waits for ever, and no peer is dead unnoticed."""

from __future__ import annotations

import math
import socket
import struct
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from repl_broker.web.crowd import Place

__all__ = ["READ_BYTES", "Discards", "Linger", "Transport", "discard", "prepare"]

READ_BYTES: Final = 64 * 1024  # at most, in one read
# Who reads an answer more slowly than this, after the time that a pause may take, does not read.
_WRITE_BYTES_PER_SECOND_MIN: Final = 1024
# Of all clients together, in vain: it goes at the cost of those who are heard.
_DISCARDED_BYTES_PER_SECOND: Final = 32 << 20
# The kernel takes more when less than this is unsent, so that what waits is ours to drop.
_UNSENT_BYTES: Final = 16 * 1024
# What the kernel gathers at most before it wakes whoever waits for more.
_WAKING_BYTES_MAX: Final = 16 * 1024
# A peer that has vanished without a word is noticed after about a minute.
_KEEPALIVE_IDLE_SECONDS: Final = 30
_KEEPALIVE_PROBE_SECONDS: Final = 10
_KEEPALIVE_PROBES: Final = 3
# SO_LINGER on, with no time: close sends a reset and the kernel keeps nothing.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Transport(trio.abc.Stream):
    """A TCP socket on which a write that makes no progress for a while is a broken one.

    It lies below TLS, so that everything TLS writes is held to it as well.
    """

    def __init__(
        self,
        tcp_socket: trio.socket.SocketType,
        peer: tuple[str, int],
        write_timeout_seconds: float,
    ) -> None:
        self.socket = tcp_socket
        self.peer: Final = peer  # kept: one that has left has none, and what it sent is still here
        self.write_timeout_seconds = write_timeout_seconds
        self.place: Place | None = None  # left when it is closed
        self.sending = False  # what is sent waits for the peer
        self._waking_bytes = 1

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; the time starts anew with each piece that the kernel takes. But a byte now and
        then does not renew it for ever: all of it takes that time, and what a slow line takes.

        Raises BrokenResourceError when the client is gone or stalls, in which
        case the connection has been reset.
        """
        began = trio.current_time()
        with memoryview(data) as whole:
            sent_bytes = 0
            while sent_bytes < len(whole):
                slowest = began + sent_bytes / _WRITE_BYTES_PER_SECOND_MIN
                since = min(trio.current_time(), slowest)
                with trio.move_on_at(since + self.write_timeout_seconds) as patience:
                    self.sending = True
                    try:
                        sent_bytes += await self._send(whole[sent_bytes:])
                    finally:
                        self.sending = False
                if patience.cancelled_caught:
                    self.abort()
                    raise trio.BrokenResourceError("the client does not read")

    async def _send(self, data: memoryview) -> int:
        with data:
            try:
                return await self.socket.send(data)
            except OSError as error:
                raise trio.BrokenResourceError(f"the client is gone: {error}") from error

    async def wait_send_all_might_not_block(self) -> None:
        await self.socket.wait_writable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self.socket.recv(max_bytes or READ_BYTES)
        except OSError as error:
            raise trio.BrokenResourceError(f"the client is gone: {error}") from error

    def wake_at(self, size: int) -> None:
        """Be readable only when so many bytes have come, or no more will (SO_RCVLOWAT).

        So a client that sends a byte now and then wakes nobody with each. There is a
        limit to what the kernel gathers, so it may be readable earlier. Not below TLS:
        there, what completes a record may be less than what is missing of its content.
        """
        size = min(size, _WAKING_BYTES_MAX)
        if size != self._waking_bytes:
            self._waking_bytes = size
            with suppress(OSError):  # it has left, which reading will tell
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def send_eof(self) -> None:
        """Say that nothing more will be sent. Raises OSError when the client is gone."""
        self.socket.shutdown(socket.SHUT_WR)

    def detach(self) -> int:
        """Give the socket away: its file descriptor, which whoever takes it closes.

        With it goes the duty to leave its ``place``.
        """
        return self.socket.detach()

    def close(self) -> None:
        """Close; what the kernel has taken is still delivered."""
        self.socket.close()
        self._forgotten()

    def abort(self) -> None:
        """Reset the connection and drop what has not been delivered; nothing if closed."""
        if self.socket.fileno() != -1:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.socket.close()
        self._forgotten()

    def _forgotten(self) -> None:
        place, self.place = self.place, None
        if place is not None:
            place.leave()

    @property
    def has_come(self) -> bool:
        """The peer has sent something, or has left, and that has not been read yet."""
        try:
            os_socket = socket.socket(fileno=self.socket.fileno())
        except (OSError, ValueError):  # ValueError: it is closed
            return True
        try:
            os_socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            os_socket.detach()
        return True

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


def prepare(tcp_socket: trio.socket.SocketType) -> None:
    """Send what there is at once, and have the kernel ask a silent peer whether it is there."""
    with suppress(OSError):  # it has left already; reading will tell
        tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        tcp_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_SECONDS)
        tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_PROBE_SECONDS)
        tcp_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


class Linger(NamedTuple):
    """How much is read in vain of what a client still sends, so that it can read the answer."""

    bytes_max: int
    quiet_seconds: float  # without a byte; then it sends no more
    seconds: float  # in all


class Discards:
    """What is read in vain of all clients of a door: so much a second, however many send."""

    __slots__ = ("_free_at",)

    def __init__(self) -> None:
        self._free_at = -math.inf

    async def take(self, size: int) -> None:
        """So much has been read; wait until it is in turn."""
        began = max(trio.current_time(), self._free_at)
        self._free_at = began + size / _DISCARDED_BYTES_PER_SECOND
        await trio.sleep_until(began)


async def discard(stream: trio.abc.Stream, linger: Linger, discards: Discards) -> None:
    """Read until the end, or until it is enough."""
    missing = linger.bytes_max
    with trio.move_on_after(linger.seconds):
        while missing > 0:
            with trio.move_on_after(linger.quiet_seconds) as quiet:
                data = await stream.receive_some(READ_BYTES)
            if quiet.cancelled_caught or not data:
                return
            missing -= len(data)
            await discards.take(len(data))
