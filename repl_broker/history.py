"""Messages' data, by where it is in the log: a cache over the store.

What was just written or read is in memory, because readers that fall a little
behind ask for it at once. A disk that gives back something else than was
written is not trusted any more: ``damaged`` ends the node.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import trio

from repl_broker.command import Command, Publish
from repl_broker.disk import Disk
from repl_broker.errors import StorageError
from repl_broker.message import Message
from repl_broker.state import BrokerState, Location
from repl_broker.storage import REMEDY
from repl_broker.wire import decode_messages

__all__ = ["History"]

CACHE_BYTES_MAX: Final = 32 << 20  # of the entries that were written or read last, for readers
CACHE_OVERHEAD_BYTES: Final = 64  # of a message in the cache, beside its data
LOG_READERS_MAX: Final = 4


class History:
    """Reads what the applied log holds. ``state`` gives the newest state."""

    def __init__(
        self,
        disk: Disk,
        state: Callable[[], BrokerState],
    ) -> None:
        # Few at a time: a herd of streams that catch up must not hold up publishing.
        self.readers = trio.CapacityLimiter(LOG_READERS_MAX)
        self._disk = disk
        self._state = state
        self._cache: OrderedDict[int, list[bytes]] = OrderedDict()
        self._cache_bytes = 0
        self._damaged = trio.Event()
        self._damage: StorageError | None = None

    async def end_if_damaged(self) -> None:
        """Wait for damage. Raises the StorageError that tells of it."""
        await self._damaged.wait()
        assert self._damage is not None
        raise self._damage

    async def fetch(self, locations: Sequence[Location]) -> list[Message]:
        """The messages at ``locations``, in that order, up to the first that is gone by now.

        A message goes when retention trims it, so the state knows of it then.
        Raises StorageError for one that should be there and is not.
        """
        await trio.lowlevel.checkpoint()
        while True:
            generation = self._disk.generation
            messages = await self._look(locations)
            if len(messages) == len(locations) or not self._retains(locations[len(messages)]):
                return messages
            if await self._disk.settled() == generation:
                raise self._damaged_at(locations[len(messages)])
            # A peer's snapshot took the place of the log meanwhile.

    async def _look(self, locations: Sequence[Location]) -> list[Message]:
        wanted = {at.entry for at in locations}
        found = {entry: self._cache[entry] for entry in wanted & self._cache.keys()}
        for entry in found:
            self._cache.move_to_end(entry)
        if missing := sorted(wanted - found.keys()):
            for entry, data in (await self._read(missing)).items():
                # Kept, because a reader takes a large entry in many small pieces.
                found[entry] = decode_messages(data)
                self._keep(entry, found[entry])
        messages = []
        for at in locations:
            data = found[at.entry][at.ordinal] if at.entry in found else b""
            if not data:
                break
            messages.append(Message(at.seq, at.topic, at.time_ms, data))
        return messages

    def remember(self, index: int, commands: Sequence[Command]) -> None:
        """The entry at ``index`` was applied: its messages are the next that are asked for."""
        messages = [data for c in commands if isinstance(c, Publish) for data in c.data]
        if messages:
            self._keep(index, messages)

    async def _read(self, indexes: list[int]) -> dict[int, bytes]:
        try:
            return await self._disk.read(indexes)
        except StorageError as error:
            self._damage_found(error)
            raise

    def _retains(self, at: Location) -> bool:
        topic = self._state().topics.get(at.topic)
        return topic is not None and topic.retains(at.seq)

    def _damaged_at(self, at: Location) -> StorageError:
        """Looking again would find the same for ever."""
        error = StorageError(
            f"the store is damaged: message {at.seq} of {at.topic!r} should be in entry "
            f"{at.entry}, and is not; {REMEDY}"
        )
        self._damage_found(error)
        return error

    def _damage_found(self, error: StorageError) -> None:
        self._damage = error
        self._damaged.set()

    def _keep(self, index: int, messages: list[bytes]) -> None:
        self._cache_bytes += _cached_bytes(messages) - _cached_bytes(self._cache.pop(index, []))
        self._cache[index] = messages
        while self._cache_bytes > CACHE_BYTES_MAX and len(self._cache) > 1:
            self._cache_bytes -= _cached_bytes(self._cache.popitem(last=False)[1])


def _cached_bytes(messages: Sequence[bytes]) -> int:
    return sum(map(len, messages)) + CACHE_OVERHEAD_BYTES * len(messages)
