"""Signals, and requests of other threads, as an orderly end."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import FrameType, TracebackType

__all__ = ["Stopping"]


class Stopping:
    """While entered, SIGINT and SIGTERM ask for the end instead of raising, SIGHUP for what it is given; ``wait`` sees it at once.

    Only for the main thread: Python runs signal handlers there, and only between byte codes. A signal that comes just
    before a native wait would go unnoticed until the next one, so the interpreter writes each to a socket
    (``signal.set_wakeup_fd``), and ``wait`` waits for that.
    """

    def __init__(self, on_hangup: Callable[[], object] | None = None) -> None:
        """on_hangup: called by ``wait`` after a SIGHUP. Where the program has a terminal, SIGHUP says that it is gone, and
        asks for the end."""
        self._asked = 0
        self._on_hangup = on_hangup
        self._hung_up = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self._fd_before = -1

    def __enter__(self) -> Stopping:
        self._fd_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        # Under nohup it is ignored, and stays so.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            ends = self._on_hangup is None or os.isatty(0) or os.isatty(1)
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._handle if ends else self._hang_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._reader.close()
        self._writer.close()

    def ask(self) -> None:
        """Asks for the end, from any thread."""
        self._asked += 1
        with contextlib.suppress(OSError):  # full: then it is readable anyway
            self._writer.send(b"\0")

    @property
    def asked(self) -> bool:
        """Whether the end was asked for."""
        return self._asked > 0

    def fileno(self) -> int:
        """Readable when there is something for ``wait`` to see."""
        return self._reader.fileno()

    def wait(self, seconds: float | None = None) -> bool:
        """True once the end was asked for."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._asked:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            # Not select(): it cannot take the descriptors of a process that has many open.
            self._poll.poll(None if left is None else math.ceil(left * 1000))
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(4096)
            if self._hung_up and self._on_hangup is not None:
                self._hung_up = False
                self._on_hangup()
        return True

    def wait_for(self, thread: threading.Thread) -> bool:
        """Waits for a thread that winds things up; False when a second signal says not to."""
        while thread.is_alive():
            thread.join(0.1)
            if self._asked > 1:
                return False
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        self._hung_up = True
