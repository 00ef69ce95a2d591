"""Large batches over slow and long links; links.py says more, and does it for longer.

A batch takes its time on such a link, longer than the followers wait for their leader: who
lives shows by what has come of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.cluster.hosts import why_no_namespaces
from tests.cluster.links import cluster_over, publish_large
from tests.required import missing

pytestmark = pytest.mark.process

SECONDS: Final = 8


@pytest.mark.parametrize("mbit", [30, 10])
def test_large_batches_on_a_slow_link_depose_nobody(mbit: int, tmp_path: Path) -> None:
    if why := why_no_namespaces():
        missing(f"no link can be throttled here: {why}")
    with cluster_over(tmp_path, mbit=mbit) as cluster:
        seen = publish_large(cluster, leader=True, seconds=SECONDS)
    print(seen)  # noqa: T201
    assert len(seen.reigns) == 1, seen
    assert {*seen.answers} == {201}, seen


def test_large_batches_on_a_long_link_depose_nobody(tmp_path: Path) -> None:
    with cluster_over(tmp_path, delay_ms=200) as cluster:
        # One at a time: the three nodes share a disk, and answers wait for it as well.
        seen = publish_large(cluster, leader=True, seconds=SECONDS, streams=1)
    print(seen)  # noqa: T201
    assert len(seen.reigns) == 1, seen
    assert {*seen.answers} == {201}, seen
