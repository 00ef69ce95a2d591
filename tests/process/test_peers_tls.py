"""A cluster as its users run it, with certificates: who has none of its CA does not get in."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.authority import write
from tests.process.member import Member, cluster_of
from tests.process.node import serve

pytestmark = pytest.mark.process


def keys_of(files: dict[str, Path]) -> dict[str, Path]:
    return {f"raft_{name}": path for name, path in files.items()}


def test_nodes_with_certificates_are_a_cluster_and_others_do_not_join(tmp_path: Path) -> None:
    authority = trustme.CA()
    keys = keys_of(write(tmp_path, authority))
    others = keys_of(write(tmp_path, trustme.CA(), name="other"))
    with cluster_of(tmp_path, **keys) as nodes:
        message = nodes[1].publish("t", 1)
        assert message in [found["id"] for found in nodes[2].history("t")]
        strangers: tuple[tuple[str, dict[str, Path], str], ...] = (
            ("n4", {}, "the other speaks TLS; set [raft] tls_certificate"),
            ("n5", others, "the certificate of the acceptor is refused"),
        )
        for name, theirs, why in strangers:
            for option in ("--join", "--bootstrap"):
                done = serve(
                    *("--data-dir", str(tmp_path / name), "--http", "127.0.0.1:0", option),
                    *([nodes[0].raft] if option == "--join" else ["--join", nodes[0].raft]),
                    node_id=name,
                    raft_bind="127.0.0.1:0",
                    **theirs,
                )
                assert done.returncode == 1, done.stderr
                assert why in done.stderr
        assert nodes[0].roles().keys() == {"n1", "n2", "n3"}
        with Member(tmp_path, "n6", "--join", nodes[1].raft, **keys) as newcomer:
            newcomer.start()
            newcomer.wait_votes("n1", "n2", "n3", "n6")
