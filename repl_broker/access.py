"""Who may do what. The broker asks here, with each thing that is asked of it.

    Asking ── caller ── Caller ── check_publish, check_subscribe, check_admin
                           │
                           └── Lease: an event stream's, until the token ends, or does not
                               allow the stream any more

A request brings what it is ``Asking`` with: ``Credentials``, and the address that it
comes from. Nothing of it is believed until ``caller`` has looked at it. Credentials are a
token, or none, which stands for what ``[auth.anonymous]`` grants. A token that was
verified is remembered, so that it costs a look into a dict the next time; whether it
has expired, or was revoked, is looked at each time.

A revocation is part of the replicated state: every node applies the same entry,
and ends the streams that it concerns as it does (``revoke``). When the keys change, or
what the configuration asks of tokens and grants without one, every open stream is judged
anew (``run``): it ends if its token, or anyone, could not open it now.

With ``[auth] mode = "none"`` everyone is EVERYONE, who may do everything.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import trio

from repl_broker import audit
from repl_broker.config import AuthConfig, Config
from repl_broker.errors import ConfigError, RequestError
from repl_broker.filters import Filters
from repl_broker.hosts import Hosts, parse_host
from repl_broker.message import FilterSet
from repl_broker.origins import COOKIE, Origins
from repl_broker.secret_lines import SEPARATOR, STILL_IN_FORCE
from repl_broker.tokens import Claims, Verifier, refuse

__all__ = ["COOKIE", "EVERYONE", "Access", "Asking", "Caller", "Credentials", "Identity", "Lease"]

log = logging.getLogger(__name__)

KNOWN_MAX: Final = 10_000  # verified tokens remembered
KNOWN_SIZE_MAX: Final = 500_000  # of their grants: tokens of filters, some 200 bytes each
RECALLED_BYTES_MAX: Final = 2048  # of an Authorization field, for which its token is remembered
LOOK_SECONDS: Final = 1.0  # between two looks at whether the key files have changed
CHANGED: Final = "changed"  # why a stream ends that the rules do not allow any more
CLOCKS_SECONDS: Final = 60  # by which the clocks of nodes may differ, for a revocation's end

_BEARER = re.compile(r"bearer +([^ \t]+)[ \t]*", re.IGNORECASE)


class Credentials(NamedTuple):
    """What a request says of who asks, as it came; "" for what it does not say."""

    authorization: str = ""  # the header field
    cookie: str = ""  # the header field, whole
    origin: str = ""  # of the web page that asks
    host: str = ""  # that was asked
    query_token: str = ""  # access_token of /v1/events, where that is allowed

    def __repr__(self) -> str:
        """Which there are, and none of them."""
        given = [name for name in self._fields if getattr(self, name)]
        return f"<Credentials: {', '.join(given) or 'none'}>"


class Asking(NamedTuple):
    """What a request says of the one who asks. It has no defaults: each door has to say."""

    credentials: Credentials
    address: str  # admission.address_key: whose it is as far as there is no token's subject


class Grants(NamedTuple):
    """What may be done, compiled once: by whoever has a token, or by anyone."""

    publish: Filters
    subscribe: Filters

    def __bool__(self) -> bool:
        return bool(self.publish or self.subscribe)

    @property
    def size(self) -> int:
        """Of them in memory: tokens of all filters."""
        return self.publish.size + self.subscribe.size


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and what that one may do. ``admin`` may do everything."""

    subject: str | None
    grants: tuple[Grants, ...]  # what each of them allows, it may do
    admin: bool
    issued_at: float | None  # seconds since 1970, as is …
    ends_at: float  # … until when it is taken
    token: str | None = field(repr=False)  # None: there is none
    holder: str = ""  # what stands for whoever has a token without a name, at any address

    @property
    def name(self) -> str:
        """For the log: the subject, or what there is in its place."""
        if self.subject is not None:
            return self.subject
        return "anyone" if self.token is None else "a token without sub"

    @property
    def subject_key(self) -> str:
        """Whose rates its requests count for; "" for who has no name."""
        return "" if self.subject is None else f"token {self.subject}"

    @property
    def size(self) -> int:
        """Of what is kept for it alone, in memory; what anyone may do is there once."""
        return self.grants[0].size if self.grants and self.token is not None else 0

    @property
    def anonymous(self) -> bool:
        return self.token is None

    def may_publish(self, topic: str) -> bool:
        return self.admin or any(grants.publish.covers(topic) for grants in self.grants)

    @property
    def publishes(self) -> bool:
        """Whether there is any topic that it may publish to."""
        return self.admin or any(bool(grants.publish) for grants in self.grants)

    def may_subscribe(self, wanted: str) -> bool:
        """Whether one of its filters covers the whole of this one."""
        return self.admin or any(grants.subscribe.covers(wanted) for grants in self.grants)

    @property
    def sees(self) -> tuple[Filters, ...]:
        """The topics that it may know of match one of these; an admin may know of all."""
        return tuple(filters for grants in self.grants for filters in grants)

    def may_see(self, topic: str) -> bool:
        """Whether it may know that the topic is there."""
        return self.may_publish(topic) or self.may_subscribe(topic)


EVERYONE: Final = Identity(None, (), admin=True, issued_at=None, ends_at=math.inf, token=None)


class Caller(NamedTuple):
    """The one who asks, once that is verified."""

    identity: Identity
    address: str

    @property
    def client(self) -> str:
        """Whose rates and shares this counts for: the token's subject, else the address."""
        return self.identity.subject_key or self.address

    @property
    def holder(self) -> str:
        """Who keeps something in the cluster. Unlike ``client`` it is the same at any address for a
        token without a subject: those that allow the same are one. An address stands only for
        whoever has no token."""
        return self.identity.subject_key or self.identity.holder or self.address

    @property
    def share(self) -> str:
        """In whose share of what all need it counts; "" for an administrator, in nobody's."""
        return "" if self.identity.admin else self.holder

    @property
    def owner(self) -> str:
        """Whose idempotency keys these are; "" where all are one, because there are no tokens."""
        return "" if self.identity is EVERYONE else self.holder


class Lease:
    """A stream's right to go on. ``ends_at`` is by Trio's clock.

    ``begin`` says what ends the stream early, ``end`` that there is no stream any more.
    """

    __slots__ = ("_access", "_dismiss", "_is_over", "ends_at", "identity", "rules", "wanted")

    def __init__(
        self, access: Access, identity: Identity, wanted: FilterSet | None, ends_at: float
    ) -> None:
        self.identity = identity
        self.wanted = wanted  # what the stream reads; None: what an admin may see
        self.ends_at = ends_at
        self.rules = access.rules  # by which it was judged last
        self._access = access
        self._dismiss: Callable[[str], None] | None = None
        self._is_over = False

    @property
    def is_over(self) -> bool:
        return self._is_over or trio.current_time() >= self.ends_at

    def begin(self, dismiss: Callable[[str], None]) -> None:
        """``dismiss`` is called with the reason, once, if the right ends before ``ends_at``."""
        if not self._is_over:
            self._dismiss = dismiss
            self._access.enter(self)

    def end(self) -> None:
        self._is_over = True
        self._dismiss = None
        self._access.leave(self)

    def dismiss(self, reason: str) -> None:
        """End the stream, which is told why."""
        dismiss = self._dismiss
        self.end()
        if dismiss is not None:
            dismiss(reason)


def _key_files(auth: AuthConfig) -> list[tuple[str, Path]]:
    """The files with keys, and by which key of the configuration each is named."""
    named = (("auth.secret_file", auth.secret_file), ("auth.jwks_file", auth.jwks_file))
    return [(key, file) for key, file in named if file is not None]


def _note(key: str, outcome: str) -> None:
    """The audit's line of keys that are read again because their file has changed."""
    by = "whoever writes the file"
    audit.note("keys.reload", key, subject=by, address="local", outcome=outcome)


class Access:
    """The rules of a node. ``now`` gives seconds since 1970. Raises ConfigError for bad keys."""

    def __init__(self, config: Config, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._mode = config.auth.mode or "none"
        self.rules = 0  # how often keys, or what is asked of tokens, have changed
        self._changed = trio.Event()
        self._known: dict[str, Identity] = {}  # by verified tokens, oldest first
        self._known_size = 0  # of their grants
        self._leases: dict[str | None, set[Lease]] = {}  # by subject; None: whose token has none
        self._revocations: Callable[[], Mapping[str, tuple[int, int]]] = dict
        self._look_at = 0.0
        self._verifier: Verifier | None = None
        self._unread: frozenset[Path] = frozenset()  # files that could not be read the last time
        self._refusal = ""  # of the last reload that met such
        self._set(config)

    def _set(self, config: Config) -> None:
        auth = config.auth
        verifier = Verifier(auth, self._verifier) if self._mode == "jwt" else None
        if verifier is not None and verifier.problems:
            self._unread = frozenset(verifier.problems)
            self._refusal = f"{'; '.join(verifier.problems.values())}. {STILL_IN_FORCE}"
            raise ConfigError(self._refusal)
        everyone = Grants(Filters(auth.anonymous.publish), Filters(auth.anonymous.subscribe))
        anonymous = Identity(
            None, (everyone,), admin=False, issued_at=None, ends_at=math.inf, token=None
        )
        # Nothing above has changed anything, and nothing below fails.
        self.is_open = verifier is None
        self.allow_query_token = auth.allow_query_token
        self._auth = auth
        if verifier is not None:
            before = self._verifier
            if before is None or before.fingerprints != verifier.fingerprints:
                _tell_counts("keys read again" if before else "keys read", verifier)
        self._use(verifier)
        self._anonymous = anonymous
        self.reload_pages(config)

    def reload_pages(self, config: Config) -> None:
        """From which pages requests count; no file is read for it."""
        self.hosts = Hosts(config)
        self.origins = Origins(config)

    def _use(self, verifier: Verifier | None) -> None:
        """Check tokens by these keys from now on, and say once of each why it is not used."""
        told = () if self._verifier is None else self._verifier.notes
        for note in () if verifier is None else verifier.notes:
            if note not in told:
                log.warning("keys note=%r", note)
        if verifier is not None and self._verifier is not None:
            _tell_dropped(self._verifier.secret_prints, verifier.secret_prints)
        self._verifier = verifier
        self._unread = frozenset(() if verifier is None else verifier.problems)
        self._begin_anew()

    def reload(self, config: Config) -> list[str]:
        """Go by another configuration from now on; the mode stays as it is.

        Streams that are open are judged anew. Of which keys the files have other contents
        now. Raises ConfigError, and then nothing has changed.
        """
        if (config.auth.mode or "none") != self._mode:
            raise ConfigError("auth.mode changes when the node is started anew, not while it runs")
        before = self._verifier
        self._set(config)
        if before is None or self._verifier is None:
            return []
        old, new = before.fingerprints, self._verifier.fingerprints
        return [key for key, file in _key_files(config.auth) if new.get(file) != old.get(file)]

    @property
    def problems(self) -> int:
        """Files with keys that could not be read the last time; those before are in force."""
        return len(self._unread)

    def counts(self, problem: str) -> bool:
        """Whether what a reload says is about such a file: ``problems`` knows when it is over."""
        away = (f"{key}: cannot read {file}: " for key, file in _key_files(self._auth))
        return problem == self._refusal or (not self.is_open and problem.startswith(tuple(away)))

    def follow(self, revocations: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Where to look revocations up: by subject, when (ms since 1970), and until when known."""
        self._revocations = revocations

    @property
    def keep_seconds(self) -> int:
        """For how long a revocation must be remembered: no token lives longer.

        A token may be dated ahead by the leeway, and is taken that much longer than it says.
        """
        return self._auth.token_seconds_max + 2 * self._auth.leeway_seconds + CLOCKS_SECONDS

    # --- who asks ---

    def identify(self, given: Credentials, *, write: bool) -> Identity:
        """Whose credentials these are. ``write``: the request would change something.

        Raises ``unauthenticated`` for a token that is not valid, and ``forbidden``
        for a write with the cookie from a page of another origin.
        """
        if self.is_open:
            return EVERYONE
        token = self._token(given, write=write)
        return self._recall(token) if token else self._anonymous

    def _recall(self, token: str) -> Identity:
        """Whose token it is, if it is valid now."""
        now = self._now()
        if not self._look_at - LOOK_SECONDS <= now < self._look_at:
            self._look(now)
        who = self._known.get(token)
        if who is None or now >= who.ends_at:
            self._forget(token)
            who = self._verify(token, now)
            self._remember(token, who)
        if who.subject is not None and self._is_revoked(who):
            raise refuse("revoked", "The token was revoked; get a new one.")
        return who

    def caller(self, asking: Asking, *, write: bool) -> Caller:
        """Who asks; what the request says is verified. Raises what ``identify`` does."""
        return Caller(self.identify(asking.credentials, write=write), asking.address)

    def share(self, asking: Asking) -> str:
        """As ``Caller.share``, before it is decided whether the request may be at all."""
        if self.is_open:
            return ""
        try:
            return self.caller(asking, write=False).share
        except RequestError:
            return asking.address

    def admits(self, given: Credentials, topic: str | None) -> bool:
        """Whether a publish to ``topic``, or to any topics, looks allowed, so that room is kept
        for its body, and it is read.

        It is a refusal before the work; the broker decides.
        """
        try:
            who = self.identify(given, write=True)
        except RequestError:
            return False
        return who.publishes if topic is None else who.may_publish(topic)

    def _token(self, given: Credentials, *, write: bool) -> str:
        """The token that is given: a header beats the query beats the cookie."""
        if given.authorization:
            short = len(given.authorization) <= RECALLED_BYTES_MAX
            token = (_recall_bearer if short else _bearer)(given.authorization)
            if not token:
                raise refuse("malformed", "The Authorization header must be 'Bearer TOKEN'.")
            return token
        if given.query_token:
            return given.query_token
        token = _cookie_token(given.cookie) if given.cookie else ""
        if token and write:
            self._check_origin(given)
        return token

    def _check_origin(self, given: Credentials) -> None:
        """A browser sends the cookie whoever asks, so a write must come from a page that may."""
        origin, host = given.origin, parse_host(given.host)
        if not self.origins.may_write(origin, host, by_cookie=True):
            detail = self.origins.foreign_page(origin, host, by_cookie=True)
            raise RequestError("forbidden", detail, reason="origin")

    def _verify(self, token: str, now: float) -> Identity:
        assert self._verifier is not None, "the mode is jwt"
        claims = self._verifier.verify(token, now)
        return Identity(
            claims.subject,
            # Whatever anyone may do without a token, one may do with it.
            (Grants(Filters(claims.publish), Filters(claims.subscribe)), *self._anonymous.grants),
            claims.admin,
            claims.issued_at,
            claims.expires_at + self._auth.leeway_seconds,
            token,
            "" if claims.subject is not None else _holder(claims),
        )

    def _remember(self, token: str, who: Identity) -> None:
        self._known[token] = who
        self._known_size += who.size
        while len(self._known) > KNOWN_MAX or self._known_size > KNOWN_SIZE_MAX:
            self._forget(next(iter(self._known)))

    def _forget(self, token: str) -> None:
        who = self._known.pop(token, None)
        if who is not None:
            self._known_size -= who.size

    def _begin_anew(self) -> None:
        """The rules are others: nothing that was verified by those before counts any more."""
        self._known.clear()
        self._known_size = 0
        self.rules += 1
        self._changed.set()

    def _is_revoked(self, who: Identity) -> bool:
        if who.subject is None:
            return False
        known = self._revocations().get(who.subject)
        if known is None:
            return False
        return who.issued_at is None or who.issued_at * 1000 < known[0]

    def _look(self, now: float) -> None:
        """Read the key files again if they have changed; one that is broken leaves its keys."""
        self._look_at = now + LOOK_SECONDS
        assert self._verifier is not None, "the mode is jwt"
        old = self._verifier
        if old.stamp() == old.signature:
            self._unread = frozenset(old.problems)  # a reload may have met others in between
            return
        verifier = Verifier(self._auth, old)
        for problem in verifier.problems.values():
            log.error(
                "keys not read again; those before stay in force, also what was taken out error=%r",
                problem,
            )
        if not verifier.problems:
            _tell_counts("keys read again", verifier)
        for key, file in _key_files(self._auth):
            if file in verifier.problems:
                _note(key, "refused")
            elif verifier.fingerprints.get(file) != old.fingerprints.get(file):
                _note(key, "done")
        self._use(verifier)

    # --- what is allowed ---

    def check_publish(self, who: Identity, topics: Iterable[str]) -> None:
        """Raises ``forbidden``, or ``unauthenticated`` if a token may help; as all below do."""
        for topic in topics:
            if not who.may_publish(topic):
                raise self._deny(who, f"Publishing to {_shown(topic)}", "a publish filter for it")

    def check_subscribe(self, who: Identity, filters: Iterable[str]) -> None:
        """May it read all that these filters can match?"""
        for wanted in filters:
            if not who.may_subscribe(wanted):
                needed = "a subscribe filter that covers all of it"
                raise self._deny(who, f"Reading {_shown(wanted)}", needed)

    def check_see(self, who: Identity, topic: str) -> None:
        """May it know of the topic?"""
        if not who.may_see(topic):
            needed = "a publish or subscribe filter for it"
            raise self._deny(who, f"Looking at {_shown(topic)}", needed)

    def check_admin(self, who: Identity) -> None:
        """May it administer the broker?"""
        if not who.admin:
            raise self._deny(who, "This call", "admin")

    def check_known(self, who: Identity) -> None:
        """Is there anything that it may do?"""
        if who.anonymous and not who.admin and not any(who.grants):
            raise self._deny(who, "This call", "a grant")

    def _deny(self, who: Identity, what: str, needed: str) -> RequestError:
        if who.anonymous:
            return refuse("missing", f"{what} needs a token with {needed}; there is no token.")
        return RequestError("forbidden", f"{what} needs {needed}, which the token does not have.")

    # --- streams ---

    def lease(self, who: Identity, wanted: FilterSet | None) -> Lease | None:
        """What a stream of this one's holds, which reads ``wanted``; None: what an admin may see.

        There is none, and nothing ends a stream, only where there are no tokens at all.
        """
        if self.is_open:
            return None
        return Lease(self, who, wanted, trio.current_time() + who.ends_at - self._now())

    def enter(self, lease: Lease) -> None:
        """Keep track of a lease whose stream has begun."""
        self._leases.setdefault(lease.identity.subject, set()).add(lease)
        reason = "revoked" if self._is_revoked(lease.identity) else self._objection(lease)
        if reason:
            lease.dismiss(reason)

    def leave(self, lease: Lease) -> None:
        """Forget it."""
        subject = lease.identity.subject
        leases = self._leases.get(subject)
        if leases is not None:
            leases.discard(lease)
            if not leases:
                del self._leases[subject]

    async def run(self) -> None:
        """Look after what open streams rest on; there is nothing to do where there are no tokens.

        Keys are looked at when a request comes, too; here they are though none does.
        """
        while not self.is_open:
            with trio.move_on_after(LOOK_SECONDS):
                await self._changed.wait()
            self._look(self._now())
            if self._changed.is_set():
                self._changed = trio.Event()
                await self._judge_all()

    async def _judge_all(self) -> None:
        """End the streams that could not be opened now, a few at a time: each may be verified."""
        for lease in [lease for leases in self._leases.values() for lease in leases]:
            if reason := self._objection(lease):
                lease.dismiss(reason)
            await trio.lowlevel.checkpoint()

    def _objection(self, lease: Lease) -> str:
        """Why its stream must end, by the rules of now; "" if it may go on."""
        if lease.rules == self.rules or lease.is_over:
            return ""
        token = lease.identity.token
        try:
            who = self._anonymous if token is None else self._recall(token)
        except RequestError as error:
            reason = error.extra.get("reason")
            return reason if reason in ("expired", "revoked") else CHANGED
        asked = None if lease.wanted is None else lease.wanted.filters
        if not (who.admin if asked is None else all(map(who.may_subscribe, asked))):
            return CHANGED
        lease.identity, lease.rules = who, self.rules
        return ""

    def revoke(self, subjects: Iterable[str]) -> None:
        """The state has it that tokens of ``subjects`` were revoked: end their streams."""
        for subject in subjects:
            for lease in list(self._leases.get(subject, ())):
                if self._is_revoked(lease.identity):
                    lease.dismiss("revoked")

    def revoke_all(self) -> None:
        """The state was replaced: there may be revocations of anyone."""
        self.revoke([subject for subject in self._leases if subject is not None])


def _holder(claims: Claims) -> str:
    """What tokens without a subject have in common that allow the same, renewed ones too."""
    allowed = (sorted(claims.publish), sorted(claims.subscribe), claims.admin)
    return f"grants {hashlib.blake2b(repr(allowed).encode(), digest_size=16).hexdigest()}"


def _bearer(authorization: str) -> str:
    """The token of the header field; "" if it has none (RFC 6750 section 2.1)."""
    found = _BEARER.fullmatch(authorization)
    return "" if found is None else found[1]


# A client sends the same field all the time; the same object comes back, with its hash.
_recall_bearer = lru_cache(1024)(_bearer)


def _cookie_token(cookie: str) -> str:
    """The token among a request's cookies (RFC 6265); given twice, it is nobody's."""
    found = [
        value.strip().strip('"')
        for name, _, value in (pair.partition("=") for pair in cookie.split(";"))
        if name.strip() == COOKIE
    ]
    if len(found) > 1:
        raise refuse("malformed", f"The cookie {COOKIE} is given more than once.")
    return found[0] if found else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")


def _tell_counts(text: str, verifier: Verifier) -> None:
    counts = (verifier.secret_count, verifier.key_count)
    log.info(f"{text} secrets=%d public_keys=%d", *counts)


def _tell_dropped(before: frozenset[str], now: frozenset[str]) -> None:
    """One secret takes the place of another without a moment at which both are good."""
    if before and not before & now:
        log.warning(
            "no secret that was in force is in auth.secret_file any more: none of their tokens is "
            "good remedy=%r",
            f"if both were meant, put the line {SEPARATOR} between them",
        )
