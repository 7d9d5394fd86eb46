"""What the service manager is told: that the ports are open, that the end has begun, and that it still works (sd_notify(3))."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

__all__ = ["Service"]

log = logging.getLogger("ech_workers")


class Service:
    """A running command as systemd sees it (`Type=notify`, `WatchdogSec=`); without systemd nothing happens.

    While it is entered the service is ready. The watchdog is fed by asking the command for its status, as often as twice in
    the time that systemd waits: one whose parts no longer answer is restarted.
    """

    def __init__(self, status: Callable[[], object], variables: Mapping[str, str] = os.environ) -> None:
        self._status = status
        self._address = _address(variables.get("NOTIFY_SOCKET", ""))
        self._interval = _watchdog(variables) / 2
        self._ended = threading.Event()
        self._told_stopping = False

    def __enter__(self) -> Service:
        self._tell("READY=1")
        if self._address is not None and self._interval > 0:
            threading.Thread(target=self._watch, name="ech-workers-watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stopping()
        self._ended.set()

    def stopping(self) -> None:
        """The end has begun; the watchdog goes on until it is over."""
        if not self._told_stopping:
            self._told_stopping = True
            self._tell("STOPPING=1")

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self._status()
            except Exception:
                # While it ends there may be nothing left to ask.
                if not self._told_stopping:
                    log.error("the status cannot be had: the watchdog is not fed")
                    continue
            self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.settimeout(1.0)
            told.sendto(state.encode(), self._address)


def _address(named: str) -> str | None:
    """The manager's socket: a path, or a name in the abstract namespace, which begins with @."""
    if named.startswith("@"):
        return "\0" + named[1:]
    return named if named.startswith("/") else None


def _watchdog(variables: Mapping[str, str]) -> float:
    """In how many seconds the manager wants a sign of life; 0: it does not (sd_watchdog_enabled(3))."""
    if variables.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = variables.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0
