"""A server that allows few streams in a session: further sessions are dialled, and what fits in none of them waits."""

import contextlib
import socket
import threading

from harness import socks
from harness.tunnel import ProxyProgram, Site


def echoed(proxy: ProxyProgram, port: int) -> socket.socket:
    """A connection that has carried a byte there and back."""
    connection = socks.connect(proxy.address, "127.0.0.1", port, timeout=30)
    connection.sendall(b"a")
    assert socks.exactly(connection, 1) == b"a"
    return connection


def test_streams_beyond_what_a_session_may_have_go_to_further_sessions_and_then_wait(
    site: Site, targets: dict[str, int]
) -> None:
    server = site.server("--max-streams", "4")
    proxy = site.proxy(server.port, "--open-timeout", "30")
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(echoed(proxy, targets["echo"])) for _ in range(12)]
        assert proxy.process.output.count("another session is dialled") == 2
        late: list[socket.socket] = []
        waiting = threading.Thread(target=lambda: late.append(echoed(proxy, targets["echo"])))
        waiting.start()
        proxy.process.wait_line(r"allows no more connections in 3 sessions: new ones wait until others end")
        assert not late
        taken[5].close()
        waiting.join(30)
        assert len(late) == 1
        late[0].close()
    assert "panicked" not in proxy.process.output + server.process.output
