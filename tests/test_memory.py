"""What the guide says of memory is what the limits come to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from repl_broker import history, memory, replica, sending, timeline
from repl_broker.cli import main
from repl_broker.config import Config, keys
from repl_broker.memory import content_bytes, memory_bytes, parts
from tests.nodes import configured

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "size-memory.md"
MiB = memory.MiB


def rows(config: Config) -> list[str]:
    """As the page has them."""
    found = [
        f"| {part.what} | {part.bytes / MiB:,.0f} | {bound(part.key)} |" for part in parts(config)
    ]
    return [*found, f"| **all** | **{memory_bytes(config) / MiB:,.0f}** | |"]


def bound(key: str) -> str:
    return f"[`{key}`](../reference/configuration.md#{key.replace('.', '')})" if key else "–"


def test_the_table_of_the_page_is_what_the_defaults_come_to() -> None:
    text = PAGE.read_text()
    assert "\n".join(rows(Config())) in text, "\n" + "\n".join(rows(Config()))


def test_the_example_of_the_page_is_right() -> None:
    (shown,) = re.findall(r"published one at a time: ([\d,]+) MiB", PAGE.read_text())
    content = content_bytes(topics=1000, messages=10_000_000, entries=10_000_000)
    assert shown == f"{content / MiB:,.0f}"
    assert "topics × 1,024 + messages × 18 + entries × 44" in PAGE.read_text()
    assert content_bytes(topics=1, messages=10, entries=100) == 1024 + 180 + 4400


def test_what_is_bounded_elsewhere_is_bounded_so() -> None:
    assert memory.RECENT_BYTES == history.CACHE_BYTES_MAX
    assert memory.MARKS_BYTES == timeline.MARKS_BYTES_MAX
    assert memory.PENDING_BYTES == replica.PENDING_BYTES_MAX
    assert memory.PEERS_BYTES == sending.LOG_BYTES_MAX


@pytest.mark.parametrize("key", [name for name in keys() if "_bytes" in name or name == "limits"])
def test_each_limit_of_bytes_is_counted_or_is_not_of_memory(key: str) -> None:
    """So that a new limit is not forgotten here."""
    of_something_else = {
        *("limits.message_bytes", "limits.batch_bytes"),  # within requests_bytes
        "limits.header_bytes",  # of each connection, for the moment until it is read
        *("limits.storage_bytes", "limits.storage_bytes_per_client"),  # on the disk
        "limits.disk_free_bytes",
    }
    counted = {part.key for part in parts(Config())}
    assert (key in counted) != (key in of_something_else)


def test_a_node_of_a_cluster_needs_more() -> None:
    member = configured(cluster={"secret_file": Path("secret")})
    assert memory_bytes(member) - memory_bytes(Config()) == sending.LOG_BYTES_MAX


def test_config_check_prints_the_sum(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[limits]\nrequests_bytes = "1 GiB"\n')
    done = CliRunner().invoke(main, ["config", "check", str(file)])
    config = configured(limits={"requests_bytes": 1 << 30})
    assert done.exit_code == 0
    assert f"memory: at most {memory_bytes(config) / MiB:,.0f} MiB" in done.output
