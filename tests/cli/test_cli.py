"""What all commands have in common: imports, errors, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from repl_broker import __version__, cli
from repl_broker.errors import StorageError
from tests.cli.conftest import Run
from tests.cli.fake_broker import FakeBroker, answer, html, problem


def test_importing_the_command_line_imports_neither_trio_nor_quart_nor_httpx() -> None:
    heavy = ("trio", "quart", "hypercorn", "httpx", "msgspec")
    code = f"import sys, repl_broker.cli; print(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode().split() == []


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "repl_broker", "version"], capture_output=True, check=True
    )
    assert done.stdout.decode() == f"repl-broker {__version__}\n"
    assert done.stderr == b""


def test_version_is_json_on_request(run: Run) -> None:
    assert run("version", "--json").output == f'{{"version": "{__version__}"}}\n'
    assert run("--version").output == f"repl-broker {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["publish"], "Missing argument 'TOPIC'"),
        (["subscribe"], "Missing argument 'FILTER...'"),
        (["topics", "list", "--nonsense"], "No such option"),
        (["topics", "list", "--url", "localhost:4080"], "wanted http://HOST:PORT"),
        (["topics", "list", "--url", "http://h:99999"], "wanted http://HOST:PORT"),
        (["topics", "create", "a", "--retention-bytes", "1 mb"], 'unknown unit "mb"'),
        (["serve", "--http", "4080"], "wanted HOST:PORT"),
        (["serve", "--node-id", "a b"], "wanted 1 to 64 letters"),
        (["serve", "--log-level", "loud"], "--log-level"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: Run, arguments: list[str], words: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert "--help" in result.stderr


def test_no_command_at_all_shows_the_help(run: Run) -> None:
    result = run()
    assert "Commands:" in result.output
    assert "publish" in result.output


def test_a_node_that_is_not_there_is_one_line_and_exit_code_1(run: Run) -> None:
    with FakeBroker() as gone:
        url = gone.url
    for command in (["topics", "list"], ["publish", "a", "1"], ["subscribe", "a"]):
        result = run(*command, "--url", url)
        assert result.exit_code == 1
        assert result.stderr == (
            f"error: cannot connect to {url}: Connection refused; is the node running?\n"
        )


def test_a_name_that_does_not_resolve_is_one_line(run: Run) -> None:
    result = run("topics", "list", "--url", "http://no-such-host.invalid:4080")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot connect to http://no-such-host.invalid:4080: ")
    assert result.stderr.count("\n") == 1


def test_a_problem_shows_title_detail_and_code(run: Run, broker: FakeBroker) -> None:
    broker.steps = [problem("topic_not_found", "There is no topic chat.")]
    result = run("topics", "show", "chat", "--url", broker.url)
    assert result.exit_code == 1
    assert result.stderr == (
        "error: The topic does not exist: There is no topic chat. [topic_not_found]\n"
    )


@pytest.mark.parametrize("status", [200, 301, 404, 500])
def test_an_answer_that_is_not_the_brokers_is_said_to_be_so(
    run: Run, broker: FakeBroker, status: int
) -> None:
    for command in (["topics", "list"], ["publish", "a", "1"], ["subscribe", "a"]):
        broker.steps = [html(status)]
        result = run(*command, "--url", broker.url)
        assert result.exit_code == 1
        assert result.stderr == (
            f"error: {broker.url} answered {status} with text/html, "
            "not as a repl-broker node does; is the URL right?\n"
        )


def test_json_that_is_no_object_is_not_the_brokers_either(run: Run, broker: FakeBroker) -> None:
    broker.steps = [answer(200, [1])]
    result = run("cluster", "status", "--url", broker.url)
    assert result.exit_code == 1
    assert "not as a repl-broker node does" in result.stderr


def test_the_environment_says_which_node(
    run: Run, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPL_BROKER_URL", broker.url + "/")
    assert run("publish", "chat", "1").exit_code == 0
    assert broker.kept == [1]


@click.command()
@click.argument("what")
def failing(what: str) -> None:
    errors: dict[str, BaseException] = {
        "disk": StorageError("the disk\nis full"),
        "group": BaseExceptionGroup("nursery", [ExceptionGroup("", [StorageError("locked")])]),
        "bug": ZeroDivisionError("division by zero"),
        "interrupt": KeyboardInterrupt(),
        "pipe": BrokenPipeError(),
        "cancel": click.Abort(),
    }
    raise errors[what]


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("disk", 1, "error: the disk\\nis full\n"),
        ("group", 1, "error: locked\n"),
        (
            "bug",
            1,
            "error: ZeroDivisionError: division by zero"
            " (a bug; REPL_BROKER_TRACEBACK=1 shows more)\n",
        ),
        ("interrupt", 130, ""),
        ("pipe", 0, ""),
        ("cancel", 1, "error: cancelled\n"),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(what: str, code: int, line: str) -> None:
    group = cli.OneLineErrors(commands={"failing": failing})
    result = CliRunner().invoke(group, ["failing", what])
    assert (result.exit_code, result.stderr) == (code, line)


def test_a_bug_shows_its_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPL_BROKER_TRACEBACK", "1")
    group = cli.OneLineErrors(commands={"failing": failing})
    result = CliRunner().invoke(group, ["failing", "bug"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_closed_standard_output_ends_a_command_quietly(broker: FakeBroker) -> None:
    broker.steps = [answer(200, {"topics": [{"name": f"t{i}"} for i in range(5000)], "next": None})]
    command = [sys.executable, "-m", "repl_broker", "topics", "list", "--url", broker.url]
    listing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert listing.stdout is not None
    listing.stdout.close()
    assert listing.stderr is not None
    with listing.stderr:
        assert listing.stderr.read() == b""
    assert listing.wait(10) == 0


def test_config_check_prints_every_problem(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[http]\nbnd = 1\naccess_log = 1\n")
    result = run("config", "check", str(file))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: {file}: unknown key http.bnd; did you mean http.bind?",
        f"error: {file}: http.access_log: wanted true or false, found the integer 1",
    ]
    as_json = run("config", "check", "--json", str(file))
    assert as_json.exit_code == 1
    assert '"problems": ["' in as_json.stdout


def test_config_check_passes_the_example(run: Run) -> None:
    file = Path(__file__).parents[2] / "cluster.toml.example"
    result = run("config", "check", str(file))
    assert result.exit_code == 0
    assert result.output.startswith(f"{file}: no problems\nmemory: at most ")


def test_config_check_warns_of_what_is_hardly_meant(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        "[http]\ntrusted_proxies = ['0.0.0.0/0']\n[limits]\ntopics = 10\ntopics_per_client = 20\n"
    )
    result = run("config", "check", str(file))
    assert result.exit_code == 0
    proxies, topics = result.stderr.splitlines()
    assert proxies.startswith("warning: http.trusted_proxies has 0.0.0.0/0, every IPv4 address: ")
    assert topics.startswith("warning: limits.topics_per_client is 20, more than limits.topics ")
