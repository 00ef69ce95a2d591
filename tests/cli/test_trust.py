"""Whom the command line trusts, on this machine and elsewhere, and what it asks of the environment.

The server is a real one, with a certificate of an authority that nobody else knows.
"""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
import trustme

from repl_broker.cli.client import Client
from tests.cli.conftest import Run
from tests.cli.fake_broker import FakeBroker, answer


@pytest.fixture(autouse=True)
def nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(broker: FakeBroker, authority: trustme.CA) -> FakeBroker:
    """The broker, under TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    server = broker.server
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return broker


def url_of(broker: FakeBroker) -> str:
    return broker.url.replace("http://", "https://")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_on_this_machine_the_authorities_of_the_environment_are_trusted(
    run: Run,
    secure: FakeBroker,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    host: str,
) -> None:
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    hashed = subprocess.run(
        ["openssl", "x509", "-noout", "-hash", "-in", file], capture_output=True, check=True
    )
    (tmp_path / f"{hashed.stdout.decode().strip()}.0").symlink_to(file)
    monkeypatch.setenv(variable, str(file if variable == "SSL_CERT_FILE" else tmp_path))
    result = run("publish", "t", "1", "--url", url_of(secure).replace("127.0.0.1", host))
    assert result.exit_code == 0, result.output


def test_without_them_a_certificate_of_ones_own_is_refused_with_the_remedy(
    run: Run, secure: FakeBroker
) -> None:
    result = run("publish", "t", "1", "--retry-for", "0", "--url", url_of(secure))
    assert result.exit_code == 1
    assert "its certificate is not trusted: " in result.stderr
    assert "set SSL_CERT_FILE" in result.stderr
    assert "is the node running" not in result.stderr


@pytest.mark.parametrize("command", [("topics", "list", "--url"), ("doctor",)])
def test_a_file_of_authorities_that_cannot_be_read_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for found in (tmp_path / "none.pem", tmp_path / "empty.pem"):
        (tmp_path / "empty.pem").touch()
        monkeypatch.setenv("SSL_CERT_FILE", str(found))
        result = run(*command, "https://127.0.0.1:1")
        assert result.exit_code == 1
        assert "cannot read the authorities" in result.stderr
        assert "look at SSL_CERT_FILE" in result.stderr
        assert result.stderr.count("\n") == 1


def test_on_this_machine_no_proxy_is_asked(
    run: Run, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    broker.steps = [answer(200, {"topics": [], "next": None})]
    assert run("topics", "list", "--url", broker.url).exit_code == 0
    with Client("https://127.0.0.1:1") as client:
        assert not any(client.http._mounts.values())
