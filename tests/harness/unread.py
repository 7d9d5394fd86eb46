"""Transfers that stand still because nobody reads them, and what else goes through the same session."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from . import socks
from .waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .tunnel import ProxyProgram

# More than a stream's window and the system's buffers take.
SIZE = 4 << 20


@contextlib.contextmanager
def unread_downloads(proxy: ProxyProgram, port: int, count: int) -> Iterator[None]:
    """Programs that ask the target on this port for SIZE bytes each, and read none of them."""
    with contextlib.ExitStack() as held:
        for _ in range(count):
            program = held.enter_context(socks.connect(proxy.address, "127.0.0.1", port, timeout=60))
            program.sendall(b"GET /bytes/%d HTTP/1.1\r\nHost: a\r\n\r\n" % SIZE)
        yield


@contextlib.contextmanager
def unread_uploads(proxy: ProxyProgram, count: int) -> Iterator[None]:
    """Programs that send SIZE bytes each to a target that reads none of them."""
    with contextlib.ExitStack() as held:
        target = held.enter_context(socket.socket())
        # What the kernel holds for the target is not the server's.
        target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        target.bind(("127.0.0.1", 0))
        target.listen(count)
        data = bytes(SIZE)
        for _ in range(count):
            program = socks.connect(proxy.address, "127.0.0.1", target.getsockname()[1], timeout=60)
            sender = threading.Thread(target=_send, args=(program, data), daemon=True)
            sender.start()
            held.callback(_end, program, sender)
        yield


def _send(program: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        program.sendall(data)


def _end(program: socket.socket, sender: threading.Thread) -> None:
    with contextlib.suppress(OSError):
        program.shutdown(socket.SHUT_RDWR)
    sender.join(20)
    program.close()


class Beside:
    """A connection to the echo target in the same session."""

    def __init__(self, proxy: ProxyProgram, port: int) -> None:
        self._connection = socks.connect(proxy.address, "127.0.0.1", port, timeout=60)
        self._owed = 0
        self.answers(20)

    def answers(self, patience: float) -> bool:
        """Whether everything that was sent, and one byte more, comes back within so many seconds."""
        if self._owed == 0:
            self._connection.sendall(b"x")
            self._owed = 1
        self._connection.settimeout(patience)
        with contextlib.suppress(TimeoutError):
            self._owed -= len(self._connection.recv(self._owed))
        return self._owed == 0

    def wait_stopped(self) -> None:
        """Waits until the session stands still."""
        # Less than the 5 s after which a session that stands still cuts off a stream.
        wait_until(lambda: not self.answers(2), "the session is not read any more", 40)

    def close(self) -> None:
        self._connection.close()
