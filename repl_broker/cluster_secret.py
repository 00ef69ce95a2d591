"""The secret that a cluster's nodes share, or the two while it changes.

``[cluster] secret_file`` has both, with a line ``---`` between: by the first this node
proves to others that it knows the secret, and each is accepted from them. So all nodes come
from one secret to another in three reloads each, and at no moment does one not know another's:

    old             all of them
    old, new        … accept the new one as well, one node after the other
    new, old        … prove the new one
    new             … accept the old one no longer
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from repl_broker.config import Config, is_loopback
from repl_broker.errors import ConfigError
from repl_broker.handshake import stretch
from repl_broker.secret_lines import PLACES, SECRETS_MAX, SEPARATOR, STILL_IN_FORCE, secrets_in

__all__ = ["ClusterSecret", "read_secrets"]

log = logging.getLogger(__name__)

BYTES_MIN: Final = 32
BYTES_MAX: Final = 4096
VALUES_MIN: Final = 8  # different bytes; of 32 hexadecimal digits hardly ever fewer
FILE_BYTES_MAX: Final = SECRETS_MAX * (BYTES_MAX + 2) + len(SEPARATOR) + 2

Take = Callable[[tuple[bytes, ...]], None]


class ClusterSecret:
    """What this node proves to others by, and accepts from them. Raises as ``read_secrets``."""

    def __init__(self, config: Config) -> None:
        self._wanted = read_secrets(config)
        self._changed = trio.Event()
        self._stretched: dict[bytes, bytes] = {}  # by the secrets that they are made of

    def __repr__(self) -> str:
        """Without them."""
        return f"<ClusterSecret of {len(self._wanted)}>"

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Those that are stretched; the first is used. Known once ``load`` has returned."""
        return tuple(self._stretched.values())

    async def load(self) -> None:
        """Make the keys of the secrets, in a thread: 0.1 s each."""
        wanted = self._wanted
        made = dict(self._stretched)
        for secret in wanted:
            if secret not in made:
                made[secret] = await trio.to_thread.run_sync(stretch, secret)
        self._stretched = {secret: made[secret] for secret in wanted}

    def tell(self) -> None:
        """At the start: how many there are."""
        if self._wanted != (b"",):
            log.info("the secret of the cluster was read accepted=%d", len(self._wanted))

    def reload(self, config: Config) -> bool:
        """Read the file again; whether anything has changed, which ``run`` then sees to.

        Raises ConfigError, and then nothing has changed.
        """
        try:
            found = read_secrets(config)
        except ConfigError as error:
            raise ConfigError(f"{error}. {STILL_IN_FORCE}") from None
        if (found == (b"",)) != (self._wanted == (b"",)):
            added = self._wanted == (b"",)
            raise ConfigError(
                f"cluster.secret_file was {'added' if added else 'taken away'}: restart all nodes "
                f"to {'ask for a secret' if added else 'do without a secret'}"
            )
        if found == self._wanted:
            return False
        self._wanted = found
        self._changed.set()
        return True

    async def run(self, take: Take) -> None:
        """Have ``take`` the keys of what a reload has found, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            before = self.keys
            await self.load()
            take(self.keys)
            log.warning(
                "the secret of the cluster has changed accepted=%d proves=%r",
                len(self.keys),
                "the same" if self.keys[:1] == before[:1] else "another",
            )
            if not set(before[:1]) <= set(self.keys):
                log.warning(
                    "the secret that this node has proved is not in cluster.secret_file any more, "
                    "neither as the first nor as the second: nodes that know no other are cut off "
                    "remedy=%r",
                    f"if both were meant, put the line {SEPARATOR} between them",
                )


def read_secrets(config: Config) -> tuple[bytes, ...]:
    """The secrets that the cluster's nodes prove to each other; one that is empty if none is
    needed.

    Raises ConfigError when Raft listens beyond this machine without one, and for one
    that could be guessed: a node that dials a false peer gives it something to try
    guesses on.
    """
    path = config.cluster.secret_file
    if path is None:
        if is_loopback(config.raft.bind.host):
            return (b"",)
        raise ConfigError(
            f"Raft listens at {config.raft.bind}, which other machines may reach: [cluster] "
            "secret_file is needed, with the same secret on every node (for instance from "
            "openssl rand -hex 32)"
        )
    secrets = secrets_in(_read(path), f"[cluster] secret_file: {path}")
    for place, secret in zip(PLACES, secrets, strict=False):
        _check(secret, f"{place} secret" if len(secrets) > 1 else "secret", path)
    return secrets


def _check(secret: bytes, which: str, path: Path) -> None:
    if not BYTES_MIN <= len(secret) <= BYTES_MAX:
        raise ConfigError(
            f"the {which} in {str(path)!r} has {len(secret)} bytes; wanted {BYTES_MIN} to "
            f"{BYTES_MAX:,}, for instance from openssl rand -hex 32"
        )
    if len(set(secret)) < VALUES_MIN:
        raise ConfigError(
            f"the {which} in {str(path)!r} has too few different characters: {len(set(secret))}; "
            f"wanted at least {VALUES_MIN}, and none that can be guessed: make one with "
            "openssl rand -hex 32"
        )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read [cluster] secret_file {str(path)!r}: {error.strerror}"
        ) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(
            f"[cluster] secret_file {str(path)!r} has more than {FILE_BYTES_MAX:,} bytes; a secret "
            f"has {BYTES_MIN} to {BYTES_MAX:,}, for instance from openssl rand -hex 32"
        )
    return data
