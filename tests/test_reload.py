"""What a reload applies, what it leaves for a restart, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from repl_broker.config import Config, keys, load, sections
from repl_broker.errors import ConfigError
from repl_broker.reload import EVERY, LIVE, Hook, Reloaded, Reloader, is_live


class Part:
    """What a hook applies to: the configurations that it got."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.got: list[Config] = []
        self.failure = failure
        self.changed: list[str] = []  # whose files have other contents

    def apply(self, config: Config) -> list[str]:
        if self.failure is not None:
            raise self.failure
        self.got.append(config)
        return self.changed


def reloader(*found: Callable[[], Config], **hooks: tuple[Part, tuple[str, ...]]) -> Reloader:
    answers = iter(found)
    made = Reloader(Config(), lambda: next(answers)())
    made.hooks = [Hook(name, keys, part.apply) for name, (part, keys) in hooks.items()]
    return made


def given(**options: str) -> Callable[[], Config]:
    named = {name.replace("__", "."): value for name, value in options.items()}
    return lambda: load(options=named)


def lines(caplog: pytest.LogCaptureFixture) -> Mapping[int, list[str]]:
    return {
        level: [r.getMessage() for r in caplog.records if r.levelno == level]
        for level in (logging.INFO, logging.WARNING, logging.ERROR)
    }


@pytest.fixture(autouse=True)
def all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_what_a_hook_takes_is_applied_and_the_rest_needs_a_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Part()
    made = reloader(
        given(limits__connections="7", node__id="n9"), limits=(limits, ("limits.connections",))
    )
    outcome = made.reload()
    assert outcome == Reloaded(("limits.connections",), ("node.id",))
    assert str(outcome) == "applied limits.connections; restart for node.id"
    assert limits.got[0].limits.connections == 7
    assert limits.got[0].node.id == "n1", "a hook sees nothing that needs a restart"
    assert made.config == limits.got[0]
    assert lines(caplog)[logging.INFO][0] == "applied key=limits.connections value=7 was=10000"
    assert lines(caplog)[logging.WARNING] == [
        "needs a restart key=node.id value='n9' in_force='n1'"
    ]


def test_a_key_that_goes_back_to_what_is_in_force_needs_no_restart() -> None:
    made = reloader(given(node__id="n9"), given())
    assert made.reload().need_restart == ("node.id",)
    assert made.reload() == Reloaded()


def test_a_configuration_with_problems_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    part = Part()
    made = reloader(
        given(limits__connections="many", log__level="loud"), limits=(part, ("limits.*",))
    )
    outcome = made.reload()
    assert len(outcome.problems) == 2
    assert str(outcome).startswith("reload failed: ")
    assert part.got == []
    assert made.config == Config()
    errors = lines(caplog)[logging.ERROR]
    assert len(errors) == 2, "one line each"
    assert "wanted an integer (connections)" in errors[0]
    (line,) = lines(caplog)[logging.WARNING]
    assert line.startswith("audit action=configuration.reload target='all of it'")
    assert line.endswith("outcome=refused")


def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    made = reloader(lambda: load(tmp_path / "gone.toml"))
    assert "cannot read" in made.reload().problems[0]


@pytest.mark.parametrize("failure", [ConfigError("does not fit"), RuntimeError("does not fit")])
def test_a_hook_that_fails_leaves_its_part_and_the_others_go_on(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, limits = Part(failure), Part()
    made = reloader(
        given(limits__connections="7", http__access_log="true"),
        given(limits__connections="7", http__access_log="true"),
        certificate=(certificate, ("http.*",)),
        limits=(limits, ("limits.*",)),
    )
    outcome = made.reload()
    assert outcome.applied == ("limits.connections",)
    assert "does not fit" in outcome.problems[0]
    assert outcome.problems[0].startswith("certificate: ")
    audit = [r.getMessage() for r in caplog.records if r.name == "repl_broker.audit"][:2]
    assert [line.split(" subject")[0] for line in audit] == [
        "audit action=configuration.reload target='limits.connections'",
        "audit action=configuration.reload target='http.access_log'",
    ]
    assert [line.split()[-1] for line in audit] == ["outcome=done", "outcome=refused"]
    assert made.config.http.access_log is False
    certificate.failure = None  # it has been put right
    assert made.reload().applied == ("http.access_log",)


def test_every_hook_is_called_even_if_no_key_differs() -> None:
    part = Part()
    made = reloader(given(), certificate=(part, ("http.tls_key",)))
    assert made.reload() == Reloaded()
    assert part.got == [Config()], "the files that keys name may have changed"


def test_of_which_keys_the_files_have_changed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    part = Part()
    part.changed = ["http.tls_key", "http.tls_certificate"]
    options = {"http__tls_certificate": __file__, "http__tls_key": __file__}
    part_keys = ("http.tls_certificate", "http.tls_key")
    made = reloader(given(**options), given(**options), certificate=(part, part_keys))
    first = made.reload()
    assert (first.applied, first.read_anew) == (part_keys, ()), "what is new is not said twice"
    second = made.reload()
    assert second.read_anew == ("http.tls_key", "http.tls_certificate")
    assert str(second) == "read anew http.tls_key, http.tls_certificate"
    info = lines(caplog)[logging.INFO]
    assert f"read anew key=http.tls_key file={__file__!r}" in info
    assert info[-1] == "reloaded applied=0 read_anew=2 need_restart=0 problems=0"


def test_a_reload_of_which_nothing_came_says_so(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And why, where the files are copies that systemd made."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    secret = tmp_path / "cluster-secret"
    secret.touch()
    wanted = given(cluster__secret_file=str(secret))
    made = Reloader(wanted(), wanted)
    made.reload()
    assert lines(caplog)[logging.INFO] == ["reloaded, and nothing has changed"]
    for folder, is_told in ((tmp_path / "other", False), (tmp_path, True)):
        caplog.clear()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
        made.reload()
        (line,) = lines(caplog)[logging.INFO]
        assert line.startswith("reloaded, and nothing has changed")
        assert ("copies that were made at the start" in line) == is_told


def test_how_much_was_wrong_is_known_until_the_next_time() -> None:
    part = Part(ConfigError("does not fit"))
    made = reloader(
        given(log__level="loud"), given(), given(), certificate=(part, ("http.tls_key",))
    )
    made.reload()
    assert made.problems == 1
    made.reload()
    assert made.problems == 1
    part.failure = None
    made.reload()
    assert made.problems == 0


def test_the_first_hook_that_names_a_key_has_it() -> None:
    first, second = Part(), Part()
    made = reloader(
        given(log__level="debug"), first=(first, ("log.level",)), second=(second, ("log.*",))
    )
    made.reload()
    assert first.got[0].log.level == "debug"
    assert second.got[0].log.level == "debug", "what was applied before is in force"


def test_the_keys_that_a_reload_applies_exist() -> None:
    tables = {f"{section.name}{EVERY}" for section in sections()}
    named = {name for names in LIVE.values() for name in names}
    assert named <= {*keys(), *tables}
    assert is_live("log.level")
    assert is_live("topics.retention.bytes")
    assert not is_live("raft.bind")
