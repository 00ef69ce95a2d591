"""Each target for a bounded time; the inputs that are the worst for time and memory; the command.

For longer: ``HYPOTHESIS_PROFILE=long ./dev run pytest tests/fuzz``, or one target
with ``python -m tests.fuzz NAME --seconds N``.
"""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.fuzz.inputs import inputs_of
from tests.fuzz.targets import TARGETS

WORST_BYTES = 64 << 10  # as much as a head may have; bodies and frames may have more
SECONDS_MAX = 4.0  # of CPU, while each allocation is traced: most take a hundredth of that
MEMORY_BYTES_MAX = 16 << 20

every_target = pytest.mark.parametrize("name", TARGETS)


@every_target
def test_a_parser_keeps_its_word_whatever_it_is_sent(name: str) -> None:
    target = TARGETS[name]
    share = 1 if target.is_slow else 4

    @settings(max_examples=share * settings().max_examples)
    @given(inputs_of(target))
    def run(data: bytes) -> None:
        target.run(data)

    run()


@every_target
def test_the_seeds_are_taken_as_they_should_be(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


WORST = {
    "brackets": b"[" * WORST_BYTES,
    "objects": b'{"a":' * (WORST_BYTES // 5),
    "an open string": b'"' + b"\\" * WORST_BYTES,
    "stars": b"*." * (WORST_BYTES // 2),
    "tokens": b"a" * WORST_BYTES,
    "lines": b"\n" * WORST_BYTES,
    "returns": b"\r" * WORST_BYTES,
    "data lines": b"data\n" * (WORST_BYTES // 5),
    "escapes": b"%41" * (WORST_BYTES // 3),
    "parameters": b"topic=a&" * (WORST_BYTES // 8),
    "lists in lists": b"\x91" * WORST_BYTES,
    "a list that says it is long": b"\xdd\xff\xff\xff\xff" + b"\xc0" * 100,
    "bytes that say they are long": b"\xc6\xff\xff\xff\xff",
    "a frame that says it is long": b"\x0f\xff\xff\xff",
    "digits": b"1" * WORST_BYTES,
    "members": b"{" + b",".join(b'"%x":1' % n for n in range(6500)) + b',"0":1}',
    "one member again and again": b'{"topic":"a"' + b',"data":1' * (WORST_BYTES // 9) + b"}",
    "a long name": b'{"' + bytes(range(97, 123)) * (WORST_BYTES // 26 - 1) + b'":1}',
    "fields": b"GET / HTTP/1.1\r\n" + b"a:\r\n" * (WORST_BYTES // 4),
    "bad UTF-8": b"\xff" * WORST_BYTES,
    "tables": b"[a.b]\n" * (WORST_BYTES // 6),
    "dotted keys": b"a." * (WORST_BYTES // 2 - 8) + b"a = 1",
}


# The input of the targets of backups says where to change one, and is none. For dotted keys
# tomllib takes 14 s: such a file is the operator's, and its size is bounded.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in sorted(TARGETS)
        for kind in WORST
        if not name.startswith("backups") and (name, kind) != ("toml", "dotted keys")
    ],
)
def test_time_and_memory_are_bounded_for_the_worst(name: str, kind: str) -> None:
    tracemalloc.start()
    try:
        started = time.process_time()
        TARGETS[name].run(WORST[kind])
        assert time.process_time() - started < SECONDS_MAX
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
    finally:
        tracemalloc.stop()


@pytest.mark.process
def test_one_target_is_run_for_as_long_as_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz"]
    done = subprocess.run(
        [*command, "event_ids", "--seconds", "1", "--plain"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert "inputs in 1 s, and nothing was found" in done.stdout
    (tmp_path / "input").write_bytes(b"9f3a1c2b-1")
    done = subprocess.run(
        [*command, "event_ids", str(tmp_path / "input")], capture_output=True, check=True, text=True
    )
    assert "is taken as it should be" in done.stdout
