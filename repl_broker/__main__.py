"""``python -m repl_broker`` is the ``repl-broker`` command."""

from repl_broker.cli import main

main()
