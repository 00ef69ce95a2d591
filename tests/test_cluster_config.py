"""Whether a node is part of a cluster, its secret, and how others reach it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from repl_broker.broker import Broker
from repl_broker.certificates import Certificates
from repl_broker.cluster import (
    _is_own,
    find_cluster,
    is_clustered,
    own_record,
)
from repl_broker.cluster_secret import BYTES_MAX, BYTES_MIN, ClusterSecret, read_secrets
from repl_broker.config import Address, Config
from repl_broker.errors import ConfigError
from repl_broker.members import Joiner
from repl_broker.raft.log import Entry, EntryKind, HardState, Member, Membership, WriteBatch
from repl_broker.replica import Replica
from tests.authority import peer_config, write
from tests.nodes import Clock, Disk, configured
from tests.test_cluster_tcp import Names
from tests.test_transport import SECRET, Node, running

JOIN = configured(cluster={"join": (Address("n9", 4081),)})
EVERYWHERE = Address("0.0.0.0", 4081)


async def loaded(disk: Disk | None = None, config: Config | None = None) -> Replica:
    replica = Replica(disk or Disk(), Broker.settings(config or Config()), now_ms=Clock())
    await replica.load(joins=config is not None and bool(config.cluster.join))
    return replica


def written(*members: Member) -> Disk:
    """The disk of a node that has led; with ``members``, if there are any, in its log."""
    disk = Disk()
    entries = [Entry(1, 1, EntryKind.NO_OP, b"")]
    if members:
        entries.append(Entry(2, 1, EntryKind.MEMBERSHIP, Membership(members).encode()))
    disk.write(WriteBatch(tuple(entries), HardState(1, "n1")))
    return disk


def adopted() -> Disk:
    disk = Disk("n2")
    disk.adopt("c" * 32, "0badcafe")
    return disk


# --- whether it is part of one ---


@pytest.mark.parametrize(
    ("config", "bootstrap", "clustered"),
    [(Config(), False, False), (Config(), True, True), (JOIN, False, True), (JOIN, True, True)],
    ids=["alone", "bootstrap", "join", "both"],
)
async def test_an_empty_node_is_clustered_if_it_is_asked_to(
    config: Config, bootstrap: bool, clustered: bool
) -> None:
    replica = await loaded(config=config)
    assert is_clustered(replica, config, bootstrap=bootstrap) is clustered


@pytest.mark.parametrize(
    "disk", [written(Member("n1", "n1:4081", "", voter=True)), adopted()], ids=["began", "joined"]
)
@pytest.mark.parametrize("config", [Config(), JOIN], ids=["plain", "join"])
async def test_a_node_that_belongs_to_a_cluster_stays_so_whatever_it_is_asked(
    disk: Disk, config: Config
) -> None:
    """Started without the options of its first start, it must not go on alone."""
    replica = await loaded(disk)
    for bootstrap in (False, True):
        assert is_clustered(replica, config, bootstrap=bootstrap)


@pytest.mark.parametrize("config", [Config(), JOIN], ids=["plain", "join"])
async def test_a_founder_that_was_removed_belongs_to_its_cluster_still(config: Config) -> None:
    """It is no member by its own log, and was never taken in: it is to hear that it has gone."""
    replica = await loaded(written(Member("n2", "n2:4081", "", voter=True)))
    assert not replica.adopted
    for bootstrap in (False, True):
        assert is_clustered(replica, config, bootstrap=bootstrap)


async def test_a_single_nodes_data_is_not_lost_to_a_cluster_that_it_joins() -> None:
    replica = await loaded(written())
    with pytest.raises(ConfigError, match="holds the data of a single node") as refused:
        is_clustered(replica, JOIN, bootstrap=False)
    assert "--bootstrap" in str(refused.value)
    assert is_clustered(replica, JOIN, bootstrap=True)
    assert not is_clustered(replica, Config(), bootstrap=False)


# --- the secret ---


def with_secret(tmp_path: Path, secret: bytes, mode: int = 0o600) -> Config:
    path = tmp_path / "secret"
    path.write_bytes(secret)
    path.chmod(mode)
    return configured(cluster={"secret_file": path}, raft={"bind": EVERYWHERE})


@pytest.mark.parametrize("size", [BYTES_MIN, BYTES_MAX])
def test_a_secret_is_read_without_the_line_break_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    secret = (b"5f1d7a92" * size)[:size]
    assert read_secrets(with_secret(tmp_path, secret + b"\n")) == (secret,)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 bytes; wanted 32 to 4,096"),
        (BYTES_MIN - 1, "31 bytes; wanted 32 to 4,096"),
        (BYTES_MAX + 1, "4097 bytes; wanted 32 to 4,096"),
        (10_000_000, "more than 8,201 bytes; a secret has 32 to 4,096"),
    ],
)
def test_a_secret_that_is_too_short_or_too_long_is_refused(
    tmp_path: Path, size: int, told: str
) -> None:
    """A device file, say: no more is read than is needed to refuse it."""
    config = with_secret(tmp_path, b"s" * size)
    with pytest.raises(ConfigError, match=f"has {told}") as refused:
        read_secrets(config)
    assert "openssl rand" in str(refused.value)
    assert "sss" not in str(refused.value)


def test_space_makes_no_secret_longer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="begins or ends with a space"):
        read_secrets(with_secret(tmp_path, b"s" + b" " * 40))


@pytest.mark.parametrize("secret", [b"s" * 64, b"secret" * 10, b"12345" * 10])
def test_a_secret_of_few_characters_is_refused(tmp_path: Path, secret: bytes) -> None:
    """Whoever lets a node dial him may try guesses on its answer."""
    config = with_secret(tmp_path, secret)
    with pytest.raises(
        ConfigError, match=r"too few different characters: [0-9]+; wanted at least 8"
    ) as refused:
        read_secrets(config)
    assert "openssl rand" in str(refused.value)
    assert secret.decode() not in str(refused.value)


async def keys_of(config: Config) -> tuple[bytes, ...]:
    secret = ClusterSecret(config)
    await secret.load()
    return secret.keys


async def test_a_guess_at_the_secret_is_dear(tmp_path: Path) -> None:
    """The key is not the secret, and takes as much memory as was meant."""
    secret = b"5f1d7a92" * 4
    (key,) = await keys_of(with_secret(tmp_path, secret))
    assert len(key) == 32
    again = hashlib.scrypt(
        secret, salt=b"repl-broker peers 2", n=1 << 15, r=8, p=1, maxmem=64 << 20, dklen=32
    )
    assert key == again
    assert await keys_of(configured(raft={"bind": Address("127.0.0.1", 4081)})) == (b"",)


def test_a_secret_that_an_editor_has_put_a_mark_before_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="byte order mark"):
        read_secrets(with_secret(tmp_path, b"\xef\xbb\xbf" + b"s" * 32))


def test_a_secret_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config = configured(cluster={"secret_file": tmp_path / "none"})
    with pytest.raises(ConfigError, match=r"cannot read .*none': No such file or directory"):
        read_secrets(config)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "n1.example"])
def test_without_a_secret_raft_does_not_listen_beyond_this_machine(host: str) -> None:
    config = configured(raft={"bind": Address(host, 4081)})
    with pytest.raises(ConfigError, match="secret_file is needed"):
        read_secrets(config)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_on_this_machine_alone_no_secret_is_needed(host: str) -> None:
    assert read_secrets(configured(raft={"bind": Address(host, 4081)})) == (b"",)


# --- how others reach it ---


async def record_of(**sections: dict[str, Any]) -> Member:
    """The record of a node that listens as configured, at ports that the system chose."""
    raft = await trio.open_tcp_listeners(0, host="127.0.0.1")
    http = await trio.open_tcp_listeners(0, host="127.0.0.1")
    try:
        record = own_record(configured(None, **sections), await loaded(), raft, http)
        ports = [str(each[0].socket.getsockname()[1]) for each in (raft, http)]
    finally:
        for listener in (*raft, *http):
            await listener.aclose()
    return Member(
        record.id,
        record.raft_address.replace(ports[0], "RAFT"),
        record.http_url.replace(ports[1], "HTTP"),
        record.voter,
        record.incarnation,
    )


async def test_a_node_is_reached_where_it_listens() -> None:
    found = await record_of(
        raft={"bind": Address("10.0.0.1", 0)}, http={"bind": Address("10.0.0.2", 0)}
    )
    assert found == Member("n1", "10.0.0.1:RAFT", "http://10.0.0.2:HTTP", True, "1" * 16)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_a_node_that_listens_everywhere_has_to_say_how_it_is_reached(host: str) -> None:
    with pytest.raises(ConfigError, match="advertise is needed"):
        await record_of(raft={"bind": Address(host, 4081)})


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_what_is_advertised_counts_for_http_on_every_address_too(host: str) -> None:
    found = await record_of(
        raft={"bind": Address(host, 4081), "advertise": Address("n1.example", 5081)},
        http={"bind": Address(host, 0)},
    )
    assert (found.raft_address, found.http_url) == ("n1.example:5081", "http://n1.example:HTTP")


async def test_a_wildcard_cannot_be_advertised() -> None:
    with pytest.raises(ConfigError, match="advertise is needed"):
        await record_of(raft={"advertise": EVERYWHERE})


async def test_a_public_url_and_tls_are_told_to_the_others(tmp_path: Path) -> None:
    found = await record_of(http={"tls_certificate": tmp_path / "certificate.pem"})
    assert found.http_url == "https://127.0.0.1:HTTP"
    found = await record_of(http={"public_url": "https://chat.example/broker"})
    assert found.http_url == "https://chat.example/broker"


async def test_an_ipv6_address_is_told_in_brackets() -> None:
    found = await record_of(raft={"bind": Address("fd00::1", 0)})
    assert found.raft_address == "[fd00::1]:RAFT"


# --- whether there is one already ---


class Asked(Node):
    """Whom a node asks, before it founds a cluster."""

    joiner = Joiner("n9", "9" * 16, "c" * 32)

    async def answer(self, peer: str, name: str, argument: Any) -> Any:
        assert (peer, name) == ("", "who")
        return self.joiner


async def found_at(*addresses: tuple[str, int], config: Config | None = None) -> bool:
    config = configured(config, cluster={"join": tuple(Address(*each) for each in addresses)})
    with trio.fail_after(5):
        return await find_cluster(await loaded(), config, [SECRET], Certificates(config))


async def test_a_node_that_belongs_to_a_cluster_is_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = Asked("n9")
    async with running(asked):
        assert await found_at(asked.address)
    assert "does not bootstrap: there is a cluster" in caplog.text


@pytest.mark.parametrize(
    ("bind", "advertise", "host", "is_own"),
    [
        ("127.0.0.1", None, "127.0.0.1", True),
        ("127.0.0.1", None, "itself", True),  # whose name leads to it
        ("0.0.0.0", "public.example", "127.0.0.1", True),
        ("0.0.0.0", "public.example", "public.example", True),  # and to nobody
        ("127.0.0.1", None, "127.0.0.2", False),  # another on this machine
        ("0.0.0.0", None, "192.0.2.1", False),
        ("0.0.0.0", None, "public.example", False),
    ],
)
@pytest.mark.parametrize("same_port", [True, False])
async def test_a_founder_passes_over_its_own_address(
    bind: str, advertise: str | None, host: str, is_own: bool, same_port: bool
) -> None:
    """It said that it had found no cluster there."""
    trio.socket.set_custom_hostname_resolver(Names(itself="127.0.0.1"))
    raft: dict[str, Any] = {"bind": Address(bind, 4081)}
    if advertise is not None:
        raft["advertise"] = Address(advertise, 4081)
    config = configured(None, raft=raft)
    address = Address(host, 4081 if same_port else 4082)
    assert await _is_own(address, config) == (is_own and same_port)


@pytest.mark.parametrize(
    "joiner",
    [Joiner("n9", "9" * 16, ""), Joiner("n1", "1" * 16, "c" * 32), ("nonsense",)],
    ids=["of none yet", "itself", "nonsense"],
)
async def test_a_node_that_proves_no_cluster_keeps_nobody_from_founding_one(
    joiner: Any,
) -> None:
    asked = Asked("n9")
    asked.joiner = joiner
    async with running(asked):
        assert not await found_at(asked.address)


async def test_where_nobody_answers_there_is_no_cluster() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()[:2]
    await listener.aclose()
    assert not await found_at(address)


@pytest.mark.parametrize("why", ["secret", "objection"])
async def test_one_that_refuses_to_say_keeps_a_node_from_founding_a_cluster(why: str) -> None:
    """RAFT.md scenario 41: a second cluster under the same names is worse than none."""
    if why == "secret":
        asked = Asked("n9", secret=b"another secret")
    else:
        asked = Asked("n9", objection="node 'n1' has lost its data")
    async with running(asked):
        with pytest.raises(ConfigError, match=r"does not bootstrap: .* refuses this one") as told:
            await found_at(asked.address)
    assert ("the secrets of node" if why == "secret" else "has lost its data") in str(told.value)


@pytest.mark.parametrize("asks", ["plain", "TLS", "TLS of another CA"])
@pytest.mark.parametrize("answers", ["plain", "TLS"])
async def test_a_node_whose_tls_is_not_the_clusters_founds_no_other(
    tmp_path: Path, asks: str, answers: str
) -> None:
    """It was misconfigured, and must not take silence for nobody."""
    authority = trustme.CA()
    files = write(tmp_path, authority)
    tls = Certificates(peer_config(files)).peers if answers == "TLS" else None
    config = Config() if asks == "plain" else peer_config(files)
    if asks == "TLS of another CA":
        config = peer_config(write(tmp_path, trustme.CA(), name="other"))
    asked = Asked("n9", tls=tls)
    async with running(asked):
        if asks == answers:
            assert await found_at(asked.address, config=config)
        else:
            with pytest.raises(ConfigError, match=r"does not bootstrap: .* refuses this one"):
                await found_at(asked.address, config=config)


# --- the secret changes ---

OTHER = b"0c83b1e7f64a4f5d9e20a7b3c8d1f694"


def of_lines(tmp_path: Path, *secrets: bytes) -> Config:
    return with_secret(tmp_path, b"\n---\n".join(secrets) + b"\n")


def test_a_file_may_hold_two_secrets(tmp_path: Path) -> None:
    one = b"5f1d7a92" * 4
    assert read_secrets(of_lines(tmp_path, one, b"\n" + OTHER + b"\r")) == (one, OTHER)
    for wrong, words in (
        ((one, OTHER, OTHER[::-1]), "holds 3 secrets"),
        ((one, OTHER[:-1]), "the second secret in .* has 31 bytes"),
        ((b"s" * 64, one), "the first secret in .* has too few different characters"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_secrets(of_lines(tmp_path, *wrong))


async def test_a_secret_that_has_changed_is_taken_in_a_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = b"5f1d7a92" * 4
    secret = ClusterSecret(of_lines(tmp_path, one))
    await secret.load()
    first = secret.keys
    taken: list[tuple[bytes, ...]] = []
    news = trio.Event()

    def take(keys: tuple[bytes, ...]) -> None:
        taken.append(keys)
        news.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(secret.run, take)
        assert not secret.reload(of_lines(tmp_path, one)), "nothing has changed"
        assert secret.reload(of_lines(tmp_path, OTHER, one))
        assert secret.keys == first, "not before it is stretched"
        await news.wait()
        nursery.cancel_scope.cancel()
    assert taken == [secret.keys]
    assert secret.keys[1:] == first
    assert "accepted=2 proves='another'" in caplog.text
    assert "not in cluster.secret_file any more" not in caplog.text
    assert one.decode() not in repr(secret) + caplog.text


@pytest.mark.parametrize("after", [(OTHER,), (b"5f1d7a92" * 4 + OTHER,), (OTHER, OTHER[::-1])])
async def test_a_secret_that_no_other_overlaps_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, after: tuple[bytes, ...]
) -> None:
    """Two that were put together without a line break are another one, which nobody knows."""
    secret = ClusterSecret(of_lines(tmp_path, b"5f1d7a92" * 4))
    await secret.load()
    taken = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(secret.run, lambda _: taken.set())
        assert secret.reload(of_lines(tmp_path, *after))
        await taken.wait()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert caplog.text.count("the secret that this node has proved is not in") == 1
    assert f"accepted={len(after)} " in caplog.text


def test_what_cannot_be_used_leaves_the_secret_in_force(tmp_path: Path) -> None:
    secret = ClusterSecret(of_lines(tmp_path, OTHER))
    for wrong in (b"", b"short", b"s" * 64):
        with pytest.raises(ConfigError, match="what was in force is, also what was taken out"):
            secret.reload(of_lines(tmp_path, wrong))
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        secret.reload(configured(cluster={"secret_file": tmp_path / "secret"}))
    assert not secret.reload(of_lines(tmp_path, OTHER)), "it is the one of before"


def test_a_secret_where_there_was_none_asks_for_a_restart(tmp_path: Path) -> None:
    none = configured(raft={"bind": Address("127.0.0.1", 4081)})
    some = configured(none, cluster={"secret_file": tmp_path / "secret"})
    of_lines(tmp_path, OTHER)
    with pytest.raises(ConfigError, match="was added: restart all nodes"):
        ClusterSecret(none).reload(some)
    with pytest.raises(ConfigError, match="was taken away: restart all nodes"):
        ClusterSecret(some).reload(none)
