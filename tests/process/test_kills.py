"""Some kills of a node with each kind of bad disk; kills.py says what is checked after each.

As many as you like: ``python -m tests.process.kills --kind slow --kills 200``.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import pytest

from tests.process.disk import compiled
from tests.process.kills import patient
from tests.required import need_program

pytestmark = pytest.mark.process

ROUNDS: Final = 2


@pytest.mark.parametrize("kinds", [("slow", "lies"), ("full", "fails")], ids=" ".join)
def test_what_was_promised_holds_when_a_node_is_killed_again_and_again_whose_disk(
    kinds: tuple[str, ...], tmp_path: Path
) -> None:
    library = compiled(tmp_path, need_program("cc", "gcc", "clang"))
    seed = secrets.token_hex(4)
    print(f"seed={seed}")  # noqa: T201

    with patient(tmp_path, library, seed) as one:
        for kind in kinds * ROUNDS:
            one.suffer(kind)
