"""One link for all that a client needs."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ech_workers import _native, cli
from ech_workers.config import ClientConfig
from ech_workers.errors import ConfigError
from ech_workers.options import link, load
from ech_workers.options.sources import Given

if TYPE_CHECKING:
    from pathlib import Path

CONFIGS = _native.generate_ech_key(7, "public.test")[1]


def back(text: str) -> ClientConfig:
    layer = {name: Given(value, "LINK") for name, value in link.read(text).items()}
    return load.client({"cache_dir": Given("", "--cache-dir")}, config="", variables={}, link=layer).config


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token": "s3cret+/=@:#?%"},
        {"ech_config": CONFIGS, "server_ip": ["192.0.2.1", "2001:db8::1"]},
        {"ech_domain": "cloudflare-ech.com", "yamux": False},
        {"ech_bootstrap": "public.test"},
        {"ca_file": _native.CertificateAuthority().pem.decode() * 2},
        {"server": "tunnel.test:8443/a%2Fb/?ed=2048&x=y"},
        {"server": "b\u00fccher.test"},
    ],
)
def test_what_is_shared_comes_back(options: dict[str, Any]) -> None:
    config = ClientConfig.build(**{"server": "tunnel.test/ws", "cache_dir": "", **options})
    text = link.make(config, "at home")
    assert re.fullmatch(r"ech-workers://[!-~]+#at%20home", text)
    found = back(text)
    assert found.upstreams[0] == config.upstreams[0]
    if config.ca_pem is not None:
        assert found.ca_pem is not None
        assert found.ca_pem.split() == config.ca_pem.split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "LINK: this is no link of this program; ask for one that begins with ech-workers://"),
        ("vless://uuid@a.test:443?ech=AAA", "LINK: VLESS is another protocol"),
        ("ech-workers://", "LINK: its host cannot be read"),
        ("ech-workers://s3cret@a.test:99999/", "LINK: its host cannot be read"),
        ("ech-workers://s3cret@a.test/?ech=@@", "LINK: its ech is no base64url"),
        ("ech-workers://s3cret@a.test/?sni=x", "LINK: this version does not know its 'sni'"),
        ("ech-workers://s3cret@a.test/?ech=AAAA", "LINK: the given text is neither base64 nor an ECHConfigList"),
    ],
)
def test_a_link_that_cannot_be_used_is_refused_without_its_token(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        back(text)
    assert caught.value.line().startswith(f"config: {said}"), caught.value.line()
    assert "s3cret" not in caught.value.line()


@given(st.text(max_size=200))
def test_any_text_is_a_link_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        back(f"ech-workers://{text}")


@settings(max_examples=50)
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=3, max_size=100))
def test_every_token_comes_back(token: str) -> None:
    try:
        config = ClientConfig.build(server="a.test", token=token, cache_dir="")
    except ConfigError:
        return  # in quotes
    assert back(link.make(config)).token == token


def test_a_links_server_is_told_no_other_servers_token(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('server = "mine.test"\ntoken = "mine"\nech_domain = "mine.test"\nlisten = "1081"\n')
    layer = {name: Given(value, "LINK") for name, value in link.read("ech-workers://other.test/ws").items()}
    variables = {"ECH_WORKERS_TOKEN": "mine-too", "ECH_WORKERS_CACHE_DIR": ""}
    config = load.client({}, config=str(path), variables=variables, link=layer).config
    assert (config.server.host, config.token, config.ech_domain) == ("other.test", None, None)
    assert config.listen[0].port == 1081


def test_keygen_prints_the_link_of_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "ca.pem").write_bytes(_native.CertificateAuthority().pem)
    keys = ["keygen", "--public-name", "public.test", "--out", str(tmp_path / "keys")]
    of_server = ["--server", "a.test:8443/ws", "--token-file", str(tmp_path / "token")]
    more = ["--server-ip", "192.0.2.1", "--ca-file", str(tmp_path / "ca.pem"), "--json"]
    assert cli.run([*keys, *of_server, *more]) == 0
    made = json.loads(capsys.readouterr().out)
    found = back(made["link"])
    assert (found.server.authority, found.server.path, found.token) == ("a.test:8443", "/ws", "s3cret")
    assert found.server_ips == ("192.0.2.1",)
    assert found.ech_config == base64.b64decode(made["ech_config_list"])
    assert found.ca_pem is not None
    assert cli.run([*keys, *of_server]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to share")]
    assert back(line.split()[-1]).token == "s3cret"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--token-file", "{tmp}/token"], "--token-file: is for the link, which needs a server; give --server too"),
        (["--server", "a.test/ws"], "--server: a link holds the server's token; give --token-file too"),
        (["--server", "a.test/ws", "--token-file", "{tmp}/none"], "--token-file: "),
        (["--server", "a b/ws", "--token-file", "{tmp}/token"], "--server: "),
    ],
)
def test_keygen_makes_no_key_if_there_can_be_no_link(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    given = [word.format(tmp=tmp_path) for word in options]
    assert cli.run(["keygen", "--public-name", "public.test", "--out", str(tmp_path / "keys"), *given]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


def test_share_and_import_are_the_whole_set_up_of_a_client(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ca.pem").write_bytes(_native.CertificateAuthority().pem)
    (tmp_path / "7.ech").write_bytes(CONFIGS)
    shared = ["--server", "a.test/ws", "--token", "s3cret", "--ech-config", f"@{tmp_path / '7.ech'}"]
    assert cli.run(["share", *shared, "--ca-file", str(tmp_path / "ca.pem"), "--qr"]) == 0
    text, _, code = capsys.readouterr().out.partition("\n")
    assert "\u2580" in code or "\u2584" in code
    assert cli.run(["config", "import", text]) == 0
    assert "for a.test:443" in capsys.readouterr().out
    config = load.client({}).config
    assert (config.token, config.ech_config) == ("s3cret", CONFIGS)
    assert config.ca_pem is not None
    assert (tmp_path / "ech-workers" / "config.toml").stat().st_mode & 0o777 == 0o600
