"""What options mean, and what is said about options that cannot be right."""

from __future__ import annotations

import base64
from datetime import timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ech_workers import _native
from ech_workers.config import (
    DEFAULT_RESOLVERS,
    ClientConfig,
    ClientOptions,
    ListenAddress,
    Resolver,
    ServerAddress,
    ServerConfig,
    ServerOptions,
)
from ech_workers.errors import ConfigError
from ech_workers.options.client import CLIENT
from ech_workers.options.schema import options_of
from ech_workers.options.server import SERVER
from ech_workers.tunnel import Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def build(**options: Any) -> ClientConfig:
    return ClientConfig.build(**{"server": "tunnel.test/ws", "cache_dir": "", **options})


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("tunnel.test", "tunnel.test", 443, "/"),
        ("tunnel.test/ws", "tunnel.test", 443, "/ws"),
        ("tunnel.test:8443/a/b?c=d", "tunnel.test", 8443, "/a/b?c=d"),
        ("wss://tunnel.test/ws", "tunnel.test", 443, "/ws"),
        ("https://tunnel.test:8443", "tunnel.test", 8443, "/"),
        ("Tunnel.TEST./ws", "tunnel.test", 443, "/ws"),
        ("bücher.test/ws", "xn--bcher-kva.test", 443, "/ws"),
        ("straße.test/ws", "xn--strae-oqa.test", 443, "/ws"),
        ("_dns.tunnel.test/ws", "_dns.tunnel.test", 443, "/ws"),
        ("[2001:DB8::1]:8443/ws", "2001:db8::1", 8443, "/ws"),
        ("tunnel.test/übung", "tunnel.test", 443, "/%C3%BCbung"),
        ("tunnel.test/a%2Fb", "tunnel.test", 443, "/a%2Fb"),
    ],
)
def test_server_is_read_the_way_it_is_written(text: str, host: str, port: int, path: str) -> None:
    assert ServerAddress.parse(text) == ServerAddress(host, port, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ws",
        "http://tunnel.test/",
        "tunnel.test:0/",
        "tunnel.test:65536/",
        "tunnel.test:/",
        "tunnel.test:port/",
        "tunnel.test:\uff18443/",
        "2001:db8::1/ws",
        "[2001:db8::1/ws",
        "[tunnel.test]/ws",
        "user@tunnel.test/ws",
        "two words.test/ws",
        "tunnel..test/ws",
        "-tunnel.test/ws",
        "tunnel.test/a b",
        "tunnel.test/a#b",
        "tunnel.test/a\nHost: x",
        "1.2.3/ws",
        "a" * 64 + ".test/ws",
        ".".join(["a" * 60] * 5) + "/ws",
    ],
)
def test_a_server_that_cannot_be_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(server=text)
    assert caught.value.option == "--server"
    assert caught.value.exit_code == 2


@given(st.text(max_size=300))
def test_any_text_is_a_server_or_a_clear_error(text: str) -> None:
    try:
        parsed = ServerAddress.parse(text)
    except ConfigError:
        return
    assert parsed.host.isascii()
    assert parsed.path.isascii()
    assert parsed.path.startswith("/")
    assert not set(parsed.path + parsed.host) & set(" \r\n\t#")
    assert 1 <= parsed.port <= 65535
    # What is shown can be given again.
    assert ServerAddress.parse(str(parsed)) == parsed


def test_an_address_in_place_of_the_name_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"ECH hides a name.*--server-ip 192\.0\.2\.1"):
        build(server="192.0.2.1/ws")
    assert build(server="192.0.2.1/ws", ech=False).server.host == "192.0.2.1"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1080", "127.0.0.1", 1080),
        ("1080", "127.0.0.1", 1080),
        ("[::1]:0", "::1", 0),
        ("localhost:1080", "localhost", 1080),
        ("0.0.0.0:1080", "0.0.0.0", 1080),
    ],
)
def test_listen_is_read_the_way_it_is_written(text: str, host: str, port: int) -> None:
    assert ListenAddress.parse(text) == ListenAddress(host, port)


@pytest.mark.parametrize(
    "text", ["", ":1080", "1080x", "127.0.0.1", "example.test:1080", "127.0.0.1:65536", "::1:1080"]
)
def test_a_port_that_cannot_be_opened_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ListenAddress.parse(text)
    assert caught.value.option == "--listen"


def test_only_loopback_is_loopback() -> None:
    assert ListenAddress("127.0.0.2", 1).loopback
    assert ListenAddress("::1", 1).loopback
    assert not ListenAddress("0.0.0.0", 1).loopback
    assert not ListenAddress("::", 1).loopback


def test_defaults_are_those_of_the_documentation() -> None:
    config = build()
    assert config.token is None
    assert config.ech
    assert config.mode == "yamux"
    assert config.resolvers == DEFAULT_RESOLVERS
    assert config.listen == (ListenAddress("127.0.0.1", 1080),)
    assert config.sessions == 0
    assert config.profile == "firefox"
    assert config.reply == "optimistic"
    assert config.status_listen == ()


def test_the_status_page_is_on_loopback_unless_an_address_is_given() -> None:
    assert build(status_listen="9090").status_listen == (ListenAddress("127.0.0.1", 9090),)
    assert build(status_listen=["0.0.0.0:9090", "[::1]:0"], status_token="x").status_listen == (
        ListenAddress("0.0.0.0", 9090),
        ListenAddress("::1", 0),
    )


def test_a_status_page_for_other_machines_needs_a_token() -> None:
    with pytest.raises(ConfigError, match=r"--status-listen: other machines could read .*; give --status-token"):
        build(status_listen=["127.0.0.1:0", "192.0.2.1:0"])


def test_built_in_resolvers_need_no_look_up() -> None:
    assert len({resolver.host for resolver in DEFAULT_RESOLVERS}) >= 3
    for resolver in DEFAULT_RESOLVERS:
        assert len(resolver.addresses) >= 2
        assert Resolver.parse(resolver.url) == resolver


@pytest.mark.parametrize(
    ("url", "addresses", "expected"),
    [
        (
            "https://dns.test/query",
            ["192.0.2.1"],
            Resolver("https://dns.test/query", "dns.test", 443, "/query", ("192.0.2.1",)),
        ),
        ("dns.google", [], DEFAULT_RESOLVERS[2]),
        ("https://dns.google/dns-query{?dns}", [], DEFAULT_RESOLVERS[2]),
        (
            "https://9.9.9.9/dns-query",
            [],
            Resolver("https://9.9.9.9/dns-query", "9.9.9.9", 443, "/dns-query", ("9.9.9.9",)),
        ),
        (
            "https://[2620:fe::fe]:5053/dns-query",
            [],
            Resolver("https://[2620:fe::fe]:5053/dns-query", "2620:fe::fe", 5053, "/dns-query", ("2620:fe::fe",)),
        ),
    ],
)
def test_resolver_urls(url: str, addresses: list[str], expected: Resolver) -> None:
    assert Resolver.parse(url, addresses) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://dns.google/dns-query",
        "https://",
        "https://dns.google:0/",
        "https://user@dns.google/",
        "https://dns.google:x/",
    ],
)
def test_a_resolver_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Resolver.parse(url, ["192.0.2.1"])
    assert caught.value.option == "--doh-server"


def test_a_resolver_without_an_address_is_never_looked_up_in_plain_dns() -> None:
    with pytest.raises(ConfigError, match=r"plain DNS is never asked; give its address with --doh-ip"):
        build(doh_server="https://dns.test/dns-query")


def test_addresses_go_with_their_resolvers() -> None:
    one = build(doh_server="https://dns.test/q", doh_ip=["192.0.2.1", "192.0.2.2"])
    assert one.resolvers[0].addresses == ("192.0.2.1", "192.0.2.2")
    two = build(doh_server=["https://a.test/q", "https://b.test/q"], doh_ip=["192.0.2.1", "192.0.2.2"])
    assert [resolver.addresses for resolver in two.resolvers] == [("192.0.2.1",), ("192.0.2.2",)]
    with pytest.raises(ConfigError, match="3 addresses for 2 resolvers"):
        build(doh_server=["https://a.test/q", "https://b.test/q"], doh_ip=["192.0.2.1", "192.0.2.2", "192.0.2.3"])
    with pytest.raises(ConfigError, match="--doh-ip"):
        build(doh_ip="192.0.2.1")


@pytest.fixture(scope="module")
def key() -> tuple[bytes, bytes]:
    return _native.generate_ech_key(17, "public.test")


def test_ech_configurations_are_taken_in_every_form(key: tuple[bytes, bytes], tmp_path: Path) -> None:
    raw = key[1]
    encoded = base64.b64encode(raw).decode()
    forms: dict[str, bytes] = {
        "raw": raw,
        "base64": encoded.encode(),
        "base64 with lines": "\n".join(encoded[i : i + 20] for i in range(0, len(encoded), 20)).encode() + b"\n",
        "configuration alone": b"-----BEGIN ECHCONFIG-----\n" + base64.encodebytes(raw) + b"-----END ECHCONFIG-----\n",
    }
    assert build(ech_config=encoded).ech_config == raw
    assert build(ech_config=raw).ech_config == raw
    for name, content in forms.items():
        file = tmp_path / name
        file.write_bytes(content)
        assert build(ech_config=f"@{file}").ech_config == raw, name


def test_a_client_refuses_the_servers_private_key(key: tuple[bytes, bytes], tmp_path: Path) -> None:
    file = tmp_path / "17.pem"
    # As `sed` copies it when the directory holds two keys: the private key stands in the middle.
    public = b"-----BEGIN ECHCONFIG-----\n" + base64.encodebytes(key[1]) + b"-----END ECHCONFIG-----\n"
    for content in (key[0], public + key[0]):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"17\.pem has the server's private key in it") as caught:
            build(ech_config=f"@{file}")
        assert caught.value.option == "--ech-config"
        assert caught.value.code == "ech-private-key"


EDITORS = {
    "Windows": ("\ufeff{}\r\n", "utf-8"),
    "PowerShell": ("\ufeff{}\r\n", "utf-16-le"),
    "big-endian": ("\ufeff{}\n", "utf-16-be"),
    "without an end": ("{}", "utf-8"),
}


@pytest.mark.parametrize("editor", EDITORS)
def test_files_are_read_as_editors_save_them(editor: str, key: tuple[bytes, bytes], tmp_path: Path) -> None:
    form, encoding = EDITORS[editor]
    file = tmp_path / "file"
    file.write_bytes(form.format("# mine\r\ns3cret").encode(encoding))
    assert build(token_file=file).token == "s3cret"
    file.write_bytes(form.format(base64.b64encode(key[1]).decode()).encode(encoding))
    assert build(ech_config=f"@{file}").ech_config == key[1]
    pem = "-----BEGIN ECHCONFIG-----\r\n" + base64.b64encode(key[1]).decode() + "\r\n-----END ECHCONFIG-----"
    file.write_bytes(form.format(pem).encode(encoding))
    assert build(ech_config=f"@{file}").ech_config == key[1]


def test_a_token_in_quotes_is_named(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("# mine\n\n'abc'\n")
    with pytest.raises(ConfigError, match=r"token, line 3: the token is in quotes; write it without them"):
        build(token_file=file)
    with pytest.raises(ConfigError, match=r"--token: the token is in quotes"):
        build(token='"abc"')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nb ad\n", "line 2: a token is 1 to 512"),
        (b"good\n\xff\xfe\n", "line 2: this is no text in UTF-8"),
    ],
)
def test_a_wrong_line_of_a_token_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{file}, {message}"):
        build(token_file=file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:3], "%%%%", *lines[3:]], "line 4: this is no base64"),
        (lambda lines: lines[:-1], "the CERTIFICATE of line 1 has no end"),
        (lambda lines: [*lines[:3], *lines], "line 4: the CERTIFICATE of line 1 has no end"),
        (lambda lines: [*lines[:3], lines[3][:-1], *lines[4:]], "the CERTIFICATE of line 1 is not whole"),
    ],
)
def test_a_damaged_authority_is_named_by_file_and_line(
    damage: Callable[[list[str]], list[str]], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    lines = _native.CertificateAuthority().pem.decode().splitlines()
    build(ca_file=_written(file, lines))
    damaged = _written(file, damage(lines))
    with pytest.raises(ConfigError, match=message) as caught:
        Tunnel.from_config(build(ca_file=damaged)).start()
    assert caught.value.option == "--ca-file"


def _written(file: Path, lines: list[str]) -> Path:
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_user_without_a_home_keeps_everything_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home(*arguments: object, **options: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_cache_path", no_home)
    monkeypatch.setattr("ech_workers.config._told_of_no_home", False)
    for _ in range(2):
        assert build(cache_dir=None).cache_dir is None
    assert [record.getMessage() for record in caplog.records] == [
        "there is no home directory: ECH configurations are kept in memory alone (--cache-dir DIR)"
    ]


def test_the_home_of_nobody_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"--ca-file: the home directory in '~nobody-like-this/ca.pem' is not known"):
        build(ca_file="~nobody-like-this/ca.pem")


@pytest.mark.parametrize("text", ["%%%", "aGVsbG8=", "@/dev/null/missing", "AAA", "-----BEGIN ECHCONFIG-----"])
def test_an_ech_configuration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ech_config=text)
    assert caught.value.option == "--ech-config"


@given(st.binary(max_size=200))
def test_noise_is_no_ech_configuration(noise: bytes) -> None:
    with pytest.raises(ConfigError):
        build(ech_config=noise or b"\0")


@pytest.mark.parametrize("token", ["two words", "a,b", "ümlaut", "line\nbreak", "x" * 513, "\x7f"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(token=token)
    assert caught.value.option == "--token"
    assert token not in caught.value.line()


def test_token_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("# for the proxy\n\n  s3cret+/=  \n")
    assert build(token_file=file).token == "s3cret+/="
    file.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="has 2 tokens"):
        build(token_file=file)
    with pytest.raises(ConfigError, match="--token is given too"):
        build(token="x", token_file=file)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"server_ip": "example.test"}, "--server-ip"),
        ({"ech_domain": "192.0.2.1"}, "--ech-domain"),
        ({"ech": False, "ech_domain": "a.test"}, "--ech-domain"),
        ({"ech": False, "ech_config": "AAAA"}, "--ech-config"),
        ({"ca_file": "/dev/null/missing.pem"}, "--ca-file"),
        ({"profile": "lynx"}, "--profile"),
        ({"alpn": "h3"}, "--alpn"),
        ({"sessions": 65}, "--sessions"),
        ({"sessions": True}, "--sessions"),
        ({"reply": "maybe"}, "--reply"),
        ({"open_timeout": 0}, "--open-timeout"),
        ({"open_timeout": float("nan")}, "--open-timeout"),
        ({"idle_timeout": float("inf")}, "--idle-timeout"),
        ({"memory_limit": 1}, "--memory-limit"),
        ({"log_level": "loud"}, "--log-level"),
        ({"status_listen": "status.test:9090"}, "--status-listen"),
        ({"status_listen": ["9090", ":9091"]}, "--status-listen"),
        ({"username": "", "password": "x"}, "--username"),
        ({"username": "a", "password": "x" * 256}, "--password"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**options)
    assert caught.value.option == option


def test_one_server_is_a_list_of_one() -> None:
    config = build(token="s3cret", yamux=False, server_ip="192.0.2.1", alpn="http/1.1", profile="firefox-153")
    (only,) = config.upstreams
    assert only.name == "tunnel.test:443"
    for name in ("server", "token", "ech", "mode", "server_ips", "profile", "alpn"):
        assert getattr(only, name) == getattr(config, name)
    assert "s3cret" not in repr(only)


def test_a_password_needs_a_user() -> None:
    with pytest.raises(ConfigError, match="go together"):
        build(username="ann")


def test_a_file_without_a_certificate_is_no_authority(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("hello")
    with pytest.raises(ConfigError, match="has no certificate in it"):
        build(ca_file=file)


def test_the_token_is_not_in_the_representation() -> None:
    assert "s3cret" not in repr(build(token="s3cret", username="ann", password="s3cret"))


def test_options_can_be_handed_on_by_name() -> None:
    # Rules are tables.
    assert set(ClientOptions.__annotations__) == set(options_of(CLIENT)) - {"server"} | {"rule"}
    assert set(ServerOptions.__annotations__) == set(options_of(SERVER))


def test_what_python_programs_give_is_taken(tmp_path: Path) -> None:
    config = build(
        listen=1080,
        status_listen=[9090, "[::1]:0"],
        server_ip=IPv4Address("192.0.2.1"),
        open_timeout=timedelta(minutes=1),
        memory_limit="64M",
        cache_dir=tmp_path,
    )
    assert config.listen == (ListenAddress("127.0.0.1", 1080),)
    assert config.status_listen[0].port == 9090
    assert config.server_ips == ("192.0.2.1",)
    assert config.open_timeout == 60.0
    assert config.memory_limit == 64 << 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": b"x"}, "--token: expected a text, not bytes"),
        ({"sessions": "2"}, "--sessions: '2' is no whole number; choose from 0 to 64"),
        ({"log_level": None}, "--log-level: None is not known"),
        ({"ech": "yes"}, "--ech: 'yes' is neither true nor false"),
        ({"listen": {"a": 1}}, "--listen: "),
        ({"server_ip": 1.5}, "--server-ip: expected a text or several, not 1.5"),
        ({"ca_file": 7}, "--ca-file: expected a path, not int"),
        ({"open_timeout": 100_000}, "--open-timeout: 100000 is out of range; choose from 0.001 to 86400 seconds"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**options)
    assert caught.value.line().startswith(f"config: {message}")


def test_an_unknown_option_is_told_the_one_that_was_meant() -> None:
    with pytest.raises(TypeError, match="there is no option 'tokn'; did you mean 'token'"):
        build(tokn="x")


@pytest.fixture
def server_files(tmp_path: Path) -> dict[str, Any]:
    chain, private = _native.CertificateAuthority().issue(["tunnel.test"])
    (tmp_path / "cert.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(private)
    return {"listen": "127.0.0.1:0", "cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}


def test_several_tokens_and_certificates(server_files: dict[str, Any], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("b\nc\n")
    cert, private = server_files["cert"], server_files["key"]
    config = ServerConfig.build(
        listen="0", cert=[cert, cert], key=[private, private], token=["a", "b"], token_file=tokens, path="ws"
    )
    assert config.tokens == ("a", "b", "c")
    assert len(config.certificates) == 2
    assert config.path == "/ws"
    assert "'a'" not in repr(config)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({}, "--token"),
        ({"token": "a", "key": []}, "--key"),
        ({"token": "a", "cert": [], "key": []}, "--cert"),
        ({"token": "a", "ech_keys": "/dev/null/missing"}, "--ech-keys"),
        ({"token": "a", "ech_keys": "/dev/null"}, "--ech-keys"),
        ({"token": "a", "decoy": "/dev/null/missing"}, "--decoy"),
        ({"token": "a", "drain": -1}, "--drain"),
        ({"token": "a", "workers": 257}, "--workers"),
        ({"token": "a", "listen": "nowhere"}, "--listen"),
    ],
)
def test_a_server_without_what_it_needs_is_refused(
    server_files: dict[str, Any], options: dict[str, Any], option: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.build(**{**server_files, **options})
    assert caught.value.option == option


@pytest.mark.parametrize("option", ["server_ip", "doh_ip"])
def test_an_address_with_a_zone_is_refused_at_the_start(option: str) -> None:
    with pytest.raises(ConfigError, match="has a zone") as caught:
        build(**{"doh_server": "https://resolver.test/dns-query", option: "fe80::1%eth0"})
    assert caught.value.option == "--" + option.replace("_", "-")


def test_the_same_server_twice_is_refused() -> None:
    tables = [{"server": "one.test/ws"}, {"server": "one.test:443/ws"}]
    with pytest.raises(ConfigError, match=r"one\.test:443 is given twice"):
        ClientConfig.of({}, tables)
