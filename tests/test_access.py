"""Who may do what: identities from credentials, and what ends them."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from repl_broker import access as module
from repl_broker.access import EVERYONE, Access, Credentials, Identity, Lease
from repl_broker.config import AnonymousConfig, Config
from repl_broker.errors import ConfigError, RequestError
from repl_broker.message import FilterSet
from repl_broker.tokens import AHEAD_SECONDS
from tests.nodes import configured
from tests.signing import EC, OKP, SECRET, claims, grants, hs256, jwks, signed

NOW: Final = 1_800_000_000


class Clock:
    def __init__(self) -> None:
        self.now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Callable[..., Access]:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)

    def made(http: dict[str, Any] | None = None, **auth: Any) -> Access:
        return Access(settings(secret, http, **auth), clock)

    return made


def settings(secret: Path, http: dict[str, Any] | None = None, **auth: Any) -> Config:
    keys = {"mode": "jwt", "secret_file": secret, "leeway_seconds": 0} | auth
    return configured(auth=keys, http=http or {})


def token(**changed: Any) -> str:
    return hs256(claims(**{"iat": NOW - 10, "exp": NOW + 100} | changed))


def with_bearer(text: str) -> Credentials:
    return Credentials(authorization=f"Bearer {text}")


def reader(access: Access, given: Credentials) -> Identity:
    return access.identify(given, write=False)


def refusal(call: Callable[[], object]) -> tuple[str, object]:
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value.code, caught.value.extra.get("reason")


def test_without_a_mode_everyone_may_do_everything() -> None:
    access = Access(Config())
    assert access.is_open
    assert access.identify(with_bearer("garbage"), write=True) is EVERYONE
    assert access.lease(EVERYONE, None) is None


def test_a_token_is_verified_once(make: Callable[..., Access], monkeypatch: Any) -> None:
    access, calls = make(), []
    verify = module.Verifier.verify

    def counted(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        return verify(self, *arguments)

    monkeypatch.setattr(module.Verifier, "verify", counted)
    first = reader(access, with_bearer(token()))
    assert reader(access, Credentials(authorization=f"bEARER   {token()} ")) is first
    assert reader(access, Credentials(cookie=f"a=b; repl_broker_token={token()}")) is first
    assert len(calls) == 1


def test_only_so_many_tokens_are_remembered(
    make: Callable[..., Access], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_MAX", 3)
    access = make()
    for number in range(10):
        reader(access, with_bearer(token(sub=str(number))))
        assert refusal(lambda: reader(access, with_bearer("bad"))) == (
            "unauthenticated", "malformed",
        )  # fmt: skip
    assert len(access._known) == 3


def test_only_so_many_grants_are_remembered(
    make: Callable[..., Access], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KNOWN_SIZE_MAX", 10)
    anonymous = AnonymousConfig(publish=tuple(f"w.{n}" for n in range(100)))  # there once
    access = make(anonymous=anonymous)
    for number in range(10):
        who = reader(access, with_bearer(token(sub=str(number), repl_broker=grants(("a.b.c.d",)))))
        assert who.may_publish("w.99")
        assert who.may_publish("a.b.c.d")
        assert not who.may_publish("a.b.c")
    assert (len(access._known), access._known_size) == (2, 8)
    reader(access, with_bearer(token(sub="big", repl_broker=grants(("a.b.c.d.e.f.g.h.i.j.k",)))))
    assert (len(access._known), access._known_size) == (0, 0)


def test_a_token_that_is_remembered_expires_all_the_same(
    make: Callable[..., Access], clock: Clock
) -> None:
    access = make()
    reader(access, with_bearer(token()))
    clock.now += 99.9
    reader(access, with_bearer(token()))
    clock.now += 0.1
    assert refusal(lambda: reader(access, with_bearer(token())))[1] == "expired"


@pytest.mark.parametrize(
    ("authorization", "why"),
    [("Basic YTpi", "malformed"), ("Bearer", "malformed"), ("Bearer a b", "malformed"),
     ("Bearertoken", "malformed"), ("Bearer \xff", "malformed")],
)  # fmt: skip
def test_other_credentials_are_refused(
    make: Callable[..., Access], authorization: str, why: str
) -> None:
    given = Credentials(authorization=authorization, cookie=f"repl_broker_token={token()}")
    assert refusal(lambda: reader(make(), given)) == ("unauthenticated", why)


def test_a_header_beats_the_query_which_beats_the_cookie(make: Callable[..., Access]) -> None:
    access = make()
    texts = [token(sub=sub) for sub in ("header", "query", "cookie")]
    given = Credentials(f"Bearer {texts[0]}", f"repl_broker_token={texts[2]}", "", "", texts[1])
    assert reader(access, given).subject == "header"
    assert reader(access, given._replace(authorization="")).subject == "query"
    assert reader(access, Credentials(cookie=given.cookie)).subject == "cookie"
    assert reader(access, Credentials(cookie="repl_broker_token=; x=y")).anonymous
    assert refusal(lambda: reader(access, Credentials(cookie=f"{given.cookie};{given.cookie}")))


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://node:4080", "node:4080", True),
        ("https://Node:4080", "nodE:4080", True),  # a proxy ended TLS
        ("https://app.example", "node:4080", True),  # is in cors_origins
        ("", "node:4080", False),
        ("null", "node:4080", False),
        ("http://evil", "node:4080", False),
        ("http://node", "node:4080", False),
        ("http://node:4080.evil", "node:4080", False),
        ("file://", "", False),
        ("http://", "", False),
    ],
)
def test_a_write_with_the_cookie_must_come_from_a_page_that_may(
    make: Callable[..., Access], origin: str, host: str, allowed: bool
) -> None:
    access = make({"cors_origins": ("*", "https://app.example")})
    given = Credentials(
        cookie=f"repl_broker_token={token(repl_broker=grants(('a',)))}", origin=origin, host=host
    )
    assert reader(access, given).subject == "ann"  # a read
    assert access.admits(given, None) is allowed
    if allowed:
        access.identify(given, write=True)
    else:
        assert refusal(lambda: access.identify(given, write=True)) == ("forbidden", "origin")
    by_header = given._replace(authorization=f"Bearer {token()}")
    assert access.identify(by_header, write=True).subject == "ann"


def test_room_for_a_batch_over_topics_is_kept_for_those_who_may_publish_somewhere(
    make: Callable[..., Access],
) -> None:
    """Which topics these are is in the body; who may publish to none sends it in vain."""
    access = make()
    for said, allowed in (
        (Credentials(), False),
        (with_bearer("x.y.z"), False),
        (with_bearer(token()), False),
        (with_bearer(token(repl_broker=grants((), ("a",)))), False),
        (with_bearer(token(repl_broker=grants(("a",)))), True),
        (with_bearer(token(repl_broker=grants(admin=True))), True),
    ):
        assert access.admits(said, None) is allowed


def test_behind_a_proxy_the_public_url_says_what_is_ones_own(make: Callable[..., Access]) -> None:
    access = make({"public_url": "https://broker.example/x"})
    given = Credentials(cookie=f"repl_broker_token={token()}", host="10.0.0.1:4080")
    access.identify(given._replace(origin="https://broker.example"), write=True)
    for origin in ("http://10.0.0.1", "http://broker.example", "https://broker.example:1"):
        assert refusal(lambda o=origin: access.identify(given._replace(origin=o), write=True))


def test_a_subscription_needs_a_filter_that_covers_all_of_it(make: Callable[..., Access]) -> None:
    access = make()
    who = reader(access, with_bearer(token(repl_broker=grants(("a.*",), ("a.*", "b.>", "a.x.y")))))
    access.check_subscribe(who, ("a.*", "a.x", "b.*.c", "b.>", "a.x.y"))
    for wanted in (">", "a.>", "*", "*.x", "a.*.y", "b"):
        assert refusal(lambda w=wanted: access.check_subscribe(who, (w,))) == ("forbidden", None)
    access.check_publish(who, ("a.b",))
    for topic in ("a", "a.b.c", "b.c"):
        with pytest.raises(RequestError, match=f"Publishing to '{topic}' needs"):
            access.check_publish(who, (topic,))


# --- revocation -------------------------------------------------------------------------


def test_a_revocation_concerns_what_was_issued_before(make: Callable[..., Access]) -> None:
    access = make(leeway_seconds=10)
    revocations = {"ann": (NOW * 1000 + 500, 0)}
    access.follow(lambda: revocations)
    assert reader(access, with_bearer(token(iat=NOW + 1)))
    assert reader(access, with_bearer(token(sub="bob")))
    assert reader(access, with_bearer(token(sub=None, iat=None)))
    for iat in (NOW - 10, NOW, NOW + 3, NOW + 10, None):
        assert refusal(lambda i=iat: reader(access, with_bearer(token(iat=i))))[1] == "revoked"


class Told(NamedTuple):
    """A token's times, and when it is shown and when its subject is revoked; seconds from NOW."""

    iat: int
    life: int
    leeway: int
    ahead: int  # of the node's clock, that of the issuer
    shown: list[int]
    revoked: int


TOLD: Final = st.builds(
    Told,
    st.integers(-30, 30),
    st.integers(1, 60),
    st.sampled_from([0, 5, 10]),
    st.integers(-12, 12),
    st.lists(st.integers(-30, 90), min_size=1, max_size=6).map(sorted),
    st.integers(-30, 90),
)


@given(TOLD)
def test_no_token_outlives_its_revocation(told: Told) -> None:
    """It is accepted exactly when a model of four lines says so, whenever it is shown."""
    clock, revocations = Clock(), dict[str, tuple[int, int]]()
    dated = told.iat + told.ahead
    given_token = with_bearer(token(iat=NOW + dated, exp=NOW + dated + told.life))
    with tempfile.NamedTemporaryFile() as secret:
        secret.write(SECRET)
        secret.flush()
        access = Access(settings(Path(secret.name), leeway_seconds=told.leeway), clock)
    access.follow(lambda: revocations)
    issued: int | None = None  # as the node has it since it was first shown
    for moment in told.shown:
        clock.now = NOW + moment
        if moment >= told.revoked:
            revocations["ann"] = ((NOW + told.revoked) * 1000, 0)
        in_time = dated - told.leeway <= moment < dated + told.life + told.leeway
        if issued is None and in_time:
            issued = dated if dated <= moment + AHEAD_SECONDS else dated - told.leeway
        is_revoked = moment >= told.revoked and issued is not None and issued < told.revoked
        try:
            reader(access, given_token)
            counts = True
        except RequestError:
            counts = False
        assert counts == (in_time and not is_revoked)
        # What is promised of it, by a right clock or a wrong one within the leeway:
        if counts and moment >= told.revoked and told.ahead <= AHEAD_SECONDS:
            assert dated >= told.revoked
            assert told.iat >= told.revoked - AHEAD_SECONDS


@pytest.mark.parametrize("ahead", [3, 5, 10])
def test_a_token_that_was_used_before_it_was_issued_does_not_outlive_its_revocation(
    make: Callable[..., Access], clock: Clock, ahead: int
) -> None:
    """Its issuer's clock is ahead, by no more than is forgiven."""
    access = make(leeway_seconds=10)
    revocations: dict[str, tuple[int, int]] = {}
    access.follow(lambda: revocations)
    early = with_bearer(token(iat=NOW + ahead))
    assert reader(access, early)
    revocations["ann"] = (NOW * 1000 + 100, 0)
    for _ in range(ahead + 3):
        clock.now += 1
        assert refusal(lambda: reader(access, early))[1] == "revoked"


def test_a_revocation_is_known_for_as_long_as_any_token_of_before_is_taken(
    make: Callable[..., Access], clock: Clock
) -> None:
    """Dated ahead by the leeway, it lives its longest, and is taken for the leeway more."""
    access = make(leeway_seconds=300, token_seconds_max=600)
    last = with_bearer(token(iat=NOW + 300, exp=NOW + 900))
    assert reader(access, last)
    revoked_at = NOW
    clock.now = NOW + 1199
    assert reader(access, last)
    assert clock.now < revoked_at + access.keep_seconds


async def test_a_revocation_ends_leases_once_and_those_alone(make: Callable[..., Access]) -> None:
    access = make()
    revocations: dict[str, tuple[int, int]] = {}
    access.follow(lambda: revocations)
    ended: list[str] = []
    leases = []
    for name, text in (("a", token()), ("b", token()), ("c", token(sub="bob"))):
        lease = access.lease(reader(access, with_bearer(text)), FilterSet(["chat"]))
        assert lease is not None
        lease.begin(lambda reason, name=name: ended.append(f"{name} {reason}"))
        leases.append(lease)
    leases[1].end()  # its stream is over
    revocations["ann"] = (NOW * 1000, 0)
    access.revoke(["ann", "nobody"])
    access.revoke_all()
    assert ended == ["a revoked"]
    assert [lease.is_over for lease in leases] == [True, True, False]
    assert access._leases.keys() == {"bob"}
    leases[2].end()
    assert not access._leases


async def test_a_stream_that_begins_after_its_token_was_revoked_ends_at_once(
    make: Callable[..., Access],
) -> None:
    access = make()
    revocations: dict[str, tuple[int, int]] = {}
    access.follow(lambda: revocations)
    lease = access.lease(reader(access, with_bearer(token())), FilterSet(["chat"]))
    assert lease is not None
    revocations["ann"] = (NOW * 1000, 0)
    ended: list[str] = []
    lease.begin(ended.append)
    assert (ended, lease.is_over, access._leases) == (["revoked"], True, {})


# --- rules that change --------------------------------------------------------------------


class Streams:
    """Open streams, and why they ended."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.ended: dict[str, str] = {}

    def open(self, name: str, given: Credentials, *filters: str) -> Lease:
        """Without filters: what an admin may see."""
        who = reader(self.access, given)
        lease = self.access.lease(who, FilterSet(filters) if filters else None)
        assert lease is not None, "where there are tokens, each stream has a lease"
        self.begin(name, lease)
        return lease

    def begin(self, name: str, lease: Lease) -> None:
        lease.begin(lambda reason: self.ended.update({name: reason}))


@asynccontextmanager
async def watched(access: Access) -> AsyncIterator[Streams]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(access.run)
        yield Streams(access)
        nursery.cancel_scope.cancel()


async def test_streams_end_that_could_not_be_opened_after_a_reload_and_those_alone(
    make: Callable[..., Access], tmp_path: Path, autojump_clock: MockClock
) -> None:
    secret, wide = tmp_path / "secret", AnonymousConfig(subscribe=("open.>", "news"))
    access = make(anonymous=wide)
    own = with_bearer(token(repl_broker=grants((), ("mine.*",))))
    root = with_bearer(token(sub="root", repl_broker=grants(admin=True)))
    async with watched(access) as streams:
        streams.open("anonymous, of what stays", Credentials(), "news")
        streams.open("anonymous, of what is taken", Credentials(), "news", "open.a")
        streams.open("token, of its own", own, "mine.a")
        streams.open("token, of what all may", own, "mine.a", "news")
        streams.open("token, of what is taken", own, "mine.a", "open.>")
        streams.open("admin, of what is taken", root, ">")
        streams.open("admin, of the node", root)
        late = access.lease(reader(access, Credentials()), FilterSet(["open.b"]))
        access.reload(settings(secret, anonymous=wide))
        await trio.testing.wait_all_tasks_blocked()
        assert streams.ended == {}
        access.reload(settings(secret, anonymous=AnonymousConfig(subscribe=("news",))))
        await trio.testing.wait_all_tasks_blocked()
        taken = {"anonymous, of what is taken": "changed", "token, of what is taken": "changed"}
        assert streams.ended == taken
        assert late is not None
        streams.begin("opened before, begun after", late)
        assert streams.ended.pop("opened before, begun after") == "changed"
        access.reload(settings(secret, audience="other"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(streams.ended) == 7
        assert set(streams.ended.values()) == {"changed"}
        assert not access._leases


async def test_streams_end_whose_key_is_taken_out_though_nobody_asks_for_anything(
    tmp_path: Path, clock: Clock, autojump_clock: MockClock
) -> None:
    file = jwks(tmp_path / "jwks", one=EC, two=OKP)
    access = Access(configured(auth={"mode": "jwt", "jwks_file": file}), clock)
    payload = claims(iat=NOW - 10, exp=NOW + 1000, repl_broker=grants((), ("a",)))
    async with watched(access) as streams:
        streams.open("one", with_bearer(signed("ES256", payload, EC, kid="one")), "a")
        streams.open("two", with_bearer(signed("EdDSA", payload, OKP, kid="two")), "a")
        for text in ("{", None):
            if text is None:
                jwks(file, two=OKP)
            else:
                file.write_text(text)
            os.utime(file, ns=(0, hash(text)))
            await trio.sleep(1.5)
            assert streams.ended == ({} if text else {"one": "changed"})


async def test_a_stream_whose_token_expires_while_the_rules_change_is_told_so(
    make: Callable[..., Access], tmp_path: Path, clock: Clock, autojump_clock: MockClock
) -> None:
    access = make()
    async with watched(access) as streams:
        streams.open("a", with_bearer(token(repl_broker=grants((), ("a",)))), "a")
        clock.now += 1000
        access.reload(settings(tmp_path / "secret"))
        await trio.testing.wait_all_tasks_blocked()
        assert streams.ended == {"a": "expired"}


async def test_without_tokens_there_is_nothing_to_look_after() -> None:
    await Access(Config()).run()


# --- keys that change -------------------------------------------------------------------


def test_keys_are_read_again_when_their_file_changes(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = jwks(tmp_path / "jwks", one=EC)
    access = Access(configured(auth={"mode": "jwt", "jwks_file": file}), clock)
    payload = claims(iat=NOW - 10, exp=NOW + 1000)
    old, new = signed("ES256", payload, EC, kid="one"), signed("EdDSA", payload, OKP, kid="two")
    assert reader(access, with_bearer(old))
    assert refusal(lambda: reader(access, with_bearer(new)))

    def replace(text: str | None = None) -> None:
        clock.now += 2
        if text is None:
            jwks(file, two=OKP)
        else:
            file.write_text(text)
        os.utime(file, ns=(0, int(clock.now * 1e9)))

    replace("{")
    for _ in range(3):
        assert reader(access, with_bearer(old))  # those before stay in force
        clock.now += 2
    assert caplog.text.count("keys not read again") == 1
    replace()
    assert reader(access, with_bearer(new))
    assert refusal(lambda: reader(access, with_bearer(old)))[1] == "algorithm"
    file.unlink()
    clock.now += 2
    assert reader(access, with_bearer(new))


class Keys:
    """A key file that changes, and a node's rules that look at it."""

    def __init__(self, folder: Path, clock: Clock, **auth: Any) -> None:
        self.clock = clock
        self.file = folder / "jwks"
        self.write(one=EC)
        keys = {"mode": "jwt", "jwks_file": self.file} | auth
        self.config = configured(auth=keys)
        self.access = Access(self.config, clock)

    def write(self, *more: object, **kids: Any) -> None:
        keys = [key.as_dict(private=False) | {"kid": kid} for kid, key in kids.items()]
        self.file.write_text(json.dumps({"keys": [*more, *keys]}))
        self.clock.now += 2
        os.utime(self.file, ns=(0, int(self.clock.now * 1e9)))

    def counts(self, name: str) -> bool:
        algorithm, key = {"one": ("ES256", EC), "two": ("EdDSA", OKP)}[name]
        text = signed(algorithm, claims(iat=NOW - 10, exp=NOW + 1000), key, kid=name)
        try:
            reader(self.access, with_bearer(text))
        except RequestError:
            return False
        return True


BAD_KEYS: Final = (
    {"kty": "oct", "k": "AA"},
    {"kty": "RSA"},
    5,
    {"kty": "RSA", "n": "AA", "e": "A"},
)


@pytest.mark.parametrize("bad", BAD_KEYS)
def test_a_key_that_is_withdrawn_is_gone_though_another_is_broken(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, bad: object
) -> None:
    keys = Keys(tmp_path, clock)
    assert (keys.counts("one"), keys.counts("two")) == (True, False)
    keys.write(bad, two=OKP)
    assert (keys.counts("one"), keys.counts("two")) == (False, True)
    keys.write(bad, two=OKP)
    assert (keys.counts("one"), keys.counts("two")) == (False, True)
    keys.access.reload(keys.config)
    assert caplog.text.count("is not used") == 1  # it is told once, not at each look


def test_the_last_key_can_be_withdrawn(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody who withdraws a key wants it to stay good because there is no other yet."""
    keys = Keys(tmp_path, clock)
    assert keys.counts("one")
    keys.write()
    assert not keys.counts("one")
    assert "has no key any more" in caplog.text
    keys.access.reload(keys.config)
    assert not keys.counts("one")
    with pytest.raises(ConfigError, match="has no key for"):
        Access(keys.config)
    keys.write(one=EC)
    assert keys.counts("one")


def test_a_key_that_is_withdrawn_is_gone_though_its_algorithm_is_asked_for(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(tmp_path, clock, algorithms=("ES256",))
    keys.write(two=OKP)
    assert not keys.counts("one")
    assert "[auth] algorithms has ES256, and no key" in caplog.text


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_read(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    keys = Keys(tmp_path, clock, secret_file=secret)
    secret.write_bytes(b"short")
    keys.write(two=OKP)
    assert (keys.counts("one"), keys.counts("two")) == (False, True)
    assert reader(keys.access, with_bearer(token()))  # by the secret of before
    assert caplog.text.count("keys not read again") == 1
    assert "stay in force, also what was taken out" in caplog.text
    with pytest.raises(ConfigError, match=r"wanted at least 32.* also what was taken out of it"):
        keys.access.reload(keys.config)


def test_files_that_cannot_be_read_count_once_until_each_is_read_well(
    tmp_path: Path, clock: Clock
) -> None:
    """Whether a reload finds it or a look, and whichever of the two finds that it is over."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    keys = Keys(tmp_path, clock, secret_file=secret)
    aside = tmp_path / "aside"
    secret.rename(aside)
    with pytest.raises(ConfigError, match=r"cannot read") as refused:
        keys.access.reload(keys.config)
    assert keys.access.problems == 1
    assert keys.access.counts(str(refused.value))
    assert keys.access.counts(f"auth.secret_file: cannot read {secret}: No such file or directory")
    assert not keys.access.counts(f"auth.secret_file: cannot read {aside}: No such file")
    keys.access.reload_pages(keys.config)
    assert keys.access.problems == 1
    aside.rename(secret)  # the very same file
    look(keys.access, clock)
    assert keys.access.problems == 0
    secret.write_bytes(b"short")
    look(keys.access, clock)
    assert keys.access.problems == 1
    with pytest.raises(ConfigError):
        keys.access.reload(keys.config)
    assert keys.access.problems == 1
    secret.write_bytes(SECRET * 2)
    look(keys.access, clock)
    assert keys.access.problems == 0


def test_keys_that_are_read_again_are_in_the_audit(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    keys = Keys(tmp_path, clock, secret_file=secret)
    for data, outcome in ((SECRET[::-1], "done"), (b"short", "refused")):
        caplog.clear()
        secret.write_bytes(data)
        look(keys.access, clock)
        look(keys.access, clock)
        (line,) = [text for text in caplog.messages if text.startswith("audit ")]
        assert line == (
            "audit action=keys.reload target='auth.secret_file' "
            f"subject='whoever writes the file' address=local outcome={outcome}"
        )


def look(access: Access, clock: Clock) -> None:
    """Have it look at its files, as it does each second."""
    clock.now += 2
    access._look(clock.now)


@pytest.mark.parametrize("by", ["a reload", "a look"])
def test_it_is_told_how_many_secrets_are_read_and_that_none_of_before_is_among_them(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    """Two that were put together without a line break are another one, which nobody has."""
    caplog.set_level(logging.INFO)
    secret, other = tmp_path / "secret", SECRET[::-1]
    secret.write_bytes(SECRET)
    access = Access(settings(secret), clock)
    assert "keys read secrets=1 public_keys=0" in caplog.text
    for data, count, is_told in (
        (SECRET + b"\n---\n" + other, 2, False),
        (other + b"\n", 1, False),
        (other + SECRET, 1, True),
        (SECRET + b"\n---\n" + SECRET + b"x", 2, True),
    ):
        caplog.clear()
        secret.write_bytes(data)
        clock.now += 2
        os.utime(secret, ns=(0, int(clock.now * 1e9)))
        if by == "a reload":
            assert access.reload(settings(secret)) == ["auth.secret_file"]
        else:
            payload = claims(iat=NOW, exp=NOW + 100)
            reader(access, with_bearer(hs256(payload, data.split(b"\n")[0])))
        assert caplog.text.count(f"keys read again secrets={count} public_keys=0") == 1
        told = "no secret that was in force is in auth.secret_file any more"
        assert caplog.text.count(told) == is_told
    caplog.clear()
    access.reload(settings(secret))
    assert caplog.text == ""


def test_a_file_that_may_be_read_again_is_read_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its contents, size and date are the same; who may read it has changed."""
    keys = Keys(tmp_path, clock)
    assert keys.counts("one")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", mock.Mock(side_effect=PermissionError(13, "Denied")))
        jwks_text = json.dumps({"keys": [OKP.as_dict(private=False) | {"kid": "two"}]})
        os.truncate(keys.file, 0)
        descriptor = os.open(keys.file, os.O_WRONLY)
        os.write(descriptor, jwks_text.encode())
        os.close(descriptor)
        clock.now += 2
        assert keys.counts("one")
    about = keys.file.stat()
    keys.file.chmod(0o600 if about.st_mode & 0o777 != 0o600 else 0o640)
    clock.now += 2
    assert (keys.counts("one"), keys.counts("two")) == (False, True)


def test_reload_goes_by_another_configuration_or_changes_nothing(
    make: Callable[..., Access], tmp_path: Path
) -> None:
    access, secret = make(), tmp_path / "secret"
    reader(access, with_bearer(token()))
    anonymous = AnonymousConfig(publish=("wall",))
    access.reload(settings(secret, anonymous=anonymous, allow_query_token=True))
    assert access.allow_query_token
    access.check_publish(reader(access, Credentials()), ("wall",))
    access.check_publish(reader(access, with_bearer(token())), ("wall",))
    for wrong in (
        configured(auth={"mode": "none"}),
        Config(),
        settings(tmp_path / "absent"),
        settings(secret, jwks_file=tmp_path / "absent"),
    ):
        with pytest.raises(ConfigError):
            access.reload(wrong)
        access.check_publish(reader(access, with_bearer(token())), ("wall",))
        assert access.allow_query_token
    access.reload(settings(secret, audience="x"))
    assert refusal(lambda: reader(access, with_bearer(token())))[1] == "audience"
