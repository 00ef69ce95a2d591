"""``demo --nodes``: what is refused before anything is started, and the folder that is laid out."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from repl_broker.cli.stage.layout import RECORD, Layout, check_single, lay_out
from repl_broker.config import Address, load
from repl_broker.errors import ConfigError
from repl_broker.storage import STORE_NAME
from tests.cli.conftest import Run

ANY = Address("127.0.0.1", 0)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Three nodes on free ports, in a folder with a space and a quote in its name."""
    found = lay_out(tmp_path / 'my "demo"', 3, ANY)
    found.write("warning")
    return found


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("2", "so 2 outlive the loss of no more than 1;"),
        ("6", "so 6 outlive the loss of no more than 5;"),
        ("0", "found 0"),
        ("-3", "found -3"),
        ("9", "found 9"),
        ("three", "'three' is not a valid integer"),
    ],
)
def test_a_number_of_nodes_that_makes_no_sense_is_refused(run: Run, nodes: str, words: str) -> None:
    result = run("demo", "--nodes", nodes)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    if nodes != "three":
        assert "an odd number from 3 to 7" in result.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "broker.example"])
def test_several_nodes_are_for_this_machine_alone(run: Run, tmp_path: Path, host: str) -> None:
    folder = tmp_path / "demo"
    result = run("demo", "--nodes", "3", "--http", f"{host}:4080", "--data-dir", str(folder))
    assert result.exit_code == 1
    assert "wants the host 127.0.0.1 or localhost" in result.stderr
    assert not folder.exists()


def test_ports_that_do_not_exist_are_told(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    options = ("--nodes", "7", "--http", "127.0.0.1:65000", "--data-dir", str(folder))
    result = run("demo", *options)
    assert result.exit_code == 1
    assert "7 nodes from port 65000 on would need ports up to 65601" in result.stderr
    assert not folder.exists()


def listeners(layout: Layout) -> Iterator[tuple[str, Address]]:
    second = layout.places[1]
    yield "n2, HTTP", second.http
    yield "n2, Raft", second.raft
    yield "the demo's control", layout.control


@pytest.mark.parametrize("which", range(3))
def test_a_port_in_use_is_named_with_what_it_is_for(run: Run, tmp_path: Path, which: int) -> None:
    layout = lay_out(tmp_path / "demo", 3, ANY)
    what, address = [*listeners(layout)][which]
    with socket.create_server((address.host, address.port)):
        http = str(layout.places[0].http)
        result = run("demo", "--nodes", "3", "--http", http, "--data-dir", str(layout.folder))
    assert result.exit_code == 1
    assert f"cannot listen on {address} ({what}): Address already in use" in result.stderr
    assert "port 0" in result.stderr
    assert not layout.folder.exists()


def test_the_store_of_a_single_node_is_not_taken_for_several(run: Run, tmp_path: Path) -> None:
    (tmp_path / STORE_NAME).write_bytes(b"")
    result = run("demo", "--nodes", "3", "--http", "127.0.0.1:0", "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "holds the store of a single node; give --nodes 1" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [STORE_NAME]


@pytest.mark.parametrize("nodes", ["1", "5"])
def test_a_demo_of_three_is_not_taken_for_one_or_five(run: Run, layout: Layout, nodes: str) -> None:
    before = sorted(layout.folder.iterdir())
    options = ("--http", "127.0.0.1:0", "--data-dir", str(layout.folder))
    result = run("demo", "--nodes", nodes, *options)
    assert result.exit_code == 1
    assert "holds a demo of 3 nodes; give --nodes 3" in result.stderr
    assert sorted(layout.folder.iterdir()) == before


def test_a_demo_stays_at_its_ports(layout: Layout) -> None:
    """Its nodes know each other there."""
    assert lay_out(layout.folder, 3, ANY) == layout
    assert lay_out(layout.folder, 3, layout.places[0].http) == layout
    with pytest.raises(ConfigError, match=f"give --http 127.0.0.1:{layout.places[0].http.port}"):
        lay_out(layout.folder, 3, Address("127.0.0.1", 4080))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="is not empty, and no demo"):
        lay_out(tmp_path, 3, ANY)
    check_single(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"http_ports": []}', '{"http_ports": ["x"]}'])
def test_a_damaged_record_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    for check in (lambda: lay_out(tmp_path, 3, ANY), lambda: check_single(tmp_path)):
        with pytest.raises(ConfigError, match="is damaged"):
            check()


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="is no folder"):
        lay_out(file, 3, ANY)


def test_each_node_is_told_who_it_is_and_whom_to_join(layout: Layout) -> None:
    """The files are what ``serve --config`` takes."""
    secret = layout.folder / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert layout.folder.stat().st_mode & 0o777 == 0o700
    words = secret.read_text()
    for place in layout.places:
        config = load(layout.file(place))
        others = {other.raft for other in layout.places if other is not place}
        assert config.node.id == place.name
        assert config.node.data_dir == layout.folder / place.name
        assert (config.http.bind, config.raft.bind) == (place.http, place.raft)
        assert {*config.cluster.join} == (set() if place.name == "n1" else others)
        assert config.cluster.secret_file == secret
        assert {*config.http.cors_origins} == {*layout.origins}
    assert f"http://localhost:{layout.places[2].http.port}" in layout.origins
    layout.write("debug")
    assert secret.read_text() == words, "a cluster keeps its secret"


def test_the_ports_follow_from_the_first_one(tmp_path: Path) -> None:
    layout = lay_out(tmp_path / "demo", 3, Address("localhost", 4080))
    assert [place.http.port for place in layout.places] == [4080, 4180, 4280]
    assert [place.raft.port for place in layout.places] == [4081, 4181, 4281]
    assert layout.control == Address("127.0.0.1", 4089)
    layout.write("warning")
    assert json.loads((layout.folder / RECORD).read_text()) == {"http_ports": [4080, 4180, 4280]}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    layout = lay_out(tmp_path / "demo", 3, ANY)
    with pytest.raises(ConfigError, match="cannot write to"):
        layout.write("warning")
