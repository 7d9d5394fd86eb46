"""An address that accepts connections and does not lead to the server, beside one that does: the good one is found, in both modes
and by ``check``, and it does not matter where the two addresses come from."""

import contextlib
import json
from pathlib import Path
from typing import get_args

import pytest

from harness import socks
from harness.authority import Authority
from harness.bad_address import BadAddress, Kind
from harness.processes import run
from harness.tunnel import COMMAND, PATH, RESOLVER_NAME, SERVER_NAME, TOKEN, ProxyProgram, ServerProgram, Site
from harness.waiting import wait_until

MODES = ["--yamux", "--no-yamux"]
KINDS = [kind for kind in get_args(Kind) if kind != "passes"]
BAD = "127.0.0.2"
GOOD = "127.0.0.1"


@pytest.fixture
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("foreign"))


def beside(server: ServerProgram, host: str, kind: Kind, foreign: Authority, name: str = SERVER_NAME) -> BadAddress:
    certificate = foreign.issue(name) if kind == "foreign" else None
    return BadAddress(host, server.port, kind, certificate=certificate, upstream=(GOOD, server.port))


def with_bad(site: Site, host: str, kind: Kind, foreign: Authority) -> tuple[ServerProgram, BadAddress]:
    """A server, and the bad address on the same port, which somebody else may have there."""
    for _ in range(20):
        server = site.server()
        with contextlib.suppress(OSError):
            return server, beside(server, host, kind, foreign)
    raise AssertionError("no port that is free at both addresses")


def echoes(proxy: ProxyProgram, targets: dict[str, int], timeout: float = 30.0) -> None:
    with socks.connect(proxy.address, "127.0.0.1", targets["echo"], timeout=timeout) as connection:
        connection.sendall(b"hello")
        assert socks.exactly(connection, 5) == b"hello"


def check(site: Site, port: int, targets: dict[str, int], *options: str | Path) -> None:
    """A check passes, to the target."""
    options = (*options, "--json", "--target", f"http://127.0.0.1:{targets['http']}/bytes/1000")
    server: list[str | Path] = [
        "--server",
        f"{SERVER_NAME}:{port}{PATH}",
        "--token",
        TOKEN,
        "--ca-file",
        site.authority.path,
    ]
    done = run(COMMAND, "check", *server, *options, env=site.environment, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert any(row["layer"] == "target" and row["ok"] for row in rows), done.stdout


def resolver(site: Site) -> list[str]:
    return ["--doh-server", site.resolver.url, "--doh-ip", GOOD]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_of_two_given_addresses_the_first_is_bad(
    site: Site, targets: dict[str, int], foreign: Authority, mode: str, kind: Kind
) -> None:
    server, bad = with_bad(site, BAD, kind, foreign)
    given = ["--server-ip", BAD, "--server-ip", GOOD]
    with bad:
        proxy = site.proxy(server.port, mode, *given)
        echoes(proxy, targets)
        assert bad.accepted > 0
        check(site, server.port, targets, mode, *given, *resolver(site))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("record", "host"), [("A", BAD), ("AAAA", "::1")])
def test_of_two_addresses_that_were_looked_up_one_is_bad(
    site: Site, targets: dict[str, int], foreign: Authority, mode: str, kind: Kind, record: str, host: str
) -> None:
    server, bad = with_bad(site, host, kind, foreign)
    addresses = [BAD, GOOD] if record == "A" else [host]
    site.resolver.add(SERVER_NAME, record, *addresses)
    try:
        with bad:
            # The order of addresses of one kind says nothing, and those that worked are remembered.
            for _ in range(20):
                echoes(site.proxy(server.port, mode, "--cache-dir", ""), targets)
                if bad.accepted > 0:
                    break
            assert bad.accepted > 0
            check(site, server.port, targets, mode, *resolver(site))
    finally:
        site.resolver.add(SERVER_NAME, "A", GOOD)
        site.resolver.add(SERVER_NAME, "AAAA")


@pytest.fixture
def resolver_port(site: Site) -> int:
    return int(site.resolver.url.rsplit(":", 1)[1].partition("/")[0])


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_addresses_of_the_resolver_the_first_is_bad(
    site: Site, targets: dict[str, int], foreign: Authority, resolver_port: int, kind: Kind
) -> None:
    server = site.server()
    certificate = foreign.issue(RESOLVER_NAME) if kind == "foreign" else None
    given = ["--doh-server", site.resolver.url, "--doh-ip", BAD, "--doh-ip", GOOD]
    with BadAddress(BAD, resolver_port, kind, certificate=certificate) as bad:
        echoes(site.proxy(server.port, *given, resolver=False), targets)
        assert bad.accepted > 0
        check(site, server.port, targets, *given)


@pytest.mark.parametrize("mode", MODES)
def test_an_address_that_worked_turns_silent(
    site: Site, targets: dict[str, int], foreign: Authority, mode: str
) -> None:
    server, first = with_bad(site, BAD, "passes", foreign)
    with first:
        proxy = site.proxy(server.port, mode, "--server-ip", BAD, "--server-ip", GOOD)
        echoes(proxy, targets)
        assert first.accepted > 0
        first.turn_silent()

        def served() -> bool:
            try:
                echoes(proxy, targets, 5.0)
            except (OSError, EOFError, socks.ReplyError):
                return False
            return True

        # In yamux mode the session has to be found dead first.
        wait_until(served, "the other address is used", 90)
    assert "panicked" not in proxy.process.output
