"""What a service manager and its service tell each other: sd_notify and passed sockets.

Both are a few lines of text in environment variables and in datagrams, and belong
to no library: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Whoever sets
the variables is "the manager", systemd or not. Without them nothing here does
anything. They are taken out of the environment, so that no child of the node
speaks for it.

    Manager        where to tell, and how often it wants to hear
    PassedSocket   a socket that listens already
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import stat
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

from repl_broker.config import Address
from repl_broker.errors import ConfigError

__all__ = ["Manager", "PassedSocket", "clean", "passed_sockets", "widest"]

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START
DESCRIPTORS_MAX: Final = 64  # that are looked at; a unit passes one or two
STATUS_CHARACTERS_MAX: Final = 500
MICROSECONDS: Final = 1_000_000


class Manager:
    """Whoever started the node and wants to hear of it.

    ``watchdog_seconds`` is how long it waits for a sign of life before it ends the
    node; None if it does not wait. ``tell`` never raises: a manager that cannot be
    reached is no reason to stop serving.
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds if address else None
        self._socket: socket.socket | None = None
        self._failed = False
        if address:
            self._connect(address)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Manager:
        """The one that NOTIFY_SOCKET names, if any."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        process = environ.pop("WATCHDOG_PID", "")
        is_ours = not process or process == str(os.getpid())
        if is_ours and microseconds.isascii() and microseconds.isdigit() and int(microseconds):
            return cls(address, int(microseconds) / MICROSECONDS)
        return cls(address)

    @property
    def listens(self) -> bool:
        return self._socket is not None

    def _connect(self, address: str) -> None:
        if address[0] not in "/@":
            self._note(f"the address {address!r} is neither a path nor an abstract name")
            return
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # not inherited, by PEP 446
        opened.setblocking(False)
        try:
            # Connected once: a path stays valid when the sandbox changes what is below it.
            opened.connect("\0" + address[1:] if address[0] == "@" else address)
        except (OSError, ValueError) as error:
            opened.close()
            self._note(f"{address!r}: {error}")
        else:
            self._socket = opened

    def tell(self, *lines: str) -> bool:
        """Send ``NAME=value`` lines as one datagram.

        False if the manager is too busy to take it, and may take it a moment later.
        """
        if self._socket is None:
            return True
        try:
            self._socket.send("\n".join(map(clean, lines)).encode())
        except BlockingIOError:
            return False
        except OSError as error:
            self._note(str(error))
        return True

    def tell_reloading(self) -> bool:
        """RELOADING=1, with the time that systemd's notify-reload compares."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self.tell("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading the configuration")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _note(self, why: str) -> None:
        if not self._failed:
            log.warning("cannot tell the service manager error=%r", why)
        self._failed = True


def clean(line: str) -> str:
    """One line, of bounded length: what it quotes may not add others."""
    text = "".join(c if c.isprintable() else " " for c in line)
    return text[:STATUS_CHARACTERS_MAX]


@dataclass(frozen=True, slots=True)
class PassedSocket:
    """A listening TCP socket that the node was started with. Who takes it closes it."""

    socket: socket.socket
    address: Address


def passed_sockets(environ: MutableMapping[str, str]) -> tuple[PassedSocket, ...]:
    """The sockets that LISTEN_FDS counts, all of them for HTTP; none if it is not set.

    Raises ConfigError for anything that is no listening TCP socket, and for one
    that is named for something else than HTTP.
    """
    count_text = environ.pop("LISTEN_FDS", "")
    process = environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if not count_text or process != str(os.getpid()):  # meant for another process
        return ()
    if not (count_text.isascii() and count_text.isdigit()) or int(count_text) > DESCRIPTORS_MAX:
        raise ConfigError(
            f"LISTEN_FDS must be a number of descriptors, 0 to {DESCRIPTORS_MAX}, "
            f"found {count_text[:40]!r}"
        )
    count = int(count_text)
    names += [""] * (count - len(names))
    return tuple(_passed(FIRST_DESCRIPTOR + n, names[n]) for n in range(count))


def widest(sockets: Sequence[PassedSocket]) -> Address:
    """Of their addresses the one that most can reach: not this machine's own, if there is one."""
    addresses = [each.address for each in sockets]
    return next((one for one in addresses if not is_loopback(one.host)), addresses[0])


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _passed(descriptor: int, name: str) -> PassedSocket:
    what = f"descriptor {descriptor}" + (f" ({clean(name)})" if name else "")
    if name == "raft":
        raise ConfigError(
            f"{what}: only HTTP can be passed as a socket; set [raft] bind, and take it out of "
            "the .socket unit"
        )
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ConfigError(_unfit(what, "it is no socket"))
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(_unfit(what, error.strerror or str(error))) from None
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        kind = f"{found.family.name}, {found.type.name}"
        found.detach()
        raise ConfigError(_unfit(what, f"it is of {kind}"))
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.detach()
        raise ConfigError(_unfit(what, "it does not listen (Accept=yes in the .socket unit?)"))
    found.set_inheritable(False)
    host, port = found.getsockname()[:2]
    return PassedSocket(found, Address(host, port))


def _unfit(what: str, why: str) -> str:
    return (
        f"{what} was passed for HTTP (LISTEN_FDS), and {why}; wanted a listening TCP socket, as "
        "ListenStream=127.0.0.1:4080 makes one"
    )
