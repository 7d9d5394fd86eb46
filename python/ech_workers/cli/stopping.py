"""SIGINT and SIGTERM as an orderly end."""

from __future__ import annotations

import queue
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from types import FrameType, TracebackType

__all__ = ["Stopping"]


class Stopping:
    """While entered, SIGINT and SIGTERM ask for the end instead of raising; ``wait`` sees it at once.

    Only for the main thread: Python runs signal handlers there, and only between byte codes, so it must not sit in a
    native call meanwhile.
    """

    def __init__(self) -> None:
        self._signals = 0
        # The one queue that a signal handler may put into whatever the main thread was doing (an Event's lock may be
        # held just then).
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Stopping:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds: float | None = None) -> bool:
        """True once the end was asked for."""
        if not self._signals:
            try:
                self._wake.get(timeout=seconds)
            except queue.Empty:
                return False
        return True

    def wait_for(self, thread: threading.Thread) -> bool:
        """Waits for a thread that winds things up; False when a second signal says not to."""
        while thread.is_alive():
            thread.join(0.1)
            if self._signals > 1:
                return False
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._wake.put(None)
