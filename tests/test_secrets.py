"""A token or a secret that was put in, in every way and wrong in every way, never comes out."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result

from repl_broker.access import Access, Asking, Caller, Credentials
from repl_broker.cli import main
from repl_broker.cli.examination import Orders
from repl_broker.config import Config, LogConfig
from repl_broker.logs import configure
from repl_broker.masking import masked, without_login
from repl_broker.tokens import Verifier
from tests.cli.fake_broker import FakeBroker, answer, html, problem
from tests.nodes import configured
from tests.signing import SECRET, claims, hs256, token
from tests.web.doors import serving
from tests.web.test_door import Client, connect

TOKEN: Final = hs256(claims(sub="recognisable", repl_broker={"subscribe": ["a.>"]}))
PARTS: Final = [part for part in TOKEN.split(".") if len(part) > 30]  # the header is public
# A token as people and programs give it.
FORMS: Final[dict[str, str]] = {
    "as it is": TOKEN,
    "with a line break": f"{TOKEN}\n",
    "with carriage return": f"{TOKEN}\r\n",
    "with the scheme": f"Bearer {TOKEN}",
    "with a space inside": f"{TOKEN[:60]} {TOKEN[60:]}",
    "with a line break inside": f"{TOKEN[:60]}\n{TOKEN[60:]}",
    "with a control character": f"{TOKEN[:60]}\x07{TOKEN[60:]}",
    "with a byte order mark": f"\ufeff{TOKEN}",
    "with no ASCII": f"{TOKEN}é",
    "with a character without width": f"{TOKEN}\u200b",
    "twice": f"{TOKEN},{TOKEN}",
    "in quotes": f'"{TOKEN}"',
    "cut off": TOKEN[:-9],
    "of two parts": TOKEN.rpartition(".")[0],
    "too long": TOKEN + "A" * 9000,
}


def leaks(text: str) -> list[str]:
    """The parts of the token, or what is recognisable of them, that stand in the text."""
    pieces = [part[start : start + 16] for part in PARTS for start in range(0, len(part) - 16, 4)]
    return [piece for piece in pieces if piece in text]


def test_what_looks_for_leaks_finds_them() -> None:
    assert leaks(f"error: {TOKEN!r} is no token")
    assert leaks(TOKEN[50:110])
    assert not leaks("error: this is no token")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name in ("CONFIG", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"REPL_BROKER_{name}", raising=False)
    # A node may run where the command looks by default; nobody is at this port.
    monkeypatch.setenv("REPL_BROKER_URL", "http://127.0.0.1:1")

    def invoke(*arguments: str, **environ: str) -> Result:
        return CliRunner().invoke(main, [*arguments], env=environ, input=b"1\n")

    return invoke


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        yield running


COMMANDS: Final = (
    ("publish", "t", "1", "--retry-for", "0"),
    ("publish", "t", "-", "--retry-for", "0"),
    ("subscribe", "t", "--count", "1"),
    ("topics", "list"),
    ("cluster", "status"),
    ("token", "revoke", "ann"),
)


@pytest.mark.parametrize("form", FORMS)
def test_the_command_line_never_shows_a_token(
    run: Callable[..., Result], broker: FakeBroker, tmp_path: Path, form: str
) -> None:
    text = FORMS[form]
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    refusals = (
        problem("unauthenticated", "The token's signature is not valid."),
        html(502),
        answer(200, {"surprise": 1}),
    )
    ways: tuple[tuple[list[str], dict[str, str]], ...] = (
        (["--token", text], {}),
        (["--token-file", str(file)], {}),
        ([], {"REPL_BROKER_TOKEN": text}),
        ([], {"REPL_BROKER_TOKEN_FILE": str(file)}),
    )
    shown = ""
    for command in COMMANDS:
        for options, environ in ways:
            # A reader would come back from the others.
            for refusal in refusals[: 1 if command[0] == "subscribe" else 3]:
                broker.steps = [refusal] * 3
                result = run(*command, "--url", broker.url, *options, **environ)
                shown += result.output
                assert result.exit_code in (0, 1, 2)
                assert result.stderr.count("\n") <= 2
    assert leaks(shown) == []
    given = [request.headers.get("authorization", "") for request in broker.seen]
    assert all(each.isascii() and each.count(" ") <= 1 for each in given)


ASTRAY: Final[dict[str, tuple[list[str], dict[str, str]]]] = {
    "the scheme without quotes": (["topics", "list", "--token", "Bearer", TOKEN], {}),
    "as the topic": (["publish", TOKEN, "1"], {}),
    "as the filter": (["subscribe", TOKEN], {}),
    "as the message": (["publish", "t", TOKEN], {}),
    "as the subject": (["token", "revoke", TOKEN], {}),
    "as an option": (["topics", "list", f"--{TOKEN}"], {}),
    "as a command": ([TOKEN], {}),
    "as a name of a file": (["topics", "list", "--token-file", TOKEN], {}),
    "as a key": (["publish", "t", "1", "--key", f"{TOKEN} x"], {}),
    "as a time": (["publish", "t", "1", "--retry-for", TOKEN], {}),
    "as the node's name": (["serve", "--node-id", TOKEN], {}),
    "as an address": (["serve", "--http", TOKEN], {}),
    "as a configuration": (["config", "check", TOKEN], {}),
    "as a password in the URL": (["topics", "list", "--url", f"http://a:{TOKEN}@127.0.0.1:1"], {}),
    "as a user in the URL": (["topics", "list", "--url", f"http://{TOKEN}@127.0.0.1:1"], {}),
    "in the URL's query": (["doctor", f"http://127.0.0.1:1/?access_token={TOKEN}"], {}),
    "in the URL's fragment": (["doctor", f"http://127.0.0.1:1/#{TOKEN}"], {}),
    "in a variable of the URL": (
        ["topics", "list"], {"REPL_BROKER_URL": f"http://127.0.0.1:1/?t={TOKEN}"},
    ),
    "in another variable": (["serve"], {"REPL_BROKER_AUTH_TOKEN": TOKEN}),
    "as the secret's file": (["serve"], {"REPL_BROKER_AUTH_SECRET_FILE": TOKEN}),
    "as a mode": (["serve"], {"REPL_BROKER_AUTH_MODE": TOKEN}),
    "and help is asked for": (["publish", "--help"], {"REPL_BROKER_TOKEN": TOKEN}),
    "and all help is asked for": (["--help"], {"REPL_BROKER_TOKEN": TOKEN}),
    "and the node is not there": (
        ["publish", "t", "1", "--retry-for", "0", "--url", "http://127.0.0.1:1"],
        {"REPL_BROKER_TOKEN": f"{TOKEN}\n"},
    ),
    "and a doctor is asked": (
        ["doctor", "http://127.0.0.1:1", "--patience", "100ms"], {"REPL_BROKER_TOKEN": TOKEN},
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ASTRAY)
def test_a_token_that_goes_astray_is_not_shown(run: Callable[..., Result], how: str) -> None:
    arguments, environ = ASTRAY[how]
    result = run(*arguments, **environ)
    assert leaks(result.output) == []
    assert result.exit_code == (0 if "help" in how else result.exit_code or 99)
    assert result.exit_code in (0, 1, 2)


def test_config_check_does_not_show_a_secret(run: Callable[..., Result], tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "n.toml"
    shown = ""
    for data in (SECRET, b"\xef\xbb\xbf" + SECRET, SECRET[:20], b"-----BEGIN " + SECRET):
        secret.write_bytes(data)
        for section in ('auth]\nmode = "jwt"', "cluster]"):
            for key in ("secret_file", "jwks_file", "secret", "tls_key"):
                for value in (secret, SECRET.decode()):
                    file.write_text(f'[{section}\n{key} = "{value}"\n')
                    for options in ([], ["--json"]):
                        shown += run("config", "check", *options, str(file)).output
    # Where a path belongs that is no secret's, it is told as one.
    assert [line for line in shown.splitlines() if SECRET.decode() in line] == [
        line
        for line in shown.splitlines()
        if f"auth.jwks_file: cannot read {SECRET.decode()}" in line
    ]


# --- a node ------------------------------------------------------------------------------


def requests(text: str) -> Iterator[bytes]:
    """A token in each place of a request, right and wrong."""
    for target in (
        "/v1/topics", "/v1/events?topic=a.b", "/v1/events?topic=secret", "/v1/topics/a.b/messages",
        "/nothing", "/ui/feed", "/v1/tokens/ann",
    ):  # fmt: skip
        for field in (
            f"Authorization: Bearer {text}", f"authorization:{text}",
            f"Authorization: Basic {text}", f"Authorization : Bearer {text}",
            f"Authorization: Bearer {text}, Bearer {text}",
            f"Authorization: Bearer {text}\r\nAuthorization: Bearer {text}",
            f"Authorization: Bearer\r\n {text}", f"X-Token: {text}", f"{text}: x", text,
            f"Cookie: repl_broker_token={text}", f'Cookie: repl_broker_token="{text}"; a={text}',
            f"Cookie: repl_broker_token={text}; repl_broker_token={text}",
            f"Last-Event-ID: {text}", f"Idempotency-Key: {text}", f"Content-Length: {text}",
        ):  # fmt: skip
            yield head("GET", target, field)
        yield head("POST", target, f"Cookie: repl_broker_token={text}")
        join = "&" if "?" in target else "?"
        yield head("GET", f"{target}{join}access_token={text}")
        yield head("GET", f"{target}{join}token={text}&access_token={text}&access_token={text}")


def head(method: str, target: str, *fields: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


@pytest.mark.parametrize("in_place", [True, False])
async def test_a_node_never_shows_a_token(
    tmp_path: Path, in_place: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In its log, the access log among it, however the token is given."""
    caplog.set_level(logging.DEBUG)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    auth = {"mode": "jwt", "secret_file": secret, "allow_query_token": True}
    config = configured(auth=auth, http={"access_log": True})
    forms = ("as it is", "cut off", "with a control character", "in quotes", "twice")
    async with serving(in_place=in_place, config=config, seconds_max=120) as served:
        for form in forms:
            for request in requests(FORMS[form]):
                async with connect(served.door) as client:
                    answered = await first_answer(client, request)
                assert leaks(answered) == [], request[:200]
        assert leaks(repr(served.node.broker.access._known.values())) == []
    assert "request method=GET path=/v1/topics status=" in caplog.text
    assert leaks(caplog.text) == []


async def first_answer(client: Client, request: bytes) -> str:
    """Until the connection ends, or a stream begins."""
    await client.send(request)
    data = b""
    while more := await client.stream.receive_some():
        data += more
        if b"event: subscribed" in data or b"\r\nid: " in data or b"event: " in data:
            break
    return data.decode("latin-1")


def test_what_holds_a_secret_does_not_show_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    config = configured(auth={"mode": "jwt", "secret_file": secret})
    access = Access(config)
    given = Credentials(f"Bearer {TOKEN}", f"repl_broker_token={TOKEN}", query_token=TOKEN)
    who = access.identify(given, write=False)
    holders = (
        given, Asking(given, "127.0.0.1"), who, Caller(who, "127.0.0.1"), access, config,
        Verifier(config.auth), Verifier(config.auth)._sets, Orders("http://a", token=TOKEN),
    )  # fmt: skip
    for holder in holders:
        assert leaks(repr(holder)) == []
        assert SECRET.decode() not in repr(holder)
        assert SECRET.hex() not in repr(holder)
    assert repr(given) == "<Credentials: authorization, cookie, query_token>"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_crash_report_does_not_show_a_token(form: str) -> None:
    """Of an error of a library's that shows what it was given."""
    stream = io.StringIO()
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level = root.level
    try:
        configure(LogConfig(format=form), stream)
        try:
            raise RuntimeError(f"cannot parse b'Bearer {TOKEN}'")
        except RuntimeError:
            logging.getLogger("repl_broker.test").exception("failed on %r", TOKEN)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(False)
        logging.raiseExceptions = True
    assert stream.getvalue().count("[token]") >= 2
    assert leaks(stream.getvalue()) == []


def test_text_without_a_token_stays_as_it_is() -> None:
    for text in ("", "eyJ", "eyJhbGci", "sample.eyJ.x", "eyJabc.def", "n1.example.org:4080"):
        assert masked(text) == text
    assert masked(f"a {token()} b") == "a [token] b"
    assert masked("is s3cr3t here", "s3cr3t", "") == "is [token] here"
    assert without_login("http://a:b@c/d@e") == "http://…@c/d@e"
    assert Config().node.id == masked(Config().node.id)
