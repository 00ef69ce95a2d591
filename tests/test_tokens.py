"""Verifying tokens: what is taken, and how each other one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import RSAKey

from repl_broker.config import AuthConfig
from repl_broker.errors import ConfigError, RequestError
from repl_broker.tokens import Claims, Verifier, create
from tests.signing import EC, OKP, RSA, SECRET, hs256, jwks, part, signed, unsigned

NOW: Final = 1_800_000_000.0
DAY: Final = 86_400
GOOD: Final[dict[str, Any]] = {"sub": "ann", "iat": NOW - 10, "exp": NOW + 3600}
OTHER_RSA: Final = RSAKey.generate_key(2048)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    return file


@pytest.fixture
def verifier(secret_file: Path) -> Verifier:
    return Verifier(AuthConfig(mode="jwt", secret_file=secret_file))


def reason(verifier: Verifier, token: str) -> str:
    with pytest.raises(RequestError) as caught:
        verifier.verify(token, NOW)
    assert caught.value.code == "unauthenticated"
    assert not any(p and p in caught.value.detail for p in token.split(".") if len(p) > 8)
    return str(caught.value.extra["reason"])


def test_a_token_says_who_asks_and_what_that_one_may_do(verifier: Verifier) -> None:
    grants = {"publish": ["a.>"], "subscribe": ["b", "c.*"], "admin": True}
    found = verifier.verify(hs256(GOOD | {"repl_broker": grants}), NOW)
    assert found == Claims("ann", NOW - 10, NOW + 3600, ("a.>",), ("b", "c.*"), True)
    assert verifier.verify(hs256({"exp": NOW + 1}), NOW) == Claims(
        None, None, NOW + 1, (), (), False
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 0.5}, "expired"),
        ({"nbf": NOW + 1}, "not_yet_valid"),
        ({"exp": None}, "claims"),
        ({"exp": "soon"}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": 10**400}, "claims"),
        ({"exp": -1}, "claims"),
        ({"exp": float("inf")}, "claims"),
        ({"nbf": "x"}, "claims"),
        ({"iat": []}, "claims"),
        ({"iat": NOW - 20 * DAY, "exp": NOW + 11 * DAY}, "claims"),
        ({"iat": None, "exp": NOW + 31 * DAY}, "claims"),
        ({"sub": ""}, "claims"),
        ({"sub": 1}, "claims"),
        ({"sub": "x" * 256}, "claims"),
        ({"aud": "x"}, "audience"),
        ({"aud": ["x", "y"]}, "audience"),
        ({"aud": 1}, "audience"),
        ({"repl_broker": []}, "claims"),
        ({"repl_broker": {"publsh": []}}, "claims"),
        ({"repl_broker": {"publish": "a"}}, "claims"),
        ({"repl_broker": {"publish": ["a..b"]}}, "claims"),
        ({"repl_broker": {"subscribe": [1]}}, "claims"),
        ({"repl_broker": {"subscribe": ["a"] * 129}}, "claims"),
        ({"repl_broker": {"admin": "yes"}}, "claims"),
        ({"repl_broker": {"admin": 1}}, "claims"),
    ],
)
def test_what_is_wrong_with_the_claims_is_told(
    verifier: Verifier, changed: dict[str, Any], why: str
) -> None:
    payload = {k: v for k, v in (GOOD | changed).items() if v is not None}
    assert reason(verifier, hs256(payload)) == why


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "malformed"),
        ("a.b", "malformed"),
        ("a.b.c", "malformed"),
        ("a.b.c.d.e", "malformed"),
        (hs256(GOOD) + "\n", "malformed"),
        (hs256(GOOD) + "=", "malformed"),
        ("x" * 9000, "malformed"),
        (hs256([1]), "malformed"),
        (hs256(b"{"), "malformed"),
        (hs256(b"[" * 3000), "malformed"),
        (hs256(GOOD, crit=["exp"]), "malformed"),
        (hs256(GOOD, b64=False), "malformed"),
        (unsigned(GOOD), "algorithm"),
        (hs256(GOOD, alg="none"), "algorithm"),
        (hs256(GOOD, alg="None"), "algorithm"),
        (hs256(GOOD, alg=["HS256"]), "algorithm"),
        (hs256(GOOD, alg="HS512"), "algorithm"),
        (signed("RS256", GOOD, RSA), "algorithm"),
        (hs256(GOOD, b"x" * 32), "signature"),
        (hs256(GOOD, b""), "signature"),
        (hs256(GOOD)[:-2], "signature"),
        (hs256(GOOD).rpartition(".")[0] + ".", "signature"),
    ],
)
def test_what_is_no_token_of_ours_is_refused(verifier: Verifier, token: str, why: str) -> None:
    assert reason(verifier, token) == why


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200))
def test_nothing_that_is_made_up_passes_or_fails_otherwise(text: str) -> None:
    verifier = Verifier(AuthConfig(mode="none"))
    for token in (text, f"{part(text.encode())}.{part(text.encode())}.{part(text.encode())}"):
        with pytest.raises(RequestError, match="token"):
            verifier.verify(token, NOW)


@pytest.mark.parametrize("aud", ["us", ["them", "us"]])
def test_audience_and_issuer_are_asked_for_where_they_are_configured(
    secret_file: Path, aud: object
) -> None:
    auth = AuthConfig(mode="jwt", secret_file=secret_file, audience="us", issuer="here")
    verifier = Verifier(auth)
    right = GOOD | {"aud": aud, "iss": "here"}
    assert verifier.verify(hs256(right), NOW).subject == "ann"
    assert reason(verifier, hs256(right | {"aud": "them"})) == "audience"
    assert reason(verifier, hs256(GOOD | {"iss": "here"})) == "audience"
    assert reason(verifier, hs256(right | {"iss": "there"})) == "issuer"
    assert reason(verifier, hs256(right | {"iss": ["here"]})) == "issuer"
    assert reason(verifier, hs256(GOOD | {"aud": aud})) == "issuer"


def test_leeway_forgives_clocks_that_differ(secret_file: Path) -> None:
    verifier = Verifier(AuthConfig(mode="jwt", secret_file=secret_file, leeway_seconds=5))
    assert verifier.verify(hs256(GOOD | {"exp": NOW - 4}), NOW)
    assert verifier.verify(hs256(GOOD | {"nbf": NOW + 5}), NOW)
    assert reason(verifier, hs256(GOOD | {"exp": NOW - 5})) == "expired"
    assert reason(verifier, hs256(GOOD | {"nbf": NOW + 6})) == "not_yet_valid"


# --- public keys ------------------------------------------------------------------------


def test_each_algorithm_is_checked_by_a_key_that_is_for_it(tmp_path: Path) -> None:
    file = jwks(tmp_path / "jwks", r=RSA, e=EC, o=OKP)
    verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file))
    for algorithm, kid, key in (("RS256", "r", RSA), ("ES256", "e", EC), ("EdDSA", "o", OKP)):
        assert verifier.verify(signed(algorithm, GOOD, key, kid=kid), NOW).subject == "ann"
        assert verifier.verify(signed(algorithm, GOOD, key), NOW).subject == "ann"
        changed = signed(algorithm, GOOD, key, kid=kid).split(".")
        changed[1] = part(json.dumps(GOOD | {"sub": "eve"}).encode())
        assert reason(verifier, ".".join(changed)) == "signature"
        assert reason(verifier, signed(algorithm, GOOD, key, kid="x")) == "signature"
    assert reason(verifier, signed("RS256", GOOD, OTHER_RSA, kid="r")) == "signature"
    assert reason(verifier, signed("RS256", GOOD, RSA, kid="e")) == "signature"
    assert reason(verifier, hs256(GOOD)) == "algorithm"


def test_a_public_key_is_never_taken_for_a_secret(tmp_path: Path, secret_file: Path) -> None:
    """RFC 8725 section 2.1: what everyone knows must not sign."""
    file = jwks(tmp_path / "jwks", r=RSA)
    verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file, secret_file=secret_file))
    for public in (RSA.as_pem(private=False), json.dumps(RSA.as_dict(private=False)).encode()):
        assert reason(verifier, hs256(GOOD, public, kid="r")) == "signature"
    assert verifier.verify(hs256(GOOD), NOW)


def test_of_several_keys_a_token_must_name_one(tmp_path: Path) -> None:
    file = jwks(tmp_path / "jwks", one=RSA, two=OTHER_RSA)
    verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file))
    assert verifier.verify(signed("RS256", GOOD, OTHER_RSA, kid="two"), NOW)
    assert reason(verifier, signed("RS256", GOOD, RSA)) == "signature"


def test_the_list_of_algorithms_is_all_that_is_taken(tmp_path: Path, secret_file: Path) -> None:
    file = jwks(tmp_path / "jwks", r=RSA, e=EC)
    verifier = Verifier(
        AuthConfig(mode="jwt", jwks_file=file, secret_file=secret_file, algorithms=("ES256",))
    )
    assert verifier.verify(signed("ES256", GOOD, EC), NOW)
    assert reason(verifier, signed("RS256", GOOD, RSA)) == "algorithm"
    assert reason(verifier, hs256(GOOD)) == "algorithm"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 5000, "is not JSON"),
        ("[]", "is no JSON Web Key Set"),
        ('{"keys":[1]}', "is no JSON Web Key Set"),
        ('{"keys":[]}', "has no key for RS256, ES256, EdDSA"),
        ('{"keys":[{"kty":"EC","crv":"P-384"}]}', "has no key for"),
        ('{"keys":[{"kty":"oct","k":"AA"}]}', "a secret belongs in auth.secret_file"),
        ('{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}', "cannot be read"),
        ('{"keys":[{"kty":"EC","crv":"P-256"}]}', "cannot be read"),
        ('{"keys":[{"kty":"RSA","n":5,"e":"AQAB"}]}', "cannot be read"),
        ('{"keys":[{"kty":"RSA","n":"' + "x" * 171 + '","e":"AQAB"}]}', "wanted 2048"),
        (json.dumps({"keys": [{}] * 65}), "has 65 keys; the limit is 64"),
        (json.dumps({"keys": [EC.as_dict(private=False) | {"use": "enc"}]}), "has no key for"),
        (json.dumps({"keys": [EC.as_dict(private=False) | {"kid": "a"}] * 2}), "same kid"),
    ],
)
def test_keys_that_cannot_be_used_are_told(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Verifier(AuthConfig(mode="jwt", jwks_file=file))


@pytest.mark.parametrize("data", [b"", b"x" * 31, b"x" * 31 + b"\n\r\n"])
def test_a_secret_of_less_than_32_bytes_is_refused(secret_file: Path, data: bytes) -> None:
    secret_file.write_bytes(data)
    with pytest.raises(ConfigError, match="wanted at least 32"):
        Verifier(AuthConfig(mode="jwt", secret_file=secret_file))


def test_what_is_made_here_is_taken_here(verifier: Verifier) -> None:
    made = create(SECRET, now=NOW + 0.7, seconds=60, publish=["a"], subscribe=[">"], subject="ann")
    assert verifier.verify(made, NOW) == Claims("ann", NOW, NOW + 60, ("a",), (">",), False)
