"""A target that does not answer: the queue of its listener is full, so that the system drops whoever comes."""

import contextlib
import socket
from types import TracebackType
from typing import Self


class Silent:
    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self._waiting: list[socket.socket] = []
        for _ in range(8):
            waiting = socket.socket()
            self._waiting.append(waiting)
            waiting.settimeout(0.2)
            try:
                waiting.connect(self.address)
            except TimeoutError:
                break

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()
        return host, port

    def close(self) -> None:
        for each in (*self._waiting, self._listener):
            with contextlib.suppress(OSError):
                each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
