"""Event streams without Quart: the request is answered, and the fan-out gets the socket.

Same requests, same answers as ``events.Events``: what may be asked for is read by
the same functions. Once the head of the answer is on its way there is no
request any more, no connection of the door's and no task; there is a reader of
the fan-out's (fanout.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from repl_broker.access import Asking
from repl_broker.broker import Broker
from repl_broker.config import Config
from repl_broker.errors import RequestError
from repl_broker.fanout import Fanout
from repl_broker.subscription import Subscription
from repl_broker.trace import current_id
from repl_broker.web import access
from repl_broker.web.browsers import admits_read
from repl_broker.web.counts import RequestCounts
from repl_broker.web.events import PATH, open_subscription
from repl_broker.web.head import EventsHead
from repl_broker.web.problems import note_failure
from repl_broker.web.shell import Answer, Shell, refusal
from repl_broker.web.tcp import Transport

__all__ = ["Streams"]

SHORT_QUERY_BYTES: Final = 1024  # of a stream that is opened at once


class Streams:
    """Opens the event streams of all connections of a node, for ``fanout`` to serve."""

    def __init__(self, broker: Broker, fanout: Fanout, config: Config) -> None:
        self.fanout: Final = fanout
        self._broker = broker
        self._shell = Shell(config.http.cors_origins)
        self._log_access = config.http.access_log
        self.requests: Final = RequestCounts()

    def reload(self, config: Config) -> None:
        """Hold requests that come from now on to another configuration."""
        self._shell.origins = config.http.cors_origins
        self._log_access = config.http.access_log

    def admits(self, head: EventsHead, client: str) -> bool:
        """Whether the host is one that the node serves. If not, Quart says so."""
        broker = self._broker
        return admits_read(broker.access, head.credentials, broker.notices, client)

    def open(self, head: EventsHead, transport: Transport, peer: str, client: str) -> Answer | None:
        """Give the socket to the fan-out, and None; or say why there is no stream.

        It counts in the share of ``client``."""
        started = trio.current_time()
        try:
            subscription = self._subscribe(head, Asking(head.credentials, client))
        except RequestError as error:
            answer = refusal(error, self._broker.refusals)
        except Exception as error:  # noqa: BLE001  it is logged, and the client told
            failure = RequestError("internal_error", note_failure("GET", PATH, error))
            answer = refusal(failure, self._broker.refusals)
        else:
            ended = None
            if self._log_access:
                ended = partial(self._note, "200", started, peer, current_id(), client)
            self.requests.add("GET", PATH, 200)
            self._hand_over(head, transport, subscription, ended, client)
            return None
        self.requests.add("GET", PATH, answer.status)
        if self._log_access:
            self._note(str(answer.status), started, peer, current_id(), client)
        return answer

    async def open_in_turn(
        self, head: EventsHead, transport: Transport, peer: str, client: str
    ) -> Answer | None:
        """``open``; one with very many or long filters takes turns with all long work."""
        if len(head.query) <= SHORT_QUERY_BYTES:
            return self.open(head, transport, peer, client)
        return await self._broker.turnstile.give(
            lambda turn: self._open_unless_gone(head, transport, peer, client)
        )

    def _open_unless_gone(
        self, head: EventsHead, transport: Transport, peer: str, client: str
    ) -> Answer | None:
        if transport.socket.fileno() == -1:  # its place was somebody else's before its turn came
            return None
        return self.open(head, transport, peer, client)

    def encode(self, head: EventsHead, answer: Answer, *, last: bool) -> bytes:
        """The answer as it is sent; ``last`` announces that the connection ends."""
        return self._shell.encode(answer, head.origin, last=last)

    def _subscribe(self, head: EventsHead, asking: Asking) -> Subscription:
        given = () if head.last_event_id is None else (head.last_event_id,)
        return open_subscription(self._broker, head.query, given, asking)

    def _hand_over(
        self,
        head: EventsHead,
        transport: Transport,
        subscription: Subscription,
        ended: Callable[[], None] | None,
        client: str,
    ) -> None:
        begins = self._shell.stream_head(head.origin, last=head.close)
        place, transport.place = transport.place, None
        leave = None if place is None else place.leave
        reader = self.fanout.adopt(transport.detach(), subscription, begins, _both(ended, leave))
        if place is not None:
            place.count_for(client)
            place.become_stream(partial(self.fanout.shed, reader))

    def _note(self, status: str, started: float, peer: str, request_id: str, client: str) -> None:
        access.note("GET", PATH, status, started, peer, request_id=request_id, client=client)


def _both(
    first: Callable[[], None] | None, second: Callable[[], None] | None
) -> Callable[[], None] | None:
    if first is None or second is None:
        return first or second

    def call() -> None:
        first()
        second()

    return call
