"""Tokens: signed JSON (RFC 7519) that says who asks, and what that one may do. Pure but for files.

    {"sub": "ann", "iat": 1800000000, "exp": 1800003600,
     "repl_broker": {"publish": ["orders.>"], "subscribe": ["chat"], "admin": false}}

``Verifier`` holds the keys and answers one question: what does this token claim,
if it is valid now? Nothing of a token is believed, or told, before its signature
is checked. The algorithm is chosen by the operator's list and by what each key
is for, never by the token alone: so ``none`` is no algorithm, and a public key
is never taken for a secret (RFC 8725 section 2.1).

Whether a token was revoked since, and what its claims allow, is access.py's.
"""

from __future__ import annotations

import json
import re
import warnings
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from repl_broker.config import SECRET_ALGORITHMS, TOKEN_SECRET_BYTES_MIN, AuthConfig
from repl_broker.errors import ConfigError, RequestError
from repl_broker.message import FILTERS_MAX, is_filter

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

    Key = OctKey | RSAKey | ECKey | OKPKey

__all__ = ["CLAIM", "REASONS", "Claims", "Verifier", "create", "read_secret", "refuse"]

CLAIM: Final = "repl_broker"
# Why a token is not taken, as ``reason`` of ``unauthenticated`` says it.
REASONS: Final = (
    "missing",
    "malformed",
    "algorithm",
    "signature",
    "claims",
    "expired",
    "not_yet_valid",
    "audience",
    "issuer",
    "revoked",
)
TOKEN_BYTES_MAX: Final = 8192
SUBJECT_CHARACTERS_MAX: Final = 255
FILE_BYTES_MAX: Final = 256 << 10
KEYS_MAX: Final = 64
RSA_BITS_MIN: Final = 2048  # RFC 7518 section 3.3
DATE_MAX: Final = 2**53  # of a NumericDate, in seconds

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
# What a key must be for an algorithm: members of its JWK.
_FITTING: Final[Mapping[str, Mapping[str, str]]] = {
    "RS256": {"kty": "RSA"},
    "ES256": {"kty": "EC", "crv": "P-256"},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519"},
}
_NAMES: Final = {"EdDSA": ("EdDSA", "Ed25519")}  # by which a JWK may name the algorithm


class Claims(NamedTuple):
    """What a valid token says. Times are seconds since 1970."""

    subject: str | None
    issued_at: float | None
    expires_at: float
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    admin: bool


class _KeyEntry(NamedTuple):
    algorithm: str
    kid: str | None
    key: Key


def refuse(reason: str, detail: str) -> RequestError:
    """The error of a token that is not taken; ``reason`` is for programs."""
    assert reason in REASONS, "a reason is one that is described"
    return RequestError("unauthenticated", detail, reason=reason)


class Verifier:
    """The keys of a node, and what it asks of a token. Raises ConfigError for bad keys."""

    def __init__(self, auth: AuthConfig) -> None:
        self._auth = auth
        self._files = [file for file in (auth.secret_file, auth.jwks_file) if file is not None]
        self.signature = self.stamp()
        self._keys: list[_KeyEntry] = []
        if auth.secret_file is not None:
            self._keys.append(_KeyEntry("HS256", None, _secret_key(read_secret(auth.secret_file))))
        if auth.jwks_file is not None:
            self._keys += _read_jwks(auth.jwks_file)
        allowed = auth.algorithms or tuple(dict.fromkeys(key.algorithm for key in self._keys))
        self._keys = [key for key in self._keys if key.algorithm in allowed]
        for algorithm in allowed:
            if not any(key.algorithm == algorithm for key in self._keys):
                raise ConfigError(
                    f"[auth] algorithms has {algorithm}, and no key of {auth.jwks_file} is for it"
                )
        self._allowed = frozenset(allowed)

    def stamp(self) -> tuple[object, ...]:
        """Tells whether the files have changed: compare it with ``signature``."""
        found: list[object] = []
        for file in self._files:
            try:
                about = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((about.st_mtime_ns, about.st_size, about.st_ino))
        return tuple(found)

    def verify(self, token: str, now: float) -> Claims:
        """What the token claims, if it is valid at ``now``. Raises ``unauthenticated``."""
        parts = _COMPACT.fullmatch(token) if len(token) <= TOKEN_BYTES_MAX else None
        if parts is None:
            raise refuse(
                "malformed",
                f"The token is no JSON Web Token in the compact form of at most {TOKEN_BYTES_MAX} "
                "bytes (RFC 7519).",
            )
        header = _object(parts[1])
        if header is None or "crit" in header or "b64" in header:
            raise refuse("malformed", "The token's header is not one that can be read here.")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._allowed:
            allowed = ", ".join(sorted(self._allowed))
            raise refuse("algorithm", f"The token must be signed by {allowed} ([auth] algorithms).")
        self._check_signature(token, algorithm, header.get("kid"))
        payload = _object(parts[2])
        if payload is None:
            raise refuse("malformed", "The token's claims are not a JSON object.")
        return self._read(payload, now)

    def _check_signature(self, token: str, algorithm: str, kid: object) -> None:
        from joserfc import jws
        from joserfc.errors import JoseError, SecurityWarning

        fitting = [key for key in self._keys if key.algorithm == algorithm]
        if algorithm not in SECRET_ALGORITHMS:
            if isinstance(kid, str):
                fitting = [key for key in fitting if key.kid == kid]
            if not fitting:
                raise refuse("signature", "None of the node's keys has the token's key id.")
            if len(fitting) > 1:
                raise refuse("signature", "The token names no key (kid), and several may fit.")
        try:
            with warnings.catch_warnings():
                # RFC 9864 would have EdDSA called Ed25519; issuers do not, yet.
                warnings.simplefilter("ignore", SecurityWarning)
                jws.deserialize_compact(token, fitting[0].key, algorithms=[algorithm])
        except (JoseError, ValueError, TypeError):
            raise refuse("signature", "The token's signature is not valid.") from None

    def _read(self, payload: Mapping[str, Any], now: float) -> Claims:
        auth, leeway = self._auth, self._auth.leeway_seconds
        expires_at, not_before, issued_at = (_date(payload, name) for name in ("exp", "nbf", "iat"))
        if expires_at is None:
            raise refuse("claims", "The token has no exp; one that never expires is not taken.")
        if now >= expires_at + leeway:
            raise refuse("expired", "The token has expired; get a new one.")
        if not_before is not None and now < not_before - leeway:
            raise refuse("not_yet_valid", "The token is not valid yet (nbf).")
        if expires_at - (now if issued_at is None else issued_at) > auth.token_seconds_max:
            raise refuse(
                "claims",
                f"The token lives longer than {auth.token_seconds_max} seconds "
                "([auth] token_seconds_max).",
            )
        self._check_audience(payload)
        if auth.issuer is not None and payload.get("iss") != auth.issuer:
            raise refuse("issuer", "The token is of another issuer (iss).")
        subject = payload.get("sub")
        if subject is not None and not is_subject(subject):
            raise refuse(
                "claims", f"The claim sub must be 1 to {SUBJECT_CHARACTERS_MAX} characters."
            )
        return Claims(subject, issued_at, expires_at, *_grants(payload.get(CLAIM, {})))

    def _check_audience(self, payload: Mapping[str, Any]) -> None:
        audience = payload.get("aud", ())
        named = (audience,) if isinstance(audience, str) else audience
        if not isinstance(named, list | tuple):
            named = (named,)
        # RFC 7519 section 4.1.3: who does not find itself there must refuse.
        if (named or self._auth.audience is not None) and self._auth.audience not in named:
            raise refuse("audience", "The token is not for this broker (aud).")


def is_subject(found: object) -> bool:
    """Whether it can be a token's ``sub``."""
    return isinstance(found, str) and 1 <= len(found) <= SUBJECT_CHARACTERS_MAX


def create(
    secret: bytes,
    *,
    now: float,
    seconds: int,
    publish: Sequence[str] = (),
    subscribe: Sequence[str] = (),
    admin: bool = False,
    subject: str | None = None,
    audience: str | None = None,
    issuer: str | None = None,
) -> str:
    """An HS256 token that is valid from ``now`` for ``seconds``."""
    from joserfc import jwt

    grants: dict[str, object] = {}
    if publish:
        grants["publish"] = list(publish)
    if subscribe:
        grants["subscribe"] = list(subscribe)
    if admin:
        grants["admin"] = True
    named = {"sub": subject, "aud": audience, "iss": issuer}
    claims: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    claims |= {"iat": int(now), "exp": int(now) + seconds, CLAIM: grants}
    token: str = jwt.encode({"alg": "HS256", "typ": "JWT"}, claims, _secret_key(secret))
    return token


def read_secret(file: Path) -> bytes:
    """The secret by which tokens are signed. Raises ConfigError."""
    secret = _read(file, "auth.secret_file").rstrip(b"\r\n")
    if len(secret) < TOKEN_SECRET_BYTES_MIN:
        raise ConfigError(
            f"auth.secret_file: the secret in {file} has {len(secret)} bytes; wanted at least "
            f"{TOKEN_SECRET_BYTES_MIN}, for instance from openssl rand -hex 32"
        )
    return secret


def _secret_key(secret: bytes) -> OctKey:
    from joserfc.jwk import OctKey

    return OctKey.import_key(secret)


def _read(file: Path, name: str) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {file}: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{name}: {file} has more than {FILE_BYTES_MAX} bytes")
    return data


def _read_jwks(file: Path) -> list[_KeyEntry]:
    where = f"auth.jwks_file: {file}"
    try:
        document = json.loads(_read(file, "auth.jwks_file"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is not JSON") from None
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ConfigError(f'{where} is no JSON Web Key Set: wanted {{"keys":[…]}} (RFC 7517)')
    if len(found) > KEYS_MAX:
        raise ConfigError(f"{where} has {len(found)} keys; the limit is {KEYS_MAX}")
    entries = []
    for number, jwk in enumerate(found, 1):
        algorithm = next((name for name in _FITTING if _fits(jwk, name)), None)
        if jwk.get("kty") == "oct":
            raise ConfigError(f"{where}, key {number}: a secret belongs in auth.secret_file")
        if algorithm is not None:
            key = _import(jwk, f"{where}, key {number}")
            kid = jwk.get("kid")
            entries.append(_KeyEntry(algorithm, kid if isinstance(kid, str) else None, key))
    if not entries:
        raise ConfigError(f"{where} has no key for {', '.join(_FITTING)}")
    kids = [(entry.algorithm, entry.kid) for entry in entries if entry.kid is not None]
    if len(set(kids)) < len(kids):
        raise ConfigError(f"{where} has two keys with the same kid")
    return entries


def _fits(jwk: Mapping[str, Any], algorithm: str) -> bool:
    """Whether the key is one for checking signatures of this algorithm (RFC 7517 section 4)."""
    if any(jwk.get(name) != value for name, value in _FITTING[algorithm].items()):
        return False
    if jwk.get("alg", algorithm) not in _NAMES.get(algorithm, (algorithm,)):
        return False
    operations = jwk.get("key_ops", ("verify",))
    return jwk.get("use", "sig") == "sig" and (
        isinstance(operations, list | tuple) and ("verify" in operations or "sign" in operations)
    )


def _import(jwk: Mapping[str, Any], where: str) -> Key:
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, OKPKey, RSAKey

    makers: dict[str, Callable[[Any], Key]] = {
        "RSA": RSAKey.import_key,
        "EC": ECKey.import_key,
        "OKP": OKPKey.import_key,
    }
    # What is private of it, if it is there, is of no use here.
    public = {name: jwk[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in jwk}
    try:
        if jwk["kty"] == "RSA":
            bits = int.from_bytes(_decoded(jwk["n"])).bit_length()
            if bits < RSA_BITS_MIN:
                raise ConfigError(f"{where}: an RSA key of {bits} bits; wanted {RSA_BITS_MIN}")
        return makers[jwk["kty"]](public)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"{where}: cannot be read as a public key (RFC 7518)") from None


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _object(part: str) -> dict[str, Any] | None:
    """The JSON object that is a part of a token; None if it is not one."""
    try:
        found = json.loads(_decoded(part))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _date(payload: Mapping[str, Any], name: str) -> float | None:
    found = payload.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise refuse("claims", f"The claim {name} must be a number of seconds since 1970.")
    if not 0 <= found <= DATE_MAX:  # which NaN is not, either
        raise refuse("claims", f"The claim {name} is out of range.")
    return float(found)


def _grants(found: object) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    if not isinstance(found, dict):
        raise refuse("claims", f"The claim {CLAIM} must be an object.")
    for name in found:
        if name not in ("publish", "subscribe", "admin"):
            raise refuse("claims", f"The claim {CLAIM} has the unknown member {name[:64]!r}.")
    admin = found.get("admin", False)
    if not isinstance(admin, bool):
        raise refuse("claims", f"The member admin of the claim {CLAIM} must be true or false.")
    return _filters(found, "publish"), _filters(found, "subscribe"), admin


def _filters(found: Mapping[str, object], name: str) -> tuple[str, ...]:
    filters = found.get(name, [])
    if not isinstance(filters, list) or len(filters) > FILTERS_MAX:
        raise refuse(
            "claims",
            f"The member {name} of the claim {CLAIM} must be an array of at most {FILTERS_MAX} "
            "filters.",
        )
    for each in filters:
        if not isinstance(each, str) or not is_filter(each):
            raise refuse("claims", f"The member {name} of the claim {CLAIM} has what is no filter.")
    return tuple(filters)
