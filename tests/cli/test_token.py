"""Tokens on the command line: made, sent, revoked."""

from __future__ import annotations

import json
import time
from pathlib import Path

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
