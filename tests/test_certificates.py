"""Certificates: tried before they are used, replaced as a whole, refused with a remedy."""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trustme
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from trio.testing import MockClock

from repl_broker.certificates import Certificates, Expiry, examine
from repl_broker.cli import main
from repl_broker.config import Address, Config, InvalidConfigError
from repl_broker.errors import ConfigError
from tests.authority import (
    DAY,
    LOOPBACK,
    NOW,
    http_config,
    peer_config,
    private,
    write,
    write_unusual,
)
from tests.nodes import configured


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """The client's end of a connection. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialer = client.wrap_bio(to_client, to_server, server_hostname=LOOPBACK)
    acceptor = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (dialer, acceptor) * 3:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return dialer


def client_of(authority: trustme.CA) -> ssl.SSLContext:
    """One that would take any version, however old."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.configure_trust(context)
    return context


# --- what is spoken ---


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_only_tls_1_2_and_1_3_are_spoken(
    tmp_path: Path, authority: trustme.CA, version: str
) -> None:
    files = write(tmp_path, authority)
    server = Certificates(http_config(files)).http()
    client = client_of(authority)
    client.maximum_version = ssl.TLSVersion[version]
    if version in ("TLSv1_2", "TLSv1_3"):
        assert shake_hands(server, client).version() == version.replace("_", ".")
        return
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol"):
        shake_hands(server, client)
    server.minimum_version = ssl.TLSVersion[version]  # it is the only thing in the way
    server.set_ciphers("ALL:@SECLEVEL=0")
    assert shake_hands(server, client).version() == version.replace("_", ".")


def test_of_http_2_and_http_1_1_the_latter_is_chosen(tmp_path: Path, authority: trustme.CA) -> None:
    server = Certificates(http_config(write(tmp_path, authority))).http()
    assert shake_hands(server, client_of(authority)).selected_alpn_protocol() == "http/1.1"


def test_peers_resume_no_session(tmp_path: Path, authority: trustme.CA) -> None:
    """It would not be verified anew, against a CA that may have been taken away."""
    files = write(tmp_path, authority)
    server, client, _ = Certificates(peer_config(files)).peers()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client.maximum_version = version
        end = shake_hands(server, client)
        with suppress(ssl.SSLWantReadError):
            end.read()  # tickets of TLS 1.3 come behind the handshake
        assert end.session is None or not end.session.has_ticket


def test_without_certificates_there_is_no_tls() -> None:
    none = Certificates(Config())
    assert not none.has_http
    assert not none.has_peers


# --- what is refused, and what to do about it ---


def problems(config: Config) -> list[str]:
    return examine(config)[0]


def refusal_of(config: Config) -> str:
    (found,) = problems(config)
    return found


def test_a_peers_certificate_that_has_expired_is_refused(
    tmp_path: Path, authority: trustme.CA
) -> None:
    files = write(tmp_path, authority, not_after=NOW - DAY)
    for config in (peer_config(files), http_config(files)):
        refusal = refusal_of(config)
        assert f"{files['tls_certificate']} cannot be used: certificate has expired" in refusal
        assert "renew it" in refusal
        with pytest.raises(ConfigError, match="has expired"):
            Certificates(config)


def test_a_certificate_that_is_not_valid_yet_is_refused(tmp_path: Path) -> None:
    files = write_unusual(tmp_path, begins=NOW + DAY)
    for config in (peer_config(files), http_config(files)):
        assert "is not yet valid; see to the clock" in refusal_of(config)


@pytest.mark.parametrize(
    "purpose", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
)
def test_a_peers_certificate_must_be_good_for_both_sides(tmp_path: Path, purpose: object) -> None:
    files = write_unusual(tmp_path, purposes=(purpose,))  # type: ignore[arg-type]
    assert "extendedKeyUsage serverAuth, clientAuth" in refusal_of(peer_config(files))
    both = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    assert problems(peer_config(write_unusual(tmp_path, purposes=both))) == []


def test_a_peers_certificate_of_another_ca_is_refused(
    tmp_path: Path, authority: trustme.CA
) -> None:
    files = write(tmp_path, authority)
    trustme.CA().cert_pem.write_to_path(files["tls_ca"])
    assert "must be signed by a CA of tls_ca" in refusal_of(peer_config(files))


def test_a_certificate_by_way_of_another_ca_needs_that_in_its_file(
    tmp_path: Path, authority: trustme.CA
) -> None:
    between = authority.create_child_ca()
    files = write(tmp_path, between)
    authority.cert_pem.write_to_path(files["tls_ca"])
    assert problems(peer_config(files)) == []
    chain = files["tls_certificate"].read_text()
    end = "-----END CERTIFICATE-----\n"
    files["tls_certificate"].write_text(chain.partition(end)[0] + end)
    assert "its file must hold the certificates between" in refusal_of(peer_config(files))


@pytest.mark.parametrize(
    ("raft", "names", "is_fine"),
    [
        ({"bind": Address(LOOPBACK, 1)}, ["n1.example"], False),
        ({"bind": Address("n2.example", 1)}, ["n1.example"], False),
        ({"bind": Address("n1.example", 1)}, ["n1.example"], True),
        ({"bind": Address(LOOPBACK, 1), "advertise": Address("n1.example", 1)}, [LOOPBACK], False),
        ({"bind": Address("0.0.0.0", 1), "advertise": Address("::1", 1)}, ["::1"], True),
        ({"bind": Address("0.0.0.0", 1)}, ["whatever"], True),
    ],
)
def test_a_peers_certificate_must_have_the_host_by_which_it_is_reached(
    tmp_path: Path,
    authority: trustme.CA,
    raft: dict[str, Address],
    names: list[str],
    is_fine: bool,
) -> None:
    config = configured(peer_config(write(tmp_path, authority, *names)), raft=dict(raft))
    if is_fine:
        assert problems(config) == []
    else:
        assert "subjectAltName, or set [raft] advertise" in refusal_of(config)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    files = write(tmp_path, authority)
    other = write(tmp_path, authority, name="other")
    files["tls_key"] = other["tls_key"]
    for section, config in (("raft", peer_config(files)), ("http", http_config(files))):
        refusal = refusal_of(config)
        assert refusal.startswith(f"{section}.tls_key: {other['tls_key']} does not belong to")


@pytest.mark.parametrize("what", ["tls_certificate", "tls_key", "tls_ca"])
@pytest.mark.parametrize("content", ["", "no PEM\n", "-----BEGIN CERTIFICATE-----\nx\n"])
def test_a_file_that_holds_something_else_is_named(
    tmp_path: Path, authority: trustme.CA, what: str, content: str
) -> None:
    files = write(tmp_path, authority)
    files[what].write_text(content)
    refusal = refusal_of(peer_config(files))
    assert refusal.startswith(f"raft.{what}: {files[what]} holds no ")
    assert "wanted PEM" in refusal


@pytest.mark.parametrize("what", ["tls_certificate", "tls_key", "tls_ca"])
def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, authority: trustme.CA, what: str
) -> None:
    files = write(tmp_path, authority)
    files[what].unlink()
    expected = f"raft.{what}: cannot read {files[what]}: No such file or directory"
    assert refusal_of(peer_config(files)) == expected


def test_a_file_that_must_not_be_read_is_named_with_the_remedy(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, who reads everything."""
    files = write(tmp_path, authority)
    opened = Path.open

    def refuse(path: Path, *arguments: str) -> object:
        if path == files["tls_key"]:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    refusal = refusal_of(http_config(files))
    assert refusal.startswith(f"http.tls_key: cannot read {files['tls_key']}: Permission denied")
    assert "the user that runs the node must be able to read it" in refusal


def test_a_file_that_vanishes_meanwhile_is_a_problem_and_not_an_end(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever renews certificates may do so right then."""
    files = write(tmp_path, authority)
    certificates = Certificates(both_config(files))

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", gone)
    with pytest.raises(InvalidConfigError, match="No such file") as refused:
        certificates.reload(both_config(files))
    assert len(refused.value.problems) == 2


def test_a_key_with_a_password_is_refused_and_not_asked_for(
    tmp_path: Path, authority: trustme.CA
) -> None:
    """OpenSSL would ask on the terminal, and the node wait for ever."""
    files = write(tmp_path, authority)
    key = ec.generate_private_key(ec.SECP256R1())
    files["tls_key"].write_bytes(private(key, b"password"))
    assert "is encrypted" in refusal_of(http_config(files))
    assert f"openssl pkey -in {files['tls_key']}" in refusal_of(peer_config(files))


class Calendar:
    """The clock of day, which goes with Trio's."""

    def __init__(self) -> None:
        self._start = NOW.timestamp() - trio.current_time()

    def __call__(self) -> float:
        return self._start + trio.current_time()


def lines_of(caplog: pytest.LogCaptureFixture, words: str) -> list[tuple[int, str]]:
    found = [(record.levelno, record.getMessage()) for record in caplog.records]
    return [(level, text) for level, text in found if words in text]


async def test_a_certificate_that_ends_soon_is_told_of_each_day(
    tmp_path: Path,
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    """From 30 days before its end, louder from 7, and after it."""
    ends = {"not_before": NOW - 60 * DAY, "not_after": NOW + 40 * DAY + DAY / 2}
    files = write(tmp_path, authority, **ends)
    certificates = Certificates(http_config(files), Calendar())
    with trio.move_on_after(42 * 86_400):
        await certificates.run()
    told = [
        (level, text.partition(" key=")[0], int(text.partition("days_left=")[2].split()[0]))
        for level, text in lines_of(caplog, "remedy=")
    ]
    assert told == [
        *((logging.WARNING, "certificate ends soon", days) for days in range(29, 6, -1)),
        *((logging.ERROR, "certificate ends soon", days) for days in range(6, -1, -1)),
        *((logging.ERROR, "certificate has expired", days) for days in (-1, -2)),
    ]
    assert f"key=http.tls_certificate file={str(files['tls_certificate'])!r}" in caplog.text
    assert "remedy='renew it" in caplog.text


async def test_a_renewed_certificate_is_told_of_no_more(
    tmp_path: Path,
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    files = write(tmp_path, authority, not_before=NOW - 85 * DAY, not_after=NOW + 5 * DAY)
    certificates = Certificates(http_config(files), Calendar())
    old = certificates.expiries[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(certificates.run)
        await trio.sleep(86_400 * 2.5)
        assert len(lines_of(caplog, "certificate ends soon")) == 3
        write(tmp_path, authority, not_after=NOW + 90 * DAY)
        with caplog.at_level(logging.INFO):
            assert certificates.reload(http_config(files)) == [
                "http.tls_certificate", "http.tls_key",
            ]  # fmt: skip
        new = certificates.expiries[0]
        await trio.sleep(86_400 * 5)
        nursery.cancel_scope.cancel()
    assert len(lines_of(caplog, "certificate ends soon")) == 3
    ((level, renewed),) = lines_of(caplog, "certificate renewed")
    assert level == logging.INFO
    assert f"serial={new.serial} expires={new.end} days_left=87" in renewed
    assert f"was_serial={old.serial} was_expires={old.end}" in renewed


@pytest.mark.parametrize(
    ("life_days", "left_days", "level"),
    [
        (90, 30.1, None), (90, 29.9, logging.WARNING), (90, 7.1, logging.WARNING),
        (90, 6.9, logging.ERROR), (400, 30.1, None), (400, 29.9, logging.WARNING),
        (6, 2.1, None), (6, 1.9, logging.WARNING), (6, 0.4, logging.ERROR),
        (1, 0.4, None), (1, 0.05, logging.ERROR),
    ],
)  # fmt: skip
def test_short_lives_are_warned_of_later(
    life_days: float, left_days: float, level: int | None
) -> None:
    expiry = Expiry("k", Path("f"), "1", "s", 0.0, life_days * 86_400)
    now = (life_days - left_days) * 86_400
    found = logging.WARNING if expiry.ends_soon(now) else None
    assert (logging.ERROR if expiry.is_urgent(now) else found) == level


def test_how_long_each_certificate_is_good_is_known(tmp_path: Path, authority: trustme.CA) -> None:
    """A chain is as good as what of it ends first."""
    between = authority.create_child_ca()
    files = write(tmp_path, between, not_after=NOW + 60 * DAY)
    authority.cert_pem.write_to_path(files["tls_ca"])
    found = {each.key: each for each in Certificates(both_config(files)).expiries}
    assert [*found] == ["http.tls_certificate", "raft.tls_certificate", "raft.tls_ca"]
    own = x509.load_pem_x509_certificate(files["tls_certificate"].read_bytes())
    ca = x509.load_pem_x509_certificate(files["tls_ca"].read_bytes())
    for key, certificate in (("raft.tls_certificate", own), ("raft.tls_ca", ca)):
        assert found[key].ends_at == certificate.not_valid_after_utc.timestamp()
        assert int(found[key].serial, 16) == certificate.serial_number
        assert f"organizationName={'trustme'}" in found[key].subject


def test_one_that_has_expired_is_refused_with_its_file_and_since_when(
    tmp_path: Path, authority: trustme.CA
) -> None:
    files = write(tmp_path, authority, not_after=NOW - 3 * DAY)
    for config in (peer_config(files), http_config(files)):
        refusal = refusal_of(config)
        ended = (NOW - 3 * DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert f"{files['tls_certificate']}: the certificate of " in refusal
        assert f"expired 3 days ago, on {ended}" in refusal


def test_config_check_warns_of_what_ends_soon(tmp_path: Path, authority: trustme.CA) -> None:
    ends = {"not_before": NOW - 70 * DAY, "not_after": NOW + 20 * DAY + DAY / 2}
    files = write(tmp_path, authority, **ends)
    file = tmp_path / "cluster.toml"
    file.write_text("\n".join(["[http]", *(f"{n} = '{files[n]}'" for n in list(files)[:2])]))
    result = CliRunner().invoke(main, ["config", "check", str(file)])
    assert result.exit_code == 0
    assert f"http.tls_certificate: {files['tls_certificate']}: the certificate of" in result.output
    assert "ends in 20 days, on" in result.output


def test_config_check_finds_what_a_node_would_refuse(tmp_path: Path, authority: trustme.CA) -> None:
    files = write(tmp_path, authority, not_after=NOW - DAY)
    file = tmp_path / "cluster.toml"
    lines = [f"{name} = '{path}'" for name, path in files.items()]
    file.write_text("\n".join(["[raft]", *lines, "[http]", *lines[:2]]))
    result = CliRunner().invoke(main, ["config", "check", str(file)])
    assert result.exit_code == 1
    first, second = result.output.splitlines()
    assert first.startswith("error: http.tls_certificate: ")
    assert second.startswith("error: raft.tls_certificate: ")
    write(tmp_path, authority)
    assert CliRunner().invoke(main, ["config", "check", str(file)]).exit_code == 0


# --- read again ---


def shown(certificates: Certificates, authority: trustme.CA) -> set[object]:
    """The serial numbers of what the HTTP side and the peers' side show to who connects."""
    client = client_of(authority)
    http = shake_hands(certificates.http(), client).getpeercert()
    server, dialer, _ = certificates.peers()
    peer = shake_hands(server, dialer).getpeercert()
    assert http is not None
    assert peer is not None
    return {http["serialNumber"], peer["serialNumber"]}


def both_config(files: dict[str, Path]) -> Config:
    return configured(
        peer_config(files), http={k: files[k] for k in ("tls_certificate", "tls_key")}
    )


def test_new_files_are_shown_after_a_reload(tmp_path: Path, authority: trustme.CA) -> None:
    config = both_config(write(tmp_path, authority))
    certificates = Certificates(config)
    before = shown(certificates, authority)
    write(tmp_path, authority)
    assert shown(certificates, authority) == before
    certificates.reload(config)
    after = shown(certificates, authority)
    assert not after & before
    other = both_config(write(tmp_path, authority, name="other"))
    certificates.reload(other)
    assert not shown(certificates, authority) & (before | after), "paths may change, too"


@pytest.mark.parametrize("bad", ["another's key", "no key", "expired", "gone", "another CA's"])
def test_what_cannot_be_used_leaves_the_old_in_force_on_both_sides(
    tmp_path: Path, authority: trustme.CA, bad: str
) -> None:
    files = write(tmp_path, authority)
    config = both_config(files)
    certificates = Certificates(config)
    before, contexts = shown(certificates, authority), certificates.peers()
    if bad == "another's key":
        other = write(tmp_path, authority, name="other")
        files["tls_key"].write_bytes(other["tls_key"].read_bytes())
    elif bad == "no key":
        files["tls_key"].write_text("half a file")
    elif bad == "expired":
        write(tmp_path, authority, not_after=NOW - DAY)
    elif bad == "gone":
        files["tls_certificate"].unlink()
    else:
        trustme.CA().cert_pem.write_to_path(files["tls_ca"])  # the HTTP side is sound
        files |= write(tmp_path, authority) | {"tls_ca": files["tls_ca"]}
        trustme.CA().cert_pem.write_to_path(files["tls_ca"])
    with pytest.raises(InvalidConfigError):
        certificates.reload(config)
    assert shown(certificates, authority) == before
    assert certificates.peers() is contexts


def test_a_ca_that_is_taken_away_is_trusted_no_longer(
    tmp_path: Path, authority: trustme.CA
) -> None:
    files = write(tmp_path, authority)
    certificates = Certificates(peer_config(files))
    _, old_client, _ = certificates.peers()
    shake_hands(certificates.peers().server, old_client)
    certificates.reload(peer_config(write(tmp_path, trustme.CA())))
    old_client.check_hostname = False
    old_client.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(certificates.peers().server, old_client)


def test_tls_that_is_switched_on_or_off_asks_for_a_restart(
    tmp_path: Path, authority: trustme.CA
) -> None:
    config = both_config(write(tmp_path, authority))
    none = Certificates(Config())
    with pytest.raises(ConfigError, match=r"http.tls_certificate was added: restart the node"):
        none.reload(config)
    off = Certificates(config)
    with pytest.raises(ConfigError, match=r"raft.tls_certificate was taken away: restart the node"):
        off.reload(http_config(write(tmp_path, authority)))
    assert off.has_peers
