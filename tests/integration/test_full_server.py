"""A server that has as many sessions as it may have: whose session goes for another one, and what clients make of a refusal."""

from __future__ import annotations

import contextlib
import urllib.request
from typing import TYPE_CHECKING

import pytest

from harness import socks
from harness.waiting import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from harness.tunnel import ProxyProgram, Site

FULL = "the server has as many sessions as it may have"


@contextlib.contextmanager
def echoing(proxy: ProxyProgram, port: int) -> Iterator[Callable[[], None]]:
    """A connection that carries a byte there and back each time that it is asked to."""
    with socks.connect(proxy.address, "127.0.0.1", port) as connection:

        def echo() -> None:
            connection.sendall(b"a")
            assert socks.exactly(connection, 1) == b"a"

        echo()
        yield echo


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("mode", ["--yamux", "--no-yamux"])
def test_a_session_with_streams_stays_when_another_one_of_its_address_comes(
    site: Site, targets: dict[str, int], mode: str
) -> None:
    server = site.server("--max-sessions", "1", "--status-listen", "127.0.0.1:0")
    figures = int(server.process.wait_line(r"figures on http://\S*:(\d+)/").group(1))
    first = site.proxy(server.port, mode)
    with echoing(first, targets["echo"]) as echo:
        second = site.proxy(server.port, mode, "--control", "", wait=False)
        second.process.wait_line(FULL)
        with pytest.raises((OSError, EOFError, socks.ReplyError)):
            socks.exactly(socks.connect(second.address, "127.0.0.1", targets["echo"]), 1)
        server.process.wait_line("a session was refused: there are 1")
        echo()
        second.process.stop()
    wait_until(lambda: "ech_workers_server_streams 0\n" in metrics(figures), "its stream has ended", 20)
    # Now it gives its place up.
    third = site.proxy(server.port, mode, "--control", "")
    with echoing(third, targets["echo"]) as echo:
        echo()
    assert "panicked" not in server.process.output


def test_a_client_that_wants_a_further_session_keeps_the_one_that_it_has(site: Site, targets: dict[str, int]) -> None:
    """It has as many streams in its session as the server allows, and there is no place for another session."""
    server = site.server("--max-sessions", "1", "--max-streams", "2")
    proxy = site.proxy(server.port, "--open-timeout", "60")
    with contextlib.ExitStack() as open_, contextlib.ExitStack() as waiting:
        kept = [open_.enter_context(echoing(proxy, targets["echo"])) for _ in range(2)]
        late: socket.socket = waiting.enter_context(socks.connect(proxy.address, "127.0.0.1", targets["echo"]))
        late.sendall(b"b")
        proxy.process.wait_line(f"no further session could be had: .*{FULL}")
        for echo in kept:
            echo()
        assert "session lost" not in proxy.process.output
        open_.close()
        # It was only waiting for its turn.
        assert socks.exactly(late, 1) == b"b"


def test_sessions_without_streams_make_room(site: Site, targets: dict[str, int]) -> None:
    server = site.server("--max-sessions", "2")
    busy, idle = site.proxy(server.port), site.proxy(server.port, "--control", "")
    with echoing(busy, targets["echo"]) as echo:
        newcomer = site.proxy(server.port, "--control", "")
        idle.process.wait_line("session lost")
        with echoing(newcomer, targets["echo"]) as other:
            other()
        echo()
    wait_until(lambda: "was ended for a new one" in server.process.output, "the server says so", 20)
