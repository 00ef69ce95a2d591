"""The busiest topics, and how far streams are behind: of a real node."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from repl_broker.cli import main
from repl_broker.cli.top import SORTS, figures, table
from repl_broker.web import sampler
from tests.process.node import Client, Node, Stream

pytestmark = pytest.mark.process


def top(node: Node, *options: str) -> Result:
    url = f"http://127.0.0.1:{node.port}"
    return CliRunner().invoke(main, ["top", "--url", url, *options])


def test_it_shows_the_busiest_topics_and_the_stream_that_is_furthest_behind(tmp_path: Path) -> None:
    with Node(tmp_path / "data", limits_tail_bytes=100_000) as node:
        node.start()
        with (
            Client(node) as client,
            Stream(node, "busy"),
            Stream(node, "large", receive_buffer_bytes=4096),
        ):
            for _ in range(30):
                assert client.publish("large", b'"' + b"x" * 200_000 + b'"').status == 201
            assert client.publish("calm", b"1").status == 201
            url = f"http://127.0.0.1:{node.port}"
            command = [sys.executable, "-m", "repl_broker", "top", "--once", "--json", "--url", url]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                while process.poll() is None:
                    assert client.publish("busy", b"1").status == 201
                assert process.stdout is not None
                found = json.loads(process.stdout.read())
            first, *others = found["top"]
            assert (first["topic"], first["subscribers"]) == ("busy", 1)
            assert first["rate"] > 1
            assert {row["topic"] for row in others} == {"calm", "large"}
            assert found["published_a_second"] > 1
            assert (found["ready"], found["leader"], found["subscribers"]) == (True, "n1", 2)
            assert found["lagging"] >= 1  # nobody reads the other either
            assert 20 < found["behind_max"] < 1_000_000

            text = top(node, "--once", "--sort", "bytes", "--count", "1").output
            lines = text.splitlines()
            assert lines[2].startswith("streams 2  behind ")
            assert [line.split()[0] for line in lines[4:]] == ["TOPIC", "large"]
            only = json.loads(top(node, "--once", "--json", "--match", "cal").output)
            assert [row["topic"] for row in only["top"]] == ["calm"]
            metrics = client.request("GET", "/metrics").body.decode()
            assert re.search(r'repl_broker_subscribers_behind\{messages="1"\} [12]\.0', metrics)
            assert 'repl_broker_subscribers_behind{messages="10000"}' in metrics


def test_a_node_that_is_not_there_is_an_error_of_one_line() -> None:
    done = CliRunner().invoke(main, ["top", "--url", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "cannot connect" in done.output


def test_it_sorts_by_what_the_dashboard_sorts_by() -> None:
    assert {*SORTS} < {*sampler.SORTS}


def test_the_names_of_topics_steer_no_terminal_and_what_is_not_known_is_a_dash() -> None:
    node = {
        "ready": False, "publishes": 0, "messages": 5, "deliveries": 9, "subscribers": 1,
        "lagging": 0, "behind_max": 0, "connections": 1, "pending": 0, "topics": 1,
        "store_bytes": None,
    }  # fmt: skip
    sample = {
        "node": node,
        "cluster": {"node": "n1", "leader": None},
        "topics": {"rows": [["a\x1b[2J", None, 1, 1, 0, None]]},
    }
    text = table(figures(sample, ({**node, "messages": 9}, 0.0)))
    assert "\x1b" not in text
    assert "NOT READY  leader -" in text
    assert "store - bytes" in text
    assert "published 0.0/s" in text, "another run of the node began at zero again"
