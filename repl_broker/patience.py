"""How long a piece of work may be: whoever does it looks after each step, of some 0.2 ms at most.

The turnstile's ``Turn`` is one, by a clock. ``Looks`` is for a few steps, before
it is worth to queue, and for work that has to be done in one go.
"""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["ENDLESS", "Looks", "Patience"]


class Patience(Protocol):
    """It is not over at the first look, so that each piece does one step."""

    @property
    def is_over(self) -> bool:
        """Whether the piece is to end, once it has done something."""
        ...


class Looks:
    """Over after this many looks."""

    __slots__ = ("_left",)

    def __init__(self, looks: float) -> None:
        self._left = looks

    @property
    def is_over(self) -> bool:
        self._left -= 1
        return self._left < 0


ENDLESS: Final = Looks(float("inf"))
