"""Readers that come and vanish leave nothing: no open file, connection, stream or channel.

The short form of ``python -m benchmarks churn``, which is run by itself since it
moves into a network of its own, where readers can vanish in silence, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import network

pytestmark = pytest.mark.process

COUNT = 2000
SECONDS_MAX = 150  # it takes some 15, mostly until the silent ones are found dead


def test_nothing_is_left_of_readers_that_come_and_vanish(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "churn", "--count", str(COUNT)]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    vanished = re.search(r"readers: 2,000 \(([0-9,]+) by reset, (\d+) by end, (\d+) ", done.stdout)
    assert vanished, done.stdout
    silent = 0 if network.why_not() else COUNT // 50
    assert int(vanished[3]) == silent
    assert "left: 0 streams, 0 channels" in done.stdout
    assert list(tmp_path.iterdir()) == []
