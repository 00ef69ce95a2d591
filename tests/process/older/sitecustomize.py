"""Makes the node that finds this on its path one of feature level 1, whose format 0.1 began with.

It knows, and writes, no command of a higher level and no snapshot that has one.
"""

from __future__ import annotations

import sys
from typing import Any

from repl_broker import levels

levels.NEWEST = levels.FIRST  # type: ignore[misc]  # before any other module takes it from there

from repl_broker import capture, wire  # noqa: E402

assert "repl_broker.replica" not in sys.modules
capture.WITH_LEVEL = -1  # type: ignore[misc]  # it is no format
_know = wire._command


def _command(fields: tuple[Any, ...]) -> Any:
    if fields[0] in (wire.NUMBERED, wire.RAISE_LEVEL):
        fields = (f"{fields[0]}",)
    return _know(fields)


wire._command = _command
