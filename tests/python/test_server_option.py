"""Several ``--server`` on a command line: what each says of itself, and what is refused."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers import _native, cli
from ech_workers.errors import ConfigError
from ech_workers.options import link, load, schema
from ech_workers.options.sources import Given

if TYPE_CHECKING:
    from pathlib import Path

    from ech_workers.config import ClientConfig

PEM = _native.CertificateAuthority().pem.decode()


def client(
    *servers: str, variables: dict[str, str] | None = None, path: Path | None = None, **options: Any
) -> ClientConfig:
    given: dict[str, Any] = {"cache_dir": "", **options}
    if servers:
        given["server"] = servers if len(servers) > 1 else servers[0]
    layer = {name: Given(value, schema.flag(name)) for name, value in given.items()}
    return load.client(layer, config="" if path is None else str(path), variables=variables or {}).config


def refused(*servers: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        client(*servers, **options)
    assert caught.value.exit_code == 2
    return caught.value.line().removeprefix("config: ")


def test_each_server_has_what_is_said_behind_its_commas(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file")
    one, two = client(
        f"home.test/ws,token-file={tmp_path}/token,name=home,server-ip=192.0.2.1,server-ip=192.0.2.2",
        "other.test:8443/a?ed=2048,no-yamux,token=t0ken,priority=2,weight=3,profile=firefox-120,ech-domain=cover.test",
        alpn="http/1.1",
    ).upstreams
    assert (one.name, str(one.server), one.token, one.mode) == ("home", "home.test:443/ws", "from-a-file", "yamux")
    assert one.server_ips == ("192.0.2.1", "192.0.2.2")
    assert (two.name, str(two.server), two.token) == ("other.test:8443", "other.test:8443/a?ed=2048", "t0ken")
    assert (two.mode, two.priority, two.weight, two.profile) == ("simple", 2, 3, "firefox-120")
    assert (one.ech_domain, two.ech_domain) == (None, "cover.test")
    # What stands beside them is for all.
    assert one.alpn == two.alpn == "http/1.1"


def test_one_server_may_have_keys_and_a_comma_in_its_path() -> None:
    (only,) = client("home.test/a,b,token=x,no-ech").upstreams
    assert (str(only.server), only.token, only.ech) == ("home.test:443/a,b", "x", False)


def test_a_link_is_a_server_too() -> None:
    made = link.make(client("home.test/ws", token="s3cret", server_ip=("192.0.2.7",), ca_file=PEM))
    one, two = client(f"{made},priority=1", "other.test/ws,token=x").upstreams
    assert (str(one.server), one.token, one.server_ips, one.priority) == (
        "home.test:443/ws",
        "s3cret",
        ("192.0.2.7",),
        1,
    )
    assert two.server_ips == ()
    assert b"CERTIFICATE" in (client(made, "other.test/ws").ca_pem or b"")


def test_a_name_of_the_file_is_a_server_too(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('token = "common"\n[[server]]\nname = "home"\naddress = "home.test"\ntoken = "own"\n')
    path.chmod(0o600)
    one, two = client("home", "other.test,priority=1", path=path).upstreams
    # No server is told the token of another one.
    assert (one.server.host, one.token, two.server.host, two.token) == ("home.test", "own", "other.test", None)


def test_the_environment_has_one_to_a_line() -> None:
    variables = {"ECH_WORKERS_SERVER": "home.test,token=a\nother.test,token=b"}
    assert [upstream.token for upstream in client(variables=variables).upstreams] == ["a", "b"]


@pytest.mark.parametrize(
    ("servers", "options", "said"),
    [
        (("a.test/ws", "A.test:443/ws"), {}, "--server: a.test:443 is given twice"),
        (("a.test", "b.test"), {"token": "x"}, "--token: there are 2 --server; say it of one: --server HOST/PATH,token=..."),
        (("a.test,weight=0", "b.test"), {}, "--server a.test: weight: a server of the weight 0 would have no share"),
        (("a.test,weight=x", "b.test"), {}, "--server a.test: weight: 'x' is no number"),
        (("a.test,priority=1001", "b.test"), {}, "--server a.test: priority: 1001 is out of range; choose from 0 to 1000"),
        (("a.test,tokenfile=x", "b.test"), {}, "--server a.test: tokenfile: cannot be said of one server; did you mean token-file?"),
        (("a.test,sessions=3", "b.test"), {}, "--server a.test: sessions: cannot be said of one server"),
        (("a.test,token=", "b.test"), {}, "--server a.test: token: has no value"),
        (("a.test,no-ech=1", "b.test"), {}, "--server a.test: no-ech: takes no value"),
        (("a.test,alpn=h3", "b.test"), {}, "--server a.test: alpn: 'h3' is not known; choose from auto, http/1.1"),
        (("a.test,token=x,token=y", "b.test"), {}, "--server a.test: token: is given twice"),
        (("a.test,name=x", "b.test,name=x"), {}, "--server b.test: name: 'x' is the name of two servers"),
        (("a.test", "192.0.2.1"), {}, "--server: ECH hides a name, and 192.0.2.1 is an address"),
        (("a.test", "b.test"), {"policy": "best"}, "--policy: 'best' is not known; choose from priority, fastest, spread"),
        (("", ""), {}, "--server: is missing"),
        (("ech-workers://s3cret@a.test/?later=1", "b.test"), {}, "LINK: this version does not know its 'later'"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_message(servers: tuple[str, ...], options: dict[str, Any], said: str) -> None:
    found = refused(*servers, **options)
    assert found.startswith(said)
    assert "s3cret" not in found


def test_an_empty_list_in_the_file_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("server = []\n")
    assert refused(path=path).startswith(f"{path}: server: the list of servers is empty")


def test_several_servers_are_written_down_as_tables(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    words = ["--server", "home.test/ws,token=a,name=home", "--server", "other.test,no-yamux,priority=1"]
    assert cli.run(["config", "init", *words, str(path)]) == 0
    assert tomllib.loads(path.read_text())["server"] == [
        {"address": "home.test/ws", "token": "a", "name": "home"},
        {"address": "other.test", "yamux": False, "priority": 1},
    ]
    home, other = client(path=path).upstreams
    assert (home.name, home.token, other.mode, other.priority) == ("home", "a", "simple", 1)
