"""The proxy configuration for browsers, run by a JavaScript engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers.config import ClientConfig
from ech_workers.errors import ConfigError
from ech_workers.status import pac
from harness.processes import run
from harness.requirements import program

if TYPE_CHECKING:
    from pathlib import Path

PROXY = "PROXY 127.0.0.1:1080"


def ways(made: str, *urls: str) -> dict[str, str]:
    """What a browser would do with each URL."""
    hosts = [url.split("://")[1].rsplit("/", 1)[0] for url in urls]
    bare = [host[1 : host.index("]")] if host.startswith("[") else host.split(":")[0] for host in hosts]
    calls = json.dumps([list(pair) for pair in zip(urls, bare, strict=True)])
    done = run(
        program("node", "nodejs"),
        "--eval",
        f"{made}\nconsole.log(JSON.stringify({calls}.map(function (one) {{ return FindProxyForURL(one[0], one[1]); }})))",
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(urls, json.loads(done.stdout), strict=True))


def made_of(rule: list[dict[str, Any]], addresses: Any = (("127.0.0.1", 1080),), reached: str = "127.0.0.1") -> str:
    made = pac.script(ClientConfig.build(server="a.test", rule=rule).rules, addresses, reached)
    assert made is not None
    return made


def test_addresses_go_direct_as_the_rules_say_and_names_never() -> None:
    rule: list[dict[str, Any]] = [
        {"network": ["10.0.0.0/8", "fc00::/7"], "port": 443, "to": "block"},
        {"network": ["10.0.0.0/8", "192.168.0.0/17", "fc00::/7", "2001:db8::1"], "to": "direct"},
        {"domain": ["intranet.test", "10.test"], "to": "direct"},
        {"port": "8000-8001", "to": "direct"},
    ]
    expected = {
        "http://10.1.2.3/": "DIRECT",
        "https://10.1.2.3/": PROXY,
        "https://10.1.2.3:444/": "DIRECT",
        "http://11.0.0.1/": PROXY,
        "http://192.168.127.1/": "DIRECT",
        "http://192.168.128.1/": PROXY,
        "http://[fd00::1]/": "DIRECT",
        "https://[fd00::1]/": PROXY,
        "http://[fe00::1]/": PROXY,
        "http://[2001:db8::1]/": "DIRECT",
        "http://[2001:db8::2]/": PROXY,
        "http://[::ffff:10.0.0.1]/": "DIRECT",
        "http://[::ffff:a00:1]/": "DIRECT",
        "ws://192.0.2.1:8001/": "DIRECT",
        "ws://192.0.2.1:8002/": PROXY,
        # A browser would ask plain DNS for these.
        "http://intranet.test/": PROXY,
        "http://10.test/": PROXY,
        "http://anything.test:8000/": PROXY,
    }
    assert ways(made_of(rule), *expected) == expected


def test_without_rules_everything_goes_to_the_proxy() -> None:
    assert set(ways(made_of([]), "http://10.0.0.1/", "https://a.test/", "http://[::1]/").values()) == {PROXY}


def test_lists_are_in_it_as_far_as_there_is_room(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("# private\n10.0.0.0/8\n")
    rule: list[dict[str, Any]] = [
        {"network_list": str(listed), "to": "direct"},
        {"network": "192.168.0.0/16", "to": "direct"},
    ]
    made = made_of(rule)
    assert set(ways(made, "http://10.0.0.1/", "http://192.168.0.1/").values()) == {"DIRECT"}
    listed.write_text("".join(f"10.{number >> 8}.{number & 255}.0/24\n" for number in range(pac.NETWORKS_MAX + 1)))
    # What comes behind a rule that has no room might be said otherwise by it.
    assert set(ways(made_of(rule), "http://10.0.0.1/", "http://192.168.0.1/").values()) == {PROXY}
    config = ClientConfig.build(server="a.test", rule=rule)
    listed.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        pac.script(config.rules, [("127.0.0.1", 1)], "127.0.0.1")


@pytest.mark.parametrize(
    ("addresses", "reached", "proxy"),
    [
        ([("127.0.0.1", 1), ("192.0.2.7", 2)], "192.0.2.7", "192.0.2.7:2"),
        ([("0.0.0.0", 1)], "192.0.2.7", "192.0.2.7:1"),
        ([("::", 1)], "2001:db8::1", "[2001:db8::1]:1"),
        ([("127.0.0.1", 1)], "192.0.2.7", "127.0.0.1:1"),
    ],
)
def test_the_proxy_is_where_the_browser_reaches_it(addresses: Any, reached: str, proxy: str) -> None:
    assert f'var PROXY = "PROXY {proxy}";' in made_of([], addresses, reached)


def test_there_is_none_without_a_port() -> None:
    assert pac.script((), (), "127.0.0.1") is None
