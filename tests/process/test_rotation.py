"""Secrets and certificates of living nodes change under load, by reload, and nobody notices."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from repl_broker.config import TOKEN_SECRET_BYTES_MIN
from tests.authority import write
from tests.process.member import NAMES, Member, Rounds
from tests.process.node import Broken, Client, Stream, polls
from tests.signing import claims, grants, hs256

pytestmark = pytest.mark.process

OLD: Final = "5f1d7a52c9a14d03b7a6d4f2d20c9b8e"
NEW: Final = "0c83b1e7f64a4f5d9e20a7b3c8d1f694"
SHORT: Final = NEW[: TOKEN_SECRET_BYTES_MIN - 1]


class Own(Member):
    """A member with files of its own, which a test replaces."""

    def __init__(self, folder: Path, name: str, *options: str, **keys: object) -> None:
        self.folder = folder / f"{name}-files"
        self.folder.mkdir()
        self.put(OLD)
        super().__init__(folder, name, *options, secret=self.secret, **keys)

    @property
    def secret(self) -> Path:
        return self.folder / "secret"

    def put(self, *secrets: str) -> None:
        """As a whole, as whoever cares does it."""
        made = self.folder / "made"
        made.touch(mode=0o600)
        made.write_text("\n---\n".join(secrets) + "\n")
        made.rename(self.secret)

    def reload(self) -> str:
        """What the log says of it."""
        since = len(self.log_text())
        self.process.send_signal(signal.SIGHUP)
        self.wait_log("reloaded", since)
        return self.log_text()[since:]

    def metric(self, name: str, token: str = "") -> float:
        with Client(self) as client:
            given = {"Authorization": f"Bearer {token}"} if token else {}
            text = client.request("GET", "/metrics", **given).body.decode()
        found = re.search(rf"^repl_broker_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])


@contextmanager
def cluster(folder: Path, **keys: Callable[[str], Any]) -> Iterator[list[Own]]:
    """Three that vote; each key is made for the node's name."""

    def made(name: str, *options: str) -> Own:
        return Own(folder, name, *options, **{key: make(name) for key, make in keys.items()})

    first = made(NAMES[0], "--bootstrap")
    others = [made(name, "--join", first.raft) for name in NAMES[1:]]
    with ExitStack() as opened:
        nodes = [opened.enter_context(node) for node in (first, *others)]
        for node in nodes:
            node.spawn()
        for node in nodes:
            node.wait_ready()
            node.wait_votes(*NAMES)
        yield nodes


class Reader:
    """Reads a topic of one node, in a thread, until the stream or its node ends."""

    def __init__(self, node: Member, topic: str, after: str, token: str | None = None) -> None:
        self.ids: list[str] = []
        self.ends: list[str] = []  # what it was told at its end
        self.failure: BaseException | None = None
        self._stream = Stream(node, topic, after=after, token=token)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for block in self._stream:
                if block.is_message:
                    self.ids.append(block.message["id"])
                elif block.event not in ("subscribed", "caught-up", "heartbeat"):
                    self.ends.append(f"{block.event} {block.fields['data']}")
        except (AssertionError, *Broken) as error:
            self.failure = error
        finally:
            self._stream.close()

    def wait(self, wanted: Sequence[str]) -> None:
        for _ in polls(lambda: f"{len(wanted)} messages: {len(self.ids)}, {self.failure!r}"):
            if len(self.ids) >= len(wanted):
                break
        assert self.ids == [*wanted]


def in_force(nodes: Sequence[Own], count: int, since: Sequence[int]) -> None:
    """Until each has taken what its file has, and every connection rests on the first of it."""
    for node, start in zip(nodes, since, strict=True):
        node.wait_log(f"accepted={count}", start)
    for _ in polls(lambda: f"connections: {[n.log_text()[-900:] for n in nodes]}"):
        if all(
            node.metric("peer_connections_second_secret") == 0
            and node.metric("peers_connected") == len(nodes) - 1
            for node in nodes
        ):
            return


def test_the_secret_of_a_cluster_changes_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    with cluster(tmp_path, log_format=lambda _: "console") as nodes:
        nodes[0].publish("t", "first")
        readers = [Reader(node, "t", "earliest") for node in nodes]
        with Rounds(nodes, "t") as rounds:
            rounds.wait_more()
            terms = {node.cluster()["term"] for node in nodes}
            for secrets in ((OLD, NEW), (NEW, OLD), (NEW,)):
                since = [len(node.log_text()) for node in nodes]
                for node in nodes:
                    node.put(*secrets)
                    assert "read anew key=cluster.secret_file" in node.reload()
                    rounds.wait_more()
                in_force(nodes, len(secrets), since)
            rounds.wait_more()
            assert rounds.forget_errors() == (set(), set())
        assert {node.cluster()["term"] for node in nodes} == terms, "nobody stood for election"
        kept = nodes[0].history("t")
        rounds.check_kept(kept[1:])
        for reader in readers:
            reader.wait([message["id"] for message in kept])
        assert [node.metric("peer_handshakes_refused_total") for node in nodes] == [0, 0, 0]
        assert not any("any more, neither" in node.log_text() for node in nodes)
        refuse_the_old(tmp_path, nodes[0])


def refuse_the_old(folder: Path, node: Own) -> None:
    """Whoever knows the old secret alone is a stranger now."""
    stranger = Own(folder, "n4", "--join", node.raft)
    with stranger:
        stranger.spawn()
        stranger.wait_log("the secrets of node 'n4'")


def test_a_file_that_cannot_be_used_leaves_what_is_in_force(tmp_path: Path) -> None:
    with cluster(tmp_path, log_format=lambda _: "console") as nodes:
        node = nodes[1]
        assert "reloaded, and nothing has changed" in node.reload()
        for secrets, words in (
            ((), "has 0 bytes; wanted 32"),
            ((NEW, SHORT), f"the second secret in .* has {len(SHORT)} bytes"),
            ((OLD, NEW, NEW[::-1]), "holds 3 secrets"),
        ):
            node.put(*secrets)
            said = node.reload()
            assert re.search(f"not applied part=secret problem=.*{words}.*taken out", said), said
            assert node.metric("reload_problems") == 1
        node.secret.unlink()
        assert "the configuration was not reloaded" in node.reload()
        assert node.metric("reload_problems") == 1
        nodes[0].kill()  # its connections are made anew, by what is in force
        nodes[0].start()
        for _ in polls("all to be connected"):
            if all(each.metric("peers_connected") == 2 for each in nodes):
                break
        node.publish("t", 1)
        node.put(OLD)
        assert "reloaded, and nothing has changed" in node.reload()
        assert node.metric("reload_problems") == 0


def file_of(files: dict[str, dict[str, Path]], key: str, name: str) -> Path:
    return files[name][key]


def test_all_certificates_of_a_cluster_change_under_load_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    """Those of the nodes by the same CA, and then the CA, in three reloads each."""
    authority, successor = trustme.CA(), trustme.CA()
    files = {name: write(tmp_path, authority, name=name) for name in NAMES}
    keys = {f"raft_{key}": partial(file_of, files, key) for key in files[NAMES[0]]}
    with cluster(tmp_path, log_format=lambda _: "console", **keys) as nodes:
        nodes[0].publish("t", "first")
        reader = Reader(nodes[2], "t", "earliest")
        with Rounds(nodes, "t") as rounds:
            rounds.wait_more()
            for issuer, trusted in (
                (authority, (authority,)),
                (None, (authority, successor)),
                (successor, (authority, successor)),
                (None, (successor,)),
            ):
                for node in nodes:
                    if issuer is not None:
                        write(tmp_path, issuer, name=node.name)
                    pems = b"".join(each.cert_pem.bytes() for each in trusted)
                    files[node.name]["tls_ca"].write_bytes(pems)
                    said = node.reload()
                    assert "reloaded applied=0 read_anew=" in said, said
                    renewed = "certificate renewed key=raft.tls_certificate" in said
                    assert renewed == (issuer is not None)
                    rounds.wait_more()
            assert rounds.forget_errors() == (set(), set())
        kept = nodes[0].history("t")
        rounds.check_kept(kept[1:])
        reader.wait([message["id"] for message in kept])
        ends = nodes[0].metric("certificate_expiry_timestamp_seconds")
        assert ends > 0


def test_tokens_of_two_secrets_are_good_until_one_is_dropped(tmp_path: Path) -> None:
    """On a node that serves; the streams of those that are dropped are told why they end."""

    def token(secret: str) -> str:
        payload = claims(repl_broker=grants(("t",), ("t",), admin=True))
        return hs256(payload, secret.encode())

    kept: list[str] = []

    def takes(node: Member, secret: str) -> bool:
        with Client(node) as client:
            answer = client.publish("t", b"1", Authorization=f"Bearer {token(secret)}")
        if answer.status == 201:
            kept.append(answer.json["id"])
        return answer.status == 201

    file = tmp_path / "token.secret"

    def put(*secrets: str) -> None:
        made = tmp_path / "made"
        made.touch(mode=0o600)
        made.write_text("\n---\n".join(secrets))
        made.rename(file)

    put(OLD)
    keys = {"auth_mode": "jwt", "auth_secret_file": file}
    with Own(tmp_path, "n1", log_format="console", **keys) as node:
        node.start()
        assert (takes(node, OLD), takes(node, NEW)) == (True, False)
        put(OLD, NEW)
        node.reload()
        assert (takes(node, OLD), takes(node, NEW)) == (True, True)
        readers = {secret: Reader(node, "t", "latest", token(secret)) for secret in (OLD, NEW)}
        kept.clear()
        put(NEW, OLD)
        node.reload()
        assert (takes(node, OLD), takes(node, NEW)) == (True, True)
        put(NEW, SHORT)
        assert re.search("not applied part=access .*what was taken out", node.reload())
        assert node.metric("reload_problems", token(NEW)) == 1, "one file, whoever reads it"
        assert (takes(node, OLD), takes(node, NEW)) == (True, True)
        readers[OLD].wait(kept)
        put(OLD, NEW)  # which is seen without a reload, too
        for _ in polls("the file to be read well"):
            if node.metric("reload_problems", token(NEW)) == 0:
                break
        file.unlink()
        node.reload()
        for _ in polls("the file to be missed"):
            if node.metric("reload_problems", token(NEW)) == 1:
                break
        put(NEW)
        node.reload()
        assert (takes(node, OLD), takes(node, NEW)) == (False, True)
        for _ in polls(lambda: f"the stream to end: {readers[OLD].ends}"):
            if readers[OLD].ends:
                break
        assert readers[OLD].ends == ['token-expired {"reason":"changed"}']
        assert node.metric("reload_problems", token(NEW)) == 0
        assert takes(node, NEW)
        readers[NEW].wait(kept)
        assert readers[NEW].ends == []
