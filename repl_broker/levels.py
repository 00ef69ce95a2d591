"""Feature levels: what the nodes of a cluster may write into its log.

A command that only newer versions know would end the older nodes that are to apply it.
So a cluster has a *level*, kept in its state: no command is proposed that needs more.
The leader raises it, by a command, once every member is known to run a version that
has the higher level; until then each node can go back to the version that it had.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST", "NEWEST", "NUMBERED", "PUBLISHERS", "TWO_CLOCKS"]

FIRST: Final = 1  # what 0.1 began with; whoever says nothing of levels has this one
NUMBERED: Final = 2  # what nodes send on to the leader has numbers (senders.py)
PUBLISHERS: Final = 2  # what a message takes may count for whoever published it
TWO_CLOCKS: Final = 3  # a revocation has the time of two clocks, and is kept (state.py)
NEWEST: Final = TWO_CLOCKS  # what this version has
