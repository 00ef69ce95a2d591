"""The node as a process: one nursery, the order of start and of stop.

Start: store, log, hub, listeners, peers, HTTP; only then is anything announced.
Stop, on SIGTERM or SIGINT or when the node is removed from its cluster: serve on for a
while if others are there to go to (draining.py), hand leadership over, take no more
publishes, answer what was taken, tell the streams to go, end connections, close the
store. A disk that fails ends the node: what it
could not make durable it must not acknowledge, and says so.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio
from quart_trio import QuartTrio

from repl_broker import __version__, logs
from repl_broker.access import Access
from repl_broker.broker import Broker
from repl_broker.certificates import Certificates
from repl_broker.cluster_secret import ClusterSecret
from repl_broker.config import Address, Config, exposed
from repl_broker.doubts import doubts
from repl_broker.draining import drain, drain_seconds
from repl_broker.errors import ConfigError, ReplBrokerError
from repl_broker.fanout import Fanout, FanoutOptions
from repl_broker.hub import Hub
from repl_broker.node import Node
from repl_broker.reload import LIVE, Hook, Reloader
from repl_broker.replica import Replica
from repl_broker.service import Service, lost_terminal
from repl_broker.storage import STORE_NAME, SqliteStorage
from repl_broker.systemd import Manager, PassedSocket
from repl_broker.traces import open_tracing
from repl_broker.web.app import create_app, reload_app
from repl_broker.web.base import Base
from repl_broker.web.door import Door, DoorOptions, open_listeners
from repl_broker.web.publishing import Publishing
from repl_broker.web.streams import Streams

__all__ = ["Running", "run", "serve"]

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
HTTP_SETTING: Final = "--http HOST:PORT or [http] bind"
RAFT_SETTING: Final = "--raft HOST:PORT or [raft] bind"
OTHER_FILES: Final = 200  # beside connections: the store, peers, refusals, and room to spare
PARTING_SECONDS: Final = 1  # for answers that are due when the log has failed
ANSWER_SECONDS: Final = 0.5  # of shutdown_seconds, 1 at least: for what is answered at their end
SWITCH_SECONDS: Final = 0.001  # for which a thread may keep the event loop from going on
# What functions import when they are called, to be loaded before a node serves: the files of its
# package may be replaced while it runs, and then they would be of another version, or gone.
LATE: Final = ("repl_broker.message", "encodings.idna")
LATE_WITH_TOKENS: Final = (
    *("joserfc.errors", "joserfc.jwk", "joserfc.jws", "joserfc.jwt", "joserfc.util"),
    "cryptography.exceptions",
)
GC_THRESHOLDS: Final = (10_000, 50, 20)  # of Python's default: (700, 10, 10)


@dataclass(frozen=True, slots=True)
class Running:
    """A node that answers requests."""

    broker: Broker
    url: str
    certificates: Certificates


def run(
    config: Config,
    *,
    bootstrap: bool = False,
    apps: Mapping[str, Path] | None = None,
    on_ready: Callable[[Running], None] = lambda running: None,
    read_again: Callable[[], Config] | None = None,
    manager: Manager | None = None,
    sockets: Sequence[PassedSocket] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, or until the node is removed from its cluster.

    SIGINT, or a second signal, stops it without draining.

    ``bootstrap`` starts a cluster, of which this node is the first member; if it
    belongs to one, that changes nothing. ``apps`` maps a path such as ``/chat`` to
    static files. ``on_ready`` is called once requests are answered. With
    ``read_again``, SIGHUP has the configuration read again. ``manager`` is told how
    the node is; ``sockets`` are listened on in place of ``[http] bind``.

    Raises ConfigError when the node cannot start as it is configured, and
    StorageError when the disk fails.
    """
    stop = trio.Event()
    starting = trio.CancelScope()  # reading a long log may take longer than anyone waits
    service = Service(manager, Reloader(config, read_again) if read_again else None)

    async def stop_on_signal(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                end(signal.Signals(number))

    def end(number: signal.Signals) -> None:
        if number == signal.SIGINT or stop.is_set():  # somebody waits for it
            service.hurry.set()
        log.info("stopping signal=%s", number.name)
        service.stopping()
        stop.set()
        starting.cancel()

    async def reload_on_signal(task_status: trio.TaskStatus[None]) -> None:
        has_terminal = sys.stderr.isatty()
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            # Whoever starts the node may have held it back until somebody listens.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            task_status.started()
            async for _ in signals:
                if lost_terminal(has_terminal):
                    end(signal.SIGHUP)
                    return
                await service.serving.wait()
                await service.reload()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(stop_on_signal)
            if read_again is not None:
                await nursery.start(reload_on_signal)
            nursery.start_soon(service.extend_start)
            async with trio.open_nursery() as node:
                with starting:
                    start = partial(
                        serve,
                        config,
                        stop,
                        bootstrap=bootstrap,
                        apps=apps,
                        service=service,
                        sockets=sockets,
                    )
                    on_ready(await node.start(start))
            nursery.cancel_scope.cancel()

    _calm_the_collector()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        trio.run(main, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        raise _cause(group) from None
    finally:
        service.manager.close()


async def serve(
    config: Config,
    stop: trio.Event,
    *,
    bootstrap: bool = False,
    apps: Mapping[str, Path] | None = None,
    service: Service | None = None,
    sockets: Sequence[PassedSocket] = (),
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A node as a task: ``started`` once it answers requests; drains and returns after ``stop``,
    or once it was removed from its cluster."""
    certificates, access = Certificates(config), Access(config)
    _tell_warnings(config)
    _load_all(config)
    service = service or Service()
    tracing = open_tracing(config, os.environ)
    if not (config.node.data_dir / STORE_NAME).exists():  # a refused start leaves none behind
        await _check_ports(config, sockets, clustered=bootstrap or bool(config.cluster.join))
    storage = await trio.to_thread.run_sync(SqliteStorage, config.node.data_dir, config.node.id)
    make_broker = Broker if tracing is None else tracing.broker
    node = Node(config, storage, access, certificates, make_broker=make_broker)
    replica, hub = node.replica, node.hub
    try:
        await node.load(bootstrap=bootstrap)
        _set_apart()
        listeners = _passed(sockets) or await _listen(config.http.bind, HTTP_SETTING)
        raft_listeners = await _listen(config.raft.bind, RAFT_SETTING) if node.clustered else []
        broker = await node.connect(listeners, raft_listeners)
        app = create_app(broker, config, apps or {}, lambda: door.statistics())
        publishing = Publishing(broker, config)
        streams = Streams(broker, Fanout(replica, hub, _fanout_options(config)), config)
        if tracing is not None:
            streams.fanout.on_flushed = tracing.flushed
        door = Door(
            app,
            listeners,
            _options(config),
            publishing=publishing,
            streams=streams,
            ssl_context=certificates.http if certificates.has_http else None,
            refusals=broker.refusals,
            base=Base(config.http),
            origins=lambda: access.origins.configured,
        )
        trio.lowlevel.add_instrument(broker.turns)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run, partial(_part, broker, hub, door))
            async with trio.open_nursery() as serving:
                await serving.start(door.run)
                url = _url(config, door)
                broker.http_url = config.http.public_url or url
                log.info("serving url=%s node=%s version=%s", url, broker.node_id, __version__)
                if service.reloader is not None:
                    service.reloader.hooks += [
                        _log_hook(),
                        _limits_hook(broker, hub, door, publishing, streams.fanout, app),
                        _settings_hook(replica),
                        Hook("certificates", LIVE["certificates"], certificates.reload),
                        _secret_hook(node.secret),
                        _access_hook(access),
                        _pages_hook(publishing, streams, app, access),
                        _clocks_hook(broker),
                    ]
                    broker.reloader = service.reloader
                task_status.started(Running(broker, url, certificates))
                nursery.start_soon(service.run, replica)
                await service.ready(partial(_status, broker, hub))
                await _either(stop, replica.removed)
                service.stopping()
                if replica.removed.is_set():
                    log.warning("this node was removed from its cluster; it stops")
                if seconds := drain_seconds(broker.config.http, replica):
                    service.extend_stop(seconds)
                    broker.leaving = True
                    door.leave()
                    await drain(replica, streams.fanout, seconds, service.hurry)
                await replica.hand_over()
                broker.draining = True
                shutdown_seconds = broker.config.limits.shutdown_seconds
                door.stop(shutdown_seconds)
                # What was taken is answered, and there is time left for the answers to go out.
                await replica.drain(shutdown_seconds - ANSWER_SECONDS)
                hub.close()  # the streams say good-bye; the door then has nothing to wait for
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await node.close()
            await trio.to_thread.run_sync(storage.close)
            if tracing is not None:
                await tracing.close()
    log.info(
        "stopped node=%s applied_index=%d digest=%s",
        config.node.id,
        replica.state.applied_index,
        replica.state.digest(),
    )


def _load_all(config: Config) -> None:
    for name in (*LATE, *(LATE_WITH_TOKENS if config.auth.mode == "jwt" else ())):
        importlib.import_module(name)


async def _check_ports(config: Config, sockets: Sequence[PassedSocket], *, clustered: bool) -> None:
    """Raises ConfigError: nobody can listen there just now."""
    found = [] if sockets else await _listen(config.http.bind, HTTP_SETTING)
    try:
        if clustered:
            found += await _listen(config.raft.bind, RAFT_SETTING)
    finally:
        for listener in found:
            listener.socket.close()


async def _listen(address: Address, setting: str) -> list[trio.SocketListener]:
    """``setting`` is by what somebody chooses another address."""
    try:
        return await open_listeners(address.host, address.port, BACKLOG)
    except ConfigError as error:
        raise ConfigError(f"{error} ({setting})") from error


def _passed(sockets: Sequence[PassedSocket]) -> list[trio.SocketListener]:
    for each in sockets:
        log.info("listening on a socket that was passed http=%s", each.address)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(s.socket)) for s in sockets]


def _status(broker: Broker, hub: Hub) -> str:
    """The node in a few words, for the manager."""
    term, leader = broker.leadership
    if leader == broker.node_id:
        role = "leads"
    else:
        role = f"follows {leader}" if leader else "knows no leader"
    count = hub.statistics().subscribers
    reasons = ", ".join(reason.code for reason in broker.reasons())
    text = f"{broker.node_id} {role} in term {term}, {count} stream{'s' * (count != 1)}"
    return f"{text}, not ready: {reasons}" if reasons else text


# What a reload can change, part by part.


def _log_hook() -> Hook:
    return Hook("log", LIVE["log"], lambda config: logs.configure(config.log))


def _access_hook(access: Access) -> Hook:
    def apply(config: Config) -> list[str]:
        found = access.reload(config)
        _tell_warnings(config)
        return found

    return Hook("access", LIVE["access"], apply, counts=access.counts)


def _secret_hook(secret: ClusterSecret | None) -> Hook:
    """``secret`` is None for a node that belongs to no cluster: it has no peers."""

    def apply(config: Config) -> list[str]:
        changed = secret is not None and secret.reload(config)
        return ["cluster.secret_file"] if changed else []

    return Hook("secret", LIVE["secret"], apply)


def _tell_warnings(config: Config) -> None:
    for warning in exposed(config):
        log.warning("others can reach what is for this node alone what=%r", warning)
    for warning in doubts(config):
        log.warning("the configuration is hardly what is meant what=%r", warning)


def _limits_hook(
    broker: Broker,
    hub: Hub,
    door: Door,
    publishing: Publishing,
    fanout: Fanout,
    app: QuartTrio,
) -> Hook:
    def apply(config: Config) -> None:
        broker.reload(config)
        hub.bound_tails(config.limits.tail_bytes)
        door.take_options(_options(config))
        fanout.take_options(_fanout_options(config))
        door.stalled.bytes_max = config.limits.streams_bytes
        publishing.reload(config)
        reload_app(app, config)

    return Hook("limits", LIVE["limits"], apply)


def _settings_hook(replica: Replica) -> Hook:
    """What a cluster shares: in force as soon as this node leads."""
    return Hook(
        "settings",
        LIVE["settings"],
        lambda config: replica.reconfigure(Broker.settings(config)),
    )


def _clocks_hook(broker: Broker) -> Hook:
    def apply(config: Config) -> None:
        broker.clock_skew_seconds_max = config.cluster.clock_skew_seconds_max
        if broker.clocks is not None:
            broker.clocks.reload(config.cluster.clock_skew_seconds_max)

    return Hook("clocks", LIVE["clocks"], apply)


def _pages_hook(publishing: Publishing, streams: Streams, app: QuartTrio, access: Access) -> Hook:
    def apply(config: Config) -> None:
        access.reload_pages(config)
        publishing.reload(config)
        streams.reload(config)
        reload_app(app, config)

    return Hook("pages", LIVE["pages"], apply)


async def _either(*events: trio.Event) -> None:
    """Wait until one of them is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


async def _part(broker: Broker, hub: Hub, door: Door) -> None:
    """After a failure of the log: who waits for a publish is told that its outcome is unknown."""
    broker.draining = True
    hub.close()
    door.stop(PARTING_SECONDS)
    while door.connections:  # noqa: ASYNC110  for a second at most; the door may not run yet
        await trio.sleep(0.01)


def _calm_the_collector() -> None:
    """Look for cyclic garbage less often: with 1,000 streams it took half of all CPU.

    What was loaded until now stays for good, and is not looked through again. With
    thousands of connections a look takes as long as there are young objects, and all
    messages wait meanwhile: so it is not as seldom as would be cheapest.
    """
    _set_apart()
    gc.set_threshold(*GC_THRESHOLDS)


def _set_apart() -> None:
    """What the log has given stays, too, and with it what will hold all that comes later."""
    gc.collect()
    gc.freeze()


def _options(config: Config) -> DoorOptions:
    limits = config.limits
    return DoorOptions(
        connections_max=_connections_max(limits.connections),
        connections_per_address=limits.connections_per_address,
        header_bytes_max=limits.header_bytes,
        header_timeout_seconds=limits.header_timeout_seconds,
        body_timeout_seconds=limits.body_timeout_seconds,
        idle_timeout_seconds=limits.idle_timeout_seconds,
        write_timeout_seconds=limits.write_timeout_seconds,
    )


def _fanout_options(config: Config) -> FanoutOptions:
    limits = config.limits
    return FanoutOptions(limits.heartbeat_seconds, limits.dead_reader_seconds, limits.streams_bytes)


def _connections_max(wanted: int) -> int:
    """As many connections as are configured, or as many as the process may open files for.

    A process begins with fewer than it may have, for the sake of ``select``, which
    is not used here; so the limit is raised first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    possible = max(1, soft - OTHER_FILES)
    log.warning(
        "fewer connections than configured: files are lacking limits.connections=%d open_files=%d "
        "connections=%d remedy=%r",
        wanted,
        soft,
        possible,
        f"let the process open {needed} files (ulimit -n, LimitNOFILE=), or lower "
        "[limits] connections",
    )
    return possible


def _url(config: Config, door: Door) -> str:
    scheme = "http" if config.http.tls_certificate is None else "https"
    address = door.addresses[0]
    assert address is not None, "the daemon listens on TCP"
    host, port = address
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}"


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the node: one of ours where there is one."""
    ours = group.subgroup(ReplBrokerError)
    error: BaseException = ours or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
