"""A node as part of a cluster: whether it is one, and how others reach it.

Decided once, when the node starts, from its configuration and its store.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec
import trio

from repl_broker.certificates import Certificates
from repl_broker.clocks import Clocks
from repl_broker.config import Address, Config
from repl_broker.errors import ConfigError
from repl_broker.members import Joiner, Members
from repl_broker.raft.core import CoreOptions
from repl_broker.raft.log import Member
from repl_broker.replica import Replica
from repl_broker.transport import Me, PeerRefusedError, PeerUnreachableError, Transport

__all__ = [
    "connect",
    "core_options",
    "find_cluster",
    "is_clustered",
    "own_record",
    "run",
]

log = logging.getLogger(__name__)

FIND_SECONDS: Final = 3  # for an answer of each member that may be there


def is_clustered(replica: Replica, config: Config, *, bootstrap: bool) -> bool:
    """Whether the node belongs to a cluster, or is to from now on.

    Raises ConfigError when that cannot be as it is asked for.
    """
    # A founder that was removed is no member by its own log, but knows of others.
    belongs = replica.adopted or any(each.raft_address for each in replica.membership.members)
    join = config.cluster.join
    if join and not bootstrap and not belongs and not replica.is_empty:
        raise ConfigError(
            f"the data directory {str(config.node.data_dir)!r} holds the data of a single node, "
            "which joining a cluster would lose; join with an empty one, or make a cluster of "
            "this node with --bootstrap"
        )
    return belongs or bootstrap or bool(join)


async def find_cluster(
    replica: Replica, config: Config, keys: Sequence[bytes], certificates: Certificates
) -> bool:
    """Whether one of ``[cluster] join`` belongs to a cluster: then nobody must start another.

    Asked before a node with an empty store bootstraps: it may have lost its data.
    Raises ConfigError if one of them refuses to say.
    """
    transport = Transport(
        Me("", replica.node_id, replica.incarnation),
        keys,
        on_rpc=lambda rpc: None,
        on_request=_no_request,
        admit=lambda hello: None,
        admit_level=lambda node_id, level: None,  # it belongs to no cluster that had one
        tls=certificates.peers if certificates.has_peers else None,
    )
    found: list[str] = []
    refusals: list[str] = []

    async def ask(address: Address) -> None:
        if await _is_own(address, config):
            return
        try:
            answer = await transport.call_address(
                (address.host, address.port), "who", None, seconds=FIND_SECONDS
            )
            joiner = msgspec.convert(answer, Joiner)
        except (PeerUnreachableError, ValueError) as error:
            log.info("found no cluster at address=%s reason=%r", address, str(error))
            return
        except PeerRefusedError as error:
            refusals.append(f"does not bootstrap: the node at {address} refuses this one: {error}")
            return
        if joiner.cluster_id and joiner.id != replica.node_id:
            found.append(str(address))

    async with trio.open_nursery() as nursery:
        for address in config.cluster.join:
            nursery.start_soon(ask, address)
    if refusals:
        raise ConfigError(refusals[0])
    if found:
        log.warning("does not bootstrap: there is a cluster address=%s", found[0])
    return bool(found)


async def _is_own(address: Address, config: Config) -> bool:
    """Whether this node itself is to listen at ``address``, by whichever name.

    In doubt it is another's: it is dialled, and nobody answers.
    """
    raft = config.raft
    if address in (raft.bind, raft.advertise):
        return True
    if address.port != raft.bind.port:
        return False
    hosts = await _hosts_of(address)
    if _is_wildcard(raft.bind.host):
        return any(map(_is_of_this_machine, hosts))
    return bool(hosts & await _hosts_of(raft.bind))


async def _hosts_of(address: Address) -> set[str]:
    """The addresses of its name; none if it has none, or that takes too long to find out."""
    with trio.move_on_after(FIND_SECONDS):
        try:
            found = await trio.socket.getaddrinfo(address.host, address.port)
        except OSError:
            return set()
        return {str(each[4][0]) for each in found}
    return set()


def _is_of_this_machine(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


async def _no_request(peer: str, name: str, argument: object) -> None:
    raise AssertionError("nobody dials a node that does not listen")


def core_options(config: Config) -> CoreOptions:
    return CoreOptions(
        election_timeout_seconds=config.raft.election_timeout_ms / 1000,
        heartbeat_interval_seconds=config.raft.heartbeat_interval_ms / 1000,
    )


def own_record(
    config: Config,
    replica: Replica,
    raft_listeners: list[trio.SocketListener],
    http_listeners: list[trio.SocketListener],
) -> Member:
    """How the other members reach this node. Raises ConfigError if nobody could."""
    raft = config.raft.advertise or replace(config.raft.bind, port=_port(raft_listeners))
    if _is_wildcard(raft.host):
        raise ConfigError(
            f"Raft listens at {config.raft.bind}, on every address: [raft] advertise is needed, "
            "the HOST:PORT by which the other nodes reach this one"
        )
    http = replace(config.http.bind, port=_port(http_listeners))
    if _is_wildcard(http.host):
        http = replace(http, host=raft.host)
    scheme = "http" if config.http.tls_certificate is None else "https"
    http_url = config.http.public_url or f"{scheme}://{http}"
    return Member(replica.node_id, str(raft), http_url, True, replica.incarnation)


def _port(listeners: list[trio.SocketListener]) -> int:
    port: int = listeners[0].socket.getsockname()[1]
    return port


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def connect(
    replica: Replica, members: Members, keys: Sequence[bytes], certificates: Certificates
) -> Transport:
    """Have replica and members talk to their peers."""

    def removed(reason: str) -> None:
        log.error("refused for good reason=%r", reason)
        replica.removed.set()

    transport = Transport(
        Me("", replica.node_id, replica.incarnation),
        keys,
        on_rpc=replica.receive,
        on_request=members.answer,
        admit=members.admit,
        admit_level=members.admit_level,
        on_part=replica.receive_part,
        on_unreachable=replica.lost,
        on_removed=removed,
        on_lost=members.disown,
        on_received=replica.turn,
        known_index=lambda: members.known_index,
        is_led=lambda: members.is_led,
        may_lead=members.may_lead,
        tls=certificates.peers if certificates.has_peers else None,
    )
    replica.peers = transport
    members.connect(transport)
    return transport


async def run(
    transport: Transport,
    members: Members,
    clocks: Clocks,
    listeners: list[trio.SocketListener],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Talk to peers, see to this node's membership, and compare clocks, until cancelled.

    Raises ConfigError if the cluster will not have this node.
    """
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, listeners)
        host, port = listeners[0].socket.getsockname()[:2]
        log.info("listens for peers address=%s", Address(host, port))
        nursery.start_soon(members.run)
        nursery.start_soon(members.look_around)
        nursery.start_soon(members.raise_level)
        nursery.start_soon(clocks.run)
        task_status.started()
