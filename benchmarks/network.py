"""A network of this process's own, in which clients can fall silent.

A client that vanishes without a word, as when a cable is pulled, leaves a server
with a connection on which nothing ever comes. On loopback that takes a packet
filter, hence root; in a network namespace of its own it touches nobody else, and
is gone with the processes that are in it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence

__all__ = ["enter_own_network", "silence", "why_not"]

CLONE_NEWNET = 0x40000000
COMMAND_SECONDS_MAX = 10
RULES = """
add table inet silence
add set inet silence clients { type ipv4_addr; }
add chain inet silence in { type filter hook input priority 0; }
add chain inet silence out { type filter hook output priority 0; }
add rule inet silence in ip saddr @clients drop
add rule inet silence out ip daddr @clients drop
"""


def why_not() -> str:
    """Why there cannot be such a network; empty if there can."""
    if os.geteuid() != 0:
        return "a network of its own needs root"
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if not shutil.which(tool):
            return f"there is no {tool}; on Debian: apt-get install {package}"
    return ""


def enter_own_network() -> str:
    """This thread, and what it starts from now on, are in it. Returns why not; empty if so."""
    if why := why_not():
        return why
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        return f"no network of its own: {os.strerror(ctypes.get_errno())}"
    try:
        _run("ip", "link", "set", "lo", "up")
        _run("nft", "-f", "-", said=RULES)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no packet filter: {getattr(error, 'stderr', None) or error}".strip()
    return ""


def silence(addresses: Sequence[str]) -> None:
    """Nothing that these clients send arrives any more, and nothing reaches them."""
    _run("nft", f"add element inet silence clients {{ {', '.join(addresses)} }}")


def _run(*command: str, said: str = "") -> None:
    subprocess.run(
        command, input=said, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=True
    )
