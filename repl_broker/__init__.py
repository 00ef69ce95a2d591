"""repl-broker: REST in, Server-Sent Events out, ordered and durable."""

__version__ = "0.1.0"
