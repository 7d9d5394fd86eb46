"""The proxy and the limit of open files that the system gives it."""

import contextlib
import re
import socket
from pathlib import Path

import pytest

from harness import socks
from harness.processes import Processes
from harness.tunnel import ProxyProgram, Site
from harness.waiting import wait_until


def limited(site: Site, processes: Processes, port: int, limits: str, *options: str) -> ProxyProgram:
    """A proxy under these limits of the shell's ulimit."""
    script = f'{limits}; exec "$0" "$@"'
    arguments = site.proxy_arguments(port, *options)
    process = processes.start("sh", "-c", script, *arguments, env=site.environment)
    found = process.wait_line(r"listening on (\S*):(\d+)\b")
    program = ProxyProgram(process, int(found.group(2)))
    program.wait_session()
    return program


def works(proxy: ProxyProgram, targets: dict[str, int]) -> None:
    with socks.connect(proxy.address, "127.0.0.1", targets["echo"], timeout=30) as connection:
        connection.sendall(b"a")
        assert socks.exactly(connection, 1) == b"a"


def soft_limit(proxy: ProxyProgram) -> int:
    limits = Path(f"/proc/{proxy.process.pid}/limits").read_text()
    found = re.search(r"Max open files\s+(\d+)", limits)
    assert found is not None
    return int(found.group(1))


def test_the_soft_limit_is_raised_to_the_hard_one(site: Site, processes: Processes, targets: dict[str, int]) -> None:
    proxy = limited(site, processes, site.server().port, "ulimit -Sn 200; ulimit -Hn 8000")
    assert soft_limit(proxy) == 8000
    works(proxy, targets)
    assert "open files" not in proxy.process.output


@pytest.mark.parametrize(("mode", "most"), [("--yamux", 225), ("--no-yamux", 112)])
def test_connections_beyond_what_the_system_allows_are_refused_and_the_rest_goes_on(
    site: Site, processes: Processes, targets: dict[str, int], mode: str, most: int
) -> None:
    proxy = limited(site, processes, site.server().port, "ulimit -n 300", mode)
    proxy.process.wait_line(rf"300 open files: there may be {most} connections at a time instead of 4096")
    with contextlib.ExitStack() as held:
        for _ in range(most):
            held.enter_context(socket.create_connection(proxy.address, timeout=30))
        refused = held.enter_context(socket.create_connection(proxy.address, timeout=30))
        with contextlib.suppress(ConnectionResetError):
            assert refused.recv(1) == b""
    wait_until(lambda: _serves(proxy, targets), "the proxy serves again", 30)
    assert "no file descriptor left" not in proxy.process.output


def _serves(proxy: ProxyProgram, targets: dict[str, int]) -> bool:
    try:
        works(proxy, targets)
    except (OSError, EOFError):
        return False
    return True


def test_when_descriptors_run_out_one_line_says_so(site: Site, processes: Processes, targets: dict[str, int]) -> None:
    """With so few, what the process itself has open leaves less than was reckoned with."""
    proxy = limited(site, processes, site.server().port, "ulimit -n 40")
    works(proxy, targets)
    with contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(socket.create_connection(proxy.address, timeout=30))
        proxy.process.wait_line("this process has no file descriptor left")
    wait_until(lambda: _serves(proxy, targets), "the proxy serves again", 30)
    assert proxy.process.output.count("no file descriptor left") == 1
