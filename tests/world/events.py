# ruff: noqa: ASYNC110  time is simulated: looking costs none
"""From a schedule to the world: what each event does, and how all is made well again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import trio

from repl_broker.errors import RequestError
from repl_broker.transport import _Link
from tests.world.clients import ANYONE
from tests.world.files import Fault
from tests.world.machine import Machine
from tests.world.network import Network
from tests.world.weather import Event

if TYPE_CHECKING:
    from tests.world.world import World

LATE_SECONDS: Final = 10  # that a write may take which had no room
FAULTS: Final[tuple[Fault, ...]] = ("write", "sync", "read")

__all__ = ["carry_out", "dialled", "heal", "replace_lost"]


@contextmanager
def dialled() -> Iterator[list[Network]]:
    """Links dial in the network that is put into the list."""
    networks: list[Network] = []

    async def dial(link: Any) -> Any:
        transport = link._transport
        seconds = transport.options.connect_seconds
        return await networks[0].dial(transport.me.node_id, link.address, seconds)

    with patch.object(_Link, "_dial", dial):
        yield networks


def carry_out(world: World, event: Event) -> None:
    hosts = [world.machines[number - 1] for number in event.hosts if number <= len(world.machines)]
    if hosts:
        ACTIONS[event.kind](world, event, hosts)


def heal(world: World) -> None:
    """All that is wrong ends now; nodes that do not run are started."""
    for machine in world.machines:
        machine.disk.mean_seconds = min(world.schedule.paces[machine.number - 1], 0.01)
        machine.disk.limit_bytes = None
        machine.disk.forgive()
        for other in world.machines:
            _restore(world, machine, other)
            if other is not machine:
                world.network.heal(machine.name, other.name)
        if machine.life is None:
            machine.start()


def _after(world: World, seconds: float, call: Callable[[], None]) -> None:
    async def later() -> None:
        await trio.sleep(seconds)
        if world.is_stormy:
            call()

    world.spawn(later)


def _start(machine: Machine) -> Callable[[], None]:
    def start() -> None:
        if machine.life is None:
            machine.start()

    return start


def _kill(world: World, event: Event, hosts: list[Machine]) -> None:
    power = event.kind != "kill"
    for machine in hosts:
        if event.value:
            machine.kill_within(int(event.value), power=power)
            world.spawn(_kill_later, world, machine, event.seconds, power)
        else:
            machine.kill(power=power)
            _after(world, event.seconds, _start(machine))


async def _kill_later(world: World, machine: Machine, seconds: float, power: bool) -> None:
    life = machine.life
    with trio.move_on_after(0.5):
        while life is not None and not life.is_over:
            await trio.sleep(0.01)
    if life is not None and machine.life is life and world.is_stormy:
        machine.kill(power=power)
    await trio.sleep(seconds if world.is_stormy else 0)
    _start(machine)()


def _stop(world: World, event: Event, hosts: list[Machine]) -> None:
    for machine in hosts:
        machine.stop()
        world.spawn(_start_when_over, world, machine, event.seconds)


async def _start_when_over(world: World, machine: Machine, seconds: float) -> None:
    life = machine.life
    while life is not None and not life.is_over:
        await trio.sleep(0.05)
    await trio.sleep(seconds if world.is_stormy else 0)
    if machine.life is None:
        machine.start()


def _cut(world: World, event: Event, hosts: list[Machine]) -> None:
    """One host from all others; one direction; or two hosts from each other."""
    pairs: list[tuple[str, str]] = []
    if event.kind == "cut":
        for other in world.machines:
            if other is not hosts[0]:
                pairs += [(hosts[0].name, other.name), (other.name, hosts[0].name)]
    elif len(hosts) > 1:
        pairs = [(hosts[0].name, hosts[1].name)]
        if event.kind == "pair":
            pairs.append((hosts[1].name, hosts[0].name))
    for pair in pairs:
        world.network.cut(*pair)

    def mend() -> None:
        for pair in pairs:
            world.network.heal(*pair)

    _after(world, event.seconds, mend)


def _depose(world: World, event: Event, hosts: list[Machine]) -> None:
    """Whoever leads is cut off, with what is under way, and hears later what has come of it."""
    for machine in world.machines:
        if machine.leads:
            _cut(world, replace(event, kind="cut"), [machine])
            return


def _leave_behind(world: World, event: Event, hosts: list[Machine]) -> None:
    """It hears nothing for a while, and none of what was sent meanwhile."""
    _cut(world, replace(event, kind="cut"), hosts)
    for other in world.machines:
        world.network.break_connections(hosts[0].name, other.name)


def _break(world: World, event: Event, hosts: list[Machine]) -> None:
    if len(hosts) > 1:
        world.network.break_connections(hosts[0].name, hosts[1].name)


def _slow(world: World, event: Event, hosts: list[Machine]) -> None:
    (machine,) = hosts
    machine.disk.mean_seconds = event.value

    def mend() -> None:
        machine.disk.mean_seconds = world.schedule.paces[machine.number - 1]

    _after(world, event.seconds, mend)


def _fail(world: World, event: Event, hosts: list[Machine]) -> None:
    if hosts[0].life is not None:
        hosts[0].may_fail = True
        hosts[0].disk.fail_once(FAULTS[int(event.value)])


def _full(world: World, event: Event, hosts: list[Machine]) -> None:
    (machine,) = hosts
    disk = machine.disk
    disk.limit_bytes = disk.used_bytes + int(event.value)
    machine.fails_until = trio.current_time() + event.seconds + LATE_SECONDS

    def mend() -> None:
        disk.limit_bytes = None

    _after(world, event.seconds, mend)


def _lie(world: World, event: Event, hosts: list[Machine]) -> None:
    """What a follower's disk says that it has synced is lost when its power fails."""
    if any(machine.is_replaced or not machine.is_member() for machine in world.machines):
        return  # the others would be no majority
    liars = [machine for machine in world.machines if machine.may_lose]
    followers = [m for m in liars or hosts if m.is_serving and not m.leads and not m.is_replaced]
    if followers:
        followers[0].may_lose = True  # it may notice at a later start only
        world.spawn(_lose_end, world, followers[0], event.seconds)


async def _lose_end(world: World, machine: Machine, seconds: float) -> None:
    machine.disk.loses_syncs = True
    with trio.move_on_after(seconds):
        while world.is_stormy:
            await trio.sleep(0.05)
    machine.kill(power=True)
    machine.disk.loses_syncs = False
    await trio.sleep(0.2)
    _start(machine)()


def replace_lost(world: World, machine: Machine) -> None:
    """It has noticed, and ended: as its message says, it is removed, and joins again."""
    machine.is_replaced = True
    machine.may_lose, machine.lost_data = False, True
    world.spawn(_replace_slowly, world, machine, Event(0, "replace", (machine.number,)))


def _restore(world: World, one: Machine, other: Machine) -> None:
    line = world.network.line(one.name, other.name)
    line.latency = line.jitter = world.schedule.latency
    line.bytes_per_second = world.schedule.bytes_per_second


def _line(world: World, event: Event, hosts: list[Machine]) -> None:
    if len(hosts) < 2:
        return
    for one, other in (hosts, hosts[::-1]):
        line = world.network.line(one.name, other.name)
        if event.kind == "narrow":
            line.bytes_per_second = event.value
        else:
            line.latency = line.jitter = event.value

    def mend() -> None:
        _restore(world, hosts[0], hosts[1])
        _restore(world, hosts[1], hosts[0])

    _after(world, event.seconds, mend)


def _jump(world: World, event: Event, hosts: list[Machine]) -> None:
    hosts[0].clock.ahead_ms += event.value


def _transfer(world: World, event: Event, hosts: list[Machine]) -> None:
    async def ask() -> None:
        for machine in world.machines:
            life = machine.life
            if life is not None and life.node is not None and machine.is_serving:
                with trio.CancelScope() as scope:
                    life.calls[scope] = None
                    try:
                        await life.node.broker.move_leader(ANYONE, hosts[0].name)
                    except RequestError as error:
                        world.note("transfer", error.code)
                    finally:
                        life.calls.pop(scope, None)
                return

    world.spawn(ask)


def _replace(world: World, event: Event, hosts: list[Machine]) -> None:
    """Remove a member, empty its disk, and let it join again."""
    (machine,) = hosts
    if len(world.machines) < 3 or any(each.is_replaced for each in world.machines):
        return
    machine.is_replaced = True
    world.spawn(_replace_slowly, world, machine, event)


def _lose(world: World, event: Event, hosts: list[Machine]) -> None:
    """Its disk is another one, with nothing on it; it is removed when somebody looks after it."""
    (machine,) = hosts
    if any(each.is_replaced or not each.is_member() for each in world.machines):
        return  # the others would be no majority
    machine.is_replaced = True
    machine.kill(power=False)
    machine.wipe()
    machine.bootstraps = False
    machine.start()
    world.spawn(_replace_slowly, world, machine, event, event.seconds)


async def _replace_slowly(world: World, machine: Machine, event: Event, after: float = 0.0) -> None:
    await trio.sleep(after)
    if after:
        machine.kill(power=False)  # or it joins at once
    while not await _remove(world, machine):
        await trio.sleep(0.2)
    machine.kill(power=False)
    machine.wipe()
    machine.bootstraps = False
    await trio.sleep(event.seconds if world.is_stormy else 0)
    if machine.life is None:
        machine.start()
    while not machine.is_member():
        await trio.sleep(0.1)
    machine.is_replaced = False


async def _remove(world: World, machine: Machine) -> bool:
    """Whether it is no member any more, as the others know."""
    for other in world.machines:
        life = other.life
        if other is machine or life is None or life.node is None or not other.is_serving:
            continue
        replica = life.node.replica
        is_sure = replica.leads and replica.seen.has_committed  # another may be behind
        if is_sure and machine.name not in replica.committed_membership.ids:
            return True
        with trio.CancelScope() as scope:
            life.calls[scope] = None
            try:
                await life.node.broker.remove_member(ANYONE, machine.name)
            except RequestError as error:
                world.note("remove", machine.name, error.code)
            finally:
                life.calls.pop(scope, None)
    return False


ACTIONS: Final[dict[str, Callable[[World, Event, list[Machine]], None]]] = {
    "kill": _kill,
    "power": _kill,
    "blackout": _kill,
    "stop": _stop,
    "cut": _cut,
    "one-way": _cut,
    "pair": _cut,
    "break": _break,
    "slow": _slow,
    "fail": _fail,
    "full": _full,
    "lie": _lie,
    "narrow": _line,
    "far": _line,
    "jump": _jump,
    "transfer": _transfer,
    "replace": _replace,
    "lose": _lose,
    "depose": _depose,
    "leave-behind": _leave_behind,
}
