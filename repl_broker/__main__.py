"""``python -m repl_broker`` is the ``repl-broker`` command, and so is the script of that name.

What a command needs takes a tenth of a second to load. A SIGHUP that asks a node for its
configuration may come in that time, and would end the process: for ``serve`` it waits from
the first line on, until the node listens to it (daemon.py).
"""

import signal
import sys

__all__ = ["main"]


def hold_back_reloads(arguments: list[str]) -> None:
    """For a node alone: any other command ends with its terminal."""
    if next((each for each in arguments if not each.startswith("-")), "") == "serve":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


hold_back_reloads(sys.argv[1:])

from repl_broker.cli import main  # noqa: E402  that is what takes the time

if __name__ == "__main__":
    main()
