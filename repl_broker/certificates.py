"""Certificates: those of the HTTP side, and those by which nodes know each other.

Files are tried before they are used. The node shakes hands with itself, in
memory, so that OpenSSL says of a certificate here what it would say to a
client or a peer: that it has expired, is of another CA, names another host. Its
finding becomes a problem with a remedy, and nothing that was in force changes.

New contexts take the place of the old ones, rather than new files in an old
context: connections that are open keep theirs, a CA can be taken away again, and
no session of before is resumed.

How long each is good is known (``expiries``), and said: when it is read, when another
takes its place, and every day of its last month (``run``).
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from repl_broker.config import Config, InvalidConfigError
from repl_broker.errors import ConfigError

__all__ = ["Certificates", "Expiry", "PeerContexts", "alert_of", "examine", "explain"]

log = logging.getLogger(__name__)

ALPN: Final = ("http/1.1",)  # HTTP/2 belongs to the proxy in front
# Fewer are worth a warning a day, and then an error; of one that lives for less than three months
# these shares of its life, because such are renewed late.
DAYS_LEFT_WARNED: Final = 30
DAYS_LEFT_FEW: Final = 7
SHARE_LEFT_WARNED: Final = 1 / 3
SHARE_LEFT_FEW: Final = 1 / 12
DAY_SECONDS: Final = 86_400
LOOK_SECONDS: Final = 3600  # between two looks at the clock
FILE_BYTES_MAX: Final = 1 << 20  # that are looked at, for whether a file has changed
NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which ssl has no name for

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


def days_of(days: float) -> str:
    """A number of days, in words."""
    return f"{days:.0f} day{'' if f'{days:.0f}' == '1' else 's'}"


def days_ago(days: float) -> str:
    whole = int(days)
    return f"{days_of(whole)} ago" if whole else "today"


class PeerContexts(NamedTuple):
    """How a node shows itself to its peers, and what it asks of them."""

    server: ssl.SSLContext  # for who dials this node
    client: ssl.SSLContext  # for whom it dials
    certificate: bytes  # this node's own, DER


class Expiry(NamedTuple):
    """Of those in a file, the certificate that ends first."""

    key: str  # of the configuration, which names …
    file: Path
    serial: str
    subject: str
    begins_at: float  # seconds since 1970, as is …
    ends_at: float

    def days_left(self, now: float) -> int:
        return int((self.ends_at - now) // DAY_SECONDS)

    def is_over(self, now: float) -> bool:
        return now >= self.ends_at

    def ends_soon(self, now: float) -> bool:
        return self._has_less(DAYS_LEFT_WARNED, SHARE_LEFT_WARNED, now)

    def is_urgent(self, now: float) -> bool:
        return self._has_less(DAYS_LEFT_FEW, SHARE_LEFT_FEW, now)

    def _has_less(self, days: float, share: float, now: float) -> bool:
        life = self.ends_at - self.begins_at
        return self.ends_at - now < min(days * DAY_SECONDS, share * life)

    @property
    def end(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.ends_at))

    def told(self, now: float) -> str:
        """For a person, as what is said of its file."""
        days = self.days_left(now)
        when = f"ends in {days_of(days)}" if days >= 0 else f"expired {days_ago(-days - 1)}"
        return f"the certificate of {self.subject} (serial {self.serial}) {when}, on {self.end}"


class Certificates:
    """What new connections use: as the configuration said when it was last read.

    ``now`` gives seconds since 1970. Raises InvalidConfigError, which holds every problem.
    """

    def __init__(self, config: Config, now: Callable[[], float] = time.time) -> None:
        self._http: ssl.SSLContext | None = None
        self._peers: PeerContexts | None = None
        self._now = now
        self._contents: Mapping[str, bytes] = {}
        self.expiries: tuple[Expiry, ...] = ()
        self._read(config)
        self._tell()

    def _tell(self) -> None:
        for expiry in self.expiries:
            log.info(
                "certificate key=%s file=%r subject=%r serial=%s expires=%s days_left=%d",
                *(expiry.key, str(expiry.file), expiry.subject, expiry.serial, expiry.end),
                expiry.days_left(self._now()),
            )

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

    def reload(self, config: Config) -> list[str]:
        """Read the files again, for connections from now on; those that are open go on.

        Of which keys the files have other contents now. Raises ConfigError; then what was in
        force stays so, on both sides.
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
        old, before = {each.key: each for each in self.expiries}, self._contents
        self._read(config)
        for new in self.expiries:
            was = old.get(new.key)
            if was is not None and (was.serial, was.ends_at) != (new.serial, new.ends_at):
                log.info(
                    "certificate renewed key=%s file=%r subject=%r serial=%s expires=%s "
                    "days_left=%d was_serial=%s was_expires=%s",
                    *(new.key, str(new.file), new.subject, new.serial, new.end),
                    *(new.days_left(self._now()), was.serial, was.end),
                )
        return [key for key, data in self._contents.items() if before.get(key) != data]

    def _read(self, config: Config) -> None:
        found: list[str] = []
        expiries: list[Expiry] = []
        contents = _contents(config)  # of before: what is replaced meanwhile counts as other
        http = _http_context(config, found, expiries, self._now())
        peers = _peer_contexts(config, found, expiries, self._now())
        if found:
            raise InvalidConfigError(found)
        self._http, self._peers = http, peers
        self.expiries, self._contents = tuple(expiries), contents

    async def run(self) -> None:
        """Say so each day, from 30 days before one ends; there is nothing to do without TLS."""
        told: dict[tuple[str, str], int] = {}  # by key and serial: how many days were left
        while self.expiries:
            now = self._now()
            for expiry in self.expiries:
                which, days = (expiry.key, expiry.serial), expiry.days_left(now)
                if expiry.ends_soon(now) and told.get(which) != days:
                    told[which] = days
                    _warn(expiry, now)
            await trio.sleep(LOOK_SECONDS)


_FIELDS: Final = "key=%s file=%r subject=%r serial=%s expires=%s days_left=%d remedy=%r"


def _warn(expiry: Expiry, now: float) -> None:
    what = "certificate has expired" if expiry.is_over(now) else "certificate ends soon"
    log.log(
        logging.ERROR if expiry.is_urgent(now) else logging.WARNING,
        f"{what} {_FIELDS}",
        *(expiry.key, str(expiry.file), expiry.subject, expiry.serial, expiry.end),
        expiry.days_left(now),
        _REMEDIES[10],
    )


def examine(config: Config, now: Callable[[], float] = time.time) -> tuple[list[str], list[str]]:
    """What speaks against the certificates that ``config`` names, and which of them end soon, one
    line each."""
    try:
        expiries = Certificates(config, now).expiries
    except InvalidConfigError as error:
        return [*error.problems], []
    soon = [each for each in expiries if each.ends_soon(now())]
    return [], [f"{each.key}: {each.file}: {each.told(now())}; {_REMEDIES[10]}" for each in soon]


def _contents(config: Config) -> dict[str, bytes]:
    """Digests, by key, of the files that can be read."""
    found = {}
    for section in ("http", "raft"):
        for name in ("tls_certificate", "tls_key", "tls_ca"):
            file = getattr(getattr(config, section), name, None)
            if file is None:
                continue
            with suppress(OSError), file.open("rb") as opened:
                found[f"{section}.{name}"] = hashlib.sha256(opened.read(FILE_BYTES_MAX)).digest()
    return found


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


def _http_context(
    config: Config, found: list[str], expiries: list[Expiry], now: float
) -> ssl.SSLContext | None:
    certificate, key = config.http.tls_certificate, config.http.tls_key
    if certificate is None or key is None:
        return None
    try:
        server, ends = _server("http", certificate, key)
        expiries += ends
        server.set_alpn_protocols([*ALPN])
        # Whoever issued it: only what the certificate says of itself is looked at.
        client = _context(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(certificate)
        _try_out("http.tls_certificate", ends, certificate, server, client, None, now)
    except (ConfigError, OSError) as error:  # the latter while files are being replaced
        found.append(f"{error}" if isinstance(error, ConfigError) else f"http.tls_key: {error}")
        return None
    return server


def _peer_contexts(
    config: Config, found: list[str], expiries: list[Expiry], now: float
) -> PeerContexts | None:
    raft = config.raft
    certificate, key, authority = raft.tls_certificate, raft.tls_key, raft.tls_ca
    if certificate is None or key is None or authority is None:
        return None
    try:
        server, ends = _server("raft", certificate, key)
        client = _context(ssl.PROTOCOL_TLS_CLIENT)  # which looks at host names, too
        client.load_cert_chain(certificate, key)
        for context in (server, client):
            _trust("raft.tls_ca", context, authority)
        ends += _first_to_end("raft.tls_ca", authority, client.get_ca_certs())
        expiries += ends
        server.verify_mode = ssl.CERT_REQUIRED
        server.num_tickets = 0  # a resumed session is not verified anew
        server.options |= ssl.OP_NO_TICKET
        host = _own_host(config)
        own = _try_out("raft.tls_certificate", ends, certificate, server, client, host, now)
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


def _server(section: str, certificate: Path, key: Path) -> tuple[ssl.SSLContext, list[Expiry]]:
    """A context, and when its certificate ends. Raises ConfigError."""
    names = f"{section}.tls_certificate", f"{section}.tls_key"
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    reader = _context(ssl.PROTOCOL_TLS_CLIENT)
    _trust(names[0], reader, certificate)
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
    chain = [*_shown(context, reader), *reader.get_ca_certs()]
    return context, _first_to_end(names[0], certificate, chain)


def _shown(server: ssl.SSLContext, reader: ssl.SSLContext) -> list[dict[str, Any]]:
    """The certificate that ``server`` shows, whatever the time is."""
    reader.check_hostname = False
    reader.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    reader.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    with suppress(ssl.SSLError):  # that it cannot be used is found out by trying it
        return [_shake_hands(server, reader, None).getpeercert() or {}]
    return []


def _first_to_end(key: str, file: Path, certificates: Sequence[Mapping[str, Any]]) -> list[Expiry]:
    """The one of ``file`` that ends first; none, if none is known."""
    found = [
        Expiry(
            key,
            file,
            str(each.get("serialNumber", "")),
            _name_of(each.get("subject", ())),
            ssl.cert_time_to_seconds(each["notBefore"]),
            ssl.cert_time_to_seconds(each["notAfter"]),
        )
        for each in certificates
        if "notAfter" in each
    ]
    return [min(found, key=lambda each: each.ends_at)] if found else []


def _name_of(subject: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Of RFC 4514, near enough for whoever has issued it."""
    return ", ".join(f"{name}={value}" for part in subject for name, value in part) or "no name"


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
    name: str,
    ends: Sequence[Expiry],
    file: Path,
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    host: str | None,
    now: float,
) -> bytes:
    """Shake hands in memory; the server's certificate, DER. Raises ConfigError."""
    try:
        dialer = _shake_hands(server, client, host)
    except ssl.SSLError as error:
        over = "".join(f"; {e.file}: {e.told(now)}" for e in ends if e.is_over(now))
        raise ConfigError(f"{name}: {file} cannot be used: {explain(error)}{over}") from None
    certificate = dialer.getpeercert(binary_form=True)
    assert certificate is not None, "a server always shows one"
    return certificate


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str | None) -> ssl.SSLObject:
    """The client's end. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialer = client.wrap_bio(to_client, to_server, server_hostname=host or None)
    acceptor = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (dialer, acceptor, dialer, acceptor):  # RFC 8446 section 2: no more is needed
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return dialer
