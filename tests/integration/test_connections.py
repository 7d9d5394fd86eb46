"""The open connections of a running proxy: who goes where by what, and how to end one."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from harness import socks
from harness.processes import run
from harness.tunnel import COMMAND, ProxyProgram, Site
from harness.waiting import wait_until

if TYPE_CHECKING:
    import subprocess


def ask(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return run(COMMAND, "connections", *words, env=site.environment)


def listed(site: Site) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask(site, "--json").stdout.splitlines()]


def begin(proxy: ProxyProgram, port: int) -> socket.socket:
    """A connection to an echo, over which bytes have gone."""
    connection = socks.connect(proxy.address, "localhost", port)
    connection.sendall(b"12345")
    assert socks.exactly(connection, 5) == b"12345"
    return connection


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_connections_are_listed_and_one_of_them_is_ended(site: Site, targets: dict[str, int], mode: str) -> None:
    server = site.server()
    proxy = site.proxy(server.port, mode)
    assert ask(site).stdout == "no connection is open\n"
    with begin(proxy, targets["echo"]) as first, begin(proxy, targets["echo"]) as second:
        # The proxy's own answer has 10 bytes.
        wait_until(lambda: [one["bytes_down"] for one in listed(site)] == [15, 15], "both are counted")
        one, two = listed(site)
        assert one["target"] == f"localhost:{targets['echo']}"
        assert (one["protocol"], one["way"], one["bytes_up"]) == ("socks5", "tunnel", 5)
        assert one["server"].endswith(f":{server.port}")
        assert one["session"] is not None
        assert two["age"] <= one["age"]
        heading, *rows = ask(site).stdout.splitlines()
        assert heading.split() == ["id", "target", "by", "way", "up", "down", "age"]
        assert [row.split()[0] for row in rows] == [str(one["id"]), str(two["id"])]
        assert ask(site, "--kill", str(one["id"])).returncode == 0
        with pytest.raises(ConnectionResetError):
            socks.until_end(first)
        wait_until(lambda: [one["id"] for one in listed(site)] == [two["id"]], "it is not listed any more")
        second.sendall(b"67890")
        assert socks.exactly(second, 5) == b"67890"
        done = ask(site, "--kill", str(one["id"]))
        assert (done.returncode, done.stderr) == (1, f"{one['id']} is not open\n")
    wait_until(lambda: not listed(site), "none is left")


def test_one_whose_target_takes_nothing_can_be_ended(site: Site) -> None:
    """The window is full, so that nobody reads from the program."""
    proxy = site.proxy(site.server().port)
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        socks.connect(proxy.address, "localhost", deaf.getsockname()[1]) as connection,
    ):
        # More than every buffer on the way takes: the system's four, and the stream's window.
        connection.settimeout(2)
        with pytest.raises(TimeoutError):
            for _ in range(512):
                connection.sendall(bytes(1 << 20))
        [one] = listed(site)
        assert ask(site, "--kill", str(one["id"])).returncode == 0
        connection.settimeout(20)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(512):
                connection.sendall(bytes(1 << 20))


def test_one_that_waits_for_a_session_can_be_ended(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        site.publish(silent.getsockname()[1], site.key.base64)
        proxy = site.proxy(silent.getsockname()[1], "--open-timeout", "600", wait=False)
        with socket.create_connection(proxy.address, timeout=20) as connection:
            connection.sendall(b"\x05\x01\x00")
            assert socks.exactly(connection, 2) == b"\x05\x00"
            connection.sendall(b"\x05\x01\x00\x03\x09localhost\x00\x50")
            wait_until(lambda: [one["way"] for one in listed(site)] == ["waiting"], "it waits")
            [one] = listed(site)
            assert ask(site, "--kill", str(one["id"])).returncode == 0
            with pytest.raises((ConnectionResetError, EOFError)):
                socks.exactly(connection, 1)
        wait_until(lambda: not listed(site), "none is left")
