"""The configuration: where it comes from, what is refused, and in which words."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from repl_broker.config import (
    Address,
    Config,
    InvalidConfigError,
    RefusedError,
    keys,
    load,
    replace_values,
    sections,
    values_of,
)
from repl_broker.errors import ConfigError

EXAMPLE = Path(__file__).parents[1] / "cluster.toml.example"


def problems_of(tmp_path: Path, text: str | bytes) -> list[str]:
    """The problems of a file, without its name."""
    file = tmp_path / "node.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidConfigError) as caught:
        load(file)
    assert all("\n" not in problem for problem in caught.value.problems)
    return [problem.replace(f"{file}:", "F:") for problem in caught.value.problems]


def loaded(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "node.toml"
    file.write_text(text)
    return load(file)


def test_nothing_at_all_is_the_defaults() -> None:
    assert load() == Config()


def test_the_example_has_exactly_the_defaults() -> None:
    assert load(EXAMPLE) == Config()


def test_every_key_is_in_the_example_with_its_default_and_its_meaning() -> None:
    text = EXAMPLE.read_text()
    bare = text.replace("\n# ", " ")
    document = tomllib.loads(text)
    for section in sections():
        assert f"\n[{section.name}]\n" in text
        table = document
        for part in section.name.split("."):
            table = table[part]
        for key in section.keys:
            own_name = key.name.rpartition(".")[2]
            assert key.meaning in bare
            if key.default is None:
                assert f"\n#{own_name} = {key.example}\n" in text
            else:
                assert key.kind.read(table[own_name]) == key.default


def test_the_examples_for_keys_without_a_default_are_valid() -> None:
    for key in keys().values():
        if key.default is None:
            key.kind.read(tomllib.loads(f"x = {key.example}")["x"])


def test_every_default_is_in_its_range() -> None:
    for key in keys().values():
        if isinstance(key.default, int | str):
            assert key.kind.read(key.default) == key.default


def test_the_options_of_a_run_beat_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\nid = "a"\n[log]\nlevel = "debug"\nformat = "json"\n')
    environ = {"REPL_BROKER_NODE_ID": "b", "REPL_BROKER_LOG_LEVEL": "error", "HOME": "/"}
    config = load(file, environ=environ, options={"node.id": "c"})
    assert (config.node.id, config.log.level, config.log.format) == ("c", "error", "json")


def test_every_key_can_be_set_in_the_environment() -> None:
    config = load(
        environ={
            "REPL_BROKER_HTTP_BIND": "[::1]:80",
            "REPL_BROKER_HTTP_CORS_ORIGINS": "https://a.example, *",
            "REPL_BROKER_HTTP_ACCESS_LOG": "yes",
            "REPL_BROKER_TOPICS_AUTO_CREATE": "0",
            "REPL_BROKER_TOPICS_RETENTION_SECONDS": "2h",
            "REPL_BROKER_LIMITS_MESSAGE_BYTES": "1_000",
            "REPL_BROKER_NODE_DATA_DIR": "data",
            "REPL_BROKER_NODE_ID": "",  # as good as not set
        }
    )
    assert config.http.bind == Address("::1", 80)
    assert config.http.cors_origins == ("https://a.example", "*")
    assert config.http.access_log
    assert not config.topics.auto_create
    assert config.topics.retention.seconds == 7200
    assert config.limits.message_bytes == 1000
    assert config.node.data_dir == Path("data")
    assert config.node.id == "n1"
    assert len({key.variable for key in keys().values()}) == len(keys())


def test_an_unknown_variable_is_refused_and_a_foreign_one_is_not() -> None:
    foreign = {
        "REPL_BROKER_URL": "http://x",
        "REPL_BROKER_CONFIG": "f",
        "REPL_BROKER_TRACEBACK": "1",
        "REPL_BROKER_TEST_ANYTHING": "1",
        # what Kubernetes sets for services that are called repl-broker(-http)
        "REPL_BROKER_SERVICE_HOST": "10.0.0.1",
        "REPL_BROKER_HTTP_SERVICE_PORT_WEB": "80",
        "REPL_BROKER_PORT": "tcp://10.0.0.1:80",
        "REPL_BROKER_HTTP_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert load(environ=foreign) == Config()
    with pytest.raises(InvalidConfigError) as caught:
        load(environ={"REPL_BROKER_HTTP_BNID": "80", "REPL_BROKER_LOG_LEVEL": "loud"})
    assert caught.value.problems == (
        "unknown environment variable REPL_BROKER_HTTP_BNID; did you mean REPL_BROKER_HTTP_BIND?",
        'REPL_BROKER_LOG_LEVEL: wanted "debug", "info", "warning" or "error", '
        'found the string "loud"',
    )
    with pytest.raises(InvalidConfigError, match="XYZ; a variable is REPL_BROKER_<SECTION>_<KEY>"):
        load(environ={"REPL_BROKER_XYZ": "80"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[http]\nbnd = 1", "F: unknown key http.bnd; did you mean http.bind?"),
        ("[limits]\nmesage_bytes = 1", "unknown key limits.mesage_bytes; did you mean limits.mess"),
        ("[http]\nmessage_bytes = 1", "http.message_bytes; did you mean limits.message_bytes?"),
        ("retention = 1", "F: unknown key retention; did you mean topics.retention."),
        (
            "[topics.retntion]\nx = 1",
            "unknown table topics.retntion; did you mean topics.retention",
        ),
        ("[loging]", "F: unknown table loging; did you mean log?"),
        ("[zzz]", "F: unknown table zzz; known are "),
        ("[log]\nzzz = 1", "F: unknown key log.zzz; known are log.level, log.format"),
        ("http = 3", "F: http: wanted a table ([http]), found the integer 3"),
        ("[http.bind]\nx = 1", "F: http.bind: wanted HOST:PORT, as a string, found a table"),
        ("[http]\nbind = 4080", "F: http.bind: wanted HOST:PORT, as a string, found the integer 4"),
        ("[http]\nbind = '4080'", "wanted HOST:PORT (such as 127.0.0.1:4080), found '4080'"),
        ("[http]\nbind = 'h:70000'", "F: http.bind: the port must be 0 to 65535, found 70000"),
        ("[http]\naccess_log = 1", "wanted true or false, found the integer 1"),
        ("[http]\npublic_url = 'ftp://x'", "wanted an http:// or https:// URL, found the string"),
        ("[http]\npublic_url = 'http://x:y'", "wanted an http:// or https:// URL"),
        ("[http]\npublic_url = 'http://x/a//b'", "has the path '/a//b', which cannot stand"),
        ("[http]\npublic_url = 'http://x/../b/'", "has the path '/../b', which cannot stand"),
        (
            "[http]\ntrusted_proxies = ['proxy']",
            'an IP address, or a network such as "10.0.0.8/29"',
        ),
        (
            "[http]\ntrusted_proxies = ['10.0.0.1/8']",
            'F: http.trusted_proxies: "10.0.0.1/8" is an address in a network, and no network: it '
            'has bits of the host set; write "10.0.0.0/8" for all of the network, or "10.0.0.1" '
            "for this address alone",
        ),
        (
            "[http]\ntrusted_proxies = ['10.0.0.1/255.255.0.0']",
            'write "10.0.0.0/16" for all of the network, or "10.0.0.1" for this address alone',
        ),
        (
            "[http]\ntrusted_proxies = ['2001:db8::1/64']",
            'write "2001:db8::/64" for all of the network, or "2001:db8::1" for this address',
        ),
        ("[http]\ntrusted_proxies = ['10.0.0.0/33']", 'found the string "10.0.0.0/33"'),
        ("[http]\ntrusted_proxies = [10]", "found the integer 10"),
        ("[http]\ntrusted_proxies = ['::ffff:10.0.0.0/104']", "as IPv6, which no connection is"),
        ("[http]\ntrusted_proxies = ['::ffff:10.0.0.0/104']", 'write "10.0.0.0/8"'),
        ("[http]\ntrusted_proxies = ['::ffff:10.0.0.7']", 'write "10.0.0.7"'),
        ("[http]\ncors_origins = '*'", 'wanted an array, each "*" or an origin'),
        ("[http]\ncors_origins = ['https://a/b']", 'found the string "https://a/b"'),
        ("[http]\ncors_origins = ['https://A']", "as browsers send it"),
        ("[http]\ncors_origins = ['https://a:443']", 'found the string "https://a:443"'),
        ("[http]\ncors_origins = ['http://a:80']", "without the default port"),
        ("[http]\ncors_origins = ['https://a:']", 'found the string "https://a:"'),
        ("[http]\ncors_origins = ['https://a?']", 'found the string "https://a?"'),
        ("[http]\ncors_origins = ['null']", 'found the string "null"'),
        ("[http]\ntls_key = ''", "F: http.tls_key: wanted a path, as a string"),
        ("[node]\nid = 'a b'", "wanted 1 to 64 letters, digits, dots, _ or -, found the string"),
        ("[node]\nid = 2026-01-01", "found the date or time 2026-01-01"),
        ("[log]\nlevel = ['info']", "found an array"),
        (
            "[auth]\nmode = 'token'",
            'F: auth.mode: wanted "none" or "jwt", found the string "token"',
        ),
        ("[limits]\nconnections = 0", "must be 1 to 1,000,000 connections, found 0"),
        ("[limits]\nconnections = '10k'", "wanted an integer (connections), found the string"),
        ("[limits]\nconnections = true", "found the boolean true"),
        ("[limits]\nidle_timeout_seconds = 1.5", "found the float 1.5"),
        ("[limits]\nidle_timeout_seconds = '1500ms'", '"1500ms" is not a whole number of seconds'),
        ("[limits]\nidle_timeout_seconds = '5x'", 'unknown unit "x" in "5x"; known units: ms, s,'),
        ("[limits]\nidle_timeout_seconds = '5'", 'unknown unit "" in "5"'),
        ("[limits]\nidle_timeout_seconds = 'soon'", 'a string with a unit (such as "90s")'),
        ("[limits]\nbatch_bytes = '1 Gib'", "known units: B, kB, MB, GB, KiB, MiB, GiB"),
        ("[limits]\nbatch_bytes = '1 GiB'", "268,435,456 bytes, found 1,073,741,824"),
        ("[limits]\nbatch_bytes = 10", "limits.batch_bytes must be at least limits.message_bytes"),
        (
            "[limits]\nrequests_bytes = '2 MiB'",
            "limits.requests_bytes must be at least limits.batch_bytes (8,388,608)",
        ),
        (
            "[limits]\nstreams_bytes = '2 MiB'",
            "limits.streams_bytes must be at least 4 times limits.message_bytes (1,048,576)",
        ),
        (
            "[raft]\nelection_timeout_ms = 499",
            "at least 5 times raft.heartbeat_interval_ms (500",
        ),
        ("[http]\ntls_certificate = 'c'", "http.tls_certificate needs http.tls_key: give both"),
        ("[http]\ntls_key = 'k'", "http.tls_key needs http.tls_certificate: give both"),
        (
            "[raft]\ntls_key = 'k'",
            "raft.tls_key needs raft.tls_certificate and raft.tls_ca: give all three, or none",
        ),
        (
            "[raft]\ntls_certificate = 'c'\ntls_ca = 'a'",
            "raft.tls_certificate and raft.tls_ca need raft.tls_key: give all three, or none",
        ),
        (
            "[raft]\ntls_ca = 'a'\ntls_key = 'k'\ntls_certificate = 'c'",
            "raft.tls_certificate: cannot read c: No such file",
        ),
        ("[cluster]\nsecret_file = '/no/such'", "cannot read /no/such: No such file or directory"),
        ('["a\\nb"]', "unknown table a\\nb; known are"),
        (
            "[auth]\nmode = 'jwt'",
            'auth.mode "jwt" needs auth.secret_file (HS256) or',
        ),
        (
            "[auth]\nalgorithms = ['HS256']",
            "auth.algorithms has HS256, which needs auth.secret_file",
        ),
        (
            "[auth]\nalgorithms = ['ES256']",
            "auth.algorithms has ES256, which needs auth.jwks_file",
        ),
        ("[auth]\nalgorithms = ['none']", 'wanted "HS256", "RS256", "ES256" or "EdDSA"'),
        ("[auth]\naudience = ''", "auth.audience: wanted 1 to 255 characters"),
        ("[auth.anonymous]\npublish = ['a..b']", "wanted a filter such as"),
        ("[auth]\nsecret_file = '/no/such'", "auth.secret_file: cannot read /no/such"),
        ("[a\n", "F:1:3: not valid TOML: Expected ']'"),
        ("[node]\nid = \n", "F:2:6: not valid TOML: Invalid value"),
        ("[node]\nid = 'x", "F:2:8: not valid TOML: "),
        (b"[node]\nid = '\xff'", "F:2:7: not valid TOML: the file is not UTF-8"),
        ("x = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, problem: str) -> None:
    found = problems_of(tmp_path, text)
    assert problem in found[0]


def test_every_problem_is_reported(tmp_path: Path) -> None:
    text = "[http]\nbnd = 1\naccess_log = 1\n[log]\nlevel = 1\nformat = 2\n"
    assert len(problems_of(tmp_path, text)) == 4


def test_the_error_itself_tells_the_first_problem_and_how_many_more() -> None:
    assert str(InvalidConfigError(["a"])) == "a"
    assert str(InvalidConfigError(["a", "b", "c"])) == "a (and 2 more)"


def test_what_is_too_large_for_a_configuration_is_not_read_to_its_end(tmp_path: Path) -> None:
    """tomllib would take minutes for some such files, and a device has no end."""
    path = tmp_path / "large.toml"
    path.write_bytes(b"# " + b"x" * (64 << 10))
    for large in (path, Path("/dev/zero")):
        with pytest.raises(InvalidConfigError, match="more than 65536 bytes"):
            load(large)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no", "No such file or directory"), (tmp_path, "Is a dir")):
        with pytest.raises(InvalidConfigError, match=f"cannot read {path}: {reason}"):
            load(path)


def test_strings_with_units_are_read(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "[limits]\nmessage_bytes = '64 kB'\nbatch_bytes = '0.5MiB'\nidle_timeout_seconds = '1.5m'\n"
        "[topics.retention]\nseconds = '7d'\nbytes = '1 GiB'\n"
        "[raft]\nelection_timeout_ms = '2s'\n",
    )
    assert config.limits.message_bytes == 64_000
    assert config.limits.batch_bytes == 512 * 1024
    assert config.limits.idle_timeout_seconds == 90
    assert config.topics.retention.seconds == 7 * 86_400
    assert config.topics.retention.bytes == 1024**3
    assert config.raft.election_timeout_ms == 2000


def test_certificate_and_key_must_be_readable(tmp_path: Path) -> None:
    certificate = tmp_path / "c.pem"
    certificate.write_text("")
    text = f"[http]\ntls_certificate = '{certificate}'\ntls_key = '{tmp_path}/k.pem'\n"
    assert problems_of(tmp_path, text) == [
        f"http.tls_key: cannot read {tmp_path}/k.pem: No such file or directory"
    ]
    (tmp_path / "k.pem").write_text("")
    assert loaded(tmp_path, text).http.tls_certificate == certificate


def test_a_credential_is_in_the_folder_of_this_start(tmp_path: Path) -> None:
    (tmp_path / "cluster-secret").write_text("s" * 64)
    text = "[cluster]\nsecret_file = '${CREDENTIALS_DIRECTORY}/cluster-secret'\n"
    file = tmp_path / "F"
    file.write_text(text)
    config = load(file, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert config.cluster.secret_file == tmp_path / "cluster-secret"
    by_variable = {
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "REPL_BROKER_CLUSTER_SECRET_FILE": "${CREDENTIALS_DIRECTORY}/cluster-secret",
    }
    assert load(environ=by_variable) == config


def test_a_credential_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = "[cluster]\nsecret_file = '${CREDENTIALS_DIRECTORY}/cluster-secret'\n"
    file = tmp_path / "F"
    file.write_text(text)
    with pytest.raises(InvalidConfigError, match=f"cannot read {tmp_path}/cluster-secret"):
        load(file, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    with pytest.raises(InvalidConfigError, match="CREDENTIALS_DIRECTORY is not set"):
        load(file, environ={})
    assert load(file, environ={}, needs_credentials=False).node == Config().node


def test_a_file_with_credentials_can_be_checked_where_there_are_none(tmp_path: Path) -> None:
    text = "[cluster]\nsecret_file = '${CREDENTIALS_DIRECTORY}/cluster-secret'\n"
    assert loaded(tmp_path, text).cluster.secret_file is not None


def test_values_can_be_taken_out_and_put_back() -> None:
    values = values_of(Config())
    assert list(values) == list(keys())
    changed = replace_values(Config(), {"topics.retention.messages": 7})
    assert changed.topics.retention.messages == 7
    assert replace_values(changed, {"topics.retention.messages": 10_000}) == Config()


def test_a_wrong_boolean_in_the_environment_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="wanted true or false"):
        load(environ={"REPL_BROKER_HTTP_ACCESS_LOG": "maybe"})


def test_an_option_is_named_as_it_was_typed() -> None:
    with pytest.raises(InvalidConfigError, match=r"^--http: wanted HOST:PORT"):
        load(options={"http.bind": "x"})


def test_a_value_that_is_read_already_is_taken_as_it_is() -> None:
    assert load(options={"http.bind": Address("::1", 1)}).http.bind == Address("::1", 1)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:4080", "localhost:0", "[::1]:65535", "[fe80::1%eth0]:1"]
)
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", ":80", "::1:80", "h:", "h:-1", "h:1:2", "http://h:1", "h :1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        Address.parse(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "[::]", "[2001:db8::1]", "broker.example"])
def test_listening_beyond_loopback_needs_a_mode_that_is_written_down(
    tmp_path: Path, host: str
) -> None:
    text = f"[http]\nbind = '{host}:4080'\n"
    (problem,) = problems_of(tmp_path, text)
    assert "which other machines may reach, and auth.mode is not set" in problem
    assert loaded(tmp_path, text + "[auth]\nmode = 'none'\n").auth.mode == "none"
    assert load(options={"http.bind": f"{host}:1"}, environ={"REPL_BROKER_AUTH_MODE": "none"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_on_loopback_nothing_need_be_written_down(tmp_path: Path, host: str) -> None:
    assert loaded(tmp_path, f"[http]\nbind = '{host}:4080'\n").auth.mode is None


def test_the_tokens_of_the_command_line_are_no_unknown_variables() -> None:
    assert load(environ={"REPL_BROKER_TOKEN": "x", "REPL_BROKER_TOKEN_FILE": "y"}) == Config()


# --- hints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("::1:15055", "an IPv6 address stands in brackets: [::1]:15055"),
        ("::1", "an IPv6 address stands in brackets: [::1]:4080"),
        ("::", "an IPv6 address stands in brackets: [::]:4080"),
        ("fe80::1:2:8080", "an IPv6 address stands in brackets: [fe80::1:2:8080]:4080"),
        ("1:2:3:4:5:6:7:8:80", "an IPv6 address stands in brackets: [1:2:3:4:5:6:7:8]:80"),
        ("[::1]", "the port is missing: [::1]:4080"),
        ("127.0.0.1", "the port is missing: 127.0.0.1:4080"),
        (":4080", "the host is missing: 127.0.0.1:4080"),
        ("http://127.0.0.1:4080", "leave out the scheme"),
        ("a b:1", "found 'a b:1'"),
    ],
)
def test_an_address_that_is_not_one_is_told_how_to_be_written(text: str, hint: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Address.parse(text)
    assert str(caught.value).endswith(hint)


def test_a_secret_in_the_place_of_its_file_is_not_shown(tmp_path: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    for section in ("auth", "cluster"):
        file = tmp_path / "n.toml"
        file.write_text(f'[{section}]\nsecret_file = "{secret}"\n')
        with pytest.raises(ConfigError, match="looks like the secret itself") as caught:
            load(file)
        assert secret not in str(caught.value)
        file.write_text(f'[{section}]\nsecret_file = "no/such/file-with-a-long-name"\n')
        with pytest.raises(ConfigError, match="no/such/file"):
            load(file)


def test_a_password_in_a_url_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "n.toml"
    for key in ("http]\npublic_url", "tracing]\nendpoint"):
        file.write_text(f'[{key} = "https://ann:s3cr3t@broker.example"\n')
        with pytest.raises(ConfigError, match=r"https://…@broker\.example") as caught:
            load(file)
        assert "s3cr3t" not in str(caught.value)
