"""A fuzzer holds the node to what it says of itself in /openapi.json.

schemathesis runs in a process of its own, with the configuration that
docs/reference/http-api.md gives for longer runs. The event stream is among the
calls: the fuzzer leaves it after its first event.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import trio
from jsonschema_rs import meta

from tests.contract.client import Node
from tests.contract.conftest import Launch

ROOT = Path(__file__).parents[2]
FUZZ_SECONDS_MAX = 60


async def test_a_fuzzer_finds_nothing_that_is_not_described(launch: Launch, tmp_path: Path) -> None:
    """No 5xx, no undescribed status, media type, header or body; what is valid is accepted."""
    async with launch(seconds_max=FUZZ_SECONDS_MAX) as node:
        found = await trio.run_process(
            [
                sys.executable, "-m", "schemathesis.cli",
                "--config-file", str(ROOT / "tests" / "contract" / "schemathesis.toml"),
                "--no-color", "run", f"{node.url}/openapi.json", "--max-examples", "5",
            ],
            cwd=tmp_path,  # it leaves a folder behind
            env=os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"},
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
    assert found.returncode == 0, found.stdout.decode()


async def test_every_schema_of_the_description_is_valid(node: Node) -> None:
    document = (await node.client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    for schema in document["components"]["schemas"].values():
        assert meta.is_valid({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema)
