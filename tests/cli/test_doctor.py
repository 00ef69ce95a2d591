"""The doctor, through good proxies and bad ones, before a node without disk."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
from typing import Any

import httpx
import pytest
import trio
import trustme
from trio.testing import MockClock

from repl_broker.cli.examination import (
    NOT_READY_REMEDIES,
    Examination,
    Orders,
    reasons,
    remedy_of,
)
from repl_broker.cli.findings import (
    Finding,
    judge_clock,
    judge_clocks,
    judge_cluster,
    judge_commits,
    judge_descriptors,
    judge_files,
    judge_latency,
    judge_turns,
    judge_versions,
    percentile,
    read_metrics,
    skew_seconds_max,
)
from repl_broker.config import ClusterConfig, Config
from repl_broker.readiness import REMEDIES
from tests.cli.bad_proxy import Wrongs, bad_proxy, with_field, without
from tests.cli.conftest import Run
from tests.cli.fake_broker import FakeBroker, html
from tests.nodes import configured
from tests.web.doors import serving

NAME = "broker.example"
PAGE = "http://page.example"
CORS = configured(Config(), http={"cors_origins": (PAGE,)})
TIME_OF_NODES = 1_800_000_000.0  # of tests/nodes.py


@pytest.fixture
def clock() -> MockClock:
    """Jumps when nothing has happened for so long, really: loopback has delivered by then."""
    return MockClock(autojump_threshold=0.02)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Resolver(trio.abc.HostnameResolver):
    """Names of a test's own: broker.example is here, and no other exists."""

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))]

    async def getnameinfo(self, *_: Any) -> Any:
        raise AssertionError("nobody asks for the name of an address")


async def examined(url: str, trust: ssl.SSLContext | None = None, **orders: Any) -> list[Finding]:
    found: list[Finding] = []
    orders = {"canaries": 4, **orders}
    examination = Examination(
        Orders(url, **orders), found.append, trust=trust, now=lambda: TIME_OF_NODES
    )
    with trio.fail_after(300):
        await examination.run()
    return found


async def through(
    wrongs: Wrongs, config: Config | None = None, **orders: Any
) -> dict[str, list[Finding]]:
    """What is found by way of such a proxy, by check. Dates of answers are the node's."""
    date = "Date: Fri, 15 Jan 2027 08:00:00 GMT"
    assert datetime.datetime(2027, 1, 15, 8, tzinfo=datetime.UTC).timestamp() == TIME_OF_NODES
    response = wrongs.response
    wrongs.response = lambda head: response(with_field(date)(head))
    async with serving(config=config, seconds_max=1000) as served:
        async with bad_proxy(served.door.port, wrongs) as port:
            found = await examined(f"http://127.0.0.1:{port}", **orders)
    by_check: dict[str, list[Finding]] = {}
    for each in found:
        by_check.setdefault(each.check, []).append(each)
    return by_check


def verdicts(found: dict[str, list[Finding]]) -> dict[str, set[str]]:
    return {check: {each.verdict for each in findings} for check, findings in found.items()}


def problems(found: dict[str, list[Finding]]) -> set[str]:
    return {check for check, each in verdicts(found).items() if "problem" in each}


WELL = {
    "connect": {"ok"},
    "http2": {"warning"},
    "node": {"ok"},
    "clock": {"ok"},
    "ready": {"ok"},
    "buffering": {"ok"},
    "compression": {"ok"},
    "headers": {"ok"},
    "publish": {"ok"},
    "publish-latency": {"ok"},
    "delivery": {"ok"},
    "resume": {"ok"},
    "idle": {"untested"},
    "cors": {"ok"},
    "cluster": {"ok"},
    "versions": {"ok"},
    "descriptors": {"ok"},
    "disk": {"ok"},
    "loop": {"ok"},
    "files": {"ok"},
}


async def test_through_a_good_proxy_all_is_well(clock: MockClock) -> None:
    found = await through(Wrongs(), CORS, origin=PAGE)
    expected = {**WELL}
    found.pop("descriptors")  # as many as whoever runs the tests may open
    expected.pop("descriptors")
    assert verdicts(found) == expected
    assert "six connections" in found["http2"][0].found
    assert "not tested" in found["idle"][0].found


@pytest.mark.parametrize(("topic", "few"), [("_doctor", True), ("orders", False)])
async def test_the_doctors_own_topic_goes_by_itself(
    topic: str, few: bool, clock: MockClock
) -> None:
    async with serving(seconds_max=1000) as served:
        await examined(f"http://127.0.0.1:{served.door.port}", topic=topic)
        topics = served.node.replica.state.topics
        assert [*topics] == [topic]
        kept = topics[topic].retention
    assert ((kept.idle_seconds, kept.messages) == (3600, 100)) == few


async def test_every_finding_that_is_not_ok_has_a_remedy(clock: MockClock) -> None:
    found = await through(Wrongs(holds_heads=True, request=without("Last-Event-ID")))
    for each in (each for findings in found.values() for each in findings):
        assert each.remedy or each.verdict in ("ok", "untested"), each


async def test_a_proxy_that_buffers_is_named(clock: MockClock) -> None:
    found = await through(Wrongs(holds_heads=True))
    assert problems(found) == {"buffering"}
    assert "proxy_buffering off" in found["buffering"][0].remedy
    assert verdicts(found)["resume"] == verdicts(found)["idle"] == {"untested"}
    assert verdicts(found)["publish"] == {"ok"}, "the rest is looked at all the same"


async def test_a_proxy_that_holds_messages_back_is_named(clock: MockClock) -> None:
    # The first block comes, since it fills a buffer or is flushed with the head; then nothing.
    found = await through(Wrongs(holds_after=b'"}\n\n'))
    assert {"delivery", "resume"} <= problems(found)
    assert "4 of 4 canaries" in found["delivery"][0].found


async def test_a_compressed_stream_is_a_warning(clock: MockClock) -> None:
    found = await through(Wrongs(compresses="flushing"))
    assert problems(found) == set()
    assert verdicts(found)["compression"] == {"warning"}
    assert "gzip" in found["compression"][0].found


async def test_compression_that_holds_events_back_is_told_from_buffering(
    clock: MockClock,
) -> None:
    found = await through(Wrongs(compresses="holding"))
    assert "compression" in problems(found)
    assert "buffering" not in found
    assert verdicts(found)["delivery"] == {"ok"}, "of the stream without compression"


async def test_silence_that_is_cut_is_named_with_its_length(clock: MockClock) -> None:
    found = await through(Wrongs(cuts_after_silence_seconds=10), idle_seconds=30)
    assert problems(found) == {"idle"}
    assert "after 10.0 s of silence" in found["idle"][0].found
    assert "proxy_read_timeout" in found["idle"][0].remedy


async def test_heartbeats_keep_a_stream_open(clock: MockClock) -> None:
    found = await through(Wrongs(cuts_after_silence_seconds=20), idle_seconds=31)
    assert problems(found) == set()
    (idle,) = found["idle"]
    assert (idle.verdict, "2 heartbeats" in idle.found) == ("ok", True)


async def test_a_heartbeat_that_does_not_come_is_a_warning(clock: MockClock) -> None:
    rare = configured(Config(), limits={"heartbeat_seconds": 3600})
    found = await through(Wrongs(), rare, idle_seconds=31)
    assert verdicts(found)["idle"] == {"warning"}


async def test_a_last_event_id_that_is_lost_is_named(clock: MockClock) -> None:
    found = await through(Wrongs(request=without("Last-Event-ID")))
    assert problems(found) == {"resume"}
    assert "Last-Event-ID" in found["resume"][0].found


async def test_clocks_that_differ_are_named(clock: MockClock) -> None:
    async with serving(seconds_max=1000) as served:
        skewed = Wrongs(response=with_field("Date: Fri, 15 Jan 2027 08:02:00 GMT"))
        served.node.clock.now_ms += 60_000
        async with bad_proxy(served.door.port, skewed) as port:
            found = await examined(f"http://127.0.0.1:{port}")
    clocks = [each for each in found if each.check == "clock"]
    assert [each.verdict for each in clocks] == ["warning", "warning"]
    assert "Date" in clocks[0].found
    assert "120 s ahead of" in clocks[0].found
    assert "60 s ahead of" in clocks[1].found


async def test_header_fields_that_are_stripped_are_named(clock: MockClock) -> None:
    found = await through(
        Wrongs(response=lambda h: without("Cache-Control")(without("X-Accel-Buffering")(h)))
    )
    assert problems(found) == set()
    assert [each.verdict for each in found["headers"]] == ["warning", "ok"]
    assert "no-transform" in found["headers"][0].found


@pytest.mark.parametrize(
    ("wrongs", "config", "words"),
    [
        (Wrongs(), Config(), "no Access-Control-Allow-Origin"),
        (Wrongs(response=without("Access-Control-Allow-Origin")), CORS, "no Access-Control"),
        (
            Wrongs(
                response=lambda h: h.replace(
                    b"\r\n\r\n", b"\r\nAccess-Control-Allow-Origin: *\r\n\r\n", 1
                )
            ),
            CORS,
            "2 times",
        ),
        (
            Wrongs(response=with_field("Access-Control-Allow-Origin: https://other")),
            CORS,
            "'https://other'",
        ),
        (
            Wrongs(response=without("Access-Control-Allow-Methods")),
            CORS,
            "does not allow POST",
        ),
    ],
)
async def test_what_a_browser_refuses_to_a_page_is_named(
    clock: MockClock, wrongs: Wrongs, config: Config, words: str
) -> None:
    found = await through(wrongs, config, origin=PAGE)
    assert problems(found) == {"cors"}
    assert words in found["cors"][0].found


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<h1>It works!</h1>",
            "not a repl-broker",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[" + b"[" * 9999, "not a repl"),
        (b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", "502"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://x/\r\nContent-Length: 0\r\n\r\n",
            "'https://x/'",
        ),
        (b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n", "refused with 401"),
        (b"SSH-2.0-OpenSSH\r\n", "breaks the connection"),
        (b"", "breaks the connection"),
    ],
)
async def test_what_is_not_a_node_is_said(clock: MockClock, answer: bytes, words: str) -> None:
    found = await through(Wrongs(instead=answer))
    assert problems(found) == {"node"}
    assert words in found["node"][-1].found
    assert verdicts(found)["the-rest"] == {"untested"}


async def test_a_server_that_says_nothing_is_told_in_time(clock: MockClock) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        found = await examined(f"http://127.0.0.1:{port}")
    assert found[-2].verdict == "problem"
    assert "not answered within 5 s" in found[-2].found


@pytest.mark.parametrize("answers_after", [5.0, 600.0], ids=["refused", "never answered"])
async def test_what_needs_no_leader_is_looked_at_though_nothing_can_be_written(
    clock: MockClock, answers_after: float
) -> None:
    """A node without a leader refuses a write after 5 s, which is as long as an answer may take."""

    class NoLeader(Examination):
        async def sent(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
            if request.method != "POST":
                return await super().sent(request, stream=stream)
            await trio.sleep(answers_after)
            kind = {"Content-Type": "application/problem+json"}
            refusal = {"code": "no_leader", "detail": "Nobody leads."}
            return httpx.Response(503, json=refusal, headers=kind, request=request)

    found: list[Finding] = []
    async with serving(seconds_max=1000) as served:
        orders = Orders(f"http://127.0.0.1:{served.door.port}", origin=PAGE)
        await NoLeader(orders, found.append, now=lambda: TIME_OF_NODES).run()
    checks = {each.check for each in found}
    assert {"cors", "cluster", "versions", "descriptors", "disk", "loop", "files"} <= checks
    assert "the-rest" not in checks
    refused = [each.found for each in found if each.check == "publish"]
    assert refused == (
        ["the publish is refused with 503: Nobody leads. [no_leader]"]
        if answers_after == 5.0
        else []
    )


@pytest.mark.parametrize("code", [*REMEDIES, "shutting_down"])
def test_each_reason_why_a_node_is_not_ready_has_its_own_remedy(code: str) -> None:
    both = [{"code": code, "detail": "…"}, {"code": "of another version", "detail": "…"}]
    remedy = remedy_of(httpx.Response(503, json={"code": code, "reasons": both}))
    assert remedy == NOT_READY_REMEDIES[code]
    others = {NOT_READY_REMEDIES[each] for each in NOT_READY_REMEDIES if each != code}
    assert remedy not in others


@pytest.mark.parametrize("odd", [[], "x", ["x"], [{}], [{"code": ["x"]}], None])
def test_a_node_that_gives_no_reason_has_its_log(odd: object) -> None:
    found = remedy_of(httpx.Response(503, json={"code": "behind", "reasons": odd}))
    assert found == "look at the node's log and the cluster"


async def test_a_topic_that_may_not_be_made_is_said(clock: MockClock) -> None:
    config = configured(Config(), topics={"auto_create": False})
    found = await through(Wrongs(), config, topic="orders")
    assert problems(found) == {"stream"}
    assert "--topic" in found["stream"][0].remedy
    assert problems(await through(Wrongs(), config)) == set(), (
        "its own it may make, as all may here"
    )


async def test_the_token_is_sent_and_a_refusal_is_said(clock: MockClock) -> None:
    heads: list[bytes] = []

    def note(head: bytes) -> bytes:
        heads.append(head)
        return without("Authorization")(head)

    await through(Wrongs(request=note), token="abc.def")
    assert heads
    assert all(b"\r\nAuthorization: Bearer abc.def\r\n" in head for head in heads)


# --- the way there ---


async def test_a_name_that_does_not_exist_is_said(clock: MockClock) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    found = await examined("http://nobody.example:1")
    assert [each.verdict for each in found] == ["problem", "untested"]
    assert "'nobody.example' cannot be resolved" in found[0].found


async def test_a_refused_connection_is_said(clock: MockClock) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    found = await examined(f"http://127.0.0.1:{port}")
    assert [each.verdict for each in found] == ["problem", "untested"]
    assert "Connection refused" in found[0].found


class Authority:
    """A certificate authority of a test's own."""

    def __init__(self) -> None:
        self.ca = trustme.CA()

    def server(self, name: str = NAME, days: float = 90, h2: bool = False) -> ssl.SSLContext:
        now = datetime.datetime.fromtimestamp(TIME_OF_NODES, datetime.UTC)
        ends = now + datetime.timedelta(days=days)
        certificate = self.ca.issue_cert(
            name, not_before=datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC), not_after=ends
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"] if h2 else ["http/1.1"])
        return context

    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def over_tls(
    tls: ssl.SSLContext, trust: ssl.SSLContext, public_url: str | None = f"https://{NAME}"
) -> list[Finding]:
    trio.socket.set_custom_hostname_resolver(Resolver())
    config = configured(Config(), http={"public_url": public_url})
    async with serving(config=config, seconds_max=1000) as served:
        async with bad_proxy(served.door.port, Wrongs(), tls) as port:
            return await examined(f"https://{NAME}:{port}", trust)


def of(found: list[Finding], check: str) -> Finding:
    (finding,) = (each for each in found if each.check == check)
    return finding


async def test_tls_with_http2_is_well(clock: MockClock, authority: Authority) -> None:
    found = await over_tls(authority.server(h2=True), authority.trust())
    assert of(found, "tls").verdict == "ok"
    assert of(found, "http2").verdict == "ok"
    assert of(found, "resume").verdict == "ok"


async def test_a_name_that_the_node_does_not_serve_is_said(
    clock: MockClock, authority: Authority
) -> None:
    found = await over_tls(authority.server(h2=True), authority.trust(), None)
    assert of(found, "node").verdict == "problem"
    assert f"'{NAME}:" in of(found, "node").found
    assert "[http] public_url" in of(found, "node").remedy


async def test_tls_without_http2_is_a_warning(clock: MockClock, authority: Authority) -> None:
    found = await over_tls(authority.server(), authority.trust())
    assert of(found, "http2").verdict == "warning"


async def test_a_certificate_that_soon_ends_is_a_warning(
    clock: MockClock, authority: Authority
) -> None:
    found = await over_tls(authority.server(days=5), authority.trust())
    assert of(found, "tls").verdict == "warning"
    assert "5 days" in of(found, "tls").found


async def test_a_certificate_that_has_expired_is_said(
    clock: MockClock, authority: Authority
) -> None:
    found = await over_tls(authority.server(days=-8000), authority.trust())
    assert of(found, "tls").verdict == "problem"
    assert "expired" in of(found, "tls").found


async def test_a_certificate_for_another_name_is_said(
    clock: MockClock, authority: Authority
) -> None:
    found = await over_tls(authority.server("other.example"), authority.trust())
    assert "not for 'broker.example'" in of(found, "tls").found


async def test_a_certificate_of_a_stranger_is_said(clock: MockClock, authority: Authority) -> None:
    found = await over_tls(authority.server(), Authority().trust())
    assert "not trusted" in of(found, "tls").found
    assert "SSL_CERT_FILE" in of(found, "tls").remedy


async def test_https_to_a_port_that_speaks_http_is_said(
    clock: MockClock, authority: Authority
) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    async with serving(seconds_max=1000) as served:
        found = await examined(f"https://{NAME}:{served.door.port}", authority.trust())
    assert of(found, "tls").verdict == "problem"
    assert "http://" in of(found, "tls").remedy


# --- judgements ---


def member(name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name, "role": "voter", "raft_address": f"{name}:4081", "http_url": f"http://{name}",
        "match_index": 10, "lag": 0, "reachable": True, **more,
    }  # fmt: skip


def cluster(*members: dict[str, Any], leader: str | None = "n1") -> dict[str, Any]:
    return {"mode": "cluster", "node": "n1", "leader": leader, "members": list(members)}


@pytest.mark.parametrize(
    ("before", "after", "verdict", "words"),
    [
        (cluster(member("n1")), cluster(member("n1")), "ok", "n1 leads"),
        (cluster(), cluster(leader=None), "problem", "knows no leader"),
        (cluster(), cluster(member("n2", reachable=False)), "problem", "n2 (voter) is not"),
        (
            cluster(member("n4", role="learner", lag=7)),
            cluster(member("n4", role="learner", lag=9)),
            "problem",
            "does not move",
        ),
        (
            cluster(member("n4", role="learner", lag=7)),
            cluster(member("n4", role="learner", lag=7, match_index=12)),
            "warning",
            "still a learner",
        ),
        (
            cluster(member("n3", lag=5000)),
            cluster(member("n3", lag=5020)),
            "warning",
            "does not catch up",
        ),
        (cluster(member("n3", lag=5000)), cluster(member("n3", lag=4000)), "ok", "n1 leads"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_named(
    before: dict[str, Any], after: dict[str, Any], verdict: str, words: str
) -> None:
    (found,) = judge_cluster(before, after)
    assert (found.verdict, words in found.found) == (verdict, True), found


def test_a_change_of_members_that_waits_for_nodes_is_a_problem_with_a_remedy() -> None:
    change = {"joins": [], "promotes": [], "leaves": ["n2"], "voters": ["n1", "n3"], "needed": 2}
    stuck = {**cluster(member("n1")), "change": {**change, "waits_for": ["n3"]}}
    (found,) = judge_cluster(stuck, stuck)
    assert found.verdict == "problem"
    assert found.found.startswith("The removal of n2 is not known to be committed: 2 of 2 voters")
    assert found.remedy.startswith("Start n3")
    assert "recover" in found.remedy
    under_way = {**cluster(member("n1")), "change": {**change, "waits_for": []}}
    (found,) = judge_cluster(under_way, under_way)
    assert found.verdict == "ok"


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"members": 1},
        {"change": 1},
        {"change": {"joins": 1}},
        {"members": [1, {}]},
        {"leader": []},
    ],
)
def test_whatever_a_server_says_of_its_cluster_is_judged(strange: dict[str, Any]) -> None:
    assert judge_cluster(strange, strange)


def test_versions_that_differ_are_named() -> None:
    assert judge_versions({"n1": "1", "n2": "1"}, "1").verdict == "ok"
    assert "several" in judge_versions({"n1": "1", "n2": "2"}, "1").found
    assert "this command is 2" in judge_versions({"n1": "1"}, "2").found


def test_a_slow_disk_is_named() -> None:
    assert judge_latency([0.06] * 10, 0.05).verdict == "ok", "it is the way that is long"
    assert judge_latency([0.06] * 10, 0.001).verdict == "warning"
    assert judge_latency([0.002] * 9 + [0.9], 0.001).verdict == "warning"


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([3, 1, 2], 0.99) == 3
    assert percentile([1], 0.01) == 1


def test_few_descriptors_are_named() -> None:
    def judged(used: int, limit: int) -> str:
        text = f"process_open_fds {used}.0\nprocess_max_fds {limit}.0\n# HELP x\nnonsense\na b\n"
        return judge_descriptors(read_metrics(text)).verdict

    assert judged(20, 65536) == "ok"
    assert judged(20, 1024) == "warning"
    assert judged(60_000, 65536) == "warning"
    assert judge_descriptors({}).verdict == "untested"


@pytest.mark.parametrize(
    ("problems", "days", "verdict", "words"),
    [
        (0, 31, "ok", "the first certificate ends in 31 days"),
        (0, 29, "warning", "raft.tls_ca has a certificate that ends in 29 days"),
        (0, 6, "problem", "ends in 6 days"),
        (2, -3, "problem", "expired 3 days ago"),
        (0, -1, "problem", "expired 1 day ago"),
        (0, 0, "problem", "expired today"),
        (0, 1, "problem", "ends in 1 day"),
        (2, 40, "warning", "could not take 2 of the files"),
    ],
)
def test_a_certificate_that_ends_and_a_file_that_was_not_taken_are_named(
    problems: int, days: int, verdict: str, words: str
) -> None:
    now = 1_800_000_000.0
    name = "repl_broker_certificate_expiry_timestamp_seconds"
    text = f"""repl_broker_reload_problems {problems}
{name}{{certificate="http.tls_certificate"}} {now + 90 * 86400}
{name}{{certificate="raft.tls_ca"}} {now + days * 86400}"""
    finding = judge_files(read_metrics(text), now)
    assert (finding.verdict, words in finding.found) == (verdict, True), finding
    assert bool(finding.remedy) == (verdict != "ok")


def test_of_a_node_that_tells_nothing_of_its_files_nothing_is_said() -> None:
    assert judge_files({}, 0.0).verdict == "untested"
    assert judge_files(read_metrics("repl_broker_reload_problems 0"), 0.0).verdict == "ok"


def test_slow_commits_are_named() -> None:
    def judged(quick: int, slow: int) -> str:
        name = "repl_broker_commit_seconds"
        text = f'{name}_bucket{{le="0.01"}} {quick}\n{name}_bucket{{le="+Inf"}} {quick + slow}\n'
        return judge_commits(read_metrics(f"{text}{name}_count {quick + slow}\n")).verdict

    assert judged(1000, 1) == "ok"
    assert judged(90, 10) == "warning"
    assert judged(0, 0) == "untested"


def test_a_node_that_was_busy_for_long_at_a_time_is_named() -> None:
    def judged(longest: float) -> str:
        text = f"repl_broker_loop_turn_longest_seconds {longest}\n"
        return judge_turns(read_metrics(text)).verdict

    assert judged(0.02) == "ok"
    assert judged(0.35) == "warning"
    assert judge_turns({}).verdict == "untested"


def test_a_clock_is_only_wrong_if_the_way_cannot_explain_it() -> None:
    assert judge_clock("it", 5.5, 1, 5).verdict == "ok"
    assert judge_clock("it", -7, 1, 5).verdict == "warning"


@pytest.mark.parametrize(("seconds_max", "verdict"), [(30, "ok"), (5, "warning")])
def test_clocks_may_be_as_far_apart_as_the_node_lets_them(seconds_max: int, verdict: str) -> None:
    cluster = seen(seconds_max, n1=0.0, n2=20.0, n3=0.0)
    assert skew_seconds_max(cluster) == seconds_max
    assert judge_clock("it", 20, 1, skew_seconds_max(cluster)).verdict == verdict
    assert [each.verdict for each in judge_clocks(cluster)] == ["warning"] * (verdict != "ok")


def test_a_node_that_does_not_say_how_far_apart_clocks_may_be_is_held_to_the_default() -> None:
    assert skew_seconds_max({}) == ClusterConfig().clock_skew_seconds_max
    assert skew_seconds_max({"clock_skew_seconds_max": "x"}) == skew_seconds_max({})


def seen(seconds_max: int, *, node: str = "n1", **ahead: float | None) -> dict[str, object]:
    """``GET /v1/cluster``, with the clocks' distances from that of ``node``."""
    return {
        "node": node,
        "clock_skew_seconds_max": seconds_max,
        "members": [
            {"id": each, "role": "voter", "clock_skew_seconds": seconds}
            for each, seconds in ahead.items()
        ],
    }


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (seen(5, n1=0.0, n2=-86_400.5, n3=4.9), "the clock of n2 is 86400.5 s behind"),
        (seen(5, n1=0.0, n2=60.0, n3=61.0), "the clock of n1 is 60.0 s behind"),  # the one asked
        (seen(5, n1=0.0, n2=9.0, n3=None, n4=0.0, n5=0.0), "the clock of n2 is 9.0 s ahead of"),
    ],
)
def test_the_member_whose_clock_is_far_from_that_of_a_majority_is_named(
    cluster: dict[str, object], said: str
) -> None:
    (found,) = judge_clocks(cluster)
    assert found.verdict == "warning"
    assert found.found.startswith(f"{said} what a majority of the members has; 5 s is the most")
    assert "NTP" in found.remedy


@pytest.mark.parametrize("node", ["n1", "n2", "n3"])
def test_where_no_majority_agrees_on_the_time_each_clock_is_named_and_none_accused(
    node: str,
) -> None:
    clocks = {"n1": 0.0, "n2": 90.0, "n3": -60.0}
    ahead = {each: seconds - clocks[node] for each, seconds in clocks.items()}
    (found,) = judge_clocks(seen(5, node=node, **ahead))
    assert found.verdict == "problem"
    assert "no majority of the members agrees on the time within 5 s" in found.found
    for other in clocks.keys() - {node}:
        way = "ahead of" if ahead[other] > 0 else "behind"
        assert f"{other} is {abs(ahead[other])} s {way} {node}" in found.found
    assert "nobody can tell which clock is right" in found.remedy
    assert "let n1, n2, n3 all follow NTP" in found.remedy


def test_two_members_that_differ_are_no_majority() -> None:
    (found,) = judge_clocks(seen(5, n1=0.0, n2=9.0))
    assert "no majority" in found.found
    assert judge_clocks(seen(5, n1=0.0, n2=1.0)) == []


def test_nothing_is_concluded_from_fewer_clocks_than_a_majority_or_from_a_learners() -> None:
    (found,) = judge_clocks(seen(5, n1=0.0, n2=None, n3=None))
    assert found.verdict == "untested"
    cluster = seen(5, n1=0.0, n2=50.0, n3=50.0)
    members = cluster["members"]
    assert isinstance(members, list)
    for learner in members[1:]:
        learner["role"] = "learner"
    assert judge_clocks(cluster) == []  # one voter: its clock is the time
    assert judge_clocks({"members": [1, {}, {"clock_skew_seconds": "x"}]}) != []
    assert judge_clocks({}) == []


# --- the command ---


def test_a_problem_is_told_to_people_with_exit_code_1(run: Run, broker: FakeBroker) -> None:
    broker.steps = [html(200)]
    result = run("doctor", broker.url)
    assert result.exit_code == 1
    assert "problem  node" in result.stdout
    assert "→ is the URL right" in result.stdout
    assert result.stdout.endswith("1 problem, 1 warning.\n")
    assert result.stderr == ""


def test_json_is_a_line_a_finding(run: Run, broker: FakeBroker) -> None:
    broker.steps = [html(200)]
    result = run("doctor", broker.url, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(each["check"], each["verdict"]) for each in lines] == [
        ("connect", "ok"),
        ("http2", "warning"),
        ("node", "problem"),
        ("the-rest", "untested"),
    ]
    assert {tuple(each) for each in lines} == {("check", "verdict", "found", "remedy")}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["not-a-url"], 2),
        (["--topic", "a b"], 1),
        (["--idle", "-1"], 2),
        (["--token", "a\nb"], 2),
        (["--origin", "a\nb"], 2),
    ],
)
def test_wrong_usage_opens_no_connection(run: Run, arguments: list[str], code: int) -> None:
    result = run("doctor", *arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_all_reasons_of_a_node_that_is_not_ready_are_shown_whatever_it_sends() -> None:
    def shown(content: object) -> str:
        return reasons(httpx.Response(503, json=content))

    both = [
        {"code": "behind", "detail": "It is behind."},
        {"code": "no_room", "detail": "No room."},
    ]
    problem = {"code": "behind", "detail": "It is behind.", "reasons": both}
    assert shown(problem) == "It is behind. [behind] No room. [no_room]"
    for odd in ([], "x", ["x"], None):
        assert shown(problem | {"reasons": odd}) == "It is behind. [behind]"
