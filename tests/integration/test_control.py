"""A running proxy and server, asked and told things as their user does it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from harness import socks
from harness.authority import Authority
from harness.ports import unused_port
from harness.processes import run
from harness.tunnel import COMMAND, PATH, SERVER_NAME, TOKEN, ProxyProgram, Site
from harness.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

Ask = Callable[..., subprocess.CompletedProcess[str]]
"""Runs `ech-workers` with these words; ``code``: the exit code that is expected."""

SECOND_TOKEN = "another-battery-of-staples"


def write(site: Site, port: int, *lines: str, token: str = TOKEN) -> Path:
    """The proxy's configuration file."""
    path = site.folder / ".config" / "ech-workers" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(
        f"""
listen = "127.0.0.1:0"
server = "{SERVER_NAME}:{port}{PATH}"
token = "{token}"
doh_server = "{site.resolver.url}"
doh_ip = "127.0.0.1"
ca_file = "{site.authority.path}"
"""
        + "\n".join(lines)
    )
    return path


def start(site: Site) -> ProxyProgram:
    process = site.processes.start(COMMAND, "proxy", env=site.environment)
    found = process.wait_line(r"listening on (\S*):(\d+)\b")
    program = ProxyProgram(process, int(found.group(2)))
    program.wait_session()
    return program


@pytest.fixture
def ask(site: Site) -> Ask:
    return lambda *words, code=0: _checked(run(COMMAND, *words, env=site.environment), code)


def _checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_running_proxy_says_what_it_does_and_ends_when_it_is_told(site: Site, ask: Ask) -> None:
    server = site.server()
    write(site, server.port)
    proxy = start(site)
    said = ask("status").stdout
    assert f"127.0.0.1:{proxy.port}" in said
    assert "ECH accepted" in " ".join(said.split()) or "accepted" in said
    found = json.loads(ask("status", "--json").stdout)
    assert found["facts"]["phase"] == "up"
    assert TOKEN not in said
    assert f"127.0.0.1:{proxy.port}" in ask().stdout
    assert "session up" in ask("logs").stdout
    assert "stopped: process" in ask("stop").stdout
    assert proxy.process.wait() == 0
    assert "no proxy of yours is running; start it with" in ask("status", code=1).stderr


def test_nobody_runs_is_said_in_one_line(ask: Ask) -> None:
    for command in ("status", "reload", "logs", "stop", "env"):
        said = ask(command, code=1).stderr
        assert said.count("\n") == 1
        assert "no proxy of yours is running" in said


def test_the_log_can_be_followed_from_elsewhere(site: Site, ask: Ask) -> None:
    write(site, site.server().port)
    proxy = start(site)
    follower = site.processes.start(COMMAND, "logs", "-f", env=site.environment)
    follower.wait_line("session up")
    ask("reload")
    follower.wait_line("reloaded: nothing changed")
    ask("stop")
    assert follower.wait() == 0
    assert not proxy.process.running


def test_the_server_is_asked_too(site: Site, ask: Ask) -> None:
    server = site.processes.start(
        COMMAND, "server", "--listen", "127.0.0.1:0", "--cert", site.inner.chain, "--key", site.inner.key,
        "--token", TOKEN, env=site.environment,
    )  # fmt: skip
    server.wait_line("listening on")
    found = json.loads(ask("status", "--of", "server", "--json").stdout)
    assert found["sessions"] == 0
    assert found["certificates"] == [f"{site.inner.chain} is valid"]
    assert "nothing changed" in ask("reload", "--of", "server").stdout
    ask("stop", "--of", "server")
    assert server.wait() == 0


def test_500_connections_survive_100_reloads(site: Site, targets: dict[str, int], tmp_path: Path) -> None:
    """Each reload changes the token, so that each makes new sessions and lets the old ones end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs 4096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    server = site.server("--token", SECOND_TOKEN)
    write(site, server.port)
    proxy = start(site)
    connections = [socks.connect(proxy.address, "localhost", targets["echo"]) for _ in range(500)]
    try:
        for number in range(100):
            before = len(proxy.process.lines)
            write(site, server.port, token=SECOND_TOKEN if number % 2 == 0 else TOKEN)
            proxy.process.signal(signal.SIGHUP)
            proxy.process.wait_line(r"reloaded: applied to what is new: token$", after=before)
            for connection in connections[number * 5 : number * 5 + 5]:
                connection.sendall(b"%d\n" % number)
                assert socks.exactly(connection, len(b"%d\n" % number)) == b"%d\n" % number
        proxy.wait_session(after=0)
        for connection in connections:
            connection.sendall(b"still here\n")
        for connection in connections:
            assert socks.exactly(connection, 11) == b"still here\n"
        # And the newest sessions carry what is new.
        with socks.connect(proxy.address, "localhost", targets["echo"]) as fresh:
            fresh.sendall(b"new\n")
            assert socks.exactly(fresh, 4) == b"new\n"
    finally:
        for connection in connections:
            connection.close()


def test_a_wrong_file_changes_nothing(site: Site, ask: Ask, targets: dict[str, int]) -> None:
    server = site.server()
    path = write(site, server.port)
    proxy = start(site)
    path.write_text(path.read_text() + "\nsesions = 3\n")
    said = ask("reload", code=1).stderr
    assert "line 9: 'sesions' is no option; did you mean sessions?" in said
    assert "the connection broke" not in said
    proxy.process.wait_line("not reloaded, everything stays as it was: config: --config: .*line 9")
    with socks.connect(proxy.address, "localhost", targets["echo"]) as connection:
        connection.sendall(b"hello\n")
        assert socks.exactly(connection, 6) == b"hello\n"


def test_a_reload_says_what_counts_at_once_and_what_needs_a_restart(site: Site, ask: Ask) -> None:
    server = site.server()
    write(site, server.port)
    start(site)
    log = site.folder / "proxy.log"
    other = f'control = "{site.runtime / "other"}"'
    write(site, server.port, "sessions = 2", f'log_file = "{log}"', "status_listen = 0", "max_connections = 7", other)
    said = ask("reload").stdout.strip()
    assert said == (
        "applied: sessions, status_listen, log_file; applied to what is new: max_connections; needs a restart: control"
    )
    found = json.loads(ask("status", "--json").stdout)["facts"]
    assert found["wanted"] == 2
    assert "needs a restart: control" in log.read_text()


def refused(proxy: ProxyProgram) -> bool:
    """Whether the proxy takes no more connections."""
    with socket.create_connection(proxy.address, 20) as connection:
        try:
            connection.sendall(b"\x05\x01\x00")
            return connection.recv(2) == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize("mode", ["yamux = true", "yamux = false"])
def test_the_engine_goes_by_what_a_reload_brings(site: Site, ask: Ask, targets: dict[str, int], mode: str) -> None:
    server = site.server()
    write(site, server.port, mode)
    proxy = start(site)
    nobody = unused_port()
    # At once, whatever comes of it.
    socks.connect(proxy.address, "127.0.0.1", nobody).close()
    write(site, server.port, mode, 'reply = "confirmed"', "max_connections = 1")
    assert ask("reload").stdout.strip() == "applied to what is new: reply, max_connections"
    with pytest.raises(socks.ReplyError) as told:
        socks.connect(proxy.address, "127.0.0.1", nobody)
    assert told.value.reply == 5
    held: list[socket.socket] = []

    def hold() -> bool:
        with contextlib.suppress(OSError, EOFError, socks.ReplyError):
            held.append(socks.connect(proxy.address, "127.0.0.1", targets["echo"]))
        return bool(held)

    wait_until(hold, "the place of that one is free", 20)
    with held[0]:
        assert refused(proxy)
        write(site, server.port, mode, 'reply = "confirmed"', "max_connections = 5", 'memory_limit = "32M"')
        assert ask("reload").stdout.strip() == "applied: memory_limit; applied to what is new: max_connections"
        assert not refused(proxy)


@pytest.mark.parametrize("mode", ["yamux = true", "yamux = false"])
def test_another_idle_timeout_holds_for_new_connections(
    site: Site, ask: Ask, targets: dict[str, int], mode: str
) -> None:
    server = site.server()
    write(site, server.port, mode)
    proxy = start(site)
    with socks.connect(proxy.address, "127.0.0.1", targets["echo"]) as old:
        before = len(proxy.process.lines)
        write(site, server.port, mode, "idle_timeout = 1")
        assert ask("reload").stdout.strip() == "applied to what is new: idle_timeout"
        proxy.wait_session(after=before)

        def states() -> list[str]:
            facts = json.loads(ask("status", "--json").stdout)["facts"]
            return sorted(session["state"] for session in facts["sessions"])

        if mode == "yamux = true":
            wait_until(lambda: states() == ["retiring", "up"], "the session before takes no new connections", 20)
        with socks.connect(proxy.address, "127.0.0.1", targets["echo"]) as idle:
            assert over(idle)
        old.sendall(b"a")
        assert socks.exactly(old, 1) == b"a"


def over(connection: socket.socket) -> bool:
    """Waits for the end of a connection; False if something comes instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_other_authorities_and_another_cache_hold_for_what_is_new(
    site: Site, ask: Ask, targets: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = site.server()
    path = write(site, server.port)
    proxy = start(site)
    good = path.read_text()
    foreign = Authority(tmp_path_factory.mktemp("foreign"))
    path.write_text(good.replace(str(site.authority.path), str(foreign.path)))
    assert ask("reload").stdout.strip() == "applied to what is new: ca_file"
    proxy.process.wait_line("certificate")
    # The session that there is serves on.
    with socks.connect(proxy.address, "127.0.0.1", targets["echo"]) as connection:
        connection.sendall(b"a")
        assert socks.exactly(connection, 1) == b"a"
    broken = site.folder / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnoise\n-----END CERTIFICATE-----\n")
    path.write_text(good.replace(str(site.authority.path), str(broken)))
    assert "ca_file" in ask("reload", code=1).stderr
    before = len(proxy.process.lines)
    elsewhere = site.folder / "elsewhere"
    path.write_text(f'{good}\ncache_dir = "{elsewhere}"\n')
    assert ask("reload").stdout.strip() == "applied: cache_dir; applied to what is new: ca_file"
    proxy.wait_session(after=before)
    wait_until((elsewhere / "ech.json").is_file, "what was looked up is kept there", 20)


def test_another_cache_and_policy_count_at_once(site: Site, ask: Ask) -> None:
    server = site.server()
    path = write(site, server.port)
    start(site)
    elsewhere = site.folder / "elsewhere"
    path.write_text(f'{path.read_text()}\ncache_dir = "{elsewhere}"\npolicy = "spread"\nstandby = "cold"\n')
    assert ask("reload").stdout.strip() == "applied: policy, standby, cache_dir"
    wait_until((elsewhere / "ech.json").is_file, "what was looked up is kept there", 20)


def test_a_port_that_goes_away_keeps_its_connections_and_a_password_holds_at_once(
    site: Site, ask: Ask, targets: dict[str, int]
) -> None:
    path = write(site, site.server().port)
    proxy = start(site)
    with socks.connect(proxy.address, "localhost", targets["echo"]) as connection:
        free = path.read_text()
        path.write_text(free + '\nusername = "ann"\npassword = "secret"\n')
        assert ask("reload").stdout.strip() == "applied to what is new: username, password"
        (found,) = json.loads(ask("status", "--json").stdout)["facts"]["listening"]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(proxy.address, 5)
        host, port = found.split(":")
        with socket.create_connection((host, int(port)), 5) as stranger:
            stranger.sendall(b"\x05\x01\x00")
            assert stranger.recv(2) == b"\x05\xff"
        # A fixed port takes another password without a moment in which it is anyone's.
        path.write_text(free.replace("127.0.0.1:0", found) + '\nusername = "ann"\npassword = "another"\n')
        ask("reload")
        said = ask("connect", "localhost", str(targets["echo"]), code=4).stderr
        assert "tcp: the proxy wants a user name" in said
        connection.sendall(b"hello\n")
        assert socks.exactly(connection, 6) == b"hello\n"
        taken = socket.create_server(("127.0.0.1", 0))
        path.write_text(path.read_text().replace(f"127.0.0.1:{port}", f"127.0.0.1:{taken.getsockname()[1]}"))
        assert "the port is in use" in ask("reload", code=1).stderr
        taken.close()
        assert json.loads(ask("status", "--json").stdout)["facts"]["listening"] == [f"{host}:{port}"]


def test_programs_find_the_running_proxy(site: Site, ask: Ask, targets: dict[str, int]) -> None:
    write(site, site.server().port)
    proxy = start(site)
    said = ask("env").stdout
    assert f"export all_proxy=socks5h://127.0.0.1:{proxy.port}\n" in said
    program = "import os, sys; print(os.environ['https_proxy'], sys.argv[1:])"
    done = ask("run", "--", sys.executable, "-c", program, "--proxy", "x")
    assert done.stdout == f"http://127.0.0.1:{proxy.port} ['--proxy', 'x']\n"
    assert "cannot start no-such-program: No such file" in ask("run", "no-such-program", code=2).stderr


def test_the_status_can_be_watched(site: Site, ask: Ask) -> None:
    write(site, site.server().port)
    start(site)
    watching = site.processes.start(COMMAND, "status", "--watch", "--json", env=site.environment)
    watching.wait_line('"phase":')
    watching.wait_line('"phase":', after=1)
    ask("stop")
    assert watching.wait() == 1
    assert "it has ended" in watching.output


def test_connect_is_a_pipe_to_the_target(site: Site, targets: dict[str, int]) -> None:
    write(site, site.server().port)
    start(site)
    command = shlex.join([str(COMMAND), "connect", "localhost", str(targets["http"])])
    request = b"GET /bytes/3000000 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        input=request,
        env={**os.environ, **site.environment},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"HTTP/1.1 200")
    assert len(done.stdout) > 3_000_000
