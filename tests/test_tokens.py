"""Verifying tokens: what is taken, and how each other one is refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import cryptography.exceptions
import joserfc.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey, RSAKey

from repl_broker.config import AuthConfig
from repl_broker.errors import ConfigError, RequestError
from repl_broker.jwks import library_errors
from repl_broker.tokens import (
    AHEAD_SECONDS,
    REASONS,
    Claims,
    Verifier,
    create,
    is_subject,
    read_secrets,
)
from tests.signing import EC, OKP, RSA, SECRET, hs256, jwks, part, signed, unsigned

NOW: Final = 1_800_000_000.0
DAY: Final = 86_400
GOOD: Final[dict[str, Any]] = {"sub": "ann", "iat": NOW - 10, "exp": NOW + 3600}
OTHER_RSA: Final = RSAKey.generate_key(2048)
OTHER_EC: Final = ECKey.generate_key("P-256")
_FILE: Final = tempfile.NamedTemporaryFile()  # noqa: SIM115  # as long as the tests are
_FILE.write(SECRET)
_FILE.flush()
A_SECRET: Final = Path(_FILE.name)
NEXT: Final = b"fedcba9876543210fedcba9876543210"
A_VERIFIER: Final = Verifier(AuthConfig(mode="jwt", secret_file=A_SECRET))


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
        ({"exp": NOW - 10}, "expired"),
        ({"exp": NOW - 10.5}, "expired"),
        ({"nbf": NOW + 11}, "not_yet_valid"),
        ({"iat": NOW + 11}, "not_yet_valid"),
        ({"iat": NOW + 20 * DAY, "exp": NOW + 40 * DAY}, "not_yet_valid"),
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
        ({"jti": 1}, "claims"),
        ({"iss": 1}, "issuer"),
        ({"iss": ["x"]}, "issuer"),
        ({"aud": "x"}, "audience"),
        ({"aud": ["x", "y"]}, "audience"),
        ({"aud": 1}, "audience"),
        ({"aud": {}}, "audience"),
        ({"aud": False}, "audience"),
        ({"aud": [None]}, "audience"),
        ({"aud": [[]]}, "audience"),
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
    ("claims", "words"),
    [
        ({"aud": "x"}, "The token is for 'x' (aud), and not for 'us' ([auth] audience)."),
        ({"aud": [*"abcdef"]}, "is for 'a', 'b', 'c', 'd' and 2 more (aud)"),
        ({"aud": "y" * 500}, "'" + "y" * 64 + "'… (aud)"),
        ({"aud": "\u202e"}, "is for '\\u202e' (aud)"),
        ({"aud": []}, "names no audience (aud), and not for 'us'"),
        ({"iss": "x"}, "is of the issuer 'x' (iss), and not 'here' ([auth] issuer)"),
        ({"iss": ""}, "names no issuer (iss)"),
        ({"nbf": NOW + 70.5}, "not valid for another 71 seconds (nbf), and [auth] leeway_seconds"),
        ({"iat": NOW + 70}, "issued 70 seconds in the future (iat), and [auth] leeway_seconds is"),
        ({"exp": 2.0**60}, "exp must be 0 to 9007199254740992 (seconds since 1970)"),
        ({"repl_broker": {"publish": ["a..b"]}}, "publish of the claim repl_broker has 'a..b',"),
        ({"repl_broker": {"publish": ["a", [1]]}}, "has something that is not a string, where"),
    ],
)
def test_a_refusal_says_what_the_token_has_and_what_is_wanted(
    secret_file: Path, claims: dict[str, object], words: str
) -> None:
    verifier = Verifier(AuthConfig("jwt", secret_file, audience="us", issuer="here"))
    with pytest.raises(RequestError) as refused:
        verifier.verify(hs256(GOOD | {"aud": "us", "iss": "here"} | claims), NOW)
    assert words in refused.value.detail


@pytest.mark.parametrize("name", ["exp", "nbf", "iat", "sub", "jti", "iss", "aud", "repl_broker"])
def test_a_claim_that_is_null_is_of_the_wrong_type(verifier: Verifier, name: str) -> None:
    assert reason(verifier, hs256(GOOD | {name: None})) in ("claims", "issuer", "audience")


def test_what_is_not_utf_8_is_malformed(verifier: Verifier) -> None:
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        assert reason(verifier, hs256(json.dumps(GOOD).encode(encoding))) == "malformed"


def test_header_parameters_that_are_not_known_are_ignored(verifier: Verifier) -> None:
    """RFC 7515 section 4; some issuers put a nonce or a certificate there."""
    assert verifier.verify(hs256(GOOD, nonce="x", x5c=["A" * 2000], kid="k" * 300), NOW)


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
    assert verifier.verify(hs256(GOOD | {"nbf": NOW + 5, "iat": NOW + 5}), NOW)
    assert reason(verifier, hs256(GOOD | {"iat": NOW + 6})) == "not_yet_valid"
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


def test_a_token_without_a_key_id_is_checked_by_each_key_that_fits(tmp_path: Path) -> None:
    file = jwks(tmp_path / "jwks", one=RSA, two=OTHER_RSA, e=EC)
    verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file))
    for key in (RSA, OTHER_RSA):
        assert verifier.verify(signed("RS256", GOOD, key), NOW)
    assert reason(verifier, signed("RS256", GOOD, RSAKey.generate_key(2048))) == "signature"
    assert reason(verifier, signed("RS256", GOOD, OTHER_RSA, kid="one")) == "signature"


def test_a_key_without_an_id_serves_tokens_that_name_no_other(tmp_path: Path) -> None:
    file = tmp_path / "jwks"
    nameless = OTHER_RSA.as_dict(private=False)
    assert "kid" not in nameless
    file.write_text(json.dumps({"keys": [RSA.as_dict(private=False) | {"kid": "a"}, nameless]}))
    verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file))
    assert verifier.verify(signed("RS256", GOOD, OTHER_RSA, kid="b"), NOW)
    assert reason(verifier, signed("RS256", GOOD, OTHER_RSA, kid="a")) == "signature"


def test_only_so_many_keys_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each token that anyone makes up would cost as many checks as there are keys."""
    keys = [ECKey.generate_key("P-256") for _ in range(10)]
    file = jwks(tmp_path / "jwks", **{f"k{number}": key for number, key in enumerate(keys)})
    verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file))
    tried: list[object] = []

    def counted(token: str, key: object, **rules: Any) -> Any:
        tried.append(key)
        raise BadSignatureError

    assert verifier.verify(signed("ES256", GOOD, keys[7]), NOW)
    assert verifier.verify(signed("ES256", GOOD, keys[8], kid="k8"), NOW)
    monkeypatch.setattr("joserfc.jws.deserialize_compact", counted)
    with pytest.raises(RequestError, match="first 8 of the 10 keys"):
        verifier.verify(signed("ES256", GOOD, keys[8]), NOW)
    assert len(tried) == 8


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
        ("[]", "is not a JSON Web Key Set"),
        ('{"keys":{}}', "is not a JSON Web Key Set"),
        ('{"keys":[]}', "has no key for RS256, ES256, EdDSA"),
        ('{"keys":[1]}', "has no key for .* it is no JSON object"),
        (json.dumps({"keys": [{}] * 65}), "has 65 keys; the limit is 64"),
    ],
)
def test_a_file_without_a_key_that_can_be_used_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        Verifier(AuthConfig(mode="jwt", jwks_file=file))


PUBLIC: Final = EC.as_dict(private=False)
UNUSABLE: Final[dict[str, tuple[object, str]]] = {
    "no object": (1, "no JSON object"),
    "null": (None, "no JSON object"),
    "empty": ({}, "kty missing"),
    "kty of another type": ({"kty": 5}, "kty no string"),
    "kty that is not known": ({"kty": "AKP", "alg": "ML-DSA-44"}, "kty 'AKP' is not of RS256"),
    "crv that is not known": ({"kty": "EC", "crv": "P-384"}, "crv 'P-384' is not of RS256"),
    "crv for key exchange": ({"kty": "OKP", "crv": "X25519", "x": "AA"}, "crv 'X25519'"),
    "a secret": ({"kty": "oct", "k": "AA"}, "a secret belongs in auth.secret_file"),
    "no point of the curve": (PUBLIC | {"x": "AA", "y": "AA"}, "cannot be read"),
    "a point too long": (PUBLIC | {"x": "A" * 4000}, "cannot be read"),
    "no x": ({"kty": "EC", "crv": "P-256"}, "cannot be read"),
    "no n": ({"kty": "RSA", "e": "AQAB"}, "cannot be read"),
    "no e": ({"kty": "RSA", "n": RSA.as_dict(private=False)["n"]}, "cannot be read"),
    "e of 1": (RSA.as_dict(private=False) | {"e": "AQ"}, "cannot be read"),
    "n of another type": ({"kty": "RSA", "n": 5, "e": "AQAB"}, "cannot be read"),
    "n that is empty": ({"kty": "RSA", "n": "", "e": "AQAB"}, "cannot be read"),
    "no base64": ({"kty": "RSA", "n": "%" * 400, "e": "AQAB"}, "cannot be read"),
    "base64 with padding": ({"kty": "OKP", "crv": "Ed25519", "x": "A" * 43 + "="}, "be read"),
    "no ASCII": ({"kty": "OKP", "crv": "Ed25519", "x": "é" * 43}, "cannot be read"),
    "a surrogate": ({"kty": "OKP", "crv": "Ed25519", "x": "\ud800"}, "cannot be read"),
    "1,024 bits": ({"kty": "RSA", "n": "x" * 171 + "A", "e": "AQAB"}, "wanted 2048"),
    "more bits than pay": ({"kty": "RSA", "n": "x" * 2000, "e": "AQAB"}, "wanted 2048 to 6144"),
    "for encryption": (PUBLIC | {"use": "enc"}, "its use is 'enc'"),
    "use of another type": (PUBLIC | {"use": ["sig"]}, "its use is no string"),
    "alg of another": (PUBLIC | {"alg": "ES384"}, "its alg is 'ES384'"),
    "alg of another type": (PUBLIC | {"alg": {}}, "its alg is no string"),
    "key_ops of another": (PUBLIC | {"key_ops": ["wrapKey"]}, "no verify"),
    "key_ops of another type": (PUBLIC | {"key_ops": [[], 1]}, "no verify"),
    "kid of another type": (PUBLIC | {"kid": 7}, "its kid is no string"),
    "deep": ({"kty": "EC", "crv": json.loads("[" * 400 + "]" * 400)}, "crv no string"),
    "a copy": (OKP.as_dict(private=False) | {"kid": "good"}, "it is key 1"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_key_that_cannot_be_used_is_passed_over_and_told(tmp_path: Path, name: str) -> None:
    """RFC 7517 section 5; or one bad key would keep the others of a set from being used."""
    bad, words = UNUSABLE[name]
    keys = [OKP.as_dict(private=False) | {"kid": "good"}, bad]
    file = tmp_path / "jwks.json"
    for order in (keys, keys[::-1]):
        file.write_text(json.dumps({"keys": order}))
        verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file))
        assert verifier.verify(signed("EdDSA", GOOD, OKP, kid="good"), NOW)
        assert verifier.verify(signed("EdDSA", GOOD, OKP), NOW)
        [note] = verifier.notes
        assert words in note
        assert len(note) < 300


def test_two_keys_with_one_id_are_both_tried(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    two = [key.as_dict(private=False) | {"kid": "a"} for key in (RSA, OTHER_RSA)]
    file.write_text(json.dumps({"keys": two}))
    verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file))
    for key in (RSA, OTHER_RSA):
        assert verifier.verify(signed("RS256", GOOD, key, kid="a"), NOW)
    assert "key 2 (kid 'a') has the kid of key 1" in verifier.notes[0]


def test_all_that_the_library_can_raise_is_expected() -> None:
    """Each exception of joserfc's and cryptography's own, and those that they let through."""
    for module in (joserfc.errors, cryptography.exceptions):
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, Exception):
                assert issubclass(found, (*library_errors(), Warning)) or found.__name__ in (
                    *("AlreadyFinalized", "AlreadyUpdated", "NotYetFinalized"),  # of streams
                    "InvalidTag",  # of ciphers
                ), found


# Members of a key, right and wrong, in any mixture.
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
WORDS: Final = st.sampled_from(
    [*("RSA", "EC", "OKP", "oct", "P-256", "P-384", "Ed25519", "X25519", "sig", "enc", "verify")]
    + ["RS256", "ES256", "EdDSA", "AQAB", "AQ", "", "a", "A" * 43, "A" * 342, "x" * 342]
    + [str(key.as_dict(private=False)[name]) for key, name in ((RSA, "n"), (EC, "x"), (EC, "y"))]
)
MEMBERS: Final = ("kty", "crv", "n", "e", "x", "y", "k", "d", "alg", "use", "kid", "key_ops", "x5c")
WHOLE: Final = st.sampled_from([key.as_dict(private=False) for key in (RSA, EC, OKP)])
CHANGES: Final = st.dictionaries(st.sampled_from(MEMBERS), WORDS | JSON, max_size=5)
KEYS: Final = st.builds(lambda whole, changes: whole | changes, WHOLE | st.just({}), CHANGES) | JSON


BY_THE_GOOD_ONE: Final = signed("EdDSA", GOOD, OKP, kid="the good one")
BY_OTHERS: Final = [
    signed(algorithm, GOOD, key, **kid)
    for algorithm, key in (("RS256", OTHER_RSA), ("ES256", OTHER_EC))
    for kid in ({}, {"kid": "a"})
]


@given(st.lists(KEYS, max_size=6), st.integers(0, 6))
def test_whatever_is_in_a_set_the_good_key_of_it_counts(found: list[Any], place: int) -> None:
    found.insert(min(place, len(found)), OKP.as_dict(private=False) | {"kid": "the good one"})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "jwks"
        file.write_text(json.dumps({"keys": found}))
        verifier = Verifier(AuthConfig(mode="jwt", jwks_file=file))
    assert verifier.verify(BY_THE_GOOD_ONE, NOW)
    for token in BY_OTHERS:
        with pytest.raises(RequestError):
            verifier.verify(token, NOW)


CLAIM_NAMES: Final = ("exp", "nbf", "iat", "sub", "aud", "iss", "jti", "repl_broker")
TIMES: Final = st.sampled_from([0, NOW - 1, NOW, NOW + 1, NOW + 60, 1e300, -1, float("nan")])
PAYLOADS: Final = JSON | st.builds(
    lambda good, changes: good | changes,
    st.sampled_from([GOOD, {}]),
    st.dictionaries(st.sampled_from(CLAIM_NAMES), TIMES | WORDS | JSON, max_size=4),
)
HEADERS: Final = st.dictionaries(
    st.sampled_from(("kid", "typ", "cty", "jku", "jwk", "x5c", "x5u", "b64", "zip", "p2c")),
    WORDS | JSON, max_size=3,
)  # fmt: skip


@given(PAYLOADS, HEADERS)
def test_a_token_that_is_signed_is_taken_as_it_says_or_refused(
    payload: object, header: dict[str, Any]
) -> None:
    """Right types in what is taken, and no error but the one that is declared."""
    try:
        claims = A_VERIFIER.verify(hs256(payload, **header), NOW)
    except RequestError as found:
        refused = found.code, found.extra["reason"] in REASONS
    else:
        refused = None
    if refused is not None:
        assert refused == ("unauthenticated", True)
        return
    assert isinstance(payload, dict)
    assert claims.subject is None or is_subject(claims.subject)
    assert claims.expires_at + 10 > NOW
    assert claims.issued_at is None or claims.issued_at <= NOW + AHEAD_SECONDS
    assert isinstance(payload.get("iss", ""), str)
    assert payload.get("aud", []) == []


# --- when a token counts ----------------------------------------------------------------

SECONDS: Final = st.integers(-40, 40)


class Times(NamedTuple):
    """In seconds from NOW, of a token and of who looks at it."""

    iat: int | None
    exp: int
    nbf: int | None
    leeway: int
    longest: int


MOMENTS: Final = st.builds(
    Times,
    st.none() | SECONDS,
    SECONDS,
    st.none() | SECONDS,
    st.sampled_from([0, 1, 5, 10, 30]),
    st.sampled_from([10, 20, 60]),
)


def model(times: Times, seen: int) -> bool:
    """Whether a token with these times counts for a node whose clock says ``seen``."""
    iat, exp, nbf, leeway, longest = times
    lives = exp - (seen if iat is None else iat)
    return (
        seen < exp + leeway
        and (nbf is None or seen >= nbf - leeway)
        and (iat is None or seen >= iat - leeway)
        and lives <= longest
    )


def with_times(times: Times, secret: Path) -> tuple[Verifier, str]:
    auth = AuthConfig(
        mode="jwt", secret_file=secret, leeway_seconds=times.leeway, token_seconds_max=times.longest
    )
    dates = {"iat": times.iat, "exp": times.exp, "nbf": times.nbf}
    payload = {name: NOW + value for name, value in dates.items() if value is not None}
    return Verifier(auth), hs256(payload | {"sub": "ann"})


@given(MOMENTS, SECONDS)
def test_a_token_counts_exactly_when_its_times_say_so(times: Times, seen: int) -> None:
    verifier, token = with_times(times, A_SECRET)
    try:
        verifier.verify(token, NOW + seen)
        counts = True
    except RequestError:
        counts = False
    assert counts == model(times, seen)


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_a_secret_that_an_editor_has_put_a_mark_before_is_refused(
    secret_file: Path, mark: str
) -> None:
    """Nobody sees it, and tokens that others sign by what they see would never be right."""
    secret_file.write_text(SECRET.decode(), encoding=mark)
    with pytest.raises(ConfigError, match="byte order mark"):
        Verifier(AuthConfig(mode="jwt", secret_file=secret_file))


def test_a_secret_of_any_bytes_is_a_secret(secret_file: Path) -> None:
    for start in (b"\xef\xbb\xbf\xff", b"\xff\xfex\x01", b"\0\0\0\0", b"0\x82\x01"):
        secret_file.write_bytes(start + bytes(range(128, 160)))
        assert Verifier(AuthConfig(mode="jwt", secret_file=secret_file))


def test_what_others_know_is_no_secret(secret_file: Path) -> None:
    for public in (
        RSA.as_pem(private=False), EC.as_der(private=False),
        b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI who@where",
    ):  # fmt: skip
        secret_file.write_bytes(public)
        with pytest.raises(ConfigError, match="holds a key or a certificate"):
            Verifier(AuthConfig(mode="jwt", secret_file=secret_file))


def test_a_verifier_does_not_show_its_keys(verifier: Verifier) -> None:
    assert SECRET.decode() not in repr(verifier)


@pytest.mark.parametrize("data", [b"", b"x" * 31, b"x" * 31 + b"\n\r\n"])
def test_a_secret_of_less_than_32_bytes_is_refused(secret_file: Path, data: bytes) -> None:
    secret_file.write_bytes(data)
    with pytest.raises(ConfigError, match="wanted at least 32"):
        Verifier(AuthConfig(mode="jwt", secret_file=secret_file))


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n", ""])
def test_of_two_secrets_each_checks_tokens_and_the_first_signs(
    secret_file: Path, ends: str
) -> None:
    between = "\r\n" if "\r" in ends else "\n"
    secret_file.write_bytes(f"{NEXT.decode()}{between}---{between}{SECRET.decode()}{ends}".encode())
    verifier = Verifier(AuthConfig(mode="jwt", secret_file=secret_file))
    assert read_secrets(secret_file) == (NEXT, SECRET)
    for secret in (NEXT, SECRET):
        assert verifier.verify(create(secret, now=NOW, seconds=60), NOW)
    with pytest.raises(RequestError):
        verifier.verify(create(b"x" + NEXT, now=NOW, seconds=60), NOW)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (SECRET + b"\n---\n" + b"short", "the second secret in .* has 5 bytes; wanted at least 32"),
        (b"short\n---\n" + SECRET, "the first secret in .* has 5 bytes; wanted at least 32"),
        (SECRET + b"\n---\n" + NEXT + b"\n---\n3" + SECRET, "holds 3 secrets; wanted at most 2"),
        (b" " * 40 + b"\n" + b" " * 5, "the secret in .* has 0 bytes"),
    ],
)
def test_of_several_secrets_none_may_be_too_short_and_none_too_many(
    secret_file: Path, data: bytes, words: str
) -> None:
    secret_file.write_bytes(data)
    with pytest.raises(ConfigError, match=words) as refused:
        Verifier(AuthConfig(mode="jwt", secret_file=secret_file))
    assert SECRET.decode() not in str(refused.value)


def test_what_is_made_here_is_taken_here(verifier: Verifier) -> None:
    made = create(SECRET, now=NOW + 0.7, seconds=60, publish=["a"], subscribe=[">"], subject="ann")
    assert verifier.verify(made, NOW) == Claims("ann", NOW, NOW + 60, ("a",), (">",), False)
