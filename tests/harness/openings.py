"""Many programs that connect through a proxy at the same time."""

import threading
from pathlib import Path

from . import socks
from .tunnel import ProxyProgram


class Openings:
    """Programs that each connect, send a byte and wait for it to come back."""

    def __init__(self, proxy: ProxyProgram, port: int, count: int) -> None:
        self.count = count
        self.echoed = 0
        self.failures: list[BaseException] = []
        self._proxy = proxy
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(port,), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, port: int) -> None:
        try:
            with socks.connect(self._proxy.address, "127.0.0.1", port, timeout=60) as connection:
                connection.sendall(b"a")
                assert socks.exactly(connection, 1) == b"a"
        except (OSError, EOFError, socks.ReplyError, AssertionError) as error:
            with self._lock:
                self.failures.append(error)
        else:
            with self._lock:
                self.echoed += 1

    def are_under_way(self) -> bool:
        """Whether the proxy has all those connections that have not been served (proc(5))."""
        port = f":{self._proxy.port:04X}"
        fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        there = sum(line[1].endswith(port) and line[3] == "01" for line in fields)
        return there + self.echoed + len(self.failures) >= self.count

    def join(self) -> None:
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "an opening hangs"
