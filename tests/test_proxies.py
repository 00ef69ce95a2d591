"""A stream goes through nginx, Caddy and HAProxy, with the configurations of the guide.

The blocks of docs/how-to/run-behind-a-proxy.md are taken as they are; ports,
certificates and the node's address become those of the test. The proxies' timeouts
and the node's heartbeats are shortened alike.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

import httpx
import pytest
import trio
import trustme

from repl_broker.cli.examination import Examination, Orders
from repl_broker.cli.findings import Finding
from tests.cli.test_doctor import Resolver
from tests.process.node import LEASH, WAIT_SECONDS_MAX, Node, free_port, polls
from tests.required import need_program
from tests.signing import SECRET, claims, hs256
from tests.test_docs import ROOT, blocks

pytestmark = pytest.mark.process

GUIDE: Final = ROOT / "docs" / "how-to" / "run-behind-a-proxy.md"
CLUSTER_GUIDE: Final = GUIDE.with_name("run-a-cluster.md")
HOST: Final = "broker.example"
PUBLIC_URL: Final = f"https://{HOST}"  # as the guide says
HEARTBEAT_SECONDS: Final = 1
TIMEOUT_SECONDS: Final = 3  # for the 60 of the guide; heartbeats are 1, not 15
AT_ONCE_SECONDS: Final = 1.0
JSON: Final = {"Content-Type": "application/json"}
BROWSER: Final = {"Accept-Encoding": "gzip, deflate, br, zstd"}

# Beside the guide's own block: what a whole configuration needs.
# Workers of root's nginx cannot read below a folder of root's otherwise.
USER: Final = "user root;" if os.geteuid() == 0 else ""
NGINX: Final = """
{user} daemon off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {block}
}}
"""
CADDY: Final = """
{{
    admin off
    auto_https disable_redirects
    storage file_system {folder}
}}
{block}
"""


def of_the_guide(order: str, guide: Path = GUIDE) -> list[str]:
    return [block.text for block in blocks(guide) if block.order == order]


(NGINX_BLOCK,) = of_the_guide("nginx")
CADDY_BLOCK, CADDY_GZIP_BLOCK = of_the_guide("caddy")
(HAPROXY_BLOCK,) = of_the_guide("haproxy")
(LOCATIONS_BLOCK,) = of_the_guide("nginx locations")
(NGINX_BELOW_BLOCK,) = of_the_guide("nginx below")
(CADDY_BELOW_BLOCK,) = of_the_guide("caddy below")
(HAPROXY_BELOW_BLOCK,) = of_the_guide("haproxy below")
(NGINX_CLUSTER_BLOCK,) = of_the_guide("nginx", CLUSTER_GUIDE)
(CADDY_CLUSTER_BLOCK,) = of_the_guide("caddy", CLUSTER_GUIDE)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    settings = {"http_public_url": PUBLIC_URL, "limits_heartbeat_seconds": HEARTBEAT_SECONDS}
    with Node(folder / "data", **settings) as found:
        found.start()
        yield found


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs, and how to reach it."""

    port: int
    trust: ssl.SSLContext

    def client(self, http2: bool = False) -> httpx.Client:
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"Host": HOST, **BROWSER},
            http1=not http2,
            http2=http2,
            verify=self.trust,
            timeout=WAIT_SECONDS_MAX,
        )


def sni(**more: Any) -> dict[str, Any]:
    return {"sni_hostname": HOST, **more}


def replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert re.search(old, text), f"the guide has no {old} any more"
        text = re.sub(old, new, text)
    return text


def configuration(
    program: str, block: str, folder: Path, node: Node, port: int, others: Sequence[Node] = ()
) -> str:
    """The guide's ``block``, for here."""
    block = block.replace("127.0.0.1:4080", f"127.0.0.1:{node.port}")
    # Of a cluster's three nodes one is there, unless there are others.
    block = block.replace("10.0.0.3:4080", f"127.0.0.1:{node.port}")
    for number, other in enumerate(others, 1):
        block = block.replace(f"10.0.0.{number}:4080", f"127.0.0.1:{other.port}")
    block = re.sub(r"10\.0\.0\.([12]):4080", r"127.0.0.1:\1", block)
    block = re.sub(r"\b60s", f"{TIMEOUT_SECONDS}s", block)
    if program == "nginx":
        changes = {
            r"listen 443\b": f"listen 127.0.0.1:{port}",
            r"/etc/ssl/broker.example.pem": f"{folder}/both.pem",
            r"/etc/ssl/broker.example.key": f"{folder}/both.pem",
        }
        return NGINX.format(user=USER, folder=folder, block=replaced(block, changes))
    if program == "caddy":
        site = f"https://{HOST}:{port} {{\nbind 127.0.0.1\ntls {folder}/both.pem {folder}/both.pem"
        return CADDY.format(folder=folder, block=replaced(block, {rf"^{HOST} {{": site}))
    changes = {
        r"maxconn 20000": "maxconn 200",  # needs as many descriptors, twice
        r"bind :443": f"bind 127.0.0.1:{port}",
        r"/etc/haproxy/broker.example.pem": f"{folder}/both.pem",
    }
    return replaced(block, changes)


COMMANDS: Final = {
    "nginx": ["-c", "{file}", "-p", "{folder}"],
    "caddy": ["run", "--adapter", "caddyfile", "--config", "{file}"],
    "haproxy": ["-db", "-f", "{file}"],
}


BELOW: Final = "/realtime"


def below_the_path() -> dict[str, str]:
    """The guide's blocks, with those for a path in their places."""
    before, _, after = NGINX_BLOCK.partition("    location / {")
    head, _, _ = HAPROXY_BLOCK.partition("frontend browsers")
    return {
        "nginx": before + NGINX_BELOW_BLOCK + after.partition("\n    }\n")[2],
        "caddy": CADDY_BELOW_BLOCK,
        "haproxy": head + HAPROXY_BELOW_BLOCK,
    }


@contextmanager
def proxy(
    program: str, block: str, folder: Path, node: Node, others: Sequence[Node] = ()
) -> Iterator[Proxy]:
    path = need_program(program, f"/usr/sbin/{program}")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    port, file, log = free_port(), folder / "configuration", folder / "log"
    file.write_text(configuration(program, block, folder, node, port, others))
    arguments = [each.format(file=file, folder=folder) for each in COMMANDS[program]]
    with log.open("wb") as output:
        process = subprocess.Popen([*LEASH, path, *arguments], stdout=output, stderr=output)
    with process:
        try:
            found = Proxy(port, trust)
            wait_ready(found, process, log)
            yield found
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()


def wait_ready(found: Proxy, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in polls(lambda: f"the proxy: {log.read_text()}"):
        assert process.poll() is None, log.read_text()
        with suppress(httpx.TransportError), found.client() as client:
            for path in ("/readyz", f"{BELOW}/readyz"):
                if '"ok"' in client.get(path, extensions=sni()).text:
                    return


class Watch:
    """A stream through a proxy, block by block."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._text = ""
        self._chunks = response.iter_text()

    def block(self) -> str:
        """The next one. Raises httpx.ReadTimeout if it does not come in time."""
        while "\n\n" not in self._text:
            self._text += next(self._chunks)
        found, self._text = self._text.split("\n\n", 1)
        return found

    def until(self, text: str) -> str:
        while text not in (found := self.block()):
            pass
        return found


@contextmanager
def stream(
    client: httpx.Client,
    patience: float = WAIT_SECONDS_MAX,
    path: str = "/v1/events?topic=t",
) -> Iterator[Watch]:
    """A stream in which nothing may be silent for longer than ``patience``."""
    timeout = {"connect": 9.0, "write": 9.0, "pool": 9.0, "read": patience}
    extensions = sni(timeout=timeout)
    with client.stream("GET", path, extensions=extensions) as response:
        yield Watch(response)


every_proxy = pytest.mark.parametrize(
    ("program", "block"),
    [
        ("nginx", NGINX_BLOCK),
        ("caddy", CADDY_BLOCK),
        ("caddy", CADDY_GZIP_BLOCK),
        ("haproxy", HAPROXY_BLOCK),
        ("nginx", NGINX_CLUSTER_BLOCK),
        ("caddy", CADDY_CLUSTER_BLOCK),
    ],
    ids=["nginx", "caddy", "caddy-with-gzip", "haproxy", "nginx-cluster", "caddy-cluster"],
)


@every_proxy
def test_a_stream_goes_through_without_delay_and_lives_on_heartbeats(
    program: str, block: str, node: Node, tmp_path: Path
) -> None:
    with proxy(program, block, tmp_path, node) as found:
        for http2 in (False, True):
            with found.client(http2) as reader, found.client() as publisher:
                begun = time.monotonic()
                with stream(reader) as watch:
                    assert watch.response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
                    assert watch.response.headers["Content-Type"] == "text/event-stream"
                    assert "Content-Encoding" not in watch.response.headers
                    watch.until("event: subscribed")
                    assert time.monotonic() - begun < AT_ONCE_SECONDS

                    begun = time.monotonic()
                    message = publish(publisher, "t", 1)
                    assert f"id: {message['id']}\n" in watch.until("data: ")
                    assert time.monotonic() - begun < AT_ONCE_SECONDS

                    begun = time.monotonic()
                    while time.monotonic() - begun < TIMEOUT_SECONDS + HEARTBEAT_SECONDS:
                        assert re.match("id: [0-9a-f]{8}-[0-9]+\nevent: heartbeat\n", watch.block())
                    last = publish(publisher, "t", 2)
                    assert f"id: {last['id']}\n" in watch.until("data: ")


@every_proxy
def test_the_node_is_told_at_once_that_a_reader_has_gone(
    program: str, block: str, tmp_path: Path
) -> None:
    """Not only by a heartbeat that cannot be delivered: there is none here."""
    settings = {"http_public_url": PUBLIC_URL, "limits_heartbeat_seconds": 300}
    with Node(tmp_path / "data", **settings) as node:
        node.start()
        node.publish("t", 1)
        unhurried = re.sub(r"\b60s", "300s", block)
        with proxy(program, unhurried, tmp_path, node) as found:
            for http2 in (False, True):
                with found.client(http2) as reader, stream(reader) as watch:
                    watch.until("event: subscribed")
                    assert node.get("/v1/topics/t")["subscribers"] == 1
                for _ in polls("the reader to be gone"):
                    if node.get("/v1/topics/t")["subscribers"] == 0:
                        break


@every_proxy
def test_a_batch_as_large_as_the_node_takes_goes_through(
    program: str, block: str, node: Node, tmp_path: Path
) -> None:
    lines = "".join(f'"{"x" * 999_000}"\n' for _ in range(6))
    with proxy(program, block, tmp_path, node) as found, found.client() as client:
        answer = client.post(
            "/v1/topics/large/messages",
            content=lines,
            headers={"Content-Type": "application/x-ndjson"},
            extensions=sni(),
        )
        assert answer.json()["count"] == 6


@every_proxy
def test_pages_of_the_proxys_own_origin_may_write_by_whatever_port(
    program: str, block: str, tmp_path: Path
) -> None:
    """With the cookie, and no public_url to go by: the proxy passes the host on, with its port."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    cookie = f"repl_broker_token={hs256(claims(repl_broker={'publish': ['t']}))}"
    with ExitStack() as stack:
        node = stack.enter_context(
            Node(tmp_path / "data", auth_mode="jwt", auth_secret_file=secret)
        )
        node.start()
        found = stack.enter_context(proxy(program, block, tmp_path, node))
        own = f"https://{HOST}:{found.port}"
        for http2 in (False, True):
            with found.client(http2) as client:
                for origin, status in (
                    (own, 201),
                    (PUBLIC_URL, 403),
                    ("https://evil.example", 403),
                ):
                    headers = {"Host": f"{HOST}:{found.port}", "Origin": origin, "Cookie": cookie}
                    answer = client.post(
                        "/v1/topics/t/messages", json=1, headers=headers, extensions=sni()
                    )
                    assert answer.status_code == status, answer.text


def curl(found: Proxy, folder: Path, path: str, *options: str) -> list[str]:
    """The command that asks the proxy for ``path`` over HTTP/2."""
    return [
        *(need_program("curl"), "--silent", "--show-error", "--no-buffer", "--http2"),
        *("--cacert", str(folder / "ca.pem"), "--resolve", f"{HOST}:{found.port}:127.0.0.1"),
        *("--max-time", str(WAIT_SECONDS_MAX), *options, f"https://{HOST}:{found.port}{path}"),
    ]


def test_curl_reads_a_stream_and_publishes_over_http_2_through_nginx(
    node: Node, tmp_path: Path
) -> None:
    """Another implementation of HTTP/2 than that of the tests above."""
    with proxy("nginx", NGINX_BLOCK, tmp_path, node) as found:
        reads = curl(found, tmp_path, "/v1/events?topic=curl", "--include")
        with subprocess.Popen(reads, stdout=subprocess.PIPE, text=True) as reader:
            try:
                assert reader.stdout is not None
                lines = iter(reader.stdout)
                assert next(lines).split() == ["HTTP/2", "200"]
                assert any("event: subscribed" in line for line in lines)
                posts = ("--json", '{"a": 1}', "--write-out", "\n%{http_version} %{http_code}")
                command = curl(found, tmp_path, "/v1/topics/curl/messages", *posts)
                answer = subprocess.run(command, capture_output=True, text=True, check=True)
                body, version = answer.stdout.rsplit("\n", 1)
                assert version == "2 201"
                assert any(f"id: {json.loads(body)['id']}" in line for line in lines)
            finally:
                reader.kill()


def publish(client: httpx.Client, topic: str, data: object) -> Any:
    answer = client.post(f"/v1/topics/{topic}/messages", json=data, extensions=sni())
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_proxy_that_buffers_is_told_from_one_that_does_not(node: Node, tmp_path: Path) -> None:
    """What the guide warns of; and the tests above would fail with it."""
    buffering = NGINX_BLOCK.replace(
        "proxy_buffering off;", "proxy_ignore_headers X-Accel-Buffering;"
    )
    assert buffering != NGINX_BLOCK
    with proxy("nginx", buffering, tmp_path, node) as found, found.client() as client:
        with pytest.raises((httpx.ReadTimeout, httpx.RemoteProtocolError, StopIteration)):
            with stream(client, patience=2 * AT_ONCE_SECONDS) as watch:
                watch.until("event: subscribed")


def diagnosed(found: Proxy) -> dict[str, str]:
    """What the doctor says, by way of the proxy: the worst verdict of each check."""
    findings: list[Finding] = []

    async def examine() -> None:
        trio.socket.set_custom_hostname_resolver(Resolver())
        orders = Orders(f"https://{HOST}:{found.port}", idle_seconds=0, patience_seconds=3)
        await Examination(orders, findings.append, trust=found.trust).run()

    with mock.patch.dict(os.environ, {"NO_PROXY": "*"}):
        trio.run(examine)
    rank = ("ok", "untested", "warning", "problem")
    return {each.check: each.verdict for each in sorted(findings, key=lambda f: rank.index(f[1]))}


@every_proxy
def test_the_doctor_finds_nothing_wrong_with_the_guides_proxies(
    program: str, block: str, node: Node, tmp_path: Path
) -> None:
    with proxy(program, block, tmp_path, node) as found:
        verdicts = diagnosed(found)
    assert "problem" not in verdicts.values(), verdicts
    for check in ("tls", "http2", "buffering", "compression", "headers", "delivery", "resume"):
        assert verdicts[check] == "ok", verdicts


def test_the_doctor_names_a_proxy_that_buffers(node: Node, tmp_path: Path) -> None:
    buffering = NGINX_BLOCK.replace(
        "proxy_buffering off;", "proxy_ignore_headers X-Accel-Buffering;"
    )
    with proxy("nginx", buffering, tmp_path, node) as found:
        verdicts = diagnosed(found)
    assert {c for c, verdict in verdicts.items() if verdict == "problem"} == {"buffering"}, verdicts


def test_the_proxy_lets_others_only_read(node: Node, tmp_path: Path) -> None:
    before, _, after = NGINX_BLOCK.partition("    location / {")
    block = before + LOCATIONS_BLOCK + after.partition("\n    }\n")[2]
    with proxy("nginx", block, tmp_path, node) as found, found.client() as client:

        def status(method: str, path: str) -> int:
            return client.request(method, path, content="1", extensions=sni()).status_code

        assert status("GET", "/v1/topics") == 200
        assert status("POST", "/v1/topics/t/messages") == 403
        assert status("DELETE", "/v1/topics/t") == 403
        assert status("GET", "/metrics") == 403
        with stream(client) as watch:
            watch.until("event: subscribed")


FORGED: Final[Mapping[str, list[tuple[str, str]]]] = {
    "nothing": [],
    "an-address": [("X-Forwarded-For", "6.6.6.6")],
    "several": [("X-Forwarded-For", "6.6.6.6, 7.7.7.7,127.0.0.1")],
    "several-lines": [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "7.7.7.7")],
    "the-proxys-own": [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "127.0.0.1")],
    "with-ports": [("X-Forwarded-For", "6.6.6.6:1234, [2001:db8::6]:4711")],
    "garbage": [("X-Forwarded-For", 'unknown, "; for=_hidden, 6.6.6.6 7.7.7.7')],
    "an-end-of-commas": [("X-Forwarded-For", "6.6.6.6, , ,")],
    "empty": [("X-Forwarded-For", "")],
    "very-many": [("X-Forwarded-For", ", ".join(["6.6.6.6"] * 200))],
    "other-names": [
        ("Forwarded", 'for=6.6.6.6;proto=https, for="[2001:db8::6]"'),
        ("X-Real-IP", "6.6.6.6"),
        ("True-Client-IP", "6.6.6.6"),
        ("CF-Connecting-IP", "6.6.6.6"),
        ("X_Forwarded_For", "6.6.6.6"),
    ],
}
CLIENT: Final = "127.0.0.9"  # where the client is; the proxies are at 127.0.0.1


@pytest.fixture(scope="module")
def node_that_trusts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("trusts")
    settings = {
        "http_public_url": PUBLIC_URL,
        "http_trusted_proxies": "127.0.0.1",
        "http_access_log": True,
        "limits_heartbeat_seconds": HEARTBEAT_SECONDS,
    }
    with Node(folder / "data", **settings) as found:
        found.start()
        yield found


def counted_for(node: Node, path: str, lines: int) -> set[str]:
    """Whose the requests to ``path`` were, of which there are so many."""
    for _ in polls(lambda: f"{lines} lines for {path}: {node.log_text()[-2000:]}"):
        found = re.findall(rf'path={re.escape(path)} [^"]* client=([^\s"]+)', node.log_text())
        if len(found) == lines:
            return {*found}
    raise AssertionError


@every_proxy
def test_a_client_counts_under_its_own_address_whatever_it_says_of_itself(
    program: str, block: str, node_that_trusts: Node, tmp_path: Path
) -> None:
    node, way = node_that_trusts, tmp_path.name.replace("_", "-").replace(".", "-")
    with proxy(program, block, tmp_path, node) as found:
        transport = httpx.HTTPTransport(verify=found.trust, local_address=CLIENT)
        with (
            found.client() as template,
            httpx.Client(
                base_url=template.base_url, transport=transport, timeout=WAIT_SECONDS_MAX
            ) as client,
        ):
            for name, fields in FORGED.items():
                headers = [("Host", HOST), ("Content-Type", "application/json"), *fields]
                path = f"/v1/topics/{way}.{name}/messages"
                answer = client.post(path, content="1", headers=headers, extensions=sni())
                assert answer.status_code == 201, (name, answer.text)
                read = client.get(path, headers=headers, extensions=sni())  # by another way
                assert read.status_code == 200, (name, read.text)
                assert counted_for(node, path, 2) == {CLIENT}, name


@pytest.fixture(scope="module")
def nodes_below(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    """One that is told its path by the configuration, and one that a proxy tells it."""
    folder = tmp_path_factory.mktemp("below")
    url = f"https://{HOST}{BELOW}/"
    short = {"limits_heartbeat_seconds": HEARTBEAT_SECONDS}
    with (
        Node(folder / "url", **short, http_public_url=url) as by_url,
        Node(
            folder / "field", **short, http_hosts=HOST, http_trusted_proxies="127.0.0.1"
        ) as by_field,
    ):
        by_url.start()
        by_field.start()
        yield {"public_url": by_url, "X-Forwarded-Prefix": by_field}


@pytest.mark.parametrize("program", ["nginx", "caddy", "haproxy"])
@pytest.mark.parametrize("told_by", ["public_url", "X-Forwarded-Prefix"])
def test_below_a_path_everything_stays_below_it(
    program: str, told_by: str, nodes_below: dict[str, Node], tmp_path: Path
) -> None:
    node, block = nodes_below[told_by], below_the_path()[program]
    topic = f"{program}.{told_by.replace('_', '-').lower()}"
    with proxy(program, block, tmp_path, node) as found, found.client() as client:

        def get(path: str, status: int = 200, **more: Any) -> httpx.Response:
            answer = client.get(path, extensions=sni(), **more)
            assert answer.status_code == status, (path, answer.text)
            return answer

        for page in ("/docs", "/ui/"):
            links = re.findall(r'(?:href|src)="([^"#]+)"', get(BELOW + page).text)
            own = [each for each in links if not each.startswith(("https://", "data:"))]
            assert own
            for link in own:
                url = httpx.URL(f"https://{HOST}{BELOW}{page}").join(link)
                assert url.path.startswith(f"{BELOW}/")
                if url.path != f"{BELOW}/metrics":
                    get(url.path)

        location = get(f"{BELOW}/ui", 308).headers["Location"]
        assert httpx.URL(f"https://{HOST}{BELOW}/ui").join(location).path == f"{BELOW}/ui/"
        (server,) = get(f"{BELOW}/openapi.json").json()["servers"]
        assert server["url"] == BELOW

        forged = {"X-Forwarded-Prefix": "/evil"}  # a client's own, which the proxy replaces
        for way in (f"{BELOW}/v1/topics/no..name", f"{BELOW}/v1/events?topic=a..b"):
            assert get(way, 400, headers=forged).json()["type"].startswith(f"{BELOW}/docs#")
        made = client.post(
            f"{BELOW}/v1/topics", json={"name": topic}, headers=forged, extensions=sni()
        )
        assert made.headers["Location"].removeprefix(f"https://{HOST}") == (
            f"{BELOW}/v1/topics/{topic}"
        )
        get(made.headers["Location"])

        path = f"{BELOW}/v1/topics/{topic}/messages"
        refused = client.post(path, content=b"{", headers=JSON, extensions=sni())
        assert refused.json()["type"] == f"{BELOW}/docs#invalid_json"
        with stream(client, path=f"{BELOW}/v1/events?topic={topic}") as watch:
            watch.until("event: subscribed")
            with found.client() as publisher:
                answer = publisher.post(path, json=1, extensions=sni())
            assert answer.status_code == 201
            watch.until(f"id: {answer.json()['id']}\n")
