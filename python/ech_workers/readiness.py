"""Waiting for a supervisor: who is told of its changes, and what is raised when there is no session in time."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from ech_workers import waiting
from ech_workers.errors import SessionTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ech_workers.errors import TunnelError
    from ech_workers.supervisor import Supervisor

__all__ = ["Watchers", "late", "wait_ready", "watching"]


class Watchers:
    """Who is told that something may have changed."""

    def __init__(self) -> None:
        self._lock = waiting.lock()
        self._watchers: list[Callable[[], object]] = []

    def add(self, changed: Callable[[], object]) -> Callable[[], None]:
        """Has ``changed`` called at each ``tell``, in the thread of that. Returns what takes this back."""
        with self._lock:
            self._watchers.append(changed)

        def remove() -> None:
            with self._lock:
                self._watchers.remove(changed)

        return remove

    def tell(self) -> None:
        """Calls them all."""
        with self._lock:
            for changed in tuple(self._watchers):
                changed()


@contextlib.contextmanager
def watching(supervisor: Supervisor) -> Iterator[waiting.Turns]:
    """What wakes this thread each time that something may have changed."""
    turns = waiting.Turns()
    stop = supervisor.watch(turns.set)
    try:
        yield turns
    finally:
        stop()
        turns.close()


def wait_ready(supervisor: Supervisor, timeout: float | None = None, *, patient: bool = False) -> None:
    """Waits until a session is up, for ``timeout`` seconds at most (None: as long as it takes).

    Raises what ``Supervisor.is_ready`` raises, SessionTimeout when the time is up.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with watching(supervisor) as turns:
        while not supervisor.is_ready(patient=patient):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise late(supervisor, timeout or 0.0)
            turns.wait(left)


def late(supervisor: Supervisor, timeout: float) -> TunnelError:
    """What to raise when ``timeout`` seconds were not enough for a session."""
    status = supervisor.status()
    if status.cause is None:
        why, detail, advice = f"still {status.phase}", None, None
    else:
        why, detail, advice = status.cause.message, status.cause.detail, status.cause.advice or ""
    names = ", ".join(upstream.name for upstream in status.upstreams)
    message = f"no session to {names} within {timeout:g} s: {why}"
    return SessionTimeout(message, code="session-timeout", detail=detail, advice=advice)
