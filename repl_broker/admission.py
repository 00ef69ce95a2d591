"""Who is let in, and how often: rates of a client, publishes under way, memory for their bodies.

Every door asks here before it asks the broker for more. What is refused costs
nothing but the answer, and the answer says when to come back: not at the same
moment for all, or they would come back together.

A client is a text: its address (``address_key``), or whatever names it better.
"""

from __future__ import annotations

import ipaddress
import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, NamedTuple

import trio

from repl_broker.config import LimitsConfig
from repl_broker.errors import RequestError

__all__ = ["Admission", "AdmissionStatistics", "Bodies", "Rate", "address_key"]
__all__ += ["client_of"]

CLIENTS_MAX: Final = 65_536  # remembered by a rate; whoever was idle for longest is forgotten
IPV6_PREFIX: Final = 64  # bits; whoever has one address there has all of them
SPREAD_SECONDS: Final = 3  # of those who are told to come back
RETRY_SECONDS: Final = (1, 3)  # under overload


@lru_cache(4096)
def address_key(host: str) -> str:
    """What clients at this address have in common: the address, or the /64 network of IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))


@lru_cache(maxsize=4096)  # a connection asks with each of its publishes
def client_of(peer: str) -> str:
    """The client of a connection from ``peer``, which is ``HOST:PORT`` or ``[IPV6]:PORT``."""
    return address_key(peer.rpartition(":")[0].strip("[]"))


class Rate:
    """A number a second of each client, and a burst after a pause.

    For each client one number is kept: when its next one would be due if it had
    come evenly (the generic cell rate algorithm, ITU-T I.371). That may lie ahead
    of now by a burst.
    """

    def __init__(
        self,
        per_second: int,
        burst: int,
        *,
        clock: Callable[[], float] = trio.current_time,
        clients_max: int = CLIENTS_MAX,
    ) -> None:
        self._due: OrderedDict[str, float] = OrderedDict()  # the one that came last at the end
        self._clock = clock
        self._clients_max = clients_max
        self.set(per_second, burst)

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._due)

    def set(self, per_second: int, burst: int) -> None:
        """``per_second`` 0: as many as they like."""
        self.per_second = per_second
        self._interval = 1 / per_second if per_second else 0.0
        self._ahead_max = (burst - 1) * self._interval
        if not per_second:
            self._due.clear()

    def take(self, client: str) -> float:
        """0 if one more of ``client`` is taken now; else the seconds until one would be."""
        if not self._interval:
            return 0.0
        now = self._clock()
        due = max(self._due.get(client, now), now)
        wait = due - now - self._ahead_max
        if wait > 1e-9:  # of what adding up intervals leaves
            return wait
        self._due[client] = due + self._interval
        self._due.move_to_end(client)
        if len(self._due) > self._clients_max:
            self._due.popitem(last=False)
        return 0.0


class AdmissionStatistics(NamedTuple):
    rate_limited: int
    overloaded: int
    publishes_under_way: int
    requests_bytes: int


class Admission:
    """The limits of a node on what may come in. One for all of its doors."""

    def __init__(
        self,
        limits: LimitsConfig,
        *,
        clock: Callable[[], float] = trio.current_time,
        randomness: random.Random | None = None,
    ) -> None:
        self._publishes = Rate(limits.publishes_per_second, limits.publish_burst, clock=clock)
        self._subscribes = Rate(limits.subscribes_per_second, limits.subscribe_burst, clock=clock)
        self._reads = Rate(limits.reads_per_second, limits.read_burst, clock=clock)
        self._random = randomness or random.Random()  # noqa: S311  of waits  # nosec B311  # jitter
        self._limits = limits
        self._under_way = 0
        self._bytes = 0
        self._shares = _Shares(Counter(), Counter())
        self._rate_limited = 0
        self._overloaded = 0

    def reload(self, limits: LimitsConfig) -> None:
        """Hold clients to other limits from now on; what is under way stays."""
        self._publishes.set(limits.publishes_per_second, limits.publish_burst)
        self._subscribes.set(limits.subscribes_per_second, limits.subscribe_burst)
        self._reads.set(limits.reads_per_second, limits.read_burst)
        self._limits = limits

    def statistics(self) -> AdmissionStatistics:
        return AdmissionStatistics(
            self._rate_limited, self._overloaded, self._under_way, self._bytes
        )

    def check_publish(self, client: str) -> None:
        """Raises ``rate_limited``."""
        self._check(self._publishes, client, "publishes_per_second", "publish requests")

    def check_subscribe(self, client: str) -> None:
        """Raises ``rate_limited``."""
        self._check(self._subscribes, client, "subscribes_per_second", "new event streams")

    def check_read(self, client: str) -> None:
        """Raises ``rate_limited``."""
        self._check(self._reads, client, "reads_per_second", "requests for history and topics")

    def _check(self, rate: Rate, client: str, key: str, what: str) -> None:
        if not (wait := rate.take(client)):
            return
        self._rate_limited += 1
        raise RequestError(
            "rate_limited",
            f"One client's limit of {what} is {rate.per_second} a second ([limits] {key}). Slow "
            "down, and come back after Retry-After.",
            retry_after=self._spread(wait),
        )

    def _spread(self, wait: float) -> int:
        """Whole seconds, at least ``wait``, and not the same for all: as long again at most, or
        SPREAD_SECONDS."""
        return math.ceil(wait + self._random.uniform(0, max(wait, SPREAD_SECONDS)))

    def begin_publish(self, share: str) -> None:
        """A publish is under way, until ``end_publish``. Raises ``overloaded`` if too many are.

        ``share`` is the client in whose share it counts; "" counts in nobody's.
        """
        under_way_max = self._limits.publishes_under_way
        if self._under_way >= under_way_max:
            raise self.overloaded(
                f"{self._under_way} publishes wait for the disk, which is the most "
                "([limits] publishes_under_way)."
            )
        if share and self._shares.publishes[share] >= _share(under_way_max):
            raise self.overloaded(
                f"{self._shares.publishes[share]} publishes of this client wait for the disk, "
                "which is the most that one client may have: half of [limits] publishes_under_way."
            )
        self._under_way += 1
        if share:
            self._shares.publishes[share] += 1

    def end_publish(self, share: str) -> None:
        self._under_way -= 1
        if share:
            _give_back(self._shares.publishes, share, 1)

    def overloaded(self, detail: str) -> RequestError:
        """To be raised; it is counted."""
        self._overloaded += 1
        return RequestError(
            "overloaded",
            f"{detail} Nothing was done; try again later, or another node.",
            retry_after=self._random.randint(*RETRY_SECONDS),
        )

    def hold(self, size: int, share: str) -> None:
        """Take room for ``size`` bytes more of bodies. Raises ``overloaded`` if there is none.

        ``share`` is the client in whose share they count; "" counts in nobody's.
        """
        bytes_max = self._limits.requests_bytes
        if self._bytes + size > bytes_max:
            raise self.overloaded(
                f"The bodies of publishes under way take {self._bytes} bytes, and with {size} "
                f"more there would be too many ([limits] requests_bytes: {bytes_max})."
            )
        held = self._shares.bytes[share] if share else 0
        if share and held + size > max(_share(bytes_max), self._limits.batch_bytes):
            raise self.overloaded(
                f"The bodies of this client's publishes take {held} bytes, and with {size} more it "
                "would have more than one client may: half of [limits] requests_bytes "
                f"({bytes_max})."
            )
        self._bytes += size
        if share and size:
            self._shares.bytes[share] += size

    def release(self, size: int, share: str) -> None:
        self._bytes -= size
        if share and size:
            _give_back(self._shares.bytes, share, size)

    @contextmanager
    def bodies(self, share: str) -> Iterator[Bodies]:
        """Room for one request's body, as it comes; it is given back at the end."""
        held = Bodies(self, share)
        try:
            yield held
        finally:
            self.release(held.size, share)


class _Shares(NamedTuple):
    """Of what is under way, how much each client has; whoever has nothing is not in it."""

    publishes: Counter[str]
    bytes: Counter[str]


def _share(most: int) -> int:
    """What one client may have of what all need: the rest is for the others."""
    return max(1, most // 2)


def _give_back(counts: Counter[str], share: str, amount: int) -> None:
    counts[share] -= amount
    if not counts[share]:
        del counts[share]


class Bodies:
    """What one request holds."""

    __slots__ = ("_admission", "_share", "size")

    def __init__(self, admission: Admission, share: str) -> None:
        self._admission = admission
        self._share = share
        self.size = 0

    def grow(self, size: int) -> None:
        """Have room for ``size`` bytes in all. Raises ``overloaded``."""
        if size > self.size:
            self._admission.hold(size - self.size, self._share)
            self.size = size
