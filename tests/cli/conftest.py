from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from repl_broker.cli import main
from tests.cli.fake_broker import FakeBroker

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPL_BROKER_URL", raising=False)
    monkeypatch.delenv("REPL_BROKER_CONFIG", raising=False)
    monkeypatch.delenv("REPL_BROKER_TOKEN", raising=False)
    monkeypatch.delenv("REPL_BROKER_TOKEN_FILE", raising=False)


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        yield running


@pytest.fixture
def run() -> Run:
    """Run the command in this process."""

    def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(main, [*arguments], input=stdin)

    return invoke
