"""Tokens for tests: right ones, and wrong ones that no library would make."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import warnings
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any, Final

from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import serialize_compact

SECRET: Final = b"0123456789abcdef0123456789abcdef"
RSA: Final = RSAKey.generate_key(2048)
EC: Final = ECKey.import_key(
    {
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
    }
)  # RFC 7515 A.3
OKP: Final = OKPKey.import_key(
    {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    }
)  # RFC 8037 A.1


def part(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**changed: Any) -> dict[str, Any]:
    """Of a token that is valid for an hour; None leaves one out."""
    now = int(time.time())
    found = {"sub": "ann", "iat": now - 10, "exp": now + 3600} | changed
    return {name: value for name, value in found.items() if value is not None}


def hs256(payload: object, secret: bytes = SECRET, **header: object) -> str:
    """Signed by the secret, whatever it says."""
    head = json.dumps({"alg": "HS256", **header}).encode()
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = f"{part(head)}.{part(text)}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def unsigned(payload: object) -> str:
    """``alg: none`` (RFC 7515 section 3.1)."""
    header = part(b'{"alg":"none"}')
    return f"{header}.{part(json.dumps(payload).encode())}."


def signed(algorithm: str, payload: object, key: RSAKey | ECKey | OKPKey, **header: object) -> str:
    head = {"alg": algorithm, **header}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of the name EdDSA
        return serialize_compact(head, json.dumps(payload).encode(), key, [algorithm])


def grants(
    publish: tuple[str, ...] = (), subscribe: tuple[str, ...] = (), *, admin: bool = False
) -> dict[str, Any]:
    return {"publish": list(publish), "subscribe": list(subscribe), "admin": admin}


def token(
    publish: tuple[str, ...] = (),
    subscribe: tuple[str, ...] = (),
    *,
    admin: bool = False,
    **changed: Any,
) -> str:
    """A valid one with these grants."""
    return hs256(claims(repl_broker=grants(publish, subscribe, admin=admin), **changed))


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def jwks(file: Path, **kids: RSAKey | ECKey | OKPKey) -> Path:
    """Write the public halves of keys to a file."""
    keys = [key.as_dict(private=False) | {"kid": kid} for kid, key in kids.items()]
    file.write_text(json.dumps({"keys": keys}))
    return file
