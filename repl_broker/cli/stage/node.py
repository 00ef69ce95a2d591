"""One node of the demo, as a process of its own: ``python -m repl_broker.cli.stage.node FILE``.

It is what ``serve --config FILE`` runs, and the chat. It ends with the
supervisor, whose end of the pipe at standard input the system closes even when
the supervisor is killed. (Linux's PR_SET_PDEATHSIG would tell of the end of the
*thread* that started the process, and Trio starts processes in threads that do
not last.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from repl_broker import daemon, logs
from repl_broker.cli.demo import PREFIX, chat_folder
from repl_broker.config import load, replace_values
from repl_broker.errors import ReplBrokerError

__all__ = ["BOOTSTRAP", "main"]

BOOTSTRAP: Final = "--bootstrap"
STOP_SECONDS_MAX: Final = 10


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM, or until standard input ends."""
    file, *options = arguments
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    try:
        config = replace_values(load(Path(file)), {"http.drain_seconds": 0})  # it is to be quick
        logs.configure(config.log)
        daemon.run(config, bootstrap=BOOTSTRAP in options, apps={PREFIX: chat_folder()})
    except ReplBrokerError as error:
        raise SystemExit(f"error: {error}") from None


def _end_with_supervisor() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS_MAX)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
