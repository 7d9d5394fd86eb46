"""A program that did not run for a minute, as on a laptop that slept: what had begun may be dead, what begins is served."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import pytest

from harness import socks
from harness.tap import Tap
from harness.waiting import wait_until

if TYPE_CHECKING:
    from harness.tunnel import ProxyProgram, Site

MODES = ("--yamux", "--no-yamux")
Meanwhile = Literal["nothing", "server-restarted", "way-forgotten"]


def ask(proxy: ProxyProgram, port: int) -> str:
    try:
        with socks.connect(proxy.address, "127.0.0.1", port) as connection:
            connection.settimeout(30)
            connection.sendall(b"hello")
            return "good" if socks.exactly(connection, 5) == b"hello" else "cut"
    except (OSError, EOFError) as error:
        return repr(error)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("meanwhile", ["nothing", "server-restarted", "way-forgotten"])
def test_after_a_minute_in_which_it_did_not_run_a_proxy_serves_what_begins(
    site: Site, targets: dict[str, int], meanwhile: Meanwhile
) -> None:
    """The server stays as it is, or is another one, or what is between has forgotten the connections: nothing says so."""
    server = site.server(publish=False)
    with Tap(("127.0.0.1", server.port)) as path:
        site.publish(path.port, site.key.base64)
        proxies = [site.proxy(path.port, mode, "--log-level", "debug") for mode in MODES]
        for proxy in proxies:
            assert ask(proxy, targets["echo"]) == "good"
            proxy.process.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        if meanwhile == "server-restarted":
            server.process.kill()
            path.upstream = ("127.0.0.1", site.server(publish=False).port)
        elif meanwhile == "way-forgotten":
            path.forget_connections()
        # The time itself is what is tested.
        wait_until(lambda: time.monotonic() - stopped > 61, "a minute is over", 90)
        before = [len(proxy.process.lines) for proxy in proxies]
        for proxy in proxies:
            proxy.process.signal(signal.SIGCONT)
        for proxy in proxies:
            proxy.process.wait_line("s are missing .*: every session is probed and renewed")
        with ThreadPoolExecutor(20) as threads:
            asked = [threads.submit(ask, proxy, targets["echo"]) for _ in range(10) for proxy in proxies]
        assert [each.result() for each in asked] == ["good"] * 20
        proxies[0].wait_session(after=before[0])
        # Not the session's own limit has found it, which takes ten seconds.
        assert "yamux-ping-timeout" not in proxies[0].process.output
