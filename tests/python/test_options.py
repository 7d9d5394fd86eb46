"""Where options come from, what counts, and that each of them arrives where it has its effect."""

from __future__ import annotations

import base64
import json
import logging
import tomllib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ech_workers import _native
from ech_workers.cli import logs
from ech_workers.errors import ConfigError
from ech_workers.options import file, load, reference, schema
from ech_workers.options.client import CLIENT, SERVER_TABLE
from ech_workers.options.schema import options_of
from ech_workers.options.server import SERVER
from ech_workers.options.sources import Given, environment, merge
from ech_workers.server import TunnelServer
from ech_workers.tunnel import Tunnel
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ech_workers.config import ClientConfig


def command_line(**options: Any) -> dict[str, Given]:
    return {name: Given(value, schema.flag(name)) for name, value in options.items()}


def client(text: str = "", variables: dict[str, str] | None = None, *, folder: Path, **options: Any) -> ClientConfig:
    path = folder / "config.toml"
    path.write_text(text)
    path.chmod(0o600)
    options = {"cache_dir": "", **options}
    return load.client(command_line(**options), config=str(path), variables=variables or {}).config


def refused(text: str, folder: Path, variables: dict[str, str] | None = None, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        client(text, variables, folder=folder, **options)
    assert caught.value.exit_code == 2
    return caught.value.line().replace(f"{folder}/", "").removeprefix("config: ")


# ---------------------------------------------------------------- precedence


def test_the_later_place_counts(tmp_path: Path) -> None:
    text = 'server = "file.test"\nsessions = 2\nopen_timeout = "3s"\nreply = "confirmed"\n'
    variables = {"ECH_WORKERS_SESSIONS": "3", "ECH_WORKERS_OPEN_TIMEOUT": "4s"}
    config = client(text, variables, folder=tmp_path, sessions=4)
    assert config.server.host == "file.test"
    assert config.reply == "confirmed"
    assert config.open_timeout == 4.0
    assert config.sessions == 4
    assert config.idle_timeout == 600.0


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ({"token_file": "/nowhere"}, {"token": "mine"}),
        ({"ech_config": "AAAA", "ech_domain": "a.test", "ech_bootstrap": "b.test"}, {"ech": False}),
        ({"ech": False}, {"ech_domain": "a.test"}),
        ({"ech_domain": "a.test"}, {"ech_bootstrap": "b.test"}),
        (
            {"doh_server": ("https://a.test/",), "doh_ip": ("192.0.2.1", "192.0.2.2")},
            {"doh_server": ("https://dns.google",)},
        ),
    ],
)
@pytest.mark.parametrize("place", ["file", "environment"])
def test_what_is_given_replaces_what_it_excludes_below(
    below: dict[str, Any], above: dict[str, Any], place: str, tmp_path: Path
) -> None:
    text, variables = 'server = "a.test"\n', {}
    if place == "file":
        text += "".join(f"{name} = {json.dumps(value)}\n" for name, value in below.items())
    else:
        variables = {
            "ECH_WORKERS_" + name.upper(): " ".join(value) if isinstance(value, tuple) else str(value)
            for name, value in below.items()
        }
    client(text, variables, folder=tmp_path, **above)


def test_two_that_exclude_one_another_in_one_place_are_refused(tmp_path: Path) -> None:
    variables = {"ECH_WORKERS_TOKEN": "x", "ECH_WORKERS_TOKEN_FILE": "y"}
    said = refused('server = "a.test"', tmp_path, variables)
    assert said == "ECH_WORKERS_TOKEN_FILE: --token is given too; leave one of them out"


# ---------------------------------------------------------------- the environment


def test_a_list_in_the_environment_holds_paths_with_spaces() -> None:
    def read(text: str) -> object:
        return environment(SERVER, "X_", {"X_CERT": text})["cert"].value

    assert read("a.pem b.pem") == ("a.pem", "b.pem")
    assert read("'my certs/a.pem' \"my certs/b.pem\"") == ("my certs/a.pem", "my certs/b.pem")
    assert read("my certs/a.pem\nmy certs/b.pem\n") == ("my certs/a.pem", "my certs/b.pem")
    with pytest.raises(ConfigError, match="X_CERT: a quote is not closed"):
        read("'my certs/a.pem")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ECH_WORKERS_SESSIONS": "two"}, "ECH_WORKERS_SESSIONS: 'two' is no number"),
        ({"ECH_WORKERS_SESSIONS": "65"}, "ECH_WORKERS_SESSIONS: 65 is out of range; choose from 0 to 64"),
        ({"ECH_WORKERS_ECH": "maybe"}, "ECH_WORKERS_ECH: 'maybe' is neither 1 nor 0"),
        ({"ECH_WORKERS_OPEN_TIMEOUT": "soon"}, "ECH_WORKERS_OPEN_TIMEOUT: 'soon' is no time; write 90"),
        ({"ECH_WORKERS_TOKEN": "\udcff"}, "ECH_WORKERS_TOKEN: is not in the encoding of this system"),
        ({"ECH_WORKERS_TOKEN_FILE": "/nowhere"}, "ECH_WORKERS_TOKEN_FILE: cannot read /nowhere: No such file"),
    ],
)
def test_a_wrong_variable_is_named(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    assert refused('server = "a.test"', tmp_path, variables).startswith(said)


def test_quotes_that_an_env_file_left_are_taken_off(tmp_path: Path) -> None:
    variables = {"ECH_WORKERS_SERVER": '"a.test/ws"', "ECH_WORKERS_TOKEN": "'s3cret'", "ECH_WORKERS_ECH": '"0"'}
    config = client("", variables, folder=tmp_path)
    assert (config.server.path, config.token, config.ech) == ("/ws", "s3cret", False)


def test_an_empty_variable_counts_as_none_but_where_it_has_a_meaning(tmp_path: Path) -> None:
    variables = {"ECH_WORKERS_TOKEN": "", "ECH_WORKERS_CACHE_DIR": ""}
    found = load.client(command_line(server="a.test"), config="", variables=variables).config
    assert found.token is None
    assert found.cache_dir is None


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sesions = 2", "--config: config.toml, line 1: 'sesions' is no option; did you mean sessions?"),
        (
            "# x\n\nech-domian = 'a'",
            "--config: config.toml, line 3: 'ech-domian' is no option; did you mean ech_domain?",
        ),
        (
            "cert = 'a.pem'",
            "--config: config.toml, line 1: 'cert' is no option; that is an option of `ech-workers server`",
        ),
        ("sessions = 'two'", "--config: config.toml, line 1: sessions: expected a whole number, not a text"),
        ("sessions = 1.5", "config.toml, line 1: sessions: 1.5 is no whole number"),
        ("sessions = -1", "config.toml, line 1: sessions: -1 is out of range; choose from 0 to 64"),
        ("ech = 'no'", "--config: config.toml, line 1: ech: expected true or false, not a text"),
        ("idle_timeout = 'soon'", "--config: config.toml, line 1: idle_timeout: 'soon' is no time"),
        ("token = 7", "--config: config.toml, line 1: token: expected a text, not 7"),
        ("server_ip = [1]", "--config: config.toml, line 1: server_ip: expected a list of texts, not a list"),
        ("reply = 'perhaps'", "config.toml, line 1: reply: 'perhaps' is not known; choose from optimistic, confirmed"),
        ("x = ", "--config: config.toml, line 1: expected text in double quotes, a number"),
        ("token = [\n  s3cret=,\n]", "--config: config.toml, line 2: expected text in double quotes, a number"),
        ("[[server]]\npriority = first", "--config: config.toml, line 2: priority: expected text in double quotes"),
        ('a = "b"\ntoken = s3cret', "--config: config.toml, line 2: token: expected text in double quotes, a number"),
        ("sessions = 1\nsessions = 2", "--config: config.toml, line 2: Cannot overwrite a value"),
        ("[sessions]\nx = 1", "--config: config.toml, line 1: sessions: expected a whole number, not a table"),
        ("token = '''\nsessions = 0\n'''\nsesions = 1", "--config: config.toml, line 4: 'sesions' is no option"),
    ],
)
def test_a_mistake_in_a_file_is_named_by_line_and_key(text: str, said: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path, server="a.test").startswith(said)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "list.ech").write_bytes(_native.generate_ech_key(1, "public.test")[1])
    config = client('server = "a.test"\ntoken_file = "token"\nech_config = "@list.ech"\nlisten = 1081', folder=tmp_path)
    assert config.token == "s3cret"
    assert config.ech_config is not None
    assert config.listen[0].port == 1081


def test_a_secret_that_others_can_read_gets_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[[server]]\naddress = "a.test"\ntoken = "s3cret"\n')
    path.chmod(0o644)
    (warning,) = load.client({}, config=str(path), variables={}).warnings
    assert warning == (
        f"{path} holds a secret (token) and can be read by other users of this machine: chmod 600 {path}"
    )
    path.chmod(0o600)
    assert load.client({}, config=str(path), variables={}).warnings == ()


def test_the_users_file_comes_before_the_systems(tmp_path: Path) -> None:
    mine = tmp_path / "config" / "ech-workers"
    mine.mkdir(parents=True)
    (mine / "config.toml").write_text('server = "mine.test"')
    assert file.find("config.toml", {"XDG_CONFIG_HOME": str(tmp_path / "config")}) == mine / "config.toml"
    assert file.find("other.toml", {"XDG_CONFIG_HOME": str(tmp_path / "config")}) is None
    (tmp_path / ".config").symlink_to(tmp_path / "config")
    assert (
        load.client({}, variables={"HOME": str(tmp_path), "ECH_WORKERS_CACHE_DIR": ""}).config.server.host
        == "mine.test"
    )


def test_no_file_is_read_when_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "ech-workers"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("nonsense")
    made = load.client(command_line(server="a.test", cache_dir=""), config="", variables={"HOME": str(tmp_path)})
    assert made.path is None


@given(st.text(max_size=200))
def test_any_text_is_a_file_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("file") / "config.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        file.read(path, CLIENT, {"server": SERVER_TABLE})
    except ConfigError as error:
        said = error.line()
    else:
        return
    assert str(path) in said


SERVERS = """
token = "common"
profile = "firefox-153"

[[server]]
name = "home"
address = "home.test/ws"
token_file = "home-token"

[[server]]
name = "spare"
address = "spare.test:8443/x"
yamux = false
priority = 1
weight = 3
"""


def test_several_servers_have_what_is_theirs_and_what_stands_above(tmp_path: Path) -> None:
    (tmp_path / "home-token").write_text("own")
    config = client(SERVERS, folder=tmp_path)
    home, spare = config.upstreams
    assert (home.name, str(home.server), home.token, home.mode) == ("home", "home.test:443/ws", "own", "yamux")
    assert (spare.name, str(spare.server), spare.token, spare.mode) == (
        "spare",
        "spare.test:8443/x",
        "common",
        "simple",
    )
    assert (home.priority, spare.priority, spare.weight) == (0, 1, 3)
    assert home.profile == spare.profile == "firefox-153"
    assert (config.server, config.token) == (home.server, home.token)


def test_one_of_several_servers_can_be_picked_or_left_aside(tmp_path: Path) -> None:
    (tmp_path / "home-token").write_text("own")
    (only,) = client(SERVERS, folder=tmp_path, server="spare", token="mine").upstreams
    assert (only.name, only.token) == ("spare", "mine")
    (other,) = client(SERVERS, folder=tmp_path, server="other.test/ws").upstreams
    assert (other.name, other.token) == ("other.test:443", "common")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[server]]\ntoken = 'x'", "--server: is missing; "),
        (
            "[[server]]\naddress = 'a.test'\nwieght = 1",
            "--config: config.toml, line 3: 'wieght' is no option; did you mean weight?",
        ),
        (
            "[[server]]\naddress = 'a.test'\nweight = 0",
            "config.toml, line 3: weight: a server of the weight 0 would have no share",
        ),
        (
            "[[server]]\naddress = 'a.test'\n[[server]]\naddress = '192.0.2.1'",
            "config.toml, line 4: address: ECH hides a name",
        ),
        (
            "[[server]]\naddress = 'a.test'\nname = 'x'\n[[server]]\naddress = 'b.test'\nname = 'x'",
            "config.toml, line 6: name: 'x' is the name of two servers",
        ),
    ],
)
def test_a_mistake_in_a_server_is_named_by_its_line(text: str, said: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(said)


def test_what_belongs_to_one_server_cannot_be_given_to_several(tmp_path: Path) -> None:
    (tmp_path / "home-token").write_text("own")
    said = refused(SERVERS, tmp_path, token="x")
    assert said.startswith("--token: there are 2 servers in config.toml; say it in the [[server]] it is for")


def test_the_json_schema_takes_what_the_program_takes() -> None:
    for made in (reference.json_schema(), reference.server_json_schema()):
        assert made["additionalProperties"] is False
    tables = reference.json_schema()["properties"]["server"]["oneOf"][1]["items"]["properties"]
    assert {"address", "token", "priority", "weight"} <= set(tables)
    for name, declared in options_of(CLIENT).items():
        assert reference.json_schema()["properties"][name]["description"] or declared.about == ""


def test_merging_keeps_where_a_value_came_from() -> None:
    settings = merge(CLIENT, [{"sessions": Given(1, "a.toml, line 1: sessions")}, {"sessions": Given(2, "--sessions")}])
    assert settings.given["sessions"] == Given(2, "--sessions")
    assert tomllib.loads("sessions = 2") == settings.values


# ---------------------------------------------------------------- each option arrives


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What the real native module is called with, by class; listen is a method of Engine."""
    calls: dict[str, list[dict[str, Any]]] = {"listen": []}

    def recorder(name: str) -> None:
        real = getattr(_native, name)
        calls[name] = []

        def make(*arguments: Any, **options: Any) -> Any:
            calls[name].append(options)
            return real(*arguments, **options)

        monkeypatch.setattr(_native, name, make)

    for name in ("Engine", "EngineConfiguration", "DialPlan", "FetchPlan", "Server", "ServerConfiguration"):
        recorder(name)
    return calls


CONFIGS = base64.b64encode(_native.generate_ech_key(7, "public.test")[1]).decode()
NOWHERE = {
    "server": "hidden.test:1/ws",
    "server_ip": ["127.0.0.1"],
    "ech_config": CONFIGS,
    "listen": (),
    "cache_dir": "",
}

Calls = dict[str, list[dict[str, Any]]]


def _plan(name: str) -> Callable[[Calls, Tunnel], object]:
    return lambda calls, tunnel: calls["DialPlan"][0][name]


def _engine(name: str) -> Callable[[Calls, Tunnel], object]:
    return lambda calls, tunnel: calls["EngineConfiguration"][0][name]


def _fetch(name: str) -> Callable[[Calls, Tunnel], object]:
    return lambda calls, tunnel: calls["FetchPlan"][0][name]


LOOKED_UP = {"ech_config": None}

# Of each option: what is given, what else it takes for that to matter, where it is seen, and as what.
ARRIVALS: dict[str, tuple[Any, dict[str, Any], Callable[[Calls, Tunnel], object], object]] = {
    "server": ("b.test:2/x", {}, lambda calls, tunnel: [calls["DialPlan"][0][n] for n in ("server_name", "port", "path")], ["b.test", 2, "/x"]),
    "token": ("s3cret", {}, _plan("token"), "s3cret"),
    "token_file": ("TOKENS", {}, _plan("token"), "from-a-file"),
    "ech": (False, LOOKED_UP, _plan("ech"), None),
    "yamux": (False, {}, _plan("mode"), "simple"),
    "server_ip": (["127.0.0.2"], {}, lambda calls, tunnel: list(calls["DialPlan"][0]["addresses"]), ["127.0.0.2"]),
    "ech_config": (CONFIGS, {}, _plan("ech"), base64.b64decode(CONFIGS)),
    "profile": ("firefox-153", {}, _plan("profile"), "firefox-153"),
    "alpn": ("http/1.1", {}, _plan("alpn"), "http/1.1"),
    "ech_domain": ("ech.test", LOOKED_UP, lambda calls, tunnel: _asked(calls, b"\x03ech\x04test\x00"), True),
    "ech_bootstrap": (
        "public.test",
        {**LOOKED_UP, "doh_server": ["https://127.0.0.1:1/"]},
        lambda calls, tunnel: _native.parse_ech_config_list(calls["DialPlan"][0]["ech"])[0].public_name,
        "public.test",
    ),
    "doh_server": (["https://127.0.0.3:1/q"], LOOKED_UP, _fetch("server_name"), "127.0.0.3"),
    "doh_ip": (
        ["127.0.0.4"],
        {**LOOKED_UP, "doh_server": ["https://dns.test:1/q"]},
        lambda calls, tunnel: list(calls["FetchPlan"][0]["addresses"]),
        ["127.0.0.4"],
    ),
    "ca_file": ("CA", {}, lambda calls, tunnel: b"BEGIN CERTIFICATE" in calls["EngineConfiguration"][0]["ca_pem"][0], True),
    "sessions": (2, {}, lambda calls, tunnel: tunnel.status().wanted, 2),
    "policy": ("fastest", {}, lambda calls, tunnel: tunnel.config.policy, "fastest"),
    "standby": ("cold", {}, lambda calls, tunnel: tunnel.config.standby, "cold"),
    "reply": ("confirmed", {}, _engine("reply"), "confirmed"),
    "open_timeout": (3.0, {}, _engine("open_timeout"), 3.0),
    "idle_timeout": (33.0, {}, _engine("idle_timeout"), 33.0),
    "max_connections": (77, {}, _engine("max_connections"), 77),
    "memory_limit": (32 << 20, {}, _engine("memory_limit"), 32 << 20),
    "listen": (["127.0.0.1:0", "[::1]:0"], {}, lambda calls, tunnel: [host for host, _ in tunnel.addresses], ["127.0.0.1", "::1"]),
    "username": ("ann", {"password": "pw", "listen": ["0"]}, lambda calls, tunnel: _greeting(tunnel, b"\x05\x01\x00"), b"\x05\xff"),
    "password": ("pw", {"username": "ann", "listen": ["0"]}, lambda calls, tunnel: _greeting(tunnel, b"\x05\x01\x02"), b"\x05\x02"),
    "status_listen": (["0"], {}, lambda calls, tunnel: len(tunnel.status_addresses), 1),
    "status_host": (
        ["proxy"],
        {"status_listen": ["0"]},
        lambda calls, tunnel: _http_status(tunnel, "127.0.0.1", {"Host": "proxy"}),
        503,
    ),
    "status_token": (
        "s3cret",
        {"status_listen": ["0.0.0.0:0"]},
        lambda calls, tunnel: _http_status(tunnel, "127.0.0.1", {}),
        503,
    ),
    "cache_dir": ("FOLDER", {"ech_config": CONFIGS}, lambda calls, tunnel: tunnel.config.cache_dir is not None, True),
}  # fmt: skip


def _asked(calls: Calls, name: bytes) -> bool:
    return any(name in fetch.get("body", b"") or _in_path(fetch["path"], name) for fetch in calls["FetchPlan"])


def _in_path(path: str, name: bytes) -> bool:
    encoded = path.partition("dns=")[2]
    return name in base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def _http_status(tunnel: Tunnel | TunnelServer, host: str, headers: dict[str, str], path: str = "/healthz") -> int:
    import http.client

    client = http.client.HTTPConnection(host, tunnel.status_addresses[0][1], timeout=5)
    client.request("GET", path, headers=headers)
    answer = client.getresponse()
    client.close()
    return answer.status


def _greeting(tunnel: Tunnel, sent: bytes) -> bytes:
    import socket

    with socket.create_connection(tunnel.addresses[0], 5) as connection:
        connection.sendall(sent)
        return connection.recv(2)


# Tested below, and with whole processes in tests/integration/test_control.py.
LOGGING = {name for name in options_of(CLIENT) if name.startswith("log_")} | {"control"}


def test_the_table_of_arrivals_has_every_option() -> None:
    assert set(ARRIVALS) == set(options_of(CLIENT)) - LOGGING
    assert set(SERVER_ARRIVALS) == set(options_of(SERVER)) - LOGGING


@pytest.mark.parametrize("name", ARRIVALS)
def test_every_option_of_the_proxy_arrives(name: str, native: Calls, tmp_path: Path) -> None:
    value, others, seen, expected = ARRIVALS[name]
    (tmp_path / "tokens").write_text("from-a-file")
    (tmp_path / "ca.pem").write_bytes(_native.CertificateAuthority().pem)
    value = {"TOKENS": str(tmp_path / "tokens"), "CA": str(tmp_path / "ca.pem"), "FOLDER": str(tmp_path)}.get(
        str(value), value
    )
    options = {name: value for name, value in {**NOWHERE, **others, name: value}.items() if value is not None}
    config = load.client(command_line(**options), config="", variables={}).config
    tunnel = Tunnel.from_config(config)
    try:
        tunnel.start()

        def arrived() -> bool:
            try:
                return seen(native, tunnel) == expected
            except (IndexError, KeyError):
                return False

        wait_until(arrived, f"{name} to arrive: {native}", 20)
    finally:
        tunnel.close()


SERVER_ARRIVALS: dict[str, tuple[Any, Callable[[dict[str, Any]], object], object]] = {
    "listen": ("127.0.0.2:0", lambda made: (made["host"], made["port"]), ("127.0.0.2", 0)),
    "cert": (None, lambda made: b"BEGIN CERTIFICATE" in made["certificates"][0][0], True),
    "key": (None, lambda made: b"PRIVATE KEY" in made["certificates"][0][1], True),
    "ech_keys": ("KEYS", lambda made: b"ECHCONFIG" in made["ech_keys"][0][0], True),
    "ticket_keys": ("KEYS", lambda made: made["ticket_keys"], (b"k" * 80,)),
    "token": (["a", "b"], lambda made: made["tokens"], [("a", "token 1"), ("b", "token 2")]),
    "token_file": ("TOKENS", lambda made: made["tokens"], [("x", "token 1"), ("from-a-file", "Ann's laptop")]),
    "path": ("/ws", lambda made: made["path"], "/ws"),
    "decoy": ("TOKENS", lambda made: made["decoy"][:11], b"from-a-file"),
    "public_healthz": (True, lambda made: made["healthz"], True),
    "allow_private_targets": (True, lambda made: made["allow_private_targets"], True),
    "max_sessions": (5, lambda made: made["max_sessions"], 5),
    "max_streams": (6, lambda made: made["max_streams"], 6),
    "memory_limit": (32 << 20, lambda made: made["memory_limit"], 32 << 20),
    "connect_timeout": (7.0, lambda made: made["connect_timeout"], 7.0),
    "idle_timeout": (8.0, lambda made: made["idle_timeout"], 8.0),
    "drain": (9.0, lambda made: made["drain"], 9.0),
    "workers": (2, lambda made: made["workers"], 2),
    "status_listen": (["0"], lambda made: made["readyz"], 200),
    "status_host": (["server"], lambda made: made["readyz"], 200),
    "status_token": ("s3cret", lambda made: made["readyz"], 200),
}


@pytest.mark.parametrize("name", SERVER_ARRIVALS)
def test_every_option_of_the_server_arrives(name: str, native: Calls, tmp_path: Path) -> None:
    value, seen, expected = SERVER_ARRIVALS[name]
    chain, key = _native.CertificateAuthority().issue(["tunnel.test"], not_after=30 * 86400)
    (tmp_path / "cert.pem").write_bytes(chain)
    (tmp_path / "cert.key").write_bytes(key)
    (tmp_path / "tokens").write_text("from-a-file # Ann's  laptop")
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "1.pem").write_bytes(_native.generate_ech_key(1, "tunnel.test")[0])
    (keys / "1.key").write_bytes(b"k" * 80)
    options: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "cert": [str(tmp_path / "cert.pem")],
        "key": [str(tmp_path / "cert.key")],
        "token": ["x"],
    }
    if value is not None:
        options[name] = {"TOKENS": str(tmp_path / "tokens"), "KEYS": str(keys)}.get(str(value), value)
    host_header = {"Host": "server"} if name == "status_host" else {}
    if name in ("status_host", "status_token"):
        # Without a token the second could not be opened.
        options["status_listen"] = ["0" if name == "status_host" else "0.0.0.0:0"]
    config = load.server(command_line(**options), config="", variables={}).config
    server = TunnelServer(config)
    try:
        readyz = _http_status(server, "127.0.0.1", host_header, "/readyz") if config.status_listen else None
    finally:
        server.close()
    made = {key: value for calls in ("Server", "ServerConfiguration") for key, value in native[calls][0].items()}
    # How long to drain is given to close().
    assert seen({**made, "drain": config.drain, "readyz": readyz}) == expected


def test_the_options_of_the_log_arrive(tmp_path: Path) -> None:
    options = {
        "log_level": "warning",
        "log_file": str(tmp_path / "log"),
        "log_format": "json",
        "log_max_size": 50,
        "log_max_age": 1000.0,
        "log_keep": 1,
        "log_targets": False,
    }
    config = load.client(command_line(server="a.test", **options, cache_dir=""), config="", variables={}).config
    logs.configure(config, config.log_file)
    log = logging.getLogger("ech_workers.test")
    for number in range(4):
        log.warning("line %d", number)
        log.info("not this")
        logging.getLogger("ech_workers.tunnel.targets").error("nor this: www.example.org")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert json.loads((tmp_path / "log").read_text())["message"] == "line 3"
    handler = logging.getLogger("ech_workers").handlers[0]
    assert isinstance(handler, logs.LogFile)
    assert handler._max_age == 1000.0
    logs.configure(msgspec.structs.replace(config, log_targets=True), None)
    assert not logging.getLogger("ech_workers.tunnel.targets").disabled
