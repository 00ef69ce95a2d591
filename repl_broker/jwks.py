"""Public keys: those of a JSON Web Key Set (RFC 7517) by which tokens can be checked.

An issuer's set may hold keys that are not for us: for encryption, of kinds that came after this
program, or broken. Each of those is passed over with a note of why (section 5), and the others
are used. Otherwise one of them would keep a key that was withdrawn in force, and a new one out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from repl_broker.errors import ConfigError

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

    Key = OctKey | RSAKey | ECKey | OKPKey

__all__ = ["KeyEntry", "KeySet", "library_errors", "read_file", "read_keys"]

FILE_BYTES_MAX: Final = 256 << 10
KEYS_MAX: Final = 64
RSA_BITS_MIN: Final = 2048  # RFC 7518 section 3.3
RSA_BITS_MAX: Final = (
    6144  # the library takes no longer signature; and checking costs more and more
)
# What a key must be for an algorithm: members of its JWK.
_FITTING: Final[Mapping[str, Mapping[str, str]]] = {
    "RS256": {"kty": "RSA"},
    "ES256": {"kty": "EC", "crv": "P-256"},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519"},
}
_NAMES: Final = {"EdDSA": ("EdDSA", "Ed25519")}  # by which a JWK may name the algorithm


class KeyEntry(NamedTuple):
    """A key, and what it is for. ``kid`` is how tokens name it."""

    algorithm: str
    kid: str | None
    key: Key


class KeySet(NamedTuple):
    """The keys of a file that can be used, and why the others cannot."""

    keys: tuple[KeyEntry, ...]
    notes: tuple[str, ...]


class _UnusableError(Exception):
    """Why a key cannot be used."""


def library_errors() -> tuple[type[Exception], ...]:
    """All that joserfc, and cryptography below it, raise for a key or a token they do not like.

    Theirs have no common base: UnsupportedAlgorithm and InternalError of cryptography are neither
    ValueErrors nor of joserfc's family, and numbers that are too large are ArithmeticErrors.
    """
    from cryptography import exceptions
    from joserfc.errors import JoseError

    return (
        *(JoseError, exceptions.UnsupportedAlgorithm, exceptions.InternalError),
        *(exceptions.InvalidSignature, exceptions.InvalidKey),
        *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
    )


def read_file(file: Path, name: str) -> bytes:
    """What the file that the key ``name`` names has in it. Raises ConfigError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {file}: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{name}: {file} has more than {FILE_BYTES_MAX} bytes")
    return data


def read_keys(file: Path) -> KeySet:
    """The keys of a file. Raises ConfigError for one that is no JSON Web Key Set."""
    where = f"auth.jwks_file: {file}"
    try:
        document = json.loads(read_file(file, "auth.jwks_file"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is not JSON") from None
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ConfigError(f'{where} is not a JSON Web Key Set: wanted {{"keys":[…]}} (RFC 7517)')
    keys: dict[tuple[str, ...], tuple[int, KeyEntry]] = {}  # by what they are made of
    notes: list[str] = []
    if len(found) > KEYS_MAX:
        notes.append(f"has {len(found)} keys; the limit is {KEYS_MAX}, and the others are not used")
    for number, jwk in enumerate(found[:KEYS_MAX], 1):
        try:
            entry, made_of = _read_key(jwk)
        except _UnusableError as error:
            notes.append(f"key {number}{_called(jwk)} is not used: {error}")
            continue
        same = next((n for n, e in keys.values() if (e.algorithm, e.kid) == entry[:2]), None)
        if made_of in keys:
            notes.append(f"key {number}{_called(jwk)} is not used: it is key {keys[made_of][0]}")
        elif same is not None and entry.kid is not None:
            notes.append(f"key {number}{_called(jwk)} has the kid of key {same}; both are tried")
        keys.setdefault(made_of, (number, entry))
    return KeySet(tuple(entry for _, entry in keys.values()), tuple(notes))


def _called(jwk: object) -> str:
    """How the key is named in the file, for a note."""
    kid = jwk.get("kid") if isinstance(jwk, dict) else None
    return f" (kid {kid[:64]!r})" if isinstance(kid, str) else ""


def _read_key(jwk: object) -> tuple[KeyEntry, tuple[str, ...]]:
    """The key, and its members by which it is told from others. Raises _UnusableError."""
    if not isinstance(jwk, dict):
        raise _UnusableError("it is no JSON object")
    algorithm = _algorithm_of(jwk)
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise _UnusableError("its kid is no string")
    # What is private of it, if it is there, is of no use here.
    public = {name: jwk[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in jwk}
    key = _import(public)
    return KeyEntry(algorithm, kid, key), (kid or "", *(f"{n}={v}" for n, v in public.items()))


def _algorithm_of(jwk: Mapping[str, Any]) -> str:
    """What it checks signatures of (RFC 7517 section 4). Raises _UnusableError."""
    kty, crv = jwk.get("kty"), jwk.get("crv")
    if kty == "oct":
        raise _UnusableError("a secret belongs in auth.secret_file")
    fitting = (name for name, wanted in _FITTING.items() if wanted.items() <= _texts(jwk))
    algorithm = next(fitting, None)
    if algorithm is None:
        curve = "" if crv is None else f" and crv {_shown(crv)}"
        raise _UnusableError(f"kty {_shown(kty)}{curve} is not of {', '.join(_FITTING)}")
    if jwk.get("alg", algorithm) not in _NAMES.get(algorithm, (algorithm,)):
        raise _UnusableError(f"its alg is {_shown(jwk['alg'])}, not {algorithm}")
    if jwk.get("use", "sig") != "sig":
        raise _UnusableError(f"its use is {_shown(jwk['use'])}, not sig")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or not ("verify" in operations or "sign" in operations):
        raise _UnusableError("its key_ops have no verify")
    return algorithm


def _texts(jwk: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(name, value) for name, value in jwk.items() if isinstance(value, str)}


def _import(public: Mapping[str, Any]) -> Key:
    """Raises _UnusableError."""
    from joserfc.jwk import ECKey, OKPKey, RSAKey

    makers: dict[str, Callable[[Any], Key]] = {
        "RSA": RSAKey.import_key,
        "EC": ECKey.import_key,
        "OKP": OKPKey.import_key,
    }
    try:
        if public["kty"] == "RSA":
            from joserfc.util import base64_to_int

            bits = base64_to_int(public["n"]).bit_length()
            if not RSA_BITS_MIN <= bits <= RSA_BITS_MAX:
                raise _UnusableError(
                    f"an RSA key of {bits} bits; wanted {RSA_BITS_MIN} to {RSA_BITS_MAX}"
                )
        return makers[public["kty"]](public)
    except library_errors():
        raise _UnusableError("it cannot be read as a public key (RFC 7518)") from None


def _shown(found: object) -> str:
    """A member's value for a note, whatever it is, and however deep."""
    if not isinstance(found, str):
        return "missing" if found is None else "no string"
    return repr(found if len(found) <= 64 else f"{found[:61]}...")
