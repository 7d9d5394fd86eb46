"""A running server that is told other tokens, another decoy and other limits: what its clients notice."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from harness import socks
from harness.alone import MAY_UNSHARE, alone
from harness.ech import ech_key
from harness.ports import unused_port
from harness.processes import Process, Processes, python_program, run
from harness.tunnel import COMMAND, PATH, PUBLIC_NAME, TOKEN, ProxyProgram, Site
from harness.unread import Beside, unread_uploads
from harness.waiting import wait_until

TESTS = Path(__file__).resolve().parents[1]
OTHER = "another-battery-of-staples"


class Server:
    """Our server with a configuration file, which a test writes anew."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.tokens = site.folder / "tokens"
        self.write(f"{TOKEN} # ours\n")
        self.process: Process = site.processes.start(
            COMMAND, "server", "--config", str(self.config), env=site.environment
        )
        self.port = int(self.process.wait_line(r"listening on \S*:(\d+)\b").group(1))
        site.publish(self.port, site.key.base64)

    @property
    def config(self) -> Path:
        return self.site.folder / "server.toml"

    def write(self, tokens: str, *lines: str) -> None:
        site = self.site
        self.tokens.touch(mode=0o600)
        self.tokens.write_text(tokens)
        fixed = [
            'listen = "127.0.0.1:0"',
            f'cert = ["{site.inner.chain}", "{site.outer.chain}"]',
            f'key = ["{site.inner.key}", "{site.outer.key}"]',
            f'token_file = "{self.tokens}"',
        ]
        defaults = {"path": f'"{PATH}"', "status_listen": "0", "allow_private_targets": "true"}
        given = {line.partition(" = ")[0] for line in lines}
        fixed += [f"{name} = {value}" for name, value in defaults.items() if name not in given]
        if "ech_keys" not in given:
            fixed.append(f'ech_keys = "{site.keys_folder}"')
        self.config.write_text("\n".join([*fixed, *lines]))

    def reload(self) -> str:
        done = run(COMMAND, "reload", "--of", "server", env=self.site.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def figures(self, port: int) -> str:
        """What it says of itself at this port."""
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with contextlib.closing(asked):
            asked.request("GET", "/metrics")
            return asked.getresponse().read().decode()

    def sessions(self) -> list[dict[str, Any]]:
        done = run(COMMAND, "status", "--of", "server", "--json", env=self.site.environment)
        found: list[dict[str, Any]] = json.loads(done.stdout)["session_list"]
        return found

    def labels(self) -> dict[str, int]:
        """Sessions by token."""
        done = run(COMMAND, "status", "--of", "server", "--json", env=self.site.environment)
        return {token["label"]: token["sessions"] for token in json.loads(done.stdout)["tokens"]}

    def get(self, path: str) -> bytes:
        """What a visitor gets on the public port."""
        context = ssl.create_default_context(cafile=str(self.site.authority.path))
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=PUBLIC_NAME) as secured,
        ):
            secured.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return socks.until_end(secured).partition(b"\r\n\r\n")[2]


@pytest.fixture
def server(site: Site) -> Server:
    return Server(site)


def echo(proxy: ProxyProgram, port: int) -> socket.socket:
    connection = socks.connect(proxy.address, "localhost", port)
    connection.sendall(b"x")
    assert socks.exactly(connection, 1) == b"x"
    return connection


def test_a_token_is_taken_in_and_one_that_is_taken_away_keeps_its_open_connections(
    server: Server, targets: dict[str, int]
) -> None:
    site = server.site
    proxy = site.proxy(server.port)
    with echo(proxy, targets["echo"]) as connection:
        assert server.labels() == {"ours": 1}
        server.write(f"{OTHER} # Ann's laptop\n")
        assert server.reload() == "applied: token"
        # Its session takes no new connections. The next one needs another session, and that is refused.
        proxy.process.wait_line("is stopping: it takes no new streams")
        with contextlib.suppress(socks.ReplyError, OSError, EOFError):
            socks.connect(proxy.address, "localhost", targets["echo"]).close()
        proxy.process.wait_line("token: ")
        connection.sendall(b"still here")
        assert socks.exactly(connection, 10) == b"still here"
        other = site.proxy(server.port, "--control", "", token=OTHER)
        with echo(other, targets["echo"]):
            assert server.labels() == {"Ann's laptop": 1}
    said = run(COMMAND, "status", "--of", "server", env=site.environment).stdout
    assert "Ann's laptop" in said
    assert OTHER not in said


def test_a_token_that_can_be_guessed_is_warned_of_by_its_label(server: Server) -> None:
    short = "x7Kq2"
    server.write(f"{TOKEN} # ours\n{short} # Bob's telephone\n")
    assert server.reload() == "applied: token"
    said = server.process.wait_line("Bob's telephone has only 5 characters and can be guessed; `openssl rand").string
    assert short not in said
    # One that was reloaded is not warned of before it is another one.
    server.write(f"{TOKEN} # ours\n")
    assert server.reload() == "applied: token"
    assert sum("can be guessed" in line for line in server.process.lines) == 1


def test_the_decoy_and_the_limits_count_at_once_and_a_wrong_file_changes_nothing(
    server: Server, targets: dict[str, int]
) -> None:
    site = server.site
    page = site.folder / "page.html"
    page.write_text("<p>Another bakery</p>")
    assert b"Welcome" in server.get("/healthz")
    server.write(f"{TOKEN} # ours\n", f'decoy = "{page}"', "public_healthz = true", "allow_private_targets = false")
    said = server.reload()
    assert said.startswith("applied: ")
    assert {"decoy", "public_healthz", "allow_private_targets"} <= set(
        said.replace(";", ",").replace(":", ",").split(", ")
    )
    assert server.get("/") == page.read_bytes()
    assert server.get("/healthz") == b"ok\n"
    proxy = site.proxy(server.port, "--reply", "confirmed")
    with pytest.raises(socks.ReplyError) as refused:
        socks.connect(proxy.address, "127.0.0.1", targets["echo"])
    assert refused.value.reply == 2
    server.write("two words\n")
    done = run(COMMAND, "reload", "--of", "server", env=site.environment)
    assert done.returncode != 0
    assert f"{server.tokens}, line 1" in done.stderr
    assert server.get("/") == page.read_bytes()
    assert server.labels() == {"ours": 1}


def test_other_numbers_of_sessions_and_bytes_count_for_those_who_come(server: Server, targets: dict[str, int]) -> None:
    site = server.site
    server.write(f"{TOKEN} # ours\n", "max_sessions = 1", 'memory_limit = "32M"')
    assert server.reload() == "applied: memory_limit; applied to what is new: max_sessions"
    first = site.proxy(server.port)
    with echo(first, targets["echo"]) as connection:
        second = site.proxy(server.port, "--control", "", wait=False)
        second.process.wait_line("as many sessions as it may have")
        second.process.stop()
        server.write(f"{TOKEN} # ours\n", "max_sessions = 2", 'memory_limit = "32M"')
        assert server.reload() == "applied to what is new: max_sessions"
        third = site.proxy(server.port, "--control", "")
        with echo(third, targets["echo"]):
            assert len(server.sessions()) == 2
        connection.sendall(b"y")
        assert socks.exactly(connection, 1) == b"y"


def test_streams_and_idle_time_of_a_session_are_those_that_it_began_with(
    server: Server, targets: dict[str, int]
) -> None:
    site = server.site
    old = site.proxy(server.port, "--sessions", "1")
    with echo(old, targets["echo"]) as first:
        server.write(f"{TOKEN} # ours\n", "max_streams = 1", "idle_timeout = 1")
        assert server.reload() == "applied to new sessions: max_streams, idle_timeout"
        new = site.proxy(server.port, "--control", "")
        with echo(old, targets["echo"]) as second, echo(new, targets["echo"]) as idle:
            idle.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert idle.recv(1) == b""
            for connection in (first, second):
                connection.sendall(b"y")
                assert socks.exactly(connection, 1) == b"y"
            assert max(session["streams"] for session in server.sessions()) == 2
        with echo(new, targets["echo"]), echo(new, targets["echo"]):
            assert [session["streams"] for session in server.sessions()].count(1) >= 2


@MAY_UNSHARE
@pytest.mark.timeout(200)
@pytest.mark.parametrize("first", ["16M", "256M"])
def test_another_memory_limit_counts_at_once_for_the_session_that_is_open(
    site: Site, processes: Processes, first: str
) -> None:
    """A session may hold a sixth. With 16 MiB it is not read any more when targets leave 25 MiB unread; with 256 MiB it is."""

    def body() -> None:
        served = processes.start(*python_program("harness.targets"), str(site.folder), env={"PYTHONPATH": str(TESTS)})
        targets = served.wait_event("listening")
        server = Server(site)
        server.write(f"{TOKEN} # ours\n", f'memory_limit = "{first}"')
        server.reload()
        proxy = site.proxy(
            server.port, "--sessions", "1", "--control", "", "--server-ip", "127.0.0.1", "--ech-config", site.key.base64
        )
        beside = Beside(proxy, targets["echo"])
        with contextlib.closing(beside):
            if first != "16M":
                server.write(f"{TOKEN} # ours\n", 'memory_limit = "16M"')
                assert server.reload() == "applied: memory_limit"
            with unread_uploads(proxy, 100):
                beside.wait_stopped()
                server.write(f"{TOKEN} # ours\n", 'memory_limit = "256M"')
                assert server.reload() == "applied: memory_limit"
                assert beside.answers(30)
                # It stays so: what stands still for 5 s is cut off, and lets others go on for a moment.
                for _ in range(20):
                    assert beside.answers(2)
                assert len(server.sessions()) == 1

    alone(body)


def test_path_figures_and_keys_move_while_it_runs(server: Server, targets: dict[str, int]) -> None:
    site = server.site
    first = site.proxy(server.port)
    moved = ech_key(site.folder / "moved", PUBLIC_NAME, 9)
    port = unused_port()
    with echo(first, targets["echo"]) as connection:
        tokens = f"{TOKEN} # ours\n"
        lines = ['path = "/moved"', f"status_listen = {port}", f'ech_keys = "{moved.path.parent}"']
        server.write(tokens, *lines)
        said = server.reload()
        assert set(said.removeprefix("applied: ").split(", ")) == {"path", "status_listen", "ech_keys"}
        assert "ech_workers_server_sessions 1" in server.figures(port)
        site.publish(server.port, moved.base64)
        fresh = {"XDG_CACHE_HOME": str(site.folder / "fresh")}
        again = site.processes.start(
            *site.proxy_arguments(server.port, "--control", "", path="/moved"), env={**site.environment, **fresh}
        )
        again.wait_line("session up")
        lost = site.proxy(server.port, "--control", "", wait=False)
        lost.process.wait_line(r"token: |ech: ")
        # Nothing has changed when one of them cannot be had.
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server.write(tokens, 'path = "/third"', f"status_listen = {taken.getsockname()[1]}", lines[2])
            done = run(COMMAND, "reload", "--of", "server", env=site.environment)
            assert done.returncode != 0
            assert "in use" in done.stderr
        assert "ech_workers_server_sessions" in server.figures(port)
        connection.sendall(b"y")
        assert socks.exactly(connection, 1) == b"y"


def test_the_status_lists_sessions_with_their_tokens(server: Server, targets: dict[str, int]) -> None:
    site = server.site
    server.write(f"{TOKEN} # ours\n{OTHER} # Ann's laptop\n")
    server.reload()
    ours = site.proxy(server.port)
    anns = site.proxy(server.port, "--no-yamux", "--control", "", token=OTHER)
    with echo(ours, targets["echo"]), echo(ours, targets["echo"]), echo(anns, targets["echo"]):
        found = {(one["token"], one["mode"]): one for one in server.sessions()}
        mine, hers = found["ours", "yamux"], found["Ann's laptop", "simple"]
        assert (mine["streams"], hers["streams"]) == (2, 1)
        assert mine["bytes_up"] >= 2
        assert mine["bytes_down"] >= 2
        assert mine["address"].startswith("127.0.0.1:")
        assert 0 <= hers["age"] < 3600
        said = run(COMMAND, "status", "--of", "server", env=site.environment).stdout
    told = dict(line.split("  ", 1) for line in said.partition("\n\n")[0].splitlines())
    assert re.fullmatch(r" *\d+ s", told["uptime"])
    assert told["ech by config"].strip() == "id 7: 2"
    assert told["ech keys"].strip() == "7.pem"
    assert told["bytes up"].endswith(" B")
    (line,) = [line.split() for line in said.splitlines() if mine["address"] in line]
    assert line[:5] == [str(mine["session"]), "ours", mine["address"], "yamux", "2"]
    assert TOKEN not in said
    assert OTHER not in said
    wait_until(lambda: [one["token"] for one in server.sessions()] == ["ours"], "hers has ended", 20)


def test_500_connections_survive_100_reloads_of_the_server(server: Server, targets: dict[str, int]) -> None:
    """Each reload takes the token of the last one away, and changes decoy and limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs 4096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    page = server.site.folder / "page.html"
    proxy = server.site.proxy(server.port)
    connections = [socks.connect(proxy.address, "localhost", targets["echo"]) for _ in range(500)]
    try:
        for number in range(100):
            page.write_text(f"<p>{number}</p>")
            before = len(server.process.lines)
            server.write(
                f"{TOKEN} # ours\ntoken-number-{number}\n", f'decoy = "{page}"', f"max_streams = {1000 + number}"
            )
            server.process.signal(signal.SIGHUP)
            server.process.wait_line("reloaded: applied", after=before)
            for connection in connections[number * 5 : number * 5 + 5]:
                connection.sendall(b"%d\n" % number)
                assert socks.exactly(connection, len(b"%d\n" % number)) == b"%d\n" % number
        for connection in connections:
            connection.sendall(b"still here\n")
        for connection in connections:
            assert socks.exactly(connection, 11) == b"still here\n"
        with echo(proxy, targets["echo"]):
            assert server.labels()["ours"] == 1
    finally:
        for connection in connections:
            connection.close()


def test_it_is_healthy_and_not_ready_while_it_drains(server: Server, targets: dict[str, int]) -> None:
    figures = int(server.process.wait_line(r"figures on http://\S*:(\d+)/").group(1))

    def ask(path: str) -> tuple[int, bytes]:
        asked = http.client.HTTPConnection("127.0.0.1", figures, timeout=20)
        try:
            asked.request("GET", path)
            answer = asked.getresponse()
            return answer.status, answer.read()
        finally:
            asked.close()

    proxy = server.site.proxy(server.port)
    with echo(proxy, targets["echo"]):
        assert ask("/readyz") == (200, b"ok\n")
        server.process.signal(signal.SIGTERM)
        wait_until(lambda: ask("/readyz") == (503, b"it is ending: no new sessions\n"), "it says that it drains", 20)
        assert ask("/healthz") == (200, b"ok\n")
    began = time.monotonic()
    assert server.process.wait() == 0
    assert time.monotonic() - began < 20
