"""The demo of a cluster: the leader is killed by the control, the others go on, nothing is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from repl_broker.cli.stage import supervisor as stage
from repl_broker.cli.stage.layout import lay_out
from repl_broker.config import Address
from tests.process.demo import Demo, is_alive
from tests.process.node import Client, Node, polls

pytestmark = pytest.mark.process


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo") as running:
        running.start()
        yield running


def publish(node: Node, number: int) -> None:
    """Once it can be, under a key."""
    for _ in polls("the publish to be taken"):
        with Client(node) as client:
            answer = client.publish("chat", b"%d" % number, Idempotency_Key=f"key-{number}")
        if answer.status == 201:
            return


def texts(state: dict[str, list[dict[str, str]]]) -> list[str]:
    return [happening["text"] for happening in state["happenings"]]


def test_the_leader_is_killed_and_the_show_goes_on(demo: Demo) -> None:
    """Killed, another leads, it goes on, it comes back; twice, and again after a restart."""
    killed = ""
    for number in range(2):
        state = demo.wait("somebody to kill", lambda state: state["cannot_kill"] is None)
        leader = state["leader"]
        assert leader != killed
        others = [node for name, node in demo.nodes.items() if name != leader]
        publish(others[0], 3 * number)
        status, state = demo.ask("POST", "/leader/kill")
        assert status == 202
        assert (state["leader"], state["cannot_kill"]) == (None, "No node leads at the moment.")
        assert len([*demo.children()]) <= 3
        publish(others[1], 3 * number + 1)
        state = demo.wait("another leader", lambda state: state["leader"] is not None)
        assert state["leader"] != leader
        assert f"{leader}, the leader, was killed with SIGKILL." in texts(state)
        assert f"{state['leader']} leads in term {state['term']}," in texts(state)[-1]
        assert f"after {leader} was lost." in texts(state)[-1]

        status, answer = demo.ask("POST", "/leader/kill")
        assert status == 409, "one of three is no majority"
        assert "2 of 3 nodes run" in answer["detail"]
        demo.wait("it to be down", down)
        assert demo.ask("POST", f"/nodes/{leader}/start")[0] == 202
        state = demo.wait("it to be back", lambda state: state["cannot_kill"] is None)
        assert f"{leader} is back, and has all that it missed." in texts(state)
        publish(demo.nodes[leader], 3 * number + 2)
        killed = leader
    for node in demo.nodes.values():
        assert [message["data"] for message in node.history("chat")] == [*range(6)]
    assert demo.end(signal.SIGINT) == 0

    demo.start()
    assert [message["data"] for message in demo.nodes["n2"].history("chat")] == [*range(6)]
    assert demo.end(signal.SIGTERM) == 0


def down(state: dict[str, list[dict[str, str]]]) -> list[str]:
    """The nodes that wait to be started again."""
    nodes = state["nodes"]
    return [n["id"] for n in nodes if n["state"] == "down" and n["returns_in_seconds"] is not None]


def test_a_supervisor_that_is_killed_leaves_no_node_behind(demo: Demo) -> None:
    assert len([*demo.children()]) == 3
    assert demo.end(signal.SIGKILL) == -signal.SIGKILL
    assert demo.alive() == []


def test_only_the_pages_of_the_demo_reach_its_control(demo: Demo) -> None:
    own = f"http://127.0.0.1:{demo.nodes['n3'].port}"
    assert demo.ask("GET", "/state", Origin=own)[0] == 200
    assert demo.ask("POST", "/leader/kill", token="x")[0] == 401
    assert demo.ask("POST", "/leader/kill", Origin="https://evil.example")[0] == 403
    assert demo.ask("POST", "/leader/kill", Host=f"evil.example:{demo.control}")[0] == 403
    state = demo.state()
    assert {node["state"] for node in state["nodes"]} == {"running"}
    assert texts(state) == ["n1 leads in term 1."]

    # A node has nothing of it, and lets the pages of the other nodes read its answers.
    for node in demo.nodes.values():
        with Client(node) as client:
            assert client.request("POST", "/leader/kill").status == 404
            answer = client.request("GET", "/v1/cluster", Origin=own)
            assert answer.headers["access-control-allow-origin"] == own
            foreign = client.request("GET", "/v1/cluster", Origin="https://evil.example")
            assert "access-control-allow-origin" not in foreign.headers
            page = client.request("GET", "/chat/")
            assert (page.status, b"chat.js" in page.body) == (200, True)


def test_a_node_that_cannot_start_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    layout = lay_out(folder, 3, Address("127.0.0.1", 0))
    layout.write("warning")
    (folder / "n2").write_text("in the way")
    with Demo(folder) as demo:
        demo.spawn()
        said, _ = demo.process.communicate(timeout=60)
        assert demo.process.returncode == 1
        assert said.splitlines()[-1].startswith("error: n2 did not start: error: ")
        assert str(folder / "n2") in said
        assert "Traceback" not in said


async def test_a_node_that_is_lost_comes_back_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody kills a follower in a terminal, and nobody presses a button."""
    monkeypatch.setattr(stage, "RETURN_SECONDS", 0.1)
    layout = lay_out(tmp_path / "demo", 3, Address("127.0.0.1", 0))
    layout.write("warning")
    supervisor = stage.Supervisor(layout)
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            lost = supervisor._nodes["n3"].process
            assert lost is not None
            lost.send_signal(signal.SIGKILL)
            wanted = [
                "n1 leads in term 1.",
                "n3 ended by signal 9.",
                "n3 is started again.",
                "n3 is back, and has all that it missed.",
            ]
            while texts(supervisor.state()) != wanted:  # noqa: ASYNC110  (it shows from outside only)
                await trio.sleep(0.01)
            processes = [node.process for node in supervisor._nodes.values()]
            nursery.cancel_scope.cancel()
    assert all(process is not None and process.returncode == 0 for process in processes)
    assert not any(is_alive(process.pid) for process in processes if process)
