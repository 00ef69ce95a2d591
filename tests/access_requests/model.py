"""Who may do what: a few lines, which share no code with what they judge."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


@lru_cache(100_000)
def matches(pattern: str, topic: str) -> bool:
    head, _, rest = pattern.partition(".")
    name, _, others = topic.partition(".")
    if head == ">":
        return True
    return head in ("*", name) and (matches(rest, others) if rest and others else rest == others)


class Holder(NamedTuple):
    """What somebody may do."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    admin: bool = False

    def may_publish(self, topic: str) -> bool:
        return self.admin or any(matches(each, topic) for each in self.publish)

    def may_read(self, pattern: str) -> bool:
        # ``0`` stands for any token: no grant and no topic here has it.
        stem = pattern.replace("*", "0")
        examples = [stem[:-1] + end for end in ("0", "0.0")] if stem.endswith(">") else [stem]
        return self.admin or any(
            all(matches(each, example) for example in examples) for each in self.subscribe
        )

    def may_see(self, topic: str) -> bool:
        return self.may_publish(topic) or self.may_read(topic)


def is_topic(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name, re.ASCII) is not None


def is_filter(text: str) -> bool:
    return is_topic(re.sub(r"(?:^|(?<=\.))(?:\*(?=\.|$)|>$)", "x", text))


class Wish(NamedTuple):
    """What a request asks for, whatever its spelling is."""

    publish: tuple[str, ...] = ()  # topics
    read: tuple[str, ...] = ()  # filters
    see: tuple[str, ...] = ()  # topics
    administer: bool = False

    def is_granted(self, holder: Holder | None) -> bool:
        """``holder`` is None for credentials that count for nothing."""
        return holder is not None and (
            all(is_topic(each) and holder.may_publish(each) for each in self.publish)
            and all(is_filter(each) and holder.may_read(each) for each in self.read)
            and all(is_topic(each) and holder.may_see(each) for each in self.see)
            and (holder.admin or not self.administer)
        )
