# ruff: noqa: ASYNC110  time is simulated: looking costs none
"""TCP as transport.py sees it, in memory: bytes take time, links are cut, connections break.

Each direction between two hosts is a line of its own: what is sent over it is sent one
after the other, by whatever connection, at so many bytes a second, and arrives after the
latency, in order. A line that is cut holds what was sent, as TCP sends it again when the
line is back; data that is not acknowledged for SILENCE_SECONDS breaks the connection at
that end, and the other end does not hear of it. A process that dies sends a reset; a host
without power sends nothing, and answers with a reset when it is back.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

import trio

__all__ = ["Line", "Listener", "Network", "Stream"]

SEGMENT_BYTES: Final = 16 << 10
SEGMENT_BYTES_MIN: Final = 1400
WINDOW_BYTES: Final = 128 << 10  # on the way, a connection and direction; then who sends waits
SILENCE_SECONDS: Final = 3.0  # transport.TransportOptions.silence_ms
AGAIN_SECONDS: Final = 0.3  # until TCP sends again, at the most, when a line is back


class Line:
    """One direction between two hosts."""

    def __init__(self) -> None:
        self.latency = 0.001
        self.jitter = 0.001
        self.bytes_per_second = 1e9
        self.is_cut = False
        self.free_at = 0.0  # when what was sent before has left
        self.last_arrival = 0.0
        self.resumes_at = 0.0  # after a cut
        self.queue: deque[tuple[float, Callable[[], None]]] = deque()  # in the order of sending


class Network:
    """All hosts, by their raft addresses. ``run`` carries what is on the way."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(f"network {seed}")
        self._lines: dict[tuple[str, str], Line] = {}
        self._listeners: dict[tuple[str, int], Listener] = {}
        self.hosts: dict[tuple[str, int], str] = {}  # by address
        self.dark: set[str] = set()  # hosts without power
        self.streams: dict[str, dict[Stream, None]] = {}  # of each host
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._alarm = trio.CancelScope()
        self.carried = 0

    def line(self, sender: str, receiver: str) -> Line:
        return self._lines.setdefault((sender, receiver), Line())

    # --- what is on its way ---

    async def run(self) -> None:
        while True:
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                heappop(self._due)[2]()
            deadline = self._due[0][0] if self._due else float("inf")
            with trio.CancelScope(deadline=deadline) as self._alarm:
                await trio.sleep_forever()

    def at(self, when: float, call: Callable[[], None]) -> None:
        heappush(self._due, (when, next(self._numbers), call))
        if when < self._alarm.deadline:
            self._alarm.deadline = when

    def carry(self, sender: str, receiver: str, size: int, arrive: Callable[[], None]) -> None:
        """Have it arrive behind all that was sent before, as soon as the line lets it."""
        line = self.line(sender, receiver)
        now = trio.current_time()
        line.free_at = max(now, line.free_at) + size / line.bytes_per_second
        when = line.free_at + line.latency + self._random.random() * line.jitter
        line.last_arrival = when = max(when, line.last_arrival)
        line.queue.append((when, arrive))
        self.at(when, lambda: self._deliver(line, receiver))

    def _deliver(self, line: Line, receiver: str) -> None:
        """What is due; nothing overtakes what is held before it."""
        now = trio.current_time()
        while (
            line.queue
            and line.queue[0][0] <= now
            and now >= line.resumes_at
            and not line.is_cut
            and receiver not in self.dark
        ):
            self.carried += 1
            line.queue.popleft()[1]()

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing passes in this direction, without a sound."""
        self.line(sender, receiver).is_cut = True

    def heal(self, sender: str, receiver: str) -> None:
        line = self.line(sender, receiver)
        line.is_cut = False
        line.resumes_at = trio.current_time() + self._random.random() * AGAIN_SECONDS
        self.at(line.resumes_at, lambda: self._deliver(line, receiver))

    def reaches(self, one: str, other: str) -> bool:
        lines = self.line(one, other), self.line(other, one)
        return not any(line.is_cut for line in lines) and not {one, other} & self.dark

    # --- connections ---

    def listen(self, host: str, address: tuple[str, int]) -> Listener:
        listener = self._listeners[address] = Listener(self, address)
        self.hosts[address] = host
        return listener

    def unlisten(self, listener: Listener) -> None:
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]

    async def dial(self, host: str, address: tuple[str, int], seconds: float) -> Stream:
        """Raises OSError."""
        there = self.hosts.get(address)
        with trio.move_on_after(seconds):
            if there is None:
                await trio.sleep_forever()
            assert there is not None
            line = self.line(host, there)
            await trio.sleep(line.latency + self.line(there, host).latency)
            while not self.reaches(host, there):
                await trio.sleep(0.1 + self._random.random() * 0.1)
            listener = self._listeners.get(address)
            if listener is None:
                raise ConnectionRefusedError(111, "Connection refused")
            mine, its = Stream(self, host, there), Stream(self, there, host)
            mine.other, its.other = its, mine
            listener.arrived(its)
            return mine
        raise TimeoutError(110, f"no answer from {address[0]}:{address[1]}")

    def process_dies(self, host: str) -> None:
        """Its kernel resets what was open."""
        for stream in [*self.streams.get(host, ())]:
            stream.reset()

    def power_fails(self, host: str) -> None:
        """Nobody hears of it."""
        self.dark.add(host)
        for stream in [*self.streams.get(host, ())]:
            stream.vanish()

    def power_returns(self, host: str) -> None:
        self.dark.discard(host)
        for (sender, receiver), line in sorted(self._lines.items(), key=lambda item: item[0]):
            if receiver == host and line.queue and not line.is_cut:
                self.heal(sender, receiver)

    def break_connections(self, one: str, other: str) -> None:
        """With whatever is under way: a middlebox has forgotten them."""
        for stream in [*self.streams.get(one, ())]:
            if stream.there == other:
                stream.fail()
                stream.other.fail()


class Listener:
    """What ``Transport.run`` accepts from."""

    def __init__(self, network: Network, address: tuple[str, int]) -> None:
        self.address = address
        self.socket = self  # it is asked for its address, and closed, by its socket
        self._network = network
        self._waiting: deque[Stream] = deque()
        self._lot = trio.lowlevel.ParkingLot()

    def getsockname(self) -> tuple[str, int]:
        return self.address

    def close(self) -> None:
        self._network.unlisten(self)

    def arrived(self, stream: Stream) -> None:
        self._waiting.append(stream)
        self._lot.unpark()

    async def accept(self) -> Stream:
        while not self._waiting:
            await self._lot.park()
        await trio.lowlevel.checkpoint()
        return self._waiting.popleft()


class Stream(trio.abc.HalfCloseableStream):
    """One end of a connection."""

    other: Stream

    def __init__(self, network: Network, here: str, there: str) -> None:
        self.here, self.there = here, there
        self._network = network
        self._received = bytearray()
        self._eof = False
        self._failed = False
        self._closed = False
        self._unacknowledged: deque[tuple[float, int]] = deque()
        self._on_the_way = 0
        self._is_watched = False
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        network.streams.setdefault(here, {})[self] = None

    # --- trio's side ---

    async def send_all(self, data: Any) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        line = self._network.line(self.here, self.there)
        segment = int(min(max(line.bytes_per_second / 20, SEGMENT_BYTES_MIN), SEGMENT_BYTES))
        for start in range(0, len(view), segment):
            self._check()
            while self._on_the_way >= WINDOW_BYTES:
                await self._writable.park()
                self._check()
            self._send(bytes(view[start : start + segment]))
        self._check()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._closed and not self._failed:
            self._network.carry(self.here, self.there, 60, self.other._take_eof)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this end was closed")
            if self._received:
                size = max_bytes or len(self._received)
                data = bytes(self._received[:size])
                del self._received[:size]
                return data
            if self._failed:
                raise trio.BrokenResourceError("connection reset")
            if self._eof:
                return b""
            await self._readable.park()

    async def aclose(self) -> None:
        if not self._closed:
            if not self._failed:
                self._network.carry(self.here, self.there, 60, self.other._take_eof)
            self._leave()
        await trio.lowlevel.checkpoint()

    # --- the kernel's ---

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this end was closed")
        if self._failed or self._eof:
            raise trio.BrokenResourceError("connection reset")

    def _send(self, data: bytes) -> None:
        now = trio.current_time()
        self._unacknowledged.append((now, len(data)))
        self._on_the_way += len(data)
        if not self._is_watched:
            self._is_watched = True
            self._network.at(now + SILENCE_SECONDS, self._look_for_silence)
        network, other = self._network, self.other
        network.carry(self.here, self.there, len(data), lambda: other._take(data))

    def _take(self, data: bytes) -> None:
        if self._closed or self._failed:
            self._network.carry(self.here, self.there, 60, self.other.fail)  # a reset
            return
        self._received += data
        self._readable.unpark_all()
        back = self._network.line(self.here, self.there)
        other, size = self.other, len(data)
        if back.is_cut:
            self._network.carry(self.here, self.there, 60, lambda: other._acknowledged(size))
        else:  # not worth an event of its own
            other._acknowledged(size)

    def _take_eof(self) -> None:
        self._eof = True
        self._readable.unpark_all()
        self._writable.unpark_all()

    def _acknowledged(self, size: int) -> None:
        if self._unacknowledged:
            self._unacknowledged.popleft()
        self._on_the_way -= size
        self._writable.unpark_all()

    def _look_for_silence(self) -> None:
        self._is_watched = False
        if self._closed or self._failed or not self._unacknowledged:
            return
        oldest = self._unacknowledged[0][0]
        if trio.current_time() >= oldest + SILENCE_SECONDS:  # in these words: floats round
            self.fail()
        else:
            self._is_watched = True
            self._network.at(oldest + SILENCE_SECONDS, self._look_for_silence)

    def fail(self) -> None:
        """What is read next, when nothing is left, and what is sent, fails."""
        self._failed = True
        self._readable.unpark_all()
        self._writable.unpark_all()

    def reset(self) -> None:
        """The process that had this end is no more."""
        if not self._closed and not self._failed:
            self._network.carry(self.here, self.there, 60, self.other.fail)
        self.vanish()

    def vanish(self) -> None:
        self.fail()
        self._leave()

    def _leave(self) -> None:
        self._closed = True
        self._network.streams.get(self.here, {}).pop(self, None)
        self._readable.unpark_all()
        self._writable.unpark_all()
