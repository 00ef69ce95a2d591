"""Certificates for tests: a CA, and what it signs for nodes, good and bad."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from repl_broker.config import Config
from tests.nodes import configured

LOOPBACK = "127.0.0.1"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def write(
    folder: Path, authority: trustme.CA, *names: str, name: str = "node", **more: Any
) -> dict[str, Path]:
    """A certificate for ``names`` with its key and its CA, as keys of [raft]."""
    issued = authority.issue_cert(*(names or (LOOPBACK,)), **more)
    files = {
        "tls_certificate": folder / f"{name}.pem",
        "tls_key": folder / f"{name}.key",
        "tls_ca": folder / f"{name}-ca.pem",
    }
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    files["tls_certificate"].write_bytes(chain)
    issued.private_key_pem.write_to_path(files["tls_key"])
    files["tls_key"].chmod(0o600)
    authority.cert_pem.write_to_path(files["tls_ca"])
    return files


def peer_config(files: dict[str, Path]) -> Config:
    return configured(raft=dict(files))


def http_config(files: dict[str, Path]) -> Config:
    return configured(http={k: files[k] for k in ("tls_certificate", "tls_key")})


def write_unusual(
    folder: Path,
    *,
    begins: datetime.datetime = NOW - DAY,
    purposes: tuple[x509.ObjectIdentifier, ...] = (),
) -> dict[str, Path]:
    """What trustme does not issue: one for later, or for some purposes; its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "unusual")])
    address = x509.IPAddress(ipaddress.ip_address(LOOPBACK))
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(NOW + 300 * DAY)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
    )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    files = {name: folder / f"unusual-{name}" for name in ("tls_certificate", "tls_key", "tls_ca")}
    files["tls_certificate"].write_bytes(certificate)
    files["tls_ca"].write_bytes(certificate)
    files["tls_key"].write_bytes(private(key))
    files["tls_key"].chmod(0o600)
    return files


def private(key: ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    """The key as PEM, encrypted if there is a password."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
