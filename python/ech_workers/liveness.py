"""After the network has changed: which sessions are dead, found out within two round trips instead of a ping's time-out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ech_workers.engine import ProbeEngine

__all__ = ["Liveness"]

_log = logging.getLogger("ech_workers")

LOOK = 0.1
"""Seconds between looks at what the sessions answered."""

LIMIT = 5.0
"""Seconds after which nothing is waited for any more: the sessions' own ping has its own limit."""

PATIENCE = 0.4
"""Seconds that a session has at least, however short its round trip was on the network before."""


class Liveness:
    """Asks every session for a sign of life, and says which of them owe it. Times are monotonic seconds."""

    def __init__(self, engine: ProbeEngine) -> None:
        self._engine = engine
        self._began = 0.0
        self._look_at: float | None = None

    def begin(self, now: float, slept: float) -> None:
        """Asks all sessions. slept: seconds in which this process did not run; 0: the network has changed."""
        self._engine.probe()
        if slept:
            _log.info("%.0f s are missing (sleep, or a clock that was set): every session is probed and renewed", slept)
        else:
            _log.info("the network has changed: every session is probed")
        self._began = now
        self._look_at = now + LOOK

    def deadlines(self) -> list[float]:
        """When the next look is due."""
        return [] if self._look_at is None else [self._look_at]

    def dead(self, now: float) -> list[int]:
        """The sessions that have not answered within two round trips (each is named again until it is gone)."""
        if self._look_at is None or now < self._look_at:
            return []
        owing = [session for session in self._engine.snapshot().sessions if session.unanswered is not None]
        # A probe takes a moment to be sent.
        is_over = (not owing and now >= self._began + 2 * LOOK) or now >= self._began + LIMIT
        self._look_at = None if is_over else now + LOOK
        return [
            session.session
            for session in owing
            if (session.unanswered or 0.0) >= max(PATIENCE, 2 * (session.rtt_ms or 0.0) / 1000)
        ]
