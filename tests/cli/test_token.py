"""Tokens on the command line: made, sent, revoked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

import pytest

from repl_broker.config import AuthConfig
from repl_broker.tokens import Claims, Verifier
from tests.cli.conftest import Run
from tests.cli.fake_broker import FakeBroker, answer
from tests.signing import SECRET


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    return file


def verified(token: str, secret: Path, **auth: str) -> Claims:
    keys = AuthConfig(mode="jwt", secret_file=secret, **auth)  # type: ignore[arg-type]
    return Verifier(keys).verify(token, time.time())


def test_a_token_has_what_was_asked_for(run: Run, secret: Path) -> None:
    options = ["--publish", "orders.>", "--publish", "a", "--subscribe", "chat", "--sub", "ann"]
    result = run("token", "create", *options, "--expires", "90m", "--secret-file", str(secret))
    assert result.exit_code == 0, result.output
    found = verified(result.output.strip(), secret)
    assert found[3:] == (("orders.>", "a"), ("chat",), False)
    assert found.subject == "ann"
    assert found.issued_at is not None
    assert found.expires_at - found.issued_at == 5400


def test_the_nodes_file_says_whom_a_token_is_for(run: Run, secret: Path, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        f'[auth]\nmode = "jwt"\nsecret_file = "{secret}"\naudience = "us"\nissuer = "here"\n'
    )
    result = run("token", "create", "--admin", "--config", str(file), "--json")
    made = json.loads(result.output)
    found = verified(made["token"], secret, audience="us", issuer="here")
    assert (found.admin, found.expires_at) == (True, made["expires_at"])
    result = run("token", "create", "--config", str(file), "--expires", "31d")
    assert (result.exit_code, "takes 2592000" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--publish", "a..b", "--secret-file", "S"], 2, "wanted a filter such as"),
        (["--expires", "soon", "--secret-file", "S"], 2, "wanted an integer (seconds)"),
        (["--expires", "0", "--secret-file", "S"], 2, "must be 1 to"),
        (["--sub", "", "--secret-file", "S"], 2, "wanted 1 to 255 characters"),
        (["--sub", "a\u200bb", "--secret-file", "S"], 2, "wanted 1 to 255 characters"),
        (["--sub", "..", "--secret-file", "S"], 2, "wanted 1 to 255 characters"),
        (["--sub", "ann", "--secret-file", "S"], 2, "The token would allow nothing"),
        ([], 1, "there is no secret to sign by"),
        (["--secret-file", "/no/such"], 1, "cannot read /no/such"),
        (["--secret-file", "/dev/null"], 1, "wanted at least 32"),
    ],
)
def test_what_no_token_can_be_made_of_is_told(
    run: Run, secret: Path, options: list[str], code: int, words: str
) -> None:
    result = run("token", "create", *[str(secret) if o == "S" else o for o in options])
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert words in result.stderr


def test_a_token_is_sent_from_the_option_the_environment_or_a_file(
    run: Run, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    topics = ["topics", "list", "--url", broker.url]

    def sent(*options: str) -> str | None:
        broker.steps = [answer(200, {"topics": [], "next": None})]
        result = run(*topics, *options)
        assert result.exit_code == 0, result.output
        return broker.seen[-1].headers.get("authorization")

    assert sent() is None
    assert sent("--token-file", str(file)) == "Bearer from-file"
    monkeypatch.setenv("REPL_BROKER_TOKEN", "from-variable")
    assert sent("--token-file", str(file)) == "Bearer from-variable"
    assert sent("--token", "given") == "Bearer given"
    monkeypatch.delenv("REPL_BROKER_TOKEN")
    result = run(*topics, "--token-file", str(tmp_path / "absent"))
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: cannot read the token in {tmp_path}/absent: No such file or directory\n"
    )


def test_revoking_asks_the_node(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(204, {}), answer(204, {})]
    assert run("token", "revoke", "a/b c", "--url", broker.url).output == (
        "revoked the tokens of a/b c\n"
    )
    assert (broker.seen[-1].method, broker.seen[-1].path) == ("DELETE", "/v1/tokens/a%2Fb%20c")
    result = run("token", "revoke", "ann", "--url", broker.url, "--json", "--token", "t")
    assert json.loads(result.output) == {"revoked": "ann"}
    assert broker.seen[-1].headers["authorization"] == "Bearer t"


def test_a_token_without_a_grant_is_made_where_anyone_may_do_something(
    run: Run, secret: Path, tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    text = f'[auth]\nmode = "jwt"\nsecret_file = "{secret}"\n'
    file.write_text(text)
    assert run("token", "create", "--config", str(file)).exit_code == 2
    file.write_text(text + '[auth.anonymous]\nsubscribe = ["news"]\n')
    assert run("token", "create", "--config", str(file), "--sub", "ann").exit_code == 0


@pytest.mark.parametrize("sub", ["", ".", "..", "a\nb", "e\u0301", "x" * 256])
def test_what_no_token_has_as_its_sub_cannot_be_revoked(
    run: Run, broker: FakeBroker, sub: str
) -> None:
    result = run("token", "revoke", "--url", broker.url, "--", sub)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "No token has this sub" in result.stderr
    assert broker.seen == []


def test_the_token_itself_is_no_sub(run: Run, secret: Path, broker: FakeBroker) -> None:
    made = run("token", "create", "--admin", "--secret-file", str(secret)).output.strip()
    result = run("token", "revoke", made, "--url", broker.url)
    assert result.exit_code == 2
    assert "and not the token" in result.stderr
    assert made[:20] not in result.output


AROUND: Final = ("{}", "{}\n", "{}\r\n", " {} ", "\ufeff{}", "\ufeffBearer {}\n", "bearer  {}",
                "Authorization: Bearer {}\n", "\n\n{}\n\n", '"{}"', "'Bearer {}'\n")  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_a_token_does_not_matter(
    run: Run, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, around: str
) -> None:
    """Editors and shells put it there; sent as it is, a line break could not even be sent."""
    text = around.format("abc.def-ghi_jkl")
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    topics = ["topics", "list", "--url", broker.url]
    for options, variables in (
        (["--token", text], {}),
        ([], {"REPL_BROKER_TOKEN": text}),
        (["--token-file", str(file)], {}),
        ([], {"REPL_BROKER_TOKEN_FILE": str(file)}),
    ):
        broker.steps = [answer(200, {"topics": [], "next": None})]
        with monkeypatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            result = run(*topics, *options)
        assert result.exit_code == 0, result.output
        assert broker.seen[-1].headers["authorization"] == "Bearer abc.def-ghi_jkl"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf\n", "it is empty"),
        (b"Bearer", "it is empty"),
        ("s3cr3t".encode("utf-16"), "it is UTF-16"),
        (b"s3cr3t\xff", "it is not ASCII"),
        ("s3cr3t\u200b".encode(), "it is not ASCII"),
        (b"s3cr3t s3cr3t", "it has a space or a line break within it"),
        (b"s3cr3t\ns3cr3t", "it has a space or a line break within it"),
        (b"s3cr3t\0", "it has a control character within it"),
        (b"s3cr3t" * 20_000, "it has more than 65536 bytes"),
    ],
)
def test_what_is_no_token_is_refused_without_showing_it(
    run: Run, broker: FakeBroker, tmp_path: Path, data: bytes, words: str
) -> None:
    file = tmp_path / "token"
    file.write_bytes(data)
    result = run("topics", "list", "--url", broker.url, "--token-file", str(file))
    assert (result.exit_code, result.stderr) == (
        1, f"error: cannot read the token in {file}: {result.stderr.rpartition(': ')[2]}",
    )  # fmt: skip
    assert words in result.stderr
    assert "s3cr3t" not in result.stderr
    assert broker.seen == []
