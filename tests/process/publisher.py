"""Publishers that know afterwards what they were promised, whatever happened in between.

A Request's fate is one of three. Acknowledged: 201, so it must be kept. Refused:
it must not be. Unknown: the connection broke or the answer was 504, so it may be
kept, whole, or not. With an Idempotency-Key a request is repeated until it is
acknowledged, so that its fate is always known.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from tests.process.node import (
    JSON,
    NDJSON,
    WAIT_SECONDS_MAX,
    Answer,
    Broken,
    Client,
    Node,
    sequence,
)

ACKNOWLEDGED: Final = "acknowledged"
REFUSED: Final = "refused"
UNKNOWN: Final = "unknown"


@dataclass(slots=True)
class Request:
    """One publish: its messages as (topic, data), and what came of it."""

    path: str
    media_type: str
    body: bytes
    messages: list[tuple[str, Any]]
    key: str | None
    fate: str = UNKNOWN
    first_answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_seq(self) -> int:
        return sequence(self.first_answer.get("first_id") or self.first_answer["id"])

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.messages) - 1

    def send(self, client: Client) -> Answer:
        headers = {"Idempotency_Key": self.key} if self.key else {}
        answer = client.request(
            "POST", self.path, self.body, Content_Type=self.media_type, **headers
        )
        if answer.status == 201:
            self._acknowledge(answer)
        elif answer.status == 503:
            assert answer.json["code"] == "shutting_down", answer
            self.fate = REFUSED
        else:
            assert answer.status == 504, answer
            assert answer.json["code"] == "outcome_unknown", answer
        return answer

    def _acknowledge(self, answer: Answer) -> None:
        if self.fate == ACKNOWLEDGED:  # a repeat has the answer of the first
            assert answer.json == self.first_answer, (answer, self)
            assert answer.headers.get("idempotent-replayed") == "true", answer
        self.fate, self.first_answer = ACKNOWLEDGED, answer.json
        if "last_id" in answer.json:
            assert answer.json["count"] == len(self.messages), (answer, self)
            assert sequence(answer.json["last_id"]) == self.last_seq, (answer, self)


Make = Callable[["Publisher"], Request]


class Publisher:
    """Publishes what ``make`` makes, one request at a time, on a connection that it renews.

    Messages say who sent them and where they belong: ``{"p": publisher, "n":
    request, "i": place in it}``.
    """

    def __init__(self, number: int, make: Make, seed: str, *, keyed: bool = False) -> None:
        self.number = number
        self.keyed = keyed
        self.random = random.Random(f"{seed} {number}")
        self.requests: list[Request] = []
        self.repeats = 0  # of requests that were acknowledged already
        self._make = make

    def run(self, node: Node, up: threading.Event, end: threading.Event) -> None:
        """Publish at full speed until ``end``, and while the node is not ``up`` wait for it."""
        while not end.is_set():
            assert up.wait(WAIT_SECONDS_MAX), "the node came back"
            with Client(node) as client:
                try:
                    self._repeat(client)
                    while not end.is_set():
                        self.publish(client)
                except Broken:
                    continue
        for request in self.requests[-1:]:
            if self.keyed and request.fate == UNKNOWN:
                with Client(node) as client:
                    request.send(client)

    def _repeat(self, client: Client) -> None:
        """After a crash: the newest with a key are sent again, acknowledged or not."""
        for request in self.requests[-2:] if self.keyed else ():
            self.repeats += request.fate == ACKNOWLEDGED
            request.send(client)

    def publish(self, client: Client) -> Request:
        """Make one request and send it. What it sent is known even if this raises."""
        request = self._make(self)
        self.requests.append(request)
        request.send(client)
        return request

    # --- what they make ---

    def _data(self, place: int) -> dict[str, Any]:
        size = self.random.choice([0, 10, 200, 200, 4000])
        return {"p": self.number, "n": len(self.requests), "i": place, "pad": "x" * size}

    def _key(self) -> str | None:
        return f"key-{self.number}-{len(self.requests)}" if self.keyed else None

    def single(self, topic: str) -> Request:
        """One message; now and then one that fills many pages of the store."""
        data = self._data(0)
        if self.random.random() < 0.01:
            data["pad"] = "x" * 200_000
        path = f"/v1/topics/{topic}/messages"
        return Request(path, JSON, json.dumps(data).encode(), [(topic, data)], self._key())

    def batch(self, topic: str) -> Request:
        """1 to 50 messages to one topic."""
        many = [self._data(place) for place in range(self.random.randint(1, 50))]
        body = b"\n".join(json.dumps(data).encode() for data in many)
        path = f"/v1/topics/{topic}/messages"
        return Request(path, NDJSON, body, [(topic, data) for data in many], self._key())

    def across(self, *topics: str) -> Request:
        """1 to 50 messages to several topics."""
        count = self.random.randint(1, 50)
        many = [(self.random.choice(topics), self._data(place)) for place in range(count)]
        lines = [json.dumps({"topic": topic, "data": data}).encode() for topic, data in many]
        return Request("/v1/messages", NDJSON, b"\n".join(lines), many, self._key())


def check_fates(
    requests: Sequence[Request], messages: Sequence[Mapping[str, Any]], *, trimmed: str = ""
) -> None:
    """Hold what is kept to what was promised.

    Acknowledged: kept, once, at the places that were told. Unknown: kept whole,
    or not at all. Refused: not kept. Of the topic ``trimmed`` some may be gone.
    """
    by_data = {json.dumps(message["data"]): message for message in messages}
    assert len(by_data) == len(messages), "no two messages are the same one, kept twice"
    for request in requests:
        found = [by_data.get(json.dumps(data)) for _, data in request.messages]
        if request.fate == ACKNOWLEDGED:
            first = request.first_seq
        elif any(found):
            assert request.fate == UNKNOWN, request
            assert found[0] is not None, request
            first = sequence(found[0]["id"])
        else:
            continue
        for seq, (topic, _), message in zip(count(first), request.messages, found, strict=False):
            if topic == trimmed and message is None:
                continue
            assert message is not None, (seq, request)
            assert (sequence(message["id"]), message["topic"]) == (seq, topic), (message, request)
            assert message["time"] == request.first_answer.get("time", message["time"])
