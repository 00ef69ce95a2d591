"""The audit line of a change that is refused before the broker is asked (audit.py).

    browsers.py, guard.py, a view that cannot read its request ── problem ── here
    broker.py ── has written the line itself

All that refuses is behind this: each request that would change something, and is answered
with a problem, has its line. What those cause who may change nothing is joined into counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quart import Response, g, request
from quart_trio import QuartTrio

from repl_broker.access import Access
from repl_broker.audit import NOTED, note
from repl_broker.errors import RequestError
from repl_broker.web.guard import address_here, credentials

__all__ = ["ACTIONS", "register"]

UNREAD: Final = "unread"  # the target that a body names, which nobody has looked at

# The changes that the audit is about, as the broker calls them.
ACTIONS: Final[Mapping[tuple[str, str], str]] = {
    ("POST", "/v1/topics"): "topic.create",
    ("DELETE", "/v1/topics"): "topic.delete_matching",
    ("PUT", "/v1/topics/<topic>"): "topic.set",
    ("DELETE", "/v1/topics/<topic>"): "topic.delete",
    ("DELETE", "/v1/tokens/<subject:sub>"): "tokens.revoke",
    ("POST", "/v1/cluster/members"): "member.add",
    ("DELETE", "/v1/cluster/members/<member>"): "member.remove",
    ("POST", "/v1/cluster/leader"): "leader.move",
}


def register(app: QuartTrio, access: Access) -> None:
    """Before anything of ``app`` that refuses requests."""

    async def begin() -> None:
        NOTED.set(False)

    async def end(response: Response) -> Response:
        outcome = g.get("problem")
        if outcome is not None and not NOTED.get() and (action := _action()):
            forced = action == "member.remove" and request.args.get("force") == "true"
            note(
                action,
                _target(),
                subject=_subject(access),
                address=address_here(),
                outcome=outcome,
                seldom=False,
                forced=forced,
            )
        return response

    app.before_request(begin)
    app.after_request(end)


def _action() -> str | None:
    rule = request.url_rule
    return None if rule is None else ACTIONS.get((request.method, rule.rule))


def _target() -> str:
    if request.view_args:
        return str(next(iter(request.view_args.values())))
    return UNREAD if request.method == "POST" else request.args.get("match", "")


def _subject(access: Access) -> str:
    """Whose credentials they are, also where another's page has a browser send them."""
    try:
        return access.identify(credentials(), write=False).name
    except RequestError:
        return "unknown"
