"""``repl-broker demo --nodes 3``: a whole cluster on this machine, and a leader to kill.

    layout.py      who listens where, the folder, the files that the nodes are told by
    node.py        one node's process; it ends with the supervisor, however that ends
    supervisor.py  the supervisor: starts the nodes, watches who leads, kills, starts again
    control.py     what the page's buttons call: on loopback, with a token

None of it is part of an ordinary node.
"""

from __future__ import annotations
