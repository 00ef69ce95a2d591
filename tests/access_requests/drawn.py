"""Requests, drawn at random. A seed and a number give the same request again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from random import Random
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from tests.access_requests.model import Holder, Wish, matches
from tests.signing import claims, grants, hs256, unsigned

ANONYMOUS: Final = Holder(("wall", "open.>"), ("open.>", "news.*"))
ADMIN: Final = Holder(admin=True)
TOPICS: Final = (
    *("a.t", "a.u", "a.t.x", "a.t.y", "a.t.x.y", "a", "b.t", "b.secret", "b", "A.t", "a-t", "a_t"),
    *("open.1", "open.2.x", "openx", "news.x", "news.x.y", "news", "wall", "wall.x", "secret"),
    *("secret.a.t", "t.a", "t"),
)
GRANTS: Final = (
    *("a.t", "a.*", "a.>", "a.t.*", "a.*.x", "a.t.>", "*.t", "b.*", "b.t", "news.>", "*", "*.*"),
    *("a.*.*.y", "wall.>", "t", "A.*", "a-t", "openx", "b", ">"),
)
FILTERS: Final = (
    *TOPICS,
    *GRANTS,
    "*.>",
    "*.*.>",
    "a.*.>",
    "open.>",
    "open.*",
    "news.*",
    "secret.>",
)
RETENTION: Final = {"messages": 4, "seconds": 86_400, "bytes": 1 << 20}
LIFE_SECONDS: Final = 20 * 3600  # of tokens: no run takes as long
SCRATCH: Final = "scratch."  # below it an admin creates and deletes
Drawn = tuple[str, str, Wish, bytes, dict[str, Any]]
NDJSON: Final = "application/x-ndjson"


class Credential(NamedTuple):
    """A token, and what it is worth: None is nothing."""

    token: str
    holder: Holder | None


class Request(NamedTuple):
    """One request and what it means."""

    number: int
    way: str  # through the door: in place where that can be, or all by Quart
    role: int  # 0: the leader
    method: str
    target: str
    fields: tuple[str, ...]
    body: bytes
    holder: Holder | None
    wish: Wish
    # What it publishes if it is granted, and what then must be its status; 0: whatever.
    done: int = 0
    data: tuple[tuple[str, str], ...] = ()  # topic, and the id of the datum
    creates: str = ""

    @property
    def is_granted(self) -> bool:
        return self.wish.is_granted(self.holder)

    def encode(self, host: str) -> bytes:
        head = [f"{self.method} {self.target} HTTP/1.1", f"Host: {host}"]
        fields = [field.replace("HOST", host) for field in self.fields]
        return "\r\n".join([*head, *fields, "", ""]).encode("latin-1") + self.body


def marker(topic: str) -> str:
    """What each datum of a topic has in it, and nothing else has."""
    return f"mk{Random(f'marker {topic}').getrandbits(40):010x}z"


def datum(topic: str, identity: str) -> str:
    return json.dumps({"id": identity, "mark": marker(topic)})


def credentials(random: Random) -> list[Credential]:
    """Tokens of all kinds. Those of the subject ``gone`` are revoked by the world."""
    found = [
        Credential(_token(ADMIN, "root"), ADMIN),
        Credential(_token(Holder(), "empty"), ANONYMOUS),
    ]
    for number in range(40):
        size = random.choice((1, 1, 2, 3, 5))
        holder = Holder(
            tuple(random.choices(GRANTS[:-1], k=random.randrange(size + 1))),
            tuple(random.choices(GRANTS[:-1], k=size)),
        )
        found.append(Credential(_token(holder, f"s{number % 7}"), _with_anyones(holder)))
    for number in range(4):
        many = tuple(f"x.{number}.{n}.*.>" for n in range(120)) + GRANTS[number : number + 3]
        holder = Holder(many, many[60:])
        found.append(Credential(_token(holder, "many"), _with_anyones(holder)))
    now = int(time.time())
    wide = claims(
        repl_broker=grants((">",), (">",), admin=True), sub="root", exp=now + LIFE_SECONDS
    )
    right = hs256(wide)
    head, _, signature = _token(Holder(("a.t",), ("a.t",)), "ann").split(".")
    worthless = (
        hs256(wide | {"exp": now - 60}), hs256(wide | {"nbf": wide["exp"] - 1}), unsigned(wide),
        hs256(wide, b"x" * 32), f"{head}.{right.split('.')[1]}.{signature}", right[:-2],
        f"{right}x", "x", _token(Holder((">",), (">",)), "gone"), hs256({**wide, "aud": [None]}),
    )  # fmt: skip
    return found + [Credential(text, None) for text in worthless]


def _token(holder: Holder, subject: str) -> str:
    granted = grants(holder.publish, holder.subscribe, admin=holder.admin)
    return hs256(claims(repl_broker=granted, sub=subject, exp=int(time.time()) + LIFE_SECONDS))


def _with_anyones(holder: Holder) -> Holder:
    return Holder(holder.publish + ANONYMOUS.publish, holder.subscribe + ANONYMOUS.subscribe)


class Drawing:
    """One request being drawn."""

    def __init__(self, seed: int, number: int, known: Sequence[Credential]) -> None:
        self.number = number
        self._random = Random(f"{seed} {number}")
        self._known = known
        self._fields: list[str] = []
        self._query: list[str] = []
        self._holder: Holder | None = ANONYMOUS
        self._is_plain = True  # in the spelling that everybody uses

    def draw(self) -> Request:
        choose = self._random.choice
        way, role = choose(("door", "quart")), choose((0, 1))
        kinds = (
            *(self._publish,) * 5, *(self._publish_many,) * 3, *(self._history,) * 4,
            *(self._follow,) * 6, self._show, self._show, *(self._list,) * 2, self._administer,
            self._administer, self._other,
        )  # fmt: skip
        method, path, wish, body, more = choose(kinds)()
        target = path + ("?" + "&".join(self._query) if self._query else "")
        done = more.get("done", 0) if self._is_plain else 0
        data, creates = tuple(more.get("data", ())), more.get("creates", "")
        return Request(
            self.number, way, role, method, target, tuple(self._fields), body, self._holder, wish,
            done, data, creates,
        )  # fmt: skip

    # --- parts ---

    @property
    def _publishes(self) -> tuple[str, ...]:
        return (self._holder or ANONYMOUS).publish

    @property
    def _reads(self) -> tuple[str, ...]:
        return (self._holder or ANONYMOUS).subscribe

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _odd(self, share: float) -> bool:
        """Whether it is spelled unlike others do; then it may be refused whatever the rights."""
        odd = self._chance(share)
        self._is_plain = self._is_plain and not odd
        return odd

    def _identify(self, *, writes: bool, in_query: bool = False) -> None:
        """Credentials: one, as a rule; a header beats the query beats the cookie."""
        random = self._random
        places = ["header"] * 6 + ["none"] * 2 + ["cookie"] * 2 + ["query"] * 2 * in_query
        given = {random.choice(places)}
        if self._chance(0.1):
            given |= {random.choice(places), random.choice(places)}
        holders: dict[str, Holder | None] = {}
        if "cookie" in given:
            holders["cookie"] = self._cookie(writes=writes, alone=given == {"cookie"})
        if "query" in given:
            one = random.choice(self._known)
            self._query.append(f"access_token={quote(one.token)}")
            holders["query"] = one.holder
            if self._odd(0.05):
                self._query.append(f"access_token={quote(random.choice(self._known).token)}")
                holders["query"] = None
        if "header" in given:
            holders["header"] = self._header()
        for place in ("cookie", "query", "header"):
            self._holder = holders.get(place, self._holder)
        if "query" in holders and holders["query"] is None:
            self._is_plain = False

    def _header(self) -> Holder | None:
        one = self._random.choice(self._known)
        scheme = self._random.choice(("Bearer", "Bearer", "bearer", "BEARER "))
        self._fields.append(f"Authorization: {scheme} {one.token}")
        if self._odd(0.03):
            other = self._random.choice(self._known)
            self._fields.append(f"Authorization: Bearer {other.token}")
            return None
        if self._odd(0.03):
            self._fields[-1] = self._random.choice(
                (f"Authorization: Basic {one.token}", f"Authorization: Bearer {one.token} x",
                 f"Authorization: {one.token}", "Authorization: Bearer")
            )  # fmt: skip
            return None
        return one.holder

    def _cookie(self, *, writes: bool, alone: bool) -> Holder | None:
        one = self._random.choice(self._known)
        value = f'"{one.token}"' if self._chance(0.1) else one.token
        self._fields.append(f"Cookie: a=b; repl_broker_token={value}; c=d")
        if self._odd(0.05):
            other = self._random.choice(self._known)
            self._fields[-1] += f"; repl_broker_token={other.token}"
            return None
        if not writes:
            return one.holder
        if not alone:  # whether another page may ask is the cookie's affair
            return None
        origin = self._random.choice(("http://HOST", "http://HOST", "http://evil.example", ""))
        if origin:
            self._fields.append(f"Origin: {origin}")
        return one.holder if "HOST" in origin else None

    def _spelled(self, text: str, *, share: float = 0.15) -> str:
        """It, in the one or another spelling of a URL that means the same."""
        if not self._chance(share):
            return quote(text, safe="*>." if self._chance(0.2) else ".")
        return "".join(
            f"%{ord(c):02{self._random.choice('xX')}}" if self._chance(0.4) else quote(c, safe="*.")
            for c in text
        )

    def _topic(self, granted: Sequence[str]) -> str:
        """A topic's name, granted as often as not; some that are none, and some that are new."""
        if self._odd(0.06):
            base = self._random.choice(TOPICS)
            return self._random.choice(
                (f"{base}.", f".{base}", base.replace(".", ".."), f"{base}\0", f"{base} ", "*",
                 f"{base}\n", f"a.t,{base}", f"{base}\u200b", "a.*", "a.>", f"../{base}", ">",
                 f"{base}/x", f"{base}%2e", f"{base};a", "x" * 256, f"\uff41{base}")
            )  # fmt: skip
        if self._odd(0.04):
            return f"{self._random.choice(TOPICS)}.new{self.number}"
        near = [topic for topic in TOPICS if any(matches(each, topic) for each in granted)]
        return self._random.choice(near if near and self._chance(0.5) else TOPICS)

    # --- kinds ---

    def _publish(self) -> Drawn:
        method = "POST" if not self._odd(0.03) else self._random.choice(("post", "PATCH", "Post"))
        self._identify(writes=True)
        topic, batch = self._topic(self._publishes), self._chance(0.4)
        data = [
            (topic, f"{self.number}.{n}") for n in range(self._random.randint(1, 4) if batch else 1)
        ]
        body = "\n".join(datum(*each) for each in data).encode()
        self._body_fields(NDJSON if batch else "application/json", body)
        if self._odd(0.02):
            self._query.append("topic=" + quote(self._random.choice(TOPICS)))
        path = f"/v1/topics/{self._spelled(topic)}/messages{'/' if self._odd(0.02) else ''}"
        return method, path, Wish(publish=(topic,)), self._sent(body), {"done": 201, "data": data}

    def _publish_many(self) -> Drawn:
        self._identify(writes=True)
        near = [t for t in TOPICS if any(matches(each, t) for each in self._publishes)] or TOPICS
        topics = [self._random.choice(near) for _ in range(self._random.randint(1, 5))]
        if self._chance(0.4):
            topics[self._random.randrange(len(topics))] = self._topic(())
        data = [(topic, f"{self.number}.{n}") for n, topic in enumerate(topics)]
        lines = []
        for topic, identity in data:
            name = json.dumps(topic)
            if self._chance(0.2):
                name = '"' + "".join(f"\\u{ord(c):04x}" for c in topic) + '"'
            line = f'{{"topic":{name},"data":{datum(topic, identity)}}}'
            if self._odd(0.03):
                line = line.replace('{"topic"', self._random.choice(
                    ('{"topic":"wall","topic"', '{"top\\u0069c":"wall","topic"', '{"x":1,"topic"')
                ), 1)  # fmt: skip
                topics.append(">")  # such a line is nothing that anyone may publish
            lines.append(line)
        body = "\n".join(lines).encode()
        self._body_fields(NDJSON, body)
        wish = Wish(publish=tuple(topics))
        return "POST", "/v1/messages", wish, self._sent(body), {"done": 201, "data": data}

    def _body_fields(self, media_type: str, body: bytes) -> None:
        if self._odd(0.02):
            media_type = self._random.choice(("text/plain", "application/JSON; charset=latin-1"))
        self._fields.append(f"Content-Type: {media_type}")
        self._is_chunked = self._chance(0.05)
        sized = f"Content-Length: {len(body)}"
        self._fields.append("Transfer-Encoding: chunked" if self._is_chunked else sized)
        if self._chance(0.15):
            self._fields.append(f"Idempotency-Key: key-{self.number}")

    def _sent(self, body: bytes) -> bytes:
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if self._is_chunked else body

    def _history(self) -> Drawn:
        self._identify(writes=False)
        topic = self._topic(self._reads)
        if self._chance(0.5):
            self._query.append(self._random.choice(("limit=1", "limit=1000", "after=earliest")))
        if self._odd(0.03):
            self._query.append(self._random.choice(("topic=a.t", "limit=0", "after=x", "limit=2")))
        path = f"/v1/topics/{self._spelled(topic)}/messages"
        return self._reading(), path, Wish(read=(topic,)), b"", {"done": 200}

    def _follow(self) -> Drawn:
        self._identify(writes=False, in_query=True)
        filters = [self._filter() for _ in range(self._random.choice((1, 1, 1, 2, 3, 6)))]
        if self._chance(0.15):  # repeats, up to the limit and beyond
            filters += [self._filter()] * self._random.choice((1, 126, 127, 128, 129, 200))
            self._is_plain = False
        if self._chance(0.3):
            self._random.shuffle(filters)
        self._query += [f"topic={self._spelled(each)}" for each in filters]
        if self._chance(0.75):
            self._query.append("after=earliest")
        if self._odd(0.03):
            self._query.append(
                self._random.choice(("after=latest", "after=x", "Topic=a.t", "limit=1"))
            )
        self._random.shuffle(self._query)
        if self._odd(0.02):
            self._fields.append(f"Last-Event-ID: {self._random.choice(('earliest', 'x', '1-1'))}")
        return self._reading(), "/v1/events", Wish(read=tuple(filters)), b"", {"done": 200}

    def _filter(self) -> str:
        """One that is granted, as often as not."""
        granted = self._reads
        if granted and self._chance(0.6):
            grant = self._random.choice(granted)
            if self._chance(0.5):
                return grant
            token = self._random.choice(("t", "x", "*", "a"))
            return ".".join(token if part in ("*", ">") else part for part in grant.split("."))
        if self._odd(0.03):
            return self._random.choice(
                ("", "a..t", "a.>.b", ">.a", "a*", "a.t ", "**", "a.t,b", "a\0")
            )
        return self._random.choice(FILTERS)

    def _show(self) -> Drawn:
        self._identify(writes=False)
        topic = self._topic(self._reads + self._publishes)
        path = f"/v1/topics/{self._spelled(topic)}{'/' if self._odd(0.02) else ''}"
        return self._reading(), path, Wish(see=(topic,)), b"", {"done": 200}

    def _list(self) -> Drawn:
        self._identify(writes=False)
        for text in (
            "limit=1000",
            "limit=3",
            "match=" + self._spelled(self._filter()),
            "after=a.t",
        ):
            if self._chance(0.4) and not any(text[:4] == each[:4] for each in self._query):
                self._query.append(text)
        self._is_plain = False  # a match that is no filter is refused
        return self._reading(), "/v1/topics", Wish(), b"", {}

    def _administer(self) -> Drawn:
        """What an admin alone may do. An admin does it where nothing else is."""
        writes = self._chance(0.6)
        self._identify(writes=writes)
        is_admin = self._holder is not None and self._holder.admin
        topic = f"{SCRATCH}{self.number % 20}" if is_admin else self._random.choice(TOPICS)
        retention = json.dumps({"retention": {"messages": 1}})
        member = '{"id":"n9","raft_address":"127.0.0.1:9","http_url":"http://127.0.0.1:9"}'
        wide = self._random.choice((">", "a.>", "*.t", "%3E"))
        writing = (
            ("POST", "/v1/topics", f'{{"name":"{topic}"}}'),
            ("PUT", f"/v1/topics/{self._spelled(topic)}", retention),
            ("DELETE", f"/v1/topics/{self._spelled(topic)}", ""),
            ("DELETE", "/v1/topics?match=" + ("nothing.>" if is_admin else wide), ""),
            ("DELETE", "/v1/tokens/" + ("nobody" if is_admin else "root"), ""),
            ("POST", "/v1/cluster/members", "{}" if is_admin else member),
            ("POST", "/v1/cluster/leader", "{}" if is_admin else '{"id":"n2"}'),
            ("DELETE", "/v1/cluster/members/" + ("n9" if is_admin else "n2"), ""),
        )
        reading = (
            ("GET", "/v1/cluster", ""), ("HEAD", "/v1/cluster", ""), ("GET", "/metrics", ""),
            ("HEAD", "/ui/feed", ""), ("GET", f"/ui/feed?past=1&topic={topic}", ""),
        )  # fmt: skip
        method, path, body = self._random.choice(writing if writes else reading)
        if body:
            self._fields += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        creates = topic if is_admin else ""
        return method, path, Wish(administer=True), body.encode(), {"creates": creates}

    def _other(self) -> Drawn:
        """What is open to everyone, and what is not there; of messages it tells nothing."""
        method = self._random.choice(("GET", "HEAD", "OPTIONS", "TRACE", "DELETE", "QUERY"))
        path = self._random.choice((
            "/healthz", "/readyz", "/openapi.json", "/docs", "/client.js", "/ui/", "/ui", "/v1",
            "/v1/topics/a.t/messages", "/v1/events?topic=%3E", "/v1/topics", "/v1/messages",
            "//v1/events?topic=%3E", "/v1/./events?topic=%3E", "/V1/events?topic=%3E",
            "/v1/events/?topic=%3E", "/v1/events%3Ftopic=%3E", "/ui/../metrics", "/metrics/",
            "/ui/%2e%2e/metrics", "/metrics;x", "/v1/topics/a.t//messages", "/v1//topics",
        ))  # fmt: skip
        is_call = method in ("GET", "HEAD") or (method == "DELETE" and path == "/v1/topics")
        if is_call and path.startswith(("/v1/topics", "/v1/events")):
            method = "OPTIONS"
        self._is_plain = False
        return method, path, Wish(), b"", {}

    def _reading(self) -> str:
        return "HEAD" if self._chance(0.1) else "GET"
