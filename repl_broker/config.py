"""The configuration: one value, from a TOML file, the environment and the command line.

Options beat the environment beats the file beats the defaults. What is known
of a key (its unit, range, default, meaning and consequence) is said once, on its
field below, and everything else is made from that: reading and checking here,
the error messages, ``cluster.toml.example`` and the reference page
(``python -m repl_broker.cli.reference``).

Loading reports every problem that it finds, one line each, not only the first.
A value made in code (``LimitsConfig(message_bytes=10)``) is not checked again:
tests may leave the ranges that operators are held to.
"""

# ruff: noqa: RUF009  (key() makes a field; its default is immutable)

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import unquote, urlsplit

from repl_broker.errors import ConfigError
from repl_broker.files import exposure, openness
from repl_broker.masking import without_login

__all__ = [
    "Address",
    "AnonymousConfig",
    "AuthConfig",
    "ClientShares",
    "ClusterConfig",
    "Config",
    "HttpConfig",
    "InvalidConfigError",
    "Key",
    "LimitsConfig",
    "LogConfig",
    "NodeConfig",
    "RaftConfig",
    "RetentionConfig",
    "TopicsConfig",
    "TracingConfig",
    "client_shares",
    "exposed",
    "keys",
    "load",
    "replace_values",
    "sections",
    "values_of",
]

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB

BASE_PATH_MAX: Final = 256  # characters of a path below which a proxy shows the node
MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

ENVIRONMENT_PREFIX: Final = "REPL_BROKER_"
LIKENESS: Final = 0.6  # of two names, by difflib, of which one may be a slip for the other

# Many times what all keys take. A device gives bytes without end, and tomllib's time can grow with
# the square of the size: 14 s for the worst file of this size.
FILE_BYTES_MAX: Final = 64 * KiB

# The election timeout must leave room for several lost heartbeats; etcd asks for
# the same factor. Below it, one slow disk write is taken for a dead leader.
HEARTBEATS_PER_ELECTION_TIMEOUT: Final = 5

# Or a few readers of the largest messages would end each other's streams.
STREAMS_PER_MESSAGE: Final = 4


class InvalidConfigError(ConfigError):
    """The configuration has problems; ``problems`` holds them all, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(one_line(problem) for problem in problems)
        more = len(self.problems) - 1
        super().__init__(self.problems[0] + (f" (and {more} more)" if more else ""))


def one_line(text: str) -> str:
    """Quoted keys and paths may hold any character; a problem is one line all the same."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class RefusedError(ValueError):
    """A single value that a kind does not take; the message has no key in it yet."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port: where to listen, or where a peer is."""

    host: str
    port: int  # 0 to 65535; 0 lets the system choose, for listening only

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT`` or ``[IPV6]:PORT``. Raises RefusedError."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
        if match is None:
            raise RefusedError(
                f"wanted HOST:PORT (such as 127.0.0.1:4080), found {text!r}{address_hint(text)}"
            )
        port = int(match[3])
        if port > 65535:
            raise RefusedError(f"the port must be 0 to 65535, found {port}")
        return cls(match[1] or match[2], port)


def address_hint(text: str) -> str:
    """How to write what was probably meant."""
    if "://" in text:
        return "; leave out the scheme"
    host, _, port = text.rpartition(":")
    for address, example in ((text, f"[{text}]:4080"), (host, f"[{host}]:{port}")):
        if ":" in address and is_ip_address(address):
            return f"; an IPv6 address stands in brackets: {example}"
    if ":" not in text or text.endswith("]"):
        return f"; the port is missing: {text}:4080" if text else ""
    return f"; the host is missing: 127.0.0.1:{port}" if not host else ""


def is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# Kinds of value: what a key takes, and how a string from the environment or the
# command line is read into it.


class Kind(Protocol):
    """What a key takes. ``wanted`` completes the phrase "wanted …"."""

    @property
    def wanted(self) -> str: ...

    def read(self, found: object) -> object:
        """The value, from what TOML gave. Raises RefusedError."""

    def read_text(self, text: str) -> object:
        """The value, from the environment or the command line. Raises RefusedError."""


def describe(found: object) -> str:
    """A value as TOML knows it, for "wanted …, found …"."""
    if isinstance(found, bool):
        return f"the boolean {str(found).lower()}"
    for kind, name in ((int, "integer"), (float, "float"), (str, "string")):
        if isinstance(found, kind):
            shown = repr(found) if not isinstance(found, str) else f'"{without_login(found)}"'
            return f"the {name} {shown if len(shown) <= 80 else shown[:77] + '…'}"
    if isinstance(found, dict):
        return "a table"
    if isinstance(found, list):
        return "an array"
    return f"the date or time {found}"


def wrong_type(kind: Kind, found: object) -> RefusedError:
    return RefusedError(f"wanted {kind.wanted}, found {describe(found)}")


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    wanted: str = "true or false"

    def read(self, found: object) -> bool:
        if not isinstance(found, bool):
            raise wrong_type(self, found)
        return found

    def read_text(self, text: str) -> bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise wrong_type(self, text)


@dataclass(frozen=True, slots=True)
class Text:
    """A string that a check accepts."""

    wanted: str
    accepts: Callable[[str], bool]

    def read(self, found: object) -> str:
        if not isinstance(found, str) or not self.accepts(found):
            raise wrong_type(self, found)
        return found

    def read_text(self, text: str) -> str:
        return self.read(text)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def wanted(self) -> str:
        quoted = [f'"{word}"' for word in self.words]
        return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))

    def read(self, found: object) -> str:
        if not isinstance(found, str) or found not in self.words:
            raise wrong_type(self, found)
        return found

    def read_text(self, text: str) -> str:
        return self.read(text)


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path; a relative one starts at the working directory of the process."""

    wanted: str = "a path, as a string"

    def read(self, found: object) -> Path:
        if not isinstance(found, str) or not found or "\0" in found:
            raise wrong_type(self, found)
        return Path(found)

    def read_text(self, text: str) -> Path:
        return self.read(text)


@dataclass(frozen=True, slots=True)
class HostPort:
    """An Address."""

    wanted: str = "HOST:PORT, as a string"

    def read(self, found: object) -> Address:
        if not isinstance(found, str):
            raise wrong_type(self, found)
        return Address.parse(found)

    def read_text(self, text: str) -> Address:
        return self.read(text)


@dataclass(frozen=True, slots=True)
class Network:
    """An IP address, or a network of them, as a string."""

    wanted: str = 'an IP address, or a network such as "10.0.0.8/29"'

    def read(self, found: object) -> str:
        if not isinstance(found, str):
            raise wrong_type(self, found)
        try:
            network = ipaddress.ip_network(found)
        except ValueError:
            raise self.refusal(found) from None
        if isinstance(network, ipaddress.IPv6Network) and (plain := as_ipv4(network)):
            raise RefusedError(
                f'"{found}" is IPv4, written as IPv6, which no connection is compared with: write '
                f'"{plain}"'
            )
        return found

    def read_text(self, text: str) -> str:
        return self.read(text)

    def refusal(self, text: str) -> RefusedError:
        """How to write what was probably meant."""
        try:
            meant = ipaddress.ip_interface(text)
        except ValueError:
            return wrong_type(self, text)
        return RefusedError(
            f'"{text}" is an address in a network, and no network: it has bits of the host set; '
            f'write "{meant.network}" for all of the network, or "{meant.ip}" for this address '
            "alone"
        )


def as_ipv4(network: ipaddress.IPv6Network) -> str:
    """Of ``::ffff:0:0/96``: the IPv4 address or network that it is; of all others ""."""
    first = network.network_address.ipv4_mapped
    if first is None or network.prefixlen < 96:
        return ""
    plain = ipaddress.ip_network((int(first), network.prefixlen - 96))
    return str(plain.network_address if plain.num_addresses == 1 else plain)


@dataclass(frozen=True, slots=True)
class ListOf:
    """An array of one kind; in the environment, separated by commas."""

    of: Kind

    @property
    def wanted(self) -> str:
        return f"an array, each {self.of.wanted}"

    def read(self, found: object) -> tuple[object, ...]:
        if not isinstance(found, list | tuple):
            raise wrong_type(self, found)
        return tuple(self.of.read(item) for item in found)

    def read_text(self, text: str) -> tuple[object, ...]:
        return tuple(self.of.read_text(item.strip()) for item in text.split(",") if item.strip())


UNITS: Final[dict[str, dict[str, Decimal]]] = {
    "bytes": {
        "B": Decimal(1),
        "kB": Decimal(10**3),
        "MB": Decimal(10**6),
        "GB": Decimal(10**9),
        "KiB": Decimal(KiB),
        "MiB": Decimal(MiB),
        "GiB": Decimal(GiB),
    },
    "seconds": {
        "ms": Decimal("0.001"),
        "s": Decimal(1),
        "m": Decimal(MINUTE),
        "h": Decimal(HOUR),
        "d": Decimal(DAY),
    },
    "milliseconds": {
        "ms": Decimal(1),
        "s": Decimal(1000),
        "m": Decimal(1000 * MINUTE),
        "h": Decimal(1000 * HOUR),
        "d": Decimal(1000 * DAY),
    },
}


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer in a unit and a range, both ends included.

    Bytes and times may also be a string with a unit, ``"64 MiB"`` or ``"24h"``,
    if that comes to a whole number of the key's own unit.
    """

    unit: str  # "bytes", "seconds", "milliseconds"; anything else is a count
    minimum: int
    maximum: int

    @property
    def wanted(self) -> str:
        if self.unit not in UNITS:
            return f"an integer ({self.unit})"
        example = '"64 MiB"' if self.unit == "bytes" else '"90s"'
        return f"an integer ({self.unit}) or a string with a unit (such as {example})"

    def read(self, found: object) -> int:
        if isinstance(found, str) and self.unit in UNITS:
            return self.checked(self.with_unit(found))
        if isinstance(found, bool) or not isinstance(found, int):
            raise wrong_type(self, found)
        return self.checked(found)

    def read_text(self, text: str) -> int:
        if re.fullmatch(r"-?[0-9][0-9_]{0,30}", text):
            return self.checked(int(text.replace("_", "")))
        return self.read(text)

    def checked(self, value: int) -> int:
        if not self.minimum <= value <= self.maximum:
            raise RefusedError(
                f"must be {self.minimum:,} to {self.maximum:,} {self.unit}, found {value:,}"
            )
        return value

    def with_unit(self, text: str) -> int:
        units = UNITS[self.unit]
        match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", text.strip())
        if match is None:
            raise wrong_type(self, text)
        if match[2] not in units:
            known = ", ".join(units)
            raise RefusedError(f'unknown unit "{match[2]}" in "{text}"; known units: {known}')
        value = Decimal(match[1]) * units[match[2]]
        if value != int(value):
            raise RefusedError(f'"{text}" is not a whole number of {self.unit}')
        return int(value)


def is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        url.port  # noqa: B018  (raises ValueError for a bad port)
    except ValueError:
        return False
    return (
        url.scheme in ("http", "https")
        and bool(url.hostname)
        and not (url.query or url.fragment or url.username)
        and text.isascii()
        and text.isprintable()
        and " " not in text
    )


def is_origin(text: str) -> bool:
    """As browsers write them; another spelling would never be equal to what they send."""
    if text == "*":
        return True
    if not is_http_url(text) or text != text.lower():
        return False
    url = urlsplit(text)
    default_port = {"http": 80, "https": 443}[url.scheme]
    return text == f"{url.scheme}://{url.netloc}" and url.port != default_port and text[-1] != ":"


_HOST = re.compile(
    r"(\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._~-]{1,32})?\]"
    r"|(?:[A-Za-z0-9_~-]{1,63}\.){0,127}[A-Za-z0-9_~-]{1,63}\.?)"
    r"(?::([0-9]{0,5}))?"
)


def read_host(text: str) -> tuple[str, int | None] | None:
    """Name, in lower case, and port of HOST or HOST:PORT, as a ``Host`` field or URL has them.

    An IPv6 address keeps its brackets. None for what is none: a list, a user's name before an
    ``@``, other characters than DNS and IP addresses have, a port beyond 65535.
    """
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    name, port = match[1].lower(), int(match[2]) if match[2] else None
    if port is not None and port > 65535:
        return None
    if name.startswith("["):
        try:
            name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return None
    return name, port


def is_host(text: str) -> bool:
    return text == "*" or read_host(text) is not None


def is_filter(text: str) -> bool:
    from repl_broker.message import is_filter  # late: it loads what --help has no use for

    return is_filter(text)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may mean any address


def is_base_path(text: str) -> bool:
    """Whether it can stand before the paths of the node: "" or as in ``/a/b``, and no longer."""
    steps = text.split("/")
    return (
        len(text) <= BASE_PATH_MAX
        and re.fullmatch(r"(?:/(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+)*", text) is not None
        and not {".", ".."} & {unquote(step) for step in steps}
        and "/" not in "".join(map(unquote, steps))
    )


NAME: Final = Text(
    "1 to 64 letters, digits, dots, _ or -",
    lambda text: re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text) is not None,
)
NETWORK: Final = Network()
URL: Final = Text("an http:// or https:// URL", is_http_url)
ORIGIN: Final = Text(
    '"*" or an origin as browsers send it: such as "https://app.example", in lower case, without '
    "a path and without the default port",
    is_origin,
)
HOST: Final = Text('a host, such as "broker.example" or "broker.example:8443", or "*"', is_host)
FILTER: Final = Text('a filter such as "chat" or "orders.>"', is_filter)
CLAIM: Final = Text("1 to 255 characters", lambda text: 1 <= len(text) <= 255)
ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")
SECRET_ALGORITHMS: Final = frozenset({"HS256"})  # the others' keys are in the jwks_file
TOKEN_SECRET_BYTES_MIN: Final = 32  # RFC 7518 section 3.2


T = TypeVar("T")


def key(default: T, kind: Kind, meaning: str, *, option: str = "", example: str = "") -> T:
    """A field of a section, with all that is known of it.

    ``meaning`` says what it is and what follows from changing it. ``option`` is the
    option of ``repl-broker serve`` that sets it. ``example``, in TOML, stands in for
    the default where there is none.
    """
    metadata = {"kind": kind, "meaning": meaning, "option": option, "example": example}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """This node: its name and where it keeps what it must not lose."""

    id: str = key(
        "n1",
        NAME,
        "The name of this node, unique in the cluster. The data directory remembers it and "
        "refuses to be opened under another.",
        option="--node-id",
    )
    data_dir: Path = key(
        Path("repl-data"),
        FilePath(),
        "The folder of the store, made if it does not exist. A relative path starts at the "
        "working directory. Two nodes never share one.",
        option="--data-dir",
    )


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The HTTP side: what publishers, subscribers and browsers talk to."""

    bind: Address = key(
        Address("127.0.0.1", 4080),
        HostPort(),
        "Where to listen. The default is reachable from this machine only; 0.0.0.0 opens it to "
        "every IPv4 network that the machine is in, [::] to every one of IPv6 and of IPv4. Port 0 "
        "takes a free one.",
        option="--http",
    )
    public_url: str | None = key(
        None,
        URL,
        "The URL by which clients reach this node, if a proxy or another name stands before "
        "it. The members of a cluster are told it. If it has a path, as in "
        "https://example.com/realtime/, what the node says of itself begins with that; the proxy "
        "takes it off what it asks the node.",
        example='"https://broker.example"',
    )
    trusted_proxies: tuple[str, ...] = key(
        (),
        ListOf(NETWORK),
        "The proxies' own addresses, not the clients' network: a network is for proxies that have "
        "no fixed address, and every host in it is trusted. Their X-Forwarded-For says whose "
        "share and rate a request counts in: the last address in it that is none of these. They "
        "must write it, or add to it. Their "
        "X-Forwarded-Prefix says below which path clients see this node, if not below that of "
        "public_url. From others both headers mean nothing.",
        example='["127.0.0.1", "10.0.0.2"]',
    )
    tls_certificate: Path | None = key(
        None,
        FilePath(),
        "A PEM file with the certificate chain. With tls_key the node speaks HTTPS; both or "
        "neither.",
        example='"certificate.pem"',
    )
    tls_key: Path | None = key(
        None,
        FilePath(),
        "A PEM file with the private key of tls_certificate.",
        example='"key.pem"',
    )
    hosts: tuple[str, ...] = key(
        (),
        ListOf(HOST),
        "More hosts that requests may name (Host): names that lead to this node, or to a proxy "
        'before it, each with a port or for all ports; ["*"] for any. Always served are '
        "localhost, IP addresses, and the names in bind and public_url. Others are refused (421), "
        "so that no web page can reach the node by a name of its own (DNS rebinding). Empty, with "
        'auth.mode = "jwt" and nothing granted in [auth.anonymous]: any.',
    )
    cors_origins: tuple[str, ...] = key(
        (),
        ListOf(ORIGIN),
        "The web origins whose pages may read this node's answers, and write: exact origins, or "
        '["*"] for all. Empty: pages of this node only.',
    )
    access_log: bool = key(
        False,
        Flag(),
        "Log a line for each request. It costs time at high rates. Its peer is where the "
        "connection came from, its client whose share the request counted in: behind one of "
        "trusted_proxies they differ.",
    )
    drain_seconds: int | None = key(
        None,
        Whole("seconds", 0, 300),
        "How long a node that gets SIGTERM still serves, while /readyz answers 503 with reason "
        "draining, so that load balancers see it and send what is new elsewhere. It hands "
        "leadership over first, and in the second half tells its streams, one after the other, to "
        "come back. Longer than a balancer takes to notice. SIGINT, and a second SIGTERM, end it. "
        "Not set: 5 where the cluster has other members, else 0.",
        example="5",
    )


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """The talk between nodes. A single node does not open this port."""

    bind: Address = key(
        Address("127.0.0.1", 4081),
        HostPort(),
        "Where to listen for peers; 0.0.0.0 and [::] as in http.bind. Not used by a single node.",
        option="--raft",
    )
    advertise: Address | None = key(
        None,
        HostPort(),
        "The address by which peers reach this node, if it is not bind. Needed if bind is every "
        "address, such as 0.0.0.0.",
        example='"10.0.0.1:4081"',
    )
    election_timeout_ms: int = key(
        1000,
        Whole("milliseconds", 50, 60_000),
        "How long a follower hears nothing from the leader before it stands for election; "
        "each wait is drawn from one to two times this. Shorter: failover is quicker, and a "
        "slow disk or network causes needless elections. At least 5 heartbeat intervals.",
    )
    heartbeat_interval_ms: int = key(
        100,
        Whole("milliseconds", 10, 10_000),
        "How often the leader tells followers that it is there. Shorter: more traffic.",
    )
    snapshot_entries: int = key(
        10_000,
        Whole("entries", 100, 10_000_000),
        "How many log entries to apply before the next snapshot. More: a longer restart "
        "and a longer log, fewer snapshots.",
    )
    tls_certificate: Path | None = key(
        None,
        FilePath(),
        "A PEM file with the certificate that this node shows to its peers, and those between it "
        "and the CA. It must name the host by which peers reach the node, and be good for servers "
        "and for clients. With tls_key and tls_ca nodes speak TLS with each other; all three or "
        "none, on every node alike.",
        example='"node.pem"',
    )
    tls_key: Path | None = key(
        None,
        FilePath(),
        "A PEM file with the private key of tls_certificate, not encrypted.",
        example='"node.key"',
    )
    tls_ca: Path | None = key(
        None,
        FilePath(),
        "A PEM file with the certificates of the CAs that sign those of the nodes. Who shows no "
        "certificate of theirs is no peer. Use a CA of the cluster's own.",
        example='"cluster-ca.pem"',
    )


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The cluster that the node belongs to. A single node leaves all of it alone."""

    name: str | None = key(
        None,
        NAME,
        "A name for people who read this file. Nothing depends on it.",
        example='"production"',
    )
    join: tuple[Address, ...] = key(
        (),
        ListOf(HostPort()),
        "The Raft addresses of nodes to ask for membership, if the data directory is "
        "empty. The list may be the same on all nodes: each passes over its own address, and over "
        "itself by another name once it has found itself there. Names are looked up anew at each "
        "try. A node that has been a member waits for its majority, "
        "whatever answers there; it looks there for members whose address has changed.",
        option="--join",
    )
    secret_file: Path | None = key(
        None,
        FilePath(),
        "A file with the secret that the nodes of a cluster share, at least 32 bytes (for instance "
        "from openssl rand -hex 32). Needed as soon as raft.bind can be reached from other "
        "machines. While it changes it holds two, with a line --- between them: the node proves "
        "the first, and accepts both. A file that cannot be used at a reload leaves those of "
        "before in force, also one that was taken out of it.",
        example='"cluster.secret"',
    )
    clock_skew_seconds_max: int = key(
        5,
        Whole("seconds", 1, 3600),
        "How far apart the clocks of two members may be that are both taken for right. A node "
        "whose clock is further from what a majority has says so in its log, as do the others, "
        "leaves it to them to lead, and dates nothing by its own clock. While no majority agrees, "
        "nothing is removed for its age.",
    )


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """How much history a topic keeps if it does not say so itself: the first limit counts."""

    messages: int = key(
        10_000,
        Whole("messages", 1, 1_000_000_000),
        "How many messages a topic keeps. A cursor that is older gets a gap event.",
    )
    seconds: int = key(
        DAY,
        Whole("seconds", 1, 3650 * DAY),
        "How long a topic keeps a message.",
    )
    bytes: int = key(
        64 * MiB,
        Whole("bytes", 1, 1024 * GiB),
        "How many bytes of messages a topic keeps. The store needs the disk space for what all "
        "topics keep, and about 200 MiB for what is not yet cleared away.",
    )
    idle_seconds: int = key(
        0,
        Whole("seconds", 0, 3650 * DAY),
        "How long a topic is kept while nothing is published to it and no event stream on any node "
        "follows it; then it is deleted, with what it holds, some seconds later. 0: for ever. "
        "With topics for single answers, jobs or visitors, set it, so that they do not pile up. A "
        "reader that comes back with a cursor gets topic-deleted.",
    )


@dataclass(frozen=True, slots=True)
class TopicsConfig:
    """Topics that no one has configured by themselves."""

    auto_create: bool = key(
        True,
        Flag(),
        "Publishing to an unknown topic creates it, and subscribing to one waits for it. "
        "false: both answer 404 topic_not_found.",
    )
    retention: RetentionConfig = RetentionConfig()


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """A limit on everything that a client can make the node hold or wait for."""

    message_bytes: int = key(
        1 * MiB,
        Whole("bytes", 1, 64 * MiB),
        "The largest message. A larger one is refused with 413 message_too_large.",
    )
    batch_bytes: int = key(
        8 * MiB,
        Whole("bytes", 1, 256 * MiB),
        "The largest batch, and so the largest request body. Not below message_bytes. "
        "Requests under way may each take this much memory.",
    )
    batch_messages: int = key(
        20_000,
        Whole("messages", 1, 1_000_000),
        "The most messages in a batch. A batch is applied in one go, which takes some 10 ms for "
        "20,000 messages to one topic and up to 200 ms to as many new topics; every other request "
        "waits meanwhile.",
    )
    json_depth: int = key(
        512,
        Whole("levels", 1, 512),
        "How deep arrays and objects of a message may nest. Deeper is 400 invalid_json.",
    )
    connections: int = key(
        10_000,
        Whole("connections", 1, 1_000_000),
        "The most open connections. One more has the place of another: of the address (IPv6: the "
        "/64 network) that has most, the connection that has rested for longest or, if that "
        "has more than the newcomer's, one that waits for its client, its latest event stream, or "
        "one that reads; one with a write under way is answered, and then closed. "
        "Where that would be unfair it is answered 429 too_many_connections. Each takes a "
        "file descriptor: if the system lets the process open fewer files, the log says so at the "
        "start, and as many connections are taken as there are files for.",
    )
    connections_per_address: int = key(
        0,
        Whole("connections", 0, 1_000_000),
        "The most open connections of one client address (IPv6: of one /64 network); one more is "
        "answered 429 too_many_connections. 0: no limit but that of connections. Connections of "
        "http.trusted_proxies do not count; those of other proxies, whose address all come from, "
        "do.",
    )
    publishes_per_second: int = key(
        0,
        Whole("requests a second", 0, 1_000_000),
        "How many publish requests one client may send, on average; more are answered 429 "
        "rate_limited. A client is an address (IPv6: a /64 network), behind a proxy only if that "
        "is one of http.trusted_proxies: else all have its address. 0: no limit.",
    )
    publish_burst: int = key(
        100,
        Whole("requests", 1, 1_000_000),
        "How many publish requests of a client are taken at once, after a pause. It counts only "
        "with publishes_per_second.",
    )
    subscribes_per_second: int = key(
        0,
        Whole("requests a second", 0, 1_000_000),
        "How many event streams one client may open, on average; more are answered 429 "
        "rate_limited. 0: no limit. For clients the same holds as for publishes_per_second.",
    )
    subscribe_burst: int = key(
        100,
        Whole("requests", 1, 1_000_000),
        "How many event streams of a client are opened at once, after a pause. It counts only with "
        "subscribes_per_second.",
    )
    reads_per_second: int = key(
        0,
        Whole("requests a second", 0, 1_000_000),
        "How many requests for history and topics one client may send, on average; more are "
        "answered 429 rate_limited. 0: no limit. For clients the same holds as for "
        "publishes_per_second.",
    )
    read_burst: int = key(
        100,
        Whole("requests", 1, 1_000_000),
        "How many requests for history and topics of a client are taken at once, after a pause. It "
        "counts only with reads_per_second.",
    )
    publishes_under_way: int = key(
        2000,
        Whole("requests", 1, 1_000_000),
        "The most publish requests that wait for the disk at one time; one more is answered 503 "
        "overloaded. What is taken waits no longer than it takes to write this many. More: a "
        "longer wait under overload, and a little more is written a second.",
    )
    requests_bytes: int = key(
        256 * MiB,
        Whole("bytes", 1 * MiB, 1024 * GiB),
        "The memory for the bodies of all publish requests under way, those that are still "
        "arriving included; one that finds no room is answered 503 overloaded. At least "
        "batch_bytes.",
    )
    topics: int = key(
        100_000,
        Whole("topics", 0, 100_000_000),
        "The most topics there are; what would create one more is refused with 409 "
        "too_many_topics. 0: no limit. A topic takes about 1 KB of memory, and the disk for its "
        "history. In a cluster, what the leader's file says counts.",
    )
    topics_per_client: int | None = key(
        None,
        Whole("topics", 0, 100_000_000),
        "The most topics that one client may have created; what would create one more is refused "
        "with 409 too_many_topics. A client is a token's subject, or an address where there is no "
        "token (IPv6: a /64 network); with the right admin there is no limit. 0: no limit. Not "
        "set: half of topics (rounded up) with auth.mode jwt, and no limit with none. Set with "
        "none, it holds for each address; behind a proxy name that in http.trusted_proxies. In "
        "a cluster, what the leader's file says counts.",
        example="1000",
    )
    storage_bytes: int = key(
        16 * GiB,
        Whole("bytes", 0, 1024 * 1024 * GiB),
        "All messages that are retained, of all topics together, each counted with 64 bytes more "
        "than its data. At the limit publishes are refused with 507 storage_full, until retention "
        "or deleting has brought it below 95 %. 0: no limit.",
    )
    storage_bytes_per_client: int | None = key(
        None,
        Whole("bytes", 0, 1024 * 1024 * GiB),
        "All messages that one client has published and that are retained, in whosever topics, "
        "counted as for storage_bytes. A publish beyond it is refused with 507 storage_full. A "
        "client is a token's subject, or an address where there is no token; with the right admin "
        "there is no limit. 0: no limit. Not set: half of storage_bytes (rounded "
        "up) with auth.mode jwt, and no limit with none. Behind a proxy that is "
        "not in http.trusted_proxies, clients without a token share its address. In a cluster, "
        "what the leader's file says counts.",
        example='"1 GiB"',
    )
    disk_free_bytes: int = key(
        256 * MiB,
        Whole("bytes", 0, 1024 * GiB),
        "The space that is left free on the disk of the store. With less, publishes are refused "
        "with 507 storage_full, until there is 10 % more than this. All else goes on. Below half "
        "of it, a node that follows takes from its leader only what makes room, such as deletions, "
        "and at most a quarter of this, as written, of what was under way before that; below an "
        "eighth nothing, for the time being. 0: no limit; then a full disk stops the node.",
    )
    streams_per_client: int | None = key(
        None,
        Whole("streams", 0, 1_000_000),
        "The most event streams that one client may have open on this node; one more is answered "
        "429 too_many_streams. A client is a token's subject, or an address where there is no "
        "token; with the right admin there is no limit. 0: no limit. Not set: half of connections "
        "(rounded up) with auth.mode jwt, and no limit with none. Behind a proxy that "
        "is not in http.trusted_proxies, clients without a token share its address.",
        example="100",
    )
    streams_bytes: int = key(
        256 * MiB,
        Whole("bytes", 1 * MiB, 1024 * GiB),
        "The memory for what has begun to be sent to readers that do not read on, of all event "
        "streams together. Beyond it, those that have been stalled for longest are ended; they "
        "come back with their cursors. At least 4 times message_bytes.",
    )
    header_bytes: int = key(
        64 * KiB,
        Whole("bytes", 1 * KiB, 1 * MiB),
        "The largest request line and headers together. The default has room for a stream of "
        "128 filters of 255 characters.",
    )
    idempotency_keys: int = key(
        100_000,
        Whole("keys", 1, 10_000_000),
        "How many idempotency keys are remembered; beyond it, the oldest go. Fewer: less memory, "
        "and a late retry may be kept twice.",
    )
    idempotency_keys_per_client: int | None = key(
        None,
        Whole("keys", 0, 10_000_000),
        "How many idempotency keys of one client are remembered; beyond it, its own oldest go. If "
        "all clients together have more than idempotency_keys, the oldest of the client with the "
        "most go. A client is a token's subject, or an address where there is no token; with the "
        "right admin there is no limit. 0: no limit. Not set: half of idempotency_keys (rounded "
        "up) with auth.mode jwt, and no limit with none. Behind a proxy that is "
        "not in http.trusted_proxies, clients without a token share its address. In a cluster, "
        "what the leader's file says counts.",
        example="1000",
    )
    idempotency_seconds: int = key(
        DAY,
        Whole("seconds", 1, 30 * DAY),
        "How long an idempotency key is remembered.",
    )
    tail_bytes: int = key(
        16 * MiB,
        Whole("bytes", 1, 16 * GiB),
        "The memory for recent messages kept for live streams, of all topics together. A "
        "reader that falls further behind reads from the disk.",
    )
    heartbeat_seconds: int = key(
        15,
        Whole("seconds", 1, 300),
        "How long a stream is silent before it gets a heartbeat. Clients take a stream for "
        "dead after three of the default.",
    )
    dead_reader_seconds: int = key(
        60,
        Whole("seconds", 5, 3600),
        "How long the machine of a stream's reader may acknowledge nothing of what was sent to "
        "it; then it has vanished, and its connection is reset. A reader that only does not read "
        "is kept. Less finds the dead sooner, and cuts off who is out of reach for a moment.",
    )
    header_timeout_seconds: int = key(
        10,
        Whole("seconds", 1, 300),
        "How long a request line and its headers may take to arrive.",
    )
    body_timeout_seconds: int = key(
        15,
        Whole("seconds", 1, 3600),
        "How long a request body may take to arrive; then 408 request_timeout.",
    )
    write_timeout_seconds: int = key(
        10,
        Whole("seconds", 1, 300),
        "How long a client may take nothing of an answer before its connection is ended. Event "
        "streams are exempt: a reader that stalls is served from the log when it reads again.",
    )
    idle_timeout_seconds: int = key(
        95,
        Whole("seconds", 1, 3600),
        "How long a connection without a request stays open. Clients and proxies that keep "
        "connections should close them first (Go after 90 seconds, ALB and nginx after 60): a "
        "request that crosses a close is lost, or has to be sent again.",
    )
    shutdown_seconds: int = key(
        3,
        Whole("seconds", 1, 60),
        "How long requests under way may take to end at shutdown before they are cut.",
    )


@dataclass(frozen=True, slots=True)
class AnonymousConfig:
    """What is allowed without a token, and so to everyone; for mode jwt."""

    publish: tuple[str, ...] = key(
        (),
        ListOf(FILTER),
        "Filters of the topics that anyone may publish to.",
    )
    subscribe: tuple[str, ...] = key(
        (),
        ListOf(FILTER),
        "Filters of the topics that anyone may read and subscribe to.",
    )


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Who may publish, subscribe and administer."""

    mode: str | None = key(
        None,
        Choice(("none", "jwt")),
        "none: everyone who can reach the port may publish, subscribe and delete; the default on "
        "loopback. jwt: what a request may do is in its token. One of the two must be "
        "written down where http.bind can be reached from other machines.",
        example='"jwt"',
    )
    secret_file: Path | None = key(
        None,
        FilePath(),
        "A file with the secret by which HS256 tokens are signed, at least 32 bytes (for instance "
        "from openssl rand -hex 32). Whoever has it can make any token. While it changes it holds "
        "two, with a line --- between them: tokens by either are good, and repl-broker token "
        "create signs by the first. Read again when it changes; a file that cannot be used leaves "
        "those of before in force, also one that was taken out of it.",
        example='"token.secret"',
    )
    jwks_file: Path | None = key(
        None,
        FilePath(),
        "A file with the public keys (a JSON Web Key Set) by which RS256, ES256 and EdDSA tokens "
        "are checked. A key of it that cannot be used is logged and passed over. Read again when "
        "it changes: a key that is no longer there is no longer good. While the file cannot be "
        "read, or is no key set, which is logged, the keys that were read last stay in force.",
        example='"jwks.json"',
    )
    algorithms: tuple[str, ...] = key(
        (),
        ListOf(Choice(ALGORITHMS)),
        "The algorithms that a token may be signed by. Empty: HS256 if there is a secret_file, and "
        "the other three if there is a jwks_file.",
    )
    audience: str | None = key(
        None,
        CLAIM,
        "What the aud claim must name. Not set: a token that is for an audience is refused.",
        example='"repl-broker"',
    )
    issuer: str | None = key(
        None,
        CLAIM,
        "What the iss claim must be. Not set: it is not looked at.",
        example='"https://login.example"',
    )
    leeway_seconds: int = key(
        10,
        Whole("seconds", 0, 300),
        "How far the issuer's clock may be off: a token is valid from this long before its nbf and "
        "iat until this long after its exp. Its streams end that much later, too.",
    )
    token_seconds_max: int = key(
        30 * DAY,
        Whole("seconds", 60, 3650 * DAY),
        "The longest life of a token, from iat (or now) to exp; one that lives longer is refused. "
        "A revocation is remembered for as long.",
    )
    allow_query_token: bool = key(
        False,
        Flag(),
        "Take a token from access_token in the query of /v1/events, too, for EventSource, which "
        "sets no header. Proxies may log it; the cookie is better.",
    )
    anonymous: AnonymousConfig = AnonymousConfig()


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The log, on standard error."""

    level: str = key(
        "info",
        Choice(("debug", "info", "warning", "error")),
        "The least severe lines that are written.",
        option="--log-level",
    )
    format: str = key(
        "auto",
        Choice(("auto", "console", "json")),
        "console: lines for people. json: one object a line, for programs. auto: console on "
        "a terminal, json otherwise.",
    )
    audit: bool = key(
        True,
        Flag(),
        "Whether there is a line for each change that somebody asked for, done or refused: of "
        "members, leadership, topics (by the calls that are for that), tokens and configuration, "
        "with whoever asked (a token's subject), the address, and the request's id. The logger is "
        "repl_broker.audit; log.level does not leave these lines out. Of those who may not make "
        "changes, each subject has ten lines of a kind in ten seconds, as have all without a "
        "valid token together; more are counted.",
    )


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """Traces of publishes, for an OpenTelemetry collector: pip install "repl-broker[otel]"."""

    endpoint: str | None = key(
        None,
        URL,
        "The URL of a collector that takes OTLP over HTTP; /v1/traces is added to it. Without it, "
        "and without the standard variable OTEL_EXPORTER_OTLP_ENDPOINT, nothing is traced and "
        "OpenTelemetry is not loaded.",
        example='"http://127.0.0.1:4318"',
    )
    traces_per_second: int = key(
        100,
        Whole("traces", 1, 100_000),
        "How many publishes are traced in a second at most; those beyond are only published. A "
        "trace costs the node about as much as a publish does.",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. ``Config()`` is a single node on this machine, with every default."""

    node: NodeConfig = NodeConfig()
    http: HttpConfig = HttpConfig()
    raft: RaftConfig = RaftConfig()
    cluster: ClusterConfig = ClusterConfig()
    topics: TopicsConfig = TopicsConfig()
    limits: LimitsConfig = LimitsConfig()
    auth: AuthConfig = AuthConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of one key."""

    name: str  # dotted: "topics.retention.bytes"
    default: object
    kind: Kind
    meaning: str
    option: str  # "--http", or "" where no option sets it
    example: str  # in TOML; for a key without a default

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.name.replace(".", "_").upper()


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the file: ``[topics.retention]``."""

    name: str
    meaning: str
    keys: tuple[Key, ...]


class ClientShares(NamedTuple):
    """The most of each that one client may have; 0: no limit."""

    topics: int
    storage_bytes: int
    idempotency_keys: int
    streams: int


def client_shares(config: Config) -> ClientShares:
    """What one client may have, by what is set, or else by half of what there is for all."""
    limits = config.limits
    has_tokens = config.auth.mode == "jwt"

    def share(own: int | None, whole: int) -> int:
        if own is not None:
            return own
        return (whole + 1) // 2 if has_tokens else 0

    return ClientShares(
        share(limits.topics_per_client, limits.topics),
        share(limits.storage_bytes_per_client, limits.storage_bytes),
        share(limits.idempotency_keys_per_client, limits.idempotency_keys),
        share(limits.streams_per_client, limits.connections),
    )


def sections() -> tuple[Section, ...]:
    """Every table, in the order of the file."""
    return tuple(walk(Config, ""))


def keys() -> dict[str, Key]:
    """Every key by its dotted name, in the order of the file."""
    return {each.name: each for section in sections() for each in section.keys}


def walk(section: type, prefix: str) -> Iterator[Section]:
    plain: list[Key] = []
    tables: list[Section] = []
    for each in fields(section):
        name = f"{prefix}{each.name}"
        if "kind" in each.metadata:
            plain.append(as_key(name, each))
        else:
            tables.extend(walk(type(each.default), f"{name}."))
    if plain:
        yield Section(prefix.rstrip("."), (section.__doc__ or "").strip(), tuple(plain))
    yield from tables


def as_key(name: str, each: Field[object]) -> Key:
    about = each.metadata
    return Key(
        name, each.default, about["kind"], about["meaning"], about["option"], about["example"]
    )


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
    needs_credentials: bool = True,
) -> Config:
    """The configuration from a file, environment variables and options, checked.

    ``environ`` is usually ``os.environ``; nothing is read from it unless it is
    given. ``options`` maps dotted names to what the command line gave: strings, or
    values that are read already. Who does not need what the service manager hands
    to the node alone may say so. Raises InvalidConfigError, which holds every problem.
    """
    problems: list[str] = []
    values: dict[str, object] = {}
    if path is not None:
        values |= from_file(path, problems)
    values |= from_environment(environ or {}, problems)
    values |= from_options(options or {}, problems)
    if environ is not None:
        find_credentials(values, environ, problems if needs_credentials else [])
    config = cast("Config", build(Config, "", values))
    if not problems:  # a refused value has left its default behind, which proves nothing
        problems.extend(contradictions(config))
    if problems:
        raise InvalidConfigError(problems)
    return config


def build(section: type, prefix: str, values: Mapping[str, object]) -> object:
    given: dict[str, object] = {}
    for each in fields(section):
        name = f"{prefix}{each.name}"
        if "kind" not in each.metadata:
            given[each.name] = build(type(each.default), f"{name}.", values)
        elif name in values:
            given[each.name] = values[name]
    return section(**given)


def values_of(config: Config) -> dict[str, object]:
    """Every key's value, by its dotted name."""
    return dict(walk_values(config, ""))


def walk_values(section: object, prefix: str) -> Iterator[tuple[str, object]]:
    for each in fields(cast("Any", section)):
        value = getattr(section, each.name)
        if "kind" in each.metadata:
            yield f"{prefix}{each.name}", value
        else:
            yield from walk_values(value, f"{prefix}{each.name}.")


def replace_values(config: Config, values: Mapping[str, object]) -> Config:
    """A configuration that differs in these keys."""
    return cast("Config", build(Config, "", values_of(config) | dict(values)))


# What the service manager hands to the node alone is in a folder that has another name at
# each start (systemd.exec(5), LoadCredential=).
CREDENTIALS: Final = "${CREDENTIALS_DIRECTORY}/"


def find_credentials(
    values: dict[str, object], environ: Mapping[str, str], problems: list[str]
) -> None:
    """Put the folder's name in its place in each path that begins with it."""
    folder = environ.get(CREDENTIALS[2:-2], "")
    for name, value in values.items():
        if not is_credential(value):
            continue
        if folder:
            values[name] = Path(folder) / str(value).removeprefix(CREDENTIALS)
        else:
            problems.append(
                f"{name}: CREDENTIALS_DIRECTORY is not set, so there is no {value}; systemd sets "
                "it for a unit with LoadCredential="
            )


def is_credential(value: object) -> bool:
    return isinstance(value, Path) and str(value).startswith(CREDENTIALS)


def contradictions(config: Config) -> Iterator[str]:
    """Keys that are fine alone and not together, and files that are not there."""
    http, raft, limits = config.http, config.raft, config.limits
    if (http.tls_certificate is None) != (http.tls_key is None):
        there, missing = "http.tls_certificate", "http.tls_key"
        if http.tls_certificate is None:
            there, missing = missing, there
        yield f"{there} needs {missing}: give both, or neither"
    wanted = {
        "raft.tls_certificate": raft.tls_certificate,
        "raft.tls_key": raft.tls_key,
        "raft.tls_ca": raft.tls_ca,
    }
    absent = [name for name, file in wanted.items() if file is None]
    if absent and len(absent) < len(wanted):
        there = " and ".join(name for name in wanted if name not in absent)
        needs = "needs" if len(absent) == 2 else "need"
        yield f"{there} {needs} {' and '.join(absent)}: give all three, or none"
    least = HEARTBEATS_PER_ELECTION_TIMEOUT * raft.heartbeat_interval_ms
    if raft.election_timeout_ms < least:
        yield (
            f"raft.election_timeout_ms must be at least {HEARTBEATS_PER_ELECTION_TIMEOUT} times "
            f"raft.heartbeat_interval_ms ({least:,} ms), found {raft.election_timeout_ms:,}"
        )
    if limits.batch_bytes < limits.message_bytes:
        yield (
            f"limits.batch_bytes must be at least limits.message_bytes "
            f"({limits.message_bytes:,}), found {limits.batch_bytes:,}"
        )
    if limits.requests_bytes < limits.batch_bytes:
        yield (
            f"limits.requests_bytes must be at least limits.batch_bytes "
            f"({limits.batch_bytes:,}), found {limits.requests_bytes:,}"
        )
    yield from http_contradictions(config)
    yield from auth_contradictions(config)
    if limits.streams_bytes < STREAMS_PER_MESSAGE * limits.message_bytes:
        yield (
            f"limits.streams_bytes must be at least {STREAMS_PER_MESSAGE} times "
            f"limits.message_bytes ({limits.message_bytes:,}), found {limits.streams_bytes:,}"
        )
    for name, file in (
        ("auth.secret_file", config.auth.secret_file),
        ("auth.jwks_file", config.auth.jwks_file),
        ("http.tls_certificate", http.tls_certificate),
        ("http.tls_key", http.tls_key),
        *wanted.items(),
        ("cluster.secret_file", config.cluster.secret_file),
    ):
        if file is not None and not is_credential(file):
            try:
                file.open("rb").close()
            except OSError as error:
                if looks_secret(name, file):
                    yield (
                        f"{name}: wanted the path of a file, and there is none of that name; what "
                        "is there looks like the secret itself, and is not shown here"
                    )
                else:
                    yield f"{name}: cannot read {file}: {error.strerror}"


SECRET_LENGTH_MIN: Final = 24  # of what somebody may have written down in place of a file's name


def looks_secret(name: str, file: Path) -> bool:
    """Whether the value of a ``secret_file`` is probably no path."""
    text = str(file)
    return name.endswith("secret_file") and (
        len(text) >= SECRET_LENGTH_MIN and re.fullmatch(r"[A-Za-z0-9+=_-]+", text) is not None
    )


def exposed(config: Config) -> list[str]:
    """Which secrets others may read or change, and the data directory, one line each.

    They are warned of and not refused: Kubernetes mounts secrets so that everyone in the
    container may read them, and volumes so that a group or everyone may write to them, and
    there is nobody else in it.
    """
    # Debian's group ssl-cert reads private keys, and so do others like it.
    named = (
        ("auth.secret_file", config.auth.secret_file, False),
        ("cluster.secret_file", config.cluster.secret_file, False),
        ("http.tls_key", config.http.tls_key, True),
        ("raft.tls_key", config.raft.tls_key, True),
    )
    found = []
    for name, file, group_may_read in named:
        if file is not None and (words := exposure(file, group_may_read=group_may_read)):
            mode = 640 if group_may_read else 600
            found.append(f"{name}: {words} {file}, and so be anyone; chmod {mode} {file}")
    folder = config.node.data_dir
    if words := openness(folder):
        found.append(
            f"node.data_dir: {words} {folder}, put another store in its place, and end the node; "
            f"chmod go-w {folder}"
        )
    return found


def http_contradictions(config: Config) -> Iterator[str]:
    path = urlsplit(config.http.public_url or "").path.removesuffix("/")
    if not is_base_path(path):
        yield (
            f"http.public_url has the path {path[:BASE_PATH_MAX]!r}, which cannot stand before "
            "those of the node: use letters, digits and - . _ ~ between single slashes, at most "
            f"{BASE_PATH_MAX} characters in all"
        )


def auth_contradictions(config: Config) -> Iterator[str]:
    auth, bind = config.auth, config.http.bind
    if auth.mode is None and not is_loopback(bind.host):
        yield (
            f"http.bind is {bind}, which other machines may reach, and auth.mode is not set: write "
            'mode = "jwt" under [auth], or mode = "none" if everyone who can reach it may publish, '
            "read and delete"
        )
    if auth.mode == "jwt" and auth.secret_file is None and auth.jwks_file is None:
        yield 'auth.mode "jwt" needs auth.secret_file (HS256) or auth.jwks_file, or both'
    for algorithm in auth.algorithms:
        name, file = (
            ("auth.secret_file", auth.secret_file)
            if algorithm in SECRET_ALGORITHMS
            else ("auth.jwks_file", auth.jwks_file)
        )
        if file is None:
            yield f"auth.algorithms has {algorithm}, which needs {name}"


# The three sources. Each adds its problems to a list and gives what it could read.


def from_file(path: Path, problems: list[str]) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        problems.append(f"cannot read {path}: {error.strerror}")
        return {}
    if len(data) > FILE_BYTES_MAX:
        problems.append(
            f"{path}: the file has more than {FILE_BYTES_MAX} bytes, which is the limit; is it a "
            "configuration?"
        )
        return {}
    try:
        document = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line, column = position(data[: error.start].decode())
        problems.append(f"{path}:{line}:{column}: not valid TOML: the file is not UTF-8")
        return {}
    except tomllib.TOMLDecodeError as error:
        problems.append(syntax_error(path, data.decode(), error))
        return {}
    except RecursionError:
        problems.append(f"{path}: not valid TOML: nested too deeply")
        return {}
    values: dict[str, object] = {}
    read_table(document, "", f"{path}: ", values, problems)
    return values


def position(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what comes after this text."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    # Before Python 3.14 the place is only in the message.
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
    if match is None:
        return f"{path}: not valid TOML: {error}"
    line, column = (int(match[2]), int(match[3])) if match[2] else position(text)
    return f"{path}:{line}:{column}: not valid TOML: {match[1]}"


def read_table(
    table: Mapping[str, object],
    prefix: str,
    where: str,
    values: dict[str, object],
    problems: list[str],
) -> None:
    known = keys()
    tables = table_names()
    for own_name, found in table.items():
        name = f"{prefix}{own_name}"
        if name in known:
            read_value(known[name].kind.read, found, name, f"{where}{name}", values, problems)
        elif name not in tables:
            what = "table" if isinstance(found, dict) else "key"
            hint = meant(name, [*tables] if what == "table" else [*known])
            problems.append(f"{where}unknown {what} {name}; {hint}")
        elif isinstance(found, dict):
            read_table(found, f"{name}.", where, values, problems)
        else:
            problems.append(f"{where}{name}: wanted a table ([{name}]), found {describe(found)}")


def table_names() -> frozenset[str]:
    return frozenset(section.name for section in sections())


def read_value(
    read: Callable[..., object],
    found: object,
    name: str,
    where: str,
    values: dict[str, object],
    problems: list[str],
) -> None:
    try:
        values[name] = read(found)
    except RefusedError as error:
        problems.append(f"{where}: {error}")


# Variables of this prefix that are no keys: other parts of the program read them.
OTHER_VARIABLES: Final = frozenset(
    {"REPL_BROKER_URL", "REPL_BROKER_CONFIG", "REPL_BROKER_TRACEBACK"}
    | {"REPL_BROKER_TOKEN", "REPL_BROKER_TOKEN_FILE"}
)

# Kubernetes sets such variables for a service that is called repl-broker.
KUBERNETES: Final = re.compile(
    r"\w*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


def from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, object]:
    """Read ``REPL_BROKER_<SECTION>_<KEY>``. An empty variable counts as not set."""
    by_variable = {each.variable: each for each in keys().values()}
    values: dict[str, object] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        if known := by_variable.get(variable):
            read_value(known.kind.read_text, text, known.name, variable, values, problems)
        elif not is_foreign(variable, text):
            hint = meant(variable, [*by_variable])
            problems.append(f"unknown environment variable {variable}; {hint}")
    return values


def is_foreign(variable: str, text: str) -> bool:
    return (
        variable in OTHER_VARIABLES
        or variable.startswith("REPL_BROKER_TEST_")
        or KUBERNETES.fullmatch(variable) is not None
        or (variable.endswith("_PORT") and "://" in text)  # Kubernetes as well
    )


def from_options(options: Mapping[str, object], problems: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, found in options.items():
        known = keys()[name]
        if isinstance(found, str):
            read_value(known.kind.read_text, found, name, known.option, values, problems)
        else:
            values[name] = found
    return values


def meant(name: str, known: Sequence[str]) -> str:
    """What to do about an unknown name: a question if another is near, else where to look."""
    near = nearest(name, known)
    if near is not None:
        return f"did you mean {near}?"
    if name.startswith(ENVIRONMENT_PREFIX):
        return f"a variable is {ENVIRONMENT_PREFIX}<SECTION>_<KEY>, by a key of the configuration"
    table = name.rpartition(".")[0]
    own = [each for each in known if each.rpartition(".")[0] == table]
    return f"known are {', '.join(own or sorted(table_names()))}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that may be meant; None if none is like it. The same part is enough."""
    last = name.rpartition(".")[2]
    same = [each for each in known if "." in each and last in each.split(".")[1:]]
    by_rest = {each.removeprefix(ENVIRONMENT_PREFIX): each for each in same or known}
    rest, least = name.removeprefix(ENVIRONMENT_PREFIX), 0.0 if same else LIKENESS
    return next(map(by_rest.get, difflib.get_close_matches(rest, by_rest, 1, least)), None)
