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
import math
import re
import unicodedata
import warnings
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from repl_broker.config import SECRET_ALGORITHMS, TOKEN_SECRET_BYTES_MIN, AuthConfig
from repl_broker.errors import ConfigError, RequestError
from repl_broker.jwks import KeyEntry, KeySet, library_errors, read_file, read_keys
from repl_broker.message import FILTERS_MAX, is_filter
from repl_broker.secret_lines import PLACES, check_mark, secrets_in

if TYPE_CHECKING:
    from joserfc.jwk import OctKey
    from joserfc.jws import JWSRegistry

__all__ = [
    "CLAIM",
    "REASONS",
    "SUBJECT",
    "Claims",
    "Verifier",
    "create",
    "is_subject",
    "read_secrets",
    "refuse",
]

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
KEYS_TRIED_MAX: Final = 8  # for a token that names none, or one that several have
DATE_MAX: Final = 2**53  # of a NumericDate, in seconds
SHOWN_MAX: Final = 64  # characters of what a token says, in an error …
LISTED_MAX: Final = 4  # … and audiences
# By which a token may be dated ahead and still be newer than a revocation: issuers round iat up to
# the next second, and clocks are never quite the same.
AHEAD_SECONDS: Final = 2

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")


class Claims(NamedTuple):
    """What a valid token says. Times are seconds since 1970."""

    subject: str | None
    issued_at: float | None  # or when it may have been, if its clock is ahead of this node's
    expires_at: float
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    admin: bool


def refuse(reason: str, detail: str) -> RequestError:
    """The error of a token that is not taken; ``reason`` is for programs."""
    assert reason in REASONS, "a reason is one that is described"
    return RequestError("unauthenticated", detail, reason=reason)


class Verifier:
    """The keys of a node, and what it asks of a token.

    Raises ConfigError for files that cannot be read, and where there is no key for what
    the configuration asks for.

    ``old`` is the one in force on a node that serves. A file that cannot be read, because
    it is just being written, leaves the keys from it in force (``problems`` says so). A set
    that can be read is taken as it is, so that what was withdrawn is gone, even if no key
    is left. ``notes`` tell of keys that are not used.
    """

    def __init__(self, auth: AuthConfig, old: Verifier | None = None) -> None:
        self._auth = auth
        self._files = [file for file in (auth.secret_file, auth.jwks_file) if file is not None]
        self.signature = self.stamp()
        self.problems: dict[Path, str] = {}
        self._sets: dict[Path, KeySet] = {}
        for file, read in ((auth.secret_file, _secret_set), (auth.jwks_file, read_keys)):
            if file is not None:
                self._sets[file] = self._read_set(file, read, old)
        self._keys = [key for found in self._sets.values() for key in found.keys]
        allowed = auth.algorithms or tuple(dict.fromkeys(key.algorithm for key in self._keys))
        self._keys = [key for key in self._keys if key.algorithm in allowed]
        self._allowed = frozenset(allowed)
        self._registries: dict[str, JWSRegistry] = {}
        self.notes = (*self._told(), *self._missing(old))

    def _read_set(self, file: Path, read: Callable[[Path], KeySet], old: Verifier | None) -> KeySet:
        before = None if old is None else old._sets.get(file)
        try:
            found = read(file)
        except ConfigError as error:
            if before is None:
                raise
            self.problems[file] = str(error)
            return before
        if not found.keys and before is None:
            why = "".join(f"; {note}" for note in found.notes)
            raise ConfigError(
                f"auth.jwks_file: {file} has no key for RS256, ES256, EdDSA that can be used{why}"
            )
        return found

    def _told(self) -> list[str]:
        """What is to be said of the files as they are."""
        told = [f"{file}: {note}" for file, found in self._sets.items() for note in found.notes]
        empty = [file for file, found in self._sets.items() if not found.keys]
        return told + [
            f"{file} has no key any more: no token by its keys is taken" for file in empty
        ]

    def _missing(self, old: Verifier | None) -> list[str]:
        """What there is no key for. Raises ConfigError where it is newly asked for."""
        there = {key.algorithm for key in self._keys}
        missing = [
            f"[auth] algorithms has {algorithm}, and no key of {self._auth.jwks_file} is for it"
            for algorithm in self._auth.algorithms
            if algorithm not in there
        ]
        if missing and (old is None or old._auth.algorithms != self._auth.algorithms):
            raise ConfigError(missing[0])
        return missing

    def __repr__(self) -> str:
        """Without the keys."""
        return f"<Verifier of {', '.join(map(str, self._files)) or 'nothing'}>"

    @property
    def secret_count(self) -> int:
        return sum(entry.algorithm in SECRET_ALGORITHMS for entry in self._keys)

    @property
    def secret_prints(self) -> frozenset[str]:
        """By which secrets can be told from others; none can be made of them."""
        entries = (entry for entry in self._keys if entry.algorithm in SECRET_ALGORITHMS)
        return frozenset(entry.key.thumbprint() for entry in entries)

    @property
    def key_count(self) -> int:
        """Of public keys."""
        return len(self._keys) - self.secret_count

    @property
    def fingerprints(self) -> Mapping[Path, frozenset[tuple[str, str | None, str]]]:
        """By which keys can be told from others, file by file; none can be made of them."""
        return {
            file: frozenset((e.algorithm, e.kid, e.key.thumbprint()) for e in found.keys)
            for file, found in self._sets.items()
        }

    def stamp(self) -> tuple[object, ...]:
        """Tells whether the files have changed: compare it with ``signature``."""
        found: list[object] = []
        for file in self._files:
            try:
                about = file.stat()
            except OSError:
                found.append(None)
            else:
                # The last tells of a file that may be read only now.
                found.append((about.st_mtime_ns, about.st_size, about.st_ino, about.st_ctime_ns))
        return tuple(found)

    def verify(self, token: str, now: float) -> Claims:
        """What the token claims, if it is valid at ``now``. Raises ``unauthenticated``."""
        parts = _COMPACT.fullmatch(token) if len(token) <= TOKEN_BYTES_MAX else None
        if parts is None:
            raise refuse(
                "malformed",
                "The token is not a JSON Web Token in the compact form (RFC 7519), of at most "
                f"{TOKEN_BYTES_MAX} bytes.",
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
        from joserfc.errors import SecurityWarning

        fitting = [key for key in self._keys if key.algorithm == algorithm]
        if isinstance(kid, str) and algorithm not in SECRET_ALGORITHMS:
            named = [key for key in fitting if key.kid == kid]
            fitting = named or [key for key in fitting if key.kid is None]
            if not fitting:
                raise refuse("signature", "None of the node's keys has the token's key id.")
        with warnings.catch_warnings():
            # RFC 9864 would have EdDSA called Ed25519; issuers do not, yet.
            warnings.simplefilter("ignore", SecurityWarning)
            for key in fitting[:KEYS_TRIED_MAX]:
                try:
                    jws.deserialize_compact(token, key.key, registry=self._registry(algorithm))
                except library_errors():
                    continue
                return
        if len(fitting) > KEYS_TRIED_MAX:
            raise refuse(
                "signature",
                f"The token's signature is not by the first {KEYS_TRIED_MAX} of the "
                f"{len(fitting)} keys that may fit; have the issuer name its key (kid).",
            )
        raise refuse("signature", "The token's signature is not valid.")

    def _registry(self, algorithm: str) -> JWSRegistry:
        """The library's rules: header parameters that it does not know are ignored, as RFC 7515
        section 4 has it; crit, which would forbid that, was looked at before."""
        from joserfc.jws import JWSRegistry

        found = self._registries.get(algorithm)
        if found is None:
            found = JWSRegistry(algorithms=[algorithm], strict_check_header=False)
            found.max_header_length = TOKEN_BYTES_MAX
            self._registries[algorithm] = found
        return found

    def _read(self, payload: Mapping[str, Any], now: float) -> Claims:
        auth, leeway = self._auth, self._auth.leeway_seconds
        expires_at, not_before, issued_at = (_date(payload, name) for name in ("exp", "nbf", "iat"))
        if expires_at is None:
            raise refuse("claims", "The token has no exp; one that never expires is not taken.")
        if now >= expires_at + leeway:
            raise refuse("expired", "The token has expired; get a new one.")
        if not_before is not None and now < not_before - leeway:
            early = math.ceil(not_before - now)
            raise refuse(
                "not_yet_valid",
                f"The token is not valid for another {early} seconds (nbf), and [auth] "
                f"leeway_seconds is {leeway}: wait, or set the issuer's clock, or this node's.",
            )
        if issued_at is not None and now < issued_at - leeway:
            raise refuse(
                "not_yet_valid",
                f"The token was issued {math.ceil(issued_at - now)} seconds in the future (iat), "
                f"and [auth] leeway_seconds is {leeway}: set the issuer's clock, or this node's.",
            )
        if expires_at - (now if issued_at is None else issued_at) > auth.token_seconds_max:
            raise refuse(
                "claims",
                f"The token lives longer than {auth.token_seconds_max} seconds "
                "([auth] token_seconds_max).",
            )
        self._check_audience(payload)
        self._check_issuer(payload)
        if not isinstance(payload.get("jti", ""), str):
            raise refuse("claims", "The claim jti must be a string.")
        subject = payload.get("sub")
        if "sub" in payload and not is_subject(subject):
            raise refuse("claims", f"The claim sub must be {SUBJECT}, so that it can be revoked.")
        issued_at = _issued(issued_at, now, leeway)
        return Claims(subject, issued_at, expires_at, *_grants(payload.get(CLAIM, {})))

    def _check_audience(self, payload: Mapping[str, Any]) -> None:
        audience = payload.get("aud", [])
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
            raise refuse("audience", "The claim aud must be a string, or an array of strings.")
        # RFC 7519 section 4.1.3: who does not find itself there must refuse.
        if (named or self._auth.audience is not None) and self._auth.audience not in named:
            said = f"is for {_listed(named)}" if named else "names no audience"
            wanted = self._auth.audience
            raise refuse(
                "audience",
                f"The token {said} (aud), and [auth] audience is not set."
                if wanted is None
                else f"The token {said} (aud), and not for {wanted!r} ([auth] audience).",
            )

    def _check_issuer(self, payload: Mapping[str, Any]) -> None:
        issuer = payload.get("iss", "")
        if not isinstance(issuer, str):
            raise refuse("issuer", "The claim iss must be a string.")
        if self._auth.issuer is not None and issuer != self._auth.issuer:
            said = f"is of the issuer {_shown(issuer)}" if issuer else "names no issuer"
            raise refuse(
                "issuer", f"The token {said} (iss), and not {self._auth.issuer!r} ([auth] issuer)."
            )


# What is_subject takes.
SUBJECT: Final = (
    f"1 to {SUBJECT_CHARACTERS_MAX} characters, all of them printable and in Unicode's composed "
    'form (NFC), and not "." or ".."'
)


def is_subject(found: object) -> bool:
    """Whether it can be a token's ``sub``: exactly those can be revoked.

    What cannot be seen, or is written in two ways, would be revoked under another name than
    the token has: line breaks, other spaces than U+0020, characters without width, and what is
    not NFC. U+FFFD is what becomes of bytes in a path that are not UTF-8. "." and ".." never
    arrive as the last part of a path.
    """
    return (
        isinstance(found, str)
        and 1 <= len(found) <= SUBJECT_CHARACTERS_MAX
        and found.isprintable()
        and "\ufffd" not in found
        and found not in (".", "..")
        and unicodedata.is_normalized("NFC", found)
    )


def _issued(said: float | None, now: float, leeway: float) -> float | None:
    """When a token was issued, as far as revocations are concerned.

    One that is dated further ahead than rounding explains is by a clock that is ahead, by the
    leeway at most; it may have been issued that much earlier.
    """
    return said - leeway if said is not None and said > now + AHEAD_SECONDS else said


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


def read_secrets(file: Path) -> tuple[bytes, ...]:
    """By which tokens are signed, the one to sign by first. Raises ConfigError."""
    where = f"auth.secret_file: {file}"
    data = read_file(file, "auth.secret_file")
    check_mark(data, where)
    whole = data.rstrip(b"\r\n")
    if len(whole) >= TOKEN_SECRET_BYTES_MIN:
        _secret_key(whole, where)  # a key of many lines is refused as what it is
    secrets = secrets_in(data, where)
    for place, secret in zip(PLACES, secrets, strict=False):
        if len(secret) < TOKEN_SECRET_BYTES_MIN:
            which = f"{place} secret" if len(secrets) > 1 else "secret"
            raise ConfigError(
                f"auth.secret_file: the {which} in {file} has {len(secret)} bytes; wanted at least "
                f"{TOKEN_SECRET_BYTES_MIN}, for instance from openssl rand -hex 32"
            )
    return secrets


def _secret_set(file: Path) -> KeySet:
    where = f"auth.secret_file: {file}"
    keys = (_secret_key(secret, where) for secret in read_secrets(file))
    return KeySet(tuple(KeyEntry("HS256", None, key) for key in keys), ())


def _secret_key(secret: bytes, where: str = "the secret") -> OctKey:
    """Raises ConfigError for what no secret is: a key or a certificate that others may know."""
    from joserfc.errors import SecurityWarning
    from joserfc.jwk import OctKey

    errors: tuple[type[Exception], ...] = (*library_errors(), SecurityWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SecurityWarning)
            return OctKey.import_key(secret)
    except errors:
        raise ConfigError(
            f"{where} holds a key or a certificate, and no secret for HS256; a public key belongs "
            "in auth.jwks_file"
        ) from None


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _object(part: str) -> dict[str, Any] | None:
    """The JSON object that is a part of a token; None if it is not one."""
    try:
        found = json.loads(_decoded(part).decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _date(payload: Mapping[str, Any], name: str) -> float | None:
    if name not in payload:
        return None
    found = payload[name]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise refuse("claims", f"The claim {name} must be a number of seconds since 1970.")
    if not 0 <= found <= DATE_MAX:  # which NaN is not, either
        raise refuse("claims", f"The claim {name} must be 0 to {DATE_MAX} (seconds since 1970).")
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


def _shown(text: str) -> str:
    """What a token says, short enough for an error; what cannot be seen is escaped."""
    return ascii(text) if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]!a}…"


def _listed(values: Sequence[str]) -> str:
    more = len(values) - LISTED_MAX
    return ", ".join(map(_shown, values[:LISTED_MAX])) + (f" and {more} more" if more > 0 else "")


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
            shown = _shown(each) if isinstance(each, str) else "something that is not a string"
            raise refuse(
                "claims",
                f"The member {name} of the claim {CLAIM} has {shown}, where a filter is wanted.",
            )
    return tuple(filters)
