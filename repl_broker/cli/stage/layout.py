"""Who listens where, and the folder of a demo with several nodes.

The ports follow from the first one, so that a demo that is started again is
where it was:

    HTTP      4080, 4180, 4280 …
    Raft      4081, 4181, 4281 …
    control   4089

The folder holds a file, a log and a data directory for each node, the cluster's
secret, and ``demo.json``, which says what the folder was made for.
"""

from __future__ import annotations

import errno
import json
import random
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from repl_broker.config import Address
from repl_broker.errors import ConfigError
from repl_broker.files import make_folder, write_file
from repl_broker.storage import STORE_NAME

__all__ = ["RECORD", "Layout", "Place", "check_single", "lay_out"]

RECORD: Final = "demo.json"
HOSTS: Final = ("127.0.0.1", "localhost")
STEP: Final = 100  # from one node's ports to the next one's
CONTROL: Final = 9  # from the first port
PORT_MAX: Final = 65535

# A free port is looked for below those that the system hands out to clients: a client that
# connects to a dead node there could be given the very port, and keep the node from coming back.
FREE_PORTS: Final = (10_000, 32_000)
TRIES_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Place:
    """Where one node is."""

    name: str
    http: Address
    raft: Address

    @property
    def url(self) -> str:
        return f"http://{self.http}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where all of a demo is."""

    folder: Path
    places: tuple[Place, ...]
    control: Address

    @property
    def origins(self) -> list[str]:
        """The web origins of the demo's pages, by both names of this machine."""
        return [f"http://{host}:{place.http.port}" for place in self.places for host in HOSTS]

    def file(self, place: Place) -> Path:
        return self.folder / f"{place.name}.toml"

    def log(self, place: Place) -> Path:
        return self.folder / f"{place.name}.log"

    def check_ports(self) -> None:
        """Raises ConfigError that names the first port that is taken."""
        for what, address in self._listeners():
            if (error := _refusal(address)) is not None:
                raise ConfigError(
                    f"cannot listen on {address} ({what}): {error.strerror}; "
                    "give another port with --http, or port 0 for free ones"
                )

    def _listeners(self) -> Iterator[tuple[str, Address]]:
        for place in self.places:
            yield f"{place.name}, HTTP", place.http
            yield f"{place.name}, Raft", place.raft
        yield "the demo's control", self.control

    def write(self, log_level: str) -> None:
        """Make the folder's files; the secret only if it is not there."""
        try:
            make_folder(self.folder)
            secret = self.folder / "secret"
            if not secret.exists():
                write_file(secret, secrets.token_hex(32) + "\n")
            for place in self.places:
                write_file(self.file(place), self._toml(place, log_level))
            ports = [place.http.port for place in self.places]
            write_file(self.folder / RECORD, json.dumps({"http_ports": ports}) + "\n")
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.folder}: {error.strerror}; give --data-dir"
            ) from error

    def _toml(self, place: Place, log_level: str) -> str:
        # A JSON string is a TOML string, too.
        join = [] if place is self.places[0] else [str(other.raft) for other in self.places]
        text = json.dumps
        return f"""\
# Made by repl-broker demo, anew at each start.

[node]
id = {text(place.name)}
data_dir = {text(str(self.folder.absolute() / place.name))}

[http]
bind = {text(str(place.http))}
cors_origins = {text(self.origins)} # a page of one node goes on at another

[raft]
bind = {text(str(place.raft))}

[cluster]
name = "demo"
join = {text([address for address in join if address != str(place.raft)])}
secret_file = {text(str(self.folder.absolute() / "secret"))}

[log]
level = {text(log_level)}
"""


def lay_out(folder: Path, count: int, http: Address) -> Layout:
    """The layout of ``count`` nodes, of which the first listens for HTTP at ``http``.

    Port 0 takes free ones; a folder that is there keeps those that it has. Raises
    ConfigError: not loopback, not enough ports, a folder that was made for something else.
    """
    if http.host not in HOSTS:
        raise ConfigError(
            f"a demo of several nodes is for this machine alone: --http wants the host 127.0.0.1 "
            f"or localhost, found {http.host}; 'serve' starts nodes for others"
        )
    ports = _recorded(folder)
    if ports is None:
        _check_unused(folder)
        return _at(folder, count, http, http.port or _free_port(folder, count, http))
    if len(ports) != count:
        raise ConfigError(
            f"{folder} holds a demo of {len(ports)} nodes; give --nodes {len(ports)}, "
            "or another --data-dir"
        )
    if http.port not in (0, ports[0]):
        raise ConfigError(
            f"the demo in {folder} is at port {ports[0]}, and its nodes know each other there; "
            f"give --http {Address(http.host, ports[0])}, or another --data-dir"
        )
    return _at(folder, count, http, ports[0])


def check_single(folder: Path) -> None:
    """Raises ConfigError if the folder is that of a demo with several nodes."""
    ports = _recorded(folder)
    if ports is not None:
        raise ConfigError(
            f"{folder} holds a demo of {len(ports)} nodes; give --nodes {len(ports)}, "
            "or another --data-dir"
        )


def _at(folder: Path, count: int, http: Address, port: int) -> Layout:
    last = port + STEP * (count - 1) + 1
    if max(last, port + CONTROL) > PORT_MAX:
        raise ConfigError(
            f"{count} nodes from port {port} on would need ports up to {last}, and {PORT_MAX} is "
            "the last; give a lower one with --http"
        )
    places = tuple(
        Place(
            f"n{number + 1}",
            Address(http.host, port + STEP * number),
            Address(HOSTS[0], port + STEP * number + 1),
        )
        for number in range(count)
    )
    return Layout(folder, places, Address(HOSTS[0], port + CONTROL))


def _free_port(folder: Path, count: int, http: Address) -> int:
    first, last = FREE_PORTS
    for _ in range(TRIES_MAX):
        port = random.randrange(first, last - STEP * count)  # noqa: S311  # nosec B311  # no secret
        layout = _at(folder, count, http, port)
        if not any(_refusal(address) for _, address in layout._listeners()):
            return port
    raise ConfigError(f"found no free ports from {first} to {last}; give one with --http")


def _refusal(address: Address) -> OSError | None:
    """Why nobody can listen there; None if one can."""
    try:
        with socket.socket() as probe:
            # As the nodes do: what the last run has left behind (TIME_WAIT) does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
            probe.listen()
    except OSError as error:
        return error
    return None


def _recorded(folder: Path) -> list[int] | None:
    """The HTTP ports of the demo that the folder was made for, or None if it was not."""
    path = folder / RECORD
    try:
        ports = json.loads(path.read_text())["http_ports"]
        if isinstance(ports, list) and ports and all(isinstance(port, int) for port in ports):
            return ports
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise ConfigError(f"{folder} is no folder; give another --data-dir") from error
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"{path} is damaged; delete {folder}, or give another --data-dir")


def _check_unused(folder: Path) -> None:
    """A folder without a record is a new one, or somebody else's."""
    if (folder / STORE_NAME).exists():
        raise ConfigError(
            f"{folder} holds the store of a single node; give --nodes 1, or another --data-dir"
        )
    try:
        used = folder.exists() and any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot use {folder}: {error.strerror}; give --data-dir") from error
    if used:
        raise ConfigError(
            f"{folder} is not empty, and no demo of several nodes has made it; "
            "give another --data-dir"
        )
