"""Rules: which way connections go, as local programs and Python programs see it."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ech_workers import TargetError, Tunnel, aio
from harness import socks
from harness.curl import KINDS, curl, fetch
from harness.ports import unused_port
from harness.processes import run
from harness.tap import Tap
from harness.targets import pattern
from harness.tunnel import COMMAND, PATH, SERVER_NAME, TOKEN, ProxyProgram, Site
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A name that the resolver of the tests knows and the system does not: whoever reaches it has asked the resolver.
DIRECT = "nas.ech-workers.test"


def write(site: Site, servers: dict[str, int], rules: str) -> Path:
    """The proxy's configuration file: servers by name, each with the port that it is on."""
    return site.write_configuration(servers, 'status_listen = "127.0.0.1:0"', more=rules)


def start(site: Site, servers: dict[str, int], rules: str, *, wait: bool = True) -> ProxyProgram:
    write(site, servers, rules)
    process = site.processes.start(COMMAND, "proxy", "--plain", env=site.environment)
    found = process.wait_line(r"listening on (\S*):(\d+)\b")
    program = ProxyProgram(process, int(found.group(2)))
    if wait:
        for _ in servers:
            program.wait_session()
    return program


def connections(site: Site) -> list[dict[str, Any]]:
    done = run(COMMAND, "connections", "--json", env=site.environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_use(site: Site) -> list[str]:
    """The servers that new connections go to."""
    done = run(COMMAND, "status", "--json", env=site.environment)
    servers = json.loads(done.stdout)["facts"]["servers"] if done.stdout else []
    return [server["name"] for server in servers if server["role"] == "in use"]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, authority: Any) -> Iterator[tuple[ProxyProgram, Site]]:
    from harness.processes import Processes

    processes = Processes()
    site = Site.make(tmp_path_factory.mktemp("site"), processes, authority)
    site.resolver.add(DIRECT, "A", "127.0.0.1")
    site.resolver.add("empty.ech-workers.test", "TXT", "nothing")
    rules = """
[[rule]]
domain = ["ads.test", "blocked.localhost"]
to = "block"
[[rule]]
domain = "ech-workers.test"
to = "direct"
[[rule]]
network = "127.0.0.9"
to = "block"
[[rule]]
network = "127.0.0.8"
to = "direct"
"""
    started = start(site, {"one": site.server().port}, rules)
    yield started, site
    processes.stop()
    site.resolver.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_direct_connection_reaches_what_only_the_resolver_knows(
    proxy: tuple[ProxyProgram, Site], targets: dict[str, int], kind: str
) -> None:
    program, site = proxy
    size = 3_000_001
    assert fetch(program, kind, f"http://{DIRECT}:{targets['http']}/bytes/{size}") == b"".join(pattern(size))
    assert (DIRECT, "A") in site.resolver.questions


def test_an_answer_after_a_half_close_of_a_direct_connection_is_whole(
    proxy: tuple[ProxyProgram, Site], targets: dict[str, int]
) -> None:
    with socks.connect(proxy[0].address, DIRECT, targets["http"]) as connection:
        connection.sendall(b"GET /slow/20 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert socks.until_end(connection).endswith(b"\r\n\r\n" + b"." * 20)


def test_a_reset_of_a_direct_target_is_a_reset(proxy: tuple[ProxyProgram, Site], targets: dict[str, int]) -> None:
    with socks.connect(proxy[0].address, DIRECT, targets["reset"]) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            socks.until_end(connection)


def test_two_requests_on_one_connection_go_to_their_own_hosts(
    proxy: tuple[ProxyProgram, Site], targets: dict[str, int]
) -> None:
    """A forwarded request decides for itself: the next one does not follow it to a direct target."""
    program, _ = proxy
    urls = [f"http://{host}:{targets['http']}/request" for host in (DIRECT, "localhost", DIRECT)]
    done = curl(program, "http", *urls)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().count("get /request http/1.1\r\n") == 3 or done.stdout.lower().count("get /request") == 3


def test_a_blocked_target_is_told_in_each_protocol(proxy: tuple[ProxyProgram, Site]) -> None:
    program, _ = proxy
    with pytest.raises(socks.ReplyError) as refused:
        socks.connect(program.address, "eu.ads.test", 443)
    # "Connection not allowed by ruleset" (RFC 1928 section 6).
    assert refused.value.reply == 2
    tunnelled = curl(program, "http-connect", "--write-out", "%{http_connect}", "https://ads.test/")
    assert "403" in tunnelled.stdout
    forwarded = curl(program, "http", "--include", "http://ads.test/")
    assert forwarded.stdout.startswith("HTTP/1.1 403 ")
    assert "error=http_request_denied" in forwarded.stdout
    assert "a rule blocks this target" in forwarded.stdout


def test_a_network_is_about_addresses_that_programs_give(
    proxy: tuple[ProxyProgram, Site], targets: dict[str, int]
) -> None:
    program, _ = proxy
    with pytest.raises(socks.ReplyError) as refused:
        socks.connect(program.address, "127.0.0.9", targets["echo"])
    assert refused.value.reply == 2
    # The name of the same machine is no address.
    with socks.connect(program.address, "localhost", targets["echo"]) as connection:
        connection.sendall(b"x")
        assert socks.exactly(connection, 1) == b"x"


def test_a_direct_target_that_cannot_be_had_is_told_as_such(proxy: tuple[ProxyProgram, Site]) -> None:
    program, _ = proxy
    port = unused_port()
    for host, reply in ((DIRECT, 5), ("missing.ech-workers.test", 4)):
        with pytest.raises(socks.ReplyError) as refused:
            socks.connect(program.address, host, port)
        assert refused.value.reply == reply, host
    done = curl(program, "http", "--include", "http://missing.ech-workers.test/")
    assert done.stdout.startswith("HTTP/1.1 502 ")
    assert "the target's name does not resolve" in done.stdout


def test_direct_connections_need_no_server(site: Site, targets: dict[str, int]) -> None:
    site.resolver.add(DIRECT, "A", "127.0.0.1")
    port = unused_port()
    rules = f'[[rule]]\ndomain = "{DIRECT}"\nto = "direct"\n'
    program = start(site, {"gone": port}, rules, wait=False)
    with socks.connect(program.address, DIRECT, targets["echo"]) as connection:
        connection.sendall(b"x")
        assert socks.exactly(connection, 1) == b"x"


@pytest.mark.parametrize("standby", ["warm", "cold"])
def test_a_rule_can_name_the_server(site: Site, targets: dict[str, int], standby: str) -> None:
    one, two = site.server(), site.server()
    rules = f'priority = 1\n[[rule]]\nport = "{targets["banner"]}-{targets["banner"]}"\nto = "two"\n'
    path = write(site, {"one": one.port, "two": two.port}, rules)
    path.write_text(f'standby = "{standby}"\n' + path.read_text())
    process = site.processes.start(COMMAND, "proxy", "--plain", env=site.environment)
    program = ProxyProgram(process, int(process.wait_line(r"listening on (\S*):(\d+)\b").group(2)))
    # Both may come up first: what counts is where new connections go.
    wait_until(lambda: in_use(site) == ["one"], "new connections go to the first server", 20)
    with contextlib.ExitStack() as stack:
        for name in ("banner", "echo"):
            stack.enter_context(socks.connect(program.address, "localhost", targets[name]))
        wait_until(
            lambda: (
                {(one["target"], one["server"]) for one in connections(site)}
                == {(f"localhost:{targets['banner']}", "two"), (f"localhost:{targets['echo']}", "one")}
            ),
            "each goes by its server",
        )


def test_a_reload_takes_other_rules_and_lists_that_changed(site: Site, targets: dict[str, int]) -> None:
    server = site.server()
    listed = site.folder / "blocked.txt"
    listed.write_text("other.test\n")
    program = start(site, {"one": server.port}, f'[[rule]]\ndomain_list = "{listed}"\nto = "block"\n')
    with socks.connect(program.address, "localhost", targets["echo"]) as connection:
        listed.write_text("# now this one\nlocalhost\n")
        done = run(COMMAND, "reload", env=site.environment)
        assert "applied to what is new: rule" in done.stdout, done.stderr
        connection.sendall(b"still here")
        assert socks.exactly(connection, 10) == b"still here"
        with pytest.raises(socks.ReplyError):
            socks.connect(program.address, "localhost", targets["echo"])
    listed.write_text("local host\n")
    done = run(COMMAND, "reload", env=site.environment)
    assert done.returncode != 0
    assert f"{listed}, line 1: " in done.stderr
    with pytest.raises(socks.ReplyError):
        socks.connect(program.address, "localhost", targets["echo"])


def test_until_a_reload_has_brought_another_session_connections_stay_with_their_server(
    site: Site, targets: dict[str, int]
) -> None:
    """The servers change places in the file, and none of them answers a new dial: the sessions that there are serve on."""
    strict, open_ = site.server(publish=False, private_targets=False), site.server(publish=False)
    rules = '[[rule]]\ndomain = "localhost"\nto = "open"\n'
    with (
        Tap(("127.0.0.1", strict.port)) as to_strict,
        Tap(("127.0.0.1", open_.port)) as to_open,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        servers = {"strict": to_strict.port, "open": to_open.port}
        path = write(site, servers, rules)
        path.write_text('reply = "confirmed"\n' + path.read_text())
        process = site.processes.start(COMMAND, "proxy", "--plain", env=site.environment)
        program = ProxyProgram(process, int(process.wait_line(r"listening on (\S*):(\d+)\b").group(2)))
        for _ in servers:
            program.wait_session()
        to_strict.upstream = to_open.upstream = silent.getsockname()
        socks.connect(program.address, "localhost", targets["echo"]).close()
        write(site, dict(reversed(servers.items())), rules)
        path.write_text('reply = "confirmed"\n' + path.read_text())
        done = run(COMMAND, "reload", env=site.environment)
        assert "applied to what is new: server" in done.stdout, done.stderr
        for _ in range(5):
            with socks.connect(program.address, "localhost", targets["echo"]) as connection:
                connection.sendall(b"a")
                assert socks.exactly(connection, 1) == b"a"


@pytest.mark.parametrize("yamux", [True, False])
def test_a_reload_that_reorders_servers_takes_no_connection_to_another_one(
    site: Site, targets: dict[str, int], yamux: bool
) -> None:
    """Only the server that the rule names reaches the target; the other one refuses it."""
    strict, open_ = site.server(publish=False, private_targets=False), site.server(publish=False)
    rules = '[[rule]]\ndomain = "localhost"\nto = "open"\n'
    both = {"strict": strict.port, "open": open_.port}
    fewer = {"open": open_.port}

    def options(servers: dict[str, int]) -> None:
        path = write(site, servers, rules)
        path.write_text(f'yamux = {str(yamux).lower()}\nreply = "confirmed"\n' + path.read_text())

    options(both)
    process = site.processes.start(COMMAND, "proxy", "--plain", env=site.environment)
    program = ProxyProgram(process, int(process.wait_line(r"listening on (\S*):(\d+)\b").group(2)))
    program.wait_session()
    with socks.connect(program.address, "localhost", targets["echo"]) as held:
        for servers in (dict(reversed(both.items())), both, fewer, both):
            options(servers)
            done = run(COMMAND, "reload", env=site.environment)
            assert "applied to what is new: server" in done.stdout, done.stderr
            # Right behind it, when the old sessions are all that there is.
            for _ in range(5):
                with socks.connect(program.address, "localhost", targets["echo"]) as connection:
                    connection.sendall(b"a")
                    assert socks.exactly(connection, 1) == b"a"
        held.sendall(b"still here")
        assert socks.exactly(held, 10) == b"still here"


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_rules_hold_for_python_programs_too(site: Site, targets: dict[str, int], mode: str) -> None:
    site.resolver.add(DIRECT, "A", "127.0.0.1")
    server = site.server()
    options: dict[str, Any] = {
        "token": TOKEN,
        "doh_server": site.resolver.url,
        "doh_ip": "127.0.0.1",
        "ca_file": site.authority.path,
        "cache_dir": "",
        "yamux": mode == "--yamux",
        "rule": [{"domain": DIRECT, "to": "direct"}, {"domain_exact": "ads.test", "to": "block"}],
    }
    with Tunnel(f"{SERVER_NAME}:{server.port}{PATH}", **options) as tunnel:
        with tunnel.create_connection((DIRECT, targets["echo"]), 20) as stream:
            stream.sendall(b"direct")
            assert socks.exactly(stream, 6) == b"direct"
            [one] = tunnel.connections()
            assert (one.way, one.protocol) == ("direct", "api")
        with pytest.raises(TargetError) as blocked:
            tunnel.create_connection(("ads.test", 443), 20)
        assert blocked.value.code == "target-blocked"
        with pytest.raises(TargetError) as missing:
            tunnel.create_connection((f"no.{DIRECT}", 443), 20)
        assert missing.value.code == "target-not-found"
        with tunnel.create_connection(("localhost", targets["echo"]), 20) as stream:
            stream.sendall(b"tunnel")
            assert socks.exactly(stream, 6) == b"tunnel"
        snapshot = tunnel.snapshot()
        assert (snapshot.direct_total, snapshot.blocked_total) == (2, 1)

    async def asynchronous() -> None:
        async with aio.Tunnel(f"{SERVER_NAME}:{server.port}{PATH}", **options) as opened:
            reader, writer = await opened.open_connection(DIRECT, targets["echo"], timeout=20)
            writer.write(b"direct")
            assert await reader.readexactly(6) == b"direct"
            writer.close()
            with pytest.raises(TargetError):
                await opened.open_connection("ads.test", 443, timeout=20)

    import asyncio

    asyncio.run(asynchronous())


def test_a_tunnel_is_closed_with_direct_connections_open(site: Site, targets: dict[str, int]) -> None:
    server = site.server()
    rule = [{"network": "127.0.0.0/8", "to": "direct"}]
    tunnel = Tunnel(
        f"{SERVER_NAME}:{server.port}{PATH}",
        token=TOKEN,
        ca_file=site.authority.path,
        ech_config=site.key.base64,
        server_ip="127.0.0.1",
        cache_dir="",
        rule=rule,
        idle_timeout=86400,
    )
    with tunnel, tunnel.create_connection(("127.0.0.1", targets["echo"]), 20) as stream:
        stream.sendall(b"x")
        assert socks.exactly(stream, 1) == b"x"
        tunnel.close()
        with pytest.raises(ConnectionResetError):
            socks.until_end(stream)
