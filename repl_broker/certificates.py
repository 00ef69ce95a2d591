"""Certificates: those of the HTTP side, and those by which nodes know each other.

Files are tried before they are used. The node shakes hands with itself, in
memory, so that OpenSSL says of a certificate here what it would say to a
client or a peer: that it has expired, is of another CA, names another host. Its
finding becomes a problem with a remedy, and nothing that was in force changes.

New contexts take the place of the old ones, rather than new files in an old
context: connections that are open keep theirs, a CA can be taken away again, and
no session of before is resumed.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from repl_broker.config import Config, InvalidConfigError
from repl_broker.errors import ConfigError

if TYPE_CHECKING:
    import trio

__all__ = ["Certificates", "PeerContexts", "alert_of", "explain", "problems"]

log = logging.getLogger(__name__)

ALPN: Final = ("http/1.1",)  # HTTP/2 belongs to the proxy in front
DAYS_LEFT_WARNED: Final = 14  # fewer are worth a warning; issuers renew at 30
DAY_SECONDS: Final = 86_400

# By OpenSSL's numbers (X509_V_ERR_…, openssl-verify(1)): what to do about it.
_REMEDIES: Final = {
    9: "see to the clock of this machine, or wait until the certificate is valid",
    10: "renew it (or that of its CA), and send SIGHUP to the node, or start it again",
    **dict.fromkeys(
        (2, 18, 19, 20, 21),
        "it must be signed by a CA of tls_ca, and its file must hold the certificates between",
    ),
    26: "issue it for servers and for clients (extendedKeyUsage serverAuth, clientAuth), or for "
    "any use",
    **dict.fromkeys(
        (62, 64),
        "issue it with that name or address as subjectAltName, or set [raft] advertise to one "
        "that it has",
    ),
}


class PeerContexts(NamedTuple):
    """How a node shows itself to its peers, and what it asks of them."""

    server: ssl.SSLContext  # for who dials this node
    client: ssl.SSLContext  # for whom it dials
    certificate: bytes  # this node's own, DER


class Certificates:
    """What new connections use: as the configuration said when it was last read.

    Raises InvalidConfigError, which holds every problem.
    """

    def __init__(self, config: Config) -> None:
        self._http: ssl.SSLContext | None = None
        self._peers: PeerContexts | None = None
        self._read(config)

    @property
    def has_http(self) -> bool:
        """Whether the HTTP side speaks TLS, which it does from its start or not at all."""
        return self._http is not None

    @property
    def has_peers(self) -> bool:
        """Whether nodes speak TLS with each other; from the start or not at all."""
        return self._peers is not None

    def http(self) -> ssl.SSLContext:
        assert self._http is not None, "the HTTP side speaks no TLS"
        return self._http

    def peers(self) -> PeerContexts:
        assert self._peers is not None, "nodes speak no TLS with each other"
        return self._peers

    def reload(self, config: Config) -> None:
        """Read the files again, for connections from now on; those that are open go on.

        Raises ConfigError; then what was in force stays so, on both sides.
        """
        for name, is_on, file in (
            ("http", self.has_http, config.http.tls_certificate),
            ("raft", self.has_peers, config.raft.tls_certificate),
        ):
            if is_on != (file is not None):
                raise ConfigError(
                    f"{name}.tls_certificate was {'taken away' if is_on else 'added'}: restart "
                    f"the node to {'do without TLS' if is_on else 'speak TLS'}"
                )
        self._read(config)

    def _read(self, config: Config) -> None:
        found: list[str] = []
        http, peers = _http_context(config, found), _peer_contexts(config, found)
        if found:
            raise InvalidConfigError(found)
        self._http, self._peers = http, peers


def problems(config: Config) -> list[str]:
    """What speaks against the certificates that ``config`` names, one line each."""
    try:
        Certificates(config)
    except InvalidConfigError as error:
        return [*error.problems]
    return []


def explain(error: ssl.SSLError) -> str:
    """What OpenSSL found, and what to do about it where that is known."""
    if isinstance(error, ssl.SSLCertVerificationError):
        message = error.verify_message.rstrip(".").replace(", certificate is", ", it is")
        remedy = _REMEDIES.get(error.verify_code, "see openssl-verify(1)")
        return f"{message}; {remedy}"
    return error.reason or str(error)


def alert_of(stream: trio.SSLStream[Any]) -> bytes:
    """What the other is to be told of a handshake that failed; Trio 0.35 does not send it."""
    alert: bytes = stream._outgoing.read()
    return alert


def _http_context(config: Config, found: list[str]) -> ssl.SSLContext | None:
    certificate, key = config.http.tls_certificate, config.http.tls_key
    if certificate is None or key is None:
        return None
    try:
        server = _server("http", certificate, key)
        server.set_alpn_protocols([*ALPN])
        # Whoever issued it: only what the certificate says of itself is looked at.
        client = _context(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(certificate)
        _try_out("http.tls_certificate", certificate, server, client, None)
    except (ConfigError, OSError) as error:  # the latter while files are being replaced
        found.append(f"{error}" if isinstance(error, ConfigError) else f"http.tls_key: {error}")
        return None
    return server


def _peer_contexts(config: Config, found: list[str]) -> PeerContexts | None:
    raft = config.raft
    certificate, key, authority = raft.tls_certificate, raft.tls_key, raft.tls_ca
    if certificate is None or key is None or authority is None:
        return None
    try:
        server = _server("raft", certificate, key)
        client = _context(ssl.PROTOCOL_TLS_CLIENT)  # which looks at host names, too
        client.load_cert_chain(certificate, key)
        for context in (server, client):
            _trust("raft.tls_ca", context, authority)
        server.verify_mode = ssl.CERT_REQUIRED
        server.num_tickets = 0  # a resumed session is not verified anew
        server.options |= ssl.OP_NO_TICKET
        own = _try_out("raft.tls_certificate", certificate, server, client, _own_host(config))
    except (ConfigError, OSError) as error:
        found.append(f"{error}" if isinstance(error, ConfigError) else f"raft.tls_key: {error}")
        return None
    return PeerContexts(server, client, own)


def _own_host(config: Config) -> str | None:
    """By which peers reach this node, if that is known: its certificate must have it."""
    host = (config.raft.advertise or config.raft.bind).host
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            return None
    return host


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # of TLS 1.2: work for the asking
    return context


def _server(section: str, certificate: Path, key: Path) -> ssl.SSLContext:
    """Raises ConfigError."""
    names = f"{section}.tls_certificate", f"{section}.tls_key"
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _trust(names[0], _context(ssl.PROTOCOL_TLS_CLIENT), certificate)
    _look_at(names[1], key)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigError(_misfit(names, certificate, key, error)) from None
    except _EncryptedError:
        raise ConfigError(
            f"{names[1]}: {key} is encrypted, and there is nobody to ask for its password; "
            f"decrypt it: openssl pkey -in {key} -out decrypted.pem"
        ) from None
    return context


def _misfit(names: tuple[str, str], certificate: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            f"{names[1]}: {key} does not belong to the certificate in {certificate}; give the key "
            "that the certificate was issued for, and the node's own certificate first in its file"
        )
    if error.reason in (None, "NO_START_LINE", "PEM_LIB", "UNSUPPORTED", "BAD_BASE64_DECODE"):
        return f"{names[1]}: {key} holds no private key that can be read; wanted PEM"
    return f"{names[0]}: OpenSSL does not take {certificate} with {key}: {error.reason}"


class _EncryptedError(Exception):
    """The key needs a password."""


def _no_password() -> str:
    """OpenSSL would ask on the terminal, and the node stand still."""
    raise _EncryptedError


def _trust(name: str, context: ssl.SSLContext, file: Path) -> None:
    """Have ``context`` trust the certificates in ``file``. Raises ConfigError."""
    _look_at(name, file)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        why = explain(error)
        raise ConfigError(f"{name}: {file} holds no certificate; wanted PEM ({why})") from None


def _look_at(name: str, file: Path) -> None:
    """Raises ConfigError, which names the file; OpenSSL's errors do not."""
    try:
        file.open("rb").close()
    except OSError as error:
        remedy = "; the user that runs the node must be able to read it"
        raise ConfigError(
            f"{name}: cannot read {file}: {error.strerror}"
            f"{remedy if isinstance(error, PermissionError) else ''}"
        ) from None


def _try_out(
    name: str, file: Path, server: ssl.SSLContext, client: ssl.SSLContext, host: str | None
) -> bytes:
    """Shake hands in memory; the server's certificate, DER. Raises ConfigError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialer = client.wrap_bio(to_client, to_server, server_hostname=host or None)
    acceptor = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for end in (dialer, acceptor, dialer, acceptor):  # RFC 8446 section 2: no more is needed
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLError as error:
        raise ConfigError(f"{name}: {file} cannot be used: {explain(error)}") from None
    _note_expiry(file, dialer.getpeercert())
    certificate = dialer.getpeercert(binary_form=True)
    assert certificate is not None, "a server always shows one"
    return certificate


def _note_expiry(file: Path, certificate: object) -> None:
    assert isinstance(certificate, dict)
    seconds = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = int((seconds - time.time()) // DAY_SECONDS)
    level = logging.WARNING if days < DAYS_LEFT_WARNED else logging.INFO
    log.log(level, "certificate file=%r days_left=%d", str(file), days)
