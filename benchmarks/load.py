"""The load generator (load.c), compiled where it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BenchmarkError", "Generator", "Load", "Nats", "Post"]

SOURCE = Path(__file__).with_name("load.c")
RUN_SECONDS_MAX = 120


class BenchmarkError(Exception):
    """A benchmark could not be run, or what came out of it is not to be believed."""


@dataclass(frozen=True, slots=True)
class Post:
    """A request of HTTP that is the same each time."""

    path: str
    body: str
    content_type: str = "application/json"

    def options(self) -> list[str]:
        return ["-u", self.path, "-d", self.body, "-y", self.content_type]


@dataclass(frozen=True, slots=True)
class Nats:
    """Publishes to JetStream, some of them unanswered at a time."""

    subject: str
    in_flight: int = 1  # of one publisher

    def options(self) -> list[str]:
        return ["-P", "jetstream", "-t", self.subject, "-f", str(self.in_flight)]


@dataclass(frozen=True, slots=True)
class Load:
    """One run: subscribers first, then publishers until ``seconds`` or ``requests``."""

    subscribers: int = 0
    publishers: int = 1
    batch: int = 1
    message_bytes: int = 200
    seconds: float = 2.0
    requests: int = 1_000_000
    rate: float = 0.0  # requests a second; 0: each publisher as fast as it is answered
    protocol: str = "ours"
    patience_seconds: float = 20.0  # for what is owed when the last was sent
    in_step: bool = False  # the next publish only when every subscriber has the last
    stalled: int = 0  # of the subscribers: they stop reading until the others have everything
    other: Post | Nats | None = None  # what to send to a server that is not ours

    def options(self) -> list[str]:
        pairs = {
            "-c": self.subscribers,
            "-w": self.publishers,
            "-k": self.batch,
            "-b": self.message_bytes,
            "-s": self.seconds,
            "-m": self.requests,
            "-r": self.rate,
            "-P": self.protocol,
            "-l": self.patience_seconds,
            "-z": self.stalled,
        }
        own = [str(part) for pair in pairs.items() for part in pair]
        own += ["-e"] if self.in_step else []
        return own + (self.other.options() if self.other else [])


class Generator:
    """The compiled program. Raises BenchmarkError when there is no compiler."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise BenchmarkError(
                "there is no C compiler (cc), which the load generator needs; "
                "install one, on Debian: apt-get install gcc libc6-dev"
            )
        self._program = folder / "load"
        command = [compiler, "-O2", "-Wall", "-o", str(self._program), str(SOURCE)]
        built = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if built.returncode:
            raise BenchmarkError(f"the load generator does not compile: {built.stderr.strip()}")
        self._runs = 0

    def run(self, port: int, pids: Sequence[int], load: Load) -> dict[str, float]:
        """Figures of one run, on a topic of its own. Raises BenchmarkError if anything was lost.

        ``pids`` are the servers whose CPU is counted.
        """
        self._runs += 1
        command = [str(self._program), "-p", str(port)]
        command += [part for pid in pids for part in ("-j", str(pid))]
        command += ["-t", f"bench-{self._runs}", *load.options()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"no end after {RUN_SECONDS_MAX} s: {load}") from None
        if done.returncode:
            raise BenchmarkError(f"{load}: {done.stderr.strip()}")
        figures: dict[str, float] = json.loads(done.stdout)
        return figures
